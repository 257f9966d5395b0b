"""One model, three runtimes: torch, ONNX and the running Triton give the same answers for the same histories."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from baguni.clients.inference import SyncInferenceClient, triton_inputs
from baguni.domain.release import Release
from baguni.domain.sequences import ModelInputs, event_batch, model_inputs
from baguni.settings import Endpoints
from tests.tiny_release import tiny_run
from trainer.decoding import BeamSearch
from trainer.export import frozen_items, item_encoder
from trainer.graphs import UserEncoderGraph
from trainer.model import Sequences
from trainer.run import Run
from trainer.samples import to_sequences

pytestmark = pytest.mark.stack
NUM_USERS = 24


@pytest.fixture(scope="module")
def run(tiny_release: Release) -> Run:
    return tiny_run(tiny_release.path.parent)


@pytest.fixture(scope="module")
def inputs(run: Run) -> ModelInputs:
    """Histories of the first users as the gateway would summarise them on 1 April; the last user has none."""
    log, signature = run.training_log, run.recipe
    histories = [log.history(user) for user in range(NUM_USERS - 1)] + [[]]
    now = np.full(NUM_USERS, run.test_start_ms)
    return model_inputs(event_batch(histories, log.catalog.index), now, signature.max_tokens, log.store_timezone)


def newest(run: Run, inputs: ModelInputs) -> Sequences:
    """The histories as the trainer would read them on the day of the release."""
    month = np.full(len(inputs.item_BS), len(run.statistics.start_T) - 1)
    return to_sequences(inputs, run.semantic_ids().codes_NL, run.statistics.values_TNP, month)


@pytest.fixture
def triton(active_release: Release, stack: Endpoints) -> Iterator[SyncInferenceClient]:
    client = SyncInferenceClient(stack.triton_url, active_release.release_id, active_release.signature)
    yield client
    client.close()


@torch.no_grad()
def test_the_user_encoder_in_triton_is_the_trained_one(run: Run, inputs: ModelInputs, triton, active_release) -> None:
    codes = active_release.semantic_ids.codes_NL
    served = triton.infer("user_encoder", triton_inputs(inputs, codes, active_release.signature), 10.0)
    model = run.model()
    embedding, repeat = UserEncoderGraph(model, frozen_items(run, model))(*newest(run, inputs)[:6])
    np.testing.assert_allclose(served["user_embedding"], embedding.numpy(), atol=1e-4)
    length = served["repeat_score"].shape[1]  # the shortest bucket that holds these histories
    np.testing.assert_allclose(served["repeat_score"], repeat.numpy()[:, :length], atol=1e-4)
    assert not repeat[:, length:].any()


@torch.no_grad()
def test_the_generator_in_triton_finds_the_items_that_torch_finds(
    run: Run, inputs: ModelInputs, triton, active_release
) -> None:
    table, signature = active_release.semantic_ids, active_release.signature
    mask = np.ones((NUM_USERS, signature.num_nodes), np.bool_)
    arrays = {**triton_inputs(inputs, table.codes_NL, signature), "node_mask": mask}
    served = triton.infer("generator", arrays, 20.0)
    model = run.model()
    memory = model.encode(newest(run, inputs), frozen_items(run, model).vectors_NX)
    items, scores = BeamSearch(model, table.trie, signature.num_beams).eval()(memory, torch.from_numpy(mask))
    np.testing.assert_allclose(served["log_likelihood"], scores.numpy(), atol=1e-4)
    for mine, theirs in zip(items.tolist(), served["generated_item"].tolist(), strict=True):
        assert len(set(mine) & set(theirs)) >= len(mine) - 1  # the last places may tie
        assert set(theirs) <= set(range(len(table)))


@torch.no_grad()
def test_a_batch_and_its_users_one_by_one_give_the_same(inputs: ModelInputs, triton, active_release) -> None:
    codes = active_release.semantic_ids.codes_NL
    arrays = triton_inputs(inputs, codes, active_release.signature)
    together = triton.infer("user_encoder", arrays, 10.0)["user_embedding"]
    for user in (0, 7, NUM_USERS - 1):
        alone = triton.infer("user_encoder", {k: v[user : user + 1] for k, v in arrays.items()}, 10.0)
        np.testing.assert_allclose(alone["user_embedding"][0], together[user], atol=1e-5)


@torch.no_grad()
def test_a_text_in_triton_gets_the_codes_and_vectors_of_training(run: Run, triton, active_release) -> None:
    items = active_release.catalog.items[:20]
    text = np.asarray([[item.text.encode()] for item in items], dtype=np.object_)
    embedding = triton.infer("text_encoder", {"text": text}, 20.0)
    np.testing.assert_allclose(embedding["text_embedding"], run.embeddings()[:20], atol=1e-4)
    served = triton.infer("item_encoder", embedding, 10.0)
    np.testing.assert_array_equal(served["codes"], active_release.semantic_ids.codes_NL[:20, :-1])
    np.testing.assert_allclose(served["content_vector"], active_release.content_vectors[:20], atol=1e-4)
    graph = item_encoder(run, run.rqvae(), run.model())
    _, _, vectors = graph(torch.from_numpy(run.embeddings()[:20]))
    np.testing.assert_allclose(served["item_vector"], vectors.numpy(), atol=1e-4)
