"""The figures, looked at: bars, lines, labels, colours, and what print in greyscale leaves."""

import itertools
import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from bench.report import figures
from bench.report.figures import COLOURS, PART_COLOURS, PARTS, Picture
from bench.report.reading import Group, read_evidence
from tests.bench.report.runs import METHODS, PEAKS, predicted, record, window, write_run

NAMED = [name + "\n(another task)" * (name == "patchddm") for name in METHODS]


@pytest.fixture(scope="module")
def group(paper_run) -> Group:
    return read_evidence([paper_run.folder]).groups[0]


@pytest.fixture(scope="module")
def pictures(group: Group) -> dict[str, Picture]:
    return {picture.name: picture for picture in figures.draw_all(group)}


def texts(figure: Figure) -> list[str]:
    axes = figure.axes[0]
    legend = [text for legend in figure.legends for text in legend.get_texts()]
    every = [*axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels(), *legend]
    return [text.get_text() for text in every]


def lightness(colour: str) -> float:
    """CIE L*, which is what greyscale print keeps."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    y = float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
    return 116 * y ** (1 / 3) - 16


def test_the_bars_of_figure_3_are_the_parts_and_add_up_to_the_peak(pictures):
    axes = pictures["peak_memory"].figure.axes[0]
    parts = {bars.get_label(): bars for bars in axes.containers}
    assert list(parts) == list(PARTS.values())
    for index, method in enumerate(METHODS):
        bars = [container[index] for container in parts.values()]
        assert sum(bar.get_width() for bar in bars) == pytest.approx(PEAKS[method])
        for bar, after in itertools.pairwise(bars):  # stacked without gap or overlap
            assert bar.get_x() + bar.get_width() == pytest.approx(after.get_x())
    assert axes.get_xlabel() == "peak memory of one training step (GiB)"
    assert {"unet", "idm", "18.0", "6.00", "activations"} <= set(
        texts(pictures["peak_memory"].figure)
    )
    assert axes.get_xlim()[1] > 18


def test_figure_3_marks_what_the_paper_says_at_its_own_preset_only(pictures, equal_run):
    (mark,) = pictures["peak_memory"].figure.axes[0].lines
    assert list(mark.get_xdata()) == pytest.approx([7.899565, 6.708984])
    assert list(mark.get_ydata()) == ["patchddm", "idm"]
    (equal,) = read_evidence([equal_run.folder]).groups
    assert not figures.peak_memory(equal).figure.axes[0].lines


def test_parts_that_do_not_add_up_are_shown_as_not_split(tmp_path: Path):
    missing = {f"{part}_bytes": None for part in PARTS}
    run = write_run(tmp_path / "run", [record("idm", **missing)])
    axes = figures.peak_memory(read_evidence([run.folder]).groups[0]).figure.axes[0]
    bars = {container.get_label(): container[0].get_width() for container in axes.containers}
    assert bars["not split"] == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("name", "label", "end"),
    [
        ("energy_per_parameter", "energy per parameter (µJ)", 170 * 120 * 1.1 / 343.6),
        ("temperature", "temperature (°C)", 45 + 17 * (1 - np.exp(-4))),
    ],
)
def test_figures_4_and_5_show_the_median_and_the_spread_over_repeats(pictures, name, label, end):
    figure = pictures[name].figure
    axes = figure.axes[0]
    assert axes.get_ylabel() == label
    assert axes.get_xlabel() == "time in the window (s)"
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines) == NAMED
    assert lines["idm"].get_ydata()[-1] == pytest.approx(end)
    assert lines["idm"].get_xdata()[-1] == 120
    shades = axes.collections
    assert len(shades) == len(METHODS)
    edge = shades[list(METHODS).index("idm")].get_paths()[0].vertices[:, 1]
    assert edge.max() > end > edge[edge > 0][-1] * 0.5
    assert edge.max() == pytest.approx(_most(name), rel=1e-6)
    dashes = [str(line.get_linestyle()) + str(line._dash_pattern) for line in lines.values()]
    assert len(set(dashes)) == len(METHODS)  # greyscale: not by colour alone
    assert "shade: from least to most" in pictures[name].caption


def _most(name: str) -> float:
    if name == "temperature":
        return 45 + 18 * (1 - np.exp(-4))
    return 170 * 120 * 1.15 / 343.6


def test_captions_name_the_source_and_the_machine(pictures):
    assert "Source: nvml-counter" in pictures["energy_per_parameter"].caption
    assert "Source: nvml." in pictures["temperature"].caption
    assert "Source: tensor-storages" in pictures["peak_memory"].caption
    assert all("NVIDIA RTX A5000" in picture.caption for picture in pictures.values())


def test_the_frontier_joins_what_no_other_method_beats(group):
    points = figures.frontier_points(group).set_index("method")
    # By the voxel patchddm computes least, on its 128³, and idm, on 4 · 64³, needs least memory.
    assert list(points.index[points["best"]]) == ["patchddm", "idm"]
    assert points.loc["idm", "gflop"] == pytest.approx(9e12 / (4 * 64**3 / 1e6) / 1e9)
    assert points.loc["patchddm", "gflop"] == pytest.approx(2e12 / (128**3 / 1e6) / 1e9)
    assert points.loc["unet", "gib"] == pytest.approx(18)


def test_points_on_the_frontier_are_named_by_colour_and_shape(pictures, group):
    """Names beside the points cover each other where methods are close."""
    figure = pictures["frontier"].figure
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == NAMED
    points = figures.frontier_points(group).set_index("method")
    drawn = {line.get_label().split()[0]: line for line in figure.axes[0].lines}
    for name in METHODS:
        assert (drawn[name].get_xdata()[0], drawn[name].get_ydata()[0]) == tuple(
            points.loc[name, ["gflop", "gib"]]
        )
        assert (drawn[name].get_markerfacecolor() == "none") != points.loc[name, "best"]
    assert len({drawn[name].get_marker() for name in METHODS}) == len(METHODS)


def test_parts_can_be_told_apart_in_greyscale():
    steps = np.diff([lightness(colour) for colour in PART_COLOURS.values()])
    assert (np.abs(steps) > 9).all()
    assert len(set(COLOURS)) == len(COLOURS)


def test_the_files_show_what_was_drawn_at_column_width(report: Path):
    image = matplotlib.image.imread(report / "peak_memory.png")[..., :3]
    assert image.shape[1] == 1050  # 3.5 inches at 300 dots
    for name, colour in PART_COLOURS.items():
        if name == "other":  # 1 KiB of 6 GiB
            continue
        near = (np.abs(image - np.array(to_rgb(colour))) < 0.02).all(axis=2)
        assert near.mean() > 0.01, name
    assert (image.min(axis=2) > 0.99).mean() > 0.3  # white paper
    for name in ("energy_per_parameter", "temperature", "frontier"):
        shown = matplotlib.image.imread(report / f"{name}.png")[..., :3]
        assert (shown < 0.5).any(axis=2).mean() > 0.01, name
        pdf = (report / f"{name}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF")
        assert b"CreationDate" not in pdf


def test_what_was_not_measured_is_said_and_leaves_no_file(equal_run, tmp_path: Path):
    (equal,) = read_evidence([equal_run.folder]).groups
    drawn = {picture.name: picture for picture in figures.draw_all(equal)}
    assert drawn["temperature"].content == "predicted, not run"
    assert drawn["temperature"].save(tmp_path) == []
    assert [path.name for path in drawn["peak_memory"].save(tmp_path)] == [
        "peak_memory.png",
        "peak_memory.pdf",
    ]
    assert {path.stem for path in tmp_path.iterdir()} == {"peak_memory"}


def test_a_machine_without_a_sensor_is_named(tmp_path: Path):
    samples = window("idm")
    for sample in samples:
        sample.temperature_c = None
    run = write_run(tmp_path / "run", [record("idm")], samples)
    picture = figures.temperature(read_evidence([run.folder]).groups[0])
    assert picture.empty
    assert picture.content == "not available on this machine"
    (text,) = picture.figure.axes[0].texts  # a measured run leaves all of the paper's figures
    assert text.get_text() == "temperature (°C): not available on this machine"
    assert len(picture.save(tmp_path)) == 2


def test_foreign_names_cannot_break_a_figure(tmp_path: Path, recwarn):
    names = ["$\\frac{1}", "_hidden", "a" * 200, "模型", "<b>&amp;", "100 %", "\\alpha", "{x}"]
    run = write_run(
        tmp_path / "run",
        [record(name) for name in names],
        [sample for name in names for sample in window(name)],
    )
    for picture in figures.draw_all(read_evidence([run.folder]).groups[0]):
        svg = picture.svg("x")
        assert "<b>" not in svg
        shown = texts(picture.figure)
        assert {"$\\frac{1}", "100 %", "a" * 23 + "…"} <= set(shown), picture.name
        assert all(path.stat().st_size > 1000 for path in picture.save(tmp_path))
    assert [str(w.message) for w in recwarn] == []


def test_svgs_in_one_page_share_no_id_and_follow_its_colours(pictures):
    svg = pictures["temperature"].svg("one") + pictures["peak_memory"].svg("two")
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert ids
    assert len(ids) == len(set(ids))
    for reference in re.findall(r'(?:href="#|url\(#)([^")]+)', svg):
        assert reference in ids
    assert "currentColor" in svg
    assert figures.INK not in svg
    assert "<metadata" not in svg
    assert not re.search(r"<svg [^>]*\swidth=", svg)


def test_more_methods_than_a_figure_can_show(tmp_path: Path):
    run = write_run(
        tmp_path / "run", [predicted(f"m{i}", flops_step=10**12 + i) for i in range(60)]
    )
    picture = figures.draw_all(read_evidence([run.folder]).groups[0])[0]
    assert len(picture.figure.axes[0].containers[0]) == figures.MOST_METHODS
    assert "36 more methods" in picture.caption


def test_samples_of_trials_that_failed_are_not_drawn(tmp_path: Path):
    run = write_run(
        tmp_path / "run",
        [record("idm"), record("unet", status="oom")],
        window("idm") + window("unet"),
    )
    axes = figures.temperature(read_evidence([run.folder]).groups[0]).figure.axes[0]
    assert [line.get_label() for line in axes.lines] == ["idm"]
    assert pd.notna(axes.lines[0].get_ydata()).all()
