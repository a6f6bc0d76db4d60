"""Exit codes of the commands: a contract with launchers, schedulers and users' scripts."""

FAILED_EXIT_CODE = 1
"""Something failed that is not the user's mistake; another start may succeed."""

USER_ERROR_EXIT_CODE = 2
"""The recipe or the command line is wrong; another start would fail in the same way."""

REQUEUE_EXIT_CODE = 75
"""The run was stopped, saved, and can be resumed (EX_TEMPFAIL)."""

INTERRUPTED_EXIT_CODE = 130
"""Ctrl-C ended a command that had nothing to save at that moment (128 + SIGINT, as in a shell)."""


def is_interrupt(error: BaseException | None) -> bool:
    """Return whether an exception is a KeyboardInterrupt, or was raised because of one.

    Python wraps an interrupt: up to 3.11, one that arrives while an import runs `__set_name__` becomes a RuntimeError.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False
