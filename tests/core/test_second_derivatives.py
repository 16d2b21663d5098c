"""Second derivatives that torch lacks or has wrong: values and gradients are torch's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError
from torch.nn import functional as F

from deepteach.core.derivatives.second_derivatives import WRITTEN, Corrected

weight_norm = torch._weight_norm  # pyright: ignore[reportPrivateImportUsage]
G = torch.Generator().manual_seed(2)
IDS = torch.randint(5, (7,), generator=G)
STARTS = torch.tensor([0, 2, 2, 6])  # the second bag is empty


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=G, dtype=torch.float64)


def bag(*, weighted: bool = False, **settings: object) -> Callable[..., Tensor]:
    def call(weight: Tensor, shares: Tensor) -> Tensor:
        own = {"per_sample_weights": shares} if weighted else {}
        return F.embedding_bag(IDS, weight, STARTS, **own, **settings)  # type: ignore[arg-type]

    return call


def rows(weight: Tensor, shares: Tensor) -> Tensor:
    return F.embedding_bag(IDS[:6].view(2, 3), weight, padding_idx=1)


FORMS: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "weight norm": (lambda v, g: weight_norm(v, g, 0), [drawn(3, 4), drawn(3, 1)]),
    "weight norm of columns": (
        lambda v, g: weight_norm(v, g, 1),
        [drawn(3, 4), drawn(1, 4)],
    ),
    "weight norm of all": (lambda v, g: weight_norm(v, g, -1), [drawn(3, 4), drawn(1)]),
    **{
        f"cdist, p={p:g}": (
            lambda x, y, p=p: torch.cdist(x, y, p),
            [drawn(2, 3, 4), drawn(2, 2, 4)],
        )
        for p in (1.0, 2.0, 3.0, torch.inf)
    },
    "pdist": (F.pdist, [drawn(4, 3)]),
    "hardsigmoid": (F.hardsigmoid, [4 * drawn(9)]),
    "hardsigmoid in place": (lambda x: F.hardsigmoid(x * 1, inplace=True), [4 * drawn(9)]),
    **{
        f"bag, {mode}": (bag(mode=mode), [drawn(5, 2), drawn(7)]) for mode in ("mean", "sum", "max")
    },
    "bag, shares": (bag(mode="sum", weighted=True), [drawn(5, 2), drawn(7)]),
    "bag, last offset": (bag(include_last_offset=True), [drawn(5, 2), drawn(7)]),
    "bag, padding": (bag(padding_idx=-5), [drawn(5, 2), drawn(7)]),
    "bag, padding, largest": (bag(padding_idx=int(IDS[0]), mode="max"), [drawn(5, 2), drawn(7)]),
    "bags as rows": (rows, [drawn(5, 2), drawn(7)]),
    "vector_norm": (lambda x: torch.linalg.vector_norm(x, dim=(0, 2)), [drawn(3, 4, 2)]),
    "vector_norm of all": (lambda x: torch.linalg.vector_norm(x, ord=3), [drawn(3, 4)]),
    "linalg.norm": (lambda x: torch.linalg.norm(x, None, 1, True), [drawn(3, 4)]),
    "linalg.norm of a matrix": (torch.linalg.norm, [drawn(3, 4)]),
    "torch.norm": (lambda x: torch.norm(x, 2, 1), [drawn(3, 4)]),
    "torch.norm of all": (torch.norm, [drawn(3, 4)]),
    "norm": (lambda x: x.norm(p=1, dim=0), [drawn(3, 4)]),
    "norm of all": (lambda x: x.norm(), [drawn(3, 4)]),
    "normalize": (lambda x: F.normalize(x, 3.0, 0), [drawn(3, 4)]),
    "cosine similarity": (
        lambda x, y: F.cosine_similarity(x, y, dim=-1),
        [drawn(3, 1, 4), drawn(2, 4)],
    ),
    "std": (lambda x: x.std(1, keepdim=True), [drawn(3, 4)]),
    "std of all, biased": (lambda x: torch.std(x, correction=0), [drawn(3, 4)]),
}


def used(leaves: list[Tensor], function: Callable[..., Tensor]) -> list[Tensor]:
    """Fresh leaves; those that the value depends on require a gradient."""
    fresh = [leaf.clone().requires_grad_() for leaf in leaves]
    found = torch.autograd.grad(function(*fresh).sum(), fresh, allow_unused=True)
    return [
        leaf.requires_grad_(g is not None) for leaf, g in zip(fresh, found, strict=True)
    ]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_value_and_gradient_are_torch_s(form: str) -> None:
    function, leaves = FORMS[form]
    told = []
    for mode in (None, Corrected()):
        own = used(leaves, function)
        active = [leaf for leaf in own if leaf.requires_grad]
        if mode is None:
            value = function(*own)
        else:
            with mode:
                value = function(*own)
        told.append([value, *torch.autograd.grad((value.sin() * value).sum(), active)])
    slack = 1e-7 if "hardsigmoid" in form else 1e-12  # torch's sixth there is a float32
    for ours, theirs in zip(told[1], told[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=slack, atol=slack)


@pytest.mark.parametrize("form", FORMS)
def test_second_derivatives_equal_differences(form: str) -> None:
    function, leaves = FORMS[form]
    own = used(leaves, function)

    def value(*active: Tensor) -> Tensor:
        given = iter(active)
        with Corrected():
            return function(*(next(given) if leaf.requires_grad else leaf for leaf in own)).sin()

    assert torch.autograd.gradgradcheck(value, tuple(leaf for leaf in own if leaf.requires_grad))


def test_torch_itself_is_wrong_in_weight_norm() -> None:
    """The day that torch is right, the form here can go."""
    function, leaves = FORMS["weight norm"]
    own = [leaf.clone().requires_grad_() for leaf in leaves]
    with pytest.raises(GradcheckError):
        torch.autograd.gradgradcheck(lambda *given: function(*given).sin(), own)


def test_scaled_gradients_are_left_to_torch() -> None:
    table = nn.EmbeddingBag(5, 2, scale_grad_by_freq=True)
    with Corrected():
        value = table(IDS, STARTS)
    assert value.grad_fn is not None and "EmbeddingBag" in value.grad_fn.name()


def test_every_form_is_tried() -> None:
    # weight norm, cdist, pdist, hardsigmoid, embedding bag; four names of norms, two of std,
    # normalize, cosine similarity
    assert len(WRITTEN) == 13
