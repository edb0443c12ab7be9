"""What a pool is asked to be: `PoolConfig`, frozen, and checked before anything is opened."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from types import MappingProxyType

from .dial import SocketOption
from .errors import InvalidURL
from .frozen import Frozen
from .hints import Any, Final, Literal, Protocol, TypedDict, cast
from .origin import SourceAddress, check_source_address, split_host_port
from .retry import Retry
from .timeouts import Clock, Timeout, check_seconds, monotonic
from .wire import DEFAULT_LIMITS, Limits, check_field, check_host


class MetricsRegistry(Protocol):
    """What `prometheus_client.CollectorRegistry` has and the core needs of it."""

    # Any: the collector's type is prometheus_client's, which the core does not import.
    def register(self, collector: Any) -> None:  # noqa: ANN401  # see above
        """Add a collector."""


DEFAULT_REGISTRY: Final = "default"


class PoolOptions(TypedDict, total=False):
    """The keywords of `PoolConfig`, for the signatures that take them one by one."""

    maxsize: int
    max_waiters: int | None
    timeout: Timeout | float
    idle_timeout: float | None
    max_age: float | None
    max_requests: int | None
    probe_after: float
    drain_bytes: int
    drain_seconds: float
    resend_stale: bool
    retry: Retry | None
    leak_after: float | None
    expect_continue_timeout: float
    source_address: SourceAddress | tuple[SourceAddress, ...] | None
    proxy: str | None
    proxy_headers: Mapping[str, str]
    ssl_context: ssl.SSLContext | None
    server_hostname: str | None
    socket_options: tuple[SocketOption, ...]
    uds: str | None
    limits: Limits
    name: str | None
    registry: MetricsRegistry | Literal["default"] | None
    exemplar: Callable[[], Mapping[str, str] | None] | None
    clock: Clock


class PoolConfig(Frozen):
    """The settings of a pool; keyword-only, checked, and never changed afterwards.

    Attributes:
        maxsize: The most connections, idle ones and those being opened included.  A hard limit.
        max_waiters: The most callers that may wait for a connection; one more gets `PoolFull` at once.  ``None``:
            no limit.
        timeout: The parts' limits; a number is the total of each call, in seconds, with the default parts.
        idle_timeout: Seconds after which an idle connection is closed; ``None``: never.  A shorter time that the
            server announces (``Keep-Alive: timeout=``) holds instead.
        max_age: Seconds after which a connection is closed once it is idle, up to 10 % earlier at random, so that a
            changed DNS entry or a new server gets its share; ``None``: never.
        max_requests: Exchanges after which a connection is closed; ``None``: no limit.
        probe_after: Seconds of idleness from which the liveness probe is worth its system call; 0: always.
        drain_bytes: The most of an unread body that is read when a connection is given back.
        drain_seconds: The longest that may take.
        resend_stale: Whether an idempotent request is sent once more when its kept-alive connection was dead.
        retry: When and how often a call is tried again; ``None``: never.  A call may say otherwise (`retry=`).
        leak_after: Seconds after which a lease is reported as forgotten: a warning on the logger ``pooledhttp`` with
            the borrower's stack, and a count; it is not taken away.  Costs about a microsecond per lease.  ``None``:
            never.
        expect_continue_timeout: After ``Expect: 100-continue``, seconds to wait for the server's word before the body
            is sent; 0 sends it at once.
        source_address: Local (host, port) to bind, or several to be tried in turn; port 0 is any.
        proxy: URL of an HTTP proxy; connections go through a CONNECT tunnel.  Userinfo in it becomes
            Proxy-Authorization.
        proxy_headers: Further fields for the CONNECT request.
        ssl_context: TLS settings for https; ``None``: verify against the system's authorities.  Open connections keep
            the verification they were opened with: after changing it, call ``prune(everything=True)``.
        server_hostname: The name that the certificate must have, if it is not the host's.
        socket_options: (level, option, value) triples, set before connecting.
        uds: Path of a Unix socket to connect to instead of host and port.
        limits: How much a peer may send besides bodies.
        name: The pool's label in the metrics; ``None``: ``host:port``.
        registry: Where the metrics go: a `prometheus_client.CollectorRegistry`, ``"default"`` for its global one,
            ``None`` for nowhere.
        exemplar: Returns labels that lead to what is being done at the moment, such as ``{"trace_id": "..."}``, or
            ``None``; asked by the thread that has waited for a connection, or whose call of `request` or `stream` ends.
            The last one of each bucket is shown beside it in OpenMetrics.  Names are of letters, digits and ``_``,
            values are text, and all together have at most 128 characters; what is otherwise, or raises, is left out.
            ``None``: nobody is asked.
        clock: Seconds on a monotonic clock; tests inject their own.

    Raises:
        TypeError: A value is of the wrong type.
        ValueError: A value makes no sense (`InvalidURL`: the proxy).
    """

    maxsize: int = 10
    max_waiters: int | None = None
    timeout: Timeout | float = Timeout()
    idle_timeout: float | None = 60.0
    max_age: float | None = 300.0
    max_requests: int | None = None
    probe_after: float = 0.0
    drain_bytes: int = 65536
    drain_seconds: float = 0.05
    resend_stale: bool = True
    retry: Retry | None = None
    leak_after: float | None = None
    expect_continue_timeout: float = 1.0
    source_address: SourceAddress | tuple[SourceAddress, ...] | None = None
    proxy: str | None = None
    proxy_headers: Mapping[str, str] = MappingProxyType({})
    ssl_context: ssl.SSLContext | None = None
    server_hostname: str | None = None
    socket_options: tuple[SocketOption, ...] = ()
    uds: str | None = None
    limits: Limits = DEFAULT_LIMITS
    name: str | None = None
    registry: MetricsRegistry | Literal["default"] | None = DEFAULT_REGISTRY
    exemplar: Callable[[], Mapping[str, str] | None] | None = None
    clock: Clock = monotonic

    _unshown = frozenset({"proxy", "proxy_headers"})  # they may hold credentials

    def __post_init__(self) -> None:
        check_maxsize(self.maxsize)
        _check_count("max_waiters", self.max_waiters, least=0)
        _check_count("max_requests", self.max_requests, least=1)
        _check_count("drain_bytes", self.drain_bytes, least=0)
        if not isinstance(self.timeout, Timeout):
            check_seconds("timeout", self.timeout)
            if self.timeout is None:
                raise TypeError("timeout must be a Timeout or a number of seconds; Timeout() has no total")
        check_seconds("idle_timeout", self.idle_timeout)
        check_seconds("max_age", self.max_age)
        check_seconds("leak_after", self.leak_after)
        _check_bounded("probe_after", self.probe_after)
        _check_bounded("drain_seconds", self.drain_seconds)
        _check_bounded("expect_continue_timeout", self.expect_continue_timeout)
        if not isinstance(self.resend_stale, bool):
            raise TypeError(f"resend_stale must be a bool, not {self.resend_stale!r}")
        if self.retry is not None and not isinstance(self.retry, Retry):
            raise TypeError(f"retry must be a Retry or None, not {self.retry!r}")
        for address in self.source_addresses:
            if address is None:
                raise ValueError("source_address must be a (host, port) tuple or several, without None among them")
            check_source_address(address)
        if self.proxy is not None:
            proxy_of(self.proxy)
        if not isinstance(self.proxy_headers, Mapping):
            raise TypeError(f"proxy_headers must be a mapping, not {type(self.proxy_headers).__name__}")
        # A copy: what the caller does with his own later must not give later tunnels other credentials.
        vars(self)["proxy_headers"] = dict(self.proxy_headers)
        for name, value in self.proxy_headers.items():
            check_field(name, value)
        _check_server_hostname(self.server_hostname)
        _check_socket_options(self.socket_options)
        if self.ssl_context is not None and not isinstance(self.ssl_context, ssl.SSLContext):
            raise TypeError(f"ssl_context must be an ssl.SSLContext, not {self.ssl_context!r}")
        if not isinstance(self.limits, Limits):
            raise TypeError(f"limits must be a Limits, not {self.limits!r}")
        if self.uds is not None and (not isinstance(self.uds, str) or not self.uds):
            raise ValueError(f"uds must be the path of a Unix socket, not {self.uds!r}")
        if self.name is not None and (not isinstance(self.name, str) or not self.name):
            raise ValueError(f"name must be a non-empty str, not {self.name!r}")
        if isinstance(self.registry, str):
            if self.registry != DEFAULT_REGISTRY:
                raise ValueError(f'registry must be a registry, None or "default", not {self.registry!r}')
        elif self.registry is not None and not hasattr(self.registry, "register"):
            raise TypeError(f'registry must be a registry, None or "default", not {self.registry!r}')
        if self.exemplar is not None and not callable(self.exemplar):
            raise TypeError(f"exemplar must be a function that returns labels, or None, not {self.exemplar!r}")
        if not callable(self.clock):
            raise TypeError(f"clock must be a function that returns seconds, not {self.clock!r}")

    @property
    def timeouts(self) -> Timeout:
        """`timeout` as a `Timeout`."""
        return self.timeout if isinstance(self.timeout, Timeout) else Timeout(total=self.timeout)

    @property
    def source_addresses(self) -> tuple[SourceAddress, ...]:
        """`source_address` as a tuple of pairs."""
        given = self.source_address
        if given is None:
            return ()
        if isinstance(given, tuple) and given and isinstance(given[0], tuple):
            return given  # what begins with a pair is a tuple of pairs
        return (cast("SourceAddress", given),)  # a single pair, or refused by the check


def check_maxsize(maxsize: int) -> None:
    """Raise TypeError or ValueError unless it is a positive int."""
    _check_count("maxsize", maxsize, least=1)


def _check_count(name: str, value: int | None, *, least: int) -> None:
    if value is None and name.startswith("max_"):
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value!r}")


def _check_bounded(name: str, value: float | None) -> None:
    check_seconds(name, value, zero=True)
    if value is None:
        raise TypeError(f"{name} must be a number of seconds, not None")


def _check_server_hostname(name: str | None) -> None:
    if name is None:
        return
    if not isinstance(name, str):
        raise TypeError(f"server_hostname must be a str, not {name!r}")
    try:
        check_host(name)
    except InvalidURL as fault:
        raise ValueError(f"server_hostname: {fault}") from None


def _check_socket_options(options: tuple[SocketOption, ...]) -> None:
    are_tuples = isinstance(options, (tuple, list)) and all(isinstance(option, tuple) for option in options)
    kinds = {(int, int, int), (int, int, bytes)}
    if not are_tuples or not all(_kind_of(option) in kinds for option in options):
        raise TypeError(f"socket_options must be (level, option, value) tuples, not {options!r}")


def _kind_of(option: SocketOption) -> tuple[type, ...]:
    # socket.SOL_SOCKET is an int, socket.AF_INET one of an enum's.
    return tuple(int if isinstance(part, int) else type(part) for part in option)


def config_of(config: PoolConfig | None, options: PoolOptions) -> PoolConfig:
    """Return the settings that a pool or a manager was given, whole or one by one.

    Raises:
        TypeError: Both were given, or `config` is something else; or as `PoolConfig`.
        ValueError: As `PoolConfig`.
    """
    if config is None:
        return PoolConfig(**options)
    if options:
        raise TypeError("give either config or single settings, not both")
    if not isinstance(config, PoolConfig):
        raise TypeError(f"config must be a PoolConfig, not {config!r}")
    return config


def proxy_of(url: str) -> tuple[str, int, str | None]:
    """Split a proxy's URL.

    Returns:
        Host, port, and the userinfo or ``None``.

    Raises:
        InvalidURL: It is no ``http://host[:port]``; the message never shows the userinfo.
    """
    if not isinstance(url, str):
        raise TypeError(f"proxy must be a str, not {type(url).__name__}")
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() != "http":
        raise InvalidURL("proxy must be http://host:port; TLS to the proxy itself is not supported")
    authority = rest.rstrip("/")
    userinfo, at, host_port = authority.rpartition("@")
    if "/" in host_port or "?" in host_port or "#" in host_port:
        raise InvalidURL("proxy must be http://host:port, without a path")
    host, port = split_host_port(host_port, None, 80)
    return host, port, userinfo if at else None
