"""The scenarios: what is measured, one entry of a table each.

Most are exchanges, done by every client: `Exchange`.  The others have a function of their own, which returns its cases
in the same form, so that one report serves all.  A scenario runs in a process of its own; nothing in it knows which
scenario ran before.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from .embedded import CHUNKED_PATH, HOST, JSON_PATH, LARGE_PATH, SINK_PATH, SMALL_BODY, SMALL_PATH, json_body
from .measure import Case, Crew, Measured, cores, explain, interleave, pinned
from .peers import (
    ALONE,
    CLIENTS,
    EVERY,
    Client,
    Floor,
    Group,
    NotOffered,
    Operation,
    OurConnection,
    OurPool,
    OurPoolWithoutMetrics,
    OurPoolWithTotal,
    Target,
)

_ROOT: Final = Path(__file__).resolve().parent.parent
_SMALL_POST: Final = b'{"order": 7, "customer": "customer-7", "articles": [1, 2, 3]}'
_SMALL_POST_BYTES: Final = len(SMALL_BODY)
_SINK_BYTES: Final = 2
_START_SECONDS: Final = 30.0
_SPARE_DESCRIPTORS: Final = 500


@dataclass(kw_only=True)
class Result:
    """One case of a scenario.

    Attributes:
        group: Whether it is the floor, ours, or a peer's.
        rounds: (CPU, wall) seconds of each round, each repetition.
        floor: The rounds of the floor in the same process, where that is not the scenario's own.
        figures: Other numbers, by name; the unit is part of the name.
    """

    group: str
    rounds: list[tuple[float, float]] = field(default_factory=list)
    floor: list[tuple[float, float]] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(kw_only=True)
class Outcome:
    """What a scenario has found.

    Attributes:
        base: The case to which the others are ratios, or "".
        is_pinned: Whether clients and servers had a core each.
        cases: By name.
        missing: By the name of a case that has no result: why.
    """

    base: str
    is_pinned: bool = False
    cases: dict[str, Result] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return asdict(self)

    @classmethod
    def of_json(cls, value: Mapping[str, Any]) -> Outcome:
        """Return what `as_json` was made from."""
        cases = {
            name: Result(
                group=case["group"],
                rounds=[(cpu, wall) for cpu, wall in case["rounds"]],
                floor=[(cpu, wall) for cpu, wall in case["floor"]],
                figures=dict(case["figures"]),
            )
            for name, case in value["cases"].items()
        }
        return cls(base=value["base"], is_pinned=value["is_pinned"], cases=cases, missing=dict(value["missing"]))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a scenario is run with.

    Attributes:
        addresses: The fields of `servers.Addresses`.
        rounds: How many rounds count.
        pace: Factor on how long a round takes; 1 is a whole run's.
        clients: Names of the only clients to run; ``None``: all but the one that needs an environment of its own.
    """

    addresses: Mapping[str, Any]
    rounds: int
    pace: float
    clients: list[str] | None = None

    def wants(self, client: type[Client]) -> bool:
        """Return whether a client takes part."""
        return client is not ALONE if self.clients is None else client.name in self.clients


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """An entry of the table.

    Attributes:
        name: For the command line.
        title: For the reader.
        unit: In which times are shown: ``us`` or ``ms``.
        run: Measures it.
        is_exchange: Whether all clients take part.
        has_rate: Whether its repetitions per second say more than their time.
    """

    name: str
    title: str
    unit: str
    run: Callable[[Setting], Outcome]
    is_exchange: bool = False
    has_rate: bool = False


# --- exchanges --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A request and its response, by every client in turn.

    Attributes:
        operation: What is done.
        path: What is asked for.
        port: Which of the servers' ports.
        is_tls: Whether that port speaks TLS.
        is_tunnelled: Whether the way leads through the CONNECT proxy.
        expected: How many bytes the answer's body has; ``None``: as many as the large one.
        body: What a POST sends; ``None``: so many zeros as the large body has.
        threads: How many threads, and connections, at a time.
        seconds: How long each client works in a round.
        clients: Who takes part.
        base: Whose time is 1.
    """

    operation: Operation = Operation.GET
    path: str = SMALL_PATH
    port: str = "plain"
    is_tls: bool = False
    is_tunnelled: bool = False
    expected: int | None = len(SMALL_BODY)
    body: bytes | None = b""
    threads: int = 1
    seconds: float = 0.06
    clients: tuple[type[Client], ...] = CLIENTS
    base: type[Client] = Floor

    def target(self, addresses: Mapping[str, Any]) -> Target:
        """Return what the clients are pointed at."""
        large = addresses["large_bytes"]
        return Target(
            host=HOST,
            port=addresses[self.port],
            path=self.path,
            ca_file=addresses["ca_file"] if self.is_tls else None,
            proxy=(HOST, addresses["proxy"]) if self.is_tunnelled else None,
            body=b"\0" * large if self.body is None else self.body,
            file=addresses["large_file"],
            file_bytes=large,
            expected=large if self.expected is None else self.expected,
        )

    def __call__(self, setting: Setting) -> Outcome:
        """Measure it."""
        is_pinned = self.threads == 1 and cores().client is not None
        outcome = Outcome(base=self.base.name, is_pinned=is_pinned)
        target = self.target(setting.addresses)
        with pinned(cores().client if is_pinned else None), contextlib.ExitStack() as stack:
            cases: dict[str, Case] = {}
            for client in self.clients:
                if not setting.wants(client):
                    continue
                try:
                    cases[client.name] = stack.enter_context(self._case(client, target))
                except NotOffered:
                    outcome.missing[client.name] = "does not offer this"
                except ImportError as fault:
                    outcome.missing[client.name] = f"not installed ({fault})"
                except Exception as fault:  # noqa: BLE001  # another project's client: its failure is its result
                    outcome.missing[client.name] = explain(fault)
            measured = interleave(cases, rounds=setting.rounds, seconds=self.seconds * setting.pace)
        return _add(outcome, measured)

    @contextlib.contextmanager
    def _case(self, client: type[Client], target: Target) -> Iterator[Case]:
        if self.threads == 1:
            alone = client(target, size=1)
            try:
                alone.repeat(self.operation, 1)
                yield lambda count: alone.repeat(self.operation, count)
            finally:
                alone.close()
            return
        shared = client(target, size=self.threads) if client.is_shared else None
        try:
            if shared is not None:
                shared.repeat(self.operation, 1)
                if client.is_async:
                    yield lambda count: shared.repeat_concurrently(self.operation, count)
                    return
            crew = Crew(self.threads, lambda: self._member(shared or client(target, size=1), shared))
            try:
                yield crew.run
            finally:
                crew.close()
        finally:
            if shared is not None:
                shared.close()

    def _member(self, client: Client, shared: Client | None) -> tuple[Case, Callable[[], None]]:
        def nothing() -> None:
            """Leave the closing to whoever shares it."""

        end = client.close if shared is None else nothing
        return lambda count: client.repeat(self.operation, count), end


def _add(outcome: Outcome, measured: Measured) -> Outcome:
    for name, rounds in measured.rounds.items():
        group = EVERY[name].group if name in EVERY else Group.OURS
        outcome.cases[name] = Result(group=group.value, rounds=[(taken.cpu, taken.wall) for taken in rounds])
    outcome.missing |= {
        name: "does not offer this" if said == NotOffered.__name__ else said for name, said in measured.failed.items()
    }
    return outcome


# --- lending ----------------------------------------------------------------------------------------------------------


def _sizes(setting: Setting) -> list[int]:
    """Return 1, 100, 10,000, or as many as descriptors and server allow."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(soft, setting.addresses["connections"]) - _SPARE_DESCRIPTORS
    return sorted({1, 100, min(10_000, most)})


def _uds_options(setting: Setting) -> dict[str, Any]:
    # By a Unix socket: ten thousand TCP connections would use up the ports of loopback for a minute.
    return {"uds": setting.addresses["uds"], "idle_timeout": None, "max_age": None}


def _lending(setting: Setting, *, probe_after: float) -> Outcome:
    """Acquire and release, uncontended, with so many connections idle."""
    library = importlib.import_module("pooledhttp")
    names = {size: f"{size:,} idle" for size in _sizes(setting)}
    outcome = Outcome(base=names[1], is_pinned=cores().client is not None)
    with pinned(cores().client), contextlib.ExitStack() as stack:
        cases: dict[str, Case] = {}
        for size, name in names.items():
            pool = stack.enter_context(
                library.ConnectionPool(
                    "origin.test", 80, maxsize=size, probe_after=probe_after, **_uds_options(setting)
                )
            )
            for conn in [pool.acquire() for _ in range(size)]:
                pool.release(conn)
            cases[name] = _lend_repeatedly(pool)
        return _add(outcome, interleave(cases, rounds=setting.rounds, seconds=0.1 * setting.pace))


def _lend_repeatedly(pool: Any) -> Case:
    def lend(count: int) -> None:
        acquire, release = pool.acquire, pool.release
        for _ in range(count):
            release(acquire())

    return lend


def _probing(setting: Setting) -> Outcome:
    return _lending(setting, probe_after=0.0)


def _not_probing(setting: Setting) -> Outcome:
    return _lending(setting, probe_after=3600.0)


def _origins(setting: Setting) -> Outcome:
    """Find the pool of a URL, acquire and release, with so many origins, each with an idle connection."""
    library = importlib.import_module("pooledhttp")
    names = {size: f"{size:,} origins in turn" if size > 1 else "one origin" for size in _sizes(setting)}
    outcome = Outcome(base=names[1], is_pinned=cores().client is not None)
    with pinned(cores().client), contextlib.ExitStack() as stack:
        cases: dict[str, Case] = {}
        for size, name in names.items():
            manager = stack.enter_context(
                library.PoolManager(max_pools=size, maxsize=1, probe_after=3600.0, **_uds_options(setting))
            )
            urls = [f"http://origin-{number}.test/small" for number in range(size)]
            for url in urls:
                with manager.connection(url):
                    pass
            cases[name] = _lend_from(manager, itertools.cycle(urls))
            if size > 1:
                cases[f"always one of {size:,}"] = _lend_from(manager, itertools.repeat(urls[size // 2]))
        return _add(outcome, interleave(cases, rounds=setting.rounds, seconds=0.1 * setting.pace))


def _lend_from(manager: Any, urls: Iterator[str]) -> Case:
    def lend(count: int) -> None:
        for url in itertools.islice(urls, count):
            pool = manager.pool(url)
            pool.release(pool.acquire())

    return lend


# --- idle connections: time and memory --------------------------------------------------------------------------------


def _idle(setting: Setting) -> Outcome:
    """Exchange on one connection while so many others are idle in the same pool."""
    library = importlib.import_module("pooledhttp")
    names = {size: f"{size:,} idle" for size in _sizes(setting)}
    outcome = Outcome(base=names[1], is_pinned=cores().client is not None)
    with pinned(cores().client), contextlib.ExitStack() as stack:
        cases: dict[str, Case] = {}
        for size, name in names.items():
            pool = stack.enter_context(library.ConnectionPool("origin.test", 80, maxsize=size, **_uds_options(setting)))
            for conn in [pool.acquire() for _ in range(size)]:
                pool.release(conn)
            cases[name] = _get_repeatedly(pool)
        return _add(outcome, interleave(cases, rounds=setting.rounds, seconds=0.1 * setting.pace))


def _get_repeatedly(pool: Any) -> Case:
    def get(count: int) -> None:
        for _ in range(count):
            pool.request("GET", SMALL_PATH)

    return get


def _memory(setting: Setting) -> Outcome:
    """How much the resident memory of a fresh process grows, each connection or pool."""
    connections = min(2000, _sizes(setting)[-1])
    pools = 10_000 if setting.pace >= 1 else 1000
    kinds: dict[str, tuple[Group, int, Callable[[Setting, int], object]]] = {
        "bare socket": (Group.FLOOR, connections, _open_sockets),
        "pooledhttp, idle in a pool": (Group.OURS, connections, _open_pooled),
        "pooledhttp HTTPConnection": (Group.OURS, connections, _open_ours),
        "pooledhttp, a pool without a connection": (Group.OURS, pools, _open_pools),
        "http.client": (Group.PEER, connections, _open_standard),
        "urllib3, idle in a pool": (Group.PEER, connections, _open_urllib3),
    }
    outcome = Outcome(base="bare socket")
    for name, (group, count, make) in kinds.items():
        try:
            grown = statistics.median(_growth(setting, make, count) for _ in range(3))
        except RuntimeError as fault:
            outcome.missing[name] = str(fault)
        else:
            figures = {"bytes each": grown / count, "count": count}
            outcome.cases[name] = Result(group=group.value, figures=figures)
    return outcome


def _open_sockets(setting: Setting, count: int) -> object:
    made = []
    for _ in range(count):
        sock = socket.create_connection((HOST, setting.addresses["plain"]))
        sock.sendall(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % SMALL_PATH.encode())
        received = 0
        while received < len(SMALL_BODY):  # all of it comes in one segment
            received += len(sock.recv(65536)) or len(SMALL_BODY)
        made.append(sock)
    return made


def _open_documented(module: str, setting: Setting, count: int) -> object:
    made = []
    for _ in range(count):
        conn = importlib.import_module(module).HTTPConnection(HOST, setting.addresses["plain"])
        conn.request("GET", SMALL_PATH)
        conn.getresponse().read()
        made.append(conn)
    return made


def _open_standard(setting: Setting, count: int) -> object:
    return _open_documented("http.client", setting, count)


def _open_ours(setting: Setting, count: int) -> object:
    return _open_documented("pooledhttp", setting, count)


def _open_pooled(setting: Setting, count: int) -> object:
    library = importlib.import_module("pooledhttp")
    pool = library.ConnectionPool(HOST, setting.addresses["plain"], maxsize=count)
    lent = [pool.acquire() for _ in range(count)]
    for conn in lent:
        conn.request("GET", SMALL_PATH)
        conn.getresponse().read()
        pool.release(conn)
    return pool


def _open_pools(_: Setting, count: int) -> object:
    manager = importlib.import_module("pooledhttp").PoolManager(max_pools=count)
    for number in range(count):
        manager.pool(f"http://origin-{number}.test/")
    return manager


def _open_urllib3(setting: Setting, count: int) -> object:
    pool = importlib.import_module("urllib3").HTTPConnectionPool(HOST, setting.addresses["plain"], maxsize=count)
    lent = [pool.request("GET", SMALL_PATH, preload_content=False) for _ in range(count)]
    for response in lent:
        _ = response.data
        response.release_conn()
    return pool


def _growth(setting: Setting, make: Callable[[Setting, int], object], count: int) -> int:
    """Return by how many bytes the resident memory of a child grows that makes so many.

    Raises:
        RuntimeError: The child failed; the text is its reason.
    """
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(source)
            try:
                make(setting, 1)  # what is imported or made once
                gc.collect()
                before = _resident_bytes()
                kept = make(setting, count)
                gc.collect()
                said = str(_resident_bytes() - before)
                del kept
            except Exception as fault:  # noqa: BLE001  # told to the parent
                said = explain(fault)
            os.write(sink, said.encode())
        finally:
            os._exit(0)  # closes all sockets at once, and runs none of the parent's finalizers
    os.close(sink)
    with os.fdopen(source, "rb") as file:
        said = file.read().decode()
    os.waitpid(child, 0)
    if not said.lstrip("-").isdigit():
        raise RuntimeError(said or "the process that measured it was killed")
    return int(said)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


# --- waiting ----------------------------------------------------------------------------------------------------------

_WAITERS: Final = 64
_SHARED: Final = 8


def _waiting(setting: Setting) -> Outcome:
    """64 threads on 8 connections: how long until a thread has its connection, or its answer."""
    addresses = setting.addresses
    url = f"http://{HOST}:{addresses['plain']}{SMALL_PATH}"
    outcome = Outcome(base="")
    makers: dict[str, tuple[Group, Callable[[], tuple[Callable[[], float], Callable[[], None]]]]] = {
        "pooledhttp pool.acquire (the wait alone)": (Group.OURS, lambda: _wait_for_lease(addresses["plain"])),
        "pooledhttp pool.request": (Group.OURS, lambda: _wait_for_answer(addresses["plain"])),
        "urllib3 HTTPConnectionPool, block=True": (Group.PEER, lambda: _wait_for_urllib3(addresses["plain"])),
        "httpcore": (Group.PEER, lambda: _wait_for_httpcore(url)),
    }
    for name, (group, make) in makers.items():
        figures: list[dict[str, float]] = []
        try:
            call, close = make()
        except ImportError as fault:
            outcome.missing[name] = f"not installed ({fault})"
            continue
        try:
            for number in range(setting.rounds + 1):
                taken = _crowd(call, seconds=0.6 * setting.pace)
                if number:  # the first opens the connections
                    figures.append(taken)
        finally:
            close()
        combined = {key: statistics.median(one[key] for one in figures) for key in figures[0]}
        outcome.cases[name] = Result(group=group.value, figures=combined)
    return outcome


def _wait_for_lease(port: int) -> tuple[Callable[[], float], Callable[[], None]]:
    pool = importlib.import_module("pooledhttp").ConnectionPool(HOST, port, maxsize=_SHARED)

    def call() -> float:
        began = time.perf_counter()
        conn = pool.acquire()
        waited = time.perf_counter() - began
        try:
            conn.request("GET", SMALL_PATH)
            conn.getresponse().read()
        finally:
            pool.release(conn)
        return waited

    return call, pool.close


def _timing(request: Callable[[], object]) -> Callable[[], float]:
    def call() -> float:
        began = time.perf_counter()
        request()
        return time.perf_counter() - began

    return call


def _wait_for_answer(port: int) -> tuple[Callable[[], float], Callable[[], None]]:
    pool = importlib.import_module("pooledhttp").ConnectionPool(HOST, port, maxsize=_SHARED)
    return _timing(lambda: pool.request("GET", SMALL_PATH)), pool.close


def _wait_for_urllib3(port: int) -> tuple[Callable[[], float], Callable[[], None]]:
    pool = importlib.import_module("urllib3").HTTPConnectionPool(HOST, port, maxsize=_SHARED, block=True)
    return _timing(lambda: pool.request("GET", SMALL_PATH)), pool.close


def _wait_for_httpcore(url: str) -> tuple[Callable[[], float], Callable[[], None]]:
    pool = importlib.import_module("httpcore").ConnectionPool(max_connections=_SHARED)
    return _timing(lambda: pool.request("GET", url)), pool.close


def _crowd(call: Callable[[], float], *, seconds: float) -> dict[str, float]:
    """Let the threads call for so long; return how the times they report are distributed."""
    until = 0.0

    def begin() -> None:
        nonlocal until
        until = time.perf_counter() + seconds

    together = threading.Barrier(_WAITERS, action=begin)
    diaries: list[list[float]] = [[] for _ in range(_WAITERS)]
    broken: list[BaseException] = []

    def work(diary: list[float]) -> None:
        try:
            together.wait(_START_SECONDS)
            diary.append(call())
            while time.perf_counter() < until:
                diary.append(call())
        except BaseException as fault:  # noqa: BLE001  # raised by whoever started the thread
            broken.append(fault)

    threads = [threading.Thread(target=work, args=(diary,), daemon=True) for diary in diaries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + _START_SECONDS)
        if thread.is_alive():
            raise TimeoutError("a thread still waits for its answer")
    if broken:
        raise RuntimeError(explain(broken[0])) from broken[0]
    every = sorted(itertools.chain.from_iterable(diaries))
    shares = [len(diary) for diary in diaries]
    median, late = every[len(every) // 2], every[len(every) * 99 // 100]
    return {
        "p50 ms": 1000 * median,
        "p99 ms": 1000 * late,
        "p99/p50": late / median,
        "fewest/median calls of a thread": min(shares) / max(1, statistics.median(shares)),
        "calls/s": len(every) / seconds,
    }


# --- a scrape ---------------------------------------------------------------------------------------------------------

_FEW_AND_MANY: Final = (1, 100)


def _scraping(setting: Setting) -> Outcome:
    """Ask pools for their numbers: what is ours of it, the whole text, and the text of several processes."""
    library, client = importlib.import_module("pooledhttp"), importlib.import_module("prometheus_client")
    outcome = Outcome(base="1 pool, collect()", is_pinned=cores().client is not None)
    cases: dict[str, Case] = {}
    kept: list[object] = []
    with tempfile.TemporaryDirectory() as folder, pinned(cores().client):
        for count in _FEW_AND_MANY:
            registry = client.CollectorRegistry()
            pools = [library.ConnectionPool(f"origin-{number}", registry=registry) for number in range(count)]
            kept += pools
            collector = importlib.import_module("pooledhttp.metrics").collector_of(registry)
            files = Path(folder, str(count))
            files.mkdir()
            _make_pools_of_many_processes(files, count)
            everybody = importlib.import_module("pooledhttp.metrics").multiprocess_registry(str(files))
            name = f"{count} pool{'s' * (count > 1)}"
            cases |= {
                f"{name}, collect()": _after_a_request(pools, partial(_collect, collector)),
                f"{name}, generate_latest()": _after_a_request(pools, partial(client.generate_latest, registry)),
                f"{name}, generate_latest(), files of a process": _again(partial(client.generate_latest, everybody)),
            }
        measured = interleave(cases, rounds=setting.rounds, seconds=0.3 * setting.pace)
    outcome.missing = measured.failed
    for name, rounds in measured.rounds.items():
        taken = [(each.cpu, each.wall) for each in rounds]
        outcome.cases[name] = Result(group=Group.OURS.value, rounds=taken)
    return outcome


def _collect(collector: Any) -> None:
    deque(collector.collect(), maxlen=0)


def _again(call: Callable[[], object]) -> Case:
    def repeat(count: int) -> None:
        for _ in range(count):
            call()

    return repeat


def _after_a_request(pools: list[Any], call: Callable[[], object]) -> Case:
    """Have something to say about every pool each time: one in which nothing has happened is not asked again."""

    def repeat(count: int) -> None:
        for _ in range(count):
            for pool in pools:
                pool._tally.finished.append((0.01, True, 200, 0.01))
            call()

    return repeat


def _make_pools_of_many_processes(folder: Path, count: int) -> None:
    """Leave what a process with so many pools writes down."""
    program = (
        "import sys, pooledhttp, pooledhttp.metrics\n"
        "pools = [pooledhttp.ConnectionPool(f'origin-{number}') for number in range(int(sys.argv[1]))]\n"
        "assert pooledhttp.metrics.flush(60)\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(count)],
        cwd=_ROOT,
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)},
        check=True,
        timeout=_START_SECONDS,
    )


# --- import -----------------------------------------------------------------------------------------------------------


# Ours imports a public name when that is first asked for, and what Prometheus needs when the first pool is made.
_OUR_IMPORTS: Final = {
    "pooledhttp": "import pooledhttp",
    OurConnection.imported: "from pooledhttp import HTTPConnection",
    OurPool.imported: "from pooledhttp import ConnectionPool",
    "pooledhttp, with its first pool": "from pooledhttp import ConnectionPool; ConnectionPool('localhost', 80)",
}


def _importing(setting: Setting) -> Outcome:
    """Start an interpreter that imports one module, and one that imports nothing."""
    outcome = Outcome(base="nothing", is_pinned=cores().client is not None)
    programs = {"nothing": ("", Group.FLOOR)} | {name: (line, Group.OURS) for name, line in _OUR_IMPORTS.items()}
    for client in CLIENTS:
        if client.group is Group.PEER and setting.wants(client):
            programs.setdefault(client.distribution or client.name, (f"import {client.module}", Group.PEER))
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with pinned(cores().client):
        for number in range(max(setting.rounds, 3) * 2 + 1):
            for name, (program, _) in programs.items():
                if name in outcome.missing:
                    continue
                cpu, wall = _children_seconds(), time.perf_counter()
                done = subprocess.run(
                    [sys.executable, "-c", program],
                    cwd=_ROOT,
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=_START_SECONDS,
                    env=environment,
                )
                passed = _children_seconds() - cpu, time.perf_counter() - wall
                if done.returncode:
                    outcome.missing[name] = f"not installed ({done.stderr.strip().splitlines()[-1]})"
                elif number:  # the first writes the bytecode
                    taken[name].append(passed)
    for name, (_, group) in programs.items():
        if taken[name]:
            outcome.cases[name] = Result(group=group.value, rounds=taken[name])
    return outcome


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# --- the table --------------------------------------------------------------------------------------------------------


def _exchange(name: str, title: str, exchange: Exchange, *, unit: str = "us", has_rate: bool = False) -> Scenario:
    return Scenario(name=name, title=title, unit=unit, run=exchange, is_exchange=True, has_rate=has_rate)


def _large(name: str, title: str, exchange: Exchange) -> Scenario:
    return _exchange(name, title, exchange, unit="ms")


def _down(operation: Operation, *, path: str = LARGE_PATH, port: str = "plain") -> Exchange:
    return Exchange(operation=operation, path=path, port=port, expected=None)


def _up(operation: Operation) -> Exchange:
    return Exchange(operation=operation, path=SINK_PATH, port="embedded", expected=_SINK_BYTES, body=None)


_EVERY: Final = (
    _exchange("small-get", "Small GET, one thread", Exchange()),
    *(
        _exchange(
            f"small-get-{threads}",
            f"Small GET, {threads} threads on one pool",
            Exchange(threads=threads, seconds=0.2),
            has_rate=True,
        )
        for threads in (4, 16, 64)
    ),
    _exchange("json", "GET of 10 KB JSON with 30 fields", Exchange(path=JSON_PATH, expected=len(json_body()))),
    _exchange(
        "post",
        "POST with a small body",
        Exchange(operation=Operation.POST, body=_SMALL_POST, expected=_SMALL_POST_BYTES),
    ),
    _exchange("tls", "Small GET over TLS", Exchange(port="tls", is_tls=True)),
    _exchange(
        "tunnel",
        "Small GET over TLS through a CONNECT tunnel",
        Exchange(port="tls", is_tls=True, is_tunnelled=True),
    ),
    _large("down-read", "100 MB down, read whole", _down(Operation.GET)),
    _large("down-readinto", "100 MB down, readinto", _down(Operation.READINTO)),
    _large("down-iterate", "100 MB down, iteration", _down(Operation.ITERATE)),
    _large(
        "down-chunked",
        "100 MB down, chunked, read whole",
        _down(Operation.GET, path=CHUNKED_PATH, port="embedded"),
    ),
    _large("up-memory", "100 MB up, from memory", _up(Operation.POST)),
    _large("up-file", "100 MB up, from a file", _up(Operation.POST_FILE)),
    _large("up-iterable", "100 MB up, from an iterator, chunked", _up(Operation.POST_ITERABLE)),
    Scenario(name="lending", title="acquire + release, with the probe", unit="us", run=_probing),
    Scenario(name="lending-no-probe", title="acquire + release, without the probe", unit="us", run=_not_probing),
    Scenario(
        name="origins", title="Find the pool of a URL, acquire + release, without the probe", unit="us", run=_origins
    ),
    Scenario(name="idle", title="Small GET with many idle connections in the pool", unit="us", run=_idle),
    Scenario(name="memory", title="Resident memory", unit="us", run=_memory),
    Scenario(name="waiting", title="64 threads on 8 connections, small GET", unit="ms", run=_waiting),
    Scenario(
        name="metrics",
        title="Small GET, metrics on against off",
        unit="us",
        run=Exchange(clients=(OurPool, OurPoolWithoutMetrics), base=OurPoolWithoutMetrics, seconds=0.2),
    ),
    Scenario(name="scrape", title="A scrape of pools that have each had a request", unit="ms", run=_scraping),
    Scenario(
        name="deadline",
        title="Small GET, total deadline on against off",
        unit="us",
        run=Exchange(clients=(OurPool, OurPoolWithTotal), base=OurPool, seconds=0.2),
    ),
    Scenario(name="import", title="Import in a fresh interpreter", unit="ms", run=_importing),
)

SCENARIOS: Final = {scenario.name: scenario for scenario in _EVERY}
