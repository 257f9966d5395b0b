"""A training sample and the gateway read the same bytes of the same history."""

from __future__ import annotations

import numpy as np
import pytest

from baguni.clients.inference import summarise, triton_inputs
from baguni.domain.release import Release
from trainer.run import Run
from trainer.samples import OrderSamples

SAMPLES = 64


@pytest.mark.parametrize("first", [0, 200, 500])
def test_the_trainer_reads_what_the_gateway_reads(trained: Run, tiny_release: Release, first: int) -> None:
    data, signature = trained.dataset, tiny_release.signature
    samples = OrderSamples(data, trained.semantic_ids(), trained.statistics, signature.max_tokens)
    chosen = np.arange(first, first + SAMPLES)
    read = samples.batch(chosen).sequences
    users, moments = samples.user_O[chosen].tolist(), samples.time_O[chosen].tolist()
    before = [
        [event for event in data.history(user) if event.time_ms < now_ms]
        for user, now_ms in zip(users, moments, strict=True)
    ]
    inputs = summarise(before, moments, tiny_release.catalog.index, signature)
    served = triton_inputs(inputs, tiny_release.semantic_ids.codes_NL, signature)
    length = read.item_BS.shape[1]
    assert length > 1
    for tensor, (name, array) in zip(read, served.items(), strict=False):
        cut = array if name == "context" else array[:, :length]
        assert tensor.numpy().dtype == cut.dtype, name
        assert tensor.numpy().tobytes() == np.ascontiguousarray(cut).tobytes(), name
        assert name == "context" or not (array[:, length:] > 0).any(), (
            f"{name} has tokens that the trainer does not read"
        )
