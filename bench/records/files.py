"""Reading and writing CSV and JSON: whole, typed, in UTF-8, and nothing trusted that is read."""

import csv
import io
import json
import os
import stat
import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from pydantic import TypeAdapter, ValidationError

from ..errors import CannotWrite, UserError
from ..sizes import Shape
from .rows import Status

if TYPE_CHECKING:
    import pandas as pd  # writing does not need it

T = TypeVar("T")


MOST_CSV_BYTES = 2**29  # a week of samples at 10 Hz
MOST_JSON_BYTES = 2**24
_PACKAGE = Path(__file__).parents[1]
IN_A_WHEEL = _PACKAGE.name != "bench"
"""Whether this is installed, with `results/` inside the package, and not a checkout."""


def shipped(name: str) -> Path:
    """A file of `results/` that comes with this package: published.csv, baseline.csv."""
    return (_PACKAGE if IN_A_WHEEL else _PACKAGE.parent) / "results" / name


def column_names(row_type: type) -> list[str]:
    return [f.name for f in fields(row_type)]


def read_table(path: Path, row_type: type) -> "pd.DataFrame":
    """A table with the columns of `row_type`, typed; UserError where the file is not one.

    Whole numbers are read as pandas' nullable integers, so that bytes stay exact beside empty
    cells.
    """
    return parse_table(path, read_text(path, MOST_CSV_BYTES), row_type)


def parse_table(path: Path, text: str, row_type: type) -> "pd.DataFrame":
    import pandas as pd  # writing does not need it

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # a row longer than the header
            table = pd.read_csv(
                io.StringIO(text), dtype=str, keep_default_na=False, na_values=[""], index_col=False
            )
    except (ValueError, pd.errors.ParserWarning) as error:
        raise UserError(f"{path}: cannot be read as CSV ({squeeze(error)})") from None
    for field_ in fields(row_type):
        name, kinds = field_.name, get_args(field_.type) or (field_.type,)
        required = field_.default is MISSING
        if name not in table:
            if required:
                raise UserError(f"{path}: lacks the column {name}; is it a table of this kind?")
            table[name] = None  # an older version did not have it
        if required and table[name].isna().any():
            raise UserError(f"{path}: column {name} has an empty cell")
        try:
            if int in kinds:
                table[name] = _whole_numbers(table[name])
            elif float in kinds:
                table[name] = table[name].astype(float)  # a loss may be nan or inf
            elif Shape in kinds:
                shapes = table[name].dropna().str.removesuffix(".0")  # pandas', beside empty cells
                table[name] = shapes.map(Shape).reindex(table.index)
        except (ValueError, TypeError, OverflowError, AttributeError):
            what = "shape" if Shape in kinds else "number"
            raise UserError(f"{path}: column {name} holds what is not a {what}") from None
    if "status" in table and not table["status"].dropna().isin(get_args(Status)).all():
        raise UserError(
            f"{path}: column status holds what is none of {', '.join(get_args(Status))}"
        )
    return table


def _whole_numbers(column: "pd.Series") -> "pd.Series":
    """Exact where they are digits; "500.0", as pandas writes them beside empty cells, counts."""
    try:
        return column.astype("Int64")
    except (ValueError, TypeError):
        return column.astype(float).astype("Int64")


def finished_lines(path: Path) -> str:
    """The text of a table up to its last end of line: what follows was cut off."""
    text = read_text(path, MOST_CSV_BYTES)
    return text[: text.rfind("\n") + 1]


def read_text(path: Path, most_bytes: int) -> str:
    """The text of an ordinary file; UserError for anything else, before it is opened."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would keep us waiting, /dev/zero for ever
            raise UserError(f"{path}: not a file")
        if status.st_size > most_bytes:
            raise UserError(f"{path}: {status.st_size} bytes are more than any run writes")
        return path.read_bytes().decode()
    except FileNotFoundError:
        raise UserError(f"{path}: missing; is {path.parent} the folder of a run?") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: cannot be read as text (it is not UTF-8)") from None


def replace_file(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all; CannotWrite where the disk refuses."""
    temporary = path.with_name(path.name + ".part")
    content = content if isinstance(content, bytes) else content.encode()
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise CannotWrite(error.errno, error.strerror, str(path)) from None


def squeeze(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def write_rows(path: Path, row_type: type, rows: Iterable[Any]) -> None:
    """A whole table at once, for what is computed and not measured bit by bit.

    Raises as `replace_file`.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(column_names(row_type))
    writer.writerows([cell(getattr(row, f.name)) for f in fields(row)] for row in rows)
    replace_file(path, text.getvalue())


def cell(value: Any) -> Any:
    """Whole digits for floats, so that what was measured is read back; text without line ends."""
    if isinstance(value, tuple):
        value = "; ".join(map(str, value))
    if isinstance(value, str):
        return " ".join(value.replace("\0", " ").split())
    return repr(value) if isinstance(value, float) else value


def write_json(path: Path, value: Any) -> None:
    """Raises as `replace_file`."""
    replace_file(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; UserError where it is missing or damaged."""
    try:
        value = json.loads(read_text(path, MOST_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({squeeze(error)})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not an object; restore the file that the run wrote")
    return value


def to_json(instance: Any) -> dict[str, Any]:
    """A dataclass as JSON can hold it; `from_json` makes it one again."""
    found: dict[str, Any] = TypeAdapter(type(instance)).dump_python(instance, mode="json")
    return found


def from_json(kind: type[T], value: Any) -> T:
    """A value of a JSON file as an instance of a dataclass, every field checked against its type.

    No class is named by the file, and nothing is unpickled.

    Raises:
        ValueError: in a line, for a field that is missing, unknown or of another type.
    """
    try:
        text = json.dumps(value)  # of JSON, pydantic takes lists for tuples and strings for paths
        return TypeAdapter(kind).validate_json(text, strict=True, extra="forbid")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        given = (
            ""
            if first["type"] in ("missing", "unexpected_keyword_argument")
            else (f" ({repr(first['input'])[:40]})")
        )
        where = repr(where[:80])[1:-1]  # a name from a file may hold a line break
        raise ValueError(f"{where}: {first['msg']}{given}") from None
