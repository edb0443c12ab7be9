"""Guards the hot path by counting instructions: a figure that does not depend on what else the machine does.

Each loop runs under ``valgrind --tool=callgrind``, once with few rounds and once with many; the difference, over the
rounds in between, is what one round costs in user space, to a few parts in a thousand.  An absolute count would belong
to one build of one interpreter, so what is stored is the ratio to the same exchange by ``http.client``, counted in the
same run, for each version of Python.  ``make bench-guard`` fails when a ratio has grown by more than the tolerance, and
says so when it has shrunk by more, so that the gain is stored (``--store``) and kept.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import multiprocessing
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from pooledhttp import ConnectionPool, HTTPConnection

STORED: Final = Path(__file__).with_name("guard.json")
# How much a ratio may move before somebody has to look.
TOLERANCE: Final = 0.02
REFERENCE: Final = "http.client"
# By the name of a loop: which other one of the same run it is compared with, and how much dearer it may be.  It belongs
# to no build of an interpreter, so nothing is stored.
WITHIN: Final[Mapping[str, tuple[str, float]]] = {"request, with metrics": ("request", 0.03)}
_FEW: Final = 300
_MANY: Final = 1300
# Valgrind slows a program down some fifty times; this is for a machine that hangs.
_LONGEST_RUN: Final = 300.0

TARGET: Final = "/v1/orders/7"
ANSWER: Final = b"".join([
    b"HTTP/1.1 200 OK\r\n",
    b"Server: guard\r\n",
    b"Date: Mon, 23 Nov 2026 09:00:00 GMT\r\n",
    b"Content-Type: text/plain\r\n",
    b"Content-Length: 200\r\n",
    b"Connection: keep-alive\r\n",
    b'ETag: "abc"\r\n',
    b"X-Request-Id: 123456\r\n",
    b"Cache-Control: no-store\r\n",
    b"Vary: Accept\r\n",
    b"X-First: a\r\n",
    b"X-Second: b\r\n",
    b"\r\n",
    b"x" * 200,
])  # fmt: skip


# --- the loops --------------------------------------------------------------------------------------------------------


def request(port: int, rounds: int) -> None:
    """Count `ConnectionPool.request`."""
    with ConnectionPool("127.0.0.1", port, registry=None) as pool:
        for _ in range(rounds):
            pool.request("GET", TARGET)


def request_with_metrics(port: int, rounds: int) -> None:
    """Count it with the pool in a registry; whatever comes on top of `request` is what the metrics cost a call."""
    from prometheus_client import CollectorRegistry

    with ConnectionPool("127.0.0.1", port, registry=CollectorRegistry()) as pool:
        for _ in range(rounds):
            pool.request("GET", TARGET)


def request_within_a_total(port: int, rounds: int) -> None:
    """Count it with a deadline."""
    with ConnectionPool("127.0.0.1", port, registry=None) as pool:
        for _ in range(rounds):
            pool.request("GET", TARGET, timeout=5.0)


def post(port: int, rounds: int) -> None:
    """Count it with a small body and two fields."""
    headers = {"Content-Type": "application/json", "X-Request-Id": "123456"}
    with ConnectionPool("127.0.0.1", port, registry=None) as pool:
        for _ in range(rounds):
            pool.request("POST", TARGET, b'{"amount": 12}', headers)


def documented(port: int, rounds: int) -> None:
    """Count the three calls of a bare `HTTPConnection`."""
    conn = HTTPConnection("127.0.0.1", port)
    for _ in range(rounds):
        conn.request("GET", TARGET)
        conn.getresponse().read()
    conn.close()


def lease(port: int, rounds: int) -> None:
    """Count acquire and release, liveness probe included."""
    with ConnectionPool("127.0.0.1", port, registry=None) as pool:
        for _ in range(rounds):
            pool.release(pool.acquire())


def reference(port: int, rounds: int) -> None:
    """Count what everything else is compared with."""
    conn = http.client.HTTPConnection("127.0.0.1", port)
    for _ in range(rounds):
        conn.request("GET", TARGET)
        conn.getresponse().read()
    conn.close()


LOOPS: Final[Mapping[str, Callable[[int, int], None]]] = {
    "request": request,
    "request, with metrics": request_with_metrics,
    "request within a total": request_within_a_total,
    "POST": post,
    "HTTPConnection": documented,
    "acquire and release": lease,
    REFERENCE: reference,
}


# --- counting ---------------------------------------------------------------------------------------------------------


def _serve(listener: socket.socket) -> None:
    """Answer every request in the same way, one connection per thread, until the process is ended."""

    def answer(conn: socket.socket) -> None:
        with conn, contextlib.suppress(ConnectionError):
            while conn.recv(65536):
                conn.sendall(ANSWER)

    with ThreadPoolExecutor(32) as threads:
        while True:
            threads.submit(answer, listener.accept()[0])


@contextlib.contextmanager
def serving() -> Iterator[int]:
    """Serve in a process of its own; give the port."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        server = multiprocessing.get_context("spawn").Process(target=_serve, args=(listener,), daemon=True)
        server.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.kill()
            server.join()


def instructions(name: str, port: int, rounds: int) -> int:
    """Run a loop in a fresh interpreter under Valgrind and return how many instructions that took.

    Raises:
        RuntimeError: It failed; its text is Valgrind's.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out"]
        command += [sys.executable, "-m", "benchmarks.guard", "--loop", name, str(port), str(rounds)]
        environment = {**os.environ, "PYTHONHASHSEED": "0"}  # else the dicts are laid out anew each time
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=_LONGEST_RUN, check=False
        )
    collected = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or collected is None:
        raise RuntimeError(f"valgrind ended with {done.returncode}: {done.stderr[-2000:]}")
    return int(collected[1])


def per_round(port: int) -> dict[str, float]:
    """Return what one round of each loop costs, in instructions."""
    jobs = [(name, rounds) for name in LOOPS for rounds in (_FEW, _MANY)]
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        counts = dict(zip(jobs, threads.map(lambda job: instructions(job[0], port, job[1]), jobs), strict=True))
    return {name: (counts[name, _MANY] - counts[name, _FEW]) / (_MANY - _FEW) for name in LOOPS}


# --- comparing --------------------------------------------------------------------------------------------------------


def ratios(costs: Mapping[str, float]) -> dict[str, float]:
    """Return each loop's cost as a share of the reference's."""
    return {name: round(cost / costs[REFERENCE], 4) for name, cost in costs.items() if name != REFERENCE}


def verdicts(now: Mapping[str, float], stored: Mapping[str, float]) -> tuple[list[str], bool]:
    """Compare ratios with the stored ones.

    Returns:
        A line for each loop, and whether all are within the tolerance or better.
    """
    lines = []
    is_good = True
    for name, ratio in now.items():
        if name in WITHIN:
            base, most = WITHIN[name]
            change = ratio / now[base] - 1
            word = "ok" if change <= most else "COSTS MORE"
            is_good = is_good and change <= most
            lines.append(f"{name:24} {ratio:.4f}  {base} {now[base]:.4f}  {change:+.1%}  {word}")
            continue
        before = stored.get(name)
        if before is None:
            lines.append(f"{name:24} {ratio:.4f}  nothing is stored to compare it with")
            is_good = False
            continue
        change = ratio / before - 1
        word = "ok"
        if change > TOLERANCE:
            word, is_good = "COSTS MORE", False
        elif change < -TOLERANCE:
            word = "costs less: keep it with --store"
        lines.append(f"{name:24} {ratio:.4f}  stored {before:.4f}  {change:+.1%}  {word}")
    return lines, is_good


def main(arguments: list[str] | None = None) -> int:
    """Count, compare and say so.

    Returns:
        0 when nothing costs more than is stored, 1 when something does, 2 when it cannot be counted here.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--store", action="store_true", help="store what is counted now as what is expected")
    parser.add_argument("--loop", nargs=3, metavar=("NAME", "PORT", "ROUNDS"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.loop is not None:
        name, port, rounds = options.loop
        LOOPS[name](int(port), int(rounds))
        return 0
    if shutil.which("valgrind") is None:
        print("there is no valgrind to count with: install it (Debian, Ubuntu: the package valgrind)", file=sys.stderr)
        return 2
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    with serving() as port:
        costs = per_round(port)
    print(
        f"instructions per round, Python {version}: " + ", ".join(f"{name} {cost:,.0f}" for name, cost in costs.items())
    )
    now = ratios(costs)
    if options.store:
        stored[version] = now = {name: ratio for name, ratio in now.items() if name not in WITHIN}
        STORED.write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n")
        print(f"stored in {STORED.name}: {now}")
        return 0
    lines, is_good = verdicts(now, stored.get(version, {}))
    print("\n".join(lines))
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
