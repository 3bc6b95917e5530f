"""A training as a file, and back, to the last bit.

`<method>-<seed>.safetensors` holds tensors by name and one JSON value; nothing in it can run.

    network.<name>                      weights and buffers
    ema.<parameter>                     their moving average
    optimizer.<parameter>.<state>       whatever the optimizer keeps, in its own dtype
    rng.torch, rng.cuda                 states of PyTorch's generators, uint8
    metadata "progress"                 `Progress`, as JSON

It is read into a training that was built before: names, shapes and dtypes must be those that the
training has, or nothing is read.
"""

import json
import math
import os
import random
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..ddpm.step import make_state
from ..errors import UserError
from ..records.files import from_json
from .ema import Ema

MOST_HEADER_BYTES = 2**24
_MOST_STEPS = 10**8
# Of Adam, Adafactor, the moments in bytes; of batch normalisation.
_NEVER_NEGATIVE = re.compile(r"optimizer\..*(_sq|_var|\.variance|_scales)|network\..*running_var")


@dataclass
class Progress:
    """How far a training has come, beside its tensors."""

    method: str
    seed: int
    step: int = 0
    """Steps done; as many batches have been drawn from the order of the data."""
    validations: int = 0
    """Of the planned ones, those that are over."""
    elapsed_s: float = 0.0
    """Of training."""
    energy_j: float | None = 0.0
    """Of training; None once a part of it could not be measured."""
    energy_source: str | None = None
    loss_sum: float = 0.0
    loss_count: int = 0
    """Of the steps since the last validation."""
    val_mse: float | None = None
    val_mse_ema: float | None = None
    """Of the last validation."""
    peak: dict[str, int | str] = field(default_factory=dict)
    """Columns of the one step whose memory was followed (`bench.records.rows.Peak`)."""


@dataclass(frozen=True)
class _Header:
    progress: Progress
    python_rng: tuple[int, ...]
    """State of the generator of patches (Python's Mersenne twister)."""


class Checkpoint:
    """The file of one training.

    Args:
        rng: where the training's patches come from.
        device: whose generator the noise comes from.
    """

    def __init__(
        self,
        path: Path,
        network: nn.Module,
        ema: Ema,
        optimizer: torch.optim.Optimizer,
        rng: random.Random,
        device: torch.device,
    ) -> None:
        self.path = path
        self.network, self.ema, self.optimizer = network, ema, optimizer
        self.rng, self.device = rng, device

    def write(self, progress: Progress) -> None:
        """Whole or not at all, and on the disk when it returns; UserError where that fails."""
        _, state, _ = self.rng.getstate()
        header = json.dumps(asdict(_Header(progress, state)))
        tensors = {name: tensor.contiguous() for name, tensor in self._tensors().items()}
        owners = {tensor.data_ptr(): name for name, tensor in tensors.items()}
        for name, tensor in tensors.items():  # one parameter by two names, as iUNets has them
            if owners[tensor.data_ptr()] != name:
                tensors[name] = tensor.clone()
        part = self.path.with_name(self.path.name + ".part")
        try:
            self.path.parent.mkdir(exist_ok=True)
            save_file(tensors, part, metadata={"progress": header})
            with part.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(part, self.path)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            reason = getattr(error, "strerror", None) or _one_line(error)
            raise UserError(f"{self.path}: cannot be written ({reason})") from None

    def read(self, method: str, seed: int) -> Progress | None:
        """Put the training where it was when the file was written; None if there is no file.

        Raises UserError for what is not a checkpoint of this very training, which has then to be
        built anew.
        """
        if not self.path.exists():
            return None
        make_state(self.optimizer)  # so that it is known what there must be
        self.optimizer.zero_grad(set_to_none=True)
        with _refusing(self.path, "this training", "remove it to train from the start"):
            header, found = self._load(self._tensors())
            _check(header.progress, method, seed)
            _check_values(found, header.progress.step)
            self._restore(header, found)
        return header.progress

    def _load(self, wanted: dict[str, Tensor]) -> tuple[_Header, dict[str, Tensor]]:
        most = sum(tensor.nbytes for tensor in wanted.values()) + MOST_HEADER_BYTES
        with _opened(self.path, most) as file:
            for name in sorted(wanted.keys() ^ set(file.keys())):
                raise ValueError(f"it {'lacks' if name in wanted else 'has'} {name[:80]!r}")
            return _header(file), {name: _tensor(file, name, wanted[name]) for name in wanted}

    @torch.no_grad()
    def _restore(self, header: _Header, found: dict[str, Tensor]) -> None:
        # The generators first: only they can still refuse.
        self.rng.setstate((3, header.python_rng, None))
        torch.set_rng_state(found.pop("rng.torch"))
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(found.pop("rng.cuda"), self.device)
        for name, tensor in self._in_place().items():
            tensor.copy_(found[name])
        for name, state, key in self._numbers():
            state[key] = int(found[name])

    def _tensors(self) -> dict[str, Tensor]:
        numbers = {name: torch.tensor(state[key]) for name, state, key in self._numbers()}
        generators = {"rng.torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            generators["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        return self._in_place() | numbers | generators

    def _in_place(self) -> dict[str, Tensor]:
        """The tensors that the training itself works on."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"ema.{name}": value for name, value in self.ema.means.items()}
        for name, state in self._optimizer_state():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"{name}.{key}"] = value
        return tensors

    def _numbers(self) -> list[tuple[str, dict, str]]:
        """Whole numbers that the optimizer keeps beside its tensors: name, and where they are."""
        return [
            (f"{name}.{key}", state, key)
            for name, state in self._optimizer_state()
            for key, value in state.items()
            if isinstance(value, int)
        ]

    def _optimizer_state(self) -> list[tuple[str, dict]]:
        return [
            (f"optimizer.{name}", self.optimizer.state[parameter])
            for name, parameter in self.network.named_parameters()
            if parameter in self.optimizer.state
        ]


def load_averages(path: Path, network: nn.Module, method: str, seed: int) -> Progress:
    """Give a network the averaged weights, and the buffers, of its training's checkpoint.

    Raises:
        UserError: there is no file, or it is not of this training, of a network like this.
    """
    averaged = {name for name, value in network.named_parameters() if value.requires_grad}
    wanted = {
        f"{'ema' if name in averaged else 'network'}.{name}": value
        for name, value in network.state_dict().items()
    }
    with _refusing(path, f"{method}, seed {seed}", "train it again"):
        with _opened(path) as file:
            progress = _header(file).progress
            _check(progress, method, seed)
            found = {name: _tensor(file, name, value) for name, value in wanted.items()}
        _check_values(found, progress.step)
        with torch.no_grad():
            for name, value in wanted.items():
                value.copy_(found[name])
    return progress


@contextmanager
def _refusing(path: Path, what: str, remedy: str) -> Iterator[None]:
    """Whatever is wrong with a file becomes one line."""
    try:
        yield
    except (OSError, SafetensorError, RecursionError, ValueError, TypeError, KeyError,
            OverflowError, RuntimeError) as error:  # fmt: skip
        raise UserError(
            f"{path}: not a checkpoint of {what} ({_one_line(error)}); {remedy}"
        ) from None


@contextmanager
def _opened(path: Path, most_bytes: int | None = None) -> Iterator[Any]:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would keep us waiting
        raise ValueError("not a file")
    if most_bytes is not None and status.st_size > most_bytes:
        raise ValueError(f"{status.st_size} bytes are more than it can have")
    with safe_open(path, framework="pt") as file:
        yield file


def _header(file: Any) -> _Header:
    return from_json(_Header, json.loads((file.metadata() or {})["progress"]))


def _tensor(file: Any, name: str, like: Tensor) -> Tensor:
    """Read only once its shape is known to be the right one."""
    shape = tuple(file.get_slice(name).get_shape())
    if shape != tuple(like.shape):
        raise ValueError(f"{name} is {shape}, not {tuple(like.shape)}")
    found = file.get_tensor(name)
    if found.dtype != like.dtype:
        raise ValueError(f"{name} is {found.dtype}, not {like.dtype}")
    return found


def _check(progress: Progress, method: str, seed: int) -> None:
    """ValueError for another training's, and for numbers that no training writes."""
    if (progress.method, progress.seed) != (method, seed):
        raise ValueError(f"it is of {progress.method:.40} {progress.seed}")
    counts = (progress.step, progress.validations, progress.loss_count)
    if not all(0 <= count <= _MOST_STEPS for count in counts):
        raise ValueError("it has a count out of range")
    numbers = (progress.elapsed_s, progress.energy_j or 0.0, progress.loss_sum)
    if not all(math.isfinite(number) for number in numbers) or progress.elapsed_s < 0:
        raise ValueError("it has a time, an energy or a loss out of range")


def _check_values(tensors: dict[str, Tensor], step: int) -> None:
    """ValueError for values that no training that goes on has, in tensors of the right shapes."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{name} has values that are not finite")
        if _NEVER_NEGATIVE.fullmatch(name) and (tensor < 0).any():
            raise ValueError(f"{name} has negative values, which it cannot have")
        if name.startswith("optimizer.") and name.endswith(".step") and int(tensor) != step:
            raise ValueError(f"{name} is {int(tensor)}, and the training's step {step}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
