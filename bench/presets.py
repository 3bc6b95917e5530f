"""The named workloads: what each method trains on, and the ranges of what can be typed."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args, get_type_hints

from annotated_types import Interval

from .errors import UserError
from .sizes import Shape

# A type names its range: for the flags (`check_ranges`) and for what comes in as JSON (pydantic).
Count = Annotated[int, Interval(ge=1, le=2**20)]
Sides = Annotated[Shape, Interval(ge=1, le=2**20)]
CountOr0 = Annotated[int, Interval(ge=0, le=2**20)]
Samples = Annotated[int, Interval(ge=1, le=10_000)]
Cards = Annotated[int, Interval(ge=1, le=4096)]
Couplings = Annotated[int, Interval(ge=1, le=1024)]
Bytes = Annotated[int, Interval(ge=0, le=2**50)]
Seed = Annotated[int, Interval(ge=0, le=2**31)]
Minutes = Annotated[float, Interval(gt=0, le=525_600)]
Seconds = Annotated[float, Interval(gt=0, le=31_536_000)]
SecondsOr0 = Annotated[float, Interval(ge=0, le=31_536_000)]
Hertz = Annotated[float, Interval(gt=0, le=1000)]
Weight = Annotated[float, Interval(ge=0, le=1e9)]
Decay = Annotated[float, Interval(ge=0, lt=1)]
Share = Annotated[float, Interval(ge=0, le=1)]
Guidance = Annotated[float, Interval(ge=0, le=1000)]
Intensity = Annotated[float, Interval(ge=-1e9, le=1e9)]

Precision = Literal["fp32", "bf16", "fp16"]
Match = Literal["parameters", "flops"]
Dims = Literal[2, 3]
Target = Literal["eps", "v", "x0"]
Sampler = Literal["ddpm", "ddpm-clipped", "ddpm-mean", "ddim"]


@dataclass(frozen=True)
class Workload:
    """What one method is asked to train on."""

    volume: Sides
    """Shape of a whole volume, in voxels."""
    patch: Sides
    """Shape of what one step sees: the volume's, or less for a method that trains on patches, or
    with two dims."""
    batch_size: Count
    """Volumes (or patches) in a step."""
    channels: tuple[Count, ...]
    """Width of each level of the network, finest first."""
    couplings: Couplings
    """Couplings a level and branch, for invertible networks; the others ignore it."""
    precision: Precision
    """fp32, or the 16-bit type of autocast; weights are float32 in either case."""
    dims: Dims = 3
    """3; or 2: the network sees one axial slice of a volume, (B, C, D, H)."""
    modality: tuple[str, ...] = ("t1",)
    """MRI contrasts, one channel each."""
    condition: tuple[str, ...] = ()
    """Channels after those, which the network is shown as they are."""
    classes: CountOr0 = 0
    """Class labels that a volume may have; 0: it has none."""
    drop_condition: Share = 0.0
    """Of the volumes of a training, the share that is shown without condition and label."""
    target: Target = "eps"
    """What the network predicts (`bench.ddpm.diffusion`)."""
    micro_batch: Count | None = None
    """Volumes that pass through the network at a time (`accumulate`); None: the whole batch."""
    offload_bytes: Bytes | None = None
    """Saved tensors of at least so many bytes go to the host (`offload`); None: none do."""
    memory_budget: Share | None = None
    """Share of the activations that `compile` may store; None: the method does not compile."""
    padded_from: Sides | None = None
    """Shape of the data in a volume that --pad made larger; the rest is 0."""
    match: Match | None = None
    """What of IDM's the networks that nobody published have, within 5 %; None: typed widths."""

    def __post_init__(self) -> None:
        _make_shapes(self)

    @property
    def shown_channels(self) -> int:
        """Of the image and of the condition."""
        return len(self.modality) + len(self.condition)

    @property
    def grid(self) -> tuple[int, ...]:
        """Sides of what is drawn: a volume, or an axial slice of it."""
        return self.volume.sides[: self.dims]

    @property
    def is_conditional(self) -> bool:
        return bool(self.condition or self.classes)


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
            "32³, batch 2, fp32, IDM of channels (32, 64, 128, 256): a laptop, CI",
            {**_SHARED, "volume": 32, "batch_size": 2, "channels": (32, 64, 128, 256)},
            patches=True,
        ),
        "paper": Preset(
            "each method in its own published setting: Table 2, Figures 3 to 5",
            {**_SHARED, "volume": 64, "batch_size": 4},
            from_method=frozenset(
                {"volume", "batch_size", "channels", "couplings", "precision", "target"}
            ),
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

    volume: Sides | None = None
    """Shape of the volumes, in voxels: 64 for a cube, 160x192x160 (left-right, back-front,
    down-up)."""
    patch: Sides | None = None
    """Shape of the patches, for methods that train on patches."""
    dims: Dims | None = None
    """2: networks of images, on a random axial slice of each volume; None: 3."""
    pad: bool = False
    """Put a rim of zeros around volumes whose sides a method cannot train on, up to the next that
    it can."""
    batch_size: Count | None = None
    """Volumes in a step."""
    channels: tuple[Count, ...] | None = None
    """Width of each level, finest first; of all methods."""
    match: Match | None = None
    """The U-Net, whose widths no paper prescribes, has IDM's parameters, or the FLOPs of its step,
    within 5 %; None: parameters."""
    couplings: Couplings | None = None
    """Couplings a level and branch, for invertible networks."""
    precision: Precision | None = None
    """fp32; bf16 or fp16, 16-bit autocast."""
    modality: tuple[str, ...] | None = None
    """Images to learn, a channel each: t1, t2; of BraTS also t1ce, flair; with --data nifti a name
    and the glob of its files, t1=*_T1w.nii.gz, or a column of the manifest."""
    condition: tuple[str, ...] | None = None
    """What the network is given beside the noise: other images and masks, named like modalities, a
    channel for each label of a mask; a column of class labels of the manifest."""
    target: Target | None = None
    """What the network predicts: eps, the noise; x0, the volume; v, a mixture of both."""
    drop_condition: Share | None = None
    """Share of the training volumes that are shown without their condition, for guidance."""
    micro_batch: Count | None = None
    """Volumes at a time, for `accumulate`; None: 1."""
    offload_bytes: Bytes | None = None
    """Bytes from which on a saved tensor goes to the host, for `offload`; None: 1 MiB."""
    memory_budget: Share | None = None
    """Share of the activations to store, for `compile`, 0 to 1; None: 1."""

    def __post_init__(self) -> None:
        _make_shapes(self)


@dataclass(frozen=True)
class Reading:
    """How scans become volumes, for --data brats and nifti."""

    window: tuple[Intensity, Intensity] | None = None
    """Intensities that become 0 and 1, such as -1000 1000 of a CT; None: 0.5 and 99.5 percentiles
    of the head."""
    spacing: str | None = None
    """Millimetres of a voxel: 1.5, or 1x1x3; None: such that the head fills the volume."""


_OF_TECHNIQUES = frozenset({"micro_batch", "offload_bytes", "memory_budget"})


def name_columns(typed: Sequence[str], flag: str) -> dict[str, str | None]:
    """Name -> glob or None, of `t1=*_T1w.nii.gz` or `t1`; UserError for what is neither."""
    columns: dict[str, str | None] = {}
    for each in typed:
        name, equals, glob = each.partition("=")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,40}", name) or (equals and not glob):
            raise UserError(f"{flag} {each}: give a name (t1), or a name and a glob (t1=*_T1w.nii)")
        if name in columns:
            raise UserError(f"{flag} {' '.join(typed)}: name each modality once")
        columns[name] = glob or None
    return columns


def parse_spacing(text: str | None) -> tuple[float, float, float] | None:
    """Millimetres along each axis, of "1.5" or "1x1x3"; UserError for what is none."""
    if text is None:
        return None
    number = r"[0-9]*\.?[0-9]+"
    if re.fullmatch(rf"{number}(x{number}x{number})?", text):
        sides = [float(side) for side in text.split("x")] * (1 if "x" in text else 3)
        if all(0.05 <= side <= 50 for side in sides):
            return sides[0], sides[1], sides[2]
    raise UserError(f"--spacing {text}: give the millimetres of a voxel, 1.5 or 1x1x3; 0.05 to 50")


def _make_shapes(setting: Any) -> None:
    """From Python, 64 and (160, 192, 160) are shapes, too."""
    for field_ in fields(setting):
        value = getattr(setting, field_.name)
        if field_.name in ("volume", "patch", "padded_from") and value is not None:
            object.__setattr__(setting, field_.name, Shape(value))


def workload(
    preset: str,
    published: Mapping[str, Any],
    overrides: Overrides | None = None,
    techniques: Mapping[str, Any] = MappingProxyType({}),
    patches: bool = False,
    matched: Mapping[str, Mapping[str, Sequence[int]]] = MappingProxyType({}),
) -> Workload:
    """The workload of one method: preset, then its published setting, then the flags.

    `published` is the method's own setting (keys of `Workload`), `techniques` what its techniques
    set, `matched` its widths where they are to be as large as IDM's (by `Match`, then by whose:
    `small`, or `paper` for all others; of networks of images `small 2D`, `paper 2D`). A patch
    keeps the published ratio to the volume (PatchDDM-3D: 128 of 256) unless a flag names it; where
    `patches` were asked for, it has half the sides in every preset.
    """
    if preset not in PRESETS:
        raise UserError(f"--preset {preset}: unknown; the presets are {', '.join(PRESETS)}")
    chosen = PRESETS[preset]
    given = {
        f.name: value
        for f in fields(Overrides)
        if overrides is not None
        and f.name != "pad"
        and (value := getattr(overrides, f.name)) is not None
    }
    if overrides is not None:
        check_ranges(overrides)
    for name in given.keys() & {"modality", "condition"}:
        given[name] = tuple(name_columns(given[name], f"--{name}"))
    precision = techniques.get("precision", given.get("precision"))
    if given.get("precision", precision) != precision:
        raise UserError(f"--precision {given['precision']}: the method's own is {precision}")
    values = {
        **chosen.common,
        **{key: published[key] for key in chosen.from_method if key in published},
        **techniques,
        # A technique's setting goes to the methods that have the technique.
        **{key: value for key, value in given.items() if key not in _OF_TECHNIQUES - {*techniques}},
    }
    if "channels" not in given:
        values["match"] = match = given.get("match", "parameters")
        of_idm = "small" if "channels" in chosen.common else "paper"
        of_idm += " 2D" if given.get("dims") == 2 else ""
        if widths := matched.get(match, {}).get(of_idm):
            values["channels"] = widths
    elif "match" in given:
        raise UserError(f"--match {given['match']}: --channels gives the widths; give one of them")
    trains_on_patches = patches or "patch" in published
    if given.get("dims") == 2:
        values["patch"] = Shape((*Shape(values["volume"]).sides[:2], 1))
    elif not trains_on_patches:
        values["patch"] = values["volume"]
    elif "patch" not in given:
        of_volume = published["patch"] / published["volume"] if "patch" in published else 0.5
        ratio = of_volume if chosen.patches or patches else 1
        values["patch"] = Shape(max(1, round(side * ratio)) for side in Shape(values["volume"]))
    if "channels" not in values:
        raise UserError(
            f"--preset {preset}: the network has no published widths; give --channels, or name "
            'them in its module, PUBLISHED = {"channels": (32, 64)}'
        )
    work = Workload(**values)
    if work.drop_condition and not work.condition:
        raise UserError(
            f"--drop-condition {work.drop_condition:g}: there is no condition; give --condition"
        )
    if not work.patch <= work.volume:
        raise UserError(
            f"--patch {work.patch}: larger than the volume ({work.volume}); "
            f"give --patch {work.volume} or less"
        )
    return replace(work, channels=tuple(work.channels))


def check_guidance(guidance: float, work: Workload, trained: bool = True) -> None:
    """UserError where there is no condition, or a trained network was never without it."""
    if guidance == 1:
        return
    if not work.is_conditional:
        raise UserError(f"--guidance {guidance:g}: there is no condition; give --condition")
    if trained and not work.drop_condition:
        raise UserError(
            f"--guidance {guidance:g}: it asks a network without its condition, too; train with "
            "--drop-condition 0.1"
        )


def check_ranges(settings: Any) -> None:
    """UserError for the first field of a dataclass, or of one inside, out of its type's range."""
    for name, hint in get_type_hints(type(settings), include_extras=True).items():
        value = getattr(settings, name)
        if is_dataclass(value):
            check_ranges(value)
        for interval in _intervals(hint):
            for each in value if isinstance(value, tuple) else (value,):
                if each is not None and not _lies_in(each, interval):
                    flag = name.replace("_", "-")
                    raise UserError(f"--{flag} {_digits(each)}: {_in_words(interval)}")


def _intervals(hint: Any) -> Iterator[Interval]:
    """Those that a type names: of `Count`, `Count | None`, `tuple[Count, ...]`."""
    for inner in get_args(hint):
        if isinstance(inner, Interval):
            yield inner
        else:
            yield from _intervals(inner)


def _lies_in(value: Any, interval: Interval) -> bool:
    low = value > interval.gt if interval.gt is not None else value >= interval.ge
    high = value < interval.lt if interval.lt is not None else value <= interval.le
    return bool(low and high)  # not a number lies nowhere


def _in_words(interval: Any) -> str:
    low, high = (interval.ge, "at least"), (interval.le, "at most")
    if interval.gt is not None:
        low = interval.gt, "more than"
    if interval.lt is not None:
        high = interval.lt, "less than"
    return ", ".join(f"{words} {_digits(value)}" for value, words in (low, high))


def _digits(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
