"""The basic app with receivers of rts.signals, and tracing libraries where asked for.

``TEST_TOLD`` is the file that each receiver, exporter and transport appends a line to.
``TEST_TRACING``: ``before`` (the instrumentor is set up before ``rts.install``), ``child``
(after it, in each pool child, as OpenTelemetry's manual says), or ``sentry``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from typing import Any

from celery.signals import worker_process_init

import rts

TRACING = os.environ.get("TEST_TRACING", "")


def told(kind: str, **facts: Any) -> None:
    """Append a line to the file."""
    line = json.dumps({"kind": kind, "pid": os.getpid(), **facts}, default=str) + "\n"
    with open(os.environ["TEST_TOLD"], "a") as file:
        file.write(line)


def trace() -> None:
    """Set up OpenTelemetry with its Celery instrumentor."""
    from opentelemetry import trace
    from opentelemetry.instrumentation.celery import CeleryInstrumentor
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter

    class ToFile(SpanExporter):
        def export(self, spans: Any) -> Any:
            span: ReadableSpan
            for span in spans:
                told("span", name=span.name, attributes=dict(span.attributes or {}))

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ToFile()))
    trace.set_tracer_provider(provider)
    CeleryInstrumentor().instrument()


def sentry() -> None:
    """Set up Sentry with a transport that sends nothing."""
    import sentry_sdk
    from sentry_sdk.transport import Transport

    class ToFile(Transport):
        def capture_envelope(self, envelope: Any) -> None:
            for item in envelope.items:
                event = item.get_event() or item.get_transaction_event()
                if event is not None:
                    told("event", tags=event.get("tags"), type=event.get("type", "error"))

    sentry_sdk.init("http://k@127.0.0.1:1/1", transport=ToFile, traces_sample_rate=1.0)


if TRACING == "before":
    trace()
if TRACING == "sentry":
    sentry()
from tests.apps.basic import app  # noqa: E402  it installs rts

if TRACING == "child":
    worker_process_init.connect(lambda **_: trace(), weak=False)


@app.task
def slow(seconds: float) -> None:
    """Take *seconds*."""
    time.sleep(seconds)


@rts.signals.deadline_missed.connect
def missed(sender: str, notice: Any, **_: Any) -> None:
    """Tell."""
    told("missed", sender=sender, **dataclasses.asdict(notice))


@rts.signals.deadline_missed.connect
def broken(**_: Any) -> None:
    """Fail, as apps do."""
    raise RuntimeError("on purpose")


@rts.signals.task_overdue.connect
def overdue(sender: str, notice: Any, **_: Any) -> None:
    """Tell."""
    told("overdue", sender=sender, **dataclasses.asdict(notice))


@rts.signals.slo_burning.connect
def burning(sender: str, notice: Any, **_: Any) -> None:
    """Tell."""
    told("burning", sender=sender, **dataclasses.asdict(notice))
