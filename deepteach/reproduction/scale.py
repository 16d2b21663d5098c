"""The sizes at which the paper's tables are run.

`paper` is the paper's own: students, epochs, schedule, K, B. `cpu` trains a ResNet-8 on
3,000 images of 16x16 pixels, long enough to learn most wrong labels by heart (LOG.md): a
quarter of an hour to half an hour for a table on two cores. `smoke` only shows that every
cell runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Scale:
    """What a scale offers.

    `clean`, `uniform` and `flip` are the schedules of the paper's three kinds of experiments;
    `data` and `students` map its names to those of the scale.
    """

    name: str
    data: Mapping[str, tuple[str, str]]
    """Name in the paper -> (name in the tables, value of `--data` without the folder)."""
    students: Mapping[str, str]
    clean: Mapping[str, Any]
    uniform: Mapping[str, Any]
    flip: Mapping[str, Any]
    interval: int = 20
    window: int = 2
    seeds: int = 3
    headline_seeds: int = 5
    """Of the rows that a table beyond the paper is about."""
    teacher_students: tuple[str, str] = ("resnet32", "resnet110")
    """Appendix B: the student that the teacher is taught on, and another one."""
    other_schedule: Mapping[str, Any] = field(default_factory=dict)
    """What the schedule of that other student has differently."""
    levels: tuple[str, ...] = ()
    """Table 3: layers whose input is I0 to I3."""
    labels: tuple[tuple[str, str, float], ...] = ()
    """Human labels: (name, value of `--data`, share of wrong ones)."""
    human_noise: str = "none"


def _levels(blocks: int) -> tuple[str, ...]:
    """I0 to I3: what `fc` reads, then the last convolution of each map size.

    The paper leaves open how a feature map becomes a vector; here it is its mean. Taken after
    the block's sum and ReLU, that mean would be I0 itself at the last size.
    """
    return ("fc", *(f"layer{i}.{blocks - 1}.bn2" for i in (3, 2, 1)))


HUMAN = (("human-aggre", "aggre", 0.09), ("human-random1", "random1", 0.17),
         ("human-worse", "worse", 0.40))  # fmt: skip
_HUMAN_FILES = tuple((name, f"npz:{file}.npz", rate) for name, file, rate in HUMAN)

_PAPER: dict[str, Any] = {"lr": 0.1, "batch_size": 128, "valid_batch": 128, "augment": True}
_CLEAN = {**_PAPER, "epochs": 300, "milestones": (80, 120), "valid_size": 5000}
# Tables 5 and 6 follow Meta-Weight-Net where the paper is silent: batch 100, 1,000 trusted.
_NOISY = {**_PAPER, "batch_size": 100, "valid_batch": 100, "valid_size": 1000}
_CPU: dict[str, Any] = {
    "lr": 0.1, "batch_size": 64, "valid_batch": 64, "epochs": 16, "threads": 1,
}  # fmt: skip
_SMOKE: dict[str, Any] = {
    "lr": 0.05, "batch_size": 64, "valid_batch": 32, "epochs": 1, "milestones": (1,),
    "threads": 1,
}  # fmt: skip

SCALES: dict[str, Scale] = {
    "paper": Scale(
        "paper",
        {"CIFAR-10": ("CIFAR-10", "cifar10:cifar10"),
         "CIFAR-100": ("CIFAR-100", "cifar100:cifar100"),
         "other": ("CIFAR-100", "cifar100:cifar100")},
        {name: name for name in ("resnet32", "resnet110", "wrn-28-10")},
        _CLEAN,
        {**_NOISY, "epochs": 40, "milestones": (36, 38)},
        {**_NOISY, "epochs": 60, "milestones": (40, 50)},
        levels=_levels(5),
        labels=_HUMAN_FILES,
    ),
    "cpu": Scale(
        "cpu",
        {"CIFAR-10": ("CIFAR-10 (JPEG) 3,000 16x16", "npz:clean.npz"),
         "other": ("digits", "digits")},
        {"resnet32": "resnet8", "wrn-28-10": "resnet8"},
        _CPU, _CPU, _CPU,
        interval=7,
        teacher_students=("resnet8", "cnn"),
        other_schedule={"lr": 0.05},  # at 0.1 it ends at chance on some seeds: it has no norms
        levels=_levels(1),
        labels=_HUMAN_FILES,
    ),
    "smoke": Scale(
        "smoke",
        {"CIFAR-10": ("digits", "digits"), "other": ("digits", "digits")},
        {"resnet32": "mlp", "wrn-28-10": "mlp"},
        _SMOKE, _SMOKE, _SMOKE,
        interval=7,
        seeds=1,
        headline_seeds=1,
        teacher_students=("mlp", "cnn"),
        levels=_levels(1),
        labels=tuple((name, "digits", rate) for name, _, rate in HUMAN),
        human_noise="flip",
    ),
}  # fmt: skip
