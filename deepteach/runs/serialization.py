"""Nested training state as named tensors and a JSON skeleton, and back, bit for bit.

`state_dict`s are trees of dicts, lists, tuples, plain values and tensors. The tensors go
into a safetensors file, everything else into JSON; neither format can hold code. JSON has
one kind of sequence, text keys only and no infinity, so the skeleton tags the rest:

    list          [...]                        tensor     {"tensor": name}
    tuple         {"tuple": [...]}             complex    {"complex": {"tensor": name}}
    dict          {"dict": [[key, value]..]}   inf, nan   {"float": "inf" | "-inf" | "nan"}
"""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from deepteach.errors import CheckpointError, ConfigError

# What every safetensors release since 0.5 can both write and read.
_DTYPES = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
)
_SPECIALS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def pack(tree: Any) -> tuple[dict[str, Tensor], Any]:
    """Split `tree` into tensors by name and a skeleton that strict JSON can hold.

    A name is the tensor's place in the tree behind a running number. Tensors are taken as
    they are where that is possible (no copy on the CPU), so write them before the tree
    changes. Device, `requires_grad`, memory format and subclasses of dict and Tensor are
    not state: what comes back is a plain dict, a contiguous leaf on the CPU.

    Raises:
        ConfigError: a value of another type (numpy included), a key that is neither str
            nor int, or a tensor no file can hold; the message names its place.
    """
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()  # two names for one storage would be refused by the file

    def tensor(value: Tensor, place: str) -> Any:
        if value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
            raise _refused(place, "dense tensors", f"a {value.layout} on {value.device}")
        if value.dtype in (torch.complex64, torch.complex128):
            return {"complex": tensor(torch.view_as_real(value.resolve_conj()), place)}
        if value.dtype not in _DTYPES:
            raise _refused(place, "a common tensor dtype", str(value.dtype))
        leaf = value.detach().resolve_neg().cpu().contiguous()
        if leaf.untyped_storage().data_ptr() in storages:
            leaf = leaf.clone()
        storages.add(leaf.untyped_storage().data_ptr())
        # File headers are UTF-8, which has no lone surrogates; keys may.
        name = f"{len(tensors)}{place}".encode("utf-8", "backslashreplace").decode()
        tensors[name] = leaf
        return {"tensor": name}

    def walk(value: Any, place: str) -> Any:
        # Exact types: a numpy float64 *is* a float and a namedtuple *is* a tuple, yet
        # neither would come back as what it was.
        kind = type(value)
        if value is None or kind in (bool, int, str):
            return value
        if kind is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if isinstance(value, Tensor):
            return tensor(value, place)
        if kind is list:
            return [walk(item, f"{place}[{i}]") for i, item in enumerate(value)]
        if kind is tuple:
            return {"tuple": [walk(item, f"{place}[{i}]") for i, item in enumerate(value)]}
        if isinstance(value, dict):
            for key in value:
                if type(key) not in (str, int):
                    raise _refused(place, "str or int keys", f"{key!r}")
            return {"dict": [[k, walk(item, f"{place}.{k}")] for k, item in value.items()]}
        raise _refused(
            place, "dict, list, tuple, None, bool, int, float, str or Tensor", _name(kind)
        )

    return tensors, walk(tree, "")


def unpack(tensors: dict[str, Tensor], skeleton: Any) -> Any:
    """Inverse of `pack`: the tree whose tensors and skeleton these are.

    Raises:
        CheckpointError: a tag that `pack` does not write, or tensors that are missing,
            used twice or left over.
    """
    left = dict(tensors)

    def walk(node: Any) -> Any:
        if isinstance(node, list):
            return [walk(item) for item in node]
        if not isinstance(node, dict):
            return node
        match node:
            case {"tensor": str(name), **rest} if not rest and name in left:
                return left.pop(name)
            case {"complex": inner, **rest} if not rest:
                pair = walk(inner)
                if isinstance(pair, Tensor) and pair.dtype in (
                    torch.float32,
                    torch.float64,
                ):
                    if pair.shape[-1:] == (2,):
                        return torch.view_as_complex(pair)
            case {"float": str(text), **rest} if not rest and text in _SPECIALS:
                return _SPECIALS[text]
            case {"tuple": list(items), **rest} if not rest:
                return tuple(walk(item) for item in items)
            case {"dict": list(items), **rest} if not rest and all(map(_is_item, items)):
                return {key: walk(value) for key, value in items}
        raise CheckpointError(
            f"expected a node that pack() writes, whose tensor is there and used once; "
            f"got {repr(node)[:80]}: the checkpoint is damaged, use another one"
        )

    tree = walk(skeleton)
    if left:
        raise CheckpointError(
            f"{len(left)} tensors have no place in the skeleton, the first is "
            f"{next(iter(left))!r}: the checkpoint is damaged, use another one"
        )
    return tree


def to_bytes(tree: Any) -> bytes:
    """A tree on its way to another process: the skeleton's length, the skeleton, the tensors."""
    tensors, skeleton = pack(tree)
    head = json_bytes(skeleton)
    return len(head).to_bytes(8, "big") + head + save(tensors)


def from_bytes(data: bytes) -> Any:
    """Inverse of `to_bytes`."""
    end = 8 + int.from_bytes(data[:8], "big")
    return unpack(load(data[end:]), json.loads(data[8:end]))


def json_bytes(value: Any) -> bytes:
    """Strict JSON in UTF-8. Raises TypeError or ValueError: a value that JSON has not."""
    return json.dumps(value, allow_nan=False).encode()


def _is_item(item: Any) -> bool:
    return isinstance(item, list) and len(item) == 2 and type(item[0]) in (str, int)


def _name(kind: type) -> str:
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )


def _refused(place: str, expected: str, got: str) -> ConfigError:
    return ConfigError(
        f"a checkpoint cannot hold state{place}: expected {expected}, got {got}; turn it "
        "into plain values or tensors in the state_dict it comes from"
    )
