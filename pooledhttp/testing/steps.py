"""The steps that a script is made of: what a peer expects, sends, waits for, and how it ends.

Each is a frozen dataclass that is called with the `Peer` and does one thing with it; what cannot be said with them is
said by any function of a `Peer`, of which `keep_alive_script` makes the usual one.  A script is a value: the same one
may be played by many connections at once, so a step keeps nothing about a connection.

Its place: above `peer`, whose methods do the work; the server does not know these names.
(PYTEST_DONT_REWRITE: see the package.)
"""

from __future__ import annotations

import functools
import http
import itertools
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .peer import Disconnected, Peer, ReceivedRequest, RequestMissing, Script


class Step:
    """The base of the steps below, for a common type; any other function of a `Peer` is as good.

    Called with the peer, it does its part.  It may let `Disconnected` out, and the script goes on with the next
    step; any other exception ends the script as a failure.
    """

    def __call__(self, peer: Peer) -> None:
        """Do it; a subclass says what."""
        raise NotImplementedError  # a bare Step in a script is a mistake, and fails it by name


@dataclass(frozen=True)
class ExpectHead(Step):
    """Read one request and keep it; the script fails if it does not come or is another one.

    Attributes:
        method: The method it must have; None: any.
        target: The target it must have; None: any.
        optional: Whether it may be missing or cut short; the script (or the `Repeat`) then ends quietly.
        body: Whether to read the body as well.
    """

    method: str | None = None
    target: str | None = None
    optional: bool = False
    body: bool = True

    def __call__(self, peer: Peer) -> None:
        """Read the request and compare it."""
        consumed = peer.received_count - len(peer._buffer)
        try:
            request = peer.read_request() if self.body else peer.read_head()
        except Disconnected as reason:
            count = peer.received_count - consumed
            text = f"the request did not come ({count} bytes of it): {reason}"
            raise RequestMissing(text, nothing_came=not count, was_optional=self.optional) from reason
        for wanted, got in ((self.method, request.method), (self.target, request.target)):
            if wanted not in (None, got):
                raise AssertionError(f"expected {wanted}, got {request.method} {request.target}")


@dataclass(frozen=True)
class ExpectBody(Step):
    """Read the body of the request whose head an ``ExpectHead(body=False)`` took; it must come whole."""

    def __call__(self, peer: Peer) -> None:
        """Read the body."""
        try:
            peer.read_body()
        except Disconnected as reason:
            raise AssertionError(f"the body did not come whole: {reason}") from reason


@dataclass(frozen=True)
class Send(Step):
    """Send raw bytes, whole or in pieces.

    Attributes:
        data: The bytes.
        piece: The size of a piece in bytes, each sent by a call of its own; None: all at once.
    """

    data: bytes
    piece: int | None = None

    def __call__(self, peer: Peer) -> None:
        """Send the bytes."""
        size = self.piece or max(1, len(self.data))
        peer.send_pieces(self.data[at : at + size] for at in range(0, len(self.data), size))


@dataclass(frozen=True)
class Respond(Step):
    """Send one correct response, in one call, that fits the last request (none to HEAD has a body).

    Attributes:
        status: The status code.
        body: The body; left out where HTTP allows none.
        headers: Fields as (name, value), sent first; one that is given here is not added again below.
        reason: The reason phrase; None: the usual one.
        version: The protocol version.
        chunked: Whether to send the body in one chunk, instead of a Content-Length.
        length: Whether to send Content-Length; without it and without chunks the connection closes afterwards.
        close: Whether to send ``Connection: close``, and close.
    """

    status: int = 200
    body: bytes = b""
    headers: Sequence[tuple[str, str]] = ()
    reason: str | None = None
    version: str = "HTTP/1.1"
    chunked: bool = False
    length: bool = True
    close: bool = False

    def encode(self, method: str = "GET") -> bytes:
        """Return the response to a request with this method, as bytes."""
        # RFC 9112 section 6.3: these have no body and, 304 and HEAD apart, may not have its fields either.
        is_tunnel = method == "CONNECT" and 200 <= self.status < 300
        may_have_body = self.status >= 200 and self.status not in (204, 304) and not is_tunnel
        names = {name.lower() for name, _ in self.headers}
        fields = list(self.headers)
        if may_have_body and not names & {"content-length", "transfer-encoding"}:
            if self.chunked:
                fields.append(("Transfer-Encoding", "chunked"))
            elif self.length:
                fields.append(("Content-Length", str(len(self.body))))
        if self.close and "connection" not in names:
            fields.append(("Connection", "close"))
        lines = [f"{self.version} {self.status} {self._reason()}", *(f"{name}: {value}" for name, value in fields)]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        if not may_have_body or method == "HEAD":
            return head
        chunk = b"%x\r\n%b\r\n" % (len(self.body), self.body) if self.body else b""
        return head + (chunk + b"0\r\n\r\n" if self.chunked else self.body)

    def __call__(self, peer: Peer) -> None:
        """Send the response to the last request."""
        method = peer.requests[-1].method if peer.requests else "GET"
        peer.send(self.encode(method) if method in ("HEAD", "CONNECT") else self._usual)
        if self.close or not (self.length or self.chunked):
            peer.close()

    @functools.cached_property
    def _usual(self) -> bytes:
        return self.encode()

    def _reason(self) -> str:
        if self.reason is not None:
            return self.reason
        try:
            return http.HTTPStatus(self.status).phrase
        except ValueError:
            return "Unknown"


@dataclass(frozen=True)
class Trickle(Step):
    """Send one byte at a time until all are sent or the client left.

    Attributes:
        data: The bytes.
        interval: The seconds between two of them, at most the server's ``timeout``.
    """

    data: bytes
    interval: float

    def __call__(self, peer: Peer) -> None:
        """Send the bytes."""
        for at in range(len(self.data)):
            if at:
                peer.stall(seconds=self.interval)
            if peer._server.is_closing:
                return
            peer.send(self.data[at : at + 1])


@dataclass(frozen=True)
class Stall(Step):
    """Do nothing, not even read, until one of these ends it; or the server's close does.

    Attributes:
        seconds: How long, at most the server's ``timeout``; None: no limit of its own.
        until: The event to wait for; None: none.
    """

    seconds: float | None = None
    until: threading.Event | None = None

    def __call__(self, peer: Peer) -> None:
        """Do nothing."""
        peer.stall(seconds=self.seconds, until=self.until)


@dataclass(frozen=True)
class Signal(Step):
    """Set an event, so that the test knows how far the script came."""

    event: threading.Event

    def __call__(self, peer: Peer) -> None:
        """Set the event."""
        self.event.set()
        peer._server._notify()


@dataclass(frozen=True)
class Mark(Step):
    """Remember under this name how much was received; see `Peer.mark`."""

    name: str

    def __call__(self, peer: Peer) -> None:
        """Set the mark."""
        peer.mark(self.name)


@dataclass(frozen=True)
class ReadToEnd(Step):
    """Read, and keep, all that comes until the client ends its side."""

    def __call__(self, peer: Peer) -> None:
        """Read to the end."""
        peer.read_to_end()


@dataclass(frozen=True)
class KeepOpen(ReadToEnd):
    """Hold the connection open until the client leaves or the server is closed; what comes is kept."""


@dataclass(frozen=True)
class StartTLS(Step):
    """Do the server's side of a TLS handshake: for a proxy that has answered CONNECT."""

    ssl_context: ssl.SSLContext

    def __call__(self, peer: Peer) -> None:
        """Do the handshake."""
        peer.start_tls(self.ssl_context)


@dataclass(frozen=True)
class HalfClose(Step):
    """End this side of the stream; the client may still send."""

    def __call__(self, peer: Peer) -> None:
        """End this side."""
        peer.half_close()


@dataclass(frozen=True)
class Reset(Step):
    """Close with a TCP reset."""

    def __call__(self, peer: Peer) -> None:
        """Reset the connection."""
        peer.reset()


@dataclass(frozen=True)
class Close(Step):
    """Close the connection; ``close_notify=False`` makes it a truncation under TLS. See `Peer.close`."""

    close_notify: bool = True

    def __call__(self, peer: Peer) -> None:
        """Close the connection."""
        peer.close(close_notify=self.close_notify)


@dataclass(frozen=True)
class Repeat(Step):
    """Play some steps again and again, while the connection lasts.

    Attributes:
        steps: The steps.
        times: How often; None: until the client ended its side or the script closed, and then an `ExpectHead`
            that meets the end before the first byte of a request is no failure.
    """

    steps: Sequence[Callable[[Peer], None]]
    times: int | None = None

    def __call__(self, peer: Peer) -> None:
        """Play the steps."""
        rounds = itertools.count() if self.times is None else range(self.times)
        for _ in rounds:
            if self.times is None and not peer.is_open:
                return
            try:
                peer._play(self.steps)
            except RequestMissing as missing:
                if missing.was_optional or (self.times is None and missing.nothing_came):
                    return
                raise


def keep_alive_script(respond: Callable[[ReceivedRequest], bytes]) -> Script:
    """Return a script that answers every request of a connection, for a simple server.

    It ends when the client leaves, or after a request or a response that says ``Connection: close``.

    Args:
        respond: Makes the whole response, head included, from a request; `Respond.encode` helps. It is called
            in the thread of its connection.
    """

    def serve(peer: Peer) -> None:
        while True:
            request = peer.read_request()
            response = respond(request)
            peer.send(response)
            head = response[: response.find(b"\r\n\r\n")]
            if b"\r\nconnection: close" in head.lower() or b"\r\nconnection: close" in request.head.lower():
                return

    return serve
