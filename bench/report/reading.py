"""Run folders as evidence: what may be compared with what, and what is wrong with it.

Trials are put side by side only if they ran the same preset on the same data, device and
versions: a `Group`. Runs that agree in all of that are pooled, their trials counting as repeats;
runs that differ stay apart, and the report says in what.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd

from bench.errors import UserError
from bench.report.grid import as_rows, one_line
from bench.results import Record, Run, Sample, column_names

SIDE_TABLES = {
    "quality.csv": {"source": str, "method": str, "modality": str, "column": str, "value": float},
    "learning.csv": {"method": str, "step": float, "elapsed_s": float, "val_mse": float},
    "scale.csv": {"method": str, "axis": str, "value": float, "peak_memory_bytes": float,
                  "parameter_bytes": float, "gradient_bytes": float, "optimizer_bytes": float,
                  "stored_bytes": float},
    "timeline.csv": {"method": str, "repeat": float, "position": float, "phase": str,
                     "parameter_bytes": float, "gradient_bytes": float, "optimizer_bytes": float,
                     "activation_bytes": float, "other_bytes": float, "source": str},
    "fit.csv": {"memory_bytes": float, "method": str, "volume": float, "batch_size": float,
                "largest_volume": float},
}  # fmt: skip
"""What runs and other commands leave beside `runs.csv`, and the columns a report needs of it."""
SIDE_OPTIONAL: Mapping[str, Mapping[str, type]] = {
    "quality.csv": {"unit": str, "note": str, "protocol": str, "timestep": float, "sd": float,
                    "count": float, "seed": float, "data": str},
    "fit.csv": {"patch": float},
    "timeline.csv": {"layer": str, "operator": str},
    "learning.csv": {"seed": float, "energy_j": float, "energy_source": str, "val_mse_ema": float},
}  # fmt: skip
"""And those that it uses where they are."""
QUALITY_TABLES = frozenset({"quality.csv", "learning.csv"})
WORKLOAD = ["volume", "patch", "batch_size", "channels", "precision"]
_KEYS = {"method", "repeat", "status"}
_TEXT = [f.name for f in fields(Record) if f.type == str | None]
_NUMBERS = [f.name for f in fields(Record) if f.name not in {*_TEXT, *_KEYS}]


@dataclass(frozen=True)
class Group:
    """Trials that may be compared with each other."""

    records: pd.DataFrame
    """Rows of `runs.csv`, with `run` (the folder's name) and `trial` (its key in `samples`)."""
    samples: pd.DataFrame
    preset: str
    kind: str
    """`measured` or `predicted`."""
    device_name: str
    data: str
    runs: tuple[str, ...]
    own_setting: bool
    """Whether every method trains on what the preset says, no flag changing it."""

    @property
    def name(self) -> str:
        where = "" if self.kind == "predicted" else f" on {self.device_name}"
        return f"{self.preset}, {self.kind}{where}"

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(self.records["method"]))

    @property
    def ok(self) -> pd.DataFrame:
        return self.records[self.records["status"] == "ok"]


@dataclass
class Evidence:
    """All that a report is made from."""

    groups: list[Group] = field(default_factory=list)
    environments: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By run; empty where it could not be read."""
    folders: dict[str, Path] = field(default_factory=dict)
    side_tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    """Of `SIDE_TABLES`, those that are there, with `run`."""
    problems: list[str] = field(default_factory=list)
    """What is missing, damaged, or not mixed, a line each."""


def read_evidence(folders: Sequence[Path]) -> Evidence:
    """UserError for a folder that is not a run's; lesser damage becomes a line in `problems`."""
    evidence = Evidence()
    pieces: list[tuple[tuple[object, ...], Group]] = []
    for folder in dict.fromkeys(folder.resolve() for folder in folders):
        run = Run(folder)
        name = _free_name(folder.name, evidence.folders)
        if _read_side_tables(folder, name, evidence) and not (folder / "runs.csv").exists():
            evidence.folders[name] = folder
            with suppress(UserError):  # only some of these commands leave one
                evidence.environments[name] = run.environment()
            continue
        records, samples = _read(run, name, evidence)
        for key, group in _split(records, samples, name):
            pieces.append(((*key, *_versions(evidence.environments[name], name)), group))
    _pool(pieces, evidence)
    return evidence


def _read(run: Run, name: str, evidence: Evidence) -> tuple[pd.DataFrame, pd.DataFrame]:
    def say(text: str) -> None:
        evidence.problems.append(f"{name}: {text}")

    records = run.records()
    evidence.folders[name] = run.folder
    twice = records.duplicated(["method", "repeat"])
    if twice.any():
        say(f"{twice.sum()} trials are recorded twice; the first record of each counts")
        records = records[~twice]
    for column in ["method", *_TEXT]:
        records[column] = records[column].map(one_line, na_action="ignore")
    infinite = records[_NUMBERS].isin([math.inf, -math.inf])
    if infinite.any(axis=None):
        broken = ", ".join(infinite.columns[infinite.any()])
        say(f"infinite values are left out ({broken})")
        records[_NUMBERS] = records[_NUMBERS].mask(infinite)
    predicted = (records["peak_memory_source"] == "predicted").all()
    try:
        environment = run.environment()
    except UserError as error:
        environment = {}
        if predicted and not (run.folder / "environment.json").exists():
            say("predictions that do not say with which version of torch they were made")
        else:
            say(f"environment.json: {_after_path(error)}; machine and versions are not known")
    evidence.environments[name] = environment
    for trial in _missing_trials(environment, records):
        say(f"{trial} is planned but not recorded: the run is not finished")
    if _at(environment, "git", "dirty") is True:
        say("made with changes that are in no commit")
    try:
        samples = run.samples()
    except UserError as error:
        samples = pd.DataFrame(columns=column_names(Sample))
        if not predicted:
            say(f"samples.csv: {_after_path(error)}; no energy or temperature over time")
    samples["method"] = samples["method"].map(one_line)
    for table in (records, samples):
        table["run"] = name
        table["trial"] = _trial_keys(table)
    if records.empty:
        say("no trial was recorded")
    return records, samples


def _read_side_tables(folder: Path, name: str, evidence: Evidence) -> bool:
    """Whether there were any."""
    found = False
    for file, types in SIDE_TABLES.items():
        if not (folder / file).exists():
            continue
        found = True
        try:
            table = pd.read_csv(folder / file)
            more = {c: kind for c, kind in SIDE_OPTIONAL.get(file, {}).items() if c in table}
            table = table.astype(types | more)
        except (OSError, ValueError, KeyError, TypeError):
            evidence.problems.append(f"{name}: {file} cannot be read; it is left out")
            continue
        for column in (column for column, kind in (types | more).items() if kind is str):
            text = table[column].map(one_line)
            table[column] = text.where(table[column].notna()) if column in more else text
        known = evidence.side_tables.get(file)
        table = table.assign(run=name)
        evidence.side_tables[file] = table if known is None else pd.concat([known, table])
    return found


def _split(
    records: pd.DataFrame, samples: pd.DataFrame, run: str
) -> Iterator[tuple[tuple[object, ...], Group]]:
    """The groups within one run, each with what it must share to be pooled with another's."""
    predicted = records["peak_memory_source"].eq("predicted")
    if set(records["peak_memory_source"].dropna()) == {"predicted"}:
        predicted[:] = True  # also those that came to nothing
    kinds = predicted.map({True: "predicted", False: "measured"})
    keys = [records[name].fillna("not recorded") for name in ("preset", "data", "device_name")]
    for key, rows in records.groupby([kinds, *keys], sort=False):
        kind, preset, data, device = map(str, key)
        group = Group(
            records=rows,
            samples=samples[samples["trial"].isin(set(rows["trial"]))],
            preset=preset, kind=kind, device_name=device, data=data, runs=(run,),
            own_setting=_is_own_setting(rows, preset),
        )  # fmt: skip
        yield (kind, preset, data, device), group


def _pool(pieces: Sequence[tuple[tuple[object, ...], Group]], evidence: Evidence) -> None:
    pooled: list[tuple[tuple[object, ...], Group]] = []
    for key, group in pieces:
        for index, (other_key, other) in enumerate(pooled):
            if key == other_key and _same_work(group, other):
                pooled[index] = key, _merged(other, group)
                evidence.problems.append(
                    f"{group.name}: the trials of {' and '.join((*other.runs, *group.runs))} are "
                    "counted together; same machine, versions and workload"
                )
                break
        else:
            for other_key, other in pooled:
                if other.preset == group.preset and other.kind == group.kind:
                    evidence.problems.append(
                        f"not mixed: {other.runs[0]} and {group.runs[0]} ({group.name}) differ in "
                        f"{', '.join(_differences(key, other_key)) or 'workload'}"
                    )
            pooled.append((key, group))
    evidence.groups = [group for _, group in pooled]


_SHARED = ("source", "preset", "data", "device", "torch", "CUDA", "driver", "idm-bench", "commit")


def _versions(environment: dict[str, Any], run: str) -> tuple[object, ...]:
    """What else two runs must share; a run that does not say shares nothing."""
    if not environment:
        return (run,) * 5
    return (
        _at(environment, "versions", "torch"),
        _at(environment, "hardware", "cuda"),
        _at(environment, "hardware", "gpu_driver"),
        _at(environment, "versions", "idm-bench"),
        _at(environment, "git", "commit"),
    )


def _differences(key: tuple[object, ...], other: tuple[object, ...]) -> list[str]:
    return [
        f"{name} ({one_line(theirs)} and {one_line(ours)})"
        for name, ours, theirs in zip(_SHARED, key, other, strict=True)
        if ours != theirs
    ]


def _same_work(group: Group, other: Group) -> bool:
    both = pd.concat([group.records, other.records])[["method", *WORKLOAD]]
    return not both.drop_duplicates().duplicated("method").any()


def _merged(one: Group, other: Group) -> Group:
    return Group(
        records=pd.concat([one.records, other.records], ignore_index=True),
        samples=pd.concat([one.samples, other.samples], ignore_index=True),
        preset=one.preset, kind=one.kind, device_name=one.device_name, data=one.data,
        runs=(*one.runs, *other.runs), own_setting=one.own_setting and other.own_setting,
    )  # fmt: skip


def _is_own_setting(records: pd.DataFrame, preset: str) -> bool:
    from bench.methods import METHODS  # knows the presets, and brings PyTorch
    from bench.presets import PRESETS

    if preset not in PRESETS:
        return False
    for row in as_rows(records[["method", *WORKLOAD]].drop_duplicates()):
        method = METHODS.get(row.pop("method"))
        if method is None:
            return False
        work = method.workload(preset)
        own = {name: getattr(work, name) for name in WORKLOAD}
        own["channels"] = " ".join(map(str, work.channels))
        if any(pd.notna(value) and value != own[name] for name, value in row.items()):
            return False
    return True


def _missing_trials(environment: dict[str, Any], records: pd.DataFrame) -> Iterator[str]:
    there = set(zip(records["method"], records["repeat"], strict=True))
    planned = environment.get("trials")
    for trial in planned if isinstance(planned, list) else []:
        method, repeat = _at(trial, "method"), _at(trial, "repeat")
        if isinstance(method, str) and isinstance(repeat, int) and (method, repeat) not in there:
            yield f"{one_line(method)}, repeat {repeat},"


def _trial_keys(table: pd.DataFrame) -> pd.Series:
    return table["run"] + "\t" + table["method"] + "\t" + table["repeat"].astype(str)


def _free_name(name: str, taken: dict[str, Path]) -> str:
    name = one_line(name)
    number = 2
    free = name
    while free in taken:
        free, number = f"{name} ({number})", number + 1
    return free


def _after_path(error: UserError) -> str:
    """The complaint without the path before it, which is a name of this machine."""
    return one_line(str(error).partition(": ")[2].partition(";")[0])


def _at(value: Any, *keys: str) -> Any:
    """A value deep in JSON that may be anything."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
