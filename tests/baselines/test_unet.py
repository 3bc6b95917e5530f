"""The standard U-Net: as large as IDM's, and without attention."""

import pytest
from monai.networks.blocks import SpatialAttentionBlock
from torch import nn
from torch._subclasses import FakeTensorMode

from baselines import unet
from tests.baselines.training import cost_of_fake_step, parameters_of

IDM_PARAMETERS = 343_600_000  # Table 2 of the paper


def published():
    return unet.build(in_channels=1, channels=unet.PUBLISHED["channels"])


def test_has_as_many_parameters_as_idm():
    assert parameters_of(published) == 357_626_305
    assert abs(357_626_305 / IDM_PARAMETERS - 1) <= 0.05


def test_attends_nowhere():
    with FakeTensorMode():
        modules = list(published().modules())
    assert not any(isinstance(module, SpatialAttentionBlock) for module in modules)


def test_attends_in_the_middle_where_asked():
    """At 64³ that are 8³ tokens of 768 channels: four matrices and a norm more."""
    with FakeTensorMode():
        network = unet.build(in_channels=1, channels=unet.PUBLISHED["channels"], attention=True)
    found = [name for name, m in network.named_modules() if isinstance(m, SpatialAttentionBlock)]
    assert found == ["middle_block.attention"]
    added = sum(p.numel() for p in network.parameters()) - 357_626_305
    assert added == 4 * (768**2 + 768) + 2 * 768


@pytest.mark.parametrize(
    ("channels", "groups"), [((32, 64, 128, 256), 32), ((96, 192), 32), ((12, 24), 4)]
)
def test_norms_have_32_groups_or_the_most_that_fit(channels, groups):
    with FakeTensorMode():
        network = unet.build(in_channels=1, channels=channels)
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    assert {norm.num_groups for norm in norms} == {groups}


def test_one_step_on_four_64_cubed_volumes_takes_28_gib():
    assert cost_of_fake_step(published, (4, 1, 64, 64, 64)).peak / 2**30 == pytest.approx(28, 0.01)
