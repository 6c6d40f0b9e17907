"""The filters of a page, from its query string: ``?since=1h&type=…&name=…&worker=…``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlencode

from rts.fields import text
from rts.views.windows import parse

DEFAULT_SINCE = "24h"
#: The choices on the pages; the address accepts any other duration.
CHOICES = ("15m", "1h", "6h", "24h", "7d", "30d")
MIN_WINDOW, MAX_WINDOW = timedelta(seconds=10), timedelta(days=400)


class BadFilter(ValueError):
    """A filter is invalid; the message says what is valid."""


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
        """Read the filters; *argument* returns an argument of the query, or ``None``.

        Raises:
            BadFilter: ``since`` is not a duration between ``MIN_WINDOW`` and ``MAX_WINDOW``.
        """
        since = (argument("since") or DEFAULT_SINCE).strip()
        try:
            duration = parse(since)
        except (ValueError, OverflowError):
            duration = timedelta(0)
        if isinstance(duration, datetime) or not MIN_WINDOW <= duration <= MAX_WINDOW:
            raise BadFilter(
                f"since = {since[:80]!r} is not a duration such as 15m, 24h or 7d (10s to 400d)"
            )
        return cls(
            since,
            duration,
            # As in the ledger, where long names are cut.
            *(text(argument(name) or "") or None for name in ("type", "name", "worker")),
        )

    def values(self) -> dict[str, str | None]:
        """Return the filters by their names in the address."""
        return {
            "since": self.since,
            "type": self.task_type,
            "name": self.name,
            "worker": self.worker,
        }

    def query(self, **changes: str | None) -> str:
        """Return the query string of these filters with *changes*.

        >>> Filters(task_type="a&b").query(since="1h")
        'since=1h&type=a%26b'
        """
        values = {**self.values(), **changes}
        return urlencode({key: value for key, value in values.items() if value})
