"""When a task will start and finish, by simulations of its queue as it stands, and the route
of least risk.

:mod:`~rts.predictions.predictor` answers for an app; tasks that are not published yet share
readings of their queue (:mod:`~rts.predictions.new_tasks`).

What is there now is put together by :mod:`~rts.predictions.initial_state`, as a
:class:`~rts.predictions.snapshot.Snapshot`: :mod:`~rts.predictions.queue_reader` reads the
broker's messages (:mod:`~rts.predictions.open_queue`), over one connection for all threads
(:mod:`~rts.predictions.shared_connection`); :mod:`~rts.predictions.fleet` what Redis knows of
the workers; and :mod:`~rts.predictions.taken_tasks` infers from both what has started and what
workers hold.

:mod:`~rts.predictions.forecast` runs many simulations from there
(:class:`~rts.predictions.queue_simulation.QueueSimulation`), of the same
:mod:`~rts.simulation.workers`, queues and orders that a replay has. (What differs is what
happens when: a replay plays a known workload from an idle start, and learns taus on the way.)
Each draws runtimes (:mod:`~rts.predictions.runtimes`) and arrivals
(:mod:`~rts.predictions.arrivals`). Together they make a
:class:`~rts.predictions.prediction.Prediction`.

:mod:`~rts.predictions.routing` chooses queues by :mod:`~rts.predictions.pressures`.
"""
