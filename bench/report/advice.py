"""Which method to take for a memory budget: the sentence that the page begins with."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from ..sizes import GIB, MARGIN, parse_size, show_shape
from .grid import NOTHING, Cell, Grid, as_rows, significant
from .reading import Group
from .summary import million_voxels

BUDGETS_GIB = (8, 16, 24, 40, 80)
MAIN_BUDGET_GIB = 24
"""The paper's RTX A5000, and the cards that most people have."""
_FREE_BYTES = parse_size(MARGIN, "the margin")
# The fair comparison first; measured before predicted.
_PREFERRED = ("equal", "paper", "full-volume", "small")


@dataclass(frozen=True)
class Need:
    """What a method needs in a group, in the medians of its trials."""

    method: str
    memory: float
    """Bytes."""
    counted: str
    """`allocated`: given out by the allocator; `live`, where that is not known: the tensors."""
    cost: float
    """Seconds, or FLOPs where no time was measured, of a step per million voxels."""

    @property
    def gib(self) -> str:
        return f"{significant(self.memory / GIB)} GiB {self.counted}"


def best_group(groups: Sequence[Group]) -> Group | None:
    """The group to take advice from; None where no trial was ok."""

    def rank(group: Group) -> tuple[int, bool]:
        known = group.preset in _PREFERRED
        place = _PREFERRED.index(group.preset) if known else len(_PREFERRED)
        return place, group.kind == "predicted"

    return min((group for group in groups if needs(group)), key=rank, default=None)


def needs(group: Group) -> list[Need]:
    ok = group.ok
    cost = ok["step_time_median_s" if _is_timed(group) else "flops_step"].astype(float)
    costs = (cost / million_voxels(ok)).dropna().groupby(ok["method"]).median()
    found = []
    for method in group.methods:
        allocated = group.costs.summary("peak_allocated_bytes", method)
        peak = allocated or group.costs.summary("peak_memory_bytes", method)
        if peak and method in costs:
            counted = "allocated" if allocated else "live"
            found.append(Need(method, peak.value, counted, costs[method]))
    return found


def advise(group: Group, budget_gib: int = MAIN_BUDGET_GIB) -> str:
    """One sentence: the methods that fit, the quickest of them, the one that needs least."""
    known = needs(group)
    fitting = _that_fit(known, budget_gib)
    least = min(known, key=lambda need: need.memory)
    work = _describe_work(group)
    if not fitting:
        return f"Nothing fits at {work}: {least.method} needs the least, {least.gib}."
    if len(known) == 1:
        return f"{least.method} fits at {work}, with {least.gib}."
    quickest = min(fitting, key=lambda need: need.cost)
    count = "All methods" if len(fitting) == len(known) else f"{len(fitting)} of {len(known)}"
    timed = _is_timed(group)
    cost, unit = (quickest.cost, "s") if timed else (quickest.cost / 1e9, "GFLOP")
    text = (
        f"{count} fit at {work}. Take {quickest.method}: it {_word(group)} ({quickest.gib}, "
        f"{significant(cost)} {unit} a million voxels)."
    )
    if least.method != quickest.method:
        text += (
            f" {least.method} needs the least memory ({least.gib}), for "
            f"{least.cost / quickest.cost:.2f}× the {'time' if timed else 'computation'}."
        )
    return text


def advise_from_fit(fit: pd.DataFrame | None, budget_gib: int = MAIN_BUDGET_GIB) -> str | None:
    """What `python -m bench fit` found for this budget; None where it was not asked."""
    if fit is None:
        return None
    rows = fit[(fit["memory_bytes"] == budget_gib * GIB) & (fit["batch_size"] > 0)]
    rows = rows.sort_values("batch_size", ascending=False, kind="stable")
    found: dict[str, list[str]] = {}
    for row in as_rows(rows):
        volume, patch = row["volume"], row["patch"]
        what = f"{show_shape(volume)} volumes"
        if not pd.isna(patch) and patch != volume:
            what = f"{show_shape(patch)} patches of {what}"
        text = (
            f"{row['method']} {row['batch_size']} (or one of {show_shape(row['largest_volume'])})"
        )
        found.setdefault(what, []).append(text)
    texts = [f"of {what}: {', '.join(methods)}" for what, methods in found.items()]
    return f"Largest batch that trains, {'; '.join(texts)}." if texts else None


def budgets_grid(group: Group) -> Grid:
    """For each budget, what fits and what to take."""
    known = needs(group)
    rows = []
    for budget in BUDGETS_GIB:
        fitting = _that_fit(known, budget)
        best = min(fitting, key=lambda need: need.cost, default=None)
        others = ", ".join(need.method for need in fitting if need is not best)
        rows.append(
            (
                Cell(f"{budget} GiB", budget), Cell(best.method if best else "nothing fits"),
                Cell(best.gib if best else NOTHING), Cell(others or NOTHING),
            )
        )  # fmt: skip
    return Grid(
        "Budgets", f"The method that {_word(group)}, of those that fit ({group.name}).",
        ("Memory", "Take", "It needs", "These fit too"), tuple(rows),
        (f"{_FREE_BYTES / GIB:g} GiB is kept free, as the command fit does: a CUDA context and "
         "cuDNN's workspaces come on top of what is shown.",), numeric=False,
    )  # fmt: skip


def _describe_work(group: Group) -> str:
    """`equal (64³, batch 4, fp32)`, or the preset alone where methods train on different things."""
    work = group.ok[["volume", "batch_size", "precision"]].drop_duplicates()
    if len(work) != 1 or work.isna().any(axis=None):
        return group.preset
    volume, batch, precision = work.iloc[0]
    return f"{group.preset} ({show_shape(volume)}, batch {batch}, {precision})"


def _that_fit(known: Sequence[Need], budget_gib: int) -> list[Need]:
    return [need for need in known if need.memory + _FREE_BYTES <= budget_gib * GIB]


def _word(group: Group) -> str:
    return "is the quickest" if _is_timed(group) else "computes least"


def _is_timed(group: Group) -> bool:
    return bool(group.ok["step_time_median_s"].notna().all())
