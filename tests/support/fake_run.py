"""Run folders made up for the tests, in the layout that training writes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save_file

CONFIG: dict[str, Any] = {
    "data": "digits",
    "noise": {"kind": "flip", "rate": 0.4},
    "student": "cnn",
    "method": "deep",
    "epochs": 6,
    "batch_size": 32,
    "lr": 0.1,
    "interval": 20,
    "window": 2,
    "seed": 0,
}
QUALITY = {
    "window": 2, "longer": 8, "cosine": 0.91, "differences": None, "drift": 1e-7,
    "effective_sample_size": 0.8, "plain_seconds": 0.01, "taught_steps": 1.02,
    "update_steps": 4.375,
}  # fmt: skip


def make_run(
    path: Path,
    *,
    method: str = "deep",
    selected: float | None = 0.9,
    seed: int = 0,
    n: int = 120,
    classes: tuple[str, ...] = ("0", "1", "2"),
    truth: bool = True,
    rows: bool = False,
    sources: tuple[str, ...] = (),
    samples: bool = True,
    seconds: float = 20.0,
    averaged: float | None = None,
    **config: Any,
) -> Path:
    """Write a run of `n` samples whose wrong labels (a fifth) mostly get little weight."""
    path.mkdir(parents=True)
    rng = np.random.default_rng([seed, len(method)])
    settings = CONFIG | {"method": method, "seed": seed} | config
    epochs = settings["epochs"]
    summary = {
        "method": method,
        "data": settings["data"],
        "noise": settings["noise"],
        "seed": seed,
        "epochs": epochs,
        "steps": 4 * epochs,
        "seconds": seconds,
        "test_accuracy_last": None if selected is None else selected - 0.01,
        "test_accuracy_best": None if selected is None else selected + 0.01,
        "test_accuracy_selected": selected,
        "valid_accuracy_best": 0.93,
        "noise_auroc": (0.5 if method == "uniform" else 0.95) if truth else None,
        "teacher_parameters": 0 if method == "uniform" else 225,
        "gradient_quality": None if method == "uniform" else {"start": QUALITY},
    }
    if averaged is not None:
        summary |= {f"test_accuracy_ema_{kind}": averaged for kind in ("last", "best", "selected")}
    lines = [_epoch(e, epochs, selected, method, rng) for e in range(1, epochs + 1)]
    true = rng.integers(len(classes), size=n)
    wrong = np.arange(n) % 5 == 0
    given = np.where(wrong, (true + 1) % len(classes), true)
    weight = np.where(wrong, 0.1, 1.2) + 0.3 * rng.random(n)
    weight = np.ones(n) if method == "uniform" else weight * n / weight.sum()
    with (path / "weights.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        head = "index given_label predicted_label weight loss true_label".split()
        writer.writerow([*head, *(("suggested_label", "group", "path") if sources else ())])
        for i in rng.permutation(n):
            known = classes[true[i]] if truth else ""
            loss = 3 * wrong[i] + rng.random()
            more = (classes[true[i]], sources[i % len(sources)], f"{i}.png") if sources else ()
            writer.writerow([i, classes[given[i]], classes[true[i]], weight[i], loss, known, *more])
    if sources:
        lines_of_groups = [
            f"{name},{len(weight[k :: len(sources)])},{weight[k :: len(sources)].mean()}\n"
            for k, name in enumerate(sources)
        ]
        heads = "group,samples,mean_weight\n"
        (path / "groups.csv").write_text(heads + "".join(lines_of_groups))
    (path / "config.yaml").write_text(yaml.safe_dump(settings))
    (path / "summary.json").write_text(json.dumps(summary))
    (path / "environment.json").write_text(json.dumps({"python": "3.11", "threads": 1}))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if samples:
        save_file(_samples(rng, n, epochs, true, weight, rows), path / "samples.safetensors")
    return path


def _epoch(
    epoch: int, epochs: int, top: float | None, method: str, rng: np.random.Generator
) -> dict[str, Any]:
    rise = 1 - 0.5 ** (6 * epoch / epochs)
    uniform = method == "uniform"
    return {
        "epoch": epoch,
        "step": 4 * epoch,
        "seconds": 3.0 * epoch,
        "lr": 0.1,
        "train_loss": 2.3 * (1 - 0.8 * rise) + 0.05 * rng.random(),
        "valid_loss": 2.3 * (1 - 0.7 * rise),
        "valid_accuracy": 0.1 + 0.8 * rise,
        "test_accuracy": None if top is None else 0.1 + (top - 0.1) * rise,
        "effective_sample_size": None if uniform else 1 - 0.3 * rise,
        "drift": None if uniform else 1e-6 * epoch,
        "meta_gradient_norm": None if uniform else 0.01 / epoch,
        "updates": 0 if uniform else 3,
        "noise_auroc": 0.5 + 0.45 * rise,
    }


def _samples(
    rng: np.random.Generator,
    n: int,
    epochs: int,
    true: np.ndarray,
    weight: np.ndarray,
    rows: bool,
) -> dict[str, np.ndarray]:
    suspects = np.argsort(weight, kind="stable")[:8]
    raw = rng.random((8, 5)) if rows else rng.integers(0, 17, size=(8, 1, 8, 8))
    part = np.sort(rng.choice(n, size=min(n, 60), replace=False))
    states = rng.standard_normal((len(part), 6)) + 4 * np.eye(6)[true[part] % 6]
    steps = np.linspace(0, 1, epochs)[:, None]
    return {
        "internal": states.astype(np.float32),
        "internal_index": part.astype(np.int64),
        "history": ((1 - steps) + steps * weight).astype(np.float16),
        "suspects": raw.astype(np.float32),
        "suspect_index": suspects.astype(np.int64),
    }


def make_runs(path: Path, **settings: Any) -> Path:
    """A run with its uniform baseline beside it."""
    make_run(path, **settings)
    keep = {k: v for k, v in settings.items() if k not in ("method", "selected")}
    selected = None if settings.get("selected", 0.9) is None else 0.8
    make_run(path / "baseline", **{**keep, "method": "uniform", "selected": selected})
    return path
