"""The companion process that runs beside each worker, without Celery.

The worker starts it (:mod:`~rts.companion.supervisor`) with its instructions
(:mod:`~rts.companion.instructions`). :mod:`~rts.companion.process` is its ``main``, and
:mod:`~rts.companion.loop` repeats its chores: those for the worker
(:mod:`~rts.companion.worker_chores`), for the host and the fleet
(:mod:`~rts.companion.host_chores`) and on the ledger (:mod:`~rts.companion.ledger_chores`).
When the worker has ended, it settles that worker's last runs
(:mod:`~rts.companion.postmortem`).
"""
