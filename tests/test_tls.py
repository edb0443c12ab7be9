"""`HTTPSConnection`: it verifies by default, its handshake is bounded, and whatever fails leaves no descriptor open."""

from __future__ import annotations

import datetime as dt
import functools
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from pooledhttp import (
    ConnectionPool,
    ConnectTimeout,
    HTTPSConnection,
    IncompleteRead,
    ReadTimeout,
    RemoteDisconnected,
    Timeout,
    TotalTimeout,
)
from pooledhttp.states import State
from pooledhttp.stats import CloseReason
from pooledhttp.testing import (
    Close,
    ExpectHead,
    KeepOpen,
    Repeat,
    ResourceAudit,
    Respond,
    ScriptedServer,
    Send,
    ServerFactory,
    Stall,
    Trickle,
)
from pooledhttp.timeouts import Deadline

BOUND = 10.0
ANSWERS = [Repeat([ExpectHead(), Respond(body=b"hello")])]


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


@functools.cache
def other_authority() -> trustme.CA:
    return trustme.CA()


def server_context(*names: str, issuer: trustme.CA | None = None, not_after: dt.datetime | None = None,
                   ) -> ssl.SSLContext:  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issuer = issuer or authority()
    issuer.issue_cert(*(names or ("127.0.0.1", "localhost")), not_after=not_after).configure_cert(context)
    return context


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context


def connection_to(server: ScriptedServer, *, timeout: float | None = BOUND) -> HTTPSConnection:
    return HTTPSConnection(server.host, server.port, timeout=timeout, context=client_context())


def finish(conn: HTTPSConnection) -> None:
    """One normal request, then the end."""
    conn.request("GET", "/again")
    assert conn.getresponse().read() == b"hello"
    conn.close()


def test_requests_are_answered_over_one_verified_connection(scripted_server: ServerFactory) -> None:
    server = scripted_server(default=ANSWERS, ssl_context=server_context())
    conn = connection_to(server)
    for _ in range(3):
        conn.request("GET", "/first")
        assert conn.getresponse().read() == b"hello"
    assert isinstance(conn.sock, ssl.SSLSocket)
    assert conn.staleness() is None
    assert server.requests[0].field("Host") == f"127.0.0.1:{server.port}"
    finish(conn)
    assert server.accepted == 1


def test_name_is_verified_without_its_root_dot(scripted_server: ServerFactory) -> None:
    server = scripted_server(default=ANSWERS, ssl_context=server_context())
    conn = HTTPSConnection("localhost.", server.port, timeout=BOUND, context=client_context())
    # Which names with a root dot resolve depends on the machine; the address is not the subject.
    conn._create_connection = lambda address, *rest: socket.create_connection(server.address, BOUND)
    finish(conn)


@pytest.mark.parametrize(("context", "text"), [
    (lambda: server_context("elsewhere.test"), "IP address mismatch|not valid for"),
    (lambda: server_context(not_after=dt.datetime(2020, 1, 1, tzinfo=dt.UTC)), "expired"),
    (lambda: server_context(issuer=other_authority()), "unable to get local issuer|self.signed"),
], ids=["wrong host", "expired", "unknown authority"])  # fmt: skip
def test_certificate_that_does_not_hold_is_refused(
    context: Callable[[], ssl.SSLContext], text: str, scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    bad = scripted_server(default=ANSWERS, ssl_context=context())
    conn = connection_to(bad)
    for attempt in range(2):
        with pytest.raises(ssl.SSLCertVerificationError, match=text):
            conn.request("GET", "/first")
        assert conn.state is State.CLOSED
        assert conn.sock is None
        assert bad.peer(attempt).ended.wait(BOUND)
    assert bad.requests == []
    good = scripted_server(default=ANSWERS, ssl_context=server_context())
    conn.port = good.port
    finish(conn)


def test_default_context_trusts_no_unknown_authority(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    server = scripted_server(default=ANSWERS, ssl_context=server_context())
    conn = HTTPSConnection(server.host, server.port, timeout=BOUND)
    with pytest.raises(ssl.SSLCertVerificationError):
        conn.connect()
    finish(connection_to(server))


def test_pool_refuses_a_certificate_that_does_not_hold_and_counts_nothing_open(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    bad = scripted_server(default=ANSWERS, ssl_context=server_context("elsewhere.test"))
    with ConnectionPool(bad.host, bad.port, scheme="https", ssl_context=client_context(), registry=None) as pool:
        audit.watch(pool)
        with pytest.raises(ssl.SSLCertVerificationError):
            pool.request("GET", "/first")
        assert bad.accepted == 1
    good = scripted_server(default=ANSWERS, ssl_context=server_context())
    with ConnectionPool(good.host, good.port, scheme="https", ssl_context=client_context(), registry=None) as pool:
        assert pool.request("GET", "/again").data == b"hello"


def test_server_name_that_is_not_the_host_can_be_asked_for(scripted_server: ServerFactory) -> None:
    server = scripted_server(default=ANSWERS, ssl_context=server_context("origin.test"))
    with ConnectionPool(server.host, server.port, scheme="https", ssl_context=client_context(),
                        server_hostname="origin.test", registry=None) as pool:  # fmt: skip
        assert pool.request("GET", "/first").data == b"hello"


def test_stalled_handshake_ends_at_the_timeout(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    stalled = scripted_server([Stall()])
    conn = connection_to(stalled, timeout=0.2)
    with pytest.raises(ConnectTimeout, match="the TLS handshake took too long"):
        conn.request("GET", "/first")
    assert conn.state is State.CLOSED
    good = scripted_server(default=ANSWERS, ssl_context=server_context())
    conn.port, conn.timeout = good.port, BOUND
    finish(conn)


def test_stalled_handshake_ends_at_the_connect_limit_of_a_lender(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    stalled = scripted_server([Stall()])
    conn = connection_to(stalled, timeout=None)
    conn.bound(timeouts=Timeout(connect=0.2))
    with pytest.raises(ConnectTimeout, match=r"within 0\.20 s: the TLS handshake took too long"):
        conn.request("GET", "/first")
    good = scripted_server(default=ANSWERS, ssl_context=server_context())
    conn.port = good.port
    finish(conn)


def test_stalled_handshake_ends_at_the_total(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    stalled = scripted_server([Stall()])
    conn = connection_to(stalled)
    conn.bound(timeouts=Timeout(), deadline=Deadline(0.2, what="GET /first"))
    with pytest.raises(TotalTimeout, match="GET /first"):
        conn.request("GET", "/first")
    good = scripted_server(default=ANSWERS, ssl_context=server_context())
    conn.port = good.port
    conn.bound(timeouts=Timeout())
    finish(conn)


def test_server_that_speaks_no_tls_is_an_ssl_error(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    plain = scripted_server([Respond(400), KeepOpen()])
    conn = connection_to(plain)
    with pytest.raises(ssl.SSLError):
        conn.request("GET", "/first")
    good = scripted_server(default=ANSWERS, ssl_context=server_context())
    conn.port = good.port
    finish(conn)


def test_server_that_closes_within_the_handshake_is_an_error(
    scripted_server: ServerFactory, audit: ResourceAudit
) -> None:
    closing = scripted_server([Close()])
    conn = connection_to(closing)
    with pytest.raises(OSError):  # SSLEOFError or ConnectionResetError: whichever the kernel is first with
        conn.request("GET", "/first")
    good = scripted_server(default=ANSWERS, ssl_context=server_context())
    conn.port = good.port
    finish(conn)


def test_documented_timeout_bounds_each_read(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    server = scripted_server([ExpectHead(), KeepOpen()], default=ANSWERS, ssl_context=server_context())
    conn = connection_to(server)
    conn.request("GET", "/first")
    conn.sock.settimeout(0.2)
    with pytest.raises(TimeoutError):
        conn.getresponse()
    assert conn._close_reasons == [CloseReason.TIMEOUT]
    finish(conn)


def test_silence_is_a_read_timeout_that_names_the_origin(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    server = scripted_server([ExpectHead(), KeepOpen()], default=ANSWERS, ssl_context=server_context())
    conn = connection_to(server)
    conn.bound(timeouts=Timeout(read=0.2))
    conn.request("GET", "/first")
    with pytest.raises(ReadTimeout, match=r"127\.0\.0\.1 sent nothing for 0\.20 s"):
        conn.getresponse()
    assert conn.state is State.CLOSED
    finish(conn)


def test_trickling_body_ends_at_the_total(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    trickle = [ExpectHead(), Send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"), Trickle(b"x" * 1000, 0.03)]
    server = scripted_server(trickle, default=ANSWERS, ssl_context=server_context())
    conn = connection_to(server)
    conn.connect()
    conn.bound(timeouts=Timeout(read=5), deadline=Deadline(0.3, what="GET /first"))
    conn.request("GET", "/first")
    response = conn.getresponse()
    with pytest.raises(TotalTimeout, match=r"GET /first took longer than its total of 0\.30 s"):
        response.read()
    assert conn._close_reasons == [CloseReason.TIMEOUT]
    conn.bound(timeouts=Timeout())
    finish(conn)


def test_end_without_an_answer_is_a_disconnection(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    server = scripted_server([ExpectHead(), Close()], default=ANSWERS, ssl_context=server_context())
    conn = connection_to(server)
    conn.request("GET", "/first")
    with pytest.raises(RemoteDisconnected):
        conn.getresponse()
    finish(conn)


def test_truncation_within_a_length_is_an_error(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    server = scripted_server([ExpectHead(), Send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"), Close()],
                             default=ANSWERS, ssl_context=server_context())  # fmt: skip
    conn = connection_to(server)
    conn.request("GET", "/first")
    with pytest.raises(IncompleteRead):
        conn.getresponse().read()
    finish(conn)


def test_body_longer_than_a_record_arrives_whole(scripted_server: ServerFactory) -> None:
    server = scripted_server(default=ANSWERS, ssl_context=server_context())
    conn = connection_to(server)
    body = bytes(range(256)) * 4000
    conn.request("POST", "/first", body=body)
    assert conn.getresponse().read() == b"hello"
    assert server.requests[0].body == body
    finish(conn)


def test_certificate_of_the_client_is_shown(scripted_server: ServerFactory, tmp_path: Path) -> None:
    context = server_context()
    authority().configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    client = authority().issue_cert("client.test")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    client.cert_chain_pems[0].write_to_path(chain)
    client.private_key_pem.write_to_path(key)
    server = scripted_server(default=ANSWERS, ssl_context=context)
    conn = HTTPSConnection(server.host, server.port, timeout=BOUND, context=client_context(), cert_file=chain,
                           key_file=key)  # fmt: skip
    assert (conn.cert_file, conn.key_file) == (chain, key)
    finish(conn)


def test_key_without_a_certificate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="key_file needs a cert_file"):
        HTTPSConnection("origin.test", key_file=tmp_path / "key.pem")


def test_missing_certificate_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        HTTPSConnection("origin.test", cert_file=tmp_path / "missing.pem")


def test_port_443_is_the_default_and_stays_out_of_the_host_field() -> None:
    conn = HTTPSConnection("origin.test")
    assert conn.port == 443
    assert conn._constant_fields[0] == ("Host", "origin.test")
