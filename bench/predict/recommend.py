"""The command `recommend`: how to train, or draw, volumes of this size on this card.

Networks and techniques are enumerated and predicted, one after the other. What fits is shown
cheapest first, exact ways before rounded ones and those that learn another task.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import pandas as pd
from rich.console import Console

from ..commands import RecommendCommand
from ..ddpm.technique import KINDS
from ..errors import UserError, last_line
from ..harness.console import say
from ..methods import METHODS, find_methods
from ..presets import Overrides, Workload
from ..records.files import write_rows
from ..records.rows import Recommended, setting_columns
from ..report.grid import NOTHING, Cell, Grid, as_rows, for_terminal, significant
from ..report.recommended import draw_recommended, frontier
from ..sizes import GIB, parse_size, show_shape, show_size
from .cluster import refuse_what_cannot_be
from .fit import EXPANDABLE, STAR, Question, answer
from .gpus import Gpu, find_gpu
from .parallel import side_by_side
from .peaks import NOT_MODELLED, open_folder, say_assumed
from .prediction import WORTH_SAYING, Prediction, predict_method, seen_whole

NETWORKS = (
    "unet", "idm", "idm-stored", "idm-lean", "idm-fine", "idm-fine-lean", "revunet", "patchddm",
    "wdm",
)  # fmt: skip
WAYS = (
    "", "offload", "fused-backward", "checkpoint", "checkpoint-all", "checkpoint-level",
    "checkpoint-selective", "checkpoint-all+fused-backward", "checkpoint-all+offload",
    "bf16", "adam8bit", "checkpoint-all+bf16", "wavelet", "patch", "checkpoint-all+wavelet",
    "checkpoint-all+patch",
)  # fmt: skip
"""Techniques that are tried with every network; what does not go together is left out."""
WAYS_TO_DRAW = ("", "bf16", "wavelet", "patch")
"""Those of them that change what drawing volumes needs, or what is drawn."""
PRESET = "equal"


@dataclass(frozen=True)
class Way:
    """A method on its workload, and the card that it is to fit."""

    method: str
    work: Workload
    gpu: Gpu
    limit: int
    """Bytes that the caching allocator may hold."""
    sampling: bool


def run_recommend(command: RecommendCommand, console: Console) -> int:
    """Exit status 0, or 1 if nothing fits; UserError before anything is predicted."""
    if command.overrides.volume is None:
        raise UserError("--volume 160x192x160: say the size of the volumes")
    gpu = find_gpu(command.gpu)
    limit = gpu.usable_bytes - parse_size(command.margin, "--margin")
    if limit <= 0:
        raise UserError(
            f"--margin {command.margin}: leaves nothing of {show_size(gpu.usable_bytes)}"
        )
    overrides = _overrides(command.overrides)
    ways, refused = ways_to_try(command, overrides, gpu, limit)
    for line in refused:
        say(console, line)
    if not ways:
        raise UserError("no network can do this; the lines above say why (--pad may help)")
    open_folder(command.out)
    rows = side_by_side(predict_way, ways, console, "Predicting")
    rows.sort(key=lambda row: (KINDS.index(row.kind), not row.fits, row.step_time_bound_s or 0.0))
    best = next((row for row in rows if row.fits), None)
    lines = list(_in_words(rows, best, command, overrides, limit))
    path = command.out / "recommend.csv"
    write_rows(path, Recommended, rows)

    table = pd.DataFrame(map(asdict, rows))
    picture = draw_recommended(table)
    for kind in KINDS:
        fitting = table[(table["kind"] == kind) & table["fits"]]
        if len(fitting):
            console.print(for_terminal(_grid(kind, fitting, gpu)))
    for line in lines:
        say(console, line)
    say_assumed([METHODS[row.method] for row in rows], console)
    for each in (path, *picture.save(command.out)):
        say(console, f"  {each}")
    return 0 if best else 1


def _overrides(given: Overrides) -> Overrides:
    """One volume at a time, and networks that compute as much, where nothing else is said."""
    match = given.match or ("flops" if given.channels is None else None)
    return replace(given, batch_size=given.batch_size or 1, match=match)


def ways_to_try(
    command: RecommendCommand, overrides: Overrides, gpu: Gpu, limit: int
) -> tuple[list[Way], list[str]]:
    """Every network with all techniques that it goes with, and why others are not tried."""
    networks = [method.name for method in find_methods(command.models or NETWORKS)]
    ways, refused = list[Way](), list[str]()
    for network in networks:
        for added in WAYS_TO_DRAW if command.sampling else WAYS:
            name = f"{network}+{added}" if added else network
            try:
                (method,) = find_methods([name])
                names = method.technique_names
                refuse_what_cannot_be(1, False, network, names, sampling=command.sampling)
                own = seen_whole(method, PRESET, overrides) if command.sampling else overrides
                work = method.workload(PRESET, own)
            except UserError as error:
                if not added:
                    refused.append(f"{network} is left out: {error}")
                continue
            ways.append(Way(name, work, gpu, limit, command.sampling))
    return ways, refused


def predict_way(way: Way) -> Recommended:
    """What it needs, and whether the allocator gets through two steps with that."""
    method, work = METHODS[way.method], way.work
    of_method = (*method.within, *method.techniques)
    row = Recommended(
        **method.columns(),
        **setting_columns(work),
        method=way.method,
        gpu=way.gpu.name,
        memory_bytes=way.gpu.memory_bytes,
        limit_bytes=way.limit,
        sampling=way.sampling or None,
        task=" ".join(t.name for t in of_method if t.kind == "another task") or None,
        fits=False,
    )
    try:
        found = predict_method(method, work, sampling=way.sampling, count_forward=False)
    except (UserError, ValueError) as error:  # a norm over a single voxel, say
        row.error = last_line(error)
        return row
    row.fits = found.fits_cuda(way.limit, EXPANDABLE)
    row.fits_by_default = row.fits and found.fits_cuda(way.limit)
    row.parameters = found.parameters
    row.peak_memory_bytes = found.peak_memory_bytes
    row.peak_allocated_bytes = found.cuda_pool.peak_allocated
    row.host_bytes = found.host_bytes
    row.offload_moved_bytes = found.offload_moved_bytes
    row.flops_step = found.flops_step
    row.step_time_bound_s, row.bound_by = least_time(found, work, way.gpu)
    return row


def least_time(found: Prediction, work: Workload, gpu: Gpu) -> tuple[float, str]:
    """Seconds that a step takes at least on an ideal card of this kind, and what for most of them.

    Each operator takes as long as its FLOPs do, or as long as its tensors need from and to the
    card's memory; what waits on the host goes there and back meanwhile, one way at a time.
    """
    flops_per_s = gpu.flops_per_s(work.precision)
    computing = moving = whole = 0.0
    for operator in found.operators:
        a, b = operator.flops / flops_per_s, operator.traffic / gpu.bytes_per_s
        whole += max(a, b)
        if a > b:
            computing += a
        else:
            moving += b
    over_pcie = found.offload_moved_bytes / gpu.pcie_bytes_per_s
    if over_pcie > whole:
        return over_pcie, "PCIe"
    return whole, "FLOPs" if computing > moving else "memory"


def _in_words(
    rows: Sequence[Recommended], best: Recommended | None, command: RecommendCommand,
    overrides: Overrides, limit: int,
) -> Iterator[str]:  # fmt: skip
    verb = "can draw" if command.sampling else "trains"
    volume = show_shape(rows[0].volume) if rows[0].volume is not None else ""
    if best is not None:
        fit = answer(_question(best, command, overrides, limit))
        best.largest_volume = fit.largest_volume
        yield (
            f"{best.method} {verb} {volume}, and up to {show_shape(fit.largest_volume)} in these "
            "proportions, one at a time."
        )
    known = [row for row in rows if row.peak_allocated_bytes is not None]
    if not any(row.fits and row.kind == "exact" for row in rows):
        misses = sorted(
            (row for row in known if row.kind == "exact"), key=lambda r: r.peak_allocated_bytes or 0
        )
        for row in misses[:3]:
            yield f"{row.method} (exact) would need {show_size(row.peak_allocated_bytes or 0)}."
    if best is None and known:
        least = min(known, key=lambda row: row.peak_allocated_bytes or 0)
        fit = answer(_question(least, command, overrides, limit))
        if fit.largest_volume >= 1:
            yield (
                f"Nothing fits at {volume}. {least.method} ({least.kind}) would at "
                f"{show_shape(fit.largest_volume)}."
            )
        else:
            yield f"Nothing fits at {volume}, nor smaller."
    sizes = {row.network: f"{row.network} {(row.parameters or 0) / 1e6:,.1f}" for row in known}
    yield (
        "Techniques of one network can be ranked by their cost. Networks differ in what they "
        f"learn: see what `quality` finds. Parameters (M): {', '.join(sizes.values())}. unet has "
        + {"flops": "IDM's FLOPs of a step", "parameters": "IDM's parameters"}.get(
            overrides.match or "", "the widths that were given"
        )
        + " (--match)."
    )
    yield (
        "Time: at least so long on an ideal card (its TFLOP/s, its bandwidth, PCIe; sources in "
        "bench/predict/cards.csv). Memory: what PyTorch's allocator gives out at the peak, with "
        "PYTORCH_ALLOC_CONF=expandable_segments:True. Kept free: "
        f"{command.margin}, for {NOT_MODELLED}."
    )


def _question(
    row: Recommended, command: RecommendCommand, overrides: Overrides, limit: int
) -> Question:
    if command.sampling:
        overrides = seen_whole(METHODS[row.method], PRESET, overrides)
    return Question(row.method, PRESET, overrides, limit, sampling=command.sampling)


def _grid(kind: str, rows: pd.DataFrame, gpu: Gpu) -> Grid:
    best = frontier(rows)
    cells = [
        (
            row["method"],
            f"{row['gib']:.2f}" + ("" if row["fits_by_default"] else " *"),
            f"{host / GIB:.2f}" if (host := row["host_bytes"]) > WORTH_SAYING else NOTHING,
            significant(row["flops_step"] / 1e12),
            significant(row["step_time_bound_s"]),
            row["bound_by"],
        )
        for row in as_rows(best)
    ]
    words = {
        "exact": "Exact: the same gradients",
        "rounded": "Rounded: the same function in fewer bits, to be paid in quality",
        "another task": "Another task: the network learns something else",
    }
    more = len(rows) - len(best)
    notes = [f"{more} more fit, and are slower and no smaller: recommend.csv."] if more else []
    if not best["fits_by_default"].all():
        notes.append(STAR)
    return Grid(
        "Recommended", f"{words[kind]}. What fits a {gpu.name}, cheapest first",
        ("method", "memory (GiB)", "host (GiB)", "TFLOP a step", "at least (s)", "bound by"),
        tuple(tuple(map(Cell, values)) for values in cells), tuple(notes),
    )  # fmt: skip
