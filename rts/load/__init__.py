"""The load of a worker when a task starts, and what a run used."""
