"""What INFO tells of a Redis: whether it takes what rts writes, and keeps it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from redis.exceptions import NoPermissionError, ResponseError

from rts.errors import short
from rts.link.link import Link
from rts.link.scripts import pack
from rts.settings import Settings
from rts.tau.finish import FinishCall


def ask_facts(link: Link, settings: Settings) -> tuple[dict[str, str], str | None]:
    """Return the fields of INFO (none where the user may not ask, as on some managed servers),
    and why records cannot be written; ``None`` if nothing says that.
    """
    # Both are harmless: the script that takes records is given none, and the last command, for
    # which one must be allowed to write, finds nothing to remove.
    info, taken, removed = link.call_each(
        pack("INFO"),
        FinishCall(settings).pack(None, []),
        pack("HDEL", settings.keys.workers, ""),
    )
    lines = info.decode("utf-8", "replace").splitlines() if isinstance(info, bytes) else []
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    return facts, refusal_of(facts, settings.key_prefix) or _refusal_in(taken, removed)


def _refusal_in(taken: object, removed: object) -> str | None:
    """Return why Redis refuses the script that takes records, whose reply is *taken*, or any
    write, such as the one whose reply is *removed*.
    """
    if isinstance(taken, NoPermissionError) and isinstance(removed, NoPermissionError):
        return None  # this user may only look; those of the workers may write
    if isinstance(taken, ResponseError):
        return (
            f"{short(taken)}. Let the user in rts_redis_url run scripts on rts's keys, and "
            "nothing else use these"
        )
    if isinstance(removed, ResponseError) and not isinstance(removed, NoPermissionError):
        return f"{short(removed)}. Put that right on the server"
    return None


def version_of(facts: Mapping[str, str]) -> str | None:
    """Return the version of the server. Valkey, for old clients, claims to be a Redis too."""
    valkey = facts.get("valkey_version")
    return f"Valkey {valkey}" if valkey else facts.get("redis_version")


def eviction_of(facts: Mapping[str, str]) -> str | None:
    """Return the policy by which keys without a TTL, such as the outbox, may be evicted."""
    policy = facts.get("maxmemory_policy", "")
    limited = facts.get("maxmemory", "0") != "0"
    return policy if limited and policy.startswith("allkeys-") else None


def _evictable(facts: Mapping[str, str]) -> bool:
    """Return whether keys with a TTL, such as Celery's results, are evicted for others."""
    return facts.get("maxmemory_policy", "").startswith("volatile-") and any(
        re.fullmatch(r"db\d+", name) and "expires=0," not in figures
        for name, figures in facts.items()
    )


def refusal_of(facts: Mapping[str, str], prefix: str) -> str | None:
    """Return why scripts that write keys below *prefix* fail, as far as INFO tells."""
    if facts.get("role") == "slave" and facts.get("slave_read_only") == "1":
        return "it is a read-only replica. Name its primary in rts_redis_url"
    # Valkey, from 8 on, calls it server_mode. A hash tag keeps all keys in one slot.
    mode = facts.get("redis_mode") or facts.get("server_mode")
    if mode == "cluster" and not re.match(r"[^{]*\{[^}]+\}", prefix):
        return "it is a Redis Cluster. Name another server in rts_redis_url"
    limit, used, uncounted = (
        int(text) if (text := facts.get(name, "")).isdecimal() else 0
        for name in ("maxmemory", "used_memory", "mem_not_counted_for_evict")
    )
    if 0 < limit < used - uncounted and eviction_of(facts) is None and not _evictable(facts):
        return f"its memory is full (maxmemory {limit / 2**20:.0f} MiB). Give it more"
    return None
