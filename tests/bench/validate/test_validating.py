"""`validate` on this processor: real processes, real steps, and a page."""

from io import StringIO

import pandas as pd
import pytest
from rich.console import Console

from bench.commands import ValidateCommand
from bench.errors import UserError
from bench.presets import Overrides
from bench.records.files import read_table
from bench.records.rows import Validated
from bench.report.validated import memory_grid, verdict
from bench.validate.agreement import Event, first_difference
from bench.validate.validating import make_plans, predict_plan, run_validate, slug

TINY = Overrides(volume=8, batch_size=1, channels=(4, 8))


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    """Folder, exit status and rows of a validation."""
    out = tmp_path_factory.mktemp("validation")
    command = ValidateCommand(
        models=("idm",), preset="small", device="cpu", overrides=TINY, out=out
    )
    status = run_validate(command, Console(file=StringIO()))
    (folder,) = out.iterdir()
    return folder, status, read_table(folder / "validation.csv", Validated)


def test_every_change_of_memory_on_a_cpu_is_as_predicted(validated):
    _, status, table = validated
    assert status == 0
    assert list(table["method"]) == ["idm"]
    assert (table["status"] == "ok").all()
    assert (table["measured_live_bytes"] == table["predicted_live_bytes"]).all()
    assert (table["measured_changes"] == table["predicted_changes"]).all()
    assert (table["measured_changes"] > 100).all()
    assert table["first_difference"].isna().all()
    assert (table["measured_flops_step"] == table["predicted_flops_step"]).all()


def test_what_a_cpu_cannot_tell_is_empty(validated):
    _, _, table = validated
    for column in ("measured_reserved_bytes", "context_bytes", "waits", "predicted_reserved_bytes"):
        assert table[column].isna().all(), column


def test_a_page_says_it_and_a_file_is_to_be_sent(validated):
    folder, _, table = validated
    page = (folder / "validation.html").read_text(encoding="utf-8")
    assert verdict(table) in page
    assert verdict(table).startswith("1 of 1 methods: every allocation and release")
    (sent,) = (path for path in folder.glob("*.csv") if path.stem not in ("validation", "cooling"))
    rows = read_table(sent, Validated)
    assert list(rows["measured_live_bytes"]) == list(table["measured_live_bytes"])
    assert str(folder) not in sent.read_text(encoding="utf-8")


def test_a_method_that_cannot_be_measured_is_a_row_with_its_reason(tmp_path):
    command = ValidateCommand(
        models=("idm",), preset="small", device="cpu", overrides=TINY, out=tmp_path,
        timeout=1e-3,
    )  # fmt: skip
    assert run_validate(command, Console(file=StringIO())) == 1
    (table,) = (read_table(path, Validated) for path in tmp_path.glob("*/validation.csv"))
    assert list(table["status"]) == ["timeout"]
    assert table["predicted_live_bytes"].notna().all()


def test_cooling_needs_a_card(tmp_path):
    command = ValidateCommand(device="cpu", preset="small", cooling=3, out=tmp_path)
    with pytest.raises(UserError, match="--cooling: heats a card, and the device is cpu"):
        run_validate(command, Console(file=StringIO()))


def test_a_prediction_is_of_the_plans_workload():
    (plan,) = make_plans(
        ValidateCommand(models=("idm",), preset="small", device="cpu", overrides=TINY)
    )
    predicted = predict_plan(plan)
    assert predicted.allocated is None
    assert len(predicted.events) > 100


def test_where_two_sequences_part():
    events = [Event(512, "aten.mm.default", "a"), Event(-512, "aten.mm.default", "a")]
    assert first_difference(events, list(events)) is None
    other = [events[0], Event(-1024, "aten.mm.default", "b")]
    assert first_difference(events, other) == (
        "change 1: predicted 512 bytes is released, made by aten.mm.default in a; "
        "measured 1.00 KiB is released, made by aten.mm.default in b"
    )
    assert first_difference(events, events[:1]) == (
        "2 changes predicted, 1 measured; equal until then"
    )


def test_figures_of_a_card_are_shown_with_how_far_they_are_off():
    row = Validated(
        method="idm", preset="equal", status="ok", device="cuda", device_name="A card",
        torch="2.13.0", predicted_live_bytes=100, measured_live_bytes=100, measured_changes=4,
        predicted_reserved_bytes=2**31, measured_reserved_bytes=2**31 + 2**30,
    )  # fmt: skip
    grid = memory_grid(pd.DataFrame([vars(row)]))
    assert [cell.text for cell in grid.rows[0]] == [
        "idm", "yes", "100 bytes", "100 bytes", "0", "2.00 GiB", "3.00 GiB", "+50.00 %",
    ]  # fmt: skip


def test_a_card_and_a_version_as_the_name_of_a_file():
    assert slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert slug("2.11.0+cu130") == "2.11.0-cu130"
    assert "/" not in slug("../../x")
