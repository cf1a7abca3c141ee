"""Contact sheets: labelled tables of images to compare."""

import unicodedata
from collections.abc import Sequence
from contextlib import suppress

from PIL import Image, ImageDraw, ImageFont, ImageOps

from sdlora.errors import ConfigError

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
INK, PAPER, GAP = "#33363b", "#ffffff", "#eceef1"
SYSTEM_FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf",
    "Arial.ttf", "Helvetica.ttc",
)  # fmt: skip
"""Fonts beyond ASCII, of which most machines have one."""
SPELLINGS = str.maketrans({"ß": "ss", "×": "x", "–": "-", "—": "-", "…": "...", "“": '"', "”": '"', "’": "'", "ø": "o"})
"""Replacements for letters that the font lacks."""


def contact_sheet(
    rows: Sequence[Sequence[Image.Image | None]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    title: str = "",
    cell: int | None = None,
    gap: int = 8,
) -> Image.Image:
    """Return ``rows`` of images on white, with labels to the left and above, wrapped to fit.

    ``cell`` is the longest side of an image in pixels, to which all are scaled; None leaves them as they are.
    None among the images, or a short row, leaves a gap. The font is Pillow's own for ASCII, else one of
    the system's; where there is none, letters lose their accents, and others become question marks.
    Raises ConfigError if there is no image, or labels and images do not match.
    """
    columns = max((len(row) for row in rows), default=0)
    if (row_labels and len(row_labels) != len(rows)) or (column_labels and len(column_labels) != columns):
        labels = f"{len(row_labels)} row and {len(column_labels)} column labels"
        raise ConfigError(f"a sheet of {len(rows)} rows and {columns} columns does not go with {labels}")
    scaled = {(r, c): _scale(image, cell) for r, row in enumerate(rows) for c, image in enumerate(row) if image}
    if not scaled:
        raise ConfigError("a sheet needs at least one picture")
    size = max(image.width for image in scaled.values()), max(image.height for image in scaled.values())
    gap_image = Image.new("RGB", size, GAP)
    font = max(11, min(20, size[0] // 9))
    cells = [[scaled.get((row, column), gap_image) for column in range(columns)] for row in range(len(rows))]
    if column_labels:
        cells.insert(0, [_label(text, font, size[0]) for text in column_labels])
    if row_labels:
        beside = [_label(text, font, max(size[0], 72)) for text in (["", *row_labels] if column_labels else row_labels)]
        cells = [[label, *row] for label, row in zip(beside, cells, strict=True)]
    table = _table(cells, gap)
    framed = _table([[_label(title, font, table.width)], [table]], gap) if title else table
    return ImageOps.expand(framed, gap, PAPER)


def stack_images(tables: Sequence[Image.Image]) -> Image.Image:
    """Return images on white, one below the other, aligned to the left."""
    stacked = Image.new("RGB", (max(table.width for table in tables), sum(table.height for table in tables)), PAPER)
    top = 0
    for table in tables:
        stacked.paste(table, (0, top))
        top += table.height
    return stacked


def _scale(image: Image.Image, longest: int | None) -> Image.Image:
    """Return ``image`` as RGB, in proportion, with its longest side ``longest`` pixels long."""
    image = image.convert("RGB")
    return image if longest is None else ImageOps.contain(image, (longest, longest))


def _table(cells: Sequence[Sequence[Image.Image]], gap: int) -> Image.Image:
    """Return a table of cells, each centred in its column's width and its row's height."""
    widths = [max(row[column].width for row in cells) for column in range(len(cells[0]))]
    heights = [max(image.height for image in row) for row in cells]
    table = Image.new("RGB", (sum(widths) + gap * (len(widths) - 1), sum(heights) + gap * (len(heights) - 1)), PAPER)
    top = 0
    for row, height in zip(cells, heights, strict=True):
        left = 0
        for image, width in zip(row, widths, strict=True):
            table.paste(image, (left + (width - image.width) // 2, top + (height - image.height) // 2))
            left += width + gap
        top += height + gap
    return table


def _legible(text: str, size: int) -> tuple[str, Font]:
    """Return ``text`` as it can be written, and a font of ``size`` pixels that has its letters."""
    default = ImageFont.load_default(size)
    if text.isascii():
        return text, default
    for name in SYSTEM_FONTS:
        with suppress(OSError):
            return text, ImageFont.truetype(name, size)
    decomposed = unicodedata.normalize("NFKD", text)
    base_letters = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return base_letters.translate(SPELLINGS).encode("ascii", "replace").decode(), default


def _label(text: str, size: int, width: int) -> Image.Image:
    """Return ``text`` in lines of at most ``width`` pixels (a longer word stays uncut), ``size`` pixels high."""
    text, font = _legible(text, size)
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        lines = [*lines[:-1], joined] if lines and font.getlength(joined) <= width else [*lines, word]
    wrapped = "\n".join(lines)
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    left, top, right, bottom = draw.multiline_textbbox((0, 0), wrapped, font, align="center")
    image = Image.new("RGB", (max(1, round(right - left)), max(1, round(bottom - top))), PAPER)
    ImageDraw.Draw(image).multiline_text((-left, -top), wrapped, INK, font, align="center")
    return image
