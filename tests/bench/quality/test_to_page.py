"""From a network to the page: what scoring leaves is what the report reads."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bench.data import open_source
from bench.data.nifti import read_nifti, write_nifti
from bench.ddpm.samplers import generate
from bench.methods import METHODS
from bench.presets import Overrides
from bench.quality.evaluation import sampling_memory
from bench.quality.scoring import score, score_samples
from bench.records.files import write_rows
from bench.records.rows import Score
from bench.report import table1
from bench.report.figure2 import write_figure2
from bench.report.reading import read_evidence
from bench.report.write import write_reports

MODALITY = ("t1", "t2")
OVERRIDES = Overrides(volume=8, channels=(8, 16), modality=MODALITY)


def brains(count: int) -> Tensor:
    source = open_source("phantom", modality=MODALITY, volume=8, subjects=count)
    return torch.from_numpy(np.stack([source[index] for index in range(count)]))


def network(method: str) -> nn.Module:
    work = METHODS[method].workload("small", OVERRIDES)
    torch.manual_seed(0)
    return METHODS[method].build(work).eval()


def test_two_methods_and_two_modalities_from_a_network_to_the_page(tmp_path: Path):
    real, generated, scores = brains(4), {}, []
    for method in ("idm", "patchddm"):
        net = network(method)
        rows = score(net, real[:3], MODALITY, 0, method=method, training_seed=1, data="phantom")
        samples = generate(net, (2, *real.shape[1:]), "ddim", 3)
        memory = sampling_memory(net, (2, *real.shape[1:]))
        rows += score_samples(
            samples, real, MODALITY, "ddim", 3,
            method=method, training_seed=1, data="phantom", memory=memory,
        )  # fmt: skip
        scores += rows
        path = tmp_path / f"{method}.nii.gz"
        assert len(write_nifti(path, samples, np.eye(4))) == 4
        assert np.array_equal(read_nifti(path, 2), samples)
        generated[method] = samples.numpy()
    write_rows(tmp_path / "quality.csv", Score, scores)
    write_figure2(real.numpy(), generated, tmp_path, MODALITY)
    write_reports([tmp_path], tmp_path)

    evidence = read_evidence([tmp_path])
    assert evidence.problems == []
    table = table1.score_table(evidence.side_tables["quality.csv"])
    first, levels, drawn = table1.table1_grids(table1.score_rows(table))
    here = [row for row in first.rows if row[1].text == "here"]
    assert [row[0].text for row in here] == [
        f"{method}, {modality}"
        for modality in ("T1", "T2") for method in ("idm", "patchddm") for _ in range(2)
    ]  # fmt: skip
    assert all(cell.value is not None and cell.source for row in here for cell in row[3:])
    assert len(levels.rows) == 2 * 2 * 5
    assert [cell.text for cell in drawn.rows[0][:3]] == ["idm, T1", "ddim", "3"]
    assert all(cell.value is not None for row in drawn.rows for cell in row[2:])
    page = (tmp_path / "report.html").read_text()
    assert "patchddm, T2" in page
    assert "Figure 2" in page
