"""Configuration of the example app, with every setting of rts.

Celery loads this module by name (``app.config_from_object("celeryconfig")``).
Settings that are commented out show their default.
"""

from __future__ import annotations

import os

broker_url = os.environ.get("CELERY_BROKER_URL", "redis://localhost:6379/0")
# Redis stores results too; with any other broker they are sent back as messages.
result_backend = os.environ.get("CELERY_RESULT_BACKEND") or (
    broker_url if broker_url.startswith("redis") else "rpc://"
)
broker_connection_retry_on_startup = True
# Fair dispatch: a worker prefetches no more than it has slots.
worker_prefetch_multiplier = 1

# Instead of rts.install(app) in code: for workers, beat and Flower.
# imports = ("rts.auto",)

# --- rts ---------------------------------------------------------------------------

# Turns rts on or off: True or False.
# rts_enabled = True

# Redis for the taus and the outbox. Default: the broker's or the result backend's
# URL where that is Redis, else redis://localhost:6379/0. Allowed: redis://,
# rediss://, unix://.
# rts_redis_url = None

# MongoDB for the ledger, mongodb:// or mongodb+srv://; the path names the database.
# Default: mongodb://localhost:27017/rts.
rts_mongo_url = os.environ.get("RTS_MONGO_URL", "mongodb://localhost:27017/rts")

# Prefix of every key in Redis: 1 to 64 printable characters.
# rts_key_prefix = "rts:"

# k of deadline = arrival + k·tau, 1.5 to 2.5. The environment variable
# SCHED_SLA_MULTIPLIER overrides it.
# rts_sla_multiplier = 2.0

# k by message priority, each 1.5 to 2.5, e.g. {9: 1.5}.
# rts_priority_multipliers = {}

# The app's own types, in addition to the six, with their default tau in seconds (above 0),
# and their own k (1.5 to 2.5) if it differs:
# {"video": 30.0, "mail": {"tau": 2.0, "sla_multiplier": 1.8}}.
# rts_task_types = {}

# λ of tau_new = λ·actual + (1 − λ)·tau_old: above 0, at most 1.
# rts_learning_rate = 0.2

# Seconds that a deadline leaves beyond tau, at least; 0 or more.
# rts_min_slack = 1.0

# "name": deadlines use the tau of (type, task name) once it has rts_min_samples
# runs (1 or more), else the type's. "type": the type's only. Both are always learned.
# rts_tau_scope = "name"
# rts_min_samples = 5

# Most fields in the tau hash; 6 or more.
# rts_max_types = 1000

# Seconds that the ledger keeps a record: 0 or more; 0 keeps for ever.
# rts_ledger_ttl = 30 * 86400.0

# Most records in the outbox in Redis: 1 or more; beyond that the oldest are dropped.
# rts_outbox_max = 1_000_000

# Most tasks that are tracked as published and not ended (0: none, so that no task is found
# overdue before it ends).
# rts_open_max = 1_000_000

# Folder (an absolute path) for records that wait while Redis is away, and its size
# limit in bytes (1 or more). Default: a private folder below the system's temporary
# one, which a reboot may clear.
rts_spool_dir = os.environ.get("RTS_SPOOL_DIR") or None
# rts_spool_max_bytes = 1 << 30

# Most seconds that a producer or a task waits for Redis, to connect and for a reply, and
# seconds without a new attempt after that failed: each above 0.
# rts_connect_timeout = 0.25
# rts_timeout = 0.5
# rts_breaker_period = 5.0

# Whether each worker drains the outbox into MongoDB: True or False. Turn it off where
# `celery -A proj rts drain` does it elsewhere.
# rts_drain = True

# "multiplier": deadlines from the fixed k. "quantile": k is learned as the quantile
# rts_quantile (0.5 to 0.999) of runtime over tau, so that this share of the runs on an
# idle system is on time, however much their runtimes vary.
# rts_deadline_policy = "multiplier"
# rts_quantile = 0.95

# Whether tasks published inside a task get no later deadline than it has, and the
# members of a chain one end-to-end deadline: True or False.
# rts_propagate_deadline = False

# --- queue order ---------------------------------------------------------------------

# "edf": earliest deadline first, where the broker is Redis. "priority": deadlines as
# message priorities, for other brokers. None: the broker's own order.
# rts_scheduler = None

# A waiting task that can no longer be on time: "demote" (behind all that still can be),
# "keep" (plain EDF), "drop" (revoked, with a verdict).
# rts_hopeless = "demote"

# Share of a worker's slots that demoted tasks may hold (above 0, at most 1; at least one
# slot), and share of the claims (0 to 1) that serve the demoted task that has waited
# longest.
# rts_hopeless_slots = 0.75
# rts_late_share = 0.05

# "deadline", or "deadline+work" (by deadline + 2·tau), which is better under deep overload.
# rts_order = "deadline"

# Relative deadline, in seconds, of messages without one, by queue; "*": all others.
# rts_queue_horizons = {"*": 20.0}

# Queues that task_routes = (rts.route,) may choose from, by task type:
# {"gpu-inference": ["gpu", "burst"]}.
# rts_routes = {}

# --- objectives ----------------------------------------------------------------------

# The share of tasks that should be on time (0.5 to 0.99999), by task name, queue or task
# type (if several apply, a name takes precedence over a queue, that over a type); "*": all
# others. {"cpu-light": 0.99, "*": 0.95}.
# rts_slo = {"*": 0.95}

# Seconds of the error budget (3600 or more; no more than rts_ledger_ttl counts).
# rts_slo_window = 30 * 86400.0

# Verdicts that an alert needs in its long window: 1 or more.
# rts_slo_min_events = 10

# Where to send alerts: a list of at most 20 of {"url": "https://…", "secret": signs
# the messages (at least 8 characters), "format": "json" or "slack", "events": a list of
# "slo_burning" and "task_overdue" (default: both), "min_interval": seconds between two
# messages (at least 0, default 1), "link": a URL for people}; all but "url" optional.
# rts_webhooks = []

# --- beat --------------------------------------------------------------------------

beat_schedule = {
    "survey-every-minute": {
        "task": "workers.text.survey",
        "schedule": 60.0,
        "options": {"headers": {"task_type": "mixed"}},
    },
}
