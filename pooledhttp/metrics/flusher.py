"""The thread that looks at the pools of a process once in an interval, or when somebody asks it to."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

# Seconds between two looks at the pools; less than any interval at which Prometheus scrapes.
INTERVAL: Final = 1.0


@dataclass(eq=False, slots=True)
class Request:
    """Somebody waits for the next look."""

    _is_over: threading.Event = field(default_factory=threading.Event)
    _went_well: bool | None = None

    def answer(self, *, went_well: bool | None) -> None:
        """Say how the look went; ``None`` if there was none."""
        self._went_well = went_well
        self._is_over.set()

    def wait(self, seconds: float) -> bool | None:
        """Return whether the look went well, within so many seconds; ``None`` if the thread has ended without it."""
        return self._went_well if self._is_over.wait(min(seconds, threading.TIMEOUT_MAX)) else False


class Flusher:
    """The thread, and whoever waits for its next look.

    It shares no lock with its callers.  Any of them may be interrupted anywhere: by a signal's handler, which raises or
    comes here again, by a finalizer that does, by the end of its greenlet.

    Args:
        look: Does it; returns whether it went well, and raises nothing.
        goes_on: Tells after a look whether this thread is to do another one.
    """

    def __init__(self, look: Callable[[], bool], goes_on: Callable[[Flusher], bool]) -> None:
        self._look = look
        self._goes_on = goes_on
        # Its put() may interrupt itself.  Looked up late, for gevent may have put its own in this place.
        self._requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._has_started = False
        self._is_ending = False
        self._has_ended = False
        self._thread = threading.Thread(target=self._run, name="pooledhttp-metrics", daemon=True)

    @property
    def is_running(self) -> bool:
        """Whether it looks, and was not told to end."""
        return self._has_started and not self._is_ending and not self._has_ended

    def start(self) -> None:
        """Begin with a look.

        Raises:
            RuntimeError: There can be no new thread, at the end of the interpreter for one.
        """
        try:
            self._has_started = True
            self._thread.start()
        except BaseException:
            # Interrupted, there may be a thread or none.  Nobody counts on it, and it ends as soon as it begins.
            self._is_ending = True
            self._leave()
            raise

    def ask(self) -> Request:
        """Ask for a look that begins after this call, or for the first one of a thread that is not started yet."""
        request = Request()
        self._requests.put(request)
        # The thread does it the other way round: it says that it ends, and then answers who is there.
        if self._is_ending or self._has_ended:
            request.answer(went_well=None)
        return request

    def end(self, seconds: float) -> None:
        """Have it end after the look that is under way, and wait for that so many seconds at most."""
        self._is_ending = True
        self._requests.put(Request())  # wakes it
        if self._thread is not threading.current_thread():  # whatever a look calls may fork
            with contextlib.suppress(RuntimeError):  # it was never started
                self._thread.join(seconds)

    def _run(self) -> None:
        asked: list[Request] = []
        try:
            while not self._is_ending:
                asked += self._waiting()
                went_well = self._look()
                for request in asked:
                    request.answer(went_well=went_well)
                asked = []
                if self._is_over():
                    break
                with contextlib.suppress(queue.Empty):
                    asked.append(self._requests.get(timeout=INTERVAL))
        finally:
            self._leave(asked)

    def _is_over(self) -> bool:
        if self._goes_on(self):
            return False
        # It is asked again when everybody can see that this thread has ended: who has decided before that more looks
        # are wanted, and saw it run, is heard.
        self._has_ended = True
        self._has_ended = not self._goes_on(self)
        return self._has_ended

    def _waiting(self) -> list[Request]:
        requests: list[Request] = []
        with contextlib.suppress(queue.Empty):
            while True:
                requests.append(self._requests.get_nowait())
        return requests

    def _leave(self, asked: Iterable[Request] = ()) -> None:
        self._has_ended = True
        for request in [*asked, *self._waiting()]:
            request.answer(went_well=None)
