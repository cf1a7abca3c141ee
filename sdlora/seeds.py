"""Randomness without state: every choice is a hash of what it belongs to, so a resumed run needs no position.

BLAKE2b (RFC 7693) over the parts written out as text: the same on every system, process and Python version, which
neither ``hash`` (salted) nor the streams of ``random`` and numpy promise. Front ends may import this: no torch.
"""

from hashlib import blake2b


def derive(*parts: int | str) -> int:
    """Return a seed in [0, 2**63) from integers and names: ``derive(seed, "order", epoch)``."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def uniform(*parts: int | str) -> float:
    """Return a number in [0, 1) by ``derive`` (its upper 53 bits, so that it is exact and never 1)."""
    return (derive(*parts) >> 10) / 2**53


def order(count: int, *parts: int | str) -> list[int]:
    """Return a permutation of ``range(count)``: its members sorted by their derived seeds."""
    return sorted(range(count), key=lambda index: (derive(*parts, index), index))
