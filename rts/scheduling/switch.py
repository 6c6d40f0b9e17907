"""Turning an app to an order: ``rts_scheduler``."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from kombu import pools
from kombu import transport as kombu_transport

from rts import health
from rts.errors import ConfigurationError
from rts.scheduling.rule import OPTION, Rule
from rts.settings import Settings

_MODULE = "rts.scheduling.transport"
#: The transports that stand in for kombu's; without the option they are kombu's.
_STAND_INS = {
    "redis": f"{_MODULE}:Transport",
    "rediss": f"{_MODULE}:Transport",
    "sentinel": f"{_MODULE}:SentinelTransport",
}


def turn_on(app: Any, settings: Settings) -> None:
    """Have the connections that *app* makes from now on, and what it publishes, keep the
    deadline order.

    Raises:
        ConfigurationError: its broker is not Redis.
    """
    check(app.conf, settings, default="amqp")
    if settings.scheduler != "edf":
        return
    stand_in()
    options = dict(app.conf.broker_transport_options or {})
    options[OPTION] = Rule.of(settings).as_option()
    app.conf.broker_transport_options = options
    _change_pools(app)


def keep_on(app: Any, settings: Settings) -> None:
    """Turn *app* on again where it was configured further since, which may have taken the
    option back.
    """
    if settings.scheduler != "edf" or OPTION in (app.conf.broker_transport_options or {}):
        return
    try:
        turn_on(app, settings)
    except ConfigurationError as exc:
        say_off(exc)


def _change_pools(app: Any) -> None:
    """Have *app*, which has published before, do so over connections of the options that
    it has now: kombu keeps a pool for each kind of connection.
    """
    if app._pool is None:
        return
    connection = app.connection_for_write()
    app._pool = pools.connections[connection]
    app.amqp._producer_pool = pools.producers[connection]
    app.amqp._producer_pool.limit = app.pool.limit


def say_off(why: ConfigurationError) -> None:
    """Log that an app does not get the order that it asks for."""
    health.warn_once("order", "rts: the deadline order is off: %s", why)


def stand_in() -> None:
    """Have kombu find our transports by the names of its own, in this process.

    By name, so that URLs, their alternates and TLS mean what they always meant.
    """
    for alias, path in _STAND_INS.items():
        if kombu_transport.TRANSPORT_ALIASES.get(alias) != path:
            kombu_transport.TRANSPORT_ALIASES[alias] = path
            kombu_transport._transport_cache.pop(alias, None)


def turn_off(app: Any) -> None:
    """Undo :func:`turn_on` for the connections that *app* makes from now on, and for what
    it publishes.
    """
    options = dict(app.conf.broker_transport_options or {})
    if options.pop(OPTION, None) is not None:
        app.conf.broker_transport_options = options
        _change_pools(app)


def check(conf: Any, settings: Settings, default: str = "") -> None:
    """Check that the broker can keep the order that is asked for. *default*: the broker
    where no URL is given; "" where one may yet be.

    Raises:
        ConfigurationError: it cannot.
    """
    if settings.scheduler != "edf":
        return
    given = {
        key: getattr(conf, key, None) or conf.get(key) or ()
        for key in ("broker_url", "broker_read_url", "broker_write_url")
    }
    if default and not any(given.values()):
        given["broker_url"] = default
    for key, urls in given.items():
        for url in urls.split(";") if isinstance(urls, str) else urls:
            scheme = urlsplit(url).scheme if "://" in url else url
            if scheme.partition("+")[0] not in _STAND_INS:
                raise ConfigurationError(
                    "rts_scheduler",
                    "edf",
                    f"'priority' or None where the broker is not Redis ({key} begins with "
                    f"{scheme}://); 'edf' needs redis://, rediss://, redis+socket:// or "
                    "sentinel://",
                )
