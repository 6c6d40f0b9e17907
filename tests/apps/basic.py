"""An app with one task for each way that a run can end; configured by environment."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from typing import Any

from celery import Celery, chain, signature
from celery.exceptions import Ignore, Reject
from celery.signals import task_prerun

import rts

app = Celery("basic", broker=os.environ["TEST_BROKER"], backend=os.environ.get("TEST_BACKEND"))
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_transport_options=json.loads(os.environ.get("TEST_TRANSPORT_OPTIONS", "{}")),
    worker_hijack_root_logger=False,
    **json.loads(os.environ.get("TEST_CONF", "{}")),
)


@task_prerun.connect(weak=False)  # before those of rts
def die(sender: Any, **_: Any) -> None:
    """Kill the process that is about to run :func:`never_begins`."""
    if sender.name == never_begins.name:
        os.kill(os.getpid(), signal.SIGKILL)


if os.environ.get("TEST_INSTALL", "1") == "1":
    rts.install(app)


@app.task
def ok(seconds: float = 0.0) -> float:
    """Sleep and succeed."""
    time.sleep(seconds)
    return seconds


@app.task
def fail() -> None:
    """Raise."""
    raise ValueError("on purpose")


@app.task(bind=True, max_retries=3)
def retry_once(self: Any, headers: Any = None) -> int:
    """Fail the first time; retry, with *headers* in place of the message's own."""
    if self.request.retries == 0:
        options = {} if headers is None else {"headers": headers}
        raise self.retry(countdown=0.1, **options)
    return int(self.request.retries)


@app.task(bind=True, autoretry_for=(KeyError,), retry_backoff=False, default_retry_delay=0.1)
def autoretry(self: Any) -> int:
    """Fail twice with an exception that is retried for."""
    if self.request.retries < 2:
        raise KeyError("again")
    return int(self.request.retries)


@app.task(soft_time_limit=0.5)
def soft_limit() -> None:
    """Run into the soft time limit."""
    time.sleep(30)


@app.task(soft_time_limit=3, time_limit=10)
def soft_limit_in_a_publish(server: int) -> None:
    """Run into the soft time limit in a publish, which waits for the process *server*."""
    time.sleep(1.1)  # the taus are no longer fresh
    os.kill(server, signal.SIGSTOP)
    time.sleep(0.2)
    ok.delay()
    time.sleep(30)


@app.task(time_limit=1)
def hard_limit() -> None:
    """Run into the hard time limit."""
    time.sleep(30)


@app.task
def kill_self() -> None:
    """Kill the process that runs it."""
    os.kill(os.getpid(), signal.SIGKILL)


@app.task
def never_begins() -> None:
    """Be the end of the process before it runs this; see :func:`die`."""


@app.task
def cancelled() -> None:
    raise asyncio.CancelledError


@app.task
def exits() -> None:
    """Raise an exception that is no ``Exception``."""
    sys.exit("on purpose")


@app.task(acks_late=True, reject_on_worker_lost=True)
def kill_once(marker: str) -> str:
    """Kill the process the first time; succeed when it is delivered again."""
    if not os.path.exists(marker):
        open(marker, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return "second life"


@app.task(acks_late=True)
def waits_for(marker: str) -> str:
    """Be rejected and requeued until the file *marker* exists."""
    if not os.path.exists(marker):
        raise Reject("not yet", requeue=True)
    return "found"


@app.task(acks_late=True)
def late(seconds: float) -> float:
    """Sleep; acknowledged when done."""
    time.sleep(seconds)
    return seconds


@app.task(acks_late=True)
def until(marker: str) -> str:
    """Run until the file *marker* exists; acknowledged when done."""
    while not os.path.exists(marker):
        time.sleep(0.02)
    return "released"


@app.task
def ignored() -> None:
    """Leave no result."""
    raise Ignore


@app.task(acks_late=True)
def rejected() -> None:
    """Reject the message."""
    raise Reject("on purpose", requeue=False)


@app.task(acks_late=True)
def requeued(marker: str) -> str:
    """Have the message queued again the first time."""
    if not os.path.exists(marker):
        open(marker, "w").close()
        raise Reject("on purpose", requeue=True)
    return "second life"


@app.task
def plan() -> dict[str, Any] | None:
    """Return what rts.current() says inside."""
    current = rts.current()
    if current is None:
        return None
    return {
        "task_type": current.task_type,
        "tau": current.tau,
        "arrival": current.arrival,
        "deadline": current.deadline,
        "remaining": current.remaining(),
        "load": dict(current.load),
    }


@app.task(bind=True)
def headers(self: Any, *_: Any) -> dict[str, Any]:
    """Return the rts headers that it was published with."""
    attributes = vars(self.request)
    return {k: v for k, v in attributes.items() if k in ("task_type", "id") or k[:4] == "rts_"}


@app.task(bind=True)
def written_down(self: Any) -> str:
    """Return all that its request holds, as JSON."""
    return json.dumps(vars(self.request))


@app.task(bind=True)
def replaced(self: Any) -> Any:
    """Replace itself by :func:`headers`."""
    return self.replace(headers.s())


@app.task(bind=True)
def replaced_by(self: Any, options: dict[str, Any]) -> Any:
    """Replace itself by :func:`ok`, published with *options*."""
    return self.replace(ok.si().set(**options))


@app.task(bind=True)
def replaced_by_canvas(self: Any, canvas: dict[str, Any]) -> Any:
    """Replace itself by a chain, a group or a chord."""
    return self.replace(signature(canvas, app=app))


@app.task(bind=True, max_retries=2, acks_late=True, reject_on_worker_lost=True)
def replaced_at_last(self: Any, marker: str | None = None) -> Any:
    """Retry twice; with *marker*, then kill the process the first time; then replace
    itself by :func:`fail`.
    """
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    if marker is not None and not os.path.exists(marker):
        open(marker, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return self.replace(fail.si())


@app.task
def nested(queue: str | None = None) -> str:
    """Publish another task from within, to *queue*."""
    return str(headers.apply_async(queue=queue).id)


@app.task(rts={"task_type": "cpu-heavy"})
def heavy() -> None:
    """Have a type of its own."""


@app.task(bind=True)
def passing_on(self: Any, **more: Any) -> str:
    """Publish :func:`heavy` with its own headers, and *more*."""
    return str(heavy.apply_async(headers={**self.request.headers, **more}).id)


@app.task
def eager() -> tuple[str, Any]:
    """Run :func:`plan` within itself; return its id and what it returned."""
    result = plan.apply()
    return str(result.id), result.result


@app.task
def loaded_modules(prefix: str) -> list[str]:
    """Return the modules that the process which runs it has loaded."""
    return [name for name in sys.modules if name.split(".")[0] == prefix]


@app.task
def pid() -> int:
    """Return the process id of the process that runs it."""
    return os.getpid()


def pipeline() -> Any:
    """A chain of three."""
    return chain(headers.s(), headers.s(), headers.s())
