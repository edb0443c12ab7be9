"""Connections without a network, threads that do one thing at a time, and a lock that looks at the books.

What the state machines and the race tests share.  A pool's connections are real; only whom they reach is played: an
`Origin`, to which each connection is a socket pair, and which answers, hangs up, refuses or keeps its caller waiting as
the test says.

A `WatchedLock` takes the place of a pool's lock.  Whenever it is let go it looks whether the books are in order, and it
tells whoever waits for something to happen in the pool, so that nobody has to ask again and again.
"""

from __future__ import annotations

import socket
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, cast

from pooledhttp import ConnectionPool, HTTPConnection
from pooledhttp.dial import Dialer
from pooledhttp.ledger import Ledger
from pooledhttp.records import Claim, Dial, Entry, Grant
from pooledhttp.states import State
from pooledhttp.timeouts import ConnectDeadline, Deadline, Timeout

BOUND: Final = 20.0
HELLO: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


class FakeClock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# --- the other end ----------------------------------------------------------------------------------------------------


class NearEnd(socket.socket):
    """Our end of a connection; what is sent makes the far end act at once."""

    def __init__(self, far: FarEnd, descriptor: int) -> None:
        super().__init__(fileno=descriptor)
        self.far = far

    def send(self, data: bytes, flags: int = 0, /) -> int:  # type: ignore[override]  # the stubs' buffers are private
        sent = super().send(data, flags)
        self.far.was_asked = True
        act, self.far.act = self.far.act, FarEnd.answer
        act(self.far)
        return sent


class FarEnd:
    """The peer of one connection.

    Attributes:
        near: Our end, for the asking.
        act: What it does when something is sent to it, once; then it goes back to answering.
        was_asked: Whether anything has been sent to it.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.near: Callable[[], NearEnd | None] = lambda: None
        self.act: Callable[[FarEnd], None] = FarEnd.answer
        self.was_asked = False

    def say(self, data: bytes) -> None:
        """Send something, asked or not."""
        self._socket.sendall(data)

    def answer(self) -> None:
        """Send a short response."""
        self.say(HELLO)

    def be_silent(self) -> None:
        """Send nothing."""

    def end(self) -> None:
        """End the connection in order."""
        try:
            while self._socket.recv(65536, socket.MSG_DONTWAIT):
                pass
        except OSError:
            pass
        self._socket.close()

    def reset(self) -> None:
        """End the connection with what was asked unread, which the kernel tells as a reset."""
        assert self.was_asked
        self._socket.close()

    def close(self) -> None:
        self._socket.close()

    @property
    def is_left(self) -> bool:
        """Whether our end is closed."""
        near = self.near()
        return near is None or near.fileno() < 0


def far_end_of(conn: HTTPConnection) -> FarEnd:
    """Return the peer of an open connection."""
    transport = conn._transport
    assert transport is not None
    return cast("NearEnd", transport.sock).far


@dataclass(eq=False)
class Parked:
    """An attempt to connect that waits for the test's word.

    Attributes:
        dial: What runs in a thread of its own; ``None`` where a caller dials himself.
        thread: The thread that dials.
        caller: The name of whoever it was begun for.
    """

    dial: Dial | None
    thread: threading.Thread
    caller: str
    is_refused: bool = False
    go_on: threading.Event = field(default_factory=threading.Event)


class Origin:
    """Whom a pool reaches.

    Args:
        changed: Is told when an attempt to connect begins to wait.

    Attributes:
        far_ends: Of every connection there was.
        is_refusing: Whether nobody listens.
        is_parking: Whether connecting takes until the test says so.
        parked: The attempts that wait for that.
        first_act: What the next connection does when it is asked for the first time.
    """

    def __init__(self, changed: threading.Condition | None = None) -> None:
        self.changed = threading.Condition() if changed is None else changed
        self.far_ends: list[FarEnd] = []
        self.is_refusing = False
        self.is_parking = False
        self.parked: list[Parked] = []
        self.first_act: Callable[[FarEnd], None] = FarEnd.answer

    def connect(self) -> NearEnd:
        is_refused = self.is_refusing
        if self.is_parking:
            dial: Dial | None = getattr(_this_thread, "dial", None)
            thread = threading.current_thread()
            claim = None if dial is None else dial.claim
            parked = Parked(dial, thread, thread.name if claim is None else claim.borrower.name)
            with self.changed:
                self.parked.append(parked)
                self.changed.notify_all()
            assert parked.go_on.wait(BOUND), "the test has forgotten an attempt to connect"
            is_refused = parked.is_refused
        if is_refused:
            raise ConnectionRefusedError("played")
        ours, theirs = socket.socketpair()
        far = FarEnd(theirs)
        far.act, self.first_act = self.first_act, FarEnd.answer
        near = NearEnd(far, ours.detach())
        far.near = weakref.ref(near)
        self.far_ends.append(far)
        return near

    def await_parked(self, count: int) -> list[Parked]:
        """Wait until so many attempts wait for the test's word, and return them."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.parked) >= count, BOUND)
            return list(self.parked)

    def let_go(self, parked: Parked, *, is_refused: bool = False) -> None:
        """Let an attempt that waits end now."""
        parked.is_refused = is_refused
        with self.changed:
            self.parked.remove(parked)
        parked.go_on.set()

    def let_all_go(self) -> None:
        """Let every attempt end, and park no more."""
        self.is_parking = False
        for parked in list(self.parked):
            self.let_go(parked)

    def close(self) -> None:
        for far in self.far_ends:
            far.close()


class PlayedDialer(Dialer):
    """Reaches an `Origin`."""

    origin: Origin

    def dial(self, deadline: ConnectDeadline) -> socket.socket:
        return self.origin.connect()


def reach(pool: Ledger, origin: Origin) -> None:
    """Let a pool's connections lead to a played origin."""
    pool._opener._dialer = PlayedDialer(host=pool.host, port=pool.port, origin=origin)


_this_thread = threading.local()


class PlayedPool(ConnectionPool):
    """A pool that notes which of its dials runs in which thread.

    Attributes:
        dial_threads: How many threads dial for it.
    """

    dial_threads = 0

    def _run_dial(self, dial: Dial, timeouts: Timeout, deadline: Deadline | None) -> None:
        _this_thread.dial = dial
        try:
            super()._run_dial(dial, timeouts, deadline)
        finally:
            with self._lock:
                self.dial_threads -= 1

    def _dial_late(self, claim: Claim, dial: Dial, timeouts: Timeout, deadline: Deadline | None) -> Entry | None:
        with self._lock:
            self.dial_threads += 1
        return super()._dial_late(claim, dial, timeouts, deadline)


# --- the lock ---------------------------------------------------------------------------------------------------------


class WatchedLock:
    """A lock that looks at the books when it is let go, and tells that something may have changed.

    Attributes:
        look: Raises AssertionError when the books are wrong; the lock is held.
        broken: What it raised: in the middle of an operation it would be taken for the operation's own.
    """

    def __init__(self, changed: threading.Condition, look: Callable[[], None] = lambda: None) -> None:
        self.inner = threading.Lock()
        self.look = look
        self.broken: list[AssertionError] = []
        self._changed = changed

    def __enter__(self) -> None:
        self.inner.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.look()
        except AssertionError as wrong:
            self.broken.append(wrong)
        finally:
            self.inner.release()
        with self._changed:
            self._changed.notify_all()


def watch(pool: Ledger, changed: threading.Condition) -> WatchedLock:
    """Give a pool a lock that looks at its books; nobody uses the pool yet."""
    lock = WatchedLock(changed, BookKeeper([pool]).look)
    pool._lock = cast("threading.Lock", lock)
    return lock


class BookKeeper:
    """Looks whether the books of pools are in order; their lock is held.

    Args:
        pools: They may be added to.
        limit: Returns how many connections they may have together, or ``None``.
    """

    def __init__(self, pools: Sequence[Ledger], limit: Callable[[], int] | None = None) -> None:
        self._pools = pools
        self._limit = limit
        self._sizes: weakref.WeakKeyDictionary[Ledger, int] = weakref.WeakKeyDictionary()

    def look(self) -> None:
        for pool in self._pools:
            self._look_at(pool)
        if self._limit is not None:
            total = sum(pool._size_locked() for pool in self._pools)
            assert total <= self._limit(), f"{total} connections over all origins, allowed are {self._limit()}"

    def _look_at(self, pool: Ledger) -> None:
        size, before = pool._size_locked(), self._sizes.get(pool, 0)
        self._sizes[pool] = size
        # After it was made smaller there may be more than maxsize, but never one more than before.
        assert size <= max(pool.maxsize, before), f"{size} connections of {pool.maxsize}, after {before}"

        idle = list(pool._idle)
        assert len(set(idle)) == len(idle), "a connection is idle twice"
        assert not pool._leased & set(idle), "a connection is both idle and leased"
        conns = [conn for entry in [*idle, *pool._leased] if (conn := entry()) is not None]
        assert len({id(conn) for conn in conns}) == len(conns), "a connection has two entries"
        for entry in idle:
            conn = entry.conn
            assert conn is not None
            assert conn._lease is None, "an idle connection is lent"
            assert conn.state is State.IDLE, f"an idle connection is {conn.state.name}"
            transport = conn._transport
            assert transport is not None
            assert transport.is_open, "the socket of an idle connection is closed"
            assert not transport.has_leftover, "an idle connection has left-over bytes"
        if pool._is_closed:
            assert not idle, "something is idle in a closed pool"
            assert not pool._waiters, "somebody waits for a closed pool"
            assert not pool._late, "somebody waits for a dial of a closed pool"
        assert not (idle and (pool._waiters or pool._late)), "somebody waits though a connection is idle"
        for claim in pool._waiters:
            assert claim.is_waiting, "a claim waits that has been given something"
        for claim in pool._late:
            assert claim.given is None, "a claim waits for its dial and has been given something"
            assert claim.dial is not None, "a claim waits for its dial and has none"
        for dial in pool._opening:
            claim_of = dial.claim
            assert claim_of is None or claim_of.dial in {dial, None}, "a dial is for a claim that has another"


def at_rest(pools: Sequence[Ledger], limit: int | None = None) -> None:
    """Check what holds when nobody is at work: nobody waits for what is there, and the counters add up."""
    total = sum(pool._size_locked() for pool in pools)
    for pool in pools:
        has_room = pool._size_locked() < pool.maxsize
        if limit is None:
            assert not (pool._waiters and has_room), "somebody waits though a slot is free"
        elif pool._waiters and has_room:
            assert total >= limit, "somebody waits though there is room over all origins"
            assert not any(other._idle for other in pools), "somebody waits though another origin's could make room"
        for claim in pool._late:
            assert claim.dial in pool._opening, "somebody waits for a dial that has ended"
        for dial in pool._opening:
            assert dial.claim is None or dial.claim.given in {None, Grant.SLOT}, "a dial is for a claim that was served"
        tally = pool._tally
        assert tally.opened == sum(tally.closed.values()) + len(pool._idle) + len(pool._leased), "it does not add up"


# --- threads ----------------------------------------------------------------------------------------------------------


class Actor(threading.Thread):
    """A thread that does one thing after the other, as it is told.

    Args:
        name: Of the thread.
        changed: Is told when it has done something.

    Attributes:
        is_busy: Whether it is at work.
        is_patient: Whether this work may wait for a connection; else it only passes through the queue.
        result: What the last work returned, until it is taken.
        fault: What it raised.
    """

    def __init__(self, name: str, changed: threading.Condition) -> None:
        super().__init__(name=name, daemon=True)
        self._changed = changed
        self._work: Callable[[], object] | None = None
        self._is_dismissed = False
        self.is_busy = False
        self.is_patient = False
        self.result: object = None
        self.fault: BaseException | None = None
        self.start()

    def begin(self, work: Callable[[], object], *, is_patient: bool = False) -> None:
        """Have it do something."""
        with self._changed:
            assert not self.is_busy
            self._work, self.is_busy, self.is_patient = work, True, is_patient
            self.result = self.fault = None
            self._changed.notify_all()

    def take(self) -> object:
        """Return what it has returned, or raise what it raised; it keeps neither."""
        with self._changed:
            assert not self.is_busy, f"{self.name} is still at work"
            result, fault = self.result, self.fault
            self.result = self.fault = None
        if fault is not None:
            try:
                raise fault
            finally:
                del fault
        return result

    def finish(self) -> object:
        """Wait until it is done, and take what came of it."""
        with self._changed:
            assert self._changed.wait_for(lambda: not self.is_busy, BOUND), f"{self.name} does not come back"
        return self.take()

    def dismiss(self) -> None:
        with self._changed:
            self._is_dismissed = True
            self._changed.notify_all()
        self.join(BOUND)
        assert not self.is_alive()

    def run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._work is not None or self._is_dismissed)
                work, self._work = self._work, None
            if work is None:
                return
            self._do(work)
            del work

    def _do(self, work: Callable[[], object]) -> None:
        result: object = None
        fault: BaseException | None = None
        try:
            result = work()
        except BaseException as raised:  # noqa: BLE001  # it is raised where it is looked for
            fault = raised.with_traceback(None)  # whose frames would hold connections
        with self._changed:
            self.result, self.fault, self.is_busy = result, fault, False
            del result, fault  # whoever takes it shall be the only one to have it
            self._changed.notify_all()


def are_settled(hired: Sequence[Actor], origin: Origin, pools: Sequence[PlayedPool], lock: WatchedLock) -> bool:
    """Tell whether each actor has come back or cannot, and nothing else is under way in the pools."""
    with lock.inner:
        waiting = {claim.borrower for pool in pools for claim in pool._waiters}
        late = {claim.borrower for pool in pools for claim in pool._late}
        opening = sum(len(pool._opening) for pool in pools)
        dial_threads = sum(pool.dial_threads for pool in pools)
    dialling = {parked.thread for parked in origin.parked if parked.dial is None}
    return (
        opening == len(origin.parked)
        and dial_threads == len(origin.parked) - len(dialling)
        and all(
            not actor.is_busy or actor in late or actor in dialling or (actor.is_patient and actor in waiting)
            for actor in hired
        )
    )


@contextmanager
def actors(changed: threading.Condition, *names: str) -> Iterator[list[Actor]]:
    """Hire actors for the length of a block."""
    hired = [Actor(name, changed) for name in names]
    try:
        yield hired
    finally:
        for actor in hired:
            actor.dismiss()
