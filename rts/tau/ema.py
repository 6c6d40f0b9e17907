"""The exponential moving average that tau is.

``τ ← λ·x + (1 − λ)·τ`` with λ in (0, 1] (Brown, *Statistical Forecasting for
Inventory Control*, 1959). After n samples the first value weighs (1 − λ)ⁿ, and
the effective window is about 2/λ − 1 samples.
"""

from __future__ import annotations


def ema(old: float, x: float, rate: float) -> float:
    """Return the average after the sample *x*; *rate* is λ.

    >>> ema(5.0, 1.0, 0.2)
    4.2
    """
    return rate * x + (1 - rate) * old
