"""Every row that is written to a CSV: its columns, their types and their units.

A probe returns one of the measurements below; a record is what was asked for (`Setting`) and all
measurements together. Units are in the names; bytes are bytes; sides are in voxels. None is an
empty cell, "not available", never 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

from ..sizes import Shape

Status = Literal["ok", "oom", "failed", "timeout", "interrupted"]


class UnknownColumn(Exception):
    """A measured number has no column that it could be written to."""


# What was asked for.


@dataclass(kw_only=True)
class Work:
    """What a step trains on, and with which network (`bench.presets.Workload`)."""

    precision: str | None = None
    volume: Shape | None = None
    """Of a whole volume, in voxels: `64` for a cube, `160x192x160` otherwise."""
    patch: Shape | None = None
    """Of what one step sees; the volume's, unless the method trains on patches or slices."""
    padded_from: Shape | None = None
    """Of the data in a volume that --pad made larger."""
    batch_size: int | None = None
    channels: str | None = None
    """Width of each level, finest first."""
    match: str | None = None
    """What of IDM's `unet` was given: parameters or flops; empty where widths were typed."""
    couplings: int | None = None
    """A level and branch, of invertible networks; the others ignore it."""
    dims: int | None = None
    """Of the network: 3, or 2 of one that trains on slices."""
    modality: str | None = None
    """Of each channel of a volume."""
    condition: str | None = None
    """Channels that the network is given; empty: none."""
    classes: int | None = None
    """Class labels that it is given; 0: none."""
    drop_condition: float | None = None
    """Share of the training volumes that are shown without what is given."""
    target: str | None = None
    """What the network predicts: eps, v or x0."""
    micro_batch: int | None = None
    """Volumes that pass through the network at a time; empty: the whole batch."""
    offload_bytes: int | None = None
    """Saved tensors of at least so many bytes went to the host; empty: none did."""
    memory_budget: float | None = None
    """Share of the activations that `torch.compile` might store; empty: it was not compiled."""


@dataclass(kw_only=True)
class Ending:
    """How a process ended, as it was seen from outside."""

    ended_by: str | None = None
    """What ended it from outside, for no fault of the method; a resumption repeats it."""
    rss_at_end_bytes: int | None = None
    free_at_end_bytes: int | None = None
    """Resident memory of its own, and memory of the machine that was free, when it died."""


@dataclass(kw_only=True)
class Way:
    """How a method trains its network (`bench.methods.Method`)."""

    network: str | None = None
    """Methods of one network compute the same function, unless `kind` says another task."""
    techniques: str | None = None
    """Separated by spaces, in the order in which they are applied; empty: none."""
    kind: str | None = None
    """Of all techniques together: exact, rounded or another task."""


@dataclass(kw_only=True)
class Spread:
    """How a predicted training is spread over cards; empty: there is one."""

    gpus: int | None = None
    """Cards, each with `batch_size` of its own; the bytes are those of one."""
    shard: bool | None = None
    """Whether each has a share of weights, gradients and optimizer state (FSDP2), or all (DDP)."""


@dataclass(kw_only=True)
class Setting(Way, Work):
    """All that can be typed and changes a number."""

    preset: str | None = None
    preset_changes: str | None = None
    """What flags changed of the preset ("couplings 6, volume 32"), or "none"."""
    data: str | None = None
    """Name of the data source."""
    subjects: int | None = None
    """Volumes that there are."""
    window: str | None = None
    """Intensities of a scan that became 0 and 1; empty: percentiles of the head."""
    spacing: str | None = None
    """Millimetres of a voxel that were asked for; empty: such that the head fills the volume."""
    device: str | None = None
    device_name: str | None = None
    tf32: bool | None = None
    cudnn_benchmark: bool | None = None
    deterministic: bool | None = None
    """How PyTorch computes on a card (`bench.harness.backends`); empty on a CPU."""
    learning_rate: float | None = None
    """At the start of the cosine annealing."""
    anneal_steps: int | None = None
    lambda_r: float | None = None
    lambda_l2: float | None = None
    """Weights of the terms of eq. (8)."""
    seed: int | None = None
    """Of the weights, the noise and the order of the data."""
    window_limit_s: float | None = None
    window_limit_steps: int | None = None
    """Length of the window that was asked for, one of the two."""
    started_at: str | None = None
    """UTC, ISO 8601; of the last process that worked on it."""


def setting_columns(*settings: Any) -> dict[str, Any]:
    """The fields of dataclasses as cells: what is in a tuple is separated by spaces."""
    return {
        field.name: " ".join(map(str, value)) if isinstance(value, tuple) else value
        for setting in settings
        for field in fields(setting)
        if not is_dataclass(value := getattr(setting, field.name))
    }


# What was found.


@dataclass(kw_only=True)
class Measurement:
    """What a probe found, with its source."""

    warnings: tuple[str, ...] = ()
    """What could not be measured as it should."""
    contention: tuple[str, ...] = ()
    """What else used the machine."""

    def columns(self) -> dict[str, Any]:
        """What there is of it, by column."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if value not in (None, ())}

    def take(self, columns: Mapping[str, Any]) -> None:
        """Take columns over; warnings and contention follow those before, each once.

        Raises:
            UnknownColumn: a name that this row does not have.
        """
        check_columns(type(self), columns)
        for name, value in columns.items():
            if name in ("warnings", "contention"):
                value = tuple(dict.fromkeys([*getattr(self, name), *value]))
            setattr(self, name, value)


def check_columns(row_type: type, columns: Mapping[str, Any]) -> None:
    """Raises UnknownColumn for a name that rows of this type do not have."""
    known = {field.name for field in fields(row_type)}
    for name in columns:
        if name not in known:
            raise UnknownColumn(f"{row_type.__name__} has no column {name!r}")


@dataclass(kw_only=True)
class Times(Measurement):
    """The steps of a window."""

    steps: int | None = None
    window_s: float | None = None
    """From its start to the end of its last step."""
    step_time_median_s: float | None = None
    step_time_p95_s: float | None = None
    batch_time_median_s: float | None = None
    """Of a step, until the batch is on the device: what is left of the way from the host."""
    volumes_per_s: float | None = None
    """Volumes (or patches) trained on per second of the window."""
    loss_first: float | None = None
    loss_last: float | None = None
    """Eq. (8) at the window's first and last step."""


@dataclass(kw_only=True)
class Peak(Measurement):
    """Memory of one whole training step."""

    peak_memory_bytes: int | None = None
    """Highest sum of live tensor storages on the device."""
    peak_memory_source: str | None = None
    """`tensor-storages` or `predicted`."""
    parameter_bytes: int | None = None
    gradient_bytes: int | None = None
    optimizer_bytes: int | None = None
    activation_bytes: int | None = None
    other_bytes: int | None = None
    """These five add up to the peak: what was live at that moment."""
    host_bytes: int | None = None
    """What the step keeps in the host's memory, at its own peak; 0 where the host is the device."""
    offload_moved_bytes: int | None = None
    """What it copies to the host and back, both ways together; 0 where the host is the device."""


@dataclass(kw_only=True)
class Pool(Measurement):
    """What the allocator held."""

    peak_allocated_bytes: int | None = None
    """What it gave out: the tensors and the scratch of the kernels."""
    peak_reserved_bytes: int | None = None
    """CUDA's pool."""


@dataclass(kw_only=True)
class Flops(Measurement):
    """Work of one step on one batch."""

    flops_forward: int | None = None
    """fvcore, one forward pass, a multiply-add as one."""
    flops_step: int | None = None
    """Dispatched in one whole step, a multiply-add as two."""


@dataclass(kw_only=True)
class Energy(Measurement):
    """Energy of the device under test over the window."""

    energy_j: float | None = None
    energy_source: str | None = None
    mean_power_w: float | None = None


@dataclass(kw_only=True)
class Temperature(Measurement):
    """Temperature of the device under test over the window."""

    temperature_start_c: float | None = None
    temperature_peak_c: float | None = None
    temperature_mean_c: float | None = None
    temperature_source: str | None = None


@dataclass(kw_only=True)
class Host(Pool):
    """The process, and the load of the machine around it."""

    peak_rss_bytes: int | None = None
    """Highest resident memory of the process in the window, interpreter and libraries included."""
    other_load_percent: float | None = None
    """Share of all cores that something else took in the window."""


@dataclass(kw_only=True)
class CardState(Measurement):
    """How fast a card was allowed to be."""

    throttled: str | None = None
    """Why the card was slower than asked, and in how many readings."""
    clock_mean_mhz: float | None = None
    """Of the card's multiprocessors over the window."""


@dataclass(kw_only=True)
class Polling(Measurement):
    """How steadily sensors were read."""

    sample_rate_hz: float | None = None
    """How often power, temperature and load were read."""
    sample_late_p95_s: float | None = None
    """95 % of those readings were at most this late."""


@dataclass(kw_only=True)
class Carbon(Energy):
    """What follows from the energy."""

    energy_per_parameter_j: float | None = None
    energy_per_volume_j: float | None = None
    co2_kg: float | None = None
    """Of `energy_j` at the mean intensity of the grid that `co2_source` names."""
    co2_source: str | None = None


# Rows. A dataclass takes its columns from its bases from the last to the first.


@dataclass(kw_only=True)
class _Trial:
    method: str
    repeat: int
    """Counted from 1."""
    status: Status | None = None
    error: str | None = None
    """Last line of what went wrong."""


@dataclass(kw_only=True)
class Record(
    Polling, CardState, Host, Temperature, Carbon, Flops, Pool, Peak, Times, Measurement,
    Setting, Spread, Ending, _Trial,
):  # fmt: skip
    """The row that a trial leaves in `runs.csv`; a prediction has the same columns."""

    parameters: int | None = None
    """Number of trained weights."""
    memory_limit_bytes: int | None = None
    """That the trial's process was given (--memory-limit)."""
    card: str | None = None
    """The card whose energy and temperature were read, where it was named (--card)."""
    sample_hz: float | None = None
    """How often sensors were to be read."""
    alloc_conf: str | None = None
    """PYTORCH_ALLOC_CONF of the pool on a card; None: PyTorch's defaults, or no card."""
    sampling: bool | None = None
    """Predicted is a step of drawing volumes (--sampling); None: a training step."""
    guidance: float | None = None
    """Of that drawing (--guidance); 1: none."""
    idle_power_w: float | None = None
    """Of the device before the first trial, from the same source as the energy."""
    energy_above_idle_j: float | None = None
    """`energy_j` less what the device would have drawn idle."""


@dataclass(kw_only=True)
class _Training:
    method: str
    seed: int
    """Of the weights, the noise and the order of the data."""
    status: Status | None = None
    error: str | None = None
    """Last line of what went wrong."""


@dataclass(kw_only=True)
class Trained(Energy, Peak, Measurement, Setting, Ending, _Training):
    """The row that a training leaves in `trained.csv`.

    The peak is that of one whole step, the second; the moving average is not part of a step.
    """

    seed: int
    steps: int | None = None
    elapsed_s: float | None = None
    """Of training, as `energy_j`."""
    co2_kg: float | None = None
    """Of `energy_j` at the mean intensity of the grid that `co2_source` names."""
    co2_source: str | None = None
    parameters: int | None = None
    autoencoder_steps: int | None = None
    """Of `steps`, those of the autoencoder, which is trained first where latents are learned."""
    autoencoder_s: float | None = None
    autoencoder_j: float | None = None
    """Of `elapsed_s` and `energy_j`, its part."""
    autoencoder_parameters: int | None = None
    autoencoder_peak_bytes: int | None = None
    """Of a step of it, beside `peak_memory_bytes`, which is of a step of the network."""
    budget_bytes: int | None = None
    """Memory for which the channels were chosen."""
    predicted_peak_bytes: int | None = None
    """What was predicted for these channels when they were chosen."""
    val_mse: float | None = None
    val_mse_ema: float | None = None
    """At the end, as in learning.csv."""
    validations: int | None = None
    """Planned over the whole training."""
    ema: float | None = None
    """Decay of the moving average of the weights."""
    samples: int | None = None
    sampler: str | None = None
    sampler_steps: int | None = None
    guidance: float | None = None
    """Of the samples; 1: none."""
    subjects_train: int | None = None
    subjects_val: int | None = None
    """Volumes."""
    split_seed: int | None = None


@dataclass(kw_only=True)
class Reading:
    """What a sampled probe reads at a moment."""

    power_w: float | None = None
    energy_j: float | None = None
    """Since the start of the window."""
    temperature_c: float | None = None
    memory_bytes: int | None = None
    """Resident memory of the process; on CUDA, what its allocator gave out."""
    utilization_percent: float | None = None


@dataclass(kw_only=True)
class _Moment:
    method: str
    repeat: int
    elapsed_s: float
    """Since the start of the window."""


@dataclass(kw_only=True)
class Sample(Reading, _Moment):
    """The readings of all sampled probes at a moment, in `samples.csv`."""


@dataclass(kw_only=True)
class Step:
    """One training step of a window, in `steps.csv`."""

    method: str
    repeat: int
    step: int
    """Counted from 1."""
    elapsed_s: float
    """From the start of the window to the end of the step."""
    step_time_s: float
    loss: float
    """Eq. (8)."""


@dataclass(kw_only=True)
class Instant:
    """A moment of the one training step whose memory was followed, in `timeline.csv`.

    What was alive from here to the next one; the highest is the peak (`bench.probes.instants`).
    """

    method: str
    repeat: int
    position: float
    """From 0 to 1, as if each operator took as long as on an ideal card."""
    phase: str
    """forward, backward or optimizer."""
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    other_bytes: int
    layer: str | None = None
    """Whose allocation or release it was."""
    operator: str | None = None
    """That had allocated it; empty for what was there before the step."""
    source: str
    """`tensor-storages` or `predicted`."""


@dataclass(kw_only=True)
class Learning:
    """A point of a learning curve, in `learning.csv`."""

    method: str
    seed: int | None = None
    step: int
    """Steps done; 0 is the network as it was built."""
    elapsed_s: float
    """Of training alone: not of validating, of checkpoints, of the start of the process."""
    energy_j: float | None = None
    """Of training, of the device under test."""
    energy_source: str | None = None
    loss_train: float | None = None
    """Mean of eq. (8) over the steps since the row before."""
    val_mse: float
    """Of ε, over the fixed pairs of `bench.quality.validation`; 1 is that of predicting 0."""
    val_of: str | None = None
    """`latents` where ε is of latents: no error of volumes compares with it."""
    val_mse_ema: float | None = None
    """The same with the moving average of the weights."""
    learning_rate: float | None = None
    """Of the next step."""


@dataclass(kw_only=True)
class Score:
    """One number of one trained denoiser or of its samples, in `quality.csv`."""

    source: str = "measured"
    method: str
    modality: str
    """Of the channel; "all" for what is of a whole volume."""
    column: str
    """One of `bench.quality.scoring.UNITS`."""
    value: float
    unit: str | None = None
    note: str | None = None
    protocol: str | None = None
    """`validation`, `best-batch`, or the sampler and its steps (`ddpm-2000`)."""
    timestep: int | None = None
    """t of the noisy volumes, of 2,000; None for samples."""
    sd: float | None = None
    """Standard deviation over what `count` counts (n − 1); None of fewer than two."""
    count: int | None = None
    """Volumes, or pairs of volumes, that `value` is the mean of."""
    seed: int | None = None
    """Of the training."""
    data: str | None = None
    """Name of the data source."""


@dataclass(kw_only=True)
class Fit(Way, Spread, Work):
    """What of a method trains in so much memory, in `fit.csv`. `volume` is of the preset."""

    memory_bytes: int
    """Of the card."""
    margin_bytes: int | None = None
    """Of them, kept free."""
    method: str
    preset: str | None = None
    preset_changes: str | None = None
    """As in `runs.csv`."""
    volume: Shape
    patch: Shape | None = None
    batch_size: int
    """The largest that trains at this volume; 0: not even one volume."""
    batch_needs: int | None = None
    """Bytes given out at a time at most, at `batch_size`, or at 1 if even that does not fit."""
    batch_fits_by_default: bool | None = None
    """Whether the allocator gets by in its default setting, in which memory fragments."""
    alloc_conf: str | None = None
    """PYTORCH_ALLOC_CONF that all of it was to fit with; None: with expandable segments."""
    sampling: bool | None = None
    """What can be drawn (--sampling); None: what trains."""
    guidance: float | None = None
    """Of that drawing (--guidance); 1: none."""
    largest_volume: Shape
    """The largest of the proportions of `volume` at batch 1; 0: not even the smallest."""
    largest_patch: Shape | None = None
    """What a step sees of that one."""
    volume_needs: int | None = None
    """Bytes at `largest_volume`, or at the smallest volume that the method can train on."""
    volume_fits_by_default: bool | None = None


@dataclass(kw_only=True)
class Recommended(Way, Work):
    """A network with techniques on a card, predicted, in `recommend.csv`."""

    method: str
    gpu: str
    memory_bytes: int
    """Of the card."""
    limit_bytes: int
    """Of them, for PyTorch's allocator."""
    sampling: bool | None = None
    """A step of drawing volumes (--sampling); None: a training step."""
    task: str | None = None
    """Its techniques by which the network learns something else."""
    fits: bool
    """With expandable segments."""
    fits_by_default: bool | None = None
    error: str | None = None
    """Why it could not be predicted."""
    parameters: int | None = None
    peak_memory_bytes: int | None = None
    """Live tensors."""
    peak_allocated_bytes: int | None = None
    """What the allocator gives out at the peak."""
    host_bytes: int | None = None
    """What the step keeps in the host's memory, at its own peak."""
    offload_moved_bytes: int | None = None
    """What it copies to the host and back, both ways together."""
    flops_step: int | None = None
    step_time_bound_s: float | None = None
    """A step takes at least so long on an ideal card."""
    bound_by: str | None = None
    """What takes most of that time: FLOPs, memory (its bandwidth) or PCIe."""
    largest_volume: Shape | None = None
    """Of the first answer: the largest of these proportions that fits."""


@dataclass(kw_only=True)
class Point(Way, Spread, Work):
    """One prediction of a sweep, in `scale.csv`. Bytes at the peak, but for `stored_bytes`."""

    method: str
    axis: str
    """couplings, volume or batch_size: the flag that is varied."""
    value: int
    """Of that flag; of a volume, its longest side."""
    amount: int
    """What the slope is per: couplings, voxels that a step sees, samples."""
    preset: str | None = None
    parameters: int
    peak_memory_bytes: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    other_bytes: int
    stored_bytes: int
    """Activations alive when the backward pass begins: what the method stores."""


@dataclass(kw_only=True)
class Slope:
    """A least-squares line through a sweep, in `scale_slopes.csv`; bytes per unit of the axis."""

    method: str
    kind: str | None = None
    """exact, rounded or another task."""
    axis: str
    peak: float
    stored: float
    """Of `stored_bytes`."""
    deviation: float
    """Largest distance of a point of the peak from its line, in bytes."""


@dataclass(kw_only=True)
class BaselinePeak:
    """A predicted peak that `check` compares with, in `baseline.csv`."""

    preset: str
    method: str
    torch: str
    """The version whose operators these are."""
    workload: str
    """What was trained on."""
    peak_memory_bytes: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    other_bytes: int
    peak_at: str
    """Phase, layer and operator."""
    layers: str
    """A line a part and layer: what of the peak is whose ("activation body.level0 16777216")."""


def describe_place(phase: str, layer: str | None, operator: str | None) -> str:
    """A moment of a step in words: "backward pass, at body.level0 (convolution)"."""
    if not operator:
        return "stretch before the step begins"
    where = f"at {layer} " if layer else ""
    words = {"forward": "forward pass", "backward": "backward pass"}
    name = operator.removeprefix("aten.").removesuffix(".default")
    return f"{words.get(phase, 'optimizer step')}, {where}({name})"


@dataclass(kw_only=True)
class Validated(Measurement, Work, Ending):
    """One method: its step as predicted, and as measured on a device (`validation.csv`).

    "Live" are tensors, "allocated" what the allocator gave out, "reserved" what it holds of the
    device; both after two steps in a new process. An empty cell is what this device cannot tell.
    """

    method: str
    preset: str
    preset_changes: str | None = None
    status: Status | None = None
    error: str | None = None
    device: str
    """cpu or cuda."""
    device_name: str | None = None
    torch: str
    cuda: str | None = None
    cudnn: int | None = None
    driver: str | None = None
    capability: str | None = None
    """Compute capability of the card, such as 9.0, by which it was predicted."""
    alloc_conf: str | None = None
    """PYTORCH_ALLOC_CONF."""
    tf32: bool | None = None
    cudnn_benchmark: bool | None = None
    deterministic: bool | None = None
    """As in a run."""
    predicted_live_bytes: int | None = None
    measured_live_bytes: int | None = None
    """Peaks of one step."""
    predicted_changes: int | None = None
    measured_changes: int | None = None
    """Allocations and releases of that step."""
    first_difference: str | None = None
    """Of the two sequences; empty where they are equal in bytes and order, to the end."""
    predicted_allocated_bytes: int | None = None
    measured_allocated_bytes: int | None = None
    measured_requested_bytes: int | None = None
    """What was asked for, before the allocator rounded it."""
    predicted_reserved_bytes: int | None = None
    measured_reserved_bytes: int | None = None
    replayed_reserved_bytes: int | None = None
    """By our model of the allocator, from the device's own requests."""
    replayed_differences: int | None = None
    """Requests after which that model held another amount than the device."""
    replayed_first: str | None = None
    rest_bytes: int | None = None
    """Given out between two steps and no tensor: workspaces that stay (cuBLAS)."""
    scratch_bytes: int | None = None
    """Most that one operator asked for beside its results: workspaces (cuDNN), temporaries."""
    scratch: str | None = None
    context_bytes: int | None = None
    """Device memory outside of the allocator: the CUDA context, the code of the kernels."""
    predicted_flops_step: int | None = None
    measured_flops_step: int | None = None
    waits: int | None = None
    """Times that a step makes the processor wait for the card."""
    waits_at: str | None = None
    step_time_s: float | None = None
    """Median of at most five steps, with a wait at the end of each."""


@dataclass(kw_only=True)
class Cooling:
    """One reading of a card that is heated and left alone (`cooling.csv`)."""

    stage: str
    """start, load, idle context (a process has the card and does nothing), no context."""
    elapsed_s: float
    temperature_c: float | None = None
    power_w: float | None = None
    clock_mhz: float | None = None
