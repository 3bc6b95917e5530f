"""Networks of images, on axial slices of the volumes: `--dims 2`."""

import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from bench import cli
from bench.ddpm.step import Training, TrainingStep, random_batch
from bench.errors import UserError
from bench.methods import METHODS, preset_changes
from bench.predict import predict, predict_method
from bench.presets import Overrides
from bench.probes.cost import StepProbe
from bench.probes.memory import tensors_in
from bench.quality.evaluation import sampling_memory
from bench.sizes import Shape
from tests.related import slow_but

SLICES = Overrides(volume=(8, 16, 5), batch_size=2, channels=(8, 16), dims=2)
OF_VOLUMES = ("patchddm", "wdm", "latent")
OFTEN = ("unet", "idm", "revunet")


def step_on_slices(name):
    work = METHODS[name].workload("small", SLICES)
    return work, TrainingStep(METHODS[name].build(work), work)


@pytest.mark.parametrize(
    "name",
    slow_but(
        OFTEN,
        (
            name
            for name in (*METHODS, "unet+checkpoint-all+fused-backward", "idm+channels-last")
            if name not in OF_VOLUMES
        ),
    ),
)
def test_a_step_on_slices_is_predicted_to_the_byte(name):
    work, step = step_on_slices(name)
    step(step.cut(*random_batch(work)))
    batch = step.cut(*random_batch(work))
    assert batch.shape == (2, 1, 8, 16)
    probe = StepProbe(step.network, step.optimizer, "cpu", tensors_in(step.held(batch)))
    probe.start()
    step(batch)
    measured = probe.stop().columns()
    del measured["peak_memory_source"]
    predicted = predict_method(METHODS[name], work, device="cpu").columns()
    assert {key: predicted[key] for key in measured} == measured


def test_drawing_slices_is_predicted_to_the_byte():
    work, step = step_on_slices("revunet")
    predicted = predict_method(METHODS["revunet"], work, device="cpu", sampling=True)
    measured = sampling_memory(step.network, (2, 1, 8, 16))
    assert predicted.peak_memory_bytes == measured.peak_memory_bytes


def test_each_volume_shows_one_of_its_axial_slices():
    work, step = step_on_slices("revunet")
    x, y, z = (torch.arange(side) for side in work.volume)
    volume = (100 * x[:, None, None] + 10 * y[:, None] + z).float()[None]
    both = torch.stack([volume, volume + 1000])
    seen = []
    for _ in range(40):
        one, other = step.cut(both) - both[..., 0]
        assert one.unique().numel() == other.unique().numel() == 1  # of one height, whole
        seen.append((one[0, 0, 0].item(), other[0, 0, 0].item()))
    assert {first for first, _ in seen} == {second for _, second in seen} == {0, 1, 2, 3, 4}
    assert any(first != second for first, second in seen)

    _, again = step_on_slices("revunet")
    first = [(again.cut(both) - both[..., 0])[:, 0, 0, 0].tolist() for _ in range(40)]
    assert first == [list(each) for each in seen]
    batch = step.cut(both)
    assert torch.equal(step.cut(batch), batch)  # a slice is not cut again


def test_a_record_says_that_it_was_slices():
    work = METHODS["idm"].workload("small", given := Overrides(volume=(32, 40, 20), dims=2))
    assert (work.patch, work.grid) == (Shape("32x40x1"), (32, 40))
    changes = preset_changes(METHODS["idm"], "small", given, work, Training())
    assert changes == "volume 32x40x20, patch 32x40x1, dims 2"
    assert METHODS["idm"].workload("small").dims == 3


def test_slices_need_multiples_along_two_axes_only():
    with pytest.raises(
        UserError, match=r"--volume 36x32x33: .*\(the nearest: 32x32x33, 40x32x33\)"
    ):
        METHODS["idm"].workload("small", Overrides(volume=(36, 32, 33), dims=2))
    work = METHODS["idm"].workload("small", Overrides(volume=(36, 32, 33), dims=2, pad=True))
    assert (work.volume.sides, work.patch.sides) == ((40, 32, 33), (40, 32, 1))


@pytest.mark.parametrize("name", [*OF_VOLUMES, "unet+patch", "idm+wavelet"])
def test_what_is_for_volumes_is_refused(name):
    with pytest.raises(UserError, match=rf"--dims 2: {name.replace('+', '.')} cannot .* volumes"):
        predict(name, preset="small", dims=2)


def own_network(in_channels, channels, couplings, **_):
    return torch.nn.Conv3d(in_channels, in_channels, 1)


def test_a_network_of_others_says_that_it_has_dims():
    """Conv3d takes (1, 1, D, H) for a volume without a batch."""
    with pytest.raises(UserError, match="its build takes no dims"):
        predict("tests.bench.test_dims:own_network", preset="small", channels=(8, 16), dims=2)


def type_command(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
    assert cli.main() == 0


@pytest.mark.slow
def test_run_measures_what_predict_says(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    flags = ("--models", "idm", "--preset", "small", "--volume", "16x16x12", "--dims", 2,
             "--channels", 8, 16, "--device", "cpu")  # fmt: skip
    type_command(
        monkeypatch, "run", *flags, "--subjects", 3, "--steps", 2, "--idle", 0, "--out", tmp_path
    )
    type_command(monkeypatch, "predict", *flags, "--out", tmp_path / "predicted")
    (measured,) = (pd.read_csv(path) for path in tmp_path.glob("*Z-small/runs.csv"))
    predicted = pd.read_csv(tmp_path / "predicted" / "runs.csv")
    same = ["method", "volume", "patch", "dims", "peak_memory_bytes", "activation_bytes",
            "flops_step", "flops_forward", "parameters"]  # fmt: skip
    assert list(measured["dims"]) == [2]
    assert measured[same].equals(predicted[same])
