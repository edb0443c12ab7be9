"""The manager: from a URL to its origin's pool, and never more unused pools than allowed."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from pooledhttp import ConnectionPool, PoolConfig, PoolManager, Timeout
from pooledhttp.errors import InvalidURL, PoolClosed
from pooledhttp.manager import Route, split_url
from pooledhttp.testing import (
    ExpectHead,
    KeepOpen,
    Repeat,
    ResourceAudit,
    Respond,
    ScriptedServer,
    Send,
    ServerFactory,
)

BOUND = 10.0
SERVE = Repeat([ExpectHead(), Respond(body=b"hello")])


class FakeClock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def manager(audit: ResourceAudit) -> Iterator[PoolManager]:
    with PoolManager(registry=None) as made:
        yield made
    for pool in made.pools():
        audit.check_pool(pool)


@pytest.fixture
def servers(scripted_server: ServerFactory) -> Callable[[int], list[ScriptedServer]]:
    return lambda count: [scripted_server(default=[SERVE]) for _ in range(count)]


# --- splitting a URL --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "scheme", "authority", "target"),
    [
        ("http://orders", "http", "orders", "/"),
        ("http://orders/", "http", "orders", "/"),
        ("HTTPS://Orders:8443/v1", "https", "Orders:8443", "/v1"),
        ("http://orders/v1/orders?state=open&x=/#top", "http", "orders", "/v1/orders?state=open&x=/"),
        ("http://orders?state=open", "http", "orders", "/?state=open"),
        ("http://orders?a=/b", "http", "orders", "/?a=/b"),
        ("http://orders#top", "http", "orders", "/"),
        ("http://orders#top/bottom", "http", "orders", "/"),
        ("http://orders/#", "http", "orders", "/"),
        ("http://orders/#a#b", "http", "orders", "/"),
        ("http://orders/#line\nbreak", "http", "orders", "/"),
        ("http://orders/?", "http", "orders", "/?"),
        ("http://orders//v1", "http", "orders", "//v1"),
        ("http://orders/v1@2?a=b@c", "http", "orders", "/v1@2?a=b@c"),
        ("http://[::1]:8080/v1", "http", "[::1]:8080", "/v1"),
        ("http://[fe80::1%eth0]/", "http", "[fe80::1%eth0]", "/"),
    ],
)
def test_url_is_split(url: str, scheme: str, authority: str, target: str) -> None:
    assert split_url(url) == (scheme, authority, target)


BAD_URLS = [
    "",
    "orders",
    "/v1",
    "//orders/v1",
    "orders:80/v1",
    "http:orders",
    "http:/orders",
    "http//orders",
    "http://",
    "http:///v1",
    "http:////v1",
    "http://?a=b",
    "http://#top",
    "ftp://orders/",
    "ws://orders/",
    "file:///etc/passwd",
    "httpx://orders/",
    " http://orders/",
    "\thttp://orders/",
    "\nhttp://orders/",
    "ht\ntp://orders/",
    "http ://orders/",
    "http://orders:x/",
    "http://orders:-1/",
    "http://orders:65536/",
    "http://orders:80:90/",
    "http://orders:8\u0660/",
    "http://:80/",
    "http://ord ers/",
    "http://orders /",
    "http://ord\ners/",
    "http://orders\r\nHost: evil/",
    "http://ord\0ers/",
    "http://ord%65rs/",
    "http://b\xfccher\uff0f.de/",
    "http://good\\evil/",
    "http://::1/",
    "http://[::1/",
    "http://[::1]x/",
    "http://[orders]/",
    "http://[]/",
]
USERINFO_URLS = [
    "http://user:secret@orders/",
    "http://secret@orders/",
    "http://user:secret@/",
    "http://good\\@secret/",
    "https://user:secret@orders:8443/v1#top",
    "http://user:sec@ret@orders?a=b",
]
BAD_TARGETS = [
    "http://127.0.0.1:1/a b",
    "http://127.0.0.1:1/a\r\nb",
    "http://127.0.0.1:1/?\xe4",
    "http://127.0.0.1:1?a b",
]


@pytest.mark.parametrize("url", [*BAD_URLS, *USERINFO_URLS])
def test_malformed_url_has_no_pool(url: str, manager: PoolManager) -> None:
    with pytest.raises(InvalidURL):
        manager.pool(url)
    assert manager.pools() == []


@pytest.mark.parametrize("url", USERINFO_URLS)
def test_userinfo_is_refused_and_not_shown(url: str, manager: PoolManager) -> None:
    with pytest.raises(InvalidURL, match="userinfo: send an Authorization header") as caught:
        manager.request("GET", url)
    assert "secret" not in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("url", BAD_TARGETS)
def test_target_that_breaks_the_request_line_is_refused_before_anything_is_opened(
    url: str, manager: PoolManager
) -> None:
    for call in (manager.request, manager.stream):
        with pytest.raises(InvalidURL):
            call("GET", url)


@pytest.mark.parametrize("url", [None, 5, b"http://orders/", ["http://orders/"]])
def test_url_of_another_type_is_refused(url: Any, manager: PoolManager) -> None:
    for call in (
        manager.pool,
        manager.connection,
        lambda it: manager.request("GET", it),
        lambda it: manager.stream("GET", it),
    ):
        with pytest.raises(TypeError, match="url must be a str"):
            call(url)


# --- one pool for each origin -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spelling",
    [
        "http://orders",
        "http://orders/",
        "http://orders/v1?a=b#c",
        "http://orders:80/",
        "http://orders:/",
        "http://orders:0080/",
        "HTTP://ORDERS/",
        "http://Orders:80?a=/b",
        "http://orders#/",
    ],
)
def test_spellings_of_one_origin_share_a_pool(spelling: str, manager: PoolManager) -> None:
    pool = manager.pool("http://orders/")
    for _ in range(2):
        assert manager.pool(spelling) is pool
    assert manager.pools() == [pool]


@pytest.mark.parametrize(
    "other",
    [
        "https://orders/",
        "http://orders:443/",
        "https://orders:80/",
        "http://orders:8080/",
        "http://orders./",
        "http://orders.internal/",
        "http://[::1]/",
    ],
)
def test_different_origins_have_pools_of_their_own(other: str, manager: PoolManager) -> None:
    assert manager.pool(other) is not manager.pool("http://orders/")
    assert len(manager.pools()) == 2


def test_default_port_of_https_is_443(manager: PoolManager) -> None:
    assert manager.pool("https://orders/") is manager.pool("https://orders:443/")


def test_spellings_of_an_ipv6_address_without_port_share_a_pool(manager: PoolManager) -> None:
    pool = manager.pool("http://[2001:DB8::1]/")
    assert pool is manager.pool("http://[2001:db8::1]:80/")
    assert (pool.host, pool.port, pool.origin) == ("2001:db8::1", 80, "http://[2001:db8::1]:80")


def test_zone_of_an_ipv6_address_belongs_to_the_origin(manager: PoolManager) -> None:
    assert manager.pool("http://[fe80::1%eth0]/") is not manager.pool("http://[fe80::1%eth1]/")


def test_pool_has_the_settings_of_the_manager() -> None:
    config = PoolConfig(registry=None, maxsize=3)
    with PoolManager(config=config) as manager:
        assert manager.pool("http://orders/").config is config
        assert manager.config is config
    with PoolManager(registry=None, maxsize=4) as manager:
        assert manager.pool("http://orders/").config.maxsize == 4


def test_spellings_that_are_remembered_are_bounded() -> None:
    with PoolManager(registry=None, max_pools=2) as manager:
        pool = manager.pool("http://orders/")
        for bits in range(64):
            assert manager.pool(f"http://{''.join(pick(bits, 'orders'))}/") is pool
        assert len(manager._by_spelling) <= 8


def pick(bits: int, word: str) -> Iterator[str]:
    for at, letter in enumerate(word):
        yield letter.upper() if bits >> at & 1 else letter


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rest", "target"),
    [
        ("", "/"),
        ("/", "/"),
        ("/v1?a=b", "/v1?a=b"),
        ("/v1#top", "/v1"),
        ("/#top/", "/"),
        ("?a=/b#c", "/?a=/b"),
        ("#top", "/"),
        ("//a//b", "//a//b"),
    ],
)
def test_target_is_sent_without_the_fragment(
    rest: str, target: str, servers: Callable[[int], list[ScriptedServer]], manager: PoolManager
) -> None:
    (server,) = servers(1)
    for _ in range(2):  # the second time by the remembered spelling
        response = manager.request("GET", server.url + rest)
        assert (response.status, response.data, response.url) == (200, b"hello", server.url + rest)
    assert [request.target for request in server.requests] == [target, target]
    assert server.accepted == 1


def test_request_takes_what_a_pools_request_takes(
    servers: Callable[[int], list[ScriptedServer]], manager: PoolManager
) -> None:
    (server,) = servers(1)
    response = manager.request("POST", f"{server.url}/v1", b"body", {"A": "b"}, timeout=BOUND)
    assert (response.method, response.status) == ("POST", 200)
    (request,) = server.requests
    assert (request.method, request.body, request.field("A")) == ("POST", b"body", "b")


def test_host_field_names_the_origin_in_lower_case(scripted_server: ServerFactory, manager: PoolManager) -> None:
    server = scripted_server([SERVE], host="127.0.0.1")
    manager.request("GET", f"http://LOCALHOST:{server.port}/")
    assert server.requests[0].field("Host") == f"localhost:{server.port}"


def test_streamed_response_gives_its_connection_back(
    servers: Callable[[int], list[ScriptedServer]], manager: PoolManager
) -> None:
    (server,) = servers(1)
    for _ in range(2):
        with manager.stream("GET", f"{server.url}/v1#top", None, {"A": "b"}, timeout=BOUND) as response:
            assert b"".join(response) == b"hello"
            assert response.url == f"{server.url}/v1#top"
    assert [request.target for request in server.requests] == ["/v1", "/v1"]
    assert server.accepted == 1


def test_lent_connection_goes_to_the_origin_of_the_url(
    servers: Callable[[int], list[ScriptedServer]], manager: PoolManager
) -> None:
    (server,) = servers(1)
    for timeout in (None, BOUND, Timeout(total=BOUND)):
        with manager.connection(f"{server.url}/ignored", timeout) as conn:
            conn.request("GET", "/v1")
            assert conn.getresponse().read() == b"hello"
    assert server.accepted == 1


@pytest.mark.parametrize("timeout", [0, -1, "5", True])
def test_malformed_timeout_is_refused_before_anything_is_opened(
    timeout: Any, servers: Callable[[int], list[ScriptedServer]], manager: PoolManager
) -> None:
    (server,) = servers(1)
    with pytest.raises((TypeError, ValueError), match="timeout must be"):
        manager.request("GET", server.url, timeout=timeout)
    assert server.accepted == 0
    assert manager.request("GET", server.url).data == b"hello"


# --- the bound on pools -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "error"),
    [(0, ValueError), (-1, ValueError), (None, TypeError), (1.0, TypeError), (True, TypeError), ("5", TypeError)],
)
def test_number_of_pools_is_a_positive_int(wrong: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="max_pools must be"):
        PoolManager(max_pools=wrong)


def test_ten_thousand_origins_leave_no_more_pools_than_allowed(audit: ResourceAudit) -> None:
    with PoolManager(registry=None, max_pools=5) as manager:
        for number in range(10_000):
            manager.pool(f"http://host-{number}/")
            assert len(manager.pools()) <= 5
        assert len(manager._by_spelling) <= 20
        assert not any(pool.is_closed for pool in manager.pools())
        assert manager.pool("http://host-9999/").host == "host-9999"
    audit.check()


def test_pool_that_was_unused_longest_is_closed_first(servers: Callable[[int], list[ScriptedServer]]) -> None:
    clock = FakeClock()
    first, second, third = servers(3)
    with PoolManager(registry=None, max_pools=2, clock=clock, max_age=None, idle_timeout=None) as manager:
        for server in (first, second, first):
            clock.now += 1
            manager.request("GET", server.url)
        kept, evicted = manager.pool(first.url), manager.pool(second.url)
        manager.request("GET", third.url)
        assert manager.pools() == [kept, manager.pool(third.url)]
        assert (kept.is_closed, evicted.is_closed) == (False, True)
        assert evicted.stats().closed["pool_closed"] == 1
        assert manager.request("GET", second.url).data == b"hello"  # and the first is evicted
        assert (first.accepted, second.accepted, third.accepted) == (1, 2, 1)


def test_pool_with_a_lent_connection_is_never_closed(servers: Callable[[int], list[ScriptedServer]]) -> None:
    busy, *others = servers(4)
    with PoolManager(registry=None, max_pools=1) as manager:
        with manager.connection(busy.url) as conn:
            for server in others:
                assert manager.request("GET", server.url).data == b"hello"
            assert len(manager.pools()) == 2  # the one in use, and the newest
            conn.request("GET", "/")
            assert conn.getresponse().read() == b"hello"
        manager.request("GET", others[0].url)
        assert len(manager.pools()) == 1


def test_pool_with_a_waiting_caller_is_never_closed(servers: Callable[[int], list[ScriptedServer]]) -> None:
    busy, other = servers(2)
    answers: list[bytes] = []
    with PoolManager(registry=None, max_pools=1, maxsize=1, timeout=Timeout(acquire=BOUND)) as manager:
        with manager.connection(busy.url):
            waiter = threading.Thread(target=lambda: answers.append(manager.request("GET", busy.url).data))
            waiter.start()
            assert wait_for(lambda: manager.pool(busy.url).stats().waiting == 1)
            manager.request("GET", other.url)
            assert not manager.pool(busy.url).is_closed
        waiter.join(BOUND)
        assert not waiter.is_alive()
    assert answers == [b"hello"]


def wait_for(predicate: Callable[[], bool]) -> bool:
    """Ask until it holds, at most BOUND seconds."""
    pause = threading.Event()
    return any(predicate() or pause.wait(0.005) for _ in range(int(BOUND / 0.005))) or predicate()


def test_new_pool_is_not_the_one_to_be_closed(manager: PoolManager) -> None:
    with PoolManager(registry=None, max_pools=1) as small:
        for number in range(5):
            pool = small.pool(f"http://host-{number}/")
            assert not pool.is_closed
            assert small.pools() == [pool]


def test_pool_that_was_closed_by_hand_is_made_anew(
    servers: Callable[[int], list[ScriptedServer]], manager: PoolManager
) -> None:
    (server,) = servers(1)
    manager.request("GET", server.url)
    closed = manager.pool(server.url)
    closed.close()
    assert manager.request("GET", server.url).data == b"hello"
    assert manager.pool(server.url) is not closed
    assert len(manager.pools()) == 1


# --- evicted in between -----------------------------------------------------------------------------------------------


def evict_at_the_next_acquire(monkeypatch: pytest.MonkeyPatch, pool: ConnectionPool) -> None:
    """Close a pool in the moment between its look-up and its use, as another thread's new origin may."""
    acquire = pool._acquire

    def close_before(*args: Any) -> Any:
        monkeypatch.setattr(pool, "_acquire", acquire)
        assert pool.close_if_unused()
        return acquire(*args)

    monkeypatch.setattr(pool, "_acquire", close_before)


def test_request_to_a_pool_that_is_evicted_meanwhile_is_served_by_a_new_one(
    monkeypatch: pytest.MonkeyPatch, servers: Callable[[int], list[ScriptedServer]], manager: PoolManager
) -> None:
    (server,) = servers(1)
    evicted = manager.pool(server.url)
    evict_at_the_next_acquire(monkeypatch, evicted)
    assert manager.request("POST", server.url, b"body").data == b"hello"
    assert manager.pool(server.url) is not evicted
    assert [request.body for request in server.requests] == [b"body"]


def test_stream_from_a_pool_that_is_evicted_meanwhile_is_served_by_a_new_one(
    servers: Callable[[int], list[ScriptedServer]], manager: PoolManager
) -> None:
    (server,) = servers(1)
    evicted = manager.pool(server.url)
    stream = manager.stream("GET", server.url)
    assert evicted.close_if_unused()
    with stream as response:
        assert response.read() == b"hello"
    assert manager.pool(server.url).stats().idle == 1


def test_connection_of_a_pool_that_is_evicted_meanwhile_is_lent_by_a_new_one(
    servers: Callable[[int], list[ScriptedServer]], manager: PoolManager
) -> None:
    (server,) = servers(1)
    evicted = manager.pool(server.url)
    lending = manager.connection(server.url)
    assert evicted.close_if_unused()
    with lending as conn:
        conn.request("GET", "/")
        assert conn.getresponse().read() == b"hello"
    assert manager.pool(server.url).stats().idle == 1


def interrupt_the_making_of_a_pool(monkeypatch: pytest.MonkeyPatch, then: Callable[[], object]) -> list[ConnectionPool]:
    """Do something else when a pool has been made and is not in the manager yet, as another thread may."""
    made: list[ConnectionPool] = []

    class InterruptedPool(ConnectionPool):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(self)
            if len(made) == 1:
                then()

    monkeypatch.setattr("pooledhttp.manager.ConnectionPool", InterruptedPool)
    return made


def test_pool_that_another_thread_has_made_meanwhile_is_the_one(
    monkeypatch: pytest.MonkeyPatch, manager: PoolManager
) -> None:
    made = interrupt_the_making_of_a_pool(monkeypatch, lambda: manager.pool("http://orders/"))
    pool = manager.pool("http://orders/")
    assert manager.pool("http://orders/") is pool
    assert manager.pools() == [pool]
    assert [other.is_closed for other in made if other is not pool] == [True]


def test_pool_that_is_made_while_the_manager_is_closed_is_closed_too(
    monkeypatch: pytest.MonkeyPatch, manager: PoolManager
) -> None:
    made = interrupt_the_making_of_a_pool(monkeypatch, manager.close)
    with pytest.raises(PoolClosed, match="the pool manager is closed"):
        manager.pool("http://orders/")
    assert [pool.is_closed for pool in made] == [True]
    assert manager.pools() == []


def test_manager_that_is_closed_meanwhile_says_so(
    monkeypatch: pytest.MonkeyPatch, servers: Callable[[int], list[ScriptedServer]], manager: PoolManager
) -> None:
    (server,) = servers(1)
    pool = manager.pool(server.url)
    acquire = pool._acquire

    def close_before(*args: Any) -> Any:
        manager.close()
        return acquire(*args)

    monkeypatch.setattr(pool, "_acquire", close_before)
    with pytest.raises(PoolClosed, match="the pool manager is closed"):
        manager.request("GET", server.url)
    assert server.accepted == 0


def test_streams_and_connections_of_a_manager_that_is_closed_meanwhile_say_so(
    servers: Callable[[int], list[ScriptedServer]], manager: PoolManager
) -> None:
    (server,) = servers(1)
    lendings: list[AbstractContextManager[object]] = [manager.stream("GET", server.url), manager.connection(server.url)]
    manager.close()
    for lending in lendings:
        with pytest.raises(PoolClosed, match="the pool manager is closed"), lending:
            pytest.fail("it was lent")
    assert server.accepted == 0


def test_threads_that_use_more_origins_than_pools_are_all_served(
    servers: Callable[[int], list[ScriptedServer]],
) -> None:
    everyone = servers(4)
    faults: list[BaseException] = []
    begin = threading.Barrier(8)

    def work(offset: int, manager: PoolManager) -> None:
        try:
            begin.wait(BOUND)
            for number in range(25):
                url = everyone[(number + offset) % len(everyone)].url
                assert manager.request("GET", url).data == b"hello"
                with manager.stream("GET", url) as response:
                    assert response.read() == b"hello"
                with manager.connection(url) as conn:
                    conn.request("GET", "/")
                    assert conn.getresponse().read() == b"hello"
        except BaseException as fault:  # noqa: BLE001  # shown by the test
            faults.append(fault)

    with PoolManager(registry=None, max_pools=1, timeout=Timeout(acquire=BOUND)) as manager:
        threads = [threading.Thread(target=work, args=(offset, manager)) for offset in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(BOUND * 3)
        assert not any(thread.is_alive() for thread in threads)
        assert faults == []
    assert sum(len(server.requests) for server in everyone) == 8 * 25 * 3


# --- the manager as a whole -------------------------------------------------------------------------------------------


def test_stats_are_those_of_every_pool_by_its_origin(
    servers: Callable[[int], list[ScriptedServer]], manager: PoolManager
) -> None:
    first, second = servers(2)
    manager.request("GET", first.url)
    manager.request("GET", second.url)
    manager.request("GET", second.url)
    stats = manager.stats()
    assert {origin: (pool.opened, pool.requests["2xx"]) for origin, pool in stats.items()} == {
        first.url: (1, 1),
        second.url: (1, 2),
    }


def test_prune_closes_what_is_past_its_limit_in_every_pool(servers: Callable[[int], list[ScriptedServer]]) -> None:
    clock = FakeClock()
    first, second = servers(2)
    with PoolManager(registry=None, clock=clock, idle_timeout=10, max_age=None) as manager:
        manager.request("GET", first.url)
        clock.now += 6
        manager.request("GET", second.url)
        assert manager.prune() == 0
        clock.now += 6
        assert manager.prune() == 1
        assert [pool.stats().idle for pool in manager.pools()] == [0, 1]
        assert manager.prune(everything=True) == 1
        assert [pool.stats().idle for pool in manager.pools()] == [0, 0]
        assert manager.request("GET", first.url).data == b"hello"


def test_closed_manager_serves_nobody(servers: Callable[[int], list[ScriptedServer]], manager: PoolManager) -> None:
    (server,) = servers(1)
    manager.request("GET", server.url)
    manager.close()
    manager.close()
    for url in (server.url, "http://another/"):
        for call in (
            manager.pool,
            manager.connection,
            lambda it: manager.request("GET", it),
            lambda it: manager.stream("GET", it),
        ):
            with pytest.raises(PoolClosed, match="the pool manager is closed"):
                call(url)
    assert manager.stats()[server.url].closed["pool_closed"] == 1


def test_lent_connection_is_closed_when_it_comes_back_to_a_closed_manager(
    servers: Callable[[int], list[ScriptedServer]], manager: PoolManager
) -> None:
    (server,) = servers(1)
    with manager.connection(server.url) as conn:
        manager.close()
        conn.request("GET", "/")
        assert conn.getresponse().read() == b"hello"
    assert conn.sock is None
    assert manager.stats()[server.url].closed["pool_closed"] == 1


def test_block_gives_the_manager_and_closes_it() -> None:
    manager = PoolManager(registry=None)
    with manager as entered:
        assert entered is manager
        pool = manager.pool("http://orders/")
    assert pool.is_closed


def test_repr_shows_how_many_pools_there_are(manager: PoolManager) -> None:
    manager.pool("http://orders/")
    assert repr(manager) == "<PoolManager pools=1 max_pools=100>"


def test_truncated_answer_of_one_origin_leaves_the_others_alone(
    scripted_server: ServerFactory,
    servers: Callable[[int], list[ScriptedServer]],
    manager: PoolManager,
    audit: ResourceAudit,
) -> None:
    (good,) = servers(1)
    bad = scripted_server(
        [ExpectHead(), Send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort")], default=[KeepOpen()]
    )
    manager.request("GET", good.url)
    with pytest.raises(Exception, match="IncompleteRead"):
        manager.request("GET", bad.url)
    assert manager.request("GET", good.url).data == b"hello"
    assert good.accepted == 1
    for pool in manager.pools():
        audit.check_pool(pool)


ROUTES: dict[str, Any] = {
    "ssl_context": ssl.create_default_context(),
    "server_hostname": "other.test",
    "proxy": "http://proxy.test",
    "proxy_headers": {"Proxy-Authorization": "Basic b3RoZXI="},
    "source_address": ("127.0.0.2", 0),
    "socket_options": ((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),),
    "uds": "/run/other.sock",
}


@pytest.mark.parametrize("setting", sorted(Route.__annotations__))
def test_each_setting_of_a_route_leads_to_a_pool_of_its_own(setting: str) -> None:
    with PoolManager(registry=None) as manager:
        plain = manager.pool("https://o.test/")
        other = manager.pool("https://o.test/", **{setting: ROUTES[setting]})
        assert other is not plain
        assert other.origin == plain.origin
        assert getattr(other.config, setting) == ROUTES[setting]
        assert manager.pool("https://o.test/", **{setting: ROUTES[setting]}) is other
        assert manager.pool("https://o.test/x") is plain
        assert len(manager.pools()) == 2


def test_route_takes_no_setting_that_is_the_same_connection_anyway() -> None:
    settings: Any = {"maxsize": 3}
    with PoolManager(registry=None) as manager, pytest.raises(TypeError, match="maxsize"):
        manager.pool("http://o.test/", **settings)


def test_pools_of_one_origin_by_several_routes_are_added_up_in_the_stats(scripted_server: ServerFactory) -> None:
    server = scripted_server(default=[SERVE])
    with PoolManager(registry=None, maxsize=3) as manager:
        manager.request("GET", server.url)
        manager.pool(server.url, source_address=("127.0.0.2", 0)).request("GET", "/")
        stats = manager.stats()
    assert list(stats) == [server.url]
    assert (stats[server.url].opened, stats[server.url].maxsize) == (2, 6)


@pytest.mark.parametrize("zone", ["%25lo", "%lo"])
def test_zone_of_an_ipv6_address_is_part_of_the_origin(zone: str) -> None:
    with PoolManager(registry=None) as manager:
        pool = manager.pool(f"http://[fe80::1{zone}]:8080/")
        assert pool.host == "fe80::1%lo"
        assert pool is not manager.pool("http://[fe80::1]:8080/")


def test_resize_of_the_manager_holds_for_every_pool_and_for_those_to_come(scripted_server: ServerFactory) -> None:
    with PoolManager(registry=None, maxsize=1) as manager:
        before = manager.pool(scripted_server(default=[SERVE]).url)
        manager.resize(3)
        after = manager.pool(scripted_server(default=[SERVE]).url)
        assert (before.maxsize, after.maxsize) == (3, 3)
        assert [before.stats().maxsize, after.stats().maxsize] == [3, 3]
        with pytest.raises(ValueError, match="maxsize must be at least 1"):
            manager.resize(0)
