"""Tables for a terminal: aligned, cut to its width, safe to print.

Cells may hold untrusted text (task names, worker names), so whatever could control a terminal
is shown as an escape.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from textwrap import wrap
from typing import TextIO

#: Between two columns; the second where a table would else be wider than its terminal.
GAPS = ("  ", " ")
#: Text columns are not cut below this: a shorter name says nothing.
MIN_TEXT = 12
#: Shown where there is no value.
NONE = "-"


@dataclass(frozen=True)
class Column:
    """A column. Numbers are aligned right; texts left, and may be cut unless *whole*."""

    header: str
    number: bool = True
    whole: bool = False
    #: A header above neighbouring columns of the same group.
    group: str = ""


def render(
    columns: Sequence[Column], rows: Iterable[Sequence[str]], width: int | None = None
) -> str:
    """Return the table as lines of at most *width* characters, if numbers and the starts of
    texts leave it a choice (``None``: as wide as needed).
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    natural = [
        max(_width(text) for text in (column.header, *(row[i] for row in cells)))
        for i, column in enumerate(columns)
    ]
    places = groupby(range(len(columns)), key=lambda i: columns[i].group)
    groups = [(name, list(of)) for name, of in places]

    for gap in GAPS:
        widths = list(natural)
        for name, of in groups:  # a long group header widens its first column
            widths[of[0]] += max(0, _width(name) - _span(widths, of, gap))
        if width is None or _shrink(columns, widths, width - len(gap) * (len(widths) - 1)):
            break
    lines = []
    if any(name for name, _ in groups):
        heads = ((name, _span(widths, of, gap)) for name, of in groups)
        lines.append(gap.join(_pad(name, over, right=True) for name, over in heads))
    texts = [cut_apart([row[i] for row in cells], width) for i, width in enumerate(widths)]
    headers = [cut(column.header, width) for column, width in zip(columns, widths, strict=True)]
    for row in (headers, *zip(*texts, strict=True)):
        aligned = zip(columns, widths, row, strict=True)
        lines.append(gap.join(_pad(t, w, right=c.number) for c, w, t in aligned))
    return "\n".join(line.rstrip() for line in lines)


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Return names and values, one pair a line."""
    names = (Column("", number=False), Column("", number=False))
    return render(names, rows).lstrip("\n")  # without the header


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a standard *stream* is a terminal; ``None`` is one that is closed."""
    return stream is not None and stream.isatty()


def terminal_width() -> int | None:
    """Return the width to cut to; ``None`` if standard output is not a terminal."""
    if is_terminal(sys.stdout) or os.environ.get("COLUMNS", "").isdigit():
        return shutil.get_terminal_size().columns
    return None


def printable(text: str) -> str:
    r"""Return *text* with an escape for each character that is not printable.

    >>> printable("a\x1b[31mb\n")
    'a\\x1b[31mb\\n'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def cut(text: str, width: int) -> str:
    """Return *text* cut to at most *width* columns of the terminal.

    >>> cut("tasks.resize_image", 12)
    'tasks.resiz…'
    """
    return text if _width(text) <= width else _kept(text, width - 1) + "…"


def wrapped(text: str, width: int) -> list[str]:
    """Return *text* as lines of at most *width* columns of the terminal.

    >>> wrapped("waits in the queue 注文, too", 14)
    ['waits in the', 'queue 注文,', 'too']
    """
    wide = max(0, _width(text) - len(text))
    return wrap(text, max(width // 2, width - wide), break_on_hyphens=False)


def cut_apart(texts: Sequence[str], width: int) -> list[str]:
    """Return *texts*, each cut to at most *width* columns. Those that would then look the same
    are cut within what they have in common at their start, so that their ends show.

    >>> cut_apart(["celery@shop-web-1", "celery@shop-mail-1", "beat"], 12)
    ['celery…web-1', 'celer…mail-1', 'beat']
    """
    found = {text: cut(text, width) for text in texts}
    alike: dict[str, list[str]] = {}
    for text, short in found.items():
        alike.setdefault(short, []).append(text)
    for group in alike.values():
        start = os.path.commonprefix(group)  # noqa: RUF071  of any texts
        if len(group) > 1 and len(start) > 1:
            word = len(re.sub(r"\w*$", "", start))  # the ends begin with whole words
            start = start[:word] if word > 1 else start
            ends = cut_apart(["…" + text.removeprefix(start) for text in group], width)
            for text, end in zip(group, ends, strict=True):
                found[text] = _kept(start, width - _width(end)) + end
    return [found[text] for text in texts]


def seconds(value: float | None) -> str:
    """Return seconds with about three significant digits.

    >>> [seconds(x) for x in (0.00412, 0.2519, 3.14159, 27.18, 86400.0, None)]
    ['0.0041', '0.252', '3.14', '27.2', '86400', '-']
    """
    if value is None:
        return NONE
    for bound, digits in ((0.1, 4), (1.0, 3), (10.0, 2), (100.0, 1)):
        if abs(value) < bound:
            return f"{value:.{digits}f}"
    return f"{value:.0f}"


def percent(ratio: float | None) -> str:
    """Return a share in percent, with as many digits as show what is missing from 100.

    >>> [percent(x) for x in (1.0, 0.99996, 0.9995, 0.5, -1e-16, -34.0, None)]
    ['100.0', '99.996', '99.95', '50.0', '0.0', '-3400.0', '-']
    """
    if ratio is None:
        return NONE
    # Less a little: 1 - 0.99999 is less than 0.00001.
    digits = math.ceil(-math.log10(1 - ratio) - 1e-6) - 2 if ratio < 1 else 1
    digits = max(1, digits)
    return f"{round(100 * ratio, digits) + 0.0:.{digits}f}"  # never -0


def _span(widths: Sequence[int], of: Sequence[int], gap: str) -> int:
    """Return the width of the columns *of* a group, with the gaps between them."""
    return sum(widths[i] for i in of) + len(gap) * (len(of) - 1)


def _shrink(columns: Sequence[Column], widths: list[int], width: int) -> bool:
    """Shrink the text columns, widest first, until all fit; return whether they do."""
    excess = sum(widths) - width
    texts = [i for i, column in enumerate(columns) if not (column.number or column.whole)]
    while excess > 0 and texts:
        widest = max(texts, key=lambda i: widths[i])
        if widths[widest] <= MIN_TEXT:
            break
        widths[widest] -= 1
        excess -= 1
    return excess <= 0


def _pad(text: str, width: int, *, right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if right else text + space


def _kept(text: str, width: int) -> str:
    """Return as much of the start of *text* as fits into *width* columns."""
    kept = ""
    for c in text:
        if _width(kept + c) > width:
            break
        kept += c
    return kept


def _width(text: str) -> int:
    """Return how many columns of the terminal *text* takes."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) != 0 for c in text)
