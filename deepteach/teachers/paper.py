"""The paper's teacher by its features and depth."""

from __future__ import annotations

from collections.abc import Callable

from deepteach.core.feature import Feature
from deepteach.errors import ConfigError
from deepteach.teachers.features import Internal, Label, Surface
from deepteach.teachers.linear import Teacher
from deepteach.teachers.method import Method, recipe


@recipe("paper")
def paper(classes: int, width: int, features: str = "I0.M0", hidden_layers: int = 0) -> Method:
    """The paper's default, I0 + M0 and a linear teacher (Fan et al., section 3.3).

    `features` are I0, M0 and M1 joined by points; I0 is the state of the layer that the run
    names, so I1 to I3 are I0 of another layer. `hidden_layers` 1 and 2 are MLP-1 and MLP-2.

    Raises:
        ConfigError: an unknown feature, or one of them twice.
    """
    features_of: dict[str, Callable[[], Feature]] = {
        "I0": lambda: Internal(width),
        "M0": lambda: Label(classes),
        "M1": Surface,
    }
    names = features.split(".")
    unknown = [name for name in names if name not in features_of]
    if unknown or len(set(names)) < len(names):
        wrong = repr(unknown[0]) if unknown else "one of them twice"
        raise ConfigError(f"features are {', '.join(features_of)} joined by points, got {wrong}")
    return Method(Teacher([features_of[name]() for name in names], hidden_layers))
