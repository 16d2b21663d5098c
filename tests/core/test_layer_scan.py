"""The scan of torch.nn: no layer without a recipe, and the committed table is of them all."""

from __future__ import annotations

import csv
import warnings

import pytest
import torch
from paths import ROOT
from scan_engine import EXACT, REFUSED, WINDOWS, examine, problem_of
from scan_layers import LEFT_OUT, RECIPES, wrong
from scan_recipe import Recipe, unscanned

RECIPE = {recipe.name: recipe for recipe in RECIPES}
SOME = [
    "Linear", "Conv2d", "ConvTranspose1d", "BatchNorm2d", "LayerNorm", "GroupNorm", "RMSNorm",
    "GELU", "PReLU", "RReLU", "Hardsigmoid", "Dropout", "MaxUnpool2d", "FractionalMaxPool2d",
    "Embedding, padding_idx",
    "EmbeddingBag, mean", "LSTM", "GRUCell", "MultiheadAttention", "TransformerDecoderLayer",
    "LazyConv1d", "utils.weight_norm", "parametrizations.orthogonal, cayley", "F.gumbel_softmax",
    "F.grid_sample, bilinear, zeros", "F.scaled_dot_product_attention, dropout", "torch.cdist, p=2",
    "CrossEntropyLoss, smoothing", "HuberLoss", "GaussianNLLLoss", "AdaptiveLogSoftmaxWithLoss",
]  # fmt: skip
NOT = ["CTCLoss", "CrossMapLRN2d", "EmbeddingBag, sparse", "Embedding, scale_grad_by_freq"]


def committed() -> list[dict[str, str]]:
    with (ROOT / "results" / "layers.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", SOME)
def test_equal_to_black_box_differences(name: str) -> None:
    found = examine(problem_of(RECIPE[name], 2))
    assert found.outcome == EXACT and not wrong(RECIPE[name], found), found
    assert found.size > 1e-5, "the teacher reaches nothing"


@pytest.mark.parametrize("name", NOT)
def test_refused_in_one_line(name: str) -> None:
    found = examine(problem_of(RECIPE[name], 2))
    assert found.outcome != EXACT and not wrong(RECIPE[name], found)
    assert found.outcome != REFUSED or (":" in found.said and "\n" not in found.said)


def test_torch_has_nothing_that_no_recipe_names() -> None:
    assert not (missing := unscanned(RECIPES, LEFT_OUT)), (
        f"torch {torch.__version__} has {missing}: add recipes (experiments/scan_modules.py and "
        "its neighbours), then run experiments/scan_layers.py and experiments/fill_docs.py"
    )


def test_a_new_layer_would_be_told() -> None:
    assert unscanned([r for r in RECIPES if r.covers != "GRU"], LEFT_OUT) == ["GRU"]


def test_the_committed_table_has_every_recipe() -> None:
    rows = {(row["layer"], row["window"]): row for row in committed()}
    lost = [r.name for r in RECIPES for w in WINDOWS if (r.name, str(w)) not in rows]
    assert not lost, f"run experiments/scan_layers.py: {lost} are not in results/layers.csv"


def test_nothing_in_the_committed_table_is_silently_wrong() -> None:
    rows = committed()
    assert {row["outcome"] for row in rows} >= {EXACT, REFUSED}
    for row in rows:
        if row["outcome"] == EXACT:
            assert float(row["error"]) <= 1e-6 and float(row["doubt"]) <= 1e-6, row
        elif row["outcome"] == REFUSED:
            assert row["said"], row


def block_matters(recipe: Recipe) -> bool:
    """A gradient reaches what lies before the block, or the block's own parameters."""
    warnings.simplefilter("ignore")  # torch's, of layers that it would drop
    torch.manual_seed(0)
    problem = problem_of(recipe, 1)
    module = problem.build()
    ((x, y),) = problem.steps[0]
    try:
        problem.loss(module(x), y).sum().backward()
    except RuntimeError:
        return True  # torch cannot train it; the table says so
    before = [*module.stem.parameters(), *module.block.parameters()]
    return any(leaf.grad is not None and bool(leaf.grad.to_dense().any()) for leaf in before)


def test_every_layer_is_on_the_way() -> None:
    """A layer that no gradient passes would be exact for nothing."""
    assert not [recipe.name for recipe in RECIPES if not block_matters(recipe)]
