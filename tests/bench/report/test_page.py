"""report.html as text: whole, self-contained, and safe whatever the files hold."""

import json
import math
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench.records.files import write_rows
from bench.records.rows import Instant, Score
from bench.report.advice import advise, best_group
from bench.report.reading import read_evidence
from bench.report.write import write_reports
from tests.bench.report.runs import (
    ENVIRONMENT,
    GIB,
    METHODS,
    full_run,
    instant,
    predicted,
    record,
    window,
    write_run,
)

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7*7 }}"


class Page(HTMLParser):
    """Tags and their attributes, and what was never closed."""

    VOID = frozenset({"meta", "link", "img", "br", "use", "path", "rect"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def values(self, name: str) -> list[str]:
        return [value for _, attributes in self.tags if (value := attributes.get(name)) is not None]


def make(out: Path, *folders: Path) -> str:
    write_reports(folders, out)
    return (out / "report.html").read_text(encoding="utf-8")


def test_it_is_one_well_formed_self_contained_file(report: Path):
    text = (report / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert len(page.values("id")) == len(set(page.values("id")))
    for name in ("src", "href", "xlink:href", "action", "srcset"):
        assert all(value.startswith(("#", "data:")) for value in page.values(name))
    assert "default-src 'none'" in page.values("content")[2]
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []
    assert {"html", "main", "nav", "header"} <= {tag for tag, _ in page.tags}
    ids = set(page.values("id"))
    for name in ("aria-labelledby", "aria-describedby"):
        assert set(page.values(name)) <= ids


def test_the_verdict_comes_first(report: Path):
    text = (report / "report.html").read_text(encoding="utf-8")
    assert text.index("For 24 GiB") < text.index("<table")
    assert "with least memory idm (6.18 GiB allocated, for" in text
    assert "Peak memory, live (GiB)" in text


def test_two_matches_of_a_preset_have_names_of_their_own(tmp_path: Path):
    runs = [
        write_run(tmp_path / str(match), [predicted(name, match=match) for name in METHODS])
        for match in ("parameters", "flops")
    ]
    text = make(tmp_path / "out", *(run.folder for run in runs))
    links = text[text.index("<nav") : text.index("</nav")]
    assert links.count(">paper (predicted)<") == 1
    assert links.count(">paper at equal FLOPs (predicted)<") == 1


def test_every_number_of_the_table_has_its_source(report: Path):
    text = (report / "report.html").read_text(encoding="utf-8")
    table = text[text.index('class="numbers sortable"') :]
    cells = re.findall(r"<td tabindex[^>]*>", table[: table.index("</table>")])
    assert len(cells) == len(METHODS) * 11
    assert all("aria-describedby" in cell for cell in cells)
    assert "nvml-counter; median of 3 trials" in text


def test_figures_are_svg_with_name_and_description(report: Path):
    text = (report / "report.html").read_text(encoding="utf-8")
    assert text.count('role="img"') == 4
    assert text.count("<svg") == 4
    for word in (
        "Figure 3. Peak memory",
        "unet 18.0 GiB live",
        "At the end of the window: ",
        "frontier",
    ):
        assert word in text


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page of a run in which every text is an attack."""
    folder = tmp_path_factory.mktemp("hostile")
    rows = [
        record(EVIL, device_name=EVIL, data=EVIL, peak_memory_source=EVIL, energy_source=EVIL,
               warnings=EVIL, contention="=cmd|' /C calc'!A0"),
        record("idm", 1, preset=EVIL, status="failed", error=EVIL),
    ]  # fmt: skip
    run = write_run(folder / "a<b>&\"'", rows, window(EVIL))
    (run.folder / "environment.json").write_text(
        json.dumps(
            {EVIL: EVIL, "command": [EVIL, "</script>"], "versions": {EVIL: [EVIL, {EVIL: 1}]}}
        )
    )
    write_rows(
        run.folder / "timeline.csv", Instant,
        [instant(EVIL, phase=EVIL, layer=EVIL, operator=EVIL, source=EVIL)],
    )  # fmt: skip
    (run.folder / "figure2.png").write_bytes(b"\x89PNG" + EVIL.encode())
    quality = Score(source=EVIL, method=EVIL, modality=EVIL, column="psnr", value=1.0)
    write_rows(run.folder / "quality.csv", Score, [quality])
    return make(folder / "out", run.folder)


def test_foreign_text_stays_text(hostile: str):
    page = Page(hostile)
    assert page.open == []
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "{{ 7*7 }}" in hostile
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [str(a["src"]).split(",")[0] for a in images] == ["data:image/png;base64"]


def test_the_timeline_of_each_method_is_shown(tmp_path: Path):
    run = write_run(tmp_path / "run", [predicted("idm"), predicted("unet")])
    assert "Memory over one training step" not in make(tmp_path / "out", run.folder)
    rows = [
        instant(method, position=at, activation_bytes=gib * GIB, layer="body", phase=phase)
        for method, highest in (("idm", 4), ("unet", 9))
        for at, gib, phase in ((0, 1, "forward"), (0.4, highest, "backward"), (0.9, 2, "optimizer"))
    ]
    write_rows(run.folder / "timeline.csv", Instant, rows)
    text = make(tmp_path / "out", run.folder)
    assert "Memory over one training step" in text
    assert "Peaks: idm 5.00 GiB live, unet 10.0 GiB live" in text  # each has 1 GiB of weights
    assert "peak: backward pass, at body (convolution)" in text
    assert (tmp_path / "out" / "timeline.pdf").read_bytes().startswith(b"%PDF")


def test_a_damaged_timeline_is_left_out_and_named(tmp_path: Path):
    run = write_run(tmp_path / "run", [predicted("idm")])
    rows = [instant("idm", position=at, other_bytes=alive)
            for at, alive in ((0, 0), (7, 1), (math.inf, 1), (-1, 1))]  # fmt: skip
    write_rows(run.folder / "timeline.csv", Instant, rows)
    assert "Peaks: idm 1.00 GiB live" in make(tmp_path / "out", run.folder)
    (run.folder / "timeline.csv").write_text("method,position\nidm,much\n")
    text = make(tmp_path / "out", run.folder)
    assert "run: timeline.csv: lacks the column repeat; it is left out" in text


def test_environment_and_warnings_are_in_the_page(tmp_path: Path):
    environment = {**ENVIRONMENT, "git": {"commit": "0123456789abcdef", "dirty": True}}
    rows = [record("idm", contention="the CPU was busy: 68 %"), record("unet", throttled="thermal")]
    text = make(tmp_path / "out", write_run(tmp_path / "run", rows, environment=environment).folder)
    assert "3 warnings</a> to read before" in text
    for word in ("2.13.0", "0123456789abcdef", "Made-up CPU", "the CPU was busy: 68 % (idm 1)",
                 "thermal (unet 1)", "changes that are in no commit"):  # fmt: skip
        assert word in text, word


def test_what_fits_comes_from_fit_where_it_was_asked(tmp_path: Path):
    run = full_run(tmp_path / "run", 1, "equal")
    (run.folder / "fit.csv").write_text(
        "memory_bytes,method,volume,patch,batch_size,batch_needs,largest_volume,volume_needs\n"
        f"{24 * 2**30},idm,64,64,18,1,160,1\n{24 * 2**30},unet,64,64,5,1,96,1\n"
        f"{24 * 2**30},patchddm,256,128,3,1,256,1\n{8 * 2**30},idm,64,64,3,1,64,1\n"
    )
    text = make(tmp_path / "out", run.folder)
    assert (
        "Largest batch that trains, of 64³ volumes: idm 18 (or one of 160³), unet 5 (or one of "
        "96³); of 128³ patches of 256³ volumes: patchddm 3 (or one of 256³)."
    ) in text


@pytest.mark.parametrize(
    ("gib", "words"),
    [
        (
            1,
            "All methods fit at equal (64³, batch 4, fp32). What is the quickest, of each network: "
            "unet (18.5 GiB allocated, 0.954 s a million voxels), with least memory checkpoint "
            "(9.27 GiB allocated, for 1.40× the time); patchddm (another task) (7.72",
        ),
        (1, "idm-stored (14.4 GiB allocated, 0.572 s a million voxels), with least memory idm "),
        (1, "Cost does not rank networks, since they learn differently. No run here says"),
        (
            2,
            "3 of 5 fit at equal (64³, batch 4, fp32). What is the quickest, of each network: chec",
        ),
        (30, "Nothing fits at equal (64³, batch 4, fp32): idm needs the least, 185 GiB allocated."),
    ],
)
def test_the_advice_follows_the_budget(tmp_path: Path, gib, words):
    rows = [record(name, preset="equal") for name in METHODS]
    for row in rows:
        assert row.peak_allocated_bytes is not None
        row.peak_allocated_bytes *= gib
    run = write_run(tmp_path / "run", rows)
    text = make(tmp_path / "out", run.folder) if gib == 30 else _advice(run.folder)
    assert words in text


def test_what_a_card_needs_besides_tensors_is_kept_free(tmp_path: Path):
    """A GiB, as `fit` does: what leaves less does not fit."""
    needs = {"unet": 8 * 2**30, "checkpoint": 7 * 2**30 + 1, "patchddm": 7 * 2**30}
    rows = [
        record(name, preset="equal", peak_allocated_bytes=need, peak_memory_bytes=need)
        for name, need in needs.items()
    ]
    text = make(tmp_path / "out", write_run(tmp_path / "run", rows).folder)
    (of_8,) = re.findall(r'<th scope="row">8 GiB</th>(.*?)</tr>', text)
    assert re.findall(r"<td[^>]*>(.*?)</td>", of_8) == [
        "patchddm (another task): 7.00 GiB allocated",
        "–",
    ]
    assert "1 GiB is kept free" in text


def test_networks_are_compared_by_what_quality_found(tmp_path: Path):
    def text(*methods: str) -> str:
        run = write_run(tmp_path / "-".join(methods), [record(each) for each in methods])
        return _advice(run.folder, {"idm": 0.0812, "unet": 0.074, "elsewhere": 0.5})

    assert "Validation MSE of ε after these runs' trainings: unet 0.074." in text("unet", "revunet")
    assert "rank" not in text("idm", "idm-stored")


def _advice(folder: Path, learned: Mapping[str, float] | None = None) -> str:
    group = best_group(read_evidence([folder]).groups)
    assert group is not None
    return advise(group, learned)
