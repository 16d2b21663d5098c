"""The pictures of a run's report in the documents, in headless Chromium.

deepteach train --beside mwn --out runs/demo
python experiments/screenshot.py runs/demo docs/report.png
deepteach train --epochs 30 --out runs/short
python experiments/screenshot.py runs/short docs/workbench.png --marked
"""

from __future__ import annotations

import argparse
from pathlib import Path

from chromium import Page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--marked", action="store_true", help="the samples, some of them marked")
    options = parser.parse_args()
    with Page("--window-size=1100,1000") as page:
        page.open(options.run / "report.html")
        if options.marked:
            said = (
                "[...document.querySelectorAll('.suspects li')].map((one) => one.dataset.suggested)"
            )
            keys = page.js(said)[:6]
            page.click(".suspects li")
            page.press(*keys[:3], "w", *keys[4:])
            page.js(
                "document.querySelector('.workbench').parentElement"
                ".scrollIntoView({behavior: 'instant'})"
            )
        page.picture(options.picture, 1100, 1000)


if __name__ == "__main__":
    main()
