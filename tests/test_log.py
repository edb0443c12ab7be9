"""The log: what is told of the life of connections, at which level, and that no secret is in it."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pooledhttp import ConnectionPool, HTTPConnection, Retry, Timeout
from pooledhttp.config import PoolConfig
from pooledhttp.testing import (
    Close,
    ExpectHead,
    Repeat,
    ResourceAudit,
    Respond,
    Script,
    ScriptedServer,
    ServerFactory,
    Signal,
    Stall,
)
from tests.waits import wait_until

ROOT = Path(__file__).resolve().parent.parent
ANSWER = (ExpectHead(), Respond(body=b"ok"))
ANSWERS: Script = [Repeat(ANSWER)]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.DEBUG, logger="pooledhttp")

    def lines() -> list[str]:
        assert {record.levelname for record in caplog.records} <= {"DEBUG"}
        return [record.getMessage() for record in caplog.records if record.name == "pooledhttp"]

    return lines


def pool_to(server: ScriptedServer, **options: object) -> ConnectionPool:
    config = PoolConfig(registry=None, timeout=Timeout(acquire=10, connect=10, read=10, write=10)).replace(**options)
    return ConnectionPool(server.host, server.port, config=config)


def ends(lines: list[str]) -> list[str]:
    return [line.rpartition(": ")[2] for line in lines if line.startswith("closed a connection to ")]


def test_connection_is_told_of_when_it_opens_and_when_it_ends(
    told: Callable[[], list[str]], scripted_server: ServerFactory
) -> None:
    server = scripted_server(default=ANSWERS)
    with pool_to(server) as pool:
        pool.request("GET", "/")
        pool.request("GET", "/")
    opened, closed = told()
    assert opened.startswith(f"opened a connection to {server.host}:{server.port} in ")
    assert closed == f"closed a connection to {server.host}:{server.port}: pool_closed"


def by_idle_time(pool: ConnectionPool, clock: Clock) -> None:
    pool.request("GET", "/")
    clock.now += 30
    pool.prune()


def by_age(pool: ConnectionPool, clock: Clock) -> None:
    pool.request("GET", "/")
    clock.now += 15
    pool.request("GET", "/")
    clock.now += 15
    pool.request("GET", "/")
    clock.now += 16
    pool.prune()


def by_eviction(pool: ConnectionPool, clock: Clock) -> None:
    first, second = pool.acquire(), pool.acquire()
    pool.release(first)
    pool.release(second)
    pool.resize(1)


def by_its_borrower(pool: ConnectionPool, clock: Clock) -> None:
    with pool.connection() as conn:
        conn.close()


def by_an_unread_body(pool: ConnectionPool, clock: Clock) -> None:
    with pool.connection() as conn:
        conn.request("GET", "/")


@pytest.mark.parametrize(
    ("end", "reason"),
    [(by_idle_time, "idle"), (by_age, "max_age"), (by_eviction, "evicted"), (by_its_borrower, "client_close"),
     (by_an_unread_body, "unread")],
)  # fmt: skip
def test_reason_is_the_one_that_is_counted(
    end: Callable[[ConnectionPool, Clock], None],
    reason: str,
    told: Callable[[], list[str]],
    scripted_server: ServerFactory,
) -> None:
    clock = Clock()
    with pool_to(scripted_server(default=ANSWERS), clock=clock, max_age=45, idle_timeout=20) as pool:
        end(pool, clock)
        closed = {reason: count for reason, count in pool.stats().closed.items() if count}
        assert closed == {reason: 1}
        assert ends(told()) == [reason]


def test_dead_connection_and_the_second_delivery_are_told_of(
    told: Callable[[], list[str]], scripted_server: ServerFactory
) -> None:
    server = scripted_server([*ANSWER, ExpectHead(), Close()], default=ANSWERS)
    with pool_to(server) as pool:
        pool.request("GET", "/")
        pool.request("GET", "/")
        assert ends(told()) == ["stale_eof"]
        assert told().count(f"GET to {pool.origin} met a dead connection, and is sent again on a new one") == 1


def test_end_that_the_probe_finds_is_told_of(told: Callable[[], list[str]], scripted_server: ServerFactory) -> None:
    server = scripted_server([*ANSWER, Close()], default=ANSWERS)
    with pool_to(server) as pool:
        pool.request("GET", "/")
        wait_until(lambda: pool._idle[0].conn is not None and pool._idle[0].conn.staleness() is not None)
        pool.request("GET", "/")
        assert ends(told()) == ["stale_eof"]


def test_attempt_that_failed_is_told_of(told: Callable[[], list[str]], scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(), Respond(503, body=b"no"), *ANSWER], default=ANSWERS)
    with pool_to(server, retry=Retry(attempts=2, backoff=0)) as pool:
        assert pool.request("GET", "/secret").status == 200
        assert f"GET to {pool.origin}: attempt 1 failed (503); the next in 0.00 s" in told()


def test_failure_to_connect_is_told_of(told: Callable[[], list[str]]) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        port = nobody.getsockname()[1]
        with ConnectionPool("127.0.0.1", port, registry=None) as pool, pytest.raises(ConnectionRefusedError):
            pool.request("GET", "/")
    (line,) = told()
    assert line.startswith(f"no connection to 127.0.0.1:{port}: ConnectionRefusedError: ")


def test_connection_without_a_pool_is_told_of_too(
    told: Callable[[], list[str]], scripted_server: ServerFactory
) -> None:
    server = scripted_server(default=ANSWERS)
    conn = HTTPConnection(server.host, server.port, timeout=10)
    conn.request("GET", "/")
    conn.getresponse().read()
    conn.close()
    conn.close()
    assert len(told()) == 2
    assert ends(told()) == ["client_close"]


def test_no_secret_is_told(told: Callable[[], list[str]], scripted_server: ServerFactory) -> None:
    server = scripted_server(
        [*ANSWER, ExpectHead(), Close()], [ExpectHead(), Respond(503)], [ExpectHead(), Close()], default=ANSWERS
    )
    headers = {"Authorization": "Basic hunter2", "Cookie": "hunter2", "Idempotency-Key": "hunter2"}
    with pool_to(server, retry=Retry(attempts=4, backoff=0)) as pool:
        for _ in range(3):
            pool.request("POST", "/hunter2?token=hunter2", b"hunter2", headers)
    assert len(told()) > 5
    assert "hunter2" not in "".join(told())


def test_handler_may_ask_the_pool(
    scripted_server: ServerFactory, audit: ResourceAudit, told: Callable[[], list[str]]
) -> None:
    """No lock of the pool's is held while the log is told."""
    seen: list[int] = []

    class Asking(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "pool" in pools:
                seen.append(pools["pool"].stats().opened)
                pools["pool"].explain()

    pools: dict[str, ConnectionPool] = {}
    clock = Clock()
    handler = Asking()
    logger = logging.getLogger("pooledhttp")
    logger.addHandler(handler)
    try:
        with pool_to(scripted_server(default=ANSWERS), clock=clock, max_age=45) as pool:
            pools["pool"] = pool
            for end in (by_age, by_eviction, by_its_borrower, by_an_unread_body):
                end(pool, clock)
    finally:
        logger.removeHandler(handler)
    assert len(seen) > 6


def test_nothing_is_told_at_the_usual_level(caplog: pytest.LogCaptureFixture, scripted_server: ServerFactory) -> None:
    caplog.set_level(logging.INFO)
    server = scripted_server([*ANSWER, ExpectHead(), Close()], default=ANSWERS)
    with pool_to(server) as pool:
        pool.request("GET", "/")
        pool.request("GET", "/")
    assert [record for record in caplog.records if record.name == "pooledhttp"] == []


def test_connections_come_and_go_though_the_lock_of_logging_is_taken_for_ever(
    caplog: pytest.LogCaptureFixture, scripted_server: ServerFactory
) -> None:
    """An exception from a signal's handler can leave it so."""
    server = scripted_server(default=ANSWERS)
    answered = threading.Event()

    def ask() -> None:
        with pool_to(server) as pool:
            pool.request("GET", "/")
        answered.set()

    # Throws away what it remembers of levels, and sets one that we have not asked about: the usual way to ask, a
    # logger's `isEnabledFor`, would take the lock.
    caplog.set_level(logging.INFO)
    with logging._lock:  # type: ignore[attr-defined]
        caller = threading.Thread(target=ask)
        caller.start()
        assert answered.wait(10)
    caller.join(10)


def test_program_that_does_not_log_does_not_load_logging(scripted_server: ServerFactory) -> None:
    server = scripted_server(default=ANSWERS)
    program = """
        import sys, pooledhttp
        with pooledhttp.ConnectionPool("127.0.0.1", int(sys.argv[1]), registry=None) as pool:
            pool.request("GET", "/")
        print("logging" in sys.modules)
    """
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(server.port)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert child.stdout == "False\n"


def test_late_dial_is_told_of(told: Callable[[], list[str]], scripted_server: ServerFactory) -> None:
    """It runs in a thread of its own."""
    is_there, go_on = threading.Event(), threading.Event()
    server = scripted_server([*ANSWER, ExpectHead(), Signal(is_there), Stall(until=go_on), Respond(body=b"ok")],
                             default=ANSWERS)  # fmt: skip
    with pool_to(server) as pool:
        pool.request("GET", "/")
        slow = threading.Thread(target=pool.request, args=("GET", "/"))
        slow.start()
        assert is_there.wait(10)
        pool.request("GET", "/")
        go_on.set()
        slow.join(10)
    assert len([line for line in told() if line.startswith("opened")]) == 2
    assert ends(told()) == ["pool_closed", "pool_closed"]
