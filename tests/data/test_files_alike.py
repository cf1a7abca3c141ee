"""Files of one set are paired alike in a folder, in a zip file, and dropped on the page in whatever order."""

import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest
from PIL import Image

from sdlora.data.dataset import survey_folder
from sdlora.data.projects import Project
from sdlora.data.settings import Data
from sdlora.data.uploads import UploadedFile
from tests.support.images import noise_image


class Case(NamedTuple):
    """Files of a set, by name and content (a caption's text); what each image gets; what is told of what is left."""

    files: dict[str, str]
    images: list[tuple[str, bool]]
    """Caption of each image, and whether it has a mask, in the order of their names."""
    told: tuple[str, ...] = ()


COMPOSED, APART = (unicodedata.normalize(form, "\u00e9") for form in ("NFC", "NFD"))
CASES = {
    "caption in another case": Case({"A.png": "", "a.txt": "one"}, [("one", False)]),
    "suffixes in another case": Case({"a.PNG": "", "a.TXT": "one"}, [("one", False)]),
    "two images that differ in case": Case({"A.png": "", "a.png": "", "a.txt": "one"}, [("", False), ("one", False)]),
    "a caption of either": Case({"Ab.png": "", "aB.png": "", "ab.txt": "one"}, [("", False)] * 2, ("ab.txt",)),
    "two captions that differ in case": Case(
        {"a.png": "", "A.txt": "one", "a.txt": "two"}, [("two", False)], ("A.txt",)
    ),
    "accents stored in two ways": Case({f"{COMPOSED}.png": "", f"{APART}.txt": "one"}, [("one", False)]),
    "a .txt beside a .caption": Case(
        {"a.png": "", "a.txt": "one", "a.caption": "two"}, [("one", False)], ("a.caption",)
    ),
    "an empty .txt beside a .caption": Case(
        {"a.png": "", "a.txt": "", "a.caption": "two"}, [("", False)], ("a.caption",)
    ),
    "a mask in another case": Case({"A.png": "", "a_mask.png": ""}, [("", True)]),
    "a mask's ending in capitals": Case({"a.png": "", "a_MASK.PNG": ""}, [("", True)]),
    "our mask in another case": Case({"b.png": "", "B.mask.png": ""}, [("", True)]),
    "OneTrainer's mask in another case": Case({"c.png": "", "C-masklabel.png": ""}, [("", True)]),
    "a folder of masks in another case": Case({"a.png": "", "Masks/A.png": ""}, [("", True)]),
    "two masks that differ in case": Case(
        {"a.png": "", "a_mask.png": "", "A_mask.png": ""}, [("", True)], ("A_mask.png",)
    ),
    "a list in another case": Case(
        {"A.png": "", "metadata.jsonl": '{"file_name": "a.png", "text": "one"}'}, [("one", False)]
    ),
    "kohya's folder": Case({"10_sks dog/A.png": "", "10_sks dog/a.txt": "one"}, [("one", False)]),
    "a caption of a mask": Case(
        {"a.png": "", "a_mask.png": "", "a_mask.txt": "one", "a.txt": "two"}, [("two", True)], ("a_mask.txt",)
    ),
    "a caption with the whole name": Case({"a.png": "", "a.png.txt": "one"}, [("", False)], ("a.png.txt",)),
    **{
        f"a caption in a {ending}": Case({"a.png": "", f"a{ending}": "one"}, [("", False)], (f"a{ending}",))
        for ending in (".json", ".tags", ".text", ".cap", ".txt2", ".csv", ".yaml")
    },
}  # fmt: skip


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def written(case: Case, folder: Path) -> list[Path]:
    """The case's files in a folder, by name."""
    for number, (name, content) in enumerate(case.files.items()):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if "mask" in name.lower() and path.suffix.lower() == ".png":
            Image.linear_gradient("L").resize((64, 64)).save(path)
        elif path.suffix.lower() == ".png":
            noise_image(64, 64, number).save(path, "PNG")
        else:
            path.write_text(content)
    if len([path for path in folder.rglob("*") if path.is_file()]) < len(case.files):
        pytest.skip("this file system takes two of the names for one")
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_folder_pairs_them(case: Case, folder: Path, written: list[Path]) -> None:
    found = survey_folder(Data(folder=folder))
    assert [(example.own_caption, example.mask is not None) for example in found.examples] == case.images
    assert found.problems == () and all(any(name in line for line in found.notices) for name in case.told)


def zipped(folder: Path, written: list[Path], room: Path) -> list[UploadedFile | Path]:
    with zipfile.ZipFile(room / "set.zip", "w") as archive:
        for path in written:
            archive.write(path, path.relative_to(folder).as_posix())
    return [room / "set.zip"]


def dropped(folder: Path, written: list[Path], room: Path) -> list[UploadedFile | Path]:
    return [UploadedFile(path, PurePosixPath(path.relative_to(folder).as_posix())) for path in written]


def dropped_backwards(folder: Path, written: list[Path], room: Path) -> list[UploadedFile | Path]:
    return dropped(folder, written, room)[::-1]


@pytest.mark.parametrize("hand_over", [zipped, dropped, dropped_backwards])
def test_an_upload_pairs_them_alike(
    case: Case, folder: Path, written: list[Path], tmp_path: Path, hand_over: Callable[..., list[UploadedFile | Path]]
) -> None:
    project = Project(tmp_path, "set")
    added = project.add(hand_over(folder, written, tmp_path))
    images = [
        (project.caption(image), image.with_name(f"{image.stem}.mask.png").exists()) for image in project.images()
    ]
    assert images == (case.images[::-1] if hand_over is dropped_backwards else case.images)
    assert len(added.remarks) == len(case.told) and all(
        any(name in line for line in added.remarks) for name in case.told
    )


def test_two_zip_files_with_files_of_the_same_names_keep_their_captions(folder: Path, tmp_path: Path) -> None:
    files = []
    for number, caption in enumerate(("one", "two")):
        noise_image(64, 64, number).save(folder / "a.png")
        files.append(tmp_path / f"{number}.zip")
        with zipfile.ZipFile(files[-1], "w") as archive:
            archive.write(folder / "a.png", "a.png")
            archive.writestr("a.txt", caption)
    project = Project(tmp_path, "set")
    assert project.add(files).remarks == ()
    assert [project.caption(image) for image in project.images()] == ["one", "two"]


def test_captions_beside_a_zip_of_pictures_find_them(folder: Path, tmp_path: Path) -> None:
    noise_image(64, 64).save(folder / "A.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(folder / "A.png", "A.png")
    (tmp_path / "a.txt").write_text("one")
    project = Project(tmp_path, "set")
    assert project.add([tmp_path / "a.zip", tmp_path / "a.txt"]).remarks == ()
    assert [project.caption(image) for image in project.images()] == ["one"]


def test_one_caption_of_two_pictures_is_named_everywhere(folder: Path, tmp_path: Path) -> None:
    for name in ("a.png", "a.bmp"):
        noise_image(64, 64, len(name) + ord(name[2])).save(folder / name)
    (folder / "a.txt").write_text("one")
    (problem,) = survey_folder(Data(folder=folder)).problems
    project = Project(tmp_path, "set")
    (remark,) = project.add(sorted(folder.iterdir())).remarks
    for line in (problem, remark):
        assert "belongs to a.bmp and to a.png; give the pictures different names" in line
