"""Alerts without Prometheus. Knows nothing of Celery.

One companion of the fleet, the :mod:`~rts.alerting.leader`, evaluates what is wrong
(:mod:`~rts.alerting.conditions`). An :mod:`~rts.alerting.alert` starts and ends in Redis
(:mod:`~rts.alerting.store`), where its messages wait for each webhook until they are received
(:mod:`~rts.alerting.delivery`, :mod:`~rts.alerting.post`).
"""
