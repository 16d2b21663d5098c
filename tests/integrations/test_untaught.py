"""An untaught teacher changes nothing: what a plain host leaves, or one line that refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from tiny_hosts import bert_config, tensors
from torch import Tensor, nn

import deepteach as dt
from deepteach.integrations.huggingface import TeachTrainer

WORDS, LONG, SIZE = 20, 6, 4
SMALL: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 8,
}
GPT: dict[str, Any] = {
    "vocab_size": WORDS,
    "n_embd": 8,
    "n_layer": 1,
    "n_head": 2,
    "n_positions": 8,
}
STILL: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


class OwnLlama(tf.LlamaForCausalLM):
    """By its name no causal language model, by its loss one."""


def gpt2(**changes: Any) -> nn.Module:
    return tf.GPT2LMHeadModel(tf.GPT2Config(**GPT, **STILL, **changes))


def t5() -> nn.Module:
    sizes: dict[str, Any] = {
        "decoder_start_token_id": 0,
        "d_model": 8,
        "d_kv": 4,
        "d_ff": 12,
        "num_layers": 1,
        "num_heads": 2,
    }
    return tf.T5ForConditionalGeneration(tf.T5Config(vocab_size=WORDS, dropout_rate=0.1, **sizes))


def lora() -> nn.Module:
    peft = pytest.importorskip("peft")
    chosen = peft.LoraConfig(
        r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(gpt2(), chosen)


def classifier(**changes: Any) -> nn.Module:
    return tf.BertForSequenceClassification(bert_config(**changes))


def sentences(count: int, labels: str, seed: int) -> list[dict[str, Tensor]]:
    """Of several lengths, filled up to one."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        mask = torch.arange(LONG) < torch.randint(3, LONG + 1, (), generator=draw)
        words = torch.randint(5, WORDS, (LONG,), generator=draw) * mask
        made = {
            "words": torch.where(mask, words, -100),
            "kinds": torch.where(mask, words % 3, -100),
            "class": torch.randint(3, (), generator=draw),
            "several": torch.randint(2, (3,), generator=draw).float(),
            "values": torch.randn(3, generator=draw),
        }
        row = {"input_ids": words, "attention_mask": mask.long(), "labels": made[labels]}
        found.append({**row, "decoder_input_ids": words} if labels == "target" else row)
    return found


def ended(kind: type, module: nn.Module, labels: str, folder: Path, **settings: Any) -> nn.Module:
    usual: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": SIZE,
        "max_steps": 5,
        "learning_rate": 0.5,
        "optim": "sgd",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
        "log_level": "error",
    }
    more: dict[str, Any] = {}
    if kind is TeachTrainer:
        more = {
            "trusted_dataset": sentences(12, labels, 2),
            "teacher": dt.Uniform(),
            "coach_options": settings.pop("options", {}),
        }
    settings.pop("options", None)
    args = tf.TrainingArguments(**{**usual, **settings})
    kind(module, args, train_dataset=sentences(40, labels, 1), **more).train()
    return module


SMOOTHED = {"label_smoothing_factor": 0.2}
PARTS = {"gradient_accumulation_steps": 2}
HELD: dict[str, tuple[Callable[[], nn.Module], str, dict[str, Any]]] = {
    "llama": (lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL)), "words", {}),
    "llama in parts": (lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL)), "words", PARTS),
    "a subclass": (lambda: OwnLlama(tf.LlamaConfig(**SMALL)), "words", {}),
    "a subclass in parts": (lambda: OwnLlama(tf.LlamaConfig(**SMALL)), "words", PARTS),
    "a subclass, smoothed": (lambda: OwnLlama(tf.LlamaConfig(**SMALL)), "words", SMOOTHED),
    "bert as decoder": (
        lambda: tf.BertLMHeadModel(bert_config(is_decoder=True)),
        "words",
        {},
    ),
    "gpt2": (gpt2, "words", {}),
    "gpt2 untied": (lambda: gpt2(tie_word_embeddings=False), "words", {}),
    "gpt2 smoothed": (gpt2, "words", SMOOTHED),
    "gpt2 smoothed in parts": (gpt2, "words", {**SMOOTHED, **PARTS}),
    "gpt2 with adapters": (lora, "words", {}),
    "openai-gpt": (
        lambda: tf.OpenAIGPTLMHeadModel(tf.OpenAIGPTConfig(**GPT, **STILL)),
        "words",
        {},
    ),
    "openai-gpt smoothed": (
        lambda: tf.OpenAIGPTLMHeadModel(tf.OpenAIGPTConfig(**GPT, **STILL)),
        "words",
        SMOOTHED,
    ),
    "masked words": (lambda: tf.BertForMaskedLM(bert_config()), "words", {}),
    "translation with dropout": (t5, "words", {}),
    "kinds of words": (lambda: tf.BertForTokenClassification(bert_config()), "kinds", {}),
    "kinds of words, smoothed": (
        lambda: tf.BertForTokenClassification(bert_config()),
        "kinds",
        SMOOTHED,
    ),
    "classes in bf16": (lambda: classifier().bfloat16(), "class", {}),
    "words in bf16": (lambda: gpt2().bfloat16(), "words", {}),
    "several labels": (
        lambda: classifier(problem_type="multi_label_classification"),
        "several",
        SMOOTHED,
    ),
    "several values": (lambda: classifier(problem_type="regression"), "values", {}),
}


@pytest.mark.parametrize("name", HELD)
@pytest.mark.filterwarnings("ignore:Label smoothing is not compatible")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_an_untaught_trainer_leaves_what_the_plain_one_does(name: str, tmp_path: Path) -> None:
    make, labels, settings = HELD[name]
    torch.manual_seed(3)
    module = make()
    before = copy.deepcopy(module)
    want = ended(tf.Trainer, copy.deepcopy(module), labels, tmp_path, **settings)
    found = ended(TeachTrainer, module, labels, tmp_path, **settings)
    half = next(found.parameters()).dtype == torch.bfloat16
    ends = (tensors(each).values() for each in (found, want, before))
    for own, plain, start in zip(*ends, strict=True):
        moved = float((plain - start).abs().max())
        assert float((own - plain).abs().max()) <= (0.05 if half else 1e-4) * moved + 1e-7


class WeighedClasses(tf.BertForSequenceClassification):
    """A class of many has a weight in the loss."""

    def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> Any:  # type: ignore[override]
        found: Any = super().forward(input_ids, attention_mask=attention_mask)
        if labels is not None:
            found.loss = self.own(found.logits, labels)
        return found

    def own(self, logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, labels, weight=torch.tensor([1.0, 1.0, 10.0]))


class Smoothing(WeighedClasses):
    def own(self, logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, labels, label_smoothing=0.3)


class Anchored(WeighedClasses):
    """Its further term is 0 with no gradient where training starts."""

    start: Any = None

    def own(self, logits: Tensor, labels: Tensor) -> Tensor:
        here = self.classifier.weight
        if self.start is None:
            self.start = here.detach().clone()
        return nn.functional.cross_entropy(logits, labels) + (here - self.start).square().sum()


class TrainsOnMore(WeighedClasses):
    """In train mode only there is a further term."""

    def own(self, logits: Tensor, labels: Tensor) -> Tensor:
        more = 0.01 * self.classifier.weight.square().sum() if self.training else 0.0
        return nn.functional.cross_entropy(logits, labels) + more


class WeighedWords(tf.BertForTokenClassification):
    def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> Any:  # type: ignore[override]
        found: Any = super().forward(input_ids, attention_mask=attention_mask)
        if labels is not None:
            found.loss = nn.functional.cross_entropy(
                found.logits.movedim(-1, 1), labels, weight=torch.tensor([1.0, 2.0, 3.0])
            )
        return found


def mixtral() -> nn.Module:
    experts: dict[str, Any] = {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 2,
    }
    return tf.MixtralForCausalLM(tf.MixtralConfig(**SMALL, **experts, output_router_logits=True))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "classes that have weights": (lambda: WeighedClasses(bert_config()), "class"),
    "smoothing in the model": (lambda: Smoothing(bert_config()), "class"),
    "a term that is 0 at first": (lambda: Anchored(bert_config()), "class"),
    "a term of train mode": (lambda: TrainsOnMore(bert_config()), "class"),
    "words that have weights": (lambda: WeighedWords(bert_config()), "kinds"),
    "routers": (mixtral, "words"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_loss_of_a_model_that_is_not_trained_is_refused(name: str, tmp_path: Path) -> None:
    make, labels = REFUSED[name]
    torch.manual_seed(3)
    module = make()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(dt.ConfigError, match="has a loss of its own.*coach_options=") as told:
        ended(TeachTrainer, module, labels, tmp_path)
    assert "\n" not in str(told.value)
    assert all(torch.equal(leaf, before[key]) for key, leaf in module.state_dict().items())


def test_the_remedy_is_the_models_own_loss(tmp_path: Path) -> None:
    def each(logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, labels, reduction="none")

    weights = torch.tensor([1.0, 1.0, 10.0])
    torch.manual_seed(3)
    module = WeighedClasses(bert_config())
    want = ended(tf.Trainer, copy.deepcopy(module), "class", tmp_path)
    options = {"loss": dt.MassedLoss(each, lambda labels: weights[labels])}
    found = ended(TeachTrainer, module, "class", tmp_path, options=options)
    for own, plain in zip(found.parameters(), want.parameters(), strict=True):
        torch.testing.assert_close(own, plain, rtol=1e-4, atol=1e-6)
