"""One response on its connection: heads, bodies by length, in chunks and to the end, and every way to read them.

Each body is read whole and split at every byte, since a boundary may fall anywhere.  A body that ends in another way
than its framing says is an error, the connection is closed, and the next request is a normal one.
"""

from __future__ import annotations

import array
import functools
import gc
import http.client
import io
import json
import shutil
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterator

import pytest
import trustme

from pooledhttp import (
    BadStatusLine,
    HTTPConnection,
    HTTPException,
    HTTPResponse,
    HTTPSConnection,
    IncompleteRead,
    InvalidResponse,
    Limits,
    LineTooLong,
    RemoteDisconnected,
    ResponseNotReady,
    StreamedResponse,
    Timeout,
)
from pooledhttp.response import Body, Response
from pooledhttp.states import State
from pooledhttp.stats import CloseReason
from pooledhttp.testing import (
    Close,
    ExpectHead,
    HalfClose,
    KeepOpen,
    Peer,
    Repeat,
    Reset,
    ResourceAudit,
    Respond,
    ScriptedServer,
    Send,
    ServerFactory,
)
from pooledhttp.wire import parse_head

BOUND = 10.0
BODY = b"first line\nsecond line\n\nthe last one has no end"
AGAIN = Repeat([ExpectHead(), Respond(body=b"again")])

OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = OK + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
CHUNKED_HEAD = OK + b"Transfer-Encoding: chunked\r\n\r\n"
CHUNKED = (
    CHUNKED_HEAD
    + b'5;name="a; b"\r\n%b\r\n1\r\n%b\r\n' % (BODY[:5], BODY[5:6])
    + b"%X; ext\r\n%b\r\n0;last\r\nX-Sum: 1\r\nX-Time:2 \r\n\r\n" % (len(BODY) - 6, BODY[6:])
)
TO_THE_END = OK + b"\r\n" + BODY

KINDS = {"length": LENGTH, "chunked": CHUNKED, "to the end": TO_THE_END}
PIECES = {"whole": None, "split": 1}

framings = pytest.mark.parametrize("kind", KINDS)
splits = pytest.mark.parametrize("split", PIECES)


def connection_to(server: ScriptedServer, timeout: float = BOUND) -> HTTPConnection:
    return HTTPConnection(server.host, server.port, timeout=timeout)


def serve(scripted_server: ServerFactory, answer: bytes, split: str = "whole") -> ScriptedServer:
    """Start a server that gives this answer first and usual ones afterwards, on whatever connection."""
    rest: list[Callable[[Peer], None]] = [HalfClose(), KeepOpen()] if answer.startswith(TO_THE_END[:20]) else [AGAIN]
    return scripted_server([ExpectHead(), Send(answer, piece=PIECES[split]), *rest], default=[AGAIN])


def ask(conn: HTTPConnection, method: str = "GET") -> HTTPResponse:
    conn.request(method, "/first")
    return conn.getresponse()


def finish(conn: HTTPConnection) -> None:
    """One normal request, then the end."""
    conn.request("GET", "/again")
    assert conn.getresponse().read() == b"again"
    conn.close()


# --- ways to read -----------------------------------------------------------------------------------------------------


def by_read(response: HTTPResponse) -> bytes:
    return response.read()


def by_read_of_none(response: HTTPResponse) -> bytes:
    return response.read(None)


def by_read_of_a_negative_amount(response: HTTPResponse) -> bytes:
    return response.read(-1)


def by_reads_of_7(response: HTTPResponse) -> bytes:
    pieces = list(iter(functools.partial(response.read, 7), b""))
    assert {len(piece) for piece in pieces[:-1]} <= {7}
    return b"".join(pieces)


def by_one_read_of_more_than_there_is(response: HTTPResponse) -> bytes:
    return response.read(10**6)


def by_readinto(response: HTTPResponse) -> bytes:
    buffer = bytearray(7)
    received = bytearray()
    while count := response.readinto(buffer):
        received += buffer[:count]
    return bytes(received)


def by_readinto_of_another_item_size(response: HTTPResponse) -> bytes:
    buffer = array.array("I", [0] * 250)
    count = response.readinto(buffer)
    return buffer.tobytes()[:count]


def by_readinto1(response: HTTPResponse) -> bytes:
    buffer = bytearray(7)
    received = bytearray()
    while count := response.readinto1(buffer):
        received += buffer[:count]
    return bytes(received)


def by_read1(response: HTTPResponse) -> bytes:
    return b"".join(iter(response.read1, b""))


def by_read1_of_7(response: HTTPResponse) -> bytes:
    return b"".join(iter(functools.partial(response.read1, 7), b""))


def by_peek_and_read(response: HTTPResponse) -> bytes:
    received = bytearray()
    while seen := response.peek():
        piece = response.read1(len(seen))
        assert piece == seen
        received += piece
    received += response.read()  # a peek at the end of a chunked body may have met the end of the connection
    return bytes(received)


def by_readline(response: HTTPResponse) -> bytes:
    lines = list(iter(response.readline, b""))
    assert lines == BODY.splitlines(keepends=True)
    return b"".join(lines)


def by_readline_of_4(response: HTTPResponse) -> bytes:
    lines = list(iter(functools.partial(response.readline, 4), b""))
    assert max(map(len, lines)) == 4
    return b"".join(lines)


def by_readline_of_none(response: HTTPResponse) -> bytes:
    return b"".join(iter(functools.partial(response.readline, None), b""))


def by_readlines(response: HTTPResponse) -> bytes:
    return b"".join(response.readlines())


def by_iteration(response: HTTPResponse) -> bytes:
    lines = list(response)
    assert lines == BODY.splitlines(keepends=True)
    return b"".join(lines)


def by_text_wrapper(response: HTTPResponse) -> bytes:
    # typeshed has it that the wrapped file must be a writable one too
    with io.TextIOWrapper(response, encoding="ascii", newline="") as text:  # type: ignore[type-var]  # see above
        return text.read().encode()


def by_copyfileobj(response: HTTPResponse) -> bytes:
    target = io.BytesIO()
    shutil.copyfileobj(response, target)
    return target.getvalue()


READERS = [
    by_read,
    by_read_of_none,
    by_read_of_a_negative_amount,
    by_reads_of_7,
    by_one_read_of_more_than_there_is,
    by_readinto,
    by_readinto_of_another_item_size,
    by_readinto1,
    by_read1,
    by_read1_of_7,
    by_peek_and_read,
    by_readline,
    by_readline_of_4,
    by_readline_of_none,
    by_readlines,
    by_iteration,
    by_text_wrapper,
    by_copyfileobj,
]
readers = pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)


@framings
@splits
@readers
def test_body_is_read_to_its_end(
    reader: Callable[[HTTPResponse], bytes], split: str, kind: str, scripted_server: ServerFactory
) -> None:
    server = serve(scripted_server, KINDS[kind], split)
    conn = connection_to(server)
    response = ask(conn)
    assert not response.isclosed()
    assert reader(response) == BODY
    # A whole body may end at exactly the amount that was asked for; the end is seen by one more read.
    assert response.closed or response.read() == b""
    assert response.isclosed()
    assert conn.state is (State.CLOSED if kind == "to the end" else State.IDLE)
    finish(conn)
    assert server.accepted == (2 if kind == "to the end" else 1)


@splits
def test_json_is_loaded_from_the_response(split: str, scripted_server: ServerFactory) -> None:
    content = b'{"order": 7, "items": [1, 2]}'
    server = serve(scripted_server, OK + b"Content-Length: %d\r\n\r\n" % len(content) + content, split)
    conn = connection_to(server)
    assert json.load(ask(conn)) == {"order": 7, "items": [1, 2]}
    finish(conn)


@framings
def test_finished_response_reads_as_empty_in_every_way(kind: str, scripted_server: ServerFactory) -> None:
    server = serve(scripted_server, KINDS[kind])
    conn = connection_to(server)
    response = ask(conn)
    response.read()
    assert response.read(1) == response.read1() == response.peek() == response.readline() == b""
    assert response.readinto(bytearray(1)) == response.readinto1(bytearray(1)) == 0
    assert list(response) == []
    finish(conn)


@framings
def test_reading_nothing_takes_nothing(kind: str, scripted_server: ServerFactory) -> None:
    server = serve(scripted_server, KINDS[kind])
    conn = connection_to(server)
    response = ask(conn)
    assert response.read(0) == response.read1(0) == response.readline(0) == b""
    assert response.readinto(bytearray()) == response.readinto1(bytearray()) == 0
    assert response.read() == BODY
    finish(conn)


def test_different_ways_of_reading_can_be_mixed(scripted_server: ServerFactory) -> None:
    server = serve(scripted_server, CHUNKED, "split")
    conn = connection_to(server)
    response = ask(conn)
    buffer = bytearray(3)
    seen = response.peek()
    received = response.read1(1)
    assert seen[:1] == received
    received += response.readline()
    received += response.read(4)
    received += buffer[: response.readinto(buffer)]
    assert received + response.read() == BODY
    finish(conn)


def test_large_body_by_length_arrives_whole(scripted_server: ServerFactory) -> None:
    body = bytes(range(256)) * 8000
    server = serve(scripted_server, OK + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    conn = connection_to(server)
    assert ask(conn).read() == body
    finish(conn)


def test_large_body_is_read_into_a_buffer(scripted_server: ServerFactory) -> None:
    body = bytes(range(256)) * 8000
    server = serve(scripted_server, OK + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    conn = connection_to(server)
    buffer = bytearray(len(body) + 1)
    assert ask(conn).readinto(buffer) == len(body)
    assert buffer[:-1] == body
    finish(conn)


def test_large_chunked_body_is_read_into_a_buffer(scripted_server: ServerFactory) -> None:
    body = bytes(range(256)) * 2000
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(body) // 4, body[at : at + len(body) // 4])
                      for at in range(0, len(body), len(body) // 4))  # fmt: skip
    server = serve(scripted_server, CHUNKED_HEAD + chunks + b"0\r\n\r\n")
    conn = connection_to(server)
    buffer = bytearray(len(body) + 1)
    assert ask(conn).readinto(buffer) == len(body)
    assert buffer[:-1] == body
    finish(conn)


def test_streamed_response_iterates_over_pieces(scripted_server: ServerFactory) -> None:
    class Streaming(HTTPConnection):
        response_class = StreamedResponse

    server = serve(scripted_server, CHUNKED)
    conn = Streaming(server.host, server.port, timeout=BOUND)
    response = ask(conn)
    assert isinstance(response, StreamedResponse)
    first = next(response)
    assert BODY.startswith(first)
    assert first + b"".join(response) == BODY
    with pytest.raises(StopIteration):
        next(response)
    finish(conn)


# --- the head ---------------------------------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 404 Not Here\r\nContent-Length: 2\r\nX-Two: a\r\nx-two: b\r\nSet-Cookie: c=1\r\n\r\nno"


def test_head_is_shown_as_documented(scripted_server: ServerFactory) -> None:
    server = serve(scripted_server, HEAD)
    conn = connection_to(server)
    response = ask(conn)
    assert (response.status, response.code, response.getcode()) == (404, 404, 404)
    assert (response.version, response.reason, response.length) == (11, "Not Here", 2)
    assert (response.chunked, response.will_close, response.readable()) == (False, False, True)
    assert response.getheaders() == [("Content-Length", "2"), ("X-Two", "a"), ("x-two", "b"), ("Set-Cookie", "c=1")]
    assert response.getheader("X-TWO") == "a, b"
    assert response.getheader("X-None") is None
    assert response.getheader("X-None", "default") == "default"
    assert response.getheader("X-None", ["1", "2"]) == "1, 2"
    assert response.headers is response.msg is response.info()
    assert isinstance(response.headers, http.client.HTTPMessage)
    assert response.headers.get_all("x-two") == ["a", "b"]
    assert response.url == response.geturl() == "/first"
    assert response.fileno() == conn.sock.fileno()
    response.flush()
    response.url = "http://origin/first"
    assert response.geturl() == "http://origin/first"
    assert response.read() == b"no"
    assert (response.length, response.trailers) == (0, [])
    finish(conn)


def test_default_of_getheader_that_is_neither_text_nor_iterable_comes_back(scripted_server: ServerFactory) -> None:
    conn = connection_to(serve(scripted_server, HEAD))
    response = ask(conn)
    assert response.getheader("X-None", 7) == 7  # type: ignore[arg-type,comparison-overlap]  # http.client lets it pass
    assert response.read() == b"no"
    finish(conn)


def test_response_that_has_not_begun_has_no_head(scripted_server: ServerFactory) -> None:
    server = scripted_server([KeepOpen()])
    with socket.create_connection(server.address, timeout=BOUND) as sock:
        response = HTTPResponse(sock)
        with pytest.raises(ResponseNotReady):
            _ = response.status
        assert response.isclosed()
        assert response.read() == b""


def test_trailers_are_kept_apart_from_the_headers(scripted_server: ServerFactory) -> None:
    server = serve(scripted_server, CHUNKED)
    conn = connection_to(server)
    response = ask(conn)
    assert response.trailers == []
    assert response.chunked
    assert response.length is None
    assert response.read() == BODY
    assert response.trailers == [("X-Sum", "1"), ("X-Time", "2")]
    assert response.getheader("X-Sum") is None
    finish(conn)


def test_response_can_be_read_from_a_socket_of_ones_own(scripted_server: ServerFactory) -> None:
    server = serve(scripted_server, LENGTH)
    with socket.create_connection(server.address, timeout=BOUND) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        response = HTTPResponse(sock, method="GET", url="http://origin/")
        response.begin()
        response.begin()
        assert (response.status, response.url) == (200, "http://origin/")
        assert response.read() == BODY
        assert response.isclosed()


def test_response_from_a_socket_of_ones_own_leaves_it_open(scripted_server: ServerFactory) -> None:
    server = serve(scripted_server, LENGTH)
    with socket.create_connection(server.address, timeout=BOUND) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        response = HTTPResponse(sock)
        response.begin()
        response.close()
        response.close()
        assert response.closed
        assert sock.fileno() >= 0


def test_truncated_response_from_a_socket_of_ones_own_leaves_it_open(scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(), Send(LENGTH[:-1]), Close()])
    with socket.create_connection(server.address, timeout=BOUND) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        response = HTTPResponse(sock)
        response.begin()
        with pytest.raises(IncompleteRead):
            response.read()
        assert response.is_broken
        assert sock.fileno() >= 0


# --- no body ----------------------------------------------------------------------------------------------------------

NO_BODY = {
    "HEAD with a length": ("HEAD", OK + b"Content-Length: 5\r\n\r\n"),
    "HEAD with chunks": ("HEAD", CHUNKED_HEAD),
    "HEAD with neither": ("HEAD", OK + b"\r\n"),
    "204": ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
    "204 with a length": ("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n"),
    "204 with chunks": ("GET", b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "304 with a length": ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
    "304 with chunks": ("GET", b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "length 0": ("GET", OK + b"Content-Length: 0\r\n\r\n"),
}


@splits
@pytest.mark.parametrize("case", NO_BODY)
def test_response_without_a_body_is_complete_with_its_head(
    case: str, split: str, scripted_server: ServerFactory
) -> None:
    method, answer = NO_BODY[case]
    server = scripted_server([ExpectHead(), Send(answer, piece=PIECES[split]), AGAIN])
    conn = connection_to(server)
    response = ask(conn, method)
    assert conn.state is State.IDLE
    assert response.isclosed()
    assert response.length == 0
    assert response.read() == b""
    response.close()
    assert conn.state is State.IDLE
    finish(conn)
    assert server.accepted == 1


def test_closing_a_response_without_a_body_leaves_its_connection_alone(scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(), Respond(204), AGAIN])
    conn = connection_to(server)
    ask(conn).close()
    finish(conn)
    assert server.accepted == 1


def test_empty_chunked_body_ends_at_the_first_read(scripted_server: ServerFactory) -> None:
    server = serve(scripted_server, CHUNKED_HEAD + b"0\r\n\r\n")
    conn = connection_to(server)
    response = ask(conn)
    before = conn.state
    assert response.read() == b""
    assert (before, conn.state) == (State.UNREAD_RESPONSE, State.IDLE)
    finish(conn)


# --- interim answers --------------------------------------------------------------------------------------------------


@splits
@pytest.mark.parametrize("interim", [b"100 Continue", b"102 Processing", b"103 Early Hints", b"199 Whatever"])
def test_interim_answer_is_skipped(interim: bytes, split: str, scripted_server: ServerFactory) -> None:
    server = serve(scripted_server, b"HTTP/1.1 " + interim + b"\r\nLink: </a>\r\n\r\n" + LENGTH, split)
    conn = connection_to(server)
    response = ask(conn)
    assert response.status == 200
    assert response.read() == BODY
    finish(conn)


def test_hundred_interim_answers_are_skipped(scripted_server: ServerFactory) -> None:
    server = serve(scripted_server, b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100 + LENGTH)
    conn = connection_to(server)
    assert ask(conn).read() == BODY
    finish(conn)


def test_endless_interim_answers_end_the_connection(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    def chatter(peer: Peer) -> None:
        peer.read_head()
        while True:
            peer.send(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 50)

    server = scripted_server(chatter, default=[AGAIN])
    conn = connection_to(server)
    with pytest.raises(InvalidResponse, match="more than 100 interim responses"):
        ask(conn)
    assert conn.state is State.CLOSED
    finish(conn)


def test_switched_protocol_never_comes_back_to_http(scripted_server: ServerFactory) -> None:
    def switch(peer: Peer) -> None:
        peer.read_head()
        peer.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n")
        while True:
            peer._receive()
            peer.send(peer._take(len(peer._buffer)))

    server = scripted_server(switch, default=[AGAIN])
    conn = connection_to(server)
    response = ask(conn)
    assert response.status == 101
    assert response.getheader("Upgrade") == "echo"
    conn.sock.sendall(b"something else")
    assert conn.sock.recv(100) == b"something else"
    with pytest.raises(HTTPException):
        conn.request("GET", "/second")
    response.close()
    conn.sock.sendall(b"still open")
    assert conn.sock.recv(100) == b"still open"
    conn.close()
    assert conn.state is State.CLOSED
    finish(conn)
    assert server.accepted == 2


def test_response_to_a_switched_protocol_reads_as_empty_and_leaves_the_socket(scripted_server: ServerFactory) -> None:
    server = scripted_server(
        [ExpectHead(), Send(b"HTTP/1.1 101 Switching Protocols\r\n\r\nfirst words"), KeepOpen()], default=[AGAIN]
    )
    conn = connection_to(server)
    with ask(conn) as response:
        assert response.read() == b""
        assert response.leftover == b"first words"
    assert conn.sock.fileno() >= 0
    conn.close()
    finish(conn)


def test_answer_to_connect_makes_a_tunnel_that_never_comes_back_to_http(scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(method="CONNECT"), Respond(200), KeepOpen()], default=[AGAIN])
    conn = connection_to(server)
    conn.request("CONNECT", "origin:443")
    response = conn.getresponse()
    assert response.status == 200
    before = conn.state
    response.close()
    assert (before, conn.state) == (State.UNREAD_RESPONSE, State.UNREAD_RESPONSE)
    conn.close()
    finish(conn)


# --- what is cut short ------------------------------------------------------------------------------------------------

TRUNCATED = {
    "length": LENGTH[:-3],
    "length, nothing came": LENGTH[: -len(BODY)],
    "chunk": CHUNKED[: CHUNKED.index(b"the last")],
    "in the chunk size": CHUNKED_HEAD + b"5\r\nfirst\r\n1",
    "before the chunk size": CHUNKED_HEAD + b"5\r\nfirst\r\n",
    "at the chunk's data": CHUNKED_HEAD + b"5\r\n",
    "behind the chunk": CHUNKED_HEAD + b"5\r\nfirst",
    "within the chunk's CRLF": CHUNKED_HEAD + b"5\r\nfirst\r",
    "before the trailers' end": CHUNKED[:-2],
    "in a trailer": CHUNKED_HEAD + b"0\r\nX-Su",
    "before the last chunk": CHUNKED_HEAD + b"5\r\nfirst\r\n",
}
TRUNCATING = [
    by_read,
    by_reads_of_7,
    by_one_read_of_more_than_there_is,
    by_readinto,
    by_readinto1,
    by_read1,
    by_readline,
    by_iteration,
    by_text_wrapper,
    by_copyfileobj,
]


@pytest.mark.parametrize("case", TRUNCATED)
@pytest.mark.parametrize("reader", TRUNCATING, ids=lambda reader: reader.__name__)
def test_truncated_body_is_an_error_and_closes_the_connection(
    reader: Callable[[HTTPResponse], bytes], case: str, scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = scripted_server([ExpectHead(), Send(TRUNCATED[case]), Close()], default=[AGAIN])
    conn = connection_to(server)
    response = ask(conn)
    with pytest.raises(IncompleteRead):
        # Some ways deliver what did come; the truncation is then the outcome of the next read.
        for _ in range(2):
            reader(response)
    assert response.is_broken
    assert conn.state is State.CLOSED
    assert conn._close_reasons == [CloseReason.TRUNCATED]
    with pytest.raises(IncompleteRead):
        response.read()
    response.close()
    finish(conn)


def test_truncated_read_holds_what_came(scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(), Send(LENGTH[:-3]), Close()], default=[AGAIN])
    conn = connection_to(server)
    with pytest.raises(IncompleteRead) as caught:
        ask(conn).read()
    assert caught.value.partial == BODY[:-3]
    assert caught.value.expected == 3
    finish(conn)


class InterruptionError(BaseException):
    """What a signal's handler may raise."""


STALLING = {
    "length": b"Content-Length: 99999\r\n\r\n",
    "chunked": b"Transfer-Encoding: chunked\r\n\r\n1869F\r\n",
}


@pytest.mark.parametrize("framing", STALLING)
@pytest.mark.parametrize("by", ["read", "readinto"])
def test_interruption_in_a_long_body_leaves_no_buffer_in_use(
    by: str, framing: str, scripted_server: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its traceback has the frames that were receiving; a buffer in use can be neither resized nor taken down."""
    said: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    server = scripted_server([ExpectHead(), Send(OK + STALLING[framing] + b"x" * 50_000), KeepOpen()], default=[AGAIN])
    conn = connection_to(server)
    response = ask(conn)
    buffer = bytearray(99_999)

    def interrupt(*_: object) -> None:
        raise InterruptionError

    def be_interrupted() -> None:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            response.read() if by == "read" else response.readinto(buffer)
        except InterruptionError as error:
            kept = error  # noqa: F841  # a cycle: the error's traceback holds this frame, which holds the error
            buffer.append(0)
        else:
            pytest.fail("it was not interrupted")

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        be_interrupted()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    gc.collect()
    assert said == []
    finish(conn)


def test_body_that_somebody_else_closes_while_it_is_read_is_truncated(
    scripted_server: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread, or a signal's handler; what it drains is missing here, and never comes."""
    server = scripted_server(
        [ExpectHead(), Send(OK + b"Content-Length: 99999\r\n\r\n" + b"x" * 99_999)], default=[AGAIN]
    )
    conn = connection_to(server)
    response = ask(conn)
    read_into, calls = Body.read_into, []

    def closed_meanwhile(self: Body, view: memoryview) -> int:
        count = read_into(self, view[:10_000])
        calls.append(count)
        if len(calls) == 1:
            while not self.is_complete:
                self.read_some(65536)
        return count

    monkeypatch.setattr(Body, "read_into", closed_meanwhile)
    monkeypatch.setattr("pooledhttp.response.BODY_RECEIVE_BYTES", 20_000)
    with pytest.raises(IncompleteRead) as caught:
        response.read()
    assert 0 < len(caught.value.partial) < 99_999
    assert calls[-1] == 0
    finish(conn)


def test_amount_that_was_cut_short_is_delivered_and_the_next_read_raises(scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(), Send(LENGTH[:-3]), Close()], default=[AGAIN])
    conn = connection_to(server)
    response = ask(conn)
    assert response.read(len(BODY)) == BODY[:-3]
    assert conn.state is State.CLOSED
    with pytest.raises(IncompleteRead):
        response.read(1)
    finish(conn)


def test_peek_at_a_truncated_body_hides_nothing(scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(), Send(LENGTH[: -len(BODY)]), Close()], default=[AGAIN])
    conn = connection_to(server)
    response = ask(conn)
    assert response.peek() == b""
    with pytest.raises(IncompleteRead):
        response.read()
    finish(conn)


@pytest.mark.parametrize("reader", [by_read, by_readinto, by_readline], ids=lambda reader: reader.__name__)
def test_reset_within_a_body_is_a_connection_error(
    reader: Callable[[HTTPResponse], bytes], scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = scripted_server([ExpectHead(), Send(OK + b"Content-Length: 9\r\n\r\n"), Reset()], default=[AGAIN])
    conn = connection_to(server)
    response = ask(conn)
    with pytest.raises(ConnectionResetError):
        reader(response)
    assert conn.state is State.CLOSED
    with pytest.raises(ConnectionResetError):
        response.read()
    finish(conn)


def test_promise_of_a_huge_body_is_no_allocation(scripted_server: ServerFactory) -> None:
    import tracemalloc

    server = scripted_server([ExpectHead(), Send(OK + b"Content-Length: 1000000000000\r\n\r\n0123456789"), Close()],
                             default=[AGAIN])  # fmt: skip
    conn = connection_to(server)
    response = ask(conn)
    tracemalloc.start()
    try:
        with pytest.raises(IncompleteRead) as caught:
            response.read()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
    assert caught.value.partial == b"0123456789"
    finish(conn)


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("127.0.0.1").configure_cert(context)
    return context


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context


@framings
@pytest.mark.parametrize("reader", [by_read, by_readinto, by_readline], ids=lambda reader: reader.__name__)
def test_tls_that_ends_without_close_notify_is_a_truncation(
    reader: Callable[[HTTPResponse], bytes], kind: str, scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    answer = KINDS[kind] if kind == "to the end" else KINDS[kind][:-2]
    server = scripted_server([ExpectHead(), Send(answer), Close(close_notify=False)], default=[AGAIN],
                             ssl_context=server_context())  # fmt: skip
    conn = HTTPSConnection(server.host, server.port, timeout=BOUND, context=client_context())
    response = ask(conn)
    with pytest.raises(IncompleteRead):
        for _ in range(2):
            reader(response)
    assert conn.state is State.CLOSED
    finish(conn)


@readers
def test_tls_that_ends_with_close_notify_is_the_end_of_the_body(
    reader: Callable[[HTTPResponse], bytes], scripted_server: ServerFactory
) -> None:
    server = scripted_server([ExpectHead(), Send(TO_THE_END), Close()], default=[AGAIN], ssl_context=server_context())
    conn = HTTPSConnection(server.host, server.port, timeout=BOUND, context=client_context())
    assert reader(ask(conn)) == BODY
    finish(conn)


# --- what is malformed ------------------------------------------------------------------------------------------------

MALFORMED_CHUNKS = {
    "bare LF behind the size": b"5\nfirst\r\n0\r\n\r\n",
    "bare LF behind the data": b"5\r\nfirst\n0\r\n\r\n",
    "something behind the data": b"5\r\nfirstXY0\r\n\r\n",
    "a line behind the data": b"5\r\nfirst\r\r\n0\r\n\r\n",
    "sign": b"+5\r\nfirst\r\n0\r\n\r\n",
    "underscore": b"1_0\r\nfirst\r\n0\r\n\r\n",
    "prefix": b"0x5\r\nfirst\r\n0\r\n\r\n",
    "no size": b"\r\nfirst\r\n0\r\n\r\n",
    "huge size": b"1" * 17 + b"\r\nfirst\r\n0\r\n\r\n",
    "trailer without a colon": b"0\r\nX-Sum\r\n\r\n",
    "trailer with a bare LF": b"0\r\nX-Sum: 1\n\r\n",
}


@splits
@pytest.mark.parametrize("case", MALFORMED_CHUNKS)
def test_malformed_chunk_framing_is_an_error_and_closes_the_connection(
    case: str, split: str, scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = serve(scripted_server, CHUNKED_HEAD + MALFORMED_CHUNKS[case], split)
    conn = connection_to(server)
    response = ask(conn)
    with pytest.raises(InvalidResponse):
        response.read()
    assert conn.state is State.CLOSED
    assert conn._close_reasons == [CloseReason.ERROR]
    finish(conn)
    assert server.accepted == 2


def endless(beginning: bytes, repeated: bytes) -> Callable[[Peer], None]:
    def send_on(peer: Peer) -> None:
        peer.read_head()
        peer.send(beginning)
        while True:
            peer.send(repeated * (1 + 20000 // len(repeated)))

    return send_on


ENDLESS = {
    "status line": (b"HTTP/1.1 200 O", b"K", LineTooLong),
    "header line": (OK + b"X: ", b"y", LineTooLong),
    "head": (OK, b"X: y\r\n", InvalidResponse),
    "chunk size": (CHUNKED_HEAD, b"0", LineTooLong),
    "chunk extension": (CHUNKED_HEAD + b"5;", b"x", LineTooLong),
    "chunk extensions": (CHUNKED_HEAD, b"1;" + b"x" * 1000 + b"\r\ny\r\n", InvalidResponse),
    "trailer": (CHUNKED_HEAD + b"0\r\nX: ", b"y", LineTooLong),
    "trailers": (CHUNKED_HEAD + b"0\r\n", b"X: y\r\n", InvalidResponse),
    "line in a bare LF head": (b"HTTP/1.1 200 OK\nX: ", b"y", LineTooLong),
}


@pytest.mark.parametrize("case", ENDLESS)
def test_endless_framing_ends_within_the_limits(
    case: str, scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    beginning, repeated, error = ENDLESS[case]
    server = scripted_server(endless(beginning, repeated), default=[AGAIN])
    conn = connection_to(server)
    with pytest.raises(error):
        ask(conn).read()
    assert conn.state is State.CLOSED
    finish(conn)


def test_limits_of_the_lender_hold(scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(), Respond(headers=[("X-Long", "y" * 100)])], default=[AGAIN])
    conn = connection_to(server)
    conn.bound(timeouts=Timeout(), limits=Limits(line_bytes=50))
    with pytest.raises(LineTooLong):
        ask(conn)
    finish(conn)


@pytest.mark.parametrize("answer", [b"HTTP/0.9 200 OK\r\n\r\n", b"<html>\r\n\r\n", b"\r\nHTTP/1.1 200 OK\r\n\r\n",
                                    b"SSH-2.0-x\r\n", b"HTTP/1.1 2000 OK\r\n\r\n"])  # fmt: skip
def test_what_is_no_http_is_a_bad_status_line(
    answer: bytes, scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = serve(scripted_server, answer, "whole")
    conn = connection_to(server)
    with pytest.raises(BadStatusLine):
        ask(conn)
    assert conn.state is State.CLOSED
    finish(conn)


def test_end_within_the_head_is_an_error(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    server = scripted_server([ExpectHead(), Send(OK + b"Content-Le"), Close()], default=[AGAIN])
    conn = connection_to(server)
    with pytest.raises(InvalidResponse, match="ended within the response's head, after 27 bytes"):
        ask(conn)
    finish(conn)


def test_end_before_the_head_is_a_disconnection(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    server = scripted_server([ExpectHead(), Close()], default=[AGAIN])
    conn = connection_to(server)
    with pytest.raises(RemoteDisconnected):
        ask(conn)
    assert conn.state is State.CLOSED
    assert conn._close_reasons == [CloseReason.ERROR]
    finish(conn)


# --- bytes behind a response ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [LENGTH, CHUNKED, OK + b"Content-Length: 0\r\n\r\n"], ids=["length", "chunked", "0"])
def test_response_with_bytes_behind_it_is_delivered_and_its_connection_closed(
    answer: bytes, scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = serve(scripted_server, answer + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
    conn = connection_to(server)
    response = ask(conn)
    assert response.read() == (b"" if b"th: 0\r" in answer else BODY)
    assert conn.state is State.CLOSED
    assert conn._close_reasons == [CloseReason.LEFTOVER]
    finish(conn)
    assert server.accepted == 2


# --- close() and what is left -----------------------------------------------------------------------------------------


@framings
@splits
def test_closing_an_unread_response_drains_a_short_rest(
    kind: str, split: str, scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = serve(scripted_server, KINDS[kind])
    conn = connection_to(server)
    response = ask(conn)
    assert response.read(PIECES[split]) == (BODY if split == "whole" else BODY[:1])
    response.close()
    assert response.isclosed()
    assert response.closed
    assert conn.state is (State.CLOSED if kind == "to the end" else State.IDLE)
    finish(conn)
    assert server.accepted == (2 if kind == "to the end" else 1)


@pytest.mark.parametrize("answer", [
    OK + b"Content-Length: 10000000\r\n\r\n",
    CHUNKED_HEAD + b"10\r\n",
    OK + b"Content-Length: 10\r\n\r\n01234",
    CHUNKED_HEAD + b"5\r\nfirst\r\n" + b"10000\r\n" + b"x" * 65536 + b"\r\n",
], ids=["long", "stalled chunk", "stalled length", "long chunks"])  # fmt: skip
def test_closing_an_unread_response_with_a_long_or_slow_rest_closes_the_connection(
    answer: bytes, scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = scripted_server([ExpectHead(), Send(answer), KeepOpen()], default=[AGAIN])
    conn = connection_to(server)
    response = ask(conn)
    response.close()
    assert conn.state is State.CLOSED
    assert conn._close_reasons == [CloseReason.UNREAD]
    finish(conn)
    assert server.accepted == 2


def test_draining_keeps_the_documented_timeout(scripted_server: ServerFactory) -> None:
    server = serve(scripted_server, LENGTH)
    conn = connection_to(server)
    ask(conn).close()
    assert conn.sock.gettimeout() == BOUND
    finish(conn)


def test_draining_keeps_the_limits_of_the_lender(scripted_server: ServerFactory) -> None:
    server = serve(scripted_server, LENGTH)
    conn = connection_to(server)
    conn.bound(timeouts=Timeout(read=3, write=4))
    response = ask(conn)
    assert conn._transport is not None
    before = conn._transport.limits
    response.close()
    assert conn._transport.limits == before == (3, 4, None)
    finish(conn)


def test_drain_without_anything_unread_tells_whether_the_connection_is_idle(scripted_server: ServerFactory) -> None:
    server = scripted_server(default=[AGAIN])
    conn = connection_to(server)
    assert not conn.drain()
    conn.connect()
    assert conn.drain()
    conn.close()


def test_drain_cuts_the_response_off(scripted_server: ServerFactory) -> None:
    server = serve(scripted_server, LENGTH)
    conn = connection_to(server)
    response = ask(conn)
    assert conn.drain()
    assert conn.state is State.IDLE
    with pytest.raises(IncompleteRead):
        response.read()
    response.close()
    finish(conn)
    assert server.accepted == 1


def test_response_that_is_dropped_unread_still_holds_its_connection(scripted_server: ServerFactory) -> None:
    server = serve(scripted_server, LENGTH)
    conn = connection_to(server)
    ask(conn)
    gc.collect()
    assert conn.state is State.UNREAD_RESPONSE
    with pytest.raises(HTTPException, match="has not been read"):
        conn.request("GET", "/second")
    assert conn.drain()
    finish(conn)
    assert server.accepted == 1


def test_response_that_is_dropped_unread_is_closed_with_its_connection(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = serve(scripted_server, LENGTH)
    conn = connection_to(server)
    ask(conn)
    gc.collect()
    conn.close()
    assert conn.state is State.CLOSED
    finish(conn)


@pytest.mark.parametrize(
    "answer",
    [LENGTH.replace(OK, OK + b"Connection: close\r\n"), TO_THE_END, LENGTH.replace(b"HTTP/1.1", b"HTTP/1.0")],
    ids=["close", "to the end", "1.0"],
)
def test_connection_that_is_closed_leaves_its_socket_to_a_response_that_says_close(
    answer: bytes, scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = scripted_server([ExpectHead(), Send(answer), Close()], default=[AGAIN])
    conn = connection_to(server)
    response = ask(conn)
    assert response.will_close
    conn.close()
    assert conn.state is State.CLOSED
    assert response.read() == BODY
    finish(conn)


def test_response_left_to_itself_can_be_closed_unread(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    server = scripted_server([ExpectHead(), Send(TO_THE_END), KeepOpen()], default=[AGAIN])
    conn = connection_to(server)
    response = ask(conn)
    conn.close()
    finish(conn)
    response.close()
    assert server.peer(0).ended.wait(BOUND)


def test_response_left_to_itself_may_be_truncated_without_harm_to_its_connection(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    answer = LENGTH.replace(OK, OK + b"Connection: close\r\n")[:-1]
    server = scripted_server([ExpectHead(), Send(answer), Close()], default=[AGAIN])
    conn = connection_to(server)
    response = ask(conn)
    conn.close()
    conn.connect()
    with pytest.raises(IncompleteRead):
        response.read()
    assert conn.state is State.IDLE
    finish(conn)


def test_closing_a_kept_alive_connection_cuts_its_response_off(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = serve(scripted_server, LENGTH)
    conn = connection_to(server)
    response = ask(conn)
    assert response.read(5) == BODY[:5]
    conn.close()
    with pytest.raises(IncompleteRead) as caught:
        response.read()
    assert caught.value.expected == len(BODY) - 5
    response.close()
    finish(conn)


def test_response_outlives_the_name_of_its_connection(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    server = serve(scripted_server, TO_THE_END)
    conn = connection_to(server)
    response = ask(conn)
    del conn
    gc.collect()
    assert response.read() == BODY
    finish(connection_to(server))


def test_interrupted_read_closes_the_connection(
    scripted_server: ServerFactory, audit: ResourceAudit, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(scripted_server, OK + b"Content-Length: 100\r\n\r\nhello")
    conn = connection_to(server)
    response = ask(conn)
    assert response.read(5) == b"hello"
    assert conn._transport is not None

    def interrupt(*_: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(conn._transport), "more", interrupt)
    with pytest.raises(KeyboardInterrupt):
        response.read()
    monkeypatch.undo()
    assert conn.state is State.CLOSED
    with pytest.raises(OSError, match="interrupted"):
        response.read()
    finish(conn)


def test_interrupted_drain_closes_the_connection(
    scripted_server: ServerFactory, audit: ResourceAudit, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(scripted_server, OK + b"Content-Length: 100\r\n\r\nhello")
    conn = connection_to(server)
    response = ask(conn)
    assert conn._transport is not None

    def interrupt(*_: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(conn._transport), "take", interrupt)
    with pytest.raises(KeyboardInterrupt):
        response.close()
    monkeypatch.undo()
    assert conn.state is State.CLOSED
    finish(conn)


# --- foreign sockets --------------------------------------------------------------------------------------------------


class ForeignSocket:
    """The least that is documented to do: sendall, makefile and close."""

    def __init__(self, answer: bytes) -> None:
        self.sent = bytearray()
        self.file = io.BytesIO(answer)
        self.is_closed = False

    def sendall(self, block: bytes) -> None:
        self.sent += block

    def makefile(self, mode: str) -> io.BytesIO:
        assert mode == "rb"
        return self.file

    def close(self) -> None:
        self.is_closed = True


def ask_foreign(answer: bytes) -> tuple[HTTPConnection, ForeignSocket, HTTPResponse]:
    conn = HTTPConnection("origin.test")
    conn.sock = sock = ForeignSocket(answer)
    assert conn.sock is sock
    return conn, sock, ask(conn)


@framings
@readers
def test_foreign_socket_carries_a_response(reader: Callable[[HTTPResponse], bytes], kind: str) -> None:
    conn, sock, response = ask_foreign(b"HTTP/1.1 100 Continue\r\n\r\n" + KINDS[kind])
    assert bytes(sock.sent).startswith(b"GET /first HTTP/1.1\r\nHost: origin.test\r\n")
    assert reader(response) == BODY
    conn.close()
    assert sock.is_closed
    assert sock.file.closed


def test_foreign_socket_carries_one_exchange_after_the_other() -> None:
    conn, sock, response = ask_foreign(LENGTH + CHUNKED + LENGTH)
    for _ in range(2):
        assert response.read() == BODY
        assert conn.state is State.IDLE
        response = ask(conn)
    assert response.read() == BODY
    assert conn.staleness() is None
    conn.close()
    assert bytes(sock.sent).count(b"GET /first") == 3


def test_foreign_socket_sees_no_read_beyond_its_response() -> None:
    conn, sock, response = ask_foreign(LENGTH + b"the next")
    assert response.readline() == b"first line\n"
    response.read()
    assert sock.file.read() == b"the next"
    conn.close()


def test_foreign_socket_may_lack_a_descriptor() -> None:
    conn, _, response = ask_foreign(LENGTH)
    with pytest.raises(OSError, match=r"no descriptor|fileno"):
        response.fileno()
    response.read()
    conn.close()


def test_unread_response_of_a_foreign_socket_ends_its_connection() -> None:
    """Nobody knows how long reading the rest would take: such a socket cannot be hurried."""
    conn, _, response = ask_foreign(LENGTH + LENGTH)
    response.close()
    assert conn.state is State.CLOSED


@pytest.mark.parametrize(("answer", "error"), [
    (b"", RemoteDisconnected),
    (OK + b"Content-Le", InvalidResponse),
    (OK + b"Content-Length: 1", InvalidResponse),
    (OK + b"X: " + b"y" * 70000, LineTooLong),
    (OK + b"X: y\r\n" * 50000, InvalidResponse),
    (b"HTTP/2 200 OK\r\n\r\n", BadStatusLine),
    (LENGTH[:-1], IncompleteRead),
    (CHUNKED[:-20], IncompleteRead),
])  # fmt: skip
def test_foreign_socket_meets_the_same_errors(answer: bytes, error: type[Exception]) -> None:
    conn = HTTPConnection("origin.test")
    conn.sock = sock = ForeignSocket(answer)
    with pytest.raises(error):
        ask(conn).read()
    assert conn.state is State.CLOSED
    assert sock.is_closed


def test_limits_pass_a_foreign_socket_by() -> None:
    conn = HTTPConnection("origin.test")
    conn.bound(timeouts=Timeout())
    conn.sock = ForeignSocket(LENGTH)
    assert ask(conn).read() == BODY
    conn.close()


def test_response_can_be_read_from_a_foreign_socket() -> None:
    response = HTTPResponse(ForeignSocket(CHUNKED), method="GET")
    response.begin()
    assert response.read() == BODY
    assert response.trailers == [("X-Sum", "1"), ("X-Time", "2")]


# --- the finished result ----------------------------------------------------------------------------------------------


def finished(body: bytes = b'{"a": 1}') -> Response:
    head = parse_head(b"HTTP/1.1 201 Created\r\nETag: x\r\nX-Two: a\r\nX-Two: b\r\n\r\n", method="GET")
    return Response(head, body, method="GET", url="/first", resends=1, trailers=[("X-Sum", "1")])


def test_finished_response_shows_its_head_and_body() -> None:
    response = finished()
    assert (response.status, response.reason, response.version) == (201, "Created", 11)
    assert response.headers["etag"] == "x"
    assert response.getheader("x-two") == "a, b"
    assert response.getheader("X-None") is None
    assert response.getheader("X-None", "default") == "default"
    assert response.getheaders() == [("ETag", "x"), ("X-Two", "a"), ("X-Two", "b")]
    assert (response.method, response.url, response.resends) == ("GET", "/first", 1)
    assert response.trailers == [("X-Sum", "1")]
    assert response.json() == {"a": 1}
    assert response.text() == '{"a": 1}'


def test_finished_response_that_is_no_json_says_so() -> None:
    with pytest.raises(ValueError, match="Expecting value"):
        finished(b"<html>").json()


def test_finished_response_is_decoded_as_asked() -> None:
    assert finished(b"\xe9").text("latin-1") == "\xe9"
    assert finished(b"\xe9").text(errors="replace") == "�"


def test_repr_of_a_finished_response_shows_no_header() -> None:
    assert repr(finished()) == "<Response 201 Created GET 8 bytes>"


# --- through the eyes of http.client ----------------------------------------------------------------------------------


def lines_of(response: http.client.HTTPResponse | HTTPResponse) -> Iterator[bytes]:
    yield from response


@framings
def test_response_reads_as_one_of_http_client_does(kind: str, scripted_server: ServerFactory) -> None:
    server = scripted_server(default=[ExpectHead(), Send(KINDS[kind]), Close()])
    theirs = http.client.HTTPConnection(server.host, server.port, timeout=BOUND)
    theirs.request("GET", "/first")
    ours = connection_to(server)
    one, other = theirs.getresponse(), ask(ours)
    assert (one.status, one.reason, one.version) == (other.status, other.reason, other.version)
    assert one.getheaders() == other.getheaders()
    assert str(one.headers) == str(other.headers)
    assert list(lines_of(one)) == list(lines_of(other))
    theirs.close()
    ours.close()
