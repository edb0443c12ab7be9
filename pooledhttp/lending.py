"""Lends the connections to one origin and takes them back: the pool's book-keeping, under one lock.

One lock decides, and everything that can block happens outside it.  Each method that needs the lock ends in
``_locked``; none of them resolves, connects, probes, closes, logs or calls anybody back.

A connection is in exactly one place: in `_idle`, in `_leased`, or still a claim in `_opening`.  Moving it under the
lock *is* the assignment, and ``len(_idle) + len(_leased) + len(_opening) <= maxsize`` holds whenever the lock is free.
A caller that finds neither an idle connection nor a free slot queues; whoever gives back a connection or a slot hands
it to the oldest waiter.  So while anybody waits, nothing is idle and no slot is free.

The pool keeps a strong reference to a connection only while it is idle.  One that a borrower drops is collected; its
`_Entry`, a weak reference, then lands in a deque, and the next one to hold the lock frees the slot.
"""

from __future__ import annotations

import base64
import random
import socket
import ssl
import threading
import weakref
from collections import deque
from enum import Enum
from threading import get_ident
from typing import Final, Self
from urllib.parse import unquote_to_bytes

from .config import PoolConfig, proxy_of
from .conn import BLOCKSIZE, HTTPConnection, HTTPSConnection
from .dial import Dialer, default_tls_context
from .errors import AcquireTimeout, InvalidURL, PoolClosed, PoolFull, TunnelError
from .origin import split_host_port
from .request import constant_fields, without_userinfo
from .states import State
from .stats import (
    OUTCOME_BY_STATUS_CLASS,
    AcquireOutcome,
    CloseReason,
    ConnectFailure,
    DrainOutcome,
    PoolStats,
    RequestOutcome,
    StaleOutcome,
    Tally,
    freeze,
)
from .timeouts import Deadline, Timeout
from .transport import main_thread
from .wire import keep_alive_hints

_IDLE: Final = State.IDLE
_REUSED: Final = AcquireOutcome.REUSED
# A server's announced idle time starts before ours, and our next request takes its way: end it earlier, in seconds.
_KEEP_ALIVE_MARGIN: Final = 1.0
# Connections of the same moment must not all end in the same moment.
_AGE_JITTER: Final = 0.1
# What we set on a connection ourselves; whatever else stands there was a borrower's.
_OUR_ATTRIBUTES: Final = {"debuglevel", "expect_continue_timeout"}
# So many finished leases are sorted into the histograms at a time.
_SORTED_AT_ONCE: Final = 64
# How many entries the cold end is swept by at each release: reuse is LIFO, so nobody else ever looks there.
_SWEEP: Final = 2
# How often a waiter looks whether a connection was lost, which no release will tell, in seconds.
_LOST_CHECK: Final = 1.0
_INFINITE: Final = float("inf")


class _Entry(weakref.ref[HTTPConnection]):
    """One connection's record in its pool, and the weak reference that tells when its borrower lost it."""

    __slots__ = ("balance", "borrower", "closed", "conn", "expires_at", "good_until", "idle_limit", "idle_since",
                 "is_lent", "is_reused", "leased_at", "leases", "lost", "opened",
                 "tunnel")  # fmt: skip

    def __new__(cls, conn: HTTPConnection, _pool: Lender, _now: float) -> Self:
        """Make the reference; `weakref.ref` takes its callback here."""
        return super().__new__(cls, conn, _on_collected)

    def __init__(self, conn: HTTPConnection, pool: Lender, now: float) -> None:
        super().__init__(conn, _on_collected)  # type: ignore[call-arg]  # typeshed has only ref.__new__
        config = pool.config
        self.conn: HTTPConnection | None = None  # only while idle, or on its way to a waiter
        self.lost = pool._lost
        # The connection's journal: the seconds that each opening took, and why each socket was closed.
        self.opened = conn._opened_seconds
        self.closed = conn._close_reasons
        self.tunnel = conn._tunnel_wanted
        self.balance = 0  # sockets opened less sockets closed, as far as they have been counted
        self.expires_at = _INFINITE
        if config.max_age is not None:
            self.expires_at = now + config.max_age * (1 - _AGE_JITTER * random.random())  # no secret
        self.idle_since = now
        self.good_until = now  # while idle: the earlier of its two limits
        self.idle_limit = _INFINITE if config.idle_timeout is None else config.idle_timeout
        self.leased_at = now
        self.leases = 1  # tells one lease from the next, for whoever gives back twice
        self.borrower = get_ident()
        self.is_reused = False
        self.is_lent = False  # the borrower has it; before that, a reused one may still turn out stale
        hash(self)  # kept from now on: of a dead reference, which the deque may hold, it cannot be had any more


def _on_collected(entry: weakref.ref[HTTPConnection]) -> None:
    # Runs inside the garbage collector, at any moment and in any thread: no lock, no I/O.
    if isinstance(entry, _Entry):
        entry.lost.append(entry)


class _Claim:
    """One acquire that got no idle connection: it waits, or it holds a slot and opens a connection."""

    __slots__ = ("borrower", "given", "since", "wake")

    def __init__(self, since: float) -> None:
        self.since = since
        self.borrower = get_ident()
        self.given: _Entry | _Grant | None = None  # set under the pool's lock, before the wake-up
        self.wake = threading.Lock()
        self.wake.acquire()


class _Grant(Enum):
    """What a waiter is given when it is no connection."""

    SLOT = "slot"
    POOL_CLOSED = "pool closed"


class Lender:
    """What a `ConnectionPool` does with its connections; see there for the arguments."""

    def __init__(self, host: str, port: int | None, scheme: str, config: PoolConfig) -> None:
        if scheme not in {"http", "https"}:
            raise InvalidURL(f"scheme must be http or https, not {scheme!r}")
        self.config = config
        self.scheme = scheme
        default_port = 443 if scheme == "https" else 80
        self.host, self.port = split_host_port(host, port, default_port)
        shown_host = f"[{self.host}]" if ":" in self.host else self.host
        self.origin = f"{scheme}://{shown_host}:{self.port}"
        self.name = config.name if config.name is not None else f"{shown_host}:{self.port}".lower()

        self._clock = config.clock
        self._timeouts = config.timeouts
        self._probe_after = config.probe_after
        self._constant_fields = constant_fields(self.host, self.port, default_port=default_port)
        self._context = config.ssl_context
        self._proxy = _proxy_settings(config)
        dial_host, dial_port = (self._proxy[0], self._proxy[1]) if self._proxy else (self.host, self.port)
        self._dialer = Dialer(
            host=dial_host,
            port=dial_port,
            source_addresses=config.source_addresses,
            socket_options=config.socket_options,
            uds=config.uds,
        )

        # Guards everything below.  Never under it: resolve, connect, TLS, probe, drain, close, log, callbacks, metrics.
        self._lock = threading.Lock()
        self._idle: deque[_Entry] = deque()  # newest at the right
        self._leased: set[_Entry] = set()
        self._opening: set[_Claim] = set()
        self._waiters: deque[_Claim] = deque()  # oldest at the left
        self._is_closed = False
        self._is_unlimited = config.max_requests is None  # and open: nothing but age ends a connection at release
        self._tally = Tally()
        self._last_connect_error: tuple[float, str] | None = None  # when, and its text
        self._last_used = self._clock()
        self._lost: deque[_Entry] = deque()  # filled by the garbage collector, without the lock

        # A pool that is dropped without close() takes its idle sockets along; nobody else can reach them.
        weakref.finalize(self, _close_idle, self._idle)

    # --- acquire ----------------------------------------------------------------------------------------

    def _acquire(self, now: float, timeouts: Timeout, deadline: Deadline | None) -> HTTPConnection:
        """Take the newest idle connection, or a free slot and open one, or wait for whichever comes first."""
        claim: _Claim | None = None
        entry: _Entry | None = None
        doomed: list[HTTPConnection] = []
        try:
            with self._lock:
                if self._lost:
                    self._reap_locked(now)
                if self._is_closed:
                    raise PoolClosed(f"the pool of {self.origin} is closed")
                idle = self._idle
                if idle and now < idle[-1].good_until:
                    self._leased.add(entry := idle.pop())  # the usual case of _take_idle_locked(), in few steps
                    entry.leased_at = now
                    entry.borrower = get_ident()
                    entry.is_reused = True
                    entry.is_lent = False
                else:
                    entry = self._take_idle_locked(now, doomed)
                if entry is None:
                    claim = _Claim(now)  # ours before the pool has it, so that an interruption cannot lose it
                    self._claim_locked(claim)
                else:
                    self._tally.unwaited += 1
            for conn in doomed:
                conn.close()
            if claim is not None and claim.given is None:
                entry = self._wait(claim, timeouts, deadline)
            while entry is not None:
                lent = self._check_out(entry, timeouts, deadline)
                if lent is not None:
                    return lent
                claim = claim or _Claim(now)
                entry = self._take_after_stale(entry, claim)
            assert claim is not None
            return self._open(claim, timeouts, deadline, AcquireOutcome.OPENED)
        except BaseException as fault:
            self._undo_acquire(claim, entry, fault)
            raise

    def _size_locked(self) -> int:
        return len(self._idle) + len(self._leased) + len(self._opening)

    def _take_idle_locked(self, now: float, doomed: list[HTTPConnection]) -> _Entry | None:
        """Move the newest idle connection to the leased ones; those that are past a limit are doomed on the way."""
        while self._idle:
            self._leased.add(entry := self._idle.pop())
            if now < entry.good_until:
                entry.leased_at = now
                entry.borrower = get_ident()
                entry.is_reused = True
                entry.is_lent = False
                return entry
            self._leased.discard(entry)
            self._doom_locked(entry, self._why_expired(entry, now), doomed)
        return None

    def _doom_locked(self, entry: _Entry, reason: CloseReason, doomed: list[HTTPConnection]) -> None:
        """Count an idle connection that has been taken out as closed; the caller closes it outside the lock."""
        self._tally.closed[reason] += 1
        if entry.conn is not None:
            doomed.append(entry.conn)
            entry.conn = None

    @staticmethod
    def _why_expired(entry: _Entry, now: float) -> CloseReason:
        return CloseReason.MAX_AGE if now >= entry.expires_at else CloseReason.IDLE

    def _claim_locked(self, claim: _Claim) -> None:
        """Claim a free slot, or queue."""
        if self._size_locked() < self.config.maxsize:
            self._opening.add(claim)
            claim.given = _Grant.SLOT
            self._tally.unwaited += 1
            return
        most = self.config.max_waiters
        if most is not None and len(self._waiters) >= most:
            raise PoolFull(
                f"{len(self._waiters)} callers wait for {self.origin} already ({_counted(self._numbers_locked())})"
            )
        self._waiters.append(claim)

    def _wait(self, claim: _Claim, timeouts: Timeout, deadline: Deadline | None) -> _Entry | None:
        """Wait until the claim is given something: a connection is returned, ``None`` means a slot."""
        until = _INFINITE if timeouts.acquire is None else claim.since + timeouts.acquire
        if deadline is not None:
            until = min(until, deadline.at)
        facts: tuple[dict[str, int], _Entry | None] | None = None
        while facts is None:
            left = until - self._clock()
            if left > 0:
                claim.wake.acquire(timeout=min(left, _LOST_CHECK))
            with self._lock:
                if self._lost:
                    self._reap_locked(self._clock())
                given = claim.given
                if given is None and left <= 0:
                    self._waiters.remove(claim)
                    facts = self._numbers_locked(), min(self._leased, key=_by_age, default=None)
            if given is _Grant.POOL_CLOSED:
                raise PoolClosed(f"the pool of {self.origin} was closed")
            if given is not None:
                return given if isinstance(given, _Entry) else None
        raise self._acquire_timeout(until - claim.since, *facts)

    def _check_out(self, entry: _Entry, timeouts: Timeout, deadline: Deadline | None) -> HTTPConnection | None:
        """Probe a reused connection and set its limits; ``None`` when it is stale, and closed now."""
        conn = entry.conn
        assert conn is not None
        entry.conn = None
        transport = conn._transport
        if transport is None or entry.leased_at - entry.idle_since >= self._probe_after:
            reason = CloseReason.CLIENT_CLOSE if transport is None else transport.staleness()
            if reason is not None:
                entry.conn = conn  # it stays ours until its slot has been passed on: see _take_after_stale()
                conn._end(reason)
                return None
        if (
            deadline is not None
            or conn._deadline is not None
            or timeouts is not conn._timeouts
            or (transport is not None and transport.uses_kernel_timers and entry.borrower == main_thread.ident)
        ):
            conn._lend(deadline, timeouts)
        conn._is_probed = True
        conn._lease = entry
        entry.leases += 1
        entry.is_lent = True
        return conn

    def _take_after_stale(self, stale: _Entry, claim: _Claim) -> _Entry | None:
        """Put another idle connection in a stale one's place, or else the claim to open one: the slot stays ours."""
        doomed: list[HTTPConnection] = []
        with self._lock:
            self._leased.discard(stale)
            self._fold_locked(stale)
            stale.conn = None
            entry = self._take_idle_locked(self._clock(), doomed)
            if entry is None:
                self._opening.add(claim)
        for conn in doomed:
            conn.close()
        return entry

    def _open(
        self, claim: _Claim, timeouts: Timeout, deadline: Deadline | None, outcome: AcquireOutcome | None
    ) -> HTTPConnection:
        """Open a connection in the claim's slot and lease it.

        Args:
            claim: Stands in `_opening`.
            timeouts: The limits of the lease.
            deadline: When the whole call must be over, or ``None``.
            outcome: What to count the acquire as; ``None`` when it has been counted.
        """
        if deadline is not None:
            deadline.enter("connect")
        conn = self._new_connection(timeouts, deadline)
        try:
            conn.connect()
            now = self._clock()
        except BaseException as fault:
            conn.close()  # it may have been interrupted behind its last step
            self._count_connect_failure(fault)
            raise
        with self._lock:
            is_closed = self._is_closed
            entry = _Entry(conn, self, now)
            self._fold_locked(entry)
            if is_closed:
                self._tally.closed[CloseReason.POOL_CLOSED] += 1
            else:
                conn._lease = entry
                conn._is_probed = True
                self._leased.add(entry)
                self._opening.discard(claim)
                entry.is_lent = True
                self._last_used = entry.leased_at
                if outcome is not None:
                    self._tally.acquires[outcome] += 1
        if is_closed:
            conn.close()
            raise PoolClosed(f"the pool of {self.origin} was closed")
        return conn

    def _new_connection(self, timeouts: Timeout, deadline: Deadline | None) -> HTTPConnection:
        conn: HTTPConnection
        dialer = self._dialer
        if self.scheme == "https":
            if self._context is None:
                self._context = default_tls_context()
            conn = HTTPSConnection(dialer.host, dialer.port, context=self._context)
            conn._server_hostname = self.config.server_hostname
        else:
            conn = HTTPConnection(dialer.host, dialer.port)
        if self._proxy is not None:
            conn.set_tunnel(self.host, self.port, self._proxy[2])
        conn._constant_fields = self._constant_fields
        conn.expect_continue_timeout = self.config.expect_continue_timeout
        conn.bound(timeouts=timeouts, deadline=deadline, dialer=dialer, limits=self.config.limits, clock=self._clock)
        return conn

    def _count_connect_failure(self, fault: BaseException) -> None:
        if not isinstance(fault, Exception):
            return  # an interruption says nothing of the origin
        with self._lock:
            self._tally.connect_failures[_connect_failure_of(fault)] += 1
            # Its text: the exception itself would hold the frames that it went through.
            self._last_connect_error = self._clock(), f"{type(fault).__name__}: {fault}"

    def _undo_acquire(self, claim: _Claim | None, entry: _Entry | None, fault: BaseException) -> None:
        """Give back whatever a failed acquire holds, and count it."""
        conn = None
        with self._lock:
            if claim is not None:
                if entry is None and isinstance(claim.given, _Entry):
                    entry = claim.given  # handed over, and the wait was interrupted
                self._opening.discard(claim)
                if claim in self._waiters:
                    self._waiters.remove(claim)
            if entry is not None and entry in self._leased:
                conn = entry.conn or entry()
                entry.conn = None
                self._leased.discard(entry)
            self._tally.acquires[_acquire_outcome_of(fault)] += 1
        if conn is not None and entry is not None:
            conn._end(CloseReason.ERROR)
            with self._lock:
                self._fold_locked(entry)
        self._serve()

    def _numbers_locked(self) -> dict[str, int]:
        return {
            "maxsize": self.config.maxsize,
            "leased": len(self._leased),
            "idle": len(self._idle),
            "opening": len(self._opening),
            "waiting": len(self._waiters),
        }

    def _acquire_timeout(self, seconds: float, numbers: dict[str, int], oldest: _Entry | None) -> AcquireTimeout:
        """Return the error that says who holds what."""
        now = self._clock()
        holder = None if oldest is None else _describe(oldest, now)
        failed_at, failure = self._last_connect_error or (now, None)
        text = f"no connection to {self.origin} within {seconds:.2f} s ({_counted(numbers)}"
        text += f"; oldest lease {holder})" if holder else ")"
        if failure is not None:
            text += f"; the last attempt to connect that failed: {failure} ({now - failed_at:.1f} s ago)"
        return AcquireTimeout(text, **numbers, oldest_lease=holder, last_connect_error=failure)

    # --- release ----------------------------------------------------------------------------------------

    def _release(self, conn: HTTPConnection, status: int | None, started: float) -> None:
        """Take a connection back: to the oldest waiter, to the idle ones, or out of the pool."""
        entry = conn._lease
        if entry is None:
            return
        if not isinstance(entry, _Entry) or entry.lost is not self._lost:
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
        with self._lock:
            if conn._lease is not entry:
                return  # another thread has released it meanwhile
            conn._lease = None
            tally = self._tally
            tally.finished.append((now - entry.leased_at, entry.is_reused, status, now - started))
            if len(tally.finished) >= _SORTED_AT_ONCE:
                tally.sort()
            if status is None:
                conn._timeouts = None  # its borrower may have changed the socket's: the next lease sets them again
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
                    reason = None  # the usual case of _why_not_keep()
                else:
                    reason = self._why_not_keep(entry, conn, now)
                if reason is None:
                    entry.idle_since = self._last_used = now
                    if self._waiters:
                        entry.conn = conn
                        self._give_locked(self._waiters.popleft(), entry, now)
                    else:
                        good_until = now + entry.idle_limit
                        entry.good_until = min(entry.expires_at, good_until)
                        self._leased.discard(entry)
                        entry.conn = conn
                        self._idle.append(entry)
                        if self._idle[0].good_until <= now:
                            self._sweep_locked(now, doomed)
                else:
                    self._leased.discard(entry)
                    tally.closed[reason] += 1
                    doomed.append(conn)
                    self._serve_locked(now)
            else:
                self._leased.discard(entry)
                self._balance_locked(entry)
                doomed.append(conn)
                self._serve_locked(now)
        for closing in doomed:
            closing.close()

    def _is_untouched(self, conn: HTTPConnection, entry: _Entry) -> bool:
        """Tell whether what a borrower had in hands is still the connection that this pool opened."""
        conn.debuglevel = 0
        conn.expect_continue_timeout = self.config.expect_continue_timeout
        transport = conn._transport
        is_ours = entry.balance == 1 and conn._tunnel_wanted is conn._tunnel_opened is entry.tunnel
        is_ours = is_ours and conn._constant_fields is self._constant_fields  # else host or port was changed
        is_ours = is_ours and transport is conn._opened_transport  # else sock was assigned
        is_ours = is_ours and conn.blocksize == BLOCKSIZE and conn.__dict__.keys() <= _OUR_ATTRIBUTES
        return is_ours and transport is not None and transport.is_open

    def _settle(self, conn: HTTPConnection) -> DrainOutcome | None:
        """Bring a connection that is not idle to an end: read a bounded rest of its body, or close it."""
        config = self.config
        if conn._state is State.UNREAD_RESPONSE:
            is_idle = conn.drain(max_bytes=config.drain_bytes, seconds=config.drain_seconds)
            return DrainOutcome.DRAINED if is_idle else DrainOutcome.CLOSED
        if conn._state is not State.CLOSED:
            conn._end(CloseReason.UNREAD)  # a request is under way, and its response was not fetched
        return None

    def _why_not_keep(self, entry: _Entry, conn: HTTPConnection, now: float) -> CloseReason | None:
        config = self.config
        if self._is_closed:
            return CloseReason.POOL_CLOSED
        if conn._is_users_own:
            return CloseReason.CLIENT_CLOSE
        if now >= entry.expires_at:
            return CloseReason.MAX_AGE
        if config.max_requests is not None and conn._exchanges >= config.max_requests:
            return CloseReason.MAX_REQUESTS
        head = conn._head
        if head is not None and head.keep_alive is not None:
            seconds, requests = keep_alive_hints(head.keep_alive)
            if seconds is not None:
                if seconds <= _KEEP_ALIVE_MARGIN:
                    return CloseReason.IDLE
                ours = _INFINITE if config.idle_timeout is None else config.idle_timeout
                entry.idle_limit = min(ours, seconds - _KEEP_ALIVE_MARGIN)
            if requests == 0:
                return CloseReason.MAX_REQUESTS
        return None

    def _sweep_locked(self, now: float, doomed: list[HTTPConnection]) -> None:
        """Doom what is past its limits at the cold end, a little at each release."""
        for _ in range(_SWEEP):
            if not self._idle or now < self._idle[0].good_until:
                return
            coldest = self._idle.popleft()
            self._doom_locked(coldest, self._why_expired(coldest, now), doomed)

    def _give_locked(self, claim: _Claim, entry: _Entry, now: float) -> None:
        """Hand a leased connection on to a waiter that has just been taken out of the queue."""
        entry.leased_at = now
        entry.borrower = claim.borrower
        entry.is_reused = True
        entry.is_lent = False
        claim.given = entry
        self._tally.wait.observe(now - claim.since)
        claim.wake.release()

    def _serve_locked(self, now: float) -> None:
        """Give free slots to the oldest waiters."""
        while self._waiters and self._size_locked() < self.config.maxsize:
            self._opening.add(claim := self._waiters.popleft())
            claim.given = _Grant.SLOT
            self._tally.wait.observe(max(now - claim.since, 0.0))
            claim.wake.release()

    def _serve(self) -> None:
        """Give free slots to the oldest waiters, even if looking at the clock is interrupted."""
        now = -_INFINITE
        try:
            now = self._clock()
        finally:
            with self._lock:
                self._serve_locked(now)

    def _fold_locked(self, entry: _Entry) -> None:
        """Count what a connection has written into its journal."""
        tally = self._tally
        for seconds in entry.opened:
            tally.opened += 1
            tally.connect.observe(seconds)
        for reason in entry.closed:
            tally.closed[reason] += 1
        entry.balance += len(entry.opened) - len(entry.closed)
        entry.opened.clear()
        entry.closed.clear()

    def _balance_locked(self, entry: _Entry) -> None:
        """Count a socket that its borrower took out of the connection as closed by it."""
        self._tally.closed[CloseReason.CLIENT_CLOSE] += max(entry.balance, 0)

    def _reap_locked(self, now: float) -> None:
        """Free the slots of connections that were collected while lent."""
        while self._lost:
            entry = self._lost.popleft()
            if entry in self._leased:
                self._leased.discard(entry)
                self._fold_locked(entry)
                self._tally.leaked += 1
                self._tally.closed[CloseReason.LEAKED] += max(entry.balance, 0)
                self._tally.use.observe(now - entry.leased_at)
                if entry.is_reused and entry.is_lent:
                    self._tally.acquires[_REUSED] += 1
        self._serve_locked(now)

    # --- a lease that ends badly --------------------------------------------------------------------------

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
        if not isinstance(entry, _Entry):
            return  # another thread has given it back, and somebody else may have it by now
        if conn._state is not State.CLOSED:
            conn._end(conn._reason_of(fault))
        doomed: list[HTTPConnection] = []
        now = entry.leased_at
        try:
            now = self._clock()
        finally:
            with self._lock:
                if outcome is not None:
                    self._tally.requests[outcome] += 1
                    self._tally.request.observe(max(now - started, 0.0))
                self._end_lease_locked(conn, entry, now)
                if is_stale:
                    self._tally.stale[StaleOutcome.RAISED] += 1
                    self._doom_older_locked(entry, doomed)
                self._serve_locked(now)
            for closing in doomed:
                closing.close()

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
        claim = _Claim(now)
        try:
            with self._lock:
                if isinstance(entry, _Entry):
                    self._opening.add(claim)
                    self._end_lease_locked(conn, entry, now)
                    self._tally.stale[StaleOutcome.RETRIED] += 1
                    self._doom_older_locked(entry, doomed)
            for closing in doomed:
                closing.close()
            return self._open(claim, timeouts, deadline, None)
        except BaseException:
            with self._lock:
                self._opening.discard(claim)
            self._serve()
            raise

    def _end_lease_locked(self, conn: HTTPConnection, entry: _Entry, now: float) -> None:
        conn._lease = None
        self._leased.discard(entry)
        self._tally.use.observe(now - entry.leased_at)
        if entry.is_reused:
            self._tally.acquires[_REUSED] += 1
        self._fold_locked(entry)
        self._balance_locked(entry)

    def _doom_older_locked(self, dead: _Entry, doomed: list[HTTPConnection]) -> None:
        """Close the idle connections that were used last before a dead one was: they most likely died with it."""
        kept = []
        for entry in self._idle:
            if entry.idle_since <= dead.idle_since:
                self._doom_locked(entry, CloseReason.STALE_ASSUMED, doomed)
            else:
                kept.append(entry)
        self._idle.clear()
        self._idle.extend(kept)

    # --- the pool as a whole ------------------------------------------------------------------------------

    def stats(self) -> PoolStats:
        """Return the pool's numbers at this moment, frozen."""
        now = self._clock()
        with self._lock:
            if self._lost:
                self._reap_locked(now)
            oldest = min((entry.leased_at for entry in self._leased), default=now)
            # A reuse is counted when its lease ends; those that last are added here.
            under_way = sum(1 for entry in self._leased if entry.is_reused and entry.is_lent)
            return freeze(
                self._tally,
                name=self.name,
                maxsize=self.config.maxsize,
                idle=len(self._idle),
                leased=len(self._leased),
                opening=len(self._opening),
                waiting=len(self._waiters),
                oldest_lease_seconds=max(now - oldest, 0.0),
                reused_under_way=under_way,
            )

    def explain(self) -> str:
        """Return who holds what: one line for the pool, and one a lease, the oldest first."""
        now = self._clock()
        with self._lock:
            if self._lost:
                self._reap_locked(now)
            numbers = self._numbers_locked()
            leased = sorted(self._leased, key=_by_age)
        leases = [f"  leased {_describe(entry, now)}" for entry in leased]
        return "\n".join([f"{self.origin}: {_counted(numbers)}", *leases])

    def prune(self, *, everything: bool = False) -> int:
        """Close idle connections that are past a limit or that their server has ended.

        Args:
            everything: Close all idle ones, for instance after a change in DNS.

        Returns:
            How many were closed.
        """
        now = self._clock()
        doomed: list[HTTPConnection] = []
        probing: list[_Entry] = []
        ended = 0
        try:
            with self._lock:
                for entry in self._idle:
                    if now >= entry.good_until:
                        self._doom_locked(entry, self._why_expired(entry, now), doomed)
                    elif everything:
                        self._doom_locked(entry, CloseReason.EVICTED, doomed)
                    else:
                        probing.append(entry)
                self._idle.clear()
                # While they are probed they count as leased, so that the limit holds; but nobody has acquired them.
                for entry in probing:
                    entry.leased_at = now
                    entry.is_lent = False
                self._leased.update(probing)
                self._serve_locked(now)
            for conn in doomed:
                conn.close()
            for entry in probing:
                if entry.conn is not None:
                    self._end_if_stale(entry.conn)
            now = self._clock()
        finally:
            ended = self._take_back_probed(probing, now)
        return len(doomed) + ended

    @staticmethod
    def _end_if_stale(conn: HTTPConnection) -> None:
        try:
            reason = conn.staleness()
        except BaseException:
            conn._end(CloseReason.ERROR)
            raise
        if reason is not None:
            conn._end(reason)

    def _take_back_probed(self, probing: list[_Entry], now: float) -> int:
        """Put back what `prune` took out to probe; return how many of them have ended."""
        doomed: list[HTTPConnection] = []
        kept: list[_Entry] = []
        ended = 0
        with self._lock:
            for entry in probing:
                if entry not in self._leased:
                    continue  # the prune was interrupted before it took them
                if entry.conn is None or entry.conn._state is not _IDLE:
                    ended += 1
                    entry.conn = None
                    self._leased.discard(entry)
                    self._fold_locked(entry)
                elif self._is_closed:  # since we took it out
                    self._leased.discard(entry)
                    self._doom_locked(entry, CloseReason.POOL_CLOSED, doomed)
                elif self._waiters:
                    self._give_locked(self._waiters.popleft(), entry, now)
                else:
                    self._leased.discard(entry)
                    kept.append(entry)
            self._idle.extendleft(reversed(kept))  # colder than whatever came back meanwhile
            self._serve_locked(now)
        for conn in doomed:
            conn.close()
        return ended

    def close(self) -> None:
        """Close the pool: idle connections at once, leased ones when they come back; waiters get `PoolClosed`.

        A second call does nothing.
        """
        doomed: list[HTTPConnection] = []
        with self._lock:
            self._is_closed = True
            self._is_unlimited = False
            for entry in self._idle:
                self._doom_locked(entry, CloseReason.POOL_CLOSED, doomed)
            self._idle.clear()
            for claim in self._waiters:
                claim.given = _Grant.POOL_CLOSED
                claim.wake.release()
            self._waiters.clear()
        for conn in doomed:
            conn.close()

    def close_if_unused(self) -> bool:
        """Close the pool unless a connection of it is lent, being opened or waited for; return whether it is closed."""
        with self._lock:
            if self._lost:
                self._reap_locked(self._clock())
            if self._leased or self._opening or self._waiters:
                return False
            self._is_closed = True
        self.close()
        return True

    @property
    def is_closed(self) -> bool:
        """Whether `close` has been called."""
        return self._is_closed

    @property
    def last_used(self) -> float:
        """When a connection was last opened or came back, on the pool's clock; before the first, when it was made."""
        with self._lock:
            return self._last_used

    def __repr__(self) -> str:
        """Show origin and occupancy."""
        with self._lock:
            return (
                f"<{type(self).__name__} {self.origin} idle={len(self._idle)} leased={len(self._leased)} "
                f"opening={len(self._opening)} maxsize={self.config.maxsize}>"
            )


def is_reused(conn: HTTPConnection) -> bool:
    """Tell whether a leased connection has been idle in its pool before."""
    entry = conn._lease
    return isinstance(entry, _Entry) and entry.is_reused


def lease_of(conn: HTTPConnection) -> tuple[object, int] | None:
    """Return what tells this lease of a connection from any other, or ``None`` when it is not lent."""
    entry = conn._lease
    return (entry, entry.leases) if isinstance(entry, _Entry) else None


def _by_age(entry: _Entry) -> float:
    return entry.leased_at


def _counted(numbers: dict[str, int]) -> str:
    return (
        f"{numbers['leased']} leased of {numbers['maxsize']}, {numbers['idle']} idle, {numbers['opening']} opening, "
        f"{numbers['waiting']} waiting"
    )


def _describe(entry: _Entry, now: float) -> str:
    """Say how long, by which thread, for what request and in which phase a connection is lent."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    who = names.get(entry.borrower, f"a thread that has ended ({entry.borrower})")
    held = f"{now - entry.leased_at:.1f} s by {who}"
    conn = entry() or entry.conn
    if conn is None:
        return f"{held}, lost without release"
    state = conn.state
    if state in {State.CLOSED, State.IDLE}:
        return f"{held}, {_PHASES[state]}"
    if state is State.UNREAD_RESPONSE and conn._head is None:
        state = State.REQUEST_SENT  # a whole exchange in one call claims the response beforehand
    return f"{held}, {conn._method} {without_userinfo(conn._target)}, {_PHASES[state]}"


_PHASES: Final = {
    State.CLOSED: "closed by its borrower",
    State.IDLE: "between two requests",
    State.REQUEST_STARTED: "sending the request",
    State.REQUEST_SENT: "waiting for the head",
    State.UNREAD_RESPONSE: "reading the response",
}


def outcome_of(fault: BaseException) -> RequestOutcome:
    """Return what a call that ended by an exception is counted as."""
    return RequestOutcome.TIMEOUT if isinstance(fault, TimeoutError) else RequestOutcome.ERROR


def _acquire_outcome_of(fault: BaseException) -> AcquireOutcome:
    if isinstance(fault, (PoolClosed, PoolFull)):
        return AcquireOutcome.REJECTED
    return AcquireOutcome.TIMEOUT if isinstance(fault, AcquireTimeout) else AcquireOutcome.ERROR


def _connect_failure_of(fault: BaseException) -> ConnectFailure:
    if isinstance(fault, TunnelError):
        return ConnectFailure.PROXY
    if isinstance(fault, ssl.SSLError):
        return ConnectFailure.TLS
    if isinstance(fault, TimeoutError):
        return ConnectFailure.TIMEOUT
    if isinstance(fault, socket.gaierror):
        return ConnectFailure.DNS
    return ConnectFailure.REFUSED if isinstance(fault, ConnectionRefusedError) else ConnectFailure.OTHER


def _proxy_settings(config: PoolConfig) -> tuple[str, int, dict[str, str]] | None:
    """Return host and port of the proxy, and the fields for it."""
    if config.proxy is None:
        return None
    host, port, userinfo = proxy_of(config.proxy)
    fields = dict(config.proxy_headers)
    if userinfo is not None:
        credentials = base64.b64encode(unquote_to_bytes(userinfo)).decode("ascii")
        fields.setdefault("Proxy-Authorization", f"Basic {credentials}")
    return host, port, fields


def _close_idle(idle: deque[_Entry]) -> None:
    """Close what a pool that was dropped without `close` held; nobody else can reach it."""
    while idle:
        conn = idle.pop().conn
        if conn is not None:
            conn.close()
