"""One accepted connection of a `ScriptedServer`: what it received, and the means to answer.

Its one job is to be the other side for one script: `Peer` reads requests by their framing, sends what it is told,
and plays the script's steps one after the other, in the connection's own thread.

Its rules: each wait is bounded by the server's ``timeout`` and cut short by its end; a client that leaves is an
outcome, written on the `Peer`; everything else that ends a script early is handed to the server as a failure.  Of the
server it knows `_Server` alone, so that this file stands below it.  (PYTEST_DONT_REWRITE: see the package.)
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeAlias

_RECEIVE_BYTES: Final = 65536
_MAX_HEAD_BYTES: Final = 1 << 24  # a test may well send a huge head; a client gone mad should not fill memory
EVENT_SLICE: Final = 0.02  # seconds; one thread cannot wait for two events, see Peer.stall
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[^\r\n]*)?\r\n")


class Disconnected(ConnectionError):
    """The client left, or the server is being closed; leaving a script with it is an ordinary end."""


class RequestMissing(AssertionError):
    """The request an `ExpectHead` asked for did not come, or not whole."""

    def __init__(self, text: str, *, nothing_came: bool, was_optional: bool) -> None:
        super().__init__(text)
        self.nothing_came = nothing_came
        self.was_optional = was_optional


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


class _Server(Protocol):
    """The server, as far as one of its connections knows it."""

    timeout: float
    heads: list[bytes]
    _closing: threading.Event

    @property
    def is_closing(self) -> bool: ...

    def _notify(self) -> None: ...

    def _fail(self, error: BaseException, *, peer: Peer | None = None) -> None: ...


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

    def __init__(self, server: _Server, sock: socket.socket, index: int, client: object) -> None:
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
            elif until.wait(min(left, EVENT_SLICE)):  # in slices, to see the server's end in between
                return

    def half_close(self) -> None:
        """End this side of the stream (FIN, after a close_notify under TLS); reading goes on."""
        if self._is_write_closed:
            return
        self._is_write_closed = True
        self._send_close_notify()
        with contextlib.suppress(OSError):  # the client has gone, and the script's thread has closed the socket
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
        except RequestMissing as missing:
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


Script: TypeAlias = Sequence[Callable[[Peer], None]] | Callable[[Peer], None]
