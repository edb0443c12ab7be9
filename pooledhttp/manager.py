"""`PoolManager`: from a URL to the pool of its origin, and bounds on how many pools and connections there are.

The manager's lock guards its dicts alone.  It is never held while a pool's lock is taken, and a known origin is looked
up without it.  The key of a pool is everything that makes two connections different: scheme, host, port, and the part
of the settings that says how to get there (`Route`).
"""

from __future__ import annotations

import re
import ssl
import threading
from collections.abc import Mapping

from . import forking
from .capacity import Capacity
from .config import PoolConfig, PoolOptions, check_maxsize, config_of
from .conn import HTTPConnection
from .dial import SocketOption
from .errors import InvalidURL, PoolClosed
from .hints import Final, Self, TypedDict, Unpack
from .origin import SourceAddress, split_host_port
from .pool import ConnectionContext, ConnectionPool, StreamContext
from .request import NO_HEADERS, BodySource, Headers
from .response import Response, StreamedResponse
from .retry import AS_CONFIGURED, Budget, RetryChoice
from .stats import PoolStats
from .timeouts import Timeout

_split = re.compile(r"(?i:(https?)://)([^/?#]*)([^#]*)(?:#.*)?", re.DOTALL).fullmatch
# URLs are spelt in many ways; so many spellings of origins are remembered for each pool that may exist.
_SPELLINGS_PER_POOL: Final = 4
_Key = tuple[object, ...]


class Route(TypedDict, total=False):
    """The settings that make two connections to one host and port different; as in `PoolConfig`."""

    ssl_context: ssl.SSLContext | None
    server_hostname: str | None
    proxy: str | None
    proxy_headers: Mapping[str, str]
    source_address: SourceAddress | tuple[SourceAddress, ...] | None
    socket_options: tuple[SocketOption, ...]
    uds: str | None


def _route_key(config: PoolConfig) -> tuple[object, ...]:
    """Return what of a pool's settings belongs into its key.

    A TLS context is equal to itself alone, and the key keeps it alive, so that no other can take its address.
    """
    return (
        config.ssl_context,
        config.server_hostname,
        config.proxy,
        tuple(config.proxy_headers.items()),
        config.source_addresses,
        tuple(config.socket_options),
        config.uds,
    )


def split_url(url: str) -> tuple[str, str, str]:
    """Split a URL into scheme, authority and request target.

    Args:
        url: ``http://`` or ``https://``, a host, and what else there is; a fragment is left out (RFC 9110 section 7.1).

    Raises:
        InvalidURL: It is no such URL, or it holds userinfo, whose place is the Authorization field.
    """
    if not isinstance(url, str):
        raise TypeError(f"url must be a str, not {type(url).__name__}")
    match = _split(url)
    if match is None:
        raise InvalidURL("the URL must begin with http:// or https://")
    scheme, authority, target = match.groups()
    if "@" in authority:
        raise InvalidURL("the URL holds userinfo: send an Authorization header instead")
    if not authority:
        raise InvalidURL("the URL has no host")
    if authority.startswith("["):
        authority = authority.replace("%25", "%", 1)  # before an IPv6 zone (RFC 6874 section 2)
    return scheme.lower(), authority, target if target.startswith("/") else "/" + target


class PoolManager:
    """One `ConnectionPool` for each origin, made when first needed.

    Args:
        max_pools: The most pools at a time.  Beyond it, the one that has been unused longest is closed; pools with a
            lent connection never are, so there may be more for as long as they are in use.
        max_total: The most connections over all pools, idle ones and those being opened included; ``None``: only each
            pool's `maxsize` holds.  At the limit the connection that has been idle longest makes room, whatever its
            origin; when none is idle, callers wait in the order of their arrival over all origins.
        config: The settings of every pool; ``None``: made from `options`.
        options: The keywords of `PoolConfig`, if `config` is not given.

    Raises:
        TypeError, ValueError: A setting is malformed; see `PoolConfig`.
    """

    def __init__(
        self,
        *,
        max_pools: int = 100,
        max_total: int | None = None,
        config: PoolConfig | None = None,
        **options: Unpack[PoolOptions],
    ) -> None:
        _check_limit("max_pools", max_pools)
        if max_total is not None:
            _check_limit("max_total", max_total)
        self.config = config_of(config, options)
        self.max_pools = max_pools
        self.max_total = max_total
        self._capacity = None if max_total is None else Capacity(max_total)
        self._route_key = _route_key(self.config)
        # Guards the two dicts.  Never under it: a pool's lock, or anything that blocks.
        self._lock = threading.Lock()
        self._pools: dict[_Key, ConnectionPool] = {}  # in the order in which they were made or last missed
        self._by_spelling: dict[str, ConnectionPool] = {}  # "http://host:port", as callers write it
        # For retries, by scheme, host and port.  They outlive the pools, or eviction would give a sick server no rest.
        self._budgets: dict[_Key, Budget] = {}
        self._is_closed = False
        forking.register(self)

    def request(
        self,
        method: str,
        url: str,
        body: BodySource | None = None,
        headers: Headers = NO_HEADERS,
        *,
        timeout: Timeout | float | None = None,
        retry: RetryChoice = AS_CONFIGURED,
    ) -> Response:
        """Send a request to a URL and read the whole response; see `ConnectionPool.request`.

        Raises:
            InvalidURL: The URL is malformed; nothing was opened.
            PoolClosed: The manager is closed.
            As `ConnectionPool.request`.
        """
        while True:
            pool, target = self._route(url)
            prepared = pool._prepare(method, target, body, headers)
            try:
                return pool._request(prepared, url, timeout, retry, self._reroute)
            except PoolClosed:
                # Evicted between the look-up and the acquire: nothing was sent, and the next look-up makes another.
                if self._is_closed:
                    raise PoolClosed("the pool manager is closed") from None

    def stream(
        self,
        method: str,
        url: str,
        body: BodySource | None = None,
        headers: Headers = NO_HEADERS,
        *,
        timeout: Timeout | float | None = None,
        retry: RetryChoice = AS_CONFIGURED,
    ) -> StreamContext:
        """Send a request to a URL and lend its response; see `ConnectionPool.stream`."""
        pool, target = self._route(url)
        return _RoutedStream(pool, pool._prepare(method, target, body, headers), url, timeout, retry, self._reroute)

    def connection(self, url: str, timeout: Timeout | float | None = None) -> ConnectionContext:
        """Lend a connection to a URL's origin; see `ConnectionPool.connection`."""
        return _RoutedConnection(self, self.pool(url), timeout)

    def pool(self, url: str, **route: Unpack[Route]) -> ConnectionPool:
        """Return the pool of a URL's origin, made now if there is none.

        Args:
            url: Any URL of the origin.
            route: Settings of `PoolConfig` that differ from the manager's and lead to other connections: `ssl_context`,
                `server_hostname`, `proxy`, `proxy_headers`, `source_address`, `socket_options`, `uds`.  Each
                combination has a pool of its own.

        Raises:
            InvalidURL: The URL is malformed.
            TypeError, ValueError: A setting is; see `PoolConfig`.
            PoolClosed: The manager is closed.
        """
        if not route:
            return self._route(url)[0]
        if surplus := route.keys() - Route.__annotations__.keys():
            raise TypeError(f"{', '.join(sorted(surplus))}: not among the settings that may differ from pool to pool")
        scheme, authority, _ = split_url(url)
        return self._find(scheme, authority, self.config.replace(**route))

    def _reroute(self, pool: ConnectionPool) -> ConnectionPool:
        """Return the pool that takes the place of one that was evicted between the look-up and the acquire."""
        if self._is_closed:
            raise PoolClosed("the pool manager is closed") from None
        config = pool.config.replace(maxsize=self.config.maxsize)  # that of today
        return self._find(pool.scheme, pool.origin.partition("://")[2], config)

    def _route(self, url: str) -> tuple[ConnectionPool, str]:
        """Return a URL's pool and its request target."""
        slash = url.find("/", 8) if isinstance(url, str) else -1
        if slash > 0:
            pool = self._by_spelling.get(url[:slash])
            if pool is not None and not pool.is_closed:
                fragment = url.find("#", slash)
                return pool, url[slash:] if fragment < 0 else url[slash:fragment]
        scheme, authority, target = split_url(url)
        pool = self._find(scheme, authority, self.config)
        is_plain = slash == len(scheme) + len("://") + len(authority)  # else a "?" or "#" stands before the slash
        spelling = url[:slash]
        has_place = spelling in self._by_spelling or len(self._by_spelling) < self.max_pools * _SPELLINGS_PER_POOL
        if is_plain and has_place:
            with self._lock:
                self._by_spelling[spelling] = pool
        return pool, target

    def _find(self, scheme: str, authority: str, config: PoolConfig) -> ConnectionPool:
        host, port = split_host_port(authority, None, 443 if scheme == "https" else 80)
        route_key = self._route_key if config is self.config else _route_key(config)
        candidate = (scheme, host.lower(), port, *route_key)
        with self._lock:
            pool = self._pools.get(candidate)
            if pool is not None and not pool.is_closed:
                return pool
            if self._is_closed:
                raise PoolClosed("the pool manager is closed")
        # Outside the lock, since registering the metrics calls other people's code.
        made = ConnectionPool(host.lower(), port, scheme=scheme, config=config)
        if self._capacity is not None:
            made.share(self._capacity)
        with self._lock:
            pool = self._pools.get(candidate)
            is_late = self._is_closed or (pool is not None and not pool.is_closed)
            if not is_late:
                made.share_budget(self._budgets.setdefault(candidate[:3], made.budget))
                self._pools[candidate] = pool = made
        if is_late or pool is None:
            made.close()
            if pool is None or pool.is_closed:
                raise PoolClosed("the pool manager is closed")
            return pool
        if pool.maxsize != self.config.maxsize:
            pool.resize(self.config.maxsize)  # the manager was resized meanwhile
        if len(self._pools) > self.max_pools:
            with self._lock:
                others = [other for key, other in self._pools.items() if key != candidate]
            self._evict(others)
        return pool

    def _evict(self, others: list[ConnectionPool]) -> None:
        """Close unused pools until there are no more than allowed."""
        surplus = len(others) + 1 - self.max_pools
        if surplus <= 0:
            return
        evicted: list[ConnectionPool] = []
        for pool in sorted(others, key=lambda other: other.last_used):
            if len(evicted) == surplus:
                break
            if pool.close_if_unused():
                evicted.append(pool)
        with self._lock:
            self._pools = {key: pool for key, pool in self._pools.items() if pool not in evicted}
            self._by_spelling = {key: pool for key, pool in self._by_spelling.items() if pool not in evicted}
            used = {key[:3] for key in self._pools}
            now = self.config.clock()
            self._budgets = {
                key: budget for key, budget in self._budgets.items() if key in used or not budget.is_spent(now)
            }

    def pools(self) -> list[ConnectionPool]:
        """Return the pools that exist now."""
        with self._lock:
            return list(self._pools.values())

    def stats(self) -> dict[str, PoolStats]:
        """Return the numbers of every pool by its origin, like ``http://orders:8080``.

        Pools that lead to one origin in different ways are added up.
        """
        by_origin: dict[str, PoolStats] = {}
        for pool in self.pools():
            before = by_origin.get(pool.origin)
            by_origin[pool.origin] = pool.stats() if before is None else before + pool.stats()
        return by_origin

    def explain(self) -> str:
        """Return who holds what, pool by pool; see `ConnectionPool.explain`."""
        return "\n".join(pool.explain() for pool in self.pools())

    def resize(self, maxsize: int) -> None:
        """Change the limit of every pool, and of those to come; see `ConnectionPool.resize`.

        Raises:
            TypeError, ValueError: It is not a positive int.
        """
        check_maxsize(maxsize)
        self.config = self.config.replace(maxsize=maxsize)
        for pool in self.pools():
            pool.resize(maxsize)

    def prune(self, *, everything: bool = False) -> int:
        """Close idle connections that are past a limit or ended, in every pool; see `ConnectionPool.prune`."""
        return sum(pool.prune(everything=everything) for pool in self.pools())

    def close(self) -> None:
        """Close every pool; leased connections are closed when they come back.  A second call does nothing."""
        with self._lock:
            self._is_closed = True
            pools = list(self._pools.values())
        for pool in pools:
            pool.close()

    def renew_after_fork(self) -> None:
        """Begin anew in a child process; the pools are still there, and empty."""
        self._lock = threading.Lock()
        for budget in self._budgets.values():
            budget.renew_after_fork()

    def __enter__(self) -> Self:
        """Return the manager."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close every pool."""
        self.close()

    def __repr__(self) -> str:
        """Show how many pools there are."""
        return f"<PoolManager pools={len(self._pools)} max_pools={self.max_pools}>"


def _check_limit(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value!r}")


class _RoutedStream(StreamContext):
    """The ``with`` block of `PoolManager.stream`; nothing is sent before the pool has lent a connection."""

    __slots__ = ()

    def __enter__(self) -> StreamedResponse:
        """Send the request and receive the head."""
        while True:
            try:
                return super().__enter__()
            except PoolClosed:
                if self._reroute is None:
                    raise
                self._pool = self._reroute(self._pool)


class _RoutedConnection(ConnectionContext):
    """The ``with`` block of `PoolManager.connection`."""

    __slots__ = ("_manager",)

    def __init__(self, manager: PoolManager, pool: ConnectionPool, timeout: Timeout | float | None) -> None:
        super().__init__(pool, timeout)
        self._manager = manager

    def __enter__(self) -> HTTPConnection:
        """Acquire a connection."""
        while True:
            try:
                return super().__enter__()
            except PoolClosed:
                self._pool = self._manager._reroute(self._pool)
