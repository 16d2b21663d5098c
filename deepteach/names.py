"""Names: from one that a user writes to the object meant, and how they stand in messages."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from deepteach.errors import ConfigError, DeepTeachError

T = TypeVar("T")

CUTOFF, SHORT_CUTOFF = 0.6, 0.5
"""How alike (difflib's ratio) two names must be to be offered for one another; for names of
up to three letters, of which one wrong letter is a larger part, the second."""


def brief(error: BaseException) -> str:
    """`Type: message`, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


def hint(name: str, known: Iterable[str]) -> str:
    """`, did you mean 'x'?` where a known name is near, else nothing."""
    cutoff = CUTOFF if len(name) > 3 else SHORT_CUTOFF
    among = list(known)
    swapped = [other for other in among if sorted(other) == sorted(name)]  # rl is lr, not world
    near = swapped or difflib.get_close_matches(name, among, n=1, cutoff=cutoff)
    return f", did you mean {near[0]!r}?" if near else ""


def first_few(items: Sequence[str], most: int = 5) -> str:
    """The first ones, at most so many, then how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def known(what: str, name: str, among: Mapping[str, T]) -> T:
    """`among[name]`.

    Raises:
        ConfigError: an unknown name, with the nearest one or all of them.
    """
    if name in among:
        return among[name]
    told = hint(name, among) or f": use one of {', '.join(among)}"
    raise ConfigError(f"unknown {what} {name!r}{told}")


def is_path(name: str) -> bool:
    """Whether a name is a user's own `package.module:name`."""
    module, colon, attribute = name.partition(":")
    parts = [*module.split("."), *attribute.split(".")]
    return bool(colon) and all(part.isidentifier() for part in parts)


def imported(what: str, path: str) -> Any:
    """The object that `package.module:name` names; the working folder is searched last.

    Raises:
        ConfigError: it is not of that form, or cannot be imported.
    """
    if not is_path(path):
        raise ConfigError(f"{what} {path!r} cannot be imported: expected package.module:name")
    module, _, attribute = path.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)  # last, so that a local file never hides an installed module
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise ConfigError(
            f"{what} {path!r} cannot be imported ({brief(error)}): expected "
            "package.module:name, importable from here"
        ) from error
    return found


def called(what: str, path: str, factory: Callable[..., Any], /, **offered: Any) -> Any:
    """`factory`, called with those of `offered` that its signature names.

    Raises:
        ConfigError: it is no function or class, or it raises.
    """
    if not callable(factory):
        raise ConfigError(
            f"{what} {path!r} is of type {type(factory).__name__}: expected a function or class"
        )
    try:
        wanted = inspect.signature(factory).parameters.values()
        takes_all = any(p.kind is p.VAR_KEYWORD for p in wanted)
        names = {p.name for p in wanted}
        return factory(**{k: v for k, v in offered.items() if takes_all or k in names})
    except DeepTeachError:
        raise
    except Exception as error:
        takes = f" or of {' and '.join(offered)}" if offered else ""
        raise ConfigError(
            f"{what} {path!r} failed ({brief(error)}): expected a function of nothing{takes}"
        ) from error


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with its `~` written out; that of an unknown user stays as it is."""
    return Path(os.path.expanduser(path))


def refuse_unwritable(text: str) -> None:
    """Raise ConfigError for a text that is no file's name, or that no file of a run can hold."""
    if "\0" in text:
        raise ConfigError(f"{text!r} holds a NUL character: leave it out")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{text!r} is not UTF-8: rename the file or folder") from None


def parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Parameters that can be given by name."""
    try:
        found = inspect.signature(factory, eval_str=True).parameters.values()
    except NameError:  # an annotation that exists for type checkers only
        found = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # no function, or one that does not tell
        found = ()
    return {p.name: p for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def chosen_settings(
    what: str, name: str, takes: Mapping[str, inspect.Parameter], settings: Sequence[str]
) -> dict[str, Any]:
    """`key=value` texts as values of the types that the parameters are declared with.

    Raises:
        ConfigError: a key that is none of `takes`, or a value that its type cannot be made of.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError  # a loop of one's own needs none

    chosen: dict[str, Any] = {}
    for setting in settings:
        key, _, text = setting.partition("=")
        if key not in takes:
            has = f"its settings are {', '.join(takes)}" if takes else "it has none"
            raise ConfigError(f"{what} {name} has no setting {key!r}: {has}")
        wanted = takes[key].annotation
        if wanted is inspect.Parameter.empty or isinstance(wanted, str):
            wanted = type(takes[key].default)
        try:
            adapter = TypeAdapter(wanted, config=ConfigDict(arbitrary_types_allowed=True))
            chosen[key] = adapter.validate_python(text)
        except ValidationError as error:
            message = error.errors()[0]["msg"].lower()
            raise ConfigError(f"{what} {name}: {key}: {message}, got {text!r}") from None
    return chosen
