"""The "RTS" tab of Flower: the ledger, Redis and the queues in a browser.

Only :mod:`rts.flower.hook` is loaded in processes that are not Flower's, and it imports nothing
heavy. It adds the :mod:`~rts.flower.tab` to a Flower: :mod:`~rts.flower.handlers` and
:mod:`~rts.flower.templates`.

:mod:`~rts.flower.pages` builds the document of each page from parts
(:mod:`~rts.flower.page_parts`, :mod:`~rts.flower.charts`, :mod:`~rts.flower.timeline`), as the
address asks (:mod:`~rts.flower.filters`). :mod:`~rts.flower.source` queries the servers, in
threads, for many viewers at once (:mod:`~rts.flower.cache`). Templates show numbers by
:mod:`~rts.flower.words`, and why a type misses by :mod:`~rts.flower.reasons`.
"""
