"""How a companion does anything: what goes wrong ends neither it nor its other chores."""

from __future__ import annotations

import logging
from collections.abc import Callable

from rts import health
from rts.errors import StoreUnavailable

logger = logging.getLogger("rts.drain")


def attempt(what: str, work: Callable[[], object]) -> bool:
    """Do *work*; return whether it went well. An absent server has been logged already."""
    try:
        work()
        return True
    except StoreUnavailable as exc:
        logger.debug("rts: %s: %s", what, exc)
    except Exception as exc:  # noqa: BLE001  the next round may go better
        health.count("upkeep_errors")
        health.warn_once(
            f"upkeep:{what}:{type(exc).__name__}",
            "rts: %s failed: %s",
            what,
            exc,
            exc_info=True,
        )
    return False
