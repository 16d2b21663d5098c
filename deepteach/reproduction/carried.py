"""A teacher taught on one data set, kept as it is for other data and another student.

The paper's open question (its Appendix B), of the default teacher under a full recipe. What the
default knows of labels is one number, which multiplies an input that is fitted anew to the
trusted samples of each student and is 0 while its probe knows nothing. Class shifts belong to
their classes and are left out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from deepteach.reproduction.beyond import GROUNDS, PLAIN, UNTAUGHT
from deepteach.reproduction.cell import Cell, Scenario, TableMethod, cell_of
from deepteach.reproduction.scale import Scale

_DIGITS: dict[str, Any] = {
    "batch_size": 64, "valid_batch": 64, "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4,
    "schedule": "cosine", "threads": 1, "valid_size": 200,
}  # fmt: skip

TAUGHT = TableMethod("deep+without=shifts", "taught there")
NEVER = TableMethod("deep+without=shifts+control=untaught", UNTAUGHT.variant)


def carried(scale: Scale) -> list[Cell]:
    """Digits by a small network without norms, images by a residual one, 40 % flips; either way."""
    images, there = _images(scale), {"epochs": 2 * int(scale.flip["epochs"])}
    digits = Scenario(("digits", "digits"), "cnn", {**_DIGITS, **there}, "flip", 0.4)
    found = []
    for seed in range(scale.seeds):
        for origin, target in ((digits, images), (images, digits)):
            source = cell_of(scale, "carried", origin, TAUGHT, seed)
            variant = f"kept as taught on {origin.data[0]}, {origin.student}"
            kept = replace(TAUGHT, variant=variant, settings={"window": 1})
            rows = [cell_of(scale, "carried", target, row, seed) for row in (PLAIN, TAUGHT, NEVER)]
            found += [*rows, cell_of(scale, "carried", target, kept, seed, source=source)]
    return found


def _images(scale: Scale) -> Scenario:
    """As in the tables beyond the paper, or in the paper's Table 6 at its own scale."""
    ground = GROUNDS.get(scale.name)
    if ground is None:
        return Scenario(scale.data["CIFAR-10"], scale.students["resnet32"], scale.flip, "flip", 0.4)
    name, spec = ground.images
    settings = {"epochs": ground.epochs(15), "valid_size": 1000 if "{}" in spec else 200}
    data = name, spec.format("clean")
    return Scenario(data, ground.student, ground.recipe, "flip", 0.4, settings=settings)
