"""What a campaign is, as its YAML file says (docs/crm.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    AnyHttpUrl,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from baguni.domain.errors import InvalidInputError
from baguni.domain.history import Action
from baguni.v1 import recommendation_pb2 as pb
from crm import plain_yaml

MAX_ITEMS = 50  # that GenerateTopItems writes for a user
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"

Positive = Annotated[int, Field(ge=1)]
Days = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
_URL = TypeAdapter(AnyHttpUrl)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _one_of(part: BaseModel, *names: str) -> None:
    given = [name for name in names if getattr(part, name) is not None]
    if len(given) != 1:
        raise ValueError(f"got {' and '.join(given) or 'nothing'}, expected exactly one of {', '.join(names)}")


class Where(_Part):
    """A condition on a column of an audience file."""

    column: str
    equals: StrictBool | float | str | None = None
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _is_a_condition(self) -> Self:
        if self.equals is None and self.at_least is None and self.at_most is None:
            raise ValueError("expected equals, at_least or at_most")
        return self


class FileAudience(_Part):
    """Users that a CSV or Parquet file lists, those that fit every condition."""

    path: Path
    column: str = "user_id"
    where: tuple[Where, ...] = ()


class Did(_Part):
    """Something that a user did at least so often, with items or in a category, any if neither is given."""

    action: Literal["ordered", "clicked", "carted"]
    item_ids: tuple[str, ...] = ()
    category: str = ""
    within_days: Days | None = None
    at_least: Positive = 1

    @property
    def number(self) -> Action:
        """The action as histories have it."""
        return Action[self.action.upper()]


class HistoryAudience(_Part):
    """Users by their stored histories: who did all of `did` and nothing of `did_not`."""

    did: tuple[Did, ...] = ()
    did_not: tuple[Did, ...] = ()

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if not self.did and not self.did_not:
            raise ValueError("expected did or did_not")
        return self


class SegmentAudience(_Part):
    """Users by the generative head's forecasts over a shop's data (docs/segments.md): likely to buy of a category next, or,
    with `within_days`, to buy an item or a category again by then."""

    data: Path
    run: Path | None = None
    recipe: str | None = None
    category: str | None = None
    item_id: str | None = None
    within_days: Days | None = None
    min_probability: Share

    @model_validator(mode="after")
    def _names_a_target(self) -> Self:
        _one_of(self, "category", "item_id")
        if self.item_id is not None and self.within_days is None:
            raise ValueError("item_id needs within_days: who will buy it again by then")
        return self


class Audience(_Part):
    """Whom a campaign is for: one of these."""

    file: FileAudience | None = None
    histories: HistoryAudience | None = None
    segment: SegmentAudience | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        _one_of(self, "file", "histories", "segment")
        return self


class Range(_Part):
    """Both ends included; an absent end is open."""

    min: float | None = None
    max: float | None = None


class Filter(_Part):
    """A condition on one attribute of items, as in the gateway's contract."""

    attribute: str
    any_of: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    range: Range | None = None
    is_: bool | None = Field(default=None, alias="is")

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        _one_of(self, "any_of", "range", "is_")
        return self

    def message(self) -> pb.Filter:
        """As the gateway is asked."""
        if self.any_of is not None:
            return pb.Filter(attribute=self.attribute, any_of=pb.StringSet(values=self.any_of))
        if self.range is not None:
            return pb.Filter(attribute=self.attribute, range=pb.NumberRange(min=self.range.min, max=self.range.max))
        message = pb.Filter(attribute=self.attribute)
        setattr(message, "is", self.is_)  # a keyword of Python's
        return message


class Items(_Part):
    """What a campaign may push."""

    filters: tuple[Filter, ...] = ()
    exclude: Annotated[tuple[str, ...], Field(max_length=5_000)] = ()
    exclude_purchased: bool = False


class Cap(_Part):
    """At most so many campaigns within so many days."""

    at_most: Positive
    days: Days


class Quiet(_Part):
    """When not to push."""

    campaigns: Cap | None = None
    pushed_days: Days | None = None  # no item that was pushed to the user within so many days
    bought_days: Days | None = None  # no item that the user ordered within so many days

    @property
    def concerns_items(self) -> bool:
        """Whether some of what is generated may have to go."""
        return self.pushed_days is not None or self.bought_days is not None


class FileSink(_Part):
    """Every list, into one CSV or Parquet file, which appears when it is complete."""

    path: Path

    @model_validator(mode="after")
    def _has_a_format(self) -> Self:
        if self.path.suffix not in (".csv", ".parquet"):
            raise ValueError(f"path is {str(self.path)!r}, expected a name that ends in .csv or .parquet")
        return self


class KafkaSink(_Part):
    """A CampaignPush a user into a topic."""

    topic: str = "baguni.pushes"


def _http_origin(url: str) -> str:
    return str(_URL.validate_python(url)).rstrip("/")


class BrazeSink(_Part):
    """Attributes of users, an event, or both, through Braze's /users/track."""

    url: Annotated[str, AfterValidator(_http_origin)]
    attributes: str | None = "baguni_item"  # attributes baguni_item_1 and so on; null: none
    event: str | None = None  # an event of this name with the items in its properties
    batch: Annotated[int, Field(ge=1, le=75)] = 50

    @model_validator(mode="after")
    def _sends_something(self) -> Self:
        if self.attributes is None and self.event is None:
            raise ValueError("expected attributes or event")
        return self


class SinkChoice(_Part):
    """Where lists go: one of these."""

    file: FileSink | None = None
    kafka: KafkaSink | None = None
    braze: BrazeSink | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        _one_of(self, "file", "kafka", "braze")
        return self


class Campaign(_Part):
    """A campaign: whom it is for, what it may push, when not, and where its lists go."""

    name: Annotated[str, Field(pattern=NAME)]
    items_per_user: Annotated[int, Field(ge=1, le=MAX_ITEMS)] = 10
    least_items: Positive = 1  # a user for whom fewer are left is skipped
    popular_for_strangers: bool = False  # what a user without history gets: popular items, or nothing
    audience: Audience
    items: Items = Items()
    quiet: Quiet = Quiet()
    sinks: Annotated[tuple[SinkChoice, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.least_items > self.items_per_user:
            raise ValueError(
                f"least_items is {self.least_items}, expected at most items_per_user {self.items_per_user}"
            )
        return self


def read_campaign(path: Path) -> Campaign:
    """A campaign from its file; paths in it are relative to its folder. Raises InvalidInputError that names every bad value."""
    try:
        content = plain_yaml.load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInputError(f"{path} is no YAML file: {error}") from error
    if not isinstance(content, dict):
        raise InvalidInputError(f"{path} holds {type(content).__name__}, expected a campaign: name, audience, sinks")
    try:
        campaign = Campaign.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'campaign'}: {problem['msg']}, got {_shown(problem['input'])}"
            for problem in error.errors()
        )
        raise InvalidInputError(f"{path}: {problems}") from error
    return _beside(campaign, path.resolve().parent)


def _beside(campaign: Campaign, folder: Path) -> Campaign:
    audience, sinks = campaign.audience, campaign.sinks
    if audience.file is not None:
        file = audience.file.model_copy(update={"path": folder / audience.file.path})
        audience = audience.model_copy(update={"file": file})
    if audience.segment is not None:
        paths = {"data": folder / audience.segment.data}
        if audience.segment.run is not None:
            paths["run"] = folder / audience.segment.run
        audience = audience.model_copy(update={"segment": audience.segment.model_copy(update=paths)})
    placed = tuple(
        sink if sink.file is None else SinkChoice(file=FileSink(path=folder / sink.file.path)) for sink in sinks
    )
    return campaign.model_copy(update={"audience": audience, "sinks": placed})


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
