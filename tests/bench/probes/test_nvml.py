"""A scripted card, read through the real pynvml: its energy is the script's, its faults are told.

The script's energy is integrated here once more, in Python, apart from the stand-in's C.
"""

import ctypes
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import pytest
from scipy.integrate import quad

from bench.probes.nvml import Card, CardUnavailable
from tests.nvml import play as player

TOLERANCE = 0.005
COUNTER = "counter 0 64 1000"
COARSE_COUNTER = "counter 0.1 64 1000"
NO_COUNTER = ""
LOST = 15  # NVML_ERROR_GPU_IS_LOST
NO_PERMISSION = 4
NOT_SUPPORTED = 3
UNKNOWN = 999


@dataclass(frozen=True)
class Power:
    line: str
    watts: Callable[[float], float]
    edges: float = 1e9
    """Seconds from one jump to the next."""

    def joules(self, begin: float, end: float) -> float:
        jumps = [n * self.edges for n in range(int(end / self.edges) + 1)]
        inside = [begin, *(jump for jump in jumps if begin < jump < end), end]
        return sum(quad(self.watts, a + 1e-12, b - 1e-12)[0] for a, b in pairwise(inside))


CONSTANT = Power("power constant 217.5", lambda t: 217.5)
RAMP = Power("power ramp 60 320 40", lambda t: 60 + 260 * min(t / 40, 1))
SQUARE = Power("power square 80 300 1.46", lambda t: 80 if t % 1.46 < 0.73 else 300, edges=0.73)
UNEVEN = Power(
    "power square 80 300 2.2360679", lambda t: 80 if t % 2.2360679 < 1.11803395 else 300, 1.11803395
)
STEPS = Power("power square 80 300 2", lambda t: 80 if t % 2 < 1 else 300, edges=1)
SHAPES = pytest.mark.parametrize(
    "power", [CONSTANT, RAMP, SQUARE], ids=["constant", "ramp", "square"]
)


def script(*lines: str) -> str:
    return "\n".join(("card GPU-11111111-0000", "clock 1410", "utilization 87", *lines)) + "\n"


# ---- energy --------------------------------------------------------------------------------------


@SHAPES
@pytest.mark.parametrize("counter", [COUNTER, COARSE_COUNTER], ids=["fine", "coarse"])
@pytest.mark.parametrize("start", [0.0, 3.217])
def test_energy_from_the_counter(play, power, counter, start):
    got = play(player.window, script(power.line, counter), start, 60.0)
    expected = power.joules(got["begin"], got["begin"] + 60.0)
    assert got["energy_j"] == pytest.approx(expected, rel=TOLERANCE)
    assert got["mean_power_w"] == pytest.approx(expected / 60.0, rel=TOLERANCE)
    assert got["energy_source"] == "nvml-counter"


@pytest.mark.parametrize("power", [CONSTANT, RAMP, STEPS, UNEVEN],
                         ids=["constant", "ramp", "square", "uneven square"])  # fmt: skip
@pytest.mark.parametrize("start", [0.0, 3.217, 0.95, 11.11])
def test_energy_from_integrated_power(play, power, start):
    got = play(player.window, script(power.line), start, 60.0)
    expected = power.joules(start, start + 60.0)
    assert got["energy_j"] == pytest.approx(expected, rel=TOLERANCE)
    assert got["energy_source"] == "nvml-power"


@pytest.mark.parametrize("hertz", [10, 50, 200])
@pytest.mark.parametrize("start", [0.0, 1.3, 3.217, 5.55])
def test_power_that_beats_with_the_sampling(play, hertz, start):
    """The known error of integrated power: at most jump / rate for each period, half that a jump.

    A period of 14.6 samples meets them at always the same few phases: errors do not cancel.
    """
    got = play(player.window, script(SQUARE.line), start, 60.0, hertz)
    expected = SQUARE.joules(start, start + 60.0)
    periods = 60.0 / 1.46 + 1
    assert abs(got["energy_j"] - expected) <= periods * (300 - 80) / hertz
    if hertz == 200:
        assert got["energy_j"] == pytest.approx(expected, rel=TOLERANCE)


@SHAPES
@pytest.mark.parametrize("seconds", [0.005, 0.05, 0.099])
@pytest.mark.parametrize("start", [0.3, 1.04, 7.77])
def test_energy_of_a_window_shorter_than_a_sample(play, power, seconds, start):
    """At 10 Hz the only readings are those at the two ends."""
    got = play(player.window, script(power.line, COUNTER), start, seconds)
    expected = power.joules(got["begin"], got["begin"] + seconds)
    assert got["energy_j"] == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("power", [CONSTANT, RAMP], ids=["constant", "ramp"])
@pytest.mark.parametrize("counter", [COARSE_COUNTER, NO_COUNTER], ids=["coarse", "power only"])
@pytest.mark.parametrize("seconds", [0.03, 0.05, 0.099])
def test_a_short_window_between_the_ticks_of_a_counter(play, power, counter, seconds):
    got = play(player.window, script(power.line, counter), 2.345, seconds)
    expected = power.joules(got["begin"], got["begin"] + seconds)
    assert got["energy_j"] == pytest.approx(expected, rel=TOLERANCE)


@SHAPES
def test_a_counter_that_wraps(play, power):
    """A board that counts in 32 bits, 500 J before their end."""
    counter = f"counter 0.02 32 {2**32 / 1000 - 500}"
    got = play(player.window, script(power.line, counter), 1.0, 30.0)
    expected = power.joules(got["begin"], got["begin"] + 30.0)
    assert got["energy_j"] == pytest.approx(expected, rel=TOLERANCE)
    assert got["energy_source"] == "nvml-counter"
    assert not any("counter" in line for line in got["warnings"])


def test_a_counter_that_wraps_where_nothing_samples(play):
    counter = f"counter 0.02 32 {2**32 / 1000 - 500}"
    got = play(player.window, script(CONSTANT.line, counter), 1.0, 30.0, 0.001)
    assert got["energy_j"] == pytest.approx(30 * 217.5, rel=TOLERANCE)


@SHAPES
def test_a_counter_that_is_reset(play, power):
    """The driver was loaded anew; that is no wrap of 4 MJ."""
    got = play(player.window, script(power.line, COUNTER, "reset 12.34"), 1.0, 30.0)
    expected = power.joules(got["begin"], got["begin"] + 30.0)
    assert got["energy_j"] == pytest.approx(expected, rel=TOLERANCE)
    assert any("reset" in line for line in got["warnings"])


def test_a_counter_that_stands_still(play):
    got = play(player.window, script(CONSTANT.line, "counter 1e6 64 1000"), 1.0, 30.0)
    assert got["energy_j"] == pytest.approx(30 * 217.5, rel=TOLERANCE)
    assert got["energy_source"] == "nvml-power"
    assert any("did not move" in line for line in got["warnings"])


def test_samples_follow_the_script(play):
    got = play(player.window, script(RAMP.line, COUNTER, "temperature 40 0.5"), 0.0, 20.0)
    middle = got["samples"][100]
    assert middle["power_w"] == pytest.approx(RAMP.watts(10.0), abs=0.01)
    assert middle["energy_j"] == pytest.approx(RAMP.joules(0, 10), rel=TOLERANCE)
    assert middle["temperature_c"] == 45
    assert middle["utilization_percent"] == 87


# ---- calls that take long ------------------------------------------------------------------------

SLOW = "delay 0.3"


@pytest.mark.parametrize("counter", [COUNTER, COARSE_COUNTER, NO_COUNTER])
@pytest.mark.parametrize("delay", [0.05, 0.3])
@pytest.mark.parametrize("start", [0.0, 0.077, 3.217])
def test_slow_calls_are_not_part_of_the_window(play, counter, delay, start):
    lines = (CONSTANT.line, counter, "temperature 50 0", f"delay {delay}")
    got = play(player.window, script(*lines), start, 7.0)
    assert got["energy_j"] == pytest.approx(7 * 217.5, rel=TOLERANCE)
    assert got["mean_power_w"] == pytest.approx(217.5, rel=TOLERANCE)


@pytest.mark.parametrize("counter", [COUNTER, NO_COUNTER], ids=["counter", "power only"])
def test_the_idle_card_around_a_window_is_not_part_of_it(play, counter):
    """80 W up to the window and after it, 300 W in it; the readings on both sides are 0.3 s off."""
    lines = ("power square 80 300 14", counter, "temperature 50 0", SLOW)
    early = play(player.window, script(*lines), 0.0, 7.0)["begin"]
    got = play(player.window, script(*lines), 7.0 + 1e-6 - early, 7.0 - 2e-6)
    assert got["begin"] == pytest.approx(7.0, abs=1e-5)
    assert got["energy_j"] == pytest.approx(7 * 300, rel=TOLERANCE)


@pytest.mark.slow
def test_slow_calls_in_the_polling_thread(play):
    """In real time: what must not be metered is the readings of all probes around the window."""
    lines = (CONSTANT.line, COUNTER, "temperature 50 0", SLOW)
    got = play(player.polled, script(*lines), 3.0)
    assert got["energy_j"] == pytest.approx(got["seconds"] * 217.5, rel=TOLERANCE)
    assert got["mean_power_w"] == pytest.approx(217.5, rel=TOLERANCE)
    assert got["temperature_mean_c"] == 50
    assert any("s outside of the window, " in line for line in got["warnings"])
    (rate,) = (line for line in got["warnings"] if "not at 10 Hz" in line)
    assert "a reading of CardProbe takes 1.2 s" in rate
    assert got["sample_rate_hz"] < 1


def test_quick_calls_have_no_warning(play):
    lines = (CONSTANT.line, COUNTER, "temperature 50 0")
    got = play(player.polled, script(*lines), 1.5)
    assert not any("outside of the window" in line for line in got["warnings"])
    assert len(got["samples"]) > 10
    assert got["energy_j"] == pytest.approx(got["seconds"] * 217.5, rel=TOLERANCE)


def test_what_comes_after_the_window_is_not_in_its_temperature_and_clock(play):
    """The last readings of slow calls: by then the chip is warmer, throttled, and not alone."""
    late = ("throttle 64 12.1 99", "process 4711 12.1 99")
    lines = (CONSTANT.line, COUNTER, "temperature 0 5", *late, SLOW)
    got = play(player.window, script(*lines), 1.0, 8.0)
    end = got["begin"] + 8.0
    assert end < 12.1
    assert got["temperature_peak_c"] <= 5 * end
    assert "throttled" not in got
    assert not got["contention"]


# ---- readings that cannot be true ----------------------------------------------------------------


def test_a_sensor_that_flaps_between_the_ends_of_its_scale(play):
    got = play(player.window, script(CONSTANT.line, "flap 0 255 60"), 0.0, 6.0)
    for column in ("temperature_start_c", "temperature_peak_c", "temperature_mean_c"):
        assert got[column] == pytest.approx(60)
    assert {sample.get("temperature_c") for sample in got["samples"]} == {None, 60.0}
    assert any(
        "of 62 temperature readings" in line and "0, 255 °C" in line for line in got["warnings"]
    )


def test_a_jump_that_comes_back(play):
    got = play(player.window, script(CONSTANT.line, "flap 60 61 60 60 61 97 96 60"), 0.0, 6.1)
    assert got["temperature_peak_c"] == 61
    assert any("96, 97 °C" in line for line in got["warnings"])


def test_a_chip_that_warms_quickly_is_believed(play):
    """50 °C in two seconds, and staying there."""
    got = play(player.window, script(CONSTANT.line, "temperature 40 25"), 0.0, 2.0)
    assert got["temperature_peak_c"] == 90
    assert not any("temperature" in line for line in got["warnings"])


def test_a_sensor_that_never_tells(play):
    got = play(player.window, script(CONSTANT.line, "flap 255"), 0.0, 2.0)
    assert "temperature_peak_c" not in got
    assert any("left out" in line for line in got["warnings"])
    assert not any("broke off" in line for line in got["warnings"])


@pytest.mark.parametrize("unit", [1000.0, 0.001, 2.5])
def test_a_counter_in_another_unit(play, unit):
    got = play(player.window, script(CONSTANT.line, COUNTER, f"unit {unit}"), 0.0, 20.0)
    assert got["energy_j"] == pytest.approx(20 * 217.5, rel=TOLERANCE)
    assert got["energy_source"] == "nvml-power"
    assert any("another unit" in line for line in got["warnings"])


def test_a_counter_is_believed_before_two_readings_of_power(play):
    """A window shorter than a sample, in which power jumped: the readings met the lower one."""
    line = "power square 80 300 0.4"
    got = play(player.window, script(line, COUNTER), 0.1, 0.45)
    assert got["energy_source"] == "nvml-counter"


# ---- temperature, clock, throttling, company -----------------------------------------------------


def test_temperature_of_a_window(play):
    got = play(player.window, script(CONSTANT.line, "temperature 40 0.5"), 10.0, 20.0)
    assert got["temperature_start_c"] == 45
    assert got["temperature_peak_c"] == 55
    assert got["temperature_mean_c"] == pytest.approx(49.5, abs=0.6)  # NVML gives whole degrees
    assert got["temperature_source"] == "nvml"
    assert got["clock_mean_mhz"] == 1410


def test_throttling_is_found(play):
    got = play(player.window, script(CONSTANT.line, "throttle 64 5 10"), 0.0, 20.0)
    assert got["contention"] == ["throttled: hardware thermal slowdown in 50 of 200 readings"]
    assert got["throttled"] == "hardware thermal slowdown in 50 of 200 readings"


def test_the_power_cap_is_told_but_is_no_contention(play):
    got = play(player.window, script(CONSTANT.line, "throttle 4 0 100"), 0.0, 2.0)
    assert got["throttled"] == "power cap in 20 of 20 readings"
    assert not got["contention"]


def test_an_idle_card_is_not_throttled(play):
    got = play(player.window, script(CONSTANT.line, "throttle 1 0 100"), 0.0, 2.0)
    assert "throttled" not in got


def test_a_process_that_comes_to_the_card_is_found(play):
    got = play(player.window, script(CONSTANT.line, "process 4711 5 10"), 0.0, 20.0)
    assert got["contention"] == ["another process came to the card: 4711"]


def test_our_own_processes_are_not_company(play):
    lines = ["process OWN 0 1e9", "process PARENT 0 1e9", "process CHILD 0 1e9"]
    assert play(player.processes, script(*lines)) == set()
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        others = play(player.processes, script(*lines, f"process {stranger.pid} 0 1e9"))
        assert others == {stranger.pid}
    finally:
        stranger.kill()
        stranger.wait()


def test_cards_are_named_without_a_context_of_our_own(play):
    """The second card that PyTorch sees is not there for NVML."""
    assert play(player.hardware, script("memory 85520809984"), 2) == [
        {"name": "Scripted Card", "memory_bytes": 85520809984},
        {"name": None, "memory_bytes": None},
    ]


# ---- the right card ------------------------------------------------------------------------------

TWO_CARDS = """card GPU-aaaa1111-0000
mig MIG-77777777-0000
power constant 100
card GPU-bbbb2222-0000
power constant 200
"""


@pytest.mark.parametrize(
    ("index", "visible", "uuid"),
    [
        (0, None, "GPU-aaaa1111-0000"),
        (1, None, "GPU-bbbb2222-0000"),
        (0, "1", "GPU-bbbb2222-0000"),
        (1, "1,0", "GPU-aaaa1111-0000"),
        (1, " 1 , 0 ", "GPU-aaaa1111-0000"),
        (0, "GPU-bbbb2222-0000", "GPU-bbbb2222-0000"),
        (0, "GPU-bb", "GPU-bbbb2222-0000"),
        (1, "GPU-bbbb2222-0000,GPU-aaaa1111-0000", "GPU-aaaa1111-0000"),
        (0, "MIG-77777777-0000", "GPU-aaaa1111-0000"),
    ],
)
def test_the_right_card(play, index, visible, uuid):
    found, warnings = play(player.which, TWO_CARDS, index, visible)
    assert found == uuid
    assert bool(warnings) == str(visible).startswith("MIG")


@pytest.mark.parametrize(
    ("index", "visible"),
    [(0, ""), (2, None), (0, "2"), (1, "0"), (0, "-1"), (0, "GPU-cccc"), (0, "MIG-8"), (0, "all")],
)
def test_no_card_is_no_other_card(play, index, visible):
    found, (why,) = play(player.which, TWO_CARDS, index, visible)
    assert found is None
    assert why.startswith("NVML, ")


# ---- every way in which a card fails -------------------------------------------------------------


def fails(function: str, code: int, since: float = 0.0, until: float = 1e9) -> str:
    return f"fail {function} {code} {since} {until}"


def test_no_driver():
    """The stand-in is loaded in a process of its own, not here."""
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        pass
    else:
        pytest.skip("this machine has an NVIDIA driver")
    with pytest.raises(CardUnavailable, match=r"NVML, card 0: .*Not Found"):
        Card.open(visible="0")


@pytest.mark.parametrize("code", [NO_PERMISSION, 9, UNKNOWN])  # 9: the driver is not loaded
def test_nvml_that_does_not_start(play, code):
    found, (why,) = play(player.which, f"init {code}\n" + script(CONSTANT.line))
    assert found is None
    assert why.startswith("NVML, ")
    play(player.which, script(CONSTANT.line))  # the next test finds it running


@pytest.mark.parametrize("code", [NO_PERMISSION, NOT_SUPPORTED])
def test_a_counter_that_may_not_be_read(play, code):
    refused = fails("nvmlDeviceGetTotalEnergyConsumption", code)
    lines = (CONSTANT.line, COUNTER, "temperature 40 0", refused)
    got = play(player.window, script(*lines), 0.0, 20.0)
    assert got["energy_j"] == pytest.approx(20 * 217.5, rel=TOLERANCE)
    assert got["energy_source"] == "nvml-power"
    (line,) = got["warnings"]
    assert line.startswith("NVML energy counter: ")


def test_a_card_without_any_sensor(play):
    got = play(player.window, script(), 0.0, 5.0)
    assert "energy_j" not in got
    assert "temperature_peak_c" not in got
    assert {line.split(":")[0] for line in got["warnings"]} == {
        "NVML temperature", "NVML energy counter", "NVML power",
    }  # fmt: skip


@pytest.mark.parametrize("counter", [COUNTER, NO_COUNTER], ids=["counter", "power only"])
def test_a_card_lost_in_mid_window(play, counter):
    lost = fails("all", LOST, since=12.0)
    got = play(player.window, script(CONSTANT.line, counter, "temperature 40 0", lost), 0.0, 20.0)
    assert "energy_j" not in got  # that of the whole window is not known
    assert got["energy_source"] == ("nvml-counter" if counter else "nvml-power")
    assert any("samples.csv" in line for line in got["warnings"])
    assert any("GPU is lost" in line for line in got["warnings"])
    assert got["samples"][115]["energy_j"] == pytest.approx(11.5 * 217.5, rel=TOLERANCE)
    assert "energy_j" not in got["samples"][125]
    assert got["temperature_peak_c"] == 40
    assert any("temperature broke off" in line for line in got["warnings"])


def test_a_driver_that_hangs_for_ever_ends_no_trial(play):
    begin = time.monotonic()
    got = play(
        player.hanging, script(CONSTANT.line, COUNTER, "temperature 40 0", "hang 1"), 1.2, 0.3
    )
    assert time.monotonic() - begin < 20
    assert "energy_j" not in got
    assert got["samples"]
    hung = [line for line in got["warnings"] if "no answer for 0.3 s" in line]
    assert {line.split()[0] for line in hung} == {"CardProbe", "TemperatureProbe", "EnergyProbe"}


def test_a_driver_that_hangs_does_not_hang_the_benchmark_itself(play):
    """It asks for the cards before the trials, and between them for others on the card."""
    begin = time.monotonic()
    hangs = script(CONSTANT.line, "temperature 40 0", "hang 0.5")
    got = play(player.unanswered, hangs, 0.3, 0.6)
    assert time.monotonic() - begin < 20
    assert got["readings"] == [None, None, None]
    assert got["warnings"][0] == "NVML name: the driver does not answer (0.3 s) (1 readings missed)"
    assert got["gpus"] == [{"name": None, "memory_bytes": None}] * 2


EIGHT_CARDS = "".join(
    f"card GPU-{number}0000000-0000\nmemory {(8 + number) * 2**30}\n{lines}\n"
    for number, lines in enumerate(
        ["power constant 100", f"power constant 200\n{COUNTER}", "temperature 30 0", "",
         "delay 0.01", fails("all", LOST), "mig MIG-66666666-0000", RAMP.line]
    )
)  # fmt: skip


def test_eight_cards_of_different_kinds(play):
    for index in range(8):
        found, _ = play(player.which, EIGHT_CARDS, index)
        assert found == (None if index == 5 else f"GPU-{index}0000000-0000")
        found, _ = play(player.which, EIGHT_CARDS, index, "7,6,5,4,3,2,1,0")
        assert found == (None if index == 2 else f"GPU-{7 - index}0000000-0000")
    sizes = [card["memory_bytes"] for card in play(player.hardware, EIGHT_CARDS, 8)]
    assert sizes == [None if n == 5 else (8 + n) * 2**30 for n in range(8)]


def test_a_counter_that_fails_while_power_goes_on(play):
    broken = fails("nvmlDeviceGetTotalEnergyConsumption", UNKNOWN, since=12.0)
    got = play(player.window, script(RAMP.line, COUNTER, broken), 0.0, 20.0)
    assert got["energy_j"] == pytest.approx(RAMP.joules(0, 20), rel=TOLERANCE)
    assert got["energy_source"] == "nvml-power"
    assert any("broke off" in line for line in got["warnings"])


@pytest.mark.parametrize("counter", [COUNTER, NO_COUNTER], ids=["counter", "power only"])
def test_readings_that_fail_for_a_while(play, counter):
    gap = fails("all", UNKNOWN, since=5.0, until=6.0)
    got = play(player.window, script(RAMP.line, counter, gap), 0.0, 20.0)
    assert got["energy_j"] == pytest.approx(RAMP.joules(0, 20), rel=TOLERANCE)
    assert any("10 readings missed" in line for line in got["warnings"])
