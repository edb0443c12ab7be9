"""Two threads, or three, at the same place in the same moment.

The first part meets in the middle of things on purpose: an attempt to connect is held until something else has
happened, a probe until a third has come, or threads start from one barrier many times over.

The second part leaves nothing to the machine.  A few threads run under a scheduler that decides at each lock who goes
on.  For each program it tries every order in which one thread is interrupted once where it need not wait (for some of
two threads every order there is), and then others by chance.  After each: everybody has come back, nobody waits for
what is there, the counters add up, and a normal request works.  A waiter's look once a second at what nobody told him
would hide a wake-up that was lost; here it does not happen.

A longer search, with one interruption more and so many orders by chance:

    POOLEDHTTP_EXAMPLES=2000 python -m pytest --timeout 3600 tests/test_races.py
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import random
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar, cast

import pytest

from pooledhttp import (
    AcquireTimeout,
    ConnectionPool,
    HTTPConnection,
    PoolClosed,
    PoolManager,
    Timeout,
    TotalTimeout,
    leaks,
    lending,
    records,
)
from pooledhttp import manager as manager_room
from pooledhttp.stats import CloseReason
from pooledhttp.testing import ResourceAudit
from tests.fake_connections import (
    BOUND,
    Actor,
    BookKeeper,
    FakeClock,
    NearEnd,
    Origin,
    PlayedPool,
    actors,
    at_rest,
    reach,
    watch,
)
from tests.responses import EXAMPLES

pytestmark = pytest.mark.unmeasured

PATIENT: Final = Timeout(acquire=BOUND, connect=BOUND, read=BOUND, write=BOUND)
AT_ONCE: Final = Timeout(acquire=0, connect=BOUND, read=BOUND, write=BOUND)
TIMES: Final = 60  # how often threads start from one barrier

T = TypeVar("T")


# --- what the tests stand on ------------------------------------------------------------------------------------------


class Stage:
    """A pool with a played origin, and threads to race on it."""

    def __init__(self, stack: contextlib.ExitStack, audit: ResourceAudit) -> None:
        self.changed = threading.Condition()
        self.origin = Origin(self.changed)
        self.clock = FakeClock()
        self._stack = stack
        self._audit = audit
        self._watched: list[tuple[PlayedPool, list[AssertionError]]] = []
        stack.callback(self.origin.close)
        stack.callback(self.origin.let_all_go)

    def pool(self, maxsize: int, **options: object) -> PlayedPool:
        pool = PlayedPool(
            "peer.test",
            **{"registry": None, "timeout": PATIENT, "maxsize": maxsize, "clock": self.clock, **options},  # type: ignore[arg-type]  # checked when it runs
        )
        reach(pool, self.origin)
        self._watched.append((pool, watch(pool, self.changed).broken))
        self._stack.callback(pool.close)
        self._audit.watch(pool)
        return pool

    def actors(self, *names: str) -> list[Actor]:
        return self._stack.enter_context(actors(self.changed, *names))

    def wait_for(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so in a pool; it is looked at whenever the pool's lock has been let go."""
        with self.changed:
            assert self.changed.wait_for(is_so, BOUND)

    def finish(self, pool: PlayedPool) -> None:
        """One normal request, without waiting, if the pool is open; then nothing is left, and nothing was amiss."""
        self.origin.is_refusing = False
        self.origin.let_all_go()
        self.wait_for(lambda: pool.dial_threads == 0)
        with pool._lock:
            at_rest([pool])
        if not pool.is_closed:
            assert pool.request("GET", "/again", timeout=AT_ONCE).data == b"hello"
        stats = pool.stats()
        assert (stats.leased, stats.opening, stats.waiting) == (0, 0, 0)
        assert stats.opened == sum(stats.closed.values()) + stats.idle
        assert sum(not far.is_left for far in self.origin.far_ends) == stats.idle
        for _, broken in self._watched:
            assert not broken, broken[0]


@pytest.fixture
def stage(audit: ResourceAudit) -> Iterator[Stage]:
    with contextlib.ExitStack() as stack:
        yield Stage(stack, audit)


def together(threads: ThreadPoolExecutor, *works: Callable[[], T]) -> list[T | Exception]:
    """Do several things in threads of their own that start from one barrier; return what came of each."""
    barrier = threading.Barrier(len(works))

    def begin(work: Callable[[], T]) -> T:
        barrier.wait(BOUND)
        return work()

    outcomes: list[T | Exception] = []
    for future in [threads.submit(begin, work) for work in works]:
        try:
            outcomes.append(future.result(BOUND))
        except (AcquireTimeout, PoolClosed) as fault:
            outcomes.append(fault.with_traceback(None))
    return outcomes


@pytest.fixture
def threads(audit: ResourceAudit) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4, thread_name_prefix="racer") as executor:
        yield executor


def counted(counts: object) -> dict[str, int]:
    return {str(key): count for key, count in cast("dict[str, int]", counts).items() if count}


def lend(pool: ConnectionPool, timeout: Timeout | None = None) -> str:
    with pool.connection(timeout):
        return "lent"


# --- from one barrier -------------------------------------------------------------------------------------------------


def test_release_and_close_in_one_moment_leave_no_connection(stage: Stage, threads: ThreadPoolExecutor) -> None:
    for _ in range(TIMES):
        pool = stage.pool(1)
        conn = pool.acquire()
        together(threads, partial(pool.release, conn), pool.close)
        assert counted(pool.stats().closed) == {"pool_closed": 1}
        stage.finish(pool)


def test_acquire_and_close_in_one_moment_leave_no_connection(stage: Stage, threads: ThreadPoolExecutor) -> None:
    for _ in range(TIMES):
        pool = stage.pool(1)
        outcome, _ = together(threads, partial(lend, pool), pool.close)
        assert outcome == "lent" or isinstance(outcome, PoolClosed)
        stage.finish(pool)


def test_two_threads_that_release_one_connection_count_as_one(stage: Stage, threads: ThreadPoolExecutor) -> None:
    pool = stage.pool(2)
    for _ in range(TIMES):
        conn = pool.acquire()
        conn.request("GET", "/")
        conn.getresponse()  # left unread: there is something to be drained
        together(threads, partial(pool.release, conn), partial(pool.release, conn))
        assert pool.stats().leased == 0
    stats = pool.stats()
    assert sum(stats.acquires.values()) == stats.use.count == TIMES
    stage.finish(pool)


def test_acquire_beside_a_change_of_size_never_exceeds_either(stage: Stage, threads: ThreadPoolExecutor) -> None:
    pool = stage.pool(2)
    for number in range(TIMES):
        size = 1 + number % 2
        together(threads, lambda: lend(pool), lambda: lend(pool), partial(pool.resize, size))
        stats = pool.stats()
        assert stats.idle <= stats.maxsize == size
    stage.finish(pool)


def test_acquire_beside_prune_finds_the_connection_or_a_slot(stage: Stage, threads: ThreadPoolExecutor) -> None:
    pool = stage.pool(1)
    for _ in range(TIMES):
        outcomes = together(threads, lambda: lend(pool), lambda: pool.prune() and "", lambda: lend(pool))
        assert outcomes[::2] == ["lent", "lent"]
    assert len(stage.origin.far_ends) == 1
    stage.finish(pool)


def test_report_of_leaks_beside_a_release_counts_the_lease_at_most_once(
    stage: Stage, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leaks, "watcher", types.SimpleNamespace(watch=lambda *_: None, forget=lambda *_: None))
    caplog.set_level(logging.INFO, "pooledhttp")
    pool = stage.pool(1, leak_after=10.0)
    for _ in range(TIMES):
        conn = pool.acquire()
        stage.clock.now += 20
        caplog.clear()
        before = pool.stats().leaked
        together(threads, partial(pool.release, conn), pool.report_leaks, pool.report_leaks)
        leaked = pool.stats().leaked - before
        levels = [record.levelname for record in caplog.records]
        assert sorted(levels) == ["INFO", "WARNING"] * leaked
        assert leaked <= 1
    stage.finish(pool)


# --- a late dial, held until something else has happened --------------------------------------------------------------


def begin_late_dial(
    stage: Stage, pool: PlayedPool, *, timeout: Timeout | float | None = None
) -> tuple[HTTPConnection, Actor]:
    """Have an actor dial while a connection is lent, and hold the dial; return that connection and the actor."""
    conn = pool.acquire()
    stage.origin.is_parking = True
    (actor,) = stage.actors("Anna")
    actor.begin(lambda: pool.acquire(timeout))
    stage.origin.await_parked(1)
    return conn, actor


def end_dial(stage: Stage, pool: PlayedPool, *, is_refused: bool) -> None:
    stage.origin.is_parking = False
    stage.origin.let_go(stage.origin.parked[0], is_refused=is_refused)
    stage.wait_for(lambda: pool.dial_threads == 0)


@pytest.mark.parametrize("is_refused", [False, True])
def test_dial_whose_caller_was_served_meanwhile_is_for_nobody_in_particular(stage: Stage, is_refused: bool) -> None:
    pool = stage.pool(2)
    conn, actor = begin_late_dial(stage, pool)
    pool.release(conn)
    assert actor.finish() is conn
    assert pool.stats().opening == 1
    end_dial(stage, pool, is_refused=is_refused)
    stats = pool.stats()
    assert (stats.idle, stats.leased, stats.opening) == (0 if is_refused else 1, 1, 0)
    assert counted(stats.acquires) == {"opened": 1, "reused": 1}
    assert counted(stats.connect_failures) == ({"refused": 1} if is_refused else {})
    pool.release(conn)
    stage.finish(pool)


@pytest.mark.parametrize("is_refused", [False, True])
def test_dial_serves_a_waiter_when_its_own_caller_was_served_meanwhile(stage: Stage, is_refused: bool) -> None:
    pool = stage.pool(2)
    conn, anna = begin_late_dial(stage, pool)
    (bela,) = stage.actors("Bela")
    bela.begin(pool.acquire)
    stage.wait_for(lambda: len(pool._waiters) == 1)
    pool.release(conn)
    assert anna.finish() is conn
    end_dial(stage, pool, is_refused=is_refused)  # if it fails, its slot goes to the waiter, who dials anew
    other = bela.finish()
    assert isinstance(other, HTTPConnection)
    assert other is not conn
    pool.release(conn)
    pool.release(other)
    stage.finish(pool)


@pytest.mark.parametrize("is_refused", [False, True])
def test_dial_outlives_the_time_of_its_caller(stage: Stage, is_refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "_LOST_CHECK", 0.01)  # how often he looks at a clock that nobody wakes him for
    pool = stage.pool(2)
    conn, actor = begin_late_dial(stage, pool, timeout=0.5)
    stage.clock.now += 1
    with pytest.raises(TotalTimeout):
        actor.finish()
    assert pool.stats().opening == 1
    end_dial(stage, pool, is_refused=is_refused)
    assert pool.stats().idle == (0 if is_refused else 1)
    pool.release(conn)
    stage.finish(pool)


@pytest.mark.parametrize("is_refused", [False, True])
def test_dial_that_ends_behind_close_leaves_no_connection(stage: Stage, is_refused: bool) -> None:
    pool = stage.pool(2)
    conn, actor = begin_late_dial(stage, pool)
    pool.close()
    with pytest.raises(PoolClosed):
        actor.finish()
    end_dial(stage, pool, is_refused=is_refused)
    pool.release(conn)
    assert counted(pool.stats().closed) == {"pool_closed": 1 if is_refused else 2}
    stage.finish(pool)


@pytest.mark.parametrize("is_kept", [True, False])
def test_caller_of_a_dial_is_served_although_the_pool_became_smaller(stage: Stage, is_kept: bool) -> None:
    pool = stage.pool(2)
    conn, actor = begin_late_dial(stage, pool)
    pool.resize(1)
    end_dial(stage, pool, is_refused=False)
    if not is_kept:
        conn.close()
    pool.release(conn)
    other = actor.finish()
    assert isinstance(other, HTTPConnection)
    pool.release(other)
    assert pool.stats().idle <= 1
    stage.finish(pool)


def test_dial_nobody_waits_for_is_closed_when_the_pool_became_smaller(stage: Stage) -> None:
    pool = stage.pool(2)
    conn, actor = begin_late_dial(stage, pool)
    pool.release(conn)
    assert actor.finish() is conn
    pool.resize(1)
    end_dial(stage, pool, is_refused=False)
    assert counted(pool.stats().closed) == {"evicted": 1}
    pool.release(conn)
    stage.finish(pool)


def test_refused_dial_tells_its_caller_and_frees_the_slot(stage: Stage) -> None:
    pool = stage.pool(2)
    conn, actor = begin_late_dial(stage, pool)
    end_dial(stage, pool, is_refused=True)
    with pytest.raises(ConnectionRefusedError):
        actor.finish()
    assert counted(pool.stats().acquires) == {"opened": 1, "error": 1}
    pool.release(conn)
    stage.finish(pool)


# --- a probe, held until something else has happened ------------------------------------------------------------------


@contextlib.contextmanager
def prune_held(stage: Stage, pool: PlayedPool, monkeypatch: pytest.MonkeyPatch) -> Iterator[Actor]:
    """Have an actor prune a pool, and hold it in its first probe for the length of the block; then let it end."""
    probing, go_on = threading.Event(), threading.Event()
    look = HTTPConnection.staleness

    def hold(conn: HTTPConnection) -> CloseReason | None:
        probing.set()
        assert go_on.wait(BOUND)
        return look(conn)

    (actor,) = stage.actors("Gardener")
    with monkeypatch.context() as patch:
        patch.setattr(HTTPConnection, "staleness", hold)
        actor.begin(pool.prune)
        assert probing.wait(BOUND)
        try:
            yield actor
        finally:
            go_on.set()
    actor.finish()


def leave_idle(pool: ConnectionPool, count: int) -> None:
    for conn in [pool.acquire() for _ in range(count)]:
        pool.release(conn)


def test_pool_that_becomes_smaller_during_a_prune_is_no_larger_afterwards(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = stage.pool(3)
    leave_idle(pool, 3)
    with prune_held(stage, pool, monkeypatch):
        pool.resize(1)
    assert pool.stats().idle == 1
    assert counted(pool.stats().closed) == {"evicted": 2}
    stage.finish(pool)


def test_pool_that_is_closed_during_a_prune_keeps_nothing(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = stage.pool(3)
    leave_idle(pool, 3)
    with prune_held(stage, pool, monkeypatch):
        pool.close()
    assert counted(pool.stats().closed) == {"pool_closed": 3}
    stage.finish(pool)


def test_who_waits_during_a_prune_gets_what_it_puts_back(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = stage.pool(1)
    leave_idle(pool, 1)
    (actor,) = stage.actors("Anna")
    with prune_held(stage, pool, monkeypatch):
        actor.begin(pool.acquire)
        stage.wait_for(lambda: len(pool._waiters) == 1)
    conn = actor.finish()
    assert isinstance(conn, HTTPConnection)
    pool.release(conn)
    assert pool.stats().opened == 1
    stage.finish(pool)


# --- a connection that is lost ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # it is lost on purpose
def test_waiter_gets_the_slot_of_a_connection_that_was_lost(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "_LOST_CHECK", 0.01)
    pool = stage.pool(1)
    held = [pool.acquire()]
    (actor,) = stage.actors("Anna")
    actor.begin(pool.acquire)
    stage.wait_for(lambda: len(pool._waiters) == 1)
    held.clear()
    conn = actor.finish()
    assert isinstance(conn, HTTPConnection)
    pool.release(conn)
    assert counted(pool.stats().closed) == {"leaked": 1}
    stage.finish(pool)


# --- several origins that share a total -------------------------------------------------------------------------------


@pytest.fixture
def two_origins(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[PlayedPool, PlayedPool]]:
    """Make the pools of two origins that share a total."""
    monkeypatch.setattr(manager_room, "ConnectionPool", PlayedPool)

    def make(max_total: int, maxsize: int = 10) -> tuple[PlayedPool, PlayedPool]:
        manager = PoolManager(max_total=max_total, maxsize=maxsize, registry=None, timeout=PATIENT, clock=stage.clock)
        stage._stack.callback(manager.close)
        pools = [cast("PlayedPool", manager.pool(f"http://{host}.test/")) for host in "ab"]
        for pool in pools:
            reach(pool, stage.origin)
            stage._audit.watch(pool)
        return pools[0], pools[1]

    return make


TwoOrigins = Callable[..., tuple[PlayedPool, PlayedPool]]


def test_eviction_beside_a_release_never_exceeds_the_total(
    stage: Stage, two_origins: TwoOrigins, threads: ThreadPoolExecutor
) -> None:
    first, second = two_origins(1)
    for _ in range(TIMES):
        assert together(threads, lambda: lend(first), lambda: lend(second)) == ["lent", "lent"]
        assert first.stats().idle + second.stats().idle <= 1
    assert sum(not far.is_left for far in stage.origin.far_ends) <= 1


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # it is lost on purpose
def test_connection_lost_by_one_origin_makes_room_for_another(
    stage: Stage, two_origins: TwoOrigins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lending, "_LOST_CHECK", 0.01)
    first, second = two_origins(1)
    held = [first.acquire()]
    (actor,) = stage.actors("Anna")
    actor.begin(second.acquire)
    with stage.changed:
        held.clear()
        is_served = stage.changed.wait_for(lambda: not actor.is_busy, 2.0)
    first.stats()  # which sees the loss in any case
    conn = actor.finish()
    assert isinstance(conn, HTTPConnection)
    second.release(conn)
    assert is_served, "the waiter was helped by the other origin's next user only"


def test_stale_connection_that_is_replaced_by_an_idle_one_makes_room_for_another_origin(
    stage: Stage, two_origins: TwoOrigins
) -> None:
    first, second = two_origins(2)
    # Kept also afterwards: so nothing is collected, which would make the pool count anew.
    kept = [first.acquire(), first.acquire()]
    for conn in kept:
        first.release(conn)
    stage.origin.far_ends[1].end()  # the one that is lent first
    with first.connection() as conn:
        assert conn is kept[0]
        assert lend(second, AT_ONCE) == "lent"


def test_stale_connection_that_is_replaced_by_an_idle_one_costs_no_other_its_place(
    stage: Stage, two_origins: TwoOrigins
) -> None:
    first, second = two_origins(3)
    leave_idle(first, 3)
    stage.origin.far_ends[2].end()  # the one that is lent first
    with first.connection():
        assert lend(second, AT_ONCE) == "lent"
        assert (first.stats().idle, second.stats().idle) == (1, 1), "there was room for all of them"


def test_waiter_whose_pool_becomes_larger_gets_the_room_that_another_origin_leaves_idle(
    stage: Stage, two_origins: TwoOrigins
) -> None:
    first, second = two_origins(2, maxsize=1)
    leave_idle(first, 1)
    conn = second.acquire()
    (actor,) = stage.actors("Anna")
    actor.begin(lambda: second.acquire(timeout=Timeout(acquire=None)))
    while not second.stats().waiting:
        with stage.changed:
            stage.changed.wait(0.005)
    second.resize(2)
    with stage.changed:
        is_served = stage.changed.wait_for(lambda: not actor.is_busy, 2.0)
    second.release(conn)
    other = actor.finish()
    assert isinstance(other, HTTPConnection)
    second.release(other)
    assert is_served, "an idle connection of another origin kept the waiter waiting"


def test_prune_leaves_idle_connections_as_old_as_they_are(stage: Stage, two_origins: TwoOrigins) -> None:
    first, _ = two_origins(2)
    leave_idle(first, 1)
    for _ in range(4):
        stage.clock.now += 20
        first.prune()
    assert counted(first.stats().closed) == {"idle": 1}


def test_queue_for_the_total_forgets_those_who_have_left(stage: Stage, two_origins: TwoOrigins) -> None:
    first, second = two_origins(2, maxsize=1)
    held, other = first.acquire(), second.acquire()
    (actor,) = stage.actors("Anna")
    actor.begin(first.acquire)
    for _ in range(1000):
        with pytest.raises(AcquireTimeout):
            second.acquire(timeout=AT_ONCE)
    capacity = first._capacity
    assert capacity is not None
    length = len(capacity._queue)
    first.release(held)
    conn = actor.finish()
    assert isinstance(conn, HTTPConnection)
    first.release(conn)
    second.release(other)
    assert length <= 200


# --- every order of a few threads -------------------------------------------------------------------------------------


class Stuck(BaseException):
    """Everybody waits; what each thread gets so that it ends."""


class Task:
    """A thread under the scheduler's hand: it runs only between `Scheduler._resume` and its next stop."""

    def __init__(self, number: int, work: Callable[[], object]) -> None:
        self.number = number
        self.work = work
        self.gate = threading.Semaphore(0)
        self.lock: ScheduledLock | None = None  # what it waits for
        self.timeout = math.inf
        self.is_done = False
        self.is_late = False  # its wait was ended by the clock
        self.fault: BaseException | None = None
        self.thread: threading.Thread | None = None

    @property
    def can_run(self) -> bool:
        return not self.is_done and (self.lock is None or not self.lock.is_held)


class Scheduler:
    """Lets one thread run at a time, and decides at each lock which.

    Args:
        clock: Is set forward when a wait ends by its timeout.
        decide: Chooses one of so many possibilities.
        preemptions: How often a thread that could go on may be stopped.
    """

    def __init__(self, clock: FakeClock, decide: Callable[[int], int], preemptions: float) -> None:
        self._clock = clock
        self._decide = decide
        self._left = preemptions
        self._main = threading.Semaphore(0)
        self.tasks: list[Task] = []
        self.current: Task | None = None
        self.is_stuck = False

    def run(self, *works: Callable[[], object]) -> None:
        """Run some works to their end."""
        global _scheduler  # noqa: PLW0603  # the locks that a pool makes ask for it
        _scheduler = self
        try:
            for work in works:
                self.spawn(work)
            self._go_on(None)
            assert self._main.acquire(timeout=BOUND)
        finally:
            _scheduler = None
            for task in self.tasks:
                assert task.thread is not None
                task.thread.join(BOUND)
        assert not self.is_stuck, "everybody waits"

    def spawn(self, work: Callable[[], object]) -> Task:
        """Take in one more thread; it does not run yet."""
        task = Task(len(self.tasks), work)
        self.tasks.append(task)
        task.thread = threading.Thread(target=self._run, args=(task,), name=f"task-{task.number}", daemon=True)
        task.thread.start()
        return task

    def _run(self, task: Task) -> None:
        task.gate.acquire()
        try:
            if not self.is_stuck:
                task.work()
        except BaseException as fault:  # noqa: BLE001  # looked at when all have ended
            task.fault = fault.with_traceback(None)
        task.is_done = True
        self._go_on(task)

    def stop(self) -> None:
        """Let somebody else go on here, perhaps."""
        if self.current is not None and not self.is_stuck:
            self._go_on(self.current)

    def wait_for(self, lock: ScheduledLock, timeout: float) -> bool:
        """Wait until a lock is free; return whether it is, or time was up."""
        task = self.current
        assert task is not None
        task.lock, task.timeout, task.is_late = lock, timeout, False
        self._go_on(task)
        task.lock = None
        if self.is_stuck:
            raise Stuck
        return not task.is_late

    def _go_on(self, task: Task | None) -> None:
        """Choose who goes on; return when that is the caller (who may have ended, and then does not wait)."""
        following = self._choose(task)
        self.current = following
        if following is None:
            self._main.release()
            return
        if following is task:
            return
        following.gate.release()
        if task is not None and not task.is_done:
            task.gate.acquire()

    def _choose(self, task: Task | None) -> Task | None:
        if self.is_stuck:
            return next((other for other in self.tasks if not other.is_done), None)
        ready = [other for other in self.tasks if other.can_run]
        # Time may run out for whoever waits with a limit of his own, though others could go on.
        timed = [
            other
            for other in self.tasks
            if not other.is_done and not other.can_run and other.timeout < lending._LOST_CHECK
        ]
        if task is not None and task in ready:
            ready.remove(task)
            chosen = task
            if self._left > 0 and (ready or timed):
                number = self._decide(1 + len(ready) + len(timed))
                if number:
                    self._left -= 1
                    chosen = (ready + timed)[number - 1]
        elif ready:
            choices = ready + (timed if self._left > 0 else [])
            chosen = choices[self._decide(len(choices))] if len(choices) > 1 else choices[0]
            self._left -= chosen in timed
        elif timed:
            chosen = min(timed, key=lambda other: other.timeout)
        elif all(other.is_done for other in self.tasks):
            return None
        else:
            self.is_stuck = True
            return self._choose(None)
        if not chosen.can_run:
            chosen.is_late = True
            self._clock.now += chosen.timeout
        return chosen


_scheduler: Scheduler | None = None


class ScheduledLock:
    """A lock at which somebody else may go on; outside of a scheduler's run it is always free.

    Args:
        look: Is called before it is let go, if it is a pool's.
    """

    def __init__(self, look: Callable[[], None] | None = None) -> None:
        self.is_held = False
        self._look = look
        self.broken: list[AssertionError] = []

    def acquire(self, blocking: bool = True, timeout: float = math.inf) -> bool:
        scheduler = _scheduler
        if scheduler is not None and scheduler.current is not None and not scheduler.is_stuck:
            while self.is_held:
                if not blocking or not scheduler.wait_for(self, timeout):
                    return False
        self.is_held = True
        return True

    def release(self) -> None:
        self.is_held = False

    def __enter__(self) -> None:
        if _scheduler is not None:
            _scheduler.stop()
        self.acquire()

    def __exit__(self, *_: object) -> None:
        if self._look is not None:
            try:
                self._look()
            except AssertionError as wrong:
                self.broken.append(wrong)
        self.release()
        if _scheduler is not None:
            _scheduler.stop()


class ScheduledThread:
    """What a pool starts to dial."""

    def __init__(self, *, target: Callable[..., object], args: tuple[object, ...], name: str, daemon: bool) -> None:
        self._work = partial(target, *args)
        self._task: Task | None = None

    def start(self) -> None:
        if _scheduler is None:
            self._work()
        else:
            self._task = _scheduler.spawn(self._work)

    def is_alive(self) -> bool:
        return self._task is not None and not self._task.is_done


class ScheduledOrigin(Origin):
    """Connecting takes a moment, in which somebody else may go on."""

    def connect(self) -> NearEnd:
        if _scheduler is not None:
            _scheduler.stop()
        return super().connect()


@pytest.fixture
def _scheduled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "threading", types.SimpleNamespace(Lock=ScheduledLock, Thread=threading.Thread))
    monkeypatch.setattr(lending, "threading", types.SimpleNamespace(Thread=ScheduledThread))
    monkeypatch.setattr(leaks, "watcher", types.SimpleNamespace(watch=lambda *_: None, forget=lambda *_: None))


class Play:
    """Pools, and what threads may do with them.

    Args:
        decide: Chooses one of so many possibilities; see `Scheduler`.
        preemptions: As there.
        maxsize: Of each pool.
        idle: How many connections the first pool has to begin with.
        max_total: Over both pools; ``None``: there is one pool.
    """

    def __init__(
        self,
        decide: Callable[[int], int],
        preemptions: float,
        *,
        maxsize: int = 1,
        idle: int = 0,
        max_total: int | None = None,
    ) -> None:
        self.clock = FakeClock()
        self.origin = ScheduledOrigin()
        self.scheduler = Scheduler(self.clock, decide, preemptions)
        self.limit = max_total
        timeout = Timeout(acquire=None, connect=BOUND, read=BOUND, write=BOUND)
        self.manager = PoolManager(
            max_total=max_total, maxsize=maxsize, registry=None, clock=self.clock, timeout=timeout, leak_after=10
        )
        self.pools: list[ConnectionPool] = []
        self.lock = ScheduledLock(BookKeeper(self.pools, None if max_total is None else lambda: max_total).look)
        if self.manager._capacity is not None:
            self.manager._capacity.lock = cast("threading.Lock", self.lock)
        for host in "a" if max_total is None else "ab":
            pool = self.manager.pool(f"http://{host}.test/")
            pool._lock = cast("threading.Lock", self.lock)
            reach(pool, self.origin)
            self.pools.append(pool)
        self.acquires = 0
        leave_idle(self.pools[0], idle)
        self.acquires = idle
        self.shared: HTTPConnection | None = None

    # --- what a thread may do

    def lend(self, which: int = 0) -> None:
        self.acquires += 1
        with contextlib.suppress(PoolClosed):
            conn = self.pools[which].acquire()
            self.pools[which].release(conn)

    def lend_other(self) -> None:
        self.lend(-1)

    def lend_briefly(self) -> None:
        self.acquires += 1
        with contextlib.suppress(PoolClosed, AcquireTimeout, TotalTimeout):
            conn = self.pools[0].acquire(timeout=0.5)
            self.pools[0].release(conn)

    def spoil(self) -> None:
        self.acquires += 1
        with contextlib.suppress(PoolClosed):
            conn = self.pools[0].acquire()
            conn.close()
            self.pools[0].release(conn)

    def fail(self) -> None:
        self.acquires += 1
        with contextlib.suppress(PoolClosed, ZeroDivisionError), self.pools[-1].connection():
            raise ZeroDivisionError

    def request(self) -> None:
        self.acquires += 1
        with contextlib.suppress(PoolClosed, ConnectionError):  # the peer may end what has just been opened
            assert self.pools[0].request("GET", "/").data == b"hello"

    def be_refused(self) -> None:
        self.acquires += 1
        self.origin.is_refusing = True
        with contextlib.suppress(PoolClosed, ConnectionRefusedError):
            conn = self.pools[0].acquire()
            self.pools[0].release(conn)
        self.origin.is_refusing = False

    def close(self) -> None:
        self.pools[0].close()

    def shrink(self) -> None:
        self.pools[0].resize(1)

    def grow(self) -> None:
        self.pools[0].resize(3)

    def prune(self) -> None:
        self.pools[0].prune()

    def report(self) -> None:
        self.clock.now += 20
        self.pools[0].report_leaks()

    def peer_ends(self) -> None:
        for far in self.origin.far_ends:
            far.end()

    def release_shared(self) -> None:
        assert self.shared is not None
        self.pools[0].release(self.shared)

    def abort_shared(self) -> None:
        assert self.shared is not None
        self.pools[0]._abort(self.shared, ZeroDivisionError(), None, 0.0)

    # --- and how it has to end

    def run(self, *works: Callable[[Play], object]) -> None:
        if Play.release_shared in works:
            self.shared = self.pools[0].acquire()
            self.acquires += 1
        try:
            self.scheduler.run(*[partial(work, self) for work in works])
            for task in self.scheduler.tasks:
                allowed = isinstance(task.fault, ConnectionRefusedError) and Play.be_refused in works
                assert task.fault is None or allowed, repr(task.fault)
            self._look()
        finally:
            self.manager.close()
            self.origin.close()
        if self.shared is not None and self.shared.sock is not None:
            self.shared.close()
        assert all(far.is_left for far in self.origin.far_ends)

    def _look(self) -> None:
        assert not self.lock.broken, self.lock.broken[0]
        at_rest(self.pools, self.limit)
        for pool in self.pools:
            numbers = pool._numbers_locked()
            assert (numbers["leased"], numbers["opening"], numbers["waiting"]) == (0, 0, 0), numbers
            assert numbers["idle"] <= pool.maxsize, "it was made smaller"
            if not pool.is_closed:
                assert pool.request("GET", "/again", timeout=AT_ONCE).data == b"hello"
                self.acquires += 1
        counts = [pool.stats() for pool in self.pools]
        assert sum(sum(stats.acquires.values()) for stats in counts) == self.acquires
        served = sum(stats.acquires["reused"] + stats.acquires["opened"] for stats in counts)
        assert sum(stats.use.count for stats in counts) == served
        idle = sum(stats.idle for stats in counts)
        assert sum(not far.is_left for far in self.origin.far_ends) == idle


def every_order(play: Callable[[Callable[[int], int]], None]) -> int:
    """Call `play` with every sequence of decisions that there is; return how many there are."""
    decisions: list[int] = []
    for count in itertools.count(1):
        taken: list[tuple[int, int]] = []

        def decide(possibilities: int, taken: list[tuple[int, int]] = taken, given: list[int] = decisions) -> int:
            number = given[len(taken)] if len(taken) < len(given) else 0
            taken.append((number, possibilities))
            return number

        with noted(f"order {count}, decisions {decisions}"):
            play(decide)
        while taken and taken[-1][0] + 1 == taken[-1][1]:
            taken.pop()
        if not taken:
            return count
        decisions = [number for number, _ in taken]
        decisions[-1] += 1
    raise AssertionError("it never ends")


P = Play
PROGRAMS: Final[dict[str, tuple[dict[str, int], tuple[Callable[[Play], object], ...]]]] = {
    "three for one connection": ({"maxsize": 1}, (P.lend, P.lend, P.lend)),
    "three for two": ({"maxsize": 2}, (P.lend, P.lend, P.lend)),
    "two and an idle one": ({"maxsize": 2, "idle": 1}, (P.lend, P.lend)),
    "two and a close": ({"maxsize": 1}, (P.lend, P.lend, P.close)),
    "two that dial and a close": ({"maxsize": 2}, (P.lend, P.lend, P.close)),
    "somebody whose time runs out": ({"maxsize": 1}, (P.lend, P.lend_briefly, P.lend)),
    "somebody whose time runs out dialling": ({"maxsize": 2}, (P.lend, P.lend_briefly)),
    "a connection that comes back closed": ({"maxsize": 1}, (P.spoil, P.lend, P.lend)),
    "a late dial and one that comes back closed": ({"maxsize": 2}, (P.spoil, P.lend, P.lend)),
    "a block that fails": ({"maxsize": 1, "idle": 1}, (P.fail, P.lend, P.lend)),
    "an origin that refuses at times": ({"maxsize": 2}, (P.be_refused, P.lend)),
    "becoming smaller": ({"maxsize": 3}, (P.lend, P.lend, P.shrink)),
    "becoming smaller with idle ones": ({"maxsize": 3, "idle": 2}, (P.lend, P.lend, P.shrink)),
    "becoming larger": ({"maxsize": 1}, (P.lend, P.lend, P.grow)),
    "prune": ({"maxsize": 2, "idle": 2}, (P.prune, P.lend, P.lend)),
    "prune and becoming smaller": ({"maxsize": 3, "idle": 2}, (P.prune, P.shrink, P.lend)),
    "prune and close": ({"maxsize": 2, "idle": 2}, (P.prune, P.close, P.lend)),
    "two prunes": ({"maxsize": 2, "idle": 2}, (P.prune, P.prune, P.lend)),
    "a peer that ends": ({"maxsize": 2, "idle": 2}, (P.peer_ends, P.lend, P.lend)),
    "requests and a peer that ends": ({"maxsize": 1, "idle": 1}, (P.request, P.request, P.peer_ends)),
    "two releases of one": ({"maxsize": 2, "idle": 1}, (P.release_shared, P.release_shared, P.lend)),
    "a release and a failure of one": ({"maxsize": 1, "idle": 1}, (P.release_shared, P.abort_shared, P.lend)),
    "leaks": ({"maxsize": 1}, (P.report, P.lend, P.lend)),
    "two origins for one connection": ({"max_total": 1}, (P.lend, P.lend_other, P.lend)),
    "two origins and an idle one": ({"max_total": 1, "idle": 1}, (P.lend, P.lend_other)),
    "two origins for two": ({"max_total": 2, "maxsize": 2}, (P.lend, P.lend_other, P.lend_other)),
    "two origins and a prune": ({"max_total": 2, "maxsize": 2, "idle": 1}, (P.prune, P.lend_other, P.lend_other)),
    "two origins and a spoilt connection": ({"max_total": 1}, (P.spoil, P.lend_other, P.lend)),
    "two origins and a close": ({"max_total": 1}, (P.close, P.lend_other, P.lend)),
    "two origins, one of which fails": ({"max_total": 1, "idle": 1}, (P.lend, P.fail, P.lend)),
    "two origins and becoming smaller": ({"max_total": 2, "maxsize": 2}, (P.shrink, P.lend, P.lend_other)),
}


@pytest.mark.usefixtures("_scheduled")
@pytest.mark.parametrize("program", PROGRAMS)
def test_every_order_with_one_interruption_ends_well(program: str, audit: ResourceAudit) -> None:
    settings, works = PROGRAMS[program]
    preemptions = 2 if EXAMPLES else 1

    def play(decide: Callable[[int], int]) -> None:
        Play(decide, preemptions, **settings).run(*works)

    assert every_order(play) > 1


@pytest.mark.usefixtures("_scheduled")
@pytest.mark.parametrize("program", PROGRAMS)
def test_orders_by_chance_end_well(program: str, audit: ResourceAudit) -> None:
    settings, works = PROGRAMS[program]
    for seed in range(EXAMPLES or 40):
        with noted(f"seed {seed}"):
            Play(by_chance(random.Random(seed)), math.inf, **settings).run(*works)


@pytest.mark.usefixtures("_scheduled")
@pytest.mark.parametrize(
    "works", [(P.lend, P.close), (P.lend, P.shrink), (P.request, P.close), (P.release_shared, P.close)]
)
def test_every_order_of_two_ends_well(works: tuple[Callable[[Play], object], ...], audit: ResourceAudit) -> None:
    def play(decide: Callable[[int], int]) -> None:
        Play(decide, math.inf, maxsize=2).run(*works)

    assert every_order(play) > 10


@pytest.mark.usefixtures("_scheduled")
@pytest.mark.parametrize("seed", range(EXAMPLES or 120))
def test_longer_programs_end_well_in_an_order_by_chance(seed: int, audit: ResourceAudit) -> None:
    chance = random.Random(seed)
    works = [
        P.lend, P.lend, P.lend, P.lend_other, P.lend_briefly, P.spoil, P.fail, P.request, P.shrink, P.grow, P.prune,
        P.peer_ends, P.report,
    ]  # fmt: skip
    programs: list[list[Callable[[Play], object]]] = [[chance.choice(works) for _ in range(3)] for _ in range(3)]
    play = Play(by_chance(chance), math.inf, maxsize=chance.randint(1, 3), max_total=chance.choice([None, 1, 2, 3]))

    def follow(program: list[Callable[[Play], object]]) -> Callable[[Play], object]:
        return lambda play: [step(play) for step in program]

    play.run(*map(follow, programs))


def by_chance(chance: random.Random) -> Callable[[int], int]:
    return lambda possibilities: chance.randrange(possibilities) if chance.random() < 0.3 else 0


@contextlib.contextmanager
def noted(text: str) -> Iterator[None]:
    """Say which of many it was."""
    try:
        yield
    except BaseException as fault:
        fault.add_note(text)
        raise
