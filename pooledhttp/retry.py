"""When a request may be sent again: at once on another connection, or after a wait (RFC 9110 section 9.2.2).

The stale-resend rule (RFC 9112 section 9.3.1).  A kept-alive connection can die between two requests without anybody
doing wrong: the server closes it as idle while the next request is on its way.  That one request may be sent a second
time, once, on a new connection, and only if

- the connection was a reused one (a fresh one that dies has another reason), and
- not a byte of the answer had arrived, and
- not a byte of the request had been written, or the request is idempotent and its body can be replayed.

`Retry` is for a server that is unwell, and only for who asks for it: the whole attempt, resend included, is made again
after a wait.  What may be tried again, when and how often is decided here: by `Attempts` for one call, by `Budget` for
all calls to an origin together.  Nothing here waits or does I/O; `pool` does.
"""

from __future__ import annotations

import email.utils
import errno
import random
import socket
import ssl
import threading
from collections.abc import Callable, Collection
from datetime import UTC

from .errors import (
    AcquireTimeout,
    ConnectTimeout,
    IncompleteRead,
    InvalidResponse,
    PoolClosed,
    PoolFull,
    ReadTimeout,
    SourcePortsExhausted,
    TotalTimeout,
    TunnelError,
    WriteTimeout,
)
from .frozen import Frozen
from .hints import Final, Literal, TypeVar
from .request import PreparedRequest
from .response import FailedAttempt
from .stats import RetryReason, RetryRefusal
from .timeouts import Clock, check_seconds, wall_clock

_Member = TypeVar("_Member", int, str)

# How a dead connection shows itself; a timeout is not among them, since the peer may be at work on the request.
_DEAD = (ConnectionError, ssl.SSLEOFError)


def may_resend(
    prepared: PreparedRequest, fault: BaseException, *, was_reused: bool, is_unsent: bool, is_unanswered: bool
) -> bool:
    """Tell whether a failed request may be sent once more, on a new connection.

    Args:
        prepared: The request.
        fault: What its exchange raised.
        was_reused: Whether its connection had served a request before.
        is_unsent: Whether no byte of it had been written.
        is_unanswered: Whether no byte of an answer had arrived.
    """
    if not (was_reused and is_unanswered and isinstance(fault, _DEAD)):
        return False
    return is_unsent or (prepared.is_idempotent and prepared.is_replayable)


def is_late_timeout(prepared: PreparedRequest, status: int, *, was_reused: bool, will_close: bool) -> bool:
    """Tell whether a 408 answers the idle time before this request rather than the request itself.

    A server that gives up on an idle connection may say so with 408 and close (RFC 9110 section 15.5.9).  When that
    crosses the next request, it arrives as its answer.
    """
    return status == 408 and was_reused and will_close and prepared.is_idempotent and prepared.is_replayable


# --- what is asked for ------------------------------------------------------------------------------------------------

# The window of the budget, in seconds.
WINDOW: Final = 10


class Retry(Frozen):
    """When and how often a call is tried again; off unless `PoolConfig.retry` or a call's `retry=` asks for it.

    Tried again is what could not be connected (any request: nothing was sent), and what met a dead connection, a
    timeout, a truncated body or one of the `statuses`: then only an idempotent request (RFC 9110 section 9.2.2; an
    Idempotency-Key makes one) or one of the `methods`, and only if its body can be replayed (bytes and str can, files
    and iterators cannot).  A failed certificate, a malformed response and a pool that is full or closed stay what they
    are.  Everything happens within the call's total: a wait that does not fit into it is not begun.  While a call waits
    it holds no connection.

    Attributes:
        attempts: How often a request is tried in all, the first time included.
        backoff: Seconds: before the second attempt the call waits at random between 0 and this, before each further one
            between 0 and twice as much as before; 0 does not wait.
        backoff_max: The most that doubling leads to, in seconds.
        statuses: Answers that are tried again, 400 to 599.  Where such an answer has a Retry-After (RFC 9110 section
            10.2.3), the call waits that long too.
        methods: Methods that are tried again although they are not idempotent, like ``{"POST"}``; ``None``: none.
        retry_after_max: The longest Retry-After that is waited for, in seconds; an answer that asks for more is
            returned at once.
        budget: Retries as a share of the calls of the last 10 seconds, of all threads to this origin: at most so much
            is added to the load of a server that is unwell.  Calls without a `Retry` do not count.  ``None``: no limit.
        budget_floor: Retries per second, over the same 10 seconds, that are allowed whatever the share: of few calls,
            a share is less than one.

    Raises:
        TypeError: A value is of the wrong type.
        ValueError: A value makes no sense.
    """

    attempts: int = 3
    backoff: float = 0.1
    backoff_max: float = 5.0
    statuses: Collection[int] = frozenset({429, 502, 503, 504})
    methods: Collection[str] | None = None
    retry_after_max: float = 30.0
    budget: float | None = 0.2
    budget_floor: float = 10.0

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int):
            raise TypeError(f"Retry.attempts must be an int, not {self.attempts!r}")
        if self.attempts < 1:
            raise ValueError(f"Retry.attempts must be at least 1, which is the first, not {self.attempts!r}")
        for name in ("backoff", "backoff_max", "retry_after_max"):
            seconds = getattr(self, name)
            if seconds is None:
                raise TypeError(f"Retry.{name} must be a number of seconds, not None")
            check_seconds(f"Retry.{name}", seconds, zero=True)
        if self.budget is not None:
            _check_rate("budget", self.budget)
        _check_rate("budget_floor", self.budget_floor)
        statuses = _frozen("statuses", self.statuses, int)
        if not all(400 <= status <= 599 for status in statuses):
            raise ValueError(f"Retry.statuses must be between 400 and 599, not {self.statuses!r}")
        vars(self)["statuses"] = statuses
        if self.methods is not None:
            methods = _frozen("methods", self.methods, str)
            if not all(method.isupper() for method in methods):
                raise ValueError(f"Retry.methods must be in upper case, as on the wire, not {self.methods!r}")
            vars(self)["methods"] = methods

    def may_repeat(self, prepared: PreparedRequest) -> bool:
        """Tell whether a request may be sent again although a server may have received it."""
        is_harmless = prepared.is_idempotent or (self.methods is not None and prepared.method in self.methods)
        return is_harmless and prepared.is_replayable

    def backoff_before(self, attempt: int, uniform: Callable[[], float]) -> float:
        """Return how long to wait before an attempt, in seconds.

        "Full jitter": at random over the whole range, so that callers who failed together do not come back together.

        Args:
            attempt: Which; the second is the first that is waited for.
            uniform: Returns a random number from 0 to 1.
        """
        most = self.backoff * 2.0 ** min(attempt - 2, 500)  # a float ends at 2**1024, and backoff_max at a year
        return min(self.backoff_max, most) * uniform()


# `retry=` of a call; by default what the pool's settings say, since ``None`` means that there is none.
AS_CONFIGURED: Final = "configured"
RetryChoice = Retry | Literal["configured"] | None


def _check_rate(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"Retry.{name} must be a number, not {value!r}")
    if not 0 <= value <= 1e6:  # which no NaN passes
        raise ValueError(f"Retry.{name} must be at least 0, and finite, not {value!r}")


def _frozen(name: str, values: Collection[_Member], kind: type[_Member]) -> frozenset[_Member]:
    """Return a copy, so that what the caller does with his own later changes nothing."""
    if not isinstance(values, (set, frozenset, list, tuple)):
        raise TypeError(f"Retry.{name} must be a set, not {values!r}")
    if not all(isinstance(value, kind) and not isinstance(value, bool) for value in values):
        raise TypeError(f"Retry.{name} must hold nothing but {kind.__name__}, not {values!r}")
    return frozenset(values)


# --- what may be tried again ------------------------------------------------------------------------------------------

# The pool is the problem (another attempt would make it worse), the time is over, or no attempt could end otherwise.
_FINAL: Final = (AcquireTimeout, PoolClosed, PoolFull, TotalTimeout, SourcePortsExhausted, ssl.SSLCertVerificationError)
# Between us and the server: what was not there may be there again in a moment.  ENOENT is a Unix socket's.
_UNREACHABLE: Final = frozenset(
    {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.ETIMEDOUT}
)
_ABSENT: Final = _UNREACHABLE | {errno.ENOENT}
_GATEWAY_TROUBLE: Final = frozenset({502, 503, 504})
_DEAD_IN_TLS: Final = (ssl.SSLEOFError, ssl.SSLZeroReturnError)


def is_connect_failure(fault: BaseException) -> bool:
    """Tell whether a connection that could not be opened may be opened at the next attempt.

    Args:
        fault: What acquiring it raised.
    """
    if isinstance(fault, _FINAL):
        return False
    if isinstance(fault, TunnelError):
        return fault.status in _GATEWAY_TROUBLE
    if isinstance(fault, (ConnectionError, ConnectTimeout, ReadTimeout, WriteTimeout, socket.gaierror, *_DEAD_IN_TLS)):
        return True  # not any TimeoutError: a signal's handler may raise one
    return isinstance(fault, OSError) and not isinstance(fault, ssl.SSLError) and fault.errno in _ABSENT


def kind_of_failure(fault: BaseException) -> RetryReason | None:
    """Return in which way an exchange failed; ``None``: in none that another attempt could mend.

    Args:
        fault: What the exchange on an open connection raised.
    """
    if isinstance(fault, _FINAL):
        return None
    if isinstance(fault, (ReadTimeout, WriteTimeout)):  # not any TimeoutError, as above
        return RetryReason.TIMEOUT
    if isinstance(fault, IncompleteRead):
        return None if isinstance(fault, InvalidResponse) else RetryReason.TRUNCATED
    if isinstance(fault, (ConnectionError, *_DEAD_IN_TLS)):
        return RetryReason.RESET
    if not isinstance(fault, OSError) or isinstance(fault, ssl.SSLError) or fault.errno not in _UNREACHABLE:
        return None
    return RetryReason.TIMEOUT if fault.errno == errno.ETIMEDOUT else RetryReason.RESET


def retry_after_seconds(value: str | None, date: str | None, *, clock: Clock = wall_clock) -> float | None:
    """Return how long a Retry-After field asks to wait, in seconds; ``None`` when there is none that can be read.

    Args:
        value: The field's value: seconds or an HTTP-date (RFC 9110 section 10.2.3), or ``None``.
        date: The value of the same response's Date field, or ``None``.  A date is counted from it, since our clock may
            not be the server's.
        clock: Seconds since 1970, for a response without a Date.
    """
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return float(value)
    until = _moment(value)
    if until is None:
        return None
    since = _moment(date)
    return max(until - (clock() if since is None else since), 0.0)


def _moment(date: str | None) -> float | None:
    """Return the moment of an HTTP-date in seconds since 1970, or ``None`` if it is none."""
    if date is None or len(date) > 64:  # the longest form has 33 characters
        return None
    try:
        moment = email.utils.parsedate_to_datetime(date)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()  # the old forms do not say GMT
    except (ValueError, TypeError, IndexError, OverflowError):  # the 99th of November, and what only resembles a date
        return None


# --- one call, and all calls of a pool --------------------------------------------------------------------------------

_REFUSED: Final = {
    RetryRefusal.BUDGET: "; no further one, since the budget for retries is used up",
    RetryRefusal.DEADLINE: "; no further one, since the wait would not fit into the call's total",
}


class Attempts:
    """The attempts of one call: which have failed, and whether there is another.

    Args:
        retry: What the call asked for.
        prepared: The request.
        uniform: Returns a random number from 0 to 1.

    Attributes:
        failures: The attempts that have failed and were followed by another, in order; the pool adds to it.
        resends: How often an attempt was sent again because a kept-alive connection had died.
    """

    __slots__ = ("_is_open", "_is_unsent", "_prepared", "_refusal", "_uniform", "failures", "resends", "retry")

    def __init__(
        self, retry: Retry, prepared: PreparedRequest, *, uniform: Callable[[], float] = random.random
    ) -> None:
        self.retry = retry
        self.failures: list[FailedAttempt] = []
        self.resends = 0
        self._prepared = prepared
        self._uniform = uniform
        self._is_open = False
        self._is_unsent = True
        self._refusal: RetryRefusal | None = None

    @property
    def number(self) -> int:
        """The number of the present attempt; the first is 1."""
        return len(self.failures) + 1

    def broke(self, *, is_open: bool, is_unsent: bool) -> None:
        """Note how far the present attempt came before it failed.

        Args:
            is_open: Whether there was a connection.
            is_unsent: Whether no byte of the request was written to it; then its body has not been begun either.
        """
        self._is_open = is_open
        self._is_unsent = is_unsent

    def reason_after_fault(self, fault: BaseException) -> RetryReason | None:
        """Return why the request may be sent again after a failure, or ``None`` if it may not."""
        if not self._is_open:
            return RetryReason.CONNECT if is_connect_failure(fault) else None
        kind = kind_of_failure(fault)
        return kind if self._is_unsent or self.retry.may_repeat(self._prepared) else None

    def reason_after_status(self, status: int) -> RetryReason | None:
        """Return why the request may be sent again after an answer, or ``None`` if it may not."""
        if status in self.retry.statuses and self.retry.may_repeat(self._prepared):
            return RetryReason.STATUS
        return None

    def wait(self, *, asked: float | None, left: float | None) -> float | RetryRefusal:
        """Return how long to wait before the next attempt, in seconds, or why there is none.

        Args:
            asked: The seconds of the answer's Retry-After, or ``None``.
            left: What is left of the call's total, or ``None`` if it has none.
        """
        if self.number >= self.retry.attempts:
            return RetryRefusal.ATTEMPTS
        seconds = self.retry.backoff_before(self.number + 1, self._uniform)
        if asked is not None:
            if asked > self.retry.retry_after_max:
                return RetryRefusal.RETRY_AFTER
            seconds += asked  # on top, since everybody who was told so would come back in the same moment
        return RetryRefusal.DEADLINE if left is not None and seconds >= left else seconds

    def refused(self, refusal: RetryRefusal) -> None:
        """Note why the present attempt is the last."""
        self._refusal = refusal

    def explain(self, fault: Exception) -> None:
        """Add a note to the error that the call ends with: what went before it."""
        refused = "" if self._refusal is None else _REFUSED.get(self._refusal, "")
        if not self.failures and not refused:
            return
        whats = [*(failure.what for failure in self.failures), type(fault).__name__]
        fault.add_note(f"after {self.number} attempt{'s' * (self.number > 1)}: {', '.join(whats)}{refused}")


class Budget:
    """How many calls to an origin have begun in the last seconds, and how many retries there were.

    Whoever asks for a retry brings his own limits, the counts are everybody's.
    """

    __slots__ = ("_calls", "_lock", "_retries", "_seconds")

    def __init__(self) -> None:
        self.renew_after_fork()

    def renew_after_fork(self) -> None:
        """Begin anew: what the parent has asked of the server is not the child's doing."""
        self._lock = threading.Lock()
        self._calls = 0
        self._retries = 0
        self._seconds: list[list[int]] = []  # [second, calls, retries], the newest at the right

    def note_call(self, now: float) -> None:
        """Count a call that begins now."""
        with self._lock:
            self._present_locked(now)[1] += 1
            self._calls += 1

    def take(self, retry: Retry, now: float) -> bool:
        """Count a retry, if there may be another one now; return whether there may."""
        with self._lock:
            present = self._present_locked(now)
            if retry.budget is not None:
                allowed = max(retry.budget * self._calls, retry.budget_floor * WINDOW)
                if self._retries + 1 > allowed:
                    return False
            present[2] += 1
            self._retries += 1
        return True

    def is_spent(self, now: float) -> bool:
        """Whether all that it has counted is too old to matter."""
        seconds = self._seconds
        return not seconds or seconds[-1][0] <= now - WINDOW - 1

    def _present_locked(self, now: float) -> list[int]:
        """Return the counts of the present second; those that are too old are forgotten."""
        seconds = self._seconds
        second = int(now)
        if seconds and second <= seconds[-1][0]:
            return seconds[-1]  # threads read the clock before they get the lock
        while seconds and seconds[0][0] <= second - WINDOW:
            _, calls, retries = seconds.pop(0)
            self._calls -= calls
            self._retries -= retries
        seconds.append([second, 0, 0])
        return seconds[-1]
