"""What `quality` refuses: one line, exit status 2, before any training."""

import sys

import pytest

from bench import cli
from bench.methods import METHODS
from bench.quality import tensorboard_log as scalars
from tests.volumes import make_brats_folder


@pytest.fixture
def refuse(monkeypatch, capsys, tmp_path):
    """Type a command; returns its one line of error."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["bench", "quality", *arguments])
        assert cli.main() == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        assert "Traceback" not in captured.err
        assert not list(tmp_path.glob("**/trained.csv"))  # nothing had begun
        return captured.err

    return run


def test_an_unknown_method(refuse):
    line = refuse("--models", "idm", "patchdm")
    assert "did you mean patchddm?" in line
    assert line.rstrip().endswith("Known: " + ", ".join(METHODS))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--models", "idm+latent", "--budget", "1GiB"), "idm+latent trains an autoencoder, too"),
        (("--minutes", "0"), "--minutes 0"),
        (("--minutes", "nan"), "--minutes nan"),
        (("--steps", "0"), "--steps 0"),
        (("--minutes", "1", "--steps", "1"), "not both"),
        (("--seeds", "-1"), "--seeds -1"),
        (("--seeds", "0", "1", "0"), "--seeds 0 1 0: each once"),
        (("--split-seed", "-1"), "--split-seed -1"),
        (("--ema", "1"), "--ema 1"),
        (("--ema", "nan"), "--ema nan"),
        (("--validations", "0"), "--validations 0"),
        (("--checkpoint-minutes", "-1"), "--checkpoint-minutes -1"),
        (("--checkpoint-minutes", "nan"), "--checkpoint-minutes nan"),
        (("--samples", "-1"), "--samples -1"),
        (("--sampler-steps", "2001"), "--sampler-steps 2001"),
        (("--sampler-steps", "0"), "--sampler-steps 0"),
        (("--sampler-steps", "50", "--sampler", "ddpm"), "ddpm samples in 2000 steps"),
        (("--timeout", "0"), "--timeout 0"),
        (("--country", "Atlantis"), "--country Atlantis"),
        (("--batch-size", "0"), "--batch-size 0"),
        (("--device", "tpu"), "--device tpu"),
        (("--device", "cuda:99"), "--device cuda:99"),
        (("--subjects", "0"), "--subjects 0"),
        (("--subjects", "1"), "single patient"),
        (("--budget", "plenty"), "--budget plenty"),
        (("--volume", "36"), "multiples of 8"),
        (("--modality", "t1", "t1"), "--modality t1 t1"),
        (("--condition", "t1"), "--condition t1: is a modality, too"),
        (("--condition", "skull"), "--condition skull: the embedded brains have"),
        (("--drop-condition", "0.1"), "--drop-condition 0.1: there is no condition"),
        (("--guidance", "3"), "--guidance 3: there is no condition"),
        (("--condition", "seg", "--guidance", "3"), "train with --drop-condition"),
        (("--condition", "seg", "--sampler", "ddpm-mean"), "ddpm-mean: begins at the mean"),
    ],
)
def test_a_value_that_cannot_be(refuse, flags, said):
    assert said in refuse("--models", "idm", *flags)


def test_data_that_are_missing_empty_or_not_what_they_should_be(refuse, tmp_path):
    brats = ("--models", "idm", "--data", "brats", "--data-dir")
    assert "nowhere" in refuse(*brats, str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    assert "empty" in refuse(*brats, str(tmp_path / "empty"))
    assert "--data-dir" in refuse("--models", "idm", "--data", "brats")
    folder = make_brats_folder(tmp_path / "brats", subjects=1, modalities=("t1",))
    assert "t2" in refuse(*brats, str(folder), "--modality", "t2")
    assert "single patient" in refuse(*brats, str(folder))


def test_an_out_folder_that_cannot_be(refuse, tmp_path):
    (tmp_path / "file").write_text("")
    flags = ("--models", "idm", "--subjects", "2", "--out", str(tmp_path / "file"))
    assert "--out" in refuse(*flags)


def test_tensorboard_that_is_not_installed(refuse, monkeypatch):
    monkeypatch.setattr(scalars, "find_spec", lambda name: None)
    assert "pip install tensorboard" in refuse("--models", "idm", "--tensorboard")


def test_a_folder_that_cannot_be_resumed(refuse, tmp_path):
    assert "the folder of a run" in refuse("--resume", str(tmp_path / "nowhere"))
    (tmp_path / "environment.json").write_text("[]")
    assert "environment.json" in refuse("--resume", str(tmp_path))
    (tmp_path / "environment.json").write_text("{}")
    assert "not that of a quality run" in refuse("--resume", str(tmp_path))
    assert "--steps: the run has its own" in refuse("--resume", str(tmp_path), "--steps", "9")
