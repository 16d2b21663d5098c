"""The flags of the configuration, made from its fields by pydantic-settings.

The library finds the flags of nested models, splits lists (`--beside mwn,focal`, or the flag
twice) and names what was given; `Config` alone checks the values, so that a flag and a line
of a file are refused by the same words. Its own configuration files and environment
variables are not used. tyro was tried in its place: it takes neither `--interval none` nor
`--baseline false` nor lists with commas, and its errors are boxes of many lines.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict, SettingsError

from deepteach.cli.parser import Parser
from deepteach.errors import ConfigError
from deepteach.training.config import GROUPS, Config, fields_of, group_of, is_common

NO_VALUE = ("none", "null")
"""What stands for None where a setting admits it."""

_NEVER = "\0"
"""pydantic-settings knows one word for None, and takes it for None everywhere; none is also
a kind of noise. No argument of a process can hold this one."""


class _Flags(Config, BaseSettings):
    """The configuration as the library wants it. Its fields are read; it is never made."""

    model_config = SettingsConfigDict(cli_avoid_json=True)


class Flags:
    """Adds a flag for every setting to a parser, and finds what was given.

    Args:
        parser: gets the flags, in the groups of the configuration.
        full: show every setting in the help, not only the common ones.
        only: the settings that get a flag, where not all do.
    """

    def __init__(self, parser: Parser, *, full: bool, only: Collection[str] | None = None) -> None:
        self.fields = {
            key: field for key, field in fields_of(Config) if only is None or key in only
        }
        self._parser, self._full = parser, full
        self._groups = {
            name: parser.add_argument_group(name)
            for name in GROUPS
            if only is None or any(group_of(f) == name for f in self.fields.values())
        }
        parser.says_keys = True
        self._source = CliSettingsSource[Any](
            _Flags,
            root_parser=parser,
            cli_parse_none_str=_NEVER,
            add_argument_method=self._add,
            add_argument_group_method=lambda parser, **_: parser,
        )

    def _add(self, _: Any, *names: str, **options: Any) -> None:
        """Put a flag that the library asks for into its group, with our help."""
        key = names[0].removeprefix("--")
        if key not in self.fields:
            return
        field = self.fields[key]
        told = field.description or ""
        if field.default not in (None, ()) and "default" not in told:
            told = f"{told} (default: {_shown(field.default)})"
        if not (self._full or is_common(field)):
            told = argparse.SUPPRESS
        options.update(metavar=_metavar(field.annotation), help=told.replace("%", "%%"))
        self._groups[group_of(field)].add_argument(*names, **options)
        self._parser.flags.append(key)

    def given(self, options: argparse.Namespace) -> dict[str, Any]:
        """The settings that flags gave, as a nested mapping of texts."""
        try:
            found = self._source(parsed_args=options)()
        except SettingsError as error:
            raise ConfigError(f"{' '.join(str(error).split())}: see --help") from error
        return self._with_none(found)

    def _with_none(self, values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in values.items():
            if isinstance(value, dict):
                found[name] = self._with_none(value, f"{prefix}{name}.")
                continue
            parts = [part for part in value if part] if isinstance(value, list) else [value]
            optional = type(None) in get_args(self.fields[prefix + name].annotation)
            if optional and len(parts) == 1 and parts[0] in NO_VALUE:
                found[name] = None
            else:
                found[name] = parts if isinstance(value, list) else value
        return found


def _metavar(annotation: Any) -> str:
    """A word for the values of a setting, None left out."""
    kinds = {get_origin(kind) or kind for kind in (annotation, *get_args(annotation))}
    kinds -= {Union, UnionType}
    names = {tuple: "A,B", str: "NAME", Literal: "NAME", bool: "BOOL", float: "X", int: "N"}
    return next((name for kind, name in names.items() if kind in kinds), "NAME")


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def merged_settings(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with the settings of `above`, nested ones (`noise.kind`) one by one."""
    found = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(found.get(key), Mapping):
            value = {**found[key], **value}
        found[key] = value
    return found
