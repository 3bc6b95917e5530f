"""Records say everything: each setting has a column, and no measured number is lost in silence."""

import csv
from dataclasses import dataclass, fields, is_dataclass, replace
from io import StringIO
from typing import Any, get_type_hints

import pytest
from rich.console import Console

from bench.commands import PredictCommand, QualityCommand, RunCommand
from bench.ddpm.step import Training
from bench.harness.window import Window
from bench.methods import METHODS, preset_changes
from bench.predict.peaks import run_predict
from bench.presets import Overrides
from bench.quality.plan import TrainingPlan
from bench.records.files import column_names, read_table
from bench.records.folder import Run
from bench.records.rows import (
    Measurement,
    Peak,
    Record,
    Setting,
    Trained,
    UnknownColumn,
    check_columns,
)
from bench.run.command import Benchmark
from bench.run.plan import TrialPlan
from tests.bench.trials import WatchedRecorder, Watcher, new_run, run_all, tiny_plan

HAS_ANOTHER_NAME = {
    "models": "method", "repeats": "repeat", "seeds": "seed", "memory_limit": "memory_limit_bytes",
    "budget": "budget_bytes", "minutes": "window_limit_s", "seconds": "window_limit_s",
    "country": "co2_source", "train": "subjects_train", "val": "subjects_val",
    "labels": "classes", "pad": "padded_from", "data_dir": "data", "idle": "idle_power_w",
}  # fmt: skip
"""Setting -> the column that holds it; of `steps` see below."""
CHANGES_NO_NUMBER = {
    "out": "where the run folder is made", "resume": "which run folder", "cache_dir": "where files "
    "are prepared", "volumes": "where they were prepared", "folder": "of the run",
    "timeout": "ends a trial, which is its status", "cooldown": "a warning where it is not enough",
    "cooldown_s": "the same", "start_c": "of another trial, whose row has it",
    "strict": "is a status", "probes": "not a flag: an empty column says what was not measured",
    "checkpoint_s": "not in the time of training", "checkpoint_minutes": "the same",
    "tensorboard": "another file",
}  # fmt: skip


def settings_of(kind: type) -> set[str]:
    """Names of all its fields, those of the dataclasses inside included."""
    hints = get_type_hints(kind)
    names: set[str] = set()
    for field in fields(kind):
        inner = hints[field.name]
        names |= settings_of(inner) if is_dataclass(inner) else {field.name}
    return names


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        (RunCommand, Record), (TrialPlan, Record), (QualityCommand, Trained),
        (TrainingPlan, Trained), (PredictCommand, Record),
    ],
)  # fmt: skip
def test_every_setting_has_a_column(kind, row):
    """A new flag, or a new field of a plan, is a column or says here why it changes no number."""
    columns = set(column_names(row))
    of_predictions = {"timeline"} if kind is PredictCommand else set()  # another file
    for name in settings_of(kind) - set(CHANGES_NO_NUMBER) - of_predictions:
        column = "window_limit_steps" if name == "steps" else HAS_ANOTHER_NAME.get(name, name)
        assert column in columns, name


@pytest.mark.parametrize(("kind", "row"), [(TrialPlan, Record), (TrainingPlan, Trained)])
def test_the_columns_of_a_plan_are_columns_of_its_row(tmp_path, kind, row):
    plan = tiny_plan(tmp_path, window=Window(steps=7), training=Training(lambda_r=0.25, seed=9))
    if kind is TrainingPlan:
        common = {f.name: getattr(plan, f.name) for f in fields(plan) if f.name in plan_fields()}
        plan = TrainingPlan(**common, train=(0, 1), val=(2,))
    columns = plan.columns()
    check_columns(row, columns)
    assert columns["lambda_r"] == 0.25
    assert columns["seed"] == 9
    assert columns["couplings"] == plan.work.couplings
    assert columns["modality"] == "t1"
    assert columns["window_limit_steps"] == 7
    assert columns["window_limit_s"] is None


def plan_fields() -> set[str]:
    return {field.name for field in fields(TrainingPlan)}


def changes(preset: str, training: Training | None = None, **overrides: Any) -> str:
    method, flags = METHODS["idm"], Overrides(**overrides)
    work = method.workload(preset, flags)
    return preset_changes(method, preset, flags, work, training or Training(seed=3))


def test_what_flags_changed_of_a_preset():
    assert changes("paper") == "none"
    assert changes("paper", couplings=2, modality=("t1",)) == "none"  # as the preset has it
    assert changes("paper", couplings=6) == "couplings 6"
    assert changes("small", modality=("t2",)) == "modality t2"
    assert changes("small", channels=(8, 16), batch_size=1) == "batch_size 1, channels 8 16"
    assert changes("paper", Training(lambda_r=0.5)) == "lambda_r 0.5"


def test_a_prediction_with_a_flag_says_so(tmp_path):
    """`--couplings 6` was in no column: the row passed for the paper's own setting."""
    command = PredictCommand(
        models=("idm",), preset="small", out=tmp_path, overrides=Overrides(couplings=6)
    )
    assert run_predict(command, Console(file=StringIO())) == 0
    (row,) = read_table(tmp_path / "runs.csv", Record).to_dict("records")
    assert row["couplings"] == 6
    assert row["preset_changes"] == "couplings 6"
    assert row["lambda_l2"] == 1e-4


def test_plans_of_the_command_say_what_flags_changed(tmp_path):
    command = RunCommand(
        models=("idm", "unet"), steps=1, lambda_r=0.5, subjects=3, cache_dir=tmp_path,
        overrides=Overrides(volume=16, batch_size=1, channels=(4, 8)),
    )  # fmt: skip
    for plan in Benchmark(replace(command, preset="small"), Console(file=StringIO())).plan():
        columns = plan.columns()
        assert columns["preset_changes"] == (
            "volume 16, patch 16, batch_size 1, channels 4 8, lambda_r 0.5"
        )
        assert columns["subjects"] == 3
        assert columns["lambda_r"] == 0.5


# ---- numbers that have no column -----------------------------------------------------------------


def test_a_misspelt_column_is_an_error_where_it_is_made():
    with pytest.raises(TypeError):
        Peak(peak_memroy_bytes=1)  # type: ignore[call-arg]
    record = Record(method="idm", repeat=1)
    with pytest.raises(UnknownColumn, match="Record has no column 'peak_memroy_bytes'"):
        record.take({"peak_memroy_bytes": 1})


@dataclass(kw_only=True)
class WithoutParameters(Measurement, Setting):
    """A row type that has no column for something that the trial's process tells."""

    method: str
    repeat: int
    status: str | None = None
    error: str | None = None
    energy_j: float | None = None


class NarrowRecorder(WatchedRecorder):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        row = WithoutParameters(method=self.plan.method, repeat=self.plan.repeat)
        self.row = row  # type: ignore[assignment]

    def summary(self) -> str:
        return str(self.row.error)

    def finish(self) -> None: ...


def test_a_trial_that_tells_a_number_without_a_column_has_failed(tmp_path, monkeypatch):
    """It was ok, with an empty cell and no warning."""
    plan = tiny_plan(tmp_path)
    run = new_run(tmp_path, [plan])
    rows: list[Any] = []
    monkeypatch.setattr(run, "append", rows.append)
    recorder = NarrowRecorder(run, plan, Watcher())
    run_all([recorder], Watcher())
    assert rows[-1] is recorder.row
    assert recorder.row.status == "failed"
    assert recorder.row.error == "WithoutParameters has no column 'parameters'"


def test_warnings_follow_one_another_each_once():
    record = Record(method="idm", repeat=1)
    for lines in (("a",), ("b", "a"), ("c",)):
        record.take(Measurement(warnings=lines).columns())
    assert record.warnings == ("a", "b", "c")


# ---- runs of an older version --------------------------------------------------------------------


def test_a_table_of_an_older_version_gets_the_columns_that_it_lacks(tmp_path):
    plan = tiny_plan(tmp_path)
    run = new_run(tmp_path, [plan])
    path = run.folder / "runs.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([["method", "repeat", "status", "volume"], ["idm", "1", "ok", "8"]])
    assert run.records()["couplings"].isna().all()
    run.mend()
    run.append(Record(method="idm", repeat=2, status="ok", couplings=3))
    records = Run(run.folder).records()
    assert records["repeat"].tolist() == [1, 2]
    assert records["volume"].iloc[0] == 8
    assert records["couplings"].iloc[1] == 3
    assert path.read_text(encoding="utf-8").splitlines()[0].split(",") == column_names(Record)
