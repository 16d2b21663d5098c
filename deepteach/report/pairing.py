"""Which runs may be paired: the same setting, the same seeds, another method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deepteach.runs.reader import Run

UNIFORM = "uniform"
# Settings that only the teacher uses tell variants of a method apart; these say where and
# how a run ran. Any other setting that differs makes another schedule: nothing is paired.
_TEACHING = set(
    "method interval window adjoint internal pool through_weights validation_loss valid_batch "
    "teacher teacher_lr teacher_from".split()
)
_BOOKKEEPING = set("out baseline beside device threads workers logger".split())


def flat(value: Any, name: str = "") -> dict[str, str]:
    """Nested settings as dotted names and text values."""
    if isinstance(value, dict):
        parts = (flat(v, f"{name}.{k}" if name else str(k)) for k, v in value.items())
        return {k: v for part in parts for k, v in part.items()}
    return {name: str(value)}


def _is_seed(name: str) -> bool:
    return name.split(".")[-1].endswith("seed")


def setting_of(run: Run) -> tuple[tuple[str, str], ...]:
    """Everything that must agree before two runs may be paired."""
    settings = flat({**run.config, "noise": run.config.get("noise", run.summary.get("noise"))})
    settings.setdefault("data", str(run.summary.get("data")))
    return tuple(
        sorted(
            (name, value)
            for name, value in settings.items()
            if name.split(".")[0] not in _TEACHING | _BOOKKEEPING and not _is_seed(name)
        )
    )


def seed_of(run: Run) -> str:
    """The run's seed, and after it any other seed that is set apart, as of the noise."""
    settings = flat(run.config)
    seed = settings.pop("seed", str(run.summary.get("seed")))
    extra = [
        f"{k} {v}" for k, v in sorted(settings.items()) if _is_seed(k) and v not in ("None", seed)
    ]
    return ", ".join([seed, *extra])


def variants_of(runs: Sequence[Run]) -> list[str]:
    """Each run's method, told apart by the teacher's settings that differ within it."""
    names = []
    for run in runs:
        if run.method == UNIFORM:
            names.append(UNIFORM)
            continue
        rivals = [_teaching(other) for other in runs if other.method == run.method]
        own = _teaching(run)
        differing = [k for k in own if any(rival.get(k) != own[k] for rival in rivals)]
        names.append(" ".join([run.method, *(f"{k}={own[k]}" for k in sorted(differing))]))
    return names


def _teaching(run: Run) -> dict[str, str]:
    # A setting left to the run (null) is found, as it was resolved, in the summary.
    resolved = {k: run.summary[k] for k in ("interval", "window") if k in run.summary}
    settings = flat({**run.config, **resolved})
    return {k: v for k, v in settings.items() if k.split(".")[0] in _TEACHING and not _is_seed(k)}
