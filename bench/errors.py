"""Errors as a person sees them: a single line, which names the commands that this person types."""

import os
import shlex
import sys
from pathlib import Path

_PACKAGE = (__package__ or "bench").partition(".")[0]


class UserError(Exception):
    """A mistake of the person at the keyboard.

    The message is one line that says what is wrong, where, and what to do. The command line
    prints it without a traceback and exits with status 2; nothing long has started by then.
    """


class CannotWrite(OSError):
    """A file that the disk refuses, with its path and the reason; nothing of it is left.

    The command line makes a line of it, unless the command has more to say.
    """


def check_name(what: str, name: object) -> None:
    """UserError for a name that no file of ours could hold."""
    try:
        str(name).encode("utf-8")
    except UnicodeEncodeError:
        shown = repr(os.fsencode(str(name)))[-80:]  # of a path, its end tells it from others
        raise UserError(f"{what}: a name that is not UTF-8 ({shown}); rename it") from None


def last_line(error: BaseException) -> str:
    """An exception as the last line of its traceback would show it.

    Of CUDA's errors it is the first line of the message: the last is advice on debugging.
    """
    text = str(error).strip().splitlines()
    which = 0 if text and text[0].startswith("CUDA error") else -1
    return f"{type(error).__name__}: {text[which].strip() if text else ''}"


def typed(*command: object) -> str:
    """A command of ours as this person types it.

    `python -m bench check --update` in a checkout, `idm-bench check --update` where that was
    called; `run` by itself is `python run_bench.py` or `run-bench` there.
    """
    program = Path(sys.argv[0]).name
    if command[:1] == ("run",) and program in ("run_bench.py", "run-bench"):
        words = ["python", program] if program.endswith(".py") else [program]
    else:
        words = [program] if program == "idm-bench" else ["python", "-m", _PACKAGE]
        words += [str(each) for each in command[:1]]
    return shlex.join([*words, *map(str, command[1:])])
