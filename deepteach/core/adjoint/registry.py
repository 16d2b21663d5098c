"""The adjoints by the names that settings call them."""

from __future__ import annotations

from deepteach.core.adjoint.base import AbstractAdjoint
from deepteach.core.adjoint.fixed_point import Exact
from deepteach.core.adjoint.one_step import FirstOrder, Lookahead
from deepteach.core.adjoint.reversed import Reversed
from deepteach.core.adjoint.stored import Checkpointed, Stored
from deepteach.core.adjoint.unrolled import Unrolled

ADJOINTS: dict[str, type[AbstractAdjoint]] = {
    "reversed": Reversed,
    "stored": Stored,
    "checkpointed": Checkpointed,
    "unrolled": Unrolled,
    "exact": Exact,
    "lookahead": Lookahead,
    "first-order": FirstOrder,
}
