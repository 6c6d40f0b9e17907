"""The way to Redis: lean connections behind a breaker, the Lua scripts, and leases."""
