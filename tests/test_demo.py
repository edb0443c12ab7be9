"""The command line and its demo: the whole of it in processes of its own, its parts here."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import random
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import pooledhttp
from pooledhttp import ConnectionPool, IncompleteRead, PoolManager, PoolStats, cli, demo
from pooledhttp.demo import Api, DemoOptions, Fault, Latencies, Ledger, Load, Row, Screen, Verdict, demonstration
from pooledhttp.demo import api as api_room
from pooledhttp.stats import Tally, freeze
from pooledhttp.testing import ResourceAudit
from tests.waits import wait_until

ROOT = Path(__file__).resolve().parent.parent
STRICT = ("-W", "error::ResourceWarning")
BOUND = 45.0


# --- the whole, in a process of its own -------------------------------------------------------------------------------


def command(*arguments: str) -> list[str]:
    return [sys.executable, *STRICT, "-m", "pooledhttp", *arguments]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **more}


def run_it(*arguments: str, prelude: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command line and wait for its end; `prelude` is Python that runs before it."""
    whole = command(*arguments)
    if prelude:
        code = f"import sys\n{prelude}\nfrom pooledhttp.cli import main\nsys.exit(main(sys.argv[1:]))"
        whole = [sys.executable, *STRICT, "-c", code, *arguments]
    return subprocess.run(
        whole,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command(*arguments),
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        # Reading its lines has no bound of its own: this one ends them.
        watchdog = threading.Timer(BOUND, process.kill)
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            watchdog.join()
            process.kill()


def read_until(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if match := re.search(pattern, line):
            return match
    raise AssertionError(f"no {pattern!r} in: {''.join(seen)}")


def number_in(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    assert match is not None, text
    return int(match[1])


NORMAL = ("demo", "--duration", "2", "--workers", "8", "--pool-size", "3", "--seed", "7")


@pytest.fixture(scope="module")
def normal() -> subprocess.CompletedProcess[str]:
    return run_it(*NORMAL)


@pytest.fixture(scope="module")
def faulty() -> subprocess.CompletedProcess[str]:
    return run_it(*NORMAL, "--faults")


def test_demo_ends_with_0_and_leaves_nothing_open(normal: subprocess.CompletedProcess[str]) -> None:
    assert normal.stderr == ""
    assert normal.returncode == 0, normal.stdout
    assert "all of it holds" in normal.stdout


def test_demo_reuses_more_than_99_per_cent(normal: subprocess.CompletedProcess[str]) -> None:
    assert re.search(r"ok   reuse (99\.\d\d|100\.00) %, which must be above 99 %", normal.stdout), normal.stdout


def test_demo_compares_its_numbers_with_its_own_metrics(normal: subprocess.CompletedProcess[str]) -> None:
    assert number_in(r"ok   metrics agree: (\d+) values compared", normal.stdout) > 100


def test_demo_compares_its_numbers_with_the_counts_of_the_api(normal: subprocess.CompletedProcess[str]) -> None:
    calls = number_in(r"summary: (\d+) calls", normal.stdout)
    answered = number_in(r"ok   the API counted the same: \d+ connections, (\d+) requests", normal.stdout)
    assert answered == calls + 2  # the two of the rule


def test_demo_shows_that_no_byte_of_the_refused_request_was_sent(normal: subprocess.CompletedProcess[str]) -> None:
    assert "GET /items/wrong/1024 was refused by UnreadResponse" in normal.stdout
    assert "the response to GET /items/first/1024 (200 OK) has not been read" in " ".join(normal.stdout.split())
    assert re.search(
        r"ok   the API received (\d+) bytes of the first request, 0 of the refused one, \1 of", normal.stdout
    )
    assert "ok   after read() the same connection went on" in normal.stdout


def test_demo_without_a_terminal_prints_a_plain_line_a_second(normal: subprocess.CompletedProcess[str]) -> None:
    assert "\x1b" not in normal.stdout
    line = r"^ +\d+ s +\d+ % +\d+ req/s  \d+ in use  \d+ idle  \d+ waiting  \d+ opened  .* % reused  p50 .* p95 .* p99 "
    assert re.search(line, normal.stdout, re.MULTILINE), normal.stdout


def test_demo_summary_has_a_row_an_origin_and_the_total(normal: subprocess.CompletedProcess[str]) -> None:
    labels = re.findall(r"^  (http  :\d+|https :\d+|total) .* (?:us|ms|s)$", normal.stdout, re.MULTILINE)
    assert [label[:5] for label in labels] == ["http ", "https", "total"]
    assert max(map(len, normal.stdout[normal.stdout.index("summary") :].splitlines())) <= 110


def test_faulty_demo_ends_with_0(faulty: subprocess.CompletedProcess[str]) -> None:
    assert faulty.stderr == ""
    assert faulty.returncode == 0, faulty.stdout


def test_faulty_demo_injects_every_kind(faulty: subprocess.CompletedProcess[str]) -> None:
    for fault in Fault:
        assert number_in(rf"the API misbehaved .*\b{fault} (\d+)", faulty.stdout) > 0


def test_faulty_demo_has_callers_see_as_many_incomplete_reads_as_were_truncated(
    faulty: subprocess.CompletedProcess[str],
) -> None:
    truncated = number_in(r"the API misbehaved .*truncated (\d+)", faulty.stdout)
    assert number_in(r"ok   callers saw (\d+) IncompleteRead", faulty.stdout) == truncated > 0
    assert number_in(r"connections ended .*truncated (\d+)", faulty.stdout) == truncated


def test_faulty_demo_hides_everything_else_from_callers(faulty: subprocess.CompletedProcess[str]) -> None:
    assert "ok   no call failed because of a close, a reset, a 408 or extra bytes" in faulty.stdout
    assert "IncompleteRead, 0 other errors, 0 answers of others" in faulty.stdout


def test_faulty_demo_accounts_for_every_connection_and_agrees_with_metrics(
    faulty: subprocess.CompletedProcess[str],
) -> None:
    assert "ok   metrics agree" in faulty.stdout
    assert "ok   every connection is accounted for" in faulty.stdout
    assert "ok   the API counted the same" in faulty.stdout


def test_serving_demo_can_be_scraped_until_sigterm() -> None:
    arguments = ("demo", "--duration", "1", "--workers", "4", "--pool-size", "1", "--serve", "--faults", "--seed", "3")
    with started(*arguments) as process:
        url = read_until(process, r"metrics  (http://\S+)")[1]
        read_until(process, "staying up")
        read_until(process, r" s light +\d+ req/s")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=10) as response:
            text = response.read().decode()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=BOUND)
    assert re.search(r'^pooledhttp_requests_total\{outcome="2xx",pool="127\.0\.0\.1:\d+"\} [1-9]', text, re.MULTILINE)
    assert err == ""
    assert process.returncode == 0, out
    assert "all of it holds" in out


def test_serving_demo_that_is_ended_early_still_sums_up() -> None:
    with started("demo", "--duration", "60", "--serve", "--no-https") as process:
        read_until(process, r"req/s")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=BOUND)
    assert (err, process.returncode) == ("", 0)
    assert "not judged, the load was cut short" in out


TROUBLES = {
    "saturated": (r'pooledhttp_acquires_total\{outcome="timeout",pool="[^"]+"\} [1-9]', "pending_acquires"),
    "stale": (r'pooledhttp_stale_connections_total\{outcome="raised",pool="[^"]+"\} [1-9]', 'outcome="retried"'),
    "refused": (r'pooledhttp_connect_failures_total\{pool="[^"]+",reason="refused"\} [1-9]', 'reason="dns"'),
    "leak": (r'pooledhttp_leaked_connections_total\{pool="[^"]+"\} ([2-9]|\d\d)', "oldest_lease_seconds"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_serving_demo_in_trouble_shows_it_and_its_checks_before_it(trouble: str) -> None:
    pattern, also = TROUBLES[trouble]
    arguments = ("--duration", "2", "--workers", "8", "--pool-size", "3", "--no-https", "--serve", "--quiet")
    with started("demo", *arguments, "--trouble", trouble) as process:
        address = read_until(process, r"(http://127\.0\.0\.1:\d+/metrics)")[1]
        read_until(process, "all of it holds")
        read_until(process, f"staying up, {trouble}")
        wait_until(lambda: bool(re.search(pattern, text_at(address))), pause=0.05)
        assert also in text_at(address)
        process.terminate()
        assert process.wait(BOUND) == 0


def text_at(address: str) -> str:
    with urllib.request.urlopen(address, timeout=BOUND) as answer:
        text: str = answer.read().decode()
        return text


def test_trouble_is_for_a_demo_that_stays_up(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["demo", "--trouble", "leak"])
    assert ended.value.code == 2
    assert "give --serve too" in capsys.readouterr().err


def test_interrupted_demo_ends_with_130() -> None:
    with started("demo", "--duration", "60", "--no-https") as process:
        read_until(process, r"req/s")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=BOUND)
    assert (err, process.returncode) == ("", 130)
    assert out.endswith("interrupted\n")


def on_a_terminal(*arguments: str, interrupt_at: bytes = b"") -> tuple[int, bytes]:
    """Run the command line on a terminal of its own; send SIGINT when it has written `interrupt_at`."""
    ours, theirs = pty.openpty()
    written = b""
    end = time.monotonic() + BOUND
    try:
        with subprocess.Popen(
            command(*arguments),
            env=environment(TERM="xterm", COLUMNS="80"),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        ) as process:
            os.close(theirs)
            theirs = -1
            try:
                while select.select([ours], [], [], max(0.0, end - time.monotonic()))[0]:
                    try:
                        written += os.read(ours, 65536)
                    except OSError:  # nobody has the other end open any more
                        break
                    if interrupt_at and interrupt_at in written:
                        interrupt_at = b""
                        process.send_signal(signal.SIGINT)
                return process.wait(max(0.1, end - time.monotonic())), written
            finally:
                process.kill()
    finally:
        os.close(ours)
        if theirs >= 0:
            os.close(theirs)


def test_demo_on_a_terminal_redraws_its_table_in_place_and_shows_the_cursor_again() -> None:
    status, written = on_a_terminal("demo", "--duration", "1.5", "--workers", "4", "--pool-size", "2")
    assert status == 0, written
    assert written.count(b"\x1b[?25l") == written.count(b"\x1b[?25h") == 1
    assert b"\x1b[6F\x1b[2K[" in written  # two lines, the titles, two origins, the total
    assert written.rfind(b"\x1b[2K") < written.find(b"\x1b[?25h") < written.find(b"summary")


def test_interrupted_live_demo_shows_the_cursor_again() -> None:
    status, written = on_a_terminal("demo", "--duration", "60", "--no-https", interrupt_at=b"\x1b[?25l")
    assert status == 130
    assert written.count(b"\x1b[?25h") == 1
    assert written.endswith(b"interrupted\r\n")


def test_plain_is_plain_on_a_terminal_too() -> None:
    status, written = on_a_terminal("demo", "--duration", "0.3", "--plain", "--faults", "--no-https", "--workers", "2")
    assert status == 0, written
    assert b"\x1b" not in written


def test_demo_without_trustme_says_so_in_one_line_and_goes_on_with_http() -> None:
    done = run_it(*NORMAL[:5], "--pool-size", "2", "--quiet", prelude="sys.modules['trustme'] = None")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "HTTP only: trustme is not installed" in done.stdout
    assert "https:" not in done.stdout


def test_demo_without_prometheus_client_says_what_to_install() -> None:
    done = run_it("demo", "--no-https", prelude="sys.modules['prometheus_client'] = None")
    assert (done.returncode, done.stderr) == (1, "")
    assert "/metrics needs prometheus_client" in done.stdout


def test_demo_that_finds_its_metrics_port_taken_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_it("demo", "--port", str(port), "--no-https")
    assert (done.returncode, done.stderr) == (1, "")
    assert f"/metrics cannot be served at 127.0.0.1:{port}: " in done.stdout


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["dance"], "invalid choice: 'dance'"),
        (
            ["demo", "--duration", "soon"],
            "--duration: must be a number of seconds, above 0 and at most 86400, not 'soon'",
        ),
        (["demo", "--duration", "0"], "--duration: must be a number of seconds"),
        (["demo", "--duration", "nan"], "--duration: must be a number of seconds"),
        (["demo", "--duration", "inf"], "--duration: must be a number of seconds"),
        (["demo", "--workers", "0"], "--workers: must be a whole number from 1 to 256, not '0'"),
        (["demo", "--workers", "many"], "--workers: must be a whole number from 1 to 256, not 'many'"),
        (["demo", "--pool-size", "2.5"], "--pool-size: must be a whole number from 1 to 256, not '2.5'"),
        (["demo", "--port", "65536"], "--port: must be a whole number from 0 to 65535, not '65536'"),
        (["demo", "--seed", "-1"], "--seed"),
        (["demo", "--fault-rate", "1"], "unrecognized arguments: --fault-rate"),
    ],
)
def test_wrong_arguments_are_named_and_end_with_2(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"pooledhttp {pooledhttp.__version__}\n"


def test_help_tells_every_option_and_the_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["demo", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for option in ("--duration", "--workers", "--pool-size", "--seed", "--no-https", "--faults", "--port", "--bind",
                   "--serve", "--trouble", "--plain", "--quiet"):  # fmt: skip
        assert option in text
    assert "Exit status: 0 if all of it holds" in " ".join(text.split())


def test_arguments_become_the_options_of_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[DemoOptions] = []

    def run(options: DemoOptions) -> int:
        asked.append(options)
        return 5

    monkeypatch.setattr(demo, "run", run)
    given = (
        "demo --duration 1.5 --workers 3 --pool-size 2 --seed 9 --no-https --faults --port 8 --bind 0.0.0.0 --serve "
        "--trouble leak --plain --quiet"
    )
    assert cli.main(given.split()) == 5
    assert cli.main(["demo"]) == 5
    assert asked == [
        DemoOptions(
            duration=1.5,
            workers=3,
            pool_size=2,
            seed=9,
            has_https=False,
            has_faults=True,
            port=8,
            address="0.0.0.0",
            stays_up=True,
            trouble="leak",
            is_plain=True,
            is_quiet=True,
        ),
        DemoOptions(),
    ]


# --- numbers and lines ------------------------------------------------------------------------------------------------


def stats_of(**counts: object) -> PoolStats:
    tally = Tally()
    for name, count in counts.items():
        if isinstance(count, Mapping):
            getattr(tally, name).update(count)
        else:
            setattr(tally, name, count)
    return freeze(tally, name="127.0.0.1:1", maxsize=8, idle=2)


def test_percentiles_are_within_one_per_cent() -> None:
    latencies = Latencies()
    for thousandth in range(1, 1001):
        latencies.observe(thousandth / 1000)
    for percent in (1, 50, 95, 99, 100):
        assert latencies.percentile(percent) == pytest.approx(percent / 100, rel=0.011)


def test_percentile_of_nothing_is_none() -> None:
    assert Latencies().percentile(50) is None


def test_duration_of_zero_counts_as_a_microsecond() -> None:
    latencies = Latencies()
    latencies.observe(0.0)
    assert latencies.percentile(99) == pytest.approx(1e-6, rel=0.011)


def test_latencies_add_up() -> None:
    one, other = Latencies(), Latencies()
    one.observe(0.001)
    other.observe(1.0)
    one.add(other)
    assert one.percentile(50) == pytest.approx(0.001, rel=0.011)
    assert one.percentile(100) == pytest.approx(1.0, rel=0.011)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.0000014, "1 us"),
        (0.000999, "999 us"),
        (0.00126, "1.3 ms"),
        (0.0994, "99.4 ms"),
        (0.0996, "100 ms"),
        (0.123, "123 ms"),
        (2.345, "2.35 s"),
        (1234.5, "1234.50 s"),
    ],
)
def test_duration_is_written_short(seconds: float | None, text: str) -> None:
    assert demo.format_seconds(seconds) == text


@pytest.mark.parametrize(("share", "text"), [(0.0, "0.00"), (0.98999, "98.99"), (0.99999, "99.99"), (1.0, "100.00")])
def test_share_is_never_rounded_up(share: float, text: str) -> None:
    assert demo.format_share(share) == text


def row(label: str = "https :40001", rate: float = 12345.6) -> Row:
    latencies = Latencies()
    for seconds in (0.0005, 0.0999, 0.999):
        latencies.observe(seconds)
    return Row(
        label=label,
        rate=rate,
        stats=stats_of(opened=12345, acquires={"reused": 990, "opened": 10}),
        latencies=latencies,
    )


def test_table_has_its_columns_in_line_and_fits_80() -> None:
    lines = demo.table([row(), row("total")])
    assert lines[0].split() == [
        *("origin", "req/s", "in", "use", "idle", "waiting", "opened", "reused", "%", "p50", "p95", "p99")
    ]
    assert {len(line) for line in lines} == {78}
    assert lines[2].split()[:7] == ["total", "12346", "0", "2", "0", "12345", "99.00"]


def test_plain_line_says_how_far_the_load_is() -> None:
    assert demo.plain_line(3.0, 0.3, row()).startswith(
        "   3 s  30 %  12346 req/s  0 in use  2 idle  0 waiting  12345 opened"
    )


def test_plain_line_of_a_light_load_has_no_end_to_tell() -> None:
    assert demo.plain_line(3.0, None, row()).startswith("   3 s light  ")


@pytest.mark.parametrize(
    ("elapsed", "line"),
    [
        (0.0, f"[{'.' * 30}]   0 %  0.0 of 10 s"),
        (5.0, f"[{'#' * 15}{'.' * 15}]  50 %  5.0 of 10 s"),
        (99.0, f"[{'#' * 30}] 100 %  10.0 of 10 s"),
    ],
)
def test_progress_is_a_bar_that_ends(elapsed: float, line: str) -> None:
    assert demo.progress_bar(elapsed, 10.0) == line


def test_counts_are_listed_where_there_are_any() -> None:
    assert demo.counted({"a": 1, "b": 0, "c": 2}) == "a 1, c 2"


def test_screen_draws_over_its_block_and_cuts_what_would_wrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "10")
    out = io.StringIO()
    screen = Screen(out, is_live=True)
    screen.show(["first", "x" * 20])
    screen.show(["second"])
    screen.settle()
    screen.settle()
    assert out.getvalue() == f"\x1b[?25l\x1b[2Kfirst\n\x1b[2K{'x' * 10}\n\x1b[2F\x1b[2Ksecond\n\x1b[?25h"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("out", "term", "is_live"),
    [
        (Terminal(), "xterm", True),
        (Terminal(), "dumb", False),
        (Terminal(), "", False),
        (io.StringIO(), "xterm", False),
    ],
)
def test_table_is_live_only_on_a_terminal_that_can(out: io.StringIO, term: str, is_live: bool) -> None:
    assert demo.can_be_live(out, {"TERM": term}) is is_live


# --- the checks -------------------------------------------------------------------------------------------------------


def test_expected_samples_are_cumulative_histograms_and_every_counter() -> None:
    tally = Tally()
    tally.wait.observe(0.002)
    tally.wait.observe(100.0)
    tally.closed.update({reason: 3 for reason in tally.closed if reason == "leftover"})
    found = demo.expected_samples(freeze(tally, name="a:1", maxsize=8, idle=2, leased=1))

    def bucket(bound: str) -> float:
        return found["pooledhttp_acquire_wait_seconds_bucket", (("le", bound), ("pool", "a:1"))]

    assert [bucket("0.001"), bucket("0.005"), bucket("10.0"), bucket("inf")] == [0, 1, 1, 2]
    assert found["pooledhttp_acquire_wait_seconds_sum", (("pool", "a:1"),)] == pytest.approx(100.002)
    assert found["pooledhttp_connections_closed_total", (("pool", "a:1"), ("reason", "leftover"))] == 3
    assert found["pooledhttp_connections", (("pool", "a:1"), ("state", "active"))] == 1


def test_difference_names_the_sample_and_both_values() -> None:
    key = ("pooledhttp_requests_total", (("outcome", "2xx"), ("pool", "a:1")))
    name = 'pooledhttp_requests_total{outcome="2xx",pool="a:1"}'
    assert demo.differences({key: 5.0}, {key: 5.0, ("other", ()): 1.0}) == []
    assert demo.differences({key: 5.0}, {key: 4.0}) == [f"{name} is 4, the pool has 5"]
    assert demo.differences({key: 5.0}, {}) == [f"{name} is missing, the pool has 5"]


def test_one_failed_check_spoils_the_verdict_and_tells_why() -> None:
    out = io.StringIO()
    verdict = Verdict(Screen(out, is_live=False))
    verdict.check(holds=True, text="one", otherwise=["hidden"])
    assert verdict.is_good
    verdict.check(holds=False, text="two", otherwise=["because"])
    verdict.check(holds=True, text="three")
    assert not verdict.is_good
    assert out.getvalue() == "  ok   one\n  FAIL two\n       because\n  ok   three\n"


@pytest.fixture
def api(audit: ResourceAudit) -> Iterator[Api]:
    with contextlib.closing(Api()) as server:
        yield server


@pytest.fixture
def manager(api: Api) -> Iterator[PoolManager]:
    with PoolManager(registry=None, maxsize=2) as made:
        yield made


def a_demo(api: Api, manager: PoolManager, *, has_faults: bool = False) -> tuple[demo.Demo, Verdict, io.StringIO]:
    out = io.StringIO()
    screen = Screen(out, is_live=False)
    options = DemoOptions(has_faults=has_faults)
    signals = demo.Signals()
    return demo.Demo(options, apis=[api], manager=manager, screen=screen, signals=signals), Verdict(screen), out


def a_load(api: Api, manager: PoolManager) -> tuple[Load, Ledger]:
    ledger = Ledger()
    return Load(manager, {api.origin: ledger}, workers=1, seed=1), ledger


def failed_checks(out: io.StringIO) -> list[str]:
    return re.findall(r"^  FAIL (.*)$", out.getvalue(), re.MULTILINE)


def summarize(
    made: demo.Demo,
    verdict: Verdict,
    monkeypatch: pytest.MonkeyPatch,
    *,
    change: Mapping[demo.Key, float] | None = None,
) -> None:
    """Sum up with a /metrics that agrees, but for what `change` holds."""
    shown = {
        key: value for stats in made.manager.stats().values() for key, value in demo.expected_samples(stats).items()
    }
    monkeypatch.setattr(demonstration, "scrape", lambda _: {**shown, **(change or {})})
    made.summarize(verdict, 0, is_whole=True)


def calls_through(made: demo.Demo, count: int) -> None:
    load = Load(made.manager, made.ledgers, workers=1, seed=1)
    (origin,) = made.ledgers
    for number in range(count):
        load.call(origin, "GET", f"t{number}", 64)


def test_summary_of_a_good_run_fails_no_check(api: Api, manager: PoolManager, monkeypatch: pytest.MonkeyPatch) -> None:
    made, verdict, out = a_demo(api, manager)
    calls_through(made, 150)
    summarize(made, verdict, monkeypatch)
    assert failed_checks(out) == []
    assert verdict.is_good


def test_summary_fails_when_metrics_differ(api: Api, manager: PoolManager, monkeypatch: pytest.MonkeyPatch) -> None:
    made, verdict, out = a_demo(api, manager)
    calls_through(made, 150)
    key = ("pooledhttp_leaked_connections_total", (("pool", f"127.0.0.1:{api.port}"),))
    summarize(made, verdict, monkeypatch, change={key: 1.0})
    (failed,) = failed_checks(out)
    assert re.fullmatch(r"/metrics differs in 1 of \d+ values", failed)
    assert "is 1, the pool has 0" in out.getvalue()


def test_summary_fails_when_reuse_is_low(api: Api, manager: PoolManager, monkeypatch: pytest.MonkeyPatch) -> None:
    made, verdict, out = a_demo(api, manager)
    calls_through(made, 100)
    summarize(made, verdict, monkeypatch)
    assert failed_checks(out) == ["reuse 99.00 %, which must be above 99 %"]
    assert "100 acquires for 1 connections" in out.getvalue()


def test_summary_fails_when_the_api_counted_otherwise(
    api: Api, manager: PoolManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, verdict, out = a_demo(api, manager)
    calls_through(made, 150)
    api.answered += 1
    summarize(made, verdict, monkeypatch)
    (failure,) = failed_checks(out)
    assert failure.startswith(
        "the API accepted 1 connections and answered 151 requests; the pools opened 1 and sent 150"
    )


def test_summary_fails_when_a_connection_is_still_lent(
    api: Api, manager: PoolManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, verdict, out = a_demo(api, manager)
    calls_through(made, 150)
    with manager.connection(api.origin):
        summarize(made, verdict, monkeypatch)
    assert failed_checks(out)[-1] == "every connection is accounted for: 1 opened = 0 ended + 0 idle"
    assert "1 leased, 0 opening, 0 waiting" in out.getvalue()


def test_summary_fails_when_callers_saw_another_number_of_truncations(
    api: Api, manager: PoolManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, verdict, out = a_demo(api, manager, has_faults=True)
    calls_through(made, 150)
    api.faults[Fault.TRUNCATED] = 1
    summarize(made, verdict, monkeypatch)
    assert failed_checks(out) == ["callers saw 0 IncompleteRead, the API truncated 1 answers"]


def test_summary_fails_when_a_call_failed_or_got_the_answer_of_another(
    api: Api, manager: PoolManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, verdict, out = a_demo(api, manager)
    calls_through(made, 150)
    ledger = made.ledgers[api.origin]
    ledger.failures["ConnectionResetError"] += 2
    ledger.truncated += 1
    ledger.foreign += 1
    ledger.example = "GET it: gone"
    summarize(made, verdict, monkeypatch)
    assert failed_checks(out) == [
        "3 calls failed: ConnectionResetError 2, IncompleteRead 1",
        "1 answers belonged to another request",
    ]
    assert out.getvalue().count("       GET it: gone") == 2


def test_rule_is_shown_on_a_lent_connection(api: Api, manager: PoolManager) -> None:
    made, verdict, out = a_demo(api, manager)
    made.show_the_rule(verdict)
    assert verdict.is_good
    assert api.answered == made.raw_exchanges == 2
    assert "0 of the refused one" in out.getvalue()


def test_rule_that_is_not_enforced_is_noticed(api: Api, manager: PoolManager, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []

    class Lax(pooledhttp.HTTPConnection):
        def request(self, method, url, *args, **keywords) -> None:
            if "wrong" in url:
                sent.append(url)
                self.sock.sendall(b"GET /items/wrong/1024 HTTP/1.1\r\n\r\n")
            else:
                super().request(method, url, *args, **keywords)

    @contextlib.contextmanager
    def connection(url: str, timeout: float) -> Iterator[Lax]:
        conn = Lax("127.0.0.1", api.port, timeout=timeout)
        with contextlib.closing(conn):
            yield conn

    made, verdict, out = a_demo(api, manager)
    monkeypatch.setattr(manager, "connection", connection)
    made.show_the_rule(verdict)
    assert sent == ["/items/wrong/1024"]
    assert not verdict.is_good
    assert "no UnreadResponse was raised" in failed_checks(out)


# --- the API ----------------------------------------------------------------------------------------------------------


def misbehaving(fault: Fault) -> Api:
    """Return an API with one fault, for its first answer."""
    api = Api(seed="1")
    faults = iter([fault])
    api._fault = lambda choice, size: next(faults, None)  # type: ignore[method-assign]  # the choice is the point
    return api


def prune_until_found(pool: ConnectionPool) -> None:
    """Look at the idle connection until it is found dead."""
    end = time.monotonic() + 10
    while not pool.prune():
        assert time.monotonic() < end


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault.CLOSED, "stale_eof"),
        (Fault.RESET, "stale_reset"),
        (Fault.TIMEOUT_408, "stale_408"),
    ],
)
def test_api_ends_an_idle_connection(audit: ResourceAudit, fault: Fault, reason: str) -> None:
    with (
        contextlib.closing(misbehaving(fault)) as api,
        ConnectionPool("127.0.0.1", api.port, registry=None) as pool,
    ):
        audit.watch(pool)
        assert pool.request("GET", "/items/a/64", timeout=10).data == demo.content_of(b"a", 64)
        prune_until_found(pool)
        assert pool.request("GET", "/items/b/64", timeout=10).resends == 0
        assert pool.stats().closed[reason] == 1
        assert (api.faults, api.accepted, api.answered) == (Counter({fault: 1}), 2, 2)


def test_api_writes_bytes_behind_an_answer(audit: ResourceAudit) -> None:
    with (
        contextlib.closing(misbehaving(Fault.EXTRA)) as api,
        ConnectionPool("127.0.0.1", api.port, registry=None) as pool,
    ):
        audit.watch(pool)
        assert pool.request("GET", "/items/a/64", timeout=10).data == demo.content_of(b"a", 64)
        assert pool.request("GET", "/items/b/64", timeout=10).data == demo.content_of(b"b", 64)
        assert pool.stats().closed["leftover"] == 1


@pytest.mark.parametrize("size", [64, 131072])
def test_api_truncates_a_body_of_either_framing(audit: ResourceAudit, size: int) -> None:
    with (
        contextlib.closing(misbehaving(Fault.TRUNCATED)) as api,
        ConnectionPool("127.0.0.1", api.port, registry=None) as pool,
    ):
        audit.watch(pool)
        with pytest.raises(IncompleteRead):
            pool.request("GET", f"/items/a/{size}", timeout=10)
        assert pool.request("GET", f"/items/b/{size}", timeout=10).data == demo.content_of(b"b", size)


def test_api_that_has_settled_misbehaves_no_more(audit: ResourceAudit) -> None:
    with (
        contextlib.closing(Api(seed="1")) as api,
        ConnectionPool("127.0.0.1", api.port, registry=None) as pool,
    ):
        audit.watch(pool)
        api.settle()
        for number in range(100):
            pool.request("GET", f"/items/{number}/64", timeout=10)
        assert (api.faults, api.accepted) == (Counter(), 1)


def test_api_that_does_not_settle_says_so(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_room, "_CLOSE_SECONDS", 0.01)
    api._at_work = 1
    with pytest.raises(TimeoutError, match="still busy with 1 requests"):
        api.settle()


def test_api_chooses_the_same_faults_for_the_same_seed_and_only_some(audit: ResourceAudit) -> None:
    with contextlib.closing(Api(seed="1")) as api:
        chosen = [[api._fault(choice, 64) for _ in range(1000)] for choice in (random.Random("s"), random.Random("s"))]
        assert chosen[0] == chosen[1]
        assert set(chosen[0]) == {*Fault, None}
        assert chosen[0].count(None) > 800
        large = random.Random("s")
        of_large = {api._fault(large, 100_000) for _ in range(1000)}
        assert of_large == {Fault.CLOSED, Fault.TIMEOUT_408, Fault.TRUNCATED, None}


def test_api_refuses_what_it_does_not_know(api: Api, manager: PoolManager) -> None:
    assert manager.request("GET", f"{api.origin}/elsewhere", timeout=10).status == 400


def test_api_reads_a_request_that_comes_in_pieces(api: Api) -> None:
    with socket.create_connection(("127.0.0.1", api.port), 10) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in (b"POST /items/a/3 HTTP/1.1\r\n", b"Content-Length: 3\r\n\r\nx", b"yz"):
            before = api.received_bytes
            sock.sendall(piece)
            end = time.monotonic() + 10
            while api.received_bytes == before:
                assert time.monotonic() < end
        assert sock.recv(1000).endswith(b"\r\n\r\nxyz")


@pytest.mark.parametrize("sent", [b"GET /items/a", b"POST /items/a/3 HTTP/1.1\r\nContent-Length: 3\r\n\r\nx"])
def test_api_survives_a_client_that_leaves_in_the_middle(api: Api, manager: PoolManager, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", api.port), 10) as sock:
        sock.sendall(sent)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1000) == b""
    assert manager.request("GET", f"{api.origin}/items/a/64", timeout=10).status == 200


def test_api_that_closes_ends_the_connections_it_has(audit: ResourceAudit) -> None:
    with contextlib.closing(Api()) as api, socket.create_connection(("127.0.0.1", api.port), 10) as sock:
        sock.sendall(b"GET /items/a/8 HTTP/1.1\r\n\r\n")
        assert sock.recv(1000).endswith(b"a a a a ")
        api.close()
        assert sock.recv(1000) == b""


def test_api_that_closes_does_not_wait_for_a_handshake(audit: ResourceAudit) -> None:
    server_tls, _ = demo.make_tls()
    with contextlib.closing(Api(tls=server_tls)) as api, socket.create_connection(("127.0.0.1", api.port), 10) as sock:
        sock.settimeout(10)
        api.close()
        assert sock.recv(1000) == b""


def test_client_of_the_demo_trusts_only_the_authority_of_the_run(audit: ResourceAudit) -> None:
    server_tls, client_tls = demo.make_tls()
    _, stranger = demo.make_tls()
    with contextlib.closing(Api(tls=server_tls)) as api:
        with ConnectionPool("127.0.0.1", api.port, scheme="https", ssl_context=client_tls, registry=None) as pool:
            assert pool.request("GET", "/items/a/64", timeout=10).status == 200
        pool = ConnectionPool("127.0.0.1", api.port, scheme="https", ssl_context=stranger, registry=None)
        with pool, pytest.raises(ssl.SSLCertVerificationError):
            pool.request("GET", "/items/a/64", timeout=10)


# --- the workers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["GET", "POST", "STREAM"])
def test_worker_writes_down_a_call_that_succeeds(api: Api, manager: PoolManager, kind: str) -> None:
    load, ledger = a_load(api, manager)
    load.call(api.origin, kind, "token", 100_000)
    assert (ledger.calls, ledger.truncated, ledger.foreign, ledger.failures, ledger.example) == (1, 0, 0, Counter(), "")
    assert ledger.latencies.percentile(50) is not None


def test_worker_writes_down_an_answer_that_is_not_its_own(
    api: Api, manager: PoolManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, ledger = a_load(api, manager)
    monkeypatch.setattr(load, "_exchange", lambda *_: (200, b"poison"))
    load.call(api.origin, "GET", "token", 64)
    assert (ledger.calls, ledger.foreign) == (1, 1)
    assert ledger.example == f"GET {api.origin}: 200, 6 bytes: b'poison'"


def test_worker_writes_down_what_kind_of_error_it_saw(api: Api, manager: PoolManager) -> None:
    load, ledger = a_load(api, manager)
    manager.close()
    load.call(api.origin, "GET", "token", 64)
    load.call(api.origin, "GET", "token", 64)
    assert (ledger.calls, ledger.failures) == (2, Counter(PoolClosed=2))
    assert ledger.example.startswith(f"GET {api.origin}: PoolClosed: ")


def test_worker_counts_a_truncated_answer_apart(audit: ResourceAudit) -> None:
    with contextlib.closing(misbehaving(Fault.TRUNCATED)) as api, PoolManager(registry=None) as manager:
        load, ledger = a_load(api, manager)
        load.call(api.origin, "STREAM", "token", 131072)
        load.call(api.origin, "STREAM", "token", 131072)
        assert (ledger.calls, ledger.truncated, ledger.failures) == (2, 1, Counter())


def test_ledgers_add_up_and_keep_the_first_example() -> None:
    one, other = Ledger(), Ledger()
    one.calls, other.calls = 2, 3
    other.example = "this"
    total = demo.total_of([one, other, other])
    assert (total.calls, total.example) == (8, "this")


# --- signals ----------------------------------------------------------------------------------------------------------


def test_first_signal_is_a_wish_and_the_second_an_order() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with demo.Signals() as signals:
        assert not signals.is_interrupted
        signal.raise_signal(signal.SIGTERM)
        assert signals.is_interrupted
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_second_signal_ends_the_demo_with_130_and_everything_closed(
    audit: ResourceAudit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo.Demo, "settle", interrupted)
    out = io.StringIO()
    assert demo.run(DemoOptions(duration=0.1, workers=2, has_https=False, is_quiet=True), out=out) == 130
    assert out.getvalue().endswith("interrupted\n")


def test_run_that_does_not_hold_ends_with_1(audit: ResourceAudit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demonstration, "_LEAST_REUSE", 1.0)
    out = io.StringIO()
    assert demo.run(DemoOptions(duration=0.1, workers=2, has_https=False, is_quiet=True), out=out) == 1
    assert out.getvalue().endswith("NOT ALL OF IT HOLDS: see FAIL above\n")
