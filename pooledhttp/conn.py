"""One connection, one exchange at a time: `HTTPConnection` and `HTTPSConnection`, as documented for httplib.

The rule of the whole package stands in `states.TRANSITIONS`: whatever is missing from that table is an error, raised
before a byte is written.  `HTTPConnection._advance` is the only writer of the state.

A connection knows nothing of pools.  It keeps a journal (what it opened, why it closed) that whoever lends it may
read; its limits come from `timeout`, as documented, or are laid on it by `bound`.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
import threading
import warnings
import weakref
from http.client import HTTP_PORT, HTTPS_PORT, HTTPMessage

from . import log
from .dial import (
    GLOBAL_DEFAULT_TIMEOUT,
    Dialer,
    create_connection,
    default_tls_context,
    start_tls,
)
from .errors import (
    CannotSendHeader,
    CannotSendRequest,
    HTTPException,
    IllegalKeywordArgument,
    ImproperConnectionState,
    IncompleteRead,
    InvalidResponse,
    InvalidURL,
    NotConnected,
    RemoteDisconnected,
    ResponseNotReady,
    UnreadResponse,
)
from .hints import Any, Final, TypeVar, cast
from .origin import SourceAddress, check_source_address, split_host_port
from .request import (
    BODILESS,
    NO_HEADERS,
    BodySource,
    Field,
    Headers,
    PreparedRequest,
    binds_connection,
    body_length,
    complete_fields,
    constant_fields,
    declared_length,
    encode_body,
    expects_continue,
    field_bytes,
    lower,
    offers_to_bind,
    prepare,
    printable,
    redacted,
)
from .response import Body, HTTPResponse, read_head
from .states import (
    BODY_END,
    BODY_END_CLOSE,
    CLOSE,
    CLOSED,
    CONNECT,
    ENDHEADERS,
    EXCHANGE,
    FAULT,
    GETRESPONSE,
    IDLE,
    PUTREQUEST,
    REQUEST,
    REQUEST_SENT,
    REQUEST_STARTED,
    UNREAD_RESPONSE,
    Event,
    Moves,
    State,
)
from .stats import CloseReason
from .timeouts import Clock, ConnectDeadline, Deadline, Timeout, check_seconds, monotonic
from .transport import FileTransport, ForeignSocket, Transport, transport_for
from .tunnel import Tunnel
from .upload import Upload, frames
from .wire import (
    DEFAULT_LIMITS,
    FieldValue,
    Head,
    Limits,
    check_field,
    check_method,
    check_target,
    request_head,
    to_message,
    usual_head,
)

# How sending fails when the peer reads no more; it may have answered before.
PEER_STOPPED_READING: Final = (BrokenPipeError, ConnectionResetError, ConnectionAbortedError, ssl.SSLEOFError)
_STEPS: Final = ("putrequest", "putheader", "endheaders", "send")


# What a finished exchange comes to: the head, the body and the trailers.
Exchange = tuple[Head, bytes, list[tuple[str, str]]]
_Response = TypeVar("_Response", bound=HTTPResponse)


# What is read at once of a body that is a file, in bytes; http.client's number.
BLOCKSIZE: Final = 8192


class HTTPConnection:
    """A connection to an HTTP server, as documented for ``httplib`` and ``http.client``.

    Args:
        host: Name or address of the server; ``"host:port"`` and ``"[::1]:80"`` carry the port along.
        port: TCP port; ``None``: from `host`, else 80.
        timeout: Seconds for each blocking operation (connecting counts as one); ``None`` is unbounded; without it
            ``socket.getdefaulttimeout()`` holds.
        source_address: Local (host, port) to bind, or ``None``.
        blocksize: Bytes to read at once from a body that is a file.
        strict: Accepted for httplib's sake: ``True`` is what we always are.
        max_response_headers: The most header fields of one response; ``None``: 100.

    Raises:
        InvalidURL: Host or port is malformed.
        ValueError: The timeout, the block size or the number of fields is.
        IllegalKeywordArgument: ``strict=False``, which would accept HTTP/0.9.
    """

    # What every exchange touches lies side by side; `__dict__` is there for what subclasses and users add.
    __slots__ = ("__dict__", "__weakref__", "_asks_first", "_body", "_body_left", "_clock", "_close_reasons",
                 "_constant_fields", "_create_connection", "_deadline", "_dialer", "_exchanges",
                 "_failed_unanswered", "_failed_unsent", "_guard", "_head", "_host", "_is_probed", "_is_users_own",
                 "_lease", "_limits", "_method", "_opened_seconds", "_opened_transport", "_port", "_proxy_fields",
                 "_reader", "_send_fault", "_started", "_state", "_struck_for", "_target", "_timeouts", "_transport",
                 "_tunnel_opened", "_tunnel_wanted", "_upload", "blocksize", "source_address", "timeout")  # fmt: skip

    default_port = HTTP_PORT
    response_class: type[HTTPResponse] = HTTPResponse
    auto_open = 1
    debuglevel = 0
    # After ``Expect: 100-continue``, how many seconds to wait for the server's word before the body is sent.
    expect_continue_timeout = 1.0

    _http_vsn = 11
    _http_vsn_str = "HTTP/1.1"
    _has_own_steps = False
    _has_own_send = False

    def __init_subclass__(cls) -> None:
        """See whether a subclass takes part in the steps of a request; then `request` goes through them."""
        super().__init_subclass__()
        cls._has_own_send = cls.send is not HTTPConnection.send
        cls._has_own_steps = any(getattr(cls, step) is not getattr(HTTPConnection, step) for step in _STEPS)

    def __init__(
        self,
        host: str,
        port: int | str | None = None,
        timeout: float | object | None = GLOBAL_DEFAULT_TIMEOUT,
        source_address: SourceAddress | None = None,
        blocksize: int = BLOCKSIZE,
        *,
        strict: bool = True,
        max_response_headers: int | None = None,
    ) -> None:
        if not strict:
            raise IllegalKeywordArgument("strict=False means HTTP/0.9, where any bytes at all are an answer: "
                                         "leave it out")  # fmt: skip
        if timeout is not GLOBAL_DEFAULT_TIMEOUT:
            check_seconds("timeout", timeout)  # type: ignore[arg-type]  # it is what checks the type
        if isinstance(blocksize, bool) or not isinstance(blocksize, int) or blocksize < 1:
            raise ValueError(f"blocksize must be a positive number of bytes, not {blocksize!r}")
        check_source_address(source_address)
        self._host, self._port = split_host_port(host, port, self.default_port)
        self.timeout = timeout
        self.source_address = source_address
        self.blocksize = blocksize
        self._create_connection = create_connection
        self._tunnel_wanted: Tunnel | None = None
        self._tunnel_opened: Tunnel | None = None  # when the present socket was opened
        self._proxy_fields: list[tuple[str, str]] | None = None

        self._state = CLOSED
        # Guards the state alone, for the length of a look-up: two threads cannot both begin a request.
        self._guard = threading.Lock()
        self._transport: Transport | None = None
        self._opened_transport: Transport | None = None  # by connect(); another one was assigned by somebody
        self._method = "GET"
        self._target = "/"
        self._started: list[Field] = []
        self._send_fault: OSError | None = None
        self._body_left = 0  # announced by the head and not sent yet; below 0: nobody knows
        self._upload: Upload | None = None  # of the present request
        self._asks_first = False  # the body waits for 100 Continue
        self._is_users_own = False  # the server takes everybody on this socket for the user of its NTLM or Negotiate
        self._is_probed = False  # whoever lends it has just looked whether it is stale
        self._head: Head | None = None
        self._body: Body | None = None
        self._reader: weakref.ref[HTTPResponse] | None = None
        self._constant_fields = constant_fields(self._host, self._port, default_port=self.default_port)

        self._limits = DEFAULT_LIMITS
        if max_response_headers is not None:
            self._limits = Limits(fields=max_response_headers)
        self._dialer: Dialer | None = None
        self._timeouts: Timeout | None = None
        self._deadline: Deadline | None = None
        self._clock: Clock = monotonic
        self._exchanges = 0  # completed on the present socket
        self._failed_unsent = False  # the last failure came before a byte of the request was written
        self._failed_unanswered = False  # ... before a byte of the answer arrived
        self._opened_seconds: list[float] = []
        self._close_reasons: list[CloseReason] = []
        self._lease: object | None = None  # the mark of whoever lends it
        self._struck_for: CloseReason | None = None  # why a pool has struck it off; it is closed for that

    # --- the state ----------------------------------------------------------------------------------

    def _advance(self, moves: Moves) -> None:
        """Write the state: the only place that does."""
        with self._guard:
            following = moves.get(self._state)
            if following is None:
                raise self._refusal(moves.event)
            self._state = following

    def _refusal(self, event: Event) -> ImproperConnectionState:
        """Return the error for an event that has no transition from the present state."""
        state = self._state
        if event is Event.GETRESPONSE:
            return ResponseNotReady(state.name)
        if event is Event.ENDHEADERS:
            return CannotSendHeader(state.name)
        if event in {Event.PUTREQUEST, Event.CONNECT}:
            if state is UNREAD_RESPONSE:
                return self._unread()
            return CannotSendRequest(state.name)
        return ImproperConnectionState(f"{event.name} in {state.name}")

    def _unread(self) -> UnreadResponse:
        head, body = self._head, self._body
        answer = f"{head.status} {head.reason}".rstrip() if head is not None else "a response"
        if body is None or body.left is None:
            rest = "its body, whose length is not known,"
        else:
            rest = f"{body.left} bytes of its body"
        return UnreadResponse(
            f"the response to {self._method} {printable(self._target)} ({answer}) has not been read to the "
            f"end: {rest} would be taken for the next answer; read() the rest, close() the response, or close() the "
            f"connection"
        )

    @property
    def sock(self) -> Any:  # noqa: ANN401  # documented: whatever socket there is, a foreign one included
        """The connected socket, or ``None``.  A socket that is assigned is used as it is and closed with us."""
        transport, head = self._transport, self._head
        if transport is None:
            return None
        if (
            self._state is UNREAD_RESPONSE
            and head is not None
            and not head.is_persistent
            and not self._switches_protocol(head)
        ):
            return None  # it belongs to the response alone, as http.client has it
        return getattr(transport, "_foreign", None) or transport.sock

    @sock.setter
    def sock(self, sock: socket.socket | ForeignSocket | None) -> None:
        if sock is None:
            if self._transport is not None:
                self._close_reasons.append(CloseReason.CLIENT_CLOSE)
            self._transport = None
            self._body = None  # its response, if somebody still reads it, has the socket to itself
            self._advance(CLOSE)
            return
        self._install(transport_for(sock, clock=self._clock))
        if self._state is CLOSED:
            self._advance(CONNECT)

    @property
    def host(self) -> str:
        """Name or address of the server, or of the proxy if there is a tunnel.

        A new one is the Host of the next request, and where the next `connect` goes.

        Raises:
            InvalidURL: It is malformed.
            RuntimeError: The connection was lent by a pool, which decides where it goes.
        """
        return self._host

    @host.setter
    def host(self, host: str) -> None:
        self._refuse_if_lent()
        self._host, _ = split_host_port(host, self._port, self.default_port)
        self._renew_constant_fields()

    @property
    def port(self) -> int:
        """TCP port; see `host`."""
        return self._port

    @port.setter
    def port(self, port: int) -> None:
        self._refuse_if_lent()
        _, self._port = split_host_port(self._host, port, self.default_port)
        self._renew_constant_fields()

    def _refuse_if_lent(self) -> None:
        if self._dialer is not None:
            raise RuntimeError("the connection was lent by a pool, which decides where it goes")

    def _renew_constant_fields(self) -> None:
        if self._tunnel_wanted is None:
            self._constant_fields = constant_fields(self._host, self._port, default_port=self.default_port)

    # --- connecting -----------------------------------------------------------------------------------

    def set_debuglevel(self, level: int) -> None:
        """Print heads to stdout when `level` is above 0; credentials are left out."""
        self.debuglevel = level

    def set_tunnel(self, host: str, port: int | str | None = None, headers: Headers | None = None) -> None:
        """Reach `host` through a CONNECT tunnel; our own host and port are then the proxy's (RFC 9110 section 9.3.6).

        Args:
            host: The host behind the proxy; ``"host:port"`` carries the port along.
            port: Its port; ``None``: from `host`, else the default port.
            headers: Sent to the proxy with CONNECT, and never to the host behind it.

        Raises:
            RuntimeError: The connection is open already.
            ValueError: The host or a header would break the request.
        """
        if self._transport is not None:
            raise RuntimeError("Can't set up tunnel for established connection")
        if not host:
            raise ValueError("Invalid tunnel host: it is empty")
        try:
            tunnel_host, tunnel_port = split_host_port(host, port, self.default_port)
        except InvalidURL as fault:
            raise ValueError(f"Invalid tunnel host or port: {fault}") from None
        fields = [(name, value) for name, value in (headers or {}).items()]
        for name, value in fields:
            check_field(name, value)
        self._tunnel_wanted = Tunnel(tunnel_host, tunnel_port, fields)
        self._constant_fields = constant_fields(tunnel_host, tunnel_port, default_port=self.default_port)

    def get_proxy_response_headers(self) -> HTTPMessage | None:
        """Return the header fields of the proxy's answer to CONNECT, or ``None`` without a tunnel."""
        return None if self._proxy_fields is None else to_message(self._proxy_fields)

    def bound(
        self,
        *,
        timeouts: Timeout,
        deadline: Deadline | None = None,
        dialer: Dialer | None = None,
        limits: Limits = DEFAULT_LIMITS,
        clock: Clock = monotonic,
    ) -> None:
        """Lay other limits on the connection than the documented `timeout`; for whoever lends it.

        Args:
            timeouts: `connect`, `read` and `write` for what follows.
            deadline: When everything must be over, or ``None``.
            dialer: How to reach the server, instead of `host` and `port`.
            limits: How much a peer may send besides bodies.
            clock: Seconds on a monotonic clock.
        """
        self._timeouts = timeouts
        self._dialer = dialer
        self._limits = limits
        self._clock = clock
        self._lend(deadline, timeouts)

    def _lend(self, deadline: Deadline | None, timeouts: Timeout) -> None:
        """Set the limits of the coming lease; `bound` has been called before."""
        self._deadline = deadline
        self._timeouts = timeouts
        if self._transport is not None:
            self._transport.bound(read=timeouts.read, write=timeouts.write, deadline=deadline, what=self._host)

    def _renew_deadline(self, deadline: Deadline | None) -> None:
        """Set the deadline of the coming lease, whose other limits are those of the one before."""
        self._deadline = deadline
        if self._transport is not None:
            self._transport.renew_deadline(deadline)

    def connect(self) -> None:
        """Connect to the host given at construction, through the tunnel if there is one.

        Raises:
            ConnectTimeout: It took too long.
            TunnelError: The proxy refused.
            UnreadResponse: A response is still unread; `close` first.
            OSError: The socket's own errors, `socket.gaierror` among them.
            ssl.SSLError: The TLS handshake failed.
        """
        with self._guard:
            if self._state not in CONNECT:
                raise self._refusal(Event.CONNECT)
        sys.audit("http.client.connect", self, self.host, self.port)  # documented
        if self._transport is not None:
            self._drop(CloseReason.CLIENT_CLOSE)
        started = self._clock()
        deadline = self._connect_deadline()
        try:
            sock = self._dial(deadline)
            if self._tunnel_wanted is not None:
                sock = self._open_tunnel(self._tunnel_wanted, sock, deadline)
            sock = self._secure(sock, deadline)
        except BaseException as fault:
            self._advance(FAULT)
            if log.is_debugging():
                log.debug(f"no connection to {self.host}:{self.port}: {type(fault).__name__}: {fault}")
            raise
        transport = Transport(sock, clock=self._clock) if isinstance(sock, socket.socket) else transport_for(sock)
        self._install(transport)
        self._opened_transport = transport
        self._tunnel_opened = self._tunnel_wanted
        seconds = self._clock() - started
        self._opened_seconds.append(seconds)
        self._struck_for = None
        self._advance(CONNECT)
        if log.is_debugging():
            log.debug(f"opened a connection to {self.host}:{self.port} in {seconds * 1e3:.1f} ms")

    def _open_tunnel(self, tunnel: Tunnel, sock: socket.socket, deadline: ConnectDeadline) -> socket.socket:
        """Ask the proxy on a socket for a tunnel; return the socket that leads through it, or close it and raise."""
        sock, self._proxy_fields = tunnel.open(
            sock, proxy=f"{self._host}:{self._port}", deadline=deadline, limits=self._limits, clock=self._clock
        )
        if self.debuglevel > 0:
            for name, value in self._proxy_fields:
                print("header:", f"{name}: {value}")
        return sock

    # Private names of http.client, for subclasses with a connect() of their own, which are known to read
    # ``if self._tunnel_host: self._tunnel()``.

    @property
    def _tunnel_host(self) -> str | None:
        return None if self._tunnel_wanted is None else self._tunnel_wanted.host

    @property
    def _tunnel_port(self) -> int | None:
        return None if self._tunnel_wanted is None else self._tunnel_wanted.port

    @property
    def _tunnel_headers(self) -> dict[str | bytes, FieldValue]:
        return {} if self._tunnel_wanted is None else dict(self._tunnel_wanted.fields)

    def _tunnel(self) -> None:
        """Ask the proxy on the present socket for the tunnel; when that fails, the connection is closed."""
        if self._tunnel_wanted is None or self._transport is None:
            raise NotConnected("there is no tunnel to open, or no socket to open it on")
        try:
            self._open_tunnel(self._tunnel_wanted, self.sock, self._connect_deadline())
        except BaseException:
            self._drop(CloseReason.ERROR)
            self._advance(FAULT)
            raise

    def _connect_deadline(self) -> ConnectDeadline:
        if self._timeouts is not None:
            seconds = self._timeouts.connect
        elif self.timeout is GLOBAL_DEFAULT_TIMEOUT:
            seconds = socket.getdefaulttimeout()
        else:
            seconds = cast("float | None", self.timeout)
        return ConnectDeadline(seconds, total=self._deadline, what=f"{self.host}:{self.port}", clock=self._clock)

    def _dial(self, deadline: ConnectDeadline) -> socket.socket:
        if self._dialer is not None:
            return self._dialer.dial(deadline)
        return self._create_connection((self.host, self.port), self.timeout, self.source_address)

    def _secure(self, sock: socket.socket, _: ConnectDeadline) -> socket.socket:
        """Return the socket to speak HTTP on: this one, or one that encrypts."""
        return sock

    def _install(self, transport: Transport) -> None:
        self._transport = transport
        self._exchanges = 0
        self._is_users_own = False
        if self._timeouts is not None:
            transport.bound(
                read=self._timeouts.read, write=self._timeouts.write, deadline=self._deadline, what=self._host
            )

    # --- sending --------------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        url: str,
        body: BodySource | None = None,
        headers: Headers = NO_HEADERS,
        *,
        encode_chunked: bool = False,
    ) -> None:
        """Send a whole request; connect first if need be.

        Args:
            method: The method, as it shall stand on the wire.
            url: The request target; empty means ``/``.
            body: bytes, str (sent as latin-1), a file, or an iterable of bytes.
            headers: Fields to send; Host, Accept-Encoding and Content-Length are added where they are missing.
            encode_chunked: Whether to put a body into chunks when `headers` hold Transfer-Encoding.

        Raises:
            UnreadResponse: The response before is unread; nothing has been written.
            CannotSendRequest: A request is under way.
            ValueError: Method or headers would break the request (`InvalidURL`: the target); nothing has been written.
            OSError: The socket's own errors; an answer may still be there for `getresponse`.
        """
        if self._has_own_steps:
            self._request_by_steps(method, url, body, headers, encode_chunked=encode_chunked)
            return
        transport = self._transport
        if (
            body is None
            and not headers
            and transport is not None
            and self._state is IDLE
            and method in BODILESS
            and self.debuglevel <= 0
            and (self._is_probed or transport.is_quiet())
        ):
            # The usual case in few steps: nothing to prepare, and an open connection of which nothing was heard.
            lines = self._constant_fields.lines
            head = request_head(method, url or "/", (), version=self._http_vsn_str, checked_lines=lines)
            self._advance(REQUEST)
            self._method = method
            self._target = url
            self._body_left = 0
            self._head = self._send_fault = self._upload = None
            self._is_probed = False
            transport.any_sent = transport.any_received = False
            try:
                sys.audit("http.client.send", self, head)  # documented
                transport.send(head)
            except BaseException as fault:
                self._sending_failed(fault)
                raise
            return
        self.perform(
            prepare(
                method,
                url,
                body,
                headers,
                constant_fields=self._constant_fields,
                encode_chunked=encode_chunked,
                version=self._http_vsn_str,
            )
        )

    def perform(self, prepared: PreparedRequest) -> None:
        """Send a request that is known to be well formed; connect first if need be.

        Raises:
            UnreadResponse: The response before is unread; nothing has been written.
            CannotSendRequest: A request is under way.
            OSError: The socket's own errors; an answer may still be there for `getresponse`.
        """
        self._claim()
        self._method = prepared.method
        self._target = prepared.target
        self._body_left = prepared.announced
        self._asks_first = prepared.expects_continue
        self._transmit(prepared.head, prepared.body, is_chunked=prepared.is_chunked, is_counted=not prepared.is_exact)
        if prepared.binds_connection:
            self._is_users_own = True

    def _claim(self) -> None:
        """Begin a request; a connection that its peer has ended or spoken on is closed, to be opened anew.

        What such a peer has said would be taken for the answer.  The state comes first: another thread's request may be
        under way, and its answer is none of our business.
        """
        self._advance(PUTREQUEST)
        transport = self._transport
        if transport is not None and not self._is_probed:
            reason = transport.staleness()
            if reason is not None:
                self._drop(reason)
        self._is_probed = False

    def _request_by_steps(
        self, method: str, url: str, body: BodySource | None, headers: Headers, *, encode_chunked: bool
    ) -> None:
        """Send a request through the documented steps, since a subclass has changed one of them."""
        if isinstance(body, str):
            body = encode_body(body)
        fields, body, is_chunked, names = complete_fields(
            method, body, headers, constant_fields=[], encode_chunked=encode_chunked
        )
        self.putrequest(method, url, skip_host="host" in names, skip_accept_encoding="accept-encoding" in names)
        for name, value in fields:
            self.putheader(name, value)
        self.endheaders(body, encode_chunked=is_chunked)

    def putrequest(
        self,
        method: str,
        url: str,
        skip_host: bool = False,
        skip_accept_encoding: bool = False,  # documented so
    ) -> None:
        """Begin a request: the first of the steps.

        Args:
            method: The method, as it shall stand on the wire.
            url: The request target; empty means ``/``.
            skip_host: Whether to leave out the Host field.
            skip_accept_encoding: Whether to leave out ``Accept-Encoding: identity``.

        Raises:
            UnreadResponse: The response before is unread.
            CannotSendRequest: A request is under way.
            ValueError: The method is no token.
            InvalidURL: The target holds control characters, spaces or non-ASCII.
        """
        check_method(method)
        check_target(url or "/")
        self._claim()
        self._method = method
        self._target = url or "/"
        host, accept_encoding = self._constant_fields
        self._started = []
        if not skip_host and self._http_vsn == 11:
            self._started.append(host)
        if not skip_accept_encoding and self._http_vsn == 11:
            self._started.append(accept_encoding)

    def putheader(self, header: str | bytes, *values: FieldValue) -> None:
        """Add a field to the request that `putrequest` began.

        Args:
            header: The field's name.
            values: Its value; several are joined by a tab, which is how a receiver unfolds the documented
                continuation lines (RFC 9112 section 5.2 forbids sending those).

        Raises:
            CannotSendHeader: No request has been begun.
            ValueError: Name or value would break the request, or it is a second Host field.
        """
        if self._state is not REQUEST_STARTED:
            raise CannotSendHeader(self._state.name)
        for part in values:
            check_field(header, part)
        value: FieldValue = values[0] if len(values) == 1 else b"\t".join(field_bytes(part) for part in values)
        check_field(header, value)
        if lower(header) == "host" and any(lower(name) == "host" for name, _ in self._started):
            raise ValueError("a request has one Host field, not several of them (RFC 9112 section 3.2): to give it "
                             "yourself, begin with putrequest(..., skip_host=True)")  # fmt: skip
        self._started.append((header, value))

    def endheaders(self, message_body: BodySource | None = None, *, encode_chunked: bool = False) -> None:
        """Send the head that `putrequest` and `putheader` made, and a body.

        Args:
            message_body: As in `request`.
            encode_chunked: Whether to put the body into chunks.

        Raises:
            CannotSendHeader: No request has been begun.
            OSError: The socket's own errors; an answer may still be there for `getresponse`.
        """
        if self._state is not REQUEST_STARTED:
            raise CannotSendHeader(self._state.name)
        is_chunked = encode_chunked and message_body is not None
        if is_chunked and not {"content-length", "transfer-encoding"} & {lower(name) for name, _ in self._started}:
            self._started.append(("Transfer-Encoding", "chunked"))  # else the server would take them for a request
        head = request_head(self._method, self._target, self._started, version=self._http_vsn_str)
        if isinstance(message_body, str):
            message_body = encode_body(message_body)
        declared = declared_length(self._started)
        if is_chunked:
            if declared is not None:
                raise ValueError("a body in chunks goes with Transfer-Encoding: chunked, and without Content-Length")
            self._body_left = 0
        else:
            length = body_length(message_body)
            if declared is not None and length is not None and length > declared:
                raise ValueError(f"the body has {length} bytes, but the head announces {declared}")
            self._body_left = -1 if declared is None else declared
        self._asks_first = expects_continue(self._started)
        self._transmit(head, message_body, is_chunked=is_chunked, is_counted=not is_chunked)
        if binds_connection(self._started):
            self._is_users_own = True

    def _transmit(self, head: bytes, body: BodySource | None, *, is_chunked: bool, is_counted: bool) -> None:
        """Connect if need be, and send: the only place where a request goes out.

        Args:
            head: The head, with a small body behind it.
            body: The rest, if there is one.
            is_chunked: Whether to put it into chunks.
            is_counted: Whether its bytes are to be counted against what the head has announced.
        """
        transport = self._transport
        try:
            if transport is None:
                if not self.auto_open:
                    raise NotConnected("the connection is closed and auto_open is off")
                self.connect()
                transport = self._transport
                if transport is None:
                    raise NotConnected("connect() has not connected")
            self._advance(ENDHEADERS)  # not if another thread has closed it meanwhile
        except BaseException:
            self._drop(CloseReason.CLIENT_CLOSE)
            self._advance(FAULT)
            raise
        self._send_fault = self._upload = None
        transport.any_sent = transport.any_received = False
        try:
            if self.debuglevel > 0:
                print("send:", repr(redacted(head)))
            if self._has_own_send:
                self._transmit_by_send(head, body, is_chunked=is_chunked, is_counted=is_counted)
                return
            sys.audit("http.client.send", self, head)  # documented
            transport.send(head)
            if body is not None:
                self._send_body(transport, body, is_chunked=is_chunked, is_counted=is_counted)
        except BaseException as fault:
            self._sending_failed(fault)
            raise

    def _transmit_by_send(self, head: bytes, body: BodySource | None, *, is_chunked: bool, is_counted: bool) -> None:
        """Send through the `send` of a subclass: it may count, log or slow down what passes."""
        body_left, asks_first = self._body_left, self._asks_first
        self._body_left, self._asks_first = -1, False  # send() is not told what is head, framing and body
        self.send(head)
        self._asks_first = asks_first
        if is_counted:
            self._body_left = body_left
        upload = self._upload  # there is none if send() has passed nothing on, but written by itself
        if body is not None:
            wire = frames(body, self.blocksize, is_chunked=is_chunked)
            for frame in wire if upload is None else upload.watched(wire):
                self.send(bytes(frame))
                if upload is not None and upload.is_refused:
                    break
        if not is_counted and (upload is None or not upload.is_refused):
            self._body_left = body_left

    def _sending_failed(self, fault: BaseException) -> None:
        is_body_broken = self._upload is not None and self._upload.is_body_broken
        if isinstance(fault, PEER_STOPPED_READING) and not is_body_broken:
            # The peer may have answered before it stopped (413, 401, 408): getresponse() looks.
            self._send_fault = fault
            if self._transport is not None:
                self._transport.bears_cut_head = True
        else:
            self._break(fault)

    def _send_body(self, transport: Transport, body: BodySource, *, is_chunked: bool, is_counted: bool) -> None:
        upload = self._upload
        if upload is None:
            me = weakref.ref(self)  # not self: it would be held by what it holds
            upload = self._upload = Upload(
                transport,
                method=self._method,
                limits=self._limits,
                announce=lambda data: sys.audit("http.client.send", me(), data),  # documented
            )
        if self._asks_first and body_length(body) != 0:
            self._asks_first = False
            upload.await_continue(self.expect_continue_timeout, clock=self._clock)
        body_left, self._body_left = self._body_left, -1  # a response that another thread reads meanwhile ends it all
        at_most = body_left if is_counted and body_left >= 0 else None
        if not upload.is_refused:
            sent = upload.send(body, blocksize=self.blocksize, is_chunked=is_chunked, at_most=at_most)
            if self._upload is upload and not upload.is_refused:
                self._body_left = body_left if at_most is None else at_most - sent

    def send(self, data: BodySource) -> None:
        """Send body data behind `endheaders`, as it is.

        Args:
            data: bytes, a file, or an iterable of bytes; once the server has answered that it wants no more, nothing is
                sent any longer.

        Raises:
            UnreadResponse: A response is unread: these bytes would be taken for a request.
            CannotSendRequest: No request is under way.
            ValueError: That is more than the head has announced, and would be taken for the next request.
            OSError: The socket's own errors.
        """
        if self._state is UNREAD_RESPONSE:
            raise self._unread()
        transport = self._transport
        is_foreign = isinstance(transport, FileTransport) and self._state is not REQUEST_STARTED
        if self._state is not REQUEST_SENT and not is_foreign:
            # A server would take these bytes for a request, and its answer for that of the next one.
            raise CannotSendRequest(f"send() belongs between endheaders() and getresponse() ({self._state.name})")
        assert transport is not None
        is_counted = self._state is REQUEST_SENT
        if is_counted and 0 <= self._body_left < (body_length(data) or 0):
            raise ValueError(f"{body_length(data)} bytes are more than the {self._body_left} that are left of the body "
                             f"which the head has announced")  # fmt: skip
        try:
            self._send_body(transport, data, is_chunked=False, is_counted=is_counted)
        except TypeError:
            self._body_left = -1  # nobody knows what of it has been sent before that showed
            raise
        except BaseException as fault:
            self._sending_failed(fault)
            raise

    # --- receiving ------------------------------------------------------------------------------------

    def getresponse(self) -> HTTPResponse:
        """Return the response to the request that was sent; its body is still to be read.

        Raises:
            ResponseNotReady: No request has been sent.
            RemoteDisconnected: The server closed the connection without an answer.
            HTTPException: What came is no HTTP/1 response.
            OSError: The socket's own errors, timeouts among them.
        """
        transport = self._transport
        if (
            transport is None
            or transport.__class__ is not Transport
            or transport.buffer
            or self.response_class is not HTTPResponse
            or self._body_left
            or self._upload is not None
            or self._send_fault is not None
            or self.debuglevel > 0
        ):
            return self._respond(self.response_class)
        self._advance(GETRESPONSE)
        # The usual case in few steps: a head of the usual kind that arrives whole.  What can be done before the wait is
        # done before it: a core that has slept runs the same code for twice the price.
        try:
            response = HTTPResponse.__new__(HTTPResponse)
            response._head = response._body = None
            response._transport = transport
            response._owner = self
            response._url = self._target
            response._method = method = self._method
            limits = self._limits
            body = Body.__new__(Body)
            body._transport = transport
            body._limits = limits
            body.is_complete = False
            self._reader = weakref.ref(response)
            data = transport.more()
            if self._transport is not transport:
                raise NotConnected("the connection was closed meanwhile")
            usual = usual_head(data, method, limits)
            if usual is None:
                transport.buffer = data
                return self._begin(transport, HTTPResponse)
            head, head_end, body_end = usual
            self._head = response._head = body._head = head
            if head_end < len(data):
                transport.buffer = data
                transport.at = head_end
            if head_end == body_end:
                self._body_ended(None)
                return response
            body.left = head.length
            self._body = response._body = body
            if body_end > len(data):
                transport.hold()
            return response
        except BaseException as fault:
            if self._state is not CLOSED:  # else _begin() has seen to it
                self._no_response(fault)
            raise

    def _respond(self, response_class: type[_Response]) -> _Response:
        self._advance(GETRESPONSE)
        return self._begin(self._transport, response_class)

    def _begin(self, transport: Transport | None, response_class: type[_Response]) -> _Response:
        try:
            if transport is None:
                raise NotConnected("the connection was closed")
            response = response_class(transport, self.debuglevel, method=self._method, url=self._target)
            response._owner = self
            response._limits = self._limits
            response.begin()
            self._receive_begun(response._begun, response._body)
            response._body = self._body  # none is left to read when the head was all there is
            if self._body is not None:
                transport.hold()
        except BaseException as fault:
            self._no_response(fault)
            raise
        self._reader = weakref.ref(response)
        return response

    def exchange(self, prepared: PreparedRequest) -> Exchange:
        """Send a request and read its whole response: `perform` and `fetch` in one, without the pause between them.

        This is where a service spends its time, so the usual case goes through in few steps: an open connection, no
        body that is sent by itself, and a response that arrives in one piece.  Whatever is unusual is handed to the
        methods that know it, as soon as it is seen.

        Returns:
            The head, the body and the trailers.

        Raises:
            As `perform` and `fetch`; an answer that was sent before the peer stopped reading is returned.
        """
        transport = self._transport
        if transport is None or not prepared.is_plain or not self._is_probed or self.debuglevel > 0:
            try:
                self.perform(prepared)
            except PEER_STOPPED_READING:
                if self._state is not REQUEST_SENT:
                    raise
            return self.fetch()
        self._advance(EXCHANGE)
        self._is_probed = False
        self._body_left = 0
        self._method = method = prepared.method
        self._target = prepared.target
        self._head = self._send_fault = self._upload = None
        transport.any_sent = transport.any_received = False
        try:
            sys.audit("http.client.send", self, prepared.head)  # documented
            try:
                transport.send(prepared.head)
            except PEER_STOPPED_READING as fault:
                self._sending_failed(fault)  # it may have answered before it stopped
            data = transport.more()
            usual = usual_head(data, method, self._limits)
            if usual is None or usual[2] != len(data) or self._send_fault is not None:
                transport.buffer = data
                return self._fetch(transport)
            head, end, _ = usual
        except BaseException as fault:
            if self._state is not CLOSED:  # else _fetch() has seen to it
                self._no_response(fault)
            raise
        self._head = head
        self._exchanges += 1
        self._advance(BODY_END)
        return head, data[end:], []

    def fetch(self) -> Exchange:
        """Read the whole response to the request that was sent, without an `HTTPResponse` in between.

        Returns:
            The head, the body and the trailers.

        Raises:
            ResponseNotReady, HTTPException, OSError: As `getresponse` and `HTTPResponse.read`.
        """
        self._advance(GETRESPONSE)
        return self._fetch(self._transport)

    def _fetch(self, transport: Transport | None) -> Exchange:
        try:
            if transport is None:
                raise NotConnected("the connection was closed")
            head = read_head(transport, self._method, self._limits)
            body = Body(transport, head, self._limits)
            self._receive_begun(head, body)
        except BaseException as fault:
            self._no_response(fault)
            raise
        if self._body is None:
            return head, b"", []
        try:
            content = body.read_all()
        except BaseException as fault:
            self._body_broke(body, fault)
            raise
        self._body_ended(body)
        return head, content, list(body.trailers)

    def _receive_begun(self, head: Head, body: Body | None) -> None:
        if self._transport is None:
            raise NotConnected("the connection was closed meanwhile")
        self._head = head
        self._body = body
        if self._send_fault is not None or self._body_left or (self._upload is not None and self._upload.is_last):
            head.is_persistent = False  # the rest of the request may be missing, or there was a word of an end
        if head.status == 101 or self._method == "CONNECT":
            head.is_persistent = False
            if self._switches_protocol(head):
                self._body = None  # what follows is none, and the socket is the borrower's
                return
        if head.status == 401 and offers_to_bind(head.get("www-authenticate") or ""):
            self._is_users_own = True
        if body is not None and body.is_complete:
            self._body_ended(body)

    def _switches_protocol(self, head: Head) -> bool:
        """Tell whether the connection now speaks something else and never comes back to HTTP."""
        return head.status == 101 or (self._method == "CONNECT" and head.status < 300)

    def _no_response(self, fault: BaseException) -> None:
        self._break(fault)
        if self._send_fault is not None and isinstance(fault, (OSError, HTTPException)):
            sent, self._send_fault = self._send_fault, None
            raise sent from None

    # --- what the response tells (see ExchangeOwner) ------------------------------------------------------

    def _body_ended(self, body: Body | None) -> None:
        if body is not self._body and body is not None:
            body.close_transport()  # of an exchange that close() left to its response
            return
        self._body = None
        self._exchanges += 1
        transport, head = self._transport, self._head
        if transport is None or head is None:
            return  # closed meanwhile by another thread
        if transport._held is not None:
            transport.unhold()
        if head.is_persistent and not transport.buffer:
            self._advance(BODY_END)
            return
        self._drop(CloseReason.LEFTOVER if head.is_persistent else CloseReason.SERVER_CLOSE)
        self._advance(BODY_END_CLOSE)

    def _body_broke(self, body: Body, fault: BaseException) -> None:
        if body is not self._body:
            body.close_transport()
            return
        self._break(fault)

    def _give_up_body(self, body: Body) -> None:
        if body is not self._body:
            body.close_transport()
            return
        self.drain()

    # --- the end of an exchange, and of the connection -----------------------------------------------------

    def drain(self, *, max_bytes: int = 65536, seconds: float = 0.05) -> bool:
        """Read and forget what is left of a body, within bounds; beyond them, close the connection.

        Args:
            max_bytes: The most to read.
            seconds: The longest it may take.

        Returns:
            Whether the connection is idle now.
        """
        body, transport, head = self._body, self._transport, self._head
        if head is not None and self._state is UNREAD_RESPONSE and self._switches_protocol(head):
            self._end(CloseReason.CLIENT_CLOSE)  # it speaks another protocol now: none that we could read to the end
            return False
        if body is None or transport is None:
            return self._state is IDLE
        if (
            isinstance(transport, FileTransport)
            or head is None
            or not head.is_persistent
            or (body.left or 0) > max_bytes
        ):
            self._end(CloseReason.UNREAD)
            return False
        left = max_bytes
        try:
            previous = transport.hurry(Deadline(seconds, what="draining", clock=self._clock))
            while left >= 0 and not body.is_complete:
                # One byte more: that a chunked body has ended shows only to whoever reads on behind its last byte.
                left -= len(body.read_some(left + 1))
        except (OSError, HTTPException):
            self._end(CloseReason.UNREAD)
            return False
        except BaseException as fault:
            self._break(fault)
            raise
        if not body.is_complete:
            self._end(CloseReason.UNREAD)
            return False
        transport.restore(previous)
        self._cut_reader()
        self._body_ended(body)
        return self._state is IDLE

    def close(self) -> None:
        """Close the connection; a response that has the connection to itself can still be read."""
        reader = self._reader() if self._reader is not None else None
        if self._head is not None and self._switches_protocol(self._head):
            reader = None  # what speaks another protocol now belongs to the caller, who closes it here
        if self._body is not None and reader is not None and reader.will_close and not reader.isclosed():
            # http.client leaves such a connection to its response, and programs rely on it.
            self._body = self._transport = None
            self._close_reasons.append(CloseReason.CLIENT_CLOSE)
        self._end(CloseReason.CLIENT_CLOSE)

    def _end(self, reason: CloseReason, *, is_told: bool = True) -> None:
        """Close for a reason, and tell the log of it; twice is fine."""
        is_told = is_told and self._transport is not None
        if self._body is not None:
            self._body = None
            self._cut_reader()
        self._started = []
        self._drop(reason)
        self._advance(CLOSE)
        if is_told:
            self._tell_the_end(reason)

    def _break(self, fault: BaseException) -> None:
        """Close because an exchange failed."""
        self._body = None
        transport = self._transport
        self._failed_unsent = transport is not None and not transport.any_sent
        self._failed_unanswered = transport is not None and not transport.any_received
        reason = self._reason_of(fault)
        self._drop(reason)
        self._advance(FAULT)
        if transport is not None:
            self._tell_the_end(reason)

    def _tell_the_end(self, reason: CloseReason) -> None:
        if log.is_debugging():
            log.debug(f"closed a connection to {self.host}:{self.port}: {self._struck_for or reason}")

    def _reason_of(self, fault: BaseException) -> CloseReason:
        transport = self._transport
        if isinstance(fault, TimeoutError):
            return CloseReason.TIMEOUT
        if isinstance(fault, IncompleteRead) and not isinstance(fault, InvalidResponse):
            return CloseReason.TRUNCATED
        if self._exchanges and transport is not None and not transport.any_received:
            if isinstance(fault, RemoteDisconnected):
                return CloseReason.STALE_EOF
            if isinstance(fault, PEER_STOPPED_READING):
                return CloseReason.STALE_RESET
        return CloseReason.ERROR

    def _drop(self, reason: CloseReason) -> None:
        """Close the socket, if there is one, and note why."""
        transport = self._transport
        if transport is None:
            return
        self._transport = self._opened_transport = None
        self._close_reasons.append(reason)
        transport.close()

    def abandon(self) -> None:
        """Close the copy of a connection that a child process has inherited, and never connect it again.

        Whoever held the lock in the parent does not exist here, so there is a new one.
        """
        self._guard = threading.Lock()
        self._lease = None
        self.auto_open = 0
        self._end(CloseReason.CLIENT_CLOSE, is_told=False)  # it goes on in the parent

    def _cut_reader(self) -> None:
        reader = self._reader() if self._reader is not None else None
        if reader is not None:
            reader._cut_off()

    # --- what whoever lends it asks -------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """Where the connection stands in its exchange."""
        return self._state

    def staleness(self) -> CloseReason | None:
        """Return why this idle connection must not be used again, or ``None``; see `Transport.staleness`."""
        return self._transport.staleness() if self._transport is not None else CloseReason.CLIENT_CLOSE

    def __repr__(self) -> str:
        """Show where it goes and how it stands; no request data."""
        return f"<{type(self).__name__} {self.host}:{self.port} {self._state.name}>"


class HTTPSConnection(HTTPConnection):
    """An `HTTPConnection` over TLS, which verifies certificate and host name by default.

    Args:
        host: As `HTTPConnection`.
        port: TCP port; ``None``: from `host`, else 443.
        timeout: As `HTTPConnection`.
        source_address: As `HTTPConnection`.
        blocksize: As `HTTPConnection`.
        context: The TLS settings; ``None`` makes one that verifies against the system's authorities.  It is changed by
            `cert_file` and `check_hostname`, as in http.client, for whoever else uses it too.
        key_file: PEM file with the client's private key, or ``None``.
        cert_file: PEM file with the client's certificate chain, or ``None``.
        check_hostname: Deprecated, as in Python 3.11: sets the context's.
        strict: As `HTTPConnection`.
        max_response_headers: As `HTTPConnection`.

    Raises:
        As `HTTPConnection`; `OSError` and `ssl.SSLError` for the two files.
    """

    __slots__ = ("_context", "_server_hostname", "cert_file", "key_file")

    default_port = HTTPS_PORT

    def __init__(
        self,
        host: str,
        port: int | str | None = None,
        *,
        timeout: float | object | None = GLOBAL_DEFAULT_TIMEOUT,
        source_address: SourceAddress | None = None,
        context: ssl.SSLContext | None = None,
        blocksize: int = BLOCKSIZE,
        key_file: str | os.PathLike[str] | None = None,
        cert_file: str | os.PathLike[str] | None = None,
        check_hostname: bool | None = None,
        strict: bool = True,
        max_response_headers: int | None = None,
    ) -> None:
        super().__init__(
            host,
            port,
            timeout,
            source_address,
            blocksize,
            strict=strict,
            max_response_headers=max_response_headers,
        )
        if context is None:
            context = default_tls_context()
        if check_hostname is not None:
            warnings.warn("check_hostname is deprecated: set it on the context", DeprecationWarning, stacklevel=2)
            context.check_hostname = check_hostname
        if cert_file is not None:
            context.load_cert_chain(cert_file, key_file)
            context.post_handshake_auth = True  # for a server that asks for the certificate later
        elif key_file is not None:
            raise ValueError("key_file needs a cert_file")
        self.key_file = key_file
        self.cert_file = cert_file
        self._context = context
        self._server_hostname: str | None = None

    def _secure(self, sock: socket.socket, deadline: ConnectDeadline) -> socket.socket:
        host = self._server_hostname or (self._tunnel_wanted.host if self._tunnel_wanted is not None else self.host)
        # The certificate names the host without its root dot and without the zone of an address.
        name = host.partition("%")[0].rstrip(".")
        return start_tls(sock, self._context, server_hostname=name, deadline=deadline)
