"""A service that asks another one, over a pool for each worker."""

import os

from prometheus_client import make_wsgi_app

from pooledhttp import ConnectionPool, HTTPException
from pooledhttp.metrics import multiprocess_registry

# Made once, before the fork; each worker begins with an empty pool of its own.
upstream = ConnectionPool(os.environ.get("UPSTREAM", "127.0.0.1:8081"), name="upstream", maxsize=4, timeout=10.0)
metrics = make_wsgi_app(multiprocess_registry())


def app(environ, start_response):
    """Answer /metrics for all workers, and everything else with what the upstream says."""
    if environ["PATH_INFO"] == "/metrics":
        return metrics(environ, start_response)
    headers = [("Content-Type", "text/plain"), ("X-Worker", str(os.getpid()))]
    try:
        answer = upstream.request("GET", environ["PATH_INFO"])
    except (OSError, HTTPException) as fault:
        start_response("502 Bad Gateway", headers)
        return [f"{fault}\n".encode()]
    start_response(f"{answer.status} {answer.reason}", headers)
    return [answer.data]
