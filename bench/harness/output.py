"""Output that no measurement depends on: a reader that leaves, a full disk, a closed terminal."""

import io
import os
import signal
import sys
from typing import TextIO


class LastingOutput(io.TextIOBase):
    """A text stream that never fails: what cannot be written is dropped, from then on everything.

    Letters that the stream's encoding does not have become "?".
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")

    @property
    def encoding(self) -> str:  # type: ignore[override]  # rich draws its tables accordingly
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def is_lost(self) -> bool:
        return self._stream is None

    def write(self, text: str) -> int:
        try:
            if self._stream is not None:
                self._stream.write(text)
        except (OSError, ValueError):
            self._lose()
        return len(text)

    def flush(self) -> None:
        try:
            if self._stream is not None:
                self._stream.flush()
        except (OSError, ValueError):
            self._lose()

    def isatty(self) -> bool:
        try:
            return self._stream is not None and self._stream.isatty()
        except (OSError, ValueError):
            return False

    def fileno(self) -> int:
        if self._stream is None:
            raise OSError("this output is closed")
        return self._stream.fileno()

    def _lose(self) -> None:
        try:  # or the interpreter would complain of what is still buffered when it ends
            assert self._stream is not None
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        except (OSError, ValueError):
            pass
        self._stream = None


def make_output_last() -> None:
    """From here on nothing that this process prints can end it."""
    for number in (0, 1, 2):  # or the first files that are opened would take their places
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = LastingOutput(sys.stdout), LastingOutput(sys.stderr)


def outlive_the_terminal() -> None:
    """A closed terminal does not end what may have run for hours; Ctrl-C and SIGTERM do."""
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
