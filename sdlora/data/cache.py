"""Caches of latents and text-encoder outputs: no training step decodes a file or runs the VAE."""

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

from sdlora.data.cropping import CropBox, crop_and_resize, crop_and_resize_mask, size_and_crop, size_to_cover
from sdlora.data.dataset import Example
from sdlora.data.images import ImageSize, MaskedImage, open_image, open_mask, to_pixels
from sdlora.data.tensor_store import Tensors, TensorStore, key_of
from sdlora.errors import DatasetError, FileError, NonFiniteError
from sdlora.events import OnProgress, unwatched
from sdlora.filesystem.reading import sha256

if TYPE_CHECKING:
    import torch

    EncodeImages = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    EncodeText = Callable[[torch.Tensor], Tensors]

LATENTS_VERSION, TEXT_VERSION = 2, 1
"""Versions of the ways from a file to its latents, and from a caption to what the denoiser reads of it. Raise them with
every change, so that nothing old is read. Latents 2: color profiles are followed."""

_WORKERS = 4
_PREFETCHED = 8


def lower_thread_priority() -> None:
    """Give this thread a lower priority than the encoder's, on Linux, where each thread has its own.

    On a CPU, the encoder's threads wait for one another after each layer, and so for one that shares its core with a
    decoder. On two cores, 12-megapixel images went into `pocket`'s cache at 19 a second; with this, at 27.
    """
    if sys.platform == "linux":
        with suppress(OSError):  # Some sandboxes forbid it.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


@dataclass(frozen=True)
class View:
    """One crop of one image: bucket, position of the crop along the overhanging side (0 to 1), and mirroring."""

    example: Example
    size: ImageSize
    position: float = 0.5
    flip: bool = False

    @property
    def size_and_crop(self) -> tuple[int, int, int, int]:
        """Original height and width of the image, and top and left of the crop."""
        whole = self.example.image_size
        return size_and_crop(whole, self.size, self.position, self.flip, self.example.crop)

    def part_of(self, copy: tuple[int, int]) -> CropBox | None:
        """Return the part that counts of a copy of the image that has this size; None for all of it."""
        crop = self.example.crop
        return crop and crop.scaled(self.example.image_size, copy)


@dataclass(frozen=True)
class CachedLatents:
    """Latents of one view: mean and deviation (4, h, w), and weights (1, h, w) in [0, 1] or None; all float32."""

    mean: "torch.Tensor"
    std: "torch.Tensor"
    mask: "torch.Tensor | None"


@dataclass
class LatentCache:
    """Latents of views, stored by content: image and mask bytes, crop, background, and the VAE's ``fingerprint``.

    ``batch_size`` views are encoded at a time, and the last batch of a size is filled up, so that the number of missing
    views never changes a bit. It is part of the key, because another batch size may round differently.
    """

    store: TensorStore
    fingerprint: str
    background: str = "#ffffff"
    masks: bool = True
    batch_size: int = 1

    def key(self, view: View) -> str:
        """Hash everything that decides the latents of ``view``."""
        image = (view.example.digest, view.example.mask_digest, self._weights(view), self.background)
        crop: tuple[object, ...] = (tuple(view.size), float(view.position), view.flip)
        if view.example.crop:  # Else the key is what it was before there were such crops.
            crop += (tuple(view.example.crop),)
        return key_of("latents", LATENTS_VERSION, self.fingerprint, self.batch_size, image, crop)

    def prepare(
        self,
        views: Iterable[View],
        encode: "EncodeImages",
        on_progress: OnProgress = unwatched,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Encode the views that are missing or damaged.

        ``encode`` maps pixels (B, 3, H, W) in [-1, 1] to mean and deviation. Returns False if ``should_stop`` ended it
        early; finished views stay in the cache. Raises NonFiniteError naming the image if the VAE returns non-finite
        latents, DatasetError if a file can no longer be decoded or has changed.
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
        """Return the latents of a view. Raises FileError if it was never prepared, or its file is damaged."""
        found = self.store.get(self.key(view))
        if found is None:
            raise FileError(f"{view.example.path}: its latents are missing or damaged; start again to encode them anew")
        return CachedLatents(found["mean"], found["std"], found.get("mask"))

    def _decoded(self, batches: Iterable[list[View]]) -> Iterator[list[tuple[View, MaskedImage]]]:
        """Yield the batches with their images, decoded by a few threads ahead of the encoder."""
        pending: deque[list[tuple[View, Future[MaskedImage]]]] = deque()
        with ThreadPoolExecutor(_WORKERS, initializer=lower_thread_priority) as pool:
            try:
                for batch in batches:
                    pending.append([(view, pool.submit(self._open, view)) for view in batch])
                    if len(pending) * self.batch_size >= _PREFETCHED:
                        yield [(view, future.result()) for view, future in pending.popleft()]
                while pending:
                    yield [(view, future.result()) for view, future in pending.popleft()]
            finally:
                pool.shutdown(cancel_futures=True)

    def _open(self, view: View) -> MaskedImage:
        """Open the image at the view's size. The mask keeps its size: it is cropped once the latents' size is known."""
        wanted = size_to_cover(view.example.image_size, view.size, view.example.crop)
        rgb, mask = open_image(view.example.path, self.background, wanted)
        _require_unchanged(view.example.path, view.example.digest)
        if self._weights(view) and view.example.mask is not None:
            mask = open_mask(view.example.mask)
            _require_unchanged(view.example.mask, view.example.mask_digest)
        pixels = crop_and_resize(rgb, view.size, view.position, view.flip, view.part_of(rgb.size))
        return MaskedImage(pixels, mask if self._weights(view) else None)

    def _weights(self, view: View) -> bool:
        """Return whether a mask or transparency weights this view."""
        return self.masks and view.example.masks

    def _encode(self, batch: Sequence[tuple[View, MaskedImage]], encode: "EncodeImages") -> None:
        import torch

        pixels = [to_pixels(image.rgb) for _, image in batch]
        padded = torch.stack(pixels + pixels[-1:] * (self.batch_size - len(pixels)))
        with torch.no_grad():
            means, stds = encode(padded)
        for (view, image), mean, std in zip(batch, means.float(), stds.float(), strict=False):
            if not (mean.isfinite().all() and std.isfinite().all()):
                remedy = "leave it out, or take another base"
                raise NonFiniteError(f"{view.example.path}: the base's VAE gives non-finite latents for it; {remedy}")
            latents = {"mean": mean, "std": std}
            if image.mask is not None:
                latent_size = ImageSize(mean.shape[-1], mean.shape[-2])
                part = view.part_of(image.mask.size)
                latents["mask"] = crop_and_resize_mask(image.mask, latent_size, view.position, view.flip, part)
            self.store.put(self.key(view), latents)


def _require_unchanged(path: Path, digest: str) -> None:
    """Raise DatasetError if ``path`` no longer has this ``digest``. Call it after decoding: a cache entry must be of
    that image for good.
    """
    try:
        changed = bool(digest) and sha256(path) != digest
    except OSError:
        changed = True
    if changed:
        raise DatasetError(f"{path}: was changed or removed while the run began; start again")


def _batches(views: Iterable[View], batch_size: int) -> Iterator[list[View]]:
    """Group views by size, in order, ``batch_size`` at a time."""
    by_size: dict[ImageSize, list[View]] = {}
    for view in views:
        by_size.setdefault(view.size, []).append(view)
    for group in by_size.values():
        members = iter(group)
        while batch := list(islice(members, batch_size)):
            yield batch


@dataclass
class TextCache:
    """Outputs of a frozen text encoder, stored by token ids and the encoder's ``fingerprint``.

    ``encode`` maps ids (1, L), int64, to named tensors (1, ...): one caption at a time, so that the other captions of a
    batch never change a bit.
    """

    store: TensorStore
    fingerprint: str
    encode: "EncodeText"

    def prepare(
        self,
        ids: "torch.Tensor",
        on_progress: OnProgress = unwatched,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Encode the rows of ``ids`` (N, L) that are missing. Returns False if stopped before the last."""
        for done, row in enumerate(ids):
            if should_stop():
                return False
            on_progress(done, len(ids))
            self._one(row)
        on_progress(len(ids), len(ids))
        return True

    def read(self, ids: "torch.Tensor") -> Tensors:
        """Return the outputs for ``ids`` (B, L), stacked (B, ...); a caption that is missing is encoded now."""
        import torch

        rows = [self._one(row) for row in ids]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def _one(self, row: "torch.Tensor") -> Tensors:
        import torch

        key = key_of("text", TEXT_VERSION, self.fingerprint, tuple(row.tolist()))
        found = self.store.get(key)
        if found is None:
            with torch.no_grad():
                found = {name: tensor.cpu() for name, tensor in self.encode(row[None]).items()}
            self.store.put(key, found)
        return found
