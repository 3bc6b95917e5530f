"""What to use for a volume and a card: the first answer trains, the next larger volume does not."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from rich.console import Console

from bench.commands import RecommendCommand
from bench.ddpm.step import TrainingStep
from bench.errors import UserError
from bench.methods import METHODS
from bench.predict import predict_method
from bench.predict.gpus import find_gpu
from bench.predict.recommend import PRESET, Way, least_time, predict_way, run_recommend, ways_to_try
from bench.presets import Overrides
from bench.probes.cost import StepProbe
from bench.probes.memory import tensors_in
from bench.records.files import read_table
from bench.records.rows import Recommended
from bench.report.recommended import frontier
from bench.sizes import Shape

GPU = find_gpu("rtx4090")
NARROW = Overrides(volume="16x24x16", channels=(8, 16), batch_size=1)
MIB = 2**20


def way(name: str, limit: int = 2**40, **changes) -> Way:
    work = METHODS[name].workload(PRESET, replace(NARROW, **changes))
    return Way(name, work, GPU, limit, sampling=False)


def test_networks_are_tried_with_what_goes_with_them_and_one_silences_no_other():
    command = RecommendCommand(gpu="rtx4090", models=("idm", "idm-lean", "wdm", "latent"))
    overrides = replace(NARROW, volume="18x18x22")
    ways, refused = ways_to_try(command, overrides, GPU, 2**34)
    names = [each.method for each in ways]
    assert {"idm", "idm+offload", "idm-lean"} <= set(names)
    assert "idm+checkpoint" not in names
    assert not any("wavelet" in name or name.startswith("wdm") for name in names)
    assert len(refused) == 2
    assert "multiples of 4" in refused[0]
    assert "multiples of 8" in refused[1]
    drawn, refused = ways_to_try(replace(command, sampling=True), overrides, GPU, 2**34)
    assert {each.method.partition("+")[2] for each in drawn} == {"", "bf16", "patch"}
    assert "latent draws latents" in refused[1]


def test_a_row_is_what_is_predicted():
    row = predict_way(way("unet+offload", channels=(16, 32), offload_bytes=0))
    found = predict_method(
        METHODS["unet+offload"], way("unet+offload", channels=(16, 32), offload_bytes=0).work
    )
    assert row.peak_memory_bytes == found.peak_memory_bytes
    assert row.host_bytes == found.host_bytes > 0
    assert row.offload_moved_bytes == found.offload_moved_bytes >= 2 * found.host_bytes
    assert row.flops_step == found.flops_step
    assert (row.kind, row.fits, row.gpu) == ("exact", True, "GeForce RTX 4090")
    assert not predict_way(way("unet", limit=2**20)).fits


def test_what_is_slower_and_no_smaller_is_left_out_among_what_computes_the_same():
    rows = pd.DataFrame(
        [
            ("unet", "exact", None, 1.0, 1000),
            ("unet", "exact", None, 2.0, 990),  # not worth the time
            ("unet", "exact", None, 3.0, 500),
            ("idm", "exact", None, 4.0, 900),
            ("unet", "another task", "patch", 0.1, 90),
            ("unet", "another task", "wavelet", 0.2, 91),
        ],
        columns=["network", "kind", "task", "step_time_bound_s", "peak_allocated_bytes"],
    )
    assert frontier(rows)["step_time_bound_s"].tolist() == [0.1, 0.2, 1.0, 3.0, 4.0]


def test_time_is_bound_by_the_card():
    """By hand: no operator is quicker than its FLOPs or its bytes, offloading than PCIe."""
    work = way("unet").work
    found = predict_method(METHODS["unet"], work, count_forward=False)
    seconds, by = least_time(found, work, GPU)
    assert by == "memory"  # of so narrow a network
    assert seconds >= found.flops_step / GPU.fp32
    assert seconds >= sum(each.traffic for each in found.operators) / GPU.bytes_per_s
    offloaded = predict_method(METHODS["unet+offload"], replace(work, offload_bytes=0))
    slow = replace(GPU, pcie_generation=3, pcie_lanes=1)
    assert least_time(offloaded, work, slow) == (offloaded.offload_moved_bytes / 0.985e9, "PCIe")


def measure(name: str, shape: Shape) -> int:
    work = way(name, volume=shape).work
    step = TrainingStep(METHODS[name].build(work), work)
    batch = torch.rand(1, 1, *shape)
    step(batch)
    probe = StepProbe(step.network, step.optimizer, "cpu", tensors_in(step.held(batch)))
    probe.start()
    step(batch)
    return probe.stop().peak_memory_bytes


@pytest.mark.slow
def test_the_first_answer_trains_and_the_next_larger_volume_does_not(tmp_path, capsys):
    """As predicted with a capacity, and as measured on this processor."""
    limit = 24 * MIB
    margin = f"{(GPU.usable_bytes - limit) / MIB}MiB"
    command = RecommendCommand(
        gpu="rtx4090", overrides=NARROW, models=("idm",), out=tmp_path, margin=margin
    )
    assert run_recommend(command, Console(width=200)) == 0
    rows = read_table(tmp_path / "recommend.csv", Recommended)
    assert list(dict.fromkeys(rows["kind"])) == ["exact", "rounded", "another task"]
    exact = rows[(rows["kind"] == "exact") & (rows["fits"] == "True")]
    assert exact["step_time_bound_s"].is_monotonic_increasing
    assert (tmp_path / "recommended.png").stat().st_size > 10_000
    said = capsys.readouterr().out
    for word in ("Exact", "Rounded", "Another task", "cheapest first", "and up to"):
        assert word in said

    name, largest = rows["method"][0], rows["largest_volume"][0]
    next_one = largest.scaled(max(largest) // 2 + 1, 2)
    assert max(next_one) > max(largest)
    assert predict_way(way(name, limit, volume=largest)).fits
    assert not predict_way(way(name, limit, volume=next_one)).fits
    measured = [measure(name, shape) for shape in (largest, next_one)]
    assert measured == [
        predict_method(METHODS[name], way(name, volume=shape).work, device="cpu").peak_memory_bytes
        for shape in (largest, next_one)
    ]
    assert measured[0] <= limit
    # So small a card fails of the blocks that its allocator rounds up, not of tensors alone.
    assert measured[0] < measured[1]


@pytest.mark.thorough
def test_where_nothing_fits_the_nearest_and_the_volume_that_would_are_said(tmp_path, capsys):
    margin = f"{GPU.usable_bytes / MIB - 2}MiB"
    overrides = replace(NARROW, volume=Shape(32))
    command = RecommendCommand(
        gpu="rtx4090", overrides=overrides, models=("idm",), out=tmp_path, margin=margin
    )
    assert run_recommend(command, Console(width=200)) == 1
    said = capsys.readouterr().out
    assert said.count("(exact) would need") == 3
    assert "Nothing fits at 32³" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"overrides": Overrides()}, "--volume 160x192x160"),
        ({"gpu": "a100"}, "did you mean a100-40gb"),
        ({"margin": "24GiB"}, "leaves nothing"),
        ({"models": ("abacus",)}, "unknown method"),
        ({"overrides": replace(NARROW, volume="7x7x7")}, "no network can do this"),
    ],
)
def test_mistakes_are_said_before_the_long_part(tmp_path, change, message):
    command = RecommendCommand(gpu="rtx4090", overrides=NARROW, out=tmp_path)
    with pytest.raises(UserError, match=message):
        run_recommend(replace(command, **change), Console())
