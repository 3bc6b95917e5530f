"""CSV and JSON that nobody should trust: read, or refused in one line, at bounded cost."""

import json
import os
import pickle
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bench.errors import UserError
from bench.records.files import (
    MOST_CSV_BYTES,
    column_names,
    from_json,
    read_table,
    to_json,
    write_rows,
)
from bench.records.folder import TABLES, Run
from bench.records.rows import Record, Sample, Step
from bench.run.plan import TrialPlan
from tests.bench.report.runs import instant

QUICK = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
MEMORY = 32 << 20
CELLS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["", "nan", "inf", "-1", "0", "1e999", "9" * 400, "1.5", "0x10", "True", '"', "\x00", "\r",
         "=cmd|' /C calc'!A0", "../../etc/passwd", "٣", "1_000", "NA", "None", ",", "\n", "﻿"]
    ),
    st.integers().map(str),
    st.floats().map(repr),
)  # fmt: skip


@contextmanager
def bounded() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


def read_or_refuse(read: Callable[[], Any], path: Path) -> Any:
    """What was read, or None where it was refused; anything but a UserError fails the test."""
    got, line = None, ""
    with bounded():
        try:
            got = read()
        except UserError as refusal:
            line = str(refusal)
    if line:
        assert "\n" not in line
        assert path.name in line
    return got


def check_types(table: Any, row_type: type) -> None:
    assert set(column_names(row_type)) <= set(table.columns)
    assert table["repeat"].dtype == "Int64"
    assert not table["method"].isna().any()


@QUICK
@given(rows=st.lists(st.lists(CELLS, min_size=1, max_size=70), max_size=5),
       name=st.sampled_from(sorted(TABLES)), quoted=st.booleans())  # fmt: skip
@example(rows=[["idm"]], name="runs.csv", quoted=False)
def test_cells(tmp_path, rows, name, quoted):
    path, row_type = tmp_path / name, TABLES[name]
    lines = [",".join(column_names(row_type))]
    lines += [",".join(f'"{cell}"' if quoted else cell for cell in row) for row in rows]
    path.write_bytes("\r\n".join(lines).encode(errors="surrogatepass") + b"\r\n")
    table = read_or_refuse(lambda: read_table(path, row_type), path)
    if table is not None:
        check_types(table, row_type)


@QUICK
@given(content=st.binary(max_size=300))
@example(content=b"")
@example(content=b"\n\n\n")
@example(content=b"\x80\x04\x95")
@example(content=b"PK\x03\x04")
@example(content=b"\xff\xfe" + "method,repeat".encode("utf-16-le"))
def test_bytes(tmp_path, content):
    run = Run(tmp_path)
    for name in TABLES:
        (tmp_path / name).write_bytes(content)
    (tmp_path / "environment.json").write_bytes(content)
    assert read_or_refuse(run.records, tmp_path / "runs.csv") is None
    assert read_or_refuse(run.mend, tmp_path / "runs.csv") is None
    read_or_refuse(run.environment, tmp_path / "environment.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
PLAN_NAMES = [*TrialPlan.__dataclass_fields__, "surprise", "__class__"]


@QUICK
@given(value=JSON)
def test_json(tmp_path, value):
    path = tmp_path / "environment.json"
    path.write_text(json.dumps(value))
    got = read_or_refuse(Run(tmp_path).environment, path)
    assert (got is not None) == isinstance(value, dict)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "{" * 50, '{"a":' * 100_000, '{"a": ' + "9" * 100_000 + "}", '{"a": 1e999',
     '{"a": "\\ud800', "NaN", "'a'"],
)  # fmt: skip
def test_absurd_json(tmp_path, text):
    path = tmp_path / "environment.json"
    path.write_text(text)
    assert read_or_refuse(Run(tmp_path).environment, path) is None


@QUICK
@given(changes=st.dictionaries(st.sampled_from(PLAN_NAMES), JSON, min_size=1, max_size=3))
@example(changes={"training": {"\n": None}})
def test_plans(changes):
    plan = {
        "method": "idm", "repeat": 1, "preset": "small", "device": "cpu", "data": "phantom",
        "volumes": "x.npy", "window": {"steps": 1}, "training": {},
        "work": {"volume": 8, "patch": 8, "batch_size": 1, "channels": [4], "couplings": 1,
                 "precision": "fp32"},
    }  # fmt: skip
    assert from_json(TrialPlan, plan).method == "idm"
    made, line = None, ""
    try:
        made = from_json(TrialPlan, plan | changes)
    except ValueError as refusal:
        line = str(refusal)
    assert "\n" not in line
    if made is not None:
        assert from_json(TrialPlan, to_json(made)) == made
        assert not set(changes) & {"surprise", "__class__"}


@pytest.mark.parametrize("name", [*TABLES, "environment.json"])
def test_what_is_no_file(tmp_path, name):
    """A pipe would wait for ever, a device never end."""
    run, path = Run(tmp_path), tmp_path / name
    for other in TABLES:
        if other != name:
            write_rows(tmp_path / other, Record, [])
    read = run.environment if name == "environment.json" else getattr(
        run, "records" if name == "runs.csv" else name.removesuffix(".csv")
    )  # fmt: skip
    os.mkfifo(path)
    assert read_or_refuse(read, path) is None
    path.unlink()
    path.symlink_to("/dev/zero")
    assert read_or_refuse(read, path) is None
    path.unlink()
    path.mkdir()
    assert read_or_refuse(read, path) is None
    path.rmdir()
    with path.open("wb") as file:  # a hole that claims a terabyte
        file.truncate(2**40)
    assert read_or_refuse(read, path) is None
    path.unlink()
    assert read_or_refuse(read, path) is None


def test_the_largest_table_is_more_than_a_week_of_samples():
    row = "checkpoint,10,604800.123456789,250.123,123456789.123,65.0,12345678901,99.0\r\n"
    assert 7 * 86_400 * 10 * len(row) < MOST_CSV_BYTES


class Boom:
    def __reduce__(self):
        return os._exit, (13,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_is_unpickled(tmp_path, protocol):
    path = tmp_path / "runs.csv"
    path.write_bytes(pickle.dumps(Boom(), protocol))
    assert read_or_refuse(lambda: read_table(path, Record), path) is None


@QUICK
@given(text=st.text(max_size=60), number=st.floats())
@example(text='a\r\nidm,1,ok\n"', number=float("nan"))
def test_what_is_written_is_read_back_as_one_row(tmp_path, text, number):
    path = tmp_path / "runs.csv"
    write_rows(path, Record, [Record(method="idm", repeat=1, error=text, loss_last=number)])
    assert path.read_bytes().count(b"\n") == 2
    table = read_table(path, Record)
    assert len(table) == 1
    value = table["loss_last"][0]
    assert value == number or (value != value and number != number)


@settings(QUICK, max_examples=25)
@given(cut=st.integers(min_value=0, max_value=400))
def test_a_table_cut_off_anywhere(tmp_path, cut):
    """What a kill, or a full disk, may leave: every whole row stays, the rest goes."""
    run = Run(tmp_path)
    for name, row_type in TABLES.items():
        (tmp_path / name).write_text(",".join(column_names(row_type)) + "\r\n", newline="")
    run.append(Record(method="idm", repeat=1, status="ok"))
    for i in range(1, 6):
        run.append(Step(method="idm", repeat=1, step=i, elapsed_s=i, step_time_s=1.25, loss=0.5))
        run.append(Sample(method="idm", repeat=1, elapsed_s=i, power_w=1 / 3))
        run.append(instant("idm", position=i / 5))
    for name in ("steps.csv", "samples.csv", "timeline.csv"):
        whole = (tmp_path / name).read_bytes()
        header = whole.index(b"\n") + 1
        kept = whole[: min(len(whole), header + cut)]
        (tmp_path / name).write_bytes(kept)
        expected = kept.count(b"\n") - 1
        read = getattr(run, name.removesuffix(".csv"))
        assert len(read()) == expected
        run.mend()
        assert len(read()) == expected
        assert (tmp_path / name).read_bytes() == whole[: kept.rindex(b"\n") + 1]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "tail", ['"' + "a,\n" * 10**5, "," * 10**5, "a" * 2**23], ids=["quote", "commas", "field"]
)
def test_what_would_take_long(tmp_path, tail):
    """A quote that never closes, a line of a hundred thousand commas, a cell of 8 MB."""
    path = tmp_path / "runs.csv"
    path.write_text(",".join(column_names(Record)) + "\n" + tail)
    with pytest.raises(UserError, match=r"runs\.csv: "):
        read_table(path, Record)
