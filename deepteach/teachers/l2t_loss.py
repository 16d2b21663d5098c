"""L2T-loss: a teacher that shapes the loss function itself (Wu et al., NeurIPS 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepteach.core.adjoint.stored import Stored
from deepteach.core.batches.ignored import mean_counted
from deepteach.core.losses import SampleLoss
from deepteach.core.snapshot import Snapshot
from deepteach.core.teacher import AbstractTeacher
from deepteach.errors import ConfigError
from deepteach.teachers.class_indices import class_indices
from deepteach.teachers.method import Method, recipe


class L2TLoss(AbstractTeacher):
    """l_i = -sigmoid( [W_t^T log p_i + b_t]_{y_i} ), W_t = sum_k a_k W_k, a = softmax(V s_t).

    s_t is the teacher's state: progress, accuracy on the batch, accuracy on the last trusted
    batch and its precision per class (Wu et al., NeurIPS 2018). The W_k start at the identity,
    with a little noise that lets them part, b_k and V at 0 and noise: teaching begins at the
    loss -sigmoid(log p_y). The sample weights are all 1.

    Args:
        classes: C.
        slots: how many W_k there are.
        mix: share of cross-entropy in the loss, in [0, 1] (the authors' code has 0.5).

    Raises:
        ConfigError: no slots, a mix outside [0, 1], or labels that are not class indices.
    """

    shapes_loss = True
    per_sample = False
    accuracy: Tensor
    precision: Tensor

    def __init__(self, classes: int, *, slots: int = 4, mix: float = 0.0) -> None:
        super().__init__()
        if slots < 1 or not 0 <= mix < 1:
            raise ConfigError(
                f"L2TLoss takes slots >= 1 and a mix in [0, 1), got slots={slots}, mix={mix}"
            )
        self.classes, self.mix = classes, mix
        noise = 0.01 * torch.randn(slots, classes, classes)
        self.form = nn.Parameter(torch.eye(classes).expand(slots, -1, -1) + noise)
        self.offset = nn.Parameter(torch.zeros(slots, classes))
        self.attention = nn.Parameter(0.1 * torch.randn(slots, 3 + classes))
        self.register_buffer("accuracy", torch.zeros(()))
        self.register_buffer("precision", torch.zeros(classes))

    def default_adjoint(self) -> Stored:
        return Stored()

    def state(self, snapshot: Snapshot) -> Tensor:
        """s_t, `(3 + classes,)`; a constant of the student."""
        right = (snapshot.logits.argmax(1) == snapshot.labels).to(self.form.dtype)
        right = mean_counted(right, snapshot.labels < 0).nan_to_num()
        head = torch.stack([right.new_tensor(snapshot.clock.progress), right, self.accuracy])
        return torch.cat([head, self.precision]).detach()

    def sample_losses(self, logits: Tensor, snapshot: Snapshot, loss: SampleLoss) -> Tensor:
        given = class_indices(snapshot, "L2TLoss", "another teacher")
        labels = given.clamp(min=0)
        share = (self.attention @ self.state(snapshot)).softmax(0)
        form, offset = torch.einsum("k,kij->ij", share, self.form), share @ self.offset
        scores = logits[:, : self.classes].log_softmax(1).to(form.dtype) @ form + offset
        shaped = -scores.gather(1, labels.unsqueeze(1)).squeeze(1).sigmoid()
        shaped = torch.where(given < 0, 0.0, shaped)  # what the loss ignores has none
        if not self.mix:
            return shaped
        return self.mix * loss(logits, given) + (1 - self.mix) * shaped

    @torch.no_grad()
    def fit(self, trusted: Snapshot) -> None:
        """Note the accuracy and the precision per class; 0 for a class never predicted."""
        kept = class_indices(trusted, "L2TLoss", "another teacher") >= 0
        if not kept.any():
            return
        predicted = trusted.logits[kept, : self.classes].argmax(1)
        right = (predicted == trusted.labels[kept]).to(self.accuracy)
        member = nn.functional.one_hot(predicted, self.classes).to(right)
        self.accuracy = right.mean()
        self.precision = (member.T @ right) / member.sum(0).clamp(min=1)


@recipe("l2t-loss")
def l2t_loss(classes: int, steps: int, slots: int = 4, mix: float = 0.5) -> Method:
    """A learned loss, taught through whole blocks of stored steps by the smooth 0/1 error.

    Blocks have 200 steps as published where the run has 50 of them, else a 50th of the run.
    Half cross-entropy, as in the authors' code: alone, the loss hardly trains at usual rates.
    """
    block = max(1, min(200, steps // 50))
    return Method(
        L2TLoss(classes, slots=slots, mix=mix),
        interval=block,
        window=block,
        teacher_rate=1e-3,
        validation_loss="smooth_error",
    )
