"""The end of a run as one call of ``finish.lua``; for live runs and spooled ones."""

from __future__ import annotations

import math

from rts.keys import running_field
from rts.link.scripts import FINISH, bulks
from rts.records import Execution, Learned
from rts.settings import Settings
from rts.tasktypes import TaskType
from rts.tau.sketch import LOG_BASE

#: What a type is taken for that this process does not know (a spool may be older
#: than the settings).
UNKNOWN_TYPE = TaskType("mixed", 10.0)


def learnable(execution: Execution, *, elsewhere: bool) -> float | None:
    """Return the runtime in seconds that a run teaches; ``None`` for no lesson.

    Only runs that ended in SUCCESS teach, and only their own process has measured.
    """
    runtime = execution.runtime_s
    if elsewhere or execution.state != "SUCCESS" or runtime is None:
        return None
    return runtime if 0 <= runtime < math.inf else None


class FinishCall:
    """Builds the calls; what is the same in each is packed once."""

    def __init__(self, settings: Settings) -> None:
        keys = settings.keys
        self._types = settings.task_types
        self._seq = keys.seq
        fixed_keys = (
            *(keys.tau, keys.count, keys.deviation),
            *(keys.outbox, keys.running, keys.counters),
        )
        packed = bulks(*(key.encode() for key in fixed_keys))
        self._start = FINISH.head(14, 8) + packed
        self._start_whole = FINISH.head(14, 8, whole=True) + packed
        constants = (
            *(settings.learning_rate, settings.max_types, settings.outbox_max),
            *(keys.sketch, repr(LOG_BASE)),
        )
        self._end = bulks(*(str(constant).encode() for constant in constants))

    def pack(
        self,
        execution: Execution,
        producer: str,
        seq: int,
        *,
        elsewhere: bool = False,
        suspect: tuple[str, int] | None = None,
        whole: bool = False,
    ) -> bytes:
        """Return the call for one ended run, record *seq* of the writer *producer*.

        *elsewhere*: written on behalf of the process that ran it. *suspect*: the
        writer and number under which it may have been delivered before.
        """
        actual = learnable(execution, elsewhere=elsewhere)
        return self._pack(
            execution.to_json().encode(),
            running_field(
                execution.task_id, execution.retries, execution.instance, execution.pid
            ).encode("utf-8", "replace"),
            elsewhere,
            producer,
            seq,
            suspect,
            actual,
            execution.task_type,
            execution.name,
            whole,
        )

    def pack_lesson(
        self, task_type: str, name: str, actual_s: float, producer: str, seq: int, whole: bool
    ) -> bytes:
        """Return the call that learns one runtime and records nothing."""
        args = (False, producer, seq, None, actual_s, task_type, name, whole)
        return self._pack(b"", b"", *args)

    def _pack(
        self,
        record: bytes,
        field: bytes,
        elsewhere: bool,
        producer: str,
        seq: int,
        suspect: tuple[str, int] | None,
        actual: float | None,
        task_type: str,
        name: str,
        whole: bool,
    ) -> bytes:
        suspect_key, suspect_seq = (
            (producer, b"")
            if suspect is None
            else (
                suspect[0],
                b"%d" % suspect[1],
            )
        )
        known = self._types.get(task_type, UNKNOWN_TYPE)
        middle = bulks(
            (self._seq + producer).encode(),
            (self._seq + suspect_key).encode(),
            record,
            field,
            b"1" if elsewhere else b"0",
            b"%d" % seq,
            suspect_seq,
            b"" if actual is None else repr(actual).encode(),
            known.name.encode(),
            name.encode("utf-8", "replace"),
            repr(known.tau).encode(),
        )
        return (self._start_whole if whole else self._start) + middle + self._end


def read_answer(answer: bytes) -> Learned | None:
    """Return what the script says was learned; ``None`` where nothing was.

    >>> read_answer(b"ok 5 4.2 - -")
    Learned(tau_before=5.0, tau_after=4.2, name_tau_before=None, name_tau_after=None)
    """
    _, _, learned = answer.partition(b" ")
    return read_learned(learned.decode()) if learned else None


def read_learned(text: str) -> Learned | None:
    """Return the taus of *text* (``TB TA NB NA``, - for none); ``None`` without a type's."""
    taus = [None if part == "-" else float(part) for part in text.split()]
    if len(taus) != 4 or taus[0] is None or taus[1] is None:
        return None
    return Learned(taus[0], taus[1], taus[2], taus[3])
