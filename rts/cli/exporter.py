"""``rts exporter``: the metrics for Prometheus."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import click

from rts.cli.common import outages_not_logged, set_on_signals, settings_of
from rts.errors import CommandError
from rts.scheduling.queue_metrics import queue_readings

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


@click.command(name="exporter", short_help="The metrics, for Prometheus.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=9808,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option("--once", is_flag=True, help="Print the metrics and exit.")
@click.pass_context
def command(ctx: click.Context, host: str, port: int, once: bool) -> None:
    """Serve the metrics of the whole fleet at /metrics, until SIGTERM or SIGINT.

    One exporter is enough: counters live in Redis, so a restart does not reset them. If Redis,
    MongoDB or the broker (where that is Redis) is down, its rts_up is 0 and its metrics are
    missing. There is no authentication: listen on an address that only Prometheus can reach.
    """
    try:
        import prometheus_client

        from rts.views.metrics import RtsCollector
    except ImportError:
        raise CommandError(
            "the exporter needs prometheus-client: pip install 'rts[prometheus]'"
        ) from None
    app, settings = ctx.obj.app, settings_of(ctx)
    with closing(RtsCollector(settings, queue_readings(app, settings))) as collector:
        registry = prometheus_client.CollectorRegistry()
        registry.register(collector)
        with outages_not_logged():
            if once:
                click.echo(prometheus_client.generate_latest(registry).decode(), nl=False)
            else:
                _serve(registry, host, port)


def _serve(registry: CollectorRegistry, host: str, port: int) -> None:
    from prometheus_client import start_http_server

    with set_on_signals() as stop:
        try:
            server, thread = start_http_server(port, host, registry=registry)
        except OSError as exc:
            raise CommandError(f"cannot listen on {host}:{port}: {exc.strerror}") from exc
        place = f"[{host}]" if ":" in host else host  # as URLs have IPv6 addresses
        click.echo(f"Serving metrics at http://{place}:{server.server_port}/metrics")
        stop.wait()
    server.shutdown()
    server.server_close()
    thread.join(5.0)
