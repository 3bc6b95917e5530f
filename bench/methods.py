"""The registry: a method's name -> how to build it. To add one: one file, and one line here.

The file offers `build(*, in_channels, channels, couplings) -> nn.Module`, the network
`eps = network(x_t, t)` of shapes (B, C, D, H, W), (B,) int64 -> (B, C, D, H, W), and `PUBLISHED`,
its authors' setting (keys of `bench.presets.Workload`). It imports nothing of this package. What a
network may offer beside `forward`, the training step uses (`bench/ddpm/step.py`).
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from types import MappingProxyType
from typing import Any

from torch import nn

from .ddpm.step import Training
from .errors import UserError
from .presets import Overrides, Workload, workload

# `models` and `baselines` stand beside this package in a checkout, and inside it in a wheel.
_ROOT = "" if __package__ == "bench" else f"{__package__}."


@dataclass(frozen=True)
class Method:
    """A way to train the denoiser: a network and a memory strategy, by name."""

    name: str
    builder: Callable[..., nn.Module]
    published: Mapping[str, Any]

    def workload(self, preset: str, overrides: Overrides | None = None) -> Workload:
        """What this method trains on in `preset`; raises UserError where it cannot."""
        work = workload(preset, self.published, overrides)
        multiple = 2 ** (len(work.channels) - 1)  # each level but the last halves the sides
        if work.patch % multiple:
            side, flag = (
                (work.volume, "volume") if work.patch == work.volume else (work.patch, "patch")
            )
            raise UserError(
                f"--{flag} {side}: {self.name} halves the sides {len(work.channels) - 1} times, "
                f"so it can train on multiples of {multiple} "
                f"(the nearest: {', '.join(map(str, _nearest_multiples(side, multiple)))})"
            )
        return work

    def build(self, work: Workload) -> nn.Module:
        """The network for `work`, on the default device, in training mode."""
        return self.builder(
            in_channels=len(work.modality), channels=work.channels, couplings=work.couplings
        ).train()


def _method(name: str, module: str, **options: Any) -> Method:
    found = import_module(_ROOT + module)
    return Method(name, partial(found.build, **options), found.PUBLISHED)


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.name: method
        for method in (
            _method("unet", "baselines.unet"),
            _method("checkpoint", "baselines.checkpoint"),
            _method("patchddm", "baselines.patchddm"),
            _method("idm", "models.idm"),
            _method("idm-lean", "models.idm.lean"),
            _method("idm-stored", "models.idm", backward="stored"),
        )
    }
)


def find_methods(names: Sequence[str]) -> list[Method]:
    """The methods of these names, in this order, each once; UserError for an unknown one."""
    for name in names:
        if name not in METHODS:
            near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(
                f"--models {name}: unknown method{hint or ';'} Known: {', '.join(METHODS)}"
            )
    return [METHODS[name] for name in dict.fromkeys(names)]


def preset_changes(
    method: Method, preset: str, overrides: Overrides, work: Workload, training: Training
) -> str:
    """What of `work` and `training` is not as the preset has it: "channels 8 16, couplings 6".

    "none" where all is; the seed belongs to no preset. Modalities count where they were asked for.
    """
    own: dict[str, Any] = asdict(method.workload(preset)) | asdict(Training(seed=training.seed))
    if overrides.modality is None:
        own.pop("modality")
    changes = []
    for name, value in (asdict(work) | asdict(training)).items():
        if name in own and value != own[name]:
            text = " ".join(map(str, value)) if isinstance(value, tuple) else value
            changes.append(f"{name} {text}")
    return ", ".join(changes) or "none"


def _nearest_multiples(side: int, multiple: int) -> list[int]:
    below = side // multiple * multiple
    return [value for value in (below, below + multiple) if value > 0]
