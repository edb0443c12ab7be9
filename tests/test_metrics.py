"""The Prometheus collector: each number equals what the test did, and no counter ever goes down.

Every test has a registry of its own.  What must be seen in a whole process (the default registry, prometheus_client
missing, a fork) runs in a child process.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import re
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import pytest
import trustme
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

import pooledhttp
from pooledhttp import (
    AcquireTimeout,
    ConnectionPool,
    HTTPConnection,
    IncompleteRead,
    PoolConfig,
    PoolFull,
    PoolStats,
    ReadTimeout,
    Retry,
    Timeout,
    TunnelError,
)
from pooledhttp.config import PoolOptions
from pooledhttp.metrics import collector_of
from pooledhttp.metrics.collector import PoolCollector
from pooledhttp.stats import (
    AcquireOutcome,
    CloseReason,
    ConnectFailure,
    DrainOutcome,
    Histogram,
    RequestOutcome,
    RetryReason,
    RetryRefusal,
    StaleOutcome,
    Tally,
)
from pooledhttp.testing import (
    Close,
    ExpectHead,
    KeepOpen,
    Repeat,
    Reset,
    ResourceAudit,
    Respond,
    Script,
    ScriptedServer,
    Send,
    ServerFactory,
    Signal,
    Stall,
    StartTLS,
    Step,
)
from tests.apps.children import in_child
from tests.waits import BOUND

if TYPE_CHECKING:
    from prometheus_client.core import Metric
    from prometheus_client.registry import Collector

ROOT = Path(__file__).resolve().parent.parent
POOL = "orders"
ANSWER = (ExpectHead(), Respond(body=b"ok"))
KEEP_ALIVE = [Repeat(ANSWER)]


# --- what the tests stand on ------------------------------------------------------------------------------------------


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


class Shop:
    """Makes servers, and pools for them that are closed and audited when the test is over."""

    def __init__(self, servers: ServerFactory, audit: ResourceAudit, registry: CollectorRegistry, clock: Clock) -> None:
        self._servers = servers
        self._audit = audit
        self._defaults: PoolOptions = {"name": POOL, "registry": registry, "clock": clock, "max_age": None}
        self._pools: list[ConnectionPool] = []

    def server(self, *scripts: Script, default: Script = KEEP_ALIVE) -> ScriptedServer:
        return self._servers(*scripts, default=default)

    def config(self, **options: Unpack[PoolOptions]) -> PoolConfig:
        settings: PoolOptions = {**self._defaults, **options}
        return PoolConfig(**settings)

    def pool(self, server: ScriptedServer, *, scheme: str = "http", **options: Unpack[PoolOptions]) -> ConnectionPool:
        pool = ConnectionPool(*server.address, scheme=scheme, config=self.config(**options))
        self._audit.watch(pool)
        self._pools.append(pool)
        return pool

    def pool_to(self, *scripts: Script, **options: Unpack[PoolOptions]) -> ConnectionPool:
        return self.pool(self.server(*scripts), **options)

    def droppable(self, server: ScriptedServer, **options: Unpack[PoolOptions]) -> ConnectionPool:
        """Return a pool that nobody else holds, and that no audit can look at."""
        return ConnectionPool(*server.address, config=self.config(**options))

    def close(self) -> None:
        for pool in self._pools:
            pool.close()


@pytest.fixture
def shop(
    scripted_server: ServerFactory, audit: ResourceAudit, registry: CollectorRegistry, clock: Clock
) -> Iterator[Shop]:
    shop = Shop(scripted_server, audit, registry, clock)
    yield shop
    shop.close()


@contextmanager
def running(work: Callable[[], object]) -> Iterator[None]:
    """Do some work in a thread, which has ended, without an error, when the block is left."""
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(work)
        yield
        future.result(timeout=10)


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait for something that no event tells, bounded."""
    pause = threading.Event()
    for _ in range(1000):
        if is_so():
            return
        pause.wait(0.01)
    raise AssertionError("it did not become so within 10 s")


def number(registry: CollectorRegistry, name: str, *, pool: str | None = POOL, **labels: str) -> float:
    """Return the value of one sample; ``pool=None`` for those that belong to no pool."""
    found = registry.get_sample_value(name, labels if pool is None else {"pool": pool, **labels})
    assert found is not None, f"no sample {name} {labels}"
    return found


def by(label: str, registry: CollectorRegistry, name: str, *, pool: str = POOL) -> dict[str, float]:
    """Return the samples of one pool and metric by a further label, without the zeros."""
    samples = (sample for family in registry.collect() for sample in family.samples)
    return {
        sample.labels[label]: sample.value
        for sample in samples
        if sample.name == name and sample.labels["pool"] == pool and sample.value
    }


def pools_shown(registry: CollectorRegistry) -> set[str]:
    return {
        sample.labels["pool"] for family in registry.collect() for sample in family.samples if "pool" in sample.labels
    }


Series = tuple[str, frozenset[tuple[str, str]]]


def counters(registry: CollectorRegistry) -> dict[Series, float]:
    """Return every sample that must never go down."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in registry.collect()
        if family.type in {"counter", "histogram"}
        for sample in family.samples
    }


def falls(before: dict[Series, float], after: dict[Series, float]) -> dict[Series, tuple[float, float | None]]:
    """Return what went down, or away, between two scrapes."""
    return {series: (value, after.get(series)) for series, value in before.items() if after.get(series, -1.0) < value}


def imbalance(registry: CollectorRegistry) -> float:
    """Return by how much the connections opened are more than those closed and those still there, over all pools."""
    opened = closed = there = 0.0
    for sample in (sample for family in registry.collect() for sample in family.samples):
        if sample.name == "pooledhttp_connect_duration_seconds_count":
            opened += sample.value
        elif sample.name == "pooledhttp_connections_closed_total":
            closed += sample.value
        elif sample.name == "pooledhttp_connections" and sample.labels["state"] != "opening":
            there += sample.value
    return opened - closed - there


# --- gauges -----------------------------------------------------------------------------------------------------------


def test_connections_are_shown_by_state(shop: Shop, registry: CollectorRegistry) -> None:
    pool = shop.pool_to()
    with pool.connection(), pool.connection(), pool.connection():
        assert by("state", registry, "pooledhttp_connections") == {"active": 3}
    assert by("state", registry, "pooledhttp_connections") == {"idle": 3}
    with pool.connection():
        assert by("state", registry, "pooledhttp_connections") == {"active": 1, "idle": 2}


def test_connection_being_opened_has_a_state_and_does_not_hold_up_the_scrape(
    shop: Shop, registry: CollectorRegistry
) -> None:
    is_connected, go_on = threading.Event(), threading.Event()
    pool = shop.pool(shop.server([Signal(is_connected), Stall(until=go_on), Close()]), scheme="https")

    def connect() -> None:
        with pytest.raises(OSError):
            pool.request("GET", "/")

    with running(connect):
        try:
            assert is_connected.wait(10)
            shown = by("state", registry, "pooledhttp_connections")
        finally:
            go_on.set()
    assert shown == {"opening": 1}
    assert by("state", registry, "pooledhttp_connections") == {}


def test_maximum_is_that_of_the_open_pools(shop: Shop, registry: CollectorRegistry) -> None:
    small, large = shop.pool_to(maxsize=3), shop.pool_to(maxsize=4)
    assert number(registry, "pooledhttp_connections_max") == 7
    large.close()
    assert number(registry, "pooledhttp_connections_max") == 3
    small.close()
    assert number(registry, "pooledhttp_connections_max") == 0


def test_waiting_callers_are_shown(shop: Shop, registry: CollectorRegistry) -> None:
    pool = shop.pool_to(maxsize=1)
    conn = pool.acquire()
    with running(lambda: pool.release(pool.acquire())):
        try:
            wait_until(lambda: pool.stats().waiting == 1)
            waiting = number(registry, "pooledhttp_pending_acquires")
        finally:
            pool.release(conn)
    assert waiting == 1
    assert number(registry, "pooledhttp_pending_acquires") == 0


def test_oldest_lease_is_the_oldest_of_all_pools_of_a_name(
    shop: Shop, registry: CollectorRegistry, clock: Clock
) -> None:
    one, other = shop.pool_to(), shop.pool_to()
    with one.connection():
        clock.now += 4
        with other.connection():
            clock.now += 2
            assert number(registry, "pooledhttp_oldest_lease_seconds") == 6
    assert number(registry, "pooledhttp_oldest_lease_seconds") == 0


def test_open_pools_are_counted(shop: Shop, registry: CollectorRegistry) -> None:
    pool, other = shop.pool_to(), shop.pool_to(name="other")
    assert number(registry, "pooledhttp_pools", pool=None) == 2
    pool.close()
    assert number(registry, "pooledhttp_pools", pool=None) == 1
    other.close()
    assert number(registry, "pooledhttp_pools", pool=None) == 0


def test_version_is_shown(shop: Shop, registry: CollectorRegistry) -> None:
    shop.pool_to()
    assert number(registry, "pooledhttp_build_info", pool=None, version=pooledhttp.__version__) == 1


# --- a connection that prune() probes is in nobody's hands ------------------------------------------------------------


@contextmanager
def at_each_probe(action: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    probe = HTTPConnection.staleness

    def act_and_probe(conn: HTTPConnection) -> CloseReason | None:
        action()
        return probe(conn)

    with monkeypatch.context() as patch:
        patch.setattr(HTTPConnection, "staleness", act_and_probe)
        yield


def test_probing_idle_connections_does_not_show_an_old_lease(
    shop: Shop, registry: CollectorRegistry, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = shop.pool_to()
    pool.request("GET", "/")
    clock.now += 30
    seen: list[float] = []
    with at_each_probe(lambda: seen.append(number(registry, "pooledhttp_oldest_lease_seconds")), monkeypatch):
        assert pool.prune() == 0
    assert seen == [0]
    assert pool.request("GET", "/").data == b"ok"


def test_probing_idle_connections_does_not_count_as_an_acquire(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = shop.pool_to()
    for _ in range(2):
        pool.request("GET", "/")
    seen: list[int] = []
    with at_each_probe(lambda: seen.append(pool.stats().acquires[AcquireOutcome.REUSED]), monkeypatch):
        assert pool.prune() == 0
    assert seen == [1]
    assert pool.request("GET", "/").data == b"ok"


# --- acquires ---------------------------------------------------------------------------------------------------------


def test_acquires_that_open_and_that_reuse_are_counted(shop: Shop, registry: CollectorRegistry) -> None:
    pool = shop.pool_to()
    for _ in range(4):
        pool.request("GET", "/")
    assert by("outcome", registry, "pooledhttp_acquires_total") == {"opened": 1, "reused": 3}


def test_reused_connection_is_counted_while_it_is_lent(shop: Shop, registry: CollectorRegistry) -> None:
    pool = shop.pool_to()
    pool.request("GET", "/")
    with pool.connection():
        assert by("outcome", registry, "pooledhttp_acquires_total") == {"opened": 1, "reused": 1}
    assert by("outcome", registry, "pooledhttp_acquires_total") == {"opened": 1, "reused": 1}


def test_acquire_that_waits_in_vain_is_counted(shop: Shop, registry: CollectorRegistry) -> None:
    pool = shop.pool_to(maxsize=1, timeout=Timeout(acquire=0))
    with pool.connection(), pytest.raises(AcquireTimeout):
        pool.acquire()
    assert by("outcome", registry, "pooledhttp_acquires_total") == {"opened": 1, "timeout": 1}
    assert pool.request("GET", "/").data == b"ok"


def test_acquire_that_may_not_even_wait_is_counted(shop: Shop, registry: CollectorRegistry) -> None:
    pool = shop.pool_to(maxsize=1, max_waiters=0)
    with pool.connection(), pytest.raises(PoolFull):
        pool.acquire()
    assert by("outcome", registry, "pooledhttp_acquires_total") == {"opened": 1, "rejected": 1}
    assert pool.request("GET", "/").data == b"ok"


# --- connecting -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Trust:
    """What a TLS server presents, what a client must trust for it, and what a server presents that it must not."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    impostor: ssl.SSLContext


@pytest.fixture(scope="module")
def trust() -> Trust:
    contexts = []
    authority = trustme.CA()
    for issuer in (authority, trustme.CA()):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        issuer.issue_cert("127.0.0.1").configure_cert(context)
        contexts.append(context)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return Trust(contexts[0], client, contexts[1])


def test_acquire_that_cannot_connect_is_counted(shop: Shop, registry: CollectorRegistry, trust: Trust) -> None:
    server = shop.server([Close()], default=[StartTLS(trust.server), *KEEP_ALIVE])
    pool = shop.pool(server, scheme="https", ssl_context=trust.client)
    with pytest.raises(OSError):
        pool.acquire()
    assert by("outcome", registry, "pooledhttp_acquires_total") == {"error": 1}
    assert pool.request("GET", "/").data == b"ok"


def test_failure_to_resolve_is_counted(
    shop: Shop, registry: CollectorRegistry, audit: ResourceAudit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    with ConnectionPool("localhost", shop.server().port, config=shop.config()) as pool:
        audit.watch(pool)
        with monkeypatch.context() as patch:
            patch.setattr(socket, "getaddrinfo", fail)
            with pytest.raises(socket.gaierror):
                pool.request("GET", "/")
        assert by("reason", registry, "pooledhttp_connect_failures_total") == {"dns": 1}
        assert pool.request("GET", "/").data == b"ok"


def test_refused_connection_is_counted(shop: Shop, registry: CollectorRegistry, scripted_server: ServerFactory) -> None:
    server = shop.server()
    server.close()
    pool = shop.pool(server)
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            pool.request("GET", "/")
    assert by("reason", registry, "pooledhttp_connect_failures_total") == {"refused": 2}
    scripted_server(KEEP_ALIVE, port=server.port)
    assert pool.request("GET", "/").data == b"ok"


def test_failed_handshake_is_counted(shop: Shop, registry: CollectorRegistry, trust: Trust) -> None:
    server = shop.server([StartTLS(trust.impostor)], default=[StartTLS(trust.server), *KEEP_ALIVE])
    pool = shop.pool(server, scheme="https", ssl_context=trust.client)
    with pytest.raises(ssl.SSLCertVerificationError):
        pool.request("GET", "/")
    assert by("reason", registry, "pooledhttp_connect_failures_total") == {"tls": 1}
    assert pool.request("GET", "/").data == b"ok"


def test_connect_timeout_is_counted(shop: Shop, registry: CollectorRegistry, trust: Trust) -> None:
    server = shop.server([KeepOpen()], default=[StartTLS(trust.server), *KEEP_ALIVE])
    pool = shop.pool(server, scheme="https", ssl_context=trust.client, clock=time.monotonic)
    with pytest.raises(TimeoutError):
        pool.request("GET", "/", timeout=Timeout(connect=0.05))
    assert by("reason", registry, "pooledhttp_connect_failures_total") == {"timeout": 1}
    assert pool.request("GET", "/").data == b"ok"


def test_tunnel_that_the_proxy_refuses_is_counted(shop: Shop, registry: CollectorRegistry, trust: Trust) -> None:
    server = shop.server(
        [ExpectHead("CONNECT"), Respond(403), Close()],
        default=[ExpectHead("CONNECT"), Respond(200), StartTLS(trust.server), *KEEP_ALIVE],
    )
    pool = shop.pool(
        server, scheme="https", ssl_context=trust.client, proxy=f"http://127.0.0.1:{server.port}", clock=time.monotonic
    )
    with pytest.raises(TunnelError):
        pool.request("GET", "/")
    assert by("reason", registry, "pooledhttp_connect_failures_total") == {"proxy": 1}
    assert pool.request("GET", "/").data == b"ok"


# --- why connections end ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        pytest.param([Close()], "stale_eof", id="closes"),
        pytest.param([Reset()], "stale_reset", id="resets"),
        pytest.param([Send(b"HTTP/1.1 408 Request Timeout\r\n\r\n"), Close()], "stale_408", id="sends-408"),
        pytest.param([Send(b"surprise"), Close()], "unsolicited", id="sends-more"),
    ],
)
def test_end_of_an_idle_connection_by_its_server_is_counted(
    shop: Shop, registry: CollectorRegistry, ending: list[Step], reason: str
) -> None:
    is_idle = threading.Event()
    server = shop.server([*ANSWER, Stall(until=is_idle), *ending])
    pool = shop.pool(server)
    pool.request("GET", "/")
    is_idle.set()
    assert server.peer(0).ended.wait(10)
    assert pool.request("GET", "/").data == b"ok"
    assert by("reason", registry, "pooledhttp_connections_closed_total") == {reason: 1}
    assert by("state", registry, "pooledhttp_connections") == {"idle": 1}


@pytest.mark.parametrize(
    ("options", "later", "reason"),
    [
        pytest.param(PoolOptions(idle_timeout=60), 60, "idle", id="idle_timeout"),
        pytest.param(PoolOptions(max_age=50), 50, "max_age", id="max_age"),
        pytest.param(PoolOptions(max_requests=1), 0, "max_requests", id="max_requests"),
    ],
)
def test_end_of_a_connection_by_a_limit_is_counted(
    shop: Shop, registry: CollectorRegistry, clock: Clock, options: PoolOptions, later: float, reason: str
) -> None:
    pool = shop.pool_to(**options)
    pool.request("GET", "/")
    clock.now += later
    pool.prune()
    assert by("reason", registry, "pooledhttp_connections_closed_total") == {reason: 1}
    assert pool.request("GET", "/").data == b"ok"


def answered(pool: ConnectionPool) -> None:
    assert pool.request("GET", "/").data == b"ok"


def cut_off(pool: ConnectionPool) -> None:
    with pytest.raises(IncompleteRead):
        pool.request("GET", "/")


def silent(pool: ConnectionPool) -> None:
    with pytest.raises(ReadTimeout):
        pool.request("GET", "/", timeout=Timeout(read=0.05))


def unread(pool: ConnectionPool) -> None:
    with pool.stream("GET", "/"):
        pass


def failing_borrower(pool: ConnectionPool) -> None:
    with pytest.raises(KeyError), pool.connection():
        raise KeyError("the borrower's own")


def closing_borrower(pool: ConnectionPool) -> None:
    with pool.connection() as conn:
        conn.close()


def forgetful_borrower(pool: ConnectionPool) -> None:
    lent = [pool.acquire()]
    with pytest.warns(ResourceWarning):
        lent.clear()
    gc.collect()


def evicting(pool: ConnectionPool) -> None:
    answered(pool)
    assert pool.prune(everything=True) == 1


@pytest.mark.parametrize(
    ("use", "script", "reason"),
    [
        (answered, [ExpectHead(), Respond(body=b"ok", close=True)], "server_close"),
        (answered, [ExpectHead(), Send(Respond(body=b"ok").encode() + b"more"), KeepOpen()], "leftover"),
        (unread, [ExpectHead(), Respond(body=bytes(1_000_000)), KeepOpen()], "unread"),
        (cut_off, [ExpectHead(), Send(Respond(body=b"ok").encode()[:-1]), Close()], "truncated"),
        (silent, [ExpectHead(), KeepOpen()], "timeout"),
        (failing_borrower, KEEP_ALIVE, "error"),
        (closing_borrower, KEEP_ALIVE, "client_close"),
        (forgetful_borrower, KEEP_ALIVE, "leaked"),
        (evicting, KEEP_ALIVE, "evicted"),
        (ConnectionPool.close, KEEP_ALIVE, "pool_closed"),
    ],
)
def test_end_of_a_connection_is_counted(
    shop: Shop, registry: CollectorRegistry, use: Callable[[ConnectionPool], None], script: Script, reason: str
) -> None:
    server = shop.server(script)
    pool = shop.pool(server, clock=time.monotonic, drain_bytes=10)
    if reason == "pool_closed":
        with pool.connection():
            pass
    use(pool)
    assert by("reason", registry, "pooledhttp_connections_closed_total") == {reason: 1}
    assert imbalance(registry) == 0
    if not pool.is_closed:
        assert pool.request("GET", "/").data == b"ok"


def test_connection_collected_while_lent_is_counted(shop: Shop, registry: CollectorRegistry) -> None:
    pool = shop.pool_to()
    forgetful_borrower(pool)
    assert number(registry, "pooledhttp_leaked_connections_total") == 1
    assert by("state", registry, "pooledhttp_connections") == {}
    assert pool.request("GET", "/").data == b"ok"


def test_unread_bodies_are_counted_by_what_became_of_them(shop: Shop, registry: CollectorRegistry) -> None:
    long = [ExpectHead(), Respond(body=bytes(1_000_000)), KeepOpen()]
    pool = shop.pool_to([ExpectHead(), Respond(body=b"short"), *long], clock=time.monotonic, drain_seconds=5)
    unread(pool)
    assert by("outcome", registry, "pooledhttp_drains_total") == {"drained": 1}
    unread(pool)
    assert by("outcome", registry, "pooledhttp_drains_total") == {"drained": 1, "closed": 1}
    assert pool.request("GET", "/").data == b"ok"


def test_stale_connection_that_was_replaced_is_counted(shop: Shop, registry: CollectorRegistry) -> None:
    # It dies as the request arrives, where no probe can see it coming.
    pool = shop.pool_to([*ANSWER, ExpectHead(), Close()])
    for _ in range(2):
        assert pool.request("GET", "/").data == b"ok"
    assert by("outcome", registry, "pooledhttp_stale_connections_total") == {"retried": 1}
    assert by("outcome", registry, "pooledhttp_requests_total") == {"2xx": 2}
    assert imbalance(registry) == 0


def test_idle_connections_older_than_a_stale_one_are_counted_apart(shop: Shop, registry: CollectorRegistry) -> None:
    pool = shop.pool_to([KeepOpen()], [*ANSWER, ExpectHead(), Close()])
    older, newer = pool.acquire(), pool.acquire()
    newer.request("GET", "/")
    newer.getresponse().read()
    pool.release(older)
    pool.release(newer)
    assert pool.request("GET", "/").data == b"ok"
    closed = by("reason", registry, "pooledhttp_connections_closed_total")
    assert closed.pop("stale_assumed") == 1
    assert sum(closed.values()) == 1
    assert imbalance(registry) == 0


def test_stale_connection_that_the_caller_saw_is_counted(shop: Shop, registry: CollectorRegistry) -> None:
    pool = shop.pool_to([*ANSWER, ExpectHead(), Close()], resend_stale=False)
    pool.request("GET", "/")
    with pytest.raises(ConnectionError):
        pool.request("GET", "/")
    assert by("outcome", registry, "pooledhttp_stale_connections_total") == {"raised": 1}
    assert by("outcome", registry, "pooledhttp_requests_total") == {"2xx": 1, "error": 1}
    assert pool.request("GET", "/").data == b"ok"


def test_requests_are_counted_by_class_of_status(shop: Shop, registry: CollectorRegistry) -> None:
    statuses = (200, 204, 302, 404, 410, 500)
    pool = shop.pool_to([step for status in statuses for step in (ExpectHead(), Respond(status))])
    for status in statuses:
        assert pool.request("GET", "/").status == status
    assert by("outcome", registry, "pooledhttp_requests_total") == {"2xx": 2, "3xx": 1, "4xx": 2, "5xx": 1}


def test_retries_are_counted_by_what_had_failed_and_their_call_once(shop: Shop, registry: CollectorRegistry) -> None:
    steps = [ExpectHead(), Respond(503), ExpectHead(), Respond(429), *ANSWER]
    pool = shop.pool_to([ExpectHead(), Close()], steps, retry=Retry(attempts=4, backoff=0))
    assert pool.request("GET", "/").data == b"ok"
    assert by("reason", registry, "pooledhttp_retries_total") == {"reset": 1, "status": 2}
    assert by("reason", registry, "pooledhttp_retries_refused_total") == {}
    assert by("outcome", registry, "pooledhttp_requests_total") == {"2xx": 1}
    assert number(registry, "pooledhttp_request_duration_seconds_count") == 1
    assert imbalance(registry) == 0


def test_retries_that_are_not_made_are_counted_by_what_stands_against_them(
    shop: Shop, registry: CollectorRegistry
) -> None:
    busy = Repeat([ExpectHead(), Respond(503, headers=[("Retry-After", "20")])])
    pool = shop.pool_to([busy])
    refusals = {
        "attempts": pool.request("GET", "/", retry=Retry(attempts=1)),
        "budget": pool.request("GET", "/", retry=Retry(budget=0, budget_floor=0)),
        "deadline": pool.request("GET", "/", retry=Retry(), timeout=10),
        "retry_after": pool.request("GET", "/", retry=Retry(retry_after_max=19)),
    }
    assert {response.status for response in refusals.values()} == {503}
    assert by("reason", registry, "pooledhttp_retries_refused_total") == dict.fromkeys(refusals, 1)
    assert by("reason", registry, "pooledhttp_retries_total") == {}
    assert by("outcome", registry, "pooledhttp_requests_total") == {"5xx": 4}


def test_request_that_times_out_is_counted(shop: Shop, registry: CollectorRegistry) -> None:
    pool = shop.pool_to([ExpectHead(), KeepOpen()], clock=time.monotonic)
    silent(pool)
    assert by("outcome", registry, "pooledhttp_requests_total") == {"timeout": 1}
    assert pool.request("GET", "/").data == b"ok"


def test_exchange_over_a_lent_connection_is_no_request_of_the_pool(shop: Shop, registry: CollectorRegistry) -> None:
    pool = shop.pool_to()
    with pool.connection() as conn:
        conn.request("GET", "/")
        assert conn.getresponse().read() == b"ok"
    assert by("outcome", registry, "pooledhttp_requests_total") == {}
    assert by("outcome", registry, "pooledhttp_acquires_total") == {"opened": 1}


# --- histograms -------------------------------------------------------------------------------------------------------


def test_use_is_measured_from_acquire_to_release(shop: Shop, registry: CollectorRegistry, clock: Clock) -> None:
    pool = shop.pool_to()
    for seconds in (0.25, 0.25, 2.0, 100.0):
        with pool.connection():
            clock.now += seconds
    assert number(registry, "pooledhttp_connection_use_seconds_sum") == 102.5
    assert number(registry, "pooledhttp_connection_use_seconds_count") == 4
    at_most = {
        bound: number(registry, "pooledhttp_connection_use_seconds_bucket", le=bound)
        for bound in ("0.1", "0.5", "1.0", "5.0", "60.0", "+Inf")
    }
    assert at_most == {"0.1": 0, "0.5": 2, "1.0": 2, "5.0": 3, "60.0": 3, "+Inf": 4}


def test_acquire_that_need_not_wait_is_in_the_first_bucket(shop: Shop, registry: CollectorRegistry) -> None:
    pool = shop.pool_to()
    for _ in range(3):
        pool.request("GET", "/")
    assert number(registry, "pooledhttp_acquire_wait_seconds_bucket", le="0.001") == 3
    assert number(registry, "pooledhttp_acquire_wait_seconds_count") == 3
    assert number(registry, "pooledhttp_acquire_wait_seconds_sum") == 0


def test_wait_is_measured(shop: Shop, registry: CollectorRegistry, clock: Clock) -> None:
    pool = shop.pool_to(maxsize=1)
    conn = pool.acquire()
    with running(lambda: pool.release(pool.acquire())):
        try:
            wait_until(lambda: pool.stats().waiting == 1)
            clock.now += 0.25
        finally:
            pool.release(conn)
    assert number(registry, "pooledhttp_acquire_wait_seconds_sum") == 0.25
    assert number(registry, "pooledhttp_acquire_wait_seconds_bucket", le="0.1") == 1
    assert number(registry, "pooledhttp_acquire_wait_seconds_bucket", le="0.5") == 2


def test_wait_that_ends_in_vain_is_measured_too(shop: Shop, registry: CollectorRegistry, clock: Clock) -> None:
    """Else the waits would look shorter the more callers give up."""
    pool = shop.pool_to(maxsize=1, timeout=Timeout(acquire=2.0), exemplar=lambda: {"trace_id": "in-vain"})
    failed: list[BaseException] = []

    def acquire() -> None:
        try:
            pool.acquire()
        except AcquireTimeout as fault:
            failed.append(fault)

    with pool.connection():
        for seconds in (2.0, 7.0):  # the second one was busy elsewhere when its time was up
            with running(acquire):
                wait_until(lambda: pool.stats().waiting == 1)
                clock.now += seconds
    assert len(failed) == 2
    assert number(registry, "pooledhttp_acquire_wait_seconds_sum") == 9.0
    at_most = {bound: number(registry, "pooledhttp_acquire_wait_seconds_bucket", le=bound)
               for bound in ("0.001", "1.0", "5.0", "10.0")}  # fmt: skip
    assert at_most == {"0.001": 1, "1.0": 1, "5.0": 2, "10.0": 3}
    acquires = by("outcome", registry, "pooledhttp_acquires_total")
    assert acquires == {"opened": 1, "timeout": 2}
    assert exemplars(registry, "pooledhttp_acquire_wait_seconds").keys() == {"5.0", "10.0"}


def test_acquire_that_does_not_wait_at_all_has_no_wait(shop: Shop, registry: CollectorRegistry) -> None:
    """It would be a quick one among those that are waited for."""
    pool = shop.pool_to(maxsize=1, timeout=Timeout(acquire=0))
    with pool.connection(), pytest.raises(AcquireTimeout):
        pool.acquire()
    assert number(registry, "pooledhttp_acquire_wait_seconds_count") == 1  # of the one that was served


def test_connections_that_were_opened_are_the_count_of_connect_durations(
    shop: Shop, registry: CollectorRegistry
) -> None:
    pool = shop.pool_to()
    with pool.connection(), pool.connection():
        pass
    pool.request("GET", "/")
    assert number(registry, "pooledhttp_connect_duration_seconds_count") == 2


def test_request_is_measured_whole(shop: Shop, registry: CollectorRegistry, clock: Clock) -> None:
    pool = shop.pool_to()
    with pool.stream("GET", "/") as response:
        clock.now += 0.5
        assert response.read() == b"ok"
    assert number(registry, "pooledhttp_request_duration_seconds_sum") == 0.5
    assert number(registry, "pooledhttp_request_duration_seconds_count") == 1


# --- labels -----------------------------------------------------------------------------------------------------------


def test_pool_without_a_name_is_shown_by_host_and_port(shop: Shop, registry: CollectorRegistry) -> None:
    server = shop.server()
    shop.pool(server, name=None).request("GET", "/")
    assert by("outcome", registry, "pooledhttp_requests_total", pool=f"127.0.0.1:{server.port}") == {"2xx": 1}


def test_pools_of_one_name_add_up(shop: Shop, registry: CollectorRegistry) -> None:
    one, other = shop.pool_to(), shop.pool_to()
    one.request("GET", "/")
    for _ in range(2):
        other.request("GET", "/")
    assert by("outcome", registry, "pooledhttp_requests_total") == {"2xx": 3}
    assert by("state", registry, "pooledhttp_connections") == {"idle": 2}
    assert number(registry, "pooledhttp_connect_duration_seconds_count") == 2
    assert len(pools_shown(registry)) == 1


def test_pools_of_different_names_are_apart(shop: Shop, registry: CollectorRegistry) -> None:
    shop.pool_to().request("GET", "/")
    shop.pool_to(name="other").request("GET", "/")
    assert by("outcome", registry, "pooledhttp_requests_total") == {"2xx": 1}
    assert by("outcome", registry, "pooledhttp_requests_total", pool="other") == {"2xx": 1}


def test_pools_beyond_a_hundred_names_share_a_label(shop: Shop, registry: CollectorRegistry) -> None:
    server = shop.server()
    for at in range(99):
        shop.pool(server, name=f"tenant{at}")
    assert number(registry, "pooledhttp_label_overflow_total", pool=None) == 0
    for at in range(99, 102):
        shop.pool(server, name=f"tenant{at}").request("GET", "/")
    shop.pool(server, name="tenant7").request("GET", "/")
    assert by("outcome", registry, "pooledhttp_requests_total", pool="_other") == {"2xx": 3}
    assert by("outcome", registry, "pooledhttp_requests_total", pool="tenant7") == {"2xx": 1}
    assert number(registry, "pooledhttp_label_overflow_total", pool=None) == 3
    assert len(pools_shown(registry)) == 100


def test_names_of_pools_that_are_gone_still_count_as_names(shop: Shop, registry: CollectorRegistry) -> None:
    server = shop.server()
    for at in range(110):
        shop.droppable(server, name=f"tenant{at}")
    shop.pool(server, name="one more")
    assert len(pools_shown(registry)) == 100
    assert number(registry, "pooledhttp_label_overflow_total", pool=None) == 12


def test_ten_thousand_origins_make_a_hundred_values_of_the_label(registry: CollectorRegistry) -> None:
    with pooledhttp.PoolManager(registry=registry) as manager:
        for at in range(10_000):
            manager.pool(f"http://tenant{at}.example/")
        assert len(pools_shown(registry)) == 100
        assert number(registry, "pooledhttp_label_overflow_total", pool=None) == 10_000 - 99


def test_threads_that_want_a_new_origin_at_once_fold_one_name(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each makes a pool, and all but one of them are dropped."""
    threads = 8
    all_are_made = threading.Barrier(threads)

    class SlowPool(ConnectionPool):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            all_are_made.wait(BOUND)

    with pooledhttp.PoolManager(registry=registry, max_pools=200) as manager, ThreadPoolExecutor(threads) as executor:
        for at in range(99):
            manager.pool(f"http://tenant{at}.example/")
        monkeypatch.setattr("pooledhttp.manager.ConnectionPool", SlowPool)
        found = set(executor.map(manager.pool, ["http://late.example/"] * threads))
        assert len(found) == 1
        assert number(registry, "pooledhttp_label_overflow_total", pool=None) == 1


def test_name_is_folded_anew_when_its_pools_were_gone(shop: Shop, registry: CollectorRegistry) -> None:
    server = shop.server()
    keepers = [shop.pool(server, name=f"tenant{at}") for at in range(99)]
    first, second = shop.droppable(server, name="late"), shop.droppable(server, name="late")
    for dropped in (first, second):
        assert number(registry, "pooledhttp_label_overflow_total", pool=None) == 1
        dropped.close()
    del first, second, dropped
    assert number(registry, "pooledhttp_label_overflow_total", pool=None) == 1
    shop.pool(server, name="late")
    assert number(registry, "pooledhttp_label_overflow_total", pool=None) == 2
    assert len(keepers) == 99


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
def test_name_that_was_folded_in_the_parent_is_folded_anew_in_a_child(shop: Shop, registry: CollectorRegistry) -> None:
    server = shop.server()
    keepers = [shop.pool(server, name=f"tenant{at}") for at in range(99)]
    gone = shop.droppable(server, name="late")
    gone.close()
    del gone

    def fold() -> tuple[float, float]:
        before = number(registry, "pooledhttp_label_overflow_total", pool=None)
        kept = shop.droppable(server, name="late")
        after = number(registry, "pooledhttp_label_overflow_total", pool=None)
        kept.close()
        return before, after

    assert in_child(fold) == (0, 1)
    assert len(keepers) == 99


def test_pool_in_which_nothing_happens_is_asked_once(
    shop: Shop, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = shop.server()
    quiet, at_work = [shop.pool(server, name=name) for name in ("quiet", "at work")]
    for pool in (quiet, at_work):
        pool.request("GET", "/")
    asked: list[str] = []
    ask = ConnectionPool.stats_at

    def noted(pool: ConnectionPool, now: float | None) -> PoolStats:
        asked.append(pool.name)
        return ask(pool, now)

    monkeypatch.setattr(ConnectionPool, "stats_at", noted)
    counters(registry)
    assert sorted(asked) == ["at work", "quiet"]
    asked.clear()
    at_work.request("GET", "/")
    assert by("outcome", registry, "pooledhttp_requests_total", pool="at work") == {"2xx": 2}
    assert by("outcome", registry, "pooledhttp_requests_total", pool="quiet") == {"2xx": 1}
    assert set(asked) == {"at work"}


@pytest.mark.parametrize(
    "change",
    [
        lambda pool: pool.request("GET", "/"),
        lambda pool: pool.resize(3),
        lambda pool: pool.close(),
        lambda pool: pool.prune(everything=True),
        lambda pool: pool.acquire().close(),
        lambda pool: pool._count_request(RequestOutcome.ERROR, 0.0),
        lambda pool: pool._exemplify(pool._tally.wait, 2.0),
        lambda pool: pool._exemplify(pool._tally.request, 2.0),
    ],
)
def test_whatever_changes_a_pool_is_seen_at_the_next_scrape(
    shop: Shop, registry: CollectorRegistry, change: Callable[[ConnectionPool], object]
) -> None:
    pool = shop.pool_to(exemplar=lambda: {"trace_id": "x"})
    pool.request("GET", "/")
    list(registry.collect())
    before = pool.mark()
    assert pool.mark() == before
    change(pool)
    assert pool.mark() != before
    collector = collector_of(registry)
    assert isinstance(collector, PoolCollector)
    shown = collector._fleet.totals().by_label[POOL]
    assert shown.replace(maxsize=0) == pool.stats().replace(maxsize=0)


def test_every_counter_of_a_tally_moves_its_number_of_events() -> None:
    def counters_of(tally: Tally) -> Iterator[tuple[str, Callable[[], object]]]:
        for name in Tally.__slots__:
            counter = getattr(tally, name)
            if isinstance(counter, dict):
                for key in counter:
                    yield name, partial(counter.__setitem__, key, 7)
            elif isinstance(counter, Histogram):
                yield name, partial(counter.observe, 0.5)
            elif isinstance(counter, list):
                yield name, partial(counter.append, (0.1, True, 200, 0.2))
            else:
                yield name, partial(setattr, tally, name, counter + 1)

    seen = set()
    tally = Tally()
    for name, move in counters_of(tally):
        before = tally.events
        move()
        assert tally.events > before, name
        seen.add(name)
    assert seen == set(Tally.__slots__)
    before = tally.events
    tally.sort()
    assert tally.events >= before


def test_name_that_is_no_text_does_not_break_the_exposition(shop: Shop, registry: CollectorRegistry) -> None:
    shop.pool_to(name='a "quote"\n and a lone \udc80 surrogate').request("GET", "/")
    exposition = generate_latest(registry).decode()
    assert r'pooledhttp_requests_total{outcome="2xx",pool="a \"quote\"\n and a lone ? surrogate"} 1.0' in exposition


def test_every_value_of_a_label_is_there_from_the_start(shop: Shop, registry: CollectorRegistry) -> None:
    shop.pool_to()
    shown: dict[tuple[str, str], set[str]] = {}
    for sample in (sample for family in registry.collect() for sample in family.samples):
        for label in sample.labels.keys() - {"pool", "le", "version"}:
            shown.setdefault((sample.name, label), set()).add(sample.labels[label])
            assert sample.value == 0
    assert shown == {
        ("pooledhttp_connections", "state"): {"active", "idle", "opening"},
        ("pooledhttp_acquires_total", "outcome"): set(AcquireOutcome),
        ("pooledhttp_connect_failures_total", "reason"): set(ConnectFailure),
        ("pooledhttp_connections_closed_total", "reason"): set(CloseReason),
        ("pooledhttp_stale_connections_total", "outcome"): set(StaleOutcome),
        ("pooledhttp_drains_total", "outcome"): set(DrainOutcome),
        ("pooledhttp_requests_total", "outcome"): set(RequestOutcome),
        ("pooledhttp_retries_total", "reason"): set(RetryReason),
        ("pooledhttp_retries_refused_total", "reason"): set(RetryRefusal),
    }


# --- counters never go down -------------------------------------------------------------------------------------------


def test_closed_pool_keeps_its_counters(shop: Shop, registry: CollectorRegistry) -> None:
    pool = shop.pool_to()
    pool.request("GET", "/")
    before = counters(registry)
    pool.close()
    assert falls(before, counters(registry)) == {}
    assert by("outcome", registry, "pooledhttp_requests_total") == {"2xx": 1}


def test_dropped_pool_leaves_its_counters_behind(shop: Shop, registry: CollectorRegistry) -> None:
    pool = shop.droppable(shop.server())
    pool.request("GET", "/")
    before = counters(registry)
    del pool
    gc.collect()
    assert falls(before, counters(registry)) == {}
    assert falls(before, counters(registry)) == {}
    assert by("outcome", registry, "pooledhttp_requests_total") == {"2xx": 1}
    assert number(registry, "pooledhttp_pools", pool=None) == 0
    assert number(registry, "pooledhttp_connections_max") == 0


def test_counters_of_a_dropped_pool_and_of_its_successor_add_up(shop: Shop, registry: CollectorRegistry) -> None:
    server = shop.server()
    for _ in range(3):
        pool = shop.droppable(server)
        pool.request("GET", "/")
        del pool
        gc.collect()
        counters(registry)
    shop.pool(server).request("GET", "/")
    assert by("outcome", registry, "pooledhttp_requests_total") == {"2xx": 4}


def test_idle_connections_of_a_dropped_pool_count_as_closed(shop: Shop, registry: CollectorRegistry) -> None:
    pool = shop.droppable(shop.server())
    with pool.connection(), pool.connection():
        pass
    assert imbalance(registry) == 0
    del pool
    gc.collect()
    assert by("reason", registry, "pooledhttp_connections_closed_total") == {"pool_closed": 2}
    assert by("state", registry, "pooledhttp_connections") == {}
    assert imbalance(registry) == 0


def test_lease_that_outlives_its_pool_does_not_take_an_acquire_back(shop: Shop, registry: CollectorRegistry) -> None:
    pool = shop.droppable(shop.server())
    pool.request("GET", "/")
    conn = pool.acquire()
    before = counters(registry)
    del pool
    gc.collect()
    assert falls(before, counters(registry)) == {}
    assert by("outcome", registry, "pooledhttp_acquires_total") == {"opened": 1, "reused": 1}
    assert imbalance(registry) == 0
    conn.close()


def test_sum_of_a_histogram_does_not_lose_its_last_bit_when_pools_retire(
    shop: Shop, registry: CollectorRegistry, clock: Clock
) -> None:
    # (0.1 + 0.2) + 0.3 > (0.2 + 0.3) + 0.1, and a step down is a restart to Prometheus.
    server = shop.server()
    pools = [shop.droppable(server) for _ in range(3)]
    for pool, seconds in zip(pools, (0.1, 0.2, 0.3), strict=True):
        pool._tally.use.observe(seconds)
    del pool
    before = counters(registry)
    del pools[1:]
    gc.collect()
    assert falls(before, counters(registry)) == {}


def test_counters_never_go_down_while_pools_come_and_go_in_other_threads(
    shop: Shop, registry: CollectorRegistry
) -> None:
    server = shop.server()
    shop.pool(server)
    rounds, workers = 40, 3

    def come_and_go() -> None:
        for at in range(rounds):
            pool = shop.droppable(server, maxsize=2)
            for _ in range(3):
                pool.request("GET", "/")
            if at % 2:
                pool.close()

    found: dict[Series, tuple[float, float | None]] = {}
    with ThreadPoolExecutor(workers) as executor:
        futures = [executor.submit(come_and_go) for _ in range(workers)]
        before = counters(registry)
        while not all(future.done() for future in futures):
            after = counters(registry)
            found |= falls(before, after)
            before = after
        for future in futures:
            future.result(timeout=10)
    gc.collect()
    assert found == {}
    assert by("outcome", registry, "pooledhttp_requests_total") == {"2xx": rounds * workers * 3}
    assert imbalance(registry) == 0


def test_pools_that_are_gone_are_forgotten_without_a_scrape(shop: Shop, registry: CollectorRegistry) -> None:
    server = shop.server()
    keeper = shop.pool(server)
    for _ in range(1000):
        shop.droppable(server)
    collector = collector_of(registry)
    assert isinstance(collector, PoolCollector)
    assert len(collector._fleet._watched) < 100
    assert number(registry, "pooledhttp_pools", pool=None) == 1
    assert keeper.request("GET", "/").data == b"ok"


def test_collector_does_not_keep_a_pool_alive(shop: Shop, registry: CollectorRegistry) -> None:
    pool = shop.droppable(shop.server())
    counters(registry)
    alive = weakref.ref(pool)
    del pool
    gc.collect()
    assert alive() is None


# --- exemplars --------------------------------------------------------------------------------------------------------


def exemplars(registry: CollectorRegistry, name: str) -> dict[str, tuple[dict[str, str], float]]:
    """Return what leads to the buckets of a histogram, as an OpenMetrics scrape shows it."""
    text = openmetrics.generate_latest(registry).decode()
    return {
        sample.labels["le"]: (sample.exemplar.labels, sample.exemplar.value)
        for family in openmetrics_families(text)
        for sample in family.samples
        if sample.name == f"{name}_bucket" and sample.exemplar is not None
    }


def test_call_leads_to_its_trace(shop: Shop, registry: CollectorRegistry, clock: Clock) -> None:
    traces = iter(["fast", "slow", "slower"])
    pool = shop.pool_to(clock=clock, exemplar=lambda: {"trace_id": next(traces)})
    pool.request("GET", "/")
    for seconds in (0.3, 0.4):
        with pool.stream("GET", "/") as response:
            response.read()
            clock.now += seconds
    found = exemplars(registry, "pooledhttp_request_duration_seconds")
    assert found["0.005"] == ({"trace_id": "fast"}, 0.0)
    assert found["0.5"][0] == {"trace_id": "slower"}
    assert found["0.5"][1] == pytest.approx(0.4)
    assert found.keys() == {"0.005", "0.5"}


def test_call_that_fails_leads_to_its_trace(shop: Shop, registry: CollectorRegistry, clock: Clock) -> None:
    broken = shop.pool(shop.server([ExpectHead(), Close()]), exemplar=lambda: {"trace_id": "broken"})
    with pytest.raises(pooledhttp.RemoteDisconnected):
        broken.request("GET", "/")
    assert exemplars(registry, "pooledhttp_request_duration_seconds").popitem()[1][0] == {"trace_id": "broken"}


def test_wait_leads_to_its_trace(shop: Shop, registry: CollectorRegistry, clock: Clock) -> None:
    clock.now = 0.0  # so that 0.3 is 0.3
    pool = shop.pool_to(maxsize=1, clock=clock, exemplar=lambda: {"trace_id": threading.current_thread().name})
    with pool.connection():
        waiter = threading.Thread(target=pool.request, args=("GET", "/"), name="waiter", daemon=True)
        waiter.start()
        wait_until(lambda: pool.stats().waiting == 1)
        clock.now += 0.3
    waiter.join(10)
    assert not waiter.is_alive()
    assert exemplars(registry, "pooledhttp_acquire_wait_seconds") == {"0.5": ({"trace_id": "waiter"}, 0.3)}


def refuse() -> dict[str, str]:
    raise RuntimeError("no trace")


@pytest.mark.parametrize(
    "exemplar",
    [
        lambda: None,
        dict,
        lambda: {"trace_id": "x" * 200},
        lambda: {"trace_id": 7},
        lambda: {"trace_id": b"x"},
        lambda: {"trace_id": ["x"]},
        lambda: {"trace_id": "\ud800"},
        lambda: {"trace-id": "x"},
        lambda: {"tr\u00e4ce": "x"},
        lambda: {"": "x"},
        refuse,
    ],
    ids=["none", "empty", "too long", "no text", "bytes", "list", "surrogate", "dash", "umlaut", "no name", "raises"],
)
def test_exemplar_that_is_none_costs_no_call(exemplar: Any, shop: Shop, registry: CollectorRegistry) -> None:
    pool = shop.pool_to(exemplar=exemplar)
    assert pool.request("GET", "/").data == b"ok"
    assert exemplars(registry, "pooledhttp_request_duration_seconds") == {}


def test_exemplars_of_pools_of_one_name_are_the_latest_of_both(shop: Shop, registry: CollectorRegistry) -> None:
    shop.pool_to(name="shared", exemplar=lambda: {"trace_id": "first"}).request("GET", "/")
    shop.pool_to(name="shared", exemplar=lambda: {"trace_id": "second"}).request("GET", "/")
    found = exemplars(registry, "pooledhttp_request_duration_seconds")
    assert {labels["trace_id"] for labels, _ in found.values()} <= {"first", "second"}
    assert found


# --- a scrape never fails ---------------------------------------------------------------------------------------------


def test_pool_whose_clock_fails_is_still_shown_and_hides_no_other(
    shop: Shop, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> float:
        raise RuntimeError("no time")

    broken, sound = shop.pool_to(), shop.pool_to(name="sound")
    for _ in range(2):
        broken.request("GET", "/")
    sound.request("GET", "/")
    locked: list[bool] = []
    sort = Tally.sort

    def noted(tally: Tally) -> None:
        if tally is broken._tally:
            locked.append(broken._lock.locked())
        sort(tally)

    monkeypatch.setattr(Tally, "sort", noted)
    with broken.connection():
        before = counters(registry)
        locked.clear()
        with monkeypatch.context() as patch:
            patch.setattr(broken, "_clock", fail)
            assert falls(before, counters(registry)) == {}
            assert locked
            assert all(locked)
            assert by("outcome", registry, "pooledhttp_requests_total", pool="sound") == {"2xx": 1}
    assert broken.request("GET", "/").data == b"ok"


def test_pool_can_be_made_by_a_finalizer_that_runs_during_a_scrape(shop: Shop, registry: CollectorRegistry) -> None:
    server = shop.server()
    shop.pool(server)
    collector = collector_of(registry)
    assert isinstance(collector, PoolCollector)

    def make_a_pool_under_the_lock() -> None:
        with collector._fleet._lock:
            shop.pool(server, name="late")

    thread = threading.Thread(target=make_a_pool_under_the_lock, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert "late" in pools_shown(registry)


# --- registries -------------------------------------------------------------------------------------------------------


def test_all_pools_of_a_registry_share_one_collector(shop: Shop, registry: CollectorRegistry) -> None:
    shop.pool_to()
    collector = collector_of(registry)
    shop.pool_to()
    assert isinstance(collector, PoolCollector)
    assert collector_of(registry) is collector
    assert [family.name for family in registry.collect()].count("pooledhttp_pools") == 1


def test_registries_are_apart(shop: Shop, registry: CollectorRegistry) -> None:
    other = CollectorRegistry()
    shop.pool_to()
    shop.pool_to(name="other", registry=other)
    assert pools_shown(registry) == {POOL}
    assert pools_shown(other) == {"other"}


def test_collector_can_be_unregistered_and_comes_back_with_the_next_pool(
    shop: Shop, registry: CollectorRegistry
) -> None:
    shop.pool_to().request("GET", "/")
    collector = collector_of(registry)
    assert isinstance(collector, PoolCollector)
    registry.unregister(collector)
    assert list(registry.collect()) == []
    shop.pool_to().request("GET", "/")
    assert by("outcome", registry, "pooledhttp_requests_total") == {"2xx": 2}


def test_registry_is_not_kept_alive(shop: Shop) -> None:
    registry = CollectorRegistry()
    pool = shop.droppable(shop.server(), registry=registry)
    alive = weakref.ref(registry)
    del registry, pool
    gc.collect()
    assert alive() is None


def test_registry_without_a_pool_has_no_collector(registry: CollectorRegistry) -> None:
    assert collector_of(registry) is None


def test_registry_of_another_make_will_do(shop: Shop) -> None:
    class Plain:
        def __init__(self) -> None:
            self.collectors: list[Collector] = []

        def register(self, collector: Collector) -> None:
            self.collectors.append(collector)

    registry = Plain()
    for _ in range(2):
        shop.pool_to(registry=registry)
    assert len(registry.collectors) == 1
    assert "pooledhttp_pools" in {family.name for family in registry.collectors[0].collect()}


def test_clash_with_a_metric_of_somebody_else_is_refused(shop: Shop, registry: CollectorRegistry) -> None:
    Counter("pooledhttp_requests", "Not ours.", registry=registry)
    with pytest.raises(ValueError, match="pooledhttp_requests"):
        shop.droppable(shop.server())
    assert collector_of(registry) is None


def test_description_has_the_families_without_samples(shop: Shop, registry: CollectorRegistry) -> None:
    shop.pool_to().request("GET", "/")
    collector = collector_of(registry)
    assert isinstance(collector, PoolCollector)

    def shape(families: list[Metric]) -> list[tuple[str, str, str]]:
        return [(family.name, family.type, family.documentation) for family in families]

    assert shape(collector.describe()) == shape(list(collector.collect()))
    assert [family.samples for family in collector.describe() if family.samples] == []


# --- whole processes --------------------------------------------------------------------------------------------------


def run(program: str) -> str:
    """Run a program that sees this package; what it prints comes back, and it must print no complaint."""
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (child.returncode, child.stderr) == (0, "")
    return child.stdout


def test_pools_are_in_the_default_registry_unless_told_otherwise() -> None:
    program = """
        import prometheus_client, pooledhttp
        from pooledhttp.metrics import collector_of
        assert collector_of("default") is None
        pool = pooledhttp.ConnectionPool("localhost", 80, name="orders")
        assert collector_of("default") is collector_of(prometheus_client.REGISTRY)
        print(prometheus_client.REGISTRY.get_sample_value("pooledhttp_connections_max", {"pool": "orders"}))
    """
    assert run(program) == "10\n"


def test_pool_without_a_registry_does_not_even_load_prometheus_client() -> None:
    program = """
        import sys, pooledhttp
        pooledhttp.ConnectionPool("localhost", 80, registry=None).close()
        with pooledhttp.PoolManager(registry=None) as manager:
            manager.pool("http://localhost/")
        print("prometheus_client" in sys.modules)
    """
    assert run(program) == "False\n"


def test_pool_is_silent_where_prometheus_client_is_missing() -> None:
    program = """
        import sys
        sys.modules["prometheus_client"] = None
        import pooledhttp
        with pooledhttp.ConnectionPool("localhost", 80) as pool:
            print(pool.stats().maxsize)
    """
    assert run(program) == "10\n"


def test_other_import_errors_in_metrics_are_not_hidden() -> None:
    program = """
        import sys
        sys.modules["prometheus_client.core"] = None
        import pooledhttp
        try:
            pooledhttp.ConnectionPool("localhost", 80)
        except ModuleNotFoundError as missing:
            print(missing.name)
    """
    assert run(program) == "prometheus_client.core\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
def test_child_of_a_fork_can_scrape_though_another_thread_held_the_locks() -> None:
    program = """
        import os, threading, warnings
        import prometheus_client, pooledhttp
        from pooledhttp import metrics
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        pool = pooledhttp.ConnectionPool("localhost", 80)
        is_held, let_go = threading.Event(), threading.Event()

        def hold():
            with metrics._lock, metrics.collector_of("default")._fleet._lock:
                is_held.set()
                let_go.wait(20)

        holder = threading.Thread(target=hold)
        holder.start()
        is_held.wait(20)
        if child := os.fork():
            _, status = os.waitpid(child, 0)
            let_go.set()
            holder.join()
            print(os.waitstatus_to_exitcode(status))
        else:
            import signal
            signal.alarm(10)
            pooledhttp.ConnectionPool("localhost", 81)
            prometheus_client.generate_latest()
            os._exit(0)
    """
    assert run(program) == "0\n"


# --- the exposition as a whole ----------------------------------------------------------------------------------------


def test_exposition_is_read_back_as_it_was_meant(shop: Shop, registry: CollectorRegistry) -> None:
    shop.pool_to().request("GET", "/")
    read = list(text_string_to_metric_families(generate_latest(registry).decode()))
    written = list(registry.collect())
    assert [(family.name, family.type) for family in read] == [(family.name, family.type) for family in written]
    assert [(sample.name, sample.labels, sample.value) for family in read for sample in family.samples] == [
        (sample.name, sample.labels, sample.value) for family in written for sample in family.samples
    ]
    assert not [sample for family in read for sample in family.samples if sample.name.endswith("_created")]


# Where each number of PoolStats is shown; `name` is the label itself.
SHOWN_AS = {
    "maxsize": "pooledhttp_connections_max",
    "idle": "pooledhttp_connections",
    "leased": "pooledhttp_connections",
    "opening": "pooledhttp_connections",
    "waiting": "pooledhttp_pending_acquires",
    "oldest_lease_seconds": "pooledhttp_oldest_lease_seconds",
    "acquires": "pooledhttp_acquires_total",
    "opened": "pooledhttp_connect_duration_seconds_count",
    "closed": "pooledhttp_connections_closed_total",
    "connect_failures": "pooledhttp_connect_failures_total",
    "stale": "pooledhttp_stale_connections_total",
    "drains": "pooledhttp_drains_total",
    "requests": "pooledhttp_requests_total",
    "retries": "pooledhttp_retries_total",
    "retries_refused": "pooledhttp_retries_refused_total",
    "leaked": "pooledhttp_leaked_connections_total",
    "wait": "pooledhttp_acquire_wait_seconds",
    "use": "pooledhttp_connection_use_seconds",
    "connect": "pooledhttp_connect_duration_seconds",
    "request": "pooledhttp_request_duration_seconds",
}


def test_every_number_of_a_pool_is_shown_as_it_is(shop: Shop, registry: CollectorRegistry, clock: Clock) -> None:
    assert SHOWN_AS.keys() | {"name"} == PoolStats.__annotations__.keys()
    pool = shop.pool_to([*ANSWER, ExpectHead(), Close()], maxsize=7)
    for _ in range(2):
        pool.request("GET", "/")
    with pool.connection():
        clock.now += 3
        stats = pool.stats()
        for state, field in (("active", "leased"), ("idle", "idle"), ("opening", "opening")):
            assert number(registry, SHOWN_AS[field], state=state) == getattr(stats, field), field
        for field in ("maxsize", "waiting", "oldest_lease_seconds", "opened", "leaked"):
            assert number(registry, SHOWN_AS[field]) == getattr(stats, field), field
        for field in ("acquires", "stale", "drains", "requests"):
            for outcome, count in getattr(stats, field).items():
                assert number(registry, SHOWN_AS[field], outcome=outcome) == count, (field, outcome)
        for field in ("closed", "connect_failures", "retries", "retries_refused"):
            for reason, count in getattr(stats, field).items():
                assert number(registry, SHOWN_AS[field], reason=reason) == count, (field, reason)
        for field in ("wait", "use", "connect", "request"):
            histogram = getattr(stats, field)
            assert number(registry, f"{SHOWN_AS[field]}_sum") == histogram.sum, field
            assert number(registry, f"{SHOWN_AS[field]}_count") == histogram.count, field
            assert number(registry, f"{SHOWN_AS[field]}_bucket", le="+Inf") == histogram.count, field


def documented() -> dict[str, tuple[str, set[str]]]:
    """Return what the first table of docs/metrics.md says: by name, the type and the further labels."""
    found = {}
    for line in (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `pooledhttp_"):
            label = re.match(r"`(\w+)`", cells[2])
            found[cells[0].strip("`")] = (cells[1], {label[1]} if label else set())
    return found


def test_every_metric_is_documented_and_every_documented_one_exists(shop: Shop, registry: CollectorRegistry) -> None:
    shop.pool_to()
    shown = {}
    for family in registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels}
        shown[name] = (family.type, labels - {"pool", "le"})
    assert shown == documented()


def test_every_value_of_a_label_is_documented(shop: Shop, registry: CollectorRegistry) -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    shop.pool_to()
    values = {
        value
        for family in registry.collect()
        for sample in family.samples
        for label, value in sample.labels.items()
        if label in {"state", "outcome", "reason"}
    }
    assert {value for value in values if f"`{value}`" not in text} == set()
