"""How PyTorch computes on a card, where it leaves a choice: flags, columns, environment.json."""

import os
from dataclasses import dataclass
from typing import Any

from ..errors import UserError

_VARIABLES = (
    "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TORCH_CUDNN_V8_API_DISABLED",
    "CUBLAS_WORKSPACE_CONFIG", "CUDA_LAUNCH_BLOCKING", "CUDA_VISIBLE_DEVICES",
)  # fmt: skip
"""That change what a step on a card needs."""


@dataclass(frozen=True)
class Backends:
    """Settings of PyTorch on a card. A CPU has none of them."""

    tf32: bool = False
    """Convolutions of float32 tensors in TF32, with 10 bits of mantissa instead of 23: PyTorch's
    own default. Off, fp32 is IEEE float32 throughout. Matrix products are that in either case."""
    cudnn_benchmark: bool = False
    """Have cuDNN try its algorithms in the warm-up and take the fastest. PyTorch's default: off."""
    deterministic: bool = False
    """Take deterministic algorithms, where there are any. PyTorch's default: off."""

    def check(self, device: str) -> None:
        """UserError where they would change nothing."""
        if self != Backends() and not device.startswith("cuda"):
            flag = next(name for name, value in vars(self).items() if value)
            raise UserError(
                f"--{flag.replace('_', '-')}: a setting of CUDA, and the device is {device}; leave "
                "it out, or give --device cuda"
            )

    def apply(self) -> None:
        """Set them for this process, before its first step."""
        import torch  # flags are read before it is loaded

        torch.backends.cudnn.allow_tf32 = self.tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.benchmark = self.cudnn_benchmark
        if self.deterministic:
            # Read when cuBLAS makes its first handle; without it, its products are not repeatable.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)  # warnings are in the log
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

    def columns(self, device: str) -> dict[str, Any]:
        """Cells of a row; empty for a CPU."""
        return dict(vars(self)) if device.startswith("cuda") else {}


def known_problems(precision: str, torch_version: str, cudnn: int | None) -> tuple[str, ...]:
    """Warnings of what is known to be wrong with these versions on a card.

    Args:
        cudnn: as 91002 for 9.10.2; None where PyTorch has none.
    """
    if precision in ("bf16", "fp16") and torch_version.startswith("2.9.") and (cudnn or 0) < 91500:
        return (
            f"torch {torch_version}, cuDNN {cudnn}: slow kernels for 16-bit 3D convolutions, "
            "which take up to 2.5 times the memory (pytorch#166643): install nvidia-cudnn 9.15 or "
            "later, or another torch",
        )
    return ()


def variables() -> dict[str, str]:
    """Environment variables that change what a step on a card needs, those that are set."""
    return {name: os.environ[name] for name in _VARIABLES if name in os.environ}
