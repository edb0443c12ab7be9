"""A CONNECT tunnel: what the proxy is told, what the origin never sees, and how a proxy can refuse or misbehave."""

from __future__ import annotations

import functools
import ssl
from collections.abc import Callable

import pytest
import trustme

from pooledhttp import (
    BadStatusLine,
    ConnectionPool,
    ConnectTimeout,
    HTTPConnection,
    HTTPSConnection,
    InvalidResponse,
    LineTooLong,
    RemoteDisconnected,
    Timeout,
    TotalTimeout,
    TunnelError,
)
from pooledhttp.states import State
from pooledhttp.testing import (
    Close,
    ExpectHead,
    HalfClose,
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
    Trickle,
)
from pooledhttp.timeouts import Deadline

BOUND = 10.0
ESTABLISHED = Send(b"HTTP/1.1 200 Connection established\r\nVia: proxy\r\nVia: other\r\n\r\n")
ANSWERS = Repeat([ExpectHead(), Respond(body=b"hello")])
TUNNEL = [ExpectHead(method="CONNECT"), ESTABLISHED, ANSWERS]


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(name: str = "origin.test") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(name).configure_cert(context)
    return context


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context


def through(proxy: ScriptedServer, host: str = "origin.test", port: int | str | None = 80, *,
            timeout: float | None = BOUND, headers: dict[str, str] | None = None) -> HTTPConnection:  # fmt: skip
    conn = HTTPConnection(proxy.host, proxy.port, timeout=timeout)
    conn.set_tunnel(host, port, headers)
    return conn


def finish(conn: HTTPConnection) -> None:
    """One normal request, then the end."""
    conn.request("GET", "/again")
    assert conn.getresponse().read() == b"hello"
    conn.close()


# --- what goes over the wire ------------------------------------------------------------------------------------------


def test_proxy_is_told_the_tunnel_fields_and_nothing_else(scripted_server: ServerFactory) -> None:
    proxy = scripted_server(TUNNEL)
    conn = through(proxy, port=8080, headers={"Proxy-Authorization": "Basic c2VjcmV0", "X-Tunnel": "1"})
    conn.request("GET", "/first", headers={"X-Request": "2", "Authorization": "Bearer token"})
    assert conn.getresponse().read() == b"hello"
    conn.close()
    connect, request = proxy.requests
    assert connect.head == (
        b"CONNECT origin.test:8080 HTTP/1.1\r\nHost: origin.test:8080\r\n"
        b"Proxy-Authorization: Basic c2VjcmV0\r\nX-Tunnel: 1\r\n\r\n"
    )
    assert request.head == (
        b"GET /first HTTP/1.1\r\nHost: origin.test:8080\r\nAccept-Encoding: identity\r\n"
        b"X-Request: 2\r\nAuthorization: Bearer token\r\n\r\n"
    )


def test_tunnel_serves_one_request_after_the_other(scripted_server: ServerFactory) -> None:
    proxy = scripted_server(TUNNEL)
    conn = through(proxy)
    for _ in range(3):
        conn.request("GET", "/first")
        assert conn.getresponse().read() == b"hello"
    finish(conn)
    assert proxy.accepted == 1
    assert [request.method for request in proxy.requests] == ["CONNECT", "GET", "GET", "GET", "GET"]


def test_tunnel_is_asked_for_again_after_the_connection_was_closed(scripted_server: ServerFactory) -> None:
    proxy = scripted_server(default=TUNNEL)
    conn = through(proxy)
    finish(conn)
    finish(conn)
    assert [request.method for request in proxy.requests] == ["CONNECT", "GET"] * 2


def test_tls_begins_inside_the_tunnel_and_verifies_the_origin(scripted_server: ServerFactory) -> None:
    proxy = scripted_server([ExpectHead(target="origin.test:443"), ESTABLISHED, StartTLS(server_context()), ANSWERS])
    conn = HTTPSConnection(proxy.host, proxy.port, timeout=BOUND, context=client_context())
    conn.set_tunnel("origin.test", headers={"Proxy-Authorization": "Basic c2VjcmV0"})
    conn.request("GET", "/first")
    assert isinstance(conn.sock, ssl.SSLSocket)
    assert conn.getresponse().read() == b"hello"
    finish(conn)
    connect, first, _ = proxy.requests
    assert connect.field("Proxy-Authorization") == "Basic c2VjcmV0"
    assert first.field("Proxy-Authorization") is None
    assert first.field("Host") == "origin.test"


def test_certificate_of_somebody_else_inside_the_tunnel_is_refused(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    proxy = scripted_server([ExpectHead(), ESTABLISHED, StartTLS(server_context("elsewhere.test"))],
                            [ExpectHead(), ESTABLISHED, StartTLS(server_context()), ANSWERS])  # fmt: skip
    conn = HTTPSConnection(proxy.host, proxy.port, timeout=BOUND, context=client_context())
    conn.set_tunnel("origin.test")
    with pytest.raises(ssl.SSLCertVerificationError):
        conn.request("GET", "/first")
    assert conn.state is State.CLOSED
    finish(conn)


@pytest.mark.parametrize("port", [443, None])
def test_ipv6_literal_has_brackets(port: int | None, scripted_server: ServerFactory) -> None:
    proxy = scripted_server(TUNNEL)
    conn = through(proxy, "::1" if port else "[::1]", port)
    finish(conn)
    connect, request = proxy.requests
    assert connect.target == f"[::1]:{port or 80}"
    assert connect.field("Host") == connect.target
    assert request.field("Host") == ("[::1]:443" if port else "[::1]")


def test_port_may_stand_in_the_host(scripted_server: ServerFactory) -> None:
    proxy = scripted_server(TUNNEL)
    finish(through(proxy, "origin.test:8080", None))
    assert proxy.requests[0].target == "origin.test:8080"


def test_host_field_of_the_tunnel_may_be_given(scripted_server: ServerFactory) -> None:
    proxy = scripted_server(TUNNEL)
    finish(through(proxy, headers={"hOST": "other.test"}))
    assert proxy.requests[0].fields == (("hOST", "other.test"),)


def test_fields_of_the_answer_to_connect_are_kept(scripted_server: ServerFactory) -> None:
    proxy = scripted_server(TUNNEL)
    conn = through(proxy)
    assert conn.get_proxy_response_headers() is None
    conn.connect()
    headers = conn.get_proxy_response_headers()
    assert headers is not None
    assert headers.get_all("via") == ["proxy", "other"]
    finish(conn)


def test_interim_answer_of_the_proxy_is_skipped(scripted_server: ServerFactory) -> None:
    proxy = scripted_server([ExpectHead(), Send(b"HTTP/1.1 100 Continue\r\n\r\n"), ESTABLISHED, ANSWERS])
    finish(through(proxy))


@pytest.mark.parametrize("head", [
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n",
], ids=["204", "length", "chunked", "1.0"])  # fmt: skip
@pytest.mark.parametrize("piece", [None, 1])
def test_answer_that_opens_the_tunnel_has_no_body(
    head: bytes, piece: int | None, scripted_server: ServerFactory
) -> None:
    proxy = scripted_server([ExpectHead(), Send(head, piece=piece), ANSWERS])
    finish(through(proxy))


# --- what cannot be asked for -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["origin.test\r\nX: y", "origin.test\n", "origin test", "origin/test", "user@origin",
                                  "origin\0test", "origin%00", "", "or\uff0fgin.test"])  # fmt: skip
def test_host_that_would_break_the_request_is_refused(host: str, scripted_server: ServerFactory) -> None:
    proxy = scripted_server(default=TUNNEL)
    conn = HTTPConnection(proxy.host, proxy.port, timeout=BOUND)
    with pytest.raises(ValueError, match="Invalid tunnel host"):
        conn.set_tunnel(host, 80)
    assert proxy.accepted == 0


@pytest.mark.parametrize("port", ["80\r\n", "http", -1, 65536, "9" * 100])
def test_port_that_is_none_is_refused(port: int | str) -> None:
    with pytest.raises(ValueError, match="Invalid tunnel host or port"):
        HTTPConnection("proxy.test").set_tunnel("origin.test", port)


@pytest.mark.parametrize("headers", [{"X-A": "a\r\nX-B: b"}, {"X-A\r\nX-B": "b"}, {"X-A": "a\0"}, {"X A": "a"},
                                     {"": "a"}, {"X-A": "a\nb"}])  # fmt: skip
def test_header_that_would_break_the_request_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="Invalid header"):
        HTTPConnection("proxy.test").set_tunnel("origin.test", 80, headers)


def test_refused_header_does_not_show_its_value() -> None:
    with pytest.raises(ValueError, match="Proxy-Authorization") as caught:
        HTTPConnection("proxy.test").set_tunnel("origin.test", 80, {"Proxy-Authorization": "secret\r\n"})
    assert "secret" not in str(caught.value)


def test_tunnel_cannot_be_asked_for_on_an_open_connection(scripted_server: ServerFactory) -> None:
    server = scripted_server([ANSWERS])
    conn = HTTPConnection(server.host, server.port, timeout=BOUND)
    conn.connect()
    with pytest.raises(RuntimeError, match="established connection"):
        conn.set_tunnel("origin.test")
    finish(conn)


# --- the proxy refuses ------------------------------------------------------------------------------------------------


REFUSALS: dict[str, tuple[list[Callable[[Peer], None]], bytes]] = {
    "length": ([Respond(407, b"who are you?", [("Proxy-Authenticate", "Basic")])], b"who are you?"),
    "chunked": ([Respond(407, b"who are you?", [("Proxy-Authenticate", "Basic")], chunked=True)], b"who are you?"),
    "to the end": (
        [Respond(407, b"who are you?", [("Proxy-Authenticate", "Basic")], length=False)],
        b"who are you?",
    ),
    "no body": ([Respond(407, b"", [("Proxy-Authenticate", "Basic")])], b""),
    "truncated": (
        [Respond(407, b"who", [("Proxy-Authenticate", "Basic"), ("Content-Length", "12")]), HalfClose()],
        b"who",
    ),
    "long": ([Respond(407, b"x" * 100_000, [("Proxy-Authenticate", "Basic")])], b"x" * 65536),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusal_tells_status_headers_and_body(case: str, scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    steps, body = REFUSALS[case]
    proxy = scripted_server([ExpectHead(method="CONNECT"), *steps, KeepOpen()], default=TUNNEL)
    conn = through(proxy, headers={"Proxy-Authorization": "Basic c2VjcmV0"})
    with pytest.raises(TunnelError, match="407 Proxy Authentication Required") as caught:
        conn.request("GET", "/first")
    assert caught.value.status == 407
    assert ("Proxy-Authenticate", "Basic") in caught.value.headers
    assert caught.value.body == body
    assert isinstance(caught.value, OSError)
    assert "c2VjcmV0" not in f"{caught.value!r} {caught.value}"
    assert conn.state is State.CLOSED
    assert conn.sock is None
    finish(conn)
    assert [request.target for request in proxy.connections[0].requests] == ["origin.test:80"]


@pytest.mark.parametrize("status", [301, 403, 404, 500, 502, 504])
def test_any_answer_but_success_is_a_refusal(status: int, scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    proxy = scripted_server([ExpectHead(method="CONNECT"), Respond(status, b"no")], default=TUNNEL)
    conn = through(proxy)
    with pytest.raises(TunnelError, match=str(status)) as caught:
        conn.connect()
    assert caught.value.status == status
    finish(conn)


def test_body_of_a_refusal_that_does_not_come_ends_at_the_deadline(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    proxy = scripted_server([ExpectHead(), Send(b"HTTP/1.1 403 No\r\nContent-Length: 9\r\n\r\nno"), KeepOpen()],
                            default=TUNNEL)  # fmt: skip
    conn = through(proxy, timeout=0.3)
    with pytest.raises(TunnelError, match="403 No") as caught:
        conn.connect()
    assert caught.value.body == b"no"
    finish(conn)


# --- the proxy misbehaves ---------------------------------------------------------------------------------------------


def endless(peer: Peer) -> None:
    peer.read_head()
    peer.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        peer.send(b"X: y\r\n" * 1000)


def endless_line(peer: Peer) -> None:
    peer.read_head()
    peer.send(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        peer.send(b"y" * 10000)


def endless_interim(peer: Peer) -> None:
    peer.read_head()
    while True:
        peer.send(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 50)


MISBEHAVIOUR: dict[str, tuple[list[Callable[[Peer], None]], type[Exception], str]] = {
    "bytes behind the answer": (
        [ExpectHead(), Send(b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"), KeepOpen()],
        InvalidResponse,
        "sent bytes behind its answer to CONNECT",
    ),
    "no answer": ([ExpectHead(), Close()], RemoteDisconnected, "without response"),
    "half an answer": ([ExpectHead(), Send(b"HTTP/1.1 200"), Close()], InvalidResponse, "ended within"),
    "no HTTP": ([ExpectHead(), Send(b"SSH-2.0-x\r\n"), KeepOpen()], BadStatusLine, "SSH"),
    "a reset": ([ExpectHead(), Reset()], ConnectionResetError, "reset"),
    "an endless head": ([endless], InvalidResponse, "larger than|more than"),
    "an endless line": ([endless_line], LineTooLong, "header line"),
    "endless interim answers": ([endless_interim], InvalidResponse, "more than 100 interim"),
}


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("case", MISBEHAVIOUR)
def test_misbehaviour_of_the_proxy_is_an_error_and_closes_the_connection(
    case: str, scheme: str, scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    steps, error, text = MISBEHAVIOUR[case]
    good = [ExpectHead(), ESTABLISHED, *([StartTLS(server_context())] if scheme == "https" else []), ANSWERS]
    proxy = scripted_server(steps, default=good)
    conn: HTTPConnection
    if scheme == "https":
        conn = HTTPSConnection(proxy.host, proxy.port, timeout=BOUND, context=client_context())
    else:
        conn = HTTPConnection(proxy.host, proxy.port, timeout=BOUND)
    conn.set_tunnel("origin.test")
    with pytest.raises(error, match=text):
        conn.request("GET", "/first")
    assert conn.state is State.CLOSED
    assert conn.get_proxy_response_headers() is None
    peer = proxy.peer()
    assert peer.ended.wait(BOUND)
    assert len(peer.requests) == 1  # nothing went out behind CONNECT, and no TLS handshake began
    assert peer.received == peer.requests[0].head
    finish(conn)


@pytest.mark.parametrize("step", [Stall(), Trickle(b"HTTP/1.1 200 OK\r\n" * 100, interval=0.02)],
                         ids=["silence", "trickle"])  # fmt: skip
def test_answer_that_does_not_come_in_time_is_a_connect_timeout(
    step: Callable[[Peer], None], scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    proxy = scripted_server([ExpectHead(), step], default=TUNNEL)
    conn = through(proxy, timeout=0.2)
    with pytest.raises(ConnectTimeout, match="the proxy's answer to CONNECT took too long"):
        conn.connect()
    conn.timeout = BOUND
    finish(conn)


def test_answer_that_does_not_come_in_time_ends_at_the_total(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    proxy = scripted_server([ExpectHead(), Stall()], default=TUNNEL)
    conn = through(proxy)
    conn.bound(timeouts=Timeout(), deadline=Deadline(0.2, what="GET /first"))
    with pytest.raises(TotalTimeout, match="GET /first"):
        conn.connect()
    conn.bound(timeouts=Timeout())
    finish(conn)


# --- behind the tunnel ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [None, 7.0])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_documented_timeout_holds_behind_the_tunnel(
    scheme: str, timeout: float | None, scripted_server: ServerFactory
) -> None:
    good = [ExpectHead(), ESTABLISHED, *([StartTLS(server_context())] if scheme == "https" else []), ANSWERS]
    proxy = scripted_server(good)
    conn: HTTPConnection
    if scheme == "https":
        conn = HTTPSConnection(proxy.host, proxy.port, timeout=timeout, context=client_context())
    else:
        conn = HTTPConnection(proxy.host, proxy.port, timeout=timeout)
    conn.set_tunnel("origin.test")
    conn.connect()
    assert conn.sock.gettimeout() == timeout
    finish(conn)


def test_silence_behind_the_tunnel_ends_at_the_documented_timeout(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    proxy = scripted_server([ExpectHead(), ESTABLISHED, ExpectHead(), Stall()], default=TUNNEL)
    conn = through(proxy, timeout=0.3)
    conn.request("GET", "/first")
    with pytest.raises(TimeoutError):
        conn.getresponse()
    conn.timeout = BOUND
    finish(conn)


def test_pool_goes_through_its_proxy_with_the_credentials_of_its_url(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    proxy = scripted_server(default=TUNNEL)
    url = f"http://me:s%65cret@{proxy.host}:{proxy.port}"
    with ConnectionPool("origin.test", 8080, proxy=url, proxy_headers={"X-Tunnel": "1"}, registry=None) as pool:
        audit.watch(pool)
        for _ in range(2):
            assert pool.request("GET", "/first").data == b"hello"
    connect, first, _ = proxy.requests
    assert connect.target == "origin.test:8080"
    assert connect.field("Proxy-Authorization") == "Basic bWU6c2VjcmV0"
    assert connect.field("X-Tunnel") == "1"
    assert first.field("Proxy-Authorization") is None
    assert proxy.accepted == 1
