"""Training recipes: everything that decides a run, frozen, and saved in its release."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from baguni.domain.errors import InvalidInputError
from trainer.rqvae import RqVaeRecipe
from trainer.text import BUNDLED


@dataclass(frozen=True)
class DistillRecipe:
    """How the retrieval head learns the generative head's judgement. `batch_size`: users of a step, None: as many as in the
    training before; `num_*`: candidates per user from each source;
    `num_beams`: those that the teacher would generate itself.
    `generative_share`: of the teacher's score of everything, `novel_generative_share` of what is new; the rest is its own
    retrieval score. `truth_weight`: of both heads' own losses meanwhile. `gated`: only from users for whom the
    teacher is right."""

    steps: int = 120
    batch_size: int | None = None
    learning_rate: float = 3e-4
    warmup_steps: int = 20
    generative_share: float = 0.5
    novel_generative_share: float = 0.0
    gated: bool = False
    num_true: int = 8
    num_known: int = 16
    num_student: int = 16
    num_same_category: int = 8
    num_random: int = 8
    num_beams: int = 0
    temperature: float = 1.0
    truth_weight: float = 1.0
    kl_weight: float = 1.0
    listwise_weight: float = 0.1


@dataclass(frozen=True)
class TeacherRecipe:
    """A generative head that is trained as a teacher, in a model of its own. Other settings are those of the run.

    novel_share: of the targets, of items that the user never bought before
    """

    steps: int = 720
    learning_rate: float = 1e-3
    decoder_layers: int = 2
    code_attention: bool = True
    copying: bool = True
    num_targets: int = 12
    target_power: float = 0.0
    novel_share: float = 0.5


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run. Fields that `trainer.model.ModelConfig` has, too, are explained there.

    tokens: "items" reads one token for each item of a history, with counts and intervals; "lines" one for each event, the
        newest first, which says only what was done and how many orders ago
    content: what items are described by: "text", their text embeddings, or "codes", the sum of their codebook entries
    positives: how InfoNCE combines the items of the next order: "mean" of their log-probabilities, or log of their "sum"
    size_power: an order counts in InfoNCE as its number of items to this power: 0 = every order alike, 1 = every line alike
    negatives: "catalogue" scores every item at every step, which is exact and affordable up to about 50,000 items; "ordered"
        scores those that were ordered before, so that no training pushes the others away; "sampled" scores the batch's own
        items, hard negatives and `num_random_negatives` others, with logQ correction
    teacher: what the retrieval head is distilled from; None: the run's own model before distillation
    rescored_share: share of the generative head's log-likelihood in the order of the first 200 items that are served where
        everything counts; 0 saves asking it
    popularity_discount: what is taken from a served item's bias for each 1 of the logarithm of its share of orders; 0 serves
        what training found, more lists fewer bestsellers
    until_ms: training reads no event from this moment on, ms UTC; None: from the start of the log's last calendar month
    is_warm: whether training starts from the weights of the run's base, see `trainer.base`
    warm_share, warm_rate: of the steps and of the learning rates, for a training that starts from a base; at the full rate, it
        loses more than the newest month brings (ADR 31)
    """

    name: str
    text_encoder: str = BUNDLED
    rqvae: RqVaeRecipe = field(default_factory=RqVaeRecipe)
    distill: DistillRecipe = field(default_factory=DistillRecipe)
    teacher: TeacherRecipe | None = None
    seed: int = 0
    max_tokens: int = 128
    statistics_days: tuple[int, ...] = (14, 28, 91)
    num_factors: int = 64
    width: int = 128
    num_heads: int = 4
    encoder_layers: int = 1
    decoder_layers: int = 1
    feedforward: int = 256
    vector_dim: int = 128
    dropout: float = 0.1
    id_dropout: float = 0.3
    token_dropout: float = 0.1
    temperature: float = 0.125
    identity: bool = True
    interest: bool = True
    repeat: bool = True
    habit_weight: float = 16.0
    copying: bool = True
    code_attention: bool = False
    tokens: Literal["items", "lines"] = "items"
    content: Literal["text", "codes"] = "text"
    positives: Literal["mean", "sum"] = "mean"
    size_power: float = 0.0
    steps: int = 360
    batch_size: int = 192
    learning_rate: float = 1e-3
    warmup_steps: int = 40
    weight_decay: float = 0.01
    identity_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.99
    ema_start: float = 0.2
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed"
    num_targets: int = 6
    target_power: float = 0.5
    novel_share: float = 0.0
    negatives: Literal["catalogue", "ordered", "sampled"] = "catalogue"
    num_random_negatives: int = 1024
    everything_weight: float = 1.0
    novel_weight: float = 0.5
    generative_weight: float = 0.5
    click_rate: float = 0.2
    num_beams: int = 64
    rescored_share: float = 0.0
    popularity_discount: float = 0.0
    checkpoint_every: int = 50
    min_test_orders: int = 5
    until_ms: int | None = None
    is_warm: bool = False
    warm_share: float = 0.2
    warm_rate: float = 0.3

    def warm(self, until_ms: int | None) -> Recipe:
        """Return the recipe for starting from a base. Raises InvalidInputError for one with a teacher of its own."""
        if self.teacher is not None:
            raise InvalidInputError(f"the recipe {self.name!r} has a teacher of its own: it cannot start from a base")
        share, rate, distill = self.warm_share, self.warm_rate, self.distill
        return replace(
            self,
            until_ms=until_ms,
            is_warm=True,
            steps=max(round(share * self.steps), 1),
            learning_rate=rate * self.learning_rate,
            warmup_steps=round(share * self.warmup_steps),
            distill=replace(
                distill,
                steps=max(round(share * distill.steps), 1),
                learning_rate=rate * distill.learning_rate,
                warmup_steps=round(share * distill.warmup_steps),
            ),
        )

    def of_teacher(self) -> Recipe | None:
        """Return the recipe of the teacher's own model."""
        if self.teacher is None:
            return None
        own = {each.name: getattr(self.teacher, each.name) for each in fields(TeacherRecipe)}
        return replace(self, **own, teacher=None, everything_weight=0.0, novel_weight=0.0, generative_weight=1.0)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(name="demo"),
        Recipe(
            name="complete-journey",
            steps=1714,  # an epoch; a second one only overfits
            batch_size=64,
            learning_rate=1.5e-3,
            warmup_steps=100,
            dropout=0.3,
            id_dropout=0.2,
            token_dropout=0.2,
            identity_decay=1.0,
            ema_decay=0.998,
            target_power=0.0,
            novel_weight=1.0,
            generative_weight=0.2,
            click_rate=0.0,
            rescored_share=0.25,
            distill=DistillRecipe(steps=500, learning_rate=8e-4, truth_weight=0.0, kl_weight=4.0),
        ),
        Recipe(  # the design as it was written, see docs/concepts.md; for comparison, not for release
            name="design",
            rqvae=RqVaeRecipe(encoder="pca", epochs=0, latent_dim=128, distinct=True),
            tokens="lines",
            content="codes",
            positives="sum",
            negatives="sampled",
            identity=False,
            interest=False,
            repeat=False,
            habit_weight=0.0,
            statistics_days=(),
            num_factors=0,
            target_power=0.5,
            novel_weight=1.0,
            generative_weight=1.0,
            click_rate=0.0,
            teacher=TeacherRecipe(),
            distill=DistillRecipe(
                steps=360,
                learning_rate=1e-3,
                generative_share=1.0,
                novel_generative_share=1.0,
                num_true=12,
                num_known=64,
                num_student=64,
                num_same_category=32,
                num_random=64,
                num_beams=32,
            ),
        ),
        *(
            Recipe(
                name=name,
                statistics_days=(),  # these data have no clock
                num_factors=0,
                habit_weight=0.0,  # nobody buys anything twice
                max_tokens=50,
                width=64,
                num_heads=2,
                feedforward=128,
                vector_dim=64,
                steps=2400,
                batch_size=512,
                learning_rate=2e-3,
                dropout=0.2,
                id_dropout=0.1,
                token_dropout=0.1,
                ema_decay=0.995,
                everything_weight=0.0,
                novel_weight=1.0,
                generative_weight=0.2,
                click_rate=0.0,
                min_test_orders=1,
            )
            for name in ("amazon-beauty", "amazon-sports")
        ),
        Recipe(
            name="tiny",
            rqvae=RqVaeRecipe(latent_dim=8, hidden=(16,), num_levels=2, codebook_size=8, epochs=20, batch_size=64),
            distill=DistillRecipe(
                steps=5, warmup_steps=1, num_true=4, num_known=4, num_student=4, num_same_category=2, num_random=2
            ),
            max_tokens=40,
            num_factors=4,
            width=16,
            num_heads=2,
            encoder_layers=1,
            decoder_layers=1,
            feedforward=32,
            vector_dim=8,
            steps=30,
            batch_size=32,
            learning_rate=5e-3,
            warmup_steps=5,
            num_targets=2,
            num_beams=16,
            rescored_share=0.25,
            checkpoint_every=10,
            min_test_orders=1,
        ),
    )
}


def recipe_named(name: str, **changes: Any) -> Recipe:
    """The recipe of that name, with some fields changed."""
    if name not in RECIPES:
        raise InvalidInputError(f"recipe is {name!r}, expected one of {', '.join(RECIPES)}", "recipe")
    return replace(RECIPES[name], **changes)


def recipe_of(saved: Mapping[str, Any]) -> Recipe:
    """Inverse of `as_dict`; fields of other versions are left out. Raises InvalidInputError."""
    try:
        return TypeAdapter(Recipe).validate_python(dict(saved))
    except ValidationError as error:
        raise InvalidInputError(f"this is no recipe: {error}", "recipe") from error
