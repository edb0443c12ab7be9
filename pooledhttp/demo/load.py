"""The load: worker threads that call the API through one manager, and the ledgers of what they saw.

Its one job is to make calls and to write down, per origin, what came of each: how long it took, what error it ended in,
whether the answer was the one to its request.  Its rule: each call is counted once, under the ledger's lock, and what a
worker chooses follows from the seed.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final, Self

from .api import content_of
from .options import CALL_SECONDS

if TYPE_CHECKING:
    from pooledhttp.manager import PoolManager
    from pooledhttp.timeouts import Timeout

_PAUSE: Final = 0.002  # mean seconds that a worker does nothing between two calls


class Latencies:
    """Durations in buckets, each 1 % wider than the one below: exact enough, and bounded however long it runs."""

    _STEP = math.log(1.01)

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def observe(self, seconds: float) -> None:
        """Count one duration; what is shorter than a microsecond counts as one."""
        self._counts[math.ceil(math.log(max(seconds, 1e-6)) / self._STEP)] += 1

    def add(self, other: Latencies) -> None:
        """Add what another one counted."""
        self._counts.update(other._counts)

    def percentile(self, percent: float) -> float | None:
        """Return the duration, in seconds, that so many per cent do not exceed; ``None`` if there are none."""
        rank = math.ceil(self._counts.total() * percent / 100)
        for bucket in sorted(self._counts):
            rank -= self._counts[bucket]
            if rank <= 0:
                return math.exp(bucket * self._STEP)
        return None


class Ledger:
    """What the callers of one origin saw.

    Attributes:
        lock: Guards all the others, for the length of an addition.
        latencies: How long the calls took that succeeded.
        calls: How many calls ended.
        truncated: How many ended in IncompleteRead.
        failures: How many calls ended in any other error, by its name.
        foreign: How many answers were not those to their requests.
        example: The first failure's text, or that of the first foreign answer.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.latencies = Latencies()
        self.calls = self.truncated = self.foreign = 0
        self.failures: Counter[str] = Counter()
        self.example = ""

    def add(self, other: Ledger) -> None:
        """Add what another one holds."""
        with other.lock:
            self.latencies.add(other.latencies)
            self.calls += other.calls
            self.truncated += other.truncated
            self.foreign += other.foreign
            self.failures += other.failures
            self.example = self.example or other.example


def total_of(ledgers: Iterable[Ledger]) -> Ledger:
    """Return several ledgers as one."""
    total = Ledger()
    for ledger in ledgers:
        total.add(ledger)
    return total


class Load:
    """The worker threads; starts with ``with``, and ends with it when each has finished its call.

    Args:
        manager: What they call through.
        ledgers: Where they write what they saw, by origin.
        workers: How many there are.
        seed: Start of their random choices.

    Attributes:
        pause: Mean seconds between two calls of a worker.
        timeout: The limits of each call: a number is the total in seconds.
        has_keys: Whether a POST says that it may be delivered twice; without it a POST is never sent again.
    """

    # How often each kind of call is made, and how many bytes its answer has.
    _CALLS: Final = (("GET", 64, 40), ("GET", 1024, 30), ("GET", 8192, 10), ("GET", 32768, 5), ("POST", 200, 10),
                     ("STREAM", 131072, 5))  # fmt: skip

    def __init__(self, manager: PoolManager, ledgers: Mapping[str, Ledger], *, workers: int, seed: int) -> None:
        self.pause = _PAUSE
        self.timeout: Timeout | float = CALL_SECONDS
        self.has_keys = True
        self._manager = manager
        self._ledgers = ledgers
        self._origins = sorted(ledgers)
        self._end = threading.Event()
        self._threads = [
            threading.Thread(
                target=self._work,
                args=(number, random.Random(f"{seed}/{number}")),
                name=f"worker-{number}",
                daemon=True,
            )
            for number in range(workers)
        ]

    def __enter__(self) -> Self:
        """Start the threads."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Let each finish its call."""
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _work(self, number: int, choice: random.Random) -> None:
        weights = [weight for _, _, weight in self._CALLS]
        serial = 0
        while not self._end.is_set():
            serial += 1
            kind, size, _ = choice.choices(self._CALLS, weights)[0]
            self.call(choice.choice(self._origins), kind, f"w{number}-{serial}", size)
            self._end.wait(choice.expovariate(1 / self.pause))

    def call(self, origin: str, kind: str, token: str, size: int) -> None:
        """Make one call, and write down what came of it."""
        from pooledhttp.errors import HTTPException, IncompleteRead

        ledger = self._ledgers[origin]
        expected = content_of(token.encode(), size)
        started = time.monotonic()
        try:
            status, data = self._exchange(f"{origin}/items/{token}/{size}", kind, token, expected)
        except IncompleteRead:
            with ledger.lock:
                ledger.calls += 1
                ledger.truncated += 1
        except (OSError, HTTPException, RuntimeError) as fault:  # the last one: PoolClosed
            with ledger.lock:
                ledger.calls += 1
                ledger.failures[type(fault).__name__] += 1
                ledger.example = ledger.example or f"{kind} {origin}: {type(fault).__name__}: {fault}"
        else:
            seconds = time.monotonic() - started
            with ledger.lock:
                ledger.calls += 1
                ledger.latencies.observe(seconds)
                if status != 200 or data != expected:
                    ledger.foreign += 1
                    ledger.example = ledger.example or f"{kind} {origin}: {status}, {len(data)} bytes: {data[:60]!r}"

    def _exchange(self, url: str, kind: str, token: str, expected: bytes) -> tuple[int, bytes]:
        if kind == "STREAM":
            with self._manager.stream("GET", url, timeout=self.timeout) as streamed:
                return streamed.status, b"".join(streamed)
        if kind == "POST":
            headers = {"Idempotency-Key": token} if self.has_keys else {}
            response = self._manager.request("POST", url, expected, headers, timeout=self.timeout)
        else:
            response = self._manager.request("GET", url, timeout=self.timeout)
        return response.status, response.data
