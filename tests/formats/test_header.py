"""A header changed while the tensors stay as they are."""

import hashlib

import pytest

from sdlora.errors import FormatError
from sdlora.filesystem.safetensors_header import copy_with_metadata, read_metadata
from sdlora.formats import read_adapter, write_adapter
from tests.support.adapters import random_lora


def body(path):
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def test_a_copy_with_other_metadata_holds_the_same_tensors(tmp_path):
    old, new = tmp_path / "old.safetensors", tmp_path / "new ü.safetensors"
    write_adapter(random_lora(modelspec="old", kept="as it was"), old)
    copy_with_metadata(old, new, {"modelspec": "neu: ü", "more": "x" * 1001})
    metadata = read_metadata(new)
    assert (metadata["modelspec"], metadata["kept"], len(metadata["more"])) == ("neu: ü", "as it was", 1001)
    assert metadata["sshs_model_hash"] == hashlib.sha256(body(new)).hexdigest()
    assert body(new) == body(old)
    assert (len(new.read_bytes()) - len(body(new))) % 8 == 0
    read = read_adapter(new)
    assert read.modules.keys() == random_lora().modules.keys() and read.metadata["modelspec"] == "neu: ü"


def test_what_is_no_safetensors_file_is_not_copied(tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"not one")
    with pytest.raises(FormatError):
        copy_with_metadata(tmp_path / "bad.safetensors", tmp_path / "new.safetensors", {})
    assert not (tmp_path / "new.safetensors").exists()
