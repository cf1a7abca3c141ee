"""The command line: its parser, and the entry point."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from sdlora.errors import ConfigError, FileError, SdloraError
from sdlora.formatting import did_you_mean
from sdlora.warning_capture import capture_warnings


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, with the nearest real flag."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")

    def refuse_unknown(self, unknown: Sequence[str]) -> None:
        if unknown:
            flag = unknown[0].split("=")[0]
            hint = did_you_mean(flag, self._option_string_actions)
            self.error(f"there is no flag {flag}" + (f"; {hint}" if hint else ""))


def main(arguments: Sequence[str] | None = None) -> int:
    """The entry point. Returns the exit code that the error, if any, stands for."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # Windows' own encodings lack most of the world's letters.
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        parser, commands = _parser(arguments)
        parsed, unknown = parser.parse_known_args(arguments)
        commands.get(parsed.command, parser).refuse_unknown(unknown)
        with capture_warnings(lambda text: print(f"note: {text}", file=sys.stderr)):
            code = parsed.run(parsed)
            sys.stdout.flush()
            return code
    except SdloraError as error:
        return _fail(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `sdlora runs | head`
        _discard_output()
        return 0
    except OSError as error:
        if error.errno is None:
            raise
        if error.filename is not None:
            return _fail(FileError(f"{error.filename}: cannot be read or written ({error.strerror})"))
        _discard_output()  # Python would try again at its end.
        return _fail(FileError(f"standard output: cannot be written ({error.strerror})"))


def _fail(error: SdloraError) -> int:
    """Print an error, if that is possible, and return its exit code."""
    with suppress(OSError):
        print(f"error: {error}", file=sys.stderr)
    return error.exit_code


def _open_closed_streams() -> None:
    """Open the standard streams that the caller closed (``2>&-``), so that no file of ours takes their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _discard_output() -> None:
    """Let nothing more be written to standard output, which takes nothing."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser(arguments: Sequence[str]) -> tuple[Parser, dict[str, Parser]]:
    """Return the parser of all commands, and those of each; only the one that runs has its flags."""
    from sdlora import __version__
    from sdlora.cli import adapters, compare, data, evaluate, generate, models, options, report, training

    parser = Parser(prog="sdlora", description="Train, mix and export LoRA adapters for Stable Diffusion.")
    parser.add_argument("--version", action="version", version=f"sdlora {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    commands: dict[str, Parser] = {}
    images = (evaluate.COMMAND, report.COMMAND, generate.COMMAND, compare.COMMAND)
    for command in (*training.COMMANDS, *models.COMMANDS, *images, *adapters.COMMANDS, *data.COMMANDS):
        own = commands[command.name] = subparsers.add_parser(
            command.name, help=command.help, description=command.help, allow_abbrev=False
        )
        own.set_defaults(run=command.run)
        if arguments[:1] == [command.name]:
            options.add_data_dir(own)
            if command.add_arguments:
                command.add_arguments(own)
    return parser, commands


if __name__ == "__main__":
    sys.exit(main())
