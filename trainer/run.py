"""A training run: one directory in which every stage leaves its result, so that the next run of the same command goes on
where the last one stopped.

    RUN/
      recipe.json                                  what was asked for
      embeddings.npy  rqvae.pt  semantic_ids.npz   items → text embeddings → codes
      statistics.npz                               what was known of each item at the start of each month
      dual_head.pt                                 checkpoint of the dual-head training, with every loss so far
      teacher.pt                                   the teacher, if the recipe has one of its own
      distilled.pt                                 the model after distillation
      metrics.json  losses.json  losses.png        what came of it
      base/                                        what it started from, see `trainer.base`
      refit/                                       a run that starts from this one and learns the last month, too
      tensorboard/  mlflow_run_id                  every step, for TensorBoard; which run MLflow has it as
"""

# N = items, T = text dim

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from baguni.domain.catalog import CATEGORY_SEPARATOR
from baguni.domain.errors import InvalidInputError, NotFoundError
from baguni.domain.semantic_ids import SemanticIds, SemanticIdTable, unique_suffixes
from baguni.domain.sequences import DAY_MS
from trainer.base import FOLDER as BASE_FOLDER
from trainer.base import Base, Facts, State, write_base
from trainer.data.dataset import Dataset
from trainer.data.reading import load_dataset
from trainer.data.splits import last_month_start_ms
from trainer.devices import launch
from trainer.files import share, written_whole
from trainer.model import DualHeadModel
from trainer.recipes import Recipe, recipe_named, recipe_of
from trainer.rqvae import RqVae, RqVaeRecipe, content_codes, fit_rqvae
from trainer.samples import OrderSamples
from trainer.statistics import ItemStatistics, TextRegression
from trainer.text import TextEncoder
from trainer.tracking import Tracking
from trainer.train import Losses, TrainingSet, build_model, start_from_popularity, train

if TYPE_CHECKING:
    from lightning_fabric import Fabric

POPULARITY_DAYS = 28
MIN_SUFFIX_CODES = 16
ITEM_FILES = ("embeddings.npy", "rqvae.pt", "semantic_ids.npz")
"""Files of a run that depend on items only."""
ENCODING = ("encoder", "latent_dim", "hidden", "num_levels", "codebook_size", "distinct")
"""Fields of a quantiser's recipe that decide the codes of a text, besides the weights."""
NOT_TRAINED = {"num_beams", "rescored_share", "habit_weight", "popularity_discount"}
"""Fields of a recipe that decide what is served, not what is trained."""

Progress = Callable[[str, int, int, str], None]
"""(stage, done, total, what it says) after every step of a stage."""


def in_words(losses: Losses) -> str:
    """A step's losses for a progress bar."""
    return " ".join(f"{name} {value:.3f}" for name, value in losses.items())


def silent(stage: str, done: int, total: int, message: str) -> None:
    """Progress that nobody watches."""


class Run:
    """One run of one recipe on one data set, in one directory. Events from `test_start_ms` on are never trained on. A run whose
    folder has a base, see `trainer.base`, keeps its Semantic IDs."""

    def __init__(self, path: Path, dataset_path: Path, recipe: Recipe) -> None:
        self.path, self.dataset_path, self.recipe = path, dataset_path, recipe
        self.base = Base.of(path)
        if self.base is not None:
            _check_same_items(self.base, recipe)
        if recipe.is_warm and self.base is None:
            raise InvalidInputError(f"{path} has no {BASE_FOLDER}/: there are no weights to start from", "recipe")
        if recipe.is_warm and self.base is not None and self.base.facts.trained_until_ms is None:
            raise InvalidInputError(
                f"{self.base.facts.name} does not say until when it was trained: train anew", "recipe"
            )
        path.mkdir(parents=True, exist_ok=True)
        self._claim()

    @classmethod
    def opened(cls, path: Path, dataset_path: Path, recipe_name: str | None = None, seed: int = 0) -> Run:
        """A run that was begun, with its own recipe unless one is named. Raises NotFoundError if there is none."""
        if recipe_name is not None:
            return cls(path, dataset_path, recipe_named(recipe_name, seed=seed))
        saved = path / "recipe.json"
        if not saved.is_file():
            raise NotFoundError(f"{path} holds no run: `baguni train {dataset_path} --run {path}` makes one")
        return cls(path, dataset_path, recipe_of(json.loads(saved.read_text())))

    @classmethod
    def warm(cls, path: Path, dataset_path: Path, recipe: Recipe, dataset: Dataset | None = None) -> Run:
        """Return a run of the whole log that starts from the weights of its base. `recipe`: that of a training anew; `dataset`:
        the log, if it has been read."""
        dataset = dataset or load_dataset(dataset_path)
        run = cls(path, dataset_path, recipe.warm(int(dataset.time_E.max()) + 1))
        run.dataset = dataset
        return run

    @cached_property
    def fabric(self) -> Fabric:
        """Where this run trains, set up at first use."""
        return launch(self.recipe)

    @cached_property
    def dataset(self) -> Dataset:
        """The whole log."""
        return load_dataset(self.dataset_path)

    @property
    def item_ids(self) -> list[str]:
        """Item ids by index."""
        return [item.item_id for item in self.dataset.catalog.items]

    @cached_property
    def test_start_ms(self) -> int:
        """The moment at which training ends, ms UTC: that of the recipe, or the start of the log's last calendar month."""
        until_ms = self.recipe.until_ms
        return last_month_start_ms(self.dataset) if until_ms is None else until_ms

    @cached_property
    def training_log(self) -> Dataset:
        """The log before `test_start_ms`."""
        return self.dataset.before(self.test_start_ms)

    def embeddings(self) -> NDArray[np.float32]:
        """Text embeddings, [N, T]."""
        return np.asarray(np.load(self._made("embeddings.npy")))

    def rqvae(self) -> RqVae:
        """The fitted RQ-VAE."""
        return _rqvae_of(torch.load(self._made("rqvae.pt"), weights_only=True), self.recipe.rqvae)

    def semantic_ids(self) -> SemanticIdTable:
        """The frozen table."""
        return SemanticIdTable.load(self._made("semantic_ids.npz"))

    def model(self, distilled: bool = True) -> DualHeadModel:
        """The trained model, after or before distillation."""
        state = torch.load(self._made("distilled.pt" if distilled else "dual_head.pt"), weights_only=True)["model"]
        model = self.fresh_model()
        model.load_state_dict(state)
        return model.eval()

    def fresh_model(self, recipe: Recipe | None = None) -> DualHeadModel:
        """An untrained model of the recipe's sizes, or of another recipe's. Its biases know how popular items are."""
        content_dim, frequency_N = self._content_NT.shape[1], torch.from_numpy(self.frequency_N)
        model = build_model(recipe or self.recipe, self.semantic_ids(), content_dim, self.statistics, frequency_N > 0)
        start_from_popularity(model, frequency_N)
        return model

    def served_vectors(self, model: DualHeadModel) -> Tensor:
        """Return [N, V + P + 1], item vectors as the vector index stores them: learned part, statistics, and the bias less the
        recipe's discount of what is popular."""
        with torch.no_grad():
            vectors_NX = model.served_vectors(self._content_NT, torch.from_numpy(self.statistics.newest_NP))
            vectors_NX[:, -1] += torch.from_numpy(self.bias_offset(self.frequency_N))
        return vectors_NX

    def bias_offset(self, orders_N: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return [N], what the recipe adds to the biases of items that were ordered so often."""
        above_mean_N = np.log1p(orders_N) - np.log1p(self.frequency_N).mean()
        return np.asarray(-self.recipe.popularity_discount * above_mean_N, np.float32)

    @property
    def reserved_ids(self) -> SemanticIds:
        """Published Semantic IDs of what is not in the catalogue."""
        known = self.dataset.catalog.index
        return {item_id: codes for item_id, codes in self.published_ids.items() if item_id not in known}

    @property
    def warm_runs(self) -> int:
        """Number of runs in a row, this one included, that started from the weights of the one before."""
        return self.base.facts.warm_runs + 1 if self.base is not None and self.recipe.is_warm else 0

    def starting_model(self) -> DualHeadModel:
        """Return the model that training starts with: an untrained one, or that of the base."""
        model = self.fresh_model()
        if self.base is not None and self.recipe.is_warm:
            model.load_state_dict(self.base.model_state(model.state_dict(), self.item_ids))
        return model

    def teacher(self) -> DualHeadModel:
        """Return the trained model whose generative head is distilled from."""
        recipe = self.recipe.of_teacher()
        if recipe is None:
            return self.model(distilled=False)
        model = self.fresh_model(recipe)
        model.load_state_dict(torch.load(self._made("teacher.pt"), weights_only=True)["model"])
        return model.eval()

    def samples(self, log: Dataset, click_rate: float = 0.0) -> OrderSamples:
        """Return the orders of a version of the data set, each with its history as the run's models read it."""
        recipe = self.recipe
        return OrderSamples(
            log, self.semantic_ids(), self.statistics, recipe.max_tokens, click_rate, recipe.seed, recipe.tokens
        )

    def metrics(self) -> dict[str, Any]:
        """What the evaluation measured; empty before it."""
        path = self.path / "metrics.json"
        return dict(json.loads(path.read_text())) if path.is_file() else {}

    def text_encoder(self) -> TextEncoder:
        """The sentence encoder of the recipe."""
        return TextEncoder(self.recipe.text_encoder, self.path.parent / "text-encoders")

    def recent_popularity(self) -> NDArray[np.float32]:
        """[N] orders of each item in the last four weeks before the test month."""
        log = self.training_log
        recent = (log.order_E >= 0) & (log.time_E >= self.test_start_ms - POPULARITY_DAYS * DAY_MS)
        return np.bincount(log.item_E[recent], minlength=len(log.catalog)).astype(np.float32)

    @cached_property
    def statistics(self) -> ItemStatistics:
        """Item statistics of every month before the test month, and at its start; what was never ordered has there what its
        text promises."""
        path, recipe = self.path / "statistics.npz", self.recipe
        if not path.is_file():
            days, num_factors = recipe.statistics_days, recipe.num_factors
            counted = ItemStatistics.of(self.training_log, self.test_start_ms, days, num_factors)
            counted.completed(self._text_NT.numpy(), self.frequency_N > 0).save(path)
        return ItemStatistics.load(path)

    @property
    def statistics_from_text(self) -> TextRegression:
        """What the text of an item that comes later says of its statistics."""
        ordered_N = self.frequency_N > 0
        return TextRegression.fit(self._text_NT.numpy()[ordered_N], self.statistics.newest_NP[ordered_N])

    @cached_property
    def _text_NT(self) -> Tensor:  # noqa: N802 - a shape suffix
        with torch.no_grad():
            return self.rqvae().standardise(torch.from_numpy(self.embeddings()))

    @cached_property
    def _content_NT(self) -> Tensor:  # noqa: N802 - a shape suffix
        """Return what the models read of items: texts or, if the recipe wants it, the sums of their codebook entries."""
        if self.recipe.content == "text":
            return self._text_NT
        with torch.no_grad():
            rqvae, codes_NL = self.rqvae(), torch.from_numpy(self.semantic_ids().codes_NL).long()
            content_NZ = sum(book_KZ[codes_NL[:, level]] for level, book_KZ in enumerate(rqvae.codebooks_LKZ))
        return (content_NZ - content_NZ.mean(0)) / content_NZ.std(0).clamp(min=1e-6)

    @cached_property
    def frequency_N(self) -> NDArray[np.float32]:  # noqa: N802 - a shape suffix
        """[N] how often each item was ordered before the test month."""
        log = self.training_log
        return np.bincount(log.item_E[log.order_E >= 0], minlength=len(log.catalog)).astype(np.float32)

    @cached_property
    def training_set(self) -> TrainingSet:
        """Samples and item tables of the log before the test month. Sessions are made up only for a log that has none."""
        table, log, recipe = self.semantic_ids(), self.training_log, self.recipe
        click_rate = 0.0 if (log.order_E < 0).any() else recipe.click_rate
        samples = self.samples(log, click_rate)
        if len(samples) == 0:
            end = "its last month" if recipe.until_ms is None else datetime.fromtimestamp(recipe.until_ms / 1000, UTC)
            raise InvalidInputError(f"{self.dataset_path} has no order before {end}: nothing to train on")
        codes_NL, values_TNP = torch.from_numpy(table.codes_NL).long(), torch.from_numpy(self.statistics.values_TNP)
        return TrainingSet(samples, self._content_NT, codes_NL, torch.from_numpy(self.frequency_N), values_TNP)

    def embed_items(self, progress: Progress = silent, cluster: str | None = None) -> None:
        """Stage 1: text embeddings of the catalogue, here or on a Ray cluster."""
        if not (self.path / "embeddings.npy").is_file():
            texts = [item.text for item in self.dataset.catalog.items]
            embeddings = self.text_encoder().embed(
                texts, lambda done, n: progress("text embeddings", done, n, "texts"), cluster
            )
            with written_whole(self.path / "embeddings.npy") as file:
                np.save(file, embeddings)

    def fit_semantic_ids(self, progress: Progress = silent) -> None:
        """Stage 2: RQ-VAE, or that of the base; then the table."""
        if (self.path / "semantic_ids.npz").is_file():
            return
        embeddings, recipe, items = self.embeddings(), self.recipe.rqvae, self.dataset.catalog.items
        if self.base is None:
            shelves = [CATEGORY_SEPARATOR.join(item.category_path[:2]) for item in items]
            rqvae = fit_rqvae(
                embeddings,
                np.unique(shelves, return_inverse=True)[1].astype(np.int64),
                recipe,
                self.recipe.seed,
                lambda epoch, loss: progress("semantic IDs", epoch + 1, recipe.epochs, f"loss {loss:.3f}"),
            )
        else:
            rqvae = _rqvae_of(self.base.rqvae_state, recipe)
        with written_whole(self.path / "rqvae.pt") as file:
            torch.save(rqvae.state_dict(), file)
        with written_whole(self.path / "semantic_ids.npz") as file:
            semantic_ids_of(self.item_ids, embeddings, rqvae, self.base).save(file)

    def train_dual_head(self, progress: Progress = silent) -> list[Losses]:
        """Stage 3: both heads. Resumes from its checkpoint."""
        model = self.starting_model()
        with self._on_step("dual-head training", self.recipe.steps, progress) as on_step:
            return train(model, self.training_set, self.recipe, self.path / "dual_head.pt", on_step, self.fabric)

    def train_teacher(self, progress: Progress = silent) -> list[Losses]:
        """Train the teacher (stage 4), if the recipe has one of its own. Resumes from its checkpoint."""
        recipe = self.recipe.of_teacher()
        if recipe is None:
            return []
        model, target = self.fresh_model(recipe), self.path / "teacher.pt"
        with self._on_step("teacher training", recipe.steps, progress) as on_step:
            return train(model, self.training_set, recipe, target, on_step, self.fabric)

    def distil(self, progress: Progress = silent) -> list[Losses]:
        """Distil (stage 5): the retrieval head learns from the generative head. Resumes from its checkpoint."""
        model = self.model(distilled=False)
        teacher, target = self.teacher(), self.path / "distilled.pt"
        with self._on_step("distillation", self.recipe.distill.steps, progress) as on_step:
            return train(model, self.training_set, self.recipe, target, on_step, self.fabric, teacher)

    def train_all(self, progress: Progress = silent, cluster: str | None = None) -> dict[str, list[Losses]]:
        """Do what is still to be done of every stage; return the losses of each training."""
        with self.fabric.rank_zero_first():
            self.embed_items(progress, cluster)
            self.fit_semantic_ids(progress)
        losses = {"dual head": self.train_dual_head(progress), "teacher": self.train_teacher(progress)}
        return losses | {"distillation": self.distil(progress)}

    def refit(self, progress: Progress = silent) -> Run:
        """Train the run that `refitted` returns."""
        with self.fabric.rank_zero_first():
            run = self.refitted()
        run.fabric = self.fabric
        run.train_all(progress)
        run.tracking.close()
        return run

    def refitted(self) -> Run:
        """Return the run that starts from this finished one and reads the whole log. It has no month to be measured on."""
        path = self.path / "refit"
        if (path / "recipe.json").is_file():
            return Run.opened(path, self.dataset_path)
        self.become_base_of(path, warm_runs=-1)  # a refit is no warm run
        return Run.warm(path, self.dataset_path, self.recipe, self.dataset)

    def become_base_of(self, path: Path, warm_runs: int = 0) -> None:
        """Write the base of another run on the same data from this finished one. `warm_runs`: see `trainer.base`."""
        weights = {"model": self.model().state_dict(), "rqvae": self.rqvae().state_dict()}
        sizes = self.semantic_ids().codebook_sizes
        facts = Facts(self.path.name, self.recipe, self.test_start_ms, sizes, warm_runs)
        write_base(path, facts, self.item_ids, self.published_ids, weights)
        share(self.path, path, ("embeddings.npy",))

    @property
    def published_ids(self) -> SemanticIds:
        """Semantic IDs of the run's items, and those that its base has published."""
        own = zip(self.item_ids, map(tuple, self.semantic_ids().codes_NL.tolist()), strict=True)
        return {**(self.base.published_ids if self.base else {}), **dict(own)}

    @property
    def released(self) -> Run:
        """Return the run that is released: the refit, if there is one. Raises NotFoundError if the refit is not finished."""
        if not (self.path / "refit").is_dir():
            return self
        refit = self.refitted()
        refit._made("metrics.json")
        return refit

    @cached_property
    def tracking(self) -> Tracking:
        """Where the run tells of itself; of several processes the first does."""
        return Tracking.of(self.path, {"dataset": self.dataset_path.name, **self.recipe.as_dict()})

    @contextmanager
    def _on_step(self, stage: str, steps: int, progress: Progress) -> Iterator[Callable[[int, Losses], None]]:
        title = f"{stage}, warm" if self.recipe.is_warm else stage
        with self.tracking.told(stage.replace(" ", "_")) as tell:

            def on_step(step: int, losses: Losses) -> None:
                progress(title, step + 1, steps, in_words(losses))
                if self.fabric.is_global_zero:
                    tell(step, losses)

            yield on_step

    def _claim(self) -> None:
        """The directory belongs to one recipe and one data set: going on with others would mix two runs. How the trained
        models are asked may change."""
        path = self.path / "recipe.json"
        asked = json.loads(json.dumps({"dataset": str(self.dataset_path.resolve()), **self.recipe.as_dict()}))
        if not path.is_file():
            with written_whole(path) as file:  # several processes of one training may claim it at once
                file.write((json.dumps(asked, indent=2) + "\n").encode())
            return
        saved = json.loads(path.read_text())
        # Fields that the version which began the run did not have are as they were then: at their defaults.
        found = {**json.loads(json.dumps(recipe_of(saved).as_dict())), **saved}
        keys = (asked.keys() | found.keys()) - NOT_TRAINED
        changed = sorted(key for key in keys if asked.get(key) != found.get(key))
        if changed:
            raise InvalidInputError(
                f"{self.path} holds a run with other settings ({', '.join(changed)}): use another --run directory"
            )

    def _made(self, name: str) -> Path:
        path = self.path / name
        if not path.is_file():
            raise NotFoundError(f"{path} does not exist yet: run `baguni train` first")
        return path


def semantic_ids_of(
    item_ids: Sequence[str], text_NT: NDArray[np.float32], rqvae: RqVae, base: Base | None
) -> SemanticIdTable:
    """Return the table of a catalogue: the Semantic IDs that the base has published, and new ones for other items."""
    with torch.no_grad():
        if base is None:
            codes_NL = content_codes(rqvae, torch.from_numpy(text_NT)).numpy().astype(np.int32)
            suffix_N = unique_suffixes(codes_NL)
        else:
            known_NL = base.codes(item_ids)
            known_codes_NL = torch.from_numpy(known_NL[:, :-1]).long()
            codes_NL = content_codes(rqvae, torch.from_numpy(text_NT), known_codes_NL).numpy().astype(np.int32)
            suffix_N, is_new_N = known_NL[:, -1].copy(), known_NL[:, -1] < 0
            suffix_N[is_new_N] = unique_suffixes(codes_NL[is_new_N], list(base.published_ids.values()))
    # Twice what is needed: new items take a free suffix without moving a published one.
    last, least = int(suffix_N.max()), MIN_SUFFIX_CODES
    if base is not None:
        last = max(last, *(codes[-1] for codes in base.published_ids.values()))
        least = base.facts.codebook_sizes[-1]
    num_suffixes = max(least, 2 * (last + 1))
    recipe = rqvae.recipe
    sizes = (*(recipe.codebook_size,) * recipe.num_levels, num_suffixes)
    return SemanticIdTable(np.c_[codes_NL, suffix_N].astype(np.int32), sizes)


def _rqvae_of(state: State, recipe: RqVaeRecipe) -> RqVae:
    model = RqVae(state["mean_T"].shape[0], state["category_head.bias"].shape[0], recipe)
    model.load_state_dict(state)
    return model.eval()


def _check_same_items(base: Base, recipe: Recipe) -> None:
    """Raise InvalidInputError if the Semantic IDs of the base were made with other settings. How its quantiser was trained does
    not matter: it is not trained again."""
    was, now = (
        {"text_encoder": each.text_encoder} | {name: getattr(each.rqvae, name) for name in ENCODING}
        for each in (base.facts.recipe, recipe)
    )
    for name in was:
        if was[name] != now[name]:
            raise InvalidInputError(
                f"{name} is {now[name]}, and {base.facts.name} has Semantic IDs by {was[name]}: they would move. Train without "
                "--after; `baguni release nightly` needs --retokenize",
                name,
            )
