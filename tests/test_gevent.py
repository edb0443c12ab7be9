"""Greenlets instead of threads: programs patched by gevent share a pool, and are stopped anywhere.

Each program runs in an interpreter of its own (tests/apps/greenlets.py), since patching cannot be taken back; the
scripted server is here, and real.
"""

from __future__ import annotations

import ssl
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

from pooledhttp.testing import Peer, ResourceAudit, Respond, ServerFactory

pytestmark = pytest.mark.unmeasured

BOUND = 60.0
ROOT = Path(__file__).parent.parent
PROGRAMS = [
    "share", "wait", "order", "hold all", "dial late", "forget", "look at dead", "timeout in request",
    "timeout in stream", "kill", "stop everywhere", "total", "fork",
]  # fmt: skip
# Patched after pooledhttp was imported: not what gevent advises, and it happens.
LATE = ["share", "wait", "hold all", "dial late", "forget", "stop everywhere", "total"]


def answer(peer: Peer) -> None:
    """Answer as long as the client asks, but end the connection behind the answer for /last."""
    while True:
        request = peer.read_request()
        peer.send(Respond(body=b"hello").encode(request.method))
        if request.target == "/last":
            return


@pytest.fixture(name="authority", scope="module")
def make_authority() -> trustme.CA:
    return trustme.CA()


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("program", "order"), [*((name, "first") for name in PROGRAMS), *((name, "late") for name in LATE)]
)
def test_program_of_greenlets_leaves_its_pool_whole(
    program: str,
    scheme: str,
    order: str,
    authority: trustme.CA,
    scripted_server: ServerFactory,
    tmp_path: Path,
    audit: ResourceAudit,
) -> None:
    context = None
    authority_file = tmp_path / "authority.pem"
    if scheme == "https":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
        authority.cert_pem.write_to_path(str(authority_file))
    server = scripted_server(default=answer, ssl_context=context)
    command = [sys.executable, "-W", "error", str(ROOT / "tests" / "apps" / "greenlets.py"), program, str(server.port),
               str(authority_file) if context else "none", order]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, timeout=BOUND, cwd=ROOT, check=False,
                           env={"PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"})  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("whole")
