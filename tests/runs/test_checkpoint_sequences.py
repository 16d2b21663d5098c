"""Saves, crashes and damage in any order, beside a model of what must load."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from fake_disk import FILES, commit, killed_at, loaded, steps
from fake_disk import no_waiting_for_the_disk as no_waiting_for_the_disk
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from deepteach.errors import CheckpointError
from deepteach.runs.checkpoint import Store


class Sequences(RuleBasedStateMachine):
    """Saves, crashes and damage in any order, beside a model of what must load."""

    KEEP = 2

    @initialize()
    def start(self) -> None:
        self.place = tempfile.TemporaryDirectory()
        self.folder = Path(self.place.name) / "checkpoints"
        self.intact: dict[int, bool] = {}

    def teardown(self) -> None:
        self.place.cleanup()

    def good(self) -> list[int]:
        return sorted(step for step, fine in self.intact.items() if fine)

    def saved(self, step: int) -> None:
        self.intact[step] = True
        kept = [found for found in self.good() if found <= step][-self.KEEP :]
        if len(kept) == self.KEEP:
            self.intact = {s: fine for s, fine in self.intact.items() if s >= kept[0]}

    @rule(ahead=st.integers(1, 3))
    def save(self, ahead: int) -> None:
        step = max(self.good(), default=0) + ahead
        commit(self.folder, step, keep=self.KEEP)
        self.saved(step)

    @rule(ahead=st.integers(1, 3), moment=st.integers(0, 40))
    def crash(self, ahead: int, moment: int) -> None:
        step = max(self.good(), default=0) + ahead
        damaged = self.intact.get(step) is False
        finished = not killed_at(moment, lambda: commit(self.folder, step, keep=self.KEEP))
        if finished or (loads := self.loads()) is not None and loads == step:
            if finished:
                self.saved(step)
            else:  # maybe before the old ones went
                self.intact[step] = True
                self.intact = {s: self.intact[s] for s in steps(self.folder)}
        elif damaged and step not in steps(self.folder):
            del self.intact[step]

    @precondition(lambda self: self.intact)
    @rule(data=st.data(), file=st.sampled_from(FILES), how=st.integers(0, 3))
    def damage(self, data: st.DataObject, file: str, how: int) -> None:
        step = data.draw(st.sampled_from(sorted(self.intact)))
        path = self.folder / f"step-{step:08d}" / file
        if not self.intact[step]:
            return  # two flips could undo each other
        content = path.read_bytes()
        if how == 0:
            path.unlink()
        elif how == 1:
            path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        elif how == 2:
            flipped = bytearray(content)
            bit = data.draw(st.integers(0, 8 * len(content) - 1))
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
        else:
            path.with_name("extra").write_text("")
        self.intact[step] = False

    def loads(self) -> int | None:
        try:
            found = Store(self.folder, keep=self.KEEP).newest()
        except CheckpointError:
            return None
        return found.step if found else None

    @invariant()
    def newest_is_the_newest_intact_one(self) -> None:
        if not hasattr(self, "folder"):
            return
        assert steps(self.folder) == sorted(self.intact)
        good = self.good()
        if good:
            found = loaded(self.folder)
            assert found.step == good[-1]
            assert len(found.skipped) == sum(step > good[-1] for step in self.intact)
        elif self.intact:
            with pytest.raises(CheckpointError):
                Store(self.folder).newest()
        else:
            assert Store(self.folder).newest() is None


TestSequences = Sequences.TestCase
TestSequences.settings = settings(
    max_examples=20,
    stateful_step_count=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
