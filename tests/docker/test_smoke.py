"""pytest-celery's own stack, for those who have a Docker engine: ``make docker-tests``.

It builds a worker image with the app below and runs it with a Redis and a RabbitMQ
broker. Everything that it shows is also shown without Docker by the other tests.
"""

from __future__ import annotations

from typing import Any

import pytest
from pytest_celery import CeleryTestSetup, ping

pytestmark = pytest.mark.docker


@pytest.fixture
def default_worker_initial_content(default_worker_initial_content: Any) -> Any:
    """The worker's container, as pytest-celery fills it."""
    return default_worker_initial_content


def test_tasks_run_with_rts_installed_in_the_producer(celery_setup: CeleryTestSetup) -> None:
    import rts

    rts.install(celery_setup.app)
    try:
        assert (
            ping.s().apply_async(queue=celery_setup.worker.worker_queue).get(timeout=60)
            == "pong"
        )
    finally:
        rts.uninstall(celery_setup.app)
