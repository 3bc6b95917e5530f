"""What was measured on: the machine, the versions, the commit, the configuration."""

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from ..probes.host import device_name, speed_setting
from ..probes.nvml import driver_version, visible_cards
from ..records.files import IN_A_WHEEL, to_json
from .backends import variables


def describe_environment(command: Sequence[str], plans: Sequence[Any]) -> dict[str, Any]:
    """What `environment.json` holds: enough to know what was measured, and to run it again.

    Args:
        plans: of each trial, a dataclass of JSON values.
    """
    return {
        "command": _as_typed(command),
        "trials": [to_json(plan) for plan in plans],
        "hardware": _hardware(),
        "versions": _versions(),
        "git": _git(),
    }


def describe_prediction(command: Sequence[str]) -> dict[str, Any]:
    """The same of a prediction, which no hardware has a part in."""
    return {"command": _as_typed(command), "versions": _versions(), "git": _git()}


def describe_resumption(
    command: Sequence[str], environment: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """What to add for the trials that follow, and what is not as it was for those before."""
    now = {"hardware": _hardware(), "versions": _versions(), "git": _git()}
    changes = []
    for topic, values in now.items():
        before = environment.get(topic)
        before = before if isinstance(before, dict) else {}
        for name, value in values.items():
            if before.get(name) != value:
                changes.append(f"{name} was {before.get(name)}, is {value}")
    stamp = datetime.now(UTC).isoformat(timespec="seconds")
    return {"at": stamp, "command": _as_typed(command), **now}, changes


def _as_typed(command: Sequence[str]) -> list[str]:
    """`sys.argv` as a person would type it: `-m bench` is there as the path of a file."""
    program, *arguments = command
    path = Path(program)
    if path.name == "__main__.py":
        return ["python", "-m", (__package__ or "").partition(".")[0], *arguments]
    return [path.name, *arguments]


def _hardware() -> dict[str, Any]:
    return {
        "machine": platform.machine(),
        "system": platform.platform(),
        "processor": device_name(torch.device("cpu")),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        **speed_setting(),
        "gpus": visible_cards(torch.cuda.device_count()),
        "gpu_driver": driver_version(),
        "cuda": torch.version.cuda,
        "cudnn": _cudnn_version(),
        "variables": variables(),
    }


def _cudnn_version() -> int | None:
    """Such as 92400. `torch.backends.cudnn.version` asks each card too, which takes a context."""
    library = getattr(torch._C, "_cudnn", None)
    return library.getVersionInt() if library is not None else None


def _versions() -> dict[str, str]:
    names = ["idm-bench", "torch", "monai", "numpy", "nibabel", "fvcore", "codecarbon"]
    versions = {"python": platform.python_version()}
    for name in [*names, "nvidia-ml-py", "pandas", "matplotlib"]:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _git() -> dict[str, Any]:
    """Commit of the code that measures, and whether the tree differed from it."""
    if IN_A_WHEEL:  # a repository around it is another project's
        return {"commit": None, "dirty": None}
    root = Path(__file__).parents[2]
    try:
        commit = _ask_git(root, "rev-parse", "HEAD")
        status = _ask_git(root, "status", "--porcelain")
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}  # a copy without its repository
    return {"commit": commit, "dirty": bool(status)}


def _ask_git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()
