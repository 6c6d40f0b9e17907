"""``make matrix``: the tests over Celery and kombu 5.5, 5.6, 5.7 (with Flower 2.0, 2.1, 2.2)
and every Python found.

Each cell has an environment of its own below ``.venvs``. A Python that is not on
PATH is named and left out. ``--all`` runs every cell; by default each Python meets
the newest Celery, and the newest Python with wheels for all meets each Celery.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
CELERIES = ("5.5", "5.6", "5.7")
#: The Flower that each is tested with.
FLOWERS = {"5.5": "2.0", "5.6": "2.1", "5.7": "2.2"}
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
#: Of these the wheel with a redis-server is for.
WITH_WHEELS = PYTHONS[:3]


def python(version: str) -> str | None:
    """Return a working interpreter of that version, ``None`` where there is none."""
    for name in (f"python{version}", "python3"):
        path = shutil.which(name)
        if path is None:
            continue
        script = "import sys; print('%d.%d' % sys.version_info[:2])"
        shown = subprocess.run(
            [path, "-c", script], capture_output=True, text=True, check=False
        )
        if shown.stdout.strip() == version:
            return path
    return None


def run_cell(interpreter: str, version: str, celery: str, arguments: list[str]) -> bool:
    """Make the cell's environment, run the tests in it, return whether they passed."""
    folder = ROOT / ".venvs" / f"py{version}-celery{celery}"
    if not (folder / "bin" / "pip").exists():
        subprocess.run([interpreter, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    # Celery 5.6 would take kombu 5.7 too: each is tested with the one of its own time,
    # and the redis-py that this one allows.
    releases = [f"celery[redis]=={celery}.*", f"kombu=={celery}.*"]
    releases.append(f"flower=={FLOWERS[celery]}.*")
    subprocess.run([*pip, "-e", f"{ROOT}[dev]", *releases], check=True)
    command = [str(folder / "bin" / "python"), "-m", "pytest", "-q", *arguments]
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def main() -> int:
    """Run the cells and print the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="every Python with every Celery")
    parser.add_argument("arguments", nargs="*", help="for pytest")
    options = parser.parse_args()
    found = {version: path for version in PYTHONS if (path := python(version))}
    for version in PYTHONS:
        if version not in found:
            print(f"python{version} is not on PATH: left out", file=sys.stderr)
    wholly = [version for version in found if version in WITH_WHEELS][-1:] or [*found][-1:]
    cells = [
        (version, celery)
        for version in found
        for celery in CELERIES
        if options.all or celery == CELERIES[-1] or version in wholly
    ]
    results = {}
    for version, celery in cells:
        print(f"--- Python {version}, Celery {celery}", flush=True)
        results[version, celery] = run_cell(found[version], version, celery, options.arguments)
    print(f"\n{'':<14}" + "".join(f"{'Celery ' + c:>12}" for c in CELERIES))
    for version in found:
        row = [results.get((version, celery)) for celery in CELERIES]
        texts = ["-" if ok is None else "passed" if ok else "FAILED" for ok in row]
        print(f"{'Python ' + version:<14}" + "".join(f"{text:>12}" for text in texts))
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
