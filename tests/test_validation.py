"""Predictions against published figures: what docs/validation.md says is what is predicted."""

import statistics
from pathlib import Path

import pytest

pytest.importorskip("memcnn", reason="the extra `peers`")
pytest.importorskip("dynamic_network_architectures", reason="the extra `peers`")

from docs.validation import comparison
from docs.validation.cases import CASES

ROWS, PREDICTED = comparison.published(), comparison.read_predicted()
QUICK = [key for key in PREDICTED if not CASES[key].slow]
SLOW = [key for key in PREDICTED if CASES[key].slow]


@pytest.mark.parametrize("key", QUICK, ids=" ".join)
def test_a_prediction_is_the_committed_one_to_the_byte(key):
    assert comparison.predict_case(key) == PREDICTED[key]


@pytest.mark.slow
@pytest.mark.parametrize("key", SLOW, ids=" ".join)
def test_a_slower_prediction_is_the_committed_one_to_the_byte(key):
    assert comparison.predict_case(key) == PREDICTED[key]


def test_every_row_is_predicted_or_has_a_reason():
    for key, row in ROWS.items():
        waits = key in CASES and CASES[key].card_rules and not comparison.CARD_RULES
        assert (key in PREDICTED) + waits + bool(row["not_predicted"]) == 1, key
    assert list(PREDICTED) == comparison.predictable()


def test_figures_are_met_within_ten_percent_and_the_median_within_five():
    shares = [abs(share) for share in comparison.deviations(ROWS, PREDICTED).values()]
    assert len(shares) >= 8
    assert max(shares) <= 0.10
    assert statistics.median(shares) <= 0.05


def test_bounds_hold():
    bounds = [key for key in PREDICTED if ROWS[key]["relation"] != "="]
    assert len(bounds) >= 3
    assert all(comparison.holds(ROWS[key], PREDICTED[key]) for key in bounds)


def test_a_bound_that_does_not_hold_is_seen():
    key = ("P44", "")
    assert not comparison.holds(ROWS[key] | {"gib": "20"}, PREDICTED[key])
    assert not comparison.holds(ROWS[key] | {"relation": ">"}, PREDICTED[key])


def test_the_page_shows_the_table_of_the_committed_files():
    page = comparison.PAGE.read_text(encoding="utf-8")
    table = "\n".join(comparison.table(ROWS, PREDICTED))
    assert table in page
    assert f"images/{comparison.PICTURE.name}" in page


def test_rows_are_whole():
    assert len(ROWS) == sum(1 for _ in comparison.PUBLISHED.open(encoding="utf-8")) - 1
    for key, row in ROWS.items():
        assert row["url"], key
        assert row["certainty"] in ("A", "A-", "B", "C"), key
        assert row["relation"] in ("", "=", "<=", ">"), key
        assert Path(comparison.PICTURE).exists()
