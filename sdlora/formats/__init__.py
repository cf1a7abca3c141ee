"""Adapter files, in every format that other tools read."""

from sdlora.formats.inspection import inspect_adapter
from sdlora.formats.storage import FORMATS, export_adapter, read_adapter, write_adapter

__all__ = ["FORMATS", "export_adapter", "inspect_adapter", "read_adapter", "write_adapter"]
