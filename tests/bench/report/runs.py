"""Run folders with known numbers, written as the benchmark writes them."""

import json
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from bench.methods import METHODS as METHODS_KNOWN
from bench.presets import PRESETS
from bench.records.files import write_rows
from bench.records.folder import Run
from bench.records.rows import Instant, Record, Sample, Work, setting_columns

GIB = 2**30
METHODS = ("unet", "checkpoint", "patchddm", "idm", "idm-stored")
PEAKS = {"unet": 18.0, "checkpoint": 9.0, "patchddm": 7.5, "idm": 6.0, "idm-stored": 14.0}
FLOPS = {"unet": 23.3, "checkpoint": 31.0, "patchddm": 2.0, "idm": 9.0, "idm-stored": 6.75}
SECONDS = {"unet": 1.0, "checkpoint": 1.4, "patchddm": 0.5, "idm": 0.9, "idm-stored": 0.6}
PARAMETERS = {"unet": 340, "checkpoint": 340, "patchddm": 24.3, "idm": 343.6, "idm-stored": 343.6}
ENVIRONMENT: dict[str, Any] = {
    "command": ["run_bench.py", "--preset", "paper"],
    "hardware": {
        "processor": "Made-up CPU", "cores": 2, "memory_bytes": 2**34,
        "gpus": [{"name": "NVIDIA RTX A5000", "memory_bytes": 24 * 2**30}],
        "gpu_driver": "550.1", "cuda": "12.8",
    },
    "versions": {"python": "3.11.2", "torch": "2.13.0", "idm-bench": "0.1.0"},
    "git": {"commit": "0123456789abcdef", "dirty": False},
}  # fmt: skip


def workload(method: str, preset: str) -> dict[str, Any]:
    """What the preset gives the method; made-up ones get what `paper` gives idm."""
    known = METHODS_KNOWN.get(method, METHODS_KNOWN["idm"])
    work = known.workload(preset if preset in PRESETS else "paper")
    return setting_columns(work)


def record(method: str, repeat: int = 1, preset: str = "paper", **changes: Any) -> Record:
    """A trial that was ok; repeats differ by 1 % in time, energy and temperature.

    `changes` of the workload are flags that changed the preset.
    """
    flags = [f"{f.name} {changes[f.name]}" for f in fields(Work) if f.name in changes]
    peak = int(PEAKS.get(method, 5) * GIB)
    wobble = 1 + 0.01 * (repeat - 1)
    seconds, parameters = SECONDS.get(method, 1) * wobble, int(PARAMETERS.get(method, 10) * 1e6)
    values: dict[str, Any] = {
        "method": method, "repeat": repeat, "status": "ok", "preset": preset,
        "preset_changes": ", ".join(flags) or "none", "data": "phantom",
        "device": "cuda:0", "device_name": "NVIDIA RTX A5000", **workload(method, preset),
        **(METHODS_KNOWN[method].columns() if method in METHODS_KNOWN.names else {}),
        "parameters": parameters, "steps": 120, "window_s": 120.0,
        "step_time_median_s": seconds, "step_time_p95_s": seconds * 1.1,
        "volumes_per_s": 4 / seconds,
        "peak_memory_bytes": peak, "peak_memory_source": "tensor-storages",
        "parameter_bytes": peak // 8, "gradient_bytes": peak // 8, "optimizer_bytes": peak // 4,
        "other_bytes": 1024, "activation_bytes": peak - 2 * (peak // 8) - peak // 4 - 1024,
        "peak_allocated_bytes": int(peak * 1.03),
        "flops_forward": int(FLOPS.get(method, 1) * 1e12 / 6),
        "flops_step": int(FLOPS.get(method, 1) * 1e12),
        "energy_j": 2e4 * wobble, "energy_source": "nvml-counter",
        "energy_per_parameter_j": 2e4 * wobble / parameters,
        "energy_per_volume_j": 40 * wobble * seconds,
        "mean_power_w": 170.0, "temperature_start_c": 45.0, "temperature_peak_c": 60.0 + repeat,
        "temperature_mean_c": 58.0, "temperature_source": "nvml",
        "seed": 0, "started_at": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    return Record(**{**values, **changes})


def predicted(method: str, preset: str = "paper", **changes: Any) -> Record:
    """What `python -m bench predict` leaves: memory and FLOPs, nothing that takes a window."""
    measured = record(method, preset=preset, **changes)
    kept = ("preset", "preset_changes", "network", "techniques", "kind",
            *(f.name for f in fields(Work)), "parameters", "flops_step", "peak_memory_bytes",
            "parameter_bytes", "gradient_bytes", "optimizer_bytes", "activation_bytes",
            "other_bytes", "flops_forward")  # fmt: skip
    values = {name: getattr(measured, name) for name in kept}
    values.update(status="ok", peak_memory_source="predicted", device="cpu")
    return Record(method=method, repeat=1, **{**values, **changes})


def window(method: str, repeat: int = 1, count: int = 25, seconds: float = 120.0) -> list[Sample]:
    """170 W from the start, and a card that warms to 60 °C and a degree more with each repeat."""
    times = [seconds * i / (count - 1) for i in range(count)]
    return [
        Sample(
            method=method, repeat=repeat, elapsed_s=t,
            power_w=170.0, energy_j=170.0 * t * (1 + 0.05 * repeat),
            temperature_c=45 + (15 + repeat) * (1 - math.exp(-t / 30)), memory_bytes=GIB,
        )
        for t in times
    ]  # fmt: skip


def instant(method: str, **changes: Any) -> Instant:
    """A moment of a step with 1 GiB of weights and nothing else alive."""
    values: dict[str, Any] = {
        "repeat": 1, "position": 0.5, "phase": "forward", "parameter_bytes": GIB,
        "gradient_bytes": 0, "optimizer_bytes": 0, "activation_bytes": 0, "other_bytes": 0,
        "operator": "aten.convolution.default", "source": "tensor-storages",
    }  # fmt: skip
    return Instant(method=method, **{**values, **changes})


def write_run(
    folder: Path,
    records: list[Record],
    samples: Sequence[Sample] = (),
    environment: dict[str, Any] | None = ENVIRONMENT,
) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "runs.csv", Record, records)
    write_rows(folder / "samples.csv", Sample, samples)
    if environment is not None:
        trials = [{"method": r.method, "repeat": r.repeat} for r in records]
        text = json.dumps({"trials": trials, **environment})
        (folder / "environment.json").write_text(text, encoding="utf-8")
    return Run(folder)


def full_run(folder: Path, repeats: int = 3, preset: str = "paper") -> Run:
    """All methods, each `repeats` times, nothing wrong."""
    trials = [(method, repeat) for repeat in range(1, repeats + 1) for method in METHODS]
    return write_run(
        folder,
        [record(method, repeat, preset) for method, repeat in trials],
        [sample for trial in trials for sample in window(*trial)],
    )
