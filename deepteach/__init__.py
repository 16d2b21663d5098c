"""Train a PyTorch model together with a teacher that weighs every training sample."""

from deepteach.core.adjoint.base import AbstractAdjoint
from deepteach.core.adjoint.fixed_point import Exact, ExactSGD
from deepteach.core.adjoint.one_step import FirstOrder, Lookahead
from deepteach.core.adjoint.reversed import Reversed
from deepteach.core.adjoint.stored import Checkpointed, Stored
from deepteach.core.adjoint.unrolled import Unrolled
from deepteach.core.coach import Coach, UpdateRecord
from deepteach.core.feature import Feature
from deepteach.core.losses import smooth_error
from deepteach.core.snapshot import Clock, Snapshot
from deepteach.core.student import Outputs, Student
from deepteach.core.teacher import AbstractTeacher
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
from deepteach.integrations.sklearn import TeachClassifier
from deepteach.teachers.features import Internal, Label, Loss, Surface, TrustedProbe
from deepteach.teachers.focal import Focal
from deepteach.teachers.l2t_data import L2TData
from deepteach.teachers.l2t_loss import L2TLoss
from deepteach.teachers.learning_to_reweight import LearningToReweight
from deepteach.teachers.linear import Teacher
from deepteach.teachers.mentornet import MentorNet, fit_mentor
from deepteach.teachers.meta_weight_net import MetaWeightNet
from deepteach.teachers.self_paced import SelfPaced
from deepteach.teachers.uniform import Uniform
from deepteach.training.api import Result, train

__version__ = "0.1.0"
