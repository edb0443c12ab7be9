"""A private nginx for tests: on a free loopback port, its files in a scratch folder, reloaded and restarted at will.

`Nginx` is started as our own child, with ``daemon off``, so that its end can be waited for, and in a process group of
its own, so that nothing of it can outlive the test.  Reload and stop go the way an operator goes: ``nginx -s``.

The port lies outside the range from which the kernel gives client sockets their ports: while nginx is down, a socket
that connects to a port of that range from the very same port would be connected to itself, and hold the port.

On a laptop without nginx the tests skip, and say so.  Where POOLEDHTTP_REQUIRE_NGINX is set, as in CI, they fail.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import pytest

if TYPE_CHECKING:
    from trustme import LeafCert

REQUIRED = "POOLEDHTTP_REQUIRE_NGINX"
BOUND = 20.0
HELLO = b"hello from nginx"

# Modules that keep temporary files; a build without one does not know its directive.
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")

_CONFIGURATION = """\
{user}
worker_processes 2;
{worker_shutdown_timeout}
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 512; }}
http {{
  access_log off;
{temporary}
  keepalive_requests {keepalive_requests};
  keepalive_timeout {keepalive_timeout};
{upstream}
  server {{
    listen 127.0.0.1:{port} {listen_options};
{certificate}
    add_header X-Worker $pid;
    location = /hello {{ return 200 "{hello}"; }}
{location}
  }}
}}
"""

_UPSTREAM = """\
  upstream behind {{
    server {host}:{port} max_fails=0;
    keepalive 16;
  }}
"""

# One server behind, and never a second try: what is received twice was sent twice to nginx.
_PROXIED = """\
    location / {
      proxy_pass http://behind;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_next_upstream off;
      proxy_next_upstream_tries 1;
    }
"""


def find_nginx() -> str:
    """Return the path of the nginx of this machine; skip the test, or fail it where nginx is demanded."""
    # Debian keeps it where a user's PATH does not look.
    found = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]))
    if found is None:
        text = "there is no nginx on this machine (Debian, Ubuntu: apt-get install nginx)"
        if os.environ.get(REQUIRED):
            pytest.fail(f"{text}, and {REQUIRED} demands it")
        pytest.skip(f"{text}: nothing was proved with a real server")
    return found


class Nginx:
    """One nginx, with one address for its whole life, whatever happens to its processes.

    Attributes:
        port: Where it listens.
        starts: How often it was started.
        reloads: How often it was reloaded.
    """

    def __init__(
        self,
        folder: Path,
        *,
        upstream: tuple[str, int] | None = None,
        certificate: LeafCert | None = None,
        keepalive_requests: int = 50,
        keepalive_timeout: str = "1s",
        worker_shutdown_timeout: str | None = None,
    ) -> None:
        """Prepare a server; nothing runs before `start`.

        Args:
            folder: An empty folder for all of its files.
            upstream: (host, port) of a server to which it hands on whatever is not ``/hello``.
            certificate: Makes it speak TLS.
            keepalive_requests: After how many requests it closes a connection.
            keepalive_timeout: After how long it closes an idle connection.
            worker_shutdown_timeout: How long old workers may take to end their requests; None: as long as it takes.
        """
        self.port = _free_port()
        self.starts = 0
        self.reloads = 0
        self._folder = folder
        self._nginx = find_nginx()
        self._master: subprocess.Popen[bytes] | None = None
        self._upstream = upstream
        self._has_tls = certificate is not None
        self._keepalive = keepalive_requests, keepalive_timeout
        self._pause = threading.Event()  # never set: Event.wait lets the other threads go on
        build = subprocess.run([self._nginx, "-V"], capture_output=True, text=True, check=True, timeout=BOUND).stderr
        self._temporary = [name for name in _TEMPORARY if f"--without-http_{name}_module" not in build]
        if certificate is not None:
            certificate.private_key_and_cert_chain_pem.write_to_path(folder / "certificate.pem")
        self.configure(worker_shutdown_timeout)

    @property
    def address(self) -> tuple[str, int]:
        """(host, port), as `socket.create_connection` takes it."""
        return "127.0.0.1", self.port

    def configure(self, worker_shutdown_timeout: str | None) -> None:
        """Write the configuration anew, for the next reload or start."""
        requests, seconds = self._keepalive
        shutdown = "" if worker_shutdown_timeout is None else f"worker_shutdown_timeout {worker_shutdown_timeout};"
        certificate = self._folder / "certificate.pem"
        text = _CONFIGURATION.format(
            # A master that runs as root would give its workers to a user who may not enter the folder.
            user="user root;" if os.geteuid() == 0 else "",
            worker_shutdown_timeout=shutdown,
            folder=self._folder,
            temporary="\n".join(f"  {name}_temp_path {self._folder}/{name};" for name in self._temporary),
            keepalive_requests=requests,
            keepalive_timeout=seconds,
            upstream=_UPSTREAM.format(host=self._upstream[0], port=self._upstream[1]) if self._upstream else "",
            port=self.port,
            listen_options="ssl" if self._has_tls else "",
            certificate=(
                f"    ssl_certificate {certificate};\n    ssl_certificate_key {certificate};" if self._has_tls else ""
            ),
            hello=HELLO.decode(),
            location=_PROXIED if self._upstream else "",
        )
        # In one step: a reload must never read half of it.
        draft = self._folder / "draft.conf"
        draft.write_text(text, encoding="ascii")
        draft.replace(self._folder / "nginx.conf")

    def start(self) -> None:
        """Start it and return when it listens and takes orders.

        Raises:
            RuntimeError: It ended instead; the text holds what it said.
            TimeoutError: It did not listen in time.
        """
        assert self._master is None
        with (self._folder / "output.log").open("ab") as output:
            self._master = subprocess.Popen(
                self._command("-g", "daemon off;"),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.starts += 1
        end = time.monotonic() + BOUND
        while not (self._is_listening() and self._takes_orders()):
            if self._master.poll() is not None:
                raise RuntimeError(f"nginx ended with {self._master.returncode}: {self._said()}")
            if time.monotonic() > end:
                raise TimeoutError(f"nginx does not listen on port {self.port} after {BOUND:g} s: {self._said()}")
            self._pause.wait(0.01)

    def reload(self) -> None:
        """Have it replace its workers, as ``nginx -s reload`` does: the old ones end when they have no more to do."""
        self._signal("reload")
        self.reloads += 1

    def stop(self, *, is_graceful: bool) -> None:
        """Stop it and return when the last of its processes has gone.

        Args:
            is_graceful: Whether requests under way are answered first (``quit``) or dropped (``stop``).
        """
        assert self._master is not None
        self._signal("quit" if is_graceful else "stop")
        self._master.wait(BOUND)
        self._master = None

    def close(self) -> None:
        """End whatever still runs of it."""
        master, self._master = self._master, None
        if master is None:
            return
        master.terminate()
        try:
            master.wait(BOUND)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(master.pid, signal.SIGKILL)
            master.wait(BOUND)
            raise

    def __enter__(self) -> Self:
        """Start it."""
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End it; what it said becomes a note of the exception that the block raised."""
        self.close()
        if error is not None and (said := self._said()):
            error.add_note(f"nginx said: {said}")

    def _command(self, *arguments: str) -> list[str]:
        return [self._nginx, "-p", f"{self._folder}/", "-c", f"{self._folder}/nginx.conf", *arguments]

    def _signal(self, name: str) -> None:
        done = subprocess.run(self._command("-s", name), capture_output=True, text=True, check=False, timeout=BOUND)
        if done.returncode:
            raise RuntimeError(f"nginx -s {name} ended with {done.returncode}: {done.stderr}{self._said()}")

    def _is_listening(self) -> bool:
        with socket.socket() as sock:
            sock.settimeout(BOUND)
            return sock.connect_ex(self.address) == 0

    def _takes_orders(self) -> bool:
        # ``nginx -s`` finds the master by this file, which is written a moment after the port is open.
        with contextlib.suppress(FileNotFoundError):
            return (self._folder / "nginx.pid").read_text(encoding="ascii").strip() != ""
        return False

    def _said(self) -> str:
        said = ""
        for name in ("output.log", "error.log"):
            with contextlib.suppress(FileNotFoundError):
                said += (self._folder / name).read_text(encoding="utf-8", errors="replace")[-4000:]
        return said


def _free_port() -> int:
    lowest = 32768
    with contextlib.suppress(FileNotFoundError):
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    draw = random.Random()  # seeded anew: two runs at once must not draw the same ports
    for _ in range(1000):
        port = draw.randrange(min(10_000, lowest - 1000), lowest)
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                sock.bind(("127.0.0.1", port))
                return port
    raise RuntimeError(f"no free port below {lowest}")
