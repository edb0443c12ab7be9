"""A WSGI application whose pool is made, and used, when it is loaded: with ``--preload`` before the workers are forked.

Environment: ORIGIN is "host:port", AUTHORITY a PEM file.
"""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pooledhttp import ConnectionPool

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

context = ssl.create_default_context(cafile=os.environ["AUTHORITY"])
pool = ConnectionPool(os.environ["ORIGIN"], scheme="https", ssl_context=context, timeout=10.0)
pool.request("GET", f"/loaded/{os.getpid()}")


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Fetch, and tell who did so, with what answer, and how many connections this process has opened by now."""
    answer = pool.request("GET", f"/worker/{os.getpid()}").data.decode()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps([os.getpid(), answer, pool.stats().opened]).encode()]
