"""How well a ranking of samples finds those with wrong labels."""

from __future__ import annotations

from torch import Tensor


def noise_auroc(weight: Tensor, wrong: Tensor | None) -> float | None:
    """Chance that a wrong label weighs less than a right one; None where it is undefined."""
    if wrong is None or not wrong.any() or wrong.all():
        return None
    from sklearn.metrics import roc_auc_score  # seconds to import, and rarely needed

    return float(roc_auc_score(wrong.numpy(), -weight.double().numpy()))


def precision_among(trusted: Tensor, wrong: Tensor | None, count: int) -> float | None:
    """Share of wrong labels among the `count` samples that are trusted least.

    Where trust is equal across the cut, what a random order among those gives on average; so
    trust that is all alike gives the share of wrong labels. None where that is unknown, where
    no label is wrong, or where there are fewer samples.
    """
    if wrong is None or not wrong.any() or len(trusted) < count:
        return None
    trusted, wrong = trusted.double(), wrong.double()
    cut = trusted.sort().values[count - 1]
    below, level = trusted < cut, trusted == cut
    left = count - int(below.sum())
    return float(wrong[below].sum() + left * wrong[level].mean()) / count


def log_quality(weight: Tensor, loss: Tensor) -> Tensor:
    """`(n,)` log of w e^-loss: the teacher's trust in a label, times the taught student's own.

    The loss of a plain student says little of labels that it has learned by heart; a student
    that was taught not to has an opinion of its own.
    """
    return weight.double().clamp(min=1e-30).log() - loss.double()


def ranking_figures(
    trusted: Tensor, weight: Tensor, loss: Tensor, wrong: Tensor | None
) -> dict[str, float | None]:
    """How well the least trusted samples are those with wrong labels, beside the largest losses.

    Args:
        trusted: `(n,)` higher is better.
        weight: `(n,)` mean over the training.
        loss: `(n,)` at the end of the training.
        wrong: `(n,)` whether the given label is wrong, where known.
    """
    among = {f"noise_precision_{k}": precision_among(trusted, wrong, k) for k in (100, 1000)}
    of_loss = noise_auroc(-loss, wrong)
    both = noise_auroc(log_quality(weight, loss), wrong)
    auroc = noise_auroc(trusted, wrong)
    return {"noise_auroc": auroc, **among, "loss_auroc": of_loss, "quality_auroc": both}
