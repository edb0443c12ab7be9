"""`HTTPConnection` as documented: what it sends, what it refuses, its limits, and what a fault leaves behind."""

from __future__ import annotations

import array
import contextlib
import http.client
import io
import os
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pooledhttp import (
    CannotSendRequest,
    ConnectTimeout,
    HTTPConnection,
    HTTPResponse,
    HTTPSConnection,
    IllegalKeywordArgument,
    IncompleteRead,
    InvalidResponse,
    InvalidURL,
    NotConnected,
    ReadTimeout,
    RemoteDisconnected,
    ResponseNotReady,
    Timeout,
    TotalTimeout,
    WriteTimeout,
)
from pooledhttp.dial import Dialer
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
    Signal,
    Stall,
    Trickle,
)
from pooledhttp.timeouts import Deadline
from pooledhttp.transport import Transport
from pooledhttp.wire import Limits

BOUND = 10.0
ANSWERS = [Repeat([ExpectHead(), Respond(body=b"hello")])]
PLENTY = 20_000_000  # more than the buffers of a loopback connection hold


def connection_to(server: ScriptedServer, *, timeout: float | None = BOUND, **options: Any) -> HTTPConnection:
    return HTTPConnection(server.host, server.port, timeout=timeout, **options)


def finish(conn: HTTPConnection) -> None:
    """One normal request, then the end."""
    conn.request("GET", "/again")
    assert conn.getresponse().read() == b"hello"
    conn.close()


def wire_of(server: ScriptedServer, exchange: Callable[[HTTPConnection], object], **options: Any) -> bytes:
    """Return the bytes that a call puts on the wire."""
    conn = connection_to(server, **options)
    exchange(conn)
    assert conn.getresponse().read() == b"hello"
    conn.close()
    peer = server.peer()
    assert peer.ended.wait(BOUND)
    return peer.received


@pytest.fixture
def server(scripted_server: ServerFactory) -> ScriptedServer:
    return scripted_server(default=ANSWERS)


# --- construction -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "host", "port"), [
    (("origin.test",), "origin.test", 80),
    (("origin.test:8080",), "origin.test", 8080),
    (("origin.test:",), "origin.test", 80),
    (("origin.test", 8080), "origin.test", 8080),
    (("origin.test", "8080"), "origin.test", 8080),
    (("[::1]:8080",), "::1", 8080),
    (("[::1]",), "::1", 80),
    (("::1", 8080), "::1", 8080),
    (("fe80::1%lo", 80), "fe80::1%lo", 80),
])  # fmt: skip
def test_host_and_port_are_taken_apart(arguments: tuple[Any, ...], host: str, port: int) -> None:
    conn = HTTPConnection(*arguments)
    assert (conn.host, conn.port) == (host, port)


@pytest.mark.parametrize(("arguments", "error"), [
    (("origin.test:http",), InvalidURL),
    (("origin.test", "http"), InvalidURL),
    (("origin.test", 65536), InvalidURL),
    (("origin.test", -1), InvalidURL),
    (("origin.test", "9" * 5000), InvalidURL),
    (("origin.test", "\u0664"), InvalidURL),
    (("origin.test", 80.0), TypeError),
    (("origin.test", True), TypeError),
    ((b"origin.test",), TypeError),
    ((None,), TypeError),
    (("origin test",), InvalidURL),
    (("origin.test\r\nX: y",), InvalidURL),
    (("user@origin.test",), InvalidURL),
    (("origin.test/path",), InvalidURL),
    (("",), InvalidURL),
    (("origin%2etest",), InvalidURL),
])  # fmt: skip
def test_malformed_host_or_port_is_refused(arguments: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        HTTPConnection(*arguments)


@pytest.mark.parametrize(("options", "error"), [
    ({"timeout": 0}, ValueError),
    ({"timeout": -1}, ValueError),
    ({"timeout": float("nan")}, ValueError),
    ({"timeout": "1"}, TypeError),
    ({"blocksize": 0}, ValueError),
    ({"blocksize": True}, ValueError),
    ({"blocksize": 1.5}, ValueError),
    ({"source_address": "127.0.0.1"}, ValueError),
    ({"source_address": ("127.0.0.1",)}, ValueError),
    ({"source_address": (127, 0)}, ValueError),
    ({"source_address": ("127.0.0.1", "0")}, ValueError),
    ({"strict": False}, IllegalKeywordArgument),
])  # fmt: skip
def test_option_that_makes_no_sense_is_refused(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        HTTPConnection("origin.test", **options)


def test_strict_is_what_we_always_are() -> None:
    assert HTTPConnection("origin.test", strict=True).state is State.CLOSED


@pytest.mark.parametrize(("host", "port", "field"), [
    ("origin.test", 80, "origin.test"),
    ("origin.test", 8080, "origin.test:8080"),
    ("::1", 80, "[::1]"),
    ("::1", 8080, "[::1]:8080"),
    ("fe80::1%lo", 80, "[fe80::1]"),
])  # fmt: skip
def test_host_field_has_brackets_and_no_default_port(host: str, port: int, field: str, server: ScriptedServer) -> None:
    conn = HTTPConnection(host, port, timeout=BOUND)
    conn.sock = socket.create_connection(server.address, timeout=BOUND)
    finish(conn)
    assert server.requests[0].field("Host") == field


# --- requests on the wire ---------------------------------------------------------------------------------------------


def test_request_leaves_in_one_piece_of_one_head_and_its_body(server: ScriptedServer) -> None:
    sent = wire_of(server, lambda conn: conn.request("POST", "/a?b=c", body=b"body", headers={"X-Number": 7, "X": "y"}))
    assert sent == (
        b"POST /a?b=c HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept-Encoding: identity\r\nContent-Length: 4\r\n"
        b"X-Number: 7\r\nX: y\r\n\r\nbody" % server.port
    )


def test_request_leaves_the_same_by_its_steps(server: ScriptedServer) -> None:
    def by_steps(conn: HTTPConnection) -> None:
        conn.putrequest("POST", "/a?b=c")
        conn.putheader("Content-Length", 4)
        conn.putheader(b"X-Two", "one", b"two", 3)
        conn.endheaders(b"body")

    assert wire_of(server, by_steps) == (
        b"POST /a?b=c HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept-Encoding: identity\r\nContent-Length: 4\r\n"
        b"X-Two: one\ttwo\t3\r\n\r\nbody" % server.port
    )


def test_steps_may_leave_out_host_and_accept_encoding(server: ScriptedServer) -> None:
    def by_steps(conn: HTTPConnection) -> None:
        conn.putrequest("GET", "", skip_host=True, skip_accept_encoding=True)
        conn.endheaders()

    assert wire_of(server, by_steps) == b"GET / HTTP/1.1\r\n\r\n"


def test_body_may_follow_by_send(server: ScriptedServer) -> None:
    def by_steps(conn: HTTPConnection) -> None:
        conn.putrequest("POST", "/")
        conn.putheader("Content-Length", 14)
        conn.endheaders()
        conn.send(b"one ")
        conn.send(io.BytesIO(b"two "))
        conn.send(iter([b"th", b"", b"ree."]))

    assert wire_of(server, by_steps).endswith(b"\r\n\r\none two three.")


def test_body_of_text_follows_endheaders_as_latin_1(server: ScriptedServer) -> None:
    def by_steps(conn: HTTPConnection) -> None:
        conn.putrequest("POST", "/")
        conn.putheader("Content-Length", 1)
        conn.endheaders("\xe9")

    assert wire_of(server, by_steps).endswith(b"\r\n\r\n\xe9")


def test_fields_of_the_caller_replace_ours(server: ScriptedServer) -> None:
    headers = {"hOST": "other.test", "accept-ENCODING": "gzip", "Content-length": "4"}
    sent = wire_of(server, lambda conn: conn.request("POST", "/", body=b"body", headers=headers))
    assert sent == b"POST / HTTP/1.1\r\nhOST: other.test\r\naccept-ENCODING: gzip\r\nContent-length: 4\r\n\r\nbody"


def test_names_and_values_may_be_bytes(server: ScriptedServer) -> None:
    sent = wire_of(server, lambda conn: conn.request("GET", "/", headers={b"X-Bytes": b"\xff"}))
    assert b"\r\nX-Bytes: \xff\r\n" in sent


@pytest.mark.parametrize(("method", "has_length"), [("POST", True), ("PUT", True), ("PATCH", True), ("GET", False),
                                                    ("DELETE", False), ("OPTIONS", False)])  # fmt: skip
def test_missing_body_is_told_where_one_is_expected(method: str, has_length: bool, server: ScriptedServer) -> None:
    sent = wire_of(server, lambda conn: conn.request(method, "/"))
    assert (b"\r\nContent-Length: 0\r\n" in sent) is has_length


CHUNKS = b"2\r\non\r\n1\r\ne\r\n0\r\n\r\n"


def chunked(conn: HTTPConnection, body: Any, **options: Any) -> None:
    conn.request("POST", "/", body=body, **options)


class TextFile:
    """A file of text that tells nothing about its length."""

    def __init__(self, text: str) -> None:
        self._file = io.StringIO(text)

    def read(self, size: int) -> str:
        return self._file.read(size)


BODIES: dict[str, tuple[Callable[[], Any], bytes]] = {
    "bytes": (lambda: b"one", b"Content-Length: 3\r\n\r\none"),
    "str": (lambda: "\xf6ne", b"Content-Length: 3\r\n\r\n\xf6ne"),
    "bytearray": (lambda: bytearray(b"one"), b"Content-Length: 3\r\n\r\none"),
    "memoryview": (lambda: memoryview(b"one"), b"Content-Length: 3\r\n\r\none"),
    "memoryview of another item size": (
        lambda: memoryview(b"onetwo!!").cast("I"),
        b"Content-Length: 8\r\n\r\nonetwo!!",
    ),
    "array": (lambda: array.array("H", b"onetwo"), b"Content-Length: 6\r\n\r\nonetwo"),
    "empty bytes": (lambda: b"", b"Content-Length: 0\r\n\r\n"),
    "large bytes": (lambda: b"x" * 70000, b"Content-Length: 70000\r\n\r\n" + b"x" * 70000),
    "list": (lambda: [b"on", b"", b"e"], b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS),
    "generator": (lambda: (piece for piece in (b"on", b"e")), b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS),
    "empty generator": (lambda: iter(()), b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "file in memory": (lambda: io.BytesIO(b"one"), b"Transfer-Encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\n"),
    "text file in memory": (
        lambda: io.StringIO("\xf6ne"),
        b"Transfer-Encoding: chunked\r\n\r\n3\r\n\xf6ne\r\n0\r\n\r\n",
    ),
    "something with read": (lambda: TextFile("one"), b"Transfer-Encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\n"),
}


@pytest.mark.parametrize("steps", [False, True], ids=["request", "own steps"])
@pytest.mark.parametrize("kind", BODIES)
def test_body_of_each_kind_is_sent_with_its_framing(kind: str, steps: bool, server: ScriptedServer) -> None:
    class WithOwnSteps(HTTPConnection):
        def putheader(self, header: str | bytes, *values: Any) -> None:
            super().putheader(header, *values)

    make, expected = BODIES[kind]
    conn = (WithOwnSteps if steps else HTTPConnection)(server.host, server.port, timeout=BOUND)
    conn.request("POST", "/", body=make())
    assert conn.getresponse().read() == b"hello"
    conn.close()
    assert server.peer().ended.wait(BOUND)
    assert server.peer().received.endswith(b"identity\r\n" + expected)


@pytest.mark.parametrize("buffering", [0, -1])
def test_regular_file_is_sent_with_its_true_length(buffering: int, tmp_path: Path, server: ScriptedServer) -> None:
    path = tmp_path / "body"
    path.write_bytes(b"0123456789" * 10000)
    with path.open("rb", buffering=buffering) as file:
        file.seek(5)
        sent = wire_of(server, lambda conn: conn.request("PUT", "/", body=file), blocksize=1000)
    assert sent.endswith(b"\r\nContent-Length: 99995\r\n\r\n" + (b"0123456789" * 10000)[5:])


def test_regular_file_that_was_read_to_its_end_is_an_empty_body(tmp_path: Path, server: ScriptedServer) -> None:
    path = tmp_path / "body"
    path.write_bytes(b"0123456789")
    with path.open("rb") as file:
        file.seek(20)
        sent = wire_of(server, lambda conn: conn.request("PUT", "/", body=file))
    assert sent.endswith(b"\r\nContent-Length: 0\r\n\r\n")


def test_text_file_is_sent_in_chunks(tmp_path: Path, server: ScriptedServer) -> None:
    path = tmp_path / "body"
    path.write_text("\xf6ne\r\n", encoding="utf-8", newline="")
    with path.open(encoding="utf-8", newline="") as file:
        sent = wire_of(server, lambda conn: conn.request("PUT", "/", body=file))
    assert sent.endswith(b"Transfer-Encoding: chunked\r\n\r\n5\r\n\xf6ne\r\n\r\n0\r\n\r\n")


def test_pipe_is_sent_in_chunks(server: ScriptedServer) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"one")
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        sent = wire_of(server, lambda conn: conn.request("PUT", "/", body=file))
    assert sent.endswith(b"Transfer-Encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\n")


def test_chunks_are_made_only_when_asked_for_with_a_coding_of_the_caller(scripted_server: ServerFactory) -> None:
    headers = {"Transfer-Encoding": "chunked"}
    server = scripted_server(default=ANSWERS)
    sent = wire_of(server, lambda conn: conn.request("POST", "/", body=[b"on", b"e"], headers=headers,
                                                     encode_chunked=True))  # fmt: skip
    assert sent.endswith(b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS)
    server = scripted_server(default=ANSWERS)
    sent = wire_of(server, lambda conn: conn.request("POST", "/", body=CHUNKS, headers=headers))
    assert sent.endswith(b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS)


def test_endheaders_makes_chunks_when_asked(server: ScriptedServer) -> None:
    def by_steps(conn: HTTPConnection) -> None:
        conn.putrequest("POST", "/")
        conn.putheader("Transfer-Encoding", "chunked")
        conn.endheaders([b"on", b"e"], encode_chunked=True)

    assert wire_of(server, by_steps).endswith(b"\r\n\r\n" + CHUNKS)


@pytest.mark.parametrize("body", [7, object(), 1.5])
def test_body_of_no_documented_kind_is_refused(body: Any, server: ScriptedServer) -> None:
    conn = connection_to(server)
    with pytest.raises(TypeError):
        conn.request("POST", "/", body=body)
    assert conn.state is State.CLOSED
    finish(conn)


def test_item_that_is_no_bytes_closes_the_connection(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    server = scripted_server([ExpectHead(body=False), KeepOpen()], default=ANSWERS)
    conn = connection_to(server)
    with pytest.raises(TypeError):
        conn.request("POST", "/", body=["text"])  # type: ignore[list-item]  # that it is wrong is the point
    assert conn.state is State.CLOSED
    finish(conn)


def test_text_that_is_not_latin_1_names_the_way_out(server: ScriptedServer) -> None:
    conn = connection_to(server)
    with pytest.raises(UnicodeEncodeError, match="utf-8"):
        conn.request("POST", "/", body="\u20ac")
    assert conn.state is State.CLOSED
    assert server.accepted == 0
    finish(conn)


BAD_REQUESTS: dict[str, tuple[str, str, dict[Any, Any], type[Exception]]] = {
    "method with a space": ("GE T", "/", {}, ValueError),
    "method with a line end": ("GET\r\n", "/", {}, ValueError),
    "empty method": ("", "/", {}, ValueError),
    "target with a space": ("GET", "/a b", {}, InvalidURL),
    "target with a line end": ("GET", "/\r\nX: y", {}, InvalidURL),
    "target with another alphabet": ("GET", "/\xe9", {}, InvalidURL),
    "name with a line end": ("GET", "/", {"X\r\nY": "z"}, ValueError),
    "name with a space": ("GET", "/", {"X Y": "z"}, ValueError),
    "value with a line end": ("GET", "/", {"X": "y\r\nZ: z"}, ValueError),
    "value with NUL": ("GET", "/", {"X": "\0"}, ValueError),
    "value of another type": ("GET", "/", {"X": 1.5}, TypeError),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_malformed_request_is_refused_before_anything_is_opened(case: str, server: ScriptedServer) -> None:
    method, target, headers, error = BAD_REQUESTS[case]
    conn = connection_to(server)
    with pytest.raises(error):
        conn.request(method, target, headers=headers)
    assert conn.state is State.CLOSED
    assert server.accepted == 0
    finish(conn)


@pytest.mark.parametrize("case", [case for case in BAD_REQUESTS if "method" in case or "target" in case])
def test_malformed_beginning_of_a_request_begins_none(case: str, server: ScriptedServer) -> None:
    method, target, _, error = BAD_REQUESTS[case]
    conn = connection_to(server)
    with pytest.raises(error):
        conn.putrequest(method, target)
    assert conn.state is State.CLOSED
    finish(conn)


@pytest.mark.parametrize("case", [case for case in BAD_REQUESTS if "name" in case or "value" in case])
def test_malformed_field_is_refused_and_the_request_goes_on(case: str, server: ScriptedServer) -> None:
    def by_steps(conn: HTTPConnection) -> None:
        conn.putrequest("GET", "/")
        ((name, value),) = BAD_REQUESTS[case][2].items()
        with pytest.raises(BAD_REQUESTS[case][3]):
            conn.putheader(name, value)
        conn.putheader("X-Good", "y")
        conn.endheaders()

    assert wire_of(server, by_steps).endswith(b"identity\r\nX-Good: y\r\n\r\n")


# --- subclasses -------------------------------------------------------------------------------------------------------


class HTTP10Connection(HTTPConnection):
    _http_vsn = 10
    _http_vsn_str = "HTTP/1.0"


def test_subclass_may_speak_http_1_0(scripted_server: ServerFactory) -> None:
    server = scripted_server(default=[ExpectHead(), Respond(version="HTTP/1.0", body=b"hello"), Close()])
    conn = HTTP10Connection(server.host, server.port, timeout=BOUND)
    conn.request("GET", "/first")
    response = conn.getresponse()
    assert response.version == 10
    assert response.read() == b"hello"
    assert conn.state is State.CLOSED
    assert conn._close_reasons == [CloseReason.SERVER_CLOSE]
    conn.putrequest("GET", "/second")
    conn.endheaders()
    assert conn.getresponse().read() == b"hello"
    assert [request.version for request in server.requests] == ["HTTP/1.0", "HTTP/1.0"]
    assert server.requests[1].head == b"GET /second HTTP/1.0\r\n\r\n"


def test_connection_of_http_1_0_is_kept_alive_when_the_server_says_so(scripted_server: ServerFactory) -> None:
    answer = Respond(version="HTTP/1.0", body=b"hello", headers=[("Connection", "keep-alive")])
    server = scripted_server([Repeat([ExpectHead(), answer])])
    conn = HTTP10Connection(server.host, server.port, timeout=BOUND)
    finish(conn)


def test_subclass_that_overrides_a_step_sees_every_request(server: ScriptedServer) -> None:
    class Signing(HTTPConnection):
        def putheader(self, header: str | bytes, *values: Any) -> None:
            super().putheader(header, *values)
            if header == "X-Sign":
                super().putheader("X-Signature", "abc")

    conn = Signing(server.host, server.port, timeout=BOUND)
    conn.request("POST", "/", body="one", headers={"X-Sign": "yes", "Host": "other.test", "Accept-Encoding": "gzip"})
    assert conn.getresponse().read() == b"hello"
    conn.close()
    assert server.requests[0].head == (
        b"POST / HTTP/1.1\r\nContent-Length: 3\r\nX-Sign: yes\r\nX-Signature: abc\r\n"
        b"Host: other.test\r\nAccept-Encoding: gzip\r\n\r\n"
    )


def test_subclass_may_have_a_response_of_its_own(server: ScriptedServer) -> None:
    class Loud(HTTPResponse):
        def read(self, amt: int | None = None, /) -> bytes:
            return super().read(amt).upper()

    class WithLoudResponse(HTTPConnection):
        response_class = Loud

    conn = WithLoudResponse(server.host, server.port, timeout=BOUND)
    conn.request("GET", "/")
    assert conn.getresponse().read() == b"HELLO"
    conn.close()


# --- debugging --------------------------------------------------------------------------------------------------------


def test_debug_level_prints_heads_without_credentials(
    scripted_server: ServerFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    server = scripted_server([ExpectHead(), Respond(headers=[("X-Answer", "1")], body=b"hello")])
    conn = connection_to(server)
    conn.set_debuglevel(1)
    secrets = {"Authorization": "Basic secret", "proxy-AUTHORIZATION": "Basic secret", "Cookie": "id=secret"}
    conn.request("GET", "/first", headers={**secrets, "X-Shown": "shown"})
    response = conn.getresponse()
    assert response.debuglevel == 1
    assert response.read() == b"hello"
    conn.close()
    printed = capsys.readouterr().out
    for part in ("send:", "GET /first", "X-Shown: shown", "Authorization: [hidden]", "reply:", "200 OK",
                 "header: X-Answer: 1"):  # fmt: skip
        assert part in printed
    assert "secret" not in printed


def test_nothing_is_printed_without_a_debug_level(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    finish(connection_to(server))
    assert capsys.readouterr().out == ""


# --- sockets of ones own ----------------------------------------------------------------------------------------------


def test_socket_that_is_assigned_is_used_and_closed(server: ScriptedServer) -> None:
    sock = socket.create_connection(server.address, timeout=BOUND)
    conn = HTTPConnection("origin.test")
    assert conn.sock is None
    conn.sock = sock
    assert conn.sock is sock
    assert conn.state is State.IDLE
    finish(conn)
    assert sock.fileno() == -1
    assert conn.sock is None


def test_socket_may_be_assigned_within_a_request(server: ScriptedServer) -> None:
    conn = HTTPConnection("origin.test")
    conn.putrequest("GET", "/")
    conn.sock = socket.create_connection(server.address, timeout=BOUND)
    conn.endheaders()
    assert conn.getresponse().read() == b"hello"
    finish(conn)


def test_socket_that_is_taken_away_is_not_closed(server: ScriptedServer) -> None:
    conn = connection_to(server)
    conn.connect()
    with conn.sock as sock:
        conn.sock = None
        assert conn.state is State.CLOSED
        conn.close()
        assert sock.fileno() != -1
    finish(conn)


def test_socket_that_is_taken_away_under_a_response_breaks_nothing(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = scripted_server(default=ANSWERS)
    conn = connection_to(server)
    conn.request("GET", "/first")
    response = conn.getresponse()
    with conn.sock:
        conn.sock = None
        assert response.read() == b"hello"
        assert conn.state is State.CLOSED
    finish(conn)


def test_connection_may_be_made_by_somebody_else(server: ScriptedServer) -> None:
    asked = []

    def create(address: tuple[str, int], timeout: object, source_address: object) -> socket.socket:
        asked.append((address, timeout, source_address))
        return socket.create_connection(server.address, timeout=BOUND)

    conn = HTTPConnection("origin.test", 8080, timeout=7, source_address=("127.0.0.1", 0))
    conn._create_connection = create  # type: ignore[assignment]  # a documented seam of http.client
    finish(conn)
    assert asked == [(("origin.test", 8080), 7, ("127.0.0.1", 0))]


def test_source_address_is_bound(server: ScriptedServer) -> None:
    finish(connection_to(server, source_address=("127.0.0.9", 0)))
    client = server.peer().client_address
    assert client is not None
    assert client[0] == "127.0.0.9"


def test_lender_may_choose_how_to_dial(server: ScriptedServer) -> None:
    conn = HTTPConnection("origin.test")
    conn.bound(timeouts=Timeout(), dialer=Dialer(host=server.host, port=server.port))
    finish(conn)
    assert server.requests[0].field("Host") == "origin.test"


# --- connecting, and not ----------------------------------------------------------------------------------------------


def test_connection_that_may_not_open_itself_says_so() -> None:
    conn = HTTPConnection("origin.test")
    conn.auto_open = 0
    with pytest.raises(NotConnected):
        conn.request("GET", "/")
    assert conn.state is State.CLOSED


def test_send_outside_of_a_request_is_refused(server: ScriptedServer) -> None:
    conn = connection_to(server)
    with pytest.raises(CannotSendRequest, match="CLOSED"):
        conn.send(b"GET /smuggled HTTP/1.1\r\n\r\n")
    conn.connect()
    with pytest.raises(CannotSendRequest, match="IDLE"):
        conn.send(b"GET /smuggled HTTP/1.1\r\n\r\n")
    conn.putrequest("GET", "/first")
    with pytest.raises(CannotSendRequest, match="REQUEST_STARTED"):
        conn.send(b"GET /smuggled HTTP/1.1\r\n\r\n")
    conn.endheaders()
    assert conn.getresponse().read() == b"hello"
    finish(conn)
    assert [request.target for request in server.requests].count("/smuggled") == 0


def test_connecting_anew_closes_the_connection_before(server: ScriptedServer, audit: ResourceAudit) -> None:
    conn = connection_to(server)
    conn.connect()
    conn.connect()
    assert server.peer(0).ended.wait(BOUND)
    assert conn._close_reasons == [CloseReason.CLIENT_CLOSE]
    assert len(conn._opened_seconds) == 2
    finish(conn)
    assert server.accepted == 2


def test_closing_twice_is_fine(server: ScriptedServer) -> None:
    conn = connection_to(server)
    conn.close()
    conn.connect()
    conn.close()
    conn.close()
    assert conn._close_reasons == [CloseReason.CLIENT_CLOSE]
    finish(conn)


def test_closed_connection_is_stale(server: ScriptedServer) -> None:
    conn = connection_to(server)
    assert conn.staleness() is CloseReason.CLIENT_CLOSE
    conn.connect()
    assert conn.staleness() is None
    finish(conn)


def test_connection_closed_within_an_exchange_has_no_response(server: ScriptedServer) -> None:
    conn = connection_to(server)
    conn.request("GET", "/first")
    conn.close()
    with pytest.raises(ResponseNotReady):
        conn.getresponse()
    finish(conn)


def test_socket_closed_under_a_request_is_an_error(server: ScriptedServer, audit: ResourceAudit) -> None:
    conn = connection_to(server)
    conn.request("GET", "/first")
    conn.sock.close()
    with pytest.raises(OSError, match="descriptor"):
        conn.getresponse()
    assert conn.state is State.CLOSED
    finish(conn)


def test_refused_connection_is_closed(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        host, port = holder.getsockname()
        conn = HTTPConnection(host, port, timeout=BOUND)
        with pytest.raises(ConnectionRefusedError):
            conn.request("GET", "/")
        assert conn.state is State.CLOSED
        assert conn._opened_seconds == []
    conn.port = scripted_server(default=ANSWERS).port
    finish(conn)


# --- the peer ends early ----------------------------------------------------------------------------------------------


def refuses_early(peer: Peer) -> None:
    """Answer 413 to the head alone and close, with the body unread: the kernel makes that a reset."""
    peer.read_head()
    peer.send(Respond(413, b"too large", close=True).encode())
    peer.close()


@pytest.mark.parametrize("kind", ["bytes", "chunks", "file"])
def test_early_answer_is_delivered_although_the_peer_stopped_reading(
    kind: str, tmp_path: Path, scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    path = tmp_path / "body"
    path.write_bytes(b"x" * PLENTY)
    server = scripted_server(refuses_early, default=ANSWERS)
    conn = connection_to(server)
    with path.open("rb") as file:
        body: Any = {"bytes": b"x" * PLENTY, "chunks": (b"x" * 65536 for _ in range(PLENTY // 65536)), "file": file}[
            kind
        ]
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # if the peer's end comes before its answer
            conn.request("POST", "/first", body=body)
    before = conn.state
    response = conn.getresponse()
    assert response.status == 413
    assert response.will_close
    assert response.read() == b"too large"
    assert (before, conn.state) == (State.REQUEST_SENT, State.CLOSED)
    finish(conn)
    assert server.accepted == 2


def test_early_answer_without_a_close_ends_the_connection_all_the_same(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    def answers_and_resets(peer: Peer) -> None:
        peer.read_head()
        peer.send(Respond(401, b"who?").encode())
        peer.close()

    server = scripted_server(answers_and_resets, default=ANSWERS)
    conn = connection_to(server)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        conn.request("POST", "/first", body=b"x" * PLENTY)
    response = conn.getresponse()
    assert (response.status, response.read()) == (401, b"who?")
    assert conn.state is State.CLOSED
    finish(conn)


def test_peer_that_stops_reading_without_an_answer_is_the_error_of_sending(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = scripted_server([ExpectHead(body=False), Close()], default=ANSWERS)
    conn = connection_to(server)
    with pytest.raises((BrokenPipeError, ConnectionResetError)) as sending:
        conn.request("POST", "/first", body=b"x" * PLENTY)
    with pytest.raises((BrokenPipeError, ConnectionResetError)) as receiving:
        conn.getresponse()
    assert receiving.value is sending.value
    assert conn.state is State.CLOSED
    finish(conn)


def test_peer_that_stops_reading_during_send_may_still_have_answered(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = scripted_server(refuses_early, default=ANSWERS)
    conn = connection_to(server)
    conn.putrequest("POST", "/first")
    conn.putheader("Content-Length", PLENTY)
    conn.endheaders()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        conn.send(b"x" * PLENTY)
    assert conn.getresponse().read() == b"too large"
    assert conn.state is State.CLOSED
    finish(conn)


def test_body_that_raises_during_send_closes_the_connection(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = scripted_server([ExpectHead(body=False), KeepOpen()], default=ANSWERS)

    def body() -> Iterator[bytes]:
        yield b"one"
        raise LookupError("the rest is missing")

    conn = connection_to(server)
    conn.putrequest("POST", "/first")
    conn.putheader("Content-Length", 100)
    conn.endheaders()
    with pytest.raises(LookupError):
        conn.send(body())
    assert conn.state is State.CLOSED
    finish(conn)


def test_text_is_refused_by_send_and_the_request_goes_on(server: ScriptedServer) -> None:
    conn = connection_to(server)
    conn.putrequest("POST", "/first")
    conn.putheader("Content-Length", 3)
    conn.endheaders()
    with pytest.raises(TypeError):
        conn.send("one")
    conn.send(b"one")
    assert conn.getresponse().read() == b"hello"
    finish(conn)


@pytest.mark.parametrize(("step", "error"), [(HalfClose(), RemoteDisconnected), (Reset(), ConnectionResetError)],
                         ids=["end", "reset"])  # fmt: skip
@pytest.mark.parametrize("exchanges", [0, 1])
def test_end_without_an_answer_is_told_by_what_came_before(
    exchanges: int, step: Callable[[Peer], None], error: type[Exception], scripted_server: ServerFactory,
    audit: ResourceAudit
) -> None:  # fmt: skip
    before = [ExpectHead(), Respond(body=b"hello")] * exchanges
    server = scripted_server([*before, ExpectHead(), step, KeepOpen()], default=ANSWERS)
    conn = connection_to(server)
    for _ in range(exchanges):
        conn.request("GET", "/before")
        assert conn.getresponse().read() == b"hello"
    conn.request("GET", "/first")
    with pytest.raises(error):
        conn.getresponse()
    stale = CloseReason.STALE_EOF if error is RemoteDisconnected else CloseReason.STALE_RESET
    assert conn._close_reasons == [stale if exchanges else CloseReason.ERROR]
    assert conn._failed_unanswered
    assert not conn._failed_unsent
    finish(conn)


def test_request_on_a_connection_that_was_reset_while_idle_is_known_to_be_unsent(
    scripted_server: ServerFactory, audit: ResourceAudit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reset arrives behind the look at the idle connection, which sees nothing here."""
    monkeypatch.setattr(Transport, "staleness", lambda _: None)
    server = scripted_server([ExpectHead(), Respond(body=b"hello"), Reset()], default=ANSWERS)
    conn = connection_to(server)
    conn.request("GET", "/first")
    assert conn.getresponse().read() == b"hello"
    assert server.peer().ended.wait(BOUND)
    with pytest.raises((BrokenPipeError, ConnectionResetError)) as sending:
        conn.request("GET", "/second")
    with pytest.raises((BrokenPipeError, ConnectionResetError)) as receiving:
        conn.getresponse()
    # What the socket says when it is read may differ; the first failure is the one that counts.
    assert receiving.value is sending.value
    assert conn._failed_unsent
    assert conn._failed_unanswered
    finish(conn)


# --- limits -----------------------------------------------------------------------------------------------------------


def test_documented_timeout_bounds_each_read(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    server = scripted_server([ExpectHead(), Stall()], default=ANSWERS)
    conn = connection_to(server, timeout=0.2)
    conn.request("GET", "/first")
    with pytest.raises(TimeoutError):
        conn.getresponse()
    assert conn.state is State.CLOSED
    assert conn._close_reasons == [CloseReason.TIMEOUT]
    conn.timeout = BOUND
    finish(conn)


def test_documented_timeout_bounds_each_write(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    server = scripted_server([ExpectHead(body=False), Stall()], default=ANSWERS)
    conn = connection_to(server, timeout=0.2)
    with pytest.raises(TimeoutError):
        conn.request("POST", "/first", body=b"x" * PLENTY)
    assert conn.state is State.CLOSED
    conn.timeout = BOUND
    finish(conn)


def test_documented_timeout_may_be_longer_than_any_request(server: ScriptedServer) -> None:
    # The kernel's poll() takes no more than 24.8 days; whatever `timeout` accepts has to work.
    conn = connection_to(server, timeout=364 * 24 * 3600.0)
    finish(conn)


def test_silence_is_a_read_timeout(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    server = scripted_server([ExpectHead(), Stall()], default=ANSWERS)
    conn = connection_to(server)
    conn.bound(timeouts=Timeout(read=0.2))
    conn.request("GET", "/first")
    with pytest.raises(ReadTimeout, match=r"127\.0\.0\.1 sent nothing for 0\.20 s"):
        conn.getresponse()
    assert conn._close_reasons == [CloseReason.TIMEOUT]
    finish(conn)


def test_peer_that_takes_nothing_is_a_write_timeout(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    server = scripted_server([ExpectHead(body=False), Stall()], default=ANSWERS)
    conn = connection_to(server)
    conn.bound(timeouts=Timeout(write=0.2))
    with pytest.raises(WriteTimeout, match=r"127\.0\.0\.1 took no byte of the request for 0\.20 s"):
        conn.request("POST", "/first", body=b"x" * PLENTY)
    assert conn._close_reasons == [CloseReason.TIMEOUT]
    finish(conn)


@pytest.mark.parametrize("where", ["head", "body"])
def test_trickle_ends_at_the_deadline(where: str, scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    steps = [Trickle(head, 0.05)] if where == "head" else [Send(head), Trickle(b"x" * 1000, 0.05)]
    server = scripted_server([ExpectHead(), *steps], default=ANSWERS)
    conn = connection_to(server)
    conn.bound(timeouts=Timeout(read=5), deadline=Deadline(0.3, what="GET /first"))
    conn.request("GET", "/first")
    with pytest.raises(TotalTimeout, match=r"GET /first took longer than its total of 0\.30 s"):
        conn.getresponse().read()
    assert conn._close_reasons == [CloseReason.TIMEOUT]
    conn.bound(timeouts=Timeout())
    finish(conn)


def test_next_lease_has_limits_of_its_own(scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(), Respond(body=b"hello"), ExpectHead(), Stall(seconds=0.4),
                              Respond(body=b"hello"), *ANSWERS])  # fmt: skip
    conn = connection_to(server)
    conn.bound(timeouts=Timeout(read=0.2), deadline=Deadline(0.3))
    conn.request("GET", "/first")
    assert conn.getresponse().read() == b"hello"
    conn.sock.settimeout(0.01)  # a borrower's own
    conn.bound(timeouts=Timeout(read=BOUND))
    conn.request("GET", "/second")
    assert conn.getresponse().read() == b"hello"
    finish(conn)
    assert server.accepted == 1


def test_black_hole_is_a_connect_timeout(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(8)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        host, port = listener.getsockname()
        conn = HTTPConnection(host, port, timeout=0.2)
        with pytest.raises(ConnectTimeout, match=r"within 0\.20 s: connecting took too long"):
            conn.request("GET", "/")
        for filler in fillers:
            filler.close()
    conn.port, conn.timeout = scripted_server(default=ANSWERS).port, BOUND
    finish(conn)


def test_interrupted_connect_is_a_fault(
    server: ScriptedServer, audit: ResourceAudit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    conn = connection_to(server)
    with monkeypatch.context() as patched:
        patched.setattr(socket.socket, "connect", interrupt)
        with pytest.raises(KeyboardInterrupt):
            conn.request("GET", "/")
    assert conn.state is State.CLOSED
    finish(conn)


def test_interrupted_wait_for_the_response_closes_the_connection(
    server: ScriptedServer, audit: ResourceAudit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    conn = connection_to(server)
    conn.request("GET", "/first")
    with monkeypatch.context() as patched:
        patched.setattr(Transport, "more", interrupt)
        with pytest.raises(KeyboardInterrupt):
            conn.getresponse()
    assert conn.state is State.CLOSED
    finish(conn)


# --- the whole answer at once -----------------------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\n"
FETCHED: dict[str, tuple[bytes, bytes, State]] = {
    "length": (OK + b"Content-Length: 5\r\n\r\nhello", b"hello", State.IDLE),
    "interim": (b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK + b"Content-Length: 5\r\n\r\nhello", b"hello", State.IDLE),
    "chunked": (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n", b"hello", State.IDLE),
    "no body": (OK + b"Content-Length: 0\r\n\r\n", b"", State.IDLE),
    "304": (b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", b"", State.IDLE),
    "long": (OK + b"Content-Length: 300000\r\n\r\n" + b"x" * 300000, b"x" * 300000, State.IDLE),
    "close": (OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello", b"hello", State.CLOSED),
    "left over": (OK + b"Content-Length: 5\r\n\r\nhello, evil", b"hello", State.CLOSED),
    "left over, no body": (b"HTTP/1.1 204 No Content\r\n\r\nevil", b"", State.CLOSED),
}


@pytest.mark.parametrize("piece", [None, 1])
@pytest.mark.parametrize("case", FETCHED)
def test_answer_is_fetched_whole(case: str, piece: int | None, scripted_server: ServerFactory) -> None:
    answer, body, state = FETCHED[case]
    if len(answer) > 100000 and piece:
        piece = 10007
    server = scripted_server([ExpectHead(), Send(answer, piece=piece), *ANSWERS], default=ANSWERS)
    conn = connection_to(server)
    conn.request("GET", "/first")
    head, content, trailers = conn.fetch()
    assert head.status == int(answer.rpartition(b"HTTP/1.1 ")[2][:3])
    assert content == body
    assert list(trailers) == ([("X", "y")] if case == "chunked" else [])
    if "left over" not in case or piece is None:  # split, the rest may come behind the end: then the probe finds it
        assert conn.state is state
    if conn.state is State.IDLE and "left over" in case:
        assert select.select([conn.sock], [], [], BOUND)[0]
        assert conn.staleness() is not None
        conn.close()
    finish(conn)


def test_answer_to_the_end_is_fetched_whole(scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(), Send(OK + b"\r\nhello"), HalfClose(), KeepOpen()], default=ANSWERS)
    conn = connection_to(server)
    conn.request("GET", "/first")
    assert conn.fetch()[1] == b"hello"
    assert conn._close_reasons == [CloseReason.SERVER_CLOSE]
    finish(conn)


def test_switched_protocol_is_fetched_without_a_body(scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(), Send(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"), KeepOpen()],
                             default=ANSWERS)  # fmt: skip
    conn = connection_to(server)
    conn.request("GET", "/first")
    head, content, _ = conn.fetch()
    assert (head.status, content) == (101, b"")
    assert not conn.drain()
    assert conn.state is State.CLOSED
    finish(conn)


@pytest.mark.parametrize(("answer", "error", "reason"), [
    (b"", RemoteDisconnected, CloseReason.ERROR),
    (OK + b"Content-Length: 9\r\n\r\nhello", IncompleteRead, CloseReason.TRUNCATED),
    (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel", IncompleteRead, CloseReason.TRUNCATED),
    (OK + b"Transfer-Encoding: chunked\r\n\r\nhello\r\n", InvalidResponse, CloseReason.ERROR),
])  # fmt: skip
def test_answer_that_cannot_be_fetched_closes_the_connection(
    answer: bytes, error: type[Exception], reason: CloseReason, scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = scripted_server([ExpectHead(), Send(answer), Close()], default=ANSWERS)
    conn = connection_to(server)
    conn.request("GET", "/first")
    with pytest.raises(error):
        conn.fetch()
    assert conn.state is State.CLOSED
    assert conn._close_reasons == [reason]
    finish(conn)


def test_fetch_needs_a_request(server: ScriptedServer) -> None:
    conn = connection_to(server)
    with pytest.raises(ResponseNotReady):
        conn.fetch()
    finish(conn)


def test_answer_that_is_over_a_limit_of_the_lender_is_refused(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = scripted_server([ExpectHead(), Respond(headers=[("X", "y")] * 20)], default=ANSWERS)
    conn = connection_to(server)
    conn.bound(timeouts=Timeout(), limits=Limits(fields=10))
    conn.request("GET", "/first")
    with pytest.raises(InvalidResponse, match="more than 10 headers"):
        conn.fetch()
    finish(conn)


# --- http.client ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in dir(http.client.HTTPConnection) if not name.startswith("_")])
def test_every_public_name_of_http_client_is_there(name: str) -> None:
    assert hasattr(HTTPConnection("origin.test"), name)
    assert hasattr(HTTPSConnection("origin.test"), name)


def test_errors_are_those_of_http_client(server: ScriptedServer) -> None:
    conn = connection_to(server)
    with pytest.raises(http.client.ResponseNotReady):
        conn.getresponse()
    conn.putrequest("GET", "/")
    with pytest.raises(http.client.CannotSendRequest) as caught:
        conn.putrequest("GET", "/")
    assert type(caught.value) is CannotSendRequest
    conn.close()
    finish(conn)


def test_script_signals_are_not_lost_between_exchanges(scripted_server: ServerFactory) -> None:
    """A response that comes long before it is asked for is still the answer to its own request."""
    import threading

    answered = threading.Event()
    server = scripted_server([ExpectHead(), Respond(body=b"first"), Signal(answered), *ANSWERS])
    conn = connection_to(server)
    conn.request("GET", "/first")
    assert answered.wait(BOUND)
    assert conn.getresponse().read() == b"first"
    finish(conn)
