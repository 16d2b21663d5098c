"""Train a PyTorch model together with a teacher that weighs every training sample."""

# A name is imported when it is first used: a loop around `Coach` needs torch and numpy, and does
# not wait for scikit-learn, pydantic or matplotlib.

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what type checkers and editors read; `_HOME` says the same at run time
    from deepteach import errors as errors
    from deepteach import models as models
    from deepteach.core.adjoint.base import AbstractAdjoint
    from deepteach.core.adjoint.fixed_point import Exact, ExactSGD
    from deepteach.core.adjoint.one_step import FirstOrder, Lookahead
    from deepteach.core.adjoint.reversed import Reversed
    from deepteach.core.adjoint.stored import Checkpointed, Stored
    from deepteach.core.adjoint.unrolled import Unrolled
    from deepteach.core.coach import Coach
    from deepteach.core.feature import Feature
    from deepteach.core.losses import MassedLoss, smooth_error
    from deepteach.core.snapshot import Clock, Snapshot
    from deepteach.core.student import Outputs, Student
    from deepteach.core.teacher import AbstractTeacher
    from deepteach.core.update import UpdateRecord
    from deepteach.errors import (
        CheckpointError,
        CollapseWarning,
        ConfigError,
        DataError,
        DeepTeachError,
        NumericError,
        ReplayError,
        ReversalWarning,
        StorageError,
        WindowWarning,
    )
    from deepteach.integrations.sklearn import TeachClassifier, TeachRegressor
    from deepteach.teachers import features as features
    from deepteach.teachers.features import Internal, Label, Loss, Surface
    from deepteach.teachers.focal import Focal
    from deepteach.teachers.group import Group
    from deepteach.teachers.history import History
    from deepteach.teachers.l2t_data import L2TData
    from deepteach.teachers.l2t_loss import L2TLoss
    from deepteach.teachers.learning_to_reweight import LearningToReweight
    from deepteach.teachers.linear import Teacher
    from deepteach.teachers.mentor_network import fit_mentor
    from deepteach.teachers.mentornet import MentorNet
    from deepteach.teachers.meta_weight_net import MetaWeightNet
    from deepteach.teachers.self_paced import SelfPaced
    from deepteach.teachers.trusted_probe import TrustedProbe
    from deepteach.teachers.trusted_regression import TrustedRegression
    from deepteach.teachers.uniform import Uniform
    from deepteach.training.api import train
    from deepteach.training.cross_fit import cross_fitted
    from deepteach.training.result import Result

__version__ = "0.1.0"  # the only place; the build and the checkpoints read it here

__all__ = [
    # A loop of one's own.
    "Student",
    "Outputs",
    "MassedLoss",
    "Coach",
    "UpdateRecord",
    "smooth_error",
    # Teachers, the baselines among them.
    "Teacher",
    "Uniform",
    "Focal",
    "SelfPaced",
    "MetaWeightNet",
    "LearningToReweight",
    "MentorNet",
    "fit_mentor",
    "L2TData",
    "L2TLoss",
    # What a teacher reads.
    "Internal",
    "Label",
    "Loss",
    "Surface",
    "Group",
    "History",
    "TrustedProbe",
    "TrustedRegression",
    # How the meta-gradient is computed.
    "Reversed",
    "Stored",
    "Checkpointed",
    "Exact",
    "ExactSGD",
    "Unrolled",
    "Lookahead",
    "FirstOrder",
    # To write a teacher, a feature or an adjoint.
    "AbstractTeacher",
    "Feature",
    "AbstractAdjoint",
    "Snapshot",
    "Clock",
    # The package trains.
    "train",
    "Result",
    "cross_fitted",
    "TeachClassifier",
    "TeachRegressor",
    # What can go wrong.
    "DeepTeachError",
    "ConfigError",
    "DataError",
    "CheckpointError",
    "NumericError",
    "ReplayError",
    "StorageError",
    "CollapseWarning",
    "ReversalWarning",
    "WindowWarning",
    "__version__",
]

_HOME = {
    "core.adjoint.base": "AbstractAdjoint",
    "core.adjoint.fixed_point": "Exact ExactSGD",
    "core.adjoint.one_step": "FirstOrder Lookahead",
    "core.adjoint.reversed": "Reversed",
    "core.adjoint.stored": "Checkpointed Stored",
    "core.adjoint.unrolled": "Unrolled",
    "core.coach": "Coach",
    "core.feature": "Feature",
    "core.losses": "MassedLoss smooth_error",
    "core.snapshot": "Clock Snapshot",
    "core.student": "Outputs Student",
    "core.teacher": "AbstractTeacher",
    "core.update": "UpdateRecord",
    "errors": "CheckpointError CollapseWarning ConfigError DataError DeepTeachError "
    "NumericError ReplayError ReversalWarning StorageError WindowWarning",
    "integrations.sklearn": "TeachClassifier TeachRegressor",
    "teachers.features": "Internal Label Loss Surface",
    "teachers.focal": "Focal",
    "teachers.group": "Group",
    "teachers.history": "History",
    "teachers.l2t_data": "L2TData",
    "teachers.l2t_loss": "L2TLoss",
    "teachers.learning_to_reweight": "LearningToReweight",
    "teachers.linear": "Teacher",
    "teachers.mentor_network": "fit_mentor",
    "teachers.mentornet": "MentorNet",
    "teachers.meta_weight_net": "MetaWeightNet",
    "teachers.self_paced": "SelfPaced",
    "teachers.trusted_probe": "TrustedProbe",
    "teachers.trusted_regression": "TrustedRegression",
    "teachers.uniform": "Uniform",
    "training.api": "train",
    "training.result": "Result",
    "training.cross_fit": "cross_fitted",
}
_MODULES = {name: f"deepteach.{home}" for home, names in _HOME.items() for name in names.split()}

_SHELVES = {
    "errors": "deepteach.errors",
    "features": "deepteach.teachers.features",
    "models": "deepteach.models",
}
"""Modules that may be written as attributes without importing them: `dt.features`."""

if not TYPE_CHECKING:  # with it in sight, no misspelt name would be an error to them

    def __getattr__(name: str) -> object:
        """The public name, imported now and kept (PEP 562).

        Raises:
            AttributeError: no such public name.
        """
        if name in _SHELVES:
            found = import_module(_SHELVES[name])
        elif name in _MODULES:
            found = getattr(import_module(_MODULES[name]), name)
        else:
            raise AttributeError(f"module 'deepteach' has no attribute {name!r}")
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        """What may be written after `deepteach.`, imported yet or not."""
        return sorted({*globals(), *__all__, *_SHELVES})
