"""The package's top: each public name is imported when it is first asked for, and nobody need notice.

Most of it can be seen only where nothing has been asked for yet: in a fresh interpreter.
"""

from __future__ import annotations

import ast
import os
import pydoc
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import pooledhttp

ROOT = Path(__file__).resolve().parent.parent
BOUND = 30.0


def run(program: str) -> str:
    """Run a program in a fresh interpreter; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def imports_for_type_checkers() -> dict[str, str]:
    tree = ast.parse(Path(pooledhttp.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def test_type_checker_and_interpreter_find_the_same_names_in_the_same_rooms() -> None:
    assert imports_for_type_checkers() == pooledhttp._ROOM_OF
    assert pooledhttp._ROOM_OF.keys() == set(pooledhttp.__all__)


@pytest.mark.parametrize("name", pooledhttp.__all__)
def test_public_name_is_the_one_of_its_room(name: str) -> None:
    room = getattr(pooledhttp, pooledhttp._ROOM_OF[name])
    assert getattr(pooledhttp, name) is getattr(room, name)


def test_connection_is_had_without_the_pools() -> None:
    program = """
        import sys
        from pooledhttp import HTTPConnection
        print([name for name in ("conn", "config", "pool", "manager") if f"pooledhttp.{name}" in sys.modules])
    """
    assert run(program) == "['conn']\n"


def test_name_is_looked_for_once() -> None:
    program = """
        import pooledhttp
        print("Timeout" in vars(pooledhttp), pooledhttp.Timeout is vars(pooledhttp)["Timeout"])
    """
    assert run(program) == "False True\n"


@pytest.mark.parametrize("room", ["errors", "manager", "wire"])
def test_room_is_an_attribute_without_an_import_of_its_own(room: str) -> None:
    assert run(f"import pooledhttp; print(pooledhttp.{room}.__name__)") == f"pooledhttp.{room}\n"


def test_optional_room_is_no_attribute_before_it_is_imported() -> None:
    program = """
        import pooledhttp
        print(hasattr(pooledhttp, "testing"))
        from pooledhttp import testing
        print(pooledhttp.testing is testing)
    """
    assert run(program) == "False\nTrue\n"


def test_star_import_brings_every_public_name() -> None:
    program = """
        from pooledhttp import *
        import pooledhttp
        print(set(pooledhttp.__all__) - set(globals()))
    """
    assert run(program) == "set()\n"


def test_misspelt_name_is_refused_in_the_usual_words() -> None:
    with pytest.raises(AttributeError) as caught:
        pooledhttp.ConectionPool  # type: ignore[attr-defined]  # noqa: B018  # mypy says so too
    assert str(caught.value) == "module 'pooledhttp' has no attribute 'ConectionPool'"
    assert (caught.value.name, caught.value.obj) == ("ConectionPool", pooledhttp)  # for "Did you mean"
    with pytest.raises(ImportError, match="cannot import name 'ConectionPool' from 'pooledhttp'"):
        from pooledhttp import ConectionPool  # type: ignore[attr-defined]  # noqa: F401  # as above


def test_names_are_listed_before_they_are_imported() -> None:
    program = """
        import sys, pooledhttp
        print({*pooledhttp.__all__, "__version__", "errors"} - set(dir(pooledhttp)), "pooledhttp.conn" in sys.modules)
    """
    assert run(program) == "set() False\n"


def test_help_shows_the_classes() -> None:
    shown = pydoc.plain(pydoc.render_doc(pooledhttp))
    assert "class ConnectionPool(" in shown
    assert "class PoolFull(" in shown


def test_name_that_nobody_has_asked_for_can_be_replaced_for_a_test() -> None:
    program = """
        from unittest import mock
        import pooledhttp
        with mock.patch("pooledhttp.ConnectionPool", "replaced"):
            print(pooledhttp.ConnectionPool)
        print(pooledhttp.ConnectionPool.__name__)
    """
    assert run(program) == "replaced\nConnectionPool\n"


def test_pickle_brings_what_it_needs() -> None:
    program = """
        import pickle, pooledhttp
        pickled = pickle.dumps(pooledhttp.Timeout(total=2.0))
        print(pickled)
    """
    pickled = run(program).strip()
    assert run(f"import pickle; print(pickle.loads({pickled}).total)") == "2.0\n"


def test_threads_may_ask_for_their_first_names_at_once() -> None:
    program = """
        import threading
        import pooledhttp

        threads = 8
        start, found = threading.Barrier(threads), []

        def ask(number):
            names = pooledhttp.__all__[number:] + pooledhttp.__all__[:number]
            start.wait()
            found.append({name: getattr(pooledhttp, name) for name in names})

        running = [threading.Thread(target=ask, args=(number,)) for number in range(1, threads + 1)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        print([names == found[0] for names in found])
    """
    assert run(program) == f"{[True] * 8}\n"


@pytest.mark.parametrize(
    ("slow", "use"),
    [
        ("pooledhttp.pool", "pooledhttp.ConnectionPool"),
        ("prometheus_client", "pooledhttp.ConnectionPool('origin.test', 80)"),
    ],
    ids=["of a public name", "of the metrics by a first pool"],
)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
def test_fork_waits_for_a_first_import_in_another_thread(slow: str, use: str) -> None:
    """No child has that thread, so it would wait for ever for the import to end."""
    program = f"""
        import os, signal, sys, threading, time
        import pooledhttp
        from pooledhttp.uncut import uncut

        began, parent = threading.Event(), os.getpid()

        class Slow:
            def find_spec(self, name, path=None, target=None):
                if name == {slow!r} and os.getpid() == parent:
                    began.set()
                    end = time.monotonic() + {BOUND}
                    while not uncut._forks and time.monotonic() < end:
                        time.sleep(0.001)

        sys.meta_path.insert(0, Slow())
        thread = threading.Thread(target=lambda: {use}, daemon=True)
        thread.start()
        began.wait()
        child = os.fork()
        if not child:
            signal.alarm(10)
            print({use} is not None, flush=True)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert run(program) == "True\n0\n"
