"""The basic app with a task that works off its messages in batches, as celery-batches does.

That library does not go with each version of Celery that rts does, so its way is gone here:
a strategy which collects requests, and a run of all of them that has no request of its own.
"""

from __future__ import annotations

import gc
import os
import signal
from typing import Any

from celery import Task, signals
from celery._state import _task_stack
from celery.app.task import Context
from celery.worker.request import Request, create_request_cls

from tests.apps.basic import app


class Item:
    """What the pool gets of a request."""

    def __init__(self, request: Any) -> None:
        self.id, self.request_dict = request.id, request.request_dict
        self.args = request._payload[0]


class Batched(Task):
    """Called once for each :attr:`flush_every` messages, with a list of items."""

    abstract = True
    typing = False
    flush_every = 3

    def Strategy(self, task: Any, app: Any, consumer: Any) -> Any:
        """Return what Celery calls for each message."""
        request_class = create_request_cls(
            Request, task, consumer.pool, consumer.hostname, consumer.event_dispatcher, app
        )
        collected: list[Any] = []

        def received(
            message: Any, body: Any, ack: Any, reject: Any, *_: Any, **__: Any
        ) -> None:
            request = request_class(
                message, on_ack=ack, on_reject=reject, app=app, hostname=consumer.hostname,
                eventer=consumer.event_dispatcher, task=task, body=message.body,
                headers=message.headers, decoded=False, utc=True,
                connection_errors=consumer.connection_errors,
            )  # fmt: skip
            collected.append(request)
            signals.task_received.send(sender=consumer, request=request)
            if len(collected) == task.flush_every:
                batch = collected[:]
                collected.clear()
                consumer.pool.apply_async(
                    run_batch,
                    (task, [Item(each) for each in batch]),
                    accept_callback=lambda *_: [each.acknowledge() for each in batch],
                )

        return received


def run_batch(task: Any, items: list[Item]) -> None:
    """Run *task* on a batch, in the pool."""
    about = {"sender": task, "task_id": "batch", "task": task, "args": (items,), "kwargs": {}}
    state = "FAILURE"
    _task_stack.push(task)
    task.request_stack.push(Context())
    try:
        signals.task_prerun.send(**about)
        task(items)
        state = "SUCCESS"
    except ValueError:
        pass  # as the library does: it logs, and nobody hears of it
    finally:
        signals.task_postrun.send(**about, retval=None, state=state)
        task.request_stack.pop()
        _task_stack.pop()


@app.task(base=Batched)
def batched(items: list[Item]) -> None:
    """Give each item its double for a result."""
    for item in items:
        app.backend.mark_as_done(item.id, item.args[0] * 2)


@app.task(base=Batched)
def failing(items: list[Item]) -> None:
    """Raise."""
    raise ValueError("on purpose")


@app.task(base=Batched, flush_every=50)
def killed(items: list[Item]) -> None:
    """Kill the process that runs it."""
    os.kill(os.getpid(), signal.SIGKILL)


@app.task
def collect_no_cycles() -> None:
    """Leave it to reference counts to free memory."""
    gc.disable()


@app.task
def requests_alive() -> int:
    """Return how many requests the worker keeps, this one included."""
    return sum(isinstance(each, Request) for each in gc.get_objects())
