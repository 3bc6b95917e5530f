"""The layer of F: GroupNorm, SiLU and a convolution that keep their input only."""

import pytest
import torch
import torch.nn.functional as F

from models.idm.coupling import ActivatedConvolution


def layer_and_input(dims: int, slice_bytes: int | None = None):
    torch.manual_seed(0)
    layer = ActivatedConvolution(32, 5, dims).double()
    for parameter in (layer.scale, layer.offset):
        torch.nn.init.normal_(parameter)
    layer.slice_bytes = slice_bytes
    return layer, torch.randn(2, 32, *(4,) * dims, dtype=torch.float64)


def as_written(layer, x):
    convolve = F.conv3d if x.ndim == 5 else F.conv2d
    normal = F.group_norm(x, layer.groups, layer.scale, layer.offset, layer.eps)
    return convolve(F.silu(normal), layer.weight, padding=1)


@pytest.mark.parametrize("slice_bytes", [None, 2**10, 2**12])
@pytest.mark.parametrize(
    "frozen", ["", "x", "weight", "scale offset", "x scale offset", "x weight"]
)
@pytest.mark.parametrize("dims", [2, 3])
def test_its_gradients_are_those_of_the_three_layers(dims, frozen, slice_bytes):
    layer, x = layer_and_input(dims, slice_bytes)
    tensors = {"x": x, **dict(layer.named_parameters())}
    for name, tensor in tensors.items():
        tensor.requires_grad_(name not in frozen.split())
    wanted = [tensor for tensor in tensors.values() if tensor.requires_grad]
    ours, theirs = layer(x), as_written(layer, x)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)
    grad = torch.randn_like(ours)
    found = torch.autograd.grad(ours, wanted, grad)
    for one, other in zip(found, torch.autograd.grad(theirs, wanted, grad), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_it_keeps_its_input_and_its_parameters_only():
    layer, x = layer_and_input(3)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda packed: packed):
        layer(x.requires_grad_())
    mine = {tensor.data_ptr() for tensor in (x, *layer.parameters())}
    assert {tensor.data_ptr() for tensor in kept} == mine


def test_slices_of_it_add_up():
    layer, x = layer_and_input(3)
    whole = layer(x)
    parts = [layer.to_some(x, slice(0, 2)), layer.to_some(x, slice(2, 5))]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-14)
    halves = [slice(0, 16), slice(16, 32)]
    added = sum(layer.from_some(x[:, half], half, layer.groups // 2) for half in halves)
    torch.testing.assert_close(added, whole, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_it_rounds_what_the_three_layers_round(dtype):
    layer, x = layer_and_input(3)
    layer, x = layer.float(), x.float()
    with torch.autocast("cpu", dtype):
        ours, theirs = layer(x), as_written(layer, x)
    assert ours.dtype == theirs.dtype == dtype
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)
    grad = torch.randn_like(ours)
    found, expected = (
        torch.autograd.grad(each, list(layer.parameters()), grad) for each in (ours, theirs)
    )
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() <= 2e-2 * other.norm()
