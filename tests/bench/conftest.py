"""The stand-in for NVML, compiled once, and a process that has loaded it."""

import multiprocessing
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).parents[1] / "nvml" / "standin.c"


@pytest.fixture(scope="session")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the stand-in `libnvidia-ml.so.1`, for LD_LIBRARY_PATH."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler to build the stand-in libnvidia-ml.so.1 with")
    folder = tmp_path_factory.mktemp("nvml")
    library = folder / "libnvidia-ml.so.1"
    flags = ["-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-o", library, SOURCE, "-lm"], check=True)
    return folder


@pytest.fixture(scope="session")
def play(nvml: Path) -> Iterator[Callable[..., Any]]:
    """`play(function, *arguments)`: run a function of `tests/nvml/play.py` beside the stand-in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_LIBRARY_PATH", str(nvml))
        patch.setenv("NVML_SCRIPT", str(nvml / "script"))
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        # A fresh interpreter: the dynamic linker reads LD_LIBRARY_PATH once, when one starts.
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        pool.submit(os.getpid).result()
    with pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()
