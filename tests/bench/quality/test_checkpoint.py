"""A checkpoint that was changed, is foreign, or is no checkpoint: one line, and nothing runs."""

import json
import os
import pickle
import random
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from bench.ddpm.step import make_state
from bench.errors import UserError
from bench.quality.checkpoint import Checkpoint, Progress
from bench.quality.ema import Ema
from models.idm.optimizer import AdamWInBackward
from tests.bench.records.test_mutations import MUTANTS, mutate

CPU = torch.device("cpu")


def checkpoint(path: Path, width: int = 64, lean: bool = False) -> Checkpoint:
    """Of a network of one layer, wide enough for moments in bytes."""
    torch.manual_seed(0)
    network = nn.Linear(64, width)
    parameters = list(network.parameters())
    optimizer = AdamWInBackward(parameters) if lean else torch.optim.AdamW(parameters, fused=True)
    return Checkpoint(path, network, Ema(network, 0.9), optimizer, random.Random(1), CPU)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "idm-0.safetensors"
    each = checkpoint(path)
    make_state(each.optimizer)
    each.write(Progress("idm", 0, step=1, elapsed_s=1.5))
    return path


def refused(path: Path) -> str:
    with pytest.raises(UserError) as refusal:
        checkpoint(path).read("idm", 0)
    line = str(refusal.value)
    assert "\n" not in line
    assert line.startswith(f"{path}: not a checkpoint of this training (")
    return line


@pytest.mark.parametrize("lean", [False, True])
def test_everything_comes_back_to_the_last_bit(tmp_path, lean):
    one = checkpoint(tmp_path / "c", lean=lean)
    for _ in range(3):
        loss = one.network(torch.randn(5, 64)).square().sum()
        loss.backward()
        one.optimizer.step()
        one.ema.update(1)
        one.rng.random()
    peak = {"peak_memory_bytes": 99, "peak_memory_source": "x"}
    progress = Progress("idm", 0, 3, 1, 0.1 + 0.2, 1e-17, "rapl", 0.3, 2, 0.7, 0.8, peak)
    one.write(progress)
    drawn = torch.randn(3), one.rng.random()

    other = checkpoint(tmp_path / "c", lean=lean)
    assert other.read("idm", 0) == progress
    assert torch.equal(torch.randn(3), drawn[0])
    assert other.rng.random() == drawn[1]
    assert torch.equal(one.network.weight, other.network.weight)
    assert torch.equal(one.ema.means["weight"], other.ema.means["weight"])
    for first, second in zip(one.network.parameters(), other.network.parameters(), strict=True):
        states = one.optimizer.state[first], other.optimizer.state[second]
        assert states[0].keys() == states[1].keys()
        for key, value in states[0].items():
            assert type(value) is type(states[1][key])
            if isinstance(value, int):
                assert value == states[1][key] == 3
            else:
                assert value.dtype == states[1][key].dtype
                assert torch.equal(value, states[1][key])
    dtypes = {tensor.dtype for tensor in load_file(tmp_path / "c").values()}
    assert (torch.int8 in dtypes) == lean


def test_no_file_is_no_checkpoint(tmp_path):
    assert checkpoint(tmp_path / "none").read("idm", 0) is None


def test_of_another_training(written):
    with pytest.raises(UserError, match="it is of idm 0"):
        checkpoint(written).read("unet", 0)
    with pytest.raises(UserError, match="it is of idm 0"):
        checkpoint(written).read("idm", 1)


def test_of_another_network(written):
    with pytest.raises(UserError, match=r"is \(64,?( 64)?\), not \(32"):
        checkpoint(written, width=32).read("idm", 0)


def test_of_another_optimizer(written):
    with pytest.raises(UserError, match=r"it (has|lacks) 'optimizer\."):
        checkpoint(written, lean=True).read("idm", 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("network.weight"), "lacks 'network.weight'"),
        (lambda t: t.pop("optimizer.bias.exp_avg"), "lacks 'optimizer.bias.exp_avg'"),
        (lambda t: t.update(surprise=torch.zeros(1)), "has 'surprise'"),
        (lambda t: t.update({"ema.bias": torch.zeros(65)}), "ema.bias is (65,)"),
        (lambda t: t.update({"ema.bias": torch.zeros(64).half()}), "torch.float16, not"),
        (lambda t: t.update({"rng.torch": torch.zeros(5056, dtype=torch.uint8)}), "mt19937"),
        (lambda t: t.update({"network.weight": torch.zeros(2**23)}), "more than it can have"),
        (lambda t: t["network.weight"].fill_(torch.nan), "network.weight has values that are not"),
        (lambda t: t["ema.bias"][3].fill_(torch.inf), "ema.bias has values that are not finite"),
        (lambda t: t["optimizer.bias.exp_avg_sq"].fill_(-1e-9), "has negative values"),
        (lambda t: t["optimizer.weight.step"].fill_(10**8), "is 100000000, and the training's"),
        (lambda t: t["optimizer.weight.step"].fill_(-1), "is -1, and the training's step 1"),
    ],
)
def test_tensors_that_were_changed(written, tmp_path, change, said):
    tensors = load_file(written)
    with safe_open(written, "pt") as file:
        metadata = file.metadata()
    change(tensors)
    save_file(tensors, tmp_path / "changed", metadata)
    assert said in refused(tmp_path / "changed")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (AdamWInBackward, "weight.exp_avg_scales"), (AdamWInBackward, "weight.root_scales"),
        (AdamWInBackward, "bias.root_exp_avg_sq"), (torch.optim.Adafactor, "weight.row_var"),
        (torch.optim.Adafactor, "weight.col_var"), (torch.optim.Adafactor, "bias.variance"),
    ],
)  # fmt: skip
def test_what_is_never_negative_in_other_optimizers(tmp_path, kind, name):
    """The training went on, and its weights became NaN."""
    one = checkpoint(tmp_path / "c")
    one.optimizer = kind(list(one.network.parameters()))
    one.network(torch.randn(5, 64)).square().sum().backward()
    one.optimizer.step()
    one.write(Progress("idm", 0, step=1))
    assert one.read("idm", 0) is not None
    with safe_open(one.path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(one.path)
    tensors[f"optimizer.{name}"].fill_(-1e-9)
    save_file(tensors, one.path, metadata)
    with pytest.raises(UserError, match=f"{name} has negative values"):
        one.read("idm", 0)


HUGE = 10**400


@pytest.mark.parametrize(
    "change",
    [
        {"step": -1}, {"step": 10**8}, {"step": HUGE}, {"step": True}, {"step": 1.5},
        {"step": None}, {"validations": HUGE}, {"loss_count": -1},
        {"elapsed_s": float("nan")}, {"elapsed_s": float("inf")}, {"elapsed_s": -1.0},
        {"energy_j": float("inf")}, {"loss_sum": float("nan")}, {"loss_sum": "much"},
        {"surprise": 1}, {"method": ["idm"]}, {"method": "../../etc/passwd"},
    ],
)  # fmt: skip
def test_progress_that_cannot_be(written, tmp_path, change):
    refused(with_header(written, tmp_path, lambda header: header["progress"].update(change)))


@pytest.mark.parametrize(
    "state", [[], [1, 2], [-1] * 625, [HUGE] * 625, [0] * 624 + [700], "abc", None, [[]] * 625]
)
def test_a_python_generator_that_cannot_be(written, tmp_path, state):
    refused(with_header(written, tmp_path, lambda header: header.update(python_rng=state)))


@pytest.mark.parametrize(
    "metadata",
    [None, {}, {"progress": ""}, {"progress": "[]"}, {"progress": "[" * 100_000},
     {"progress": "__import__('os').system('true')"}],
)  # fmt: skip
def test_metadata_that_is_none(written, tmp_path, metadata):
    save_file(load_file(written), tmp_path / "changed", metadata)
    refused(tmp_path / "changed")


def with_header(written: Path, folder: Path, change) -> Path:
    with safe_open(written, "pt") as file:
        header = json.loads(file.metadata()["progress"])
    change(header)
    save_file(load_file(written), folder / "changed", {"progress": json.dumps(header)})
    return folder / "changed"


class Trap:
    def __reduce__(self):
        return os.system, ("touch trapped",)


def test_a_pickle_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pickle").write_bytes(pickle.dumps(Trap()))
    refused(tmp_path / "pickle")
    torch.save({"network.weight": Trap()}, tmp_path / "torch")
    refused(tmp_path / "torch")
    assert not (tmp_path / "trapped").exists()


def test_what_is_no_file(tmp_path):
    (tmp_path / "folder").mkdir()
    assert "not a file" in refused(tmp_path / "folder")
    os.mkfifo(tmp_path / "pipe")
    assert "not a file" in refused(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    assert "not a file" in refused(tmp_path / "zero")


def test_a_file_of_a_terabyte(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    assert "more than it can have" in refused(tmp_path / "sparse")


QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@QUICK
@given(content=st.binary(max_size=200))
@example(content=b"")
@example(content=(2**63).to_bytes(8, "little") + b"{}")
@example(content=(2).to_bytes(8, "little") + b"{}")
def test_bytes(tmp_path, content):
    (tmp_path / "bytes").write_bytes(content)
    refused(tmp_path / "bytes")


@QUICK
@given(position=st.integers(0, 4000), byte=st.integers(0, 255), cut=st.booleans())
def test_a_byte_that_fell_over(written, tmp_path, position, byte, cut):
    """In the header or the numbers: read, if it is still a checkpoint, or refused."""
    content = bytearray(written.read_bytes())
    content[position] = byte
    (tmp_path / "bytes").write_bytes(content[:position] if cut else content)
    said = ""
    try:
        assert checkpoint(tmp_path / "bytes").read("idm", 0) is not None
    except UserError as error:
        said = str(error)
    assert "\n" not in said


def test_mutated_checkpoints(written, tmp_path):
    """As run folders are mutated; half of them in the header, which is a small part of a file."""
    whole = written.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    path = tmp_path / "mutant"
    read = 0
    for number in range(MUTANTS):
        seed = int.from_bytes(os.urandom(8))
        chance = random.Random(seed)
        header = mutate(whole[:end], chance) if number % 2 else whole[:end]
        numbers = whole[end:] if number % 2 else mutate(whole[end:], chance)
        path.write_bytes(header + numbers)
        target, said = checkpoint(path), ""
        try:
            target.read("idm", 0)
        except UserError as refusal:
            said = str(refusal)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
        assert "\n" not in said, seed
        if said:
            continue
        read += 1
        tensors = [*target.network.parameters(), *target.ema.means.values()]
        assert all(tensor.isfinite().all() for tensor in tensors), seed
    assert read < MUTANTS  # a bit of a weight that changed makes another weight


def test_a_folder_that_cannot_be_written(written, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        checkpoint(tmp_path / "file" / "idm-0.safetensors").write(Progress("idm", 0))


def test_a_checkpoint_that_fails_leaves_the_one_before(written, tmp_path, monkeypatch):
    path = tmp_path / "idm-0.safetensors"
    path.write_bytes(written.read_bytes())

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="No space left"):
        checkpoint(path).write(Progress("idm", 0, step=9))
    assert path.read_bytes() == written.read_bytes()
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
