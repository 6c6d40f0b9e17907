"""Tasks leave their queue by deadline instead of by arrival.

:mod:`~rts.scheduling.activation` makes kombu use our :mod:`~rts.scheduling.transport` for
Redis, which gets the settings as one option, the :mod:`rts.rule`. Its
:mod:`~rts.scheduling.channel` publishes each message at its position
(:mod:`~rts.scheduling.encoding`), to keys of our own (:mod:`~rts.scheduling.layout`), and takes
messages by :mod:`~rts.scheduling.claims`, as far as the worker's :mod:`~rts.scheduling.slots`
are free (:mod:`~rts.scheduling.poller`). :mod:`~rts.scheduling.qos` acknowledges and requeues
them. What must happen in one step is one of the :mod:`~rts.scheduling.scripts`.

For other brokers, :mod:`~rts.scheduling.priority` turns deadlines into message priorities.

In either order, :mod:`~rts.scheduling.discovery` finds the queues that there are and
:mod:`~rts.scheduling.queues` looks into them, for :mod:`~rts.scheduling.queue_metrics`, too.
:mod:`~rts.scheduling.worker_capacity` tells how many tasks a worker takes.
"""
