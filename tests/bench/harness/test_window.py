"""The window on a card, whose calls are recorded instead of made."""

from types import SimpleNamespace

import pytest
import torch

from bench.harness.window import Window
from bench.run.trial import refill_pool

CUDA = torch.device("cuda")


@pytest.fixture
def calls(monkeypatch):
    """What was asked of a card, and the steps, in order."""
    made: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: made.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: made.append("empty_cache"))
    return made


def test_the_window_begins_and_each_step_ends_when_the_card_has_finished(calls):
    def step(_):
        calls.append("step")
        return torch.tensor(1.0)

    assert len(list(Window(steps=2).train(step, iter([None, None]), CUDA))) == 2
    one = ["synchronize", "step", "synchronize"]  # when the batch is there, when the step is over
    assert calls == ["synchronize", *one, *one]


def test_the_pool_of_a_window_is_that_of_training_alone(calls):
    class Step(SimpleNamespace):
        def __call__(self, _):
            calls.append("step")

    refill_pool(Step(device=CUDA), iter([None, None]))
    assert calls == ["empty_cache", "step", "step", "synchronize"]
