"""Formats of image files: those that are read, those that a further package reads, and what others are called.

Pillow reads most. HEIC, which phones save, is read where ``pillow-heif`` is installed, JPEG XL where
``pillow-jxl-plugin`` is. Front ends may import this: no torch, and the packages are imported with the first image.
"""

from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec

from PIL import features

AVIF = bool(features.check("avif"))
HEIF = find_spec("pillow_heif") is not None
JXL = find_spec("pillow_jxl") is not None

FORMATS = (
    "PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF",
    *(["AVIF"] if AVIF else []), *(["HEIF"] if HEIF else []), *(["JXL"] if JXL else []),
)  # fmt: skip
"""Names by which Pillow knows the formats that are read."""
JPEG_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jif", ".jfif"}
_AVIF_SUFFIXES, _HEIF_SUFFIXES, _JXL_SUFFIXES = {".avif"}, {".heic", ".heif", ".hif"}, {".jxl"}
SUFFIXES = (
    JPEG_SUFFIXES
    | {".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
    | (_AVIF_SUFFIXES if AVIF else set())
    | (_HEIF_SUFFIXES if HEIF else set())
    | (_JXL_SUFFIXES if JXL else set())
)
"""Suffixes of images that are read."""
FOREIGN_SUFFIXES = {
    *(".svg", ".eps", ".ai", ".pdf", ".psd", ".xcf", ".kra", ".clip", ".heics", ".avifs"),
    *(".jp2", ".j2k", ".jpx", ".jxr", ".tga", ".ico", ".ppm", ".pgm", ".pbm", ".dds", ".qoi", ".exr", ".hdr"),
    *(".pcx", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"),
    *(_AVIF_SUFFIXES | _HEIF_SUFFIXES | _JXL_SUFFIXES),
} - SUFFIXES  # fmt: skip
"""Suffixes of image formats that are not supported: such files are refused by name rather than ignored."""

SAVE_AGAIN = "save it as PNG or JPEG"
_PACKAGES = {"HEIC": "pillow-heif", "JPEG XL": "pillow-jxl-plugin", "AVIF": "a newer Pillow"}
"""Packages that read what Pillow itself does not, or an old one does not."""
_MAGIC = {
    b"<svg": "an SVG drawing",
    b"<?xml": "an SVG or XML file",
    b"<": "an HTML page",
    b"%!PS": "an EPS or PostScript file",
    b"\xc5\xd0\xd3\xc6": "an EPS file",
    b"8BPS": "a Photoshop file",
    b"%PDF": "a PDF file",
    b"PK\x03\x04": "a zip file",
    b"gimp xcf": "a GIMP file",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 picture",
    b"\xff\x4f\xff\x51": "a JPEG 2000 picture",
    b"v/1\x01": "an OpenEXR picture",
    b"DDS ": "a DDS texture",
    b"qoif": "a QOI picture",
    b"\0\0\1\0": "an icon",
    b"version https://git-lfs": "a Git LFS pointer",
    b"II*\0": "a TIFF of a kind that is not read here",
    b"MM\0*": "a TIFF of a kind that is not read here",
}
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
}
"""Formats in the container of ISO 14496-12, by the brand at its beginning."""
_JXL_MAGIC = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")


def suffix_refusal(suffix: str) -> str:
    """Return why a file with one of ``FOREIGN_SUFFIXES`` is not read, and the remedy."""
    kind = (
        "HEIC" if suffix in _HEIF_SUFFIXES else "JPEG XL" if suffix in _JXL_SUFFIXES
        else "AVIF" if suffix in _AVIF_SUFFIXES else ""
    )  # fmt: skip
    if kind:
        return f"is {suffix[1:].upper()}; {_install(kind)}"
    return f"is {suffix[1:].upper()}, which is not read here; {SAVE_AGAIN}"


def content_refusal(start: bytes) -> str:
    """Return why a file that begins with ``start`` (64 bytes) could not be opened, and the remedy."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    kind = "JPEG XL" if is_jxl(start) else _BRANDS.get(start[8:12], "") if start[4:8] == b"ftyp" else ""
    if kind:
        readable = {"HEIC": HEIF, "AVIF": AVIF, "JPEG XL": JXL}[kind]
        return "is damaged or cut short" if readable else f"is a picture in {kind}, whatever its name; {_install(kind)}"
    named = next((name for magic, name in _MAGIC.items() if text.startswith(magic) or start.startswith(magic)), None)
    return f"is {named or 'no picture in a supported format'}; {SAVE_AGAIN}"


def _install(kind: str) -> str:
    return f"install {_PACKAGES[kind]} to read it, or {SAVE_AGAIN}"


def is_jxl(start: bytes) -> bool:
    """Return whether a file begins as JPEG XL does, bare or in its container."""
    return start.startswith(_JXL_MAGIC)


@lru_cache(maxsize=1)
def register_packages() -> None:
    """Let Pillow know the formats of further packages. Raises ImportError for a package that is broken."""
    if HEIF:
        import_module("pillow_heif").register_heif_opener()
    if JXL:
        import_module("pillow_jxl")
