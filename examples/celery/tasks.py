"""Tasks that ask another service, over a pool for each process of the worker."""

import os
import tempfile

# Before prometheus_client is imported; a folder of this start's own is empty.
if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="metrics-")

from celery import Celery
from celery.signals import worker_process_shutdown, worker_ready
from prometheus_client import start_http_server

from pooledhttp import ConnectionPool
from pooledhttp.metrics import flush, multiprocess_registry

app = Celery("tasks", broker=os.environ.get("BROKER", "amqp://"))

# Made once, before the fork; each process begins with an empty pool of its own.
upstream = ConnectionPool(os.environ.get("UPSTREAM", "127.0.0.1:8081"), name="upstream", maxsize=4, timeout=10.0)


@app.task
def fetch(path):
    """Ask the upstream; return its status."""
    return upstream.request("GET", path).status


@worker_ready.connect
def serve_metrics(**_):
    """Serve /metrics for all processes of this worker, from their parent."""
    host, _, port = os.environ.get("METRICS", "127.0.0.1:9100").rpartition(":")
    server, _ = start_http_server(int(port), host, registry=multiprocess_registry())
    os.register_at_fork(after_in_child=server.server_close)  # a child that outlives this process would keep the port


@worker_process_shutdown.connect
def write_down(**_):
    """Write down what this process has counted since the last second; it would do so itself, unless it is cut short."""
    flush()
