"""TrainConfig: the sections put together; read from and written to TOML."""

import re
import tomllib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

from pydantic import Field, ValidationError

from sdlora.adapters import METHODS, Adapter
from sdlora.adapters.lora import Lora
from sdlora.checkpoint import Checkpoint
from sdlora.data.settings import Data
from sdlora.errors import ConfigError, FileError
from sdlora.families.base_models import BUNDLED
from sdlora.families.settings import Model
from sdlora.filesystem.paths import as_path, existing_path
from sdlora.filesystem.writing import write_atomic
from sdlora.formatting import did_you_mean, format_bytes, one_line
from sdlora.generation.settings import Prior, Sample
from sdlora.optim import Optimizer, Schedule
from sdlora.section import Section, Setting, settings
from sdlora.training.settings import Loss, Train

VERSION = 1
EXPLICIT = "given"
"""In a file: the names of the settings that a person has made, where others are still to be chosen."""
MAX_TOML_BYTES = 1 << 20
STRING = re.compile(r'"""(?:\\.|[^\\])*?"""|\'\'\'.*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|#[^\n]*', re.DOTALL)
DEEP = re.compile(r"(?<![\w-])(?:[\w-]++[ \t]*+\.[ \t]*+){32}")
"""A name of more parts than any setting has: the library's time grows with their cube. Strings are left out before."""
LENGTHS = {"steps", "epochs"}
"""Settings of ``train`` of which a run has one."""
MOST_SHOWN = 200
"""Characters of a value in a message."""
_PACKAGE = Path(__file__).parent
PRESETS = next((p for p in (_PACKAGE / "presets", _PACKAGE.parent / "presets") if p.is_dir()), _PACKAGE / "presets")


class TrainConfig(Section):
    """Everything that decides a training run."""

    model: Model = Field(default_factory=Model)
    data: Data
    prior: Prior = Field(default_factory=Prior)
    adapter: Adapter = Field(default_factory=Lora)
    train: Train = Field(default_factory=Train)
    loss: Loss = Field(default_factory=Loss)
    optimizer: Optimizer = Field(default_factory=Optimizer)
    schedule: Schedule = Field(default_factory=Schedule)
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    sample: Sample = Field(default_factory=Sample)

    @classmethod
    def load(cls, source: str | Path, overrides: Mapping[str, Any] | None = None) -> "TrainConfig":
        """From a TOML file or a preset's name; ``overrides`` are dotted names (``adapter.rank``) and values.

        Relative paths in the file are relative to it; those in ``overrides`` to the working folder.
        Raises ConfigError naming file, setting, value and remedy.
        """
        path = find_preset(source)
        values = _read(path)
        names = values.pop(EXPLICIT, () if path.parent == PRESETS else None)
        config = cls.parse(_absolute(values, path.parent), str(source), overrides)
        return config if names is None else _as_given(config, {*_names(names, source), *(overrides or {})})

    @classmethod
    def parse(cls, values: Mapping[str, Any], origin: str, overrides: Mapping[str, Any] | None = None) -> "TrainConfig":
        """From nested values; ``place`` is what error messages call their origin.

        Relative paths in either are relative to the working folder.
        """
        merged = _absolute(dict(values), Path.cwd())
        flags: dict[str, Any] = {}
        for name, value in (overrides or {}).items():
            section, _, field = name.partition(".")
            flags.setdefault(section, {})[field] = value
        for section, given in _absolute(flags, Path.cwd()).items():
            own = merged.get(section, {})
            if section == "train" and isinstance(own, Mapping):  # A length given last goes before the file's.
                own = {name: value for name, value in own.items() if name not in LENGTHS or not LENGTHS & {*given}}
            if section == "adapter" and isinstance(own, Mapping):
                own = _of_method(own, given.get("method"))
            merged[section] = {**own, **given} if isinstance(own, Mapping) else own
        try:
            return cls.model_validate(merged)
        except ValidationError as error:
            raise ConfigError("\n".join(_messages(error, origin))) from None

    def save(self, path: Path) -> None:
        """Write every setting to ``path``, atomically, with its paths absolute.

        Those made by hand are named, for ``train.memory`` leaves them alone.
        """
        import tomli_w

        values = _absolute(self.model_dump(mode="json", exclude_none=True), Path.cwd())
        write_atomic(path, tomli_w.dumps({"version": VERSION, EXPLICIT: sorted(explicit_settings(self)), **values}))


def explicit_settings(config: TrainConfig) -> frozenset[str]:
    """The settings that a person has made, by their dotted names: in a file of their own, or by flags; a preset's, and
    what a config stands for by default, are not among them.
    """
    return frozenset(f"{name}.{field}" for name, section in dict(config).items() for field in section.model_fields_set)


def _as_given(config: TrainConfig, names: set[str]) -> TrainConfig:
    """``config`` of which the settings ``names`` alone count as made by a person."""

    def only(name: str, section: Section) -> Section:
        own = {field for field in type(section).model_fields if f"{name}.{field}" in names}
        return type(section).model_construct(_fields_set=own, **dict(section))

    sections: dict[str, Any] = {name: only(name, section) for name, section in dict(config).items()}
    return TrainConfig.model_construct(**sections)


def _names(names: Any, source: object) -> list[str]:
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{source}: {EXPLICIT} is no list of settings' names; leave it out")
    return list(names)


def adapt_to_device(config: TrainConfig, device: str = "auto", low_memory: bool = False) -> TrainConfig:
    """``config`` on ``device`` where it names none itself; ``low_memory`` trades time for memory.

    Then layers are computed twice rather than kept (gradient checkpointing), and pictures go through the model one by
    one, their gradients added up, as many to a step as before.
    """
    train = config.train
    changes: dict[str, Any] = {"device": device} if train.device == "auto" else {}
    if low_memory:
        pictures = train.batch_size * train.gradient_accumulation
        changes |= {"gradient_checkpointing": True, "batch_size": 1, "gradient_accumulation": pictures}
    return config.model_copy(update={"train": train.model_copy(update=changes)})


def with_base(config: TrainConfig, base: str) -> TrainConfig:
    """``config`` with ``model.base`` as ``base``."""
    return config.model_copy(update={"model": config.model.model_copy(update={"base": base})})


def all_settings() -> list[Setting]:
    """Every setting of a training run, in the order of declaration."""
    return list(settings(TrainConfig))


def value_of(config: TrainConfig, setting: Setting) -> Any:
    """What ``config`` has for ``setting``; its default where the method that was chosen has no such setting."""
    section, _, name = setting.name.partition(".")
    return getattr(getattr(config, section), name, setting.default)


def find_preset(source: str | Path) -> Path:
    """The TOML file that ``source`` names: a path, or a preset by name. Raises ConfigError with near names."""
    found, path = existing_path(source), Path(source)
    if found is not None and found.suffix == ".toml" and found.is_file():
        return found.resolve()
    names = [preset.stem for preset in presets()]
    name = path.name.removesuffix(".toml")
    if name in names and (path.parent == Path(".") or path.parent.name == "presets"):
        return PRESETS / f"{name}.toml"
    hint = did_you_mean(name, names, f"presets: {', '.join(names)}")
    raise ConfigError(f"{source}: there is no such TOML file or preset; {hint}")


def presets() -> Iterator[Path]:
    """The bundled presets' files, by name."""
    yield from sorted(PRESETS.glob("*.toml"))


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_TOML_BYTES:
            raise ConfigError(f"{path}: is over {format_bytes(MAX_TOML_BYTES)}, too large for a config")
        text = path.read_text(encoding="utf-8")
        if DEEP.search(STRING.sub("_", text)):
            raise RecursionError
        values = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except RecursionError:
        raise ConfigError(f"{path}: is not TOML that is read here: nested too deeply") from None
    except ValueError as error:  # The library's own errors, wrong UTF-8, and numbers of thousands of digits.
        raise ConfigError(f"{path}: is not TOML: {error}") from None
    version = values.pop("version", VERSION)
    if version != VERSION:
        shown = _shown(version)
        raise ConfigError(f"{path}: version {shown} is not known here (this is version {VERSION}); update sdlora")
    return values


def _absolute(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The values of a file with its relative paths made absolute.

    ``model.base`` is one if it lies there, and is no bundled model's name. What can be no path stays as it is.
    """
    result = {name: dict(section) if isinstance(section, dict) else section for name, section in values.items()}
    for setting in all_settings():
        section, field = setting.name.split(".")
        value = result.get(section, {}).get(field) if isinstance(result.get(section), dict) else None
        is_path = Path in (setting.field.annotation, *get_args(setting.field.annotation))
        if not isinstance(value, str | Path):
            continue
        if is_path:
            with suppress(FileError):
                result[section][field] = str(as_path(value, folder).resolve())
        elif setting.name == "model.base" and value not in BUNDLED and (base := existing_path(value, folder)):
            result[section][field] = str(base.resolve())
    return result


def _of_method(own: Mapping[str, Any], method: Any) -> dict[str, Any]:
    """A file's settings of an adapter, without those that another ``method``, given in its place, does not have."""
    before = own.get("method", "lora")
    if method not in METHODS or method == before:
        return dict(own)
    kept = {name: value for name, value in own.items() if name in METHODS[method].model_fields}
    if left := [f"adapter.{name}" for name in own if name not in kept]:
        verb = "is" if len(left) == 1 else "are"
        warnings.warn(f"{' and '.join(left)} of {before} {verb} left out: {method} has none", stacklevel=2)
    return kept


def _messages(error: ValidationError, place: str) -> Iterator[str]:
    """One sentence a problem: place, setting, what is wrong, the nearest real name."""
    names = [setting.name for setting in all_settings()]
    for problem in error.errors():
        parts = [str(part) for part in problem["loc"] if part not in METHODS]
        name = one_line(".".join(parts[:2]), 80)
        if problem["type"] == "extra_forbidden" and name in names:
            yield f"{place}: the method {problem['loc'][1]} has no setting {name}; remove it, or choose another method"
        elif problem["type"] == "union_tag_invalid":
            tag = _shown(problem["ctx"]["tag"])
            hint = did_you_mean(tag.strip("'"), METHODS, f"take one of {', '.join(METHODS)}")
            yield f"{place}: {name}.method = {tag} is no method; {hint}"
        elif problem["type"] == "extra_forbidden":
            hint = did_you_mean(name, [*names, *TrainConfig.model_fields])
            yield f"{place}: there is no setting {name}" + (f"; {hint}" if hint else "")
        elif problem["type"] == "missing":
            yield f"{place}: {name} is not set; add it, or give --{name if '.' in name else name + '.folder'}"
        else:
            what = problem["msg"].removeprefix("Value error, ")
            what = what[0].lower() + what[1:]
            value = "" if isinstance(problem["input"], Mapping) else f" = {_shown(problem['input'])}"
            yield f"{place}: {name}{value}: {what}"[:500]


def _shown(value: Any) -> str:
    """``value`` as a message has it: a stranger's may be of any length and depth."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # Nested too deeply; or a number of thousands of digits.
        return f"a {type(value).__name__}"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
