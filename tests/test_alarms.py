"""A program bounds a piece of work by an alarm: its handler raises, wherever the main thread happens to be.

What it raises is often a `TimeoutError`, and it may come right behind the system call that has sent a request.  It is
not one of ours: it says nothing of the peer or of what was sent, and it is for whoever has set the alarm.
"""

from __future__ import annotations

import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trustme

from pooledhttp import ConnectionPool, Retry, Timeout
from pooledhttp.testing import ExpectHead, Repeat, ResourceAudit, Respond, Send, ServerFactory, Stall, Step
from pooledhttp.timeouts import is_wake_up

BOUND = 10.0
ANSWERS: list[Step] = [Repeat([ExpectHead(), Respond(body=b"hello")])]


class JobTookTooLongError(TimeoutError):
    """What a caller's own handler raises."""


FAULTS = [
    pytest.param(JobTookTooLongError("the job took too long"), id="of its own class"),
    pytest.param(TimeoutError("the job took too long"), id="in its own words"),
    pytest.param(TimeoutError("timed out"), id="in the words of a socket"),
    pytest.param(TimeoutError(), id="without words"),
]
RETRIES = [pytest.param(None, id="without Retry"), pytest.param(Retry(attempts=3, backoff=0), id="with Retry")]
LIMITS = [
    pytest.param(Timeout(read=BOUND, write=BOUND), id="no total"),
    pytest.param(Timeout(read=2 * BOUND, write=2 * BOUND, total=BOUND), id="total"),
]
SetAlarm = Callable[[BaseException], None]


@pytest.fixture
def set_alarm() -> Iterator[SetAlarm]:
    """Have the alarm raise what is given."""
    before = signal.getsignal(signal.SIGALRM)
    faults: list[BaseException] = []

    def set_handler(fault: BaseException) -> None:
        faults.append(fault)

        def ring(*_: object) -> None:
            raise fault

        signal.signal(signal.SIGALRM, ring)

    yield set_handler
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    for fault in faults:  # which live on, and whose frames hold what the test has opened
        fault.__traceback__ = fault.__context__ = None


class RingingSocket:
    """A socket; an alarm goes off when its next send, or its next receive, has been done.

    Args:
        sock: The socket itself.
        what: ``"send"`` or ``"recv"``.
    """

    def __init__(self, sock: socket.socket, what: str) -> None:
        self._sock = sock
        self._what = what

    def __getattr__(self, name: str) -> object:
        found = getattr(self._sock, name)
        if name != self._what:
            return found

        def call(*arguments: object) -> object:
            result = found(*arguments)
            if self._what:
                self._what = ""
                signal.raise_signal(signal.SIGALRM)
            return result

        return call


def ring_behind_the_next(pool: ConnectionPool, what: str) -> None:
    """Have the alarm go off when the next send, or the next receive, of the idle connection has been done."""
    with pool.connection() as conn:
        transport = conn._transport
    assert transport is not None
    ringing: Any = RingingSocket(transport.sock, what)
    transport.sock, transport._send, transport._recv = ringing, ringing.send, ringing.recv


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("retry", RETRIES)
@pytest.mark.parametrize("limits", LIMITS)
def test_post_is_not_sent_twice_when_an_alarm_goes_off_behind_its_send(
    scripted_server: ServerFactory,
    audit: ResourceAudit,
    set_alarm: SetAlarm,
    limits: Timeout,
    retry: Retry | None,
    fault: BaseException,
) -> None:
    server = scripted_server(default=ANSWERS)
    set_alarm(fault)
    with ConnectionPool(server.host, server.port, timeout=limits, retry=retry, registry=None) as pool:
        audit.watch(pool)
        pool.request("GET", "/first")
        ring_behind_the_next(pool, "send")
        with pytest.raises(type(fault)) as caught:
            pool.request("POST", "/order", body=b"one")
        assert caught.value is fault
        assert pool.request("GET", "/last").data == b"hello"
    server.close()
    assert [request.method for request in server.requests].count("POST") <= 1


@pytest.mark.parametrize("what", ["send", "recv"])
@pytest.mark.parametrize("retry", RETRIES)
@pytest.mark.parametrize("fault", FAULTS)
def test_alarm_behind_a_system_call_reaches_whoever_set_it(
    scripted_server: ServerFactory,
    audit: ResourceAudit,
    set_alarm: SetAlarm,
    fault: BaseException,
    retry: Retry | None,
    what: str,
) -> None:
    server = scripted_server(default=ANSWERS)
    set_alarm(fault)
    with ConnectionPool(server.host, server.port, retry=retry, registry=None) as pool:
        audit.watch(pool)
        pool.request("GET", "/first")
        ring_behind_the_next(pool, what)
        with pytest.raises(type(fault)) as caught:
            pool.request("GET", "/")
        assert caught.value is fault
        assert pool.request("GET", "/last").data == b"hello"


WAITS: dict[str, list[Step]] = {
    "for an answer": [ExpectHead(), Stall()],
    "for a body": [ExpectHead(), Send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe"), Stall()],
    "for a handshake": [Stall()],
}


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("retry", RETRIES)
@pytest.mark.parametrize("fault", FAULTS)
def test_alarm_during_a_wait_reaches_whoever_set_it(
    scripted_server: ServerFactory,
    audit: ResourceAudit,
    set_alarm: SetAlarm,
    fault: BaseException,
    retry: Retry | None,
    wait: str,
) -> None:
    is_handshake = wait == "for a handshake"
    server = scripted_server(WAITS[wait], default=ANSWERS)
    context = ssl.create_default_context() if is_handshake else None
    scheme = "https" if is_handshake else "http"
    set_alarm(fault)
    with ConnectionPool(
        server.host, server.port, scheme=scheme, ssl_context=context, retry=retry, registry=None
    ) as pool:
        audit.watch(pool)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(type(fault)) as caught:
            pool.request("GET", "/")
        assert caught.value is fault
        if not is_handshake:
            assert pool.request("GET", "/last").data == b"hello"
    assert len(server.connections) == 2 - is_handshake


@pytest.mark.parametrize("fault", FAULTS)
def test_alarm_while_a_server_is_asked_for_100_continue_reaches_whoever_set_it(
    scripted_server: ServerFactory, audit: ResourceAudit, set_alarm: SetAlarm, fault: BaseException
) -> None:
    server = scripted_server([ExpectHead(body=False), Stall()], default=ANSWERS)
    set_alarm(fault)
    with ConnectionPool(server.host, server.port, expect_continue_timeout=BOUND, registry=None) as pool:
        audit.watch(pool)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(type(fault)) as caught:
            pool.request("PUT", "/", body=b"x", headers={"Expect": "100-continue"})
        assert caught.value is fault
        assert pool.request("GET", "/last").data == b"hello"


def raised_by(call: Callable[[], object]) -> BaseException:
    with pytest.raises(OSError) as caught:
        call()
    return caught.value


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "TLS"])
def test_wake_up_of_a_socket_is_told_by_its_words(scripted_server: ServerFactory, *, is_tls: bool) -> None:
    authority = trustme.CA()
    offered = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(offered)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    server = scripted_server([Stall()], ssl_context=offered if is_tls else None)
    with ConnectionPool(
        server.host, server.port, scheme="https" if is_tls else "http", ssl_context=context if is_tls else None,
        registry=None,
    ) as pool:  # fmt: skip
        conn = pool.acquire()
        sock = conn.sock
        assert sock is not None
        sock.settimeout(0.01)
        assert is_wake_up(raised_by(lambda: sock.recv(1)))
        pool.release(conn)


def test_error_of_the_kernel_is_no_wake_up() -> None:
    def fail() -> None:
        raise TimeoutError(110, "Connection timed out")

    assert not is_wake_up(raised_by(fail))
