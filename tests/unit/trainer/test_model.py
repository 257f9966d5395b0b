"""What must hold of the model whatever its weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from baguni.domain.sequences import DECAYED_SHARE
from trainer.decoding import BeamSearch
from trainer.export import frozen_items, item_encoder
from trainer.graphs import ItemEncoderGraph, UserEncoderGraph
from trainer.model import DualHeadModel, Memory, Sequences, mix_copied
from trainer.retrieval import score_items
from trainer.run import Run
from trainer.samples import Batch, OrderSamples
from trainer.segments.next_item import PrefixTree, item_log_likelihoods
from trainer.statistics import TextRegression


def some_batch(run: Run, max_tokens: int | None = None) -> Batch:
    samples = OrderSamples(run.dataset, run.semantic_ids(), run.statistics, max_tokens or run.recipe.max_tokens)
    return samples.batch(np.arange(40, 56))


def pad(sequences: Sequences, extra: int) -> Sequences:
    width = (0, extra)
    return Sequences(
        torch.nn.functional.pad(sequences.item_BS, width),
        torch.nn.functional.pad(sequences.codes_BSL, (0, 0, 0, extra), value=-1),
        torch.nn.functional.pad(sequences.position_BS, width),
        torch.nn.functional.pad(sequences.actions_BS, width),
        torch.nn.functional.pad(sequences.features_BSF, (0, 0, 0, extra)),
        sequences.context_BC,
        torch.nn.functional.pad(sequences.statistics_BSP, (0, 0, 0, extra)),
    )


def encode(run: Run, model: DualHeadModel, sequences: Sequences) -> Memory:
    return model.encode(sequences, frozen_items(run, model).vectors_NX)


@torch.no_grad()
def test_padding_never_changes_an_output(trained: Run) -> None:
    model, sequences = trained.model(), some_batch(trained).sequences
    graph = UserEncoderGraph(model, frozen_items(trained, model))
    embedding, repeat = graph(*sequences[:6])
    padded_embedding, padded_repeat = graph(*pad(sequences, 9)[:6])
    torch.testing.assert_close(padded_embedding, embedding, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(padded_repeat[:, : repeat.shape[1]], repeat, atol=1e-5, rtol=1e-5)
    assert (padded_repeat[:, repeat.shape[1] :] == 0).all()


@torch.no_grad()
def test_a_user_does_not_depend_on_the_others_of_the_batch(trained: Run) -> None:
    model, sequences = trained.model(), some_batch(trained).sequences
    together = model.user_embedding(encode(trained, model, sequences))
    alone = model.user_embedding(encode(trained, model, Sequences(*(tensor[3:4] for tensor in sequences))))
    torch.testing.assert_close(alone[0], together[3], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("copying", [True, False])
@pytest.mark.parametrize("code_attention", [True, False])
def test_beam_search_as_wide_as_the_catalogue_finds_the_exact_order(
    trained: Run, copying: bool, code_attention: bool
) -> None:
    """With a beam per item nothing is pruned: the search must agree with scoring every Semantic ID in one pass, and so must
    the scores of the whole catalogue."""
    changed = replace(trained.recipe, copying=copying, code_attention=code_attention, decoder_layers=2)
    model, table, sequences = trained.fresh_model(changed).eval(), trained.semantic_ids(), some_batch(trained).sequences
    search = BeamSearch(model, table.trie, num_beams=len(table)).eval()
    memory = encode(trained, model, sequences)
    items, scores = search(memory, torch.ones(len(sequences.item_BS), table.trie.num_nodes, dtype=torch.bool))
    codes = torch.from_numpy(table.codes_NL).long().expand(len(sequences.item_BS), -1, -1)
    exact = model.log_likelihood(memory, codes)
    torch.testing.assert_close(scores, exact.gather(1, items.long()), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores, exact.sort(dim=-1, descending=True).values, atol=1e-4, rtol=1e-4)
    whole = item_log_likelihoods(model, memory, PrefixTree.of(table), nodes_at_once=7)
    torch.testing.assert_close(whole, exact, atol=1e-4, rtol=1e-4)
    codes_BQL = codes[:, :5]
    later = codes_BQL.clone()
    later[:, :, -1] = 0  # a code never depends on those after it
    one, other = (model.code_log_likelihood(memory, each)[:, :, :-1] for each in (codes_BQL, later))
    torch.testing.assert_close(one, other)


@torch.no_grad()
def test_only_a_served_repeat_score_has_the_habit_weight(trained: Run) -> None:
    recipes = (replace(trained.recipe, habit_weight=weight) for weight in (0.0, 5.0))
    without, with_habit = (trained.fresh_model(recipe).eval() for recipe in recipes)
    sequences = some_batch(trained).sequences
    memory = encode(trained, without, sequences)
    learned = without.repeat_score(memory, sequences)
    torch.testing.assert_close(without.served_repeat_score(memory, sequences), learned)
    torch.testing.assert_close(with_habit.repeat_score(memory, sequences), learned)
    share_BS = sequences.features_BSF[:, :, DECAYED_SHARE]
    assert share_BS.any()
    torch.testing.assert_close(with_habit.served_repeat_score(memory, sequences), learned + 5 * share_BS)
    changed = sequences._replace(features_BSF=sequences.features_BSF.clone())
    changed.features_BSF[:, :, DECAYED_SHARE] = 0.5
    assert torch.equal(encode(trained, without, changed).states_BMD, memory.states_BMD)  # nothing else reads it


@torch.no_grad()
def test_parts_that_the_recipe_leaves_out_have_no_effect(trained: Run) -> None:
    changed = replace(trained.recipe, identity=False, interest=False, repeat=False)
    model, data, sequences = trained.fresh_model(changed).eval(), trained.training_set, some_batch(trained).sequences
    torch.testing.assert_close(model.item_vectors(data.text_NT), model.item_tower.from_text(data.text_NT).float())
    memory = encode(trained, model, sequences)
    assert not model.repeat_score(memory, sequences).any()
    user = model.user_embedding(memory)
    torch.testing.assert_close(model.user_embedding(memory._replace(interest_BqV=memory.interest_BqV + 1)), user)


@torch.no_grad()
def test_beams_return_only_allowed_items_and_say_when_there_are_no_more(trained: Run) -> None:
    model, table, sequences = trained.model(), trained.semantic_ids(), some_batch(trained).sequences
    allowed = np.zeros(len(table), bool)
    allowed[[3, 17, 41, 59]] = True
    mask = torch.from_numpy(table.trie.node_mask(allowed)).expand(len(sequences.item_BS), -1)
    items, scores = BeamSearch(model, table.trie, num_beams=16).eval()(encode(trained, model, sequences), mask)
    assert {frozenset(row[row >= 0].tolist()) for row in items} == {frozenset({3, 17, 41, 59})}
    assert (items[:, 4:] == -1).all()
    assert (scores[:, 0] < 0).all()


@torch.no_grad()
def test_a_mask_of_one_column_allows_everything(trained: Run) -> None:
    model, table, sequences = trained.model(), trained.semantic_ids(), some_batch(trained).sequences
    search, memory = BeamSearch(model, table.trie, num_beams=16).eval(), encode(trained, model, sequences)
    free = search(memory, torch.ones(len(sequences.item_BS), 1, dtype=torch.bool))
    full = search(memory, torch.ones(len(sequences.item_BS), table.trie.num_nodes, dtype=torch.bool))
    assert torch.equal(free[0], full[0])
    assert torch.equal(free[1], full[1])


def test_a_mixture_of_copied_and_written_codes_by_hand() -> None:
    gate, copied, written = torch.tensor([0.25, 0.0, 1.0]), torch.tensor([0.5, 0.9, 0.5]), torch.tensor([0.1, 0.2, 0.3])
    expected = [0.25 * 0.5 + 0.75 * 0.1, 0.2, 0.5]
    torch.testing.assert_close(mix_copied(gate, copied, written.log()).exp(), torch.tensor(expected))


@torch.no_grad()
def test_a_code_is_copied_only_from_tokens_that_began_like_the_prefix(trained: Run) -> None:
    model, sequences = trained.model(), some_batch(trained).sequences
    memory = encode(trained, model, sequences)
    codes, counts = sequences.codes_BSL[:, :, 0][sequences.present_BS].unique(return_counts=True)
    match = sequences.codes_BSL[:, None, :, 0] == codes[counts.argmin()]
    gate, weight = model.copy_weights(model.first_prefix(memory)[:, :, 0], memory, match)
    found = match.any(-1)
    assert found.any()
    assert not found.all()
    assert (gate[~found] == 0).all()
    assert (gate[found] > 0).all()
    torch.testing.assert_close((weight * match).sum(-1)[found], torch.ones(int(found.sum())))


@torch.no_grad()
def test_statistics_stand_in_a_served_vector_as_in_training(trained: Run) -> None:
    """One product with the served vector is what training scores with the month's statistics added."""
    model, batch, data = trained.model(), some_batch(trained), trained.training_set
    vectors = frozen_items(trained, model).vectors_NX
    user = model.user_embedding(encode(trained, model, batch.sequences))[:, 0]
    newest = torch.full_like(batch.month_B, len(data.values_TNP) - 1)
    served = user @ model.served_vectors(data.text_NT, data.values_TNP[-1]).T
    torch.testing.assert_close(score_items(user, vectors, data.values_TNP, newest), served, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_axes_of_the_factors_mean_nothing(trained: Run) -> None:
    """Factors of another month are turned: a score may depend on their products only."""
    model, batch, data = trained.model(), some_batch(trained), trained.training_set
    num_factors = model.config.num_factors
    turn_KK = torch.linalg.qr(torch.randn(num_factors, num_factors, generator=torch.Generator().manual_seed(0)))[0]
    turn_PP = torch.block_diag(torch.eye(model.num_described), turn_KK)
    sequences = batch.sequences._replace(statistics_BSP=batch.sequences.statistics_BSP @ turn_PP)
    scores = []
    for read, values_TNP in ((batch.sequences, data.values_TNP), (sequences, data.values_TNP @ turn_PP)):
        memory = encode(trained, model, read)
        user = model.user_embedding(memory)[:, 1]
        assert memory.factors_BqK.abs().sum() > 0
        scores.append(score_items(user, frozen_items(trained, model).vectors_NX, values_TNP, batch.month_B))
    torch.testing.assert_close(*scores, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_what_nobody_ordered_stands_on_its_text_alone(trained: Run) -> None:
    ordered_N = torch.ones(len(trained.semantic_ids()), dtype=torch.bool)
    ordered_N[[2, 5]] = False
    text_NT = trained.training_set.text_NT
    model = DualHeadModel(trained.model().config, ordered_N)
    for mode in (model.train(), model.eval()):
        vectors_NX, from_text_NX = mode.item_vectors(text_NT), model.item_tower.from_text(text_NT)
        torch.testing.assert_close(vectors_NX[[2, 5]], from_text_NX[[2, 5]])
        assert not torch.allclose(vectors_NX[[1, 3]], from_text_NX[[1, 3]])


@torch.no_grad()
def test_an_item_that_comes_later_is_placed_as_one_of_the_catalogue_that_nobody_ordered(trained: Run) -> None:
    ordered_N = torch.ones(len(trained.semantic_ids()), dtype=torch.bool)
    ordered_N[5] = False
    model = DualHeadModel(trained.model().config, ordered_N)
    model.load_state_dict(trained.model().state_dict())
    text_NT = trained.training_set.text_NT
    statistics = trained.statistics.completed(text_NT.numpy(), ordered_N.numpy())
    served_NX = model.eval().served_vectors(text_NT, torch.from_numpy(statistics.newest_NP))
    from_text = TextRegression.fit(text_NT.numpy()[ordered_N.numpy()], statistics.newest_NP[ordered_N.numpy()])
    graph = ItemEncoderGraph(trained.rqvae(), model, from_text)
    _, _, vector_BX = graph(torch.from_numpy(trained.embeddings()[5:6]))
    torch.testing.assert_close(vector_BX[0], served_NX[5], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_discount_takes_from_the_bias_of_what_is_popular_and_from_nothing_else(trained: Run) -> None:
    model, discount = trained.model(), 0.5
    discounted = Run(trained.path, trained.dataset_path, replace(trained.recipe, popularity_discount=discount))
    plain_NX, less_NX = trained.served_vectors(model), discounted.served_vectors(model)
    torch.testing.assert_close(less_NX[:, :-1], plain_NX[:, :-1])
    taken_N, log_orders_N = plain_NX[:, -1] - less_NX[:, -1], torch.from_numpy(trained.frequency_N + 1).log()
    torch.testing.assert_close(taken_N, discount * (log_orders_N - log_orders_N.mean()), atol=1e-5, rtol=1e-5)
    embedding = torch.from_numpy(trained.embeddings()[:1])
    vectors = [item_encoder(run, run.rqvae(), model)(embedding)[2][0] for run in (trained, discounted)]
    gained = discount * float(log_orders_N.mean())  # an item that comes later has no order: the logarithm is 0
    torch.testing.assert_close(vectors[1][-1] - vectors[0][-1], torch.tensor(gained), atol=1e-5, rtol=1e-5)
