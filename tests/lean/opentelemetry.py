"""In place of OpenTelemetry in the workers and commands of the tests. redis-py imports its SDK
wherever it is installed, a sixth of the CPU of a worker's start; few environments have it.
"""

raise ImportError(
    "tests/lean stands in for it; a test that needs it has FULL of tests.conftest on its path"
)
