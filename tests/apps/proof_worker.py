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
from collections.abc import Callable
from typing import TypeAlias

from prometheus_client import REGISTRY, start_http_server

from pooledhttp import ConnectionPool, HTTPException, Retry, Timeout
from pooledhttp.testing import Peer, Respond, ScriptedServer

SLOW = 0.05
PATIENT = Timeout(acquire=10, connect=10, read=10, write=10)


class Truth:
    """What was done, by pool: calls as callers saw them, and what the servers saw of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, dict[str, Counter[str]]] = {}

    def note(self, pool: str, kind: str, what: str = "") -> None:
        with self._lock:
            self._counts.setdefault(pool, {}).setdefault(kind, Counter())[what] += 1

    def dump(self) -> str:
        with self._lock:
            return json.dumps(self._counts)


Play: TypeAlias = Callable[[Peer], None]


def plays(truth: Truth) -> dict[str, Play]:
    """Return what the servers do, by pool; they count before they answer, so callers never know more."""

    def healthy(peer: Peer) -> None:
        """Answer, now and then with an error, a redirect or a long body."""
        choice = random.Random(peer.index)
        truth.note("healthy", "connections")
        while True:
            request = peer.read_request()
            truth.note("healthy", "requests")
            status = choice.choices((200, 304, 404, 500, 503), (90, 3, 3, 2, 2))[0]
            status = 503 if request.target == "/down" else status  # the second time, too
            body = b"x" * (200_000 if request.target == "/long" else 200)
            peer.send(Respond(status, body=b"" if status == 304 else body).encode())

    def slow(peer: Peer) -> None:
        """Take 50 ms for each answer."""
        pause = threading.Event()
        truth.note("slow", "connections")
        while True:
            peer.read_request()
            truth.note("slow", "requests")
            pause.wait(SLOW)
            peer.send(Respond(body=b"slow").encode())

    def stale(peer: Peer) -> None:
        """Hang up on the third request of each connection."""
        truth.note("stale", "connections")
        for _ in range(2):
            peer.read_request()
            truth.note("stale", "requests")
            peer.send(Respond(body=b"ok").encode())
        peer.read_request()
        truth.note("stale", "requests")
        truth.note("stale", "hung up")

    def silent(peer: Peer) -> None:
        """Hear nothing."""
        peer.read_to_end()

    return {"healthy": healthy, "slow": slow, "stale": stale, "leaky": silent, "hung": silent}


def main() -> None:
    end = threading.Event()
    truth = Truth()
    with contextlib.ExitStack() as stack:
        servers = {
            name: stack.enter_context(ScriptedServer(default=play, timeout=60.0)) for name, play in plays(truth).items()
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

        def call(name: str, method: str, target: str = "/") -> None:
            try:
                response = pools[name].request(method, target, b"x" if method == "POST" else None)
            except TimeoutError:
                truth.note(name, "calls", "timeout")
            except (OSError, HTTPException):
                truth.note(name, "calls", "error")
            else:
                truth.note(name, "calls", f"{response.status // 100}xx")
                if (method, response.status) == ("GET", 503):
                    truth.note(name, "in vain")  # though it was tried again

        def drive(name: str, every: float, number: int) -> None:
            choice = random.Random(number)
            while not end.wait(every):
                if name == "leaky":
                    pools[name].acquire()  # and never give it back
                    truth.note(name, "leaks")
                elif name == "healthy" and choice.random() < 0.05:
                    with pools[name].connection() as conn:  # gives it back unread
                        target = "/long" if choice.random() < 0.5 else "/"  # more than may be drained, or less
                        conn.request("GET", target)
                        if conn.getresponse().status != 304:  # which has no body
                            truth.note(name, "unread", "closed" if target == "/long" else "drained")
                    truth.note(name, "lent")
                elif name == "healthy" and choice.random() < 0.01:
                    call(name, "GET", "/down")
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
