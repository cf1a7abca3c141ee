"""Write ``docs/settings.md`` from the settings' own declarations: ``python -m tools.make_reference``."""

from pathlib import Path

from sdlora.config import all_settings

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"


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
            lines += ["", f"## {section}", "", "| setting | default | |", "| --- | --- | --- |"]
        needed = setting.field.is_required()
        default = "needed" if needed else "" if setting.default in (None, "", ()) else f"`{setting.default}`"
        lines.append(f"| `{setting.name}` | {default} | {setting.help.replace('|', chr(92) + '|')} |")
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
