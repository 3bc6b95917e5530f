"""Energy of a CPU: RAPL on a made-up powercap tree, CodeCarbon's estimate, and CO₂."""

import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from bench.errors import UserError
from bench.probes import Span, energy, temperature
from bench.probes.energy import EnergyProbe, RaplMeter, TdpMeter, check_country, co2_kg, open_meter
from bench.probes.polling import polling
from bench.probes.temperature import open_thermometer
from bench.records.rows import Energy, Measurement, Reading, Record
from bench.run.sensors import Sensors
from tests.bench.trials import tiny_plan

SPAN_UJ = 262_143_328_850
"""What a desktop's package counts before it starts again: 44 minutes at 100 W."""


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Powercap:
    """`/sys/class/powercap` of a machine with two packages, their parts, and a psys domain."""

    DOMAINS = {  # noqa: RUF012
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys",
    }

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "intel-rapl").mkdir(parents=True)  # the control type itself
        for folder, name in self.DOMAINS.items():
            (root / folder).mkdir()
            (root / folder / "name").write_text(name + "\n")
            (root / folder / "max_energy_range_uj").write_text(f"{SPAN_UJ}\n")
            self.set(folder, 0)

    def set(self, folder: str, microjoules: float) -> None:
        (self.root / folder / "energy_uj").write_text(f"{int(microjoules) % SPAN_UJ}\n")


@pytest.fixture
def powercap(tmp_path) -> Powercap:
    return Powercap(tmp_path / "powercap")


def measure(powercap: Powercap, seconds: int, watts: tuple[float, float], first_uj: float = 0.0):
    """A window of so many seconds, sampled each second; its columns and the samples'."""
    clock = Clock()

    def draw() -> None:
        for package, power in enumerate(watts):
            powercap.set(f"intel-rapl:{package}", first_uj + power * clock.now * 1e6)
        powercap.set("intel-rapl:0:0", 1e9 * clock.now)  # already in package-0
        powercap.set("intel-rapl:2", 1e9 * clock.now)  # already counts both

    draw()
    probe = EnergyProbe(RaplMeter(powercap.root), clock)
    probe.start()
    samples = []
    for clock.now in range(1, seconds + 1):
        draw()
        samples.append(probe.sample())
    return probe.stop().columns(), samples


def test_both_packages_and_nothing_twice(powercap):
    columns, samples = measure(powercap, 10, (60.0, 45.0))
    assert columns["energy_j"] == pytest.approx(1050.0)
    assert columns["mean_power_w"] == pytest.approx(105.0)
    assert columns["energy_source"] == "rapl"
    assert [sample.power_w for sample in samples] == pytest.approx([105.0] * 10)


def test_counters_that_wrap(powercap):
    columns, _ = measure(powercap, 10, (60.0, 45.0), first_uj=SPAN_UJ - 300e6)
    assert columns["energy_j"] == pytest.approx(1050.0)


def test_counters_that_go_away_in_the_window(powercap):
    clock = Clock()
    probe = EnergyProbe(RaplMeter(powercap.root), clock)
    probe.start()
    clock.now = 1.0
    (powercap.root / "intel-rapl:1" / "energy_uj").unlink()
    assert probe.sample().energy_j is None
    columns = probe.stop().columns()
    assert "energy_j" not in columns
    assert columns["energy_source"] == "rapl"
    assert any("RAPL" in line for line in columns["warnings"])
    assert any("broke off" in line for line in columns["warnings"])


def test_a_counter_that_holds_no_number(powercap):
    (powercap.root / "intel-rapl:0" / "energy_uj").write_text("\n")
    with pytest.raises(ValueError, match="invalid literal"):
        RaplMeter(powercap.root)


@pytest.mark.parametrize("spoil", ["no tree", "no package", "not for us"])
def test_without_rapl_codecarbon_estimates(tmp_path, powercap, monkeypatch, spoil):
    root = powercap.root
    if spoil == "no tree":
        root = tmp_path / "nowhere"
    elif spoil == "no package":
        for package in (0, 1):
            (root / f"intel-rapl:{package}" / "name").write_text("dram\n")
    else:  # a folder in the counter's place: as unreadable as root's, also to root
        (root / "intel-rapl:0" / "energy_uj").unlink()
        (root / "intel-rapl:0" / "energy_uj").mkdir()
    monkeypatch.setattr(RaplMeter.__init__, "__defaults__", (root,))
    meter = open_meter(torch.device("cpu"))
    assert meter is not None
    assert meter.counter_source == "tdp-estimate"


@pytest.fixture
def locked(powercap, monkeypatch):
    """Counters that the kernel shows to root only; these tests may run as root."""
    monkeypatch.setattr(RaplMeter.__init__, "__defaults__", (powercap.root,))
    monkeypatch.setattr(energy.locked_counters, "__defaults__", (powercap.root,))
    read = Path.read_text

    def refuse(path: Path, *args, **kwargs) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", refuse)
    return powercap


def test_a_counter_that_only_root_may_read_is_told_of(locked, tmp_path):
    lines = Sensors.open(tiny_plan(tmp_path)).missing
    (line,) = (line for line in lines if "root" in line)
    files = [locked.root / f"intel-rapl:{package}" / "energy_uj" for package in (0, 1)]
    assert line.endswith(f"sudo chmod a+r {files[0]} {files[1]}")
    assert not any(line.startswith("No energy counter on this machine") for line in lines)
    assert any("tdp-estimate" in line for line in lines)


def test_no_chmod_where_there_is_no_counter(tmp_path, monkeypatch):
    monkeypatch.setattr(RaplMeter.__init__, "__defaults__", (tmp_path / "nowhere",))
    monkeypatch.setattr(energy.locked_counters, "__defaults__", (tmp_path / "nowhere",))
    assert not any("chmod" in line for line in Sensors.open(tiny_plan(tmp_path)).missing)


def test_rapl_comes_before_an_estimate(powercap, monkeypatch):
    monkeypatch.setattr(RaplMeter.__init__, "__defaults__", (powercap.root,))
    meter = open_meter(torch.device("cpu"))
    assert meter is not None
    assert meter.counter_source == "rapl"


def test_the_estimate_is_called_one():
    probe = EnergyProbe(TdpMeter())
    probe.start()
    sum(range(10**6))
    columns = probe.stop().columns()
    assert columns["energy_source"] == "tdp-estimate"
    assert columns["energy_j"] > 0


def test_no_meter_for_a_card_without_nvml():
    """The CPU's energy is not the card's."""
    assert open_meter(torch.device("cuda")) is None
    assert open_thermometer(torch.device("cuda")) is None


def test_co2_of_a_kilowatt_hour():
    world, switzerland, poland = (co2_kg(3.6e6, country) for country in (None, "CHE", "POL"))
    assert switzerland < world < poland  # water and uranium; the world; coal
    assert switzerland == pytest.approx(0.035, rel=0.2)
    assert world == pytest.approx(0.475, rel=0.2)
    assert co2_kg(7.2e6, "CHE") == pytest.approx(2 * switzerland)


@pytest.mark.parametrize("code", ["SWITZERLAND", "che", "XXX", "", "CH"])
def test_a_country_that_is_none(code):
    with pytest.raises(UserError, match=f"--country {code}: give an ISO 3166-1 alpha-3 code"):
        check_country(code)


def test_a_country_that_is_one():
    check_country("CHE")


def test_the_sensor_of_a_cpu(monkeypatch):
    """There is none on the machines that run these tests: psutil's answer is made up."""

    class Shown:
        def __init__(self, current: float) -> None:
            self.current = current

    disk_only = {"nvme": [Shown(70)]}
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: disk_only, raising=False)
    assert open_thermometer(torch.device("cpu")) is None
    sensors = {"nvme": [Shown(70)], "coretemp": [Shown(51), Shown(54)]}
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: sensors, raising=False)
    probe = open_thermometer(torch.device("cpu"))
    assert probe is not None
    probe.start()
    sensors["coretemp"] = [Shown(61), Shown(60)]
    assert probe.sample() == Reading(temperature_c=61)
    columns = probe.stop().columns()
    assert columns["temperature_start_c"] == 54
    assert columns["temperature_peak_c"] == 61
    assert columns["temperature_source"] == "psutil"
    monkeypatch.delattr(psutil, "sensors_temperatures")
    assert temperature.cpu_temperature_c() is None


def test_every_source_is_in_the_table_of_the_module():
    assert energy.__doc__ is not None
    for meter in (RaplMeter, TdpMeter):
        assert f"`{meter.counter_source}`" in energy.__doc__


# ---- the polling thread -------------------------------------------------------------------------


class Scripted:
    """A probe that does as it is told at each reading."""

    def __init__(self, at_sample: Callable[[], Reading]) -> None:
        self.at_sample = at_sample

    def start(self) -> None: ...

    def sample(self) -> Reading:
        return self.at_sample()

    def stop(self, window: Span | None = None) -> Measurement:
        return Measurement(warnings=("it was there to the end",))


def fail() -> Reading:
    raise OSError("the sensor went away")


def dawdle() -> Reading:
    time.sleep(0.1)
    return Reading()


def poll_for(seconds: float, probe: Scripted, hertz: float = 50.0, send=None):
    sent: list[dict] = []
    with polling([probe], hertz, send or (lambda _, **row: sent.append(row))) as found:
        time.sleep(seconds)
    row = Record(method="idm", repeat=1)
    for measurement in found:
        row.take(measurement.columns())
    return row, sent


def test_a_probe_that_fails_is_left_out_and_told_of():
    row, sent = poll_for(0.3, Scripted(fail))
    assert row.warnings == ("Scripted failed at sample: OSError: the sensor went away",)
    assert len(sent) > 2  # the others would have gone on


def test_a_rate_that_is_not_kept_is_told_of():
    row, _ = poll_for(1.5, Scripted(dawdle))
    assert row.sample_rate_hz < 15
    (line,) = (line for line in row.warnings if "not at 50 Hz" in line)
    assert line.endswith(": a reading of Scripted takes 0.1 s")
    assert row.sample_late_p95_s > 0.05


def test_nobody_listens_any_more():
    def send(*_: object, **row: float) -> None:
        if row["elapsed_s"] > 0.1:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):  # told once, by the last reading, and not by the thread
        poll_for(0.3, Scripted(Reading), send=send)


def test_a_rate_is_told_of_where_there_were_hardly_any_readings():
    row, _ = poll_for(0.35, Scripted(dawdle))
    assert row.sample_rate_hz < 15
    assert any("a reading of Scripted takes" in line for line in row.warnings)


def test_the_window_is_what_the_body_says():
    """Energy is that of the steps, not of what else the body does."""

    class Meter:
        counter_source, power_source = "rapl", None
        counter_span_j = longest_tick_s = 0.0
        warnings: list[str] = []  # noqa: RUF012

        def energy_j(self) -> float:
            return 100 * time.perf_counter()

        def power_w(self) -> None:
            return None

    window = Span()
    with polling([EnergyProbe(Meter())], 20.0, lambda *_, **__: None, window) as found:
        time.sleep(0.3)
        window.begin = time.perf_counter()
        time.sleep(0.5)
        window.end = time.perf_counter()
        time.sleep(0.3)
    (measured,) = (each for each in found if isinstance(each, Energy))
    assert measured.energy_j == pytest.approx(100 * window.seconds, rel=0.005)
    assert measured.mean_power_w == pytest.approx(100, rel=0.005)


def test_the_last_probe_starts_last_and_is_read_first():
    calls: list[tuple[str, str]] = []

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        def start(self) -> None:
            calls.append((self.name, "start"))

        def sample(self) -> Reading:
            calls.append((self.name, "sample"))
            return Reading()

        def stop(self, window: Span | None = None) -> Measurement:
            calls.append((self.name, "stop"))
            return Measurement()

    with polling([Named("host"), Named("energy")], 0.001, lambda *_, **__: None):
        time.sleep(0.1)
    assert calls[:4] == [
        ("host", "start"),
        ("energy", "start"),
        ("energy", "sample"),
        ("host", "sample"),
    ]
    assert calls[4:] == [(name, at) for name in ("energy", "host") for at in ("sample", "stop")]
