"""Which runs may be paired: the same setting, the same seeds, another method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deepteach.runs.reader import BOOKKEEPING, UNIFORM, Run

_LETTERS = 8  # of a digest
# Settings that only the teacher uses tell variants of a method apart. Any other setting that
# differs, but for `BOOKKEEPING`, makes another schedule: nothing is paired.
_TEACHING = set(
    "method interval window adjoint internal pool through_weights validation_loss valid_batch "
    "teacher teacher_lr teacher_from".split()
)


def flat(value: Any, name: str = "") -> dict[str, str]:
    """Nested settings as dotted names and text values."""
    if isinstance(value, dict):
        parts = (flat(v, f"{name}.{k}" if name else str(k)) for k, v in value.items())
        return {k: v for part in parts for k, v in part.items()}
    return {name: str(value)}


def _is_seed(name: str) -> bool:
    return name.split(".")[-1].endswith("seed")


Key = tuple[tuple[str, str], ...]
"""Names and values of settings, by which runs are grouped."""


def setting_of(run: Run) -> Key:
    """Everything that must agree before two runs of whatever seeds may be paired."""
    settings = flat({**run.config, "noise": run.config.get("noise", run.summary.get("noise"))})
    settings.setdefault("data", str(run.summary.get("data")))
    settings |= _known_by(run)
    return tuple(
        sorted(
            (name, value)
            for name, value in settings.items()
            if name.split(".")[0] not in _TEACHING | BOOKKEEPING and not _is_seed(name)
        )
    )


def settings_of(runs: Sequence[Run]) -> list[Key]:
    """As `setting_of`, of each; runs of one seed are also told apart by their very data.

    Runs of several seeds are not: a seed decides noise and splits.
    """
    keys, found = [setting_of(run) for run in runs], [_contents(run) for run in runs]
    by_seed: dict[tuple[Key, str], set[str]] = {}
    for run, key, own in zip(runs, keys, found, strict=True):
        by_seed.setdefault((key, seed_of(run)), set()).add(own)
    mixed = {key for (key, _), several in by_seed.items() if len(several) > 1}
    return [
        (*key, ("contents", own)) if key in mixed else key
        for key, own in zip(keys, found, strict=True)
    ]


def _known_by(run: Run) -> dict[str, str]:
    """What tells data and students of one name apart, whatever the seed.

    Nothing of runs of earlier versions, which did not write it.
    """
    summary = run.summary
    found = {k: str(summary[k]) for k in ("classes", "student_parameters") if k in summary}
    samples, file = summary.get("samples"), _identity(run).get("file")
    if file is not None:
        found["file"] = str(file)[:_LETTERS]
    elif isinstance(samples, dict):  # in all: a seed may decide which are split off
        found["samples"] = str(sum(n for n in samples.values() if isinstance(n, int)))
    return found


def _contents(run: Run) -> str:
    identity = _identity(run)
    labels = identity.get("sources", identity.get("labels"))  # of earlier versions, both in one
    return " ".join(str(name)[:_LETTERS] for name in (labels, identity.get("inputs")))


def _identity(run: Run) -> dict[str, Any]:
    found = run.summary.get("data_identity")
    return found if isinstance(found, dict) else {}


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
