"""What the tables beyond the paper show of the default teacher: paired differences, by seed.

Two rows of a setting share a seed's world, split, noise, initial weights and order of samples.
Figures are of the last epoch: rows that train on the trusted set would select on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deepteach.report.stats import Gain, paired_gains
from deepteach.report.table import UNKNOWN, TextTable, mean_std
from deepteach.reproduction.beyond import BEYOND, GROUNDS
from deepteach.reproduction.cell import Role
from deepteach.reproduction.figures import Rows, by_seed, ranking

VERDICT_HEAD = (
    "setting", "n", "plain, error %", "best untaught row", "its n", "its error %",
    "deep, error %", "gain over plain", "95 % interval", "gain over best untaught", "its interval",
)  # fmt: skip
ROWS_HEAD = (
    "row", "n", "last, error %", "EMA at last", "gain over plain", "deep's gain over it",
    "95 % interval", "EMA: deep's gain", "AUROC", "first 100", "first 1,000", "AUROC w e^-loss",
    "loss's AUROC", "seconds",
)  # fmt: skip

Name = tuple[str, str]
"""Method and variant of a row."""


@dataclass(frozen=True)
class Standing:
    """Where the default teacher stands in one setting: its gains, None where a row is missing."""

    title: str
    over_plain: Gain | None
    best: Name | None
    """The untaught row, plain training aside, over which it gains least."""
    over_best: Gain | None


@dataclass(frozen=True)
class _Setting:
    """The rows of one setting by name and seed."""

    title: str
    student: str
    rows: Mapping[Name, Mapping[str, Mapping[str, str]]]
    roles: Mapping[Name, Role]

    def names(self, *roles: Role) -> list[Name]:
        return [name for name in self.rows if self.roles.get(name) in roles]

    def figures(self, name: Name, column: str) -> dict[str, float]:
        return by_seed(self.rows[name], column)

    def gain(self, other: Name, own: Name, column: str = "test_error_last") -> Gain | None:
        """Error of `other` minus that of `own`, over the seeds that both have."""
        theirs, ours = self.figures(other, column), self.figures(own, column)
        shared = [theirs[seed] - ours[seed] for seed in theirs if seed in ours]
        return paired_gains({"": shared})[""] if shared else None


def claimed(rows: Rows, scale: str) -> tuple[TextTable, ...]:
    """The verdict over the settings, and a table of all rows of each.

    Raises:
        DataError: a figure that is not a number.
    """
    settings = _settings(rows)
    verdict = TextTable(
        f"{rows[0]['table']} at scale {scale}: deep against plain training and untaught rows",
        VERDICT_HEAD,
        tuple(_verdict(setting) for setting in settings),
        (
            "test error in % at the last epoch, mean ± sample std over n seeds; gains in points, "
            "paired by seed, t intervals: above 0 is better",
            "the best untaught row of a setting is the one that is hardest for deep on the test "
            "set itself: a choice that favours it; its interval is over the seeds that both have",
        ),
    )
    return verdict, *(_rows(setting) for setting in settings)


def standings(rows: Rows) -> list[Standing]:
    """Of every setting of one table's rows.

    Raises:
        DataError: a figure that is not a number.
    """
    return [_standing(setting) for setting in _settings(rows)]


def _settings(rows: Rows) -> list[_Setting]:
    roles: dict[Name, Role] = {
        (row.method.partition("+")[0], row.variant): row.role
        for ground in GROUNDS.values()
        for setting in BEYOND[rows[0]["table"]](ground)
        for row in setting.rows
    }
    groups: dict[tuple[str, str, str], dict[Name, dict[str, Mapping[str, str]]]] = {}
    for row in rows:
        group = groups.setdefault((row["data"], row["noise"], row["student"]), {})
        group.setdefault((row["method"], row["variant"]), {})[row["seed"]] = row
    return [
        _Setting(f"{noise} ({data})", student, group, roles)
        for (data, noise, student), group in groups.items()
    ]


def _best_untaught(setting: _Setting, deep: Name) -> tuple[Name, Gain] | None:
    """The untaught row, plain training aside, over which `deep` gains least."""
    gains = {name: setting.gain(name, deep) for name in setting.names("untaught")}
    found = {name: gain for name, gain in gains.items() if gain is not None}
    return min(found.items(), key=lambda item: item[1].mean) if found else None


def _standing(setting: _Setting) -> Standing:
    plain, deep = setting.names("plain"), setting.names("deep")
    over = setting.gain(plain[0], deep[0]) if plain and deep else None
    best = _best_untaught(setting, deep[0]) if deep else None
    return Standing(setting.title, over, *(best or (None, None)))


def _verdict(setting: _Setting) -> tuple[str, ...]:
    plain, deep, found = setting.names("plain"), setting.names("deep"), _standing(setting)
    untaught = (UNKNOWN,) * 3
    if found.best is not None and found.over_best is not None:
        untaught = (_shown(found.best), str(found.over_best.n), _errors(setting, found.best))
    return (
        setting.title,
        str(found.over_plain.n) if found.over_plain else "0",
        _errors(setting, plain[0]) if plain else UNKNOWN,
        *untaught,
        _errors(setting, deep[0]) if deep else UNKNOWN,
        *_gain(found.over_plain),
        *_gain(found.over_best),
    )


def _rows(setting: _Setting) -> TextTable:
    plain, deep = setting.names("plain"), setting.names("deep")
    lines = []
    for name, seeds in setting.rows.items():
        over_plain = setting.gain(plain[0], name) if plain and name != plain[0] else None
        others = deep and name != deep[0]
        behind = setting.gain(name, deep[0]) if others else None
        averaged = setting.gain(name, deep[0], "test_error_ema_last") if others else None
        lines.append((
            _shown(name), str(len(seeds)), _errors(setting, name),
            _errors(setting, name, "test_error_ema_last"), _gain(over_plain)[0], *_gain(behind),
            _gain(averaged)[0], ranking(list(setting.figures(name, "noise_auroc").values())),
            *(_share(setting, name, f"noise_precision_{k}") for k in (100, 1000)),
            ranking(list(setting.figures(name, "quality_auroc").values())),
            ranking(list(setting.figures(name, "loss_auroc").values())),
            mean_std(list(setting.figures(name, "seconds").values()), 0),
        ))  # fmt: skip
    notes = (
        "deep's gain: error of the row minus that of deep, paired by seed; AUROC and the shares of "
        "wrong labels among the first 100 and 1,000 are of the row's own ranking of the samples, "
        "AUROC w e^-loss of its mean weights times its student's belief in the label at the end, "
        "the loss's AUROC of the row's losses at the end: that of uniform is plain training's",
    )
    return TextTable(f"{setting.title}, {setting.student}", ROWS_HEAD, tuple(lines), notes)


def _shown(name: Name) -> str:
    return f"{name[0]} ({name[1]})" if name[1] else name[0]


def _errors(setting: _Setting, name: Name, column: str = "test_error_last") -> str:
    return mean_std(list(setting.figures(name, column).values()))


def _share(setting: _Setting, name: Name, column: str) -> str:
    return mean_std(list(setting.figures(name, column).values()), 2)


def _gain(gain: Gain | None) -> tuple[str, str]:
    return (UNKNOWN, UNKNOWN) if gain is None else (gain.points, gain.interval)
