"""Packing: every tree comes back bit for bit, through real JSON and safetensors bytes."""

from __future__ import annotations

import enum
import json
import math
import struct
from collections import OrderedDict, namedtuple
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepteach.errors import CheckpointError, ConfigError
from deepteach.runs.serialization import pack, unpack

torch.set_num_threads(1)

DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.complex128),
]


def through_files(tree: Any) -> Any:
    """What comes back after the two halves were bytes."""
    tensors, skeleton = pack(tree)
    text = json.dumps(skeleton, allow_nan=False)
    return unpack(safetensors.torch.load(safetensors.torch.save(tensors)), json.loads(text))


def raw(tensor: Tensor) -> bytes:
    """The bytes of a tensor, so that nan equals nan and -0.0 differs from 0.0."""
    tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return bytes(tensor.reshape(-1).view(torch.uint8).tolist())


def same(left: Any, right: Any) -> bool:
    """Equality of type, order and bits, all the way down."""
    if isinstance(left, Tensor):
        return (
            isinstance(right, Tensor)
            and (left.dtype, left.shape) == (right.dtype, right.shape)
            and raw(left) == raw(right)
        )
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return math.isnan(left) and math.isnan(right) or _bits(left) == _bits(right)
    if isinstance(left, dict):
        keys = [(type(k), k) for k in left] == [(type(k), k) for k in right]
        return keys and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def _bits(value: float) -> bytes:
    return struct.pack("<d", value)


def filled(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> Tensor:
    """Arbitrary bits of `dtype` (0 and 1 for bool), nan payloads and all."""
    generator = torch.Generator().manual_seed(seed)
    width = torch.empty((), dtype=dtype).element_size()
    high = 2 if dtype == torch.bool else 256
    size = (math.prod(shape) * width,)
    values = torch.randint(high, size, generator=generator, dtype=torch.uint8)
    return values.view(dtype).reshape(shape)


tensors = st.builds(
    filled,
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.integers(0, 1000),
)
leaves = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), tensors),
    st.sampled_from(["tensor", "tuple", "dict", "float", "complex", "\ud800", "\n"]),
)
keys = st.one_of(st.text(), st.integers(), st.sampled_from(["tensor", "dict", "\ud800"]))
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
    ),
    max_leaves=12,
)


@given(trees)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_every_tree_comes_back_exactly(tree: Any) -> None:
    assert same(through_files(tree), tree)


@given(trees)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_packing_is_deterministic(tree: Any) -> None:
    (a, left), (b, right) = pack(tree), pack(tree)
    assert json.dumps(left) == json.dumps(right)
    assert safetensors.torch.save(a) == safetensors.torch.save(b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_shape_and_stride(dtype: torch.dtype) -> None:
    square = filled(dtype, (4, 6), seed=1)
    tree = {
        "scalar": square[1, 2],
        "empty": filled(dtype, (0, 3), 0),
        "turned": square.T,
        "strided": square[::2, 1::3],
        "expanded": square[:1].expand(5, 6),
    }
    back = through_files(tree)
    assert same(back, tree)
    assert all(leaf.is_contiguous() for leaf in back.values())


def test_lazy_conjugates_and_negatives_are_resolved() -> None:
    value = torch.tensor([1 + 2j, 3 - 4j])
    lazy = {"conj": value.conj(), "negative": value.conj().imag}
    assert lazy["conj"].is_conj() and lazy["negative"].is_neg()
    back = through_files(lazy)
    assert back["conj"].tolist() == [1 - 2j, 3 + 4j]
    assert back["negative"].tolist() == [-2.0, 4.0]


def test_shared_storage_comes_back_as_separate_tensors() -> None:
    base = torch.arange(6.0)
    tree = {
        "a": base,
        "b": base,
        "view": base[2:4],
        "turned": base.view(2, 3).T,
        "none": base[:0],
    }
    back = through_files(tree)
    assert same(back, tree)
    back["a"].zero_()
    assert same(back["b"], base) and same(back["view"], base[2:4])


def test_a_tensor_is_not_copied_where_it_need_not_be() -> None:
    leaf = torch.arange(3.0)
    (packed,) = pack([leaf])[0].values()
    assert packed.data_ptr() == leaf.data_ptr()


def test_names_tell_the_place() -> None:
    names = list(pack({"student": {"0.weight": torch.zeros(1)}, "window": (torch.ones(1),)})[0])
    assert names == ["0.student.0.weight", "1.window[0]"]


def test_a_module_and_its_optimizers_go_on_identically() -> None:
    def build() -> tuple[torch.nn.Module, list[torch.optim.Optimizer]]:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
        sgd = torch.optim.SGD(net[0].parameters(), lr=0.1, momentum=0.9)
        return net, [sgd, torch.optim.Adam(net[1].parameters(), lr=0.1)]

    def train(net: torch.nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            net.zero_grad()
            net(torch.randn(5, 3, generator=generator)).pow(3).sum().backward()
            for optimizer in optimizers:
                optimizer.step()

    net, optimizers = build()
    train(net, optimizers)
    tree = {"net": net.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
    back = through_files(tree)
    assert 0 in back["optimizers"][0]["state"]  # int keys, not "0"
    assert back["optimizers"][1]["param_groups"][0]["betas"] == (0.9, 0.999)  # a tuple

    other, others = build()
    other.load_state_dict(back["net"])
    for optimizer, state in zip(others, back["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    train(net, optimizers)
    train(other, others)
    assert same(dict(other.state_dict()), dict(net.state_dict()))


def test_subclasses_of_dict_and_tensor_become_plain() -> None:
    back = through_files(OrderedDict(w=torch.nn.Parameter(torch.ones(2))))
    assert type(back) is dict and type(back["w"]) is Tensor and not back["w"].requires_grad


Point = namedtuple("Point", "x y")
Mode = enum.IntEnum("Mode", "A B")


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (np.float64(1.0), "numpy.float64"),
        (np.zeros(2), "numpy.ndarray"),
        (np.str_("a"), "numpy.str_"),
        (Point(1, 2), "Point"),
        (Mode.A, "Mode"),
        (b"bytes", "bytes"),
        ({1, 2}, "set"),
        (1j, "complex"),
        (torch.float32, "torch.dtype"),
        pytest.param(torch.Generator(), "Generator", id="generator"),
        (torch.zeros(2).to_sparse(), "torch.sparse_coo"),
        (torch.zeros(2, device="meta"), "meta"),
        (torch.zeros(2, dtype=torch.uint16), "torch.uint16"),
        ({1.5: 0}, "1.5"),
        ({True: 0}, "True"),
        ({None: 0}, "None"),
        ({(1, 2): 0}, "(1, 2)"),
    ],
    ids=str,
)
def test_other_types_are_refused_at_their_place(value: Any, got: str) -> None:
    with pytest.raises(ConfigError, match=r"hold state\.coach\.window\[1\]: expected") as caught:
        pack({"coach": {"window": [0, value]}})
    assert got in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "skeleton",
    [
        {},
        {"tensor": "c"},
        {"tensor": ["a"]},
        {"tensor": "a", "more": 1},
        {"float": "1.0"},
        {"float": ["inf"]},
        {"tuple": 3},
        {"dict": [["key"]]},
        {"dict": [[None, 1]]},
        {"dict": [[True, 1]]},
        {"dict": [[["list"], 1]]},
        {"dict": [{"key": 1, "value": 2}]},
        {"complex": 1},
        {"complex": {"tensor": "a"}},
        {"complex": {"tensor": "b"}},
        {"exec": "print(1)"},
        [{"tensor": "a"}, {"tensor": "a"}],
        [],
        None,
    ],
    ids=str,
)
def test_foreign_skeletons_are_refused(skeleton: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        unpack({"a": torch.zeros(3), "b": torch.zeros(2, dtype=torch.bfloat16)}, skeleton)
    assert "damaged" in str(caught.value) and "\n" not in str(caught.value)
