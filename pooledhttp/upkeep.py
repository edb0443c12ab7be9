"""What is asked of a pool as a whole: its numbers, who holds what, prune, resize, close, a clean start after a fork.

Each of these may be called at any moment from any thread, while others lend and give back.
"""

from __future__ import annotations

from . import leaks
from .config import check_maxsize
from .conn import HTTPConnection
from .hints import Final
from .ledger import counted
from .lending import Lender
from .records import Entry, Grant, by_age, describe_at_length, name_of
from .states import State
from .stats import CloseReason, PoolStats, freeze

_INFINITE: Final = float("inf")


class Upkeep(Lender):
    """What a `ConnectionPool` does as a whole; see there for the arguments."""

    __slots__ = ()

    def stats(self) -> PoolStats:
        """Return the pool's numbers at this moment, frozen."""
        return self.stats_at(self._clock())

    def stats_at(self, now: float | None) -> PoolStats:
        """Return the numbers with the age of the oldest lease at a moment; ``None``: nobody knows the time."""
        with self._lock:
            if self._lost and now is not None:
                self._reap_locked(now)
            oldest = min((entry.leased_at for entry in self._leased), default=now)
            age = 0.0 if now is None or oldest is None else max(now - oldest, 0.0)
            # A reuse is counted when its lease ends; those that last are added here.
            under_way = sum(1 for entry in self._leased if entry.is_reused and entry.is_lent)
            return freeze(
                self._tally,
                name=self.name,
                maxsize=self.maxsize,
                idle=len(self._idle),
                leased=len(self._leased),
                opening=len(self._opening),
                waiting=len(self._waiters),
                oldest_lease_seconds=age,
                reused_under_way=under_way,
            )

    def mark(self) -> object:
        """Return something that stays equal only while `stats` does; it costs a tenth of them, and asks no clock."""
        with self._lock:
            if self._leased or self._lost:
                return object()  # a lease gets older all the time
            tally = self._tally
            tally.sort()  # as `stats` does: it must not look like a change
            return (
                tally.events,
                self._is_closed,
                self.maxsize,
                len(self._idle),
                len(self._opening),
                len(self._waiters),
                tally.wait.exemplars,
                tally.request.exemplars,
            )

    def explain(self) -> str:
        """Return who holds what.

        One line for the pool, one for each lease (who, since when, in which phase, for what), the oldest first, one for
        each connection that is being opened, for the waiters, and for the last failure to connect.  Where `leak_after`
        is set, each lease is followed by where it was acquired.
        """
        now = self._clock()
        with self._lock:
            if self._lost:
                self._reap_locked(now)
            numbers = self._numbers_locked()
            shared = self._shared_locked()
            leased = sorted((entry for entry in self._leased if entry.borrower is not None), key=by_age)
            opening = sorted(((dial.since, dial.claim) for dial in self._opening), key=lambda dialled: dialled[0])
            waiting = [(claim.since, claim.borrower) for claim in self._waiters]
            failed = self._last_connect_error
        lines = [f"{self.origin}: {counted(numbers)}{shared}"]
        lines += [f"  leased {describe_at_length(entry, now)}" for entry in leased]
        for since, claim in opening:
            whom = "whoever comes next" if claim is None else name_of(claim.borrower)
            lines.append(f"  opening {now - since:.1f} s for {whom}")
        if waiting:
            since, thread = waiting[0]
            lines.append(f"  waiting {now - since:.1f} s {name_of(thread)}, first of {len(waiting)}")
        if failed is not None:
            lines.append(f"  last attempt to connect that failed: {failed[1]} ({now - failed[0]:.1f} s ago)")
        return "\n".join(lines)

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
                f"opening={len(self._opening)} maxsize={self.maxsize}>"
            )

    # --- care -------------------------------------------------------------------------------------------

    def prune(self, *, everything: bool = False) -> int:
        """Close idle connections that are past a limit or that their server has ended.

        Args:
            everything: Close all idle ones, for instance after a change in DNS.

        Returns:
            How many were closed.
        """
        now = self._clock()
        doomed: list[HTTPConnection] = []
        probing: list[tuple[Entry, HTTPConnection]] = []  # the newest first
        try:
            with self._lock:
                for entry in list(self._idle):
                    if now >= entry.good_until:
                        self._doom_locked(entry, self._expiry.why_expired(entry, now), doomed)
                    elif everything:
                        self._doom_locked(entry, CloseReason.EVICTED, doomed)
                # While they are probed they count as leased, so that the limit holds; but nobody has acquired them.
                while self._idle:
                    entry = self._idle[-1]
                    entry.leased_at = now
                    entry.is_lent = False
                    if entry.conn is not None:
                        probing.append((entry, entry.conn))
                    self._leased.add(entry)
                    self._idle.pop()
                    entry.conn = None
                self._serve_locked(now)
            for conn in doomed:
                conn.close()
            for _, conn in probing:
                self._end_if_stale(conn)
            now = self._clock()
            return len(doomed) + self._take_back_probed(probing, now)
        except BaseException:
            self._take_back_probed(probing, now)  # what it has not taken back yet
            raise

    @staticmethod
    def _end_if_stale(conn: HTTPConnection) -> None:
        try:
            reason = conn.staleness()
        except BaseException:
            conn._end(CloseReason.ERROR)
            raise
        if reason is not None:
            conn._end(reason)

    def _take_back_probed(self, probing: list[tuple[Entry, HTTPConnection]], now: float) -> int:
        """Put back what `prune` took out to probe; return how many of them have ended."""
        doomed: list[HTTPConnection] = []
        ended = 0
        with self._lock:
            while probing:
                entry, conn = probing[0]
                if entry not in self._leased or entry.borrower is not None:
                    pass  # the prune was interrupted before it took it out, or behind giving it to somebody
                elif entry.conn is not None and entry in self._idle:
                    self._leased.discard(entry)  # the same, between the two steps of a move
                elif conn._state is not State.IDLE:
                    ended += 1
                    self._strike_locked(entry, CloseReason.ERROR)
                elif self._is_closed or self._size_locked() > self.maxsize:  # since we took it out
                    self._strike_locked(entry, CloseReason.POOL_CLOSED if self._is_closed else CloseReason.EVICTED)
                    doomed.append(conn)
                elif self._waiters or self._late or self._is_owed_locked():
                    entry.is_lent = True  # until somebody is given it
                    try:
                        self._keep_locked(entry, conn, now, doomed, is_reused=True)
                    except BaseException:
                        if entry.is_lent:
                            self._strike_locked(entry, CloseReason.ERROR)
                        raise
                else:
                    entry.conn = conn  # as it was: a probe does not make it younger
                    self._idle.appendleft(entry)  # colder than whatever came back meanwhile
                    self._leased.discard(entry)
                del probing[0]
            self._serve_locked(now)
        for conn in doomed:
            conn.close()
        return ended

    def _is_owed_locked(self) -> bool:
        """Tell whether somebody waits for another origin, and nobody for this one."""
        return self._capacity is not None and self._capacity.is_another_first_locked(self, None)

    def resize(self, maxsize: int) -> None:
        """Change the limit while the pool is at work.

        A larger one lets waiters open connections at once.  A smaller one closes idle connections, the coldest first,
        and further ones as they come back; nobody's lease is cut short.

        Args:
            maxsize: The most connections from now on.

        Raises:
            TypeError, ValueError: It is not a positive int.
        """
        check_maxsize(maxsize)
        doomed: list[HTTPConnection] = []
        now = self._clock()
        with self._lock:
            self.maxsize = maxsize
            while self._idle and self._size_locked() > maxsize:
                self._doom_locked(self._idle[0], CloseReason.EVICTED, doomed)
            # From now on each release looks at the limit, as it need not where it has always held.
            self._is_unlimited = False
            if self._capacity is not None:
                self._capacity.make_room_for_waiters_locked(self, now, doomed)
            self._serve_locked(now)
        for conn in doomed:
            conn.close()

    # --- the end ----------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the pool: idle connections at once, leased ones when they come back; waiters get `PoolClosed`.

        A second call does nothing.
        """
        self._close(only_if_unused=False)

    def close_if_unused(self) -> bool:
        """Close the pool unless a connection of it is lent, being opened or waited for; return whether it is closed."""
        return self._close(only_if_unused=True)

    def _close(self, *, only_if_unused: bool) -> bool:
        doomed: list[HTTPConnection] = []
        now = self._clock()
        with self._lock:
            if self._lost:
                self._reap_locked(now)
            if only_if_unused and (self._leased or self._opening or self._waiters):
                return False
            self._is_closed = True
            self._is_unlimited = False
            while self._idle:
                self._doom_locked(self._idle[0], CloseReason.POOL_CLOSED, doomed)
            for queue in (self._waiters, self._late):
                while (claim := queue.first()) is not None:
                    claim.given = Grant.POOL_CLOSED
                    self._dequeue_locked(claim)
                    claim.wake.release()
            self._serve_locked(now)  # other origins' waiters, where there is a max_total
        for conn in doomed:
            conn.close()
        if self._is_watched:
            leaks.watcher.forget(self)
        return True
