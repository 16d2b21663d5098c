"""What `--method` names: a teacher, how it is taught, and what the student is trained on.

A recipe is a function of the problem; the training loop knows none of their names. Its
keyword arguments are settings of the method, written behind its name:
`--method focal+gamma=0.5`. Sources and reasons are in docs/methods.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from pydantic import ConfigDict, ValidationError, validate_call

from deepteach.core.adjoint.one_step import FirstOrder, Lookahead
from deepteach.core.feature import Feature
from deepteach.errors import ConfigError
from deepteach.names import known
from deepteach.runs.reader import open_run
from deepteach.teachers import controls, trusted_set
from deepteach.teachers.confident_learning import Pruned
from deepteach.teachers.features import Internal, Label, Surface, TrustedProbe
from deepteach.teachers.focal import Focal, GeneralisedCrossEntropy
from deepteach.teachers.l2t_data import L2TData, Selection
from deepteach.teachers.l2t_loss import L2TLoss
from deepteach.teachers.learning_to_reweight import LearningToReweight
from deepteach.teachers.linear import Teacher
from deepteach.teachers.mentornet import Flagged, MentorNet, PredefinedKind
from deepteach.teachers.meta_weight_net import MetaWeightNet
from deepteach.teachers.method import Method, Parameters, Problem, adam, nesterov
from deepteach.teachers.self_paced import SelfPaced, Softness
from deepteach.teachers.uniform import Uniform


def uniform(problem: Problem) -> Method:
    """Plain training."""
    return Method(Uniform())


Control = Literal["none", "shuffled", "frozen", "random-features", "random-gradient"]


def deep(problem: Problem, control: Control = "none", fine_tune: float = 0.0) -> Method:
    """The default: a trusted probe of the internal states, read by a linear teacher.

    An MLP in its place was no more accurate and ranked wrong labels far worse (LOG.md).
    `fine_tune` is the share of the epochs, the last ones, that train on the trusted set alone.
    A `control` takes one part of its signal away; if it does as well, that part did nothing.
    """
    whole = Method(Teacher([TrustedProbe()]), teacher_rate=3e-2)
    if fine_tune and control != "none":
        raise ConfigError("fine_tune and control cannot be combined: choose one")
    if fine_tune:
        return replace(whole, curriculum=trusted_set.FineTuned(fine_tune))
    match control:
        case "none":
            return whole
        case "shuffled":
            return replace(whole, teacher=controls.Shuffled(whole.teacher, problem.seed))
        case "random-features":
            features = controls.RandomNumbers(TrustedProbe.width, problem.seed)
            return replace(whole, teacher=Teacher([features]))
        case "random-gradient":
            return replace(whole, make_optimizer=_noisy_adam(problem.seed))
        case "frozen":
            if problem.teacher_from is None:
                raise ConfigError(
                    "control=frozen takes the weights of a finished run: name its folder with "
                    "teacher_from"
                )
            given = controls.Given()
            weights = open_run(problem.teacher_from).weights
            return Method(given, curriculum=controls.Frozen(given, weights))


def _noisy_adam(seed: int) -> Callable[[Parameters, float, float], torch.optim.Optimizer]:
    def make(parameters: Parameters, rate: float, decay: float) -> torch.optim.Optimizer:
        return controls.noise_gradients(adam(parameters, rate, decay), seed)

    return make


def paper(problem: Problem, features: str = "I0.M0", hidden_layers: int = 0) -> Method:
    """The paper's default, I0 + M0 and a linear teacher (Fan et al., section 3.3).

    `features` are I0, M0 and M1 joined by points; I0 is the state of the layer that the run
    names, so I1 to I3 are I0 of another layer. `hidden_layers` 1 and 2 are MLP-1 and MLP-2.
    """
    features_of: dict[str, Callable[[], Feature]] = {
        "I0": lambda: Internal(problem.width),
        "M0": lambda: Label(problem.classes),
        "M1": Surface,
    }
    names = features.split(".")
    unknown = [name for name in names if name not in features_of]
    if unknown or len(set(names)) < len(names):
        wrong = repr(unknown[0]) if unknown else "one of them twice"
        raise ConfigError(f"features are {', '.join(features_of)} joined by points, got {wrong}")
    return Method(Teacher([features_of[name]() for name in names], hidden_layers))


def focal(problem: Problem, gamma: float = 2.0, through: bool = True) -> Method:
    """Lin et al. 2017; the paper searches gamma in 0.5, 1, 2."""
    return Method(Focal(gamma, through=through))


def spl(
    problem: Problem,
    kind: Softness = "hard",
    start: float = 0.5,
    end: float = 1.0,
    full: float = 0.8,
    pace: Literal["linear", "geometric"] = "linear",
) -> Method:
    """Self-paced learning by fractions of each batch."""
    return Method(SelfPaced(kind, start=start, end=end, full=full, pace=pace))


def mwn(problem: Problem, normalised: bool = True, momentum: bool = False) -> Method:
    """Meta-Weight-Net on the common schedule: Adam 1e-3, one lookahead before every step.

    Taught at every step, its network saturates at the other methods' 1e-2.
    """
    teacher = MetaWeightNet(normalised=normalised)
    return Method(teacher, Lookahead(momentum=momentum), interval=1, window=1, teacher_rate=1e-3)


def mwn_sgd(problem: Problem) -> Method:
    """Meta-Weight-Net as first published: normalised, SGD 1e-3 with Nesterov momentum 0.9."""
    return Method(
        MetaWeightNet(),
        Lookahead(),
        interval=1,
        window=1,
        teacher_rate=1e-3,
        teacher_decay=5e-4,
        make_optimizer=nesterov,
        follows_schedule=False,
    )


def mwn_adam(problem: Problem) -> Method:
    """Meta-Weight-Net's second script: not normalised, Adam 1e-3 with weight decay 1e-4."""
    return Method(
        MetaWeightNet(normalised=False),
        Lookahead(),
        interval=1,
        window=1,
        teacher_rate=1e-3,
        teacher_decay=1e-4,
        follows_schedule=False,
    )


def sama(problem: Problem, radius: float = 0.01) -> Method:
    """Meta-Weight-Net's teacher, taught by SAMA's first-order estimator after every step."""
    return Method(MetaWeightNet(), FirstOrder(radius), interval=1, window=1)


def l2rw(problem: Problem) -> Method:
    """Learning to reweight: free weights of every batch."""
    return Method(LearningToReweight(), interval=1, window=1)


def mentornet(
    problem: Problem,
    kind: PredefinedKind = "published",
    percentile: float = 0.7,
    decay: float = 0.9,
) -> Method:
    """MentorNet's predefined curricula."""
    return Method(MentorNet(kind, percentile=percentile, decay=decay, seed=problem.seed))


def mentornet_dd(
    problem: Problem, percentile: float = 0.7, decay: float = 0.9, corrupted: float = 0.4
) -> Method:
    """MentorNet's data-driven network, learned in a first training from the trusted set."""
    teacher = MentorNet("data-driven", percentile=percentile, decay=decay, seed=problem.seed)
    return Method(teacher, curriculum=Flagged(teacher, corrupted))


def l2t_data(problem: Problem, episodes: int = 10, hidden: int = 0) -> Method:
    """REINFORCE over `episodes` trainings. The published rates are for hundreds of them."""
    teacher = L2TData(problem.classes, hidden=hidden, pooled=True, seed=problem.seed)
    return Method(
        teacher,
        interval=problem.steps,
        window=1,
        follows_schedule=False,
        curriculum=Selection(teacher, episodes),
    )


def l2t_loss(problem: Problem, slots: int = 4, mix: float = 0.5) -> Method:
    """A learned loss, taught through whole blocks of stored steps by the smooth 0/1 error.

    Blocks have 200 steps as published where the run has 50 of them, else a 50th of the run.
    Half cross-entropy, as in the authors' code: alone, the loss hardly trains at usual rates.
    """
    block = max(1, min(200, problem.steps // 50))
    return Method(
        L2TLoss(problem.classes, slots=slots, mix=mix),
        interval=block,
        window=block,
        teacher_rate=1e-3,
        validation_loss="smooth_error",
    )


def trusted_only(problem: Problem) -> Method:
    """Plain training on the trusted set alone."""
    return Method(Uniform(), curriculum=trusted_set.TrustedOnly())


def merged(problem: Problem) -> Method:
    """Plain training on the training and the trusted set as one."""
    return Method(Uniform(), curriculum=trusted_set.Merged())


def fine_tune(problem: Problem, share: float = 1 / 3) -> Method:
    """Plain training, then the trusted set for the last share of the epochs."""
    return Method(Uniform(), curriculum=trusted_set.FineTuned(share))


def probe(problem: Problem) -> Method:
    """The default teacher's probe as fixed weights."""
    return Method(controls.FixedProbe(), window=1)


def gce(problem: Problem, q: float = 0.7) -> Method:
    """Generalised cross-entropy."""
    return Method(GeneralisedCrossEntropy(q))


def cleanlab(problem: Problem, folds: int = 5) -> Method:
    """Find label issues by cross-validation, prune, retrain."""
    return Method(Uniform(), curriculum=Pruned(folds))


METHODS: dict[str, Callable[..., Method]] = {
    "deep": deep,
    "paper": paper,
    "uniform": uniform,
    "focal": focal,
    "spl": spl,
    "mwn": mwn,
    "mwn-sgd": mwn_sgd,
    "mwn-adam": mwn_adam,
    "l2rw": l2rw,
    "mentornet": mentornet,
    "mentornet-dd": mentornet_dd,
    "l2t-data": l2t_data,
    "l2t-loss": l2t_loss,
    "sama": sama,
    "trusted-only": trusted_only,
    "merged": merged,
    "fine-tune": fine_tune,
    "probe": probe,
    "gce": gce,
    "cleanlab": cleanlab,
}


def method(text: str, problem: Problem) -> Method:
    """The recipe `name`, or `name+key=value+...`; what is unknown is refused by name.

    Raises:
        ConfigError: an unknown name (with the nearest), an unknown setting, a bad value.
    """
    name, *changes = text.split("+")
    recipe = known("method", name, METHODS)
    keys = list(inspect.signature(recipe).parameters)[1:]
    settings = {change.partition("=")[0]: change.partition("=")[2] for change in changes}
    for key in settings:
        if key not in keys:
            has = f"its settings are {', '.join(keys)}" if keys else "it has none"
            raise ConfigError(f"method {name} has no setting {key!r}: {has}")
    try:
        checked = validate_call(config=ConfigDict(arbitrary_types_allowed=True))(recipe)
        return checked(problem, **settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"method {name}: {where}: {first['msg'].lower()}, got {first['input']!r}"
        ) from None
