"""What the trial costs the machine around the device: memory of the process, load."""

import os
import re
import resource
import sys
from pathlib import Path

import psutil
import torch

from bench.probes import Columns
from bench.probes.nvml import Card


class HostProbe:
    """Peak resident memory of the process; on CUDA, the peaks of its allocator over the window."""

    def __init__(self, device: torch.device, card: Card | None = None) -> None:
        self.device = device
        self.card = card
        self.process = psutil.Process()

    def start(self) -> None:
        reset_peak_rss()
        psutil.cpu_percent()  # the first call starts the interval that the next one reports
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def sample(self) -> Columns:
        if self.device.type == "cuda":
            return {
                "memory_bytes": torch.cuda.memory_allocated(self.device),
                "utilization_percent": self.card.utilization_percent() if self.card else None,
            }
        return {
            "memory_bytes": self.process.memory_info().rss,
            "utilization_percent": psutil.cpu_percent(),
        }

    def stop(self) -> Columns:
        columns: Columns = {"peak_rss_bytes": peak_rss()}
        if self.device.type == "cuda":
            columns["peak_allocated_bytes"] = torch.cuda.max_memory_allocated(self.device)
            columns["peak_reserved_bytes"] = torch.cuda.max_memory_reserved(self.device)
        return columns


def reset_peak_rss() -> None:
    """Let the kernel forget the peak so far (Linux; elsewhere it stays that of the process)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def peak_rss() -> int:
    """Highest resident memory of this process since the last reset, in bytes."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]
    except (OSError, TypeError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_name(device: torch.device) -> str:
    """The card's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        return f"{cpu[1].strip()}, {os.cpu_count()} cores" if cpu else "CPU"
    except OSError:
        return "CPU"
