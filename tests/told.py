"""What the app ``tests.apps.told`` has reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Told:
    """What the receivers of a worker have reported."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self, kind: str, **having: Any) -> list[dict[str, Any]]:
        """Return the lines of one *kind* with certain values."""
        if not self.path.exists():
            return []
        complete = self.path.read_text().rpartition("\n")[0].splitlines()
        lines = [json.loads(line) for line in complete]
        return [
            line
            for line in lines
            if line["kind"] == kind and all(line.get(k) == v for k, v in having.items())
        ]
