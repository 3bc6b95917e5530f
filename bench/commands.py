"""What can be typed: a dataclass per command, read by tyro (`bench/cli.py`)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from bench.presets import Overrides
from bench.sizes import MARGIN

Preset = Literal["small", "paper", "equal", "full-volume"]
Sampler = Literal["ddpm", "ddpm-clipped", "ddpm-mean", "ddim"]


@dataclass
class RunCommand:
    """Train every method for a fixed window on real volumes, and measure what it costs.

    Leaves a run folder: CSVs, environment.json, Table 2 and the figures. Exit status 0 when every
    trial is ok, 1 when some are not, 2 for a wrong command.
    """

    models: tuple[str, ...] = ("unet", "checkpoint", "patchddm", "idm", "idm-stored")
    """Methods to train, in this order; ratios are to the first."""
    minutes: float | None = None
    """Length of each window, in minutes (default 2)."""
    steps: int | None = None
    """Length of each window in training steps, instead of --minutes."""
    preset: Preset | None = None
    """The workload; default paper with CUDA, small without."""
    overrides: Annotated[Overrides, tyro.conf.OmitArgPrefixes] = field(default_factory=Overrides)
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    data: Literal["phantom", "brats", "synapse"] = "phantom"
    """Volumes to train on: embedded brains, a BraTS folder, SynapseMNIST3D."""
    data_dir: Path | None = None
    """The BraTS folder, or the SynapseMNIST3D .npz."""
    subjects: int | None = None
    """At most this many volumes."""
    cache_dir: Path | None = None
    """Where prepared volumes are kept (default: the user's cache folder)."""
    repeats: int = 1
    """Trials of each method; methods take turns."""
    seed: int = 0
    """Of the weights, the noise and the order of the data."""
    lambda_r: float = 0.0
    """Weight of the inverse term of eq. (8), for the invertible networks."""
    out: Path = Path("results")
    """Folder in which the run folder is made."""
    timeout: float | None = None
    """Give a trial up after so many seconds without a finished step."""
    country: str | None = None
    """Grid whose CO₂ intensity applies, as ISO 3166-1 alpha-3 (CHE, USA); default: the world."""
    sample_hz: float = 10.0
    """How often power, temperature and load are read."""
    card: str | None = None
    """NVIDIA card whose energy and temperature are measured: nvidia-smi's index, UUID or MIG id
    (default: the one that --device names)."""
    idle: float = 2.0
    """Seconds of rest before the first trial, to measure what the device draws idle; 0 for none."""
    cooldown: float = 120.0
    """Before each trial, wait at most so many seconds until the device is back within 2 °C of the
    first trial's start; 0 to go on at once."""
    memory_limit: str | None = None
    """Memory of its own that a trial's process may have, such as 8GiB; beyond it is `oom`."""
    strict: bool = False
    """Do not start while something else uses the machine; a trial that had company is `failed`."""
    resume: Path | None = None
    """Run folder to complete: runs what is missing in it and nothing else."""


@dataclass
class PredictCommand:
    """Peak memory and FLOPs of a training step, exactly, without a GPU and without computing it.

    Leaves runs.csv, and with --timeline timeline.csv and a picture, with the columns of a run's.
    """

    models: tuple[str, ...] = ("unet", "checkpoint", "patchddm", "idm", "idm-stored")
    """Methods to predict."""
    preset: Preset = "paper"
    """The workload."""
    overrides: Annotated[Overrides, tyro.conf.OmitArgPrefixes] = field(default_factory=Overrides)
    device: Literal["cuda", "cpu"] = "cuda"
    """What will train: for cuda, also what the caching allocator would hold."""
    timeline: bool = False
    """Draw memory over the step, split by what it serves, the methods to one scale."""
    out: Path = Path("results/predicted")
    """Folder for what is written."""


@dataclass
class FitCommand:
    """The largest batch, and the largest cube at batch 1, that train in so much memory.

    Exit status 0, 1 if not even one volume fits with any method, 2 for a wrong command.
    """

    memory: str | None = None
    """Memory of the card: 24GiB is 24 · 2³⁰ bytes, 24GB is 24 · 10⁹."""
    gpu: str | None = None
    """A card by name instead: a5000, rtx4090, v100-32gb, a100-80gb, h100, …"""
    models: tuple[str, ...] = ("unet", "checkpoint", "patchddm", "idm")
    """Methods to try."""
    preset: Preset = "paper"
    """The workload whose batch and volume are varied."""
    overrides: Annotated[Overrides, tyro.conf.OmitArgPrefixes] = field(default_factory=Overrides)
    margin: str = MARGIN
    """Kept free for what is not modelled: the CUDA context, cuDNN's workspaces."""
    out: Path = Path("results/fit")
    """Folder for fit.csv."""


@dataclass
class ScaleCommand:
    """Predicted peak against depth, volume and batch: a CSV, and a figure with the slopes."""

    models: tuple[str, ...] = ("unet", "checkpoint", "patchddm", "idm", "idm-stored")
    """Methods to compare."""
    preset: Preset = "small"
    """The workload of which one thing at a time is varied."""
    overrides: Annotated[Overrides, tyro.conf.OmitArgPrefixes] = field(default_factory=Overrides)
    out: Path = Path("results/scale")
    """Folder for what is written."""


@dataclass
class CheckCommand:
    """Compare peaks with a committed baseline.

    Exit status 1 and a line for each that grew, 0 otherwise, 2 for a baseline that cannot tell.
    """

    baseline: Path = Path("results/baseline.csv")
    """Predicted peaks, as --update writes them."""
    models: tuple[str, ...] = ()
    """Methods to check (default: all)."""
    presets: tuple[Preset, ...] = ()
    """Presets to check (default: those of the baseline; of a new one small, paper, equal)."""
    update: bool = False
    """Write the baseline instead of comparing with it."""
    run: Path | None = None
    """Compare this run's measured peaks instead of predictions."""
    tolerance: str = "1%"
    """How much a measured peak may grow; predicted ones may not grow at all."""


@dataclass
class ReportCommand:
    """Make tables, figures and one HTML page from the files of runs.

    Leaves Tables 1 and 2 and the paper's claims (CSV, Markdown, LaTeX), Figures 3 to 5 and the
    frontier (PNG, PDF), and report.html. The same files make the same bytes.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders; of several, what differs in machine, versions or workload is kept apart."""
    out: Path | None = None
    """Folder for the files (default: the folder of the run)."""


@dataclass
class CompareCommand:
    """Show what changed between two runs: per method and column, and in the environment."""

    a: tyro.conf.Positional[Path]
    """Run folder."""
    b: tyro.conf.Positional[Path]
    """Run folder, whose numbers are put over those of the first."""


@dataclass
class QualityCommand:
    """Train each method for long, and see how well it learns to denoise.

    Leaves a run folder: the learning curve (learning.csv), what became of each training
    (trained.csv), who trained and who validated (split.json), and checkpoints. Exit status 0 when
    every training is ok, 1 when some are not, 2 for a wrong command.
    """

    models: tuple[str, ...] = ("unet", "checkpoint", "patchddm", "idm", "idm-lean")
    """Methods to train, in this order."""
    minutes: float | None = None
    """Length of each training, in minutes without validation (default 15). The learning rate is
    annealed over it."""
    steps: int | None = None
    """Length of each training in steps, instead of --minutes."""
    preset: Preset = "small"
    """The workload."""
    overrides: Annotated[Overrides, tyro.conf.OmitArgPrefixes] = field(default_factory=Overrides)
    budget: str | None = None
    """Memory of a training step, such as 1GiB: each method gets the widest network that fits."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    data: Literal["phantom", "brats", "synapse"] = "phantom"
    """Volumes: embedded brains, a BraTS folder, SynapseMNIST3D."""
    data_dir: Path | None = None
    """The BraTS folder, or the SynapseMNIST3D .npz."""
    subjects: int | None = None
    """At most this many volumes (default: all; of embedded brains 128, above 64³ fewer). 80 %
    train, 10 % validate, 10 % are kept for a test."""
    cache_dir: Path | None = None
    """Where prepared volumes are kept (default: the user's cache folder)."""
    seeds: tuple[int, ...] = (0,)
    """A training of each method for each: of the weights, the noise, the order of the data."""
    split_seed: int = 0
    """Of the embedded brains, of who validates, and of the noise in the validation."""
    ema: float = 0.995
    """Decay per step k of the averaged weights: min(--ema, (1 + k) / (10 + k))."""
    validations: int = 30
    """Points of the learning curve, evenly over the training."""
    checkpoint_minutes: float = 1.0
    """Minutes of training from one checkpoint to the next."""
    samples: int = 4
    """Volumes to generate after each training."""
    sampler: Sampler = "ddpm-clipped"
    """ddpm: all 2,000 steps of eq. (7); ddpm-clipped: the same in --sampler-steps, the volume that
    each step sees clamped; ddpm-mean: that from where the network knows more than the mean volume
    says, for networks that have trained for minutes; ddim: ddpm-clipped without noise."""
    sampler_steps: int | None = None
    """Steps of ddpm-clipped and ddpm-mean (default 250) and ddim (default 50), up to 2,000."""
    tensorboard: bool = False
    """Write the learning curve for TensorBoard, too."""
    out: Path = Path("results")
    """Folder in which the run folder is made."""
    timeout: float | None = None
    """Give a training up after so many seconds without a finished step."""
    country: str | None = None
    """Grid whose CO₂ intensity applies, as ISO 3166-1 alpha-3 (CHE, USA); default: the world."""
    resume: Path | None = None
    """Run folder to complete: what is not ok in it goes on from its last checkpoint."""


@dataclass
class SampleCommand:
    """Draw volumes from the networks that a quality run has trained.

    Leaves NIfTI files, quality.csv with what they are worth, and Figure 2 beside real volumes, in a
    folder of the run. Exit status 0, or 2 for a wrong command.
    """

    run: tyro.conf.Positional[Path]
    """Folder of the quality run, with its checkpoints."""
    models: tuple[str, ...] = ()
    """Methods to draw from (default: all that it trained)."""
    seeds: tuple[int, ...] = ()
    """Trainings to draw from, by their seed (default: all)."""
    samples: int = 8
    """Volumes of each training."""
    batch_size: int = 4
    """Volumes drawn at a time: more need more memory."""
    sampler: Sampler = "ddpm-clipped"
    """As for `quality`: ddpm, ddpm-clipped, ddpm-mean or ddim."""
    sampler_steps: int | None = None
    """Steps of ddpm-clipped and ddpm-mean (default 250) and ddim (default 50), up to 2,000."""
    seed: int = 0
    """Of the noise."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    out: Path | None = None
    """Folder for what is drawn (default: RUN/drawn-<sampler>-<steps>-seed<seed>)."""
