"""From an origin to a connected socket: one deadline over all addresses, staggered attempts, source addresses, TLS.

Black holes are listening sockets whose backlog is full, so that a further connection attempt gets no answer.  Whatever
fails leaves no descriptor and no thread behind.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import os
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trustme

from pooledhttp import ConnectTimeout, HTTPConnection, SourcePortsExhausted, TotalTimeout
from pooledhttp import dial as dial_room
from pooledhttp.dial import GLOBAL_DEFAULT_TIMEOUT, Dialer, create_connection, default_tls_context, resolve, start_tls
from pooledhttp.testing import KeepOpen, ResourceAudit, Respond, ScriptedServer, Send, ServerFactory, Stall
from pooledhttp.timeouts import ConnectDeadline, Deadline

BOUND = 10.0
Address = tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]


def within(seconds: float | None, *, total: Deadline | None = None) -> ConnectDeadline:
    return ConnectDeadline(seconds, total=total, what="origin.test:80")


def tcp(address: tuple[Any, ...]) -> Address:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    return family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address


@pytest.fixture
def hole(audit: ResourceAudit) -> Iterator[tuple[str, int]]:
    """An address where connecting gets no answer at all."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()


@pytest.fixture
def refusing(audit: ResourceAudit) -> Iterator[tuple[str, int]]:
    """An address where nobody listens; the port is kept from everybody else."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()


@pytest.fixture
def good(scripted_server: ServerFactory) -> ScriptedServer:
    return scripted_server(default=[Send(b"welcome"), KeepOpen()])


@pytest.fixture
def resolve_to(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make every name resolve to these addresses."""

    def answer_with(*addresses: Sequence[Any]) -> None:
        found = [tcp(tuple(address)) for address in addresses]
        monkeypatch.setattr(dial_room, "_look_up", lambda host, port: found)

    return answer_with


def dial(seconds: float | None = BOUND, **options: Any) -> socket.socket:
    return Dialer(host="origin.test", port=80, **options).dial(within(seconds))


def assert_welcome(sock: socket.socket, server: ScriptedServer | None = None) -> None:
    with sock:
        assert sock.gettimeout() is None
        sock.settimeout(BOUND)
        assert sock.recv(100) == b"welcome"
        assert server is None or sock.getpeername()[1] == server.port


# --- one address ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [None, BOUND])
def test_origin_is_reached_by_its_address(seconds: float | None, good: ScriptedServer) -> None:
    assert_welcome(Dialer(host=good.host, port=good.port).dial(within(seconds)), good)


@pytest.mark.parametrize("seconds", [None, BOUND])
def test_origin_is_reached_by_its_name(seconds: float | None, good: ScriptedServer) -> None:
    assert_welcome(Dialer(host="localhost", port=good.port).dial(within(seconds)), good)


def test_origin_is_reached_over_ipv6(scripted_server: ServerFactory) -> None:
    server = scripted_server([Send(b"welcome"), KeepOpen()], host="::1")
    assert_welcome(Dialer(host="::1", port=server.port).dial(within(BOUND)), server)


def test_request_never_waits_to_fill_a_segment(good: ScriptedServer) -> None:
    with Dialer(host=good.host, port=good.port).dial(within(BOUND)) as sock:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_socket_options_are_set_before_connecting(good: ScriptedServer) -> None:
    options = ((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.SOL_SOCKET, socket.SO_LINGER, b"\0" * 8))
    with Dialer(host=good.host, port=good.port, socket_options=options).dial(within(BOUND)) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_socket_option_that_the_kernel_refuses_leaves_nothing_open(good: ScriptedServer, audit: ResourceAudit) -> None:
    dialer = Dialer(host=good.host, port=good.port, socket_options=((socket.SOL_SOCKET, 9999, 1),))
    with ResourceAudit(), pytest.raises(OSError, match="not available"):
        dialer.dial(within(BOUND))
    assert good.accepted == 0


def test_refusal_passes_untouched(
    refusing: tuple[str, int], good: ScriptedServer, resolve_to: Callable[..., None]
) -> None:
    resolve_to(refusing)
    with pytest.raises(ConnectionRefusedError):
        dial()
    resolve_to(good.address)
    assert_welcome(dial())


def test_black_hole_is_a_connect_timeout(hole: tuple[str, int], resolve_to: Callable[..., None]) -> None:
    resolve_to(hole)
    with pytest.raises(ConnectTimeout, match=r"no connection to origin\.test:80 within 0\.20 s: connecting took too"):
        dial(0.2)


def test_black_hole_ends_at_the_total_of_the_call(hole: tuple[str, int], resolve_to: Callable[..., None]) -> None:
    resolve_to(hole)
    deadline = within(BOUND, total=Deadline(0.2, what="GET /"))
    with pytest.raises(TotalTimeout, match=r"GET / took longer than its total of 0\.20 s"):
        Dialer(host="origin.test", port=80).dial(deadline)


def test_limit_of_the_kernel_itself_passes_untouched(
    good: ScriptedServer, resolve_to: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(good.address)

    def give_up(*_: object) -> None:
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    monkeypatch.setattr(socket.socket, "connect", give_up)
    with pytest.raises(TimeoutError) as caught:
        dial()
    assert caught.value.errno == errno.ETIMEDOUT
    assert not isinstance(caught.value, ConnectTimeout)


def test_deadline_that_is_over_opens_nothing(good: ScriptedServer) -> None:
    now = [0.0]
    deadline = ConnectDeadline(1, what="origin.test:80", clock=lambda: now[0])
    now[0] = 2.0
    with pytest.raises(ConnectTimeout, match="resolving took too long"):
        Dialer(host=good.host, port=good.port).dial(deadline)
    assert good.accepted == 0


# --- several addresses ------------------------------------------------------------------------------------------------


def test_working_address_behind_a_refusing_one_is_found(
    refusing: tuple[str, int], good: ScriptedServer, resolve_to: Callable[..., None]
) -> None:
    resolve_to(refusing, refusing, good.address)
    assert_welcome(dial(), good)


def test_working_address_behind_a_black_hole_is_found(
    hole: tuple[str, int], good: ScriptedServer, resolve_to: Callable[..., None]
) -> None:
    resolve_to(hole, good.address)
    assert_welcome(dial(), good)
    assert good.accepted == 1


def test_first_address_wins_when_all_work(good: ScriptedServer, resolve_to: Callable[..., None]) -> None:
    resolve_to(good.address, good.address, good.address)
    assert_welcome(dial(), good)
    assert good.accepted == 1


def test_working_address_is_found_without_any_limit(
    refusing: tuple[str, int], good: ScriptedServer, resolve_to: Callable[..., None]
) -> None:
    resolve_to(refusing, good.address)
    assert_welcome(dial(None), good)


def test_limit_may_be_longer_than_any_wait(
    refusing: tuple[str, int], hole: tuple[str, int], good: ScriptedServer, resolve_to: Callable[..., None]
) -> None:
    resolve_to(refusing, hole, good.address)
    assert_welcome(dial(364 * 24 * 3600.0), good)
    resolve_to(refusing, good.address)
    assert_welcome(Dialer(host="origin.test", port=80).dial(within(364 * 24 * 3600.0)), good)


def test_refusal_of_all_addresses_is_a_refusal(
    refusing: tuple[str, int], good: ScriptedServer, resolve_to: Callable[..., None]
) -> None:
    resolve_to(refusing, refusing, refusing)
    with pytest.raises(ConnectionRefusedError):
        dial()
    resolve_to(refusing, good.address)
    assert_welcome(dial(), good)


def test_one_deadline_bounds_all_addresses(hole: tuple[str, int], resolve_to: Callable[..., None]) -> None:
    # Four attempts of 0.4 s each would fit into no less than 1.6 s; the clock counts as the dialler reads it.
    resolve_to(hole, hole, hole, hole)
    deadline = within(0.4)
    with pytest.raises(ConnectTimeout, match=r"within 0\.40 s"):
        Dialer(host="origin.test", port=80).dial(deadline)
    assert deadline.remaining() > -0.8


def test_refusals_among_black_holes_do_not_end_the_search(
    hole: tuple[str, int], refusing: tuple[str, int], resolve_to: Callable[..., None]
) -> None:
    resolve_to(hole, refusing, hole)
    with pytest.raises(ConnectTimeout):
        dial(0.3)


def test_family_that_is_switched_off_is_passed_over(
    good: ScriptedServer, resolve_to: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    make = socket.socket

    class WithoutIPv6(make):  # type: ignore[valid-type,misc]  # the class that is about to be replaced
        def __init__(self, family: int = -1, *rest: Any, **named: Any) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
            super().__init__(family, *rest, **named)

    resolve_to(("::1", good.port, 0, 0), good.address)
    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", WithoutIPv6)
        sock = dial()
    assert_welcome(sock, good)


def test_refusal_tells_more_than_a_family_without_an_address(
    refusing: tuple[str, int], resolve_to: Callable[..., None]
) -> None:
    # 2001:db8::/32 is for documentation; binding to 127.0.0.1 cannot work for it either.
    resolve_to(("2001:db8::1", 80, 0, 0), refusing)
    with pytest.raises(ConnectionRefusedError):
        dial(source_addresses=(("127.0.0.1", 0),))


def test_families_take_turns(
    refusing: tuple[str, int], good: ScriptedServer, resolve_to: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    prepare = Dialer._prepare

    def note(self: Dialer, address: Address, source: Any) -> socket.socket:
        tried.append(address[0])
        return prepare(self, address, source)

    monkeypatch.setattr(Dialer, "_prepare", note)
    v6 = ("::1", refusing[1], 0, 0)
    resolve_to(v6, v6, v6, refusing, good.address)
    assert_welcome(dial(), good)
    assert tried[:4] == [socket.AF_INET6, socket.AF_INET, socket.AF_INET6, socket.AF_INET]


def test_interrupted_race_closes_every_socket(
    hole: tuple[str, int], audit: ResourceAudit, resolve_to: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(hole, hole)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with ResourceAudit():
        with monkeypatch.context() as patched:
            patched.setattr("selectors.DefaultSelector.select", interrupt)
            with pytest.raises(KeyboardInterrupt):
                dial()
        with monkeypatch.context() as patched:
            patched.setattr(socket.socket, "connect_ex", interrupt)
            with pytest.raises(KeyboardInterrupt):
                dial()


def test_attempt_that_fails_at_once_is_followed_by_the_next(
    good: ScriptedServer, resolve_to: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes: list[int | OSError] = [errno.ENETUNREACH, OSError(errno.EHOSTUNREACH, "no route")]
    connect_ex = socket.socket.connect_ex

    def fail_first(self: socket.socket, address: Any) -> int:
        if not outcomes:
            return connect_ex(self, address)
        outcome = outcomes.pop(0)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    resolve_to(good.address, good.address, good.address)
    monkeypatch.setattr(socket.socket, "connect_ex", fail_first)
    assert_welcome(dial(), good)


def test_attempt_that_succeeds_at_once_is_taken(
    good: ScriptedServer, resolve_to: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect_now(self: socket.socket, address: Any) -> int:
        self.settimeout(BOUND)
        self.connect(address)
        return 0

    resolve_to(good.address, good.address)
    monkeypatch.setattr(socket.socket, "connect_ex", connect_now)
    assert_welcome(dial(), good)
    assert good.accepted == 1


# --- source addresses -------------------------------------------------------------------------------------------------


def test_source_address_is_what_the_peer_sees(good: ScriptedServer) -> None:
    dialer = Dialer(host=good.host, port=good.port, source_addresses=(("127.0.0.2", 0),))
    assert_welcome(dialer.dial(within(BOUND)))
    client = good.peer().client_address
    assert client is not None
    assert client[0] == "127.0.0.2"


def test_source_address_of_ipv6_is_what_the_peer_sees(scripted_server: ServerFactory) -> None:
    server = scripted_server([Send(b"welcome"), KeepOpen()], host="::1")
    dialer = Dialer(host="::1", port=server.port, source_addresses=(("::1", 0),))
    assert_welcome(dialer.dial(within(BOUND)))


@pytest.mark.skipif(not hasattr(socket, "IP_BIND_ADDRESS_NO_PORT"), reason="an option of Linux")
@pytest.mark.parametrize(("source", "is_set"), [(("127.0.0.1", 0), 1), (None, 0)])
def test_port_of_a_bound_socket_is_chosen_at_connect(
    source: tuple[str, int] | None, is_set: int, good: ScriptedServer
) -> None:
    sources = (source,) if source else ()
    with Dialer(host=good.host, port=good.port, source_addresses=sources).dial(within(BOUND)) as sock:
        assert sock.getsockopt(socket.SOL_IP, socket.IP_BIND_ADDRESS_NO_PORT) == is_set


def test_source_address_of_another_machine_is_named(good: ScriptedServer) -> None:
    dialer = Dialer(host=good.host, port=good.port, source_addresses=(("192.0.2.77", 0),))
    with pytest.raises(OSError, match=r"source address 192\.0\.2\.77 is not an address of this machine") as caught:
        dialer.dial(within(BOUND))
    assert caught.value.errno == errno.EADDRNOTAVAIL
    assert not isinstance(caught.value, SourcePortsExhausted)
    assert good.accepted == 0


def test_next_source_address_is_tried_when_one_is_of_another_machine(good: ScriptedServer) -> None:
    dialer = Dialer(host=good.host, port=good.port, source_addresses=(("192.0.2.77", 0), ("127.0.0.3", 0)))
    assert_welcome(dialer.dial(within(BOUND)))
    client = good.peer().client_address
    assert client is not None
    assert client[0] == "127.0.0.3"


def free_port(host: str) -> int:
    with socket.socket() as sock:
        sock.bind((host, 0))
        port: int = sock.getsockname()[1]
        return port


def test_fixed_source_port_that_is_taken_is_exhaustion(good: ScriptedServer) -> None:
    port = free_port("127.0.0.4")
    dialer = Dialer(host=good.host, port=good.port, source_addresses=(("127.0.0.4", port),))
    with dialer.dial(within(BOUND)), pytest.raises(SourcePortsExhausted) as caught:
        dialer.dial(within(BOUND))
    assert caught.value.errno == errno.EADDRINUSE
    for part in ("no source port is left on 127.0.0.4", f"127.0.0.1:{good.port}", "maxsize", "ip_local_port_range"):
        assert part in str(caught.value)


def test_next_source_address_is_tried_when_the_ports_of_one_are_taken(good: ScriptedServer) -> None:
    port = free_port("127.0.0.5")
    sources = (("127.0.0.5", port), ("127.0.0.6", 0))
    dialer = Dialer(host=good.host, port=good.port, source_addresses=sources)
    with dialer.dial(within(BOUND)):
        assert_welcome(dialer.dial(within(BOUND)))
    client = good.peer(1).client_address
    assert client is not None
    assert client[0] == "127.0.0.6"


def test_exhausted_ports_of_the_machine_are_told(
    good: ScriptedServer, resolve_to: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> None:
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))

    resolve_to(good.address)
    monkeypatch.setattr(socket.socket, "connect", exhausted)
    with pytest.raises(SourcePortsExhausted, match=r"on this machine for origin\.test:80"):
        dial()


def test_exhausted_ports_are_told_for_several_addresses_too(
    good: ScriptedServer, resolve_to: Callable[..., None]
) -> None:
    port = free_port("127.0.0.7")
    resolve_to(good.address, good.address)
    with dial(source_addresses=(("127.0.0.7", port),)), pytest.raises(SourcePortsExhausted, match=r"127\.0\.0\.7"):
        dial(source_addresses=(("127.0.0.7", port),))


# --- resolving --------------------------------------------------------------------------------------------------------


def test_resolver_that_hangs_is_left_behind(
    good: ScriptedServer, audit: ResourceAudit, monkeypatch: pytest.MonkeyPatch
) -> None:
    wake_up = threading.Event()

    def hang(host: str, port: int) -> list[Address]:
        wake_up.wait(BOUND)
        return [tcp(good.address)]

    with monkeypatch.context() as patched:
        patched.setattr(dial_room, "_look_up", hang)
        with pytest.raises(ConnectTimeout, match=r"within 0\.20 s: resolving took too long"):
            dial(0.2)
        wake_up.set()
    assert_welcome(Dialer(host="localhost", port=good.port).dial(within(BOUND)))


def test_hanging_resolvers_are_bounded_in_number(good: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    wake_up = threading.Event()

    def hang(host: str, port: int) -> list[Address]:
        wake_up.wait(BOUND)
        return []

    places = threading.BoundedSemaphore(2)
    monkeypatch.setattr(dial_room, "_resolvers", places)
    with monkeypatch.context() as patched:
        patched.setattr(dial_room, "_look_up", hang)
        before = threading.active_count()
        for _ in range(4):
            with pytest.raises(ConnectTimeout, match="resolving"):
                dial(0.05)
        assert threading.active_count() <= before + 2
        wake_up.set()
        for _ in range(2):
            assert places.acquire(timeout=BOUND)
    monkeypatch.undo()
    assert_welcome(Dialer(host="localhost", port=good.port).dial(within(BOUND)))


@pytest.mark.parametrize("seconds", [None, BOUND])
def test_resolver_error_passes_untouched_and_the_next_call_resolves_again(
    seconds: float | None, good: ScriptedServer, resolve_to: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(host: str, port: int) -> list[Address]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(dial_room, "_look_up", fail)
    with pytest.raises(socket.gaierror, match="not known"):
        dial(seconds)
    resolve_to(good.address)
    assert_welcome(dial(seconds))


def test_name_without_an_address_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])
    with pytest.raises(OSError, match="no address"):
        resolve("origin.test", 80, within(None))


def test_literal_is_never_looked_up_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    callers = []

    def note(host: str, port: int) -> list[Address]:
        callers.append(threading.current_thread())
        return [tcp((host, port))]

    monkeypatch.setattr(dial_room, "_look_up", note)
    for literal in ("127.0.0.1", "::1", "fe80::1%lo"):
        resolve(literal, 80, within(BOUND))
    assert set(callers) == {threading.current_thread()}
    resolve("origin.test", 80, within(BOUND))
    assert callers[-1] is not threading.current_thread()


def test_thread_that_cannot_be_started_frees_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    places = threading.BoundedSemaphore(1)
    monkeypatch.setattr(dial_room, "_resolvers", places)

    def fail(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(RuntimeError):
        resolve("origin.test", 80, within(BOUND))
    assert places.acquire(blocking=False)


# --- Unix sockets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [None, BOUND])
def test_unix_socket_is_reached_by_its_path(
    seconds: float | None, tmp_path: Path, scripted_server: ServerFactory
) -> None:
    path = str(tmp_path / "s")
    scripted_server([Send(b"welcome"), KeepOpen()], uds=path)
    assert_welcome(dial(seconds, uds=path))


def test_unix_socket_that_is_missing_is_an_error(tmp_path: Path, audit: ResourceAudit) -> None:
    with pytest.raises(FileNotFoundError):
        dial(uds=str(tmp_path / "missing"))


def test_unix_socket_that_does_not_accept_is_a_connect_timeout(tmp_path: Path, audit: ResourceAudit) -> None:
    path = str(tmp_path / "full")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket(socket.AF_UNIX))
            filler.setblocking(False)
            filler.connect_ex(path)
        with pytest.raises(ConnectTimeout, match="connecting took too long"):
            dial(0.2, uds=path)


# --- the documented function ------------------------------------------------------------------------------------------


def test_created_connection_keeps_its_timeout(good: ScriptedServer) -> None:
    with create_connection(good.address, 7.0) as sock:
        assert sock.gettimeout() == 7.0


def test_created_connection_without_a_timeout_waits_for_ever(good: ScriptedServer) -> None:
    with create_connection(good.address, None) as sock:
        assert sock.gettimeout() is None


def test_created_connection_has_the_default_timeout_of_the_socket_module(good: ScriptedServer) -> None:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(6.0)
    try:
        with create_connection(good.address, GLOBAL_DEFAULT_TIMEOUT) as sock:
            assert sock.gettimeout() == 6.0
        conn = HTTPConnection(*good.address)
        conn.connect()
        assert conn.sock.gettimeout() == 6.0
        conn.close()
    finally:
        socket.setdefaulttimeout(before)


def test_created_connection_is_bound_to_its_source_address(good: ScriptedServer) -> None:
    with create_connection(good.address, BOUND, ("127.0.0.8", 0)) as sock:
        assert sock.getsockname()[0] == "127.0.0.8"


# --- TLS --------------------------------------------------------------------------------------------------------------


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(*names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(*names).configure_cert(context)
    return context


def client_context() -> ssl.SSLContext:
    context = default_tls_context()
    authority().configure_trust(context)
    return context


def test_default_tls_context_verifies_certificate_and_name() -> None:
    context = default_tls_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


@pytest.mark.parametrize("timeout", [None, 7.0])
def test_tls_keeps_the_timeout_of_its_socket(timeout: float | None, scripted_server: ServerFactory) -> None:
    server = scripted_server([Send(b"welcome"), KeepOpen()], ssl_context=server_context("origin.test"))
    sock = socket.create_connection(server.address, timeout=timeout)
    with start_tls(sock, client_context(), server_hostname="origin.test", deadline=within(BOUND)) as secured:
        assert secured.gettimeout() == timeout
        secured.settimeout(BOUND)
        assert secured.recv(100) == b"welcome"


@pytest.mark.parametrize(("seconds", "timeout"), [(0.2, None), (0.2, BOUND), (BOUND, 0.2), (None, 0.2)])
def test_tls_stall_ends_at_the_lesser_limit(
    seconds: float | None, timeout: float | None, scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = scripted_server([Stall()])
    sock = socket.create_connection(server.address, timeout=timeout)
    with pytest.raises(ConnectTimeout, match="the TLS handshake took too long"):
        start_tls(sock, client_context(), server_hostname="origin.test", deadline=within(seconds))
    assert sock.fileno() == -1


def test_tls_with_what_speaks_no_tls_is_an_ssl_error(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    server = scripted_server([Respond(400), KeepOpen()])
    sock = socket.create_connection(server.address, timeout=BOUND)
    with pytest.raises(ssl.SSLError):
        start_tls(sock, client_context(), server_hostname="origin.test", deadline=within(BOUND))
    assert sock.fileno() == -1


class Mark:
    """Lives as long as the error that it is put on."""

    def __init__(self, freed: list[bool]) -> None:
        self._freed = freed

    def __del__(self) -> None:
        self._freed.append(True)


def test_error_of_a_handshake_is_freed_without_the_collector(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    server = scripted_server([Stall()], ssl_context=server_context("elsewhere.test"))
    sock = socket.create_connection(server.address, timeout=BOUND)
    freed: list[bool] = []
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            start_tls(sock, client_context(), server_hostname="origin.test", deadline=within(BOUND))
        caught.value.mark = Mark(freed)  # type: ignore[attr-defined]  # an exception has a __dict__
        del caught
        assert freed
    finally:
        gc.enable()


def test_alarm_while_connecting_reaches_whoever_set_it(hole: tuple[str, int], resolve_to: Callable[..., None]) -> None:
    resolve_to(hole)
    alarm = TimeoutError("timed out")

    def ring(*_: object) -> None:
        raise alarm

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(TimeoutError) as caught:
            Dialer(host="origin.test", port=80).dial(within(BOUND))
        assert caught.value is alarm
    finally:
        signal.signal(signal.SIGALRM, before)
