"""Takes the time: cases in turns, round by round, CPU and wall, all in one process.

Its rule: what is compared is measured in the same run, a few hundredths of a second apart, so that a machine which is
busy with something else for a moment is so for all of them.  The garbage collector stays as it is.  The first round,
which also finds out how many repetitions fill a round, is not counted.
"""

from __future__ import annotations

import contextlib
import os
import queue
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

BOUND: Final = 120.0  # seconds; the longest that one round of one case may take

Case = Callable[[int], object]
"""Does its work as many times as it is told."""


@dataclass(frozen=True)
class Round:
    """One case's part in a round.

    Attributes:
        cpu: Seconds of CPU time of the whole process, each repetition.
        wall: Seconds that passed, each repetition.
    """

    cpu: float
    wall: float


@dataclass(kw_only=True)
class Measured:
    """What is known of the cases afterwards.

    Attributes:
        rounds: By case, those that counted.
        failed: By case, why it has none.
    """

    rounds: dict[str, list[Round]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def interleave(cases: Mapping[str, Case], *, rounds: int, seconds: float) -> Measured:
    """Measure cases in turns.

    Args:
        cases: What to measure, by name.
        rounds: How many rounds count.
        seconds: How long each case shall work in a round, about; it works at least once.

    Returns:
        The rounds of each case, or why it broke off.  A case that fails does not keep the others from being measured.
    """
    measured = Measured()
    counts: dict[str, int] = {}
    for name, case in cases.items():
        try:
            counts[name] = _warm_up(case, seconds)
        except Exception as fault:  # noqa: BLE001  # whatever another project's client raises is its result
            measured.failed[name] = explain(fault)
    for number in range(rounds):
        # Every other time backwards: nobody always follows the same neighbour.
        for name in list(counts) if number % 2 == 0 else list(reversed(counts)):
            try:
                taken = timed(cases[name], counts[name])
            except Exception as fault:  # noqa: BLE001  # as above
                measured.failed[name] = explain(fault)
                del counts[name]
                measured.rounds.pop(name, None)
            else:
                measured.rounds.setdefault(name, []).append(taken)
    return measured


def explain(fault: BaseException) -> str:
    """Return what went wrong, in one line of bounded length."""
    text = " ".join(str(fault).split())
    return f"{type(fault).__name__}: {text}"[:200] if text else type(fault).__name__


def timed(case: Case, count: int) -> Round:
    """Run a case so many times, and return its share each time."""
    cpu, wall = time.process_time(), time.perf_counter()
    case(count)
    return Round((time.process_time() - cpu) / count, (time.perf_counter() - wall) / count)


def _warm_up(case: Case, seconds: float) -> int:
    """Return how many repetitions take so long, having run it at least that long if it is quick."""
    case(1)
    count = 1
    while True:
        taken = timed(case, count).wall * count
        if taken >= seconds / 2:
            return max(1, round(count * seconds / taken))
        count *= 4 if taken < seconds / 8 else 2


def medians(rounds: Sequence[Round]) -> Round:
    """Return the median CPU time and the median wall time; they may come from different rounds."""
    return Round(statistics.median(taken.cpu for taken in rounds), statistics.median(taken.wall for taken in rounds))


def ratio(value: float, base: float) -> float | None:
    """Return how many times the base a value is; ``None`` where the clock was too coarse to see the base."""
    return value / base if base > 0 else None


class Crew:
    """Threads that work at a case together, started once.

    Args:
        size: How many threads.
        prepare: Called in each thread before its first work; returns what it repeats, and what ends it.
    """

    def __init__(self, size: int, prepare: Callable[[], tuple[Case, Callable[[], None]]]) -> None:
        self._prepare = prepare
        self._tasks: list[queue.SimpleQueue[int]] = [queue.SimpleQueue() for _ in range(size)]
        self._ends: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        # Daemons: the worker's end must not wait for a client that hangs.
        self._threads = [threading.Thread(target=self._work, args=(task,), daemon=True) for task in self._tasks]
        for thread in self._threads:
            thread.start()
        self._await()

    def run(self, count: int) -> None:
        """Share `count` repetitions among the threads, and return when all are done.

        Raises:
            RuntimeError: A thread failed; the first failure is its cause.
            TimeoutError: It took longer than `BOUND`.
        """
        share, rest = divmod(count, len(self._tasks))
        for number, task in enumerate(self._tasks):
            task.put(share + (number < rest))
        self._await()

    def close(self) -> None:
        """End the threads."""
        for task in self._tasks:
            task.put(-1)
        for thread in self._threads:
            thread.join(5.0)

    def _work(self, task: queue.SimpleQueue[int]) -> None:
        try:
            case, end = self._prepare()
        except Exception as fault:  # noqa: BLE001  # handed to whoever waits
            self._ends.put(fault)
            return
        self._ends.put(None)
        while (count := task.get()) >= 0:
            try:
                case(count)
            except Exception as fault:  # noqa: BLE001  # as above
                self._ends.put(fault)
            else:
                self._ends.put(None)
        end()

    def _await(self) -> None:
        failed: BaseException | None = None
        until = time.monotonic() + BOUND
        for _ in self._tasks:
            try:
                failed = self._ends.get(timeout=max(0.0, until - time.monotonic())) or failed
            except queue.Empty:
                raise TimeoutError(f"{len(self._tasks)} threads were not done within {BOUND:g} s") from None
        if failed is not None:
            raise RuntimeError(explain(failed)) from failed


@dataclass(frozen=True)
class Cores:
    """Which core belongs to whom; ``None``: any.

    Attributes:
        client: For clients that work in one thread.
        server: For the servers.
    """

    client: int | None
    server: int | None


def cores() -> Cores:
    """Return the cores to pin to: none where this platform cannot pin, or there is only one."""
    if not hasattr(os, "sched_setaffinity"):
        return Cores(None, None)
    ours = sorted(os.sched_getaffinity(0))
    return Cores(ours[0], ours[-1]) if len(ours) > 1 else Cores(None, None)


@contextlib.contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Keep this thread, and what it starts, on one core for a ``with`` block; ``None``: leave it as it is."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
