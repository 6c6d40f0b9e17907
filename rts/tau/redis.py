"""Taus in Redis, shared by all processes and hosts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rts import health
from rts.link.link import Link
from rts.link.replies import replies_as_text
from rts.link.scripts import RESTORE, pack
from rts.ports import TauEntry
from rts.records import Learned
from rts.settings import Settings
from rts.tau.finish import UNKNOWN_TYPE, FinishCall, FinishEntry, read_answer
from rts.tau.memory import choose_tau
from rts.validation import finite


def parse_count(text: str | None) -> int:
    """Return *text* as a number of runs; 0 where it is not one."""
    # More than 18 digits might not fit into MongoDB's 64 bits, and int() refuses thousands.
    return int(text) if text and len(text) <= 18 and text.isdecimal() else 0


def parse_tau(text: str) -> float | None:
    """Return *text* as a tau in seconds, above 0 and finite; ``None`` where it is not one.

    People may write into the hash.
    """
    tau = finite(text)
    if tau is not None and tau > 0:
        return tau
    health.count("refused_tau")
    health.warn_once(
        f"tau:{health.shown(text)}",
        "rts: %s in the tau hash is not a number of seconds; it is ignored. Correct it with "
        "celery -A proj rts tau set",
        health.shown(text),
    )
    return None


class RedisTauStore:
    """A :class:`rts.ports.TauStore` on Redis. Updates are atomic across all writers."""

    def __init__(self, link: Link, settings: Settings) -> None:
        self._link = link
        self._settings = settings
        self._keys = settings.keys
        self._call = FinishCall(settings)

    def get(self, task_type: str, name: str | None = None) -> float:
        """See :class:`rts.ports.TauStore`."""
        return choose_tau(self._settings, self.entries(), task_type, name)

    def update(self, task_type: str, name: str, actual_s: float) -> Learned:
        """See :class:`rts.ports.TauStore`."""
        default = self._settings.task_types[task_type].tau
        entry = FinishEntry(1, b"", actual_s, task_type, name)
        (answer,) = self._link.call(self._call.pack(None, [entry]))
        (learned,) = read_answer(answer)
        return learned or Learned(default, default)

    def set(self, field: str, tau_s: float) -> None:
        """See :class:`rts.ports.TauStore`."""
        self._link.call(pack("HSET", self._keys.tau, field, repr(float(tau_s))))

    def reset(self, field: str | None = None) -> None:
        """See :class:`rts.ports.TauStore`."""
        hashes = (self._keys.tau, self._keys.count, self._keys.deviation)
        sketch, ratio = self._keys.sketch.encode(), self._keys.ratio.encode()
        if field is None:
            # By the fields in the hashes, so that invalid ones are removed, too.
            answers = self._link.call(*(pack("HKEYS", key) for key in hashes))
            names = {name for answer in answers for name in answer}
            others = (pack("DEL", sketch + name, ratio + name) for name in (*names, b"*"))
            self._link.call(pack("DEL", *hashes), *others)
        else:
            deletes = [pack("HDEL", key, field) for key in hashes]
            name = field.encode()
            self._link.call(*deletes, pack("DEL", sketch + name, ratio + name))

    def entries(self) -> Mapping[str, TauEntry]:
        """See :class:`rts.ports.TauStore`."""
        keys = (self._keys.tau, self._keys.count, self._keys.deviation)
        return read_entries(*self._link.call(*(pack("HGETALL", key) for key in keys)))

    def restore(self, entries: Mapping[str, TauEntry], generation: str) -> None:
        """Restore a snapshot into a Redis that was wiped (or is new). What was learned since
        the wipe counts as learned after the snapshot.
        """
        keys, types = self._keys, self._settings.task_types
        groups: list[Any] = []
        for field, entry in entries.items():
            default = types.get(field.partition("/")[0], UNKNOWN_TYPE).tau
            tau, deviation = repr(entry.tau), repr(entry.deviation)
            groups += [field, tau, entry.count, deviation, repr(default)]
        command = RESTORE.pack(
            [keys.generation, keys.tau, keys.count, keys.deviation],
            [generation, repr(self._settings.learning_rate), *groups],
        )
        self._link.call(command)


def read_entries(taus: Any, counts: Any, deviations: Any) -> dict[str, TauEntry]:
    """Return the valid entries of three HGETALL replies."""
    count_of, deviation_of = replies_as_text(counts), replies_as_text(deviations)
    entries = {}
    for field, text in replies_as_text(taus).items():
        tau = parse_tau(text)
        if tau is None:
            continue
        deviation = max(0.0, finite(deviation_of.get(field)) or 0.0)
        entries[field] = TauEntry(tau, parse_count(count_of.get(field)), deviation)
    return entries
