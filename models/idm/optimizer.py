"""AdamW with its state in 8 bits, and inside the backward pass.

The two moments take a byte each, with one scale per block of 256 (Dettmers et al. 2021,
arXiv:2110.02861). In the backward pass every gradient is applied and freed as soon as it is
complete, so that the gradients of a whole network never exist together (Lv et al. 2023,
arXiv:2306.09782).

Only tensor operations of a fixed shape: it runs on every device and on fake tensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

BLOCK = 256
ROWS = 12288  # blocks updated at a time: temporaries stay below 60 MiB, few operators run
GOLDEN = 0.6180339887498949
KIND = "exact"  # of the updates in the backward pass; bytes are rounded
_STATE = ("exp_avg_codes", "exp_avg_scales", "root_codes", "root_scales")


class LogQuantizer:
    """Numbers as bytes: a scale per block of 256, and logarithmic steps below it.

    Rounding is dithered: up or down with the right frequency, so that a moving average whose steps
    are smaller than those of the code still moves. Without it the second moment, which loses 0.1 %
    a step, would round back to where it was for ever.

    Args:
        signed: 127 steps each side of zero, or 256 steps on one side without a zero.
        octaves: how far the steps reach below the largest number of the block, in powers of 2.
    """

    def __init__(self, signed: bool, octaves: float) -> None:
        self.signed = signed
        self.top = 127 if signed else 255
        self.step = octaves / self.top  # octaves between neighbouring codes

    def zeros(self, blocks: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Codes (blocks, 256) and scales (blocks, 1)."""
        dtype = torch.int8 if self.signed else torch.uint8
        return (
            torch.zeros(blocks, BLOCK, dtype=dtype, device=device),
            torch.zeros(blocks, 1, device=device),
        )

    def decode(self, codes: Tensor, scales: Tensor) -> Tensor:
        levels = codes.float()
        if not self.signed:
            return levels.sub_(self.top).mul_(self.step).exp2_().mul_(scales)
        sign = levels.sign()
        return levels.abs_().sub_(self.top).mul_(self.step).exp2_().mul_(sign).mul_(scales)

    def encode(self, values: Tensor, codes: Tensor, scales: Tensor, dither: Tensor) -> None:
        """Write values (blocks, 256) to codes and scales; dither in [0, 1), of that shape."""
        magnitudes = values.abs()
        scales.copy_(magnitudes.amax(dim=1, keepdim=True)).clamp_min_(1e-38)
        ratio = magnitudes.div_(scales)
        level = ratio.clamp_min_(1e-38).log2_().div_(self.step).add_(self.top)
        below = level.floor()
        # How far from the code below to the one above, measured on the numbers, not their logs.
        part = level.sub_(below).mul_(self.step).exp2_().sub_(1).div_(2**self.step - 1)
        level = below.add_(part.gt_(dither)).clamp_(0, self.top)
        codes.copy_(level.copysign_(values) if self.signed else level)


class Dither:
    """Numbers in [0, 1), evenly spread over (rows, 256), others in every step.

    They draw nothing from the generators, so that training is the same with and without them.
    """

    def __init__(self, device: torch.device) -> None:
        self.down = self._multiples(ROWS, 2**0.5, device)[:, None]
        self.across = self._multiples(BLOCK, GOLDEN, device)

    def __call__(self, rows: int, step: int) -> Tensor:
        return ((self.across + step * 3**0.5 % 1) + self.down[:rows]).frac_()

    @staticmethod
    def _multiples(count: int, of: float, device: torch.device) -> Tensor:
        return (torch.arange(count, device=device, dtype=torch.float64) * of).frac().float()


class AppliedGradient(Tensor):
    """What stands in `.grad` between `backward()` and `step()`: no numbers, and no memory.

    What needs the numbers (clipping, unscaling, a second backward pass) gets an error that says so.
    """

    @staticmethod
    def __new__(cls, parameter: Tensor) -> AppliedGradient:
        return Tensor._make_wrapper_subclass(
            cls, parameter.shape, dtype=parameter.dtype, device=parameter.device
        )

    def __repr__(self) -> str:  # type: ignore[override]
        return f"AppliedGradient(shape={tuple(self.shape)})"

    @classmethod
    def __torch_dispatch__(cls, *_: Any, **__: Any) -> Any:
        raise RuntimeError(
            "AdamWInBackward has applied and freed this gradient in backward(): it cannot be "
            "clipped, unscaled, or added to by a second backward(). Call optimizer.step() after "
            "each backward(); to clip or accumulate gradients, train with torch.optim.AdamW "
            "(IDM instead of LeanIDM, or LeanIDM without make_optimizer)."
        )


class ByteAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with a byte per moment.

    Args:
        parameters: what to train.
        lr, betas, eps, weight_decay: as in `torch.optim.AdamW`.
        lambda_l2: weight of ‖W‖₂ in eq. (8); its gradient W / ‖W‖₂ is added in closed form, with
            the norm at the start of the step.
        eight_bit: moments as bytes; False keeps float32. Tensors of fewer than 4,096 elements
            always keep float32: they are where a byte would hurt and save nothing.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        lambda_l2: float = 0.0,
        eight_bit: bool = True,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)
        self.lambda_l2 = lambda_l2
        self.eight_bit = eight_bit
        # The root of the second moment needs half the range of the moment itself.
        self.quantizers = LogQuantizer(True, octaves=20), LogQuantizer(False, octaves=24)
        self.pull: Tensor | None = None
        devices = {p.device for group in self.param_groups for p in group["params"]}
        self.dither = {device: Dither(device) for device in devices if eight_bit}
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = self._new_state(parameter)

    @property
    def constants(self) -> list[Tensor]:
        """What it keeps beside its state."""
        return [table for each in self.dither.values() for table in (each.down, each.across)]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.pull = self._weight_pull() if self.lambda_l2 else None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        self.pull = None
        return loss

    def _weight_pull(self) -> Tensor:
        weights = [p.detach() for group in self.param_groups for p in group["params"]]
        return self.lambda_l2 / torch.nn.utils.get_total_norm(weights)

    @torch.no_grad()
    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        state = self.state[parameter]
        state["step"] += 1
        if "exp_avg" in state:
            weights, gradient = parameter.view(-1), parameter.grad.reshape(-1)
            moments = state["exp_avg"], state["root_exp_avg_sq"]
            self._adamw(weights, gradient, *moments, state["step"], group)
            return
        # The same for every chunk of a tensor: they have it in turns.
        dither = self.dither[parameter.device](min(len(state["root_codes"]), ROWS), state["step"])
        states = (state[name].split(ROWS) for name in _STATE)
        chunks = parameter.view(-1).split(ROWS * BLOCK)
        grads = parameter.grad.reshape(-1).split(ROWS * BLOCK)
        of_first, of_root = self.quantizers
        for chunk, grad, *codes in zip(chunks, grads, *states, strict=True):
            first, root = of_first.decode(*codes[:2]), of_root.decode(*codes[2:])
            flat = first.view(-1)[: len(chunk)], root.view(-1)[: len(chunk)]
            self._adamw(chunk, grad, *flat, state["step"], group)
            of_first.encode(first, codes[0], codes[1], dither[: len(first)])
            of_root.encode(root, codes[2], codes[3], dither[: len(root)])
            del first, root  # or they would live on beside the next chunk's

    def _adamw(
        self, weights: Tensor, grad: Tensor, first: Tensor, root: Tensor, step: int, group: dict
    ) -> None:
        """One update of flat tensors, in place; `root` is that of the second moment."""
        (beta1, beta2), lr = group["betas"], group["lr"]
        if self.pull is not None:
            grad = (weights * self.pull).add_(grad)
        first.lerp_(grad, 1 - beta1)
        root.square_().mul_(beta2).addcmul_(grad, grad, value=1 - beta2).sqrt_()
        del grad
        weights.mul_(1 - lr * group["weight_decay"])
        denominator = root.div((1 - beta2**step) ** 0.5).add_(group["eps"])
        weights.addcdiv_(first, denominator, value=-lr / (1 - beta1**step))

    def _new_state(self, parameter: Tensor) -> dict[str, Any]:
        if not self.eight_bit or parameter.numel() < 4096:
            zeros = torch.zeros_like(parameter.detach()).flatten()
            return {"step": 0, "exp_avg": zeros, "root_exp_avg_sq": zeros.clone()}
        blocks = -(-parameter.numel() // BLOCK)
        codes = (quantizer.zeros(blocks, parameter.device) for quantizer in self.quantizers)
        return {"step": 0, **dict(zip(_STATE, itertools.chain(*codes), strict=True))}


class AdamWInBackward(ByteAdamW):
    """`ByteAdamW` that updates while gradients appear.

    Each `backward()` is a step: gradients are gone when it returns, and cannot be clipped or
    accumulated. `step()` closes it; a second `backward()` before that is refused, as is clipping
    (RuntimeError).
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.hooks = [
            parameter.register_post_accumulate_grad_hook(self._hook(group))
            for group in self.param_groups
            for parameter in group["params"]
        ]

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        if closure is not None:
            raise ValueError("the gradients were applied in backward(): there is no closure to run")
        self.zero_grad()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Close the step; there is nothing to set to zero."""
        self.pull = None
        super().zero_grad(set_to_none=True)

    def detach(self) -> None:
        """Stop updating: backward() leaves gradients in `.grad` again."""
        for hook in self.hooks:
            hook.remove()

    def _hook(self, group: dict[str, Any]) -> Callable[[Tensor], None]:
        def apply(parameter: Tensor) -> None:
            if parameter.grad is None:  # autograd came by without one
                return
            if self.pull is None and self.lambda_l2:
                self.pull = self._weight_pull()
            self._update(parameter, group)
            parameter.grad = AppliedGradient(parameter)

        return apply


def make_optimizer(
    network: nn.Module,
    *,
    learning_rate: float,
    lambda_l2: float = 0.0,
    eight_bit: bool = False,
    in_backward: bool = False,
) -> ByteAdamW:
    """For any network; the couplings of an IDM let go of each gradient as soon as it is there."""
    trained = [p for p in network.parameters() if p.requires_grad]
    if not in_backward:
        return ByteAdamW(trained, learning_rate, lambda_l2=lambda_l2, eight_bit=eight_bit)
    for module in network.modules():
        if hasattr(module, "accumulate_at_once"):
            module.accumulate_at_once()  # type: ignore[operator]
    return AdamWInBackward(trained, learning_rate, lambda_l2=lambda_l2, eight_bit=eight_bit)
