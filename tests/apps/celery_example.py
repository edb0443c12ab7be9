"""The example of a celery service, with folders for a broker, and load that it makes itself when it is ready.

Environment: BROKER is a folder, CHAINS how many tasks are under way at a time, each of which sends the next one until
there is a file STOP; and what the example takes.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from celery.signals import worker_ready

FOLDER = os.environ["BROKER"]
STOP = Path(os.environ["STOP"])
os.environ["BROKER"] = "filesystem://"
example = Path(__file__).resolve().parents[2] / "examples" / "celery" / "tasks.py"
spec = importlib.util.spec_from_file_location("tasks", example)
assert spec is not None
assert spec.loader is not None
tasks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tasks)

app = tasks.app
folders = dict.fromkeys(("data_folder_in", "data_folder_out", "control_folder"), FOLDER)
app.conf.update(
    broker_transport_options={**folders, "polling_interval": 0.05},
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
)


@app.task
def chain() -> None:
    """Do the example's task, with this process in its path, and send the next one."""
    tasks.fetch(f"/{os.getpid()}")
    if not STOP.exists():
        chain.delay()


@worker_ready.connect
def begin(**_: object) -> None:
    """Begin the load."""
    for _number in range(int(os.environ["CHAINS"])):
        chain.delay()
