"""One process of many: its thread, its files, its forks, and whatever comes in their way.

Each test but those of a single part runs programs of its own, see `tests.processes`.
"""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import pytest
from prometheus_client import Counter as CounterShown
from prometheus_client import Histogram as Shown

from pooledhttp.metrics.flusher import Flusher
from pooledhttp.metrics.instruments import Distribution, Number
from pooledhttp.stats import Histogram
from pooledhttp.testing import ExpectHead, Repeat, Respond, ScriptedServer, ServerFactory
from tests.processes import run, run_bare, scraped
from tests.waits import BOUND, wait_until

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")

ANSWERS = [Repeat((ExpectHead(), Respond(body=b"hello")))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "metrics"
    made.mkdir()
    return made


@pytest.fixture
def server(scripted_server: ServerFactory) -> ScriptedServer:
    return scripted_server(default=ANSWERS, timeout=BOUND)


# --- the thread -------------------------------------------------------------------------------------------------------


class Work:
    """What a `Flusher` is given: looks that are told when to end, and whether more of them are wanted."""

    def __init__(self) -> None:
        self.looks = 0
        self.is_wanted = True
        self.is_looking = threading.Event()
        self.may_end = threading.Event()
        self.asked_whether: list[Flusher] = []

    def look(self) -> bool:
        self.looks += 1
        self.is_looking.set()
        assert self.may_end.wait(BOUND)
        return True

    def goes_on(self, flusher: Flusher) -> bool:
        self.asked_whether.append(flusher)
        return self.is_wanted


def threads_of_the_metrics() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "pooledhttp-metrics"]


def test_look_that_is_under_way_answers_nobody_who_has_asked_during_it() -> None:
    work = Work()
    flusher = Flusher(work.look, work.goes_on)
    first = flusher.ask()
    flusher.start()
    assert work.is_looking.wait(BOUND)
    second = flusher.ask()
    assert first.wait(0) is False
    work.may_end.set()
    assert (first.wait(BOUND), second.wait(BOUND)) == (True, True)
    assert work.looks >= 2
    flusher.end(BOUND)
    assert not flusher.is_running
    assert threads_of_the_metrics() == []


def test_request_that_comes_after_the_last_look_is_answered_with_none() -> None:
    work = Work()
    flusher = Flusher(work.look, work.goes_on)
    flusher.start()
    assert work.is_looking.wait(BOUND)
    waiting = flusher.ask()
    work.is_wanted = False
    work.may_end.set()
    assert waiting.wait(BOUND) is None
    flusher.end(BOUND)
    assert flusher.ask().wait(0) is None
    assert work.looks == 1


def test_wish_for_more_looks_that_comes_as_the_thread_ends_is_heard() -> None:
    work = Work()
    work.may_end.set()
    answers = [False, True]  # somebody has seen it run, and wants more of it, between the two questions
    ran: list[bool] = []

    def goes_on(flusher: Flusher) -> bool:
        ran.append(flusher.is_running)
        return answers.pop(0) if answers else False

    flusher = Flusher(work.look, goes_on)
    flusher.start()
    asked = flusher.ask()
    wait_until(lambda: not threads_of_the_metrics())
    assert work.looks == 2
    assert ran[:2] == [True, False]
    assert asked.wait(0) in (True, None)


def test_thread_that_was_told_to_end_before_its_first_look_does_none() -> None:
    work = Work()
    flusher = Flusher(work.look, work.goes_on)
    asked = flusher.ask()
    flusher.end(BOUND)  # it is no error that there is no thread
    flusher.start()
    assert asked.wait(BOUND) is None
    assert work.looks == 0


@pytest.mark.parametrize("has_begun", [True, False])
def test_thread_whose_start_is_interrupted_ends_by_itself(monkeypatch: pytest.MonkeyPatch, has_begun: bool) -> None:
    work = Work()
    work.may_end.set()
    flusher = Flusher(work.look, work.goes_on)
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        if has_begun:
            start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    asked = flusher.ask()
    with pytest.raises(KeyboardInterrupt):
        flusher.start()
    assert not flusher.is_running
    assert asked.wait(BOUND) in (None, True)
    flusher.end(BOUND)
    assert threads_of_the_metrics() == []


def test_exception_of_a_signal_while_the_thread_starts_leaves_one_thread(folder: Path, server: ScriptedServer) -> None:
    program = """
        import time
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p")
        start, interruptions = threading.Thread.start, [KeyboardInterrupt] * 3

        def interrupted(thread):
            start(thread)
            if interruptions:
                raise interruptions.pop()

        threading.Thread.start = interrupted
        for _ in range(3):
            try:
                pool.request("GET", "/")
            except KeyboardInterrupt:
                pass
        pool.request("GET", "/")
        until = time.monotonic() + 20
        names = lambda: [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
        while len(names()) > 1 and time.monotonic() < until:
            time.sleep(0.01)
        print(names(), interruptions, flush(), sample("pooledhttp_requests_total", pool="p", outcome="2xx"))
    """
    assert run(program, folder, server.port) == "['pooledhttp-metrics'] [] True 1.0\n"


def test_threads_that_come_first_at_once_leave_one_thread_of_the_metrics(folder: Path, server: ScriptedServer) -> None:
    program = """
        import time
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p")
        bridge = metrics._bridge
        made, both_are_there = bridge._new_flusher, threading.Barrier(2)

        def at_once():
            both_are_there.wait(20)  # both have found none
            return made()

        bridge._new_flusher = at_once
        threads = [threading.Thread(target=bridge.be_at_work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        until = time.monotonic() + 20
        names = lambda: [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
        while len(names()) > 1 and time.monotonic() < until:
            time.sleep(0.01)
        print(names(), bridge._flusher.is_running, pool.request("GET", "/").status, flush())
    """
    assert run(program, folder, server.port) == "['pooledhttp-metrics'] True 200 True\n"


def test_thread_that_cannot_be_started_is_told_and_tried_again(folder: Path, server: ScriptedServer) -> None:
    """The system allows a process so many and no more; what a signal's handler raises must not get lost in a look."""
    program = """
        logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
        start, lookers = threading.Thread.start, []

        def refused(thread):
            raise RuntimeError("can't start new thread")

        threading.Thread.start = refused
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p")
        bridge = metrics._bridge
        show = bridge._show

        def noted():
            lookers.append(threading.current_thread().name)
            show()

        bridge._show = noted
        print(pool.request("GET", "/").status, flush(), ConnectionPool("127.0.0.1", 1, name="late").name, lookers)
        threading.Thread.start = start
        pool.prune(everything=True)
        print(pool.request("GET", "/").status, flush(), set(lookers))
        print(sample("pooledhttp_requests_total", pool="p", outcome="2xx"))
    """
    warning, *said = run(program, folder, server.port).splitlines()
    assert warning.startswith("WARNING ")
    assert warning.endswith("(no thread can be started; tried again with the next connection)")
    assert said == ["200 False late []", "200 True {'pooledhttp-metrics'}", "2.0"]


def test_last_look_of_an_interpreter_that_starts_no_thread_any_more_is_taken(
    folder: Path, server: ScriptedServer
) -> None:
    program = """
        import atexit
        pool = None

        def refused(thread):
            raise RuntimeError("can't create new thread at interpreter shutdown")

        def behind_the_last_look():  # registered before the first pool is made
            pool.request("GET", "/")
            print(flush(), sample("pooledhttp_requests_total", pool="p", outcome="2xx"), flush=True)

        atexit.register(behind_the_last_look)
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p")
        pool.request("GET", "/")
        print(flush())
        threading.Thread.start = refused
    """
    assert run(program, folder, server.port) == "True\nTrue 2.0\n"


def test_waits_for_a_look_that_hangs_have_one_patience_together(folder: Path, server: ScriptedServer) -> None:
    """Whoever has told a worker to end waits for it, and kills it."""
    program = """
        logging.disable()
        import types
        import pooledhttp.metrics.bridge as room
        from pooledhttp.metrics.flusher import Request
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p")
        pool.request("GET", "/")
        assert flush()
        bridge, now, waits, wait = metrics._bridge, 100.0, [], Request.wait

        def in_vain(request, seconds):
            global now
            waits.append(seconds)
            now += seconds
            return False

        room.time = types.SimpleNamespace(monotonic=lambda: now)
        Request.wait = in_vain
        print(flush(3.0), bridge.close(), bridge.close(), waits)
        Request.wait = wait
        print(flush(20), bridge._unanswered_since)
        Request.wait = in_vain
        waits.clear()
        bridge.close()
        print(waits)
        Request.wait = wait
        room.time = __import__("time")
    """
    assert run(program, folder, server.port).splitlines() == ["False None None [3.0, 2.0, 0.0]", "True None", "[5.0]"]


def test_exception_of_a_signal_reaches_whoever_makes_a_pool(folder: Path, server: ScriptedServer) -> None:
    """A soft time limit that is lost is a task that never ends."""
    program = """
        from pooledhttp.metrics.instruments import Instruments

        class SoftTimeLimit(Exception):
            pass

        def handler(*_):
            raise SoftTimeLimit

        signal.signal(signal.SIGUSR1, handler)
        introduce = Instruments.introduce

        def introduce_and_signal(instruments, label):
            if label.startswith("late"):
                os.kill(os.getpid(), signal.SIGUSR1)
            introduce(instruments, label)

        Instruments.introduce = introduce_and_signal
        import pooledhttp.metrics.bridge as room
        room._MAKER_PATIENCE = 20
        port = int(sys.argv[1])
        pool = ConnectionPool("127.0.0.1", port, name="p")
        for number in range(2):  # the first time, the process is not at work yet
            try:
                ConnectionPool("127.0.0.1", port, name=f"late-{number}")
            except SoftTimeLimit:
                print("raised")
            pool.request("GET", "/")
        print(flush(), sample("pooledhttp_requests_total", pool="p", outcome="2xx"))
    """
    assert run(program, folder, server.port) == "raised\nraised\nTrue 2.0\n"


def test_look_that_calls_whoever_makes_a_pool_or_asks_for_a_look_goes_on(folder: Path, server: ScriptedServer) -> None:
    """A finalizer may come in there, or a clock of the user's."""
    program = """
        import time
        port = int(sys.argv[1])
        said = []

        def clock():
            if not said and threading.current_thread().name == "pooledhttp-metrics":
                said.append("here")
                said.append(flush(20))
                said.append(ConnectionPool("127.0.0.1", port, name="late").name)
            return time.monotonic()

        pool = ConnectionPool("127.0.0.1", port, name="p", clock=clock)
        pool.request("GET", "/")
        print(flush(20), said, flush(), sample("pooledhttp_requests_total", pool="late", outcome="2xx"))
    """
    assert run(program, folder, server.port) == "True ['here', False, 'late'] True 0.0\n"


def test_hung_look_keeps_no_maker_of_a_pool_and_is_told(folder: Path, server: ScriptedServer) -> None:
    program = """
        logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
        from pooledhttp.metrics.flusher import Request
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p")
        pool.request("GET", "/")
        assert flush()
        bridge, wait, waits = metrics._bridge, Request.wait, []

        def noted(request, seconds):
            waits.append(seconds)
            return wait(request, seconds)

        Request.wait = noted
        is_held, end = threading.Event(), threading.Event()

        def hold():
            with bridge._lock:
                is_held.set()
                end.wait(20)

        holder = threading.Thread(target=hold)
        holder.start()
        is_held.wait()
        ConnectionPool("127.0.0.1", int(sys.argv[1]), name="late")
        print(len(waits), max(waits) <= 0.1, bridge._look(0.01))
        end.set()
        holder.join()
        print(flush(float("inf")), sample("pooledhttp_requests_total", pool="late", outcome="2xx"))
    """
    warning, *said = run(program, folder, server.port).splitlines()
    assert warning.startswith("WARNING ")
    assert warning.endswith("(a look at the pools does not come to its end)")
    assert said == ["1 True False", "True 0.0"]


def test_last_look_that_hangs_is_told(folder: Path, server: ScriptedServer) -> None:
    program = """
        logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p")
        pool.request("GET", "/")
        assert flush()
        import pooledhttp.metrics.bridge as room
        room._PATIENCE = 0.01
        bridge, is_held, end = metrics._bridge, threading.Event(), threading.Event()

        def hold():
            with bridge._lock:
                is_held.set()
                end.wait(20)

        holder = threading.Thread(target=hold)
        holder.start()
        is_held.wait()
        bridge.close()
        end.set()
        holder.join()
        room._PATIENCE = 20
    """
    (warning,) = run(program, folder, server.port).splitlines()
    assert warning.startswith("WARNING ")
    assert warning.endswith("(the last look did not come to its end)")


@pytest.mark.parametrize("module", ["multiprocessing.util", "billiard.util"])
def test_end_of_a_process_is_asked_for_once_however_often_it_forks(
    folder: Path, server: ScriptedServer, module: str
) -> None:
    program = """
        import types
        asked = []

        def finalize(thing, callback, *, exitpriority):
            asked.append((os.getpid(), callback))

        half_imported = types.ModuleType(sys.argv[2])
        sys.modules[sys.argv[2]] = half_imported
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p")
        print(pool.request("GET", "/").status, flush())
        half_imported.Finalize = finalize
        for _ in range(3):
            in_children(lambda: None)
        print(asked == [(os.getpid(), metrics._bridge.close)], flush=True)

        def work():
            asked.clear()
            pool.request("GET", "/")
            print(asked == [(os.getpid(), metrics._bridge.close)], flush=True)

        in_children(work)
    """
    assert run(program, folder, server.port, module) == "200 True\nTrue\nTrue\n"


def test_greenlet_that_is_killed_while_the_thread_starts_leaves_one_of_it(folder: Path, server: ScriptedServer) -> None:
    program = """
        from gevent import monkey
        monkey.patch_all()
        import sys, threading, gevent
        from pooledhttp import ConnectionPool
        from pooledhttp.metrics import flush
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p")
        threads = lambda: sum(thread.name == "pooledhttp-metrics" for thread in threading.enumerate())
        for _ in range(4):
            killed = gevent.spawn(pool.request, "GET", "/")
            gevent.sleep(0)  # up to its first switch: it waits for the thread
            killed.kill()
        pool.request("GET", "/")
        with gevent.Timeout(20):
            while threads() != 1:
                gevent.sleep(0.01)
        print(threads(), flush())
    """
    assert run_bare(program, folder, server.port) == "1 True\n"
    assert scraped(folder)("pooledhttp_requests_total", pool="p", outcome="2xx") == 1


# --- files that fail -------------------------------------------------------------------------------------------------


def test_folder_that_is_of_no_use_is_told_when_the_first_pool_is_made(tmp_path: Path) -> None:
    program = """
        import stat
        access, refuses = os.access, sys.argv[1] == "True"
        os.access = lambda path, mode: access(path, mode) and not refuses  # root may do everything
        for _ in range(2):
            try:
                ConnectionPool("localhost", 80)
            except OSError as fault:
                print(type(fault).__name__, fault.filename == os.environ["PROMETHEUS_MULTIPROC_DIR"])
    """
    (tmp_path / "file").touch()
    (tmp_path / "locked").mkdir()
    assert run(program, tmp_path / "missing", False) == "FileNotFoundError True\n" * 2
    assert run(program, tmp_path / "file", False) == "NotADirectoryError True\n" * 2
    assert run(program, tmp_path / "locked", True) == "PermissionError True\n" * 2


def test_first_pool_of_a_process_without_descriptors_is_made(folder: Path, server: ScriptedServer) -> None:
    program = """
        import errno
        from prometheus_client import mmap_dict
        logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")

        def opening(*arguments):
            raise OSError(errno.EMFILE, "Too many open files")

        mmap_dict.open = opening
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p")
        print(pool.request("GET", "/").status, flush())
        mmap_dict.open = open
        metrics._bridge._renew_at = 0
        print(flush(), sample("pooledhttp_requests_total", pool="p", outcome="2xx"))
    """
    warning, *said = run(program, folder, server.port).splitlines()
    assert warning.startswith("WARNING ")
    assert warning.endswith("Too many open files; still trying)")
    assert said == ["200 False", "True 1.0"]


def test_filter_of_the_log_that_raises_does_not_end_the_thread(folder: Path, server: ScriptedServer) -> None:
    program = """
        import shutil

        def failing(record):
            raise ValueError("of a filter")

        logging.getLogger("pooledhttp").addFilter(failing)
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p")
        pool.request("GET", "/")
        assert flush()
        shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"])
        print(pool.request("GET", "/").status, flush(), metrics._bridge._flusher.is_running)
    """
    assert run(program, folder, server.port) == "200 False True\n"


def test_folder_that_vanishes_costs_the_metrics_and_no_request(folder: Path, server: ScriptedServer) -> None:
    program = """
        import shutil
        logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p")
        shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"])

        def work():
            for _ in range(2):
                print(pool.request("GET", "/").status, flush(), flush=True)
                print(ConnectionPool("127.0.0.1", int(sys.argv[1]), name="late").request("GET", "/").status)
            sys.stdout.flush()
            logging.disable()

        in_children(work)
        logging.disable()
    """
    said = run(program, folder, server.port).splitlines()
    assert [line for line in said if not line.startswith("WARNING")] == ["200 False", "200"] * 2
    assert len([line for line in said if line.startswith("WARNING the metrics of this process cannot be")]) == 1


def test_folder_that_is_removed_under_a_running_process_is_told_and_a_later_child_uses_the_new_one(
    folder: Path, server: ScriptedServer
) -> None:
    program = """
        import shutil
        logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p")
        pool.request("GET", "/")
        print(flush())
        shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"])
        print(pool.request("GET", "/").status, flush(), flush())
        os.mkdir(os.environ["PROMETHEUS_MULTIPROC_DIR"])
        print(flush(), flush=True)

        def work():
            pool.request("GET", "/")
            print(flush(), sample("pooledhttp_requests_total", pool="p", outcome="2xx"), flush=True)

        in_children(work)
    """
    said = run(program, folder, server.port).splitlines()
    (warning,) = [line for line in said if line.startswith("WARNING")]
    assert re.search(r"\(counter_\d+\.db was removed; they come back with the next start of this process\)$", warning)
    said.remove(warning)
    assert said == ["True", "200 False False", "False", "True 1.0"]


@pytest.mark.parametrize("fault", [1, 2, 3, 4])
def test_file_that_cannot_be_opened_once_costs_no_count(folder: Path, server: ScriptedServer, fault: int) -> None:
    program = """
        import errno
        from prometheus_client import mmap_dict
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p")
        pool.request("GET", "/")
        assert flush()
        logging.basicConfig(stream=sys.stdout, format="%(levelname)s")

        def work():
            opened = 0
            def opening(*arguments):
                nonlocal opened
                opened += 1
                if opened == int(sys.argv[2]):
                    raise OSError(errno.EMFILE, "Too many open files")
                return open(*arguments)
            mmap_dict.open = opening
            outcomes = []
            for _ in range(4):
                pool.request("GET", "/")
                outcomes.append(flush())
            print(outcomes[1:], sample("pooledhttp_connections_max", pool="p"), flush=True)

        in_children(work)
        flush()
        print(sample("pooledhttp_requests_total", pool="p", outcome="2xx"),
              sample("pooledhttp_connection_use_seconds_count", pool="p"),
              sample("pooledhttp_acquires_total", pool="p", outcome="opened"))
    """
    assert run(program, folder, server.port, fault) .splitlines() == [
        "WARNING", "[True, True, True] 20.0", "5.0 5.0 2.0"
    ]  # fmt: skip


def test_full_disk_costs_the_metrics_and_not_the_process(folder: Path, server: ScriptedServer) -> None:
    """To write into a hole of a mapped file is a SIGBUS there, so it is not tried."""
    program = """
        logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
        real, is_full = os.statvfs, True

        def statvfs(path):
            found = list(real(path))
            found[4] = 0 if is_full else found[4]
            return os.statvfs_result(found)

        os.statvfs = statvfs
        port = int(sys.argv[1])
        pool = ConnectionPool("127.0.0.1", port, name="p")
        print(pool.request("GET", "/").status, flush(), os.listdir(os.environ["PROMETHEUS_MULTIPROC_DIR"]), flush=True)

        def work():
            print(pool.request("GET", "/").status, flush(), flush=True)
            logging.disable()

        in_children(work)
        is_full = False
        print(flush(), sample("pooledhttp_requests_total", pool="p", outcome="2xx"), flush=True)
        is_full = True

        def work_with_what_is_there():
            print(pool.request("GET", "/").status, flush(), flush=True)  # its files would be new
            logging.disable()

        in_children(work_with_what_is_there)
        late = ConnectionPool("127.0.0.1", port, name="late")
        print(late.request("GET", "/").status, pool.request("GET", "/").status, flush(),
              *(sample("pooledhttp_requests_total", pool=name, outcome="2xx") for name in ("late", "p")))
        is_full = False
        print(flush(), sample("pooledhttp_requests_total", pool="late", outcome="2xx"))
        print(metrics._bridge._has_failed)  # nothing was made anew for it
    """
    said = run(program, folder, server.port).splitlines()
    warnings = [line for line in said if line.startswith("WARNING")]
    assert len(warnings) == 4  # of three processes, one of which was well for a while
    assert all("less than a megabyte is free" in line for line in warnings)
    assert [line for line in said if line not in warnings] == [
        "200 False ['pooledhttp_names.txt']",
        "200 False",
        "True 1.0",
        "200 False",
        "200 200 False None 2.0",
        "True 1.0",
        "False",
    ]


@pytest.mark.parametrize(
    ("blocks", "block", "is_written"),
    [
        pytest.param((1 << 20, 1 << 20), (4096, 4096), True, id="room"),
        pytest.param((0, 0), (4096, 4096), True, id="no-limit"),  # as a file system in memory says it
        pytest.param((1 << 20, 1 << 20), (0, 4096), True, id="no-size-of-fragments"),
        pytest.param((1 << 20, 255), (4096, 4096), False, id="too-little-for-files"),
        pytest.param((1 << 20, 256), (4096, 4096), False, id="too-little-for-a-label"),
        pytest.param((1 << 20, 272), (4096, 4096), True, id="just-enough"),
        pytest.param(None, None, True, id="nobody-knows"),
    ],
)
def test_room_of_the_folder_is_asked_for_before_anything_is_made(
    folder: Path,
    server: ScriptedServer,
    blocks: tuple[int, int] | None,
    block: tuple[int, int] | None,
    is_written: bool,
) -> None:
    program = """
        logging.disable()
        real, (blocks, block) = os.statvfs, eval(sys.argv[2])

        def statvfs(path):
            found = list(real(path))
            (found[2], found[4]), (found[1], found[0]) = blocks, block
            return os.statvfs_result(found)

        if blocks is None:
            del os.statvfs
        else:
            os.statvfs = statvfs
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p")
        print(pool.request("GET", "/").status, flush(), sample("pooledhttp_requests_total", pool="p", outcome="2xx"))
    """
    said = run(program, folder, server.port, repr((blocks, block)))
    assert said == ("200 True 1.0\n" if is_written else "200 False None\n")


def test_label_that_cannot_be_introduced_costs_the_others_nothing_and_counts_are_taken_over(
    folder: Path, server: ScriptedServer
) -> None:
    program = """
        import errno
        from pooledhttp.metrics import flusher
        from pooledhttp.metrics.instruments import Instruments
        flusher.INTERVAL = 3600  # each look is one of these
        logging.disable()
        port = int(sys.argv[1])
        pool = ConnectionPool("127.0.0.1", port, name="p")
        pool.request("GET", "/")
        tenants = [ConnectionPool("127.0.0.1", port, name=f"tenant-{number}") for number in range(100)]
        assert flush()
        instruments, introduce, faults = metrics._bridge._instruments, Instruments.introduce, 2

        def introduce_at_last(instruments, label):
            global faults
            if label == "_other" and faults:
                faults -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            introduce(instruments, label)

        Instruments.introduce = introduce_at_last
        instruments._series.pop("_other")
        outcomes = []
        while not outcomes or not outcomes[-1]:
            metrics._bridge._renew_at = 0
            pool.request("GET", "/")
            outcomes.append(flush())
            print(outcomes[-1], sample("pooledhttp_requests_total", pool="p", outcome="2xx"))
        print(metrics._bridge._instruments is not instruments)
        bucket = lambda le: sample("pooledhttp_connection_use_seconds_bucket", pool="p", le=le)
        print(sample("pooledhttp_connection_use_seconds_count", pool="p"), bucket("+Inf"),
              abs(sample("pooledhttp_connection_use_seconds_sum", pool="p") - pool.stats().use.sum) < 1e-9,
              sample("pooledhttp_label_overflow_total"))
    """
    assert run(program, folder, server.port).splitlines() == [
        "False 2.0", "False 3.0", "True 4.0", "True", "4.0 4.0 True 2.0"
    ]  # fmt: skip


def test_instruments_that_go_on_failing_are_made_anew_ever_more_seldom(folder: Path) -> None:
    """prometheus_client forgets nothing that was ever made."""
    program = """
        import types
        import pooledhttp.metrics.bridge as room
        logging.disable()
        ConnectionPool("localhost", 80, name="p")
        now, made, Instruments = 0.0, [], room.Instruments
        room.time = types.SimpleNamespace(monotonic=lambda: now)
        bridge = metrics._bridge

        class Failing(Instruments):
            is_broken = True

            def __init__(self, before):
                made.append(now)
                super().__init__(before)

            def show(self, totals, *, has_gauges):
                if self.is_broken:
                    raise OSError("broken")
                super().show(totals, has_gauges=has_gauges)

        room.Instruments = Failing
        bridge._has_failed, bridge._renew_at, bridge._renew_after = True, 0.0, 1.0
        for now in range(1000):
            assert not bridge._look()
        print(made)
        Failing.is_broken = False
        for now in range(1000, 2000):
            bridge._look()
        print(made[9:])
    """
    assert run(program, folder).splitlines() == [
        "[0, 1, 3, 7, 15, 31, 63, 127, 255, 511, 811]", "[511, 811, 1111]"
    ]  # fmt: skip


def test_each_kind_of_trouble_is_told_and_again_when_it_comes_back(folder: Path) -> None:
    program = """
        logging.basicConfig(stream=sys.stdout, format="%(message)s")
        ConnectionPool("localhost", 80, name="p")
        import pooledhttp.metrics.bridge as room
        bridge, show = metrics._bridge, metrics._bridge._show
        troubles = [room._FolderIsFull("full"), room._FolderIsFull("full"), MemoryError("none"),
                    room._FileIsGone("gone"), None, room._FolderIsFull("full again")]

        def failing():
            fault = troubles.pop(0)
            if fault is not None:
                raise fault
            show()

        bridge._show = failing
        while troubles:
            bridge._look()
        del bridge._show
    """
    told = [line.partition("(")[2].partition(";")[0] for line in run(program, folder).splitlines()]
    assert told == ["full", "MemoryError: none", "gone", "full again"]


def test_relative_folder_stays_where_it_is(folder: Path, server: ScriptedServer) -> None:
    program = """
        os.chdir(sys.argv[2])
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = "metrics"
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p")
        pool.request("GET", "/")
        registry = multiprocess_registry()
        print(flush())
        os.chdir("/")
        pool.request("GET", "/")
        print(flush(), registry.get_sample_value("pooledhttp_requests_total", {"pool": "p", "outcome": "2xx"}))
    """
    assert run(program, folder, server.port, folder.parent) == "True\nTrue 2.0\n"


def test_nobody_waits_for_ever_for_a_lock_that_a_fork_has_left_taken(folder: Path, server: ScriptedServer) -> None:
    program = """
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p")
        pool.request("GET", "/")
        from pooledhttp.metrics import _bridge as bridge
        assert flush()
        is_held, end = threading.Event(), threading.Event()

        def hold():
            with bridge._lock:
                is_held.set()
                end.wait(20)

        holder = threading.Thread(target=hold)
        holder.start()
        is_held.wait()
        print(pool.request("GET", "/").status, flush(0.05))
        end.set()
        holder.join()
        print(flush(), sample("pooledhttp_requests_total", pool="p", outcome="2xx"))
    """
    assert run(program, folder, server.port) == "200 False\nTrue 2.0\n"


@pytest.mark.parametrize("has_pool", [True, False])
def test_child_works_though_a_lock_of_prometheus_client_is_taken_for_ever(
    folder: Path, server: ScriptedServer, has_pool: bool
) -> None:
    program = """
        from prometheus_client import values
        import pooledhttp.metrics.bridge as room
        room._PATIENCE = 0.1  # of the end of a process
        (lock,) = [cell.cell_contents for cell in values.ValueClass.inc.__closure__
                   if isinstance(cell.cell_contents, type(threading.Lock()))]
        port, has_pool = int(sys.argv[1]), sys.argv[2] == "True"

        def pool_named(name):
            return ConnectionPool("127.0.0.1", port, name=name)

        pool = pool_named("p") if has_pool else None

        def make_one():
            pool_named("new").close()
            print("made", flush=True)

        def write_down():
            (pool or pool_named("p")).prune()
            print(flush(0.1), flush=True)

        def end():
            (pool or pool_named("p")).prune()
            metrics._bridge.close()
            print("ended", flush=True)

        def work():
            print((pool or pool_named("p")).request("GET", "/").status)
            print(pool_named("new").request("GET", "/").status)
            print(flush(0.1), flush=True)

        with lock:  # as another thread would have it, in the middle of an inc()
            for each in (make_one, write_down, end, work):
                in_children(each)
        print(pool_named("p").request("GET", "/").status, flush())
    """
    said = run(program, folder, server.port, has_pool).splitlines()
    assert said == ["made", "False", "ended", "200", "200", "False", "200 True"]


# --- forks in the way of the thread -----------------------------------------------------------------------------------


def test_threads_that_fork_at_the_same_time_leave_no_lock_and_the_thread_at_work(
    folder: Path, server: ScriptedServer
) -> None:
    program = """
        import warnings
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        first_is_inside, second_is_over = threading.Event(), threading.Event()

        def pause():  # hooks run in the reverse order before a fork: behind that of the bridge, which comes later
            if threading.current_thread().name == "first":
                first_is_inside.set()
                second_is_over.wait(20)

        os.register_at_fork(before=pause)
        import pooledhttp.metrics.bridge as room
        room._FORK_PATIENCE = 0.05
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p")
        pool.request("GET", "/")
        assert flush()

        def fork():
            in_children(lambda: None)

        first = threading.Thread(target=fork, name="first")
        first.start()
        first_is_inside.wait(20)
        second = threading.Thread(target=fork)
        second.start()
        second.join()
        second_is_over.set()
        first.join()
        bridge = metrics._bridge
        print(bridge._flusher.is_running, bridge._lock.acquire(timeout=20))
        bridge._lock.release()
        pool.prune(everything=True)
        print(pool.request("GET", "/").status, flush(), bridge._forks)
    """
    assert run(program, folder, server.port) == "True True\n200 True {}\n"


def test_fork_in_the_handler_of_a_signal_during_a_fork_leaves_no_lock(folder: Path, server: ScriptedServer) -> None:
    program = """
        depth = 0

        def fork():
            global depth
            depth += 1
            in_children(lambda: None)

        def in_the_middle():  # hooks run in the reverse order before a fork: behind the bridge's, which comes later
            if depth == 1:
                signal.raise_signal(signal.SIGUSR1)

        os.register_at_fork(before=in_the_middle)
        signal.signal(signal.SIGUSR1, lambda *_: fork())
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p")
        pool.request("GET", "/")
        assert flush()
        fork()
        taken = []
        bridge = metrics._bridge

        def take():
            taken.append(bridge._lock.acquire(timeout=20))
            bridge._lock.release()

        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
        print(depth, taken, bridge._forks, pool.request("GET", "/").status, flush())
    """
    assert run(program, folder, server.port) == "2 [True] {} 200 True\n"


def test_fork_waits_for_a_look_that_is_under_way(folder: Path, server: ScriptedServer) -> None:
    program = """
        import warnings
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        import pooledhttp.metrics.bridge as room
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p")
        bridge, take, order = metrics._bridge, room._take, []
        is_inside, is_taking = threading.Event(), threading.Event()
        show = bridge._show

        def slow():
            is_inside.set()
            is_taking.wait(20)
            order.append("looked")
            show()

        bridge._show = slow
        room._FORK_PATIENCE = 20

        def taking(lock, held):
            is_taking.set()
            take(lock, held)
            order.append("taken")

        room._take = taking
        looker = threading.Thread(target=bridge._look)  # as one that a fork did not wait for has it
        looker.start()
        is_inside.wait(20)
        in_children(lambda: print(order, bridge._looking, bridge._instruments is None, flush=True))
        looker.join()
        print(order)
    """
    assert run(program, folder, server.port) == "['looked', 'taken'] None False\n['looked', 'taken']\n"


def test_child_that_a_fork_has_cut_out_of_a_look_makes_everything_anew(folder: Path, server: ScriptedServer) -> None:
    program = """
        import warnings
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        import pooledhttp.metrics.bridge as room
        room._FORK_PATIENCE = 0.01
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p")
        pool.request("GET", "/")
        assert flush()
        bridge, is_inside, end, show = metrics._bridge, threading.Event(), threading.Event(), metrics._bridge._show

        def slow():
            is_inside.set()
            end.wait(20)
            show()

        bridge._show = slow
        request = bridge._flusher.ask()
        is_inside.wait(20)
        del bridge._show

        def work():
            print(bridge._instruments is None, pool.request("GET", "/").status, flush(), flush=True)

        in_children(work)
        end.set()
        print(request.wait(20), pool.request("GET", "/").status, flush(),
              sample("pooledhttp_requests_total", pool="p", outcome="2xx"))
    """
    assert run(program, folder, server.port) == "True 200 True\nTrue 200 True 3.0\n"


def test_child_shows_nothing_of_what_its_parent_has_counted(folder: Path, server: ScriptedServer) -> None:
    program = """
        import gc
        port = int(sys.argv[1])
        gone = ConnectionPool("127.0.0.1", port, name="p")
        gone.request("GET", "/")
        gone.close()
        del gone
        gc.collect()
        pools = [ConnectionPool("127.0.0.1", port, name=f"p{number}") for number in range(100)]
        assert flush()

        def work():
            pools[0].request("GET", "/")
            ConnectionPool("127.0.0.1", port, name="p").request("GET", "/")
            print(flush(), flush=True)

        in_children(work)
        print(flush(), sample("pooledhttp_requests_total", pool="p", outcome="2xx"),
              sample("pooledhttp_connection_use_seconds_count", pool="p"), sample("pooledhttp_label_overflow_total"),
              0 < sample("pooledhttp_connection_use_seconds_sum", pool="p") < 20,
              sample("pooledhttp_connect_duration_seconds_count", pool="p"))
    """
    assert run(program, folder, server.port) == "True\nTrue 2.0 2.0 2.0 True 2.0\n"


@pytest.mark.parametrize("flushes", [True, False])
def test_child_that_asks_for_a_look_before_its_first_connection_is_in_the_gauges_afterwards(
    folder: Path, server: ScriptedServer, flushes: bool
) -> None:
    program = """
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p", maxsize=3)

        def shown():
            return (sample("pooledhttp_connections_max", pool="p"),
                    sample("pooledhttp_connections", pool="p", state="idle"), sample("pooledhttp_pools"))

        def work():
            if sys.argv[2] == "True":
                print(flush(), *shown())
            pool.request("GET", "/")
            print(flush(), *shown(), flush=True)

        in_children(work)
    """
    said = run(program, folder, server.port, flushes).splitlines()
    assert said == ["True 0.0 0.0 0.0"] * flushes + ["True 3.0 1.0 1.0"]


def test_child_that_has_made_no_connection_leaves_no_file(folder: Path, server: ScriptedServer) -> None:
    program = """
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p")

        def work():
            metrics._bridge.close()
            print(os.path.exists(f"{os.environ['PROMETHEUS_MULTIPROC_DIR']}/counter_{os.getpid()}.db"), flush=True)

        in_children(work)
        pool.request("GET", "/")
    """
    assert run(program, folder, server.port) == "False\n"


def test_exception_of_a_signal_in_the_way_of_a_fork_leaves_no_lock(folder: Path, server: ScriptedServer) -> None:
    program = """
        sys.unraisablehook = lambda _: None  # where the interpreter shows it
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p")
        pool.request("GET", "/")
        bridge = metrics._bridge
        ended = bridge._flusher

        def end(seconds):
            raise KeyboardInterrupt

        ended.end = end
        in_children(lambda: None)
        del ended.end
        ended.end(20)
        taken = []

        def take():
            taken.append(bridge._lock.acquire(timeout=20))

        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
        print(taken)
        sys.stdout.flush()
        os._exit(0)
    """
    assert run(program, folder, server.port) == "[True]\n"


def test_fork_in_the_thread_of_the_metrics_itself_does_no_harm(folder: Path, server: ScriptedServer) -> None:
    """A clock of the user is asked there, and may do anything."""
    program = """
        import time, warnings
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        shall_fork = []

        def clock():
            if shall_fork and threading.current_thread().name == "pooledhttp-metrics":
                shall_fork.clear()
                in_children(lambda: None)
            return time.monotonic()

        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p", clock=clock)
        pool.request("GET", "/")
        assert flush()
        shall_fork.append(True)
        flush()
        print(shall_fork, pool.request("GET", "/").status, flush(), metrics._bridge._lock.acquire(timeout=20),
              metrics._bridge._lock.release(), sample("pooledhttp_requests_total", pool="p", outcome="2xx"))
    """
    assert run(program, folder, server.port) == "[] 200 True True None 2.0\n"


def test_flush_is_not_lost_when_another_thread_forks(folder: Path, server: ScriptedServer) -> None:
    program = """
        import warnings
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p")
        pool.request("GET", "/")
        end = threading.Event()
        outcomes = set()

        def write_down():
            while not end.is_set():
                outcomes.add(flush(20))

        thread = threading.Thread(target=write_down)
        thread.start()
        for _ in range(300):
            child = os.fork()
            if not child:
                os._exit(0)
            os.waitpid(child, 0)
        end.set()
        thread.join()
        print(outcomes)
    """
    assert run(program, folder, server.port) == "{True}\n"


def test_flush_of_a_child_tells_the_truth(folder: Path, server: ScriptedServer) -> None:
    program = """
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p", maxsize=1, max_waiters=0)

        def work():
            with pool.connection():  # of the child's own
                try:
                    pool.request("GET", "/")
                except pooledhttp.PoolFull:
                    pass
            metrics._bridge.close()
            pool.request("GET", "/")  # over the connection that is there: nothing is started
            print(metrics._bridge._flusher.is_running, flush(),
                  sample("pooledhttp_requests_total", pool="p", outcome="2xx"),
                  sample("pooledhttp_acquires_total", pool="p", outcome="rejected"),
                  sample("pooledhttp_connections_max", pool="p"), flush=True)

        def without_a_connection():
            pools = [ConnectionPool("127.0.0.1", 1, name=f"p{number}") for number in range(120)]
            print(flush(), sample("pooledhttp_label_overflow_total"), flush=True)

        def without_threads():
            logging.disable()  # what it says is another test's
            def start(thread):
                raise RuntimeError("can't start new thread")
            threading.Thread.start = start
            pool.request("GET", "/")
            print(flush(), flush=True)

        for each in (work, without_a_connection, without_threads):
            in_children(each)
    """
    assert run(program, folder, server.port).splitlines() == ["False True 1.0 1.0 0.0", "True 22.0", "False"]


@pytest.mark.parametrize("forks", [True, False])
def test_counts_of_a_process_that_never_dials_are_shown(folder: Path, forks: bool) -> None:
    """All of its acquires are refused, or end in vain: that is what the alert on them is for."""
    program = """
        from time import monotonic
        closed = ConnectionPool("127.0.0.1", 1, name="closed")
        closed.close()
        end = threading.Event()

        def refused():
            for _ in range(3):
                try:
                    closed.request("GET", "/")
                except pooledhttp.PoolClosed:
                    pass
            until = monotonic() + 20
            while sample("pooledhttp_acquires_total", pool="closed", outcome="rejected") != 3 and monotonic() < until:
                end.wait(0.02)
            print(sample("pooledhttp_acquires_total", pool="closed", outcome="rejected"), flush=True)

        in_children(refused) if sys.argv[1] == "True" else refused()
    """
    assert run(program, folder, forks) == "3.0\n"


def test_child_that_has_only_counted_writes_that_down_at_its_end(folder: Path) -> None:
    """The thread of the metrics is not started by whoever is interrupted."""
    program = """
        closed = ConnectionPool("127.0.0.1", 1, name="closed")
        closed.close()

        def interrupted():
            raise KeyboardInterrupt

        def work():
            take, closed._take_or_claim = closed._take_or_claim, lambda *_: interrupted()
            try:
                closed.request("GET", "/")
            except KeyboardInterrupt:
                print(metrics._bridge._flusher, flush=True)
            metrics._bridge.close()

        in_children(work)
        print(sample("pooledhttp_acquires_total", pool="closed", outcome="error"))
    """
    assert run(program, folder) == "None\n1.0\n"


def test_child_has_no_thread_before_its_first_connection(folder: Path, server: ScriptedServer) -> None:
    program = """
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p")
        names = lambda: [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
        print(names())
        pool.request("GET", "/")
        print(names())
        def work():
            print(names())
            pool.request("GET", "/")
            print(names(), flush=True)
        sys.stdout.flush()
        in_children(work)
        print(names())
    """
    ours = "['pooledhttp-metrics']"
    assert run(program, folder, server.port).splitlines() == ["[]", ours, "[]", ours, ours]


def test_greenlets_share_the_thread_of_the_metrics(folder: Path, server: ScriptedServer) -> None:
    program = """
        from gevent import monkey
        monkey.patch_all()
        import os, sys, gevent
        from pooledhttp import ConnectionPool
        from pooledhttp.metrics import flush, multiprocess_registry
        pool = ConnectionPool("127.0.0.1", int(sys.argv[1]), name="p", maxsize=2)
        gevent.joinall([gevent.spawn(pool.request, "GET", "/") for _ in range(6)], raise_error=True)
        child = os.fork()
        if not child:
            pool.request("GET", "/")
            flush()
            os._exit(0)
        os.waitpid(child, 0)
        print(flush())
    """
    assert run_bare(program, folder, server.port) == "True\n"
    assert scraped(folder)("pooledhttp_requests_total", pool="p", outcome="2xx") == 7


# --- inside prometheus_client -----------------------------------------------------------------------------------------


def test_observations_are_added_many_at_a_time() -> None:
    counted = Histogram((0.1, 1.0))
    shown = Shown("seconds", "x", registry=None, buckets=(0.1, 1.0))
    distribution = Distribution(shown, (0.1, 1.0))
    for values in ([0.05, 0.1, 5.0], [0.5], []):
        counted.observe_all(values)
        distribution.show(counted.freeze(), counted.sum)
    buckets = {sample.labels["le"]: sample.value for family in shown.collect() for sample in family.samples
               if sample.name == "seconds_bucket"}  # fmt: skip
    total = next(sample.value for family in shown.collect() for sample in family.samples if sample.name.endswith("sum"))
    assert buckets == {"0.1": 2, "1.0": 3, "+Inf": 4}
    assert total == counted.sum == 5.65


def test_observations_are_added_one_by_one_to_a_histogram_with_another_inside() -> None:
    seen: list[float] = []

    class Another:
        def observe(self, seconds: float) -> None:
            seen.append(seconds)

    counted = Histogram((0.1, 1.0))
    counted.observe_all([0.05, 0.1, 4.85])
    Distribution(Another(), (0.1, 1.0)).show(counted.freeze(), counted.sum)  # type: ignore[arg-type]
    assert seen == [0.1, 0.1, 2.0]


def test_counter_that_went_down_for_a_moment_adds_nothing_twice() -> None:
    shown = CounterShown("events", "x", registry=None)
    number = Number(shown)
    for count in (3, 2, 3, 4):
        number.show(count)
    assert [
        sample.value for family in shown.collect() for sample in family.samples if sample.name == "events_total"
    ] == [4]
