"""The paper's claims, each against the rows that can confirm or refute it.

A claim is judged at `paper` (each method in its own published setting) and at `equal` (every method
on the very same tensor), never elsewhere. A verdict is given only where rows of `runs.csv` decide:
without a sensor it is "not measurable on this machine", and an energy that was estimated from time
(`tdp-estimate`) decides nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..sizes import GIB
from .grid import NOTHING, Cell, Grid, significant
from .reading import Evidence, Group
from .summary import Summary
from .tables import divide

SETTINGS = ("paper", "equal")


@dataclass(frozen=True)
class Finding:
    """What one group of trials, or one sweep, says about a claim."""

    text: str
    holds: bool | None
    """None where it cannot tell: the repeats overlap, or there is only an estimate."""
    rows: Sequence[str]
    """The trials that decide it."""
    estimate: bool = False


@dataclass(frozen=True)
class Claim:
    text: str
    source: str
    """Where the paper says it."""
    holds_where: str
    """What would have to be seen."""
    examine: Callable[[Any], Finding | None]
    """A group of trials, or the rows of a sweep; None where its machine or methods cannot tell."""
    match: str = "parameters"
    """What of IDM's `unet` has in the groups that are examined."""


@dataclass(frozen=True)
class Judged:
    claim: Claim
    findings: Mapping[str, Sequence[Finding]]
    """By setting; `any` for a sweep. Empty where nothing was found."""
    verdict: str

    @property
    def mood(self) -> str:
        """How a page colours the verdict, beside its words."""
        if self.verdict.startswith("holds") and "only" not in self.verdict:
            return "good"
        return "bad" if self.verdict.startswith(("does not hold", "holds only")) else "open"

    def text_at(self, setting: str) -> str:
        found = [*self.findings.get(setting, []), *self.findings.get("any", [])]
        return "; ".join(finding.text for finding in found)

    @property
    def evidence(self) -> str:
        rows = [row for found in self.findings.values() for f in found for row in f.rows]
        return "; ".join(dict.fromkeys(rows))


def _ratio(column: str, one: str, other: str, show: Callable[[float], str],
           holds: Callable[[Summary, Summary], bool | None]
           ) -> Callable[[Group], Finding | None]:  # fmt: skip
    """Examine the ratio of two methods in one column."""

    def examine(group: Group) -> Finding | None:
        ours, theirs = (group.costs.summary(column, name) for name in (one, other))
        ratio = divide(ours, theirs)
        if ours is None or theirs is None or ratio is None:
            return None
        estimate = ours.is_estimate or theirs.is_estimate
        note = ", an estimate from time: decides nothing" if estimate else ""
        return Finding(
            f"{ratio:.2f}× ({show(ours.value)} to {show(theirs.value)}){note}, {group.kind}",
            None if estimate else holds(ours, theirs), _rows(group, (one, other), column), estimate,
        )  # fmt: skip

    return examine


def _least_memory(group: Group) -> Finding | None:
    # idm-stored and idm-lean are this project's, not among the methods the paper compares.
    methods = ["idm", *(name for name in group.methods if not name.startswith("idm"))]
    peaks = {name: group.costs.summary("peak_memory_bytes", name) for name in methods}
    known = {name: peak.value for name, peak in peaks.items() if peak is not None}
    if "idm" not in known or len(known) < 3:
        return None
    ranked = sorted(known, key=lambda name: known[name])
    text = ", ".join(
        f"{group.costs.named(name)} {significant(known[name] / GIB)}" for name in ranked
    )
    return Finding(
        f"{text} GiB (live), {group.kind}", ranked[0] == "idm",
        _rows(group, ranked, "peak_memory_bytes"),
    )  # fmt: skip


def _not_linear_energy(group: Group) -> Finding | None:
    columns = {"FLOPs": "flops_step", "time": "step_time_median_s", "energy": "energy_per_volume_j"}
    ratios, estimate = {}, False
    for word, column in columns.items():
        pair = [group.costs.summary(column, name) for name in ("idm", "idm-stored")]
        ratio = divide(*pair)
        if ratio is not None:
            ratios[word] = ratio
            estimate |= any(summary is not None and summary.is_estimate for summary in pair)
    if "FLOPs" not in ratios or len(ratios) < 2:
        return None
    text = ", ".join(f"{word} {ratio:.2f}×" for word, ratio in ratios.items())
    note = " (energy is an estimate from time: decides nothing)" if estimate else ""
    holds = None
    if len(ratios) == 3 and not estimate:
        holds = ratios["time"] > 1 and ratios["energy"] < ratios["FLOPs"]
    rows = _rows(group, ("idm", "idm-stored"), "step_time_median_s")
    return Finding(f"idm to idm-stored: {text}{note}, {group.kind}", holds, rows, estimate)


def _growth(column: str, most: float) -> Callable[[pd.DataFrame], Finding]:
    """Examine how much of idm's memory grows with the couplings a level."""

    def examine(rows: pd.DataFrame) -> Finding:
        rows = rows.sort_values("value")
        first, last = rows.iloc[0], rows.iloc[-1]
        grown = last[column] / first[column] - 1
        text = (
            f"{_gib(first[column])} with {first['value']} couplings a level, "
            f"{_gib(last[column])} with {last['value']} ({grown:+.1%}), predicted"
        )
        if column == "peak_memory_bytes":
            weights = ["parameter_bytes", "gradient_bytes", "optimizer_bytes"]
            share = last[weights].sum() - first[weights].sum()
            text += "; weights, gradients and optimizer account for "
            text += f"{significant(share / GIB)} GiB of it"
        place = f"{first['run']}, scale.csv: idm, couplings {_ranges(list(rows['value']))}"
        return Finding(text, bool(abs(grown) <= most), (place,))

    return examine


def _clearly_less(one: Summary, other: Summary) -> bool | None:
    """By the intervals where there are any: two that overlap are not told apart."""
    return None if one.overlaps(other) else one.value < other.value


def _gib(value: float) -> str:
    return f"{significant(value / GIB)} GiB live"


CLAIMS = (
    Claim(
        "15 % less peak memory than PatchDDM-3D", "Table 2: 0.85×",
        "idm ÷ patchddm is 0.85 or less",
        _ratio("peak_memory_bytes", "idm", "patchddm", _gib,
               lambda one, other: round(one.value / other.value, 2) <= 0.85),
    ),
    Claim(
        "Least memory of all methods, at equal parameters", "Fig. 3",
        "idm's peak is below that of every other method (at least two)", _least_memory,
    ),
    Claim(
        "Least memory of all methods, at equal FLOPs", "Fig. 3, for networks that compute as much",
        "the same, where unet has the FLOPs of idm's step (--match flops)", _least_memory,
        match="flops",
    ),
    Claim(
        "4.61× the FLOPs of PatchDDM-3D", "Table 2: 4.61×", "idm ÷ patchddm is 4.61 within 5 %",
        _ratio("flops_step", "idm", "patchddm", lambda v: f"{significant(v / 1e9)} GFLOP",
               lambda one, other: abs(one.value / other.value / 4.61 - 1) <= 0.05),
    ),
    Claim(
        "0.98× the peak temperature of PatchDDM-3D", "Table 2: 0.98×",
        "idm's peak is below patchddm's, in °C, intervals apart",
        _ratio("temperature_peak_c", "idm", "patchddm", lambda v: f"{v:.0f} °C", _clearly_less),
    ),
    Claim(
        "Less energy per parameter than PatchDDM-3D", "Fig. 4, §6.2",
        "idm's joules per parameter in the window are below patchddm's, intervals apart",
        _ratio("energy_per_parameter_j", "idm", "patchddm", lambda v: f"{significant(v * 1e6)} µJ",
               _clearly_less),
    ),
    Claim(
        "Inversion costs time, but energy does not grow linearly with the computations", "§4",
        "idm takes longer than idm-stored, and its energy grows less than its FLOPs",
        _not_linear_energy,
    ),
)  # fmt: skip
DEPTH_CLAIMS = (
    Claim(
        "Stored activations independent of depth", "§4",
        "what idm stores for the backward pass grows by 1 % at most from fewest couplings to most",
        _growth("stored_bytes", 0.01),
    ),
    Claim(
        "Peak memory independent of depth", "§4 (“mostly”)",
        "idm's peak, weights included, grows by 5 % at most from fewest couplings to most",
        _growth("peak_memory_bytes", 0.05),
    ),
)  # fmt: skip
"""About idm's line over couplings a level in `scale.csv`."""


def judge(evidence: Evidence) -> list[Judged]:
    # Sorted, so that measured comes before predicted.
    groups = sorted((g for g in evidence.groups if g.costs.own_setting), key=lambda g: g.kind)
    at = {setting: [g for g in groups if g.preset == setting] for setting in SETTINGS}
    sweeps: list[pd.DataFrame] = []
    scale = evidence.side_tables.get("scale.csv")
    if scale is not None:
        lines = scale[(scale["method"] == "idm") & (scale["axis"] == "couplings")]
        sweeps = [rows for _, rows in lines.groupby("run") if len(rows) > 1]
    judged = [_judge(claim, _matched(at, claim.match)) for claim in CLAIMS]
    return judged + [_judge(claim, {"any": sweeps}) for claim in DEPTH_CLAIMS]


def _matched(at: Mapping[str, Sequence[Group]], match: str) -> dict[str, list[Group]]:
    """Runs of older versions, which recorded no match, had equal parameters in these presets."""
    return {
        setting: [g for g in groups if (g.match == "flops") == (match == "flops")]
        for setting, groups in at.items()
    }


def _judge(claim: Claim, at: Mapping[str, Sequence[Any]]) -> Judged:
    """`at`: by setting, the groups or sweeps to examine."""
    findings = {
        setting: [finding for each in there if (finding := claim.examine(each)) is not None]
        for setting, there in at.items()
    }
    return Judged(claim, findings, _verdict(findings, seen=any(at.values())))


def _verdict(findings: Mapping[str, Sequence[Finding]], seen: bool) -> str:
    """Only from findings that could tell."""
    told = {
        setting: {f.holds for f in found if f.holds is not None}
        for setting, found in findings.items()
    }
    if any(len(answers) > 1 for answers in told.values()):
        return "the runs disagree"
    answers = {setting: next(iter(found)) for setting, found in told.items() if found}
    if not answers and any(not f.estimate for found in findings.values() for f in found):
        return "not decided: the repeats overlap"
    if not answers:
        return "not measurable on this machine" if seen else "not measured"
    holding = [setting for setting, holds in answers.items() if holds]
    if 0 < len(holding) < len(answers):
        return f"holds only at {holding[0]}"
    word = "holds" if holding else "does not hold"
    if len(answers) == len(findings):
        return word
    (setting,), (other,) = answers, set(findings) - set(answers)
    return f"{word} at {setting}; nothing decides it at {other}"


def claims_grid(judged: Sequence[Judged]) -> Grid:
    rows = []
    for one in judged:
        cells = [Cell(one.claim.text), Cell(one.claim.source), Cell(one.claim.holds_where)]
        cells += [Cell(one.text_at(setting) or NOTHING) for setting in SETTINGS]
        rows.append((*cells, Cell(one.evidence or NOTHING), Cell(one.verdict)))
    return Grid(
        "Claims",
        "What the paper says, and what these results say.",
        ("Claim", "In the paper", "Holds where", "At paper", "At equal", "Evidence", "Verdict"),
        tuple(rows),
        (
            "paper: each method in its own published setting; PatchDDM-3D trains on 128³ patches "
            "in 16 bit, batch 1, IDM on 64³ volumes in 32 bit, batch 4. equal: every method on the "
            "same tensor, 64³, batch 4, 32 bit.",
            "Of PatchDDM-3D, network, patches, batch and 16 bit are its authors'; the task (they "
            "segment, with 8 input channels), the diffusion and the optimizer are IDM's here.",
            "Live: of the tensors, without the scratch of the kernels.",
            "Energy per parameter divides by the size of the network: over the same minutes, at "
            "the same power, the network with more parameters always has less of it.",
            "A ratio of temperatures in °C means little: 0 °C is not the absence of heat.",
        ),
        numeric=False,
    )


def claims_table(judged: Sequence[Judged]) -> pd.DataFrame:
    """The grid's cells, empty where it shows that there is nothing."""
    names = ["claim", "source", "holds_where", *(f"at_{name}" for name in SETTINGS), "evidence",
             "verdict"]  # fmt: skip
    rows = ([cell.text for cell in row] for row in claims_grid(judged).rows)
    return pd.DataFrame(rows, columns=names).replace(NOTHING, "")


def _rows(group: Group, methods: Sequence[str], column: str) -> tuple[str, ...]:
    """The trials used, as `RUN: idm 1 2 3, patchddm 1 2 3` (method and repeats in its runs.csv)."""
    ok = group.ok
    ok = ok[ok["method"].isin(methods) & ok[column].notna()]
    texts = []
    for run, of_run in ok.groupby("run", sort=False):
        trials = (
            f"{method} {_ranges(sorted(rows['repeat']))}"
            for method, rows in of_run.groupby("method", sort=False)
        )
        texts.append(f"{run}: {', '.join(trials)}")
    return tuple(texts)


def _ranges(numbers: Sequence[int]) -> str:
    """1–3 for 1 2 3."""
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]}–{numbers[-1]}"
    return " ".join(map(str, numbers))
