"""Commands of data sets and the data folder: check, caption, mask, tags, disk."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sdlora.cli import options
from sdlora.cli.options import Command
from sdlora.cli.progress import TerminalProgress
from sdlora.errors import DatasetError
from sdlora.filesystem.paths import data_root
from sdlora.formatting import format_bytes

if TYPE_CHECKING:
    from sdlora.events import Event, OnEvent


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    from sdlora.data.settings import Data
    from sdlora.families.settings import Model

    help = "images with captions (kohya's folders work), or a TOML file of a run, whose concepts are checked"
    parser.add_argument("folder", type=Path, metavar="FOLDER", help=help)
    options.add_settings(parser, Data, ["trigger", "class_name", "wildcards", "crop", "crop_margin"])
    options.add_settings(parser, Model, ["base"])


def check(parsed: argparse.Namespace) -> int:
    """Print the findings; exit code 3 if something must be mended first."""
    from sdlora.api.models import known_words, native_size
    from sdlora.config import TrainConfig
    from sdlora.data import doctor
    from sdlora.data.settings import Data

    terminal = TerminalProgress(str(parsed.folder))
    progress = terminal.progress("checking images")
    if parsed.folder.suffix == ".toml" and parsed.folder.is_file():
        config = TrainConfig.load(parsed.folder)
        base = config.model.base
        findings = doctor.check_concepts(config.all_concepts, native_size(base), progress, known_words(base))
    else:
        data = options.read_settings(parsed, Data)
        findings = doctor.check_dataset(data, native_size(parsed.base), progress, known_words(parsed.base))
    terminal.close()
    for finding in findings:
        print(f"{finding.severity:6}{finding.text}")
    if not findings:
        print("Nothing to mend: these pictures can be trained on.")
    return DatasetError.exit_code if any(finding.severity == "must" for finding in findings) else 0


def _caption_arguments(parser: argparse.ArgumentParser) -> None:
    from sdlora.api.captioning import CaptionSettings

    parser.add_argument("folder", type=Path, metavar="FOLDER", help="images; kohya's folders work")
    parser.add_argument("--base", default="", metavar="BASE", help="also check whether the captioner suits this base")
    options.add_settings(parser, CaptionSettings)
    parser.add_argument("--undo", action="store_true", help="undo the last change of captions in the folder instead")
    parser.add_argument("--json", action="store_true", help="print events as lines of JSON")


def caption(parsed: argparse.Namespace) -> int:
    """Write captions, and print how many; or undo that."""
    from sdlora.api.captioning import CaptionSettings, caption_folder, require_captioner, undo_captions

    if parsed.undo:
        return _print_undone(undo_captions(parsed.folder))
    settings = options.read_settings(parsed, CaptionSettings)
    if parsed.base:
        require_captioner(settings.model, parsed.base)
    return _print_report(parsed, partial(caption_folder, parsed.folder, settings, parsed.data_dir))


def _mask_arguments(parser: argparse.ArgumentParser) -> None:
    from sdlora.api.masking import MaskSettings

    parser.add_argument("folder", type=Path, metavar="FOLDER", help="images; kohya's folders work")
    options.add_settings(parser, MaskSettings)
    parser.add_argument("--undo", action="store_true", help="undo the last change of masks or captions instead")
    parser.add_argument("--json", action="store_true", help="print events as lines of JSON")


def mask(parsed: argparse.Namespace) -> int:
    """Write masks, and print how many; or undo that."""
    from sdlora.api.masking import MaskSettings, mask_folder, undo_masks

    if parsed.undo:
        return _print_undone(undo_masks(parsed.folder))
    settings = options.read_settings(parsed, MaskSettings)
    return _print_report(parsed, partial(mask_folder, parsed.folder, settings, parsed.data_dir))


def _print_report(parsed: argparse.Namespace, work: "Callable[[OnEvent], object]") -> int:
    """Do ``work`` on a folder, and print its progress and its report, or its events as lines of JSON."""
    if parsed.json:
        work(_print_event)
        return 0
    terminal = TerminalProgress(str(parsed.folder))
    report = work(terminal)
    terminal.close()
    print(report)
    return 0


def _print_undone(undone: str) -> int:
    print(f"Undone: {undone}." if undone else "There is nothing to undo.")
    return 0


def _print_event(event: "Event") -> None:
    print(event.to_json(), flush=True)


def _tags_arguments(parser: argparse.ArgumentParser) -> None:
    from sdlora.data.settings import Data

    parser.add_argument("folder", type=Path, metavar="FOLDER", help="images with captions; kohya's folders work")
    help = "comma-separated tags, or words (default: what the captions look like)"
    parser.add_argument("--count", choices=["tags", "words"], help=help)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    settings = ["trigger", "class_name", "caption_prefix", "caption_suffix", "wildcards"]
    options.add_settings(parser, Data, settings)


def tags(parsed: argparse.Namespace) -> int:
    """Print how many images have each tag, the most frequent first."""
    import json

    from sdlora.data.dataset import survey_folder
    from sdlora.data.settings import Data
    from sdlora.data.tags import count_tags

    data = options.read_settings(parsed, Data)
    examples = survey_folder(data).examples
    counts = count_tags(examples, data, parsed.count)
    if parsed.json:
        print(json.dumps({"images": len(examples), "counts": dict(counts)}, ensure_ascii=False))
        return 0
    for tag, number in counts:
        share = number / len(examples)
        print(f"{number:5} {share:5.0%}  {'#' * max(1, round(20 * share)):20}  {tag}")
    return 0


def _disk_arguments(parser: argparse.ArgumentParser) -> None:
    from sdlora.api.storage import FreeSettings

    options.add_settings(parser, FreeSettings)


def disk(parsed: argparse.Namespace) -> int:
    from sdlora.api.storage import FreeSettings, disk_usage, free_space, usage_table

    folder, settings = data_root(parsed.data_dir), options.read_settings(parsed, FreeSettings)
    if settings.free:
        print(f"freed {format_bytes(free_space(folder, settings.free, settings.older_than))}")
    print("\n".join([f"{folder}", *usage_table(disk_usage(folder, settings.older_than))]))
    return 0


COMMANDS = (
    Command("caption", caption, _caption_arguments, "Write captions for a folder of images."),
    Command("check", check, _check_arguments, "Find what is wrong with a folder of images, or could be better."),
    Command("mask", mask, _mask_arguments, "Write masks that say what counts in the images of a folder."),
    Command("tags", tags, _tags_arguments, "Count how many images of a folder have each tag or word of the captions."),
    Command("disk", disk, _disk_arguments, "Show what the data folder takes on the disk, and free some of it."),
)
