"""Open tasks in Redis: what notes them, ends them, counts them, and finds them overdue."""

from __future__ import annotations

import json
from typing import Any

import redis

from rts.link.link import Link
from rts.notices import TaskOverdue
from rts.records import OpenTask
from rts.settings import Settings
from rts.tau.finish import FinishCall, finish_entry
from rts.unfinished.open_tasks import OpenTasks
from rts.unfinished.overdue import OverdueSweep
from tests.records import success


def task(task_id: str, deadline: float, **changes: Any) -> OpenTask:
    made = OpenTask(
        *(task_id, "proj.add", "mixed", "inferred", 5.0, 2.0, deadline - 10, deadline),
        *("published", "q", 0, "parent", "root"),
    )
    return made._replace(**changes)


def note(settings: Settings, *tasks: OpenTask) -> OpenTasks:
    open_tasks = OpenTasks(Link(settings), settings, every_s=1e6)
    for one in tasks:
        open_tasks.note(one)
    open_tasks.flush()
    return open_tasks


def end(settings: Settings, *task_ids: str, state: str = "SUCCESS") -> None:
    entries = [
        finish_entry(success(task_id)._replace(state=state), n)
        for n, task_id in enumerate(task_ids, 1)
    ]
    Link(settings).call(FinishCall(settings).pack(None, entries))


def counts(client: Any, settings: Settings) -> dict[str, int]:
    """Return the counts that are not 0, having checked that they agree with the sets."""
    keys = settings.keys
    with client.pipeline() as moment:  # workers may go on
        moment.hgetall(keys.open_counts)
        moment.zcard(keys.open).zcard(keys.overdue).hlen(keys.open_info)
        counted, *sizes, infos = moment.execute()
    found = {k: int(n) for k, n in counted.items() if int(n)}
    for what, size in zip(("open", "overdue"), sizes, strict=True):
        total = sum(n for field, n in found.items() if field.startswith(f"{what} "))
        assert total == size
    assert infos == sum(sizes)
    return found


def events(settings: Settings) -> list[TaskOverdue]:
    """Return the notices of overdue tasks that were given."""
    client = redis.Redis.from_url(settings.redis_url)
    told = [values[b"e"] for _, values in client.xrange(settings.keys.events)]
    client.close()
    return [TaskOverdue(**json.loads(text)) for text in told]


def overdue_sweep(
    settings: Settings, ledger: Any, name: str = "me", **options: Any
) -> OverdueSweep:
    """Return one that has settled already, unless its time is moved by hand."""
    given = {"now": lambda: 0.0, **options}
    made = OverdueSweep(Link(settings), settings, ledger, name, **given)
    if "now" not in options:
        made._looked_at = 0.0
    return made
