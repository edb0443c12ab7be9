"""`ConnectionPool`: the connections to one origin, and one request from start to end.

The walk of a request: `request` prepares it (nothing is open yet), `_exchange` acquires a connection, sends and
receives, `_release` puts the connection back.  Where a `Retry` is asked for, `_exchange_with_retries` walks that way
again after a wait.  How connections are lent is the business of `lending.Lender`; what may be sent a second time, that
of `retry`.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from types import TracebackType

from . import log
from .config import PoolConfig, PoolOptions, config_of
from .conn import PEER_STOPPED_READING, HTTPConnection
from .errors import HTTPException, InvalidURL, PoolClosed
from .hints import Self, TypeVar, Unpack
from .lending import is_reused, lease_of, leased_at, outcome_of
from .request import NO_HEADERS, BodySource, Headers, PreparedRequest, prepare
from .response import FailedAttempt, Response, RetriedResponse, StreamedResponse
from .retry import AS_CONFIGURED, Attempts, Budget, Retry, RetryChoice, is_late_timeout, may_resend, retry_after_seconds
from .states import State
from .stats import OUTCOME_BY_STATUS_CLASS, RequestOutcome, RetryReason, RetryRefusal, Tally
from .timeouts import LONGEST, Deadline, Timeout, check_seconds, pause
from .uncut import uncut
from .upkeep import Upkeep

_Result = TypeVar("_Result")
_Reroute = Callable[["ConnectionPool"], "ConnectionPool"]


class ConnectionPool(Upkeep):
    """A pool of connections to one origin, safe to use from any number of threads.

    Args:
        host: Name or address; ``"host:port"`` and ``"[::1]:80"`` carry the port along.
        port: TCP port; ``None``: from `host`, else the scheme's.
        scheme: ``"http"`` or ``"https"``.
        config: The settings; ``None``: made from `options`.
        options: The keywords of `PoolConfig`, if `config` is not given.

    Raises:
        InvalidURL: Host, port or scheme is malformed.
        TypeError, ValueError: A setting is; see `PoolConfig`.
    """

    __slots__ = ("_budget", "_pause", "_retry")

    def __init__(
        self,
        host: str,
        port: int | None = None,
        *,
        scheme: str = "http",
        config: PoolConfig | None = None,
        **options: Unpack[PoolOptions],
    ) -> None:
        super().__init__(host, port, scheme, config_of(config, options))
        self._retry = self.config.retry
        self._budget = Budget()
        self._pause = pause
        if self.config.registry is not None:
            self._note_work = _watch(self, self._tally)

    # --- one call: request, stream --------------------------------------------------------------------

    def request(
        self,
        method: str,
        target: str,
        body: BodySource | None = None,
        headers: Headers = NO_HEADERS,
        *,
        timeout: Timeout | float | None = None,
        retry: RetryChoice = AS_CONFIGURED,
    ) -> Response:
        """Send a request and read the whole response; the connection is back before this returns.

        Args:
            method: The method, as it shall stand on the wire.
            target: The request target, beginning with ``/`` (or ``*``), already percent-encoded.
            body: bytes, str (sent as latin-1), a file, or an iterable of bytes.
            headers: Fields to send.
            timeout: A number is the total of the whole call in seconds; a `Timeout` replaces the pool's, and ``None``
                leaves it.
            retry: When and how often to try again; ``None``: never.  Left out, the pool's setting holds.

        Returns:
            The response, with its body in `data`; a status like 404 or 500 is no error, and neither is one that `retry`
            asks to try again and that was still the answer in the end.

        Raises:
            ValueError: The request is malformed (`InvalidURL`: its target); nothing was opened.
            AcquireTimeout: No connection came free in time.
            PoolFull: Too many wait already.
            PoolClosed: The pool is closed.
            ConnectTimeout, ReadTimeout, WriteTimeout, TotalTimeout: A limit fired.
            IncompleteRead: The connection ended before the body did.
            HTTPException: What came is no HTTP/1 response.
            OSError: The socket's own errors.
        """
        if target.__class__ is not str or target[:1] != "/":
            self._check_target(target)
        prepared = prepare(
            method, target, body, headers, constant_fields=self._constant_fields, encode_chunked=True, is_strict=True
        )
        return self._request(prepared, target, timeout, retry)

    def _prepare(self, method: str, target: str, body: BodySource | None, headers: Headers) -> PreparedRequest:
        if target.__class__ is not str or target[:1] != "/":
            self._check_target(target)
        return prepare(
            method, target, body, headers, constant_fields=self._constant_fields, encode_chunked=True, is_strict=True
        )

    @staticmethod
    def _check_target(target: str) -> None:
        if not isinstance(target, str):
            raise TypeError(f"the request target must be a str, not {type(target).__name__}")
        if target != "*" and not target.startswith("/"):
            raise InvalidURL("the request target must begin with '/' (or be '*'); a whole URL goes to a PoolManager")

    def _request(
        self,
        prepared: PreparedRequest,
        url: str,
        timeout: Timeout | float | None,
        retry: RetryChoice,
        reroute: _Reroute | None = None,
    ) -> Response:
        """Perform a prepared request: the walk that `request` promises, once down and once up.

        Args:
            prepared: The request.
            url: What the caller asked for, for the response.
            timeout: As `request`.
            retry: As `request`.
            reroute: Returns the pool that takes the place of one that was closed between two attempts; ``None``: none.
        """
        now = self._clock()
        timeouts = self._timeouts
        deadline = None
        if timeout is not None or timeouts.total is not None:
            timeouts, deadline = self._limits(timeout, prepared, now)
        if retry == AS_CONFIGURED:
            retry = self._retry
        if retry is not None:
            pool, conn, attempts, exchange = self._exchange_with_retries(
                prepared, timeouts, deadline, now, HTTPConnection.exchange, retry, reroute
            )
            head, data, trailers = exchange
            pool._release(conn, head.status, now)
            if attempts.failures:
                failures = tuple(attempts.failures)
                return RetriedResponse(head, data, prepared.method, url, attempts.resends, trailers, failures)
            return Response(head, data, prepared.method, url, attempts.resends, trailers)
        conn, resends, exchange = self._exchange(prepared, timeouts, deadline, now, HTTPConnection.exchange)
        head, data, trailers = exchange
        self._release(conn, head.status, now)
        return Response(head, data, prepared.method, url, resends, trailers)

    def stream(
        self,
        method: str,
        target: str,
        body: BodySource | None = None,
        headers: Headers = NO_HEADERS,
        *,
        timeout: Timeout | float | None = None,
        retry: RetryChoice = AS_CONFIGURED,
    ) -> StreamContext:
        """Send a request and lend its response, for bodies that are to be read in pieces.

        ``with pool.stream("GET", "/export") as response:`` gives a `StreamedResponse`; leaving the block gives the
        connection back.  Of a body that is left unread, a bounded rest is drained; beyond it the connection is closed.

        Args and errors are those of `request`; they arise on entering the block.  So do retries: what goes wrong in
        the body, of which the block may have read a part, is the block's affair.
        """
        return StreamContext(self, self._prepare(method, target, body, headers), target, timeout, retry)

    def _exchange(
        self,
        prepared: PreparedRequest,
        timeouts: Timeout,
        deadline: Deadline | None,
        started: float,
        exchange: Callable[[HTTPConnection, PreparedRequest], _Result],
        attempts: Attempts | None = None,
    ) -> tuple[HTTPConnection, int, _Result]:
        """Acquire, send and receive; once more on a new connection where the stale-resend rule allows it.

        Args:
            prepared: The request.
            timeouts: The limits of the lease.
            deadline: When the whole call must be over, or ``None``.
            started: The moment.
            exchange: What to do with the connection.
            attempts: Is told how far this came when it fails, and then sees to it that the call is counted; ``None``:
                this is all there is to the call.

        Returns:
            The connection, still leased, how often the request was sent again, and what `exchange` gave.
        """
        try:
            conn = self._acquire(started, timeouts, deadline)
        except BaseException as fault:
            self._not_open(fault, started, attempts)
            raise
        was_reused = is_reused(conn)
        try:
            if deadline is not None:
                deadline.enter("exchange", leased_at(conn))
            result = exchange(conn, prepared)
        except BaseException as fault:
            if not self._may_resend(conn, prepared, fault, was_reused=was_reused):
                is_stale = was_reused and conn._failed_unanswered and isinstance(fault, (ConnectionError, ssl.SSLError))
                self._broke(conn, fault, started, attempts, is_stale=is_stale)
                raise
        else:
            head = conn._head
            if head is None or head.status != 408 or not self._is_late_timeout(conn, prepared, was_reused=was_reused):
                return conn, 0, result
        if attempts is not None:
            attempts.resends += 1
        if log.is_debugging():
            log.debug(f"{prepared.method} to {self.origin} met a dead connection, and is sent again on a new one")
        try:
            conn = self._replace(conn, timeouts, deadline)
        except BaseException as fault:
            # Nothing of it is to be feared: what was sent before may be sent again, else we would not be here.
            self._not_open(fault, started, attempts)
            raise
        try:
            if deadline is not None:
                deadline.enter("exchange again")
            return conn, 1, exchange(conn, prepared)
        except BaseException as fault:
            self._broke(conn, fault, started, attempts, is_stale=False)
            raise

    def _not_open(self, fault: BaseException, started: float, attempts: Attempts | None) -> None:
        """See to a call, or an attempt of it, that failed without a connection."""
        if attempts is None:
            self._count_request(outcome_of(fault), started)
        else:
            attempts.broke(is_open=False, is_unsent=True)

    def _broke(
        self, conn: HTTPConnection, fault: BaseException, started: float, attempts: Attempts | None, *, is_stale: bool
    ) -> None:
        """See to a call, or an attempt of it, that failed on a connection."""
        if attempts is not None:
            attempts.broke(is_open=True, is_unsent=conn._failed_unsent)
        self._abort(conn, fault, outcome_of(fault) if attempts is None else None, started, is_stale=is_stale)

    def _may_resend(
        self, conn: HTTPConnection, prepared: PreparedRequest, fault: BaseException, *, was_reused: bool
    ) -> bool:
        return self.config.resend_stale and may_resend(
            prepared,
            fault,
            was_reused=was_reused,
            is_unsent=conn._failed_unsent,
            is_unanswered=conn._failed_unanswered,
        )

    def _is_late_timeout(self, conn: HTTPConnection, prepared: PreparedRequest, *, was_reused: bool) -> bool:
        head = conn._head
        return (
            self.config.resend_stale
            and head is not None
            and is_late_timeout(prepared, head.status, was_reused=was_reused, will_close=not head.is_persistent)
        )

    def _count_request(self, outcome: RequestOutcome, started: float) -> None:
        """Count a call that ended without a connection."""
        now = self._clock()
        with self._lock:
            self._tally.requests[outcome] += 1
            self._tally.request.observe(now - started)
        if self._exemplar is not None:
            self._exemplify(self._tally.request, now - started)

    # --- one call in several attempts -----------------------------------------------------------------

    @property
    def budget(self) -> Budget:
        """What bounds the retries of all calls to the origin."""
        return self._budget

    def share_budget(self, budget: Budget) -> None:
        """Have the budget of other pools for the same origin; nobody uses the pool yet."""
        self._budget = budget

    def _exchange_with_retries(
        self,
        prepared: PreparedRequest,
        timeouts: Timeout,
        deadline: Deadline | None,
        started: float,
        exchange: Callable[[HTTPConnection, PreparedRequest], _Result],
        retry: Retry,
        reroute: _Reroute | None,
    ) -> tuple[ConnectionPool, HTTPConnection, Attempts, _Result]:
        """`_exchange`, and again as long as `retry` allows it; between two attempts no connection is held.

        Returns:
            The pool in which it ended, the connection, still leased, the attempts, and what `exchange` gave.
        """
        if not isinstance(retry, Retry):
            raise TypeError(f"retry must be a Retry, None or {AS_CONFIGURED!r}, not {retry!r}")
        pool, now = self, started
        attempts = Attempts(retry, prepared)
        try:
            self._budget.note_call(now)
            while True:
                try:
                    conn, _, result = pool._exchange(prepared, timeouts, deadline, now, exchange, attempts)
                except Exception as fault:
                    if reroute is not None and isinstance(fault, PoolClosed):
                        pool = reroute(pool)  # it was evicted before this attempt began, or during the wait
                        now = pool._clock()
                        continue
                    failure = pool._after_fault(fault, attempts, deadline)
                    if failure is None:
                        attempts.explain(fault)
                        raise
                else:
                    failure = pool._after_answer(conn, attempts, deadline)
                    if failure is None:
                        return pool, conn, attempts, result
                    del conn, result  # whoever has the connection next may lose it
                attempts.failures.append(failure)
                if log.is_debugging():
                    log.debug(
                        f"{prepared.method} to {pool.origin}: attempt {len(attempts.failures)} failed "
                        f"({failure.what.partition(':')[0]}); the next in {failure.waited:.2f} s"
                    )
                if deadline is not None:
                    deadline.enter("wait")
                self._pause(failure.waited)
                now = pool._clock()
                if deadline is not None:
                    deadline.enter("acquire")
        except BaseException as fault:
            pool._count_request(outcome_of(fault), started)
            raise

    def _after_fault(self, fault: Exception, attempts: Attempts, deadline: Deadline | None) -> FailedAttempt | None:
        """Return an attempt that failed as one that is followed by another; ``None``: it was the last."""
        reason = attempts.reason_after_fault(fault)
        wait = None if reason is None else self._wait_after(reason, attempts, deadline)
        if wait is None:
            return None
        return FailedAttempt(what=f"{type(fault).__name__}: {fault}", status=None, waited=wait)

    def _after_answer(
        self, conn: HTTPConnection, attempts: Attempts, deadline: Deadline | None
    ) -> FailedAttempt | None:
        """Give the connection back and return the attempt, if its answer is asked for again; ``None``: it stands."""
        head = conn._head
        reason = None if head is None else attempts.reason_after_status(head.status)
        if head is None or reason is None:
            return None
        try:
            asked = retry_after_seconds(head.get("retry-after"), head.get("date"))
            wait = self._wait_after(reason, attempts, deadline, asked=asked)
        except BaseException as fault:
            self._abort(conn, fault, None, 0.0)
            raise
        if wait is None:
            return None
        self._release(conn, None, 0.0)
        return FailedAttempt(what=str(head.status), status=head.status, waited=wait)

    def _wait_after(
        self, reason: RetryReason, attempts: Attempts, deadline: Deadline | None, *, asked: float | None = None
    ) -> float | None:
        """Return how long to wait before the next attempt, in seconds; ``None`` if there is none.  Count either.

        Args:
            reason: Why there may be another.
            attempts: The call's.
            deadline: When the whole call must be over, or ``None``.
            asked: How long the server asked to wait, or ``None``.
        """
        wait = attempts.wait(asked=asked, left=None if deadline is None else deadline.remaining())
        if not isinstance(wait, RetryRefusal) and not self._budget.take(attempts.retry, self._clock()):
            wait = RetryRefusal.BUDGET
        with self._lock:
            if not isinstance(wait, RetryRefusal):
                self._tally.retries[reason] += 1
                return wait
            self._tally.retries_refused[wait] += 1
        attempts.refused(wait)
        return None

    # --- lending --------------------------------------------------------------------------------------

    def acquire(self, timeout: Timeout | float | None = None) -> HTTPConnection:
        """Lend a connection; `release` must follow, whatever happens.  `connection` sees to that by itself.

        Args:
            timeout: A number bounds the acquiring, connecting included, in seconds; 0 does not wait.  A `Timeout`
                replaces the pool's: its `read` and `write` hold for the lease, and its `total` bounds the lease as a
                whole.

        Returns:
            A documented `HTTPConnection`, connected and idle.

        Raises:
            AcquireTimeout: No connection came free in time.
            PoolFull: Too many wait already.
            PoolClosed: The pool is closed.
            ConnectTimeout, TotalTimeout: Connecting took longer than its own limit, or than `timeout`.
            OSError: The socket's own errors.
        """
        now = self._clock()
        if timeout is None and self._timeouts.total is None:
            conn = self._acquire(now, self._timeouts, None)
            conn._is_probed = False  # its borrower may take his time
            return conn
        if isinstance(timeout, (int, float)):
            check_seconds("timeout", timeout, zero=True)
            # Zero bounds the waiting alone: opening a connection takes time, and has its own limit.
            what = f"acquiring a connection to {self.origin}"
            deadline = Deadline.of_call(timeout, what, self._clock, now)
            timeouts = self._timeouts if timeout else self._timeouts.replace(acquire=0)
            conn = self._acquire(now, timeouts, deadline if timeout else None)
            try:
                conn._lend(None, self._timeouts)
            except BaseException as fault:
                self._abort(conn, fault, None, 0.0)
                raise
            conn._is_probed = False  # as above
            return conn
        timeouts, lease_deadline = self._limits(timeout, None, now)
        conn = self._acquire(now, timeouts, lease_deadline)
        conn._is_probed = False  # as above
        return conn

    def release(self, conn: HTTPConnection) -> None:
        """Take a connection back; a second time does nothing, as long as nobody else has borrowed it meanwhile.

        It stays open only if it is provably back at idle.  Of an unread body a bounded rest is drained (`drain_bytes`,
        `drain_seconds`); beyond that, or with a request under way, the connection is closed.

        Raises:
            ValueError: The connection is not from this pool.
        """
        self._release(conn, None, 0.0)

    def connection(self, timeout: Timeout | float | None = None) -> ConnectionContext:
        """Lend a connection for a ``with`` block; `timeout` and errors are those of `acquire`.

        A block that ends by an exception closes the connection: nobody knows how far the exchange had come.
        """
        return ConnectionContext(self, timeout)

    def _limits(
        self, timeout: Timeout | float | None, prepared: PreparedRequest | None, now: float
    ) -> tuple[Timeout, Deadline | None]:
        timeouts = self._timeouts
        total = timeouts.total
        if isinstance(timeout, Timeout):
            timeouts = timeout
            total = timeout.total
        elif timeout is not None:
            if timeout.__class__ is not float or not 0.0 < timeout <= LONGEST:  # else it is in order
                check_seconds("timeout", timeout)
            total = timeout
        if total is None:
            return timeouts, None
        return timeouts, Deadline.of_call(total, "the lease" if prepared is None else prepared, self._clock, now)

    def renew_after_fork(self) -> None:
        """Begin anew in a child process."""
        super().renew_after_fork()
        self._budget.renew_after_fork()

    def __enter__(self) -> Self:
        """Return the pool."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the pool."""
        self.close()


class ConnectionContext:
    """The ``with`` block of `ConnectionPool.connection`."""

    __slots__ = ("_conn", "_lease", "_pool", "_timeout")

    def __init__(self, pool: ConnectionPool, timeout: Timeout | float | None) -> None:
        self._pool = pool
        self._timeout = timeout
        self._conn: HTTPConnection | None = None
        self._lease: tuple[object, int] | None = None

    def __enter__(self) -> HTTPConnection:
        """Acquire a connection."""
        self._conn = conn = self._pool.acquire(self._timeout)
        self._lease = lease_of(conn)
        return conn

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release it, or close it if the block ended by an exception."""
        conn, self._conn = self._conn, None
        if conn is None or lease_of(conn) != self._lease:
            return  # it was released by hand, and may be lent to somebody else by now
        if fault is not None:
            self._pool._abort(conn, fault, None, 0.0)
        else:
            self._pool.release(conn)


class StreamContext:
    """The ``with`` block of `ConnectionPool.stream`."""

    __slots__ = ("_conn", "_lease", "_pool", "_prepared", "_reroute", "_response", "_retry", "_started", "_timeout",
                 "_url")  # fmt: skip

    def __init__(
        self,
        pool: ConnectionPool,
        prepared: PreparedRequest,
        url: str,
        timeout: Timeout | float | None,
        retry: RetryChoice,
        reroute: _Reroute | None = None,
    ) -> None:
        self._pool = pool
        self._prepared = prepared
        self._url = url
        self._timeout = timeout
        self._retry = retry
        self._reroute = reroute
        self._conn: HTTPConnection | None = None
        self._response: StreamedResponse | None = None
        self._lease: tuple[object, int] | None = None
        self._started = 0.0

    def __enter__(self) -> StreamedResponse:
        """Send the request and receive the head."""
        pool = self._pool
        self._started = pool._clock()
        timeouts, deadline = pool._limits(self._timeout, self._prepared, self._started)
        retry = pool._retry if self._retry == AS_CONFIGURED else self._retry
        if retry is None:
            self._conn, resends, response = pool._exchange(
                self._prepared, timeouts, deadline, self._started, _begin_streamed
            )
            response.resends = resends
        else:
            self._pool, self._conn, attempts, response = pool._exchange_with_retries(
                self._prepared, timeouts, deadline, self._started, _begin_streamed, retry, self._reroute
            )
            response.resends = attempts.resends
            response.attempts = attempts.number
            response.failures = tuple(attempts.failures)
        self._response = response
        self._lease = lease_of(self._conn)
        response.url = self._url
        return response

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the connection, or close it if the block ended by an exception."""
        conn, response = self._conn, self._response
        self._conn = self._response = None
        if conn is None or response is None or lease_of(conn) != self._lease:
            return
        outcome = OUTCOME_BY_STATUS_CLASS[response.status // 100]
        if fault is None:
            self._pool._release(conn, response.status, self._started)
            return
        if isinstance(fault, (OSError, HTTPException)) and response.is_broken:
            outcome = outcome_of(fault)
        self._pool._abort(conn, fault, outcome, self._started)


def _begin_streamed(conn: HTTPConnection, prepared: PreparedRequest) -> StreamedResponse:
    """Send a request and receive the head of its response."""
    try:
        conn.perform(prepared)
    except PEER_STOPPED_READING:
        if conn.state is not State.REQUEST_SENT:
            raise
        # The peer may have answered before it stopped reading: the next line looks, or raises this very error.
    return conn._respond(StreamedResponse)


def _watch(pool: ConnectionPool, tally: Tally) -> Callable[[], None] | None:
    """Show the pool's numbers in its registry, where prometheus_client is installed; see `metrics.watch`."""
    try:
        with uncut:  # it imports prometheus_client, which takes long enough for a fork to come between
            from .metrics import watch
    except ModuleNotFoundError as missing:
        if missing.name != "prometheus_client":
            raise
        return None
    return watch(pool, tally, registry=pool.config.registry)
