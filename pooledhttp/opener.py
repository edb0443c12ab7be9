"""Opens the connections of one pool, as its settings say: TLS, tunnel, source address, Unix socket, limits.

It keeps no books: the pool claims a slot before, and counts afterwards.
"""

from __future__ import annotations

import base64
import socket
import ssl
from urllib.parse import unquote_to_bytes

from .config import PoolConfig, proxy_of
from .conn import HTTPConnection, HTTPSConnection
from .dial import Dialer, default_tls_context
from .errors import InvalidURL, TunnelError
from .origin import split_host_port
from .request import constant_fields
from .stats import ConnectFailure
from .timeouts import Deadline, Timeout


class Opener:
    """How to reach one origin.

    Args:
        host: Name or address; ``"host:port"`` and ``"[::1]:80"`` carry the port along.
        port: TCP port; ``None``: from `host`, else the scheme's.
        scheme: ``"http"`` or ``"https"``.
        config: The pool's settings.

    Attributes:
        scheme: As given.
        host: The host, without brackets.
        port: TCP port.
        shown: ``host:port``, with brackets around an IPv6 address.
        constant_fields: The fields that every request carries.
        given_attributes: What stands in the ``__dict__`` of each connection; anything else there is a borrower's.

    Raises:
        InvalidURL: Host, port or scheme is malformed.
    """

    def __init__(self, host: str, port: int | None, scheme: str, config: PoolConfig) -> None:
        if scheme not in {"http", "https"}:
            raise InvalidURL(f"scheme must be http or https, not {scheme!r}")
        default_port = 443 if scheme == "https" else 80
        self.scheme = scheme
        self.host, self.port = split_host_port(host, port, default_port)
        self.shown = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        self.constant_fields = constant_fields(self.host, self.port, default_port=default_port)
        self._config = config
        self._context = config.ssl_context
        self.given_attributes: dict[str, object] = {}
        if config.expect_continue_timeout != HTTPConnection.expect_continue_timeout:
            self.given_attributes["expect_continue_timeout"] = config.expect_continue_timeout
        self._proxy = _proxy_settings(config)
        dial_host, dial_port = (self._proxy[0], self._proxy[1]) if self._proxy else (self.host, self.port)
        self._dialer = Dialer(
            host=dial_host,
            port=dial_port,
            source_addresses=config.source_addresses,
            socket_options=config.socket_options,
            uds=config.uds,
        )

    def open(self, timeouts: Timeout, deadline: Deadline | None) -> HTTPConnection:
        """Return a connected connection with its limits set.

        Args:
            timeouts: `connect` bounds the opening, `read` and `write` what follows.
            deadline: When the whole call must be over, or ``None``.

        Raises:
            ConnectTimeout, TunnelError, OSError: As `HTTPConnection.connect`.
        """
        conn: HTTPConnection
        dialer, config = self._dialer, self._config
        if self.scheme == "https":
            if self._context is None:
                self._context = default_tls_context()
            conn = HTTPSConnection(dialer.host, dialer.port, context=self._context)
            conn._server_hostname = config.server_hostname
        else:
            conn = HTTPConnection(dialer.host, dialer.port)
        if self._proxy is not None:
            conn.set_tunnel(self.host, self.port, self._proxy[2])
        conn._constant_fields = self.constant_fields
        conn.__dict__.update(self.given_attributes)
        conn.bound(timeouts=timeouts, deadline=deadline, dialer=dialer, limits=config.limits, clock=config.clock)
        try:
            conn.connect()
        except BaseException:
            conn.close()  # it may have been interrupted behind its last step
            raise
        return conn


def failure_of(fault: BaseException) -> ConnectFailure:
    """Return what a failure to open a connection is counted as."""
    if isinstance(fault, TunnelError):
        return ConnectFailure.PROXY
    if isinstance(fault, ssl.SSLError):
        return ConnectFailure.TLS
    if isinstance(fault, TimeoutError):
        return ConnectFailure.TIMEOUT
    if isinstance(fault, socket.gaierror):
        return ConnectFailure.DNS
    return ConnectFailure.REFUSED if isinstance(fault, ConnectionRefusedError) else ConnectFailure.OTHER


def _proxy_settings(config: PoolConfig) -> tuple[str, int, dict[str, str]] | None:
    """Return host and port of the proxy, and the fields for it."""
    if config.proxy is None:
        return None
    host, port, userinfo = proxy_of(config.proxy)
    fields = dict(config.proxy_headers)
    if userinfo is not None:
        credentials = base64.b64encode(unquote_to_bytes(userinfo)).decode("ascii")
        fields.setdefault("Proxy-Authorization", f"Basic {credentials}")
    return host, port, fields
