"""Verdicts: each from rows, none without."""

from pathlib import Path

import pandas as pd
import pytest

from bench.report.claims import claims_grid, judge
from bench.report.reading import read_evidence
from tests.bench.report.runs import GIB, METHODS, predicted, record, write_run

MEMORY = "15 % less peak memory than PatchDDM-3D"
ENERGY = "Less energy per parameter than PatchDDM-3D"
INVERSION = "Inversion costs time, but energy does not grow linearly with the computations"


def verdicts(*folders: Path) -> dict[str, str]:
    return {one.claim.text: one.verdict for one in judge(read_evidence(folders))}


def peaks(folder: Path, preset: str, **gib: float) -> Path:
    rows = [predicted(name, preset, peak_memory_bytes=int(v * GIB)) for name, v in gib.items()]
    return write_run(folder, rows).folder


@pytest.mark.parametrize(
    ("paper", "equal", "verdict"),
    [
        (8.5, 8.5, "holds"),
        (8.6, 8.6, "does not hold"),
        (8.5, 9.0, "holds only at paper"),
        (9.0, 8.5, "holds only at equal"),
        (8.5, None, "holds at paper; nothing decides it at equal"),
        (None, 9.0, "does not hold at equal; nothing decides it at paper"),
        (None, None, "not measured"),
    ],
)
def test_a_verdict_is_about_both_settings(tmp_path: Path, paper, equal, verdict):
    folders = [
        peaks(tmp_path / preset, preset, idm=value, patchddm=10.0)
        for preset, value in (("paper", paper), ("equal", equal))
        if value is not None
    ]
    assert verdicts(*folders)[MEMORY] == verdict


def test_runs_at_other_presets_or_with_flags_decide_nothing(tmp_path: Path):
    small = write_run(tmp_path / "small", [record(name, preset="small") for name in METHODS])
    flags = write_run(tmp_path / "flags", [record(name, batch_size=2) for name in METHODS])
    assert set(verdicts(small.folder, flags.folder).values()) == {"not measured"}


def test_every_verdict_names_its_rows(paper_run, equal_run):
    for one in judge(read_evidence([paper_run.folder, equal_run.folder])):
        decided = one.verdict not in ("not measured", "not measurable on this machine")
        assert bool(one.evidence) == decided
    memory = judge(read_evidence([paper_run.folder]))[0]
    assert memory.evidence == "20260101T000000Z-paper: patchddm 1–3, idm 1–3"


def test_an_estimate_from_time_decides_nothing(tmp_path: Path):
    rows = [
        record(name, repeat, energy_source="tdp-estimate")
        for name in METHODS
        for repeat in (1, 2, 3)
    ]
    found = verdicts(write_run(tmp_path / "run", rows).folder)
    assert found[ENERGY] == "not measurable on this machine"
    assert found[INVERSION] == "not measurable on this machine"


def test_without_a_sensor_it_is_not_measurable(equal_run):
    found = verdicts(equal_run.folder)
    assert found["0.98× the peak temperature of PatchDDM-3D"] == "not measurable on this machine"
    assert found[MEMORY].startswith("holds at equal")


def test_overlapping_repeats_decide_nothing(tmp_path: Path):
    rows = [
        record(name, repeat, temperature_peak_c=60 + repeat + shift)
        for name, shift in (("idm", -0.5), ("patchddm", 0))
        for repeat in (1, 2, 3)
    ]
    found = verdicts(write_run(tmp_path / "run", rows).folder)
    assert found["0.98× the peak temperature of PatchDDM-3D"] == "not decided: the repeats overlap"


def test_two_runs_that_disagree_are_not_averaged(tmp_path: Path):
    rows = [[record("idm", peak_memory_bytes=int(v * GIB)), record("patchddm")] for v in (5, 7.4)]
    rows[1] = [
        record(r.method, device_name="other", peak_memory_bytes=r.peak_memory_bytes)
        for r in rows[1]
    ]
    folders = [write_run(tmp_path / name, r).folder for name, r in zip("ab", rows, strict=True)]
    assert verdicts(*folders)[MEMORY] == "the runs disagree"


LEAST = "Least memory of all methods, at equal parameters"


def test_least_memory_has_a_verdict_for_either_width(tmp_path: Path):
    """Checkpointed, a U-Net that computes as much needs less."""
    wide = peaks(tmp_path / "a", "equal", idm=6, patchddm=7, checkpoint=14)
    slim = peaks(tmp_path / "b", "equal", idm=6, patchddm=7, checkpoint=3)
    for folder, match in ((wide, "parameters"), (slim, "flops")):
        rows = pd.read_csv(folder / "runs.csv").assign(match=match)
        rows.to_csv(folder / "runs.csv", index=False)
    evidence = read_evidence([wide, slim])
    assert [group.match for group in evidence.groups] == ["parameters", "flops"]
    found = {one.claim.text: one.verdict for one in judge(evidence)}
    assert found[LEAST].startswith("holds at equal")
    assert found["Least memory of all methods, at equal FLOPs"].startswith("does not hold at equal")


def test_least_memory_is_among_the_methods_that_the_paper_compares(tmp_path: Path):
    folder = peaks(tmp_path / "a", "paper", idm=6, patchddm=7, unet=18, **{"idm-stored": 5})
    assert verdicts(folder)[LEAST].startswith("holds at paper")
    folder = peaks(tmp_path / "b", "paper", idm=6, patchddm=5, unet=18)
    assert verdicts(folder)[LEAST].startswith("does not hold at paper")
    folder = peaks(tmp_path / "c", "paper", idm=6, patchddm=7)  # two are not all
    assert verdicts(folder)[LEAST] == "not measurable on this machine"


def test_depth_is_judged_by_scale_csv(tmp_path: Path):
    header = (
        "method,axis,value,amount,parameters,peak_memory_bytes,parameter_bytes,gradient_bytes,"
        "optimizer_bytes,activation_bytes,other_bytes,stored_bytes\n"
    )
    line = "idm,couplings,{0},{0},9,{1},{2},{2},{3},5,5,1000\n"
    text = header + "".join(
        line.format(n, 10_000 + 400 * n, 100 * n, 200 * n) for n in (1, 2, 4, 8)
    )
    (tmp_path / "scale.csv").write_text(text)
    found = verdicts(tmp_path)
    assert found["Stored activations independent of depth"] == "holds"
    assert found["Peak memory independent of depth"] == "does not hold"
    (peak,) = [o for o in judge(read_evidence([tmp_path])) if o.claim.text.startswith("Peak")]
    assert "+26.9%" in peak.text_at("paper")
    assert peak.evidence == f"{tmp_path.name}, scale.csv: idm, couplings 1 2 4 8"


def test_the_page_has_a_row_a_claim(paper_run):
    grid = claims_grid(judge(read_evidence([paper_run.folder])))
    assert len(grid.rows) == 9
    assert grid.header[0] == "Claim"
    assert grid.header[-1] == "Verdict"
