"""Paths of a run's output. Paths in events are relative to the run's folder."""

import os
from pathlib import Path

from sdlora.filesystem.reading import find_matching

CONFIG = "config.toml"
"""The file that makes a folder a run's."""


class RunPaths:
    """The files and folders of one run."""

    def __init__(self, folder: Path):
        absolute = Path(os.path.abspath(folder))
        runs = absolute.parent  # May be a link to a larger disk: the data folder is where the link is.
        self.folder = runs.parent.resolve() / runs.name / absolute.name
        self.config_file = self.folder / CONFIG
        self.journal = self.folder / "journal.jsonl"
        self.log = self.folder / "run.log"
        self.samples = self.folder / "samples"
        self.checkpoints = self.folder / "checkpoints"
        """An adapter file a checkpoint, each usable as it is; all are kept."""
        self.states = self.folder / "state"
        """States that a resume needs; the newest few are kept."""
        self.adapter = self.folder / "adapter.safetensors"
        self.tensorboard = self.folder / "tensorboard"
        self.wandb_id = self.folder / "wandb-id"

    @property
    def name(self) -> str:
        return self.folder.name

    def relative(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def regular_files(self, folder: Path, pattern: str) -> list[Path]:
        """The files in a ``folder`` of the run, by name. Links are left out: a stranger's may lead to any file."""
        found = [] if folder.is_symlink() else sorted(find_matching(folder, pattern))
        return [path for path in found if path.is_file() and not path.is_symlink()]

    def sample(self, step: int, index: int) -> Path:
        return self.samples / f"{step:06d}-{index}.png"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"{step:06d}.safetensors"
