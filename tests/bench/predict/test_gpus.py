"""Cards: known by name, with figures that fit together and a source each."""

import pytest

from bench.errors import UserError
from bench.predict.gpus import GPUS, find_gpu
from bench.probes.instants import BYTES_PER_S, FLOPS_PER_S
from bench.sizes import GIB


@pytest.mark.parametrize(
    ("typed", "name"),
    [("a5000", "RTX A5000"), ("RTX 4090", "GeForce RTX 4090"), ("a100_80gb", "A100 80 GB"),
     ("h100", "H100 80 GB SXM"), ("V100-32GB", "Tesla V100 32 GB PCIe")],
)  # fmt: skip
def test_cards_by_name(typed, name):
    assert find_gpu(typed).name == name


def test_another_name_is_told_the_known_ones():
    with pytest.raises(UserError, match="did you mean a100-40gb or a100-80gb"):
        find_gpu("a100")
    with pytest.raises(UserError, match=r"known are .*h100, .*or give --memory"):
        find_gpu("abacus")


def test_memory_is_what_the_driver_reports():
    h100 = find_gpu("h100")
    assert (h100.memory_bytes, round(h100.memory_bytes / GIB, 2)) == (81559 * 2**20, 79.65)
    assert h100.usable_bytes == int(79.19 * GIB)


def test_at_least_thirty_cards_of_every_kind():
    kinds = ("rtx20", "rtx30", "rtx40", "rtx50", "t4", "l4", "l40s", "a10", "a30", "a40", "a100",
             "v100", "h100", "h200", "b200", "mi300x")  # fmt: skip
    assert len(GPUS) >= 40
    assert all(any(name.startswith(kind) for name in GPUS) for kind in kinds)


@pytest.mark.parametrize("name", GPUS)
def test_figures_fit_together(name):
    gpu = GPUS[name]
    assert gpu.source.startswith("https://")
    assert gpu.memory_source
    assert 0.95 * gpu.memory_bytes < gpu.usable_bytes <= gpu.memory_bytes
    assert 5 * GIB < gpu.memory_bytes <= 192 * GIB
    assert 200e9 < gpu.bytes_per_s < 10e12
    assert gpu.fp32 <= gpu.flops_per_s("tf32") <= gpu.flops_per_s("fp16")
    assert gpu.bf16 in (None, gpu.fp16)
    assert gpu.pcie_bytes_per_s < gpu.bytes_per_s


def test_a_card_without_units_for_a_precision_computes_it_as_fp32():
    assert find_gpu("v100-32gb").flops_per_s("bf16") == 14e12
    assert find_gpu("a5000").flops_per_s("bf16") == 111.1e12


def test_the_card_of_the_pictures_is_the_one_of_the_table():
    """`probes` may not import `predict`."""
    a5000 = find_gpu("a5000")
    assert (a5000.fp32, a5000.bytes_per_s) == (FLOPS_PER_S, BYTES_PER_S)
