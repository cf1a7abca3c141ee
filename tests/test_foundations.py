"""Errors, events, files and sections: what everything else stands on."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdlora import errors
from sdlora.errors import FileError, FormatError, SdloraError
from sdlora.events import Event, SampleReady, StepDone
from sdlora.filesystem.paths import as_path, existing_path, numbered_paths, path_inside, safe_name
from sdlora.filesystem.safetensors_header import read_safetensors_header
from sdlora.filesystem.writing import TEMPORARY, move_new, new_folder, write_atomic, write_new


def test_every_error_has_an_exit_code_of_its_kind():
    documented = {"ConfigError": 2, "DatasetError": 3, "OutOfMemoryError": 4, "FileError": 5}
    documented |= {"NonFiniteError": 6, "BusyError": 7, "DeviceError": 8}
    for name, code in documented.items():
        cls = getattr(errors, name)
        assert issubclass(cls, SdloraError)
        assert cls.exit_code == code


@pytest.mark.parametrize(
    "module", ["sdlora", "sdlora.config", "sdlora.api.training", "sdlora.api.reports", "sdlora.cli.main"]
)
def test_importing_a_front_end_leaves_torch_unloaded(module):
    code = f"import sys, {module}; sys.exit(any(m in sys.modules for m in ('torch', 'diffusers', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_events_come_back_from_their_line_and_unknown_fields_are_passed_over():
    event = StepDone(step=3, steps=9, loss=0.5, learning_rate=1e-4, seconds=0.2, left=1.2)
    assert Event.from_json(event.to_json()) == event
    newer = json.dumps({**json.loads(event.to_json()), "added later": 1})
    assert Event.from_json(newer) == event


@pytest.mark.parametrize("line", ["", "{", '{"kind": "Nothing"}', '{"kind": "StepDone"}', "[]", "3", '{"kind": []}'])
def test_a_line_that_is_no_event_is_a_value_error(line):
    with pytest.raises(ValueError):
        Event.from_json(line)


def test_an_event_of_any_prompt_is_one_line():
    line = SampleReady(step=0, index=0, prompt="a\nb\u2028", path="x").to_json()
    assert line.count("\n") == 0


def test_a_path_may_begin_in_a_home_or_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "a").touch()
    assert existing_path("~/a", tmp_path / "elsewhere") == existing_path("a", tmp_path) == tmp_path / "a"
    assert as_path("~/b/c") == tmp_path / "b" / "c"
    assert existing_path("~/b/c") is None


@pytest.mark.parametrize(
    "name", ["a" * 300, f"nowhere/{'a' * 300}/b", "a\0b", "nowhere/a\0b", "~nobody-of-this-name/x"]
)
def test_a_name_that_no_file_can_have_is_told(name, tmp_path):
    with pytest.raises(FileError, match="cannot be a file's name"):
        as_path(name, tmp_path)
    with pytest.raises(FileError, match="cannot be a file's name"):
        next(numbered_paths(Path(name)))
    assert existing_path(name, tmp_path) is None


@given(st.text(max_size=400))
def test_any_text_is_a_path_or_told(text):
    path = existing_path(text)
    assert path is None or path.exists()


@given(st.text(max_size=400))
def test_safe_names_stay_in_their_folder(name):
    safe = safe_name(name)
    assert 0 < len(safe) <= 70
    assert Path(safe).name == safe
    assert safe.strip(". ") == safe
    assert all(character.isprintable() for character in safe)


@pytest.mark.parametrize(("name", "safe"), [("CON", "CON-1"), ("../x", "x"), ("", "untitled"), ("a\u202eb", "a-b")])
def test_hostile_names_become_harmless(name, safe):
    assert safe_name(name) == safe


def test_a_path_outside_its_root_is_refused(tmp_path):
    assert path_inside(tmp_path, "a/b") == tmp_path / "a" / "b"
    with pytest.raises(FileError, match="outside"):
        path_inside(tmp_path, "../b")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "kept.txt"
    write_atomic(path, "old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(FileError, match="disk full"):
        write_atomic(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_has_the_usual_permissions(tmp_path):
    write_atomic(tmp_path / "a", b"x")
    (tmp_path / "b").write_bytes(b"x")
    assert os.stat(tmp_path / "a").st_mode == os.stat(tmp_path / "b").st_mode


def test_a_new_file_counts_up_past_whatever_has_the_name(tmp_path):
    path = tmp_path / "a.png"
    (tmp_path / "a-2.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "a-3.png").mkdir()
    assert [write_new(path, text).name for text in ("1", "2", "3")] == ["a.png", "a-4.png", "a-5.png"]
    assert [(tmp_path / name).read_text() for name in ("a.png", "a-4.png", "a-5.png")] == ["1", "2", "3"]
    assert not list(tmp_path.glob(f"{TEMPORARY}*"))


def test_a_new_file_is_written_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    assert [write_new(tmp_path / "a", text).name for text in ("1", "2")] == ["a", "a-2"]
    assert [(tmp_path / name).read_text() for name in ("a", "a-2")] == ["1", "2"]
    assert len(list(tmp_path.iterdir())) == 2


def test_new_folders_keep_their_dots(tmp_path):
    made = [new_folder(tmp_path / "v1.5", lambda folder: (folder / "file").touch()) for _ in range(2)]
    assert [folder.name for folder in made] == ["v1.5", "v1.5-2"]
    assert [path.name for folder in made for path in folder.iterdir()] == ["file", "file"]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_new_folder_that_cannot_be_filled_leaves_nothing(tmp_path):
    with pytest.raises(FileError, match="No space left"):
        new_folder(tmp_path / "new", lambda folder: write_atomic(folder / "file", _raise_full))
    assert list(tmp_path.iterdir()) == []


def _raise_full(path):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_is_moved_replaces_nothing(tmp_path):
    for name in ("from", "to"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    assert move_new(tmp_path / "from", tmp_path / "to").name == "to-2"
    assert {path.name for path in tmp_path.iterdir()} == {"to", "to-2"}
    assert move_new(tmp_path / "to-2" / "file", tmp_path / "to").name == "to-3"


def _file(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


BAD_HEADERS = {
    "empty": b"",
    "seven bytes": b"1234567",
    "a pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}",
    "no JSON": _file(b"{{{{"),
    "a list": _file(b"[]"),
    "cut short": _file(json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode(), b"1234"),
    "too long": _file(json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode(), b"12345"),
    "offsets missing": _file(json.dumps({"a": {"dtype": "F32"}}).encode()),
    "endless offsets": _file(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, Infinity]}}'),
    "tensor is a number": _file(json.dumps({"a": 3}).encode()),
    "nested deeply": _file(b"[" * 200_000),
    "huge header": (9 << 20).to_bytes(8, "little") + b" " * (9 << 20),
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_a_file_that_is_no_safetensors_is_refused(name, tmp_path):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(BAD_HEADERS[name])
    with pytest.raises(FormatError, match=r"bad\.safetensors"):
        read_safetensors_header(path)


def test_a_good_header_is_read(tmp_path):
    path = tmp_path / "good.safetensors"
    header = {"__metadata__": {"a": "b"}, "x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    path.write_bytes(_file(json.dumps(header).encode(), b"1234"))
    assert read_safetensors_header(path) == header
