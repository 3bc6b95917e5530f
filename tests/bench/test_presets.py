"""Workloads: what each method trains on in each preset (DESIGN §6)."""

from dataclasses import replace
from functools import cache

import pytest

from bench.ddpm.step import Training
from bench.errors import UserError
from bench.methods import METHODS, find_methods, preset_changes
from bench.predict import predict
from bench.presets import PRESETS, Overrides

IDM_CHANNELS = (64, 128, 256, 512, 1024, 2048)


def test_the_names_are_those_of_the_design():
    assert set(PRESETS) == {"small", "paper", "equal", "full-volume"}
    assert {"unet", "checkpoint", "patchddm", "idm", "idm-stored"} <= set(METHODS)


@pytest.mark.parametrize("name", list(METHODS))
def test_small_is_the_same_for_all(name):
    work = METHODS[name].workload("small")
    assert (work.volume, work.batch_size, work.precision) == (32, 2, "fp32")
    of_unet = METHODS[name].network.startswith("unet")
    assert work.channels == ((12, 24, 48, 96) if of_unet else (32, 64, 128, 256))


@cache
def idm_of(preset, dims):
    """Nothing is matched to another network: it is the one that others are matched to."""
    return predict("idm", preset=preset, dims=dims)


@pytest.mark.parametrize("preset", ["small", pytest.param("equal", marks=pytest.mark.slow)])
@pytest.mark.parametrize("match", ["parameters", "flops"])
@pytest.mark.parametrize("dims", [3, pytest.param(2, marks=pytest.mark.slow)])
def test_unet_is_as_large_as_idm_or_computes_as_much(preset, match, dims):
    unet, idm = predict("unet", preset=preset, match=match, dims=dims), idm_of(preset, dims)
    column = "parameters" if match == "parameters" else "flops_step"
    assert getattr(unet, column) == pytest.approx(getattr(idm, column), rel=0.05)
    assert METHODS["unet"].workload(preset, Overrides(match=match)).match == match


def test_at_small_idm_fine_computes_as_much_as_the_unet_that_is_matched_by_flops():
    unet, fine = predict("unet", preset="small", match="flops"), predict("idm-fine", preset="small")
    assert fine.flops_step == pytest.approx(unet.flops_step, rel=0.05)


def test_typed_widths_match_nothing():
    assert METHODS["unet"].workload("equal").match == "parameters"
    assert METHODS["unet"].workload("equal", Overrides(channels=(8, 16))).match is None
    with pytest.raises(UserError, match="--match flops: --channels gives the widths"):
        METHODS["unet"].workload("equal", Overrides(channels=(8, 16), match="flops"))


def test_either_match_is_the_preset():
    for match in (None, "parameters", "flops"):
        given = Overrides(match=match)
        work = METHODS["unet"].workload("equal", given)
        assert preset_changes(METHODS["unet"], "equal", given, work, Training()) == "none"


def test_paper_is_each_methods_published_setting():
    idm = METHODS["idm"].workload("paper")
    assert (idm.volume, idm.patch, idm.batch_size, idm.precision) == (64, 64, 4, "fp32")
    assert (idm.channels, idm.couplings) == (IDM_CHANNELS, 2)
    patchddm = METHODS["patchddm"].workload("paper")
    assert (patchddm.volume, patchddm.patch, patchddm.batch_size) == (256, 128, 1)
    assert patchddm.channels == tuple(29 * m for m in (1, 3, 4, 4, 4, 4, 4))
    assert patchddm.precision == "bf16"
    for name in ("unet", "checkpoint"):
        work = METHODS[name].workload("paper")
        assert (work.volume, work.batch_size, work.precision) == (64, 4, "fp32")


@pytest.mark.parametrize("name", list(METHODS))
def test_equal_and_full_volume_give_every_method_the_same_tensor(name):
    equal = METHODS[name].workload("equal")
    assert (equal.volume, equal.patch, equal.batch_size, equal.precision) == (64, 64, 4, "fp32")
    full = METHODS[name].workload("full-volume")
    assert (full.volume, full.patch, full.batch_size) == (256, 256, 1)
    assert equal.channels == METHODS[name].workload("paper").channels


def test_a_flag_beats_the_preset():
    work = METHODS["patchddm"].workload(
        "paper", Overrides(volume=128, batch_size=2, precision="fp32", modality=("t1", "t2"))
    )
    assert (work.volume, work.patch) == (128, 64)  # the published ratio
    assert (work.batch_size, work.precision, work.modality) == (2, "fp32", ("t1", "t2"))
    assert METHODS["patchddm"].workload("paper", Overrides(patch=192)).patch == 192


def test_unknown_names_are_refused_in_one_line():
    with pytest.raises(UserError, match="did you mean idm"):
        find_methods(["imd"])
    with pytest.raises(UserError, match="small, paper, equal, full-volume"):
        METHODS["idm"].workload("large")


def test_methods_are_taken_once_each_in_the_order_named():
    assert [m.name for m in find_methods(["idm", "unet", "idm"])] == ["idm", "unet"]


def test_a_method_made_in_python_is_found_by_no_name():
    mine = replace(METHODS["unet"], name="mine")
    assert mine.workload("small") == METHODS["unet"].workload("small")
