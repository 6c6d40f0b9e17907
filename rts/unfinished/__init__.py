"""Tasks and runs that have not ended: where they are noted, and who ends those that never
would.

A published task is noted in Redis (:mod:`~rts.unfinished.open_tasks`, in the format of
:mod:`~rts.unfinished.open_task_format`). If its deadline passes before it ends,
:mod:`~rts.unfinished.overdue` gives it a verdict and tells so.

A run is noted in memory that the worker's processes share
(:mod:`~rts.unfinished.shared_memory`, :mod:`~rts.unfinished.notes`); so are the tasks that the
worker has received (:mod:`~rts.unfinished.received`) and acknowledged
(:mod:`~rts.unfinished.acknowledged`) last. The companion copies the notes to Redis
(:mod:`~rts.unfinished.in_flight`) and sends the worker's heartbeat
(:mod:`~rts.unfinished.heartbeat`). Once that stops, :mod:`~rts.unfinished.janitor` ends the
worker's runs.
"""
