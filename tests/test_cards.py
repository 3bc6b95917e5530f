"""What cards have measured: well-formed rows, and what is predicted today beside them."""

import re

import pytest

from bench.methods import METHODS
from bench.validate.agreement import events_of_step
from bench.validate.validating import slug
from docs import cards
from tests.related import slow_every

TABLES = cards.read_cards()
ROWS = [row for table in TABLES.values() for _, row in table.iterrows()]


def test_a_file_is_named_by_its_card_and_its_torch():
    assert TABLES
    for name, table in TABLES.items():
        assert set(table["device_name"].map(slug) + "-" + table["torch"].map(slug)) == {name}


def name(row):
    return f"{row['method']}-{row['preset']}-{cards.arithmetic(row)}"


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_a_row_is_well_formed(row):
    assert row["method"] in METHODS
    assert row["device"].startswith("cuda")
    if "offload" not in row["method"]:  # what waits for a copy is asked for, and given back
        assert row["measured_requested_bytes"] <= row["measured_allocated_bytes"]
    assert row["measured_live_bytes"] <= row["measured_allocated_bytes"]
    assert row["measured_allocated_bytes"] <= row["measured_reserved_bytes"]
    assert row["measured_reserved_bytes"] % 2**21 == 0  # segments are whole
    assert row["status"] != "ok" or row["context_bytes"] > 0
    assert not re.search(r"/(home|tmp|root|work)\b", row.to_csv())


def test_a_row_of_a_former_method_was_predicted_when_it_was_measured():
    former = {name: set(methods) for name, methods in cards.FORMER.items()}
    assert former.keys() <= TABLES.keys()
    for name, methods in former.items():
        rows = TABLES[name][TABLES[name]["method"].isin(methods)]
        assert set(rows["method"]) == methods
        off = rows["measured_live_bytes"] / rows["predicted_live_bytes"] - 1
        assert off.abs().max() < 1e-5


EVERY_DAY = ("idm-equal-fp32", "unet-equal-fp32")
OTHERS = [row for row in cards.of_today() if name(row) not in EVERY_DAY]
TODAY = [
    *(pytest.param(row, id=name(row)) for row in cards.of_today() if name(row) in EVERY_DAY),
    *slow_every(3, OTHERS, ids=name),
]


@pytest.mark.parametrize("row", TODAY)
def test_todays_prediction_is_what_the_card_measured(row):
    """To the byte, and to the allocation: tensors alone, which no workspace touches."""
    prediction = cards.predict_row(row)
    # Of GradScaler's two tensors, the measurement of that day did not see the growth tracker.
    unseen = 4 if row["precision"] == "fp16" else 0
    assert prediction.peak_memory_bytes == row["measured_live_bytes"] + unseen
    assert len(events_of_step(prediction.changes)) == row["measured_changes"]
    assert prediction.flops_step == row["measured_flops_step"]

    allocated = prediction.cuda_pool_with_workspaces.peak_allocated + cards.CUBLAS
    assert row["measured_allocated_bytes"] == pytest.approx(allocated, rel=0.01)


@pytest.mark.thorough
def test_the_page_shows_the_files():
    text = cards.PAGE.read_text(encoding="utf-8")
    assert cards.page(text) == text, "python -m docs.cards makes the tables anew"
