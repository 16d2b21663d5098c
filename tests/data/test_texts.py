"""Texts in one piece of memory are those that were put in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deepteach.data.texts import Files, Texts

ANY = st.text(st.characters(exclude_categories=("Cs",))) | st.just("a\udcff")  # a byte, no UTF-8


@given(st.lists(ANY, max_size=40))
def test_as_a_list(texts: list[str]) -> None:
    made = Texts.of(iter(texts))
    assert list(made) == texts and len(made) == len(texts)
    assert [made[i] for i in range(-len(texts), len(texts))] == [*texts, *texts]
    assert list(made[3:9:2]) == texts[3:9:2]
    places = np.arange(len(texts))[::-2]
    assert list(made.take(places)) == texts[::-2]
    assert all(text in made and made.index(text) == texts.index(text) for text in texts)
    assert all(made.count(text) == texts.count(text) for text in texts)


def test_more_than_are_held_at_once() -> None:
    texts = [f"{'ä' if i % 700 == 5 else 'a'}{i}" for i in range(5000)]
    made = Texts.of(texts)
    assert list(made) == texts and made[4321] == texts[4321]
    assert made.hold("ä") and not made.hold("ö")


def test_files_of_a_folder() -> None:
    files = Files(Texts.of(["a/b.png", "/else/c.png", "d.png"]), Path("/base"))
    assert list(files) == [Path("/base/a/b.png"), Path("/else/c.png"), Path("/base/d.png")]
    assert list(files[1:]) == list(files)[1:] == list(files.take(np.array([1, 2])))
