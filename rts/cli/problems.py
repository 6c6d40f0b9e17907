"""What is wrong with the app and the servers, in words: for status and watch."""

from __future__ import annotations

from typing import Any

from rts.cli.common import NO_APP
from rts.installation import installed
from rts.settings import Settings
from rts.views.problems import fleet_problems
from rts.views.status import LedgerState, RedisState


def without_rts(app: Any, settings: Settings) -> list[str]:
    """Return a problem if *app* has rts off or not installed, even after importing what a
    worker imports.
    """
    if not settings.enabled:
        return ["rts_enabled is False, so tasks of this app get no deadline and no verdict"]
    if app not in installed and app.main != NO_APP:
        try:
            app.loader.import_default_modules()
        except Exception:  # noqa: BLE001  this host may lack what the workers have
            return []
    if app in installed or app.main == NO_APP:
        return []
    return [
        "rts is not installed in this app, so its tasks get no deadline and no verdict. Add "
        'rts.install(app) below the line that creates it, or imports = ("rts.auto",) to its '
        "celeryconfig, and restart workers and producers"
    ]


def problems(redis: RedisState, ledger: LedgerState) -> list[str]:
    """Return what is wrong, with what to do about it."""
    found = [
        f"{which} at {server.url} is not reachable ({server.error}). Check the server and "
        f"{setting}"
        for which, server, setting in (
            ("Redis", redis.server, "rts_redis_url"),
            ("MongoDB", ledger.server, "rts_mongo_url"),
        )
        if not server.reachable
    ]
    return [*found, *fleet_problems(redis, ledger_up=ledger.server.reachable)]
