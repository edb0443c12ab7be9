"""The scripted server: accepts connections, gives each its script and thread, and gathers what failed.

Its one job is the life of the whole, from `start` to `close`; what happens on a connection is its `Peer`'s.

Its rules: one thread accepts, one plays each connection; `close` ends and joins them all within ``timeout``, closes
every socket, and only then raises the failures, all of them in one AssertionError.  Whoever waits for something to
happen here is woken after everything that does (`wait_until`), never by a sleep.
(PYTEST_DONT_REWRITE: see the package.)
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from .peer import EVENT_SLICE, Peer, ReceivedRequest, Script


class ScriptedServer:
    """A loopback server that plays one script per accepted connection, each in a thread of its own.

    The i-th connection plays the i-th script, later ones the ``default``.  After its last step a connection is
    closed (FIN).  A script nobody connected for is no failure: compare `accepted`.

    Use it in a ``with`` statement, or call `start` and `close`.

    Attributes:
        host: Where it listens; "localhost" on a Unix socket.
        port: The port, once started; 0 on a Unix socket.
        uds: The path of the Unix socket, or None.
        timeout: The bound on each wait, in seconds.
        connections: The accepted connections, in order.
        heads: The raw request heads of all connections, in order of arrival.
        failures: What went against the scripts so far.
    """

    def __init__(
        self,
        *scripts: Script,
        default: Script | None = None,
        ssl_context: ssl.SSLContext | None = None,
        uds: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        timeout: float = 10.0,
    ) -> None:
        """Prepare a server; nothing is opened before `start`.

        Args:
            *scripts: What the first, second, ... connection plays.
            default: What every further one plays; None: it is closed at once, which is a failure.
            ssl_context: Makes every connection start with a TLS handshake; None: plain, until a `StartTLS`.
            uds: Path of a Unix socket to listen on instead of TCP; removed at the end.
            host: The address to listen on.
            port: The port to listen on (to come back after a restart); 0: a free one.
            timeout: The bound, in seconds, on each single wait; one that is reached is a failure.
        """
        self.host = host if uds is None else "localhost"
        self.port = port if uds is None else 0
        self.uds = uds
        self.timeout = timeout
        self.connections: list[Peer] = []
        self.heads: list[bytes] = []
        self.failures: list[AssertionError] = []
        self._scripts = scripts
        self._default = default
        self._ssl_context = ssl_context
        self._opened: contextlib.ExitStack | None = None
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()
        self._changed = threading.Condition()  # guards nothing: it wakes wait_until() after something happened

    @property
    def accepted(self) -> int:
        """How many connections were accepted, the unexpected ones included."""
        return len(self.connections)

    @property
    def address(self) -> tuple[str, int]:
        """(host, port), as `socket.create_connection` takes it."""
        return self.host, self.port

    @property
    def url(self) -> str:
        """The root URL without a trailing slash: ``http://127.0.0.1:40001``; ``http://localhost`` on a Unix socket."""
        scheme = "http" if self._ssl_context is None else "https"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}" if self.uds is None else f"{scheme}://{host}"

    @property
    def requests(self) -> list[ReceivedRequest]:
        """The requests of all connections, connection by connection."""
        return [request for peer in list(self.connections) for request in list(peer.requests)]

    @property
    def is_closing(self) -> bool:
        """Whether `close` was called."""
        return self._closing.is_set()

    def start(self) -> Self:
        """Listen and accept; OSError if the address cannot be had, RuntimeError if it was started before."""
        if self._opened is not None:
            raise RuntimeError("a ScriptedServer starts once; make a new one, with port=, for a restart")
        with contextlib.ExitStack() as stack:  # closed at once if anything fails, else by close()
            listener = stack.enter_context(self._listen())
            selector = stack.enter_context(selectors.DefaultSelector())
            self._alarm, alarm_receiver = map(stack.enter_context, socket.socketpair())
            selector.register(listener, selectors.EVENT_READ)
            selector.register(alarm_receiver, selectors.EVENT_READ)
            if self.uds is None:
                self.port = int(listener.getsockname()[1])
            self._acceptor = threading.Thread(
                target=self._accept_all, args=(listener, selector), name=f"scripted-server-{self.port}", daemon=True
            )
            self._acceptor.start()
            self._opened = stack.pop_all()
        return self

    def close(self) -> None:
        """End every script, join every thread, close every socket; again and it does nothing.

        Raises:
            AssertionError: There were failures; it lists all, and its cause is an ExceptionGroup of them.
        """
        if self._opened is None or self._closing.is_set():
            return
        end = time.monotonic() + self.timeout
        self._closing.set()
        self._alarm.close()  # which makes the other end readable
        self._acceptor.join(self.timeout)
        self._opened.close()
        if self.uds is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.uds)
        for peer in self.connections:
            peer._interrupt()
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                self._fail(TimeoutError(f"{thread.name} still runs {self.timeout:g} s after close()"))
        for peer in self.connections:
            peer.close()
        if self.failures:
            raise AssertionError(self._failure_text()) from ExceptionGroup("failures", self.failures)

    def peer(self, index: int = 0, timeout: float | None = None) -> Peer:
        """Return the connection with this number, waiting for it as `wait_until` does."""
        self.wait_until(lambda: self.accepted > index, timeout)
        return self.connections[index]

    def wait_until(self, predicate: Callable[[], bool], timeout: float | None = None) -> None:
        """Wait until the predicate holds; it is asked again after everything that happens in this server.

        Args:
            predicate: A quick question about this server or its connections.
            timeout: The bound in seconds; None: the server's own.

        Raises:
            TimeoutError: It did not hold in time; the text says how far each script came.
        """
        limit = self.timeout if timeout is None else timeout
        with self._changed:
            if self._changed.wait_for(predicate, limit):
                return
        name = getattr(predicate, "__qualname__", repr(predicate))
        raise TimeoutError(f"{name} did not hold within {limit:g} s; {self._describe()}")

    def __enter__(self) -> Self:
        """Start the server."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the server; if the block raised already, failures become a note of that exception."""
        try:
            self.close()
        except AssertionError as failure:
            if error is None:
                raise
            error.add_note(str(failure))

    def _listen(self) -> socket.socket:
        if self.uds is None:
            family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
            listener = socket.create_server((self.host, self.port), family=family, backlog=1024)
        else:
            listener = socket.socket(socket.AF_UNIX)
            try:
                listener.bind(self.uds)
                listener.listen(1024)
            except BaseException:
                listener.close()
                raise
        listener.setblocking(False)
        return listener

    def _accept_all(self, listener: socket.socket, selector: selectors.BaseSelector) -> None:
        while True:
            selector.select()
            try:
                sock, client = listener.accept()
            except BlockingIOError:
                if self._closing.is_set():  # only now: who connected before close() is not overlooked
                    return
            except OSError:  # the client gave up already, or this process is out of descriptors
                if self._closing.wait(EVENT_SLICE):
                    return
            else:
                self._welcome(sock, client)

    def _welcome(self, sock: socket.socket, client: object) -> None:
        sock.settimeout(self.timeout)
        if self.uds is None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        index = len(self.connections)
        script = self._scripts[index] if index < len(self._scripts) else self._default
        peer = Peer(self, sock, index, client)
        self.connections.append(peer)
        if script is None:
            self._fail(AssertionError(f"unexpected: {len(self._scripts)} scripts and no default"), peer=peer)
            peer._run((), None)
            return
        thread = threading.Thread(
            target=peer._run, args=(script, self._ssl_context), name=f"scripted-peer-{index}-{self.port}", daemon=True
        )
        self._threads.append(thread)
        thread.start()
        self._notify()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _fail(self, error: BaseException, *, peer: Peer | None = None) -> None:
        where = "" if peer is None else f"connection {peer.index}, {peer._step!r:.120}: "
        what = str(error) if isinstance(error, (AssertionError, TimeoutError)) else repr(error)
        failure = AssertionError(where + what)
        failure.__cause__ = error
        self.failures.append(failure)
        self._notify()

    def _failure_text(self) -> str:
        return "\n  ".join([f"{len(self.failures)} failure(s) of ScriptedServer:", *map(str, self.failures)])

    def _describe(self) -> str:
        lines = [f"{self.accepted} connections were accepted", *map(str, self.failures)]
        for peer in list(self.connections):
            state = "ended" if peer.ended.is_set() else f"at {peer._step!r:.120}"
            seen = f"{peer.received_count} bytes, {len(peer.requests)} requests"
            lines.append(f"connection {peer.index}: {seen}, {state}{', client left' if peer.client_closed else ''}")
        return "\n  ".join(lines)


class ServerFactory:
    """What the fixture ``scripted_server`` is: call it like `ScriptedServer`; what it returns is started."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        """Register the servers with a stack that closes them."""
        self._stack = stack

    def __call__(
        self,
        *scripts: Script,
        default: Script | None = None,
        ssl_context: ssl.SSLContext | None = None,
        uds: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        timeout: float = 10.0,
    ) -> ScriptedServer:
        """Start a server that is closed, and its failures raised, when the test is over."""
        server = ScriptedServer(
            *scripts, default=default, ssl_context=ssl_context, uds=uds, host=host, port=port, timeout=timeout
        )
        self._stack.callback(server.close)
        return server.start()
