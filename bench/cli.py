"""The command line: from what was typed (`bench/commands.py`) to who carries it out.

What a command does is imported when it runs, so that `--help` and a mistyped flag are answered
before PyTorch is loaded.
"""

import gc
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from . import commands
from .errors import CannotWrite, UserError, check_name, typed
from .harness.output import make_output_last
from .harness.process import have_a_user_name, loading, refuse_without_posix
from .harness.worker import Worker
from .presets import check_ranges
from .sizes import Shape

COMMANDS: Mapping[str, tuple[type, str]] = {
    "run": (commands.RunCommand, "run.command:run_benchmark"),
    "predict": (commands.PredictCommand, "predict.peaks:run_predict"),
    "fit": (commands.FitCommand, "predict.fit:run_fit"),
    "recommend": (commands.RecommendCommand, "predict.recommend:run_recommend"),
    "scale": (commands.ScaleCommand, "predict.scale:run_scale"),
    "check": (commands.CheckCommand, "predict.check:run_check"),
    "validate": (commands.ValidateCommand, "validate.validating:run_validate"),
    "report": (commands.ReportCommand, "report.write:run_report"),
    "compare": (commands.CompareCommand, "report.compare:run_compare"),
    "quality": (commands.QualityCommand, "quality.trainings:run_quality"),
    "sample": (commands.SampleCommand, "quality.draw:run_sample"),
}
"""Name -> what can be typed, and who does it: `function(command, console) -> exit status`."""


_READERS = tyro.constructors.ConstructorRegistry()


@_READERS.primitive_rule
def _read_shape(
    known: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Shape] | None:
    """`--volume 64`, `--volume 160x192x160`."""
    if known.type is not Shape:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="N|DxHxW",
        instance_from_str=lambda words: Shape(words[0]),
        is_instance=lambda value: isinstance(value, Shape),
        str_from_instance=lambda shape: [str(shape)],
    )


def run_bench() -> int:
    """`run_bench.py` or `run-bench`: the command `run`, and nothing else."""
    return _main(
        lambda: tyro.cli(
            commands.RunCommand, prog=typed("run"), args=sys.argv[1:], registry=_READERS
        )
    )


def main() -> int:
    """`python -m bench COMMAND` or `idm-bench COMMAND`."""
    kinds: dict[str, Callable[..., Any]] = {name: kind for name, (kind, _) in COMMANDS.items()}
    return _main(
        lambda: tyro.extras.subcommand_cli_from_dict(
            kinds, prog=typed(), args=sys.argv[1:], registry=_READERS
        )
    )


def execute(command: Any, console: Console) -> int:
    """Exit status; UserError for a person's mistake."""
    name, where = next((n, w) for n, (kind, w) in COMMANDS.items() if kind is type(command))
    if name in ("run", "quality"):
        refuse_without_posix(name)
    check_ranges(command)
    check_names(command)
    # CUDA is to number its cards as NVML does: by default it puts the fastest first.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if isinstance(command, commands.RunCommand):
        with Worker.spare("run.trial"):  # it and this process load PyTorch side by side
            return _load(where)(command, console)
    return _load(where)(command, console)


def check_names(command: Any) -> None:
    """UserError for the name of a folder or a file that no file of ours could hold."""
    check_name("the current folder", Path.cwd())
    for field in fields(command):
        value = getattr(command, field.name)
        if is_dataclass(value):
            check_names(value)
        for each in value if isinstance(value, tuple) else (value,):
            check_name(f"--{field.name.replace('_', '-')}", each)


def _load(where: str) -> Callable[..., int]:
    module, function = where.split(":")
    with loading():
        return getattr(importlib.import_module(f".{module}", __package__), function)


def _main(read: Callable[[], Any]) -> int:
    """Exit status of the command that `read` gives; a person's mistake is one line, status 2."""
    make_output_last()
    have_a_user_name()
    try:
        return execute(read(), Console(soft_wrap=not sys.stdout.isatty()))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except CannotWrite as error:
        print(f"error: {error.filename}: cannot be written ({error.strerror})", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        sys.stdout.flush()
        gc.freeze()  # or the interpreter would look through all that is left, and then leave anyway
