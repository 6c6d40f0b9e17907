"""The way to Redis: lean connections behind a breaker, and the Lua scripts."""
