"""Keeps the secrets of rts out of what Celery shows of an app.

``celery report``, ``inspect conf`` and thus Flower's page of a worker show an app's settings.
Celery masks those whose names look secret, and the passwords of brokers and result backends.
"""

from __future__ import annotations

import re
from dataclasses import fields

from rts.settings import Settings

#: Settings whose values may contain passwords and tokens.
SECRET = [f"rts_{each.name}" for each in fields(Settings) if not each.repr]


def mask_settings() -> None:
    """Have Celery mask these for all apps of this process; idempotent."""
    from celery.app import utils

    hidden = getattr(utils, "HIDDEN_SETTINGS", None)
    if isinstance(hidden, re.Pattern) and not all(map(hidden.search, SECRET)):
        utils.HIDDEN_SETTINGS = re.compile("|".join((hidden.pattern, *SECRET)), hidden.flags)
