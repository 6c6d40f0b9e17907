"""An app whose configuration goes bad after rts was installed."""

from __future__ import annotations

from tests.apps.basic import app

app.conf.rts_min_samples = 0
