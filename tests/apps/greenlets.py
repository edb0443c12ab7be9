"""A program of greenlets that share a pool; run by test_gevent.py, which plays the server.

Arguments: what to do, the server's port, and the file of the authority that signed its certificate (none: plain).
"""

from __future__ import annotations

import sys

if "late" in sys.argv:
    import pooledhttp  # noqa: F401  # before the patching, which is not as gevent advises, and happens
from gevent import monkey

monkey.patch_all()

import gc  # noqa: E402  # all of this wants to be patched
import importlib  # noqa: E402
import itertools  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
import ssl  # noqa: E402
import threading  # noqa: E402
from collections.abc import Callable  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
import gevent.event  # noqa: E402

from pooledhttp import (  # noqa: E402
    AcquireTimeout,
    ConnectionPool,
    HTTPConnection,
    PoolConfig,
    PoolManager,
    SelfDeadlock,
    Timeout,
)

BOUND = 20.0
PATIENT = Timeout(acquire=BOUND, connect=BOUND, read=BOUND, write=BOUND)
WHAT, PORT, AUTHORITY = sys.argv[1], int(sys.argv[2]), sys.argv[3]
SCHEME = "https" if AUTHORITY != "none" else "http"
CONTEXT = ssl.create_default_context(cafile=AUTHORITY) if AUTHORITY != "none" else None


def new_pool(maxsize: int, *, leak_after: float | None = None) -> ConnectionPool:
    config = PoolConfig(ssl_context=CONTEXT, maxsize=maxsize, timeout=PATIENT, registry=None, leak_after=leak_after)
    return ConnectionPool("127.0.0.1", PORT, scheme=SCHEME, config=config)


def wait_until(is_so: Callable[[], bool]) -> None:
    with gevent.Timeout(BOUND):
        while not is_so():
            gevent.sleep(0.0005)


def check_whole(pool: ConnectionPool) -> None:
    """Check that nothing is held, that every slot can be had, and that a request works."""
    gc.collect()
    wait_until(lambda: not pool.stats().opening)  # a late dial that nobody waits for any more
    stats = pool.stats()
    assert (stats.leased, stats.opening, stats.waiting) == (0, 0, 0), pool.explain()
    assert stats.opened == sum(stats.closed.values()) + stats.idle, stats
    lent = [pool.acquire(Timeout(acquire=0)) for _ in range(pool.maxsize)]
    for conn in lent:
        pool.release(conn)
    assert pool.request("GET", "/whole").data == b"hello"


def share() -> None:
    """Many greenlets, few connections."""
    with new_pool(4) as pool:

        def work() -> None:
            for _ in range(10):
                assert pool.request("GET", "/").data == b"hello"

        gevent.joinall([gevent.spawn(work) for _ in range(40)], timeout=BOUND, raise_error=True)
        stats = pool.stats()
        assert stats.requests["2xx"] == 400, stats
        assert stats.opened <= 4, stats
        check_whole(pool)


def wait_for_another() -> None:
    """One greenlet holds what another waits for: that is no self-deadlock, though they share a thread."""
    with new_pool(1) as pool:
        conn = pool.acquire()
        waiter = gevent.spawn(lambda: pool.acquire(BOUND))
        while not pool.stats().waiting:
            gevent.sleep(0)
        assert "waiting" in pool.explain()
        pool.release(conn)
        assert waiter.get(timeout=BOUND) is conn

        def acquire_in_vain() -> str:
            try:
                pool.acquire(0.01)
            except AcquireTimeout as error:
                return str(error)
            raise AssertionError("it was lent twice")

        assert "oldest lease" in gevent.spawn(acquire_in_vain).get(timeout=BOUND)
        pool.release(conn)
        check_whole(pool)


def wait_in_order() -> None:
    """Greenlets are served in the order of their coming."""
    with new_pool(1) as pool:
        conn = pool.acquire()
        served = []

        def work(number: int) -> None:
            with pool.connection():
                served.append(number)

        workers = []
        for number in range(10):
            workers.append(gevent.spawn(work, number))
            wait_until(lambda: pool.stats().waiting == len(workers))
        pool.release(conn)
        gevent.joinall(workers, timeout=BOUND, raise_error=True)
        assert served == list(range(10)), served
        check_whole(pool)


def hold_all() -> None:
    """A greenlet that would wait for itself is told so."""
    with new_pool(1) as pool:

        def work() -> None:
            with pool.connection():
                text = ""
                try:
                    pool.acquire()
                except SelfDeadlock as fault:
                    text = str(fault)
                assert threading.current_thread().name in text, text

        gevent.spawn(work).get(timeout=BOUND)
        check_whole(pool)


def dial_late() -> None:
    """Who dials takes what is given back meanwhile; what the dial brings is for the next."""
    with new_pool(2) as pool:
        held = pool.acquire()
        may_dial = gevent.event.Event()
        open_it = pool._opener.open

        def open_slowly(*arguments: Any) -> HTTPConnection:
            assert may_dial.wait(BOUND)
            return open_it(*arguments)

        pool._opener.open = open_slowly  # type: ignore[assignment, method-assign]  # a gate in front of it
        caller = gevent.spawn(pool.acquire)
        wait_until(lambda: pool.stats().opening == 1)
        gevent.sleep(0)
        pool.release(held)
        conn = caller.get(timeout=BOUND)
        assert conn is held
        may_dial.set()
        wait_until(lambda: pool.stats().idle == 1)
        pool.release(conn)
        check_whole(pool)


def forget_to_release() -> None:
    """The log names the greenlet that keeps a connection for too long, and where it got it."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[assignment, method-assign]  # what is logged is looked at below
    logger = logging.getLogger("pooledhttp")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    with new_pool(1, leak_after=0.02) as pool:

        def borrow_for_long() -> str:
            with pool.connection():
                wait_until(lambda: bool(records))
            return threading.current_thread().name

        name = gevent.spawn(borrow_for_long).get(timeout=BOUND)
        texts = [record.getMessage() for record in records]
        assert [record.levelname for record in records] == ["WARNING", "INFO"], texts
        assert name in texts[0], texts
        assert "borrow_for_long" in texts[0], texts
        assert name in texts[1], texts
        check_whole(pool)


def look_at_dead() -> None:
    """The probe sees that the peer has ended an idle connection, with other greenlets at work."""
    with new_pool(1) as pool:
        is_over = False

        def be_busy() -> None:
            while not is_over:
                gevent.sleep(0.0001)

        busy = [gevent.spawn(be_busy) for _ in range(5)]
        for count in range(1, 6):
            conn = pool.acquire()
            conn.request("GET", "/last")  # behind which the server ends the connection
            assert conn.getresponse().read() == b"hello"
            sock = conn.sock
            pool.release(conn)
            gevent.socket.wait_read(sock.fileno(), timeout=BOUND)
            request(pool)
            assert pool.stats().closed["stale_eof"] == count, pool.stats()
        is_over = True
        gevent.joinall(busy, timeout=BOUND, raise_error=True)
        check_whole(pool)


def interrupt(call: Callable[[ConnectionPool], object], *, forget: bool) -> None:
    """Let a greenlet's timeout fire ever later, until the call is through before it does."""
    with new_pool(2) as pool:
        through = stopped = 0
        for step in range(400):
            if forget and step % 3 == 0:
                pool.prune(everything=True)  # so that it dials, too
            timeout = gevent.Timeout.start_new(step * 0.00005)
            try:
                call(pool)
                through += 1
            except gevent.Timeout as fired:
                stopped += fired is timeout
            finally:
                timeout.close()
            if through > 20:
                break
        assert stopped >= 3, f"it was stopped only {stopped} times"
        check_whole(pool)


def request(pool: ConnectionPool) -> None:
    assert pool.request("GET", "/").data == b"hello"


def stream(pool: ConnectionPool) -> None:
    with pool.stream("GET", "/") as response:
        assert response.read() == b"hello"


def kill() -> None:
    """Greenlets are killed wherever they happen to be: waiting, dialling, sending, reading."""
    with new_pool(2) as pool:
        for step in range(60):
            workers = [gevent.spawn(request, pool) for _ in range(6)]
            gevent.sleep(step * 0.0001)
            gevent.killall(workers, timeout=BOUND)
        check_whole(pool)


def stop_at_each_switch(call: Callable[[ConnectionPool], object], *, held: int, idle: int, forget: bool) -> None:
    """Stop a greenlet at the first moment in which it lets others run, then at the second, until it is through.

    Args:
        call: What it does with a pool of two connections.
        held: How many of them are lent to somebody else, who gives them back when nothing else happens.
        idle: How many are idle.
        forget: Whether it is killed, and nobody catches that; else a timeout fires.
    """
    fault = gevent.GreenletExit if forget else gevent.Timeout
    with new_pool(2) as pool:
        for number in itertools.count(1):
            pool.prune(everything=True)
            lent = [pool.acquire() for _ in range(held + idle)]
            while len(lent) > held:
                pool.release(lent.pop())
            worker = gevent.spawn(call, pool)
            switches = 0

            def count(event: str, greenlets: tuple[Any, Any], worker: gevent.Greenlet = worker, at: int = number,
                      ) -> None:  # fmt: skip
                nonlocal switches
                if event in {"switch", "throw"} and greenlets[0] is worker and not worker.dead:
                    switches += 1
                    if switches == at:
                        gevent.get_hub().loop.run_callback(worker.kill, fault, False)

            greenlet = importlib.import_module("greenlet")  # it has no types
            greenlet.settrace(count)
            try:
                worker.join(0.005 if lent else BOUND)
                while lent:
                    pool.release(lent.pop())
                worker.join(BOUND)
            finally:
                greenlet.settrace(None)
            assert worker.dead, pool.explain()
            is_through = worker.successful() and not isinstance(worker.value, gevent.GreenletExit)
            assert is_through or isinstance(worker.value or worker.exception, fault), worker.exception
            del worker, count
            check_whole(pool)
            if is_through and switches < number:
                assert number > 1, "there was nothing to stop"
                return


def stop_everywhere() -> None:
    """Greenlets are stopped wherever they let others run: probing, waiting, dialling, sending, reading, draining."""
    gevent.get_hub().print_exception = lambda *_: None  # a timeout that nobody catches is what is wanted
    for forget in (False, True):
        for call in (request, stream, leave_unread):
            for held, idle in ((0, 0), (0, 1), (1, 0), (2, 0)):
                stop_at_each_switch(call, held=held, idle=idle, forget=forget)


def leave_unread(pool: ConnectionPool) -> None:
    with pool.stream("GET", "/"):
        pass


def total() -> None:
    """A limit over all origins is shared by greenlets as by threads."""
    with PoolManager(max_total=2, ssl_context=CONTEXT, timeout=PATIENT, registry=None) as manager:

        def work(number: int) -> None:
            url = f"{SCHEME}://{'127.0.0.1' if number % 2 else 'localhost'}:{PORT}/"
            for _ in range(5):
                assert manager.request("GET", url).data == b"hello"

        gevent.joinall([gevent.spawn(work, number) for number in range(12)], timeout=BOUND, raise_error=True)
        assert sum(stats.idle + stats.leased for stats in manager.stats().values()) <= 2


def fork() -> None:
    """The child begins anew, and the parent goes on."""
    with new_pool(2) as pool:
        conn: HTTPConnection = pool.acquire()
        pool.request("GET", "/")
        child = os.fork()
        if not child:
            code = 1
            try:
                request(pool)
                code = 0 if pool.stats().opened == 1 else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        conn.request("GET", "/")
        assert conn.getresponse().read() == b"hello"
        pool.release(conn)
        check_whole(pool)


PROGRAMS: dict[str, Callable[[], None]] = {
    "share": share,
    "wait": wait_for_another,
    "order": wait_in_order,
    "hold all": hold_all,
    "dial late": dial_late,
    "forget": forget_to_release,
    "look at dead": look_at_dead,
    "timeout in request": lambda: interrupt(request, forget=True),
    "timeout in stream": lambda: interrupt(stream, forget=False),
    "kill": kill,
    "stop everywhere": stop_everywhere,
    "total": total,
    "fork": fork,
}

if __name__ == "__main__":
    PROGRAMS[WHAT]()
    sys.stdout.write(f"whole {threading.current_thread().name}\n")
