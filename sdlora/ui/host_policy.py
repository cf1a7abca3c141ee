"""Names and addresses under which the page answers."""

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field

from sdlora.errors import ConfigError

LOCAL, ALL = "127.0.0.1", "0.0.0.0"
PORTS = {"http": 80, "https": 443}
_NETLOC = re.compile(r"(\[[0-9a-f:.]+(?:%[\w.~-]+)?\]|[^\s:/@\[\]\\]+)(?::(\d{1,5}))?", re.IGNORECASE)


def split_host(text: str) -> tuple[str, int | None]:
    """Return name and port of ``name:80`` or ``[::1]:80``; the name is "" for invalid text.

    An address goes without its zone, ``[fe80::1%25eth0]``, which means something on the client's machine alone.
    """
    found = _NETLOC.fullmatch(text)
    if found is None:
        return "", None
    name = found[1].strip("[]").partition("%")[0] if found[1].startswith("[") else found[1]
    return name.rstrip(".").lower(), int(found[2]) if found[2] else None


def parse_address(name: str) -> "ipaddress.IPv4Address | ipaddress.IPv6Address | None":
    """Return ``name`` as an address in its shortest form; None if it is not one."""
    try:
        found = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def stands_for_all(name: str) -> bool:
    """Return whether ``name`` is an address that stands for every address of the machine, such as ``::``."""
    address = parse_address(name)
    return address is not None and address.is_unspecified


def is_loopback(name: str) -> bool:
    """Return whether only this machine can reach ``name``."""
    address = parse_address(name)
    return name == "localhost" if address is None else address.is_loopback


@dataclass
class HostPolicy:
    """Names under which the page answers: loopback, the address on which it listens, and those allowed."""

    address: str = LOCAL
    allowed: Iterable[str] = ()
    share: str = ""
    """Host of the share tunnel, once it is open."""
    names: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        """Raise ConfigError for an allowed name that is invalid."""
        for name in self.allowed:
            host, port = split_host(name)
            if not host or port is not None:
                raise ConfigError(f"--allow-host {name}: give a name alone, such as pictures.example.org")
        own = {self.address.lower()}
        if not is_loopback(self.address):
            name = socket.gethostname().lower()
            short = name.partition(".")[0]
            own |= {name, short, f"{short}.local"}
        self.allowed = frozenset(split_host(name)[0] for name in self.allowed)
        self.names = frozenset(own) | self.allowed

    def allows_host(self, name: str, arrived: str) -> bool:
        """Return whether the page answers to ``name``, for a request that arrived at the address ``arrived``."""
        if not name:
            return False
        if is_loopback(name) or name in self.names or name == self.share:
            return True
        address = parse_address(name)
        own = parse_address(arrived if stands_for_all(self.address) else self.address)
        return address is not None and address == own

    def is_same_origin(self, origin: str, host: str, server: tuple[str, int | None]) -> bool:
        """Return whether ``origin`` is this page, requested as ``host`` and served at ``server``."""
        scheme, _, rest = origin.partition("://")
        name, port = split_host(rest)
        if scheme not in PORTS or not name:
            return False
        default = PORTS[scheme]
        own, own_port = split_host(host)
        if (name, port or default) == (own, own_port or default):
            return True
        if name == self.share or name in self.allowed:  # A proxy in front may have changed the host.
            return True
        return self.allows_host(name, server[0]) and (port or default) == server[1]
