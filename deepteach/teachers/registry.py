"""What `--method` names: one of our recipes, or a user's `package.module:name`.

Settings of a method are written behind its name: `--method focal+gamma=0.5`. Sources and
reasons are in docs/methods.md.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import pkgutil
from typing import Any

import deepteach.teachers
from deepteach.core.feature import Feature
from deepteach.core.teacher import AbstractTeacher
from deepteach.errors import ConfigError
from deepteach.names import called, chosen_settings, imported, known, parameters
from deepteach.teachers.linear import Teacher
from deepteach.teachers.method import METHODS, Method, MethodContext

FIRST = (
    *("deep", "paper", "uniform"),
    *("focal", "spl", "mwn", "mwn-sgd", "mwn-adam", "l2rw", "mentornet", "mentornet-dd"),
    *("l2t-data", "l2t-loss", "sama"),
    *("trusted-only", "merged", "fine-tune", "probe", "source-means"),
    *("gce", "elr", "cleanlab", "jtt", "class-balanced", "logit-adjustment", "riding"),
    *("class-shift", "label-mixing", "transition", "temperature"),
)
"""The order in which methods are listed; others follow by name."""

BY_NAME = ("classes", "width", "steps", "seed", "teacher_from")
"""Parts of a context that a signature may name; the others it takes from `context` itself."""


def _find() -> None:
    """Load every file of this folder, so that its recipes are known, and put them in order."""
    for module in pkgutil.iter_modules(deepteach.teachers.__path__, "deepteach.teachers."):
        importlib.import_module(module.name)
    for name in (*FIRST, *sorted(set(METHODS).difference(FIRST))):
        METHODS[name] = METHODS.pop(name)


_find()


def method(asked: Any, context: MethodContext) -> Method:
    """The method of that name, of that path, or around that object.

    Args:
        asked: a name or `package.module:name`, settings behind it (`focal+gamma=0.5`); or an
            object: a `Method`, an `AbstractTeacher`, a `Feature` (read by a linear teacher),
            or a function or class that makes one. Of the context it is given what its
            signature names: `context` itself, or `classes`, `width`, `steps`, `seed`.
        context: the run.

    Raises:
        ConfigError: an unknown name (with the nearest), an unknown setting, a bad value, or
            something that is no method.
    """
    if not isinstance(asked, str):
        return _as_method(method_name(asked), asked, [], context)
    name, *settings = asked.split("+")
    if ":" not in name:
        return _as_method(name, known("method", name, METHODS), settings, context)
    # A module holds one object for all runs; each of them teaches its own.
    found = imported("method", name)
    found = found if inspect.isroutine(found) or inspect.isclass(found) else copy.deepcopy(found)
    return _as_method(name, found, settings, context)


def _as_method(name: str, found: Any, settings: list[str], context: MethodContext) -> Method:
    finished = isinstance(found, Method | AbstractTeacher | Feature)
    offered = {"context": context, **{name: getattr(context, name) for name in BY_NAME}}
    takes = {} if finished else parameters(found)
    own = {k: p for k, p in takes.items() if k not in offered}
    chosen = chosen_settings("method", name, own, settings)
    if not finished:
        asked = {key: value for key, value in offered.items() if key in takes}
        found = called("method", name, found, **asked, **chosen)
    match found:
        case Method():
            return found
        case AbstractTeacher():
            return Method(found)
        case Feature():
            return Method(Teacher([found]))
    raise ConfigError(
        f"method {name!r} is of type {type(found).__name__}: expected a dt.AbstractTeacher, a "
        "dt.Feature or a Method, or a function or class that makes one"
    )


def method_name(found: Any) -> str:
    """What an object is called as a method: `module:name` of a function or class, else its type."""
    name = getattr(found, "__qualname__", None)
    return type(found).__name__ if name is None else f"{found.__module__}:{name}"
