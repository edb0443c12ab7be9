"""Requests made ready, before anything is open: the head that is built, how its body will be sent, what is refused."""

from __future__ import annotations

import array
import http
import io
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pooledhttp.errors import InvalidURL
from pooledhttp.request import (
    ONE_SEND_BYTES,
    BodySource,
    ConstantFields,
    PreparedRequest,
    SizedFile,
    blocks,
    body_length,
    constant_fields,
    declared_length,
    encode_body,
    field_bytes,
    host_field,
    lower,
    prepare,
    redacted,
    without_userinfo,
)

CONSTANT = constant_fields("orders", 8080, default_port=80)
CONTENT = b"0123456789"


def made(
    method: str = "GET",
    target: str = "/",
    body: BodySource | None = None,
    headers: Mapping[Any, Any] | None = None,  # str and bytes, and what is neither
    *,
    encode_chunked: bool = False,
) -> PreparedRequest:
    return prepare(method, target, body, headers or {}, constant_fields=CONSTANT, encode_chunked=encode_chunked)


def split(prepared: PreparedRequest) -> tuple[str, list[tuple[str, str]], bytes]:
    """Split what leaves first into request line, fields and body, independently of the package."""
    head, blank, body = prepared.head.partition(b"\r\n\r\n")
    assert blank
    assert head.count(b"\r") == head.count(b"\n") == head.count(b"\r\n")
    request_line, *lines = head.decode("latin-1").split("\r\n")
    pairs = [line.partition(": ") for line in lines]
    assert all(colon for _, colon, _ in pairs)
    return request_line, [(name, value) for name, _, value in pairs], body


def field_of(prepared: PreparedRequest, name: str) -> list[str]:
    return [value for field, value in split(prepared)[1] if field.lower() == name.lower()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "body"
    path.write_bytes(CONTENT)
    return path


def generated(*pieces: bytes) -> Iterator[bytes]:
    yield from pieces


# --- the head ---------------------------------------------------------------------------------------------------------


def test_request_begins_with_host_and_accept_encoding() -> None:
    assert split(made(target="/v1?a=b")) == (
        "GET /v1?a=b HTTP/1.1",
        [("Host", "orders:8080"), ("Accept-Encoding", "identity")],
        b"",
    )


def test_fields_of_the_caller_come_behind_ours() -> None:
    assert split(made(headers={"A": "b", "N": 5, "C": b"\xe4"}))[1] == [
        ("Host", "orders:8080"),
        ("Accept-Encoding", "identity"),
        ("A", "b"),
        ("N", "5"),
        ("C", "\xe4"),
    ]


def test_fields_may_be_bytes() -> None:
    assert field_of(made(headers={b"A": b"b"}), "A") == ["b"]


@pytest.mark.parametrize("name", ["Host", "host", "HOST", b"hOST"])
def test_host_of_the_caller_replaces_ours(name: str | bytes) -> None:
    assert field_of(made(headers={name: "other"}), "Host") == ["other"]


@pytest.mark.parametrize("name", ["Accept-Encoding", "accept-encoding"])
def test_accept_encoding_of_the_caller_replaces_ours(name: str) -> None:
    prepared = made(headers={name: "gzip"})
    assert field_of(prepared, "Accept-Encoding") == ["gzip"]
    assert field_of(prepared, "Host") == ["orders:8080"]


def test_empty_target_is_the_root() -> None:
    assert split(made(target=""))[0] == "GET / HTTP/1.1"


def test_request_of_http_1_0_is_made() -> None:
    prepared = prepare("GET", "/", None, {}, constant_fields=[], version="HTTP/1.0")
    assert prepared.head == b"GET / HTTP/1.0\r\n\r\n"


def test_constant_fields_that_were_not_checked_before_are_checked() -> None:
    with pytest.raises(ValueError, match="Invalid header value"):
        prepare("GET", "/", None, {}, constant_fields=[("Host", "a\r\nB: c")])


def test_constant_fields_are_checked_once_when_they_are_made() -> None:
    with pytest.raises(ValueError, match="Invalid header value"):
        ConstantFields([("Host", "a\r\nB: c")])


@pytest.mark.parametrize("headers", [{}, {"A": "b"}])
def test_method_of_the_standard_enumeration_is_written_as_its_name(headers: dict[str, str]) -> None:
    assert split(made(http.HTTPMethod.DELETE, headers=headers))[0] == "DELETE / HTTP/1.1"


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        ("orders", 80, "orders"),
        ("orders", 8080, "orders:8080"),
        ("orders", 443, "orders:443"),
        ("::1", 80, "[::1]"),
        ("::1", 8080, "[::1]:8080"),
        ("fe80::1%eth0", 80, "[fe80::1]"),
        ("fe80::1%eth0", 8080, "[fe80::1]:8080"),
    ],
)
def test_host_field_has_brackets_for_ipv6_and_neither_zone_nor_default_port(
    host: str, port: int, expected: str
) -> None:
    assert host_field(host, port, default_port=80) == expected


# --- what is refused --------------------------------------------------------------------------------------------------

CONTROLS = [chr(code) for code in [*range(0x20), 0x7F]]
BODIES: list[BodySource | None] = [None, b"body"]
HEADERS: list[dict[str, str]] = [{}, {"A": "b"}]
with_and_without_a_body = pytest.mark.parametrize("body", BODIES, ids=["no body", "body"])
with_and_without_headers = pytest.mark.parametrize("headers", HEADERS, ids=["no headers", "headers"])


@with_and_without_headers
@with_and_without_a_body
@pytest.mark.parametrize("method", ["", *(f"G{control}T" for control in [*CONTROLS, " ", "\xe4", "\u20ac", ":", "/"])])
def test_method_that_is_no_token_is_refused(method: str, body: BodySource | None, headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="method is not a token"):
        made(method, body=body, headers=headers)


@with_and_without_headers
@with_and_without_a_body
@pytest.mark.parametrize("target", [f"/a{control}b" for control in [*CONTROLS, " ", "\xe4", "\u20ac"]])
def test_target_that_breaks_the_request_line_is_refused(
    target: str, body: BodySource | None, headers: dict[str, str]
) -> None:
    with pytest.raises(InvalidURL):
        made(target=target, body=body, headers=headers)


@with_and_without_headers
@with_and_without_a_body
@pytest.mark.parametrize("method", [None, 5, b"GET"])
def test_method_of_another_type_is_refused(method: Any, body: BodySource | None, headers: dict[str, str]) -> None:
    with pytest.raises(TypeError, match="method must be a str"):
        made(method, body=body, headers=headers)


@with_and_without_headers
@with_and_without_a_body
@pytest.mark.parametrize("target", [5, b"/", ["/"]])
def test_target_of_another_type_is_refused(target: Any, body: BodySource | None, headers: dict[str, str]) -> None:
    with pytest.raises(TypeError, match="target must be a str"):
        made(target=target, body=body, headers=headers)


@with_and_without_a_body
@pytest.mark.parametrize(
    "name", ["", " ", "A b", "A:", "A: b", "A\r\nB", "A\0", "\xe4", "\u20ac", "\u212a", b"A b", b""]
)
def test_field_name_that_is_no_token_is_refused(name: str | bytes, body: BodySource | None) -> None:
    with pytest.raises(ValueError):
        made(body=body, headers={name: "b"})


@with_and_without_a_body
@pytest.mark.parametrize("value", ["\r\nB: c", "b\n", "b\r", "b\0", "b\x1b", "b\x7f", "\u20ac", b"b\n", b"\0"])
def test_field_value_that_breaks_the_line_is_refused(value: str | bytes, body: BodySource | None) -> None:
    with pytest.raises(ValueError, match="Invalid header value for 'A'"):
        made(body=body, headers={"A": value})


@with_and_without_a_body
@pytest.mark.parametrize(
    "headers", [{"A": None}, {"A": 1.5}, {"A": ["b"]}, {None: "b"}, {5.5: "b"}, [("A", "b")], {("A", "b")}]
)
def test_fields_of_another_type_are_refused(headers: Any, body: BodySource | None) -> None:
    with pytest.raises(TypeError, match="must be str, bytes or int"):
        made(body=body, headers=headers)


@pytest.mark.parametrize("headers", [{}, {"Content-Length": "5"}, {"Transfer-Encoding": "chunked"}])
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("body", [5, 0, 1.5, True, ...], ids=repr)
def test_body_of_another_type_is_refused(body: Any, method: str, headers: dict[str, str]) -> None:
    with pytest.raises(TypeError, match="bytes-like object or an iterable"):
        made(method, body=body, headers=headers)


def test_str_that_is_not_latin_1_is_refused_with_the_way_out() -> None:
    with pytest.raises(UnicodeEncodeError, match=r"body\.encode\('utf-8'\)"):
        made("POST", body="\u20ac")


anything = st.text(max_size=12) | st.text("Ab:/ \t\r\n\0%", max_size=12)
any_headers = st.dictionaries(anything | st.sampled_from(["Host", "Content-Length", "A: b", "A"]), anything, max_size=3)


@given(
    anything | st.sampled_from(["GET", "POST"]),
    anything.map("/{}".format),
    st.none() | st.binary(max_size=20),
    any_headers,
)
def test_whatever_is_passed_one_head_is_made_or_none(
    method: str, target: str, body: bytes | None, headers: dict[str, str]
) -> None:
    try:
        prepared = made(method, target, body, headers)
    except (ValueError, InvalidURL):
        return
    request_line, fields, sent = split(prepared)
    assert request_line == f"{method} {target} HTTP/1.1"
    assert sent == (body or b"")
    assert [value for name, value in fields if name in headers] == [
        headers[name] for name, _ in fields if name in headers
    ]
    assert {name for name, _ in fields} >= set(headers)
    ours = {"host", "accept-encoding", "content-length"} - {name.lower() for name in headers}
    assert len(fields) == len(headers) + len([name for name, _ in fields if name.lower() in ours])


# --- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "PURGE"])
@with_and_without_headers
def test_request_without_a_body_tells_no_length(method: str, headers: dict[str, str]) -> None:
    prepared = made(method, headers=headers)
    assert field_of(prepared, "Content-Length") == field_of(prepared, "Transfer-Encoding") == []


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "post", "Put"])
@with_and_without_headers
def test_request_that_lacks_its_expected_body_says_so(method: str, headers: dict[str, str]) -> None:
    assert field_of(made(method, headers=headers), "Content-Length") == ["0"]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(("body", "sent"), [(b"", b""), (b"abc", b"abc"), ("a\xe4", b"a\xe4")])
def test_small_body_leaves_with_the_head(method: str, body: BodySource, sent: bytes) -> None:
    prepared = made(method, body=body)
    assert field_of(prepared, "Content-Length") == [str(len(sent))]
    assert split(prepared)[2] == sent
    assert prepared.body is None


def test_body_up_to_64_kib_leaves_with_the_head_and_a_longer_one_behind_it() -> None:
    small, large = b"x" * ONE_SEND_BYTES, b"x" * (ONE_SEND_BYTES + 1)
    assert split(made(body=small))[2] == small
    prepared = made(body=large)
    assert split(prepared)[2] == b""
    assert prepared.body is large
    assert field_of(prepared, "Content-Length") == [str(len(large))]


@pytest.mark.parametrize(
    ("body", "length"),
    [
        (bytearray(b"abc"), 3),
        (memoryview(b"abc"), 3),
        (memoryview(array.array("I", [1, 2])), 2 * array.array("I").itemsize),
        (array.array("I", [1, 2]), 2 * array.array("I").itemsize),
    ],
    ids=["bytearray", "memoryview", "memoryview of ints", "array"],
)
def test_length_of_a_buffer_is_counted_in_bytes(body: BodySource, length: int) -> None:
    prepared = made(body=body)
    assert field_of(prepared, "Content-Length") == [str(length)]
    assert prepared.body is body
    assert not prepared.is_chunked


def test_regular_file_is_sent_with_its_length(path: Path) -> None:
    with path.open("rb") as file:
        prepared = made("POST", body=file)
        assert field_of(prepared, "Content-Length") == ["10"]
        assert not prepared.is_chunked
        assert prepared.body is not None
        assert b"".join(bytes(block) for block in blocks(prepared.body, 4)) == CONTENT


def test_regular_file_is_sent_from_where_it_stands(path: Path) -> None:
    with path.open("rb") as file:
        file.seek(7)
        prepared = made("POST", body=file)
        assert field_of(prepared, "Content-Length") == ["3"]
        file.seek(70)
        assert field_of(made("POST", body=file), "Content-Length") == ["0"]


@pytest.mark.parametrize(
    "body", [io.BytesIO(CONTENT), io.StringIO("text"), generated(b"a", b"b"), [b"a", b"b"], iter([])]
)
def test_body_without_a_known_length_is_sent_in_chunks(body: BodySource) -> None:
    prepared = made("POST", body=body)
    assert field_of(prepared, "Transfer-Encoding") == ["chunked"]
    assert field_of(prepared, "Content-Length") == []
    assert prepared.is_chunked
    assert prepared.body is body


def test_pipe_and_text_file_have_no_known_length(path: Path) -> None:
    reader, writer = os.pipe()
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe, path.open(encoding="utf-8") as text:
        assert body_length(pipe) is None
        assert body_length(text) is None


class Stubborn:
    """A file-like object of which neither descriptor nor position can be had."""

    def __init__(self, fileno: object) -> None:
        self._fileno = fileno

    def read(self, size: int, /) -> bytes:
        return b""

    def fileno(self) -> object:
        if isinstance(self._fileno, Exception):
            raise self._fileno
        return self._fileno


@pytest.mark.parametrize("fileno", [io.UnsupportedOperation(), OSError(), "none", -1])
def test_file_that_does_not_tell_is_sent_in_chunks(fileno: object) -> None:
    assert made("POST", body=Stubborn(fileno)).is_chunked


def test_regular_file_without_a_position_is_sent_in_chunks() -> None:
    with tempfile.TemporaryFile() as file:
        assert made("POST", body=Stubborn(file.fileno())).is_chunked


@pytest.mark.parametrize("name", ["Content-Length", "content-length", b"CONTENT-LENGTH"])
def test_length_of_the_caller_is_kept(name: str | bytes) -> None:
    prepared = made("POST", body=generated(b"abc"), headers={name: "3"})
    assert field_of(prepared, "Content-Length") == ["3"]
    assert field_of(prepared, "Transfer-Encoding") == []
    assert not prepared.is_chunked


@pytest.mark.parametrize(
    ("encode_chunked", "body", "is_chunked"), [(True, b"abc", True), (False, b"abc", False), (True, None, False)]
)
def test_transfer_encoding_of_the_caller_is_kept_and_applied_when_asked(
    encode_chunked: bool, body: bytes | None, is_chunked: bool
) -> None:
    prepared = made("POST", body=body, headers={"Transfer-Encoding": "gzip, chunked"}, encode_chunked=encode_chunked)
    assert field_of(prepared, "Transfer-Encoding") == ["gzip, chunked"]
    assert field_of(prepared, "Content-Length") == []
    assert prepared.is_chunked is is_chunked
    assert (prepared.body == body) is is_chunked or body is None or split(prepared)[2] == body


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        (b"abcdef", [b"abcdef"]),
        (bytearray(b"abcdef"), [b"abcdef"]),
        (memoryview(b"abcdef"), [b"abcdef"]),
        (array.array("B", b"abcdef"), [b"abcdef"]),
        (io.BytesIO(b"abcdef"), [b"abcd", b"ef"]),
        (io.StringIO("abcd\xe4f"), [b"abcd", b"\xe4f"]),
        ([b"a", b"bc"], [b"a", b"bc"]),
        (generated(b"a", b"bc"), [b"a", b"bc"]),
    ],
    ids=["bytes", "bytearray", "memoryview", "array", "file", "text file", "list", "generator"],
)
def test_body_is_sent_in_blocks(body: BodySource, sent: list[bytes]) -> None:
    assert [bytes(block) for block in blocks(body, 4)] == sent


@pytest.mark.parametrize("wrong", [5, None, "text", ...], ids=repr)
def test_what_is_no_body_has_no_blocks(wrong: Any) -> None:
    with pytest.raises(TypeError, match="bytes-like object or an iterable"):
        blocks(wrong, 4)


@pytest.mark.parametrize(
    ("body", "length"), [(None, 0), (b"abc", 3), (bytearray(b"ab"), 2), (memoryview(b"a"), 1), ([b"a"], None)]
)
def test_length_of_a_body_is_told_where_it_is_known(body: BodySource | None, length: int | None) -> None:
    assert body_length(body) == length


def test_length_of_what_is_no_body_is_refused() -> None:
    with pytest.raises(TypeError, match="bytes-like object or an iterable"):
        body_length(5)  # type: ignore[arg-type]  # it is what the test is about


def test_str_is_encoded_as_latin_1() -> None:
    assert encode_body("a\xff") == b"a\xff"


# --- a body and what the head says of it ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Length": "3", "content-length": "3"},
        {"Content-Length": "3", "CONTENT-LENGTH": "4"},
        {"Content-Length": "3", b"content-length": b"3"},
        {"Content-Length": "3", "Transfer-Encoding": "chunked"},
        {"Transfer-Encoding": "chunked", "transfer-encoding": "chunked"},
        {"Transfer-Encoding": "gzip", "transfer-encoding": "chunked"},
    ],
)
@pytest.mark.parametrize("body", [None, b"abc", generated(b"abc")], ids=["no body", "body", "generator"])
@pytest.mark.parametrize("encode_chunked", [True, False])
def test_contradicting_lengths_are_refused(
    headers: Mapping[Any, Any], body: BodySource | None, encode_chunked: bool
) -> None:
    with pytest.raises(ValueError, match="one Content-Length or one Transfer-Encoding"):
        made("POST", body=body, headers=headers, encode_chunked=encode_chunked)


@pytest.mark.parametrize("body", [None, b"abc", generated(b"abc")], ids=["no body", "body", "generator"])
@pytest.mark.parametrize(
    "value", ["", "x", "+3", "-3", "3_0", "0x3", "3.0", "3, 3", "3 3", "\xb2", b"\xb2", "9" * 20, "9" * 5000]
)
def test_length_that_is_no_number_is_refused(value: str | bytes, body: BodySource | None) -> None:
    with pytest.raises(ValueError, match="Content-Length must be a decimal number"):
        made("POST", body=body, headers={"Content-Length": value})


@pytest.mark.parametrize("is_strict", [True, False])
@pytest.mark.parametrize("value", ["2", 2, b"2", "0", " 2"])
def test_body_that_is_longer_than_its_length_is_refused(value: str | bytes | int, is_strict: bool) -> None:
    with pytest.raises(ValueError, match=r"the body has 3 bytes, but Content-Length says [02]"):
        prepare("POST", "/", b"abc", {"Content-Length": value}, constant_fields=[], is_strict=is_strict)


@pytest.mark.parametrize(("body", "has"), [(b"abc", 3), (None, 0)])
def test_body_that_is_shorter_than_its_length_is_refused_when_we_are_strict(body: bytes | None, has: int) -> None:
    with pytest.raises(ValueError, match=f"the body has {has} bytes, but Content-Length says 4"):
        prepare("POST", "/", body, {"Content-Length": "4"}, constant_fields=[], is_strict=True)


def test_file_that_is_longer_than_its_length_is_refused(path: Path) -> None:
    with path.open("rb") as file, pytest.raises(ValueError, match="the body has 10 bytes, but Content-Length says 9"):
        made("POST", body=file, headers={"Content-Length": "9"})


@pytest.mark.parametrize(
    ("body", "headers", "encode_chunked"),
    [
        (None, {}, False),
        (b"abc", {}, False),
        (generated(b"abc"), {}, False),
        (b"abc", {"Content-Length": "3"}, False),
        (None, {"Content-Length": "0"}, False),
        (b"abc", {"Transfer-Encoding": "chunked"}, True),
    ],
)
def test_request_whose_head_tells_the_length_of_its_body_is_exact(
    body: BodySource | None, headers: dict[str, str], encode_chunked: bool
) -> None:
    assert made("POST", body=body, headers=headers, encode_chunked=encode_chunked).is_exact


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"abc", {"Content-Length": "4"}),
        (None, {"Content-Length": "4"}),
        (generated(b"abc"), {"Content-Length": "3"}),
        (b"abc", {"Transfer-Encoding": "chunked"}),
        (None, {"Transfer-Encoding": "chunked"}),
    ],
)
def test_request_of_which_nobody_knows_where_it_ends_is_not_exact(
    body: BodySource | None, headers: dict[str, str]
) -> None:
    prepared = made("POST", body=body, headers=headers)
    assert (prepared.is_exact, prepared.is_plain) == (False, False)


@pytest.mark.parametrize(("body", "is_plain"), [(None, True), (b"abc", True), (b"x" * 100_000, False)])
@with_and_without_headers
def test_exact_request_that_is_all_head_is_plain(
    body: BodySource | None, is_plain: bool, headers: dict[str, str]
) -> None:
    assert made("POST", body=body, headers=headers).is_plain is is_plain


def test_fields_without_a_length_announce_no_body() -> None:
    assert declared_length([("A", "b")]) == 0


# --- a file of a given length -----------------------------------------------------------------------------------------


def test_file_that_grew_is_read_as_far_as_its_length() -> None:
    file = SizedFile(io.BytesIO(CONTENT), 7)
    assert [file.read(4), file.read(4), file.read(4)] == [b"0123", b"456", b""]


def test_file_that_shrank_says_so() -> None:
    file = SizedFile(io.BytesIO(CONTENT), 12)
    assert file.read(100) == CONTENT
    with pytest.raises(ValueError, match="shrank: it ended 2 bytes short"):
        file.read(100)


# --- what may be done with it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"])
@with_and_without_headers
def test_idempotent_method_is_idempotent(method: str, headers: dict[str, str]) -> None:
    assert made(method, headers=headers).is_idempotent


@pytest.mark.parametrize("method", ["POST", "PATCH", "CONNECT", "get", "PURGE"])
def test_other_method_is_not_idempotent(method: str) -> None:
    assert not made(method).is_idempotent


@pytest.mark.parametrize("name", ["Idempotency-Key", "idempotency-key", b"IDEMPOTENCY-KEY"])
def test_idempotency_key_makes_any_method_idempotent(name: str | bytes) -> None:
    assert made("POST", headers={name: "1"}).is_idempotent


@pytest.mark.parametrize("body", [None, b"abc", "abc", b"x" * 100_000, bytearray(b"abc"), memoryview(b"abc")])
def test_body_in_memory_can_be_sent_again(body: BodySource | None) -> None:
    assert made("PUT", body=body).is_replayable


@pytest.mark.parametrize("body", [io.BytesIO(b"abc"), generated(b"abc"), [b"abc"]], ids=["file", "generator", "list"])
def test_body_that_is_consumed_cannot_be_sent_again(body: BodySource) -> None:
    assert not made("PUT", body=body).is_replayable


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_request_shows_method_and_target_without_userinfo_and_query() -> None:
    assert str(made("GET", "http://user:secret@orders/v1?api_key=secret")) == "GET http://orders/v1?..."
    assert str(made("GET", "/v1")) == "GET /v1"


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("/v1", "/v1"),
        ("/v1@2?a=b@c", "/v1@2?a=b@c"),
        ("*", "*"),
        ("http://user:secret@orders:80/a", "http://orders:80/a"),
        ("http://user:sec@ret@orders/a", "http://orders/a"),
        ("http://[user:secret@orders/", "(a malformed target)"),
    ],
)
def test_target_is_shown_without_userinfo(target: str, shown: str) -> None:
    assert without_userinfo(target) == shown


def test_head_is_shown_without_credentials() -> None:
    head = made(headers={"AUTHORIZATION": "a", "Proxy-Authorization": "b", "cookie": "c", "X-Authorization": "d"}).head
    assert redacted(head) == (
        b"GET / HTTP/1.1\r\nHost: orders:8080\r\nAccept-Encoding: identity\r\nAUTHORIZATION: [hidden]\r\n"
        b"Proxy-Authorization: [hidden]\r\ncookie: [hidden]\r\nX-Authorization: d\r\n\r\n"
    )


@pytest.mark.parametrize(("name", "lowered"), [("HoSt", "host"), (b"HoSt", "host"), (5, "5"), (b"\xc4", "\xe4")])
def test_name_is_compared_in_lower_case(name: object, lowered: str) -> None:
    assert lower(name) == lowered


@pytest.mark.parametrize(("part", "encoded"), [("\xe4", b"\xe4"), (b"\xe4", b"\xe4"), (5, b"5")])
def test_part_of_a_field_becomes_bytes(part: object, encoded: bytes) -> None:
    assert field_bytes(part) == encoded


@pytest.mark.parametrize("wrong", [None, 1.5, ["a"]])
def test_part_of_a_field_of_another_type_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError, match="must be str, bytes or int"):
        field_bytes(wrong)


def test_fields_of_a_mapping_are_taken_once_and_need_no_length() -> None:
    class Fields(dict[str, str]):
        def items(self) -> Any:
            yield "A", "1"
            yield "B", "2"

    assert made(headers=Fields(A="1", B="2")).head.endswith(b"A: 1\r\nB: 2\r\n\r\n")
