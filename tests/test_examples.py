"""The scripts that the documents show: each runs, smaller, and finds what it says it finds."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(ROOT.glob("examples/*.py"))

pytestmark = pytest.mark.filterwarnings(
    "ignore:The '.*' does not have many workers:UserWarning",
    "ignore:.*LeafSpec.* is deprecated:FutureWarning",
)

SMALLER = {
    "wrong_labels": {"epochs=15": "epochs=5"},
    "sources": {"epochs=15": "epochs=6"},
    "imbalance": {"epochs=40": "epochs=8", '"class-balanced", "merged", ': ""},
    "text_transformers": {"rows(800": "rows(480", "num_train_epochs=6": "num_train_epochs=3"},
    "images_lightning": {"max_epochs=10": "max_epochs=3"},
    "tabular_sklearn": {"epochs=30": "epochs=8", "epochs=40": "epochs=8"},
    "label_errors": {"epochs=15": "epochs=6"},
    "own_loop": {"epochs, batch = 15": "epochs, batch = 5"},
    "own_teacher": {"epochs=15": "epochs=4"},
}
"""What a test trains less of, so that all of them take half a minute."""


def sound(of: dict[str, Any]) -> dict[str, Callable[[], bool]]:
    """What must hold of the names that a script leaves behind, by script."""
    return {
        "wrong_labels": lambda: of["result"].summary["noise_auroc"] > 0.9,
        "sources": lambda: of["trust"].idxmin() == "dot",
        "imbalance": lambda: of["found"]["deep"] > of["found"]["uniform"],
        "text_transformers": lambda: len(of["logs"]) > 0 and of["accuracy"] > 0.4,
        "images_lightning": lambda: of["weights"][~of["wrong"]].mean() > 1.2,
        "tabular_sklearn": lambda: of["accuracy"] > 0.8 and np.isfinite(of["weights"]).all(),
        "label_errors": lambda: of["precision"] > 0.6 and of["found"] > 0.6,
        "own_loop": lambda: of["wrong"][of["least"]].mean() > 0.8,
        "own_teacher": lambda: of["found"]["my feature, read beside the probe"] > 0.8,
    }


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_it_runs(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    text = script.read_text(encoding="utf-8")
    for large, small in SMALLER[script.stem].items():
        assert large in text, large
        text = text.replace(large, small)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, str(script), "exec"), names)
    told = capsys.readouterr().out
    assert re.search(r"\d\.\d|\d+%", told)
    assert sound(names)[script.stem](), told


def test_every_script_is_shown_by_a_page() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in ROOT.glob("docs/guides/*.md"))
    shown = set(re.findall(r"^```\{literalinclude\} \.\./\.\./examples/(\w+)\.py$", pages, re.M))
    assert shown == {script.stem for script in SCRIPTS} == set(SMALLER)
