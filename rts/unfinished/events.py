"""Deadline events, as they become known: a capped stream for alerting.

Each event is added once. The stream holds the last ``MAX_EVENTS``; a reader that falls
further behind finds the verdicts in the ledger.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from rts.validation import json_object

#: Events that the stream holds at most.
MAX_EVENTS = 20_000


class Event(NamedTuple):
    """One event. Instants are seconds since the epoch by the clock of the Redis server.

    In the stream it is a JSON object of these fields, in the entry's field ``e``. Names are
    untrusted texts of at most 1,024 characters.
    """

    #: ``overdue``: the deadline has passed and the task has not ended. (One that ends too late
    #: is reported by ``rts.signals.deadline_missed``.) Readers ignore other kinds.
    kind: str
    task_id: str
    name: str
    task_type: str
    #: ``None`` if unknown.
    queue: str | None
    arrival: float
    deadline: float
    tau: float
    #: When this became known.
    at: float
    #: STARTED while a run of it goes on, else PENDING.
    state: str
    #: The worker that runs it; ``None`` if none does.
    worker: str | None = None
    retries: int = 0

    def to_json(self) -> str:
        """Return the event as it is stored in the stream."""
        return json.dumps(self._asdict(), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Event:
        """Read what :meth:`to_json` wrote; fields of newer versions are ignored.

        Raises:
            ValueError: the text is not an event.
        """
        values = json_object(text, "an event")
        try:
            return cls(**{name: values[name] for name in cls._fields if name in values})
        except TypeError as exc:
            raise ValueError(f"not an event: {exc}") from exc
