"""Four workers of an application that is loaded before the fork, and one /metrics for all of them."""

import os
import tempfile

# Before the application, and with it prometheus_client, is imported; a folder of this start's own is empty.
if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="metrics-")

bind = os.environ.get("BIND", "127.0.0.1:8000")
workers = 4
threads = 4
preload_app = True


def worker_exit(server, worker):
    """Write down what the worker has counted since the last second, however it ends behind this; runs in the worker."""
    from pooledhttp.metrics import flush

    flush()


def child_exit(server, worker):
    """Take the worker out of the gauges, however it ended; runs in the master."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(worker.pid)
