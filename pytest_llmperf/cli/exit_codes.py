"""What `pytest-llmperf` ends with, whatever the subcommand."""

from __future__ import annotations

OK = 0
"""Done; where something was judged, no regression was shown."""
REGRESSED = 1
"""A regression."""
INVALID = 2
"""Not to be judged: an invalid run, results that may not be compared, files that cannot be read."""
USAGE = 3
"""A mistake in the arguments."""
INTERRUPTED = 130
"""Ctrl-C."""
