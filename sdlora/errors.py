"""What can go wrong, as a tree. Every message names the place, the value and the remedy.

The class decides the exit code of the command line: a front end needs nothing but ``str(error)``
and ``error.exit_code``. An exception that is not an ``SdloraError`` is a bug (exit code 1).
"""


class SdloraError(Exception):
    """Anything that a user can cause and can mend."""

    exit_code = 1


class ConfigError(SdloraError):
    """A setting, a preset, a flag or a name is wrong."""

    exit_code = 2


def missing_package(what: str, package: str, instead: str) -> ConfigError:
    """That ``what`` needs a package that is not installed; ``instead`` is what does without it."""
    return ConfigError(f"{what} needs {package}; run pip install {package}, or take {instead}")


class ModelError(ConfigError):
    """The base model cannot be found, is incomplete, or is of a kind that is not served."""


class DatasetError(SdloraError):
    """The training pictures or their captions cannot be used."""

    exit_code = 3


class FormatError(SdloraError):
    """An adapter file is damaged, hostile, or holds what no reader here understands."""

    exit_code = 3


class MismatchError(FormatError):
    """An adapter was made for another base model than the one loaded."""


class OutOfMemoryError(SdloraError):
    """The device has too little memory for these settings."""

    exit_code = 4


class FileError(SdloraError):
    """A file or folder cannot be read or written."""

    exit_code = 5


class NonFiniteError(SdloraError):
    """Losses or gradients stayed infinite or not-a-number."""

    exit_code = 6


class BusyError(SdloraError):
    """Another process holds this run or this device."""

    exit_code = 7


class DeviceError(SdloraError):
    """The device was lost, or does not support what was asked of it."""

    exit_code = 8


def error_class(code: int) -> type[SdloraError]:
    """The class that an exit code stands for."""
    classes = [cls for cls in globals().values() if isinstance(cls, type) and issubclass(cls, SdloraError)]
    return next((cls for cls in classes if cls.exit_code == code), SdloraError)
