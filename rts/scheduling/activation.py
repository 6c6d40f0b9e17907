"""Switching an app's connections to the deadline order: ``rts_scheduler``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import kombu
from kombu import pools
from kombu import transport as kombu_transport

from rts import health
from rts.errors import ConfigurationError
from rts.rule import OPTION, Rule
from rts.settings import Settings

_MODULE = "rts.scheduling.transport"
#: Our transports, by kombu's aliases for Redis; without the option they behave like kombu's.
TRANSPORTS = {
    "redis": f"{_MODULE}:Transport",
    "rediss": f"{_MODULE}:Transport",
    "sentinel": f"{_MODULE}:SentinelTransport",
}
#: kombu's transports without message priorities. ``memory`` is left out: in tests it stands
#: in for the broker that an app is configured for.
WITHOUT_PRIORITIES = frozenset(
    [
        *("azureservicebus", "azurestoragequeues", "confluentkafka", "consul", "etcd"),
        *("filesystem", "gcpubsub", "kafka", "pgmq", "pyro", "slmq"),
        *("sqla", "sqlalchemy", "sqs"),
    ]
)


def turn_on(app: Any, settings: Settings) -> None:
    """Put the connections that *app* opens from now on, and its producer pool, in deadline
    order, if ``rts_scheduler`` is "edf".

    Raises:
        ConfigurationError: its broker is not Redis, or kombu is too new.
    """
    check_broker(app.conf, settings, default="amqp")
    if settings.scheduler != "edf":
        return
    register_transports()
    options = dict(app.conf.broker_transport_options or {})
    options[OPTION] = Rule.of(settings).as_option()
    _set_options(app.conf, options)
    _renew_pools(app)


def keep_on(app: Any, settings: Settings) -> None:
    """Turn it on again if *app*'s configuration has changed since and lost the option."""
    if settings.scheduler != "edf" or OPTION in (app.conf.broker_transport_options or {}):
        return
    try:
        turn_on(app, settings)
    except ConfigurationError as exc:
        warn_off(exc)


def _set_options(conf: Any, options: dict[str, Any]) -> None:
    """Set *options* where reading ``conf.broker_transport_options`` finds them."""
    conf.broker_transport_options = options
    if conf.broker_transport_options is not options:
        # Celery < 5.7 looks for a name with the app's namespace before one without, and
        # settings such as CELERY_BROKER_TRANSPORT_OPTIONS would win over what is set here.
        name = f"{conf.prefix}broker_transport_options"
        conf[name.upper() if conf.prefix.isupper() else name.lower()] = options


def _renew_pools(app: Any) -> None:
    """Switch the pools of an *app* that has published before to its current options: kombu has
    a pool for each connection and its options.
    """
    if app._pool is None:
        return
    connection = app.connection_for_write()
    app._pool = pools.connections[connection]
    app.amqp._producer_pool = pools.producers[connection]
    app.amqp._producer_pool.limit = app.pool.limit


def warn_off(why: ConfigurationError) -> None:
    """Log that an app does not get the deadline order that it asks for."""
    health.warn_once("order", "rts: the deadline order is off: %s", why)


def register_transports() -> None:
    """Register our transports under kombu's aliases, in this process.

    The aliases stay the same so that URLs, failover URLs and TLS keep their meaning.
    """
    for alias, path in TRANSPORTS.items():
        if kombu_transport.TRANSPORT_ALIASES.get(alias) != path:
            kombu_transport.TRANSPORT_ALIASES[alias] = path
            kombu_transport._transport_cache.pop(alias, None)


def turn_off(app: Any) -> None:
    """Undo :func:`turn_on`, for *app*'s producer pool and the connections to come."""
    options = dict(app.conf.broker_transport_options or {})
    if options.pop(OPTION, None) is not None:
        _set_options(app.conf, options)
        _renew_pools(app)


def check_broker(conf: Any, settings: Settings, default: str = "") -> None:
    """Check that the broker and kombu support ``rts_scheduler``, and warn if "priority" has
    no effect. *default*: the URL to assume if none is configured; "": then do not check the
    broker, which may still be configured.

    Raises:
        ConfigurationError: one of them does not support "edf".
    """
    scheduler = settings.scheduler
    if scheduler is None:
        return
    for key, url in _broker_urls(conf, default):
        _check_transport(scheduler, key, transport_of(url))
    if scheduler == "edf":
        _check_kombu()


def _broker_urls(conf: Any, default: str) -> Iterator[tuple[str, str]]:
    """Yield each configured URL of the broker with the name of its setting."""
    given = {
        key: getattr(conf, key, None) or conf.get(key) or ()
        for key in ("broker_url", "broker_read_url", "broker_write_url")
    }
    if default and not any(given.values()):
        given["broker_url"] = default
    for key, urls in given.items():
        for url in urls.split(";") if isinstance(urls, str) else urls:
            yield key, url


def _check_transport(scheduler: str, key: str, alias: str) -> None:
    begins = f"({key} begins with {alias}://)"
    if scheduler == "priority":
        if alias in WITHOUT_PRIORITIES:
            health.warn_once(
                "order",
                "rts: rts_scheduler = 'priority' changes no order: the broker has no message "
                "priorities %s",
                begins,
            )
        return
    if alias in TRANSPORTS:
        return
    needs = "'edf' needs redis://, rediss://, redis+socket:// or sentinel://"
    allowed = f"'priority' or None if the broker is not Redis {begins}; {needs}"
    if alias in WITHOUT_PRIORITIES:
        allowed = (
            f"None if the broker has no message priorities {begins}; {needs}, 'priority' one "
            "of those, amqp:// or mongodb://"
        )
    raise ConfigurationError("rts_scheduler", "edf", allowed)


def _check_kombu() -> None:
    from rts.scheduling.transport import missing_methods

    if missing := missing_methods():
        raise ConfigurationError(
            "rts_scheduler",
            "edf",
            f"'priority' or None with kombu {kombu.__version__}, whose Redis transport has no "
            f"{' and no '.join(missing)}; 'edf' needs an older kombu or a newer rts",
        )


def transport_of(url: str) -> str:
    """Return the alias of kombu's transport for a broker's URL.

    >>> transport_of("sqla+sqlite:///broker.db"), transport_of("SQS://"), transport_of("host")
    ('sqla', 'sqs', 'amqp')
    """
    return urlsplit(url).scheme.partition("+")[0] if "://" in url else "amqp"
