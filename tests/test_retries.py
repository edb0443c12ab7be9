"""A call in several attempts, end to end: what is tried again, what is not, and what it leaves behind.

No test waits between two attempts: what would sleep is replaced, and notes how long it should have been.  What is asked
of `retry.py` alone stands in `test_retry.py`.
"""

from __future__ import annotations

import contextlib
import gc
import io
import select
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, Unpack

import pytest
import trustme

from pooledhttp import (
    AcquireTimeout,
    ConnectionPool,
    ConnectTimeout,
    FailedAttempt,
    HTTPConnection,
    HTTPException,
    IncompleteRead,
    PoolClosed,
    PoolConfig,
    PoolManager,
    ReadTimeout,
    RemoteDisconnected,
    Response,
    Retry,
    StreamedResponse,
    Timeout,
    TotalTimeout,
    TunnelError,
)
from pooledhttp import pool as pool_room
from pooledhttp.config import PoolOptions
from pooledhttp.request import PreparedRequest
from pooledhttp.retry import AS_CONFIGURED, WINDOW, Attempts
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
from pooledhttp.timeouts import pause

BOUND = 10.0
PATIENT = Timeout(acquire=BOUND, connect=BOUND, read=BOUND, write=BOUND)
AT_ONCE = Timeout(acquire=0, connect=BOUND, read=BOUND, write=BOUND)
ASK = ExpectHead()
HELLO = Respond(body=b"hello")
BUSY = Respond(503, body=b"busy")
ANSWERS: list[Step] = [Repeat([ASK, HELLO])]
BUSY_ALWAYS: list[Step] = [Repeat([ASK, BUSY])]
AGAIN = Retry(attempts=3, backoff=0)
KEY = {"Idempotency-Key": "7"}

Reply = Response | StreamedResponse
Call = Callable[..., tuple[Reply, bytes]]


# --- what the tests stand on ------------------------------------------------------------------------------------------


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Pauses(list[float]):
    """Stands in for what sleeps between two attempts: notes for how long, and does what a test wants meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: list[Callable[[], object]] = []  # one for each pause; the last first
        self.clock: Clock | None = None

    def __call__(self, seconds: float) -> None:
        self.append(seconds)
        if self.clock is not None:
            self.clock.now += seconds
        if self.meanwhile:
            self.meanwhile.pop()()


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


class PoolMaker(Protocol):
    def __call__(
        self, server: ScriptedServer, *, host: str | None = None, scheme: str = "http", **options: Unpack[PoolOptions]
    ) -> ConnectionPool: ...


@pytest.fixture
def make_pool(scripted_server: ServerFactory, audit: ResourceAudit, pauses: Pauses) -> Iterator[PoolMaker]:
    """Make pools that are closed when the test is over, and whose counters the audit then adds up."""
    with contextlib.ExitStack() as stack:

        def make(
            server: ScriptedServer, *, host: str | None = None, scheme: str = "http", **options: Unpack[PoolOptions]
        ) -> ConnectionPool:
            settings: PoolOptions = {"registry": None, "timeout": PATIENT, "maxsize": 1, "retry": AGAIN, **options}
            config = PoolConfig(**settings)
            pool = stack.enter_context(ConnectionPool(host or server.host, server.port, scheme=scheme, config=config))
            pool._pause = pauses
            audit.watch(pool)
            return pool

        yield make


@pytest.fixture
def make_manager(scripted_server: ServerFactory, audit: ResourceAudit) -> Iterator[Callable[..., PoolManager]]:
    with contextlib.ExitStack() as stack:

        def make(**options: Any) -> PoolManager:
            return stack.enter_context(PoolManager(**{"registry": None, "timeout": PATIENT, **options}))

        yield make


def by_request(pool: ConnectionPool, method: str = "GET", target: str = "/", **kind: Any) -> tuple[Reply, bytes]:
    response = pool.request(method, target, **kind)
    return response, response.data


def by_stream(pool: ConnectionPool, method: str = "GET", target: str = "/", **kind: Any) -> tuple[Reply, bytes]:
    with pool.stream(method, target, **kind) as response:
        return response, response.read()


both = pytest.mark.parametrize("call", [by_request, by_stream])


def finish(pool: ConnectionPool) -> None:
    """One normal request, without waiting for a slot: whatever happened before has left the pool in order."""
    assert pool.request("GET", "/again", timeout=AT_ONCE, retry=None).data == b"hello"
    assert gauges(pool) == (1, 0, 0, 0)


def gauges(pool: ConnectionPool) -> tuple[int, int, int, int]:
    """Return how many are idle, leased, being opened and waiting."""
    stats = pool.stats()
    return stats.idle, stats.leased, stats.opening, stats.waiting


def counted(counts: Any) -> dict[str, int]:
    """Return counters without the zeros."""
    return {key: count for key, count in counts.items() if count}


def retries(pool: ConnectionPool) -> tuple[dict[str, int], dict[str, int]]:
    """Return the retries that were made and those that were not, by reason."""
    stats = pool.stats()
    return counted(stats.retries), counted(stats.retries_refused)


def notes(fault: BaseException) -> list[str]:
    return getattr(fault, "__notes__", [])


def busy(*fields: tuple[str, str]) -> Respond:
    return Respond(503, body=b"busy", headers=fields)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def await_readable(sock: socket.socket) -> None:
    """Wait until what the peer did has arrived."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    assert poll.poll(BOUND * 1000)


class Late:
    """A server that nobody listens for before `start`: the first attempt is refused."""

    def __init__(self, factory: ServerFactory, *scripts: list[Step]) -> None:
        self.host, self.port = "127.0.0.1", free_port()
        self.server: ScriptedServer | None = None
        self._factory = factory
        self._scripts = scripts

    def start(self) -> None:
        self.server = self._factory(*self._scripts, default=ANSWERS, port=self.port)

    @property
    def bodies(self) -> list[bytes]:
        assert self.server is not None
        return [request.body for request in self.server.requests]


# --- an answer that is asked for again --------------------------------------------------------------------------------


@both
def test_503_is_tried_again_and_the_next_answer_is_the_response(
    call: Call, scripted_server: ServerFactory, make_pool: PoolMaker, pauses: Pauses
) -> None:
    server = scripted_server([ASK, BUSY, ASK, HELLO, *ANSWERS])
    pool = make_pool(server)
    response, body = call(pool)
    assert (response.status, body) == (200, b"hello")
    assert response.attempts == 2
    assert response.failures == (FailedAttempt(what="503", status=503, waited=0.0),)
    assert pauses == [0.0]
    assert retries(pool) == ({"status": 1}, {})
    assert counted(pool.stats().requests) == {"2xx": 1}
    finish(pool)
    assert server.accepted == 1


@both
def test_answer_to_the_last_attempt_is_returned_whatever_it_is(
    call: Call, scripted_server: ServerFactory, make_pool: PoolMaker, pauses: Pauses
) -> None:
    server = scripted_server([*[ASK, BUSY] * 3, *ANSWERS])
    pool = make_pool(server)
    response, body = call(pool)
    assert (response.status, body, response.attempts) == (503, b"busy", 3)
    assert [failure.status for failure in response.failures] == [503, 503]
    assert len(pauses) == 2
    assert retries(pool) == ({"status": 2}, {"attempts": 1})
    assert counted(pool.stats().requests) == {"5xx": 1}
    finish(pool)


@both
@pytest.mark.parametrize("status", [400, 404, 408, 500, 501])
def test_status_that_is_not_asked_for_is_an_answer(
    status: int, call: Call, scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool = make_pool(scripted_server([ASK, Respond(status), *ANSWERS]))
    response, _ = call(pool)
    assert (response.status, response.attempts, response.failures) == (status, 1, ())
    assert retries(pool) == ({}, {})
    finish(pool)


@both
def test_response_without_retries_says_so(call: Call, scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    pool = make_pool(scripted_server(default=ANSWERS))
    for retry in (AGAIN, None):
        response, _ = call(pool, retry=retry)
        assert (response.attempts, response.failures, response.resends) == (1, (), 0)
    finish(pool)


@both
@pytest.mark.parametrize("configured", [None, AGAIN], ids=["off", "on"])
@pytest.mark.parametrize(("asked", "is_on"), [(None, False), (AGAIN, True), (AS_CONFIGURED, None),
                                              (AS_CONFIGURED.encode().decode(), None), ("nothing", None)])  # fmt: skip
def test_call_says_otherwise_than_the_pool(
    configured: Retry | None, asked: Any, is_on: bool | None, call: Call, scripted_server: ServerFactory,
    make_pool: PoolMaker,
) -> None:  # fmt: skip
    server = scripted_server([ASK, BUSY, *ANSWERS])
    pool = make_pool(server, retry=configured)
    response, _ = call(pool) if asked == "nothing" else call(pool, retry=asked)
    expected = configured is not None if is_on is None else is_on
    assert (response.status, response.attempts) == ((200, 2) if expected else (503, 1))
    finish(pool)


def test_retries_are_off_by_default(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    server = scripted_server([ASK, BUSY, *ANSWERS])
    with ConnectionPool(*server.address, registry=None) as pool:
        assert pool.request("GET", "/").status == 503
        finish(pool)


def test_backoff_is_waited_for_between_the_attempts(
    scripted_server: ServerFactory, make_pool: PoolMaker, pauses: Pauses
) -> None:
    pool = make_pool(scripted_server([*[ASK, BUSY] * 8, *ANSWERS]), retry=Retry(attempts=9, backoff=1, backoff_max=4))
    response = pool.request("GET", "/")
    assert [failure.waited for failure in response.failures] == pauses
    for waited, most in zip(pauses, [1, 2, 4, 4, 4, 4, 4, 4], strict=True):
        assert 0 <= waited <= most
    assert len(set(pauses)) > 1  # at random
    finish(pool)


@pytest.mark.parametrize(("fields", "seconds"), [
    ([("Retry-After", "7")], 7),
    ([("Date", "Sun, 06 Nov 1994 08:49:37 GMT"), ("Retry-After", "Sun, 06 Nov 1994 08:49:57 GMT")], 20),
    ([("retry-after", "0")], 0),
    ([("Retry-After", "Sun, 06 Nov 1994 08:49:57 GMT")], 0),
    ([("Retry-After", "soon")], 0),
])  # fmt: skip
@both
def test_retry_after_is_waited_for(
    fields: list[tuple[str, str]], seconds: float, call: Call, scripted_server: ServerFactory, make_pool: PoolMaker,
    pauses: Pauses,
) -> None:  # fmt: skip
    pool = make_pool(scripted_server([ASK, busy(*fields), *ANSWERS]), retry=Retry(backoff=0.5))
    response, _ = call(pool)
    assert response.status == 200
    assert len(pauses) == 1
    assert seconds <= pauses[0] <= seconds + 0.5
    finish(pool)


@both
def test_retry_after_that_is_too_long_is_not_waited_for(
    call: Call, scripted_server: ServerFactory, make_pool: PoolMaker, pauses: Pauses
) -> None:
    pool = make_pool(scripted_server([ASK, busy(("Retry-After", "31")), *ANSWERS]))
    response, body = call(pool)
    assert (response.status, body, response.attempts) == (503, b"busy", 1)
    assert response.getheader("retry-after") == "31"
    assert pauses == []
    assert retries(pool) == ({}, {"retry_after": 1})
    finish(pool)


# --- what failed ------------------------------------------------------------------------------------------------------

TRUNCATED = [Send(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf"), Close()]
FAULTS = [
    pytest.param([Reset()], "reset", ConnectionResetError, id="RST"),
    pytest.param([Close()], "reset", RemoteDisconnected, id="FIN"),
    pytest.param([KeepOpen()], "timeout", ReadTimeout, id="silence"),
]
BODY_FAULTS = [
    pytest.param(TRUNCATED, "truncated", IncompleteRead, id="truncated"),
    pytest.param([Send(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf"), KeepOpen()], "timeout", ReadTimeout,
                 id="silence in the body"),
]  # fmt: skip


def impatient(fault: Any) -> Timeout:
    return Timeout(read=0.05 if fault is ReadTimeout else BOUND)


@both
@pytest.mark.parametrize(("ending", "reason", "error"), FAULTS)
def test_idempotent_request_that_got_no_answer_is_tried_again(
    ending: list[Step], reason: str, error: type[Exception], call: Call, scripted_server: ServerFactory,
    make_pool: PoolMaker,
) -> None:  # fmt: skip
    server = scripted_server([ASK, *ending], default=ANSWERS)
    pool = make_pool(server, timeout=impatient(error))
    response, body = call(pool)
    assert (body, response.attempts) == (b"hello", 2)
    (failure,) = response.failures
    assert failure.status is None
    assert failure.what.startswith(f"{error.__name__}: ")
    assert retries(pool) == ({reason: 1}, {})
    assert counted(pool.stats().requests) == {"2xx": 1}
    finish(pool)
    assert server.accepted == 2


@pytest.mark.parametrize(("ending", "reason", "error"), BODY_FAULTS)
def test_request_whose_body_broke_is_tried_again(
    ending: list[Step], reason: str, error: type[Exception], scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    pool = make_pool(scripted_server([ASK, *ending], default=ANSWERS), timeout=impatient(error))
    response = pool.request("GET", "/")
    assert (response.data, response.attempts) == (b"hello", 2)
    assert retries(pool) == ({reason: 1}, {})
    finish(pool)


@pytest.mark.parametrize(("ending", "reason", "error"), BODY_FAULTS)
def test_stream_is_not_tried_again_in_its_body(
    ending: list[Step], reason: str, error: type[Exception], scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    server = scripted_server([ASK, *ending], default=ANSWERS)
    pool = make_pool(server, timeout=impatient(error))
    with pytest.raises(error), pool.stream("GET", "/") as response:
        response.read()
    assert retries(pool) == ({}, {})
    assert len(server.requests) == 1
    finish(pool)


@both
@pytest.mark.parametrize("garbage", [
    b"HTTP/1.1 2000 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
])  # fmt: skip
def test_malformed_answer_is_not_asked_for_again(
    garbage: bytes, call: Call, scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    server = scripted_server([ASK, Send(garbage), KeepOpen()], default=ANSWERS)
    pool = make_pool(server)
    with pytest.raises(HTTPException) as caught:
        call(pool)
    assert not any("attempt" in note for note in notes(caught.value))  # an InvalidChunk has one of its own
    assert retries(pool) == ({}, {})
    assert len(server.requests) == 1
    finish(pool)


@both
def test_error_of_the_last_attempt_is_raised_and_says_what_went_before_it(
    call: Call, scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    server = scripted_server([ASK, BUSY, ASK, Reset()], [ASK, Close()], default=ANSWERS)
    pool = make_pool(server, resend_stale=False)
    with pytest.raises(ConnectionError) as caught:
        call(pool)
    assert notes(caught.value) == [
        "after 3 attempts: 503, ConnectionResetError: [Errno 104] Connection reset by peer, RemoteDisconnected"
    ]
    assert caught.value.__context__ is None
    assert retries(pool) == ({"status": 1, "reset": 1}, {"attempts": 1})
    assert counted(pool.stats().requests) == {"error": 1}
    finish(pool)


def test_error_that_is_not_tried_again_says_what_went_before_it_too(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    server = scripted_server([ASK, BUSY, ASK, Send(b"SSH-2.0\r\n\r\n"), KeepOpen()], default=ANSWERS)
    pool = make_pool(server)
    with pytest.raises(HTTPException) as caught:
        pool.request("GET", "/")
    assert notes(caught.value) == ["after 2 attempts: 503, BadStatusLine"]
    finish(pool)


@both
def test_error_without_retries_has_no_note(call: Call, scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    pool = make_pool(scripted_server([ASK, Reset()], default=ANSWERS))
    with pytest.raises(ConnectionResetError) as caught:
        call(pool, retry=None)
    assert notes(caught.value) == []
    assert counted(pool.stats().requests) == {"error": 1}
    finish(pool)


# --- what may be sent twice -------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("answer", [[BUSY], [Reset()], [Close()]], ids=["503", "RST", "FIN"])
def test_post_is_never_sent_again_once_it_may_have_arrived(
    answer: list[Step], call: Call, scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    server = scripted_server([ASK, *answer, *ANSWERS], default=ANSWERS)
    pool = make_pool(server)
    if answer == [BUSY]:
        response, _ = call(pool, "POST", body=b"order")
        assert (response.status, response.attempts) == (503, 1)
    else:
        with pytest.raises(ConnectionError):
            call(pool, "POST", body=b"order")
    assert retries(pool) == ({}, {})
    finish(pool)
    assert [request.method for request in server.requests] == ["POST", "GET"]


@both
@pytest.mark.parametrize("answer", [[BUSY], [Reset()], [Close()]], ids=["503", "RST", "FIN"])
@pytest.mark.parametrize(("headers", "retry"), [(KEY, AGAIN), ({}, Retry(backoff=0, methods={"POST"}))],
                         ids=["Idempotency-Key", "methods"])  # fmt: skip
def test_post_is_sent_again_where_that_does_no_harm(
    answer: list[Step], headers: dict[str, str], retry: Retry, call: Call, scripted_server: ServerFactory,
    make_pool: PoolMaker,
) -> None:  # fmt: skip
    server = scripted_server([ASK, *answer, *ANSWERS], default=ANSWERS)
    pool = make_pool(server, retry=retry)
    response, body = call(pool, "POST", body=b"order", headers=headers)
    assert (body, response.attempts) == (b"hello", 2)
    finish(pool)
    assert [request.body for request in server.requests] == [b"order", b"order", b""]


@both
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_request_of_any_kind_is_tried_again_after_a_refused_connection(
    method: str, call: Call, scripted_server: ServerFactory, make_pool: PoolMaker, pauses: Pauses
) -> None:
    late = Late(scripted_server)
    pool = make_pool(late)  # type: ignore[arg-type]  # its host and port are all that is asked for
    pauses.meanwhile = [late.start, lambda: None]
    response, body = call(pool, method, body=b"order")
    assert (body, response.attempts) == (b"hello", 3)
    assert {failure.what for failure in response.failures} == {"ConnectionRefusedError: [Errno 111] Connection refused"}
    assert late.bodies == [b"order"]
    assert retries(pool) == ({"connect": 2}, {})
    assert counted(pool.stats().acquires) == {"error": 2, "opened": 1}
    finish(pool)


@both
@pytest.mark.parametrize("make_body", [lambda: iter([b"or", b"der"]), lambda: io.BytesIO(b"order")],
                         ids=["iterator", "file"])  # fmt: skip
def test_body_that_can_be_had_only_once_is_sent_once(
    make_body: Callable[[], Any], call: Call, scripted_server: ServerFactory, make_pool: PoolMaker, pauses: Pauses
) -> None:
    # Before it is begun nothing is lost: a refused connection is tried again.  Then it is gone, even with PUT.
    late = Late(scripted_server, [ASK, BUSY, *ANSWERS])
    pool = make_pool(late)  # type: ignore[arg-type]  # its host and port are all that is asked for
    pauses.meanwhile = [late.start]
    response, _ = call(pool, "PUT", body=make_body(), headers=KEY)
    assert (response.status, response.attempts) == (503, 2)
    assert late.bodies == [b"order"]
    finish(pool)


@both
def test_post_of_which_no_byte_was_written_is_tried_again(
    call: Call, scripted_server: ServerFactory, make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A fresh connection, so that the rule for stale ones does not hold; it is dead before the first byte goes out.
    is_open = threading.Event()
    server = scripted_server([Stall(until=is_open), Reset()], default=ANSWERS)
    pool = make_pool(server)
    opened = pool._opener.open

    def open_and_wait(*arguments: Any) -> Any:
        conn = opened(*arguments)
        if not is_open.is_set():
            is_open.set()
            await_readable(conn.sock)
        return conn

    monkeypatch.setattr(pool._opener, "open", open_and_wait)
    response, body = call(pool, "POST", body=b"order")
    assert (body, response.attempts) == (b"hello", 2)
    assert retries(pool) == ({"reset": 1}, {})
    assert [request.body for request in server.requests] == [b"order"]
    finish(pool)


# --- connections that cannot be opened --------------------------------------------------------------------------------


def test_name_that_does_not_resolve_is_tried_again(
    scripted_server: ServerFactory, make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = scripted_server(default=ANSWERS)
    look_up, asked = socket.getaddrinfo, []

    def not_at_first(host: str, *arguments: Any) -> Any:
        asked.append(host)
        if len(asked) == 1:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return look_up("127.0.0.1", *arguments)

    monkeypatch.setattr(socket, "getaddrinfo", not_at_first)
    pool = make_pool(server, host="origin.test")
    response = pool.request("GET", "/")
    assert (response.data, response.attempts, len(asked)) == (b"hello", 2, 2)
    assert retries(pool) == ({"connect": 1}, {})
    finish(pool)


def test_connect_timeout_is_tried_again(
    scripted_server: ServerFactory, make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(scripted_server(default=ANSWERS))
    opened, faults = pool._opener.open, [ConnectTimeout("no connection within 5.00 s")]

    def not_at_first(*arguments: Any) -> Any:
        if faults:
            raise faults.pop()
        return opened(*arguments)

    monkeypatch.setattr(pool._opener, "open", not_at_first)
    response = pool.request("POST", "/", b"order")
    assert [failure.what for failure in response.failures] == ["ConnectTimeout: no connection within 5.00 s"]
    finish(pool)


@both
def test_connection_that_is_refused_after_one_that_broke_is_tried_again_for_its_own_reason(
    call: Call, scripted_server: ServerFactory, make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(scripted_server([ASK, Reset()], default=ANSWERS))
    opened, faults = pool._opener.open, [ConnectionRefusedError(111, "Connection refused"), None]

    def not_at_second(*arguments: Any) -> Any:
        if faults and (fault := faults.pop()) is not None:
            raise fault
        return opened(*arguments)

    monkeypatch.setattr(pool._opener, "open", not_at_second)
    response, body = call(pool)
    assert (body, response.attempts) == (b"hello", 3)
    assert retries(pool) == ({"reset": 1, "connect": 1}, {})
    finish(pool)


def server_context(authority: trustme.CA, name: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.mark.parametrize("ending", [Close(), Reset()], ids=["FIN", "RST"])
def test_connection_that_ends_in_the_tls_handshake_is_tried_again(
    ending: Step, scripted_server: ServerFactory, make_pool: PoolMaker, authority: trustme.CA
) -> None:
    secured: list[Step] = [StartTLS(server_context(authority)), *ANSWERS]
    server = scripted_server([ending], default=secured)
    pool = make_pool(server, scheme="https", ssl_context=client_context(authority))
    response = pool.request("POST", "/", b"order")
    assert (response.data, response.attempts) == (b"hello", 2)
    assert retries(pool) == ({"connect": 1}, {})
    finish(pool)


def test_certificate_that_fails_is_not_tried_again(
    scripted_server: ServerFactory, make_pool: PoolMaker, authority: trustme.CA
) -> None:
    server = scripted_server(default=[KeepOpen()], ssl_context=server_context(authority, "other.test"))
    pool = make_pool(server, scheme="https", ssl_context=client_context(authority))
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        pool.request("GET", "/")
    assert notes(caught.value) == []
    assert retries(pool) == ({}, {})
    assert server.accepted == 1
    assert gauges(pool) == (0, 0, 0, 0)


CONNECT = ExpectHead(method="CONNECT")


def test_proxy_in_trouble_is_tried_again_and_keeps_its_secret(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    proxy = scripted_server([CONNECT, Respond(503, close=True)], default=[CONNECT, Respond(200), *ANSWERS])
    pool = make_pool(proxy, host="origin.test", proxy=f"http://user:secret@127.0.0.1:{proxy.port}")
    response = pool.request("POST", "/", b"order")
    assert (response.data, response.attempts) == (b"hello", 2)
    assert [failure.what for failure in response.failures] == [
        "TunnelError: Tunnel connection failed: 503 Service Unavailable"
    ]
    assert retries(pool) == ({"connect": 1}, {})
    finish(pool)


def test_proxy_that_refuses_is_not_asked_again(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    proxy = scripted_server([CONNECT, Respond(407, close=True)], default=[CONNECT, Respond(200), *ANSWERS])
    pool = make_pool(proxy, host="origin.test", proxy=f"http://user:secret@127.0.0.1:{proxy.port}")
    with pytest.raises(TunnelError):
        pool.request("GET", "/")
    assert retries(pool) == ({}, {})
    assert proxy.accepted == 1
    finish(pool)


# --- the pool is the problem ------------------------------------------------------------------------------------------


@both
def test_full_pool_is_not_asked_again(call: Call, scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    pool = make_pool(scripted_server(default=ANSWERS))
    with pool.connection(), pytest.raises(AcquireTimeout) as caught:
        call(pool, timeout=AT_ONCE)
    assert notes(caught.value) == []
    assert retries(pool) == ({}, {})
    assert counted(pool.stats().requests) == {"timeout": 1}
    finish(pool)


def test_pool_that_is_full_after_the_wait_is_not_waited_for_again(
    scripted_server: ServerFactory, make_pool: PoolMaker, pauses: Pauses
) -> None:
    pool = make_pool(scripted_server([ASK, BUSY, *ANSWERS]))
    taken: list[Any] = []
    pauses.meanwhile = [lambda: taken.append(pool.acquire())]
    with pytest.raises(AcquireTimeout) as caught:
        pool.request("GET", "/", timeout=AT_ONCE)
    assert notes(caught.value)[-1] == "after 2 attempts: 503, AcquireTimeout"
    pool.release(taken.pop())
    finish(pool)


@both
def test_pool_that_is_closed_during_the_wait_ends_the_call(
    call: Call, scripted_server: ServerFactory, make_pool: PoolMaker, pauses: Pauses
) -> None:
    pool = make_pool(scripted_server([ASK, BUSY, *ANSWERS]))
    pauses.meanwhile = [pool.close]
    with pytest.raises(PoolClosed) as caught:
        call(pool)
    assert notes(caught.value) == ["after 2 attempts: 503, PoolClosed"]
    assert gauges(pool) == (0, 0, 0, 0)
    assert counted(pool.stats().requests) == {"error": 1}


# --- while a call waits -----------------------------------------------------------------------------------------------


@both
def test_waiting_call_holds_no_connection(
    call: Call, scripted_server: ServerFactory, make_pool: PoolMaker, pauses: Pauses
) -> None:
    server = scripted_server([ASK, BUSY, *ANSWERS])
    pool = make_pool(server, maxsize=1)
    seen: list[tuple[int, int, int, int]] = []

    def meanwhile() -> None:
        seen.append(gauges(pool))
        assert pool.request("GET", "/another", timeout=AT_ONCE, retry=None).data == b"hello"

    pauses.meanwhile = [meanwhile]
    response, _ = call(pool)
    assert response.status == 200
    assert seen == [(1, 0, 0, 0)]
    finish(pool)
    assert server.accepted == 1


@both
def test_waiting_call_holds_no_slot_after_a_failure(
    call: Call, scripted_server: ServerFactory, make_pool: PoolMaker, pauses: Pauses
) -> None:
    pool = make_pool(scripted_server([ASK, Reset()], default=ANSWERS), maxsize=1)
    seen: list[tuple[int, int, int, int]] = []
    pauses.meanwhile = [lambda: seen.append(gauges(pool))]
    response, _ = call(pool)
    assert response.status == 200
    assert seen == [(0, 0, 0, 0)]
    finish(pool)


@both
def test_waiting_call_keeps_no_connection_alive(
    call: Call, scripted_server: ServerFactory, make_pool: PoolMaker, pauses: Pauses
) -> None:
    # Whoever has it next may lose it, and it is lost only when nobody refers to it any more.
    pool = make_pool(scripted_server([ASK, BUSY], default=ANSWERS))
    lost: list[weakref.ref[Any]] = []

    def meanwhile() -> None:
        lost.append(weakref.ref(pool._idle[-1].conn))
        pool.prune(everything=True)
        gc.collect()
        assert lost[0]() is None

    pauses.meanwhile = [meanwhile]
    response, _ = call(pool)
    assert response.status == 200
    assert len(lost) == 1
    finish(pool)


def test_other_threads_use_the_connection_while_a_call_waits(
    scripted_server: ServerFactory, make_pool: PoolMaker, pauses: Pauses
) -> None:
    def answer(peer: Peer) -> None:
        is_first = True
        while True:
            request = peer.read_request()
            peer.send((BUSY if request.target == "/busy" and is_first else HELLO).encode(request.method))
            is_first = is_first and request.target != "/busy"

    waits, goes_on = threading.Event(), threading.Event()
    pool = make_pool(scripted_server(answer), maxsize=1)

    def meanwhile() -> None:
        waits.set()
        assert goes_on.wait(BOUND)

    pauses.meanwhile = [meanwhile]
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(pool.request, "GET", "/busy")
        assert waits.wait(BOUND)
        for _ in range(5):
            assert pool.request("GET", "/", timeout=AT_ONCE).data == b"hello"
        goes_on.set()
        assert waiting.result(BOUND).attempts == 2
    finish(pool)


def test_unread_answer_that_is_too_long_costs_its_connection_and_no_more(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    server = scripted_server([ASK, Respond(503, body=bytes(1_000_000)), KeepOpen()], default=ANSWERS)
    pool = make_pool(server)
    with pool.stream("GET", "/") as response:
        assert (response.attempts, response.read()) == (2, b"hello")
    assert counted(pool.stats().closed) == {"unread": 1}
    finish(pool)


def test_answer_that_was_asked_for_again_reads_nothing_of_the_next(
    scripted_server: ServerFactory, make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[StreamedResponse] = []
    begin = pool_room._begin_streamed

    def begin_and_keep(conn: HTTPConnection, prepared: PreparedRequest) -> StreamedResponse:
        answers.append(begin(conn, prepared))
        return answers[-1]

    monkeypatch.setattr(pool_room, "_begin_streamed", begin_and_keep)
    pool = make_pool(scripted_server([ASK, BUSY, *ANSWERS]))
    with pool.stream("GET", "/") as response:
        with pytest.raises(IncompleteRead):
            answers[0].read()
        assert (response.attempts, response.read()) == (2, b"hello")
    finish(pool)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, GeneratorExit, MemoryError])
@both
def test_interrupted_wait_leaves_nothing_behind(
    kind: type[BaseException], call: Call, scripted_server: ServerFactory, make_pool: PoolMaker, pauses: Pauses
) -> None:
    pool = make_pool(scripted_server([ASK, BUSY, *ANSWERS]))

    def interrupt() -> None:
        raise kind

    pauses.meanwhile = [interrupt]
    with pytest.raises(kind):
        call(pool)
    assert gauges(pool) == (1, 0, 0, 0)
    assert counted(pool.stats().requests) == {"error": 1}
    finish(pool)


@both
def test_call_that_is_interrupted_while_it_decides_closes_its_connection(
    call: Call, scripted_server: ServerFactory, make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(scripted_server([ASK, BUSY, *ANSWERS], default=ANSWERS))

    def interrupt(*_: object, **__: object) -> float:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Attempts, "wait", interrupt)
        call(pool)
    assert gauges(pool) == (0, 0, 0, 0)
    assert counted(pool.stats().requests) == {"error": 1}
    finish(pool)


# --- the total --------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(pauses: Pauses) -> Clock:
    pauses.clock = Clock()
    return pauses.clock


@both
@pytest.mark.parametrize("timeout", [10, Timeout(total=10)], ids=["number", "Timeout"])
def test_wait_that_does_not_fit_into_the_total_is_not_begun(
    timeout: Any, call: Call, scripted_server: ServerFactory, make_pool: PoolMaker, pauses: Pauses, clock: Clock
) -> None:
    pool = make_pool(scripted_server([ASK, busy(("Retry-After", "10")), *ANSWERS]), clock=clock)
    response, body = call(pool, timeout=timeout)
    assert (response.status, body, response.attempts) == (503, b"busy", 1)
    assert pauses == []
    assert retries(pool) == ({}, {"deadline": 1})
    finish(pool)


def test_error_whose_retry_does_not_fit_into_the_total_is_raised(
    scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Retry, "backoff_before", lambda *_: 10.0)
    pool = make_pool(scripted_server([ASK, Reset()], default=ANSWERS), clock=clock)
    with pytest.raises(ConnectionResetError) as caught:
        pool.request("GET", "/", timeout=10)
    assert notes(caught.value) == [
        "after 1 attempt: ConnectionResetError; no further one, since the wait would not fit into the call's total"
    ]
    finish(pool)


@both
def test_total_is_one_for_all_attempts_and_their_waits(
    call: Call, scripted_server: ServerFactory, make_pool: PoolMaker, pauses: Pauses, clock: Clock
) -> None:
    asks_for_six = busy(("Retry-After", "6"))
    pool = make_pool(scripted_server([ASK, asks_for_six, ASK, asks_for_six, *ANSWERS]), clock=clock)
    response, _ = call(pool, timeout=10)
    assert (response.status, response.attempts) == (503, 2)
    assert pauses == [6.0]
    assert retries(pool) == ({"status": 1}, {"deadline": 1})
    finish(pool)


def test_total_that_is_used_up_in_a_later_attempt_tells_how_the_time_was_spent(
    scripted_server: ServerFactory, make_pool: PoolMaker, pauses: Pauses, clock: Clock
) -> None:
    pool = make_pool(scripted_server([ASK, busy(("Retry-After", "6")), *ANSWERS], default=ANSWERS), clock=clock)

    def oversleep() -> None:
        clock.now += 5

    pauses.meanwhile = [oversleep]
    with pytest.raises(TotalTimeout) as caught:
        pool.request("GET", "/v1?user=u", timeout=10)
    account = "acquire 0.00 s, connect 0.00 s, exchange 0.00 s, wait 11.00 s, acquire 0.00 s, exchange 0.00 s"
    assert str(caught.value) == f"GET /v1?... took longer than its total of 10.00 s ({account})"
    assert notes(caught.value) == ["after 2 attempts: 503, TotalTimeout"]
    assert counted(pool.stats().requests) == {"timeout": 1}
    finish(pool)


# --- the budget -------------------------------------------------------------------------------------------------------


def test_budget_keeps_a_sick_server_from_being_stormed(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    server = scripted_server([Repeat([ASK, BUSY], times=66), *ANSWERS])
    pool = make_pool(server, retry=Retry(attempts=5, backoff=0, budget=0.2, budget_floor=0.6), clock=Clock())
    assert {pool.request("GET", "/").status for _ in range(55)} == {503}
    assert len(server.requests) == 55 + 11  # a fifth, and not five times as many
    assert retries(pool)[0] == {"status": 11}
    assert retries(pool)[1]["budget"] == 55 - retries(pool)[1].get("attempts", 0)
    finish(pool)


def test_budget_is_shared_by_all_threads(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    workers, calls = 8, 10
    server = scripted_server(default=BUSY_ALWAYS)
    pool = make_pool(server, maxsize=workers, retry=Retry(backoff=0, budget=0, budget_floor=0.7), clock=Clock())
    barrier = threading.Barrier(workers)

    def work() -> list[int]:
        barrier.wait(BOUND)
        return [pool.request("GET", "/").attempts for _ in range(calls)]

    with ThreadPoolExecutor(workers) as threads:
        made = [future.result(BOUND) for future in [threads.submit(work) for _ in range(workers)]]
    assert sum(map(sum, made)) == workers * calls + 7
    assert len(server.requests) == workers * calls + 7
    assert counted(pool.stats().requests) == {"5xx": workers * calls}
    assert pool.request("GET", "/", timeout=AT_ONCE).status == 503


def test_budget_grows_again_with_time(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    clock = Clock()
    pool = make_pool(
        scripted_server([Repeat([ASK, BUSY], times=5), *ANSWERS]),
        retry=Retry(attempts=2, backoff=0, budget=0, budget_floor=0.1), clock=clock, idle_timeout=None,
    )  # fmt: skip
    assert [pool.request("GET", "/").attempts for _ in range(2)] == [2, 1]
    clock.now += 10
    assert pool.request("GET", "/").attempts == 2
    finish(pool)


def test_budget_is_that_of_one_origin(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    retry = Retry(attempts=2, backoff=0, budget=0, budget_floor=0.1)
    for _ in range(2):
        pool = make_pool(scripted_server([Repeat([ASK, BUSY], times=3), *ANSWERS]), retry=retry)
        assert [pool.request("GET", "/").attempts for _ in range(2)] == [2, 1]
        finish(pool)


def test_error_says_that_the_budget_is_used_up(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    pool = make_pool(scripted_server([ASK, Reset()], default=ANSWERS), retry=Retry(budget=0, budget_floor=0))
    with pytest.raises(ConnectionResetError) as caught:
        pool.request("GET", "/")
    assert notes(caught.value) == [
        "after 1 attempt: ConnectionResetError; no further one, since the budget for retries is used up"
    ]
    finish(pool)


def test_resend_on_a_stale_connection_costs_no_budget(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    server = scripted_server([ASK, HELLO, ASK, Close()], default=ANSWERS)
    pool = make_pool(server, retry=Retry(budget=0, budget_floor=0))
    for resends in (0, 1):
        response = pool.request("GET", "/")
        assert (response.data, response.resends, response.attempts) == (b"hello", resends, 1)
    assert retries(pool) == ({}, {})
    finish(pool)


def test_child_process_begins_with_a_budget_of_its_own(scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    pool = make_pool(
        scripted_server([Repeat([ASK, BUSY], times=3), KeepOpen()], [ASK, BUSY, *ANSWERS]),
        retry=Retry(attempts=2, backoff=0, budget=0, budget_floor=0.1), clock=Clock(),
    )  # fmt: skip
    assert [pool.request("GET", "/").attempts for _ in range(2)] == [2, 1]
    pool.renew_after_fork()  # what runs in a child; here it is this process that goes on as one
    assert retries(pool) == ({}, {})
    assert pool.request("GET", "/").attempts == 2
    finish(pool)


# --- above the resend -------------------------------------------------------------------------------------------------


@both
def test_stale_connection_is_replaced_within_an_attempt_and_the_attempt_is_made_again(
    call: Call, scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    server = scripted_server([ASK, HELLO, ASK, Close()], [ASK, Close()], default=ANSWERS)
    pool = make_pool(server)
    call(pool)
    response, body = call(pool)
    assert (body, response.attempts, response.resends) == (b"hello", 2, 1)
    assert retries(pool) == ({"reset": 1}, {})
    assert counted(pool.stats().stale) == {"retried": 1}
    assert counted(pool.stats().requests) == {"2xx": 2}
    finish(pool)
    assert server.accepted == 3


@both
def test_replacement_of_a_stale_connection_that_is_refused_is_tried_again(
    call: Call, scripted_server: ServerFactory, make_pool: PoolMaker, pauses: Pauses, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = scripted_server([ASK, HELLO, ASK, Close()], default=ANSWERS)
    pool = make_pool(server)
    call(pool)
    opened, faults = pool._opener.open, [ConnectionRefusedError(111, "Connection refused")]

    def not_at_first(*arguments: Any) -> Any:
        if faults:
            raise faults.pop()
        return opened(*arguments)

    monkeypatch.setattr(pool._opener, "open", not_at_first)
    response, body = call(pool)
    assert (body, response.attempts, response.resends) == (b"hello", 2, 1)
    assert retries(pool) == ({"connect": 1}, {})
    finish(pool)


def test_post_on_a_stale_connection_is_not_sent_again_by_a_retry_either(
    scripted_server: ServerFactory, make_pool: PoolMaker
) -> None:
    server = scripted_server([ASK, HELLO, ASK, Close()], default=ANSWERS)
    pool = make_pool(server)
    pool.request("GET", "/")
    with pytest.raises(ConnectionError):
        pool.request("POST", "/", b"order")
    assert retries(pool) == ({}, {})
    assert counted(pool.stats().stale) == {"raised": 1}
    finish(pool)
    assert [request.method for request in server.requests] == ["GET", "POST", "GET"]


# --- what is counted --------------------------------------------------------------------------------------------------


@both
def test_call_is_counted_once_with_all_its_seconds_and_each_attempt_as_a_lease(
    call: Call, scripted_server: ServerFactory, make_pool: PoolMaker, clock: Clock
) -> None:
    pool = make_pool(scripted_server([ASK, busy(("Retry-After", "6")), *ANSWERS]), clock=clock)
    call(pool)
    stats = pool.stats()
    assert counted(stats.requests) == {"2xx": 1}
    assert (stats.request.count, stats.request.sum) == (1, 6.0)
    assert counted(stats.acquires) == {"opened": 1, "reused": 1}
    assert (stats.use.count, stats.use.sum) == (2, 0.0)
    finish(pool)


@pytest.mark.parametrize("workers", [8])
def test_counters_add_up_when_threads_retry(workers: int, scripted_server: ServerFactory, make_pool: PoolMaker) -> None:
    calls = 25

    def moody(peer: Peer) -> None:
        while True:
            request = peer.read_request()
            if len(peer.requests) % 3 == 0:
                return
            peer.send((BUSY if len(peer.requests) % 2 else HELLO).encode(request.method))

    server = scripted_server(default=moody)
    pool = make_pool(server, maxsize=3, retry=Retry(attempts=50, backoff=0, budget=None))
    barrier = threading.Barrier(workers)

    def work() -> list[Response]:
        barrier.wait(BOUND)
        return [pool.request("GET", "/") for _ in range(calls)]

    with ThreadPoolExecutor(workers) as threads:
        made = [future.result(60) for future in [threads.submit(work) for _ in range(workers)]]
    responses = [response for some in made for response in some]
    assert {response.data for response in responses} == {b"hello"}
    stats = pool.stats()
    assert counted(stats.requests) == {"2xx": workers * calls}
    assert sum(stats.retries.values()) == sum(response.attempts - 1 for response in responses)
    assert sum(stats.stale.values()) == stats.stale["retried"] + stats.stale["raised"]
    sent = sum(response.attempts + response.resends for response in responses)
    assert len(server.requests) == sent


# --- the manager ------------------------------------------------------------------------------------------------------


def by_manager_request(manager: PoolManager, url: str, **kind: Any) -> tuple[Reply, bytes]:
    response = manager.request("GET", url, **kind)
    return response, response.data


def by_manager_stream(manager: PoolManager, url: str, **kind: Any) -> tuple[Reply, bytes]:
    with manager.stream("GET", url, **kind) as response:
        return response, response.read()


managed = pytest.mark.parametrize("call", [by_manager_request, by_manager_stream])


@managed
@pytest.mark.parametrize(("configured", "asked", "attempts"), [
    (None, {}, 1), (AGAIN, {}, 2), (None, {"retry": AGAIN}, 2), (AGAIN, {"retry": None}, 1),
    (AGAIN, {"retry": AS_CONFIGURED}, 2),
])  # fmt: skip
def test_manager_passes_it_on(
    configured: Retry | None, asked: Any, attempts: int, call: Call, scripted_server: ServerFactory,
    make_manager: Callable[..., PoolManager],
) -> None:  # fmt: skip
    server = scripted_server([ASK, BUSY, *ANSWERS])
    manager = make_manager(retry=configured)
    response, _ = call(manager, f"{server.url}/v1", **asked)
    assert response.attempts == attempts
    assert response.url == f"{server.url}/v1"
    assert manager.request("GET", server.url, timeout=AT_ONCE).data == b"hello"


@managed
def test_pool_that_is_evicted_during_the_wait_is_replaced_and_the_call_goes_on(
    call: Call, scripted_server: ServerFactory, make_manager: Callable[..., PoolManager], pauses: Pauses, clock: Clock
) -> None:
    asks_for_six = busy(("Retry-After", "6"))
    server = scripted_server([ASK, asks_for_six], [ASK, asks_for_six, *ANSWERS])
    manager = make_manager(retry=AGAIN, clock=clock)
    first = manager.pool(server.url)
    first._pause = pauses
    pauses.meanwhile = [first.close]
    response, body = call(manager, server.url, timeout=10)
    # Neither the attempts nor the total begin anew: what is left of 10 seconds is less than 6.
    assert (response.status, body, response.attempts) == (503, b"busy", 2)
    second = manager.pool(server.url)
    assert second is not first
    assert counted(first.stats().requests) == {}
    assert counted(second.stats().requests) == {"5xx": 1}
    assert manager.request("GET", server.url, timeout=AT_ONCE).data == b"hello"


def test_budget_of_an_origin_outlives_the_eviction_of_its_pool(
    scripted_server: ServerFactory, make_manager: Callable[..., PoolManager]
) -> None:
    sick, other = scripted_server(default=BUSY_ALWAYS), scripted_server(default=ANSWERS)
    one_retry = Retry(attempts=2, backoff=0, budget=0.0, budget_floor=0.1)
    manager = make_manager(max_pools=1, retry=one_retry, clock=lambda: 1000.0)
    attempts = []
    for _ in range(5):
        attempts.append(manager.request("GET", sick.url).attempts)
        manager.request("GET", other.url)
    assert attempts == [2, 1, 1, 1, 1]


def test_budget_of_an_origin_is_shared_by_the_ways_to_it(
    scripted_server: ServerFactory, make_manager: Callable[..., PoolManager]
) -> None:
    sick = scripted_server(default=BUSY_ALWAYS)
    one_retry = Retry(attempts=2, backoff=0, budget=0.0, budget_floor=0.1)
    manager = make_manager(retry=one_retry, clock=lambda: 1000.0)
    another_way = manager.pool(sick.url, source_address=("127.0.0.1", 0))
    assert manager.request("GET", sick.url).attempts == 2
    assert another_way.request("GET", "/").attempts == 1


def test_budgets_of_origins_that_are_gone_are_forgotten_with_the_window(
    scripted_server: ServerFactory, make_manager: Callable[..., PoolManager], clock: Clock
) -> None:
    manager = make_manager(max_pools=1, retry=AGAIN, clock=clock)
    for _ in range(5):
        manager.request("GET", scripted_server(default=ANSWERS).url)
        clock.now += 2 * WINDOW
    assert len(manager._budgets) <= 2


@managed
def test_manager_that_is_closed_during_the_wait_ends_the_call(
    call: Call, scripted_server: ServerFactory, make_manager: Callable[..., PoolManager], pauses: Pauses
) -> None:
    server = scripted_server([ASK, BUSY, *ANSWERS])
    manager = make_manager(retry=AGAIN)
    manager.pool(server.url)._pause = pauses
    pauses.meanwhile = [manager.close]
    with pytest.raises(PoolClosed, match="manager is closed"):
        call(manager, server.url)
    assert len(server.requests) == 1


# --- what sleeps ------------------------------------------------------------------------------------------------------


def test_what_sleeps_is_looked_up_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    # gevent replaces time.sleep, maybe after this package was imported.
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    pause(0.25)
    assert slept == [0.25]


def test_pool_waits_by_sleeping(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    server = scripted_server([ASK, BUSY, *ANSWERS])
    with ConnectionPool(*server.address, registry=None, retry=Retry(backoff=0.001)) as pool:
        assert pool._pause is pause
        assert pool.request("GET", "/").attempts == 2
        finish(pool)
