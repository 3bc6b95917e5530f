"""The one exception that a person sees as a single line."""


class UserError(Exception):
    """A mistake of the person at the keyboard.

    The message is one line that says what is wrong, where, and what to do. The command line
    prints it without a traceback and exits with status 2; nothing long has started by then.
    """
