"""Names that users write: the nearest is offered, their own objects are found."""

from __future__ import annotations

import pytest

from deepteach.errors import ConfigError
from deepteach.names import called, hint, imported, is_path, known


def test_known() -> None:
    assert known("colour", "red", {"red": 1}) == 1
    with pytest.raises(ConfigError, match="unknown colour 'rde', did you mean 'red'"):
        known("colour", "rde", {"red": 1, "green": 2})
    with pytest.raises(ConfigError, match="unknown colour 'optimizer': use one of red, green"):
        known("colour", "optimizer", {"red": 1, "green": 2})


def test_a_distant_name_is_not_offered() -> None:
    assert hint("optimizer", ["valid_size"]) == ""


@pytest.mark.parametrize(
    "name, own",
    [
        ("a.b:c", True),
        ("a:B.c", True),
        ("npz:some/file.npz", False),
        ("deep", False),
        ("a:", False),
    ],
)
def test_is_path(name: str, own: bool) -> None:
    assert is_path(name) is own


def test_imported_and_called() -> None:
    assert imported("thing", "math:sqrt")(4) == 2
    with pytest.raises(ConfigError, match="cannot be imported"):
        imported("thing", "math:no_such")
    assert called("thing", "x:y", lambda classes: classes + 1, classes=2, width=3) == 3
    with pytest.raises(ConfigError, match="expected a function or class"):
        called("thing", "x:y", 3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected a function of nothing or of classes"):
        called("thing", "x:y", lambda other: other, classes=2)
