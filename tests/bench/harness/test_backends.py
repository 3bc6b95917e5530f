"""How PyTorch computes on a card: the flags reach it, and the row; a CPU has no part in them."""

import subprocess
import sys
from dataclasses import replace

import pytest

from bench.errors import UserError
from bench.harness.backends import Backends, known_problems
from bench.harness.environment import describe_environment
from tests.bench.trials import tiny_plan

ASKED = """
import torch
from bench.harness.backends import Backends
for backends in (
    Backends(), Backends(tf32=True), Backends(cudnn_benchmark=True, deterministic=True)
):
    backends.apply()
    print(torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32,
          torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled())
"""


def test_pytorch_is_told():
    """In a process of its own, as in a trial; PyTorch's own default has TF32 convolutions."""
    process = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, text=True)
    assert process.stdout.splitlines() == [
        "False False False False",
        "True False False False",
        "False False True True",
    ]


def test_a_row_has_them_where_they_mean_something(tmp_path):
    plan = tiny_plan(tmp_path, backends=Backends(tf32=True))
    assert "tf32" not in plan.columns()
    columns = replace(plan, device="cuda:1").columns()
    assert (columns["tf32"], columns["cudnn_benchmark"], columns["deterministic"]) == (1, 0, 0)


def test_a_flag_that_would_change_nothing_is_refused():
    Backends().check("cpu")
    Backends(tf32=True).check("cuda")
    with pytest.raises(UserError, match="--cudnn-benchmark: a setting of CUDA"):
        Backends(cudnn_benchmark=True).check("cpu")


@pytest.mark.parametrize(
    ("precision", "version", "cudnn", "warned"),
    [
        ("bf16", "2.9.0+cu128", 91002, True),
        ("fp16", "2.9.1+cu128", 91002, True),
        ("bf16", "2.9.1+cu128", 91500, False),
        ("fp32", "2.9.0+cu128", 91002, False),
        ("bf16", "2.8.0+cu128", 91002, False),
        ("bf16", "2.11.0+cu130", 91300, False),
    ],
)
def test_a_torch_with_slow_16_bit_convolutions_is_warned_of(precision, version, cudnn, warned):
    lines = known_problems(precision, version, cudnn)
    assert ["pytorch#166643" in line for line in lines] == [True] * warned


def test_the_environment_says_what_changes_a_step_on_a_card(monkeypatch):
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    hardware = describe_environment(["run_bench.py"], [])["hardware"]
    assert hardware["variables"]["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert "cudnn" in hardware
