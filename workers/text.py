"""Text processing on the standard library's own sources, which every machine has."""

from __future__ import annotations

import ast
import hashlib
import lzma
import math
import re
import sysconfig
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from typing import Any

from workers.app import app

WORD = re.compile(r"[A-Za-z_]{3,}")


@cache
def sources(files: int) -> tuple[Path, ...]:
    """Return the first *files* modules of the standard library, in alphabetical order."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return tuple(sorted(folder.glob("*.py")))[:files]


@app.task(rts={"task_type": "cpu-light"})
def fingerprint(files: int = 60) -> dict[str, Any]:
    """Hash the files and count their bytes; the entropy is in bits per byte, 0 to 8."""
    digest = hashlib.sha256()
    counts: Counter[int] = Counter()
    for path in sources(files):
        data = path.read_bytes()
        digest.update(data)
        counts.update(data)
    size = counts.total()
    entropy = -sum(n / size * math.log2(n / size) for n in counts.values())
    return {"sha256": digest.hexdigest(), "lines": counts[ord("\n")], "entropy": entropy}


@app.task(rts={"task_type": "cpu-heavy"})
def compress(files: int = 24, preset: int = 6) -> dict[str, Any]:
    """Compress files with LZMA; *preset* 0 (fast) to 9 (small)."""
    data = b"".join(path.read_bytes() for path in sources(files))
    packed = lzma.compress(data, preset=preset)
    return {"bytes": len(data), "packed_bytes": len(packed)}


@app.task(rts={"task_type": "memory-heavy"})
def index(files: int = 60) -> dict[str, Any]:
    """Build an inverted index in memory: each word to the places where it occurs."""
    places: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for number, path in enumerate(sources(files)):
        text = path.read_text(encoding="utf-8", errors="replace")
        for match in WORD.finditer(text):
            places[match.group()].append((number, match.start()))
    commonest = max(places, key=lambda word: (len(places[word]), word), default=None)
    return {
        "words": len(places),
        "places": sum(map(len, places.values())),
        "commonest": commonest,
    }


@app.task
def survey(files: int = 25) -> dict[str, Any]:
    """Parse modules and count what they define. The caller chooses the task type."""
    kinds: Counter[str] = Counter()
    for path in sources(files):
        tree = ast.parse(path.read_bytes())
        kinds.update(type(node).__name__ for node in ast.walk(tree))
    return {
        "functions": kinds["FunctionDef"] + kinds["AsyncFunctionDef"],
        "classes": kinds["ClassDef"],
        "nodes": sum(kinds.values()),
    }
