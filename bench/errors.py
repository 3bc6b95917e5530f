"""Errors as a person sees them: a single line."""


class UserError(Exception):
    """A mistake of the person at the keyboard.

    The message is one line that says what is wrong, where, and what to do. The command line
    prints it without a traceback and exits with status 2; nothing long has started by then.
    """


def last_line(error: BaseException) -> str:
    """An exception as the last line of its traceback would show it."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[-1].strip() if text else ''}"
