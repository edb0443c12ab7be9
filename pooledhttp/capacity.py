"""`max_total`: one number of connections over all the pools of a manager, shared fairly.

One number binds the pools, so one lock guards them: each member's lock *is* the capacity's, and taking it once is
enough to see and to change all of them.  Locks still never nest.

Whoever finds no room takes it from the connection of any origin that has been idle longest.  When nothing is idle he
queues, in the order of arrival over all origins: a connection that comes back is closed if somebody waits longer for
another origin than anybody does for its own.  Without that, the busiest origin would keep what it has for ever.

How much is used is counted by looking at the members, never by adding to a number by hand, so it cannot drift.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque

from .conn import HTTPConnection
from .hints import TYPE_CHECKING, Final
from .records import Claim, Entry

if TYPE_CHECKING:
    from .ledger import Ledger

# The log of what became idle is cleaned of what no longer is when it is so much longer than it need be.
_SLACK: Final = 64

_Noted = tuple[Entry, float, "weakref.ref[Ledger]"]


class Capacity:
    """The connections that several pools may have together.

    Args:
        limit: How many.

    Attributes:
        limit: The same, which may be changed while the lock is held.
        used: How many there are.
        lock: The lock of all the pools that share in it; see `Ledger` for what is banned under it.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.lock = threading.Lock()
        self._pid = os.getpid()
        self._sizes: weakref.WeakKeyDictionary[Ledger, int] = weakref.WeakKeyDictionary()
        # Whoever waits, the oldest at the left; and who did.
        self._queue: deque[tuple[weakref.ref[Claim], Ledger]] = deque()
        self._longest = _SLACK  # at what length the queue is cleaned of those who have gone
        self._idle: deque[_Noted] = deque()  # what became idle, and when

    def join(self, pool: Ledger) -> None:
        """Take a pool in; nobody uses it yet."""
        with self.lock:
            self._sizes[pool] = 0

    def recount_locked(self, pool: Ledger) -> None:
        """Take note of how many connections a pool has now."""
        size = pool._size_locked()
        before = self._sizes.get(pool, 0)
        self._sizes[pool], self.used = size, self.used + size - before  # both, whatever interrupts it

    def members_locked(self) -> list[Ledger]:
        """Return the pools that share in it."""
        return list(self._sizes)

    # --- room -------------------------------------------------------------------------------------------

    def make_room_locked(self, pool: Ledger, now: float, doomed: list[HTTPConnection]) -> bool:
        """Tell whether a pool may have one more connection, if need be at the cost of another origin's idle one.

        Args:
            pool: The pool.
            now: The moment.
            doomed: Takes the connection that the caller has to close when the lock is free again.
        """
        self.recount_locked(pool)
        while self.used >= self.limit:
            if not self._evict_coldest_locked(doomed):
                self.reap_locked(now)
                return self.used < self.limit
        return True

    def make_room_for_waiters_locked(self, pool: Ledger, now: float, doomed: list[HTTPConnection]) -> None:
        """Serve the waiters of a pool that may be larger now, if need be at the cost of other origins' idle ones."""
        while pool._size_locked() < pool.maxsize and (claim := pool._waiters.first()) is not None:
            if not self.make_room_locked(pool, now, doomed):
                return
            if claim.is_waiting and pool._size_locked() < pool.maxsize:
                pool._grant_slot_locked(claim, now)

    def _evict_coldest_locked(self, doomed: list[HTTPConnection]) -> bool:
        out: list[_Noted] = []
        try:
            while self._idle:
                noted = self._idle[0]
                entry, _, owner = noted
                pool = owner()
                if pool is not None and _is_up_to_date(noted):
                    if pool._evict_locked(entry, doomed):
                        self.recount_locked(pool)
                        return True
                    out.append(noted)  # its pool's `prune` has taken it out to probe it, and will put it back
                self._idle.popleft()
        finally:
            self._idle.extendleft(reversed(out))
        return False

    def reap_locked(self, now: float) -> None:
        """Find the room that nobody told of: connections of any origin that were collected, and pools that are gone."""
        for pool in self.members_locked():
            if pool._lost:
                pool._reap_locked(now)
            self.recount_locked(pool)
        self.used = sum(self._sizes.values())

    def note_idle_locked(self, entry: Entry, pool: Ledger) -> None:
        """Note that a connection has become idle, for whoever looks for the coldest."""
        self._idle.append((entry, entry.idle_since, pool.reference))
        if len(self._idle) > 2 * self.limit + _SLACK:
            self._idle = deque(noted for noted in self._idle if _is_up_to_date(noted))

    # --- the queue --------------------------------------------------------------------------------------

    def queue_locked(self, claim: Claim, pool: Ledger) -> None:
        """Let a claim wait its turn."""
        self._queue.append((weakref.ref(claim), pool))
        if len(self._queue) > self._longest:
            # Those who were served or have left, behind one whose own pool has been full all the while.
            self._queue = deque(queued for queued in self._queue if _waiting(queued[0]))
            self._longest = 2 * len(self._queue) + _SLACK

    def is_another_first_locked(self, pool: Ledger, claim: Claim | None) -> bool:
        """Tell whether somebody waits longer for another origin than this claim does for its own.

        Args:
            pool: Whose connection has come back.
            claim: Who waits longest for it, if anybody does.
        """
        oldest = self._oldest_locked()
        if oldest is None or oldest[1] is pool:
            return False
        return claim is None or oldest[0].since < claim.since

    def serve_locked(self, now: float) -> None:
        """Give what room there is to those who have waited longest."""
        while self.used < self.limit:
            oldest = self._oldest_locked()
            if oldest is None:
                return
            claim, pool = oldest
            pool._grant_slot_locked(claim, now)
            self.recount_locked(pool)

    def _oldest_locked(self) -> tuple[Claim, Ledger] | None:
        """Return who waits longest, among those whose own pool has room."""
        queue = self._queue
        while queue and _waiting(queue[0][0]) is None:
            queue.popleft()
        for reference, pool in queue:
            claim = _waiting(reference)
            if claim is not None and pool._size_locked() < pool.maxsize:
                return claim, pool
        return None

    def renew_after_fork(self) -> None:
        """Begin anew in a child process, once for all its pools: a lock of its own, and nothing in use."""
        if self._pid == os.getpid():
            return
        self._pid = os.getpid()
        self.lock = threading.Lock()
        self.used = 0
        self._queue.clear()
        self._idle.clear()
        for pool in list(self._sizes):
            self._sizes[pool] = 0


def _waiting(reference: weakref.ref[Claim]) -> Claim | None:
    """Return a claim if it has been given nothing yet, and its caller is still there."""
    claim = reference()
    return claim if claim is not None and claim.is_waiting else None


def _is_up_to_date(noted: _Noted) -> bool:
    """Tell whether a connection is idle since it was noted; one that is being probed counts as idle."""
    entry, since, _ = noted
    return entry.idle_since == since and entry.borrower is None and (entry.conn is not None or entry() is not None)
