"""How long a trial waits for its device to cool, on devices whose temperature is a formula."""

import math
from collections.abc import Callable

import pytest

from bench.run.cooldown import cool_down, how_long


class Device:
    """A device, its clock, and a sensor of whole degrees."""

    def __init__(self, celsius: Callable[[float], float | None]) -> None:
        self.celsius, self.now, self.told = celsius, 0.0, list[str]()

    def read(self) -> float | None:
        celsius = self.celsius(self.now)
        return None if celsius is None else round(celsius)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def wait(self, target: float, longest: float, stop_at: float = math.inf) -> list[str]:
        return cool_down(
            self.read, target, longest, self.told.append, lambda: self.now >= stop_at,
            lambda: self.now, self.sleep,
        )  # fmt: skip


def exponential(start: float, rest: float, seconds: float) -> Callable[[float], float]:
    """Newton's law of cooling towards `rest`."""
    return lambda t: rest + (start - rest) * math.exp(-t / seconds)


def test_until_it_is_within_two_degrees():
    device = Device(exponential(70, 35, 40))
    assert device.wait(42, 120) == []
    assert device.now == pytest.approx(40 * math.log(35 / 9.5), abs=2)  # it shows 44 °C from 44.5
    assert device.told[0] == "cooling from 70 to 42 °C: 70 °C"
    assert len(device.told) == device.now  # one a second: a wait is no trial that hangs


@pytest.mark.parametrize("celsius", [42.0, 44.0, 40.0])
def test_no_wait_where_it_is(celsius):
    device = Device(lambda t: celsius)
    assert device.wait(42, 120) == []
    assert (device.now, device.told) == (0, [])


def test_a_colder_device_is_not_waited_for_but_told():
    device = Device(lambda t: 30.0)
    (line,) = device.wait(42, 120)
    assert line.startswith("started at 30 °C, 12 °C below the first trial's start, after a wait of")
    assert device.now == 0


def test_a_target_that_never_comes_costs_half_a_minute_and_not_two():
    """18 trials waited up to 34 minutes for the temperature of a card without a context."""
    device = Device(exponential(60, 50, 15))
    (line,) = device.wait(31, 120)
    assert 20 <= device.now <= 45
    assert line.startswith("started at 51 °C, 20 °C above the first trial's start, after a wait of")


def test_the_limit_holds():
    device = Device(lambda t: 70 - 0.25 * t)
    (line,) = device.wait(40, 60)
    assert device.now <= 60
    assert "(--cooldown 60)" in line


@pytest.mark.parametrize("seconds", [20, 40, 60])
def test_a_target_that_comes_is_not_given_up(seconds):
    """Whole degrees hide up to one of those that it has fallen."""
    device = Device(exponential(62, 38, seconds))
    longest = seconds * math.log(24 / 4.5) + 2
    assert device.wait(40, longest) == []


def test_an_interrupt_and_a_lost_sensor_end_the_wait():
    assert len(Device(lambda t: 70.0 - t / 10).wait(40, 600, stop_at=5)) == 1
    (line,) = Device(lambda t: None).wait(40, 600)
    assert "cannot be read" in line


def test_how_long_a_run_takes_at_most():
    assert how_long([120.0] * 18, 120.0) == (
        "18 trials: 36 min of windows, at most 34 min of cooling (--cooldown), and the start and "
        "warm-up of each."
    )
    assert how_long([None], 120.0) == (
        "1 trial: windows of so many steps, and the start and warm-up of each."
    )
