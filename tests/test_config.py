"""PoolConfig: every setting is checked when it is made, before anything is opened, and none changes afterwards."""

from __future__ import annotations

import math
import socket
import ssl
import time
from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry

from pooledhttp import ConnectionPool, Limits, PoolConfig, PoolManager, Retry, Timeout
from pooledhttp.config import PoolOptions, proxy_of
from pooledhttp.errors import InvalidURL
from pooledhttp.timeouts import LONGEST

MAKERS: dict[str, Callable[..., object]] = {
    "PoolConfig": PoolConfig,
    "ConnectionPool": lambda **options: ConnectionPool("127.0.0.1", 1, **options),
    "PoolManager": PoolManager,
}
makers = pytest.mark.parametrize("maker", MAKERS)


def test_defaults_are_the_documented_ones() -> None:
    config = PoolConfig()
    assert config.as_dict() == {
        "maxsize": 10,
        "max_waiters": None,
        "leak_after": None,
        "timeout": Timeout(),
        "idle_timeout": 60.0,
        "max_age": 300.0,
        "max_requests": None,
        "probe_after": 0.0,
        "drain_bytes": 65536,
        "drain_seconds": 0.05,
        "resend_stale": True,
        "retry": None,
        "expect_continue_timeout": 1.0,
        "source_address": None,
        "proxy": None,
        "proxy_headers": {},
        "ssl_context": None,
        "server_hostname": None,
        "socket_options": (),
        "uds": None,
        "limits": Limits(),
        "name": None,
        "registry": "default",
        "exemplar": None,
        "clock": time.monotonic,
    }


def test_keywords_of_the_signatures_are_the_fields() -> None:
    assert set(PoolOptions.__annotations__) == set(PoolConfig().as_dict())


GOOD: list[tuple[str, object]] = [
    ("maxsize", 1),
    ("maxsize", 10**6),
    ("max_waiters", 0),
    ("max_waiters", None),
    ("timeout", 2),
    ("timeout", 0.5),
    ("timeout", Timeout(total=1)),
    ("idle_timeout", None),
    ("idle_timeout", 0.1),
    ("max_age", None),
    ("max_age", LONGEST),
    ("max_requests", 1),
    ("max_requests", None),
    ("probe_after", 0),
    ("probe_after", 1.5),
    ("drain_bytes", 0),
    ("drain_seconds", 0),
    ("resend_stale", False),
    ("retry", Retry()),
    ("expect_continue_timeout", 0),
    ("source_address", ("127.0.0.1", 0)),
    ("source_address", (("127.0.0.1", 0), ("::1", 0))),
    ("proxy", "http://user:password@proxy:3128/"),
    ("proxy_headers", {"Proxy-Authorization": "Basic eA=="}),
    ("ssl_context", ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)),
    ("server_hostname", "orders.internal"),
    ("server_hostname", "::1"),
    ("socket_options", ((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),)),
    ("socket_options", ((socket.SOL_SOCKET, socket.SO_KEEPALIVE, b"\1\0\0\0"),)),
    ("socket_options", [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]),
    ("uds", "/run/orders.socket"),
    ("uds", "\0abstract"),
    ("limits", Limits(fields=5)),
    ("name", "orders"),
    ("registry", None),
    ("registry", CollectorRegistry()),
    ("clock", time.monotonic),
]


@pytest.mark.parametrize(("name", "value"), GOOD, ids=lambda part: repr(part).partition(" object at ")[0][:40])
def test_setting_is_accepted(name: str, value: object) -> None:
    config = PoolConfig(**{name: value})  # type: ignore[arg-type]  # the names come from the table above
    assert getattr(config, name) == value


BAD: list[tuple[str, object, type[Exception]]] = [
    *[("maxsize", value, ValueError) for value in (0, -1)],
    *[("maxsize", value, TypeError) for value in (None, 1.0, "1", True)],
    *[("max_waiters", value, ValueError) for value in (-1,)],
    *[("max_waiters", value, TypeError) for value in (1.0, "1", False)],
    *[("max_requests", value, ValueError) for value in (0, -1)],
    *[("max_requests", value, TypeError) for value in (1.0, "1", True)],
    *[("drain_bytes", value, ValueError) for value in (-1,)],
    *[("drain_bytes", value, TypeError) for value in (None, 1.0, "1", True)],
    *[("timeout", value, ValueError) for value in (0, -1, math.nan, math.inf, 10**400)],
    *[("timeout", value, TypeError) for value in (None, "5", True, (5, 5))],
    *[("idle_timeout", value, ValueError) for value in (0, -1, math.nan, math.inf)],
    *[("idle_timeout", value, TypeError) for value in ("5", True)],
    *[("max_age", value, ValueError) for value in (0, -1, math.nan, math.inf)],
    *[("max_age", value, TypeError) for value in ("5", True)],
    *[("probe_after", value, ValueError) for value in (-1, math.nan, math.inf)],
    *[("probe_after", value, TypeError) for value in (None, "5", True)],
    *[("drain_seconds", value, ValueError) for value in (-1, math.nan, math.inf)],
    *[("drain_seconds", value, TypeError) for value in (None, "5", True)],
    *[("expect_continue_timeout", value, ValueError) for value in (-1, math.nan, math.inf)],
    *[("expect_continue_timeout", value, TypeError) for value in (None, "5", True)],
    *[("resend_stale", value, TypeError) for value in (None, "no", 0)],
    *[("retry", value, TypeError) for value in (3, True, "configured", {"attempts": 3}, Retry)],
    *[
        ("source_address", value, ValueError)
        for value in (
            "127.0.0.1",
            5,
            (),
            ("127.0.0.1",),
            ("127.0.0.1", "0"),
            ("127.0.0.1", 65536),
            ("127.0.0.1 ", 0),
            (("127.0.0.1", 0), None),
            (("127.0.0.1", 0), ("127.0.0.2", -1)),
            ((),),
            [("127.0.0.1", 0)],
        )
    ],
    *[
        ("proxy", value, InvalidURL)
        for value in (
            "",
            "proxy:3128",
            "https://proxy:3128",
            "socks5://proxy:3128",
            "http://",
            "http://user:password@",
            "http://proxy:x",
            "http://proxy:99999",
            "http://proxy:3128/path",
            "http://proxy:3128?query",
            "http://proxy:3128#fragment",
            "http://pro xy:3128",
            "http://pro\r\nxy:3128",
            "http://[::1:3128",
        )
    ],
    *[("proxy", value, TypeError) for value in (5, b"http://proxy:3128", ("proxy", 3128))],
    *[("proxy_headers", {name: "b"}, ValueError) for name in ("", "A b", "A: b", "A\r\nB")],
    *[("proxy_headers", {"A": value}, ValueError) for value in ("b\r\nC: d", "b\0", "\u20ac")],
    *[("proxy_headers", {"A": value}, TypeError) for value in (None, 1.5)],
    *[("proxy_headers", value, TypeError) for value in (None, 5, "A: b", [("A", "b")])],
    *[("ssl_context", value, TypeError) for value in ("default", True, ssl.SSLContext)],
    *[("server_hostname", value, TypeError) for value in (5, b"orders")],
    *[("server_hostname", value, ValueError) for value in ("", "orders internal", "orders\0", "b\xfccher", "a/b")],
    *[("socket_options", value, TypeError) for value in (None, 5, "abc", (1, 2, 3), ((1, 2),), ((1, 2, "3"),))],
    *[
        ("socket_options", value, TypeError)
        for value in (((1, 2, None),), ((1, 2.0, 3),), (("1", 2, 3),), ([1, 2, 3],))
    ],
    *[("uds", value, ValueError) for value in ("", 5, b"/run/x")],
    *[("limits", value, TypeError) for value in (None, 5, {"fields": 5}, Limits)],
    *[("name", value, ValueError) for value in ("", 5, b"orders")],
    *[("registry", value, ValueError) for value in ("", "none", "Default")],
    *[("registry", value, TypeError) for value in (5, True, 1.5)],
    *[("clock", value, TypeError) for value in (None, 5, 1.5)],
    *[("exemplar", value, TypeError) for value in (5, "trace")],
]


@makers
@pytest.mark.parametrize(("name", "value", "error"), BAD, ids=lambda part: repr(part)[:40])
def test_malformed_setting_is_refused_by_its_name(maker: str, name: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        MAKERS[maker](**{name: value})
    assert type(caught.value) is error
    text = str(caught.value)
    assert name in text or name.startswith("proxy")
    assert "password" not in text


@makers
@pytest.mark.parametrize("name", ["max_size", "pool_size", "retries", "block", "Maxsize", ""])
def test_unknown_setting_is_refused_by_its_name(maker: str, name: str) -> None:
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        MAKERS[maker](**{name: 1})


@pytest.mark.parametrize("maker", ["ConnectionPool", "PoolManager"])
def test_config_and_single_settings_together_are_refused(maker: str) -> None:
    with pytest.raises(TypeError, match="either config or single settings"):
        MAKERS[maker](config=PoolConfig(registry=None), maxsize=5)


@pytest.mark.parametrize("maker", ["ConnectionPool", "PoolManager"])
@pytest.mark.parametrize("wrong", [5, {"maxsize": 5}, PoolConfig])
def test_config_of_another_type_is_refused(maker: str, wrong: object) -> None:
    with pytest.raises(TypeError, match="config must be a PoolConfig"):
        MAKERS[maker](config=wrong)


def test_config_takes_keywords_only() -> None:
    with pytest.raises(TypeError):
        PoolConfig(5)  # type: ignore[call-arg]  # it is what the test is about


def test_config_cannot_be_changed() -> None:
    config = PoolConfig()
    with pytest.raises(AttributeError):
        config.maxsize = 5  # type: ignore[misc]  # it is what the test is about


def test_number_as_the_timeout_is_the_total_with_the_default_parts() -> None:
    assert PoolConfig(timeout=2.0).timeouts == Timeout(total=2.0)


def test_timeout_is_taken_as_it_is() -> None:
    timeout = Timeout(read=1)
    assert PoolConfig(timeout=timeout).timeouts is timeout


@pytest.mark.parametrize(
    ("given", "addresses"),
    [
        (None, ()),
        (("127.0.0.1", 0), (("127.0.0.1", 0),)),
        ((("127.0.0.1", 0), ("127.0.0.2", 5)), (("127.0.0.1", 0), ("127.0.0.2", 5))),
    ],
)
def test_source_addresses_are_none_one_or_several(given: object, addresses: tuple[tuple[str, int], ...]) -> None:
    assert PoolConfig(source_address=given).source_addresses == addresses  # type: ignore[arg-type]  # from the table


def test_repr_shows_no_secret() -> None:
    config = PoolConfig(
        proxy="http://user:password@proxy:3128", proxy_headers={"Proxy-Authorization": "Basic cGFzc3dvcmQ="}
    )
    assert "password" not in repr(config)
    assert "cGFzc3dvcmQ" not in repr(config)
    assert "maxsize=10" in repr(config)


# --- the proxy's URL --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://proxy", ("proxy", 80, None)),
        ("http://proxy:3128", ("proxy", 3128, None)),
        ("HTTP://proxy:3128/", ("proxy", 3128, None)),
        ("http://[::1]:3128", ("::1", 3128, None)),
        ("http://user:password@proxy:3128", ("proxy", 3128, "user:password")),
        ("http://user@proxy", ("proxy", 80, "user")),
        ("http://@proxy", ("proxy", 80, "")),
        ("http://us@er:pass/wo?rd#@proxy:3128", ("proxy", 3128, "us@er:pass/wo?rd#")),
    ],
)
def test_proxy_is_split_into_host_port_and_userinfo(url: str, expected: tuple[str, int, str | None]) -> None:
    assert proxy_of(url) == expected


@pytest.mark.parametrize("rest", ["", ":x", ":99999", "a b", "proxy/path", "proxy?query", "[::1"])
def test_error_about_a_proxy_never_shows_its_userinfo(rest: str) -> None:
    with pytest.raises(InvalidURL) as caught:
        proxy_of(f"http://user:secret@{rest}")
    assert "secret" not in str(caught.value)
