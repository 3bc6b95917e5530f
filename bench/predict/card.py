"""A card on paper: a device that is not the CPU, follows CUDA's rules, and needs no CUDA.

PyTorch lets Python make a device of its own (the key PrivateUse1). In `on_card` fake tensors lie on
it, and code that says `cuda` means it: `.cuda()`, `.to("cuda")`, `device="cuda"`,
`torch.autocast("cuda")`, `torch.cuda.is_available()`. What moves to the CPU leaves it.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
import torch.utils._device
from torch.overrides import TorchFunctionMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from . import attention, autocast

NAME = "card"


_ACCELERATOR = ("_get_accelerator", "_accelerator_getAccelerator")
"""Functions of `torch._C` that say which accelerator there is."""


@cache
def device() -> torch.device:
    """The card; RuntimeError where the process has another device under PyTorch's key for one."""
    answers = {name: getattr(torch._C, name)() for name in _ACCELERATOR}
    _setup_privateuseone_for_python_backend(NAME, _Module())
    # The device stays known to the process, and PyTorch would take it for the machine's
    # accelerator: FSDP, say, would put a person's own network there.
    for name, answer in answers.items():
        setattr(torch._C, name, lambda *_, answer=answer: answer)
    _kept.extend(autocast.register(NAME))
    _kept.extend(attention.register())
    _kept.append(_whole_operators())
    return torch.device(NAME, 0)


@contextmanager
def on_card(note: Callable[[str], None] = lambda text: None) -> Iterator[torch.device]:
    """While it lasts, `cuda` is the card. Enter it before `bench.predict.fake.faking`.

    Args:
        note: is told what a program does that has no effect on a card.
    """
    card = device()
    with ExitStack() as stack:
        # One thread, the caller's, runs the backward pass: PyTorch has threads for the devices that
        # were there at the first backward pass of the process, and the card may come later.
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        for target, name, replacement in _replacements(note):
            stack.enter_context(patch.object(target, name, replacement))
        stack.enter_context(_CudaIsTheCard(card))
        yield card


class _CudaIsTheCard(TorchFunctionMode):
    """Reads `cuda` as the card in whatever is called of PyTorch."""

    def __init__(self, card: torch.device) -> None:
        super().__init__()
        self.card = card

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ANSWERS:
            return _ANSWERS[func](args[0], self.card)
        if func is torch.Tensor.cuda:
            return args[0].to(self.card)
        if func in _MOVES:
            args = tuple(self._translated(arg) for arg in args)
        if "device" in kwargs:
            kwargs = {**kwargs, "device": self._translated(kwargs["device"])}
        if func is torch.tensor and kwargs.get("device") == self.card and _asked_by_an_optimizer():
            kwargs = {**kwargs, "device": "cpu"}  # its count of steps; the card is a default device
        if kwargs.get("pin_memory"):  # memory of the host; only a card's driver could pin it
            kwargs = {**kwargs, "pin_memory": False, "device": "cpu"}
        return func(*args, **kwargs)

    def _translated(self, value: Any) -> Any:
        is_cuda = (isinstance(value, torch.device) and value.type == "cuda") or (
            isinstance(value, str) and value.split(":")[0] == "cuda"
        )
        return self.card if is_cuda else value


def _asked_by_an_optimizer() -> bool:
    """Whether it is PyTorch's own that calls, past the modes that see its calls first."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith(_MODES):
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.startswith(_OPTIMIZERS)


_MODES = (os.path.dirname(__file__) + os.sep, str(torch.utils._device.__file__))
_OPTIMIZERS = os.path.dirname(str(torch.optim.__file__)) + os.sep
_MOVES = frozenset({torch.Tensor.to})
_ANSWERS: dict[Any, Callable[[torch.Tensor, torch.device], Any]] = {
    torch.Tensor.is_cuda.__get__: lambda tensor, card: tensor.device == card,  # type: ignore[attr-defined]
    torch.Tensor.pin_memory: lambda tensor, card: tensor.clone(),
    torch.Tensor.is_pinned: lambda tensor, card: False,
}


def _replacements(note: Callable[[str], None]) -> Iterator[tuple[Any, str, Any]]:
    """What a program asks PyTorch about CUDA, answered for the card."""
    yield torch.cuda, "is_available", lambda: True
    yield torch.cuda, "device_count", lambda: 1
    yield torch.cuda, "current_device", lambda: 0
    yield torch.cuda, "is_bf16_supported", lambda *_, **__: True
    yield torch.cuda, "get_device_capability", lambda *_: attention.CAPABILITY.get()
    yield torch.cuda, "synchronize", lambda *_: None
    # Optimizers ask; a CUDA build without a driver cannot answer.
    yield torch.cuda, "is_current_stream_capturing", lambda: False
    for name in ("is_autocast_enabled", "get_autocast_dtype", "set_autocast_dtype"):
        yield torch, name, _of_the_card(getattr(torch, name))
    enable = _of_the_card(torch.set_autocast_enabled)

    def set_enabled(*args: Any) -> None:
        if args[0] == "cpu" and args[1]:
            note("torch.autocast('cpu') changes nothing on a card: say torch.autocast('cuda')")
        enable(*args)

    yield torch, "set_autocast_enabled", set_enabled
    clear = torch.clear_autocast_cache

    def clear_both() -> None:
        clear()
        autocast.forget_casts()

    yield torch, "clear_autocast_cache", clear_both


def _of_the_card(function: Callable[..., Any]) -> Callable[..., Any]:
    """Of `function(device_type, …)`: the card's where CUDA is asked for, by name or by default."""

    def translated(*args: Any) -> Any:
        if not args or not isinstance(args[0], str):
            args = "cuda", *args
        return function(NAME if args[0] == "cuda" else args[0], *args[1:])

    return translated


def _whole_operators() -> torch.library.Library:
    """Operators that CPU and CUDA have in one piece, and an unknown device only as several."""
    library = torch.library.Library("aten", "IMPL", "PrivateUse1")
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    for name in torch._C._dispatch_get_all_op_names():
        whole = has_kernel(name, "CPU") and has_kernel(name, "CompositeImplicitAutograd")
        if whole and name.startswith("aten::"):
            library.impl(name.removeprefix("aten::"), _never_called)
    return library


def _never_called(*args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError("the card has fake tensors only")


_kept: list[torch.library.Library] = []  # a registration ends with its object


class _Module:
    """`torch.card`, with what PyTorch asks of a device's module."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    # Of no effect, but that a probe sees which is the current one.
    Stream, Event = torch.cpu.Stream, torch.cpu.Event
    stream, current_stream = staticmethod(torch.cpu.stream), staticmethod(torch.cpu.current_stream)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16, torch.float32]

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.empty(16, dtype=torch.uint8, device="cpu")  # of CUDA: a seed and an offset

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        pass

    @contextmanager
    def device(self, index: Any) -> Iterator[None]:
        yield

    def _is_in_bad_fork(self) -> bool:
        return False
