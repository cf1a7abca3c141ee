"""Adapter files, in every format that other tools read."""

from sdlora.formats.inspection import Inspection, inspect_adapter
from sdlora.formats.storage import DTYPES, FORMATS, read_adapter, write_adapter

__all__ = ["DTYPES", "FORMATS", "Inspection", "inspect_adapter", "read_adapter", "write_adapter"]
