"""The pool in fair weather: lending, limits, waiting, ageing, draining, closing, and the numbers it shows.

What a bad peer or an interruption does to it stands in test_pool_faults.py; many threads at once in
test_pool_stress.py.  Where time matters the pool's clock is one that the test turns by hand.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import gc
import re
import socket
import ssl
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any, Protocol, TypeVar, Unpack

import pytest
import trustme
from prometheus_client import CollectorRegistry

import pooledhttp
from pooledhttp import (
    AcquireTimeout,
    ConnectionPool,
    HTTPConnection,
    HTTPSConnection,
    IncompleteRead,
    InvalidURL,
    Limits,
    PoolClosed,
    PoolConfig,
    PoolFull,
    PoolStats,
    StreamedResponse,
    Timeout,
    TotalTimeout,
)
from pooledhttp.config import PoolOptions
from pooledhttp.records import name_of
from pooledhttp.states import State
from pooledhttp.stats import REQUEST_BOUNDS, Histogram, HistogramStats, Tally, freeze
from pooledhttp.testing import (
    Close,
    ExpectHead,
    KeepOpen,
    Repeat,
    ResourceAudit,
    Respond,
    ScriptedServer,
    Send,
    ServerFactory,
    Signal,
    Stall,
    StartTLS,
    keep_alive_script,
)
from pooledhttp.transport import Transport, main_thread

BOUND = 10.0
PATIENT = Timeout(acquire=BOUND, connect=BOUND, read=BOUND, write=BOUND)
AT_ONCE = Timeout(acquire=0)
ANSWER = [ExpectHead(), Respond(body=b"hello")]
ANSWERS = [Repeat(ANSWER)]

T = TypeVar("T")


# --- what the tests stand on ------------------------------------------------------------------------------------------


class Clock:
    """Seconds that pass only when told; what is in `hooks` runs once, inside the next look at the clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.hooks: list[Callable[[], object]] = []

    def __call__(self) -> float:
        if self.hooks:
            self.hooks.pop()()
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


class PoolMaker(Protocol):
    def __call__(
        self, server: ScriptedServer, *, scheme: str = "http", **options: Unpack[PoolOptions]
    ) -> ConnectionPool: ...


@pytest.fixture
def make_pool(scripted_server: ServerFactory, audit: ResourceAudit) -> Iterator[PoolMaker]:
    """Make pools that are closed when the test is over, and whose counters the audit then adds up."""
    with contextlib.ExitStack() as stack:

        def make(server: ScriptedServer, *, scheme: str = "http", **options: Unpack[PoolOptions]) -> ConnectionPool:
            settings: PoolOptions = {"registry": None, "timeout": PATIENT, **options}
            pool = stack.enter_context(ConnectionPool(*server.address, scheme=scheme, config=PoolConfig(**settings)))
            audit.watch(pool)
            return pool

        yield make


@pytest.fixture
def threads(audit: ResourceAudit) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16, thread_name_prefix="borrower") as executor:
        yield executor


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait for something that no event tells, bounded."""
    pause = threading.Event()
    for _ in range(2000):
        if is_so():
            return
        pause.wait(0.005)
    raise AssertionError("it did not become so within 10 s")


def queue_up(threads: ThreadPoolExecutor, pool: ConnectionPool, work: Callable[[], T]) -> Future[T]:
    """Do some work in a thread, and return when it waits for a connection."""
    before = pool.stats().waiting
    future = threads.submit(work)
    wait_until(lambda: pool.stats().waiting == before + 1)
    return future


def finish(pool: ConnectionPool) -> None:
    """One normal request, without waiting for a slot: whatever happened before has left the pool in order."""
    assert pool.request("GET", "/again", timeout=Timeout(acquire=0, read=BOUND)).data == b"hello"


def gauges(pool: ConnectionPool) -> tuple[int, int, int, int]:
    """Return how many are idle, leased, being opened and waiting."""
    stats = pool.stats()
    return stats.idle, stats.leased, stats.opening, stats.waiting


def counted(counts: Any) -> dict[str, int]:
    """Return counters without the zeros."""
    return {key: count for key, count in counts.items() if count}


def fill(pool: ConnectionPool, count: int) -> list[HTTPConnection]:
    """Leave so many idle connections in the pool; return them in the order of their release."""
    conns = [pool.acquire() for _ in range(count)]
    for conn in conns:
        pool.release(conn)
    return conns


def exchange(conn: HTTPConnection, target: str = "/") -> None:
    conn.request("GET", target)
    assert conn.getresponse().read() == b"hello"


# --- acquire and release ----------------------------------------------------------------------------------------------


def test_acquired_connection_is_open_and_idle(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    pool = make_pool(scripted_server(default=ANSWERS))
    conn = pool.acquire()
    assert conn.state is State.IDLE
    assert gauges(pool) == (0, 1, 0, 0)
    pool.release(conn)
    finish(pool)


def test_released_connection_is_lent_again(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server)
    first = pool.acquire()
    pool.release(first)
    second = pool.acquire()
    assert second is first
    pool.release(second)
    finish(pool)
    assert server.accepted == 1


def test_newest_idle_connection_is_lent_first(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    pool = make_pool(scripted_server(default=ANSWERS))
    released = fill(pool, 3)
    lent = [pool.acquire() for _ in range(3)]
    assert lent == released[::-1]
    for conn in lent:
        pool.release(conn)
    finish(pool)


def test_second_release_does_nothing(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    pool = make_pool(scripted_server(default=ANSWERS))
    conn = pool.acquire()
    pool.release(conn)
    before = pool.stats()
    pool.release(conn)
    assert pool.stats() == before
    finish(pool)


def test_release_during_a_release_counts_once(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), clock=clock)
    conn = pool.acquire()
    clock.hooks.append(lambda: pool.release(conn))
    pool.release(conn)
    assert gauges(pool) == (1, 0, 0, 0)
    assert pool.stats().use.count == 1
    finish(pool)


def test_connection_of_another_pool_is_refused_and_stays_lent(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    server = scripted_server(default=ANSWERS)
    lender, stranger = make_pool(server), make_pool(server)
    conn = lender.acquire()
    with pytest.raises(ValueError, match="was not lent by the pool of http://127"):
        stranger.release(conn)
    assert gauges(lender) == (0, 1, 0, 0)
    assert gauges(stranger) == (0, 0, 0, 0)
    lender.release(conn)
    finish(lender)


def test_limits_that_a_borrower_set_do_not_outlive_its_lease(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1)
    with pool.connection() as conn:
        conn.sock.settimeout(0.001)
    with pool.connection() as conn:
        assert conn.sock.gettimeout() != 0.001
        exchange(conn)
    finish(pool)


@pytest.mark.parametrize("seconds", [0.3, BOUND])
def test_timeout_that_a_borrower_set_in_a_thread_does_not_outlive_its_lease_in_the_main_thread(
    seconds: float, scripted_server: ServerFactory, make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = scripted_server([*ANSWER, *ANSWER, ExpectHead(), KeepOpen()], default=ANSWERS)
    pool = make_pool(server, maxsize=1)

    def borrow() -> None:
        with pool.connection() as conn:
            exchange(conn)
            conn.sock.settimeout(seconds)

    with ThreadPoolExecutor(1) as executor:
        executor.submit(borrow).result(BOUND)
    monkeypatch.setattr(main_thread, "ident", threading.get_ident())  # the tests may run in another one
    monkeypatch.setattr(main_thread, "thread", threading.current_thread())
    assert pool.request("GET", "/", timeout=BOUND).data == b"hello"
    with pytest.raises(TotalTimeout, match=r"total of 0\.40 s"):
        pool.request("POST", "/", timeout=0.4)
    finish(pool)


def test_total_of_a_lease_holds_for_its_exchanges_and_no_longer(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    server = scripted_server([*ANSWER, ExpectHead(), KeepOpen()], default=ANSWERS)
    pool = make_pool(server, maxsize=1)
    expected = r"the lease took longer than its total of 0\.20 s"
    with pytest.raises(TotalTimeout, match=expected), pool.connection(Timeout(total=0.2)) as conn:
        exchange(conn)
        conn.request("GET", "/silence")
        conn.getresponse()
    assert counted(pool.stats().closed) == {"timeout": 1}
    finish(pool)


def test_number_given_to_acquire_bounds_the_acquiring_alone(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), clock=clock)
    conn = pool.acquire(timeout=5)
    clock.now += 50
    exchange(conn)
    pool.release(conn)
    finish(pool)


@pytest.mark.parametrize(("timeout", "error"), [(-1, ValueError), (float("nan"), ValueError), (True, TypeError),
                                                ("1", TypeError)])  # fmt: skip
@pytest.mark.parametrize("call", ["acquire", "connection", "request", "stream"])
def test_timeout_that_is_no_length_of_time_is_refused_before_anything_is_opened(
    timeout: Any, error: type[Exception], call: str, scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server)
    calls: dict[str, Callable[[], Any]] = {
        "acquire": lambda: pool.acquire(timeout),
        "connection": lambda: pool.connection(timeout).__enter__(),
        "request": lambda: pool.request("GET", "/", timeout=timeout),
        "stream": lambda: pool.stream("GET", "/", timeout=timeout).__enter__(),
    }
    with pytest.raises(error, match="timeout must be"):
        calls[call]()
    assert server.accepted == 0
    finish(pool)


# --- the limit, and waiting -------------------------------------------------------------------------------------------


def test_never_more_connections_than_maxsize(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server, maxsize=2)
    with pool.connection() as first, pool.connection() as second, pytest.raises(AcquireTimeout):
        pool.acquire(AT_ONCE)
    for conn in (first, second):
        assert conn.state is State.IDLE
    finish(pool)
    assert pool.stats().opened == 2


def test_acquire_timeout_tells_who_holds_what(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock
) -> None:
    server = scripted_server(default=[ExpectHead(optional=True), KeepOpen()])
    pool = make_pool(server, maxsize=2, clock=clock)
    oldest = pool.acquire()
    oldest.request("GET", "/v1/export")
    clock.now += 12.4
    younger = pool.acquire()
    with pytest.raises(AcquireTimeout) as caught:
        pool.acquire(timeout=0)
    assert str(caught.value) == (
        f"no connection to http://127.0.0.1:{server.port} within 0.00 s (2 leased of 2, 0 idle, 0 opening, 0 waiting; "
        f"oldest lease 12.4 s by MainThread, GET /v1/export, waiting for the head)"
    )
    error = caught.value
    assert (error.maxsize, error.leased, error.idle, error.opening, error.waiting) == (2, 2, 0, 0, 0)
    assert error.oldest_lease == "12.4 s by MainThread, GET /v1/export, waiting for the head"
    assert error.last_connect_error is None
    assert isinstance(error, TimeoutError)
    for conn in (oldest, younger):
        pool.release(conn)


def test_acquire_timeout_tells_the_last_failure_to_connect(
    scripted_server: ServerFactory, make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1)

    def refuse(*_: object) -> None:
        raise ConnectionRefusedError("nobody there")

    with monkeypatch.context() as patch:
        patch.setattr(HTTPConnection, "connect", refuse)
        with pytest.raises(ConnectionRefusedError):
            pool.acquire()
    with pool.connection(), pytest.raises(AcquireTimeout, match="failed: ConnectionRefusedError: nobody") as caught:
        pool.acquire(AT_ONCE)
    assert caught.value.last_connect_error == "ConnectionRefusedError: nobody there"
    finish(pool)


def test_timeout_without_any_lease_has_no_holder(
    scripted_server: ServerFactory, make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only slot belongs to a connection that is still being opened."""
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server, maxsize=1)
    errors: list[AcquireTimeout] = []

    connect = HTTPConnection.connect

    def connect_slowly(conn: HTTPConnection) -> None:
        if not errors:
            with pytest.raises(AcquireTimeout, match=r"1 opening, 0 waiting\)$") as caught:
                pool.acquire(AT_ONCE)
            errors.append(caught.value)
        connect(conn)

    monkeypatch.setattr(HTTPConnection, "connect", connect_slowly)
    finish(pool)
    assert [error.oldest_lease for error in errors] == [None]


@pytest.mark.parametrize("timeout", [0.05, Timeout(acquire=0.05), Timeout(acquire=BOUND, total=0.05)])
def test_waiting_ends_by_its_limit(
    timeout: Timeout | float, scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1)
    with ThreadPoolExecutor(1) as elsewhere:
        conn = elsewhere.submit(pool.acquire).result(BOUND)
    with pytest.raises(AcquireTimeout, match=r"within 0\.05 s"):
        pool.acquire(timeout)
    pool.release(conn)
    assert counted(pool.stats().acquires) == {"opened": 1, "timeout": 1}
    finish(pool)


def test_request_that_gets_no_connection_is_counted_as_a_timeout(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1)
    with pool.connection(), pytest.raises(AcquireTimeout):
        pool.request("GET", "/", timeout=0.05)
    assert counted(pool.stats().requests) == {"timeout": 1}
    finish(pool)


def test_waiting_without_a_limit_goes_on_until_a_connection_comes(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor, clock: Clock
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1, clock=clock)
    conn = pool.acquire()
    waiter = queue_up(threads, pool, lambda: pool.acquire(Timeout(acquire=None)))
    clock.now += 1e6
    pool.release(conn)
    pool.release(waiter.result(BOUND))
    finish(pool)


def test_waiter_gets_the_connection_that_is_released(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server, maxsize=1)
    conn = pool.acquire()
    waiter = queue_up(threads, pool, pool.acquire)
    pool.release(conn)
    assert waiter.result(BOUND) is conn
    pool.release(conn)
    assert counted(pool.stats().acquires) == {"opened": 1, "reused": 1}
    finish(pool)
    assert server.accepted == 1


def test_waiter_gets_the_slot_of_a_connection_that_cannot_be_kept(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server, maxsize=1, max_requests=1)
    conn = pool.acquire()
    exchange(conn)
    waiter = queue_up(threads, pool, pool.acquire)
    pool.release(conn)
    other = waiter.result(BOUND)
    assert other is not conn
    pool.release(other)
    assert counted(pool.stats().acquires) == {"opened": 2}
    finish(pool)


def test_waiters_are_served_in_the_order_of_their_coming(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server, maxsize=1)
    order: list[int] = []

    def borrow(number: int) -> None:
        with pool.connection() as conn:
            order.append(number)
            exchange(conn)

    conn = pool.acquire()
    waiters = [queue_up(threads, pool, functools.partial(borrow, number)) for number in range(8)]
    pool.release(conn)
    for waiter in waiters:
        waiter.result(BOUND)
    assert order == list(range(8))
    finish(pool)
    assert server.accepted == 1


def test_newcomer_does_not_overtake_a_waiter(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1)
    conn = pool.acquire()
    waiter = queue_up(threads, pool, pool.acquire)
    pool.release(conn)
    with pytest.raises(AcquireTimeout):
        pool.acquire(AT_ONCE)
    pool.release(waiter.result(BOUND))
    finish(pool)


@pytest.mark.parametrize("most", [0, 2])
def test_caller_beyond_the_most_waiters_is_shed_at_once(
    most: int, scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1, max_waiters=most)
    conn = pool.acquire()
    waiters = [queue_up(threads, pool, lambda: finish_waiting(pool)) for _ in range(most)]
    with pytest.raises(PoolFull, match=rf"{most} callers wait for http://127.*1 leased of 1, .* {most} waiting"):
        pool.acquire()
    assert counted(pool.stats().acquires) == {"opened": 1, "rejected": 1}
    pool.release(conn)
    for waiter in waiters:
        waiter.result(BOUND)
    finish(pool)


def finish_waiting(pool: ConnectionPool) -> None:
    assert pool.request("GET", "/").data == b"hello"


def test_waiting_time_is_measured(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor, clock: Clock
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1, clock=clock)
    conn = pool.acquire()
    waiter = queue_up(threads, pool, pool.acquire)
    clock.now += 2
    pool.release(conn)
    pool.release(waiter.result(BOUND))
    wait = pool.stats().wait
    assert (wait.count, wait.sum) == (2, 2.0)
    finish(pool)


# --- request ----------------------------------------------------------------------------------------------------------


def test_request_returns_the_whole_response_and_the_connection_is_back(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    answer = Respond(body=b'{"id": 7}', headers=[("Content-Type", "application/json"), ("X-A", "1"), ("X-A", "2")])
    server = scripted_server([ExpectHead("POST", "/v1/orders"), answer, *ANSWERS], default=ANSWERS)
    pool = make_pool(server)
    response = pool.request("POST", "/v1/orders", b"order", {"X-Id": "7"})
    assert gauges(pool) == (1, 0, 0, 0)
    assert (response.status, response.reason, response.version, response.resends) == (200, "OK", 11, 0)
    assert (response.method, response.url) == ("POST", "/v1/orders")
    assert response.headers["Content-Type"] == "application/json"
    assert response.getheader("x-a") == "1, 2"
    assert response.json() == {"id": 7}
    assert server.requests[0].body == b"order"
    assert server.requests[0].field("x-id") == "7"
    finish(pool)
    assert server.accepted == 1


@pytest.mark.parametrize(("status", "outcome"), [(200, "2xx"), (302, "3xx"), (404, "4xx"), (503, "5xx"), (799, "5xx")])
def test_status_is_no_error_and_counted_by_its_class(
    status: int, outcome: str, scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool = make_pool(scripted_server([ExpectHead(), Respond(status, body=b"so"), *ANSWERS], default=ANSWERS))
    assert pool.request("GET", "/").status == status
    assert counted(pool.stats().requests) == {outcome: 1}
    finish(pool)


@pytest.mark.parametrize(("method", "target", "headers", "error"), [
    ("GET", "http://127.0.0.1/", {}, InvalidURL),
    ("GET", "", {}, InvalidURL),
    ("GET", "relative", {}, InvalidURL),
    ("GET", "/with space", {}, InvalidURL),
    ("GET", "/line\r\nend", {}, InvalidURL),
    ("GET", b"/", {}, TypeError),
    ("GE T", "/", {}, ValueError),
    ("GET", "/", {"X": "a\r\nb"}, ValueError),
    ("GET", "/", {"X y": "a"}, ValueError),
])  # fmt: skip
@pytest.mark.parametrize("call", ["request", "stream"])
def test_malformed_request_is_refused_before_anything_is_opened(
    method: str, target: Any, headers: dict[str, str], error: type[Exception], call: str,
    scripted_server: ServerFactory, make_pool: PoolMaker,
) -> None:  # fmt: skip
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server)
    with pytest.raises(error):
        getattr(pool, call)(method, target, headers=headers)
    assert server.accepted == 0
    assert counted(pool.stats().acquires) == {}
    finish(pool)


def test_asterisk_is_a_target(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    pool = make_pool(scripted_server([ExpectHead("OPTIONS", "*"), Respond(204), *ANSWERS]))
    assert pool.request("OPTIONS", "*").status == 204
    finish(pool)


@pytest.mark.parametrize("script", [
    [ExpectHead(), Respond(body=b"x", close=True)],
    [ExpectHead(), Respond(body=b"x", version="HTTP/1.0"), Close()],
    [ExpectHead(), Respond(body=b"x", length=False), Close()],
], ids=["Connection: close", "HTTP/1.0", "until the end"])  # fmt: skip
def test_connection_that_the_response_ends_does_not_come_back(
    script: list[Any], scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    server = scripted_server(script, default=ANSWERS)
    pool = make_pool(server)
    assert pool.request("GET", "/").data == b"x"
    assert gauges(pool) == (0, 0, 0, 0)
    assert counted(pool.stats().closed) == {"server_close": 1}
    finish(pool)
    assert server.accepted == 2


def test_connection_that_switched_its_protocol_leaves_the_pool(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool = make_pool(scripted_server([ExpectHead(), Respond(101), KeepOpen()], default=ANSWERS))
    with pool.stream("GET", "/chat", headers={"Connection": "Upgrade", "Upgrade": "chat"}) as response:
        assert response.status == 101
    assert gauges(pool) == (0, 0, 0, 0)
    assert counted(pool.stats().closed) == {"client_close": 1}
    assert counted(pool.stats().requests) == {"1xx": 1}
    finish(pool)


def test_timeout_of_the_pool_that_is_a_number_is_the_total_of_each_call(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool = make_pool(scripted_server([ExpectHead(), KeepOpen()], default=ANSWERS), timeout=0.2)
    with pytest.raises(TotalTimeout, match=r"GET / took longer than its total of 0\.20 s \(acquire"):
        pool.request("GET", "/")
    assert counted(pool.stats().requests) == {"timeout": 1}
    assert pool.request("GET", "/", timeout=PATIENT).data == b"hello"


def test_time_of_a_request_is_measured_whole(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock
) -> None:
    def answer(_: object) -> bytes:
        clock.now += 3
        return Respond(body=b"hello").encode()

    pool = make_pool(scripted_server(default=keep_alive_script(answer)), clock=clock)
    finish(pool)
    stats = pool.stats()
    assert (stats.request.count, stats.request.sum) == (1, 3.0)
    assert (stats.use.count, stats.use.sum) == (1, 3.0)


# --- stream -----------------------------------------------------------------------------------------------------------


def test_stream_lends_its_response_for_the_block(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    server = scripted_server(default=[ExpectHead(), Respond(body=b"a" * 100_000, chunked=True), *ANSWERS])
    pool = make_pool(server)
    with pool.stream("GET", "/export") as response:
        assert isinstance(response, StreamedResponse)
        assert (response.status, response.url, response.resends) == (200, "/export", 0)
        assert gauges(pool) == (0, 1, 0, 0)
        assert sum(len(piece) for piece in response) == 100_000
    assert gauges(pool) == (1, 0, 0, 0)
    assert counted(pool.stats().requests) == {"2xx": 1}
    finish(pool)
    assert server.accepted == 1


def test_stream_opens_nothing_before_its_block(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server)
    context = pool.stream("GET", "/")
    assert server.accepted == 0
    with context as response:
        assert response.read() == b"hello"
    finish(pool)


def test_leaving_a_stream_that_was_never_entered_does_nothing(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS))
    pool.stream("GET", "/").__exit__(None, None, None)
    pool.connection().__exit__(None, None, None)
    finish(pool)


def test_stream_that_was_released_early_is_left_in_peace(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    pool = make_pool(scripted_server(default=ANSWERS))
    with pool.stream("GET", "/") as response:
        assert response.read() == b"hello"
        conn = response._owner
        assert isinstance(conn, HTTPConnection)
        pool.release(conn)
        assert gauges(pool) == (1, 0, 0, 0)
    assert gauges(pool) == (1, 0, 0, 0)
    finish(pool)


def test_response_cannot_be_read_on_after_its_stream(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    pool = make_pool(scripted_server(default=ANSWERS))
    with pool.stream("GET", "/") as response:
        pass
    with pytest.raises(IncompleteRead):
        response.read()
    finish(pool)


def test_exception_in_the_block_closes_the_connection_and_counts_what_the_server_said(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS))
    with pytest.raises(KeyError), pool.stream("GET", "/"):
        raise KeyError("the borrower's own")
    stats = pool.stats()
    assert counted(stats.closed) == {"error": 1}
    assert counted(stats.requests) == {"2xx": 1}
    finish(pool)


def test_stream_whose_body_stalls_is_counted_as_a_timeout(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    start = Send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nstart")
    pool = make_pool(scripted_server([ExpectHead(), start, KeepOpen()], default=ANSWERS))
    with pytest.raises(TotalTimeout), pool.stream("GET", "/", timeout=0.2) as response:
        response.read()
    stats = pool.stats()
    assert counted(stats.closed) == {"timeout": 1}
    assert counted(stats.requests) == {"timeout": 1}
    finish(pool)


# --- connection -------------------------------------------------------------------------------------------------------


def test_lent_connection_serves_any_number_of_exchanges(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server)
    with pool.connection() as conn:
        for _ in range(3):
            exchange(conn)
    assert counted(pool.stats().requests) == {}
    assert counted(pool.stats().acquires) == {"opened": 1}
    finish(pool)
    assert server.accepted == 1


def test_block_that_ends_by_an_exception_closes_its_connection(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS))
    with pytest.raises(KeyError), pool.connection() as conn:
        exchange(conn)
        raise KeyError("the borrower's own")
    assert gauges(pool) == (0, 0, 0, 0)
    assert counted(pool.stats().closed) == {"error": 1}
    finish(pool)


def test_connection_that_its_borrower_closed_does_not_come_back(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS))
    with pool.connection() as conn:
        conn.close()
    assert gauges(pool) == (0, 0, 0, 0)
    assert counted(pool.stats().closed) == {"client_close": 1}
    finish(pool)


def test_connection_that_its_borrower_opened_anew_counts_twice(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server)
    with pool.connection() as conn:
        conn.close()
        exchange(conn)
    stats = pool.stats()
    assert (stats.opened, stats.idle, counted(stats.closed)) == (2, 1, {"client_close": 1})
    finish(pool)
    assert server.accepted == 2


def test_socket_that_its_borrower_took_out_is_his_and_counts_as_closed(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS))
    with pool.connection() as conn:
        taken, conn.sock = conn.sock, None
    assert counted(pool.stats().closed) == {"client_close": 1}
    assert gauges(pool) == (0, 0, 0, 0)
    with taken:
        taken.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        taken.settimeout(BOUND)
        assert taken.recv(100).endswith(b"hello")
    finish(pool)


def test_connection_released_inside_its_block_is_left_in_peace(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1)
    with pool.connection() as conn:
        pool.release(conn)
        assert gauges(pool) == (1, 0, 0, 0)
    assert gauges(pool) == (1, 0, 0, 0)
    assert pool.stats().use.count == 1
    finish(pool)


# --- unread bodies ----------------------------------------------------------------------------------------------------


def unread(pool: ConnectionPool) -> None:
    with pool.connection() as conn:
        conn.request("GET", "/")
        conn.getresponse()


def unread_stream(pool: ConnectionPool) -> None:
    with pool.stream("GET", "/"):
        pass


@pytest.mark.parametrize("leave", [unread, unread_stream])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [1, 1000])
def test_rest_within_the_bound_is_drained_and_the_connection_kept(
    leave: Callable[[ConnectionPool], None], chunked: bool, size: int, scripted_server: ServerFactory,
    make_pool: PoolMaker,
) -> None:  # fmt: skip
    server = scripted_server([ExpectHead(), Respond(body=b"a" * size, chunked=chunked), *ANSWERS])
    pool = make_pool(server, drain_bytes=1000, drain_seconds=BOUND)
    leave(pool)
    stats = pool.stats()
    assert counted(stats.drains) == {"drained": 1}
    assert counted(stats.closed) == {}
    finish(pool)
    assert server.accepted == 1


@pytest.mark.parametrize("leave", [unread, unread_stream])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("bound", [0, 999])
def test_rest_beyond_the_bound_closes_the_connection(
    leave: Callable[[ConnectionPool], None], chunked: bool, bound: int, scripted_server: ServerFactory,
    make_pool: PoolMaker,
) -> None:  # fmt: skip
    server = scripted_server([ExpectHead(), Respond(body=b"a" * 1000, chunked=chunked), KeepOpen()], default=ANSWERS)
    pool = make_pool(server, drain_bytes=bound, drain_seconds=BOUND)
    leave(pool)
    stats = pool.stats()
    assert counted(stats.drains) == {"closed": 1}
    assert counted(stats.closed) == {"unread": 1}
    finish(pool)
    assert server.accepted == 2


@pytest.mark.parametrize("seconds", [0, 0.05])
def test_rest_that_does_not_come_in_time_closes_the_connection(
    seconds: float, scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    start = Send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nstart")
    server = scripted_server([ExpectHead(), start, KeepOpen()], default=ANSWERS)
    pool = make_pool(server, drain_seconds=seconds)
    unread(pool)
    assert counted(pool.stats().drains) == {"closed": 1}
    finish(pool)


def test_rest_that_only_the_end_of_the_connection_ends_is_not_waited_for(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    server = scripted_server([ExpectHead(), Send(b"HTTP/1.1 200 OK\r\n\r\nabc"), KeepOpen()], default=ANSWERS)
    pool = make_pool(server, drain_seconds=BOUND)
    unread(pool)
    assert counted(pool.stats().closed) == {"unread": 1}
    finish(pool)


def test_rest_that_breaks_off_while_it_is_drained_closes_the_connection(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    start = Send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nstart")
    pool = make_pool(scripted_server([ExpectHead(), start, Close()], default=ANSWERS), drain_seconds=BOUND)
    unread(pool)
    assert counted(pool.stats().drains) == {"closed": 1}
    finish(pool)


@pytest.mark.parametrize("begin", [
    lambda conn: conn.putrequest("GET", "/"),
    lambda conn: conn.request("GET", "/"),
], ids=["head begun", "request sent"])  # fmt: skip
def test_connection_with_a_request_under_way_is_closed(
    begin: Callable[[HTTPConnection], None], scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    server = scripted_server([ExpectHead(optional=True), KeepOpen()], default=ANSWERS)
    pool = make_pool(server)
    with pool.connection() as conn:
        begin(conn)
    stats = pool.stats()
    assert counted(stats.closed) == {"unread": 1}
    assert counted(stats.drains) == {}
    finish(pool)


def test_unread_body_is_not_drained_when_the_waiter_gets_the_slot(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    server = scripted_server([ExpectHead(), Respond(body=b"a" * 1000), KeepOpen()], default=ANSWERS)
    pool = make_pool(server, maxsize=1, drain_bytes=10)
    conn = pool.acquire()
    conn.request("GET", "/")
    conn.getresponse()
    waiter = queue_up(threads, pool, lambda: finish_waiting(pool))
    pool.release(conn)
    waiter.result(BOUND)
    finish(pool)


# --- age --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "limit", "reason"), [
    ({"idle_timeout": 60, "max_age": None}, 60, "idle"),
    ({"idle_timeout": None, "max_age": 50}, 50, "max_age"),
    ({"idle_timeout": 40, "max_age": 40}, 40, "max_age"),
    ({"idle_timeout": 30, "max_age": 100}, 30, "idle"),
])  # fmt: skip
@pytest.mark.parametrize("notice", ["acquire", "prune"])
def test_idle_connection_past_a_limit_is_not_lent_again(
    options: dict[str, Any], limit: float, reason: str, notice: str, scripted_server: ServerFactory,
    make_pool: PoolMaker, clock: Clock,
) -> None:  # fmt: skip
    server = scripted_server(default=ANSWERS)
    settings: PoolOptions = {**options, "clock": clock}  # type: ignore[typeddict-item]  # the parameters above
    pool = make_pool(server, **settings)
    finish(pool)
    clock.now += limit * 0.89  # an age may end up to 10 % earlier
    finish(pool)
    assert server.accepted == 1
    clock.now += limit
    if notice == "prune":
        assert pool.prune() == 1
        assert gauges(pool) == (0, 0, 0, 0)
    finish(pool)
    assert server.accepted == 2
    assert counted(pool.stats().closed) == {reason: 1}


def test_connection_without_limits_is_kept(scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock) -> None:
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server, clock=clock, idle_timeout=None, max_age=None)
    finish(pool)
    clock.now += 1e9
    finish(pool)
    assert server.accepted == 1


def test_lease_that_outlasts_the_age_is_finished_and_then_closed(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), clock=clock, max_age=10)
    with pool.connection() as conn:
        clock.now += 11
        exchange(conn)
    assert gauges(pool) == (0, 0, 0, 0)
    assert counted(pool.stats().closed) == {"max_age": 1}
    finish(pool)


def test_connections_of_one_moment_do_not_end_in_one_moment(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=20, clock=clock, max_age=1000, idle_timeout=None)
    fill(pool, 20)
    clock.now += 899
    assert pool.prune() == 0
    ended = []
    for _ in range(10):
        clock.now += 10.2
        ended.append(pool.prune())
    assert sum(ended) == 20
    assert max(ended) < 20
    finish(pool)


def test_connection_is_closed_after_its_last_request(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server, max_requests=3)
    for _ in range(7):
        finish(pool)
    assert [len(peer.requests) for peer in server.connections] == [3, 3, 1]
    assert counted(pool.stats().closed) == {"max_requests": 2}


@pytest.mark.parametrize(("hint", "kept_for"), [("timeout=5", 4), ("timeout=5, max=100", 4), ("timeout=90", 60),
                                                ("max=7", 60), ("nonsense", 60)])  # fmt: skip
def test_shorter_idle_time_that_the_server_announces_holds(
    hint: str, kept_for: float, scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock
) -> None:
    answer = Respond(body=b"hello", headers=[("Connection", "keep-alive"), ("Keep-Alive", hint)])
    server = scripted_server(default=[Repeat([ExpectHead(), answer])])
    pool = make_pool(server, clock=clock, idle_timeout=60, max_age=None)
    finish(pool)
    clock.now += kept_for - 0.1
    finish(pool)
    assert server.accepted == 1
    clock.now += kept_for
    finish(pool)
    assert server.accepted == 2
    assert counted(pool.stats().closed) == {"idle": 1}


def test_announced_idle_time_holds_where_there_is_no_limit_of_ours(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock
) -> None:
    server = scripted_server(
        default=[Repeat([ExpectHead(), Respond(body=b"hello", headers=[("Keep-Alive", "timeout=5")])])]
    )
    pool = make_pool(server, clock=clock, idle_timeout=None, max_age=None)
    finish(pool)
    clock.now += 4
    finish(pool)
    assert server.accepted == 2


@pytest.mark.parametrize(("hint", "reason"), [("timeout=1", "idle"), ("timeout=0", "idle"),
                                              ("timeout=60, max=0", "max_requests")])  # fmt: skip
def test_connection_that_the_server_is_about_to_end_is_not_kept(
    hint: str, reason: str, scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    answer = Respond(body=b"hello", headers=[("Keep-Alive", hint)])
    server = scripted_server([ExpectHead(), answer, KeepOpen()], default=ANSWERS)
    pool = make_pool(server)
    finish(pool)
    assert counted(pool.stats().closed) == {reason: 1}
    finish(pool)
    assert server.accepted == 2


def test_cold_end_is_swept_a_little_at_each_release(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), clock=clock, idle_timeout=60, max_age=None)
    fill(pool, 5)
    clock.now += 59
    finish(pool)  # the newest stays warm
    clock.now += 2
    idle = []
    for _ in range(3):
        finish(pool)
        idle.append(pool.stats().idle)
    assert idle == [3, 1, 1]
    assert counted(pool.stats().closed) == {"idle": 4}


def test_cold_end_within_its_limit_is_not_swept(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), clock=clock, idle_timeout=60, max_age=None)
    first, *_ = fill(pool, 3)
    clock.now += 1
    finish(pool)
    clock.now += 59.5  # past the limit of two, not of the third
    finish(pool)
    assert pool.stats().idle == 1
    assert first.state is State.CLOSED


def test_probe_is_spared_for_connections_that_were_used_just_now(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes: list[int] = []
    pool = make_pool(scripted_server(default=ANSWERS), clock=clock, probe_after=5)
    finish(pool)
    probe = Transport.is_quiet

    def count(transport: Transport) -> Any:
        probes.append(1)
        return probe(transport)

    monkeypatch.setattr(Transport, "is_quiet", count)
    clock.now += 4.9
    finish(pool)
    assert len(probes) == 0
    clock.now += 5
    finish(pool)
    assert len(probes) == 1


def test_dead_connection_and_those_past_a_limit_are_left_behind_together(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock
) -> None:
    over = threading.Event()
    server = scripted_server(ANSWERS, [*ANSWER, Stall(until=over), Close()], default=ANSWERS)
    pool = make_pool(server, clock=clock, idle_timeout=60, max_age=None)
    first, second = pool.acquire(), pool.acquire()
    exchange(second)
    sock = second.sock
    pool.release(first)
    clock.now += 50
    pool.release(second)
    clock.now += 50
    over.set()
    assert server.peer(1).ended.wait(BOUND)
    wait_until(lambda: bool(sock.recv(1, socket.MSG_PEEK) == b""))
    finish(pool)
    assert counted(pool.stats().closed) == {"stale_eof": 1, "idle": 1}
    assert server.accepted == 3


# --- prune ------------------------------------------------------------------------------------------------------------


def test_prune_of_everything_closes_what_is_idle_and_leaves_the_leased(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS))
    with pool.connection() as conn:
        fill(pool, 3)
        assert pool.prune(everything=True) == 3
        exchange(conn)
    stats = pool.stats()
    assert (stats.idle, counted(stats.closed)) == (1, {"evicted": 3})
    finish(pool)


def test_prune_keeps_what_is_alive_in_its_order(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    pool = make_pool(scripted_server(default=ANSWERS))
    released = fill(pool, 3)
    assert pool.prune() == 0
    assert gauges(pool) == (3, 0, 0, 0)
    lent = [pool.acquire() for _ in range(3)]
    assert lent == released[::-1]
    for conn in lent:
        pool.release(conn)
    finish(pool)


def test_prune_closes_what_the_server_has_ended(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    over = threading.Event()
    server = scripted_server([Stall(until=over), Close()], [Stall(until=over), Close()], default=ANSWERS)
    pool = make_pool(server)
    fill(pool, 3)
    over.set()
    for index in (0, 1):
        assert server.peer(index).ended.wait(BOUND)
    wait_until(lambda: pool.prune() == 0 and pool.stats().idle == 1)
    assert counted(pool.stats().closed) == {"stale_eof": 2}
    finish(pool)
    assert server.accepted == 3


def test_prune_hands_what_it_probed_to_callers_that_came_meanwhile(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server, maxsize=1)
    finish(pool)
    waiters: list[Future[None]] = []
    probe = HTTPConnection.staleness

    def slow_probe(conn: HTTPConnection) -> Any:
        if not waiters:
            waiters.append(queue_up(threads, pool, lambda: finish_waiting(pool)))
        return probe(conn)

    monkeypatch.setattr(HTTPConnection, "staleness", slow_probe)
    assert pool.prune() == 0
    assert waiters
    waiters[0].result(BOUND)
    finish(pool)
    assert server.accepted == 1


def test_prune_hands_the_slots_it_freed_to_callers_that_came_meanwhile(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    server = scripted_server([*ANSWER, Stall(until=over), Close()], default=ANSWERS)
    pool = make_pool(server, maxsize=1)
    finish(pool)
    with pool.connection() as conn:
        sock = conn.sock
    over.set()
    assert server.peer().ended.wait(BOUND)
    wait_until(lambda: bool(sock.recv(1, socket.MSG_PEEK) == b""))
    waiters: list[Future[None]] = []
    probe = HTTPConnection.staleness

    def slow_probe(conn: HTTPConnection) -> Any:
        if not waiters:
            waiters.append(queue_up(threads, pool, lambda: finish_waiting(pool)))
        return probe(conn)

    monkeypatch.setattr(HTTPConnection, "staleness", slow_probe)
    assert pool.prune() == 1
    waiters[0].result(BOUND)
    finish(pool)
    assert server.accepted == 2


def test_pool_closed_while_pruning_keeps_nothing_open(
    scripted_server: ServerFactory, make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS))
    fill(pool, 2)
    probe = HTTPConnection.staleness

    def probe_and_close(conn: HTTPConnection) -> Any:
        pool.close()
        return probe(conn)

    monkeypatch.setattr(HTTPConnection, "staleness", probe_and_close)
    pool.prune()
    stats = pool.stats()
    assert (stats.idle, stats.leased, counted(stats.closed)) == (0, 0, {"pool_closed": 2})


def test_connection_that_came_back_during_a_prune_is_lent_before_those_that_were_pruned(
    scripted_server: ServerFactory, make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS))
    newest = pool.acquire()
    fill(pool, 2)
    probe = HTTPConnection.staleness

    def probe_and_release(conn: HTTPConnection) -> Any:
        pool.release(newest)
        return probe(conn)

    with monkeypatch.context() as patch:
        patch.setattr(HTTPConnection, "staleness", probe_and_release)
        assert pool.prune() == 0
    with pool.connection() as conn:
        assert conn is newest
    finish(pool)


# --- what it shows ----------------------------------------------------------------------------------------------------


def test_stats_are_frozen_numbers_of_one_moment(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), name="orders", maxsize=3)
    before = pool.stats()
    finish(pool)
    finish(pool)
    stats = pool.stats()
    assert (before.name, before.maxsize, before.opened, before.request.count) == ("orders", 3, 0, 0)
    assert (stats.opened, stats.idle, stats.request.count, stats.connect.count) == (1, 1, 2, 1)
    assert counted(stats.acquires) == {"opened": 1, "reused": 1}
    assert before.reuse_ratio == 0
    assert stats.reuse_ratio == 0.5
    with pytest.raises(AttributeError):
        stats.idle = 7  # type: ignore[misc]  # that it is frozen is the point
    with pytest.raises(TypeError):
        stats.closed["idle"] = 7  # type: ignore[index]  # as above


def test_reuse_is_counted_while_it_lasts(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    pool = make_pool(scripted_server(default=ANSWERS))
    finish(pool)
    with pool.connection():
        assert counted(pool.stats().acquires) == {"opened": 1, "reused": 1}
    assert counted(pool.stats().acquires) == {"opened": 1, "reused": 1}
    finish(pool)


def test_age_of_the_oldest_lease_is_shown(scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), clock=clock)
    assert pool.stats().oldest_lease_seconds == 0
    with pool.connection():
        clock.now += 2
        with pool.connection():
            clock.now += 1
            assert pool.stats().oldest_lease_seconds == 3
    assert pool.stats().oldest_lease_seconds == 0
    finish(pool)


def begin_request(conn: HTTPConnection) -> None:
    conn.putrequest("GET", "/v1/export")


def send_request(conn: HTTPConnection) -> None:
    conn.request("GET", "/v1/export")


def receive_head(conn: HTTPConnection) -> None:
    conn.request("GET", "/v1/export")
    conn.getresponse()


@pytest.mark.parametrize(("use", "phase"), [
    (HTTPConnection.close, "closed by its borrower"),
    (lambda conn: None, "between two requests"),
    (begin_request, "GET /v1/export, sending the request"),
    (send_request, "GET /v1/export, waiting for the head"),
    (receive_head, "GET /v1/export, reading the response"),
])  # fmt: skip
def test_explain_says_who_holds_what(
    use: Callable[[HTTPConnection], None], phase: str, scripted_server: ServerFactory, make_pool: PoolMaker,
    clock: Clock,
) -> None:  # fmt: skip
    server = scripted_server([ExpectHead(optional=True), Respond(body=b"hello"), *ANSWERS], default=ANSWERS)
    pool = make_pool(server, clock=clock, maxsize=4)
    with pool.connection() as conn:
        use(conn)
        clock.now += 1.5
        with pool.connection():
            assert pool.explain().splitlines() == [
                f"http://127.0.0.1:{server.port}: 2 leased of 4, 0 idle, 0 opening, 0 waiting",
                f"  leased 1.5 s by MainThread, {phase}",
                "  leased 0.0 s by MainThread, between two requests",
            ]
    finish(pool)


def test_explain_names_the_thread_even_when_it_has_ended(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    pool = make_pool(scripted_server(default=ANSWERS))
    finish(pool)  # the peer's thread is there from now on: a later one could get the number of the one that ends
    with ThreadPoolExecutor(1, thread_name_prefix="worker") as executor:
        conn = executor.submit(pool.acquire).result(BOUND)
        while_alive = pool.explain()
    when_ended = pool.explain()
    pool.release(conn)
    assert "by worker_0, between" in while_alive
    assert re.search(r"by a thread that has ended \(worker_0\), between", when_ended)
    finish(pool)


def test_explain_shows_what_a_whole_request_waits_for(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    asked, shown = threading.Event(), threading.Event()
    server = scripted_server(
        default=[ExpectHead(), Signal(asked), Stall(until=shown), Respond(body=b"hello"), *ANSWERS]
    )
    pool = make_pool(server)
    request = threads.submit(finish_waiting, pool)
    assert asked.wait(BOUND)
    wait_until(lambda: "GET /, waiting for the head" in pool.explain())
    shown.set()
    request.result(BOUND)
    finish(pool)


def test_explain_copes_with_a_connection_that_is_dropped_meanwhile(
    scripted_server: ServerFactory, make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS))
    held = [pool.acquire()]

    def drop_and_name(thread: threading.Thread | None) -> str:
        if held:
            drop(held)
        return name_of(thread)

    with monkeypatch.context() as patch:
        patch.setattr("pooledhttp.records.name_of", drop_and_name)
        assert "by MainThread, lost without release" in pool.explain()
    assert pool.stats().leaked == 1
    finish(pool)


def test_explain_shows_no_password(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    pool = make_pool(scripted_server([ExpectHead(), KeepOpen()], default=ANSWERS))
    with pool.connection() as conn:
        conn.request("GET", "http://user:secret@elsewhere.test/x", headers={"Authorization": "Bearer secret"})
        assert "GET http://elsewhere.test/x" in pool.explain()
        assert "secret" not in pool.explain()
    finish(pool)


def test_repr_shows_origin_and_occupancy(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server)
    fill(pool, 2)
    with pool.connection():
        expected = f"<ConnectionPool http://127.0.0.1:{server.port} idle=1 leased=1 opening=0 maxsize=10>"
        assert repr(pool) == expected
    finish(pool)


def test_last_use_is_when_a_connection_was_opened_or_came_back(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), clock=clock)
    assert pool.last_used == clock.now
    fill(pool, 2)
    clock.now += 5
    finish(pool)
    assert pool.last_used == clock.now


# --- the end of a pool ------------------------------------------------------------------------------------------------


def test_closing_ends_the_idle_connections_at_once(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    server = scripted_server(default=ANSWERS)
    with make_pool(server) as pool:
        fill(pool, 2)
        assert not pool.is_closed
    assert pool.is_closed
    assert gauges(pool) == (0, 0, 0, 0)
    for index in (0, 1):
        assert server.peer(index).ended.wait(BOUND)
    assert counted(pool.stats().closed) == {"pool_closed": 2}


def test_closed_pool_lends_no_more(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server)
    pool.close()
    for call in (pool.acquire, lambda: pool.request("GET", "/"), pool.stream("GET", "/").__enter__,
                 pool.connection().__enter__):  # fmt: skip
        with pytest.raises(PoolClosed, match="the pool of http://127"):
            call()
    stats = pool.stats()
    assert counted(stats.acquires) == {"rejected": 4}
    assert counted(stats.requests) == {"error": 2}
    assert server.accepted == 0


def test_closing_twice_is_fine(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    pool = make_pool(scripted_server(default=ANSWERS))
    finish(pool)
    pool.close()
    before = pool.stats()
    pool.close()
    assert pool.stats() == before


def test_lease_is_finished_and_closed_when_the_pool_has_been_closed_meanwhile(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server)
    with pool.connection() as conn:
        pool.close()
        exchange(conn)
    assert conn.state is State.CLOSED
    assert counted(pool.stats().closed) == {"pool_closed": 1}
    assert gauges(pool) == (0, 0, 0, 0)


def test_waiters_are_told_at_once_that_the_pool_is_closed(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1)
    with pool.connection() as conn:
        waiters = [queue_up(threads, pool, pool.acquire) for _ in range(3)]
        pool.close()
        for waiter in waiters:
            with pytest.raises(PoolClosed, match="was closed"):
                waiter.result(BOUND)
        exchange(conn)
    assert counted(pool.stats().acquires) == {"opened": 1, "rejected": 3}


def test_connection_that_was_being_opened_is_closed_with_its_pool(
    scripted_server: ServerFactory, make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS))
    connect = HTTPConnection.connect

    def connect_and_close_the_pool(conn: HTTPConnection) -> None:
        connect(conn)
        pool.close()

    monkeypatch.setattr(HTTPConnection, "connect", connect_and_close_the_pool)
    with pytest.raises(PoolClosed):
        pool.request("GET", "/")
    stats = pool.stats()
    assert (stats.opened, counted(stats.closed)) == (1, {"pool_closed": 1})
    assert gauges(pool) == (0, 0, 0, 0)
    assert counted(stats.acquires) == {"rejected": 1}


def test_pool_in_use_is_not_closed_as_unused(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), clock=clock)
    with pool.connection():
        assert not pool.close_if_unused()
        assert not pool.is_closed
    finish(pool)
    assert pool.close_if_unused()
    assert pool.is_closed
    assert gauges(pool) == (0, 0, 0, 0)
    assert pool.close_if_unused()


# --- what is dropped --------------------------------------------------------------------------------------------------


def drop(conns: list[HTTPConnection]) -> None:
    """Let go of lent connections, which each cost one ResourceWarning."""
    count = len(conns)
    with pytest.warns(ResourceWarning, match="unclosed") as warned:
        collect(conns)
    assert len(warned) == count


def collect(conns: list[HTTPConnection]) -> None:
    conns.clear()
    gc.collect()


def test_connection_dropped_without_release_frees_its_slot(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock
) -> None:
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server, maxsize=2, clock=clock)
    finish(pool)
    drop([pool.acquire(), pool.acquire()])
    stats = pool.stats()
    assert (stats.leaked, stats.leased) == (2, 0)
    assert counted(stats.closed) == {"leaked": 2}
    assert counted(stats.acquires) == {"opened": 2, "reused": 1}
    assert stats.use.count == 3
    for index in (0, 1):
        assert server.peer(index).ended.wait(BOUND)
    finish(pool)


@pytest.mark.parametrize("notice", [
    lambda pool: pool.explain(),
    lambda pool: pool.stats(),
    lambda pool: pool.release(pool.acquire(AT_ONCE)),
], ids=["explain", "stats", "acquire"])  # fmt: skip
def test_slot_of_a_dropped_connection_is_found_by_whoever_looks(
    notice: Callable[[ConnectionPool], object], scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1)
    drop([pool.acquire()])
    notice(pool)
    assert len(pool._leased) == 0
    assert pool.stats().leaked == 1
    finish(pool)


def test_pool_whose_only_lease_was_dropped_is_unused(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    pool = make_pool(scripted_server(default=ANSWERS))
    drop([pool.acquire()])
    assert pool.close_if_unused()


def test_waiter_gets_the_slot_of_a_dropped_connection(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1)
    held = [pool.acquire()]
    # Nothing of the main thread may wake it: it has to look for itself.
    waiting = threading.Event()

    def wait() -> None:
        waiting.set()
        finish_waiting(pool)

    waiter = threads.submit(wait)
    assert waiting.wait(BOUND)
    wait_until(lambda: len(pool._waiters) == 1)
    drop(held)
    waiter.result(BOUND)
    assert pool.stats().leaked == 1
    finish(pool)


def test_dropped_connection_that_was_closed_before_counts_its_own_reason(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1)
    held = [pool.acquire()]
    held[0].close()
    held.clear()
    gc.collect()
    stats = pool.stats()
    assert (stats.leaked, counted(stats.closed)) == (1, {"client_close": 1})
    finish(pool)


def test_dropped_pool_closes_its_idle_connections(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    server = scripted_server(default=ANSWERS)
    pool = ConnectionPool(*server.address, registry=None, timeout=PATIENT)
    fill(pool, 2)
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
    for index in (0, 1):
        assert server.peer(index).ended.wait(BOUND)
    with ConnectionPool(*server.address, registry=None, timeout=PATIENT) as another:
        finish(another)


def test_connection_may_outlive_its_pool(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    server = scripted_server(default=ANSWERS)
    conn = ConnectionPool(*server.address, registry=None, timeout=PATIENT).acquire()
    gc.collect()
    exchange(conn)
    conn.close()


# --- where its numbers are shown --------------------------------------------------------------------------------------


def test_numbers_are_shown_in_the_registry(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    registry = CollectorRegistry()
    pool = make_pool(scripted_server(default=ANSWERS), registry=registry, name="orders")
    finish(pool)
    assert registry.get_sample_value("pooledhttp_requests_total", {"pool": "orders", "outcome": "2xx"}) == 1


@pytest.mark.parametrize(("missing", "is_told"), [("prometheus_client", False), ("something_else", True)])
def test_pool_does_without_prometheus_client_alone(
    missing: str, is_told: bool, scripted_server: ServerFactory, make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Missing(MetaPathFinder):
        def find_spec(self, name: str, *_: object) -> None:
            if name == "pooledhttp.metrics":
                raise ModuleNotFoundError(name=missing)

    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "pooledhttp.metrics", raising=False)
    monkeypatch.delattr(pooledhttp, "metrics", raising=False)
    server = scripted_server(default=ANSWERS)
    if is_told:
        with pytest.raises(ModuleNotFoundError):
            make_pool(server, registry="default")
        return
    finish(make_pool(server, registry="default"))


# --- where it connects to ---------------------------------------------------------------------------------------------


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(*names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(*names).configure_cert(context)
    return context


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context


def test_pool_speaks_tls_and_verifies(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    server = scripted_server(default=ANSWERS, ssl_context=server_context("127.0.0.1"))
    pool = make_pool(server, scheme="https", ssl_context=client_context())
    with pool.connection() as conn:
        assert isinstance(conn, HTTPSConnection)
        exchange(conn)
    finish(pool)
    assert server.accepted == 1


def test_pool_without_a_context_trusts_the_system_alone(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    server = scripted_server(default=ANSWERS, ssl_context=server_context("127.0.0.1"))
    pool = make_pool(server, scheme="https")
    for _ in range(2):
        with pytest.raises(ssl.SSLCertVerificationError):
            pool.request("GET", "/")
    stats = pool.stats()
    assert counted(stats.connect_failures) == {"tls": 2}
    assert counted(stats.acquires) == {"error": 2}
    assert gauges(pool) == (0, 0, 0, 0)


def test_certificate_may_be_another_name(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    server = scripted_server(default=ANSWERS, ssl_context=server_context("orders.test"))
    pool = make_pool(server, scheme="https", ssl_context=client_context(), server_hostname="orders.test")
    finish(pool)


def test_pool_goes_through_a_unix_socket(scripted_server: ServerFactory, tmp_path: Path, audit: ResourceAudit) -> None:
    path = str(tmp_path / "api.sock")
    server = scripted_server(default=ANSWERS, uds=path)
    with ConnectionPool("localhost", uds=path, registry=None, timeout=PATIENT) as pool:
        finish(pool)
    assert server.requests[0].field("Host") == "localhost"


@pytest.mark.parametrize(("userinfo", "fields", "expected"), [
    ("", {}, None),
    ("", {"X-Team": "orders"}, None),
    ("us%40er:pass%3aword@", {}, "Basic " + base64.b64encode(b"us@er:pass:word").decode()),
    ("user:ignored@", {"Proxy-Authorization": "Bearer given"}, "Bearer given"),
])  # fmt: skip
def test_pool_goes_through_a_tunnel_with_the_proxy_fields(
    userinfo: str, fields: dict[str, str], expected: str | None, scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    proxy = scripted_server(
        [ExpectHead("CONNECT", "orders.test:443"), Respond(200), StartTLS(server_context("orders.test")), *ANSWERS]
    )
    options: PoolOptions = {
        "registry": None, "timeout": PATIENT, "ssl_context": client_context(), "proxy_headers": fields,
        "proxy": f"http://{userinfo}127.0.0.1:{proxy.port}",
    }  # fmt: skip
    with ConnectionPool("orders.test", scheme="https", config=PoolConfig(**options)) as pool:
        finish(pool)
        assert "pass" not in repr(pool.config)
    connect, request = proxy.requests
    assert connect.field("Proxy-Authorization") == expected
    assert connect.field("X-Team") == fields.get("X-Team")
    assert request.field("Host") == "orders.test"
    assert request.field("Proxy-Authorization") is None
    assert request.field("X-Team") is None


@pytest.mark.parametrize(("args", "scheme", "origin", "name"), [
    (("Orders.Test",), "http", "http://Orders.Test:80", "orders.test:80"),
    (("orders.test:8080",), "http", "http://orders.test:8080", "orders.test:8080"),
    (("orders.test",), "https", "https://orders.test:443", "orders.test:443"),
    (("[::1]:8080",), "http", "http://[::1]:8080", "[::1]:8080"),
    (("::1", 81), "http", "http://[::1]:81", "[::1]:81"),
])  # fmt: skip
def test_origin_and_name_come_from_the_arguments(args: tuple[Any, ...], scheme: str, origin: str, name: str) -> None:
    pool = ConnectionPool(*args, scheme=scheme, registry=None)
    assert (pool.origin, pool.name) == (origin, name)


@pytest.mark.parametrize(("args", "options", "error"), [
    (("",), {}, InvalidURL),
    (("a b",), {}, InvalidURL),
    (("a/b",), {}, InvalidURL),
    (("a", 65536), {}, InvalidURL),
    (("a", True), {}, TypeError),
    ((b"a",), {}, TypeError),
    (("a",), {"scheme": "ftp"}, InvalidURL),
    (("a",), {"config": PoolConfig(registry=None), "maxsize": 3}, TypeError),
    (("a",), {"config": {"maxsize": 3}}, TypeError),
])  # fmt: skip
def test_malformed_origin_is_refused(args: tuple[Any, ...], options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        ConnectionPool(*args, **options)


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("setting", "value", "error"), [
    ("maxsize", 0, ValueError), ("maxsize", -1, ValueError), ("maxsize", 1.0, TypeError), ("maxsize", True, TypeError),
    ("maxsize", None, TypeError), ("maxsize", "10", TypeError),
    ("max_waiters", -1, ValueError), ("max_waiters", 1.5, TypeError),
    ("max_requests", 0, ValueError), ("max_requests", False, TypeError),
    ("drain_bytes", -1, ValueError), ("drain_bytes", None, TypeError),
    ("timeout", 0, ValueError), ("timeout", -1, ValueError), ("timeout", None, TypeError), ("timeout", "5", TypeError),
    ("idle_timeout", 0, ValueError), ("idle_timeout", float("inf"), ValueError), ("idle_timeout", "60", TypeError),
    ("max_age", 0, ValueError), ("max_age", float("nan"), ValueError),
    ("probe_after", -1, ValueError), ("drain_seconds", -0.1, ValueError),
    ("source_address", ("127.0.0.1",), ValueError), ("source_address", ("127.0.0.1", "0"), ValueError),
    ("source_address", (("127.0.0.1", 0), ("127.0.0.2",)), ValueError), ("source_address", "127.0.0.1", ValueError),
    ("source_address", (), ValueError),
    ("proxy", "https://proxy.test", InvalidURL), ("proxy", "proxy.test:80", InvalidURL),
    ("proxy", "http://proxy.test/path", InvalidURL), ("proxy", "http://", InvalidURL),
    ("proxy", "http://proxy.test?query", InvalidURL), ("proxy", "http://proxy.test:x", InvalidURL),
    ("proxy", b"http://proxy.test", TypeError),
    ("proxy_headers", {"X y": "a"}, ValueError), ("proxy_headers", {"X": "a\r\nb"}, ValueError),
    ("ssl_context", "default", TypeError), ("limits", 5, TypeError),
    ("uds", "", ValueError), ("uds", 5, ValueError), ("name", "", ValueError), ("name", 5, ValueError),
    ("registry", "other", ValueError), ("registry", 5, TypeError), ("clock", 5, TypeError),
    ("probe_after", None, TypeError), ("drain_seconds", None, TypeError), ("resend_stale", 1, TypeError),
    ("source_address", (("127.0.0.1", 0), None), ValueError), ("proxy_headers", [("X", "a")], TypeError),
    ("server_hostname", 5, TypeError), ("server_hostname", "a b", ValueError),
    ("socket_options", ((1, 2),), TypeError), ("socket_options", 5, TypeError), ("socket_options", ("abc",), TypeError),
])  # fmt: skip
def test_setting_that_makes_no_sense_is_refused_by_its_name(setting: str, value: Any, error: type[Exception]) -> None:
    options: dict[str, Any] = {setting: value}
    with pytest.raises(error) as caught:
        PoolConfig(**options)
    if setting != "proxy_headers":  # there the field's name is the news
        assert setting in str(caught.value) or isinstance(caught.value, InvalidURL)


def test_settings_that_make_sense_are_kept() -> None:
    limits = Limits(fields=10)
    config = PoolConfig(max_waiters=0, max_requests=1, drain_bytes=0, drain_seconds=0, probe_after=0, idle_timeout=None,
                        max_age=None, limits=limits, name="orders", uds="/run/api.sock", registry=None)  # fmt: skip
    assert (config.max_waiters, config.idle_timeout, config.limits, config.name) == (0, None, limits, "orders")
    with pytest.raises(AttributeError):
        config.maxsize = 5  # type: ignore[misc]  # that it is frozen is the point


@pytest.mark.parametrize(("given", "expected"), [
    (None, ()),
    (("127.0.0.1", 0), (("127.0.0.1", 0),)),
    ((("127.0.0.1", 0), ("127.0.0.2", 0)), (("127.0.0.1", 0), ("127.0.0.2", 0))),
])  # fmt: skip
def test_source_addresses_are_one_or_several(given: Any, expected: tuple[tuple[str, int], ...]) -> None:
    assert PoolConfig(source_address=given).source_addresses == expected


def test_connections_come_from_the_source_address(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    server = scripted_server(default=ANSWERS)
    finish(make_pool(server, source_address=("127.0.0.2", 0)))
    address = server.peer().client_address
    assert address is not None
    assert address[0] == "127.0.0.2"


def test_message_about_a_proxy_shows_no_password() -> None:
    with pytest.raises(InvalidURL) as caught:
        PoolConfig(proxy="http://user:secret@proxy.test/path")
    assert "secret" not in str(caught.value)


# --- numbers ----------------------------------------------------------------------------------------------------------


def histogram(*seconds: float) -> HistogramStats:
    counting = Histogram((1.0, 2.0, 4.0))
    for value in seconds:
        counting.observe(value)
    return counting.freeze()


def test_observation_equal_to_a_bound_belongs_to_it() -> None:
    assert histogram(0.5, 1.0, 1.5, 4.0, 4.5).counts == (2, 1, 1, 1)


@pytest.mark.parametrize(("seconds", "q", "expected"), [
    ((), 0.5, 0.0),
    ((1.5, 1.5), 0.5, 1.5),
    ((1.5, 1.5), 1.0, 2.0),
    ((0.5, 3.0), 0.5, 1.0),
    ((0.5, 3.0), 0.75, 3.0),
    ((9.0,), 0.5, 4.0),
    ((0.5, 9.0), 0.99, 4.0),
])  # fmt: skip
def test_quantile_is_linear_within_its_bucket(seconds: tuple[float, ...], q: float, expected: float) -> None:
    assert histogram(*seconds).quantile(q) == expected


def test_histograms_add_up() -> None:
    both = histogram(0.5, 9) + histogram(1.5)
    assert (both.counts, both.sum, both.count) == ((1, 1, 0, 1), 11.0, 3)
    counting, other = Histogram((1.0,)), Histogram((1.0,))
    counting.observe(0.5)
    other.observe(2.5)
    counting.add(other)
    assert (counting.counts, counting.sum) == ([1, 1], 3.0)


def test_histograms_of_other_bounds_do_not_add_up() -> None:
    with pytest.raises(ValueError):
        histogram() + Tally().request.freeze()
    assert len(REQUEST_BOUNDS) != 3


def test_pools_add_up_and_the_elder_lease_is_the_oldest() -> None:
    def stats(number: int) -> PoolStats:
        tally = Tally()
        tally.opened = tally.leaked = number
        by_enum: tuple[dict[Any, int], ...] = (
            tally.acquires, tally.closed, tally.connect_failures, tally.stale, tally.drains, tally.requests
        )  # fmt: skip
        for counts in by_enum:
            counts.update(dict.fromkeys(counts, number))
        tally.wait.observe(number)
        return freeze(tally, name=f"pool {number}", maxsize=number, idle=number, leased=number, opening=number,
                      waiting=number, oldest_lease_seconds=number)  # fmt: skip

    both = stats(1) + stats(2)
    assert (both.name, both.maxsize, both.idle, both.leased) == ("pool 1", 3, 3, 3)
    assert (both.opening, both.waiting, both.opened, both.leaked) == (3, 3, 3, 3)
    assert both.oldest_lease_seconds == 2
    for counts in (both.acquires, both.closed, both.connect_failures, both.stale, both.drains, both.requests):
        assert set(counts.values()) == {3}
    assert (both.wait.count, both.wait.sum) == (2, 3.0)
