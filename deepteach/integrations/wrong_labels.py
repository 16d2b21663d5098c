"""How well low weights find wrong labels, where a host's batches say what is right."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deepteach.errors import DataError
from deepteach.training.ranking import noise_auroc


class WrongLabels:
    """Samples since they were last asked for: whether their label is wrong, and their trust."""

    def __init__(self) -> None:
        self._parts: list[Tensor | None] = []
        self._wrong: list[Tensor] = []
        self._trust: list[Tensor] = []

    def expect(self, given: Any, clean: Any) -> None:
        """A part of the next step: its labels, and the right ones where they are known.

        A sample of several labels is wrong where one of them is.
        """
        known = isinstance(given, Tensor) and isinstance(clean, Tensor)
        if known and given.shape != clean.shape:
            raise DataError(
                f"clean_labels have shape {tuple(clean.shape)}, and labels {tuple(given.shape)}: "
                "give both alike, or leave clean_labels out"
            )
        wrong = (given != clean).flatten(1).any(1) if known and given.dim() > 1 else given != clean
        self._parts.append(wrong.cpu() if known else None)

    def weighed(self, trust: Tensor) -> None:
        """The step was taken; `(batch,)` the trust in the samples of all its parts."""
        parts, self._parts = self._parts, []
        wrong = [part for part in parts if part is not None]
        if len(wrong) == len(parts) and sum(map(len, wrong)) == len(trust):
            self._wrong.append(torch.cat(wrong))
            self._trust.append((trust * len(trust)).detach().cpu())

    def auroc(self) -> float | None:
        """Chance that a wrong label weighs less than a right one; then it starts anew."""
        if not self._wrong:
            return None
        wrong, trust = torch.cat(self._wrong), torch.cat(self._trust)
        self._wrong, self._trust = [], []
        return noise_auroc(trust, wrong)
