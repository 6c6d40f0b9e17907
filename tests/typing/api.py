"""The public API as a type checker sees it; checked by mypy, never run."""

from __future__ import annotations

from collections.abc import Callable

from celery import Celery

import rts
from rts.notices import DeadlineMissed, SloBurning
from rts.testing import wait_until


def use(app: Celery) -> None:
    """Use everything that is public."""
    rts.install(app)
    rts.uninstall(app)
    current = rts.current()
    if current is not None:
        task_type: str = current.task_type
        numbers: list[float] = [
            current.tau,
            current.arrival,
            current.deadline,
            current.remaining(),
        ]
        load: float | None = current.load.get("load")
        print(task_type, numbers, load)
    try:
        rts.install(app)
    except rts.ConfigurationError as error:
        setting: str = error.setting
        allowed: str = error.allowed
        print(setting, error.value, allowed)


@rts.signals.deadline_missed.connect
def tell(sender: str, notice: DeadlineMissed, **_: object) -> None:
    """Receive a signal."""
    late_s: float = notice.lateness_s
    print(sender, late_s)


@rts.signals.slo_burning.connect(sender="*", weak=False, dispatch_uid="page")
def page(sender: str, notice: SloBurning, **_: object) -> str:
    """Receive one of them."""
    return f"{sender} {notice.burn_rate}"


def ask(app: Celery, notice: SloBurning) -> None:
    """Ask what will be; a receiver keeps its type."""
    text: str = page("*", notice)
    soon: rts.Prediction = rts.predict_new("some.task", "gpu", headers={"req_gpu": 1})
    later: rts.Prediction | None = rts.predict("id", app=app)
    print(text, soon.finish, later)


def wait(found: Callable[[], dict[str, bool] | None], ended: Callable[[], bool]) -> None:
    """Wait in a test: what was waited for is there."""
    verdict: bool = wait_until(found)["sla_success"]
    print(verdict, wait_until(ended))
