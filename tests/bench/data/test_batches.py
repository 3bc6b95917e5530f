"""From volumes to what a step trains on, where it trains on it."""

import threading

import numpy as np
import pytest
import torch

from bench.data.batches import iterate_batches, prefetched
from bench.ddpm.step import TrainingStep
from bench.methods import METHODS
from bench.presets import Overrides

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
VOLUMES = np.random.default_rng(0).random((3, 1, 16, 16, 16), dtype=np.float32)
SMALL = Overrides(volume=16, batch_size=2, channels=(8, 16))


def patchddm() -> tuple[TrainingStep, object]:
    method = METHODS["patchddm"]
    work = method.workload("small", SMALL)
    torch.manual_seed(0)
    return TrainingStep(method.build(work), work), work


def test_patches_are_cut_before_they_go_to_the_device():
    """The whole volume went to the card in each timed step: 64 MiB of its peak at 256³."""
    step, work = patchddm()
    patches, keywords = next(iterate_batches(VOLUMES, work, 0, CPU, step.cut))
    assert patches.shape == (2, 1, 8, 8, 8)
    assert patches.untyped_storage().nbytes() == 4 * 2 * 8**3  # no view of the volumes
    assert keywords["coordinates"].shape == (2, 3, 8, 8, 8)


def test_a_step_on_what_was_cut_is_the_step_on_the_volumes():
    whole, cut = patchddm()[0], patchddm()[0]
    volumes = torch.from_numpy(VOLUMES[:2])
    torch.manual_seed(1)
    expected = whole(volumes)
    batch = cut.cut(volumes)
    torch.manual_seed(1)
    assert torch.equal(cut(batch), expected)


def test_a_method_that_trains_on_whole_volumes_gets_them():
    work = METHODS["unet"].workload("small", SMALL)
    step = TrainingStep(METHODS["unet"].build(work), work)
    batch = next(iterate_batches(VOLUMES, work, 0, CPU, step.cut))
    assert batch.shape == (2, 1, 16, 16, 16)


def test_a_card_gets_the_same_batches_from_pinned_memory(monkeypatch):
    """Every method's, each made by another thread while the one before is used."""
    pins, moves = [], []

    def pin(tensor):
        pins.append((tensor.shape, threading.current_thread().name))
        return tensor

    def to(tensor, device, non_blocking):
        moves.append((device, non_blocking))
        return tensor

    step, work = patchddm()
    other, _ = patchddm()
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", to)
    on_card = iterate_batches(VOLUMES, work, 0, CUDA, step.cut)
    on_cpu = iterate_batches(VOLUMES, work, 0, CPU, other.cut)
    for _ in range(5):
        (a, a_keywords), (b, b_keywords) = next(on_card), next(on_cpu)
        assert torch.equal(a, b)
        assert torch.equal(a_keywords["coordinates"], b_keywords["coordinates"])
    on_card.close()
    assert {shape for shape, _ in pins} == {(2, 1, 8, 8, 8), (2, 3, 8, 8, 8)}
    assert all(thread.startswith("batches") for _, thread in pins)
    assert (CUDA, True) in moves


def test_the_next_is_made_while_one_is_used():
    made = threading.Event()

    def source():
        yield "first"
        made.set()
        yield "second"
        raise OSError("the cache is gone")

    items = prefetched(source())
    assert next(items) == "first"
    assert made.wait(10)
    assert next(items) == "second"
    with pytest.raises(OSError, match="the cache is gone"):
        next(items)
