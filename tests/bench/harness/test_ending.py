"""Who ended a trial: the method's own hunger for memory, somebody else's, or a signal."""

import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from bench.errors import last_line
from bench.harness.worker import MemoryWatch, Outcome, is_out_of_memory
from bench.records.folder import Run
from bench.records.rows import Record, Step
from tests.bench.trials import FOREVER, Watcher, new_run, run_trials, tiny_plan, workers

GIB = 2**30


def watch(own: int, free_before: int, free: int) -> MemoryWatch:
    memory = MemoryWatch(psutil.Process().pid)
    memory.own, memory._free_before, memory.free = own, free_before, free
    return memory


def killed(memory: MemoryWatch, oom: bool = True) -> Outcome:
    return Outcome(-signal.SIGKILL, oom_killed=oom, memory=memory)


def test_a_method_that_took_the_memory_is_out_of_it():
    outcome = killed(watch(own=20 * GIB, free_before=22 * GIB, free=GIB // 8))
    status, error = outcome.reason(None)
    assert status == "oom"
    assert "it held 20.00 GiB, 128 MiB of the machine were free" in error
    assert outcome.ended_by is None


def test_memory_that_others_took_is_not_the_methods():
    """Any trial that died while the kernel killed anything on the machine was `oom` for ever."""
    outcome = killed(watch(own=GIB // 2, free_before=22 * GIB, free=GIB // 8))
    status, error = outcome.reason(None)
    assert status == "failed"
    assert outcome.ended_by == "the kernel, for memory that other processes took"
    assert "it held 512 MiB" in error


def test_a_signal_is_nobodys_memory():
    outcome = Outcome(-signal.SIGTERM, memory=watch(GIB, 2 * GIB, GIB))
    assert outcome.reason(None)[0] == "failed"
    assert outcome.ended_by == "SIGTERM"


@pytest.mark.parametrize(
    "outcome", [Outcome(1), Outcome(-9, timed_out=True), Outcome(-9, stopped=True)]
)
def test_what_we_ended_ourselves_is_not_from_outside(outcome):
    assert outcome.ended_by is None


def test_what_a_process_held_is_not_forgotten_when_it_has_ended():
    """Until somebody waits for it, the kernel shows it with 0 bytes."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    memory = MemoryWatch(process.pid)
    memory.look()
    held, free = memory.own, memory.free
    assert held > 0
    process.kill()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    time.sleep(0.3)  # it looks every quarter of a second
    memory.look()
    process.communicate()
    assert (memory.own, memory.free) == (held, free)


@pytest.mark.slow
def test_a_trial_that_was_killed_says_what_it_held_and_is_repeated(tmp_path):
    plans = [tiny_plan(tmp_path, repeat=repeat, window=FOREVER) for repeat in (1, 2)]
    run = new_run(tmp_path, plans)

    def kill(step: Step) -> None:
        if step.step == 3:
            workers()[0].kill()

    run_trials(run, plans[:1], Watcher(kill))
    run.append(Record(method="idm", repeat=2, status="ok"))
    (record, _) = Run(run.folder).records().to_dict("records")
    assert record["status"] == "failed"
    assert record["ended_by"] == "SIGKILL"
    assert record["rss_at_end_bytes"] > 2**27
    assert record["free_at_end_bytes"] > 0
    run.mend()
    assert run.records()["repeat"].tolist() == [2]
    assert run.steps().empty


# As torch 2.11 words them on CUDA; the advice that follows the first is left in on purpose.
FULL_CARD = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    getattr(torch, "AcceleratorError", RuntimeError)(
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some "
        "other API call.\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
    ),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate`"),
    RuntimeError(
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
    MemoryError(),
    OSError(12, "Cannot allocate memory"),
]
OTHER_ERRORS = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    ValueError("the text out of memory does not make an error one of memory"),
    OSError(28, "No space left on device"),
]


@pytest.mark.parametrize("error", FULL_CARD, ids=str)
def test_a_full_device_in_all_its_words(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", OTHER_ERRORS, ids=str)
def test_other_errors_are_no_lack_of_memory(error):
    assert not is_out_of_memory(error)


def test_no_engine_is_lack_of_memory_where_the_allocator_has_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda: {"num_ooms": 3})
    assert is_out_of_memory(RuntimeError("FIND was unable to find an engine to execute this"))


def test_an_error_of_cuda_is_told_by_its_first_line():
    assert last_line(FULL_CARD[1]).endswith("Error: CUDA error: out of memory")
