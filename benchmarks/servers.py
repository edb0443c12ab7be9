"""Starts and ends what the clients are measured against: nginx where it can be had, and the embedded servers.

Its rule: everything listens on loopback at a port of the moment, writes into one temporary folder, runs as our own
child, and is ended by its own process id when the ``with`` block is left, however it is left.  Servers share one core
(`measure.cores`), so that clients which are pinned to the other do not compete with them.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trustme

from .embedded import HOST, JSON_FIELDS, JSON_PATH, LARGE_PATH, SMALL_BODY, SMALL_FIELDS, SMALL_PATH, json_body
from .measure import cores, pinned

_START_SECONDS: Final = 20.0
_END_SECONDS: Final = 5.0
_PORT_ATTEMPTS: Final = 5
_LONGEST_SOCKET_FOLDER: Final = 90  # bytes; of 104 (BSD) or 108 (Linux) for the whole path
_TEMPORARY: Final = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
_FOLDER: Final = Path(__file__).resolve().parent.parent

# One process: it can be ended and pinned by one id, and a second worker would only take the clients' core.
_CONFIGURATION: Final = """\
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log error;
worker_rlimit_nofile {descriptors};
events {{ worker_connections {descriptors}; }}
http {{
  access_log off;
{temporary}
  sendfile on;
  tcp_nopush on;
  open_file_cache max=16 inactive=1h;
  open_file_cache_valid 1h;
  keepalive_requests 1000000000;
  keepalive_timeout 1h;
  server {{
    listen {host}:{plain} backlog=4096;
    listen {host}:{tls} ssl backlog=4096;
    listen unix:{uds} backlog=4096;
    ssl_certificate {certificate};
    ssl_certificate_key {certificate};
    client_max_body_size 0;
    default_type text/plain;
    location = {small} {{
{small_fields}
      return 200 "{body}";
    }}
    location = {json} {{
{json_fields}
      alias {folder}/orders.json;
    }}
    location = {large} {{ alias {large_file}; }}
  }}
}}
"""


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Where the servers are.

    Attributes:
        server: What answers the plain and the TLS port: ``nginx 1.22.1`` or ``embedded``.
        plain: Port of the HTTP origin.
        tls: Port of the HTTPS origin.
        embedded: Port of the embedded origin, which has the chunked body and the sink.
        proxy: Port of the CONNECT proxy.
        uds: Path of a Unix socket where the HTTP origin listens as well.
        ca_file: PEM file with the authority of its certificate.
        large_file: A file of `large_bytes` zeros, for uploads.
        large_bytes: Size of the large bodies, down and up.
        connections: How many connections the origin takes at a time.
    """

    server: str
    plain: int
    tls: int
    embedded: int
    proxy: int
    uds: str
    ca_file: str
    large_file: str
    large_bytes: int
    connections: int


@contextlib.contextmanager
def running(*, large_bytes: int, use_nginx: bool = True) -> Iterator[Addresses]:
    """Run the servers for a ``with`` block.

    Args:
        large_bytes: Size of the large bodies.
        use_nginx: Whether nginx is used where it is installed.

    Raises:
        RuntimeError: A server ended, or did not say in time where it listens.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pooledhttp-bench-")))
        authority = trustme.CA()
        certificate, ca_file = folder / "certificate.pem", folder / "authority.pem"
        authority.issue_cert(HOST, "localhost").private_key_and_cert_chain_pem.write_to_path(certificate)
        authority.cert_pem.write_to_path(ca_file)
        large_file = folder / "large"
        with large_file.open("wb") as file:
            file.truncate(large_bytes)
        uds = stack.enter_context(_socket_folder(folder)) / "origin.sock"
        nginx = _find_nginx() if use_nginx else None
        ports = stack.enter_context(
            _embedded(
                folder,
                role="origin",
                large_file=str(large_file),
                certificate=str(certificate),
                uds=None if nginx else str(uds),
            )
        )
        proxy = stack.enter_context(_embedded(folder, role="proxy"))
        plain, tls, server, connections = ports["plain"], ports["tls"], "embedded", 1000
        if nginx is not None:
            connections = _raise_descriptor_limit()
            started = _nginx(nginx, folder, certificate=certificate, large_file=large_file, uds=uds, limit=connections)
            plain, tls = stack.enter_context(started)
            server = _version(nginx)
        yield Addresses(
            server=server,
            plain=plain,
            tls=tls,
            embedded=ports["plain"],
            proxy=proxy["proxy"],
            uds=str(uds),
            ca_file=str(ca_file),
            large_file=str(large_file),
            large_bytes=large_bytes,
            connections=connections,
        )


@contextlib.contextmanager
def _socket_folder(folder: Path) -> Iterator[Path]:
    """Give a folder for a Unix socket: `folder` itself, if the kernel takes a path of that length."""
    if len(os.fsencode(folder)) <= _LONGEST_SOCKET_FOLDER:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="pooledhttp-bench-", dir="/tmp") as short:  # made by tempfile
        yield Path(short)


def _raise_descriptor_limit() -> int:
    """Have as many descriptors as we may, for the children too; return their number."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 32768 if hard == resource.RLIM_INFINITY else min(hard, 32768)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def _find_nginx() -> str | None:
    # Debian keeps it where a user's PATH does not look.
    return shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]))


def _version(nginx: str) -> str:
    said = subprocess.run([nginx, "-v"], capture_output=True, text=True, check=True, timeout=_START_SECONDS).stderr
    return said.strip().rpartition(" ")[2].replace("/", " ")


@contextlib.contextmanager
def _child(command: list[str], *, output: int) -> Iterator[subprocess.Popen[str]]:
    """Run a server on the servers' core; its session of its own keeps a Ctrl-C for us, who end it."""
    with pinned(cores().server):
        process = subprocess.Popen(
            command,
            cwd=_FOLDER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait(_END_SECONDS)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


@contextlib.contextmanager
def _embedded(
    folder: Path,
    *,
    role: str,
    large_file: str | None = None,
    certificate: str | None = None,
    uds: str | None = None,
) -> Iterator[dict[str, int]]:
    settings = {"role": role, "large_file": large_file, "certificate": certificate, "uds": uds}
    log = folder / f"{role}.log"
    command = [sys.executable, "-m", "benchmarks.embedded"]
    with log.open("wb") as errors, _child(command, output=errors.fileno()) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(settings) + "\n")
        process.stdin.flush()
        readable, _, _ = select.select([process.stdout], [], [], _START_SECONDS)
        line = process.stdout.readline() if readable else ""
        if not line:
            said = log.read_text(encoding="utf-8", errors="replace").strip()[-2000:]
            raise RuntimeError(f"the embedded {role} did not say where it listens within {_START_SECONDS:g} s: {said}")
        yield json.loads(line)


@contextlib.contextmanager
def _nginx(
    nginx: str, folder: Path, *, certificate: Path, large_file: Path, uds: Path, limit: int
) -> Iterator[tuple[int, int]]:
    """Run nginx; on another pair of ports if somebody took one of them meanwhile."""
    build = subprocess.run([nginx, "-V"], capture_output=True, text=True, check=True, timeout=_START_SECONDS).stderr
    temporary = [name for name in _TEMPORARY if f"--without-http_{name}_module" not in build]
    (folder / "orders.json").write_bytes(json_body())
    for attempt in range(_PORT_ATTEMPTS):
        plain, tls = _free_ports(2)
        (folder / "nginx.conf").write_text(
            _CONFIGURATION.format(
                folder=folder,
                descriptors=limit,
                temporary="\n".join(f"  {name}_temp_path {folder}/{name};" for name in temporary),
                host=HOST,
                plain=plain,
                tls=tls,
                uds=uds,
                certificate=certificate,
                small=SMALL_PATH,
                small_fields=_add_header(SMALL_FIELDS),
                body=SMALL_BODY.decode(),
                json=JSON_PATH,
                json_fields=_add_header(JSON_FIELDS),
                large=LARGE_PATH,
                large_file=large_file,
            ),
            encoding="ascii",
        )
        uds.unlink(missing_ok=True)
        command = [nginx, "-p", f"{folder}/", "-c", f"{folder}/nginx.conf", "-g", "daemon off;"]
        with (folder / "nginx.log").open("wb") as log, _child(command, output=log.fileno()) as process:
            if _listens(process, plain):
                yield plain, tls
                return
        said = (folder / "nginx.log").read_text(encoding="utf-8", errors="replace")[-2000:]
        if "Address already in use" not in said or attempt == _PORT_ATTEMPTS - 1:
            raise RuntimeError(f"nginx does not listen on port {plain}: {said}")


def _add_header(fields: dict[str, str]) -> str:
    return "\n".join(f'      add_header {name} "{value}";' for name, value in fields.items())


def _listens(process: subprocess.Popen[str], port: int) -> bool:
    """Return whether a server accepts connections, when it does, or has ended."""
    pause = threading.Event()  # never set: nginx has no way to say that it is ready
    end = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        with socket.socket() as sock:
            sock.settimeout(_START_SECONDS)
            if sock.connect_ex((HOST, port)) == 0:
                return True
        pause.wait(0.01)
    return False


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody uses now, outside the range from which clients get theirs."""
    lowest = 32768
    with contextlib.suppress(OSError):
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    lowest = max(lowest, 12_000)
    found: list[int] = []
    draw = random.Random()
    for _ in range(1000):
        port = draw.randrange(10_000, lowest)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((HOST, port))
            if port not in found:
                found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"no {count} free ports below {lowest}")
