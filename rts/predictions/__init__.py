"""When a task will start and finish, by simulations of its queue as it stands, and the route
of least risk.

:mod:`~rts.predictions.predictor` answers for an app. It takes an
:class:`~rts.predictions.initial_state.Picture` of the queue:
:mod:`~rts.predictions.queue_reader` reads the broker's messages, over one connection for all
threads (:mod:`~rts.predictions.shared_connection`), and :mod:`~rts.predictions.fleet` what
Redis knows of the workers. Callers at about the same time share one
(:mod:`~rts.predictions.cached_reading`).

:mod:`~rts.predictions.forecast` runs many simulations from that state
(:class:`~rts.predictions.simulation.QueueSimulation`). Each draws runtimes
(:mod:`~rts.predictions.runtimes`) and arrivals (:mod:`~rts.predictions.arrivals`), and
accounts for workers that consume several queues (:mod:`~rts.predictions.shared_workers`) and
prefetch (:mod:`~rts.predictions.prefetched`). Together they make a
:class:`~rts.predictions.prediction.Prediction`.

:mod:`~rts.predictions.routing` chooses queues by :mod:`~rts.predictions.pressures`.
"""
