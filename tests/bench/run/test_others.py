"""Networks and techniques of other packages: installed ones by name, any by `module:function`."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bench import methods
from bench.errors import UserError
from bench.predict import predict

ROOT = Path(__file__).parents[3]
PACKAGE = {
    "theirs.py": """
import torch
PUBLISHED = {"channels": (8, 16)}

class Theirs(torch.nn.Module):
    def __init__(self, channels, width):
        super().__init__()
        self.first = torch.nn.Conv3d(channels, width, 3, padding=1)
        self.last = torch.nn.Conv3d(width, channels, 3, padding=1)

    def forward(self, x, t):
        return self.last(self.first(x).relu())

def build(*, in_channels, channels, **_):
    return Theirs(in_channels, channels[0])
""",
    "halved.py": """
KIND = "exact"
WORK = {"micro_batch": 1}
""",
    "theirs-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n",
    "theirs-1.0.dist-info/entry_points.txt": """
[idm_bench.methods]
theirs = theirs

[idm_bench.techniques]
halved = halved
""",
}


@pytest.fixture
def installed(tmp_path) -> Path:
    """A folder as `pip install --target` leaves it."""
    for name, text in PACKAGE.items():
        path = tmp_path / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "site"


@pytest.mark.slow
def test_a_plug_in_trains_beside_ours_in_processes_of_its_own(installed, tmp_path):
    names = ["theirs+halved", "theirs:build+wavelet"]
    done = subprocess.run(
        [sys.executable, "run_bench.py", "--models", *names, "--steps", "1", "--preset", "small",
         "--volume", "8", "--channels", "4", "8", "--device", "cpu", "--idle", "0",
         "--out", str(tmp_path / "runs")],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (table,) = (tmp_path / "runs").glob("*/runs.csv")
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["status"]) for row in rows] == [(name, "ok") for name in names]
    assert [row["kind"] for row in rows] == ["exact", "another task"]
    assert [row["micro_batch"] for row in rows] == ["1", ""]
    assert [row["techniques"] for row in rows] == ["halved", "wavelet"]


@pytest.fixture
def found(installed, monkeypatch) -> None:
    """That folder in this process, for one test."""
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.setattr(methods, "_entry_points", methods._entry_points.__wrapped__)  # asked anew
    monkeypatch.setitem(sys.modules, "theirs", None)  # so that no other test finds it
    del sys.modules["theirs"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("theirs+cheaper", "unknown technique cheaper"),
        ("theirs:made", "theirs has no function 'made'"),
        ("nobody:build", "nobody cannot be imported"),
        ("theirs+checkpoint", "there is nothing to compute again"),
        ("idm-lean+adam8bit", "has adam8bit twice"),
        ("unet+accumulate+fused-backward", "cannot be combined"),
    ],
)
def test_what_cannot_be_is_said_in_a_line_before_anything_starts(found, refuse, name, says):
    assert says in refuse("--models", name, "--steps", "1", "--preset", "small")


def test_a_network_that_takes_no_condition_is_refused(found, refuse, tmp_path):
    """It gave all channels back, and the image was broadcast to them in the loss."""
    flags = ("--models", "theirs:build", "--steps", "1", "--preset", "small", "--volume", "8")
    line = refuse(*flags, "--condition", "seg")
    assert "theirs:build: takes no condition: its output has 5 channels" in line
    with pytest.raises(UserError, match=r"output is \(2, 2, 8, 8, 8\), its target \(2, 1, 8, 8, 8"):
        predict("theirs:build", preset="small", volume=8, condition=("seg",))

    manifest = tmp_path / "subjects.csv"
    voxels = np.random.default_rng(0).random((8, 8, 8), dtype=np.float32)
    nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 2, 2, 1])), tmp_path / "a.nii")
    manifest.write_text("subject,t1,sex\na,a.nii,f\n")
    line = refuse(*flags, "--data", "nifti", "--data-dir", str(manifest), "--modality", "t1",
                  "--condition", "sex")  # fmt: skip
    assert "takes no condition: " in line
    assert "class_labels" in line
