"""The learned taus, by type and by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rts.link.link import Link
from rts.link.replies import replies_as_text
from rts.link.scripts import pack
from rts.ports import TauEntry
from rts.settings import Settings
from rts.tau.redis import RedisTauStore
from rts.tau.sketch import Sketch

#: Source of a tau: the type's default, a person, or runs.
DEFAULT, SET, LEARNED = "default", "set", "learned"


@dataclass(frozen=True)
class TauRow:
    """One type (``name`` is ``None``) or one task name in it. Percentiles are those of the
    learned runs, to within 2 %; ``None`` without runs.
    """

    field: str
    task_type: str
    name: str | None
    tau_s: float
    source: str
    runs: int
    deviation_s: float | None
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None


def tau_rows(link: Link, settings: Settings) -> list[TauRow]:
    """Return a row for each type of *settings*, and for every other learned tau."""
    entries = RedisTauStore(link, settings).entries()
    fields = sorted({*settings.task_types, *entries}, key=lambda field: field.partition("/"))
    learned = [field for field in fields if field in entries]
    prefix = settings.keys.sketch
    replies = link.call(*(pack("HGETALL", prefix + field) for field in learned))
    sketches = {
        field: Sketch.from_hash(replies_as_text(reply))
        for field, reply in zip(learned, replies, strict=True)
    }
    return [_row(settings, entries, sketches.get(field, Sketch()), field) for field in fields]


def _row(
    settings: Settings, entries: Mapping[str, TauEntry], sketch: Sketch, field: str
) -> TauRow:
    entry = entries.get(field)
    task_type, slash, name = field.partition("/")
    runs = 0 if entry is None else entry.count
    return TauRow(
        field=field,
        task_type=task_type,
        name=name if slash else None,
        tau_s=settings.task_types[field].tau if entry is None else entry.tau,
        source=DEFAULT if entry is None else LEARNED if runs else SET,
        runs=runs,
        deviation_s=entry.deviation if entry is not None and runs else None,
        p50_s=sketch.quantile(0.50),
        p95_s=sketch.quantile(0.95),
        p99_s=sketch.quantile(0.99),
    )
