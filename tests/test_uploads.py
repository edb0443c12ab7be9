"""Bodies on their way out: every kind arrives whole, regular files by sendfile, and a peer that answers early is heard.

Each fault test ends with the same audit: descriptors and threads are back at the start, the pool's counters add up, and
one more request works.
"""

from __future__ import annotations

import array
import bz2
import contextlib
import functools
import gc
import gzip
import io
import itertools
import lzma
import mmap
import os
import random
import socket
import ssl
import tarfile
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import pytest
import trustme

from pooledhttp import (
    CannotSendHeader,
    ConnectionPool,
    HTTPConnection,
    HTTPException,
    HTTPSConnection,
    PoolConfig,
    RemoteDisconnected,
    Timeout,
    TotalTimeout,
    WriteTimeout,
)
from pooledhttp.request import prepare
from pooledhttp.states import State
from pooledhttp.testing import (
    Close,
    ExpectBody,
    ExpectHead,
    HalfClose,
    KeepOpen,
    Peer,
    ReadToEnd,
    ReceivedRequest,
    Repeat,
    Reset,
    ResourceAudit,
    Respond,
    ScriptedServer,
    Send,
    ServerFactory,
    Stall,
    Step,
    Trickle,
)

BOUND: Final = 10.0
PATIENT: Final = Timeout(acquire=BOUND, connect=BOUND, read=BOUND, write=BOUND)
HELLO: Final = Respond(body=b"hello")
ANSWERS: Final[list[Step]] = [Repeat([ExpectHead(), HELLO])]
PLENTY: Final = 20_000_000  # more than the buffers of a loopback connection hold
# Longer than what leaves with the head, and no multiple of any block.
CONTENT: Final = random.Random(3).randbytes(150_001)
# How sending fails when the peer has closed; whether that is met before its answer is seen is a race.
PEER_LEFT: Final = (BrokenPipeError, ConnectionResetError, ConnectionAbortedError, ssl.SSLEOFError)

T = TypeVar("T")


# --- what the tests stand on ------------------------------------------------------------------------------------------


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


@functools.cache
def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("127.0.0.1").configure_cert(context)
    return context


@functools.cache
def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context


class Line:
    """Plain TCP or TLS: how to serve over it, and how to reach what is served.

    Attributes:
        is_tls: Which of the two.
        stopped: Set by a test when its client has stopped sending, for a script that waits for that.
    """

    def __init__(self, scripted_server: ServerFactory, audit: ResourceAudit, stack: ExitStack, *, is_tls: bool) -> None:
        self.is_tls = is_tls
        self.stopped = threading.Event()
        self._scripted_server = scripted_server
        self._audit = audit
        self._stack = stack

    def serve(self, *scripts: Any, default: Any = ANSWERS) -> ScriptedServer:
        return self._scripted_server(
            *scripts, default=default, ssl_context=server_context() if self.is_tls else None, timeout=BOUND
        )

    def connect_to(self, server: ScriptedServer, *, timeout: float | None = BOUND, **options: Any) -> HTTPConnection:
        if self.is_tls:
            return HTTPSConnection(server.host, server.port, timeout=timeout, context=client_context(), **options)
        return HTTPConnection(server.host, server.port, timeout=timeout, **options)

    def pool_for(self, server: ScriptedServer, **options: Any) -> ConnectionPool:
        settings: dict[str, Any] = {"registry": None, "timeout": PATIENT, "maxsize": 1, **options}
        if self.is_tls:
            settings["ssl_context"] = client_context()
        config = PoolConfig(**settings)
        scheme = "https" if self.is_tls else "http"
        pool = self._stack.enter_context(ConnectionPool(server.host, server.port, scheme=scheme, config=config))
        self._audit.watch(pool)
        return pool


@pytest.fixture(params=["plain", "tls"])
def line(request: pytest.FixtureRequest, scripted_server: ServerFactory, audit: ResourceAudit) -> Iterator[Line]:
    with ExitStack() as stack:
        yield Line(scripted_server, audit, stack, is_tls=request.param == "tls")


@pytest.fixture
def plain(scripted_server: ServerFactory, audit: ResourceAudit) -> Iterator[Line]:
    with ExitStack() as stack:
        yield Line(scripted_server, audit, stack, is_tls=False)


@pytest.fixture
def tls(scripted_server: ServerFactory, audit: ResourceAudit) -> Iterator[Line]:
    with ExitStack() as stack:
        yield Line(scripted_server, audit, stack, is_tls=True)


Runner = Callable[[Callable[[], T]], T]


@pytest.fixture(params=["main thread", "other thread"])
def run(request: pytest.FixtureRequest, audit: ResourceAudit) -> Iterator[Runner[Any]]:
    """Run the client here or in a thread: the waits of a pool's connection differ (its sockets block or do not)."""
    if request.param == "main thread":
        yield lambda work: work()
        return
    with ThreadPoolExecutor(1) as executor:
        yield lambda work: executor.submit(work).result(BOUND * 3)


def finish(conn: HTTPConnection) -> None:
    """One normal request, then the end."""
    conn.request("GET", "/again")
    assert conn.getresponse().read() == b"hello"
    conn.close()


def finish_pool(pool: ConnectionPool) -> None:
    """One normal request, without waiting for a slot: whatever happened before has left the pool in order."""
    assert pool.request("GET", "/again", timeout=Timeout(acquire=0, connect=BOUND, read=BOUND)).data == b"hello"
    stats = pool.stats()
    assert (stats.idle, stats.leased, stats.opening, stats.waiting) == (1, 0, 0, 0)


def counted(counts: Any) -> dict[str, int]:
    """Return counters without the zeros."""
    return {key: count for key, count in counts.items() if count}


def framing_of(request: ReceivedRequest) -> str | None:
    """Return Transfer-Encoding or Content-Length as it was sent; never both."""
    coding, length = request.field("Transfer-Encoding"), request.field("Content-Length")
    assert coding is None or length is None
    return coding or length


def post(conn: HTTPConnection, body: Any, headers: dict[str, str] | None = None, **options: Any) -> None:
    """Send a request whose peer may end the connection at any moment; its answer is still to be delivered."""
    with contextlib.suppress(*PEER_LEFT):
        conn.request("POST", "/upload", body, headers or {}, **options)


# --- every kind of body -----------------------------------------------------------------------------------------------

Made = tuple[Any, bytes, str]  # the body, what must arrive, and the framing it goes with
Maker = Callable[[Path, ExitStack], Made]
CHUNKS: Final = "chunked"


def exactly(content: bytes) -> str:
    return str(len(content))


def file_at(directory: Path, content: bytes = CONTENT) -> Path:
    path = directory / "body"
    path.write_bytes(content)
    return path


def opened(mode: str, *, offset: int = 0, content: bytes = CONTENT, buffering: int = -1) -> Maker:
    def make(directory: Path, stack: ExitStack) -> Made:
        file = stack.enter_context(file_at(directory, content).open(mode, buffering))
        file.seek(offset)
        rest = content[offset:]
        return file, rest, exactly(rest)

    return make


def made_of(body: Any, content: bytes, framing: str | None = None) -> Maker:
    return lambda directory, stack: (body() if callable(body) else body, content, framing or exactly(content))


def temporary(make: Callable[[], Any], framing: str | None = None) -> Maker:
    def fill(directory: Path, stack: ExitStack) -> Made:
        file = stack.enter_context(make())
        file.write(CONTENT)
        file.seek(5)
        return file, CONTENT[5:], framing or exactly(CONTENT[5:])

    return fill


def partly_read(directory: Path, stack: ExitStack) -> Made:
    """Its own position is behind ten bytes, its descriptor's behind a whole buffer."""
    file = stack.enter_context(file_at(directory).open("rb"))
    file.read(10)
    return file, CONTENT[10:], exactly(CONTENT[10:])


def partly_written(directory: Path, stack: ExitStack) -> Made:
    """Bytes that were written to it are not in the file yet, and a seek within its buffer does not put them there."""
    file = stack.enter_context(file_at(directory).open("r+b"))
    file.read(10)
    file.write(b"written")
    file.seek(5)
    content = CONTENT[5:10] + b"written" + CONTENT[17:]
    return file, content, exactly(content)


def decompressing(module: Any, reader: Callable[[Path], Any]) -> Maker:
    """The descriptor is that of the compressed file."""

    def make(directory: Path, stack: ExitStack) -> Made:
        content = CONTENT + bytes(100_000)
        return stack.enter_context(reader(file_at(directory, module.compress(content)))), content, CHUNKS

    return make


def member_of_an_archive(directory: Path, stack: ExitStack) -> Made:
    path = directory / "archive.tar"
    with tarfile.open(path, "w") as writer:
        for name, content in (("before", b"b" * 999), ("body", CONTENT), ("after", b"a" * 999)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            writer.addfile(info, io.BytesIO(content))
    archive = stack.enter_context(tarfile.TarFile(path))
    member = archive.extractfile("body")
    assert member is not None
    return stack.enter_context(member), CONTENT, CHUNKS


class Upper(io.FileIO):
    """A regular file that reads otherwise than it lies on the disk."""

    def read(self, size: int | None = -1, /) -> bytes:
        return (super().read(size) or b"").upper()

    def readinto(self, buffer: Any, /) -> int:
        block = self.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)


class Watched:
    """What shows progress: it has the descriptor of a regular file, and reads by itself."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.count = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1, /) -> bytes:
        block: bytes = self._file.read(size)
        self.count += len(block)
        return block


def subclass_of_a_file(directory: Path, stack: ExitStack) -> Made:
    return stack.enter_context(Upper(file_at(directory))), CONTENT.upper(), CHUNKS


def buffer_over_a_subclass(directory: Path, stack: ExitStack) -> Made:
    return stack.enter_context(io.BufferedReader(Upper(file_at(directory)))), CONTENT.upper(), CHUNKS


def watched(directory: Path, stack: ExitStack) -> Made:
    return Watched(stack.enter_context(file_at(directory).open("rb"))), CONTENT, CHUNKS


def mapped(directory: Path, stack: ExitStack) -> Made:
    file = stack.enter_context(file_at(directory).open("rb"))
    return stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)), CONTENT, CHUNKS


def text_file(directory: Path, stack: ExitStack) -> Made:
    # Its size in bytes is twice its length in latin-1.
    path = file_at(directory, ("\xe4" * 50_000).encode("utf-8"))
    return stack.enter_context(path.open(encoding="utf-8")), b"\xe4" * 50_000, CHUNKS


def pipe(directory: Path, stack: ExitStack) -> Made:
    reader, writer = os.pipe()
    os.write(writer, CONTENT[:5000])
    os.close(writer)
    return stack.enter_context(os.fdopen(reader, "rb")), CONTENT[:5000], CHUNKS


def generated() -> Iterator[bytes]:
    for at in range(0, len(CONTENT), 9999):
        yield CONTENT[at : at + 9999]


INTS: Final = array.array("I", range(40_000))
STEPPED: Final = memoryview(CONTENT)[::3]

KINDS: Final[dict[str, Maker]] = {
    "nothing": made_of(None, b""),
    "no bytes": made_of(b"", b""),
    "bytes": made_of(CONTENT, CONTENT),
    "few bytes": made_of(b"abc", b"abc"),
    "bytearray": made_of(bytearray(CONTENT), CONTENT),
    "memoryview": made_of(memoryview(CONTENT), CONTENT),
    "memoryview of ints": made_of(memoryview(INTS), INTS.tobytes()),
    "memoryview of two dimensions": made_of(memoryview(INTS).cast("B").cast("B", (400, 400)), INTS.tobytes()),
    "memoryview with gaps": made_of(STEPPED, STEPPED.tobytes()),
    "memoryview backwards": made_of(memoryview(b"abc")[::-1], b"cba"),
    "array": made_of(INTS, INTS.tobytes()),
    "text": made_of("\xe4" * 100_000, b"\xe4" * 100_000),
    "BytesIO": made_of(lambda: io.BytesIO(CONTENT), CONTENT, CHUNKS),
    "StringIO": made_of(lambda: io.StringIO("\xe4\n" * 50_000), b"\xe4\n" * 50_000, CHUNKS),
    "generator": made_of(generated, CONTENT, CHUNKS),
    "list": made_of([b"a", b"bc"], b"abc", CHUNKS),
    "list of buffers": made_of([bytearray(b"a"), memoryview(b"bc"), INTS], b"abc" + INTS.tobytes(), CHUNKS),
    "empty list": made_of([], b"", CHUNKS),
    "pieces that are empty": made_of([b"", b"a", b"", bytearray(), b"bc", b""], b"abc", CHUNKS),
    "file": opened("rb"),
    "file at an offset": opened("rb", offset=77_777),
    "file at its end": opened("rb", offset=len(CONTENT)),
    "file beyond its end": opened("rb", offset=len(CONTENT) + 99),
    "empty file": opened("rb", content=b""),
    "small file": opened("rb", content=b"abc"),
    "unbuffered file": opened("rb", buffering=0, offset=11),
    "file for updates": opened("r+b", offset=11),
    "file for appending": opened("a+b"),
    "file that was partly read": partly_read,
    "file that was partly written": partly_written,
    "TemporaryFile": temporary(tempfile.TemporaryFile),
    "unbuffered TemporaryFile": temporary(functools.partial(tempfile.TemporaryFile, buffering=0)),
    "NamedTemporaryFile": temporary(tempfile.NamedTemporaryFile),
    "SpooledTemporaryFile in memory": temporary(functools.partial(tempfile.SpooledTemporaryFile, 1 << 20), CHUNKS),
    "SpooledTemporaryFile rolled over": temporary(functools.partial(tempfile.SpooledTemporaryFile, 1000)),
    "gzip reader": decompressing(gzip, gzip.open),
    "bz2 reader": decompressing(bz2, bz2.open),
    "lzma reader": decompressing(lzma, lzma.open),
    "member of an archive": member_of_an_archive,
    "subclass of a file": subclass_of_a_file,
    "buffer over a subclass of a file": buffer_over_a_subclass,
    "wrapper around a file": watched,
    "mmap": mapped,
    "text file": text_file,
    "pipe": pipe,
}
every_kind = pytest.mark.parametrize("kind", KINDS)
# One for each way through the code.
some_kinds = pytest.mark.parametrize(
    "kind",
    [
        "nothing", "bytes", "memoryview of ints", "memoryview with gaps", "text", "BytesIO", "StringIO", "generator",
        "pieces that are empty", "file at an offset", "empty file", "NamedTemporaryFile", "gzip reader", "pipe",
    ],
)  # fmt: skip
SEEKABLE: Final = [kind for kind in KINDS if "file" in kind.lower() and kind != "text file"]


@every_kind
def test_body_of_every_kind_arrives_whole(kind: str, line: Line, tmp_path: Path) -> None:
    server = line.serve()
    conn = line.connect_to(server)
    with ExitStack() as stack:
        body, content, framing = KINDS[kind](tmp_path, stack)
        conn.request("POST", "/upload", body)
        assert conn.getresponse().read() == b"hello"
    assert server.requests[0].body == content
    assert framing_of(server.requests[0]) == framing
    finish(conn)
    assert server.accepted == 1


@every_kind
def test_body_of_every_kind_arrives_whole_from_a_pool(kind: str, plain: Line, tmp_path: Path) -> None:
    server = plain.serve()
    pool = plain.pool_for(server)
    with ExitStack() as stack:
        body, content, framing = KINDS[kind](tmp_path, stack)
        assert pool.request("POST", "/upload", body).data == b"hello"
    assert server.requests[0].body == content
    assert framing_of(server.requests[0]) == framing
    finish_pool(pool)
    assert server.accepted == 1


@every_kind
def test_body_of_every_kind_arrives_whole_in_chunks_when_these_are_asked_for(
    kind: str, plain: Line, tmp_path: Path
) -> None:
    server = plain.serve()
    conn = plain.connect_to(server)
    with ExitStack() as stack:
        body, content, _ = KINDS[kind](tmp_path, stack)
        if body is None:
            body = b""
        conn.request("POST", "/upload", body, {"Transfer-Encoding": "chunked"}, encode_chunked=True)
        assert conn.getresponse().read() == b"hello"
    assert server.requests[0].body == content
    assert framing_of(server.requests[0]) == "chunked"
    finish(conn)
    assert server.accepted == 1


@some_kinds
def test_body_of_any_kind_arrives_whole_under_a_length_of_the_caller(kind: str, plain: Line, tmp_path: Path) -> None:
    server = plain.serve()
    conn = plain.connect_to(server)
    with ExitStack() as stack:
        body, content, _ = KINDS[kind](tmp_path, stack)
        conn.request("POST", "/upload", body, {"Content-Length": exactly(content)})
        assert conn.getresponse().read() == b"hello"
    assert server.requests[0].body == content
    assert framing_of(server.requests[0]) == exactly(content)
    finish(conn)


@some_kinds
@pytest.mark.parametrize("by_send", [False, True], ids=["endheaders", "send"])
def test_body_of_any_kind_arrives_whole_by_the_steps(by_send: bool, kind: str, plain: Line, tmp_path: Path) -> None:
    server = plain.serve()
    conn = plain.connect_to(server)
    with ExitStack() as stack:
        body, content, _ = KINDS[kind](tmp_path, stack)
        conn.putrequest("POST", "/upload")
        conn.putheader("Content-Length", exactly(content))
        if by_send and not isinstance(body, str):  # send() takes no text
            conn.endheaders()
            conn.send(b"" if body is None else body)
        else:
            conn.endheaders(body)
        assert conn.getresponse().read() == b"hello"
    assert server.requests[0].body == content
    finish(conn)


@some_kinds
def test_body_that_the_caller_has_put_into_chunks_is_sent_as_it_is(kind: str, plain: Line, tmp_path: Path) -> None:
    content: list[bytes] = []

    def takes_it_raw(peer: Peer) -> None:
        peer.read_head()
        while len(peer.unread) < len(content[0]):
            peer._receive()
        peer.send(HELLO.encode("POST"))
        peer.read_to_end()

    with ExitStack() as stack:
        body, raw, _ = KINDS[kind](tmp_path, stack)
        content.append(raw)
        server = plain.serve(takes_it_raw)
        conn = plain.connect_to(server)
        conn.request("POST", "/upload", body, {"Transfer-Encoding": "chunked"})
        assert conn.getresponse().read() == b"hello"
    assert conn.state is State.CLOSED  # nobody has checked where the body ends
    assert server.peer().ended.wait(BOUND)
    assert server.peer().received.partition(b"\r\n\r\n")[2] == raw
    finish(conn)


@pytest.mark.parametrize("kind", SEEKABLE)
def test_position_of_a_file_is_behind_what_was_sent(kind: str, line: Line, tmp_path: Path) -> None:
    server = line.serve()
    conn = line.connect_to(server)
    with ExitStack() as stack:
        body, content, _ = KINDS[kind](tmp_path, stack)
        before = body.tell()
        conn.request("POST", "/upload", body)
        assert conn.getresponse().read() == b"hello"
        assert body.tell() == before + len(content)
        assert body.read(1) == b""
    finish(conn)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no file here has more in it than it tells")
def test_file_that_has_more_in_it_than_it_tells_is_sent_whole(line: Line) -> None:
    path = Path("/proc/cpuinfo")  # regular, of size 0
    server = line.serve()
    conn = line.connect_to(server)
    with path.open("rb") as file:
        conn.request("POST", "/upload", file)
    assert conn.getresponse().read() == b"hello"
    assert server.requests[0].body.startswith(path.read_bytes()[:20])
    finish(conn)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", ["\u20ac", "a" * 100_000 + "\u0100"], ids=["short", "long"])
@pytest.mark.parametrize("encode_chunked", [False, True])
def test_text_that_is_not_latin_1_is_refused_before_anything_is_opened(
    body: str, encode_chunked: bool, plain: Line
) -> None:
    server = plain.serve()
    conn = plain.connect_to(server)
    headers = {"Transfer-Encoding": "chunked"} if encode_chunked else {}
    with pytest.raises(UnicodeEncodeError, match=r"encode\('utf-8'\)"):
        conn.request("POST", "/upload", body, headers, encode_chunked=encode_chunked)
    pool = plain.pool_for(server)
    with pytest.raises(UnicodeEncodeError, match=r"encode\('utf-8'\)"):
        pool.request("POST", "/upload", body, headers)
    assert server.accepted == 0
    finish(conn)
    finish_pool(pool)


@pytest.mark.parametrize("body", [{}, {b"a": b"b"}, {"a": 1}], ids=repr)
def test_dict_is_no_body(body: Any, plain: Line) -> None:
    server = plain.serve()
    conn = plain.connect_to(server)
    with pytest.raises(TypeError, match="dict"):
        conn.request("POST", "/upload", body)
    pool = plain.pool_for(server)
    with pytest.raises(TypeError, match="dict"):
        pool.request("POST", "/upload", body)
    assert server.accepted == 0
    finish(conn)
    finish_pool(pool)


@pytest.mark.parametrize("body", [5, 1.5, True, object()], ids=["5", "1.5", "True", "object"])
def test_what_is_no_body_is_refused_before_anything_is_opened(body: Any, plain: Line) -> None:
    server = plain.serve()
    conn = plain.connect_to(server)
    with pytest.raises(TypeError, match="bytes-like object or an iterable"):
        conn.request("POST", "/upload", body)
    assert server.accepted == 0
    finish(conn)


def broken_file(directory: Path, stack: ExitStack) -> Any:
    file = file_at(directory).open("rb")
    file.close()
    return file


def write_only_file(directory: Path, stack: ExitStack) -> Any:
    return stack.enter_context((directory / "target").open("wb"))


def text_outside_latin_1(directory: Path, stack: ExitStack) -> Any:
    path = file_at(directory, ("a" * 50_000 + "\u20ac").encode("utf-8"))
    return stack.enter_context(path.open(encoding="utf-8"))


def raising(fault: BaseException) -> Callable[[Path, ExitStack], Any]:
    def pieces() -> Iterator[bytes]:
        yield b"a" * 100_000
        raise fault

    return lambda directory, stack: pieces()


UNREADABLE: Final[dict[str, tuple[Callable[[Path, ExitStack], Any], type[BaseException]]]] = {
    "closed file": (broken_file, ValueError),
    "file for writing": (write_only_file, io.UnsupportedOperation),
    "text file outside latin-1": (text_outside_latin_1, UnicodeEncodeError),
    "pieces of text": (lambda directory, stack: [b"a" * 100_000, "b"], TypeError),
    "pieces that are ints": (lambda directory, stack: [b"a" * 100_000, 5], TypeError),
    "generator that raises": (raising(LookupError("the rest is missing")), LookupError),
    "generator that raises an OSError": (raising(OSError("the disk is gone")), OSError),
    "generator that raises a broken pipe of its own": (raising(BrokenPipeError("its own")), BrokenPipeError),
    "generator that is interrupted": (raising(KeyboardInterrupt()), KeyboardInterrupt),
}
FRAMINGS: Final[dict[str, dict[str, str]]] = {
    "chunks": {"Transfer-Encoding": "chunked"},
    "length": {"Content-Length": "900000"},
    "no framing of the caller": {},
}
TOLERANT: Final[list[Step]] = [Repeat([ExpectHead(optional=True), HELLO])]  # a request may be cut short
every_framing = pytest.mark.parametrize("framing", FRAMINGS)


@every_framing
@pytest.mark.parametrize("kind", UNREADABLE)
def test_body_that_fails_midway_never_looks_complete_and_closes_the_connection(
    kind: str, framing: str, line: Line, tmp_path: Path
) -> None:
    server = line.serve(default=TOLERANT)
    conn = line.connect_to(server)
    make, error = UNREADABLE[kind]
    with ExitStack() as stack:
        body = make(tmp_path, stack)
        with pytest.raises(error):
            conn.request("POST", "/upload", body, FRAMINGS[framing], encode_chunked=True)
    assert conn.state is State.CLOSED
    if server.accepted:  # else it was refused before anything was opened
        assert server.peer().ended.wait(BOUND)
    assert server.requests == []
    finish(conn)


@every_framing
@pytest.mark.parametrize("kind", UNREADABLE)
def test_body_that_fails_midway_frees_its_slot(kind: str, framing: str, plain: Line, tmp_path: Path) -> None:
    server = plain.serve(default=TOLERANT)
    pool = plain.pool_for(server)
    make, error = UNREADABLE[kind]
    with ExitStack() as stack:
        body = make(tmp_path, stack)
        with pytest.raises(error):
            pool.request("POST", "/upload", body, FRAMINGS[framing])
    assert server.requests == []
    assert counted(pool.stats().closed) in ({"error": 1}, {})
    finish_pool(pool)


# --- sendfile ---------------------------------------------------------------------------------------------------------

SENT_BY_THE_KERNEL: Final = [
    "file", "file at an offset", "small file", "unbuffered file", "file for updates", "file for appending",
    "file that was partly read", "file that was partly written", "TemporaryFile", "unbuffered TemporaryFile",
    "NamedTemporaryFile", "SpooledTemporaryFile rolled over",
]  # fmt: skip
NOT_SENT_BY_THE_KERNEL: Final = [
    "bytes", "BytesIO", "generator", "SpooledTemporaryFile in memory", "gzip reader", "bz2 reader", "lzma reader",
    "member of an archive", "subclass of a file", "buffer over a subclass of a file", "wrapper around a file", "mmap",
    "text file", "pipe",
]  # fmt: skip
WITHOUT_A_BYTE: Final = ["file at its end", "file beyond its end", "empty file"]
needs_sendfile = pytest.mark.skipif(not hasattr(os, "sendfile"), reason="this platform has no sendfile to look at")


class Sendfile:
    """`os.sendfile`, counted."""

    def __init__(self, real: Callable[..., int]) -> None:
        self._real = real
        self.sent = 0
        self.calls = 0

    def __call__(self, *arguments: Any) -> int:
        self.calls += 1
        count = self._real(*arguments)
        self.sent += count
        return count


@pytest.fixture
def sendfile(monkeypatch: pytest.MonkeyPatch) -> Sendfile:
    counting = Sendfile(os.sendfile)
    monkeypatch.setattr(os, "sendfile", counting)
    return counting


@needs_sendfile
@pytest.mark.parametrize("kind", SENT_BY_THE_KERNEL)
def test_regular_file_is_sent_by_the_kernel(kind: str, plain: Line, tmp_path: Path, sendfile: Sendfile) -> None:
    server = plain.serve()
    conn = plain.connect_to(server)
    with ExitStack() as stack:
        body, content, _ = KINDS[kind](tmp_path, stack)
        conn.request("PUT", "/upload", body)
        assert conn.getresponse().read() == b"hello"
    assert sendfile.sent == len(content)
    assert server.requests[0].body == content
    finish(conn)


@needs_sendfile
def test_regular_file_of_a_pool_is_sent_by_the_kernel(
    plain: Line, run: Runner[Any], tmp_path: Path, sendfile: Sendfile
) -> None:
    server = plain.serve()
    pool = plain.pool_for(server)
    with file_at(tmp_path).open("rb") as file:
        assert run(lambda: pool.request("PUT", "/upload", file)).data == b"hello"
    assert sendfile.sent == len(CONTENT)
    finish_pool(pool)


@needs_sendfile
@pytest.mark.parametrize("kind", NOT_SENT_BY_THE_KERNEL)
def test_what_is_no_regular_file_is_not_sent_by_the_kernel(
    kind: str, plain: Line, tmp_path: Path, sendfile: Sendfile
) -> None:
    server = plain.serve()
    conn = plain.connect_to(server)
    with ExitStack() as stack:
        conn.request("PUT", "/upload", KINDS[kind](tmp_path, stack)[0])
        assert conn.getresponse().read() == b"hello"
    assert sendfile.sent == 0
    finish(conn)


@needs_sendfile
@pytest.mark.parametrize("kind", SENT_BY_THE_KERNEL)
def test_file_is_not_sent_by_the_kernel_past_the_encryption(
    kind: str, tls: Line, tmp_path: Path, sendfile: Sendfile
) -> None:
    server = tls.serve()
    conn = tls.connect_to(server)
    with ExitStack() as stack:
        body, content, _ = KINDS[kind](tmp_path, stack)
        conn.request("PUT", "/upload", body)
        assert conn.getresponse().read() == b"hello"
    assert sendfile.calls == 0
    assert server.requests[0].body == content
    finish(conn)


@needs_sendfile
def test_file_in_chunks_is_not_sent_by_the_kernel(plain: Line, tmp_path: Path, sendfile: Sendfile) -> None:
    server = plain.serve()
    conn = plain.connect_to(server)
    with file_at(tmp_path).open("rb") as file:
        conn.request("PUT", "/upload", file, {"Transfer-Encoding": "chunked"}, encode_chunked=True)
    assert conn.getresponse().read() == b"hello"
    assert sendfile.calls == 0
    finish(conn)


@needs_sendfile
@pytest.mark.parametrize("kind", [*SENT_BY_THE_KERNEL, *WITHOUT_A_BYTE])
def test_platform_without_sendfile_reads_the_file(
    kind: str, plain: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sendfile")
    server = plain.serve()
    conn = plain.connect_to(server)
    with ExitStack() as stack:
        body, content, framing = KINDS[kind](tmp_path, stack)
        before = body.tell()
        conn.request("PUT", "/upload", body)
        assert conn.getresponse().read() == b"hello"
        assert body.tell() == before + len(content)
    assert server.requests[0].body == content
    assert framing_of(server.requests[0]) == framing
    finish(conn)


@needs_sendfile
@pytest.mark.parametrize("code", ["EINVAL", "ENOSYS", "EOPNOTSUPP"])
def test_file_that_the_kernel_cannot_send_is_read(
    code: str, plain: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def refuse(*_: object) -> int:
        raise OSError(getattr(errno, code), "not for this file")

    monkeypatch.setattr(os, "sendfile", refuse)
    server = plain.serve()
    conn = plain.connect_to(server)
    with file_at(tmp_path).open("rb") as file:
        file.seek(7)
        conn.request("PUT", "/upload", file)
    assert conn.getresponse().read() == b"hello"
    assert server.requests[0].body == CONTENT[7:]
    finish(conn)
    assert server.accepted == 1


@needs_sendfile
def test_error_of_the_disk_while_the_kernel_sends_closes_the_connection(
    plain: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "the disk is gone")

    server = plain.serve([ExpectHead(optional=True)])
    conn = plain.connect_to(server)
    with file_at(tmp_path).open("rb") as file, monkeypatch.context() as patch:
        patch.setattr(os, "sendfile", fail)
        with pytest.raises(OSError, match="the disk is gone"):
            conn.request("PUT", "/upload", file)
    assert conn.state is State.CLOSED
    assert server.peer().ended.wait(BOUND)
    assert server.requests == []
    finish(conn)


@needs_sendfile
def test_small_counts_of_the_kernel_add_up(plain: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.sendfile
    sizes = itertools.cycle([1, 700, 1, 30_000])
    monkeypatch.setattr(os, "sendfile", lambda out, file, at, count: real(out, file, at, min(count, next(sizes))))
    server = plain.serve()
    conn = plain.connect_to(server)
    with file_at(tmp_path).open("rb") as file:
        conn.request("PUT", "/upload", file)
    assert conn.getresponse().read() == b"hello"
    assert server.requests[0].body == CONTENT
    finish(conn)


def sparse(directory: Path, size: int = PLENTY) -> Path:
    path = directory / "sparse"
    with path.open("wb") as file:
        file.truncate(size)
    return path


@pytest.mark.parametrize("buffering", [-1, 0], ids=["buffered", "unbuffered"])
def test_file_that_shrinks_while_it_is_sent_closes_the_connection_and_says_so(
    buffering: int, line: Line, tmp_path: Path
) -> None:
    path = sparse(tmp_path)

    def shrinks_it(peer: Peer) -> None:
        peer.read_head()
        os.truncate(path, PLENTY - 1000)  # not all of it can have been sent: nobody has read a byte
        peer.read_to_end()

    server = line.serve(shrinks_it)
    conn = line.connect_to(server)
    with path.open("rb", buffering) as file, pytest.raises(ValueError, match=r"shrank.* 1000 bytes short"):
        conn.request("PUT", "/upload", file)
    assert conn.state is State.CLOSED
    assert server.peer().ended.wait(BOUND)
    assert len(server.peer().received.partition(b"\r\n\r\n")[2]) == PLENTY - 1000
    finish(conn)


def test_file_that_shrinks_frees_its_slot(line: Line, run: Runner[Any], tmp_path: Path) -> None:
    path = sparse(tmp_path)

    def shrinks_it(peer: Peer) -> None:
        peer.read_head()
        os.truncate(path, 0)
        peer.read_to_end()

    server = line.serve(shrinks_it)
    pool = line.pool_for(server)
    with path.open("rb") as file, pytest.raises(ValueError, match="shrank"):
        run(lambda: pool.request("PUT", "/upload", file))
    assert counted(pool.stats().closed) == {"error": 1}
    finish_pool(pool)
    assert server.accepted == 2


def test_file_that_grows_while_it_is_sent_is_cut_at_its_announced_length(line: Line, tmp_path: Path) -> None:
    path = sparse(tmp_path)

    def grows_it(peer: Peer) -> None:
        peer.read_head()
        with path.open("ab") as more:
            more.write(b"x" * 100_000)
        peer.read_body()
        peer.send(HELLO.encode("PUT"))
        ANSWERS[0](peer)

    server = line.serve(grows_it)
    conn = line.connect_to(server)
    with path.open("rb") as file:
        conn.request("PUT", "/upload", file)
        assert file.tell() == PLENTY
    assert conn.getresponse().read() == b"hello"
    assert len(server.requests[0].body) == PLENTY
    finish(conn)
    assert server.accepted == 1


def test_same_file_may_be_sent_twice(line: Line, tmp_path: Path) -> None:
    server = line.serve()
    conn = line.connect_to(server)
    with file_at(tmp_path).open("rb") as file:
        for _ in range(2):
            file.seek(0)
            conn.request("PUT", "/upload", file)
            assert conn.getresponse().read() == b"hello"
    assert [request.body for request in server.requests] == [CONTENT, CONTENT]
    finish(conn)
    assert server.accepted == 1


# --- the peer answers early -------------------------------------------------------------------------------------------


def long_generator(size: int = PLENTY) -> Iterator[bytes]:
    for _ in range(size // 65536):
        yield bytes(65536)
    yield bytes(size % 65536)


def long_bytes(directory: Path, stack: ExitStack) -> tuple[Any, dict[str, str]]:
    return bytes(PLENTY), {}


def long_file(directory: Path, stack: ExitStack) -> tuple[Any, dict[str, str]]:
    return stack.enter_context(sparse(directory).open("rb")), {}


LONG: Final[dict[str, Callable[[Path, ExitStack], tuple[Any, dict[str, str]]]]] = {
    "bytes": long_bytes,
    "file": long_file,
    "generator": lambda directory, stack: (long_generator(), {}),
    "generator of known length": lambda directory, stack: (long_generator(), {"Content-Length": str(PLENTY)}),
    "bytes in one chunk": lambda directory, stack: (bytes(PLENTY), {"Transfer-Encoding": "chunked"}),
    "file in chunks": lambda directory, stack: (long_file(directory, stack)[0], {"Transfer-Encoding": "chunked"}),
    "BytesIO": lambda directory, stack: (io.BytesIO(bytes(PLENTY)), {}),
}
COUNTED: Final = "generator of known length"
every_long_kind = pytest.mark.parametrize("kind", LONG)
some_long_kinds = pytest.mark.parametrize("kind", ["bytes", "file", "generator", COUNTED])


@pytest.fixture
def upload(tmp_path: Path) -> Iterator[Callable[[str], tuple[Any, dict[str, str]]]]:
    """Make a body that does not fit into the buffers of a connection, and the fields that go with it."""
    with ExitStack() as stack:
        yield lambda kind: LONG[kind](tmp_path, stack)


LongBody = Callable[[str], tuple[Any, dict[str, str]]]

TOO_LARGE: Final = Respond(413, b"too large", headers=[("Connection", "close")])
WHO: Final = Respond(401, b"who?")


Script = Callable[[threading.Event], list[Step]]  # the event: the client has stopped sending


def stops_reading(*answers: Step) -> Script:
    """Answer the head alone, then hold the connection open without reading: what the client sends fills the buffers.

    What it had sent is read when it has stopped, for the test to look at.
    """
    return lambda stopped: [ExpectHead(body=False), *answers, Stall(until=stopped), ReadToEnd()]


def resets(*answers: Step) -> Script:
    """Answer the head alone and close with a reset."""
    return lambda _: [ExpectHead(body=False), *answers, Reset()]


def closes(*answers: Step) -> Script:
    """Answer the head alone and close; the kernel makes that a reset, since the body is not read."""
    return lambda _: [ExpectHead(body=False), *answers, Close()]


REFUSALS: Final[dict[str, tuple[Script, int, bytes]]] = {
    "413, then it reads no more": (stops_reading(TOO_LARGE), 413, b"too large"),
    "413, then it ends its side": (stops_reading(TOO_LARGE, HalfClose()), 413, b"too large"),
    "413, then it closes": (closes(TOO_LARGE), 413, b"too large"),
    "413, then it resets": (resets(TOO_LARGE), 413, b"too large"),
    "401 with keep-alive, then it reads no more": (stops_reading(WHO), 401, b"who?"),
    "401 with keep-alive, then it resets": (resets(WHO), 401, b"who?"),
    "100 and 103 before the 413": (stops_reading(Respond(100), Respond(103), TOO_LARGE), 413, b"too large"),
    "413 byte by byte": (stops_reading(Send(TOO_LARGE.encode(), piece=1)), 413, b"too large"),
    "413 in chunks": (stops_reading(Respond(413, b"too large", chunked=True)), 413, b"too large"),
    "413 without a length": (stops_reading(Send(b"HTTP/1.0 413 No\r\n\r\ntoo large"), HalfClose()), 413, b"too large"),
    "503": (stops_reading(Respond(503)), 503, b""),
    "200, then it closes": (closes(Respond(200, b"enough", headers=[("Connection", "close")])), 200, b"enough"),
}


@pytest.mark.parametrize(
    ("kind", "refusal"),
    [
        (kind, refusal)
        for kind in LONG
        for refusal in REFUSALS
        if kind in {"bytes", "file", "generator"} or refusal in {"413, then it reads no more", "413, then it resets"}
    ],
)
def test_early_refusal_stops_the_upload_and_is_delivered(refusal: str, kind: str, line: Line, upload: LongBody) -> None:
    script, status, text = REFUSALS[refusal]
    server = line.serve(script(line.stopped))
    conn = line.connect_to(server)
    body, headers = upload(kind)
    post(conn, body, headers, encode_chunked=True)
    response = conn.getresponse()
    assert (response.status, response.read()) == (status, text)
    assert conn.state is State.CLOSED
    line.stopped.set()
    assert server.peer().ended.wait(BOUND)
    assert server.peer().received_count < PLENTY
    finish(conn)
    assert server.accepted == 2


@pytest.mark.parametrize("kind", ["bytes", "file", "generator"])
@pytest.mark.parametrize("refusal", [refusal for refusal in REFUSALS if "then it re" in refusal])
def test_early_refusal_reaches_the_caller_of_a_pool_and_nothing_is_sent_again(
    refusal: str, kind: str, line: Line, run: Runner[Any], upload: LongBody
) -> None:
    script, status, text = REFUSALS[refusal]
    server = line.serve(script(line.stopped))
    pool = line.pool_for(server)
    body, headers = upload(kind)
    response = run(lambda: pool.request("PUT", "/upload", body, headers))
    assert (response.status, response.data, response.resends) == (status, text, 0)
    stats = pool.stats()
    assert counted(stats.closed) == {"server_close": 1}
    assert counted(stats.requests) == {f"{status // 100}xx": 1}
    assert counted(stats.stale) == {}
    finish_pool(pool)
    assert server.accepted == 2


@pytest.mark.parametrize("kind", ["bytes", "file", "generator"])
@pytest.mark.parametrize("refusal", ["413, then it resets", "401 with keep-alive, then it reads no more"])
def test_early_refusal_can_be_streamed(refusal: str, kind: str, line: Line, upload: LongBody) -> None:
    script, status, text = REFUSALS[refusal]
    server = line.serve(script(line.stopped))
    pool = line.pool_for(server)
    body, headers = upload(kind)
    with pool.stream("PUT", "/upload", body, headers) as response:
        assert (response.status, b"".join(response), response.resends) == (status, text, 0)
    assert counted(pool.stats().closed) == {"server_close": 1}
    finish_pool(pool)


@pytest.mark.parametrize("kind", ["bytes", "file", "generator"])
@pytest.mark.parametrize("refusal", ["413, then it resets", "401 with keep-alive, then it reads no more"])
def test_early_refusal_on_a_kept_alive_connection_is_no_stale_one(
    refusal: str, kind: str, line: Line, upload: LongBody
) -> None:
    script, status, text = REFUSALS[refusal]
    server = line.serve([ExpectHead(), HELLO, *script(line.stopped)])
    pool = line.pool_for(server)
    assert pool.request("GET", "/before").data == b"hello"
    body, headers = upload(kind)
    response = pool.request("PUT", "/upload", body, headers)
    assert (response.status, response.data, response.resends) == (status, text, 0)
    assert counted(pool.stats().stale) == {}
    finish_pool(pool)
    assert server.accepted == 2


@pytest.mark.parametrize("refusal", ["413, then it reads no more", "401 with keep-alive, then it reads no more"])
def test_early_refusal_stops_what_goes_out_by_send(refusal: str, line: Line) -> None:
    script, status, text = REFUSALS[refusal]
    server = line.serve(script(line.stopped))
    conn = line.connect_to(server)
    conn.putrequest("POST", "/upload")
    conn.putheader("Content-Length", PLENTY)
    conn.endheaders()
    for block in long_generator():
        conn.send(block)
    response = conn.getresponse()
    assert (response.status, response.read()) == (status, text)
    assert conn.state is State.CLOSED
    line.stopped.set()
    assert server.peer().ended.wait(BOUND)
    assert server.peer().received_count < PLENTY
    finish(conn)


def test_early_success_is_delivered_at_the_latest_when_nobody_has_read_for_the_write_limit(line: Line) -> None:
    server = line.serve(stops_reading(Respond(200, b"enough", headers=[("Connection", "close")]))(line.stopped))
    conn = line.connect_to(server, timeout=0.1)
    conn.request("POST", "/upload", bytes(PLENTY))
    assert conn.getresponse().read() == b"enough"
    assert conn.state is State.CLOSED
    conn.timeout = BOUND
    finish(conn)


def test_early_refusal_leaves_the_file_behind_what_was_sent(line: Line, tmp_path: Path) -> None:
    server = line.serve(stops_reading(TOO_LARGE)(line.stopped))
    conn = line.connect_to(server)
    with sparse(tmp_path).open("rb") as file:
        conn.request("POST", "/upload", file)
        position = file.tell()
    assert conn.getresponse().read() == b"too large"
    line.stopped.set()
    assert server.peer().ended.wait(BOUND)
    sent = len(server.peer().received.partition(b"\r\n\r\n")[2])
    # What is read in blocks may have lost its last one; what the kernel sends is known exactly.
    assert sent <= position < PLENTY
    assert line.is_tls or sent == position
    finish(conn)


def test_early_answer_may_be_longer_than_any_buffer(line: Line) -> None:
    text = random.Random(4).randbytes(3_000_000)

    def explains(peer: Peer) -> None:
        peer.read_head()
        peer.send(Respond(413, text, headers=[("Connection", "close")]).encode())
        peer.half_close()
        peer.stall(until=line.stopped)
        peer.read_to_end()

    server = line.serve(explains)
    conn = line.connect_to(server)
    post(conn, bytes(PLENTY))
    response = conn.getresponse()
    assert response.status == 413
    assert response.read() == text
    assert conn.state is State.CLOSED
    finish(conn)


GOES_ON: Final[dict[str, list[Step]]] = {
    "200": [HELLO],
    "201 in chunks, byte by byte": [Send(Respond(201, b"hello", chunked=True).encode(), piece=1)],
    "100 before the 200": [Respond(100), HELLO],
}


@some_long_kinds
@pytest.mark.parametrize("case", GOES_ON)
def test_upload_is_completed_when_a_peer_that_answered_well_goes_on_reading(
    case: str, kind: str, plain: Line, upload: LongBody
) -> None:
    server = plain.serve([ExpectHead(body=False), *GOES_ON[case], ExpectBody(), *ANSWERS])
    conn = plain.connect_to(server)
    body, headers = upload(kind)
    conn.request("POST", "/upload", body, headers, encode_chunked=True)
    assert conn.getresponse().read() == b"hello"
    finish(conn)
    assert server.accepted == 1
    server.wait_until(lambda: len(server.requests[0].body) == PLENTY)


@pytest.mark.parametrize("kind", ["bytes", "file", "generator"])
def test_connection_is_used_again_after_an_early_answer_and_the_whole_body(
    kind: str, line: Line, run: Runner[Any], upload: LongBody
) -> None:
    server = line.serve([ExpectHead(body=False), HELLO, ExpectBody(), *ANSWERS])
    pool = line.pool_for(server)
    body, headers = upload(kind)
    assert run(lambda: pool.request("POST", "/upload", body, headers)).data == b"hello"
    assert counted(pool.stats().closed) == {}
    finish_pool(pool)
    assert server.accepted == 1
    assert len(server.requests[0].body) == PLENTY


@some_long_kinds
@pytest.mark.parametrize("statuses", [[100], [100, 102, 103, 199]], ids=repr)
def test_interim_answers_do_not_stop_the_upload(statuses: list[int], kind: str, plain: Line, upload: LongBody) -> None:
    interim = [Respond(status, headers=[("Link", "</a>")]) for status in statuses]
    server = plain.serve([ExpectHead(body=False), *interim, ExpectBody(), HELLO, *ANSWERS])
    conn = plain.connect_to(server)
    body, headers = upload(kind)
    conn.request("POST", "/upload", body, headers, encode_chunked=True)
    response = conn.getresponse()
    assert (response.status, response.read()) == (200, b"hello")
    finish(conn)
    assert server.accepted == 1
    server.wait_until(lambda: len(server.requests[0].body) == PLENTY)


def test_interim_answers_do_not_stop_the_upload_over_tls(tls: Line, upload: LongBody) -> None:
    server = tls.serve([ExpectHead(body=False), Respond(100), Respond(103), ExpectBody(), HELLO, *ANSWERS])
    pool = tls.pool_for(server)
    body, headers = upload("file")
    assert pool.request("POST", "/upload", body, headers).data == b"hello"
    finish_pool(pool)
    assert server.accepted == 1


@pytest.mark.parametrize("kind", ["bytes", "file", "generator"])
def test_endless_interim_answers_end_the_upload_within_the_limit(kind: str, line: Line, upload: LongBody) -> None:
    server = line.serve([ExpectHead(body=False), *[Respond(102)] * 150, Stall(until=line.stopped), ReadToEnd()])
    conn = line.connect_to(server)
    body, headers = upload(kind)
    with pytest.raises(HTTPException, match="more than 100 interim"):
        conn.request("POST", "/upload", body, headers)
        conn.getresponse()
    assert conn.state is State.CLOSED
    line.stopped.set()
    assert server.peer().ended.wait(BOUND)
    finish(conn)


NO_ANSWER: Final[dict[str, Script]] = {
    "half a head, then a reset": resets(Send(b"HTTP/1.1 413 Too La")),
    "half a head, then the end": stops_reading(Send(b"HTTP/1.1 413 Too La"), HalfClose()),
    "no HTTP": stops_reading(Send(b"this is no HTTP at all\r\n\r\n")),
    "reset": resets(),
    "close": closes(),
    "end of its side": stops_reading(HalfClose()),
}


@pytest.mark.parametrize("kind", ["bytes", "file", "generator", "bytes in one chunk"])
@pytest.mark.parametrize("case", NO_ANSWER)
def test_peer_that_gives_up_without_an_answer_is_an_error(case: str, kind: str, line: Line, upload: LongBody) -> None:
    server = line.serve(NO_ANSWER[case](line.stopped))
    conn = line.connect_to(server)
    body, headers = upload(kind)
    post(conn, body, headers, encode_chunked=True)
    with pytest.raises((ConnectionError, HTTPException, ssl.SSLEOFError)):
        conn.getresponse()
    assert conn.state is State.CLOSED
    line.stopped.set()
    assert server.peer().ended.wait(BOUND)
    finish(conn)
    assert server.accepted == 2


@pytest.mark.parametrize("kind", ["bytes", "file"])
@pytest.mark.parametrize("case", NO_ANSWER)
def test_peer_that_gives_up_without_an_answer_frees_its_slot_and_nothing_is_sent_again(
    case: str, kind: str, line: Line, run: Runner[Any], upload: LongBody
) -> None:
    server = line.serve(NO_ANSWER[case](line.stopped))
    pool = line.pool_for(server)
    body, headers = upload(kind)
    with pytest.raises((ConnectionError, HTTPException, ssl.SSLEOFError)):
        run(lambda: pool.request("PUT", "/upload", body, headers))
    stats = pool.stats()
    assert sum(stats.closed.values()) == 1
    assert counted(stats.closed).keys() <= {"error", "truncated"}
    assert counted(stats.requests) == {"error": 1}
    finish_pool(pool)
    assert server.accepted == 2


def test_peer_that_ends_its_side_and_reads_on_is_told_as_a_lost_connection(plain: Line) -> None:
    server = plain.serve([ExpectHead(body=False), HalfClose(), ReadToEnd()])
    conn = plain.connect_to(server)
    post(conn, bytes(PLENTY))
    with pytest.raises(RemoteDisconnected):
        conn.getresponse()
    assert conn.state is State.CLOSED
    finish(conn)


def test_peer_that_answers_and_ends_its_side_while_it_reads_on_is_delivered(line: Line) -> None:
    server = line.serve([ExpectHead(body=False), HELLO, HalfClose(), ReadToEnd()])
    conn = line.connect_to(server)
    post(conn, bytes(PLENTY))
    assert conn.getresponse().read() == b"hello"
    finish(conn)
    assert server.accepted == 2


@pytest.mark.parametrize("replayable", [True, False], ids=["bytes", "generator"])
def test_reset_of_a_kept_alive_connection_during_an_upload_is_sent_again_only_if_it_can_be(
    replayable: bool, line: Line
) -> None:
    server = line.serve([ExpectHead(), HELLO, ExpectHead(body=False), Reset()])
    pool = line.pool_for(server)
    assert pool.request("GET", "/before").data == b"hello"
    if replayable:
        response = pool.request("PUT", "/upload", bytes(1_000_000))
        assert (response.data, response.resends) == (b"hello", 1)
        assert len(server.requests[-1].body) == 1_000_000
        assert counted(pool.stats().stale) == {"retried": 1}
    else:
        with pytest.raises((ConnectionError, ssl.SSLEOFError)):
            pool.request("PUT", "/upload", long_generator())
        assert counted(pool.stats().stale) == {"raised": 1}
    finish_pool(pool)
    assert server.accepted == 2


def test_half_an_answer_on_a_kept_alive_connection_is_never_sent_again(line: Line) -> None:
    server = line.serve([ExpectHead(), HELLO, *NO_ANSWER["half a head, then a reset"](line.stopped)])
    pool = line.pool_for(server)
    assert pool.request("GET", "/before").data == b"hello"
    with pytest.raises((ConnectionError, HTTPException, ssl.SSLEOFError)):
        pool.request("PUT", "/upload", bytes(PLENTY))
    assert [request.target for request in server.requests] == ["/before", "/upload"]
    finish_pool(pool)
    assert server.accepted == 2


# --- the peer takes nothing -------------------------------------------------------------------------------------------


@every_long_kind
def test_peer_that_stops_reading_and_says_nothing_is_a_timeout(kind: str, line: Line, upload: LongBody) -> None:
    server = line.serve([ExpectHead(body=False), Stall(until=line.stopped)])
    conn = line.connect_to(server, timeout=BOUND)  # which is for connecting, too: a busy machine takes its time
    conn.connect()
    conn.sock.settimeout(0.05)
    body, headers = upload(kind)
    with pytest.raises(TimeoutError):
        conn.request("POST", "/upload", body, headers, encode_chunked=True)
    assert conn.state is State.CLOSED
    line.stopped.set()
    assert server.peer().ended.wait(BOUND)
    finish(conn)


@pytest.mark.parametrize("kind", ["bytes", "file", "blocks"])
def test_peer_that_reads_slowly_but_steadily_is_none_that_takes_nothing(kind: str, tmp_path: Path) -> None:
    content, slowly = bytes(1_000_000), 600_000
    with socket.socket() as listener, ThreadPoolExecutor(1) as executor:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def read_slowly() -> int:
            peer, _ = listener.accept()
            pace, received = threading.Event(), 0
            with peer:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += peer.recv(1)
                while received < len(content):
                    received += len(peer.recv(10_000))
                    if received < slowly:
                        pace.wait(0.05)  # 200 kB a second: in the write limit less than poll() calls room
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            return received

        reading = executor.submit(read_slowly)
        conn = HTTPConnection("127.0.0.1", listener.getsockname()[1], timeout=BOUND)
        conn.connect()
        conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 256 * 1024)
        conn.sock.settimeout(0.5)
        with file_at(tmp_path, content).open("rb") as file:
            bodies: dict[str, Any] = {"bytes": content, "file": file, "blocks": (content[:8000] for _ in range(125))}
            conn.request("POST", "/upload", bodies[kind], {"Content-Length": str(len(content))})
        conn.sock.settimeout(BOUND)
        assert conn.getresponse().status == 200
        assert reading.result(BOUND) == len(content)
        conn.close()


@pytest.mark.parametrize("blocksize", [1000, 8192])
def test_silent_peer_has_one_write_limit_and_not_one_for_each_block_that_its_buffer_takes(
    blocksize: int, line: Line
) -> None:
    server = line.serve([ExpectHead(body=False), Stall(until=line.stopped)])
    conn = line.connect_to(server, timeout=BOUND, blocksize=blocksize)
    conn.connect()
    conn.sock.settimeout(0.5)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        conn.request("POST", "/upload", io.BytesIO(bytes(PLENTY)))
    # poll() calls a socket full from two thirds on: a hundred blocks and more fit in after that.
    assert time.monotonic() - began < BOUND
    line.stopped.set()
    assert server.peer().ended.wait(BOUND)
    finish(conn)


@pytest.mark.parametrize("kind", ["bytes", "file"])
@pytest.mark.parametrize(
    ("timeout", "error"),
    [
        (Timeout(write=0.03, read=BOUND), WriteTimeout),
        (Timeout(write=BOUND, read=BOUND, total=0.08), TotalTimeout),
        (Timeout(write=None, read=None, total=0.08), TotalTimeout),
    ],
    ids=["write", "total", "nothing but the total"],
)
def test_peer_that_stops_reading_and_says_nothing_is_ended_by_the_limits_of_the_call(
    timeout: Timeout, error: type[Exception], kind: str, line: Line, run: Runner[Any], upload: LongBody
) -> None:
    server = line.serve([ExpectHead(body=False), Stall(until=line.stopped)])
    pool = line.pool_for(server)
    body, headers = upload(kind)
    with pytest.raises(error):
        run(lambda: pool.request("POST", "/upload", body, headers, timeout=timeout))
    assert counted(pool.stats().closed) == {"timeout": 1}
    assert counted(pool.stats().requests) == {"timeout": 1}
    finish_pool(pool)


def test_limit_of_an_upload_does_not_outlive_it(line: Line, run: Runner[Any], tmp_path: Path) -> None:
    server = line.serve()
    pool = line.pool_for(server)
    with file_at(tmp_path).open("rb") as file:
        uploaded = run(lambda: pool.request("POST", "/upload", file, timeout=Timeout(write=1, read=1, total=5)))
    assert uploaded.data == b"hello"
    finish_pool(pool)
    with pool.connection() as conn:
        assert os.get_blocking(conn.sock.fileno()) is (conn.sock.gettimeout() is None)


def test_documented_timeout_is_as_before_when_the_upload_is_over(line: Line, tmp_path: Path) -> None:
    server = line.serve()
    conn = line.connect_to(server, timeout=7)
    with file_at(tmp_path).open("rb") as file:
        conn.request("POST", "/upload", file)
    assert conn.sock.gettimeout() == 7
    assert conn.getresponse().read() == b"hello"
    finish(conn)


def test_upload_without_any_timeout_waits_for_its_peer(line: Line, upload: LongBody) -> None:
    server = line.serve()
    conn = line.connect_to(server, timeout=None)
    body, headers = upload("file")
    conn.request("POST", "/upload", body, headers)
    assert conn.getresponse().read() == b"hello"
    assert len(server.requests[0].body) == PLENTY
    finish(conn)


def test_consumer_of_a_body_is_not_asked_for_more_than_is_sent(plain: Line) -> None:
    asked: list[int] = []

    def pieces() -> Iterable[bytes]:
        for number in range(PLENTY // 65536):
            asked.append(number)
            yield bytes(65536)

    server = plain.serve(stops_reading(TOO_LARGE)(plain.stopped))
    conn = plain.connect_to(server)
    conn.request("POST", "/upload", pieces())
    assert conn.getresponse().read() == b"too large"
    assert len(asked) < PLENTY // 65536
    plain.stopped.set()
    assert server.peer().ended.wait(BOUND)
    finish(conn)


# --- bodies that are not as long as the head says ---------------------------------------------------------------------


@pytest.mark.parametrize("send_itself", [False, True], ids=["", "own send()"])
def test_surplus_of_a_generator_is_not_sent_and_ends_the_connection(send_itself: bool, line: Line) -> None:
    server = line.serve([ExpectHead(body=False), KeepOpen()])
    conn = line.connect_to(server)
    if send_itself:
        conn = with_own_send(conn)
    body = iter([b"abc", b"GET /evil HTTP/1.1\r\n\r\n"])
    with pytest.raises(ValueError, match="more than"):
        conn.request("POST", "/upload", body, {"Content-Length": "5"})
    assert conn.state is State.CLOSED
    finish(conn)
    assert b"evil" not in b"".join(peer.received for peer in server.connections)


def with_own_send(conn: HTTPConnection) -> HTTPConnection:
    """Return a connection to the same place whose class has a send() of its own."""

    class Counting(type(conn)):  # type: ignore[misc]  # mypy takes no base class that is computed
        def send(self, data: Any) -> None:
            super().send(data)

    if isinstance(conn, HTTPSConnection):
        return Counting(conn.host, conn.port, timeout=conn.timeout, context=conn._context)
    return Counting(conn.host, conn.port, timeout=conn.timeout)


def test_generator_that_is_as_long_as_its_head_says_keeps_the_connection(line: Line) -> None:
    server = line.serve(ANSWERS)
    conn = line.connect_to(server)
    conn.request("POST", "/upload", iter([b"abc", b"de"]), {"Content-Length": "5"})
    assert conn.getresponse().read() == b"hello"
    finish(conn)
    assert (server.accepted, server.requests[0].body) == (1, b"abcde")


def test_generator_that_is_shorter_than_its_head_says_ends_the_connection(plain: Line) -> None:
    server = plain.serve([ExpectHead(body=False), HELLO, KeepOpen()])
    conn = plain.connect_to(server)
    conn.request("POST", "/upload", iter([b"abc"]), {"Content-Length": "5"})
    assert conn.getresponse().read() == b"hello"
    assert conn.state is State.CLOSED
    finish(conn)


def test_more_than_the_head_has_announced_is_refused_by_send_and_nothing_lost(plain: Line) -> None:
    server = plain.serve(ANSWERS)
    conn = plain.connect_to(server)
    conn.putrequest("POST", "/upload")
    conn.putheader("Content-Length", "5")
    conn.endheaders()
    conn.send(b"abc")
    with pytest.raises(ValueError, match="3 bytes are more than the 2 that are left"):
        conn.send(b"def")
    conn.send(b"de")
    with pytest.raises(ValueError, match="1 bytes are more than the 0 that are left"):
        conn.send(b"x")
    assert conn.getresponse().read() == b"hello"
    finish(conn)
    assert (server.accepted, server.requests[0].body) == (1, b"abcde")


@pytest.mark.parametrize("headers", [{}, {"Content-Length": "2"}], ids=repr)
def test_body_that_the_head_does_not_announce_is_refused_by_endheaders(headers: dict[str, str], plain: Line) -> None:
    server = plain.serve(ANSWERS)
    conn = plain.connect_to(server)
    conn.putrequest("POST", "/upload")
    for name, value in headers.items():
        conn.putheader(name, value)
    with pytest.raises(ValueError, match="the body has 3 bytes, but the head announces"):
        conn.endheaders(b"abc")
    conn.close()
    finish(conn)
    assert [request.target for request in server.requests] == ["/again"]


def test_interim_answer_that_speaks_of_the_end_ends_the_connection_behind_the_upload(line: Line) -> None:
    interim = Send(b"HTTP/1.1 102 Processing\r\nConnection: close\r\n\r\n")
    server = line.serve([ExpectHead(body=False), interim, ExpectBody(), HELLO, KeepOpen()])
    conn = line.connect_to(server)
    conn.request("POST", "/upload", bytes(PLENTY), {"Expect": "100-continue"})
    assert conn.getresponse().read() == b"hello"
    assert conn.state is State.CLOSED
    finish(conn)


def test_file_that_grows_behind_its_given_length_is_cut(line: Line, tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(b"abc")
    server = line.serve(ANSWERS)
    conn = line.connect_to(server)
    with path.open("rb") as file:
        prepared = prepare("POST", "/upload", file, {"Content-Length": "3"}, constant_fields=conn._constant_fields)
        with path.open("ab") as more:
            more.write(b"GET /evil HTTP/1.1\r\n\r\n")
        conn.perform(prepared)
    assert conn.getresponse().read() == b"hello"
    finish(conn)
    assert [request.target for request in server.requests] == ["/upload", "/again"]


@pytest.mark.parametrize("headers", [{}, {"Content-Length": "3"}], ids=repr)
def test_buffer_that_grows_before_it_is_sent_is_refused(headers: dict[str, str], line: Line) -> None:
    server = line.serve([ExpectHead(body=False), KeepOpen()])
    conn = line.connect_to(server)
    body = bytearray(b"abc")
    prepared = prepare("POST", "/upload", body, headers, constant_fields=conn._constant_fields)
    body += b"GET /evil HTTP/1.1\r\n\r\n"
    with pytest.raises(ValueError, match="more than the 3 bytes"):
        conn.perform(prepared)
    finish(conn)
    assert b"evil" not in b"".join(peer.received for peer in server.connections)


def test_body_in_chunks_by_endheaders_is_announced_if_nobody_did(plain: Line) -> None:
    server = plain.serve(ANSWERS)
    conn = plain.connect_to(server)
    conn.putrequest("POST", "/upload")
    conn.endheaders(b"abc", encode_chunked=True)
    assert conn.getresponse().read() == b"hello"
    finish(conn)
    assert (server.accepted, server.requests[0].body) == (1, b"abc")


def test_body_in_chunks_with_a_length_is_refused(plain: Line) -> None:
    server = plain.serve(ANSWERS)
    conn = plain.connect_to(server)
    conn.putrequest("POST", "/upload")
    conn.putheader("Content-Length", "4")
    with pytest.raises(ValueError, match="without Content-Length"):
        conn.endheaders(b"GET /evil HTTP/1.1\r\n\r\n", encode_chunked=True)
    conn.close()
    finish(conn)
    assert [request.target for request in server.requests] == ["/again"]


def test_subclass_whose_send_writes_by_itself_sends_the_whole_body(plain: Line) -> None:
    class Direct(HTTPConnection):
        def send(self, data: Any) -> None:
            self.sock.sendall(data)

    server = plain.serve(ANSWERS)
    conn = Direct(server.host, server.port, timeout=BOUND)
    for body in (b"abc", iter([b"a", b"bc"])):
        conn.request("POST", "/upload", body)
        assert conn.getresponse().read() == b"hello"
    finish(conn)
    assert [request.body for request in server.requests] == [b"abc", b"abc", b""]


def test_limit_longer_than_poll_can_count_is_no_error(line: Line) -> None:
    server = line.serve([ExpectHead(body=False), until_stopped(line), ExpectBody(), HELLO])
    conn = line.connect_to(server, timeout=40 * 24 * 3600.0)
    threading.Timer(0.2, line.stopped.set).start()
    conn.request("POST", "/upload", bytes(PLENTY))
    assert conn.getresponse().read() == b"hello"
    conn.close()


def until_stopped(line: Line) -> Callable[[Peer], None]:
    """A step that reads nothing until the client was made to wait."""

    def wait(peer: Peer) -> None:
        peer.stall(until=line.stopped)

    return wait


def test_answer_that_trickles_in_does_not_put_off_the_write_limit(plain: Line) -> None:
    server = plain.serve([ExpectHead(body=False), Trickle(b"HTTP/1.1 200 OK\r\n" * 1000, 0.1)], default=ANSWERS)
    conn = plain.connect_to(server, timeout=0.5)
    with pytest.raises(TimeoutError):
        conn.request("POST", "/upload", bytes(PLENTY))
    assert conn.state is State.CLOSED
    conn.timeout = BOUND
    finish(conn)


def test_connection_that_is_closed_while_it_connects_sends_nothing(plain: Line) -> None:
    server = plain.serve(ANSWERS)
    conn = plain.connect_to(server)
    connect = conn._create_connection

    def closed_meanwhile(*args: Any) -> Any:
        sock = connect(*args)
        thread = threading.Thread(target=conn.close)
        thread.start()
        thread.join(BOUND)
        return sock

    conn._create_connection = cast("Any", closed_meanwhile)
    with pytest.raises(CannotSendHeader):
        conn.request("GET", "/first")
    assert (conn.state, conn.sock) == (State.CLOSED, None)
    conn._create_connection = connect
    finish(conn)
    assert [request.target for request in server.requests] == ["/again"]


def test_response_that_another_thread_reads_during_the_upload_ends_the_connection(plain: Line) -> None:
    def answers_the_first_chunk(peer: Peer) -> None:
        peer.read_head()
        while b"one" not in peer._buffer:
            peer._receive()
        peer.send(HELLO.encode())
        peer.read_to_end()

    server = plain.serve(answers_the_first_chunk)
    conn = plain.connect_to(server)
    heard: list[bytes] = []

    def body() -> Iterator[bytes]:
        yield b"one"
        reader = threading.Thread(target=lambda: heard.append(conn.getresponse().read()))
        reader.start()
        reader.join(BOUND)
        yield b"two"

    with pytest.raises(OSError, match=r"closed meanwhile|Bad file descriptor"):
        conn.request("POST", "/upload", body())
    assert heard == [b"hello"]
    assert conn.state is State.CLOSED
    finish(conn)
    assert server.accepted == 2


def test_file_that_was_closed_while_the_server_was_asked_is_not_mistaken_for_another(
    plain: Line, tmp_path: Path
) -> None:
    (tmp_path / "body").write_bytes(b"x" * 10)
    (tmp_path / "secret").write_bytes(b"S" * 10)
    file = (tmp_path / "body").open("rb")
    number = file.fileno()
    opened: list[Any] = []

    def reopens(peer: Peer) -> None:
        peer.read_head()
        file.close()
        opened.append((tmp_path / "secret").open("rb"))
        peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    server = plain.serve([reopens, KeepOpen()], default=ANSWERS)
    conn = plain.connect_to(server)
    with pytest.raises(ValueError, match="closed file"):
        conn.request("POST", "/upload", file, {"Expect": "100-continue"})
    assert [other.fileno() for other in opened] == [number]
    opened[0].close()
    assert conn.state is State.CLOSED
    finish(conn)
    assert b"SSS" not in b"".join(peer.received for peer in server.connections)


def test_connection_that_is_dropped_after_a_body_is_collected_at_once(plain: Line) -> None:
    server = plain.serve(ANSWERS)
    conn = plain.connect_to(server)
    conn.request("POST", "/upload", iter([b"abc"]))
    assert conn.getresponse().read() == b"hello"
    conn.close()
    dropped = weakref.ref(conn)
    gc.disable()
    try:
        del conn
        assert dropped() is None
    finally:
        gc.enable()


def test_refusal_stops_a_body_that_goes_through_a_send_of_ones_own(plain: Line) -> None:
    server = plain.serve(stops_reading(TOO_LARGE)(plain.stopped))
    conn = with_own_send(plain.connect_to(server))
    taken = itertools.count()
    body = (bytes(100_000) for _ in iter(taken.__next__, 10_000))
    conn.request("POST", "/upload", body)
    assert next(taken) < 10_000
    assert conn.getresponse().read() == b"too large"
    plain.stopped.set()
    finish(conn)
