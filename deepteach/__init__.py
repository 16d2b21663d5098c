"""Train a PyTorch model together with a teacher that weighs every training sample."""

from deepteach.adjoint import AbstractAdjoint, Reversed, Stored, Unrolled
from deepteach.coach import Coach, UpdateRecord
from deepteach.errors import (
    CheckpointError,
    CollapseWarning,
    ConfigError,
    DataError,
    DeepTeachError,
    NumericError,
    ReplayError,
    StorageError,
)
from deepteach.estimator import TeachClassifier
from deepteach.features import (
    Clock,
    Feature,
    Internal,
    Label,
    Loss,
    Snapshot,
    Surface,
    TrustedProbe,
)
from deepteach.lookahead import Lookahead
from deepteach.student import Outputs, Student
from deepteach.teacher import AbstractTeacher, MetaWeightNet, Teacher, Uniform
from deepteach.train import Result, train

__version__ = "0.1.0"
