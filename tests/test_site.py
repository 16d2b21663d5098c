"""The pages of the site: their commands and blocks run, and what they quote is in the source."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from lazy_sets import Listed
from toy import Command

import deepteach
from deepteach.models import Mlp

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "deepteach"
SMALL = ("--batch_size", 16, "--baseline", "false", "--threads", 1)


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def python_of(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text_of(page), re.S | re.M)


class Still:
    """A schedule that changes nothing."""

    def step(self) -> None:
        pass


def at_hand() -> dict[str, object]:
    """What a reader of the README has: a problem of three classes."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(160) % 3
    inputs = torch.randn(160, 4, generator=draws) + 3 * torch.eye(4)[labels]
    (x, x_valid), (y, y_valid) = inputs.split([120, 40]), labels.split([120, 40])
    return {
        "dt": deepteach, "torch": torch, "model": Mlp((4,), 3), "scheduler": Still(),
        "train_loader": list(zip(x.split(20), y.split(20), strict=True)) * 4,
        "valid_loader": [(x_valid, y_valid)], "x": x, "y": y, "x_valid": x_valid,
        "train_set": Listed(x, y), "valid_set": Listed(x_valid, y_valid), "y_valid": y_valid,
        "test_set": Listed(inputs, labels), "x_test": inputs, "X": x.numpy(),
        "Xv": x_valid.numpy(), "yv": y_valid.numpy(),
    }  # fmt: skip


def test_the_readme_s_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = python_of("README.md")
    assert len(blocks) == 2  # a loop of one's own, and none
    for block in blocks:
        smaller = block.replace("epochs=60", "epochs=3").replace(
            "Classifier()", "Classifier(epochs=3)"
        )
        exec(
            compile(smaller, "README.md", "exec"), at_hand()
        )  # a block changes nothing for the next
    assert Path("runs/a/weights.csv").is_file()


def test_the_tour_s_python_runs() -> None:
    names: dict[str, object] = {}
    for block in python_of("docs/tour.md"):
        exec(compile(block, "docs/tour.md", "exec"), names)
    assert {"result", "coach"} <= names.keys()


def test_the_python_beside_the_commands_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = at_hand()
    x, y, trusted = names["x"], names["y"], (names["x_valid"], names["y_valid"])
    deepteach.train("mlp", (x, y), trusted, epochs=2, baseline=False, out="runs/a")
    for block in python_of("docs/commands.md"):
        exec(compile(block, "docs/commands.md", "exec"), names)
    assert sorted(np.load("mine.npz")) == ["x_train", "x_valid", "y_train", "y_valid"]
    for picture in ("weights.svg", "map.svg"):
        assert Path(picture).stat().st_size > 1000


TAKEN = r"^deepteach ((?:train --data csv:|weights |report ).*)$"
"""Commands that go from a csv to what is known of its rows."""

WALKED = ["README.md", "docs/tour.md", *(f"docs/guides/{name}.md" for name in (
    "wrong-labels", "sources", "label-errors",
))]  # fmt: skip


@pytest.mark.parametrize("page", WALKED)
def test_the_commands_of_a_page_run(page: str, call: Command) -> None:
    """In their order, on a small table in the place of the reader's."""
    draws = np.random.default_rng(0)
    lines = ["width,height,colour,annotator,label,split"]
    for row in range(120):
        label, (w, h) = row % 2, draws.normal(size=2)
        split = "valid" if row < 40 else "test" if row < 60 else "train"
        seen = f"{w + 3 * label:.3f},{h:.3f},{('red', 'grey')[row % 3 == 0]}"
        lines.append(f"{seen},{('ada', 'ben')[row % 5 == 0]},{('cat', 'dog')[label]},{split}")
    Path("mine.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    Path("decisions.csv").write_text("index,label\n60,dog\n61,\n", encoding="utf-8")
    commands = re.findall(TAKEN, text_of(page), re.M)
    assert commands
    for line in commands:
        words = shlex.split(re.sub(r"--epochs \d+", "", line), comments=True)
        small = (*SMALL, "--epochs", 2, "--no-report") if words[0] == "train" else ()
        answer = call(*words, *small)
        assert answer.code == 0, (line, answer)
    assert list(Path("runs").glob("*/weights.csv"))


MESSAGE = re.compile(r"^\| (`.*?`(?: \.\.\. `.*?`)*) \|", re.M)


def templates() -> list[str]:
    """All texts of the package; what is filled in later is a zero byte."""
    found = []
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (n.value if isinstance(n, ast.Constant) else "\0" for n in node.values)
                found.append("".join(str(part) for part in parts))
    return found


def test_every_quoted_message_is_in_the_source() -> None:
    quoted, known = MESSAGE.findall(text_of("docs/troubleshooting.md")), templates()
    assert len(quoted) > 50
    for message in quoted:
        pieces = [re.sub(r"\{\w+\}", "\0", part) for part in re.findall(r"`(.*?)`", message)]
        whole = any(all(piece in template for piece in pieces) for template in known)
        assert whole or hasattr(deepteach, pieces[0]), message


def test_every_public_name_has_its_place_in_the_reference() -> None:
    pages = "".join(page.read_text("utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    shown = re.findall(r"^\.\. auto(?:class|function|exception):: (\w+)$", pages, re.M)
    assert sorted(shown) == sorted(set(deepteach.__all__) - {"__version__"})


NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_have_the_outputs_of_their_cells(path: Path) -> None:
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 200_000
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert {"stream", "execute_result"} <= kinds and "error" not in kinds
    names: dict[str, object] = {}
    for cell in cells:  # the same, trained less: the text still runs
        smaller = re.sub(r"epochs=\d+", "epochs=2", cell.source).replace(
            "plt.show()", "plt.close()"
        )
        exec(compile(smaller, path.name, "exec"), names)
    assert isinstance(names["result"], deepteach.Result)
