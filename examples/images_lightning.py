"""Images with Lightning: a module of one's own, automatic optimisation, and the callback."""

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from deepteach.data.noise import flip
from deepteach.integrations.lightning import Teach

pixels, y = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(y))
train, valid, test = np.split(order, [1000, 1200])
given, wrong = flip(y[train], 0.4, classes=10, generator=np.random.default_rng(1))
images = torch.from_numpy(pixels / 16).float().view(-1, 1, 8, 8)
classes = torch.from_numpy(y)


class Digits(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
            torch.nn.Flatten(), torch.nn.Linear(16 * 16, 64), torch.nn.ReLU(),
        )  # fmt: skip
        self.head = torch.nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.body(x))

    def training_step(self, batch, _):
        x, y = batch
        return self.coach.loss(x, y)  # was: F.cross_entropy(self(x), y)

    def validation_step(self, batch, _):
        x, y = batch
        self.log("valid_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


torch.manual_seed(0)
teach = Teach((images[valid], classes[valid]))
trainer = Trainer(
    max_epochs=10, callbacks=[teach], gradient_clip_val=5.0, accelerator="cpu", logger=False,
    enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
)  # fmt: skip
module = Digits()
loader = DataLoader(TensorDataset(images[train], torch.from_numpy(given)), 32, shuffle=True)
trainer.fit(module, loader, DataLoader(TensorDataset(images[valid], classes[valid]), 200))

accuracy = (module(images[test]).argmax(1) == classes[test]).float().mean().item()
weights = teach.coach.weights(images[train], torch.from_numpy(given))
print(f"test accuracy {accuracy:.3f}")
print(f"mean weight: right {weights[~wrong].mean():.2f}, wrong {weights[wrong].mean():.2f}")
