"""The same bytes to us, to `http.client` and to llhttp (by `httptools`), and what each makes of them.

The rule that has no gap: what we accept *and* keep the connection after, llhttp accepts with the same body, and would
keep the connection too.  Against `http.client`: where both accept, they say the same.  Every exception from either is
an entry of `allowed_differences.toml` with its reason and examples; one that shows no difference any more fails.

For a longer search see `tests/responses.py`.
"""

from __future__ import annotations

import http.client
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import httptools
import pytest
from hypothesis import event, given
from hypothesis import example as with_example

from pooledhttp import HTTPConnection, HTTPException
from pooledhttp.states import State
from pooledhttp.testing import ResourceAudit
from tests.responses import (
    End,
    ForeignSocket,
    PlayedOrigin,
    PlayedSocket,
    any_responses,
    bounded,
    connection_to,
    messages,
    mutated_responses,
    odd_responses,
    pool_to,
    segment_sizes,
    segmented,
)

pytestmark = pytest.mark.unmeasured

ALLOWED_ERRORS = (HTTPException, OSError, ValueError)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Look at descriptors and threads after all examples of a test: `audit` would be asked for by each of them."""
    with ResourceAudit():
        yield


def split(wire: bytes) -> tuple[bytes, bytes, bytes]:
    """Split into the interim heads, the final head, and what is behind them."""
    start = 0
    while blank := re.compile(rb"\n\r?\n").search(wire, start):
        if not re.compile(rb"HTTP/1\.[01] 1(?!01)").match(wire, start):
            return wire[:start], wire[start : blank.end()], wire[blank.end() :]
        start = blank.end()
    return wire[:start], b"", wire[start:]


# --- verdicts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a reader makes of a response.

    Attributes:
        version: 10 or 11.
        status: The status code.
        reason: The reason phrase, stripped.
        headers: Names and values; the values stripped.
        body: The body.
        reuse: Whether the connection would serve another request.
    """

    version: int
    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    reuse: bool


def differences(one: Verdict, other: Verdict) -> set[str]:
    return {part.name for part in fields(Verdict) if getattr(one, part.name) != getattr(other, part.name)}


def stripped(headers: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((name, value.strip(" \t")) for name, value in headers)


def ours(method: str, wire: bytes, sizes: list[int] | None = None) -> Verdict | None:
    """Read by `getresponse` and `read`; ``None`` for an error."""
    sock = PlayedSocket(segmented(wire, sizes), End.EOF)
    with PlayedOrigin(sock) as origin:
        conn = connection_to(origin)
        conn.request(method, "/")
        try:
            response = conn.getresponse()
            body = response.read()
        except ALLOWED_ERRORS:
            assert conn.state is State.CLOSED
            return None
        has_switched = response.status == 101 or (method == "CONNECT" and response.status < 300)
        assert conn.state in ({State.UNREAD_RESPONSE} if has_switched else {State.IDLE, State.CLOSED})
        is_idle = conn.state is State.IDLE and not sock.unreceived
        conn.close()
        return Verdict(
            version=response.version,
            status=response.status,
            reason=response.reason,
            headers=tuple(response.getheaders()),
            body=body,
            reuse=is_idle,
        )


def ours_by_pool(method: str, wire: bytes, sizes: list[int] | None = None) -> Verdict | None:
    """Read by `ConnectionPool.request`; ``None`` for an error."""
    sock = PlayedSocket(segmented(wire, sizes), End.EOF)
    with PlayedOrigin(sock) as origin, pool_to(origin) as pool:
        try:
            response = pool.request(method, "/")
        except ALLOWED_ERRORS:
            assert pool.stats().idle == 0
            return None
        return Verdict(
            version=response.version,
            status=response.status,
            reason=response.reason,
            headers=tuple(response.getheaders()),
            body=response.data,
            reuse=pool.stats().idle == 1 and not sock.unreceived,
        )


def ours_by_file(method: str, wire: bytes) -> Verdict | None:
    """Read from a socket that has only ``makefile``; ``None`` for an error."""
    sock = ForeignSocket(wire)
    conn = HTTPConnection("peer.test")
    conn.sock = sock
    conn.request(method, "/")
    try:
        response = conn.getresponse()
        body = response.read()
    except ALLOWED_ERRORS:
        assert conn.state is State.CLOSED
        return None
    is_idle = conn.state is State.IDLE and sock.file.tell() == len(wire)
    conn.close()
    return Verdict(
        version=response.version,
        status=response.status,
        reason=response.reason,
        headers=tuple(response.getheaders()),
        body=body,
        reuse=is_idle,
    )


def theirs_of_http_client(method: str, wire: bytes) -> Verdict | None:
    """Read by `http.client` from memory, where nothing can wait; ``None`` for an error."""
    # Any: the standard library's stubs want a whole socket, and it needs no more than `makefile`.
    sock: Any = ForeignSocket(wire)
    response = http.client.HTTPResponse(sock, method=method)
    try:
        response.begin()
        body = response.read()
    except (*ALLOWED_ERRORS, OverflowError):  # a length that no computer has
        return None
    finally:
        response.close()
    return Verdict(
        version=response.version,
        status=response.status,
        reason=response.reason,
        headers=stripped(response.getheaders()),
        body=body,
        reuse=not response.will_close,
    )


class LlhttpReader:
    """Reads by llhttp up to the end of the final message.

    Attributes:
        verdict: What it makes of it; ``None`` while it is not complete.
        fault: Its error, or ``None``.
    """

    def __init__(self, wire: bytes) -> None:
        self.verdict: Verdict | None = None
        self.fault: Exception | None = None
        self._messages = 0
        self._begin()
        self._parser = httptools.HttpResponseParser(self)
        try:
            self._parser.feed_data(wire)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError as fault:
            self.fault = fault

    def _begin(self) -> None:
        self._reason = b""
        self._headers: list[tuple[str, str]] = []
        self._body = b""
        self._is_head = True

    def on_message_begin(self) -> None:
        self._messages += 1
        self._begin()

    def on_status(self, status: bytes) -> None:
        self._reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_head:  # else it is a trailer
            self._headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        self._is_head = False

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if self.verdict is None and (status >= 200 or status == 101):
            self.verdict = Verdict(
                version={"1.0": 10, "1.1": 11}.get(self._parser.get_http_version(), 0),
                status=status,
                reason=self._reason.decode("latin-1").strip(),
                headers=stripped(self._headers),
                body=self._body,
                reuse=self._parser.should_keep_alive(),
            )


def theirs_of_llhttp(method: str, wire: bytes, status: int) -> Verdict | None:
    """Read all of it by llhttp; ``None`` for an error, a message that is not complete, or bytes behind it."""
    if method == "HEAD":
        # It cannot be told the method.  A 304 has no body either.
        interim, final, body = split(wire)
        wire = interim + re.sub(rb"\A(HTTP/1\.[01]) [0-9]+", rb"\1 304", final) + body
    reader = LlhttpReader(wire)
    if reader.fault is not None or reader.verdict is None:
        return None
    return replace(reader.verdict, status=status) if method == "HEAD" else reader.verdict


# --- the list of what may differ --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An entry of the list; the file says what each key means."""

    name: str
    against: str
    reason: str
    differs: frozenset[str]
    examples: tuple[bytes, ...]
    in_heads: re.Pattern[bytes] | None = None
    in_body: re.Pattern[bytes] | None = None
    method: str | None = None

    def covers(self, method: str, wire: bytes) -> bool:
        interim, final, body = split(wire)
        return (
            self.method in {None, method}
            and (self.in_heads is None or self.in_heads.search(interim + final) is not None)
            and (self.in_body is None or self.in_body.search(body) is not None)
        )


PARTS = {part.name for part in fields(Verdict)}


def read_list() -> list[Difference]:
    listed = tomllib.loads((Path(__file__).parent / "allowed_differences.toml").read_text(encoding="utf-8"))
    return [
        Difference(
            name=entry["name"],
            against=entry["against"],
            reason=entry["reason"],
            differs=frozenset(entry["differs"]),
            examples=tuple(example.encode("latin-1") for example in entry["examples"]),
            in_heads=pattern(entry.get("in_heads")),
            in_body=pattern(entry.get("in_body")),
            method=entry.get("method"),
        )
        for entry in listed["difference"]
    ]


def pattern(text: str | None) -> re.Pattern[bytes] | None:
    return None if text is None else re.compile(text.encode("latin-1"), re.IGNORECASE | re.MULTILINE)


LIST = read_list()


def allowed(against: str, method: str, wire: bytes) -> set[str]:
    """What may differ for this input."""
    return {part for entry in LIST if entry.against == against and entry.covers(method, wire) for part in entry.differs}


def differs_from_llhttp(method: str, wire: bytes, verdict: Verdict) -> set[str]:
    """How llhttp's opinion differs on something that we accept and keep the connection after."""
    assert verdict.reuse
    theirs = theirs_of_llhttp(method, wire, verdict.status)
    return {"verdict"} if theirs is None else differences(verdict, theirs)


def differs_from_http_client(method: str, wire: bytes, verdict: Verdict) -> set[str]:
    """How the opinion of http.client differs on something that both accept."""
    theirs = theirs_of_http_client(method, wire)
    if theirs is None:
        return set()
    found = differences(verdict, theirs)
    return found - {"reuse"} if theirs.reuse else found  # to close where others go on is always safe


def check_against_both(method: str, wire: bytes) -> str:
    """Check one response; return what became of it."""
    verdict = ours(method, wire)
    if verdict is None:
        return "refused"
    if verdict.reuse:
        found = differs_from_llhttp(method, wire, verdict)
        assert found <= allowed("llhttp", method, wire), ("llhttp", found)
    found = differs_from_http_client(method, wire, verdict)
    assert found <= allowed("http.client", method, wire), ("http.client", found)
    return "accepted and kept" if verdict.reuse else "accepted"


@pytest.mark.parametrize("entry", LIST, ids=lambda entry: entry.name)
def test_listed_difference_is_still_there(entry: Difference) -> None:
    assert entry.reason.strip()
    assert entry.differs <= {"verdict", *PARTS}
    differ = {"llhttp": differs_from_llhttp, "http.client": differs_from_http_client}[entry.against]
    found = set()
    for example in entry.examples:
        method = entry.method or "GET"
        assert entry.covers(method, example), "the example is none of the inputs that the entry is about"
        verdict = ours(method, example)
        assert verdict is not None, "we refuse the example, so there is nothing to be excused"
        differing = differ(method, example, verdict)
        assert differing, "the example shows no difference any more: strike it, or the entry"
        found |= differing
    assert found == entry.differs


def test_names_of_the_listed_differences_are_names_of_one_each() -> None:
    assert len({(entry.against, entry.name) for entry in LIST}) == len(LIST)


# --- the differential properties --------------------------------------------------------------------------------------


@bounded(300)
@given(odd_responses())
def test_odd_responses_are_read_as_others_read_them(asked: tuple[str, bytes]) -> None:
    event(check_against_both(*asked))


@bounded(300)
@given(mutated_responses())
def test_damaged_responses_are_read_as_others_read_them(asked: tuple[str, bytes]) -> None:
    event(check_against_both(*asked))


@bounded(250)
@given(messages().map(lambda message: (message.method, message.encode())))
def test_good_responses_are_read_as_others_read_them(asked: tuple[str, bytes]) -> None:
    event(check_against_both(*asked))


@bounded(300)
@given(any_responses, segment_sizes)
@with_example(("GET", b"HTTP/1.1 100 C\r\n\r\n"), None)
def test_all_our_own_ways_read_the_same(asked: tuple[str, bytes], sizes: list[int] | None) -> None:
    """`ConnectionPool.request` has a path of its own for the usual response, and so has a socket with only a file."""
    method, wire = asked
    whole = ours(method, wire)
    assert ours_by_pool(method, wire) == whole
    assert ours_by_pool(method, wire, sizes) == ours(method, wire, sizes) == whole
    assert ours_by_file(method, wire) == whole


# --- a corpus, and what we make of it ---------------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
LENGTH = OK + b"Content-Length: 5\r\n"
HELLO = b"5\r\nhello\r\n0\r\n\r\n"
KEEP, CLOSE = True, False

Expected = tuple[int, bytes, bool]
# Status, body, and whether the connection is kept; `None` for an error.
CORPUS: dict[str, tuple[bytes, Expected | None]] = {
    # the status line
    "usual": (LENGTH + b"\r\nhello", (200, b"hello", KEEP)),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", (200, b"", KEEP)),
    "empty reason": (b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", (200, b"", KEEP)),
    "reason outside ASCII": (b"HTTP/1.1 200 \xe4\xff\r\nContent-Length: 0\r\n\r\n", (200, b"", KEEP)),
    "NUL in the reason": (b"HTTP/1.1 200 O\0K\r\nContent-Length: 0\r\n\r\n", None),
    "bare CR in the reason": (b"HTTP/1.1 200 O\rK\r\nContent-Length: 0\r\n\r\n", None),
    "status of four digits": (b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n", None),
    "status of two digits": (b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n", None),
    "status with a sign": (b"HTTP/1.1 +20 OK\r\nContent-Length: 0\r\n\r\n", None),
    "status below 100": (b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n", None),
    "highest status": (b"HTTP/1.1 999 OK\r\nContent-Length: 0\r\n\r\n", (999, b"", KEEP)),
    "two spaces behind the version": (b"HTTP/1.1  200 OK\r\nContent-Length: 0\r\n\r\n", None),
    "tab behind the version": (b"HTTP/1.1\t200 OK\r\nContent-Length: 0\r\n\r\n", None),
    "HTTP/0.9": (b"<html>hello</html>", None),
    "HTTP/1.2": (b"HTTP/1.2 200 OK\r\nContent-Length: 0\r\n\r\n", None),
    "HTTP/2": (b"HTTP/2 200 OK\r\nContent-Length: 0\r\n\r\n", None),
    "version in lower case": (b"http/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", None),
    "other protocol": (b"ICY 200 OK\r\n\r\n", None),
    "blank line in front": (b"\r\n" + LENGTH + b"\r\nhello", None),
    "space in front": (b" " + LENGTH + b"\r\nhello", None),
    "nothing": (b"", None),
    "cut in the status line": (b"HTTP/1.1 200", None),
    "cut in the head": (LENGTH, None),
    # fields
    "bare LF everywhere": (b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", (200, b"hello", CLOSE)),
    "bare LF behind the status line": (b"HTTP/1.1 200 OK\nContent-Length: 5\r\n\r\nhello", (200, b"hello", CLOSE)),
    "bare LF behind a field": (OK + b"Content-Length: 5\n\r\nhello", (200, b"hello", CLOSE)),
    "bare LF as the blank line": (LENGTH + b"\nhello", (200, b"hello", CLOSE)),
    "bare CR in a value": (LENGTH + b"A: b\rc\r\n\r\nhello", None),
    "CR CR LF": (LENGTH + b"A: b\r\r\n\r\nhello", None),
    "NUL in a value": (LENGTH + b"A: b\0\r\n\r\nhello", None),
    "NUL in a name": (LENGTH + b"A\0: b\r\n\r\nhello", None),
    "control character in a value": (LENGTH + b"A: \x01\r\n\r\nhello", (200, b"hello", CLOSE)),
    "DEL in a value": (LENGTH + b"A: \x7f\r\n\r\nhello", (200, b"hello", CLOSE)),
    "value outside ASCII": (LENGTH + b"A: \x80\xff\r\n\r\nhello", (200, b"hello", KEEP)),
    "space in front of the colon": (LENGTH + b"A : b\r\n\r\nhello", None),
    "name that is no token": (LENGTH + b"A(: b\r\n\r\nhello", None),
    "name outside ASCII": (LENGTH + b"\xe4: b\r\n\r\nhello", None),
    "no name": (OK + b": b\r\nContent-Length: 5\r\n\r\nhello", (200, b"hello", CLOSE)),
    "no colon": (OK + b"no colon\r\nContent-Length: 5\r\n\r\nhello", (200, b"hello", CLOSE)),
    "continued line": (LENGTH + b"A: b\r\n c\r\n\r\nhello", (200, b"hello", KEEP)),
    "continued status line": (OK + b" A: b\r\nContent-Length: 5\r\n\r\nhello", (200, b"hello", CLOSE)),
    "continued length": (OK + b"Content-Length: 5\r\n 0\r\n\r\nhello", (200, b"hello", CLOSE)),
    "empty value": (LENGTH + b"A:\r\n\r\nhello", (200, b"hello", KEEP)),
    "101 fields": (LENGTH + b"A: b\r\n" * 100 + b"\r\nhello", None),
    "100 fields": (LENGTH + b"A: b\r\n" * 99 + b"\r\nhello", (200, b"hello", KEEP)),
    "line over the limit": (LENGTH + b"A: " + b"b" * 65536 + b"\r\n\r\nhello", None),
    # lengths
    "length with a sign": (OK + b"Content-Length: +5\r\n\r\nhello", (200, b"hello", CLOSE)),
    "length with an underscore": (OK + b"Content-Length: 1_0\r\n\r\nhello", (200, b"hello", CLOSE)),
    "hexadecimal length": (OK + b"Content-Length: 0x5\r\n\r\nhello", (200, b"hello", CLOSE)),
    "negative length": (OK + b"Content-Length: -1\r\n\r\nhello", (200, b"hello", CLOSE)),
    "superscript length": (OK + b"Content-Length: \xb2\r\n\r\nhello", (200, b"hello", CLOSE)),
    "empty length": (OK + b"Content-Length:\r\n\r\nhello", (200, b"hello", CLOSE)),
    "length with zeros in front": (OK + b"Content-Length: 0005\r\n\r\nhello", (200, b"hello", KEEP)),
    "length between tabs": (OK + b"Content-Length:\t5\t\r\n\r\nhello", (200, b"hello", KEEP)),
    "equal lengths": (OK + b"Content-Length: 5, 5\r\n\r\nhello", (200, b"hello", KEEP)),
    "equal lengths on two lines": (LENGTH + b"Content-Length: 5\r\n\r\nhello", (200, b"hello", KEEP)),
    "different lengths": (OK + b"Content-Length: 5, 6\r\n\r\nhello", None),
    "different lengths on two lines": (LENGTH + b"Content-Length: 6\r\n\r\nhello", None),
    "length and coding": (LENGTH + b"Transfer-Encoding: chunked\r\n\r\n" + HELLO, (200, b"hello", CLOSE)),
    "coding and length": (
        OK + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n" + HELLO,
        (200, b"hello", CLOSE),
    ),
    "short body": (LENGTH + b"\r\nhell", None),
    "promise of a terabyte": (OK + b"Content-Length: 1000000000000\r\n\r\nhello", None),
    "left-over byte": (LENGTH + b"\r\nhello!", (200, b"hello", CLOSE)),
    "left-over response": (LENGTH + b"\r\nhello" + LENGTH + b"\r\nevil!", (200, b"hello", CLOSE)),
    "left-over line end": (LENGTH + b"\r\nhello\r\n", (200, b"hello", CLOSE)),
    "to the end of the connection": (OK + b"\r\nhello", (200, b"hello", CLOSE)),
    # codings
    "chunks": (CHUNKED + HELLO, (200, b"hello", KEEP)),
    "several chunks": (CHUNKED + b"2\r\nhe\r\n003\r\nllo\r\n000\r\n\r\n", (200, b"hello", KEEP)),
    "hexadecimal size": (CHUNKED + b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", (200, b"0123456789" * 2, KEEP)),
    "gzip and chunked": (OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + HELLO, (200, b"hello", KEEP)),
    "chunked and gzip": (OK + b"Transfer-Encoding: chunked, gzip\r\n\r\nhello", (200, b"hello", CLOSE)),
    "chunked twice": (OK + b"Transfer-Encoding: chunked, chunked\r\n\r\nhello", (200, b"hello", CLOSE)),
    "gzip": (OK + b"Transfer-Encoding: gzip\r\n\r\nhello", (200, b"hello", CLOSE)),
    "almost chunked": (OK + b"Transfer-Encoding: xchunked\r\n\r\nhello", (200, b"hello", CLOSE)),
    "chunked with a parameter": (OK + b"Transfer-Encoding: chunked;a=b\r\n\r\nhello", (200, b"hello", CLOSE)),
    "vertical tab and chunked": (OK + b"Transfer-Encoding: \x0bchunked\r\n\r\nhello", (200, b"hello", CLOSE)),
    "chunks in HTTP/1.0": (
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n" + HELLO,
        (200, b"hello", CLOSE),
    ),
    # chunk framing
    "size with a sign": (CHUNKED + b"+5\r\nhello\r\n0\r\n\r\n", None),
    "size with an underscore": (CHUNKED + b"0_5\r\nhello\r\n0\r\n\r\n", None),
    "size with a prefix": (CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n", None),
    "negative size": (CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n", None),
    "empty size": (CHUNKED + b"\r\nhello\r\n0\r\n\r\n", None),
    "space in front of the size": (CHUNKED + b" 5\r\nhello\r\n0\r\n\r\n", None),
    "space behind the size": (CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n", None),
    "size of 17 digits": (CHUNKED + b"00000000000000005\r\nhello\r\n0\r\n\r\n", None),
    "size beyond all memory": (CHUNKED + b"FFFFFFFFFFFFFFFF\r\nhello", None),
    "bare LF behind a size": (CHUNKED + b"5\nhello\r\n0\r\n\r\n", None),
    "bare LF behind an extension": (CHUNKED + b"5;a\nhello\r\n0\r\n\r\n", None),
    "bare LF behind the data": (CHUNKED + b"5\r\nhello\n0\r\n\r\n", None),
    "bare LF behind the last size": (CHUNKED + b"5\r\nhello\r\n0\n\r\n", None),
    "bare LF at the end": (CHUNKED + b"5\r\nhello\r\n0\r\n\n", None),
    "bare CR in an extension": (CHUNKED + b"5;\ra\r\nhello\r\n0\r\n\r\n", None),
    "data longer than its size": (CHUNKED + b"5\r\nhello!\r\n0\r\n\r\n", None),
    "data without a line end": (CHUNKED + b"5\r\nhello0\r\n\r\n", None),
    "extensions": (CHUNKED + b'5;a;b=c;d="e f"\r\nhello\r\n0;g\r\n\r\n', (200, b"hello", KEEP)),
    "extension without end": (CHUNKED + b"5;" + b"a" * 70000 + b"\r\nhello\r\n0\r\n\r\n", None),
    "extensions without end": (CHUNKED + (b"1;" + b"a" * 100 + b"\r\nx\r\n") * 700 + b"0\r\n\r\n", None),
    "cut in a size": (CHUNKED + b"5", None),
    "cut in a chunk": (CHUNKED + b"5\r\nhel", None),
    "cut behind a chunk": (CHUNKED + b"5\r\nhello\r\n", None),
    "cut in the last size": (CHUNKED + b"5\r\nhello\r\n0\r", None),
    "last line end missing": (CHUNKED + b"5\r\nhello\r\n0\r\n", (200, b"hello", CLOSE)),
    "half of the last line end missing": (CHUNKED + b"5\r\nhello\r\n0\r\n\r", None),
    "trailers": (CHUNKED + b"5\r\nhello\r\n0\r\nA: b\r\nC: d\r\n\r\n", (200, b"hello", KEEP)),
    "cut behind a trailer": (CHUNKED + b"5\r\nhello\r\n0\r\nA: b\r\n", None),
    "control character in a trailer": (CHUNKED + b"5\r\nhello\r\n0\r\nA: \x01\r\n\r\n", None),
    "bare LF behind a trailer": (CHUNKED + b"5\r\nhello\r\n0\r\nA: b\n\r\n", None),
    "trailer without a colon": (CHUNKED + b"5\r\nhello\r\n0\r\nno colon\r\n\r\n", None),
    "101 trailers": (CHUNKED + b"0\r\n" + b"A: b\r\n" * 101 + b"\r\n", None),
    "left-over byte behind chunks": (CHUNKED + HELLO + b"!", (200, b"hello", CLOSE)),
    # no body
    "204": (b"HTTP/1.1 204 X\r\n\r\n", (204, b"", KEEP)),
    "204 with a length": (b"HTTP/1.1 204 X\r\nContent-Length: 5\r\n\r\n", (204, b"", KEEP)),
    "204 with a body": (b"HTTP/1.1 204 X\r\nContent-Length: 5\r\n\r\nhello", (204, b"", CLOSE)),
    "204 that is chunked": (b"HTTP/1.1 204 X\r\nTransfer-Encoding: chunked\r\n\r\n", (204, b"", KEEP)),
    "304 that is chunked": (b"HTTP/1.1 304 X\r\nTransfer-Encoding: chunked\r\n\r\n", (304, b"", KEEP)),
    "304 with chunks": (b"HTTP/1.1 304 X\r\nTransfer-Encoding: chunked\r\n\r\n" + HELLO, (304, b"", CLOSE)),
    # interim responses
    "100": (b"HTTP/1.1 100 X\r\n\r\n" + LENGTH + b"\r\nhello", (200, b"hello", KEEP)),
    "102, 103, 150": (
        b"HTTP/1.1 102 X\r\n\r\nHTTP/1.1 103 X\r\nLink: a\r\n\r\nHTTP/1.1 150 X\r\n\r\n" + LENGTH + b"\r\nhello",
        (200, b"hello", KEEP),
    ),
    "interim response that claims a body": (
        b"HTTP/1.1 100 X\r\nContent-Length: 5\r\n\r\n" + LENGTH + b"\r\nhello",
        (200, b"hello", KEEP),
    ),
    "interim response that says close": (
        b"HTTP/1.1 103 X\r\nConnection: close\r\n\r\n" + LENGTH + b"\r\nhello",
        (200, b"hello", CLOSE),
    ),
    "interim response with a bare LF": (b"HTTP/1.1 103 X\n\n" + LENGTH + b"\r\nhello", (200, b"hello", CLOSE)),
    "interim response with a line that is no field": (
        b"HTTP/1.1 103 X\r\nno colon\r\n\r\n" + LENGTH + b"\r\nhello",
        (200, b"hello", CLOSE),
    ),
    "100 interim responses": (b"HTTP/1.1 100 X\r\n\r\n" * 100 + LENGTH + b"\r\nhello", (200, b"hello", KEEP)),
    "101 interim responses": (b"HTTP/1.1 100 X\r\n\r\n" * 101 + LENGTH + b"\r\nhello", None),
    "interim response alone": (b"HTTP/1.1 100 X\r\n\r\n", None),
    "switching protocols": (b"HTTP/1.1 101 X\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", (101, b"", CLOSE)),
    # reuse
    "close": (LENGTH + b"Connection: close\r\n\r\nhello", (200, b"hello", CLOSE)),
    "close among others": (LENGTH + b"Connection: x, CLOSE\r\n\r\nhello", (200, b"hello", CLOSE)),
    "close on the second line": (LENGTH + b"Connection: x\r\nConnection: close\r\n\r\nhello", (200, b"hello", CLOSE)),
    "closed": (LENGTH + b"Connection: closed\r\n\r\nhello", (200, b"hello", KEEP)),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", (200, b"hello", CLOSE)),
    "HTTP/1.0 with keep-alive": (
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: Keep-Alive\r\n\r\nhello",
        (200, b"hello", KEEP),
    ),
    "HTTP/1.0 with keep-alive and close": (
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive, close\r\n\r\nhello",
        (200, b"hello", CLOSE),
    ),
}
TO_HEAD: dict[str, tuple[bytes, Expected | None]] = {
    "length": (OK + b"Content-Length: 5\r\n\r\n", (200, b"", KEEP)),
    "nothing": (OK + b"\r\n", (200, b"", KEEP)),
    "chunked": (CHUNKED, (200, b"", KEEP)),
    "odd length": (OK + b"Content-Length: +5\r\n\r\n", (200, b"", KEEP)),
    "body all the same": (LENGTH + b"\r\nhello", (200, b"", CLOSE)),
    "close": (LENGTH + b"Connection: close\r\n\r\n", (200, b"", CLOSE)),
    "bare LF": (b"HTTP/1.1 200 OK\n\r\n", (200, b"", CLOSE)),
}


def check_corpus(method: str, wire: bytes, expected: Expected | None) -> None:
    verdict = ours(method, wire)
    assert (verdict and (verdict.status, verdict.body, verdict.reuse)) == expected
    assert ours_by_pool(method, wire) == verdict
    assert ours_by_pool(method, wire, [1]) == verdict
    assert ours_by_file(method, wire) == verdict
    check_against_both(method, wire)


@pytest.mark.parametrize("name", CORPUS)
def test_corpus_is_read_as_it_says(name: str) -> None:
    check_corpus("GET", *CORPUS[name])


@pytest.mark.parametrize("name", TO_HEAD)
def test_corpus_of_answers_to_head_is_read_as_it_says(name: str) -> None:
    check_corpus("HEAD", *TO_HEAD[name])
