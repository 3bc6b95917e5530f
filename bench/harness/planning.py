"""From what a person typed to the plans of a run; whatever is wrong with it is said here."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..data import Source, open_source, prepare
from ..ddpm.step import Training
from ..errors import UserError
from ..methods import METHODS, Method, find_methods, preset_changes
from ..presets import Overrides, Reading, Workload, parse_spacing
from ..sizes import Shape, show_shape
from .console import say
from .plan import Plan
from .window import Window

Chosen = Sequence[tuple[Method, Workload]]
"""Each method with what it trains on."""


@dataclass(frozen=True)
class DataChoice:
    """Which volumes to train on."""

    data: str
    data_dir: Path | None
    subjects: int | None
    cache_dir: Path | None
    seed: int
    """Of what is drawn, the embedded brains."""
    modality: tuple[str, ...] | None
    condition: tuple[str, ...] | None
    """Both as typed, with globs; None: as the workloads have it."""
    reading: Reading

    @classmethod
    def of(cls, command: Any, seed: int, subjects: int | None = None) -> "DataChoice":
        """As the flags of a command say it."""
        asked = command.subjects if command.subjects is not None else subjects
        return cls(
            command.data, command.data_dir, asked, command.cache_dir, seed,
            command.overrides.modality, command.overrides.condition, command.reading,
        )  # fmt: skip

    def open(self, chosen: Chosen) -> dict[Shape, Source]:
        """One source for every shape of volume that the methods train on."""
        works = {work.volume: work for _, work in chosen}
        sources = {
            shape: open_source(
                self.data, self.data_dir, self.modality or works[shape].modality, shape, self.seed,
                self.subjects, works[shape].padded_from, self.condition or works[shape].condition,
                window=self.reading.window, spacing=parse_spacing(self.reading.spacing),
            )
            for shape in sorted(works, key=lambda shape: shape.voxels)
        }  # fmt: skip
        for method, work in chosen:
            if (shown := shown_by(sources[work.volume], work)).is_conditional:
                method.check(shown)  # channels and classes are known only now
        return sources

    def prepare(self, sources: Mapping[Shape, Source], console: Console) -> dict[Shape, Path]:
        """Every volume, ready to be read without delay in the window."""
        cache, paths = self.cache_dir or default_cache_dir(), {}
        for shape, source in sources.items():
            title = f"Preparing {len(source)} volumes of {show_shape(shape)}"
            with console.status(title) as status:

                def show(done: int, total: int, title: str = title, status: Any = status) -> None:
                    status.update(f"{title}: {done} of {total}")

                paths[shape] = prepare(source, cache, show)
        for line in dict.fromkeys(line for source in sources.values() for line in remarks(source)):
            say(console, line, "yellow")
        return paths


def remarks(source: Source) -> Iterator[str]:
    """What a person should know of the scans, a line each."""
    found = len(source) + sum(map(len, source.left_out.values()))
    for why, names in source.left_out.items():
        yield f"Left out: {len(names)} of {found} subjects {why}: {_first(names)}"
    for what, names in source.remarks.items():
        yield f"{len(names)} of {len(source)} subjects: {what} ({_first(names)})"


def _first(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def describe_data(sources: Mapping[Shape, Source]) -> dict[str, Any]:
    """What environment.json says of the data beside the configuration."""
    return {
        "data": [
            {
                "source": source.name,
                "volume": shape.as_json(),
                "subjects": len(source),
                "left_out": source.left_out,
                "remarks": source.remarks,
            }
            for shape, source in sources.items()
        ]
    }


def common_fields(
    method: Method, work: Workload, training: Training, source: Source, path: Path, command: Any
) -> dict[str, Any]:
    """The fields of `Plan`, but for the window and the device."""
    return {
        "method": method.name,
        "preset": command.preset,
        "preset_changes": preset_changes(method, command.preset, command.overrides, work, training),
        "work": shown_by(source, work),
        "labels": source.labels,
        "training": training,
        "data": source.name,
        "reading": command.reading,
        "subjects": len(source),
        "volumes": str(path),
        "backends": command.backends,
        "country": command.country,
    }


def shown_by(source: Source, work: Workload) -> Workload:
    """The workload with the channels and the classes that the data turned out to have."""
    return replace(
        work, modality=source.channels, condition=source.condition, classes=source.classes
    )


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:1` as a device that is there; UserError otherwise."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: unknown; give auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: only cpu and cuda are measured")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: this machine shows PyTorch {torch.cuda.device_count()} CUDA devices"
        )
    return device


def default_preset(device: torch.device) -> str:
    return "paper" if device.type == "cuda" else "small"


def choose_window(minutes: float | None, steps: int | None, default_minutes: float) -> Window:
    if minutes is not None and steps is not None:
        raise UserError("--minutes and --steps: give one of the two, not both")
    if steps is not None:
        return Window(steps=steps)
    return Window(seconds=(default_minutes if minutes is None else minutes) * 60)


def choose_workloads(names: Sequence[str], preset: str, overrides: Overrides) -> Chosen:
    """Each method with what it will train on; UserError for a wrong flag."""
    return [(method, method.workload(preset, overrides)) for method in find_methods(names)]


def chosen_by(plans: Sequence[Plan]) -> Chosen:
    """Each method of these plans with what it trains on."""
    return [(METHODS[plan.method], plan.work) for plan in plans]


def have_volumes(plans: Sequence[Plan]) -> bool:
    return all(Path(plan.volumes).is_file() for plan in plans)


def default_cache_dir() -> Path:
    """Where prepared volumes are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "idm-bench"
    except RuntimeError:
        raise UserError(
            "no home folder: name a folder for prepared volumes with --cache-dir"
        ) from None
