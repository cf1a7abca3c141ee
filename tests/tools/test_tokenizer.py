"""The tokenizer: any text, rare identifiers whole, the same on every machine."""

import pytest

from tools.pocket import tokenizer


@pytest.fixture(scope="module")
def words():
    return tokenizer.build()


@pytest.mark.parametrize("word", tokenizer.RARE)
def test_a_rare_identifier_is_one_token(words, word):
    assert words.tokenize(word) == [word + "</w>"]


@pytest.mark.parametrize("text", ["Ünïcode 猫 🐱 €5!?", "", "  two   spaces ", "don't (stop): a+b=c", "x" * 300])
def test_it_takes_any_text(words, text):
    ids = words(text).input_ids
    assert ids[0] == words.bos_token_id and ids[-1] == words.eos_token_id
    assert words.decode(ids[1:-1]).replace(" ", "") == text.lower().replace(" ", "")


def test_captions_take_one_token_a_word(words):
    assert len(words.tokenize("a watercolor painting of a red house on grass")) == 9


def test_joining_pairs_by_hand():
    # "ab" twice and "abc" once: a+b is most frequent, then "ab" ends two words ("b</w>" differs from "b").
    assert tokenizer.train_merges(["ab ab abc"], 1) == [("a", "b</w>")]
    assert tokenizer.train_merges(["abc abd"], 1) == [("a", "b")]
