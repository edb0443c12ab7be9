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
import os  # noqa: E402
import ssl  # noqa: E402
import threading  # noqa: E402
from collections.abc import Callable  # noqa: E402

import gevent  # noqa: E402

from pooledhttp import AcquireTimeout, ConnectionPool, HTTPConnection, PoolManager, Timeout  # noqa: E402

BOUND = 20.0
PATIENT = Timeout(acquire=BOUND, connect=BOUND, read=BOUND, write=BOUND)
WHAT, PORT, AUTHORITY = sys.argv[1], int(sys.argv[2]), sys.argv[3]
SCHEME = "https" if AUTHORITY != "none" else "http"
CONTEXT = ssl.create_default_context(cafile=AUTHORITY) if AUTHORITY != "none" else None


def new_pool(maxsize: int) -> ConnectionPool:
    return ConnectionPool(
        "127.0.0.1", PORT, scheme=SCHEME, ssl_context=CONTEXT, maxsize=maxsize, timeout=PATIENT, registry=None
    )


def check_whole(pool: ConnectionPool) -> None:
    """Check that nothing is held, that every slot can be had, and that a request works."""
    gc.collect()
    with gevent.Timeout(BOUND):
        while pool.stats().opening:  # a late dial that nobody waits for any more
            gevent.sleep(0.001)
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
    "timeout in request": lambda: interrupt(request, forget=True),
    "timeout in stream": lambda: interrupt(stream, forget=False),
    "kill": kill,
    "total": total,
    "fork": fork,
}

if __name__ == "__main__":
    PROGRAMS[WHAT]()
    sys.stdout.write(f"whole {threading.current_thread().name}\n")
