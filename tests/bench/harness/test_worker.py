"""A worker that never comes up leaves its last words where the others leave theirs."""

from bench.harness.window import Window
from bench.harness.worker import Interrupt, Worker


def test_what_a_worker_prints_before_it_has_a_log_is_kept(tmp_path):
    log = tmp_path / "logs" / "it.log"
    worker = Worker("no_such_module")
    worker.give(Window(steps=1), log)
    with Interrupt(lambda _: None) as interrupt:
        outcome = worker.follow(print, interrupt)
    assert outcome.returncode == 1
    assert outcome.reason(None)[0] == "failed"
    assert "bench.no_such_module" in log.read_text()


def test_a_worker_that_is_not_needed_ends():
    with Worker("run.trial") as worker:
        worker.wait_until_loaded()
        assert worker.process.poll() is None
    assert worker.process.poll() is not None
