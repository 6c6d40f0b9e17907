"""The read side, which commands, Flower, the metrics and alerts share: questions to the
servers and their answers, by the time of the fleet (:mod:`~rts.views.fleet_time`). Where one
does not answer, they raise :class:`rts.errors.StoreUnavailable`, or of MongoDB pymongo's error.

From the ledger: reports (:mod:`~rts.views.report`), the same over time
(:mod:`~rts.views.series`), objectives (:mod:`~rts.views.slo`), single tasks and runs
(:mod:`~rts.views.runs`), and why runs were late (:mod:`~rts.views.lateness_causes`). From
Redis: servers and workers (:mod:`~rts.views.status`, :mod:`~rts.views.redis_facts`), with what
metrics read as well (:mod:`~rts.views.fleet_state`), and the taus (:mod:`~rts.views.taus`).
What waits in the broker is a :class:`~rts.views.queue_state.QueueState`, and
:mod:`~rts.views.problems` says in words what is wrong.

The first three count what lies in windows of time (:mod:`~rts.views.counts`). A busy window is
cut into whole intervals (:mod:`~rts.views.intervals`), whose sums are stored
(:mod:`~rts.views.rollups`, in the format of :mod:`~rts.views.packing`) and used again while
nothing in them has changed (:mod:`~rts.views.seal`). The server counts the rest
(:mod:`~rts.views.aggregation`), into a :class:`~rts.views.tally.Tally` with buckets for
percentiles (:mod:`~rts.views.histogram`).

The metrics for Prometheus: :mod:`~rts.views.metrics` asks several servers at once
(:mod:`~rts.views.background`), and :mod:`~rts.views.families` names what it reads
(:mod:`~rts.views.readings`).
"""
