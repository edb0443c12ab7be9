"""A loopback peer that misbehaves on order, and an audit of what a test leaves behind.

Its one job: to let a test of an HTTP client say exactly what the other side does, and when.  A
`ScriptedServer` plays one script per accepted connection: steps (`ExpectHead`, `Send`, `Reset`, ...), each
called with the `Peer`; any function of a `Peer` is a step too.  `ResourceAudit` then tells whether
descriptors, threads and the counters of a pool came back to where they were.

Its rules: sockets are real; nothing is synchronised by sleeping; every wait is bounded by the server's
``timeout`` and cut short by ``close()``; whatever hits a bound or contradicts the script is a *failure* and is
raised when the server closes.  A client that leaves early is an outcome, written on the `Peer`, and no failure.

It is a pytest plugin too: ``pytest_plugins = ["pooledhttp.testing"]`` brings the fixtures ``scripted_server``
and ``audit``.  It holds no ``assert``, so nothing here is rewritten: PYTEST_DONT_REWRITE.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import http
import itertools
import os
import re
import selectors
import socket
import ssl
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, Protocol, Self, TypeAlias

__all__ = [
    "Close",
    "Disconnected",
    "ExpectBody",
    "ExpectHead",
    "HalfClose",
    "KeepOpen",
    "Mark",
    "Peer",
    "ReadToEnd",
    "ReceivedRequest",
    "Repeat",
    "Reset",
    "ResourceAudit",
    "Respond",
    "Script",
    "ScriptedServer",
    "Send",
    "ServerFactory",
    "Signal",
    "Stall",
    "StartTLS",
    "Step",
    "SupportsStats",
    "Trickle",
    "keep_alive_script",
]

_RECEIVE_BYTES: Final = 65536
_MAX_HEAD_BYTES: Final = 1 << 24  # a test may well send a huge head; a client gone mad should not fill memory
_EVENT_SLICE: Final = 0.02  # seconds; one thread cannot wait for two events, see Peer.stall
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[^\r\n]*)?\r\n")


class Disconnected(ConnectionError):
    """The client left, or the server is being closed; leaving a script with it is an ordinary end."""


class _RequestMissing(AssertionError):
    """The request an `ExpectHead` asked for did not come, or not whole."""

    def __init__(self, text: str, *, nothing_came: bool, was_optional: bool) -> None:
        super().__init__(text)
        self.nothing_came = nothing_came
        self.was_optional = was_optional


# ---------------------------------------------------------------- what was received


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """One request as the peer received it.

    Attributes:
        method: The method, as sent.
        target: The request target, as sent.
        version: ``"HTTP/1.1"`` or whatever stood there.
        fields: The header fields as (name, value), in order, latin-1 decoded, values stripped.
        body: The body without its framing; empty if it was not read.
        head: The raw bytes of the head, from the method to the empty line.
    """

    method: str
    target: str
    version: str
    fields: tuple[tuple[str, str], ...]
    body: bytes
    head: bytes

    def field(self, name: str) -> str | None:
        """Return the values of a field joined by ``", "``, or None if it was not sent; case is ignored."""
        wanted = name.lower()
        values = [value for key, value in self.fields if key.lower() == wanted]
        return ", ".join(values) if values else None


def _parse_head(head: bytes) -> ReceivedRequest:
    request_line, *lines = head[:-4].decode("latin-1").split("\r\n")
    parts = request_line.split(" ")
    if len(parts) != 3:
        raise ValueError(f"not a request line: {request_line!r}")
    fields = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise ValueError(f"not a header field: {line!r}")
        fields.append((name, value.strip(" \t")))
    return ReceivedRequest(parts[0], parts[1], parts[2], tuple(fields), b"", head)


# ---------------------------------------------------------------- one accepted connection


class Peer:
    """One accepted connection: what it received, and the means to answer.

    The methods belong to the script's own thread; the attributes may be read from any thread.  What reads or
    sends raises `Disconnected` if the client left or the server closes, and TimeoutError if nothing moved for
    the server's ``timeout``.  A function may let both escape: the first ends it quietly, the second fails it.

    Attributes:
        index: The connection's number in order of acceptance, from 0.
        sock: The socket; an `ssl.SSLSocket` after TLS started.
        client_address: The client's (host, port), or None on a Unix socket.
        requests: The requests in order; one read with its body appears when it is whole.
        received_count: How many bytes came in so far (decrypted ones under TLS).
        marks: Where `mark` was called: the number of bytes received until then, by name.
        ended: Set when the script is over and the socket closed.
        client_closed: Whether the end of the client's stream, or a reset, was seen.
        client_reset: Whether a reset was seen.
        tls_error: What broke TLS, if something did; a client that refuses the certificate leaves it here.
    """

    def __init__(self, server: ScriptedServer, sock: socket.socket, index: int, client: object) -> None:
        """Take over one accepted socket; only a `ScriptedServer` does this."""
        self.index = index
        self.sock = sock
        self.client_address = (str(client[0]), int(client[1])) if isinstance(client, tuple) else None
        self.requests: list[ReceivedRequest] = []
        self.received_count = 0
        self.marks: dict[str, int] = {}
        self.ended = threading.Event()
        self.client_closed = False
        self.client_reset = False
        self.tls_error: ssl.SSLError | None = None
        self._server = server
        self._chunks: list[bytes] = []
        self._buffer = bytearray()
        self._step: object = "the start"
        self._is_closed = False
        self._is_write_closed = False
        self._is_cut_short = False
        # Guards the change of `sock` and its closing against _interrupt(); nothing that waits is done under it.
        self._lock = threading.Lock()

    @property
    def received(self) -> bytes:
        """Every byte received so far, in order (decrypted ones under TLS)."""
        return b"".join(self._chunks)

    @property
    def unread(self) -> bytes:
        """The bytes that were received but not consumed: what came behind a request."""
        return bytes(self._buffer)

    @property
    def is_open(self) -> bool:
        """Whether neither side ended the connection and the server is not being closed."""
        return not (self._is_closed or self.client_closed or self._server.is_closing)

    def mark(self, name: str) -> None:
        """Take in what has arrived, without waiting, and remember the position under this name.

        Put it *before* the action whose effect is in question; `received_since` then tells what came after.
        """
        if not self._is_closed:
            self.sock.settimeout(0)
            with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError, Disconnected):
                while True:
                    self._receive()
            self.sock.settimeout(self._server.timeout)
        self.marks[name] = self.received_count
        self._server._notify()

    def received_since(self, name: str) -> bytes:
        """Return the bytes received after `mark` was called with this name; KeyError if it never was."""
        return self.received[self.marks[name] :]

    def read_head(self) -> ReceivedRequest:
        """Read one request head and keep it, with an empty body; ValueError if it is malformed."""
        return self._keep(self._read_head())

    def read_body(self) -> bytes:
        """Read the body of the last request by its framing, put it into ``requests[-1]`` and return it."""
        body = self._read_body(self.requests[-1])
        self.requests[-1] = replace(self.requests[-1], body=body)
        self._server._notify()
        return body

    def read_request(self) -> ReceivedRequest:
        """Read one request with its body (Content-Length or chunked) and keep it; ValueError if malformed."""
        request = self._read_head()
        body = self._read_body(request)
        return self._keep(replace(request, body=body) if body else request)

    def read_to_end(self) -> bytes:
        """Read until the client ends its side; return what was not consumed before, `unread` included."""
        with contextlib.suppress(Disconnected):
            while not self._server.is_closing:
                self._receive()
        return self._take(len(self._buffer))

    def send(self, data: bytes) -> None:
        """Send all of it; ValueError if the script closed this side before."""
        if self._is_write_closed:
            raise ValueError("the script closed this side of the connection before")
        try:
            self.sock.sendall(data)
        except TimeoutError:
            raise TimeoutError(f"the client did not take {len(data)} bytes in {self._server.timeout:g} s") from None
        except OSError as error:
            raise self._gone(error) from error

    def send_pieces(self, pieces: Iterable[bytes]) -> None:
        """Send each piece by a call of its own; without Nagle's delay it leaves in segments of its own."""
        for piece in pieces:
            self.send(piece)

    def stall(self, *, seconds: float | None = None, until: threading.Event | None = None) -> None:
        """Do nothing, not even read, until the seconds passed, the event is set or the server is closed.

        Args:
            seconds: How long; None: as long as it takes.
            until: The event to wait for; None: only the server's end.

        Raises:
            TimeoutError: The server's ``timeout`` passed first.
        """
        limit = self._server.timeout
        is_bounded = seconds is not None and seconds <= limit
        end = time.monotonic() + (seconds if seconds is not None and is_bounded else limit)
        while not self._server.is_closing:
            left = end - time.monotonic()
            if left <= 0 and is_bounded:
                return
            if left <= 0:
                raise TimeoutError(f"stalled for {limit:g} s, the server's timeout, and nothing ended it")
            if until is None:
                self._server._closing.wait(left)
            elif until.wait(min(left, _EVENT_SLICE)):  # in slices, to see the server's end in between
                return

    def half_close(self) -> None:
        """End this side of the stream (FIN, after a close_notify under TLS); reading goes on."""
        if self._is_write_closed:
            return
        self._is_write_closed = True
        self._send_close_notify()
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_WR)
        self.sock.settimeout(self._server.timeout)

    def reset(self) -> None:
        """Close with a TCP reset (SO_LINGER 0); a Unix socket knows none and is just closed."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = self._is_write_closed = True
                self._close_by_reset()

    def close(self, *, close_notify: bool = True) -> None:
        """Close the connection (FIN); doing it again is harmless.

        The kernel adds a reset if bytes of the client were not read; `half_close` and `read_to_end` avoid it.

        Args:
            close_notify: Whether TLS says goodbye; False looks like a truncation. Without TLS, no difference.
        """
        with self._lock:
            if self._is_closed:
                return
            if close_notify and not self._is_write_closed:
                self._send_close_notify()
            self._is_closed = self._is_write_closed = True
            if self._is_cut_short:
                self._close_by_reset()
                return
            with contextlib.suppress(OSError):  # shutdown, since a forked child may hold the descriptor too
                socket.socket.shutdown(self.sock, socket.SHUT_WR)
            self.sock.close()

    def start_tls(self, ssl_context: ssl.SSLContext) -> None:
        """Do the server's side of a TLS handshake over this connection.

        Raises:
            Disconnected: The handshake failed; `tls_error` says how.
            ValueError: TLS is on already, or the client sent bytes before it was its turn.
        """
        if isinstance(self.sock, ssl.SSLSocket):
            raise ValueError("TLS is on already; TLS inside TLS is not supported")
        if self._buffer:
            raise ValueError(f"bytes came before TLS could start: {self.unread[:64]!r}")
        try:
            with self._lock:
                # Until the new object is there, the descriptor belongs to neither: hence the lock.
                tls = ssl_context.wrap_socket(self.sock, server_side=True, do_handshake_on_connect=False)
                self.sock = tls
            tls.do_handshake()
        except TimeoutError:
            raise TimeoutError(f"no TLS handshake in {self._server.timeout:g} s") from None
        except OSError as error:
            raise self._gone(error) from error

    def _keep(self, request: ReceivedRequest) -> ReceivedRequest:
        self.requests.append(request)
        self._server._notify()
        return request

    def _read_head(self) -> ReceivedRequest:
        head = self._take_through(b"\r\n\r\n")
        self._server.heads.append(head)
        return _parse_head(head)

    def _read_body(self, request: ReceivedRequest) -> bytes:
        coding = request.field("transfer-encoding")
        if coding is not None and coding.lower().split(",")[-1].strip() == "chunked":
            return self._read_chunks()
        length = request.field("content-length") or "0"
        if coding is not None or not (length.isascii() and length.isdigit()):
            raise ValueError(f"no way to read a body of Transfer-Encoding {coding!r}, Content-Length {length!r}")
        return self._take(int(length))

    def _read_chunks(self) -> bytes:
        body = bytearray()
        while True:
            line = _CHUNK_LINE.fullmatch(framing := self._take_through(b"\r\n"))
            if line is None:
                raise ValueError(f"not a chunk size: {framing[:64]!r}")
            if not (size := int(line[1], 16)):
                break
            body += self._take(size)
            if (ending := self._take(2)) != b"\r\n":
                raise ValueError(f"{ending!r} where a chunk of {size} bytes should have ended")
        while self._take_through(b"\r\n") != b"\r\n":
            pass  # a trailer field: it is in `received`, which is enough
        return bytes(body)

    def _take_through(self, marker: bytes) -> bytes:
        start = 0
        while (at := self._buffer.find(marker, start)) < 0:
            if len(self._buffer) > _MAX_HEAD_BYTES:
                raise ValueError(f"no {marker!r} in {len(self._buffer)} bytes")
            start = max(0, len(self._buffer) - len(marker) + 1)
            self._receive()
        return self._take(at + len(marker))

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._receive()
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def _receive(self) -> None:
        """Add what comes next to the buffer, at least one byte; the only place that reads from the socket."""
        if self._is_closed:
            raise Disconnected("the script closed this connection")
        try:
            data = self.sock.recv(_RECEIVE_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError):  # only in mark()
            raise
        except TimeoutError:
            raise TimeoutError(f"no byte from the client in {self._server.timeout:g} s") from None
        except OSError as error:
            raise self._gone(error) from error
        if not data:
            raise self._gone(None)
        self._chunks.append(data)
        self._buffer += data
        self.received_count += len(data)
        # After _interrupt() Linux sends no more window updates; if this emptied the queue of a client that is
        # still sending, an ordinary close would leave it waiting for one until its own timeout.
        self._is_cut_short = self._server.is_closing
        self._server._notify()

    def _gone(self, error: OSError | None) -> Disconnected:
        if isinstance(error, ssl.SSLError):
            self.tls_error = error
        if self._server.is_closing:
            return Disconnected("the server is being closed")
        self.client_reset = self.client_reset or isinstance(error, ConnectionResetError)
        self.client_closed = True
        self._server._notify()
        return Disconnected(f"the client left: {error or 'end of its stream'}")

    def _send_close_notify(self) -> None:
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock.settimeout(0)  # unwrap() would wait for the client's close_notify; sending ours is enough
            with contextlib.suppress(OSError, ValueError):
                self.sock.unwrap()

    def _close_by_reset(self) -> None:
        with contextlib.suppress(OSError):  # the client was faster
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def _interrupt(self) -> None:
        # The unbound method: SSLSocket.shutdown() would drop the TLS state under the script's feet.
        with self._lock, contextlib.suppress(OSError):
            if not self._is_closed:
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)

    def _run(self, script: Script, ssl_context: ssl.SSLContext | None) -> None:
        try:
            if ssl_context is not None:
                self._step = "the TLS handshake"
                self.start_tls(ssl_context)
            self._play(script if isinstance(script, Sequence) else (script,))
        except Disconnected:
            pass
        except _RequestMissing as missing:
            if not missing.was_optional:
                self._server._fail(missing, peer=self)
        except BaseException as error:  # pytest.fail() is no Exception; above a thread nobody is left to see it
            self._server._fail(error, peer=self)
        finally:
            self.close()
            self.ended.set()
            self._server._notify()

    def _play(self, steps: Sequence[Callable[[Peer], None]]) -> None:
        for step in steps:
            self._step = step
            with contextlib.suppress(Disconnected):  # a later step may still have its demand, or its signal
                step(self)


# ---------------------------------------------------------------- the steps of a script


class Step:
    """The base of the steps below, for a common type; any other function of a `Peer` is as good.

    Called with the peer, it does its part.  It may let `Disconnected` out, and the script goes on with the next
    step; any other exception ends the script as a failure.
    """

    def __call__(self, peer: Peer) -> None:
        """Do it; a subclass says what."""
        raise NotImplementedError


Script: TypeAlias = Sequence[Callable[[Peer], None]] | Callable[[Peer], None]


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
            raise _RequestMissing(text, nothing_came=not count, was_optional=self.optional) from reason
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
            except _RequestMissing as missing:
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


# ---------------------------------------------------------------- the server


class ScriptedServer:
    """A loopback server that plays one script per accepted connection, each in a thread of its own.

    The i-th connection plays the i-th script, later ones the ``default``.  After its last step a connection is
    closed (FIN).  A script nobody connected for is no failure: compare `accepted`.

    Use it in a ``with`` statement, or call `start` and `close`.

    Attributes:
        host: Where it listens; "localhost" on a Unix socket.
        port: The port, once started; 0 on a Unix socket.
        uds: The path of the Unix socket, or None.
        timeout: The bound on each wait, in seconds.
        connections: The accepted connections, in order.
        heads: The raw request heads of all connections, in order of arrival.
        failures: What went against the scripts so far.
    """

    def __init__(
        self,
        *scripts: Script,
        default: Script | None = None,
        ssl_context: ssl.SSLContext | None = None,
        uds: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        timeout: float = 10.0,
    ) -> None:
        """Prepare a server; nothing is opened before `start`.

        Args:
            *scripts: What the first, second, ... connection plays.
            default: What every further one plays; None: it is closed at once, which is a failure.
            ssl_context: Makes every connection start with a TLS handshake; None: plain, until a `StartTLS`.
            uds: Path of a Unix socket to listen on instead of TCP; removed at the end.
            host: The address to listen on.
            port: The port to listen on (to come back after a restart); 0: a free one.
            timeout: The bound, in seconds, on each single wait; one that is reached is a failure.
        """
        self.host = host if uds is None else "localhost"
        self.port = port if uds is None else 0
        self.uds = uds
        self.timeout = timeout
        self.connections: list[Peer] = []
        self.heads: list[bytes] = []
        self.failures: list[AssertionError] = []
        self._scripts = scripts
        self._default = default
        self._ssl_context = ssl_context
        self._opened: contextlib.ExitStack | None = None
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()
        self._changed = threading.Condition()  # guards nothing: it wakes wait_until() after something happened

    @property
    def accepted(self) -> int:
        """How many connections were accepted, the unexpected ones included."""
        return len(self.connections)

    @property
    def address(self) -> tuple[str, int]:
        """(host, port), as `socket.create_connection` takes it."""
        return self.host, self.port

    @property
    def url(self) -> str:
        """The root URL without a trailing slash: ``http://127.0.0.1:40001``; ``http://localhost`` on a Unix socket."""
        scheme = "http" if self._ssl_context is None else "https"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}" if self.uds is None else f"{scheme}://{host}"

    @property
    def requests(self) -> list[ReceivedRequest]:
        """The requests of all connections, connection by connection."""
        return [request for peer in list(self.connections) for request in list(peer.requests)]

    @property
    def is_closing(self) -> bool:
        """Whether `close` was called."""
        return self._closing.is_set()

    def start(self) -> Self:
        """Listen and accept; OSError if the address cannot be had, RuntimeError if it was started before."""
        if self._opened is not None:
            raise RuntimeError("a ScriptedServer starts once; make a new one, with port=, for a restart")
        with contextlib.ExitStack() as stack:  # closed at once if anything fails, else by close()
            listener = stack.enter_context(self._listen())
            selector = stack.enter_context(selectors.DefaultSelector())
            self._alarm, alarm_receiver = map(stack.enter_context, socket.socketpair())
            selector.register(listener, selectors.EVENT_READ)
            selector.register(alarm_receiver, selectors.EVENT_READ)
            if self.uds is None:
                self.port = int(listener.getsockname()[1])
            self._acceptor = threading.Thread(
                target=self._accept_all, args=(listener, selector), name=f"scripted-server-{self.port}", daemon=True
            )
            self._acceptor.start()
            self._opened = stack.pop_all()
        return self

    def close(self) -> None:
        """End every script, join every thread, close every socket; again and it does nothing.

        Raises:
            AssertionError: There were failures; it lists all, and its cause is an ExceptionGroup of them.
        """
        if self._opened is None or self._closing.is_set():
            return
        end = time.monotonic() + self.timeout
        self._closing.set()
        self._alarm.close()  # which makes the other end readable
        self._acceptor.join(self.timeout)
        self._opened.close()
        if self.uds is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.uds)
        for peer in self.connections:
            peer._interrupt()
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                self._fail(TimeoutError(f"{thread.name} still runs {self.timeout:g} s after close()"))
        for peer in self.connections:
            peer.close()
        if self.failures:
            raise AssertionError(self._failure_text()) from ExceptionGroup("failures", self.failures)

    def peer(self, index: int = 0, timeout: float | None = None) -> Peer:
        """Return the connection with this number, waiting for it as `wait_until` does."""
        self.wait_until(lambda: self.accepted > index, timeout)
        return self.connections[index]

    def wait_until(self, predicate: Callable[[], bool], timeout: float | None = None) -> None:
        """Wait until the predicate holds; it is asked again after everything that happens in this server.

        Args:
            predicate: A quick question about this server or its connections.
            timeout: The bound in seconds; None: the server's own.

        Raises:
            TimeoutError: It did not hold in time; the text says how far each script came.
        """
        limit = self.timeout if timeout is None else timeout
        with self._changed:
            if self._changed.wait_for(predicate, limit):
                return
        name = getattr(predicate, "__qualname__", repr(predicate))
        raise TimeoutError(f"{name} did not hold within {limit:g} s; {self._describe()}")

    def __enter__(self) -> Self:
        """Start the server."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the server; if the block raised already, failures become a note of that exception."""
        try:
            self.close()
        except AssertionError as failure:
            if error is None:
                raise
            error.add_note(str(failure))

    def _listen(self) -> socket.socket:
        if self.uds is None:
            family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
            listener = socket.create_server((self.host, self.port), family=family, backlog=1024)
        else:
            listener = socket.socket(socket.AF_UNIX)
            try:
                listener.bind(self.uds)
                listener.listen(1024)
            except BaseException:
                listener.close()
                raise
        listener.setblocking(False)
        return listener

    def _accept_all(self, listener: socket.socket, selector: selectors.BaseSelector) -> None:
        while True:
            selector.select()
            try:
                sock, client = listener.accept()
            except BlockingIOError:
                if self._closing.is_set():  # only now: who connected before close() is not overlooked
                    return
            except OSError:  # the client gave up already, or this process is out of descriptors
                if self._closing.wait(_EVENT_SLICE):
                    return
            else:
                self._welcome(sock, client)

    def _welcome(self, sock: socket.socket, client: object) -> None:
        sock.settimeout(self.timeout)
        if self.uds is None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        index = len(self.connections)
        script = self._scripts[index] if index < len(self._scripts) else self._default
        peer = Peer(self, sock, index, client)
        self.connections.append(peer)
        if script is None:
            self._fail(AssertionError(f"unexpected: {len(self._scripts)} scripts and no default"), peer=peer)
            peer._run((), None)
            return
        thread = threading.Thread(
            target=peer._run, args=(script, self._ssl_context), name=f"scripted-peer-{index}-{self.port}", daemon=True
        )
        self._threads.append(thread)
        thread.start()
        self._notify()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _fail(self, error: BaseException, *, peer: Peer | None = None) -> None:
        where = "" if peer is None else f"connection {peer.index}, {peer._step!r:.120}: "
        what = str(error) if isinstance(error, (AssertionError, TimeoutError)) else repr(error)
        failure = AssertionError(where + what)
        failure.__cause__ = error
        self.failures.append(failure)
        self._notify()

    def _failure_text(self) -> str:
        return "\n  ".join([f"{len(self.failures)} failure(s) of ScriptedServer:", *map(str, self.failures)])

    def _describe(self) -> str:
        lines = [f"{self.accepted} connections were accepted", *map(str, self.failures)]
        for peer in list(self.connections):
            state = "ended" if peer.ended.is_set() else f"at {peer._step!r:.120}"
            seen = f"{peer.received_count} bytes, {len(peer.requests)} requests"
            lines.append(f"connection {peer.index}: {seen}, {state}{', client left' if peer.client_closed else ''}")
        return "\n  ".join(lines)


# ---------------------------------------------------------------- the audit


class SupportsStats(Protocol):
    """A pool, as far as the audit cares."""

    def stats(self) -> object:
        """Return an object with the int attributes idle, leased, opening, waiting and maxsize."""


class ResourceAudit:
    """What was open when it was made (descriptors, threads), and whether it is so again.

    As a context manager it checks at the end of the block, unless the block raised.
    """

    def __init__(self) -> None:
        """Remember the open descriptors and the live threads of this process."""
        self._descriptors = _open_descriptors()
        self._threads = set(threading.enumerate())
        self._pools: list[SupportsStats] = []

    def watch(self, pool: SupportsStats) -> None:
        """Have the counters of a pool looked at by each `check`, before anything else; it is not closed."""
        self._pools.append(pool)

    def check(self, timeout: float = 5.0) -> None:
        """Wait until no descriptor and no thread is left that was not there at the start.

        Args:
            timeout: The bound in seconds.

        Raises:
            AssertionError: Some were left (the text says which), or a watched pool failed `check_pool`.
        """
        for pool in self._pools:
            self.check_pool(pool)
        end = time.monotonic() + timeout
        pause = threading.Event()  # never set: Event.wait lets the other threads finish
        while surplus := self._surplus():
            if time.monotonic() > end:
                text = "\n  ".join([f"left over after {timeout:g} s:", *(describe() for describe in surplus)])
                raise AssertionError(text)
            gc.collect()
            pause.wait(0.01)

    def check_pool(self, pool: SupportsStats) -> None:
        """Check that a pool at rest adds up: nothing leased, opening or waited for, nothing lost.

        Args:
            pool: Its ``stats()`` has the ints idle, leased, opening, waiting and maxsize, and may have opened
                (an int) and closed (ints by reason).

        Raises:
            AssertionError: It does not add up; the text holds the numbers.
            TypeError: One of the numbers is missing.
        """
        stats = pool.stats()
        idle, leased, opening, waiting, maxsize = (
            _number(stats, name) for name in ("idle", "leased", "opening", "waiting", "maxsize")
        )
        text = f"{idle} idle, {leased} leased, {opening} opening, {waiting} waiting of {maxsize}"
        if idle + leased + opening > maxsize:
            raise AssertionError(f"more connections than maxsize: {text}")
        if leased or opening or waiting:
            raise AssertionError(f"the pool is not at rest: {text}")
        closed = getattr(stats, "closed", None)
        if isinstance(closed, Mapping) and hasattr(stats, "opened"):
            opened, ended = _number(stats, "opened"), sum(closed.values())
            if opened != ended + idle + leased:
                raise AssertionError(f"{opened} opened is not {ended} closed + {idle} idle + {leased} leased")

    def __enter__(self) -> Self:
        """Return the audit; it was taken when it was made."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Check, unless the block raised."""
        if error is None:
            self.check()

    def _surplus(self) -> list[Callable[[], str]]:
        """Return one describer per surplus thing: looking into a socket is for the failure only."""
        descriptors = sorted(_open_descriptors().items() - self._descriptors.items())
        threads = [thread for thread in threading.enumerate() if thread not in self._threads]
        return [
            *(functools.partial(_describe_descriptor, number, link) for number, link in descriptors),
            *(functools.partial("thread {!r}".format, thread) for thread in threads),
        ]


def _open_descriptors() -> dict[int, str]:
    """Return what each open descriptor is, by number; the one that the listing itself used is not there."""
    directory = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    found = {}
    for name in os.listdir(directory):
        with contextlib.suppress(OSError):  # the listing's own descriptor is gone by now
            status = os.fstat(int(name))
            try:
                found[int(name)] = os.readlink(f"{directory}/{name}")
            except OSError:  # no links here (macOS)
                found[int(name)] = f"mode {status.st_mode:o}, inode {status.st_ino}"
    return found


def _describe_descriptor(number: int, link: str) -> str:
    text = f"descriptor {number}: {link}"
    with contextlib.suppress(OSError):  # it may close meanwhile, or be connected to nobody
        if stat.S_ISSOCK(os.fstat(number).st_mode):
            with socket.socket(fileno=os.dup(number)) as sock:  # what closes here is the copy
                text += f", {sock.family.name} {sock.getsockname()}"
                text += f" -> {sock.getpeername()}"
    return text


def _number(stats: object, name: str) -> int:
    value = getattr(stats, name, None)
    if not isinstance(value, int):
        raise TypeError(f"stats() of a watched pool needs an int {name!r}, has {value!r}")
    return value


# ---------------------------------------------------------------- the pytest plugin


class ServerFactory:
    """What the fixture ``scripted_server`` is: call it like `ScriptedServer`; what it returns is started."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        """Register the servers with a stack that closes them."""
        self._stack = stack

    def __call__(
        self,
        *scripts: Script,
        default: Script | None = None,
        ssl_context: ssl.SSLContext | None = None,
        uds: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        timeout: float = 10.0,
    ) -> ScriptedServer:
        """Start a server that is closed, and its failures raised, when the test is over."""
        server = ScriptedServer(
            *scripts, default=default, ssl_context=ssl_context, uds=uds, host=host, port=port, timeout=timeout
        )
        self._stack.callback(server.close)
        return server.start()


try:
    import pytest
except ImportError:  # then there are no fixtures
    pass
else:

    @pytest.fixture
    def audit() -> Iterator[ResourceAudit]:
        """Take an audit before the test and check it after; ``audit.watch(pool)`` includes a pool's counters."""
        taken = ResourceAudit()
        yield taken
        taken.check()

    @pytest.fixture
    def scripted_server(audit: ResourceAudit) -> Iterator[ServerFactory]:
        """Make servers that are closed and checked after the test, and before the audit (hence requested here)."""
        with contextlib.ExitStack() as stack:
            yield ServerFactory(stack)
