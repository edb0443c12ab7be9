"""The pool under bad luck: dead connections, broken answers, refusals, interruptions.

Each test ends with the same audit: descriptors and threads are back at the start, the pool's counters add up, nothing
warns of an unclosed socket, and one more request works without waiting for a slot.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import functools
import gc
import io
import itertools
import os
import re
import resource
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar, Unpack

import pytest
import trustme

from pooledhttp import (
    AcquireTimeout,
    ConnectionPool,
    ConnectTimeout,
    HTTPConnection,
    HTTPException,
    IncompleteRead,
    InvalidResponse,
    PoolClosed,
    PoolConfig,
    ReadTimeout,
    RemoteDisconnected,
    Timeout,
    TotalTimeout,
    TunnelError,
    WriteTimeout,
)
from pooledhttp.config import PoolOptions
from pooledhttp.lending import Lender
from pooledhttp.request import PreparedRequest
from pooledhttp.retry import is_late_timeout, may_resend
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
    Stall,
    Step,
    Trickle,
)
from pooledhttp.transport import Transport
from tests.waits import wait_until

BOUND = 10.0
PATIENT = Timeout(acquire=BOUND, connect=BOUND, read=BOUND, write=BOUND)
AT_ONCE = Timeout(acquire=0, connect=BOUND, read=BOUND, write=BOUND)
HELLO = Respond(body=b"hello")
ANSWER: list[Step] = [ExpectHead(), HELLO]
ANSWERS: list[Step] = [Repeat(ANSWER)]

T = TypeVar("T")


# --- what the tests stand on ------------------------------------------------------------------------------------------


class PoolMaker(Protocol):
    def __call__(
        self, server: ScriptedServer, *, host: str | None = None, scheme: str = "http", **options: Unpack[PoolOptions]
    ) -> ConnectionPool: ...


@pytest.fixture
def make_pool(scripted_server: ServerFactory, audit: ResourceAudit) -> Iterator[PoolMaker]:
    """Make pools that are closed when the test is over, and whose counters the audit then adds up."""
    with contextlib.ExitStack() as stack:

        def make(
            server: ScriptedServer,
            *,
            host: str | None = None,
            scheme: str = "http",
            **options: Unpack[PoolOptions],
        ) -> ConnectionPool:
            settings: PoolOptions = {"registry": None, "timeout": PATIENT, **options}
            config = PoolConfig(**settings)
            pool = stack.enter_context(ConnectionPool(host or server.host, server.port, scheme=scheme, config=config))
            audit.watch(pool)
            return pool

        yield make


@pytest.fixture
def threads(audit: ResourceAudit) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16, thread_name_prefix="borrower") as executor:
        yield executor


def queue_up(threads: ThreadPoolExecutor, pool: ConnectionPool, work: Callable[[], T]) -> Future[T]:
    """Do some work in a thread, and return when it waits for a connection."""
    before = pool.stats().waiting
    future = threads.submit(work)
    wait_until(lambda: pool.stats().waiting == before + 1)
    return future


def finish(pool: ConnectionPool) -> None:
    """One normal request, without waiting for a slot: whatever happened before has left the pool in order."""
    assert pool.request("GET", "/again", timeout=AT_ONCE).data == b"hello"
    assert gauges(pool) == (1, 0, 0, 0)


def gauges(pool: ConnectionPool) -> tuple[int, int, int, int]:
    """Return how many are idle, leased, being opened and waiting."""
    stats = pool.stats()
    return stats.idle, stats.leased, stats.opening, stats.waiting


def counted(counts: Any) -> dict[str, int]:
    """Return counters without the zeros."""
    return {key: count for key, count in counts.items() if count}


def exchange(conn: HTTPConnection, target: str = "/") -> None:
    conn.request("GET", target)
    assert conn.getresponse().read() == b"hello"


def leave_idle(pool: ConnectionPool) -> socket.socket:
    """Leave one connection that has served a request idle in the pool, and return its socket."""
    with pool.connection() as conn:
        exchange(conn)
        sock: socket.socket = conn.sock
    return sock


def await_readable(sock: socket.socket) -> None:
    """Wait until what the peer did has arrived."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    assert poll.poll(BOUND * 1000)


def moody(peer: Peer) -> None:
    """Answer every request, but end the connection instead when one for /die comes over a used one."""
    while True:
        request = peer.read_request()
        if request.target == "/die" and len(peer.requests) > 1:
            return
        peer.send(HELLO.encode(request.method))


def by_request(pool: ConnectionPool, **kind: Any) -> bytes:
    return pool.request(kind.pop("method", "GET"), "/", **kind).data


def by_stream(pool: ConnectionPool, **kind: Any) -> bytes:
    with pool.stream(kind.pop("method", "GET"), "/", **kind) as response:
        return response.read()


def by_small_reads(pool: ConnectionPool, **kind: Any) -> bytes:
    with pool.stream(kind.pop("method", "GET"), "/", **kind) as response:
        pieces = []
        while piece := response.read(2):
            pieces.append(piece)
        return b"".join(pieces)


def by_pieces(pool: ConnectionPool, **kind: Any) -> bytes:
    with pool.stream(kind.pop("method", "GET"), "/", **kind) as response:
        return b"".join(response)


def by_connection(pool: ConnectionPool, **kind: Any) -> bytes:
    with pool.connection() as conn:
        conn.request(kind.pop("method", "GET"), "/", **kind)
        return conn.getresponse().read()


# --- dead before the request: seen by the probe -----------------------------------------------------------------------

LATE_TIMEOUT = Send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
IDLE_FAULTS = [
    pytest.param([Close()], "stale_eof", id="FIN"),
    pytest.param([HalfClose(), KeepOpen()], "stale_eof", id="half-closed"),
    pytest.param([Reset()], "stale_reset", id="RST"),
    pytest.param([LATE_TIMEOUT, Close()], "stale_408", id="408 and FIN"),
    pytest.param([LATE_TIMEOUT, KeepOpen()], "stale_408", id="408"),
    pytest.param([Send(Respond(body=b"not yours").encode()), KeepOpen()], "unsolicited", id="answer"),
    pytest.param([Send(b"surprise"), Close()], "unsolicited", id="bytes"),
    pytest.param([Send(b"\r\n"), KeepOpen()], "unsolicited", id="empty line"),
]


def by_acquire(pool: ConnectionPool) -> bytes:
    conn = pool.acquire()
    try:
        exchange(conn)
    finally:
        pool.release(conn)
    return b"hello"


@pytest.mark.parametrize(("ending", "reason"), IDLE_FAULTS)
@pytest.mark.parametrize("call", [by_request, by_stream, by_connection, by_acquire])
def test_end_of_an_idle_connection_is_seen_at_checkout_and_never_read_as_an_answer(
    ending: list[Step], reason: str, call: Callable[[ConnectionPool], bytes], scripted_server: ServerFactory,
    make_pool: PoolMaker,
) -> None:  # fmt: skip
    idle = threading.Event()
    server = scripted_server([*ANSWER, Stall(until=idle), *ending], default=ANSWERS)
    pool = make_pool(server, maxsize=1)
    sock = leave_idle(pool)
    idle.set()
    await_readable(sock)
    assert call(pool) == b"hello"
    stats = pool.stats()
    assert counted(stats.closed) == {reason: 1}
    assert counted(stats.acquires) == {"opened": 2}
    assert counted(stats.stale) == {}
    assert len(server.peer(0).requests) == 1
    finish(pool)
    assert server.accepted == 2


@pytest.mark.parametrize(("ending", "reason"), IDLE_FAULTS)
def test_end_of_an_idle_connection_is_seen_by_prune(
    ending: list[Step], reason: str, scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    idle = threading.Event()
    server = scripted_server([*ANSWER, Stall(until=idle), *ending], default=ANSWERS)
    pool = make_pool(server, maxsize=1)
    sock = leave_idle(pool)
    idle.set()
    await_readable(sock)
    assert pool.prune() == 1
    assert counted(pool.stats().closed) == {reason: 1}
    assert gauges(pool) == (0, 0, 0, 0)
    finish(pool)


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(*names: str, not_after: dt.datetime | None = None, issuer: trustme.CA | None = None,
                   ) -> ssl.SSLContext:  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issuer = issuer or authority()
    issuer.issue_cert(*(names or ("127.0.0.1", "origin.test")), not_after=not_after).configure_cert(context)
    return context


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context


@pytest.mark.parametrize(("ending", "reason"), [
    pytest.param([Close()], "stale_eof", id="close_notify"),
    pytest.param([Close(close_notify=False)], "stale_eof", id="FIN alone"),
    pytest.param([Reset()], "stale_reset", id="RST"),
    pytest.param([LATE_TIMEOUT, KeepOpen()], "stale_408", id="408"),
    pytest.param([Send(Respond(body=b"not yours").encode()), KeepOpen()], "unsolicited", id="answer"),
])  # fmt: skip
def test_end_of_an_idle_tls_connection_is_seen_at_checkout(
    ending: list[Step], reason: str, scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    idle = threading.Event()
    server = scripted_server([*ANSWER, Stall(until=idle), *ending], default=ANSWERS, ssl_context=server_context())
    pool = make_pool(server, maxsize=1, scheme="https", ssl_context=client_context())
    sock = leave_idle(pool)
    idle.set()
    if ending == [Close(close_notify=False)] or isinstance(ending[0], Reset):
        assert server.peer(0).ended.wait(BOUND)
    await_readable(sock)
    assert pool.request("GET", "/").data == b"hello"
    assert counted(pool.stats().closed) == {reason: 1}
    finish(pool)
    assert server.accepted == 2


@pytest.mark.parametrize("call", [by_request, by_stream, by_small_reads, by_connection])
@pytest.mark.parametrize("answer", [HELLO, Respond(body=b"hello", chunked=True)])
def test_bytes_behind_a_complete_response_end_the_connection_and_reach_nobody(
    call: Callable[[ConnectionPool], bytes], answer: Respond, scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    too_much = Send(answer.encode() + Respond(body=b"not yours").encode())
    server = scripted_server([ExpectHead(), too_much, KeepOpen()], default=ANSWERS)
    pool = make_pool(server, maxsize=1)
    assert call(pool) == b"hello"
    assert gauges(pool) == (0, 0, 0, 0)
    assert counted(pool.stats().closed) == {"leftover": 1}
    finish(pool)
    assert server.accepted == 2


def test_every_dead_idle_connection_is_replaced_until_a_live_one_is_found(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    over = threading.Event()
    dying: list[Step] = [*ANSWER, Stall(until=over), Close()]
    server = scripted_server([*ANSWERS], dying, dying, default=ANSWERS)
    pool = make_pool(server)
    conns = [pool.acquire() for _ in range(3)]
    for conn in conns:
        exchange(conn)
    socks = [conn.sock for conn in conns]
    for conn in conns:
        pool.release(conn)
    over.set()
    for sock in socks[1:]:
        await_readable(sock)
    assert pool.request("GET", "/").data == b"hello"
    stats = pool.stats()
    assert counted(stats.closed) == {"stale_eof": 2}
    assert counted(stats.acquires) == {"opened": 3, "reused": 1}
    finish(pool)
    assert server.accepted == 3


# --- dead as the request arrives: sending again -----------------------------------------------------------------------

CROSSINGS = [pytest.param(Close(), "stale_eof", id="FIN"), pytest.param(Reset(), "stale_reset", id="RST")]


@pytest.mark.parametrize(("ending", "reason"), CROSSINGS)
@pytest.mark.parametrize("call", [by_request, by_stream])
@pytest.mark.parametrize("kind", [
    {"method": "GET"}, {"method": "HEAD"}, {"method": "OPTIONS"}, {"method": "TRACE"}, {"method": "DELETE"},
    {"method": "PUT", "body": b"small"}, {"method": "PUT", "body": b"a" * 200_000},
    {"method": "POST", "headers": {"Idempotency-Key": "7"}, "body": b"order"},
    {"method": "PATCH", "headers": {"idempotency-key": "7"}},
], ids=lambda kind: f"{kind['method']}{'-'.join(kind)[6:]}")  # fmt: skip
def test_request_that_may_be_repeated_is_sent_again_on_a_new_connection(
    ending: Step, reason: str, call: Callable[..., bytes], kind: dict[str, Any], scripted_server: ServerFactory,
    make_pool: PoolMaker,
) -> None:  # fmt: skip
    server = scripted_server([*ANSWER, ExpectHead(), ending], default=ANSWERS)
    pool = make_pool(server, maxsize=1)
    leave_idle(pool)
    assert call(pool, **kind) == (b"" if kind["method"] == "HEAD" else b"hello")
    stats = pool.stats()
    assert counted(stats.stale) == {"retried": 1}
    assert counted(stats.closed) == {reason: 1}
    assert counted(stats.requests) == {"2xx": 1}
    assert counted(stats.acquires) == {"opened": 1, "reused": 1}
    lost, repeated = server.peer(0).requests[-1], server.peer(1).requests[0]
    assert lost == repeated
    finish(pool)
    assert server.accepted == 2


def test_response_tells_that_its_request_was_sent_again(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    pool = make_pool(scripted_server(default=moody), maxsize=1)
    leave_idle(pool)
    assert pool.request("GET", "/die").resends == 1
    with pool.stream("GET", "/die") as response:
        assert response.resends == 1
    assert pool.request("GET", "/die", timeout=BOUND).resends == 1
    assert pool.request("GET", "/").resends == 0
    finish(pool)


@pytest.mark.parametrize(("ending", "reason"), CROSSINGS)
@pytest.mark.parametrize("call", [by_request, by_stream])
@pytest.mark.parametrize("kind", [
    lambda: {"method": "POST", "body": b"order"},
    lambda: {"method": "PATCH"},
    lambda: {"method": "PUT", "body": iter([b"once"])},
    lambda: {"method": "PUT", "body": io.BytesIO(b"file")},
    lambda: {"method": "POST", "body": iter([b"once"]), "headers": {"Idempotency-Key": "7"}},
], ids=["POST", "PATCH", "PUT iterable", "PUT file", "keyed POST iterable"])  # fmt: skip
def test_request_that_may_not_be_repeated_is_never_sent_again(
    ending: Step, reason: str, call: Callable[..., bytes], kind: Callable[[], dict[str, Any]],
    scripted_server: ServerFactory, make_pool: PoolMaker,
) -> None:  # fmt: skip
    server = scripted_server([*ANSWER, ExpectHead(), ending], default=ANSWERS)
    pool = make_pool(server, maxsize=1)
    leave_idle(pool)
    with pytest.raises((RemoteDisconnected, ConnectionResetError)):
        call(pool, **kind())
    assert server.accepted == 1
    stats = pool.stats()
    assert counted(stats.stale) == {"raised": 1}
    assert counted(stats.closed) == {reason: 1}
    assert counted(stats.requests) == {"error": 1}
    finish(pool)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_request_of_which_no_byte_was_written_is_sent_again_whatever_its_method(
    method: str, scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    idle = threading.Event()
    server = scripted_server([*ANSWER, Stall(until=idle), Reset()], default=ANSWERS)
    pool = make_pool(server, maxsize=1, probe_after=1000)  # the probe would see it first
    sock = leave_idle(pool)
    idle.set()
    await_readable(sock)
    response = pool.request(method, "/", b"order")
    assert (response.data, response.resends) == (b"hello", 1)
    assert counted(pool.stats().stale) == {"retried": 1}
    assert [request.method for request in server.requests] == ["GET", method]
    finish(pool)


@pytest.mark.parametrize(("ending", "reason"), CROSSINGS)
def test_nothing_is_sent_again_when_that_is_turned_off(
    ending: Step, reason: str, scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    server = scripted_server([*ANSWER, ExpectHead(), ending], default=ANSWERS)
    pool = make_pool(server, maxsize=1, resend_stale=False)
    leave_idle(pool)
    with pytest.raises((RemoteDisconnected, ConnectionResetError)):
        pool.request("GET", "/")
    assert counted(pool.stats().stale) == {"raised": 1}
    assert server.accepted == 1
    finish(pool)


@pytest.mark.parametrize(("ending", "reason"), CROSSINGS)
@pytest.mark.parametrize("call", [by_request, by_stream])
def test_nothing_is_sent_again_after_a_fresh_connection_died(
    ending: Step, reason: str, call: Callable[[ConnectionPool], bytes], scripted_server: ServerFactory,
    make_pool: PoolMaker,
) -> None:  # fmt: skip
    server = scripted_server([ExpectHead(), ending], default=ANSWERS)
    pool = make_pool(server, maxsize=1)
    with pytest.raises((RemoteDisconnected, ConnectionResetError)):
        call(pool)
    stats = pool.stats()
    assert counted(stats.stale) == {}
    assert counted(stats.closed) == {"error": 1}
    assert server.accepted == 1
    finish(pool)


def test_connection_that_was_lent_but_never_used_is_kept_alive_like_any_other(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    server = scripted_server([ExpectHead(), Close()], default=ANSWERS)
    pool = make_pool(server, maxsize=1)
    with pool.connection():
        pass
    assert pool.request("GET", "/").resends == 1
    assert server.accepted == 2
    finish(pool)


def test_nothing_is_sent_again_once_a_byte_of_the_answer_came(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    server = scripted_server([*ANSWER, ExpectHead(), Send(b"H"), Close()], default=ANSWERS)
    pool = make_pool(server, maxsize=1)
    leave_idle(pool)
    with pytest.raises(InvalidResponse, match="ended within the response's head"):
        pool.request("GET", "/")
    assert counted(pool.stats().stale) == {}
    assert server.accepted == 1
    finish(pool)


def test_nothing_is_sent_again_after_a_timeout(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    server = scripted_server([*ANSWER, ExpectHead(), KeepOpen()], default=ANSWERS)
    pool = make_pool(server, maxsize=1)
    leave_idle(pool)
    with pytest.raises(ReadTimeout):
        pool.request("GET", "/", timeout=Timeout(read=0.1))
    assert counted(pool.stats().stale) == {}
    assert server.accepted == 1
    finish(pool)


def test_request_is_sent_again_only_once(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    server = scripted_server([*ANSWER, ExpectHead(), Close()], [ExpectHead(), Close()], default=ANSWERS)
    pool = make_pool(server, maxsize=1)
    leave_idle(pool)
    with pytest.raises(RemoteDisconnected):
        pool.request("GET", "/")
    stats = pool.stats()
    assert counted(stats.stale) == {"retried": 1}
    assert counted(stats.requests) == {"error": 1}
    assert server.accepted == 2
    finish(pool)


def test_answer_that_came_before_the_peer_stopped_reading_is_delivered_to_the_second_try_too(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    early = [ExpectHead(body=False), Respond(413, body=b"too much"), HalfClose(), KeepOpen()]
    server = scripted_server([*ANSWER, ExpectHead(body=False), Reset()], early, default=ANSWERS)
    pool = make_pool(server, maxsize=1)
    leave_idle(pool)
    response = pool.request("PUT", "/", b"a" * 3_000_000)
    assert (response.status, response.data, response.resends) == (413, b"too much", 1)


@pytest.mark.parametrize("timeout", [None, BOUND])
def test_second_try_that_cannot_connect_frees_its_slot(
    timeout: float | None, scripted_server: ServerFactory, make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(scripted_server(default=moody), maxsize=1)
    leave_idle(pool)

    def refuse(_: HTTPConnection) -> None:
        raise ConnectionRefusedError("nobody there")

    with monkeypatch.context() as patch:
        patch.setattr(HTTPConnection, "connect", refuse)
        with pytest.raises(ConnectionRefusedError):
            pool.request("GET", "/die", timeout=timeout)
    stats = pool.stats()
    assert counted(stats.stale) == {"retried": 1}
    assert counted(stats.requests) == {"error": 1}
    assert counted(stats.connect_failures) == {"refused": 1}
    finish(pool)


def test_second_try_in_a_pool_that_was_closed_meanwhile_opens_nothing_that_stays(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    def die(peer: Peer) -> None:
        pool.close()
        peer.close()

    pool = make_pool(scripted_server([*ANSWER, ExpectHead(), die], default=ANSWERS), maxsize=1)
    leave_idle(pool)
    with pytest.raises(PoolClosed):
        pool.request("GET", "/")
    assert gauges(pool) == (0, 0, 0, 0)


@pytest.mark.parametrize("call", [by_request, by_stream])
def test_late_408_that_crosses_the_request_is_no_answer_to_it(
    call: Callable[[ConnectionPool], bytes], scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    server = scripted_server([*ANSWER, ExpectHead(), LATE_TIMEOUT, Close()], default=ANSWERS)
    pool = make_pool(server, maxsize=1)
    leave_idle(pool)
    assert call(pool) == b"hello"
    stats = pool.stats()
    assert counted(stats.stale) == {"retried": 1}
    assert counted(stats.closed) == {"stale_408": 1}
    finish(pool)
    assert server.accepted == 2


def test_late_408_with_a_body_is_no_answer_either(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    answer = Respond(408, body=b"a" * 100, headers=[("Connection", "close")])
    pool = make_pool(scripted_server([*ANSWER, ExpectHead(), answer, Close()], default=ANSWERS), maxsize=1)
    leave_idle(pool)
    with pool.stream("GET", "/") as response:
        assert (response.status, response.read(), response.resends) == (200, b"hello", 1)
    assert counted(pool.stats().closed) == {"stale_408": 1}
    finish(pool)


@pytest.mark.parametrize(("resend", "used", "method", "close"), [
    (True, True, "POST", True),
    (True, False, "GET", True),
    (True, True, "GET", False),
    (False, True, "GET", True),
], ids=["POST", "fresh", "kept alive", "turned off"])  # fmt: skip
def test_408_that_answers_the_request_is_delivered(
    resend: bool, used: bool, method: str, close: bool, scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    before = ANSWER if used else []
    server = scripted_server([*before, ExpectHead(), Respond(408, close=close), *ANSWERS], default=ANSWERS)
    pool = make_pool(server, maxsize=1, resend_stale=resend)
    if used:
        leave_idle(pool)
    assert pool.request(method, "/", b"").status == 408
    assert counted(pool.stats().stale) == {}
    finish(pool)


@pytest.mark.parametrize(("method", "resent"), [("GET", True), ("POST", False)])
def test_first_stale_hit_ends_the_idle_connections_that_are_older(
    method: str, resent: bool, scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool: ConnectionPool
    younger: list[HTTPConnection] = []

    def die(peer: Peer) -> None:
        pool.release(younger.pop())  # it comes back only now, and so is younger than the one that dies
        peer.close()

    server = scripted_server(ANSWERS, [*ANSWER, ExpectHead(), die], default=ANSWERS)
    pool = make_pool(server)
    conns = [pool.acquire() for _ in range(3)]
    for conn in conns:
        exchange(conn)
    for conn in conns[:2]:
        pool.release(conn)
    younger.append(conns[2])
    with contextlib.nullcontext() if resent else pytest.raises(RemoteDisconnected):
        pool.request(method, "/")
    stats = pool.stats()
    assert counted(stats.closed) == {"stale_eof": 1, "stale_assumed": 1}
    assert stats.idle == (2 if resent else 1)
    pool.prune(everything=True)
    finish(pool)


def test_restart_of_the_server_is_invisible_to_idempotent_callers(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    count = 8
    old = scripted_server(default=ANSWERS)
    pool = make_pool(old, maxsize=count)
    conns = [pool.acquire() for _ in range(count)]
    for conn in conns:
        exchange(conn)
    for conn in conns:
        pool.release(conn)
    old.close()
    scripted_server(default=ANSWERS, port=old.port)
    together = threading.Barrier(count)

    def call(_: int) -> bytes:
        together.wait(BOUND)
        return pool.request("GET", "/").data

    assert list(threads.map(call, range(count), timeout=BOUND)) == [b"hello"] * count
    stats = pool.stats()
    assert sum(stats.closed.values()) == count
    assert counted(stats.requests) == {"2xx": count}
    pool.prune(everything=True)
    finish(pool)


def prepared(method: str, *, keyed: bool = False, replayable: bool = True) -> PreparedRequest:
    request = PreparedRequest(method, "/", b"")
    request.has_idempotency_key = keyed
    request.is_replayable = replayable
    return request


@pytest.mark.parametrize("fault", [RemoteDisconnected(""), ConnectionResetError(), BrokenPipeError(),
                                   ConnectionAbortedError(), ssl.SSLEOFError()], ids=repr)  # fmt: skip
@pytest.mark.parametrize("was_reused", [False, True])
@pytest.mark.parametrize("is_unsent", [False, True])
@pytest.mark.parametrize("is_unanswered", [False, True])
def test_rule_of_sending_again(fault: Exception, was_reused: bool, is_unsent: bool, is_unanswered: bool) -> None:
    ask = functools.partial(may_resend, fault=fault, was_reused=was_reused, is_unsent=is_unsent,
                            is_unanswered=is_unanswered)  # fmt: skip
    dead = was_reused and is_unanswered
    assert ask(prepared("GET")) is dead
    assert ask(prepared("POST", keyed=True)) is dead
    assert ask(prepared("POST")) is (dead and is_unsent)
    assert ask(prepared("PUT", replayable=False)) is (dead and is_unsent)


@pytest.mark.parametrize("fault", [TimeoutError(), ReadTimeout(), OSError(), ssl.SSLCertVerificationError(),
                                   InvalidResponse(), KeyboardInterrupt(), MemoryError()], ids=repr)  # fmt: skip
def test_no_other_fault_is_a_reason_to_send_again(fault: BaseException) -> None:
    assert not may_resend(prepared("GET"), fault, was_reused=True, is_unsent=True, is_unanswered=True)


@pytest.mark.parametrize(("status", "was_reused", "will_close", "request_", "expected"), [
    (408, True, True, prepared("GET"), True),
    (408, True, True, prepared("POST", keyed=True), True),
    (408, True, True, prepared("POST"), False),
    (408, True, True, prepared("PUT", replayable=False), False),
    (408, True, False, prepared("GET"), False),
    (408, False, True, prepared("GET"), False),
    (503, True, True, prepared("GET"), False),
])  # fmt: skip
def test_rule_of_the_late_408(
    status: int, was_reused: bool, will_close: bool, request_: PreparedRequest, expected: bool
) -> None:
    assert is_late_timeout(request_, status, was_reused=was_reused, will_close=will_close) is expected


# --- answers that break off -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [by_request, by_stream, by_small_reads, by_pieces, by_connection])
@pytest.mark.parametrize("answer", [
    b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5",
], ids=["length", "length, none", "chunks", "chunk", "trailers", "chunk size"])  # fmt: skip
def test_truncated_body_is_an_incomplete_read(
    call: Callable[[ConnectionPool], bytes], answer: bytes, scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    server = scripted_server([ExpectHead(), Send(answer), Close()], default=ANSWERS)
    pool = make_pool(server, maxsize=1)
    with pytest.raises(IncompleteRead):
        call(pool)
    stats = pool.stats()
    assert counted(stats.closed) == {"truncated": 1}
    assert counted(stats.stale) == {}
    assert server.accepted == 1
    finish(pool)


def test_incomplete_read_holds_what_came(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    start = Send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
    pool = make_pool(scripted_server([ExpectHead(), start, Close()], default=ANSWERS), maxsize=1)
    with pytest.raises(IncompleteRead) as caught:
        pool.request("GET", "/")
    assert (caught.value.partial, caught.value.expected) == (b"hello", 5)
    finish(pool)


def test_tls_that_ends_without_close_notify_truncates_a_body_without_length(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    start = Send(b"HTTP/1.1 200 OK\r\n\r\nhello")
    server = scripted_server([ExpectHead(), start, Close(close_notify=False)], default=ANSWERS,
                             ssl_context=server_context())  # fmt: skip
    pool = make_pool(server, maxsize=1, scheme="https", ssl_context=client_context())
    with pytest.raises(IncompleteRead):
        pool.request("GET", "/")
    assert counted(pool.stats().closed) == {"truncated": 1}
    finish(pool)


@pytest.mark.parametrize("read", [
    lambda response: response.read(),
    lambda response: response.read(9),
    lambda response: response.readinto(bytearray(9)),
    list,
], ids=["read", "read(n)", "readinto", "iteration"])  # fmt: skip
def test_reset_within_the_body_is_raised_from_the_read(
    read: Callable[[Any], object], scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    reading = threading.Event()
    start = Send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
    server = scripted_server([ExpectHead(), start, Stall(until=reading), Reset()], default=ANSWERS)
    pool = make_pool(server, maxsize=1)
    with pytest.raises(ConnectionResetError), pool.stream("GET", "/") as response:
        reading.set()
        read(response)
    stats = pool.stats()
    assert counted(stats.closed) == {"error": 1}
    assert counted(stats.requests) == {"error": 1}
    assert counted(stats.stale) == {}
    finish(pool)


@pytest.mark.parametrize("answer", [
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"hello\r\n\r\n",
    b"HTTP/2 200 OK\r\n\r\n",
    b"\0\0\0\0",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 101 + b"\r\n",
    b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
    b"HTTP/1.1 102 Processing\r\n\r\n" * 102,
], ids=["SSH", "text", "HTTP/2", "zeros", "two lengths", "chunk size", "chunk end", "fields", "line",
        "interim answers"])  # fmt: skip
@pytest.mark.parametrize("used", [False, True])
def test_answer_that_is_no_http_ends_the_connection(
    answer: bytes, used: bool, scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    before = ANSWER if used else []
    server = scripted_server([*before, ExpectHead(), Send(answer), KeepOpen()], default=ANSWERS)
    pool = make_pool(server, maxsize=1)
    if used:
        leave_idle(pool)
    with pytest.raises(HTTPException):
        pool.request("GET", "/")
    stats = pool.stats()
    assert counted(stats.closed) == {"error": 1}
    assert counted(stats.stale) == {}
    finish(pool)


# --- slowness ---------------------------------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"


@pytest.mark.parametrize("call", [by_request, by_stream])
@pytest.mark.parametrize("script", [
    [Trickle(HEAD + b"a" * 1000, interval=0.02)],
    [Send(HEAD), Trickle(b"a" * 1000, interval=0.02)],
    [Send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), Trickle(b"1\r\na\r\n" * 200, interval=0.02)],
    [Repeat([Send(b"HTTP/1.1 102 Processing\r\n\r\n"), Stall(seconds=0.02)], times=90), KeepOpen()],
], ids=["head", "body", "chunks", "interim answers"])  # fmt: skip
def test_slow_loris_is_ended_by_the_total(
    call: Callable[..., bytes], script: list[Step], scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool = make_pool(scripted_server([ExpectHead(), *script], default=ANSWERS), maxsize=1)
    with pytest.raises(TotalTimeout, match=r"GET / took longer than its total of 0\.25 s"):
        call(pool, timeout=0.25)
    stats = pool.stats()
    assert counted(stats.closed) == {"timeout": 1}
    assert counted(stats.requests) == {"timeout": 1}
    finish(pool)


@pytest.mark.parametrize("call", [by_request, by_stream])
@pytest.mark.parametrize("script", [[], [Send(b"HTTP/1.1 200")], [Send(HEAD + b"some")]], ids=["", "head", "body"])
def test_silence_is_ended_by_the_read_limit(
    call: Callable[..., bytes], script: list[Step], scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool = make_pool(scripted_server([ExpectHead(), *script, KeepOpen()], default=ANSWERS), maxsize=1)
    with pytest.raises(ReadTimeout):
        call(pool, timeout=Timeout(read=0.1))
    assert counted(pool.stats().closed) == {"timeout": 1}
    finish(pool)


def test_peer_that_takes_no_byte_is_ended_by_the_write_limit(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    over = threading.Event()
    pool = make_pool(scripted_server([Stall(until=over)], default=ANSWERS), maxsize=1)
    with pytest.raises(WriteTimeout):
        pool.request("PUT", "/", b"a" * 20_000_000, timeout=Timeout(write=0.2))
    over.set()
    assert counted(pool.stats().closed) == {"timeout": 1}
    finish(pool)


# --- connecting -------------------------------------------------------------------------------------------------------


@pytest.fixture
def resolve_to(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[str, int] | OSError], None]:
    """Have every name resolve to one address, or not at all."""
    answer: list[tuple[str, int] | OSError] = []
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *rest: Any) -> Any:
        if host != "origin.test":
            return real(host, port, *rest)
        if isinstance(answer[0], OSError):
            raise answer[0]
        return real(*answer[0], *rest)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    def resolve(to: tuple[str, int] | OSError) -> None:
        answer[:] = [to]

    return resolve


@pytest.fixture
def hole(audit: ResourceAudit) -> Iterator[tuple[str, int]]:
    """A listening socket whose backlog is full, so that a further attempt to connect gets no answer."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()


@pytest.fixture
def refusing(audit: ResourceAudit) -> Iterator[tuple[str, int]]:
    """An address at which nobody listens, and which nobody else can take."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()


Resolve = Callable[[tuple[str, int] | OSError], None]


def test_name_that_does_not_resolve_frees_the_slot_and_is_looked_up_again(
    scripted_server: ServerFactory, make_pool: PoolMaker, resolve_to: Resolve
) -> None:
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server, host="origin.test", maxsize=1)
    resolve_to(socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    for _ in range(2):
        with pytest.raises(socket.gaierror):
            pool.request("GET", "/")
    stats = pool.stats()
    assert counted(stats.connect_failures) == {"dns": 2}
    assert counted(stats.acquires) == {"error": 2}
    assert counted(stats.requests) == {"error": 2}
    resolve_to(server.address)
    finish(pool)


def test_refused_connection_frees_the_slot(
    scripted_server: ServerFactory, make_pool: PoolMaker, resolve_to: Resolve, refusing: tuple[str, int]
) -> None:
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server, host="origin.test", maxsize=1)
    resolve_to(refusing)
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            pool.request("GET", "/")
    assert counted(pool.stats().connect_failures) == {"refused": 2}
    resolve_to(server.address)
    finish(pool)


@pytest.mark.parametrize(("timeout", "error"), [
    (Timeout(connect=0.2), ConnectTimeout), (Timeout(connect=BOUND, total=0.2), TotalTimeout), (0.2, TotalTimeout),
])  # fmt: skip
def test_black_hole_is_left_in_time_and_frees_the_slot(
    timeout: Timeout | float, error: type[Exception], scripted_server: ServerFactory, make_pool: PoolMaker,
    resolve_to: Resolve, hole: tuple[str, int],
) -> None:  # fmt: skip
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server, host="origin.test", maxsize=1)
    resolve_to(hole)
    with pytest.raises(error):
        pool.request("GET", "/", timeout=timeout)
    stats = pool.stats()
    assert counted(stats.connect_failures) == {"timeout": 1}
    assert counted(stats.requests) == {"timeout": 1}
    resolve_to(server.address)
    finish(pool)


@pytest.mark.parametrize("bad", [
    lambda: {"ssl_context": server_context("elsewhere.test")},
    lambda: {"ssl_context": server_context(not_after=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))},
    lambda: {"ssl_context": server_context(issuer=trustme.CA())},
], ids=["wrong host", "expired", "unknown authority"])  # fmt: skip
def test_certificate_that_does_not_hold_is_refused_and_never_tried_again(
    bad: Callable[[], dict[str, Any]], scripted_server: ServerFactory, make_pool: PoolMaker, resolve_to: Resolve
) -> None:
    impostor = scripted_server(default=ANSWERS, **bad())
    good = scripted_server(default=ANSWERS, ssl_context=server_context())
    pool = make_pool(good, host="origin.test", scheme="https", ssl_context=client_context(), maxsize=1)
    resolve_to(impostor.address)
    with pytest.raises(ssl.SSLCertVerificationError):
        pool.request("GET", "/")
    assert impostor.peer().ended.wait(BOUND)
    assert (impostor.accepted, impostor.requests) == (1, [])
    assert counted(pool.stats().connect_failures) == {"tls": 1}
    resolve_to(good.address)
    finish(pool)


def test_handshake_that_stalls_is_bounded_by_the_connect_limit(
    scripted_server: ServerFactory, make_pool: PoolMaker, resolve_to: Resolve
) -> None:
    silent = scripted_server(default=KeepOpen())
    good = scripted_server(default=ANSWERS, ssl_context=server_context())
    pool = make_pool(good, host="origin.test", scheme="https", ssl_context=client_context(), maxsize=1)
    resolve_to(silent.address)
    with pytest.raises(ConnectTimeout, match="the TLS handshake took too long"):
        pool.request("GET", "/", timeout=Timeout(connect=0.2))
    assert counted(pool.stats().connect_failures) == {"timeout": 1}
    resolve_to(good.address)
    finish(pool)


@pytest.mark.parametrize("script", [[Send(b"HTTP/1.1 400 Bad Request\r\n\r\n"), KeepOpen()], [Close()], [Reset()]],
                         ids=["plain text", "FIN", "RST"])  # fmt: skip
def test_handshake_that_fails_frees_the_slot(
    script: list[Step], scripted_server: ServerFactory, make_pool: PoolMaker, resolve_to: Resolve
) -> None:
    bad = scripted_server(default=[lambda peer: peer._receive(), *script])
    good = scripted_server(default=ANSWERS, ssl_context=server_context())
    pool = make_pool(good, host="origin.test", scheme="https", ssl_context=client_context(), maxsize=1)
    resolve_to(bad.address)
    with pytest.raises(OSError):
        pool.request("GET", "/")
    assert sum(pool.stats().connect_failures.values()) == 1
    assert bad.accepted == 1
    resolve_to(good.address)
    finish(pool)


@pytest.mark.parametrize("status", [403, 407, 502])
def test_refusal_of_the_proxy_is_told_and_frees_the_slot(
    status: int, scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    refusal = Respond(status, body=b"no way", headers=[("Proxy-Authenticate", "Basic")])
    tunnel: list[Step] = [ExpectHead("CONNECT"), Respond(200), *ANSWERS]
    proxy = scripted_server([ExpectHead("CONNECT", "origin.test:80"), refusal, KeepOpen()], default=tunnel)
    pool = pool_behind(proxy, make_pool)
    with pytest.raises(TunnelError) as caught:
        pool.request("GET", "/")
    assert (caught.value.status, caught.value.body) == (status, b"no way")
    assert ("Proxy-Authenticate", "Basic") in caught.value.headers
    stats = pool.stats()
    assert counted(stats.connect_failures) == {"proxy": 1}
    assert counted(stats.requests) == {"error": 1}
    finish(pool)


def pool_behind(proxy: ScriptedServer, make_pool: PoolMaker) -> ConnectionPool:
    origin = ScriptedServer()
    origin.host, origin.port = "origin.test", 80
    return make_pool(origin, proxy=f"http://127.0.0.1:{proxy.port}", maxsize=1)


def test_bytes_behind_the_proxy_s_answer_end_the_connection(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    smuggled = Send(b"HTTP/1.1 200 OK\r\n\r\n" + HELLO.encode())
    tunnel: list[Step] = [ExpectHead("CONNECT"), Respond(200), *ANSWERS]
    pool = pool_behind(scripted_server([ExpectHead("CONNECT"), smuggled, KeepOpen()], default=tunnel), make_pool)
    with pytest.raises(InvalidResponse, match="behind its answer to CONNECT"):
        pool.request("GET", "/")
    finish(pool)


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_lack_of_descriptors_is_told_and_frees_the_slot(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1)
    with no_descriptor_left(), pytest.raises(OSError) as caught:
        pool.request("GET", "/")
    assert caught.value.errno == errno.EMFILE
    assert counted(pool.stats().connect_failures) == {"other": 1}
    finish(pool)


# --- interruptions ----------------------------------------------------------------------------------------------------


class GreenletTimeout(BaseException):
    """What a greenlet library raises out of any blocking call."""


INTERRUPTIONS = [KeyboardInterrupt, SystemExit, GeneratorExit, GreenletTimeout]


def interrupt_once(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, error: type[BaseException], *, after: bool
) -> list[str]:
    """Have the next call of a method raise, instead of doing its work or after it; return where that is noted."""
    real = getattr(owner, name)
    fired: list[str] = []

    def interrupted(*args: Any, **options: Any) -> Any:
        if fired:
            return real(*args, **options)
        fired.append(name)
        if after:
            real(*args, **options)
        raise error("in the test")

    monkeypatch.setattr(owner, name, interrupted)
    return fired


def fresh_request(pool: ConnectionPool) -> None:
    pool.request("GET", "/")


def fresh_stream(pool: ConnectionPool) -> None:
    with pool.stream("GET", "/") as response:
        response.read()


def fresh_acquire(pool: ConnectionPool) -> None:
    pool.release(pool.acquire())


def fresh_upload(pool: ConnectionPool) -> None:
    pool.request("PUT", "/", b"a" * 200_000, timeout=BOUND)


def reused_request(pool: ConnectionPool) -> None:
    leave_idle(pool)
    armed(pool)
    pool.request("GET", "/")


def reused_stream(pool: ConnectionPool) -> None:
    leave_idle(pool)
    armed(pool)
    with pool.stream("GET", "/", timeout=BOUND) as response:
        response.read()


def reused_acquire(pool: ConnectionPool) -> None:
    leave_idle(pool)
    armed(pool)
    pool.release(pool.acquire(timeout=BOUND))


def repeated_request(pool: ConnectionPool) -> None:
    leave_idle(pool)
    armed(pool)
    pool.request("GET", "/die")


def unread_connection(pool: ConnectionPool) -> None:
    with pool.connection() as conn:
        conn.request("GET", "/")
        conn.getresponse()
        armed(pool)


def unread_stream(pool: ConnectionPool) -> None:
    with pool.stream("GET", "/"):
        armed(pool)


def unread_by_hand(pool: ConnectionPool) -> None:
    conn = pool.acquire()
    conn.request("GET", "/")
    conn.getresponse()
    armed(pool)
    pool.release(conn)


def pruning(pool: ConnectionPool) -> None:
    leave_idle(pool)
    armed(pool)
    pool.prune()


def looking(pool: ConnectionPool) -> None:
    pool.stats()
    pool.explain()


def armed(pool: ConnectionPool) -> None:
    """Mark the point from which a scenario may be interrupted."""
    arm = getattr(pool, "arm_for_test", None)
    if arm is not None:
        arm()


SEAMS = [
    (fresh_request, Transport, "send"), (fresh_request, Transport, "more"), (fresh_request, HTTPConnection, "connect"),
    (fresh_stream, Transport, "send"), (fresh_stream, Transport, "more"), (fresh_stream, HTTPConnection, "connect"),
    (fresh_acquire, HTTPConnection, "connect"), (fresh_acquire, Lender, "_claim_locked"),
    (fresh_upload, Transport, "send"), (fresh_upload, HTTPConnection, "connect"),
    (reused_request, Transport, "is_quiet"), (reused_request, Transport, "send"), (reused_request, Transport, "more"),
    (reused_stream, Transport, "is_quiet"), (reused_stream, Transport, "send"), (reused_stream, Transport, "more"),
    (reused_acquire, Transport, "is_quiet"),
    (repeated_request, HTTPConnection, "connect"),
    (unread_connection, HTTPConnection, "drain"), (unread_stream, HTTPConnection, "drain"),
    (unread_by_hand, HTTPConnection, "drain"),
    (pruning, Transport, "staleness"),
]  # fmt: skip


@pytest.mark.parametrize("error", INTERRUPTIONS)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("scenario", "owner", "name"), SEAMS, ids=lambda part: getattr(part, "__name__", part))
def test_interruption_anywhere_in_a_lease_closes_the_connection_and_frees_the_slot(
    error: type[BaseException], after: bool, scenario: Callable[[ConnectionPool], None], owner: type, name: str,
    scripted_server: ServerFactory, make_pool: PoolMaker,
) -> None:  # fmt: skip
    pool = make_pool(scripted_server(default=moody), maxsize=1)
    with pytest.MonkeyPatch.context() as patch:
        fired: list[list[str]] = []

        def arm() -> None:
            fired.append(interrupt_once(patch, owner, name, error, after=after))

        if scenario.__name__.startswith("fresh"):
            arm()
        else:
            pool.arm_for_test = arm  # type: ignore[attr-defined]  # see armed()
        with pytest.raises(error, match="in the test"):
            scenario(pool)
    assert fired == [[name]]
    assert gauges(pool) == (0, 0, 0, 0)
    finish(pool)
    assert pool.stats().leaked == 0


class InterruptingClock:
    """Real seconds; its n-th look raises."""

    def __init__(self) -> None:
        self.left = 0  # 0: never

    def __call__(self) -> float:
        if self.left:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt("in the test")
        return time.monotonic()


@pytest.mark.parametrize("scenario", [
    fresh_request, fresh_stream, fresh_acquire, fresh_upload, reused_request, reused_stream, reused_acquire,
    repeated_request, unread_connection, unread_stream, unread_by_hand, pruning, looking,
])  # fmt: skip
def test_interruption_at_any_look_at_the_clock_frees_the_slot(
    scenario: Callable[[ConnectionPool], None], scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    server = scripted_server(default=moody)
    for look in itertools.count(1):
        clock = InterruptingClock()
        pool = make_pool(server, maxsize=1, clock=clock)

        def arm(clock: InterruptingClock = clock, look: int = look) -> None:
            clock.left = look

        if scenario.__name__.startswith(("fresh", "looking")):
            arm()
        else:
            pool.arm_for_test = arm  # type: ignore[attr-defined]  # see armed()
        try:
            scenario(pool)
        except KeyboardInterrupt:
            was_interrupted = True
        else:
            was_interrupted = False
        clock.left = 0
        gc.collect()
        assert pool.stats().leaked == 0, f"interrupted at look {look}"
        assert gauges(pool)[1:] == (0, 0, 0), f"interrupted at look {look}"
        finish(pool)
        pool.close()
        if not was_interrupted:
            assert look > 1
            return


@pytest.mark.parametrize("error", INTERRUPTIONS)
@pytest.mark.parametrize("lend", [
    lambda pool: pool.connection(),
    lambda pool: pool.stream("GET", "/"),
], ids=["connection", "stream"])  # fmt: skip
def test_interruption_of_the_borrower_closes_the_connection_and_frees_the_slot(
    error: type[BaseException], lend: Callable[[ConnectionPool], Any], scripted_server: ServerFactory,
    make_pool: PoolMaker,
) -> None:  # fmt: skip
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1)
    with pytest.raises(error), lend(pool):
        raise error
    assert counted(pool.stats().closed) == {"error": 1}
    finish(pool)


def test_generator_that_is_closed_in_the_middle_of_a_stream_frees_the_slot(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    server = scripted_server([ExpectHead(), Respond(body=b"a" * 1_000_000, chunked=True), KeepOpen()], default=ANSWERS)
    pool = make_pool(server, maxsize=1)

    def lines() -> Iterator[bytes]:
        with pool.stream("GET", "/export") as response:
            yield from response

    generator = lines()
    assert next(generator).startswith(b"a")
    generator.close()  # type: ignore[attr-defined]  # generators have it, iterators need not
    assert gauges(pool) == (0, 0, 0, 0)
    finish(pool)


def test_interrupted_release_leaves_a_connection_alone_that_was_given_back_meanwhile(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    server = scripted_server(default=ANSWERS)
    clock = RiggedClock()
    pool = make_pool(server, maxsize=1, clock=clock)
    conn = pool.acquire()

    def give_back_and_interrupt() -> None:
        pool.release(conn)
        raise KeyboardInterrupt

    with ThreadPoolExecutor(1) as executor:
        clock.elsewhere = give_back_and_interrupt
        with pytest.raises(KeyboardInterrupt):
            executor.submit(pool.release, conn).result(BOUND)
    assert gauges(pool) == (1, 0, 0, 0)
    finish(pool)
    assert server.accepted == 1


@pytest.mark.parametrize("probe", ["first", "second"])
def test_interrupted_prune_frees_every_slot_it_had_taken(
    probe: str, scripted_server: ServerFactory, make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=2)
    first, second = pool.acquire(), pool.acquire()
    pool.release(first)
    pool.release(second)
    interrupted = first if probe == "first" else second
    look = HTTPConnection.staleness

    def interrupt(conn: HTTPConnection) -> Any:
        if conn is interrupted:
            raise KeyboardInterrupt
        return look(conn)

    with monkeypatch.context() as patch:
        patch.setattr(HTTPConnection, "staleness", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pool.prune()
    assert gauges(pool) == (1, 0, 0, 0)
    assert counted(pool.stats().closed) == {"error": 1}
    finish(pool)


@pytest.mark.parametrize("after", [False, True])
def test_prune_that_is_interrupted_before_its_first_probe_puts_back_what_it_had_taken(
    after: bool, scripted_server: ServerFactory, make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server, maxsize=1)
    finish(pool)
    with monkeypatch.context() as patch:
        interrupt_once(patch, Lender, "_serve_locked", KeyboardInterrupt, after=after)
        with pytest.raises(KeyboardInterrupt):
            pool.prune()
    assert gauges(pool) == (1, 0, 0, 0)
    finish(pool)
    assert server.accepted == 1


def test_interruption_while_a_lease_gets_its_limits_closes_the_connection_and_frees_the_slot(
    scripted_server: ServerFactory, make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1)
    lend = HTTPConnection._lend

    def interrupt_when_open(conn: HTTPConnection, deadline: Any, timeouts: Timeout) -> None:
        if deadline is None:  # the acquiring was bounded, the lease shall not be
            raise KeyboardInterrupt
        lend(conn, deadline, timeouts)

    with monkeypatch.context() as patch:
        patch.setattr(HTTPConnection, "_lend", interrupt_when_open)
        with pytest.raises(KeyboardInterrupt):
            pool.acquire(timeout=BOUND)
    assert counted(pool.stats().closed) == {"error": 1}
    finish(pool)


# --- waiters ----------------------------------------------------------------------------------------------------------


def test_timed_out_waiter_does_not_swallow_a_released_connection(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1)
    conn = pool.acquire()
    with pytest.raises(AcquireTimeout):
        pool.acquire(timeout=0.05)
    pool.release(conn)
    assert gauges(pool) == (1, 0, 0, 0)
    finish(pool)


class RiggedClock:
    """Seconds that pass only when told; the next look of another thread than the main one runs a hook."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.elsewhere: Callable[[], object] | None = None

    def __call__(self) -> float:
        if self.elsewhere is not None and threading.current_thread() is not threading.main_thread():
            hook, self.elsewhere = self.elsewhere, None
            hook()
        return self.now


def test_waiter_whose_time_is_up_keeps_what_it_was_given_in_the_same_moment(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    clock = RiggedClock()
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1, clock=clock)
    conn = pool.acquire()

    def give_and_let_time_run_out() -> None:
        pool.release(conn)
        clock.now += 100

    waiter = queue_up(threads, pool, lambda: pool.acquire(timeout=0.05))
    clock.elsewhere = give_and_let_time_run_out
    assert waiter.result(BOUND) is conn
    pool.release(conn)
    assert counted(pool.stats().acquires) == {"opened": 1, "reused": 1}
    finish(pool)


@pytest.mark.parametrize("given", ["nothing", "connection", "slot"])
def test_interrupted_waiter_passes_on_what_it_was_given(
    given: str, scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    clock = RiggedClock()
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1, clock=clock)
    conn = pool.acquire()

    def interrupt() -> None:
        if given == "slot":
            conn.close()
        if given != "nothing":
            pool.release(conn)
        raise KeyboardInterrupt

    first = queue_up(threads, pool, lambda: pool.acquire(timeout=0.05))
    second = queue_up(threads, pool, lambda: by_request(pool))
    clock.elsewhere = interrupt
    with pytest.raises(KeyboardInterrupt):
        first.result(BOUND)
    if given == "nothing":
        pool.release(conn)
    assert second.result(BOUND) == b"hello"
    finish(pool)


def test_dead_leased_connection_hands_its_slot_to_the_oldest_waiter(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    server = scripted_server([ExpectHead(), Reset()], default=ANSWERS)
    pool = make_pool(server, maxsize=1)
    order: list[int] = []

    def borrow(number: int) -> None:
        with pool.connection() as conn:
            order.append(number)
            exchange(conn)

    with pytest.raises(ConnectionResetError), pool.connection() as conn:
        waiters = [queue_up(threads, pool, functools.partial(borrow, number)) for number in range(3)]
        exchange(conn)
    for waiter in waiters:
        waiter.result(BOUND)
    assert order == [0, 1, 2]
    finish(pool)
    assert server.accepted == 2


def test_failure_to_connect_hands_the_slot_to_the_oldest_waiter(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1)
    waiters: list[Future[bytes]] = []
    connect = HTTPConnection.connect

    def refuse_the_first(conn: HTTPConnection) -> None:
        if not waiters:
            waiters.append(queue_up(threads, pool, lambda: by_request(pool)))
            raise ConnectionRefusedError("nobody there")
        connect(conn)

    monkeypatch.setattr(HTTPConnection, "connect", refuse_the_first)
    with pytest.raises(ConnectionRefusedError):
        pool.request("GET", "/")
    assert waiters[0].result(BOUND) == b"hello"
    finish(pool)


def test_waiter_that_is_given_a_dead_connection_opens_another_in_its_slot(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    over = threading.Event()
    server = scripted_server([*ANSWER, Stall(until=over), Close()], default=ANSWERS)
    pool = make_pool(server, maxsize=1)
    conn = pool.acquire()
    exchange(conn)
    waiter = queue_up(threads, pool, lambda: by_request(pool))
    over.set()
    await_readable(conn.sock)
    pool.release(conn)
    assert waiter.result(BOUND) == b"hello"
    assert counted(pool.stats().closed) == {"stale_eof": 1}
    finish(pool)
    assert server.accepted == 2


def test_interrupted_borrower_in_another_thread_frees_the_slot_for_a_waiter(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1)
    lent, interrupted = threading.Event(), threading.Event()

    def borrow() -> None:
        with pool.connection():
            lent.set()
            assert interrupted.wait(BOUND)
            raise SystemExit

    borrower = threads.submit(borrow)
    assert lent.wait(BOUND)
    waiter = queue_up(threads, pool, lambda: by_request(pool))
    interrupted.set()
    with pytest.raises(SystemExit):
        borrower.result(BOUND)
    assert waiter.result(BOUND) == b"hello"
    assert re.match(r"http://127.0.0.1:\d+: 0 leased of 1, 1 idle, 0 opening, 0 waiting$", pool.explain())
    finish(pool)
