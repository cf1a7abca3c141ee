"""Formats beside the usual ones: read where a package reads them, else named with the remedy, never a danger."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdlora.data import image_formats
from sdlora.data.dataset import survey_folder
from sdlora.data.image_formats import SUFFIXES, content_refusal, suffix_refusal
from sdlora.data.images import inspect_image, open_image
from sdlora.data.jpeg_xl import require_plain_jxl
from sdlora.data.projects import Project
from sdlora.data.settings import Data
from sdlora.errors import DatasetError
from tests.support.images import noise_image

PACKAGES = {".avif": image_formats.AVIF, ".heic": image_formats.HEIF, ".jxl": image_formats.JXL}


@pytest.fixture(params=PACKAGES)
def suffix(request: pytest.FixtureRequest) -> str:
    """The suffix of a format, where something reads it here."""
    if not PACKAGES[request.param]:
        pytest.skip(f"nothing here reads {request.param}")
    image_formats.register_packages()
    return request.param


def two_halves() -> Image.Image:
    """A picture that is red on the left and blue on the right."""
    picture = Image.new("RGB", (128, 64), "#ff0000")
    picture.paste("#0000ff", (64, 0, 128, 64))
    return picture


def test_it_is_read_upright_in_rgb_and_with_its_transparency(folder: Path, suffix: str) -> None:
    path = folder / f"a{suffix}"
    two_halves().save(path, quality=95)
    assert inspect_image(path).size == (128, 64)
    rgb = np.asarray(open_image(path).rgb).astype(int)
    assert np.abs(rgb[32, 20] - (255, 0, 0)).max() <= 16 and np.abs(rgb[32, 108] - (0, 0, 255)).max() <= 16
    clear = two_halves().convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    clear.save(folder / f"b{suffix}")
    assert open_image(folder / f"b{suffix}").mask is not None


@pytest.mark.parametrize("packed", [".avif", ".heic"])
def test_it_is_turned_once(folder: Path, packed: str) -> None:
    if not PACKAGES[packed]:
        pytest.skip(f"nothing here reads {packed}")
    image_formats.register_packages()
    exif = Image.Exif()
    exif[0x0112] = 6
    two_halves().save(folder / f"a{packed}", exif=exif.tobytes(), quality=95)
    assert inspect_image(folder / f"a{packed}").size == (64, 128)
    rgb = open_image(folder / f"a{packed}").rgb
    assert rgb.size == (64, 128) and rgb.getpixel((32, 10))[0] > 200 and rgb.getpixel((32, 118))[2] > 200


def test_a_jpeg_that_is_packed_as_jpeg_xl_is_turned_as_its_exif_says(folder: Path) -> None:
    pytest.importorskip("pillow_jxl")
    exif = Image.Exif()
    exif[0x0112] = 6
    two_halves().save(folder / "a.jpg", exif=exif.tobytes(), quality=95)
    with Image.open(folder / "a.jpg") as jpeg:
        jpeg.save(folder / "a.jxl", lossless_jpeg=True)
    assert open_image(folder / "a.jxl").rgb.size == inspect_image(folder / "a.jxl").size == (64, 128)
    two_halves().save(folder / "b.jxl", exif=exif.tobytes())  # ISO 18181: EXIF's orientation does not count there.
    assert open_image(folder / "b.jxl").rgb.size == (128, 64)


def test_a_file_that_is_cut_short_is_refused(folder: Path, suffix: str) -> None:
    noise_image().save(folder / f"a{suffix}")
    content = (folder / f"a{suffix}").read_bytes()
    for length in (14, 40, len(content) // 2, len(content) - 10):
        path = folder / f"{length}{suffix}"
        path.write_bytes(content[:length])
        with pytest.raises(DatasetError, match="damaged or cut short"):
            inspect_image(path)


def test_a_name_that_lies_changes_nothing(folder: Path, suffix: str) -> None:
    noise_image().save(folder / f"a{suffix}")
    (folder / f"a{suffix}").rename(folder / "a.jpg")
    assert inspect_image(folder / "a.jpg").size == (64, 48)


def test_folder_zip_and_page_read_it_alike(folder: Path, tmp_path: Path, suffix: str) -> None:
    noise_image().save(folder / f"a{suffix}")
    (folder / "a.txt").write_text("a red house")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    (example,) = survey_folder(Data(folder=folder)).examples
    assert (example.size, example.caption) == ((64, 48), "a red house")
    for number, files in enumerate(([*folder.iterdir()], [tmp_path / "a.zip"])):
        project = Project(tmp_path, f"p{number}")
        assert project.add(files).remarks == ()
        (image,) = project.images()
        assert image.suffix == suffix and project.caption(image) == "a red house"


MISSING = [
    ("HEIF", ".heic", b"\0\0\0\x1cftypheic\0\0\0\0", "pillow-heif"),
    ("JXL", ".jxl", b"\xff\x0a\xfa\x7c", "pillow-jxl-plugin"),
]


@pytest.mark.parametrize(("flag", "ending", "start", "package"), MISSING)
def test_without_its_package_a_format_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, flag: str, ending: str, start: bytes, package: str
) -> None:
    monkeypatch.setattr(image_formats, flag, False)
    for reason in (suffix_refusal(ending), content_refusal(start)):
        assert f"install {package} to read it, or save it as PNG or JPEG" in reason


def test_other_formats_are_called_by_their_names() -> None:
    assert suffix_refusal(".psd") == "is PSD, which is not read here; save it as PNG or JPEG"
    assert content_refusal(b"gimp xcf v011") == "is a GIMP file; save it as PNG or JPEG"
    assert content_refusal(b"\xef\xbb\xbf <svg xmlns=") == "is an SVG drawing; save it as PNG or JPEG"
    assert content_refusal(b"hello") == "is no picture in a supported format; save it as PNG or JPEG"


@pytest.mark.parametrize("name", ["a.jpe", "a.jif", "a.jfif", "a.JPG", "a.apng", "a.tif"])
def test_rare_suffixes_of_common_formats_are_read(folder: Path, name: str) -> None:
    kind = {".apng": "PNG", ".tif": "TIFF"}.get(Path(name).suffix, "JPEG")
    noise_image().save(folder / name, kind)
    assert Path(name).suffix.lower() in SUFFIXES
    assert len(survey_folder(Data(folder=folder)).examples) == 1


@pytest.mark.parametrize("mode", ["P", "RGB", "LA", "RGBA"])
def test_an_image_of_which_nothing_is_visible_is_refused(folder: Path, mode: str) -> None:
    picture = Image.new("RGB", (64, 64), (9, 9, 9)).convert(mode)
    hidden = {"P": bytes(256), "RGB": (9, 9, 9)}
    if mode in hidden:
        picture.save(folder / "a.png", transparency=hidden[mode])
    else:
        picture.putalpha(0)
        picture.save(folder / "a.png")
    with pytest.raises(DatasetError, match="fully transparent"):
        inspect_image(folder / "a.png")


class _Writer:
    """Bits of a JPEG XL codestream, least first."""

    def __init__(self) -> None:
        self.number, self.length = 0x0AFF, 16

    def put(self, *values: tuple[int, int]) -> "_Writer":
        for bits, value in values:
            self.number |= value << self.length
            self.length += bits
        return self

    def file(self) -> bytes:
        return self.number.to_bytes(80, "little")


def sides(width: int, height: int) -> tuple[tuple[int, int], ...]:
    """A size in the form that holds any: 30 bits a side, no ratio (ISO 18181-1, table D.1)."""
    return (1, 0), (2, 3), (30, height - 1), (3, 0), (2, 3), (30, width - 1)


PLAIN_8_BITS = (1, 0), (2, 0), (1, 1)
"""No floats, 8 bits, 16-bit buffers."""
JXL_HEADERS = {
    "giant": (_Writer().put(*sides(2**20, 2**20), (1, 1)), None),
    "animated": (_Writer().put(*sides(64, 64), (1, 0), (1, 1), (3, 0), (1, 0), (1, 0), (1, 1)), "animated"),
    "with a preview": (_Writer().put(*sides(64, 64), (1, 0), (1, 1), (3, 0), (1, 0), (1, 1)), "preview"),
    "with 1000 channels": (
        _Writer().put(*sides(64, 64), (1, 0), (1, 0), *PLAIN_8_BITS, (2, 3), (12, 999)), "more than 4 channels",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", JXL_HEADERS)
def test_a_hostile_jpeg_xl_is_refused_by_its_header(folder: Path, name: str) -> None:
    """Its reader decodes with the opening; whether it is installed makes no difference to this."""
    written, reason = JXL_HEADERS[name]
    path = folder / "a.jxl"
    for content in (written.file(), b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0\0\0\0jxlc" + written.file()):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=reason or "1048576 x 1048576 pixels; over 67 million"):
            inspect_image(path)


def test_the_size_of_a_jpeg_xl_is_read_in_each_of_its_forms(folder: Path) -> None:
    small = (1, 1), (5, 7), (3, 0), (5, 3)  # 64 high, 32 wide, in steps of 8
    ratio = (1, 0), (2, 0), (9, 99), (3, 3)  # 100 high, 4:3
    for header, size in ((small, (32, 64)), (ratio, (133, 100)), (sides(300, 7), (300, 7))):
        (folder / "a.jxl").write_bytes(_Writer().put(*header, (1, 1)).file())
        with open(folder / "a.jxl", "rb") as file:
            assert require_plain_jxl(file) == size and file.tell() == 0


@pytest.mark.parametrize(
    "content",
    [b"\xff\x0a", b"\xff\x0a\xff", b"\0\0\0\x0cJXL \r\n\x87\n", b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0\0\0\x08free" * 200,
     b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0\0\0\x01junk" + b"\xff" * 40],
    ids=["two bytes", "three bytes", "no boxes", "endless boxes", "a box without end"],
)  # fmt: skip
def test_a_jpeg_xl_without_a_header_is_damaged(folder: Path, content: bytes) -> None:
    (folder / "a.jxl").write_bytes(content)
    with pytest.raises(DatasetError, match="damaged or cut short"):
        inspect_image(folder / "a.jxl")
