"""``rts exporter``: the metrics for Prometheus."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from rts.cli.shared import outages_not_logged, settings_of
from rts.errors import CommandError
from rts.scheduling import queues
from rts.settings import Settings

if TYPE_CHECKING:
    from rts.views.metrics import QueueReading


@click.command(name="exporter", short_help="The metrics, for Prometheus.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=9808,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option("--once", is_flag=True, help="Print the metrics and end.")
@click.pass_context
def command(ctx: click.Context, host: str, port: int, once: bool) -> None:
    """Serve the metrics of the whole fleet under /metrics, until SIGTERM or SIGINT.

    One exporter is enough: what it shows is counted in Redis, and a restart takes
    nothing back. Where Redis, MongoDB or the broker is away it says so (rts_up is 0)
    and shows what the others know. Nobody is asked for a password: listen on an
    address that only Prometheus reaches.
    """
    try:
        import prometheus_client
        from prometheus_client import CollectorRegistry

        from rts.views.metrics import RtsCollector
    except ImportError:
        raise CommandError(
            "the exporter needs prometheus-client: pip install 'rts[prometheus]'"
        ) from None
    app, settings = ctx.obj.app, settings_of(ctx)
    collector = RtsCollector(settings, queue_readings(app, settings))
    registry = CollectorRegistry()
    registry.register(collector)
    try:
        with outages_not_logged():
            if once:
                click.echo(prometheus_client.generate_latest(registry).decode(), nl=False)
                return
            stop = _on_signals()
            try:
                server, thread = prometheus_client.start_http_server(
                    port, host, registry=registry
                )
            except OSError as exc:
                raise CommandError(f"{host}:{port} cannot be used: {exc.strerror}") from exc
            where = f"http://{host}:{server.server_port}/metrics"
            click.echo(f"The metrics are at {where}")
            stop.wait()
            server.shutdown()
            server.server_close()
            thread.join(5.0)
    finally:
        collector.close()


def queue_readings(app: Any, settings: Settings) -> Callable[[], Sequence[QueueReading]]:
    """Return what asks the broker of *app* for its queues; of none where it is not Redis.

    What it returns raises :class:`rts.errors.StoreUnavailable`: the broker is away.
    """
    from rts.views.metrics import QueueReading

    def ask() -> Sequence[QueueReading]:
        with queues.queues_of(app, settings) as channel:
            if channel is None:
                return ()
            return [_reading(channel, name) for name in queues.names(app, channel)]

    def _reading(channel: Any, name: str) -> QueueReading:
        state = queues.state_of(channel, name)
        late = queues.past_deadline(channel, name, time.time()) if state.ordered else 0
        hopeless = state.demoted + late
        return QueueReading(name, state.ordered, state.demoted, state.plain, hopeless)

    return ask


def _on_signals() -> threading.Event:
    """Return what SIGTERM and SIGINT set."""
    stop = threading.Event()

    def end(signum: int, frame: FrameType | None) -> None:
        # Not from within: the handler could interrupt the very thread that holds its lock.
        threading.Thread(target=stop.set).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    return stop
