"""What a caller gets wrong costs a clear error and nothing else: through every public entry, before anything is opened.

Each bad value is tried on something fresh (no socket is made, nobody is connected to) and on something with a healthy
connection (it survives, its server has received no byte of the bad call, and the next request goes over it).
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from pooledhttp import ConnectionPool, HTTPConnection, HTTPSConnection, PoolManager, Retry, Timeout
from pooledhttp.errors import CannotSendHeader, IllegalKeywordArgument, InvalidURL
from pooledhttp.states import State
from pooledhttp.testing import ExpectHead, Repeat, ResourceAudit, Respond, ScriptedServer, ServerFactory

BOUND = 10.0
SERVE = Repeat([ExpectHead(), Respond(body=b"hello")])

Bad = tuple[Any, type[Exception], str]


@pytest.fixture
def server(scripted_server: ServerFactory) -> ScriptedServer:
    return scripted_server(default=[SERVE])


class SocketCounter:
    """Counts the sockets that are made, and the names that are looked up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        make, look_up = socket.socket.__init__, socket.getaddrinfo

        def counted_make(*args: Any, **kwargs: Any) -> None:
            self.count += 1
            make(*args, **kwargs)

        def counted_look_up(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return look_up(*args, **kwargs)

        monkeypatch.setattr(socket.socket, "__init__", counted_make)
        monkeypatch.setattr(socket, "getaddrinfo", counted_look_up)


@pytest.fixture
def opened(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> SocketCounter:
    return SocketCounter(monkeypatch)  # behind the server, which is listening now


def test_counter_sees_an_opened_connection(server: ScriptedServer, opened: SocketCounter) -> None:
    with ConnectionPool(server.host, server.port, registry=None) as pool:
        assert pool.request("GET", "/").data == b"hello"
    assert opened.count >= 1


# --- what is bad ------------------------------------------------------------------------------------------------------

CONTROLS = [chr(code) for code in [*range(0x20), 0x7F]]

BAD_HOSTS: list[Bad] = [
    *[
        (f"127.0.0.1{bad}", InvalidURL, "host is not valid|port")
        for bad in [*CONTROLS, " ", "/", "@", "%", "?", "#", "\\"]
    ],
    ("127.0.0.1\r\nHost: evil", InvalidURL, "host is not valid|port"),
    ("user:secret@127.0.0.1", InvalidURL, "host is not valid"),
    ("http://127.0.0.1", InvalidURL, "port"),
    ("b\xfccher\uff0f.de", InvalidURL, "host is not valid"),
    ("", InvalidURL, "host is not valid"),
    (":80", InvalidURL, "host is not valid"),
    ("::1", InvalidURL, "host is not valid"),
    ("[::1", InvalidURL, "host is not valid"),
    ("[127.0.0.1]", InvalidURL, "host is not valid"),
    ("127.0.0.1:x", InvalidURL, "port"),
    ("127.0.0.1:65536", InvalidURL, "port"),
    (None, TypeError, "host must be a str"),
    (b"127.0.0.1", TypeError, "host must be a str"),
    (5, TypeError, "host must be a str"),
]
BAD_PORTS: list[Bad] = [
    (-1, InvalidURL, "port must be from 0 to 65535"),
    (65536, InvalidURL, "port must be from 0 to 65535"),
    ("http", InvalidURL, "nonnumeric port"),
    ("", InvalidURL, "nonnumeric port"),
    ("8 0", InvalidURL, "nonnumeric port"),
    ("\u0668\u0660", InvalidURL, "nonnumeric port"),
    (80.0, TypeError, "port must be an int"),
    (True, TypeError, "port must be an int"),
    (b"80", TypeError, "port must be an int"),
]
BAD_TIMES: list[Bad] = [
    (-1, ValueError, "timeout must be"),
    (math.nan, ValueError, "timeout must be"),
    (math.inf, ValueError, "timeout must be"),
    (10**400, ValueError, "timeout must be"),
    ("5", TypeError, "timeout must be"),
    (True, TypeError, "timeout must be"),
    ((1, 2), TypeError, "timeout must be"),
]
BAD_TIMEOUTS: list[Bad] = [(0, ValueError, "timeout must be"), *BAD_TIMES]
BAD_RETRIES: list[Bad] = [(bad, TypeError, "retry must be a Retry") for bad in (3, True, False, "off", Retry)]
BAD_SOURCES: list[Bad] = [
    *[
        (bad, ValueError, "source_address must be")
        for bad in ("127.0.0.1", 5, (), ("127.0.0.1",), ("127.0.0.1", "0"), ("127.0.0.1", -1), ("127.0.0.1", 65536))
    ],
    *[(bad, ValueError, "source_address must be") for bad in (("127.0.0.1 ", 0), ("127.0.0.1\0", 0), (None, 0))],
]
BAD_METHODS: list[Bad] = [
    *[(f"G{bad}T", ValueError, "method is not a token") for bad in [*CONTROLS, " ", "/", ":", "\xe4", "\u20ac"]],
    ("", ValueError, "method is not a token"),
    ("GET / HTTP/1.1\r\nA: b\r\n\r\nGET", ValueError, "method is not a token"),
    (None, TypeError, "method must be a str"),
    (b"GET", TypeError, "method must be a str"),
    (5, TypeError, "method must be a str"),
]
BAD_TARGETS: list[Bad] = [
    *[(f"/a{bad}b", InvalidURL, "target can't contain") for bad in [*CONTROLS, " ", "\xe4", "\u20ac"]],
    ("/ HTTP/1.1\r\nA: b\r\n\r\nGET /", InvalidURL, "target can't contain"),
]
BAD_POOL_TARGETS: list[Bad] = [
    *BAD_TARGETS,
    ("", InvalidURL, "must begin with '/'"),
    ("v1", InvalidURL, "must begin with '/'"),
    (" /v1", InvalidURL, "must begin with '/'"),
    ("?a=b", InvalidURL, "must begin with '/'"),
    ("http://127.0.0.1/", InvalidURL, "must begin with '/'"),
    (None, TypeError, "target must be a str"),
    (b"/", TypeError, "target must be a str"),
    (5, TypeError, "target must be a str"),
]
BAD_HEADERS: list[Bad] = [
    *[({f"A{bad}": "b"}, ValueError, "Invalid header name") for bad in [*CONTROLS, " ", ":", "/", "\xe4"]],
    *[({"A": f"b{bad}"}, ValueError, "Invalid header value") for bad in CONTROLS if bad != "\t"],
    ({"": "b"}, ValueError, "Invalid header name"),
    ({"A: b": "c"}, ValueError, "Invalid header name"),
    ({"\u20ac": "b"}, ValueError, "Invalid header name"),
    ({"A": "\u20ac"}, ValueError, "Invalid header value"),
    ({"A": "b\r\nC: d"}, ValueError, "Invalid header value"),
    ({"A": "b\r\n\r\nGET / HTTP/1.1\r\n\r\n"}, ValueError, "Invalid header value"),
    ({b"A": b"b\nC: d"}, ValueError, "Invalid header value"),
    ({"A": None}, TypeError, "must be str, bytes or int"),
    ({"A": 1.5}, TypeError, "must be str, bytes or int"),
    ({"A": ["b"]}, TypeError, "must be str, bytes or int"),
    ({None: "b"}, TypeError, "must be str, bytes or int"),
    ([("A", "b")], TypeError, "must be str, bytes or int"),
]
BAD_BODIES: list[Bad] = [
    (5, TypeError, "bytes-like object or an iterable"),
    (1.5, TypeError, "bytes-like object or an iterable"),
    (True, TypeError, "bytes-like object or an iterable"),
    ("\u20ac", ValueError, r"encode\('utf-8'\)"),
]
BAD_URLS: list[Bad] = [
    ("", InvalidURL, "must begin with http"),
    ("127.0.0.1", InvalidURL, "must begin with http"),
    ("/v1", InvalidURL, "must begin with http"),
    ("ftp://127.0.0.1/", InvalidURL, "must begin with http"),
    (" http://127.0.0.1/", InvalidURL, "must begin with http"),
    ("http://", InvalidURL, "no host"),
    ("http:///v1", InvalidURL, "no host"),
    ("http://user:secret@127.0.0.1/", InvalidURL, "userinfo"),
    ("http://127.0.0.1:x/", InvalidURL, "port"),
    ("http://127.0.0.1:65536/", InvalidURL, "port"),
    ("http://127.0.0.1 /", InvalidURL, "host is not valid"),
    ("http://127.0.0.1\r\nA: b/", InvalidURL, "host is not valid"),
    ("http://[::1/", InvalidURL, "host is not valid"),
    (None, TypeError, "url must be a str"),
    (b"http://127.0.0.1/", TypeError, "url must be a str"),
    (5, TypeError, "url must be a str"),
]


def in_use(**bad: list[Bad]) -> Any:
    """Parametrize a test with each bad value of each argument."""
    cases = [(name, *case) for name, table in bad.items() for case in table]
    return pytest.mark.parametrize(
        ("name", "value", "error", "text"), cases, ids=[f"{case[0]}={case[1]!r:.40}" for case in cases]
    )


# --- making something -------------------------------------------------------------------------------------------------

CONNECTIONS = pytest.mark.parametrize("kind", [HTTPConnection, HTTPSConnection])
BAD_BLOCKSIZES: list[Bad] = [(bad, ValueError, "blocksize must be") for bad in (0, -1, 1.5, "8192", None, True)]


@CONNECTIONS
@in_use(host=BAD_HOSTS, port=BAD_PORTS, timeout=BAD_TIMEOUTS, source_address=BAD_SOURCES, blocksize=BAD_BLOCKSIZES)
def test_connection_with_a_malformed_argument_is_not_made(
    kind: type[HTTPConnection], name: str, value: Any, error: type[Exception], text: str, opened: SocketCounter
) -> None:
    with pytest.raises(error, match=text) as caught:
        kind(**{"host": "127.0.0.1", name: value})
    assert "secret" not in str(caught.value)
    assert opened.count == 0


@CONNECTIONS
def test_connection_that_would_not_be_strict_is_not_made(kind: type[HTTPConnection], opened: SocketCounter) -> None:
    with pytest.raises(IllegalKeywordArgument, match=r"strict=False means HTTP/0\.9"):
        kind("127.0.0.1", strict=False)
    assert opened.count == 0


@CONNECTIONS
@pytest.mark.parametrize("name", ["time_out", "ssl_context", "retries", "maxsize"])
def test_connection_with_an_unknown_argument_is_not_made(
    kind: type[HTTPConnection], name: str, opened: SocketCounter
) -> None:
    unknown: dict[str, Any] = {name: 1}
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        kind("127.0.0.1", **unknown)
    assert opened.count == 0


def test_connection_with_missing_certificate_files_is_not_made(opened: SocketCounter) -> None:
    with pytest.raises(FileNotFoundError):
        HTTPSConnection("127.0.0.1", cert_file="/nowhere/certificate.pem")
    with pytest.raises(ValueError, match="key_file needs a cert_file"):
        HTTPSConnection("127.0.0.1", key_file="/nowhere/key.pem")
    assert opened.count == 0


@in_use(
    host=BAD_HOSTS,
    port=BAD_PORTS,
    timeout=[*BAD_TIMEOUTS, (None, TypeError, "timeout must be")],
    source_address=BAD_SOURCES,
    retry=[*BAD_RETRIES, ("configured", TypeError, "retry must be a Retry or None")],
    scheme=[(bad, InvalidURL, "scheme must be http or https") for bad in ("", "HTTP", "ftp", None, 5, b"http")],
    maxsize=[(0, ValueError, "maxsize"), (-1, ValueError, "maxsize"), ("5", TypeError, "maxsize")],
    max_waiters=[(-1, ValueError, "max_waiters"), (1.5, TypeError, "max_waiters")],
    proxy=[
        ("proxy:3128", InvalidURL, "proxy must be"),
        ("https://proxy", InvalidURL, "proxy must be"),
        ("http://user:secret@pro xy", InvalidURL, "host is not valid"),
        ("http://user:secret@proxy:x", InvalidURL, "port"),
        (5, TypeError, "proxy must be a str"),
    ],
    proxy_headers=[case for case in BAD_HEADERS if isinstance(case[0], dict)],
    max_size=[(5, TypeError, "unexpected keyword argument 'max_size'")],
)
def test_pool_with_a_malformed_argument_is_not_made(
    name: str, value: Any, error: type[Exception], text: str, opened: SocketCounter
) -> None:
    with pytest.raises(error, match=text) as caught:
        ConnectionPool(**{"host": "127.0.0.1", "registry": None, name: value})
    assert "secret" not in str(caught.value)
    assert opened.count == 0


@in_use(
    max_pools=[(0, ValueError, "max_pools"), (1.5, TypeError, "max_pools")],
    timeout=[*BAD_TIMEOUTS, (None, TypeError, "timeout must be")],
    source_address=BAD_SOURCES,
    retry=BAD_RETRIES,
    maxsize=[(0, ValueError, "maxsize"), ("5", TypeError, "maxsize")],
    proxy=[("proxy:3128", InvalidURL, "proxy must be")],
    pool_size=[(5, TypeError, "unexpected keyword argument 'pool_size'")],
)
def test_manager_with_a_malformed_argument_is_not_made(
    name: str, value: Any, error: type[Exception], text: str, opened: SocketCounter
) -> None:
    with pytest.raises(error, match=text):
        PoolManager(**{"registry": None, name: value})
    assert opened.count == 0


@in_use(**dict.fromkeys(("acquire", "connect", "read", "write", "total"), BAD_TIMES))
def test_timeout_with_a_malformed_part_is_not_made(name: str, value: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"Timeout.{name} must be"):
        Timeout(**{name: value})


# --- a connection in use ----------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(server: ScriptedServer) -> Iterator[HTTPConnection]:
    conn = HTTPConnection(server.host, server.port, timeout=BOUND)
    yield conn
    conn.close()


def ask(conn: HTTPConnection) -> bytes:
    conn.request("GET", "/good")
    return conn.getresponse().read()


@pytest.fixture
def healthy(fresh: HTTPConnection) -> HTTPConnection:
    assert ask(fresh) == b"hello"
    return fresh


def assert_untouched(server: ScriptedServer, requests: int) -> None:
    """One connection, and nothing on it but the good requests."""
    assert server.accepted == 1
    server.wait_until(lambda: len(server.requests) == requests, BOUND)
    assert {request.target for request in server.requests} == {"/good"}
    assert server.connections[0].received == b"".join(server.heads)


bad_requests = in_use(
    method=BAD_METHODS,
    url=[*BAD_TARGETS, (b"/", TypeError, "target must be a str"), (5, TypeError, "target must be a str")],
    body=BAD_BODIES,
    headers=BAD_HEADERS,
    encode_chunk=[(True, TypeError, "unexpected keyword argument")],
)
GOOD_REQUEST: Mapping[str, Any] = {"method": "POST", "url": "/bad", "body": b"body", "headers": {"A": "b"}}


@bad_requests
def test_malformed_request_on_a_fresh_connection_opens_nothing(
    name: str,
    value: Any,
    error: type[Exception],
    text: str,
    fresh: HTTPConnection,
    server: ScriptedServer,
    opened: SocketCounter,
) -> None:
    with pytest.raises(error, match=text):
        fresh.request(**{**GOOD_REQUEST, name: value})
    assert (fresh.state, fresh.sock, opened.count, server.accepted) == (State.CLOSED, None, 0, 0)
    assert ask(fresh) == b"hello"


@bad_requests
def test_malformed_request_leaves_a_healthy_connection_as_it_is(
    name: str, value: Any, error: type[Exception], text: str, healthy: HTTPConnection, server: ScriptedServer
) -> None:
    with pytest.raises(error, match=text):
        healthy.request(**{**GOOD_REQUEST, name: value})
    assert healthy.state is State.IDLE
    assert ask(healthy) == b"hello"
    assert_untouched(server, 2)


@in_use(
    method=BAD_METHODS, url=[*BAD_TARGETS, (b"/", TypeError, "target must be a str"), (5, TypeError, "target must be")]
)
def test_malformed_putrequest_leaves_a_healthy_connection_as_it_is(
    name: str, value: Any, error: type[Exception], text: str, healthy: HTTPConnection, server: ScriptedServer
) -> None:
    with pytest.raises(error, match=text):
        healthy.putrequest(**{"method": "GET", "url": "/bad", name: value})
    assert healthy.state is State.IDLE
    assert ask(healthy) == b"hello"
    assert_untouched(server, 2)


BAD_FIELDS = [(next(iter(case[0].items())), *case[1:]) for case in BAD_HEADERS if isinstance(case[0], dict)]


@in_use(field=BAD_FIELDS)
def test_malformed_header_can_be_replaced_by_a_good_one(
    name: str, value: Any, error: type[Exception], text: str, healthy: HTTPConnection, server: ScriptedServer
) -> None:
    healthy.putrequest("GET", "/good")
    with pytest.raises(error, match=text):
        healthy.putheader(*value)
    healthy.putheader("A", "b")
    healthy.endheaders()
    assert healthy.getresponse().read() == b"hello"
    assert_untouched(server, 2)
    assert [field for field in server.requests[1].fields if field[0] not in ("Host", "Accept-Encoding")] == [("A", "b")]


def test_header_without_a_request_is_refused(healthy: HTTPConnection, server: ScriptedServer) -> None:
    with pytest.raises(CannotSendHeader):
        healthy.putheader("A", "b")
    with pytest.raises(CannotSendHeader):
        healthy.endheaders()
    assert ask(healthy) == b"hello"
    assert_untouched(server, 2)


@in_use(
    host=[
        (value, TypeError if error is TypeError else ValueError, "host" if text.startswith("host") else text)
        for value, error, text in BAD_HOSTS
        if value
    ],
    port=[(value, TypeError if error is TypeError else ValueError, text) for value, error, text in BAD_PORTS],
    headers=[case for case in BAD_HEADERS if isinstance(case[0], dict)],
)
def test_malformed_tunnel_is_refused_and_the_connection_goes_without_one(
    name: str,
    value: Any,
    error: type[Exception],
    text: str,
    fresh: HTTPConnection,
    server: ScriptedServer,
    opened: SocketCounter,
) -> None:
    with pytest.raises(error, match=text):
        fresh.set_tunnel(**{"host": "origin", "port": 443, name: value} if name != "host" else {"host": value})
    assert (fresh.sock, opened.count, server.accepted) == (None, 0, 0)
    assert ask(fresh) == b"hello"
    assert_untouched(server, 1)


# --- a pool in use ----------------------------------------------------------------------------------------------------


@pytest.fixture
def pool(server: ScriptedServer, audit: ResourceAudit) -> Iterator[ConnectionPool]:
    with ConnectionPool(server.host, server.port, registry=None, timeout=Timeout(read=BOUND)) as made:
        yield made
    audit.check_pool(made)


@pytest.fixture
def warm(pool: ConnectionPool) -> ConnectionPool:
    assert pool.request("GET", "/good").data == b"hello"
    return pool


def stream_whole(lender: ConnectionPool | PoolManager) -> Callable[..., bytes]:
    def stream(**arguments: Any) -> bytes:
        with lender.stream(**arguments) as response:
            return response.read()

    return stream


def lend(lender: ConnectionPool | PoolManager) -> Callable[..., None]:
    def connection(**arguments: Any) -> None:
        with lender.connection(**arguments):
            pytest.fail("a connection was lent")

    return connection


POOL_REQUESTS: dict[str, Callable[[ConnectionPool], Callable[..., Any]]] = {
    "request": lambda pool: pool.request,
    "stream": stream_whole,
}
POOL_LEASES: dict[str, Callable[[ConnectionPool], Callable[..., Any]]] = {
    "connection": lend,
    "acquire": lambda pool: pool.acquire,
}
GOOD_POOL_REQUEST: Mapping[str, Any] = {
    "method": "POST",
    "target": "/bad",
    "body": b"body",
    "headers": {"A": "b"},
    "timeout": BOUND,
}
bad_pool_requests = in_use(
    method=BAD_METHODS,
    target=BAD_POOL_TARGETS,
    body=BAD_BODIES,
    headers=BAD_HEADERS,
    timeout=BAD_TIMEOUTS,
    retry=BAD_RETRIES,
    retries=[(3, TypeError, "unexpected keyword argument 'retries'")],
)
bad_leases = in_use(timeout=BAD_TIMES, time_out=[(3, TypeError, "unexpected keyword argument 'time_out'")])


def assert_nothing_opened(pool: ConnectionPool, server: ScriptedServer, opened: SocketCounter) -> None:
    stats = pool.stats()
    assert (stats.idle, stats.leased, stats.opening, stats.waiting, stats.opened) == (0, 0, 0, 0, 0)
    assert sum(stats.connect_failures.values()) == 0
    assert (opened.count, server.accepted) == (0, 0)


def assert_healthy(pool: ConnectionPool, server: ScriptedServer) -> None:
    stats = pool.stats()
    assert (stats.idle, stats.leased, stats.opened, sum(stats.closed.values())) == (1, 0, 1, 0)
    assert pool.request("GET", "/good").data == b"hello"
    assert_untouched(server, 2)


@pytest.mark.parametrize("entry", POOL_REQUESTS)
@bad_pool_requests
def test_malformed_request_opens_nothing_in_a_fresh_pool(
    entry: str,
    name: str,
    value: Any,
    error: type[Exception],
    text: str,
    pool: ConnectionPool,
    server: ScriptedServer,
    opened: SocketCounter,
) -> None:
    with pytest.raises(error, match=text):
        POOL_REQUESTS[entry](pool)(**{**GOOD_POOL_REQUEST, name: value})
    assert_nothing_opened(pool, server, opened)
    assert pool.request("GET", "/good").data == b"hello"


@pytest.mark.parametrize("entry", POOL_REQUESTS)
@bad_pool_requests
def test_malformed_request_leaves_a_pooled_connection_as_it_is(
    entry: str, name: str, value: Any, error: type[Exception], text: str, warm: ConnectionPool, server: ScriptedServer
) -> None:
    with pytest.raises(error, match=text):
        POOL_REQUESTS[entry](warm)(**{**GOOD_POOL_REQUEST, name: value})
    assert_healthy(warm, server)


@pytest.mark.parametrize("entry", POOL_LEASES)
@bad_leases
def test_malformed_lease_opens_nothing_in_a_fresh_pool(
    entry: str,
    name: str,
    value: Any,
    error: type[Exception],
    text: str,
    pool: ConnectionPool,
    server: ScriptedServer,
    opened: SocketCounter,
) -> None:
    with pytest.raises(error, match=text):
        POOL_LEASES[entry](pool)(**{name: value})
    assert_nothing_opened(pool, server, opened)
    assert pool.request("GET", "/good").data == b"hello"


@pytest.mark.parametrize("entry", POOL_LEASES)
@bad_leases
def test_malformed_lease_leaves_a_pooled_connection_as_it_is(
    entry: str, name: str, value: Any, error: type[Exception], text: str, warm: ConnectionPool, server: ScriptedServer
) -> None:
    with pytest.raises(error, match=text):
        POOL_LEASES[entry](warm)(**{name: value})
    assert_healthy(warm, server)


@bad_requests
def test_malformed_request_on_a_lent_connection_costs_no_more_than_its_lease(
    name: str, value: Any, error: type[Exception], text: str, warm: ConnectionPool, server: ScriptedServer
) -> None:
    conn = warm.acquire(BOUND)
    try:
        with pytest.raises(error, match=text):
            conn.request(**{**GOOD_REQUEST, name: value})
    finally:
        warm.release(conn)
    assert_healthy(warm, server)


@pytest.mark.parametrize("entry", POOL_REQUESTS)
def test_bad_field_error_does_not_show_what_may_be_secret(entry: str, pool: ConnectionPool) -> None:
    headers = {"Authorization": "Bearer secret\r\n", "Cookie": "secret"}
    with pytest.raises(ValueError) as caught:
        POOL_REQUESTS[entry](pool)(method="GET", target="/", headers=headers)
    assert "secret" not in str(caught.value)


# --- a manager in use -------------------------------------------------------------------------------------------------


@pytest.fixture
def manager(server: ScriptedServer) -> Iterator[PoolManager]:
    with PoolManager(registry=None, timeout=Timeout(read=BOUND)) as made:
        yield made


@pytest.fixture
def warm_manager(manager: PoolManager, server: ScriptedServer) -> PoolManager:
    assert manager.request("GET", f"{server.url}/good").data == b"hello"
    return manager


MANAGER_REQUESTS: dict[str, Callable[[PoolManager], Callable[..., Any]]] = {
    "request": lambda manager: manager.request,
    "stream": stream_whole,
}
MANAGER_LEASES: dict[str, Callable[[PoolManager], Callable[..., Any]]] = {
    "connection": lend,
    "pool": lambda manager: manager.pool,
}
bad_manager_requests = in_use(
    method=BAD_METHODS,
    target=BAD_TARGETS,
    url=BAD_URLS,
    body=BAD_BODIES,
    headers=BAD_HEADERS,
    timeout=BAD_TIMEOUTS,
    retry=BAD_RETRIES,
    retries=[(3, TypeError, "unexpected keyword argument 'retries'")],
)


def arguments(server: ScriptedServer, name: str, value: Any) -> dict[str, Any]:
    good = {"method": "POST", "url": f"{server.url}/bad", "body": b"body", "headers": {"A": "b"}, "timeout": BOUND}
    if name == "target":
        return {**good, "url": f"{server.url}{value}"}
    return {**good, name: value}


@pytest.mark.parametrize("entry", MANAGER_REQUESTS)
@bad_manager_requests
def test_malformed_request_opens_nothing_in_a_fresh_manager(
    entry: str,
    name: str,
    value: Any,
    error: type[Exception],
    text: str,
    manager: PoolManager,
    server: ScriptedServer,
    opened: SocketCounter,
) -> None:
    with pytest.raises(error, match=text) as caught:
        MANAGER_REQUESTS[entry](manager)(**arguments(server, name, value))
    assert "secret" not in str(caught.value)
    assert (opened.count, server.accepted) == (0, 0)
    assert manager.request("GET", f"{server.url}/good").data == b"hello"


@pytest.mark.parametrize("entry", MANAGER_REQUESTS)
@bad_manager_requests
def test_malformed_request_leaves_a_managed_connection_as_it_is(
    entry: str,
    name: str,
    value: Any,
    error: type[Exception],
    text: str,
    warm_manager: PoolManager,
    server: ScriptedServer,
) -> None:
    with pytest.raises(error, match=text):
        MANAGER_REQUESTS[entry](warm_manager)(**arguments(server, name, value))
    assert len(warm_manager.pools()) == 1
    assert_healthy(warm_manager.pool(server.url), server)


@pytest.mark.parametrize("entry", MANAGER_LEASES)
@in_use(url=BAD_URLS)
def test_malformed_url_lends_nothing_and_leaves_a_managed_connection_as_it_is(
    entry: str,
    name: str,
    value: Any,
    error: type[Exception],
    text: str,
    warm_manager: PoolManager,
    server: ScriptedServer,
) -> None:
    with pytest.raises(error, match=text) as caught:
        MANAGER_LEASES[entry](warm_manager)(url=value)
    assert "secret" not in str(caught.value)
    assert_healthy(warm_manager.pool(server.url), server)


@in_use(timeout=BAD_TIMES)
def test_malformed_timeout_lends_nothing_and_leaves_a_managed_connection_as_it_is(
    name: str, value: Any, error: type[Exception], text: str, warm_manager: PoolManager, server: ScriptedServer
) -> None:
    with pytest.raises(error, match=text):
        lend(warm_manager)(url=server.url, timeout=value)
    assert_healthy(warm_manager.pool(server.url), server)
