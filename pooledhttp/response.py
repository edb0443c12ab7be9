"""Reads one response: its head, then its body, and knows when that body is complete.

*Complete* means that the framing said so (RFC 9112 section 6.3).  A body that ends in any other way is a fault,
never a short body.  `Body` does the framing and knows nothing of connections; whoever reads it tells the
connection when it is complete or broken.  Two faces stand in front of it: `HTTPResponse`, the documented file-like
object, and `Response`, the finished result of `ConnectionPool.request`.
"""

from __future__ import annotations

import io
import socket
from collections.abc import Iterable, Iterator, Sequence
from http.client import HTTPMessage

from .errors import IncompleteRead, InvalidChunk, InvalidResponse, ResponseNotReady
from .frozen import Frozen
from .hints import TYPE_CHECKING, Any, Protocol, TypeVar, overload
from .transport import BODY_RECEIVE_BYTES, RECEIVE_BYTES, ForeignSocket, Transport, transport_for
from .wire import DEFAULT_LIMITS, Head, Limits, parse_chunk_line, parse_head, parse_trailer

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_Default = TypeVar("_Default")
_SECRET_FIELDS = {"set-cookie"}
# The most memory that is reserved for a body, as a multiple of what has arrived of it.
_RESERVED_AHEAD = 32


def read_head(transport: Transport, method: str, limits: Limits = DEFAULT_LIMITS) -> Head:
    """Receive heads until the final one (RFC 9110 section 15.2): 1xx are skipped, but 101 is final.

    Args:
        transport: Where to receive from.
        method: The request's method; it decides whether a body follows.
        limits: What is too much.

    Raises:
        RemoteDisconnected: The peer ended the connection before the first byte.
        HTTPException: What came is no HTTP/1 head, or over a limit.
        OSError: The socket's own errors, timeouts among them.
    """
    is_persistent = True
    for _ in range(limits.interim_responses + 1):
        head = parse_head(transport.receive_head(limits), method, limits)
        # What ends an interim head in doubt, or says that the connection closes, holds for all that follows.
        head.is_persistent = is_persistent = is_persistent and head.is_persistent
        if head.status >= 200 or head.status == 101:
            return head
    raise InvalidResponse(f"got more than {limits.interim_responses} interim responses")


class Body:
    """The body of one response on its transport.

    Args:
        transport: Where the body comes from.
        head: The head that stood in front of it.
        limits: What is too much.

    Attributes:
        left: Bytes still to come, or ``None`` when only chunks or the connection's end tell.
        is_complete: Whether the framing said that the body has ended.
        trailers: The fields behind a chunked body (RFC 9112 section 7.1.2); not merged into the headers.
    """

    # What every body has; a dictionary is made only for one that differs from what stands below.
    __slots__ = ("__dict__", "_head", "_limits", "_transport", "is_complete", "left")

    # Of the class, where most bodies find them: they cost nothing to set.
    _chunk_left = -1  # -1: the next line is the first chunk's size; 0: CRLF, then the next one's
    _extension_bytes = 0
    trailers: Sequence[tuple[str, str]] = ()

    def __init__(self, transport: Transport, head: Head, limits: Limits = DEFAULT_LIMITS) -> None:
        self._transport = transport
        self._head = head
        self._limits = limits
        self.left = left = head.length
        self.is_complete = left == 0

    def read_some(self, limit: int) -> bytes:
        """Return at least one and at most `limit` bytes; none when the body is complete.

        Raises:
            IncompleteRead: The connection ended before the body did.
            InvalidChunk: The chunk framing is broken.
            OSError: The socket's own errors, timeouts among them.
        """
        if self.is_complete or limit <= 0:
            return b""
        if self._head.chunked:
            if self._chunk_left <= 0 and not self._begin_chunk():
                return b""
            piece = self._transport.take(min(limit, self._chunk_left))
            if not piece:
                raise self._truncated(self._chunk_left)
            self._chunk_left -= len(piece)
            return piece
        left = self.left
        if left is None:
            piece = self._transport.take(limit)
            if not piece:
                self._end_with_connection()
            return piece
        piece = self._transport.take(min(limit, left))
        if not piece:
            raise self._truncated(left)
        self.left = left - len(piece)
        if not self.left:
            self.is_complete = True
        return piece

    def read_into(self, view: memoryview) -> int:
        """Fill a writable view with at least one byte, without a copy where possible; 0 when complete.

        Raises:
            IncompleteRead: The connection ended before the body did.
            InvalidChunk: The chunk framing is broken.
            OSError: The socket's own errors, timeouts among them.
        """
        if self.is_complete or not view:
            return 0
        if self._head.chunked:
            if self._chunk_left <= 0 and not self._begin_chunk():
                return 0
            with view[: self._chunk_left] as part:
                count = self._transport.take_into(part)
            if not count:
                raise self._truncated(self._chunk_left)
            self._chunk_left -= count
            return count
        left = self.left
        if left is None:
            count = self._transport.take_into(view)
            if not count:
                self._end_with_connection()
            return count
        with view[:left] as part:
            count = self._transport.take_into(part)
        if not count:
            raise self._truncated(left)
        self.left = left - count
        if not self.left:
            self.is_complete = True
        return count

    def read_all(self) -> bytes:
        """Return everything that is left.

        Raises:
            IncompleteRead: The connection ended before the body did; `partial` holds what had come.
            InvalidChunk: The chunk framing is broken.
            OSError: The socket's own errors, timeouts among them.
        """
        if self.is_complete:
            return b""
        first = self.read_some(BODY_RECEIVE_BYTES)
        if self.is_complete:
            return first
        return self.read_behind(first, None)

    def read_behind(self, first: bytes, limit: int | None) -> bytes:
        """Return `first`, and behind it everything that is left, or what makes it `limit` bytes in all.

        Raises:
            IncompleteRead: The connection ended before the body did; `partial` holds what had come.
            InvalidChunk: The chunk framing is broken.
            OSError: The socket's own errors, timeouts among them.
        """
        left = self.left
        if left is None:
            return self._gather(first, limit)
        due = left if limit is None else min(left, limit - len(first))
        return self._fill(first, len(first) + due)

    def _gather(self, first: bytes, limit: int | None) -> bytes:
        """Return `first` and what follows, whose length nobody knows yet."""
        pieces = [first]
        missing = BODY_RECEIVE_BYTES if limit is None else limit - len(first)
        try:
            while piece := self.read_some(min(missing, BODY_RECEIVE_BYTES)):
                pieces.append(piece)
                if limit is not None:
                    missing -= len(piece)
        except IncompleteRead as fault:
            fault.partial = b"".join(pieces)
            raise
        return b"".join(pieces)

    def _fill(self, first: bytes, length: int) -> bytes:
        """Return `first` and what follows, `length` bytes in all, received straight into what is returned."""
        filled = len(first)
        arrived = first
        while True:
            # Memory grows with what arrives, never with what a length promises; in equal steps back from the end, so
            # that no large part is copied shortly before it.
            size = length
            while size > max(_RESERVED_AHEAD * filled, RECEIVE_BYTES):
                size = size // _RESERVED_AHEAD + 1
            # BytesIO lets us write into a bytes object before anybody else has it, and gives it away without a copy.
            # bytes(size) is memory that the kernel provides page by page, when something is written there.
            holder = io.BytesIO(bytes(size))
            # Views are let go of even by an error, whose traceback would keep them: while there is one, BytesIO
            # cannot be taken down.
            with holder.getbuffer() as view:
                view[:filled] = arrived
                try:
                    while filled < size:
                        with view[filled:] as rest:
                            count = self.read_into(rest)
                        if not count:
                            # Somebody else has read, or closed, it meanwhile: another thread, a signal's handler.
                            raise self._truncated(length - filled)
                        filled += count
                except IncompleteRead as fault:
                    fault.partial = bytes(view[:filled])
                    raise
            arrived = holder.getvalue()
            if size == length:
                return arrived

    def read_line(self, limit: int) -> bytes:
        """Return bytes up to and with the next newline, at most `limit` (-1: unbounded); none when complete."""
        line = bytearray()
        try:
            while not self.is_complete and (limit < 0 or len(line) < limit):
                transport = self._transport
                if self._head.chunked and self._chunk_left <= 0 and not self._begin_chunk():
                    break
                if not transport.buffer:
                    # One byte at most would be taken beyond the line by a transport that reads exactly.
                    piece = self.read_some(1)
                else:
                    newline = transport.buffer.find(b"\n", transport.at)
                    here = (newline + 1 if newline >= 0 else len(transport.buffer)) - transport.at
                    piece = self.read_some(here if limit < 0 else min(here, limit - len(line)))
                line += piece
                if piece.endswith(b"\n"):
                    break
        except IncompleteRead as fault:
            fault.partial = bytes(line)
            raise
        return bytes(line)

    def peek(self) -> bytes:
        """Return bytes of the body that have been received already, without taking them; may be none."""
        if self.is_complete:
            return b""
        if self._head.chunked and self._chunk_left <= 0 and not self._begin_chunk():
            return b""
        transport = self._transport
        if not transport.buffer:
            transport.receive_ahead()
        bound = self._chunk_left if self._head.chunked else self.left
        end = None if bound is None else transport.at + bound
        return transport.buffer[transport.at : end]

    def _begin_chunk(self) -> bool:
        """Read up to the next chunk's first byte; return whether there is one (RFC 9112 section 7.1)."""
        if self._chunk_left == 0:
            # Exactly CRLF behind the data: whatever else a peer puts there is a second message to somebody else.
            self._expect_chunk_end()
        size, extension_bytes = parse_chunk_line(self._line(self._limits.line_bytes, "chunk size"))
        self._extension_bytes += extension_bytes
        if self._extension_bytes > self._limits.chunk_extension_bytes:
            raise InvalidResponse(f"got more than {self._limits.chunk_extension_bytes} bytes of chunk extensions")
        self._chunk_left = size
        if size:
            return True
        while line := self._line(self._limits.line_bytes, "trailer line", may_be_missing=not self.trailers):
            if len(self.trailers) >= self._limits.fields:
                raise InvalidResponse(f"got more than {self._limits.fields} trailers")
            self.trailers = [*self.trailers, parse_trailer(line)]
        self.is_complete = True
        return False

    def _line(self, limit: int, what: str, *, may_be_missing: bool = False) -> bytes:
        """Return the next framing line without its CRLF; a bare LF is an error here (RFC 9112 section 7.1)."""
        line = self._transport.take_line(limit, what)
        if line.endswith(b"\r\n"):
            return line[:-2]
        if line.endswith(b"\n"):
            raise InvalidChunk(f"{what} ends in a bare LF")
        if may_be_missing and not line and not self._transport.is_truncated:
            # Servers are known to end without the very last CRLF: the body is whole, but nothing can follow it.
            self._head.is_persistent = False
            return line
        raise self._truncated(None)

    def _expect_chunk_end(self) -> None:
        ending = self._transport.take(2)
        if ending == b"\r\n":
            return
        if ending == b"\r":
            ending += self._transport.take(1)
        if ending in (b"", b"\r"):
            raise self._truncated(None)
        if ending != b"\r\n":
            raise InvalidChunk("chunk data is not followed by CRLF")

    def _truncated(self, expected: int | None) -> IncompleteRead:
        return IncompleteRead(b"", expected)

    def close_transport(self) -> None:
        """Close the connection that this body comes from: it has no other owner any more."""
        self._transport.close()

    def _end_with_connection(self) -> None:
        if self._transport.is_truncated:
            # Anybody on the way can end a TCP stream; only close_notify says that the peer did (RFC 9112 section 9.8).
            raise self._truncated(None)
        self.is_complete = True


class ExchangeOwner(Protocol):
    """What an `HTTPResponse` tells the connection that it belongs to."""

    def _body_ended(self, body: Body | None) -> None:
        """Take note that the body is complete."""

    def _body_broke(self, body: Body, fault: BaseException) -> None:
        """Take note that reading failed: the connection is of no more use."""

    def _give_up_body(self, body: Body) -> None:
        """Drain a bounded rest that the reader does not want, or close."""


class HTTPResponse(io.BufferedIOBase):
    """The documented response object: a head, and a body that reads like a file.

    It is made by `HTTPConnection.getresponse`; to read one from a socket of one's own, construct it and call
    `begin`; that socket is left open.

    Args:
        sock: The socket to read from; what has only ``makefile`` and ``close`` will do.
        debuglevel: Above 0, the head is printed to stdout.
        method: The request's method; the answer to HEAD has no body.
        url: Where the response came from, kept for the caller.
    """

    # What every response has; a dictionary is made only for one that differs from what stands below.
    __slots__ = ("_body", "_head", "_method", "_owner", "_transport", "_url")

    # Of the class, where most responses find them: they cost nothing to set.
    debuglevel = 0
    _limits = DEFAULT_LIMITS
    _fault: BaseException | None = None
    _trailers: Sequence[tuple[str, str]] = ()
    _msg: Any = None

    def __init__(
        self,
        sock: Transport | socket.socket | ForeignSocket,
        debuglevel: int = 0,
        method: str | None = None,
        url: str | None = None,
    ) -> None:
        self._transport = sock if isinstance(sock, Transport) else transport_for(sock)
        self._owner: ExchangeOwner | None = None
        self._head: Head | None = None
        self._body: Body | None = None
        self._method = method or "GET"
        self._url = url or ""
        self.debuglevel = debuglevel

    def begin(self) -> None:
        """Read the head; a second call does nothing.

        Raises:
            RemoteDisconnected: The peer ended the connection before the first byte.
            HTTPException: What came is no HTTP/1 head, or over a limit.
            OSError: The socket's own errors, timeouts among them.
        """
        if self._head is not None:
            return
        self._head = head = read_head(self._transport, self._method, self._limits)
        self._body = Body(self._transport, head, self._limits)
        if self.debuglevel > 0:
            print("reply:", repr(f"HTTP/1.{head.version - 10} {head.status} {head.reason}\r\n"))
            for name, value in head.fields:
                print("header:", name + ":", "[hidden]" if name.lower() in _SECRET_FIELDS else value)

    # --- the head ---------------------------------------------------------------------------------

    @property
    def _begun(self) -> Head:
        if self._head is None:
            raise ResponseNotReady("begin() has not been called")
        return self._head

    @property
    def version(self) -> int:
        """The protocol version: 10 for HTTP/1.0, 11 for HTTP/1.1."""
        return self._begun.version

    @version.setter
    def version(self, value: int) -> None:
        self._begun.version = value

    @property
    def status(self) -> int:
        """The status code (RFC 9110 section 15)."""
        return self._begun.status

    @status.setter
    def status(self, value: int) -> None:
        self._begun.status = value

    @property
    def reason(self) -> str:
        """The reason phrase; it means nothing to a program."""
        return self._begun.reason

    @reason.setter
    def reason(self, value: str) -> None:
        self._begun.reason = value

    @property
    def headers(self) -> HTTPMessage:
        """The header fields, as `http.client.HTTPMessage`; built when first asked for."""
        return self._begun.message

    @headers.setter
    def headers(self, value: HTTPMessage) -> None:
        self._begun.message = value

    # Any: urllib puts the reason phrase here.
    @property
    def msg(self) -> Any:  # noqa: ANN401  # see above
        """The header fields, by their older name; can be set."""
        return self._begun.message if self._msg is None else self._msg

    @msg.setter
    def msg(self, value: object) -> None:
        self._msg = value

    @property
    def leftover(self) -> bytes:
        """What has been received behind the head of a 101, or of a 2xx to CONNECT: it belongs to the new protocol.

        Whoever goes on with `HTTPConnection.sock` has to begin with it.
        """
        return self._transport.buffer[self._transport.at :]

    @property
    def length(self) -> int | None:
        """Bytes of the body still to come, or ``None`` when only its end will tell."""
        return self._body.left if self._body is not None else 0

    @property
    def chunked(self) -> bool:
        """Whether the body is chunked (RFC 9112 section 7.1)."""
        return self._begun.chunked

    @property
    def will_close(self) -> bool:
        """Whether the connection closes behind this response."""
        return not self._begun.is_persistent

    @property
    def trailers(self) -> list[tuple[str, str]]:
        """The fields behind a chunked body, once it has been read; they are not merged into the headers."""
        return list(self._trailers)

    @property
    def url(self) -> str:
        """The URL or target this response was given for."""
        return self._url

    @url.setter
    def url(self, value: str) -> None:
        self._url = value

    @property
    def code(self) -> int:
        """The status code, by the name that `urllib.request` uses."""
        return self.status

    @code.setter
    def code(self, value: int) -> None:
        self.status = value

    def getheader(self, name: str, default: str | Iterable[str] | None = None) -> str | None:
        """Return a field's value, several joined by ``", "``.

        Args:
            name: The field's name, in any case.
            default: What to return when there is none; if it is no string, its items are joined likewise.
        """
        value = self._begun.get(name)
        if value is not None:
            return value
        if default is None or isinstance(default, str):
            return default
        return ", ".join(default) if isinstance(default, Iterable) else default

    def getheaders(self) -> list[tuple[str, str]]:
        """Return all fields as (name, value) pairs."""
        head = self._begun
        return list(head.fields if head._message is None else head._message.items())  # to which one may have added

    def info(self) -> HTTPMessage:
        """Return the header fields, by the name that `urllib` uses."""
        return self.headers

    def geturl(self) -> str:
        """Return `url`, by the name that `urllib` uses."""
        return self._url

    def getcode(self) -> int:
        """Return `status`, by the name that `urllib` uses."""
        return self.status

    # --- the body ---------------------------------------------------------------------------------

    def read(self, amt: int | None = None) -> bytes:
        """Read the rest of the body, or at most `amt` bytes of it.

        Args:
            amt: Bytes; fewer come only at the body's end.  ``None`` or a negative number means all.

        Raises:
            IncompleteRead: The connection ended before the body did.
            HTTPException: The framing of the body is broken.
            OSError: The socket's own errors, timeouts among them.
        """
        body = self._body
        if body is None:
            body = self._open_body()  # raises if there was a fault
            return b""
        if amt is None:
            transport = self._transport
            start = transport.at
            if len(transport.buffer) - start == body.left and self._owner is not None:
                # The usual case in few steps: all of it has come along with the head, and nothing behind it.
                whole = transport.buffer[start:]
                transport.buffer = b""
                transport.at = body.left = 0
                body.is_complete = True
                self._body = None
                self._owner._body_ended(body)
                return whole
        with _Guard(self, body):
            if amt is None or amt < 0:
                return body.read_all()
            piece = body.read_some(amt)
            if len(piece) == amt or not piece or body.is_complete:
                return piece
            try:
                return body.read_behind(piece, amt)
            except IncompleteRead as fault:
                # What did arrive is delivered; the next read raises.
                arrived, fault.partial = fault.partial, b""
                self._broke(body, fault)
                return arrived

    def read1(self, n: int = -1) -> bytes:
        """Read at most `n` bytes with at most one receive; ``-1`` leaves the amount to us."""
        body = self._open_body()
        if body is None:
            return b""
        with _Guard(self, body):
            return body.read_some(n if n >= 0 else BODY_RECEIVE_BYTES)

    def readinto(self, b: WriteableBuffer) -> int:
        """Read into a buffer until it is full or the body ends; return how many bytes.

        Raises:
            IncompleteRead: The connection ended before the body did; `partial` holds what is in the buffer.
            HTTPException: The framing of the body is broken.
            OSError: The socket's own errors, timeouts among them.
        """
        body = self._open_body()
        if body is None:
            return 0
        filled = 0
        with memoryview(b) as whole, whole.cast("B") as view, _Guard(self, body):
            while filled < len(view):
                try:
                    with view[filled:] as rest:
                        count = body.read_into(rest)
                except IncompleteRead as fault:
                    fault.partial = bytes(view[:filled])
                    raise
                if not count:
                    break
                filled += count
        return filled

    def readinto1(self, buffer: WriteableBuffer, /) -> int:
        """Read into a buffer with at most one receive; return how many bytes."""
        body = self._open_body()
        if body is None:
            return 0
        with memoryview(buffer) as whole, whole.cast("B") as view, _Guard(self, body):
            return body.read_into(view)

    def readline(self, limit: int | None = -1) -> bytes:
        """Read up to and with the next newline, at most `limit` bytes."""
        body = self._open_body()
        if body is None:
            return b""
        with _Guard(self, body):
            return body.read_line(-1 if limit is None else limit)

    def peek(self, n: int = -1) -> bytes:
        """Return bytes of the body without taking them; at least one unless it has ended.  `n` is a hint."""
        body = self._open_body()
        if body is None:
            return b""
        with _Guard(self, body):
            return body.peek()

    def readable(self) -> bool:
        """Return True: a response can be read."""
        return True

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._transport.fileno()

    def flush(self) -> None:
        """Do nothing: there is nothing to write."""

    @property
    def is_broken(self) -> bool:
        """Whether reading the body has failed."""
        return self._fault is not None

    # --- the end ----------------------------------------------------------------------------------

    def isclosed(self) -> bool:
        """Return whether the body has been read to its end, or the response was closed."""
        return self._body is None

    def close(self) -> None:
        """Have done with the response; of an unread body a bounded rest is drained, or the connection closed."""
        body = self._body
        self._body = None
        try:
            if body is not None and self._fault is None:
                if self._owner is not None:
                    self._owner._give_up_body(body)
                else:
                    self._transport.let_go()
        finally:
            super().close()

    def __del__(self) -> None:
        """Keep io.IOBase's finalizer from closing: that would read from a socket inside the garbage collector.

        The connection holds the body, so it can still drain or close it, and no byte of it reaches anybody else.
        """

    def _cut_off(self) -> None:
        """Have later reads fail: the connection was closed or drained under this response."""
        body, self._body = self._body, None
        if body is not None and self._fault is None:
            self._fault = IncompleteRead(b"", body.left)

    def _open_body(self) -> Body | None:
        if self._fault is not None:
            raise self._fault
        return self._body

    def _ended(self, body: Body) -> None:
        self._body = None
        self._trailers = body.trailers
        if self._owner is not None:
            self._owner._body_ended(body)
        else:
            self._transport.let_go()

    def _broke(self, body: Body, fault: BaseException) -> None:
        self._fault = fault.with_traceback(None) if isinstance(fault, Exception) else OSError("reading was interrupted")
        self._body = None
        if self._owner is not None:
            self._owner._body_broke(body, fault)
        else:
            self._transport.let_go()


class _Guard:
    """Around each read: tell the connection when the body is complete, or when anything at all went wrong."""

    __slots__ = ("_body", "_response")

    def __init__(self, response: HTTPResponse, body: Body) -> None:
        self._response = response
        self._body = body

    def __enter__(self) -> None:
        """Begin to read."""

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, _: object) -> None:
        """Report completion or failure."""
        if fault is not None:
            if self._response._fault is None:
                self._response._broke(self._body, fault)
        elif self._body.is_complete:
            self._response._ended(self._body)


class FailedAttempt(Frozen):
    """An attempt that failed and was followed by another, see `Retry`.

    Attributes:
        what: What became of it, for a log: the status, or the error's class and text.
        status: The status, or ``None`` if there was no answer.
        waited: How long the call waited before the next attempt, in seconds.
    """

    what: str
    status: int | None
    waited: float


class StreamedResponse(HTTPResponse):
    """The response of `ConnectionPool.stream`: the documented object, but iteration yields pieces, not lines.

    The pieces are what arrives, at most 256 KiB each, so that memory stays flat whatever the body holds; for lines
    there is `readline`, or an `io.TextIOWrapper` around it.

    Attributes:
        resends: How often the request was sent again because a kept-alive connection had died (at most once in each
            attempt).
        attempts: How often it was tried; more than once only with a `Retry`.
        failures: The attempts before the one that led to this response.
    """

    resends = 0
    attempts = 1
    failures: tuple[FailedAttempt, ...] = ()

    def __iter__(self) -> Iterator[bytes]:
        """Yield the body in the pieces in which it arrives."""
        while piece := self.read1():
            yield piece

    def __next__(self) -> bytes:
        """Return the next piece."""
        piece = self.read1()
        if not piece:
            raise StopIteration
        return piece


class Response:
    """A finished exchange: the result of `ConnectionPool.request`.  Its connection is back in the pool already.

    Attributes:
        method: The request's method.
        url: The URL or target that was asked for.
        data: The whole body; content codings are not undone.
        trailers: The fields behind a chunked body.
        resends: How often the request was sent again because a kept-alive connection had died (at most once in each
            attempt).
        attempts: How often it was tried; more than once only with a `Retry`.
        failures: The attempts before the one that led to this response.
    """

    __slots__ = ("_head", "data", "method", "resends", "trailers", "url")

    # Of the class, where most responses find them: they cost nothing to set.
    attempts: int = 1
    failures: tuple[FailedAttempt, ...] = ()

    def __init__(
        self, head: Head, data: bytes, method: str, url: str, resends: int, trailers: list[tuple[str, str]]
    ) -> None:
        self._head = head
        self.data = data
        self.method = method
        self.url = url
        self.resends = resends
        self.trailers = trailers

    @property
    def status(self) -> int:
        """The status code (RFC 9110 section 15)."""
        return self._head.status

    @property
    def reason(self) -> str:
        """The reason phrase; it means nothing to a program."""
        return self._head.reason

    @property
    def version(self) -> int:
        """The protocol version: 10 for HTTP/1.0, 11 for HTTP/1.1."""
        return self._head.version

    @property
    def headers(self) -> HTTPMessage:
        """The header fields, as `http.client.HTTPMessage`; built when first asked for."""
        return self._head.message

    @overload
    def getheader(self, name: str) -> str | None: ...
    @overload
    def getheader(self, name: str, default: _Default) -> str | _Default: ...

    def getheader(self, name: str, default: object = None) -> object:
        """Return a field's value, several joined by ``", "``, or the default."""
        value = self._head.get(name)
        return default if value is None else value

    def getheaders(self) -> list[tuple[str, str]]:
        """Return all fields as (name, value) pairs."""
        return list(self._head.fields)

    def text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the body decoded; no guess is made from the headers."""
        return self.data.decode(encoding, errors)

    # Any: what comes out is for the caller to know, and `object` would put a cast into every program.
    def json(self) -> Any:  # noqa: ANN401  # see above
        """Return the body parsed as JSON (RFC 8259: UTF-8, or UTF-16/32 by its first bytes).

        Raises:
            ValueError: It is not JSON.
        """
        import json  # here, since not every caller wants it

        return json.loads(self.data)

    def __repr__(self) -> str:
        """Show status, target and size; no header, since those hold secrets."""
        return f"<Response {self.status} {self.reason} {self.method} {len(self.data)} bytes>"


class RetriedResponse(Response):
    """The response to a request that was tried more than once."""

    __slots__ = ("attempts", "failures")

    def __init__(
        self,
        head: Head,
        data: bytes,
        method: str,
        url: str,
        resends: int,
        trailers: list[tuple[str, str]],
        failures: tuple[FailedAttempt, ...],
    ) -> None:
        super().__init__(head, data, method, url, resends, trailers)
        self.attempts = len(failures) + 1
        self.failures = failures
