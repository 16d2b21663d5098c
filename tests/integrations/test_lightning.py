"""Lightning's Trainer, taught: beside a plain loop around a Coach on the same batches."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    ModelCheckpoint,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.tuner.tuning import Tuner
from lightning.pytorch.utilities import CombinedLoader
from tiny_hosts import apart, tensors
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import deepteach as dt
from deepteach.integrations.lightning import Teach

pytestmark = pytest.mark.filterwarnings(
    "ignore:The '.*' does not have many workers:UserWarning",
    "ignore:The number of training batches:UserWarning",
    "ignore:Checkpoint directory .* exists and is not empty:UserWarning",
    "ignore:.*LeafSpec.* is deprecated:FutureWarning",
)

INTERVAL, WINDOW, SIZE = 3, 2, 8


def points(count: int, seed: int = 0, noise: float = 0.0) -> TensorDataset:
    draws = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 3
    x = torch.randn(count, 4, generator=draws) + 3 * torch.eye(4)[y]
    wrong = torch.rand(count, generator=draws) < noise
    return TensorDataset(x, torch.where(wrong, (y + 1) % 3, y))


def loader(data: TensorDataset, **options: Any) -> DataLoader:
    return DataLoader(data, **{"batch_size": SIZE, **options})


TRAIN = points(5 * SIZE, noise=0.4)


def trusted() -> DataLoader:
    return loader(points(18, seed=1), batch_size=12, shuffle=True)


class Classifier(LightningModule):
    """A user's own; what differs from plain training is the line with the coach."""

    def __init__(self, momentum: float = 0.9) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh())
        self.head = nn.Linear(8, 3)
        self.momentum, self.seen = momentum, []

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch["noisy"] if isinstance(batch, dict) else batch
        self.seen.append((x, y))
        return self.coach.loss(x, y)  # type: ignore[operator, union-attr]

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=self.momentum)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7)]


def teacher() -> dt.Teacher:
    torch.manual_seed(5)
    return dt.Teacher([dt.TrustedProbe(), dt.Loss()])


def quiet_trainer(folder: Path, *callbacks: Any, **changes: Any) -> Trainer:
    usual: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": folder,
        "callbacks": [*callbacks],
    }
    return Trainer(**{**usual, **changes})


def fitted(
    folder: Path, module: Classifier, *callbacks: Any, data: Any = None, **changes: Any
) -> tuple[Trainer, Teach]:
    teach = Teach(trusted(), teacher(), interval=INTERVAL, window=WINDOW)
    path = changes.pop("ckpt_path", None)
    usual = {"max_epochs": 2, "enable_checkpointing": bool(callbacks)}
    trainer = quiet_trainer(folder, *callbacks, teach, **{**usual, **changes})
    trainer.fit(module, loader(TRAIN) if data is None else data, ckpt_path=path)
    return trainer, teach


def plain_loop(
    module: Classifier, seen: list[Any], *, parts: int = 1, half: bool = False, **options: Any
) -> dt.Coach:
    """A loop of one's own on the batches that the module saw."""
    (optimizer,), (scheduler,) = module.configure_optimizers()
    steps = 2 * -(-len(seen) // 2 // parts)
    coach = dt.Coach(
        *(dt.Student(module, "head"), optimizer, teacher()),
        **{"interval": INTERVAL, "window": WINDOW, "total_steps": steps, "accumulate": parts > 1},
        **options,
    )
    valid = trusted()
    coach.trust(valid)
    module.train()
    each = len(seen) // 2
    for place, (x, y) in enumerate(seen):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = coach.loss(x, y)
        loss.backward()
        within = place % each + 1
        if within % parts == 0 or within == each:
            if "clip_norm" in options:
                nn.utils.clip_grad_norm_(module.parameters(), options["clip_norm"])
            optimizer.step()
            optimizer.zero_grad()
        coach.update(valid)
        if within == each:
            scheduler.step()
    return coach


HALF = {"half": True, "adjoint": dt.Stored(mixed_precision=True, tolerance=0.1)}


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"gradient_clip_val": 0.1}, {"clip_norm": 0.1}),
        ({"precision": "bf16-mixed"}, HALF),
    ],
    ids=["clipped", "bf16"],
)
def test_a_fit_ends_with_the_teacher_of_a_plain_loop(
    tmp_path: Path, settings: dict[str, Any], options: dict[str, Any]
) -> None:
    module = Classifier()
    trainer, teach = fitted(tmp_path, module, **settings)
    other = Classifier()
    coach = plain_loop(other, module.seen, **options)
    assert teach.coach is not None and teach.coach.steps == 10
    assert apart(tensors(teach.coach.teacher), tensors(teacher()))
    assert not apart(tensors(teach.coach.teacher), tensors(coach.teacher))
    assert not apart(tensors(module), tensors(other))
    assert {"effective_sample_size", "trusted_loss"} <= trainer.callback_metrics.keys()


class Layered(Classifier):
    """Without batch statistics, which parts of a step would not share."""

    def __init__(self, momentum: float = 0.9) -> None:
        super().__init__(momentum)
        self.net[1] = nn.Identity()


def test_accumulated_over_several_loaders(tmp_path: Path) -> None:
    module = Layered(momentum=0.0)
    data = CombinedLoader({"noisy": loader(TRAIN), "other": loader(TRAIN)}, "min_size")
    _, teach = fitted(tmp_path, module, data=data, accumulate_grad_batches=2)
    other = Layered(momentum=0.0)
    coach = plain_loop(other, module.seen, parts=2, adjoint=dt.Stored())
    assert teach.coach is not None and teach.coach.steps == 6
    assert isinstance(teach.coach.adjoint, dt.Stored)
    assert not apart(tensors(teach.coach.teacher), tensors(coach.teacher))
    assert not apart(tensors(module), tensors(other))


def test_a_resumed_fit_ends_with_the_same_bits(tmp_path: Path) -> None:
    """The first epoch ends within a window, which is in the checkpoint."""

    def saving() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)

    whole = Classifier()
    _, straight = fitted(tmp_path, whole, saving())
    saved = tmp_path / "epoch=0.ckpt"
    again = Classifier()
    with torch.no_grad():
        again.head.weight.zero_()  # restored from the checkpoint
    trainer, resumed = fitted(tmp_path, again, saving(), ckpt_path=saved)
    assert straight.coach is not None and resumed.coach is not None
    assert len(again.seen) == 5 and trainer.global_step == 10 and resumed.coach.steps == 10
    assert not apart(tensors(straight.coach.teacher), tensors(resumed.coach.teacher))
    assert not apart(tensors(whole), tensors(again))
    checkpoint = torch.load(saved, weights_only=True)
    checkpoint["callbacks"].pop("Teach")
    torch.save(checkpoint, saved)
    with pytest.raises(dt.CheckpointError, match="holds no state of Teach"):
        fitted(tmp_path, Classifier(), saving(), ckpt_path=saved)


class Untold(Classifier):
    """The plain training that the coach of a teacher with equal weights does."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        coach = getattr(self, "coach", None)
        x, y = batch
        return nn.functional.cross_entropy(self(x), y) if coach is None else coach.loss(x, y)


def test_weight_averaging_ends_with_statistics_of_the_average(tmp_path: Path) -> None:
    """Its last epoch has passes and no steps."""
    plain, taught = Untold(), Untold()
    for module, callbacks in ((plain, []), (taught, [Teach(trusted(), dt.Uniform(), interval=3)])):
        averaging = StochasticWeightAveraging(1e-3, swa_epoch_start=1, device=None)
        trainer = quiet_trainer(tmp_path, averaging, *callbacks, max_epochs=3)
        trainer.fit(module, loader(TRAIN))
    assert taught.coach.steps == 15 and plain.net[1].num_batches_tracked == 5  # type: ignore[union-attr]
    for name, leaf in plain.state_dict().items():
        assert torch.allclose(taught.state_dict()[name], leaf, atol=1e-5), name


def test_the_tuner_runs_without_a_coach(tmp_path: Path) -> None:
    """`training_step` is asked before `fit` begins."""
    module, teach = Untold(), Teach(trusted(), teacher(), interval=INTERVAL, window=WINDOW)
    module.lr = 0.1  # type: ignore[assignment]
    trainer = quiet_trainer(tmp_path, teach)
    Tuner(trainer).lr_find(module, loader(TRAIN), num_training=4)
    assert teach.coach is None
    trainer.fit(module, loader(TRAIN))
    assert teach.coach is not None and teach.coach.steps == 5


class Failing(Layered):
    """The third batch is one too many."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if len(self.seen) == 3:
            raise KeyboardInterrupt
        return loss


@pytest.mark.filterwarnings("ignore:`.fit.ckpt_path=None.` was called without a model:UserWarning")
@pytest.mark.filterwarnings("ignore:.fit.ckpt_path=.last.. is set, but:UserWarning")
def test_what_ends_a_fit_in_a_step_leaves_a_checkpoint(tmp_path: Path) -> None:
    saving = OnExceptionCheckpoint(tmp_path, filename="left")
    with pytest.raises(SystemExit):
        fitted(tmp_path, Failing(), saving)
    left = torch.load(tmp_path / "left.ckpt", weights_only=True)["callbacks"]["Teach"]["coach"]
    assert left["clock"]["step"] == 2


def test_no_checkpoint_within_an_accumulated_step(tmp_path: Path) -> None:
    with pytest.raises(dt.ConfigError, match="a multiple of accumulate_grad_batches"):
        fitted(
            *(tmp_path, Layered(momentum=0.0), Validating()),
            accumulate_grad_batches=2,
        )


class Validating(Callback):
    """Saves where a check of a part of an epoch would."""

    def on_train_batch_end(self, trainer: Trainer, *_rest: Any) -> None:
        trainer.save_checkpoint(f"{trainer.default_root_dir}/now.ckpt")


class Two(Classifier):
    """Two optimizers."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD(self.net.parameters(), 0.1),
            torch.optim.SGD(self.head.parameters()),
        ]


class Untaught(Classifier):
    """Its author forgot the line."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (Untaught, {}, r"let training_step return self.coach.loss\(x, y\)"),
        (Two, {}, "takes one optimizer, and configure_optimizers gave 2"),
        (Classifier, {"precision": "bf16-true"}, "precision 'bf16-true' cannot be"),
        (
            Classifier,
            {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
            "use 'norm'",
        ),
    ],
)
def test_what_is_refused(
    tmp_path: Path, kind: type[Classifier], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(dt.ConfigError, match=message) as told:
        fitted(tmp_path, kind(), **settings)
    assert "\n" not in str(told.value)


def test_without_the_library_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "deepteach.integrations.lightning")
    monkeypatch.setitem(sys.modules, "lightning", None)
    with pytest.raises(ImportError, match=r"pip install 'deepteach\[lightning"):
        import deepteach.integrations.lightning  # noqa: F401


def test_trusted_batches_come_in_the_precision_of_the_others(tmp_path: Path) -> None:
    """In 64-true the Trainer makes float64 of what it trains on; the trusted samples likewise."""
    x, y = points(18, seed=1).tensors
    doubles = TensorDataset(x.double(), y)
    found = []
    for data in (trusted(), loader(doubles, batch_size=12, shuffle=True)):
        torch.manual_seed(0)
        teach = Teach(data, teacher(), interval=3, window=2)
        trainer = quiet_trainer(tmp_path, teach, precision="64-true")
        trainer.fit(Classifier(), loader(TRAIN))
        assert teach.coach is not None and teach.coach.last_record is not None
        found.append(teach.coach.last_record.validation_loss)
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_no_trusted_samples(tmp_path: Path) -> None:
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Teach(None)],  # type: ignore[arg-type]
        default_root_dir=tmp_path,
    )
    with pytest.raises(dt.ConfigError, match="Teach needs trusted samples"):
        trainer.fit(Classifier(), loader(TRAIN))


@pytest.mark.parametrize("clip", [float("inf"), 0, -1.0, None])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_what_clips_nothing_is_no_clipping(tmp_path: Path, clip: Any, algorithm: str) -> None:
    module = Classifier()
    how = {"gradient_clip_val": clip, "gradient_clip_algorithm": algorithm}
    _, teach = fitted(tmp_path, module, **how)
    other = Classifier()
    coach = plain_loop(other, module.seen)
    assert teach.coach is not None and coach.last_record is not None
    assert teach.coach.last_record == coach.last_record


def test_a_compiled_module_is_taught_as_another(tmp_path: Path) -> None:
    """Lightning compiles training_step, with the coach's loss in it."""
    torch._dynamo.reset()
    ends = []
    for compiled in (False, True):
        module = Classifier()
        given: Any = torch.compile(module, backend="aot_eager") if compiled else module
        torch.manual_seed(0)
        _, teach = fitted(tmp_path, given)
        assert teach.coach is not None and teach.coach.steps == 10
        ends.append({**tensors(teach.coach.teacher), **tensors(module)})
    assert apart({k: v for k, v in ends[0].items() if k in tensors(teacher())}, tensors(teacher()))
    for name, leaf in ends[0].items():
        torch.testing.assert_close(ends[1][name], leaf, rtol=1e-4, atol=1e-4)
