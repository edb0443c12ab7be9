"""Servers that load the application once and then fork: gunicorn with ``--preload``, and celery's prefork pool.

The application has one pool for all of its processes, over TLS, and has used it before the fork.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trustme

from pooledhttp import ConnectionPool
from pooledhttp.testing import Peer, Respond, ScriptedServer, ServerFactory

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")

BOUND = 20.0
ROOT = Path(__file__).resolve().parent.parent
Process = subprocess.Popen[bytes]
HELLO = Respond(body=b"hello").encode()


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    trusted = tmp_path / "authority.pem"
    authority().cert_pem.write_to_path(trusted)
    # gunicorn keeps a socket in the home directory.
    return {**os.environ, "AUTHORITY": str(trusted), "HOME": str(tmp_path)}


@contextlib.contextmanager
def program(
    *arguments: str, environment: dict[str, str]
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], str]]]:
    """Run a module as a program; give it and a call that returns what it has written; end it, by force if need be."""
    path = Path(environment["HOME"], "log")
    with path.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process, lambda: path.read_text(errors="replace")
    except BaseException as fault:
        fault.add_note(path.read_text(errors="replace"))
        raise
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # it leads a group of its own, its workers among them
        process.wait(BOUND)


def wait_until(predicate: Callable[[], bool]) -> None:
    """Wait for what nobody tells."""
    end = time.monotonic() + BOUND
    pause = threading.Event()
    while not predicate():
        assert time.monotonic() < end, "it did not happen in time"
        pause.wait(0.02)


def stop(process: Process, log: Callable[[], str]) -> None:
    """Ask it to stop when its work is done, as an init system does."""
    process.terminate()
    assert process.wait(BOUND) == 0, log()


def serve(scripted_server: ServerFactory, *, processes: int) -> ScriptedServer:
    """Start a server that answers the first requests of so many workers when all of them have come.

    So no worker can do the work of another, and all of them use the pool at the same time.
    """
    all_have_come = threading.Barrier(processes)

    def answer(peer: Peer) -> None:
        while True:
            request = peer.read_request()
            if request.target.startswith("/worker/") and len(peer.requests) == 1:
                all_have_come.wait(BOUND)
            peer.send(HELLO)

    return scripted_server(default=answer, ssl_context=server_context(), timeout=BOUND)


def connections_by_process(server: ScriptedServer) -> dict[int, list[int]]:
    """Return the numbers of the connections that each process has sent requests on."""
    found: dict[int, list[int]] = {}
    for peer in server.connections:
        for process in {int(request.target.split("/")[2]) for request in peer.requests}:
            found.setdefault(process, []).append(peer.index)
    return found


def test_gunicorn_with_preload(scripted_server: ServerFactory, environment: dict[str, str], tmp_path: Path) -> None:
    server = serve(scripted_server, processes=2)
    environment["ORIGIN"] = f"{server.host}:{server.port}"
    listening = tmp_path / "listening"
    arguments = ["--preload", "--workers=2", f"--bind=unix:{listening}", f"--worker-tmp-dir={tmp_path}"]
    with (
        program("gunicorn", *arguments, "tests.apps.prefork_wsgi:app", environment=environment) as (process, log),
        ConnectionPool("gunicorn", uds=str(listening), timeout=BOUND, registry=None) as front,
        ThreadPoolExecutor(2) as executor,
    ):

        def ask(_: int) -> tuple[int, str, int]:
            who, answer, opened = front.request("GET", "/").json()
            return who, answer, opened

        server.wait_until(lambda: bool(server.requests))  # it has loaded the application
        wait_until(lambda: "Booting worker" in log())
        together = list(executor.map(ask, range(2)))
        answers = together + [ask(number) for number in range(6)]
        assert {(answer, opened) for _, answer, opened in answers} == {("hello", 1)}
        workers = {who for who, _, _ in answers}
        assert len(workers) == 2
        assert process.pid not in workers
        assert not server.peer(0).client_closed
        stop(process, log)
    by_process = connections_by_process(server)
    assert by_process.keys() == {process.pid, *workers}
    assert sorted(by_process.values()) == [[0], [1], [2]]
    assert [peer.tls_error for peer in server.connections if peer.tls_error] == []


def test_celery_with_its_prefork_pool(
    scripted_server: ServerFactory, environment: dict[str, str], tmp_path: Path
) -> None:
    server = serve(scripted_server, processes=2)
    broker = tmp_path / "broker"
    broker.mkdir()
    environment |= {"ORIGIN": f"{server.host}:{server.port}", "BROKER": str(broker), "TASKS": "8"}
    arguments = ["worker", "--pool=prefork", "--concurrency=2", "--loglevel=INFO"]
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    with program("celery", "--app=tests.apps.prefork_tasks", *arguments, *quiet, environment=environment) as (
        process,
        log,
    ):

        def done() -> list[str]:
            return [request.target for request in server.requests if request.target.startswith("/worker/")]

        server.wait_until(lambda: len(done()) == 8)
        wait_until(lambda: log().count("succeeded in") == 8)
        assert not server.peer(0).client_closed
        stop(process, log)
    opened_before = [int(target.split("/")[3]) for target in done()]
    assert sorted(opened_before) == [0, 0, *[1] * 6]
    by_process = connections_by_process(server)
    assert by_process.pop(process.pid) == [0]
    assert sorted(by_process.values()) == [[1], [2]]
    assert [request.target for request in server.peer(0).requests] == [
        f"/loaded/{process.pid}",
        f"/ready/{process.pid}",
    ]
    assert [peer.tls_error for peer in server.connections if peer.tls_error] == []
