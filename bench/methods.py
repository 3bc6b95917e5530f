"""The registry: names of networks and techniques -> how to build and train them.

A method is a network and its techniques, `unet+checkpoint+bf16`; some have short names. To add a
network or a technique: one file, and one line here.

The file of a network offers `build(*, in_channels, channels, couplings) -> nn.Module`, the network
`eps = network(x_t, t)` of shapes (B, C, D, H, W), (B,) int64 -> (B, C, D, H, W), and `PUBLISHED`,
its authors' setting (keys of `bench.presets.Workload`). For a condition `build` takes
`out_channels`, those of the image, which come first; for class labels `num_class_embeds`, and the
network `class_labels=`; for slices `dims`, which is then 2. What a network may offer beside
`forward`, the training step uses (`bench/ddpm/step.py`). What a technique's file offers:
`ddpm/technique.py`. Neither imports anything of this package.

Other packages' networks go by `package.module:build`, or by names of their own through the entry
points `idm_bench.methods` and `idm_bench.techniques`, whose values are such files.
"""

import difflib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from inspect import signature
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from .ddpm.step import Training, random_batch
from .ddpm.technique import Kind, Technique, conflict, optimizer_of, worst_kind
from .errors import UserError, last_line
from .presets import PRESETS, Overrides, Workload, workload
from .sizes import Shape

# `models` and `baselines` stand beside this package in a checkout, and inside it in a wheel.
_ROOT = "" if __package__ == "bench" else f"{__package__}."


@dataclass(frozen=True)
class Method:
    """A way to train the denoiser: a network and techniques, by name."""

    name: str
    builder: Callable[..., nn.Module]
    """Of the network alone."""
    published: Mapping[str, Any]
    network: str = ""
    """Methods of one network compute the same function, but for techniques of another kind."""
    techniques: tuple[Technique, ...] = ()
    """In the order in which they are applied."""
    within: tuple[Technique, ...] = ()
    """Techniques that the network itself carries out."""
    halves: bool = True
    """Whether each level of the network but the last halves the sides."""
    matched: Mapping[str, Mapping[str, Sequence[int]]] = field(default_factory=dict)
    """Its widths for `--match`, if nobody published any (`bench.presets.workload`)."""
    requires: tuple[str, ...] = ()
    """Packages that it builds with, and that are no dependencies of this one."""
    only_fp32: str = ""
    """Why it cannot be trained in 16 bits."""

    @property
    def kind(self) -> Kind:
        return worst_kind((*self.within, *self.techniques))

    @property
    def missing(self) -> list[str]:
        """Of `requires`, what is not installed."""
        return [package for package in self.requires if find_spec(package) is None]

    def columns(self) -> dict[str, Any]:
        """As in `runs.csv`."""
        names = " ".join(self.technique_names)
        return {"network": self.network, "techniques": names, "kind": self.kind}

    @property
    def technique_names(self) -> tuple[str, ...]:
        return tuple(each.name for each in (*self.within, *self.techniques))

    def workload(self, preset: str, overrides: Overrides | None = None) -> Workload:
        """What this method trains on in `preset`; raises UserError where it cannot."""
        if self.missing:
            raise UserError(
                f"--models {self.name}: not installed: pip install {' '.join(self.missing)}"
            )
        fixed = {name: value for each in self.techniques for name, value in each.work.items()}
        patches = bool(fixed.pop("patches", False))
        work = workload(preset, self.published, overrides, fixed, patches, self.matched)
        if work.dims == 2 and (why := self._needs_volumes()):
            raise UserError(
                f"--dims 2: {self.name} cannot train on slices: {why}; leave it out of --models"
            )
        halvings = sum(each.halvings for each in self.techniques)
        halvings += (len(work.channels) - 1) * self.halves
        multiple = 2**halvings
        if overrides is not None and overrides.pad:
            work = _padded(work, multiple)
        # What trains on patches is validated and sampled on whole volumes.
        for flag, shape in (("volume", work.volume), ("patch", work.patch)):
            if any(side % multiple for side in shape.sides[: work.dims]):
                raise UserError(
                    f"--{flag} {shape}: {self.name} halves the sides {halvings} times, "
                    f"so it can train on multiples of {multiple} "
                    f"(the nearest: {', '.join(map(str, _nearest(shape, multiple, work.dims)))}); "
                    "--pad goes up to the next"
                )
        if self.only_fp32 and work.precision != "fp32":
            raise UserError(f"--models {self.name}: no {work.precision}: {self.only_fp32}")
        if work.precision == "fp16" and optimizer_of((*self.within, *self.techniques)):
            raise UserError(
                f"--models {self.name}: fp16 scales the gradients, which only AdamW undoes; "
                "use bf16"
            )
        typed = overrides is not None and overrides.channels is not None
        if typed or self.name not in METHODS.names or work.is_conditional:
            self.check(replace(work, volume=Shape(1), patch=Shape(1)), typed)
        return work

    def _needs_volumes(self) -> str | None:
        for technique in (*self.within, *self.techniques):
            if 2 not in technique.dims:
                return f"{technique.name} is a technique for volumes"
        return None if "dims" in signature(self.builder).parameters else "its build takes no dims"

    def check(self, work: Workload, typed: bool = False) -> None:
        """UserError where the network cannot have these widths, techniques, or a condition.

        Args:
            typed: whether the widths are of --channels.
        """
        if why := _refusal(self.name, replace(work, volume=work.patch, batch_size=1)):
            widths = f" with --channels {' '.join(map(str, work.channels))}" if typed else ""
            raise UserError(f"--models {self.name}{widths}: {why}")

    def build(self, work: Workload) -> nn.Module:
        """The network for `work`, on the default device, in training mode."""
        build = self.builder
        for technique in self.techniques:
            if technique.build is not None:
                build = partial(technique.build, build)
        given: dict[str, Any] = {"out_channels": len(work.modality)} if work.condition else {}
        if work.classes:
            given["num_class_embeds"] = work.classes + 1  # the last one stands for none
        if work.dims != 3:
            given["dims"] = work.dims
        network = build(
            in_channels=work.shown_channels, channels=work.channels, couplings=work.couplings,
            **given,
        ).train()  # fmt: skip
        network.techniques = self.techniques  # type: ignore[assignment]
        return network


def _technique(name: str, module: str, kind: Kind | None = None, **options: Any) -> Technique:
    found = Technique.of(name, import_module(_ROOT + module), **options)
    return replace(found, kind=kind or found.kind)


TECHNIQUES: Mapping[str, Technique] = MappingProxyType(
    {
        technique.name: technique
        for technique in (
            # In the order in which they are applied: first what the network sees.
            _technique("latent", "baselines.techniques.latent"),
            _technique("wavelet", "baselines.techniques.wavelet"),
            _technique("patch", "baselines.techniques.patch"),
            _technique("checkpoint", "baselines.techniques.checkpoint"),
            _technique("checkpoint-all", "baselines.techniques.checkpoint", scope="all"),
            _technique("checkpoint-level", "baselines.techniques.checkpoint", scope="level"),
            _technique("checkpoint-nested", "baselines.techniques.checkpoint", scope="nested"),
            _technique(
                "checkpoint-selective", "baselines.techniques.checkpoint", keep_convolutions=True
            ),
            _technique("offload", "baselines.techniques.offload"),
            _technique("compile", "baselines.techniques.compile"),
            _technique("accumulate", "baselines.techniques.accumulate"),
            _technique("fused-backward", "models.idm.optimizer", in_backward=True),
            _technique("adam8bit", "models.idm.optimizer", kind="rounded", eight_bit=True),
            _technique("adafactor", "baselines.techniques.adafactor"),
            _technique("bf16", "baselines.techniques.bf16"),
            _technique("fp16", "baselines.techniques.fp16"),
            _technique("channels-last", "baselines.techniques.channels_last"),
        )
    }
)


def _method(
    name: str,
    module: str,
    *techniques: str,
    within: Sequence[str] = (),
    network: str = "",
    **options: Any,
) -> Method:
    found = import_module(_ROOT + module)
    return Method(
        name, partial(found.build, **options), found.PUBLISHED, network or name,
        tuple(TECHNIQUES[each] for each in techniques), tuple(TECHNIQUES[each] for each in within),
        matched=getattr(found, "MATCHED", {}), requires=getattr(found, "REQUIRES", ()),
        only_fp32=getattr(found, "ONLY_FP32", ""),
    )  # fmt: skip


class _Methods(Mapping[str, Method]):
    """By name: those of this benchmark, and all that can be composed of them.

    It lists the former, of those that are built with other packages where these are installed.
    """

    def __init__(self, *methods: Method) -> None:
        self.names = {method.name: method for method in methods}

    def __getitem__(self, name: str) -> Method:
        try:
            return _find(name)
        except UserError as error:
            raise KeyError(str(error)) from None

    def __iter__(self) -> Iterator[str]:
        return (name for name, each in self.names.items() if not each.missing)

    def __len__(self) -> int:
        return len(list(iter(self)))


METHODS = _Methods(
    _method("unet", "baselines.unet"),
    _method("checkpoint", "baselines.unet", "checkpoint", network="unet"),
    _method("patchddm", "baselines.patchddm", within=("patch",)),
    _method("idm", "models.idm"),
    _method("idm-lean", "models.idm.lean", within=("fused-backward", "adam8bit"), network="idm"),
    _method("idm-stored", "models.idm", network="idm", backward="stored"),
    _method("idm-fine", "models.idm.fine"),
    _method(
        "idm-fine-lean",
        "models.idm.fine",
        within=("fused-backward", "adam8bit"),
        network="idm-fine",
        lean=True,
    ),
    _method("idm-fine-stored", "models.idm.fine", network="idm-fine", backward="stored"),
    _method("unet-attention", "baselines.unet", attention=True),
    _method("wdm", "baselines.wdm", "wavelet"),
    _method("latent", "baselines.maisi", "latent"),
    _method("iunet", "baselines.iunet"),
    _method("revunet", "models.revunet"),
)


def find_methods(names: Sequence[str]) -> list[Method]:
    """The methods of these names, in this order, each once; UserError for what cannot be."""
    return [_find(name) for name in dict.fromkeys(names)]


def _find(name: str) -> Method:
    """The method of this name; UserError where there is none."""
    if name in METHODS.names:
        return METHODS.names[name]
    head, *added = name.split("+")
    method = METHODS.names.get(head) or _network_of_others(name, head)
    techniques = (*method.techniques, *(_find_technique(name, each) for each in added))
    if why := conflict((*method.within, *techniques)):
        raise UserError(f"--models {name}: {why}")
    order = [*TECHNIQUES, *(t.name for t in techniques if t.name not in TECHNIQUES)]
    techniques = tuple(sorted(techniques, key=lambda each: order.index(each.name)))
    return replace(method, name=name, techniques=techniques)


def _network_of_others(name: str, head: str) -> Method:
    """A network of another package: `package.module:build`, or the name of an entry point."""
    installed = _entry_points("idm_bench.methods")
    if ":" in head:
        module, _, function = head.partition(":")
        found = _import(name, module)
        build = getattr(found, function, None)
        if not callable(build):
            raise UserError(f"--models {name}: {module} has no function {function!r}")
    elif head in installed:
        found = _load(name, installed[head])
        build = found.build
    else:
        known = [*METHODS, *installed]
        near = difflib.get_close_matches(head, known, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ";"
        raise UserError(f"--models {name}: unknown method{hint} Known: {', '.join(known)}")
    return Method(name, build, getattr(found, "PUBLISHED", {}), head, halves=False)


def _find_technique(name: str, technique: str) -> Technique:
    installed = _entry_points("idm_bench.techniques")
    if technique in TECHNIQUES:
        return TECHNIQUES[technique]
    if technique in installed:
        try:
            return Technique.of(technique, _load(name, installed[technique]))
        except (AttributeError, ValueError) as error:
            raise UserError(f"--models {name}: {technique} is no technique ({error})") from None
    known = [*TECHNIQUES, *installed]
    near = difflib.get_close_matches(technique, known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else ";"
    raise UserError(
        f"--models {name}: unknown technique {technique}{hint} Known: {', '.join(known)}"
    )


@cache
def _entry_points(group: str) -> dict[str, EntryPoint]:
    return {each.name: each for each in entry_points(group=group)}


def _load(name: str, entry_point: EntryPoint) -> Any:
    try:
        return entry_point.load()
    except Exception as error:  # of other people's code
        raise UserError(
            f"--models {name}: {entry_point.value} cannot be loaded ({last_line(error)})"
        ) from None


def _import(name: str, module: str) -> Any:
    """A module that is installed, or lies in the current folder."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)  # last: it hides nothing
    try:
        return import_module(module)
    except Exception as error:  # of other people's code
        raise UserError(
            f"--models {name}: {module} cannot be imported ({last_line(error)})"
        ) from None


@cache
def _refusal(name: str, work: Workload) -> str | None:
    """Why this network cannot have these widths, techniques, or a condition; None where it can.

    It is built, on fake tensors; one of others is shown its condition, unless that has one voxel.
    What fails because of these tensors is no answer.
    """
    from torch._subclasses import FakeTensorMode

    method = METHODS.get(name)
    if method is None:  # made in Python, and not found by a name
        return None
    try:
        with FakeTensorMode(), torch.no_grad():
            network = method.build(work)
            if work.is_conditional and not method.halves and not work.patch <= 1:
                volumes, labels = random_batch(work, sides=work.grid)
                given = {} if labels is None else {"class_labels": labels}
                found = network(volumes, torch.zeros(1, dtype=torch.int64), **given).shape[1]
                if found != len(work.modality):
                    return f"takes no condition: its output has {found} channels"
    except (ValueError, TypeError) as error:
        return f"takes no condition: {error}" if work.is_conditional else str(error)
    except (ArithmeticError, LookupError, AttributeError) as error:  # of other people's code
        return last_line(error)
    except RuntimeError:
        return None
    return None


def preset_changes(
    method: Method, preset: str, overrides: Overrides, work: Workload, training: Training
) -> str:
    """What of `work` and `training` is not as the preset has it: "channels 8 16, couplings 6".

    "none" where all is; the seed belongs to no preset. Modalities count where they were asked for.
    """
    # Where neither preset nor method has widths, those that are given are no change of them.
    open_widths = "channels" not in {**PRESETS[preset].common, **method.published}
    channels = work.channels if open_widths else None
    as_it_is = method.workload(preset, Overrides(match=overrides.match, channels=channels))
    own: dict[str, Any] = asdict(as_it_is) | asdict(Training(seed=training.seed))
    own.pop("match")  # both are the preset; typed widths are said as such
    if overrides.modality is None:
        own.pop("modality")
    changes = []
    for name, value in (asdict(work) | asdict(training)).items():
        if name in own and value != own[name]:
            text = " ".join(map(str, value)) if isinstance(value, tuple) else value
            changes.append(f"{name} {text}")
    return ", ".join(changes) or "none"


def _padded(work: Workload, multiple: int) -> Workload:
    """`work` with the next larger volume, and patch, whose sides are multiples."""
    volume, patch = (each.rounded_up(multiple, work.dims) for each in (work.volume, work.patch))
    padded_from = work.volume if volume != work.volume else None
    return replace(work, volume=volume, patch=patch, padded_from=padded_from)


def _nearest(shape: Shape, multiple: int, dims: int) -> list[Shape]:
    below = Shape(
        (*(side // multiple * multiple for side in shape.sides[:dims]), *shape.sides[dims:])
    )
    return [each for each in (below, shape.rounded_up(multiple, dims)) if each >= 1]
