"""idm-lean: the same gradients with less memory, and an optimizer inside the backward pass."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._subclasses import FakeTensorMode

from models.idm import IDM
from models.idm.lean import LeanIDM, build
from models.idm.optimizer import BLOCK, AdamWInBackward, Dither, LogQuantizer
from tests.models.live_storages import LiveStorages
from tests.models.test_exactness import error, gradients
from tests.models.test_network import GIB, NARROW, PAPER, batch, perturbed

PAPER_CHANNELS = (64, 128, 256, 512, 1024, 2048)


def peak_of_a_step(shape: tuple[int, ...]) -> float:
    """GiB of one step on fake tensors, parameters and state included."""
    with FakeTensorMode(), LiveStorages() as watch:
        net = build(channels=PAPER_CHANNELS)
        optimizer = net.make_optimizer(learning_rate=2e-4, lambda_l2=1e-4)
        x, noise = torch.randn(shape), torch.randn(shape)
        t = torch.zeros(shape[0], dtype=torch.long)
        (net(x, t) - noise).square().mean().backward()
        optimizer.step()
        assert all(p.grad is None for p in net.parameters())
        return watch.peak / GIB


@pytest.mark.thorough
def test_paper_in_two_and_a_half_gib():
    assert peak_of_a_step(PAPER) <= 2.5


def lean_twin(net: IDM, **options) -> LeanIDM:
    """It streams whatever the size of a sample."""
    twin = LeanIDM(channels=net.channels, dims=net.dims, stream_bytes=0, **options)
    twin.to(next(net.parameters()).dtype).load_state_dict(net.state_dict())
    return twin


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("lambda_r", [0.0, 0.5])
def test_gradients_are_those_of_idm(dims, lambda_r):
    net = perturbed(IDM(channels=(32, 64, 128), dims=dims).double())
    x, t = batch(3, 1, *(8,) * dims, dtype=torch.float64)
    sliced = lean_twin(net, slice_bytes=2**10)
    blocks = [m.function for m in sliced.body.values() if hasattr(m, "function")]
    assert len(blocks[0].parts(torch.zeros(1, 16, 8, 8, 8))) > 2
    want = gradients(net, x, t, lambda_r)
    for a, b in zip(gradients(sliced, x, t, lambda_r), want, strict=True):
        assert torch.linalg.norm(a - b) <= 1e-10 * torch.linalg.norm(b)


def test_float32_gradients_are_those_of_idm():
    net = perturbed(IDM(channels=NARROW), 0.05)
    x, t = batch(2, 1, 16, 16, 16)
    assert error(gradients(lean_twin(net), x, t), gradients(net, x, t)) <= 1e-4


def test_half_precision_runs_f_in_bfloat16_only():
    net = perturbed(IDM(channels=NARROW), 0.05)
    x, t = batch(2, 1, 8, 8, 8)
    half = lean_twin(net, half_precision=True)
    ours, exact = gradients(half, x, t), gradients(net, x, t)
    assert all(g.dtype == torch.float32 for g in ours)
    assert 1e-4 < error(ours, exact) < 0.1


def test_the_largest_skip_is_not_kept():
    """Between its rebuilding and its use: what streaming and recomputing are for."""
    peaks = []
    for stream_bytes in (0, None):
        with FakeTensorMode(), LiveStorages() as watch:
            net = build(channels=(32, 64), stream_bytes=stream_bytes)
            optimizer = net.make_optimizer(learning_rate=1e-4)
            x, t = torch.randn(2, 1, 32, 32, 32), torch.zeros(2, dtype=torch.long)
            base = watch.live
            net(x, t).square().mean().backward()
            optimizer.step()
        peaks.append(watch.peak - base)
    assert peaks[0] < 0.75 * peaks[1]


@pytest.mark.parametrize(
    ("channels", "sliced"),
    [pytest.param((112, 224), False, marks=pytest.mark.thorough), ((128, 256), True)],
)
def test_slices_are_taken_where_they_save(channels, sliced):
    """F of 56 channels has norms of 2 groups, so at most 2 slices; of 64 it has 8."""

    def peak(slice_bytes: int | None) -> int:
        with FakeTensorMode(), LiveStorages() as watch:
            net = LeanIDM(channels=channels, attention_levels=0, slice_bytes=slice_bytes)
            x, t = torch.randn(1, 1, 32, 32, 32), torch.zeros(1, dtype=torch.long)
            net(x, t).square().mean().backward()
            return watch.peak

    whole, sliced_up = peak(None), peak(2**19)
    assert sliced_up < whole if sliced else sliced_up == whole


def test_small_samples_are_not_streamed():
    peaks = {}
    for stream_bytes in (0, 2**20, None):
        with FakeTensorMode(), LiveStorages() as watch:
            net = build(channels=(32, 64), stream_bytes=stream_bytes)
            x, t = torch.randn(2, 1, 16, 16, 16), torch.zeros(2, dtype=torch.long)
            net(x, t).square().mean().backward()
        peaks[stream_bytes] = watch.peak
    assert 32 * 16**3 * 4 < 2**20  # bytes of a sample's state
    assert peaks[2**20] == peaks[None] > peaks[0]


# --- the optimizer ----------------------------------------------------------------------------


def test_with_float32_state_it_is_adamw():
    net = perturbed(IDM(channels=NARROW).double())
    reference = copy.deepcopy(net)
    x, t = batch(1, 1, 8, 8, 8, dtype=torch.float64)
    inside = AdamWInBackward(net.parameters(), lr=1e-3, eight_bit=False, lambda_l2=0.01)
    outside = torch.optim.AdamW(reference.parameters(), lr=1e-3)
    for _ in range(3):
        net(x, t).square().mean().backward()
        inside.step()
        norm = torch.nn.utils.get_total_norm([p.detach() for p in reference.parameters()])
        reference(x, t).square().mean().backward()
        for p in reference.parameters():
            p.grad += 0.01 * p.detach() / norm
        outside.step()
        outside.zero_grad()
    for ours, theirs in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2])
def test_gradients_applied_at_once_are_those_applied_layer_by_layer(size):
    """One of F's two gradients is gone before the other is made; each is applied once."""
    net = perturbed(build(channels=NARROW, stream_bytes=0))
    reference = copy.deepcopy(net)
    x, t = batch(size, 1, 8, 8, 8)
    trained = []
    for network in (net, reference):
        optimizer = network.make_optimizer(learning_rate=1e-3)
        if network is reference:
            for layer in network.body.values():
                layer.accumulates_at_once = False
        for _ in range(3):
            network(x, t).square().mean().backward()
            optimizer.step()
        steps = {state["step"] for state in optimizer.state.values()}
        assert all(p.grad is None for p in network.parameters())
        trained.append((steps, [p.detach() for p in network.parameters()]))
    assert trained[0][0] == trained[1][0] == {3}
    assert all(torch.equal(*pair) for pair in zip(trained[0][1], trained[1][1], strict=True))
    at_once = [layer for layer in net.body.values() if getattr(layer, "accumulates_at_once", 0)]
    assert at_once  # or nothing was compared


def test_what_needs_gradients_is_refused():
    """They were applied and freed in the backward pass: silence would be a lie."""
    net = build(channels=NARROW)
    x, t = batch(2, 1, 8, 8, 8)
    optimizer = net.make_optimizer(learning_rate=1e-3)
    uses = {
        "norm": lambda: torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0),
        "norm, one by one": lambda: torch.nn.utils.clip_grad_norm_(
            net.parameters(), 1.0, foreach=False
        ),
        "value": lambda: torch.nn.utils.clip_grad_value_(net.parameters(), 1.0),
        "backward": lambda: net(x, t).square().mean().backward(),
    }
    for use in uses.values():
        net(x, t).square().mean().backward()
        before = [p.detach().clone() for p in net.parameters()]
        with pytest.raises(RuntimeError, match=r"cannot be\s+clipped.*optimizer\.step\(\)"):
            use()
        after = [p.detach() for p in net.parameters()]
        assert all(torch.equal(*same) for same in zip(before, after, strict=True))
        optimizer.step()
        assert all(p.grad is None for p in net.parameters())
    for close in (optimizer.step, optimizer.zero_grad, net.zero_grad):
        net(x, t).square().mean().backward()
        assert "AppliedGradient" in repr(next(net.parameters()).grad)
        close()
        assert all(p.grad is None for p in net.parameters())


def test_detached_it_leaves_gradients_alone():
    net = build(channels=NARROW)
    x, t = batch(2, 1, 8, 8, 8)
    net.make_optimizer(learning_rate=1e-3).detach()
    net(x, t).square().mean().backward()
    assert torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0) > 0


def test_a_scheduler_sets_its_rate():
    weight = torch.nn.Parameter(torch.ones(8))
    optimizer = AdamWInBackward([weight], lr=1.0, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 1.0)
    weight.sum().backward()
    optimizer.step()
    schedule.step()
    moved = weight.detach().clone()
    assert (moved < 0.5).all()
    weight.sum().backward()
    assert torch.equal(weight, moved)


def test_state_takes_two_bytes_a_parameter():
    weight = torch.nn.Parameter(torch.randn(64, 1000))
    optimizer = AdamWInBackward([weight])
    weight.square().sum().backward()
    size = sum(v.nbytes for v in optimizer.state[weight].values() if isinstance(v, torch.Tensor))
    assert size <= 2.1 * weight.numel()


@pytest.mark.parametrize(("signed", "octaves", "tolerance"), [(True, 20, 0.12), (False, 24, 0.07)])
def test_quantized_numbers_are_close_one_by_one_and_right_on_average(signed, octaves, tolerance):
    quantizer = LogQuantizer(signed, octaves)
    values = torch.randn(8, BLOCK)
    values = values if signed else values.abs()
    codes, scales = quantizer.zeros(8, values.device)
    mean, dither = torch.zeros_like(values), Dither(values.device)
    for step in range(200):
        quantizer.encode(values.clone(), codes, scales, dither(len(values), step))
        decoded = quantizer.decode(codes, scales)
        assert ((decoded - values).abs() <= tolerance * values.abs() + 1e-5).all()
        mean += decoded / 200
    assert ((mean - values).abs() / values.abs().clamp_min(1e-3)).mean() < 0.005


def test_a_slow_decay_is_not_rounded_away():
    quantizer = LogQuantizer(signed=False, octaves=24)
    codes, scales = quantizer.zeros(1, torch.device("cpu"))
    values = torch.linspace(0.1, 1, BLOCK)[None].clone()
    values[0, -1] = 1.0
    anchor, dither = values.clone(), Dither(values.device)
    for step in range(1000):
        quantizer.encode(values.clone(), codes, scales, dither(len(values), step))
        values = quantizer.decode(codes, scales) * 0.9995
        values[0, -1] = 1.0  # keeps the scale where it is
    ratio = (values / anchor)[0, :-1].mean()
    assert float(ratio) == pytest.approx(0.9995**1000, rel=0.1)
