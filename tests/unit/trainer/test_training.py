"""Samples never see the future, training learns, resumes exactly, and distillation moves the student to the teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from baguni.errors import InvalidInputError
from tests.tiny_release import tiny_run
from trainer.data.dataset import Dataset
from trainer.distill import candidate_lists, distill, first_occurrence
from trainer.losses import distillation_kl
from trainer.retrieval import sampled, score, whole_catalogue
from trainer.run import Run
from trainer.samples import OrderSamples, sample_targets
from trainer.train import build_model, step_samples, train


def samples_of(run: Run, dataset: Dataset) -> OrderSamples:
    return OrderSamples(dataset, run.semantic_ids(), run.recipe.max_tokens)


def test_deleting_the_future_changes_no_sample(trained: Run) -> None:
    whole, cut = trained.dataset, trained.training_log
    before, after = samples_of(trained, whole), samples_of(trained, cut)
    times = set(zip(after.user_O.tolist(), after.time_O.tolist(), strict=True))
    kept = [i for i, key in enumerate(zip(before.user_O.tolist(), before.time_O.tolist(), strict=True)) if key in times]
    assert len(kept) == len(after)
    one, other = before.batch(np.asarray(kept)[:200]), after.batch(np.arange(len(after))[:200])
    for tensor, same in zip(one.history, other.history, strict=True):
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


def test_a_tiny_model_learns_ten_orders_by_heart(trained: Run) -> None:
    """Overfitting on purpose: on ten samples, both losses fall to what several true items per order leave."""
    recipe = replace(
        trained.recipe, steps=250, batch_size=10, dropout=0.0, id_dropout=0.0, token_dropout=0.0, click_rate=0.0
    )
    few = samples_of(trained, trained.training_log.before(trained.test_start_ms - 60 * 86_400_000))
    few.user_O, few.time_O = few.user_O[-10:], few.time_O[-10:]
    few._start_O, few._first_O, few._last_O = few._start_O[-10:], few._first_O[-10:], few._last_O[-10:]
    model = build_model(recipe, trained.semantic_ids(), trained.embeddings().shape[1])
    losses = train(model, replace(trained.training_set, samples=few), recipe)
    batch = few.batch(np.arange(10))
    with torch.no_grad():
        scores = score(
            model,
            model.encode(batch.history),
            batch,
            whole_catalogue(trained.training_set.num_items),
            trained.training_set.text_NT,
        )
    num_true = int(scores.positive_BM.sum(-1).min())
    best = scores.everything_BM.topk(num_true, dim=-1).indices
    assert scores.positive_BM.gather(1, best).mean() > 0.95
    assert losses[-1]["generative"] < 0.5 * losses[0]["generative"]


def test_a_resumed_run_takes_the_same_steps(trained: Run, tmp_path: Path) -> None:
    recipe = replace(trained.recipe, steps=14, checkpoint_every=7)

    def fresh() -> torch.nn.Module:
        return build_model(recipe, trained.semantic_ids(), trained.embeddings().shape[1])

    whole = train(fresh(), trained.training_set, recipe)

    class StopTrainingError(Exception):
        pass

    def stop(step: int, losses: object) -> None:
        if step == 9:
            raise StopTrainingError

    with pytest.raises(StopTrainingError):
        train(fresh(), trained.training_set, recipe, tmp_path / "checkpoint.pt", stop)
    assert train(fresh(), trained.training_set, recipe, tmp_path / "checkpoint.pt") == whole


def test_an_epoch_visits_every_sample_once(trained: Run) -> None:
    samples = trained.training_set.samples
    steps = len(samples) // 8
    visited = np.concatenate([step_samples(samples, 8, step) for step in range(steps)])
    assert len(np.unique(visited)) == len(visited) == steps * 8


def test_sampled_negatives_hold_targets_and_hard_ones_with_their_chances(trained: Run) -> None:
    data = trained.training_set
    batch = data.samples.batch(np.arange(100, 108))
    found = sampled(batch, data.samples, data.frequency_N + 1, 5, np.random.default_rng(0))
    assert set(batch.target_item_P.tolist()) <= set(found.item_M.tolist())
    assert (found.log_q_M <= 0).all()
    assert torch.equal(found.item_M[found.slots(found.item_M)], found.item_M)
    similar = data.samples.same_category(batch.target_item_P.numpy(), np.random.default_rng(0))
    shelves = trained.dataset.catalog.categories
    assert (shelves[similar] == shelves[batch.target_item_P.numpy()]).all()


def test_training_with_sampled_negatives_learns_too(trained: Run) -> None:
    recipe = replace(trained.recipe, steps=60, negatives="sampled", num_random_negatives=10)
    model = build_model(recipe, trained.semantic_ids(), trained.embeddings().shape[1])
    losses = train(model, trained.training_set, recipe)
    assert np.mean([s["retrieval"] for s in losses[-10:]]) < np.mean([s["retrieval"] for s in losses[:10]])


def test_distillation_moves_the_student_towards_its_teacher_and_leaves_the_teacher(trained: Run) -> None:
    data, recipe = trained.training_set, trained.recipe
    settings = replace(recipe.distill, steps=40, kl_weight=5.0)
    batch = data.samples.batch(np.arange(200, 264))

    def distance(model) -> tuple[float, torch.Tensor]:
        with torch.no_grad():
            memory = model.encode(batch.history)
            scores = score(model, memory, batch, whole_catalogue(data.num_items), data.text_NT)
            items, valid = candidate_lists(batch, scores, data, settings, np.random.default_rng(0))
            teacher = model.log_likelihood(memory, data.codes_NL[items])
            everyone = torch.ones(batch.size)
            student = scores.everything_BM.gather(1, items)
            kl = distillation_kl(student, teacher, valid, everyone, settings.temperature)
            return float(kl), model.log_likelihood(memory, data.codes_NL.expand(batch.size, -1, -1))

    model = trained.model(distilled=False)
    before, teacher_before = distance(model)
    distill(model, data, replace(recipe, distill=settings))
    after, teacher_after = distance(model)
    assert after < before
    assert torch.equal(teacher_before, teacher_after)


def test_a_candidate_counts_once() -> None:
    assert first_occurrence(torch.tensor([[5, 7, 5, 7, 1]])).tolist() == [[True, True, False, False, True]]


def test_a_directory_of_another_run_is_refused(trained: Run) -> None:
    with pytest.raises(InvalidInputError, match="seed"):
        tiny_run(trained.path.parent, seed=1)
