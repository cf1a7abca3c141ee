"""Names that belong together though their case differs: ``A.png`` and ``a.txt``, as Windows and macOS pair them."""

from collections.abc import Hashable, Iterable, MutableMapping
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class CaselessNames(Generic[K]):
    """Keys of images, found by a key that is the same, or the same but for case. A key is a text or a tuple."""

    def __init__(self, keys: Iterable[K]):
        self._keys = dict.fromkeys(keys)
        self._by_folded: dict[Any, list[K]] = {}
        for key in self._keys:
            self._by_folded.setdefault(_folded(key), []).append(key)

    def near(self, key: K) -> list[K]:
        """Return the keys that are ``key``, or else those that differ from it in case alone."""
        return [key] if key in self._keys else self._by_folded.get(_folded(key), [])

    def find(self, key: K) -> K | None:
        """Return the one key that is meant by ``key``; None if there is none, or several differ in case alone."""
        near = self.near(key)
        return near[0] if len(near) == 1 else None

    def rename(self, found: MutableMapping[K, Any]) -> None:
        """Give the entries of ``found`` the keys that they mean, unless an entry has that key already."""
        for key in [*found]:
            meant = self.find(key)
            if meant is not None and meant not in found:
                found[meant] = found.pop(key)


def _folded(key: Any) -> Any:
    return tuple(map(_folded, key)) if isinstance(key, tuple) else key.casefold() if isinstance(key, str) else key
