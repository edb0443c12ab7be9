"""Programs written for ``http.client`` run on `pooledhttp.httplib`, and `docs/compatibility.md` says where they differ.

Three parts.  The page is proved: each row of its tables names something that is looked for in both modules, no public
name of ``http.client`` is without a row, and a row that says *stricter* or *more* names its test.  The documented
behaviour is run against both modules by the fixture `client`, so that an expectation that ``http.client`` itself does
not meet fails here too.  Last come the programs: users of ``http.client`` in the standard library and habits of others.
"""

# mypy: allow-subclassing-any
# (The programs here subclass whatever class the module under test has.)

from __future__ import annotations

import codecs
import contextlib
import copy
import csv
import email
import functools
import gzip
import hashlib
import http
import http.client
import http.cookiejar
import inspect
import io
import json
import logging
import logging.handlers
import pickle
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tarfile
import threading
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ET
import xmlrpc.client
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import trustme

import pooledhttp
from pooledhttp import httplib
from pooledhttp.testing import (
    Close,
    ExpectBody,
    ExpectHead,
    HalfClose,
    KeepOpen,
    Peer,
    ReceivedRequest,
    Repeat,
    Respond,
    ScriptedServer,
    Send,
    ServerFactory,
    Signal,
    StartTLS,
    keep_alive_script,
)

BOUND = 10.0
TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "compatibility.md"

# The modules are compared attribute by attribute, so nothing is known of their types here.
Client = Any


@pytest.fixture(params=[http.client, httplib], ids=["http.client", "pooledhttp"])
def client(request: pytest.FixtureRequest) -> Client:
    """Give each of the two modules: what a test expects has to be true of both."""
    return request.param


# --- the page ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A row of a table of documented items, or behaviours."""

    item: str
    documented: str
    here: str
    what: str
    test: str

    @property
    def names(self) -> list[tuple[str, list[str]]]:
        """What the row names, each with its arguments; nothing if it is a behaviour told in words."""
        if re.sub(r"`[^`]+`|[, ]|and", "", self.item):
            return []
        calls = [re.fullmatch(r"([\w.]+)(?:\(([^)]*)\))?", span) for span in re.findall(r"`([^`]+)`", self.item)]
        return [(call[1], re.findall(r"\w+", call[2] or "")) for call in calls if call is not None]

    @property
    def tests(self) -> list[str]:
        return re.findall(r"`([^`]+)`", self.test)

    def is_in_http_client(self) -> bool:
        """Whether the page says that http.client has it, on this interpreter."""
        if "http.client" not in self.documented and "undocumented" not in self.documented:
            return False
        since = re.search(r"from 3\.(\d+)", self.documented)
        until = re.search(r"to 3\.(\d+)", self.documented)
        minor = sys.version_info.minor
        return (since is None or minor >= int(since[1])) and (until is None or minor <= int(until[1]))


@dataclass(frozen=True)
class PrivateRow:
    """A row of the table of private names."""

    name: str
    here: str
    reach: str
    instead: str


def tables(columns: list[str]) -> Iterator[list[str]]:
    """Yield the cells of each row in the page's tables that have these columns."""
    is_wanted = False
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if cells == columns:
            is_wanted = True
        elif not cells:
            is_wanted = False
        elif is_wanted and not set(cells[0]) <= set("-: "):
            assert len(cells) == len(columns), line
            yield cells


ROWS = [Row(*cells) for cells in tables(["Item", "Documented", "Here", "What, and why", "Test"])]
PRIVATE = [PrivateRow(*cells) for cells in tables(["Name", "Here", "Who reaches for it", "Instead"])]


class Answer:
    """A socket that has only what ``http.client`` needs at least."""

    def __init__(self, answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") -> None:
        self.answer = answer
        self.sent = b""
        self.is_closed = False

    def sendall(self, data: bytes) -> None:
        self.sent += data

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(io.BytesIO(self.answer))

    def close(self) -> None:
        self.is_closed = True


def begun(module: Client, answer: bytes | None = None) -> Any:
    response = module.HTTPResponse(Answer() if answer is None else Answer(answer))
    response.begin()
    return response


SAMPLES: dict[str, Callable[[Client], object]] = {
    "HTTPConnection": lambda module: module.HTTPConnection("localhost"),
    "HTTPSConnection": lambda module: module.HTTPSConnection("localhost"),
    "HTTPResponse": begun,
    "HTTPMessage": lambda module: module.HTTPMessage(),
    "IncompleteRead": lambda module: module.IncompleteRead(b"a", 2),
    "BadStatusLine": lambda module: module.BadStatusLine("a"),
}
CLASSES = ("HTTPConnection", "HTTPSConnection", "HTTPResponse")


def has(module: Client, name: str) -> bool:
    """Whether the module, or an instance of its class, has the name."""
    owner, _, attribute = name.partition(".")
    if not attribute:
        return hasattr(module, owner)
    return hasattr(module, owner) and hasattr(SAMPLES[owner](module), attribute)


def parameters(module: Client, name: str) -> dict[str, inspect.Parameter]:
    owner, _, attribute = name.partition(".")
    target = getattr(module, owner)
    if attribute:
        target = getattr(target, attribute)
    elif isinstance(target, type):
        target = target.__init__  # type: ignore[misc]  # the signature is all that is wanted of it
    signature = dict(inspect.signature(target).parameters)
    signature.pop("self", None)
    return signature


def public_names() -> set[str]:
    """Every public name of this interpreter's http.client: its own, and its classes' and instances'."""
    names = set(http.client.__all__) | {"HTTPMessage", "parse_headers", "HTTP_PORT", "HTTPS_PORT"}
    names |= set(http.HTTPStatus.__members__)
    for owner in CLASSES:
        sample = SAMPLES[owner](http.client)
        attributes = {*vars(getattr(http.client, owner)), *vars(sample)}
        names |= {f"{owner}.{name}" for name in attributes if not name.startswith("_")}
    return names - {"HTTPSConnection." + name for name in ("connect", "default_port")} - {
        # As in HTTPConnection.
        f"HTTPSConnection.{name}" for name in vars(SAMPLES["HTTPConnection"](http.client))
    }  # fmt: skip


CALLABLES = [
    *CLASSES,
    "parse_headers",
    *(
        f"{owner}.{name}"
        for owner in CLASSES
        for name, value in vars(getattr(http.client, owner)).items()
        if not name.startswith("_") and inspect.isfunction(value)
    ),
]


def test_page_has_its_tables() -> None:
    assert len(ROWS) > 100
    assert len(PRIVATE) > 20


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.item)
def test_row_is_well_formed(row: Row) -> None:
    assert row.here in {"same", "stricter", "more"}
    assert re.fullmatch(
        r"(both|httplib|http\.client|undocumented|ours)(,? (from|to) 3\.\d+)?|both, http.client to 3.11", row.documented
    )
    if row.here != "same":
        assert row.what
        assert row.tests


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.item)
def test_row_names_tests_that_exist(row: Row) -> None:
    for name in row.tests:
        file, _, test = name.rpartition("::")
        text = (TESTS / (file or "test_compatibility.py")).read_text(encoding="utf-8")
        assert f"def {test}(" in text


@pytest.mark.parametrize("row", [row for row in ROWS if row.names], ids=lambda row: row.item)
def test_item_of_the_page_exists(row: Row) -> None:
    for name, arguments in row.names:
        if row.is_in_http_client() or row.here == "more":
            assert has(httplib, name)
            assert set(arguments) <= set(parameters(httplib, name) if arguments else ())


# Documented, but http.client leaves it to its callers to set it.
NEVER_SET = {"HTTPResponse.url"}


@pytest.mark.parametrize("row", [row for row in ROWS if row.names], ids=lambda row: row.item)
def test_page_tells_the_truth_about_http_client(row: Row) -> None:
    for name, arguments in row.names:
        is_there = has(http.client, name) and set(arguments) <= set(parameters(http.client, name) if arguments else ())
        if "both" not in row.documented or not re.search("from|to", row.documented):
            assert is_there == (row.is_in_http_client() or row.documented == "both") or name in NEVER_SET


def test_no_public_name_of_http_client_lacks_a_row() -> None:
    named = {name for row in ROWS for name, _ in row.names} | {row.name.strip("`") for row in PRIVATE}
    assert public_names() - named == set()


def test_no_argument_of_http_client_lacks_a_row() -> None:
    named = {(name, argument) for row in ROWS for name, arguments in row.names for argument in arguments}
    missing = [(name, argument) for name in CALLABLES if not name.startswith("parse")
               for argument in parameters(http.client, name) if (name, argument) not in named]  # fmt: skip
    assert missing == []


@pytest.mark.parametrize("row", PRIVATE, ids=lambda row: row.name)
def test_private_name_is_there_or_not_as_the_page_says(row: PrivateRow) -> None:
    assert row.here in {"there", "not there"}
    assert has(httplib, row.name.strip("`")) == (row.here != "not there")


# What http.client takes by position until 3.11, and we by name only; (function, argument).
BY_NAME_ONLY = {("HTTPSConnection", name) for name in ("key_file", "cert_file", "timeout", "source_address")}


@pytest.mark.parametrize("name", CALLABLES)
def test_signature_takes_every_call_that_http_client_takes(name: str) -> None:
    theirs = parameters(http.client, name)
    if not has(httplib, name):
        pytest.fail(f"{name} is missing")
    ours = parameters(httplib, name)
    by_position = [key for key, value in ours.items() if value.kind is not value.KEYWORD_ONLY]
    for index, (key, wanted) in enumerate(theirs.items()):
        assert key in ours
        got = ours[key]
        if wanted.kind is wanted.VAR_POSITIONAL:
            assert got.kind is wanted.VAR_POSITIONAL
            continue
        assert got.kind is not got.POSITIONAL_ONLY
        assert (got.default is got.empty) == (wanted.default is wanted.empty)
        if got.default is not got.empty and (name, key) != ("HTTPConnection.request", "headers"):
            assert got.default == wanted.default
        if wanted.kind is wanted.POSITIONAL_OR_KEYWORD and (name, key) not in BY_NAME_ONLY:
            assert by_position[index] == key
    for key, got in ours.items():
        assert key in theirs or got.default is not got.empty or got.kind is got.VAR_POSITIONAL


def test_default_headers_are_none() -> None:
    assert parameters(httplib, "HTTPConnection.request")["headers"].default == {}


# --- servers and connections ------------------------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\n"
HELLO = Repeat([ExpectHead(), Respond(body=b"hello")])


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context


@pytest.fixture
def server(scripted_server: ServerFactory) -> ScriptedServer:
    """A server that answers every request on every connection with ``hello``."""
    return scripted_server(default=[HELLO])


def connection_to(client: Client, server: ScriptedServer, kind: str = "HTTPConnection", **options: object) -> Any:
    return getattr(client, kind)(server.host, server.port, timeout=BOUND, **options)


def replying(scripted_server: ServerFactory, answer: bytes, *more: Callable[[Peer], None]) -> ScriptedServer:
    """A server whose first connection gives this answer, then ends its side; others are answered as usual."""
    return scripted_server([ExpectHead(), Send(answer), *(more or (HalfClose(), KeepOpen()))], default=[HELLO])


def ask(conn: Any, method: str = "GET", target: str = "/first", **options: Any) -> Any:
    conn.request(method, target, **options)
    return conn.getresponse()


def answer_of(client: Client, server: ScriptedServer, method: str = "GET") -> tuple[int, bytes]:
    """Ask once on a connection of its own, and read; whatever happens, close."""
    with contextlib.closing(connection_to(client, server)) as conn, ask(conn, method) as response:
        return response.status, response.read()


def finish(conn: Any) -> None:
    """One normal request, then the end."""
    assert ask(conn, target="/again").read() == b"hello"
    conn.close()


# --- the documented examples ------------------------------------------------------------------------------------------


def test_example_of_get(client: Client, scripted_server: ServerFactory) -> None:
    def respond(request: ReceivedRequest) -> bytes:
        if request.target == "/index.html":
            return Respond(body=b"<!doctype html>").encode()
        return Respond(404, body=b"no parrot").encode()

    server = scripted_server(default=keep_alive_script(respond))
    conn = client.HTTPConnection(f"{server.host}:{server.port}")
    conn.request("GET", "/index.html")
    r1 = conn.getresponse()
    assert (r1.status, r1.reason) == (200, "OK")
    data1 = r1.read()
    conn.request("GET", "/parrot.spam")
    r2 = conn.getresponse()
    assert (r2.status, r2.reason) == (404, "Not Found")
    data2 = r2.read()
    conn.close()
    assert (data1, data2) == (b"<!doctype html>", b"no parrot")
    assert server.accepted == 1


def test_example_of_reading_in_pieces(client: Client, scripted_server: ServerFactory) -> None:
    body = bytes(range(256)) * 3
    server = scripted_server(default=[Repeat([ExpectHead(), Respond(body=body, chunked=True)])])
    conn = connection_to(client, server)
    conn.request("GET", "/")
    r1 = conn.getresponse()
    pieces = []
    while chunk := r1.read(200):
        pieces.append(chunk)
    conn.close()
    assert b"".join(pieces) == body
    assert [len(piece) for piece in pieces] == [200, 200, 200, 168]


def test_example_of_head(client: Client, server: ScriptedServer) -> None:
    conn = connection_to(client, server)
    conn.request("HEAD", "/index.html")
    res = conn.getresponse()
    assert (res.status, res.reason) == (200, "OK")
    assert res.getheader("Content-Length") == "5"
    data = res.read()
    assert len(data) == 0
    assert data == b""
    finish(conn)
    assert server.accepted == 1


def test_example_of_post(client: Client, server: ScriptedServer) -> None:
    params = urllib.parse.urlencode({"spam": 1, "eggs": 2, "bacon": 0})
    headers = {"Content-type": "application/x-www-form-urlencoded", "Accept": "text/plain"}
    conn = client.HTTPConnection(f"{server.host}:{server.port}")
    conn.request("POST", "/cgi-bin/query", params, headers)
    response = conn.getresponse()
    assert (response.status, response.reason) == (200, "OK")
    data = response.read()
    conn.close()
    assert data == b"hello"
    assert server.requests[0].head == (
        b"POST /cgi-bin/query HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept-Encoding: identity\r\nContent-Length: 21\r\n"
        b"Content-type: application/x-www-form-urlencoded\r\nAccept: text/plain\r\n\r\n" % server.port
    )
    assert server.requests[0].body == b"spam=1&eggs=2&bacon=0"


def test_example_of_put(client: Client, server: ScriptedServer) -> None:
    conn = connection_to(client, server)
    conn.request("PUT", "/file", "***filecontents***")
    response = conn.getresponse()
    assert (response.status, response.reason) == (200, "OK")
    response.close()
    conn.close()
    assert server.requests[0].body == b"***filecontents***"


def test_example_of_a_tunnel(client: Client, scripted_server: ServerFactory) -> None:
    proxy = scripted_server(
        [ExpectHead("CONNECT"), Send(OK + b"X-Via: p\r\n\r\n"), StartTLS(server_context()), HELLO],
    )
    conn = client.HTTPSConnection(proxy.host, proxy.port, timeout=BOUND, context=client_context())
    conn.set_tunnel("localhost", headers={"X-Tunnel": "1"})
    conn.request("HEAD", "/index.html")
    response = conn.getresponse()
    assert (response.status, response.read()) == (200, b"")
    conn.close()
    connect, head = proxy.requests
    assert (connect.method, connect.target, connect.field("X-Tunnel")) == ("CONNECT", "localhost:443", "1")
    assert (head.method, head.target, head.field("X-Tunnel")) == ("HEAD", "/index.html", None)
    # http.client has sent the tunnel's port here since 3.12.
    assert head.field("Host") in {"localhost", "localhost:443"}


@pytest.mark.parametrize("arguments", [("origin.test",), ("origin.test:80",), ("origin.test", 80)])
def test_example_of_the_ways_to_name_a_server(client: Client, arguments: tuple[Any, ...]) -> None:
    conn = client.HTTPConnection(*arguments, timeout=10)
    assert (conn.host, conn.port, conn.timeout) == ("origin.test", 80, 10)


def test_example_of_responses(client: Client) -> None:
    assert client.responses[client.NOT_FOUND] == "Not Found"


# --- documented behaviour, the same in both ---------------------------------------------------------------------------


def request_of(client: Client, server: ScriptedServer, method: str = "POST", **options: Any) -> ReceivedRequest:
    """Send a request and return it as the server saw it."""
    with contextlib.closing(connection_to(client, server)) as conn, ask(conn, method, **options) as response:
        response.read()
    return server.requests[-1]


def test_host_and_accept_encoding_are_added_where_they_are_missing(client: Client, server: ScriptedServer) -> None:
    assert request_of(client, server, "GET").fields == (
        ("Host", f"127.0.0.1:{server.port}"),
        ("Accept-Encoding", "identity"),
    )
    given = {"host": "other.test", "accept-encoding": "gzip"}
    assert request_of(client, server, "GET", headers=given).fields == tuple(given.items())


def test_steps_may_leave_out_what_is_added(client: Client, server: ScriptedServer) -> None:
    conn = connection_to(client, server)
    conn.putrequest("GET", "/", skip_host=True, skip_accept_encoding=True)
    conn.putheader(b"X-Number", 5)
    conn.endheaders()
    assert conn.getresponse().read() == b"hello"
    conn.close()
    assert server.requests[0].head == b"GET / HTTP/1.1\r\nX-Number: 5\r\n\r\n"


@pytest.mark.parametrize(("method", "length"), [("POST", "0"), ("PUT", "0"), ("PATCH", "0"), ("GET", None),
                                                ("DELETE", None)])  # fmt: skip
def test_missing_body_is_told_where_one_is_expected(
    client: Client, server: ScriptedServer, method: str, length: str | None
) -> None:
    assert request_of(client, server, method).field("Content-Length") == length


@pytest.mark.parametrize("body", ["caf\xe9", b"caf\xe9", bytearray(b"caf\xe9"), memoryview(b"caf\xe9")])
def test_body_of_text_or_bytes_goes_with_its_length(client: Client, server: ScriptedServer, body: Any) -> None:
    request = request_of(client, server, body=body)
    assert request.field("Content-Length") == "4"
    assert request.body == b"caf\xe9"


@pytest.mark.parametrize("body", [
    lambda: [b"one", b"", b"two"],
    lambda: iter((b"one", b"two")),
    lambda: io.BytesIO(b"onetwo"),
    lambda: io.StringIO("onetwo"),
    lambda: gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(b"onetwo"))),
], ids=["list", "iterator", "BytesIO", "StringIO", "GzipFile"])  # fmt: skip
def test_body_of_unknown_length_goes_in_chunks(client: Client, server: ScriptedServer, body: Callable[[], Any]) -> None:
    request = request_of(client, server, body=body())
    assert request.field("Transfer-Encoding") == "chunked"
    assert request.field("Content-Length") is None
    assert request.body == b"onetwo"


def test_text_file_goes_as_latin_1(client: Client, server: ScriptedServer, tmp_path: Path) -> None:
    (tmp_path / "body").write_text("caf\xe9", encoding="utf-8")
    with (tmp_path / "body").open(encoding="utf-8") as file:
        assert request_of(client, server, body=file).body == b"caf\xe9"


def test_length_that_the_caller_gives_for_a_file_is_kept(client: Client, server: ScriptedServer) -> None:
    request = request_of(client, server, body=io.BytesIO(b"onetwo"), headers={"Content-Length": "6"})
    assert (request.field("Content-Length"), request.field("Transfer-Encoding")) == ("6", None)
    assert request.body == b"onetwo"


def test_coding_of_the_caller_is_left_to_the_caller(client: Client, server: ScriptedServer) -> None:
    coded = b"3\r\none\r\n0\r\n\r\n"
    assert request_of(client, server, body=coded, headers={"Transfer-Encoding": "chunked"}).body == b"one"


def test_chunks_are_made_when_asked_for_with_a_coding(client: Client, server: ScriptedServer) -> None:
    headers = {"Transfer-Encoding": "chunked"}
    request = request_of(client, server, body=iter([b"one", b"", b"two"]), headers=headers, encode_chunked=True)
    assert request.body == b"onetwo"
    received = server.connections[0].received
    assert received.endswith(b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")


def test_endheaders_makes_chunks_when_asked(client: Client, server: ScriptedServer) -> None:
    conn = connection_to(client, server)
    conn.putrequest("POST", "/")
    conn.putheader("Transfer-Encoding", "chunked")
    conn.endheaders([b"one", b"two"], encode_chunked=True)
    assert conn.getresponse().read() == b"hello"
    conn.close()
    assert server.connections[0].received.endswith(b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")


def test_body_may_follow_by_send(client: Client, server: ScriptedServer) -> None:
    conn = connection_to(client, server)
    conn.putrequest("POST", "/")
    conn.putheader("Content-Length", "12")
    conn.endheaders()
    conn.send(b"one")
    conn.send(io.BytesIO(b"two"))
    conn.send([b"thr", b"ee1"])
    assert conn.getresponse().read() == b"hello"
    conn.close()
    assert server.requests[0].body == b"onetwothree1"


def test_blocksize_is_what_is_read_of_a_file_at_once(client: Client, server: ScriptedServer) -> None:
    class Asked(io.BytesIO):
        sizes: list[int | None] = []  # noqa: RUF012  # one instance

        def read(self, size: int | None = -1, /) -> bytes:
            self.sizes.append(size)
            return super().read(size)

    conn = connection_to(client, server, blocksize=4)
    assert conn.blocksize == 4
    assert ask(conn, "POST", body=Asked(b"onetwo")).read() == b"hello"
    conn.close()
    assert set(Asked.sizes) == {4}
    assert server.requests[0].body == b"onetwo"


def test_header_is_joined_with_commas(client: Client) -> None:
    response = begun(client, OK + b"X-A: 1\r\nContent-Length: 0\r\nx-a: 2\r\n\r\n")
    assert response.getheader("X-a") == "1, 2"
    assert response.getheader("none") is None
    assert response.getheader("none", "b") == "b"
    assert response.getheader("none", default=["b", "c"]) == "b, c"
    assert response.getheader("none", 5) == 5
    assert response.getheaders() == [("X-A", "1"), ("Content-Length", "0"), ("x-a", "2")]
    assert response.headers.get_all("X-A") == ["1", "2"]
    response.close()


@pytest.mark.parametrize(("line", "version"), [(b"HTTP/1.0", 10), (b"HTTP/1.1", 11)])
def test_version_is_10_or_11(client: Client, line: bytes, version: int) -> None:
    response = begun(client, line + b" 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert response.version == version
    response.close()


def test_attributes_tell_the_framing(client: Client) -> None:
    response = begun(client, OK + b"Content-Length: 2\r\nConnection: close\r\n\r\nok")
    assert (response.length, bool(response.chunked), bool(response.will_close)) == (2, False, True)
    assert (response.status, response.code, response.getcode()) == (200, 200, 200)
    assert response.info() is response.headers
    assert (response.isclosed(), response.closed, response.readable()) == (False, False, True)
    assert response.read() == b"ok"
    assert response.length == 0
    assert response.isclosed()
    response.close()
    assert response.closed
    chunked = begun(client, OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert (chunked.length, bool(chunked.chunked), bool(chunked.will_close)) == (None, True, False)
    chunked.close()


def test_response_made_by_hand_leaves_its_socket_open(client: Client) -> None:
    sock = Answer()
    response = client.HTTPResponse(sock, method="GET", url="http://origin.test/")
    response.begin()
    assert (response.read(), response.read(), response.read(1)) == (b"ok", b"", b"")
    response.close()
    assert not sock.is_closed


def test_url_may_be_set(client: Client) -> None:
    response = begun(client)
    response.url = "http://origin.test/"
    assert response.geturl() == "http://origin.test/"
    response.close()


def test_msg_may_be_set(client: Client) -> None:
    response = begun(client)
    assert response.msg is response.headers
    response.msg = response.reason
    assert response.msg == "OK"
    assert response.headers["Content-Length"] == "2"
    response.close()


@pytest.mark.parametrize(("name", "value"), [("status", 404), ("code", 404), ("reason", "Gone"), ("version", 10),
                                             ("headers", email.message_from_string("X: y\r\n\r\n"))])  # fmt: skip
def test_attribute_of_the_head_may_be_set(client: Client, name: str, value: object) -> None:
    response = begun(client)
    setattr(response, name, value)
    assert getattr(response, name) == value
    response.close()


def test_response_is_a_context_manager_that_closes(client: Client, server: ScriptedServer) -> None:
    conn = connection_to(client, server)
    with ask(conn) as response:
        assert response.read() == b"hello"
    assert response.closed
    finish(conn)
    assert server.accepted == 1


def test_iteration_gives_lines(client: Client) -> None:
    response = begun(client, OK + b"Content-Length: 8\r\n\r\none\ntwo\n")
    assert list(response) == [b"one\n", b"two\n"]
    response.close()


@pytest.mark.parametrize("framing", ["length", "chunked", "end"])
def test_every_way_to_read_gives_the_body(client: Client, framing: str) -> None:
    head = {"length": b"Content-Length: 9\r\n\r\n", "end": b"\r\n", "chunked": b"Transfer-Encoding: chunked\r\n\r\n"}
    body = b"4\r\none\n\r\n5\r\ntwo\n3\r\n0\r\n\r\n" if framing == "chunked" else b"one\ntwo\n3"
    answer = OK + head[framing] + body

    def gather(read: Callable[[Any], bytes]) -> bytes:
        response = begun(client, answer)
        pieces = list(iter(lambda: read(response), b""))
        response.close()
        return b"".join(pieces)

    def into(response: Any) -> bytes:
        buffer = bytearray(2)
        return bytes(buffer[: response.readinto(buffer)])

    def peeked(response: Any) -> bytes:
        start = response.peek(1)
        assert start or response.read() == b""
        return bytes(response.read(len(start)))

    for read in (
        lambda response: response.read(),
        lambda response: response.read(amt=2),
        lambda response: response.read(None),
        lambda response: response.read1(),
        lambda response: response.read1(n=2),
        lambda response: response.readline(),
        lambda response: response.readline(limit=2),
        into,
        peeked,
    ):
        assert gather(read) == b"one\ntwo\n3"


def test_descriptor_is_that_of_the_socket(client: Client, server: ScriptedServer) -> None:
    conn = connection_to(client, server)
    response = ask(conn)
    assert response.fileno() == conn.sock.fileno()
    assert response.read() == b"hello"
    finish(conn)


def test_default_timeout_is_the_global_one(client: Client, server: ScriptedServer) -> None:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(7.5)
    try:
        conn = client.HTTPConnection(server.host, server.port)
        conn.connect()
        assert conn.sock.gettimeout() == 7.5
    finally:
        socket.setdefaulttimeout(before)
    finish(conn)


def test_source_address_is_bound(client: Client, server: ScriptedServer) -> None:
    conn = connection_to(client, server, source_address=("127.0.0.2", 0))
    conn.connect()
    assert conn.sock.getsockname()[0] == "127.0.0.2"
    finish(conn)


def test_request_on_a_closed_connection_connects(client: Client, server: ScriptedServer) -> None:
    conn = connection_to(client, server)
    assert ask(conn).read() == b"hello"
    conn.close()
    assert conn.sock is None
    finish(conn)
    assert server.accepted == 2


def test_connection_that_may_not_open_itself_says_so(client: Client, server: ScriptedServer) -> None:
    conn = connection_to(client, server)
    conn.auto_open = 0
    with pytest.raises(client.NotConnected):
        conn.request("GET", "/")


def test_error_while_getting_the_response_leaves_a_connection_that_reconnects(
    client: Client, scripted_server: ServerFactory
) -> None:
    server = scripted_server([ExpectHead(), Close()], default=[HELLO])
    conn = connection_to(client, server)
    conn.request("GET", "/first")
    with pytest.raises(http.client.RemoteDisconnected):
        conn.getresponse()
    finish(conn)
    assert server.accepted == 2


def test_steps_out_of_order_are_refused(client: Client, server: ScriptedServer) -> None:
    conn = connection_to(client, server)
    with pytest.raises(http.client.CannotSendHeader):
        conn.putheader("A", "b")
    with pytest.raises(http.client.CannotSendHeader):
        conn.endheaders()
    with pytest.raises(http.client.ResponseNotReady):
        conn.getresponse()
    conn.putrequest("GET", "/")
    with pytest.raises(http.client.CannotSendRequest):
        conn.putrequest("GET", "/")
    conn.endheaders()
    assert conn.getresponse().read() == b"hello"
    finish(conn)


def test_debug_level_prints_and_is_passed_to_the_response(
    client: Client, server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    conn = connection_to(client, server)
    assert (conn.debuglevel, client.HTTPConnection.debuglevel) == (0, 0)
    conn.set_debuglevel(1)
    response = ask(conn)
    assert response.debuglevel == 1
    assert response.read() == b"hello"
    conn.close()
    printed = capsys.readouterr().out
    for part in ("send: b'GET /first", "reply: 'HTTP/1.1 200 OK", "header: Content-Length: 5"):
        assert part in printed


def test_debug_level_of_the_class_serves_every_connection(
    client: Client, server: ScriptedServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.HTTPConnection, "debuglevel", 1)
    assert answer_of(client, server) == (200, b"hello")
    assert "send: b'GET /first" in capsys.readouterr().out


def test_response_that_closes_the_connection_outlives_it(client: Client, scripted_server: ServerFactory) -> None:
    server = scripted_server(default=[ExpectHead(), Respond(body=b"hello", close=True)])
    conn = connection_to(client, server)
    response = ask(conn)
    assert conn.sock is None
    conn.close()
    assert response.read() == b"hello"
    assert ask(conn).read() == b"hello"
    assert server.accepted == 2


def test_refused_tunnel_is_an_oserror(client: Client, scripted_server: ServerFactory) -> None:
    proxy = scripted_server([ExpectHead("CONNECT"), Respond(403, body=b"no"), KeepOpen()])
    conn = connection_to(client, proxy)
    conn.set_tunnel("origin.test", 80)
    with pytest.raises(OSError, match="Tunnel connection failed: 403 Forbidden"):
        conn.request("GET", "/")
    assert conn.sock is None


def test_redirect_is_not_followed(client: Client, scripted_server: ServerFactory) -> None:
    elsewhere = Respond(302, headers=[("Location", "/elsewhere"), ("Set-Cookie", "a=b")], body=b"moved")
    server = scripted_server(default=[Repeat([ExpectHead(), elsewhere])])
    conn = connection_to(client, server)
    response = ask(conn)
    assert (response.status, response.getheader("Location"), response.read()) == (302, "/elsewhere", b"moved")
    assert ask(conn).read() == b"moved"
    conn.close()
    assert [request.field("Cookie") for request in server.requests] == [None, None]


def test_message_parser_reads_fields_and_stops(client: Client) -> None:
    file = io.BytesIO(b"X-A: 1\r\nX-B: 2\r\n\r\nbody")
    message = client.parse_headers(file)
    assert isinstance(message, client.HTTPMessage)
    assert message.items() == [("X-A", "1"), ("X-B", "2")]
    assert file.read() == b"body"


# A hook cannot be taken back, and with one CPython 3.11 loses threads that begin to be traced at the same moment: it is
# set in a process of its own.
AUDITED: Final = """
import importlib, json, sys

def note_event(event, arguments):
    if event.startswith("http.client."):
        events.append((event, arguments))

client = importlib.import_module(sys.argv[1])
conn = client.HTTPConnection("127.0.0.1", int(sys.argv[2]), timeout=10)
events = []
sys.addaudithook(note_event)
for body in (b"one", iter([b"two"])):
    conn.request("POST", "/", body=body)
    assert conn.getresponse().read() == b"hello"
conn.close()
print(json.dumps([
    (event, arguments[0] is conn, [str(each, "latin-1") if isinstance(each, bytes) else each for each in arguments[1:]])
    for event, arguments in events
]))
"""


def test_audit_events_are_raised(client: Client, server: ScriptedServer) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AUDITED, client.__name__, str(server.port)],
        cwd=TESTS.parent, capture_output=True, text=True, timeout=3 * BOUND, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    events = json.loads(done.stdout)
    assert [(is_conn, *rest) for event, is_conn, rest in events if event == "http.client.connect"] == [
        (True, server.host, server.port)
    ]
    sent = [(is_conn, *rest) for event, is_conn, rest in events if event == "http.client.send"]
    assert {is_conn for is_conn, _ in sent} == {True}
    assert "".join(data for _, data in sent).encode("latin-1") == server.connections[0].received


# --- where we differ --------------------------------------------------------------------------------------------------


def test_strict_is_accepted_and_false_is_refused() -> None:
    assert httplib.HTTPConnection("origin.test", strict=True).host == "origin.test"
    assert httplib.HTTPSConnection("origin.test", strict=True).port == 443
    with pytest.raises(httplib.IllegalKeywordArgument, match=r"HTTP/0\.9"):
        httplib.HTTPConnection("origin.test", strict=False)


@pytest.mark.parametrize("host", ["", "origin.test/", "user@origin.test", "origin%2ftest", "origin test", "::1",
                                  "origin.test\r\nX: y", "\uff11\uff12\uff17.0.0.1"])  # fmt: skip
def test_host_that_cannot_be_one_is_refused(host: str) -> None:
    with pytest.raises(http.client.InvalidURL):
        httplib.HTTPConnection(host)


def test_host_outside_ascii_is_mapped_at_once() -> None:
    assert httplib.HTTPConnection("b\xfccher.test").host == "xn--bcher-kva.test"


def test_port_is_a_number_from_0_to_65535() -> None:
    assert httplib.HTTPConnection("origin.test", "8080").port == 8080
    for port in (-1, 65536, "http"):
        with pytest.raises(http.client.InvalidURL):
            httplib.HTTPConnection("origin.test", port)


@pytest.mark.parametrize("option", [{"timeout": 0}, {"timeout": -1}, {"blocksize": 0}, {"source_address": "127.0.0.1"}],
                         ids=str)  # fmt: skip
def test_option_that_makes_no_sense_is_refused_at_once(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        httplib.HTTPConnection("origin.test", **option)


def test_client_certificate_may_be_given_by_its_files(tmp_path: Path, scripted_server: ServerFactory) -> None:
    certificate = authority().issue_cert("client.test")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    for part in certificate.cert_chain_pems:
        part.write_to_path(tmp_path / "chain.pem", append=True)
    demanding = server_context()
    demanding.verify_mode = ssl.CERT_REQUIRED
    authority().configure_trust(demanding)
    server = scripted_server(default=[HELLO], ssl_context=demanding)
    files = {"key_file": tmp_path / "key.pem", "cert_file": tmp_path / "chain.pem"}
    finish(connection_to(httplib, server, "HTTPSConnection", context=client_context(), **files))


def test_host_name_check_may_be_turned_off(scripted_server: ServerFactory) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("elsewhere.test").configure_cert(context)
    server = scripted_server(default=[HELLO], ssl_context=context)
    with pytest.warns(DeprecationWarning, match="check_hostname"):
        conn = connection_to(httplib, server, "HTTPSConnection", context=client_context(), check_hostname=False)
    finish(conn)


def test_second_request_before_the_response_is_read_is_refused_before_it_is_sent(server: ScriptedServer) -> None:
    conn = connection_to(httplib, server)
    response = ask(conn)
    for begin in (lambda: conn.request("GET", "/second"), lambda: conn.putrequest("GET", "/second")):
        with pytest.raises(httplib.UnreadResponse, match=r"GET /first \(200 OK\).*5 bytes") as caught:
            begin()
        assert isinstance(caught.value, http.client.CannotSendRequest)
    assert response.read() == b"hello"
    finish(conn)
    assert [request.target for request in server.requests] == ["/first", "/again"]


def test_send_outside_of_a_request_is_refused(server: ScriptedServer) -> None:
    conn = connection_to(httplib, server)
    conn.connect()
    with pytest.raises(http.client.CannotSendRequest, match=r"between endheaders\(\)"):
        conn.send(b"GET / HTTP/1.1\r\n\r\n")
    finish(conn)
    assert len(server.requests) == 1


@pytest.mark.parametrize(("method", "target", "error"), [
    ("G(T", "/", ValueError),
    ("", "/", ValueError),
    ("GET", "/caf\xe9", http.client.InvalidURL),
    ("GET", "/a b", http.client.InvalidURL),
])  # fmt: skip
def test_request_line_that_is_malformed_is_refused(method: str, target: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        httplib.HTTPConnection("origin.test").request(method, target)


@pytest.mark.parametrize("headers", [{"X(": "y"}, {"X": "y\x01"}, {"X": "y\r\n z"}, {"X": "\u20ac"}], ids=str)
def test_header_that_is_malformed_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="Invalid header"):
        httplib.HTTPConnection("origin.test").request("GET", "/", headers=headers)


def test_several_values_of_a_header_are_joined_by_a_tab(server: ScriptedServer) -> None:
    conn = connection_to(httplib, server)
    conn.putrequest("GET", "/")
    conn.putheader("X-List", "one", b"two", 3)
    conn.endheaders()
    assert conn.getresponse().read() == b"hello"
    conn.close()
    assert b"\r\nX-List: one\ttwo\t3\r\n" in server.requests[0].head


@pytest.mark.parametrize("headers", [
    {"Content-Length": "2"},
    {"Content-Length": "3", "Transfer-Encoding": "chunked"},
    {"Content-Length": "3", "content-length": "3"},
    {"Host": "a.test", "host": "b.test"},
    {"Content-Length": "+3"},
], ids=str)  # fmt: skip
def test_headers_that_contradict_the_body_or_one_another_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"Content-Length|Host"):
        httplib.HTTPConnection("origin.test").request("POST", "/", b"one", headers)


def test_surplus_of_a_body_is_not_sent(scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(body=False), KeepOpen()], default=[HELLO])
    conn = connection_to(httplib, server)
    with pytest.raises(ValueError, match="more than"):
        conn.request("POST", "/first", iter([b"abc", b"GET /evil HTTP/1.1\r\n\r\n"]), {"Content-Length": "3"})
    finish(conn)
    assert b"evil" not in b"".join(peer.received for peer in server.connections)


def test_bytes_that_no_head_announced_are_refused(server: ScriptedServer) -> None:
    conn = connection_to(httplib, server)
    conn.putrequest("POST", "/first")
    with pytest.raises(ValueError, match="the body has 3 bytes, but the head announces 0"):
        conn.endheaders(b"abc")
    conn.endheaders()
    with pytest.raises(ValueError, match="3 bytes are more than the 0"):
        conn.send(b"abc")
    assert conn.getresponse().read() == b"hello"
    finish(conn)
    assert server.accepted == 1


def test_connection_of_a_body_that_was_too_short_is_not_used_again(server: ScriptedServer) -> None:
    patient = [ExpectHead(body=False), Respond(body=b"hello"), KeepOpen()]
    server._scripts = (patient,)
    conn = connection_to(httplib, server)
    assert ask(conn, "POST", body=b"one", headers={"Content-Length": "4"}).read() == b"hello"
    assert conn.sock is None
    finish(conn)
    assert server.accepted == 2


def test_regular_file_goes_with_its_length(server: ScriptedServer, tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"onetwo")
    with (tmp_path / "body").open("rb") as file:
        file.seek(3)
        request = request_of(httplib, server, body=file)
    assert (request.field("Content-Length"), request.field("Transfer-Encoding")) == ("3", None)
    assert request.body == b"two"


def test_body_waits_for_100_continue_when_it_was_asked_for(scripted_server: ServerFactory) -> None:
    asked = [ExpectHead(body=False), Send(b"HTTP/1.1 100 Continue\r\n\r\n"), ExpectBody(), Respond(body=b"hello")]
    server = scripted_server(asked, [ExpectHead(body=False), Respond(417, body=b"no"), KeepOpen()], default=[HELLO])
    conn = connection_to(httplib, server)
    conn.expect_continue_timeout = BOUND
    expecting: dict[str, Any] = {"body": b"one", "headers": {"Expect": "100-continue"}}
    assert ask(conn, "POST", **expecting).read() == b"hello"
    conn.close()
    response = ask(conn, "POST", **expecting)
    assert (response.status, response.read()) == (417, b"no")
    assert conn.sock is None
    finish(conn)
    assert server.connections[0].requests[-1].body == b"one"
    assert b"one" not in server.connections[1].received


def test_early_answer_ends_the_upload(scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(body=False), Respond(413, body=b"too long", close=True)], default=[HELLO])
    conn = connection_to(httplib, server)
    with contextlib.suppress(ConnectionError):  # the rest of the body may have been on its way already
        conn.request("POST", "/first", iter([b"x" * 65536] * 400))
    response = conn.getresponse()
    assert (response.status, response.read()) == (413, b"too long")
    finish(conn)


def test_closed_response_leaves_nothing_for_the_next_request(scripted_server: ServerFactory) -> None:
    server = scripted_server(default=[Repeat([ExpectHead(), Respond(body=b"hello")])])
    conn = connection_to(httplib, server)
    ask(conn).close()
    finish(conn)
    assert server.accepted == 1


def test_unread_rest_that_is_long_closes_the_connection(scripted_server: ServerFactory) -> None:
    long = Respond(body=b"x" * 1_000_000)
    server = scripted_server([ExpectHead(), long, KeepOpen()], default=[HELLO])
    conn = connection_to(httplib, server)
    with ask(conn) as response:
        assert response.read(1) == b"x"
    assert conn.sock is None
    finish(conn)
    assert server.accepted == 2


def test_dead_idle_connection_is_replaced_before_the_request(scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(), Respond(body=b"hello"), Close()], default=[HELLO])
    conn = connection_to(httplib, server)
    assert ask(conn).read() == b"hello"
    assert server.peer().ended.wait(BOUND)
    finish(conn)
    assert server.accepted == 2


def test_bytes_between_two_responses_are_nobodys_answer(scripted_server: ServerFactory) -> None:
    spoke = threading.Event()
    extra = Respond(body=b"poison").encode()
    server = scripted_server([ExpectHead(), Respond(body=b"hello"), Send(extra), Signal(spoke), KeepOpen()],
                             [ExpectHead(), Send(Respond(body=b"hello").encode() + extra), KeepOpen()],
                             default=[HELLO])  # fmt: skip
    conn = connection_to(httplib, server)
    assert ask(conn).read() == b"hello"
    assert spoke.wait(BOUND)
    assert ask(conn).read() == b"hello"
    finish(conn)
    assert server.accepted == 3


@pytest.mark.parametrize("line", [b"HTTP/2.0 200 OK", b"HTTP/0.9 200 OK", b"HTTP/1.2 200 OK", b"HTTP/1.1 2000 OK",
                                  b"HTTP/1.1  200 OK", b"http/1.1 200 OK", b"hello"])  # fmt: skip
def test_status_line_is_that_of_http_1(scripted_server: ServerFactory, line: bytes) -> None:
    server = replying(scripted_server, line + b"\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(http.client.BadStatusLine):
        answer_of(httplib, server)


@pytest.mark.parametrize("fields", [b"A\0: b\r\n", b"A : b\r\n", b"A: b\0\r\n", b"A: b\rc\r\n"])
def test_header_line_that_could_be_read_in_two_ways_is_an_error(scripted_server: ServerFactory, fields: bytes) -> None:
    server = replying(scripted_server, OK + fields + b"Content-Length: 0\r\n\r\n")
    with pytest.raises(pooledhttp.InvalidResponse):
        answer_of(httplib, server)


def test_head_that_is_cut_off_is_an_error(scripted_server: ServerFactory) -> None:
    server = replying(scripted_server, OK + b"Content-Type: text/plain\r\n")
    with pytest.raises(pooledhttp.InvalidResponse, match="within the response's head"):
        answer_of(httplib, server)


def test_folded_header_is_one_line() -> None:
    response = begun(httplib, OK + b"X-A: one\r\n  two\r\nContent-Length: 0\r\n\r\n")
    assert response.getheader("X-A") == "one two"
    response.close()


@pytest.mark.parametrize("length", [b"+5", b"1_0", b"0x5", b"-1", b"5 5"])
def test_length_that_is_no_number_is_not_believed(scripted_server: ServerFactory, length: bytes) -> None:
    server = replying(scripted_server, OK + b"Content-Length: " + length + b"\r\n\r\nhello, to the end")
    assert answer_of(httplib, server) == (200, b"hello, to the end")


def test_lengths_that_contradict_one_another_are_an_error(scripted_server: ServerFactory) -> None:
    server = replying(scripted_server, OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello")
    with pytest.raises(pooledhttp.InvalidResponse, match="different Content-Length"):
        answer_of(httplib, server)


@pytest.mark.parametrize("body", [b"+5\r\nhello\r\n0\r\n\r\n", b"0x5\r\nhello\r\n0\r\n\r\n", b"5\nhello\r\n0\r\n\r\n",
                                  b"5\r\nhelloXX0\r\n\r\n", b"5 \r\nhello\r\n0\r\n\r\n"])  # fmt: skip
def test_broken_chunk_framing_is_an_error(scripted_server: ServerFactory, body: bytes) -> None:
    server = replying(scripted_server, OK + b"Transfer-Encoding: chunked\r\n\r\n" + body)
    with pytest.raises(pooledhttp.InvalidChunk) as caught:
        answer_of(httplib, server)
    assert isinstance(caught.value, http.client.IncompleteRead)


def test_coding_before_chunked_is_left_to_the_caller(scripted_server: ServerFactory) -> None:
    body = gzip.compress(b"hello")
    server = replying(
        scripted_server, OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    )
    assert answer_of(httplib, server) == (200, body)


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_answer_that_has_no_body_has_none_whatever_its_fields(scripted_server: ServerFactory, status: bytes) -> None:
    answer = b"HTTP/1.1 " + status + b"\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n"
    server = scripted_server([ExpectHead(), Send(answer), HELLO])
    conn = connection_to(httplib, server)
    assert ask(conn).read() == b""
    finish(conn)
    assert server.accepted == 1


def test_every_interim_answer_is_skipped(scripted_server: ServerFactory) -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
    server = replying(scripted_server, interim + Respond(body=b"hello").encode())
    assert answer_of(httplib, server) == (200, b"hello")


def test_body_that_is_cut_off_is_an_error_however_it_is_read(scripted_server: ServerFactory) -> None:
    ways: list[Callable[[Any], bytes]] = [
        lambda response: response.read(2),
        lambda response: response.read1(2),
        lambda response: response.readline(),
        lambda response: bytes(response.readinto(bytearray(2))),
    ]
    for read in ways:
        server = replying(scripted_server, OK + b"Content-Length: 9\r\n\r\nhello")
        with contextlib.closing(connection_to(httplib, server)) as conn:
            response = ask(conn)
            with pytest.raises(http.client.IncompleteRead):
                while read(response):
                    pass
            assert conn.sock is None


def test_tls_that_is_cut_off_is_an_error(scripted_server: ServerFactory) -> None:
    script = [ExpectHead(), Send(OK + b"\r\nhello"), Close(close_notify=False)]
    server = scripted_server(script, ssl_context=server_context())
    conn = connection_to(httplib, server, "HTTPSConnection", context=client_context())
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(conn).read()
    assert caught.value.partial == b"hello"


@pytest.mark.parametrize(("answer", "error"), [
    (OK + b"X: y\r\n" * 101 + b"\r\n", pooledhttp.InvalidResponse),
    (OK + (b"X: " + b"y" * 60000 + b"\r\n") * 5 + b"\r\n", pooledhttp.InvalidResponse),
    (OK + b"X: " + b"y" * 65536 + b"\r\n\r\n", http.client.LineTooLong),
    (b"HTTP/1.1 100 Continue\r\n\r\n" * 101 + OK + b"\r\n", pooledhttp.InvalidResponse),
    (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 101 + b"\r\n", pooledhttp.InvalidResponse),
], ids=["fields", "head", "line", "interim answers", "trailers"])  # fmt: skip
def test_endless_answer_meets_a_limit(scripted_server: ServerFactory, answer: bytes, error: type[Exception]) -> None:
    server = replying(scripted_server, answer)
    with pytest.raises(error):
        answer_of(httplib, server)


def test_limits_may_be_raised(scripted_server: ServerFactory) -> None:
    server = replying(scripted_server, OK + b"X: y\r\n" * 150 + b"Content-Length: 0\r\n\r\n")
    conn = connection_to(httplib, server)
    conn.bound(timeouts=pooledhttp.Timeout(), limits=pooledhttp.Limits(fields=1000))
    response = ask(conn)
    assert len(response.getheaders()) == 151
    response.close()
    conn.close()


def test_limit_of_header_fields_may_be_an_argument(scripted_server: ServerFactory) -> None:
    server = replying(scripted_server, OK + b"X: y\r\n" * 150 + b"Content-Length: 0\r\n\r\n")
    conn = httplib.HTTPConnection(server.host, server.port, timeout=BOUND, max_response_headers=151)
    assert len(ask(conn).getheaders()) == 151
    conn.close()
    for nonsense in (0, -1):
        with pytest.raises(ValueError, match="at least 1"):
            httplib.HTTPSConnection("origin.test", max_response_headers=nonsense)


def test_promised_length_allocates_nothing(scripted_server: ServerFactory) -> None:
    server = replying(scripted_server, OK + b"Content-Length: 1000000000000\r\n\r\nhello")
    with pytest.raises(http.client.IncompleteRead) as caught:
        answer_of(httplib, server)
    assert caught.value.partial == b"hello"


def test_last_line_end_may_be_missing(scripted_server: ServerFactory) -> None:
    server = replying(scripted_server, OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n")
    assert answer_of(httplib, server) == (200, b"hello")


def test_trailers_are_kept(scripted_server: ServerFactory) -> None:
    server = replying(scripted_server, OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n")
    with contextlib.closing(connection_to(httplib, server)) as conn, ask(conn) as response:
        assert response.read() == b"hello"
        assert response.trailers == [("X-Sum", "1")]
        assert response.getheader("X-Sum") is None


def test_url_is_what_was_asked_for(server: ScriptedServer) -> None:
    conn = connection_to(httplib, server)
    with ask(conn) as response:
        assert response.url == "/first"
    conn.close()


def test_bytes_behind_a_101_are_not_lost(scripted_server: ServerFactory) -> None:
    upgrade = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
    server = scripted_server([ExpectHead(), Send(upgrade + b"early"), KeepOpen()])
    conn = connection_to(httplib, server)
    response = ask(conn, headers={"Connection": "Upgrade", "Upgrade": "echo"})
    assert (response.status, response.leftover) == (101, b"early")
    response.close()
    conn.close()


def test_credentials_are_not_printed(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    conn = connection_to(httplib, server)
    conn.set_debuglevel(1)
    ask(conn, headers={"Authorization": "Basic secret", "Cookie": "id=secret"}).read()
    conn.close()
    assert "secret" not in capsys.readouterr().out


@pytest.mark.parametrize(("host", "headers"), [
    ("origin.test\r\nX: y", {}),
    ("origin/test", {}),
    ("origin.test", {"X\r\nY": "z"}),
    ("origin.test", {"X": "y\r\nZ: 1"}),
], ids=str)  # fmt: skip
def test_tunnel_that_could_break_its_request_is_refused(host: str, headers: dict[str, str]) -> None:
    conn = httplib.HTTPConnection("proxy.test")
    with pytest.raises(ValueError, match="Invalid"):
        conn.set_tunnel(host, 80, headers)


def test_refusal_of_a_tunnel_tells_status_headers_and_body(scripted_server: ServerFactory) -> None:
    proxy = scripted_server([ExpectHead("CONNECT"), Respond(407, headers=[("X-Why", "you")], body=b"no"), KeepOpen()])
    conn = connection_to(httplib, proxy)
    conn.set_tunnel("origin.test", 80)
    with pytest.raises(pooledhttp.TunnelError) as caught:
        conn.request("GET", "/")
    assert (caught.value.status, caught.value.body) == (407, b"no")
    assert ("X-Why", "you") in caught.value.headers


def test_tunnel_speaks_http_1_1_and_keeps_the_answer_of_the_proxy(scripted_server: ServerFactory) -> None:
    proxy = scripted_server([ExpectHead("CONNECT"), Send(OK + b"X-Via: p\r\n\r\n"), HELLO])
    conn = connection_to(httplib, proxy)
    assert conn.get_proxy_response_headers() is None
    conn.set_tunnel("origin.test", 8080)
    assert ask(conn).read() == b"hello"
    headers = conn.get_proxy_response_headers()
    assert isinstance(headers, http.client.HTTPMessage)
    assert headers["X-Via"] == "p"
    conn.close()
    assert proxy.requests[0].head == b"CONNECT origin.test:8080 HTTP/1.1\r\nHost: origin.test:8080\r\n\r\n"


def test_subclass_may_open_the_tunnel_itself(client: Client, scripted_server: ServerFactory) -> None:
    class Pinned(client.HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.create_connection((self.host, self.port), BOUND)
            if self._tunnel_host:
                self._tunnel()

    proxy = scripted_server([ExpectHead("CONNECT"), Respond(200), HELLO, HELLO])
    direct = scripted_server([HELLO])
    conn = Pinned(proxy.host, proxy.port, timeout=BOUND)
    conn.set_tunnel("origin.test", 8080)
    assert ask(conn).read() == b"hello"
    assert ask(conn).read() == b"hello"
    conn.close()
    assert proxy.accepted == 1
    assert proxy.requests[1].head.count(b"Host: origin.test:8080") == 1
    conn = Pinned(direct.host, direct.port, timeout=BOUND)
    assert ask(conn).read() == b"hello"
    conn.close()


def test_tunnel_that_a_subclass_opens_and_that_is_refused_closes_its_connection(scripted_server: ServerFactory) -> None:
    class Pinned(httplib.HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.create_connection((self.host, self.port), BOUND)
            self._tunnel()

    proxy = scripted_server([ExpectHead("CONNECT"), Respond(407, body=b"no"), KeepOpen()])
    conn = Pinned(proxy.host, proxy.port, timeout=BOUND)
    with pytest.raises(httplib.NotConnected, match="no tunnel"):
        conn._tunnel()
    conn.set_tunnel("origin.test", 8080)
    with pytest.raises(pooledhttp.TunnelError):
        conn.request("GET", "/")
    assert conn.sock is None
    assert conn.state.name == "CLOSED"


def test_response_of_ours_is_no_instance_of_theirs() -> None:
    response = begun(httplib)
    assert not isinstance(response, http.client.HTTPResponse)
    assert isinstance(response, io.BufferedIOBase)
    response.close()
    assert not isinstance(httplib.HTTPConnection("origin.test"), http.client.HTTPConnection)


def test_names_of_our_own_are_there() -> None:
    conn = httplib.HTTPConnection("origin.test")
    assert conn.state.name == "CLOSED"
    assert not conn.drain()
    assert conn.staleness() is not None
    conn.bound(timeouts=pooledhttp.Timeout(read=1), limits=pooledhttp.Limits(fields=1000))


# --- programs: the standard library's own users -----------------------------------------------------------------------


def opener_of(client: Client) -> urllib.request.OpenerDirector:
    class Handler(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> Any:
            return self.do_open(client.HTTPConnection, req)

    class TLSHandler(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> Any:
            return self.do_open(client.HTTPSConnection, req, context=client_context())

    return urllib.request.build_opener(urllib.request.ProxyHandler({}), Handler, TLSHandler)


@pytest.mark.parametrize("size", [0, 5, 3_000_000], ids=str)
@pytest.mark.parametrize("framing", ["length", "chunked", "close", "end"])
def test_urllib_reads_an_answer(client: Client, scripted_server: ServerFactory, framing: str, size: int) -> None:
    body = b"x" * size
    answer = Respond(
        body=body,
        headers=[("X-A", "b")],
        chunked=framing == "chunked",
        close=framing == "close",
        length=framing != "end",
    )
    server = scripted_server([ExpectHead(), answer, KeepOpen()])
    with opener_of(client).open(f"{server.url}/first", timeout=BOUND) as response:
        assert (response.status, response.msg, response.reason) == (200, "OK", "OK")
        assert response.url == f"{server.url}/first"
        assert response.headers["X-A"] == "b"
        assert response.info().get_content_type() == "text/plain"
        assert response.read() == body
    assert server.requests[0].field("Connection") == "close"


def test_urllib_reads_an_answer_over_tls_that_is_kept_alive(client: Client, scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(), Respond(body=b"hello"), KeepOpen()], ssl_context=server_context())
    with opener_of(client).open(f"{server.url}/first", timeout=BOUND) as response:
        assert response.read() == b"hello"


def test_urllib_does_not_read_an_answer(client: Client, scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(), Respond(body=b"x" * 1_000_000), KeepOpen()])
    opener_of(client).open(f"{server.url}/first", timeout=BOUND).close()
    assert server.peer().ended.wait(BOUND)  # so the socket is closed, without a byte being read


@pytest.mark.parametrize("close", [False, True], ids=["kept alive", "closed"])
def test_urllib_raises_an_error_status_with_its_body(
    client: Client, scripted_server: ServerFactory, close: bool
) -> None:
    server = scripted_server([ExpectHead(), Respond(404, body=b"no parrot", close=close), KeepOpen()])
    with pytest.raises(urllib.error.HTTPError, match="404: Not Found") as caught:
        opener_of(client).open(f"{server.url}/first", timeout=BOUND)
    with caught.value as answer:
        assert answer.read() == b"no parrot"


def test_urllib_follows_a_redirect(client: Client, scripted_server: ServerFactory) -> None:
    def respond(request: ReceivedRequest) -> bytes:
        if request.target == "/first":
            return Respond(302, headers=[("Location", "/second")], close=True).encode()
        return Respond(body=b"there", close=True).encode()

    server = scripted_server(default=keep_alive_script(respond))
    with opener_of(client).open(f"{server.url}/first", timeout=BOUND) as response:
        assert (response.geturl(), response.read()) == (f"{server.url}/second", b"there")


@pytest.mark.parametrize("data", [b"a=b", [b"a=", b"b"], io.BytesIO(b"a=b")], ids=["bytes", "list", "file"])
def test_urllib_sends_a_body(client: Client, server: ScriptedServer, data: Any) -> None:
    if isinstance(data, io.BytesIO):
        data.seek(0)
    request = urllib.request.Request(f"{server.url}/first", data=data, method="PUT")
    with opener_of(client).open(request, timeout=BOUND) as response:
        assert response.read() == b"hello"
    assert server.requests[0].body == b"a=b"


def test_urllib_reads_through_a_tunnel(client: Client, scripted_server: ServerFactory) -> None:
    proxy = scripted_server([ExpectHead("CONNECT"), Send(OK + b"\r\n"), StartTLS(server_context()), ExpectHead(),
                             Respond(body=b"hello", close=True)])  # fmt: skip
    opener = opener_of(client)
    opener.add_handler(urllib.request.ProxyHandler({"https": proxy.url}))
    with opener.open("https://localhost/first", timeout=BOUND) as response:
        assert response.read() == b"hello"
    assert [request.target for request in proxy.requests] == ["localhost:443", "/first"]


def test_urllib_takes_a_server_that_went_away_for_a_urlerror(client: Client, scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(), Close()])
    with pytest.raises(http.client.RemoteDisconnected):
        opener_of(client).open(f"{server.url}/first", timeout=BOUND)
    server.close()
    with pytest.raises(urllib.error.URLError, match="refused"):
        opener_of(client).open(f"{server.url}/first", timeout=BOUND)


def test_urllib_keeps_cookies(client: Client, scripted_server: ServerFactory) -> None:
    fields = [("Set-Cookie", "a=1; Path=/"), ("Set-Cookie", "b=2; Path=/")]
    server = scripted_server(default=[ExpectHead(), Respond(headers=fields, body=b"hello", close=True)])
    opener = opener_of(client)
    jar = http.cookiejar.CookieJar()
    opener.add_handler(urllib.request.HTTPCookieProcessor(jar))
    for _ in range(2):
        with opener.open(f"{server.url}/first", timeout=BOUND) as response:
            assert response.read() == b"hello"
    assert {cookie.name: cookie.value for cookie in jar} == {"a": "1", "b": "2"}
    assert [request.field("Cookie") for request in server.requests] == [None, "a=1; b=2"]


def test_cookies_are_extracted_from_a_response(client: Client, scripted_server: ServerFactory) -> None:
    answer = Respond(headers=[("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")], body=b"hello")
    server = scripted_server([ExpectHead(), answer])
    jar = http.cookiejar.CookieJar()
    with contextlib.closing(connection_to(client, server)) as conn, ask(conn) as response:
        jar.extract_cookies(response, urllib.request.Request(f"{server.url}/first"))
        response.read()
    assert sorted(cookie.name for cookie in jar) == ["a", "b"]


class RPCTransport(xmlrpc.client.Transport):
    """The documented place to change the connection."""

    client: Client = None
    made: Any = None

    def make_connection(self, host: Any) -> Any:
        if self._connection and host == self._connection[0]:
            return self._connection[1]
        chost, self._extra_headers, _ = self.get_host_info(host)
        self.made = self.client.HTTPConnection(chost, timeout=BOUND)
        self._connection = host, self.made
        return self.made


def answer_calls(request: ReceivedRequest) -> bytes:
    (first, *_), name = xmlrpc.client.loads(request.body)
    if name == "fail":
        body = xmlrpc.client.dumps(xmlrpc.client.Fault(7, "failed"))
    else:
        body = xmlrpc.client.dumps((first,), methodresponse=True)
    if name == "refuse":
        return Respond(503, body=b"not now").encode()
    if name == "zip":
        return Respond(body=gzip.compress(body.encode()), headers=[("Content-Encoding", "gzip")]).encode()
    return Respond(body=body.encode(), headers=[("Content-Type", "text/xml")], chunked=name == "chunk").encode()


def test_xmlrpc_calls_over_one_connection(client: Client, scripted_server: ServerFactory) -> None:
    server = scripted_server(default=keep_alive_script(answer_calls))
    transport = RPCTransport()
    transport.client = client
    with xmlrpc.client.ServerProxy(server.url, transport) as proxy:
        for name in ("echo", "zip", "chunk"):
            assert getattr(proxy, name)("x" * 5000) == "x" * 5000
        with pytest.raises(xmlrpc.client.Fault, match="failed"):
            proxy.fail(1)
        with pytest.raises(xmlrpc.client.ProtocolError, match="503"):
            proxy.refuse(1)
        assert proxy.echo("again") == "again"
    assert transport.made.sock is None
    assert server.accepted == 1


def test_xmlrpc_calls_again_when_its_idle_connection_has_died(client: Client, scripted_server: ServerFactory) -> None:
    once: list[Callable[[Peer], None]]
    once = [ExpectHead(), lambda peer: peer.send(answer_calls(peer.requests[-1])), Close()]
    server = scripted_server(default=once)
    transport = RPCTransport()
    transport.client = client
    with xmlrpc.client.ServerProxy(server.url, transport) as proxy:
        assert proxy.echo("first") == "first"
        assert server.peer().ended.wait(BOUND)
        assert proxy.echo("again") == "again"


# The handler drops the response and never closes its connection, so collecting its socket is a ResourceWarning.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_log_records_are_sent(client: Client, scripted_server: ServerFactory, method: str) -> None:
    class Handler(logging.handlers.HTTPHandler):
        def getConnection(self, host: str, secure: bool) -> Any:  # noqa: N802  # the documented name
            return client.HTTPConnection(host, timeout=BOUND)

        def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # as above
            raise  # noqa: PLE0704  # called while the error is handled

    server = scripted_server(default=[ExpectHead(), Respond(body=b"hello", close=True)])
    handler = Handler(f"{server.host}:{server.port}", "/log", method=method, credentials=("user", "pw"))
    for text in ("one", "caf\xe9"):
        handler.emit(logging.LogRecord("a", logging.INFO, "file", 1, text, (), None))
    server.wait_until(lambda: len(server.requests) == 2)
    for request, text in zip(server.requests, ("one", "caf\xe9"), strict=True):
        form = request.body.decode() if method == "POST" else urllib.parse.urlsplit(request.target).query
        assert urllib.parse.parse_qs(form)["msg"] == [text]
        assert str(request.field("Authorization")).startswith("Basic ")


# --- programs: readers of the response --------------------------------------------------------------------------------


def reply(client: Client, scripted_server: ServerFactory, body: bytes, framing: str = "length",
          headers: Iterable[tuple[str, str]] = ()) -> tuple[Any, Any]:  # fmt: skip
    """Return a connection and the response that gives this body."""
    answer = Respond(body=body, headers=tuple(headers), chunked=framing == "chunked", length=framing != "end")
    server = scripted_server([ExpectHead(), answer], default=[HELLO])
    conn = connection_to(client, server)
    return conn, ask(conn)


framings = pytest.mark.parametrize("framing", ["length", "chunked", "end"])
TABLE = 'name,value\r\na,"1\r\n2"\r\nb,caf\xe9\r\n'


def tar_of(files: dict[str, bytes], mode: Any) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


FILES = {"a": b"x" * 100_000, "b": b"two"}


def read_tar(response: Any, mode: Any) -> dict[str, bytes]:
    with tarfile.open(fileobj=response, mode=mode) as archive:
        return {entry.name: content.read() for entry in archive if (content := archive.extractfile(entry)) is not None}


def copied(response: Any) -> bytes:
    target = io.BytesIO()
    shutil.copyfileobj(response, target, 1000)
    return target.getvalue()


def by_csv(response: Any) -> list[list[str]]:
    with io.TextIOWrapper(response, encoding="utf-8", newline="") as text:
        return list(csv.reader(text))


def by_gzip_lines(response: Any) -> list[str]:
    with gzip.open(response, "rt") as text:
        return list(text)


def by_codecs(response: Any) -> str:
    return codecs.getreader("utf-8")(response).read()


READERS: dict[str, tuple[Callable[[Any], object], bytes, object]] = {
    "json.load": (json.load, b'{"a": [1, 2]}', {"a": [1, 2]}),
    "TextIOWrapper": (lambda response: list(io.TextIOWrapper(response, "utf-8")), "caf\xe9\nb".encode(), ["caf\xe9\n",
                                                                                                       "b"]),
    "csv": (by_csv, TABLE.encode(), [["name", "value"], ["a", "1\r\n2"], ["b", "caf\xe9"]]),
    "codecs": (by_codecs, "caf\xe9".encode(), "caf\xe9"),
    "copyfileobj": (copied, b"x" * 70_000, b"x" * 70_000),
    "GzipFile": (lambda response: gzip.GzipFile(fileobj=response).read(), gzip.compress(b"x" * 99_999), b"x" * 99_999),
    "gzip lines": (by_gzip_lines, gzip.compress(b"a\nb"), ["a\n", "b"]),
    "tarfile": (lambda response: read_tar(response, "r|"), tar_of(FILES, "w"), FILES),
    "tarfile of gzip": (lambda response: read_tar(response, "r|gz"), tar_of(FILES, "w:gz"), FILES),
    "BufferedReader": (lambda response: io.BufferedReader(response).peek(1)[:1], b"hello", b"h"),
    "pickle.load": (pickle.load, pickle.dumps({"a": [1] * 5000}), {"a": [1] * 5000}),
    "file_digest": (lambda response: hashlib.file_digest(response, "sha256").digest(), b"hello",
                    hashlib.sha256(b"hello").digest()),
    "ElementTree": (lambda response: ET.parse(response).getroot().tag, b"<a><b/></a>", "a"),
    "iterparse": (lambda response: [node.tag for _, node in ET.iterparse(response)], b"<a><b/></a>", ["b", "a"]),
    "readlines": (lambda response: response.readlines(), b"a\nb\n", [b"a\n", b"b\n"]),
    "iter of read": (lambda response: list(iter(functools.partial(response.read, 2), b"")), b"hello",
                     [b"he", b"ll", b"o"]),
}  # fmt: skip


@framings
@pytest.mark.parametrize("reader", READERS)
def test_reader_reads_a_response(client: Client, scripted_server: ServerFactory, reader: str, framing: str) -> None:
    read, body, expected = READERS[reader]
    conn, response = reply(client, scripted_server, body, framing)
    assert read(response) == expected
    response.close()
    conn.close()


def test_connection_serves_again_after_a_reader(client: Client, scripted_server: ServerFactory) -> None:
    server = scripted_server(default=[Repeat([ExpectHead(), Respond(body=b'{"a": 1}')])])
    with contextlib.closing(connection_to(client, server)) as conn:
        for _ in range(3):
            with ask(conn) as response, io.TextIOWrapper(response, "utf-8") as text:
                assert json.load(text) == {"a": 1}
    assert server.accepted == 1


def test_message_is_that_of_the_email_package(client: Client, scripted_server: ServerFactory) -> None:
    fields = [("Content-Type", 'text/html; charset="latin-1"'), ("X-A", "1"), ("X-A", "2"), ("Date", "caf\xe9")]
    conn, response = reply(client, scripted_server, b"hello", headers=fields)
    message = response.msg
    assert isinstance(message, email.message.Message)
    assert (message.get_content_type(), message.get_content_charset()) == ("text/html", "latin-1")
    assert (message.get_params(), message["x-a"]) == ([("text/html", ""), ("charset", "latin-1")], "1")
    assert (message.get_all("X-A"), message.get("none", 5), "DATE" in message) == (["1", "2"], 5, True)
    assert message.items() == response.getheaders() == [*fields, ("Content-Length", "5")]
    assert email.message_from_string(str(message)).get_all("X-A") == ["1", "2"]
    assert copy.deepcopy(message).items() == message.items()
    assert dict(message)["X-A"] == "1"
    response.read()
    conn.close()


# --- programs: habits of others ---------------------------------------------------------------------------------------


def test_connection_is_closed_by_closing(client: Client, server: ScriptedServer) -> None:
    with contextlib.closing(connection_to(client, server)) as conn:
        assert ask(conn).read() == b"hello"
        sock = conn.sock
    assert sock.fileno() == -1
    assert conn.sock is None


def test_certificate_of_the_peer_is_read_from_the_socket(client: Client, scripted_server: ServerFactory) -> None:
    server = scripted_server(default=[HELLO], ssl_context=server_context())
    conn = connection_to(client, server, "HTTPSConnection", context=client_context())
    conn.connect()
    assert ("DNS", "localhost") in conn.sock.getpeercert()["subjectAltName"]
    assert conn.sock.version().startswith("TLS")
    assert len(conn.sock.getpeercert(binary_form=True)) > 100
    assert conn.sock.getpeername() == server.address
    finish(conn)


def test_certificate_is_verified_by_default(client: Client, scripted_server: ServerFactory) -> None:
    server = scripted_server(default=[HELLO], ssl_context=server_context())
    conn = connection_to(client, server, "HTTPSConnection")
    with pytest.raises(ssl.SSLCertVerificationError):
        conn.request("GET", "/")
    conn.close()


def test_default_context_offers_http_1_1(client: Client, scripted_server: ServerFactory, tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    authority().cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = server_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    server = scripted_server(default=[HELLO], ssl_context=context)
    conn = connection_to(client, server, "HTTPSConnection")
    conn.connect()
    assert conn.sock.selected_alpn_protocol() == "http/1.1"
    finish(conn)


def test_timeout_may_be_set_on_the_socket(client: Client, scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(), KeepOpen()])
    conn = connection_to(client, server)
    conn.connect()
    assert conn.sock.gettimeout() == BOUND
    conn.sock.settimeout(0.05)
    conn.request("GET", "/")
    with pytest.raises(TimeoutError):
        conn.getresponse()
    conn.close()


def test_socket_of_ones_own_is_used(client: Client, server: ScriptedServer) -> None:
    conn = client.HTTPConnection("origin.test")
    conn.sock = socket.create_connection(server.address, timeout=BOUND)
    assert ask(conn).read() == b"hello"
    conn.close()
    assert server.requests[0].field("Host") == "origin.test"


def test_socket_with_few_methods_is_used(client: Client) -> None:
    conn = client.HTTPConnection("origin.test")
    conn.sock = sock = Answer()
    assert ask(conn, "POST", body=b"one").read() == b"ok"
    conn.close()
    assert sock.sent.endswith(b"\r\n\r\none")
    assert sock.is_closed


def test_connection_to_a_unix_socket(client: Client, scripted_server: ServerFactory, tmp_path: Path) -> None:
    class UnixHTTPConnection(client.HTTPConnection):
        def __init__(self, path: str, timeout: float) -> None:
            super().__init__("localhost", timeout=timeout)
            self.path = path

        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(self.timeout)
            self.sock.connect(self.path)

    server = scripted_server(default=[HELLO], uds=str(tmp_path / "s"))
    conn = UnixHTTPConnection(str(tmp_path / "s"), BOUND)
    assert ask(conn, "POST", body=iter([b"one"])).read() == b"hello"
    conn.close()
    conn.connect()
    finish(conn)
    assert server.requests[0].field("Host") == "localhost"
    assert server.requests[0].body == b"one"


def test_subclass_may_wrap_the_socket_after_connecting(client: Client, scripted_server: ServerFactory) -> None:
    class Late(client.HTTPConnection):
        sock: Any

        def connect(self) -> None:
            super().connect()
            plain: socket.socket = self.sock
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sock = client_context().wrap_socket(plain, server_hostname="localhost")

    server = scripted_server(default=[HELLO], ssl_context=server_context())
    conn = Late(server.host, server.port, timeout=BOUND)
    assert ask(conn).read() == b"hello"
    finish(conn)


def test_subclass_may_make_the_connection_itself(client: Client, server: ScriptedServer) -> None:
    class Named(client.HTTPConnection):
        def connect(self) -> None:
            self.sock = self._create_connection(server.address, self.timeout, self.source_address)

    conn = Named("origin.test", timeout=BOUND)
    finish(conn)
    assert server.requests[0].field("Host") == "origin.test"


def test_subclass_sees_every_step_of_a_request(client: Client, server: ScriptedServer) -> None:
    class Seen(client.HTTPConnection):
        steps: list[str] = []  # noqa: RUF012  # one instance

        def putrequest(self, method: str, url: str, *args: Any, **kwargs: Any) -> None:
            self.steps.append(f"{method} {url}")
            super().putrequest(method, "/v1" + url, *args, **kwargs)

        def putheader(self, header: str, *values: Any) -> None:
            self.steps.append(header)
            super().putheader(header, *values)

        def endheaders(self, message_body: Any = None, **kwargs: Any) -> None:
            self.steps.append("end")
            super().putheader("X-Signed", "yes")
            super().endheaders(message_body, **kwargs)

        def getresponse(self) -> Any:
            self.steps.append("response")
            response = super().getresponse()
            response.seen = True
            return response

    conn = Seen(server.host, server.port, timeout=BOUND)
    response = ask(conn, "POST", "/first", body="one", headers={"X-A": "b"})
    assert (response.read(), response.seen) == (b"hello", True)
    conn.close()
    steps = [step for step in Seen.steps if step not in ("Host", "Accept-Encoding")]  # nor are those in both
    assert steps == ["POST /first", "Content-Length", "X-A", "end", "response"]
    request = server.requests[0]
    assert (request.target, request.field("X-Signed"), request.body) == ("/v1/first", "yes", b"one")


def test_subclass_that_overrides_request_is_asked(client: Client, server: ScriptedServer) -> None:
    class Authorized(client.HTTPConnection):
        def request(self, method: str, url: str, body: Any = None, headers: Any = (), **kwargs: Any) -> None:
            super().request(method, url, body, {**dict(headers), "X-Key": "k"}, **kwargs)

    conn = Authorized(server.host, server.port, timeout=BOUND)
    finish(conn)
    assert server.requests[0].field("X-Key") == "k"


@pytest.mark.parametrize("body", [None, b"one", iter([b"one", b"two"])], ids=["none", "bytes", "iterator"])
def test_subclass_that_overrides_send_sees_every_byte(client: Client, server: ScriptedServer, body: Any) -> None:
    class Counting(client.HTTPConnection):
        sent = b""

        def send(self, data: Any) -> None:
            self.sent += bytes(data)
            super().send(data)

    body = iter([b"one", b"two"]) if body is not None and not isinstance(body, bytes) else body
    with contextlib.closing(Counting(server.host, server.port, timeout=BOUND)) as conn:
        assert ask(conn, "POST", body=body).read() == b"hello"
        assert conn.sent == server.connections[0].received
        finish(conn)
    assert server.accepted == 1


def test_response_class_may_be_replaced(client: Client, server: ScriptedServer) -> None:
    class Noting(client.HTTPResponse):
        begun = 0
        size = 0

        def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(sock, *args, **kwargs)
            self.made_with = kwargs.get("method")

        def begin(self) -> None:
            super().begin()
            self.begun += 1
            self.began_with = self.status

        def read(self, amt: int | None = None) -> bytes:
            data: bytes = super().read(amt)
            self.size += len(data)
            return data

    class Noted(client.HTTPConnection):
        response_class = Noting

    conn = Noted(server.host, server.port, timeout=BOUND)
    response = ask(conn)
    assert (response.begun, response.began_with, response.made_with) == (1, 200, "GET")
    assert (response.read(2), response.read(), response.size) == (b"he", b"llo", 5)
    assert conn.response_class is Noting
    finish(conn)
    assert server.accepted == 1


def test_response_class_may_change_what_it_began_with(client: Client, server: ScriptedServer) -> None:
    class Corrected(client.HTTPResponse):
        def begin(self) -> None:
            super().begin()
            self.status = self.code = 299
            self.reason = "Corrected"
            self.headers.add_header("X-Corrected", "yes")

    conn = connection_to(client, server)
    conn.response_class = Corrected
    response = ask(conn)
    assert (response.status, response.reason, response.getheader("X-Corrected")) == (299, "Corrected", "yes")
    assert response.read() == b"hello"
    finish(conn)


def test_header_that_is_added_to_the_message_is_seen(client: Client) -> None:
    response = begun(client)
    response.headers["X-Added"] = "yes"
    del response.msg["Content-Length"]
    assert response.getheader("X-Added") == "yes"
    assert response.getheaders() == [("X-Added", "yes")]
    response.close()


def test_switched_protocol_goes_on_over_the_socket(client: Client, scripted_server: ServerFactory) -> None:
    upgrade = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"

    def echo(peer: Peer) -> None:
        peer.send(b"echo " + peer.sock.recv(100))

    server = scripted_server([ExpectHead(), Send(upgrade), echo, KeepOpen()])
    conn = connection_to(client, server)
    response = ask(conn, headers={"Connection": "Upgrade", "Upgrade": "echo"})
    assert (response.status, response.getheader("Upgrade")) == (101, "echo")
    sock = conn.sock
    sock.sendall(b"hello")
    assert sock.recv(100) == b"echo hello"
    response.close()
    conn.close()
    assert sock.fileno() == -1


def test_connect_by_request_leaves_the_socket_to_the_caller(client: Client, scripted_server: ServerFactory) -> None:
    def echo(peer: Peer) -> None:
        peer.send(b"echo " + peer.sock.recv(100))

    proxy = scripted_server([ExpectHead("CONNECT"), Send(OK + b"\r\n"), echo, KeepOpen()])
    conn = connection_to(client, proxy)
    conn.request("CONNECT", "origin.test:443")
    sock = conn.sock
    response = conn.getresponse()
    assert response.status == 200
    sock.sendall(b"hello")
    assert sock.recv(100) == b"echo hello"
    response.close()
    conn.close()
    sock.close()


def test_host_and_port_may_be_changed_before_connecting(client: Client, server: ScriptedServer) -> None:
    conn = client.HTTPConnection("origin.test", 1, timeout=None)
    conn.host, conn.port, conn.timeout = server.host, server.port, BOUND
    finish(conn)
    assert server.requests[0].field("Host") == f"{server.host}:{server.port}"


def test_version_may_be_lowered_for_the_class(
    client: Client, scripted_server: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = scripted_server([ExpectHead(), Respond(body=b"hello", version="HTTP/1.0", close=True)])
    monkeypatch.setattr(client.HTTPConnection, "_http_vsn", 10)
    monkeypatch.setattr(client.HTTPConnection, "_http_vsn_str", "HTTP/1.0")
    assert answer_of(client, server) == (200, b"hello")
    assert server.requests[0].version == "HTTP/1.0"


def test_response_outlives_a_connection_that_was_dropped(client: Client, scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(), Respond(body=b"x" * 100_000, close=True)])

    def response_of_a_function() -> Any:
        return ask(connection_to(client, server))

    with response_of_a_function() as response:
        assert len(response.read()) == 100_000


def test_socket_that_is_taken_leaves_the_response_readable(client: Client, scripted_server: ServerFactory) -> None:
    server = scripted_server([ExpectHead(), Respond(body=b"x" * 1_000_000), KeepOpen()])
    conn = connection_to(client, server)
    response = ask(conn)
    conn.sock.close()
    conn.sock = None
    assert len(response.read()) == 1_000_000
    response.close()


@pytest.mark.parametrize(("answer", "error"), [
    (b"", "RemoteDisconnected"),
    (b"hello\r\n\r\n", "BadStatusLine"),
    (OK + b"X: " + b"y" * 70_000 + b"\r\n\r\n", "LineTooLong"),
    (OK + b"Content-Length: 9\r\n\r\nhello", "IncompleteRead"),
    (OK + b"Transfer-Encoding: chunked\r\n\r\n9\r\nhello", "IncompleteRead"),
    (OK + b"Transfer-Encoding: chunked\r\n\r\nz\r\nhello", "IncompleteRead"),
    (OK + b"X: y\r\n" * 200 + b"\r\n", "HTTPException"),
])  # fmt: skip
def test_handlers_of_errors_go_on_catching(
    client: Client, scripted_server: ServerFactory, answer: bytes, error: str
) -> None:
    server = replying(scripted_server, answer)
    for kind in (getattr(http.client, error), http.client.HTTPException):
        server._scripts = ([ExpectHead(), Send(answer), HalfClose(), KeepOpen()],) * (server.accepted + 1)
        with pytest.raises(kind):
            answer_of(client, server)


ERRORS: list[Exception] = [
    httplib.HTTPException("a"),
    httplib.NotConnected(),
    httplib.InvalidURL("a"),
    httplib.UnknownProtocol("a"),
    httplib.IncompleteRead(b"a", 2),
    httplib.CannotSendRequest("a"),
    httplib.ResponseNotReady("a"),
    httplib.BadStatusLine("a"),
    httplib.RemoteDisconnected("a"),
    httplib.UnreadResponse("a"),
    httplib.IllegalKeywordArgument("a"),
    pooledhttp.InvalidChunk("a"),
    pooledhttp.TunnelError("a", status=403, body=b"b"),
    pooledhttp.ReadTimeout("a"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_can_be_pickled_and_copied(error: Exception) -> None:
    for made in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(made) is type(error)
        assert str(made) == str(error)
        assert vars(made) == vars(error)


def test_headers_can_be_pickled(client: Client) -> None:
    response = begun(client)
    assert pickle.loads(pickle.dumps(response.headers)).items() == response.getheaders()
    response.close()
