"""Several processes, as they are scraped: the registry that shows them all, and what stands in one that cannot.

In its gauges there is no process that is dead.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import struct
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, values
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from pooledhttp import log

from .collector import described

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client.core import Metric

# The gauges that end with their process; the counters of a dead one go on counting.
_LIVE_FILE: Final = re.compile(r"gauge_live[a-z]*_(\d+)\.db")
# A file that is taken away is gone between its name and its content: that spoils one scrape, and hardly the next.
_ATTEMPTS: Final = 5


class _Everybody(Collector):
    """Shows what all processes have written, but no gauge of one that is gone, and takes those files away.

    Args:
        folder: Where the files are.

    Raises:
        ValueError: There is no such folder.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder).absolute()
        # It looks for the folder, and adds the numbers of its files up.
        self._merge: Callable[..., Iterable[Metric]] = MultiProcessCollector(None, folder).merge  # type: ignore[no-untyped-call]

    def describe(self) -> list[Metric]:
        """Return nothing: what there is, only the files know."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Return the families of all processes.

        Raises:
            OSError, struct.error, RuntimeError: The files cannot be read; the last is prometheus_client's word for one
                that is damaged.
        """
        for _ in range(_ATTEMPTS - 1):
            with contextlib.suppress(OSError, struct.error, RuntimeError):
                return self._merged()
        return self._merged()

    def _merged(self) -> list[Metric]:
        paths = list(self._folder.glob("*.db"))
        dead = _left_by_the_dead(paths)
        for path in dead:
            with contextlib.suppress(OSError):  # another scrape was faster, or it is not ours to take away
                path.unlink()
        # A process that begins makes an empty file, and writes into it a moment later: there is nothing in it yet.
        files = [str(path) for path in paths if path not in dead and path.stat().st_size]
        return list(self._merge(files, accumulate=True))


def _left_by_the_dead(paths: Iterable[Path]) -> set[Path]:
    """Return the files that have gauges of processes which are gone."""
    if not _are_processes_numbers():
        return set()
    found = ((path, _LIVE_FILE.fullmatch(path.name)) for path in paths)
    processes = {path: int(match[1]) for path, match in found if match is not None}
    living = {process for process in set(processes.values()) if _is_alive(process)}
    return {path for path, process in processes.items() if process not in living}


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):  # no process has a number like the latter
        return False
    except OSError:  # it is somebody else's, and there
        pass
    # One that was killed keeps its number until its parent asks after it; Linux tells.  Its name, in parentheses, may
    # have some of its own.
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[0] not in {b"Z", b"X"}
    return True


def _are_processes_numbers() -> bool:
    """Tell whether prometheus_client calls a process by its number; it can be told to do otherwise.

    It does not say, so this looks inside; one with another inside is taken to do as it does by default.
    """
    check = getattr(values.ValueClass, "_MmapedValue__check_for_pid_change", None)
    cells = inspect.getclosurevars(check).nonlocals if inspect.isfunction(check) else {}
    return cells.get("process_identifier", os.getpid) is os.getpid


def multiprocess_registry(folder: str | None = None) -> CollectorRegistry:
    """Return a registry that shows the metrics of all processes, the program's own among them; see `metrics`."""
    registry = CollectorRegistry()
    registry.register(_Everybody(os.environ["PROMETHEUS_MULTIPROC_DIR"] if folder is None else folder))
    return registry


class Elsewhere(Collector):
    """Stands in a registry for what is in the files: keeps the names taken, and says so where it alone is scraped.

    Args:
        registry: Where it stands.
    """

    def __init__(self, registry: object) -> None:
        self._registry = weakref.ref(registry)
        self._has_said = False

    def describe(self) -> list[Metric]:
        """Return all families without samples."""
        return described()

    def collect(self) -> list[Metric]:
        """Return nothing: the files of all processes are read by others."""
        if not self._has_said and not self._is_beside_everybody():
            self._has_said = True
            log.warning(
                "PROMETHEUS_MULTIPROC_DIR is set, and a registry was scraped that shows one process: no pool is shown "
                "there; scrape pooledhttp.metrics.multiprocess_registry()"
            )
        return []

    def _is_beside_everybody(self) -> bool:
        # There is no public way to ask for the others.
        others = list(getattr(self._registry(), "_collector_to_names", ()))
        return any(isinstance(other, _Everybody | MultiProcessCollector) for other in others)
