"""A program that forks a hundred times while eight of its threads use a pool over TLS.

Its server is another process: OpenSSL has locks that all TLS of a process shares, and only what the package does with
them lets forks go first.

    python -m tests.apps.forking_client HOST PORT AUTHORITY
"""

from __future__ import annotations

import ssl
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

from pooledhttp import ConnectionPool, Timeout
from pooledhttp.testing import ResourceAudit

from .children import BOUND, connections_to, in_child

FORKS = 100
THREADS = 8


def main(host: str, port: int, authority: str) -> None:
    audit = ResourceAudit()
    timeout = Timeout(acquire=BOUND, connect=BOUND, read=BOUND, write=BOUND)
    context = ssl.create_default_context(cafile=authority)
    over = threading.Event()
    # Each connection serves some requests only, so that threads dial, and close, all the while.
    with (
        ConnectionPool(
            host, port, scheme="https", ssl_context=context, timeout=timeout, maxsize=8, max_requests=100, registry=None
        ) as pool,
        ThreadPoolExecutor(THREADS + 1) as executor,
    ):

        def drive() -> int:
            count = 0
            while not over.is_set():
                assert pool.request("GET", "/parent").data == b"hello"
                count += 1
            return count

        def child() -> object:
            inherited = connections_to((host, port))
            return inherited, pool.stats().opened, pool.request("GET", "/child").data

        drivers = [executor.submit(drive) for _ in range(THREADS)]
        try:
            for number in range(FORKS):
                is_from_thread = number % 4 == 0
                outcome = executor.submit(in_child, child).result(3 * BOUND) if is_from_thread else in_child(child)
                assert outcome == ([], 0, b"hello"), outcome
        finally:
            over.set()
        assert all(driver.result(BOUND) for driver in drivers)
        assert pool.request("GET", "/parent").data == b"hello"
        end = time.monotonic() + BOUND
        while pool.stats().opening and time.monotonic() < end:  # for nobody any more: its caller got another one
            threading.Event().wait(0.01)
        audit.check_pool(pool)
    audit.check()


if __name__ == "__main__":
    # Python 3.12 and later warn of what this program is about.
    warnings.filterwarnings("ignore", r"This process \(pid=\d+\) is multi-threaded", DeprecationWarning)
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
