"""docs/at_scale.md: what it says is what is predicted."""

import pytest

from docs import at_scale

ROWS = at_scale.read()


def test_every_question_is_answered():
    assert list(ROWS) == [row.key for row in at_scale.questions()]


def test_the_page_is_made_of_the_table():
    text = at_scale.PAGE.read_text(encoding="utf-8")
    assert at_scale.page(text, ROWS) == text


def test_activations_do_not_grow_with_depth():
    deep = [row for row in ROWS.values() if row.method == "idm-lean" and row.side == 128]
    same = {row.activation_bytes for row in deep if row.width == 1}
    assert len([row for row in deep if row.width == 1]) == 3
    assert len(same) == 1


def test_lean_never_needs_more():
    for (method, *setting, gpus), row in ROWS.items():
        if method == "idm" and gpus == 1:
            assert ROWS["idm-lean", *setting, gpus].peak_bytes < row.peak_bytes


@pytest.mark.slow
@pytest.mark.parametrize("gpus", [1, 8])
def test_a_row_is_todays_prediction(gpus):
    row = ROWS["idm", 128, 1.0, 2, gpus]
    assert at_scale.answer(row) == row


@pytest.mark.slow
def test_a_row_of_lean_is_todays_prediction():
    row = ROWS["idm-lean", 128, 1.0, 4, 1]
    assert at_scale.answer(row) == row
