"""The files of a run's folder; `runs.reader` reads them back."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

import deepteach
from deepteach.data.dataset import Data
from deepteach.errors import ConfigError
from deepteach.runs.reader import DECISIONS_FILE
from deepteach.runs.storage import probe_writable, write_atomic
from deepteach.training.config import RUNTIME_KEYS, Config, dump, make, read
from deepteach.training.evaluate import Trust
from deepteach.training.sample_files import groups_csv, sample_weights, samples, weights_csv
from deepteach.training.weight_history import WeightHistory


def claim(folder: Path, config: Config, resume: bool, decisions: str = "") -> None:
    """Refuse a folder that holds something else; nothing is ever overwritten."""
    settings = folder / "config.yaml"
    if resume and settings.exists():
        saved, present = make(read(settings)), config
        differing = [
            key
            for key in Config.model_fields
            if key not in RUNTIME_KEYS and getattr(saved, key) != getattr(present, key)
        ]
        if differing:
            raise ConfigError(
                f"cannot resume {folder}: it was started with other settings "
                f"({', '.join(differing)}): use the same ones, or another --out"
            )
        _refuse_others(folder, decisions)
        return
    if not folder.exists() or (folder.is_dir() and not _contents(folder)):
        return
    if not folder.is_dir():
        raise ConfigError(f"--out {folder} is a file: choose another --out, the name of a folder")
    if resume:
        raise ConfigError(
            f"cannot resume {folder}: there is no config.yaml in it: choose another --out"
        )
    raise ConfigError(
        f"the output folder {folder} exists: choose another --out, or --resume to go on "
        "(in Python out=..., resume=True)"
    )


def _refuse_others(folder: Path, decisions: str) -> None:
    copy = folder / DECISIONS_FILE
    before = copy.read_text(encoding="utf-8") if copy.is_file() else ""
    if before != decisions:
        told = f"other decisions: use those in {copy}" if before else "no decisions: give none"
        raise ConfigError(
            f"cannot resume {folder}: it was started with {told}, or choose another --out"
        )


def _contents(folder: Path) -> list[str]:
    """What is in a folder besides what a killed start leaves behind."""
    return [name for name in os.listdir(folder) if name != ".lock" and not name.startswith(".tmp-")]


def open_folder(
    folder: Path,
    config: Config,
    device: torch.device,
    processes: int = 1,
    decisions: str = "",
) -> None:
    """Write what is known before training. Raises StorageError where that cannot be done."""
    probe_writable(folder)
    if decisions:
        write_atomic(folder / DECISIONS_FILE, decisions.encode())
    write_atomic(folder / "config.yaml", dump(config).encode())
    environment = {
        **versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }
    write_atomic(folder / "environment.json", _json(environment))


def write_metrics(folder: Path, metrics: list[dict[str, Any]]) -> None:
    """A line per epoch; the whole file at once, so that a resumed run leaves no stale line."""
    text = "".join(json.dumps(line) + "\n" for line in metrics)
    write_atomic(folder / "metrics.jsonl", text.encode())


def write_results(
    folder: Path,
    data: Data,
    trust: Trust,
    history: WeightHistory,
    modules: dict[str, nn.Module],
    summary: dict[str, Any],
) -> None:
    """Parameters, weights and samples; summary.json last, for it says that all is there."""
    for name, part in modules.items():
        # Clones: safetensors stores no two names for one memory.
        tensors = {k: v.detach().cpu().contiguous().clone() for k, v in part.state_dict().items()}
        write_atomic(folder / f"{name}.safetensors", safetensors.torch.save(tensors))
    write_atomic(folder / "weights.csv", weights_csv(sample_weights(data, trust)))
    groups = groups_csv(data, trust)
    if groups is not None:
        write_atomic(folder / "groups.csv", groups)
    write_atomic(folder / "samples.safetensors", samples(data, trust, history))
    write_atomic(folder / "summary.json", _json(summary))


def versions() -> dict[str, str]:
    """What a bit-exact resume depends on besides threads and device."""
    return {"deepteach": deepteach.__version__, "torch": str(torch.__version__)}


def _json(value: Any) -> bytes:
    return (json.dumps(_strict(value), indent=2, allow_nan=False) + "\n").encode()


def _strict(value: Any) -> Any:
    """JSON has no NaN: unknown figures are null."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
