"""Whatever happens to a pool, in whatever order: it does what a simple model of it does.

Two state machines, driven by hypothesis.  `PoolMachine` has one pool, three threads that borrow from it, a peer that
misbehaves, and a clock that passes when told.  Its model is a few lists and counters; after each step the pool's
numbers are the model's, one for one, and the books are in order.  `ManagerMachine` has three origins that share in a
``max_total``.

A thread that is to wait really waits.  After each step the machine goes on when everybody has either come back or
cannot: that is told by the pool's lock (see `fake_connections`), so nothing here sleeps.

In CI the same examples are drawn each time.  For a longer search, with new examples in each run:

    POOLEDHTTP_EXAMPLES=20000 python -m pytest --timeout 3600 tests/test_pool_machine.py
"""

from __future__ import annotations

import contextlib
import gc
import threading
import types
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pooledhttp import (
    AcquireTimeout,
    ConnectionPool,
    HTTPConnection,
    HTTPResponse,
    IncompleteRead,
    NotConnected,
    PoolClosed,
    PoolFull,
    PoolManager,
    RemoteDisconnected,
    SelfDeadlock,
    Timeout,
    expiry,
    leaks,
)
from pooledhttp import manager as manager_room
from pooledhttp.records import Dial
from pooledhttp.stats import CloseReason
from pooledhttp.testing import ResourceAudit
from tests.fake_connections import (
    BOUND,
    HELLO,
    Actor,
    BookKeeper,
    FakeClock,
    FarEnd,
    Origin,
    Parked,
    PlayedPool,
    WatchedLock,
    are_settled,
    at_rest,
    far_end_of,
    reach,
    watch,
)
from tests.responses import EXAMPLES, bounded

pytestmark = pytest.mark.unmeasured

NAMES: Final = ("Anna", "Bela", "Cora")
PATIENT: Final = Timeout(acquire=None, connect=BOUND, read=BOUND, write=BOUND)
IDLE_TIMEOUT: Final = 60.0
MAX_AGE: Final = 300.0
LEAK_AFTER: Final = 30.0
DRAIN_BYTES: Final = 1000
STEPS: Final = 40
SOME: Final = 25  # steps before a pool may be closed: much can happen until then, and little afterwards

# What a peer may do to a connection on which nothing is going on, and what the pool is to call it.
MISDEEDS: Final = {
    "end": CloseReason.STALE_EOF,
    "reset": CloseReason.STALE_RESET,
    "408": CloseReason.STALE_408,
    "speak": CloseReason.UNSOLICITED,
}
TIMES_OUT: Final = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"

ANSWERS: Final = {
    "whole": HELLO,
    "end of connection": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
    "left-over": HELLO + b"HTTP/1.1 200 OK\r\n",
    "5 seconds": b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5\r\nContent-Length: 5\r\n\r\nhello",
    "1 second": b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1\r\nContent-Length: 5\r\n\r\nhello",
    "no more requests": b"HTTP/1.1 200 OK\r\nKeep-Alive: max=0\r\nContent-Length: 5\r\n\r\nhello",
    "a part": b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nhello" + b"." * 15,
    "much": b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nhello",
    "truncated": b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nhello",
}
Hint = tuple[float | None, int | None]
HINTS: Final[dict[str, Hint]] = {"5 seconds": (5.0, None), "1 second": (1.0, None), "no more requests": (None, 0)}

# A failure takes its time: hypothesis looks for the shortest way to it.
LONG: Final = pytest.mark.timeout(3600 if EXAMPLES else 400)


class BlockError(Exception):
    """What goes wrong inside a block."""


class NoWatcher:
    """The thread that looks for leaks, which here is the machine."""

    def watch(self, pool: object, seconds: float) -> None: ...

    def forget(self, pool: object) -> None: ...


@pytest.fixture(autouse=True)
def _nothing_happens_by_itself(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No jitter and no watcher; and when all examples have run, no descriptor and no thread is left."""
    monkeypatch.setattr(expiry, "random", types.SimpleNamespace(random=lambda: 0.0))
    monkeypatch.setattr(leaks, "watcher", NoWatcher())
    with ResourceAudit():
        yield


# --- one pool: the model ----------------------------------------------------------------------------------------------


class Known:
    """A connection, as the model knows it."""

    def __init__(self, now: float, idle_limit: float) -> None:
        self.conn: HTTPConnection | None = None  # while it is lent, and from then on as long as it is open
        self.far: FarEnd | None = None
        self.response: HTTPResponse | None = None
        self.expires_at = now + MAX_AGE
        self.idle_limit = idle_limit
        self.idle_since = self.good_until = self.leased_at = now
        self.borrower: Actor | None = None
        self.is_reused = False
        self.is_overdue = False
        self.is_open = True
        self.exchanges = 0
        self.state: Literal["idle", "a part", "much", "under way"] = "idle"
        self.misdeed: CloseReason | None = None
        self.hint: Hint | None = None  # of its last response
        self.journal: list[CloseReason] = []  # why it was closed during this lease
        self.opened = 1  # since it was last counted


@dataclass(eq=False)
class Dialling:
    """A connection that is being opened, and whoever waits for it; nobody does if he got another one meanwhile."""

    caller: Actor | None
    is_late: bool
    dial: Dial | None = None


Expected = Known | type[BaseException] | Literal["waits", "dials"]


class Model:
    """What a pool is to do."""

    def __init__(
        self, clock: FakeClock, origin: Origin, maxsize: int, max_waiters: int | None, max_requests: int | None
    ) -> None:
        self.clock = clock
        self.origin = origin
        self.maxsize = maxsize
        self.max_waiters = max_waiters
        self.max_requests = max_requests
        self.is_closed = False
        self.are_kept = True
        self.idle: list[Known] = []  # the newest at the end
        self.leased: list[Known] = []
        self.dialling: list[Dialling] = []
        self.granted = 0
        self.waiters: list[Actor] = []
        self.late: list[Actor] = []
        self.expected: dict[Actor, Expected] = {}
        self.idle_limit = IDLE_TIMEOUT
        self.learned_at: float | None = None
        self.reset()

    def reset(self) -> None:
        self.opened = 0
        self.closed: Counter[str] = Counter()
        self.acquires: Counter[str] = Counter()
        self.refused = 0
        self.drains: Counter[str] = Counter()
        self.stale: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.leaked = 0
        self.leases = 0  # that have ended

    @property
    def size(self) -> int:
        return len(self.idle) + len(self.leased) + len(self.dialling) + self.granted

    # --- acquire

    def acquire(self, caller: Actor, *, may_wait: bool) -> None:
        if self.is_closed:
            self.fail(caller, PoolClosed, "rejected")
        elif (known := self.take_idle()) is not None:
            self.check_out(caller, known)
        elif self.size < self.maxsize:
            self.dial(caller)
        elif self.max_waiters is not None and len(self.waiters) >= self.max_waiters:
            self.fail(caller, PoolFull, "rejected")
        elif may_wait and not self.dialling and all(known.borrower is caller for known in self.leased):
            self.fail(caller, SelfDeadlock, "timeout")
        elif may_wait:
            self.waiters.append(caller)
            self.expected[caller] = "waits"
        else:
            self.fail(caller, AcquireTimeout, "timeout")

    def fail(self, caller: Actor, fault: type[BaseException], outcome: str) -> None:
        self.acquires[outcome] += 1
        self.expected[caller] = fault

    def take_idle(self) -> Known | None:
        now = self.clock()
        while self.idle:
            known = self.idle.pop()
            if now < known.good_until:
                known.leased_at = now
                known.is_reused = True
                return known
            self.closed[self.why_expired(known)] += 1
        return None

    def why_expired(self, known: Known) -> CloseReason:
        return CloseReason.MAX_AGE if self.clock() >= known.expires_at else CloseReason.IDLE

    def check_out(self, caller: Actor, known: Known | None) -> None:
        """Lend a connection, or the next one if that is stale, or else dial."""
        while known is not None:
            if known.misdeed is None:
                self.lend(caller, known)
                return
            self.closed[known.misdeed] += 1
            if known.exchanges:  # a server bears one that was never used for another time
                self.learn(known.misdeed, known)
            known = self.take_idle()
        self.dial(caller)

    def lend(self, caller: Actor, known: Known) -> None:
        self.acquires["reused" if known.is_reused else "opened"] += 1
        known.borrower = caller
        self.leased.append(known)
        self.expected[caller] = known

    def learn(self, reason: CloseReason, known: Known) -> None:
        age = known.leased_at - known.idle_since
        limit = age - max(age / 10, 0.5)
        if reason is CloseReason.UNSOLICITED or age < 1 or limit >= self.idle_limit:
            return
        self.idle_limit = limit
        self.learned_at = self.clock()
        for other in self.idle + self.leased:
            other.idle_limit = min(other.idle_limit, limit)
            other.good_until = min(other.good_until, other.idle_since + limit)

    def enter(self) -> Known:
        """Count a connection that has just been opened."""
        if self.learned_at is not None and self.clock() - self.learned_at > 600:
            self.idle_limit, self.learned_at = IDLE_TIMEOUT, None
        known = Known(self.clock(), self.idle_limit)
        known.opened = 0
        self.opened += 1
        return known

    # --- dialling

    def dial(self, caller: Actor) -> None:
        opening = len(self.dialling) + self.granted + 1
        dialling = Dialling(caller, self.are_kept and (bool(self.leased) or opening > 1))
        if self.origin.is_parking:
            self.dialling.append(dialling)
            self.expected[caller] = "dials"
            if dialling.is_late:
                self.late.append(caller)
        elif self.origin.is_refusing:
            self.be_refused(caller)
        else:
            self.lend(caller, self.enter())

    def be_refused(self, caller: Actor | None) -> None:
        self.refused += 1
        if caller is not None:
            self.fail(caller, ConnectionRefusedError, "error")
        self.serve()

    def end_dial(self, dialling: Dialling, *, is_refused: bool) -> None:
        """An attempt to connect that the machine has let go ends."""
        self.dialling.remove(dialling)
        caller = dialling.caller
        if dialling.is_late and caller is not None:
            self.late.remove(caller)
        if is_refused:
            self.be_refused(caller)
            return
        known = self.enter()
        if self.is_closed:
            self.closed[CloseReason.POOL_CLOSED] += 1
            if caller is not None:
                self.fail(caller, PoolClosed, "rejected")
        elif caller is not None:
            self.lend(caller, known)
        elif self.size >= self.maxsize:  # it has been made smaller
            self.closed[CloseReason.EVICTED] += 1
        else:
            self.keep(known, is_reused=False)

    def serve(self) -> None:
        served: list[Actor] = []
        while self.waiters and self.size < self.maxsize:
            served.append(self.waiters.pop(0))
            self.granted += 1
        for caller in served:
            self.granted -= 1
            self.dial(caller)

    # --- release

    def release(self, known: Known) -> None:
        now = self.clock()
        self.leased.remove(known)
        self.leases += 1
        if known.state == "a part":
            self.drains["drained"] += 1
            known.exchanges += 1
        elif known.state == "much":
            self.drains["closed"] += 1
            self.end(known, CloseReason.UNREAD)
        elif known.state == "under way":
            self.end(known, CloseReason.UNREAD)
        self.fold(known)
        known.state = "idle"
        known.borrower = None
        known.is_overdue = False
        reason = self.why_not_keep(known)
        if reason is None:
            self.are_kept = True
            known.idle_since = now
            self.keep(known, is_reused=True)
            return
        self.are_kept = False
        if known.is_open:
            self.closed[reason] += 1
        self.serve()

    def why_not_keep(self, known: Known) -> CloseReason | None:
        now = self.clock()
        if not known.is_open:
            return CloseReason.CLIENT_CLOSE
        if self.is_closed:
            return CloseReason.POOL_CLOSED
        if self.size + 1 > self.maxsize:
            return CloseReason.EVICTED
        if now >= known.expires_at:
            return CloseReason.MAX_AGE
        if self.max_requests is not None and known.exchanges >= self.max_requests:
            return CloseReason.MAX_REQUESTS
        if known.hint is not None:
            seconds, requests = known.hint
            if seconds is not None:
                if seconds <= 1:
                    return CloseReason.IDLE
                known.idle_limit = min(self.idle_limit, seconds - 1)
            if requests == 0:
                return CloseReason.MAX_REQUESTS
        return None

    def keep(self, known: Known, *, is_reused: bool) -> None:
        """Hand a connection on, or let it be idle."""
        now = self.clock()
        known.idle_since = known.leased_at = now
        queue = self.late or self.waiters
        if queue:
            caller = queue.pop(0)
            for dialling in self.dialling:
                if dialling.caller is caller:
                    dialling.caller = None
            known.is_reused = is_reused
            self.check_out(caller, known)
            return
        known.good_until = min(now + known.idle_limit, known.expires_at)
        self.idle.append(known)
        for _ in range(2):
            if self.idle and self.idle[0].good_until <= now:
                self.closed[self.why_expired(self.idle.pop(0))] += 1

    def end(self, known: Known, reason: CloseReason) -> None:
        """A leased connection is closed; that is counted when the lease ends."""
        if known.is_open:
            known.journal.append(reason)
        known.is_open = False
        known.state = "idle"
        known.misdeed = None

    def fold(self, known: Known) -> None:
        self.opened += known.opened
        self.closed.update(known.journal)
        known.opened = 0
        known.journal.clear()

    def abort(self, known: Known, reason: CloseReason) -> None:
        """A lease ends by an exception."""
        self.end(known, reason)
        self.leased.remove(known)
        self.leases += 1
        self.fold(known)

    def lose(self, known: Known) -> None:
        """A borrower drops a connection."""
        self.leased.remove(known)
        self.leases += 1
        self.fold(known)
        self.leaked += not known.is_overdue
        self.closed[CloseReason.LEAKED] += known.is_open
        self.serve()

    # --- as a whole

    def doom_idle(self, why: Callable[[Known], CloseReason | None]) -> int:
        """Close idle connections for a reason each; return how many."""
        kept = []
        for known in self.idle:
            reason = why(known)
            if reason is None:
                kept.append(known)
            else:
                self.closed[reason] += 1
        count = len(self.idle) - len(kept)
        self.idle = kept
        return count

    def prune(self, *, everything: bool) -> int:
        def why(known: Known) -> CloseReason | None:
            if self.clock() >= known.good_until:
                return self.why_expired(known)
            return CloseReason.EVICTED if everything else known.misdeed

        return self.doom_idle(why)

    def resize(self, maxsize: int) -> None:
        self.maxsize = maxsize
        while self.idle and self.size > maxsize:
            self.idle.pop(0)
            self.closed[CloseReason.EVICTED] += 1
        self.serve()

    def close(self) -> None:
        self.is_closed = True
        self.doom_idle(lambda _: CloseReason.POOL_CLOSED)
        for caller in self.waiters + self.late:
            self.fail(caller, PoolClosed, "rejected")
        for dialling in self.dialling:
            if dialling.is_late:
                dialling.caller = None
        self.waiters.clear()
        self.late.clear()


# --- one pool: the machine --------------------------------------------------------------------------------------------

picks = st.integers(0, 5)


class PoolMachine(RuleBasedStateMachine):
    """One pool, three borrowers, a peer and a clock."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.changed = threading.Condition()
        self.origin = Origin(self.changed)
        self.clock = FakeClock()
        self.actors = [Actor(name, self.changed) for name in NAMES]

    @initialize(
        maxsize=st.integers(1, 3),
        max_waiters=st.sampled_from([None, None, 1]),
        max_requests=st.sampled_from([None, None, 2]),
        leak_after=st.sampled_from([None, LEAK_AFTER]),
    )
    def begin(self, maxsize: int, max_waiters: int | None, max_requests: int | None, leak_after: float | None) -> None:
        self.pool = PlayedPool(
            "peer.test",
            registry=None,
            clock=self.clock,
            timeout=PATIENT,
            maxsize=maxsize,
            max_waiters=max_waiters,
            max_requests=max_requests,
            leak_after=leak_after,
            idle_timeout=IDLE_TIMEOUT,
            max_age=MAX_AGE,
            drain_bytes=DRAIN_BYTES,
        )
        reach(self.pool, self.origin)
        self.lock = watch(self.pool, self.changed)
        self.model = Model(self.clock, self.origin, maxsize, max_waiters, max_requests)

    # --- who may do what

    def idle_actor(self, pick: int) -> Actor | None:
        free = [actor for actor in self.actors if not actor.is_busy]
        return free[pick % len(free)] if free else None

    def lent(self, pick: int, *, is_at_rest: bool = False) -> Known | None:
        """Return one of the leased connections; with `is_at_rest`: on which nothing is going on."""
        lent = [known for known in self.model.leased if known.state == "idle" or not is_at_rest]
        return lent[pick % len(lent)] if lent else None

    @precondition(lambda self: any(not actor.is_busy for actor in self.actors))
    @rule(pick=picks, may_wait=st.booleans())
    def acquire(self, pick: int, may_wait: bool) -> None:
        actor = self.idle_actor(pick)
        assert actor is not None
        self.model.acquire(actor, may_wait=may_wait)
        actor.begin(self.pool.acquire if may_wait else lambda: self.pool.acquire(0), is_patient=may_wait)
        self.settle()

    @precondition(lambda self: self.model.leased and self.idle_actor(0))
    @rule(pick=picks)
    def queue_up(self, pick: int) -> None:
        self.acquire(pick, may_wait=True)

    @precondition(lambda self: self.model.leased)
    @rule(pick=picks)
    def release(self, pick: int) -> None:
        known = self.lent(pick)
        assert known is not None
        conn, known.response = known.conn, None
        self.model.release(known)
        assert conn is not None
        self.pool.release(conn)
        del conn
        self.settle()

    @precondition(lambda self: not self.origin.is_parking and self.idle_actor(0))
    @rule(count=st.integers(1, 3), pick=picks, seconds=st.sampled_from([0.0, 1.0, 20.0]))
    def leave_idle(self, count: int, pick: int, seconds: float) -> None:
        before = len(self.model.leased)
        for _ in range(count):
            self.acquire(pick, may_wait=False)
        while len(self.model.leased) > before:
            self.clock.now += seconds
            self.release(before)

    @precondition(lambda self: self.model.leased)
    @rule(pick=picks)
    def release_and_again(self, pick: int) -> None:
        known = self.lent(pick)
        assert known is not None
        assert known.conn is not None
        if self.model.late or self.model.waiters:
            return  # somebody else has it when it is given back for the second time
        conn = known.conn
        self.release(pick)
        self.pool.release(conn)

    @precondition(lambda self: self.model.leased)
    @rule(pick=picks, actor_pick=picks, then_acquires=st.booleans())
    def drop(self, pick: int, actor_pick: int, then_acquires: bool) -> None:
        known = self.lent(pick)
        assert known is not None
        is_awaited = bool(self.model.waiters or self.model.late)
        self.model.lose(known)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", ResourceWarning)
            lost = weakref.ref(cast("HTTPConnection", known.conn))
            known.response = known.conn = None
            if lost() is not None:  # a response that broke keeps what it raised, and that the frames it went through
                gc.collect()
        assert lost() is None
        assert len(warned) == known.is_open
        if then_acquires and not is_awaited and self.idle_actor(actor_pick):
            self.acquire(actor_pick, may_wait=False)  # finds it before anybody has asked for numbers
        else:
            assert "leased" in self.pool.explain()
        self.settle()

    # --- what a borrower does

    @precondition(lambda self: self.lent(0, is_at_rest=True))
    @rule(pick=picks, what=st.sampled_from([*ANSWERS, "half of a request", "no answer", "close"]))
    def use(self, pick: int, what: str) -> None:
        known = self.lent(pick, is_at_rest=True)
        assert known is not None
        conn = known.conn
        assert conn is not None
        if what == "close":
            conn.close()
            self.model.end(known, CloseReason.CLIENT_CLOSE)
            return
        if known.misdeed is not None:
            self.model.end(known, known.misdeed)
        if what == "half of a request":
            known.state = "under way"
            conn.putrequest("GET", "/")
            conn.putheader("X", "y")
            return
        is_parking, self.origin.is_parking = self.origin.is_parking, False  # the borrower is this very thread
        self._ask(known, conn, what)
        self.origin.is_parking = is_parking

    def _ask(self, known: Known, conn: HTTPConnection, what: str) -> None:
        """Send a request on a leased connection, which connects anew if it is closed, and read what is to be read."""
        answer = ANSWERS.get(what)

        def act(far: FarEnd) -> None:
            if answer is not None:
                far.say(answer)
            if what == "truncated":
                far.end()

        if known.is_open:
            assert known.far is not None
            known.far.act = act
        elif self.origin.is_refusing:
            with pytest.raises(ConnectionRefusedError):
                conn.request("GET", "/")
            return
        else:
            self.origin.first_act = act
            known.is_open = True
            known.opened += 1
            known.exchanges = 0
        conn.request("GET", "/")
        known.far = far_end_of(conn)
        if answer is None:
            known.state = "under way"
            return
        known.hint = HINTS.get(what)
        if what in {"a part", "much"}:
            known.response = conn.getresponse()
            assert known.response.read(5) == b"hello"
            known.state = cast("Literal['a part', 'much']", what)
            return
        response = conn.getresponse()
        if what == "truncated":
            with pytest.raises(IncompleteRead):
                response.read()
            self.model.end(known, CloseReason.TRUNCATED)
            return
        assert response.read() == b"hello"
        known.exchanges += 1
        if what == "end of connection":
            self.model.end(known, CloseReason.SERVER_CLOSE)
        if what == "left-over":
            self.model.end(known, CloseReason.LEFTOVER)

    @precondition(lambda self: not self.origin.is_parking and self.idle_actor(0))
    @rule(pick=picks)
    def fail_inside_a_block(self, pick: int) -> None:
        actor = self.idle_actor(pick)
        assert actor is not None
        self.model.acquire(actor, may_wait=False)
        if isinstance(known := self.model.expected[actor], Known):
            self.model.abort(known, CloseReason.ERROR)
            self.model.expected[actor] = BlockError
            self.model.serve()

        def fail() -> None:
            with self.pool.connection(0):
                raise BlockError

        actor.begin(fail)
        self.settle()

    @precondition(lambda self: not self.origin.is_parking and self.idle_actor(0))
    @rule(pick=picks, what=st.sampled_from(["whole", "end of connection", "hang up"]))
    def request(self, pick: int, what: str) -> None:
        actor = self.idle_actor(pick)
        assert actor is not None
        self.model.acquire(actor, may_wait=False)
        known = self.model.expected[actor]
        outcome = "2xx"
        if isinstance(known, Known):
            act = FarEnd.end if what == "hang up" else lambda far: far.say(ANSWERS[what])
            if known.far is None:
                self.origin.first_act = act
            else:
                known.far.act = act
            if what != "hang up":
                self._end_request(known, what)
                del self.model.expected[actor]
            elif not known.is_reused:
                self.model.abort(known, CloseReason.ERROR)
                self.model.expected[actor] = RemoteDisconnected
            else:
                self._ask_again(actor, known)
        if (fault := self.model.expected.get(actor)) is not None:
            outcome = "timeout" if fault is AcquireTimeout else "error"
        self.model.requests[outcome] += 1
        self.model.serve()
        actor.begin(lambda: self.pool.request("GET", "/", timeout=Timeout(acquire=0)).data)
        self.settle()
        if outcome == "2xx":
            assert actor.take() == b"hello"

    def _end_request(self, known: Known, what: str = "whole") -> None:
        known.exchanges += 1
        known.hint = None
        if known.far is not None:
            known.far.was_asked = True
        if what == "end of connection":
            self.model.end(known, CloseReason.SERVER_CLOSE)
        self.model.release(known)

    def _ask_again(self, actor: Actor, known: Known) -> None:
        """Its peer has hung up at a request on a reused connection: the pool sends it again, on a new one."""
        model = self.model
        reason = CloseReason.STALE_EOF if known.exchanges else CloseReason.ERROR
        model.leased.remove(known)
        if reason is CloseReason.STALE_EOF:
            model.learn(reason, known)
        model.end(known, reason)
        model.leases += 1
        model.fold(known)
        model.stale["retried"] += 1
        model.doom_idle(lambda other: CloseReason.STALE_ASSUMED if other.idle_since <= known.idle_since else None)
        if self.origin.is_refusing:
            model.refused += 1
            model.expected[actor] = ConnectionRefusedError
            return
        known = model.enter()
        model.leased.append(known)
        del model.expected[actor]
        self._end_request(known)

    # --- what others do

    @precondition(lambda self: self.at_rest_and_open())
    @rule(pick=picks, misdeed=st.sampled_from([*MISDEEDS]))
    def peer(self, pick: int, misdeed: str) -> None:
        conns = self.at_rest_and_open()
        known = conns[pick % len(conns)]
        far = known.far
        assert far is not None
        if misdeed == "reset" and not far.was_asked:
            misdeed = "end"
        if misdeed == "end":
            far.end()
        elif misdeed == "reset":
            far.reset()
        else:
            far.say(TIMES_OUT if misdeed == "408" else b"SSH-2.0\r\n")
        known.misdeed = MISDEEDS[misdeed]

    def at_rest_and_open(self) -> list[Known]:
        return [
            known
            for known in self.model.idle + self.model.leased
            if known.is_open and known.state == "idle" and known.misdeed is None
        ]

    @rule(is_refusing=st.booleans())
    def listen_or_not(self, is_refusing: bool) -> None:
        self.origin.is_refusing = is_refusing

    @rule(is_parking=st.booleans())
    def be_slow_to_accept(self, is_parking: bool) -> None:
        self.origin.is_parking = is_parking

    @precondition(lambda self: self.origin.parked)
    @rule(pick=picks, is_refused=st.booleans())
    def accept(self, pick: int, is_refused: bool) -> None:
        dialling = self.model.dialling[pick % len(self.model.dialling)]
        parked = next(parked for parked in self.origin.parked if is_of(parked, dialling))
        self.model.end_dial(dialling, is_refused=is_refused)
        self.origin.let_go(parked, is_refused=is_refused)
        self.settle()

    @rule(seconds=st.sampled_from([0.5, 3.0, 10.0, 40.0, 70.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    # --- the pool as a whole

    @rule()
    def report_leaks(self) -> None:
        if self.pool.config.leak_after is not None:
            for known in self.model.leased:
                if not known.is_overdue and self.clock.now >= known.leased_at + LEAK_AFTER:
                    known.is_overdue = True
                    self.model.leaked += 1
        self.pool.report_leaks()

    @rule(maxsize=st.integers(1, 4))
    def resize(self, maxsize: int) -> None:
        self.model.resize(maxsize)
        self.pool.resize(maxsize)
        self.settle()

    @rule(everything=st.booleans())
    def prune(self, everything: bool) -> None:
        count = self.model.prune(everything=everything)
        assert self.pool.prune(everything=everything) == count
        self.settle()

    @precondition(lambda self: self.steps > SOME)
    @rule()
    def close(self) -> None:
        self.model.close()
        self.pool.close()
        self.settle()

    @precondition(lambda self: not any(actor.is_busy for actor in self.actors) and not self.model.dialling)
    @rule()
    def fork(self) -> None:
        self.pool.renew_after_fork()
        self.lock = watch_anew(self.lock, self.pool, self.changed)
        lent = [known.conn for known in self.model.leased if known.conn is not None]
        for known in self.model.leased + self.model.idle:
            known.response = known.conn = None
        self.model.leased.clear()
        self.model.idle.clear()
        self.model.reset()
        for conn in lent:
            self.pool.release(conn)
            with pytest.raises(NotConnected):
                conn.request("GET", "/")

    # --- after each step

    def settle(self) -> None:
        """Wait until everybody has come back or cannot, and see who got what."""
        with self.changed:
            assert self.changed.wait_for(self.is_settled, BOUND), self.pool.explain()
        for parked in self.origin.parked:
            if parked.dial is not None and not any(dialling.dial is parked.dial for dialling in self.model.dialling):
                claim = parked.dial.claim
                assert claim is not None
                next(d for d in self.model.dialling if d.caller is claim.borrower).dial = parked.dial
        for actor, expected in list(self.model.expected.items()):
            if expected in {"waits", "dials"}:
                assert actor.is_busy, f"{actor.name} does not wait, but got {actor.result!r} {actor.fault!r}"
                continue
            del self.model.expected[actor]
            assert not actor.is_busy, f"{actor.name} waits, and should have got {expected}"
            if isinstance(expected, Known):
                self.bind(expected, actor.take())
            else:
                assert isinstance(expected, type)
                assert type(actor.fault) is expected, f"{actor.name} got {actor.result!r} {actor.fault!r}"
                with contextlib.suppress(expected):
                    actor.take()
        for known, entry in zip(self.model.idle, list(self.pool._idle), strict=True):
            self.bind(known, entry.conn)

    def bind(self, known: Known, conn: object) -> None:
        """Check that a connection is the one that the model means; a new one is that from now on."""
        assert isinstance(conn, HTTPConnection)
        if known.conn is None:
            known.conn, known.far = conn, far_end_of(conn)
        assert known.conn is conn

    def is_settled(self) -> bool:
        return are_settled(self.actors, self.origin, [self.pool], self.lock)

    @invariant()
    def everything_adds_up(self) -> None:
        self.steps += 1
        self.books_are_in_order()
        self.numbers_are_the_models()
        self.no_socket_is_open_that_nobody_has()

    def books_are_in_order(self) -> None:
        with self.lock.inner:
            at_rest([self.pool])
        if self.lock.broken:
            raise self.lock.broken[0]

    def numbers_are_the_models(self) -> None:
        model, stats = self.model, self.pool.stats()
        gauges = {"idle": stats.idle, "leased": stats.leased, "opening": stats.opening, "waiting": stats.waiting}
        assert gauges == {
            "idle": len(model.idle),
            "leased": len(model.leased),
            "opening": len(model.dialling),
            "waiting": len(model.waiters),
        }
        assert counted(stats.closed) == +model.closed
        assert counted(stats.acquires) == +model.acquires
        assert counted(stats.drains) == +model.drains
        assert counted(stats.stale) == +model.stale
        assert counted(stats.requests) == +model.requests
        assert (stats.opened, stats.leaked, stats.connect_failures["refused"], stats.use.count) == (
            model.opened,
            model.leaked,
            model.refused,
            model.leases,
        )
        assert stats.opened == sum(stats.closed.values()) + stats.idle + stats.leased

    def no_socket_is_open_that_nobody_has(self) -> None:
        have = [known for known in self.model.idle + self.model.leased if known.is_open]
        assert sum(not far.is_left for far in self.origin.far_ends) == len(have)

    def teardown(self) -> None:
        try:
            if hasattr(self, "pool"):
                self._end()
        finally:
            self.origin.is_refusing = False
            self.origin.let_all_go()
            if hasattr(self, "pool"):
                self.pool.close()
            for actor in self.actors:
                actor.dismiss()
            self.origin.close()

    def _end(self) -> None:
        """Close, let everything end, and look what is left."""
        self.model.close()
        self.pool.close()
        self.settle()
        self.origin.is_parking = self.origin.is_refusing = False
        while self.model.dialling:
            self.accept(0, is_refused=False)
        while self.model.leased:
            self.release(0)
        self.numbers_are_the_models()
        self.no_socket_is_open_that_nobody_has()
        assert self.pool._size_locked() == 0


def is_of(parked: Parked, dialling: Dialling) -> bool:
    return parked.dial is dialling.dial if dialling.is_late else parked.thread is dialling.caller


def counted(counts: object) -> Counter[str]:
    """Return counters without the zeros."""
    return +Counter(cast("dict[str, int]", counts))


def watch_anew(lock: WatchedLock, pool: ConnectionPool, changed: threading.Condition) -> WatchedLock:
    """Give a pool that has begun anew a watched lock, which remembers what the one before saw."""
    renewed = watch(pool, changed)
    renewed.broken = lock.broken
    return renewed


@LONG
def test_pool_does_what_its_model_does_whatever_happens() -> None:
    run_state_machine_as_test(PoolMachine, settings=settings(bounded(300), stateful_step_count=STEPS))


# --- several origins that share ---------------------------------------------------------------------------------------


class ManagerMachine(RuleBasedStateMachine):
    """Three origins under one `max_total`: nobody waits for what another origin leaves idle, and the first comes first.

    There is no second set of books here: what a step is to lead to is told from how things stand before it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.changed = threading.Condition()
        self.origin = Origin(self.changed)
        self.clock = FakeClock()
        self.actors = [Actor(name, self.changed) for name in NAMES]
        self.lent: list[tuple[HTTPConnection, PlayedPool]] = []
        self.waiting: list[tuple[Actor, PlayedPool]] = []  # in the order of their arrival

    @initialize(max_total=st.integers(1, 3), maxsize=st.sampled_from([1, 1, 2, 3]))
    def begin(self, max_total: int, maxsize: int) -> None:
        self.limit = max_total
        self.manager = PoolManager(
            max_total=max_total, maxsize=maxsize, registry=None, clock=self.clock, timeout=PATIENT, max_age=None
        )
        self.pools: list[PlayedPool] = []
        self.keeper = BookKeeper(self.pools, lambda: self.limit)
        self._watch([])
        for host in ("a.test", "b.test", "c.test"):
            pool = cast("PlayedPool", self.manager.pool(f"http://{host}/"))
            reach(pool, self.origin)
            self.pools.append(pool)

    def _watch(self, broken: list[AssertionError]) -> None:
        capacity = self.manager._capacity
        assert capacity is not None
        self.lock = WatchedLock(self.changed, self.keeper.look)
        self.lock.broken = broken
        capacity.lock = cast("threading.Lock", self.lock)
        for pool in self.pools:
            pool._lock = capacity.lock

    # --- how things stand

    @property
    def total(self) -> int:
        return sum(pool._size_locked() for pool in self.pools)

    def idle(self) -> list[tuple[float, HTTPConnection]]:
        """Return what is idle, the coldest first."""
        entries = [entry for pool in self.pools for entry in pool._idle]
        return sorted(((entry.idle_since, entry.conn) for entry in entries if entry.conn), key=lambda pair: pair[0])

    def free_actor(self, pick: int) -> Actor | None:
        free = [actor for actor in self.actors if not actor.is_busy]
        return free[pick % len(free)] if free else None

    def first_in(self, pools: list[PlayedPool]) -> Actor | None:
        return next((actor for actor, pool in self.waiting if pool in pools), None)

    def those_with_room(self) -> list[PlayedPool]:
        return [pool for pool in self.pools if pool._size_locked() < pool.maxsize]

    # --- the rules

    @precondition(lambda self: self.free_actor(0))
    @rule(pick=picks, where=st.integers(0, 2), may_wait=st.booleans())
    def acquire(self, pick: int, where: int, may_wait: bool) -> None:
        self.clock.now += 0.01  # no two come at the same time
        actor, pool = self.free_actor(pick), self.pools[where]
        assert actor is not None
        fresh = [entry.conn for entry in pool._idle if self.clock.now < entry.good_until]
        expired = len(pool._idle) - len(fresh)
        idle, total = self.idle(), self.total
        has_room = bool(fresh) or (
            pool._size_locked() - expired < pool.maxsize and (total < self.limit or len(idle) > 0)
        )
        actor.begin(lambda: (pool.acquire() if may_wait else pool.acquire(0), pool), is_patient=may_wait)
        if not has_room and may_wait:
            self.waiting.append((actor, pool))  # unless he would wait for himself: see settle()
        self.settle()
        if has_room:
            assert actor.is_busy == self.origin.is_parking or not actor.is_busy
            assert not isinstance(actor.fault, AcquireTimeout), "there was room"
            left = [conn for _, conn in self.idle()]
            evicted = [conn for _, conn in idle if conn not in left and conn not in fresh]
            if not fresh and total - expired >= self.limit:
                assert evicted[:1] == [idle[0][1]], "it was not the coldest that made room"

    @precondition(lambda self: self.full() and self.free_actor(0))
    @rule(pick=picks, where=picks)
    def queue_up(self, pick: int, where: int) -> None:
        full = self.full()
        self.acquire(pick, self.pools.index(full[where % len(full)]), may_wait=True)

    def full(self) -> list[PlayedPool]:
        return [pool for pool in self.pools if pool._size_locked() >= pool.maxsize and pool._leased]

    @precondition(lambda self: self.lent)
    @rule(pick=picks, is_closed=st.booleans())
    def release(self, pick: int, is_closed: bool) -> None:
        self.clock.now += 0.01  # and no two are idle for equally long
        conn, pool = self.lent.pop(pick % len(self.lent))
        others = [other for other in self.those_with_room() if other is not pool]
        is_kept = not is_closed and pool._size_locked() <= pool.maxsize
        waiting = list(self.waiting)
        late = [claim.borrower for claim in pool._late]
        own, another = self.first_in([pool]), self.first_in(others)
        if is_closed:
            conn.close()
        pool.release(conn)
        del conn
        if late or not is_kept:
            self.settle()
            return
        order = [actor for actor, _ in waiting]
        served = min((actor for actor in (own, another) if actor is not None), key=order.index, default=None)
        self.settle()
        still = [actor for actor, _ in self.waiting]
        gone = [actor for actor in order if actor not in still]
        assert gone == ([] if served is None else [served]), "somebody was passed over"

    @precondition(lambda self: not self.origin.is_parking and self.free_actor(0))
    @rule(count=st.integers(1, 3), pick=picks, where=st.integers(0, 2))
    def leave_idle(self, count: int, pick: int, where: int) -> None:
        before = len(self.lent)
        for _ in range(count):
            self.acquire(pick, where, may_wait=False)
        while len(self.lent) > before:
            self.clock.now += 1
            self.release(before, is_closed=False)

    @precondition(lambda self: self.lent)
    @rule(pick=picks)
    def drop(self, pick: int) -> None:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", ResourceWarning)
            pool = self.lent.pop(pick % len(self.lent))[1]
        assert len(warned) == 1
        assert pool.stats().leased == len([None for _, lender in self.lent if lender is pool])
        self.settle()

    @precondition(lambda self: self.idle())
    @rule(pick=picks)
    def peer_ends(self, pick: int) -> None:
        idle = self.idle()
        far_end_of(idle[pick % len(idle)][1]).end()

    @rule(is_parking=st.booleans())
    def be_slow_to_accept(self, is_parking: bool) -> None:
        self.origin.is_parking = is_parking

    @precondition(lambda self: self.origin.parked)
    @rule(pick=picks, is_refused=st.booleans())
    def accept(self, pick: int, is_refused: bool) -> None:
        parked = sorted(self.origin.parked, key=lambda attempt: attempt.caller)
        self.origin.let_go(parked[pick % len(parked)], is_refused=is_refused)
        self.settle()

    @rule(seconds=st.sampled_from([0.1, 10.0, 59.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(where=st.integers(0, 2), maxsize=st.integers(1, 3), all_of_them=st.booleans())
    def resize(self, where: int, maxsize: int, all_of_them: bool) -> None:
        if all_of_them:
            self.manager.resize(maxsize)
        else:
            self.pools[where].resize(maxsize)
        self.settle()

    @precondition(lambda self: self.waiting)
    @rule(pick=picks)
    def make_room_for_a_waiter(self, pick: int) -> None:
        pool = self.waiting[pick % len(self.waiting)][1]
        pool.resize(pool.maxsize + 1)
        self.settle()

    @rule(everything=st.booleans())
    def prune(self, everything: bool) -> None:
        before = [[(entry.conn, entry.idle_since) for entry in pool._idle] for pool in self.pools]
        self.manager.prune(everything=everything)
        self.settle()
        after = [[(entry.conn, entry.idle_since) for entry in pool._idle] for pool in self.pools]
        for were, are in zip(before, after, strict=True):
            assert are == [pair for pair in were if pair in are], "an idle connection has become younger"

    @precondition(lambda self: not any(actor.is_busy for actor in self.actors) and not self.origin.parked)
    @rule()
    def fork(self) -> None:
        capacity = self.manager._capacity
        assert capacity is not None
        capacity._pid = -1
        for pool in self.pools:
            pool.renew_after_fork()
        self._watch(self.lock.broken)
        self.lent.clear()
        assert self.total == 0

    # --- after each step

    def settle(self) -> None:
        """Wait until everybody has come back or cannot, and take what they have got."""
        with self.changed:
            assert self.changed.wait_for(self.is_settled, BOUND), self.manager.explain()
        for actor in self.actors:
            if actor.is_busy:
                continue
            with contextlib.suppress(AcquireTimeout, ConnectionRefusedError, PoolClosed):
                if (lease := actor.take()) is not None:
                    self.lent.append(cast("tuple[HTTPConnection, PlayedPool]", lease))
                del lease
        queued = {claim.borrower for pool in self.pools for claim in pool._waiters}
        self.waiting = [(actor, pool) for actor, pool in self.waiting if actor in queued]
        assert len(self.waiting) == len(queued), "somebody waits though there was room"

    def is_settled(self) -> bool:
        return are_settled(self.actors, self.origin, self.pools, self.lock)

    @invariant()
    def everything_adds_up(self) -> None:
        if self.lock.broken:
            raise self.lock.broken[0]
        with self.lock.inner:
            at_rest(self.pools, self.limit)
            capacity = self.manager._capacity
            assert capacity is not None
            assert capacity.used == self.total, f"{capacity.used} are counted, there are {self.total}"

    def teardown(self) -> None:
        try:
            self.origin.let_all_go()
            if hasattr(self, "manager"):
                self._end()
        finally:
            for actor in self.actors:
                actor.dismiss()
            self.origin.close()

    def _end(self) -> None:
        self.manager.close()
        self.settle()
        while self.lent:
            conn, pool = self.lent.pop()
            pool.release(conn)
        assert self.total == 0
        assert all(far.is_left for far in self.origin.far_ends)


@LONG
def test_origins_share_a_total_fairly_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager_room, "ConnectionPool", PlayedPool)
    run_state_machine_as_test(ManagerMachine, settings=settings(bounded(300), stateful_step_count=STEPS))
