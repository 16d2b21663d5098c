"""What the package and its workflows may not contain."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT

import deepteach

FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FORBIDDEN_ATTRIBUTES = {
    *("torch.load", "torch.save", "torch.hub", "yaml.load", "yaml.load_all", "yaml.unsafe_load"),
    *("yaml.full_load", "yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader", "os.system"),
    *("os.popen", "tarfile.open"),
    *("pandas.read_pickle", "numpy.fromregex", "shutil.unpack_archive"),
}


def dangers(file: Path) -> Iterator[str]:
    """What in a source file could run what it reads."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            names = []
        for name in names:
            if name.split(".")[0] in FORBIDDEN_MODULES or name in FORBIDDEN_ATTRIBUTES:
                yield name
        if isinstance(node, ast.Attribute) and ast.unparse(node) in FORBIDDEN_ATTRIBUTES:
            yield ast.unparse(node)
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
                yield node.func.id
            for word in node.keywords:
                constant = isinstance(word.value, ast.Constant) and word.value.value is False
                if word.arg in ("allow_pickle", "shell", "weights_only") and not constant:
                    yield f"{word.arg}={ast.unparse(word.value)}"
            if ast.unparse(node.func) == "np.load":
                if "allow_pickle" not in [word.arg for word in node.keywords]:
                    yield "np.load without allow_pickle=False"


SOURCES = sorted(Path(deepteach.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.stem)
def test_nothing_runs_what_it_reads(file: Path) -> None:
    assert list(dangers(file)) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from torch import load",
        "import torch\ntorch.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import numpy as np\nnp.load('x')",
        "import yaml\nyaml.load('x', yaml.Loader)",
        "eval('1')",
        "f('x', shell=True)",
    ],
)
def test_the_search_finds_something(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(text)
    assert list(dangers(tmp_path / "bad.py"))


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_actions_are_pinned(file: Path) -> None:
    text = file.read_text()
    used = re.findall(r"uses:\s*(\S+)", text)
    assert used and all(re.fullmatch(r"[\w/.-]+@[0-9a-f]{40}", name) for name in used)
    assert re.search(r"^permissions:\n  contents: read\n", text, re.M)
    # Publishing proves where it comes from by a token of its own, and may write nothing.
    granted = {"release": ["id-token: write"]}.get(file.stem, [])
    assert re.findall(r"[\w-]+: write", text) == granted and "secrets." not in text


def test_there_is_a_workflow() -> None:
    assert WORKFLOWS
