"""docs/idm.md: its table is that of the small trainings."""

import copy

import pytest
import torch

from docs import idm_small

ROWS = list(idm_small.read().values())
FINE = "couplings 4-2-1, no attention"


def test_the_page_is_made_of_the_table():
    text = idm_small.PAGE.read_text(encoding="utf-8")
    assert idm_small.page(text, ROWS) == text


def test_idm_fine_learned_most_of_what_computes_no_more():
    def mean(name: str) -> float:
        found = [row.mse_mean_of_7 for row in ROWS if row.network == name]
        return sum(found) / len(found)

    (chosen,) = {row.gflop_forward for row in ROWS if row.network == FINE}
    others = {row.network for row in ROWS if row.gflop_forward <= chosen} - {FINE}
    assert len(others) >= 5
    assert all(mean(FINE) < mean(name) for name in others)


def test_who_predicts_v_is_nearer_where_there_is_much_noise_and_further_where_there_is_little():
    pairs = [name for name in idm_small.VARIATIONS if name.endswith(idm_small.PREDICTS_V)]
    assert len(pairs) == 2
    for name in pairs:
        of_v = [row for row in ROWS if row.network == name]
        of_eps = [row for row in ROWS if row.network == name.removesuffix(idm_small.PREDICTS_V)]
        assert {row.seed for row in of_v} == {row.seed for row in of_eps} == {0, 1}
        assert max(row.mse_t1900 for row in of_v) < min(row.mse_t1900 for row in of_eps)
        assert min(row.mse_t20 for row in of_v) > max(row.mse_t20 for row in of_eps)


def test_the_page_knows_how_far_the_mean_brain_is():
    trained_on, others = idm_small.brains()
    distance = 2 * (others - trained_on.mean(0)).square().mean().sqrt().item()  # in [−1, 1]
    assert f"is {distance:.2f} from the others" in idm_small.PAGE.read_text(encoding="utf-8")


def test_what_is_trained_is_the_network_of_the_row(monkeypatch):
    monkeypatch.setattr(idm_small, "STEPS", 2)
    (known,) = (row for row in ROWS if (row.network, row.seed) == (FINE, 0))
    found = idm_small.train(FINE, 0)
    same = "gflop_forward", "parameters_thousands"
    assert [getattr(found, each) for each in same] == [getattr(known, each) for each in same]
    assert known.mse_mean_of_7 < found.mse_mean_of_7 < 2


@pytest.mark.parametrize("make", [idm_small.with_affine_couplings, idm_small.with_nonlinear_lift])
def test_what_the_page_tries_has_exact_gradients(make):
    torch.manual_seed(0)
    inverted = make()
    for parameter in inverted.parameters():  # away from the start, where couplings do nothing
        parameter.data += 0.02 * torch.randn_like(parameter)
    stored = copy.deepcopy(inverted)
    stored.backward = "stored"
    x, t = torch.randn(2, 1, 8, 8, 8), torch.tensor([20, 1900])
    for network in (inverted, stored):
        network(x, t).square().mean().backward()
    for one, other in zip(inverted.parameters(), stored.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-6)
