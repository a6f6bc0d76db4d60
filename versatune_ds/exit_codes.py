"""Name the exit codes by which launchers, schedulers and users tell how a process ended.

The one idea: they are a contract with programs outside, so each stands in one place.
"""

FAILED_EXIT_CODE = 1
"""Something failed that is no mistake of the user; another start may succeed."""

USER_ERROR_EXIT_CODE = 2
"""What a user wrote is wrong; another start would fail in the same way."""

REQUEUE_EXIT_CODE = 75
"""A run that saved and wants to go on later (EX_TEMPFAIL)."""
