"""Experiments: who is in which variation, by GrowthBook's own features; and what is wrong with a payload, by name."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from typing import Any

import pytest
from growthbook.core import chooseVariation, gbhash, getBucketRanges
from hypothesis import given, settings
from hypothesis import strategies as st

from baguni.domain.errors import InvalidInputError
from server.experiments import choices
from server.experiments.choices import KNOBS, MODEL, Assignment, Experiments, parse


def features(**named: Any) -> Experiments:
    return Experiments({"features": {f"baguni.{name}": feature for name, feature in named.items()}})


def split(key: str, *variations: Any, **more: Any) -> dict[str, Any]:
    rule = {"key": key, "variations": list(variations), "hashAttribute": "id", "coverage": 1, **more}
    return {"defaultValue": None, "rules": [rule]}


# Bucketing as GrowthBook documents it: its SDKs publish these, in every language.
@pytest.mark.parametrize(
    ("seed", "value", "version", "bucket"),
    [
        ("", "a", 1, 0.22),
        ("", "b", 1, 0.077),
        ("b", "a", 1, 0.946),
        ("ef", "d", 1, 0.652),
        ("asdf", "8952klfjas09ujk", 1, 0.549),
        ("", "123", 1, 0.011),
        ("", '___)((*":&', 1, 0.563),
        ("seed", "a", 2, 0.0505),
        ("seed", "b", 2, 0.2696),
        ("foo", "ab", 2, 0.2575),
        ("foo", "def", 2, 0.2019),
        ("89123klj", "8952klfjas09ujkasdf", 2, 0.124),
        ("90850943850283058242805", "123", 2, 0.7516),
        ("abc", "def", 99, None),
    ],
)
def test_published_buckets(seed: str, value: str, version: int, bucket: float | None) -> None:
    assert gbhash(seed, value, version) == bucket


@pytest.mark.parametrize(
    ("count", "coverage", "ranges"),
    [
        (2, 1, [(0, 0.5), (0.5, 1)]),
        (2, 0.5, [(0, 0.25), (0.5, 0.75)]),
        (2, 0, [(0, 0), (0.5, 0.5)]),
        (4, 1, [(0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)]),
    ],
)
def test_published_ranges(count: int, coverage: float, ranges: list[tuple[float, float]]) -> None:
    assert getBucketRanges(count, coverage) == ranges


@pytest.mark.parametrize(
    ("bucket", "ranges", "variation"),
    [
        (0.2, [(0, 0.5), (0.5, 1)], 0),
        (0.4, [(0, 0.5), (0.5, 1)], 0),
        (0.6, [(0, 0.5), (0.5, 1)], 1),
        (0.8, [(0, 0.5), (0.5, 1)], 1),
        (0.25, [(0, 0.25), (0.5, 0.75)], -1),
        (0.5, [(0, 0.25), (0.5, 0.75)], 1),
        (0.8, [(0, 0.25), (0.5, 0.75)], -1),
        (0.5, [(0, 0.5), (0.5, 0.5), (0.5, 1)], 2),
    ],
)
def test_published_variations(bucket: float, ranges: list[tuple[float, float]], variation: int) -> None:
    assert chooseVariation(bucket, ranges) == variation


@pytest.mark.parametrize(
    ("user_id", "namespace", "variation"),
    [
        ("1", ["namespace1", 0, 0.4], None),
        ("1", ["namespace1", 0.4, 1], "1"),
        ("1", ["namespace2", 0, 0.4], None),
        ("1", ["namespace2", 0.4, 1], "1"),
        ("2", ["namespace1", 0, 0.4], None),
        ("2", ["namespace1", 0.4, 1], "0"),
        ("1", ["namespace", 0.1, 1], "1"),
        ("1", ["namespace", 0, 0.1], None),
    ],
)
def test_published_namespaces(user_id: str, namespace: list[Any], variation: str | None) -> None:
    """Through the gateway's own evaluation; the key of the experiment is that of the published case."""
    found = features(rescored=split("my-test", True, False, namespace=namespace)).choose({"id": user_id})
    expected = () if variation is None else (Assignment("my-test", variation),)
    assert found.assignments == expected


def test_everybody_is_where_their_bucket_says() -> None:
    """An experiment's variation is what anybody computes from the published hash, in an app as here."""
    for version in (1, 2):
        found = features(rescored=split("order", True, False, seed="s", hashVersion=version, weights=[0.3, 0.7]))
        counts: Counter[str] = Counter()
        for number in range(3_000):
            choices = found.choose({"id": f"u{number}"})
            bucket = gbhash("s", f"u{number}", version)
            assert bucket is not None
            expected = 0 if bucket < 0.3 else 1
            assert choices.rescored is (expected == 0)
            assert choices.assignments == (Assignment("order", str(expected)),)
            counts[str(expected)] += 1
        assert abs(counts["0"] - 900) < 4 * (3_000 * 0.3 * 0.7) ** 0.5


def test_targets_namespaces_coverage_and_holdouts() -> None:
    found = features(
        diversity=split("sale", 0.0, 0.5, condition={"placement": "sale_page", "country": {"$in": ["KR"]}}),
        num_retrieved=split("wide", 50, 500, namespace=["ns", 0, 0.5]),
        list=split("control", "model", "popular", coverage=0.2),
    )
    shopper = {"placement": "sale_page", "country": "KR"}
    seen: Counter[str] = Counter()
    for number in range(2_000):
        choices = found.choose({"id": str(number), **shopper})
        seen.update(each.experiment for each in choices.assignments)
        assert ("sale" in {each.experiment for each in choices.assignments}) is (choices.diversity is not None)
        assert found.choose({"id": str(number), "placement": "home", "country": "KR"}).diversity is None
    assert seen["sale"] == 2_000
    assert 900 < seen["wide"] < 1_100
    assert 320 < seen["control"] < 480


def test_a_holdout_keeps_people_out_of_the_experiments_that_name_it() -> None:
    """GrowthBook expresses a holdout as a feature that experiments have as a prerequisite."""
    holdout = {
        "defaultValue": "in",
        "rules": [{"key": "hold", "variations": ["out", "in"], "hashAttribute": "id", "weights": [0.1, 0.9]}],
    }
    needs = {"parentConditions": [{"id": "holdout", "condition": {"value": "in"}, "gate": True}]}
    order = {**needs, "key": "order", "variations": [True, False], "hashAttribute": "id"}
    found = Experiments({"features": {"holdout": holdout, "baguni.rescored": {"defaultValue": None, "rules": [order]}}})
    outside = sum(not found.choose({"id": str(number)}).assignments for number in range(2_000))
    assert 140 < outside < 270


def test_nobody_without_an_id_is_in_anything() -> None:
    found = features(rescored=split("order", True, False))
    assert found.choose({"id": "", "placement": "home"}).assignments == ()
    assert found.choose({"id": "", "placement": "home"}).listed == MODEL


def test_a_release_that_is_not_served_is_no_assignment() -> None:
    found = features(release=split("candidate", "r1", "r1"), rescored=split("order", True, True))
    chosen = found.choose({"id": "u"})
    assert chosen.release_id == "r1"
    assert found.release_ids == {"r1"}
    assert {each.experiment for each in chosen.without_release("r1").assignments} == {"candidate", "order"}
    elsewhere = chosen.without_release("r0")
    assert elsewhere.release_id is None
    assert {each.experiment for each in elsewhere.assignments} == {"order"}


@pytest.mark.parametrize(
    ("payload", "named"),
    [
        ("{", "no JSON"),
        ("[]", "holds list"),
        ("{}", "features is NoneType"),
        ('{"features": {}, "encryptedFeatures": "x"}', "encrypted"),
        ('{"features": {"baguni.colour": {}}}', "there is no baguni.colour, expected one of baguni.release"),
        (
            '{"features": {"baguni.diversity": {"defaultValue": 2}}}',
            "baguni.diversity is 2, expected a number from 0 to 1",
        ),
        ('{"features": {"baguni.rescored": {"rules": [{"variations": [true, "no"]}]}}}', 'baguni.rescored is "no"'),
        ('{"features": {"baguni.list": {"rules": [{"force": []}]}}}', "baguni.list is []"),
        ('{"features": {"baguni.rescored": 7}}', "baguni.rescored is 7, expected a feature"),
    ],
)
def test_what_is_wrong_with_a_payload(payload: str, named: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        parse(payload, "features.json")
    assert named in str(refused.value)
    assert "features.json" in str(refused.value)


FOREIGN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.just("baguni.list"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "$in", "$gt", "$regex", "$not", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
RULES = st.dictionaries(
    st.sampled_from(
        [
            "key",
            "variations",
            "force",
            "coverage",
            "weights",
            "ranges",
            "hashAttribute",
            "hashVersion",
            "condition",
            "namespace",
            "seed",
            "parentConditions",
            "minBucketVersion",
            "filters",
            "meta",
            "tracks",
            "disableStickyBucketing",
            "fallbackAttribute",
        ]
    ),
    FOREIGN | st.just(["popular"]) | st.just([True, False]) | st.just("r1"),
    max_size=6,
)
FEATURES = st.fixed_dictionaries(
    {}, optional={"defaultValue": FOREIGN | st.none(), "rules": FOREIGN | st.lists(RULES, max_size=3)}
)


@settings(max_examples=500)
@given(
    st.dictionaries(st.sampled_from([f"baguni.{name}" for name in KNOBS] + ["other"]), FEATURES | FOREIGN, max_size=3),
    FOREIGN,
)
def test_a_payload_of_any_shape_is_refused_or_chooses(named: dict[str, Any], groups: Any) -> None:
    """Features that are taken over never fail for a shopper, whoever it is."""
    try:
        found = parse(json.dumps({"features": named, "savedGroups": groups}), "x")
    except InvalidInputError:
        return
    for who in ({"id": "u"}, {"id": "7", "country": "KR", "x": 3}, {"id": "\u2028", "x": None}):
        found.choose(who)


def test_a_feature_that_fails_for_somebody_costs_its_choice_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    found = features(list={"defaultValue": "popular"}, rescored={"defaultValue": False})
    told: list[str] = []
    found.on_error = lambda: told.append("failed")
    evaluate = choices.eval_feature

    def fails_for_a_list(name: str, context: Any) -> Any:
        if name == "baguni.list":
            raise TypeError("'<' not supported between instances of 'str' and 'int'")
        return evaluate(name, context)

    monkeypatch.setattr(choices, "eval_feature", fails_for_a_list)
    chosen = found.choose({"id": "u"})
    assert (chosen.listed, chosen.rescored, told) == (MODEL, False, ["failed"])


def test_a_key_that_no_response_can_carry_assigns_nobody() -> None:
    rule = {"key": "\ud800", "variations": ["model", "popular"], "hashAttribute": "id", "coverage": 1}
    found = parse(json.dumps({"features": {"baguni.list": {"defaultValue": "model", "rules": [rule]}}}), "x")
    assert found.choose({"id": "u"}).assignments == ()


def test_assignment_is_quick_and_remembers_nobody() -> None:
    """The memory of 20,000 further users; what an assignment costs in time is a row of `make bench-crm`."""
    found = parse(json.dumps({"features": {"baguni.rescored": split("order", True, False)}}), "x")
    for number in range(1_000):
        found.choose({"id": str(number), "placement": "home"})
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(20_000):
        found.choose({"id": f"new-{number}", "placement": "home"})
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 100_000
