"""Where requests go: a host and a port, checked before anything is opened."""

from __future__ import annotations

from .errors import InvalidURL
from .wire import check_host

SourceAddress = tuple[str, int]


def split_host_port(host: str, port: int | str | None, default: int) -> tuple[str, int]:
    """Split ``host[:port]`` and check both.

    Args:
        host: ``"host"``, ``"host:port"``, ``"[::1]"`` or ``"[::1]:80"``; a bare IPv6 address only with `port`.
        port: The port, if it is not in `host`.
        default: The port if it is nowhere.

    Raises:
        InvalidURL: The host holds what no host holds, or the port is no number from 0 to 65535.
        TypeError: They are of another type.
    """
    if not isinstance(host, str):
        raise TypeError(f"host must be a str, not {type(host).__name__}")
    if port is None:
        colon, bracket = host.rfind(":"), host.rfind("]")
        if colon > bracket:
            port = host[colon + 1 :] or default
            host = host[:colon]
        else:
            port = default
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    check_host(host)
    if isinstance(port, str):
        if not (port.isascii() and port.isdigit()):
            raise InvalidURL(f"nonnumeric port: {port[:60]!r}")
        port = int(port) if len(port) < 10 else 65536
    if isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"port must be an int, not {port!r}")
    if not 0 <= port <= 65535:
        raise InvalidURL(f"port must be from 0 to 65535, not {port}")
    return host, port


def check_source_address(source_address: SourceAddress | None) -> None:
    """Raise ValueError unless it is a (host, port) pair or ``None``."""
    if source_address is None:
        return
    is_pair = isinstance(source_address, tuple) and len(source_address) in (2, 4)
    if not is_pair or not isinstance(source_address[0], str) or not isinstance(source_address[1], int):
        raise ValueError(f"source_address must be a (host, port) tuple, not {source_address!r}")
