"""A teacher taken over from a finished run."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from deepteach.core.teacher import AbstractTeacher
from deepteach.errors import ConfigError, DataError
from deepteach.runs.reader import open_run


def adopt(
    teacher: AbstractTeacher, folder: str | Path, here: dict[str, Any], layer: str | None
) -> None:
    """Give `teacher` the parameters of the run in `folder`, to be kept as they are.

    Only parameters: what a teacher fits to trusted samples belongs to its student, and is
    fitted anew. `here` tells this run's student, data, internal layer and width; what differs
    there is warned about. `layer` is the one that a run reads where its settings name none.

    Raises:
        ConfigError: parameters that do not fit.
        DataError: the folder holds no run, or a damaged one.
    """
    source = open_run(folder)
    path = source.path / "teacher.safetensors"
    try:
        saved = safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read ({error}): train that run again") from error
    for name, leaf in teacher.named_parameters():
        found = tuple(saved[name].shape) if name in saved else None
        if found != tuple(leaf.shape):
            was = "has no such parameter" if found is None else f"has shape {found} there"
            raise ConfigError(
                f"the teacher of {source.path} ({source.method}) does not fit: {name} needs shape "
                f"{tuple(leaf.shape)}, it {was}: use the same method, classes and layer width"
            )
        leaf.data.copy_(saved[name])
        leaf.requires_grad_(False)
    states = source.samples.get("internal")
    there = {key: source.config.get(key) for key in here}
    there["internal"] = there["internal"] or layer
    there["width"] = here["width"] if states is None else states.shape[1]
    changed = [f"{k} {there[k]!r} -> {v!r}" for k, v in here.items() if there[k] != v]
    if changed:
        warnings.warn(
            f"this teacher was taught elsewhere ({', '.join(changed)}): one that reads a student's "
            "own states reads coordinates that another student does not have",
            UserWarning,
            stacklevel=2,
        )
