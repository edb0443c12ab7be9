"""One connected socket: its buffer, its limits on each of the three ways of waiting, and the probe.

The ways: timers in the kernel on a plain socket, `settimeout` on a socket of somebody else's class, and TLS.  The
limits are short and real; what is asserted is which error comes and what it says, never how fast.
"""

from __future__ import annotations

import contextlib
import functools
import io
import select
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import trustme

from pooledhttp import (
    BadStatusLine,
    InvalidResponse,
    Limits,
    LineTooLong,
    ReadTimeout,
    RemoteDisconnected,
    TotalTimeout,
    WriteTimeout,
)
from pooledhttp.stats import CloseReason
from pooledhttp.testing import (
    Close,
    ExpectHead,
    HalfClose,
    KeepOpen,
    Peer,
    Reset,
    Script,
    ScriptedServer,
    Send,
    ServerFactory,
    Signal,
    Stall,
    Trickle,
)
from pooledhttp.timeouts import Deadline
from pooledhttp.transport import FileTransport, Transport, main_thread, transport_for

BOUND = 10.0
LIMITS = Limits()
PLENTY = b"x" * 50_000_000  # more than the buffers of a loopback connection hold

Opener = Callable[..., Transport]


class OtherSocket(socket.socket):
    """A socket of another class, as greenlet libraries have: it cannot be waited for inside the kernel."""


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


WAYS = ["kernel timers", "settimeout", "tls"]
ways = pytest.mark.parametrize("way", WAYS)


@pytest.fixture
def open_transport(scripted_server: ServerFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opener]:
    """Open a transport to a new server that plays a script, with the way of waiting that is asked for."""
    # Tests run in the main thread, where the kernel's timers are not used.
    monkeypatch.setattr(main_thread, "ident", None)
    with contextlib.ExitStack() as stack:

        def open_one(
            script: Script,
            way: str = "kernel timers",
            *,
            send_buffer: int = 0,
            clock: Callable[[], float] | None = None,
        ) -> Transport:
            server = scripted_server(script, ssl_context=server_context() if way == "tls" else None)
            sock = connect(server, way)
            if send_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
            transport = Transport(sock) if clock is None else Transport(sock, clock=clock)
            stack.callback(transport.close)
            return transport

        yield open_one


def connect(server: ScriptedServer, way: str = "kernel timers") -> socket.socket:
    sock = socket.create_connection(server.address, timeout=BOUND)
    sock.settimeout(None)
    if way == "settimeout":
        return OtherSocket(sock.family, sock.type, sock.proto, sock.detach())
    if way == "tls":
        return client_context().wrap_socket(sock, server_hostname="127.0.0.1", suppress_ragged_eofs=False)
    return sock


def receive(transport: Transport, count: int) -> bytes:
    received = b""
    while len(received) < count:
        piece = transport.take(count - len(received))
        assert piece
        received += piece
    return received


def kernel_timer(sock: socket.socket, option: int) -> bool:
    return any(sock.getsockopt(socket.SOL_SOCKET, option, 16))


# --- limits on receiving ----------------------------------------------------------------------------------------------


@ways
def test_silence_of_the_peer_is_a_read_timeout(way: str, open_transport: Opener) -> None:
    transport = open_transport([KeepOpen()], way)
    transport.bound(read=0.1, write=None, deadline=None, what="origin")
    with pytest.raises(ReadTimeout, match=r"^origin sent nothing for 0\.10 s$"):
        transport.more()
    assert not transport.any_received


@ways
def test_silence_while_filling_a_buffer_is_a_read_timeout(way: str, open_transport: Opener) -> None:
    transport = open_transport([KeepOpen()], way)
    transport.bound(read=0.1, write=None, deadline=None, what="origin")
    with pytest.raises(ReadTimeout, match=r"origin sent nothing for 0\.10 s"):
        transport.take_into(memoryview(bytearray(10)))


@ways
def test_silence_after_some_bytes_is_a_read_timeout(way: str, open_transport: Opener) -> None:
    transport = open_transport([Send(b"hello"), KeepOpen()], way)
    transport.bound(read=0.3, write=None, deadline=None, what="origin")
    assert receive(transport, 5) == b"hello"
    for _ in range(2):
        with pytest.raises(ReadTimeout, match=r"origin sent nothing for 0\.30 s"):
            transport.more()


@ways
def test_trickle_ends_at_the_deadline(way: str, open_transport: Opener) -> None:
    transport = open_transport([Trickle(b"x" * 1000, interval=0.03)], way)
    transport.bound(read=5, write=5, deadline=Deadline(0.25, what="GET /"), what="origin")
    with pytest.raises(TotalTimeout, match=r"^GET / took longer than its total of 0\.25 s"):
        while transport.more():
            pass
    assert transport.any_received


@ways
def test_trickle_keeps_a_read_limit_that_is_longer_than_its_pauses(way: str, open_transport: Opener) -> None:
    transport = open_transport([Trickle(b"x" * 8, interval=0.1), KeepOpen()], way)
    transport.bound(read=0.4, write=None, deadline=None, what="origin")
    assert receive(transport, 8) == b"x" * 8
    with pytest.raises(ReadTimeout):
        transport.more()


@ways
def test_silence_ends_at_the_deadline_when_that_comes_first(way: str, open_transport: Opener) -> None:
    transport = open_transport([KeepOpen()], way)
    transport.bound(read=5, write=5, deadline=Deadline(0.123456789, what="GET /"), what="origin")
    with pytest.raises(TotalTimeout, match="GET /"):
        transport.more()


@ways
def test_silence_ends_at_the_deadline_without_a_read_limit(way: str, open_transport: Opener) -> None:
    transport = open_transport([KeepOpen()], way)
    transport.bound(read=None, write=None, deadline=Deadline(0.1 + 1e-10, what="GET /"), what="origin")
    with pytest.raises(TotalTimeout, match="GET /"):
        transport.more()


@ways
def test_silence_ends_at_the_read_limit_when_that_comes_first(way: str, open_transport: Opener) -> None:
    transport = open_transport([KeepOpen()], way)
    transport.bound(read=0.1, write=None, deadline=Deadline(5), what="origin")
    with pytest.raises(ReadTimeout):
        transport.more()


@ways
def test_deadline_that_is_over_is_seen_before_waiting(way: str, open_transport: Opener) -> None:
    now = [0.0]
    transport = open_transport([KeepOpen()], way, clock=lambda: now[0])
    transport.bound(read=5, write=5, deadline=Deadline(1, what="GET /", clock=lambda: now[0]), what="origin")
    now[0] = 1.5
    with pytest.raises(TotalTimeout, match="GET /"):
        transport.more()


def test_read_limit_may_be_longer_than_the_interval_of_the_kernel_timer(open_transport: Opener) -> None:
    transport = open_transport([Stall(seconds=1.1), Send(b"late"), KeepOpen()])
    transport.bound(read=BOUND, write=None, deadline=None, what="origin")
    assert transport.more() == b"late"


@ways
def test_wait_without_any_limit_lasts_until_the_bytes_are_there(way: str, open_transport: Opener) -> None:
    transport = open_transport([Stall(seconds=0.1), Send(b"late"), KeepOpen()], way)
    transport.bound(read=None, write=None, deadline=None, what="origin")
    assert transport.more() == b"late"


def test_main_thread_waits_outside_the_kernel_since_signals_restart_its_timers(
    open_transport: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = open_transport([KeepOpen()])
    transport.bound(read=2.5, write=2.5, deadline=None, what="origin")
    assert transport.sock.gettimeout() is None
    monkeypatch.setattr(main_thread, "ident", threading.get_ident())  # now the main thread borrows it
    transport.bound(read=0.05, write=2.5, deadline=None, what="origin")
    assert transport.sock.gettimeout() is None
    assert not kernel_timer(transport.sock, socket.SO_RCVTIMEO)
    assert not kernel_timer(transport.sock, socket.SO_SNDTIMEO)
    with pytest.raises(ReadTimeout, match=r"for 0\.05 s"):
        transport.more()


@pytest.mark.parametrize("way", ["kernel timers", "poll", "settimeout", "tls"])
def test_nothing_is_sent_when_the_time_of_the_call_is_over(
    way: str, open_transport: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    in_the_main_thread(monkeypatch, way)
    transport = open_transport([KeepOpen()], "kernel timers" if way == "poll" else way, clock=lambda: now[0])
    deadline = Deadline(0.5, what="the call", clock=lambda: now[0])
    transport.bound(read=2.5, write=2.5, deadline=deadline, what="origin")
    transport.any_sent = False
    now[0] += 1
    with pytest.raises(TotalTimeout):
        transport.send(b"POST /pay")
    assert not transport.any_sent


@ways
def test_total_that_is_all_but_over_is_not_taken_for_another_limit(way: str, open_transport: Opener) -> None:
    now = [0.0]
    transport = open_transport([KeepOpen()], way, clock=lambda: now[0])
    transport.bound(read=10, write=10, deadline=Deadline(1, what="GET /", clock=lambda: now[0]), what="origin")
    now[0] = 0.9999
    # A wait of the last tenth of a millisecond, and then the total is over: which limit it is shows only then.
    assert transport._left(10, 0.0, ReadTimeout) == pytest.approx(0.0001)
    now[0] = 1.0
    with pytest.raises(TotalTimeout):
        transport._left(10, 0.0, ReadTimeout)


def in_the_main_thread(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    if way == "poll":
        monkeypatch.setattr(main_thread, "ident", threading.get_ident())


@pytest.mark.parametrize("size", [100, 100_000])
def test_what_another_thread_has_taken_meanwhile_is_not_waited_for_without_a_bound(
    size: int, open_transport: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_main_thread(monkeypatch, "poll")
    transport = open_transport([KeepOpen()])
    transport.bound(read=0.1, write=2.5, deadline=None, what="origin")
    transport.is_quiet()
    real, asked = transport._poll, []
    assert real is not None

    def taken_meanwhile(milliseconds: float | None) -> list[tuple[int, int]]:
        asked.append(milliseconds)
        return [(transport.sock.fileno(), select.POLLIN)] if len(asked) == 1 else real(milliseconds)

    transport._poll = taken_meanwhile
    with pytest.raises(ReadTimeout):
        transport.take_into(memoryview(bytearray(size)))
    assert len(asked) > 1


@pytest.mark.parametrize("wait", ["receive", "probe", "send"])
def test_wait_within_a_wait_has_a_poll_of_its_own(
    wait: str, open_transport: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal's handler may use the connection for which the thread waits; poll() itself refuses to be nested."""
    in_the_main_thread(monkeypatch, "poll")
    transport = open_transport([ExpectHead(), Send(b"first"), Stall(seconds=0.3), Send(b"second"), KeepOpen()])
    transport.bound(read=5, write=5, deadline=None, what="origin")
    transport.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert transport.more() == b"first"
    seen: list[object] = []

    def use(*_: object) -> None:
        if wait == "receive":
            transport.bound(read=0.01, write=5, deadline=None, what="origin")
            with pytest.raises(ReadTimeout):
                transport.more()
            transport.bound(read=5, write=5, deadline=None, what="origin")
            seen.append("nothing")
        elif wait == "probe":
            seen.append(transport.is_quiet())
        else:
            seen.append(transport.wait_to_send(or_receive=False, since=time.monotonic()))

    before = signal.signal(signal.SIGALRM, use)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        assert transport.more() == b"second"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen == [{"receive": "nothing", "probe": True, "send": False}[wait]]


def test_plain_socket_is_bounded_inside_the_kernel(open_transport: Opener) -> None:
    transport = open_transport([KeepOpen()])
    transport.bound(read=2.5, write=3, deadline=None, what="origin")
    assert transport.sock.gettimeout() is None
    assert kernel_timer(transport.sock, socket.SO_RCVTIMEO)
    assert kernel_timer(transport.sock, socket.SO_SNDTIMEO)
    transport.bound(read=None, write=None, deadline=None, what="origin")
    assert not kernel_timer(transport.sock, socket.SO_RCVTIMEO)
    assert not kernel_timer(transport.sock, socket.SO_SNDTIMEO)


@pytest.mark.parametrize("way", ["settimeout", "tls"])
def test_other_sockets_are_bounded_by_their_timeout(way: str, open_transport: Opener) -> None:
    transport = open_transport([KeepOpen()], way)
    transport.bound(read=2.5, write=2.5, deadline=None, what="origin")
    assert transport.sock.gettimeout() == 2.5
    assert not kernel_timer(transport.sock, socket.SO_RCVTIMEO)


def test_interval_timer_keeps_the_waits_out_of_the_kernel(open_transport: Opener) -> None:
    transport = open_transport([KeepOpen()])
    # ITIMER_VIRTUAL counts processor time: an hour of it never fires here.
    signal.setitimer(signal.ITIMER_VIRTUAL, 3600, 3600)
    try:
        transport.bound(read=0.1, write=None, deadline=None, what="origin")
        assert not kernel_timer(transport.sock, socket.SO_RCVTIMEO)
        with pytest.raises(ReadTimeout):
            transport.more()
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def test_platform_without_kernel_timers_uses_the_timeout(
    open_transport: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pooledhttp.transport._HAS_KERNEL_TIMERS", False)
    transport = open_transport([KeepOpen()])
    transport.bound(read=0.1, write=None, deadline=None, what="origin")
    assert not kernel_timer(transport.sock, socket.SO_RCVTIMEO)
    with pytest.raises(ReadTimeout):
        transport.more()


def test_socket_without_bounds_keeps_its_documented_timeout(open_transport: Opener) -> None:
    transport = open_transport([KeepOpen()])
    transport.sock.settimeout(0.1)
    with pytest.raises(TimeoutError) as caught:
        transport.more()
    assert type(caught.value) is TimeoutError
    with pytest.raises(TimeoutError):
        transport.take_into(memoryview(bytearray(1)))


# --- limits on sending ------------------------------------------------------------------------------------------------


def never_reads(peer: Peer) -> None:
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer.stall()


@ways
def test_peer_that_takes_nothing_is_a_write_timeout(way: str, open_transport: Opener) -> None:
    transport = open_transport(never_reads, way)
    transport.bound(read=None, write=0.2, deadline=None, what="origin")
    with pytest.raises(WriteTimeout, match=r"^origin took no byte of the request for 0\.20 s$"):
        transport.send(PLENTY)
    assert transport.any_sent


@ways
def test_peer_that_takes_nothing_ends_at_the_deadline(way: str, open_transport: Opener) -> None:
    transport = open_transport(never_reads, way)
    transport.bound(read=None, write=None, deadline=Deadline(0.2, what="POST /"), what="origin")
    with pytest.raises(TotalTimeout, match=r"POST / took longer than its total of 0\.20 s"):
        transport.send(PLENTY)


@ways
def test_second_send_to_a_peer_that_takes_nothing_is_a_write_timeout_too(way: str, open_transport: Opener) -> None:
    transport = open_transport(never_reads, way)
    transport.bound(read=None, write=0.1, deadline=None, what="origin")
    for _ in range(2):
        with pytest.raises(WriteTimeout):
            transport.send(PLENTY)


@ways
def test_peer_that_takes_the_request_slowly_but_steadily_is_no_write_timeout(way: str, open_transport: Opener) -> None:
    size = 1_000_000 if way == "tls" else 2_500_000  # at most a record of 16 KiB at a time, or all that is there

    def sips(peer: Peer) -> None:
        while peer.received_count < size:
            peer._receive()
            peer.stall(seconds=0.02)
        peer.send(b"all")

    transport = open_transport(sips, way, send_buffer=65536)
    transport.bound(read=BOUND, write=0.4, deadline=None, what="origin")
    transport.send(b"x" * size)
    assert transport.more() == b"all"


def test_socket_without_bounds_sends_under_its_documented_timeout(open_transport: Opener) -> None:
    transport = open_transport(never_reads)
    transport.sock.settimeout(0.1)
    with pytest.raises(TimeoutError) as caught:
        transport.send(PLENTY)
    assert type(caught.value) is TimeoutError
    assert transport.any_sent
    with pytest.raises(TimeoutError):
        transport.send(PLENTY)


@ways
def test_send_without_any_limit_lasts_until_the_peer_takes_it(way: str, open_transport: Opener) -> None:
    transport = open_transport([ExpectHead(body=True), Send(b"all"), KeepOpen()], way)
    transport.send(b"POST / HTTP/1.1\r\nContent-Length: 5000000\r\n\r\n")
    transport.send(memoryview(bytearray(5_000_000)))
    assert transport.more() == b"all"


@ways
def test_flags_tell_whether_a_byte_went_out_or_came_in(way: str, open_transport: Opener) -> None:
    transport = open_transport([ExpectHead(), Send(b"x"), KeepOpen()], way)
    assert (transport.any_sent, transport.any_received) == (False, False)
    transport.send(b"GET / HTTP/1.1\r\n\r\n")
    assert (transport.any_sent, transport.any_received) == (True, False)
    buffer = bytearray(1)
    assert transport.take_into(memoryview(buffer)) == 1
    assert (transport.any_sent, transport.any_received) == (True, True)


# --- whose limits hold ------------------------------------------------------------------------------------------------


@ways
@pytest.mark.parametrize("own", [0.15, 0.3])
def test_timeout_that_a_borrower_sets_is_honoured(own: float, way: str, open_transport: Opener) -> None:
    transport = open_transport([KeepOpen()], way)
    transport.bound(read=BOUND, write=BOUND, deadline=None, what="origin")
    transport.sock.settimeout(own)
    with pytest.raises(TimeoutError):
        transport.more()
    with pytest.raises(TimeoutError):
        transport.take_into(memoryview(bytearray(1)))


@ways
def test_timeout_that_a_borrower_sets_is_undone_by_the_next_bound(way: str, open_transport: Opener) -> None:
    transport = open_transport([Stall(seconds=0.3), Send(b"late"), KeepOpen()], way)
    transport.bound(read=BOUND, write=BOUND, deadline=None, what="origin")
    transport.sock.settimeout(0.05)
    transport.bound(read=BOUND, write=BOUND, deadline=None, what="origin")
    assert transport.more() == b"late"
    assert transport.sock.gettimeout() in (None, BOUND)


@ways
def test_borrower_that_sets_no_timeout_at_all_is_bounded_again(way: str, open_transport: Opener) -> None:
    transport = open_transport([KeepOpen()], way)
    transport.bound(read=0.1, write=0.1, deadline=None, what="origin")
    transport.sock.settimeout(None)
    transport.bound(read=0.1, write=0.1, deadline=None, what="origin")
    with pytest.raises(ReadTimeout):
        transport.more()


@ways
def test_next_bound_replaces_the_limits_before(way: str, open_transport: Opener) -> None:
    transport = open_transport([KeepOpen()], way)
    deadline = Deadline(BOUND)
    transport.bound(read=BOUND, write=BOUND, deadline=deadline, what="origin")
    before = transport.limits
    transport.bound(read=0.1, write=None, deadline=None, what="origin")
    assert (before, transport.limits) == ((BOUND, BOUND, deadline), (0.1, None, None))
    with pytest.raises(ReadTimeout):
        transport.more()


@ways
def test_released_bounds_bound_nothing(way: str, open_transport: Opener) -> None:
    transport = open_transport([Stall(seconds=0.2), Send(b"late"), KeepOpen()], way)
    transport.release_bounds()
    transport.bound(read=0.05, write=0.05, deadline=Deadline(0.05), what="origin")
    transport.release_bounds()
    assert transport.limits == (None, None, None)
    assert transport.sock.gettimeout() is None
    assert transport.more() == b"late"


@ways
def test_hurry_bounds_what_had_limits_and_restore_gives_them_back(way: str, open_transport: Opener) -> None:
    transport = open_transport([Stall(seconds=0.3), Send(b"late"), KeepOpen()], way)
    transport.bound(read=BOUND, write=5, deadline=None, what="origin")
    previous = transport.hurry(Deadline(0.1, what="draining"))
    with pytest.raises(TotalTimeout, match="draining"):
        transport.more()
    transport.restore(previous)
    assert transport.limits == (BOUND, 5, None)
    assert transport.more() == b"late"


@ways
def test_hurry_bounds_what_had_none_and_restore_gives_the_timeout_back(way: str, open_transport: Opener) -> None:
    transport = open_transport([Stall(seconds=0.3), Send(b"late"), KeepOpen()], way)
    transport.sock.settimeout(7)
    previous = transport.hurry(Deadline(0.1, what="draining"))
    with pytest.raises(TotalTimeout, match="draining"):
        transport.more()
    transport.restore(previous)
    assert transport.limits == (None, None, None)
    assert transport.sock.gettimeout() == 7
    assert transport.more() == b"late"


# --- the buffer -------------------------------------------------------------------------------------------------------


def test_take_asks_for_more_than_is_due_and_keeps_it(open_transport: Opener) -> None:
    transport = open_transport([Send(b"0123456789"), KeepOpen()])
    assert transport.take(4) == b"0123"
    assert transport.has_leftover
    assert transport.take(2) == b"45"
    assert transport.take(100) == b"6789"
    assert not transport.has_leftover


def test_take_into_prefers_what_is_there(open_transport: Opener) -> None:
    transport = open_transport([Send(b"0123456789"), KeepOpen()])
    assert transport.take(4) == b"0123"
    buffer = bytearray(3)
    assert transport.take_into(memoryview(buffer)) == 3
    assert buffer == b"456"
    assert transport.take_into(memoryview(bytearray(100))) == 3
    assert not transport.has_leftover


def test_end_of_the_peer_is_nothing(open_transport: Opener) -> None:
    transport = open_transport([HalfClose(), KeepOpen()])
    assert transport.more() == b""
    assert transport.take(1) == b""
    assert transport.take(1 << 20) == b""
    assert transport.take_into(memoryview(bytearray(1))) == 0
    assert transport.take_line(100, "line") == b""
    assert not transport.any_received
    assert not transport.is_truncated


@pytest.mark.parametrize("take", [lambda transport: transport.more(),
                                  lambda transport: transport.take_into(memoryview(bytearray(1)))])  # fmt: skip
def test_tls_end_without_close_notify_is_marked(take: Callable[[Transport], object], open_transport: Opener) -> None:
    transport = open_transport([Close(close_notify=False)], "tls")
    assert not take(transport)
    assert transport.is_truncated


def test_tls_end_with_close_notify_is_not_marked(open_transport: Opener) -> None:
    transport = open_transport([Close()], "tls")
    assert transport.more() == b""
    assert not transport.is_truncated


@pytest.mark.parametrize("piece", [None, 1])
def test_lines_are_taken_one_by_one(piece: int | None, open_transport: Opener) -> None:
    transport = open_transport([Send(b"one\r\ntwo\n\nrest", piece=piece), HalfClose(), KeepOpen()])
    assert [transport.take_line(100, "line") for _ in range(4)] == [b"one\r\n", b"two\n", b"\n", b"rest"]


def test_line_may_be_as_long_as_its_limit(open_transport: Opener) -> None:
    transport = open_transport([Send(b"123\n123\n"), KeepOpen()])
    assert transport.take_line(4, "line") == b"123\n"
    with pytest.raises(LineTooLong, match="size"):
        transport.take_line(3, "size")


def test_line_that_does_not_end_within_its_limit_is_too_long(open_transport: Opener) -> None:
    transport = open_transport([Send(b"12345"), KeepOpen()])
    with pytest.raises(LineTooLong, match="size"):
        transport.take_line(4, "size")


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"


@pytest.mark.parametrize("piece", [None, 1])
@pytest.mark.parametrize("head", [HEAD, HEAD.replace(b"\r\n", b"\n")], ids=["CRLF", "LF"])
def test_head_is_received_and_what_follows_stays(head: bytes, piece: int | None, open_transport: Opener) -> None:
    transport = open_transport([Send(head + b"body" + head + head, piece=piece), KeepOpen()])
    assert transport.receive_head(LIMITS) == head
    assert receive(transport, 4) == b"body"
    assert transport.receive_head(LIMITS) == head
    assert transport.receive_head(LIMITS) == head
    assert not transport.has_leftover


@pytest.mark.parametrize(("sent", "error", "text"), [
    (b"", RemoteDisconnected, "without response"),
    (HEAD[:-2], InvalidResponse, "ended within the response's head, after 36 bytes"),
    (HEAD[:4], InvalidResponse, "after 4 bytes"),
    (b"SSH-2.0", BadStatusLine, "SSH"),
    (b"SSH-2.0-x\r\n", BadStatusLine, "SSH"),
    (b"HTTP/1.1 200 " + b"x" * 70000, LineTooLong, "status line"),
    (HEAD[:-2] + b"x" * 70000, LineTooLong, "header line"),
    (HEAD[:-2] + b"X: y\r\n" * 60000, InvalidResponse, "larger than 262144 bytes"),
])  # fmt: skip
def test_head_that_cannot_become_a_good_one_is_refused(
    sent: bytes, error: type[Exception], text: str, open_transport: Opener
) -> None:
    transport = open_transport([Send(sent), HalfClose(), KeepOpen()])
    with pytest.raises(error, match=text):
        transport.receive_head(LIMITS)


# --- the probe --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def probed(open_transport: Opener, *steps: Callable[[Peer], None], way: str = "kernel timers") -> Iterator[Transport]:
    """Open a transport, let the peer play its steps, and wait until what it did can be seen here."""
    is_connected, done = threading.Event(), threading.Event()

    def await_connection(_: Peer) -> None:
        assert is_connected.wait(BOUND)  # else connect() may see the reset already

    transport = open_transport([await_connection, *steps, Signal(done), KeepOpen()], way)
    is_connected.set()
    assert done.wait(BOUND)
    yield transport


def wait_readable(transport: Transport) -> None:
    assert select.select([transport.sock], [], [], BOUND)[0]


@ways
def test_probe_of_a_quiet_connection_finds_nothing(way: str, open_transport: Opener) -> None:
    with probed(open_transport, way=way) as transport:
        # TLS 1.3 sends session tickets behind the handshake: they make the socket readable and mean nothing.
        for _ in range(3):
            assert transport.staleness() is None
        assert transport.fileno() == transport.sock.fileno()


STALE: dict[str, tuple[list[Callable[[Peer], None]], CloseReason]] = {
    "EOF": ([HalfClose()], CloseReason.STALE_EOF),
    "reset": ([Reset()], CloseReason.STALE_RESET),
    "408": ([Send(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n")], CloseReason.STALE_408),
    "408 of 1.0": ([Send(b"HTTP/1.0 408 Request Timeout\r\n\r\n")], CloseReason.STALE_408),
    "408 and EOF": ([Send(b"HTTP/1.1 408 Request Timeout\r\n\r\n"), HalfClose()], CloseReason.STALE_408),
    "answer": ([Send(HEAD + b"evil")], CloseReason.UNSOLICITED),
    "byte": ([Send(b"x")], CloseReason.UNSOLICITED),
}


@pytest.mark.parametrize("case", STALE)
@ways
def test_probe_tells_what_happened_to_an_idle_connection(way: str, case: str, open_transport: Opener) -> None:
    steps, reason = STALE[case]
    with probed(open_transport, *steps, way=way) as transport:
        wait_readable(transport)
        found = transport.staleness()
        while found is None and way == "tls":  # the tickets of the handshake are what makes it readable first
            wait_readable(transport)
            found = transport.staleness()
        if way == "tls" and case == "reset":
            # CPython's ssl may lose the error on the way and tell a reset as an end without close_notify.
            assert found in (CloseReason.STALE_RESET, CloseReason.STALE_EOF)
        else:
            assert found is reason


def test_probe_of_tls_that_ended_without_close_notify_is_an_eof(open_transport: Opener) -> None:
    with probed(open_transport, Close(close_notify=False), way="tls") as transport:
        found = None
        while found is None:
            wait_readable(transport)
            found = transport.staleness()
        assert found is CloseReason.STALE_EOF


def test_probe_of_tls_sees_what_is_decrypted_already(open_transport: Opener) -> None:
    with probed(open_transport, Send(b"0123456789"), way="tls") as transport:
        assert transport.sock.recv(3) == b"012"
        assert transport.staleness() is CloseReason.UNSOLICITED


def test_probe_keeps_the_timeout_of_a_tls_socket(open_transport: Opener) -> None:
    with probed(open_transport, Send(b"x"), way="tls") as transport:
        transport.sock.settimeout(7)
        wait_readable(transport)
        transport.staleness()
        assert transport.sock.gettimeout() == 7


def test_probe_sees_bytes_that_are_left_over_in_the_buffer(open_transport: Opener) -> None:
    with probed(open_transport, Send(b"0123456789")) as transport:
        assert transport.take(4) == b"0123"
        assert transport.staleness() is CloseReason.LEFTOVER


def test_probe_takes_nothing_from_a_plain_socket(open_transport: Opener) -> None:
    with probed(open_transport, Send(b"x")) as transport:
        wait_readable(transport)
        assert transport.staleness() is CloseReason.UNSOLICITED
        assert transport.sock.recv(10) == b"x"


def test_probe_works_without_poll(open_transport: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    with probed(open_transport) as transport:
        monkeypatch.delattr(select, "poll")
        assert transport.staleness() is None
    with probed(open_transport, HalfClose()) as transport:
        wait_readable(transport)
        assert transport.staleness() is CloseReason.STALE_EOF


def test_probe_works_above_descriptor_1023(open_transport: Opener) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200) if hard != -1 else 1200, hard))
    try:
        with probed(open_transport) as transport, contextlib.ExitStack() as stack:
            # Copies of the descriptor fill the numbers below.
            copy = transport.sock.dup()
            while copy.fileno() <= 1023:
                stack.callback(copy.close)
                copy = transport.sock.dup()
            high = Transport(copy)
            stack.callback(high.close)
            assert high.staleness() is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- which transport --------------------------------------------------------------------------------------------------


def test_socket_of_the_standard_library_gets_the_fast_transport(open_transport: Opener) -> None:
    other = open_transport([KeepOpen()])
    transport = transport_for(other.sock)
    assert type(transport) is Transport
    transport.close()


class LeastSocket:
    """sendall, makefile and close, and nothing else; a descriptor if one is given."""

    def __init__(self, answer: bytes = b"") -> None:
        self.sent = b""
        self.answer = answer
        self.is_closed = False

    def sendall(self, block: bytes) -> None:
        self.sent += block

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self.answer)

    def close(self) -> None:
        self.is_closed = True


class SocketWithNumber(LeastSocket):
    def fileno(self) -> int:
        return 77


def test_socket_that_can_do_less_gets_the_one_by_file() -> None:
    sock = LeastSocket(b"0123456789")
    transport = transport_for(sock)
    assert isinstance(transport, FileTransport)
    transport.bound(read=1, write=1, deadline=Deadline(1), what="origin")
    transport.release_bounds()
    transport.restore(transport.hurry(Deadline(0.001)))
    transport.send(b"request")
    assert sock.sent == b"request"
    assert (transport.any_sent, transport.any_received) == (True, False)
    assert transport.take(3) == b"012"
    assert transport.any_received
    assert transport.staleness() is None
    transport.receive_ahead()
    assert transport.has_leftover
    assert transport.take(2) == b"3"
    buffer = bytearray(2)
    assert transport.take_into(memoryview(buffer)) == 2
    assert buffer == b"45"
    assert transport.take_line(100, "line") == b"6789"
    assert transport.take_line(100, "line") == b""
    transport.close()
    assert sock.is_closed


def test_socket_by_file_is_closed_before_it_was_read() -> None:
    sock = LeastSocket()
    transport_for(sock).close()
    assert sock.is_closed


def test_socket_by_file_has_the_descriptor_that_its_socket_has() -> None:
    assert transport_for(SocketWithNumber()).fileno() == 77
