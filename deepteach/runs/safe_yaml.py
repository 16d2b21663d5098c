"""YAML of strangers: no tags, no aliases, no duplicate keys."""

from __future__ import annotations

from typing import Any

import yaml


def parse(text: str) -> Any:
    """What `text` says, in plain Python types.

    Raises:
        ValueError: it is no YAML, or YAML that is refused.
    """
    try:
        return _StrictLoader(text).get_single_data()
    # Scalars are parsed by int(), float() and date(), which raise errors of their own.
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(str(error)) from None


class _StrictLoader(yaml.SafeLoader):
    """A SafeLoader that refuses duplicate keys and anchors (alias bombs)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not supported")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        doubled = {str(key) for key in keys if keys.count(key) > 1}
        if doubled:
            raise yaml.YAMLError(f"duplicate key {', '.join(sorted(doubled))}")
        return super().construct_mapping(node, deep)
