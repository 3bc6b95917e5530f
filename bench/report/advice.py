"""What fits a memory budget, and what of each network costs least: how the page begins.

Methods of one network are ranked by their cost. Networks are not: what they learn differs, and only
`quality` can tell.
"""

from collections.abc import Iterator, Mapping, Sequence
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
    named: str
    """With its kind, unless that is exact."""
    same: str
    """What it computes: its network, or, where it learns another task, itself alone."""
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
            named, same = group.costs.named(method), group.costs.network(method)
            found.append(Need(method, named, same, peak.value, counted, costs[method]))
    return found


def advise(
    group: Group, learned: Mapping[str, float] | None = None, budget_gib: int = MAIN_BUDGET_GIB
) -> str:
    """What fits, and of each network the quickest way and the smallest.

    `learned` is the validation error of methods, where `quality` trained them.
    """
    known = needs(group)
    fitting = _that_fit(known, budget_gib)
    work = _describe_work(group)
    if not fitting:
        least = min(known, key=lambda need: need.memory)
        return f"Nothing fits at {work}: {least.named} needs the least, {least.gib}."
    if len(known) == 1:
        return f"{known[0].named} fits at {work}, with {known[0].gib}."
    count = "All methods" if len(fitting) == len(known) else f"{len(fitting)} of {len(known)}"
    best = "; ".join(_best_of(same, _is_timed(group)) for same in _by_network(fitting))
    text = f"{count} fit at {work}. What {_word(group)}, of each network: {best}."
    if len({need.same for need in fitting}) > 1:
        text += " Cost does not rank networks, since they learn differently. "
        errors = [f"{m} {e:.3f}" for m, e in (learned or {}).items() if m in group.methods]
        text += (
            f"Validation MSE of ε after these runs' trainings: {', '.join(errors)}."
            if errors
            else "No run here says how well: python -m bench quality."
        )
    return text


def _by_network(known: Sequence[Need]) -> Iterator[list[Need]]:
    for same in dict.fromkeys(need.same for need in known):
        yield [need for need in known if need.same == same]


def _best_of(same: Sequence[Need], timed: bool) -> str:
    quickest = min(same, key=lambda need: need.cost)
    least = min(same, key=lambda need: need.memory)
    cost, unit = (quickest.cost, "s") if timed else (quickest.cost / 1e9, "GFLOP")
    text = f"{quickest.named} ({quickest.gib}, {significant(cost)} {unit} a million voxels)"
    if least.method != quickest.method:
        text += (
            f", with least memory {least.named} ({least.gib}, for "
            f"{least.cost / quickest.cost:.2f}× the {'time' if timed else 'computation'})"
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
    """For each budget, what of each network to take, and what else fits."""
    known = needs(group)
    rows = []
    for budget in BUDGETS_GIB:
        fitting = _that_fit(known, budget)
        best = [min(same, key=lambda need: need.cost) for same in _by_network(fitting)]
        taken = "; ".join(f"{need.named}: {need.gib}" for need in best)
        others = ", ".join(need.named for need in fitting if need not in best)
        cells = (
            Cell(f"{budget} GiB", budget),
            Cell(taken or "nothing fits"),
            Cell(others or NOTHING),
        )
        rows.append(cells)
    return Grid(
        "Budgets",
        f"Of each network, the method that {_word(group)} of those that fit ({group.name}). "
        "Networks are not ranked: they learn differently.",
        ("Memory", "Take", "These fit too"), tuple(rows),
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
