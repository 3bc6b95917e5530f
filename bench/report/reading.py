"""Run folders as evidence: what may be compared with what, and what is wrong with it.

Trials are compared only if they ran the same preset on the same data, device and versions: a
`Group`. Runs that agree in all of that, and in every setting of the methods that they share, are
pooled, their trials counting as repeats; runs that differ stay apart, and the report says in what.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd

from ..errors import UserError
from ..records.files import column_names, finished_lines, parse_table
from ..records.folder import Run
from ..records.rows import (
    Fit,
    Instant,
    Learning,
    Point,
    Record,
    Sample,
    Score,
    Setting,
    Trained,
)
from ..sizes import Shape
from .grid import as_rows, one_line
from .tables import CostTable

SIDE_TABLES: Mapping[str, type] = {
    "quality.csv": Score, "learning.csv": Learning, "trained.csv": Trained, "scale.csv": Point,
    "timeline.csv": Instant, "fit.csv": Fit,
}  # fmt: skip
"""What runs and other commands leave beside `runs.csv`."""
QUALITY_TABLES = frozenset({"quality.csv", "learning.csv", "trained.csv"})
SETTINGS = [
    f.name
    for f in fields(Setting)
    if f.name
    not in {
        # a group shares these
        "preset", "preset_changes", "match", "data", "device", "device_name",
        "seed", "started_at", "window_limit_s", "window_limit_steps",  # repeats may differ in these
    }
]  # fmt: skip
"""Columns in which trials must agree to count as repeats of one another."""
_VERSIONS = {
    "torch": ("versions", "torch"), "CUDA": ("hardware", "cuda"),
    "driver": ("hardware", "gpu_driver"), "idm-bench": ("versions", "idm-bench"),
    "commit": ("git", "commit"),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Group:
    """Trials that may be compared with each other."""

    records: pd.DataFrame
    """Rows of `runs.csv`, with `run` (the folder's name) and `trial` (its key in `samples`)."""
    samples: pd.DataFrame
    shared: Mapping[str, Any]
    """Of all of them: source (`measured` or `predicted`), preset, match, data, device, versions."""

    @property
    def preset(self) -> str:
        return str(self.shared["preset"])

    @property
    def kind(self) -> str:
        return str(self.shared["source"])

    @property
    def match(self) -> str:
        """What of IDM's `unet` has: parameters, flops, or none of it."""
        return str(self.shared["match"])

    @property
    def name(self) -> str:
        where = "" if self.kind == "predicted" else f" on {self.shared['device']}"
        widths = " at equal FLOPs" if self.match == "flops" else ""
        return f"{self.preset}{widths}, {self.kind}{where}"

    @property
    def runs(self) -> list[str]:
        return list(dict.fromkeys(self.records["run"]))

    @property
    def methods(self) -> list[str]:
        return self.costs.methods

    @property
    def ok(self) -> pd.DataFrame:
        return self.records[self.records["status"] == "ok"]

    @cached_property
    def costs(self) -> CostTable:
        return CostTable(self.records)


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
    """What is missing, damaged, or not pooled, a line each."""


def read_evidence(folders: Sequence[Path]) -> Evidence:
    """UserError for a folder that is not a run's; lesser damage becomes a line in `problems`."""
    evidence = Evidence()
    groups: list[Group] = []
    for folder in dict.fromkeys(folder.resolve() for folder in folders):
        run = Run(folder)
        name = _free_name(folder.name, evidence.folders)
        if _read_side_tables(folder, name, evidence) and not (folder / "runs.csv").exists():
            evidence.folders[name] = folder
            with suppress(UserError):  # only some of these commands leave one
                evidence.environments[name] = run.environment()
        else:
            groups += _read_groups(run, name, evidence)
    evidence.groups = list(_pooled(groups, evidence.problems))
    return evidence


def changes_in_words(a: pd.DataFrame, b: pd.DataFrame, names: Iterable[str]) -> list[str]:
    """A line a method: "idm has other settings: couplings 2 → 4.", of those that both recorded."""
    found: dict[str, list[str]] = {}
    for method, name, one, other in setting_changes(a, b, names):
        if one is not None and other is not None:
            found.setdefault(method, []).append(f"{name} {one} → {other}")
    return [f"{method} has other settings: {', '.join(texts)}." for method, texts in found.items()]


def setting_changes(
    a: pd.DataFrame, b: pd.DataFrame, names: Iterable[str]
) -> Iterator[tuple[str, str, Any, Any]]:
    """Method, setting and its two values, where the rows of a method differ; None: not recorded."""
    ours, theirs = (
        {row["method"]: row for row in as_rows(table.drop_duplicates("method"))} for table in (a, b)
    )
    for method in (method for method in ours if method in theirs):
        for name in names:
            pair: list[Any] = [ours[method][name], theirs[method][name]]
            pair = [None if pd.isna(value) else value for value in pair]
            if pair[0] != pair[1]:
                yield method, name, *pair


def flat_environment(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """`hardware.processor` and its value, …; without the plan of every trial."""
    if not isinstance(value, dict):
        yield key, value
        return
    for name, inner in value.items():
        if key or name != "trials":
            yield from flat_environment(inner, f"{key}.{name}" if key else str(name))


def _read_groups(run: Run, name: str, evidence: Evidence) -> Iterator[Group]:
    """The groups within one run."""

    def say(text: str) -> None:
        evidence.problems.append(f"{name}: {text}")

    records = run.records()
    evidence.folders[name] = run.folder
    twice = records.duplicated(["method", "repeat"])
    if twice.any():
        say(f"{twice.sum()} trials are recorded twice; the first record of each counts")
        records = records[~twice]
    _clean(records, Record)
    floats = records.select_dtypes("float")
    infinite = floats.isin([math.inf, -math.inf])
    if infinite.any(axis=None):
        say(f"infinite values are left out ({', '.join(floats.columns[infinite.any()])})")
        records[floats.columns] = floats.mask(infinite)
    if records["preset_changes"].isna().any():
        say("an older version wrote this run and did not record whether flags changed the preset: "
            "it decides no claim")  # fmt: skip
    predicted = records["peak_memory_source"].eq("predicted")
    if set(records["peak_memory_source"].dropna()) == {"predicted"}:
        predicted[:] = True  # also those that failed
    environment = {}
    try:
        environment = run.environment()
    except UserError as error:
        if predicted.all() and not (run.folder / "environment.json").exists():
            say("predictions that do not say with which version of torch they were made")
        else:
            say(f"environment.json: {_after_path(error)}; machine and versions are not known")
    evidence.environments[name] = environment
    places = {trial: place for place, trial in enumerate(_planned(environment))}
    there = list(zip(records["method"], records["repeat"], strict=True))
    for method, repeat in sorted(places.keys() - set(there), key=places.__getitem__):
        say(f"{one_line(method)}, repeat {repeat}, is planned but not recorded: the run is not "
            "finished")  # fmt: skip
    # What a resumed run made good stands last in the file, but the first method is compared with.
    order = np.argsort([places.get(trial, len(places)) for trial in there], kind="stable")
    records = records.iloc[order]
    if _at(environment, "git", "dirty") is True:
        say("made with changes that are in no commit")
    try:
        samples = run.samples()
    except UserError as error:
        samples = pd.DataFrame(columns=column_names(Sample))
        if not predicted.all():
            say(f"samples.csv: {_after_path(error)}; no energy or temperature over time")
    _clean(samples, Sample)
    for table in (records, samples):
        table["run"] = name
        table["trial"] = name + "\t" + table["method"] + "\t" + table["repeat"].astype(str)
    if records.empty:
        say("no trial was recorded")
    versions = {
        key: _at(environment, *where) if environment else f"not recorded by {name}"
        for key, where in _VERSIONS.items()
    }
    keys = [predicted.map({True: "predicted", False: "measured"}).rename("source")]
    for column, key in (("preset", "preset"), ("data", "data"), ("device_name", "device")):
        keys.append(records[column].fillna("not recorded").rename(key))
    keys.append(records["match"].fillna("nothing"))
    for values, rows in records.groupby(keys, sort=False):
        shared = dict(zip((str(key.name) for key in keys), map(str, values), strict=True))
        own = samples[samples["trial"].isin(set(rows["trial"]))]
        yield Group(rows, own, {**shared, **versions})


def _read_side_tables(folder: Path, name: str, evidence: Evidence) -> bool:
    """Whether there were any."""
    found = [file for file in SIDE_TABLES if (folder / file).exists()]
    for file in found:
        path, row_type = folder / file, SIDE_TABLES[file]
        try:
            table = parse_table(path, finished_lines(path), row_type)
        except UserError as error:
            evidence.problems.append(f"{name}: {file}: {_after_path(error)}; it is left out")
            continue
        _clean(table, row_type)
        known = evidence.side_tables.get(file)
        table["run"] = name
        evidence.side_tables[file] = table if known is None else pd.concat([known, table])
    return bool(found)


def _clean(table: pd.DataFrame, row_type: type) -> None:
    """No line ends and control characters in the cells of text, which anybody may have written."""
    for column in fields(row_type):
        if not {int, float, Shape} & {column.type, *get_args(column.type)}:
            table[column.name] = table[column.name].map(one_line, na_action="ignore")


def _pooled(groups: Iterable[Group], problems: list[str]) -> list[Group]:
    pooled: list[Group] = []
    for group in groups:
        apart = [_differences(other, group) for other in pooled]
        if {} in apart:
            index = apart.index({})
            other = pooled[index]
            pooled[index] = replace(
                other,
                records=pd.concat([other.records, group.records], ignore_index=True),
                samples=pd.concat([other.samples, group.samples], ignore_index=True),
            )
            problems.append(
                f"{group.name}: the trials of {' and '.join([*other.runs, *group.runs])} are "
                "counted together; same machine, versions and settings"
            )
            continue
        for other, differences in zip(pooled, apart, strict=True):
            if not {"preset", "source", "match"} & set(differences):
                problems.append(
                    f"not counted together: {other.runs[0]} and {group.runs[0]} ({group.name}) "
                    f"differ in {', '.join(differences.values())}"
                )
        pooled.append(group)
    return pooled


def _differences(one: Group, other: Group) -> dict[str, str]:
    """By what differs: "couplings (1 and 4)"."""
    pairs = [(name, value, other.shared[name]) for name, value in one.shared.items()]
    pairs += [pair[1:] for pair in setting_changes(one.records, other.records, SETTINGS)]
    return {
        name: f"{name} ({_known(ours)} and {_known(theirs)})"
        for name, ours, theirs in pairs
        if ours != theirs
    }


def _known(value: object) -> str:
    return "not recorded" if value is None else one_line(value)


def _planned(environment: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Method and repeat of each trial, of a file that may say anything."""
    planned = environment.get("trials")
    for trial in planned if isinstance(planned, list) else []:
        method, repeat = _at(trial, "method"), _at(trial, "repeat")
        if isinstance(method, str) and isinstance(repeat, int):
            yield method, repeat


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
