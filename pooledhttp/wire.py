"""Bytes to HTTP/1.1 heads and chunk lines, and back: pure functions, a strict grammar, limits; no sockets.

Reading (RFC 9112): one compiled pattern accepts a head that is well formed throughout; only then are the few
fields looked at that decide about framing.  Whatever that pattern does not take goes line by line through
`_read_leniently`, which knows the handful of deviations that are tolerated (bare LF, obs-fold, a line without
a name) and names every other one in its error.

Writing: there is one writer, `request_head`.  Whatever a caller passes, it returns exactly one well-formed
request head or raises; nobody else in the package puts a request line or a field on the wire.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from http.client import HTTPMessage

from .errors import BadStatusLine, InvalidChunk, InvalidResponse, InvalidURL, LineTooLong
from .frozen import Frozen
from .hints import Final

FieldValue = str | bytes | int
Fields = Sequence[tuple[str | bytes, FieldValue]]


class Limits(Frozen):
    """How much a peer may send before the body counts as an attack; exceeding one is an `HTTPException`.

    Attributes:
        line_bytes: One line of a head, a chunk-size line or a trailer.
        fields: Header fields in one head, and trailer fields behind one body.
        head_bytes: One whole head.
        interim_responses: 1xx answers before the final one.
        chunk_extension_bytes: All chunk extensions of one body together.
    """

    line_bytes: int = 65536
    fields: int = 100
    head_bytes: int = 256 * 1024
    interim_responses: int = 100
    chunk_extension_bytes: int = 65536
    # Derived from those, and no keyword: a head up to here need not be held against any of them.
    _harmless_bytes = 0

    def __post_init__(self) -> None:
        for name, value in self.as_dict().items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"Limits.{name} must be an int, not {value!r}")
            if value < 1:
                raise ValueError(f"Limits.{name} must be at least 1, not {value!r}")
        # A field takes four bytes at least.
        vars(self)["_harmless_bytes"] = min(4 * self.fields, self.line_bytes, self.head_bytes)


DEFAULT_LIMITS: Final = Limits()

# What only rare heads need is not compiled here: `re.fullmatch` does that when it comes to one, and remembers it.
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_NAME = _TOKEN + rb"+"
_VALUE = rb"[\t -~\x80-\xff]*"
_STATUS_LINE = rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([\t -~\x80-\xff]*+))?"
_REST_OF_LINE = rb"[\t -~\x80-\xff]*+\r\n"
_FRAMING_NAMES = rb"content-length|transfer-encoding|connection|keep-alive|proxy-connection"
# The usual head, in front of whatever follows it: well formed, of a status that has a body, with one Content-Length, a
# plain number (group 4), and no other field about framing but ``Connection: keep-alive``.  Each line fits only one
# alternative, so that a failure is found in linear time.  No group stands inside of a possessive repetition: Python
# 3.11 loses count of such groups (SystemError).
_OTHER_LINES = (
    rb"(?:[!#$%&'*+\-.^_`|~0-9ABD-JL-OQ-SU-Zabd-jl-oq-su-z]" + _TOKEN + rb"*+:" + _REST_OF_LINE + rb"|"
    rb"[Cc](?!(?i:onnection|ontent-length):)" + _TOKEN + rb"*+:" + _REST_OF_LINE + rb"|"
    rb"[Cc]onnection: keep-alive\r\n|"
    rb"[KkPpTt](?!(?i:eep-alive|roxy-connection|ransfer-encoding):)" + _TOKEN + rb"*+:" + _REST_OF_LINE + rb")*+"
)  # fmt: skip
_match_usual_head = re.compile(
    rb"HTTP/1\.1 (?!204|304|401)([2-9][0-9]{2})(?: ([\t -~\x80-\xff]*+))?\r\n"
    rb"(" + _OTHER_LINES + rb"[Cc]ontent-[Ll]ength:[ \t]*+([0-9]{1,19})[ \t]*+\r\n" + _OTHER_LINES + rb")\r\n"
).match
_match_head = re.compile(
    _STATUS_LINE + rb"\r\n((?:" + _TOKEN + rb"++:[\t -~\x80-\xff]*+\r\n)*+)\r\n",
).fullmatch
_match_chunk_line = re.compile(rb"([0-9A-Fa-f]{1,16})(;[\t -~\x80-\xff]*+)?").fullmatch

# No length that fits a file has more digits than this; int() is quadratic in theirs.
_LENGTH_DIGITS = 19


class Head:
    """The head of a response, and what it says about framing and reuse.

    Attributes:
        version: 10 for HTTP/1.0, 11 for HTTP/1.1.
        status: The status code, 100 to 999.
        length: Bytes of body that follow, or ``None`` when chunks or the end of the connection tell.
        chunked: Whether the body is chunked.
        is_persistent: Whether the connection may serve another request after a complete body.
        keep_alive: The value of the Keep-Alive field (``b"timeout=5, max=100"``), or ``None``.
    """

    # What every head has; a dictionary is made only for one that differs from what stands below.
    __slots__ = ("__dict__", "_block", "_reason", "length", "status")

    # Of the class, where the usual head finds them: they cost nothing to set.
    version = 11
    chunked = False
    is_persistent = True
    keep_alive: bytes | None = None
    _fields: list[tuple[str, str]] | None = None
    _message: HTTPMessage | None = None

    def __init__(self, status: int, reason: bytes | None, block: bytes) -> None:
        self.status = status
        self._reason = reason
        self._block = block
        self.length: int | None = None

    @property
    def reason(self) -> str:
        """The reason phrase; it means nothing to a program."""
        return self._reason.decode("latin-1").strip() if self._reason else ""

    @reason.setter
    def reason(self, value: str) -> None:
        self._reason = value.encode("latin-1")

    @property
    def fields(self) -> list[tuple[str, str]]:
        """The header fields in their order on the wire, decoded as latin-1; built when first asked for."""
        if self._fields is None:
            self._fields = split_fields(self._block)
        return self._fields

    @property
    def message(self) -> HTTPMessage:
        """The header fields as the mapping that `http.client` gives; built when first asked for."""
        if self._message is None:
            self._message = to_message(self.fields)
        return self._message

    @message.setter
    def message(self, value: HTTPMessage) -> None:
        self._message = value

    def get(self, name: str) -> str | None:
        """Return the value of a field, several joined by ``", "`` (RFC 9110 section 5.3), or ``None``."""
        if self._message is not None:  # to which the caller may have added
            return ", ".join(self._message.get_all(name, ())) or self._message.get(name)
        wanted = name.lower()
        values = [value for field, value in self.fields if field.lower() == wanted]
        return ", ".join(values) if values else None


def split_fields(block: bytes) -> list[tuple[str, str]]:
    """Split well-formed field lines (each ending in CRLF) into (name, value) pairs."""
    pairs = []
    for line in block.decode("latin-1").split("\r\n")[:-1]:
        name, _, value = line.partition(":")
        pairs.append((name, value.strip(" \t")))
    return pairs


def to_message(fields: Iterable[tuple[str, str]]) -> HTTPMessage:
    """Return fields as an `http.client.HTTPMessage`, without the e-mail parser's run over the text."""
    message = HTTPMessage()
    for name, value in fields:
        message.set_raw(name, value)
    # A message that was parsed has a payload, so that str() and as_bytes() work; a fresh one has None.
    message.set_payload("")
    return message


# --- reading a head -------------------------------------------------------------------------------------


def head_end(received: bytes | bytearray, start: int = 0) -> int:
    """Return the offset behind the blank line that ends a head, or -1 while it has not arrived.

    Args:
        received: What has arrived so far, from the first byte of the head.
        start: Where to begin to look; whoever calls again as more arrives passes the old length less 3,
            so that the whole search stays linear.
    """
    crlf = received.find(b"\n\r\n", start)
    if crlf >= 0:
        bare = received.find(b"\n\n", start, crlf + 1)
        return bare + 2 if bare >= 0 else crlf + 3
    bare = received.find(b"\n\n", start)
    return bare + 2 if bare >= 0 else -1


def check_unfinished_head(received: bytes | bytearray, limits: Limits) -> None:
    """Refuse a head early, before its end has arrived, when it can no longer become a good one.

    Raises:
        BadStatusLine: What has arrived is no HTTP/1 status line.
        LineTooLong: The line that is being received is over the limit.
        InvalidResponse: The head is over the limit.
    """
    newline = received.find(b"\n", 0, limits.line_bytes + 1)
    if newline >= 0:
        # Its beginning: this is called for each segment, and parse_head() sees the whole line.
        _status_line(bytes(received[: min(newline, 200)]).removesuffix(b"\r"))
    elif not (received.startswith(b"HTTP/1.") or b"HTTP/1.".startswith(received)):
        raise BadStatusLine(_excerpt(received))
    if len(received) - (received.rfind(b"\n") + 1) > limits.line_bytes:
        raise LineTooLong("status line" if newline < 0 else "header line")
    if len(received) > limits.head_bytes:
        raise InvalidResponse(f"the response's head is larger than {limits.head_bytes} bytes")


def parse_head(head: bytes, method: str, limits: Limits = DEFAULT_LIMITS) -> Head:
    """Parse one whole response head (RFC 9112 sections 4 to 6), blank line included.

    Args:
        head: From the status line to the blank line.
        method: The method of the request: an answer to HEAD, and a 2xx to CONNECT, has no body.
        limits: What is too much.

    Returns:
        The head with its framing decided.

    Raises:
        BadStatusLine: The first line is no status line of HTTP/1.0 or HTTP/1.1.
        LineTooLong: A line is over the limit.
        InvalidResponse: Too many fields, a malformed one, or contradicting lengths.
    """
    match = _match_head(head)
    if match is not None and len(head) <= limits.line_bytes <= limits.head_bytes:
        minor, code, reason, block = match.groups()
        parsed = Head(int(code), reason, block)
        if minor == b"0":
            parsed.version = 10
        # A field takes four bytes at least, so a short head need not be counted.
        if len(block) > 4 * limits.fields and block.count(b"\n") > limits.fields:
            raise InvalidResponse(f"got more than {limits.fields} headers")
        _decide_framing(parsed, head.lower(), method)
        return parsed
    version, status, reason, block, is_clean = _read_leniently(head, limits)
    parsed = Head(status, reason, block)
    parsed.version = version
    if block.count(b"\n") > limits.fields:
        raise InvalidResponse(f"got more than {limits.fields} headers")
    # The newline in front makes the first field findable like the others.
    _decide_framing(parsed, b"\n" + block.lower(), method)
    if not is_clean:
        parsed.is_persistent = False
    return parsed


def usual_head(received: bytes, method: str, limits: Limits = DEFAULT_LIMITS) -> tuple[Head, int, int] | None:
    """Parse the head that stands in front of what has been received, if it is whole and of the usual kind.

    It takes one pass where finding the end, cutting the head out and `parse_head` take several; what it returns is what
    they would return.

    Args:
        received: From the status line on, with whatever has come behind the head.
        method: The method of the request.
        limits: What is too much.

    Returns:
        The head, the offset behind it and the one behind its body; or ``None``: then let `parse_head` decide.
    """
    match = _match_usual_head(received)
    if match is None or method in _METHODS_WITH_ODD_BODIES:
        return None
    end = match.end()
    code, reason, block, length = match.groups()
    if end > limits._harmless_bytes and (
        end > limits.line_bytes or end > limits.head_bytes or block.count(b"\n") > limits.fields
    ):
        return None
    head = Head.__new__(Head)  # to call the class costs four times as much
    head.status = int(code)
    head._reason = reason
    head._block = block
    head.length = size = int(length)
    return head, end, end + size


_find_framing = re.compile(rb"\n(" + _FRAMING_NAMES + rb"):[ \t]*([^\r\n]*)").findall
# Whose responses may have no body, or of whatever length.
_METHODS_WITH_ODD_BODIES = frozenset({"HEAD", "CONNECT"})


def _decide_framing(head: Head, lowered: bytes, method: str) -> None:
    """Decide length, coding and persistence from the fields (RFC 9112 sections 6 and 9.3)."""
    length = coding = connection = proxy_connection = None
    for name, value in _find_framing(lowered):
        # Several lines of one name are one list (RFC 9110 section 5.3).
        if name == b"content-length":
            length = value if length is None else length + b"," + value
        elif name == b"connection":
            connection = value if connection is None else connection + b"," + value
        elif name == b"transfer-encoding":
            coding = value if coding is None else coding + b"," + value
        elif name == b"keep-alive":
            head.keep_alive = value if head.keep_alive is None else head.keep_alive + b"," + value
        else:
            proxy_connection = value

    if head.version != 11:
        options = _members(connection or proxy_connection or b"")
        head.is_persistent = b"keep-alive" in options and b"close" not in options
    elif connection is not None and b"close" in connection and b"close" in _members(connection):
        head.is_persistent = False

    status = head.status
    if status < 200 or status == 204 or status == 304 or method == "HEAD" or (method == "CONNECT" and status < 300):
        # RFC 9112 section 6.3, rules 1 and 2: no body, whatever the fields say.
        head.length = 0
    elif coding is not None:
        codings = _members(coding)
        head.chunked = codings[-1:] == [b"chunked"] and codings.count(b"chunked") == 1
        if not head.chunked or head.version == 10 or length is not None:
            # Not chunked at the end: read to the close.  The other two are what request smuggling looks like
            # (RFC 9112 section 6.1): the coding wins and the connection is not trusted again.
            head.is_persistent = False
    elif length is not None and length.isdigit() and len(length) <= _LENGTH_DIGITS:
        head.length = int(length)
    else:
        if length is not None:
            head.length = _unusual_length(length)
        if head.length is None:
            head.is_persistent = False


def _unusual_length(value: bytes) -> int | None:
    """Return the length that several or odd Content-Length values agree on; ``None`` if they are no lengths."""
    members = {member.strip(b" \t") for member in value.split(b",")}
    if not all(member.isdigit() and len(member) <= _LENGTH_DIGITS for member in members):
        return None
    lengths = {int(member) for member in members}
    if len(lengths) > 1:
        raise InvalidResponse(f"the response has different Content-Length values: {sorted(lengths)}")
    return lengths.pop()


def _members(value: bytes) -> list[bytes]:
    """Return the members of a comma-separated list; empty ones do not count (RFC 9110 section 5.6.1)."""
    return [token for member in value.split(b",") if (token := member.strip(b" \t"))]


def _status_line(line: bytes) -> tuple[int, int, bytes]:
    match = re.fullmatch(_STATUS_LINE, line)
    if match is None:
        raise BadStatusLine(_excerpt(line))
    return 10 + int(match[1]), int(match[2]), match[3] or b""


def _read_leniently(head: bytes, limits: Limits) -> tuple[int, int, bytes, bytes, bool]:
    """Read a head that is not well formed throughout, line by line.

    Returns:
        Version, status, reason, the fields as well-formed lines, and whether the connection may be trusted.
    """
    if len(head) > limits.head_bytes:
        raise InvalidResponse(f"the response's head is larger than {limits.head_bytes} bytes")
    is_clean = True
    block: list[bytes] = []  # pieces of lines: gluing each continuation to what it continues would take quadratic time
    is_continuable = False
    status_line, *lines = head.split(b"\n")
    if len(status_line) > limits.line_bytes:
        raise LineTooLong("status line")
    version, status, reason = _status_line(status_line.removesuffix(b"\r"))
    if not status_line.endswith(b"\r") or lines[-2:-1] != [b"\r"]:
        is_clean = False  # a bare LF, as below
    for raw in lines[:-2]:  # behind the fields stand the blank line and what split() leaves behind it
        line = raw.removesuffix(b"\r")
        if len(raw) > limits.line_bytes:
            raise LineTooLong("header line")
        if len(line) == len(raw):
            is_clean = False  # a bare LF: accepted, but other parsers on the way may see other lines
        if b"\0" in line or b"\r" in line:
            raise InvalidResponse(f"a header line holds NUL or a bare CR: {_excerpt(line)}")
        if not line:
            raise InvalidResponse("a blank line stands within the response's head")
        name, colon, value = line.partition(b":")
        if line[:1] in (b" ", b"\t"):
            # obs-fold (RFC 9112 section 5.2): one space instead, on the field before it.
            if is_continuable:
                block[-1] = block[-1].rstrip(b" \t")
                block.append(b" " + line.strip(b" \t"))
            else:
                is_clean = False  # it continues the status line, or a line that was dropped
        elif not colon or not name:
            # http.client's documented tolerance: the line is dropped and hides nothing behind it.
            is_clean = is_continuable = False
        elif not re.fullmatch(_NAME, name):
            raise InvalidResponse(f"a header field's name is not a token: {_excerpt(name)}")
        else:
            if not re.fullmatch(_VALUE, value):
                is_clean = False
            if block:
                block.append(b"\r\n")
            block.append(line)
            is_continuable = True
    if block:
        block.append(b"\r\n")
    return version, status, reason, b"".join(block), is_clean


def _excerpt(line: bytes | bytearray) -> str:
    shown = bytes(line[:60])
    return repr(shown)[1:] + ("..." if len(line) > 60 else "")


_KEEP_ALIVE_HINT = re.compile(rb"(?<![^ \t,])(timeout|max)[ \t]*=[ \t]*\"?([0-9]{1,9})\"?(?![^ \t,])")


def keep_alive_hints(value: bytes) -> tuple[int | None, int | None]:
    """Read the parameters of a Keep-Alive field (RFC 2068 section 19.7.1).

    Args:
        value: In lower case, as `Head.keep_alive` is.

    Returns:
        For how many seconds the server keeps the connection idle, and how many more requests it will take; ``None``
        where it does not say.
    """
    hints = {name: int(number) for name, number in _KEEP_ALIVE_HINT.findall(value)}
    return hints.get(b"timeout"), hints.get(b"max")


# --- chunks and trailers --------------------------------------------------------------------------------


def parse_chunk_line(line: bytes) -> tuple[int, int]:
    """Parse a chunk-size line without its CRLF (RFC 9112 section 7.1).

    Returns:
        The size of the chunk in bytes, and how many bytes of the line were its extension.

    Raises:
        InvalidChunk: It is not hexadecimal digits, optionally followed by an extension.
    """
    match = _match_chunk_line(line)
    if match is None:
        raise InvalidChunk(f"malformed chunk size line: {_excerpt(line)}")
    return int(match[1], 16), len(match[2] or b"")


def parse_trailer(line: bytes) -> tuple[str, str]:
    """Parse one trailer field line without its CRLF (RFC 9112 section 7.1.2).

    Raises:
        InvalidResponse: It is not a field line.
    """
    name, colon, value = line.partition(b":")
    if not colon or not re.fullmatch(_NAME, name) or not re.fullmatch(_VALUE, value):
        raise InvalidResponse(f"malformed trailer line: {_excerpt(line)}")
    return name.decode("latin-1"), value.decode("latin-1").strip(" \t")


# --- writing --------------------------------------------------------------------------------------------

_USUAL_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_REQUEST_LINE = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++ [!-~]++ HTTP/1\.[01]\r\n"
_match_field_lines = re.compile(r"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++: [\t -~\x80-\xff]*+\r\n)*+").fullmatch
_match_method = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_match_target = re.compile(r"[!-~]+").fullmatch
_match_value = re.compile(r"[\t -~\x80-\xff]*").fullmatch
_match_host = re.compile(r"[!$&-.0-9:;=A-Z_a-z~]+").fullmatch


def request_head(
    method: str,
    target: str,
    fields: Collection[tuple[str | bytes, FieldValue]],
    *,
    version: str = "HTTP/1.1",
    checked_lines: str = "",
) -> bytes:
    """Build a request head (RFC 9112 section 3): the only writer of request lines and fields.

    Args:
        method: A token; its case is kept (methods are case-sensitive).
        target: The request target as it shall stand on the wire, already percent-encoded.
        fields: (name, value) pairs in their order; bytes go as they are, str as latin-1, int in decimal.
        version: ``HTTP/1.1`` or ``HTTP/1.0``.
        checked_lines: Field lines from `field_lines`, which stand before `fields` and are not checked again.

    Returns:
        The head with its blank line: exactly one, whatever was passed.

    Raises:
        ValueError: The method, a field's name or its value would break the head.
        TypeError: A name or value is of another type.
        InvalidURL: The target would break the head.
    """
    if method.__class__ is not str and isinstance(method, str):
        method = str.__str__(method)  # as in _text()
    if target.__class__ is not str and isinstance(target, str):
        target = str.__str__(target)
    request_line = f"{method} {target} {version}\r\n"
    # The usual request line needs no pattern: a known method, and a target of visible ASCII characters.
    is_usual = (
        method.__class__ is str
        and method in _USUAL_METHODS
        and target.__class__ is str
        and target.isascii()
        and target.isprintable()
        and " " not in target
        and target != ""
        and version == "HTTP/1.1"
    )
    # Formatting writes None and b"GET" as text, and both would pass for a method.
    if not is_usual and not (
        isinstance(method, str) and isinstance(target, str) and re.fullmatch(_REQUEST_LINE, request_line)
    ):
        raise _fault_of(method, target, version)
    if not fields:
        return f"{request_line}{checked_lines}\r\n".encode("latin-1")
    return f"{request_line}{checked_lines}{field_lines(fields)}\r\n".encode("latin-1")


def field_lines(fields: Collection[tuple[str | bytes, FieldValue]]) -> str:
    """Build the lines of fields, each with its CRLF (RFC 9112 section 5).

    Raises:
        ValueError: A name or value would break them.
        TypeError: A name or value is of another type.
    """
    if not fields:
        return ""
    try:
        # The type: that it is text shows here.
        text = "\r\n".join(map(": ".join, fields)) + "\r\n"  # type: ignore[arg-type]
    except TypeError:
        fields = [(_text(name), _text(value)) for name, value in fields]
        text = "\r\n".join(map(": ".join, fields)) + "\r\n"  # type: ignore[arg-type]
    # "A: b" with the value "c" would read as A with "b: c", and a line break inside a name or value shows as one more
    # line than was put in.
    is_ambiguous = ":" in "".join([name for name, _ in fields])  # type: ignore[misc]  # as above
    if is_ambiguous or text.count("\n") != len(fields) or not _match_field_lines(text):
        for name, value in fields:
            check_field(name, value)
        raise ValueError("a header cannot be written")  # not reached while the two checks agree
    return text


def check_method(method: str) -> None:
    """Raise ValueError unless the method is a token (RFC 9110 section 9.1)."""
    if not isinstance(method, str):
        raise TypeError(f"method must be a str, not {type(method).__name__}")
    if not _match_method(method):
        raise ValueError(
            f"method is not a token (RFC 9110 section 5.6.2): a method can't contain control characters, spaces or "
            f"delimiters: {method[:60]!r}"
        )


def check_target(target: str) -> None:
    """Raise InvalidURL unless the request target holds only visible ASCII characters."""
    if not isinstance(target, str):
        raise TypeError(f"the request target must be a str, not {type(target).__name__}")
    if not _match_target(target):
        offence = re.search(r"[^!-~]", target)
        where = f"{offence[0]!r} at position {offence.start()}" if offence else "it is empty"
        raise InvalidURL(f"the request target can't contain control characters, spaces or non-ASCII ({where}); "
                         f"percent-encode it")  # fmt: skip


def check_field(name: str | bytes, value: FieldValue) -> None:
    """Raise unless name and value make one field line (RFC 9110 section 5); the value is never shown."""
    text = _text(name)
    if not _match_method(text):
        raise ValueError(f"Invalid header name {text[:60]!r}: it is not a token")
    if not _match_value(_text(value)):
        raise ValueError(f"Invalid header value for {text[:60]!r}: it holds CR, LF, NUL, another control "
                         f"character, or one outside latin-1")  # fmt: skip


def check_host(host: str) -> None:
    """Raise InvalidURL unless the host can stand in a Host field and be resolved.

    It has no ``%`` (which could hide any of the others; only an IPv6 zone begins with one), ``/``, ``@``, space
    or control character.
    """
    if not isinstance(host, str):
        raise TypeError(f"host must be a str, not {type(host).__name__}")
    zoneless, percent, zone = host.partition("%") if ":" in host else (host, "", "")
    if not _match_host(zoneless) or (percent and not _match_method(zone)):
        offence = re.search(r"[^!$&-.0-9:;=A-Z_a-z~]", zoneless)
        what = f"it can't contain {offence[0]!r}" if offence else "it is empty or its zone is malformed"
        raise InvalidURL(f"host is not valid: {what}")


def _text(part: str | bytes | int) -> str:
    if isinstance(part, str):
        return str.__str__(part)  # a member of a str Enum has another text when it is formatted
    if isinstance(part, (bytes, bytearray)):
        return part.decode("latin-1")
    if isinstance(part, int):
        return str(int(part))
    raise TypeError(f"a header name or value must be str, bytes or int, not {type(part).__name__}")


def _fault_of(method: str, target: str, version: str) -> Exception:
    """Find the part that breaks a request line and return the error that names it."""
    try:
        check_method(method)
        check_target(target)
    except (ValueError, TypeError, InvalidURL) as fault:
        return fault
    return ValueError(f"the protocol version must be HTTP/1.0 or HTTP/1.1, not {version!r}")
