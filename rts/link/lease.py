"""A turn that one process of the fleet has at a time."""

from __future__ import annotations

from rts.link.link import Link
from rts.link.scripts import LEASE


class Lease:
    """One process's claim to the turn that *key* stands for in Redis.

    *name*: of the process; no other of the fleet has the same. *lease_s*: seconds after
    the last :meth:`take` from which on another may have the turn.
    """

    def __init__(self, link: Link, key: str, name: str, lease_s: float) -> None:
        self._link = link
        self._take = LEASE.pack([key], [name, int(lease_s * 1000)])
        self._leave = LEASE.pack([key], [name, 0])

    def take(self) -> bool:
        """Take or keep the turn if no other has it; return whether it is had.

        Raises:
            StoreUnavailable: Redis is away.
        """
        return bool(self._link.call(self._take)[0])

    def leave(self) -> None:
        """Let another have the turn at once. If another has it, nothing happens.

        Raises:
            StoreUnavailable: Redis is away.
        """
        self._link.call(self._leave)
