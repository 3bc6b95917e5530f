"""WDM: its authors' network, counted from their settings."""

import pytest

from baselines import wdm
from bench.methods import METHODS
from tests.baselines.training import cost_of_fake_step, parameters_of

SIXTH = (*wdm.PUBLISHED["channels"], 256)


def published(channels=wdm.PUBLISHED["channels"]):
    return wdm.build(in_channels=8, channels=channels)


def counted(channels: tuple[int, ...]) -> int:
    """From what their scripts set, by hand: 64 base channels, 3³ convolutions with biases."""

    def conv(width: int, to: int) -> int:
        return 27 * width * to + to

    def block(width: int, to: int) -> int:
        shortcut = width * to + to if width != to else 0
        time = 256 * to + to
        return 2 * width + conv(width, to) + time + 2 * to + conv(to, to) + shortcut

    skips, width = [channels[0]], channels[0]
    total = (64 * 256 + 256) + (256 * 256 + 256) + conv(8, width)
    for level, to in enumerate(channels):
        last = level == len(channels) - 1
        for out in (to, to) if last else (to, to, to):  # two blocks, and one that goes down
            total += block(width, out)
            width = out
            skips.append(width)
    total += 2 * block(width, width)  # the middle
    for level in reversed(range(len(channels))):
        for _ in range(3):  # a block for each skip; each gives what the next skip has
            skips.pop()
            to = skips[-1] if skips else channels[0]
            total += block(width, to)
            width = to
        total += block(width, width) if level else 0  # and one that goes up
    return total + 2 * width + conv(width, 8)


@pytest.mark.parametrize(
    ("channels", "parameters"), [(wdm.PUBLISHED["channels"], 57_914_824), (SIXTH, 83_158_728)]
)
def test_has_the_parameters_of_the_authors_network(channels, parameters):
    assert counted(channels) == parameters
    assert parameters_of(lambda: published(channels)) == parameters


# The peak and the FLOPs of the authors' own network, on the same kind of step.
@pytest.mark.parametrize(
    ("channels", "shape", "peak", "flops"),
    [
        (wdm.PUBLISHED["channels"], (10, 8, 64, 64, 64), 35_193_758_616, 31_448_811_765_760),
        (SIXTH, (1, 8, 128, 128, 128), 28_597_074_536, 25_158_990_462_976),
    ],
    ids=["128-cubed", "256-cubed"],
)
def test_a_step_takes_the_bytes_and_flops_of_the_authors_network(channels, shape, peak, flops):
    cost = cost_of_fake_step(lambda: published(channels), shape)
    assert (cost.peak, cost.flops) == (peak, flops)


def test_in_its_authors_setting_it_predicts_the_volume():
    assert METHODS["wdm"].workload("paper").target == "x0"
    assert METHODS["wdm"].workload("equal").target == "eps"  # as every method there
