"""From a finished run to a verdict in MongoDB: at least once, without duplicates.

The process that ran a task writes the record of the run into a file
(:mod:`~rts.ledger.sink`, :mod:`~rts.ledger.spool`, :mod:`~rts.ledger.spool_folder`). The
worker's companion ships the files to Redis (:mod:`~rts.ledger.shipper`), which learns from
the records and keeps them in a stream, the outbox, and the latest of each queue in a list
(:mod:`~rts.ledger.recent`).

:mod:`~rts.ledger.drain` moves the records from the outbox (:mod:`~rts.ledger.outbox`) into
MongoDB (:mod:`~rts.ledger.mongo`): they become documents (:mod:`~rts.ledger.documents`),
whatever they hold (:mod:`~rts.ledger.storable`), are merged with those that MongoDB has
(:mod:`~rts.ledger.merging`) and written (:mod:`~rts.ledger.writes`), or set aside
(:mod:`~rts.ledger.refused`). On the way out of the outbox they are counted for the metrics
(:mod:`~rts.ledger.counting`).

:mod:`~rts.ledger.connection` connects to MongoDB and tells outages from other errors,
:mod:`~rts.ledger.schema` creates indexes and collections, and :mod:`~rts.ledger.rollups` drops
the sums of past intervals that a late record makes wrong.
"""
