"""The thread that looks at the pools of a process once in an interval, or when somebody asks it to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

# Seconds between two looks at the pools; less than any interval at which Prometheus scrapes.
INTERVAL: Final = 1.0


@dataclass(eq=False, slots=True)
class _Request:
    """Somebody waits for the next look."""

    is_over: threading.Event = field(default_factory=threading.Event)
    went_well: bool | None = None  # None: there was no look


class Flusher:
    """The thread, and whoever waits for its next look.

    Args:
        look: Does it; returns whether it went well, and raises nothing.

    Raises:
        RuntimeError: There can be no new thread, at the end of the interpreter for one.
    """

    def __init__(self, look: Callable[[], bool]) -> None:
        self._look = look
        self._wake = threading.Event()
        self._is_ending = False
        self._has_ended = False
        self._requests: list[_Request] = []  # served in order, by a look that began when they were there
        self._thread = threading.Thread(target=self._run, name="pooledhttp-metrics", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return not self._has_ended and self._thread.is_alive()

    def look_now(self, seconds: float) -> bool | None:
        """Wait for a look that begins after this call.

        Args:
            seconds: How long at most.

        Returns:
            Whether it went well, within that time; ``None`` if the thread has ended without it.
        """
        request = _Request()
        self._requests.append(request)
        # The thread does it the other way round: it says that it has ended, and then serves who is there.
        if self._has_ended:
            return None
        self._wake.set()
        return request.went_well if request.is_over.wait(seconds) else False

    def end(self, seconds: float) -> None:
        """Have it end after one more look, and wait for that so many seconds at most."""
        self._is_ending = True
        self._wake.set()
        if self._thread is not threading.current_thread():  # whatever a look calls may fork
            self._thread.join(seconds)

    def _run(self) -> None:
        try:
            is_ending = False
            while not is_ending:
                self._wake.clear()
                is_ending, asked = self._is_ending, len(self._requests)
                self._answer(asked, went_well=self._look())
                if not is_ending:
                    self._wake.wait(INTERVAL)
        finally:
            self._has_ended = True
            self._answer(len(self._requests), went_well=None)

    def _answer(self, asked: int, *, went_well: bool | None) -> None:
        for request in self._requests[:asked]:
            request.went_well = went_well
            request.is_over.set()
        del self._requests[:asked]
