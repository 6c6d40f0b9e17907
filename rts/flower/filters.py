"""What a page shows, as its address says: ``?since=1h&type=…&name=…&worker=…``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlencode

from rts.views.windows import parse

DEFAULT_SINCE = "24h"
#: What the pages offer; any other duration can be typed into the address.
CHOICES = ("15m", "1h", "6h", "24h", "7d", "30d")
LEAST, MOST = timedelta(seconds=10), timedelta(days=400)
#: Characters of a filter that are looked at; no name in the ledger is longer.
MAX_TEXT = 1024


class BadFilter(ValueError):
    """A filter is not understood; the message says what is."""


@dataclass(frozen=True)
class Filters:
    """The filters of one page, validated."""

    since: str = DEFAULT_SINCE
    duration: timedelta = timedelta(days=1)
    task_type: str | None = None
    name: str | None = None
    worker: str | None = None

    @classmethod
    def of(cls, argument: Callable[[str], str | None]) -> Filters:
        """Read the filters; *argument* returns one of the address, or ``None``.

        Raises:
            BadFilter: ``since`` is no duration.
        """
        since = (argument("since") or DEFAULT_SINCE).strip()
        try:
            duration = parse(since)
        except (ValueError, OverflowError):
            duration = timedelta(0)
        if isinstance(duration, datetime) or not LEAST <= duration <= MOST:
            raise BadFilter(f"since = {since[:80]!r} is no duration such as 15m, 24h or 7d")
        return cls(
            since,
            duration,
            *((argument(name) or "")[:MAX_TEXT] or None for name in ("type", "name", "worker")),
        )

    def query(self, **changes: str | None) -> str:
        """Return the query of an address with *changes* to these filters.

        >>> Filters(task_type="a&b").query(since="1h")
        'since=1h&type=a%26b'
        """
        values = {
            "since": self.since,
            "type": self.task_type,
            "name": self.name,
            "worker": self.worker,
            **changes,
        }
        return urlencode({key: value for key, value in values.items() if value})
