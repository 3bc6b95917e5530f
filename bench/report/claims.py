"""The paper's claims, each against the rows that can hold or refute it.

A claim is judged at `paper` (each method in its own published setting) and at `equal` (every method
on the very same tensor), never elsewhere. A verdict stands on rows of `runs.csv` or it is not
given: what no sensor of the machine can tell is "not measurable on this machine", and an energy
guessed from time (`tdp-estimate`) decides nothing.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from bench.report.grid import NOTHING, Cell, Grid, significant
from bench.report.reading import Evidence, Group
from bench.report.summary import Summary, summarise

SETTINGS = ("paper", "equal")
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """What one group of trials says about a claim."""

    text: str
    holds: bool | None
    """None where it cannot tell."""
    rows: tuple[str, ...]
    """The trials that it stands on."""


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
    claim: Claim
    findings: dict[str, list[Finding]]
    """By setting; empty where nothing was found."""
    verdict: str

    @property
    def mood(self) -> str:
        """How a page colours the verdict, beside its words."""
        if self.verdict.startswith("holds") and "only" not in self.verdict:
            return "good"
        return "bad" if self.verdict.startswith(("does not hold", "holds only")) else "open"

    @property
    def evidence(self) -> str:
        rows = [row for found in self.findings.values() for f in found for row in f.rows]
        return "; ".join(dict.fromkeys(rows))


def _ratio(column: str, one: str, other: str, holds: Callable[[Summary, Summary], bool | None],
           show: Callable[[float], str]) -> Callable[[Group], Finding | None]:  # fmt: skip
    """Examine the ratio of two methods in one column."""

    def examine(group: Group) -> Finding | None:
        pair = [_of(group, name, column) for name in (one, other)]
        if pair[0] is None or pair[1] is None or pair[1].value == 0:
            return None
        ratio = pair[0].value / pair[1].value
        text = f"{ratio:.2f}× ({show(pair[0].value)} to {show(pair[1].value)})"
        if pair[0].is_estimate or pair[1].is_estimate:
            text = f"{text}, an estimate from time: decides nothing"
            return Finding(text, None, _rows(group, (one, other), column))
        return Finding(text, holds(*pair), _rows(group, (one, other), column))

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
    return Finding(text, holds, _rows(group, methods, "step_time_median_s"))


def _clearly_less(one: Summary, other: Summary) -> bool | None:
    """By the intervals where there are any: two that overlap are not told apart."""
    if None in (one.low, one.high, other.low, other.high):
        return one.value < other.value
    assert one.low is not None and one.high is not None
    assert other.low is not None and other.high is not None
    if one.low <= other.high and other.low <= one.high:
        return None
    return one.value < other.value


def _gib(value: float) -> str:
    return f"{significant(value / GIB)} GiB"


CLAIMS = (
    Claim(
        "15 % less peak memory than PatchDDM-3D", "Table 2: 0.85×", "idm ÷ patchddm is 0.85 or less",
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
        "idm's peak is not above patchddm's, in °C",
        _ratio("temperature_peak_c", "idm", "patchddm",
               lambda one, other: one.value <= other.value, lambda v: f"{v:.0f} °C"),
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


def judge(evidence: Evidence) -> list[Judged]:
    return [_judge(claim, evidence) for claim in CLAIMS]


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
    return Finding(f"{finding.text}, {group.kind}", finding.holds, finding.rows)


def _verdict(findings: dict[str, list[Finding]], seen: bool) -> str:
    """Only from findings that could tell."""
    told = {
        setting: {f.holds for f in found if f.holds is not None}
        for setting, found in findings.items()
    }
    if any(len(answers) > 1 for answers in told.values()):
        return "the runs disagree"
    answers = {setting: next(iter(found)) for setting, found in told.items() if found}
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
        for setting in SETTINGS:
            found = one.findings[setting]
            cells.append(Cell("; ".join(f.text for f in found) or NOTHING))
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
                **{
                    f"at_{setting}": "; ".join(f.text for f in one.findings[setting])
                    for setting in SETTINGS
                },
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
