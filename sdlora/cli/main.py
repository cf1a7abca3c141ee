"""The command line: its parser, and the entry point."""

import argparse
import io
import sys
from collections.abc import Sequence
from typing import NoReturn

from sdlora.errors import ConfigError, SdloraError
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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # Windows' own encodings lack most of the world's letters.
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        parser, commands = _parser(arguments)
        parsed, unknown = parser.parse_known_args(arguments)
        commands.get(parsed.command, parser).refuse_unknown(unknown)
        with capture_warnings(lambda text: print(f"note: {text}", file=sys.stderr)):
            return parsed.run(parsed)
    except SdloraError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `sdlora runs | head`
        return 0


def _parser(arguments: Sequence[str]) -> tuple[Parser, dict[str, Parser]]:
    """Return the parser of all commands, and those of each; only the one that runs has its flags."""
    from sdlora import __version__
    from sdlora.cli import adapters, compare, data, generate, options, training

    parser = Parser(prog="sdlora", description="Train, mix and export LoRA adapters for Stable Diffusion.")
    parser.add_argument("--version", action="version", version=f"sdlora {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    commands: dict[str, Parser] = {}
    images = (data.MODELS, generate.COMMAND, compare.COMMAND)
    for command in (*training.COMMANDS, *images, *adapters.COMMANDS, *data.COMMANDS):
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
