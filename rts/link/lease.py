"""Lets one process of the fleet at a time have a role, or do a chore."""

from __future__ import annotations

import secrets

from rts.link.link import Link
from rts.link.scripts import LEASE


class Lease:
    """One process's lease on *key*.

    *name*: unique to this process in the fleet. *lease_s*: seconds until the lease
    expires, unless it is renewed.
    """

    def __init__(self, link: Link, key: str, name: str, lease_s: float) -> None:
        self._link = link
        self._acquire = LEASE.pack([key], [name, int(lease_s * 1000)])
        self._release = LEASE.pack([key], [name, 0])

    def acquire(self) -> bool:
        """Acquire or renew the lease; return False while another process holds it."""
        return bool(self._link.call(self._acquire)[0])

    def release(self) -> None:
        """Release the lease; does nothing if another process holds it."""
        self._link.call(self._release)


def first_in(link: Link, key: str, seconds: float) -> bool:
    """Return whether this call is the first one of the fleet for *key* in so many seconds."""
    return Lease(link, key, secrets.token_hex(8), seconds).acquire()
