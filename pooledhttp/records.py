"""What a pool writes down: the `Entry` of a connection, the `Claim` of a caller, the `Dial` of a connection to come.

None of them has a lock or does I/O; each is guarded by the lock of the pool that made it.  An entry is also the weak
reference that tells when a borrower lost its connection: it lands in a list of the pool, from inside the garbage
collector and without a lock, and the next one to hold the pool's lock frees the slot.  A claim and its dial belong to
their caller's frame in the same way, and the pool refers to them weakly: whatever ends that frame frees the slot.

How they read in `explain()` and in the text of errors stands here too: who, since when, in which phase, for what.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from enum import Enum
from threading import Thread, current_thread

from .conn import HTTPConnection
from .hints import Any, Final, Self
from .leaks import Stack, render
from .request import printable
from .states import State
from .stats import RequestOutcome


class Entry(weakref.ref[HTTPConnection]):
    """One connection's record in its pool, and the weak reference that tells when its borrower lost it.

    Args:
        conn: The connection, just opened.
        lost: Where to put the record when the connection has been collected.
        now: The moment, on the pool's clock.
        expires_at: When the connection is too old, on the same clock.
        idle_limit: How long it may be idle, in seconds.
    """

    __slots__ = ("balance", "borrower", "closed", "conn", "expires_at", "good_until", "idle_limit",
                 "idle_since",
                 "is_lent", "is_overdue", "is_reused", "leased_at", "leases", "lost", "opened", "stack",
                 "tunnel")  # fmt: skip

    def __new__(
        cls, conn: HTTPConnection, lost: list[Lost], _now: float, _expires_at: float, _idle_limit: float
    ) -> Self:
        """Make the reference; `weakref.ref` takes its callback here."""
        # It runs inside the garbage collector, at any moment and in any thread: no lock, no I/O, and not even a line of
        # Python that a signal could interrupt.
        return super().__new__(cls, conn, lost.append)

    def __init__(
        self, conn: HTTPConnection, lost: list[Lost], now: float, expires_at: float, idle_limit: float
    ) -> None:
        super().__init__(conn, lost.append)  # type: ignore[call-arg]  # typeshed has only ref.__new__
        self.conn: HTTPConnection | None = None  # only while idle
        self.lost = lost
        # The connection's journal: the seconds that each opening took, and why each socket was closed.
        self.opened = conn._opened_seconds
        self.closed = conn._close_reasons
        self.tunnel = conn._tunnel_wanted
        self.balance = 0  # sockets opened less sockets closed, as far as they have been counted
        self.expires_at = expires_at
        self.idle_limit = idle_limit  # seconds; what the server announces or the pool learns lowers it
        self.idle_since = now
        self.good_until = now  # while idle: the earlier of its two limits
        self.leased_at = now
        self.leases = 1  # tells one lease from the next, for whoever gives back twice
        self.borrower: Thread | None = current_thread()
        self.is_reused = False
        self.is_lent = False  # the borrower has it; before that, a reused one may still turn out stale
        self.stack: Stack | None = None  # where the borrower acquired it, if that is noted
        self.is_overdue = False  # this lease has been reported for lasting too long
        hash(self)  # kept from now on: of a dead reference, which the list may hold, it cannot be had any more


class Grant(Enum):
    """What a claim is given when it is neither a connection nor an error."""

    SLOT = "slot"
    POOL_CLOSED = "pool closed"
    LEFT = "left"  # nothing: its caller has gone


class Claim:
    """One acquire that found no idle connection: it waits, or it has a `Dial` of its own, or both.

    Args:
        since: When it was made, on the pool's clock.
    """

    __slots__ = ("__weakref__", "borrower", "conn", "dial", "given", "since", "wake")

    def __init__(self, since: float) -> None:
        self.since = since
        self.borrower = current_thread()
        self.dial: Dial | None = None  # the slot it holds
        # Set under the pool's lock, before the wake-up: a connection, what its own dial failed with, or a Grant.
        self.given: Entry | Grant | BaseException | None = None
        self.conn: HTTPConnection | None = None  # of the entry that it was given
        self.wake = threading.Lock()
        self.wake.acquire()

    @property
    def is_waiting(self) -> bool:
        """Whether it has been given nothing yet, not even a slot."""
        return self.given is None and self.dial is None


class Ended:
    """A lease that ended where nobody may wait for a lock: in a generator that is closed, perhaps by the collector.

    Args:
        entry: Of its connection, which is closed.
        outcome: What to count the call as, or ``None``.
        seconds: How long it took.
    """

    __slots__ = ("entry", "outcome", "seconds")

    def __init__(self, entry: Entry, outcome: RequestOutcome | None, seconds: float) -> None:
        self.entry = entry
        self.outcome = outcome
        self.seconds = seconds


# What nobody has told the pool of: the entry of a connection that was collected while it was lent, the reference to a
# claim that was collected while it was queued, or a lease that ended without the lock.
Lost = Entry | weakref.ref[Claim] | Ended


class Queue(list[Any]):
    """Claims in the order of their coming.  It holds them weakly: that their caller is gone shows as with a connection.

    Args:
        lost: Where to put the reference to a claim that was collected while it stood here.
    """

    __slots__ = ("_lost",)

    def __init__(self, lost: list[Lost]) -> None:
        super().__init__()
        self._lost = lost

    def __iter__(self) -> Iterator[Claim]:
        """Iterate over the claims whose callers are there."""
        for reference in super().__iter__():
            if (claim := reference()) is not None:
                yield claim

    def put(self, claim: Claim) -> None:
        """Add a claim at the end."""
        self.append(weakref.ref(claim, self._lost.append))

    def first(self) -> Claim | None:
        """Return who has come first; whoever was answered, or is gone, is dropped on the way."""
        while self:
            claim: Claim | None = self[0]()
            if claim is not None and claim.given is None:
                return claim
            del self[0]
        return None

    def take_out(self, claim: Claim) -> bool:
        """Remove a claim; return whether it was there."""
        for reference in super().__iter__():
            if reference() is claim:
                self.remove(reference)
                return True
        return False


class Dial:
    """A slot in which a connection is being opened.

    Args:
        claim: The one that began it.
        since: When, on the pool's clock.

    Attributes:
        is_late: Whether it runs in a thread of its own, and its claim waits for whatever comes first.
        is_running: Whether that thread has begun, and so sees to the slot itself.
        thread: That thread, once it is started.
    """

    __slots__ = ("__weakref__", "_claim", "is_late", "is_running", "since", "thread")

    def __init__(self, claim: Claim, since: float) -> None:
        self._claim: weakref.ref[Claim] | None = weakref.ref(claim)
        self.since = since
        self.is_late = False
        self.is_running = False
        self.thread: Thread | None = None

    @property
    def claim(self) -> Claim | None:
        """The one that began it, while it waits for it; afterwards ``None``: then the connection is for anybody."""
        return None if self._claim is None else self._claim()

    def forget_claim(self) -> None:
        """Let the connection be for anybody."""
        self._claim = None


# --- how they read ----------------------------------------------------------------------------------------------------

_PHASES: Final = {
    State.CLOSED: "closed by its borrower",
    State.IDLE: "between two requests",
    State.REQUEST_STARTED: "sending the request",
    State.REQUEST_SENT: "waiting for the head",
    State.UNREAD_RESPONSE: "reading the response",
}


def name_of(thread: Thread | None) -> str:
    """Return the name of a thread (with gevent: of a greenlet), or that it has ended."""
    if thread is None:
        return "nobody"
    try:
        has_ended = not thread.is_alive()
    except (RuntimeError, AssertionError):  # one that `threading` did not start, and so cannot ask
        has_ended = False
    return f"a thread that has ended ({thread.name})" if has_ended else thread.name


def describe(entry: Entry, now: float) -> str:
    """Say how long, by which thread, for what request and in which phase a connection is lent."""
    held = f"{max(now - entry.leased_at, 0.0):.1f} s by {name_of(entry.borrower)}"
    conn = entry() or entry.conn
    if conn is None:
        return f"{held}, lost without release"
    state = conn.state
    if state in {State.CLOSED, State.IDLE}:
        return f"{held}, {_PHASES[state]}"
    if state is State.UNREAD_RESPONSE and conn._head is None:
        state = State.REQUEST_SENT  # a whole exchange in one call claims the response beforehand
    return f"{held}, {conn._method} {printable(conn._target)}, {_PHASES[state]}"


def describe_at_length(entry: Entry, now: float) -> str:
    """Say the same, and where it was acquired if that is known."""
    stack = entry.stack
    return describe(entry, now) if stack is None else f"{describe(entry, now)}\n{render(stack)}"


def by_age(entry: Entry) -> float:
    """Return what sorts leases, the oldest first."""
    return entry.leased_at
