"""Access to Redis: lean connections behind a circuit breaker, Lua scripts, leases."""
