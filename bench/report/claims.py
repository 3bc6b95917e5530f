"""The paper's claims, each against the rows that can hold or refute it.

A claim is judged at `paper` (each method in its own published setting) and at `equal` (every method
on the very same tensor), never elsewhere. A verdict stands on rows of `runs.csv` or it is not
given: what no sensor of the machine can tell is "not measurable on this machine", and an energy
guessed from time (`tdp-estimate`) decides nothing.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from bench.report.grid import NOTHING, Cell, Grid, significant
from bench.report.reading import Evidence, Group
from bench.report.summary import Summary, summarise
from bench.sizes import GIB

SETTINGS = ("paper", "equal")


@dataclass(frozen=True)
class Finding:
    """What one group of trials says about a claim."""

    text: str
    holds: bool | None
    """None where it cannot tell: the repeats overlap, or there is only an estimate."""
    rows: tuple[str, ...]
    """The trials that it stands on."""
    estimate: bool = False


@dataclass(frozen=True)
class Claim:
    text: str
    source: str
    """Where the paper says it."""
    holds_where: str
    """What would have to be seen."""
    examine: Callable[[Group], Finding | None]
    """None where the group's machine or methods cannot tell."""


@dataclass(frozen=True)
class Judged:
    claim: "Claim | DepthClaim"
    findings: dict[str, list[Finding]]
    """By setting (`any` for what is no matter of the setting); empty where nothing was found."""
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


def _ratio(column: str, one: str, other: str, holds: Callable[[Summary, Summary], bool | None],
           show: Callable[[float], str]) -> Callable[[Group], Finding | None]:  # fmt: skip
    """Examine the ratio of two methods in one column."""

    def examine(group: Group) -> Finding | None:
        ours, theirs = (_of(group, name, column) for name in (one, other))
        if ours is None or theirs is None or theirs.value == 0:
            return None
        ratio = ours.value / theirs.value
        text = f"{ratio:.2f}× ({show(ours.value)} to {show(theirs.value)})"
        if ours.is_estimate or theirs.is_estimate:
            text = f"{text}, an estimate from time: decides nothing"
            return Finding(text, None, _rows(group, (one, other), column), estimate=True)
        return Finding(text, holds(ours, theirs), _rows(group, (one, other), column))

    return examine


def _least_memory(group: Group) -> Finding | None:
    # idm-stored and idm-lean are this project's, not among the methods the paper compares.
    others = [name for name in group.methods if not name.startswith("idm")]
    peaks = {name: _of(group, name, "peak_memory_bytes") for name in ("idm", *others)}
    known = {name: peak.value / GIB for name, peak in peaks.items() if peak is not None}
    if "idm" not in known or len(known) < 3:
        return None
    ranked = sorted(known, key=lambda name: known[name])
    text = ", ".join(f"{name} {significant(known[name])}" for name in ranked) + " GiB"
    return Finding(text, ranked[0] == "idm", _rows(group, ranked, "peak_memory_bytes"))


def _not_linear_energy(group: Group) -> Finding | None:
    methods = ("idm", "idm-stored")
    ratios, estimated = {}, False
    for column in ("flops_step", "step_time_median_s", "energy_per_volume_j"):
        pair = [_of(group, name, column) for name in methods]
        if pair[0] is not None and pair[1] is not None and pair[1].value:
            ratios[column] = pair[0].value / pair[1].value
            estimated |= pair[0].is_estimate or pair[1].is_estimate
    if "flops_step" not in ratios or len(ratios) < 2:
        return None
    words = {"flops_step": "FLOPs", "step_time_median_s": "time", "energy_per_volume_j": "energy"}
    text = "idm to idm-stored: " + ", ".join(
        f"{words[column]} {ratio:.2f}×" for column, ratio in ratios.items()
    )
    holds = None
    if len(ratios) == 3 and not estimated:
        flops, seconds, energy = ratios.values()
        holds = seconds > 1 and energy < flops
    elif estimated:
        text += " (energy is an estimate from time: decides nothing)"
    return Finding(text, holds, _rows(group, methods, "step_time_median_s"), estimated)


def _clearly_less(one: Summary, other: Summary) -> bool | None:
    """By the intervals where there are any: two that overlap are not told apart."""
    return None if one.overlaps(other) else one.value < other.value


def _gib(value: float) -> str:
    return f"{significant(value / GIB)} GiB"


CLAIMS = (
    Claim(
        "15 % less peak memory than PatchDDM-3D", "Table 2: 0.85×",
        "idm ÷ patchddm is 0.85 or less",
        _ratio("peak_memory_bytes", "idm", "patchddm",
               lambda one, other: round(one.value / other.value, 2) <= 0.85, _gib),
    ),
    Claim(
        "Least memory of all methods", "Fig. 3",
        "idm's peak is below that of every other method (at least two)", _least_memory,
    ),
    Claim(
        "4.61× the FLOPs of PatchDDM-3D", "Table 2: 4.61×", "idm ÷ patchddm is 4.61 within 5 %",
        _ratio("flops_step", "idm", "patchddm",
               lambda one, other: abs(one.value / other.value / 4.61 - 1) <= 0.05,
               lambda v: f"{significant(v / 1e9)} GFLOP"),
    ),
    Claim(
        "0.98× the peak temperature of PatchDDM-3D", "Table 2: 0.98×",
        "idm's peak is below patchddm's, in °C, intervals apart",
        _ratio("temperature_peak_c", "idm", "patchddm",
               _clearly_less, lambda v: f"{v:.0f} °C"),
    ),
    Claim(
        "Less energy per parameter than PatchDDM-3D", "Fig. 4, §6.2",
        "idm's joules per parameter in the window are below patchddm's, intervals apart",
        _ratio("energy_per_parameter_j", "idm", "patchddm", _clearly_less,
               lambda v: f"{significant(v * 1e6)} µJ"),
    ),
    Claim(
        "Inversion costs time, but energy does not grow linearly with the computations", "§4",
        "idm takes longer than idm-stored, and its energy grows less than its FLOPs",
        _not_linear_energy,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class DepthClaim:
    """A claim about idm's line over couplings a level in `scale.csv`."""

    text: str
    source: str
    holds_where: str
    column: str


DEPTH_CLAIMS = (
    DepthClaim(
        "Stored activations independent of depth", "§4",
        "what idm stores for the backward pass grows by 1 % at most from fewest couplings to most",
        "stored_bytes",
    ),
    DepthClaim(
        "Peak memory independent of depth", "§4 (“mostly”)",
        "idm's peak, weights and all, grows by 5 % at most from fewest couplings to most",
        "peak_memory_bytes",
    ),
)  # fmt: skip
_MOST_GROWTH = {"stored_bytes": 0.01, "peak_memory_bytes": 0.05}


def judge(evidence: Evidence) -> list[Judged]:
    judged = [_judge(claim, evidence) for claim in CLAIMS]
    return judged + [_judge_depth(claim, evidence) for claim in DEPTH_CLAIMS]


def _judge_depth(claim: DepthClaim, evidence: Evidence) -> Judged:
    scale = evidence.side_tables.get("scale.csv")
    findings: list[Finding] = []
    if scale is not None:
        lines = scale[(scale["method"] == "idm") & (scale["axis"] == "couplings")]
        findings = [_growth(claim, rows) for _, rows in lines.groupby("run") if len(rows) > 1]
    answers = {finding.holds for finding in findings}
    verdict = "not measured" if not answers else "the runs disagree"
    if len(answers) == 1:
        verdict = "holds" if answers.pop() else "does not hold"
    return Judged(claim, {"any": findings}, verdict)


def _growth(claim: DepthClaim, rows: pd.DataFrame) -> Finding:
    rows = rows.sort_values("value")
    first, last = rows.iloc[0], rows.iloc[-1]
    grown = last[claim.column] / first[claim.column] - 1
    weights = ["parameter_bytes", "gradient_bytes", "optimizer_bytes"]
    text = (
        f"{_gib(first[claim.column])} with {first['value']:.0f} couplings a level, "
        f"{_gib(last[claim.column])} with {last['value']:.0f} ({grown:+.1%}), predicted"
    )
    if claim.column == "peak_memory_bytes":
        share = last[weights].sum() - first[weights].sum()
        text += f"; weights, gradients and optimizer account for {_gib(share)} of it"
    names = (
        f"{rows['run'].iloc[0]}, scale.csv: idm, couplings {_ranges(list(map(int, rows['value'])))}"
    )
    return Finding(text, bool(abs(grown) <= _MOST_GROWTH[claim.column]), (names,))


def _judge(claim: Claim, evidence: Evidence) -> Judged:
    findings: dict[str, list[Finding]] = {}
    seen = False
    for setting in SETTINGS:
        # Sorted, so that what was measured is read before what was predicted.
        groups = sorted(_at(evidence, setting), key=lambda group: group.kind)
        seen |= bool(groups)
        found = (_labelled(claim.examine(group), group) for group in groups)
        findings[setting] = [finding for finding in found if finding is not None]
    return Judged(claim, findings, _verdict(findings, seen))


def _at(evidence: Evidence, setting: str) -> Iterable[Group]:
    return (g for g in evidence.groups if g.preset == setting and g.own_setting)


def _labelled(finding: Finding | None, group: Group) -> Finding | None:
    if finding is None:
        return None
    return replace(finding, text=f"{finding.text}, {group.kind}")


def _verdict(findings: dict[str, list[Finding]], seen: bool) -> str:
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
    if len(answers) == 1:
        ((setting, holds),) = answers.items()
        (other,) = set(SETTINGS) - {setting}
        word = "holds" if holds else "does not hold"
        return f"{word} at {setting}; nothing decides it at {other}"
    if len(set(answers.values())) == 1:
        return "holds" if answers["paper"] else "does not hold"
    return f"holds only at {next(setting for setting, holds in answers.items() if holds)}"


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
            "Energy per parameter divides by the size of the network: over the same minutes, at "
            "the same power, the network with more parameters always has less of it.",
            "A ratio of temperatures in °C means little: its zero is that of water.",
        ),
        numeric=False,
    )


def claims_table(judged: Sequence[Judged]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "claim": one.claim.text,
                "source": one.claim.source,
                "holds_where": one.claim.holds_where,
                **{f"at_{setting}": one.text_at(setting) for setting in SETTINGS},
                "evidence": one.evidence,
                "verdict": one.verdict,
            }
            for one in judged
        ]
    )


def _of(group: Group, method: str, column: str) -> Summary | None:
    return summarise(group.records[group.records["method"] == method], column)


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
