"""The pool under many threads at once: nothing is lost, nothing is counted twice, nothing goes over the limit.

The peers count for themselves what they accepted, answered and let down, and the pool's counters must tell the same.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import trustme

from pooledhttp import ConnectionPool, PoolClosed, PoolStats, Timeout
from pooledhttp.testing import Disconnected, Peer, ResourceAudit, Respond, ServerFactory
from tests.waits import wait_until

pytestmark = pytest.mark.unmeasured

BOUND = 30.0
PATIENT = Timeout(acquire=BOUND, connect=BOUND, read=BOUND, write=BOUND)
ANSWER = Respond(body=b"hello").encode()
SEED = 20_241_122


class FickleServer:
    """A script that answers, and ends connections at random; it counts what it did.

    The faults come after an answer, so every request that is lost had a used connection:

    ``idle FIN``: end the stream at once; the request that crosses the FIN, if one does, is read and left unanswered.
    ``idle RST``: reset at once; whether a request crossed the reset, nobody can tell.
    ``FIN``, ``RST``: read the next request whole, and end or reset the connection instead of answering it.
    """

    def __init__(self, *faults: str, one_in: int = 25) -> None:
        self._faults = faults
        self._one_in = one_in
        # Guards the counts.
        self._lock = threading.Lock()
        self.answered = 0
        self.unanswered = 0
        self.ended: Counter[str] = Counter()

    def __call__(self, peer: Peer) -> None:
        draw = random.Random(SEED + peer.index)
        answered, unanswered, fault = 0, 0, "client"
        try:
            while True:
                peer.read_request()
                if fault in {"FIN", "RST"}:
                    unanswered += 1
                    break
                answered += 1
                peer.send(ANSWER)
                if draw.randrange(self._one_in) == 0:
                    fault = draw.choice(self._faults)
                if fault.startswith("idle"):
                    break
        except Disconnected:
            fault = "client"
        finally:
            if fault == "FIN":
                peer.close()
            elif fault == "idle FIN":
                # Not half_close(): behind a close_notify, TLS would not let us read what crosses it.
                socket.socket.shutdown(peer.sock, socket.SHUT_WR)
                unanswered += peer.read_to_end().count(b"\r\n\r\n")
            with self._lock:
                self.answered += answered
                self.unanswered += unanswered
                self.ended[fault] += 1
            if fault.endswith("RST"):
                peer.reset()


@contextlib.contextmanager
def sampled(pool: ConnectionPool, *, looks: int = 10) -> Iterator[None]:
    """Look at the pool's numbers all the while, at least so often, and check what must hold at each look."""
    over = threading.Event()
    broken: list[PoolStats] = []

    def sample() -> None:
        for look in itertools.count():
            if over.wait(0.001) and look >= looks:
                return
            stats = pool.stats()
            in_all = stats.idle + stats.leased + stats.opening
            if in_all > stats.maxsize or stats.opened > sum(stats.closed.values()) + stats.idle + stats.leased:
                broken.append(stats)

    with ThreadPoolExecutor(1) as executor:
        sampling = executor.submit(sample)
        try:
            yield
        finally:
            over.set()
        sampling.result(BOUND)
    assert broken == []


def run_together(count: int, work: Callable[[int], int]) -> int:
    """Run some work in many threads that start together; return the sum of what they give."""
    together = threading.Barrier(count)

    def start(number: int) -> int:
        together.wait(BOUND)
        return work(number)

    with ThreadPoolExecutor(count) as executor:
        futures = [executor.submit(start, number) for number in range(count)]
        return sum(future.result(BOUND * 2) for future in futures)


def drive(pool: ConnectionPool, *, threads: int, requests: int) -> tuple[int, PoolStats]:
    """Send that many GETs, all of which succeed; return how many were sent again, and the pool's numbers after it."""
    left = iter(range(requests))
    taking = threading.Lock()

    def work(_: int) -> int:
        resends = 0
        while True:
            with taking:
                if next(left, None) is None:
                    return resends
            response = pool.request("GET", "/v1/orders/7")
            assert (response.status, response.data) == (200, b"hello")
            resends += response.resends

    with sampled(pool):
        resends = run_together(threads, work)
    # A dial goes on when its caller was given another connection meanwhile.
    wait_until(lambda: pool.stats().opening == 0)
    return resends, pool.stats()


def check_counts(stats: PoolStats, *, requests: int, resends: int, accepted: int) -> None:
    """Check what must add up whatever the peer did."""
    assert (stats.leased, stats.opening, stats.waiting, stats.leaked) == (0, 0, 0, 0)
    assert {outcome: count for outcome, count in stats.requests.items() if count} == {"2xx": requests}
    assert stats.request.count == requests
    assert {outcome for outcome, count in stats.acquires.items() if count} <= {"opened", "reused"}
    assert sum(stats.acquires.values()) == requests
    assert (stats.stale["retried"], stats.stale["raised"]) == (resends, 0)
    # A lease that was replaced ended, and so did the one that took its place.
    assert stats.use.count == requests + resends
    assert stats.wait.count == requests
    assert stats.opened == stats.connect.count == accepted
    assert stats.opened == sum(stats.closed.values()) + stats.idle
    reasons = {reason for reason, count in stats.closed.items() if count}
    assert reasons <= {"stale_eof", "stale_reset", "stale_assumed"}
    assert sum(stats.connect_failures.values()) == sum(stats.drains.values()) == 0


def test_20000_requests_of_64_threads_all_succeed_on_8_connections_that_die_at_random(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    peer = FickleServer("idle FIN", "idle RST", "FIN", "RST")
    server = scripted_server(default=peer, timeout=BOUND)
    with ConnectionPool(*server.address, maxsize=8, registry=None, timeout=PATIENT) as pool:
        audit.watch(pool)
        resends, stats = drive(pool, threads=64, requests=20_000)
        check_counts(stats, requests=20_000, resends=resends, accepted=server.accepted)
        assert pool.request("GET", "/again").data == b"hello"
    for connection in server.connections:
        assert connection.ended.wait(BOUND)
    assert peer.answered == 20_001
    # What crossed a reset the peer never saw; there is at most one request for each.
    retried = pool.stats().stale["retried"]
    assert peer.unanswered <= retried <= peer.unanswered + peer.ended["idle RST"]
    assert min(peer.ended[fault] for fault in ("idle FIN", "idle RST", "FIN", "RST")) > 10
    assert stats.closed["stale_eof"] > 0
    assert stats.closed["stale_reset"] > 0


def test_requests_sent_again_are_those_that_the_peer_left_unanswered(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    peer = FickleServer("idle FIN", "FIN", "RST", one_in=10)
    server = scripted_server(default=peer, timeout=BOUND)
    with ConnectionPool(*server.address, maxsize=4, registry=None, timeout=PATIENT) as pool:
        audit.watch(pool)
        resends, stats = drive(pool, threads=16, requests=4_000)
        check_counts(stats, requests=4_000, resends=resends, accepted=server.accepted)
        assert pool.request("GET", "/again").data == b"hello"
    for connection in server.connections:
        assert connection.ended.wait(BOUND)
    assert peer.answered == 4_001
    assert peer.unanswered == pool.stats().stale["retried"]
    assert peer.unanswered > 10


def test_16_threads_on_4_tls_connections_that_die_at_random(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    authority = trustme.CA()
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(serving)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    peer = FickleServer("idle FIN", "FIN", "RST")
    server = scripted_server(default=peer, ssl_context=serving, timeout=BOUND)
    with ConnectionPool(
        *server.address, scheme="https", ssl_context=trusting, maxsize=4, registry=None, timeout=PATIENT
    ) as pool:
        audit.watch(pool)
        resends, stats = drive(pool, threads=16, requests=3_000)
        check_counts(stats, requests=3_000, resends=resends, accepted=server.accepted)
        assert pool.request("GET", "/again").data == b"hello"
    for connection in server.connections:
        assert connection.ended.wait(BOUND)
    assert peer.answered == 3_001
    assert peer.unanswered == pool.stats().stale["retried"]


def test_mixed_borrowers_never_share_a_connection(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    """What a connection is asked it answers to the one who asked."""

    def echo(peer: Peer) -> None:
        while True:
            request = peer.read_request()
            peer.send(Respond(body=request.target.encode(), chunked=len(peer.requests) % 2 == 0).encode())

    server = scripted_server(default=echo, timeout=BOUND)
    with ConnectionPool(*server.address, maxsize=3, max_requests=50, registry=None, timeout=PATIENT) as pool:
        audit.watch(pool)

        def work(number: int) -> int:
            for turn in range(60):
                target = f"/{number}/{turn}"
                if turn % 4 == 0:
                    assert pool.request("GET", target).data == target.encode()
                elif turn % 4 == 1:
                    with pool.stream("GET", target) as response:
                        assert b"".join(response) == target.encode()
                elif turn % 4 == 2:
                    with pool.connection() as conn:
                        conn.request("GET", target)
                        assert conn.getresponse().read() == target.encode()
                else:
                    with pool.stream("GET", target):  # left unread
                        pass
                if turn % 20 == 0:
                    pool.prune()
            return 60

        with sampled(pool):
            done = run_together(24, work)
        stats = pool.stats()
        assert stats.drains == {"drained": done // 4, "closed": 0}
        assert sum(stats.requests.values()) == done - done // 4
        assert pool.request("GET", "/again").data == b"/again"
    assert len(server.requests) == done + 1
    assert max(len(connection.requests) for connection in server.connections) <= 50


@pytest.mark.parametrize("round_", range(20))
def test_closing_races_with_acquirers_and_leaves_nothing(
    round_: int, scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    answered: list[None] = []

    def serve(peer: Peer) -> None:
        while True:
            peer.read_request()
            answered.append(None)
            peer.send(ANSWER)

    server = scripted_server(default=serve, timeout=BOUND)
    pool = ConnectionPool(*server.address, maxsize=2, registry=None, timeout=PATIENT)
    audit.watch(pool)

    def work(_: int) -> int:
        done = 0
        while True:
            try:
                assert pool.request("GET", "/").data == b"hello"
            except PoolClosed:
                return done
            done += 1

    def close() -> None:
        server.wait_until(lambda: len(answered) >= round_ * 3, BOUND)
        pool.close()

    with sampled(pool), ThreadPoolExecutor(1) as closer:
        closing = closer.submit(close)
        done = run_together(8, work)
        closing.result(BOUND)
    stats = pool.stats()
    assert done == len(answered) == stats.requests["2xx"]
    assert stats.requests["error"] == stats.acquires["rejected"] == 8
    assert (stats.idle, stats.leased, stats.opening, stats.waiting) == (0, 0, 0, 0)
    assert stats.opened == sum(stats.closed.values()) == stats.closed["pool_closed"]
    with ConnectionPool(*server.address, registry=None, timeout=PATIENT) as another:
        assert another.request("GET", "/").data == b"hello"
