"""An exception at every line: whatever is interrupted, and wherever, the pool is whole again.

A tracer raises at the first line that an operation executes inside the package, then at the second, and so on until the
operation runs through.  After each: the exception arrives, what was lent is dropped, and then nothing is lent, opening
or waited for, the lock is free, the counters add up, every slot can be had at once, and a normal request works.

One place is left out, since nothing but a tracer can raise there: the `with` line on the way out of its block (and a
`try` line), which the interpreter shows as a line of its own, outside of any handler.  It delivers the exception of a
signal, or one from another thread, after calls and at backward jumps only; at the end of a block that is behind its
last call, where the `with` still sees it.

Real asynchronous exceptions, from a signal and from another thread, come at the end of the file.
"""

from __future__ import annotations

import contextlib
import ctypes
import dis
import functools
import gc
import itertools
import random
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final, TypeVar

import pytest
import trustme

import pooledhttp
from pooledhttp import (
    AcquireTimeout,
    ConnectionPool,
    HTTPConnection,
    HTTPException,
    PoolClosed,
    PoolConfig,
    PoolManager,
    Timeout,
    leaks,
    lending,
)
from pooledhttp.testing import Peer, ResourceAudit, Respond, ScriptedServer, ServerFactory
from tests.waits import wait_until

pytestmark = pytest.mark.unmeasured

BOUND: Final = 10.0
PATIENT: Final = Timeout(acquire=BOUND, connect=BOUND, read=BOUND, write=BOUND)
AT_ONCE: Final = Timeout(acquire=0, connect=BOUND, read=BOUND, write=BOUND)

T = TypeVar("T")


class Killed(BaseException):
    """What a greenlet's timeout is: no `Exception`."""


KINDS: Final = (KeyboardInterrupt, Killed, MemoryError)

# The rooms that keep the books, and those below, which they lean on.
_FOLDER: Final = Path(pooledhttp.__file__).parent
BOOKS: Final = frozenset(
    str(_FOLDER / f"{room}.py")
    for room in ("capacity", "expiry", "leaks", "ledger", "lending", "manager", "opener", "pool", "records", "upkeep")
)
OPENING: Final = frozenset(str(_FOLDER / f"{room}.py") for room in ("conn", "dial", "forking", "opener"))
EVERYWHERE: Final = frozenset(map(str, _FOLDER.glob("*.py")))


# --- the tracer -------------------------------------------------------------------------------------------------------


@functools.cache
def is_deliverable(code: CodeType, offset: int) -> bool:
    """Tell whether an exception from outside can appear in front of an instruction: see above."""
    instructions = {instruction.offset: instruction for instruction in dis.get_instructions(code)}
    found = instructions[offset]
    with_lines = {line_of(instruction) for instruction in instructions.values() if instruction.opname == "BEFORE_WITH"}
    is_load_for_exit = found.opname == "SWAP" or (found.opname == "LOAD_CONST" and found.argval is None)
    return found.opname != "NOP" and not (is_load_for_exit and line_of(found) in with_lines)


def line_of(instruction: dis.Instruction) -> int | None:
    return None if instruction.positions is None else instruction.positions.lineno


class Interruption:
    """A tracer that raises at a certain line of the package, counted from where tracing began.

    Args:
        number: At which line.
        fault: What to raise.
        rooms: The files whose lines count.
        below: Only lines of this function, and of those that it calls, count; ``None``: all.

    Attributes:
        place: Where it has raised, or ``None``.
        arrives: Whether it can be seen: what is raised in a finalizer is shown by the interpreter, which goes on.
    """

    def __init__(self, number: int, fault: BaseException, rooms: frozenset[str], *, below: str | None = None) -> None:
        self.fault = fault
        self.place: str | None = None
        self.arrives = False
        self._left = number
        self._rooms = rooms
        self._below = below

    def __enter__(self) -> None:
        self._previous = sys.gettrace()
        sys.settrace(self.begin)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._previous)

    def begin(self, frame: FrameType, event: str, argument: object) -> Any:
        """Trace a function if its lines count."""
        if frame.f_code.co_filename not in self._rooms:
            return None
        if self._below is not None and self._below not in _names(frame):
            return None
        return self._step

    def _step(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "line" and self._left and is_deliverable(frame.f_code, frame.f_lasti):
            self._left -= 1
            if not self._left:
                code = frame.f_code
                self.place = f"{Path(code.co_filename).name}:{frame.f_lineno} in {code.co_qualname}"
                self.arrives = "__del__" not in _names(frame)
                raise self.fault
        return self._step


def _names(frame: FrameType | None) -> Iterator[str]:
    """Yield the names of the functions that are under way, the innermost first."""
    while frame is not None:
        yield frame.f_code.co_name
        frame = frame.f_back


@contextlib.contextmanager
def untraced() -> Iterator[None]:
    """Keep what a test does in the middle of an operation from being interrupted."""
    previous = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(previous)


# --- what is interrupted ----------------------------------------------------------------------------------------------


def answering(peer: Peer) -> None:
    """Answer by what the target says."""
    while True:
        request = peer.read_request()
        if request.target == "/die" and len(peer.requests) > 1:
            return
        if request.target == "/garbage":
            peer.send(b"SSH-2.0\r\n\r\n")
            return
        answer = Respond(body=b"a" * 5000 if request.target == "/much" else b"hello")
        peer.send(answer.encode(request.method))


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("127.0.0.1").configure_cert(context)
    return context


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context


def gauges(pool: ConnectionPool) -> tuple[int, int, int, int]:
    """Return how many are idle, leased, being opened and waiting."""
    stats = pool.stats()
    return stats.idle, stats.leased, stats.opening, stats.waiting


def check_sum(pool: ConnectionPool) -> None:
    """Check that every connection that was opened is idle or was closed."""
    stats = pool.stats()
    assert stats.opened == sum(stats.closed.values()) + stats.idle


def check(pool: ConnectionPool) -> None:
    """Check that a pool that nobody uses is whole."""
    assert pool._lock.acquire(timeout=BOUND), "the lock is held"
    pool._lock.release()
    wait_until(lambda: pool.stats().opening == 0)  # a late dial goes on by itself
    if pool.stats().leased:
        gc.collect()  # what the collection of young objects has spared
    assert gauges(pool)[1:] == (0, 0, 0)
    assert gauges(pool)[0] <= pool.maxsize
    check_sum(pool)
    conns = [pool.acquire(timeout=0) for _ in range(pool.maxsize)]
    for conn in conns:
        pool.release(conn)
    assert pool.request("GET", "/again", timeout=AT_ONCE).data == b"hello"
    assert pool.stats().leased == 0


class Bench:
    """A pool, the server that it is for, and a second thread.

    Args:
        server: Plays `answering`.
        other: The second thread.
        is_shared: Whether the pool shares a total of two with one for another origin, `other_pool`.
        maxsize: Of both.
        scheme: Of both.
        ssl_context: The client's, or ``None``.
    """

    manager: PoolManager
    pool: ConnectionPool
    other_pool: ConnectionPool

    def __init__(
        self,
        server: ScriptedServer,
        other: ThreadPoolExecutor,
        *,
        is_shared: bool = False,
        maxsize: int = 2,
        scheme: str = "http",
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.server = server
        self.is_shared = is_shared
        self._other = other
        self._scheme = scheme
        self._config = PoolConfig(registry=None, timeout=PATIENT, maxsize=maxsize, ssl_context=ssl_context)
        self._opened = contextlib.ExitStack()
        self.renew()

    def renew(self) -> None:
        """Have new pools, and close the old ones."""
        self.close()
        server = self.server
        if not self.is_shared:
            pool = ConnectionPool(server.host, server.port, scheme=self._scheme, config=self._config)
            self.pool = self._opened.enter_context(pool)
            return
        self.manager = self._opened.enter_context(PoolManager(max_total=2, config=self._config))
        self.pool = self.manager.pool(server.url)
        # Another origin, as far as pools are concerned.
        self.other_pool = self.manager.pool(server.url, socket_options=((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),))

    def close(self) -> None:
        self._opened.close()

    def fill(self, idle: int) -> None:
        """Have so many idle connections, and none of the other origin."""
        pool = self.pool
        if self.is_shared and self.other_pool.stats().idle:
            self.other_pool.prune(everything=True)
        if pool.stats().idle > idle:
            pool.prune(everything=True)
        conns = [pool.acquire() for _ in range(idle)]
        for conn in conns:
            pool.release(conn)

    def beside(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        """Do something in the second thread."""
        return self._other.submit(work, *arguments)

    def await_waiting(self) -> None:
        wait_until(lambda: self.pool.stats().waiting == 1)

    def check(self) -> None:
        """Check that all is whole."""
        check(self.pool)
        if self.is_shared:
            check(self.other_pool)


Stage = Iterator[Callable[[], object]]
Arrange = Callable[[Bench], Stage]
ALONE: Final[list[Any]] = []
SHARED: Final[list[Any]] = []


def operation(*, everywhere: bool = False, alone: bool = True, shared: bool = False) -> Callable[[Arrange], Arrange]:
    """Take an operation into the lists: up to its `yield` it sets the scene, and behind it clears up.

    Args:
        everywhere: Whether it is interrupted in the rooms below those that keep the books, too.
        alone: Whether it is done to a pool by itself.
        shared: Whether it is done to one that shares in a total.
    """

    def take(arrange: Arrange) -> Arrange:
        rooms = EVERYWHERE if everywhere else BOOKS
        if alone:
            ALONE.append(pytest.param(arrange, rooms, id=arrange.__name__))
        if shared:
            SHARED.append(pytest.param(arrange, BOOKS, id=arrange.__name__))
        return arrange

    return take


@operation(everywhere=True)
def acquire_and_release_of_an_idle_connection(bench: Bench) -> Stage:
    bench.fill(1)
    yield lambda: bench.pool.release(bench.pool.acquire())


@operation()
def acquire_and_release_of_a_new_connection(bench: Bench) -> Stage:
    bench.fill(0)
    yield lambda: bench.pool.release(bench.pool.acquire())


@operation()
def acquire_within_a_timeout(bench: Bench) -> Stage:
    bench.fill(1)
    yield lambda: bench.pool.release(bench.pool.acquire(BOUND))


@operation()
def request_on_an_idle_connection(bench: Bench) -> Stage:
    bench.fill(1)
    yield lambda: bench.pool.request("GET", "/")


@operation(everywhere=True)
def request_on_a_new_connection_within_a_total(bench: Bench) -> Stage:
    bench.fill(0)
    yield lambda: bench.pool.request("POST", "/", b"body", timeout=BOUND)


@operation()
def request_on_a_connection_that_the_probe_finds_dead(bench: Bench) -> Stage:
    bench.fill(1)
    end_idle(bench.pool)
    yield lambda: bench.pool.request("GET", "/")


@operation()
def request_on_a_dead_connection_with_a_live_one_behind_it(bench: Bench) -> Stage:
    bench.fill(2)
    end_idle(bench.pool)
    yield lambda: bench.pool.request("GET", "/")


@operation()
def request_that_is_sent_again(bench: Bench) -> Stage:
    bench.fill(2)
    bench.pool.request("GET", "/")
    yield lambda: bench.pool.request("GET", "/die")


@operation()
def request_whose_answer_is_no_http(bench: Bench) -> Stage:
    bench.fill(1)

    def act() -> None:
        with contextlib.suppress(HTTPException):
            bench.pool.request("GET", "/garbage")

    yield act


@operation(everywhere=True)
def stream_that_is_read(bench: Bench) -> Stage:
    bench.fill(1)

    def act() -> None:
        with bench.pool.stream("GET", "/much") as response:
            response.read(2000)
            response.read()

    yield act


@operation()
def stream_that_is_left_unread(bench: Bench) -> Stage:
    bench.fill(1)

    def act() -> None:
        with bench.pool.stream("GET", "/much"):
            pass

    yield act


@operation()
def connection_block(bench: Bench) -> Stage:
    bench.fill(1)

    def act() -> None:
        with bench.pool.connection() as conn:
            conn.request("GET", "/")
            conn.getresponse().read()

    yield act


@operation()
def connection_block_that_leaves_a_body_unread(bench: Bench) -> Stage:
    bench.fill(1)

    def act() -> None:
        with bench.pool.connection() as conn:
            conn.request("GET", "/much")
            conn.getresponse()

    yield act


@operation()
def connection_block_that_raises(bench: Bench) -> Stage:
    bench.fill(1)

    def act() -> None:
        with contextlib.suppress(ZeroDivisionError), bench.pool.connection() as conn:
            conn.request("GET", "/much")
            raise ZeroDivisionError

    yield act


@operation()
def release_of_a_connection_that_its_borrower_closed(bench: Bench) -> Stage:
    bench.fill(0)
    conns = [bench.pool.acquire()]
    conns[0].close()
    yield lambda: bench.pool.release(conns[0])
    conns.clear()


@operation()
def release_of_a_connection_that_is_too_old(bench: Bench) -> Stage:
    bench.fill(0)
    conns = [bench.pool.acquire()]
    for entry in bench.pool._leased:
        entry.expires_at = 0.0
    yield lambda: bench.pool.release(conns[0])
    conns.clear()


@operation(shared=True)
def release_to_a_waiter(bench: Bench) -> Stage:
    bench.fill(2)
    conns = [bench.pool.acquire(), bench.pool.acquire()]
    waiting = bench.beside(bench.pool.acquire)
    bench.await_waiting()
    yield lambda: bench.pool.release(conns[0])
    conns.clear()
    bench.pool.release(waiting.result(BOUND))


@operation(shared=True)
def release_of_a_slot_to_a_waiter(bench: Bench) -> Stage:
    bench.fill(2)
    conns = [bench.pool.acquire(), bench.pool.acquire()]
    waiting = bench.beside(bench.pool.acquire)
    bench.await_waiting()
    conns[0].close()
    yield lambda: bench.pool.release(conns[0])
    conns.clear()
    bench.pool.release(waiting.result(BOUND))


@operation()
def failure_while_somebody_waits(bench: Bench) -> Stage:
    bench.fill(2)
    conns = [bench.pool.acquire()]
    waiting: list[Future[HTTPConnection]] = []

    def act() -> None:
        with bench.pool.connection() as conn:
            with untraced():
                waiting.append(bench.beside(bench.pool.acquire))
                bench.await_waiting()
            conn.request("GET", "/garbage")
            with contextlib.suppress(HTTPException):
                conn.getresponse()

    yield act
    conns.clear()
    for future in waiting:
        bench.pool.release(future.result(BOUND))


@operation(shared=True)
def wait_for_a_connection(bench: Bench) -> Stage:
    bench.fill(2)
    over = threading.Event()
    held = [bench.beside(bench.pool.acquire).result(BOUND) for _ in range(2)]

    def give_back() -> None:
        wait_until(lambda: over.is_set() or bench.pool.stats().waiting == 1)
        while held:
            bench.pool.release(held.pop())

    giving = bench.beside(give_back)
    yield lambda: bench.pool.release(bench.pool.acquire())
    over.set()
    giving.result(BOUND)


@operation(shared=True)
def wait_for_a_slot(bench: Bench) -> Stage:
    bench.fill(2)
    over = threading.Event()
    held = [bench.beside(bench.pool.acquire).result(BOUND) for _ in range(2)]

    def give_back() -> None:
        wait_until(lambda: over.is_set() or bench.pool.stats().waiting == 1)
        while held:
            held[-1].close()
            bench.pool.release(held.pop())

    giving = bench.beside(give_back)
    yield lambda: bench.pool.release(bench.pool.acquire())
    over.set()
    giving.result(BOUND)


@operation()
def wait_in_vain(bench: Bench) -> Stage:
    bench.fill(2)
    held = [bench.beside(bench.pool.acquire).result(BOUND) for _ in range(2)]

    def act() -> None:
        with contextlib.suppress(AcquireTimeout):
            bench.pool.acquire(timeout=Timeout(acquire=0.001, connect=BOUND, read=BOUND, write=BOUND))

    yield act
    while held:
        bench.pool.release(held.pop())


@operation(shared=True)
def late_dial_that_wins(bench: Bench) -> Stage:
    bench.fill(1)
    held = [bench.beside(bench.pool.acquire).result(BOUND)]
    yield lambda: bench.pool.release(bench.pool.acquire())
    bench.pool.release(held.pop())


@operation(shared=True)
def late_dial_that_is_overtaken(bench: Bench) -> Stage:
    bench.fill(1)
    over, dialling = threading.Event(), threading.Event()
    held = [bench.beside(bench.pool.acquire).result(BOUND)]
    opener = bench.pool._opener
    open_it = opener.open

    def slowly(*arguments: Any) -> HTTPConnection:
        dialling.set()
        assert over.wait(BOUND)
        return open_it(*arguments)

    def give_back() -> None:
        wait_until(lambda: over.is_set() or dialling.is_set())
        bench.pool.release(held.pop())

    opener.open = slowly  # type: ignore[assignment, method-assign]  # a gate in front of it
    giving = bench.beside(give_back)

    def act() -> None:
        bench.pool.release(bench.pool.acquire())

    yield act
    over.set()
    giving.result(BOUND)
    wait_until(lambda: bench.pool.stats().opening == 0)
    opener.open = open_it  # type: ignore[method-assign]  # as above


@operation()
def dial_that_fails(bench: Bench) -> Stage:
    bench.fill(0)
    opener = bench.pool._opener
    open_it = opener.open

    def refuse(*_: object) -> HTTPConnection:
        raise ConnectionRefusedError

    opener.open = refuse  # type: ignore[assignment, method-assign]  # a peer that is down

    def act() -> None:
        with contextlib.suppress(ConnectionRefusedError):
            bench.pool.acquire()

    yield act
    opener.open = open_it  # type: ignore[method-assign]  # as above


@operation()
def late_dial_that_fails(bench: Bench) -> Stage:
    bench.fill(1)
    held = [bench.beside(bench.pool.acquire).result(BOUND)]
    opener = bench.pool._opener
    open_it = opener.open

    def refuse(*_: object) -> HTTPConnection:
        raise ConnectionRefusedError

    opener.open = refuse  # type: ignore[assignment, method-assign]  # a peer that is down

    def act() -> None:
        with contextlib.suppress(ConnectionRefusedError):
            bench.pool.acquire()

    yield act
    wait_until(lambda: bench.pool.stats().opening == 0)
    opener.open = open_it  # type: ignore[method-assign]  # as above
    bench.pool.release(held.pop())


@operation(shared=True)
def prune_of_dead_and_live_connections(bench: Bench) -> Stage:
    bench.fill(2)
    end_idle(bench.pool)
    yield bench.pool.prune


@operation()
def prune_of_expired_connections(bench: Bench) -> Stage:
    bench.fill(2)
    bench.pool._idle[0].good_until = 0.0
    yield bench.pool.prune


@operation()
def prune_of_everything(bench: Bench) -> Stage:
    bench.fill(2)
    yield lambda: bench.pool.prune(everything=True)


@operation(shared=True)
def prune_while_somebody_waits(bench: Bench) -> Stage:
    bench.fill(2)
    waiting: list[Future[HTTPConnection]] = []
    probe = bench.pool._end_if_stale

    def probe_while_somebody_waits(conn: HTTPConnection) -> None:
        if not waiting:
            with untraced():
                waiting.append(bench.beside(bench.pool.acquire))
                bench.await_waiting()
        probe(conn)

    bench.pool._end_if_stale = probe_while_somebody_waits  # type: ignore[method-assign]  # he comes at this moment
    yield bench.pool.prune
    for future in waiting:
        bench.pool.release(future.result(BOUND))
    del bench.pool._end_if_stale


@operation()
def resize_down_and_up(bench: Bench) -> Stage:
    bench.fill(2)

    def act() -> None:
        bench.pool.resize(1)
        bench.pool.resize(2)

    yield act
    bench.pool.resize(2)


@operation(shared=True)
def resize_while_somebody_waits(bench: Bench) -> Stage:
    bench.pool.resize(1)
    bench.fill(1)
    held = [bench.pool.acquire()]
    waiting = bench.beside(bench.pool.acquire)
    bench.await_waiting()
    yield lambda: bench.pool.resize(2)
    bench.pool.resize(2)
    bench.pool.release(waiting.result(BOUND))
    bench.pool.release(held.pop())


@operation()
def collection_of_a_lost_connection(bench: Bench) -> Stage:
    bench.fill(1)
    lost = [bench.pool.acquire()]

    def act() -> None:
        lost.clear()
        bench.pool.release(bench.pool.acquire())

    yield act


@operation()
def collection_of_a_lost_connection_that_somebody_waits_for(bench: Bench) -> Stage:
    bench.fill(2)
    lost = [bench.pool.acquire(), bench.pool.acquire()]
    waiting = bench.beside(bench.pool.acquire)
    bench.await_waiting()

    def act() -> None:
        lost.clear()
        bench.pool.stats()

    yield act
    lost.clear()
    bench.pool.release(waiting.result(BOUND))


@operation()
def look_at_leaks(bench: Bench) -> Stage:
    bench.fill(0)
    bench.pool._leak_after = 1000.0
    held: list[HTTPConnection] = []

    def act() -> None:
        held.append(bench.pool.acquire())
        for entry in bench.pool._leased:
            entry.leased_at -= 2000.0
            entry.stack = entry.stack and entry.stack[:1]  # looking all of it up is long, and touches no books
        bench.pool.report_leaks()
        bench.pool.release(held[0])

    yield act
    bench.pool._leak_after = None
    leaks.watcher.forget(bench.pool)


@operation(shared=True)
def close_while_somebody_waits(bench: Bench) -> Stage:
    bench.fill(2)
    conn = bench.pool.acquire()
    bench.pool.resize(1)
    waiting = bench.beside(bench.pool.acquire)
    bench.await_waiting()
    yield bench.pool.close
    bench.pool.close()
    with pytest.raises(PoolClosed):
        waiting.result(BOUND)
    bench.pool.release(conn)
    assert gauges(bench.pool) == (0, 0, 0, 0)
    check_sum(bench.pool)
    bench.renew()


@operation(alone=False, shared=True)
def acquire_that_takes_the_room_of_another_origin(bench: Bench) -> Stage:
    bench.fill(2)
    yield lambda: bench.other_pool.release(bench.other_pool.acquire())


@operation(alone=False, shared=True)
def release_of_what_is_owed_to_another_origin(bench: Bench) -> Stage:
    bench.fill(2)
    conns = [bench.pool.acquire(), bench.pool.acquire()]
    waiting = bench.beside(bench.other_pool.acquire)
    wait_until(lambda: bench.other_pool.stats().waiting == 1)
    yield lambda: bench.pool.release(conns[0])
    conns.clear()
    bench.other_pool.release(waiting.result(BOUND))


@operation(alone=False, shared=True)
def loss_of_what_another_origin_waits_for(bench: Bench) -> Stage:
    bench.fill(2)
    conns = [bench.pool.acquire(), bench.pool.acquire()]
    waiting = bench.beside(bench.other_pool.acquire)
    wait_until(lambda: bench.other_pool.stats().waiting == 1)

    def act() -> None:
        conns.clear()
        bench.pool.stats()

    yield act
    conns.clear()
    bench.other_pool.release(waiting.result(BOUND))


@operation(alone=False, shared=True)
def request_through_the_manager(bench: Bench) -> Stage:
    bench.fill(1)
    yield lambda: bench.manager.request("GET", f"{bench.server.url}/")


def end_idle(pool: ConnectionPool) -> None:
    """Let the newest idle connection look as if its peer had ended it."""
    conn = pool._idle[-1].conn
    assert conn is not None
    conn.sock.shutdown(socket.SHUT_RD)


# --- an exception at every line ---------------------------------------------------------------------------------------


@pytest.fixture
def quick_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let waiters look often for what nobody has told them: once a second would take too long, thousands of times."""
    monkeypatch.setattr(lending, "_LOST_CHECK", 0.002)
    monkeypatch.setattr(leaks, "_DEEPEST", 2)  # and let them note no long stacks, line by line


@pytest.fixture
def small_heap() -> None:
    """Keep what is there already out of each collection; for good, as tests/conftest.py does before each file."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def other(audit: ResourceAudit) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1, thread_name_prefix="other") as executor:
        yield executor


@pytest.fixture
def bench(scripted_server: ServerFactory, other: ThreadPoolExecutor, quick_look: None, small_heap: None,
          monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Bench]]:  # fmt: skip
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # an interrupted finalizer is shown, and no more
    with contextlib.ExitStack() as stack:

        def make(**kind: Any) -> Bench:
            context = server_context() if kind.get("scheme") == "https" else None
            bench = Bench(scripted_server(default=answering, ssl_context=context), other, **kind)
            stack.callback(bench.close)
            return bench

        yield make


def sweep(bench: Bench, arrange: Arrange, rooms: frozenset[str]) -> int:
    """Interrupt an operation at each of its lines; return how many there are.

    In a thread of its own: where the tracer raises in front of the end of an `except` block, the interpreter goes on
    taking the exception of that block for the one that the thread is handling, until the thread ends.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="sweep") as alone:
        return alone.submit(_sweep, bench, arrange, rooms).result()


def _sweep(bench: Bench, arrange: Arrange, rooms: frozenset[str]) -> int:
    for number in itertools.count(1):
        stage = arrange(bench)
        act = next(stage)
        interruption = Interruption(number, KINDS[number % len(KINDS)](), rooms)
        has_arrived = False
        try:
            with interruption:
                act()
        except BaseException as fault:
            if fault is not interruption.fault:
                raise
            has_arrived = True
        if interruption.place is None:
            next(stage, None)
            return number - 1
        interruption.fault = Killed()  # the one that was raised holds the frames
        del act
        try:
            next(stage, None)
            assert has_arrived is interruption.arrives, "it was swallowed"
            gc.collect(1)
            bench.check()
        except BaseException as fault:
            fault.add_note(f"interrupted at {interruption.place}")
            raise
    raise AssertionError  # for mypy


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # what was interrupted may be collected unclosed
@pytest.mark.parametrize(("arrange", "rooms"), ALONE)
def test_exception_at_any_line_leaves_the_pool_whole(
    arrange: Arrange, rooms: frozenset[str], bench: Callable[..., Bench]
) -> None:
    assert sweep(bench(), arrange, rooms) > 10


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # as above
@pytest.mark.parametrize(("arrange", "rooms"), SHARED)
def test_exception_at_any_line_leaves_pools_with_a_common_total_whole(
    arrange: Arrange, rooms: frozenset[str], bench: Callable[..., Bench]
) -> None:
    assert sweep(bench(is_shared=True), arrange, rooms) > 10


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # as above
def test_exception_at_any_line_of_opening_with_tls_leaves_the_pool_whole(bench: Callable[..., Bench]) -> None:
    with_tls = bench(scheme="https", ssl_context=client_context())
    assert sweep(with_tls, acquire_and_release_of_a_new_connection, OPENING) > 50


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # as above
@pytest.mark.parametrize("arrange", [late_dial_that_wins, late_dial_that_is_overtaken, late_dial_that_fails])
def test_exception_at_any_line_of_a_late_dials_thread_reaches_its_caller_or_does_no_harm(
    arrange: Arrange, bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = bench()
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # what is raised behind its last word is shown
    for number in itertools.count(1):
        stage = arrange(alone)
        act = next(stage)
        interruption = Interruption(number, MemoryError(), BOOKS, below="_run_dial")
        threading.settrace(interruption.begin)
        try:
            act()
        except MemoryError as fault:
            if fault is not interruption.fault:
                raise
        finally:
            threading.settrace(None)
        interruption.fault = Killed()
        next(stage, None)
        gc.collect(1)
        try:
            alone.check()
        except BaseException as fault:
            fault.add_note(f"interrupted at {interruption.place}")
            raise
        if interruption.place is None:
            assert number > 20
            return


# --- real asynchronous exceptions -------------------------------------------------------------------------------------


@pytest.fixture
def uncovered() -> Iterator[None]:
    """Keep a tool that measures coverage out: an exception inside it leaves its own lock taken, for ever."""
    here, elsewhere = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)
    yield
    threading.settrace(elsewhere)
    sys.settrace(here)


@pytest.mark.usefixtures("uncovered")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # as above
@pytest.mark.parametrize("seed", range(3))
def test_signals_that_raise_at_any_moment_leave_the_pool_whole(seed: int, bench: Callable[..., Bench]) -> None:
    alone = bench()
    chance = random.Random(seed)
    arrived = 0

    def interrupt(*_: object) -> None:
        raise Killed

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(150):
            try:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(2e-5, 8e-4))
                use(alone.pool, chance)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Killed:
                arrived += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    gc.collect()
    assert arrived
    alone.check()


def use(pool: ConnectionPool, chance: random.Random) -> None:
    """Do one of the usual things with a pool."""
    kind = chance.randrange(5)
    if kind == 0:
        with pool.stream("GET", "/much") as response:
            response.read(100)
    elif kind == 1:
        with pool.connection() as conn:
            conn.request("GET", "/")
            conn.getresponse().read()
    elif kind == 2:
        pool.prune(everything=chance.random() < 0.5)
    else:
        assert pool.request("GET", "/").data == b"hello"


@pytest.mark.usefixtures("uncovered")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # as above
def test_exceptions_thrown_into_threads_at_any_moment_leave_the_pool_whole(bench: Callable[..., Bench]) -> None:
    # Of one connection, so that nobody dials in a thread of his own: what is thrown into a thread that is just starting
    # another may hit that one (it bears its parent's number until it runs), and then `Thread.start` waits for ever.
    pool = bench(maxsize=1).pool
    over = threading.Event()
    survived = [0] * 4

    def work(number: int) -> None:
        chance = random.Random(number)
        while not over.is_set():
            try:
                while not over.is_set():
                    use(pool, chance)
                    survived[number] += 1
            except Killed:
                pass

    def outlive(number: int) -> None:
        while True:
            try:
                work(number)
                return
            except Killed:  # it came between two others
                pass

    threads = [threading.Thread(target=outlive, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    chance = random.Random(0)
    pause = threading.Event()
    for _ in range(200):
        victim = chance.choice(threads)
        assert victim.ident is not None
        throw(victim.ident)
        pause.wait(chance.uniform(0, 0.004))
    over.set()
    for thread in threads:
        thread.join(BOUND)
        assert not thread.is_alive()
    assert min(survived) > 0
    gc.collect()
    check(pool)


def throw(ident: int) -> None:
    """Have a thread raise `Killed` at its next opportunity."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(Killed))
