"""Waiting, in tests, for something that no event tells."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

BOUND = 30.0


def wait_until(is_so: Callable[[], bool], *, pause: float = 0.001) -> None:
    """Ask every `pause` seconds until it is so; after `BOUND` seconds that is a failure."""
    never = threading.Event()
    end = time.monotonic() + BOUND
    while not is_so():
        assert time.monotonic() < end, f"it did not become so within {BOUND:g} s"
        never.wait(pause)
