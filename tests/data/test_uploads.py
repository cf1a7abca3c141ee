"""Zip files and kohya's folders: what is in them is taken, what is wrong is said, and no path of theirs is used."""

import struct
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from sdlora.data import uploads
from sdlora.data.projects import Project, ProjectInfo
from sdlora.data.uploads import FolderWords, UploadedFile, parse_folder_name, sort_uploads
from tests.support.images import noise_image


def png(seed: int) -> bytes:
    file = BytesIO()
    noise_image(seed=seed).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def project(tmp_path):
    project = Project(tmp_path, "zipped")
    project.set_info(ProjectInfo())
    return project


@pytest.fixture
def zipped(tmp_path):
    """A function that packs a zip of names and contents."""

    def pack(entries: dict[str, bytes], name: str = "pack.zip", **options: object) -> Path:
        path = tmp_path / name
        with zipfile.ZipFile(path, "w", **options) as archive:
            for entry, content in entries.items():
                archive.writestr(entry, content)
        return path

    return pack


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("10_sks dog", FolderWords(10, "subject", "sks", "dog")),
        ("5_zwx old man", FolderWords(5, "subject", "zwx", "old man")),
        ("20_ohwx style", FolderWords(20, "style", "ohwx style", "")),
        ("3_ohwx", FolderWords(3, "style", "ohwx", "")),
        ("2019_trip", None),
        ("sks dog", None),
        ("0_sks", None),
    ],
)
def test_the_words_in_a_folders_name(name, words):
    assert parse_folder_name(name) == words


def test_a_zip_of_a_kohya_folder_brings_pictures_captions_and_words(project, zipped):
    pack = zipped(
        {"img/10_sks dog/b.png": png(1), "img/10_sks dog/a.PNG": png(2), "img/10_sks dog/a.txt": b"a sks dog"}
    )
    added = project.add([pack])
    assert (added.images, added.remarks, added.folder_words) == (2, (), FolderWords(10, "subject", "sks", "dog"))
    assert [(path.name, project.caption(path)) for path in project.images()] == [
        ("001.png", ""),
        ("002.png", "a sks dog"),
    ]
    assert sorted(path.name for path in project.folder.iterdir()) == ["001.png", "002.png", "002.txt", "project.json"]


def test_repeats_are_kept_where_folders_differ_in_them(project, zipped):
    project.add([zipped({"10_sks dog/a.png": png(1), "2_sks toy/a.png": png(2), "2_sks toy/a.txt": b"a toy"})])
    assert [path.relative_to(project.folder).as_posix() for path in project.images()] == [
        "10_sks dog/001.png", "2_sks toy/002.png",
    ]  # fmt: skip
    assert project.caption(project.images()[1]) == "a toy"


def test_a_caption_of_two_pictures_is_refused_as_in_a_folder(project, zipped):
    added = project.add([zipped({"a.png": png(1), "a.webp": png(2), "a.txt": b"which?"})])
    assert added.images == 2
    assert added.remarks == ("a.txt belongs to a.png and to a.webp; give the pictures different names.",)
    assert [project.caption(image) for image in project.images()] == ["", ""]


def test_a_caption_is_found_however_the_accents_of_its_name_are_stored(project, zipped):
    project.add([zipped({"cafe\u0301.png": png(1), "caf\u00e9.txt": b"a house"})])
    assert [project.caption(image) for image in project.images()] == ["a house"]


def test_stored_paths_are_never_used(project, zipped, tmp_path):
    before = {path for path in tmp_path.rglob("*")}
    pack = zipped({"../../evil.png": png(1), "/abs/evil2.png": png(2), "C:\\evil3.png": png(3)})
    assert project.add([pack]).images == 3
    new = {path for path in tmp_path.rglob("*") if path.name != ".zipped.lock"} - before - {pack}
    assert new and all(path.is_relative_to(project.folder) for path in new)


def test_what_stays_in_a_zip_is_said_in_a_sentence_each(project, zipped):
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    pack = zipped({
        "ok.png": png(1), "inner.zip": b"PK", "deep.tar": b"", "fake.png": b"<html>", "mask.mask.png": png(2),
        "reg/1_dog/x.png": png(3), "reg/1_dog/y.png": png(4), "notes.html": b"", "__MACOSX/._ok.png": b"",
        "alone.txt": b"", link: b"/etc/passwd",
    })  # fmt: skip
    added = project.add([pack])
    assert added.images == 1
    assert [remark.split()[0] for remark in added.remarks] == [
        "inner.zip", "deep.tar", "reg/1_dog", "link.png", "mask.mask.png", "fake.png", "notes.html", "alone.txt",
    ]  # fmt: skip
    assert "archive inside the zip" in added.remarks[0] and "link" in added.remarks[3] and "HTML" in added.remarks[5]


def test_masks_and_lists_of_one_zip_are_not_those_of_another(project, tmp_path):
    packs = []
    for number in (1, 2):
        packs.append(tmp_path / f"set{number}.zip")
        with zipfile.ZipFile(packs[-1], "w") as archive:
            archive.writestr("1.png", png(number))
            archive.writestr("1_mask.png", png(10 + number))
            archive.writestr("metadata.jsonl", f'{{"file_name": "1.png", "text": "set {number}"}}')
    assert project.add(packs).remarks == ()
    first, second = project.images()
    assert [project.caption(path) for path in (first, second)] == ["set 1", "set 2"]
    masks = [path.with_suffix(".mask.png").read_bytes() for path in (first, second)]
    assert masks[0] != masks[1]


def test_what_masks_and_lists_belong_to_none_or_several_is_told(project, zipped):
    added = project.add([
        zipped({
            "a.png": png(1), "a.jpg": png(2), "a_mask.png": png(3), "masks/b.png": png(4),
            "metadata.jsonl": b'{"file_name": "gone.png", "text": "x"}',
        })
    ])  # fmt: skip
    assert added.images == 2
    assert added.remarks == (
        "a_mask.png is a mask of several pictures; give the pictures different names.",
        "b.png is a mask, and belongs to none of the pictures dropped with it.",
        "metadata.jsonl has 1 caption of no picture dropped with it.",
    )


@pytest.mark.parametrize(
    ("entries", "options", "reason"),
    [
        ({"air.bmp": bytes(30_000_000)}, {"compression": zipfile.ZIP_DEFLATED}, "times its size"),
        ({f"{n}.txt": b"" for n in range(30)}, {}, "holds 30 files"),
        ({f"{n}.png": bytes(600_000) for n in range(5)}, {}, "unpacks to 2.86 MiB"),
    ],
    ids=["ratio", "entries", "total"],
)
def test_a_zip_that_is_no_set_of_pictures_is_not_unpacked(project, zipped, monkeypatch, entries, options, reason):
    monkeypatch.setattr(uploads, "MAX_ENTRIES", 20)
    monkeypatch.setattr(uploads, "MAX_BYTES", 2_000_000 if reason.startswith("unpacks") else uploads.MAX_BYTES)
    (remark,) = project.add([zipped(entries, **options)]).remarks
    assert remark.startswith("pack.zip ") and reason in remark
    assert project.images() == []


def test_a_zip_that_lies_locks_or_is_none_is_one_sentence(project, zipped, tmp_path):
    locked = zipped({"a.png": png(1)}, "locked.zip")
    content = bytearray(locked.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    locked.write_bytes(content)
    lying = zipped({"a.png": png(1)}, "lying.zip")
    content = bytearray(lying.read_bytes())
    place = content.index(b"PK\1\2") + 24
    content[place : place + 4] = struct.pack("<I", 10)
    lying.write_bytes(content)
    fake = tmp_path / "fake.zip"
    fake.write_bytes(b"PK\3\4 nothing more")
    odd = zipped({"a.png": png(2)}, "odd.zip", compression=zipfile.ZIP_LZMA)
    remarks = project.add([locked, lying, fake, odd]).remarks
    names = [remark.split()[0] for remark in remarks]
    assert names == ["locked.zip", "lying.zip", "fake.zip", "a.png"]
    assert "password" in remarks[0] and "damaged" in remarks[2] and "ordinary zip" in remarks[3]
    assert project.images() == []


def test_a_vast_list_of_contents_is_not_read(project, zipped, monkeypatch):
    monkeypatch.setattr(uploads, "_DIRECTORY_BYTES", 1000)
    (remark,) = project.add([zipped({f"{n}.txt": b"" for n in range(50)})]).remarks
    assert "lists more files" in remark


def test_a_picture_over_the_limit_is_refused_in_a_zip_and_out_of_one(project, zipped, tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_IMAGE_BYTES", 1000)
    monkeypatch.setattr("sdlora.data.projects.MAX_IMAGE_BYTES", 1000)
    (tmp_path / "big.png").write_bytes(png(1))
    remarks = project.add([zipped({"a.png": png(1)}), tmp_path / "big.png"]).remarks
    assert [remark.split(" has ")[0] for remark in remarks] == ["a.png", "big.png"]


def test_a_dropped_folder_tells_its_words_by_the_paths_that_the_browser_gave(tmp_path):
    (tmp_path / "a.png").write_bytes(png(1))
    delivery = sort_uploads(
        [UploadedFile(tmp_path / "a.png", uploads.PurePosixPath("set/10_sks dog/a.png"))], tmp_path / "room"
    )
    assert delivery.words() == [FolderWords(10, "subject", "sks", "dog")]
