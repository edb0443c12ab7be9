"""Who holds what, and who forgot to give it back: what `explain`, the errors and the log say about it.

Nothing that a pool says names a secret.  A lease that lasts longer than `leak_after` is reported once, with the stack
of its borrower, and once more when it comes back after all; what is dropped is counted, costs one ResourceWarning, and
its slot is free again.  The parts of the report itself, and the thread that looks, are in test_leaks.py; the phases of
a lease, in test_pool.py.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import re
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar, Unpack

import pytest
import trustme

from pooledhttp import AcquireTimeout, ConnectionPool, HTTPConnection, PoolConfig, SelfDeadlock, Timeout
from pooledhttp.config import PoolOptions
from pooledhttp.leaks import watcher
from pooledhttp.testing import (
    ExpectHead,
    KeepOpen,
    Repeat,
    ResourceAudit,
    Respond,
    ScriptedServer,
    ServerFactory,
)
from pooledhttp.timeouts import Deadline

BOUND = 10.0
PATIENT = Timeout(acquire=BOUND, connect=BOUND, read=BOUND, write=BOUND)
AT_ONCE = Timeout(acquire=0, connect=BOUND, read=BOUND, write=BOUND)
ANSWER = [ExpectHead(), Respond(body=b"hello")]
ANSWERS = [Repeat(ANSWER)]
HELD = Repeat([ExpectHead(optional=True), KeepOpen()])
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


class PoolMaker(Protocol):
    def __call__(
        self, server: ScriptedServer, *, scheme: str = "http", **options: Unpack[PoolOptions]
    ) -> ConnectionPool: ...


@pytest.fixture
def make_pool(scripted_server: ServerFactory, audit: ResourceAudit) -> Iterator[PoolMaker]:
    """Make pools that are closed when the test is over, and whose counters the audit then adds up."""
    with contextlib.ExitStack() as stack:

        def make(server: ScriptedServer, *, scheme: str = "http", **options: Unpack[PoolOptions]) -> ConnectionPool:
            settings: PoolOptions = {"registry": None, "timeout": PATIENT, **options}
            pool = stack.enter_context(ConnectionPool(*server.address, scheme=scheme, config=PoolConfig(**settings)))
            audit.watch(pool)
            return pool

        yield make


@pytest.fixture
def threads(audit: ResourceAudit) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8, thread_name_prefix="borrower") as executor:
        yield executor


@pytest.fixture
def forgetful(audit: ResourceAudit) -> Iterator[ThreadPoolExecutor]:
    """One more thread, which holds what it acquires while others wait."""
    with ThreadPoolExecutor(1, thread_name_prefix="forgetful") as executor:
        yield executor


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
    assert pool.request("GET", "/again", timeout=AT_ONCE).data == b"hello"


def drop(dropped: list[Any]) -> None:
    """Let go of lent connections, which each cost one ResourceWarning."""
    count = len(dropped)
    with pytest.warns(ResourceWarning, match="unclosed") as warned:
        collect(dropped)
    assert len(warned) == count


def collect(dropped: list[Any]) -> None:
    dropped.clear()
    gc.collect()


def acquire_here(pool: ConnectionPool) -> HTTPConnection:
    return pool.acquire()


# --- explain, and the texts of errors ---------------------------------------------------------------------------------


def test_explain_names_what_is_opened_and_waited_for_with_its_age(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor, clock: Clock
) -> None:
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server, maxsize=2, clock=clock)
    conn = pool.acquire()
    begin = threading.Event()
    opener = pool._opener
    open_it = opener.open

    def open_when_told(timeouts: Timeout, deadline: Deadline | None) -> HTTPConnection:
        assert begin.wait(BOUND)
        return open_it(timeouts, deadline)

    opener.open = open_when_told  # type: ignore[method-assign]  # a gate in front of it
    dialling = threads.submit(pool.acquire)
    wait_until(lambda: pool.stats().opening == 1)
    clock.now += 1
    waiting = [queue_up(threads, pool, pool.acquire)]
    clock.now += 2
    waiting.append(queue_up(threads, pool, pool.acquire))
    clock.now += 4
    assert pool.explain().splitlines() == [
        f"http://127.0.0.1:{server.port}: 1 leased of 2, 0 idle, 1 opening, 2 waiting",
        "  leased 7.0 s by MainThread, between two requests",
        "  opening 7.0 s for borrower_0",
        "  waiting 6.0 s borrower_1, first of 2",
    ]
    begin.set()
    pool.release(conn)
    for future in (dialling, *waiting):
        pool.release(future.result(BOUND))
    finish(pool)


def test_explain_tells_the_last_failure_to_connect_and_its_age(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server, clock=clock)

    def refuse(*_: object) -> None:
        raise ConnectionRefusedError("nobody there")

    with monkeypatch.context() as patch:
        patch.setattr(HTTPConnection, "connect", refuse)
        with pytest.raises(ConnectionRefusedError):
            pool.acquire()
    clock.now += 90
    assert pool.explain().splitlines() == [
        f"http://127.0.0.1:{server.port}: 0 leased of 10, 0 idle, 0 opening, 0 waiting",
        "  last attempt to connect that failed: ConnectionRefusedError: nobody there (90.0 s ago)",
    ]
    finish(pool)


def test_interruption_is_no_failure_of_the_origin(
    scripted_server: ServerFactory, make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(HTTPConnection, "connect", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pool.acquire()
    assert "failed" not in pool.explain()
    assert counted(pool.stats().connect_failures) == {}
    finish(pool)


def test_waiter_is_told_who_holds_the_connection_for_which_request_and_since_when(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor, clock: Clock
) -> None:
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server, maxsize=1, clock=clock)
    lent, over = threading.Event(), threading.Event()

    def export() -> None:
        with pool.stream("GET", "/v1/export"):
            lent.set()
            assert over.wait(BOUND)

    borrower = threads.submit(export)
    assert lent.wait(BOUND)
    others = queue_up(threads, pool, lambda: pool.acquire(Timeout(acquire=None)))
    clock.now += 12.4
    with pytest.raises(AcquireTimeout) as caught:
        pool.acquire(timeout=0)
    assert str(caught.value) == (
        f"no connection to http://127.0.0.1:{server.port} within 0.00 s (1 leased of 1, 0 idle, 0 opening, 1 waiting; "
        f"oldest lease 12.4 s by borrower_0, GET /v1/export, reading the response)"
    )
    assert caught.value.oldest_lease == "12.4 s by borrower_0, GET /v1/export, reading the response"
    assert caught.value.waiting == 1
    over.set()
    borrower.result(BOUND)
    pool.release(others.result(BOUND))
    finish(pool)


def test_error_about_a_lease_shows_no_secret(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    pool = make_pool(scripted_server(default=[HELD]), maxsize=1, leak_after=3600)
    conn = pool.acquire()
    conn.request("GET", "http://user:hunter2@elsewhere.test/x", headers={"Authorization": "Bearer hunter2"})
    texts = [pool.explain(), repr(pool)]
    for timeout, kind in ((AT_ONCE, AcquireTimeout), (PATIENT, SelfDeadlock)):
        with pytest.raises(kind) as caught:
            pool.acquire(timeout)
        texts += [str(caught.value), str(caught.value.oldest_lease), *caught.value.__notes__]
    assert "GET http://elsewhere.test/x, waiting for the head" in texts[0]
    assert not any("hunter2" in text for text in texts)
    pool.release(conn)


def test_explain_tells_where_each_lease_began_if_that_is_written_down(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), leak_after=3600)
    conn = acquire_here(pool)
    assert re.search(
        rf'leased 0\.0 s by MainThread, between two requests\n(.*\n)* +File "{re.escape(__file__)}", line \d+, in '
        r"acquire_here\n +return pool\.acquire\(\)$",
        pool.explain(),
    )
    pool.release(conn)
    assert "File" not in pool.explain()
    finish(pool)


# --- leases that last too long ----------------------------------------------------------------------------------------


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[], list[tuple[int, str]]]:
    """Return what stands in the log of the package, as (level, text)."""
    caplog.set_level(logging.INFO, logger="pooledhttp")
    return lambda: [
        (record.levelno, record.getMessage()) for record in list(caplog.records) if record.name == "pooledhttp"
    ]


Log = Callable[[], list[tuple[int, str]]]


def test_lease_that_lasts_too_long_is_logged_with_the_stack_of_its_borrower(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock, log: Log
) -> None:
    """By the thread that looks, though nobody calls the pool."""
    server = scripted_server(default=[HELD])
    pool = make_pool(server, clock=clock, leak_after=0.02)
    conn = acquire_here(pool)
    conn.request("GET", "/v1/export")
    clock.now += 30
    wait_until(lambda: len(log()) > 0)
    ((level, text),) = log()
    assert level == logging.WARNING
    assert text.startswith(
        f"a connection to http://127.0.0.1:{server.port} has not been given back after leak_after=0.02 s: leased "
        f"30.0 s by MainThread, GET /v1/export, waiting for the head\n"
    )
    assert re.search(rf'File "{re.escape(__file__)}", line \d+, in acquire_here\n +return pool\.acquire\(\)$', text)
    assert f"in {test_lease_that_lasts_too_long_is_logged_with_the_stack_of_its_borrower.__name__}\n" in text
    assert pool.stats().leaked == 1
    pool.release(conn)


def test_lease_is_logged_once_however_long_it_lasts(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock, log: Log
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), clock=clock, leak_after=5)
    with pool.connection():
        clock.now += 4
        assert pool.report_leaks() == 1  # the next look is due
        assert log() == []
        clock.now += 1
        for _ in range(3):
            assert pool.report_leaks() is None
            clock.now += 100
        assert len(log()) == 1
    assert pool.stats().leaked == 1
    finish(pool)


def test_each_lease_is_looked_at_when_it_is_due(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock, log: Log
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), clock=clock, leak_after=5)
    with pool.connection():
        clock.now += 3
        with pool.connection():
            clock.now += 2
            assert pool.report_leaks() == 3
            assert len(log()) == 1
            clock.now += 3
            assert pool.report_leaks() is None
            assert len(log()) == 2
    assert pool.stats().leaked == 2
    finish(pool)


def test_connection_that_had_been_reported_tells_when_it_comes_back(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock, log: Log
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), clock=clock, leak_after=5)
    conn = pool.acquire()
    clock.now += 7.5
    pool.report_leaks()
    clock.now += 1
    pool.release(conn)
    reported = f"a connection to {pool.origin} that had been reported as not given back"
    assert log()[1:] == [
        (logging.INFO, f"{reported} came back after 8.5 s from MainThread"),
    ]
    clock.now += 1
    with pool.connection():  # the next lease is another matter
        clock.now += 4
        assert pool.report_leaks() == 1
    assert len(log()) == 2
    assert pool.stats().leaked == 1
    finish(pool)


@pytest.mark.parametrize("how", ["exception", "closed"])
def test_connection_that_had_been_reported_tells_when_it_comes_back_another_way(
    how: str, scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock, log: Log
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), clock=clock, leak_after=5)
    with contextlib.suppress(ZeroDivisionError), pool.connection() as conn:
        clock.now += 6
        pool.report_leaks()
        if how == "exception":
            raise ZeroDivisionError
        conn.close()
    assert [(level, text[-46:]) for level, text in log()[1:]] == [
        (logging.INFO, "given back came back after 6.0 s from MainThread"[-46:])
    ]
    assert pool.stats().leaked == 1
    finish(pool)


def test_lease_that_comes_back_in_time_is_not_mentioned(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock, log: Log
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), clock=clock, leak_after=5)
    with pool.connection():
        clock.now += 4.9
        pool.report_leaks()
    clock.now += 100
    assert pool.report_leaks() is None
    assert log() == []
    assert pool.stats().leaked == 0
    finish(pool)


def test_second_lease_of_a_connection_has_the_stack_of_its_own_borrower(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock, log: Log
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), clock=clock, leak_after=5)
    pool.release(acquire_here(pool))
    conn = pool.acquire()
    clock.now += 6
    pool.report_leaks()
    ((_, text),) = log()
    assert "acquire_here" not in text
    pool.release(conn)
    finish(pool)


def test_reported_lease_that_is_collected_later_is_counted_once(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock, log: Log
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=2, clock=clock, leak_after=5)
    reported, unreported = [pool.acquire()], []
    clock.now += 6
    pool.report_leaks()
    unreported.append(pool.acquire())
    drop(reported)
    assert pool.stats().leaked == 1
    drop(unreported)
    stats = pool.stats()
    assert (stats.leaked, counted(stats.closed)) == (2, {"leaked": 2})
    assert len(log()) == 1
    finish(pool)


def test_next_one_in_vain_is_told_where_the_forgetful_borrower_acquired(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor,
    forgetful: ThreadPoolExecutor, log: Log,
) -> None:  # fmt: skip
    """The whole story: forgotten, logged, named to the next caller, collected; and the pool goes on."""
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1, leak_after=0.02)
    forgotten = [forgetful.submit(acquire_here, pool).result(BOUND)]
    exchange(forgotten[0])
    wait_until(lambda: len(log()) == 1)
    assert "in acquire_here\n" in log()[0][1]
    with pytest.raises(AcquireTimeout, match=r"oldest lease \d+\.\d s by forgetful_0, between two requests") as caught:
        pool.acquire(Timeout(acquire=0.01))
    (note,) = caught.value.__notes__
    assert note.startswith("the oldest lease was acquired here:\n")
    assert re.search(rf'File "{re.escape(__file__)}", line \d+, in acquire_here\n +return pool\.acquire\(\)$', note)
    waiter = queue_up(threads, pool, pool.acquire)
    # Nobody else looks at the pool any more: the waiter has to find out by itself that the connection was collected.
    drop(forgotten)
    pool.release(waiter.result(BOUND))
    assert pool.stats().leaked == 1
    finish(pool)


def test_error_carries_no_note_where_nothing_was_written_down(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1)
    with pool.connection(), pytest.raises(AcquireTimeout) as caught:
        pool.acquire(AT_ONCE)
    assert not hasattr(caught.value, "__notes__")
    finish(pool)


def test_stack_that_is_written_down_keeps_nothing_of_the_borrower_alive(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    class Order:
        def __del__(self) -> None:
            gone.set()

    gone = threading.Event()
    pool = make_pool(scripted_server(default=ANSWERS), leak_after=3600)

    def borrow() -> HTTPConnection:
        order = Order()
        conn = pool.acquire()
        assert not gone.is_set()
        return conn if isinstance(order, Order) else pool.acquire()

    conn = borrow()
    assert gone.is_set()
    pool.release(conn)
    finish(pool)


def looking() -> bool:
    """Tell whether the thread that looks for leaks is there."""
    return any(thread.name == "pooledhttp-leaks" for thread in threading.enumerate())


def test_thread_that_looks_ends_when_its_pool_is_closed(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), leak_after=3600)
    with pool.connection():
        assert looking()
        pool.close()
        wait_until(lambda: not looking())


def test_thread_that_looks_ends_when_nothing_is_lent(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), leak_after=0.02)
    finish(pool)
    wait_until(lambda: not looking())
    with pool.connection():  # and begins again
        assert looking()
    wait_until(lambda: not looking())
    finish(pool)
    wait_until(lambda: not looking())


def test_thread_that_looks_keeps_no_pool_alive(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    server = scripted_server(default=ANSWERS)
    pool = ConnectionPool(*server.address, registry=None, timeout=PATIENT, leak_after=3600)
    finish(pool)
    assert looking()
    del pool
    gc.collect()
    assert server.peer().ended.wait(BOUND)  # its idle connection went with it
    with ConnectionPool(*server.address, registry=None, timeout=PATIENT, leak_after=0.01) as another:
        finish(another)
    watcher.forget(another)  # wakes it, to see that nothing is left to look at
    wait_until(lambda: not looking())


def test_pool_without_leak_after_starts_no_thread_and_notes_no_stack(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS))
    with pool.connection():
        assert not looking()
        assert pool.report_leaks() is None
        assert "File" not in pool.explain()
    finish(pool)


def test_connection_is_lent_though_no_thread_can_be_started_to_look_for_leaks(
    scripted_server: ServerFactory, make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch, clock: Clock, log: Log
) -> None:
    """And the next lease tries again."""
    pool = make_pool(scripted_server(default=ANSWERS), leak_after=0.02, clock=clock)
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "pooledhttp-leaks":
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        finish(pool)
        finish(pool)
    with pool.connection():
        clock.now += 1
        wait_until(lambda: len(log()) == 1)
    finish(pool)


def test_importing_the_package_does_not_import_logging() -> None:
    program = (
        "import sys, pooledhttp; print(sorted({'logging', 'traceback', 'prometheus_client'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], check=False, cwd=ROOT, capture_output=True, text=True, timeout=BOUND * 3
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


# --- what is dropped --------------------------------------------------------------------------------------------------


def idle_one(pool: ConnectionPool) -> list[Any]:
    return [pool.acquire()]


def one_with_a_request_under_way(pool: ConnectionPool) -> list[Any]:
    conn = pool.acquire()
    conn.request("GET", "/")
    return [conn]


def one_with_an_unread_response(pool: ConnectionPool) -> list[Any]:
    conn = pool.acquire()
    conn.request("GET", "/")
    response = conn.getresponse()
    assert response.status == 200
    return [(conn, response)]


def stream(pool: ConnectionPool) -> list[Any]:
    block = pool.stream("GET", "/")
    assert block.__enter__().status == 200
    return [block]


def block(pool: ConnectionPool) -> list[Any]:
    lent = pool.connection()
    exchange(lent.__enter__())
    return [lent]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("lent", [idle_one, one_with_a_request_under_way, one_with_an_unread_response, stream, block])
def test_each_dropped_connection_costs_one_warning_and_frees_its_slot(
    lent: Callable[[ConnectionPool], list[Any]], scheme: str, scripted_server: ServerFactory, make_pool: PoolMaker,
    authority: trustme.CA,
) -> None:  # fmt: skip
    server_context = client_context = None
    if scheme == "https":
        server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(server_context)
        client_context = ssl.create_default_context()
        authority.configure_trust(client_context)
    server = scripted_server(default=ANSWERS, ssl_context=server_context)
    pool = make_pool(server, scheme=scheme, maxsize=1, ssl_context=client_context, leak_after=3600)
    drop(lent(pool))
    stats = pool.stats()
    assert (stats.leased, stats.leaked, counted(stats.closed)) == (0, 1, {"leaked": 1})
    assert server.peer().ended.wait(BOUND)
    finish(pool)
