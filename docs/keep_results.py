"""Reduce folders of results to what is committed.

    python -m docs.keep_results build/results/reference

Kept are CSV, JSON and Markdown, and the pictures that a document of this project shows. Everything
else (PDF, LaTeX, the page, logs, samples, checkpoints) is made again by `python -m bench report`,
or belongs to a release. Of tables that a report makes, those of the whole folder stay and those of
the runs in it go; of files with the same bytes, the first stays.
"""

import hashlib
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
KINDS = {".csv", ".json", ".md"}
MADE_BY_A_REPORT = {"table1", "table2", "claims"}


def documents() -> list[Path]:
    return [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("models/**/*.md")]


def shown_pictures() -> set[str]:
    """Paths from the root, of every picture that a document shows."""
    found = set()
    for document in documents():
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r'!\[[^]]*\]\(([^)]+)\)|<img src="([^"]+)"', text):
            path = (document.parent / "".join(target)).resolve()
            found.add(path.relative_to(ROOT).as_posix())
    return found


def unneeded(folder: Path, place: str) -> Iterator[Path]:
    """Files of `folder`, which is to be committed at `place`, that are not to be."""
    shown, seen = shown_pictures(), set()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        in_a_run = any((path.parent / rows).exists() for rows in ("runs.csv", "trained.csv"))
        derived = in_a_run and path.stem in MADE_BY_A_REPORT
        content = hashlib.sha256(path.read_bytes()).digest()
        kept = (path.suffix in KINDS and not derived) or f"{place}/{name.as_posix()}" in shown
        if not kept or content in seen:
            yield path
        else:
            seen.add(content)


def main() -> None:
    for argument in sys.argv[1:]:
        folder = Path(argument)
        _, _, place = folder.resolve().as_posix().rpartition("/results/")
        for path in unneeded(folder, f"results/{place}"):
            path.unlink()
        for path in sorted(folder.rglob("*/"), reverse=True):
            if path.is_dir() and not any(path.iterdir()):
                shutil.rmtree(path)


if __name__ == "__main__":
    main()
