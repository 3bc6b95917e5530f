"""The command `check`: has a method's peak grown since the baseline was committed?

A baseline is a CSV of predictions, a row a method and preset. A prediction is exact and depends on
no machine, so that one byte more is a change of the code.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console

from ..commands import CheckCommand
from ..errors import UserError, typed
from ..harness.console import say
from ..methods import METHODS, find_methods
from ..presets import PRESETS, Workload
from ..probes.memory import Part
from ..records.files import IN_A_WHEEL, column_names, read_table, replace_file, shipped
from ..records.folder import Run
from ..records.rows import BaselinePeak
from ..sizes import show_shape
from .parallel import side_by_side
from .peaks import say_assumed
from .prediction import Prediction, predict_method

GATED_PRESETS = ("small", "paper", "equal")
Key = tuple[str, str]
"""Preset and method."""


@dataclass(kw_only=True)
class Peak(BaselinePeak):
    """A row of the baseline."""

    @property
    def key(self) -> Key:
        return self.preset, self.method

    def part_bytes(self) -> dict[str, int]:
        return {part: getattr(self, f"{part}_bytes") for part in Part}

    def layers_of(self, part: str) -> dict[str, int]:
        """Bytes of each layer of one part."""
        return {layer: size for (kind, layer), size in self.layer_bytes().items() if kind == part}

    def layer_bytes(self) -> dict[tuple[str, str], int]:
        found = {}
        for line in self.layers.splitlines():
            part, *layer, nbytes = line.split(" ")
            found[part, " ".join(layer)] = int(nbytes)
        return found


@dataclass(frozen=True)
class Difference:
    """One row against the baseline's, in bytes."""

    key: Key
    grown: int
    """Of the peak; negative if it shrank."""
    explanation: str


def run_check(command: CheckCommand, console: Console) -> int:
    """Exit status 1 if a row grew, 0 otherwise; UserError for a baseline that cannot tell."""
    if command.update:
        if command.run is not None:
            raise UserError("--update: a baseline is made of predictions, not of --run")
        if command.baseline is None and IN_A_WHEEL:
            raise UserError("--update: name the file to write with --baseline")
        return _update(command, _path(command), console)
    path = _path(command)
    baseline = read_baseline(path)
    tolerance = parse_tolerance(command.tolerance) if command.run is not None else 0.0
    keys = _chosen(command, path, baseline)
    if command.run is not None:
        now = measured_peaks(Run(command.run))
        keys = [key for key in keys if key in now]
        differences = [compare_measured(baseline[key], now[key]) for key in keys]
        if not keys:
            raise UserError(f"--run {command.run}: has no ok trial of a row of {path}")
    else:
        peaks = predict_peaks(keys, console)
        differences = [compare(baseline[peak.key], peak) for peak in peaks]
        check_versions(baseline, differences, path, console)
    return _report(differences, baseline, tolerance, console)


def compare(before: Peak, now: Peak) -> Difference:
    """Both predicted; UserError if they trained on different things."""
    if before.workload != now.workload:
        raise UserError(
            f"{now.method} at {now.preset}: the baseline trained on {before.workload}, the preset "
            f"is now {now.workload}; {_how()}"
        )
    grown = now.peak_memory_bytes - before.peak_memory_bytes
    if not grown:
        return Difference(now.key, 0, "")
    part, by = _furthest(before.part_bytes(), now.part_bytes(), grown)
    layer, by_layer = _furthest(before.layers_of(part), now.layers_of(part), grown)
    where = f"in {layer or 'no layer of the network'} ({by_layer:+,})"
    return Difference(now.key, grown, f"{part} {by:+,} bytes, most {where}; peak {now.peak_at}")


def compare_measured(before: Peak, now: pd.Series) -> Difference:
    """A run's row against a prediction; it knows parts but no layers."""
    grown = int(now["peak_memory_bytes"]) - before.peak_memory_bytes
    parts: dict[str, int] = {part: int(now[f"{part}_bytes"]) for part in Part}
    part, by = _furthest(before.part_bytes(), parts, grown)
    return Difference(before.key, grown, f"{part} {by:+,} bytes; a run does not record layers")


def predict_peaks(keys: Sequence[Key], console: Console) -> list[Peak]:
    """Each workload once, however many presets give it to a method."""
    works = {key: METHODS[key[1]].workload(key[0]) for key in keys}
    distinct = list(dict.fromkeys((method, works[preset, method]) for preset, method in keys))
    made = side_by_side(predict_workload, distinct, console, "Predicting")
    found = dict(zip(distinct, made, strict=True))
    return [make_peak(key, works[key], found[key[1], works[key]]) for key in keys]


@dataclass(frozen=True)
class Summary:
    """What a row needs of a prediction; small enough to be sent between processes."""

    parts: Mapping[str, int]
    peak_at: str
    layers: str


def predict_workload(job: tuple[str, Workload]) -> Summary:
    method, work = job
    return summarise(predict_method(METHODS[method], work, device="cpu", count_forward=False))


def summarise(prediction: Prediction) -> Summary:
    # Gradients and optimizer state belong to the layers of the parameters: those would say the
    # same three times.
    holdings: Counter[tuple[str, str]] = Counter()
    for (part, layer), nbytes in prediction.peak.holdings.items():
        detailed = part in (Part.PARAMETER, Part.ACTIVATION)
        holdings[part, layer if detailed else ""] += nbytes
    lines = [f"{part} {layer} {nbytes}" for (part, layer), nbytes in sorted(holdings.items())]
    parts = {f"{part}_bytes": nbytes for part, nbytes in prediction.parts.items()}
    return Summary(parts, str(prediction.peak), "\n".join(lines))


def make_peak(key: Key, work: Workload, summary: Summary) -> Peak:
    preset, method = key
    widths = "-".join(map(str, work.channels))
    return Peak(
        preset=preset,
        method=method,
        torch=torch_version(),
        workload=f"{show_shape(work.patch)} of {show_shape(work.volume)} × {work.batch_size}, "
        f"{work.precision}, {widths}, {work.couplings} couplings, {'+'.join(work.modality)}",
        peak_memory_bytes=sum(summary.parts.values()),
        **summary.parts,
        peak_at=summary.peak_at,
        layers=summary.layers,
    )


def read_baseline(path: Path) -> dict[Key, Peak]:
    """The rows of a baseline; UserError where one is damaged."""
    if not path.exists():
        raise UserError(f"--baseline {path}: missing; {_how()}")
    table = read_table(path, BaselinePeak)
    if table.empty:
        raise UserError(f"--baseline {path}: holds no rows; {_how()}")
    baseline: dict[Key, Peak] = {}
    for number, row in enumerate(table[column_names(BaselinePeak)].to_dict("records"), start=1):
        peak = _checked(Peak(**row), f"{path}, row {number}")  # type: ignore[arg-type]
        if peak.key in baseline:
            raise UserError(f"{path}, row {number}: {peak.method} at {peak.preset} is there twice")
        baseline[peak.key] = peak
    return baseline


def _checked(peak: Peak, where: str) -> Peak:
    try:
        layers = peak.layer_bytes()
    except ValueError as error:
        raise UserError(f"{where}: damaged (layers: {error}); {_how()}") from None
    if sum(peak.part_bytes().values()) != peak.peak_memory_bytes:
        raise UserError(f"{where}: damaged (the parts do not add up to the peak); {_how()}")
    for part, nbytes in peak.part_bytes().items():
        if sum(held for (kind, _), held in layers.items() if kind == part) != nbytes:
            raise UserError(f"{where}: damaged (the layers do not add up to {part}); {_how()}")
    if peak.method not in METHODS or peak.preset not in PRESETS:
        raise UserError(
            f"{where}: {peak.method} at {peak.preset} does not exist any more; {_how()}"
        )
    return peak


def write_baseline(path: Path, peaks: Iterable[Peak]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        names, text = column_names(BaselinePeak), io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")  # a diff of it is read by people
        writer.writerow(names)
        writer.writerows([getattr(peak, name) for name in names] for peak in peaks)
        replace_file(path, text.getvalue())
    except OSError as error:
        raise UserError(f"--baseline {path}: cannot be written ({error.strerror})") from None


def check_versions(
    baseline: Mapping[Key, Peak], differences: Sequence[Difference], path: Path, console: Console
) -> None:
    """Another torch may have other operators: UserError where that may be why a peak differs."""
    others = {baseline[each.key].torch for each in differences} - {torch_version()}
    if not others:
        return
    versions = f"is of torch {', '.join(sorted(others))}, this is torch {torch_version()}"
    different = [each for each in differences if each.grown]
    if different:
        row = " at ".join(reversed(different[0].key))
        raise UserError(
            f"--baseline {path}: {row} differs by {different[0].grown:+,} bytes, but {versions}: "
            f"install that one, or {_how()}"
        )
    say(console, f"{path} {versions}: the bytes are the same.")


def measured_peaks(run: Run) -> dict[Key, pd.Series]:
    """The rows of a run that have a peak."""
    records = run.records()
    rows = records[(records["status"] == "ok") & records["peak_memory_bytes"].notna()]
    return {(row["preset"], row["method"]): row for _, row in rows.iterrows()}


def parse_tolerance(text: str) -> float:
    """A share of the baseline: "2%" is 0.02."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise UserError(f"--tolerance {text}: not a share; give 2% or 0.02")
    return value


def torch_version() -> str:
    """Without the build: CPU and CUDA builds dispatch the same operators on fake tensors."""
    return torch.__version__.partition("+")[0]


def _path(command: CheckCommand) -> Path:
    """The baseline that was named, or the one that comes with this package."""
    if command.baseline is not None:
        return command.baseline
    path, here = shipped("baseline.csv"), Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _chosen(command: CheckCommand, path: Path, baseline: Mapping[Key, Peak]) -> list[Key]:
    """The rows to look at; UserError if one that should be there is missing."""
    methods = [method.name for method in find_methods(command.models or tuple(METHODS))]
    presets: Sequence[str] = command.presets or list(dict.fromkeys(key[0] for key in baseline))
    wanted = [(preset, method) for preset in presets for method in methods]
    missing = [" at ".join(reversed(key)) for key in wanted if key not in baseline]
    if missing:
        raise UserError(f"--baseline {path}: lacks {', '.join(missing)}; {_how()}")
    return wanted


def _update(command: CheckCommand, path: Path, console: Console) -> int:
    methods = [method.name for method in find_methods(command.models or tuple(METHODS))]
    presets: Sequence[str] = command.presets or GATED_PRESETS
    keys = [(preset, method) for preset in presets for method in methods]
    kept: dict[Key, Peak] = {}
    if (command.models or command.presets) and path.exists():
        kept = read_baseline(path)  # only what was named is made anew
    peaks = kept | {peak.key: peak for peak in predict_peaks(keys, console)}
    write_baseline(path, peaks.values())
    say(console, f"{path}: {len(keys)} rows, torch {torch_version()}")
    say_assumed([METHODS[method] for _, method in keys], console)
    return 0


def _report(
    differences: Sequence[Difference],
    baseline: Mapping[Key, Peak],
    tolerance: float,
    console: Console,
) -> int:
    grew = 0
    for difference in differences:
        preset, method = difference.key
        before = baseline[difference.key].peak_memory_bytes
        by = f"{difference.grown:+,} bytes ({difference.grown / before:+.2%})"
        if difference.grown > tolerance * before:
            grew += 1
            say(console, f"GREW {method} at {preset}: {by}: {difference.explanation}")
        elif difference.grown < 0:
            say(console, f"shrank {method} at {preset}: {by}: {difference.explanation}")
    say(console, f"{len(differences)} peaks compared, {grew} grew.")
    say_assumed([METHODS[each.key[1]] for each in differences], console)
    if not grew and any(difference.grown < 0 for difference in differences):
        say(console, f"Peaks shrank; update the baseline: {_update_command()}.")
    return 1 if grew else 0


def _furthest(before: Mapping[str, int], now: Mapping[str, int], grown: int) -> tuple[str, int]:
    """What changed most in the direction of the peak."""
    sign = 1 if grown >= 0 else -1
    changes = {name: now.get(name, 0) - before.get(name, 0) for name in {**before, **now}}
    name = max(changes, key=lambda name: sign * changes[name])
    return name, changes[name]


def _how() -> str:
    return f"{_update_command()} makes it anew"


def _update_command() -> str:
    named = ("--baseline", "FILE") if IN_A_WHEEL else ()
    return f"`{typed('check', '--update', *named)}`"
