"""rts: learned runtimes, deadlines and a durable SLA ledger for Celery.

>>> import rts
>>> from celery import Celery
>>> app = Celery("proj", broker="redis://localhost:6379/0")
>>> rts.install(app)
>>> rts.uninstall(app)
"""

from importlib import import_module
from typing import TYPE_CHECKING

from rts.current import Current, current
from rts.errors import CommandError, ConfigurationError, RtsError, StoreUnavailable
from rts.prediction_api import predict, predict_new, route
from rts.predictions.prediction import Prediction
from rts.wiring import install, uninstall

if TYPE_CHECKING:
    from rts import signals
else:

    def __getattr__(name):
        """Import :mod:`rts.signals`, which needs Celery, on first access."""
        if name == "signals":
            return import_module("rts.signals")
        raise AttributeError(f"module 'rts' has no attribute {name!r}")


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
    "signals",
    "uninstall",
]

__version__ = "0.1.0"
