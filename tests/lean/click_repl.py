"""In place of the interactive shell of ``celery amqp`` in the workers and commands of the
tests: importing it takes a quarter of the CPU of Celery's start.
"""


def register_repl(*_: object, **__: object) -> None:
    """Register nothing."""
