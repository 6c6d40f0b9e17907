"""Learned runtimes, and the stores that share them.

:mod:`~rts.tau.redis` and :mod:`~rts.tau.memory` store the taus for all processes and for one;
:mod:`~rts.tau.sketch` reads quantiles of runtimes. Redis learns from the ends of runs as it
takes them (:mod:`~rts.tau.finish`); publishers read it at most once a second
(:mod:`~rts.tau.cache`), and a copy in the ledger outlives it (:mod:`~rts.tau.snapshot`).
"""
