"""The report: complete, honest, self-contained, and safe with hostile names."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from fake_run import make_run, make_runs

from deepteach.errors import ConfigError, DataError, StorageError
from deepteach.report.html import write_comparison, write_report
from deepteach.report.summary import facts_of, headline_of
from deepteach.report.suspects import suspects_of
from deepteach.report.workbench import workbench_of
from deepteach.runs.reader import open_run

HOSTILE = ('<img src=x onerror="alert(1)">', "</script><script>alert(2)</script>", "\"'{{ 7*7 }}")


class Page(HTMLParser):
    """Every tag with its attributes, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words = ""
        self._code = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self._code = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._code = False

    def handle_data(self, data: str) -> None:
        if not self._code:
            self.words += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = make_runs(tmp_path_factory.mktemp("report") / "a")
    assert write_report(path) == path / "report.html"
    return (path / "report.html").read_text()


def self_contained(text: str) -> None:
    page = Page(text)
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "srcset", "href", "xlink:href", "action", "data"):
            if name in attributes:
                assert attributes[name].startswith(("data:", "#")), attributes[name]
    code = "".join(re.findall(r"<(?:style|script)>(.*?)</(?:style|script)>", text, re.S))
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp|eval\(", code)
    for picture in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", text):
        svg = base64.b64decode(picture, validate=True).decode()
        assert "<script" not in svg
        assert all(href.startswith(("#", "data:")) for href in re.findall(r'href="([^"]*)', svg))
        assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)", svg))
    policy = next(m for m in page.all("meta") if "http-equiv" in m)["content"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert len(page.all("script")) == 1


def test_says_everything(text: str) -> None:
    words = Page(text).words
    for expected in (
        "10.00 points above plain training", "90.00 % test accuracy against 80.00 %",
        "flip label noise 40%", "on the same schedule", "One seed", "optimistic", "0.950",
        "Effective samples", "Learning curves", "What deep weighs", "Samples the teacher",
        "drift", "Cost", "in plain steps", "4.375", "updates of the teacher", "Settings",
        "batch_size", "threads", "uniform",
    ):  # fmt: skip
        assert expected in words, expected
    assert "What uniform weighs" not in words


def test_is_self_contained_accessible_and_small(text: str) -> None:
    self_contained(text)
    page = Page(text)
    assert page.all("html")[0]["lang"] == "en"
    assert all(image["alt"] for image in page.all("img"))
    assert len(page.all("caption")) == len(page.all("table")) > 3
    assert len(page.all("h1")) == 1
    assert all(head["scope"] in ("col", "row") for head in page.all("th"))
    svgs = [image for image in page.all("img") if "svg" in image["src"][:20]]
    assert len(svgs) == 12 and all(int(image["width"]) > 300 for image in svgs)
    assert len(text) < 2_000_000


def test_suspects_are_shown_with_their_labels(text: str) -> None:
    page = Page(text)
    shown = [image for image in page.all("img") if image["alt"].startswith("Sample ")]
    assert len(shown) == 8
    for image in shown:
        assert base64.b64decode(image["src"].split(",")[1])[:4] == b"\x89PNG"
        assert re.fullmatch(r"Sample \d+: labelled [012], predicted [012]", image["alt"])


def test_again_gives_the_same_bytes_and_leaves_no_draft(tmp_path: Path) -> None:
    path = make_runs(tmp_path / "a", samples=False)
    first = write_report(path).read_bytes()
    assert write_report(open_run(path)).read_bytes() == first
    assert not [p for p in path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize(
    ("selected", "title", "tone"),
    [
        (0.75, "5.00 points below plain training", "bad"),
        (0.80, "No difference from plain training", "plain"),
        (0.85, "5.00 points above plain training", "good"),
    ],
)
def test_headline_is_honest(tmp_path: Path, selected: float, title: str, tone: str) -> None:
    headline = headline_of(open_run(make_runs(tmp_path / "a", selected=selected)))
    assert (headline.title, headline.tone) == (title, tone)


def test_baseline_on_another_schedule_is_said(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a")
    make_run(path / "baseline", method="uniform", selected=0.8, epochs=9)
    headline = headline_of(open_run(path))
    assert "on another schedule" in headline.text and headline.tone == "plain"
    assert any("not the teacher's alone" in note for note in headline.notes)


def test_bare_run(tmp_path: Path) -> None:
    """No truth, no baseline, no test set, no samples kept, a cut-off log."""
    path = make_run(tmp_path / "a", truth=False, selected=None, samples=False)
    lines = (path / "metrics.jsonl").read_text()
    (path / "metrics.jsonl").write_text(lines[:-9])
    text = write_report(path).read_text()
    self_contained(text)
    words = Page(text).words
    for expected in ("93.00 % validation accuracy", "no gain can be stated", "no test set",
                     "cut off", "Least trusted samples"):  # fmt: skip
        assert expected in words
    assert "true label" not in words and "Wrong labels found" not in words


def test_the_key_of_a_run_is_of_all_its_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(make_run(tmp_path / "a", n=50))
    columns = run.weights.columns().values()
    text = "\n".join("\t".join(map(str, column.tolist())) for column in columns)
    expected = hashlib.sha256(text.encode()).hexdigest()[:16]
    for rows in (1, 7, 25, 512):
        monkeypatch.setattr("deepteach.report.workbench.AT_ONCE", rows)
        found = workbench_of(run, suspects_of(run, None)[0])
        assert found is not None and found.run_key == expected


def test_rows_are_shown_as_rows(tmp_path: Path) -> None:
    words = Page(write_report(make_run(tmp_path / "a", rows=True)).read_text()).words
    assert "given label" in words and "feature 4" in words and "feature 5" not in words


def test_uniform_run(tmp_path: Path) -> None:
    words = Page(write_report(make_run(tmp_path / "a", method="uniform")).read_text()).words
    assert "every sample weighs the same" in words and "nothing to rank" in words


def test_hostile_names_are_text(tmp_path: Path) -> None:
    path = make_run(tmp_path / "<b onclick=x>", classes=HOSTILE, data=HOSTILE[1])
    text = write_report(path).read_text()
    self_contained(text)
    page = Page(text)
    assert not page.all("b") and "x" not in [image["src"] for image in page.all("img")]
    for name in (*HOSTILE, "<b onclick=x>"):
        assert name in page.words
    assert "49" not in re.findall(r"labelled (\S+),", text)


def test_sources_and_files_are_shown(tmp_path: Path) -> None:
    plain = write_report(make_run(tmp_path / "a", rows=True)).read_text()
    assert "Sources" not in plain and ".png" not in plain
    named = make_run(tmp_path / "b", rows=True, sources=("<i>web</i>", "clinic"))
    text = write_report(named).read_text()
    assert "Sources" in text and "&lt;i&gt;web&lt;/i&gt;" in text and "<i>web" not in text
    assert ".png</td>" in text and text.count("clinic</t") > 1
    found = open_run(named).weights.at(np.array([7]))
    assert found.path is not None and found.path.tolist() == ["7.png"]


def test_foreign_file_is_not_overwritten(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", samples=False)
    (path / "report.html").write_text("mine")
    with pytest.raises(ConfigError, match="move it away"):
        write_report(path)
    assert (path / "report.html").read_text() == "mine"
    with pytest.raises(ConfigError):
        write_comparison([open_run(path)], tmp_path)
    with pytest.raises(StorageError, match="storage failed at .*none.* writable"):
        write_comparison([open_run(path)], tmp_path / "none" / "a.html")


def test_no_run_no_report(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no config.yaml"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_comparison(tmp_path: Path) -> None:
    runs = []
    for seed, selected in enumerate((0.90, 0.92, 0.91)):
        path = make_run(tmp_path / f"<i>{seed}", seed=seed, selected=selected, samples=False)
        make_run(path / "baseline", method="uniform", seed=seed, selected=0.8, samples=False)
        runs.append(open_run(path))
    text = write_comparison(runs, tmp_path / "compare.html").read_text()
    self_contained(text)
    page = Page(text)
    assert not page.all("i")
    for expected in (
        "6 runs compared", "+11.00 ± 1.00", "+8.52 to +13.48", "better", "<i>2", "little power",
        "What deep (seed 0) weighs", "Samples that deep (seed 0) trusts least",
    ):  # fmt: skip
        assert expected in page.words, expected
    assert "What uniform" not in page.words and "What deep (seed 1)" not in page.words
    assert any("AUROC of wrong labels over the epochs" in i["alt"] for i in page.all("img"))
    assert "deep +11.00, better" in next(i["alt"] for i in page.all("img") if "gain" in i["alt"])


def test_key_figures_below_zero_are_shown(tmp_path: Path) -> None:
    """R2 of a student that is worse than the mean; what is not known is left out."""
    run = open_run(make_run(tmp_path / "a"))
    known = {"test_r2_last": -4.6, "test_r2_selected": None, "valid_r2_best": -1.5, "metric": "r2"}
    summary = {k: v for k, v in run.summary.items() if "accuracy" not in k} | known
    found = {fact.name: fact.value for fact in facts_of(replace(run, summary=summary), None)}
    assert found["Test, last"] == "-460.00 %" and found["Validation, best"] == "-150.00 %"
    assert "Test, selected" not in found and "Test, best" not in found
