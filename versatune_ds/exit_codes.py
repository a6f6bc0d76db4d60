"""Exit codes of the commands: a contract with launchers, schedulers and users' scripts."""

FAILED_EXIT_CODE = 1
"""Something failed that is not the user's mistake; another start may succeed."""

USER_ERROR_EXIT_CODE = 2
"""The recipe or the command line is wrong; another start would fail in the same way."""

REQUEUE_EXIT_CODE = 75
"""The run was stopped, saved, and can be resumed (EX_TEMPFAIL)."""
