"""Recipes of torch.nn.functional, each given tensors that the student's parameters move."""

from __future__ import annotations

import torch
from scan_losses import (
    bits,
    classes,
    counted,
    ctc,
    each,
    many,
    parts,
    pixels,
    real,
    shares,
    signs,
)
from scan_modules import IMAGE, LINE, SHAPES, TOKENS, VOLUME
from scan_recipe import CLASSES, Labels, Loss, Recipe, of
from torch import Tensor, nn
from torch.nn import functional as F


def same(*names: str, shape: tuple[int, ...] = (8,), **settings) -> list[Recipe]:
    """Functions of one tensor; those that work in place are given a copy."""
    return [
        of(f"F.{n}", lambda h, n=n: getattr(F, n)(h * 1, **settings), shape)
        for n in names if hasattr(F, n)
    ]  # fmt: skip


ELEMENTWISE = same(
    *(
        "celu celu_ elu elu_ gelu hardshrink hardsigmoid hardswish hardtanh hardtanh_ leaky_relu "
        "leaky_relu_ logsigmoid mish relu relu6 relu_ selu selu_ sigmoid silu softplus "
        "softshrink softsign tanh tanhshrink glu"
    ).split()
) + [
    *same("log_softmax", "softmax", "softmin", dim=1),
    *same("threshold", "threshold_", threshold=0.1, value=-0.3),
    *same("rrelu", "rrelu_", training=True),
    *same("dropout", "alpha_dropout", training=True),
    *same("dropout1d", shape=LINE, training=True),
    *same("dropout2d", "feature_alpha_dropout", shape=IMAGE, training=True),
    *same("dropout3d", shape=VOLUME, training=True),
    of("F.prelu", lambda h, a: F.prelu(h, a), (8,), (8,)),
    of("F.gumbel_softmax", lambda h: F.gumbel_softmax(h, tau=0.7), (8,)),
    of(
        "F.gumbel_softmax, hard",
        lambda h: F.gumbel_softmax(h, tau=0.7, hard=True) * h,
        (8,),
        note="straight-through: by design its gradient is not that of its value",
    ),
    of("F.normalize", lambda h: F.normalize(h), (8,)),
    of("F.normalize, p=3", lambda h: F.normalize(h, p=3.0), (8,)),
    of(
        "F.one_hot",
        lambda h: F.one_hot((h.detach() > 0).long(), 2).flatten(1) * torch.cat([h, h.cos()], 1),
        (4,),
    ),
]


def by_time(h: Tensor, w: Tensor, b: Tensor, mix: Tensor) -> Tensor:
    """Time first; its backward pass takes contiguous gradients alone, as a product's are."""
    out = F.conv_tbc(h.transpose(0, 1).contiguous(), w, b)
    return (mix @ out.reshape(2, -1)).view(2, len(h), -1).transpose(0, 1)


PRODUCTS = [
    of("F.linear", F.linear, (8,), (3, 8), (3,)),
    of("F.bilinear", lambda h, w, b: F.bilinear(h[:, :4], h[:, 4:], w, b), (8,), (3, 4, 4), (3,)),
    *[of(f"F.conv{d}d", getattr(F, f"conv{d}d"), SHAPES[d], (2, 2, *(2,) * d), (2,))
      for d in (1, 2, 3)],
    *[of(f"F.conv_transpose{d}d", getattr(F, f"conv_transpose{d}d"), SHAPES[d],
         (2, 2, *(2,) * d), (2,)) for d in (1, 2, 3)],
    of("F.conv2d, a filter a sample",
       lambda h: F.conv2d(h[:, :16].reshape(1, -1, 4, 4), h[:, 16:].reshape(-1, 1, 2, 2),
                          groups=len(h)).reshape(len(h), -1), (20,)),
    of("F.conv_tbc", by_time, TOKENS, (2, 4, 3), (3,), (2, 2)),
    of("F.embedding", lambda h, w: F.embedding((h.detach().abs()).long() % 5, w).flatten(1) *
       torch.cat([h, h], 1), (4,), (5, 2)),
    of("F.embedding_bag", lambda h, w: F.embedding_bag((h.detach().abs()).long() % 5, w) * h,
       (4,), (5, 4)),
]  # fmt: skip

NORMS = [
    of(
        "F.batch_norm",
        lambda h, w, b: F.batch_norm(h, None, None, w, b, training=True),
        IMAGE,
        (2,),
        (2,),
    ),
    of("F.batch_norm, without affine", lambda h: F.batch_norm(h, None, None, training=True), IMAGE),
    of("F.instance_norm", lambda h, w, b: F.instance_norm(h, weight=w, bias=b), IMAGE, (2,), (2,)),
    of("F.layer_norm", lambda h, w, b: F.layer_norm(h, (8,), w, b), (8,), (8,), (8,)),
    of("F.group_norm", lambda h, w, b: F.group_norm(h, 2, w, b), (4, 3, 3), (4,), (4,)),
    of("F.rms_norm", lambda h, w: F.rms_norm(h, (8,), w), (8,), (8,)),
    of("F.local_response_norm", lambda h: F.local_response_norm(h, 2, alpha=0.5), (4, 3, 3)),
]

POOLS = [
    r
    for d in (1, 2, 3)
    for r in [
        *same(f"avg_pool{d}d", f"max_pool{d}d", shape=SHAPES[d], kernel_size=2),
        *same(f"adaptive_avg_pool{d}d", f"adaptive_max_pool{d}d", shape=SHAPES[d], output_size=2),
        *same(f"lp_pool{d}d", shape=SHAPES[d], norm_type=2, kernel_size=2),
        of(f"F.max_pool{d}d_with_indices",
           lambda h, d=d: getattr(F, f"max_pool{d}d_with_indices")(h, 2)[0], SHAPES[d]),
        of(f"F.adaptive_max_pool{d}d_with_indices",
           lambda h, d=d: getattr(F, f"adaptive_max_pool{d}d_with_indices")(h, 2)[0], SHAPES[d]),
        of(f"F.max_unpool{d}d", lambda h, d=d: getattr(F, f"max_unpool{d}d")(
            *getattr(F, f"max_pool{d}d")(h, 2, return_indices=True), 2) * h.sin(), SHAPES[d]),
    ]
] + [
    r
    for d, shape in ((2, IMAGE), (3, (1, 4, 4, 4)))
    for r in [
        *same(f"fractional_max_pool{d}d", shape=shape, kernel_size=2, output_size=2),
        of(f"F.fractional_max_pool{d}d_with_indices", lambda h, d=d: getattr(
            F, f"fractional_max_pool{d}d_with_indices")(h, 2, output_size=2)[0], shape),
    ]
]  # fmt: skip

SHAPING = [
    *[of(f"F.pad, {mode}", lambda h, m=mode: F.pad(h, (1, 1), mode=m), LINE)
      for mode in ("constant", "reflect", "replicate", "circular")],
    *same("pixel_shuffle", shape=(4, 2, 2), upscale_factor=2),
    *same("pixel_unshuffle", shape=IMAGE, downscale_factor=2),
    *same("channel_shuffle", "native_channel_shuffle", shape=(4, 2, 2), groups=2),
    *same("unfold", shape=IMAGE, kernel_size=2),
    *same("fold", shape=(8, 4), output_size=(3, 3), kernel_size=2),
    *[of(f"F.interpolate, {mode}", lambda h, m=mode, s=s: F.interpolate(h, size=s, mode=m), shape)
      for mode, shape, s in [("nearest", IMAGE, 6), ("nearest-exact", IMAGE, 6),
                             ("area", IMAGE, 2), ("linear", LINE, 4), ("bilinear", IMAGE, 6),
                             ("bicubic", IMAGE, 6), ("trilinear", (1, 2, 2, 2), 3)]],
    *[of(f"F.interpolate, {mode}, antialias", lambda h, m=mode: F.interpolate(
        h, size=2, mode=m, antialias=True), IMAGE) for mode in ("bilinear", "bicubic")],
    *same("upsample", "upsample_bilinear", "upsample_nearest", shape=(2, 2, 2), scale_factor=2),
    *[of(f"F.grid_sample, {mode}, {padding}",
         lambda h, m=mode, p=padding: F.grid_sample(
             h[:, :16].view(-1, 1, 4, 4), h[:, 16:].view(-1, 2, 2, 2).tanh(), mode=m,
             padding_mode=p, align_corners=False), (24,))
      for mode, padding in [("bilinear", "zeros"), ("bilinear", "border"),
                            ("bilinear", "reflection"), ("bicubic", "zeros"),
                            ("nearest", "zeros")]],
    of("F.grid_sample, volume", lambda h: F.grid_sample(
        h[:, :8].view(-1, 1, 2, 2, 2), h[:, 8:].view(-1, 1, 1, 2, 3).tanh(),
        align_corners=False), (14,)),
    of("F.affine_grid", lambda h: F.affine_grid(
        h.view(-1, 2, 3), [len(h), 1, 2, 2], align_corners=False).sin(), (6,)),
]  # fmt: skip


def attend(**settings):
    def call(h: Tensor) -> Tensor:
        q, k, v = h.unbind(1)
        return F.scaled_dot_product_attention(q, k, v, **settings)

    return call


def projected(h: Tensor, *own: Tensor) -> Tensor:
    t = h.transpose(0, 1)
    return F.multi_head_attention_forward(
        t, t, t, 4, 2, own[0], own[1], None, None, False, 0.0, own[2], own[3], need_weights=False
    )[0].transpose(0, 1)


ATTENTION = [
    of("F.scaled_dot_product_attention", attend(), (3, 1, 3, 4)),
    of("F.scaled_dot_product_attention, causal", attend(is_causal=True), (3, 1, 3, 4)),
    of("F.scaled_dot_product_attention, dropout", attend(dropout_p=0.3), (3, 1, 3, 4)),
    of("F.scaled_dot_product_attention, learned mask", lambda h, b: F.scaled_dot_product_attention(
        *h.unbind(1), attn_mask=b), (3, 1, 3, 4), (3, 3)),
    of("F.multi_head_attention_forward", projected, TOKENS, (12, 4), (12,), (4, 4), (4,)),
]  # fmt: skip


def halves(name: str, variant: str = "", **settings) -> Recipe:
    return of(
        f"F.{name}{variant}", lambda h: getattr(F, name)(h[:, 0], h[:, 1], **settings), (2, 3, 4)
    )


def distances(h: Tensor, p: float) -> Tensor:
    return torch.stack([F.pdist(one, p) for one in h])


DISTANCES = [
    halves("cosine_similarity"),
    halves("pairwise_distance"),
    halves("pairwise_distance", ", p=1", p=1.0),
    *[of(f"F.pdist, p={p:g}", lambda h, p=p: distances(h, p), (3, 4)) for p in (2.0, 1.0, 3.0)],
    *[
        of(f"torch.cdist, p={p:g}", lambda h, p=p: torch.cdist(h[:, 0], h[:, 1], p=p), (2, 3, 4))
        for p in (2.0, 1.0, 3.0)
    ],
]


def loss(name: str, labels: Labels, call: Loss, outputs: int = CLASSES) -> Recipe:
    return Recipe(
        f"F.{name}",
        nn.Tanh,
        (5,),
        loss=lambda z, y: each(call(z, y)),
        labels=labels,
        outputs=outputs,
    )


def unreduced(name: str, labels: Labels, before=lambda z: z, **settings) -> Recipe:
    return loss(
        name, labels, lambda z, y: getattr(F, name)(before(z), y, reduction="none", **settings)
    )


ROWS = torch.randn(CLASSES, 5, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
LOSSES = [
    unreduced("cross_entropy", classes),
    unreduced("nll_loss", classes, lambda z: z.log_softmax(1)),
    unreduced("binary_cross_entropy", bits, torch.sigmoid),
    unreduced("binary_cross_entropy_with_logits", bits),
    *[unreduced(n, real) for n in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")],
    unreduced("kl_div", shares, lambda z: z.log_softmax(1)),
    unreduced("poisson_nll_loss", counted),
    unreduced("soft_margin_loss", lambda n, g: 2 * bits(n, g) - 1),
    unreduced("hinge_embedding_loss", lambda n, g: 2 * bits(n, g) - 1),
    unreduced("multilabel_soft_margin_loss", bits),
    unreduced("multilabel_margin_loss", many),
    unreduced("multi_margin_loss", classes),
    loss("gaussian_nll_loss", real,
         lambda z, y: F.gaussian_nll_loss(z[:, :3], y, F.softplus(z[:, 3:]), reduction="none"), 6),
    loss("margin_ranking_loss", signs,
         lambda z, y: F.margin_ranking_loss(z[:, 0], z[:, 1], y, margin=0.5, reduction="none"), 2),
    loss("cosine_embedding_loss", signs,
         lambda z, y: F.cosine_embedding_loss(
             z[:, :3], z[:, 3:], y, margin=-0.2, reduction="none"), 6),
    loss("triplet_margin_loss", classes,
         lambda z, y: F.triplet_margin_loss(*parts(z), margin=5.0, reduction="none"), 6),
    loss("triplet_margin_with_distance_loss", classes,
         lambda z, y: F.triplet_margin_with_distance_loss(
             *parts(z), margin=5.0, reduction="none"), 6),
    loss("ctc_loss", classes, ctc, 4 * CLASSES),
    loss("cross_entropy, pixels", pixels,
         lambda z, y: F.cross_entropy(
             z.unflatten(1, (CLASSES, 4)), y, reduction="none"), 4 * CLASSES),
    *([Recipe("F.linear_cross_entropy", nn.Tanh, (5,), outputs=0, labels=classes,
              loss=lambda z, y: F.linear_cross_entropy(z, ROWS, y, reduction="none"))]
      if hasattr(F, "linear_cross_entropy") else []),
]  # fmt: skip

FUNCTIONALS = [*ELEMENTWISE, *PRODUCTS, *NORMS, *POOLS, *SHAPING, *ATTENTION, *DISTANCES, *LOSSES]

LEFT_OUT = {
    **dict.fromkeys(
        [f"F.{n}" for n in ("assert_int_or_pair", "boolean_dispatch", "handle_torch_function",
         "has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")],
        "computes nothing",
    ),
    "F.Optional": "a type",
    "F.grouped_mm": "knows no float64, so differences cannot judge it",
    "F.scaled_mm": "products of 8-bit numbers, for inference",
    "F.scaled_grouped_mm": "products of 8-bit numbers, for inference",
}  # fmt: skip
