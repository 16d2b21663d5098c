"""Text with transformers: a small BERT, sentiment labels of which 40 % are wrong."""

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

from deepteach.integrations.huggingface import TeachTrainer

GOOD = "good great fine lovely brilliant warm".split()
BAD = "bad poor dull awful tired cold".split()
REST = "the film was and plot with an actor scene music long it we saw".split()
VOCABULARY = {word: number for number, word in enumerate(["[PAD]", *GOOD, *BAD, *REST])}
draws = np.random.default_rng(0)


def review(label: int) -> list[str]:
    """Eight words, two of which tell the label."""
    words = [*draws.choice(REST, 6), *draws.choice(GOOD if label else BAD, 2)]
    return [str(word) for word in draws.permutation(words)]


def rows(count: int, wrong: float = 0.0) -> list[dict[str, object]]:
    """What a tokenizer and a `datasets.Dataset` would give; `clean_labels` only measures."""
    found = []
    for truth in draws.integers(2, size=count).tolist():
        ids = torch.tensor([VOCABULARY[word] for word in review(truth)])
        label = 1 - truth if draws.random() < wrong else truth
        found.append({"input_ids": ids, "labels": label, "clean_labels": truth})
    return found


torch.manual_seed(0)
config = BertConfig(
    vocab_size=len(VOCABULARY), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
    intermediate_size=64, max_position_embeddings=16, num_labels=2,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip
trainer = TeachTrainer(  # was: Trainer(
    BertForSequenceClassification(config),
    TrainingArguments("runs/text", num_train_epochs=6, per_device_train_batch_size=32,
                      learning_rate=5e-3, logging_steps=25, report_to=[], use_cpu=True,
                      disable_tqdm=True, dataloader_pin_memory=False),
    train_dataset=rows(800, wrong=0.4),
    eval_dataset=rows(200),
    trusted_dataset=rows(60),
)  # fmt: skip
trainer.train()

answer = trainer.predict(rows(200))
accuracy = float((answer.predictions.argmax(1) == answer.label_ids).mean())
logs = [entry for entry in trainer.state.log_history if "wrong_label_auroc" in entry]
print(f"test accuracy {accuracy:.3f}; AUROC of wrong labels {logs[-1]['wrong_label_auroc']:.3f}")
