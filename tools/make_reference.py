"""Write ``docs/settings.md`` from the settings' own declarations: ``python -m tools.make_reference``."""

from pathlib import Path

from sdlora.captioning.settings import CaptionSettings
from sdlora.config import all_settings
from sdlora.data.concepts import RUN_WIDE
from sdlora.data.settings import Concept
from sdlora.evaluation.file_settings import FileSettings
from sdlora.evaluation.settings import EvaluationSettings
from sdlora.masking.settings import MaskSettings
from sdlora.section import Setting, settings

HEAD = ["| setting | default | |", "| --- | --- | --- |"]
CONCEPTS_ARE = (
    "Several things to learn in one run ([how](concepts.md)): a table `[[concepts]]` for each in a "
    "TOML file, or a flag `--concept folder=cat trigger=sks class_name=cat`. What a concept does not set is as `data` "
    "and `prior` have it."
)
PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
CAPTIONS = """
## captions

These belong to no run: they are flags of `sdlora caption` (`--max-words 30`), fields of `CaptionSettings`, and most of
them parameters of the endpoint `/caption` ([captions.md](captions.md)).
"""
MASKS = """
## masks

These belong to no run: they are flags of `sdlora mask` (`--words "a dog"`), fields of `MaskSettings`, and most of them
parameters of the endpoint `/mask` ([masks.md](masks.md)).
"""
EVALUATION = """
## evaluation

These belong to no run: they are flags of `sdlora evaluate` (`--scales 0.7,1`), fields of `EvaluationSettings`, and most
of them parameters of the endpoint `/evaluate` ([choosing-a-checkpoint.md](choosing-a-checkpoint.md)).
"""
FILES = """
Adapter files have no run that tells the following, which are flags, and fields of `FileSettings`.
"""


def reference() -> str:
    """Every setting with its default and its help, a section a table."""
    lines = [
        "# Settings",
        "",
        "Each is a line in a TOML file and a flag: `train.steps = 800`, `--train.steps 800`.",
        "",
    ]
    section = ""
    for setting in all_settings():
        head, _, _ = setting.name.partition(".")
        if head != section:
            section = head
            lines += ["", f"## {section}", "", *HEAD]
        lines.append(_row(setting))
    lines += ["", "## concepts", "", CONCEPTS_ARE, "", *HEAD]
    lines += [_row(setting) for setting in settings(Concept) if setting.name not in RUN_WIDE]
    lines += [CAPTIONS, *HEAD, *map(_row, settings(CaptionSettings))]
    lines += [MASKS, *HEAD, *map(_row, settings(MaskSettings))]
    lines += [EVALUATION, *HEAD, *map(_row, settings(EvaluationSettings))]
    lines += [FILES, *HEAD, *map(_row, settings(FileSettings))]
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def _row(setting: Setting) -> str:
    needed = setting.field.is_required()
    default = "needed" if needed else "" if setting.default in (None, "", ()) else f"`{setting.default}`"
    return f"| `{setting.name}` | {default} | {setting.help.replace('|', chr(92) + '|')} |"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
