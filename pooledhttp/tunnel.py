"""A CONNECT tunnel through a proxy (RFC 9110 section 9.3.6): asks for it, and sees that nothing else comes through.

Tunnel fields go to the proxy alone, and the origin's fields never do.  Plain text behind the proxy's answer would be
taken for what comes out of the tunnel, so it ends the connection before a TLS handshake could begin.
"""

from __future__ import annotations

import socket

from .errors import HTTPException, InvalidResponse, TunnelError
from .hints import Final
from .request import Field, lower
from .response import Body
from .timeouts import Clock, ConnectDeadline
from .transport import Transport, transport_for
from .wire import Head, Limits, parse_head, request_head

# How much of the body of a proxy's refusal is kept.
_REFUSAL_BYTES: Final = 65536


class Tunnel:
    """The tunnel that a connection shall go through.

    Args:
        host: The host behind the proxy.
        port: Its port.
        fields: Sent to the proxy with CONNECT; Host is added if it is not among them.
    """

    def __init__(self, host: str, port: int, fields: list[Field]) -> None:
        self.host = host
        self.port = port
        self._authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        has_host = any(lower(name) == "host" for name, _ in fields)
        self.fields = list(fields) if has_host else [("Host", self._authority), *fields]

    def request(self) -> bytes:
        """Return the CONNECT request (RFC 9112 section 3.2.3)."""
        return request_head("CONNECT", self._authority, self.fields)

    def open(
        self, sock: socket.socket, *, proxy: str, deadline: ConnectDeadline, limits: Limits, clock: Clock
    ) -> tuple[socket.socket, list[tuple[str, str]]]:
        """Ask the proxy on a connected socket for the tunnel; the socket is closed when that fails.

        Args:
            sock: Connected to the proxy.
            proxy: The proxy's name, for the errors' text.
            deadline: By when the answer must have come.
            limits: How much the proxy may send.
            clock: Seconds on a monotonic clock.

        Returns:
            The socket, now leading to the host behind the proxy, and the fields of the proxy's answer.

        Raises:
            TunnelError: The proxy refused.
            ConnectTimeout: It took too long.
            HTTPException: It answered with something else than HTTP, or with more than the head.
            OSError: The socket's own errors.
        """
        transport = transport_for(sock, clock=clock)
        try:
            # `finally` would not do: only a tunnel that stands keeps its socket.
            with_proxy = f"the proxy {proxy}"
            previous = transport.hurry(deadline)
            deadline.begin("the proxy's answer to CONNECT")
            transport.send(self.request())
            head = _final_head(transport, limits)
            if not 200 <= head.status < 300:
                raise _refused(transport, head, limits)
            if transport.has_leftover:
                raise InvalidResponse(f"{with_proxy} sent bytes behind its answer to CONNECT")
            transport.restore(previous)  # the documented timeout holds behind the tunnel too
        except BaseException:
            transport.close()
            raise
        return sock, head.fields


def _final_head(transport: Transport, limits: Limits) -> Head:
    for _ in range(limits.interim_responses + 1):
        head = parse_head(transport.receive_head(limits), method="CONNECT", limits=limits)
        if head.status >= 200:
            return head
    raise InvalidResponse(f"got more than {limits.interim_responses} interim responses")


def _refused(transport: Transport, head: Head, limits: Limits) -> TunnelError:
    body = Body(transport, head, limits)
    kept = bytearray()
    try:
        while len(kept) < _REFUSAL_BYTES and (piece := body.read_some(_REFUSAL_BYTES - len(kept))):
            kept += piece
    except (OSError, HTTPException):
        pass  # the refusal is the news; of its body we keep what came
    return TunnelError(
        f"Tunnel connection failed: {head.status} {head.reason}".rstrip(),
        status=head.status,
        headers=list(head.fields),
        body=bytes(kept),
    )
