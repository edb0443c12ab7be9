"""The wire: what is read as a head, a chunk line or a trailer, and what is written as a request head.

Pure functions, so no sockets, but for the last test.  Every deviation that is tolerated costs the connection its
reuse, every other one is an error, and nothing that a caller passes makes more or less than one well-formed head.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pooledhttp import HTTPConnection
from pooledhttp.errors import BadStatusLine, HTTPException, InvalidResponse, InvalidURL, LineTooLong
from pooledhttp.testing import ExpectHead, Send, ServerFactory
from pooledhttp.wire import (
    DEFAULT_LIMITS,
    FieldValue,
    Head,
    Limits,
    check_field,
    check_host,
    check_method,
    check_target,
    check_unfinished_head,
    field_lines,
    head_end,
    keep_alive_hints,
    parse_chunk_line,
    parse_head,
    parse_trailer,
    request_head,
    split_fields,
    to_message,
    usual_head,
)

OK = b"HTTP/1.1 200 OK\r\n"
TOKEN_CHARACTERS = "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
CONTROLS = [chr(code) for code in [*range(0x20), 0x7F]]
# Beyond ASCII and beyond latin-1, digits and look-alikes among them, and half of a surrogate pair.
NON_ASCII = [
    "\x80",
    "\x85",
    "\xa0",
    "\xb2",
    "\xe4",
    "\xff",
    "\u0131",
    "\u0661",
    "\u2028",
    "\uff15",
    "\ud800",
    "\U0001f600",
]
ALL_BYTES = [bytes([code]) for code in range(256)]


def head_of(
    *lines: bytes, method: str = "GET", status: bytes = b"HTTP/1.1 200 OK", limits: Limits = DEFAULT_LIMITS
) -> Head:
    return parse_head(b"\r\n".join([status, *lines]) + b"\r\n\r\n", method, limits)


def framing_of(*lines: bytes, method: str = "GET", status: bytes = b"HTTP/1.1 200 OK") -> tuple[int | None, bool, bool]:
    """Return length, chunked, and whether the connection may be used again."""
    head = head_of(*lines, method=method, status=status)
    return head.length, head.chunked, head.is_persistent


TO_THE_END = (None, False, False)
NO_BODY = (0, False, True)


# --- status line ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "version", "status", "reason"),
    [
        (b"HTTP/1.1 200 OK", 11, 200, "OK"),
        (b"HTTP/1.0 404 Not Found", 10, 404, "Not Found"),
        (b"HTTP/1.1 200 ", 11, 200, ""),
        (b"HTTP/1.1 200", 11, 200, ""),  # the space is the grammar's, and many a server leaves it out
        (b"HTTP/1.1 999 \t odd \xe4 reason ", 11, 999, "odd \xe4 reason"),
        (b"HTTP/1.1 100 Continue", 11, 100, "Continue"),
        (b"HTTP/1.1 200  two spaces", 11, 200, "two spaces"),
    ],
)
@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"], ids=["CRLF", "LF"])
def test_status_line_is_read(line: bytes, version: int, status: int, reason: str, line_end: bytes) -> None:
    head = parse_head(line + line_end + b"\r\n", "GET")
    assert (head.version, head.status, head.reason) == (version, status, reason)


NO_STATUS_LINES = [
    b"",
    b"H",
    b"<html>",
    b"200 OK",
    b"HTTP/1.1",
    b"HTTP/1.1 ",
    b"HTTP/1.1 20",
    b"HTTP/1.1 2000 OK",
    b"HTTP/1.1 099 Low",
    b"HTTP/1.1 000 Low",
    b"HTTP/1.1 -20 OK",
    b"HTTP/1.1 +20 OK",
    b"HTTP/1.1 2_0 OK",
    b"HTTP/1.1 0x2 OK",
    b"HTTP/1.1 \xb2\xb2\xb2 OK",
    b"HTTP/1.1 200OK",
    b"HTTP/1.1 200\tOK",
    b"HTTP/1.1\t200 OK",
    b"HTTP/1.1  200 OK",
    b" HTTP/1.1 200 OK",
    b"http/1.1 200 OK",
    b"HTTP/1.2 200 OK",
    b"HTTP/2.0 200 OK",
    b"HTTP/0.9 200 OK",
    b"HTTP/1.10 200 OK",
    b"HTTP/11 200 OK",
    b"HTTP/1.1 200 O\0K",
    b"HTTP/1.1 200 O\rK",
    b"HTTP/1.1 200 O\x1bK",
    b"HTTP/1.1 200 O\x7fK",
]


@pytest.mark.parametrize("line", NO_STATUS_LINES)
@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"], ids=["CRLF", "LF"])
def test_anything_but_a_status_line_of_http_1_is_refused(line: bytes, line_end: bytes) -> None:
    with pytest.raises(BadStatusLine):
        parse_head(line + line_end + b"\r\n", "GET")


def test_anything_before_the_status_line_is_refused() -> None:
    with pytest.raises(BadStatusLine):
        parse_head(b"\r\n" + OK + b"\r\n", "GET")


def test_bad_status_line_shows_only_the_beginning_of_what_came() -> None:
    with pytest.raises(BadStatusLine) as caught:
        parse_head(b"x" * 1000 + b"\r\n\r\n", "GET")
    assert str(caught.value) == "'" + "x" * 60 + "'..."


# --- fields -----------------------------------------------------------------------------------------------------------


def test_fields_keep_their_order_case_and_repetitions() -> None:
    head = head_of(b"B: 1", b"a:2", b"B:\t3 ", b"C:")
    assert head.fields == [("B", "1"), ("a", "2"), ("B", "3"), ("C", "")]


def test_field_is_found_in_any_case_and_its_values_are_joined() -> None:
    head = head_of(b"Set-It: 1", b"set-it: 2")
    assert head.get("SET-IT") == "1, 2"


def test_field_that_is_not_there_is_none() -> None:
    assert head_of(b"A: b").get("B") is None


def test_field_values_are_latin_1() -> None:
    assert head_of(b"A: \xe4\xff").get("a") == "\xe4\xff"


def test_message_is_what_http_client_gives() -> None:
    message = head_of(b"Content-Type: text/plain; charset=x", b"A: 1", b"a: 2").message
    assert message.get_content_type() == "text/plain"
    assert message.get_all("A") == ["1", "2"]
    assert message.as_bytes() == b"Content-Type: text/plain; charset=x\nA: 1\na: 2\n\n"


def test_fields_and_message_are_built_once() -> None:
    head = head_of(b"A: b")
    assert head.fields is head.fields
    assert head.message is head.message


def test_message_of_no_fields_is_empty() -> None:
    assert to_message([]).items() == []


def test_block_of_lines_is_split_into_pairs() -> None:
    assert split_fields(b"A: b\r\nC:d:e\r\n") == [("A", "b"), ("C", "d:e")]


def test_bare_line_feeds_are_read_but_the_connection_is_not_used_again() -> None:
    head = parse_head(b"HTTP/1.1 200 OK\nA: b\nContent-Length: 3\n\n", "GET")
    assert head.fields == [("A", "b"), ("Content-Length", "3")]
    assert (head.length, head.is_persistent) == (3, False)


def test_one_bare_line_feed_among_others_is_enough_to_distrust_the_connection() -> None:
    head = parse_head(OK + b"A: b\nContent-Length: 3\r\n\r\n", "GET")
    assert (head.get("A"), head.length, head.is_persistent) == ("b", 3, False)


@pytest.mark.parametrize(
    "line",
    [b"A: b\0", b"A\0: b", b"\0", b"A: b\rC: d", b"A: b\r", b"\rA: b", b"A: b\r\r", b"no colon\0", b" fold\0"],
)
def test_nul_and_bare_cr_in_a_field_line_are_errors(line: bytes) -> None:
    with pytest.raises(InvalidResponse, match="NUL or a bare CR"):
        head_of(b"X: y", line)


@pytest.mark.parametrize("control", [bytes([code]) for code in [*range(1, 9), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F]])
def test_other_control_characters_in_a_value_cost_the_connection_its_reuse(control: bytes) -> None:
    head = head_of(b"A: b" + control + b"c", b"Content-Length: 0")
    assert head.get("A") == f"b{control.decode()}c"
    assert not head.is_persistent


@pytest.mark.parametrize(
    "name", [b"A ", b"A\t", b"A b", b"(A)", b"A\xe4", b"A\x7f", b"A\x01", b'"A"', b"A@b", b"A/b", b"{A}"]
)
def test_name_that_is_no_token_is_an_error(name: bytes) -> None:
    with pytest.raises(InvalidResponse, match="not a token"):
        head_of(b"X: y", name + b": b")


def test_space_before_the_colon_of_a_length_is_an_error() -> None:
    with pytest.raises(InvalidResponse, match="not a token"):
        head_of(b"Content-Length : 5")


@pytest.mark.parametrize("name", TOKEN_CHARACTERS)
def test_every_token_character_can_be_a_name(name: str) -> None:
    assert head_of(name.encode() + b": b").fields == [(name, "b")]


def test_continuation_line_is_joined_by_one_space() -> None:
    head = head_of(b"A: b \t", b" \t c", b"\td", b"Content-Length: 0")
    assert head.get("A") == "b c d"
    assert head.is_persistent


def test_empty_continuation_line_adds_nothing_but_space() -> None:
    assert head_of(b"A: b", b" ", b"\t", b"C: d").fields == [("A", "b"), ("C", "d")]


def test_continuation_line_does_not_hide_the_field_behind_it() -> None:
    assert head_of(b"A: b", b" c", b"D: e").fields == [("A", "b c"), ("D", "e")]


def test_length_that_is_continued_is_no_length() -> None:
    assert framing_of(b"Content-Length: 1", b" 0") == TO_THE_END


def test_continuation_line_can_hold_a_colon() -> None:
    assert head_of(b"A: b", b" Content-Length: 5").fields == [("A", "b Content-Length: 5")]


@pytest.mark.parametrize("line", [b" A: b", b"\tA: b", b" "])
def test_continuation_of_the_status_line_is_dropped_and_the_connection_not_used_again(line: bytes) -> None:
    head = head_of(line, b"C: d", b"Content-Length: 0")
    assert head.fields == [("C", "d"), ("Content-Length", "0")]
    assert not head.is_persistent


@pytest.mark.parametrize("line", [b"no colon", b": no name", b":", b"\x01"])
def test_line_without_a_field_hides_nothing_behind_it_but_the_connection_is_not_used_again(line: bytes) -> None:
    head = head_of(b"A: b", line, b"Content-Length: 3")
    assert head.fields == [("A", "b"), ("Content-Length", "3")]
    assert (head.length, head.is_persistent) == (3, False)


def test_continuation_of_a_line_that_is_dropped_is_dropped_too() -> None:
    assert head_of(b"A: b", b"no colon", b" c", b" d", b"E: f").fields == [("A", "b"), ("E", "f")]


@pytest.mark.parametrize("blank", [b"\n\r\n", b"\n\n", b"\r\n\n"])
def test_blank_line_ends_the_head_so_that_nothing_behind_it_is_a_field(blank: bytes) -> None:
    with pytest.raises(InvalidResponse, match="blank line"):
        parse_head(b"HTTP/1.1 200 OK\r\nA: b" + blank + b"Evil: 1\r\n\r\n", "GET")


# --- Content-Length ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "length"),
    [
        (b"0", 0),
        (b"5", 5),
        (b"005", 5),
        (b" \t5 \t", 5),
        (b"5, 5", 5),
        (b"5,5 ,\t5", 5),
        (b"5, 05", 5),
        (b"9" * 19, 10**19 - 1),
    ],
)
def test_content_length_is_a_number_of_bytes(value: bytes, length: int) -> None:
    assert framing_of(b"Content-Length:" + value) == (length, False, True)


NO_LENGTHS = [
    b"",
    b"+5",
    b"-1",
    b"-0",
    b"1_0",
    b"0x5",
    b"5h",
    b"5.0",
    b"5e1",
    b"5 5",
    b"5;5",
    b"5,",
    b",5",
    b"5,,5",
    b"five",
    b"\xb2",  # a superscript two is a digit to str
    b"\xd9\xa5",  # an Arabic-Indic five in UTF-8
    b"9" * 20,
    b"0" * 19 + b"5",
    b"9" * 5000,
    b"5, 5x",
    b"5, +5",
    b"5, 1_0",
    b"5, " + b"9" * 20,
]


@pytest.mark.parametrize("value", NO_LENGTHS, ids=lambda value: repr(value[:30]))
def test_what_is_no_length_has_the_body_read_to_the_end_of_the_connection(value: bytes) -> None:
    assert framing_of(b"Content-Length: " + value) == TO_THE_END


@pytest.mark.parametrize("lines", [[b"5", b"6"], [b"5, 6"], [b"5", b"5", b"50"], [b"0", b"1"]])
def test_different_lengths_are_an_error(lines: list[bytes]) -> None:
    with pytest.raises(InvalidResponse, match="different Content-Length"):
        head_of(*(b"Content-Length: " + value for value in lines))


def test_equal_lengths_on_several_lines_are_one() -> None:
    assert framing_of(b"Content-Length: 5", b"content-length: 5") == (5, False, True)


def test_length_and_something_else_on_another_line_are_no_length() -> None:
    assert framing_of(b"Content-Length: 5", b"Content-Length: x") == TO_THE_END


@pytest.mark.parametrize("name", [b"Content-Length", b"content-length", b"CONTENT-LENGTH"])
def test_name_of_the_length_has_any_case(name: bytes) -> None:
    assert framing_of(name + b":5") == (5, False, True)


@pytest.mark.parametrize("line", [b"X-Content-Length: 5", b"Content-Length-X: 5", b"A: Content-Length: 5"])
def test_only_the_field_itself_is_the_length(line: bytes) -> None:
    assert framing_of(line) == TO_THE_END


def test_response_without_a_length_is_read_to_the_end_of_the_connection() -> None:
    assert framing_of(b"Connection: keep-alive") == TO_THE_END


# --- Transfer-Encoding ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [b"chunked", b"Chunked", b" chunked\t", b"gzip, chunked", b"gzip ,\tchunked", b", chunked,", b"x,y,CHUNKED"],
)
def test_chunked_as_the_last_coding_is_chunked(value: bytes) -> None:
    assert framing_of(b"Transfer-Encoding:" + value) == (None, True, True)


@pytest.mark.parametrize(
    "value",
    [
        b"chunked, gzip",
        b"chunked, chunked",
        b"gzip",
        b"identity",
        b"",
        b"xchunked",
        b"chunkedx",
        b"chunked;q=1",
        b"chunked chunked",
        b'"chunked"',
        b"\x0bchunked",
        b"\xa0chunked",
        b"chunked,gzip,chunked",
    ],
)
def test_body_in_other_codings_is_read_to_the_end_of_the_connection(value: bytes) -> None:
    assert framing_of(b"Transfer-Encoding: " + value) == TO_THE_END


def test_codings_on_several_lines_are_one_list() -> None:
    assert framing_of(b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked") == (None, True, True)
    assert framing_of(b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip") == TO_THE_END
    assert framing_of(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked") == TO_THE_END


@pytest.mark.parametrize("length", [b"5", b"5, 6", b"x", b""])
def test_chunked_wins_over_a_length_and_the_connection_is_not_used_again(length: bytes) -> None:
    both = (b"Transfer-Encoding: chunked", b"Content-Length: " + length)
    assert framing_of(*both) == (None, True, False)
    assert framing_of(*reversed(both)) == (None, True, False)


def test_other_coding_wins_over_a_length() -> None:
    assert framing_of(b"Transfer-Encoding: gzip", b"Content-Length: 5") == TO_THE_END


def test_chunked_in_an_http_1_0_response_is_read_but_the_connection_is_not_used_again() -> None:
    lines = (b"Transfer-Encoding: chunked", b"Connection: keep-alive")
    assert framing_of(*lines, status=b"HTTP/1.0 200 OK") == (None, True, False)


def test_framing_is_the_same_in_a_head_that_is_read_line_by_line() -> None:
    assert framing_of(b"A: b", b" c", b"Transfer-Encoding: gzip, chunked") == (None, True, True)
    assert framing_of(b"A: b", b" c", b"Content-Length: 7") == (7, False, True)


# --- responses without a body -----------------------------------------------------------------------------------------

CLAIMS = {
    "nothing": [],
    "length": [b"Content-Length: 5"],
    "odd length": [b"Content-Length: +5"],
    "different lengths": [b"Content-Length: 5, 6"],
    "chunked": [b"Transfer-Encoding: chunked"],
    "both": [b"Transfer-Encoding: chunked", b"Content-Length: 5"],
    "gzip": [b"Transfer-Encoding: gzip"],
}


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("status", [b"100", b"101", b"102", b"103", b"199", b"204", b"304"])
def test_status_without_a_body_has_none_whatever_its_fields_say(status: bytes, claim: str) -> None:
    assert framing_of(*CLAIMS[claim], status=b"HTTP/1.1 " + status + b" X") == NO_BODY


@pytest.mark.parametrize("claim", CLAIMS)
def test_answer_to_head_has_no_body_whatever_its_fields_say(claim: str) -> None:
    assert framing_of(*CLAIMS[claim], method="HEAD") == NO_BODY


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("status", [b"200", b"299"])
def test_answer_to_connect_has_no_body_if_it_is_a_2xx(status: bytes, claim: str) -> None:
    assert framing_of(*CLAIMS[claim], method="CONNECT", status=b"HTTP/1.1 " + status + b" X") == NO_BODY


def test_refusal_of_connect_has_a_body() -> None:
    assert framing_of(b"Content-Length: 5", method="CONNECT", status=b"HTTP/1.1 407 X") == (5, False, True)


@pytest.mark.parametrize("status", [b"200", b"205", b"303", b"404"])
def test_other_statuses_have_a_body(status: bytes) -> None:
    assert framing_of(b"Content-Length: 5", status=b"HTTP/1.1 " + status + b" X") == (5, False, True)


def test_methods_are_case_sensitive() -> None:
    assert framing_of(b"Content-Length: 5", method="head") == (5, False, True)


# --- reuse ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "lines", "is_persistent"),
    [
        (b"1.1", [], True),
        (b"1.1", [b"Connection: keep-alive"], True),
        (b"1.1", [b"Connection: close"], False),
        (b"1.1", [b"Connection: Close"], False),
        (b"1.1", [b"Connection:close"], False),
        (b"1.1", [b"Connection: \tclose\t "], False),
        (b"1.1", [b"Connection: foo, close"], False),
        (b"1.1", [b"Connection: close, keep-alive"], False),
        (b"1.1", [b"Connection: foo", b"Connection: close"], False),
        (b"1.1", [b"Connection: closed"], True),
        (b"1.1", [b"Connection: not-close"], True),
        (b"1.1", [b"Connection: foo close"], True),
        (b"1.1", [b"X-Connection: close"], True),
        (b"1.1", [b"Proxy-Connection: close"], True),
        (b"1.0", [], False),
        (b"1.0", [b"Connection: keep-alive"], True),
        (b"1.0", [b"Connection: Keep-Alive, foo"], True),
        (b"1.0", [b"Connection: foo", b"Connection: keep-alive"], True),
        (b"1.0", [b"Connection: keep-alive, close"], False),
        (b"1.0", [b"Connection: not-keep-alive"], False),
        (b"1.0", [b"Keep-Alive: timeout=5"], False),
        (b"1.0", [b"Proxy-Connection: keep-alive"], True),
        (b"1.0", [b"Connection: close", b"Proxy-Connection: keep-alive"], False),
    ],
)
def test_reuse_is_what_version_and_connection_field_say(
    version: bytes, lines: list[bytes], is_persistent: bool
) -> None:
    status = b"HTTP/" + version + b" 200 OK"
    assert framing_of(b"Content-Length: 0", *lines, status=status) == (0, False, is_persistent)


def test_keep_alive_fields_are_one_list_in_lower_case() -> None:
    assert head_of(b"Keep-Alive: Timeout=5", b"KEEP-ALIVE: Max=3").keep_alive == b"timeout=5,max=3"


def test_keep_alive_field_that_is_not_there_is_none() -> None:
    assert head_of(b"X-Keep-Alive: timeout=5").keep_alive is None


@pytest.mark.parametrize(
    ("value", "timeout", "most"),
    [
        (b"timeout=5, max=100", 5, 100),
        (b"max=100, timeout=5", 5, 100),
        (b"timeout=5", 5, None),
        (b"max=0", None, 0),
        (b"timeout = 5 , max\t=\t7", 5, 7),
        (b'timeout="5"', 5, None),
        (b"timeout=5,max=7", 5, 7),
        (b"timeout=5 max=7", 5, 7),
        (b"foo, timeout=005, bar=9", 5, None),
        (b"timeout=999999999", 999999999, None),
        (b"", None, None),
        (b"5", None, None),
        (b"timeout", None, None),
        (b"timeout=", None, None),
        (b"timeout=x", None, None),
        (b"timeout=-5", None, None),
        (b"timeout=+5", None, None),
        (b"timeout=1_0", None, None),
        (b"timeout=0x5", None, None),
        (b"timeout=5.5", None, None),
        (b"timeout=5s", None, None),
        (b"timeout=1000000000", None, None),
        (b"timeout=" + b"9" * 5000, None, None),
        (b"timeout=\xb2", None, None),
        (b"idle-timeout=5", None, None),
        (b"xmax=3", None, None),
        (b"timeouts=5", None, None),
    ],
    ids=lambda value: repr(value[:30]) if isinstance(value, bytes) else None,
)
def test_keep_alive_hints_are_read_where_they_are_numbers(value: bytes, timeout: int | None, most: int | None) -> None:
    assert keep_alive_hints(value) == (timeout, most)


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"], ids=["CRLF", "LF"])
@pytest.mark.parametrize("size", [100, 65536])
def test_line_of_exactly_the_limit_is_read(size: int, line_end: bytes) -> None:
    line = b"A: ".ljust(size - len(line_end) + 1, b"b")
    head = parse_head(b"HTTP/1.1 200 OK" + line_end + line + line_end * 2, "GET", Limits(line_bytes=size))
    assert head.get("A") == "b" * (len(line) - 3)


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"], ids=["CRLF", "LF"])
@pytest.mark.parametrize("size", [100, 65536])
def test_line_over_the_limit_is_too_long(size: int, line_end: bytes) -> None:
    line = b"A: ".ljust(size - len(line_end) + 2, b"b")
    with pytest.raises(LineTooLong, match="header line"):
        parse_head(b"HTTP/1.1 200 OK" + line_end + line + line_end * 2, "GET", Limits(line_bytes=size))


def test_status_line_over_the_limit_is_too_long() -> None:
    with pytest.raises(LineTooLong, match="status line"):
        head_of(status=b"HTTP/1.1 200 " + b"x" * 65536)


@pytest.mark.parametrize("extra", [[], [b"A: b", b" c"]], ids=["well formed", "continued"])
@pytest.mark.parametrize("limit", [2, 100])
def test_as_many_fields_as_the_limit_are_read(limit: int, extra: list[bytes]) -> None:
    lines = [b"a:"] * (limit - bool(extra)) + extra
    assert len(head_of(*lines, limits=Limits(fields=limit)).fields) == limit


@pytest.mark.parametrize("extra", [[], [b"A: b", b" c"]], ids=["well formed", "continued"])
@pytest.mark.parametrize("limit", [2, 100])
def test_more_fields_than_the_limit_are_an_error(limit: int, extra: list[bytes]) -> None:
    lines = [b"a:"] * (limit + 1 - bool(extra)) + extra
    with pytest.raises(InvalidResponse, match=f"more than {limit} headers"):
        head_of(*lines, limits=Limits(fields=limit))


def big_head(size: int) -> bytes:
    """Return a head of exactly this many bytes, of few lines that are each within the limit."""
    head = bytearray(OK)
    while len(head) < size - 2:
        head += b"A: ".ljust(min(60000, size - 4 - len(head)), b"b") + b"\r\n"
    return bytes(head) + b"\r\n"


def test_head_of_exactly_the_limit_is_read() -> None:
    head = big_head(256 * 1024)
    assert len(head) == 256 * 1024
    assert len(parse_head(head, "GET").fields) == 5


@pytest.mark.parametrize("limit", [100, 256 * 1024])
def test_head_over_the_limit_is_an_error(limit: int) -> None:
    with pytest.raises(InvalidResponse, match=f"larger than {limit} bytes"):
        parse_head(big_head(limit + 1), "GET", Limits(head_bytes=limit))


def test_well_formed_head_above_the_length_of_a_line_keeps_the_connection() -> None:
    head = parse_head(big_head(100_000)[:-2] + b"Content-Length: 5\r\n\r\n", "GET")
    assert (head.length, head.is_persistent) == (5, True)


@pytest.mark.parametrize("name", ["line_bytes", "fields", "head_bytes", "interim_responses", "chunk_extension_bytes"])
def test_limit_is_an_int(name: str) -> None:
    for wrong in (None, 1.5, "1", True):
        with pytest.raises(TypeError, match=f"Limits.{name} must be an int"):
            Limits(**{name: wrong})  # type: ignore[arg-type]  # it is what the test is about


@pytest.mark.parametrize("name", ["line_bytes", "fields", "head_bytes", "interim_responses", "chunk_extension_bytes"])
def test_limit_is_at_least_one(name: str) -> None:
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=f"Limits.{name} must be at least 1, not {wrong}"):
            Limits(**{name: wrong})
    assert getattr(Limits(**{name: 1}), name) == 1


def test_limits_that_are_checked_in_another_way_hold_all_the_same() -> None:
    class Lenient(Limits):
        def __post_init__(self) -> None:
            """Check nothing."""

    response = b"HTTP/1.1 200 OK\r\nA: b\r\nC: d\r\nContent-Length: 0\r\n\r\n"
    assert usual_head(response, "GET", Lenient(fields=3)) is not None
    assert usual_head(response, "GET", Lenient(fields=2)) is None


# --- a head that has not arrived whole --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("received", "end"),
    [
        (b"", -1),
        (b"HTTP/1.1 200 OK\r\n", -1),
        (b"HTTP/1.1 200 OK\r\n\r", -1),
        (b"HTTP/1.1 200 OK\r\n\r\n", 19),
        (b"HTTP/1.1 200 OK\r\n\r\nbody", 19),
        (b"HTTP/1.1 200 OK\n\n", 17),
        (b"HTTP/1.1 200 OK\n\r\nbody\r\n\r\n", 18),
        (b"HTTP/1.1 200 OK\r\n\nbody\r\n\r\n", 18),
        (b"a\n\nb\n\r\n", 3),
        (b"a\n\r\nb\n\n", 4),
    ],
)
def test_head_ends_behind_its_first_blank_line(received: bytes, end: int) -> None:
    assert head_end(received) == end
    assert head_end(bytearray(received)) == end


@given(st.text("\r\nab", max_size=30).map(str.encode))
def test_search_for_the_end_gives_the_same_when_bytes_arrive_one_by_one(received: bytes) -> None:
    arrived = bytearray()
    for at in range(len(received)):
        searched = max(len(arrived) - 3, 0)
        arrived += received[at : at + 1]
        end = head_end(arrived, searched)
        assert end == head_end(arrived)
        if end >= 0:
            break


@pytest.mark.parametrize(
    "received", [b"", b"H", b"HTTP/1", b"HTTP/1.", b"HTTP/1.1 20", OK[:-1], OK, OK + b"A", OK + b"A: b\r\n"]
)
def test_head_that_may_still_become_a_good_one_is_waited_for(received: bytes) -> None:
    check_unfinished_head(received, DEFAULT_LIMITS)


@pytest.mark.parametrize(
    "received", [b"X", b"HTTP/2", b"HTTX", b"\r\n", b"\n", b" H", b"<html>", b"HTTP/1.1 20\r\n", b"HTTP/1.1 200 \0\n"]
)
def test_what_cannot_become_a_status_line_is_refused_early(received: bytes) -> None:
    with pytest.raises(BadStatusLine):
        check_unfinished_head(received, DEFAULT_LIMITS)


@pytest.mark.parametrize(
    ("received", "what"),
    [(b"HTTP/1.1 200 " + b"x" * 100, "status line"), (OK + b"A: " + b"x" * 100, "header line")],
)
def test_line_that_outgrows_the_limit_is_refused_early(received: bytes, what: str) -> None:
    with pytest.raises(LineTooLong, match=what):
        check_unfinished_head(received, Limits(line_bytes=100))


def test_head_that_outgrows_the_limit_is_refused_early() -> None:
    with pytest.raises(InvalidResponse, match="larger than 100 bytes"):
        check_unfinished_head(OK + b"A: b\r\n" * 20, Limits(head_bytes=100))


# --- chunks and trailers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "size", "extension_bytes"),
    [
        (b"0", 0, 0),
        (b"5", 5, 0),
        (b"aF", 0xAF, 0),
        (b"00005", 5, 0),
        (b"f" * 16, 16**16 - 1, 0),
        (b"5;a=b", 5, 4),
        (b"5;", 5, 1),
        (b'5; a="\xff;"', 5, 8),
        (b"5;\t", 5, 2),
    ],
)
def test_chunk_line_is_a_size_and_an_extension(line: bytes, size: int, extension_bytes: int) -> None:
    assert parse_chunk_line(line) == (size, extension_bytes)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b" ",
        b"+5",
        b"-5",
        b"1_0",
        b"0x5",
        b"5h",
        b"x",
        b"g",
        b" 5",
        b"5 ",
        b"5\t",
        b"5 5",
        b"5,5",
        b";a=b",
        b"\xb2",
        b"5\r",
        b"5\n",
        b"5\0",
        b"5;a\0",
        b"5;a\rb",
        b"5;a\nb",
        b"5;a\x0b",
        b"0" * 17,
        b"f" * 17,
    ],
)
def test_malformed_chunk_line_is_an_error(line: bytes) -> None:
    with pytest.raises(InvalidResponse, match="malformed chunk size"):
        parse_chunk_line(line)


@given(st.integers(0, 16**16 - 1), st.booleans())
def test_every_chunk_size_is_read_back(size: int, upper: bool) -> None:
    assert parse_chunk_line((b"%X" if upper else b"%x") % size) == (size, 0)


@given(st.binary(max_size=20))
def test_chunk_line_is_hexadecimal_digits_up_to_the_semicolon_or_an_error(line: bytes) -> None:
    try:
        size, extension_bytes = parse_chunk_line(line)
    except InvalidResponse:
        return
    digits = line[: len(line) - extension_bytes]
    assert set(digits) <= set(b"0123456789abcdefABCDEF")
    assert int(digits, 16) == size
    assert extension_bytes == 0 or line[len(digits) : len(digits) + 1] == b";"


@pytest.mark.parametrize(
    ("line", "pair"),
    [
        (b"A: b", ("A", "b")),
        (b"A:", ("A", "")),
        (b"A:\t b:c \t", ("A", "b:c")),
        (b"A: \xe4", ("A", "\xe4")),
    ],
)
def test_trailer_is_a_field(line: bytes, pair: tuple[str, str]) -> None:
    assert parse_trailer(line) == pair


@pytest.mark.parametrize(
    "line", [b"A", b": b", b"A : b", b" A: b", b"\tb", b"A b: c", b"A: b\0", b"A: b\rC: d", b"\xe4: b", b"A\0: b"]
)
def test_malformed_trailer_is_an_error(line: bytes) -> None:
    with pytest.raises(InvalidResponse, match="malformed trailer"):
        parse_trailer(line)


# --- what is written is what is read ----------------------------------------------------------------------------------

tokens = st.text(TOKEN_CHARACTERS, min_size=1, max_size=20)
inner_values = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]) | st.just("\t"), max_size=30)
values = inner_values.map(lambda value: value.strip(" \t"))
# Fields that say nothing about framing, so that what is said about it is known.
harmless = st.lists(st.tuples(tokens.map("X-{}".format), values), max_size=10)
reasons = inner_values.map(str.strip)


@st.composite
def heads(draw: st.DrawFn) -> tuple[int, int, str, list[tuple[str, str]]]:
    return draw(st.sampled_from([10, 11])), draw(st.integers(100, 999)), draw(reasons), draw(harmless)


def encode(version: int, status: int, reason: str, fields: Iterable[tuple[str, str]], line_end: str = "\r\n") -> bytes:
    lines = [f"HTTP/1.{version - 10} {status} {reason}", *(f"{name}: {value}" for name, value in fields)]
    return (line_end.join(lines) + line_end * 2).encode("latin-1")


@given(heads(), st.sampled_from(["\r\n", "\n"]))
def test_head_that_was_encoded_is_read_back(what: tuple[int, int, str, list[tuple[str, str]]], line_end: str) -> None:
    version, status, reason, fields = what
    head = parse_head(encode(version, status, reason, fields, line_end), "GET")
    assert (head.version, head.status, head.reason, head.fields) == (version, status, reason, fields)


@given(heads(), st.integers(0, 10**19 - 1))
def test_length_that_was_encoded_is_read_back(what: tuple[int, int, str, list[tuple[str, str]]], length: int) -> None:
    version, status, reason, fields = what
    head = parse_head(encode(version, status, reason, [*fields, ("Content-Length", str(length))]), "GET")
    assert head.length == (0 if status < 200 or status in {204, 304} else length)


@given(st.binary(max_size=200) | st.text("HTP/1. 02OK\r\n:\tab,", max_size=60).map(str.encode))
def test_whatever_arrives_is_a_head_or_an_http_exception(rest: bytes) -> None:
    for received in (rest + b"\r\n\r\n", OK + rest + b"\r\n\r\n"):
        try:
            head = parse_head(received[: head_end(received)], "GET")
        except HTTPException:
            continue
        assert 100 <= head.status <= 999
        assert head.length is None or head.length >= 0
        for name, value in head.fields:
            assert set(name) <= set(TOKEN_CHARACTERS)
            assert not set(value) & {"\0", "\r", "\n"}


@given(
    st.lists(
        st.sampled_from(
            [
                b"Content-Length: 5",
                b"Content-Length: 6",
                b"Content-Length: x",
                b"Transfer-Encoding: chunked",
                b"Transfer-Encoding: gzip",
                b"Connection: close",
                b"A: b",
                b" c",
                b"d",
            ]
        ),
        max_size=6,
    )
)
def test_connection_is_kept_only_when_the_end_of_the_body_is_known(lines: list[bytes]) -> None:
    try:
        head = head_of(*lines)
    except InvalidResponse:
        return
    if head.is_persistent:
        assert head.chunked is (head.length is None)
        assert not (head.get("Content-Length") and head.get("Transfer-Encoding"))


# --- writing: a tiny reader of our own --------------------------------------------------------------------------------


def split_request(head: bytes) -> tuple[str, str, str, list[tuple[str, str]]]:
    """Split one request head, strictly and independently of the package; AssertionError unless it is exactly one."""
    assert head.endswith(b"\r\n\r\n")
    assert head.count(b"\r\n\r\n") == 1
    assert head.count(b"\n") == head.count(b"\r") == head.count(b"\r\n")
    assert b"\0" not in head
    request_line, *lines = head[:-4].decode("latin-1").split("\r\n")
    method, target, version = request_line.split(" ")
    assert method
    assert set(method) <= set(TOKEN_CHARACTERS)
    assert target
    assert all("!" <= character <= "~" for character in target)
    assert version in {"HTTP/1.0", "HTTP/1.1"}
    fields = []
    for line in lines:
        name, colon, value = line.partition(": ")
        assert colon
        assert name
        assert set(name) <= set(TOKEN_CHARACTERS)
        assert not set(value) & set(CONTROLS) - {"\t"}
        fields.append((name, value))
    return method, target, version, fields


def test_request_head_is_written() -> None:
    head = request_head("GET", "/a?b", [("Host", "h"), (b"A", b"\xe4"), ("N", 5), ("B", bytearray(b"c"))])  # type: ignore[list-item]  # bytearray is bytes to most callers
    assert head == b"GET /a?b HTTP/1.1\r\nHost: h\r\nA: \xe4\r\nN: 5\r\nB: c\r\n\r\n"


def test_request_head_of_http_1_0_is_written() -> None:
    assert request_head("GET", "/", [], version="HTTP/1.0") == b"GET / HTTP/1.0\r\n\r\n"


@pytest.mark.parametrize("fields", [[], [("C", "d")]])
def test_lines_that_were_checked_before_stand_before_the_fields(fields: list[tuple[str, str]]) -> None:
    head = request_head("GET", "/", fields, checked_lines=field_lines([("A", "b")]))
    assert split_request(head) == ("GET", "/", "HTTP/1.1", [("A", "b"), *fields])


def test_methods_keep_their_case() -> None:
    assert request_head("gEt", "/", []).startswith(b"gEt /")


def test_bool_is_written_as_the_number_it_is() -> None:
    assert field_lines([("A", True)]) == "A: 1\r\n"


anything = st.text(max_size=12) | st.text("Ab:/ \t\r\n\0%", max_size=12)
anything_in_bytes = st.binary(max_size=12) | anything.map(lambda text: text.encode("utf-8", "surrogatepass"))
any_values = anything | anything_in_bytes | st.integers()
any_fields = st.lists(st.tuples(anything | anything_in_bytes | tokens, any_values), max_size=4)


@given(
    anything | tokens,
    anything | tokens.map("/{}".format),
    any_fields,
    st.sampled_from(["HTTP/1.1", "HTTP/1.0", "HTTP/1.1\r\nA: b", "", "HTTP/0.9"]),
)
def test_whatever_is_passed_one_well_formed_head_is_written_or_none(
    method: str, target: str, fields: list[tuple[str | bytes, FieldValue]], version: str
) -> None:
    try:
        head = request_head(method, target, fields, version=version)
    except (ValueError, InvalidURL):
        return
    written = split_request(head)
    assert written[:3] == (method, target, version)
    assert written[3] == [(as_text(name), as_text(value)) for name, value in fields]


@given(tokens, st.sampled_from([": ", ":", " ", "\t", "\r\n", "\n", "\r", "\0", ": \r\nA: ", ""]), tokens, inner_values)
def test_name_that_holds_more_than_a_token_is_never_written(begin: str, between: str, end: str, value: str) -> None:
    try:
        lines = field_lines([(begin + between + end, value)])
    except ValueError:
        assert between
    else:
        assert not between
        assert lines == f"{begin}{end}: {value}\r\n"


def as_text(part: FieldValue) -> str:
    return part.decode("latin-1") if isinstance(part, bytes) else str(part)


@given(
    tokens,
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1),
    st.lists(st.tuples(tokens, inner_values), max_size=5),
)
def test_every_well_formed_request_is_written(method: str, target: str, fields: list[tuple[str, str]]) -> None:
    assert split_request(request_head(method, target, fields)) == (method, target, "HTTP/1.1", fields)


@pytest.mark.parametrize("character", [*CONTROLS, " ", *NON_ASCII, *'"(),/:;<=>?@[\\]{}'])
@pytest.mark.parametrize("pattern", ["{}", "{}GET", "GE{}T", "GET{}"])
def test_method_that_is_no_token_is_refused(character: str, pattern: str) -> None:
    method = pattern.format(character)
    with pytest.raises(ValueError, match="method is not a token"):
        request_head(method, "/", [])
    with pytest.raises(ValueError, match="method is not a token"):
        check_method(method)


@pytest.mark.parametrize("character", [*CONTROLS, " ", *NON_ASCII])
@pytest.mark.parametrize("pattern", ["{}", "{}/a", "/a{}b", "/a{}"])
def test_target_with_a_character_that_breaks_the_request_line_is_refused(character: str, pattern: str) -> None:
    target = pattern.format(character)
    with pytest.raises(InvalidURL, match="percent-encode"):
        request_head("GET", target, [])
    with pytest.raises(InvalidURL, match="at position"):
        check_target(target)


def test_empty_method_and_target_are_refused() -> None:
    with pytest.raises(ValueError, match="method is not a token"):
        request_head("", "/", [])
    with pytest.raises(InvalidURL, match="it is empty"):
        request_head("GET", "", [])


@pytest.mark.parametrize("wrong", [None, 5, b"GET", bytearray(b"GET"), ["GET"]])
def test_method_that_is_no_str_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError, match="method must be a str"):
        request_head(wrong, "/", [])  # type: ignore[arg-type]  # it is what the test is about
    with pytest.raises(TypeError, match="method must be a str"):
        check_method(wrong)  # type: ignore[arg-type]  # as above


@pytest.mark.parametrize("wrong", [None, 5, b"/", bytearray(b"/"), ["/"]])
def test_target_that_is_no_str_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError, match="target must be a str"):
        request_head("GET", wrong, [])  # type: ignore[arg-type]  # it is what the test is about
    with pytest.raises(TypeError, match="target must be a str"):
        check_target(wrong)  # type: ignore[arg-type]  # as above


@pytest.mark.parametrize(
    "version", ["", "HTTP/1.2", "HTTP/2", "http/1.1", "HTTP/1.1 ", " HTTP/1.1", "HTTP/1.1\r\nA: b", "HTTP/1.1\n"]
)
def test_other_versions_are_refused(version: str) -> None:
    with pytest.raises(ValueError, match=r"must be HTTP/1\.0 or HTTP/1\.1"):
        request_head("GET", "/", [], version=version)


@pytest.mark.parametrize("character", [*CONTROLS, " ", *NON_ASCII, *'"(),/:;<=>?@[\\]{}'])
@pytest.mark.parametrize("pattern", ["{}", "{}A", "A{}B", "A{}"])
def test_field_name_that_is_no_token_is_refused(character: str, pattern: str) -> None:
    name = pattern.format(character)
    with pytest.raises(ValueError, match="Invalid header name"):
        field_lines([("X", "y"), (name, "b")])
    with pytest.raises(ValueError, match="Invalid header name"):
        check_field(name, "b")


@pytest.mark.parametrize("name", ["", "A: b", "A: ", "A:", ": b", "A: b\r\nC", b"A: b", b"", b"A b", b"\xe4"])
def test_field_name_that_would_make_another_line_is_refused(name: str | bytes) -> None:
    with pytest.raises(ValueError, match="Invalid header name"):
        field_lines([(name, "c")])


@pytest.mark.parametrize(
    "character",
    [
        *(control for control in CONTROLS if control != "\t"),
        *(character for character in NON_ASCII if ord(character) > 0xFF),
    ],
)
@pytest.mark.parametrize("pattern", ["{}", "{}b", "b{}c", "b{}"])
def test_field_value_with_a_character_that_breaks_the_line_is_refused(character: str, pattern: str) -> None:
    value = pattern.format(character)
    with pytest.raises(ValueError, match="Invalid header value for 'A'"):
        field_lines([("A", value)])
    with pytest.raises(ValueError, match="Invalid header value for 'A'"):
        check_field("A", value)


@pytest.mark.parametrize("byte", ALL_BYTES)
def test_field_value_in_bytes_is_refused_just_as_one_in_str(byte: bytes) -> None:
    is_bad = (byte < b" " and byte != b"\t") or byte == b"\x7f"
    try:
        lines = field_lines([("A", b"b" + byte)])
    except ValueError:
        assert is_bad
    else:
        assert not is_bad
        assert lines == f"A: b{byte.decode('latin-1')}\r\n"


def test_line_break_that_another_field_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="Invalid header value for 'A'"):
        field_lines([("A", "b\r\nC: d"), ("E", "f")])


@pytest.mark.parametrize("wrong", [None, 1.5, ["b"], ("b",), {"b": 1}, ...])
def test_field_name_or_value_of_another_type_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError, match="must be str, bytes or int"):
        field_lines([("A", wrong)])  # type: ignore[list-item]  # it is what the test is about
    with pytest.raises(TypeError, match="must be str, bytes or int"):
        field_lines([(wrong, "b")])  # type: ignore[list-item]  # as above


def test_error_shows_the_name_of_a_field_but_never_its_value() -> None:
    with pytest.raises(ValueError) as caught:
        field_lines([("Authorization", "Bearer secret\n")])
    assert "Authorization" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("character", [*CONTROLS, " ", *NON_ASCII, *'"#%/<>?@\\^`{|}'])
@pytest.mark.parametrize("pattern", ["{}", "{}a", "a{}b", "a{}"])
def test_host_with_a_character_that_no_host_has_is_refused(character: str, pattern: str) -> None:
    with pytest.raises(InvalidURL, match="host is not valid"):
        check_host(pattern.format(character))


@pytest.mark.parametrize(
    "host", ["a", "a.b", "a-b.c_d", "127.0.0.1", "a.", "::1", "fe80::1%eth0", "1.2.3.4", "~a!$&'()*+,;="]
)
def test_host_is_accepted(host: str) -> None:
    check_host(host)


@pytest.mark.parametrize("host", ["", "fe80::1%a b", "fe80::1%a/b", "fe80::1%a\r\nb", "fe80::1%\xe4", "a%b", "%41"])
def test_host_that_is_empty_or_has_a_malformed_zone_is_refused(host: str) -> None:
    with pytest.raises(InvalidURL, match="host is not valid"):
        check_host(host)


@pytest.mark.parametrize("wrong", [None, 5, b"a"])
def test_host_that_is_no_str_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError, match="host must be a str"):
        check_host(wrong)  # type: ignore[arg-type]  # it is what the test is about


# --- linear time ------------------------------------------------------------------------------------------------------

ROOMY = Limits(line_bytes=1 << 24, fields=1 << 24, head_bytes=1 << 24)


def parse(head: bytes) -> None:
    parse_head(head, "GET", ROOMY)


def refuse(head: bytes) -> None:
    with pytest.raises((HTTPException, ValueError)):
        parse(head)


def trickle(received: bytes) -> None:
    """Take in a head as it comes when each segment holds few bytes."""
    arrived = bytearray()
    for at in range(0, len(received), 64):
        searched = max(len(arrived) - 3, 0)
        arrived += received[at : at + 64]
        if head_end(arrived, searched) < 0:
            check_unfinished_head(arrived, ROOMY)


def hints(value: bytes) -> None:
    keep_alive_hints(value)


def write(value: bytes) -> None:
    field_lines([("A", value)])


def refuse_to_write(value: bytes) -> None:
    with pytest.raises((ValueError, InvalidURL)):
        field_lines([("A", value + b"\0")])
    with pytest.raises((ValueError, InvalidURL)):
        request_head("GET", value.decode("latin-1") + " ", [])
    with pytest.raises((ValueError, InvalidURL)):
        request_head(value.decode("latin-1") + " ", "/", [])
    with pytest.raises((ValueError, InvalidURL)):
        check_host(value.decode("latin-1") + " ")


def chunk_line(line: bytes) -> None:
    parse_chunk_line(b"5;" + line)


def refuse_chunk_line(line: bytes) -> None:
    with pytest.raises(InvalidResponse):
        parse_chunk_line(line)
    with pytest.raises(InvalidResponse):
        parse_trailer(line)


HOSTILE: dict[str, tuple[Callable[[bytes], None], Callable[[int], bytes]]] = {
    "reason": (parse, lambda n: b"HTTP/1.1 200 " + b"x" * n + b"\r\n\r\n"),
    "reason and NUL": (refuse, lambda n: b"HTTP/1.1 200 " + b"x" * n + b"\0\r\n\r\n"),
    "digits of the status": (refuse, lambda n: b"HTTP/1.1 " + b"2" * n + b"\r\n\r\n"),
    "one long value": (parse, lambda n: OK + b"A: " + b"x" * n + b"\r\n\r\n"),
    "one long value and a control": (parse, lambda n: OK + b"A: " + b"x" * n + b"\x01\r\n\r\n"),
    "one long value and NUL": (refuse, lambda n: OK + b"A: " + b"x" * n + b"\0\r\n\r\n"),
    "spaces": (parse, lambda n: OK + b"A:" + b" " * n + b"b\r\n\r\n"),
    "spaces in a length": (parse, lambda n: OK + b"Content-Length:" + b" " * n + b"5" + b" " * n + b"\r\n\r\n"),
    "one long name": (refuse, lambda n: OK + b"a" * n + b" : b\r\n\r\n"),
    "name without a colon": (parse, lambda n: OK + b"a" * n + b"\r\n\r\n"),
    "colons": (parse, lambda n: OK + b"A" + b":" * n + b"\r\n\r\n"),
    "many fields": (parse, lambda n: OK + b"A:b\r\n" * (n // 5) + b"\r\n"),
    "many fields and a bare line feed": (parse, lambda n: OK + b"A:b\r\n" * (n // 5) + b"C: d\n\r\n"),
    "many fields and NUL": (refuse, lambda n: OK + b"A:b\r\n" * (n // 5) + b"C: \0\r\n\r\n"),
    "lines without a colon": (parse, lambda n: OK + b"A\r\n" * (n // 3) + b"\r\n"),
    "continuation lines": (parse, lambda n: OK + b"A: b\r\n" + b" c\r\n" * (n // 4) + b"\r\n"),
    "empty continuation lines": (parse, lambda n: OK + b"A: b\r\n" + b" \r\n" * (n // 3) + b"\r\n"),
    "spaces in continuation lines": (parse, lambda n: OK + b"A:" + (b" " * 200 + b"\r\n ") * (n // 203) + b"b\r\n\r\n"),
    "digits of a length": (parse, lambda n: OK + b"Content-Length: " + b"9" * n + b"\r\n\r\n"),
    "equal lengths": (parse, lambda n: OK + b"Content-Length: " + b"5," * (n // 2) + b"5\r\n\r\n"),
    "commas of a length": (parse, lambda n: OK + b"Content-Length: " + b"," * n + b"\r\n\r\n"),
    "lines of a length": (parse, lambda n: OK + (b"Content-Length: 5" + b" " * (n // 90) + b"\r\n") * 90 + b"\r\n"),
    "codings": (parse, lambda n: OK + b"Transfer-Encoding: " + b"a," * (n // 2) + b"chunked\r\n\r\n"),
    "chunked again and again": (parse, lambda n: OK + b"Transfer-Encoding: " + b"chunked," * (n // 8) + b"\r\n\r\n"),
    "lines of a coding": (parse, lambda n: OK + (b"Transfer-Encoding: " + b"a" * (n // 90) + b"\r\n") * 90 + b"\r\n"),
    "connection options": (parse, lambda n: OK + b"Connection: " + b"close," * (n // 6) + b"\r\n\r\n"),
    "lines of options": (parse, lambda n: OK + (b"Connection: " + b"a," * (n // 180) + b"\r\n") * 90 + b"\r\n"),
    "lines of hints": (parse, lambda n: OK + (b"Keep-Alive: " + b"a" * (n // 90) + b"\r\n") * 90 + b"\r\n"),
    "long hints": (hints, lambda n: b"timeout" * (n // 7)),
    "spaces in hints": (hints, lambda n: b"timeout" + b" " * n),
    "hints and spaces": (hints, lambda n: b"timeout   " * (n // 10)),
    "digits of a hint": (hints, lambda n: b"timeout=" + b"9" * n),
    "trickled long lines": (trickle, lambda n: OK + (b"A: " + b"x" * 16000 + b"\r\n") * (n // 16000)),
    "trickled fields": (trickle, lambda n: OK + b"A: b\r\n" * (n // 6)),
    "trickled fields behind a long status line": (
        trickle,
        lambda n: b"HTTP/1.1 200 " + b"x" * (n // 16) + b"\r\n" + b"A: b\r\n" * (n // 6),
    ),
    "chunk extension": (chunk_line, lambda n: b"a;" * (n // 2)),
    "digits of a chunk": (refuse_chunk_line, lambda n: b"5" * n),
    "spaces in a chunk line": (refuse_chunk_line, lambda n: b"5" + b" " * n),
    "value to write": (write, lambda n: b"x" * n),
    "something to refuse to write": (refuse_to_write, lambda n: b"x" * n),
}  # fmt: skip


def cpu_seconds(work: Callable[[bytes], None], received: bytes) -> float:
    best = float("inf")
    for _ in range(5):
        begun = time.process_time()
        work(received)
        best = min(best, time.process_time() - begun)
    return best


@pytest.mark.unmeasured
@pytest.mark.parametrize("shape", HOSTILE)
def test_time_is_linear_in_the_input(shape: str) -> None:
    work, make = HOSTILE[shape]
    size = 32 * 1024
    once = max(cpu_seconds(work, make(size)), 0.0005)  # below it the clock's own grain would be measured
    # Eight times the input: 8 times the work if that is linear, 64 times if it is quadratic.  What other limits bound
    # (the length of a line, the number of lines) stays within them.
    assert cpu_seconds(work, make(8 * size)) < 24 * once


# --- on a connection --------------------------------------------------------------------------------------------------


def test_blank_line_inside_the_body_is_not_taken_for_the_end_of_the_head(scripted_server: ServerFactory) -> None:
    body = b"Evil: 1\r\n\r\nbody"
    head = b"HTTP/1.1 200 OK\nContent-Length: %d\n\r\n" % len(body)
    server = scripted_server([ExpectHead(), Send(head + body)])
    conn = HTTPConnection(server.host, server.port, timeout=10.0)
    conn.request("GET", "/")
    response = conn.getresponse()
    assert response.getheaders() == [("Content-Length", str(len(body)))]
    assert response.read() == body
    conn.close()


FRAMING_LINES = [
    b"Content-Length: 5",
    b"content-length:7 ",
    b"CONTENT-LENGTH: 1",
    b"Content-Length: +5",
    b"Content-Length: 5, 5",
    b"Connection: close",
    b"Connection: keep-alive",
    b"connection: Keep-Alive, Upgrade",
    b"Transfer-Encoding: chunked",
    b"Keep-Alive: timeout=5",
    b"Proxy-Connection: close",
    b"Date: Sun, 22 Nov 2026 22:19:16 GMT",
    b"Content-Type: text/plain",
    b"Contents-Length: 3",
    b"T: 1",
    b"X-Content-Length: 9",
]


@given(
    lines=st.lists(st.sampled_from(FRAMING_LINES), max_size=8),
    status=st.sampled_from([b"HTTP/1.1 200 OK", b"HTTP/1.1 204", b"HTTP/1.0 200 OK", b"HTTP/1.1 304 Not Modified"]),
    method=st.sampled_from(["GET", "HEAD", "CONNECT", "POST"]),
)
def test_usual_head_is_read_like_any_other(lines: list[bytes], status: bytes, method: str) -> None:
    """A field that no server sends turns the usual path off and changes nothing else: an odd Connection option."""
    head = b"\r\n".join([status, *lines]) + b"\r\n\r\n"
    odd = b"\r\n".join([status, *lines, b"Connection: odd"]) + b"\r\n\r\n"

    def verdict(bytes_of_head: bytes) -> object:
        try:
            parsed = parse_head(bytes_of_head, method)
        except InvalidResponse as fault:
            return str(fault)
        fields = [field for field in parsed.fields if field != ("Connection", "odd")]
        return parsed.status, parsed.length, parsed.chunked, parsed.is_persistent, parsed.keep_alive, fields

    if status.startswith(b"HTTP/1.0") and not any(line.lower().startswith(b"connection") for line in lines):
        return  # there an odd Connection field hides a Proxy-Connection field
    assert verdict(head) == verdict(odd)
