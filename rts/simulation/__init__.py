"""What-if simulations: a workload, recorded or synthetic, on given slots in a given order.

>>> from rts.settings import Settings
>>> from rts.simulation.orders import EarliestDeadlineFirst, FirstComeFirstServed
>>> from rts.simulation.simulator import share_met, simulate
>>> from rts.simulation.traces import at_load, six_types
>>> jobs = at_load(six_types(500, seed=1), slots=4, rho=1.1)
>>> fifo = share_met(simulate(jobs, 4, FirstComeFirstServed(), Settings()))
>>> edf = share_met(simulate(jobs, 4, EarliestDeadlineFirst(), Settings()))
>>> edf > fifo
True

:mod:`~rts.simulation.simulator` plays the jobs of a trace (:mod:`~rts.simulation.traces`) or of
the ledger (:mod:`~rts.simulation.recording`), by :mod:`~rts.simulation.workers` that take them
from their :mod:`~rts.simulation.queues` in one of the :mod:`~rts.simulation.orders`; workers
like the recorded ones come from :mod:`~rts.simulation.pools`.
:mod:`~rts.simulation.statistics` sums up the outcomes; :mod:`~rts.simulation.planning` finds
the least number of slots that meets a target.
"""
