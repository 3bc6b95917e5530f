"""Which files show which subject: by globs, from a CSV manifest, from a dataset.json."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError, check_name

SUFFIXES = (".nii.gz", ".nii")
LARGEST_LIST = 1 << 26  # bytes of a manifest or a dataset.json
NOT_SUCH_A_LIST = (
    KeyError, TypeError, ValueError, AttributeError, StopIteration, RecursionError, OverflowError,
)  # fmt: skip
_WILDCARD = re.compile(r"(\*\*/|\*|\?)")
_AS_REGEX = {"**/": r"(?:[^/]+/)*", "*": r"([^/]*)", "?": r"([^/])"}


class Scan(NamedTuple):
    """Where one volume of a subject is."""

    path: Path
    part: int | None = None
    """Which volume of a 4D file; None: the file has one."""


Rows = dict[str, dict[str, Scan]]
"""Subject -> column -> its scan."""


@dataclass
class Listing:
    """The scans of a folder, a manifest or a dataset.json."""

    rows: Rows
    labels: dict[str, dict[int, str]] = field(default_factory=dict)
    """Column of a mask -> the names of its labels, where they are told."""
    attributes: dict[str, dict[str, str]] = field(default_factory=dict)
    """Subject -> all cells of its line of a manifest."""

    def holds_classes(self, column: str) -> bool:
        """Whether it is a column of the manifest whose cells are words, no scans."""
        return any(cells.get(column) for cells in self.attributes.values()) and not any(
            column in row for row in self.rows.values()
        )


def list_scans(place: Path | None, columns: Mapping[str, str | None]) -> Listing:
    """The scans of `--data nifti`.

    Args:
        place: the folder that globs are relative to, a CSV manifest, or a dataset.json (or its
            folder).
        columns: what to look for: name -> glob, or None where the list names it.

    Raises:
        UserError: nothing there, or not what the columns ask for.
    """
    if place is None:
        raise UserError("--data nifti needs --data-dir: a folder, a CSV manifest, a dataset.json")
    place = Path(place)
    if not place.exists():
        raise UserError(f"--data-dir {place}: no such file or folder")
    globs = {name: glob for name, glob in columns.items() if glob is not None}
    if globs and len(globs) < len(columns):
        bare = next(name for name in columns if name not in globs)
        raise UserError(f"{bare}: has no glob, the others have; give {bare}=*_{bare}.nii.gz")
    if globs:
        if not place.is_dir():
            raise UserError(f"--data-dir {place}: globs need a folder; leave them out")
        return Listing(_by_globs(place, globs))
    if place.is_dir():
        if not (place / "dataset.json").is_file():
            name = next(iter(columns))
            raise UserError(
                f"--data-dir {place}: which files show {name}? Give a glob, "
                f"--modality {name}=*_{name}.nii.gz, or a manifest, --data-dir subjects.csv"
            )
        place = place / "dataset.json"
    return _from_json(place) if place.suffix == ".json" else _from_csv(place)


def select(rows: Rows, columns: Sequence[str], place: Path) -> tuple[Rows, dict[str, list[str]]]:
    """The subjects that have every column; why the others are left out -> which they are.

    Raises:
        UserError: no subject has all of them; a name that environment.json could not hold.
    """
    for row in rows.values():
        for scan in row.values():
            check_name(str(place), scan.path)
    complete: Rows = {}
    left_out: dict[str, list[str]] = {}
    for subject in sorted(rows):
        lacking = [name for name in columns if name not in rows[subject]]
        if lacking:
            left_out.setdefault(f"lacks {' and '.join(lacking)}", []).append(subject)
        else:
            complete[subject] = {name: rows[subject][name] for name in columns}
    if not complete:
        counts = []
        for name in columns:
            having = [subject for subject in sorted(rows) if name in rows[subject]]
            counts.append(f"{name}: {len(having)}" + (f" ({having[0]}, …)" if having else ""))
        known = sorted({name for row in rows.values() for name in row})
        raise UserError(
            f"{place}: no subject with {' and '.join(columns)}; subjects with "
            f"{', '.join(counts)}; what is there: {', '.join(known) or 'no scan'}"
        )
    return complete, left_out


def _by_globs(folder: Path, globs: Mapping[str, str]) -> Rows:
    """Subjects are what the wildcards stand for; where that is told twice, with their folders."""
    for name, glob in globs.items():
        if glob.startswith("/") or ".." in glob.split("/"):
            raise UserError(f"{name}={glob}: a glob is relative to --data-dir and stays in it")
    patterns = {name: _pattern(glob) for name, glob in globs.items()}
    literal = {name: len(_WILDCARD.sub("", glob)) for name, glob in globs.items()}
    found: list[tuple[str, str, Sequence[str]]] = []
    for file in _scans_below(folder):
        matches = {name: m for name, p in patterns.items() if (m := p.fullmatch(file))}
        if matches:
            # `*.nii.gz` beside `*_seg.nii.gz`: a mask is only the second.
            name = max(matches, key=lambda each: literal[each])
            found.append((name, file, matches[name].groups()))
    for name, glob in globs.items():
        if all(name != each for each, _, _ in found):
            raise UserError(f"{name}={glob}: no scan below {folder} has such a name")
    for with_folders in (False, True):
        rows: Rows = {}
        twice = []
        for name, file, groups in found:
            row = rows.setdefault(_subject(file, groups, with_folders), {})
            if name in row:
                twice.append((name, row[name].path, folder / file))
            row.setdefault(name, Scan(folder / file))
        if not twice:
            break
    for name, first, second in twice:
        raise UserError(f"{name}={globs[name]}: {first} and {second} are of one subject; narrow it")
    return rows


def _pattern(glob: str) -> re.Pattern[str]:
    parts = (_AS_REGEX.get(part) or re.escape(part) for part in _WILDCARD.split(glob))
    anywhere = "" if "/" in glob else "(?:.*/)?"
    return re.compile(anywhere + "".join(parts))


def _subject(file: str, groups: Sequence[str], with_folders: bool) -> str:
    told = [group.strip("/") for group in groups if group.strip("/")]
    if with_folders or not told:
        told = [*file.split("/")[:-1], *told]
    # sub-01/sub-01_T1w.nii.gz tells sub-01 twice.
    kept = [a for i, a in enumerate(told) if not any(a in b for b in told[i + 1 :])]
    kept = [a for i, a in enumerate(kept) if not any(a in b for b in kept[:i])]
    return "/".join(kept) or file.removesuffix(".gz").removesuffix(".nii")


def _scans_below(folder: Path) -> Iterator[str]:
    """Paths relative to `folder`, with slashes, sorted; also folders that are called like scans."""
    seen = set()
    found = []
    for where, folders, files in os.walk(folder, followlinks=True, onerror=_refuse(folder)):
        real = os.path.realpath(where)
        if real in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        called_so = [name for name in folders if name.endswith(SUFFIXES)]
        folders[:] = [n for n in folders if not n.startswith(".") and n not in called_so]
        for name in (*files, *called_so):
            if name.endswith(SUFFIXES) and not name.startswith("."):
                found.append(Path(where, name).relative_to(folder).as_posix())
    return iter(sorted(found))


def _refuse(folder: Path) -> Any:
    def refuse(error: OSError) -> None:
        raise UserError(f"--data-dir {error.filename or folder}: {error.strerror}")

    return refuse


def _from_csv(path: Path) -> Listing:
    """Columns `subject` and one for each modality or mask; paths relative to the manifest."""
    text = _text(path)
    first, *_ = text.splitlines() or [""]
    delimiter = max(",;\t", key=first.count)
    listing = Listing({})
    try:
        lines = list(csv.DictReader(text.splitlines(), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV file ({error})") from None
    for number, line in enumerate(lines, 2):
        cells = {
            key.strip(): value.strip() for key, value in line.items() if key and value is not None
        }
        subject = cells.pop("subject", "")
        if not subject:
            raise UserError(f"{path}, line {number}: no subject; the manifest needs that column")
        if subject in listing.rows:
            raise UserError(f"{path}, line {number}: {subject} is there twice")
        listing.attributes[subject] = cells
        listing.rows[subject] = {
            name: Scan(path.parent / cell)
            for name, cell in cells.items()
            if cell.endswith(SUFFIXES)
        }
    if not lines:
        raise UserError(f"{path}: names no subject")
    return listing


def _from_json(path: Path) -> Listing:
    """As the Medical Segmentation Decathlon and MONAI write it, or nnU-Net (`_from_nnunet`).

    Its keys are `training`, `modality`, `labels`. Columns: the names of the modalities, or `image`;
    the other keys of a case, such as `label`.
    """
    try:
        content = json.loads(_text(path))
        json.dumps(content, ensure_ascii=False).encode()  # a name that no file of ours could hold
        if "training" not in content and "channel_names" in content:
            return _from_nnunet(path, content)
        cases = [*content["training"], *content.get("validation", [])]
        names = content.get("modality") or content.get("channel_names") or {}
        modalities = [str(names[key]) for key in sorted(names, key=int)]
        listing = Listing({})
        for case in cases:
            row: dict[str, Scan] = {}
            for key, value in case.items():
                row |= _scans_of(path, key, value, modalities)
            image = case.get("image")
            named = image if isinstance(image, str) else next(iter(row.values())).path
            subject = str(case.get("subject", _case(Path(named).name)))
            if subject in listing.rows:
                raise UserError(f"{path}: {subject} is there twice")
            listing.rows[subject] = row
        labels = content.get("labels") or {}
        if labels and all(str(key).isdigit() for key in labels):
            listing.labels["label"] = {int(key): str(name) for key, name in labels.items()}
        return listing
    except NOT_SUCH_A_LIST as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path}: not a dataset.json as MONAI, the Decathlon and nnU-Net write it "
            f"({reason:.80})"
        ) from None


def _from_nnunet(path: Path, content: Mapping[str, Any]) -> Listing:
    """nnU-Net's folder: `imagesTr/CASE_0000.nii.gz` for each channel, `labelsTr/CASE.nii.gz`.

    Columns: the names of the channels, and `label`. Its file names no case, but their number.
    """
    ending, folder = content["file_ending"], path.parent / "imagesTr"
    if ending not in SUFFIXES:
        raise UserError(f"{path}: file_ending is {ending!r:.20}; only {' and '.join(SUFFIXES)}")
    channels = {f"{int(key):04d}": str(name) for key, name in content["channel_names"].items()}
    columns = [*channels.values(), "label"]
    for name in columns:
        if columns.count(name) > 1:
            glob = f"{name}=imagesTr/*_0000{ending}"
            raise UserError(f"{path}: {name} names two columns; give a glob, --modality {glob}")
    rows: Rows = {}
    for file in sorted(folder.glob(f"[!.]*_????{ending}")):
        case, _, number = file.name.removesuffix(ending).rpartition("_")
        if number in channels:
            rows.setdefault(case, {})[channels[number]] = Scan(file)
    if not rows:
        raise UserError(f"{folder}: no file such as CASE_{min(channels)}{ending}")
    if len(rows) != content["numTraining"]:
        raise UserError(
            f"{folder}: has {len(rows)} cases, numTraining in {path.name} is "
            f"{content['numTraining']!r:.20}; correct one of them"
        )
    for case, row in rows.items():
        mask = path.parent / "labelsTr" / f"{case}{ending}"
        if os.path.lexists(mask):  # a link to nothing is said, when it is read
            row["label"] = Scan(mask)
    names: dict[int, str] = {}
    for name, values in content["labels"].items():
        if isinstance(values, list):  # a region, of labels that have no names
            names |= {int(value): str(value) for value in values}
        else:
            names[int(values)] = name
    return Listing(rows, {"label": names} if any(names) else {})


def _scans_of(path: Path, key: str, value: Any, modalities: Sequence[str]) -> dict[str, Scan]:
    """The columns of one key of a case."""
    files = value if isinstance(value, list) else [value]
    if not all(isinstance(file, str) and file.endswith(SUFFIXES) for file in files):
        return {}  # a fold, an age
    if key != "image" or not (modalities or len(files) > 1):
        return {key: Scan(path.parent / files[0])}
    if not modalities:
        return {f"image{i}": Scan(path.parent / file) for i, file in enumerate(files)}
    image = path.parent / files[0]
    if len(files) == 1 and (channels := _channels_of(image, len(modalities))):
        return {name: Scan(file) for name, file in zip(modalities, channels, strict=True)}
    if len(files) == 1 < len(modalities):  # all of them in one 4D file
        return {name: Scan(image, i) for i, name in enumerate(modalities)}
    if len(files) != len(modalities):
        raise ValueError(f"{len(files)} images of {len(modalities)} modalities")
    return {name: Scan(path.parent / file) for name, file in zip(modalities, files, strict=True)}


def _case(file: str) -> str:
    return file.removesuffix(".gz").removesuffix(".nii")


def _channels_of(image: Path, count: int) -> list[Path]:
    """`CASE_0000.nii.gz`, … where nnU-Net 1 lists `CASE.nii.gz`, which there is not; else none."""
    case = _case(image.name)
    ending = image.name.removeprefix(case)
    channels = [image.with_name(f"{case}_{number:04d}{ending}") for number in range(count)]
    return [] if os.path.lexists(image) or not os.path.lexists(channels[0]) else channels


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_LIST:
            raise UserError(f"{path}: larger than a list of subjects")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; a manifest is CSV") from None
