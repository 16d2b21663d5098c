"""Event files for TensorBoard, in the folder of each run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from deepteach.errors import ConfigError
from deepteach.loggers.base import AbstractLogger, LoggedRun, numbers


class TensorBoard(AbstractLogger):
    """Scalars over training steps, and the settings as hyperparameters.

    Args:
        folder: event files go to `folder/METHOD`; where it is None, to `tensorboard/` in the run's.

    Raises:
        ConfigError: tensorboard is not installed; or, when a run begins, there is no folder.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "the logger tensorboard needs tensorboard: pip install 'deepteach[tensorboard]'"
            ) from error
        self._writer_of, self.folder = SummaryWriter, folder
        self._settings: Mapping[str, Any] = {}

    def begin(self, run: LoggedRun) -> Collection[int]:
        if self.folder is None and run.folder is None:
            raise ConfigError(
                "the logger tensorboard has no folder to write to: name the run's (out), or "
                "TensorBoard(folder)"
            )
        own = None if run.folder is None else run.folder / "tensorboard"
        place = own if self.folder is None else Path(self.folder) / run.method
        there = _epochs(place) if run.lines else set()
        self._settings = {} if there else run.settings
        self._writer = self._writer_of(str(place))
        return there

    def epoch(self, line: Mapping[str, Any]) -> None:
        values = numbers(line)
        if self._settings:
            from torch.utils.tensorboard.summary import hparams

            # `add_hparams` would do so in a run of its own beside this one.
            figures = {name: 0 for name in values if name.startswith(("valid_", "test_", "noise_"))}
            for part in hparams(dict(self._settings), figures):
                self._writer._get_file_writer().add_summary(part)
            self._settings = {}
        for name, value in values.items():
            self._writer.add_scalar(name, value, line["step"])
        self._writer.flush()

    def end(self, finished: bool) -> None:
        self._writer.close()


def _epochs(place: Path | None) -> set[int]:
    """The epochs that event files there tell of; none where the folder is not there yet."""
    if place is None or not place.is_dir():
        return set()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(place), size_guidance={"scalars": 0}).Reload()
    if "epoch" not in found.Tags()["scalars"]:
        return set()
    return {int(one.value) for one in found.Scalars("epoch")}
