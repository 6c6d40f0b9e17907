"""The options of connections to Redis: those of the URL that redis-py knows, and ours."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pkgutil import resolve_name
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url, to_bool
from redis.retry import Retry

from rts import health
from rts.errors import ConfigurationError, short
from rts.settings import Settings
from rts.urls import shown_url

#: Options of TLS that redis-py does not read in a URL, the first one before version 8: it would
#: pass on their text.
_TLS: dict[str, Callable[[Any], Any]] = {
    "ssl_min_version": int,
    "ssl_validate_ocsp": to_bool,
    "ssl_validate_ocsp_stapled": to_bool,
}


def connection_options(settings: Settings) -> tuple[Any, dict[str, Any]]:
    """Return the class of connections to the Redis of *settings*, and its arguments.

    Raises:
        ConfigurationError: an option in the URL has a value of the wrong type, or names
            a credential provider that cannot be loaded.
    """
    shown = shown_url(settings.redis_url)
    try:
        given = dict(parse_url(settings.redis_url))  # type: ignore[no-untyped-call]  # redis-py
        given.update({name: read(given[name]) for name, read in _TLS.items() if name in given})
    except ValueError:  # an option of the wrong type
        allowed = "a URL whose options redis-py understands"
        raise ConfigurationError("rts_redis_url", shown, allowed) from None
    make = given.pop("connection_class", redis.Connection)
    options = supported_options(make, given)
    if (name := options.get("credential_provider")) is not None:
        credentials = _Credentials(name)
        try:
            credentials.provider()
        except (ImportError, LookupError, AttributeError, TypeError, ValueError) as exc:
            why = short(exc)
            allowed = f"a URL whose credential_provider names a class: module.Class ({why})"
            raise ConfigurationError("rts_redis_url", shown, allowed) from exc
        except Exception as exc:  # noqa: BLE001  its own trouble: each connection tries it anew
            _pass_on_limit(exc)
        # redis-py accepts either a provider or a user name and password.
        options.update(credential_provider=credentials, username=None, password=None)
    # Unless these are None, each connection tells redis-py's name and version, in two more
    # round trips.
    client_info = {"driver_info"} & parameters_of(make) or {"lib_name", "lib_version"}
    # These override the URL, which may be the broker's and have options meant for it.
    options.update(
        socket_timeout=settings.timeout,
        socket_connect_timeout=settings.connect_timeout,
        retry=Retry(NoBackoff(), 0),
        retry_on_timeout=False,
        health_check_interval=0,
        decode_responses=False,
        protocol=2,
        **dict.fromkeys(client_info),
    )
    return make, options


class _Credentials(redis.CredentialProvider):
    """The credentials of the app's provider, a class called *name*, whose failures count as
    those of the server.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._provider: redis.CredentialProvider | None = None

    def provider(self) -> redis.CredentialProvider:
        """Return the provider, made at first use. Raises whatever that raises."""
        if self._provider is None:
            self._provider = load_credential_provider(self._name)
        return self._provider

    def get_credentials(self) -> Any:
        """Return a password, or user name and password.

        Raises:
            redis.RedisError: the provider fails.
        """
        try:
            return self.provider().get_credentials()
        except Exception as exc:
            _pass_on_limit(exc)
            raise redis.RedisError(f"no credentials ({short(exc)})") from exc


def _pass_on_limit(exc: Exception) -> None:
    """Raise a soft time limit: it is for the task that publishes."""
    from celery.exceptions import SoftTimeLimitExceeded

    if isinstance(exc, SoftTimeLimitExceeded):
        raise exc


def supported_options(connection_class: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of *options* that the connection class accepts.

    A broker's URL may have options that are meant for Celery alone.
    """
    known = parameters_of(connection_class)
    for name in options.keys() - known:
        health.warn_once(
            f"redis-option:{name}",
            "rts: redis-py has no option %s, which the Redis URL sets; it is ignored",
            health.shown(name),
        )
    return {name: value for name, value in options.items() if name in known}


def load_credential_provider(name: str) -> redis.CredentialProvider:
    """Instantiate the credential provider class called *name*, as kombu and Celery do.

    Raises:
        ImportError, LookupError, AttributeError, TypeError, ValueError: there is no such class,
            or it is no credential provider that can be made without arguments; or the
            environment lacks what it needs. Any other: what its own code raises.
    """
    # Without a colon, the ImportError of a module within a package would be swallowed.
    provider = resolve_name(name if ":" in name else ":".join(name.rsplit(".", 1)))()
    if not isinstance(provider, redis.CredentialProvider):
        raise TypeError(f"{name} is no redis.CredentialProvider")
    return provider


def parameters_of(connection_class: type) -> set[str]:
    """Return the names of the options that the connection class accepts."""
    return {
        parameter
        for cls in connection_class.__mro__
        for parameter in inspect.signature(cls.__init__).parameters  # type: ignore[misc]  # each class's own
    }
