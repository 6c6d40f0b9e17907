"""Installing rts into a Celery app: the only wiring.

One set of receivers per process serves all apps with rts. Each receiver is a
boundary: whatever goes wrong inside is counted and logged once, and the host
application does not notice.

Celery is imported inside functions: the companion process imports this package
too, and does not need Celery.
"""

from __future__ import annotations

import os
import re
import threading
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from rts import health
from rts.errors import ConfigurationError
from rts.installation import ATTRIBUTE, Installation, installed, parts_of, publisher, publishers
from rts.settings import Settings

if TYPE_CHECKING:
    from celery import Celery

#: For the receivers, which all apps share: one thread may install while another uninstalls.
#: Nothing that may import a module happens under it: another thread may be importing that one,
#: which installs rts. Re-entrant: a Unix signal handler may do either.
_wiring = threading.RLock()


def _after_fork() -> None:
    """Replace the lock in a child: a thread of the parent may have held it."""
    global _wiring
    _wiring = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)


def install(app: Celery) -> None:
    """Give every task of *app* a type, a tau, a deadline and an SLA record.

    Call it once on the app that producers, workers, beat and Flower share; a second
    call changes nothing. Call it before or after configuring the app: settings made by
    then are validated at once, later ones when the worker starts (which then fails) or
    at the first publish (which then goes on without rts, and logs it).

    Raises:
        ConfigurationError: a setting is invalid; the message names the setting,
            the value and what is allowed.
        TypeError: *app* is not a Celery app, but the module that holds it, say.
    """
    from celery import Celery

    app = _itself(app)
    if not isinstance(app, Celery):
        raise TypeError(f"rts.install takes a Celery app, not {health.shown(app)}")
    try:
        _validate(app)
    except ConfigurationError as exc:
        # Error trackers send the variables of each frame: these hold URLs with passwords.
        raise exc.with_traceback(None) from None
    wire(app)


def wire(app: Celery) -> None:
    """Do what :func:`install` does, but leave the check of the settings to the worker's start
    and to the first publish.
    """
    from celery.signals import import_modules

    from rts.flower import hook
    from rts.lifecycle import receivers
    from rts.worker import add_steps

    _mask_secrets()
    with _wiring:
        if app in installed:
            return
        setattr(app, ATTRIBUTE, Installation())
        installed.add(app)
        publishers.clear()
        receivers.connect(parts_of, publisher)
        add_steps(app)
        app.on_after_configure.connect(_apply_order, weak=False, dispatch_uid="rts.order")
        hook.attach(_has_rts)
        import_modules.connect(_attach_to_flower, weak=False, dispatch_uid="rts.flower")
    if app.configured:
        _apply_order(app)


def uninstall(app: Celery) -> None:
    """Remove rts from *app*: new messages carry nothing of it. Undoes :func:`install`.

    Sends what it still has to tell Redis of published tasks, then closes its connections.
    What is in Redis and MongoDB stays. A running worker loses its hooks at once, and its
    companion process when it stops.
    """
    from celery.signals import import_modules

    from rts.flower import hook
    from rts.lifecycle import receivers
    from rts.scheduling.activation import turn_off
    from rts.worker import remove_steps

    app = _itself(app)
    with _wiring:
        if app not in installed:
            return
        installation = getattr(app, ATTRIBUTE)
        installed.discard(app)
        setattr(app, ATTRIBUTE, None)  # rts.auto leaves such an app alone
        publishers.clear()
        remove_steps(app)
        app.on_after_configure.disconnect(dispatch_uid="rts.order")
        if not installed:
            receivers.disconnect()
            hook.detach()
            import_modules.disconnect(dispatch_uid="rts.flower")
    if app.configured:
        turn_off(app)
    installation.close()  # now that nothing else finds it


def _mask_secrets() -> None:
    """Have Celery mask the settings that may contain passwords and tokens, for all apps of this
    process; idempotent.

    ``celery report``, ``inspect conf`` and thus Flower's page of a worker show an app's
    settings. Celery itself masks those whose names look secret, and the passwords of brokers
    and result backends.
    """
    from celery.app import utils

    secret = [f"rts_{each.name}" for each in fields(Settings) if not each.repr]
    hidden = getattr(utils, "HIDDEN_SETTINGS", None)
    if isinstance(hidden, re.Pattern) and not all(map(hidden.search, secret)):
        utils.HIDDEN_SETTINGS = re.compile("|".join((hidden.pattern, *secret)), hidden.flags)


def _itself(app: Any) -> Any:
    """Return *app*, or the app that it stands for, as ``celery.current_app`` does."""
    return app._get_current_object() if hasattr(app, "_get_current_object") else app


def _has_rts(app: Any) -> bool:
    return getattr(app, ATTRIBUTE, None) is not None


def _attach_to_flower(**_: Any) -> None:
    """Runs when an app imports its modules, which Flower makes it do: Flower may have been
    loaded since rts was installed.
    """
    from rts.flower import hook

    with health.guarded("flower"):
        hook.attach(_has_rts)


def _apply_order(sender: Any, **_: Any) -> None:
    """Switch an app that is configured by now to the queue order that it asks for."""
    from rts.scheduling.activation import turn_on, warn_off

    try:
        turn_on(sender, Settings.from_conf(sender.conf))
    except ConfigurationError as exc:
        if sender.conf.get("rts_scheduler") == "edf":
            warn_off(exc)


def _validate(app: Any) -> None:
    """Check what is configured so far."""
    from rts.scheduling.activation import check_broker

    try:
        conf = _configuration(app)
    except Exception:  # noqa: BLE001  it is raised again when the app needs it
        return  # for example a module that imports the app, which is importing rts
    if conf is not None:
        check_broker(conf, Settings.from_conf(conf))


def _configuration(app: Any) -> Any:
    """Return what is configured so far; ``None`` if code of the app takes part in loading it.

    Does not make the app load a configuration that is still lazy: loading it sends
    ``on_after_configure``, which receivers that are connected later would miss.
    """
    from celery import Celery
    from celery.app.utils import detect_settings

    if app.configured:
        return app.conf
    if app._config_source is None:
        return dict(app._preconf)
    hook = app.on_configure  # a signal, unless a class defines it
    if (
        getattr(hook, "receivers", True)
        or app._pending_defaults
        or type(app).prepare_config is not Celery.prepare_config
    ):
        return None
    loader = type(app.loader)(app=app)
    silent = getattr(app, "_config_source_silent", False)  # Celery >= 5.7
    loader.config_from_object(app._config_source, silent=silent)
    return detect_settings(
        loader.conf, app._preconf, ignore_keys=app._preconf_set_by_auto, prefix=app.namespace
    )
