"""Short sequences with wrong labels, and students of them, for other libraries' loops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import BertConfig

TOKENS, CLASSES, WIDTH = 20, 3, 8


def rows(count: int, *, noise: float = 0.0, seed: int = 0) -> list[dict[str, Any]]:
    """Two of six tokens tell the class; a label is wrong with the chance `noise`."""
    draws = torch.Generator().manual_seed(seed)
    found = []
    for place in range(count):
        truth = place % CLASSES
        ids = torch.randint(10, TOKENS, (6,), generator=draws)
        ids[[2, 4]] = 3 + truth
        wrong = bool(torch.rand((), generator=draws) < noise)
        label = (truth + 1) % CLASSES if wrong else truth
        mask = torch.ones(6, dtype=torch.long)
        found.append({"input_ids": ids, "attention_mask": mask, "labels": label, "truth": truth})
    return found


def without(column: str, of: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows without a column."""
    return [{key: value for key, value in row.items() if key != column} for row in of]


def bert_config(**changes: Any) -> BertConfig:
    """Hidden 8, one layer, no dropout unless told."""
    from transformers import BertConfig  # seconds, which tests of other libraries need not wait

    small: dict[str, Any] = {
        "vocab_size": TOKENS,
        "hidden_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "max_position_embeddings": 8,
        "num_labels": CLASSES,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return BertConfig(**{**small, **changes})


def tensors(module: torch.nn.Module) -> dict[str, Tensor]:
    """What a module holds, copied."""
    return {name: leaf.detach().clone() for name, leaf in module.state_dict().items()}


def apart(left: dict[str, Tensor], right: dict[str, Tensor]) -> list[str]:
    """The names of what differs in a bit."""
    assert left.keys() == right.keys()
    return [name for name in left if not torch.equal(left[name], right[name])]
