"""What `import deepteach` offers: complete, documented, and imported only when it is used."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import deepteach as dt

SOURCE = ast.parse(Path(dt.__file__).read_text(encoding="utf-8"))
HEAVY = ("sklearn", "scipy", "pandas", "matplotlib", "pydantic", "rich", "jinja2", "yaml")
HOSTS = ("transformers", "accelerate", "peft", "lightning", "skorch")
LOOP = "dt.Coach, dt.Student, dt.Teacher, dt.TrustedProbe, dt.MentorNet, dt.Exact, dt.features"


def loaded(code: str) -> set[str]:
    """The modules, by top-level name and by full name, that a fresh interpreter has after it."""
    code += "\nimport sys; print(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = told.stdout.split()
    return {*names, *(name.partition(".")[0] for name in names)}


def test_the_three_lists_agree() -> None:
    """Type checkers read the guarded imports, people `__all__`, the interpreter `_MODULES`."""
    guarded = next(node for node in SOURCE.body if isinstance(node, ast.If))
    typed = {
        alias.name: node.module
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    shelves = {name: f"{typed.pop(name)}.{name}" for name in dt._SHELVES}
    assert shelves == dt._SHELVES and typed == dt._MODULES
    assert sorted(dt.__all__) == sorted([*typed, "__version__"])


@pytest.mark.parametrize("name", dt.__all__)
def test_every_name_is_there(name: str) -> None:
    found = getattr(dt, name)
    assert name in dir(dt) and found is getattr(dt, name)
    if name != "__version__":
        assert found.__name__ == name and found.__module__ == dt._MODULES[name]


def test_modules_as_attributes() -> None:
    assert dt.features.Internal is dt.Internal
    assert dt.errors.ConfigError is dt.ConfigError
    assert {"features", "errors", "models"} <= set(dir(dt))


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="module 'deepteach' has no attribute 'Coahc'"):
        dt.Coahc  # type: ignore[attr-defined]  # noqa: B018


def test_importing_the_package_waits_for_nothing() -> None:
    names = loaded("import deepteach")
    assert names.isdisjoint({*HEAVY, *HOSTS, "torch", "numpy", "safetensors"})


def test_a_loop_of_one_s_own_waits_for_torch_alone() -> None:
    names = loaded(f"import deepteach as dt; {LOOP}")
    assert "torch" in names and names.isdisjoint({*HEAVY, *HOSTS})


@pytest.mark.parametrize(
    "code",
    [
        "import deepteach.training.api, deepteach as dt; first = dt.train",
        "import deepteach as dt; first = dt.train; import deepteach.training.api",
        "from deepteach import train as first; import deepteach as dt, deepteach.training.run",
    ],
)
def test_no_module_hides_a_function(code: str) -> None:
    code += """
try:
    import deepteach.train
except ModuleNotFoundError:
    assert callable(first) and dt.train is first
else:
    raise SystemExit("deepteach.train is a module")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_module_has_the_name_of_a_public_object() -> None:
    package = Path(dt.__file__).parent
    assert {path.stem for path in package.iterdir()}.isdisjoint(dt.__all__)


def members(found: type) -> list[str]:
    """The public methods and properties that a class defines itself."""
    kinds = (property, staticmethod, classmethod)
    return [
        name
        for name, value in vars(found).items()
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, kinds))
    ]


@pytest.mark.parametrize("name", [name for name in dt.__all__ if name != "__version__"])
def test_every_public_name_is_documented(name: str) -> None:
    """A method may inherit its docstring from the base that declares it; a class may not."""
    found = getattr(dt, name)
    text = (found.__doc__ or "").strip()
    assert text
    if inspect.isclass(found):
        assert not text.startswith(f"{name}("), "only the generated signature"
        silent = [m for m in members(found) if not inspect.getdoc(getattr(found, m))]
        assert not silent, silent


def test_package_is_marked_as_typed() -> None:
    assert (Path(dt.__file__).parent / "py.typed").is_file()
