"""A loop of one's own: plain PyTorch, three lines of which belong to the coach."""

import numpy as np
import torch
from sklearn.datasets import load_digits

import deepteach as dt
from deepteach.data.noise import flip

pixels, y = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(y))
train, valid, test = np.split(order, [1000, 1200])
given, wrong = flip(y[train], 0.4, classes=10, generator=np.random.default_rng(1))
x = torch.from_numpy(pixels / 16).float()
x_train, y_train = x[train], torch.from_numpy(given)
trusted = (x[valid], torch.from_numpy(y[valid]))

torch.manual_seed(0)
model = torch.nn.Sequential(
    torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64), torch.nn.ReLU(),
    torch.nn.Linear(64, 10),
)  # fmt: skip
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
epochs, batch = 15, 32
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)

student = dt.Student(model, internal="4")  # the teacher reads what the last layer reads
coach = dt.Coach(student, optimizer, dt.Teacher([dt.TrustedProbe()]), interval=5, window=2)

for _ in range(epochs):
    for rows in torch.randperm(len(x_train)).split(batch):
        optimizer.zero_grad()
        coach.loss(x_train[rows], y_train[rows], index=rows).backward()
        torch.nn.utils.clip_grad_norm_(
            model.parameters(), float("inf")
        )  # measures, changes nothing
        optimizer.step()
        coach.update(trusted)  # teaches at every 5th step
    schedule.step()

accuracy = (model(x[test]).argmax(1) == torch.from_numpy(y[test])).float().mean().item()
ledger = coach.ledger  # mean weight over the training, by index
least = ledger.index[ledger.weights.argsort()[:100]]
print(f"test accuracy {accuracy:.3f}; wrong among the 100 least trusted: {wrong[least].sum()}")
