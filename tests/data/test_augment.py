"""Batched augmentation against the same crops made one by one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from deepteach.data.augment import Augment, identity, resolve
from deepteach.errors import ConfigError

torch.set_num_threads(1)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 6, c: int = 3, h: int = 8, w: int = 10) -> torch.Tensor:
    return torch.randn(n, c, h, w, generator=seeded(0))


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("pad", [0, 1, 4])
def test_equals_one_sample_at_a_time(pad: int, flip: bool) -> None:
    x = images()
    n, _, h, w = x.shape
    draws = seeded(5)
    top, left = torch.randint(2 * pad + 1, (2, n, 1), generator=draws)[..., 0].tolist()
    mirror = torch.randint(2, (n,), generator=draws).tolist() if flip else [0] * n
    assert not flip or 0 < sum(mirror) < n
    for i, out in enumerate(Augment(pad, flip)(x, seeded(5))):
        padded = F.pad(x[i : i + 1], (pad, pad, pad, pad), mode="reflect")[0]
        crop = padded[:, top[i] : top[i] + h, left[i] : left[i] + w]
        assert torch.equal(out, crop.flip(2) if mirror[i] else crop)


def test_same_generator_state_same_batch() -> None:
    x, augment = images(), Augment()
    assert torch.equal(augment(x, seeded(1)), augment(x, seeded(1)))
    assert not torch.equal(augment(x, seeded(1)), augment(x, seeded(2)))
    draws = seeded(1)
    first = augment(x, draws)
    assert not torch.equal(first, augment(x, draws))


def test_global_generator_and_input_are_left_alone() -> None:
    x = images()
    before, state = x.clone(), torch.get_rng_state()
    out = Augment()(x, seeded(1))
    assert torch.equal(x, before) and torch.equal(state, torch.get_rng_state())
    assert out.shape == x.shape and out.dtype == x.dtype
    assert out.data_ptr() != x.data_ptr()


def test_all_crops_and_both_sides_occur_equally_often() -> None:
    x = torch.arange(25.0).reshape(1, 1, 5, 5).expand(4000, 1, 5, 5)
    out = Augment(pad=1, flip=True)(x, seeded(0))
    kinds, counts = out.flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 9 * 2
    assert counts.min() > 4000 / 18 * 0.75 and counts.max() < 4000 / 18 * 1.25


@pytest.mark.parametrize(
    ("height", "width", "pad"), [(32, 40, 4), (16, 16, 2), (12, 8, 1), (7, 9, 0)]
)
def test_the_crop_moves_by_an_eighth_of_the_shorter_side(height: int, width: int, pad: int) -> None:
    place = torch.arange(float(height * width)).reshape(1, 1, height, width)
    out = Augment(flip=False)(place.expand(2000, 1, height, width), seeded(0))
    middle = out[:, 0, height // 2, width // 2].long()
    for found, side, at in (
        (middle // width, height, height // 2),
        (middle % width, width, width // 2),
    ):
        assert found.unique().tolist() == list(range(at - pad, at + pad + 1)), side


def test_no_pad_no_flip_is_the_identity() -> None:
    x = images()
    assert torch.equal(Augment(pad=0, flip=False)(x, seeded(0)), x)


def test_tables_pass_through_without_a_draw() -> None:
    x, draws = torch.randn(4, 7, generator=seeded(0)), seeded(3)
    state = draws.get_state()
    assert Augment()(x, draws) is x
    assert identity(x, draws) is x
    assert torch.equal(state, draws.get_state())


@pytest.mark.parametrize(("pad", "side"), [(8, 8), (9, 8)])
def test_too_small_images_are_refused(pad: int, side: int) -> None:
    with pytest.raises(ConfigError, match=f"pad is {pad} for images of {side}x12"):
        Augment(pad)(torch.zeros(1, 1, side, 12), seeded(0))


def test_negative_pad_is_refused() -> None:
    with pytest.raises(ConfigError, match="pad is -1"):
        Augment(pad=-1)


def test_resolve_by_switch_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own function, its mistakes in one line."""
    (tmp_path / "my_augmentation.py").write_text(
        "import torch\n"
        "def jitter(x, generator):\n"
        "    return x + torch.randn(x.shape, generator=generator)\n"
        "def fewer(x, generator):\n    return x[1:]\n"
        "def broken(x, generator):\n    raise KeyError('a\\nb')\n"
        "class Made: ...\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve(False) is identity and resolve(True) == Augment()
    x = torch.zeros(4, 2)
    drawn = resolve("my_augmentation:jitter")(x, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, torch.randn(4, 2, generator=torch.Generator().manual_seed(1)))
    for name, words in (
        ("fewer", r"returned \(3, 2\) for a batch of shape \(4, 2\)"),
        ("broken", "failed on a batch"),
        ("Made", "is a class: expected a function"),
        ("number", "is of type int"),
        ("nothing", "cannot be imported"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            resolve(f"my_augmentation:{name}")(x, torch.Generator())
        assert "\n" not in str(caught.value)


def test_an_object_of_ours_speaks_for_itself() -> None:
    with pytest.raises(ConfigError, match="^pad is 3 for images"):
        resolve("mine:unnamed", Augment(3))(torch.zeros(1, 1, 2, 2), seeded(0))
