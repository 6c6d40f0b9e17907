"""Taus in the memory of one process: for simulations, and as the reference for Redis."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace

from rts.ports import TauEntry
from rts.records import Learned
from rts.settings import Settings


class MemoryTauStore:
    """A :class:`rts.ports.TauStore` without a server. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._entries: dict[str, TauEntry] = {}

    def get(self, task_type: str, name: str | None = None) -> float:
        """See :class:`rts.ports.TauStore`."""
        with self._lock:
            return choose_tau(self._settings, self._entries, task_type, name)

    def update(self, task_type: str, name: str, actual_s: float) -> Learned:
        """See :class:`rts.ports.TauStore`."""
        default = self._settings.task_types[task_type].tau
        with self._lock:
            of_type = self._learn(task_type, default, actual_s)
            of_name = self._learn(f"{task_type}/{name}", default, actual_s)
        return Learned(*(of_type or (default, default)), *(of_name or (None, None)))

    def set(self, field: str, tau_s: float) -> None:
        """See :class:`rts.ports.TauStore`."""
        with self._lock:
            old = self._entries.get(field, TauEntry(tau_s, 0, 0.0))
            self._entries[field] = replace(old, tau=tau_s)

    def reset(self, field: str | None = None) -> None:
        """See :class:`rts.ports.TauStore`."""
        with self._lock:
            if field is None:
                self._entries.clear()
            else:
                self._entries.pop(field, None)

    def entries(self) -> Mapping[str, TauEntry]:
        """See :class:`rts.ports.TauStore`."""
        with self._lock:
            return dict(self._entries)

    def _learn(self, field: str, default: float, actual_s: float) -> tuple[float, float] | None:
        """Return the tau before and after; ``None`` if there is no room for another field."""
        rate = self._settings.learning_rate
        old = self._entries.get(field)
        if old is None and len(self._entries) >= self._settings.max_types:
            names = [known for known in self._entries if "/" in known]
            if "/" in field or not names:
                return None
            # A type takes the place of a name, which uses its type's tau from now on.
            del self._entries[min(names, key=lambda name: self._entries[name].count)]
        tau = old.tau if old else default
        error_s = abs(actual_s - tau)
        new = TauEntry(
            ema(tau, actual_s, rate),
            (old.count if old else 0) + 1,
            ema(old.deviation, error_s, rate) if old and old.count else error_s,
        )
        self._entries[field] = new
        return tau, new.tau


def ema(old: float, x: float, rate: float) -> float:
    """Return the exponential moving average after the sample *x*; *rate* is λ, in (0, 1].

    ``τ ← λ·x + (1 − λ)·τ`` (Brown, *Statistical Forecasting for Inventory Control*, 1959).
    After n samples the first value weighs (1 − λ)ⁿ.

    >>> ema(5.0, 1.0, 0.2)
    4.2
    """
    return rate * x + (1 - rate) * old


def choose_tau(
    settings: Settings, entries: Mapping[str, TauEntry], task_type: str, name: str | None
) -> float:
    """Return the tau that a deadline uses: the name's once it has enough runs, else the
    type's, else the type's default.
    """
    if name is not None and settings.tau_scope == "name":
        own = entries.get(f"{task_type}/{name}")
        if own is not None and own.count >= settings.min_samples:
            return own.tau
    known = entries.get(task_type)
    return settings.task_types[task_type].tau if known is None else known.tau
