"""A worker process for the live proof: pools in every kind of trouble, counted from outside.

It prints the port of its /metrics.  On the first line of standard input it goes to work; on the line "stop" it ends
that, and says as JSON what it has done; at the end of its input it ends itself.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import sys
import threading
from collections import Counter

from prometheus_client import REGISTRY, start_http_server

from pooledhttp import ConnectionPool, HTTPException, Retry, Timeout
from pooledhttp.testing import Peer, Respond, ScriptedServer

PATIENT = Timeout(acquire=10, connect=10, read=10, write=10)


def healthy(peer: Peer) -> None:
    """Answer, now and then with an error, a redirect or a long body."""
    choice = random.Random(peer.index)
    while True:
        request = peer.read_request()
        status = choice.choices((200, 304, 404, 500, 503), (90, 3, 3, 2, 2))[0]
        body = b"x" * (200_000 if request.target == "/long" else 200)
        peer.send(Respond(status, body=b"" if status == 304 else body).encode())


def slow(peer: Peer) -> None:
    """Take 50 ms for each answer."""
    pause = threading.Event()
    while True:
        peer.read_request()
        pause.wait(0.05)
        peer.send(Respond(body=b"slow").encode())


def stale(peer: Peer) -> None:
    """Hang up on the third request of each connection."""
    for _ in range(2):
        peer.read_request()
        peer.send(Respond(body=b"ok").encode())
    peer.read_request()


class Truth:
    """What was done, by pool: calls by outcome, as callers saw it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[str, Counter[str]] = {}
        self._leaks = 0

    def note(self, pool: str, outcome: str) -> None:
        with self._lock:
            self._calls.setdefault(pool, Counter())[outcome] += 1

    def leak(self) -> None:
        with self._lock:
            self._leaks += 1

    def dump(self) -> str:
        with self._lock:
            return json.dumps({"calls": self._calls, "leaks": self._leaks})


def main() -> None:
    end = threading.Event()
    truth = Truth()
    with contextlib.ExitStack() as stack:
        servers = {
            name: stack.enter_context(ScriptedServer(default=play, timeout=60.0))
            for name, play in (
                ("healthy", healthy),
                ("slow", slow),
                ("stale", stale),
                ("leaky", healthy),
                ("hung", healthy),
            )
        }
        nobody = stack.enter_context(socket.socket())
        nobody.bind(("127.0.0.1", 0))  # and does not listen

        def pool_to(name: str, port: int, **options: object) -> ConnectionPool:
            made = ConnectionPool("127.0.0.1", port, name=name, **{"timeout": PATIENT, **options})  # type: ignore[arg-type]
            return stack.enter_context(made)

        pools = {
            "healthy": pool_to("healthy", servers["healthy"].port, maxsize=8, retry=Retry(attempts=2, backoff=0)),
            "slow": pool_to("slow", servers["slow"].port, maxsize=2, timeout=PATIENT.replace(acquire=0.2)),
            "stale": pool_to("stale", servers["stale"].port, maxsize=4),
            "refused": pool_to("refused", nobody.getsockname()[1], maxsize=4),
            "hung": pool_to("hung", servers["hung"].port, maxsize=2, timeout=PATIENT.replace(acquire=0.3)),
            "leaky": pool_to("leaky", servers["leaky"].port, maxsize=50, leak_after=1000),
        }

        def call(name: str, method: str) -> None:
            try:
                response = pools[name].request(method, "/", b"x" if method == "POST" else None)
            except TimeoutError:
                truth.note(name, "timeout")
            except (OSError, HTTPException):
                truth.note(name, "error")
            else:
                truth.note(name, f"{response.status // 100}xx")

        def drive(name: str, every: float, number: int) -> None:
            choice = random.Random(number)
            while not end.wait(every):
                if name == "leaky":
                    pools[name].acquire()  # and never give it back
                    truth.leak()
                elif name == "healthy" and choice.random() < 0.05:
                    with pools[name].connection() as conn:  # gives it back unread
                        conn.request("GET", "/long" if choice.random() < 0.5 else "/")
                        conn.getresponse()
                else:
                    call(name, "POST" if choice.random() < 0.3 else "GET")

        plan = {"healthy": (4, 0.02), "slow": (14, 0.001), "stale": (2, 0.02), "refused": (1, 0.1), "leaky": (1, 0.5),
                "hung": (2, 0.01)}  # fmt: skip
        threads = [
            threading.Thread(target=drive, args=(name, every, number), daemon=True)
            for name, (count, every) in plan.items()
            for number in range(count)
        ]
        kept = [("leaky", pools["leaky"].acquire())]  # the oldest lease
        kept += [("hung", pools["hung"].acquire()) for _ in range(2)]  # all there are, and nobody gets one
        server, serving = start_http_server(0, addr="127.0.0.1", registry=REGISTRY)
        print(server.server_port, flush=True)
        sys.stdin.readline()
        for thread in threads:
            thread.start()
        for line in sys.stdin:
            assert line == "stop\n"
            end.set()
            for thread in threads:
                thread.join(30)
            print(truth.dump(), flush=True)
        end.set()
        for name, conn in kept:
            pools[name].release(conn)
        server.shutdown()
        server.server_close()
        serving.join()


if __name__ == "__main__":
    main()
