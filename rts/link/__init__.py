"""Access to Redis: lean connections behind a circuit breaker, Lua scripts, leases.

:mod:`~rts.link.link` sends packed commands (:mod:`~rts.link.scripts`) over connections that it
makes by the URL (:mod:`~rts.link.options`), once the server's name is resolved
(:mod:`~rts.link.lookup`), waits only so long for their replies (:mod:`~rts.link.waits`), and
leaves a server that has failed alone for a while (:mod:`~rts.link.breaker`).
:mod:`~rts.link.replies` reads what comes back. Built on it:
:mod:`~rts.link.delivery` keeps what Redis did not accept, and :mod:`~rts.link.lease` lets one
process of the fleet do what all could.

Whatever asks Redis something over a link raises :class:`rts.errors.StoreUnavailable` where that
does not answer in time, or refuses.
"""
