"""Words of a model in captions: left out, cut, and put to those that are there."""

import pytest

from sdlora.captioning.caption_text import cut_sentence, cut_tags, new_caption
from sdlora.captioning.settings import CaptionSettings
from sdlora.errors import ConfigError


@pytest.mark.parametrize(
    ("mode", "own", "expected"),
    [("empty", "", "a red car"), ("empty", "mine", "mine"), ("replace", "mine", "a red car"),
     ("append", "mine", "mine, a red car"), ("append", "", "a red car"),
     ("append", "mine, a Red car", "mine, a Red car")],
)  # fmt: skip
def test_each_mode_joins_what_is_there_and_what_is_new(mode, own, expected):
    assert new_caption(own, "a red car", CaptionSettings(mode=mode)) == expected


@pytest.mark.parametrize("mode", ["empty", "append", "replace"])
def test_a_model_that_cannot_tell_changes_nothing(mode):
    settings = CaptionSettings(mode=mode, prefix="photo of", trigger="sks")
    assert new_caption("mine", "", settings) == "mine"
    assert new_caption("", "", settings) == ""


def test_trigger_and_prefix_come_first_and_only_once():
    settings = CaptionSettings(mode="replace", prefix="a photo,", trigger="ohwx style")
    assert new_caption("", "a red car", settings) == "ohwx style, a photo, a red car"
    assert new_caption("", "ohwx style car", CaptionSettings(trigger="ohwx style")) == "ohwx style car"


def test_tags_are_refused_as_a_whole_and_words_of_sentences_one_by_one():
    settings = CaptionSettings(blacklist=("hair", "Long_Sleeves"))
    assert cut_tags(["blue hair", "hair", "long sleeves", "solo"], settings) == ["blue hair", "solo"]
    assert cut_sentence("a girl, with blue hair and hairpins", settings) == "a girl, with blue and hairpins"


def test_captions_end_at_a_word_or_a_tag():
    settings = CaptionSettings(max_words=3)
    assert cut_sentence("a very long, red car", settings) == "a very long"
    assert cut_tags(["blue hair", "long sleeves", "solo"], settings) == ["blue hair"]


@pytest.mark.parametrize("wrong", [{"mode": "add"}, {"threshold": 1.5}, {"max_words": 0}, {"batch_size": 0}])
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        CaptionSettings.checked(**wrong)
