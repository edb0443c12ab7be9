"""Many processes, one /metrics: what is scraped is what was done, whoever forks, ends or is killed.

What is inside one of them has a room of its own, test_bridge.  Each test runs programs, see `tests.processes`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Self

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from pooledhttp import ConnectionPool, HTTPException
from pooledhttp.metrics import multiprocess_registry
from pooledhttp.metrics.fleet import Fleet
from pooledhttp.metrics.names import SharedNames, _lock
from pooledhttp.stats import Tally
from pooledhttp.testing import ExpectHead, Peer, Repeat, Respond, ScriptedServer, ServerFactory
from pooledhttp.uncut import uncut
from tests.processes import ROOT, run, scraped
from tests.waits import BOUND, wait_until

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")

ANSWERS = [Repeat((ExpectHead(), Respond(body=b"hello")))]
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "metrics"
    made.mkdir()
    return made


@pytest.fixture
def server(scripted_server: ServerFactory) -> ScriptedServer:
    return scripted_server(default=ANSWERS, timeout=BOUND)


# --- counts -----------------------------------------------------------------------------------------------------------


def test_counts_of_a_parent_and_its_children_add_up(folder: Path, server: ScriptedServer) -> None:
    program = """
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p")

        def work(count, and_then=lambda: None):
            def live():
                for _ in range(count):
                    pool.request("GET", "/")
                assert flush()
                and_then()
            return live

        for _ in range(7):  # nobody has written them down when the children begin
            pool.request("GET", "/")
        die = lambda: os.kill(os.getpid(), signal.SIGKILL)
        in_children(work(10), work(20), work(30), work(40, die))
        assert flush()
        print(sample("pooledhttp_requests_total", pool="p", outcome="2xx"),
              sample("pooledhttp_acquires_total", pool="p", outcome="opened"),
              sample("pooledhttp_connection_use_seconds_count", pool="p"),
              sample("pooledhttp_connections_max", pool="p"), sample("pooledhttp_pools"),
              sample("pooledhttp_connections", pool="p", state="idle"))
    """
    assert run(program, folder, server.port) == "107.0 5.0 107.0 10.0 1.0 1.0\n"
    assert len(server.requests) == 107
    # All processes are gone: their counts stay, their gauges do not.
    value = scraped(folder)
    assert value("pooledhttp_requests_total", pool="p", outcome="2xx") == 107
    assert value("pooledhttp_connections_max", pool="p") in {None, 0}


def test_every_number_is_the_one_that_a_single_process_would_show(folder: Path, server: ScriptedServer) -> None:
    program = """
        from prometheus_client import CollectorRegistry
        from pooledhttp.metrics.collector import PoolCollector
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p", maxsize=2)
        single = PoolCollector()
        single.watch(pool, pool._tally)
        for _ in range(3):
            pool.request("GET", "/")
            flush()
        with pool.connection():
            pool.request("GET", "/")
        try:
            ConnectionPool("127.0.0.1", 1, name="refused").request("GET", "/")
        except OSError:
            pass
        flush()

        def samples(families):
            return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value
                    for family in families for sample in family.samples}

        shown = samples(multiprocess_registry().collect())
        expected = samples(single.collect())
        for key, value in expected.items():
            if key[0] not in ("pooledhttp_pools",):
                assert abs(shown[key] - value) < 1e-9, (key, shown[key], value)
        print(len(expected), shown["pooledhttp_connect_failures_total", (("pool", "refused"), ("reason", "refused"))])
        assert not set(key for key in shown if "refused" not in str(key)) - set(expected)
    """
    count, refused = run(program, folder, server.port).split()
    assert int(count) > 90
    assert refused == "1.0"


def test_every_series_is_there_before_anything_has_happened(folder: Path, server: ScriptedServer) -> None:
    run('ConnectionPool("127.0.0.1", 1, name="p")', folder)
    value = scraped(folder)
    assert value("pooledhttp_acquires_total", pool="p", outcome="timeout") == 0
    assert value("pooledhttp_connections_closed_total", pool="p", reason="leaked") == 0
    assert value("pooledhttp_acquire_wait_seconds_count", pool="p") == 0
    assert value("pooledhttp_label_overflow_total") == 0


def test_counts_are_written_down_without_being_asked(folder: Path, server: ScriptedServer) -> None:
    program = """
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p")
        pool.request("GET", "/")
        end = threading.Event()
        for _ in range(500):
            if sample("pooledhttp_requests_total", pool="p", outcome="2xx") == 1:
                print("shown")
                break
            end.wait(0.02)
        pool.request("GET", "/")
        os.kill(os.getpid(), signal.SIGKILL) if os.fork() == 0 else os.wait()
    """
    assert run(program, folder, server.port) == "shown\n"
    # The end of the process has written down the second one.
    assert scraped(folder)("pooledhttp_requests_total", pool="p", outcome="2xx") == 2


def test_child_of_multiprocessing_writes_down_its_last_second(folder: Path, server: ScriptedServer) -> None:
    program = """
        import multiprocessing
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p")

        def work():
            pool.request("GET", "/")

        child = multiprocessing.get_context("fork").Process(target=work)
        child.start()
        child.join()
        print(sample("pooledhttp_requests_total", pool="p", outcome="2xx"),
              sample("pooledhttp_connections_max", pool="p"))
    """
    assert run(program, folder, server.port) == "1.0 0.0\n"


def test_threads_that_fork_while_others_make_requests_lose_nothing(folder: Path, server: ScriptedServer) -> None:
    program = """
        import warnings
        from concurrent.futures import ThreadPoolExecutor
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p", maxsize=4)
        end = threading.Event()

        def drive():
            count = 0
            while not end.is_set():
                pool.request("GET", "/")
                count += 1
            return count

        def child():
            pool.request("GET", "/")
            assert flush()

        with ThreadPoolExecutor(3) as executor:
            drivers = [executor.submit(drive) for _ in range(3)]
            for _ in range(25):
                in_children(child)
            end.set()
            done = sum(driver.result() for driver in drivers)
        assert flush()
        print(sample("pooledhttp_requests_total", pool="p", outcome="2xx") - done)
    """
    assert run(program, folder, server.port) == "25.0\n"


# --- gauges -----------------------------------------------------------------------------------------------------------


def test_process_that_only_forks_has_no_part_in_the_gauges(folder: Path, server: ScriptedServer) -> None:
    program = """
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p", maxsize=3)
        flush()
        before = sample("pooledhttp_connections_max", pool="p"), sample("pooledhttp_pools")

        def work():
            pool.request("GET", "/")
            flush()
            print(before, sample("pooledhttp_connections_max", pool="p"), sample("pooledhttp_pools"), flush=True)

        in_children(work)
        print(sample("pooledhttp_connections_max", pool="p"))
    """
    assert run(program, folder, server.port) == "(0.0, 0.0) 3.0 1.0\n0.0\n"


def test_oldest_lease_is_that_of_all_processes(folder: Path, server: ScriptedServer) -> None:
    program = """
        now = [1000.0]
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p", clock=lambda: now[0])

        def work():
            with pool.connection():
                now[0] += 50.0
                flush()
                print(sample("pooledhttp_oldest_lease_seconds", pool="p"), flush=True)

        with pool.connection():
            now[0] += 7.0
            flush()
            in_children(work)
            print(sample("pooledhttp_oldest_lease_seconds", pool="p"))
    """
    assert run(program, folder, server.port) == "50.0\n7.0\n"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells a dead process from a living one")
def test_process_that_nobody_has_asked_after_is_in_no_gauge(folder: Path, server: ScriptedServer) -> None:
    program = """
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p", maxsize=3)
        child = os.fork()
        if not child:
            pool.request("GET", "/")
            flush()
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        print(sample("pooledhttp_connections_max", pool="p"),
              sample("pooledhttp_requests_total", pool="p", outcome="2xx"))
        os.waitpid(child, 0)
    """
    assert run(program, folder, server.port) == "0.0 1.0\n"


def test_version_is_shown_once(folder: Path, server: ScriptedServer) -> None:
    program = """
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p")
        def work():
            pool.request("GET", "/")
            flush()
            print(sample("pooledhttp_build_info", version=pooledhttp.__version__), flush=True)
        in_children(work)
        in_children(work)
    """
    assert run(program, folder, server.port) == "1.0\n1.0\n"


# --- labels -----------------------------------------------------------------------------------------------------------


def test_all_processes_together_have_a_hundred_values_of_the_label(folder: Path) -> None:
    program = r"""
        def work(number):
            def live():
                pools = [ConnectionPool("localhost", 80, name=f"{number}-{name}\nx\u00e9") for name in range(60)]
                assert flush()
            return live
        in_children(*(work(number) for number in range(4)))
    """
    run(program, folder)
    registry = multiprocess_registry(str(folder))
    names = {sample.labels["pool"] for family in registry.collect() for sample in family.samples
             if family.name == "pooledhttp_requests"}  # fmt: skip
    assert len(names) == 100
    assert "_other" in names
    assert all(re.fullmatch(r"\d-\d+\nx\u00e9|_other", name) for name in names)
    assert scraped(folder)("pooledhttp_label_overflow_total") == 4 * 60 - 99


def test_lock_that_a_stopped_process_holds_is_not_waited_for_without_a_bound(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pooledhttp.metrics.names._PATIENCE", 0.05)
    names = SharedNames(str(folder))
    assert names.admit("first")
    with (folder / "pooledhttp_names.txt").open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert names.admit("second")  # of this process alone
    assert names.admit("third")
    assert (folder / "pooledhttp_names.txt").read_text().split() == ["first", "third"]


def test_child_that_is_forked_while_a_name_is_written_does_not_keep_the_lock(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inherited: list[int] = []
    lock = _lock

    def lock_and_fork(file: BinaryIO, patience: float) -> None:
        lock(file, patience)
        inherited.append(os.dup(file.fileno()))  # what a child would have: the same open file

    monkeypatch.setattr("pooledhttp.metrics.names._lock", lock_and_fork)
    assert SharedNames(str(folder)).admit("first")
    with (folder / "pooledhttp_names.txt").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    (descriptor,) = inherited
    os.close(descriptor)


def test_lock_that_was_waited_for_in_vain_is_not_waited_for_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    is_taken = True

    def lock(_: BinaryIO, patience: float) -> None:
        waits.append(patience)
        if is_taken:
            raise BlockingIOError

    monkeypatch.setattr("pooledhttp.metrics.names._lock", lock)
    names = SharedNames(str(folder))
    assert all(names.admit(name) for name in "abab")
    is_taken = False
    assert names.admit("c")
    is_taken = True
    assert names.admit("d")
    assert waits == [1.0, 0.0, 0.0, 1.0]


def test_name_is_asked_for_without_a_lock_that_others_want(scripted_server: ServerFactory) -> None:
    """Whoever decides may wait for another process."""
    seen: list[int] = []

    class Names:
        def admit(self, _: str) -> bool:
            other = threading.Thread(target=lambda: seen.append(fleet.totals().open_pools))
            other.start()
            other.join(BOUND)
            return True

        def renew_after_fork(self) -> None:
            """Nothing of it is a process's."""

    fleet = Fleet(Names())
    with ConnectionPool("127.0.0.1", scripted_server().port, registry=None) as pool:
        assert fleet.watch(pool, Tally()) == pool.name
    assert seen == [0]


def test_no_fork_cuts_the_writing_of_a_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marked: list[bool] = []

    def lock(_: BinaryIO, __: float) -> None:
        marked.append(threading.get_ident() in uncut._depths)

    monkeypatch.setattr("pooledhttp.metrics.names._lock", lock)
    assert SharedNames(str(folder)).admit("first")
    assert marked == [True]


def test_first_pool_without_a_name_of_its_own_is_counted_at_once(folder: Path) -> None:
    program = """
        pools = [ConnectionPool("localhost", 80, name=f"p{number}") for number in range(101)]
        print(sample("pooledhttp_label_overflow_total"),
              sample("pooledhttp_requests_total", pool="_other", outcome="2xx"))
        print(flush(), sample("pooledhttp_label_overflow_total"))
    """
    assert run(program, folder) == "1.0 0.0\nTrue 2.0\n"


def test_file_of_names_that_was_cut_off_costs_one_name(folder: Path) -> None:
    (folder / "pooledhttp_names.txt").write_bytes(b"first\n\\x8")
    names = SharedNames(str(folder))
    assert names.admit("second")
    assert (folder / "pooledhttp_names.txt").read_bytes() == b"first\n\\x8\nsecond\n"
    assert SharedNames(str(folder)).admit("first")


# --- gunicorn and celery, by the examples -----------------------------------------------------------------------------


@contextlib.contextmanager
def program(*arguments: str, home: Path, **environment: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run a module as a program; give it and its log; end it and its children, by force if need be."""
    log = home / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env={**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT), **environment},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process, log
    except BaseException as fault:
        fault.add_note(log.read_text(errors="replace"))
        raise
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(BOUND)


class Watcher:
    """Scrapes again and again, as Prometheus does, and remembers every counter that went down.

    Args:
        scrape: Returns the text of /metrics.
    """

    def __init__(self, scrape: Callable[[], str]) -> None:
        self._scrape = scrape
        self._before: Samples = {}
        self._lock = threading.Lock()  # one scrape after the other
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.fell: list[object] = []
        self.scrapes = 0

    def look(self) -> Samples:
        """Scrape once; return all samples."""
        with self._lock:
            found: Samples = {}
            counters: Samples = {}
            for family in text_string_to_metric_families(self._scrape()):
                for sample in family.samples:
                    key = sample.name, tuple(sorted(sample.labels.items()))
                    found[key] = sample.value
                    if family.type in {"counter", "histogram"}:
                        counters[key] = sample.value
            self.fell += [(key, before, counters.get(key)) for key, before in self._before.items()
                          if counters.get(key, -1) < before]  # fmt: skip
            self._before = counters
            self.scrapes += 1
            return found

    def _run(self) -> None:
        while not self._end.wait(0.05):
            self.look()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(BOUND)


def requests_of(samples: Samples) -> float:
    return sum(value for (name, labels), value in samples.items()
               if name == "pooledhttp_requests_total" and ("pool", "upstream") in labels)  # fmt: skip


def limit_of(samples: Samples) -> float | None:
    return samples.get(("pooledhttp_connections_max", (("pool", "upstream"),)))


def scraper_of(folder: Path) -> Callable[[], str]:
    registry = multiprocess_registry(str(folder))
    return lambda: generate_latest(registry).decode()


def metrics_of(front: ConnectionPool) -> Callable[[], str]:
    def scrape() -> str:
        return front.request("GET", "/metrics").data.decode()

    return scrape


def test_gunicorn_loses_no_more_than_the_last_second_of_a_worker_that_is_killed(
    server: ScriptedServer, folder: Path, tmp_path: Path
) -> None:
    listening = tmp_path / "listening"
    served: Counter[int] = Counter()
    lock = threading.Lock()
    environment = {
        "UPSTREAM": f"{server.host}:{server.port}",
        "PROMETHEUS_MULTIPROC_DIR": str(folder),
        "BIND": f"unix:{listening}",
    }
    arguments = ["--config=examples/gunicorn/gunicorn.conf.py", "--chdir=examples/gunicorn",
                 f"--worker-tmp-dir={tmp_path}", "app:app"]  # fmt: skip
    with (
        program("gunicorn", *arguments, home=tmp_path, **environment) as (process, log),
        ThreadPoolExecutor(8) as executor,
    ):
        wait_until(lambda: log.read_text().count("Booting worker") == 4)

        def ask(_: int = 0) -> int | None:
            # A connection for each call: the kernel chooses the worker.
            with contextlib.suppress(OSError, HTTPException), ConnectionPool(
                "gunicorn", uds=str(listening), timeout=BOUND, registry=None, max_requests=1
            ) as front:  # fmt: skip
                response = front.request("GET", "/", retry=None)
                assert (response.status, response.data) == (200, b"hello")
                worker = int(response.headers["X-Worker"])
                with lock:
                    served[worker] += 1
                return worker
            return None

        def load(count: int) -> None:
            list(executor.map(ask, range(count)))

        with ConnectionPool("gunicorn", uds=str(listening), timeout=BOUND, registry=None) as front:
            own = Watcher(scraper_of(folder))  # one that outlives the workers
            with own:
                load(200)
                while len(served) < 4:
                    load(20)
                wait_until(lambda: requests_of(own.look()) == served.total(), pause=0.05)
                looked = Watcher(metrics_of(front)).look()
                assert requests_of(looked) == served.total()  # any worker answers for all of them
                assert limit_of(looked) == 16

                # One is killed in the midst of its work.
                victim = min(served)
                exact, before = served.total(), served[victim]
                while served[victim] == before:
                    ask()
                os.kill(victim, signal.SIGKILL)
                lost_at_most = served[victim] - before
                wait_until(lambda: log.read_text().count("Booting worker") == 5)
                wait_until(lambda: limit_of(own.look()) == 12, pause=0.05)
                load(100)
                while len(served) < 5:
                    load(20)
                wait_until(lambda: limit_of(own.look()) == 16, pause=0.05)
                wait_until(lambda: requests_of(own.look()) >= served.total() - lost_at_most, pause=0.05)
                assert exact < served.total() - lost_at_most <= requests_of(own.look()) <= served.total()
        process.terminate()
        assert process.wait(BOUND) == 0
    # The workers have written down their last second, and are in no gauge any more.
    after = own.look()
    assert served.total() - lost_at_most <= requests_of(after) <= served.total()
    assert limit_of(after) in {None, 0}
    assert own.fell == []
    assert own.scrapes > 10


@pytest.mark.parametrize("has_hooks", [True, False])
def test_hooks_of_the_example_do_what_an_end_without_atexit_leaves_undone(
    server: ScriptedServer, folder: Path, tmp_path: Path, has_hooks: bool
) -> None:
    listening = tmp_path / "listening"
    environment = {
        "UPSTREAM": f"{server.host}:{server.port}",
        "PROMETHEUS_MULTIPROC_DIR": str(folder),
        "BIND": f"unix:{listening}",
        "HOOKS": "yes" if has_hooks else "no",
    }
    arguments = ["--config=tests/apps/gunicorn_example.py", "--chdir=examples/gunicorn",
                 f"--worker-tmp-dir={tmp_path}", "app:app"]  # fmt: skip
    served: Counter[str] = Counter()
    with program("gunicorn", *arguments, home=tmp_path, **environment) as (process, log):
        wait_until(lambda: log.read_text().count("Booting worker") == 4)

        def is_at_work() -> bool:
            with ConnectionPool("gunicorn", uds=str(listening), timeout=BOUND, registry=None) as front:
                served[front.request("GET", "/").headers["X-Worker"]] += 1
            return len(served) > 1 and min(served.values()) > 4

        wait_until(is_at_work)
        process.terminate()
        assert process.wait(BOUND) == 0
    plain = CollectorRegistry()
    MultiProcessCollector(plain, str(folder))
    shown = Watcher(lambda: generate_latest(plain).decode()).look()
    if has_hooks:
        assert requests_of(shown) == served.total()
        assert limit_of(shown) == 0  # of the master
    else:
        assert requests_of(shown) < served.total()
        assert limit_of(shown) == 4 * len(served)


@contextlib.contextmanager
def celery(
    server: ScriptedServer, folder: Path, home: Path
) -> Iterator[tuple[subprocess.Popen[bytes], Path, ConnectionPool]]:
    """Run the example with load; give its parent, the file that ends the load, and a pool for its /metrics."""
    broker, stop, host, port = home / "broker", home / "stop", "127.0.0.1", free_port()
    broker.mkdir()
    environment = {
        "UPSTREAM": f"{server.host}:{server.port}",
        "PROMETHEUS_MULTIPROC_DIR": str(folder),
        "BROKER": str(broker),
        "STOP": str(stop),
        "CHAINS": "8",
        "METRICS": f"{host}:{port}",
    }
    arguments = ["worker", "--pool=prefork", "--concurrency=4", "--loglevel=INFO", "--without-gossip",
                 "--without-mingle", "--without-heartbeat"]  # fmt: skip
    with (
        program("celery", "--app=tests.apps.celery_example", *arguments, home=home, **environment) as (process, log),
        ConnectionPool(host, port, timeout=BOUND, registry=None) as front,
    ):
        wait_until(lambda: " ready." in log.read_text(), pause=0.05)
        yield process, stop, front


def test_celery_loses_no_more_than_the_last_second_of_a_process_that_is_killed(
    scripted_server: ServerFactory, folder: Path, tmp_path: Path
) -> None:
    answered: Counter[str] = Counter()
    lock = threading.Lock()
    may_go_on = threading.Event()
    may_go_on.set()
    doomed: list[tuple[str, int]] = []  # a process, and how many answers it still gets

    def answer(peer: Peer) -> None:
        while True:
            worker = peer.read_request().target.removeprefix("/")
            assert may_go_on.wait(BOUND)
            with lock:
                if doomed == [(worker, answered[worker])]:
                    # In the midst of a task: one that waits for the next would take celery's own lock along.
                    os.kill(int(worker), signal.SIGKILL)
                    doomed.clear()
                    return
                answered[worker] += 1
            peer.send(Respond(body=b"hello").encode())

    server = scripted_server(default=answer, timeout=BOUND)
    with celery(server, folder, tmp_path) as (process, stop, front):
        own = Watcher(scraper_of(folder))
        with own:
            wait_until(lambda: len(answered) == 4 and min(answered.values()) > 4, pause=0.05)
            may_go_on.clear()
            wait_until(lambda: requests_of(own.look()) == answered.total(), pause=0.05)
            assert requests_of(Watcher(metrics_of(front)).look()) == answered.total()  # by the parent, for all of them
            assert limit_of(own.look()) == 16
            victim = min(answered)
            lost_at_most = 3
            exact = answered.total()
            with lock:
                doomed.append((victim, answered[victim] + lost_at_most))
            may_go_on.set()
            wait_until(lambda: not doomed, pause=0.05)
            wait_until(lambda: len(answered) == 5 and min(answered.values()) > 4, pause=0.05)  # its successor works
            wait_until(lambda: limit_of(own.look()) == 16, pause=0.05)
            assert holds_port(process.pid, front.port)
            assert not any(holds_port(int(worker), front.port) for worker in answered if worker != victim)
            stop.touch()
            wait_until(lambda: requests_of(own.look()) >= answered.total() - lost_at_most, pause=0.05)
        process.terminate()
        try:
            assert process.wait(BOUND / 2) == 0
        except subprocess.TimeoutExpired:
            # celery itself, after the death of one of its processes: rarely, and then for ever.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(BOUND)
    after = own.look()
    assert exact < answered.total() - lost_at_most <= requests_of(after) <= answered.total()
    assert limit_of(after) in {None, 0}
    assert own.fell == []
    assert own.scrapes > 10


def test_celery_loses_nothing_at_its_end_and_comes_to_it(
    scripted_server: ServerFactory, folder: Path, tmp_path: Path
) -> None:
    server = scripted_server(default=ANSWERS, timeout=BOUND)
    with celery(server, folder, tmp_path) as (process, stop, _):
        server.wait_until(lambda: len(server.requests) > 50)
        stop.touch()
        process.terminate()
        assert process.wait(BOUND) == 0
    after = Watcher(scraper_of(folder)).look()
    assert requests_of(after) == len(server.requests) > 50
    assert limit_of(after) in {None, 0}


def holds_port(process: int, port: int) -> bool:
    """Tell whether a process has the socket that listens there; only Linux tells."""
    if not Path("/proc/net/tcp").exists():
        pytest.skip("only Linux tells who listens")
    rows = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    listening = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")}
    assert listening
    held = set()
    for path in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            held.add(str(path.readlink()))
    return bool(held & listening)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


# --- the registry of all processes ------------------------------------------------------------------------------------


def test_file_that_a_process_is_just_making_does_not_spoil_the_scrape(folder: Path, server: ScriptedServer) -> None:
    run('ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p").request("GET", "/")', folder, server.port)
    (folder / "counter_1.db").touch()  # that of a process which is there
    assert scraped(folder)("pooledhttp_requests_total", pool="p", outcome="2xx") == 1


def test_file_that_vanishes_during_a_scrape_does_not_spoil_it(
    folder: Path, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run('ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p").request("GET", "/")', folder, server.port)
    fleeting = folder / "counter_1.db"
    fleeting.write_bytes(bytes(16))
    merge = MultiProcessCollector.merge

    def vanishing(files: list[str], accumulate: bool = True) -> object:
        fleeting.unlink(missing_ok=True)
        return merge(files, accumulate)

    monkeypatch.setattr(MultiProcessCollector, "merge", staticmethod(vanishing))
    registry = multiprocess_registry(str(folder))
    assert registry.get_sample_value("pooledhttp_requests_total", {"pool": "p", "outcome": "2xx"}) == 1


@pytest.mark.parametrize("may_delete", [True, False])
def test_gauges_of_the_dead_are_not_shown_though_their_files_may_stay(
    folder: Path, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, may_delete: bool
) -> None:
    """Whoever scrapes may be somebody else."""
    program = """
        ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p").request("GET", "/")
        assert flush()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    run("in_children(lambda: exec(" + repr(textwrap.dedent(program)) + ", globals()))", folder, server.port)
    live = set(folder.glob("gauge_live*"))
    (folder / f"gauge_livesum_{2**40}.db").write_bytes(bytes(16))  # a number that no process has
    if not may_delete:

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError

        monkeypatch.setattr(Path, "unlink", refuse)
    shown = scraped(folder)
    assert live
    assert shown("pooledhttp_requests_total", pool="p", outcome="2xx") == 1
    assert shown("pooledhttp_pools") is None
    assert len(list(folder.glob("gauge_live*"))) == (0 if may_delete else len(live) + 1)


def test_process_that_is_not_called_by_its_number_is_in_the_gauges(folder: Path, server: ScriptedServer) -> None:
    """uWSGI's workers, for one, who take each other's place."""
    program = """
        from prometheus_client import values
        values.ValueClass = values.MultiProcessValue(process_identifier=lambda: 2**22 + 1)
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p", maxsize=3)
        for _ in range(2):
            pool.request("GET", "/")
            print(flush(), sample("pooledhttp_connections_max", pool="p"),
                  sample("pooledhttp_requests_total", pool="p", outcome="2xx"))
    """
    assert run(program, folder, server.port) == "True 3.0 1.0\nTrue 3.0 2.0\n"


def test_file_that_is_read_while_it_grows_does_not_spoil_the_scrape(
    folder: Path, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its length and its content are two steps; prometheus_client calls it damaged."""
    run('ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p").request("GET", "/")', folder, server.port)
    (growing,) = folder.glob("counter_*.db")
    merge, whole = MultiProcessCollector.merge, growing.read_bytes()
    growing.write_bytes(struct.pack("i", 16) + bytes(4) + struct.pack("i", 1000) + bytes(4))

    def grown(files: list[str], accumulate: bool = True) -> object:
        try:
            return merge(files, accumulate)
        finally:
            growing.write_bytes(whole)

    monkeypatch.setattr(MultiProcessCollector, "merge", staticmethod(grown))
    assert scraped(folder)("pooledhttp_requests_total", pool="p", outcome="2xx") == 1


def test_file_that_is_broken_is_told(folder: Path, server: ScriptedServer) -> None:
    registry = multiprocess_registry(str(folder))
    (folder / "counter_1.db").write_bytes(b"x")
    with pytest.raises(struct.error):
        registry.get_sample_value("pooledhttp_pools", {})


def test_registry_of_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="PROMETHEUS_MULTIPROC_DIR"):
        multiprocess_registry(str(tmp_path / "missing"))


def test_default_registry_shows_no_pool_and_says_so_once(folder: Path, server: ScriptedServer) -> None:
    program = """
        logging.basicConfig(stream=sys.stdout, format="%(name)s %(levelname)s %(message)s")
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p")
        for _ in range(2):
            text = prometheus_client.generate_latest().decode()
            assert "pooledhttp" not in text
    """
    said = run(program, folder, server.port)
    assert said.startswith("pooledhttp WARNING PROMETHEUS_MULTIPROC_DIR is set, and a registry was scraped")
    assert said.count("\n") == 1


@pytest.mark.parametrize("is_removed", [True, False])
def test_variable_without_a_folder_is_none_and_told(
    folder: Path, server: ScriptedServer, tmp_path: Path, is_removed: bool
) -> None:
    """A compose file that names the variable and gives it nothing, for one; prometheus_client takes it for a folder."""
    program = """
        os.chdir(sys.argv[3])
        logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
        del os.environ["PROMETHEUS_MULTIPROC_DIR"]
        if sys.argv[2] == "False":
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = ""
        for name in "ab":
            pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name=name)
            pool.request("GET", "/")
            labels = {"pool": name, "outcome": "2xx"}
            print(prometheus_client.REGISTRY.get_sample_value("pooledhttp_requests_total", labels))
        print(flush(), os.listdir())
    """
    empty = tmp_path / "empty"
    empty.mkdir()
    warning, *said = run(program, folder, server.port, is_removed, empty).splitlines()
    assert warning.startswith("WARNING PROMETHEUS_MULTIPROC_DIR is empty")
    assert said == ["1", "1", "True []"]


def test_variable_that_is_removed_behind_the_first_pool_changes_nothing(folder: Path, server: ScriptedServer) -> None:
    program = """
        port = int(sys.argv[1])
        pools = [ConnectionPool("127.0.0.1", port, name="p")]
        path = os.environ.pop("PROMETHEUS_MULTIPROC_DIR")
        pools += [ConnectionPool("127.0.0.1", port, name="p"),
                  ConnectionPool("127.0.0.1", port, name="p", registry=prometheus_client.CollectorRegistry())]
        for pool in pools:
            pool.request("GET", "/")
        print(flush(), multiprocess_registry(path).get_sample_value("pooledhttp_requests_total",
                                                                    {"pool": "p", "outcome": "2xx"}))
    """
    assert run(program, folder, server.port) == "True 3.0\n"


def test_registry_of_all_processes_may_be_that_of_the_pools_too(folder: Path, server: ScriptedServer) -> None:
    program = """
        from prometheus_client import CollectorRegistry
        from prometheus_client.multiprocess import MultiProcessCollector
        own = CollectorRegistry()
        for registry in (multiprocess_registry(), own):
            pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p", registry=registry)
            pool.request("GET", "/")
            assert flush()
            if registry is own:
                MultiProcessCollector(registry)
            print(registry.get_sample_value("pooledhttp_requests_total", {"pool": "p", "outcome": "2xx"}))
    """
    assert run(program, folder, server.port) == "1.0\n2.0\n"  # and no warning


def test_clash_of_names_is_refused(folder: Path) -> None:
    program = """
        registry = prometheus_client.CollectorRegistry()
        prometheus_client.Counter("pooledhttp_acquires", "mine", registry=registry)
        try:
            ConnectionPool("localhost", 80, registry=registry)
        except ValueError as fault:
            print("Duplicated" in str(fault))
    """
    assert run(program, folder) == "True\n"
