"""pytest-celery's own stack, for those who have a Docker engine: ``make docker-tests``.

It runs a worker of pytest-celery's own app, without rts, on a Redis and on a RabbitMQ.
Everything that it shows is also shown without Docker by the other tests.
"""

from __future__ import annotations

import pytest
from pytest_celery import CeleryTestSetup, ping

import rts

pytestmark = pytest.mark.docker


def test_tasks_run_with_rts_installed_in_the_producer(celery_setup: CeleryTestSetup) -> None:
    rts.install(celery_setup.app)
    try:
        assert (
            ping.s().apply_async(queue=celery_setup.worker.worker_queue).get(timeout=60)
            == "pong"
        )
    finally:
        rts.uninstall(celery_setup.app)
