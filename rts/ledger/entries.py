"""The format of the entries in the outbox stream."""

from __future__ import annotations

from rts.records import Execution, OutboxEntry
from rts.tau.finish import read_learned


def read_entry(entry_id: str, record: str, learned: str = "") -> OutboxEntry:
    """Parse one entry of the stream.

    Raises:
        ValueError: it is not an entry of rts.
    """
    try:
        execution = Execution.from_json(record)
        return OutboxEntry(entry_id, execution, read_learned(learned) if learned else None)
    except (TypeError, RecursionError, OverflowError) as exc:
        raise ValueError(f"not a record of rts: {exc}") from exc
