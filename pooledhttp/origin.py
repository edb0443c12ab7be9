"""Where requests go: a host and a port, checked before anything is opened."""

from __future__ import annotations

import re
import socket

from .errors import InvalidURL
from .wire import check_host

SourceAddress = tuple[str, int]


def split_host_port(host: str, port: int | str | None, default: int) -> tuple[str, int]:
    """Split ``host[:port]`` and check both.

    Args:
        host: ``"host"``, ``"host:port"``, ``"[::1]"`` or ``"[::1]:80"``; a bare IPv6 address only with `port`.  A name
            outside ASCII comes back in its ASCII form (RFC 3490).
        port: The port, if it is not in `host`.
        default: The port if it is nowhere.

    Raises:
        InvalidURL: The host holds what no host holds, or the port is no number from 0 to 65535.
        TypeError: They are of another type.
    """
    if not isinstance(host, str):
        raise TypeError(f"host must be a str, not {type(host).__name__}")
    if "@" in host:
        raise InvalidURL("host is not valid: it can't contain '@'")  # before what may be a password is shown as a port
    if port is None:
        colon, bracket = host.rfind(":"), host.rfind("]")
        if colon > bracket:
            port = host[colon + 1 :] or default
            host = host[:colon]
        else:
            port = default
    is_bracketed = host.startswith("[") and host.endswith("]")
    if is_bracketed:
        host = host[1:-1]
    if not host.isascii():
        host = _to_ascii(host)
    check_host(host)
    if (":" in host or is_bracketed) and not _is_ipv6(host.partition("%")[0]):
        raise InvalidURL(f"host is not valid: {host[:60]!r} is no IPv6 address (which stands in brackets if the port "
                         f"is not given apart)")  # fmt: skip
    if isinstance(port, str):
        if not (port.isascii() and port.isdigit()):
            raise InvalidURL("nonnumeric port: what stands behind the colon is no decimal number")
        port = int(port) if len(port) < 10 else 65536
    if isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"port must be an int, not {port!r}")
    if not 0 <= port <= 65535:
        raise InvalidURL(f"port must be from 0 to 65535, not {port}")
    return host, port


# A last label that is a number makes the whole an IPv4 address to every resolver.
_ENDS_IN_NUMBER = r"(?:.*\.)?(?:[0-9]+|0[Xx][0-9A-Fa-f]*)\.?"


def _to_ascii(host: str) -> str:
    """Map an internationalised name to ASCII as `http.client` does, but never to an address (RFC 3490 section 4.1).

    The mapping folds look-alikes (full-width digits, ideographic stops), so its result is checked like any other host.

    Raises:
        InvalidURL: It has no form in ASCII, or the form is an IPv4 address.
    """
    if len(host) > 253:
        raise InvalidURL("host is not valid: it is longer than any name in the DNS (RFC 1035 section 2.3.4)")
    try:
        name = host.encode("idna").decode("ascii")
    except UnicodeError as fault:
        raise InvalidURL(f"host is not valid: {host[:60]!r} has no form in ASCII ({fault})") from None
    if re.fullmatch(_ENDS_IN_NUMBER, name) or not name.isascii() or any(mark in name for mark in ":[]%"):
        raise InvalidURL(f"host is not valid: {host[:60]!r} is an address in disguise ({name[:60]})")
    return name


def _is_ipv6(address: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, address)
    except OSError:
        return False
    return True


def check_source_address(source_address: SourceAddress | None) -> None:
    """Raise ValueError unless it is a (host, port) pair or ``None``; an empty host is any address."""
    if source_address is None:
        return
    fault = ValueError(f"source_address must be a (host, port) tuple, not {source_address!r}")
    if not isinstance(source_address, tuple) or len(source_address) not in (2, 4):
        raise fault
    host, port = source_address[:2]
    if not isinstance(host, str) or isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
        raise fault
    try:
        check_host(host or "any")
    except InvalidURL:
        raise fault from None
