"""Keeping the secrets of rts out of what Celery tells of an app.

``celery report``, ``inspect conf`` and by that Flower's page of a worker show the settings of
an app. Celery masks what its own names tell to be secret, and the passwords of brokers and
result backends.
"""

from __future__ import annotations

import re

#: Settings whose values have passwords and tokens in them.
SECRET = ("rts_redis_url", "rts_mongo_url", "rts_webhooks")


def mask_settings() -> None:
    """Have Celery mask these, in this process and whatever the app; again changes nothing."""
    from celery.app import utils

    hidden = getattr(utils, "HIDDEN_SETTINGS", None)
    if isinstance(hidden, re.Pattern) and not all(map(hidden.search, SECRET)):
        utils.HIDDEN_SETTINGS = re.compile("|".join((hidden.pattern, *SECRET)), hidden.flags)
