"""A producer that OpenTelemetry traces; prints each span as a line of JSON.

    python -m tests.apps.traced REDIS_URL PREFIX before|after|none

says when Celery's instrumentor is set up, seen from ``rts.install``.
"""

from __future__ import annotations

import json
import sys

from celery import Celery
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import rts

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)

app = Celery("traced", broker="memory://")
app.conf.update(rts_redis_url=sys.argv[1], rts_key_prefix=sys.argv[2])


@app.task
def add() -> None:
    """Do nothing."""


if __name__ == "__main__":
    if sys.argv[3] == "before":
        CeleryInstrumentor().instrument()
    rts.install(app)
    if sys.argv[3] == "after":
        CeleryInstrumentor().instrument()
    with trace.get_tracer("web").start_as_current_span("request"):
        add.delay()
        add.delay()
    for span in exporter.get_finished_spans():
        print(json.dumps({"name": span.name, **dict(span.attributes or {})}, default=str))
