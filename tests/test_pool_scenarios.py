"""What any pool must survive and no other file asks of ours; test_scenarios.py has the whole list.

Each test is one scenario that other pools have stumbled over, played by a scripted peer over real sockets: what comes
back to the pool and what does not, limits and signals, requests that are sent twice, names and certificates, tunnels
that break, and the end of threads and of the process.  Each leaves the pool in order: descriptors and threads are back
at the start, the counters add up, and one more request works without waiting.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import os
import resource
import select
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, Unpack

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from pooledhttp import (
    AcquireTimeout,
    ConnectionPool,
    HTTPConnection,
    IncompleteRead,
    PoolConfig,
    PoolManager,
    Retry,
    SourcePortsExhausted,
    Timeout,
    TotalTimeout,
)
from pooledhttp.config import PoolOptions
from pooledhttp.testing import (
    Close,
    ExpectHead,
    KeepOpen,
    Peer,
    Repeat,
    Reset,
    ResourceAudit,
    Respond,
    ScriptedServer,
    Send,
    ServerFactory,
    Stall,
    StartTLS,
    Step,
)

BOUND = 10.0
PATIENT = Timeout(acquire=BOUND, connect=BOUND, read=BOUND, write=BOUND)
AT_ONCE = Timeout(acquire=0, connect=BOUND, read=BOUND, write=BOUND)
HELLO = Respond(body=b"hello")
ANSWER: list[Step] = [ExpectHead(), HELLO]
ANSWERS: list[Step] = [Repeat(ANSWER)]
TUNNEL: list[Step] = [ExpectHead("CONNECT"), Respond(200), *ANSWERS]


# --- what the tests stand on ------------------------------------------------------------------------------------------


class PoolMaker(Protocol):
    def __call__(
        self, server: ScriptedServer, *, host: str | None = None, scheme: str = "http", **options: Unpack[PoolOptions]
    ) -> ConnectionPool: ...


@pytest.fixture
def make_pool(scripted_server: ServerFactory, audit: ResourceAudit) -> Iterator[PoolMaker]:
    """Make pools that are closed when the test is over, and whose counters the audit then adds up."""
    with contextlib.ExitStack() as stack:

        def make(
            server: ScriptedServer,
            *,
            host: str | None = None,
            scheme: str = "http",
            **options: Unpack[PoolOptions],
        ) -> ConnectionPool:
            settings: PoolOptions = {"registry": None, "timeout": PATIENT, **options}
            config = PoolConfig(**settings)
            pool = stack.enter_context(ConnectionPool(host or server.host, server.port, scheme=scheme, config=config))
            audit.watch(pool)
            return pool

        yield make


@pytest.fixture
def threads(audit: ResourceAudit) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8, thread_name_prefix="borrower") as executor:
        yield executor


@pytest.fixture
def resolve_to(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[str, int]], None]:
    """Have origin.test, with or without its root dot, resolve to one address."""
    answer: list[tuple[str, int]] = []
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *rest: Any) -> Any:
        return real(*answer[0], *rest) if host.rstrip(".") == "origin.test" else real(host, port, *rest)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    def resolve(to: tuple[str, int]) -> None:
        answer[:] = [to]

    return resolve


def finish(pool: ConnectionPool) -> None:
    """One normal request, without waiting for a slot: whatever happened before has left the pool in order."""
    assert pool.request("GET", "/again", timeout=AT_ONCE, retry=None).data == b"hello"
    assert gauges(pool)[1:] == (0, 0, 0)


def gauges(pool: ConnectionPool) -> tuple[int, int, int, int]:
    """Return how many are idle, leased, being opened and waiting."""
    stats = pool.stats()
    return stats.idle, stats.leased, stats.opening, stats.waiting


def counted(counts: Any) -> dict[str, int]:
    """Return counters without the zeros."""
    return {key: count for key, count in counts.items() if count}


def exchange(conn: HTTPConnection, target: str = "/") -> None:
    conn.request("GET", target)
    assert conn.getresponse().read() == b"hello"


def leave_idle(pool: ConnectionPool, count: int = 1) -> list[socket.socket]:
    """Leave connections that have served a request idle in the pool; return their sockets, the coldest first."""
    conns = [pool.acquire() for _ in range(count)]
    for conn in conns:
        exchange(conn)
    socks = [conn.sock for conn in conns]
    for conn in conns:
        pool.release(conn)
    return socks


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait for something that no event tells, bounded."""
    pause = threading.Event()
    for _ in range(2000):
        if is_so():
            return
        pause.wait(0.005)
    raise AssertionError("it did not become so within 10 s")


def await_readable(sock: socket.socket) -> None:
    """Wait until what the peer did has arrived."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    assert poll.poll(BOUND * 1000)


def pool_behind(proxy: ScriptedServer, make_pool: PoolMaker, **options: Any) -> ConnectionPool:
    """Make a pool for origin.test whose connections go through a proxy."""
    origin = ScriptedServer()
    origin.host, origin.port = "origin.test", 443 if options.get("scheme") == "https" else 80
    return make_pool(origin, proxy=f"http://{proxy.host}:{proxy.port}", maxsize=1, **options)


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("127.0.0.1", "origin.test").configure_cert(context)
    return context


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context


def names_asked_for(context: ssl.SSLContext) -> list[str | None]:
    """Return the list in which a server's context will note the name that each handshake asks for."""
    names: list[str | None] = []

    def note(_sock: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
        names.append(name)

    context.sni_callback = note
    return names


# --- what comes back and what does not --------------------------------------------------------------------------------


def test_requests_one_after_the_other_share_one_connection(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server)
    for _ in range(20):
        assert pool.request("GET", "/").data == b"hello"
    assert counted(pool.stats().acquires) == {"opened": 1, "reused": 19}
    finish(pool)
    assert server.accepted == 1


def test_requests_at_the_same_time_have_a_connection_each(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    count = 4
    together = threading.Barrier(count)

    def serve(peer: Peer) -> None:
        peer.read_request()
        together.wait(BOUND)  # no answer before all of them are under way
        peer.send(HELLO.encode())
        Repeat(ANSWER)(peer)

    server = scripted_server(default=serve)
    pool = make_pool(server)
    calls = [threads.submit(pool.request, "GET", "/") for _ in range(count)]
    assert [call.result(BOUND).data for call in calls] == [b"hello"] * count
    assert (pool.stats().opened, pool.stats().idle) == (count, count)
    finish(pool)
    assert server.accepted == count


@pytest.mark.parametrize(("fields", "connections"), [([], 2), ([("Connection", "keep-alive")], 1)])
def test_connection_of_an_http_1_0_server_is_kept_only_if_it_says_so(
    fields: list[tuple[str, str]], connections: int, scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    old = Respond(body=b"hello", version="HTTP/1.0", headers=fields)
    server = scripted_server([ExpectHead(), old, *(ANSWERS if fields else [Close()])], default=ANSWERS)
    pool = make_pool(server, maxsize=1)
    assert pool.request("GET", "/").data == b"hello"
    finish(pool)
    assert server.accepted == connections


def test_stream_that_was_read_to_its_end_keeps_its_connection_until_its_block_ends(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1)
    with pool.stream("GET", "/") as response:
        assert response.read() == b"hello"
        assert gauges(pool) == (0, 1, 0, 0)
        with pytest.raises(AcquireTimeout):
            pool.request("GET", "/another", timeout=AT_ONCE)
    assert gauges(pool) == (1, 0, 0, 0)
    finish(pool)


@pytest.mark.parametrize(("first", "retry"), [
    ([*ANSWER, ExpectHead(), Close()], None),
    ([*ANSWER, ExpectHead(), Respond(503, body=b"busy"), *ANSWERS], Retry(backoff=0)),
    ([*ANSWER, ExpectHead(), Respond(503, body=b"busy", close=True)], Retry(backoff=0)),
], ids=["stale", "status", "status and end"])  # fmt: skip
def test_stream_that_was_sent_again_holds_one_connection_until_its_block_ends(
    first: list[Step], retry: Retry | None, scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool = make_pool(scripted_server(first, default=ANSWERS), maxsize=2, retry=retry)
    leave_idle(pool)
    with pool.stream("GET", "/") as response:
        assert response.resends + response.attempts == 2
        assert response.read() == b"hello"
        assert gauges(pool) == (0, 1, 0, 0)
    assert gauges(pool) == (1, 0, 0, 0)
    finish(pool)


def test_peer_sees_the_end_of_a_connection_whose_long_response_is_closed_unread(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    start = Send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nstart")
    server = scripted_server([ExpectHead(), start, KeepOpen()], default=ANSWERS)
    pool = make_pool(server, maxsize=1)
    with pool.stream("GET", "/") as response:
        response.close()
        assert server.peer().ended.wait(BOUND)  # at once, not when the block ends
        assert response.read() == b""
    finish(pool)


def test_file_made_from_the_socket_is_readable_after_its_connection_is_back(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    back = threading.Event()
    server = scripted_server([ExpectHead(), Stall(until=back), HELLO, Close()], default=ANSWERS)
    pool = make_pool(server, maxsize=1)
    with pool.connection() as conn:
        conn.request("GET", "/")
        file = conn.sock.makefile("rb")
        conn.close()
    assert gauges(pool) == (0, 0, 0, 0)
    back.set()
    with file:
        assert file.read().endswith(b"hello")
    finish(pool)


def test_read_that_blocks_is_woken_by_a_shutdown_from_another_thread(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    start = Send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nstart")
    pool = make_pool(scripted_server([ExpectHead(), start, KeepOpen()], default=ANSWERS), maxsize=1)
    lent: list[HTTPConnection] = []
    reading = threading.Event()

    def read() -> None:
        with pool.connection() as conn:
            lent.append(conn)
            conn.request("GET", "/")
            response = conn.getresponse()
            assert response.read(5) == b"start"
            reading.set()
            response.read()

    reader = threads.submit(read)
    assert reading.wait(BOUND)
    lent.pop().sock.shutdown(socket.SHUT_RDWR)
    with pytest.raises(IncompleteRead):
        reader.result(BOUND / 2)
    assert counted(pool.stats().closed) == {"truncated": 1}
    finish(pool)


def test_restart_whose_end_has_arrived_is_invisible_to_callers_that_may_not_repeat(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    count = 4
    old = scripted_server(default=ANSWERS)
    pool = make_pool(old, maxsize=count)
    socks = leave_idle(pool, count)
    old.close()
    for sock in socks:
        await_readable(sock)
    new = scripted_server(default=ANSWERS, port=old.port)
    calls = [threads.submit(pool.request, "POST", f"/{number}", b"order") for number in range(count)]
    assert [call.result(BOUND).resends for call in calls] == [0] * count
    assert sorted(request.target for request in new.requests) == [f"/{number}" for number in range(count)]
    assert counted(pool.stats().stale) == {}
    finish(pool)


# --- limits -----------------------------------------------------------------------------------------------------------


def test_zero_is_no_limit_for_a_call(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server, maxsize=1)
    with pytest.raises(ValueError, match="greater than 0"):
        pool.request("GET", "/", timeout=0)
    with pytest.raises(ValueError, match="greater than 0"), pool.stream("GET", "/", timeout=0):
        pass
    assert server.accepted == 0
    finish(pool)


def test_lease_that_may_not_wait_is_opened_and_works_like_any_other(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1)
    with pool.connection(timeout=0) as conn:
        exchange(conn)
        with pytest.raises(AcquireTimeout):
            pool.acquire(timeout=0)
    finish(pool)


def test_socket_that_its_borrower_made_nonblocking_has_no_bad_status_line(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool = make_pool(scripted_server([ExpectHead(), KeepOpen()], default=ANSWERS), maxsize=1)
    with pytest.raises((BlockingIOError, TimeoutError)), pool.connection() as conn:  # there is no answer yet
        conn.sock.settimeout(0)
        conn.request("GET", "/")
        conn.getresponse()
    finish(pool)


class Interrupted(BaseException):
    """What a signal handler raises."""


@contextlib.contextmanager
def handled(handler: Callable[[], object], *, every: float = 0.0) -> Iterator[None]:
    """Have SIGALRM handled in the main thread, and have it come at intervals of so many seconds; 0: when it is sent."""
    before = signal.signal(signal.SIGALRM, lambda *_: handler())
    signal.setitimer(signal.ITIMER_REAL, every, every)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def alarm(_: object = None) -> None:
    """Send the main thread a signal, from another one."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGALRM)


def interrupt() -> None:
    raise Interrupted


@pytest.mark.parametrize("is_reused", [False, True])
def test_signal_whose_handler_returns_does_not_end_a_wait(
    is_reused: bool, scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    enough = threading.Event()
    seen: list[None] = []

    def handler() -> None:
        seen.append(None)
        if len(seen) == 5:
            enough.set()

    answer = [ExpectHead(), Stall(until=enough), HELLO]
    pool = make_pool(scripted_server([*(ANSWER if is_reused else []), *answer, *ANSWERS]), maxsize=1)
    if is_reused:
        leave_idle(pool)
    with handled(handler, every=0.01):
        assert pool.request("GET", "/").data == b"hello"
    assert len(seen) >= 5
    finish(pool)


@pytest.mark.parametrize("is_reused", [False, True])
def test_signals_do_not_prolong_a_limit(is_reused: bool, scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    # Each comes sooner than the limit ends: a wait that began anew after each of them would never be over.
    script = [*(ANSWER if is_reused else []), ExpectHead(optional=True), KeepOpen()]
    pool = make_pool(scripted_server(script, default=ANSWERS), maxsize=1)
    if is_reused:
        leave_idle(pool)
    with handled(lambda: None, every=0.02), pytest.raises(TotalTimeout):
        pool.request("GET", "/", timeout=0.4)
    finish(pool)


def test_signal_whose_handler_raises_ends_the_wait_for_an_answer(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool = make_pool(scripted_server([ExpectHead(), alarm, KeepOpen()], default=ANSWERS), maxsize=1)
    with pytest.raises(Interrupted), handled(interrupt):
        pool.request("GET", "/")
    assert gauges(pool) == (0, 0, 0, 0)
    finish(pool)


def test_signal_whose_handler_raises_ends_the_wait_for_a_connection(
    scripted_server: ServerFactory, make_pool: PoolMaker, threads: ThreadPoolExecutor
) -> None:
    def alarm_when_somebody_waits() -> None:
        wait_until(lambda: pool.stats().waiting == 1)
        alarm()

    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1)
    held = threads.submit(pool.acquire).result(BOUND)  # by another thread: nobody waits for himself
    with pytest.raises(Interrupted), handled(interrupt):
        threads.submit(alarm_when_somebody_waits)
        pool.acquire()
    assert gauges(pool) == (0, 1, 0, 0)
    pool.release(held)
    finish(pool)


@pytest.mark.parametrize("wall", [0.0, 4e9], ids=["1970", "2096"])
def test_wall_clock_decides_nothing(
    wall: float, scripted_server: ServerFactory, make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = scripted_server([*ANSWER, ExpectHead(), Respond(body=b"hello", headers=[("Keep-Alive", "timeout=60")]),
                              *ANSWERS])  # fmt: skip
    pool = make_pool(server, maxsize=1, max_age=60, idle_timeout=60)
    leave_idle(pool)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: wall)
        for _ in range(2):
            assert pool.request("GET", "/", timeout=BOUND).data == b"hello"
    assert counted(pool.stats().closed) == {}
    finish(pool)
    assert server.accepted == 1


@contextlib.contextmanager
def low_descriptors_taken() -> Iterator[None]:
    """Have every further descriptor be above 1023."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    try:
        with contextlib.ExitStack() as stack:
            while (copy := os.dup(0)) <= 1023:
                stack.callback(os.close, copy)
            stack.callback(os.close, copy)
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_everything_works_above_descriptor_1023(
    scheme: str, scripted_server: ServerFactory, make_pool: PoolMaker, tmp_path: Path
) -> None:
    is_tls = scheme == "https"
    server = scripted_server(default=ANSWERS, ssl_context=server_context() if is_tls else None)
    upload = tmp_path / "upload"
    upload.write_bytes(bytes(1_000_000))
    with low_descriptors_taken():
        context = client_context() if is_tls else None
        pool = make_pool(server, maxsize=1, scheme=scheme, ssl_context=context, expect_continue_timeout=0.05)
        assert leave_idle(pool)[0].fileno() > 1023
        with upload.open("rb") as file:
            assert pool.request("PUT", "/", file, timeout=BOUND).data == b"hello"
        assert pool.request("PUT", "/", bytes(1_000_000)).data == b"hello"
        assert pool.request("PUT", "/", b"b", {"Expect": "100-continue"}, timeout=BOUND).data == b"hello"
        assert pool.prune() == 0
        pool.close()
    assert server.accepted == 1


# --- sent twice -------------------------------------------------------------------------------------------------------

HALF = Send(b"HTTP/1.1 503 Busy\r\nContent-Length: 9\r\n\r\nstart")


@pytest.mark.parametrize("ending", [Close(), Reset(), KeepOpen()], ids=["FIN", "RST", "silence"])
def test_rest_that_cannot_be_drained_before_a_retry_costs_no_slot(
    ending: Step, scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    broken: list[Step] = [ExpectHead(), HALF, ending]
    server = scripted_server(broken, broken, default=ANSWERS)
    pool = make_pool(server, maxsize=1, retry=Retry(attempts=3, backoff=0))
    with pool.stream("GET", "/") as response:
        assert (response.attempts, response.status, response.read()) == (3, 200, b"hello")
    assert gauges(pool) == (1, 0, 0, 0)
    finish(pool)
    assert server.accepted == 3


@pytest.mark.parametrize(("crossing", "retry"), [
    ([ExpectHead(), Close()], None),
    ([ExpectHead(), Respond(503, headers=[("Retry-After", "0")]), *ANSWERS], Retry(backoff=0)),
], ids=["stale", "Retry-After"])  # fmt: skip
def test_body_in_chunks_is_in_chunks_when_it_is_sent_again(
    crossing: list[Step], retry: Retry | None, scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    server = scripted_server([*ANSWER, *crossing], default=ANSWERS)
    pool = make_pool(server, maxsize=1, retry=retry)
    leave_idle(pool)
    response = pool.request("PUT", "/", b"order", {"Transfer-Encoding": "chunked"})
    assert response.resends + response.attempts == 2
    _, lost, repeated = server.requests
    assert lost == repeated
    assert (repeated.field("Transfer-Encoding"), repeated.field("Content-Length")) == ("chunked", None)
    assert repeated.body == b"order"
    finish(pool)


# --- what goes over the wire ------------------------------------------------------------------------------------------


def test_fields_keep_their_order_and_case_and_none_of_ours_says_who_is_calling(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server, maxsize=1)
    pool.request("GET", "/")
    pool.request("GET", "/", headers={"x-b": "1", "user-agent": "mine", "X-a": "2", "HOST": "other.test"})
    plain, own = (request.head for request in server.requests)
    ours = b"Host: 127.0.0.1:%d\r\nAccept-Encoding: identity\r\n" % server.port
    assert plain == b"GET / HTTP/1.1\r\n" + ours + b"\r\n"
    assert own == (
        b"GET / HTTP/1.1\r\nAccept-Encoding: identity\r\n"
        b"x-b: 1\r\nuser-agent: mine\r\nX-a: 2\r\nHOST: other.test\r\n\r\n"
    )
    finish(pool)


def test_root_dot_stays_in_the_host_field_and_out_of_the_name_that_tls_asks_for(
    scripted_server: ServerFactory, make_pool: PoolMaker, resolve_to: Callable[[tuple[str, int]], None]
) -> None:
    context = server_context()
    names = names_asked_for(context)
    server = scripted_server(default=ANSWERS, ssl_context=context)
    resolve_to(server.address)
    pool = make_pool(server, host="origin.test.", scheme="https", ssl_context=client_context(), maxsize=1)
    finish(pool)
    assert names == ["origin.test"]
    assert server.requests[0].field("Host") == f"origin.test.:{server.port}"


def test_port_0_is_not_the_default_port(audit: ResourceAudit) -> None:
    with PoolManager(registry=None) as manager:
        zero, default = manager.pool("http://127.0.0.1:0/"), manager.pool("http://127.0.0.1/")
        assert (zero.port, default.port) == (0, 80)
        assert zero is not default
        with pytest.raises(OSError):
            zero.request("GET", "/")
        audit.check_pool(zero)


# --- odd answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [b"", b"Content-Type: text/plain\r\n"])
def test_pieces_of_a_body_with_a_length_end_although_the_connection_does_not(
    fields: bytes, scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    answer = Send(b"HTTP/1.1 200 OK\r\n" + fields + b"Content-Length: 5\r\n\r\nhello")
    server = scripted_server([ExpectHead(), answer, *ANSWERS])
    pool = make_pool(server, maxsize=1)
    with pool.stream("GET", "/") as response:
        assert b"".join(response) == b"hello"
        assert list(response) == []
    finish(pool)


@pytest.mark.parametrize(("line", "is_kept"), [
    (b"X:", True), (b"X:  ", True), (b": no name", False), (b":", False), (b"no colon", False),
])  # fmt: skip
def test_line_that_lacks_its_name_value_or_colon_hides_nothing(
    line: bytes, is_kept: bool, scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    answer = Send(b"HTTP/1.1 200 OK\r\nA: b\r\n" + line + b"\r\nContent-Length: 5\r\n\r\nhello")
    server = scripted_server([ExpectHead(), answer, *ANSWERS], default=ANSWERS)
    pool = make_pool(server, maxsize=1)
    response = pool.request("GET", "/")
    assert response.data == b"hello"
    assert (response.getheader("A"), response.getheader("X", "")) == ("b", "")
    assert gauges(pool) == ((1 if is_kept else 0), 0, 0, 0)
    finish(pool)
    assert server.accepted == (1 if is_kept else 2)


@pytest.mark.parametrize("answer", [HELLO, Respond(body=b"hello", chunked=True)], ids=["length", "chunked"])
def test_response_that_was_closed_reads_as_empty(
    answer: Respond, scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool = make_pool(scripted_server([ExpectHead(), answer, *ANSWERS]), maxsize=1)
    with pool.stream("GET", "/") as response:
        response.close()
        assert response.read() == response.read(0) == response.read(5) == b""
        assert list(response) == []
    finish(pool)


# --- sources, certificates, tunnels -----------------------------------------------------------------------------------


def test_source_port_that_is_taken_is_told_at_once_and_costs_no_slot(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.8", 0))
        source = probe.getsockname()
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server, maxsize=3, source_address=source)
    with pool.connection() as conn:
        for _ in range(2):
            with pytest.raises(SourcePortsExhausted):
                pool.request("GET", "/")
        assert gauges(pool) == (0, 1, 0, 0)
        exchange(conn)
    finish(pool)
    assert server.accepted == 1


def test_source_address_of_another_machine_is_told_and_costs_no_slot(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    server = scripted_server(default=ANSWERS)
    pool = make_pool(server, maxsize=1, source_address=("192.0.2.77", 0))
    for _ in range(2):
        with pytest.raises(OSError) as caught:
            pool.request("GET", "/", timeout=AT_ONCE)
        assert caught.value.errno == errno.EADDRNOTAVAIL
        assert gauges(pool) == (0, 0, 0, 0)
    assert server.accepted == 0
    finish(make_pool(server))


def test_server_that_asks_for_a_certificate_in_vain_is_an_error_and_asked_once(
    scripted_server: ServerFactory, make_pool: PoolMaker, resolve_to: Callable[[tuple[str, int]], None]
) -> None:
    context = server_context()
    authority().configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    strict = scripted_server(default=ANSWERS, ssl_context=context)
    lenient = scripted_server(default=ANSWERS, ssl_context=server_context())
    pool = make_pool(lenient, host="origin.test", scheme="https", ssl_context=client_context(), maxsize=1)
    resolve_to(strict.address)
    # In TLS 1.3 the refusal arrives after the client's handshake, as the answer or as a reset in its place.
    with pytest.raises(OSError):
        pool.request("GET", "/")
    assert (strict.accepted, strict.requests) == (1, [])
    assert gauges(pool) == (0, 0, 0, 0)
    resolve_to(lenient.address)
    finish(pool)


def test_certificate_of_the_client_may_have_a_key_with_a_password(
    scripted_server: ServerFactory, make_pool: PoolMaker, tmp_path: Path
) -> None:
    context = server_context()
    authority().configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    certificate = authority().issue_cert("client.test")
    key = serialization.load_pem_private_key(certificate.private_key_pem.bytes(), None)
    chain, locked = tmp_path / "chain.pem", tmp_path / "key.pem"
    certificate.cert_chain_pems[0].write_to_path(chain)
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"open sesame"),
        )
    )
    ours = client_context()
    ours.load_cert_chain(chain, locked, password="open sesame")
    server = scripted_server(default=ANSWERS, ssl_context=context)
    finish(make_pool(server, scheme="https", ssl_context=ours, maxsize=1))


@pytest.mark.parametrize("crosses", [False, True], ids=["while idle", "as the request arrives"])
def test_tunnel_that_the_proxy_dropped_is_asked_for_again(
    crosses: bool, scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    idle = threading.Event()
    end: list[Step] = [ExpectHead(), Close()] if crosses else [Stall(until=idle), Close()]
    proxy = scripted_server([ExpectHead("CONNECT"), Respond(200), *ANSWER, *end], default=TUNNEL)
    pool = pool_behind(proxy, make_pool, proxy_headers={"Proxy-Authorization": "Basic c2VjcmV0"})
    (sock,) = leave_idle(pool)
    idle.set()
    if not crosses:
        await_readable(sock)
    response = pool.request("GET", "/")
    assert (response.data, response.resends) == (b"hello", int(crosses))
    first, second = (peer.requests[0] for peer in proxy.connections)
    assert (first.method, first.head) == ("CONNECT", second.head)
    finish(pool)
    assert proxy.accepted == 2


def test_tls_inside_a_tunnel_asks_for_the_origins_name_and_for_http_1_1(
    scripted_server: ServerFactory, make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority().cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = server_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    names = names_asked_for(context)
    chosen: list[str | None] = []

    def note_protocol(peer: Peer) -> None:
        assert isinstance(peer.sock, ssl.SSLSocket)
        chosen.append(peer.sock.selected_alpn_protocol())

    opening: list[Step] = [ExpectHead("CONNECT", "origin.test:443"), Respond(200), StartTLS(context)]
    script: list[Callable[[Peer], None]] = [*opening, note_protocol, *ANSWERS]
    pool = pool_behind(scripted_server(script), make_pool, scheme="https")
    finish(pool)
    assert (names, chosen) == (["origin.test"], ["http/1.1"])


# --- what is dropped, and the end of threads and of the process -------------------------------------------------------


def drop_response_of_a_lent_connection(pool: ConnectionPool) -> None:
    conn = pool.acquire()
    conn.request("GET", "/")
    conn.getresponse()


def drop_stream(pool: ConnectionPool) -> None:
    pool.stream("GET", "/").__enter__()


@pytest.mark.parametrize("drop", [drop_response_of_a_lent_connection, drop_stream])
def test_response_that_is_dropped_unread_frees_its_slot_and_ends_its_connection(
    drop: Callable[[ConnectionPool], None], scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    def drop_and_collect() -> None:
        drop(pool)
        gc.collect()

    half = Send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nstart")
    server = scripted_server([ExpectHead(), half, KeepOpen()], default=ANSWERS)
    pool = make_pool(server, maxsize=1)
    with pytest.warns(ResourceWarning, match="unclosed") as warned:
        drop_and_collect()
    assert len(warned) == 1
    assert server.peer().ended.wait(BOUND)
    stats = pool.stats()
    assert (stats.leaked, counted(stats.closed)) == (1, {"leaked": 1})
    finish(pool)


def test_thread_that_ends_with_a_connection_frees_its_slot(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS), maxsize=1)
    own = threading.local()

    def borrow() -> None:
        own.conn = pool.acquire()

    def live() -> None:
        thread = threading.Thread(target=borrow)
        thread.start()
        thread.join(BOUND)
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed") as warned:
        live()
    assert len(warned) == 1
    assert pool.stats().leaked == 1
    finish(pool)


EXIT = """
    import sys, threading
    from pooledhttp import PoolManager

    url = sys.argv[1]
    manager = PoolManager(maxsize=2, max_total=3, leak_after=3600)
    pool = manager.pool(url)
    manager.request("GET", url)                      # leaves one idle, which is then
    lent = pool.acquire()                            # lent, and watched for a leak
    stream = pool.stream("GET", "/").__enter__()     # half of a response is read
    stream.read(2)
    waiter = threading.Thread(target=pool.acquire, kwargs={"timeout": 3600}, daemon=True)
    waiter.start()
    other = manager.pool(sys.argv[2])
    other.request("GET", "/")                        # idle for ever
    while not pool.stats().waiting:
        waiter.join(0.01)
    print("done")
"""


def test_pools_in_use_neither_keep_the_process_alive_nor_print_at_its_end(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    servers = [scripted_server(default=ANSWERS), scripted_server(default=ANSWERS)]
    program = [sys.executable, "-c", textwrap.dedent(EXIT), *(server.url for server in servers)]
    root = Path(__file__).parents[1]
    ended = subprocess.run(program, cwd=root, capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")
    servers[0].wait_until(lambda: all(peer.ended.is_set() for server in servers for peer in server.connections))
