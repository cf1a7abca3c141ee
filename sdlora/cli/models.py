"""Commands of base models: models, download."""

import argparse
import sys

from sdlora.cli import options
from sdlora.cli.options import Command
from sdlora.cli.progress import TerminalProgress
from sdlora.formatting import format_bytes


def models(parsed: argparse.Namespace) -> int:
    """Print the base models that are here, what lies beside them and is none, with the reason, and what may be had."""
    from sdlora.api.models import KNOWN_BASES, available_models

    found = available_models(parsed.data_dir)
    for model in found:
        if model.problem:
            print(f"{model.name}: {model.problem}", file=sys.stderr)
        else:
            size = f"{model.native_size} px {format_bytes(model.bytes):>9}"
            print(f"{model.name:24} {model.family:5} {size:>18}  {model.path}")
    here = {model.name for model in found}
    if others := [known for known in KNOWN_BASES if known.id not in here]:
        print("\nto download, with `sdlora download ID` (bytes in full precision):")
        for known in others:
            size = f"{known.native_size} px {format_bytes(known.bytes):>9}"
            print(f"{known.id:44} {known.family:5} {size:>18}  {known.licence}, {known.access}")
    return 0


def _download_arguments(parser: argparse.ArgumentParser) -> None:
    from sdlora.families.settings import Model

    help = "a hub id, such as stable-diffusion-v1-5/stable-diffusion-v1-5; `sdlora models` lists more"
    parser.add_argument("id", metavar="ID", help=help)
    options.add_settings(parser, Model, ["revision", "variant"])


def download(parsed: argparse.Namespace) -> int:
    from sdlora.api.models import download_job

    terminal = TerminalProgress(parsed.id)
    folder = download_job(parsed.id, parsed.revision, parsed.variant).finish(terminal)
    terminal.close()
    print(folder)
    return 0


COMMANDS = (
    Command(
        "models", models, None, "List the base models that are here (bundled, in $SDLORA_MODELS, in DATA_DIR/models, "
        "downloaded), and those to download.",
    ),
    Command(
        "download", download, _download_arguments, "Download a base model from the hub; what an earlier try has "
        "fetched is kept.",
    ),
)  # fmt: skip
