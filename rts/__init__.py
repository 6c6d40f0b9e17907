"""rts: learned runtimes, deadlines and a durable SLA ledger for Celery.

>>> import rts
>>> from celery import Celery
>>> app = Celery("proj", broker="redis://localhost:6379/0")
>>> rts.install(app)
>>> rts.uninstall(app)
"""

from rts.current import Current
from rts.errors import CommandError, ConfigurationError, RtsError, StoreUnavailable
from rts.foresight import Prediction, predict, predict_new, route
from rts.integration import current, install, uninstall

__all__ = [
    "CommandError",
    "ConfigurationError",
    "Current",
    "Prediction",
    "RtsError",
    "StoreUnavailable",
    "current",
    "install",
    "predict",
    "predict_new",
    "route",
    "uninstall",
]

__version__ = "0.1.0"
