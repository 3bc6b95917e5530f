"""Peaks beside those of the packages that people would take instead, in one run (docs/peers.md)."""

import pytest

pytest.importorskip("memcnn", reason="the extra `peers`")

from bench.sizes import GIB
from docs import peers

PEERS = {f"{peer.network}: {peer.way}": peer for peer in peers.peers()}


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PEERS)
def test_a_real_step_takes_the_bytes_and_flops_that_were_predicted(report_bound, name):
    found = peers.predicted(PEERS[name], "small", device="cpu")
    cost = peers.measured(PEERS[name], "small")
    assert cost.flops_step == found.flops_step
    assert cost.peak_memory_bytes == found.peak_memory_bytes
    report_bound(f"peak at small, GiB, {name}", cost.peak_memory_bytes / GIB, 1)


def test_the_page_shows_the_table():
    text = peers.PAGE.read_text(encoding="utf-8")
    assert peers.page(text) == text


def test_ours_against_theirs(report_bound):
    """Where docs/peers.md says that ours need less; the bounds are the ratios to them."""
    peak = {name: peers.predicted(peer, "equal").peak_memory_bytes for name, peer in PEERS.items()}
    by_way = {peer.way: peak[name] for name, peer in PEERS.items()}
    sequential = by_way["checkpoint_sequential, 10 segments"]
    report_bound("checkpoint / checkpoint_sequential", by_way["checkpoint"] / sequential, 0.8)
    report_bound("offload / save_on_cpu", by_way["offload"] / by_way["save_on_cpu"], 1.001)
    report_bound("idm / iUNet", by_way["idm"] / by_way["iUNet"], 0.95)
    report_bound("idm-lean / iUNet", by_way["idm-lean"] / by_way["iUNet"], 0.4)
