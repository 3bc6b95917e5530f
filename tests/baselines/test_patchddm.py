"""PatchDDM-3D: its authors' network, patches that know where they lie, and whole volumes."""

import random

import pytest
import torch
from torch._subclasses import FakeTensorMode

from baselines import patchddm
from tests.baselines.training import cost_of_fake_step, nudge, parameters_of, train_once

WIDTHS = (4, 8, 8)


def published():
    return patchddm.build(in_channels=1, channels=patchddm.PUBLISHED["channels"])


def volume_of_coordinates(batch, *sides):
    """Volumes whose voxels hold their own coordinates, (batch, 3, *sides)."""
    axes = [torch.linspace(-1, 1, side) for side in sides]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(batch, -1, -1, -1, -1)


def test_has_the_parameters_of_the_authors_network():
    assert parameters_of(published) == 24_257_167


def test_a_decoder_block_reads_the_mean_of_its_input_and_the_latest_skip():
    class Same(torch.nn.Module):
        def forward(self, h, time):
            return h

    level = patchddm.DecoderLevel(torch.nn.ModuleList([Same(), Same()]), up=None)
    h, early, late, later = torch.randn(4, 1, 4, 2, 2, 2)
    skips = [early, late, later]
    out = level(h, torch.zeros(1, 16), skips)
    torch.testing.assert_close(out, ((h + later) / 2 + late) / 2)
    assert len(skips) == 1
    assert skips[0] is early


# The peaks of the authors' own network, measured on the same kinds of step.
@pytest.mark.parametrize(
    ("shape", "bf16", "gib"),
    [
        pytest.param((1, 1, 128, 128, 128), True, 7.63, id="published", marks=pytest.mark.slow),
        pytest.param((1, 1, 64, 64, 64), False, 1_728_567_932 / 2**30, id="64-cubed"),
        pytest.param((4, 1, 64, 64, 64), False, 5.63, id="equal", marks=pytest.mark.thorough),
    ],
)
def test_keeps_the_activations_of_the_authors_network(shape, bf16, gib):
    assert cost_of_fake_step(published, shape, bf16).peak / 2**30 == pytest.approx(gib, rel=0.003)


def test_widths_that_the_groups_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="must divide"):
        patchddm.build(in_channels=1, channels=(8, 12))


def test_gradients_are_right_in_bf16_where_the_coarsest_level_has_a_side_of_two():
    """There, PyTorch's own convolution gives the memory's previous content (oneDNN, AVX-512)."""
    torch.manual_seed(0)
    network = nudge(patchddm.build(in_channels=1, channels=(16, 32, 32)))
    x, t = torch.randn(2, 1, 8, 8, 8), torch.tensor([3, 1500])
    gradients = []
    for bf16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            eps = network(x, t)
        weights = [p for p in network.parameters() if p.ndim == 5]
        gradients.append(torch.autograd.grad(eps.float().square().mean(), weights))
    for fp32, bf16 in zip(*gradients, strict=True):
        assert (fp32 - bf16).norm() < 0.1 * fp32.norm()


@pytest.mark.parametrize("depth", [2, 4])
def test_padding_a_depth_of_two_apart_changes_no_value(depth):
    torch.manual_seed(0)
    conv, x = patchddm.Conv3d(3, 5), torch.randn(2, 3, depth, 4, 4)
    expected = torch.nn.functional.conv3d(x, conv.weight, conv.bias, padding=1)
    torch.testing.assert_close(conv(x), expected)


def test_a_patch_comes_with_the_coordinates_of_its_voxels():
    x0 = volume_of_coordinates(4, 12, 16, 20)
    patches, keywords = patchddm.PatchDDM.crop(x0, 8, random.Random(0))
    assert patches.shape == (4, 3, 8, 8, 8)
    assert keywords.keys() == {"coordinates"}
    assert torch.equal(patches, keywords["coordinates"])
    assert len({tuple(patch[:, 0, 0, 0].tolist()) for patch in patches}) > 1  # one per volume


def test_a_patch_is_decided_by_the_seed():
    x0 = torch.randn(2, 1, 16, 16, 16)
    first, again, other = (
        patchddm.PatchDDM.crop(x0, 8, random.Random(seed))[0] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_patches_lie_anywhere_and_mostly_in_the_middle():
    rng = random.Random(0)
    corners = [patchddm.patch_corner((256,), 128, rng)[0] for _ in range(10_000)]
    assert min(corners) == 0
    assert max(corners) == 128
    in_the_middle_half = sum(32 <= corner < 96 for corner in corners)
    assert 0.6 < in_the_middle_half / len(corners) < 0.72  # 2/3; a uniform draw would give half


def test_a_patch_of_the_whole_volume_is_the_volume_from_minus_one_to_one():
    x0 = torch.randn(2, 1, 8, 8, 8)
    whole, keywords = patchddm.PatchDDM.crop(x0, 8, random.Random(0))
    assert torch.equal(whole, x0)
    assert torch.equal(keywords["coordinates"], volume_of_coordinates(2, 8, 8, 8))
    assert torch.equal(keywords["coordinates"][0, :, 0, 0, 0], -torch.ones(3))
    assert torch.equal(keywords["coordinates"][0, :, -1, -1, -1], torch.ones(3))


def test_a_patch_larger_than_the_volume_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        patchddm.PatchDDM.crop(torch.zeros(1, 1, 16, 16, 8), 16, random.Random(0))


def test_denoises_whole_volumes_after_training_on_patches():
    torch.manual_seed(0)
    network = nudge(patchddm.build(in_channels=1, channels=WIDTHS))
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    x0, t = torch.randn(1, 1, 16, 16, 16), torch.tensor([7])
    patch, where = network.crop(x0, 8, random.Random(0))
    assert train_once(network, optimizer, patch, t, **where).isfinite()
    with torch.no_grad():
        whole = network(x0, t)
        assert whole.shape == x0.shape
        # Without coordinates, the input is the whole volume.
        assert torch.equal(whole, network(x0, t, volume_of_coordinates(1, 16, 16, 16)))


def test_the_coordinates_matter():
    network = nudge(patchddm.build(in_channels=1, channels=WIDTHS))
    x, t = torch.randn(1, 1, 8, 8, 8), torch.tensor([7])
    here = volume_of_coordinates(1, 16, 16, 16)[:, :, :8, :8, :8]
    assert not torch.allclose(network(x, t, here), network(x, t), rtol=1e-3)


def test_crops_and_trains_on_fake_tensors():
    with FakeTensorMode():
        network = patchddm.build(in_channels=1, channels=WIDTHS)
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        patch, where = network.crop(torch.randn(2, 1, 16, 16, 16), 8, random.Random(0))
        assert patch.untyped_storage().nbytes() == 4 * patch.numel()  # not a view of the volume
        train_once(network, optimizer, patch, torch.zeros(2, dtype=torch.int64), **where)
