"""Samples are judged in a real browser: by keys and clicks, kept, exported, and trained on."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chromium import Page
from fake_run import make_run
from sklearn.datasets import load_digits

from deepteach.cli.entry import main
from deepteach.data.decisions import decisions_of
from deepteach.report.html import write_report

HOSTILE = ("<script>alert(1)</script>", 'say "no", please', "c'est, ça")
COUNT = "document.querySelector('.count').textContent"
SAID = "document.querySelector('.message').textContent"
SHOWN = (
    "[...document.querySelectorAll('.suspects li')].filter((one) => !one.hidden)"
    ".map((one) => Number(one.dataset.index))"
)
FOCUSED = "Number(document.activeElement.dataset.index)"
EXPORT, FILE = "[data-action=export]", ".workbench input[type=file]"


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with Page() as found:
        yield found


@pytest.fixture
def page(browser: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    """An empty browser; pages have no figures, which take long and are tested elsewhere."""
    monkeypatch.setattr("deepteach.report.html.picture", lambda *_: None)
    browser.download_to(tmp_path)
    (tmp_path / "empty.html").write_text("<!DOCTYPE html>")
    browser.open(tmp_path / "empty.html")
    browser.js("localStorage.clear()")
    yield browser
    assert browser.errors() == []


def exported(page: Page, folder: Path) -> dict[int, str]:
    path = folder / "decisions.csv"
    path.unlink(missing_ok=True)
    page.click(EXPORT)
    with page.saved(path).open(newline="", encoding="utf-8") as file:
        return {int(row["index"]): row["label"] for row in csv.DictReader(file)}


def choose(page: Page, name: str, value: str) -> None:
    page.js(
        f"(() => {{ const one = document.querySelector('[data-filter={name}]');"
        f" one.value = {json.dumps(value)}; one.dispatchEvent(new Event('change')); }})()"
    )


def imported(page: Page, path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    page.js("document.querySelector('.message').textContent = ''")
    page.upload(FILE, path)
    return page.js(
        "new Promise((done) => { const look = () => {"
        f" if ({SAID}) done({SAID}); else setTimeout(look); }}; look(); }})"
    )


def test_ten_samples_by_keyboard_survive_a_reload_and_are_trained_on(
    page: Page, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = load_digits(return_X_y=True)
    x = x.reshape(-1, 1, 8, 8).astype(np.float32)
    np.savez(tmp_path / "d.npz", x_train=x[:240], y_train=y[:240], x_test=x[240:], y_test=y[240:])
    settings = "train --epochs 2 --baseline false --student mlp --threads 1".split()
    settings += f"--data npz:{tmp_path}/d.npz --noise.kind flip --noise.rate 0.4".split()
    assert main([*settings, "--out", str(tmp_path / "a")]) == 0
    page.open(tmp_path / "a" / "report.html")
    order = page.js(SHOWN)
    given = page.js(
        "[...document.querySelectorAll('.suspects li')].map((one) => one.dataset.given)"
    )
    page.js("document.querySelector('.suspects li').focus()")
    page.press("r", "w", "3", "0", "w", "ArrowRight", "9", "r", "u", "r", "5", "w", "w")
    expected = dict(zip(order, [given[0], "", "3", "0", ""], strict=False))
    expected |= dict(zip(order[6:11], ["9", given[7], "5", "", ""], strict=True))
    page.reload()
    assert page.js(COUNT).startswith(f"10 of {len(order)} marked: ")
    assert exported(page, tmp_path) == expected
    decisions = str(tmp_path / "decisions.csv")
    capsys.readouterr()
    assert main([*settings, "--decisions", decisions, "--out", str(tmp_path / "b")]) == 0
    assert "6 training samples are trusted from now on" in capsys.readouterr().out
    page.open(tmp_path / "b" / "report.html")  # another run has its own marks
    assert page.js(COUNT).startswith("0 of ")
    assert not set(page.js(SHOWN)) & set(expected)
    page.click("li[role=option]")
    page.press("w")
    assert exported(page, tmp_path) == {**expected, page.js(SHOWN)[0]: ""}  # the former ones, too


def test_clicks_filters_and_the_table_go_together(page: Page, tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", sources=("web", "clinic"))
    page.open(write_report(run))
    everything = page.js(SHOWN)
    choose(page, "group", "=web")
    web = page.js(SHOWN)
    assert web and set(web) == {index for index in everything if index % 2 == 0}
    rows = "[...document.querySelectorAll('details tbody tr')].filter((one) => !one.hidden)"
    of_table = page.js(f"{rows}.map((one) => Number(one.cells[0].textContent))")
    assert set(everything) & set(of_table) >= set(web)
    assert not (set(everything) - set(web)) & set(of_table)
    choose(page, "given", "=1")
    both = page.js(SHOWN)
    given = "document.querySelector(`.suspects [data-index='${i}']`).dataset.given"
    assert both == [i for i in web if page.js(f"((i) => {given})({i})") == "1"]
    choose(page, "given", "")
    page.click(f".suspects [data-index='{web[1]}']")
    page.click("[data-mark=drop]")
    assert page.js(FOCUSED) == web[2]  # what the filter hides is passed over
    page.click("[data-label='2']")
    choose(page, "group", "")
    choose(page, "mark", "none")
    assert page.js(SHOWN) == [i for i in everything if i not in (web[1], web[2])]
    page.press("u")
    assert exported(page, tmp_path) == {web[1]: ""}
    page.click("[data-action=undo]")
    assert exported(page, tmp_path) == {}


def test_hostile_labels_are_text_and_come_through(page: Page, tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", classes=HOSTILE, sources=("<img src=x onerror=alert(2)>",))
    page.open(write_report(run))
    order = page.js(SHOWN)
    page.click(".suspects li")
    page.press("1", "2", "3")  # names that are no keys get the digits, in their order
    assert page.js("document.querySelectorAll('script').length") == 1
    assert page.js("document.querySelectorAll('img[src=x]').length") == 0
    ordered = sorted(HOSTILE)
    assert exported(page, tmp_path) == dict(zip(order, ordered, strict=False))
    read = decisions_of(tmp_path / "decisions.csv").labels
    assert read == dict(zip(order, ordered, strict=False))
    text = (tmp_path / "decisions.csv").read_text(encoding="utf-8")
    page.click("[data-action=clear]")
    assert page.js(COUNT).startswith("0 of")
    assert imported(page, tmp_path / "back.csv", text).startswith("Imported 3 decisions")
    assert exported(page, tmp_path) == read
    assert page.js("document.querySelector('.what').textContent").startswith("No. ")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("row,label\n1,0\n", "expected the columns index and label"),
        ("", "expected the columns index and label"),
        ("index,label\n5,0\n5,1\n", "row 2: index 5 comes twice"),
        ("index,label\nfive,0\n", "row 1: the index is 'five', no whole number"),
        ("index,label\n5,dog\n", "row 1: 'dog' is no label of this run"),
        ('index,label\n5,"0\n', "a quote is not closed"),
    ],
)
def test_a_bad_file_is_refused_whole(page: Page, tmp_path: Path, text: str, told: str) -> None:
    page.open(write_report(make_run(tmp_path / "a")))
    page.click(".suspects li")
    page.press("w")
    before = page.js(COUNT)
    assert imported(page, tmp_path / "bad.csv", text) == f"bad.csv was not imported: {told}."
    assert page.js(COUNT) == before


def test_an_import_is_one_step_and_keeps_rows_that_are_not_shown(
    page: Page, tmp_path: Path
) -> None:
    page.open(write_report(make_run(tmp_path / "a")))
    first = page.js(SHOWN)[0]
    page.click(".suspects li")
    page.press("1")
    text = f"\ufeffnote,label,index\r\n,,{first}\r\nseen,2,90001\r\n"  # as spreadsheets save it
    assert imported(page, tmp_path / "b.csv", text) == "Imported 2 decisions from b.csv."
    assert "and 1 of samples that are not on this page" in page.js(COUNT)
    assert exported(page, tmp_path) == {first: "", 90001: "2"}
    page.click("[data-action=undo]")
    assert exported(page, tmp_path) == {first: "1"}


def test_without_storage_it_says_so_and_works(page: Page, tmp_path: Path) -> None:
    refuse = "Object.defineProperty(window, 'localStorage', {get() { throw new Error('no'); }});"
    added = page.call("Page.addScriptToEvaluateOnNewDocument", source=refuse)
    page.open(write_report(make_run(tmp_path / "a", rows=True)))
    page.call("Page.removeScriptToEvaluateOnNewDocument", **added)
    assert "export before you close it" in page.js("document.querySelector('.kept').textContent")
    page.click(".suspects li")
    page.press("w")
    assert list(exported(page, tmp_path).values()) == [""]


def test_quantities_are_written(page: Page, tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", classes=("1.5", "2.5", "-3"), rows=True)
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"task": "regression"}))
    page.open(write_report(run))
    first = page.js(SHOWN)[0]
    page.click(".suspects li")
    page.press("2", "l")  # no key of a class, then to the field, whose text is chosen
    page.press("4", ".", "r", "Enter")  # a letter there is a letter
    assert exported(page, tmp_path) == {first: "4.r"}
    assert "Classes by how much" not in (run / "report.html").read_text()


def test_what_a_screen_reader_is_told(page: Page, tmp_path: Path) -> None:
    page.open(write_report(make_run(tmp_path / "a")))
    chosen = "document.querySelectorAll('[role=listbox] > [role=option][aria-selected=true]')"
    assert page.js(f"{chosen}.length") == 1
    page.click(".suspects li")
    page.press("End", "Home", "ArrowDown", "ArrowLeft", "w")
    assert "dropped" in page.js("document.querySelector('[role=status]').textContent")
    page.press("Tab")
    assert page.js("document.activeElement.dataset.mark") == "right"
    named = (
        "[...document.querySelectorAll('.workbench :is(input, select, button)')].every((one) =>"
        " one.closest('label') || one.textContent.trim())"
    )
    assert page.js(named)
    page.press("Enter")  # the button under the focus
    page.click("[data-state=right]")
    pressed = "[...document.querySelectorAll('.inspector [aria-pressed=true]')]"
    assert page.js(f"{pressed}[0].dataset.mark") == "right"
