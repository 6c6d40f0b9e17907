"""Why a type misses its deadlines, in words."""

from __future__ import annotations

from collections.abc import Mapping

from rts.flower.words import NONE, duration, percent, times
from rts.records import OVERDUE
from rts.views.lateness_causes import DEADLINE, LOAD, QUEUEING, RETRIES, TAU, Why
from rts.views.tally import LATE

#: The reasons as labels, and as what a headline says of a type, after its name.
LABELS: Mapping[str, str] = {
    QUEUEING: "waits too long",
    RETRIES: "late by its retries",
    DEADLINE: "deadline is too tight",
    LOAD: "slowed down by load",
    TAU: "tau is too short",
    OVERDUE: "not ended yet",
}
HEADLINES: Mapping[str, str] = {
    QUEUEING: "its tasks wait too long",
    RETRIES: "its retries take too long",
    DEADLINE: "its deadlines are too tight",
    LOAD: "busy workers slow it down",
    TAU: "its tau is too short",
    OVERDUE: "most of its misses have not ended yet",
}
#: What helps, by reason.
ADVICE: Mapping[str, str] = {
    QUEUEING: "more slots",
    RETRIES: "shorter countdowns of retries, or a greater k",
    DEADLINE: "a later sla_deadline, or none, so that it follows from tau",
    LOAD: "fewer slots for each worker, or more machines",
    TAU: "a separate type or k for tasks that take longer",
    OVERDUE: "see Queues for what is waiting and whether workers consume it",
}


def advice(reason: str, scheduler: str | None) -> str:
    """Return what helps, where *scheduler* is the app's ``rts_scheduler``.

    >>> advice("queueing", None)
    'more slots, or deadline order (rts_scheduler = "edf")'
    """
    if reason == QUEUEING and scheduler is None:
        return f'{ADVICE[reason]}, or deadline order (rts_scheduler = "edf")'
    return ADVICE[reason]


def headline(found: Mapping[str, str]) -> str:
    """Return what a headline says of a type, after its name, with this :func:`finding`.

    >>> headline({"reason": "ended", "label": "ended: killed"})
    'most of its misses did not run to completion (killed)'
    """
    cause = found["label"].removeprefix("ended: ")
    unfinished = f"most of its misses did not run to completion ({cause})"
    return HEADLINES.get(found["reason"], unfinished)


def finding(by_cause: Mapping[str, int], late: Why | None) -> dict[str, str] | None:
    """Return why a type misses: ``reason`` (a keyword), ``label``, and ``text``, a sentence.

    ``None`` if nothing was missed, or the reason is not known.
    """
    missed = sum(by_cause.values())
    if not missed:
        return None
    ended = {cause: n for cause, n in by_cause.items() if cause != LATE}
    worst = max(ended, key=lambda cause: ended[cause], default=None)
    if worst is not None and ended[worst] > missed / 2:
        text = f"{percent(ended[worst] / missed, 0)} of the misses "
        if worst == OVERDUE:
            text += "have not ended yet: they are waiting, run too long or were lost."
            return {"reason": OVERDUE, "label": LABELS[OVERDUE], "text": text}
        text += f"did not run to completion ({worst})."
        return {"reason": "ended", "label": f"ended: {worst}", "text": text}
    if late is None or late.reason is None:
        return None
    share = percent(late.shares[late.reason], 0)
    text = f"{share} of the late tasks {_told(late.reason, late)}."
    return {"reason": late.reason, "label": LABELS[late.reason], "text": text}


def _told(reason: str, late: Why) -> str:
    """Return what has happened to the tasks that were late for *reason*."""
    waited = duration(late.queueing_delay_s)
    span = f"{duration(late.span_s)} from arrival to deadline"
    took = f"took {times(late.slowdown)} their tau"
    load = NONE if late.load is None else f"{late.load:.2f}"
    return {
        QUEUEING: f"ran quickly enough, but waited {waited} with {span}",
        RETRIES: "ran quickly enough in the end, but were retried: their last run began "
        f"{waited} after the arrival, with {span}",
        DEADLINE: f"had {span}, less than their tau; they {took}",
        LOAD: f"started on a busy worker (load {load}) and {took}",
        TAU: f"{took}, more than load explains (load {load})",
    }[reason]
