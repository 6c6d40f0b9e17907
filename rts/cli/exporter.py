"""``rts exporter``: the metrics for Prometheus."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import click

from rts.cli.common import outages_not_logged, settings_of
from rts.errors import CommandError
from rts.scheduling.readings import queue_readings


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


def _on_signals() -> threading.Event:
    """Return what SIGTERM and SIGINT set."""
    stop = threading.Event()

    def end(signum: int, frame: FrameType | None) -> None:
        # Not from within: the handler could interrupt the very thread that holds its lock.
        threading.Thread(target=stop.set).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    return stop
