"""Errors that users can cause, as a tree. Every message names the origin, the value and the remedy.

The class decides the exit code of the command line: a front end needs only ``str(error)`` and ``error.exit_code``.
An exception that is not an ``SdloraError`` is a bug (exit code 1).
"""

from sdlora.formatting import printable_line


class SdloraError(Exception):
    """Base of all errors that a user can cause and mend.

    A message may quote a stranger's text: as a string, each of its lines is printable, and of bounded length.
    """

    exit_code = 1

    def __str__(self) -> str:
        return "\n".join(map(printable_line, super().__str__().split("\n")))


class ConfigError(SdloraError):
    """A setting, a preset, a flag or a name is wrong."""

    exit_code = 2


def missing_package(feature: str, package: str, alternative: str) -> ConfigError:
    """Return the error that ``feature`` needs a package which is not installed; ``alternative`` does without it."""
    return ConfigError(f"{feature} needs {package}; run pip install {package}, or take {alternative}")


class ModelError(ConfigError):
    """The base model cannot be found, is incomplete, or is of an unsupported kind."""


class DatasetError(SdloraError):
    """The training images or their captions cannot be used."""

    exit_code = 3


class FormatError(SdloraError):
    """An adapter file is damaged, hostile, or of an unknown format."""

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
    """Losses or gradients stayed infinite or NaN."""

    exit_code = 6


class BusyError(SdloraError):
    """Another process has locked this run or this device."""

    exit_code = 7


class DeviceError(SdloraError):
    """The device was lost, or does not support the request."""

    exit_code = 8


def error_class(code: int) -> type[SdloraError]:
    """Return the error class of an exit code, ``SdloraError`` for an unknown one."""
    classes = [cls for cls in globals().values() if isinstance(cls, type) and issubclass(cls, SdloraError)]
    return next((cls for cls in classes if cls.exit_code == code), SdloraError)
