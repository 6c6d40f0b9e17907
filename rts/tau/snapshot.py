"""Taus survive a wiped Redis: snapshots in the ledger, restored once."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from rts.link.lease import first_in
from rts.link.link import Link
from rts.link.scripts import pack
from rts.ports import Ledger, TauEntry
from rts.settings import Settings
from rts.tau.redis import RedisTauStore


class Snapshots:
    """Saves the taus, and restores them into a Redis without a generation mark. Raises
    :class:`rts.errors.StoreUnavailable` if Redis or MongoDB is unavailable.
    """

    def __init__(self, link: Link, settings: Settings, ledger: Ledger) -> None:
        self._link = link
        self._generation = settings.keys.generation
        self._lease = settings.keys.snapshot
        self._store = RedisTauStore(link, settings)
        self._ledger = ledger
        self._saved: Mapping[str, TauEntry] | None = None

    def restore(self) -> None:
        """Restore the taus if Redis is new or was wiped."""
        (marked,) = self._link.call(pack("EXISTS", self._generation))
        if not marked:
            self._store.restore(self._ledger.load_taus(), secrets.token_hex(8))

    def save(self, *, lease_s: float = 0.0) -> bool:
        """Save the taus if they have changed; return whether they had.

        *lease_s*: only if no drain of the fleet has done so in that many seconds.
        """
        if lease_s > 0 and not first_in(self._link, self._lease, lease_s):
            return False
        (before,) = self._link.call(pack("GET", self._generation))
        entries = self._store.entries()
        (after,) = self._link.call(pack("GET", self._generation))
        # If Redis was wiped meanwhile, perhaps even restored, these entries are incomplete.
        if before is None or before != after or entries == self._saved:
            return False
        self._ledger.save_taus(entries)
        self._saved = entries
        return True
