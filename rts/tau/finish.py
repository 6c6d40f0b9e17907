"""The ends of runs as calls of ``finish.lua``, and its replies."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from types import MappingProxyType
from typing import NamedTuple

from rts.link.scripts import FINISH, bulks
from rts.records import LOST, NOT_FINAL, Execution, Learned
from rts.settings import Settings
from rts.tasktypes import DEFAULT_TASK_TYPES, UNTYPED
from rts.tau.sketch import LOG_BASE

logger = logging.getLogger("rts.drain")

#: Stands in for a type that this process does not know: a spool may be older than the settings.
UNKNOWN_TYPE = DEFAULT_TASK_TYPES[UNTYPED]

#: For ``finish.lua``: keys besides that of the writer, arguments that each call has, and that
#: each counter and each entry add.
_KEYS, _CONSTANTS, _PER_COUNT, _PER_ENTRY = 10, 8, 2, 8

#: The reply of a Redis that has lost records which it had applied.
RECORDS_LOST = b"lost"


class FinishEntry(NamedTuple):
    """One run of a call: what to learn, and what to append to the outbox."""

    #: Rises within one writer.
    number: int
    #: The execution as JSON; empty to learn only.
    record: bytes
    #: Runtime to learn, seconds; ``None`` for none.
    actual_s: float | None
    task_type: str
    name: str
    #: The tau that the deadline was computed with, seconds; ``None``: there was none.
    tau_s: float | None = None
    #: Id of a task that has ended for good; empty where it goes on.
    ended: str = ""


def learned_runtime(execution: Execution) -> float | None:
    """Return the runtime in seconds to learn from a run; ``None`` for none.

    Only runs that ended in SUCCESS count.
    """
    runtime_s = execution.runtime_s
    if execution.state != "SUCCESS" or runtime_s is None or not 0 <= runtime_s < math.inf:
        return None
    return float(runtime_s)


def finish_entry(execution: Execution, number: int, record: bytes | None = None) -> FinishEntry:
    """Return the entry of one ended run; *record* is its JSON, if at hand.

    Raises:
        TypeError, OverflowError: a field is not of its type.
    """
    if record is None:
        record = execution.to_json().encode()
    actual_s = learned_runtime(execution)
    # The name of a task that no worker knows may be a stranger's: of any type and length.
    name = "" if actual_s is None else str(execution.name)
    # A killed worker's companion reports tasks as never run, even those whose run was retried.
    goes_on = execution.state in NOT_FINAL or (execution.state == LOST and not execution.ran)
    ended = "" if goes_on else str(execution.task_id)
    tau_s = execution.tau
    hash((execution.task_type, tau_s))  # FinishCall looks them up
    return FinishEntry(number, record, actual_s, execution.task_type, name, tau_s, ended)


class FinishCall:
    """Builds the calls; what is the same in each is packed once."""

    def __init__(self, settings: Settings) -> None:
        keys = settings.keys
        self._types = settings.task_types
        self._seq = keys.seq
        names = (keys.tau, keys.count, keys.deviation, keys.outbox, keys.counters)
        self._names = bulks(*(name.encode() for name in (*names, *keys.closing)))
        constants = (
            settings.learning_rate,
            settings.max_types,
            settings.outbox_max,
            keys.sketch,
            repr(LOG_BASE),
            keys.ratio,
        )
        self._constants = bulks(*(str(constant).encode() for constant in constants))
        # Most records share what describes them with others.
        self._described = lru_cache(maxsize=1000)(self._describe)

    def pack(
        self,
        producer: str | None,
        entries: Sequence[FinishEntry],
        counts: Mapping[str, int] = MappingProxyType({}),
        applied: int = 0,
    ) -> bytes:
        """Return one call that applies *entries* in order; with the last one, it adds *counts*
        to the counters.

        *producer*: the writer, each of whose numbers is applied only once; ``None``
        where calls are never repeated. If Redis has lost records of it up to the number
        *applied*, the call does nothing and its reply is :data:`RECORDS_LOST`.

        It carries the script itself: a server that comes back may be a new one.
        """
        parts: list[bytes] = []
        described = self._described
        for n, record, actual_s, task_type, name, tau_s, ended in entries:
            number = b"%d" % n
            actual = b"" if actual_s is None else b"%r" % actual_s
            closing = ended.encode("utf-8", "replace")
            parts.append(
                b"$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n%b$%d\r\n%b\r\n"
                % (
                    len(number),
                    number,
                    len(record),
                    record,
                    len(actual),
                    actual,
                    described(task_type, name, tau_s),
                    len(closing),
                    closing,
                )
            )
        seq = [] if producer is None else [(self._seq + producer).encode()]
        added = (str(part).encode("utf-8", "replace") for part in chain(*counts.items()))
        arguments = _CONSTANTS + _PER_COUNT * len(counts) + _PER_ENTRY * len(entries)
        head = FINISH.head(arguments, _KEYS + len(seq))
        numbers = (b"%d" % applied, b"%d" % len(counts))
        start = bulks(*seq) + self._constants + bulks(*numbers, *added)
        return b"".join((head, self._names, start, *parts))

    def _describe(self, task_type: str, name: str, tau_s: float | None) -> bytes:
        """Return type, name, the type's first tau and the tau that was used, in wire form."""
        known = self._types.get(task_type, UNKNOWN_TYPE)
        return bulks(
            known.name.encode(),
            name.encode("utf-8", "replace"),
            b"%r" % known.tau,
            b"" if tau_s is None else b"%r" % tau_s,
        )


def read_answer(answer: bytes) -> Iterable[Learned | None]:
    """Return what was learned from each entry of a call; ``None`` for nothing.

    >>> list(read_answer(b"5 4.2 - -\\n\\ndup"))[1:]
    [None, None]
    """
    return (read_learned(line) for line in answer.decode().split("\n"))


def log_learned(runs: Sequence[Execution], answer: bytes) -> None:
    """Log at INFO what each run of a call taught: old and new taus, and the actual runtime."""
    if not logger.isEnabledFor(logging.INFO):
        return
    for run, learned in zip(runs, read_answer(answer), strict=False):
        if learned is None:
            continue
        changes = [(run.task_type, learned.tau_before, learned.tau_after)]
        if learned.name_tau_before is not None and learned.name_tau_after is not None:
            changes.append((run.name, learned.name_tau_before, learned.name_tau_after))
        text = ", ".join(f"{name} {old:.6g} -> {new:.6g} s" for name, old, new in changes)
        logger.info("tau learned: %s (actual %.6g s)", text, run.runtime_s)


def read_learned(text: str) -> Learned | None:
    """Return the taus in *text* (``TB TA NB NA``, - for none); ``None`` without a type's.

    Raises:
        ValueError: it is malformed.
    """
    taus = [None if part == "-" else float(part) for part in text.split() if part != "dup"]
    if len(taus) != 4 or taus[0] is None or taus[1] is None:
        return None
    return Learned(taus[0], taus[1], *taus[2:])
