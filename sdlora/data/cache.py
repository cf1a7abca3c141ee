"""Latents and text outputs, each made once: no step of training decodes a file or runs the VAE."""

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from sdlora.data.dataset import Example
from sdlora.data.images import (
    ImageSize,
    MaskedImage,
    crop_and_resize,
    crop_and_resize_mask,
    open_image,
    open_mask,
    size_and_crop,
    to_pixels,
)
from sdlora.data.tensor_store import Tensors, TensorStore, key_of
from sdlora.errors import DatasetError, FileError, NonFiniteError
from sdlora.events import OnProgress
from sdlora.filesystem.reading import sha256

if TYPE_CHECKING:
    import torch

    EncodeImages = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    EncodeText = Callable[[torch.Tensor], Tensors]

VERSION = 1
"""Raised whenever the way from a file to its latents changes, so that nothing old is read."""

_WORKERS = 4
_PREFETCHED = 8


def lower_thread_priority() -> None:
    """Let the encoder go before this thread, on Linux, where threads have priorities of their own.

    On a CPU the encoder's threads wait for one another after each layer, and so all for one that has to share its core
    with a decoder: on two cores pictures of 12 megapixels went into `pocket`'s cache at 19 a second, and go at 27.
    """
    if sys.platform == "linux":
        with suppress(OSError):  # Some sandboxes forbid it.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


@dataclass(frozen=True)
class View:
    """One cut of one picture: its bucket, where along the overhanging side it is cut (0 to 1), mirrored or not."""

    example: Example
    size: ImageSize
    position: float = 0.5
    flip: bool = False

    @property
    def size_and_crop(self) -> tuple[int, int, int, int]:
        """The picture's own height and width, and top and left of the cut."""
        return size_and_crop(self.example.size, self.size, self.position, self.flip)


@dataclass(frozen=True)
class CachedLatents:
    """Of one view: mean and deviation (4, h, w) float32, weights (1, h, w) float32 in [0, 1] or None."""

    mean: "torch.Tensor"
    std: "torch.Tensor"
    mask: "torch.Tensor | None"


class LatentCache:
    """The latents of views, by content: picture and mask bytes, cut, background, and ``fingerprint`` of the VAE.

    ``batch_size`` views are encoded at a time, the last batch of a size filled up, so that what else is missing never
    changes a bit. It is part of the key, as another size may round otherwise.
    """

    def __init__(
        self,
        store: TensorStore,
        fingerprint: str,
        background: str = "#ffffff",
        masks: bool = True,
        batch_size: int = 1,
    ) -> None:
        self.store = store
        self.fingerprint = fingerprint
        self.background = background
        self.masks = masks
        self.batch_size = batch_size

    def key(self, view: View) -> str:
        picture = (view.example.digest, view.example.mask_digest, self.masks, self.background)
        cut = (tuple(view.size), float(view.position), view.flip)
        return key_of("latents", VERSION, self.fingerprint, self.batch_size, picture, cut)

    def prepare(
        self,
        views: Iterable[View],
        encode: "EncodeImages",
        on_progress: OnProgress = lambda done, total: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Make what is missing or damaged. ``encode`` takes pixels (B, 3, H, W) in [-1, 1], gives mean and deviation.

        Returns False if stopped before all was there; what was made until then is kept. Raises NonFiniteError naming
        the picture if the VAE gives infinite or not-a-number latents, DatasetError if a file can no longer be decoded,
        or is another one by now.
        """
        wanted = {self.key(view): view for view in views}
        missing = [view for key, view in wanted.items() if self.store.get(key) is None]
        done = len(wanted) - len(missing)
        on_progress(done, len(wanted))
        for batch in self._decoded(_batches(missing, self.batch_size)):
            if should_stop():
                return False
            self._encode(batch, encode)
            done += len(batch)
            on_progress(done, len(wanted))
        return True

    def read(self, view: View) -> CachedLatents:
        """Raises FileError if the view was never prepared, or its file was damaged since."""
        found = self.store.get(self.key(view))
        if found is None:
            raise FileError(f"{view.example.path}: its latents are missing or damaged; start again to make them anew")
        return CachedLatents(found["mean"], found["std"], found.get("mask"))

    def _decoded(self, batches: Iterable[list[View]]) -> Iterator[list[tuple[View, MaskedImage]]]:
        """The batches with their pictures, decoded by a few threads a little ahead of the encoder."""
        ahead: deque[list[tuple[View, Future[MaskedImage]]]] = deque()
        with ThreadPoolExecutor(_WORKERS, initializer=lower_thread_priority) as pool:
            try:
                for batch in batches:
                    ahead.append([(view, pool.submit(self._open, view)) for view in batch])
                    if len(ahead) * self.batch_size >= _PREFETCHED:
                        yield [(view, future.result()) for view, future in ahead.popleft()]
                while ahead:
                    yield [(view, future.result()) for view, future in ahead.popleft()]
            finally:
                pool.shutdown(cancel_futures=True)

    def _open(self, view: View) -> MaskedImage:
        """The view's pixels at its size, and its mask as it is on disk: that is cut once the latents' size is known."""
        rgb, mask = open_image(view.example.path, self.background, view.size)
        _require_unchanged(view.example.path, view.example.digest)
        if self.masks and view.example.mask is not None:
            mask = open_mask(view.example.mask)
            _require_unchanged(view.example.mask, view.example.mask_digest)
        return MaskedImage(crop_and_resize(rgb, view.size, view.position, view.flip), mask if self.masks else None)

    def _encode(self, batch: Sequence[tuple[View, MaskedImage]], encode: "EncodeImages") -> None:
        import torch

        pixels = [to_pixels(picture.rgb) for _, picture in batch]
        filled = torch.stack(pixels + pixels[-1:] * (self.batch_size - len(pixels)))
        with torch.no_grad():
            means, stds = encode(filled)
        for (view, picture), mean, std in zip(batch, means.float(), stds.float(), strict=False):
            if not (mean.isfinite().all() and std.isfinite().all()):
                remedy = "leave it out, or take another base"
                raise NonFiniteError(f"{view.example.path}: the base's VAE gives non-finite latents for it; {remedy}")
            made = {"mean": mean, "std": std}
            if picture.mask is not None:
                latent_size = ImageSize(mean.shape[-1], mean.shape[-2])
                made["mask"] = crop_and_resize_mask(picture.mask, latent_size, view.position, view.flip)
            self.store.put(self.key(view), made)


def _require_unchanged(path: Path, digest: str) -> None:
    """Called once ``path`` is decoded: what is kept under a picture's digest must be of that picture for all time."""
    try:
        changed = bool(digest) and sha256(path) != digest
    except OSError:
        changed = True
    if changed:
        raise DatasetError(f"{path}: was changed or removed while the run began; start again")


def _batches(views: Iterable[View], batch_size: int) -> Iterator[list[View]]:
    """Views of one size together, in their order, ``batch_size`` at a time."""
    by_size: dict[ImageSize, list[View]] = {}
    for view in views:
        by_size.setdefault(view.size, []).append(view)
    for group in by_size.values():
        members = iter(group)
        while batch := list(islice(members, batch_size)):
            yield batch


class TextCache:
    """A frozen text encoder's outputs, by token ids and ``fingerprint`` of the encoder.

    ``encode`` takes ids (1, L) int64 and gives named tensors (1, ...): one caption at a time, so that what stands
    beside it never changes a bit.
    """

    def __init__(self, store: TensorStore, fingerprint: str, encode: "EncodeText") -> None:
        self.store = store
        self.fingerprint = fingerprint
        self.encode = encode

    def prepare(
        self,
        ids: "torch.Tensor",
        on_progress: OnProgress = lambda done, total: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Make what is missing for ``ids`` (N, L). Returns False if stopped before all was there."""
        for done, row in enumerate(ids):
            if should_stop():
                return False
            on_progress(done, len(ids))
            self._one(row)
        on_progress(len(ids), len(ids))
        return True

    def read(self, ids: "torch.Tensor") -> Tensors:
        """The outputs for ``ids`` (B, L), stacked (B, ...); a caption that is not there yet is encoded now."""
        import torch

        rows = [self._one(row) for row in ids]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def _one(self, row: "torch.Tensor") -> Tensors:
        import torch

        key = key_of("text", VERSION, self.fingerprint, tuple(row.tolist()))
        found = self.store.get(key)
        if found is None:
            with torch.no_grad():
                found = {name: tensor.cpu() for name, tensor in self.encode(row[None]).items()}
            self.store.put(key, found)
        return found
