"""Curves of deadlines met, as an SVG or PNG file. Needs matplotlib (``rts[plot]``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import click

from rts.errors import CommandError

#: Colours that colour-blind readers can tell apart (Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")

Command = TypeVar("Command", bound=Callable[..., Any])
#: Points of a curve: x, share of deadlines met from 0 to 1.
Points = Sequence[tuple[float, float]]


def plot_option(text: str) -> Callable[[Command], Command]:
    """Return the option ``--plot``, with *text* as its help."""
    return click.option("--plot", callback=_checked, metavar="FILE.svg|.png", help=text)


def _checked(ctx: click.Context, param: click.Parameter, value: str | None) -> Path | None:
    """Check the option before any work is done."""
    if value is None:
        return None
    path = Path(value)
    if path.suffix.lower() not in (".svg", ".png"):
        raise click.BadParameter(f"{value!r} ends neither in .svg nor in .png")
    if not path.parent.is_dir():
        raise click.BadParameter(f"there is no folder {str(path.parent)!r}")
    if find_spec("matplotlib") is None:
        raise click.BadParameter("plots need matplotlib: pip install 'rts[plot]'")
    return path


def draw(
    path: Path,
    curves: Mapping[str, Points],
    *,
    title: str,
    x_label: str,
    target: float | None = None,
    mark: float | None = None,
) -> None:
    """Write the curves, by name, to *path*.

    *target*: a share, as a horizontal line. *mark*: an x, as a vertical line: where the fleet
    is, or the answer.

    Raises:
        CommandError: the file cannot be written.
    """
    from matplotlib import rc_context  # heavy, and optional
    from matplotlib.figure import Figure

    # Without pyplot there is no window and no need for a display. Names of tasks and orders are
    # not formulas, and the same curves make the same file.
    with rc_context({"text.parse_math": False, "svg.hashsalt": "rts", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained", facecolor="white")
        axes = figure.subplots()
        for colour, (name, points) in zip(COLOURS * len(curves), curves.items(), strict=False):
            xs, shares = zip(*points, strict=True)
            percents = [100 * share for share in shares]
            axes.plot(xs, percents, marker="o", markersize=4, color=colour, label=name)
        if target is not None:
            label = f"target {100 * target:g} %"
            axes.axhline(
                100 * target, color="#555555", linewidth=1, linestyle="--", label=label
            )
        if mark is not None:
            axes.axvline(mark, color="#999999", linewidth=1, linestyle=":")
        axes.set(title=title, xlabel=x_label, ylabel="deadlines met, %", ylim=(0, 102))
        axes.grid(color="#e5e5e5")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="best")
        stamp = {"Date": None} if path.suffix.lower() == ".svg" else None
        try:
            figure.savefig(path, dpi=150, metadata=stamp)
        except OSError as exc:
            raise CommandError(f"the plot cannot be written: {exc}") from exc
