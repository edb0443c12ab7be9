"""The interpreter's own tests of ``http.client``, unchanged, run against `pooledhttp.httplib`.

Nothing of them is shipped: the file is read from the interpreter that runs the tests, and executed with an import that
answers its own requests for ``http.client`` with our module.  Everything else that it imports stays real.

`DIFFERENT` lists the tests that we fail on purpose, each with its reason, `INSIDE` those that reach for private parts
which we do not have, and `MISSING` those that show what is still to be built.  A test that passes although it is listed
fails here, so that the lists stay true.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib.util
import io
import signal
import sys
import types
import unittest
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

import pytest

from pooledhttp import httplib

SECONDS = 10  # for one test of theirs

CUT_OFF = "a head that the peer cut off is no answer: what is missing may be the fields that matter"
SHORT = "read(n) and readinto() raise IncompleteRead where the body was cut off, not only read()"
FILE = "a regular file goes with its Content-Length, as httplib documents, not in chunks"

DIFFERENT: Mapping[str, str] = {
    "BasicTest.test_early_eof": CUT_OFF,
    "HeaderTests.test_headers_debuglevel": CUT_OFF,
    "BasicTest.test_partial_reads_incomplete_body": SHORT,
    "BasicTest.test_partial_readintos_incomplete_body": SHORT,
    "BasicTest.test_send_file": FILE,
    "RequestBodyTest.test_binary_file_body": FILE,
}

BUFFERED = "looks into response.fp"
VALIDATORS = "overrides a private validator; one writer checks everything that goes out"

INSIDE: Mapping[str, str] = {
    "BasicTest.test_error_leak": "looks into response.fp",
    "TunnelTests.test_set_tunnel_host_port_headers": "reads conn._tunnel_host",
    "TunnelTests.test_tunnel_connect_single_send_connection_setup": "replaces send() to see CONNECT pass through it",
    "BasicTest.test_putrequest_override_domain_validation": VALIDATORS,
    "BasicTest.test_putrequest_override_encoding": VALIDATORS,
    "BasicTest.test_putrequest_override_host_validation": VALIDATORS,
    "BasicTest.test_too_many_headers": "reads client._MAXHEADERS",
    "HeaderTests.test_auto_headers": "replaces conn._buffer",
    "HeaderTests.test_content_length_0": "replaces conn._buffer",
    "HeaderTests.test_putheader": "reads conn._buffer",
    "OfflineTest.test_all": "demands that everything says it comes from the module http.client",
    **{
        f"{case}.{name}": BUFFERED
        for case in ("ExtendedReadTest", "ExtendedReadTestChunked", "ExtendedReadTestContentLengthKnown")
        for name in (
            "test_peek",
            "test_peek_0",
            "test_read1",
            "test_read1_0",
            "test_read1_bounded",
            "test_read1_unbounded",
            "test_readline",
            "test_readline_without_limit",
        )
    },
}


def _theirs() -> types.ModuleType | None:
    """Execute the interpreter's test file against our module; ``None`` where the interpreter came without it."""
    with contextlib.suppress(ModuleNotFoundError):
        spec = importlib.util.find_spec("test.test_httplib")
        if spec is not None and spec.origin is not None:
            return _executed(Path(spec.origin))
    return None


def _executed(path: Path) -> types.ModuleType:
    imported = builtins.__import__

    def answering(
        name: str,
        globals: Mapping[str, object] | None = None,  # noqa: A002  # the signature of __import__
        locals: Mapping[str, object] | None = None,  # noqa: A002  # as above
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> object:
        module = imported(name, globals, locals, fromlist, level)
        if name == "http.client":
            return httplib if fromlist else types.SimpleNamespace(client=httplib)
        if name == "http" and "client" in (fromlist or ()):
            return types.SimpleNamespace(**{**vars(module), "client": httplib})
        return module

    theirs = types.ModuleType("their_test_httplib")
    theirs.__file__ = str(path)
    vars(theirs)["__builtins__"] = {**vars(builtins), "__import__": answering}
    sys.modules[theirs.__name__] = theirs  # unittest looks there for a test's module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(path.read_text(encoding="utf-8"), path, "exec"), vars(theirs))
    return theirs


def _flattened(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from _flattened(test)
        else:
            yield test


THEIRS = _theirs()
TESTS = {} if THEIRS is None else {
    test.id().split(".", 1)[1]: test for test in _flattened(unittest.defaultTestLoader.loadTestsFromModule(THEIRS))
}  # fmt: skip


def _out_of_time(signum: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"their test took longer than {SECONDS} s")


def _outcome(test: unittest.TestCase) -> unittest.TestResult:
    """Run one of their tests, within bounds, without its output and warnings."""
    result = unittest.TestResult()
    previous = signal.signal(signal.SIGALRM, _out_of_time)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            test.run(result)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    return result


def test_interpreter_has_its_test_package() -> None:
    if THEIRS is None:
        pytest.skip(f"{sys.executable} came without its package `test`: its tests of http.client were not run")
    assert len(TESTS) > 100


@pytest.mark.parametrize("name", sorted(TESTS))
def test_stdlib(name: str) -> None:
    result = _outcome(TESTS[name])
    if result.skipped:
        pytest.skip(result.skipped[0][1])  # their own reason, such as a server on the internet
    problems = [text for _, text in result.errors + result.failures]
    reason = DIFFERENT.get(name) or INSIDE.get(name)
    if reason is None:
        assert not problems, problems[0]
    else:
        assert problems, f"passes now, although it is listed: {reason}"


def test_listed_tests_exist_in_some_interpreter() -> None:
    known = {name.split(".")[0] for name in TESTS}
    if known:
        assert {name.split(".")[0] for name in DIFFERENT} <= known
