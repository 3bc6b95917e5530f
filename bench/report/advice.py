"""Which method to take for a memory budget: the sentence that a person came for."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from bench.report.grid import Cell, Grid, significant
from bench.report.reading import Group
from bench.report.summary import million_voxels, summarise_each
from bench.sizes import GIB, MARGIN, parse_size

BUDGETS_GIB = (8, 16, 24, 40, 80)
MAIN_BUDGET_GIB = 24
"""The paper's RTX A5000, and the cards that most people have."""
_FREE_BYTES = parse_size(MARGIN, "the margin")
# The fair comparison first; what was measured before what was predicted.
_PREFERRED = ("equal", "paper", "full-volume", "small")


@dataclass(frozen=True)
class Need:
    """What a method needs in a group, in the medians of its trials."""

    method: str
    memory: float
    """Bytes: given out by the allocator where that was measured, else the live tensors."""
    cost: float
    """Seconds, or FLOPs where no time was measured, of a step per million voxels."""


def best_group(groups: Sequence[Group]) -> Group | None:
    """The group to take advice from; None where no trial was ok."""
    useful = [group for group in groups if not group.ok.empty and needs(group)]

    def rank(group: Group) -> tuple[int, bool]:
        known = group.preset in _PREFERRED
        place = _PREFERRED.index(group.preset) if known else len(_PREFERRED)
        return place, group.kind == "predicted"

    return min(useful, key=rank, default=None)


def needs(group: Group) -> list[Need]:
    column = "step_time_median_s" if _is_timed(group) else "flops_step"
    cost = group.records[column].astype(float) / million_voxels(group.records)
    records = group.records.assign(**{column: cost})
    columns = ("peak_allocated_bytes", "peak_memory_bytes", column)
    allocated, alive, costs = (summarise_each(records, name) for name in columns)
    peaks = {**alive, **allocated}
    return [
        Need(name, peaks[name].value, costs[name].value)
        for name in group.methods
        if name in peaks and name in costs
    ]


def advise(group: Group, budget_gib: int = MAIN_BUDGET_GIB) -> str:
    """One sentence: what fits, what is quickest of it, what needs least."""
    known = needs(group)
    fitting = _that_fit(known, budget_gib)
    least = min(known, key=lambda need: need.memory)
    if not fitting:
        return (
            f"nothing fits at {describe_work(group)}: {least.method} needs the least, "
            f"{_gib(least.memory)}."
        )
    if len(known) == 1:
        return f"{least.method} fits at {describe_work(group)}, with {_gib(least.memory)}."
    quickest = min(fitting, key=lambda need: need.cost)
    missing = len(known) - len(fitting)
    fit = "all" if not missing else f"{len(fitting)} of {len(known)}"
    text = (
        f"{fit} {'methods' if not missing else ''}".strip()
        + f" fit at {describe_work(group)}. Take {quickest.method}: it {_word(group)} "
        f"({_gib(quickest.memory)}, {_show_cost(group, quickest.cost)})."
    )
    if least.method != quickest.method:
        times = least.cost / quickest.cost
        text += (
            f" {least.method} needs the least memory ({_gib(least.memory)}), for "
            f"{times:.2f}× the {'time' if _is_timed(group) else 'computation'}."
        )
    return text


def advise_from_fit(fit: pd.DataFrame | None, budget_gib: int = MAIN_BUDGET_GIB) -> str | None:
    """What `python -m bench fit` found for this budget; None where it was not asked."""
    if fit is None:
        return None
    rows = fit[fit["memory_bytes"] == budget_gib * GIB]
    rows = rows[rows["batch_size"] > 0].sort_values("batch_size", ascending=False, kind="stable")
    if rows.empty:
        return None
    patches = rows["patch"] if "patch" in rows else rows["volume"]
    sides: list[tuple[float, float]] = list(zip(rows["volume"], patches, strict=True))
    texts = []
    for volume, patch in dict.fromkeys(sides):
        alike = rows[[side == (volume, patch) for side in sides]]
        what = f"{volume:.0f}³ volumes"
        if patch < volume:
            what = f"{patch:.0f}³ patches of {what}"
        methods = (
            f"{row.method} {row.batch_size:.0f} (or one of {row.largest_volume:.0f}³)"
            for row in alike.itertuples()
        )
        texts.append(f"of {what}: {', '.join(methods)}")
    return f"Largest batch that trains, {'; '.join(texts)}."


def budgets_grid(group: Group) -> Grid:
    """For each budget, what fits and what to take."""
    known = needs(group)
    rows = []
    for budget in BUDGETS_GIB:
        fitting = _that_fit(known, budget)
        quickest = min(fitting, key=lambda need: need.cost, default=None)
        rows.append(
            (
                Cell(f"{budget} GiB", budget),
                Cell(quickest.method if quickest else "nothing fits"),
                Cell(_gib(quickest.memory) if quickest else "–"),
                Cell(", ".join(n.method for n in fitting if n is not quickest) or "–"),
            )
        )
    return Grid(
        "Budgets", f"Which method {_word(group)}, of those that fit ({group.name}).",
        ("Memory", "Take", "It needs", "These fit too"), tuple(rows),
        (f"{_FREE_BYTES / GIB:g} GiB is kept free, as the command fit does: a CUDA context and "
         "cuDNN's workspaces come on top of what is shown.",), numeric=False,
    )  # fmt: skip


def describe_work(group: Group) -> str:
    """`equal` (64³, batch 4, fp32), or what the methods train on where it is one thing."""
    work = group.ok[["volume", "batch_size", "precision"]].drop_duplicates()
    if len(work) != 1 or work.isna().any(axis=None):
        return group.preset
    volume, batch, precision = work.iloc[0]
    return f"{group.preset} ({volume}³, batch {batch}, {precision})"


def _that_fit(known: Sequence[Need], budget_gib: int) -> list[Need]:
    return [need for need in known if need.memory + _FREE_BYTES <= budget_gib * GIB]


def _word(group: Group) -> str:
    return "is the quickest" if _is_timed(group) else "computes least"


def _show_cost(group: Group, cost: float) -> str:
    if _is_timed(group):
        return f"{significant(cost)} s a million voxels"
    return f"{significant(cost / 1e9)} GFLOP a million voxels"


def _is_timed(group: Group) -> bool:
    return bool(group.ok["step_time_median_s"].notna().all())


def _gib(nbytes: float) -> str:
    return f"{significant(nbytes / GIB)} GiB"
