"""``pooledhttp dashboards --out FOLDER``: writes the dashboards, rules, alerts and runbook from the installed package.

Its one job is to copy, and to lose nothing: a file that is there already and says something else is left alone, unless
it is to be overwritten.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_PACKAGED: Final = Path(__file__).resolve().parent / "_dashboards"
# Where they are in a clone, which is where an editable installation runs.
_CLONED: Final = Path(__file__).resolve().parent.parent / "dashboards"
# What makes and checks them stays behind.
_NOT_FOR_USE: Final = frozenset({"generator", "schema", "__pycache__"})


def write(folder: Path, *, overwrites: bool) -> int:
    """Write all files into a folder.

    Args:
        folder: Where to; it is made if it is not there.
        overwrites: Whether to replace files that differ.

    Returns:
        The exit status: 0, or 1 if something could not be written, or differs and was left alone.
    """
    source = _PACKAGED if _PACKAGED.is_dir() else _CLONED
    files = {path.relative_to(source): path.read_bytes() for path in _files(source)}
    if not files:
        print(f"no dashboards came with this installation: {source} is empty", file=sys.stderr)
        return 1
    try:
        differing = [name for name, data in files.items() if _differs(folder / name, data)]
        if differing and not overwrites:
            print(f"in {folder} there are other versions; nothing was written (--force overwrites):", file=sys.stderr)
            print(*(f"  {name}" for name in differing), sep="\n", file=sys.stderr)
            return 1
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
            print(folder / name)
    except OSError as fault:
        print(f"cannot write {fault.filename}: {fault.strerror}", file=sys.stderr)
        return 1
    return 0


def _files(source: Path) -> Iterator[Path]:
    return (
        path
        for path in sorted(source.rglob("*"))
        if path.is_file() and _NOT_FOR_USE.isdisjoint(path.relative_to(source).parts)
    )


def _differs(path: Path, data: bytes) -> bool:
    return path.exists() and path.read_bytes() != data
