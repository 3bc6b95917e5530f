"""The picture of `scale`: each line with its slope, legible."""

from itertools import combinations
from pathlib import Path

from bench.records.files import read_table
from bench.records.rows import Point, Slope
from bench.report.scaling import draw_scaling

SCALE = Path(__file__).parents[3] / "results" / "reference" / "scale"


def test_no_slope_is_written_over_another():
    """Those of two lines were, where lines end close together."""
    slopes = read_table(SCALE / "scale_slopes.csv", Slope)
    figure = draw_scaling(read_table(SCALE / "scale.csv", Point), slopes).figure
    figure.draw_without_rendering()
    assert sum(len(axes.texts) for axes in figure.axes) == len(slopes)
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        for one, other in combinations(boxes, 2):
            assert not one.overlaps(other)
