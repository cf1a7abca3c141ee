"""A base model with any number of adapters, mixed by their scales."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sdlora.adapters import attach
from sdlora.adapters.fused import FusedAdapters, fuse
from sdlora.adapters.state import AdapterState, Scale
from sdlora.errors import ConfigError, MismatchError
from sdlora.families import family_title
from sdlora.families.base import Family
from sdlora.families.settings import Model
from sdlora.formats import read_adapter
from sdlora.formats.infer_base import infer_family, schedule_mismatch
from sdlora.formatting import did_you_mean
from sdlora.generation.infotext import base_overrides


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter in the model: its scale, the start of its file's hash, and the components that it adapts."""

    scale: Scale
    hash: str
    components: frozenset[str]
    mismatch: str
    """Warning where it was trained with another prediction type or noise schedule than the base has; usually empty."""


class AdaptedModel:
    """A loaded ``family`` and the adapters attached to it by name."""

    def __init__(self, family: Family, model: Model):
        self.family = family
        self.model = model
        self.base_overrides = base_overrides(model)
        self._adapters: dict[str, LoadedAdapter] = {}
        self._fused: FusedAdapters | None = None

    @property
    def adapters(self) -> dict[str, Scale]:
        """Scales of the loaded adapters, by name, in the order of loading."""
        return {name: adapter.scale for name, adapter in self._adapters.items()}

    def add_adapter(self, name: str, adapter: str | Path | AdapterState, scale: Scale = 1.0) -> None:
        """Load ``adapter`` under ``name``. The base stays loaded.

        Raises ConfigError for a name that is taken or cannot stand in a prompt, FormatError for a bad file,
        MismatchError for an adapter of another base; then nothing is loaded.
        """
        self._require_unfused()
        if name in self._adapters:
            raise ConfigError(f"an adapter {name!r} is already loaded; remove it or take another name")
        if not name.strip() or set(name) & set('<>:,"\n'):
            raise ConfigError(f'{name!r}: adapter names go into prompts: take one without < > : , " and line breaks')
        state, digest = (adapter, "") if isinstance(adapter, AdapterState) else _read(Path(adapter))
        self._load(state, name)
        components = frozenset(path.split(".")[0] for path in state.modules)
        mismatch = schedule_mismatch(name, state.metadata, self.family.scheduler_config, self.base_overrides)
        file_hash = state.metadata.get("sshs_model_hash", digest)[:12]
        self._adapters[name] = LoadedAdapter(1.0, file_hash, components, mismatch)
        try:
            self.set_scale(name, scale)
        except ConfigError:
            self.remove_adapter(name)
            raise

    def _load(self, state: AdapterState, name: str) -> None:
        """Attach an adapter. Raises MismatchError, by the families' names where they differ."""
        try:
            attach.load_state(self.family.models, state, name)
        except MismatchError as error:
            theirs, ours = infer_family(state), self.family.name
            if not theirs or theirs == ours:
                raise
            kinds = f"is for {family_title(theirs)}, the base is {family_title(ours)}"
            raise MismatchError(f"{name}: {kinds}; {error}") from None

    def set_scale(self, name: str, scale: Scale) -> None:
        """Change an adapter's scale: a number, or numbers by part (``{"text_encoder": 0.5}``). 0 is off."""
        self._require_unfused()
        adapter = self.loaded(name)
        with attach.temporary_scales(self.family.models, {name: scale}):  # Refuses what it cannot apply.
            self._adapters[name] = replace(adapter, scale=scale if isinstance(scale, Mapping) else float(scale))

    def remove_adapter(self, name: str) -> None:
        """Detach an adapter from the model."""
        self._require_unfused()
        self.loaded(name)
        attach.remove_adapter(self.family.models, name)
        del self._adapters[name]

    def fuse(self) -> None:
        """Fold all adapters at their scales into the weights: no cost per step. They cannot change until ``unfuse``."""
        self._require_unfused()
        self._fused = fuse(self.family.models, self.adapters)

    def unfuse(self) -> None:
        """Put the base's own weights back, bit for bit."""
        if self._fused is not None:
            self._fused.restore()
            self._fused = None

    def loaded(self, name: str) -> LoadedAdapter:
        """Return the adapter called ``name``. Raises ConfigError, naming near ones, if none is loaded."""
        if name not in self._adapters:
            hint = did_you_mean(name, self._adapters, f"loaded: {', '.join(self._adapters) or 'none'}")
            raise ConfigError(f"no adapter {name!r} is loaded; {hint}")
        return self._adapters[name]

    @property
    def _uses_scales(self) -> bool:
        """True if generating sets scales. Without adapters of its own, a studio changes none."""
        return self._fused is None and bool(self._adapters)

    def _require_unfused(self) -> None:
        if self._fused is not None:
            raise ConfigError("the adapters are fused into the weights; call unfuse() first")


def _read(path: Path) -> tuple[AdapterState, str]:
    """Return the adapter in a file, and the SHA-256 of what follows its header, A1111's name for it; "" of a folder."""
    state = read_adapter(path)
    if path.is_dir():
        return state, ""
    with open(path, "rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        return state, hashlib.file_digest(file, "sha256").hexdigest()
