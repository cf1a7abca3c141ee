"""Captions in tokens, without torch: what the text encoder receives in training."""

import subprocess
import sys
from pathlib import Path

import pytest

from sdlora.api.captions import read_captions
from sdlora.errors import ModelError
from sdlora.families.loading import load_family
from sdlora.families.settings import Model
from sdlora.generation.prompt_encoding import CaptionReader

LONG = ", ".join(f"red tag {number}" for number in range(40))
CAPTIONS = ["a red house, on grass", "", LONG, "x" * 300, "ein H\u00fcndchen \u72ac (big:1.2)"]


@pytest.mark.parametrize("weighted", [False, True], ids=["letters", "weights"])
def test_tokens_and_chunks_are_those_that_training_reads(weighted):
    family = load_family(Model(base="pocket"))
    reader = CaptionReader(family, weighted)
    for caption, read in zip(CAPTIONS, read_captions(CAPTIONS, "pocket", weighted), strict=True):
        chunks = reader._chunks(caption)
        assert len(read.chunks) == reader.count(caption)
        assert read.tokens == sum(len(chunk.tokens) for chunk in chunks)
        if "x" not in caption:  # A word that is cut in two is read otherwise when it stands alone.
            again = [family.token_ids_without_special(text) for text in read.chunks]
            assert again == [chunk.tokens for chunk in chunks]


def test_a_base_whose_tokenizer_is_not_here_is_not_asked_for(tmp_path):
    assert read_captions(["a"], "someone/some-model") is None
    with pytest.raises(ModelError, match="there is no"):
        read_captions(["a"], "no such base")
    with pytest.raises(ModelError, match="holds no vocabulary"):
        read_captions(["a"], "someone/some-model", tokenizer=tmp_path)


def test_a_models_folder_or_a_named_one_gives_the_vocabulary(tmp_path, monkeypatch):
    pocket = Path(__file__).parents[2] / "sdlora" / "pocket"
    (found,) = read_captions(["a red house"], "someone/some-model", tokenizer=pocket)
    assert found == (("a red house",), 3)
    (tmp_path / "tokenizer").mkdir()
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "tokenizer" / name).write_bytes((pocket / "tokenizer" / name).read_bytes())
    monkeypatch.setenv("SDLORA_MODELS", str(tmp_path))
    assert read_captions(["a red house"], "someone/some-model") == [found]


def test_it_needs_no_torch():
    read = "from sdlora.api.captions import read_captions; read_captions(['a'], 'pocket')"
    code = f"import sys; {read}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
