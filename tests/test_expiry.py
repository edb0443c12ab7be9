"""When an idle connection is no longer good: age, uses, what the server announces, what the pool has learned.

The rules by themselves first, on entries without sockets, then as a caller meets them, with a peer that closes idle
connections at an age of its own.  Time passes only when a test says so.  The plain limits (`idle_timeout`, `max_age`,
`max_requests`, a ``Keep-Alive`` field) are in test_pool.py; what may be sent again, in test_pool_faults.py.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
from collections.abc import Callable, Iterator
from typing import Any, Protocol, Unpack

import pytest

from pooledhttp import ConnectionPool, HTTPConnection, PoolConfig, PoolManager, ReadTimeout, RemoteDisconnected, Timeout
from pooledhttp.config import PoolOptions
from pooledhttp.expiry import GIVEN_UP, Expiry
from pooledhttp.records import Entry
from pooledhttp.stats import CloseReason
from pooledhttp.testing import (
    Close,
    ExpectHead,
    KeepOpen,
    Repeat,
    Reset,
    ResourceAudit,
    Respond,
    ScriptedServer,
    Send,
    ServerFactory,
)
from pooledhttp.testing.peer import Peer
from tests.waits import wait_until

BOUND = 10.0
PATIENT = Timeout(acquire=BOUND, connect=BOUND, read=BOUND, write=BOUND)
AT_ONCE = Timeout(acquire=0, connect=BOUND, read=BOUND, write=BOUND)
ANSWER = [ExpectHead(), Respond(body=b"hello")]
ANSWERS = [Repeat(ANSWER)]
EOF_SEEN = CloseReason.STALE_EOF


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


class PoolMaker(Protocol):
    def __call__(self, server: ScriptedServer, **options: Unpack[PoolOptions]) -> ConnectionPool: ...


@pytest.fixture
def make_pool(scripted_server: ServerFactory, audit: ResourceAudit, clock: Clock) -> Iterator[PoolMaker]:
    """Make pools that are closed when the test is over, and whose counters the audit then adds up."""
    with contextlib.ExitStack() as stack:

        def make(server: ScriptedServer, **options: Unpack[PoolOptions]) -> ConnectionPool:
            settings: PoolOptions = {"registry": None, "timeout": PATIENT, "max_age": None, "clock": clock, **options}
            pool = stack.enter_context(ConnectionPool(*server.address, config=PoolConfig(**settings)))
            audit.watch(pool)
            return pool

        yield make


def counted(counts: Any) -> dict[str, int]:
    """Return counters without the zeros."""
    return {key: count for key, count in counts.items() if count}


def exchange(conn: HTTPConnection) -> None:
    conn.request("GET", "/")
    assert conn.getresponse().read() == b"hello"


def finish(pool: ConnectionPool) -> None:
    """One normal request, without waiting for a slot: whatever happened before has left the pool in order."""
    assert pool.request("GET", "/again", timeout=AT_ONCE).data == b"hello"


def fill(pool: ConnectionPool, clock: Clock, *ages: float) -> list[HTTPConnection]:
    """Leave connections idle for so many seconds, the coldest first."""
    conns = [pool.acquire() for _ in ages]
    for conn in conns:
        exchange(conn)
    for conn, age, younger in zip(conns, ages, [*ages[1:], 0.0], strict=True):
        pool.release(conn)
        clock.now += age - younger
    return conns


# --- the rules by themselves ------------------------------------------------------------------------------------------


def expiry(**options: Unpack[PoolOptions]) -> Expiry:
    return Expiry(PoolConfig(**options))


def entry_of(conn: HTTPConnection, *, expires_at: float = float("inf"), idle_limit: float = 60.0) -> Entry:
    return Entry(conn, [], 1000.0, expires_at, idle_limit)


@pytest.mark.parametrize(("age", "limit"), [
    (1.0, 0.5), (2.0, 1.5), (4.9, 4.4), (5.0, 4.5), (10.0, 9.0), (30.0, 27.0), (50.0, 45.0),
])  # fmt: skip
def test_age_at_which_the_server_closes_is_taken_a_tenth_earlier_and_half_a_second_at_least(
    age: float, limit: float
) -> None:
    learning = expiry(idle_timeout=60)
    assert learning.learn(EOF_SEEN, age, 1000.0)
    assert learning.idle_limit == pytest.approx(limit)


def test_age_below_a_second_is_no_age_at_which_anybody_closes() -> None:
    learning = expiry(idle_timeout=60)
    for age in (-1.0, 0.0, 0.5, 0.999):
        assert not learning.learn(EOF_SEEN, age, 1000.0)
    assert learning.idle_limit == 60


def test_lowest_age_that_was_seen_holds() -> None:
    learning = expiry(idle_timeout=60)
    assert learning.learn(EOF_SEEN, 30.0, 1000.0)
    assert not learning.learn(EOF_SEEN, 40.0, 1001.0)
    assert learning.idle_limit == 27
    assert learning.learn(EOF_SEEN, 20.0, 1002.0)
    assert learning.idle_limit == 18


def test_age_beyond_our_own_limit_teaches_nothing() -> None:
    learning = expiry(idle_timeout=10)
    assert not learning.learn(EOF_SEEN, 12.0, 1000.0)
    assert learning.idle_limit == 10


def test_age_is_learned_where_there_is_no_limit_of_ours() -> None:
    learning = expiry(idle_timeout=None)
    assert learning.learn(EOF_SEEN, 1000.0, 1000.0)
    assert learning.idle_limit == 900


@pytest.mark.parametrize("reason", list(CloseReason))
def test_only_a_peer_that_gave_the_connection_up_teaches_anything(reason: CloseReason) -> None:
    learning = expiry(idle_timeout=60)
    is_learned = reason.value in {"stale_eof", "stale_reset", "stale_408"}
    assert learning.learn(reason, 30.0, 1000.0) is is_learned
    assert (reason in GIVEN_UP) is is_learned


def test_what_was_learned_is_forgotten_after_ten_minutes() -> None:
    learning = expiry(idle_timeout=60)
    learning.learn(EOF_SEEN, 30.0, 1000.0)
    learning.forget(1600.0)
    assert learning.idle_limit == 27
    learning.forget(1600.1)
    assert learning.idle_limit == 60
    assert learning.learn(EOF_SEEN, 40.0, 1601.0)  # and may be learned again
    learning.forget(2200.0)
    assert learning.idle_limit == 36


@pytest.mark.parametrize(("chance", "expires_at"), [(0.0, 1300.0), (0.5, 1285.0), (1.0, 1270.0)])
def test_age_ends_up_to_a_tenth_earlier_and_never_later(
    chance: float, expires_at: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "random", lambda: chance)
    assert expiry(max_age=300).expires_at(1000.0) == pytest.approx(expires_at)


def test_ages_are_spread_over_that_tenth() -> None:
    ends = [expiry(max_age=100).expires_at(0.0) for _ in range(1000)]
    assert 90 <= min(ends) < 91
    assert 99 < max(ends) <= 100
    assert expiry(max_age=None).expires_at(0.0) == float("inf")


def test_idle_connection_is_good_until_the_earlier_of_its_limits() -> None:
    conn = HTTPConnection("o.test")
    assert Expiry.good_until(entry_of(conn, idle_limit=60), 1000.0) == 1060
    assert Expiry.good_until(entry_of(conn, expires_at=1030, idle_limit=60), 1000.0) == 1030
    assert Expiry.why_expired(entry_of(conn, expires_at=1030), 1030.0) is CloseReason.MAX_AGE
    assert Expiry.why_expired(entry_of(conn, expires_at=1031), 1030.0) is CloseReason.IDLE


# --- what the server announces ----------------------------------------------------------------------------------------


def announcing(factory: ServerFactory, *hints: str | None) -> ScriptedServer:
    """A server whose answers on each connection carry these Keep-Alive fields, one after the other."""
    steps: list[Callable[[Peer], None]] = []
    for hint in hints:
        fields = [] if hint is None else [("Keep-Alive", hint)]
        steps += [ExpectHead(optional=True), Respond(body=b"hello", headers=fields)]
    return factory(default=[*steps, KeepOpen()])


@pytest.mark.parametrize(("hints", "kept_for"), [
    (["timeout=5"], 4), (["timeout=2"], 1), (["timeout=61"], 60), (["timeout=1.5"], 60), (["TimeOut=5"], 4),
    ([None, "timeout=5"], 4),  # it may begin later
    (["timeout=5", "timeout=10"], 9),  # the newest holds
    (["timeout=5", None], 4),  # and goes on to hold
])  # fmt: skip
def test_announced_idle_time_is_taken_a_second_earlier(
    hints: list[str | None], kept_for: float, scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock
) -> None:
    pool = make_pool(announcing(scripted_server, *hints), idle_timeout=60)
    for _ in hints:
        finish(pool)
    clock.now += kept_for - 0.01
    assert pool.prune() == 0
    clock.now += 0.01
    assert pool.prune() == 1
    assert counted(pool.stats().closed) == {"idle": 1}
    finish(pool)


@pytest.mark.parametrize(("hint", "reason"), [
    ("timeout=1", "idle"), ("timeout=0, max=100", "idle"), ("max=0", "max_requests"),
    ("timeout=60, max=0", "max_requests"),
])  # fmt: skip
def test_connection_without_headroom_is_not_pooled_and_not_handed_to_a_waiter(
    hint: str, reason: str, scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    server = announcing(scripted_server, hint)
    pool = make_pool(server, maxsize=1)
    conn = pool.acquire()
    exchange(conn)
    pool.release(conn)
    stats = pool.stats()
    assert (stats.idle, counted(stats.closed)) == (0, {reason: 1})
    finish(pool)
    assert server.accepted == 2


def test_last_request_that_the_server_grants_is_used(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    server = announcing(scripted_server, "timeout=60, max=2", "timeout=60, max=1", "timeout=60, max=0")
    pool = make_pool(server)
    for _ in range(4):
        finish(pool)
    assert [len(peer.requests) for peer in server.connections] == [3, 1]
    assert counted(pool.stats().closed) == {"max_requests": 1}


def test_announced_and_learned_time_hold_together(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock
) -> None:
    """The lesser of the two, whichever came first."""
    server = announcing(scripted_server, *itertools.repeat("timeout=20", 9))
    pool = make_pool(server, idle_timeout=60)
    finish(pool)
    with pool._lock:
        pool._expiry.learn(EOF_SEEN, 10.0, clock.now)
    finish(pool)
    clock.now += 8.9
    assert pool.prune() == 0
    clock.now += 0.1
    assert pool.prune() == 1
    finish(pool)


# --- what the pool learns ---------------------------------------------------------------------------------------------


class Mayfly:
    """A server that ends what has been idle for too long, by the test's own clock, and announces nothing.

    Args:
        factory: Makes the server.
        clock: The same as the pool's.
        age: At how many seconds it ends them.
    """

    def __init__(self, factory: ServerFactory, clock: Clock, *, age: float) -> None:
        self._clock = clock
        self._age = age
        self._idle_since: dict[int, float] = {}
        self._ended: set[int] = set()
        self.server = factory(default=self._serve)

    def _serve(self, peer: Peer) -> None:
        while True:
            peer.read_request()
            self._idle_since[peer.index] = self._clock.now
            peer.send(Respond(body=b"hello").encode())

    def wait(self, seconds: float) -> None:
        """Let time pass, and end what has been idle for too long by then."""
        self._clock.now += seconds
        for index, since in self._idle_since.items():
            if self._clock.now - since >= self._age and index not in self._ended:
                self._ended.add(index)
                self.server.connections[index].half_close()


def test_pool_learns_how_long_its_server_bears_idle_connections(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock
) -> None:
    peer = Mayfly(scripted_server, clock, age=10)
    pool = make_pool(peer.server, idle_timeout=60)
    finish(pool)
    peer.wait(12)
    finish(pool)  # found dead at 12: from now on no longer than 10.8
    peer.wait(10.5)
    finish(pool)  # found dead at 10.5: no longer than 9.45
    assert counted(pool.stats().closed) == {"stale_eof": 2}
    for _ in range(3):
        peer.wait(9.5)
        finish(pool)  # not even tried
    assert counted(pool.stats().closed) == {"stale_eof": 2, "idle": 3}
    for _ in range(3):
        peer.wait(9.4)
        finish(pool)  # good
    assert peer.server.accepted == 6
    assert counted(pool.stats().closed) == {"stale_eof": 2, "idle": 3}


def test_what_the_pool_has_learned_is_tried_anew_after_ten_minutes(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock
) -> None:
    peer = Mayfly(scripted_server, clock, age=10)
    pool = make_pool(peer.server, idle_timeout=60)
    finish(pool)
    peer.wait(20)
    finish(pool)  # no longer than 18
    peer.wait(590)
    finish(pool)
    peer.wait(19)
    finish(pool)  # which has let ten minutes pass, and opens a connection
    assert counted(pool.stats().closed) == {"stale_eof": 1, "idle": 2}
    peer.wait(30)
    finish(pool)
    assert counted(pool.stats().closed) == {"stale_eof": 2, "idle": 2}


def test_death_within_a_second_is_a_restart_and_teaches_nothing(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock
) -> None:
    peer = Mayfly(scripted_server, clock, age=0.5)
    pool = make_pool(peer.server, idle_timeout=60)
    finish(pool)
    peer.wait(0.9)
    finish(pool)
    assert counted(pool.stats().closed) == {"stale_eof": 1}
    clock.now += 59
    assert pool.prune() == 0
    finish(pool)


resetting_on_use: list[Callable[[Peer], None]] = [*ANSWER, ExpectHead(), Reset()]
closing_on_use: list[Callable[[Peer], None]] = [*ANSWER, ExpectHead(), Close()]
timing_out_on_use: list[Callable[[Peer], None]] = [*ANSWER, ExpectHead(), Respond(status=408, close=True)]


@pytest.mark.parametrize(("script", "is_resent"), [
    (resetting_on_use, True), (closing_on_use, True), (timing_out_on_use, True),
    (resetting_on_use, False), (closing_on_use, False),
])  # fmt: skip
def test_death_that_shows_on_use_teaches_as_much_as_one_that_the_probe_finds(
    script: list[Callable[[Peer], None]], is_resent: bool, scripted_server: ServerFactory, make_pool: PoolMaker,
    clock: Clock,
) -> None:  # fmt: skip
    pool = make_pool(scripted_server(script, default=ANSWERS), idle_timeout=60, resend_stale=is_resent)
    finish(pool)
    clock.now += 30
    died = contextlib.nullcontext() if is_resent else pytest.raises((RemoteDisconnected, ConnectionResetError))
    with died:
        finish(pool)
    finish(pool)
    clock.now += 26.9
    assert pool.prune() == 0
    clock.now += 0.1
    assert pool.prune() == 1
    finish(pool)


def test_what_is_learned_holds_for_those_that_are_idle_already(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock
) -> None:
    peer = Mayfly(scripted_server, clock, age=1e9)
    pool = make_pool(peer.server, idle_timeout=60)
    older, younger = fill(pool, clock, 20, 10)
    sock = younger.sock
    peer.server.connections[1].half_close()
    wait_until(lambda: sock.recv(1, socket.MSG_PEEK) == b"")
    finish(pool)  # the younger one is found dead at 10, so the older is past its limit
    assert counted(pool.stats().closed) == {"stale_eof": 1, "idle": 1}
    assert older.sock is None
    assert peer.server.accepted == 3


def test_lease_in_use_gets_the_limit_that_was_learned_meanwhile(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock
) -> None:
    peer = Mayfly(scripted_server, clock, age=1e9)
    pool = make_pool(peer.server, idle_timeout=60)
    with pool.connection():
        finish(pool)
        clock.now += 10
        peer.server.connections[1].half_close()
        finish(pool)
    clock.now += 8.9
    assert pool.prune() == 0
    clock.now += 0.1
    assert pool.prune() == 2
    finish(pool)


def test_pruning_does_not_make_idle_connections_younger(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), idle_timeout=60)
    finish(pool)
    for _ in range(5):
        clock.now += 11
        assert pool.prune() == 0
    clock.now += 5
    assert pool.prune() == 1
    finish(pool)


def test_pruning_does_not_make_idle_connections_younger_where_there_is_a_total(
    scripted_server: ServerFactory, clock: Clock, audit: ResourceAudit
) -> None:
    server = announcing(scripted_server, *itertools.repeat("timeout=20", 3))
    with PoolManager(max_total=5, registry=None, timeout=PATIENT, clock=clock, max_age=None) as manager:
        assert manager.request("GET", server.url).data == b"hello"
        clock.now += 18
        assert manager.prune() == 0
        clock.now += 1
        assert manager.prune() == 1
        finish(manager.pool(server.url))
        audit.watch(manager.pool(server.url))


# --- the first stale hit ----------------------------------------------------------------------------------------------


def test_first_stale_hit_on_use_clears_the_older_ones_though_nothing_is_sent_again(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock
) -> None:
    server = scripted_server(ANSWERS, ANSWERS, [*ANSWER, ExpectHead(), Close()], default=ANSWERS)
    pool = make_pool(server, resend_stale=False)
    fill(pool, clock, 3, 2, 1)
    with pytest.raises(RemoteDisconnected):
        pool.request("GET", "/")
    stats = pool.stats()
    assert (stats.idle, counted(stats.stale)) == (0, {"raised": 1})
    assert counted(stats.closed) == {"stale_eof": 1, "stale_assumed": 2}
    finish(pool)
    assert [len(peer.requests) for peer in server.connections] == [1, 1, 2, 1]


def test_first_stale_hit_on_use_leaves_those_alone_that_came_back_later(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock
) -> None:
    server = scripted_server(ANSWERS, [*ANSWER, ExpectHead(), Close()], default=ANSWERS)
    pool = make_pool(server)
    older, dying, younger = (pool.acquire() for _ in range(3))
    for conn in (older, dying):
        exchange(conn)
        pool.release(conn)
        clock.now += 1
    lent = pool.acquire()
    assert lent is dying
    lent.request("GET", "/")
    pool.release(younger)  # while the dying one is in use
    with contextlib.suppress(RemoteDisconnected):
        lent.getresponse()
    pool.release(lent)
    assert pool.stats().idle == 2  # by hand, nobody knows what it was for
    finish(pool)


@pytest.mark.parametrize(("seconds", "left"), [(4.9, 2), (5.0, 0)])
def test_silence_after_a_long_idle_time_clears_the_older_ones(
    seconds: float, left: int, scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock
) -> None:
    """A gateway that forgot the connection says nothing; after a short idle time it is just a slow server."""
    server = scripted_server(ANSWERS, ANSWERS, [*ANSWER, ExpectHead(), KeepOpen()], default=ANSWERS)
    pool = make_pool(server)
    fill(pool, clock, seconds + 2, seconds + 1, seconds)
    with pytest.raises(ReadTimeout):
        pool.request("GET", "/", timeout=Timeout(read=0.05))
    stats = pool.stats()
    assert stats.idle == left
    assert counted(stats.closed) == {"timeout": 1} | ({} if left else {"stale_assumed": 2})
    finish(pool)


def test_silence_of_a_fresh_connection_clears_nothing(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock
) -> None:
    server = scripted_server(ANSWERS, [ExpectHead(), KeepOpen()], default=ANSWERS)
    pool = make_pool(server)
    with pool.connection() as conn:
        exchange(conn)
        with pytest.raises(ReadTimeout):
            pool.request("GET", "/", timeout=Timeout(read=0.05))
        clock.now += 6
    assert counted(pool.stats().closed) == {"timeout": 1}
    finish(pool)
    assert server.accepted == 2


def test_silence_in_the_middle_of_an_answer_clears_nothing(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock
) -> None:
    server = scripted_server(ANSWERS, [*ANSWER, ExpectHead(), Send(b"HTTP/1.1 200 OK\r\nCo"), KeepOpen()],
                             default=ANSWERS)  # fmt: skip
    pool = make_pool(server)
    fill(pool, clock, 7, 6)
    with pytest.raises(ReadTimeout):
        pool.request("GET", "/", timeout=Timeout(read=0.05))
    assert counted(pool.stats().closed) == {"timeout": 1}
    assert pool.stats().idle == 1
    finish(pool)
