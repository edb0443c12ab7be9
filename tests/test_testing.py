"""The scripted peer and the audit: the other tests lean on them, so they are tested by plain sockets only."""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import http.client
import os
import resource
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import trustme

import pooledhttp.testing
from pooledhttp.testing import (
    Close,
    Disconnected,
    ExpectBody,
    ExpectHead,
    HalfClose,
    KeepOpen,
    Mark,
    Peer,
    ReadToEnd,
    ReceivedRequest,
    Repeat,
    Reset,
    ResourceAudit,
    Respond,
    Script,
    ScriptedServer,
    Send,
    ServerFactory,
    Signal,
    Stall,
    StartTLS,
    Trickle,
    keep_alive_script,
)

pytest_plugins = ["pytester", "pooledhttp.testing"]

GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
PLENTY = b"x" * 50_000_000  # more than the buffers of a loopback connection hold
BOUND = 10.0


def connect(server: ScriptedServer) -> socket.socket:
    return socket.create_connection(server.address, timeout=BOUND)


def read_to_end(sock: socket.socket) -> bytes:
    return b"".join(iter(functools.partial(sock.recv, 65536), b""))


def talk(server: ScriptedServer, data: bytes = b"") -> bytes:
    """Send the data, end our side, and return all that comes back."""
    with connect(server) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return read_to_end(sock)


def tell(server: ScriptedServer, data: bytes) -> bytes:
    """Send the data and return all that comes back; our side stays open meanwhile."""
    with connect(server) as sock:
        sock.sendall(data)
        return read_to_end(sock)


def failure_of(server: ScriptedServer) -> str:
    """Wait for a failure, close the server, and return what it raised."""
    server.wait_until(lambda: bool(server.failures), BOUND)
    with pytest.raises(AssertionError) as caught:
        server.close()
    return str(caught.value)


def wait_for(event: threading.Event) -> None:
    assert event.wait(BOUND)


@pytest.fixture
def start(audit: ResourceAudit) -> Iterator[Callable[..., ScriptedServer]]:
    """Servers that are closed after the test, whose failures the test has to look at itself."""
    with contextlib.ExitStack() as stack:

        def make(*scripts: Script, default: Script | None = None, timeout: float = BOUND) -> ScriptedServer:
            server = ScriptedServer(*scripts, default=default, timeout=timeout)
            stack.enter_context(contextlib.suppress(AssertionError))
            stack.callback(server.close)
            return server.start()

        yield make


# ---------------------------------------------------------------- scripts and connections


def test_each_connection_plays_its_own_script_and_later_ones_the_default(scripted_server: ServerFactory) -> None:
    server = scripted_server([Send(b"first")], [Send(b"second")], default=[Send(b"later")])
    assert [talk(server) for _ in range(4)] == [b"first", b"second", b"later", b"later"]
    assert server.accepted == 4
    assert [peer.index for peer in server.connections] == [0, 1, 2, 3]


def test_surplus_connection_is_closed_at_once_and_reported(start: Callable[..., ScriptedServer]) -> None:
    server = start([Send(b"first")])
    assert talk(server) == b"first"
    assert talk(server) == b""
    assert "connection 1, 'the start': unexpected: 1 scripts and no default" in failure_of(server)


def test_connection_that_waits_to_be_accepted_at_close_is_still_seen(start: Callable[..., ScriptedServer]) -> None:
    server = start()
    with connect(server), pytest.raises(AssertionError, match="unexpected"):
        server.close()


def test_url_names_scheme_host_and_port(scripted_server: ServerFactory) -> None:
    server = scripted_server()
    assert server.url == f"http://127.0.0.1:{server.port}"
    assert server.address == ("127.0.0.1", server.port)


def test_url_of_an_ipv6_address_has_brackets() -> None:
    assert ScriptedServer(host="::1", port=8080).url == "http://[::1]:8080"


def test_server_may_come_back_on_the_same_port(scripted_server: ServerFactory) -> None:
    first = scripted_server([KeepOpen()])
    with connect(first) as sock:
        first.peer()
        first.close()
        assert sock.recv(1) == b""
    second = scripted_server([Send(b"again")], port=first.port)
    assert talk(second) == b"again"


def test_server_starts_only_once(scripted_server: ServerFactory) -> None:
    server = scripted_server()
    with pytest.raises(RuntimeError, match="starts once"):
        server.start()


def test_start_on_a_port_in_use_leaves_nothing_open(scripted_server: ServerFactory) -> None:
    taken = scripted_server()
    with ResourceAudit(), pytest.raises(OSError, match="in use") as caught:
        ScriptedServer(port=taken.port).start()
    assert caught.value.errno == errno.EADDRINUSE


def test_unix_socket_is_served_and_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with ScriptedServer([ExpectHead(), Respond(body=b"ok"), Reset()], uds=str(path)) as server:
        assert server.url == "http://localhost"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(BOUND)
            sock.connect(str(path))
            sock.sendall(GET)
            assert read_to_end(sock).endswith(b"\r\n\r\nok")
        assert server.connections[0].client_address is None
    assert not path.exists()


def test_client_address_is_kept(scripted_server: ServerFactory) -> None:
    server = scripted_server([KeepOpen()])
    with connect(server) as sock:
        server.peer()
        assert server.connections[0].client_address == sock.getsockname()


def test_accepting_goes_on_after_the_process_ran_out_of_descriptors(scripted_server: ServerFactory) -> None:
    server = scripted_server([Send(b"late")])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as sock:
        sock.settimeout(BOUND)
        lowest_free = os.dup(sock.fileno())
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            sock.connect(server.address)
            with pytest.raises(TimeoutError):
                server.wait_until(lambda: server.accepted > 0, timeout=0.1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert read_to_end(sock) == b"late"


# ---------------------------------------------------------------- requests


def test_request_is_kept_with_fields_body_and_raw_head(scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead("POST", "/p"), Respond()])
    head = b"POST /p HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nx-a:  2 \r\nContent-Length: 3\r\n\r\n"
    tell(server, head + b"abc")
    fields = (("Host", "a"), ("X-A", "1"), ("x-a", "2"), ("Content-Length", "3"))
    assert server.requests == [ReceivedRequest("POST", "/p", "HTTP/1.1", fields, b"abc", head)]
    assert server.heads == [head]
    assert server.connections[0].received == head + b"abc"


def test_field_joins_its_values_and_ignores_case() -> None:
    request = ReceivedRequest("GET", "/", "HTTP/1.1", (("X-A", "1"), ("x-a", "2")), b"", b"")
    assert request.field("X-a") == "1, 2"
    assert request.field("X-B") is None


def test_chunked_body_is_decoded(scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(), Respond()])
    head = b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n"
    tell(server, head + b"3;ext=1\r\nabc\r\nA\r\n0123456789\r\n0\r\nTrailer: 1\r\n\r\n")
    assert server.requests[0].body == b"abc0123456789"
    assert server.connections[0].unread == b""


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"GET  /x HTTP/1.1\r\n\r\n", "not a request line"),
        (b"GET / HTTP/1.1\r\nHost\r\n\r\n", "not a header field"),
        (b"POST / HTTP/1.1\r\nContent-Length: +3\r\n\r\nabc", "no way to read a body"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\nabc", "no way to read a body"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n", "not a chunk size"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n", "should have ended"),
    ],
)
def test_malformed_request_is_a_failure(start: Callable[..., ScriptedServer], data: bytes, text: str) -> None:
    server = start([ExpectHead()])
    talk(server, data)
    assert text in failure_of(server)


@pytest.mark.parametrize("step", [ExpectHead(method="PUT"), ExpectHead(target="/y")])
def test_request_other_than_expected_is_a_failure(start: Callable[..., ScriptedServer], step: ExpectHead) -> None:
    server = start([step, Respond()])
    assert tell(server, GET) == b""
    assert f"expected {step.method or step.target}, got GET /x" in failure_of(server)


@pytest.mark.parametrize("data", [b"", GET[:-1], GET.replace(b"Host: a", b"Content-Length: 2") + b"x"])
def test_expected_request_that_does_not_come_whole_is_a_failure(
    start: Callable[..., ScriptedServer], data: bytes
) -> None:
    server = start([ExpectHead()])
    talk(server, data)
    assert f"did not come ({len(data)} bytes of it)" in failure_of(server)


@pytest.mark.parametrize("data", [b"", GET[:-1], GET.replace(b"Host: a", b"Content-Length: 2") + b"x"])
def test_optional_request_that_does_not_come_ends_the_script_quietly(
    scripted_server: ServerFactory, data: bytes
) -> None:
    server = scripted_server([ExpectHead(optional=True), Respond()])
    assert talk(server, data) == b""


def test_expected_request_that_never_came_is_a_failure_at_close(start: Callable[..., ScriptedServer]) -> None:
    server = start([ExpectHead()])
    with connect(server):
        server.peer()
        with pytest.raises(AssertionError, match="the server is being closed"):
            server.close()


def test_expected_request_that_is_late_is_a_failure(start: Callable[..., ScriptedServer]) -> None:
    server = start([ExpectHead()], timeout=0.05)
    with connect(server) as sock:
        assert sock.recv(1) == b""
    assert "no byte from the client in 0.05 s" in failure_of(server)


def test_pipelined_requests_are_kept_apart(scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(target="/1"), Respond(body=b"1"), ExpectHead(target="/2"), Respond(body=b"2")])
    answers = tell(server, b"POST /1 HTTP/1.1\r\nContent-Length: 2\r\n\r\nabGET /2 HTTP/1.1\r\n\r\n")
    assert [request.body for request in server.requests] == [b"ab", b""]
    assert answers.count(b"HTTP/1.1 200 OK") == 2


def test_bytes_behind_a_request_stay_unread(scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(), Respond(), ReadToEnd(), ExpectHead(optional=True)], [ExpectHead()])
    with connect(server) as sock:
        sock.sendall(GET + b"extra")
        sock.recv(100)
    with connect(server) as sock:
        sock.sendall(GET + b"extra")
        assert sock.recv(1) == b""
    wait_for(server.peer(1).ended)
    assert server.connections[1].unread == b"extra"
    assert server.connections[0].received == GET + b"extra"


def test_body_may_be_read_after_an_interim_answer(scripted_server: ServerFactory) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"
    server = scripted_server([ExpectHead(body=False), Send(interim), ExpectBody(), Respond()])
    with connect(server) as sock:
        sock.sendall(b"PUT / HTTP/1.1\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        assert sock.recv(100) == interim
        assert server.requests[0].body == b""
        sock.sendall(b"body")
        assert read_to_end(sock).startswith(b"HTTP/1.1 200 OK")
    assert server.requests[0].body == b"body"


def test_body_that_does_not_come_whole_is_a_failure(start: Callable[..., ScriptedServer]) -> None:
    server = start([ExpectHead(body=False), ExpectBody()])
    talk(server, b"PUT / HTTP/1.1\r\nContent-Length: 4\r\n\r\nbo")
    assert "the body did not come whole" in failure_of(server)


def test_mark_tells_what_was_received_since(scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(), Mark("asked"), Respond(), Mark("answered"), ReadToEnd()])
    with connect(server) as sock:
        sock.sendall(GET)
        sock.recv(100)
        server.wait_until(lambda: "answered" in server.connections[0].marks)
        sock.sendall(b"more")
    wait_for(server.peer(0).ended)
    assert server.connections[0].received_since("asked") == b"more"
    assert server.connections[0].received_since("answered") == b"more"


def test_mark_takes_in_what_had_arrived_before(scripted_server: ServerFactory) -> None:
    sent = threading.Event()
    server = scripted_server([Stall(until=sent), Mark("here"), ReadToEnd()])
    with connect(server) as sock:
        sock.sendall(GET)
        sent.set()
    wait_for(server.peer(0).ended)
    assert server.connections[0].received == GET
    assert server.connections[0].received_since("here") == b""


# ---------------------------------------------------------------- answers


def test_pieces_are_sent_by_calls_of_their_own() -> None:
    calls: list[bytes] = []
    recorder = SimpleNamespace(send_pieces=calls.extend)
    Send(b"abcde", piece=2)(recorder)  # type: ignore[arg-type]  # a stub: segments cannot be seen from outside
    Send(b"abcde")(recorder)  # type: ignore[arg-type]
    assert calls == [b"ab", b"cd", b"e", b"abcde"]


def test_pieces_arrive_in_order(scripted_server: ServerFactory) -> None:
    server = scripted_server([Send(b"abcdefg", piece=1)])
    assert talk(server) == b"abcdefg"


@pytest.mark.parametrize(
    ("response", "method", "wire"),
    [
        (Respond(), "GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        (Respond(body=b"ab"), "POST", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"),
        (Respond(body=b"ab"), "HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"),
        (Respond(body=b"ab"), "CONNECT", b"HTTP/1.1 200 OK\r\n\r\n"),
        (Respond(407, b"ab"), "CONNECT", b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 2\r\n\r\nab"),
        (Respond(204, b"ab"), "GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (Respond(304, chunked=True), "GET", b"HTTP/1.1 304 Not Modified\r\n\r\n"),
        (Respond(103, headers=[("Link", "</a>")]), "GET", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
        (Respond(799), "GET", b"HTTP/1.1 799 Unknown\r\nContent-Length: 0\r\n\r\n"),
        (Respond(reason="Fine", length=False), "GET", b"HTTP/1.1 200 Fine\r\n\r\n"),
        (
            Respond(body=b"ab", headers=[("content-length", "5")]),
            "GET",
            b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab",
        ),
        (
            Respond(body=b"ab", chunked=True),
            "GET",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        ),
        (Respond(chunked=True), "GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (
            Respond(version="HTTP/1.0", close=True),
            "GET",
            b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        ),
    ],
)
def test_response_is_framed_as_status_and_method_ask(response: Respond, method: str, wire: bytes) -> None:
    assert response.encode(method) == wire


def test_response_fits_the_method_of_the_request(scripted_server: ServerFactory) -> None:
    server = scripted_server([Repeat([ExpectHead(), Respond(body=b"ab")])])
    answer = talk(server, b"HEAD / HTTP/1.1\r\n\r\n" + GET)
    assert answer.split(b"\r\n\r\n") == [b"HTTP/1.1 200 OK\r\nContent-Length: 2"] * 2 + [b"ab"]


@pytest.mark.parametrize("response", [Respond(body=b"ab", length=False), Respond(body=b"ab", close=True)])
def test_response_that_ends_the_connection_closes_it(scripted_server: ServerFactory, response: Respond) -> None:
    server = scripted_server([ExpectHead(), response, KeepOpen()])
    assert tell(server, GET).endswith(b"\r\n\r\nab")


def test_trickle_sends_one_byte_at_a_time(scripted_server: ServerFactory) -> None:
    server = scripted_server([Trickle(b"abc", 0.05)])
    with connect(server) as sock:
        assert [sock.recv(10) for _ in range(4)] == [b"a", b"b", b"c", b""]


def test_trickle_stops_when_the_client_leaves(scripted_server: ServerFactory) -> None:
    server = scripted_server([Trickle(b"x" * 1_000_000, 0.001)])
    with connect(server) as sock:
        sock.recv(1)
    server.wait_until(lambda: server.connections[0].client_closed)
    wait_for(server.peer(0).ended)


def test_trickle_reaches_a_client_that_only_ended_its_side(scripted_server: ServerFactory) -> None:
    server = scripted_server([ReadToEnd(), Trickle(b"abc", 0.001)])
    assert talk(server, GET) == b"abc"


def test_half_close_leaves_the_other_direction_open(scripted_server: ServerFactory) -> None:
    server = scripted_server([Send(b"bye"), HalfClose(), ExpectHead()])
    with connect(server) as sock:
        assert read_to_end(sock) == b"bye"
        sock.sendall(GET)
    server.wait_until(lambda: len(server.requests) == 1)


def test_sending_after_half_close_is_a_failure(start: Callable[..., ScriptedServer]) -> None:
    server = start([HalfClose(), Send(b"x")])
    assert talk(server) == b""
    assert "closed this side" in failure_of(server)


def test_reset_is_seen_as_a_reset(scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(), Reset()])
    with connect(server) as sock:
        sock.sendall(GET)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_close_is_seen_as_the_end_of_the_stream(scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(), Close(), KeepOpen()])
    assert tell(server, GET) == b""


def test_repeat_serves_until_the_client_leaves(scripted_server: ServerFactory) -> None:
    over = threading.Event()
    server = scripted_server([Repeat([ExpectHead(), Respond(body=b"ok")]), Signal(over)])
    connection = http.client.HTTPConnection(*server.address, timeout=BOUND)
    for number in range(5):
        connection.request("GET", f"/{number}")
        assert connection.getresponse().read() == b"ok"
    connection.close()
    wait_for(over)
    assert [request.target for request in server.requests] == ["/0", "/1", "/2", "/3", "/4"]
    assert server.accepted == 1


def test_repeat_a_number_of_times_demands_every_request(start: Callable[..., ScriptedServer]) -> None:
    server = start([Repeat([ExpectHead()], 3)])
    talk(server, GET * 2)
    assert "did not come (0 bytes of it)" in failure_of(server)


def test_repeat_a_number_of_times_goes_on_afterwards(scripted_server: ServerFactory) -> None:
    server = scripted_server([Repeat([ExpectHead(), Send(b"x")], 3), Send(b"end")])
    assert talk(server, GET * 3) == b"xxxend"


def test_half_a_request_within_an_endless_repeat_is_a_failure(start: Callable[..., ScriptedServer]) -> None:
    server = start([Repeat([ExpectHead(), Respond()])])
    talk(server, GET + GET[:5])
    assert "did not come (5 bytes of it)" in failure_of(server)


def test_endless_answer_ends_when_the_client_leaves(scripted_server: ServerFactory) -> None:
    server = scripted_server([Repeat([Send(b"X-Endless: yes\r\n" * 1000)])])
    with connect(server) as sock:
        sock.recv(100)
    wait_for(server.peer(0).ended)


def test_stall_ends_with_its_event_and_reads_nothing(scripted_server: ServerFactory) -> None:
    stalled, go_on = threading.Event(), threading.Event()
    server = scripted_server([Signal(stalled), Stall(until=go_on), Send(b"on")])
    with connect(server) as sock:
        sock.sendall(GET)
        wait_for(stalled)
        assert server.connections[0].received_count == 0
        go_on.set()
        assert sock.recv(10) == b"on"


def test_stall_ends_after_its_seconds(scripted_server: ServerFactory) -> None:
    server = scripted_server([Stall(0.05), Send(b"on")])
    began = time.monotonic()
    assert talk(server) == b"on"
    assert time.monotonic() - began >= 0.05


@pytest.mark.parametrize("stall", [Stall(), Stall(60), Stall(until=threading.Event())])
def test_stall_that_reaches_the_timeout_is_a_failure(start: Callable[..., ScriptedServer], stall: Stall) -> None:
    server = start([stall], timeout=0.05)
    talk(server)
    assert "stalled for 0.05 s" in failure_of(server)


def test_keep_open_holds_until_the_client_leaves(scripted_server: ServerFactory) -> None:
    server = scripted_server([Send(b"x"), KeepOpen()])
    with connect(server) as sock:
        assert sock.recv(1) == b"x"
        sock.sendall(b"kept")
        server.wait_until(lambda: server.connections[0].received == b"kept")
        assert not server.connections[0].ended.is_set()
    wait_for(server.peer(0).ended)
    assert server.connections[0].client_closed


# ---------------------------------------------------------------- clients that leave, scripts that fail


def test_client_that_leaves_while_it_is_sent_to_is_no_failure(scripted_server: ServerFactory) -> None:
    over = threading.Event()
    server = scripted_server([ExpectHead(), Send(PLENTY), Signal(over)])
    with connect(server) as sock:
        sock.sendall(GET)
        sock.recv(10)
    wait_for(over)
    assert server.connections[0].client_closed


def test_client_that_takes_nothing_is_a_failure_in_time(start: Callable[..., ScriptedServer]) -> None:
    server = start([Send(PLENTY)], timeout=0.2)
    with connect(server):
        assert "did not take 50000000 bytes in 0.2 s" in failure_of(server)


def test_end_and_reset_of_the_client_are_told_apart(scripted_server: ServerFactory) -> None:
    server = scripted_server(default=[Send(b"unread"), ReadToEnd()])
    with connect(server) as sock:
        sock.recv(6)
    server.wait_until(lambda: server.connections[0].client_closed)
    with connect(server) as sock:
        sock.recv(1)  # leaving with bytes unread makes the kernel reset
    server.wait_until(lambda: server.connections[1].client_closed)
    assert [peer.client_reset for peer in server.connections] == [False, True]


def test_exception_in_a_function_is_a_failure(start: Callable[..., ScriptedServer]) -> None:
    def script(peer: Peer) -> None:
        raise LookupError("gone wrong")

    server = start(script)
    talk(server)
    text = failure_of(server)
    assert "LookupError('gone wrong')" in text
    assert "test_exception_in_a_function_is_a_failure" in text


def test_pytest_fail_in_a_function_is_a_failure(start: Callable[..., ScriptedServer]) -> None:
    server = start(lambda peer: pytest.fail("not this way"))
    talk(server)
    assert "not this way" in failure_of(server)


def test_function_that_lets_disconnected_out_ends_quietly(scripted_server: ServerFactory) -> None:
    def script(peer: Peer) -> None:
        peer.send(peer.read_head().method.encode())
        peer.read_request()

    server = scripted_server(script)
    assert talk(server, GET) == b"GET"
    wait_for(server.peer(0).ended)


def test_function_drives_the_peer_by_hand(scripted_server: ServerFactory) -> None:
    seen: list[bytes] = []

    def script(peer: Peer) -> None:
        peer.read_head()
        seen.append(peer.read_body())
        peer.send_pieces([b"a", b"b"])
        peer.half_close()
        seen.append(peer.read_to_end())
        with pytest.raises(Disconnected):
            peer.read_head()
        peer.close()
        peer.close()

    server = scripted_server(script)
    assert talk(server, GET + b"rest") == b"ab"
    wait_for(server.peer(0).ended)
    assert seen == [b"", b"rest"]


def test_function_may_stand_among_the_steps(scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(), lambda peer: peer.send(b"by hand"), Close()])
    assert tell(server, GET) == b"by hand"


def test_close_lists_every_failure_and_groups_them_as_its_cause(start: Callable[..., ScriptedServer]) -> None:
    server = start([ExpectHead()], [ExpectHead("PUT")])
    talk(server)
    talk(server, GET)
    server.wait_until(lambda: len(server.failures) == 2)
    with pytest.raises(AssertionError, match=r"(?s)2 failure\(s\).*connection 0.*connection 1") as caught:
        server.close()
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    assert len(caught.value.__cause__.exceptions) == 2


def test_failure_of_a_script_becomes_a_note_of_the_exception_in_the_block() -> None:
    with pytest.raises(KeyError) as caught, ScriptedServer() as server:
        talk(server)
        raise KeyError("the block's own")
    assert "unexpected" in caught.value.__notes__[0]


def test_wait_until_is_bounded_and_says_how_far_the_scripts_came(scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(), KeepOpen()])
    with connect(server) as sock:
        sock.sendall(GET)
        server.wait_until(lambda: len(server.heads) == 1)
        with pytest.raises(TimeoutError) as caught:
            server.wait_until(lambda: server.accepted == 2, timeout=0.05)
    assert "1 connections were accepted" in str(caught.value)
    assert f"connection 0: {len(GET)} bytes" in str(caught.value)


def test_wait_until_notices_a_signal(scripted_server: ServerFactory) -> None:
    go_on, over = threading.Event(), threading.Event()
    server = scripted_server([Stall(until=go_on), Signal(over), KeepOpen()])

    def is_over() -> bool:  # nothing happens before it was asked once, and nothing but the signal afterwards
        go_on.set()
        return over.is_set()

    with connect(server):
        server.peer()
        began = time.monotonic()
        server.wait_until(is_over)
        assert time.monotonic() - began < BOUND / 2


def test_wait_until_notices_that_the_client_left(scripted_server: ServerFactory) -> None:
    go_on = threading.Event()
    server = scripted_server([ReadToEnd(), Stall(until=go_on)])
    sock = connect(server)
    peer = server.peer()

    def has_left() -> bool:
        sock.close()
        return peer.client_closed

    began = time.monotonic()
    server.wait_until(has_left)
    assert time.monotonic() - began < BOUND / 2
    go_on.set()


# ---------------------------------------------------------------- closing


def blocked_in(name: str, blocked: threading.Event) -> Script:
    """Return a script that waits for long, each in another way."""
    signal = Signal(blocked)
    scripts = {  # without an annotation, since that a list of steps is a Script is typing we promise
        "stall": [signal, Stall()],
        "stall for an event": [signal, Stall(until=threading.Event())],
        "read": [signal, ExpectHead(optional=True)],
        "read to end": [signal, ReadToEnd()],
        "keep open": [signal, KeepOpen()],
        "trickle": [signal, Trickle(b"x" * 1000, 50.0)],
        "send": [signal, Send(PLENTY)],
        "endless send": [signal, Repeat([Send(b"x" * 1000)])],
        "endless repeat": [signal, Repeat([Stall(50.0)])],
    }
    return scripts[name]


@pytest.mark.parametrize(
    "name",
    [
        "stall",
        "stall for an event",
        "read",
        "read to end",
        "keep open",
        "trickle",
        "send",
        "endless send",
        "endless repeat",
    ],
)
def test_close_interrupts_every_wait_at_once(audit: ResourceAudit, name: str) -> None:
    blocked = threading.Event()
    server = ScriptedServer(blocked_in(name, blocked), timeout=60.0).start()
    with connect(server):
        wait_for(blocked)
        began = time.monotonic()
        server.close()
        assert time.monotonic() - began < 5.0
        assert server.connections[0].ended.is_set()
        assert not server.connections[0].client_closed
    audit.check()


def test_close_interrupts_a_tls_handshake_at_once(audit: ResourceAudit, server_context: ssl.SSLContext) -> None:
    server = ScriptedServer([ExpectHead()], ssl_context=server_context, timeout=60.0).start()
    with connect(server):
        server.peer()
        began = time.monotonic()
        server.close()
        assert time.monotonic() - began < 5.0


def test_close_does_not_wait_for_a_client_that_never_stops_sending(audit: ResourceAudit) -> None:
    with ScriptedServer([ReadToEnd()], timeout=60.0) as server, connect(server) as sock:

        def flood() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock.sendall(b"x" * 65536)

        flooder = threading.Thread(target=flood)
        flooder.start()
        peer = server.peer()
        server.wait_until(lambda: peer.received_count > 1_000_000)
        began = time.monotonic()
        server.close()
        assert time.monotonic() - began < 5.0
        flooder.join(BOUND)
        assert not flooder.is_alive()


def test_client_that_still_sends_while_the_server_closes_is_reset(audit: ResourceAudit) -> None:
    def read_after_the_interruption(peer: Peer) -> None:
        peer.stall()
        with contextlib.suppress(Disconnected):
            while True:
                peer.send(b"x")
        peer.read_head()

    with connect(server := ScriptedServer(read_after_the_interruption).start()) as sock:
        sock.sendall(b"and so on")
        server.peer()
        server.close()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):  # after a mere FIN the first one would get out
            sock.send(b"and on")


def test_close_again_does_nothing(start: Callable[..., ScriptedServer]) -> None:
    server = start()
    talk(server)
    failure_of(server)
    server.close()


def test_close_before_start_does_nothing() -> None:
    ScriptedServer().close()


def test_script_that_does_not_end_is_reported_by_close(start: Callable[..., ScriptedServer]) -> None:
    entered, leave = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        entered.set()
        wait_for(leave)

    server = start(script, timeout=0.1)
    try:
        with connect(server):
            wait_for(entered)
            with pytest.raises(AssertionError, match=r"scripted-peer-0-\d+ still runs 0.1 s after close"):
                server.close()
    finally:
        leave.set()


# ---------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_every_connection_starts_with_tls_if_the_server_has_a_context(
    scripted_server: ServerFactory, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    server = scripted_server([ExpectHead(target="/s"), Respond(body=b"secret")], ssl_context=server_context)
    assert server.url.startswith("https://127.0.0.1:")
    connection = http.client.HTTPSConnection(*server.address, timeout=BOUND, context=client_context)
    connection.request("GET", "/s")
    assert connection.getresponse().read() == b"secret"
    connection.close()
    assert server.connections[0].received.startswith(b"GET /s HTTP/1.1\r\n")


def test_proxy_starts_tls_after_it_answered_connect(
    scripted_server: ServerFactory, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    server = scripted_server(
        [ExpectHead("CONNECT", "localhost:443"), Respond(), StartTLS(server_context), ExpectHead(), Respond(body=b"in")]
    )
    connection = http.client.HTTPSConnection(*server.address, timeout=BOUND, context=client_context)
    connection.set_tunnel("localhost", 443)
    connection.request("GET", "/inside")
    assert connection.getresponse().read() == b"in"
    connection.close()
    assert [request.method for request in server.requests] == ["CONNECT", "GET"]


def test_refused_certificate_is_kept_and_no_failure(
    scripted_server: ServerFactory, server_context: ssl.SSLContext
) -> None:
    server = scripted_server([ExpectHead(), Respond()], ssl_context=server_context)
    with connect(server) as sock, pytest.raises(ssl.SSLCertVerificationError):
        ssl.create_default_context().wrap_socket(sock, server_hostname="localhost")
    wait_for(server.peer(0).ended)
    assert "UNKNOWN_CA" in str(server.connections[0].tls_error)


def test_tls_after_bytes_that_came_too_early_is_a_failure(
    start: Callable[..., ScriptedServer], server_context: ssl.SSLContext
) -> None:
    server = start([ExpectHead(), StartTLS(server_context)])
    talk(server, GET + b"early")
    assert "bytes came before TLS could start: b'early'" in failure_of(server)


def test_tls_handshake_that_never_comes_is_a_failure(
    start: Callable[..., ScriptedServer], server_context: ssl.SSLContext
) -> None:
    server = start([StartTLS(server_context)], timeout=0.1)
    with connect(server):
        assert "no TLS handshake in 0.1 s" in failure_of(server)


@pytest.mark.parametrize("step", [Close(), HalfClose(), Send(b"")])
def test_tls_ends_with_close_notify(
    scripted_server: ServerFactory,
    server_context: ssl.SSLContext,
    client_context: ssl.SSLContext,
    step: Callable[[Peer], None],
) -> None:
    server = scripted_server([Send(b"all"), step], ssl_context=server_context)
    with client_context.wrap_socket(connect(server), server_hostname="localhost", suppress_ragged_eofs=False) as sock:
        assert read_to_end(sock) == b"all"


def test_half_closed_tls_goes_on_reading(
    scripted_server: ServerFactory, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    half_closed = threading.Event()
    server = scripted_server([Send(b"bye"), HalfClose(), Signal(half_closed), ExpectHead()], ssl_context=server_context)
    with client_context.wrap_socket(connect(server), server_hostname="localhost") as sock:
        assert read_to_end(sock) == b"bye"
        wait_for(half_closed)
        sock.sendall(GET)
        server.wait_until(lambda: len(server.requests) == 1)


def test_tls_may_end_without_close_notify(
    scripted_server: ServerFactory, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    server = scripted_server([Send(b"some"), Close(close_notify=False)], ssl_context=server_context)
    with client_context.wrap_socket(connect(server), server_hostname="localhost", suppress_ragged_eofs=False) as sock:
        assert sock.recv(10) == b"some"
        with pytest.raises(ssl.SSLEOFError):
            sock.recv(10)


def test_mark_works_under_tls(
    scripted_server: ServerFactory, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    server = scripted_server([ExpectHead(), Mark("here"), Respond(), ReadToEnd()], ssl_context=server_context)
    with client_context.wrap_socket(connect(server), server_hostname="localhost") as sock:
        sock.sendall(GET)
        sock.recv(100)
        sock.sendall(b"more")
    wait_for(server.peer(0).ended)
    assert server.connections[0].received_since("here") == b"more"


# ---------------------------------------------------------------- simple servers, at speed


def test_keep_alive_script_answers_every_request(scripted_server: ServerFactory) -> None:
    def respond(request: ReceivedRequest) -> bytes:
        return Respond(body=request.target.encode() + request.body).encode(request.method)

    server = scripted_server(default=keep_alive_script(respond))
    connection = http.client.HTTPConnection(*server.address, timeout=BOUND)
    for number in range(3):
        connection.request("POST", f"/{number}", body=b"!")
        assert connection.getresponse().read() == b"/%d!" % number
    connection.close()
    assert server.accepted == 1


@pytest.mark.parametrize(
    ("request_head", "response"),
    [(GET[:-2] + b"Connection: close\r\n\r\n", Respond()), (GET, Respond(headers=[("connection", "Close")]))],
)
def test_keep_alive_script_ends_where_either_side_says_close(
    scripted_server: ServerFactory, request_head: bytes, response: Respond
) -> None:
    server = scripted_server(keep_alive_script(lambda request: response.encode()))
    assert tell(server, request_head) == response.encode()


def test_many_requests_over_several_connections_are_all_kept(scripted_server: ServerFactory) -> None:
    server = scripted_server(default=[Repeat([ExpectHead(), Respond(body=b"ok")])])
    answer = Respond(body=b"ok").encode()

    def run() -> None:
        with connect(server) as sock:
            for _ in range(250):
                sock.sendall(GET)
                assert sock.recv(1000) == answer

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND * 3)
    assert len(server.heads) == len(server.requests) == 2000


# ---------------------------------------------------------------- the audit


class Pool:
    """A pool as the audit sees it."""

    def __init__(self, **numbers: object) -> None:
        self.numbers = {"idle": 0, "leased": 0, "opening": 0, "waiting": 0, "maxsize": 2, **numbers}

    def stats(self) -> object:
        return SimpleNamespace(**self.numbers)


def test_audit_is_content_when_everything_was_closed() -> None:
    with ResourceAudit():
        socket.socket().close()
        thread = threading.Thread(target=int)
        thread.start()
        thread.join(BOUND)


def test_audit_names_a_descriptor_left_open(tmp_path: Path) -> None:
    audit = ResourceAudit()
    path = tmp_path / "left open"
    with path.open("w") as file, pytest.raises(AssertionError, match=rf"descriptor {file.fileno()}: .*left open"):
        audit.check(0.05)
    audit.check()


def test_audit_names_both_ends_of_a_connection_left_open(scripted_server: ServerFactory) -> None:
    server = scripted_server([KeepOpen()])
    server_is_there = ResourceAudit()
    with connect(server) as sock:
        with pytest.raises(AssertionError, match=rf"AF_INET .*{sock.getsockname()[1]}\) -> .*{server.port}\)"):
            server_is_there.check(0.05)
        sock.sendall(b"the audit left it usable")
        server.wait_until(lambda: server.peer().received_count > 0)
    server_is_there.check()


def test_audit_names_a_thread_left_running() -> None:
    audit, leave = ResourceAudit(), threading.Event()
    thread = threading.Thread(target=leave.wait, args=(BOUND,), name="the straggler")
    thread.start()
    with pytest.raises(AssertionError, match="the straggler"):
        audit.check(0.05)
    leave.set()
    audit.check()


def test_audit_waits_for_a_thread_that_is_ending() -> None:
    audit, looked = ResourceAudit(), threading.Event()
    thread = threading.Thread(target=looked.wait, args=(BOUND,))
    thread.start()

    def notice(phase: str, info: dict[str, int]) -> None:
        looked.set()

    gc.callbacks.append(notice)  # the audit collects after its first look
    try:
        audit.check()
    finally:
        gc.callbacks.remove(notice)
    assert not thread.is_alive()


def test_audit_collects_cycles_before_it_complains() -> None:
    class Holder:
        def __init__(self) -> None:
            self.me = self
            self.descriptor = os.dup(0)

        def __del__(self) -> None:
            os.close(self.descriptor)

    gc.disable()
    try:
        with ResourceAudit():
            Holder()
    finally:
        gc.enable()


def test_audit_does_not_hide_what_the_block_raised() -> None:
    read, write = -1, -1
    try:
        with pytest.raises(KeyError), ResourceAudit():
            read, write = os.pipe()
            raise KeyError
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize(
    "numbers",
    [
        {},
        {"idle": 2},
        {"idle": 1, "opened": 4, "closed": {"idle": 2, "fault": 1}},
    ],
)
def test_pool_that_adds_up_passes(numbers: dict[str, object]) -> None:
    ResourceAudit().check_pool(Pool(**numbers))


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ({"idle": 3}, "more connections than maxsize: 3 idle, 0 leased, 0 opening, 0 waiting of 2"),
        ({"leased": 1}, "not at rest: 0 idle, 1 leased"),
        ({"opening": 1}, "not at rest"),
        ({"waiting": 1}, "not at rest"),
        ({"idle": 1, "opened": 4, "closed": {"idle": 2}}, "4 opened is not 2 closed"),
    ],
)
def test_pool_that_does_not_add_up_is_refused(numbers: dict[str, object], text: str) -> None:
    with pytest.raises(AssertionError, match=text):
        ResourceAudit().check_pool(Pool(**numbers))


def test_pool_without_a_number_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="'idle'"):
        ResourceAudit().check_pool(Pool(idle=None))


def test_watched_pool_is_looked_at_before_the_descriptors() -> None:
    audit = ResourceAudit()
    audit.watch(Pool(leased=1))
    read, write = os.pipe()
    try:
        with pytest.raises(AssertionError, match="not at rest"):
            audit.check(0.05)
    finally:
        os.close(read)
        os.close(write)


# ---------------------------------------------------------------- the plugin


def run_inner(pytester: pytest.Pytester, body: str) -> pytest.RunResult:
    pytester.makeconftest("import pooledhttp.testing\npytest_plugins = ['pooledhttp.testing']\n")
    pytester.makepyfile(f"import os, pytest, socket\nfrom pooledhttp.testing import *\n{body}")
    return pytester.runpytest_inprocess("-W", "error", "-p", "no:cacheprovider")


def test_plugin_closes_servers_before_it_audits(pytester: pytest.Pytester) -> None:
    body = """
def test_it(scripted_server, audit):
    server = scripted_server([Send(b'x'), KeepOpen()])
    with socket.create_connection(server.address) as sock:
        assert sock.recv(1) == b'x'
"""
    run_inner(pytester, body).assert_outcomes(passed=1)


def test_plugin_reports_failed_scripts_at_teardown(pytester: pytest.Pytester) -> None:
    body = """
def test_it(scripted_server):
    server = scripted_server()
    with socket.create_connection(server.address) as sock:
        assert sock.recv(1) == b''
"""
    result = run_inner(pytester, body)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*unexpected: 0 scripts and no default*"])


def test_plugin_closes_every_server_even_if_one_failed(pytester: pytest.Pytester) -> None:
    body = """
def test_it(scripted_server):
    scripted_server([KeepOpen()])
    for _ in range(2):
        with socket.create_connection(scripted_server().address) as sock:
            assert sock.recv(1) == b''
"""
    result = run_inner(pytester, body)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.no_fnmatch_line("*left over*")


def test_plugin_reports_watched_pools_and_left_over_descriptors(pytester: pytest.Pytester) -> None:
    body = """
class Pool:
    idle, leased, opening, waiting, maxsize = 0, 1, 0, 0, 1
    def stats(self):
        return self

def test_pool(audit):
    audit.watch(Pool())

@pytest.fixture
def leaks(monkeypatch):  # set up before the audit, so it closes them after the audit has complained
    monkeypatch.setattr(ResourceAudit.check, '__defaults__', (0.05,))
    descriptors = []
    yield descriptors
    for descriptor in descriptors:
        os.close(descriptor)

def test_descriptor(leaks, audit):
    leaks.append(os.dup(0))
"""
    result = run_inner(pytester, body)
    result.assert_outcomes(passed=2, errors=2)
    result.stdout.fnmatch_lines_random(["E*the pool is not at rest*", "E*left over after*", "E*descriptor *"])


def test_module_works_without_pytest() -> None:
    source = "import sys; sys.modules['pytest'] = None; import pooledhttp.testing as t; print(hasattr(t, 'audit'))"
    package_root = Path(pooledhttp.__file__).parent.parent
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", source],
        check=False,
        cwd=package_root,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.stdout.strip(), result.stderr) == ("False", "")
