"""A teacher and a feature of one's own, trained by the package and in a loop alike."""

import numpy as np
import torch
from sklearn.datasets import load_digits

import deepteach as dt
from deepteach.data.noise import flip


class Margin(dt.Feature):
    """By how much the student prefers the given label to the best other one."""

    width = 1

    def forward(self, snapshot: dt.Snapshot) -> torch.Tensor:
        given = snapshot.labels.unsqueeze(1)
        own = snapshot.logits.gather(1, given)
        return own - snapshot.logits.scatter(1, given, -torch.inf).amax(1, keepdim=True)


class Gate(dt.AbstractTeacher):
    """w = sigmoid(a m + b) of the margin m: two numbers, taught by the meta-gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.margin = Margin()
        self.line = torch.nn.Parameter(torch.tensor([0.0, 0.0]))  # a, b: plain training at first

    def forward(self, snapshot: dt.Snapshot) -> torch.Tensor:
        a, b = self.line
        return torch.nn.functional.logsigmoid(a * self.margin(snapshot).squeeze(1) + b)


x, y = load_digits(return_X_y=True)
x, order = (x / 16).astype("float32"), np.random.default_rng(0).permutation(len(y))
train, valid = np.split(order, [1000])
given, wrong = flip(y[train], 0.4, classes=10, generator=np.random.default_rng(1))

found = {}
for name, teacher in {
    "my feature, read beside the probe": dt.Teacher([Margin(), dt.TrustedProbe()]),
    "my teacher": Gate(),
}.items():
    result = dt.train(
        "mlp", (x[train], given), (x[valid[:200]], y[valid[:200]]), y_clean=y[train],
        teacher=teacher, epochs=15, baseline=False,
    )  # fmt: skip
    found[name] = result.summary["noise_auroc"]
    print(f"{name}: AUROC of wrong labels {found[name]:.3f}")
