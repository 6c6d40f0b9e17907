"""Turning an app to an order: ``rts_scheduler``."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from kombu import transport as kombu_transport

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
    """Have the connections that *app* makes from now on keep the deadline order.

    Raises:
        ConfigurationError: its broker is not Redis.
    """
    check(app.conf, settings)
    if settings.scheduler != "edf":
        return
    stand_in()
    options = dict(app.conf.broker_transport_options or {})
    options[OPTION] = Rule.of(settings).as_option()
    app.conf.broker_transport_options = options


def stand_in() -> None:
    """Have kombu find our transports by the names of its own, in this process.

    By name, so that URLs, their alternates and TLS mean what they always meant.
    """
    for alias, path in _STAND_INS.items():
        if kombu_transport.TRANSPORT_ALIASES.get(alias) != path:
            kombu_transport.TRANSPORT_ALIASES[alias] = path
            kombu_transport._transport_cache.pop(alias, None)


def turn_off(app: Any) -> None:
    """Undo :func:`turn_on` for the connections that *app* makes from now on."""
    options = dict(app.conf.broker_transport_options or {})
    if options.pop(OPTION, None) is not None:
        app.conf.broker_transport_options = options


def check(conf: Any, settings: Settings) -> None:
    """Check that the broker can keep the order that is asked for.

    Raises:
        ConfigurationError: it cannot.
    """
    if settings.scheduler != "edf":
        return
    for key in ("broker_url", "broker_read_url", "broker_write_url"):
        urls = getattr(conf, key, None) or conf.get(key) or ()
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
