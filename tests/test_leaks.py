"""The parts that report a lease that lasts too long: a stack without frames, its text, and the thread that looks.

What a pool makes of them stands in test_ownership.py.  The thread is one for the whole process; the tests here give it
things to look at that are no pools, and wait for it to look.
"""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pooledhttp import leaks, log
from pooledhttp.leaks import Watcher, call_stack, render
from pooledhttp.testing import ResourceAudit

BOUND = 10.0


# --- the stack --------------------------------------------------------------------------------------------------------


def stand_here() -> leaks.Stack:
    return call_stack()


def test_stack_reads_like_a_traceback_with_the_innermost_line_last() -> None:
    text = render(stand_here())
    *_, outer_file, outer_line, inner_file, inner_line = text.splitlines()
    name = test_stack_reads_like_a_traceback_with_the_innermost_line_last.__name__
    number = stand_here.__code__.co_firstlineno + 1
    assert outer_file.startswith(f'    File "{__file__}", line ')
    assert outer_file.endswith(f", in {name}")
    assert outer_line == "      text = render(stand_here())"
    assert inner_file == f'    File "{__file__}", line {number}, in stand_here'
    assert inner_line == "      return call_stack()"


def test_frames_of_the_package_itself_are_left_out() -> None:
    namespace: dict[str, Callable[[], leaks.Stack]] = {}
    source = "from pooledhttp.leaks import call_stack\ndef inner():\n    return call_stack()\n"
    exec(compile(source, leaks.__file__.replace("leaks.py", "pool.py"), "exec"), namespace)
    text = render(namespace["inner"]())
    assert ", in inner" not in text
    assert f", in {test_frames_of_the_package_itself_are_left_out.__name__}" in text


def test_source_that_cannot_be_had_is_left_out() -> None:
    namespace: dict[str, Callable[[], leaks.Stack]] = {}
    source = "from pooledhttp.leaks import call_stack\ndef typed_in():\n    return call_stack()\n"
    exec(compile(source, "<console>", "exec"), namespace)
    assert render(namespace["typed_in"]()).endswith('    File "<console>", line 3, in typed_in')


def test_method_is_named_with_its_class() -> None:
    class Borrower:
        def stand(self) -> leaks.Stack:
            return call_stack()

    assert ".Borrower.stand\n" in render(Borrower().stand())


def test_deep_stack_is_cut_at_its_outer_end() -> None:
    def descend(depth: int) -> leaks.Stack:
        return descend(depth - 1) if depth else stand_here()

    stack = descend(100)
    assert len(stack) == 32
    assert render(stack).splitlines()[-2].endswith(", in stand_here")


def test_stack_of_a_thread_that_begins_here_ends_here() -> None:
    stacks: list[leaks.Stack] = []
    thread = threading.Thread(target=lambda: stacks.append(call_stack()))
    thread.start()
    thread.join(BOUND)
    assert 2 <= len(stacks[0]) < 10


# --- the log ----------------------------------------------------------------------------------------------------------


def test_log_takes_texts_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pooledhttp")
    log.warning("GET /100%s")
    log.info("GET /%d")
    assert [(record.name, record.levelname, record.getMessage()) for record in caplog.records] == [
        ("pooledhttp", "WARNING", "GET /100%s"),
        ("pooledhttp", "INFO", "GET /%d"),
    ]


# --- the thread that looks --------------------------------------------------------------------------------------------


class Looked:
    """Something to look at: notes each look, and says when to look again."""

    def __init__(self, *answers: float | None, name: str = "", diary: list[str] | None = None) -> None:
        self.answers = list(answers)
        self.name = name
        self.diary = [] if diary is None else diary
        self.seen = threading.Event()

    def report_leaks(self) -> float | None:
        self.diary.append(self.name)
        answer = self.answers.pop(0) if self.answers else None
        if not self.answers:
            self.seen.set()
        return answer


@pytest.fixture
def watcher(audit: ResourceAudit) -> Iterator[Watcher]:
    """One of the test's own; the audit waits for the end of its thread."""
    made = Watcher()
    yield made
    with made._changed:
        made._due.clear()
        made._changed.notify_all()


def thread_of(watcher: Watcher) -> threading.Thread:
    thread = watcher._thread
    assert thread is not None
    return thread


def test_thread_looks_when_the_time_has_come_and_ends_when_nothing_is_left(watcher: Watcher) -> None:
    looked = Looked(None)
    watcher.watch(looked, 0.01)
    thread = thread_of(watcher)
    assert (thread.name, thread.daemon) == ("pooledhttp-leaks", True)
    assert looked.seen.wait(BOUND)
    thread.join(BOUND)
    assert not thread.is_alive()
    assert watcher._thread is None


def test_thread_looks_again_for_as_long_as_it_is_asked_to(watcher: Watcher) -> None:
    looked = Looked(0.01, 0.0, 0.01, None)
    watcher.watch(looked, 0.01)
    assert looked.seen.wait(BOUND)
    assert len(looked.diary) == 4


def test_what_is_due_first_is_looked_at_first(watcher: Watcher) -> None:
    diary: list[str] = []
    later, sooner = Looked(None, name="later", diary=diary), Looked(None, name="sooner", diary=diary)
    watcher.watch(later, 0.2)
    watcher.watch(sooner, 0.01)  # wakes the thread, which would sleep for longer
    assert sooner.seen.wait(BOUND)
    assert later.seen.wait(BOUND)
    assert diary == ["sooner", "later"]


def test_one_thread_looks_at_everything_and_another_begins_when_it_has_ended(watcher: Watcher) -> None:
    many = [Looked(None) for _ in range(5)]
    for looked in many:
        watcher.watch(looked, 0.05)
    first = thread_of(watcher)
    assert sum(thread.name == "pooledhttp-leaks" for thread in threading.enumerate()) == 1
    for looked in many:
        assert looked.seen.wait(BOUND)
    first.join(BOUND)
    again = Looked(None)
    watcher.watch(again, 0.01)
    assert thread_of(watcher) is not first
    assert again.seen.wait(BOUND)


def test_what_is_forgotten_is_not_looked_at_and_the_others_are(watcher: Watcher) -> None:
    diary: list[str] = []
    forgotten, other = Looked(None, name="forgotten", diary=diary), Looked(None, name="other", diary=diary)
    watcher.watch(forgotten, 0.05)
    watcher.watch(other, 0.1)
    watcher.forget(forgotten)
    assert other.seen.wait(BOUND)
    assert diary == ["other"]


def test_thread_ends_at_once_when_the_last_thing_is_forgotten(watcher: Watcher) -> None:
    looked = Looked(None)
    watcher.watch(looked, 3600)
    thread = thread_of(watcher)
    watcher.forget(looked)
    thread.join(BOUND)
    assert not thread.is_alive()


def test_pool_may_be_closed_by_the_garbage_collector_in_the_middle_of_watching_another(
    watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by somebody's ``__del__``; here, while the thread is being made."""
    looked, other = Looked(None), Looked(None)
    make = threading.Thread

    def forget_and_make(**settings: Any) -> threading.Thread:
        watcher.forget(other)
        return make(**settings)

    monkeypatch.setattr(threading, "Thread", forget_and_make)
    assert watcher.watch(looked, 0.01)
    assert looked.seen.wait(BOUND)


def test_nothing_is_kept_alive_by_being_watched(watcher: Watcher) -> None:
    looked, other = Looked(None), Looked(None)
    watcher.watch(looked, 0.02)
    watcher.watch(other, 0.04)
    gone = weakref.ref(looked)
    del looked
    gc.collect()
    assert gone() is None
    assert other.seen.wait(BOUND)  # and what is gone is passed over


def test_nothing_is_kept_alive_by_having_been_looked_at(watcher: Watcher) -> None:
    looked, other = Looked(3600.0), Looked(3600.0)
    watcher.watch(looked, 0.01)
    assert looked.seen.wait(BOUND)
    watcher.watch(other, 0.01)
    assert other.seen.wait(BOUND)  # by now it has done with the first
    gone = weakref.ref(looked)
    del looked
    gc.collect()
    assert gone() is None


def test_look_that_fails_does_not_end_the_looking(watcher: Watcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter of the log may raise, or the clock of a pool: neither the pool nor the others stay unwatched."""
    shown: list[BaseException | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda caught: shown.append(caught.exc_value))
    monkeypatch.setattr(leaks, "_AFTER_FAULT", 0.02, raising=False)

    class Failing(Looked):
        def report_leaks(self) -> float | None:
            answer = super().report_leaks()
            if len(self.diary) == 1:
                raise ZeroDivisionError
            return answer

    failing, other = Failing(None, None), Looked(None)
    watcher.watch(failing, 0.01)
    watcher.watch(other, 0.05)
    assert other.seen.wait(BOUND)
    assert failing.seen.wait(BOUND)
    assert len(failing.diary) == 2
    assert [type(fault) for fault in shown] == [ZeroDivisionError]


def test_watching_says_when_no_thread_can_be_started(watcher: Watcher, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    looked = Looked(None)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert not watcher.watch(looked, 0.01)
    assert watcher._due == []
    assert watcher.watch(looked, 0.01)
    assert looked.seen.wait(BOUND)
    assert looked.diary == [""]
