"""What the trial costs the machine around the device, and what else that machine was doing."""

import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from ..records.rows import Host, Reading
from . import Span

GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
BUSY_PERCENT = 10.0
"""Of all cores: more than this taken by others is worth a warning."""
SWAP_BYTES = 64 * 2**20
"""Less than this in swap is what any idle machine has there."""


class HostProbe:
    """Memory of the process (on CUDA, of its allocator), and the load of the machine."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.process = psutil.Process()

    def start(self) -> None:
        reset_peak_rss()
        psutil.cpu_percent()  # the first call starts the interval that the next one reports
        self._load = OtherLoad(self.process)
        self._speed = speed_setting()
        self._swapped_in = psutil.swap_memory().sin
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def sample(self) -> Reading:
        if self.device.type == "cuda":  # its utilisation is the card's to tell
            return Reading(memory_bytes=torch.cuda.memory_allocated(self.device))
        return Reading(
            memory_bytes=self.process.memory_info().rss,
            utilization_percent=psutil.cpu_percent(),
        )

    def stop(self, window: Span | None = None) -> Host:
        others = self._load.percent()
        contention = busy_with_others(others)
        swapped_in = psutil.swap_memory().sin - self._swapped_in
        if swapped_in > SWAP_BYTES:
            contention.append(f"{swapped_in / 2**30:.2f} GiB came back from swap in the window")
        found = Host(
            peak_rss_bytes=peak_rss(),
            other_load_percent=others,
            contention=tuple(contention),
            warnings=tuple(speed_changes(self._speed, speed_setting())),
        )
        if self.device.type == "cuda":
            found.peak_allocated_bytes = torch.cuda.max_memory_allocated(self.device)
            found.peak_reserved_bytes = torch.cuda.max_memory_reserved(self.device)
        return found


def speed_setting() -> dict[str, str | float | None]:
    """What decides how fast the processor may be: power supply, governor, the frequency up to which
    they let it; None: not known."""
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    supply = None if battery is None else "mains" if battery.power_plugged else "battery"
    try:
        governor = GOVERNOR.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        governor = None
    try:
        frequency = psutil.cpu_freq()
    except (OSError, NotImplementedError, AttributeError):
        frequency = None
    most = frequency.max or None if frequency is not None else None
    return {"power_supply": supply, "governor": governor, "cpu_max_mhz": most}


def speed_changes(
    before: Mapping[str, str | float | None], after: Mapping[str, str | float | None]
) -> list[str]:
    """Warnings where a window was not measured under one setting, or on a battery."""
    lines = [
        f"{name.replace('_', ' ')} changed in the window: {before[name]} → {now}"
        for name, now in after.items()
        if now != before[name]
    ]
    if not lines and after["power_supply"] == "battery":
        lines.append("the machine runs on its battery, which may slow the processor")
    return lines


def is_ours(pid: int) -> bool:
    """Whether a process is this one, started it, was started by it, or is of its process group."""
    try:
        this, other = psutil.Process(), psutil.Process(pid)
        if this == other or other in this.parents() or this in other.parents():
            return True
        return hasattr(os, "getpgid") and os.getpgid(pid) == os.getpgrp()
    except (psutil.Error, OSError):
        return False  # it has ended, or is of another container


class OtherLoad:
    """Share of all cores that went to anything but one process, since this was made.

    Steal (a virtual machine's host busy with other guests) counts. The kernel's clock ticks every
    10 ms: over a second on two cores that is half a percent.
    """

    def __init__(self, process: psutil.Process | None = None) -> None:
        self._process = process or psutil.Process()
        self._before = self._read()

    def percent(self) -> float | None:
        """None where too little time has passed to tell."""
        (total, busy, own), (total_0, busy_0, own_0) = self._read(), self._before
        if total - total_0 < 0.1:
            return None
        return max(0.0, (busy - busy_0 - (own - own_0)) / (total - total_0) * 100)

    def _read(self) -> tuple[float, float, float]:
        """Seconds of all cores together, of them busy, of them ours."""
        cores = psutil.cpu_times()
        # The kernel counts a guest's time also as user time.
        total = sum(cores) - getattr(cores, "guest", 0.0) - getattr(cores, "guest_nice", 0.0)
        idle = cores.idle + getattr(cores, "iowait", 0.0)
        own = self._process.cpu_times()
        return total, total - idle, own.user + own.system


def busy_with_others(percent: float | None) -> list[str]:
    if percent is None or percent <= BUSY_PERCENT:
        return []
    return [f"other processes took {percent:.0f} % of all cores"]


def swap_in_use(used_bytes: int | None = None) -> list[str]:
    used = psutil.swap_memory().used if used_bytes is None else used_bytes
    return [f"swap in use: {used / 2**30:.2f} GiB"] if used > SWAP_BYTES else []


def _read(file_of_the_kernel: str) -> str:
    return Path(file_of_the_kernel).read_text(encoding="utf-8", errors="replace")


def reset_peak_rss() -> None:
    """Let the kernel forget the peak so far (Linux; elsewhere it stays that of the process)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_rss() -> int:
    """Highest resident memory of this process since the last reset, in bytes."""
    try:
        status = _read("/proc/self/status")
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]
    except (OSError, TypeError):
        import resource  # POSIX only; naming a device does without

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_name(device: torch.device) -> str:
    """The card's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        cpu = re.search(r"model name\s*:\s*(.+)", _read("/proc/cpuinfo"))
        return f"{cpu[1].strip()}, {os.cpu_count()} cores" if cpu else "CPU"
    except OSError:
        return "CPU"
