"""Pictures of runs as data URIs, scaled down until a report of all of them stays small."""

import io
from base64 import b64encode
from collections.abc import Sequence
from typing import NamedTuple

from sdlora.data.images import open_image
from sdlora.errors import SdloraError
from sdlora.reports.run_record import ReportPicture, RunRecord

MOST_BYTES = 3_000_000
"""Bytes of all pictures of a report together, before they become text."""
MOST_BYTES_PER_RUN = 400_000
SHEET_SHARE = 0.6
"""Part of a run's bytes that its sheet may have."""
SHEET_SIDES, PREVIEW_SIDES = (1400, 1000, 700, 480, 320), (256, 192, 128, 96)
"""Longest sides in pixels, the largest first; the first one with few enough bytes is taken."""
QUALITY = 82


class Thumbnail(NamedTuple):
    """A small copy of a picture as a ``data:`` URI, and its title."""

    uri: str
    title: str


def run_thumbnails(run: RunRecord, runs: int) -> tuple[Thumbnail | None, list[Thumbnail]]:
    """Return the sheet and the previews of ``run`` in a report of ``runs``; those that cannot be read are left out."""
    most = min(MOST_BYTES_PER_RUN, MOST_BYTES // max(runs, 1))
    sheet = _thumbnail(run.sheet, SHEET_SIDES, int(most * SHEET_SHARE)) if run.sheet else None
    each = int(most * (1 - SHEET_SHARE)) // max(len(run.previews), 1)
    previews = [_thumbnail(picture, PREVIEW_SIDES, each) for picture in run.previews]
    return sheet, [preview for preview in previews if preview]


def _thumbnail(picture: ReportPicture, sides: Sequence[int], most: int) -> Thumbnail | None:
    """Return a copy of at most ``most`` bytes; None if there is none, or the picture is damaged."""
    try:
        image = open_image(picture.path).rgb
    except SdloraError:
        return None
    for side in sides:
        image.thumbnail((side, side))
        content = io.BytesIO()
        image.save(content, "JPEG", quality=QUALITY, optimize=True)
        if content.tell() <= most:
            encoded = b64encode(content.getvalue()).decode()
            return Thumbnail(f"data:image/jpeg;base64,{encoded}", picture.title)
    return None
