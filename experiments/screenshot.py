"""The picture in the README: the top of a run's report, in headless Chromium.

deepteach train --beside mwn --out runs/demo
python experiments/screenshot.py runs/demo docs/report.png
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

FLAGS = (
    "--headless --no-sandbox --disable-gpu --hide-scrollbars --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()


def main(run: str, picture: str) -> None:
    page = (Path(run) / "report.html").resolve().as_uri()
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                "chromium",
                *FLAGS,
                f"--user-data-dir={profile}",
                "--window-size=1100,1000",
                f"--screenshot={Path(picture).resolve()}",
                page,
            ],
            check=True,
            capture_output=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
