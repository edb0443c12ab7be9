"""The clients, each behind a small adapter, and the floor: the same exchange with a bare socket.

Its rule: each client is used as its documentation does, with its defaults, and gives the whole body as bytes (or a
buffer); where it has a pool, the pool has room for all threads.  What a client does not offer is left out there
(`NotOffered`), not imitated.  Third parties are imported when their adapter is made, by name: what is not installed is
missing, and nothing else is disturbed.
"""

from __future__ import annotations

import abc
import asyncio
import importlib
import importlib.metadata
import itertools
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Final

from .embedded import PIECE_BYTES

_BUFFER_BYTES: Final = 65536
_LARGE_BUFFER_BYTES: Final = 1 << 20
_TOTAL_SECONDS: Final = 60.0


class Operation(StrEnum):
    """What a client is asked to do; each is a method of `Client` and returns how many bytes the answer's body had."""

    GET = "get"
    POST = "post"
    READINTO = "readinto"
    ITERATE = "iterate"
    POST_FILE = "post_file"
    POST_ITERABLE = "post_iterable"


class Group(StrEnum):
    """Which part a case has in a comparison."""

    FLOOR = "floor"
    OURS = "ours"
    PEER = "peer"


class NotOffered(Exception):
    """The client has no documented way to do this."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is asked, and of whom.

    Attributes:
        host: Address of the origin.
        port: Its port.
        path: What is asked for.
        ca_file: PEM file with the authority of the origin's certificate; ``None``: it speaks plain HTTP.
        proxy: (host, port) of a proxy to tunnel through, or ``None``.
        body: What a `POST` sends from memory.
        file: Path of a file to send.
        file_bytes: Size of that file, and of what the iterable gives.
        expected: How many bytes the body of the answer has.
    """

    host: str
    port: int
    path: str
    ca_file: str | None = None
    proxy: tuple[str, int] | None = None
    body: bytes = b""
    file: str = ""
    file_bytes: int = 0
    expected: int = 0

    @property
    def url(self) -> str:
        """The whole URL."""
        return f"{'http' if self.ca_file is None else 'https'}://{self.host}:{self.port}{self.path}"

    @property
    def proxy_url(self) -> str | None:
        """URL of the proxy, or ``None``."""
        return None if self.proxy is None else f"http://{self.proxy[0]}:{self.proxy[1]}"

    def context(self) -> ssl.SSLContext | None:
        """Return TLS settings that trust the origin, or ``None``."""
        return None if self.ca_file is None else ssl.create_default_context(cafile=self.ca_file)

    def pieces(self) -> Iterator[bytes]:
        """Return an iterator over the pieces of a body whose length is not announced."""
        return itertools.repeat(bytes(PIECE_BYTES), self.file_bytes // PIECE_BYTES)

    def buffer(self) -> bytearray:
        """Return a buffer to receive into, again and again."""
        return bytearray(_LARGE_BUFFER_BYTES if self.expected > _LARGE_BUFFER_BYTES else _BUFFER_BYTES)


class Client(abc.ABC):
    """One client, connected to nothing yet.

    Args:
        target: What it will be asked for.
        size: How many connections it may need at a time.

    Attributes:
        name: As in the tables.
        module: What has to be imported.
        distribution: The package that it comes in; ``None``: it is not installed by pip, or is ours.
        imported: Its row among the imports; empty: that of its distribution, or of its module.
        group: Whether it is a peer.
        is_shared: Whether one object serves any number of threads; else each thread has its own.
        is_async: Whether it repeats concurrently by itself, as tasks of one thread.
    """

    name: ClassVar[str]
    module: ClassVar[str]
    distribution: ClassVar[str | None] = None
    imported: ClassVar[str] = ""
    group: ClassVar[Group] = Group.PEER
    is_shared: ClassVar[bool] = True
    is_async: ClassVar[bool] = False

    def __init__(self, target: Target, *, size: int) -> None:
        self.target = target
        self.size = size
        self.library: Any = importlib.import_module(self.module)
        self.open()

    @abc.abstractmethod
    def open(self) -> None:
        """Make whatever the client offers to hold connections."""

    @abc.abstractmethod
    def get(self) -> int:
        """GET the path and read the body whole."""

    def post(self) -> int:
        """POST bytes."""
        raise NotOffered

    def readinto(self) -> int:
        """GET the path, and the body in a buffer that is used again."""
        raise NotOffered

    def iterate(self) -> int:
        """GET the path, and the body piece by piece."""
        raise NotOffered

    def post_file(self) -> int:
        """POST an open file, with its length announced."""
        raise NotOffered

    def post_iterable(self) -> int:
        """POST what an iterator gives, its length unknown."""
        raise NotOffered

    def close(self) -> None:  # noqa: B027  # some clients have nothing to close
        """Close all connections."""

    def repeat(self, operation: Operation, count: int) -> None:
        """Do it so many times, and hold the length of each answer against what was expected.

        Raises:
            ValueError: An answer was not as long as expected.
            NotOffered: The client does not offer it.
        """
        call: Callable[[], int] = getattr(self, operation.value)
        expected = self.target.expected
        for _ in range(count):
            received = call()
            if received != expected:
                raise ValueError(f"{received} bytes were received, and {expected} expected")

    def repeat_concurrently(self, operation: Operation, count: int) -> None:
        """Do it so many times, `size` at a time; only for clients that are `is_async`."""
        raise NotOffered


# --- the floor --------------------------------------------------------------------------------------------------------


class Floor(Client):
    """``sendall`` of a constant, ``recv_into`` until the known length."""

    name = "floor"
    module = "socket"
    group = Group.FLOOR
    is_shared = False

    def open(self) -> None:
        target = self.target
        sock = socket.create_connection(target.proxy or (target.host, target.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if target.proxy is not None:
            sock.sendall(b"CONNECT %b:%d HTTP/1.1\r\n\r\n" % (target.host.encode(), target.port))
            self._until(sock, b"\r\n\r\n")
        context = target.context()
        self._sock = sock if context is None else context.wrap_socket(sock, server_hostname=target.host)
        self._buffer = target.buffer()
        self._lengths: dict[bytes, int] = {}
        fields = b"%b HTTP/1.1\r\nHost: %b:%d\r\nAccept-Encoding: identity\r\n" % (
            target.path.encode(), target.host.encode(), target.port)  # fmt: skip
        self._get = b"GET " + fields + b"\r\n"
        self._post_head = b"POST " + fields + b"Content-Length: %d\r\n\r\n"
        head, body = self._post_head % len(target.body), target.body
        # A hundred megabytes are sent from where they are, as by everybody else.
        self._post = (head + body,) if len(body) <= _BUFFER_BYTES else (head, body)
        self._post_chunked = b"POST " + fields + b"Transfer-Encoding: chunked\r\n\r\n"
        self._frame = b"%x\r\n%b\r\n" % (PIECE_BYTES, bytes(PIECE_BYTES))

    def get(self) -> int:
        self._sock.sendall(self._get)
        return self._receive(b"GET")

    iterate = readinto = get

    def post(self) -> int:
        for constant in self._post:
            self._sock.sendall(constant)
        return self._receive(b"POST")

    def post_file(self) -> int:
        if self.target.ca_file is not None:
            raise NotOffered
        self._sock.sendall(self._post_head % self.target.file_bytes)
        with open(self.target.file, "rb", buffering=0) as file:  # noqa: PTH123  # in the path of what is measured
            sent = 0
            while sent < self.target.file_bytes:
                sent += os.sendfile(self._sock.fileno(), file.fileno(), sent, self.target.file_bytes - sent)
        return self._receive(b"POST")

    def post_iterable(self) -> int:
        self._sock.sendall(self._post_chunked)
        for _ in range(self.target.file_bytes // PIECE_BYTES):
            self._sock.sendall(self._frame)
        self._sock.sendall(b"0\r\n\r\n")
        return self._receive(b"POST")

    def close(self) -> None:
        self._sock.close()

    def _receive(self, kind: bytes) -> int:
        length = self._lengths.get(kind)
        if length is None:
            self._lengths[kind] = self._find_length()
            return self.target.expected
        receive, buffer, left = self._sock.recv_into, self._buffer, length
        while left > 0:
            count = receive(buffer)
            if not count:
                raise ConnectionError("the server ended the connection")
            left -= count
        return self.target.expected

    def _find_length(self) -> int:
        """Receive one answer the slow way, and return its length on the wire, which is that of all others."""
        received = self._until(self._sock, b"\r\n\r\n")
        length = received.index(b"\r\n\r\n") + 4
        if b"\r\nTransfer-Encoding: chunked\r\n" in received[:length]:
            total, tail = len(received), received[-5:]
            while tail != b"0\r\n\r\n":
                more = self._sock.recv(_LARGE_BUFFER_BYTES)
                if not more:
                    raise ConnectionError("the server ended the connection")
                total, tail = total + len(more), (tail + more[-5:])[-5:]
            return total
        length += self.target.expected
        left = length - len(received)
        while left > 0:
            more = self._sock.recv(left)
            if not more:
                raise ConnectionError("the server ended the connection")
            left -= len(more)
        return length

    @staticmethod
    def _until(sock: socket.socket, end: bytes) -> bytes:
        received = b""
        while end not in received:
            more = sock.recv(_BUFFER_BYTES)
            if not more:
                raise ConnectionError("the server ended the connection")
            received += more
        return received


# --- ours -------------------------------------------------------------------------------------------------------------


class OurPool(Client):
    """`ConnectionPool.request` with all that is on by default: probe, limits, metrics."""

    name = "pooledhttp pool.request"
    module = "pooledhttp"
    imported = "pooledhttp, with its ConnectionPool"
    group = Group.OURS
    has_metrics: ClassVar[bool] = True
    total: ClassVar[float | None] = None

    def open(self) -> None:
        target = self.target
        self._pool: Any = self.library.ConnectionPool(
            target.host,
            target.port,
            scheme="http" if target.ca_file is None else "https",
            maxsize=self.size,
            ssl_context=target.context(),
            proxy=target.proxy_url,
            registry="default" if self.has_metrics else None,
        )
        self._buffer = target.buffer()

    def get(self) -> int:
        return len(self._pool.request("GET", self.target.path, timeout=self.total).data)

    def post(self) -> int:
        return len(self._pool.request("POST", self.target.path, self.target.body, timeout=self.total).data)

    def readinto(self) -> int:
        with self._pool.stream("GET", self.target.path, timeout=self.total) as response:
            return _read_into(response, self._buffer)

    def iterate(self) -> int:
        with self._pool.stream("GET", self.target.path, timeout=self.total) as response:
            return sum(map(len, response))

    def post_file(self) -> int:
        with open(self.target.file, "rb") as file:  # noqa: PTH123  # in the path of what is measured
            return len(self._pool.request("POST", self.target.path, file, timeout=self.total).data)

    def post_iterable(self) -> int:
        return len(self._pool.request("POST", self.target.path, self.target.pieces(), timeout=self.total).data)

    def close(self) -> None:
        self._pool.close()


class OurPoolWithTotal(OurPool):
    """The same, with a limit for the whole call."""

    name = "pooledhttp pool.request, total deadline"
    total = _TOTAL_SECONDS


class OurPoolWithoutMetrics(OurPool):
    """The same, in no registry."""

    name = "pooledhttp pool.request, no metrics"
    has_metrics = False


class HttpClient(Client):
    """The standard library's connection."""

    name = "http.client"
    module = "http.client"
    is_shared = False

    def open(self) -> None:
        host, port = self.target.proxy or (self.target.host, self.target.port)
        context = self.target.context()
        if context is None:
            self._conn = self.library.HTTPConnection(host, port)
        else:
            self._conn = self.library.HTTPSConnection(host, port, context=context)
        if self.target.proxy is not None:
            self._conn.set_tunnel(self.target.host, self.target.port)
        self._buffer = self.target.buffer()

    def get(self) -> int:
        self._conn.request("GET", self.target.path)
        return len(self._conn.getresponse().read())

    def post(self) -> int:
        self._conn.request("POST", self.target.path, self.target.body)
        return len(self._conn.getresponse().read())

    def readinto(self) -> int:
        self._conn.request("GET", self.target.path)
        return _read_into(self._conn.getresponse(), self._buffer)

    def iterate(self) -> int:
        # Iterating over http.client's response gives lines.
        self._conn.request("GET", self.target.path)
        read = self._conn.getresponse().read
        return sum(map(len, iter(lambda: read(PIECE_BYTES), b"")))

    def post_file(self) -> int:
        with open(self.target.file, "rb") as file:  # noqa: PTH123  # in the path of what is measured
            fields = {"Content-Length": str(self.target.file_bytes)}
            self._conn.request("POST", self.target.path, file, fields)
            return len(self._conn.getresponse().read())

    def post_iterable(self) -> int:
        self._conn.request("POST", self.target.path, self.target.pieces())
        return len(self._conn.getresponse().read())

    def close(self) -> None:
        self._conn.close()


class OurConnection(HttpClient):
    """Our connection, which has http.client's interface, without a pool."""

    name = "pooledhttp HTTPConnection"
    module = "pooledhttp"
    imported = "pooledhttp, with its HTTPConnection"
    group = Group.OURS


def _read_into(response: Any, buffer: bytearray) -> int:
    total = 0
    while count := response.readinto(buffer):
        total += count
    return total


# --- Python peers -----------------------------------------------------------------------------------------------------


class Urllib3Pool(Client):
    """`urllib3.HTTPConnectionPool`."""

    name = "urllib3 HTTPConnectionPool"
    module = "urllib3"
    distribution = "urllib3"

    def open(self) -> None:
        target = self.target
        self._where = target.path
        if target.proxy_url is not None:
            raise NotOffered  # a proxy is the manager's affair
        if target.ca_file is None:
            self._pool = self.library.HTTPConnectionPool(target.host, target.port, maxsize=self.size)
        else:
            self._pool = self.library.HTTPSConnectionPool(
                target.host, target.port, maxsize=self.size, ca_certs=target.ca_file
            )
        self._buffer = target.buffer()

    def get(self) -> int:
        return len(self._pool.request("GET", self._where).data)

    def post(self) -> int:
        return len(self._pool.request("POST", self._where, body=self.target.body).data)

    def readinto(self) -> int:
        response = self._pool.request("GET", self._where, preload_content=False)
        try:
            return _read_into(response, self._buffer)
        finally:
            response.release_conn()

    def iterate(self) -> int:
        response = self._pool.request("GET", self._where, preload_content=False)
        try:
            return sum(map(len, response.stream(PIECE_BYTES)))
        finally:
            response.release_conn()

    def post_file(self) -> int:
        with open(self.target.file, "rb") as file:  # noqa: PTH123  # in the path of what is measured
            fields = {"Content-Length": str(self.target.file_bytes)}
            return len(self._pool.request("POST", self._where, body=file, headers=fields).data)

    def post_iterable(self) -> int:
        return len(self._pool.request("POST", self._where, body=self.target.pieces()).data)

    def close(self) -> None:
        close: Callable[[], None] = getattr(self._pool, "close", None) or self._pool.clear
        close()


class Urllib3Manager(Urllib3Pool):
    """`urllib3.PoolManager`, or its `ProxyManager`."""

    name = "urllib3 PoolManager"

    def open(self) -> None:
        target = self.target
        self._where = target.url
        if target.proxy_url is None:
            self._pool = self.library.PoolManager(maxsize=self.size, ca_certs=target.ca_file)
        else:
            self._pool = self.library.ProxyManager(target.proxy_url, maxsize=self.size, ca_certs=target.ca_file)
        self._buffer = target.buffer()


class Requests(Client):
    """`requests.Session`."""

    name = "requests"
    module = "requests"
    distribution = "requests"

    def open(self) -> None:
        self._session = self.library.Session()
        adapter = self.library.adapters.HTTPAdapter(pool_maxsize=self.size)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)
        self._settle()

    def _settle(self) -> None:
        if self.target.ca_file is not None:
            self._session.verify = self.target.ca_file
        if self.target.proxy_url is not None:
            self._session.proxies = {"https": self.target.proxy_url}

    def get(self) -> int:
        return len(self._session.get(self.target.url).content)

    def post(self) -> int:
        return len(self._session.post(self.target.url, data=self.target.body).content)

    def iterate(self) -> int:
        with self._session.get(self.target.url, stream=True) as response:
            return sum(map(len, response.iter_content(PIECE_BYTES)))

    def post_file(self) -> int:
        with open(self.target.file, "rb") as file:  # noqa: PTH123  # in the path of what is measured
            return len(self._session.post(self.target.url, data=file).content)

    def post_iterable(self) -> int:
        return len(self._session.post(self.target.url, data=self.target.pieces()).content)

    def close(self) -> None:
        self._session.close()


class Niquests(Requests):
    """`niquests.Session`; lives in an environment of its own, since it brings another package named urllib3."""

    name = "niquests"
    module = "niquests"
    distribution = "niquests"

    def open(self) -> None:
        self._session = self.library.Session(pool_maxsize=self.size)
        self._settle()


class Httpx(Client):
    """`httpx.Client`."""

    name = "httpx"
    module = "httpx"
    distribution = "httpx"

    def open(self) -> None:
        limits = self.library.Limits(max_connections=self.size, max_keepalive_connections=self.size)
        self._client = self.library.Client(
            verify=self.target.context() or True, proxy=self.target.proxy_url, limits=limits
        )

    def get(self) -> int:
        return len(self._client.get(self.target.url).content)

    def post(self) -> int:
        return len(self._client.post(self.target.url, content=self.target.body).content)

    def iterate(self) -> int:
        with self._client.stream("GET", self.target.url) as response:
            return sum(map(len, response.iter_bytes()))

    def post_file(self) -> int:
        with open(self.target.file, "rb") as file:  # noqa: PTH123  # in the path of what is measured
            return len(self._client.post(self.target.url, content=file).content)

    def post_iterable(self) -> int:
        return len(self._client.post(self.target.url, content=self.target.pieces()).content)

    def close(self) -> None:
        self._client.close()


class Httpcore(Client):
    """`httpcore.ConnectionPool`, or its `HTTPProxy`."""

    name = "httpcore"
    module = "httpcore"
    distribution = "httpcore"

    def open(self) -> None:
        context = self.target.context()
        if self.target.proxy_url is None:
            self._pool = self.library.ConnectionPool(ssl_context=context, max_connections=self.size)
        else:
            self._pool = self.library.HTTPProxy(self.target.proxy_url, ssl_context=context, max_connections=self.size)

    def get(self) -> int:
        return len(self._pool.request("GET", self.target.url).content)

    def post(self) -> int:
        return len(self._pool.request("POST", self.target.url, content=self.target.body).content)

    def iterate(self) -> int:
        with self._pool.stream("GET", self.target.url) as response:
            return sum(map(len, response.iter_stream()))

    def post_iterable(self) -> int:
        return len(self._pool.request("POST", self.target.url, content=self.target.pieces()).content)

    def close(self) -> None:
        self._pool.close()


class Aiohttp(Client):
    """`aiohttp.ClientSession`; its repetitions are one coroutine, or `size` tasks of one event loop."""

    name = "aiohttp"
    module = "aiohttp"
    distribution = "aiohttp"
    is_async = True

    def open(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._context = self.target.context()
        self._session: Any = self._loop.run_until_complete(self._make())

    async def _make(self) -> Any:
        connector = self.library.TCPConnector(limit=self.size, ssl=self._context or True)
        return self.library.ClientSession(connector=connector)

    def get(self) -> int:
        return self._loop.run_until_complete(self._perform(Operation.GET))

    def repeat(self, operation: Operation, count: int) -> None:
        self._loop.run_until_complete(self._repeat(operation, count))

    def repeat_concurrently(self, operation: Operation, count: int) -> None:
        async def all_tasks() -> None:
            share, rest = divmod(count, self.size)
            await asyncio.gather(*(self._repeat(operation, share + (at < rest)) for at in range(self.size)))

        self._loop.run_until_complete(all_tasks())

    async def _repeat(self, operation: Operation, count: int) -> None:
        for _ in range(count):
            received = await self._perform(operation)
            if received != self.target.expected:
                raise ValueError(f"{received} bytes were received, and {self.target.expected} expected")

    async def _perform(self, operation: Operation) -> int:
        url, proxy = self.target.url, self.target.proxy_url
        match operation:
            case Operation.GET:
                async with self._session.get(url, proxy=proxy) as response:
                    return len(await response.read())
            case Operation.ITERATE:
                async with self._session.get(url, proxy=proxy) as response:
                    return sum([len(piece) async for piece in response.content.iter_any()])
            case Operation.POST:
                async with self._session.post(url, data=self.target.body, proxy=proxy) as response:
                    return len(await response.read())
            case Operation.POST_ITERABLE:
                async with self._session.post(url, data=self._pieces(), proxy=proxy) as response:
                    return len(await response.read())
            case Operation.POST_FILE:
                with open(self.target.file, "rb") as file:  # noqa: PTH123, ASYNC230  # as its documentation does
                    async with self._session.post(url, data=file, proxy=proxy) as response:
                        return len(await response.read())
            case _:
                raise NotOffered

    async def _pieces(self) -> AsyncIterator[bytes]:
        for piece in self.target.pieces():
            yield piece

    def close(self) -> None:
        self._loop.run_until_complete(self._session.close())
        self._loop.close()


# --- peers written in C and Rust --------------------------------------------------------------------------------------


class Geventhttpclient(Client):
    """`geventhttpclient.HTTPClient`; one a thread, since each thread has an event loop of its own."""

    name = "geventhttpclient"
    module = "geventhttpclient"
    distribution = "geventhttpclient"
    is_shared = False

    def open(self) -> None:
        target = self.target
        self._client = self.library.HTTPClient(
            target.host,
            target.port,
            ssl=target.ca_file is not None,
            ssl_options={"ca_certs": target.ca_file} if target.ca_file is not None else None,
            proxy_host=target.proxy[0] if target.proxy else None,
            proxy_port=target.proxy[1] if target.proxy else None,
        )

    def get(self) -> int:
        return len(self._client.get(self.target.path).read())

    def post(self) -> int:
        return len(self._client.post(self.target.path, self.target.body).read())

    def iterate(self) -> int:
        return sum(map(len, self._client.get(self.target.path)))

    def post_file(self) -> int:
        with open(self.target.file, "rb") as file:  # noqa: PTH123  # in the path of what is measured
            return len(self._client.post(self.target.path, file).read())

    def post_iterable(self) -> int:
        return len(self._client.post(self.target.path, self.target.pieces()).read())

    def close(self) -> None:
        self._client.close()


class Pycurl(Client):
    """A `pycurl.Curl` that is used again; head fields and body are collected as bytes."""

    name = "pycurl"
    module = "pycurl"
    distribution = "pycurl"
    is_shared = False

    def open(self) -> None:
        curl = self.library
        self._curl = handle = curl.Curl()
        self._fields: list[bytes] = []
        self._pieces: list[bytes] = []
        self._iterated = 0
        self._is_set_for: Operation | None = None
        handle.setopt(curl.URL, self.target.url)
        handle.setopt(curl.NOSIGNAL, 1)
        handle.setopt(curl.HEADERFUNCTION, self._fields.append)
        handle.setopt(curl.WRITEFUNCTION, self._pieces.append)
        if self.target.ca_file is not None:
            handle.setopt(curl.CAINFO, self.target.ca_file)
        if self.target.proxy_url is not None:
            handle.setopt(curl.PROXY, self.target.proxy_url)
            handle.setopt(curl.HTTPPROXYTUNNEL, 1)

    def get(self) -> int:
        self._perform()
        return len(b"".join(self._pieces))

    def iterate(self) -> int:
        if self._is_set_for is not Operation.ITERATE:
            self._is_set_for = Operation.ITERATE
            self._curl.setopt(self.library.WRITEFUNCTION, self._take)
        self._iterated = 0
        self._perform()
        return self._iterated

    def post(self) -> int:
        if self._is_set_for is not Operation.POST:
            self._is_set_for = Operation.POST
            self._curl.setopt(self.library.POSTFIELDS, self.target.body)
            # Else it waits for a second before a body of more than a megabyte.
            self._curl.setopt(self.library.HTTPHEADER, ["Expect:"])
        return self.get()

    def post_file(self) -> int:
        curl = self.library
        with open(self.target.file, "rb") as file:  # noqa: PTH123  # in the path of what is measured
            self._curl.setopt(curl.POST, 1)
            self._curl.setopt(curl.POSTFIELDSIZE_LARGE, self.target.file_bytes)
            self._curl.setopt(curl.HTTPHEADER, ["Expect:"])
            self._curl.setopt(curl.READDATA, file)
            return self.get()

    def close(self) -> None:
        self._curl.close()

    def _take(self, piece: bytes) -> None:
        self._iterated += len(piece)

    def _perform(self) -> None:
        self._fields.clear()
        self._pieces.clear()
        self._curl.perform()


class Pyreqwest(Client):
    """`pyreqwest.client.SyncClient`."""

    name = "pyreqwest"
    module = "pyreqwest.client"
    distribution = "pyreqwest"

    def open(self) -> None:
        builder = self.library.SyncClientBuilder().http1_only()
        if self.target.ca_file is not None:
            with open(self.target.ca_file, "rb") as file:  # noqa: PTH123  # as its neighbours
                builder = builder.add_root_certificate_pem(file.read())
        if self.target.proxy_url is not None:
            proxy = importlib.import_module("pyreqwest.proxy").ProxyBuilder
            builder = builder.proxy(proxy.all(self.target.proxy_url))
        self._client = builder.build()

    def get(self) -> int:
        return len(self._client.get(self.target.url).build().send().bytes())

    def post(self) -> int:
        return len(self._client.post(self.target.url).body_bytes(self.target.body).build().send().bytes())

    def iterate(self) -> int:
        with self._client.get(self.target.url).build_streamed() as response:
            read = response.body_reader.read_chunk
            return sum(map(len, iter(read, None)))

    def post_iterable(self) -> int:
        return len(self._client.post(self.target.url).body_stream(self.target.pieces()).build().send().bytes())

    def close(self) -> None:
        self._client.close()


class Primp(Client):
    """`primp.Client`."""

    name = "primp"
    module = "primp"
    distribution = "primp"

    def open(self) -> None:
        self._client = self.library.Client(ca_cert_file=self.target.ca_file, proxy=self.target.proxy_url)

    def get(self) -> int:
        return len(self._client.get(self.target.url).content)

    def post(self) -> int:
        return len(self._client.post(self.target.url, content=self.target.body).content)

    def iterate(self) -> int:
        with self._client.get(self.target.url, stream=True) as response:
            return sum(map(len, response.iter_bytes()))


class Httpr(Client):
    """`httpr.Client`."""

    name = "httpr"
    module = "httpr"
    distribution = "httpr"

    def open(self) -> None:
        self._client = self.library.Client(ca_cert_file=self.target.ca_file, proxy=self.target.proxy_url)

    def get(self) -> int:
        return len(self._client.get(self.target.url).content)

    def post(self) -> int:
        return len(self._client.post(self.target.url, content=self.target.body).content)

    def iterate(self) -> int:
        with self._client.stream("GET", self.target.url) as response:
            return sum(map(len, response.iter_bytes()))

    def close(self) -> None:
        self._client.close()


ALONE: Final = Niquests
"""The client that shares an environment with no other."""

CLIENTS: Final[tuple[type[Client], ...]] = (
    Floor,
    OurPool,
    OurPoolWithTotal,
    OurConnection,
    HttpClient,
    Urllib3Pool,
    Urllib3Manager,
    Requests,
    Httpx,
    Httpcore,
    Aiohttp,
    Geventhttpclient,
    Pycurl,
    Pyreqwest,
    Primp,
    Httpr,
    ALONE,
)

EVERY: Final[dict[str, type[Client]]] = {client.name: client for client in CLIENTS} | {
    OurPoolWithoutMetrics.name: OurPoolWithoutMetrics
}


def versions() -> dict[str, str]:
    """Return the version of each installed peer, by its name."""
    found = {}
    for client in CLIENTS:
        if client.distribution is not None:
            try:
                found[client.distribution] = importlib.metadata.version(client.distribution)
            except importlib.metadata.PackageNotFoundError:
                continue
    return found
