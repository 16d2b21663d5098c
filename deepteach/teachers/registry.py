"""What `--method` names: one of our recipes, or a user's `package.module:name`.

Settings of a method are written behind its name: `--method focal+gamma=0.5`. Sources and
reasons are in docs/methods.md.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

import deepteach.teachers
from deepteach.core.feature import Feature
from deepteach.core.teacher import AbstractTeacher
from deepteach.errors import ConfigError
from deepteach.names import called, imported, known
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
    takes = {} if finished else _parameters(found)
    chosen = _checked(name, {k: p for k, p in takes.items() if k not in offered}, settings)
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


def _parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Parameters that can be given by name."""
    try:
        found = inspect.signature(factory, eval_str=True).parameters.values()
    except NameError:  # an annotation that exists for type checkers only
        found = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # no function, or one that does not tell
        found = ()
    return {p.name: p for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _checked(name: str, takes: dict[str, inspect.Parameter], settings: list[str]) -> dict[str, Any]:
    """`key=value` pairs as values of the types that the parameters are declared with."""
    chosen: dict[str, Any] = {}
    for setting in settings:
        key, _, text = setting.partition("=")
        if key not in takes:
            has = f"its settings are {', '.join(takes)}" if takes else "it has none"
            raise ConfigError(f"method {name} has no setting {key!r}: {has}")
        wanted = takes[key].annotation
        if wanted is inspect.Parameter.empty or isinstance(wanted, str):
            wanted = type(takes[key].default)
        try:
            adapter = TypeAdapter(wanted, config=ConfigDict(arbitrary_types_allowed=True))
            chosen[key] = adapter.validate_python(text)
        except ValidationError as error:
            message = error.errors()[0]["msg"].lower()
            raise ConfigError(f"method {name}: {key}: {message}, got {text!r}") from None
    return chosen
