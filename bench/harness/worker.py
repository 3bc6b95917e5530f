"""A piece of work in a process of its own: how it is started, watched and ended, from both sides.

A fresh interpreter runs `python -m MODULE`, so that no allocator, cache or crash of one method
reaches another. Its plan comes in as JSON on standard input; what it finds goes out as JSON lines
the moment it exists, so that a process that dies leaves all that it had found.

The parent:

    worker = Worker("run.trial")      # loads its modules, and waits
    worker.give(plan, log)
    outcome = worker.follow(handle, interrupt)

The child's module ends with `sys.exit(serve(Plan, run))`.
"""

import errno
import gc
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TextIO, TypeVar

import psutil

from ..errors import UserError, last_line
from ..records.files import from_json, to_json
from ..records.rows import Measurement, Status
from ..sizes import show_size
from .process import offer_to_the_oom_killer

Plan = TypeVar("Plan")

PACKAGE = (__package__ or "").partition(".")[0]
"""`bench` in a checkout, `idm_bench` where it is installed."""
# Of errors that are no OutOfMemoryError: of the CPU's allocator and of C++; of CUDA's runtime (an
# AcceleratorError since torch 2.8), of cuDNN 8 and 9, of cuBLAS, cuSOLVER and cuFFT.
_OUT_OF_MEMORY = (
    "can't allocate memory", "bad_alloc", "CUDA error: out of memory", "CUDNN_STATUS_ALLOC_FAILED",
    "DEVICE_ALLOCATION_FAILED", "HOST_ALLOCATION_FAILED", "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED", "CUFFT_ALLOC_FAILED",
)  # fmt: skip
_NO_ENGINE = "unable to find an engine"
_POLL_S = 0.25  # how soon an interrupt or a time-out is noticed
_START_S = 180.0  # how long an interpreter may take to load PyTorch from a cold disk


@dataclass(frozen=True)
class Outcome:
    """How a worker's process ended."""

    returncode: int
    timed_out: bool = False
    stopped: bool = False
    """By a second interrupt."""
    oom_killed: bool = False
    """The kernel ended a process for want of memory meanwhile, and this one died of SIGKILL."""
    memory: "MemoryWatch | None" = None

    @property
    def ended_by(self) -> str | None:
        """What ended the process from outside, for no fault of the method; None: nothing did."""
        if self.returncode >= 0 or self.timed_out or self.stopped:
            return None
        if self.oom_killed:
            others = self.memory is not None and self.memory.others_took_more
            return "the kernel, for memory that other processes took" if others else None
        return signal.Signals(-self.returncode).name

    def reason(self, timeout: float | None) -> tuple[Status, str]:
        """Status and error of a worker that ended without a word."""
        if self.timed_out:
            return "timeout", f"no step finished for {timeout:g} s (--timeout)"
        if self.stopped:
            return "interrupted", "stopped by a second interrupt"
        held = f" ({self.memory})" if self.memory is not None else ""
        if self.ended_by is not None:
            return "failed", f"the trial's process was ended by {self.ended_by}{held}"
        if self.oom_killed:
            return "oom", f"the machine ran out of memory and its kernel ended the trial{held}"
        return "failed", f"the trial's process ended with status {self.returncode}; see logs/"


class MemoryWatch:
    """Memory of one process and of the machine, looked at from outside, in bytes."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._free_before = psutil.virtual_memory().available
        self.own, self.free = 0, self._free_before
        self._next = 0.0

    def look(self) -> None:
        """At most every quarter of a second; what is seen last is what it died with."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _POLL_S
        with suppress(psutil.Error):  # it has ended
            held = self._process.memory_info().rss
            if held:  # one that has ended, and that nobody has waited for, holds nothing any more
                self.own, self.free = held, psutil.virtual_memory().available

    @property
    def others_took_more(self) -> bool:
        """Whether, since it started, the other processes took more than it holds."""
        return self._free_before - self.free - self.own > self.own

    def __str__(self) -> str:
        return f"it held {show_size(self.own)}, {show_size(self.free)} of the machine were free"


class Interrupt:
    """Counts Ctrl-C while it is entered: once, finish the step and keep it; twice, stop now."""

    def __init__(self, notice: Callable[[int], None]) -> None:
        self.count = 0
        self._notice = notice

    def __enter__(self) -> "Interrupt":
        self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _handle(self, *_: object) -> None:
        self.count += 1
        self._notice(self.count)


class Worker:
    """The parent's end of a process: a fresh interpreter that loads `module` and awaits its plan.

    That takes seconds, of PyTorch for the most part, which the parent can use for something else.
    """

    _spare: ClassVar["Worker | None"] = None

    def __init__(self, module: str) -> None:
        self.module = module
        self._events, write_end = os.pipe()
        self._early_output = tempfile.TemporaryFile()  # noqa: SIM115 – until it knows its log
        self._log: Path | None = None
        self._kills_before = _oom_kills()
        root = str(Path(__file__).parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                f"{PACKAGE}.harness.child",
                str(os.getpid()),
                f"{PACKAGE}.{module}",
                str(write_end),
            ],
            stdin=subprocess.PIPE,
            stdout=self._early_output,
            stderr=self._early_output,
            text=True,
            encoding="utf-8",
            pass_fds=(write_end,),
            start_new_session=True,  # Ctrl-C is ours to pass on
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        os.close(write_end)

    @classmethod
    def loaded(cls, module: str) -> "Worker":
        """The spare of this module if there is one, or a new process."""
        spare, cls._spare = cls._spare, None
        return spare if spare is not None and spare.module == module else cls(module)

    @classmethod
    @contextmanager
    def spare(cls, module: str) -> Iterator[None]:
        """A process that loads `module` meanwhile; the next call of `loaded` returns it."""
        with cls(module) as cls._spare:
            try:
                yield
            finally:
                cls._spare = None

    @classmethod
    def wait_for_spare(cls) -> None:
        """Until it is loaded, it keeps the processor busy."""
        if cls._spare is not None:
            cls._spare.wait_until_loaded()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        """End it, unless it was given a plan and so ends by itself."""
        if self._log is None:
            self.process.kill()
            self.process.communicate()
            self._close()

    def wait_until_loaded(self) -> None:
        """Until then it keeps the processor busy."""
        select.select([self._events], [], [], _START_S)

    def give(self, plan: Any, log: Path) -> None:
        """Hand over the plan, a dataclass of JSON values.

        Args:
            log: for all that the process prints.

        Raises:
            UserError: where that cannot be written.
        """
        try:
            log.parent.mkdir(exist_ok=True)
            log.write_bytes(b"")
        except OSError as error:
            raise UserError(f"{log}: cannot be written ({error.strerror})") from None
        self._log = log
        assert self.process.stdin is not None
        try:
            with self.process.stdin as stdin:
                json.dump({"log": str(log.resolve()), "plan": to_json(plan)}, stdin)
        except BrokenPipeError:
            pass  # it died at once; its return code says so

    def follow(
        self,
        handle: Callable[[dict[str, Any]], None],
        interrupt: Interrupt,
        timeout: float | None = None,
    ) -> Outcome:
        """Pass its events on until it ends, or is made to end. It must have been given a plan.

        Args:
            timeout: seconds without an event other than `sample` after which it is given up.
        """
        is_up = passed_on = timed_out = stopped = False
        last_progress = time.monotonic()
        buffer = b""
        memory = MemoryWatch(self.process.pid)
        try:
            while True:
                memory.look()
                # Before its first event, an interrupt would end it instead of being noted.
                if interrupt.count >= 1 and is_up and not passed_on:
                    self.process.send_signal(signal.SIGINT)
                    passed_on = True
                stopped = stopped or interrupt.count >= 2
                if timeout is not None:
                    patience = timeout if is_up else max(timeout, _START_S)
                    timed_out = timed_out or time.monotonic() - last_progress > patience
                if stopped or timed_out:
                    self.process.kill()
                if not select.select([self._events], [], [], _POLL_S)[0]:
                    continue
                chunk = os.read(self._events, 1 << 16)
                if not chunk:
                    break
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    is_up = True
                    event = json.loads(line)
                    if event["event"] != "sample":  # samples come also from a step that hangs
                        last_progress = time.monotonic()
                    handle(event)
        finally:
            if sys.exc_info()[0] is not None:  # our own failure (a full disk) ends it too
                self.process.kill()
            self.process.wait()
            self._close()
        status = self.process.returncode
        oom_killed = status == -signal.SIGKILL and _oom_kills() > self._kills_before
        return Outcome(status, timed_out, stopped, oom_killed, memory)

    def _close(self) -> None:
        os.close(self._events)
        with self._early_output as output:
            output.seek(0)
            if self._log is not None and (text := output.read()):
                with suppress(OSError), self._log.open("ab") as log:
                    log.write(text)


@dataclass
class Events:
    """What a worker tells its parent, a JSON object a line."""

    stream: TextIO
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, kind: str, **values: Any) -> None:
        """Raises BrokenPipeError when the parent is gone."""
        with self._lock:  # the sampling thread and the training loop both speak
            self.stream.write(json.dumps({"event": kind, **values}) + "\n")
            self.stream.flush()

    def stage(self, name: str) -> None:
        self.send("stage", name=name)

    def progress(self, name: str) -> Callable[[float], None]:
        """For what takes long within a stage: to be told the share that is done, 0 to 1."""
        return lambda share: self.stage(f"{name}: {share:.0%}")

    def found(self, *measurements: Measurement, **columns: Any) -> None:
        """Columns of the record, measured or otherwise known."""
        for each in (*(measurement.columns() for measurement in measurements), columns):
            if each:
                self.send("columns", columns=each)


def serve(kind: type[Plan], run: Callable[[Plan, Events, Callable[[], bool]], None]) -> int:
    """A worker's process: a plan on standard input, events on the file descriptor argv[1].

    Args:
        kind: the dataclass that the plan is.
        run: carries it out; asks its third argument whether it was interrupted.

    Returns:
        Exit status. The last event, `end`, has the `status` and `error` of a record.
    """
    interrupted = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    events = Events(os.fdopen(int(sys.argv[1]), "w", encoding="utf-8"))
    gc.freeze()  # the modules that it has loaded
    gc.enable()
    try:
        events.stage("starting")  # from here on the parent may pass an interrupt on
        offer_to_the_oom_killer()
        given = json.loads(sys.stdin.read())
        log = os.open(given["log"], os.O_WRONLY | os.O_APPEND)
        os.dup2(log, sys.stdout.fileno())
        os.dup2(log, sys.stderr.fileno())
        run(from_json(kind, given["plan"]), events, interrupted.is_set)
        events.send("end", status="interrupted" if interrupted.is_set() else "ok", error=None)
        return 0
    except BrokenPipeError:  # the parent has ended: nothing would keep what follows
        os._exit(1)
    except Exception as error:
        traceback.print_exc()  # for the log
        status = "oom" if is_out_of_memory(error) else "failed"
        said = str(error) if isinstance(error, UserError) else last_line(error)
        events.send("end", status=status, error=said)
        return 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is how the device, or the machine, says that memory is gone."""
    import torch  # the parent, which also reads this file, does without

    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    if not isinstance(error, RuntimeError):
        return False
    # cuDNN's search leaves out each engine whose workspace is refused, and then has found none.
    refused = _NO_ENGINE in text and torch.cuda.memory_stats().get("num_ooms", 0) > 0
    return refused or any(words in text for words in _OUT_OF_MEMORY)


def _oom_kills() -> int:
    """How many processes the kernel has ended for want of memory since it started (Linux)."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    except (OSError, StopIteration):
        return 0
