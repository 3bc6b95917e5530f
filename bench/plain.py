"""Dataclasses from plain JSON values, every value checked against its annotation.

What a file says is not trusted: no class is named by the file, and nothing is unpickled.
"""

import types
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def to_plain(instance: Any) -> dict[str, Any]:
    """A dataclass as JSON can hold it; `from_plain` makes it one again."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in asdict(instance).items()
    }


def from_plain(kind: type[T], value: Any) -> T:
    """`value`, as `json` gave it, as an instance of `kind`; ValueError, in a line, if it is none.

    Knows dataclasses, `tuple[X, ...]`, `X | None`, `Literal`, `Path` and the JSON scalars.
    """
    return _convert(kind, value, "")


def _convert(kind: Any, value: Any, where: str) -> Any:
    if is_dataclass(kind):
        return _dataclass(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, where)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Literal and value in arguments:
        return value
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(kind, type) and type(value) is kind:  # exactly: True is no number of volumes
        return value
    name = str(kind) if arguments else kind.__name__
    raise ValueError(f"{where or 'it'} is {repr(value)[:40]}, not {name}")


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where or 'it'} is not an object")
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}
    for name in value:
        if name not in known:
            raise ValueError(f"{where}{'.' if where else ''}{str(name)[:40]!r} is not known")
    given = {}
    for name, field in known.items():
        path = f"{where}.{name}" if where else name
        if name in value:
            given[name] = _convert(hints[name], value[name], path)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{path} is missing")
    return kind(**given)
