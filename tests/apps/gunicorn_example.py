"""The configuration of the example of a gunicorn service, in which nothing but its hooks writes anything down.

Environment: HOOKS is "yes" or "no", and what the example takes.
"""

from __future__ import annotations

import os
import runpy
from pathlib import Path

example = runpy.run_path(str(Path(__file__).resolve().parents[2] / "examples" / "gunicorn" / "gunicorn.conf.py"))
globals().update({name: value for name, value in example.items() if not name.startswith("_")})
HAS_HOOKS = os.environ["HOOKS"] == "yes"


def post_fork(_server: object, _worker: object) -> None:
    """Have the thread of the metrics look once, when it starts, and then only when it is asked to."""
    from pooledhttp.metrics import flusher

    flusher.INTERVAL = 3600.0  # type: ignore[misc]  # for this process


def worker_exit(server: object, worker: object) -> None:
    """End without `atexit`, behind the example's hook."""
    if HAS_HOOKS:
        example["worker_exit"](server, worker)
    os._exit(0)


def child_exit(server: object, worker: object) -> None:
    """Run the example's hook."""
    if HAS_HOOKS:
        example["child_exit"](server, worker)
