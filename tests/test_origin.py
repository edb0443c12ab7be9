"""Origins: a host and a port are checked before anything is opened, and so is a source address."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pooledhttp.errors import InvalidURL
from pooledhttp.origin import check_source_address, split_host_port

DEFAULT = 80


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        ("orders", None, ("orders", DEFAULT)),
        ("orders", 8080, ("orders", 8080)),
        ("orders", "8080", ("orders", 8080)),
        ("orders:8080", None, ("orders", 8080)),
        ("orders:", None, ("orders", DEFAULT)),
        ("Orders.Internal", None, ("Orders.Internal", DEFAULT)),
        ("orders.", None, ("orders.", DEFAULT)),
        ("127.0.0.1:1", None, ("127.0.0.1", 1)),
        ("orders:0", None, ("orders", 0)),
        ("orders:65535", None, ("orders", 65535)),
        ("orders:00080", None, ("orders", 80)),
        ("[::1]", None, ("::1", DEFAULT)),
        ("[::1]:", None, ("::1", DEFAULT)),
        ("[::1]:8080", None, ("::1", 8080)),
        ("[::1]", 8080, ("::1", 8080)),
        ("::1", 8080, ("::1", 8080)),
        ("2001:db8::1", 8080, ("2001:db8::1", 8080)),
        ("[::ffff:127.0.0.1]", None, ("::ffff:127.0.0.1", DEFAULT)),
        ("fe80::1%eth0", 8080, ("fe80::1%eth0", 8080)),
        ("[fe80::1%eth0]:8080", None, ("fe80::1%eth0", 8080)),
    ],
)
def test_host_and_port_are_split(host: str, port: int | str | None, expected: tuple[str, int]) -> None:
    assert split_host_port(host, port, DEFAULT) == expected


@pytest.mark.parametrize(
    "host",
    [
        "",
        ":80",
        "[]",
        "[]:80",
        " orders",
        "orders ",
        "orders\n",
        "orders\r\nHost: evil",
        "orders\0",
        "orders/path",
        "orders?query",
        "orders#fragment",
        "orders\\evil",
        "user@orders",
        "user:password@orders",
        "orders%2fevil",
        "b\xfccher..de",
        "b\xfccher" * 10,
        "b\xfccher." * 100,
        "b\xfccher\uff0fevil",
        "user\uff20b\xfccher",
        "b\xfccher\uff05.de",
        "\uff10x7f000001",
        "\u2460.0.0.1",
        "\uff1a\uff1a\uff11",
        "[\uff1a\uff1a\uff11]",
        "\uff46\uff45\uff18\uff10\uff1a\uff1a\uff11",
        "\uff11\uff12\uff17.0.0.1",
        "http://orders",
    ],
)
@pytest.mark.parametrize("port", [None, 8080])
def test_malformed_host_is_refused(host: str, port: int | None) -> None:
    with pytest.raises(InvalidURL):
        split_host_port(host, port, DEFAULT)


@pytest.mark.parametrize(
    "host",
    [
        "::1",
        "2001:db8::1",
        "fe80::1%eth0",
        "[::1",
        "::1]",
        "[::1]x",
        "[::1]:80:90",
        "[[::1]]",
        "[orders]",
        "[127.0.0.1]",
        "[::g]",
        "[1:2:3]",
        "[::1%]",
        "[::1%a b]",
        "orders]",
        "[orders",
        "ord[er]s",
        "orders:80:90",
        "a:b:80",
    ],
)
def test_colons_and_brackets_that_make_no_ipv6_address_are_refused(host: str) -> None:
    with pytest.raises(InvalidURL):
        split_host_port(host, None, DEFAULT)


@pytest.mark.parametrize("host", ["orders:80", "1:2:3", "::g", "::1]", "[[::1]]", "[orders]", "::1%a b"])
def test_host_beside_a_port_is_a_name_or_an_address_and_nothing_else(host: str) -> None:
    with pytest.raises(InvalidURL):
        split_host_port(host, 8080, DEFAULT)


PORTS = [
    "http",
    "-1",
    "+80",
    "8_0",
    "0x50",
    "80.0",
    "8 0",
    " 80",
    "80 ",
    "80\n",
    "\uff18\uff10",
    "\u0668",
    "80/",
    "80?a",
]


@pytest.mark.parametrize("port", [*PORTS, ""])
def test_port_that_is_no_number_is_refused(port: str) -> None:
    with pytest.raises(InvalidURL, match="nonnumeric port"):
        split_host_port("orders", port, DEFAULT)


@pytest.mark.parametrize("port", PORTS)
def test_port_behind_the_host_that_is_no_number_is_refused(port: str) -> None:
    with pytest.raises(InvalidURL):
        split_host_port(f"orders:{port}", None, DEFAULT)


@pytest.mark.parametrize("port", [-1, 65536, 10**400, "65536", "9" * 9, "9" * 10, "9" * 5000])
def test_port_out_of_range_is_refused(port: int | str) -> None:
    with pytest.raises(InvalidURL, match="from 0 to 65535"):
        split_host_port("orders", port, DEFAULT)


@pytest.mark.parametrize("port", [80.0, True, b"80", ["80"], ...])
def test_port_of_another_type_is_refused(port: object) -> None:
    with pytest.raises(TypeError, match="port must be an int"):
        split_host_port("orders", port, DEFAULT)  # type: ignore[arg-type]  # it is what the test is about


@pytest.mark.parametrize("host", [None, 5, b"orders", ["orders"]])
def test_host_of_another_type_is_refused(host: object) -> None:
    with pytest.raises(TypeError, match="host must be a str"):
        split_host_port(host, None, DEFAULT)  # type: ignore[arg-type]  # it is what the test is about


@given(
    st.text(max_size=20) | st.text("[]:%.@/ab1 \r\n", max_size=12),
    st.none() | st.integers(-5, 70000) | st.text(max_size=6),
)
def test_whatever_is_passed_host_and_port_are_good_or_refused(given_host: str, given_port: int | str | None) -> None:
    try:
        host, port = split_host_port(given_host, given_port, DEFAULT)
    except InvalidURL:
        return
    assert host
    assert host.isascii()
    assert not set(host) & set(" \t\r\n\0/@[]#?\\")
    assert ("%" in host) <= (":" in host)
    assert 0 <= port <= 65535


@pytest.mark.parametrize("host", ["user:secret@orders", "user:secret@orders:80", "secret@orders:x", "user:@secret"])
def test_userinfo_is_refused_and_not_shown(host: str) -> None:
    with pytest.raises(InvalidURL, match="can't contain '@'") as caught:
        split_host_port(host, None, DEFAULT)
    assert "secret" not in str(caught.value)


# --- source addresses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address", [None, ("127.0.0.1", 0), ("", 0), ("localhost", 65535), ("::1", 0), ("fe80::1", 0, 0, 2)]
)
def test_source_address_is_accepted(address: tuple[str, int] | None) -> None:
    check_source_address(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "12",
        5,
        (),
        ("127.0.0.1",),
        ("127.0.0.1", 0, 0),
        ("127.0.0.1", "0"),
        ("127.0.0.1", None),
        ("127.0.0.1", 0.0),
        ("127.0.0.1", True),
        ("127.0.0.1", -1),
        ("127.0.0.1", 65536),
        ("127.0.0.1\0", 0),
        ("127.0.0.1 ", 0),
        ("127.0.0.1\r\n", 0),
        ("b\xfccher", 0),
        (b"127.0.0.1", 0),
        (None, 0),
        ["127.0.0.1", 0],
        {"127.0.0.1": 0},
    ],
)
def test_malformed_source_address_is_refused(address: object) -> None:
    with pytest.raises(ValueError, match=r"source_address must be a \(host, port\) tuple"):
        check_source_address(address)  # type: ignore[arg-type]  # it is what the test is about


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("b\xfccher.de", "xn--bcher-kva.de"),
        ("B\xdcCHER.de", "xn--bcher-kva.de"),
        ("b\xfccher\u3002de", "xn--bcher-kva.de"),
        ("\u03b4\u03c0\u03b8.gr", "xn--pxaix.gr"),
        ("b\xfccher.de.", "xn--bcher-kva.de."),
        ("\uff41\uff42.de", "ab.de"),
    ],
)
def test_name_outside_ascii_is_mapped_to_its_ascii_form(host: str, name: str) -> None:
    assert split_host_port(host, None, DEFAULT) == (name, DEFAULT)
    assert split_host_port(f"{host}:8080", None, DEFAULT) == (name, 8080)
