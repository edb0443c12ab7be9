"""The numbers of a pool: Tally (counting), Histogram (buckets) and PoolStats (what users see).

The core counts with plain integers and floats while it holds the pool's lock anyway; nothing here takes a
lock, reads a clock or knows Prometheus.  Reading happens at scrape time: `metrics` asks each pool for a
`PoolStats`, a frozen copy.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType

from .frozen import Frozen
from .hints import Any, NamedTuple, TypeVar

_Kind = TypeVar("_Kind", bound=str)


class CloseReason(StrEnum):
    """Why a connection ended; a closed set, so that every value is on the dashboard from the start."""

    IDLE = "idle"  # our idle limit, or the one the server announced
    MAX_AGE = "max_age"
    MAX_REQUESTS = "max_requests"
    SERVER_CLOSE = "server_close"  # the response said so: Connection: close, HTTP/1.0, or a body without a length
    STALE_EOF = "stale_eof"  # the peer had closed it while it was idle
    STALE_RESET = "stale_reset"  # the peer had reset it while it was idle
    STALE_408 = "stale_408"  # the peer had sent 408 Request Timeout while it was idle
    STALE_ASSUMED = "stale_assumed"  # idle, and older than one that had died
    UNSOLICITED = "unsolicited"  # the peer had sent bytes that nobody asked for while it was idle
    LEFTOVER = "leftover"  # bytes stood behind a complete response
    UNREAD = "unread"  # given back with more unread body than may be drained
    TRUNCATED = "truncated"  # the body ended before its framing said so
    TIMEOUT = "timeout"  # one of the limits of Timeout fired during an exchange
    ERROR = "error"  # anything else that went wrong during an exchange, also the borrower's own exception
    CLIENT_CLOSE = "client_close"  # the borrower's close(), switch of protocol (101), or login by NTLM or Negotiate
    EVICTED = "evicted"  # prune(), or making room
    POOL_CLOSED = "pool_closed"
    LEAKED = "leaked"  # collected by the garbage collector while lent


class AcquireOutcome(StrEnum):
    """How an acquire ended; every acquire ends in exactly one."""

    REUSED = "reused"
    OPENED = "opened"
    TIMEOUT = "timeout"
    REJECTED = "rejected"  # the pool is closed, or max_waiters were waiting already
    ERROR = "error"  # connecting failed, or the caller was interrupted


class ConnectFailure(StrEnum):
    """Why a connection could not be opened."""

    DNS = "dns"
    REFUSED = "refused"
    TIMEOUT = "timeout"
    TLS = "tls"
    PROXY = "proxy"
    OTHER = "other"


class RequestOutcome(StrEnum):
    """How a call of the pool's own request API ended."""

    STATUS_1XX = "1xx"
    STATUS_2XX = "2xx"
    STATUS_3XX = "3xx"
    STATUS_4XX = "4xx"
    STATUS_5XX = "5xx"
    TIMEOUT = "timeout"
    ERROR = "error"


class StaleOutcome(StrEnum):
    """What became of a request whose kept-alive connection turned out dead."""

    RETRIED = "retried"
    RAISED = "raised"


class RetryReason(StrEnum):
    """Why a request was tried again, where its call asked for that."""

    CONNECT = "connect"  # no connection could be opened
    RESET = "reset"  # the connection ended before the answer came
    TIMEOUT = "timeout"
    TRUNCATED = "truncated"  # the body of the answer ended before its framing said so
    STATUS = "status"  # the answer asked for it: 503 and the like


class RetryRefusal(StrEnum):
    """Why a request was not tried again, though its failure was one that is."""

    ATTEMPTS = "attempts"  # it had had all of them
    BUDGET = "budget"  # of all calls to this origin, too many were being tried again
    DEADLINE = "deadline"  # the wait did not fit into what was left of the call's total
    RETRY_AFTER = "retry_after"  # the server asked for a longer wait than the call would have


class DrainOutcome(StrEnum):
    """What became of the unread rest of a body when its connection was given back."""

    DRAINED = "drained"
    CLOSED = "closed"


# Bounds in seconds.  Wait and connect share theirs; every alert threshold is one of these bounds.
WAIT_BOUNDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
USE_BOUNDS = (0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0)
REQUEST_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)

# A status line has three digits, and the first may be up to 9 (RFC 9110 section 15: unknown classes are 5xx to us).
_BY_CLASS = {1: "1xx", 2: "2xx", 3: "3xx", 4: "4xx"}
OUTCOME_BY_STATUS_CLASS: Mapping[int, RequestOutcome] = MappingProxyType(
    {hundreds: RequestOutcome(_BY_CLASS.get(hundreds, "5xx")) for hundreds in range(1, 10)}
)


# What OpenMetrics allows the names and values of an exemplar's labels to have together.
_EXEMPLAR_CHARACTERS = 128


def can_be_exemplar(labels: Iterable[tuple[object, object]]) -> bool:
    """Tell whether labels may be shown: one name or value that may not be spoils everything that is scraped with it."""
    length = 0
    for name, value in labels:
        if not (isinstance(name, str) and name.isascii() and name.isidentifier() and isinstance(value, str)):
            return False
        try:
            value.encode()
        except UnicodeEncodeError:  # a lone surrogate
            return False
        length += len(name) + len(value)
    return length <= _EXEMPLAR_CHARACTERS


class Exemplar(NamedTuple):
    """One observation of a bucket, and what leads to it: a trace, say.

    Attributes:
        bucket: The number of its bucket.
        labels: What leads to it, such as ``(("trace_id", "..."),)``.
        seconds: What was observed.
        at: When, in seconds since the epoch.
    """

    bucket: int
    labels: tuple[tuple[str, str], ...]
    seconds: float
    at: float


class Histogram:
    """Counts of observations by fixed upper bounds, and their sum.

    Args:
        bounds: Upper bounds, ascending, in seconds; one more bucket catches what is above the last.

    Attributes:
        exemplars: The latest of each bucket that has one.
    """

    __slots__ = ("bounds", "counts", "exemplars", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.exemplars: tuple[Exemplar, ...] = ()

    def observe(self, seconds: float) -> None:
        """Count one observation; a value equal to a bound belongs to that bound (Prometheus' ``le``)."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds

    def observe_all(self, values: Iterable[float]) -> None:
        """Count many observations: in order, each bucket is one search, not one for each of them."""
        ordered = sorted(values)
        self.sum += sum(ordered)
        counted = 0
        for bucket, bound in enumerate(self.bounds):
            if counted == len(ordered):
                return
            end = bisect_right(ordered, bound, counted)
            self.counts[bucket] += end - counted
            counted = end
        self.counts[-1] += len(ordered) - counted

    def exemplify(self, seconds: float, labels: tuple[tuple[str, str], ...], at: float) -> None:
        """Remember what leads to an observation, which is counted elsewhere; the last one of its bucket goes."""
        bucket = bisect_left(self.bounds, seconds)
        self.exemplars = _latest((*self.exemplars, Exemplar(bucket, labels, seconds, at)))

    def freeze(self) -> HistogramStats:
        """Return a frozen copy."""
        return HistogramStats(bounds=self.bounds, counts=tuple(self.counts), sum=self.sum, exemplars=self.exemplars)

    def add(self, other: Histogram) -> None:
        """Add the observations of another histogram with the same bounds."""
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum


def _latest(exemplars: Iterable[Exemplar]) -> tuple[Exemplar, ...]:
    """Return the latest exemplar of each bucket."""
    by_bucket: dict[int, Exemplar] = {}
    for exemplar in exemplars:
        before = by_bucket.get(exemplar.bucket)
        if before is None or before.at <= exemplar.at:
            by_bucket[exemplar.bucket] = exemplar
    return tuple(by_bucket.values())


class HistogramStats(Frozen):
    """A frozen histogram.

    Attributes:
        bounds: Upper bounds in seconds, ascending.
        counts: Observations per bucket (not cumulative); one more than there are bounds.
        sum: The sum of all observations, in seconds.
        exemplars: The latest of each bucket that has one; none unless the pool has an `exemplar`.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float
    exemplars: tuple[Exemplar, ...] = ()

    @property
    def count(self) -> int:
        """How many observations there are."""
        return sum(self.counts)

    def __add__(self, other: HistogramStats) -> HistogramStats:
        """Return the two together; the bounds must be the same."""
        return _histograms_together([self, other])

    def quantile(self, q: float) -> float:
        """Estimate the q-quantile (0 to 1) in seconds, linear within a bucket; 0.0 when empty.

        What lies above the last bound is reported as the last bound, as Prometheus does.
        """
        rank = q * self.count
        seen = 0
        lower = 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            if count and seen + count >= rank:
                return lower + (bound - lower) * (rank - seen) / count
            seen += count
            lower = bound
        return lower if self.count else 0.0


class Tally:
    """The counters of one pool, changed only while that pool's lock is held.

    They only ever go up.  Gauges (idle, leased, ...) are not kept here: the pool knows them from its own
    structures.
    """

    __slots__ = (
        "acquires",
        "closed",
        "connect",
        "connect_failures",
        "drains",
        "finished",
        "leaked",
        "opened",
        "request",
        "requests",
        "retries",
        "retries_refused",
        "stale",
        "unwaited",
        "use",
        "wait",
    )

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin at zero; a child process does, after a fork."""
        self.acquires = dict.fromkeys(AcquireOutcome, 0)
        self.opened = 0
        self.closed = dict.fromkeys(CloseReason, 0)
        self.connect_failures = dict.fromkeys(ConnectFailure, 0)
        self.stale = dict.fromkeys(StaleOutcome, 0)
        self.drains = dict.fromkeys(DrainOutcome, 0)
        self.requests = dict.fromkeys(RequestOutcome, 0)
        self.retries = dict.fromkeys(RetryReason, 0)
        self.retries_refused = dict.fromkeys(RetryRefusal, 0)
        self.leaked = 0
        self.wait = Histogram(WAIT_BOUNDS)
        self.use = Histogram(USE_BOUNDS)
        self.connect = Histogram(WAIT_BOUNDS)
        self.request = Histogram(REQUEST_BOUNDS)
        # Leases that have ended well and are not counted in the fields above yet: seconds of use, whether the
        # connection was reused, and, for a call of the request API, its status and seconds.  Counting many at a time
        # costs a request less than counting each at its end.
        self.finished: list[tuple[float, bool, int | None, float]] = []
        self.unwaited = 0  # acquires that did not wait, likewise

    @property
    def events(self) -> int:
        """A number that grows with everything that is counted, and so is the same only while nothing happens."""
        counters = (
            self.acquires,
            self.closed,
            self.connect_failures,
            self.stale,
            self.drains,
            self.requests,
            self.retries,
            self.retries_refused,
        )
        events = self.opened + self.leaked + self.unwaited + len(self.finished)
        for counter in counters:
            events += sum(counter.values())
        for histogram in (self.wait, self.use, self.connect, self.request):
            events += sum(histogram.counts)
        return events

    def sort(self) -> None:
        """Count the finished leases in the fields that they belong to."""
        finished, self.finished = self.finished, []
        if finished:
            used, are_reused, statuses, took = zip(*finished, strict=True)
            self.use.observe_all(used)
            self.acquires[AcquireOutcome.REUSED] += sum(are_reused)
            calls = took
            for status, count in Counter(statuses).items():
                if status is None:
                    calls = tuple(seconds for seconds, of in zip(took, statuses, strict=True) if of is not None)
                else:
                    self.requests[OUTCOME_BY_STATUS_CLASS[status // 100]] += count
            self.request.observe_all(calls)
        self.wait.counts[0] += self.unwaited  # no time at all belongs to the first bucket, and adds nothing to the sum
        self.unwaited = 0


class PoolStats(Frozen):
    """The numbers of one pool at one moment; gauges first, then counters since the pool was made.

    Attributes:
        name: The pool's name: its label in the metrics.
        maxsize: The hard limit, in connections.
        idle: Connections open and free.
        leased: Connections lent to somebody.
        opening: Connections being opened.
        waiting: Callers waiting for a connection.
        oldest_lease_seconds: Age of the longest current lease; 0.0 without one.
        acquires: By outcome; every finished acquire is in exactly one.
        opened: Connections opened.
        closed: Connections ended, by reason; ``opened == sum(closed.values()) + idle + leased`` at rest.
        connect_failures: Failed attempts to open a connection, by reason.
        stale: Requests whose kept-alive connection turned out dead, by what became of them.
        drains: Connections given back with an unread body, by what became of it.
        requests: Calls through `request` and `stream`, by how they ended; one that was tried again counts once.
        retries: Attempts after the first of a call that asks for them (`Retry`), by what had failed before.
        retries_refused: Calls that asked for them and ended with a failure that is tried again, by why it was not.
        leaked: Leases that lasted longer than `leak_after`, and connections that were collected while lent; a lease
            counts once.
        wait: Waiting for a connection or a slot (not connecting), per acquire that got one, or waited for it in vain.
        use: From acquire to release, per lease.
        connect: Resolving, connecting, tunnel and TLS of the connections that were opened.
        request: Calls through `request` and `stream` whole, waiting for a connection and between attempts included.
    """

    name: str
    maxsize: int
    idle: int
    leased: int
    opening: int
    waiting: int
    oldest_lease_seconds: float
    acquires: Mapping[str, int]
    opened: int
    closed: Mapping[str, int]
    connect_failures: Mapping[str, int]
    stale: Mapping[str, int]
    drains: Mapping[str, int]
    requests: Mapping[str, int]
    retries: Mapping[str, int]
    retries_refused: Mapping[str, int]
    leaked: int
    wait: HistogramStats
    use: HistogramStats
    connect: HistogramStats
    request: HistogramStats

    @property
    def reuse_ratio(self) -> float:
        """The share of successful acquires that were served by a kept-alive connection; 0.0 before the first."""
        reused = self.acquires[AcquireOutcome.REUSED]
        served = reused + self.acquires[AcquireOutcome.OPENED]
        return reused / served if served else 0.0

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the numbers, for instance to another process; a read-only view cannot be, so copies go along."""
        values = self.as_dict()
        return _stats_of, ({name: dict(v) if isinstance(v, Mapping) else v for name, v in values.items()},)

    def __add__(self, other: PoolStats) -> PoolStats:
        """Return the two pools as one: sums, but the elder of the two oldest leases."""
        return together([self, other])


def _stats_of(values: dict[str, Any]) -> PoolStats:
    frozen: dict[str, Any] = {
        name: MappingProxyType(value) if isinstance(value, dict) else value for name, value in values.items()
    }
    return PoolStats(**frozen)


# What users see are plain strings, which print as such: made once, since there are many in each snapshot.
_PLAIN: Mapping[str, str] = {
    member: str(member)
    for kind in (
        AcquireOutcome,
        CloseReason,
        ConnectFailure,
        StaleOutcome,
        DrainOutcome,
        RequestOutcome,
        RetryReason,
        RetryRefusal,
    )
    for member in kind
}


def _frozen(counts: Mapping[_Kind, int]) -> Mapping[str, int]:
    return MappingProxyType(dict(zip(map(_PLAIN.__getitem__, counts), counts.values(), strict=True)))


def together(parts: Sequence[PoolStats]) -> PoolStats:
    """Return pools as one: sums, but the eldest of the oldest leases, and the first one's name."""
    if len(parts) == 1:
        return parts[0]
    return PoolStats(
        name=parts[0].name,
        maxsize=sum(part.maxsize for part in parts),
        idle=sum(part.idle for part in parts),
        leased=sum(part.leased for part in parts),
        opening=sum(part.opening for part in parts),
        waiting=sum(part.waiting for part in parts),
        oldest_lease_seconds=max(part.oldest_lease_seconds for part in parts),
        acquires=_counts_together([part.acquires for part in parts]),
        opened=sum(part.opened for part in parts),
        closed=_counts_together([part.closed for part in parts]),
        connect_failures=_counts_together([part.connect_failures for part in parts]),
        stale=_counts_together([part.stale for part in parts]),
        drains=_counts_together([part.drains for part in parts]),
        requests=_counts_together([part.requests for part in parts]),
        retries=_counts_together([part.retries for part in parts]),
        retries_refused=_counts_together([part.retries_refused for part in parts]),
        leaked=sum(part.leaked for part in parts),
        wait=_histograms_together([part.wait for part in parts]),
        use=_histograms_together([part.use for part in parts]),
        connect=_histograms_together([part.connect for part in parts]),
        request=_histograms_together([part.request for part in parts]),
    )


def _counts_together(counts: Sequence[Mapping[str, int]]) -> Mapping[str, int]:
    """Add counts up by key: all have those of one enumeration, in its order."""
    sums = map(sum, zip(*(count.values() for count in counts), strict=True))
    return MappingProxyType(dict(zip(counts[0], sums, strict=True)))


def _histograms_together(histograms: Sequence[HistogramStats]) -> HistogramStats:
    """Add histograms of the same bounds up."""
    return HistogramStats(
        bounds=histograms[0].bounds,
        counts=tuple(map(sum, zip(*(histogram.counts for histogram in histograms), strict=True))),
        sum=sum(histogram.sum for histogram in histograms),
        exemplars=_latest(exemplar for histogram in histograms for exemplar in histogram.exemplars),
    )


def freeze(
    tally: Tally,
    *,
    name: str,
    maxsize: int = 0,
    idle: int = 0,
    leased: int = 0,
    opening: int = 0,
    waiting: int = 0,
    oldest_lease_seconds: float = 0.0,
    reused_under_way: int = 0,
) -> PoolStats:
    """Return a frozen copy of a tally with the gauges beside it; the pool's lock must be held."""
    tally.sort()
    acquires = dict(_frozen(tally.acquires))
    acquires[AcquireOutcome.REUSED] += reused_under_way
    return PoolStats(
        name=name,
        maxsize=maxsize,
        idle=idle,
        leased=leased,
        opening=opening,
        waiting=waiting,
        oldest_lease_seconds=oldest_lease_seconds,
        acquires=MappingProxyType(acquires),
        opened=tally.opened,
        closed=_frozen(tally.closed),
        connect_failures=_frozen(tally.connect_failures),
        stale=_frozen(tally.stale),
        drains=_frozen(tally.drains),
        requests=_frozen(tally.requests),
        retries=_frozen(tally.retries),
        retries_refused=_frozen(tally.retries_refused),
        leaked=tally.leaked,
        wait=tally.wait.freeze(),
        use=tally.use.freeze(),
        connect=tally.connect.freeze(),
        request=tally.request.freeze(),
    )
