"""Lends the connections of one origin and takes them back: everything that can block, outside the lock.

The walk of an acquire: under the lock, one of three (an idle connection, a slot, a place in the queue; see `ledger`);
then, without it, probe the reused connection, or dial, or wait.

A caller that has a slot opens a connection in it.  If nothing can come back meanwhile it does so itself.  Otherwise the
dial runs in a thread of its own, and the caller takes whichever comes first, a connection that is given back or the new
one (late binding); what it does not take goes to the oldest waiter, or to the idle ones.

Whatever is raised between acquire and release, the connection is closed and its slot is free again.
"""

from __future__ import annotations

import errno
import threading
import time
import weakref
from threading import current_thread

from . import forking, leaks, log
from .config import PoolConfig
from .conn import BLOCKSIZE, HTTPConnection
from .errors import AcquireTimeout, PoolClosed, PoolFull, ReadTimeout, SelfDeadlock, TotalTimeout
from .hints import Final
from .ledger import Ledger, counted
from .records import Claim, Dial, Ended, Entry, Grant, by_age, describe, describe_at_length, name_of
from .states import State
from .stats import (
    OUTCOME_BY_STATUS_CLASS,
    AcquireOutcome,
    CloseReason,
    DrainOutcome,
    Histogram,
    RequestOutcome,
    StaleOutcome,
    can_be_exemplar,
)
from .timeouts import Deadline, Timeout
from .transport import main_thread

_IDLE: Final = State.IDLE
# What a borrower may set on a connection for the time of his lease; whatever else he does keeps it from being lent on.
_BORROWERS_OWN: Final = frozenset({"debuglevel", "expect_continue_timeout"})
# So many finished leases are sorted into the histograms at a time.
_SORTED_AT_ONCE: Final = 64
# How often a waiter looks for what nobody tells, in seconds: a lost connection, or one whose giver was interrupted.
_LOST_CHECK: Final = 1.0
_INFINITE: Final = float("inf")
# A connection that was idle for so many seconds, and then gets no answer at all, may have been forgotten on its way (by
# a gateway, or a server that lost its power): then so were those that have been idle for longer.
_LONG_IDLE: Final = 5.0
# How many leases the text of an error describes.
_SHOWN_AT_MOST: Final = 10
_NO_DESCRIPTOR_LEFT: Final = frozenset({errno.EMFILE, errno.ENFILE})

# How often a dial is tried again with one descriptor more: resolving and TLS settings may need one for a moment, too.
_EVICTIONS: Final = 3

# Every pool of the process: one that finds no descriptor left asks the others for theirs.
_pools: weakref.WeakSet[Lender] = weakref.WeakSet()


class Lender(Ledger):
    """What a `ConnectionPool` does for one lease; see there for the arguments."""

    __slots__ = ()

    def __init__(self, host: str, port: int | None, scheme: str, config: PoolConfig) -> None:
        super().__init__(host, port, scheme, config)
        _pools.add(self)

    # --- acquire ----------------------------------------------------------------------------------------

    def _acquire(self, now: float, timeouts: Timeout, deadline: Deadline | None) -> HTTPConnection:
        """Take the newest idle connection, or a free slot and open one, or wait for whichever comes first."""
        entry: Entry | None = None
        conn: HTTPConnection | None = None
        try:
            with self._lock:
                idle = self._idle  # which is empty when the pool is closed
                if idle and not self._lost and now < idle[-1].good_until:
                    # The usual case of _take_idle_locked(), in few steps.
                    entry = idle[-1]
                    self._leased.add(entry)
                    idle.pop()
                    conn = entry.conn
                    entry.conn = None
                    entry.leased_at = now
                    entry.borrower = current_thread()
                    entry.is_reused = True
                    entry.is_lent = False
                    self._tally.unwaited += 1
            if conn is not None and entry is not None and self._check_out(entry, conn, timeouts, deadline):
                return conn
        except BaseException as fault:
            self._undo_acquire(None, entry, fault)
            raise
        return self._acquire_otherwise(entry, conn, now, timeouts, deadline)

    def _acquire_otherwise(
        self,
        stale: Entry | None,
        conn: HTTPConnection | None,
        now: float,
        timeouts: Timeout,
        deadline: Deadline | None,
    ) -> HTTPConnection:
        """Acquire where the newest idle connection will not do.

        Args:
            stale: It, if it turned out stale, and still leased; its slot is ours.
            conn: Its connection: that it lives keeps the slot ours.
            now: When the acquire began.
            timeouts: The limits of the lease.
            deadline: When the whole call must be over, or ``None``.
        """
        claim = Claim(now)  # ours before the pool has it, so that an interruption cannot lose it
        entry = stale
        try:
            entry = self._take_or_claim(claim, now, timeouts) if stale is None else self._take_after_stale(stale, claim)
            while True:
                dial = claim.dial
                if entry is not None:
                    conn, claim.conn = claim.conn, None
                    assert conn is not None
                    if self._check_out(entry, conn, timeouts, deadline):
                        return conn
                    entry = self._take_after_stale(entry, claim)
                elif dial is None:
                    entry = self._wait_for_slot(claim, timeouts, deadline)
                elif dial.is_late:
                    entry = self._dial_late(claim, dial, timeouts, deadline)
                else:
                    return self._open(dial, timeouts, deadline, AcquireOutcome.OPENED)
        except BaseException as fault:
            self._undo_acquire(claim, entry, fault)
            raise

    def _take_or_claim(self, claim: Claim, now: float, timeouts: Timeout) -> Entry | None:
        """Return an idle connection, or give the claim a slot or a place in the queue.

        Raises:
            PoolClosed, PoolFull, SelfDeadlock: There is nothing to be had.
        """
        doomed: list[HTTPConnection] = []
        held: list[Entry] | None = None
        with self._lock:
            if self._lost:
                self._reap_locked(now)
            if self._is_closed:
                raise PoolClosed(f"the pool of {self.origin} is closed")
            entry = self._take_idle_locked(claim, now, doomed)
            if entry is None:
                held = self._claim_locked(claim, now, doomed, may_wait=timeouts.acquire != 0)
            else:
                self._tally.unwaited += 1
                if doomed:
                    self._serve_locked(now)
        for conn in doomed:
            conn.close()
        if held is not None:
            raise self._self_deadlock(held, now)
        return entry

    def _wait_for_slot(self, claim: Claim, timeouts: Timeout, deadline: Deadline | None) -> Entry | None:
        """Wait until a connection is given back, and return it; ``None`` means that the claim has a slot now."""
        until = _INFINITE if timeouts.acquire is None else claim.since + timeouts.acquire
        if deadline is not None:
            until = min(until, deadline.at)
        given = self._await(claim, until)
        if self._exemplar is not None and until > claim.since:
            self._exemplify(self._tally.wait, self._clock() - claim.since)
        if given is Grant.LEFT:
            raise self._acquire_timeout(until - claim.since)
        if given is not Grant.SLOT:
            return given if isinstance(given, Entry) else None
        now = self._clock()
        doomed: list[HTTPConnection] = []
        dial = claim.dial
        assert dial is not None
        with self._lock:
            if self._is_closed:
                raise PoolClosed(f"the pool of {self.origin} was closed")
            entry = self._take_idle_locked(claim, now, doomed)
            if entry is None:
                self._begin_dial_locked(claim, dial)
            else:  # it came back while we woke up
                self._opening.discard(dial)
                claim.dial = None
                self._serve_locked(now)
        for conn in doomed:
            conn.close()
        return entry

    def _dial_late(self, claim: Claim, dial: Dial, timeouts: Timeout, deadline: Deadline | None) -> Entry | None:
        """Dial in another thread; return the new connection or one that is given back, whichever comes first.

        Returns:
            The connection; ``None`` where no thread can be started: then the caller dials himself.

        Raises:
            TotalTimeout: The call's total is used up; the dial goes on for whoever comes next.
            ConnectTimeout, OSError: What the dial failed with.
        """
        if deadline is not None:
            deadline.enter("connect")
        # The dial is not only this caller's: it has its own limit, and the call's total only where there is no other.
        limit = deadline if timeouts.connect is None else None
        thread = threading.Thread(
            target=self._run_dial, args=(dial, timeouts, limit), name=f"pooledhttp-dial-{self.host}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # no more threads, or the interpreter is about to end
            now = self._clock()
            with self._lock:
                dial.is_late = False
                if claim.given is None:
                    self._dequeue_locked(claim)
                    return None
                self._opening.discard(dial)  # something was given back already
                self._serve_locked(now)
        else:
            dial.thread = thread
        given = self._await(claim, _INFINITE if deadline is None else deadline.at)
        if given is Grant.LEFT:
            assert deadline is not None
            raise deadline.exceeded()
        if isinstance(given, BaseException):
            claim.given = Grant.LEFT
            try:
                raise given
            finally:
                del given  # the frame in the traceback would hold it, and it the frame; so would the claim
        return given if isinstance(given, Entry) else None

    def _await(self, claim: Claim, until: float) -> Entry | Grant | BaseException:
        """Wait until a claim is given something; `Grant.LEFT` when time is up.

        Raises:
            PoolClosed: The pool was closed meanwhile.
        """
        # Nobody may be left to wake us: a connection was lost, or whoever gave us something was interrupted.
        while True:
            left = until - self._clock()
            is_woken = left > 0 and claim.wake.acquire(timeout=min(left, _LOST_CHECK))
            now = self._clock()
            with self._lock:
                if not is_woken:
                    if claim.given is None:
                        if self._lost:
                            self._reap_locked(now)
                        if self._capacity is not None:
                            self._capacity.reap_locked(now)  # what was lost may be another origin's
                        self._serve_locked(now)
                    if claim.given is None and self._is_closed:
                        claim.given = Grant.POOL_CLOSED
                    dial = claim.dial
                    if claim.given is None and dial is not None and dial.thread and not dial.thread.is_alive():
                        dial.thread, dial.is_late, dial.is_running = None, False, False
                        claim.given = Grant.SLOT  # it has ended without a word: the caller dials himself
                    if claim.given is not None:
                        self._dequeue_locked(claim)
                given = claim.given
                if given is None and left <= 0:
                    # A wait in vain is a wait: without it, the more callers give up the shorter all waits would look.
                    # One who may not wait at all has none, and a late dial's was over when it got its slot.
                    if claim.dial is None and until > claim.since:
                        self._tally.wait.observe(max(now - claim.since, 0.0))
                    self._leave_locked(claim)
                    return Grant.LEFT
            if given is Grant.POOL_CLOSED:
                raise PoolClosed(f"the pool of {self.origin} was closed")
            if given is not None:
                claim.wake.acquire(blocking=False)  # if time was up just then: the next give() releases it again
                return given

    def _run_dial(self, dial: Dial, timeouts: Timeout, deadline: Deadline | None) -> None:
        """Open a connection, in a thread of its own, for the claim that began it or for anybody else."""
        try:
            with self._lock:
                if dial not in self._opening:
                    return  # its claim has gone, and has taken the slot back
                dial.is_running = True
            self._end_dial(dial, self._open_connection(timeouts, deadline))
        except BaseException as fault:  # noqa: BLE001  # raised again where it belongs
            self._end_failed_dial(dial, fault)
        finally:
            forking.end_thread()

    def _end_dial(self, dial: Dial, conn: HTTPConnection) -> None:
        """Hand a new connection to the claim that began it, or to the oldest waiter, or let it be idle."""
        doomed: list[HTTPConnection] = []
        try:
            now = self._clock()
            with self._lock:
                entry = self._record_locked(conn, now)
                entry.is_lent = True  # until somebody is given it
                try:
                    self._fold_locked(entry)
                    self._opening.discard(dial)
                    claim = dial.claim
                    is_awaited = claim is not None and claim.given is None
                    # It may have been resized meanwhile.  A claim keeps its slot all the same, as a lease does: nobody
                    # else would see to it.
                    if self._is_closed or (self._size_locked() >= self.maxsize and not is_awaited):
                        reason = CloseReason.POOL_CLOSED if self._is_closed else CloseReason.EVICTED
                        self._strike_locked(entry, reason)
                        doomed.append(conn)
                        if claim is not None and is_awaited:
                            claim.given = Grant.POOL_CLOSED
                            self._dequeue_locked(claim)
                            claim.wake.release()
                    else:
                        self._leased.add(entry)
                        self._last_used = now
                        if claim is not None and is_awaited:
                            self._give_locked(claim, entry, conn, now, is_reused=False)
                        else:
                            self._keep_locked(entry, conn, now, doomed, is_reused=False)
                    self._serve_locked(now)
                except BaseException:
                    if entry.is_lent:  # else somebody has it already
                        self._strike_locked(entry, CloseReason.ERROR)
                        doomed.append(conn)
                    raise
        finally:
            for closing in doomed:
                closing.close()

    def _end_failed_dial(self, dial: Dial, fault: BaseException) -> None:
        now = dial.since
        try:
            now = self._clock()
        finally:  # whoever waits is answered, whatever the clock does
            with self._lock:
                claim = dial.claim
                if claim is not None and claim.given is None:
                    claim.given = fault
                    self._dequeue_locked(claim)
                    claim.wake.release()
                self._opening.discard(dial)
                self._count_connect_failure_locked(fault, now)
                self._serve_locked(now)

    def _check_out(self, entry: Entry, conn: HTTPConnection, timeouts: Timeout, deadline: Deadline | None) -> bool:
        """Probe a reused connection and set its limits; ``False`` when it is stale, and closed now."""
        transport = conn._transport
        if entry.is_reused:
            if transport is None or (
                entry.leased_at - entry.idle_since >= self._probe_after and not transport.is_quiet()
            ):
                reason = CloseReason.CLIENT_CLOSE if transport is None else transport.staleness()
                if reason is not None:
                    conn._end(reason)
                    return False
        else:
            with self._lock:
                self._tally.acquires[AcquireOutcome.OPENED] += 1
        if timeouts is not conn._timeouts or (
            transport is not None and transport.uses_kernel_timers and entry.borrower is main_thread.thread
        ):
            conn._lend(deadline, timeouts)
        elif deadline is not conn._deadline:  # as a rule, both are None
            conn._renew_deadline(deadline)
        conn._is_probed = True
        conn._lease = entry
        entry.leases += 1
        entry.is_lent = True
        if self._leak_after is not None:
            self._note_borrower(entry, self._leak_after)
        return True

    def _take_after_stale(self, stale: Entry, claim: Claim) -> Entry | None:
        """Put another idle connection in a stale one's place, or else a dial: the slot stays ours."""
        doomed: list[HTTPConnection] = []
        now = self._clock()
        dial = Dial(claim, now)
        with self._lock:
            conn = stale()
            if conn is not None and conn._exchanges:  # a server bears an unused one for another time
                self._learn_locked(stale, stale.closed, now)
            self._strike_locked(stale, CloseReason.CLIENT_CLOSE)
            if self._is_closed:
                raise PoolClosed(f"the pool of {self.origin} was closed")
            entry = self._take_idle_locked(claim, now, doomed)
            if entry is None:
                claim.dial = dial
                self._opening.add(dial)
                self._begin_dial_locked(claim, dial)
            else:
                self._serve_locked(now)  # there is one connection less
        for closing in doomed:
            closing.close()
        return entry

    def _open(
        self, dial: Dial, timeouts: Timeout, deadline: Deadline | None, outcome: AcquireOutcome | None
    ) -> HTTPConnection:
        """Open a connection in a dial's slot and lease it.

        Args:
            dial: Stands in `_opening`.
            timeouts: The limits of the lease.
            deadline: When the whole call must be over, or ``None``.
            outcome: What to count the acquire as; ``None`` when it has been counted.
        """
        if deadline is not None:
            deadline.enter("connect")
        try:
            conn = self._open_connection(timeouts, deadline)
        except BaseException as fault:
            now = self._clock()
            with self._lock:
                self._count_connect_failure_locked(fault, now)
            raise
        entry: Entry | None = None
        reason = CloseReason.ERROR
        try:
            now = self._clock()
            with self._lock:
                entry = self._record_locked(conn, now)
                self._fold_locked(entry)
                if self._is_closed:
                    reason = CloseReason.POOL_CLOSED
                    raise PoolClosed(f"the pool of {self.origin} was closed")
                conn._lease = entry
                conn._is_probed = True
                self._leased.add(entry)
                self._opening.discard(dial)
                entry.is_lent = True
                self._last_used = now
                if outcome is not None:
                    self._tally.acquires[outcome] += 1
            if self._leak_after is not None:
                self._note_borrower(entry, self._leak_after)
        except BaseException:
            with self._lock:
                conn._lease = None
                if entry is not None:
                    self._strike_locked(entry, reason)
            conn.close()
            raise
        return conn

    def _open_connection(self, timeouts: Timeout, deadline: Deadline | None) -> HTTPConnection:
        """Open a connection; where no descriptor is left, again at the cost of other origins' idle ones."""
        if self._note_work is not None:
            self._note_work()
        for _ in range(_EVICTIONS):
            try:
                return self._opener.open(timeouts, deadline)
            except OSError as fault:
                if fault.errno not in _NO_DESCRIPTOR_LEFT:
                    raise
                if not any(pool.evict_coldest() for pool in _all_pools() if pool is not self):
                    raise
        return self._opener.open(timeouts, deadline)

    def evict_coldest(self) -> bool:
        """Close the connection that has been idle longest, for its descriptor; return whether there was one."""
        doomed: list[HTTPConnection] = []
        now = self._clock()
        with self._lock:
            if self._idle:
                self._doom_locked(self._idle[0], CloseReason.EVICTED, doomed)
                self._serve_locked(now)
        for conn in doomed:
            conn.close()
        return bool(doomed)

    def _undo_acquire(self, claim: Claim | None, entry: Entry | None, fault: BaseException) -> None:
        """Give back whatever a failed acquire holds, and count it."""
        held = [entry] if entry is not None else []
        doomed: list[HTTPConnection] = []
        now = -_INFINITE
        try:
            now = self._clock()
        finally:  # even if that is interrupted, too
            with self._lock:
                if claim is not None:
                    if isinstance(claim.given, Entry) and claim.given is not entry:
                        held.append(claim.given)  # handed over, and interrupted before it arrived
                    self._leave_locked(claim)
                for ours in held:
                    conn = ours()
                    if ours in self._leased and conn is not None:
                        conn._lease = None
                        doomed.append(conn)
                        self._strike_locked(ours, CloseReason.ERROR)
                self._tally.acquires[_acquire_outcome_of(fault)] += 1
                self._serve_locked(now)  # before anybody who comes later sees the slot
            for closing in doomed:
                closing._end(CloseReason.ERROR)
        # A process whose acquires all fail never dials, and is to be seen all the same.  Whoever is being interrupted
        # starts no thread.
        if self._note_work is not None and isinstance(fault, Exception):
            try:
                self._note_work()
            except Exception:  # noqa: BLE001  # the caller is to hear of what befell him, not of this
                pass

    def _acquire_timeout(self, seconds: float) -> AcquireTimeout:
        """Return the error that says who holds what."""
        now = self._clock()
        with self._lock:
            numbers = self._numbers_locked()
            holders: list[Ledger] = [self]
            if self._capacity is not None and self._size_locked() < self.maxsize:
                holders = self._capacity.members_locked()  # it is the total that has run out
            leased = (entry for pool in holders for entry in pool._leased if entry.borrower is not None)
            oldest = min(leased, key=by_age, default=None)
            failed_at, failure = self._last_connect_error or (now, None)
            shared = self._shared_locked()
        holder = None if oldest is None else describe(oldest, now)
        text = f"no connection to {self.origin} within {seconds:.2f} s ({counted(numbers)}{shared}"
        text += f"; oldest lease {holder})" if holder else ")"
        if failure is not None:
            text += f"; the last attempt to connect that failed: {failure} ({now - failed_at:.1f} s ago)"
        fault = AcquireTimeout(text, **numbers, oldest_lease=holder, last_connect_error=failure)
        if oldest is not None and oldest.stack is not None:
            fault.add_note(f"the oldest lease was acquired here:\n{leaks.render(oldest.stack)}")
        return fault

    def _self_deadlock(self, held: list[Entry], now: float) -> SelfDeadlock:
        with self._lock:
            numbers = self._numbers_locked()
            shared = self._shared_locked()
        held = sorted(held, key=by_age)[:_SHOWN_AT_MOST]
        leases = [describe(entry, now) for entry in held]
        limit = "maxsize" if numbers["leased"] >= numbers["maxsize"] else "max_total"
        fault = SelfDeadlock(
            f"no connection to {self.origin}: {name_of(held[0].borrower)} holds all that could be given back, and "
            f"would wait for itself ({counted(numbers)}{shared}; leased {'; '.join(leases)}): give one back first, or "
            f"raise {limit}",
            **numbers,
            oldest_lease=leases[0],
            last_connect_error=None,
        )
        for entry, lease in zip(held, leases, strict=True):
            if entry.stack is not None:
                fault.add_note(f"leased {lease}, acquired here:\n{leaks.render(entry.stack)}")
        return fault

    # --- release ----------------------------------------------------------------------------------------

    def _release(self, conn: HTTPConnection, status: int | None, started: float) -> None:
        """Take a connection back: to the oldest waiter, to the idle ones, or out of the pool."""
        entry = conn._lease
        if entry is None:
            return
        if not isinstance(entry, Entry) or entry.lost is not self._lost:
            raise ValueError(f"{conn!r} was not lent by the pool of {self.origin}")
        drained: DrainOutcome | None = None
        doomed: list[HTTPConnection] = []
        try:
            if conn._state is not _IDLE:
                drained = self._settle(conn)
            now = self._clock()
        except BaseException as fault:
            outcome = None if status is None else OUTCOME_BY_STATUS_CLASS[status // 100]
            self._abort(conn, fault, outcome, started)
            raise
        notice: tuple[threading.Thread | None, float] | None = None
        try:
            with self._lock:
                if conn._lease is not entry:
                    return  # another thread has released it meanwhile
                try:
                    conn._lease = None
                    tally = self._tally
                    tally.finished.append((now - entry.leased_at, entry.is_reused, status, now - started))
                    if len(tally.finished) >= _SORTED_AT_ONCE:
                        tally.sort()
                    if entry.is_overdue:
                        entry.is_overdue = False
                        notice = entry.borrower, now - entry.leased_at
                    if drained is not None:
                        tally.drains[drained] += 1
                    if entry.opened or entry.closed:
                        self._fold_locked(entry)
                    if conn._state is _IDLE and (status is not None or self._is_untouched(conn, entry)):
                        head = conn._head
                        if (
                            self._is_unlimited
                            and now < entry.expires_at
                            and (head is None or head.keep_alive is None)
                            and not conn._is_users_own
                        ):
                            reason = None  # the usual case of _why_not_keep_locked()
                        else:
                            reason = self._why_not_keep_locked(entry, conn, now)
                        if reason is not None:
                            self._strike_locked(entry, reason)
                            doomed.append(conn)
                            self._are_kept = False
                            self._serve_locked(now)
                        elif self._waiters or self._late or self._capacity is not None:
                            self._last_used = now
                            self._are_kept = True
                            self._keep_locked(entry, conn, now, doomed, is_reused=True)
                        else:
                            entry.idle_since = self._last_used = now
                            self._are_kept = True
                            good_until = now + entry.idle_limit
                            entry.good_until = good_until if good_until < entry.expires_at else entry.expires_at  # noqa: FURB136  # min() costs a call
                            entry.borrower = None
                            entry.conn = conn
                            self._idle.append(entry)
                            self._leased.discard(entry)
                            if self._idle[0].good_until <= now:
                                self._sweep_locked(now, doomed)
                    else:
                        self._strike_locked(entry, CloseReason.CLIENT_CLOSE)  # its borrower has, if nobody else
                        doomed.append(conn)
                        self._are_kept = False
                        self._serve_locked(now)
                except BaseException:
                    if entry.is_lent:  # else somebody else has it already
                        self._strike_locked(entry, CloseReason.ERROR)
                        doomed.append(conn)
                    self._serve_locked(now)
                    raise
        finally:
            for closing in doomed:
                closing.close()
        if notice is not None:
            self._came_back(*notice)
        if self._exemplar is not None and status is not None:
            self._exemplify(self._tally.request, now - started)

    def _exemplify(self, histogram: Histogram, seconds: float) -> None:
        """Ask what leads to the present call, and keep it beside an observation."""
        assert self._exemplar is not None
        try:
            labels = tuple((self._exemplar() or {}).items())
            if not labels or not can_be_exemplar(labels):
                return
        except Exception:  # noqa: BLE001  # it is a hint for a dashboard, and no reason for a call to fail
            return
        with self._lock:
            histogram.exemplify(seconds, labels, time.time())

    def _is_untouched(self, conn: HTTPConnection, entry: Entry) -> bool:
        """Tell whether what a borrower had in hands is still the connection that this pool opened."""
        transport, attributes, given = conn._transport, conn.__dict__, self._opener.given_attributes
        if attributes != given:
            for name in _BORROWERS_OWN:
                attributes.pop(name, None)
            attributes.update({name: given[name] for name in _BORROWERS_OWN & given.keys()})
            if attributes != given:
                return False
        is_ours = (
            transport is not None
            and transport is conn._opened_transport  # else sock was assigned
            and entry.balance == 1
            and conn._tunnel_wanted is conn._tunnel_opened is entry.tunnel
            and conn._constant_fields is self._constant_fields  # else host or port was changed
            and conn.blocksize == BLOCKSIZE
        )
        if transport is None or not is_ours:
            return False
        if conn._deadline is None and transport.is_as_bound:
            return True
        conn._timeouts = None  # so that the next lease sets the socket's limits again
        return transport.is_open

    def _settle(self, conn: HTTPConnection) -> DrainOutcome | None:
        """Bring a connection that is not idle to an end: read a bounded rest of its body, or close it."""
        config = self.config
        if conn._state is State.UNREAD_RESPONSE:
            is_idle = conn.drain(max_bytes=config.drain_bytes, seconds=config.drain_seconds)
            return DrainOutcome.DRAINED if is_idle else DrainOutcome.CLOSED
        if conn._state is not State.CLOSED:
            conn._end(CloseReason.UNREAD)  # a request is under way, and its response was not fetched
        return None

    # --- a lease that ends badly ------------------------------------------------------------------------

    def _abort(
        self,
        conn: HTTPConnection,
        fault: BaseException,
        outcome: RequestOutcome | None,
        started: float,
        *,
        is_stale: bool = False,
    ) -> None:
        """Close a leased connection because of an exception, free its slot and count."""
        entry = conn._lease
        if not isinstance(entry, Entry):
            return  # another thread has given it back, and somebody else may have it by now
        if conn._state is not State.CLOSED:
            # Of a generator that is closed the log hears nothing: the garbage collector may be at work under any lock.
            conn._end(conn._reason_of(fault), is_told=not isinstance(fault, GeneratorExit))
        if isinstance(fault, GeneratorExit):
            self._abort_without_lock(conn, entry, outcome, started)
            return
        doomed: list[HTTPConnection] = []
        now = leased_at = entry.leased_at
        reasons = list(entry.closed)
        borrower, notice = entry.borrower, False
        is_silent = (
            isinstance(fault, (ReadTimeout, TotalTimeout))
            and entry.is_reused
            and conn._failed_unanswered
            and now - entry.idle_since >= _LONG_IDLE
        )
        try:
            now = self._clock()
        finally:
            with self._lock:
                if outcome is not None:
                    self._tally.requests[outcome] += 1
                    self._tally.request.observe(max(now - started, 0.0))
                if conn._lease is entry:  # else another thread has given it back meanwhile
                    conn._lease = None
                    notice = entry.is_overdue
                    self._end_lease_locked(entry, now)
                if is_stale:
                    self._learn_locked(entry, reasons, now)
                    self._tally.stale[StaleOutcome.RAISED] += 1
                if is_stale or is_silent:
                    self._doom_older_locked(entry, doomed)
                self._serve_locked(now)
            for closing in doomed:
                closing.close()
            if notice:
                self._came_back(borrower, now - leased_at)
        if self._exemplar is not None and outcome is not None:
            self._exemplify(self._tally.request, now - started)

    def _abort_without_lock(
        self, conn: HTTPConnection, entry: Entry, outcome: RequestOutcome | None, started: float
    ) -> None:
        """End the lease of a generator that is closed.

        The garbage collector may be doing that, at any moment, in a thread that holds the lock: waiting for it would be
        waiting for ever.  Whoever holds the lock next sees to the rest.
        """
        now = self._clock()
        conn._lease = None
        self._lost.append(Ended(entry, outcome, max(now - started, 0.0)))
        if self._lock.acquire(blocking=False):
            try:
                self._reap_locked(now)
            finally:
                self._lock.release()

    def _replace(self, conn: HTTPConnection, timeouts: Timeout, deadline: Deadline | None) -> HTTPConnection:
        """Open a new connection in the slot of one that turned out dead; the idle ones older than it go too."""
        if conn._state is not State.CLOSED:
            conn._end(CloseReason.STALE_408)
        entry = conn._lease
        if conn._close_reasons and conn._close_reasons[-1] is CloseReason.SERVER_CLOSE:
            conn._close_reasons[-1] = CloseReason.STALE_408  # that answer was for the idle time before the request
        doomed: list[HTTPConnection] = []
        try:
            now = self._clock()
        except BaseException as fault:
            self._abort(conn, fault, None, 0.0)
            raise
        claim = Claim(now)
        dial = Dial(claim, now)
        try:
            with self._lock:
                if isinstance(entry, Entry):
                    self._opening.add(dial)
                    self._learn_locked(entry, entry.closed, now)
                    conn._lease = None
                    self._end_lease_locked(entry, now)
                    self._tally.stale[StaleOutcome.RETRIED] += 1
                    self._doom_older_locked(entry, doomed)
                    self._serve_locked(now)
            for closing in doomed:
                closing.close()
            return self._open(dial, timeouts, deadline, None)
        except BaseException:
            with self._lock:
                if isinstance(entry, Entry):
                    self._strike_locked(entry, CloseReason.ERROR)
                self._opening.discard(dial)
            self._serve()
            raise

    # --- leases that last too long ----------------------------------------------------------------------

    def _note_borrower(self, entry: Entry, leak_after: float) -> None:
        """Remember where a lease began, and see to it that somebody looks whether it ends."""
        entry.stack = leaks.call_stack()
        if not self._is_watched:
            self._is_watched = True
            is_watched = False
            try:
                is_watched = leaks.watcher.watch(self, leak_after)
            finally:
                if not is_watched:
                    self._is_watched = False  # the next lease tries again

    def report_leaks(self) -> float | None:
        """Log and count leases that have lasted longer than `leak_after`, each once.

        Returns:
            In how many seconds the next may be due, or ``None`` when nothing is lent that was not reported.
        """
        leak_after = self._leak_after
        if leak_after is None:
            return None
        now = self._clock()
        overdue: list[Entry] = []
        next_due = _INFINITE
        with self._lock:
            if self._lost:
                self._reap_locked(now)
            for entry in self._leased:
                due = entry.leased_at + leak_after
                if due > now or not entry.is_lent:
                    next_due = min(next_due, max(due, now))
                elif not entry.is_overdue:
                    entry.is_overdue = True
                    self._tally.leaked += 1
                    overdue.append(entry)
            self._is_watched = next_due < _INFINITE
        for entry in overdue:
            log.warning(
                f"a connection to {self.origin} has not been given back after leak_after={leak_after:g} s: leased "
                f"{describe_at_length(entry, now)}"
            )
        return None if next_due == _INFINITE else next_due - now

    def _came_back(self, borrower: threading.Thread | None, held: float) -> None:
        log.info(
            f"a connection to {self.origin} that had been reported as not given back came back after {held:.1f} s "
            f"from {name_of(borrower)}"
        )


def _all_pools() -> list[Lender]:
    while True:
        try:
            return list(_pools)
        except RuntimeError:  # another thread has made one meanwhile
            continue


def is_reused(conn: HTTPConnection) -> bool:
    """Tell whether a leased connection has been idle in its pool before."""
    entry = conn._lease
    return isinstance(entry, Entry) and entry.is_reused


def leased_at(conn: HTTPConnection) -> float | None:
    """Return when the lease of a connection began, on its pool's clock; ``None`` when it is not lent."""
    entry = conn._lease
    return entry.leased_at if isinstance(entry, Entry) else None


def lease_of(conn: HTTPConnection) -> tuple[object, int] | None:
    """Return what tells this lease of a connection from any other, or ``None`` when it is not lent."""
    entry = conn._lease
    return (entry, entry.leases) if isinstance(entry, Entry) else None


def outcome_of(fault: BaseException) -> RequestOutcome:
    """Return what a call that ended by an exception is counted as."""
    return RequestOutcome.TIMEOUT if isinstance(fault, TimeoutError) else RequestOutcome.ERROR


def _acquire_outcome_of(fault: BaseException) -> AcquireOutcome:
    if isinstance(fault, (PoolClosed, PoolFull)):
        return AcquireOutcome.REJECTED
    return AcquireOutcome.TIMEOUT if isinstance(fault, AcquireTimeout) else AcquireOutcome.ERROR
