"""Many threads on few connections: nobody is overtaken, nobody starves, nothing is swallowed; and a call ends on time.

These are the two claims of the pool that cannot be proved without looking at a clock.  The wait of 200 threads for 10
connections is a *ratio*, the longest waits (the 99th percentile) against the usual one: a queue without order has waits
like a lottery's, many times the median.  And a total deadline ends a call within a tenth of a second, although bytes
keep coming: a machine may be busy at that very moment, so there are several attempts, but whoever looked only when a
byte arrives would be late in each of them.

The longest takes 20 seconds.  POOLEDHTTP_LOOP_SECONDS chooses another length, and the figures are logged:

    POOLEDHTTP_LOOP_SECONDS=60 python -m pytest --timeout 300 --log-cli-level info tests/test_contention.py
"""

from __future__ import annotations

import bisect
import logging
import os
import random
import ssl
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import trustme

from pooledhttp import AcquireTimeout, ConnectionPool, PoolStats, Timeout, TotalTimeout
from pooledhttp.stats import HistogramStats
from pooledhttp.testing import (
    ExpectHead,
    Repeat,
    ResourceAudit,
    Respond,
    ScriptedServer,
    Send,
    ServerFactory,
    Stall,
    Trickle,
)

pytestmark = pytest.mark.unmeasured

log = logging.getLogger(__name__)

BOUND = 20.0
SECONDS = float(os.environ.get("POOLEDHTTP_LOOP_SECONDS", "20"))
PATIENT = Timeout(acquire=BOUND, connect=BOUND, read=BOUND, write=BOUND)
HELLO = Respond(body=b"hello")
SEED = 20_261_123

CONNECTIONS = 10
PATIENT_THREADS = 180
IMPATIENT_THREADS = 20
# How long the impatient ones wait, in seconds: at times not at all, else up to somewhat longer than the queue lasts.
SHORTEST, LONGEST = 0.0001, 0.3
# How long the server thinks about each request, in seconds: waits are to consist of that, and not of how interpreter
# and machine share themselves out among so many threads, which goes in leaps of its own.
THINKING = 0.01


# --- 200 threads on 10 connections ------------------------------------------------------------------------------------


@dataclass
class Diary:
    """What one thread saw; its own until it is joined."""

    waits: list[tuple[float, float]] = field(default_factory=list)  # when it ended, and how long it was, in seconds
    in_vain: int = 0
    at_once: int = 0  # of these, who may not wait at all


@dataclass
class Crowd:
    """What all of them saw."""

    patient: list[Diary]
    impatient: list[Diary]
    samples: int
    broken: list[PoolStats]
    stats: PoolStats

    @property
    def waits(self) -> list[float]:
        """The waits of those who waited as long as it took, the shortest first."""
        return sorted(wait for diary in self.patient for _, wait in diary.waits)

    @property
    def ratio(self) -> float:
        """The 99th percentile of the waits against their median."""
        return ratio_of(self.waits)

    @property
    def ratio_in_turns(self) -> float:
        """The same, where a wait is measured by how many others had their turn meanwhile: no matter how quickly."""
        turns = sorted(ended for diary in self.patient + self.impatient for ended, _ in diary.waits)
        return ratio_of(
            sorted(
                bisect.bisect_left(turns, ended) - bisect.bisect_right(turns, ended - wait)
                for diary in self.patient
                for ended, wait in diary.waits
            )
        )

    def report(self) -> str:
        waits = self.waits
        leases = sorted(len(diary.waits) for diary in self.patient)
        in_ms = [1000 * waits[at] for at in (len(waits) // 2, len(waits) * 99 // 100, -1)]
        pools_own = [1000 * self.stats.wait.quantile(quantile) for quantile in (0.5, 0.99)]
        served, in_vain = (
            sum(len(diary.waits) for diary in self.impatient),
            sum(diary.in_vain for diary in self.impatient),
        )
        return "\n".join([
            f"{len(waits)} patient waits: p50 {in_ms[0]:.1f} ms, p99 {in_ms[1]:.1f}, longest {in_ms[2]:.1f}",
            f"p99/p50 {self.ratio:.2f}, in turns {self.ratio_in_turns:.2f}",
            f"by the pool's histogram p50 {pools_own[0]:.1f} ms, p99 {pools_own[1]:.1f}",
            f"leases per patient thread {leases[0]} to {leases[-1]}; impatient: {served} served, {in_vain} in vain",
            f"{self.samples} samples",
        ])  # fmt: skip


def ratio_of(values: Sequence[float]) -> float:
    return values[len(values) * 99 // 100] / statistics.median(values)


def crowd_on(pool: ConnectionPool, seconds: float, *, longest: float = LONGEST) -> Crowd:
    """Let 200 threads lend, use and give back connections for some seconds; impatient ones wait `longest` at most."""
    # All of them are open from the start: this is about waiting.
    for conn in [pool.acquire() for _ in range(CONNECTIONS)]:
        pool.release(conn)
    over = threading.Event()
    together = threading.Barrier(PATIENT_THREADS + IMPATIENT_THREADS + 1)

    def use(limit: Callable[[], Timeout | float]) -> Diary:
        diary = Diary()
        together.wait(BOUND)
        while not over.is_set():
            timeout = limit()
            began = time.perf_counter()
            try:
                conn = pool.acquire(timeout)
            except AcquireTimeout:
                diary.in_vain += 1
                diary.at_once += timeout == 0
                continue
            ended = time.perf_counter()
            diary.waits.append((ended, ended - began))
            try:
                conn.request("GET", "/")
                assert conn.getresponse().read() == b"hello"
            finally:
                pool.release(conn)
        return diary

    def draw(number: int) -> Callable[[], float]:
        dice = random.Random(SEED + number)
        return lambda: 0.0 if dice.randrange(10) == 0 else dice.uniform(SHORTEST, longest)

    broken: list[PoolStats] = []
    samples = 0
    with ThreadPoolExecutor(PATIENT_THREADS + IMPATIENT_THREADS) as executor:
        patient = [executor.submit(use, lambda: PATIENT) for _ in range(PATIENT_THREADS)]
        impatient = [executor.submit(use, draw(number)) for number in range(IMPATIENT_THREADS)]
        try:
            together.wait(BOUND)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                stats = pool.stats()
                samples += 1
                is_over = stats.leased + stats.idle + stats.opening > stats.maxsize
                # While anybody waits, whatever is free is his.
                if is_over or (stats.waiting and stats.leased + stats.opening < stats.maxsize):
                    broken.append(stats)
                over.wait(0.005)
        finally:
            over.set()
        diaries = [future.result(BOUND * 2) for future in patient + impatient]
    return Crowd(diaries[:PATIENT_THREADS], diaries[PATIENT_THREADS:], samples, broken, pool.stats())


def count_up_to(waits: list[float], bound: float) -> int:
    return sum(1 for wait in waits if wait <= bound)


def cumulated(histogram: HistogramStats) -> Iterator[tuple[float, int]]:
    seen = 0
    for bound, count in zip(histogram.bounds, histogram.counts, strict=False):
        seen += count
        yield bound, seen


def check_crowd(crowd: Crowd) -> None:
    """Check all that must hold at every attempt, however busy the machine is."""
    stats = crowd.stats
    assert crowd.broken == []
    assert crowd.samples > 10
    # No waiter that gave up has swallowed a connection: all of them are there, none had to be opened anew.
    assert (stats.idle, stats.leased, stats.opening, stats.waiting) == (CONNECTIONS, 0, 0, 0)
    assert stats.opened == CONNECTIONS
    assert sum(stats.closed.values()) == 0
    in_vain = sum(diary.in_vain for diary in crowd.impatient)
    succeeded = [wait for diary in crowd.patient + crowd.impatient for _, wait in diary.waits]
    assert sum(diary.in_vain for diary in crowd.patient) == 0
    assert in_vain > 0
    assert any(diary.waits for diary in crowd.impatient)
    assert stats.acquires["timeout"] == in_vain
    assert stats.acquires["opened"] == CONNECTIONS
    assert stats.acquires["reused"] == len(succeeded)
    assert stats.use.count == CONNECTIONS + len(succeeded)
    at_once = sum(diary.at_once for diary in crowd.impatient)
    assert stats.wait.count == stats.use.count + in_vain - at_once
    # The pool's own measure ends when the connection is handed over, ours when its thread runs again: bucket by bucket
    # the pool has at least as many waits of up to that length.
    for bound, count in cumulated(stats.wait):
        assert count >= count_up_to(succeeded, bound)
    # In order: how quickly the machine gets on at a moment does not matter to that.
    assert crowd.ratio_in_turns <= 2
    # Nobody starves: in a queue each has his turn before anybody has his next.
    leases = [len(diary.waits) for diary in crowd.patient]
    assert min(leases) >= statistics.median(leases) * 0.8


def test_200_threads_wait_in_order_for_10_connections(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    thoughtful = [Repeat([ExpectHead(), Stall(seconds=THINKING), HELLO])]
    server = scripted_server(default=thoughtful, timeout=BOUND + SECONDS)
    ratios = []
    for _ in range(2):  # a machine that was busy with something else for a moment gets one more attempt
        with ConnectionPool(*server.address, maxsize=CONNECTIONS, registry=None, timeout=PATIENT) as pool:
            audit.watch(pool)
            crowd = crowd_on(pool, SECONDS)
            log.info(crowd.report())
            check_crowd(crowd)
            assert pool.request("GET", "/again", timeout=BOUND).data == b"hello"
        ratios.append(crowd.ratio)
        if crowd.ratio <= 3:
            return
    pytest.fail(f"the 99th percentile of the waits is {ratios} times their median, not at most 3 times")


def test_200_threads_in_a_hurry_lose_no_connection_and_overtake_nobody(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    """Several times as many leases a second, and all the time waiters give up just when it is their turn."""
    server = scripted_server(default=[Repeat([ExpectHead(), HELLO])], timeout=BOUND + SECONDS)
    with ConnectionPool(*server.address, maxsize=CONNECTIONS, registry=None, timeout=PATIENT) as pool:
        audit.watch(pool)
        crowd = crowd_on(pool, SECONDS / 4, longest=LONGEST / 4)
        log.info(crowd.report())
        check_crowd(crowd)
        assert pool.request("GET", "/again", timeout=BOUND).data == b"hello"


# --- a response that trickles -----------------------------------------------------------------------------------------

# Not a multiple of the second between two bytes: whoever looks at the clock only when a byte arrives is late by 0.7 s.
TOTAL = 1.3
LATE = 0.1
TRICKLES = 5


def trickling(server_factory: ServerFactory, context: ssl.SSLContext | None, *, in_head: bool) -> ScriptedServer:
    """Start a server that trickles on every path but ``/again``."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\n"
    odd = [ExpectHead(), Trickle(head, 1.0)] if in_head else [ExpectHead(), Send(head), Trickle(b"x" * 60, 1.0)]
    return server_factory(*[script for _ in range(TRICKLES) for script in (odd, [ExpectHead(), HELLO])],
                          ssl_context=context, timeout=BOUND)  # fmt: skip


def by_request(pool: ConnectionPool) -> None:
    pool.request("GET", "/trickle", timeout=TOTAL)


def by_stream(pool: ConnectionPool) -> None:
    with pool.stream("GET", "/trickle", timeout=TOTAL) as response:
        response.read()


def by_pieces(pool: ConnectionPool) -> None:
    with pool.stream("GET", "/trickle", timeout=TOTAL) as response:
        while response.read(1):
            pass


def by_lent_connection(pool: ConnectionPool) -> None:
    with pool.connection(Timeout(total=TOTAL)) as conn:
        conn.request("GET", "/trickle")
        conn.getresponse().read()


def seconds_until_total_timeout(call: Callable[[ConnectionPool], None], pool: ConnectionPool) -> float:
    began = time.monotonic()
    with pytest.raises(TotalTimeout):
        call(pool)
    return time.monotonic() - began


# The main thread has its time limits by other means than the others; with TLS all have the main thread's.
@pytest.mark.parametrize(("call", "in_head", "scheme", "is_main"), [
    (by_request, False, "http", True),
    (by_request, True, "http", True),
    (by_stream, False, "http", True),
    (by_pieces, False, "http", True),
    (by_lent_connection, False, "http", True),
    (by_request, False, "http", False),
    (by_request, True, "http", False),
    (by_stream, False, "http", False),
    (by_pieces, False, "http", False),
    (by_lent_connection, False, "http", False),
    (by_request, False, "https", False),
    (by_stream, False, "https", True),
    (by_lent_connection, False, "https", False),
])  # fmt: skip
def test_trickling_response_ends_at_its_total(
    call: Callable[[ConnectionPool], None],
    in_head: bool,
    scheme: str,
    is_main: bool,
    scripted_server: ServerFactory,
    audit: ResourceAudit,
) -> None:
    serving, trusting = tls_contexts() if scheme == "https" else (None, None)
    server = trickling(scripted_server, serving, in_head=in_head)
    late: list[float] = []
    with (
        ConnectionPool(
            *server.address, scheme=scheme, ssl_context=trusting, maxsize=1, registry=None, timeout=PATIENT
        ) as pool,
        ThreadPoolExecutor(1) as executor,
    ):
        audit.watch(pool)
        for attempt in range(1, TRICKLES + 1):
            if is_main:
                took = seconds_until_total_timeout(call, pool)
            else:
                took = executor.submit(seconds_until_total_timeout, call, pool).result(BOUND)
            # The slot is free: the only one, and it is not waited for.
            stats = pool.stats()
            assert (stats.idle, stats.leased, stats.opening) == (0, 0, 0)
            assert stats.closed["timeout"] == attempt
            conn = pool.acquire(0)
            conn.request("GET", "/again")
            assert conn.getresponse().read() == b"hello"
            pool.release(conn)
            pool.prune(everything=True)
            late.append(took - TOTAL)
            assert late[-1] >= 0
            if late[-1] <= LATE:
                break
    log.info("late by %s ms", ", ".join(f"{1000 * seconds:.1f}" for seconds in late))
    assert min(late) <= LATE


def tls_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(serving)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return serving, trusting
