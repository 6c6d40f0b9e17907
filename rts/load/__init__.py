"""The load of a worker at a task's start, and what a run used."""
