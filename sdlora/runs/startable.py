"""What is wrong with a run, as far as it can be seen without torch and before anything is written."""

from collections.abc import Iterator
from importlib.util import find_spec

from sdlora.config import TrainConfig
from sdlora.data.folder import read_folder
from sdlora.errors import ConfigError, missing
from sdlora.families.loading import locate_base
from sdlora.generation.device import require_precision


def require_startable(config: TrainConfig, processes: int = 1) -> None:
    """Raises what a run of ``config`` in so many processes would fail with: its base, packages, pictures."""
    require_alone(config, processes)
    locate_base(config.model.base)
    require_precision(config.train.precision, config.train.device)
    for setting, package, instead in _packages(config):
        if find_spec(package) is None:
            raise missing(setting, package, instead)
    read_folder(config.data)


def require_alone(config: TrainConfig, processes: int) -> None:
    """Raises ConfigError where several processes would have to choose what ``train.memory`` asks for."""
    if processes > 1 and config.train.memory is not None:
        raise ConfigError(
            "train.memory: several processes cannot choose together; take what `sdlora plan` says with it instead"
        )


def _packages(config: TrainConfig) -> Iterator[tuple[str, str, str]]:
    """The settings that need a package which is not always installed; it; and what does without."""
    if config.model.quantize == "nf4":
        yield "model.quantize: nf4", "bitsandbytes", "int8"
    if config.optimizer.name == "adamw8bit":
        yield "optimizer.name: adamw8bit", "bitsandbytes", "adamw"
    if config.train.tensorboard:
        yield "train.tensorboard: true", "tensorboard", "false"
