"""IDM as a network: its size, its shape, its inverse, its cost."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch._subclasses import FakeTensorMode

from models.idm import IDM, PUBLISHED, build, pad_to_multiple
from models.idm.attention import InvertibleAttention, checkerboard, parity
from models.idm.coupling import AdditiveCoupling, ConvolutionBlock
from models.idm.resampling import ChannelMixing, Downsampling
from tests.models.live_storages import cost_of_step

GIB = 2**30
PAPER = (PUBLISHED["batch_size"], 1, *(PUBLISHED["volume"],) * 3)
NARROW = (8, 16, 32)


def perturbed(net: IDM, scale: float = 0.1) -> IDM:
    """Away from the start, where every F is zero and much of the network idles."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p += scale * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return net


def batch(*shape: int, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(*shape, generator=generator, dtype=dtype)
    return x, torch.randint(0, 2000, (shape[0],), generator=generator)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_output_has_the_shape_of_the_input(dims, in_channels):
    net = IDM(in_channels, (8, 16, 24), dims=dims)
    x, t = batch(2, in_channels, *(8, 12, 16)[:dims])
    eps = net(x, t)
    assert eps.shape == x.shape
    assert net.inverse(eps).shape == x.shape


@pytest.fixture(scope="module")
def paper():
    return cost_of_step(lambda: build(channels=PUBLISHED["channels"]), PAPER)


def test_paper_has_the_papers_parameters():
    with FakeTensorMode():
        count = sum(p.numel() for p in build(channels=PUBLISHED["channels"]).parameters())
    assert count == pytest.approx(343.6e6, rel=0.01)


@pytest.mark.slow
def test_paper_fits_where_the_paper_fits(paper):
    assert paper.peak <= 6.71 * GIB
    assert paper.activations <= 1.0 * GIB


@pytest.mark.slow
def test_paper_needs_a_third_more_flops_than_stored(paper):
    stored = cost_of_step(lambda: build(channels=PUBLISHED["channels"], backward="stored"), PAPER)
    assert 1.2 < paper.flops / stored.flops <= 1.34


SMALL = (32, 64, 128, 256)


def cost_with_more_couplings(level: int | None):
    """Of a step, with two more couplings on each branch of a level."""

    def make():
        net = build(channels=SMALL)
        for index in range(0 if level is None else 2):
            for branch in ("encode", "decode"):
                place = [w.layer for w in net.wiring].index(f"level{level}_{branch}1")
                name = f"level{level}_{branch}_more{index}"
                net.body[name] = AdditiveCoupling(ConvolutionBlock(SMALL[level] // 2))
                net.wiring.insert(place, net.wiring[place]._replace(layer=name))
        return net

    return cost_of_step(make, (2, 1, 32, 32, 32))


@pytest.fixture(scope="module")
def small():
    return cost_with_more_couplings(None)


@pytest.mark.parametrize(
    "level", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2)), 3]
)
def test_one_more_coupling_adds_no_activations(level, small):
    more = cost_with_more_couplings(level)
    assert more.parameters > small.parameters
    # At the peak the gradients of the layers nearest to the input do not exist yet.
    tolerance = more.parameters - small.parameters if level == 0 else 0
    assert -tolerance <= more.activations - small.activations <= 0


def test_the_body_starts_as_the_identity():
    net = IDM(channels=NARROW).double()
    halves = [torch.randn(2, 4, 8, 8, 8, dtype=torch.float64) for _ in range(2)]
    out = net._run_body(halves, None, flipped=False)
    for half, same in zip(halves, out, strict=True):
        torch.testing.assert_close(half, same)


@pytest.mark.parametrize("in_channels", [1, 2])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_network_starts_as_the_identity_whatever_t(in_channels, dims):
    net = IDM(in_channels, NARROW, dims=dims).double()
    x, t = batch(3, in_channels, *(8,) * dims, dtype=torch.float64)
    with torch.no_grad():  # orthonormal in float32
        torch.testing.assert_close(net(x, t), x, rtol=0, atol=1e-5)


def test_the_body_is_inverted():
    net = perturbed(IDM(channels=NARROW).double())
    halves = [torch.randn(2, 4, 8, 8, 8, dtype=torch.float64) for _ in range(2)]
    with torch.no_grad():
        there = net._run_body(halves, None, flipped=False)
        back = net._run_body(there, None, flipped=True)
    assert max((h - y).abs().max() for h, y in zip(halves, there, strict=True)) > 0.1
    for half, same in zip(halves, back, strict=True):
        torch.testing.assert_close(half, same, rtol=1e-10, atol=1e-10)


def test_every_layer_is_exercised_and_every_parameter_used():
    net = perturbed(IDM(channels=NARROW))
    x, t = batch(1, 1, 8, 8, 8)
    net(x, t).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.any(), name


def test_t_reaches_the_output():
    net = perturbed(IDM(channels=NARROW))
    x, _ = batch(1, 1, 8, 8, 8)
    early, late = (net(x, torch.tensor([t])) for t in (10, 1500))
    assert (early - late).abs().max() > 0.01


def test_time_in_couplings():
    net = perturbed(IDM(channels=NARROW, time_in_couplings=True).double())
    stored = copy.deepcopy(net)
    stored.backward = "stored"
    x, t = batch(2, 1, 8, 8, 8, dtype=torch.float64)
    for n in (net, stored):
        y = n(x, t)
        (y.square().mean() + n.inverse(y, t).square().mean()).backward()
    for p, q in zip(net.parameters(), stored.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-8, atol=1e-12)
    with pytest.raises(ValueError, match="t"):
        net.inverse(x)


def test_time_in_couplings_costs_no_activation_memory(small):
    """The paper conjectures that t in the whole network would cost memory."""
    timed = cost_of_step(lambda: build(channels=SMALL, time_in_couplings=True), (2, 1, 32, 32, 32))
    assert timed.parameters > small.parameters
    assert timed.activations - small.activations <= 2**16  # shifts of single channels


def test_copies_and_files_compute_the_same():
    net = perturbed(IDM(channels=NARROW))
    net.body["level0_encode0"].requires_grad_(False)
    x, t = batch(1, 1, 8, 8, 8)
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    buffer.seek(0)
    loaded = IDM(channels=NARROW)
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    want = net(x, t)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), loaded):
        assert torch.equal(other(x, t), want)
    unpickled = pickle.loads(pickle.dumps(net))
    assert [p.requires_grad for p in unpickled.parameters()] == [
        p.requires_grad for p in net.parameters()
    ]
    unpickled(x, t).sum().backward()
    assert unpickled.body["level0_split"].rotations.parametrizations.weight.original.grad.any()


def test_one_seed_one_network_whatever_the_backward():
    nets = []
    for backward in ("inverse", "stored"):
        torch.manual_seed(0)
        nets.append(IDM(channels=NARROW, backward=backward))
    ours, theirs = (n.state_dict() for n in nets)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_fvcore_counts_the_forward_pass():
    from fvcore.nn import FlopCountAnalysis

    flops = FlopCountAnalysis(IDM(channels=NARROW), batch(1, 1, 8, 8, 8))
    flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    # Per voxel of level 0, the lift alone: 4 → 8 channels by 27 taps.
    assert flops.total() > 8**3 * 27 * 4 * 8


def test_describe_shows_levels_channels_and_splits():
    text = IDM(channels=NARROW, couplings=3).describe()
    assert "level 0: 8 channels, 1/1 size: 3 couplings, split 6 skip -> iTrans | 2 down" in text
    assert "level 2: 32 channels, 1/4 size: 3 couplings, mix, 3 couplings" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": (8, 15)}, "even"),
        ({"channels": (8, 18)}, "whole number"),
        ({"channels": (8, 64)}, "between 1 and 7"),
        ({"dims": 4}, "2 or 3"),
        ({"backward": "fast"}, "stored"),
        ({"couplings": -1}, "couplings"),
    ],
)
def test_impossible_networks_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        IDM(**options)


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (1, 2, 8, 8, 8), (1, 1, 8, 8, 10)])
def test_impossible_inputs_are_explained(shape):
    with pytest.raises(ValueError, match="got"):
        IDM(channels=NARROW)(torch.zeros(shape), torch.zeros(1, dtype=torch.long))


# --- layers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_resampling_is_orthogonal(dims, transposed):
    layer = perturbed(Downsampling(3, dims, transposed=transposed).double(), 1.0)
    q = layer.matrices().detach()
    x = torch.randn(2, 3, *(4, 6, 8)[:dims], dtype=torch.float64)
    state = (x,) if not transposed else layer.inverse(x, q)
    y = layer(*state, q)
    assert float(sum(v.square().sum() for v in y)) == pytest.approx(float(x.square().sum()))
    for a, b in zip(layer.inverse(*y, q), state, strict=True):
        torch.testing.assert_close(a, b)


def test_downsampling_starts_as_the_haar_transform():
    layer = Downsampling(1, 3)
    x = torch.randn(1, 1, 2, 2, 2)
    low, high = layer(x, layer.matrices())
    assert low.shape == high.shape == (1, 4, 1, 1, 1)
    assert low[0, 0].item() == pytest.approx(x.sum().item() / 8**0.5, rel=1e-5)  # the mean
    assert high[0, 0].item() == pytest.approx(
        (x[0, 0, 0].sum() - x[0, 0, 1].sum()).item() / 8**0.5, rel=1e-4, abs=1e-6
    )


@pytest.mark.parametrize("transposed", [False, True])
def test_channel_mixing_is_orthogonal_in_slices_as_in_one_piece(transposed):
    layer = perturbed(ChannelMixing((80, 48), (100, 28), transposed=transposed).double(), 1.0)
    q = layer.matrices()
    xs = [torch.randn(3, n, 20, 19, dtype=torch.float64) for n in (80, 48)]
    with_graph = layer(*xs, q)
    with torch.no_grad():
        sliced = layer(*xs, q)
        back = layer.inverse(*sliced, q)
    assert [tuple(y.shape[:2]) for y in sliced] == [(3, 100), (3, 28)]
    for a, b in [*zip(with_graph, sliced, strict=True), *zip(xs, back, strict=True)]:
        torch.testing.assert_close(a, b)


def test_two_mixings_connect_all_channels():
    """64 · 64 channels by two block-diagonal layers, because of the shuffle between them."""
    first, second = (perturbed(ChannelMixing((64, 64), (64, 64)), 1.0) for _ in range(2))
    unit = torch.zeros(1, 64, 1)
    unit[0, 3] = 1
    once = first(unit, torch.zeros_like(unit), first.matrices())
    assert (torch.cat(once, 1) != 0).sum() == 64
    twice = second(*once, second.matrices())
    assert (torch.cat(twice, 1) != 0).sum() == 128


@pytest.mark.parametrize("dims", [2, 3])
def test_attention_scales_odd_voxels_by_even_ones(dims):
    layer = InvertibleAttention(12, dims).double()
    y = torch.randn(2, 12, *(2, 4, 6)[:dims], dtype=torch.float64)
    assert torch.equal(layer(y), y)  # f = 1 at the start
    perturbed(layer, 0.1)
    ratio = layer(y) / y
    odd = parity(y.shape[2:], y.device).bool()
    assert torch.equal(ratio[..., ~odd], torch.ones_like(ratio[..., ~odd]))
    assert 0.5 < ratio.min() < 0.8
    assert 1.25 < ratio.max() < 2.0
    torch.testing.assert_close(layer.inverse(layer(y)), y)
    moved = y.clone()
    moved[..., odd] += 1  # odd voxels have no say in the weights
    torch.testing.assert_close(layer(moved) / moved, ratio)


def test_attention_looks_at_the_whole_volume():
    layer = perturbed(InvertibleAttention(8).double(), 0.1)
    y = torch.randn(1, 8, 8, 8, 8, dtype=torch.float64)
    far = y.clone()
    far[0, :, 0, 0, 0] += 5
    assert (layer(far) != layer(y))[0, :, 7, 7, 7].any()


@pytest.mark.parametrize("channels", [6, 9, 36])
def test_attention_of_heads_of_any_width_is_the_formula(channels):
    """Filled up to whole 16 bytes, as a card's kernels want them, they are what they were."""
    layer = perturbed(InvertibleAttention(channels), 0.1)
    y = torch.randn(2, channels, 4, 4, 4)
    even, odd = checkerboard(y.shape[2:], y.device)
    features = layer.values(layer.even(y))
    flat = features.flatten(2)
    query, key = layer.query(flat[..., odd]), layer.key(flat[..., even])
    weights = (query.transpose(1, 2) @ key / channels**0.5).softmax(dim=2)
    attended = flat[..., even] @ weights.transpose(1, 2)
    s = layer.exponent(flat.index_add(2, odd, attended).view_as(features))
    factor = torch.exp2(torch.tanh(s) * parity(y.shape[2:], y.device))
    torch.testing.assert_close(layer.factor(layer.even(y)), factor, rtol=1e-5, atol=1e-6)


def test_the_checkerboard():
    even, odd = checkerboard(torch.Size((2, 4)), torch.device("cpu"))
    assert even.tolist() == [0, 2, 5, 7]
    assert odd.tolist() == [1, 3, 4, 6]


def test_couplings_alternate():
    net = IDM(channels=NARROW, couplings=3)
    changes = [m.changes for m in net.body.values() if isinstance(m, AdditiveCoupling)]
    assert changes[:3] == [1, 0, 1]


@pytest.mark.parametrize("sides", [(5, 9, 7), (8, 4, 4), (11, 6)])
def test_any_sides_with_a_rim_that_is_taken_off_again(sides):
    """Brains are no multiples of 8."""
    net = IDM(1, NARROW, dims=len(sides))
    x, t = batch(2, 1, *sides)
    padded, inside = pad_to_multiple(x, net.multiple, value=-1)
    assert padded.shape[2:] == tuple(-(-side // 4) * 4 for side in sides)
    assert torch.equal(padded[inside], x)
    assert (padded == -1).sum() == padded.numel() - x.numel()
    assert net(padded, t)[inside].shape == x.shape
