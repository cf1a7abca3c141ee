"""TrainConfig: all sections of a training run, read from and written to TOML."""

import re
import tomllib
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from sdlora.adapters import DEFAULT_METHOD, METHODS, Adapter
from sdlora.adapters.lora import Lora
from sdlora.checkpoint import Checkpoint
from sdlora.data.concept_values import CONCEPTS, PATHS, replace_concepts, with_folder_of_first
from sdlora.data.concepts import require_distinct, reworded_prompts, run_concepts
from sdlora.data.settings import Concept, Data
from sdlora.errors import ConfigError, FileError
from sdlora.families.base_models import BUNDLED
from sdlora.families.settings import Model
from sdlora.filesystem.paths import as_path, existing_path
from sdlora.filesystem.writing import write_atomic
from sdlora.formatting import did_you_mean, format_bytes, one_line
from sdlora.generation.settings import Prior, Sample
from sdlora.optim import Optimizer, Schedule
from sdlora.section import Section, Setting, quote_value, settings
from sdlora.training.settings import Loss, Monitor, Train

VERSION = 1
EXPLICIT = "given"
"""Key in a file: names of the settings that a person made; ``train.memory`` may choose the others."""
MAX_TOML_BYTES = 1 << 20
MOST_PROBLEMS = 20
"""Problems of a config that are named, each with the nearest real setting."""
STRING = re.compile(r'"""(?:\\.|[^\\])*?"""|\'\'\'.*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|#[^\n]*', re.DOTALL)
DEEP = re.compile(r"(?<![\w-])(?:[\w-]++[ \t]*+\.[ \t]*+){32}")
"""A name of more parts than any setting has: parsing takes time cubic in their number. Strings are removed first."""
LENGTHS = {"steps", "epochs"}
"""Settings of ``train`` that exclude each other."""
_PACKAGE = Path(__file__).parent
PRESETS = next((p for p in (_PACKAGE / "presets", _PACKAGE.parent / "presets") if p.is_dir()), _PACKAGE / "presets")


class TrainConfig(Section):
    """All settings of a training run."""

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
    monitor: Monitor = Field(default_factory=Monitor)
    concepts: tuple[Concept, ...] = ()
    """Several things to learn in one run, each with its own images and words; empty for the one that `data` and
    `prior` describe."""

    @property
    def all_concepts(self) -> tuple[Concept, ...]:
        """The concepts of the run, with all their settings: those of the list, or the one of the sections."""
        return run_concepts(self.data, self.prior, self.concepts)

    @model_validator(mode="before")
    @classmethod
    def _concepts_replace_the_one(cls, values: Any) -> Any:
        return with_folder_of_first(values) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _distinct_concepts(self) -> "TrainConfig":
        require_distinct(self.concepts)
        return self

    @model_validator(mode="after")
    def _measures_what_stops_it(self) -> "TrainConfig":
        if self.train.stop != "never" and self.monitor.every == 0:
            raise ValueError(
                f"train.stop = {self.train.stop} decides by measurements, which monitor.every = 0 turns off; give a "
                "number of steps, or leave monitor.every out"
            )
        held_out = any(one.validation_share or one.validation_folder for one in self.all_concepts)
        if self.train.stop == "held_out" and not held_out:
            raise ValueError(
                "train.stop = held_out needs held-out pictures; set data.validation_share, such as 0.2, or "
                "data.validation_folder"
            )
        return self

    @model_serializer(mode="wrap")
    def _only_what_was_set(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave to each concept what it leaves to the run; a run of one concept has no list."""
        values: dict[str, Any] = serialize(self)
        own = [concept.model_dump(mode="json", exclude_unset=True, exclude_none=True) for concept in self.concepts]
        return {**values, CONCEPTS: own} if own else {n: value for n, value in values.items() if n != CONCEPTS}

    @classmethod
    def load(cls, source: str | Path, overrides: Mapping[str, Any] | None = None) -> "TrainConfig":
        """Read a TOML file or a preset; ``overrides`` are dotted names (``adapter.rank``) and values.

        Relative paths in the file are relative to it; those in ``overrides`` to the working directory. Raises
        ConfigError naming file, setting, value and remedy.
        """
        path = find_preset(source)
        values = read_toml(path)
        names = values.pop(EXPLICIT, () if path.parent == PRESETS else None)
        config = cls.parse(_absolute(values, path.parent), str(source), overrides)
        return config if names is None else _with_explicit(config, {*_names(names, source), *(overrides or {})})

    @classmethod
    def parse(cls, values: Mapping[str, Any], origin: str, overrides: Mapping[str, Any] | None = None) -> "TrainConfig":
        """Validate nested values; error messages name their ``origin``, unless the value is one of ``overrides``.

        Relative paths are relative to the working directory. Raises ConfigError.
        """
        merged = _absolute(dict(values), Path.cwd())
        flags: dict[str, Any] = {}
        for name, value in (overrides or {}).items():
            section, _, field = name.partition(".")
            if name == CONCEPTS:
                merged = _with_concepts(merged, _absolute({CONCEPTS: value}, Path.cwd())[CONCEPTS])
            elif section == CONCEPTS:
                raise ConfigError(f"{name}: a concept has no dotted name; describe it in [[concepts]], or by --concept")
            else:
                flags.setdefault(section, {})[field] = value
        for section, changes in _absolute(flags, Path.cwd()).items():
            values_in_file = merged.get(section, {})
            if not isinstance(values_in_file, Mapping):
                continue
            if section == "train" and LENGTHS & {*changes}:  # A length in the overrides replaces the file's.
                values_in_file = {name: value for name, value in values_in_file.items() if name not in LENGTHS}
            if section == "adapter":
                values_in_file = _for_method(values_in_file, changes.get("method"))
            merged[section] = {**values_in_file, **changes}
        try:
            return cls.model_validate(merged)
        except ValidationError as error:
            lines = [*islice(_messages(error, origin, overrides or {}), MOST_PROBLEMS)]
            more = error.error_count() - len(lines)
            raise ConfigError(
                "\n".join([*lines, *([f"{origin}: and {more} more like these"] if more else [])])
            ) from None

    def save(self, path: Path) -> None:
        """Write every setting to ``path`` atomically, with absolute paths.

        Explicit settings are listed, since ``train.memory`` leaves them alone. Raises FileError.
        """
        import tomli_w

        values = _absolute(self.model_dump(mode="json", exclude_none=True), Path.cwd())
        write_atomic(path, tomli_w.dumps({"version": VERSION, EXPLICIT: sorted(explicit_settings(self)), **values}))


def explicit_settings(config: TrainConfig) -> frozenset[str]:
    """Return the dotted names of the settings that a person made, in a file or by flags; not a preset's or defaults."""
    sections = ((name, section) for name, section in dict(config).items() if isinstance(section, Section))
    return frozenset(f"{name}.{field}" for name, section in sections for field in section.model_fields_set)


def _with_explicit(config: TrainConfig, names: set[str]) -> TrainConfig:
    """Return ``config`` with ``names`` as its explicit settings."""

    def mark(name: str, section: Section) -> Section:
        explicit = {field for field in type(section).model_fields if f"{name}.{field}" in names}
        return type(section).model_construct(_fields_set=explicit, **dict(section))

    sections: dict[str, Any] = {
        name: mark(name, section) if isinstance(section, Section) else section for name, section in dict(config).items()
    }
    return TrainConfig.model_construct(**sections)


def _names(names: Any, source: object) -> list[str]:
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{source}: {EXPLICIT} is no list of setting names; remove it")
    return list(names)


def adapt_to_device(config: TrainConfig, device: str = "auto", low_memory: bool = False) -> TrainConfig:
    """Return ``config`` on ``device`` if it names none itself; ``low_memory`` trades time for memory.

    It turns on gradient checkpointing, and gradient accumulation with a batch of 1: as many images a step as before.
    """
    train = config.train
    changes: dict[str, Any] = {"device": device} if train.device == "auto" else {}
    if low_memory:
        images = train.batch_size * train.gradient_accumulation
        changes |= {"gradient_checkpointing": True, "batch_size": 1, "gradient_accumulation": images}
    return config.model_copy(update={"train": train.model_copy(update=changes)})


def with_base(config: TrainConfig, base: str) -> TrainConfig:
    """Return ``config`` with another ``model.base``."""
    return config.model_copy(update={"model": config.model.model_copy(update={"base": base})})


def all_settings() -> list[Setting]:
    """Return every setting of a training run, in the order of declaration."""
    return list(settings(TrainConfig))


def value_of(config: TrainConfig, setting: Setting) -> Any:
    """Return the value of ``setting`` in ``config``; its default if the chosen method has no such setting."""
    section, _, name = setting.name.partition(".")
    return getattr(getattr(config, section), name, setting.default)


def find_preset(source: str | Path) -> Path:
    """Return the TOML file that ``source`` names: a path, or a preset by name. Raises ConfigError with near names."""
    existing, path = existing_path(source), Path(source)
    if existing is not None and existing.suffix == ".toml" and existing.is_file():
        return existing.resolve()
    names = [preset.stem for preset in presets()]
    name = path.name.removesuffix(".toml")
    if name in names and (path.parent == Path(".") or path.parent.name == "presets"):
        return PRESETS / f"{name}.toml"
    hint = did_you_mean(name, names, f"presets: {', '.join(names)}")
    raise ConfigError(f"{source}: there is no such TOML file or preset; {hint}")


def presets() -> Iterator[Path]:
    """Yield the files of the bundled presets, by name."""
    yield from sorted(PRESETS.glob("*.toml"))


def read_toml(path: Path) -> dict[str, Any]:
    """Read the values of a TOML file of this version. Raises ConfigError for one that is too large, deep or damaged."""
    try:
        if path.stat().st_size > MAX_TOML_BYTES:
            raise ConfigError(f"{path}: is over {format_bytes(MAX_TOML_BYTES)}, too large for a config")
        text = path.read_text(encoding="utf-8")
        if DEEP.search(STRING.sub("_", text)):
            raise RecursionError
        values = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except RecursionError:
        raise ConfigError(f"{path}: cannot be read as TOML: nested too deeply") from None
    except ValueError as error:  # The parser's errors, invalid UTF-8, and numbers of thousands of digits.
        raise ConfigError(f"{path}: is not TOML: {error}") from None
    version = values.pop("version", VERSION)
    if version != VERSION:
        raise ConfigError(
            f"{path}: version {quote_value(version)} is unknown (this is version {VERSION}); update sdlora"
        )
    return values


def _absolute(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the values of a file with its relative paths made absolute.

    ``model.base`` counts as a path if it exists and names no bundled model. Values that can be no path stay.
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
    if isinstance(concepts := result.get(CONCEPTS), list):
        result[CONCEPTS] = [_absolute_concept(concept, folder) for concept in concepts]
    return result


def _absolute_concept(concept: Any, folder: Path) -> Any:
    """Return the values of a concept with its relative paths made absolute."""
    if not isinstance(concept, Mapping):
        return concept
    paths = {name: concept[name] for name in PATHS if isinstance(concept.get(name), str | Path)}
    for name, value in paths.items():
        with suppress(FileError):
            paths[name] = str(as_path(value, folder).resolve())
    return {**concept, **paths}


def _with_concepts(values: Mapping[str, Any], concepts: Any) -> dict[str, Any]:
    """Return a file's values with other ``concepts``, and its preview prompts with their words."""
    result = replace_concepts(values, concepts)
    data, sample = values.get("data", {}), values.get("sample", {})
    described = [concept for concept in concepts if isinstance(concept, Mapping)] if isinstance(concepts, list) else []
    if described and isinstance(data, Mapping) and isinstance(sample, Mapping) and sample.get("prompts"):
        prompts = reworded_prompts(sample["prompts"], data, described)
        result["sample"] = {**sample, "prompts": prompts}
    return result


def _for_method(values: Mapping[str, Any], method: Any) -> dict[str, Any]:
    """Return a file's adapter settings without those that an overriding ``method`` does not have."""
    before = values.get("method", DEFAULT_METHOD)
    if method not in METHODS or method == before:
        return dict(values)
    valid = {name: value for name, value in values.items() if name in METHODS[method].model_fields}
    if dropped := [f"adapter.{name}" for name in values if name not in valid]:
        verb = "is" if len(dropped) == 1 else "are"
        warnings.warn(f"{' and '.join(dropped)} of {before} {verb} left out: {method} has none", stacklevel=2)
    return valid


def _messages(error: ValidationError, origin: str, overrides: Collection[str]) -> Iterator[str]:
    """Yield a sentence for each problem: setting, reason, nearest real name; ``origin`` first if it stands there."""
    names = [setting.name for setting in all_settings()]
    for problem in error.errors():
        parts = [str(part) for part in problem["loc"] if part not in METHODS]
        if parts[0:1] == [CONCEPTS] and len(parts) > 1:
            yield f"{'' if CONCEPTS in overrides else f'{origin}: '}{_concept_message(problem)}"[:500]
            continue
        name = one_line(".".join(parts[:2]), 80)
        tagged = f"{name}.method" if problem["type"] == "union_tag_invalid" else name
        source = "" if tagged in overrides else f"{origin}: "
        if problem["type"] == "extra_forbidden" and name in names:
            yield f"{source}the method {problem['loc'][1]} has no setting {name}; remove it, or choose another method"
        elif problem["type"] == "union_tag_invalid":
            tag = quote_value(problem["ctx"]["tag"])
            hint = did_you_mean(tag.strip("'"), METHODS, f"take one of {', '.join(METHODS)}")
            yield f"{source}{tagged} = {tag} is no method; {hint}"
        elif problem["type"] == "extra_forbidden":
            hint = did_you_mean(name, [*names, *TrainConfig.model_fields])
            yield f"{source}there is no setting {name}" + (f"; {hint}" if hint else "")
        elif problem["type"] == "missing":
            yield f"{source}{name} is not set; add it, or give --{name if '.' in name else name + '.folder'}"
        else:
            what = problem["msg"].removeprefix("Value error, ")
            what = what[0].lower() + what[1:]
            value = "" if isinstance(problem["input"], Mapping) else f" = {quote_value(problem['input'])}"
            yield f"{source}{name}{value}: {what}"[:500] if name else f"{source}{what}"[:500]


def _concept_message(problem: Any) -> str:
    """Return the sentence for a problem of one concept."""
    _, number, *names = problem["loc"]
    label, name = f"concept {number + 1}", one_line(".".join(map(str, names)), 80)
    if problem["type"] == "extra_forbidden":
        return "; ".join(
            filter(None, (f"{label}: there is no setting {name}", did_you_mean(name, Concept.model_fields)))
        )
    if problem["type"] == "missing":
        return f"{label}: {name} is not set; add it"
    what = problem["msg"].removeprefix("Value error, ")
    value = "" if isinstance(problem["input"], Mapping) else f" = {quote_value(problem['input'])}"
    return f"{label}: {name}{value}: {what[0].lower()}{what[1:]}"
