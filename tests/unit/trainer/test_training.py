"""Samples never see the future, training learns, resumes exactly, and distillation moves the student to the teacher."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from baguni.domain.errors import InvalidInputError, NotFoundError
from tests.tiny_release import tiny_run
from trainer.data.dataset import Dataset
from trainer.distill import Teacher, candidate_lists, distillation_losses, first_occurrence
from trainer.export import frozen_items
from trainer.model import DualHeadModel, Memory
from trainer.recipes import RECIPES, Recipe, recipe_of
from trainer.retrieval import RetrievalScores, expected_draws, sampled, score, whole_catalogue
from trainer.run import Run
from trainer.samples import Batch, OrderSamples, sample_targets
from trainer.train import TrainingStep, step_samples, train

PARTS = (torch.tensor([[True, True, False, False]]), torch.tensor([[False, False, True, True]]))


def samples_of(run: Run, dataset: Dataset) -> OrderSamples:
    return OrderSamples(dataset, run.semantic_ids(), run.statistics, run.recipe.max_tokens)


@torch.no_grad()
def scores_of(run: Run, model: DualHeadModel, batch: Batch) -> tuple[RetrievalScores, Memory]:
    """The retrieval head over the whole catalogue."""
    data, vectors = run.training_set, frozen_items(run, model).vectors_NX
    memory = model.encode(batch.sequences, vectors)
    return score(model, memory, batch, whole_catalogue(data.num_items), vectors, data.values_TNP), memory


def test_deleting_the_future_changes_no_sample(trained: Run) -> None:
    whole, cut = trained.dataset, trained.training_log
    before, after = samples_of(trained, whole), samples_of(trained, cut)
    times = set(zip(after.user_O.tolist(), after.time_O.tolist(), strict=True))
    kept = [i for i, key in enumerate(zip(before.user_O.tolist(), before.time_O.tolist(), strict=True)) if key in times]
    assert len(kept) == len(after)
    one, other = before.batch(np.asarray(kept)[:200]), after.batch(np.arange(len(after))[:200])
    for tensor, same in zip(one.sequences, other.sequences, strict=True):
        assert torch.equal(tensor, same)


def test_a_sample_never_contains_its_own_order(trained: Run) -> None:
    samples = samples_of(trained, trained.dataset)
    first_orders = np.flatnonzero(np.r_[True, np.diff(samples.user_O) != 0])
    events = samples.history_events(samples.user_O[first_orders], samples.time_O[first_orders])
    assert (events.time_E < samples.time_O[first_orders][events.row_E]).all()
    assert (events.order_E == -1).all()


def test_targets_are_drawn_without_repeats_and_rarer_items_more_often(trained: Run) -> None:
    batch = trained.training_set.samples.batch(np.arange(256))
    weight = torch.ones(trained.training_set.num_items)
    rare = int(batch.target_item_P[0])
    weight[rare] = 1000.0
    item, present = sample_targets(batch, weight, 2, torch.Generator().manual_seed(0))
    rows_with_rare = batch.target_row_P[batch.target_item_P == rare]
    assert (item[rows_with_rare] == rare).any(dim=1).float().mean() > 0.95
    both = present.all(dim=1)
    assert (item[both, 0] != item[both, 1]).all()


def test_a_share_of_the_targets_was_never_bought_before(trained: Run) -> None:
    batch = trained.training_set.samples.batch(np.arange(256))
    weight = torch.ones(trained.training_set.num_items)
    item, present = sample_targets(batch, weight, 4, torch.Generator().manual_seed(0), novel_share=0.5)
    owned = set(zip(batch.owned_row.tolist(), batch.owned_item.tolist(), strict=True))
    ordered = set(zip(batch.target_row_P.tolist(), batch.target_item_P.tolist(), strict=True))
    whole, novel = ([(row, int(item[row, q])) for row, q in (present & part).nonzero().tolist()] for part in PARTS)
    assert set(whole) | set(novel) <= ordered
    assert not set(novel) & owned
    assert set(whole) & owned
    num_novel = [sum(pair[0] == row for pair in ordered - owned) for row in range(batch.size)]
    assert present[:, 2:].sum(1).tolist() == [min(2, number) for number in num_novel]


def test_a_tiny_model_learns_ten_orders_by_heart(trained: Run) -> None:
    """Overfitting on purpose: on ten samples, both losses fall to what several true items per order leave."""
    recipe = replace(
        trained.recipe, steps=250, batch_size=10, dropout=0.0, id_dropout=0.0, token_dropout=0.0, click_rate=0.0
    )
    few = samples_of(trained, trained.training_log.before(trained.test_start_ms - 60 * 86_400_000))
    few.user_O, few.time_O = few.user_O[-10:], few.time_O[-10:]
    few._num_events_O, few._first_O, few._last_O = few._num_events_O[-10:], few._first_O[-10:], few._last_O[-10:]
    model = trained.fresh_model(recipe)
    losses = train(model, replace(trained.training_set, samples=few), recipe)
    scores, _ = scores_of(trained, model, few.batch(np.arange(10)))
    num_true = int(scores.positive_BM.sum(-1).min())
    best = scores.everything_BM.topk(num_true, dim=-1).indices
    assert scores.positive_BM.gather(1, best).mean() > 0.95
    assert losses[-1]["generative"] < 0.5 * losses[0]["generative"]


def test_a_resumed_run_takes_the_same_steps(trained: Run, tmp_path: Path) -> None:
    recipe = replace(trained.recipe, steps=14, checkpoint_every=7)

    whole = train(trained.fresh_model(), trained.training_set, recipe)

    class StopTrainingError(Exception):
        pass

    def stop(step: int, losses: object) -> None:
        if step == 9:
            raise StopTrainingError

    with pytest.raises(StopTrainingError):
        train(trained.fresh_model(), trained.training_set, recipe, tmp_path / "checkpoint.pt", stop)
    assert train(trained.fresh_model(), trained.training_set, recipe, tmp_path / "checkpoint.pt") == whole


def test_a_retrieval_head_can_be_trained_alone(trained: Run, tmp_path: Path) -> None:
    """The ablation's first row: no generative head in the training, all stages as ever."""
    alone = Run(tmp_path / "alone", trained.dataset_path, replace(trained.recipe, generative_weight=0.0))
    for name in ("embeddings.npy", "rqvae.pt", "semantic_ids.npz"):
        (alone.path / name).write_bytes((trained.path / name).read_bytes())
    losses = alone.train_dual_head()
    assert {name for step in losses for name in step} == {"retrieval"}


def test_an_epoch_visits_every_sample_once(trained: Run) -> None:
    samples = trained.training_set.samples
    steps = len(samples) // 8
    visited = np.concatenate([step_samples(samples, 8, step) for step in range(steps)])
    assert len(np.unique(visited)) == len(visited) == steps * 8


def test_sampled_negatives_hold_targets_and_hard_ones_with_their_chances(trained: Run) -> None:
    data = trained.training_set
    batch = data.samples.batch(np.arange(100, 108))
    shelf = data.samples.shelves
    found = sampled(batch, shelf, data.frequency_N + 1, 5, torch.Generator().manual_seed(0))
    assert set(batch.target_item_P.tolist()) <= set(found.item_M.tolist())
    assert (found.log_q_M <= 0).all()
    assert torch.equal(found.item_M[found.slots(found.item_M)], found.item_M)
    similar = shelf.same_category(batch.target_item_P, torch.Generator().manual_seed(0))
    shelves = trained.dataset.catalog.categories
    assert (shelves[similar] == shelves[batch.target_item_P.numpy()]).all()
    assert len(np.unique(similar[batch.target_item_P == batch.target_item_P[0]])) > 1 or len(similar) < 5


def test_items_are_drawn_as_often_as_expected(trained: Run) -> None:
    """Targets as they are sold, one item of each one's category, items that were bought before, and any item."""
    shelves, frequency_N, generator = (
        trained.training_set.samples.shelves,
        trained.training_set.frequency_N,
        torch.Generator(),
    )
    share_N, draws, num_items = (frequency_N + 1) / (frequency_N + 1).sum(), 200_000, len(frequency_N)
    target, bought = (torch.multinomial(share_N, draws, replacement=True, generator=generator) for _ in range(2))
    others = torch.randint(num_items, (draws // 2,), generator=generator)
    drawn = torch.cat([target, bought, others, shelves.same_category(target, generator)])
    expected_N = expected_draws(shelves, share_N, draws, draws, draws // 2)
    torch.testing.assert_close(torch.bincount(drawn, minlength=num_items).float(), expected_N, rtol=0.1, atol=0)


def test_training_with_sampled_negatives_learns_too(trained: Run) -> None:
    recipe = replace(trained.recipe, steps=60, negatives="sampled", num_random_negatives=10)
    losses = train(trained.fresh_model(), trained.training_set, recipe)
    assert np.mean([s["retrieval"] for s in losses[-10:]]) < np.mean([s["retrieval"] for s in losses[:10]])


@pytest.mark.parametrize("is_distilling", [False, True])
def test_items_that_nobody_has_ordered_may_be_left_out_of_the_softmax(trained: Run, is_distilling: bool) -> None:
    data = trained.training_set
    batch = data.samples.batch(np.arange(100, 108))
    present = torch.cat([batch.target_item_P, batch.owned_item, (batch.sequences.item_BS - 1).flatten().long()])
    item = int(np.setdiff1d(np.arange(data.num_items), present.numpy())[0])
    frequency_N, text_NT = data.frequency_N.clone(), data.text_NT.clone()
    frequency_N[item] = 0
    text_NT[item] *= 9

    def loss(text_NT: torch.Tensor, negatives: Literal["catalogue", "ordered"]) -> float:
        recipe = replace(trained.recipe, negatives=negatives, generative_weight=0.0)
        teacher = trained.model(distilled=False) if is_distilling else None
        changed = replace(data, frequency_N=frequency_N, text_NT=text_NT)
        step = TrainingStep(trained.model(distilled=False), changed, recipe, teacher).eval()
        return step(batch, 0)["retrieval"].item()

    assert loss(text_NT, "ordered") == pytest.approx(loss(data.text_NT, "ordered"), abs=1e-6)
    assert loss(text_NT, "catalogue") != pytest.approx(loss(data.text_NT, "catalogue"), abs=1e-6)


@pytest.mark.parametrize("num_beams", [0, 8])
def test_distillation_moves_the_student_towards_its_teacher_and_leaves_the_teacher(
    trained: Run, num_beams: int
) -> None:
    data, recipe = trained.training_set, trained.recipe
    settings = replace(
        recipe.distill,
        steps=60,
        kl_weight=5.0,
        gated=False,
        generative_share=1.0,
        novel_generative_share=1.0,
        num_beams=num_beams,
    )
    batch = data.samples.batch(np.arange(200, 264))
    teacher = trained.model(distilled=False)

    def divergence(student: DualHeadModel) -> float:
        with torch.no_grad():
            scores, _ = scores_of(trained, student, batch)
            judge = Teacher(teacher, data.text_NT, data.codes_NL, data.values_TNP, settings)
            memory = judge.read(batch)
            generator = torch.Generator().manual_seed(0)
            items, valid = candidate_lists(
                batch, scores, data.samples.shelves, settings, generator, judge.generated(memory)
            )
            judgement = judge.judge(batch, memory, items)
            return float(distillation_losses(scores, items, valid, judgement, settings)["kl"])

    student = trained.model(distilled=False)
    before = divergence(student)
    weights = {name: value.clone() for name, value in teacher.state_dict().items()}
    train(student, data, replace(recipe, distill=settings), teacher=teacher)
    assert divergence(student) < before
    assert all(torch.equal(value, weights[name]) for name, value in teacher.state_dict().items())


@torch.no_grad()
def test_each_query_has_the_share_of_each_head_that_the_recipe_says(trained: Run) -> None:
    data, teacher = trained.training_set, trained.model(distilled=False)
    batch = data.samples.batch(np.arange(200, 216))
    scores, memory = scores_of(trained, teacher, batch)
    items = torch.arange(8).expand(batch.size, -1)
    settings = replace(trained.recipe.distill, generative_share=1.0, novel_generative_share=0.0)
    judge = Teacher(teacher, data.text_NT, data.codes_NL, data.values_TNP, settings)
    judgement = judge.judge(batch, judge.read(batch), items)
    torch.testing.assert_close(judgement.everything_BC, teacher.log_likelihood(memory, data.codes_NL[items]))
    torch.testing.assert_close(judgement.novel_BC, scores.novel_BM[:, :8])


def test_a_candidate_counts_once() -> None:
    assert first_occurrence(torch.tensor([[5, 7, 5, 7, 1]])).tolist() == [[True, True, False, False, True]]


def test_a_directory_of_another_run_is_refused(trained: Run) -> None:
    with pytest.raises(InvalidInputError, match="seed"):
        tiny_run(trained.path.parent, seed=1)


def test_a_run_of_an_earlier_version_goes_on_and_one_of_a_later_version_does_not(trained: Run, tmp_path: Path) -> None:
    saved = json.loads((trained.path / "recipe.json").read_text())
    new = {
        "temperature",
        "identity",
        "interest",
        "repeat",
        "copying",
        "code_attention",
        "tokens",
        "content",
        "positives",
    }
    earlier = {name: value for name, value in saved.items() if name not in new | {"teacher", "novel_share"}}
    (tmp_path / "recipe.json").write_text(json.dumps(earlier))
    assert Run.opened(tmp_path, trained.dataset_path).recipe == trained.recipe
    (tmp_path / "recipe.json").write_text(json.dumps({**saved, "an_option_of_a_later_version": True}))
    with pytest.raises(InvalidInputError, match="an_option_of_a_later_version"):
        Run.opened(tmp_path, trained.dataset_path)


def test_a_run_is_opened_with_the_recipe_that_it_was_begun_with(trained: Run, tmp_path: Path) -> None:
    assert Run.opened(trained.path, trained.dataset_path).recipe == trained.recipe
    with pytest.raises(NotFoundError, match=r"holds no run: `baguni train .* makes one"):
        Run.opened(tmp_path, trained.dataset_path)
    (tmp_path / "recipe.json").write_text('{"name": "demo", "steps": "many"}')
    with pytest.raises(InvalidInputError, match="steps"):
        Run.opened(tmp_path, trained.dataset_path)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_saved_recipe_is_the_recipe(recipe: Recipe) -> None:
    assert recipe_of(json.loads(json.dumps(recipe.as_dict()))) == recipe
