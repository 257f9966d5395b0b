"""What a model in Triton does with requests that no gateway of ours would send: it names what is wrong, answers everybody else,
and goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from baguni.clients.inference import SyncInferenceClient
from baguni.domain.errors import InvalidInputError
from baguni.domain.release import Release
from baguni.domain.signature import model_specs, triton_model_name
from baguni.settings import Endpoints
from tests.waiting import WAIT_S, eventually

pytestmark = pytest.mark.stack
Arrays = dict[str, NDArray[np.generic]]
Infer = Callable[[Arrays], NDArray[np.float32]]


@pytest.fixture
def infer(stack: Endpoints, active_release: Release) -> Iterator[Infer]:
    """Ask the user encoder in Triton for anything, without the checks of our client. What waits too long in the queue of a
    busy machine is rejected, and asked again."""
    client = triton.InferenceServerClient(stack.triton_url)

    def ask(arrays: Arrays) -> NDArray[np.float32]:
        inputs = []
        for name, array in arrays.items():
            inputs.append(triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
            inputs[-1].set_data_from_numpy(array)
        model = triton_model_name("user_encoder", active_release.release_id)
        answers: list[NDArray[np.float32]] = []

        def is_answered() -> bool:
            try:
                reply = client.infer(model, inputs, client_timeout=WAIT_S)
            except InferenceServerException as error:
                if "Request timeout expired" not in error.message():
                    raise
                return False
            answers.append(np.asarray(reply.as_numpy("user_embedding")))
            return True

        eventually(is_answered, "Triton does not reject the request in its queue")
        return answers[0]

    yield ask
    client.close()


@pytest.fixture
def good(active_release: Release) -> Arrays:
    """A golden query."""
    names = [tensor.name for tensor in model_specs(active_release.signature)["user_encoder"].inputs]
    return {name: active_release.golden_queries[name][:1] for name in names}


BAD = [
    ("codes", lambda x: x + 100, r"codes has \d+, expected at most \["),
    ("codes", lambda x: x - 5, "codes has -6, expected at least -1"),
    ("item_index", lambda x: x + 10_000, r"item_index has \d+, expected at most"),
    ("features", lambda x: np.full_like(x, np.nan), "features has a value that is not finite"),
    ("context", lambda x: np.full_like(x, np.inf), "context has a value that is not finite"),
]


@pytest.mark.parametrize(("name", "spoil", "message"), BAD)
def test_a_value_that_no_model_takes_is_named(infer: Infer, good: Arrays, name, spoil, message) -> None:
    with pytest.raises(InferenceServerException, match=message):
        infer({**good, name: spoil(good[name])})
    assert np.isfinite(infer(good)).all()


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("codes", lambda x: x.astype(np.int64)),
        ("codes", lambda x: x[:, :, :1]),
        ("context", lambda x: x[:, :3]),
        ("item_index", lambda x: x[0]),
    ],
)
def test_a_type_or_shape_that_is_not_the_models_is_refused(infer: Infer, good: Arrays, name, spoil) -> None:
    with pytest.raises(InferenceServerException, match=name):
        infer({**good, name: np.ascontiguousarray(spoil(good[name]))})
    assert np.isfinite(infer(good)).all()


def test_a_history_longer_than_the_largest_bucket_is_refused(infer: Infer, good: Arrays, active_release) -> None:
    tokens = active_release.signature.max_tokens + 1
    longer = {
        name: array if name == "context" else np.repeat(array[:, :1], tokens, axis=1) for name, array in good.items()
    }
    with pytest.raises(InferenceServerException, match=rf"item_index is \({tokens},\) a row, expected"):
        infer(longer)


def test_our_client_refuses_the_same_before_it_asks(stack: Endpoints, good: Arrays, active_release: Release) -> None:
    client = SyncInferenceClient(stack.triton_url, active_release.release_id, active_release.signature)
    try:
        for name, spoil, _ in BAD:
            with pytest.raises(InvalidInputError, match=name):
                client.infer("user_encoder", {**good, name: spoil(good[name])}, 10.0)
    finally:
        client.close()


def test_a_bad_request_leaves_those_of_its_batch_alone(infer: Infer, active_release: Release, good: Arrays) -> None:
    """Several at once, so that Triton batches good and bad ones together: every good one gets its own user's answer."""
    golden = active_release.golden_queries
    users = [{name: golden[name][row : row + 1] for name in good} for row in range(len(golden["context"]))]

    def ask(number: int) -> NDArray[np.float32] | None:
        arrays = users[number % len(users)]
        if number % 3:
            return infer(arrays)
        with pytest.raises(InferenceServerException, match="codes has"):
            infer({**arrays, "codes": arrays["codes"] + 100})
        return None

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, range(240)))
    for number, answer in enumerate(answers):
        if answer is not None:
            expected = golden["user_embedding"][number % len(users)]
            np.testing.assert_allclose(answer[0], expected, rtol=1e-3, atol=1e-4)
