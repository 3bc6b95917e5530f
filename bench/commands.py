"""The flags of every command: one dataclass per command, read by tyro (`bench/cli.py`)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from annotated_types import Interval

from .harness.backends import Backends
from .presets import (
    Cards,
    Count,
    Decay,
    Guidance,
    Hertz,
    Minutes,
    Overrides,
    Reading,
    Sampler,
    Samples,
    Seconds,
    SecondsOr0,
    Seed,
    Weight,
)
from .sizes import MARGIN

Preset = Literal["small", "paper", "equal", "full-volume"]


@dataclass
class RunCommand:
    """Train every method for a fixed window on real volumes, and measure the cost.

    Leaves a run folder: CSVs, environment.json, Table 2 and the figures. Exit status: 0 if every
    trial is ok, 1 if some are not, 2 for a wrong command.
    """

    models: tuple[str, ...] = ("unet", "checkpoint", "patchddm", "idm", "idm-lean", "idm-stored")
    """Methods to train, in this order; ratios are relative to the first."""
    minutes: Minutes | None = None
    """Length of each window, in minutes; None: 2, unless --steps is given."""
    steps: Count | None = None
    """Length of each window in training steps, instead of --minutes."""
    preset: Preset | None = None
    """The workload; None: paper with CUDA, small without."""
    overrides: Annotated[Overrides, tyro.conf.OmitArgPrefixes] = field(default_factory=Overrides)
    backends: Annotated[Backends, tyro.conf.OmitArgPrefixes] = field(default_factory=Backends)
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    data: Literal["phantom", "brats", "synapse", "nifti"] = "phantom"
    """Volumes to train on: phantom (embedded brains), a BraTS folder, SynapseMNIST3D, or any NIfTI
    scans, named by --modality."""
    data_dir: Path | None = None
    """The folder of the scans, a CSV manifest, a dataset.json; the .npz of SynapseMNIST3D."""
    reading: Annotated[Reading, tyro.conf.OmitArgPrefixes] = field(default_factory=Reading)
    subjects: Count | None = None
    """Number of volumes at most; None: all, of embedded brains 32 up to 64³, fewer above."""
    cache_dir: Path | None = None
    """Folder for prepared volumes; None: the user's cache folder."""
    repeats: Count = 1
    """Trials of each method, in the order A B C A B C."""
    seed: Seed = 0
    """Seed of the weights, the noise, the order of the data and the embedded brains."""
    lambda_r: Weight = 0.0
    """λ_R, the weight of the inverse term of eq. (8), for invertible networks."""
    out: Path = Path("results")
    """Folder in which the run folder is made."""
    timeout: Seconds | None = None
    """Seconds without a finished step after which a trial is stopped; None: never."""
    country: str | None = None
    """Country whose power grid gives the CO₂ intensity: CHE, USA (ISO 3166-1); None: the world."""
    sample_hz: Hertz = 10.0
    """Readings of power, temperature and load per second."""
    card: str | None = None
    """NVIDIA card whose energy and temperature are measured: index in nvidia-smi, UUID or MIG id;
    None: the card of --device."""
    idle: SecondsOr0 = 2.0
    """Seconds of rest before the first trial, to measure idle power; 0 for none."""
    cooldown: SecondsOr0 = 120.0
    """Before each window, wait until the device is within 2 °C of its temperature at the start of
    the first one, at most for so many seconds, and no longer than it cools; 0 for no wait."""
    memory_limit: str | None = None
    """Memory limit of a trial's process, such as 8GiB; a trial that needs more is `oom`."""
    strict: bool = False
    """Do not start while other processes load the machine; mark a trial with such load `failed`."""
    resume: Path | None = None
    """Run folder to complete: only its missing trials are run."""


@dataclass
class PredictCommand:
    """Predict the peak memory and the FLOPs of a training step, without a GPU or any computation.

    Leaves runs.csv with the columns of a run, and with --timeline timeline.csv and a picture.
    """

    models: tuple[str, ...] = ("unet", "checkpoint", "patchddm", "idm", "idm-lean", "idm-stored")
    """Methods to predict."""
    preset: Preset = "paper"
    """The workload."""
    overrides: Annotated[Overrides, tyro.conf.OmitArgPrefixes] = field(default_factory=Overrides)
    device: Literal["cuda", "cpu"] = "cuda"
    """Device of the training; for cuda, the memory of the caching allocator is predicted, too."""
    alloc_conf: str | None = None
    """Settings of PyTorch's allocator, as in PYTORCH_ALLOC_CONF, such as
    expandable_segments:True; None: those of that variable."""
    sampling: bool = False
    """Drawing volumes in place of training: a step of eq. (7), without gradients, on whole ones."""
    guidance: Guidance = 1.0
    """With --sampling and --condition: classifier-free guidance, which asks for each volume twice
    in a batch; 1 for none."""
    gpus: Cards = 1
    """Cards that train together (DDP), each with a batch of its own: what one of them holds."""
    shard: bool = False
    """With --gpus: weights, gradients and optimizer state are spread over the cards (FSDP2)."""
    timeline: bool = False
    """Draw memory over the step, split into its five parts, all methods at one scale."""
    out: Path = Path("results/predicted")
    """Folder for the files."""


@dataclass
class FitCommand:
    """Find the largest batch, and the largest volume at batch 1, that train in a given memory.

    Exit status: 0, 1 if no method can train on even one volume, 2 for a wrong command.
    """

    memory: str | None = None
    """Memory of the card: 24GiB is 24 · 2³⁰ bytes, 24GB is 24 · 10⁹."""
    gpu: str | None = None
    """Name of a card, instead of --memory: a5000, rtx4090, a100-80gb, …; a wrong one lists all."""
    models: tuple[str, ...] = ("unet", "checkpoint", "patchddm", "idm", "idm-lean")
    """Methods to try."""
    preset: Preset = "paper"
    """The workload whose batch and volume are varied."""
    overrides: Annotated[Overrides, tyro.conf.OmitArgPrefixes] = field(default_factory=Overrides)
    margin: str = MARGIN
    """Memory kept free for what is not predicted: the CUDA context, libraries, cuDNN's workspaces
    beyond the copies that it is expected to make for 16-bit convolutions."""
    alloc_conf: str | None = None
    """Settings of PyTorch's allocator, as in PYTORCH_ALLOC_CONF, such as
    expandable_segments:True; None: those of that variable."""
    sampling: bool = False
    """What can be drawn, in place of what trains: without gradients, whole volumes."""
    guidance: Guidance = 1.0
    """As for `predict`."""
    gpus: Cards = 1
    """Cards that train together (DDP), each with a batch of its own: what one of them holds."""
    shard: bool = False
    """With --gpus: weights, gradients and optimizer state are spread over the cards (FSDP2)."""
    out: Path = Path("results/fit")
    """Folder for fit.csv."""


@dataclass
class RecommendCommand:
    """Find out how to train volumes of a size on a card: networks and techniques, by prediction.

    What fits comes cheapest first: exact ways, rounded ones, those that learn another task. Exit
    status: 0, 1 if nothing fits, 2 for a wrong command.
    """

    gpu: str
    """Name of a card: a5000, rtx4090, a100-80gb, …; a wrong one lists all."""
    overrides: Annotated[Overrides, tyro.conf.OmitArgPrefixes] = field(default_factory=Overrides)
    models: tuple[str, ...] = ()
    """Networks, or methods, to try with techniques; none named: those of this benchmark."""
    margin: str = MARGIN
    """Memory kept free for what is not predicted."""
    sampling: bool = False
    """Drawing volumes in place of training."""
    out: Path = Path("results/recommend")
    """Folder for recommend.csv and the picture."""


@dataclass
class ScaleCommand:
    """Predict peak memory against depth, volume and batch: a CSV, and a figure with the slopes."""

    models: tuple[str, ...] = ("unet", "checkpoint", "patchddm", "idm", "idm-lean", "idm-stored")
    """Methods to compare."""
    preset: Preset = "small"
    """The workload; one of its values at a time is varied."""
    overrides: Annotated[Overrides, tyro.conf.OmitArgPrefixes] = field(default_factory=Overrides)
    gpus: Cards = 1
    """Cards that train together (DDP), each with a batch of its own: what one of them holds."""
    shard: bool = False
    """With --gpus: weights, gradients and optimizer state are spread over the cards (FSDP2)."""
    out: Path = Path("results/scale")
    """Folder for the files."""


@dataclass
class CheckCommand:
    """Compare peak memory with a committed baseline.

    Exit status: 0 if no peak grew, 1 and a line per peak if some grew, 2 if the baseline is
    missing, damaged, incomplete or of another PyTorch.
    """

    baseline: Path | None = None
    """CSV of predicted peaks, written by --update; None: results/baseline.csv of this version."""
    models: tuple[str, ...] = ()
    """Methods to check; none named: all."""
    presets: tuple[Preset, ...] = ()
    """Presets to check; none named: those of the baseline, for a new one small, paper, equal."""
    update: bool = False
    """Write the baseline instead of comparing with it."""
    run: Path | None = None
    """Run folder whose measured peaks are compared instead of predictions."""
    tolerance: str = "1%"
    """Allowed growth of a measured peak; a predicted peak may not grow at all."""


@dataclass
class ValidateCommand:
    """Measure a step of each method on this device, beside what was predicted for it.

    Leaves a run folder: validation.csv, validation.html, and the same rows named by card and
    PyTorch, which is what to send to us. Exit status: 0 if every method was measured, 1 if some was
    not, 2 for a wrong command.
    """

    models: tuple[str, ...] = ("unet", "checkpoint", "patchddm", "idm", "idm-lean", "idm-stored")
    """Methods to measure, each in a process of its own."""
    preset: Preset | None = None
    """The workload; None: paper with CUDA, small without."""
    overrides: Annotated[Overrides, tyro.conf.OmitArgPrefixes] = field(default_factory=Overrides)
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    backends: Annotated[Backends, tyro.conf.OmitArgPrefixes] = field(default_factory=Backends)
    timeout: Seconds | None = 120.0
    """Seconds without progress after which a method is given up."""
    cooling: SecondsOr0 = 0.0
    """Also heat and cool the card for so many seconds, a third each under load, idle with a
    CUDA context, and without one; 0 for not."""
    out: Path = Path("results/validation")
    """Folder in which the run folder is made."""


@dataclass
class ReportCommand:
    """Make tables, figures and one HTML page from the files of runs.

    Leaves Tables 1 and 2 and the paper's claims (CSV, Markdown, LaTeX), Figures 3 to 5 and the
    frontier (PNG, PDF), and report.html. The same files make the same bytes.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders; runs that differ in machine, versions or settings get separate tables."""
    out: Path | None = None
    """Folder for the files; None: the folder of the run."""


@dataclass
class CompareCommand:
    """Show the differences between two runs: per method and column, and in the environment.

    Of two quality runs: the learning curves at equal steps and minutes, and the scores.
    """

    a: tyro.conf.Positional[Path]
    """First run folder."""
    b: tyro.conf.Positional[Path]
    """Second run folder; ratios are second ÷ first."""


@dataclass
class QualityCommand:
    """Train each method for longer, and measure how well it learns to denoise.

    Leaves a run folder: learning curves (learning.csv), a row per training (trained.csv), scores
    (quality.csv), samples, the split into training, validation and test (split.json), checkpoints.
    Exit status: 0 if every training is ok, 1 if some are not, 2 for a wrong command.
    """

    models: tuple[str, ...] = ("unet", "checkpoint", "patchddm", "idm", "idm-lean")
    """Methods to train, in this order."""
    minutes: Minutes | None = None
    """Length of each training in minutes, without validation; None: 15, unless --steps is given.
    The learning rate is annealed over this time."""
    steps: Count | None = None
    """Length of each training in steps, instead of --minutes."""
    preset: Preset = "small"
    """The workload."""
    overrides: Annotated[Overrides, tyro.conf.OmitArgPrefixes] = field(default_factory=Overrides)
    budget: str | None = None
    """Memory of a training step, such as 1GiB: each method gets the widest network that fits."""
    backends: Annotated[Backends, tyro.conf.OmitArgPrefixes] = field(default_factory=Backends)
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    data: Literal["phantom", "brats", "synapse", "nifti"] = "phantom"
    """Volumes: phantom (embedded brains), a BraTS folder, SynapseMNIST3D, or any NIfTI scans, named
    by --modality."""
    data_dir: Path | None = None
    """The folder of the scans, a CSV manifest, a dataset.json; the .npz of SynapseMNIST3D."""
    reading: Annotated[Reading, tyro.conf.OmitArgPrefixes] = field(default_factory=Reading)
    subjects: Count | None = None
    """Number of volumes at most; None: all, of embedded brains 128 up to 64³, fewer above. 80 % are
    for training, 10 % for validation, 10 % are kept for a test."""
    cache_dir: Path | None = None
    """Folder for prepared volumes; None: the user's cache folder."""
    seeds: tuple[Seed, ...] = (0,)
    """Seeds of the weights, the noise and the order of the data; a training of each method each."""
    split_seed: Seed = 0
    """Seed of the embedded brains, of the split, and of the noise in the validation."""
    ema: Decay = 0.995
    """Decay of the averaged weights at step k: min(--ema, (1 + k) / (10 + k))."""
    validations: Count = 30
    """Points of the learning curve, evenly spaced over the training."""
    checkpoint_minutes: Annotated[float, Interval(ge=0, le=525_600)] = 1.0
    """Minutes of training between two checkpoints."""
    samples: Annotated[int, Interval(ge=0, le=10_000)] = 4
    """Volumes to generate after each training."""
    sampler: Sampler = "ddpm-clipped"
    """ddpm: all 2,000 steps of eq. (7); ddpm-clipped: the same in --sampler-steps, the estimate of
    the volume clamped at each step; ddpm-mean: ddpm-clipped from the noised mean volume, for
    networks trained for minutes only; ddim: without added noise, in --sampler-steps, clamped."""
    sampler_steps: Count | None = None
    """Steps of ddpm-clipped, ddpm-mean and ddim, up to 2,000; None: 250, for ddim 50."""
    guidance: Guidance = 1.0
    """Classifier-free guidance of the samples: 3 draws them towards their condition, 1 for none.
    It needs a training with --drop-condition."""
    tensorboard: bool = False
    """Also write the learning curve for TensorBoard."""
    out: Path = Path("results")
    """Folder in which the run folder is made."""
    timeout: Seconds | None = None
    """Seconds without a finished step after which a training is stopped; None: never."""
    country: str | None = None
    """Country whose power grid gives the CO₂ intensity: CHE, USA (ISO 3166-1); None: the world."""
    resume: Path | None = None
    """Run folder to complete: each training that is not ok continues from its last checkpoint."""


@dataclass
class SampleCommand:
    """Draw volumes from the networks that a quality run has trained.

    Leaves NIfTI files, their scores (quality.csv) and Figure 2 beside real volumes, in a folder
    inside the run. Exit status: 0, or 2 for a wrong command.
    """

    run: tyro.conf.Positional[Path]
    """Folder of the quality run, with its checkpoints."""
    models: tuple[str, ...] = ()
    """Methods to draw from; none named: all of the run."""
    seeds: tuple[Seed, ...] = ()
    """Seeds of the trainings to draw from; none named: all."""
    samples: Samples = 8
    """Volumes per training."""
    batch_size: Samples = 4
    """Volumes drawn at a time; more need more memory."""
    sampler: Sampler = "ddpm-clipped"
    """As for `quality`: ddpm, ddpm-clipped, ddpm-mean or ddim."""
    sampler_steps: Count | None = None
    """Steps of ddpm-clipped, ddpm-mean and ddim, up to 2,000; None: 250, for ddim 50."""
    guidance: Guidance = 1.0
    """As for `quality`."""
    condition_from: Literal["val", "test", "train"] = "val"
    """Of a conditional network: the part of the data whose conditions are drawn from, in turn."""
    seed: Seed = 0
    """Seed of the noise."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    out: Path | None = None
    """Folder for the volumes; None: RUN/drawn-<sampler>-<steps>-seed<seed>."""
