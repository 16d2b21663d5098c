"""The report in a real browser: it renders, logs no error, fits a phone, and sorts."""

from __future__ import annotations

import html
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from chromium import FLAGS, chromium
from fake_run import make_run, make_runs

from deepteach.report.html import write_comparison, write_report
from deepteach.runs.reader import open_run

# Appended to a copy of the page, in a frame as wide as the screen meant (a window of
# Chromium's is never narrower than 500): looks, clicks, leaves what it saw for --dump-dom.
PROBE = """
<script>
window.addEventListener("load", () => {
  const table = document.querySelector("table");
  const column = (i) => [...table.tBodies[0].rows].map((row) => row.cells[i].textContent);
  const heads = [...table.tHead.rows[0].cells];
  const click = (i) => { heads[i].querySelector("button").click(); return column(i); };
  parent.document.getElementById("probe").textContent = JSON.stringify({
    images: [...document.images].map((i) => [i.complete, i.naturalWidth, i.naturalHeight]),
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    width: window.innerWidth,
    unsorted: column(1),
    up: click(1), upSort: heads[1].getAttribute("aria-sort"),
    down: click(1), downSort: heads[1].getAttribute("aria-sort"),
    names: click(0), oneSorted: document.querySelectorAll("[aria-sort]").length,
    unknownLast: click(4), unknownLastDown: click(4),
    background: getComputedStyle(document.body).backgroundColor,
  });
});
</script>
"""
FRAME = """<!DOCTYPE html><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<pre id="probe"></pre><iframe style="width: {width}px; height: 740px; border: 0" srcdoc="{page}">
</iframe>"""


def _dump(page: Path, *options: str) -> tuple[str, list[str]]:
    """The page's DOM after its scripts ran, and the console's errors."""
    command = [
        chromium(), *FLAGS, f"--user-data-dir={page.parent / 'profile'}", "--enable-logging=stderr",
        "--v=0", "--dump-dom", "--virtual-time-budget=5000", *options, page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def _probe(page: Path, folder: Path, width: int, *options: str) -> dict[str, Any]:
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    text = html.escape(text.replace("</body>", PROBE + "</body>"))
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(width=width, page=text))
    dom, errors = _dump(frame, *options)
    assert errors == []
    found = re.search(r'<pre id="probe">(.*?)</pre>', dom, re.S)
    assert found is not None and found[1]
    return json.loads(found[1])


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_runs(tmp_path_factory.mktemp("browser") / "a")
    make_run(path / "mwn", method="mwn", selected=0.85, truth=False)
    return write_report(path)


def test_renders_without_errors_under_its_own_policy(report: Path) -> None:
    dom, errors = _dump(report)
    assert errors == []
    assert "10.00 points above plain training" in dom
    assert dom.count('<button type="button">') > 20  # the script was let run by its hash


def test_the_policy_stops_requests_and_the_console_is_seen(report: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    outside = '<img src="http://127.0.0.1:9/x.png"><script>alert(1)</script></body>'
    broken.write_text(report.read_text().replace("</body>", outside))
    _, errors = _dump(broken)
    assert sum("Content Security Policy" in line for line in errors) == 2


@pytest.mark.parametrize(
    ("width", "options", "background"),
    [
        (1200, (), "rgb(246, 248, 250)"),
        (360, ("--blink-settings=preferredColorScheme=0",), "rgb(13, 17, 23)"),
    ],
    ids=["desktop-light", "phone-dark"],
)
def test_images_have_sizes_tables_sort_nothing_overflows(
    report: Path, tmp_path: Path, width: int, options: tuple[str, ...], background: str
) -> None:
    seen = _probe(report, tmp_path, width, *options)
    assert len(seen["images"]) == 26  # the chosen sample is shown again beside its buttons
    assert all(done and across > 0 and down > 0 for done, across, down in seen["images"])
    assert seen["width"] == width
    assert seen["wide"] <= 0
    assert seen["background"] == background
    assert seen["unsorted"] == ["80.00", "90.00", "85.00"]
    assert (seen["up"], seen["upSort"]) == (["80.00", "85.00", "90.00"], "ascending")
    assert (seen["down"], seen["downSort"]) == (["90.00", "85.00", "80.00"], "descending")
    assert seen["names"] == ["deep", "mwn", "uniform"]
    assert seen["oneSorted"] == 1
    assert seen["unknownLast"] == ["0.500", "0.950", "-"]
    assert seen["unknownLastDown"] == ["0.950", "0.500", "-"]


def test_comparison_renders(tmp_path: Path) -> None:
    runs = [open_run(make_runs(tmp_path / str(s), seed=s)) for s in range(2)]
    dom, errors = _dump(write_comparison(runs, tmp_path / "compare.html"))
    assert errors == []
    assert "4 runs compared" in dom and '<button type="button">' in dom
    assert "coloured by weight, red large" in dom and "Sample " in dom
