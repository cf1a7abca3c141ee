"""Data folder: disk usage, and what can be deleted."""

from sdlora.filesystem.reading import size_of as size_of
from sdlora.storage.disk_usage import FREED as FREED
from sdlora.storage.disk_usage import FreeSettings as FreeSettings
from sdlora.storage.disk_usage import disk_usage as disk_usage
from sdlora.storage.disk_usage import free_space as free_space
from sdlora.storage.disk_usage import usage_table as usage_table
from sdlora.storage.trash import KEPT_DAYS as KEPT_DAYS
from sdlora.storage.trash import TrashItem as TrashItem
