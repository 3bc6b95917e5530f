"""docs/use.md: each of its blocks, in order, on a run that is trained here."""

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.commands import QualityCommand
from bench.data import open_source, prepare
from bench.errors import UserError
from bench.harness.environment import describe_environment
from bench.quality import from_run
from bench.quality.checkpoint import load_averages
from bench.records.files import to_json
from bench.records.folder import QualityRun
from tests.bench.quality.trainings import WORK, tiny_plan, train

PAGE = Path(__file__).parents[1] / "docs" / "use.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> QualityRun:
    """Of one conditional training of six steps, as the command leaves it."""
    folder = tmp_path_factory.mktemp("use")
    run = QualityRun.create(folder, "quality-small")
    source = open_source("phantom", None, ("t1",), 8, 0, 7, condition=("seg",))
    work = replace(WORK, condition=source.condition, drop_condition=0.1)
    volumes = prepare(source, folder / "cache")
    plan = tiny_plan(run, work=work, volumes=str(volumes), samples=2, sampler="ddim",
                     sampler_steps=3, guidance=2.0)  # fmt: skip
    configuration = {"configuration": to_json(QualityCommand())}
    run.write_environment(describe_environment(["bench"], [plan]) | configuration)
    train(plan)
    return run


@pytest.fixture
def names(run, tmp_path, monkeypatch) -> dict[str, Any]:
    """What the page takes for granted."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "RUN").symlink_to(run.folder)
    torch.manual_seed(0)
    masks = torch.where(torch.rand(2, 4, 8, 8, 8) > 0.5, 1.0, -1.0)
    pairs = torch.utils.data.TensorDataset(torch.rand(2, 1, 8, 8, 8) * 2 - 1, masks)
    loader = torch.utils.data.DataLoader(pairs, batch_size=1)
    return {"masks": masks, "odd_masks": masks[:1, :, 1:, 2:, 3:], "loader": loader}


def follow(names: dict[str, Any], blocks: list[str]) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's, of loaders with few workers
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)
    return names


def test_the_page_has_a_block_for_each_way():
    ways = (
        "from_run",
        "DiffusionInferer",
        "pad_to_multiple",
        "backward()",
        "Accelerator",
        "lightning",
    )
    assert len(BLOCKS) == len(ways)
    for way, block in zip(ways, BLOCKS, strict=True):
        assert way in block


def test_a_trained_network_in_monais_inferer_and_a_plain_loop(names):
    found = follow(names, BLOCKS[:4])
    assert found["drawn"].shape == (2, 1, 8, 8, 8)
    assert found["volume"].shape == (1, 1, 7, 6, 5)
    assert torch.isfinite(found["drawn"]).all()
    trained = found["net"].lift.weight
    assert trained.grad.abs().max() > 0


@pytest.mark.slow
def test_in_accelerate_and_in_lightning(names):
    for package in ("accelerate", "lightning"):
        pytest.importorskip(package, reason="the extra `peers`")
    found = follow(names, BLOCKS)
    assert found["trainer"].global_step == 2


def test_the_weights_are_the_averages_of_the_checkpoint(run):
    network = from_run(run.folder)
    assert not network.training
    assert network.plan.work.condition == ("seg_white", "seg_grey", "seg_fluid", "seg_lesion")
    other = type(network)(5, WORK.channels, WORK.couplings, out_channels=1)
    load_averages(run.checkpoint("idm", 0), other, "idm", 0)
    for mine, theirs in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    with pytest.raises(UserError, match="name one of its trainings, method and seed: idm 0"):
        from_run(run.folder, "unet")


def test_what_a_conditional_training_leaves(run):
    """Scores of it, and samples beside the masks of the validation that they were drawn from."""
    scores = run.scores()
    drawn = scores[scores["protocol"] == "ddim-3"]
    assert {"ms_ssim", "sampling_peak_memory_bytes"} <= set(drawn["column"])
    assert set(scores["modality"]) == {"t1", "all"}
    dice, real = (drawn.set_index("column").loc[name] for name in ("dice", "dice_real"))
    assert 0 < dice["value"] < real["value"]
    assert "seg_white" in dice["note"]
    files = {path.name for path in (run.folder / "samples").iterdir()}
    assert files == {f"idm-0_{each}{n}.nii.gz" for each in ("", "mask_") for n in (0, 1)}
