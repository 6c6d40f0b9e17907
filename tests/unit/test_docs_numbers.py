"""The numbers that the documentation states are those of the code."""

from __future__ import annotations

import re

import pytest

from rts.cli import check, ledger_runs, replay, watch_data, workloads
from rts.flower import cache, filters, pages, source, words
from rts.objectives import BURN_RULES, MIN_MISSES, WINDOWS
from rts.scheduling import queues
from rts.settings import Settings
from rts.simulation import planning
from rts.unfinished import heartbeat
from rts.views import families, lateness_causes, metrics, problems, runs
from tests.conftest import ROOT

#: How the pages write small numbers.
IN_WORDS = {2: "two", 5: "five", 10: "ten"}

#: By page, what it says.
TOLD = {
    "cli.md": [
        f"the last {IN_WORDS[watch_data.WINDOWS['now'].total_seconds() / 60]} minutes",
        f"has waited {check.CRITICAL_LAG_S:g} s (`--lag-critical`)",
        f"has waited {problems.MAX_LAG_S:g} s (`--lag-warning`)",
        f"its runs (the latest {runs.MAX_RUNS:,})",
    ],
    "flower.md": [
        f"late runs (up to {source.LATE_RUNS})",
        f"at a load of {lateness_causes.BUSY:g} or more",
        f"its runs (the latest {runs.MAX_RUNS:,})",
        f"from `{filters.MIN_WINDOW.total_seconds():g}s` to `{filters.MAX_WINDOW.days}d`",
        f"the {words.MAX_ROWS} rows that matter most",
        f"the {pages.REASONS} types that miss most",
        f"the {words.MAX_LISTED} longest queues",
        f"cached for {cache.MIN_FRESH_S:g} s, or {IN_WORDS[cache.FRESH_FACTOR]} times what it "
        f"took (at most {cache.MAX_FRESH_S:g} s)",
    ],
    "monitoring.md": [
        *(
            f"| {rule.severity} | {rule.factor:g} | {rule.long[:-1]} {rule.long[-1]} "
            f"| {rule.short[:-1]} {rule.short[-1]} |"
            for rule in BURN_RULES
        ),
        f"verdicts ({Settings().slo_min_events}) and {IN_WORDS[MIN_MISSES]} misses",
        f"windows `{next(iter(WINDOWS))}` to `{[*WINDOWS][-1]}`",
        f"A scrape takes {metrics.PATIENCE_S:g} s at most",
        f"for up to {IN_WORDS[metrics.MAX_AGE_S / 60]} minutes",
        f"{families.MAX_QUEUES:,} queues; the rest are `other`",
        f"a heartbeat in the last {heartbeat.LOST_AFTER_S:g} s",
        f"an estimate if more than {queues.COUNTED + queues.SAMPLED:,} wait",
    ],
    "replay.md": [
        f"the last {ledger_runs.MAX_RUNS:,} runs at most",
        f"simulated up to {replay.MAX_REPEATS} times",
        f"{1000 * workloads.OVERHEAD_S:g} ms are assumed between two runs",
        f"on {IN_WORDS[planning.RESAMPLES]} resampled workloads",
        f"Of more than {planning.MAX_JOBS:,} tasks, the busiest {planning.MAX_JOBS:,} in a row",
    ],
}


@pytest.mark.parametrize(
    ("page", "told"), [(page, told) for page, those in TOLD.items() for told in those]
)
def test_numbers_are_those_of_the_code(page: str, told: str) -> None:
    assert told in re.sub(r"\s+", " ", (ROOT / "docs" / page).read_text(encoding="utf-8"))
