"""Receivers of Celery's signals: they turn these into records and pass the records on.

:mod:`~rts.lifecycle.receivers` lists the signals and connects them to
:mod:`~rts.lifecycle.producer_side` and :mod:`~rts.lifecycle.worker_side`, which get what they
work with from the app's :class:`~rts.parts.Parts`.

- A publish: :mod:`~rts.lifecycle.planning` gives the message its plan, shares deadlines along
  a canvas (:mod:`~rts.lifecycle.propagation`), and follows what takes the place of a task
  (:mod:`~rts.lifecycle.replacements`). :mod:`~rts.lifecycle.owners` tells which app publishes.
- A run: :mod:`~rts.lifecycle.runs` records it from its start to its end
  (:mod:`~rts.lifecycle.outcomes` tells how it has ended), and :mod:`~rts.lifecycle.batches`
  those of several tasks that run at once. What cannot report its end is reported by
  :mod:`~rts.lifecycle.ends`.
- Both: :mod:`~rts.lifecycle.tracing` puts the plan on the app's spans, and
  :mod:`~rts.lifecycle.soft_time_limit` makes up for a limit that strikes in one of our hooks.
"""
