"""The embedded servers: an origin and a CONNECT proxy, each in a process of its own.

The origin answers what nginx cannot (a chunked body of 100 MB, a sink for uploads), and everything where there is no
nginx.  It answers constants from a thread a connection, since a server that thinks would be measured along with the
clients.  It takes from a request only what it needs to find its end: requests come from our own benchmarks, one at a
time, and never from a network.

The parent writes one line of JSON to standard input and reads one with the ports from standard output.  When standard
input ends, the process does too: it cannot outlive the parent.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

HOST: Final = "127.0.0.1"
PIECE_BYTES: Final = 65536  # of a chunked body, down or up
SMALL_PATH: Final = "/small"
JSON_PATH: Final = "/json"
LARGE_PATH: Final = "/large"
CHUNKED_PATH: Final = "/chunked"
SINK_PATH: Final = "/sink"

_STACK_BYTES: Final = 262144  # of a thread; the default, 8 MB, is not for a thousand connections
_BLOCK_BYTES: Final = 1 << 20
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding: *chunked\r\n", re.IGNORECASE)
_EXPECT: Final = re.compile(rb"\r\nexpect: *100-continue\r\n", re.IGNORECASE)
_END_OF_CHUNKS: Final = b"\r\n0\r\n\r\n"
_SINK_ANSWER: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

# With the five that nginx writes by itself (Server, Date, Content-Type, Content-Length, Connection) these make eleven.
SMALL_FIELDS: Final = {
    "X-Request-Id": "5f2b3c1a9d8e4f70",
    "Cache-Control": "no-store",
    "Vary": "Accept-Encoding",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-Runtime": "0.004211",
}
# With those, and Last-Modified, ETag and Accept-Ranges of a file: thirty.
JSON_FIELDS: Final = SMALL_FIELDS | {f"X-Detail-{number:02}": f"value-{number:04}" for number in range(16)}
SMALL_BODY: Final = b"x" * 200


def json_body() -> bytes:
    """Return a JSON document of 10 KB."""
    orders = [{"number": number, "customer": f"customer-{number}", "total": number * 1.25} for number in range(170)]
    return json.dumps(orders).encode().ljust(10240)[:10240]


def _answers(names: dict[str, str], body: bytes) -> bytes:
    fields = {
        "Server": "embedded",
        "Date": "Mon, 01 Jan 2024 00:00:00 GMT",
        "Content-Type": "text/plain",
        "Content-Length": str(len(body)),
        "Connection": "keep-alive",
        **names,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 200 OK\r\n{lines}\r\n".encode() + body


class _Origin:
    """Answers on any number of listening sockets."""

    def __init__(self, *, large_file: Path) -> None:
        of_a_file = {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT", "ETag": '"1"', "Accept-Ranges": "bytes"}
        self._constants = {
            SMALL_PATH.encode(): _answers(SMALL_FIELDS, SMALL_BODY),
            JSON_PATH.encode(): _answers(JSON_FIELDS | of_a_file, json_body()),
        }
        self._large_file = large_file
        self._large_bytes = large_file.stat().st_size

    def serve(self, sock: socket.socket) -> None:
        """Answer the requests of one connection until its peer ends it."""
        room = bytearray(_BLOCK_BYTES)
        while True:
            received = b""
            while (at := received.find(b"\r\n\r\n")) < 0:
                more = sock.recv(65536)
                if not more:
                    return
                received += more
            head, rest = received[: at + 4], received[at + 4 :]
            if _EXPECT.search(head):
                sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            if not self._swallow(sock, head, rest, room):
                return
            method, path, _ = head.split(b" ", 2)
            self._answer(sock, method, path)

    @staticmethod
    def _swallow(sock: socket.socket, head: bytes, rest: bytes, room: bytearray) -> bool:
        """Receive the body of a request; return whether it came whole."""
        if _CHUNKED.search(head):
            # The bodies hold no digits, so this can be nothing but the last chunk.
            tail = rest[-len(_END_OF_CHUNKS) :]
            while tail != _END_OF_CHUNKS:
                count = sock.recv_into(room)
                if not count:
                    return False
                tail = (tail + room[max(0, count - len(_END_OF_CHUNKS)) : count])[-len(_END_OF_CHUNKS) :]
            return True
        length = _LENGTH.search(head)
        left = int(length[1]) - len(rest) if length else 0
        while left > 0:
            count = sock.recv_into(room, min(left, len(room)))
            if not count:
                return False
            left -= count
        return True

    def _answer(self, sock: socket.socket, method: bytes, path: bytes) -> None:
        constant = self._constants.get(path)
        if constant is not None:
            sock.sendall(constant)
        elif path == SINK_PATH.encode() and method == b"POST":
            sock.sendall(_SINK_ANSWER)
        elif path == LARGE_PATH.encode():
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % self._large_bytes)
            with self._large_file.open("rb") as file:
                sock.sendfile(file)
        elif path == CHUNKED_PATH.encode():
            self._send_chunks(sock)
        else:
            sock.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    def _send_chunks(self, sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"%x\r\n%b\r\n" % (PIECE_BYTES, bytes(PIECE_BYTES))
        several = _BLOCK_BYTES // PIECE_BYTES
        block = chunk * several
        whole, rest = divmod(self._large_bytes, PIECE_BYTES)
        for _ in range(whole // several):
            sock.sendall(block)
        sock.sendall(chunk * (whole % several))
        if rest:
            sock.sendall(b"%x\r\n%b\r\n" % (rest, bytes(rest)))
        sock.sendall(b"0\r\n\r\n")


def _relay_connect(sock: socket.socket) -> None:
    """Open the tunnel that a CONNECT asks for, and relay until both ends have ended."""
    head = b""
    while b"\r\n\r\n" not in head:
        more = sock.recv(65536)
        if not more:
            return
        head += more
    method, authority, _ = head.split(b" ", 2)
    host, _, port = authority.decode().rpartition(":")
    if method != b"CONNECT" or host != HOST:
        sock.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        return
    with socket.create_connection((host, int(port)), 10.0) as other:
        other.settimeout(None)
        other.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        back = threading.Thread(target=_relay, args=(other, sock), daemon=True)
        back.start()
        _relay(sock, other)
        back.join()


def _relay(source: socket.socket, sink: socket.socket) -> None:
    room = bytearray(_BLOCK_BYTES)
    view = memoryview(room)
    with contextlib.suppress(OSError):
        while count := source.recv_into(room):
            sink.sendall(view[:count])
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def _accept(listener: socket.socket, serve: Callable[[socket.socket], None], tls: ssl.SSLContext | None) -> None:
    def attend(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):  # a client that goes away is no news
            if tls is not None:
                sock = tls.wrap_socket(sock, server_side=True)
            with sock:
                serve(sock)

    while True:
        sock, _ = listener.accept()
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=attend, args=(sock,), daemon=True).start()


def _listen(
    serve: Callable[[socket.socket], None], *, tls: ssl.SSLContext | None = None, uds: str | None = None
) -> int:
    if uds is None:
        listener = socket.create_server((HOST, 0), backlog=4096)
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(uds)
        listener.listen(4096)
    threading.Thread(target=_accept, args=(listener, serve, tls), daemon=True).start()
    return 0 if uds is not None else int(listener.getsockname()[1])


def main() -> None:
    """Serve as the line on standard input says, until standard input ends."""
    threading.stack_size(_STACK_BYTES)
    settings = json.loads(sys.stdin.readline())
    if settings["role"] == "proxy":
        ports = {"proxy": _listen(_relay_connect)}
    else:
        serve = _Origin(large_file=Path(settings["large_file"])).serve
        ports = {"plain": _listen(serve)}
        if settings["certificate"] is not None:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(settings["certificate"])
            ports["tls"] = _listen(serve, tls=tls)
        if settings["uds"] is not None:
            _listen(serve, uds=settings["uds"])
    print(json.dumps(ports), flush=True)
    sys.stdin.read()
    os._exit(0)  # its threads wait for peers that may never speak again


if __name__ == "__main__":
    main()
