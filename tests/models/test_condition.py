"""A condition in IDM's lift, class labels with t, and who calls the network."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from monai.inferers import DiffusionInferer
from monai.networks.schedulers import DDIMScheduler
from torch import Tensor

from baselines import patchddm, unet
from models.idm import IDM, build, lean
from tests.models.live_storages import cost_of_step
from tests.models.test_exactness import error, stored_copy
from tests.models.test_network import NARROW, batch, perturbed

LABELS = torch.tensor([2, 0])


def conditional(dims: int = 3, kind: type[IDM] = IDM, **options) -> IDM:
    """One channel of an image, two of its condition, three classes."""
    return kind(3, NARROW, dims=dims, out_channels=1, num_class_embeds=3, **options)


def gradients(net: IDM, x: Tensor, t: Tensor) -> list[Tensor]:
    """Of the image, its condition and every parameter, those of the inverse among them."""
    x = x.detach().requires_grad_()
    eps = net(x, t, class_labels=LABELS)
    loss = (eps - torch.sin(x[:, :1])).square().mean() + (
        net.inverse(eps) - x[:, :1]
    ).square().mean()
    return list(torch.autograd.grad(loss, [x, *net.parameters()]))


@pytest.mark.parametrize("dims", [2, 3])
def test_gradients_are_exact_and_lean_has_the_same(dims):
    net = perturbed(conditional(dims).double())
    streaming = conditional(dims, lean.LeanIDM, stream_bytes=0).double()
    streaming.load_state_dict(net.state_dict())
    x, t = batch(2, 3, *(8,) * dims, dtype=torch.float64)
    ours, exact = gradients(net, x, t), gradients(stored_copy(net), x, t)
    for of_all, others in ((ours, exact), (gradients(streaming, x, t), exact)):
        assert error(of_all, others) <= 1e-10
    assert ours[0][:, 1:].abs().max() > 0  # the condition matters


@pytest.mark.parametrize("dims", [2, 3])
def test_it_starts_as_the_identity_of_the_image(dims):
    net = conditional(dims).double()
    x, t = batch(2, 3, *(8,) * dims, dtype=torch.float64)
    with torch.no_grad():
        eps = net(x, t, class_labels=LABELS)
        torch.testing.assert_close(eps, x[:, :1], rtol=0, atol=1e-5)
        apart = net.inverse(eps) - x[:, :1]  # P⁺ is an adjoint
    assert apart.norm() < 0.4 * x[:, :1].norm()


def test_without_a_condition_it_has_the_weights_that_it_had():
    nets = []
    for options in ({}, {"out_channels": 2, "num_class_embeds": None}):
        torch.manual_seed(0)
        nets.append(IDM(2, NARROW, **options).state_dict())
    assert nets[0].keys() == nets[1].keys()
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])


def test_memory_grows_by_what_is_shown_and_what_the_lift_keeps_of_it():
    """The condition's channels twice, whatever the depth and the width of the body."""
    side = 16
    shape = (2, 1, side, side, side)
    without = cost_of_step(lambda: build(channels=(32, 64, 128)), shape)
    with_it = cost_of_step(
        lambda: build(in_channels=4, out_channels=1, channels=(32, 64, 128)), shape, condition=3
    )
    kept = with_it.activations - without.activations
    # At the peak the gradients of the lift do not exist yet.
    kept += with_it.parameters - without.parameters
    assert kept == 2 * 3 * 4 * 2 * side**3


CALLS = {
    "idm": build, "idm-lean": lean.build, "unet": unet.build, "patchddm": patchddm.build,
}  # fmt: skip


@pytest.mark.parametrize("method", CALLS)
def test_monais_inferer_draws_from_it(method):
    """As it draws from MONAI's own network: condition as channels, guidance, and t as it comes."""
    torch.manual_seed(0)
    net = CALLS[method](in_channels=3, channels=(8, 16), out_channels=1, num_class_embeds=3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    scheduler = DDIMScheduler(num_train_timesteps=2000, schedule="cosine")
    scheduler.set_timesteps(2)
    draw = partial(
        DiffusionInferer(scheduler).sample, torch.randn(2, 1, 8, 8, 8),
        partial(net.eval(), class_labels=LABELS), mode="concat", verbose=False,
    )  # fmt: skip
    mask = torch.zeros(2, 2, 8, 8, 8)
    empty, full = draw(conditioning=mask), draw(conditioning=mask + 1)
    assert empty.shape == (2, 1, 8, 8, 8)
    assert not torch.allclose(empty, full)
    guided = partial(net, class_labels=LABELS.repeat(2))
    draw = partial(draw, diffusion_model=guided, conditioning=mask + 1, cfg=1.0, cfg_fill_value=0.0)
    assert torch.allclose(draw.func(draw.args[0], **draw.keywords), full, atol=1e-5)


def test_timesteps_and_labels_may_be_one_for_all():
    net = perturbed(conditional(2))
    x, _ = batch(2, 3, 8, 8)
    want = net(x, torch.tensor([7, 7]), class_labels=torch.tensor([1, 1]))
    for t in (7, torch.tensor(7), torch.tensor([7]), torch.tensor([7.0])):
        assert torch.equal(net(x, timesteps=t, context=None, class_labels=1), want)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({"timesteps": torch.zeros(3)}, r"timesteps: .* one for each of 2 samples; got \(3,\)"),
        ({"timesteps": torch.zeros(2, 1)}, r"timesteps: .*got \(2, 1\)"),
        ({"class_labels": LABELS[None]}, r"class_labels: .*got \(1, 2\)"),
        ({"class_labels": None}, "class_labels are given to"),
        ({"context": torch.zeros(2, 1, 4)}, "as channels after those of the image"),
        ({"x": torch.zeros(2, 1, 8, 8)}, r"expected \(batch, 3, 2 spatial axes\)"),
    ],
)
def test_what_is_refused_in_words(call, said):
    given = {"x": torch.zeros(2, 3, 8, 8), "timesteps": 3, "class_labels": LABELS} | call
    with pytest.raises(ValueError, match=said):
        conditional(2)(**given)


def test_more_outputs_than_inputs_are_refused():
    with pytest.raises(ValueError, match="1 to 2; got 3"):
        IDM(2, NARROW, out_channels=3)


def test_with_t_in_couplings_the_inverse_takes_t_and_labels():
    net = perturbed(conditional(2, time_in_couplings=True).double())
    x, t = batch(2, 3, 8, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match="depends on t"):
        net.inverse(x[:, :1])
    back = net.inverse(net(x, t, class_labels=LABELS), t, LABELS)
    assert back.shape == (2, 1, 8, 8)
