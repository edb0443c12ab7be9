"""The books of one pool: who has which connection, who waits, and every move between them, under one lock.

Nothing here blocks.  Each method that needs the lock ends in ``_locked``; none of them resolves, connects, probes,
closes, logs or calls anybody back: what has to be closed is put into a list (`doomed`) for when the lock is free.

A connection is in exactly one place: in `_idle`, in `_leased`, or still a `Dial` in `_opening`.  Moving it under the
lock *is* the assignment, and ``len(_idle) + len(_leased) + len(_opening) <= maxsize`` holds whenever the lock is free.
A caller that finds neither an idle connection nor a free slot queues; whoever gives back a connection or a slot hands
it to the oldest waiter.  So while anybody waits, nothing is idle and no slot is free.

The pool keeps a strong reference to a connection only while it is idle.  One that a borrower drops is collected; its
`Entry`, a weak reference, then lands in a list, and the next one to hold the lock frees the slot.  So do claims and
dials, which their caller's frame keeps alive.

Any line may be interrupted: by a signal, by a greenlet's timeout, for want of memory.  So a move that is cut in half is
closed (`_strike_locked`, which may be repeated), what a claim is given is written down before it leaves the queue, and
what must not come apart is one statement without a call: Python delivers such exceptions after calls only.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from threading import current_thread

from . import forking
from .capacity import Capacity
from .config import PoolConfig
from .conn import HTTPConnection
from .errors import PoolFull
from .expiry import Expiry
from .hints import Final
from .opener import Opener, failure_of
from .records import Claim, Dial, Ended, Entry, Grant, Lost, Queue
from .stats import AcquireOutcome, CloseReason, Tally

# How many entries the cold end is swept by at each release: reuse is LIFO, so nobody else ever looks there.
_SWEEP: Final = 2
_INFINITE: Final = float("inf")


class Ledger:
    """The state of a pool and its moves; see `ConnectionPool` for the arguments."""

    # Many origins make many pools.  What a subclass or a test adds goes into `__dict__`, which costs nothing till then.
    __slots__ = ("__dict__", "__weakref__", "_are_kept", "_capacity", "_clock", "_constant_fields", "_exemplar",
                 "_expiry", "_idle", "_is_closed", "_is_unlimited", "_is_watched", "_last_connect_error", "_last_used",
                 "_late", "_leak_after", "_leased", "_lock", "_lost", "_note_work", "_opener", "_opening",
                 "_probe_after", "_tally", "_timeouts", "_waiters", "config", "host", "maxsize", "name", "origin",
                 "port", "reference", "scheme")  # fmt: skip

    def __init__(self, host: str, port: int | None, scheme: str, config: PoolConfig) -> None:
        self.config = config
        self._opener = opener = Opener(host, port, scheme, config)
        self.scheme = scheme
        self.host, self.port = opener.host, opener.port
        self.origin = f"{scheme}://{opener.shown}"
        self.name = config.name if config.name is not None else opener.shown.lower()

        self._clock = config.clock
        self._timeouts = config.timeouts
        self._probe_after = config.probe_after
        self._leak_after = config.leak_after
        self._exemplar = config.exemplar
        self._constant_fields = opener.constant_fields
        self.reference = weakref.ref(self)
        self._capacity: Capacity | None = None  # the pool shares in it; then `_lock` is the capacity's

        # Guards everything below.  Never under it: resolve, connect, TLS, probe, drain, close, log, callbacks, metrics.
        self._lock = threading.Lock()
        self.maxsize = config.maxsize
        self._idle: deque[Entry] = deque()  # newest at the right
        self._leased: set[Entry] = set()
        self._opening: weakref.WeakSet[Dial] = weakref.WeakSet()
        self._lost: list[Lost] = []  # filled by the garbage collector, without the lock
        self._waiters = Queue(self._lost)  # oldest at the left; they hold no slot
        self._late = Queue(self._lost)  # oldest at the left; each waits for its own dial, or what comes before it
        self._is_closed = False
        self._are_kept = True  # the connection that came back last stayed open: the next may be worth waiting for
        self._is_unlimited = config.max_requests is None  # and open: nothing but age ends a connection at release
        self._tally = Tally()
        self._expiry = Expiry(config)
        self._last_connect_error: tuple[float, str] | None = None  # when, and its text
        self._last_used = self._clock()
        self._is_watched = False  # by the watcher of leaks
        self._note_work: Callable[[], None] | None = None  # tells the metrics that this process is at work

        # A pool that is dropped without close() takes its idle sockets along; nobody else can reach them.
        weakref.finalize(self, _close_idle, self._idle)
        forking.register(self)

    def share(self, capacity: Capacity) -> None:
        """Take part in a manager's capacity; nobody uses the pool yet."""
        self._capacity = capacity
        self._lock = capacity.lock
        capacity.join(self)

    def _size_locked(self) -> int:
        return len(self._idle) + len(self._leased) + len(self._opening)

    @property
    def is_closed(self) -> bool:
        """Whether `close` has been called."""
        return self._is_closed

    # --- a claim, and what it may take ------------------------------------------------------------------

    def _claim_locked(
        self, claim: Claim, now: float, doomed: list[HTTPConnection], *, may_wait: bool
    ) -> list[Entry] | None:
        """Claim a free slot, or queue; return what the caller holds if he would wait for himself."""
        capacity = self._capacity
        has_room = self._size_locked() < self.maxsize
        if has_room and capacity is not None:
            has_room = capacity.make_room_locked(self, now, doomed)
            has_room = has_room and self._size_locked() < self.maxsize  # it may have been found for a waiter of ours
        if has_room:
            self._tally.unwaited += 1
            claim.dial = Dial(claim, now)
            self._opening.add(claim.dial)
            self._begin_dial_locked(claim, claim.dial)
            if capacity is not None:
                capacity.recount_locked(self)
            return None
        most = self.config.max_waiters
        if most is not None and len(self._waiters) >= most:
            raise PoolFull(
                f"{len(self._waiters)} callers wait for {self.origin} already ({counted(self._numbers_locked())})"
            )
        if may_wait and (held := self._held_by_locked(claim.borrower)):
            return held
        self._waiters.put(claim)
        if capacity is not None:
            capacity.queue_locked(claim, self)
        return None

    def _begin_dial_locked(self, claim: Claim, dial: Dial) -> None:
        """Choose how to dial: late if a connection may come back, and stay open, before the new one is there."""
        if self._are_kept and (self._leased or len(self._opening) > 1):
            dial.is_late = True
            self._late.put(claim)

    def _leave_locked(self, claim: Claim) -> None:
        """Take a claim out of the queues; its dial, if it runs already, goes on for somebody else."""
        self._dequeue_locked(claim)
        if claim.given is None or claim.given is Grant.SLOT:
            claim.given = Grant.LEFT
        dial = claim.dial
        if dial is not None:
            dial.forget_claim()
            if not dial.is_running:
                self._opening.discard(dial)

    def _dequeue_locked(self, claim: Claim) -> None:
        """Take a claim out of the queue in which it stands."""
        if not self._waiters.take_out(claim):
            self._late.take_out(claim)

    def _take_idle_locked(self, claim: Claim, now: float, doomed: list[HTTPConnection]) -> Entry | None:
        """Move the newest idle connection to the leased ones; those that are past a limit are doomed on the way.

        The claim has it before it moves, so that an interruption cannot lose it.
        """
        while self._idle:
            entry = self._idle[-1]
            if now >= entry.good_until:
                self._doom_locked(entry, self._expiry.why_expired(entry, now), doomed)
                continue
            claim.conn, claim.given = entry.conn, entry
            self._leased.add(entry)
            self._idle.pop()
            entry.conn = None
            entry.leased_at = now
            entry.borrower = current_thread()
            entry.stack = None
            entry.is_reused = True
            entry.is_lent = False
            return entry
        claim.conn = claim.given = None
        return None

    def _record_locked(self, conn: HTTPConnection, now: float) -> Entry:
        """Make the record of a connection that has just been opened; it is not counted yet."""
        self._expiry.forget(now)
        return Entry(conn, self._lost, now, self._expiry.expires_at(now), self._expiry.idle_limit)

    def _learn_locked(self, entry: Entry, reasons: list[CloseReason], now: float) -> None:
        """Learn from a connection that turned out dead how long its peer bears idle ones."""
        for reason in reasons:
            if self._expiry.learn(reason, entry.leased_at - entry.idle_since, now):
                limit = self._expiry.idle_limit
                for other in [*self._idle, *self._leased]:
                    other.idle_limit = min(other.idle_limit, limit)
                    other.good_until = min(other.good_until, other.idle_since + limit)

    def _count_connect_failure_locked(self, fault: BaseException, now: float) -> None:
        if not isinstance(fault, Exception):
            return  # an interruption says nothing of the origin
        self._tally.connect_failures[failure_of(fault)] += 1
        # Its text: the exception itself would hold the frames that it went through.
        self._last_connect_error = now, f"{type(fault).__name__}: {fault}"

    def _held_by_locked(self, borrower: threading.Thread) -> list[Entry] | None:
        """Return what a thread that is about to wait holds, if that is all that could be given back to it."""
        pools: list[Ledger] = [self]
        if self._capacity is not None and self._size_locked() < self.maxsize:
            pools = self._capacity.members_locked()  # it is not this pool that is full
        held: list[Entry] = []
        for pool in pools:
            if pool._opening or pool._idle:
                return None
            for entry in pool._leased:
                if entry.borrower is not borrower or not entry.is_lent:
                    return None
                held.append(entry)
        return held

    # --- what comes back --------------------------------------------------------------------------------

    def _why_not_keep_locked(self, entry: Entry, conn: HTTPConnection, now: float) -> CloseReason | None:
        if self._is_closed:
            return CloseReason.POOL_CLOSED
        if conn._is_users_own:
            return CloseReason.CLIENT_CLOSE
        if self._size_locked() > self.maxsize:
            return CloseReason.EVICTED
        return self._expiry.why_not_keep(entry, conn, now)

    def _keep_locked(
        self, entry: Entry, conn: HTTPConnection, now: float, doomed: list[HTTPConnection], *, is_reused: bool
    ) -> None:
        """Hand a leased connection on to whoever waits longest, or let it be idle.

        Args:
            entry: Stands in `_leased`.
            conn: Its connection.
            now: The moment.
            doomed: Takes the connection if its slot is owed to another origin.
            is_reused: Whether it has been lent before.
        """
        capacity = self._capacity
        claim = self._late.first() or self._waiters.first()
        if capacity is not None and capacity.is_another_first_locked(self, claim):
            self._strike_locked(entry, CloseReason.EVICTED)
            doomed.append(conn)
            self._serve_locked(now)
            return
        entry.idle_since = now
        if claim is not None:
            self._give_locked(claim, entry, conn, now, is_reused=is_reused)
            return
        entry.good_until = self._expiry.good_until(entry, now)
        entry.borrower = None
        entry.conn = conn
        self._idle.append(entry)
        self._leased.discard(entry)
        if capacity is not None:
            capacity.note_idle_locked(entry, self)
        if self._idle[0].good_until <= now:
            self._sweep_locked(now, doomed)
            self._serve_locked(now)

    def _give_locked(self, claim: Claim, entry: Entry, conn: HTTPConnection, now: float, *, is_reused: bool) -> None:
        """Hand a leased connection on to a claim in the queues."""
        if claim.dial is None:  # else its wait was over when it got its slot
            self._tally.wait.observe(max(now - claim.since, 0.0))
        else:
            claim.dial.forget_claim()  # what it brings is for somebody else
        entry.leased_at = now
        entry.borrower = claim.borrower
        entry.stack = None  # it was the last borrower's
        entry.is_reused = is_reused
        # From here on it is the claim's, even if nobody wakes its caller: he looks by himself, after a while.
        claim.conn, claim.given, entry.is_lent = conn, entry, False
        self._dequeue_locked(claim)
        claim.wake.release()

    def _grant_slot_locked(self, claim: Claim, now: float) -> None:
        """Let the oldest waiter open a connection."""
        dial = Dial(claim, now)
        self._opening.add(dial)
        self._tally.wait.observe(max(now - claim.since, 0.0))
        claim.dial, claim.given = dial, Grant.SLOT  # as above
        self._dequeue_locked(claim)
        claim.wake.release()

    def _serve_locked(self, now: float) -> None:
        """Give free slots to the oldest waiters; to be called when a connection has gone."""
        if self._capacity is not None:
            self._capacity.recount_locked(self)
            self._capacity.serve_locked(now)
            return
        while self._waiters and self._size_locked() < self.maxsize:
            claim = self._waiters.first()
            if claim is not None:
                self._grant_slot_locked(claim, now)

    def _serve(self) -> None:
        """Give free slots to the oldest waiters, even if looking at the clock is interrupted."""
        now = -_INFINITE
        try:
            now = self._clock()
        finally:
            with self._lock:
                self._serve_locked(now)

    # --- what ends --------------------------------------------------------------------------------------

    def _doom_locked(self, entry: Entry, reason: CloseReason, doomed: list[HTTPConnection]) -> None:
        """Take an idle connection out and count it as closed; the caller closes it outside the lock."""
        if entry.conn is not None:
            doomed.append(entry.conn)
        self._strike_locked(entry, reason)

    def _strike_locked(self, entry: Entry, reason: CloseReason) -> None:
        """Take a connection out of wherever it stands, and count it as closed, whatever interrupts it."""
        try:
            self._strike_once_locked(entry, reason)
        except BaseException:
            self._strike_once_locked(entry, reason)  # it goes on where it was interrupted
            raise

    def _strike_once_locked(self, entry: Entry, reason: CloseReason) -> None:
        self._leased.discard(entry)
        idle = self._idle
        if entry.conn is not None and idle:
            if idle[-1] is entry:
                idle.pop()
            elif entry in idle:  # nearly always at the cold end, where the search begins
                idle.remove(entry)
        self._fold_locked(entry)
        conn = entry()
        if conn is not None:
            conn._struck_for = reason
        counts = self._tally.closed
        counts[reason], entry.balance = counts[reason] + max(entry.balance, 0), 0
        entry.opened, entry.closed = [], []  # what the connection writes down from now on is counted already
        entry.conn = None

    def _doom_older_locked(self, dead: Entry, doomed: list[HTTPConnection]) -> None:
        """Close the idle connections that were used last before a dead one was: they most likely died with it."""
        for entry in list(self._idle):
            if entry.idle_since <= dead.idle_since:
                self._doom_locked(entry, CloseReason.STALE_ASSUMED, doomed)

    def _sweep_locked(self, now: float, doomed: list[HTTPConnection]) -> None:
        """Doom what is past its limits at the cold end, a little at each release."""
        for _ in range(_SWEEP):
            if not self._idle or now < self._idle[0].good_until:
                return
            coldest = self._idle[0]
            self._doom_locked(coldest, self._expiry.why_expired(coldest, now), doomed)

    def _evict_locked(self, entry: Entry, doomed: list[HTTPConnection]) -> bool:
        """Take a certain idle connection out, to make room for another origin's; return whether it was there."""
        if entry not in self._idle:  # nearly always the coldest, and so the first that is looked at
            return False
        self._doom_locked(entry, CloseReason.EVICTED, doomed)
        return True

    def _end_lease_locked(self, entry: Entry, now: float) -> None:
        self._strike_locked(entry, CloseReason.CLIENT_CLOSE)  # if its borrower took the socket out, he has closed it
        entry.is_overdue = False
        self._tally.use.observe(now - entry.leased_at)
        if entry.is_reused:
            self._tally.acquires[AcquireOutcome.REUSED] += 1

    def _fold_locked(self, entry: Entry) -> None:
        """Count what a connection has written into its journal, and strike it out there."""
        tally, opened, closed = self._tally, entry.opened, entry.closed
        counts = tally.closed
        while opened:
            tally.connect.observe(opened[0])
            tally.opened, entry.balance, opened[:1] = tally.opened + 1, entry.balance + 1, ()
        while closed:
            reason = closed[0]
            counts[reason], entry.balance, closed[:1] = counts[reason] + 1, entry.balance - 1, ()

    def _reap_locked(self, now: float) -> None:
        """Free the slots of connections that were collected while lent."""
        while self._lost:
            entry = self._lost[0]
            if isinstance(entry, Ended):
                if entry.entry in self._leased:
                    if entry.outcome is not None:
                        self._tally.requests[entry.outcome] += 1
                        self._tally.request.observe(entry.seconds)
                    self._end_lease_locked(entry.entry, now)
            elif not isinstance(entry, Entry):
                for queue in (self._waiters, self._late):
                    if entry in queue:
                        queue.remove(entry)
            else:
                is_leased = entry in self._leased
                self._strike_locked(entry, CloseReason.LEAKED)
                if is_leased:
                    if not entry.is_overdue:  # else this lease has been counted already
                        self._tally.leaked += 1
                    self._tally.use.observe(now - entry.leased_at)
                    if entry.is_reused and entry.is_lent:
                        self._tally.acquires[AcquireOutcome.REUSED] += 1
            del self._lost[0]
        self._serve_locked(now)

    # --- who holds what ---------------------------------------------------------------------------------

    def _numbers_locked(self) -> dict[str, int]:
        return {
            "maxsize": self.maxsize,
            "leased": len(self._leased),
            "idle": len(self._idle),
            "opening": len(self._opening),
            "waiting": len(self._waiters),
        }

    def _shared_locked(self) -> str:
        capacity = self._capacity
        return "" if capacity is None else f"; {capacity.used} of {capacity.limit} over all origins"

    # --- after a fork -----------------------------------------------------------------------------------

    def renew_after_fork(self) -> None:
        """Begin anew in a child process: empty, with a lock of its own, and nothing counted.

        The sockets have been closed by `forking`.  A connection that was lent when the process forked belongs to the
        parent; the child's copy is closed, and does not connect again.
        """
        lent = [conn for entry in list(self._leased) if (conn := entry()) is not None]
        idle = [entry.conn for entry in list(self._idle) if entry.conn is not None]
        if self._capacity is not None:
            self._capacity.renew_after_fork()
            self._lock = self._capacity.lock
        else:
            self._lock = threading.Lock()
        self._idle.clear()
        self._leased.clear()
        self._opening.clear()
        self._lost = []  # a new one: what is collected from now on of the parent's is not ours to count
        self._waiters, self._late = Queue(self._lost), Queue(self._lost)
        self._tally.reset()
        self._last_connect_error = None
        self._is_watched = False
        for conn in idle + lent:
            conn.abandon()


def counted(numbers: dict[str, int]) -> str:
    """Say how full a pool is."""
    return (
        f"{numbers['leased']} leased of {numbers['maxsize']}, {numbers['idle']} idle, {numbers['opening']} opening, "
        f"{numbers['waiting']} waiting"
    )


def _close_idle(idle: deque[Entry]) -> None:
    """Close what a pool that was dropped without `close` held; nobody else can reach it."""
    while idle:
        conn = idle.pop().conn
        if conn is not None:
            conn.close()
