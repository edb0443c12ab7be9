"""One request, made ready before anything is opened: its head, its body, and what may be done with it.

Everything that a caller can get wrong is found here, so that a bad method, target or header costs no connection and
puts no byte on the wire.  The bytes themselves are built by `wire.request_head`, the only writer there is.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from .hints import Any, Final, Protocol, cast
from .wire import FieldValue, field_lines, request_head


class Readable(Protocol):
    """A body that is read in blocks."""

    def read(self, size: int, /) -> bytes | str:
        """Return at most size bytes; none at the end."""


# Any: what stands in a mapping of headers is checked one by one; `object` would refuse Mapping[str, str | int].
Headers = Mapping[str, Any] | Mapping[bytes, Any]
BodySource = bytes | bytearray | memoryview | str | Readable | Iterable[bytes]
Field = tuple[str | bytes, FieldValue]
NO_HEADERS: Final[Mapping[str, Any]] = {}

# A body up to this many bytes leaves in one send with its head; a longer one is not worth copying.
ONE_SEND_BYTES: Final = 65536
# RFC 9110 section 9.2.2, less CONNECT, which is no request to a resource.
IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
# Without a body these say so with Content-Length: 0 (RFC 9110 section 8.6).
_BODY_EXPECTED: Final = frozenset({"PATCH", "POST", "PUT"})
BODILESS: Final = IDEMPOTENT - _BODY_EXPECTED
_NO_BODY: Final = "data should be a bytes-like object or an iterable, got %r"
# No length that fits a file has more digits than this.
_LENGTH_DIGITS: Final = 19
_SECRET_FIELDS: Final = (b"authorization:", b"proxy-authorization:", b"cookie:", b"set-cookie:")


class PreparedRequest:
    """A request that is known to be well formed.

    Attributes:
        method: The method.
        target: The request target.
        head: The head as bytes; a small body stands behind it already, so that both leave in one send.
        body: The rest of the body, or ``None``.
        is_chunked: Whether `body` is to be put into chunks (RFC 9112 section 7.1).
        announced: How many bytes of body the head announces that are to be counted as they are sent; 0 where they are
            known to be as many, below 0 where nobody can tell.
        is_plain: Whether it is exact, `head` is all there is to send, and nothing else is to be done.
        has_idempotency_key: Whether an Idempotency-Key field tells the server how to take a repetition.
        is_replayable: Whether the body can be sent a second time.
        expects_continue: Whether the server is asked before the body is sent (RFC 9110 section 10.1.1).
        binds_connection: Whether its credentials are those of the connection from now on, see `binds_connection`.
    """

    # What every request has; a dictionary is made only for one that differs from what stands below.
    __slots__ = ("__dict__", "head", "method", "target")

    # Of the class, where most requests find them: they cost nothing to set.
    body: BodySource | None = None
    is_chunked = False
    is_replayable = True
    has_idempotency_key = False
    announced = 0
    is_plain = True
    expects_continue = False
    binds_connection = False

    def __init__(self, method: str, target: str, head: bytes) -> None:
        self.method = method
        self.target = target
        self.head = head

    @property
    def is_exact(self) -> bool:
        """Whether the body is known to be as long as the head says."""
        return self.announced == 0

    @property
    def is_idempotent(self) -> bool:
        """Whether sending it twice means no more than sending it once (RFC 9110 section 9.2.2)."""
        return self.has_idempotency_key or self.method in IDEMPOTENT

    def __str__(self) -> str:
        """Return method and target, for messages; without userinfo."""
        return f"{self.method} {printable(self.target)}"


def prepare(
    method: str,
    target: str,
    body: BodySource | None,
    headers: Headers,
    *,
    constant_fields: list[Field],
    encode_chunked: bool = False,
    version: str = "HTTP/1.1",
    is_strict: bool = False,
) -> PreparedRequest:
    """Check a request and build its head.

    Args:
        method: The method, as it shall stand on the wire.
        target: The request target; empty means ``/``.
        body: bytes, str (sent as latin-1), a file, or an iterable of bytes; ``None`` for none.
        headers: Fields to send; Content-Length is added where it is missing.
        constant_fields: Host and Accept-Encoding, for where `headers` have none.
        encode_chunked: Whether to put a body into chunks when `headers` hold Transfer-Encoding.
        version: ``HTTP/1.1`` or ``HTTP/1.0``.
        is_strict: Whether to refuse a body whose length is not the one that the head says; ``http.client`` sends it.

    Raises:
        ValueError: Method or headers would break the request (`InvalidURL`: the target).
        TypeError: Something is of another type.
    """
    if body is None and not headers and method in BODILESS:
        lines = constant_fields.lines if isinstance(constant_fields, ConstantFields) else field_lines(constant_fields)
        head = request_head(method, target or "/", (), version=version, checked_lines=lines)
        prepared = PreparedRequest.__new__(PreparedRequest)  # to call the class costs four times as much
        prepared.method = method
        prepared.target = target
        prepared.head = head
        return prepared
    if headers and (body is None or body.__class__ is bytes):
        usual = _prepare_usual(method, target, body, headers, constant_fields, version)
        if usual is not None:
            return usual
    if isinstance(body, str):
        body = encode_body(body)
    fields, body, is_chunked, names = complete_fields(
        method, body, headers, constant_fields=constant_fields, encode_chunked=encode_chunked
    )
    if "content-length" in names and hasattr(body, "read") and body_length(body) == declared_length(fields):
        body = SizedFile(cast("Readable", body), body_length(body) or 0)  # the caller's length is that of the file
    announced = 0 if is_chunked else _announced(fields, body, names, is_strict=is_strict)
    head = request_head(method, target or "/", fields, version=version)
    expects = "expect" in names and body_length(body) != 0 and expects_continue(fields)
    if isinstance(body, bytes) and len(body) <= ONE_SEND_BYTES and not is_chunked and not expects:
        head += body
        body = None
    prepared = PreparedRequest(method, target, head)
    prepared.body = body
    prepared.expects_continue = expects
    prepared.announced = announced
    prepared.binds_connection = "authorization" in names and binds_connection(fields)
    prepared.is_plain = announced == 0 and body is None and not prepared.binds_connection
    prepared.is_chunked = is_chunked
    prepared.has_idempotency_key = "idempotency-key" in names
    prepared.is_replayable = body is None or isinstance(body, (bytes, bytearray, memoryview))
    return prepared


# With one of these in its headers a request is not of the usual kind: they replace, or contradict, what we would add.
_UNUSUAL_FIELDS: Final = frozenset({"host", "accept-encoding", "content-length", "transfer-encoding", "expect"})


def _prepare_usual(
    method: str, target: str, body: bytes | None, headers: Headers, constant_fields: list[Field], version: str
) -> PreparedRequest | None:
    """Do what `prepare` promises for the usual fields and a body of bytes, in few steps; ``None``: they are not usual.

    Every value is checked; what is spared is to look at each of them several times.
    """
    try:
        names = set(map(str.lower, headers))  # type: ignore[arg-type]  # that one is bytes shows here
    except TypeError:
        return None
    if (
        len(names) != len(headers)
        or not names.isdisjoint(_UNUSUAL_FIELDS)
        or constant_fields.__class__ is not ConstantFields
        or method.__class__ is not str
    ):
        return None
    lines = constant_fields.lines
    if body is not None or method.upper() in _BODY_EXPECTED:
        lines = f"{lines}Content-Length: {len(body or b'')}\r\n"
    lines += field_lines(list(headers.items()))  # a mapping may give them once, without a length
    head = request_head(method, target or "/", (), version=version, checked_lines=lines)
    if body is not None and len(body) <= ONE_SEND_BYTES:
        head += body
        body = None
    prepared = PreparedRequest(method, target, head)
    if body is not None:
        prepared.body = body
        prepared.is_plain = False
    if "authorization" in names and binds_connection(headers.items()):
        prepared.binds_connection = True
        prepared.is_plain = False
    if "idempotency-key" in names:
        prepared.has_idempotency_key = True
    return prepared


def declared_length(fields: Iterable[Field]) -> int | None:
    """Return how long a body the fields of a request announce, in bytes; ``None`` with Transfer-Encoding.

    Raises:
        ValueError: They contradict one another, or the last coding is not chunked: no server could tell where the body
            ends (RFC 9112 section 6.3).
    """
    lengths = [value for name, value in fields if lower(name) == "content-length"]
    codings = [value for name, value in fields if lower(name) == "transfer-encoding"]
    if len(lengths) + len(codings) > 1:
        raise ValueError("a request has one Content-Length or one Transfer-Encoding, not several of them")
    if codings:
        if field_bytes(codings[0]).rpartition(b",")[2].strip(b" \t").lower() != b"chunked":
            raise ValueError("the Transfer-Encoding of a request ends in chunked")
        return None
    if not lengths:
        return 0
    length = field_bytes(lengths[0]).strip(b" \t")
    if not length.isdigit() or len(length) > _LENGTH_DIGITS:
        raise ValueError(f"Content-Length must be a decimal number, not {length[:60]!r}")
    return int(length)


def expects_continue(fields: Iterable[Field]) -> bool:
    """Tell whether the fields of a request say ``Expect: 100-continue`` (RFC 9110 section 10.1.1)."""
    return any(lower(name) == "expect" and field_bytes(value).lower() == b"100-continue" for name, value in fields)


def binds_connection(fields: Iterable[Field]) -> bool:
    """Tell whether the fields of a request hold credentials that servers keep for the connection, not the request.

    NTLM and Negotiate do (RFC 4559 section 6): whoever uses the connection next is taken for the same user.
    """
    return any(lower(name) == "authorization" and _is_bound(field_bytes(value)) for name, value in fields)


_is_bound = re.compile(rb"(?i)[ \t]*(?:ntlm|negotiate)(?![^ \t])").match
# Among several challenges; where a realm has such a name, that costs a connection.
offers_to_bind = re.compile(r"(?i)(?<![^ \t,])(?:ntlm|negotiate)(?![^ \t,])").search


def _announced(fields: list[Field], body: BodySource | None, names: set[str], *, is_strict: bool) -> int:
    """Return `PreparedRequest.announced` for a body that we do not put into chunks."""
    if body is not None and not isinstance(body, (bytes, SizedFile)) and body_length(body) is not None:
        is_fixed = False  # a buffer: somebody may make it longer or shorter before it is sent
    else:
        is_fixed = True
    if names.isdisjoint({"content-length", "transfer-encoding"}):
        return 0 if is_fixed else body_length(body) or 0  # the head says what we know of the body
    declared = declared_length(fields)
    if declared is None:
        return -1  # the caller has encoded the body; nobody checks how
    length = body_length(body)
    if length == declared:
        return 0 if is_fixed else declared
    if length is not None and (is_strict or length > declared):
        # What is too much would be taken for the next request, and of what is too little the next request for the rest.
        raise ValueError(f"the body has {length} bytes, but Content-Length says {declared}")
    return declared or -1


def complete_fields(
    method: str, body: BodySource | None, headers: Headers, *, constant_fields: list[Field], encode_chunked: bool
) -> tuple[list[Field], BodySource | None, bool, set[str]]:
    """Add the fields that a request needs and its caller has not given.

    Returns:
        All fields, the body to send with them, whether we put it into chunks, and the names of the caller's fields in
        lower case.
    """
    fields = list(constant_fields)
    names: set[str] = set()
    if headers:
        names = {lower(name) for name in headers}
        if len(names) != len(headers) and sum(lower(name) == "host" for name in headers) > 1:
            raise ValueError("a request has one Host field, not several of them")  # RFC 9112 section 3.2
        if "host" in names or "accept-encoding" in names:
            fields = [field for field in fields if lower(field[0]) not in names]
    is_chunked = False
    if body is not None:
        _check_body(body)
    if "content-length" in names or (body is None and str(method).upper() not in _BODY_EXPECTED):
        pass
    elif "transfer-encoding" in names:
        is_chunked = encode_chunked and body is not None
        if is_chunked:
            declared_length(list(headers.items()))  # refuses a second one
    else:
        length = body_length(body)
        if length is None:
            is_chunked = True
            fields.append(("Transfer-Encoding", "chunked"))
        else:
            fields.append(("Content-Length", length))
            if hasattr(body, "read"):
                body = SizedFile(cast("Readable", body), length)
    if headers:
        fields.extend(headers.items())
    return fields, body, is_chunked, names


def host_field(host: str, port: int, *, default_port: int) -> str:
    """Return the value of the Host field (RFC 9112 section 3.2): brackets around IPv6, no zone, no default port."""
    name = host.partition("%")[0]  # a zone means something on this machine only (RFC 6874)
    name = f"[{name}]" if ":" in name else name
    return name if port == default_port else f"{name}:{port}"


class ConstantFields(list[Field]):
    """The fields that every request to an origin begins with, and their lines, which are checked once."""

    __slots__ = ("lines",)

    def __init__(self, fields: Iterable[Field]) -> None:
        super().__init__(fields)
        self.lines = field_lines(self)


def constant_fields(host: str, port: int, *, default_port: int) -> ConstantFields:
    """Return the fields that every request to an origin begins with."""
    # Nothing is decoded here, so nothing encoded is asked for.
    host_line = ("Host", host_field(host, port, default_port=default_port))
    return ConstantFields([host_line, ("Accept-Encoding", "identity")])


# --- bodies ---------------------------------------------------------------------------------------------


def body_length(body: BodySource | None) -> int | None:
    """Return the length of a body in bytes, or ``None`` when only sending it will tell."""
    if body is None:
        return 0
    if isinstance(body, (bytes, bytearray)):
        return len(body)
    if hasattr(body, "read"):
        return _file_length(body)
    try:
        return memoryview(body).nbytes  # type: ignore[arg-type]  # whether it can be viewed is the question
    except TypeError:
        _check_body(body)
        return None


def _check_body(body: object) -> None:
    if isinstance(body, Mapping):
        raise TypeError(_NO_BODY % type(body))  # it could be iterated, but nobody means its keys
    if isinstance(body, (bytes, bytearray, Iterable)) or hasattr(body, "read"):
        return
    try:
        memoryview(body)  # type: ignore[arg-type]  # whether it can be viewed is the question
    except TypeError:
        raise TypeError(_NO_BODY % type(body)) from None


def _regular(file: object) -> io.FileIO | io.BufferedReader | io.BufferedRandom | None:
    """Return the regular file in binary mode that an object is, or that the tempfile module has wrapped.

    Only these kinds give what lies in the file, and nothing else: a decompressing reader, too, has the descriptor of a
    regular file, but not its length, and a subclass may read whatever it likes.
    """
    if type(file).__module__ == "tempfile" and type(file).__name__ == "_TemporaryFileWrapper":
        file = file.file  # type: ignore[attr-defined]  # what the wrapper is there for
    elif type(file).__module__ == "tempfile" and type(file).__name__ == "SpooledTemporaryFile":
        file = file._file  # type: ignore[attr-defined]  # not fileno(): that would put on the disk what is in memory
    # Exactly these types, not what inherits from them.
    raw = file.raw if type(file) is io.BufferedReader or type(file) is io.BufferedRandom else file
    if type(raw) is not io.FileIO:
        return None
    try:
        is_regular = stat.S_ISREG(os.fstat(raw.fileno()).st_mode)
    except (OSError, ValueError):
        return None  # closed: reading it will say so
    return file if is_regular else None  # type: ignore[return-value]  # what has passed all that is one of them


def _file_length(file: object) -> int | None:
    """Return how many bytes a regular file has from its position on; ``None`` for anything else."""
    regular = _regular(file)
    if regular is None:
        return None
    if isinstance(regular, io.BufferedRandom):
        regular.flush()  # what has been written to it and not to the file yet is part of it
    position = regular.tell()
    status = os.fstat(regular.fileno())
    length = max(status.st_size - position, 0)
    if not getattr(status, "st_blocks", 1) and 0 < status.st_size <= 4096:
        return None  # what lies in /sys claims a page and holds less
    if not length and regular.readable() and regular.read(1):
        regular.seek(position)
        return None  # of size 0, and yet not empty: what lies in /proc is made when it is read
    return length


class SizedFile:
    """A file that is read as far as its Content-Length says and not a byte further, whatever becomes of it meanwhile.

    Args:
        file: A regular file, opened in binary mode.
        length: Its length in bytes, which the head has told.

    Attributes:
        start: Where in the file the body begins, in bytes.
        length: How long the body is, in bytes.
    """

    __slots__ = ("_file", "_left", "length", "start")

    def __init__(self, file: Readable, length: int) -> None:
        self._file = file
        self._left = self.length = length
        regular = _regular(file)
        self.start = 0 if regular is None else regular.tell()

    def read(self, size: int, /) -> bytes | str:
        """Return at most size bytes; none at the end.

        Raises:
            ValueError: The file ended before its length; the server would wait for the rest.
        """
        if not self._left:
            return b""
        block = self._file.read(min(size, self._left))
        if not block:
            raise self.shrank(self._left)
        self._left -= len(block)
        return block

    def duplicate(self) -> int | None:
        """Return a descriptor of the file for the caller to close; ``None`` if it has none, or is closed.

        The file's own number may be another file's by the time that it is sent.
        """
        regular = _regular(self._file)
        return None if regular is None else os.dup(regular.fileno())

    @property
    def source(self) -> Readable:
        """The file itself."""
        return self._file

    def shrank(self, missing: int) -> ValueError:
        """Return the error for a file that ended before its length."""
        return ValueError(f"the body's file shrank: it ended {missing} bytes short of the Content-Length sent")

    def leave_at(self, sent: int) -> None:
        """Put the file's position behind what somebody else has read of it."""
        regular = _regular(self._file)
        if regular is not None:
            regular.seek(self.start + sent)


def blocks(body: BodySource, blocksize: int) -> Iterable[bytes | bytearray | memoryview]:
    """Return a body in the blocks in which it is sent.

    Raises:
        TypeError: It is none of the documented kinds.
    """
    if isinstance(body, (bytes, bytearray, memoryview)):
        return (body,)
    read = getattr(body, "read", None)
    if read is not None:
        return _file_blocks(body, blocksize)  # type: ignore[arg-type]  # it has just been asked
    try:
        return (memoryview(body),)  # type: ignore[arg-type]  # array.array and the like
    except TypeError:
        pass
    if isinstance(body, str) or not isinstance(body, Iterable):
        raise TypeError(_NO_BODY % type(body))
    return body


def _file_blocks(file: Readable, blocksize: int) -> Iterable[bytes]:
    while block := file.read(blocksize):
        yield block.encode("latin-1") if isinstance(block, str) else block


def encode_body(body: str) -> bytes:
    """Encode a body as latin-1, the documented encoding of str.

    Raises:
        UnicodeEncodeError: It holds other characters.
    """
    try:
        return body.encode("latin-1")
    except UnicodeEncodeError as fault:
        raise UnicodeEncodeError(
            fault.encoding,
            fault.object,
            fault.start,
            fault.end,
            "body is not latin-1: encode it, for instance body.encode('utf-8'), before it is sent",
        ) from None


# --- fields ---------------------------------------------------------------------------------------------


def lower(name: object) -> str:
    """Return a field's name in lower case."""
    return name.lower() if isinstance(name, str) else field_bytes(name).decode("latin-1").lower()


def field_bytes(part: object) -> bytes:
    """Return a field's name or value as bytes."""
    if isinstance(part, bytes):
        return part
    if isinstance(part, str):
        return part.encode("latin-1")
    if isinstance(part, int):
        return str(part).encode("ascii")
    raise TypeError(f"a header name or value must be str, bytes or int, not {type(part).__name__}")


def without_userinfo(target: str) -> str:
    """Return a request target without what may be a password in it."""
    if "@" not in target:
        return target
    try:
        parts = urlsplit(target)
    except ValueError:
        return "(a malformed target)"
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def printable(target: str) -> str:
    """Return a request target for messages and the log: without what may be a password, or a key in its query."""
    path, mark, _ = without_userinfo(target).partition("?")
    return f"{path}?..." if mark else path


def redacted(head: bytes) -> bytes:
    """Return a head for printing: the values of credentials replaced."""
    request_line, *lines = head.split(b"\r\n")
    words = [without_userinfo(word.decode("latin-1")).encode("latin-1") for word in request_line.split(b" ")]
    shown = [
        line.partition(b":")[0] + b": [hidden]" if line.lower().startswith(_SECRET_FIELDS) else line for line in lines
    ]
    return b"\r\n".join([b" ".join(words), *shown])
