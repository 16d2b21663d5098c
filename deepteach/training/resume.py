"""What of a run a checkpoint holds, and how a run goes on from one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from deepteach.data.identity import same_sketch
from deepteach.distributed.collectives import Ranks
from deepteach.errors import CheckpointError, DataError
from deepteach.names import brief
from deepteach.rng import generator_states, set_generator_states
from deepteach.runs.checkpoint import Store
from deepteach.runs.serialization import from_bytes, to_bytes
from deepteach.training.loop import TrainingLoop
from deepteach.training.run_folder import versions
from deepteach.training.weight_history import WeightHistory


@dataclass
class RunLog:
    """What a run has noted so far, beside what the loop itself holds."""

    metrics: list[dict[str, Any]] = field(default_factory=list)
    """A line per epoch."""
    history: WeightHistory = field(default_factory=WeightHistory)
    """The weights after each epoch."""
    seconds: float = 0.0
    quality: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Measurements of the meta-gradient, by when they were made."""


def state_of(loop: TrainingLoop, log: RunLog) -> dict[str, Any]:
    """The tree that is committed, of all ranks; all of them must ask for it."""
    ranks = loop.ranks
    state = {
        "training": loop.state_dict(),
        "metrics": log.metrics,
        **log.history.state_dict(),
        "generators": generator_states(loop.device),
    }
    if ranks.count > 1:
        # Recorded steps are of the rank's own samples; the states they keep are not.
        steps = [{**step, "state": None} for step in state["training"]["coach"]["steps"]]
        own = {"steps": steps, "generators": state["generators"]}
        state["others"] = [from_bytes(raw) for raw in ranks.collected(to_bytes(own))[1:]]
    return state


def meta_of(
    log: RunLog, ranks: Ranks, data: dict[str, str], sketch: dict[str, list[float]]
) -> dict[str, Any]:
    """What is committed beside the tree: how long it took, and what its bits depend on.

    `data` and `sketch` are what its data are known by (`identity_of`, `sketch_of`).
    """
    known = {"data": data, "sketch": sketch}
    return {"seconds": log.seconds, "quality": log.quality, **known, **_surroundings(ranks)}


def _surroundings(ranks: Ranks) -> dict[str, Any]:
    return {"threads": torch.get_num_threads(), "processes": ranks.count, **versions()}


def restore(
    loop: TrainingLoop,
    log: RunLog,
    store: Store,
    say: Callable[[str], None],
    warn: Callable[[str], None],
    data: dict[str, str],
    sketch: dict[str, list[float]],
) -> bool:
    """Go on from the newest verified checkpoint; False where none was committed yet.

    `say` is told what was found, and `warn` what must not be missed; `data` and `sketch` are as in
    `meta_of`.

    Raises:
        CheckpointError: all are damaged, or one does not fit this run.
        DataError: its labels, rows, sources, or inputs in memory are others now.
    """
    ranks = loop.ranks
    found = store.newest()
    step = -1 if found is None else found.step
    if ranks.told(step) != step:
        raise CheckpointError(
            f"rank {ranks.rank} finds another newest checkpoint in {store.folder} than "
            "rank 0: give all ranks one shared folder"
        )
    if found is None:
        say("no checkpoint yet: training starts at step 0")
        return False
    for skipped in found.skipped:
        warn(f"damaged checkpoint passed over: {skipped}")
    saved, here = {"processes": 1, **found.meta}, _surroundings(ranks)
    before = saved.get("data", data)  # earlier versions did not note it
    _refuse_other_labels(before, data, found.path)
    for part, known in saved.get("sketch", {}).items():
        if part in sketch and not same_sketch(known, sketch[part]):
            raise DataError(
                f"the inputs {part} have changed since {found.path} was written: go on with those "
                "that the run began with, or choose another --out"
            )
    if before["inputs"] != data["inputs"]:
        warn("not bit-reproducible: the inputs changed since the checkpoint")
    changed = [key for key in here if saved.get(key) != here[key]]
    if changed:
        say(f"not bit-reproducible: {', '.join(changed)} changed since the checkpoint")
    tree = found.tree
    try:
        _take_own(tree, saved["processes"], ranks)
        if (
            "generators" in tree
            and tree["generators"].keys() != generator_states(loop.device).keys()
        ):
            say("not bit-reproducible: the device changed since the checkpoint")
            # Its generators are none of this one's, and the window's passes drew from them.
            tree["generators"] = {"cpu": tree["generators"]["cpu"]}
            tree["training"]["coach"]["steps"] = []
        loop.load_state_dict(tree["training"])
        log.metrics = tree["metrics"]
        log.history.load_state_dict(tree)
        log.seconds = float(found.meta["seconds"])
        log.quality = found.meta.get("quality", {})
        if "generators" in tree or ranks.count == 1:
            set_generator_states(tree["generators"])
    except (RuntimeError, LookupError, TypeError, ValueError) as error:
        writer = found.meta.get("deepteach", "another version")
        raise CheckpointError(
            f"the checkpoint {found.path} does not fit this run ({brief(error)[:200]}): it was "
            f"written by deepteach {writer}; go on with that one and the same student, or "
            "choose another --out"
        ) from error
    say(f"resumed at step {found.step} of {loop.total}")
    return True


def _refuse_other_labels(before: dict[str, str], data: dict[str, str], path: Path) -> None:
    """Raise DataError unless labels, rows and sources are those that a checkpoint knew."""
    go_on = "go on with those that the run began with, or choose another --out"
    labels, sources = (before["labels"] == data[key] for key in ("labels", "sources"))
    if "sources" in before:
        if not labels:
            raise DataError(
                f"the labels, or the rows, of the data have changed since {path} was written: "
                f"{go_on}"
            )
        if before["sources"] != data["sources"]:
            raise DataError(
                f"the sources of the data have changed since {path} was written: {go_on}"
            )
    elif labels and not sources:
        raise DataError(
            f"{path} was written by an earlier version, without sources, and the data have some "
            "now: if the column group is read as the sources now, rename it to go on with this "
            "run; or choose another --out"
        )
    elif not sources:
        raise DataError(
            f"the labels, rows or sources of the data have changed since {path} was written: "
            f"{go_on}"
        )


def _take_own(tree: dict[str, Any], processes: int, ranks: Ranks) -> None:
    """Put this rank's share of a checkpoint in the place of rank 0's."""
    coach = tree["training"]["coach"]
    if processes != ranks.count:
        # Batches are spread differently now: the window begins anew.
        coach["steps"] = []
        if not ranks.first:
            del tree["generators"]
    elif not ranks.first:
        own = tree["others"][ranks.rank - 1]
        pairs = zip(own["steps"], coach["steps"], strict=True)
        coach["steps"] = [{**step, "state": first["state"]} for step, first in pairs]
        tree["generators"] = own["generators"]
