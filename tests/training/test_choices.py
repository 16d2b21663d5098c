"""What `train` takes beside names: optimizers, losses, clipping, precision, micro-batches."""

from __future__ import annotations

from typing import Any

import own_things
import pytest
import torch
from toy import Probe, arrays

import deepteach as dt
from deepteach.errors import ConfigError
from deepteach.training.api import Result, train
from deepteach.training.choices import name_of

A = arrays(train=96, valid=30)
TRAIN, VALID = ((A[f"x_{k}"], A[f"y_{k}"]) for k in ("train", "valid"))


def go(probe: Probe | None = None, **settings: Any) -> Result:
    small: dict[str, Any] = {"epochs": 2, "batch_size": 16, "interval": 3, "baseline": False}
    watch = (probe or Probe()).watch
    return train("mlp", TRAIN, VALID, watch=watch, **{"teacher": "paper", **small, **settings})


def moved(result: Result) -> bool:
    """Whether the student learned and the teacher was taught."""
    updates = sum(line["updates"] for line in result.metrics)
    losses = [line["train_loss"] for line in result.metrics]
    return updates == 4 and losses[-1] < losses[0]


KINDS: dict[str, tuple[dict[str, Any], type[torch.optim.Optimizer], type, str]] = {
    "sgd": ({}, torch.optim.SGD, dt.Reversed, ""),
    "momentum 0": ({"momentum": 0.0}, torch.optim.SGD, dt.Stored, "forgets its last step"),
    "nesterov": ({"optimizer": "nesterov"}, torch.optim.SGD, dt.Stored, "Nesterov"),
    "adam": ({"optimizer": "adam", "lr": 0.01}, torch.optim.Adam, dt.Stored, "roughly"),
    "adamw": ({"optimizer": "adamw", "lr": 0.01}, torch.optim.AdamW, dt.Stored, "roughly"),
    "exact-sgd": ({"optimizer": "exact-sgd"}, dt.ExactSGD, dt.Reversed, ""),
    "exact": ({"optimizer": "exact-sgd", "adjoint": "exact"}, dt.ExactSGD, dt.Exact, ""),
    "bf16": ({"precision": "bf16"}, torch.optim.SGD, dt.Stored, "half precision"),
    "clipped": ({"clip_norm": 0.5}, torch.optim.SGD, dt.Reversed, ""),
    "micro_batch": ({"micro_batch": 5}, torch.optim.SGD, dt.Reversed, ""),
    "graphs": ({"graphs": 2}, torch.optim.SGD, dt.Reversed, ""),
    "graphs of adam": ({"graphs": "auto", "optimizer": "adam"}, torch.optim.Adam, dt.Stored, "ro"),
    "all at once": (
        {"optimizer": "adamw", "lr": 0.01, "clip_norm": 0.5, "precision": "bf16", "micro_batch": 5},
        *(torch.optim.AdamW, dt.Stored, "half precision"),
    ),
    "a path": ({"optimizer": "own_things:plain_sgd"}, torch.optim.SGD, dt.Stored, "forgets"),
    "a class by path": (
        {"optimizer": "torch.optim:AdamW", "lr": 0.01, "adjoint": "checkpointed"},
        *(torch.optim.AdamW, dt.Checkpointed, ""),
    ),
    "an object": ({"optimizer": own_things.two_rates}, torch.optim.SGD, dt.Reversed, ""),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_adjoint_follows_the_optimizer(name: str) -> None:
    settings, optimizer, adjoint, note = KINDS[name]
    probe = Probe()
    result = go(probe, **settings)
    assert type(result.coach.optimizer) is optimizer
    assert type(result.coach.adjoint) is adjoint
    told = [said for said in probe.said if said.startswith("adjoint stored: ")]
    assert len(told) == (1 if note else 0) and all(note in said for said in told)
    assert moved(result)


def test_a_teacher_that_learns_nothing_needs_no_note() -> None:
    probe = Probe()
    train(
        *("mlp", TRAIN, VALID),
        teacher="uniform",
        watch=probe.watch,
        **{"epochs": 1, "optimizer": "nesterov", "baseline": False},
    )
    assert probe.said == []


def test_a_named_adjoint_is_never_exchanged() -> None:
    with pytest.raises(ConfigError, match=r"Nesterov.*Stored\(\)"):
        go(optimizer="nesterov", adjoint="reversed")
    with pytest.raises(ConfigError, match="ExactSGD"):
        go(adjoint="exact")
    with pytest.raises(ConfigError, match="Stored"):
        go(precision="bf16", adjoint="reversed")


@pytest.mark.parametrize("how", [{"micro_batch": 5}, {"graphs": 2}, {"graphs": "auto"}])
def test_how_it_is_computed_changes_no_meta_gradient(how: dict[str, Any]) -> None:
    whole, other = go().trust.weight, go(**how).trust.weight
    torch.testing.assert_close(whole, other, rtol=1e-3, atol=1e-4)


def test_gradients_are_clipped() -> None:
    """At a norm that no gradient keeps, a step without momentum is at most lr times it."""
    steps: list[float] = []
    before: dict[str, torch.Tensor] = {}

    def watch(optimizer: torch.optim.Optimizer, *_: object) -> None:
        leaves = [leaf for group in optimizer.param_groups for leaf in group["params"]]
        norms = [leaf.grad.norm() for leaf in leaves if leaf.grad is not None]
        steps.append(float(torch.stack(norms).norm()))

    def made(params: Any, lr: float) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(params, lr)
        optimizer.register_step_pre_hook(watch)
        return optimizer

    assert not before
    go(optimizer=made, clip_norm=0.01)
    assert len(steps) == 12 and max(steps) <= 0.01 * 1.001


def test_groups_of_the_users_keep_their_ratio() -> None:
    result = go(optimizer=own_things.two_rates, milestones=[1])
    rates = [group["lr"] for group in result.coach.optimizer.param_groups]
    assert rates == pytest.approx([0.005, 0.0005])


def test_passes_in_half_precision() -> None:
    seen: list[torch.dtype] = []

    class Watched(torch.nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found = super().forward(x)
            if torch.is_grad_enabled() and self.training:
                seen.append(found.dtype)
            return found

    torch.manual_seed(0)
    model = Watched(torch.nn.Linear(8, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3))
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 16, "baseline": False}
    train(model, TRAIN, VALID, teacher="uniform", precision="bf16", **settings)
    assert seen == [torch.bfloat16] * 6
    assert all(leaf.dtype == torch.float32 for leaf in model.parameters())


@pytest.mark.parametrize("loss", ["own_things:smoothed", own_things.smoothed])
def test_a_loss_of_ones_own(loss: Any) -> None:
    """It is what the student lowers, and its mean what the teacher does."""
    result = go(loss=loss)
    assert moved(result) and result.config.loss == "own_things:smoothed"
    x, y = (torch.as_tensor(part) for part in VALID)
    logits = result.model(x.float())
    mean = own_things.smoothed(logits, y).mean()
    torch.testing.assert_close(result.coach.validation_loss(logits, y), mean)


@pytest.mark.parametrize("augment", ["own_things:jittered", own_things.jittered])
def test_an_augmentation_of_ones_own(augment: Any) -> None:
    result = go(augment=augment)
    assert moved(result) and result.config.augment == "own_things:jittered"
    assert not torch.equal(result.trust.weight, go().trust.weight)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"optimizer": "own_things:nothing"}, "optimizer 'own_things:nothing' cannot be imported"),
        ({"optimizer": "own_things:no_optimizer"}, "returned type int: expected a torch.optim"),
        ({"optimizer": "torch.optim:RMSprop"}, "no exact step rule is known for RMSprop"),
        ({"optimizer": "nesterov", "momentum": 0.0}, "optimizer 'nesterov' refuses its settings"),
        ({"loss": "own_things:averaged"}, "one value per sample"),
        ({"loss": "own_things:NUMBER"}, "of type int: expected a function"),
        ({"augment": "own_things:NUMBER"}, "of type int: expected a function"),
        ({"augment": lambda x: x}, "unnamed' failed on a batch of shape"),
        ({"augment": lambda x, g: x[:5]}, r"returned \(5, 8\) for a batch of shape \(16, 8\)"),
        ({"augment": lambda x, g: x.numpy()}, "returned ndarray for a batch of shape"),
        ({"augment": torch.nn.Identity}, "'torch.nn.modules.linear:Identity' is a class"),
    ],
)
def test_refusals(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        go(**settings)
    assert "\n" not in str(caught.value)


def test_the_path_of_an_object() -> None:
    assert name_of(own_things.smoothed) == "own_things:smoothed"
    assert name_of(torch.optim.SGD) == "torch.optim.sgd:SGD"
    assert name_of(lambda: None) == f"{__name__}:unnamed"
    assert name_of(torch.nn.MSELoss(reduction="none")) == "torch.nn.modules.loss:MSELoss"


@pytest.mark.parametrize("teacher", ["deep", "mwn"])
def test_a_window_alone_is_no_fault_of_the_interval(teacher: str) -> None:
    result = go(teacher=teacher, interval=None, window=3)
    assert (result.coach.interval, result.coach.window) == (3, 3)
    with pytest.raises(ConfigError, match="window"):
        go(teacher=teacher, interval=2, window=3)
