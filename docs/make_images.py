"""Draws docs/images/demo.svg, the picture in the README, from a real run of the demo.

.venv/bin/python docs/make_images.py
"""

from __future__ import annotations

import subprocess
import sys
from html import escape
from pathlib import Path

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "images" / "demo.svg"

#: Pixels of one character and of one line; the font is the reader's own.
CHARACTER, LINE, MARGIN = 7.8, 18, 16


def demo() -> list[str]:
    """Run the demo and return what it printed, without the bars on the way."""
    command = [sys.executable, "-m", "workers.demo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    bars = [number for number, line in enumerate(lines) if "verdicts, " in line]
    return [line for number, line in enumerate(lines) if number not in bars[:-1]]


def draw(lines: list[str]) -> str:
    """Return the lines as a terminal window."""
    width = int(max(map(len, lines)) * CHARACTER + 2 * MARGIN)
    height = len(lines) * LINE + 2 * MARGIN
    texts = []
    for number, line in enumerate(lines):
        if line.strip():
            colour = "#7dd3a0" if line.startswith(("—", "$")) else "#d7dae0"
            y = MARGIN + LINE * number + 13
            texts.append(
                f'<text x="{MARGIN}" y="{y}" fill="{colour}" '
                f'textLength="{len(line) * CHARACTER:.1f}">{escape(line)}</text>'
            )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" role="img" aria-label="Output of make demo">\n'
        f'<rect width="{width}" height="{height}" rx="8" fill="#1b1e24"/>\n'
        # On each text, not on the group: Chromium's own style sheet has texts collapse spaces.
        "<style>text { white-space: pre }</style>\n"
        '<g font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace" '
        'font-size="13">\n' + "\n".join(texts) + "\n</g>\n</svg>\n"
    )


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(draw(["$ make demo", "", *demo()]), encoding="utf-8")
    print(PICTURE.relative_to(ROOT))
