"""Read samples of a map-style dataset in batches, in worker processes ahead of time if asked.

What a sample is depends on (seed, epoch, row) alone: before each is read, the global generators
of torch, NumPy and Python, from which random augmentations draw, are seeded by that name. So
neither the number of workers nor where a run was resumed can be seen in what is read.

Built on torch's DataLoader; a request for rows takes the place of its indices.
"""

from __future__ import annotations

import atexit
import signal
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from deepteach.data.scaling import compact
from deepteach.data.validation import as_array, as_whole, features
from deepteach.errors import DataError
from deepteach.names import brief
from deepteach.rng import globals_kept, seed_by_name

STEADY = -1
"""The epoch of what is read to look at it: the same at any time of a run."""


class Request(NamedTuple):
    """Rows to read, named by an epoch."""

    rows: Sequence[int] | np.ndarray
    epoch: int = STEADY


@dataclass(frozen=True)
class Items:
    """A map-style dataset of `(x, ...)` samples, and how they are read.

    Args:
        dataset: the samples; whatever it draws, it draws from global generators.
        name: what it is called, in messages.
        seed: of all that is drawn.
        as_given: as in `from_arrays`.
        draws: whether anything is drawn at all.
        whole_bytes: bytes are no pixels, and are read as whole numbers.
    """

    dataset: Any
    name: str
    seed: int = 0
    as_given: bool = False
    draws: bool = True
    whole_bytes: bool = False

    def __len__(self) -> int:
        return len(self.dataset)

    def item(self, row: int, epoch: int = STEADY) -> tuple[Any, ...]:
        """One sample, `(x,)`, `(x, y)` or `(x, y, group)`.

        Raises:
            DataError: it cannot be read; with the row.
        """
        if self.draws:
            seed_by_name(self.seed, "item", epoch, row)
        try:
            found = self.dataset[row]
        except DataError as error:  # it names the file
            raise DataError(f"row {row} of {self.name}: {error}") from error
        except Exception as error:  # the user's code may raise anything
            raise DataError(
                f"row {row} of {self.name} cannot be read ({brief(error)[:200]}): mend it, or "
                "leave it out"
            ) from error
        if not isinstance(found, tuple | list) or not 1 <= len(found) <= 3:
            kind = type(found).__name__
            if isinstance(found, tuple | list):
                kind += f" of {len(found)} parts"
            raise DataError(
                f"item {row} of {self.name} is of type {kind}: expected (x, y) or (x, y, group)"
            )
        return tuple(found)

    def stacked(self, samples: Sequence[Any], rows: Sequence[int]) -> np.ndarray:
        """Inputs `(batch, ...)` as they are given."""
        try:
            arrays = [
                as_array(sample, f"item {row} of {self.name}")
                for row, sample in zip(rows, samples, strict=True)
            ]
        except DataError:  # it is a ValueError, too, and says what is wrong
            raise
        except (TypeError, ValueError) as error:
            raise DataError(
                f"items of {self.name} from row {rows[0]} on are no arrays ({brief(error)[:200]}): "
                "expected (x, y) of an array or tensor and its label"
            ) from error
        for row, array in zip(rows, arrays, strict=True):
            if array.shape != arrays[0].shape:
                raise DataError(
                    f"item {row} of {self.name} has shape {array.shape}, item {rows[0]} "
                    f"{arrays[0].shape}: expected samples of one shape"
                )
        x = np.stack(arrays)
        return features(as_whole(x) if self.whole_bytes else x, self.name, as_given=self.as_given)

    def compact(self, x: np.ndarray) -> np.ndarray:
        """As they travel: bytes, whole numbers, float32, or float64 where they will be scaled."""
        return np.ascontiguousarray(compact(x, wide=not self.as_given))

    def inputs(self, request: Request) -> Tensor:
        """Inputs of the rows, `(batch, ...)`. Raises DataError."""
        rows = [int(row) for row in request.rows]
        with globals_kept():
            samples = [self.item(row, request.epoch)[0] for row in rows]
        return torch.from_numpy(self.compact(self.stacked(samples, rows)))


@dataclass(frozen=True)
class Trouble:
    """A refusal on its way from a worker: an exception would come with its traceback."""

    message: str


class _Asked(Dataset[Any]):
    """What torch's DataLoader fetches from: it answers requests, in place of indices."""

    def __init__(self, answer: Callable[[Request], Any]) -> None:
        self.answer = answer

    def __getitem__(self, request: Any) -> Any:
        try:
            return self.answer(request)
        except DataError as error:
            return Trouble(str(error))


class Stream:
    """Answers to one list of requests after the other, read ahead by workers.

    Args:
        answer: what is done with a request, in a worker if there are any.
        workers: processes that read; with 0 a batch is read when it is asked for.
        pinned: whether batches lie in memory that CUDA copies from without waiting.
    """

    def __init__(
        self, answer: Callable[[Request], Any], workers: int = 0, *, pinned: bool = False
    ) -> None:
        self.answer, self.workers, self.pinned = answer, workers, pinned
        self._requests: Sequence[Request] = ()
        self._loader: DataLoader[Any] | None = None
        _OPEN.add(self)

    def __iter__(self) -> Iterator[Request]:
        """The requests, as the loader asks for them."""
        return iter(self._requests)

    def answers(self, requests: Sequence[Request]) -> Iterator[Any]:
        """The answers in order; whoever asks anew ends what was asked before.

        Raises:
            DataError: one line, of whichever sample cannot be read.
        """
        self._requests = requests
        if self._loader is None:
            self._loader = DataLoader(
                _Asked(self.answer),
                batch_size=None,
                sampler=self,  # type: ignore[arg-type] - it is only iterated over
                collate_fn=_as_it_is,
                num_workers=self.workers,
                pin_memory=self.pinned,
                persistent_workers=self.workers > 0,
                worker_init_fn=_deaf,
                generator=torch.Generator(),  # else the global one is drawn from
            )
        answers: Iterator[Any] | None = None
        for _ in requests:
            try:
                if answers is None:
                    answers = iter(self._loader)
                    _leave_to_the_reader(answers)
                found = next(answers)
            except (RuntimeError, OSError, EOFError) as error:  # of the pipe; items raise Trouble
                self.close()
                raise DataError(
                    f"a process that reads samples has ended ({brief(error)[:200]}): lower "
                    "workers, or give it more memory"
                ) from error
            if isinstance(found, Trouble):
                self.close()
                raise DataError(found.message)
            yield found

    def close(self) -> None:
        """End the workers; the next request starts new ones."""
        # Torch ends them when the iterator is collected, which a traceback may put off.
        iterator = getattr(self._loader, "_iterator", None)
        self._loader = None
        if iterator is not None:
            iterator._shutdown_workers()


def _leave_to_the_reader(iterator: Any) -> None:
    """When a worker is killed, tell whoever asks for the next answer, and nobody before.

    Torch's handler of SIGCHLD raises wherever the process is just then, in the middle of a step or
    of a commit. Who waits for an answer notices by itself, within some seconds.
    """
    if getattr(iterator, "_worker_pids_set", False):
        signal_handling._remove_worker_pids(id(iterator))  # type: ignore[attr-defined]
        iterator._worker_pids_set = False


def _as_it_is(value: Any) -> Any:
    return value


_OPEN: weakref.WeakSet[Stream] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Workers are deaf to SIGTERM, by which Python would end them, and then wait for them."""
    for stream in list(_OPEN):
        stream.close()


def _deaf(worker: int) -> None:
    """Signals to a group of processes end the run by its own process, after a commit."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
