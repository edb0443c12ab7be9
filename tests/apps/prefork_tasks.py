"""A celery application whose pool is made, and used, when it is loaded: before the worker forks its processes.

The worker sends itself its tasks as soon as it is ready.

Environment: ORIGIN is "host:port", AUTHORITY a PEM file, BROKER a folder, TASKS how many.
"""

from __future__ import annotations

import os
import ssl

from celery import Celery
from celery.signals import worker_ready

from pooledhttp import ConnectionPool

context = ssl.create_default_context(cafile=os.environ["AUTHORITY"])
pool = ConnectionPool(os.environ["ORIGIN"], scheme="https", ssl_context=context, timeout=10.0)
pool.request("GET", f"/loaded/{os.getpid()}")

folders = dict.fromkeys(("data_folder_in", "data_folder_out", "control_folder"), os.environ["BROKER"])
app = Celery("prefork", broker="filesystem://")
app.conf.update(
    broker_transport_options={**folders, "polling_interval": 0.05},
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
)


@app.task
def fetch() -> None:
    """Fetch; the target tells who did so, and how many connections that process had opened before."""
    assert pool.request("GET", f"/worker/{os.getpid()}/{pool.stats().opened}").data == b"hello"


@worker_ready.connect
def begin(**_: object) -> None:
    """Send the tasks, after one more request of the parent's."""
    pool.request("GET", f"/ready/{os.getpid()}")
    for _number in range(int(os.environ["TASKS"])):
        fetch.delay()
