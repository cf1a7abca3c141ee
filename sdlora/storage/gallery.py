"""Generated images: list the newest, move one to the trash, restore it."""

from pathlib import Path

from sdlora.errors import FileError
from sdlora.filesystem.reading import find_matching, modified_ns, recency
from sdlora.storage.trash import Trash


def newest_images(folder: Path, most: int | None = None) -> list[Path]:
    """Return the images in ``folder``, the newest first, at most ``most``."""
    by_name = sorted(find_matching(folder, "[0-9]*.png"))
    return sorted(by_name, key=lambda path: recency(modified_ns(path)), reverse=True)[:most]


def trash_image(data_dir: Path, name: str) -> str:
    """Move the generated image ``name`` to the trash, and return its folder there.

    Raises FileError if there is no such image.
    """
    folder = images_folder(data_dir)
    path = folder / name
    if path not in newest_images(folder):  # So it is no path to elsewhere either.
        raise FileError(f"{name}: this picture is not there any more")
    return Trash(data_dir).put([path], path.stem, f"the picture {name}").folder.name


def restore_image(data_dir: Path, discarded: str) -> None:
    """Restore what ``trash_image`` moved. Raises FileError if it is no longer in the trash."""
    trash = Trash(data_dir)
    trash.restore(trash.find(discarded))


def images_folder(data_dir: Path) -> Path:
    """Return the folder of generated images, and of the log of the process that generates them."""
    return data_dir / "creations"
