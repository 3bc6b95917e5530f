"""Which setup stands for which row of results/published_memory.csv."""

from collections.abc import Callable
from dataclasses import dataclass

from bench.methods import METHODS
from bench.predict import Prediction, predict_method
from bench.presets import Overrides

from . import convolutions, diffusion, maisi, revnets, segmentation, tutorials
from .setup import Setup

Key = tuple[str, str]
"""Id and variant."""


@dataclass(frozen=True)
class Case:
    build: Callable[[], Setup | Prediction]
    slow: bool = False
    """Whether it takes more than two seconds: the everyday test leaves it out."""


def _method(name: str) -> Callable[[], Prediction]:
    return lambda: predict_method(METHODS[name], METHODS[name].workload("paper", Overrides()))


def _maisi(*latent: int) -> Case:
    return Case(lambda: maisi.train(*latent), slow=True)


def _sampling(latent: tuple[int, int, int], window: tuple[int, int, int], splits: int) -> Case:
    return Case(lambda: maisi.sample(latent, window, splits), slow=True)


def _revnet(family: str, depth: int) -> Case:
    return Case(lambda: revnets.train(family, depth))


CASES: dict[Key, Case] = {
    ("P01", ""): _maisi(64, 64, 32),
    ("P02", ""): _maisi(64, 64, 64),
    ("P03", ""): _maisi(128, 128, 32),
    ("P04", ""): _maisi(128, 128, 64),
    ("P05", ""): _maisi(128, 128, 128),
    ("P06", ""): _maisi(128, 128, 192),
    ("P07", ""): _sampling((64, 64, 32), (64, 64, 32), 2),
    ("P08", ""): _sampling((64, 64, 64), (48, 48, 64), 4),
    ("P09", ""): _sampling((128, 128, 32), (64, 64, 32), 2),
    ("P10", ""): _sampling((64, 64, 64), (64, 64, 64), 4),
    ("P11", ""): _sampling((128, 128, 32), (80, 80, 32), 2),
    ("P12", ""): _sampling((128, 128, 128), (64, 64, 48), 2),
    ("P13", ""): _sampling((128, 128, 128), (80, 80, 48), 4),
    ("P14", ""): _sampling((128, 128, 128), (80, 80, 80), 2),
    ("P15", ""): _sampling((128, 128, 192), (80, 80, 96), 4),
    ("P17", ""): Case(tutorials.mixed, slow=True),
    ("P18", ""): Case(tutorials.single),
    ("P19", ""): Case(segmentation.nnunet, slow=True),
    ("P33", "ResNet-32"): _revnet("ResNet", 32),
    ("P33", "RevNet-38"): _revnet("RevNet", 38),
    ("P34", "ResNet-110"): _revnet("ResNet", 110),
    ("P34", "RevNet-110"): _revnet("RevNet", 110),
    ("P35", "ResNet-164"): _revnet("ResNet", 164),
    ("P35", "RevNet-164"): _revnet("RevNet", 164),
    ("P38", ""): Case(segmentation.segresnet, slow=True),
    ("P44", ""): Case(lambda: diffusion.wdm((1, 2, 2, 4, 4), side=128, batch=10)),
    ("P45", ""): Case(lambda: diffusion.wdm((1, 2, 2, 4, 4, 4), side=256, batch=1)),
    ("P47", ""): Case(_method("patchddm"), slow=True),
    ("P48", ""): Case(_method("idm"), slow=True),
    ("P49", ""): Case(diffusion.med_ddpm),
    ("P57", ""): Case(convolutions.autocast),
    ("P58", ""): Case(convolutions.float32),
    ("P59", ""): Case(lambda: convolutions.bfloat16(24, 740, 1316)),
}
