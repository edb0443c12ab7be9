"""How many connections there may be: over all origins of a manager, after a change of `maxsize`, and in the process.

`max_total` is one number over pools: never exceeded, at the cost of whatever has been idle longest, and handed on in
the order of arrival over all origins.  `resize` changes a pool's own number while it is at work.  Where the process has
no descriptor left, idle connections of other pools give theirs.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import itertools
import json
import random
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar, Unpack

import pytest

from pooledhttp import (
    AcquireTimeout,
    ConnectionPool,
    HTTPConnection,
    PoolClosed,
    PoolConfig,
    PoolManager,
    SelfDeadlock,
    Timeout,
)
from pooledhttp.config import PoolOptions
from pooledhttp.testing import ExpectHead, Repeat, ResourceAudit, Respond, ScriptedServer, ServerFactory
from pooledhttp.testing.peer import Peer
from pooledhttp.timeouts import Deadline

BOUND = 10.0
PATIENT = Timeout(acquire=BOUND, connect=BOUND, read=BOUND, write=BOUND)
AT_ONCE = Timeout(acquire=0, connect=BOUND, read=BOUND, write=BOUND)
ANSWERS = [Repeat([ExpectHead(), Respond(body=b"hello")])]
ROOT = Path(__file__).parents[1]

T = TypeVar("T")


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


class ManagerMaker(Protocol):
    def __call__(
        self, *, max_total: int | None = None, max_pools: int = 100, **options: Unpack[PoolOptions]
    ) -> PoolManager: ...


@pytest.fixture
def make_manager(scripted_server: ServerFactory, audit: ResourceAudit) -> Iterator[ManagerMaker]:
    """Make managers that are closed when the test is over, and whose numbers add up then."""
    made: list[PoolManager] = []
    with contextlib.ExitStack() as stack:

        def make(*, max_total: int | None = None, max_pools: int = 100, **options: Unpack[PoolOptions]) -> PoolManager:
            settings: PoolOptions = {"registry": None, "timeout": PATIENT, **options}
            manager = PoolManager(max_total=max_total, max_pools=max_pools, config=PoolConfig(**settings))
            made.append(stack.enter_context(manager))
            return manager

        yield make
        for manager in made:
            check_total(manager)
    for manager in made:
        for pool in manager.pools():
            audit.watch(pool)
        assert in_all(manager) == 0


class PoolMaker(Protocol):
    def __call__(self, server: ScriptedServer, **options: Unpack[PoolOptions]) -> ConnectionPool: ...


@pytest.fixture
def make_pool(scripted_server: ServerFactory, audit: ResourceAudit) -> Iterator[PoolMaker]:
    """Make pools that are closed when the test is over, and whose counters the audit then adds up."""
    with contextlib.ExitStack() as stack:

        def make(server: ScriptedServer, **options: Unpack[PoolOptions]) -> ConnectionPool:
            settings: PoolOptions = {"registry": None, "timeout": PATIENT, **options}
            pool = stack.enter_context(ConnectionPool(*server.address, config=PoolConfig(**settings)))
            audit.watch(pool)
            return pool

        yield make


@pytest.fixture
def threads(audit: ResourceAudit) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16, thread_name_prefix="borrower") as executor:
        yield executor


@pytest.fixture
def servers(scripted_server: ServerFactory) -> Callable[[int], list[ScriptedServer]]:
    return lambda count: [scripted_server(default=ANSWERS) for _ in range(count)]


Servers = Callable[[int], list[ScriptedServer]]


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait for something that no event tells, bounded."""
    pause = threading.Event()
    for _ in range(2000):
        if is_so():
            return
        pause.wait(0.005)
    raise AssertionError("it did not become so within 10 s")


def queue_up(threads: ThreadPoolExecutor, pool: ConnectionPool, work: Callable[[], T]) -> Future[T]:
    """Do some work in a thread, and return when it waits for a connection."""
    before = pool.stats().waiting
    future = threads.submit(work)
    wait_until(lambda: pool.stats().waiting == before + 1)
    return future


def counted(counts: Any) -> dict[str, int]:
    """Return counters without the zeros."""
    return {key: count for key, count in counts.items() if count}


def exchange(conn: HTTPConnection) -> None:
    conn.request("GET", "/")
    assert conn.getresponse().read() == b"hello"


def finish(pool: ConnectionPool) -> None:
    """One normal request, without waiting for a slot: whatever happened before has left the pool in order."""
    wait_until(lambda: pool.stats().opening == 0)
    assert pool.request("GET", "/again", timeout=AT_ONCE).data == b"hello"


def in_all(manager: PoolManager) -> int:
    """Return how many connections the pools of a manager have together, at one moment."""
    capacity = manager._capacity
    if capacity is None:
        return sum(stats.idle + stats.leased + stats.opening for stats in manager.stats().values())
    with capacity.lock:
        return sum(pool._size_locked() for pool in capacity.members_locked())


def check_total(manager: PoolManager) -> None:
    """What the manager's capacity has counted is what there is."""
    capacity = manager._capacity
    if capacity is not None:
        with capacity.lock:
            for pool in capacity.members_locked():
                capacity.recount_locked(pool)
            capacity.reap_locked(0.0)
            assert capacity.used == sum(pool._size_locked() for pool in capacity.members_locked()) <= capacity.limit


def hold_dials(pool: ConnectionPool) -> list[threading.Event]:
    """From now on hold up each dial of a pool; return the events that let them begin, the first at its front."""
    held: list[threading.Event] = []
    opener = pool._opener
    open_it = opener.open

    def open_when_told(timeouts: Timeout, deadline: Deadline | None) -> HTTPConnection:
        begin = threading.Event()
        held.append(begin)
        assert begin.wait(BOUND)
        return open_it(timeouts, deadline)

    opener.open = open_when_told  # type: ignore[method-assign]  # a gate in front of it
    return held


def drop(dropped: list[HTTPConnection]) -> None:
    """Let go of lent connections, which each cost one ResourceWarning."""
    count = len(dropped)
    with pytest.warns(ResourceWarning, match="unclosed") as warned:
        collect(dropped)
    assert len(warned) == count


def collect(dropped: list[HTTPConnection]) -> None:
    dropped.clear()
    gc.collect()


# --- max_total: room --------------------------------------------------------------------------------------------------


def test_total_is_never_exceeded_under_threads(scripted_server: ServerFactory, make_manager: ManagerMaker) -> None:
    """8 threads on 3 origins that end a connection now and then, with pruning and resizing in between."""
    rolls = random.Random(7)

    def fickle(peer: Peer) -> None:
        while True:
            peer.read_request()
            is_last = rolls.random() < 0.1
            peer.send(Respond(body=b"hello", close=is_last).encode())
            if is_last:
                return

    urls = [scripted_server(default=fickle).url for _ in range(3)]
    manager = make_manager(max_total=4, maxsize=3)
    together = threading.Barrier(8)
    most: list[int] = []

    def work(number: int) -> int:
        together.wait(BOUND)
        for turn in range(60):
            url = urls[(number + turn) % 3]
            if turn % 3:
                assert manager.request("GET", url).data == b"hello"
            else:
                with manager.connection(url) as conn:
                    exchange(conn)
                    most.append(in_all(manager))
            if turn % 20 == number:
                manager.prune()
                manager.resize(2 + turn % 3)
            most.append(in_all(manager))
        return 60

    with ThreadPoolExecutor(8) as executor:
        assert sum(future.result(BOUND * 3) for future in [executor.submit(work, n) for n in range(8)]) == 480
    wait_until(lambda: all(stats.opening == 0 for stats in manager.stats().values()))
    assert 2 <= max(most) <= 4
    stats = manager.stats()
    assert sum(pool.request.count for pool in stats.values()) == 320
    assert all(pool.waiting == pool.leased == 0 for pool in stats.values())
    check_total(manager)


def test_coldest_idle_connection_of_another_origin_makes_room(
    servers: Servers, make_manager: ManagerMaker, clock: Clock
) -> None:
    urls = [server.url for server in servers(3)]
    manager = make_manager(max_total=3, clock=clock, max_age=None)
    for url in (urls[0], urls[1], urls[1], urls[0]):  # so that the second is the colder one
        manager.request("GET", url)
        clock.now += 1
    with manager.connection(urls[1]):
        manager.request("GET", urls[2])
        clock.now += 1
        with manager.connection(urls[2]), manager.connection(urls[2]):
            pass
    idle = {url: stats.idle for url, stats in manager.stats().items()}
    assert idle == {urls[0]: 0, urls[1]: 1, urls[2]: 2}
    assert {url: counted(stats.closed) for url, stats in manager.stats().items()} == {
        urls[0]: {"evicted": 1}, urls[1]: {}, urls[2]: {},
    }  # fmt: skip
    manager.request("GET", urls[0])
    assert {url: stats.idle for url, stats in manager.stats().items()} == {urls[0]: 1, urls[1]: 1, urls[2]: 1}


def test_own_idle_connection_is_taken_before_another_origins_is_closed(
    servers: Servers, make_manager: ManagerMaker
) -> None:
    one, two = servers(2)
    manager = make_manager(max_total=2)
    for _ in range(3):
        for server in (one, two):
            assert manager.request("GET", server.url).data == b"hello"
    assert (one.accepted, two.accepted) == (1, 1)


def test_idle_connection_that_is_being_probed_still_makes_room_afterwards(
    servers: Servers, make_manager: ManagerMaker, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = servers(2)
    manager = make_manager(max_total=1)
    manager.request("GET", one.url)
    probe = HTTPConnection.staleness
    tried: list[type[BaseException]] = []

    def probe_and_ask(conn: HTTPConnection) -> Any:
        if not tried:
            with pytest.raises(AcquireTimeout) as caught:
                manager.pool(two.url).acquire(AT_ONCE)
            tried.append(caught.type)
        return probe(conn)

    monkeypatch.setattr(HTTPConnection, "staleness", probe_and_ask)
    assert manager.pool(one.url).prune() == 0
    assert tried == [AcquireTimeout]
    assert manager.request("GET", two.url, timeout=AT_ONCE).data == b"hello"
    assert manager.stats()[one.url].idle == 0


def test_prune_gives_what_it_probed_to_whoever_waits_for_another_origin(
    servers: Servers, make_manager: ManagerMaker, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = servers(2)
    manager = make_manager(max_total=2)
    with manager.connection(one.url), manager.connection(one.url):
        pass
    waiters: list[Future[bytes]] = []
    probe = HTTPConnection.staleness

    def probe_slowly(conn: HTTPConnection) -> Any:
        if not waiters:
            waiters.append(queue_up(threads, manager.pool(two.url), lambda: manager.request("GET", two.url).data))
        return probe(conn)

    monkeypatch.setattr(HTTPConnection, "staleness", probe_slowly)
    assert manager.pool(one.url).prune() == 0
    assert waiters[0].result(BOUND) == b"hello"
    assert {url: stats.idle for url, stats in manager.stats().items()} == {one.url: 1, two.url: 1}
    assert counted(manager.stats()[one.url].closed) == {"evicted": 1}


def test_connection_that_another_origin_lost_makes_room(servers: Servers, make_manager: ManagerMaker) -> None:
    one, two = servers(2)
    manager = make_manager(max_total=1)
    drop([manager.pool(one.url).acquire()])
    assert manager.request("GET", two.url, timeout=AT_ONCE).data == b"hello"
    assert manager.stats()[one.url].leaked == 1


def test_thread_that_lost_a_connection_to_another_origin_does_not_wait_for_itself(
    servers: Servers, make_manager: ManagerMaker
) -> None:
    one, two = servers(2)
    manager = make_manager(max_total=2)
    with manager.connection(two.url):
        held = [manager.pool(one.url).acquire()]
        with pytest.raises(SelfDeadlock):
            manager.request("GET", two.url)
        drop(held)
        assert manager.request("GET", two.url).data == b"hello"


def test_waiter_finds_out_by_itself_that_another_origin_lost_a_connection(
    servers: Servers, make_manager: ManagerMaker, threads: ThreadPoolExecutor
) -> None:
    one, two = servers(2)
    manager = make_manager(max_total=1)
    held = [manager.pool(one.url).acquire()]
    waiter = queue_up(threads, manager.pool(two.url), lambda: manager.request("GET", two.url).data)
    drop(held)
    assert waiter.result(BOUND) == b"hello"


def test_pool_that_is_gone_with_its_leases_takes_no_room_for_ever(servers: Servers, make_manager: ManagerMaker) -> None:
    one, two = servers(2)
    manager = make_manager(max_total=1)
    closed = manager.pool(one.url)
    gone = weakref.ref(closed)
    conn = closed.acquire()
    closed.close()
    del closed
    assert not manager.pool(one.url).is_closed  # another has taken its place
    gc.collect()
    assert gone() is None
    assert manager.request("GET", two.url, timeout=AT_ONCE).data == b"hello"
    exchange(conn)
    conn.close()


# --- max_total: turns -------------------------------------------------------------------------------------------------


def test_busy_origin_does_not_starve_a_quiet_one(
    servers: Servers, make_manager: ManagerMaker, threads: ThreadPoolExecutor
) -> None:
    """Those who came before the quiet one are served before it, and nobody else, however often they come again."""
    busy, quiet = servers(2)
    manager = make_manager(max_total=1)
    order: list[str] = []

    def borrow(server: ScriptedServer, name: str, times: int = 1) -> None:
        for _ in range(times):
            with manager.connection(server.url) as conn:
                order.append(name)
                exchange(conn)

    conn = manager.pool(busy.url).acquire()
    callers = [queue_up(threads, manager.pool(busy.url), functools.partial(borrow, busy, "busy", 5)) for _ in range(3)]
    callers.append(queue_up(threads, manager.pool(quiet.url), functools.partial(borrow, quiet, "quiet")))
    callers += [queue_up(threads, manager.pool(busy.url), functools.partial(borrow, busy, "busy", 5)) for _ in range(3)]
    manager.pool(busy.url).release(conn)
    for caller in callers:
        caller.result(BOUND)
    assert len(order) == 31
    assert order.index("quiet") == 3


@pytest.mark.parametrize("comes_back", ["open", "closed"])
def test_turns_are_taken_in_the_order_of_arrival_over_all_origins(
    comes_back: str, servers: Servers, make_manager: ManagerMaker, threads: ThreadPoolExecutor
) -> None:
    one, two, three = servers(3)
    manager = make_manager(max_total=1)
    order: list[int] = []

    def borrow(number: int, server: ScriptedServer) -> None:
        with manager.connection(server.url) as conn:
            order.append(number)
            exchange(conn)
            if comes_back == "closed":
                conn.close()

    conn = manager.pool(one.url).acquire()
    turns = [one, two, two, one, three, two, one, one, three, two]
    callers = [
        queue_up(threads, manager.pool(server.url), functools.partial(borrow, number, server))
        for number, server in enumerate(turns)
    ]
    manager.pool(one.url).release(conn)
    for caller in callers:
        caller.result(BOUND)
    assert order == list(range(10))
    changes = sum(before is not after for before, after in itertools.pairwise([one, *turns]))
    assert sum(server.accepted for server in (one, two, three)) == (1 + changes if comes_back == "open" else 10)


def test_waiter_whose_own_pool_is_full_holds_up_nobody(
    servers: Servers, make_manager: ManagerMaker, threads: ThreadPoolExecutor
) -> None:
    one, two = servers(2)
    manager = make_manager(max_total=2, maxsize=1)
    first, second = manager.pool(one.url).acquire(), manager.pool(two.url).acquire()
    stuck = queue_up(threads, manager.pool(one.url), manager.pool(one.url).acquire)
    next_one = queue_up(threads, manager.pool(two.url), manager.pool(two.url).acquire)
    manager.pool(two.url).release(second)
    assert next_one.result(BOUND) is second  # not closed for one who could not take its place
    manager.pool(two.url).release(second)
    assert manager.request("GET", two.url, timeout=AT_ONCE).data == b"hello"
    assert not stuck.done()
    manager.pool(one.url).release(first)
    assert stuck.result(BOUND) is first
    manager.pool(one.url).release(first)


def test_caller_that_gave_up_waiting_is_passed_over(
    servers: Servers, make_manager: ManagerMaker, threads: ThreadPoolExecutor
) -> None:
    one, two = servers(2)
    manager = make_manager(max_total=1)
    conn = manager.pool(one.url).acquire()
    with pytest.raises(AcquireTimeout):
        manager.request("GET", two.url, timeout=Timeout(acquire=0.02))
    waiter = queue_up(threads, manager.pool(one.url), manager.pool(one.url).acquire)
    manager.pool(one.url).release(conn)
    assert waiter.result(BOUND) is conn
    manager.pool(one.url).release(conn)


def test_those_who_have_gone_do_not_pile_up_behind_one_who_waits_for_long(
    servers: Servers, make_manager: ManagerMaker, threads: ThreadPoolExecutor
) -> None:
    one, two = servers(2)
    manager = make_manager(max_total=2, maxsize=1)
    capacity = manager._capacity
    assert capacity is not None
    first, second = manager.pool(one.url).acquire(), manager.pool(two.url).acquire()
    patient = queue_up(threads, manager.pool(one.url), manager.pool(one.url).acquire)
    for _ in range(500):
        with pytest.raises(AcquireTimeout):
            manager.pool(two.url).acquire(AT_ONCE)
    assert len(capacity._queue) <= 100
    manager.pool(one.url).release(first)
    manager.pool(two.url).release(second)
    manager.pool(one.url).release(patient.result(BOUND))


def test_log_of_idle_connections_does_not_grow_with_their_use(servers: Servers, make_manager: ManagerMaker) -> None:
    (server,) = servers(1)
    manager = make_manager(max_total=2)
    capacity = manager._capacity
    assert capacity is not None
    for _ in range(300):
        manager.request("GET", server.url)
        manager.prune()
    assert len(capacity._idle) <= 2 * 2 + 64 + 1


# --- max_total: in company --------------------------------------------------------------------------------------------


def test_error_and_explain_name_the_total(servers: Servers, make_manager: ManagerMaker) -> None:
    one, two = servers(2)
    manager = make_manager(max_total=2)
    with manager.connection(one.url), manager.connection(one.url), pytest.raises(AcquireTimeout) as caught:
        manager.request("GET", two.url, timeout=AT_ONCE)
    assert str(caught.value) == (
        f"no connection to {two.url} within 0.00 s (0 leased of 10, 0 idle, 0 opening, 0 waiting; 2 of 2 over all "
        f"origins; oldest lease 0.0 s by MainThread, between two requests)"
    )
    assert f"{one.url}: 0 leased of 10, 2 idle, 0 opening, 0 waiting; 2 of 2 over all origins" in manager.explain()


def test_stats_are_each_pools_own_and_keep_within_the_total(servers: Servers, make_manager: ManagerMaker) -> None:
    one, two = servers(2)
    manager = make_manager(max_total=3)
    with manager.connection(one.url), manager.connection(two.url):
        manager.request("GET", two.url)
        stats = manager.stats()
        assert [(pool.idle, pool.leased, pool.maxsize) for pool in stats.values()] == [(0, 1, 10), (1, 1, 10)]
    assert in_all(manager) == 3


def test_closing_a_pool_gives_its_room_to_those_who_wait_for_others(
    servers: Servers, make_manager: ManagerMaker, threads: ThreadPoolExecutor
) -> None:
    one, two = servers(2)
    manager = make_manager(max_total=2)
    first, second = manager.pool(one.url), manager.pool(two.url)
    conn = first.acquire()
    held = hold_dials(first)
    dialling = threads.submit(first.acquire)
    wait_until(lambda: len(held) == 1)
    own = queue_up(threads, first, first.acquire)
    other = queue_up(threads, second, lambda: manager.request("GET", two.url).data)
    first.close()
    for told in (dialling, own):
        with pytest.raises(PoolClosed):
            told.result(BOUND)
    assert not other.done()
    held[0].set()  # what the dial brings is closed, and its room goes to the other origin
    assert other.result(BOUND) == b"hello"
    exchange(conn)
    first.release(conn)
    assert counted(first.stats().closed) == {"pool_closed": 2}
    assert manager.request("GET", one.url, timeout=AT_ONCE).data == b"hello"


def test_lease_that_comes_back_to_a_closed_pool_makes_room_for_others(
    servers: Servers, make_manager: ManagerMaker, threads: ThreadPoolExecutor
) -> None:
    one, two = servers(2)
    manager = make_manager(max_total=1)
    pool = manager.pool(one.url)
    conn = pool.acquire()
    waiter = queue_up(threads, manager.pool(two.url), lambda: manager.request("GET", two.url).data)
    pool.close()
    pool.release(conn)
    assert waiter.result(BOUND) == b"hello"


def test_closing_the_manager_tells_the_waiters_of_every_origin(
    servers: Servers, make_manager: ManagerMaker, threads: ThreadPoolExecutor
) -> None:
    one, two = servers(2)
    manager = make_manager(max_total=1)
    pool = manager.pool(one.url)
    conn = pool.acquire()
    waiters = [queue_up(threads, manager.pool(server.url), manager.pool(server.url).acquire) for server in (one, two)]
    manager.close()
    for waiter in waiters:
        with pytest.raises(PoolClosed):
            waiter.result(BOUND)
    exchange(conn)
    pool.release(conn)


def test_waiters_of_an_origin_keep_its_pool_from_being_closed_as_unused(
    servers: Servers, make_manager: ManagerMaker, threads: ThreadPoolExecutor
) -> None:
    one, two, three = servers(3)
    manager = make_manager(max_total=1, max_pools=1)
    first, second = manager.pool(one.url), None
    conn = first.acquire()
    second = manager.pool(two.url)
    waiter = queue_up(threads, second, second.acquire)
    assert not second.close_if_unused()
    manager.pool(three.url)
    assert not second.is_closed
    first.release(conn)
    second.release(waiter.result(BOUND))
    assert second.close_if_unused()
    assert in_all(manager) == 0


def test_pool_that_is_evicted_leaves_its_room_to_the_others(servers: Servers, make_manager: ManagerMaker) -> None:
    urls = [server.url for server in servers(4)]
    manager = make_manager(max_total=2, max_pools=1)
    for url in urls * 2:
        assert manager.request("GET", url, timeout=AT_ONCE).data == b"hello"
        assert in_all(manager) <= 2
    assert len(manager.pools()) == 1
    check_total(manager)


def test_unused_pool_that_is_closed_makes_room_without_an_eviction(
    servers: Servers, make_manager: ManagerMaker
) -> None:
    one, two = servers(2)
    manager = make_manager(max_total=1)
    manager.request("GET", one.url)
    unused = manager.pool(one.url)
    assert unused.close_if_unused()
    assert manager.request("GET", two.url, timeout=AT_ONCE).data == b"hello"
    assert counted(unused.stats().closed) == {"pool_closed": 1}


def test_larger_pool_takes_only_what_the_total_leaves(
    servers: Servers, make_manager: ManagerMaker, threads: ThreadPoolExecutor
) -> None:
    one, two = servers(2)
    manager = make_manager(max_total=3, maxsize=1)
    pool = manager.pool(one.url)
    conns = [pool.acquire(), manager.pool(two.url).acquire()]
    waiters = [queue_up(threads, pool, pool.acquire) for _ in range(2)]
    manager.resize(5)
    third = waiters[0].result(BOUND)
    assert not waiters[1].done()
    assert in_all(manager) == 3
    manager.pool(two.url).release(conns[1])  # and is closed: nobody waits for that origin
    fourth = waiters[1].result(BOUND)
    for conn in (conns[0], third, fourth):
        pool.release(conn)
    assert in_all(manager) <= 3


def test_smaller_pool_leaves_its_room_to_those_who_wait_for_others(
    servers: Servers, make_manager: ManagerMaker, threads: ThreadPoolExecutor
) -> None:
    one, two = servers(2)
    manager = make_manager(max_total=2)
    pool = manager.pool(one.url)
    conns = [pool.acquire() for _ in range(2)]
    waiter = queue_up(threads, manager.pool(two.url), lambda: manager.request("GET", two.url).data)
    pool.resize(1)
    assert not waiter.done()
    pool.release(conns[0])
    assert waiter.result(BOUND) == b"hello"
    pool.release(conns[1])
    assert counted(pool.stats().closed) == {"evicted": 1}


def by_request(manager: PoolManager, url: str) -> None:
    assert manager.request("GET", url).data == b"hello"


def by_stream(manager: PoolManager, url: str) -> None:
    with manager.stream("GET", url) as response:
        assert response.read() == b"hello"


def by_connection(manager: PoolManager, url: str) -> None:
    with manager.connection(url) as conn:
        exchange(conn)


@pytest.mark.parametrize("ask", [by_request, by_stream, by_connection])
def test_pool_that_takes_the_place_of_an_evicted_one_has_the_size_of_today(
    ask: Callable[[PoolManager, str], None], servers: Servers, make_manager: ManagerMaker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (server,) = servers(1)
    manager = make_manager(maxsize=1)
    pool = manager.pool(server.url)
    manager.resize(3)
    acquire = ConnectionPool._acquire

    def evict_and_acquire(asked: ConnectionPool, *args: Any) -> HTTPConnection:
        pool.close()
        return acquire(asked, *args)

    monkeypatch.setattr(ConnectionPool, "_acquire", evict_and_acquire)
    ask(manager, server.url)
    assert manager.pool(server.url) is not pool
    assert manager.pool(server.url).maxsize == 3


# --- resize -----------------------------------------------------------------------------------------------------------


def test_larger_pool_serves_its_waiters_at_once(
    servers: Servers, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    (server,) = servers(1)
    pool = make_pool(server, maxsize=1)
    conns = [pool.acquire()]
    waiters = [queue_up(threads, pool, pool.acquire) for _ in range(3)]
    pool.resize(3)
    conns += [waiter.result(BOUND) for waiter in waiters[:2]]
    assert not waiters[2].done()
    assert pool.stats().leased == 3
    pool.release(conns.pop())
    conns.append(waiters[2].result(BOUND))
    for conn in conns:
        pool.release(conn)
    assert pool.stats().maxsize == 3
    finish(pool)


def test_smaller_pool_closes_the_coldest_idle_connections_at_once(servers: Servers, make_pool: PoolMaker) -> None:
    (server,) = servers(1)
    pool = make_pool(server, maxsize=4)
    conns = [pool.acquire() for _ in range(4)]
    for conn in conns:
        pool.release(conn)
    pool.resize(2)
    assert [conn.sock is None for conn in conns] == [True, True, False, False]
    stats = pool.stats()
    assert (stats.idle, stats.maxsize, counted(stats.closed)) == (2, 2, {"evicted": 2})
    finish(pool)


def test_smaller_pool_lets_leases_end_and_closes_them_when_they_come_back(
    servers: Servers, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    (server,) = servers(1)
    pool = make_pool(server, maxsize=3)
    conns = [pool.acquire() for _ in range(3)]
    waiter = queue_up(threads, pool, pool.acquire)
    pool.resize(1)
    for number, conn in enumerate(conns):
        exchange(conn)
        assert not waiter.done()
        pool.release(conn)
        assert pool.stats().leased == (2, 1, 1)[number]
    assert waiter.result(BOUND) is conns[2]
    pool.release(conns[2])
    assert counted(pool.stats().closed) == {"evicted": 2}
    finish(pool)


def test_pool_that_is_made_smaller_while_it_is_pruned_keeps_no_more_than_its_new_size(
    servers: Servers, make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    (server,) = servers(1)
    pool = make_pool(server, maxsize=3)
    conns = [pool.acquire() for _ in range(3)]
    for conn in conns:
        pool.release(conn)
    probe = HTTPConnection.staleness

    def probe_and_resize(conn: HTTPConnection) -> Any:
        pool.resize(1)
        return probe(conn)

    monkeypatch.setattr(HTTPConnection, "staleness", probe_and_resize)
    pool.prune()
    stats = pool.stats()
    assert (stats.idle, counted(stats.closed)) == (1, {"evicted": 2})
    finish(pool)


@pytest.mark.parametrize(("wrong", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError), (True, TypeError),
                                              (None, TypeError)])  # fmt: skip
def test_size_that_makes_no_sense_changes_nothing(
    wrong: Any, error: type[Exception], servers: Servers, make_pool: PoolMaker
) -> None:
    (server,) = servers(1)
    pool = make_pool(server, maxsize=3)
    with pytest.raises(error, match="maxsize must be"):
        pool.resize(wrong)
    assert pool.maxsize == 3
    finish(pool)


def test_pool_is_resized_under_threads(servers: Servers, make_pool: PoolMaker) -> None:
    (server,) = servers(1)
    pool = make_pool(server, maxsize=6)
    together = threading.Barrier(7)

    def work() -> int:
        together.wait(BOUND)
        for _ in range(60):
            assert pool.request("GET", "/").data == b"hello"
        return 60

    with ThreadPoolExecutor(6) as executor:
        working = [executor.submit(work) for _ in range(6)]
        together.wait(BOUND)
        most = 0
        for turn in range(200):
            pool.resize(1 + turn * 5 % 6)
            stats = pool.stats()
            most = max(most, stats.idle + stats.leased + stats.opening)
        pool.resize(2)
        assert sum(future.result(BOUND * 2) for future in working) == 360
    wait_until(lambda: pool.stats().opening == 0)
    stats = pool.stats()
    assert most <= 6
    assert (stats.idle + stats.leased <= 2, stats.waiting) == (True, 0)
    assert counted(stats.requests) == {"2xx": 360}
    finish(pool)


# --- no descriptor left -----------------------------------------------------------------------------------------------


OUT_OF_DESCRIPTORS = """
import errno, json, os, resource, sys
from pooledhttp import ConnectionPool, Timeout

timeout = Timeout(acquire=10, connect=10, read=10, write=10)
one, two, three = (ConnectionPool("127.0.0.1", int(port), registry=None, timeout=timeout) for port in sys.argv[1:])
answers = []

def ask(pool):
    try:
        answers.append(pool.request("GET", "/").status)
    except OSError as fault:
        answers.append(errno.errorcode[fault.errno])

for pool in (one, two, three):  # whatever is loaded late is loaded now
    ask(pool)
for pool in (two, three):
    pool.prune(everything=True)
lowest = os.dup(0)
os.close(lowest)
usual = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, usual[1]))
ask(two)          # takes the place of the idle one
lent = two.acquire()
ask(three)        # there is no idle one left
ask(three)        # and the failure has left nothing behind
two.release(lent)
ask(three)        # now there is
resource.setrlimit(resource.RLIMIT_NOFILE, usual)
for pool in (one, two, three):
    ask(pool)
print(json.dumps([answers, [pool.stats().closed["evicted"] for pool in (one, two, three)],
                  [pool.stats().connect_failures["other"] for pool in (one, two, three)],
                  [[pool.stats().leased, pool.stats().opening] for pool in (one, two, three)]]))
"""


def test_idle_connections_of_other_pools_give_their_descriptors(servers: Servers, audit: ResourceAudit) -> None:
    """In a process of its own, whose limit on descriptors is lowered to what it has open."""
    ports = [str(server.port) for server in servers(3)]
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_DESCRIPTORS, *ports], cwd=ROOT, capture_output=True, text=True,
        timeout=BOUND * 3, check=False,
    )  # fmt: skip
    assert (done.stderr, done.returncode) == ("", 0)
    answers, evicted, failed, left = json.loads(done.stdout)
    assert answers == [200, 200, 200, 200, "EMFILE", "EMFILE", 200, 200, 200, 200]
    assert evicted == [1, 2, 1]  # two and three once more: prune(everything=True)
    assert failed == [0, 0, 2]
    assert left == [[0, 0], [0, 0], [0, 0]]


def out_of_files(pool: ConnectionPool, times: int, number: int = errno.ENFILE) -> list[int]:
    """Have the next dials of a pool find no descriptor; return the list that shows how many were tried."""
    tried: list[int] = []
    opener = pool._opener
    open_it = opener.open

    def open_or_fail(timeouts: Timeout, deadline: Deadline | None) -> HTTPConnection:
        tried.append(1)
        if len(tried) <= times:
            raise OSError(number, "too many open files")
        return open_it(timeouts, deadline)

    opener.open = open_or_fail  # type: ignore[method-assign]  # a fake in front of it
    return tried


@pytest.mark.parametrize("number", [errno.ENFILE, errno.EMFILE])
def test_lack_of_files_in_the_whole_system_is_met_in_the_same_way(
    number: int, servers: Servers, make_pool: PoolMaker
) -> None:
    one, two, three = servers(3)
    pool, other, third = make_pool(one), make_pool(two), make_pool(three)
    for filled in (other, other, third):
        conns = [filled.acquire() for _ in range(2)]
        for conn in conns:
            filled.release(conn)
    tried = out_of_files(pool, 1, number)
    assert pool.request("GET", "/").data == b"hello"
    assert len(tried) == 2
    assert sum(others.stats().closed["evicted"] for others in (other, third)) == 1  # one descriptor is enough
    for each in (pool, other, third):
        finish(each)


def test_there_is_one_further_try_and_no_more(servers: Servers, make_pool: PoolMaker) -> None:
    one, two = servers(2)
    pool, other = make_pool(one, maxsize=1), make_pool(two)
    finish(other)
    tried = out_of_files(pool, 2)
    with pytest.raises(OSError, match="too many open files"):
        pool.request("GET", "/")
    assert len(tried) == 2
    assert (other.stats().idle, counted(pool.stats().connect_failures)) == (0, {"other": 1})
    finish(pool)


def test_there_is_no_further_try_where_nothing_was_idle(servers: Servers, make_pool: PoolMaker) -> None:
    one, two = servers(2)
    pool, other = make_pool(one, maxsize=1), make_pool(two)
    tried = out_of_files(pool, 1)
    with other.connection() as conn, pytest.raises(OSError, match="too many open files"):
        pool.request("GET", "/")
    assert (len(tried), conn.sock is None) == (1, False)
    finish(pool)
    finish(other)


def test_other_failures_to_connect_cost_nobody_its_connection(servers: Servers, make_pool: PoolMaker) -> None:
    one, two = servers(2)
    pool, other = make_pool(one), make_pool(two)
    finish(other)
    tried = out_of_files(pool, 1, errno.EHOSTUNREACH)
    with pytest.raises(OSError):
        pool.request("GET", "/")
    assert (len(tried), other.stats().idle) == (1, 1)
    finish(pool)


def test_connection_that_gives_its_descriptor_makes_room_in_the_total_too(
    servers: Servers, make_manager: ManagerMaker
) -> None:
    one, two = servers(2)
    manager = make_manager(max_total=3)
    manager.request("GET", one.url)
    out_of_files(manager.pool(two.url), 1)
    with manager.connection(two.url):
        assert in_all(manager) == 1
    check_total(manager)
