"""Every flag has its range, checked before anything starts and again when a file is read."""

import sys
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, get_args, get_type_hints

import pytest
from annotated_types import Interval

from bench import cli
from bench.errors import UserError
from bench.presets import Overrides, check_ranges
from bench.records.files import from_json, to_json
from bench.run.plan import TrialPlan
from tests.bench.trials import tiny_plan


def numbers_without_a_range(kind: type) -> list[str]:
    """Fields of a dataclass, and of those inside, that are numbers of any size."""

    def is_bare(hint: Any) -> bool:
        if any(isinstance(each, Interval) for each in get_args(hint)):
            return False
        return hint in (int, float) or any(is_bare(inner) for inner in get_args(hint))

    hints = get_type_hints(kind, include_extras=True)
    found = []
    for field in fields(kind):
        hint = hints[field.name]
        inner = [each for each in (hint, *get_args(hint)) if is_dataclass(each)]
        for each in inner:
            found += numbers_without_a_range(each)
        if not inner and is_bare(hint):
            found.append(f"{kind.__name__}.{field.name}")
    return found


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_number_that_can_be_typed_has_a_range(name):
    kind, _ = cli.COMMANDS[name]
    assert numbers_without_a_range(kind) == []


def test_the_walk_finds_a_number_of_any_size():
    class_ = type("Loose", (), {"__annotations__": {"size": "int", "ok": "str"}})
    from dataclasses import dataclass

    assert numbers_without_a_range(dataclass(class_)) == ["Loose.size"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("run", "--seed", "9223372036854775808"), "--seed 9223372036854775808: at least 0"),
        (("run", "--minutes", "1e307"), "--minutes 1e+307: more than 0, at most 525600"),
        (("run", "--minutes", "inf"), "--minutes inf: more than 0"),
        (("run", "--lambda-r", "nan"), "--lambda-r nan: at least 0"),
        (("run", "--sample-hz", "0"), "--sample-hz 0: more than 0, at most 1000"),
        (("run", "--channels", "8", "0"), "--channels 0: at least 1"),
        (("predict", "--couplings", "-3"), "--couplings -3: at least 1"),
        (("scale", "--couplings", "20000"), "--couplings 20000: at least 1, at most 1024"),
        (("predict", "--gpus", "0"), "--gpus 0: at least 1"),
        (("quality", "--seeds", "0", "-1"), "--seeds -1: at least 0"),
        (("sample", "RUN", "--samples", "0"), "--samples 0: at least 1, at most 10000"),
    ],
)
def test_what_is_out_of_range_is_refused_in_one_line(monkeypatch, capsys, flags, said):
    """A seed of 2⁶³ ran to the end and left a folder that nothing could read."""
    monkeypatch.setattr(sys, "argv", ["bench", *flags])
    assert cli.main() == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: {said}")
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("run", "--models", "idm", "--channels", "7", "15"),
         "--models idm with --channels 7 15: every level needs an even number"),
        (("fit", "--memory", "8GiB", "--models", "patchddm", "--channels", "7", "15"),
         "--models patchddm with --channels 7 15: channels (7, 15): the first must divide all"),
        (("scale", "--models", "idm-lean", "--channels", "6", "12"),
         "--models idm-lean with --channels 6 12: a level of 6 channels sends 12/8"),
        (("predict", "--models", "torch.nn:Linear", "--channels", "8"),
         "--models torch.nn:Linear with --channels 8: Linear.__init__() got an unexpected"),
        (("predict", "--models", "torch.nn:Identity", "--channels", "8"),
         "--models torch.nn:Identity: it fails on this (ValueError: optimizer got an empty"),
        (("predict", "--models", "idm", "--volume", "1048576"), "larger than a computer can count"),
        (("predict", "--models", "patchddm", "--preset", "small", "--channels", "8", "8",
          "--volume", "2", "--patch", "2", "--batch-size", "1"),
         "--models patchddm: it fails on this (ValueError: Expected more than 1 value"),
    ],
)  # fmt: skip
def test_what_a_network_cannot_be_is_said_in_one_line(monkeypatch, capsys, tmp_path, flags, said):
    """They ended in tracebacks, from within the network."""
    monkeypatch.setattr(sys, "argv", ["bench", *flags, "--out", str(tmp_path)])
    assert cli.main() == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: {said}")
    assert line.count("\n") == 1


def test_the_python_interface_refuses_the_same():
    with pytest.raises(UserError, match="--batch-size 0"):
        check_ranges(Overrides(batch_size=0))
    check_ranges(Overrides())


@pytest.mark.parametrize(
    "change",
    [{"repeat": 0}, {"sample_hz": 0.0}, {"sample_hz": 1e9}, {"training": {"seed": 2**63}},
     {"work": {"volume": 0}}, {"window": {"steps": 0}}],
)  # fmt: skip
def test_what_no_command_writes_is_not_read(tmp_path, change):
    value = to_json(tiny_plan(tmp_path))
    assert from_json(TrialPlan, value).key == ("idm", 1)
    for name, inner in change.items():
        value[name] = value[name] | inner if isinstance(inner, dict) else inner
    with pytest.raises(ValueError, match=next(iter(change))):
        from_json(TrialPlan, value)


def test_ranges_of_both_kinds_of_ends():
    from dataclasses import dataclass

    @dataclass
    class Ends:
        share: Annotated[float, Interval(ge=0, lt=1)] = 0.0

    check_ranges(Ends())
    with pytest.raises(UserError, match="--share 1: at least 0, less than 1"):
        check_ranges(Ends(1.0))
