"""The figures of a run, as matplotlib figures: `learning_curves(run).savefig("a.svg")`."""

from deepteach.report.plots.curves import diagnostics, gain_intervals, learning_curves, mean_curves
from deepteach.report.plots.samples import (
    figure2,
    states_by_class,
    states_by_weight,
    states_map,
    suspects_grid,
    weight_against_loss,
    weight_histogram,
    weights_over_time,
)

__all__ = [
    "diagnostics",
    "figure2",
    "gain_intervals",
    "learning_curves",
    "mean_curves",
    "states_by_class",
    "states_by_weight",
    "states_map",
    "suspects_grid",
    "weight_against_loss",
    "weight_histogram",
    "weights_over_time",
]
