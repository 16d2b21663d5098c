"""The Trainer of transformers, taught: beside a plain loop around a Coach on the same batches."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_hosts import CLASSES, apart, bert_config, rows, tensors, without
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    BatchEncoding,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
    default_data_collator,
    get_scheduler,
)

import deepteach as dt
from deepteach.errors import ConfigError, DataError
from deepteach.integrations.huggingface import TeachTrainer
from deepteach.integrations.sequence_losses import masked_mean, sample_losses

TRAIN, TRUSTED, TEST = rows(32, noise=0.4), rows(18, seed=1), rows(12, seed=2)
INTERVAL, WINDOW, TRUSTED_BATCH = 3, 2, 12


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    usual: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "max_steps": 7,
        "learning_rate": 1e-2,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 2,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
        "log_level": "error",
    }
    return TrainingArguments(**{**usual, **changes})


def bert(**changes: Any) -> nn.Module:
    torch.manual_seed(3)
    return BertForSequenceClassification(bert_config(**changes))


def teacher() -> dt.Teacher:
    torch.manual_seed(5)
    return dt.Teacher([dt.TrustedProbe(), dt.Loss()])


def encoded(of: list[dict[str, Any]]) -> BatchEncoding:
    """A batch as tokenizers pad it: a mapping, and no dict."""
    return BatchEncoding(default_data_collator(of))


class Watched(TeachTrainer):
    """Keeps the batches that it trains on, and where the random generator stood before each."""

    def compute_loss(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        if torch.is_grad_enabled():
            kept = {**inputs}, torch.get_rng_state()
            self.__dict__.setdefault("seen", []).append(kept)
        return super().compute_loss(model, inputs, *rest, **more)


def trained(module: nn.Module, args: TrainingArguments, **changes: Any) -> Watched:
    usual: dict[str, Any] = {
        "train_dataset": without("truth", TRAIN),
        "trusted_dataset": without("truth", TRUSTED),
        "teacher": teacher(),
        "interval": INTERVAL,
        "window": WINDOW,
        "trusted_batch_size": TRUSTED_BATCH,
        "data_collator": encoded,
    }
    trainer = Watched(module, args, **{**usual, **changes})
    trainer.train()
    return trainer


def labelled(batch: dict[str, Any]) -> tuple[dict[str, Any], Tensor]:
    return {k: v for k, v in batch.items() if k != "labels"}, batch["labels"]


def plain_loop(
    module: nn.Module,
    trainer: Watched,
    make_student: Callable[[nn.Module], dt.Student],
    trusted: list[dict[str, Any]] = TRUSTED,
    taught: dt.AbstractTeacher | None = None,
    **options: Any,
) -> dt.Coach:
    """A loop of one's own on the batches that the Trainer saw, with its learning rates."""
    args, parts = trainer.args, trainer.args.gradient_accumulation_steps
    trainable = {n: leaf for n, leaf in module.named_parameters() if leaf.requires_grad}
    decayed = trainer.get_decay_parameter_names(module)
    groups = [[p for n, p in trainable.items() if (n in decayed) is own] for own in (True, False)]
    optimizer = torch.optim.AdamW(
        [{"params": group, "weight_decay": 0.0} for group in groups], lr=1e-2, fused=True
    )
    scheduler = get_scheduler("linear", optimizer, args.get_warmup_steps(7), 7)
    taught = copy.deepcopy(taught or teacher())
    if "teacher_optimizer" in options:
        options["teacher_optimizer"] = options["teacher_optimizer"](taught.parameters())
    coach = dt.Coach(
        *(make_student(module), optimizer, taught),
        **{"interval": INTERVAL, "window": WINDOW, "total_steps": 7, "accumulate": parts > 1},
        **{"adjoint": dt.Stored(), **options},
    )
    samples: Any = without("truth", trusted)
    loader = DataLoader(
        samples,
        batch_size=TRUSTED_BATCH,
        shuffle=True,
        collate_fn=lambda batch: labelled(trainer.data_collator(batch)),
    )
    coach.trust(loader)
    module.train()
    for place, (batch, generator) in enumerate(trainer.__dict__["seen"]):
        torch.set_rng_state(generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            loss = coach.loss(*labelled(batch))
        loss.backward()
        if (place + 1) % parts == 0:
            if "clip_norm" in options:
                nn.utils.clip_grad_norm_(trainable.values(), options["clip_norm"])
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            coach.update(loader)
    return coach


def of_classifier(module: nn.Module) -> dt.Student:
    return dt.Student(module, "classifier")


DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}


@pytest.mark.parametrize(
    ("settings", "config", "options"),
    [
        pytest.param(
            {"max_grad_norm": 0.1, "warmup_steps": 3}, {}, {"clip_norm": 0.1}, id="clipped"
        ),
        pytest.param({"max_grad_norm": 0}, DROPOUT, {}, id="measured, dropout"),
        pytest.param({"gradient_accumulation_steps": 2}, {}, {"clip_norm": 1.0}, id="accumulated"),
        pytest.param({"activation_checkpointing": True}, {}, {"clip_norm": 1.0}, id="checkpoints"),
        pytest.param(
            {"bf16": True},
            {},
            {"clip_norm": 1.0, "adjoint": dt.Stored(mixed_precision=True, tolerance=0.1)},
            id="bf16",
        ),
    ],
)
def test_a_run_ends_with_the_teacher_of_a_plain_loop(
    tmp_path: Path, settings: dict[str, Any], config: dict[str, Any], options: dict[str, Any]
) -> None:
    trainer = trained(bert(**config), arguments(tmp_path, **settings))
    assert trainer.coach is not None and trainer.coach.steps == 7
    module: Any = bert(**config)
    if "activation_checkpointing" in settings:  # a pass of its own, whose last bits are others
        module.activation_checkpointing_enable()
    coach = plain_loop(module, trainer, of_classifier, **options)
    assert apart(tensors(trainer.coach.teacher), tensors(teacher()))
    assert not apart(tensors(trainer.coach.teacher), tensors(coach.teacher))
    assert trainer.model is not None and not apart(tensors(trainer.model), tensors(module))


def per_sequence(logits: Tensor, y: Tensor) -> Tensor:
    each = nn.functional.cross_entropy(logits.transpose(1, 2), y, reduction="none")
    return each.sum(1) / (y >= 0).sum(1).clamp(min=1)


def tagged(of: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A label a token, of which the first two and the padding at the end have none."""
    found = []
    for place, row in enumerate(of):
        mask, labels = row["attention_mask"].clone(), row["input_ids"] % CLASSES
        if place % 2:
            mask[-2:] = 0
        labels[mask == 0] = -100
        labels[:2] = -100
        found.append({**row, "attention_mask": mask, "labels": labels})
    return found


def test_tokens_are_weighed_by_sequence(tmp_path: Path) -> None:
    def tagger() -> nn.Module:
        torch.manual_seed(3)
        return BertForTokenClassification(bert_config())

    def of_tokens(module: nn.Module) -> dt.Student:
        return dt.Student(module, "classifier", pool=masked_mean)

    trusted = tagged(TRUSTED)
    trainer = trained(
        tagger(),
        arguments(tmp_path, max_grad_norm=0),
        train_dataset=without("truth", tagged(TRAIN)),
        trusted_dataset=without("truth", trusted),
        coach_options={"teacher_optimizer": torch.optim.Adam},
        teacher=dt.Teacher([dt.Internal(8), dt.Loss()]),
    )
    assert trainer.coach is not None
    module = tagger()
    coach = plain_loop(
        *(module, trainer, of_tokens, trusted),
        loss=dt.MassedLoss(per_sequence, lambda y: (y >= 0).sum(1)),
        taught=trainer.teaching.teacher,
        teacher_optimizer=torch.optim.Adam,
    )
    assert not apart(tensors(trainer.coach.teacher), tensors(coach.teacher))
    assert trainer.coach.last_record is not None
    assert trainer.coach.last_record.gradient_norm > 0


def test_what_the_default_teacher_reads(tmp_path: Path) -> None:
    """Tokens have no probe, real-valued labels have another one."""
    one = [{**row, "labels": float(row["labels"])} for row in without("truth", TRAIN)]
    kinds = {
        "TrustedProbe": (bert(), without("truth", TRAIN)),
        "TrustedRegression": (bert(num_labels=1), one),
        "Loss": (BertForTokenClassification(bert_config()), without("truth", tagged(TRAIN))),
    }
    for name, (module, data) in kinds.items():
        trainer = trained(
            *(module, arguments(tmp_path, max_steps=1)),
            train_dataset=data,
            trusted_dataset=data,
            teacher=None,
            interval=1,
            window=1,
        )
        assert trainer.coach is not None
        features = trainer.coach.teacher.features
        assert [type(feature).__name__ for feature in features] == [name]  # type: ignore


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Stopped within a window, with dropout; the window and its draws are in the checkpoint."""
    args = arguments(tmp_path, save_strategy="steps", save_steps=5, max_steps=8)
    whole = trained(bert(**DROPOUT), args)
    torch.manual_seed(99)
    saved = tmp_path / "checkpoint-5"
    assert (saved / "deepteach.safetensors").is_file()
    again = Watched(
        bert(**DROPOUT),
        args,
        train_dataset=without("truth", TRAIN),
        trusted_dataset=without("truth", TRUSTED),
        teacher=teacher(),
        interval=INTERVAL,
        window=WINDOW,
        trusted_batch_size=TRUSTED_BATCH,
    )
    again.train(resume_from_checkpoint=str(saved))
    assert whole.coach is not None and again.coach is not None and again.coach.steps == 8
    assert len(again.__dict__["seen"]) == 3
    assert not apart(tensors(whole.coach.teacher), tensors(again.coach.teacher))
    assert whole.model is not None and again.model is not None
    assert not apart(tensors(whole.model), tensors(again.model))
    (saved / "deepteach.safetensors").unlink()
    with pytest.raises(dt.CheckpointError, match="holds no deepteach.safetensors"):
        again.train(resume_from_checkpoint=str(saved))


def test_evaluation_best_model_and_logs(tmp_path: Path) -> None:
    """The Trainer's own work goes on; where batches say what is right, logs say what was found."""

    def accuracy(prediction: Any) -> dict[str, float]:
        assert prediction.predictions.dtype == np.float32
        return {
            "accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())
        }

    truth = [{**row, "clean_labels": row["truth"], "index": i} for i, row in enumerate(TRAIN)]
    args = arguments(
        tmp_path,
        bf16=True,
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="steps",
        save_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        max_steps=6,
    )
    trainer = trained(
        *(bert(), args),
        train_dataset=without("truth", truth),
        eval_dataset=without("truth", [{**row, "index": 0} for row in TEST]),
        compute_metrics=accuracy,
    )
    assert trainer.state.best_model_checkpoint is not None and trainer.coach is not None
    logs = [line for line in trainer.state.log_history if "loss" in line]
    assert {"effective_sample_size", "trusted_loss", "trusted_accuracy"} <= logs[-1].keys()
    assert 0 <= logs[-1]["wrong_label_auroc"] <= 1
    assert len([line for line in trainer.state.log_history if "eval_accuracy" in line]) == 2
    first = trainer.coach
    trainer.train()
    assert trainer.coach is first and first.steps == 12
    unseen: Any = [{**row, "index": 0} for row in without("labels", without("truth", TEST))]
    assert np.shape(trainer.predict(unseen).predictions) == (12, CLASSES)


def test_a_second_training_begins_a_window_of_its_own(tmp_path: Path) -> None:
    """What became of the model in between (the best one loaded, say) no window may span."""
    trainer = trained(bert(), arguments(tmp_path, max_steps=4), window=3)
    assert trainer.coach is not None and trainer.model is not None
    assert trainer.coach.recorder.since_update == 1
    with torch.no_grad():
        for leaf in trainer.model.parameters():
            leaf.mul_(1.1)
    trainer.train()
    assert trainer.coach.steps == 8


def test_every_model_that_is_made_has_an_untaught_teacher(tmp_path: Path) -> None:
    given = teacher()
    trainer = Watched(
        args=arguments(tmp_path, max_steps=3),
        model_init=lambda: bert(),
        train_dataset=without("truth", TRAIN),
        trusted_dataset=without("truth", TRUSTED),
        teacher=given,
        interval=INTERVAL,
    )
    ends = []
    for _ in range(2):
        trainer.train()
        assert trainer.coach is not None and trainer.coach.steps == 3
        ends.append(tensors(trainer.coach.teacher))
    assert not apart(ends[0], ends[1]) and apart(ends[0], tensors(given))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_of_peft(tmp_path: Path) -> None:
    """Only what is trained is looked back through; the base model stays as it is."""
    from peft import LoraConfig, TaskType, get_peft_model

    def adapted() -> Any:
        module: Any = bert()
        return get_peft_model(
            module, LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["query", "value"])
        )

    start = tensors(adapted())
    trainer = trained(adapted(), arguments(tmp_path))
    module = adapted()
    layer = "base_model.model.classifier.modules_to_save.default"
    coach = plain_loop(module, trainer, lambda m: dt.Student(m, layer), clip_norm=1.0)
    assert trainer.coach is not None and trainer.coach.student.internal == layer
    assert not apart(tensors(trainer.coach.teacher), tensors(coach.teacher))
    assert apart(tensors(trainer.coach.teacher), tensors(teacher()))
    assert all(
        "lora" in name or "modules_to_save" in name for name in apart(start, tensors(module))
    )


class Own(nn.Module):
    """Not a model of transformers: its inputs and labels have names of their own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embed, self.head = nn.EmbeddingBag(20, 8), nn.Linear(8, CLASSES)

    def forward(self, words: Tensor, target: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.head(self.embed(words))
        loss = {} if target is None else {"loss": nn.functional.cross_entropy(logits, target)}
        return {**loss, "logits": logits}


def test_modules_and_label_names_of_one_s_own(tmp_path: Path) -> None:
    named = [{"words": row["input_ids"], "target": row["labels"]} for row in TRAIN]
    trainer = trained(
        *(Own(), arguments(tmp_path, label_names=["target"], optim="sgd")),
        train_dataset=named,
        trusted_dataset=named,
        eval_dataset=named,
    )
    assert trainer.coach is not None and isinstance(trainer.coach.adjoint, dt.Stored)
    assert "eval_loss" in trainer.evaluate()
    nameless = [{"words": row["words"]} for row in named]
    with pytest.raises(dt.DataError, match="no target among words: name its labels"):
        trained(Own(), arguments(tmp_path, label_names=["target"]), trusted_dataset=nameless)


def test_a_loss_of_one_s_own_is_not_taken_in_silence(tmp_path: Path) -> None:
    class Other(TeachTrainer):
        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
            return model(**inputs).loss

    data = without("truth", TRAIN)
    trainer = Other(bert(), arguments(tmp_path), train_dataset=data, trusted_dataset=data)
    with pytest.raises(dt.ConfigError, match="not taken on the coach's loss"):
        trainer.train()


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"trusted_dataset": None}, {}, "needs trusted samples: give trusted_dataset"),
        ({"compute_loss_func": lambda *_: 0}, {}, "compute_loss_func gives one number"),
        ({}, {"torch_compile": True}, "set torch_compile=False"),
        ({"coach_options": {"los": None}}, {}, "unknown option of the coach 'los', did you mean"),
        ({"student": "classifer"}, {}, "no submodule 'classifer'; candidates: classifier"),
        ({}, {"optim": "adafactor"}, "Adafactor"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, changes: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(dt.ConfigError, match=message) as told:
        trained(bert(), arguments(tmp_path, **settings), **changes)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("module", "labels", "options"),
    [
        (bert(), torch.tensor([0, 2]), {}),
        (bert(num_labels=1), torch.tensor([0.3, -1.0]), {"regression": True}),
        (bert(problem_type="multi_label_classification"), torch.rand(2, 3).round(), {}),
        (BertForTokenClassification(bert_config()), torch.tensor([[0, 1, -100], [2, 0, -100]]), {}),
        (
            GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2)),
            torch.tensor([[5, 1, 7], [2, 0, 3]]),
            {"shifted": True},
        ),
    ],
    ids=["classes", "regression", "labels", "tokens", "language"],
)
def test_the_mean_of_samples_is_what_the_model_reports(
    module: nn.Module, labels: Tensor, options: dict[str, bool]
) -> None:
    module.eval()
    ids = torch.tensor([[5, 1, 7], [2, 0, 3]])
    answer = module(input_ids=ids, labels=labels)
    losses = sample_losses(**options)(answer.logits, labels)
    assert losses.shape == (2,) and losses.min() > 0
    torch.testing.assert_close(losses.mean(), answer.loss)


def test_a_smoothed_loss_is_the_trainer_s(tmp_path: Path) -> None:
    args = arguments(tmp_path, label_smoothing_factor=0.2)
    batch = {"labels": torch.tensor([0, 2]), "logits": torch.randn(2, 3)}
    trainer: Any = Trainer(bert(), args)
    own = trainer.label_smoother({"logits": batch["logits"]}, batch["labels"])
    losses = sample_losses(smoothing=0.2)(batch["logits"], batch["labels"])
    torch.testing.assert_close(losses.mean(), own)


def test_the_mask_decides_what_is_averaged() -> None:
    state = torch.arange(12.0).view(2, 3, 2)
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    expected = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    assert torch.equal(masked_mean(state, {"attention_mask": mask}), expected)
    assert torch.equal(masked_mean(state, (1,)), state.mean(1))
    assert masked_mean(state[:, 0], {"attention_mask": mask}) is not None


def test_without_the_library_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "deepteach.integrations.huggingface")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r"pip install 'deepteach\[huggingface"):
        import deepteach.integrations.huggingface  # noqa: F401


def labelled_rows(label: Any, **more: Any) -> list[dict[str, Any]]:
    return [{**row, "labels": label(row["labels"]), **more} for row in without("truth", TRAIN)]


WRONG_ROWS: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "a class too many": (
        labelled_rows(lambda y: y + 1),
        {},
        "to 3, and the model has 3 classes: give it num_labels=4",
    ),
    "several columns": (
        labelled_rows(lambda y: y, more=1),
        {"label_names": ["labels", "more"], "remove_unused_columns": False},
        "no loss is known of several columns of labels (labels, more): give coach_options",
    ),
    "several right labels": (
        labelled_rows(lambda y: y, clean_labels=[1, 2]),
        {},
        "clean_labels have shape (8, 2), and labels (8,): give both alike",
    ),
}


@pytest.mark.parametrize("name", WRONG_ROWS)
def test_labels_that_do_not_fit_are_one_line(name: str, tmp_path: Path) -> None:
    found, settings, words = WRONG_ROWS[name]
    args = arguments(tmp_path, **settings)
    trusted = [{k: v for k, v in row.items() if k != "truth"} for row in TRUSTED]
    if "label_names" in settings:
        trusted = [{**row, "more": 0} for row in trusted]
    trainer = TeachTrainer(bert(), args, train_dataset=found, trusted_dataset=trusted)
    with pytest.raises((ConfigError, DataError)) as caught:
        trainer.train()
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("column", ["index", "group", "clean_labels"])
def test_columns_of_text_are_refused_before_they_are_lost(column: str, tmp_path: Path) -> None:
    """Collators leave text out of a batch, so that a source would be unknown in silence."""
    datasets = pytest.importorskip("datasets")
    columns = {"input_ids": [[1, 2]] * 8, "labels": [0, 1] * 4, column: ["a", "b"] * 4}
    train = datasets.Dataset.from_dict(columns)
    with pytest.raises(ConfigError, match=f"column '{column}' holds text, which no batch would"):
        TeachTrainer(bert(), arguments(tmp_path), train_dataset=train, trusted_dataset=TRUSTED)


@pytest.mark.parametrize("setting", ["interval", "window"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_pace_of_nothing_is_refused(setting: str, value: int, tmp_path: Path) -> None:
    own = without("truth", TRAIN), without("truth", TRUSTED)
    pace: dict[str, Any] = {"interval": 3, setting: value}
    trainer = TeachTrainer(
        bert(), arguments(tmp_path), train_dataset=own[0], trusted_dataset=own[1], **pace
    )
    with pytest.raises(ConfigError, match=f"{setting}"):
        trainer.train()


class Weighted(nn.Module):
    """Weighs classes in a loss of its own; `labels` have a default or not."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.words, self.fc = nn.Embedding(60, 8), nn.Linear(8, CLASSES)
        self.weight = torch.ones(CLASSES)
        self.weight[0] = weight

    def forward(self, input_ids: Tensor, attention_mask: Any = None, labels: Any = None) -> Any:
        logits = self.fc(self.words(input_ids).mean(1))
        own = nn.functional.cross_entropy
        loss = None if labels is None else own(logits, labels, weight=self.weight)
        return {"loss": loss, "logits": logits}


class Needing(Weighted):
    def forward(self, input_ids: Tensor, labels: Tensor) -> Any:  # type: ignore[override]
        return super().forward(input_ids, labels=labels)


def untrained(module: nn.Module, folder: Path, **settings: Any) -> TeachTrainer:
    own = without("truth", TRAIN), without("truth", TRUSTED)
    given = {"train_dataset": own[0], "trusted_dataset": own[1], "interval": INTERVAL}
    return TeachTrainer(module, arguments(folder), **{**given, **settings})


def test_a_loss_of_the_models_own_is_not_replaced_in_silence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Weighted has a loss of its own.*coach_options"):
        untrained(Weighted(50.0), tmp_path).train()
    untrained(Weighted(1.0), tmp_path).train()
    chosen = untrained(Weighted(50.0), tmp_path, coach_options={"loss": sample_losses()})
    chosen.train()
    assert chosen.coach is not None and chosen.coach.steps == 7


def test_a_model_that_needs_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'labels', which Needing.forward requires: give it the"):
        untrained(Needing(1.0), tmp_path).train()


def sentences(count: int) -> list[dict[str, Any]]:
    """Of several lengths, with a label for each word."""
    draw = torch.Generator().manual_seed(count)
    lengths = torch.randint(3, 9, (count,), generator=draw).tolist()
    words = [torch.randint(1, 10, (n,), generator=draw) for n in lengths]
    return [{"input_ids": w, "attention_mask": torch.ones_like(w), "labels": w % 2} for w in words]


def padded(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {
        name: nn.utils.rnn.pad_sequence([row[name] for row in batch], True, value)
        for name, value in fill.items()
    }


def tagger() -> nn.Module:
    return BertForTokenClassification(bert_config(num_labels=2))


def translator() -> nn.Module:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    config = T5Config(vocab_size=50, decoder_start_token_id=0, **sizes)  # type: ignore[arg-type]
    return T5ForConditionalGeneration(config)


@pytest.mark.parametrize("made", [tagger, translator])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_sentences_of_several_lengths(made: Any, accumulated: int, tmp_path: Path) -> None:
    torch.manual_seed(3)
    trainer = TeachTrainer(
        made(),
        arguments(tmp_path, gradient_accumulation_steps=accumulated),
        train_dataset=sentences(48),
        trusted_dataset=sentences(12),
        data_collator=padded,
        interval=INTERVAL,
    )
    trainer.train()
    assert trainer.coach is not None and trainer.coach.steps == 7
    record = trainer.coach.last_record
    assert record is not None and record.skipped is None and record.gradient_norm > 0
