"""Train a PyTorch model together with a teacher that weighs every training sample."""

from deepteach.adjoint import AbstractAdjoint, Checkpointed, Reversed, Stored, Unrolled
from deepteach.baselines import Focal, LearningToReweight, MetaWeightNet, SelfPaced
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
from deepteach.exact import Exact, ExactSGD
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
from deepteach.l2t_data import L2TData
from deepteach.l2t_loss import L2TLoss, smooth_error
from deepteach.lookahead import FirstOrder, Lookahead
from deepteach.mentornet import MentorNet, fit_mentor
from deepteach.student import Outputs, Student
from deepteach.teacher import AbstractTeacher, Teacher, Uniform
from deepteach.train import Result, train

__version__ = "0.1.0"
