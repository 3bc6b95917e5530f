"""What fits: the answer fits, and one more does not."""

from dataclasses import replace
from functools import cache

import pytest

from bench.commands import FitCommand
from bench.errors import UserError
from bench.methods import METHODS
from bench.predict import predict_method
from bench.predict.alloc_conf import AllocConf
from bench.predict.fit import Question, answer, run_fit, what_fits_instead
from bench.predict.search import largest_that_fits
from bench.presets import Overrides
from bench.sizes import Shape, parse_size, show_size

pytestmark = pytest.mark.slow

NARROW = Overrides(channels=(16, 32))
"""Two levels: a prediction takes a fraction of a second."""


EXPANDABLE = AllocConf(expandable_segments=True)


@cache
def predicted(method, **overrides):
    work = METHODS[method].workload("small", replace(NARROW, **overrides))
    return predict_method(METHODS[method], work, count_forward=False)


def needs(method, **overrides):
    return predicted(method, **overrides).cuda_pool.peak_allocated


@pytest.mark.parametrize("method", ["idm", pytest.param("patchddm", marks=pytest.mark.thorough)])
def test_the_answer_fits_and_one_more_does_not(method):
    limit = 100 * 2**20
    fit = answer(Question(method, "small", NARROW, limit))

    assert fit.batch_size > 1
    assert needs(method, batch_size=fit.batch_size) == fit.batch_needs <= limit
    assert predicted(method, batch_size=fit.batch_size).fits_cuda(limit, EXPANDABLE)
    assert not predicted(method, batch_size=fit.batch_size + 1).fits_cuda(limit, EXPANDABLE)
    step = {"idm": 2, "patchddm": 4}[method]  # patches are half of a volume
    (side_of_cube,) = set(fit.largest_volume)
    assert side_of_cube % step == 0
    part = {"idm": 1, "patchddm": 2}[method]
    assert [n * part for n in fit.patch] == list(fit.volume)
    assert [n * part for n in fit.largest_patch] == list(fit.largest_volume)
    side = {"volume": fit.largest_volume, "batch_size": 1}
    assert needs(method, **side) == fit.volume_needs <= limit
    assert predicted(method, **side).fits_cuda(limit, EXPANDABLE)
    larger = side | {"volume": Shape(side_of_cube + step)}
    assert not predicted(method, **larger).fits_cuda(limit, EXPANDABLE)


@pytest.mark.thorough
def test_what_can_be_drawn_is_more_than_what_trains():
    limit = 100 * 2**20
    method = METHODS["patchddm"]
    drawn = answer(Question("patchddm", "small", replace(NARROW, patch=32), limit, sampling=True))

    def needs(**changes):
        work = method.workload("small", replace(NARROW, **changes))
        return predict_method(method, work, sampling=True).cuda_pool.peak_allocated

    assert drawn.sampling
    assert drawn.patch == drawn.volume == 32
    assert drawn.batch_needs == needs(patch=32, batch_size=drawn.batch_size) <= limit
    assert drawn.largest_volume == drawn.largest_patch
    side = drawn.largest_volume
    assert drawn.volume_needs == needs(patch=side, volume=side, batch_size=1) <= limit
    trained = answer(Question("patchddm", "small", NARROW, limit)).largest_patch
    assert min(drawn.largest_volume) > max(trained)


def test_what_fits_is_what_the_allocator_gets_through():
    """And the star is for what it gets through with expandable segments alone."""
    limit = 100 * 2**20
    expandable = answer(Question("idm", "small", NARROW, limit))
    by_default = answer(Question("idm", "small", NARROW, limit, 0, "expandable_segments:False"))

    def fits(batch, conf):
        return predicted("idm", batch_size=batch).fits_cuda(limit, conf)

    for fit, conf in ((expandable, EXPANDABLE), (by_default, None)):
        assert fits(fit.batch_size, conf)
        assert not fits(fit.batch_size + 1, conf)
    assert by_default.batch_size <= expandable.batch_size
    assert by_default.batch_fits_by_default
    assert expandable.batch_fits_by_default == fits(expandable.batch_size, None)


def test_what_does_not_fit_says_what_it_needs_and_what_would():
    limit = 40 * 2**20
    fits = [answer(Question(name, "small", NARROW, limit)) for name in ("unet", "idm")]
    (line,) = what_fits_instead(fits)

    assert fits[0].batch_size == 0
    assert show_size(needs("unet", batch_size=1)) in line
    assert f"idm (batch {fits[1].batch_size}) would" in line


@pytest.mark.parametrize("limit", [0, 1, 99, 100, 101, 1000, 54321])
@pytest.mark.parametrize("start", [1, 4, 1000])
@pytest.mark.parametrize("power", [1, 3])
@pytest.mark.parametrize("bend", [0, 7, -3])
def test_the_search_finds_what_a_scan_finds(limit, start, power, bend):
    """Also where the bytes are not quite on a line."""

    def need(n):
        return 90 + 5 * n**power + bend * (n % 2 - n // 3) % 5

    scanned = max((n for n in range(1, 12000) if need(n) <= limit), default=0)
    found = largest_that_fits(need, limit, start, power)
    assert found == scanned or (need(found) <= limit < need(found + 1))


def test_the_search_ends_soon_on_a_line():
    asked = []
    largest_that_fits(lambda n: asked.append(n) or 1000 + 37 * n, 10**6, start=4)
    assert len(asked) <= 5


def test_the_search_has_an_end():
    assert largest_that_fits(lambda n: 0, 1, start=1, most=50) == 50


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("24GiB", 24 * 2**30), ("24GB", 24 * 10**9), ("0.5 gib", 2**29), ("512MiB", 2**29)],
)
def test_sizes(text, nbytes):
    assert parse_size(text, "--memory") == nbytes


@pytest.mark.parametrize("text", ["", "24", "24 apples", "-1GiB", "GiB", "1e9GB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UserError, match="--memory"):
        parse_size(text, "--memory")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "give one of the two"),
        ({"memory": "24GiB", "gpu": "a5000"}, "give one of the two"),
        ({"memory": "1GiB", "margin": "1GiB"}, "leaves nothing"),
        ({"memory": "24GiB", "models": ("abacus",)}, "unknown method"),
        ({"gpu": "a100"}, "did you mean a100-40gb"),
        ({"gpu": "h100", "alloc_conf": "expand:True"}, "'expand' is not modelled"),
    ],
)
def test_mistakes_are_said_before_the_long_part(change, message):
    with pytest.raises(UserError, match=message):
        run_fit(replace(FitCommand(), **change), console=None)
