"""Projects on disk: the pictures a person dropped, their captions, and what they are, under ``DATA_DIR/projects``.

A project's folder is a training folder as it stands: ``001.png`` with ``001.txt`` beside it, and ``project.json``.
"""

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sdlora.data.advice import Kind
from sdlora.data.captions import caption_for, read_caption
from sdlora.data.folder import FEW, TEXTS, count, some
from sdlora.data.pictures import FOREIGN_SUFFIXES, SUFFIXES, examine
from sdlora.data.settings import Data
from sdlora.errors import ConfigError, DatasetError
from sdlora.files import inside, safe_name, sha256, write_atomic

MAX_PICTURES = 1000
SMALL = 256
"""Pictures with a shorter side are used, and said to be small where the base is larger than that."""


@dataclass(frozen=True)
class About:
    """What a project's pictures show, and the words that will call it."""

    kind: Kind = "style"
    trigger: str = ""
    class_name: str = ""


class Project:
    """One project's folder."""

    def __init__(self, data_dir: Path, name: str):
        """Raises ConfigError for a name of which nothing is left on a disk."""
        slug = safe_name(name, fallback="")
        if not slug:
            raise ConfigError("Give the project a name, such as mystyle: letters and digits.")
        self.name = slug
        self.folder = inside(data_dir / "projects", slug)
        self.about_file = self.folder / "project.json"

    @property
    def about(self) -> About | None:
        """What was said of it, or None if nothing was yet."""
        try:
            values = json.loads(self.about_file.read_text(encoding="utf-8"))
            kind: Kind = "subject" if values["kind"] == "subject" else "style"
            return About(kind, str(values["trigger"]), str(values["class_name"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def describe(self, about: About) -> None:
        """Keep what the pictures show."""
        clean = replace(about, trigger=" ".join(about.trigger.split()), class_name=" ".join(about.class_name.split()))
        write_atomic(self.about_file, json.dumps(asdict(clean), ensure_ascii=False))

    def pictures(self) -> list[Path]:
        """Its pictures, in the order in which they came."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if path.suffix in SUFFIXES and path.name[0] != ".")

    def caption(self, picture: Path) -> str:
        """What was written about ``picture``: nothing, if nothing was."""
        try:
            return read_caption(picture.with_suffix(".txt"))
        except DatasetError:
            return ""

    def write_caption(self, picture: Path, text: str) -> None:
        """Keep a caption; an empty one is none."""
        file = inside(self.folder, picture.name).with_suffix(".txt")
        if text.strip():
            write_atomic(file, " ".join(text.split()))
        else:
            file.unlink(missing_ok=True)

    def spoken(self, picture: Path) -> str:
        """The caption that training uses: the person's own with the trigger, or what stands for an empty one."""
        about = self.about or About()
        data = Data(folder=self.folder, trigger=about.trigger, class_name=about.class_name)
        return caption_for(self.caption(picture), data, "")

    def add(self, files: Sequence[Path]) -> list[str]:
        """Copy dropped pictures and caption files in. Returns a sentence on each that was not taken."""
        remarks: list[str] = []
        captions = {path.stem: path for path in files if path.suffix.lower() in TEXTS}
        known = {sha256(path): path.name for path in self.pictures()}
        number = max((int(path.stem) for path in self.pictures() if path.stem.isdigit()), default=0)
        for path in (path for path in files if path.suffix.lower() not in TEXTS):
            try:
                digest = self._examined(path)
                if digest in known:
                    raise DatasetError(f"is already here as {known[digest]}, and is not added twice")
                if len(known) >= MAX_PICTURES:
                    raise DatasetError(f"is one too many: a project holds {MAX_PICTURES} pictures")
                number += 1
                target = self.folder / f"{number:03d}{path.suffix.lower()}"
                write_atomic(target, lambda place, source=path: _copy(source, place))  # type: ignore[misc]
                known[digest] = target.name
                if path.stem in captions:
                    self.write_caption(target, read_caption(captions.pop(path.stem)))
            except DatasetError as error:
                remarks.append(f"{path.name} {error}.")
        remarks += [f"{path.name} belongs to none of the pictures dropped with it." for path in captions.values()]
        return remarks

    def remove(self, picture: Path) -> None:
        """Take a picture and its caption out."""
        inside(self.folder, picture.name).unlink(missing_ok=True)
        inside(self.folder, picture.name).with_suffix(".txt").unlink(missing_ok=True)

    def status(self) -> list[str]:
        """Where it stands, in plain words: how many pictures, and what could be better."""
        pictures = self.pictures()
        if not pictures:
            return ["No pictures yet. Drop about ten into the field above."]
        ready = count(len(pictures), "picture")
        lines = [f"{ready} ready." if len(pictures) >= FEW else f"{ready}. Add at least {FEW}, better ten."]
        sizes = [examine(path).size for path in pictures]
        small = [path.name for path, size in zip(pictures, sizes, strict=True) if min(size) < SMALL]
        if 0 < len(small) < len(pictures):
            lines.append(f"Smaller than {SMALL} pixels: {some(small)}.")
        return lines

    def _examined(self, path: Path) -> str:
        """The digest of a picture that can be used. Raises DatasetError with the reason."""
        if path.suffix.lower() in FOREIGN_SUFFIXES:
            raise DatasetError(f"is a {path.suffix[1:].upper()} file, which is not read here; save it as PNG or JPEG")
        if path.suffix.lower() not in SUFFIXES:
            raise DatasetError("is not a picture that can be read here; use PNG, JPEG or WebP")
        return examine(path).digest


def projects(data_dir: Path) -> list[Project]:
    """All projects, the one touched last first."""
    files = (data_dir / "projects").glob("*/project.json")
    return [Project(data_dir, path.parent.name) for path in sorted(files, key=_age)]


def _age(path: Path) -> float:
    return -path.stat().st_mtime


def _copy(source: Path, place: Path) -> None:
    shutil.copyfile(source, place)


def as_paths(files: Iterable[object] | None) -> list[Path]:
    """What Gradio hands over as uploaded files, as paths."""
    return [Path(str(file)) for file in files or ()]
