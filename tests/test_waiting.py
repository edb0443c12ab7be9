"""Waiting for a connection: in which order, for what, for how long, and when it would be for ever.

A caller that finds neither an idle connection nor a free slot queues.  One that has a slot while others are lent dials
in a thread of its own, and takes whichever comes first, a connection that is given back or the new one (late binding).
A thread that would wait for what only it can give back is told so at once (`SelfDeadlock`).

Dials are held up by the tests, so that what comes first is never a matter of chance; the clock is turned by hand.  What
the two elder files hold already (test_pool.py, test_pool_faults.py: waiters *) is not repeated here.
"""

from __future__ import annotations

import contextlib
import functools
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, Unpack

import pytest

from pooledhttp import (
    AcquireTimeout,
    ConnectionPool,
    ConnectTimeout,
    HTTPConnection,
    PoolClosed,
    PoolConfig,
    PoolFull,
    PoolManager,
    SelfDeadlock,
    Timeout,
    TotalTimeout,
)
from pooledhttp.config import PoolOptions
from pooledhttp.testing import (
    Close,
    ExpectHead,
    KeepOpen,
    Repeat,
    ResourceAudit,
    Respond,
    ScriptedServer,
    ServerFactory,
    Stall,
)
from pooledhttp.timeouts import Deadline

BOUND = 10.0
PATIENT = Timeout(acquire=BOUND, connect=BOUND, read=BOUND, write=BOUND)
AT_ONCE = Timeout(acquire=0, connect=BOUND, read=BOUND, write=BOUND)
ANSWER = [ExpectHead(), Respond(body=b"hello")]
ANSWERS = [Repeat(ANSWER)]

T = TypeVar("T")


# --- what the tests stand on ------------------------------------------------------------------------------------------


class Clock:
    """Seconds that pass only when told; the next look of another thread than the main one runs `elsewhere`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.elsewhere: Callable[[], object] | None = None

    def __call__(self) -> float:
        if self.elsewhere is not None and threading.current_thread() is not threading.main_thread():
            hook, self.elsewhere = self.elsewhere, None
            hook()
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


class PoolMaker(Protocol):
    def __call__(
        self, server: ScriptedServer, *, host: str | None = None, **options: Unpack[PoolOptions]
    ) -> ConnectionPool: ...


@pytest.fixture
def make_pool(scripted_server: ServerFactory, audit: ResourceAudit) -> Iterator[PoolMaker]:
    """Make pools that are closed when the test is over, and whose counters the audit then adds up."""
    with contextlib.ExitStack() as stack:

        def make(server: ScriptedServer, *, host: str | None = None, **options: Unpack[PoolOptions]) -> ConnectionPool:
            settings: PoolOptions = {"registry": None, "timeout": PATIENT, **options}
            pool = ConnectionPool(host or server.host, server.port, config=PoolConfig(**settings))
            audit.watch(stack.enter_context(pool))
            return pool

        yield make


@pytest.fixture
def threads(audit: ResourceAudit) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(24, thread_name_prefix="borrower") as executor:
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


def gauges(pool: ConnectionPool) -> tuple[int, int, int, int]:
    """Return how many are idle, leased, being opened and waiting."""
    stats = pool.stats()
    return stats.idle, stats.leased, stats.opening, stats.waiting


def counted(counts: Any) -> dict[str, int]:
    """Return counters without the zeros."""
    return {key: count for key, count in counts.items() if count}


def exchange(conn: HTTPConnection) -> None:
    conn.request("GET", "/")
    assert conn.getresponse().read() == b"hello"


def finish(pool: ConnectionPool) -> None:
    """One normal request, without waiting for a slot: whatever happened before has left the pool in order."""
    wait_until(lambda: pool.stats().opening == 0)  # a dial that nobody waits for ends by itself
    assert pool.request("GET", "/again", timeout=AT_ONCE).data == b"hello"


@dataclass
class HeldDial:
    """A dial that does not begin before it is told."""

    thread: threading.Thread
    begin: threading.Event = field(default_factory=threading.Event)
    fault: OSError | None = None

    def succeed(self) -> None:
        self.begin.set()

    def fail(self, fault: OSError) -> None:
        self.fault = fault
        self.begin.set()


def hold_dials(pool: ConnectionPool) -> list[HeldDial]:
    """From now on hold up each dial of a pool; return the list in which they appear, the first at its front."""
    held: list[HeldDial] = []
    opener = pool._opener
    open_it = opener.open

    def open_when_told(timeouts: Timeout, deadline: Deadline | None) -> HTTPConnection:
        dial = HeldDial(threading.current_thread())
        held.append(dial)
        assert dial.begin.wait(BOUND)
        if dial.fault is not None:
            raise dial.fault
        return open_it(timeouts, deadline)

    opener.open = open_when_told  # type: ignore[method-assign]  # a gate in front of it
    return held


def begin_dial(threads: ThreadPoolExecutor, held: list[HeldDial], work: Callable[[], T]) -> tuple[Future[T], HeldDial]:
    """Do some work in a thread, and return when it has begun to dial."""
    before = len(held)
    future = threads.submit(work)
    wait_until(lambda: len(held) == before + 1)
    return future, held[-1]


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
def resolve_to(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[str, int]], None]:
    """Have the name origin.test resolve to an address, and to another one from the next call on."""
    answer: list[tuple[str, int]] = []
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *rest: Any) -> Any:
        return real(*(answer[0] if host == "origin.test" else (host, port)), *rest)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    def resolve(to: tuple[str, int]) -> None:
        answer[:] = [to]

    return resolve


# --- the queue --------------------------------------------------------------------------------------------------------


def test_connections_and_slots_go_to_the_waiters_in_the_order_of_their_coming(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=3)
    lent = [pool.acquire() for _ in range(3)]
    waiters = [queue_up(threads, pool, pool.acquire) for _ in range(20)]
    for number, waiter in enumerate(waiters):
        given_back = lent.pop(0)
        if number % 4 == 3:
            given_back.close()  # then only its slot is to be had
        pool.release(given_back)
        lent.append(waiter.result(BOUND))
        assert gauges(pool) == (0, 3, 0, 19 - number)
        assert not any(other.done() for other in waiters[number + 1 :])
    for conn in lent:
        pool.release(conn)
    assert pool.stats().closed["client_close"] == 5
    finish(pool)


def test_waiter_that_gives_up_in_the_middle_leaves_the_order_of_the_others(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1)
    conn = pool.acquire()
    first = queue_up(threads, pool, pool.acquire)
    second = queue_up(threads, pool, lambda: pool.acquire(timeout=0.05))
    third = queue_up(threads, pool, pool.acquire)
    with pytest.raises(AcquireTimeout, match="2 waiting"):
        second.result(BOUND)
    for waiter in (first, third):
        pool.release(conn)
        assert waiter.result(BOUND) is conn
    pool.release(conn)
    assert counted(pool.stats().acquires) == {"opened": 1, "reused": 2, "timeout": 1}
    finish(pool)


def test_looking_again_does_not_restart_the_limit_of_a_wait(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor, clock: Clock
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1, clock=clock)
    conn = pool.acquire()
    looks: list[float] = []

    def pass_time() -> None:
        looks.append(clock.now)
        clock.now += 0.01
        clock.elsewhere = pass_time

    waiter = queue_up(threads, pool, lambda: pool.acquire(Timeout(acquire=0.1)))
    begun = clock.now
    clock.elsewhere = pass_time
    with pytest.raises(AcquireTimeout, match=r"within 0\.10 s"):
        waiter.result(BOUND)
    clock.elsewhere = None
    assert clock.now - begun < 0.2
    assert len(looks) > 2
    pool.release(conn)
    finish(pool)


# --- late binding: who gets what --------------------------------------------------------------------------------------


def test_caller_that_dials_takes_a_connection_that_is_given_back_meanwhile(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server, maxsize=2)
    conn = pool.acquire()
    held = hold_dials(pool)
    caller, dial = begin_dial(threads, held, pool.acquire)
    assert dial.thread.name == "pooledhttp-dial-127.0.0.1"
    assert dial.thread.daemon
    pool.release(conn)
    assert caller.result(BOUND) is conn
    assert gauges(pool) == (0, 1, 1, 0)
    dial.succeed()
    pool.release(conn)
    finish(pool)
    assert server.accepted == 2
    assert counted(pool.stats().acquires) == {"opened": 1, "reused": 2}


def test_caller_in_front_of_a_black_hole_takes_a_connection_that_is_given_back(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor,
    resolve_to: Callable[[tuple[str, int]], None], hole: tuple[str, int],
) -> None:  # fmt: skip
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server, host="origin.test", maxsize=2, timeout=Timeout(connect=0.4))
    resolve_to(server.address)
    conn = pool.acquire()
    resolve_to(hole)
    caller = threads.submit(lambda: pool.request("GET", "/").data)
    wait_until(lambda: pool.stats().opening == 1)
    pool.release(conn)
    assert caller.result(BOUND) == b"hello"
    assert gauges(pool) == (1, 0, 1, 0)
    finish(pool)  # by then the dial has ended, within its own limit
    stats = pool.stats()
    assert counted(stats.connect_failures) == {"timeout": 1}
    assert counted(stats.requests) == {"2xx": 2}


def test_what_a_dial_brings_for_a_caller_that_was_served_goes_to_the_oldest_waiter(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server, maxsize=2)
    conn = pool.acquire()
    held = hold_dials(pool)
    caller, dial = begin_dial(threads, held, pool.acquire)
    first = queue_up(threads, pool, pool.acquire)
    second = queue_up(threads, pool, pool.acquire)
    pool.release(conn)
    assert caller.result(BOUND) is conn
    assert not first.done()
    dial.succeed()
    brought = first.result(BOUND)
    assert brought is not conn
    exchange(brought)
    assert not second.done()
    pool.release(brought)
    assert second.result(BOUND) is brought
    for lent in (conn, brought):
        pool.release(lent)
    stats = pool.stats()
    assert counted(stats.acquires) == {"opened": 2, "reused": 2}
    assert stats.wait.count == 4
    finish(pool)


def test_what_a_dial_brings_when_nobody_waits_becomes_idle(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor, clock: Clock
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=2, clock=clock, idle_timeout=60, max_age=None)
    conn = pool.acquire()
    held = hold_dials(pool)
    caller, dial = begin_dial(threads, held, pool.acquire)
    pool.release(conn)
    caller.result(BOUND)
    clock.now += 7
    dial.succeed()
    wait_until(lambda: gauges(pool) == (1, 1, 0, 0))
    assert pool.last_used == clock.now
    clock.now += 59
    brought = pool.acquire(AT_ONCE)
    assert brought is not conn
    exchange(brought)
    for lent in (conn, brought):
        pool.release(lent)
    finish(pool)


def test_caller_that_dials_goes_before_those_that_wait(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=3)
    conn = pool.acquire()
    held = hold_dials(pool)
    first, first_dial = begin_dial(threads, held, pool.acquire)
    second, second_dial = begin_dial(threads, held, pool.acquire)
    third = queue_up(threads, pool, pool.acquire)
    for caller in (first, second, third):
        pool.release(conn)
        assert caller.result(BOUND) is conn
        assert gauges(pool)[1:3] == (1, 2)
    pool.release(conn)
    for dial in (first_dial, second_dial):
        dial.succeed()
    wait_until(lambda: gauges(pool) == (3, 0, 0, 0))
    finish(pool)


def test_dial_that_is_quicker_serves_the_caller_that_began_it(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    """Its connection, though another caller has dialled for longer."""
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=3)
    conn = pool.acquire()
    held = hold_dials(pool)
    slow, slow_dial = begin_dial(threads, held, pool.acquire)
    quick, quick_dial = begin_dial(threads, held, pool.acquire)
    quick_dial.succeed()
    pool.release(quick.result(BOUND))
    assert slow.result(BOUND) is quick.result(BOUND)  # given back, it comes to the one who still dials
    slow_dial.succeed()
    for lent in (conn, slow.result(BOUND)):
        pool.release(lent)
    wait_until(lambda: gauges(pool) == (3, 0, 0, 0))
    finish(pool)


def test_caller_dials_by_himself_where_nothing_can_come_back(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=2)
    held = hold_dials(pool)
    caller, dial = begin_dial(threads, held, pool.acquire)
    assert dial.thread.name.startswith("borrower")
    dial.succeed()
    pool.release(caller.result(BOUND))
    finish(pool)


def test_caller_dials_by_himself_where_connections_do_not_come_back_open(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    pool = make_pool(scripted_server([ExpectHead(), Respond(body=b"hello", close=True)], default=ANSWERS), maxsize=3)
    assert pool.request("GET", "/").data == b"hello"
    conn = pool.acquire()
    held = hold_dials(pool)
    caller, dial = begin_dial(threads, held, pool.acquire)
    assert dial.thread.name.startswith("borrower")
    dial.succeed()
    pool.release(caller.result(BOUND))  # open, so the next one does not dial alone
    lent = pool.acquire()
    caller, dial = begin_dial(threads, held, pool.acquire)
    assert dial.thread.name.startswith("pooledhttp-dial")
    dial.succeed()
    for back in (conn, lent, caller.result(BOUND)):
        pool.release(back)
    finish(pool)


def test_waiter_that_gets_a_slot_still_takes_what_comes_first(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1)
    conn = pool.acquire()
    held = hold_dials(pool)
    caller = queue_up(threads, pool, pool.acquire)
    pool.resize(2)
    wait_until(lambda: len(held) == 1)
    assert gauges(pool) == (0, 1, 1, 0)
    pool.release(conn)
    assert caller.result(BOUND) is conn
    held[0].succeed()
    pool.release(conn)
    finish(pool)


# --- late binding: what goes wrong ------------------------------------------------------------------------------------


def test_failure_of_a_dial_reaches_the_caller_that_began_it_and_nobody_else(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=3)
    conn = pool.acquire()
    held = hold_dials(pool)
    unlucky, failing = begin_dial(threads, held, pool.acquire)
    other, succeeding = begin_dial(threads, held, pool.acquire)
    waiter = queue_up(threads, pool, pool.acquire)
    failing.fail(ConnectionRefusedError("nobody there"))
    with pytest.raises(ConnectionRefusedError, match="nobody there"):
        unlucky.result(BOUND)
    wait_until(lambda: len(held) == 3)  # its slot is the waiter's
    assert gauges(pool) == (0, 1, 2, 0)
    assert not other.done()
    for dial in (succeeding, held[2]):
        dial.succeed()
    for lent in (conn, other.result(BOUND), waiter.result(BOUND)):
        exchange(lent)
        pool.release(lent)
    stats = pool.stats()
    assert counted(stats.connect_failures) == {"refused": 1}
    assert counted(stats.acquires) == {"opened": 3, "error": 1}
    finish(pool)


def test_failure_of_a_dial_whose_caller_was_served_reaches_nobody(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=2)
    conn = pool.acquire()
    held = hold_dials(pool)
    caller, failing = begin_dial(threads, held, pool.acquire)
    waiter = queue_up(threads, pool, pool.acquire)
    pool.release(conn)
    caller.result(BOUND)
    failing.fail(ConnectionRefusedError("nobody there"))
    wait_until(lambda: len(held) == 2)  # the waiter dials in its slot
    held[1].succeed()
    for lent in (conn, waiter.result(BOUND)):
        pool.release(lent)
    stats = pool.stats()
    assert counted(stats.connect_failures) == {"refused": 1}
    assert counted(stats.acquires) == {"opened": 2, "reused": 1}
    assert "last attempt to connect that failed: ConnectionRefusedError: nobody there" in pool.explain()
    finish(pool)


def test_connect_limit_holds_for_a_dial_in_a_thread_of_its_own(
    scripted_server: ServerFactory, make_pool: PoolMaker, resolve_to: Callable[[tuple[str, int]], None],
    hole: tuple[str, int],
) -> None:  # fmt: skip
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server, host="origin.test", maxsize=2, timeout=Timeout(connect=0.1))
    resolve_to(server.address)
    conn = pool.acquire()
    resolve_to(hole)
    with pytest.raises(ConnectTimeout, match=r"no connection to origin\.test:\d+ within 0\.10 s: connecting took"):
        pool.acquire()
    assert gauges(pool) == (0, 1, 0, 0)
    pool.release(conn)
    finish(pool)


def test_total_holds_for_a_dial_in_a_thread_of_its_own_that_has_no_other_limit(
    scripted_server: ServerFactory, make_pool: PoolMaker, resolve_to: Callable[[tuple[str, int]], None],
    hole: tuple[str, int],
) -> None:  # fmt: skip
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server, host="origin.test", maxsize=2)
    resolve_to(server.address)
    conn = pool.acquire()
    resolve_to(hole)
    with pytest.raises(TotalTimeout, match=r"GET / took longer than its total of 0\.10 s \(acquire .* s, connect 0\.1"):
        pool.request("GET", "/", timeout=Timeout(connect=None, total=0.1))
    wait_until(lambda: gauges(pool) == (0, 1, 0, 0))  # the dial has ended too
    pool.release(conn)
    finish(pool)


def test_total_of_a_caller_that_dials_fires_and_the_dial_goes_on_for_whoever_comes_next(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor, clock: Clock
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=2, clock=clock)
    conn = pool.acquire()
    held = hold_dials(pool)
    caller, dial = begin_dial(threads, held, lambda: pool.request("GET", "/v1/orders", timeout=0.2))
    clock.now += 0.5
    with pytest.raises(TotalTimeout) as caught:
        caller.result(BOUND)
    assert str(caught.value) == "GET /v1/orders took longer than its total of 0.20 s (acquire 0.00 s, connect 0.50 s)"
    assert gauges(pool) == (0, 1, 1, 0)
    assert "opening 0.5 s for whoever comes next" in pool.explain()
    waiter = queue_up(threads, pool, pool.acquire)
    dial.succeed()
    for lent in (conn, waiter.result(BOUND)):
        exchange(lent)
        pool.release(lent)
    stats = pool.stats()
    assert counted(stats.connect_failures) == {}
    assert counted(stats.requests) == {"timeout": 1}
    finish(pool)


def test_total_is_one_over_waiting_and_dialling(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor, clock: Clock
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1, clock=clock)
    conn = pool.acquire()
    held = hold_dials(pool)
    caller = queue_up(threads, pool, lambda: pool.request("GET", "/", timeout=0.5))
    clock.now += 0.3
    pool.resize(2)
    wait_until(lambda: len(held) == 1)
    clock.now += 0.25
    with pytest.raises(TotalTimeout, match=r"its total of 0\.50 s \(acquire 0\.30 s, connect 0\.25 s\)$"):
        caller.result(BOUND)
    held[0].succeed()
    wait_until(lambda: gauges(pool) == (1, 1, 0, 0))
    pool.release(conn)
    finish(pool)


def test_seconds_given_to_acquire_are_accounted_for_phase_by_phase(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor, clock: Clock
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1, clock=clock)
    conn = pool.acquire()
    held = hold_dials(pool)
    caller = queue_up(threads, pool, lambda: pool.acquire(timeout=0.5))
    clock.now += 0.3
    pool.resize(2)
    wait_until(lambda: len(held) == 1)
    clock.now += 0.25
    with pytest.raises(TotalTimeout) as caught:
        caller.result(BOUND)
    assert str(caught.value) == (
        f"acquiring a connection to {pool.origin} took longer than its total of 0.50 s (acquire 0.30 s, connect 0.25 s)"
    )
    held[0].succeed()
    wait_until(lambda: gauges(pool) == (1, 1, 0, 0))
    pool.release(conn)
    finish(pool)


def test_total_is_one_over_a_wait_a_dead_connection_and_the_dial_in_its_place(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor, clock: Clock
) -> None:
    over = threading.Event()
    server = scripted_server(ANSWERS, [*ANSWER, Stall(until=over), Close()], default=ANSWERS)
    pool = make_pool(server, maxsize=2, clock=clock)
    other, conn = pool.acquire(), pool.acquire()
    exchange(conn)
    held = hold_dials(pool)
    caller = queue_up(threads, pool, lambda: pool.request("GET", "/", timeout=0.5))
    clock.now += 0.3
    over.set()
    wait_until(lambda: conn.sock.recv(1, socket.MSG_PEEK) == b"")
    pool.release(conn)  # as if it were alive; the waiter finds it dead
    wait_until(lambda: len(held) == 1)
    clock.now += 0.25
    with pytest.raises(TotalTimeout, match=r"its total of 0\.50 s \(acquire 0\.30 s, connect 0\.25 s\)$"):
        caller.result(BOUND)
    held[0].succeed()
    wait_until(lambda: gauges(pool) == (1, 1, 0, 0))
    pool.release(other)
    finish(pool)


def test_acquire_limit_is_for_the_slot_and_not_for_the_dial(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor, clock: Clock
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=2, clock=clock)
    conn = pool.acquire()
    held = hold_dials(pool)
    caller, dial = begin_dial(threads, held, lambda: pool.acquire(AT_ONCE))
    clock.now += 4
    dial.succeed()
    for lent in (conn, caller.result(BOUND)):
        pool.release(lent)
    finish(pool)


def test_callers_that_dial_are_not_among_the_waiters_that_are_bounded(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=3, max_waiters=1)
    conn = pool.acquire()
    held = hold_dials(pool)
    callers = [begin_dial(threads, held, pool.acquire)[0] for _ in range(2)]
    callers.append(queue_up(threads, pool, pool.acquire))
    with pytest.raises(PoolFull, match=r"1 callers wait for .* \(1 leased of 3, 0 idle, 2 opening, 1 waiting\)"):
        pool.acquire()
    for dial in held:
        dial.succeed()
    pool.release(conn)
    for caller in callers:
        pool.release(caller.result(BOUND))
    assert counted(pool.stats().acquires)["rejected"] == 1
    finish(pool)


def test_caller_that_dials_is_told_at_once_that_the_pool_is_closed(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=2)
    conn = pool.acquire()
    held = hold_dials(pool)
    caller, dial = begin_dial(threads, held, pool.acquire)
    pool.close()
    with pytest.raises(PoolClosed):
        caller.result(BOUND)
    dial.succeed()
    wait_until(lambda: gauges(pool) == (0, 1, 0, 0))
    assert counted(pool.stats().closed) == {"pool_closed": 1}
    exchange(conn)
    pool.release(conn)
    stats = pool.stats()
    assert (stats.opened, counted(stats.closed)) == (2, {"pool_closed": 2})


@pytest.mark.parametrize("comes_back", ["open", "closed"])
def test_caller_that_dials_while_the_pool_is_made_smaller_still_gets_its_connection(
    comes_back: str, scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    """As if it had been lent already; and nothing that happens to the others may leave it waiting for ever."""
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=2)
    conn = pool.acquire()
    held = hold_dials(pool)
    caller, dial = begin_dial(threads, held, pool.acquire)
    pool.resize(1)
    dial.succeed()
    brought = caller.result(BOUND)
    exchange(brought)
    if comes_back == "closed":
        conn.close()
    pool.release(conn)
    pool.release(brought)
    assert gauges(pool) == (1, 0, 0, 0)
    finish(pool)


def test_what_a_dial_brings_beyond_a_limit_that_was_lowered_is_closed(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=2)
    conn = pool.acquire()
    held = hold_dials(pool)
    caller, dial = begin_dial(threads, held, pool.acquire)
    pool.release(conn)
    caller.result(BOUND)
    pool.resize(1)
    dial.succeed()
    wait_until(lambda: gauges(pool) == (0, 1, 0, 0))
    assert counted(pool.stats().closed) == {"evicted": 1}
    pool.release(conn)
    finish(pool)


def test_interrupted_caller_leaves_its_dial_to_the_oldest_waiter(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor, clock: Clock
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=2, clock=clock)
    conn = pool.acquire()
    held = hold_dials(pool)
    caller, dial = begin_dial(threads, held, lambda: pool.acquire(timeout=0.05))

    def interrupt() -> None:
        raise KeyboardInterrupt

    clock.elsewhere = interrupt
    with pytest.raises(KeyboardInterrupt):
        caller.result(BOUND)
    waiter = queue_up(threads, pool, pool.acquire)
    dial.succeed()
    for lent in (conn, waiter.result(BOUND)):
        exchange(lent)
        pool.release(lent)
    assert counted(pool.stats().acquires) == {"opened": 2, "error": 1}
    finish(pool)


def test_caller_that_is_interrupted_as_it_gets_a_connection_passes_its_slot_on(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor, clock: Clock
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=2, clock=clock)
    conn = pool.acquire()
    held = hold_dials(pool)
    caller, dial = begin_dial(threads, held, lambda: pool.acquire(timeout=0.05))

    def give_and_interrupt() -> None:
        pool.release(conn)
        raise KeyboardInterrupt

    waiter = queue_up(threads, pool, pool.acquire)
    clock.elsewhere = give_and_interrupt
    with pytest.raises(KeyboardInterrupt):
        caller.result(BOUND)
    wait_until(lambda: len(held) == 2)  # in the slot of the connection that nobody could take
    dial.succeed()
    lent = waiter.result(BOUND)  # what the first dial brings comes first
    exchange(lent)
    held[1].succeed()
    pool.release(lent)
    wait_until(lambda: gauges(pool) == (2, 0, 0, 0))
    assert counted(pool.stats().closed) == {"error": 1}
    finish(pool)


def refuse_threads(monkeypatch: pytest.MonkeyPatch, then: Callable[[], object] = lambda: None) -> list[str]:
    """Let the package start no thread; return the list of those that it has tried to."""
    tried: list[str] = []
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if not thread.name.startswith("pooledhttp-"):
            start(thread)
            return
        tried.append(thread.name)
        then()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    return tried


def test_caller_dials_by_himself_when_no_thread_can_be_started(
    scripted_server: ServerFactory, make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=2)
    conn = pool.acquire()
    tried = refuse_threads(monkeypatch)
    with pool.connection() as other:
        exchange(other)
        assert gauges(pool) == (0, 2, 0, 0)
    assert tried == ["pooledhttp-dial-127.0.0.1"]
    pool.release(conn)
    assert counted(pool.stats().acquires) == {"opened": 2}
    finish(pool)


def test_connection_that_comes_back_while_no_thread_can_be_started_is_taken(
    scripted_server: ServerFactory, make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server, maxsize=2)
    conn = pool.acquire()
    refuse_threads(monkeypatch, then=lambda: pool.release(conn))
    with pool.connection() as lent:
        assert lent is conn
        assert gauges(pool) == (0, 1, 0, 0)
    finish(pool)
    assert server.accepted == 1


# --- a thread that waits for itself -----------------------------------------------------------------------------------


def test_thread_that_holds_every_connection_is_told_at_once(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock
) -> None:
    server = scripted_server(default=[ExpectHead(optional=True), KeepOpen()])
    pool = make_pool(server, maxsize=2, clock=clock, timeout=Timeout(acquire=None))
    oldest = pool.acquire()
    oldest.request("GET", "http://user:secret@elsewhere.test/v1/export")
    clock.now += 12.4
    younger = pool.acquire()
    with pytest.raises(SelfDeadlock) as caught:
        pool.acquire()
    error = caught.value
    assert str(error) == (
        f"no connection to http://127.0.0.1:{server.port}: MainThread holds all that could be given back, and would "
        f"wait for itself (2 leased of 2, 0 idle, 0 opening, 0 waiting; leased 12.4 s by MainThread, "
        f"GET http://elsewhere.test/v1/export, waiting for the head; 0.0 s by MainThread, between two requests): give "
        f"one back first, or raise maxsize"
    )
    assert (error.maxsize, error.leased, error.idle, error.opening, error.waiting) == (2, 2, 0, 0, 0)
    assert error.oldest_lease == "12.4 s by MainThread, GET http://elsewhere.test/v1/export, waiting for the head"
    assert isinstance(error, AcquireTimeout)
    assert isinstance(error, TimeoutError)
    assert not hasattr(error, "__notes__")
    for conn in (oldest, younger):
        pool.release(conn)
    assert counted(pool.stats().acquires) == {"opened": 2, "timeout": 1}


def acquire_here(pool: ConnectionPool) -> HTTPConnection:
    return pool.acquire()


def acquire_there(pool: ConnectionPool) -> HTTPConnection:
    return pool.acquire()


def test_notes_tell_where_each_connection_was_acquired_if_that_is_written_down(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=2, clock=clock, leak_after=3600)
    first = acquire_here(pool)
    clock.now += 1
    second = acquire_there(pool)
    with pytest.raises(SelfDeadlock) as caught:
        pool.acquire()
    older, younger = caught.value.__notes__
    assert older.startswith("leased 1.0 s by MainThread, between two requests, acquired here:\n")
    assert re.search(rf'File "{re.escape(__file__)}", line \d+, in acquire_here\n +return pool\.acquire\(\)$', older)
    assert younger.startswith("leased 0.0 s by MainThread, between two requests, acquired here:\n")
    assert re.search(r"in acquire_there\n", younger)
    for conn in (first, second):
        pool.release(conn)
    finish(pool)


def test_request_inside_a_block_that_holds_the_only_connection_is_told(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1)
    with pool.stream("GET", "/") as response:
        with pytest.raises(SelfDeadlock, match="GET /, reading the response"):
            pool.request("GET", "/inner")
        assert response.read() == b"hello"
    assert counted(pool.stats().requests) == {"2xx": 1, "timeout": 1}
    finish(pool)


def test_thread_that_gives_one_back_after_a_self_deadlock_goes_on(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=2)
    conns = [pool.acquire() for _ in range(2)]
    with pytest.raises(AcquireTimeout):  # what callers catch already
        pool.acquire()
    pool.release(conns.pop())
    conns.append(pool.acquire(AT_ONCE))
    for conn in conns:
        pool.release(conn)
    finish(pool)


def test_caller_that_does_not_wait_cannot_deadlock(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1)
    with pool.connection():
        for timeout in (0, AT_ONCE):
            with pytest.raises(AcquireTimeout, match=r"within 0\.00 s") as caught:
                pool.acquire(timeout)
            assert type(caught.value) is AcquireTimeout
    finish(pool)


def test_thread_waits_as_long_as_another_one_holds_a_connection(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=2)
    elsewhere = pool.acquire()

    def borrow_twice() -> None:
        with pool.connection(), pool.connection() as second:
            assert second is elsewhere

    borrower = queue_up(threads, pool, borrow_twice)
    pool.release(elsewhere)
    borrower.result(BOUND)
    finish(pool)


def test_thread_waits_as_long_as_a_connection_is_still_being_opened(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=2)
    mine, asking = threading.Event(), threading.Event()

    def borrow_twice() -> None:
        with pool.connection():
            mine.set()
            assert asking.wait(BOUND)
            with pool.connection() as second:
                exchange(second)

    borrower = threads.submit(borrow_twice)
    assert mine.wait(BOUND)
    held = hold_dials(pool)
    other, dial = begin_dial(threads, held, pool.acquire)
    asking.set()
    wait_until(lambda: gauges(pool) == (0, 1, 1, 1))
    dial.succeed()
    pool.release(other.result(BOUND))
    borrower.result(BOUND)
    finish(pool)


def test_thread_waits_while_its_own_late_dial_may_still_bring_a_connection(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    """The dial's own caller has been served; what it brings is for whoever waits."""
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=2)
    conn = pool.acquire()
    held = hold_dials(pool)

    def borrow_twice() -> None:
        with pool.connection() as first, pool.connection() as second:
            assert first is conn
            exchange(second)

    borrower, dial = begin_dial(threads, held, borrow_twice)
    pool.release(conn)
    wait_until(lambda: gauges(pool) == (0, 1, 1, 1))
    dial.succeed()
    borrower.result(BOUND)
    finish(pool)


def test_thread_that_holds_all_of_max_total_over_several_origins_is_told(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    one, two, three = (scripted_server(default=ANSWERS) for _ in range(3))
    with PoolManager(max_total=2, registry=None, timeout=PATIENT) as manager:
        with manager.connection(one.url), manager.connection(two.url) as second:
            with pytest.raises(SelfDeadlock) as caught:
                manager.request("GET", three.url)
            assert str(caught.value).startswith(
                f"no connection to {three.url}: MainThread holds all that could be given back, and would wait for "
                f"itself (0 leased of 10, 0 idle, 0 opening, 0 waiting; 2 of 2 over all origins; leased 0.0 s by Main"
            )
            assert str(caught.value).endswith("give one back first, or raise max_total")
            manager.pool(two.url).release(second)
            assert manager.request("GET", three.url).data == b"hello"  # the idle one makes room
        for pool in manager.pools():
            audit.watch(pool)


def test_thread_waits_as_long_as_another_one_holds_a_connection_to_another_origin(
    scripted_server: ServerFactory, audit: ResourceAudit, threads: ThreadPoolExecutor
) -> None:
    one, two = (scripted_server(default=ANSWERS) for _ in range(2))
    with PoolManager(max_total=2, registry=None, timeout=PATIENT) as manager:
        elsewhere = manager.pool(one.url).acquire()

        def borrow_twice() -> None:
            with manager.connection(two.url), manager.connection(two.url) as second:
                exchange(second)

        borrower = queue_up(threads, manager.pool(two.url), borrow_twice)
        manager.pool(one.url).release(elsewhere)
        borrower.result(BOUND)
        for pool in manager.pools():
            audit.watch(pool)


def test_pool_that_is_full_itself_names_its_own_limit_whatever_max_total_allows(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    one, two = (scripted_server(default=ANSWERS) for _ in range(2))
    with PoolManager(max_total=5, maxsize=1, registry=None, timeout=PATIENT) as manager:
        own_limit = pytest.raises(SelfDeadlock, match=r"\(1 leased of 1, .*; 2 of 5 over all .* or raise maxsize$")
        with manager.connection(one.url), manager.connection(two.url), own_limit:
            manager.pool(one.url).acquire()
        for pool in manager.pools():
            audit.watch(pool)
            finish(pool)


def test_error_describes_the_oldest_ten_of_many_leases(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=12, clock=clock)
    conns = []
    for _ in range(12):
        conns.append(pool.acquire())
        clock.now += 1
    with pytest.raises(SelfDeadlock, match=r"12 leased of 12") as caught:
        pool.acquire()
    assert re.findall(r"(\d+\.0) s by MainThread", str(caught.value)) == [f"{age}.0" for age in range(12, 2, -1)]
    for conn in conns:
        pool.release(conn)
    finish(pool)


def test_waiters_of_a_thousand_rounds_leave_nothing_behind(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    """Whoever dialled, waited, timed out or was served: queues and slots are empty when all have gone."""
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=3)
    together = threading.Barrier(8)
    outcomes: list[str] = []

    def borrow(number: int) -> None:
        together.wait(BOUND)
        for round_number in range(60):
            patience = 0.0005 if (number + round_number) % 4 == 0 else BOUND
            try:
                with pool.connection(Timeout(acquire=patience, connect=BOUND, read=BOUND)) as conn:
                    exchange(conn)
                    if (number + round_number) % 7 == 0:
                        conn.close()
            except AcquireTimeout:
                outcomes.append("timeout")
            else:
                outcomes.append("served")

    for borrower in [threads.submit(functools.partial(borrow, number)) for number in range(8)]:
        borrower.result(BOUND * 3)
    wait_until(lambda: pool.stats().opening == 0)
    assert len(outcomes) == 480
    stats = pool.stats()
    assert (stats.leased, stats.waiting, len(pool._late)) == (0, 0, 0)
    assert stats.acquires["timeout"] == outcomes.count("timeout")
    assert stats.acquires["opened"] + stats.acquires["reused"] == outcomes.count("served")
    finish(pool)
