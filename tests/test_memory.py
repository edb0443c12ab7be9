"""How much memory a body costs: next to none, whatever its length, in both directions.

The client runs alone in a process of its own, and the kernel says how much that process had at its worst: what Python's
own accounting does not see (the buffers of OpenSSL, pages that were reserved on a promise) counts too.
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import trustme

from pooledhttp.testing import Peer, ReceivedRequest, Respond, ScriptedServer, ServerFactory

pytestmark = [
    pytest.mark.unmeasured,
    pytest.mark.skipif(
        not Path("/proc/self/status").exists(), reason="no /proc here to read the peak of a process from"
    ),
]

MEGABYTE: Final = 1_000_000
ALLOWED: Final = 5 * MEGABYTE
LONG: Final = 200 * MEGABYTE
LONG_OVER_TLS: Final = 50 * MEGABYTE
BLOCK: Final = (b"x" * 8191 + b"\n") * 32
BOUND: Final = 50.0

# What the client's process begins with; `measured` prints by how much a piece of work has raised the peak.
PRELUDE: Final = '''
import gc, json, ssl, sys
from pooledhttp import ConnectionPool, HTTPConnection, HTTPSConnection, IncompleteRead, Timeout

host, port, authority, size, target, path = json.loads(sys.argv[1])
context = ssl.create_default_context(cafile=authority) if authority else None
PATIENT = Timeout(connect=10, read=40, write=40)


def connect():
    if context:
        return HTTPSConnection(host, port, timeout=40, context=context)
    return HTTPConnection(host, port, timeout=40)


def make_pool(maxsize=1):
    return ConnectionPool(host, port, scheme="https" if context else "http", ssl_context=context, registry=None,
                          maxsize=maxsize, timeout=PATIENT)


def kilobytes(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name))


def measured(work):
    """Print by how many bytes the most that was resident and the most that was reserved were above the start."""
    work(True)  # what is made once, at the first use, is no matter of length
    gc.collect()
    try:
        with open("/proc/self/clear_refs", "w") as clear:
            clear.write("5")  # the peak of what is resident begins anew
    except OSError:
        pass  # then it includes what came before, and the test is stricter
    resident, reserved = kilobytes("VmRSS"), max(kilobytes("VmSize"), kilobytes("VmPeak"))
    work(False)
    print(json.dumps([(kilobytes("VmHWM") - resident) * 1024, (kilobytes("VmPeak") - reserved) * 1024]))
'''


# --- the peer, and the client's process -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


class Growth:
    """By how many bytes the client's process has grown at its worst."""

    def __init__(self, printed: str) -> None:
        self.resident, self.reserved = json.loads(printed)


@pytest.fixture
def client_of(tmp_path: Path, authority: trustme.CA) -> Callable[..., str]:
    """Run a client in a process of its own; return what it printed."""

    def run(server: ScriptedServer, source: str, *, size: int = 0, target: str = "/", file: Path | None = None) -> str:
        pem = ""
        if server.url.startswith("https"):
            pem = str(tmp_path / "authority.pem")
            authority.cert_pem.write_to_path(pem)
        arguments = json.dumps([server.host, server.port, pem, size, target, str(file or "")])
        finished = subprocess.run(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(source), arguments],
            capture_output=True, text=True, timeout=BOUND, check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
        assert (finished.returncode, finished.stderr) == (0, "")
        return finished.stdout

    return run


@pytest.fixture
def serve(scripted_server: ServerFactory, authority: trustme.CA) -> Callable[..., ScriptedServer]:
    def make(script: Any, *, is_tls: bool = False) -> ScriptedServer:
        context = None
        if is_tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert("127.0.0.1").configure_cert(context)
        return scripted_server(default=script, ssl_context=context, timeout=BOUND)

    return make


def send_long(peer: Peer, request: ReceivedRequest) -> None:
    """Answer with a body of the size and in the framing that the target names: ``/chunks/2000000``."""
    framing, size = request.target[1:].split("/")
    blocks, rest = divmod(int(size), len(BLOCK))
    fields = {
        "length": f"Content-Length: {size}\r\n",
        "end": "Connection: close\r\n",
    }.get(framing, "Transfer-Encoding: chunked\r\n")
    peer.send(f"HTTP/1.1 200 OK\r\n{fields}\r\n".encode())
    if framing == "one-chunk":
        peer.send(b"%x\r\n" % int(size))
    for _ in range(blocks):
        peer.send(b"%x\r\n%b\r\n" % (len(BLOCK), BLOCK) if framing == "chunks" else BLOCK)
    if framing == "chunks" and rest:
        peer.send(b"%x\r\n%b\r\n" % (rest, BLOCK[:rest]))
    elif rest:
        peer.send(BLOCK[:rest])
    if framing == "one-chunk":
        peer.send(b"\r\n")
    if framing in {"chunks", "one-chunk"}:
        peer.send(b"0\r\n\r\n")
    if framing == "end":
        peer.close()


def sends_long(peer: Peer) -> None:
    while peer.is_open:
        send_long(peer, peer.read_request())


def takes_long(peer: Peer) -> None:
    """Take bodies without keeping them, and answer with how long they were."""
    while True:
        request = peer.read_head()
        length = request.field("Content-Length")
        taken = peer._take(len(peer.unread))
        count = len(taken)
        tail = taken[-5:]
        buffer = bytearray(1 << 18)
        while count < int(length) if length else tail != b"0\r\n\r\n":
            received = peer.sock.recv_into(buffer)
            assert received, "the body did not come whole"
            count += received
            tail = (tail + buffer[max(0, received - 5) : received])[-5:]
        peer.send(Respond(body=str(count).encode()).encode())


# --- reading ----------------------------------------------------------------------------------------------------------

READING: Final = {
    "readinto": """
        def consume(response):
            buffer, total = bytearray(65536), 0
            while count := response.readinto(buffer):
                total += count
            return total
    """,
    "read(n)": """
        def consume(response):
            total = 0
            while piece := response.read(100_000):
                total += len(piece)
            return total
    """,
    "iteration": """
        def consume(response):
            return sum(map(len, response))
    """,
}
OVER_A_CONNECTION: Final = """
def work(is_first):
    conn = connect()
    length = 2_000_000 if is_first else size
    conn.request("GET", f"{target}/{length}")
    response = conn.getresponse()
    assert consume(response) == length
    conn.close()

measured(work)
"""
OVER_A_POOL: Final = """
def work(is_first):
    length = 2_000_000 if is_first else size
    with make_pool() as pool, pool.stream("GET", f"{target}/{length}") as response:
        assert consume(response) == length

measured(work)
"""
every_framing = pytest.mark.parametrize("framing", ["length", "chunks", "one-chunk", "end"])


@every_framing
@pytest.mark.parametrize("reading", READING)
def test_long_body_is_read_in_little_memory(
    reading: str, framing: str, serve: Callable[..., ScriptedServer], client_of: Callable[..., str]
) -> None:
    source = textwrap.dedent(READING[reading]) + OVER_A_CONNECTION
    assert Growth(client_of(serve(sends_long), source, size=LONG, target=f"/{framing}")).resident < ALLOWED


@every_framing
def test_long_body_of_a_pool_is_streamed_in_little_memory(
    framing: str, serve: Callable[..., ScriptedServer], client_of: Callable[..., str]
) -> None:
    source = textwrap.dedent(READING["iteration"]) + OVER_A_POOL
    assert Growth(client_of(serve(sends_long), source, size=LONG, target=f"/{framing}")).resident < ALLOWED


@pytest.mark.parametrize("reading", ["readinto", "iteration"])
def test_long_body_is_read_in_little_memory_over_tls(
    reading: str, serve: Callable[..., ScriptedServer], client_of: Callable[..., str]
) -> None:
    source = textwrap.dedent(READING[reading]) + OVER_A_POOL
    printed = client_of(serve(sends_long, is_tls=True), source, size=LONG_OVER_TLS, target="/length")
    assert Growth(printed).resident < ALLOWED


# --- a promise --------------------------------------------------------------------------------------------------------

PROMISED: Final = {
    "read()": "response.read()",
    "read(n)": "pieces = [response.read(10**11) for _ in range(2)]",
    "read(n) of all": "pieces = [response.read(10**12) for _ in range(2)]",
    "readinto": "buffer = bytearray(100); response.readinto(buffer)",
    "readline": "pieces = [response.readline(), response.readline()]",
    "iteration": "pieces = list(response)",
}


def promises_much(peer: Peer) -> None:
    promised = 20 if peer.read_request().target == "/first" else 10**12
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n0123456789" % promised)


@pytest.mark.parametrize("reading", PROMISED)
def test_promise_of_a_long_body_costs_nothing(
    reading: str, serve: Callable[..., ScriptedServer], client_of: Callable[..., str]
) -> None:
    source = f"""
        def work(is_first):
            conn = connect()
            conn.request("GET", "/first" if is_first else "/")
            response = conn.getresponse()
            assert response.length == (20 if is_first else 10**12)
            try:
                {PROMISED[reading]}
            except IncompleteRead:
                pass
            else:
                raise AssertionError("a truncated body passed for a whole one")
            assert conn.sock is None

        measured(work)
    """
    growth = Growth(client_of(serve(promises_much), source))
    assert growth.resident < 1 << 20
    assert growth.reserved < 1 << 20


def test_promise_of_a_long_body_costs_a_pool_nothing(
    serve: Callable[..., ScriptedServer], client_of: Callable[..., str]
) -> None:
    source = """
        def work(is_first):
            with make_pool() as pool:
                try:
                    pool.request("GET", "/first" if is_first else "/")
                except IncompleteRead as fault:
                    assert fault.partial == b"0123456789"
                else:
                    raise AssertionError("a truncated body passed for a whole one")

        measured(work)
    """
    growth = Growth(client_of(serve(promises_much), source))
    assert growth.resident < 1 << 20
    assert growth.reserved < 1 << 20


def promises_a_long_chunk(peer: Peer) -> None:
    promised = 20 if peer.read_request().target == "/first" else 10**12
    peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n0123456789" % promised)


def test_promise_of_a_long_chunk_costs_nothing(
    serve: Callable[..., ScriptedServer], client_of: Callable[..., str]
) -> None:
    source = """
        def work(is_first):
            conn = connect()
            conn.request("GET", "/first" if is_first else "/")
            try:
                conn.getresponse().read()
            except IncompleteRead as fault:
                assert fault.partial == b"0123456789"
            else:
                raise AssertionError("a truncated body passed for a whole one")

        measured(work)
    """
    growth = Growth(client_of(serve(promises_a_long_chunk), source))
    assert growth.resident < 1 << 20
    assert growth.reserved < 1 << 20


# --- sending ----------------------------------------------------------------------------------------------------------

SENDING: Final = {
    "file": 'body = open(path, "rb")',
    "file in chunks": 'body, fields = open(path, "rb"), {"Transfer-Encoding": "chunked"}',
    "generator": "body = (bytes(50_000) for _ in range(length // 50_000))",
}
UPLOAD: Final = """
def work(is_first):
    length = 2_000_000 if is_first else size
    fields = {{}}
    {body}
    if is_first and hasattr(body, "seek"):
        body.seek(size - length)
    with make_pool() as pool:
        assert pool.request("POST", "/upload", body, fields).status == 200
    getattr(body, "close", bool)()

measured(work)
"""


def sparse(directory: Path, size: int) -> Path:
    path = directory / "sparse"
    with path.open("wb") as file:
        file.truncate(size)
    return path


@pytest.mark.parametrize("kind", SENDING)
@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
def test_long_body_is_sent_in_little_memory(
    is_tls: bool, kind: str, serve: Callable[..., ScriptedServer], client_of: Callable[..., str], tmp_path: Path
) -> None:
    size = LONG_OVER_TLS if is_tls else LONG
    server = serve(takes_long, is_tls=is_tls)
    printed = client_of(server, UPLOAD.format(body=SENDING[kind]), size=size, file=sparse(tmp_path, size))
    assert Growth(printed).resident < ALLOWED


@pytest.mark.parametrize("fields", [{}, {"Transfer-Encoding": "chunked"}], ids=["length", "one chunk"])
@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
def test_long_body_in_memory_is_sent_without_a_copy(
    is_tls: bool, fields: dict[str, str], serve: Callable[..., ScriptedServer], client_of: Callable[..., str]
) -> None:
    source = f"""
        body = memoryview(b"x" * size)

        def work(is_first):
            with make_pool() as pool:
                assert pool.request("POST", "/upload", body[:2_000_000] if is_first else body, {fields}).status == 200

        measured(work)
    """
    printed = client_of(serve(takes_long, is_tls=is_tls), source, size=LONG_OVER_TLS)
    assert Growth(printed).resident < ALLOWED


# --- between exchanges ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
def test_idle_connection_keeps_no_large_buffer(
    is_tls: bool, serve: Callable[..., ScriptedServer], client_of: Callable[..., str]
) -> None:
    source = """
        import tracemalloc
        from contextlib import ExitStack

        def use(pool, size):
            with ExitStack() as stack:
                for number in range(10):
                    conn = stack.enter_context(pool.connection())
                    conn.request("GET", f"/{'chunks' if number % 2 else 'length'}/{size}")
                    response = conn.getresponse()
                    while response.read(70_000):
                        pass
                    del conn, response

        with make_pool(maxsize=10) as pool:
            use(pool, 10)
            gc.collect()
            tracemalloc.start()
            use(pool, 1_000_000)
            gc.collect()
            print(json.dumps([tracemalloc.get_traced_memory()[0], 0]))
            assert pool.stats().idle == pool.stats().opened == 10
    """
    assert Growth(client_of(serve(sends_long, is_tls=is_tls), source)).resident < 10 * 8192
