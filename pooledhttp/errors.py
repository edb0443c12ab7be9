"""Every exception of pooledhttp, each under the standard-library class that callers already catch.

A program written for ``http.client`` catches ``OSError`` and ``HTTPException``; it must keep working when
this package takes the place of ``http.client``.  So the exceptions that ``http.client`` has *are* its
classes, re-exported here, and ours inherit from them or from ``OSError``/``TimeoutError`` as well as from
one root, `PooledHTTPError`.

A message says what happened, to whom, the number, and the way out.  Secrets (``Authorization``,
``Proxy-Authorization``, the userinfo of a URL) never get into one.
"""

from __future__ import annotations

from http.client import (
    BadStatusLine,
    CannotSendHeader,
    CannotSendRequest,
    HTTPException,
    ImproperConnectionState,
    IncompleteRead,
    InvalidURL,
    LineTooLong,
    NotConnected,
    RemoteDisconnected,
    ResponseNotReady,
    UnimplementedFileMode,
    UnknownProtocol,
    UnknownTransferEncoding,
)

__all__ = [
    "AcquireTimeout",
    "BadStatusLine",
    "CannotSendHeader",
    "CannotSendRequest",
    "ConnectTimeout",
    "HTTPException",
    "IllegalKeywordArgument",
    "ImproperConnectionState",
    "IncompleteRead",
    "InvalidChunk",
    "InvalidResponse",
    "InvalidURL",
    "LineTooLong",
    "NotConnected",
    "PoolClosed",
    "PoolFull",
    "PooledHTTPError",
    "ReadTimeout",
    "RemoteDisconnected",
    "ResponseNotReady",
    "SelfDeadlock",
    "SourcePortsExhausted",
    "TotalTimeout",
    "TunnelError",
    "UnimplementedFileMode",
    "UnknownProtocol",
    "UnknownTransferEncoding",
    "UnreadResponse",
    "WriteTimeout",
]


class PooledHTTPError(Exception):
    """The root of the exceptions that only pooledhttp raises.

    It does not cover what passes through untouched: ``OSError``, ``ssl.SSLError`` and the
    ``http.client`` exceptions.
    """


class IllegalKeywordArgument(PooledHTTPError, HTTPException, ValueError):
    """A documented keyword was given a value that this implementation refuses.

    Of the documented httplib keywords there is one: ``strict=False`` asks for HTTP/0.9, in which any bytes
    at all count as an answer.
    """


class UnreadResponse(PooledHTTPError, CannotSendRequest):
    """A second request was tried while the response before it is unread.

    Raised before any byte is written.  The ways out: read the response to its end, `close()` it, or close
    the connection.
    """


class InvalidResponse(PooledHTTPError, HTTPException):
    """The peer broke the framing of HTTP/1.1, or went over one of the limits (RFC 9112)."""


class InvalidChunk(InvalidResponse, IncompleteRead):
    """The chunk framing of a body is broken: nobody knows where the body ends (RFC 9112 section 7.1).

    ``http.client`` calls that an incomplete read, so its text is the same, for programs that look at it; what exactly
    is wrong stands in a note below the text in every traceback.

    Attributes:
        partial: What of the body had been read, as bytes.
        expected: Always ``None``.
        problem: What is wrong with the framing.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(b"")
        self.problem = problem
        self.add_note(problem)

    def __repr__(self) -> str:
        """Return what `http.client.IncompleteRead` would."""
        return repr(IncompleteRead(self.partial))

    __str__ = __repr__

    def __reduce__(self) -> tuple[type[InvalidChunk], tuple[str], dict[str, object]]:
        """Rebuild from the problem; `partial` follows with the attributes."""
        return type(self), (self.problem,), self.__dict__


class PoolClosed(PooledHTTPError, RuntimeError):
    """The pool (or its manager) has been closed; it lends no more connections."""


class PoolFull(PooledHTTPError, OSError):
    """No connection is free and `max_waiters` callers are waiting already: this one is shed at once."""


class AcquireTimeout(PooledHTTPError, TimeoutError):
    """No connection of the pool came free in time.

    Attributes:
        maxsize: The pool's limit, in connections.
        leased: How many connections were lent at that moment.
        idle: How many were idle.
        opening: How many were being opened.
        waiting: How many other callers were waiting.
        oldest_lease: A sentence about the borrower that holds its connection longest, or ``None``.
        last_connect_error: The newest failure to connect to this origin, as text, or ``None``.
    """

    def __init__(
        self,
        message: str,
        *,
        maxsize: int = 0,
        leased: int = 0,
        idle: int = 0,
        opening: int = 0,
        waiting: int = 0,
        oldest_lease: str | None = None,
        last_connect_error: str | None = None,
    ) -> None:
        super().__init__(message)
        self.maxsize = maxsize
        self.leased = leased
        self.idle = idle
        self.opening = opening
        self.waiting = waiting
        self.oldest_lease = oldest_lease
        self.last_connect_error = last_connect_error


class SelfDeadlock(AcquireTimeout):
    """A thread asks a full pool for a connection while it holds all of them itself: waiting would never end.

    Raised at once.  The text says what each of the connections is held for, and notes below it where they were
    acquired, as far as that is known (`leak_after` has it written down).  The ways out: give one back first (a
    ``with`` block inside another is the usual place), or a larger `maxsize`.  Whoever acquires in one thread and gives
    back in another can wait with ``acquire=0`` and try again.
    """


class ConnectTimeout(PooledHTTPError, TimeoutError):
    """Resolving, connecting, the tunnel or the TLS handshake took longer than `Timeout.connect` seconds."""


class ReadTimeout(PooledHTTPError, TimeoutError):
    """The peer was silent for `Timeout.read` seconds while a response was awaited."""


class WriteTimeout(PooledHTTPError, TimeoutError):
    """The peer took no byte of the request for `Timeout.write` seconds."""


class TotalTimeout(PooledHTTPError, TimeoutError):
    """The whole call, from acquire to the last byte of the body, took longer than its total."""


class TunnelError(PooledHTTPError, OSError):
    """The proxy refused the CONNECT request (RFC 9110 section 9.3.6).

    Attributes:
        status: The status code of the proxy's answer.
        headers: The header fields of that answer, as (name, value) pairs.
        body: What came of its body, cut at 64 KiB.
    """

    def __init__(
        self, message: str, *, status: int = 0, headers: list[tuple[str, str]] | None = None, body: bytes = b""
    ) -> None:
        # Defaults, since unpickling passes the message alone and sets the attributes afterwards.
        super().__init__(message)
        self.status = status
        self.headers = headers or []
        self.body = body


class SourcePortsExhausted(PooledHTTPError, OSError):
    """No source port is left for this source address (EADDRNOTAVAIL or EADDRINUSE)."""
