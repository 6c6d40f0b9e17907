"""Configuration of the example app, with every setting of rts.

Celery loads this module by name (``app.config_from_object("celeryconfig")``). Settings that are
commented out show their default; docs/settings.md says what each allows.
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

# --- rts: servers --------------------------------------------------------------------

# rts_enabled = True
# rts_redis_url = None  # the broker's or result backend's where that is Redis, else localhost
rts_mongo_url = os.environ.get("RTS_MONGO_URL", "mongodb://localhost:27017/rts")
# rts_key_prefix = "rts:"  # of every key in Redis

# --- rts: types and deadlines: arrival + k·tau ---------------------------------------

# rts_task_types = {}  # {"video": 30.0, "mail": {"tau": 2.0, "sla_multiplier": 1.8}}
# rts_sla_multiplier = 2.0  # k; the environment variable SCHED_SLA_MULTIPLIER overrides it
# rts_priority_multipliers = {}  # k by message priority: {9: 1.5}
# rts_min_slack = 1.0  # seconds that a deadline leaves beyond tau, at least
# rts_deadline_policy = "multiplier"  # "quantile": k is learned
# rts_quantile = 0.95  # with a learned k: share of runs on time on an idle system
# rts_propagate_deadline = False  # True: a chain shares one, a child gets no later one

# --- rts: taus -----------------------------------------------------------------------

# rts_learning_rate = 0.2  # λ of tau_new = λ·actual + (1 − λ)·tau_old
# rts_tau_scope = "name"  # deadlines use the tau of the task's name; "type": that of its type
# rts_min_samples = 5  # runs until the tau of a name is used
# rts_max_types = 1000  # taus that are kept, of types and names together

# --- rts: order of the queue ---------------------------------------------------------

# rts_scheduler = None  # "edf": earliest deadline first, on Redis; "priority": other brokers
# rts_hopeless = "demote"  # behind all that can be on time; "keep": plain EDF; "drop"
# rts_hopeless_slots = 0.75  # share of a worker's slots that demoted tasks may hold
# rts_late_share = 0.05  # share of claims for the demoted task that has waited longest
# rts_order = "deadline"  # or "deadline+work", better under deep overload
# rts_queue_horizons = {"*": 20.0}  # seconds to the deadline of messages without one, by queue
# rts_routes = {}  # for task_routes = (rts.route,): {"gpu-inference": ["gpu", "burst"]}

# --- rts: objectives and alerts ------------------------------------------------------

# rts_slo = {"*": 0.95}  # share of tasks on time, by task name, queue or type; "*": all others
# rts_slo_window = 30 * 86400.0  # seconds of the error budget
# rts_slo_min_events = 10  # verdicts that an alert needs
# rts_webhooks = []  # [{"url": "https://…", "format": "slack"}], see docs/alerts.md

# --- rts: records --------------------------------------------------------------------

# rts_ledger_ttl = 30 * 86400.0  # seconds that the ledger keeps a record; 0: for ever
# rts_drain = True  # False where `celery -A proj rts drain` moves records to MongoDB
# rts_outbox_max = 1_000_000  # records in the outbox; beyond that the oldest are dropped
# rts_open_max = 1_000_000  # open tasks; 0: none is known as overdue before it ends
rts_spool_dir = os.environ.get("RTS_SPOOL_DIR") or None  # None: below the temporary folder
# rts_spool_max_bytes = 1 << 30

# --- rts: waiting for Redis, in seconds ----------------------------------------------

# rts_connect_timeout = 0.25
# rts_timeout = 0.5  # for a reply
# rts_breaker_period = 5.0  # without a new attempt after one failed

# --- beat --------------------------------------------------------------------------

beat_schedule = {
    "survey-every-minute": {
        "task": "workers.text.survey",
        "schedule": 60.0,
        "options": {"headers": {"task_type": "mixed"}},
    },
}
