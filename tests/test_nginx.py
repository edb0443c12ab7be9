"""The pool against a real nginx that is reloaded, stopped and started all the while.

A loop runs once over TCP and once over TLS, and each test looks at one side of what it found.  Three pools are at work
at the same time: GETs as they come, GETs with `Retry`, and POSTs with unique ids that a server behind nginx counts.

A failure is judged by when it happened: outside an `Outage`, the time from the order to stop until nginx listens again,
nothing may fail.  Inside, a connection is refused in two ways, since the kernel accepts connections on behalf of a
listener: what nginx has not taken over by then is reset when the listener closes, and what it has just taken over ends
with ``nginx -s stop``, which drops requests under way.  Both hit new connections only, and on these nothing is sent
again unless `Retry` says so.  On a kept-alive connection, where a resend is due, no failure at all is forgiven.

The loops take 20 seconds each.  POOLEDHTTP_LOOP_SECONDS chooses another length, and the figures are logged:

    POOLEDHTTP_LOOP_SECONDS=60 python -m pytest --timeout 300 --log-cli-level info tests/test_nginx.py
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import logging
import os
import random
import select
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme

from pooledhttp import (
    AcquireTimeout,
    ConnectionPool,
    HTTPSConnection,
    IncompleteRead,
    PoolStats,
    RemoteDisconnected,
    Response,
    Retry,
    Timeout,
)
from pooledhttp.config import PoolOptions
from pooledhttp.testing import Peer, ResourceAudit, Respond, ScriptedServer, ServerFactory
from tests.real_nginx import HELLO, Nginx

pytestmark = pytest.mark.unmeasured

log = logging.getLogger(__name__)

BOUND = 20.0
SECONDS = float(os.environ.get("POOLEDHTTP_LOOP_SECONDS", "20"))
PATIENT = Timeout(acquire=BOUND, connect=BOUND, read=BOUND, write=BOUND)
# An outage on a machine that is busy otherwise may last for seconds.
PERSISTENT = Retry(attempts=20, backoff=0.02, backoff_max=1.0, budget=None)
SEED = 20_261_123
GETTERS = 8
POSTERS = 4
# How long nothing happens between two orders to nginx, and how long a caller does nothing after a failure, in seconds.
CALM = 0.15
AFTER_FAILURE = 0.002
# How long the server behind nginx takes, so that there is always a POST under way when nginx stops.
THINKING = 0.005

# Whatever else a POST may raise in the loop, these are what the documentation names.
DOCUMENTED = (ConnectionError, TimeoutError, IncompleteRead, ssl.SSLError)
# How a new connection ends that was never served.
NEVER_SERVED = (ConnectionResetError, BrokenPipeError, RemoteDisconnected, ssl.SSLEOFError, ssl.SSLZeroReturnError)


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


@dataclass(frozen=True, slots=True)
class Outage:
    began: float
    ended: float
    is_graceful: bool


@dataclass(frozen=True, slots=True)
class Failure:
    began: float
    ended: float
    kind: type[Exception]
    text: str  # the exception itself would hold the frames that it went through, and what they hold

    def is_within(self, outages: list[Outage]) -> bool:
        """Whether the call was under way at some moment of an outage."""
        return any(self.began <= outage.ended and outage.began <= self.ended for outage in outages)

    def __str__(self) -> str:
        return f"{self.kind.__name__}: {self.text}"


@dataclass
class Account:
    """What the calls of one pool came to."""

    resends: int = 0
    failures: list[Failure] = field(default_factory=list)
    workers: set[str] = field(default_factory=set)  # the processes of nginx that answered
    answered_ids: set[str] = field(default_factory=set)  # each id is used once in a pool
    stats: PoolStats | None = None

    @property
    def answered(self) -> int:
        return len(self.answered_ids)

    def kinds(self) -> Counter[str]:
        return Counter(failure.kind.__name__ for failure in self.failures)


@dataclass
class Loop:
    """What one loop found."""

    gets: Account = field(default_factory=Account)
    retried_gets: Account = field(default_factory=Account)
    posts: Account = field(default_factory=Account)
    received: Counter[str] = field(default_factory=Counter)  # the ids of POSTs, at the server behind
    outages: list[Outage] = field(default_factory=list)
    reloads: int = 0

    def report(self) -> str:
        seconds = sum(outage.ended - outage.began for outage in self.outages)
        lines = [f"{self.reloads} reloads, {len(self.outages)} outages of {seconds:.2f} s together"]
        for name in ("gets", "retried_gets", "posts"):
            account: Account = getattr(self, name)
            lines.append(f"{name}: {account.answered} answered, {account.resends} resends, {dict(account.kinds())}")
        return "\n".join(lines)


class Load:
    """Threads that call without end; their accounts are their own until they are joined."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self._executor = executor
        self.over = threading.Event()

    def start(self, threads: int, call: Callable[[str], Response], *, pauses: bool = False) -> Callable[[], Account]:
        """Start threads; what is returned joins them.

        Args:
            threads: How many.
            call: Performs a call with the id it is given.
            pauses: Whether each thread leaves its connection idle at times, now and then for longer than nginx does.
        """
        futures = [self._executor.submit(self._work, number, call, pauses=pauses) for number in range(threads)]

        def join() -> Account:
            whole = Account()
            for future in futures:
                account = future.result(BOUND * 2)
                whole.resends += account.resends
                whole.failures += account.failures
                whole.workers |= account.workers
                whole.answered_ids |= account.answered_ids
            return whole

        return join

    def _work(self, number: int, call: Callable[[str], Response], *, pauses: bool) -> Account:
        draw = random.Random(SEED + number)
        account = Account()
        for turn in itertools.count():
            if self.over.is_set():
                break
            if pauses:
                self.over.wait(draw.uniform(0.9, 1.1) if draw.randrange(50) == 0 else draw.uniform(0, 0.005))
            id_ = f"{number}-{turn}"
            began = time.monotonic()
            try:
                response = call(id_)
            except Exception as fault:  # noqa: BLE001  # which of them may be is what the tests are about
                account.failures.append(Failure(began, time.monotonic(), type(fault), str(fault)))
                self.over.wait(AFTER_FAILURE)
                continue
            account.answered_ids.add(id_)
            account.resends += response.resends
            account.workers.add(response.headers["X-Worker"])
        return account


def get(pool: ConnectionPool, _: str) -> Response:
    response = pool.request("GET", "/hello")
    assert (response.status, response.data) == (200, HELLO)
    return response


def post(pool: ConnectionPool, id_: str) -> Response:
    response = pool.request("POST", "/orders", id_.encode())
    assert (response.status, response.data) == (200, id_.encode())
    return response


def disturb(nginx: Nginx, loop: Loop) -> None:
    """Reload, stop and start nginx in turns, until the time is over."""
    calm = threading.Event()  # never set
    end = time.monotonic() + SECONDS
    for turn in itertools.count():
        calm.wait(CALM)
        if time.monotonic() > end and turn > 5:  # each of them once, however slow the machine is
            return
        if turn % 2 == 0:
            nginx.configure((None, "5s", "2s")[turn // 2 % 3])
            nginx.reload()
            continue
        is_graceful = turn // 2 % 2 == 0
        began = time.monotonic()
        nginx.stop(is_graceful=is_graceful)
        nginx.start()
        loop.outages.append(Outage(began, time.monotonic(), is_graceful))


def counting(received: Counter[str]) -> Callable[[Peer], None]:
    """Return the script of the server behind nginx: it counts the bodies, and answers with them after a while."""
    lock = threading.Lock()

    def serve(peer: Peer) -> None:
        while True:
            body = peer.read_request().body
            with lock:
                received[body.decode()] += 1
            peer.stall(seconds=THINKING)
            peer.send(Respond(body=body).encode())

    return serve


def options_for(scheme: str) -> PoolOptions:
    if scheme == "http":
        return {"registry": None, "timeout": PATIENT}
    trusting = ssl.create_default_context()
    authority().configure_trust(trusting)
    return {"registry": None, "timeout": PATIENT, "ssl_context": trusting}


@pytest.fixture(scope="module", params=["http", "https"])
def loop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loop:
    """Run the loop once for all tests that look at it."""
    scheme: str = request.param
    loop = Loop()
    certificate = authority().issue_cert("127.0.0.1") if scheme == "https" else None
    with (
        ResourceAudit() as audit,
        ScriptedServer(default=counting(loop.received), timeout=60.0 + SECONDS) as behind,
        Nginx(tmp_path_factory.mktemp("nginx"), upstream=behind.address, certificate=certificate) as nginx,
        ThreadPoolExecutor(2 * GETTERS + POSTERS) as executor,
        contextlib.ExitStack() as pools,
    ):

        def make_pool(maxsize: int, retry: Retry | None) -> ConnectionPool:
            options: PoolOptions = {**options_for(scheme), "maxsize": maxsize, "retry": retry}
            pool = ConnectionPool(*nginx.address, scheme=scheme, **options)
            audit.watch(pool)
            return pools.enter_context(pool)

        getting, retrying, posting = make_pool(GETTERS, None), make_pool(GETTERS, PERSISTENT), make_pool(POSTERS, None)
        load = Load(executor)
        try:
            joins = [
                load.start(GETTERS, functools.partial(get, getting)),
                load.start(GETTERS, functools.partial(get, retrying)),
                load.start(POSTERS, functools.partial(post, posting), pauses=True),
            ]
            disturb(nginx, loop)
        finally:
            load.over.set()
        loop.gets, loop.retried_gets, loop.posts = (join() for join in joins)
        for account, pool in ((loop.gets, getting), (loop.retried_gets, retrying), (loop.posts, posting)):
            assert get(pool, "again").data == HELLO
            account.stats = pool.stats()
        loop.reloads = nginx.reloads
    log.info(loop.report())
    return loop


# --- what the loops found ---------------------------------------------------------------------------------------------


def test_nginx_was_reloaded_stopped_and_started_under_load(loop: Loop) -> None:
    assert loop.reloads >= 3
    assert {outage.is_graceful for outage in loop.outages} == {True, False}
    # Each reload and each start has new workers; not every single one of them has to have had a request.
    assert len(loop.gets.workers | loop.retried_gets.workers | loop.posts.workers) > loop.reloads
    stats = loop.gets.stats
    assert stats is not None
    assert stats.closed["server_close"] > 0  # keepalive_requests
    assert stats.closed["stale_eof"] + stats.closed["stale_reset"] > 0


def test_idempotent_request_fails_only_while_nothing_listens(loop: Loop) -> None:
    for failure in loop.gets.failures:
        assert failure.is_within(loop.outages), str(failure)
        assert issubclass(failure.kind, (ConnectionRefusedError, *NEVER_SERVED)), str(failure)


def test_no_idempotent_request_fails_on_a_kept_alive_connection(loop: Loop) -> None:
    assert loop.gets.stats is not None
    assert loop.gets.stats.stale["raised"] == 0


def test_no_idempotent_request_fails_at_all_with_retry(loop: Loop) -> None:
    assert loop.retried_gets.answered > 0
    assert [str(failure) for failure in loop.retried_gets.failures] == []


def test_no_post_is_received_twice(loop: Loop) -> None:
    assert [id_ for id_, times in loop.received.items() if times > 1] == []
    assert loop.posts.answered > 0
    assert loop.posts.answered_ids <= loop.received.keys()


def test_failed_post_raises_one_of_the_documented_errors(loop: Loop) -> None:
    for failure in loop.posts.failures:
        assert issubclass(failure.kind, DOCUMENTED), str(failure)
        assert not issubclass(failure.kind, AcquireTimeout), str(failure)  # each thread has a connection to itself


@pytest.mark.parametrize("name", ["gets", "retried_gets", "posts"])
def test_each_call_of_the_loop_is_counted_once(loop: Loop, name: str) -> None:
    account: Account = getattr(loop, name)
    stats = account.stats
    assert stats is not None
    # One more than in the loop: the normal request after it.
    assert stats.requests["2xx"] == account.answered + 1
    assert sum(stats.requests.values()) == account.answered + len(account.failures) + 1
    assert (stats.leased, stats.opening, stats.waiting) == (0, 0, 0)
    assert stats.opened == sum(stats.closed.values()) + stats.idle


# --- requests that an old worker drops --------------------------------------------------------------------------------


@pytest.fixture
def nginx_before(audit: ResourceAudit, tmp_path: Path) -> Iterator[Callable[[ScriptedServer], Nginx]]:
    """Start an nginx before a server; its old workers drop what they have not ended after a tenth of a second."""
    with contextlib.ExitStack() as stack:
        yield lambda behind: stack.enter_context(
            Nginx(tmp_path, upstream=behind.address, worker_shutdown_timeout="100ms")
        )


@pytest.mark.parametrize(("method", "times"), [("POST", 1), ("GET", 2)])
def test_request_dropped_by_worker_shutdown_timeout_is_sent_again_only_if_idempotent(
    method: str,
    times: int,
    scripted_server: ServerFactory,
    nginx_before: Callable[[ScriptedServer], Nginx],
    audit: ResourceAudit,
) -> None:
    received: list[str] = []
    arrived, never = threading.Event(), threading.Event()

    def serve(peer: Peer) -> None:
        while True:
            received.append(peer.read_request().method)
            if len(received) == 1:
                arrived.set()
                peer.stall(until=never)
            else:
                peer.send(Respond(body=b"answered").encode())

    behind = scripted_server(default=serve, timeout=BOUND)
    nginx = nginx_before(behind)
    with (
        ConnectionPool(*nginx.address, maxsize=1, registry=None, timeout=PATIENT) as pool,
        ThreadPoolExecutor(1) as executor,
    ):
        audit.watch(pool)
        assert get(pool, "first").data == HELLO  # so that the connection is a kept-alive one
        asking = executor.submit(pool.request, method, "/orders")
        try:
            assert arrived.wait(BOUND)
            nginx.reload()
            if method == "POST":
                with pytest.raises(ConnectionError):
                    asking.result(BOUND)
            else:
                response = asking.result(BOUND)
                assert (response.data, response.resends) == (b"answered", 1)
        finally:
            never.set()
        assert received == [method] * times
        assert get(pool, "again").data == HELLO


# --- what the loops brought to light ----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_noticed", [False, True])
def test_connection_that_is_reset_before_the_handshake_is_an_error_and_leaves_no_descriptor(
    is_noticed: bool, audit: ResourceAudit
) -> None:
    """A listener that closes resets what it has not accepted: between connecting and the TLS handshake."""
    gone = select.poll()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def connect_and_lose(
            address: tuple[str, int], timeout: object = None, source_address: tuple[str, int] | None = None
        ) -> socket.socket:
            sock = socket.create_connection(address, BOUND)
            accepted, _ = listener.accept()
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            accepted.close()
            gone.register(sock, 0)  # tells of errors and hang-ups all the same
            assert gone.poll(BOUND * 1000)
            if is_noticed:  # the kernel tells of the reset once
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
            return sock

        conn = HTTPSConnection(*listener.getsockname(), timeout=BOUND, context=ssl.create_default_context())
        conn._create_connection = connect_and_lose
        with pytest.raises(ConnectionError):
            conn.connect()
        conn.close()
