"""The pool between two steps: closed, resized, collected or out of room in the one moment in which it matters.

Where a moment between two steps matters, a probe, a clock or a lock of the test brings it about; nothing is left to
chance.  Every wait is bounded, and what would hang runs in a thread of its own.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Protocol, TypeVar, Unpack, cast

import pytest

from pooledhttp import (
    AcquireTimeout,
    ConnectionPool,
    HTTPConnection,
    PoolClosed,
    PoolConfig,
    PoolManager,
    Timeout,
    TotalTimeout,
)
from pooledhttp.config import PoolOptions
from pooledhttp.stats import CloseReason
from pooledhttp.testing import ExpectHead, Repeat, ResourceAudit, Respond, ScriptedServer, ServerFactory, Stall
from pooledhttp.timeouts import Deadline
from pooledhttp.transport import Transport
from tests.waits import wait_until

BOUND = 10.0
SOON = 3.0
PATIENT = Timeout(acquire=BOUND, connect=BOUND, read=BOUND, write=BOUND)
AT_ONCE = Timeout(acquire=0, connect=BOUND, read=BOUND, write=BOUND)
ANSWER = [ExpectHead(), Respond(body=b"hello")]
ANSWERS = [Repeat(ANSWER)]

T = TypeVar("T")


# --- what the tests stand on ------------------------------------------------------------------------------------------


class Clock:
    """Seconds that pass only when told; each look may run a hook first."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.hook: Callable[[], object] | None = None

    def __call__(self) -> float:
        if self.hook is not None:
            self.hook()
        return self.now


class PoolMaker(Protocol):
    def __call__(self, server: ScriptedServer, **options: Unpack[PoolOptions]) -> ConnectionPool: ...


@pytest.fixture
def make_pool(scripted_server: ServerFactory, audit: ResourceAudit) -> Iterator[PoolMaker]:
    """Make pools that are closed when the test is over, and whose counters the audit then adds up."""
    with contextlib.ExitStack() as stack:

        def make(server: ScriptedServer, **options: Unpack[PoolOptions]) -> ConnectionPool:
            settings: PoolOptions = {"registry": None, "timeout": PATIENT, **options}
            pool = stack.enter_context(ConnectionPool(server.host, server.port, config=PoolConfig(**settings)))
            audit.watch(pool)
            return pool

        yield make


class ManagerMaker(Protocol):
    def __call__(self, *, max_total: int, **options: Unpack[PoolOptions]) -> tuple[ConnectionPool, ConnectionPool]: ...


@pytest.fixture
def make_two(scripted_server: ServerFactory, audit: ResourceAudit) -> Iterator[ManagerMaker]:
    """Make the pools of two origins that share a total."""
    with contextlib.ExitStack() as stack:

        def make(*, max_total: int, **options: Unpack[PoolOptions]) -> tuple[ConnectionPool, ConnectionPool]:
            settings: PoolOptions = {"registry": None, "timeout": PATIENT, **options}
            manager = stack.enter_context(PoolManager(max_total=max_total, config=PoolConfig(**settings)))
            one, other = (manager.pool(scripted_server(default=ANSWERS).url) for _ in range(2))
            audit.watch(one)
            audit.watch(other)
            return one, other

        yield make


@pytest.fixture
def threads(audit: ResourceAudit) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8, thread_name_prefix="borrower") as executor:
        yield executor


def queue_up(threads: ThreadPoolExecutor, pool: ConnectionPool, work: Callable[[], T]) -> Future[T]:
    before = pool.stats().waiting
    future = threads.submit(work)
    wait_until(lambda: pool.stats().waiting == before + 1)
    return future


def in_a_thread(work: Callable[[], object], *, seconds: float = SOON) -> list[object]:
    """Do some work in a thread that may hang; return what it returned or raised, or nothing if it hangs."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as fault:  # noqa: BLE001  # it is looked at by the test
            outcome.append(fault)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return outcome


def finish(pool: ConnectionPool) -> None:
    """One normal request, without waiting for a slot: whatever happened before has left the pool in order."""
    wait_until(lambda: pool.stats().opening == 0)
    assert pool.request("GET", "/again", timeout=AT_ONCE).data == b"hello"


def replace_opening(pool: ConnectionPool, open_it: Callable[[], HTTPConnection | None]) -> None:
    """Have something else happen first when a connection is opened; what it returns or raises stands, unless `None`."""
    opener = pool._opener
    real = opener.open

    def open_otherwise(timeouts: Timeout, deadline: Deadline | None) -> HTTPConnection:
        return open_it() or real(timeouts, deadline)

    opener.open = open_otherwise  # type: ignore[method-assign]  # a gate in front of it


# --- late binding -----------------------------------------------------------------------------------------------------


def test_caller_whose_dead_connection_is_to_be_replaced_when_the_pool_is_closed_is_told(
    scripted_server: ServerFactory, make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dials late, behind the back of close(), and nobody tells it that its dial has ended."""
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=3)
    lent, idle = pool.acquire(), pool.acquire()
    pool.release(idle)
    del idle

    def closing_probe(_: Transport) -> CloseReason:
        pool.close()
        return CloseReason.STALE_EOF

    with monkeypatch.context() as patched:
        patched.setattr(Transport, "is_quiet", lambda _: False)
        patched.setattr(Transport, "staleness", closing_probe)
        outcome = in_a_thread(pool.acquire)
    assert outcome, "it waits for ever"
    assert isinstance(outcome[0], PoolClosed)
    pool.release(lent)


def test_failure_of_a_late_dial_is_kept_alive_by_whoever_catches_it_alone(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    """A claim that keeps its fault is kept by it in turn, and both keep every frame of the caller."""
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=3)
    lent = pool.acquire()

    def refuse() -> None:
        raise ConnectionRefusedError("played")

    replace_opening(pool, refuse)

    class Large:
        """What the caller has in a local variable."""

    def fail() -> weakref.ref[Large]:
        large = Large()
        with contextlib.suppress(ConnectionRefusedError):
            pool.request("GET", "/")
        return weakref.ref(large)

    gc.collect()
    gc.disable()
    try:
        large = fail()
        wait_until(lambda: pool.stats().opening == 0)
        wait_until(lambda: large() is None)  # the dial's thread has the fault until it ends
    finally:
        gc.enable()
    pool.release(lent)
    finish(pool)


def test_late_dial_whose_end_fails_leaves_neither_caller_nor_slot_waiting(
    scripted_server: ServerFactory, make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails in the thread of a dial, the one who waits for it gets its fault, or a connection after all."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    clock = Clock()
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=3, clock=clock)
    lent = pool.acquire()

    def fail_in_the_dials_thread() -> None:
        if threading.current_thread().name.startswith("pooledhttp-dial"):
            raise MemoryError("played")

    clock.hook = fail_in_the_dials_thread
    outcome = in_a_thread(pool.acquire)
    clock.hook = None
    assert outcome, "it waits for ever"
    got = outcome.pop()
    assert isinstance(got, (MemoryError, HTTPConnection))
    if isinstance(got, HTTPConnection):
        pool.release(got)
    assert pool.stats().opening == 0
    pool.release(lent)
    finish(pool)


def test_slot_of_a_failed_dial_goes_to_the_waiter_and_not_to_whoever_comes_later(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    clock = Clock()
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1, clock=clock)
    is_queued = threading.Event()
    dials: list[None] = []

    def refuse_the_first() -> None:
        dials.append(None)
        if len(dials) == 1:
            assert is_queued.wait(BOUND)
            raise ConnectionRefusedError("played")

    replace_opening(pool, refuse_the_first)
    failing = threads.submit(pool.acquire)
    wait_until(lambda: len(dials) == 1)
    waiter = queue_up(threads, pool, pool.acquire)
    come_later: list[Future[HTTPConnection]] = []

    def come_when_the_slot_is_free() -> None:
        clock.hook = None
        stats = pool.stats()
        if (stats.opening, stats.waiting) == (0, 1):
            come_later.append(threads.submit(pool.acquire))
            wait_until(lambda: pool.stats().waiting == 2 or len(dials) == 2)
        else:
            clock.hook = come_when_the_slot_is_free

    clock.hook = come_when_the_slot_is_free
    is_queued.set()
    assert isinstance(failing.exception(BOUND), ConnectionRefusedError)
    clock.hook = None
    wait_until(lambda: waiter.done() or any(late.done() for late in come_later))
    has_been_passed = not waiter.done()
    for future in (*come_later, waiter) if has_been_passed else (waiter, *come_later):
        pool.release(future.result(BOUND))
    assert not has_been_passed, "whoever came later was served first"
    finish(pool)


# --- the lock and the garbage collector -------------------------------------------------------------------------------


class CollectingLock:
    """A pool's lock under which the garbage collector runs, as it may at every allocation."""

    def __init__(self, inner: threading.Lock) -> None:
        self.inner = inner

    def __enter__(self) -> None:
        self.inner.__enter__()
        gc.collect()

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.inner.__exit__(kind, fault, trace)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def test_generator_that_is_collected_in_the_middle_of_an_acquire_gives_its_connection_back(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    """Its ``with`` block ends inside the collector, in a thread that holds the pool's lock already."""
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=3)
    lock = pool._lock

    def lines() -> Iterator[bytes]:
        with pool.connection() as conn:
            conn.request("GET", "/")
            yield conn.getresponse().read()

    def abandon_one_and_acquire() -> HTTPConnection:
        unfinished = lines()
        next(unfinished)
        cycle: list[object] = [unfinished]
        cycle.append(cycle)
        del unfinished, cycle
        pool._lock = cast("threading.Lock", CollectingLock(lock))
        return pool.acquire()

    outcome = in_a_thread(abandon_one_and_acquire)
    if not outcome:
        lock.release()  # so that the test can end
    pool._lock = lock
    assert outcome, "it waits for itself for ever"
    conn = outcome.pop()
    assert isinstance(conn, HTTPConnection)
    pool.release(conn)
    del conn
    gc.collect()
    finish(pool)


# --- max_total --------------------------------------------------------------------------------------------------------


def test_waiter_whose_pool_is_made_larger_takes_the_room_of_another_origins_idle_connection(
    make_two: ManagerMaker, threads: ThreadPoolExecutor
) -> None:
    one, other = make_two(max_total=2, maxsize=1)
    lent, idle = one.acquire(), other.acquire()
    other.release(idle)
    del idle
    waiter = queue_up(threads, one, lambda: one.acquire(Timeout(acquire=SOON)))
    one.resize(2)
    got = waiter.result(BOUND)
    for conn in (lent, got):
        one.release(conn)
    finish(one)


def test_room_that_is_found_by_looking_for_lost_connections_goes_to_the_waiter_within_maxsize(
    make_two: ManagerMaker, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search serves the waiter first; whoever began it has looked at maxsize before."""
    monkeypatch.setattr("pooledhttp.lending._LOST_CHECK", BOUND)  # so that the waiter does not look first
    one, other = make_two(max_total=2, maxsize=2)
    one.resize(1)
    lost = [other.acquire(), other.acquire()]
    for conn in lost:
        conn.close()
    del conn
    first = queue_up(threads, one, one.acquire)
    lost.clear()
    second = threads.submit(one.acquire)
    got = first.result(BOUND)
    stats = one.stats()
    assert stats.leased + stats.opening <= 1, "more than maxsize"
    one.release(got)
    one.release(second.result(BOUND))
    finish(one)


def test_waiter_for_room_is_told_who_holds_it_at_another_origin(
    make_two: ManagerMaker, threads: ThreadPoolExecutor
) -> None:
    one, other = make_two(max_total=1)
    lent = one.acquire()
    with pytest.raises(AcquireTimeout, match=f"lease.* by {threading.current_thread().name}"):
        threads.submit(lambda: other.acquire(timeout=0)).result(BOUND)
    one.release(lent)
    finish(other)


# --- the manager ------------------------------------------------------------------------------------------------------


def test_pool_that_takes_the_place_of_an_evicted_one_has_the_size_that_was_asked_for_last(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = scripted_server(default=ANSWERS)
    with PoolManager(maxsize=1, registry=None) as manager:
        url = server.url
        block = manager.connection(url)
        manager.resize(5)
        assert manager.pool(url).close_if_unused()
        with block:
            assert manager.pool(url).maxsize == 5


def test_pool_that_is_made_while_the_manager_is_resized_has_the_new_size(
    scripted_server: ServerFactory, audit: ResourceAudit, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = scripted_server(default=ANSWERS)
    with PoolManager(maxsize=1, registry=None) as manager:

        def make(*args: Any, **settings: Any) -> ConnectionPool:
            pool = ConnectionPool(*args, **settings)
            manager.resize(5)
            return pool

        with monkeypatch.context() as patched:
            patched.setattr("pooledhttp.manager.ConnectionPool", make)
            manager.pool(server.url)
        assert manager.pool(server.url).maxsize == 5


def test_pool_that_says_it_was_unused_lends_nothing_any_more(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    """Between the verdict and the closing an idle connection can still be had."""
    clock = Clock()
    pool = make_pool(scripted_server(default=ANSWERS), clock=clock)
    pool.release(pool.acquire())
    outcome: list[object] = []

    def acquire_in_between() -> None:
        if pool.is_closed:
            clock.hook = None
            outcome.extend(in_a_thread(pool.acquire))

    clock.hook = acquire_in_between
    assert pool.close_if_unused()
    clock.hook = None
    leased = pool.stats().leased
    for conn in outcome:
        if isinstance(conn, HTTPConnection):
            pool.release(conn)
    assert leased == 0


# --- what costs too much ----------------------------------------------------------------------------------------------


def test_want_of_a_descriptor_costs_the_other_origins_no_more_than_it_needs(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    others = [make_pool(scripted_server(default=ANSWERS)) for _ in range(4)]
    for other in others:
        other.release(other.acquire())
    pool = make_pool(scripted_server(default=ANSWERS))
    attempts: list[None] = []

    def find_none_left_once() -> None:
        attempts.append(None)
        if len(attempts) == 1:
            raise OSError(errno.EMFILE, "played")

    replace_opening(pool, find_none_left_once)
    pool.release(pool.acquire())
    assert len(attempts) == 2
    assert sum(other.stats().idle for other in others) == 3
    finish(pool)


def test_total_that_runs_out_behind_a_silent_connection_condemns_what_idled_longer_too(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    """As a read timeout does: most callers bound the call, not the silence."""
    skipped = [0.0]
    silent = [*ANSWER, ExpectHead(optional=True), Stall()]
    server = scripted_server(silent, silent, silent, default=ANSWERS)
    pool = make_pool(server, maxsize=3, clock=lambda: time.monotonic() + skipped[0])
    lent = [pool.acquire() for _ in range(3)]
    for conn in lent:
        conn.request("GET", "/")
        assert conn.getresponse().read() == b"hello"
    for conn in lent:
        pool.release(conn)
    del conn, lent
    skipped[0] = 10
    with pytest.raises(TotalTimeout):
        pool.request("POST", "/", body=b"x", timeout=0.1)
    assert pool.stats().idle == 0
    finish(pool)
