"""Responses made up by Hypothesis, an encoder of its own for them, and a peer that plays them without a thread.

The encoder shares no code with the package: it writes down what RFC 9112 says, and `Message` says what a reader has to
find.  `PlayedSocket` is our end of a real socketpair.  Its other end sends the next segment at the moment when somebody
comes to receive, so the boundaries between segments are exact, and it counts: whoever receives when nothing will ever
come fails the test instead of hanging.

In CI the same few hundred examples are drawn each time.  For a longer search, with new examples in each run:

    POOLEDHTTP_EXAMPLES=20000 python -m pytest --timeout 3600 tests/test_properties.py tests/test_differential.py
"""

from __future__ import annotations

import enum
import io
import itertools
import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from hypothesis import settings
from hypothesis import strategies as st

from pooledhttp import ConnectionPool, HTTPConnection
from pooledhttp.dial import Dialer
from pooledhttp.timeouts import ConnectDeadline

EXAMPLES = int(os.environ.get("POOLEDHTTP_EXAMPLES", "0"))


def bounded(examples: int) -> settings:
    """Settings for a property: so many examples in CI, always the same ones, and as many as asked for otherwise."""
    # No deadline: a machine that is busy for a moment proves nothing.
    return settings(max_examples=EXAMPLES or examples, derandomize=not EXAMPLES, deadline=None)


# --- messages ---------------------------------------------------------------------------------------------------------

TOKEN_CHARACTERS = "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
FRAMING_NAMES = {"content-length", "transfer-encoding", "connection", "keep-alive", "proxy-connection"}

tokens = st.text(TOKEN_CHARACTERS, min_size=1, max_size=12)
field_texts = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]) | st.just("\t"), max_size=20)
values = field_texts.map(lambda value: value.strip(" \t"))
names = st.sampled_from(["Date", "ETag", "Set-Cookie", "X-Connection", "T", "c", "Content-Type"]) | tokens.filter(
    lambda name: name.lower() not in FRAMING_NAMES
)
fields = st.lists(st.tuples(names, values), max_size=4)
spaces = st.sampled_from(["", " ", " ", " ", "\t", " \t "])


class Framing(enum.Enum):
    """How a reader finds the end of a body."""

    LENGTH = "by length"
    CHUNKED = "in chunks"
    TO_END = "to the end of the connection"
    NONE = "there is no body"


@dataclass(frozen=True)
class Line:
    """A field line as it stands on the wire, and what it says."""

    name: str
    value: str
    before: str = " "
    after: str = ""

    def encode(self) -> bytes:
        return f"{self.name}:{self.before}{self.value}{self.after}\r\n".encode("latin-1")


@dataclass(frozen=True)
class Chunk:
    data: bytes
    size: str
    extension: str = ""

    def encode(self) -> bytes:
        return f"{self.size}{self.extension}\r\n".encode("latin-1") + self.data + b"\r\n"


@dataclass(frozen=True, kw_only=True)
class Message:
    """A response, whole: what is on the wire, and what is to be found in it."""

    method: str = "GET"
    version: int = 11
    status: int = 200
    reason: str = "OK"
    lines: tuple[Line, ...] = ()
    options: frozenset[str] = frozenset()  # of the Connection field, in lower case
    framing: Framing = Framing.LENGTH
    content: bytes = b""
    chunks: tuple[Chunk, ...] = ()
    last_chunk: Chunk = field(default_factory=lambda: Chunk(b"", "0"))
    trailer_lines: tuple[Line, ...] = ()
    interim: tuple[tuple[int, str, tuple[Line, ...]], ...] = ()

    @property
    def body(self) -> bytes:
        return b"".join(chunk.data for chunk in self.chunks) if self.framing is Framing.CHUNKED else self.content

    @property
    def fields(self) -> list[tuple[str, str]]:
        return [(line.name, line.value) for line in self.lines]

    @property
    def trailers(self) -> list[tuple[str, str]]:
        return [(line.name, line.value) for line in self.trailer_lines]

    @property
    def is_reusable(self) -> bool:
        """Whether the connection may serve another request (RFC 9112 sections 6.1, 6.3 and 9.3)."""
        if self.framing is Framing.TO_END or "close" in self.options:
            return False
        return self.version == 11 or ("keep-alive" in self.options and self.framing is not Framing.CHUNKED)

    @property
    def head(self) -> bytes:
        """The final head."""
        status_line = f"HTTP/1.{self.version - 10} {self.status} {self.reason}\r\n".encode("latin-1")
        return status_line + b"".join(line.encode() for line in self.lines) + b"\r\n"

    def encode_interim(self) -> bytes:
        wire = b""
        for status, reason, lines in self.interim:
            wire += f"HTTP/1.1 {status} {reason}\r\n".encode("latin-1")
            wire += b"".join(line.encode() for line in lines) + b"\r\n"
        return wire

    def encode(self) -> bytes:
        wire = self.encode_interim() + self.head
        if self.framing is not Framing.CHUNKED:
            return wire + self.content
        wire += b"".join(chunk.encode() for chunk in self.chunks)
        last = self.last_chunk
        wire += f"{last.size}{last.extension}\r\n".encode("latin-1")
        return wire + b"".join(line.encode() for line in self.trailer_lines) + b"\r\n"


lines_of_fields = st.lists(st.builds(Line, names, values, spaces, spaces), max_size=4)
small_bodies = st.binary(max_size=40) | st.sampled_from(
    [b"", b"\n", b"one\ntwo\n\nfour", b"0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"]
)
# Longer than what one receive asks for.
large_bodies = st.integers(15_000, 70_000).map(lambda size: (b"a long line\n" * (size // 12 + 1))[:size])
bodies = st.one_of(*[small_bodies] * 7, large_bodies)
extensions = st.one_of(
    st.just(""), st.sampled_from([";a", ";a=b", ';a="b; c"', ";a=b;c", "; a = b"]), field_texts.map(";{}".format)
)
reasons = st.sampled_from(["OK", "", "Not Found", "\xe4 \t!"]) | field_texts.map(str.strip)
interims = st.tuples(st.sampled_from([100, 102, 103, 199]), reasons, lines_of_fields.map(tuple))
METHODS = ["GET", "GET", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "X-OWN"]
STATUSES = [200, 200, 200, 201, 203, 206, 299, 301, 304, 204, 400, 404, 413, 500, 599, 600, 999]
CONNECTION_VALUES = [
    "close",
    "Close",
    "keep-alive",
    "Keep-Alive, x",
    "x, close",
    "keep-alive,CLOSE",
    "upgrade",
    "closed",
]


def spelled(name: str) -> st.SearchStrategy[str]:
    return st.sampled_from([name, name.lower(), name.upper(), name.swapcase()])


@st.composite
def chunks_of(draw: st.DrawFn, body: bytes) -> tuple[Chunk, ...]:
    """Cut a body into chunks, at least one byte each."""
    chunks = []
    at = 0
    sizes = draw(st.lists(st.integers(1, 20), max_size=6)) if len(body) <= 100 else [draw(st.integers(1, len(body)))]
    for size in [*sizes, len(body)]:
        if data := body[at : at + size]:
            chunks.append(Chunk(data, draw(sizes_of(len(data))), draw(extensions)))
            at += size
    return tuple(chunks)


def sizes_of(size: int) -> st.SearchStrategy[str]:
    return st.sampled_from([f"{size:x}", f"{size:X}", f"00{size:x}", f"{size:016x}"])


@st.composite
def messages(draw: st.DrawFn) -> Message:
    """Any response that RFC 9112 allows, as far as framing goes."""
    method = draw(st.sampled_from(METHODS))
    status = draw(st.sampled_from(STATUSES))
    version = draw(st.sampled_from([11, 11, 11, 10]))
    lines = draw(lines_of_fields)
    options: frozenset[str] = frozenset()
    if draw(st.booleans()):
        value = draw(st.sampled_from(CONNECTION_VALUES))
        options = frozenset(option.strip().lower() for option in value.split(","))
        lines.append(Line(draw(spelled("Connection")), value, draw(spaces), draw(spaces)))
    content = draw(bodies)
    chunks: tuple[Chunk, ...] = ()
    last_chunk = Chunk(b"", "0")
    trailer_lines: tuple[Line, ...] = ()
    if method == "HEAD" or status in {204, 304}:
        framing = Framing.NONE
        # What the body of a GET would have had; there is none here, whatever this says.
        claims = ["nothing", "length", "chunked"] if version == 11 else ["nothing", "length"]
        claim = draw(st.sampled_from(claims))
    else:
        framing = draw(
            st.sampled_from([Framing.LENGTH, Framing.LENGTH, Framing.CHUNKED, Framing.CHUNKED, Framing.TO_END])
        )
        claim = {Framing.LENGTH: "length", Framing.CHUNKED: "chunked"}.get(framing, "nothing")
    if claim == "length":
        zeros = draw(st.sampled_from(["", "", "0", "000"]))
        lines.append(Line(draw(spelled("Content-Length")), f"{zeros}{len(content)}", draw(spaces), draw(spaces)))
    elif claim == "chunked":
        coding = draw(st.sampled_from(["chunked", "chunked", "Chunked", "gzip, chunked", "x ,\tCHUNKED"]))
        lines.append(Line(draw(spelled("Transfer-Encoding")), coding, draw(spaces), draw(spaces)))
    if framing is Framing.CHUNKED:
        chunks = draw(chunks_of(content))
        last_chunk = Chunk(b"", draw(st.sampled_from(["0", "0", "000"])), draw(extensions))
        trailer_lines = tuple(draw(lines_of_fields))
    return Message(
        method=method,
        version=version,
        status=status,
        reason=draw(reasons),
        lines=tuple(draw(st.permutations(lines))),
        options=options,
        framing=framing,
        content=b"" if framing in {Framing.NONE, Framing.CHUNKED} else content,
        chunks=chunks,
        last_chunk=last_chunk,
        trailer_lines=trailer_lines,
        interim=tuple(draw(st.lists(interims, max_size=2))),
    )


# --- segments and mutations -------------------------------------------------------------------------------------------

# Sizes of segments, again and again until all is sent; none: all in one.
segment_sizes = st.none() | st.just([1]) | st.lists(st.integers(1, 40), min_size=1, max_size=6)


def segmented(wire: bytes, sizes: list[int] | None) -> list[bytes]:
    if not sizes:
        return [wire] if wire else []
    scale = 1 + len(wire) // 2000  # a long response byte by byte shows nothing more, but takes long
    segments: list[bytes] = []
    at = 0
    for size in itertools.cycle(sizes):
        if at >= len(wire):
            return segments
        segments.append(wire[at : at + size * scale])
        at += size * scale
    return segments


SNIPPETS = [
    *(bytes([code]) for code in b'\0\t\n\v\f\r\x1c\x7f\x80\x85\xa0\xff !"+,-./0159:;=AFHPTX_afgx~'),
    *(b"\r\n", b"\r\n\r\n", b"\n\n", b"\r\r\n", b"\r\n ", b"0\r\n\r\n", b"F" * 17, b"9" * 30),
    *(b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 103 X\r\n\r\n", b"Content-Length: +3\r\n", b"\r\nContent-Length: 3\r\n"),
    *(b"Transfer-Encoding: gzip\r\n", b"\r\nTransfer-Encoding: chunked\r\n", b"\r\nConnection: close\r\n"),
]
mutations = st.tuples(
    st.sampled_from(["delete", "insert", "flip", "duplicate", "truncate", "replace"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(1, 12),
    st.sampled_from(SNIPPETS),
)


def mutated(wire: bytes, changes: Iterable[tuple[str, float, int, bytes]]) -> bytes:
    """Apply mutations, each at its place: a fraction of the length."""
    for kind, place, count, snippet in changes:
        at = int(place * len(wire))
        if kind == "delete":
            wire = wire[:at] + wire[at + count :]
        elif kind == "insert":
            wire = wire[:at] + snippet + wire[at:]
        elif kind == "replace":
            wire = wire[:at] + snippet + wire[at + len(snippet) :]
        elif kind == "flip" and wire:
            wire = wire[:at] + bytes([wire[at] ^ (1 << count % 8)]) + wire[at + 1 :]
        elif kind == "duplicate":
            wire = wire[:at] + wire[at : at + 4 * count] + wire[at:]
        elif kind == "truncate":
            wire = wire[:at]
    return wire


@st.composite
def mutated_responses(draw: st.DrawFn) -> tuple[str, bytes]:
    """A method, and a valid response to it with a few things changed anywhere, most often in front."""
    message = draw(messages())
    changes = draw(st.lists(mutations, min_size=1, max_size=3))
    wire = message.encode()
    if len(wire) > 4000:  # else next to no mutation would hit what matters
        wire = wire[:4000]
    return message.method, mutated(wire, changes)


# Lines that are known for being understood in different ways; the usual ones stand there more than once.
STATUS_LINES = [
    *[b"HTTP/1.1 200 OK\r\n"] * 3,
    b"HTTP/1.0 200 OK\r\n",
    b"HTTP/1.1 204\r\n",
    b"HTTP/1.1 304 Not Modified\r\n",
    b"HTTP/1.1 404 \r\n",
    b"HTTP/1.1 200 OK\n",
    b"HTTP/1.1 101 S\r\n",
    b"HTTP/1.2 200 OK\r\n",
    b"HTTP/1.1 100 C\r\n\r\nHTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 100 C\n\nHTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 100 C\r\nConnection: close\r\n\r\nHTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 100 C\r\nContent-Length: 5\r\n\r\nHTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 100 C\r\nno colon\r\n\r\nHTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK\r\n",
]
LENGTHS = [
    "5",
    "5",
    "\t5 ",
    "0",
    "7",
    "+5",
    "-1",
    "1_0",
    "0x5",
    "5, 5",
    "5,6",
    "",
    "1\r\n 0",
    "\xb2",
    "5\x0b",
    "9" * 20,
]
CODINGS = ["chunked", "chunked", "CHUNKED ", "gzip, chunked", "chunked, gzip", "gzip", "identity", "xchunked",
           "chunked;a=b", "chunked,", ",chunked", "\x0bchunked", "\r\n chunked", "chunked\t"]  # fmt: skip
OPTIONS = ["close", "keep-alive", "x, Close", "closed", "x close", "keep-alive, x", "not-keep-alive", "upgrade",
           '"close"', ",close", "x\r\n close", "", "clo\xadse"]  # fmt: skip
OTHERS = [
    *("A: b\r\n", "A: b\r\n c\r\n", "A: b\n", "A\r\n", ": b\r\n", " A: b\r\n", "A: b\rc\r\n", "A: b\0\r\n"),
    *("A: \x85b\r\n", "A: b\x0bC: d\r\n", "A: b\x1cContent-Length: 3\r\n", "A: \x01\r\n", "A: \x7f\r\n"),
    *("A:\r\n", "A: b \t\r\n"),
    *("\xe4: b\r\n", "A(: b\r\n", "A : b\r\n", "Content-Length : 5\r\n", "Content-Length: 5\n", "From x\r\n"),
    *("Proxy-Connection: close\r\n", "Proxy-Connection: keep-alive\r\n", "Keep-Alive: timeout=5\r\n", "Upgrade: x\r\n"),
]
ODD_LINES = [
    line.encode("latin-1")
    for line in (
        *(f"Content-Length: {length}\r\n" for length in LENGTHS),
        *(f"Transfer-Encoding: {coding}\r\n" for coding in CODINGS),
        *(f"Connection: {option}\r\n" for option in OPTIONS),
        *OTHERS,
    )
]
SIZES = ["5", "5", "5", "+5", "0x5", "1_0", " 5", "5 ", "", "5;a=b", "5; a b", "5;\x01", "00005", "6", "4"]
TRAILERS = ["A: b", "A: \x01", "A: \x7f", "no colon", "A: b\r\n c", "A: b\nC: d"]
TRAILERS += ["Content-Length: 5", "Connection: close", "Transfer-Encoding: gzip"]
ODD_BODIES = [
    *(
        b"",
        b"hello",
        b"hello",
        b"hell",
        b"hello!",
        b"helloHTTP/1.1 200 OK\r\n\r\n",
        b"0\r\n\r\n",
        b"0\r\n\r\n0\r\n\r\n",
    ),
    *(f"{size}\r\nhello\r\n0\r\n\r\n".encode() for size in SIZES),
    *(f"5\r\nhello\r\n0\r\n{trailer}\r\n\r\n".encode() for trailer in TRAILERS),
    *(f"5{end}hello{end}0{end}{end}".encode() for end in ["\n", "\r", "\r\r\n", "\r\n\r\n", " \r\n"]),
    *(b"5\r\nhello\r\n0\r\n", b"5\r\nhello\r\n", b"5\r\nhel", b"5\r\nhello!\r\n0\r\n\r\n", b"5\r\nhello\n0\r\n\r\n"),
]


@st.composite
def odd_responses(draw: st.DrawFn) -> tuple[str, bytes]:
    """A method, and odd lines thrown together."""
    method = draw(st.sampled_from(["GET", "GET", "GET", "POST", "HEAD"]))
    lines = draw(st.lists(st.sampled_from(ODD_LINES), max_size=4))
    return method, draw(st.sampled_from(STATUS_LINES)) + b"".join(lines) + b"\r\n" + draw(st.sampled_from(ODD_BODIES))


arbitrary_bytes = st.tuples(
    st.sampled_from(["GET", "HEAD"]),
    st.binary(max_size=60)
    | st.lists(st.sampled_from([*SNIPPETS, *STATUS_LINES, *ODD_LINES, *ODD_BODIES]), max_size=10).map(b"".join),
)
any_responses = st.one_of(mutated_responses(), odd_responses(), arbitrary_bytes)


# --- the peer ---------------------------------------------------------------------------------------------------------


class End(enum.Enum):
    """What comes when all segments are sent."""

    NOTHING_IS_DUE = "whoever receives now would wait for ever"
    EOF = "the peer ends its side"
    RESET = "the connection is reset"
    SILENCE = "the socket's timeout fires"


# How often the end may be looked at again: a loop that does not notice it goes on for ever.
RECEIVES_AT_THE_END = 6


class PlayedSocket(socket.socket):
    """Our end of a socketpair; the other end plays a script, one segment for each receive that finds nothing."""

    def __init__(self, segments: Iterable[bytes] = (), end: End = End.NOTHING_IS_DUE) -> None:
        ours, self.other_end = socket.socketpair()
        super().__init__(fileno=ours.detach())
        self._held = 0  # sent by the other end and not received yet
        self._received_at_the_end = 0
        self._plan: Iterator[bytes] = iter(())
        self.end = End.NOTHING_IS_DUE
        self.play(segments, end)

    def play(self, segments: Iterable[bytes], end: End = End.NOTHING_IS_DUE) -> None:
        """Go on with another script, behind whatever is left of the one before."""
        self._plan = itertools.chain(self._plan, segments)
        self.end = end

    def send_everything(self) -> int:
        """Send what is left of the script now; return how many bytes that were."""
        rest = b"".join(self._plan)
        self.other_end.sendall(rest)
        self._held += len(rest)
        return len(rest)

    @property
    def unreceived(self) -> int:
        """How many bytes of the script nobody has received, those that are not sent yet included."""
        rest = list(self._plan)
        self._plan = iter(rest)
        return self._held + sum(map(len, rest))

    def requests(self) -> bytes:
        """Return what has been sent to the other end since the last call."""
        received = b""
        try:
            while arrived := self.other_end.recv(65536, socket.MSG_DONTWAIT):
                received += arrived
        except BlockingIOError:
            pass
        return received

    def _go_on(self) -> None:
        if self._held:
            return
        for segment in self._plan:
            if segment:
                self.other_end.sendall(segment)
                self._held = len(segment)
                return
        self._received_at_the_end += 1
        assert self._received_at_the_end <= RECEIVES_AT_THE_END, "receives again and again at the end"
        assert self.end is not End.NOTHING_IS_DUE, "receives although everything has come: would wait for ever"
        if self.end is End.RESET:
            raise ConnectionResetError("played")
        if self.end is End.SILENCE:
            raise TimeoutError("played")
        self.other_end.shutdown(socket.SHUT_WR)

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        if flags:  # the probe, which only looks
            return super().recv(bufsize, flags)
        self._go_on()
        data = super().recv(bufsize)
        self._held -= len(data)
        return data

    # Any: the buffer types of the standard library's stubs have private names.
    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        self._go_on()
        count = super().recv_into(buffer, nbytes, flags)
        self._held -= count
        return count

    @property
    def is_closed(self) -> bool:
        return self.fileno() < 0


class PlayedOrigin:
    """Who is connected to: each connection gets the next socket, and one that nobody has planned fails the test.

    Args:
        sockets: In the order in which they are connected.
    """

    def __init__(self, *sockets: PlayedSocket) -> None:
        self._sockets = list(sockets)
        self._waiting = list(sockets)
        self.connections = 0

    def add(self, sock: PlayedSocket) -> PlayedSocket:
        self._sockets.append(sock)
        self._waiting.append(sock)
        return sock

    def connect(self, address: object = None, timeout: object = None, source_address: object = None) -> PlayedSocket:
        assert self._waiting, "connects once more than planned"
        self.connections += 1
        return self._waiting.pop(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sock in self._sockets:
            sock.close()
            sock.other_end.close()


class PlayedDialer(Dialer):
    """Reaches a `PlayedOrigin`."""

    origin: PlayedOrigin

    def dial(self, deadline: ConnectDeadline) -> PlayedSocket:
        return self.origin.connect()


def connection_to(origin: PlayedOrigin) -> HTTPConnection:
    conn = HTTPConnection("peer.test")
    conn._create_connection = origin.connect  # the seam that the interpreter's own tests use
    return conn


def pool_to(origin: PlayedOrigin) -> ConnectionPool:
    pool = ConnectionPool("peer.test", registry=None)
    pool._opener._dialer = PlayedDialer(host="peer.test", port=80, origin=origin)
    return pool


class ForeignSocket:
    """A socket that has only ``sendall``, ``makefile`` and ``close``, with its response in memory."""

    def __init__(self, wire: bytes) -> None:
        self.file = io.BytesIO(wire)
        self.sent = b""
        self.is_closed = False

    def sendall(self, data: bytes, /) -> None:
        self.sent += bytes(data)

    def makefile(self, mode: str, /) -> ForeignSocket:
        return self

    def read(self, size: int = -1, /) -> bytes:
        return self.file.read(size)

    def readline(self, size: int = -1, /) -> bytes:
        return self.file.readline(size)

    def readinto(self, buffer: Any, /) -> int:
        return self.file.readinto(buffer)

    def flush(self) -> None:
        """Do nothing: http.client calls it."""

    def close(self) -> None:
        self.is_closed = True
