"""Runs one chore of a companion: a failure stops neither the process nor the other chores."""

from __future__ import annotations

import logging
from collections.abc import Callable

from rts import health
from rts.errors import StoreUnavailable

logger = logging.getLogger("rts.drain")


def attempt(what: str, work: Callable[[], object]) -> bool:
    """Run *work*; return whether it succeeded. Logs errors other than an unavailable server,
    which the link or the drain logs.
    """
    try:
        work()
        return True
    except StoreUnavailable as exc:
        logger.debug("rts: %s: %s", what, exc)
    except Exception as exc:  # noqa: BLE001  the next round may succeed
        health.count("upkeep_errors")
        health.warn_once(
            f"chores:{what}:{type(exc).__name__}",
            "rts: %s failed: %s",
            what,
            exc,
            exc_info=True,
        )
    return False
