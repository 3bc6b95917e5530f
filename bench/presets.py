"""The named workloads: what each method trains on."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Literal

from .errors import UserError

Precision = Literal["fp32", "bf16"]
Sampler = Literal["ddpm", "ddpm-clipped", "ddpm-mean", "ddim"]


@dataclass(frozen=True)
class Workload:
    """What one method is asked to train on. Sides are in voxels, of a cube."""

    volume: int
    """Side of a whole volume."""
    patch: int
    """Side of what one step sees: the volume's, or less for a method that trains on patches."""
    batch_size: int
    """Volumes (or patches) in a step."""
    channels: tuple[int, ...]
    """Width of each level of the network, finest first."""
    couplings: int
    """Couplings a level and branch, for invertible networks; the others ignore it."""
    precision: Precision
    """fp32, or the 16-bit type of autocast; weights are float32 in either case."""
    modality: tuple[str, ...] = ("t1",)
    """MRI contrasts, one channel each."""


@dataclass(frozen=True)
class Preset:
    """A named workload. What it leaves open, each method's published setting fills."""

    summary: str
    common: Mapping[str, Any]
    """Values for every method."""
    from_method: frozenset[str] = field(default_factory=frozenset)
    """Values that a method's own published setting decides."""
    patches: bool = False
    """Whether a method that trains on patches does so, or is given the whole volume."""


_SHARED = {"couplings": 2, "precision": "fp32"}

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "small": Preset(
            "32³, batch 2, channels (32, 64, 128, 256), fp32: a laptop, CI",
            {**_SHARED, "volume": 32, "batch_size": 2, "channels": (32, 64, 128, 256)},
            patches=True,
        ),
        "paper": Preset(
            "each method in its own published setting: Table 2, Figures 3 to 5",
            {**_SHARED, "volume": 64, "batch_size": 4},
            from_method=frozenset({"volume", "batch_size", "channels", "couplings", "precision"}),
            patches=True,
        ),
        "equal": Preset(
            "the very same tensor for every method: 64³, batch 4, fp32",
            {**_SHARED, "volume": 64, "batch_size": 4},
            from_method=frozenset({"channels", "couplings"}),
        ),
        "full-volume": Preset(
            "one whole 256³ volume, batch 1: what fits at all",
            {**_SHARED, "volume": 256, "batch_size": 1},
            from_method=frozenset({"channels", "couplings"}),
        ),
    }
)


@dataclass(frozen=True)
class Overrides:
    """Values of the workload that a flag replaced; None leaves the preset's."""

    volume: int | None = None
    """Side of the volumes, in voxels."""
    patch: int | None = None
    """Side of the patches, for methods that train on patches."""
    batch_size: int | None = None
    """Volumes in a step."""
    channels: tuple[int, ...] | None = None
    """Width of each level, finest first."""
    couplings: int | None = None
    """Couplings a level and branch, for invertible networks."""
    precision: Precision | None = None
    """fp32, or 16-bit autocast."""
    modality: tuple[Literal["t1", "t2"], ...] | None = None
    """MRI contrasts: t1, t2, or both."""


def workload(
    preset: str, published: Mapping[str, Any], overrides: Overrides | None = None
) -> Workload:
    """The workload of one method: preset, then its published setting, then the flags.

    `published` is the method's own setting (keys of `Workload`). A patch keeps the published
    ratio to the volume (PatchDDM-3D: 128 of 256) unless a flag names it.
    """
    if preset not in PRESETS:
        raise UserError(f"--preset {preset}: unknown; the presets are {', '.join(PRESETS)}")
    chosen = PRESETS[preset]
    given = {
        f.name: value
        for f in fields(Overrides)
        if overrides is not None and (value := getattr(overrides, f.name)) is not None
    }
    values = {
        **chosen.common,
        **{key: published[key] for key in chosen.from_method if key in published},
        **given,
    }
    for name in ("volume", "batch_size", "couplings", "patch"):
        if values.get(name, 1) < 1:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} {values[name]}: must be at least 1")
    if any(width < 1 for width in values["channels"]):
        raise UserError("--channels: every width must be at least 1")
    trains_on_patches = "patch" in published
    if not trains_on_patches:
        values["patch"] = values["volume"]
    elif "patch" not in given:
        ratio = published["patch"] / published["volume"] if chosen.patches else 1
        values["patch"] = max(1, round(values["volume"] * ratio))
    if values["patch"] > values["volume"]:
        raise UserError(
            f"--patch {values['patch']}: larger than the volume ({values['volume']}); "
            f"give --patch {values['volume']} or less"
        )
    return replace(Workload(**values), channels=tuple(values["channels"]))
