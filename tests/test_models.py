"""The shipped students: sizes from the literature, shapes, seeds, and user factories."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deepteach.errors import ConfigError
from deepteach.models import STUDENTS, Block, WideBlock, build

torch.set_num_threads(1)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def digest(model: nn.Module) -> str:
    data = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    return hashlib.sha256(data).hexdigest()


def resnet_count(depth: int, classes: int = 10) -> int:
    """Written out: convolutions 9ab, batch norms 2b, the linear layer with its bias."""
    total, inner = 9 * 3 * 16 + 2 * 16, 16
    for outer in (16, 32, 64):
        for _ in range((depth - 2) // 6):
            total += 9 * inner * outer + 9 * outer * outer + 4 * outer
            inner = outer
    return total + 64 * classes + classes


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet8", 75_290),
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet110", 1_727_962),
    ],
)
def test_resnets_have_the_published_sizes(name: str, parameters: int) -> None:
    model, internal = build(name, (3, 32, 32), 10, seed=0)
    assert count(model) == parameters == resnet_count(int(name[6:]))
    assert internal == "fc"
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) + 1 == int(name[6:])


def test_a_strided_resnet_is_the_same_at_half_the_resolution() -> None:
    strided, plain = (build(name, (3, 16, 16), 10, seed=0)[0] for name in ("resnet8-s2", "resnet8"))
    assert digest(strided) == digest(plain)
    halved: list[torch.Size] = []
    strided.get_submodule("layer1").register_forward_hook(
        lambda *seen: halved.append(seen[2].shape)
    )
    assert strided(torch.zeros(2, 3, 16, 16)).shape == (2, 10)
    assert halved == [torch.Size((2, 16, 8, 8))]


def test_wide_resnet_has_the_published_size() -> None:
    with torch.device("meta"):  # 36 million parameters are counted, not filled
        model = STUDENTS["wrn-28-10"]((3, 32, 32), 10)
        wider = STUDENTS["wrn-28-10"]((3, 32, 32), 100)
    assert count(model) == 36_479_194
    assert count(wider) == 36_479_194 + 90 * 641
    assert model.get_submodule("fc").in_features == 640
    out = model(torch.zeros(2, 3, 32, 32, device="meta"))
    assert out.shape == (2, 10)


def test_paper_states_of_a_resnet() -> None:
    model, _ = build("resnet8", (3, 32, 32), 10, seed=0)
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def watch(name: str) -> None:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
            shapes[name] = tuple(args[0].shape), tuple(out.shape)

        model.get_submodule(name).register_forward_hook(hook)

    for name in ("layer1", "layer2", "layer3", "fc"):
        watch(name)
    model(torch.zeros(2, 3, 32, 32))
    assert shapes["layer1"][1] == (2, 16, 32, 32)
    assert shapes["layer2"][1] == (2, 32, 16, 16)
    assert shapes["layer3"][1] == (2, 64, 8, 8)
    assert shapes["fc"] == ((2, 64), (2, 10))


def test_shortcut_is_a_strided_copy_with_zero_channels() -> None:
    block = Block(4, 8, stride=2).eval()
    nn.init.zeros_(block.conv2.weight)  # the residual branch is then its bias, 0
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    out = block(x)
    torch.testing.assert_close(out[:, 2:6], x[:, :, ::2, ::2].relu())
    assert out[:, :2].abs().sum() + out[:, 6:].abs().sum() == 0


@pytest.mark.parametrize("name", ["cnn", "mlp", "resnet8"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 16, 16), (3, 32, 32), (2, 5, 9)])
def test_image_students_fit_their_input(name: str, shape: tuple[int, ...]) -> None:
    model, internal = build(name, shape, 7, seed=0)
    assert internal is not None
    assert model.get_submodule(internal).in_features == 64
    assert model(torch.zeros(3, *shape)).shape == (3, 7)


def test_cnn_sees_at_most_4x4() -> None:
    for side, left in [(3, 3), (4, 4), (8, 4), (16, 4), (28, 4), (32, 4), (33, 3)]:
        model, _ = build("cnn", (1, side, side), 2, seed=0)
        assert model.get_submodule("hidden").in_features == 64 * left * left


def test_wide_block_shortcut_reads_the_activation() -> None:
    block = WideBlock(2, 4, stride=2).eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    assert block.shortcut is not None
    expected = F.conv2d(block.bn1(x).relu(), block.shortcut.weight, stride=2)
    torch.testing.assert_close(block(x), expected)
    same = WideBlock(2, 2, stride=1).eval()
    nn.init.zeros_(same.conv2.weight)
    assert torch.equal(same(x), x)


def test_mlp_takes_tables() -> None:
    model, _ = build("mlp", (14,), 2, seed=0)
    assert model(torch.zeros(5, 14)).shape == (5, 2)


@pytest.mark.parametrize("name", ["cnn", "mlp", "resnet8"])
def test_seed_decides_everything_and_nothing_else_moves(name: str) -> None:
    before = torch.get_rng_state()
    first, _ = build(name, (1, 8, 8), 10, seed=3)
    torch.rand(5)
    again, _ = build(name, (1, 8, 8), 10, seed=3)
    other, _ = build(name, (1, 8, 8), 10, seed=4)
    assert digest(first) == digest(again) != digest(other)
    torch.set_rng_state(before)
    build(name, (1, 8, 8), 10, seed=5)
    assert torch.equal(before, torch.get_rng_state())


def test_he_initialisation_keeps_the_scale() -> None:
    model, _ = build("mlp", (400,), 10, seed=0)
    hidden, last = model.get_parameter("hidden1.weight"), model.get_parameter("fc.weight")
    assert hidden.std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.05)
    assert last.std().item() == pytest.approx((1 / 64) ** 0.5, rel=0.1)


@pytest.mark.parametrize("name", ["cnn", "mlp", "resnet8"])
def test_second_derivatives_exist(name: str) -> None:
    model, _ = build(name, (1, 8, 8), 3, seed=0)
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    loss = F.cross_entropy(model(x), torch.tensor([0, 1, 2, 0]))
    parameters = list(model.parameters())
    first = torch.autograd.grad(loss, parameters, create_graph=True)
    square = torch.stack([g.square().sum() for g in first]).sum()
    second = torch.autograd.grad(square, parameters)
    assert all(torch.isfinite(g).all() for g in second)
    assert max(g.abs().max().item() for g in second) > 0


def test_cnn_can_memorise_random_labels() -> None:
    model, _ = build("cnn", (1, 8, 8), 10, seed=0)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(120, 1, 8, 8, generator=draw)
    y = torch.randint(10, (120,), generator=draw)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert (model(x).argmax(1) == y).float().mean() > 0.95


FACTORIES = """
from torch import nn
def bare(): return nn.Linear(4, 2)
def full(input_shape, classes, bias=False): return nn.Linear(input_shape[0], classes, bias)
def open_ended(**k): return nn.Linear(k["input_shape"][0], k["classes"])
def only_classes(*, classes): return nn.Linear(1, classes)
def needy(width): return nn.Linear(width, 2)
def broken(): raise RuntimeError("first line\\nsecond line")
def wrong(): return 3
value = 7
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "made_for_nets_test.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    return "made_for_nets_test"


@pytest.mark.parametrize(
    ("function", "shape"),
    [("bare", (2, 4)), ("full", (5, 6)), ("open_ended", (5, 6)), ("only_classes", (5, 1))],
)
def test_users_factory(factories: str, function: str, shape: tuple[int, int]) -> None:
    model, internal = build(f"{factories}:{function}", (6,), 5, seed=0)
    assert internal is None
    assert model.get_parameter("weight").shape == shape
    again, _ = build(f"{factories}:{function}", (6,), 5, seed=0)
    assert digest(model) == digest(again)


def test_module_in_the_working_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "local_for_nets_test.py").write_text(FACTORIES)
    monkeypatch.setattr(sys, "path", list(sys.path))  # build() appends the folder
    monkeypatch.chdir(tmp_path)
    assert isinstance(build("local_for_nets_test:bare", (4,), 2, 0)[0], nn.Linear)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("resnet-32", (3, 32, 32), "did you mean 'resnet32'"),
        ("zzz", (3, 32, 32), "unknown student 'zzz'"),
        ("cnn", (14,), "use student 'mlp'"),
        ("no_such_module:f", (4,), "ModuleNotFoundError"),
        (":f", (4,), "cannot be imported"),
        ("{}:absent", (4,), "cannot be imported"),
        ("{}:value", (4,), "is of type int"),
        ("{}:needy", (4,), "expected a function of nothing"),
        ("{}:broken", (4,), "first line second line"),
        ("{}:wrong", (4,), "returned type int"),
    ],
)
def test_bad_students_are_one_line(
    factories: str, name: str, shape: tuple[int, ...], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        build(name.format(factories), shape, 2, seed=0)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
