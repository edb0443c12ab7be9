"""Who may import whom.

The rooms of the package import downward only, and only three of them know a third-party library (an adapter: the one
it adapts). The tables below are the rule; the tests read every import statement of the package from its source and
hold it against them. A new module needs a row here first, and a new arrow between rooms has to be argued for.

Reading the source shows what a room says, also in code that no test runs. The second half of this file looks at what
happens: a fresh interpreter imports a room and reports what got loaded with it.
"""

from __future__ import annotations

import ast
import enum
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.unmeasured

PACKAGE = "pooledhttp"
ROOT = Path(__file__).resolve().parent.parent


# --- the rule ---------------------------------------------------------------------------------------------------------


class When(enum.IntEnum):
    """The moment an import runs. Who may import at one moment may also do so at a lesser one."""

    TYPING = 1  # below `if TYPE_CHECKING:`, hence never
    LAZY = 2  # in a function, when it is called
    LOAD = 3  # at module level, when the room is imported


def typing_only(*names: str) -> dict[str, When]:
    return dict.fromkeys(names, When.TYPING)


def lazily(*names: str) -> dict[str, When]:
    return dict.fromkeys(names, When.LAZY)


def freely(*names: str) -> dict[str, When]:
    return dict.fromkeys(names, When.LOAD)


# Not a room: `from pooledhttp import __version__` reads a constant. Nothing else may be had from the package's top,
# where the arrows would all meet.
VERSION = "__version__"
# A room of which only run time knows the name.
ANY = ""

CORE = (
    "hints",
    "uncut",
    "errors",
    "frozen",
    "stats",
    "states",
    "timeouts",
    "wire",
    "origin",
    "request",
    "transport",
    "dial",
    "response",
    "tunnel",
    "upload",
    "conn",
    "retry",
    "config",
    "forking",
    "log",
    "leaks",
    "records",
    "expiry",
    "opener",
    "capacity",
    "ledger",
    "lending",
    "upkeep",
    "pool",
    "manager",
    "httplib",
)
ADAPTERS = ("adapters", "adapters.requests", "adapters.urllib", "adapters.httpx", "adapters.xmlrpc")

CONN_MAY_IMPORT = freely(
    "log",
    "errors",
    "stats",
    "states",
    "timeouts",
    "wire",
    "origin",
    "request",
    "transport",
    "dial",
    "response",
    "tunnel",
    "upload",
)
LEDGER_MAY_IMPORT = freely(
    "forking",
    "log",
    "leaks",
    "errors",
    "stats",
    "config",
    "conn",
    "records",
    "expiry",
    "opener",
    "capacity",
)
LENDING_MAY_IMPORT = {**LEDGER_MAY_IMPORT, **freely("states", "timeouts", "transport", "ledger")}
# The pool builds the collector on first use; nobody pays for metrics by importing the pool.
POOL_MAY_IMPORT = {
    **CONN_MAY_IMPORT,
    **freely("conn", "config", "lending", "uncut", "upkeep", "retry"),
    **lazily("metrics"),
}

# The demo shows the whole package, but nobody pays for it before it runs; among its own files it imports downward.
DEMO_MAY_IMPORT = lazily(*CORE, *ADAPTERS, "metrics", "testing", "__init__", VERSION)
BELOW_DEMONSTRATION = freely("demo.options", "demo.api", "demo.load", "demo.screen", "demo.samples", "demo.trouble")

ROOMS: dict[str, Mapping[str, When]] = {
    "hints": {},
    "uncut": {},
    "errors": {},
    "frozen": {},
    "stats": freely("frozen"),
    "states": {},
    "timeouts": freely("errors", "frozen"),
    "wire": freely("errors", "frozen"),
    "origin": freely("errors", "wire"),
    "request": freely("wire"),
    "transport": freely("errors", "stats", "timeouts", "uncut", "wire"),
    "dial": freely("errors", "frozen", "timeouts", "origin", "uncut", "forking"),
    "response": freely("errors", "frozen", "wire", "transport"),
    "tunnel": freely("errors", "timeouts", "wire", "request", "transport", "response"),
    "upload": freely("errors", "timeouts", "wire", "request", "transport"),
    "conn": CONN_MAY_IMPORT,
    "retry": freely("errors", "frozen", "stats", "timeouts", "request", "response"),
    "config": freely("errors", "frozen", "timeouts", "wire", "origin", "dial", "retry"),
    "forking": freely("uncut"),
    "log": {},
    "leaks": freely("forking"),
    "records": freely("leaks", "request", "states", "stats", "conn"),
    "expiry": freely("config", "conn", "records", "stats", "wire"),
    "opener": freely("config", "conn", "dial", "errors", "origin", "request", "stats", "timeouts"),
    "capacity": {**freely("conn", "records"), **typing_only("ledger")},
    "ledger": LEDGER_MAY_IMPORT,
    "lending": LENDING_MAY_IMPORT,
    "upkeep": {**LENDING_MAY_IMPORT, **freely("lending")},
    "pool": POOL_MAY_IMPORT,
    "manager": {**POOL_MAY_IMPORT, **freely("forking", "capacity", "pool")},
    "metrics": {
        **freely("log", "uncut", "metrics.collector"),
        **lazily("metrics.bridge", "metrics.names", "metrics.everybody"),
        **typing_only("stats", "pool", "manager"),
    },
    "metrics.families": freely("stats"),
    "metrics.fleet": {**freely("stats", "metrics.families"), **typing_only("pool")},
    "metrics.names": freely("uncut", "metrics.fleet"),
    "metrics.collector": {**freely("stats", "metrics.families", "metrics.fleet", VERSION), **typing_only("pool")},
    "metrics.instruments": freely("stats", "metrics.families", "metrics.fleet", VERSION),
    "metrics.flusher": {},
    "metrics.bridge": {
        **freely("log", "stats", "metrics.families", "metrics.fleet", "metrics.flusher", "metrics.instruments"),
        **typing_only("pool"),
    },
    "metrics.everybody": freely("log", "metrics.collector"),
    "testing": freely("testing.peer", "testing.steps", "testing.server", "testing.resources", "testing.plugin"),
    "testing.peer": {},
    "testing.steps": freely("testing.peer"),
    "testing.server": freely("testing.peer"),
    "testing.resources": {},
    "testing.plugin": freely("testing.server", "testing.resources"),
    "httplib": freely("conn", "response", "errors", "wire"),
    **dict.fromkeys(ADAPTERS, freely("manager", "errors", "timeouts")),
    "cli": lazily(*CORE, *ADAPTERS, "metrics", "testing", "demo", "dashboards", "__init__", VERSION),
    "dashboards": {},
    "demo": {**BELOW_DEMONSTRATION, **freely("demo.demonstration", "demo.main")},
    "demo.options": {},
    "demo.api": {**DEMO_MAY_IMPORT, **freely("demo.options")},
    "demo.load": {**DEMO_MAY_IMPORT, **freely("demo.options", "demo.api")},
    "demo.screen": {**DEMO_MAY_IMPORT, **freely("demo.load")},
    "demo.samples": {**DEMO_MAY_IMPORT, **freely("demo.options")},
    "demo.trouble": {**DEMO_MAY_IMPORT, **freely("demo.api", "demo.load")},
    "demo.demonstration": {**DEMO_MAY_IMPORT, **BELOW_DEMONSTRATION},
    "demo.main": {**DEMO_MAY_IMPORT, **BELOW_DEMONSTRATION, **freely("demo.demonstration")},
    "__main__": freely("cli"),
    # Each public name is imported when it is first asked for: by its name, from the table that stands there.
    "__init__": {**typing_only(*CORE), **freely("uncut"), **lazily(ANY)},
}
# Instead of `typing`: see the end of this file.
for _room in CORE[1:]:
    ROOMS[_room] = {**ROOMS[_room], **freely("hints")}

# Whoever has no row here lives on the standard library.
LIBRARIES: dict[str, Mapping[str, When]] = {
    "metrics": freely("prometheus_client"),
    "metrics.collector": freely("prometheus_client"),
    "metrics.instruments": freely("prometheus_client"),
    "metrics.everybody": freely("prometheus_client"),
    "testing.plugin": freely("pytest"),
    "cli": lazily("trustme", "prometheus_client"),
    "demo.api": lazily("trustme"),
    "demo.samples": lazily("prometheus_client"),
    "adapters.requests": freely("requests"),
    "adapters.httpx": freely("httpx"),
}

# The standard library's types that exist for type checkers alone.
STANDARD_TYPES = typing_only("_typeshed")


# --- reading the source -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Import:
    target: str  # absolute and dotted; "" when only run time knows it
    when: When
    line: int


class ImportFinder(ast.NodeVisitor):
    """Collects the imports of one module, each with the moment at which it runs."""

    def __init__(self, package: str) -> None:
        self.package = package
        self.found: list[Import] = []
        self._when = When.LOAD

    def _visit_later(self, nodes: list[ast.stmt] | list[ast.expr], when: When) -> None:
        outer, self._when = self._when, min(self._when, when)
        for node in nodes:
            self.visit(node)
        self._when = outer

    def _note(self, node: ast.stmt | ast.expr, target: str) -> None:
        self.found.append(Import(target, self._when, node.lineno))

    def _absolute(self, name: str, level: int) -> str:
        if level == 0:
            return name
        parts = self.package.split(".")
        base = parts[: len(parts) - (level - 1)]
        return ".".join([*base, name] if name else base)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._visit_later(node.decorator_list, When.LOAD)
        self._visit_later(node.body, When.LAZY)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.visit_FunctionDef(node)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._visit_later([node.body], When.LAZY)

    def visit_If(self, node: ast.If) -> None:
        is_typing = ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
        self._visit_later(node.body, When.TYPING if is_typing else When.LOAD)
        self._visit_later(node.orelse, When.LOAD)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._note(node, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = self._absolute(node.module or "", node.level)
        for alias in node.names:
            self._note(node, f"{base}.{alias.name}")

    def visit_Call(self, node: ast.Call) -> None:
        function = ast.unparse(node.func)
        if function in {"__import__", "import_module", "importlib.import_module"}:
            name = node.args[0] if node.args else None
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                bare = name.value.lstrip(".")
                self._note(node, self._absolute(bare, len(name.value) - len(bare)))
            else:
                self._note(node, "")
        self.generic_visit(node)


def imports_of(room: str, source: str) -> list[Import]:
    module = PACKAGE if room == "__init__" else f"{PACKAGE}.{room}"
    is_package = room in {"__init__", "adapters", "testing", "demo", "metrics"}
    finder = ImportFinder(module if is_package else module.rpartition(".")[0])
    finder.visit(ast.parse(source))
    return finder.found


def room_of(target: str) -> str:
    """Name the room that ``pooledhttp.a.b.c`` reaches into: the longest part that is one, else the package's top."""
    parts = target.split(".")[1:]
    if parts == [VERSION]:
        return VERSION
    while parts and ".".join(parts) not in ROOMS:
        parts.pop()
    return ".".join(parts) or "__init__"


def violations(room: str, source: str) -> Iterator[str]:
    for found in imports_of(room, source):
        where = f"{room}, line {found.line}"
        top = found.target.partition(".")[0]
        if not found.target:
            if found.when > ROOMS[room].get(ANY, 0):
                yield f"{where}: an import of which only run time knows the name"
            continue
        if top in sys.stdlib_module_names:
            continue
        if top == PACKAGE:
            name, allowed = room_of(found.target), ROOMS[room]
        else:
            name, allowed = top, {**STANDARD_TYPES, **LIBRARIES.get(room, {})}
        if name == room:
            continue
        if name not in allowed:
            yield f"{where}: may not import {name}"
        elif found.when > allowed[name]:
            yield f"{where}: may import {name} at {allowed[name].name}, not at {found.when.name}"


def modules_on_disk() -> dict[str, Path]:
    """Map every room that exists to its file: ``{"conn": .../conn.py, "adapters": .../adapters/__init__.py}``."""
    modules = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        if len(parts) > 1 and parts[-1] == "__init__":
            parts = parts[:-1]
        modules[".".join(parts)] = path
    return modules


MODULES = modules_on_disk()


def test_package_is_found_on_disk() -> None:
    assert "__init__" in MODULES


@pytest.mark.parametrize("room", MODULES)
def test_room_is_in_the_table(room: str) -> None:
    assert room in ROOMS, f"{PACKAGE}/{room}: decide who may import it and what it may import, in {__file__}"


@pytest.mark.parametrize("room", [room for room in MODULES if room in ROOMS])
def test_room_imports_only_what_the_table_allows(room: str) -> None:
    assert list(violations(room, MODULES[room].read_text(encoding="utf-8"))) == []


def test_table_names_only_rooms_that_have_a_row() -> None:
    named = {name for allowed in ROOMS.values() for name in allowed} | LIBRARIES.keys()
    assert named - {VERSION, ANY} <= ROOMS.keys()


def test_table_points_downward_so_that_no_import_can_go_round_in_a_circle() -> None:
    above = {
        room: {name for name, when in allowed.items() if when == When.LOAD and name != VERSION}
        for room, allowed in ROOMS.items()
    }
    while leaves := {room for room, below in above.items() if not below}:
        above = {room: below - leaves for room, below in above.items() if room not in leaves}
    assert not above


@pytest.mark.parametrize(
    ("room", "source", "complaint"),
    [
        ("conn", "from . import pool", "may not import pool"),
        ("conn", "from .pool import ConnectionPool", "may not import pool"),
        ("conn", "from pooledhttp.pool import ConnectionPool", "may not import pool"),
        ("conn", "import pooledhttp.pool as p", "may not import pool"),
        ("conn", "import socket, pooledhttp.pool", "may not import pool"),
        ("conn", "def f():\n    from .pool import ConnectionPool", "line 2: may not import pool"),
        ("conn", "class C:\n    async def f(self):\n        from . import pool", "line 3: may not import pool"),
        ("conn", "try:\n    from . import pool\nexcept ImportError:\n    pool = None", "may not import pool"),
        ("conn", "if TYPE_CHECKING:\n    from . import pool", "may not import pool"),
        ("conn", "from pooledhttp import ConnectionPool", "may not import __init__"),
        ("conn", "from pooledhttp import *", "may not import __init__"),
        ("conn", "import pooledhttp", "may not import __init__"),
        ("conn", "from pooledhttp import __version__", "may not import __version__"),
        ("conn", "importlib.import_module('.pool', __package__)", "may not import pool"),
        ("conn", "f = lambda: __import__('pooledhttp.pool')", "may not import pool"),
        ("conn", "def f(name):\n    importlib.import_module(name)", "only run time knows"),
        ("pool", "from . import metrics", "may import metrics at LAZY, not at LOAD"),
        ("pool", "class C:\n    from . import metrics", "may import metrics at LAZY, not at LOAD"),
        ("pool", "if TYPE_CHECKING:\n    pass\nelse:\n    from . import metrics", "at LAZY, not at LOAD"),
        ("pool", "def f():\n    import prometheus_client", "may not import prometheus_client"),
        ("metrics", "def f():\n    from ..pool import ConnectionPool", "may import pool at TYPING, not at LAZY"),
        ("metrics", "from _typeshed import ReadableBuffer", "may import _typeshed at TYPING, not at LOAD"),
        ("metrics", "import requests", "may not import requests"),
        ("cli", "import prometheus_client", "may import prometheus_client at LAZY, not at LOAD"),
        ("cli", "from . import conn", "may import conn at LAZY, not at LOAD"),
        ("cli", "from .demo import run", "may import demo at LAZY, not at LOAD"),
        ("demo.api", "import trustme", "may import trustme at LAZY, not at LOAD"),
        ("demo.api", "from .load import Load", "may not import demo.load"),
        ("demo.main", "from pooledhttp import conn", "may import conn at LAZY, not at LOAD"),
        ("demo.main", "def f():\n    from ..cli import main", "may not import cli"),
        ("testing", "import pytest", "may not import pytest"),
        ("testing.peer", "from .server import ScriptedServer", "may not import testing.server"),
        ("testing.server", "from ..errors import UnreadResponse", "may not import errors"),
        ("adapters.requests", "import httpx", "may not import httpx"),
        ("adapters.requests", "from ..pool import ConnectionPool", "may not import pool"),
        ("adapters", "from .requests import PooledAdapter", "may not import adapters.requests"),
        ("__init__", "from .metrics import register", "may not import metrics"),
        ("__init__", "from .pool import ConnectionPool", "may import pool at TYPING, not at LOAD"),
        ("__init__", "importlib.import_module(name)", "only run time knows"),
        ("__init__", "import trustme", "may not import trustme"),
    ],
)
def test_checker_catches(room: str, source: str, complaint: str) -> None:
    found = list(violations(room, source))
    assert len(found) == 1
    assert complaint in found[0]


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("conn", "import os.path, ssl\nfrom collections.abc import Callable"),
        ("conn", "from . import errors, wire\nfrom .response import HTTPResponse"),
        ("conn", "from pooledhttp.errors import UnreadResponse"),
        ("conn", "if TYPE_CHECKING:\n    from _typeshed import ReadableBuffer"),
        ("conn", "'''from .pool import ConnectionPool'''"),
        ("pool", "def f():\n    from .metrics import register"),
        ("pool", "if typing.TYPE_CHECKING:\n    from .metrics import Collector"),
        ("metrics.collector", "import prometheus_client.core\nfrom pooledhttp import __version__"),
        ("metrics", "if TYPE_CHECKING:\n    from .manager import PoolManager"),
        ("testing", "from . import steps\nfrom .plugin import audit"),
        ("testing.plugin", "import pytest\nfrom .server import ServerFactory"),
        (
            "demo.samples",
            "def f():\n    import prometheus_client.parser\n    from pooledhttp.conn import HTTPConnection",
        ),
        ("adapters.requests", "import requests.adapters\nfrom ..manager import PoolManager"),
        ("cli", "import argparse\ndef demo():\n    import trustme\n    from pooledhttp import PoolManager, testing"),
        ("__main__", "from .cli import main"),
        ("__init__", "if TYPE_CHECKING:\n    from .pool import ConnectionPool\n    from pooledhttp import conn"),
        ("__init__", "from .uncut import uncut\ndef f(name):\n    importlib.import_module(name)"),
    ],
)
def test_checker_lets_pass(room: str, source: str) -> None:
    assert list(violations(room, source)) == []


# --- watching an import -----------------------------------------------------------------------------------------------

WATCH = """
import importlib, json, sys
before = set(sys.modules)
importlib.import_module(sys.argv[1])
print(json.dumps({name: getattr(sys.modules[name], "__file__", None) for name in sys.modules.keys() - before}))
"""


def modules_loaded_by(module: str, *options: str) -> dict[str, str | None]:
    """Import a module in a fresh interpreter; return what that loaded, and from which file."""
    # Coverage would measure the child too, and add modules of its own to what we look at.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    child = subprocess.run(
        [sys.executable, *options, "-c", WATCH, module],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    loaded: dict[str, str | None] = json.loads(child.stdout)
    return loaded


def is_third_party(name: str, file: str | None) -> bool:
    top = name.partition(".")[0]
    if file is None:  # built in, or a namespace package
        return top not in {*sys.stdlib_module_names, PACKAGE}
    path = Path(file).resolve()
    folders = {key: Path(folder).resolve() for key, folder in sysconfig.get_paths().items()}
    # Without a virtual environment, site-packages lies inside the standard library's folder.
    if path.is_relative_to(folders["purelib"]) or path.is_relative_to(folders["platlib"]):
        return top != PACKAGE
    ours = (folders["stdlib"], folders["platstdlib"], ROOT / PACKAGE)
    return not any(path.is_relative_to(folder) for folder in ours)


def third_parties(loaded: Mapping[str, str | None]) -> set[str]:
    return {name.partition(".")[0] for name, file in loaded.items() if is_third_party(name, file)}


def loaded_with(room: str) -> set[str]:
    """Name the rooms that the table lets an import of this one load: itself, what it imports, their packages."""
    found, to_do = set(), [room]
    while to_do:
        name = to_do.pop()
        if name in found or name not in ROOMS:
            continue
        found.add(name)
        to_do += [name.rpartition(".")[0], *(below for below, when in ROOMS[name].items() if when == When.LOAD)]
    return found


def rooms_without_a_library() -> Iterator[str]:
    for room in MODULES:
        libraries = {when for name in loaded_with(room) for when in LIBRARIES.get(name, {}).values()}
        if room not in {"__init__", "__main__"} and When.LOAD not in libraries:
            yield f"{PACKAGE}.{room}"


@pytest.mark.parametrize("module", [PACKAGE, *rooms_without_a_library()])
def test_import_loads_no_third_party(module: str) -> None:
    loaded = modules_loaded_by(module)
    assert PACKAGE in loaded
    assert third_parties(loaded) == set()


def rooms_loaded_by(module: str) -> set[str]:
    return {room_of(name) for name in modules_loaded_by(module, "-S") if name.startswith(f"{PACKAGE}.")}


def test_import_of_the_package_loads_no_room_but_the_guard_of_its_imports() -> None:
    assert rooms_loaded_by(PACKAGE) == {"uncut"}


def test_import_of_the_pools_leaves_the_optional_rooms_alone() -> None:
    loaded = rooms_loaded_by(f"{PACKAGE}.manager")
    assert "pool" in loaded
    assert loaded.isdisjoint({"metrics", "testing", "cli", "demo", *ADAPTERS})


@pytest.mark.parametrize("room", CORE)
def test_core_is_imported_without_what_takes_long_to_import(room: str) -> None:
    # -S: what an installed package hooks into the start of the interpreter (.pth files) may have loaded them before.
    loaded = modules_loaded_by(f"{PACKAGE}.{room}", "-S")
    assert loaded.keys().isdisjoint({"typing", "contextlib", "dataclasses", "inspect", "logging", "json", "tempfile"})
