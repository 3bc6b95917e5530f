"""The card on paper follows CUDA's rules; in float32 they are the CPU's, but for attention."""

import re
import subprocess
import sys
import types
import unittest
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from monai.networks.nets import DiffusionModelUNet
from torch import nn

from bench.methods import METHODS
from bench.predict import autocast, predict, predict_method
from bench.predict.attention import of_capability
from bench.predict.card import on_card
from bench.predict.fake import FaithfulFakeMode, faking
from bench.presets import Overrides
from bench.probes.memory import Part
from tests.related import slow_but

POLICIES = (
    "LOWER_PRECISION_FP", "FP32", "FP32_SET_OPT_DTYPE", "DIFFERENT_REDISPATCH_SIGNATURE",
    "PROMOTE",
)  # fmt: skip


@pytest.fixture
def card():
    mode = FaithfulFakeMode()
    with on_card() as where, faking(mode):
        yield where


def test_no_list_of_the_header_is_unknown():
    lists = re.findall(r"#define AT_FORALL_(\w+)\(_\)", autocast.HEADER.read_text())
    assert set(lists) - {"DEPRECATED_AUTOCAST_BACKENDS"} == set(POLICIES)
    with pytest.raises(ValueError, match="no list AT_FORALL_FP8"):
        autocast.operators("FP8")


@pytest.mark.parametrize("policy", POLICIES)
def test_every_operator_of_a_list_has_its_rule(policy, card):
    """As many as the macro has lines of `_(…)`, each with a kernel under the card's autocast."""
    text = autocast.HEADER.read_text().partition(f"#define AT_FORALL_{policy}(_)")[2]
    macro = text[: re.search(r"[^\\]\n", text).start()]
    names = autocast.operators(policy)

    assert len(names) == len(re.findall(r"\b_\(", macro)) > 0
    for name in names:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(
            f"aten::{name}", "AutocastPrivateUse1"
        ), name


@pytest.fixture
def calls(card, monkeypatch):
    """The calls by which PyTorch tests its autocast on CUDA, on tensors of the card."""
    common = types.ModuleType("common_utils")  # the real one needs packages for testing PyTorch
    common.TEST_WITH_ROCM, common.TestCase = False, unittest.TestCase
    monkeypatch.setitem(sys.modules, "torch.testing._internal.common_utils", common)
    from torch.testing._internal.autocast_test_lists import AutocastTestLists

    return AutocastTestLists(card)


NOT_CALLED = {
    "cudnn_convolution", "cudnn_convolution_transpose",  # in no list of the header
    "gru_cell",  # one kernel on CUDA, pieces on the card
    "einsum", "equal",  # the row has no tensors; the result is none
}  # fmt: skip
LISTS = {
    "torch_fp16": (torch, torch.bfloat16),
    "nn_fp16": (torch._C._nn, torch.bfloat16),
    "linalg_fp16": (torch.linalg, torch.bfloat16),
    "torch_fp32": (torch, torch.float32),
    "nn_fp32": (torch._C._nn, torch.float32),
    "torch_need_autocast_promote": (torch, torch.float32),
    "torch_expect_builtin_promote": (torch, None),
}


@pytest.mark.parametrize("name", LISTS)
def test_operators_return_what_pytorch_expects_of_cuda(calls, name):
    module, expected = LISTS[name]
    for operator, args, *rest in getattr(calls, name):
        if operator in NOT_CALLED:
            continue
        keywords = next((each for each in rest if isinstance(each, dict)), {})
        dtype = expected or rest[0]
        call = getattr(module, operator.removeprefix("linalg_"))
        with torch.autocast("cuda", torch.bfloat16):
            out = call(*args, **keywords)
        out = out[0] if isinstance(out, tuple) else out
        assert out.dtype == dtype, operator


def test_what_cuda_bans_is_banned(calls):
    for operator, args, module in calls.banned:
        with (
            torch.autocast("cuda", torch.float16),
            pytest.raises(RuntimeError, match="not allowed under CUDA's autocast"),
        ):
            getattr(module, operator)(*args)


def test_a_weight_is_cast_once_within_an_autocast():
    network, batch = nn.Linear(64, 64, bias=False), torch.empty(8, 64)

    def twice(network, batch):
        with torch.autocast("cuda", torch.bfloat16):
            return (network(batch) + network(2 * batch)).float().sum()

    made = Counter(
        (change.nbytes, change.storage.operator)
        for change in predict(network, batch, torch.optim.SGD, twice).changes
    )
    assert made[2 * 64 * 64, "aten._to_copy.default"] == 1


ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
)


LAYING = ("aten.view.default", "aten.clone.default", "aten.transpose.int", "aten.permute.default")


@pytest.mark.parametrize("name", slow_but(("unet", "idm"), METHODS))
def test_in_float32_a_method_runs_the_operators_of_a_cpu(name):
    """All but attention, whose kernel is another, and of which a CPU copies the result.

    IDM lays its state as a CPU convolves it fastest, so what moves and copies is another there.
    """
    moving = LAYING if name.startswith("idm") else ()
    size = Overrides(volume=16, batch_size=1, channels=(8, 16, 32), couplings=1)
    if name == "latent":
        size = Overrides(volume=32)
    work = METHODS[name].workload("small", size)
    on_cpu, on_a_card = (
        predict_method(METHODS[name], work, device=device, count_forward=False)
        for device in ("cpu", "cuda")
    )

    def sequence(prediction, attention):
        names = [operator.name.replace(attention, "attention") for operator in prediction.operators]
        return [
            name for before, name in zip(["", *names], names, strict=False)
            if not before.startswith("aten.attention.") and name not in AFTER_ATTENTION
            and name not in moving
        ]  # fmt: skip

    assert sequence(on_cpu, ATTENTION[0]) == sequence(on_a_card, ATTENTION[1])
    if not any("attention" in operator.name for operator in on_cpu.operators):
        assert on_cpu.parts == on_a_card.parts


AFTER_ATTENTION = {"aten.clone.default", "aten._unsafe_view.default", "aten.view.default"}


def kept(card, *shape, dtype, mask=None):
    """Operator of the backward pass, and bytes that it keeps, of attention over (B, H, N, C)."""
    query, key, value = (
        torch.empty(shape, dtype=dtype, device=card, requires_grad=True) for _ in range(3)
    )
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return type(out.grad_fn).__name__, sum(saved.values())


B, H, N, C = 2, 4, 100, 32


def test_flash_attention_keeps_a_number_a_row(card):
    """The inputs, the result, its logarithms of sums, and the state of the random numbers."""
    name, nbytes = kept(card, B, H, N, C, dtype=torch.bfloat16)
    assert name == "ScaledDotProductFlashAttentionBackward0"
    assert nbytes == 4 * B * H * N * C * 2 + B * H * N * 4 + (2 + 1) * 8


def test_a_hopper_card_takes_cudnns_attention_in_16_bits(card):
    with of_capability((9, 0)):
        name, nbytes = kept(card, B, H, N, C, dtype=torch.bfloat16)
        assert kept(card, B, H, N, C, dtype=torch.float32)[0] == (
            "ScaledDotProductEfficientAttentionBackward0"
        )
        assert torch.cuda.get_device_capability() == (9, 0)
    assert name == "ScaledDotProductCudnnAttentionBackward0"
    assert nbytes == 4 * B * H * N * C * 2 + B * H * N * 4 + 2 * 8


class Attention(nn.Linear):
    def forward(self, x):
        x = super().forward(x)
        return F.scaled_dot_product_attention(x, x, x)


def made_in_bf16(operator):
    """Bytes that `operator` allocates in a forward pass without gradients, one by one."""

    def draw(network, x):
        with torch.autocast("cuda", torch.bfloat16):
            return network(x)

    drawn = predict(Attention(C, C), torch.empty(B, H, N, C), loss=draw)
    return [
        change.nbytes
        for change in drawn.changes
        if change.nbytes > 0 and change.storage.operator == f"aten.{operator}.default"
    ]


def test_cudnns_attention_makes_logarithms_of_sums_for_a_backward_pass_only():
    with of_capability((9, 0)):
        made = made_in_bf16("_scaled_dot_product_cudnn_attention")
    assert made == [B * H * N * C * 2, 8, 8]


def test_autocast_casts_the_last_argument_first():
    """Bias, weight, input, as a card was seen to (results/cards)."""
    assert made_in_bf16("_to_copy") == [2 * C, 2 * C * C, 2 * B * H * N * C]


def test_flash_attention_pads_heads_to_eight_channels(card):
    assert (
        kept(card, B, H, N, 30, dtype=torch.float16)[1]
        == (kept(card, B, H, N, 32, dtype=torch.float16)[1])
    )


def test_memory_efficient_attention_pads_its_statistics(card):
    name, nbytes = kept(card, B, H, N, C, dtype=torch.float32)
    assert name == "ScaledDotProductEfficientAttentionBackward0"
    assert nbytes == 4 * B * H * N * C * 4 + B * H * 128 * 4 + 2 * 8


def test_the_formula_keeps_all_pairs(card):
    """Where no kernel takes the heads: 33 channels in float32 are no multiple of 16 bytes."""
    _, nbytes = kept(card, B, H, N, 33, dtype=torch.float32)
    assert nbytes == 3 * B * H * N * 33 * 4 + B * H * N * N * 4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("channels", [(8, 16), (300, 320)])
def test_an_idm_of_any_width_makes_no_matrix_of_all_pairs(precision, channels):
    """Skips of 6 and of 260 channels, in one head each: neither is a multiple of 16 bytes."""
    prediction = predict(
        "idm", preset="small", volume=16, batch_size=1, channels=channels, couplings=1,
        precision=precision,
    )  # fmt: skip
    names = " ".join(operator.name for operator in prediction.operators)
    assert "softmax" not in names
    assert "_attention_backward" in names


def test_a_mask_rules_out_the_flash_kernel(card):
    mask = torch.empty(N, N, dtype=torch.bool, device=card)
    name, _ = kept(card, B, H, N, C, dtype=torch.bfloat16, mask=mask)
    assert name == "ScaledDotProductEfficientAttentionBackward0"


def test_a_network_that_wants_cuda_is_built_in_the_prediction():
    def build():
        if not torch.cuda.is_available():  # as in MONAI Generative's flash attention
            raise ValueError("flash attention needs CUDA")
        return DiffusionModelUNet(
            spatial_dims=2, in_channels=1, out_channels=1, channels=(8, 8), num_res_blocks=1,
            attention_levels=(False, True), num_head_channels=8, norm_num_groups=8,
            use_flash_attention=True,
        )  # fmt: skip

    def loss(network, batch):
        with torch.autocast("cuda", torch.bfloat16):
            return network(*batch).float().square().mean()

    with pytest.raises(ValueError, match="needs CUDA"):
        build()
    batch = torch.empty(2, 1, 16, 16), torch.zeros(2, dtype=torch.int64)
    prediction = predict(build, batch, torch.optim.AdamW, loss)

    names = {operator.name for operator in prediction.operators}
    assert "aten._scaled_dot_product_flash_attention.default" in names


SAYINGS = {
    "cuda()": lambda n, b: n(b.cuda()).square().mean(),
    "to(cuda)": lambda n, b: n(b.to("cuda", torch.float32)).square().mean(),
    "to(device)": lambda n, b: n(b.to(torch.device("cuda", 0))).square().mean(),
    "module": lambda n, b: n.cuda()(b).square().mean(),
    "is_cuda": lambda n, b: n(b).square().mean() if b.is_cuda and n.weight.is_cuda else None,
    "is_available": lambda n, b: n(b).square().mean() if torch.cuda.is_available() else None,
}


@pytest.mark.parametrize("loss", SAYINGS.values(), ids=SAYINGS)
def test_cuda_is_the_card(loss):
    network, batch = nn.Linear(64, 64), torch.empty(8, 64)
    plain = predict(network, batch, torch.optim.SGD, lambda n, b: n(b).square().mean())
    assert predict(network, batch, torch.optim.SGD, loss).parts == plain.parts
    assert not torch.cuda.is_available()


def test_autocast_of_the_cpu_is_said_to_do_nothing():
    def loss(network, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return network(batch).square().mean()

    prediction = predict(nn.Linear(64, 64), torch.empty(8, 64), torch.optim.SGD, loss)
    (line,) = prediction.assumptions
    assert "say torch.autocast('cuda')" in line


@pytest.mark.parametrize("pinned", [False, True])
def test_what_moves_to_the_host_is_counted_there(pinned):
    layers, width, rows = 6, 64, 1024
    network = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
    batch = torch.empty(rows, width)

    def offloaded(network, batch):
        with torch.autograd.graph.save_on_cpu(pin_memory=pinned):
            return network(batch).square().mean()

    usual = predict(network, batch, torch.optim.SGD)
    prediction = predict(network, batch, torch.optim.SGD, offloaded)

    one = rows * width * 4
    assert usual.host_bytes == usual.offload_moved_bytes == 0
    # What the layers and the square read, and the weights but the first, saved for the gradients.
    assert prediction.host_bytes == (layers + 1) * one + (layers - 1) * width * width * 4
    assert prediction.offload_moved_bytes == 2 * prediction.host_bytes  # there and back
    assert prediction.parts[Part.ACTIVATION] < usual.parts[Part.ACTIVATION] - 2 * one
    assert "on the host" in str(prediction)


class MomentumOnTheHost(torch.optim.SGD):
    """In the manner of ZeRO-Offload: the state, and what is computed of it, lie with the host."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if "momentum" not in self.state[p]:
                    self.state[p]["momentum"] = torch.zeros(p.shape, device="cpu")
                momentum = self.state[p]["momentum"].mul_(0.9).add_(p.grad.to("cpu"))
                p.sub_(momentum.to(p.device), alpha=group["lr"])


def test_offloaded_optimizer_state_is_counted_on_the_host():
    network, batch = nn.Linear(64, 64, bias=False), torch.empty(8, 64)
    weights = network.weight.nbytes
    prediction = predict(network, batch, lambda p: MomentumOnTheHost(p, lr=0.1))

    assert prediction.parts[Part.OPTIMIZER] == 0
    assert prediction.host_bytes == 2 * weights  # the momentum, and a gradient on its way into it
    usual = predict(network, batch, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    assert usual.parts[Part.OPTIMIZER] == weights
    assert usual.host_bytes == 0


@pytest.mark.slow
def test_the_card_may_come_after_a_backward_pass():
    """PyTorch makes its threads for backward passes at the first, for the devices of then."""
    script = """
import torch
from torch import nn
network, batch = nn.Linear(4, 4), torch.ones(2, 4)
network(batch).sum().backward()
from bench.predict import predict
print(predict(network, batch, torch.optim.AdamW).peak_memory_bytes)
network(batch).sum().backward()
print(network.weight.grad.device)
"""
    root = Path(__file__).parents[3]
    run = [sys.executable, "-c", script]
    lines = subprocess.run(run, cwd=root, capture_output=True, text=True, check=True).stdout.split()
    expected = predict(nn.Linear(4, 4), torch.ones(2, 4), torch.optim.AdamW).peak_memory_bytes
    assert lines == [str(expected), "cpu"]


def predicted(loss):
    network = nn.Conv3d(1, 3, 3, padding=1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)

    def under_autocast(network, batch):
        with torch.autocast("cuda", dtype=torch.float16):
            return loss(network(batch))

    return predict(network, torch.empty(2, 1, 8, 8, 8), optimizer, under_autocast)


def test_a_type_by_position_is_one_that_is_asked_for():
    """`log_softmax` is float32 under autocast; `cross_entropy` asks for its input's own type."""
    labels = torch.zeros(2, 8, 8, 8, dtype=torch.long)
    logits = 2 * 3 * 8**3

    def sizes(loss):
        return {
            change.nbytes for change in predicted(loss).changes
            if change.storage.operator == "aten._log_softmax.default" and change.nbytes > 0
        }  # fmt: skip

    assert sizes(lambda output: F.log_softmax(output, 1).sum()) == {4 * logits}
    assert sizes(lambda output: F.cross_entropy(output, labels.to("cuda"))) == {2 * logits}


def test_the_axes_of_a_small_tensor_are_known():
    """MONAI's losses reduce over `torch.arange(2, 5).tolist()`."""
    seen = []

    def loss(output):
        axes = torch.arange(2, 5, device="cuda")
        seen.append((axes.tolist(), [int(axis) for axis in axes.view(3, 1)], axes[1:].tolist()))
        return output.sum(seen[0][0]).sum() + DiceLoss(sigmoid=True)(output, output.detach())

    prediction = predicted(loss)
    assert seen[0] == ([2, 3, 4], [2, 3, 4], [3, 4])
    assert not prediction.assumptions


def test_what_is_written_to_a_small_tensor_is_not_known():
    read = []

    def loss(output):
        count = torch.arange(1, 2)
        count.add_(1)
        read.append(count.item())
        return output.sum()

    assert predicted(loss).assumptions
    assert read[0] == 1  # what is taken for an integer


@pytest.mark.slow
def test_the_machines_accelerator_stays_what_it_is():
    """After a prediction, FSDP wanted to put a real network on the card on paper."""
    script = (
        "import torch; from bench.predict import predict; before = torch._C._get_accelerator(); "
        "now = torch.accelerator.current_accelerator(); predict('idm', preset='small', volume=16); "
        "assert torch._C._get_accelerator() == before; "
        "assert torch.accelerator.current_accelerator() == now"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
