import pytest
from PIL import Image

from sdlora.errors import ConfigError
from sdlora.generation.contact_sheet import GAP, SYSTEM_FONTS, contact_sheet, stack_images

RED, BLUE = Image.new("RGB", (64, 64), "#ff0000"), Image.new("RGB", (32, 64), "#0000ff")


def test_every_picture_is_whole_and_none_leaves_a_hole():
    """64 x 64 red twice, 32 x 64 blue once, and one hole."""
    made = contact_sheet(
        [[RED, BLUE], [RED, None]], ["base", "a long label of many words"], ["0.0", "1.0"], title="A sheet"
    )
    counts = {color: count for count, color in made.getcolors(1 << 16)}
    assert counts[(255, 0, 0)] == 2 * 64 * 64
    assert counts[(0, 0, 255)] == 32 * 64
    assert counts[tuple(bytes.fromhex(GAP[1:]))] == 64 * 64


def test_without_labels_only_gaps_are_added():
    assert contact_sheet([[RED, RED, RED]], gap=4).size == (3 * 64 + 4 * 4, 64 + 2 * 4)
    assert contact_sheet([[RED], [BLUE]], gap=0).size == (64, 128)


def test_pictures_are_scaled_in_proportion():
    counts = {color: count for count, color in contact_sheet([[BLUE]], cell=128).getcolors()}
    assert counts[(0, 0, 255)] == 64 * 128


def test_wrong_counts_are_refused():
    with pytest.raises(ConfigError, match="1 rows and 2 columns"):
        contact_sheet([[RED, RED]], column_labels=["one"])
    with pytest.raises(ConfigError, match="at least one"):
        contact_sheet([[None]])


@pytest.mark.parametrize("fonts", [("no such font.ttf",), SYSTEM_FONTS])
def test_labels_may_hold_any_letters(monkeypatch, fonts):
    """With a font of the system's, or without one as plain letters: never as boxes, which are all alike."""
    monkeypatch.setattr("sdlora.generation.contact_sheet.SYSTEM_FONTS", fonts)
    made = [contact_sheet([[RED]], ["x"], [text]) for text in ("ä", "ö", "ß")]
    assert len({picture.tobytes() for picture in made}) == 3


def test_tables_are_stacked_whole():
    made = stack_images([RED, BLUE])
    assert made.size == (64, 128)
    assert {color: count for count, color in made.getcolors()} == {
        (255, 0, 0): 64 * 64,
        (0, 0, 255): 32 * 64,
        (255,) * 3: 32 * 64,
    }
