"""What cuDNN is expected to take: channels-last copies of what a convolution reads and writes."""

import pytest
import torch
from torch import nn

from bench.probes.cost import StepProbe

SIDES = (4, 6, 8)


def workspaces(convolution, volume):
    optimizer = torch.optim.SGD(convolution.parameters(), lr=0.1)
    probe = StepProbe(convolution, optimizer, "cpu", [volume])
    probe.start()
    convolution(volume).float().sum().backward()
    probe.stop()
    return {o.name: o.workspace for o in probe.trace if "convolution" in o.name}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_16_bit_convolution_of_volumes_is_copied(dtype):
    convolution = nn.Conv3d(2, 3, 3, padding=1, bias=False).to(dtype)
    volume = torch.randn(5, 2, *SIDES, dtype=dtype, requires_grad=True)
    voxels = 5 * 4 * 6 * 8
    nbytes = 2 * (voxels * 2 + voxels * 3 + 2 * 3 * 27)

    assert set(workspaces(convolution, volume).values()) == {nbytes}
    assert len(workspaces(convolution, volume)) == 2  # forward and backward


def test_float32_is_copied_as_16_bits_are_where_it_may_be_tf32():
    convolution, volume = nn.Conv3d(2, 3, 1, bias=False), torch.randn(1, 2, *SIDES)
    with torch.backends.cudnn.flags(allow_tf32=True):
        assert set(workspaces(convolution, volume).values()) == {4 * (192 * 2 + 192 * 3 + 6)}


@pytest.mark.parametrize(("side", "weights"), [(1, 0), (3, 4 * 4 * 27)])
def test_ieee_float32_is_copied_in_the_backward_pass_and_a_matrix_of_weights_is_not(side, weights):
    """Channels are padded to 4, as the log of an H200 has it (docs/cards.md)."""
    convolution = nn.Conv3d(2, 3, side, padding=side // 2, bias=False)
    with torch.backends.cudnn.flags(allow_tf32=False):
        found = workspaces(convolution, torch.randn(1, 2, *SIDES))
    assert found == {
        "aten.convolution.default": 0,
        "aten.convolution_backward.default": 4 * (192 * 4 + 192 * 4 + weights),
    }


def test_channels_last_and_images_are_not_copied():
    # Float32: without AVX-512 a CPU's 16-bit results are not channels-last.
    volume = torch.randn(2, 8, *SIDES).to(memory_format=torch.channels_last_3d)
    convolution = nn.Conv3d(8, 8, 3).to(memory_format=torch.channels_last_3d)
    image = torch.randn(1, 8, 6, 8, dtype=torch.bfloat16)

    with torch.backends.cudnn.flags(allow_tf32=True):
        assert workspaces(convolution, volume)["aten.convolution.default"] == 0
    assert set(workspaces(nn.Conv2d(8, 8, 3).bfloat16(), image).values()) == {0}
