"""Choose a list's release, width, order or items by GrowthBook's features and its own evaluation: an app or a page that
evaluates the same features assigns visitors alike.

A feature whose name begins with "baguni." is a knob, and the feature's value is what the knob is set to:

    baguni.release         a release id, loaded by `baguni release load`; the active one otherwise
    baguni.rescored        whether the generative head may order the list
    baguni.num_retrieved   candidates from the vector search, 1 to 15,000
    baguni.diversity       0 to 1, instead of the request's
    baguni.explore         {"share": .1, "among": 40}: a tenth of the lists have their first 40 items in random order
    baguni.list            "model", or a control: "popular", or item ids in their order

Other features may exist as prerequisites of these. Evaluation is pure: it stores nothing, and exposures are reported with the
list, where it is used.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from growthbook.common_types import EvaluationContext, Feature, GlobalContext, Options, StackContext, UserContext
from growthbook.core import eval_feature

from baguni.domain.errors import InvalidInputError
from baguni.domain.release import RELEASE_ID

log = logging.getLogger(__name__)
PREFIX = "baguni."
MAX_LABEL = 1_024  # bytes of an experiment's or a variation's key
TRIED = 16  # made-up shoppers for whom a new set of features is evaluated before it is taken over
MODEL, POPULAR = "model", "popular"
MAX_RETRIEVED, MAX_LISTED, MAX_EXPLORED = 15_000, 5_000, 200


@dataclass(frozen=True)
class Assignment:
    """The variation of an experiment that a visitor is in."""

    experiment: str
    variation: str


@dataclass(frozen=True)
class Exploration:
    """Chance orders the first `among` items of a `share` of the lists."""

    share: float
    among: int


@dataclass(frozen=True)
class Choices:
    """Choices of experiments for one list; None leaves the gateway's default. `assignments`: the experiments that chose."""

    release_id: str | None = None
    rescored: bool | None = None
    num_retrieved: int | None = None
    diversity: float | None = None
    listed: str | tuple[str, ...] = MODEL
    explore: Exploration | None = None
    assignments: tuple[Assignment, ...] = ()
    release_experiment: str = ""  # the one that chose the release

    def without_release(self, served: str) -> Choices:
        """Return the choices if their release is the served one, else those of the other experiments."""
        if self.release_id in (None, served):
            return self
        left = tuple(each for each in self.assignments if each.experiment != self.release_experiment)
        return replace(self, release_id=None, assignments=left, release_experiment="")


NO_CHOICES = Choices()


@dataclass(frozen=True)
class Knob:
    """One thing that an experiment may choose: its field in `Choices`, what a value of it must be, and how it is kept."""

    field: str
    expected: str
    is_valid: Callable[[Any], bool]
    kept: Callable[[Any], Any] = lambda value: value


def _is_number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _is_whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and _is_number(value, low, high)


def _is_listed(value: Any) -> bool:
    if isinstance(value, list):
        return 0 < len(value) <= MAX_LISTED and all(isinstance(item_id, str) and item_id for item_id in value)
    return value in (MODEL, POPULAR)


def _is_exploration(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {"share", "among"}:
        return False
    share, among = value["share"], value["among"]
    return _is_number(share, 0, 1) and 0 < share < 1 and _is_whole(among, 2, MAX_EXPLORED)


KNOBS = {
    "release": Knob(
        "release_id",
        "a release id, or null",
        lambda value: value is None or (isinstance(value, str) and RELEASE_ID.fullmatch(value) is not None),
    ),
    "rescored": Knob("rescored", "true or false", lambda value: isinstance(value, bool)),
    "num_retrieved": Knob(
        "num_retrieved",
        f"a whole number from 1 to {MAX_RETRIEVED}",
        lambda value: _is_whole(value, 1, MAX_RETRIEVED),
    ),
    "diversity": Knob("diversity", "a number from 0 to 1", lambda value: _is_number(value, 0, 1)),
    "list": Knob(
        "listed",
        f'"model", "popular", or 1 to {MAX_LISTED} item ids',
        _is_listed,
        lambda value: tuple(value) if isinstance(value, list) else value,
    ),
    "explore": Knob(
        "explore",
        f'{{"share": a number between 0 and 1, "among": a whole number from 2 to {MAX_EXPLORED}}}',
        _is_exploration,
        lambda value: Exploration(**value),
    ),
}


class Experiments:
    """One set of features. Raises InvalidInputError that names the feature and what its value should be."""

    def __init__(self, payload: Mapping[str, Any], where: str = "features") -> None:
        features = payload.get("features")
        if not isinstance(features, dict):
            raise InvalidInputError(
                f"{where}: features is {type(features).__name__}, expected GrowthBook's SDK payload"
            )
        self._knobs = {name: _knob(name, where) for name in features if name.startswith(PREFIX)}
        for name, knob in self._knobs.items():
            for value in _values(name, features[name], where):
                if not knob.is_valid(value):
                    raise InvalidInputError(f"{where}: {name} is {json.dumps(value)[:80]}, expected {knob.expected}")
        try:
            built = {name: Feature(**_arguments(feature)) for name, feature in features.items()}
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise InvalidInputError(f"{where}: not GrowthBook's SDK payload: {error}") from error
        saved_groups = payload.get("savedGroups") or {}
        self._context = GlobalContext(Options(enabled=True), built, saved_groups)
        self._release_values = _releases(features)
        self.on_error: Callable[[], None] = lambda: None  # called when a feature cannot be evaluated for somebody
        self._failed: set[str] = set()
        self._try(where)

    def _try(self, where: str) -> None:
        """Evaluate everything for some made-up shoppers: what fails here would fail for real ones."""
        for number in range(TRIED):
            who = {"id": f"tried-{number}", "user_id": f"tried-{number}", "is_anonymous": False, "placement": "home"}
            user = UserContext(attributes=who)
            for name in self._knobs:
                try:
                    eval_feature(name, EvaluationContext(user, self._context, StackContext()))
                except Exception as error:  # GrowthBook's evaluation raises anything for rules of another shape
                    raise InvalidInputError(
                        f"{where}: {name} cannot be evaluated, expected GrowthBook's SDK payload: "
                        f"{type(error).__name__} {error}"
                    ) from error

    @property
    def release_ids(self) -> frozenset[str]:
        """Return the releases that some variation chooses."""
        return self._release_values

    @property
    def are_there(self) -> bool:
        """Return whether any feature is for the gateway."""
        return bool(self._knobs)

    def choose(self, attributes: Mapping[str, Any]) -> Choices:
        """Return what is chosen for a visitor with these attributes. Without `id`, by which visitors are assigned: nothing."""
        if not self._knobs or not attributes.get("id"):
            return NO_CHOICES
        user = UserContext(attributes=dict(attributes))
        chosen: dict[str, Any] = {}
        assignments: dict[str, Assignment] = {}
        for name, knob in self._knobs.items():
            found = self._evaluated(name, user)
            if found is None or not knob.is_valid(found.value):
                continue  # a prerequisite that is not met, or a cycle of them: as without the feature
            chosen[knob.field] = knob.kept(found.value)
            if (
                found.experiment is not None
                and found.experimentResult is not None
                and found.experimentResult.inExperiment
            ):
                key, variation = str(found.experiment.key), str(found.experimentResult.key)
                if not (_is_label(key) and _is_label(variation)):
                    self.on_error()
                    continue
                assignments[key] = Assignment(key, variation)
                if knob.field == "release_id":
                    chosen["release_experiment"] = key
        chosen["assignments"] = tuple(assignments.values())
        return replace(NO_CHOICES, **chosen)

    def _evaluated(self, name: str, user: UserContext) -> Any:
        """Return the feature's result, None if evaluating it fails: the list is made as without the feature."""
        try:
            return eval_feature(name, EvaluationContext(user, self._context, StackContext()))
        except Exception:
            self.on_error()
            if name not in self._failed:  # once: it may fail for everybody
                self._failed.add(name)
                log.exception("a feature cannot be evaluated: lists are made without it feature=%r", name)
            return None


def parse(text: str, where: str) -> Experiments:
    """Experiments of a JSON payload. Raises InvalidInputError, and nothing else."""
    try:
        payload = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{where} is no JSON: {error}") from error
    if not isinstance(payload, dict):
        raise InvalidInputError(f"{where} holds {type(payload).__name__}, expected GrowthBook's SDK payload")
    if payload.get("encryptedFeatures"):
        raise InvalidInputError(f"{where}: the features are encrypted, expected an SDK connection without encryption")
    try:
        return Experiments(payload, where)
    except InvalidInputError:
        raise
    except Exception as error:  # a payload of any other shape
        raise InvalidInputError(f"{where}: not GrowthBook's SDK payload: {type(error).__name__} {error}") from error


def _knob(name: str, where: str) -> Knob:
    knob = KNOBS.get(name.removeprefix(PREFIX))
    if knob is None:
        known = ", ".join(PREFIX + known for known in KNOBS)
        raise InvalidInputError(f"{where}: there is no {name}, expected one of {known}")
    return knob


def _is_label(text: str) -> bool:
    """Return whether a response can carry it."""
    try:
        return len(text.encode()) <= MAX_LABEL
    except UnicodeEncodeError:
        return False


def _rules(feature: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [rule for rule in feature.get("rules") or () if isinstance(rule, dict)]


def _values(name: str, feature: Any, where: str) -> list[Any]:
    """Every value that a feature can have."""
    if not isinstance(feature, dict):
        raise InvalidInputError(f"{where}: {name} is {json.dumps(feature)[:80]}, expected a feature")
    values = [feature["defaultValue"]] if feature.get("defaultValue") is not None else []
    for rule in _rules(feature):
        values += rule.get("variations") or ()
        values += [rule["force"]] if "force" in rule else []
    return values


def _releases(features: Mapping[str, Any]) -> frozenset[str]:
    feature = features.get(f"{PREFIX}release")
    return frozenset(_values(f"{PREFIX}release", feature, "")) - {None} if feature else frozenset()


def _arguments(feature: Mapping[str, Any]) -> dict[str, Any]:
    return {"defaultValue": feature.get("defaultValue"), "rules": _rules(feature)}


NO_EXPERIMENTS = Experiments({"features": {}})
