"""What waits in a queue of the broker. :mod:`rts.scheduling.queues` asks for it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rts.views.json_values import utc


@dataclass(frozen=True)
class QueueState:
    """The number of messages that wait in a queue."""

    name: str
    #: In deadline order, not demoted.
    ordered: int
    #: Demoted as hopeless, behind all others.
    demoted: int
    #: On kombu's plain lists, until a worker in deadline order adopts them.
    plain: int
    #: Deadline of the first message in the order, epoch seconds.
    next_deadline: float | None

    @property
    def waiting(self) -> int:
        """All waiting messages."""
        return self.ordered + self.demoted + self.plain


#: A queue, and how many of its messages can no longer be on time.
WaitingQueue = tuple[QueueState, int]


def queue_document(state: QueueState) -> dict[str, Any]:
    """Return the state of a queue as JSON shows it."""
    return {**asdict(state), "next_deadline": utc(state.next_deadline)}
