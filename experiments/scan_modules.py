"""Recipes of the modules of torch.nn. Shapes are those behind the batch."""

from __future__ import annotations

import torch
from scan_recipe import Recipe, wrapped
from torch import Tensor, nn

LINE, IMAGE, VOLUME = (2, 6), (2, 4, 4), (2, 2, 4, 4)
SHAPES = {1: LINE, 2: IMAGE, 3: VOLUME}
TOKENS = (3, 4)


def each(name: str, build, dims=(1, 2, 3), shapes=SHAPES) -> list[Recipe]:
    """One recipe for each of `name`1d, 2d and 3d; `build` is given the class."""
    made = []
    for d in dims:
        kind = getattr(nn, f"{name}{d}d")
        made.append(Recipe(f"{name}{d}d", lambda kind=kind: build(kind), shapes[d]))
    return made


def plain(*names: str, shape=(8,), **settings) -> list[Recipe]:
    """Layers that are made without arguments."""
    return [Recipe(n, lambda n=n: getattr(nn, n)(**settings), shape) for n in names]


def unpooled(d: int) -> Recipe:
    pool, unpool = getattr(nn, f"MaxPool{d}d"), getattr(nn, f"MaxUnpool{d}d")

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool, self.unpool = pool(2, return_indices=True), unpool(2)

        def forward(self, h: Tensor) -> Tensor:
            return self.unpool(*self.pool(h)) * h.sin()

    return Recipe(f"MaxUnpool{d}d", Both, SHAPES[d])


def ids(x: Tensor) -> Tensor:
    """`(batch, 4)` token ids, some of them more than once."""
    return (x.abs() * 2).long() % 5


def looked_up(table: nn.Module, h: Tensor, x: Tensor) -> Tensor:
    return table(ids(x)).flatten(1) * h


def embedded(variant: str, **settings) -> Recipe:
    make = lambda: nn.Embedding(5, 2, **settings)  # noqa: E731
    return wrapped(f"Embedding{variant}", make, looked_up, (8,), reads_inputs=True)


def bagged(variant: str, width: int = 4, **settings) -> Recipe:
    def call(bag: nn.Module, h: Tensor, x: Tensor) -> Tensor:
        given = {"per_sample_weights": h} if variant.startswith(", weights") else {}
        return bag(ids(x), **given) * h

    make = lambda: nn.EmbeddingBag(5, width, **settings)  # noqa: E731
    return wrapped(f"EmbeddingBag{variant}", make, call, (4,), reads_inputs=True)


def first(layer: nn.Module, h: Tensor) -> Tensor:
    return layer(h)[0]


def packed(layer: nn.Module, h: Tensor) -> Tensor:
    lengths = torch.tensor([3, 2, 3, 1, 2, 3])[: len(h)]
    given = nn.utils.rnn.pack_padded_sequence(h, lengths, batch_first=True, enforce_sorted=False)
    return nn.utils.rnn.pad_packed_sequence(layer(given)[0], batch_first=True, total_length=3)[0]


def unrolled(cell: nn.Module, h: Tensor) -> Tensor:
    state = None
    for x in h.unbind(1):
        state = cell(x, state)
    return torch.cat(state, 1) if isinstance(state, tuple) else state  # type: ignore[return-value]


def recurrent(name: str) -> list[Recipe]:
    kind = getattr(nn, name)
    make = lambda **s: lambda: kind(4, 3, batch_first=True, **s)  # noqa: E731
    found = [
        wrapped(name, make(), first, TOKENS),
        wrapped(
            f"{name}, two layers, both ways, dropout",
            make(num_layers=2, bidirectional=True, dropout=0.3),
            first,
            TOKENS,
        ),
        wrapped(f"{name}, packed", make(), packed, TOKENS),
        wrapped(f"{name}Cell", lambda: getattr(nn, f"{name}Cell")(4, 3), unrolled, TOKENS),
    ]
    if name == "LSTM":
        found.append(wrapped("LSTM, projected", make(proj_size=2), first, TOKENS))
    if name == "RNN":
        found.append(wrapped("RNN, relu", make(nonlinearity="relu"), first, TOKENS))
    return found


def attended(variant: str, *, weights: bool, **settings) -> Recipe:
    make = lambda: nn.MultiheadAttention(4, 2, batch_first=True, **settings)  # noqa: E731
    call = lambda layer, h: layer(h, h, h, need_weights=weights)[0]  # noqa: E731
    return wrapped(f"MultiheadAttention{variant}", make, call, TOKENS)


def causal(layer: nn.Module, h: Tensor) -> Tensor:
    mask = nn.Transformer.generate_square_subsequent_mask(h.shape[1], dtype=h.dtype)
    return layer(h, mask.to(h.device), is_causal=True)


def encoder_layer(**settings) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, **settings)


def decoder_layer() -> nn.TransformerDecoderLayer:
    return nn.TransformerDecoderLayer(4, 2, 6, batch_first=True)


def both(layer: nn.Module, h: Tensor) -> Tensor:
    return layer(h, h.flip(1))


TRANSFORMERS = [
    wrapped("TransformerEncoderLayer", encoder_layer, lambda m, h: m(h), TOKENS),
    wrapped(
        "TransformerEncoderLayer, norm first, gelu, no dropout",
        lambda: encoder_layer(norm_first=True, activation="gelu", dropout=0.0),
        lambda m, h: m(h),
        TOKENS,
    ),
    wrapped("TransformerEncoderLayer, causal", encoder_layer, causal, TOKENS),
    wrapped(
        "TransformerEncoder",
        lambda: nn.TransformerEncoder(encoder_layer(), 2),
        lambda m, h: m(h),
        TOKENS,
    ),
    wrapped("TransformerDecoderLayer", decoder_layer, both, TOKENS),
    wrapped("TransformerDecoder", lambda: nn.TransformerDecoder(decoder_layer(), 1), both, TOKENS),
    wrapped("Transformer", lambda: nn.Transformer(4, 2, 1, 1, 6, batch_first=True), both, TOKENS),
]

EVALUATED = [  # in the mode that they are used in after training
    Recipe(f"{name}, eval", build, shape)
    for name, build, shape in [
        ("BatchNorm2d", lambda: nn.BatchNorm2d(2).eval(), IMAGE),
        ("InstanceNorm2d", lambda: nn.InstanceNorm2d(2, track_running_stats=True).eval(), IMAGE),
        ("TransformerEncoderLayer", lambda: encoder_layer().eval(), TOKENS),
        ("RReLU", lambda: nn.RReLU().eval(), (8,)),
    ]
]

ACTIVATIONS = plain(
    *(
        "CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid "
        "Mish PReLU RReLU ReLU ReLU6 SELU SiLU Sigmoid Softplus Softshrink Softsign Tanh "
        "Tanhshrink Identity Flatten Dropout AlphaDropout"
    ).split()
) + [
    *plain("LogSoftmax", "Softmax", "Softmin", dim=1),
    *plain("Softmax2d", shape=(3, 2, 2)),
    Recipe("GELU, tanh", lambda: nn.GELU("tanh"), (8,)),
    Recipe("Threshold", lambda: nn.Threshold(0.1, -0.3), (8,)),
    Recipe("PReLU, channels", lambda: nn.PReLU(2), IMAGE),
    Recipe("Unflatten", lambda: nn.Unflatten(1, (2, 4)), (8,)),
    wrapped("ReLU, in place", lambda: nn.ReLU(inplace=True), lambda m, h: m(h * 1), (8,)),
    wrapped("SiLU, in place", lambda: nn.SiLU(inplace=True), lambda m, h: m(h * 1), (8,)),
]

NORMS = [
    *each("BatchNorm", lambda kind: kind(2)),
    Recipe("BatchNorm1d, (batch, channels)", lambda: nn.BatchNorm1d(8), (8,)),
    Recipe("BatchNorm2d, without affine", lambda: nn.BatchNorm2d(2, affine=False), IMAGE),
    Recipe(
        "BatchNorm2d, without statistics",
        lambda: nn.BatchNorm2d(2, track_running_stats=False),
        IMAGE,
    ),
    Recipe("BatchNorm2d, cumulative", lambda: nn.BatchNorm2d(2, momentum=None), IMAGE),
    Recipe("SyncBatchNorm", lambda: nn.SyncBatchNorm(2), IMAGE),
    *each("InstanceNorm", lambda kind: kind(2, affine=True)),
    Recipe(
        "InstanceNorm2d, statistics",
        lambda: nn.InstanceNorm2d(2, affine=True, track_running_stats=True),
        IMAGE,
    ),
    Recipe("LayerNorm", lambda: nn.LayerNorm(8), (8,)),
    Recipe("LayerNorm, two dimensions", lambda: nn.LayerNorm([4, 4]), IMAGE),
    Recipe("LayerNorm, without affine", lambda: nn.LayerNorm(8, elementwise_affine=False), (8,)),
    Recipe("RMSNorm", lambda: nn.RMSNorm(8), (8,)),
    Recipe("GroupNorm", lambda: nn.GroupNorm(2, 4), (4, 3, 3)),
    Recipe("GroupNorm, without affine", lambda: nn.GroupNorm(2, 4, affine=False), (4, 3, 3)),
    Recipe("LocalResponseNorm", lambda: nn.LocalResponseNorm(2, alpha=0.5), (4, 3, 3)),
    Recipe("CrossMapLRN2d", lambda: nn.CrossMapLRN2d(2, alpha=0.5), (4, 3, 3)),
]

CONVOLUTIONS = [
    *each("Conv", lambda kind: kind(2, 2, 2)),
    *each("ConvTranspose", lambda kind: kind(2, 2, 2)),
    Recipe(
        "Conv2d, strided, dilated, groups",
        lambda: nn.Conv2d(2, 4, 2, stride=2, padding=1, dilation=2, groups=2),
        IMAGE,
    ),
    Recipe(
        "Conv2d, circular, same",
        lambda: nn.Conv2d(2, 2, 3, padding="same", padding_mode="circular"),
        IMAGE,
    ),
    Recipe("Conv2d, depthwise", lambda: nn.Conv2d(2, 2, 3, padding=1, groups=2), IMAGE),
    Recipe(
        "ConvTranspose2d, strided, groups",
        lambda: nn.ConvTranspose2d(2, 2, 2, stride=2, output_padding=1, groups=2),
        IMAGE,
    ),
    Recipe("Conv1d, without bias", lambda: nn.Conv1d(2, 2, 2, bias=False), LINE),
]

LINEAR = [
    Recipe("Linear", lambda: nn.Linear(8, 5), (8,)),
    Recipe("Linear, tokens", lambda: nn.Linear(4, 3), TOKENS),
    wrapped("Bilinear", lambda: nn.Bilinear(4, 4, 3), lambda m, h: m(h[:, :4], h[:, 4:]), (8,)),
]

POOLINGS = [
    *each("AvgPool", lambda kind: kind(2)),
    *each("MaxPool", lambda kind: kind(2)),
    *each("AdaptiveAvgPool", lambda kind: kind(2)),
    *each("AdaptiveMaxPool", lambda kind: kind(2)),
    *each("LPPool", lambda kind: kind(2, 2)),
    wrapped("LPPool2d, p=3", lambda: nn.LPPool2d(3, 2), lambda m, h: m(h.exp()), IMAGE),
    *each("FractionalMaxPool", lambda kind: kind(2, output_size=2), dims=(2,)),
    *each("FractionalMaxPool", lambda kind: kind(2, output_size=2), (3,), {3: (1, 4, 4, 4)}),
    *[unpooled(d) for d in (1, 2, 3)],
    Recipe("MaxPool2d, dilated, padded",
           lambda: nn.MaxPool2d(2, stride=1, padding=1, dilation=2), IMAGE),
    Recipe("AvgPool2d, padded", lambda: nn.AvgPool2d(2, padding=1, count_include_pad=False), IMAGE),
]  # fmt: skip

SHAPING = [
    *[r for name in ("ReflectionPad", "ReplicationPad", "ZeroPad", "CircularPad")
      for r in each(name, lambda kind: kind(1))],
    *each("ConstantPad", lambda kind: kind(1, 0.5)),
    *each("Dropout", lambda kind: kind(0.5)),
    Recipe("FeatureAlphaDropout", lambda: nn.FeatureAlphaDropout(0.5), IMAGE),
    Recipe("Dropout, in place", lambda: nn.Dropout(0.5, inplace=True), (8,)),
    Recipe("PixelShuffle", lambda: nn.PixelShuffle(2), (4, 2, 2)),
    Recipe("PixelUnshuffle", lambda: nn.PixelUnshuffle(2), IMAGE),
    Recipe("ChannelShuffle", lambda: nn.ChannelShuffle(2), (4, 2, 2)),
    Recipe("Unfold", lambda: nn.Unfold(2), IMAGE),
    Recipe("Fold", lambda: nn.Fold((3, 3), 2), (8, 4)),
    *plain("UpsamplingBilinear2d", "UpsamplingNearest2d", shape=(2, 2, 2), scale_factor=2),
    *[Recipe(f"Upsample, {mode}", lambda m=mode: nn.Upsample(scale_factor=2, mode=m), shape)
      for mode, shape in [("nearest", IMAGE), ("linear", LINE), ("bilinear", IMAGE),
                          ("bicubic", IMAGE), ("trilinear", (1, 2, 2, 2))]],
]  # fmt: skip

DISTANCES = [
    wrapped("CosineSimilarity", nn.CosineSimilarity, lambda m, h: m(h[:, 0], h[:, 1]), (2, 3, 4)),
    *[
        wrapped(
            f"PairwiseDistance, p={p:g}",
            lambda p=p: nn.PairwiseDistance(p),
            lambda m, h: m(h[:, 0], h[:, 1]),
            (2, 3, 4),
        )
        for p in (2.0, 1.0, 3.0, torch.inf)
    ],
]

TABLES = [
    embedded(""),
    embedded(", max_norm", max_norm=0.8),
    embedded(", scale_grad_by_freq", scale_grad_by_freq=True),
    embedded(", padding_idx", padding_idx=1),
    embedded(", sparse", sparse=True),
    *[bagged(f", {mode}", mode=mode) for mode in ("mean", "sum", "max")],
    bagged(", weights", mode="sum"),
    bagged(", max_norm", max_norm=0.8),
    bagged(", scale_grad_by_freq", scale_grad_by_freq=True),
    bagged(", padding_idx", padding_idx=1),
    bagged(", sparse", sparse=True),
]

ATTENTION = [
    attended("", weights=True),
    attended(", without weights", weights=False),
    attended(", dropout", weights=True, dropout=0.3),
    attended(", bias of keys, zeros", weights=False, add_bias_kv=True, add_zero_attn=True),
]

LAZY = [
    *each("LazyConv", lambda kind: kind(2, 2)),
    *each("LazyConvTranspose", lambda kind: kind(2, 2)),
    *each("LazyBatchNorm", lambda kind: kind()),
    *each("LazyInstanceNorm", lambda kind: kind(affine=True)),
    Recipe("LazyLinear", lambda: nn.LazyLinear(5), (8,)),
]

old, new = nn.utils, nn.utils.parametrizations
REPARAMETRISED = [
    Recipe("utils.weight_norm", lambda: old.weight_norm(nn.Linear(8, 5)), (8,)),
    Recipe("utils.spectral_norm", lambda: old.spectral_norm(nn.Linear(8, 5)), (8,)),
    Recipe("utils.spectral_norm, conv", lambda: old.spectral_norm(nn.Conv2d(2, 2, 2)), IMAGE),
    Recipe("parametrizations.weight_norm", lambda: new.weight_norm(nn.Linear(8, 5)), (8,)),
    Recipe("parametrizations.spectral_norm", lambda: new.spectral_norm(nn.Linear(8, 5)), (8,)),
    *[Recipe(f"parametrizations.orthogonal, {kind}",
             lambda kind=kind: new.orthogonal(nn.Linear(5, 5), orthogonal_map=kind), (5,))
      for kind in ("matrix_exp", "cayley", "householder")],
    Recipe("parametrizations.orthogonal, tall", lambda: new.orthogonal(nn.Linear(3, 5)), (3,)),
]  # fmt: skip

MODULES = [
    *LINEAR, *CONVOLUTIONS, *NORMS, *ACTIVATIONS, *POOLINGS, *SHAPING, *DISTANCES, *TABLES,
    *recurrent("RNN"), *recurrent("GRU"), *recurrent("LSTM"), *ATTENTION, *TRANSFORMERS,
    *EVALUATED, *LAZY, *REPARAMETRISED,
]  # fmt: skip

LEFT_OUT = {
    **dict.fromkeys(
        ["Module", "Container", "Sequential", "ModuleList", "ModuleDict", "ParameterList",
         "ParameterDict"], "holds layers and computes nothing"
    ),
    "RNNBase": "the base of RNN, GRU and LSTM",
    "RNNCellBase": "the base of the cells",
    "DataParallel": "refused when the Student is made",
}  # fmt: skip
