"""Programs of several processes with one `PROMETHEUS_MULTIPROC_DIR`, for tests.

They run by themselves, since prometheus_client decides at its import whether there are many processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from pooledhttp.metrics import multiprocess_registry
from tests.waits import BOUND

ROOT = Path(__file__).resolve().parent.parent


def run(program: str, folder: Path, *arguments: object) -> str:
    """Run a program whose processes share a folder; what it prints comes back, and it must print no complaint."""
    prelude = f"""
        import logging, os, signal, sys, threading
        import prometheus_client, pooledhttp
        from pooledhttp import ConnectionPool, metrics
        from pooledhttp.metrics import flush, multiprocess_registry

        def in_children(*works):
            children = []
            for work in works:
                child = os.fork()
                if not child:
                    signal.alarm({BOUND:.0f})
                    try:
                        work()
                    except BaseException as fault:
                        os.write(2, repr(fault).encode())
                    os._exit(0)
                children.append(child)
            for child in children:
                os.waitpid(child, 0)

        def sample(name, **labels):
            return multiprocess_registry().get_sample_value(name, labels)
    """
    return run_bare(textwrap.dedent(prelude) + textwrap.dedent(program), folder, *arguments, options=("-W", "error"))


def run_bare(program: str, folder: Path, *arguments: object, options: Sequence[str] = ()) -> str:
    """Run a program that imports everything itself, as one must that begins with gevent's patches."""
    child = subprocess.run(
        [sys.executable, *options, "-c", textwrap.dedent(program), *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * BOUND,
        check=False,
    )
    assert (child.returncode, child.stderr) == (0, ""), (child.returncode, child.stderr)
    return child.stdout


def scraped(folder: Path) -> Callable[..., float | None]:
    """Return what looks up a sample of all processes, as they are now."""
    registry = multiprocess_registry(str(folder))
    return lambda name, **labels: registry.get_sample_value(name, labels)
