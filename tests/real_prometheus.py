"""The Prometheus of this machine, and its tool, for tests.

`Prometheus` runs one on a free loopback port with a scratch folder, in a process group of its own.

On a laptop without them the tests skip, and say so.  Where POOLEDHTTP_REQUIRE_PROMETHEUS is set, as in CI, they fail.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pytest

from tests.waits import wait_until

BOUND = 30.0

REQUIRED = "POOLEDHTTP_REQUIRE_PROMETHEUS"


def find_prometheus() -> str:
    """Return the path of the server; skip the test, or fail it where Prometheus is demanded."""
    return _find("prometheus")


def find_promtool() -> str:
    """Return the path of promtool, which checks rules and runs their tests; skip or fail as above."""
    return _find("promtool")


def find_amtool() -> str:
    """Return the path of amtool, which checks what Alertmanager is told; skip or fail as above."""
    return _find("amtool", package="prometheus-alertmanager")


def _find(program: str, *, package: str = "prometheus") -> str:
    found = shutil.which(program)
    if found is None:
        text = f"there is no {program} on this machine (Debian, Ubuntu: apt-get install {package})"
        if os.environ.get(REQUIRED):
            pytest.fail(f"{text}, and {REQUIRED} demands it")
        pytest.skip(f"{text}: nothing was proved with a real Prometheus")
    return found


class Prometheus:
    """A Prometheus that scrapes once a second.

    Args:
        folder: Where its files may lie.
        targets: Addresses to scrape, by job.
        rules: Rule files to load.
    """

    def __init__(self, folder: Path, targets: Mapping[str, Sequence[str]], rules: Sequence[Path] = ()) -> None:
        self._program = find_prometheus()
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port: int = listener.getsockname()[1]
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(path) for path in rules],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": list(addresses)}]}
                for job, addresses in targets.items()
            ],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML

    def __enter__(self) -> Self:
        """Start it, and wait until it answers."""
        self._log = (self._folder / "prometheus.log").open("wb")
        self._process = subprocess.Popen(
            [self._program, f"--config.file={self._folder}/prometheus.yml", f"--storage.tsdb.path={self._folder}/data",
             f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=warn"],
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            wait_until(self._is_ready, pause=0.05)
        except BaseException as fault:
            self.__exit__()
            fault.add_note((self._folder / "prometheus.log").read_text(errors="replace"))
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(BOUND)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(BOUND)
        self._log.close()

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=BOUND) as answer:
                ready: bool = answer.status == 200
                return ready
        except OSError:
            assert self._process.poll() is None, "Prometheus has ended"
            return False

    def ask(self, what: str, **parameters: object) -> Any:  # JSON
        """Return the data of an answer of its API, like ``ask("query", query="up")``."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{what}?{urllib.parse.urlencode(parameters, doseq=True)}"
        try:
            with urllib.request.urlopen(url, timeout=BOUND) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as fault:
            raise AssertionError(f"{parameters}: {fault.read().decode(errors='replace')}") from None

    def value(self, query: str, at: float | None = None) -> float | None:
        """Return the one value of an instant query, or ``None`` where there is no series."""
        result = self.ask("query", query=query, **({} if at is None else {"time": at}))["result"]
        assert len(result) <= 1, result
        return float(result[0]["value"][1]) if result else None

    def values(self, query: str, label: str, at: float | None = None) -> dict[str, float]:
        """Return the values of an instant query by one of its labels."""
        result = self.ask("query", query=query, **({} if at is None else {"time": at}))["result"]
        return {series["metric"].get(label, ""): float(series["value"][1]) for series in result}
