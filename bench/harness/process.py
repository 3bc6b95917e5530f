"""What a process asks of the operating system and of the interpreter."""

import ctypes
import gc
import getpass
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import UserError

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def offer_to_the_oom_killer() -> None:
    """If the machine runs out of memory, Linux is to end the trial, not the benchmark."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")


def limit_memory(nbytes: int) -> None:
    """What is beyond fails with an out-of-memory error in this process, not in another.

    Linux counts private writable memory (RLIMIT_DATA). Address space, which other systems count,
    would include the libraries and what CUDA only reserves.
    """
    import resource  # POSIX only

    which = resource.RLIMIT_DATA if sys.platform == "linux" else resource.RLIMIT_AS
    resource.setrlimit(which, (nbytes, nbytes))


def die_with_parent(parent: int) -> None:
    """Have Linux end this process when its parent, of this process id, ends, however that ends.

    Elsewhere the next event finds the pipe broken, which ends it too, only later.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it had ended before that
            os.kill(os.getpid(), signal.SIGKILL)


def refuse_without_posix(command: str) -> None:
    """UserError on Windows, for what starts, watches and ends processes as POSIX does."""
    if not hasattr(os, "fork"):
        raise UserError(
            f"{command} needs Linux or macOS; predict, fit, scale, check and report work here, too"
        )


def have_a_user_name() -> None:
    """Libraries ask who the user is (PyTorch, MONAI); in a container nobody may be registered."""
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["USER"] = f"uid-{os.getuid()}" if hasattr(os, "getuid") else "user"


@contextmanager
def without_collector() -> Iterator[None]:
    """A fifth faster, and no number depends on when cycles are collected."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@contextmanager
def loading() -> Iterator[None]:
    """For imports: modules stay, so the collector need not visit their million objects."""
    with without_collector():
        yield
        gc.freeze()
