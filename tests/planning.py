"""A planner whose clock stands still and whose taus are given."""

from __future__ import annotations

from typing import Any

from rts.clock import FleetClock
from rts.lifecycle.planning import Planner
from rts.settings import Settings

NOW = 1_800_000_000.0


class StoppedClock(FleetClock):
    def now(self) -> float:
        return NOW


class Taus:
    def __init__(self, **taus: float) -> None:
        self.taus = taus

    def tau(self, task_type: str, name: str) -> float:
        default = Settings().task_types.get(task_type)
        return self.taus.get(name) or (default.tau if default else 30.0)

    def ratio(self, task_type: str) -> float | None:
        return self.taus.get("ratio")


def planner(options: Any = None, taus: Taus | None = None, **settings: Any) -> Planner:
    return Planner(
        Settings.from_conf(
            {f"rts_{key}": value for key, value in settings.items()}, environ={}
        ),
        taus or Taus(),
        StoppedClock(),
        lambda name: {} if options is None else options,
    )
