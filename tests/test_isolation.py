"""One caller cannot hurt the next: whatever is done with a connection, the next answer is the next caller's own."""

from __future__ import annotations

import enum
import select
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from pooledhttp import ConnectionPool, HTTPConnection, PoolManager, StreamedResponse
from pooledhttp.lending import Lender
from pooledhttp.states import State
from pooledhttp.testing import (
    Close,
    ExpectHead,
    KeepOpen,
    Peer,
    Repeat,
    ResourceAudit,
    Respond,
    ScriptedServer,
    Send,
    keep_alive_script,
)
from pooledhttp.testing.server import ServerFactory

BOUND = 10.0
ANSWERS = keep_alive_script(lambda request: Respond(body=request.target.encode()).encode())


@pytest.fixture
def server(scripted_server: ServerFactory) -> ScriptedServer:
    return scripted_server(default=ANSWERS)


@pytest.fixture
def pool(server: ScriptedServer, audit: ResourceAudit) -> Iterator[ConnectionPool]:
    with ConnectionPool(server.host, server.port, maxsize=1, registry=None) as made:
        audit.watch(made)
        yield made
        assert made.request("GET", "/normal").data == b"/normal"


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Length": "5"},
        {"Content-Length": "0"},
        {"Content-Length": "1000"},
        {"Content-Length": "5", "content-length": str(len(SMUGGLED))},
        {"Content-Length": str(len(SMUGGLED)), "Transfer-Encoding": "chunked"},
        {"Content-Length": "+5"},
    ],
)
def test_body_that_is_not_as_long_as_its_head_says_is_refused(
    pool: ConnectionPool, server: ScriptedServer, headers: dict[str, str]
) -> None:
    with pytest.raises(ValueError, match="Content-Length"):
        pool.request("POST", "/first", SMUGGLED, headers)
    assert server.accepted == 0


def test_second_host_field_is_refused(pool: ConnectionPool, server: ScriptedServer) -> None:
    with pytest.raises(ValueError, match="one Host field"):
        pool.request("GET", "/", headers={"Host": "mine", "host": "theirs"})
    assert server.accepted == 0


def test_pool_puts_a_body_into_chunks_when_the_caller_announces_them(
    pool: ConnectionPool, server: ScriptedServer
) -> None:
    pool.request("POST", "/first", SMUGGLED, {"Transfer-Encoding": "chunked"})
    assert [(request.target, request.body) for request in server.requests] == [("/first", SMUGGLED)]


@pytest.mark.parametrize(
    ("send", "state"),
    [
        (
            lambda conn: conn.request("POST", "/first", b"0\r\n\r\n", {"Transfer-Encoding": "chunked"}),
            State.CLOSED,  # nobody has checked what the caller has encoded
        ),
        (lambda conn: conn.request("POST", "/first", iter([b"ab"]), {"Content-Length": "2"}), State.IDLE),
        (lambda conn: (conn.request("GET", "/first"), conn.send(b"")), State.IDLE),
    ],
    ids=["encoded by the caller", "iterable with a length", "nothing more"],
)
def test_connection_whose_body_nobody_can_account_for_is_not_used_again(
    pool: ConnectionPool, server: ScriptedServer, send: Callable[[HTTPConnection], object], state: State
) -> None:
    with pool.connection() as conn:
        send(conn)
        assert conn.getresponse().read() == b"/first"
        assert conn.state is state


def test_connection_that_was_given_another_socket_is_lent_to_nobody_else(
    pool: ConnectionPool, scripted_server: ServerFactory, server: ScriptedServer
) -> None:
    elsewhere = scripted_server(default=[Repeat([ExpectHead(), Respond(body=b"elsewhere")])])
    with pool.connection() as conn:
        conn.connect()
        ours = conn.sock
        conn.sock = socket.create_connection(elsewhere.address)
        conn.request("GET", "/first")
        assert conn.getresponse().read() == b"elsewhere"
    ours.close()
    assert pool.stats().idle == 0
    assert pool.request("GET", "/mine").data == b"/mine"


def test_bytes_behind_a_complete_request_are_refused(pool: ConnectionPool, server: ScriptedServer) -> None:
    with pool.connection() as conn:
        conn.request("GET", "/first")
        with pytest.raises(ValueError, match="more than the 0 that are left"):
            conn.send(SMUGGLED)
        assert conn.getresponse().read() == b"/first"
    assert pool.request("GET", "/mine").data == b"/mine"
    assert [request.target for request in server.requests] == ["/first", "/mine"]


def test_short_body_is_not_waited_for_by_the_next_request(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    server = scripted_server([ExpectHead(body=False), Respond(body=b"early"), KeepOpen()], default=ANSWERS)
    conn = HTTPConnection(server.host, server.port)
    conn.request("PUT", "/first", b"xx", {"Content-Length": "42"})
    assert conn.getresponse().read() == b"early"
    assert conn.state is State.CLOSED
    conn.request("GET", "/mine")
    assert conn.getresponse().read() == b"/mine"
    conn.close()


def test_stale_connection_holds_its_slot_until_it_is_passed_on(
    scripted_server: ServerFactory, audit: ResourceAudit, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = scripted_server([ExpectHead(), Respond(), Close()], default=ANSWERS)
    pool = ConnectionPool(server.host, server.port, maxsize=1, registry=None)
    audit.watch(pool)
    pool.request("GET", "/")
    assert server.peer().ended.wait(BOUND)
    found, go_on = threading.Event(), threading.Event()
    take = Lender._take_after_stale

    def pausing(*args: object) -> object:
        found.set()
        assert go_on.wait(BOUND)
        return take(*args)  # type: ignore[arg-type]  # handed through

    monkeypatch.setattr(Lender, "_take_after_stale", pausing)
    borrower = threading.Thread(target=lambda: pool.release(pool.acquire()))
    borrower.start()
    assert found.wait(BOUND)
    stats = pool.stats()  # reaps what was lost
    assert (stats.leased, stats.leaked) == (1, 0)
    go_on.set()
    borrower.join(BOUND)
    assert pool.request("GET", "/normal").data == b"/normal"
    pool.close()
    assert pool.stats().opened == 2


def test_block_that_released_by_hand_does_not_release_the_next_lease(pool: ConnectionPool) -> None:
    with pool.connection() as mine:
        pool.release(mine)
        theirs = pool.acquire()
        assert theirs is mine
    assert pool.stats().leased == 1
    pool.release(theirs)


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nforeign", b"HTTP/1.1 408 Request Timeout\r\n\r\n"]
)
def test_bytes_between_two_requests_of_one_lease_are_nobodys_answer(
    scripted_server: ServerFactory, audit: ResourceAudit, answer: bytes
) -> None:
    spoken = threading.Event()
    ask = threading.Event()

    def unasked(peer: Peer) -> None:
        peer.read_request()
        peer.send(Respond(body=b"first").encode())
        assert ask.wait(BOUND)
        Send(answer)(peer)
        spoken.set()
        peer.read_to_end()

    server = scripted_server(unasked, default=ANSWERS)
    pool = ConnectionPool(server.host, server.port, registry=None)
    audit.watch(pool)
    with pool.connection() as conn:
        conn.request("GET", "/first")
        assert conn.getresponse().read() == b"first"
        ask.set()
        assert spoken.wait(BOUND)
        conn.request("GET", "/second")
        assert conn.getresponse().read() == b"/second"
    pool.close()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda conn: conn.sock.close(),
        lambda conn: (conn.close(), conn.connect()),
        lambda conn: conn.set_debuglevel(1),
    ],
    ids=["closed socket", "connected anew", "debug output"],
)
def test_what_a_borrower_does_to_a_connection_does_not_reach_the_next_one(
    scripted_server: ServerFactory,
    audit: ResourceAudit,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[HTTPConnection], object],
) -> None:
    server = scripted_server(default=ANSWERS)
    pool = ConnectionPool(server.host, server.port, maxsize=1, registry=None)
    audit.watch(pool)
    with pool.connection() as conn:
        spoil(conn)
    assert pool.request("GET", "/mine").data == b"/mine"
    assert capsys.readouterr().out == ""
    pool.close()


def test_pool_that_was_used_last_is_evicted_last(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    closing = keep_alive_script(lambda _: Respond(close=True).encode())
    servers = [scripted_server(default=closing), scripted_server(default=ANSWERS), scripted_server(default=ANSWERS)]
    with PoolManager(max_pools=2, registry=None) as manager:
        busy, quiet, newest = (manager.pool(server.url) if index < 2 else None for index, server in enumerate(servers))
        assert busy is not None
        assert quiet is not None
        quiet.request("GET", "/")
        busy.request("GET", "/")
        assert newest is None
        manager.request("GET", servers[2].url)
        assert quiet.is_closed
        assert not busy.is_closed


def test_borrower_is_not_given_what_arrived_while_he_took_his_time(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    speaks = threading.Event()
    server = scripted_server(
        [ExpectHead(), Respond(body=b"first"), lambda peer: peer.stall(until=speaks), Send(POISON), KeepOpen()],
        default=ANSWERS,
    )
    with ConnectionPool(server.host, server.port, registry=None) as pool:
        audit.watch(pool)
        assert pool.request("GET", "/first").data == b"first"
        with pool.connection() as conn:
            speaks.set()
            assert select.select([conn.sock], [], [], BOUND)[0]
            conn.request("GET", "/mine")
            assert conn.getresponse().read() == b"/mine"


POISON = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON"


def test_connection_opened_early_is_not_given_what_arrived_meanwhile(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = scripted_server([Send(POISON), KeepOpen()], default=ANSWERS)
    conn = HTTPConnection(server.host, server.port)
    conn.connect()
    assert select.select([conn.sock], [], [], BOUND)[0]
    conn.request("GET", "/mine")
    assert conn.getresponse().read() == b"/mine"
    conn.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [("response_class", StreamedResponse), ("_http_vsn_str", "HTTP/1.0"), ("blocksize", 1), ("auto_open", 0)],
)
def test_connection_that_its_borrower_has_changed_is_lent_to_nobody_else(
    name: str, value: object, pool: ConnectionPool
) -> None:
    with pool.connection() as conn:
        conn.request("GET", "/first")
        assert conn.getresponse().read() == b"/first"
        setattr(conn, name, value)
    assert pool.stats().idle == 0


@pytest.mark.parametrize(("name", "value"), [("host", "elsewhere.test"), ("port", 1)])
def test_borrower_cannot_say_where_a_connection_goes(name: str, value: object, pool: ConnectionPool) -> None:
    with pool.connection() as conn, pytest.raises(RuntimeError, match="lent by a pool"):
        setattr(conn, name, value)


def test_socket_that_was_closed_by_hand_is_replaced(server: ScriptedServer, audit: ResourceAudit) -> None:
    conn = HTTPConnection(server.host, server.port)
    for _ in range(3):
        conn.request("GET", "/mine")
        assert conn.getresponse().read() == b"/mine"
        conn.sock.close()
    conn.close()


def test_members_of_a_str_enum_go_out_as_their_text(server: ScriptedServer, audit: ResourceAudit) -> None:
    class Word(str, enum.Enum):  # noqa: UP042  # not StrEnum: it is formatted by its name
        POST = "POST"
        TARGET = "/first"
        LENGTH = "Content-Length"
        TYPE = "text/plain"

    conn = HTTPConnection(server.host, server.port)
    conn.request(Word.POST, Word.TARGET, b"abc", {Word.LENGTH: "3", "Content-Type": Word.TYPE})
    assert conn.getresponse().read() == b"/first"
    conn.close()
    (request,) = server.requests
    assert (request.method, request.target, request.body) == ("POST", "/first", b"abc")
    assert request.field("Content-Type") == "text/plain"
