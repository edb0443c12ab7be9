"""Forks: a child begins anew and leaves the parent's connections alone; both go on working.

The servers are threads of the parent, so the children have copies of their sockets too; what a peer heard, and which
end of a connection a descriptor is, is looked at accordingly.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import select
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import trustme
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pooledhttp import (
    ConnectionPool,
    HTTPConnection,
    HTTPException,
    HTTPSConnection,
    NotConnected,
    PoolManager,
    Timeout,
    forking,
)
from pooledhttp import dial as dial_room
from pooledhttp import uncut as uncut_room
from pooledhttp.testing import (
    ExpectHead,
    Peer,
    Repeat,
    ResourceAudit,
    Respond,
    Script,
    ScriptedServer,
    Send,
    ServerFactory,
    Stall,
    StartTLS,
)
from pooledhttp.uncut import uncut
from tests.apps.children import BOUND, Child, connections_to, descriptors, in_child

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork"),
    # Python 3.12 and later warn of what these tests are about.
    pytest.mark.filterwarnings(
        r"ignore:This process \(pid=\d+\) is multi-threaded, use of fork\(\) may lead to deadlocks in the child\."
        ":DeprecationWarning"
    ),
]

ROOT = Path(__file__).resolve().parent.parent
PATIENT = Timeout(acquire=BOUND, connect=BOUND, read=BOUND, write=BOUND)
ANSWER = [ExpectHead(), Respond(body=b"hello")]
ANSWERS = [Repeat([ExpectHead(optional=True), Respond(body=b"hello")])]


def has_heard(peer: Peer) -> bool:
    """Tell whether a peer whose script does not read has anything to read: a byte, the end, or a reset."""
    with socket.socket(fileno=os.dup(peer.sock.fileno())) as copy:
        copy.settimeout(0)  # as the original is for the kernel
        try:
            copy.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True


def wait_until(predicate: Callable[[], bool]) -> None:
    """Wait for what nobody tells."""
    end = time.monotonic() + BOUND
    pause = threading.Event()
    while not predicate():
        assert time.monotonic() < end, "it did not happen in time"
        pause.wait(0.005)


# --- servers and pools ------------------------------------------------------------------------------------------------


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


@functools.cache
def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context


@functools.cache
def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context


def pool_to(server: ScriptedServer, *, maxsize: int = 4) -> ConnectionPool:
    scheme = server.url.partition(":")[0]
    return ConnectionPool(
        *server.address, scheme=scheme, ssl_context=client_context(), maxsize=maxsize, timeout=PATIENT, registry=None
    )


def bare_connection_to(server: ScriptedServer) -> HTTPConnection:
    if server.url.startswith("https"):
        return HTTPSConnection(server.host, server.port, timeout=BOUND, context=client_context())
    return HTTPConnection(server.host, server.port, timeout=BOUND)


def get(pool: ConnectionPool, target: str = "/") -> bytes:
    return pool.request("GET", target).data


Serve = Callable[..., ScriptedServer]


@pytest.fixture(params=["plain", "TLS"])
def serve(request: pytest.FixtureRequest, scripted_server: ServerFactory) -> Serve:
    """Start servers, all of them plain or all with TLS, which answer where no script says otherwise."""

    def start(*scripts: Script) -> ScriptedServer:
        context = server_context() if request.param == "TLS" else None
        return scripted_server(*scripts, default=ANSWERS, ssl_context=context)

    return start


@pytest.fixture
def serve_tls(scripted_server: ServerFactory) -> Serve:
    def start(*scripts: Script) -> ScriptedServer:
        return scripted_server(*scripts, default=ANSWERS, ssl_context=server_context())

    return start


@contextlib.contextmanager
def shop(server: ScriptedServer, audit: ResourceAudit, *, maxsize: int = 4) -> Iterator[ConnectionPool]:
    """A pool, and at the end one normal request, counters that add up, and no peer that met broken TLS."""
    with pool_to(server, maxsize=maxsize) as pool:
        yield pool
        assert get(pool, "/at-the-end") == b"hello"
        audit.check_pool(pool)
    audit.watch(pool)
    assert [peer.tls_error for peer in server.connections if peer.tls_error] == []


@contextlib.contextmanager
def in_thread(work: Callable[[], object]) -> Iterator[Callable[[], object]]:
    """Run something in a thread; give a call that returns its result."""
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(work)
        yield lambda: future.result(BOUND)


# --- idle connections -------------------------------------------------------------------------------------------------


def test_parent_and_child_both_go_on_working(serve: Serve, audit: ResourceAudit) -> None:
    server = serve()
    with shop(server, audit) as pool:
        assert get(pool, "/parent") == b"hello"
        assert in_child(lambda: [get(pool, "/child") for _ in range(2)]) == [b"hello"] * 2
        assert get(pool, "/parent") == b"hello"
        assert server.accepted == 2
        assert [request.target for request in server.peer(1).requests] == ["/child"] * 2


def test_parent_keeps_its_connection(serve: Serve, audit: ResourceAudit) -> None:
    server = serve()
    with shop(server, audit) as pool:
        get(pool)
        before = connections_to(server.address)
        in_child(lambda: get(pool))
        get(pool)
        assert connections_to(server.address) == before
        stats = pool.stats()
        assert (stats.opened, stats.idle, sum(stats.closed.values())) == (1, 1, 0)


def test_child_starts_empty_and_counts_from_zero(serve: Serve, audit: ResourceAudit) -> None:
    server = serve()
    with shop(server, audit) as pool, pool_to(server) as fresh, pool.connection():
        get(pool)
        assert in_child(lambda: repr(pool.stats())) == repr(fresh.stats())


def test_child_counts_what_it_does_itself(serve: Serve, audit: ResourceAudit) -> None:
    server = serve()
    with shop(server, audit) as pool:
        for _ in range(3):
            get(pool)

        def work() -> tuple[int, int, int]:
            get(pool)
            audit.check_pool(pool)
            stats = pool.stats()
            return stats.opened, stats.idle, sum(stats.requests.values())

        assert in_child(work) == (1, 1, 1)


def test_child_has_closed_its_copies(serve: Serve, audit: ResourceAudit) -> None:
    server = serve()
    with shop(server, audit) as pool, pool.connection(), pool.connection():
        get(pool)
        assert len(connections_to(server.address)) == 3
        assert in_child(lambda: connections_to(server.address)) == []


@pytest.mark.parametrize("way", ["tunnel", "Unix socket"])
def test_child_has_closed_its_copies_of_other_kinds_too(
    way: str, scripted_server: ServerFactory, audit: ResourceAudit, tmp_path: Path
) -> None:
    if way == "tunnel":
        server = scripted_server(default=[ExpectHead("CONNECT"), Respond(), StartTLS(server_context()), *ANSWERS])
        pool = ConnectionPool(
            "localhost",
            443,
            scheme="https",
            proxy=server.url,
            ssl_context=client_context(),
            timeout=PATIENT,
            registry=None,
        )
    else:
        server = scripted_server(default=ANSWERS, uds=str(tmp_path / "listening"))
        pool = ConnectionPool("localhost", uds=server.uds, timeout=PATIENT, registry=None)
    with pool:
        get(pool)
        inodes = {inode for sock, (_, inode) in forking._sockets.items() if sock.fileno() >= 0}
        assert len(inodes) == 1

        def work() -> tuple[set[int], bytes]:
            left = inodes & {status.st_ino for status in descriptors().values()}
            return left, get(pool)

        assert in_child(work) == (set(), b"hello")
        assert get(pool) == b"hello"
        assert server.accepted == 2
    audit.watch(pool)


def test_peer_hears_nothing_of_a_child(serve: Serve, audit: ResourceAudit) -> None:
    over = threading.Event()
    server = serve(*[[*ANSWER, Stall(until=over), *ANSWERS]] * 2)
    with shop(server, audit) as pool:
        with pool.connection() as conn:
            get(pool)
            conn.request("GET", "/lent")
            assert conn.getresponse().read() == b"hello"

            def work() -> None:
                get(pool)
                pool.close()

            in_child(work)
            assert [has_heard(server.peer(index)) for index in range(2)] == [False, False]
            over.set()
            conn.request("GET", "/lent")
            assert conn.getresponse().read() == b"hello"
        get(pool)
        assert server.accepted == 3


def test_peer_sees_the_end_that_the_parent_makes_though_a_child_lives_on(serve: Serve, audit: ResourceAudit) -> None:
    server = serve()
    reader, writer = os.pipe()
    with shop(server, audit) as pool:
        get(pool)
        child = Child(lambda: os.read(reader, 1))
        with pool.connection() as conn:
            conn.close()
        server.wait_until(lambda: server.peer(0).client_closed)
        os.write(writer, b"x")
        assert child.result() == b"x"
    os.close(reader)
    os.close(writer)


def test_grandchild_starts_anew_too(serve: Serve, audit: ResourceAudit) -> None:
    server = serve()
    with shop(server, audit) as pool:
        get(pool, "/parent")

        def work() -> tuple[object, ...]:
            get(pool, "/child")

            def deeper() -> tuple[object, ...]:
                inherited = connections_to(server.address), pool.stats().opened
                return (*inherited, get(pool, "/grandchild"))

            of_grandchild = in_child(deeper)
            return of_grandchild, get(pool, "/child"), pool.stats().opened

        assert in_child(work) == (([], 0, b"hello"), b"hello", 1)
        assert get(pool, "/parent") == b"hello"
        assert server.accepted == 3


def test_fork_in_a_thread_starts_anew_too(serve: Serve, audit: ResourceAudit) -> None:
    server = serve()
    with shop(server, audit) as pool:
        get(pool)
        with in_thread(lambda: in_child(lambda: (pool.stats().opened, get(pool)))) as result:
            assert result() == (0, b"hello")
        get(pool)
        assert server.accepted == 2


# --- leased connections -----------------------------------------------------------------------------------------------


def test_connection_that_is_lent_at_the_fork_raises_in_the_child(serve: Serve, audit: ResourceAudit) -> None:
    server = serve()
    with shop(server, audit) as pool:
        with pool.connection() as conn:
            conn.request("GET", "/lent")
            assert conn.getresponse().read() == b"hello"

            def work() -> str:
                with pytest.raises(NotConnected):
                    conn.request("GET", "/stolen")
                with pytest.raises(HTTPException):
                    conn.getresponse()
                assert conn.sock is None
                return "refused"

            assert in_child(work) == "refused"
            conn.request("GET", "/lent")
            assert conn.getresponse().read() == b"hello"
        assert [request.target for request in server.peer(0).requests] == ["/lent"] * 2


def test_response_that_is_read_at_the_fork_raises_in_the_child_and_is_read_on_in_the_parent(
    serve: Serve, audit: ResourceAudit
) -> None:
    over = threading.Event()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"
    server = serve([ExpectHead(), Send(head + b"01234"), Stall(until=over), Send(b"56789"), *ANSWERS])
    with shop(server, audit) as pool:
        with pool.stream("GET", "/") as response:
            assert response.read(5) == b"01234"

            def work() -> str:
                with pytest.raises((HTTPException, OSError)):
                    response.read()
                return "refused"

            assert in_child(work) == "refused"
            over.set()
            assert response.read() == b"56789"
        assert pool.stats().idle == 1


def test_release_of_an_inherited_lease_does_nothing_in_the_child(serve: Serve, audit: ResourceAudit) -> None:
    server = serve()
    with shop(server, audit) as pool, pool_to(server) as fresh:
        conn = pool.acquire()

        def work() -> str:
            pool.release(conn)
            return repr(pool.stats())

        assert in_child(work) == repr(fresh.stats())
        pool.release(conn)


def test_blocks_that_are_open_at_the_fork_end_quietly_in_the_child(serve: Serve, audit: ResourceAudit) -> None:
    server = serve()
    with shop(server, audit) as pool, pool_to(server) as fresh:
        lease, stream = contextlib.ExitStack(), contextlib.ExitStack()
        lease.enter_context(pool.connection())
        stream.enter_context(pool.stream("GET", "/"))

        def work() -> str:
            stream.close()
            lease.close()
            return repr(pool.stats())

        assert in_child(work) == repr(fresh.stats())
        stream.close()
        lease.close()


def test_inherited_leases_that_are_collected_do_not_count_in_the_child(serve: Serve, audit: ResourceAudit) -> None:
    server = serve()
    with shop(server, audit) as pool, pool_to(server) as fresh:
        lent = [pool.acquire()]

        def work() -> str:
            lent.clear()
            return repr(pool.stats())

        assert in_child(work) == repr(fresh.stats())
        pool.release(lent.pop())


def test_inherited_leases_leave_the_child_all_its_slots(serve: Serve, audit: ResourceAudit) -> None:
    server = serve()
    with shop(server, audit, maxsize=2) as pool, pool.connection(), pool.connection():

        def work() -> int:
            with pool.connection(timeout=0), pool.connection(timeout=0):
                return pool.stats().leased

        assert in_child(work) == 2


def test_inherited_tls_socket_does_not_read_from_a_descriptor_that_took_its_number(
    serve_tls: Serve, audit: ResourceAudit
) -> None:
    server = serve_tls()
    with shop(server, audit) as pool, pool.connection() as conn:
        sock = conn.sock
        number = sock.fileno()

        def work() -> str:
            with Path("/dev/zero").open("rb") as zeros:
                os.dup2(zeros.fileno(), number)
            with pytest.raises(OSError, match="Bad file descriptor"):
                sock.recv(1)
            with pytest.raises(OSError, match="Bad file descriptor"):
                sock.send(b"x")
            return "refused"

        assert in_child(work) == "refused"


# --- what other threads were doing ------------------------------------------------------------------------------------


def test_child_has_a_new_lock_where_the_parents_was_held(serve: Serve, audit: ResourceAudit) -> None:
    server = serve()
    with shop(server, audit) as pool:
        get(pool)
        with pool._lock:
            child = Child(lambda: (get(pool), pool.stats().idle))
            assert child.result() == (b"hello", 1)


def test_child_has_none_of_the_waiters(serve: Serve, audit: ResourceAudit) -> None:
    server = serve()
    with shop(server, audit, maxsize=1) as pool:
        conn = pool.acquire()
        with in_thread(lambda: get(pool, "/waiter")) as waited:
            wait_until(lambda: pool.stats().waiting == 1)
            assert in_child(lambda: (pool.stats().waiting, get(pool, "/child"))) == (0, b"hello")
            pool.release(conn)
            assert waited() == b"hello"
        assert [request.target for request in server.peer(0).requests] == ["/waiter"]


def test_fork_during_a_handshake_leaves_it_to_the_parent(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    over = threading.Event()
    secure = StartTLS(server_context())
    server = scripted_server([Stall(until=over), secure, *ANSWERS], default=[secure, *ANSWERS])
    with ConnectionPool(
        server.host, server.port, scheme="https", ssl_context=client_context(), timeout=PATIENT, registry=None
    ) as pool:
        with in_thread(lambda: get(pool, "/parent")) as got:
            server.peer(0)
            wait_until(lambda: any(sock._sslobj for sock in forking._sockets if isinstance(sock, ssl.SSLSocket)))  # type: ignore[attr-defined]  # it is being secured
            inherited = in_child(lambda: (connections_to(server.address), pool.stats().opening, get(pool, "/child")))
            assert inherited == ([], 0, b"hello")
            over.set()
            assert got() == b"hello"
        assert get(pool) == b"hello"
        assert server.accepted == 2
        assert [peer.tls_error for peer in server.connections if peer.tls_error] == []
    audit.watch(pool)


def test_fork_while_a_connect_is_under_way_closes_the_copy(audit: ResourceAudit) -> None:
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = listener.getsockname()
        opened.enter_context(socket.create_connection(address))  # the queue is full now: the next SYN is dropped
        before = {status.st_ino for status in descriptors().values()}
        pool = opened.enter_context(ConnectionPool(*address, timeout=PATIENT, registry=None))
        acquired = opened.enter_context(in_thread(pool.acquire))
        noted: set[int] = set()

        def is_dialling() -> bool:
            noted.update(inode for _, inode in list(forking._sockets.values()) if inode not in before)
            return bool(noted)

        wait_until(is_dialling)
        assert in_child(lambda: noted & {status.st_ino for status in descriptors().values()}) == set()
        for _ in range(2):
            opened.enter_context(listener.accept()[0])
        conn = acquired()
        assert isinstance(conn, HTTPConnection)
        pool.release(conn)
        assert pool.stats().idle == 1
    audit.watch(pool)


def test_fork_while_all_places_for_resolving_are_taken_leaves_them_free_in_the_child(
    serve: Serve, audit: ResourceAudit
) -> None:
    server = serve()
    with shop(server, audit) as pool, contextlib.ExitStack() as taken:
        while dial_room._resolvers.acquire(blocking=False):
            taken.callback(dial_room._resolvers.release)
        named = functools.partial(
            ConnectionPool, "localhost", server.port, scheme=pool.scheme, ssl_context=client_context(), registry=None
        )

        def work() -> bytes:
            with named(timeout=PATIENT) as by_name:
                return get(by_name)

        assert in_child(work) == b"hello"


def test_fork_while_another_thread_reads_leaves_the_answer_to_the_parent(serve: Serve, audit: ResourceAudit) -> None:
    over = threading.Event()
    server = serve([ExpectHead(), Stall(until=over), Respond(body=b"late"), *ANSWERS])
    with shop(server, audit) as pool, in_thread(lambda: get(pool, "/slow")) as got:
        server.wait_until(lambda: server.accepted > 0 and len(server.peer(0).requests) == 1)
        assert in_child(lambda: (connections_to(server.address), get(pool, "/child"))) == ([], b"hello")
        over.set()
        assert got() == b"late"


def test_hundred_forks_beside_eight_threads_hang_no_child_and_fail_no_request(
    serve_tls: Serve, audit: ResourceAudit, tmp_path: Path
) -> None:
    server = serve_tls()
    trusted = tmp_path / "authority.pem"
    authority().cert_pem.write_to_path(trusted)
    done = subprocess.run(
        [sys.executable, "-m", "tests.apps.forking_client", server.host, str(server.port), str(trusted)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=45,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert sum(request.target == "/child" for request in server.requests) == 100
    with shop(server, audit):
        pass


# --- ways to fork -----------------------------------------------------------------------------------------------------


def _report(pool: ConnectionPool, pipe: Connection) -> None:
    opened = pool.stats().opened
    pipe.send((opened, get(pool, "/child")))


def test_multiprocessing_with_the_fork_method(serve: Serve, audit: ResourceAudit) -> None:
    server = serve()
    context = multiprocessing.get_context("fork")
    with shop(server, audit) as pool:
        with pool.connection() as conn:
            get(pool, "/parent")
            mine, theirs = context.Pipe()
            with mine, theirs:
                process = context.Process(target=_report, args=(pool, theirs))
                process.start()
                try:
                    assert mine.poll(BOUND), "the child hangs"
                    assert mine.recv() == (0, b"hello")
                    process.join(BOUND)
                    assert process.exitcode == 0
                finally:
                    process.kill()
                    process.join(BOUND)
                    process.close()
            conn.request("GET", "/parent")
            assert conn.getresponse().read() == b"hello"
        get(pool, "/parent")
        assert server.accepted == 3


def test_subprocess_with_preexec_fn(serve: Serve, audit: ResourceAudit) -> None:
    over = threading.Event()
    server = serve([*ANSWER, Stall(until=over), *ANSWERS])
    with shop(server, audit) as pool:
        get(pool)
        subprocess.run([sys.executable, "-c", ""], preexec_fn=os.getpid, check=True, timeout=BOUND)
        assert not has_heard(server.peer(0))
        over.set()
        get(pool)
        assert server.accepted == 1


def test_child_that_ends_the_usual_way_says_no_goodbye_for_the_parent(
    serve_tls: Serve, audit: ResourceAudit, tmp_path: Path
) -> None:
    over = threading.Event()
    server = serve_tls([*ANSWER, Stall(until=over), *ANSWERS])
    trusted = tmp_path / "authority.pem"
    authority().cert_pem.write_to_path(trusted)
    program = """
        import os, ssl, sys, warnings
        from pooledhttp import ConnectionPool
        context = ssl.create_default_context(cafile=sys.argv[2])
        pool = ConnectionPool(sys.argv[1], scheme="https", ssl_context=context, registry=None, timeout=10)
        assert pool.request("GET", "/parent").data == b"hello"
        lent = pool.acquire()
        if child := os.fork():
            assert os.waitpid(child, 0)[1] == 0
            print("ended", flush=True)
            sys.stdin.readline()
            pool.release(lent)
            assert pool.request("GET", "/parent").data == b"hello"
            print(pool.stats().opened)
        else:
            assert pool.request("GET", "/child").data == b"hello"
            sys.exit(0)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), f"{server.host}:{server.port}", str(trusted)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            server.wait_until(lambda: server.accepted == 2 and server.peer(1).ended.is_set())
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], BOUND)[0], "the child hangs"
            assert process.stdout.readline() == "ended\n"
            assert not has_heard(server.peer(0))
            over.set()
            out, err = process.communicate("go on\n", timeout=BOUND)
        except BaseException:
            process.kill()
            raise
    assert (out, err, process.returncode) == ("1\n", "", 0)
    with shop(server, audit):
        pass


# --- managers and metrics ---------------------------------------------------------------------------------------------


def test_child_of_a_manager_has_the_whole_of_max_total(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    servers = [scripted_server(default=ANSWERS) for _ in range(2)]
    with PoolManager(max_total=2, timeout=Timeout(acquire=0, connect=BOUND, read=BOUND), registry=None) as manager:
        urls = [f"{server.url}/" for server in servers]
        with contextlib.ExitStack() as lent:
            for url in urls:
                lent.enter_context(manager.connection(url))

            def work() -> list[int]:
                with manager.connection(urls[0]), manager.connection(urls[1]):
                    held = [manager.pool(url).stats().leased for url in urls]
                with manager.connection(urls[0]), manager.connection(urls[0]):
                    return [*held, manager.pool(urls[0]).stats().leased]

            assert in_child(work) == [1, 1, 2]
        assert [manager.request("GET", url).data for url in urls] == [b"hello"] * 2
        for url in urls:
            audit.watch(manager.pool(url))


def test_child_of_a_manager_has_new_locks(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    servers = [scripted_server(default=ANSWERS) for _ in range(2)]
    with PoolManager(max_total=4, timeout=PATIENT, registry=None) as manager:
        known, unknown = (f"{server.url}/" for server in servers)
        assert manager.request("GET", known).data == b"hello"
        pool = manager.pool(known)
        with manager._lock, pool._lock:
            child = Child(lambda: [manager.request("GET", url).data for url in (known, unknown)])
            assert child.result() == [b"hello"] * 2
        assert manager.request("GET", known).data == b"hello"
        audit.watch(pool)


def counters_in(registry: CollectorRegistry) -> dict[str, float]:
    """Return what is not zero, the gauges of sizes apart."""
    families = text_string_to_metric_families(generate_latest(registry).decode())
    ignored = {"pooledhttp_connections_max", "pooledhttp_pools", "pooledhttp_build_info"}
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in families
        if family.name not in ignored
        for sample in family.samples
        if sample.value
    }


def test_childs_metrics_start_from_zero(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    server = scripted_server(default=ANSWERS)
    registry = CollectorRegistry()
    with ConnectionPool(server.host, server.port, timeout=PATIENT, registry=registry) as pool:
        with ConnectionPool(server.host, server.port, timeout=PATIENT, registry=registry, name="gone") as gone:
            get(gone)
        del gone
        get(pool)
        assert counters_in(registry)  # a scrape in the parent, which must not matter to the child
        assert in_child(lambda: counters_in(registry)) == {}
        assert counters_in(registry)
        audit.watch(pool)


def test_childs_metrics_count_what_it_does_itself(scripted_server: ServerFactory, audit: ResourceAudit) -> None:
    server = scripted_server(default=ANSWERS)
    registry = CollectorRegistry()
    with ConnectionPool(server.host, server.port, timeout=PATIENT, registry=registry) as pool:
        for _ in range(5):
            get(pool)
        counters_in(registry)

        def work() -> tuple[float | None, ...]:
            get(pool)
            labels = {"pool": pool.name}
            return (
                registry.get_sample_value("pooledhttp_requests_total", {**labels, "outcome": "2xx"}),
                registry.get_sample_value("pooledhttp_acquires_total", {**labels, "outcome": "opened"}),
                registry.get_sample_value("pooledhttp_acquires_total", {**labels, "outcome": "reused"}),
                registry.get_sample_value("pooledhttp_request_duration_seconds_count", labels),
            )

        assert in_child(work) == (1, 1, 0, 1)
        audit.watch(pool)


# --- what is noted, and by whom ---------------------------------------------------------------------------------------


class Noting:
    """Begins anew by noting that it was asked to, and what was open then."""

    def __init__(self, asked: list[str], name: str, *, sock: socket.socket, fails: bool = False) -> None:
        self.asked = asked
        self.name = name
        self.sock = sock
        self.fails = fails
        forking.register(self)

    def renew_after_fork(self) -> None:
        self.asked.append(f"{self.name}, socket {'open' if self.sock.fileno() >= 0 else 'closed'}")
        if self.fails:
            raise ValueError(self.name)


def test_sockets_are_closed_before_objects_begin_anew_and_no_failure_stops_the_others(audit: ResourceAudit) -> None:
    asked: list[str] = []
    shown: list[object] = []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        forking.note_socket(ours)
        noting = [Noting(asked, name, sock=ours, fails=True) for name in ("one", "two", "three")]

        def work() -> list[str]:
            sys.unraisablehook = print
            return sorted(asked)

        hook = sys.unraisablehook
        sys.unraisablehook = shown.append  # what fails is shown, in the child
        try:
            assert in_child(work) == ["one, socket closed", "three, socket closed", "two, socket closed"]
        finally:
            sys.unraisablehook = hook
        assert (asked, shown) == ([], [])
    del noting


def test_failure_of_an_object_is_shown(audit: ResourceAudit) -> None:
    shown: list[str] = []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        noting = Noting([], "broken", sock=ours, fails=True)
        hook = sys.unraisablehook
        sys.unraisablehook = lambda unraisable: shown.append(repr(unraisable.exc_value))
        try:
            outcome = in_child(lambda: shown)
        finally:
            sys.unraisablehook = hook
    assert isinstance(outcome, list)
    assert len(outcome) == 1
    assert "ValueError('broken')" in outcome[0]
    del noting


def test_socket_that_is_being_closed_at_the_fork_is_closed_in_the_child(audit: ResourceAudit) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        forking.note_socket(ours)
        number = ours.detach()  # as in close(): the object has dropped its number, and the kernel comes to it later
        assert in_child(lambda: number in descriptors()) is False
        os.close(number)


def test_descriptor_that_took_a_closed_sockets_number_stays_open_in_the_child(audit: ResourceAudit) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        forking.note_socket(ours)
        number = ours.detach()
        reader, writer = os.pipe()
        os.dup2(reader, number)
        assert in_child(lambda: number in descriptors()) is True
        for descriptor in (number, reader, writer):
            os.close(descriptor)


def test_socket_of_a_bare_connection_is_its_users_own_business(serve: Serve, audit: ResourceAudit) -> None:
    server = serve()
    conn = bare_connection_to(server)  # as with http.client: whoever forks decides who goes on with it
    conn.request("GET", "/parent")
    assert conn.getresponse().read() == b"hello"

    def work() -> bytes:
        conn.request("GET", "/child")
        return conn.getresponse().read()

    assert in_child(work) == b"hello"
    assert [request.target for request in server.peer(0).requests] == ["/parent", "/child"]
    conn.close()


def test_fork_waits_for_a_step_of_another_thread(audit: ResourceAudit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uncut_room, "_PATIENCE", BOUND)
    entered = threading.Event()
    told = []

    def step() -> None:
        with uncut:
            entered.set()
            wait_until(lambda: bool(uncut._forks))
            told.append("the step ended")

    with in_thread(step) as ended:
        assert entered.wait(BOUND)
        assert in_child(lambda: told) == ["the step ended"]
        ended()


def test_step_waits_for_a_fork_that_is_about_to_happen(audit: ResourceAudit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uncut_room, "_PATIENCE", BOUND)
    told = []
    trying = threading.Event()

    def step() -> None:
        trying.set()
        with uncut:
            told.append("the step began")

    uncut.before_fork()
    with in_thread(step) as ended:
        assert trying.wait(BOUND)
        assert not uncut._depths
        told.append("the fork is over")
        uncut.after_fork()
        ended()
    assert told == ["the fork is over", "the step began"]


def test_fork_does_not_wait_for_ever_for_a_step(audit: ResourceAudit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uncut_room, "_PATIENCE", 0.01)
    entered, over = threading.Event(), threading.Event()

    def step() -> None:
        with uncut:
            entered.set()
            over.wait(BOUND)

    with in_thread(step) as ended:
        assert entered.wait(BOUND)
        assert in_child(lambda: dict(uncut._depths)) == {}
        over.set()
        ended()
    assert not uncut._depths


def test_fork_inside_a_step_of_the_same_thread_does_not_wait(
    audit: ResourceAudit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uncut_room, "_PATIENCE", 10 * BOUND)  # the handler of a signal may fork anywhere
    with uncut, uncut:
        assert in_child(lambda: "done") == "done"
    assert not uncut._depths


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="nobody tells here which threads there are")
def test_fork_waits_for_the_end_of_a_thread_that_has_dialled(
    audit: ResourceAudit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What OpenSSL does then is none of Python's; here it is an event that is waited for behind the last step."""
    monkeypatch.setattr(uncut_room, "_PATIENCE", BOUND)
    monkeypatch.setattr(forking, "_tls_context", client_context())
    told = []
    at_its_end, may_end = threading.Event(), threading.Event()

    def dial() -> None:
        forking.end_thread()
        at_its_end.set()
        may_end.wait(BOUND)
        told.append("the thread ended")

    def let_it_end() -> None:
        wait_until(lambda: bool(uncut._forks))
        may_end.set()

    dialling = threading.Thread(target=dial)  # not one of an executor, which would live on, and be waited for in vain
    dialling.start()
    with in_thread(let_it_end) as let:
        assert at_its_end.wait(BOUND)
        began = time.monotonic()
        assert in_child(lambda: told) == ["the thread ended"]
        assert time.monotonic() - began < BOUND
        let()
    dialling.join(BOUND)
    assert not uncut._ending


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="nobody tells here which threads there are")
def test_threads_that_have_ended_are_forgotten_and_the_own_is_not_waited_for(
    audit: ResourceAudit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uncut_room, "_PATIENCE", BOUND)
    monkeypatch.setattr(forking, "_tls_context", client_context())
    for _ in range(50):
        thread = threading.Thread(target=forking.end_thread)
        thread.start()
        thread.join(BOUND)
        path = Path(f"/proc/self/task/{thread.native_id}")
        wait_until(functools.partial(lambda path: not path.exists(), path))
    assert len(uncut._ending) <= uncut_room._MOST_ENDING
    forking.end_thread()  # as a greenlet does, whose thread goes on
    began = time.monotonic()
    assert in_child(lambda: "done") == "done"
    assert time.monotonic() - began < BOUND
    assert not uncut._ending


def test_works_where_a_process_cannot_fork() -> None:
    program = """
        import os
        del os.register_at_fork, os.fork
        from pooledhttp import ConnectionPool
        print(ConnectionPool("localhost", 80, registry=None).stats().opened)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.stdout, done.stderr) == ("0\n", "")
