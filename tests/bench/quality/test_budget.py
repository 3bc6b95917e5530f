"""The chosen width fits, the next does not, and the network keeps its shape."""

import math

import pytest

from bench.errors import UserError
from bench.methods import METHODS
from bench.predict import predict_method
from bench.presets import Workload
from bench.quality.budget import Question, scale, widest, width_step
from tests.related import slow_unless_form

MIB = 2**20


def work(*channels: int) -> Workload:
    return Workload(16, 16, 2, channels, 1, "fp32")


def peak(method: str, channels: tuple[int, ...]) -> int:
    prediction = predict_method(METHODS[method], work(*channels), device="cpu", count_forward=False)
    return prediction.peak_memory_bytes


@pytest.mark.parametrize(
    ("method", "limit"),
    [
        pytest.param("idm", 10 * MIB, marks=pytest.mark.slow),
        pytest.param("patchddm", 50 * MIB, marks=pytest.mark.thorough),
    ],
)
def test_the_widest_fits_and_the_next_does_not(method, limit):
    width = widest(Question(method, work(8, 16), "cpu", limit))
    assert width.peak_memory_bytes == peak(method, width.channels) <= limit
    assert width.next_peak_memory_bytes == peak(method, width.next_channels) > limit
    assert width.channels[1] == 2 * width.channels[0]
    step = width_step(Question(method, work(8, 16), "cpu", limit))
    assert width.next_channels[0] - width.channels[0] == step
    assert width.channels[0] > 8  # it was widened


def test_widths_that_a_method_cannot_divide_are_no_step():
    """IDM sends an eighth of a level's channels down: 4 and 12 cannot be divided, 8 can."""
    assert width_step(Question("idm", work(4, 4), "cpu", MIB)) == 8
    assert width_step(Question("patchddm", work(4, 4), "cpu", MIB)) == 4
    assert width_step(Question("idm", work(4, 8), "cpu", MIB)) == 4


@pytest.mark.parametrize("method", slow_unless_form(METHODS))
def test_every_multiple_of_the_step_can_be_built(method):
    step = width_step(Question(method, work(8, 16), "cpu", MIB))
    for count in range(1, 9):
        METHODS[method].build(work(*scale((8, 16), count * step)))


def test_scale_keeps_the_ratio():
    assert scale((32, 64, 128, 256), 24) == (24, 48, 96, 192)
    assert scale((29, 87, 116), 8) == (8, 24, 32)
    assert math.gcd(*scale((96, 192, 384), 40)) == 40


def test_too_little_for_anything():
    with pytest.raises(UserError, match=r"not enough for idm, which needs .* channels 8 16") as no:
        widest(Question("idm", work(8, 16), "cpu", 1000))
    assert "\n" not in str(no.value)
