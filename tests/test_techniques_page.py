"""docs/techniques.md: what it says is what is predicted, and what two real steps took."""

import pytest

pytest.importorskip("iunets", reason="the extra `peers`")

from bench.methods import METHODS, find_methods
from bench.predict import predict_method
from docs import techniques
from docs.techniques import ON_CARD, ON_CPU
from tests.related import slow_every

WAYS = techniques.read()
POSSIBLE = [pair for pair, way in WAYS.items() if not way.refused]


def test_every_network_stands_beside_every_technique():
    assert list(WAYS) == list(techniques.pairs())


def test_the_page_is_made_of_the_table():
    text = techniques.PAGE.read_text(encoding="utf-8")
    assert techniques.page(text) == text


def test_a_refusal_is_said_in_todays_words():
    refused = [way for way in WAYS.values() if way.refused]
    assert len(refused) > 30
    for way in refused:
        assert techniques.refusal(way.network, way.technique) == way.refused


def test_two_real_steps_took_the_bytes_that_were_predicted():
    measured = [way for way in WAYS.values() if way.cpu_measured_bytes]
    assert {way.technique for way in WAYS.values() if not way.refused} - {
        way.technique for way in measured
    } == {"fp16"}
    assert [way for way in measured if way.cpu_measured_bytes != way.cpu_predicted_bytes] == []


def test_what_leaves_the_card_is_on_the_host():
    for (_, technique), way in WAYS.items():
        assert (way.card_host_bytes > 2**20) == (technique == "offload" and not way.refused)


@pytest.mark.parametrize("pair", slow_every(3, POSSIBLE[:: len(POSSIBLE) // 12], ids="+".join))
def test_a_row_is_todays_prediction(pair):
    network, technique = pair
    (method,) = find_methods([f"{network}+{technique}".rstrip("+")])
    card = predict_method(method, ON_CARD(method), count_forward=False)
    cpu = predict_method(method, ON_CPU(method), device="cpu", count_forward=False)
    way = WAYS[network, technique]
    assert way.kind == method.kind
    assert way.card_peak_bytes == card.peak_memory_bytes
    assert way.card_host_bytes == card.host_bytes
    assert way.card_flops == card.flops_step
    assert way.cpu_predicted_bytes == cpu.peak_memory_bytes


def test_the_networks_are_those_of_the_registry():
    assert {*techniques.NETWORKS, *techniques.SEEN_IN_OTHERS} == set(METHODS.names)


@pytest.mark.slow
@pytest.mark.parametrize("technique", techniques.ADDED)
def test_with_idm_fine_goes_what_goes_with_idm(technique):
    for name, shown in techniques.SEEN_IN_OTHERS.items():
        if name != "checkpoint":
            why = techniques.refusal(name, technique).replace(name, shown)
            assert why == techniques.refusal(shown, technique)
