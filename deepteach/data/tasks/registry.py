"""The tasks by name, and which one labels are of where nobody says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepteach.data.tasks.base import Task
from deepteach.data.tasks.classification import Classification
from deepteach.names import known

TASKS: dict[str, type[Task]] = {task.name: task for task in (Classification,)}

AUTO = "auto"


def kind_of(task: str, given: Mapping[str, Any]) -> type[Task]:
    """The task of that name, or the one that labels `given` by part are of.

    Raises:
        ConfigError: an unknown name.
    """
    return Classification if task == AUTO else known("task", task, TASKS)
