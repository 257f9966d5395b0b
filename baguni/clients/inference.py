"""Calls to Triton: one client for a release, asynchronous for the gateway and synchronous for consumers. Of several Tritons
each is asked in turn.

Both set two timeouts: the server's, in microseconds, after which a request in Triton's queue is rejected, and the call's,
in seconds, after which nobody waits.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from baguni.clients.channels import KEEPALIVE, RECONNECT, UNLIMITED, balanced, replicas
from baguni.domain.errors import InvalidInputError, RefusedError, ReleaseMismatchError, UnavailableError
from baguni.domain.history import HistoryEvent
from baguni.domain.sequences import ModelInputs, event_batch, first_tokens, longest, model_inputs, sequence_arrays
from baguni.domain.signature import ModelSignature, ModelSpec, model_specs, triton_model_name
from baguni.telemetry import trace_headers

Arrays = dict[str, NDArray[Any]]
ATTEMPTS = 2  # of a call whose Triton is gone: the models keep nothing, so it may be asked of another
CHANNEL = list({**UNLIMITED, **KEEPALIVE, **RECONNECT, **balanced("inference.GRPCInferenceService", ATTEMPTS)}.items())
CHECK_TIMEOUT_S, LOAD_TIMEOUT_S = 10.0, 600.0  # a big engine on a busy machine
LOOK_S = 0.2  # between two looks at a model that somebody else loads
READY, CHANGING = "READY", ("LOADING", "UNLOADING")  # states of a model in Triton's repository
log = logging.getLogger(__name__)


def summarise(
    histories: Sequence[Sequence[HistoryEvent]],
    now_ms: int | Sequence[int],
    item_index: dict[str, int],
    signature: ModelSignature,
) -> ModelInputs:
    """Return what a release's models read of some histories, a row each. `now_ms`: for all, or one each."""
    now_B = np.broadcast_to(np.asarray(now_ms, np.int64), len(histories))
    return model_inputs(event_batch(histories, item_index), now_B, signature.max_tokens, signature.store_timezone)


def triton_inputs(inputs: ModelInputs, codes_NL: NDArray[np.int32], signature: ModelSignature) -> Arrays:
    """Return the sequence inputs of `user_encoder`, `generator` and `scorer`, as long as the shortest bucket for all rows.

    Items beyond the signature's have item_index 0, like padding: the models know them by their codes only.
    """
    length = next(size for size in signature.buckets if size >= longest(inputs))
    arrays = sequence_arrays(first_tokens(inputs, length), codes_NL)
    arrays["features"] = np.ascontiguousarray(arrays["features"][:, :, : signature.num_features])
    arrays["item_index"] = np.where(arrays["item_index"] <= signature.num_items, arrays["item_index"], np.int32(0))
    return arrays


class InferenceClient:
    """Asynchronous calls to one release's models. One a process and event loop."""

    def __init__(self, url: str, release_id: str, signature: ModelSignature) -> None:
        self._url, self._client = url, triton_aio.InferenceServerClient(url, channel_args=CHANNEL)
        self._release_id, self._specs = release_id, model_specs(signature)

    async def infer(self, model: str, inputs: Mapping[str, NDArray[Any]], timeout_s: float) -> Arrays:
        """Return outputs by name. `model` is the short name; every input has the batch dimension first. Raises
        UnavailableError, also for outputs that are not what the model promises."""
        spec = self._specs[model]
        try:
            result = await self._client.infer(**_request(spec, self._release_id, inputs, timeout_s))
        except InferenceServerException as error:
            raise _unavailable(error) from error
        try:
            return _outputs(spec, inputs, result)
        except (ValueError, InvalidInputError) as error:
            raise UnavailableError("triton", str(error)) from error

    async def check(self) -> None:
        """Raise ReleaseMismatchError if a Triton's models carry another release id than the client's, UnavailableError if no
        Triton has them all. Of several one may be away: its calls go to the others."""
        addresses, away = await asyncio.to_thread(replicas, self._url), []
        for address in addresses:
            try:
                await self._check_one(address)
            except UnavailableError as error:
                log.warning("triton away address=%s: %s", address, error)
                away.append(error)
        if len(away) == len(addresses):
            raise away[-1]

    async def _check_one(self, address: str) -> None:
        client = triton_aio.InferenceServerClient(address, channel_args=CHANNEL)
        try:
            for name in self._specs:
                model = triton_model_name(name, self._release_id)
                config = await client.get_model_config(model, as_json=True, client_timeout=CHECK_TIMEOUT_S)
                _check_release(name, config["config"], self._release_id)
        except InferenceServerException as error:
            raise _unavailable(error) from error
        finally:
            await client.close()

    async def close(self) -> None:
        """Close the channel."""
        await self._client.close()


class SyncInferenceClient:
    """The same for processes without an event loop, and the control of what a single Triton has loaded."""

    def __init__(self, url: str, release_id: str, signature: ModelSignature) -> None:
        self._client = triton.InferenceServerClient(url, channel_args=CHANNEL)
        self._release_id, self._specs = release_id, model_specs(signature)

    def infer(self, model: str, inputs: Mapping[str, NDArray[Any]], timeout_s: float) -> Arrays:
        """Return outputs by name, see InferenceClient.infer. Raises RefusedError for values that no model may give, because the
        inputs may be to blame."""
        spec = self._specs[model]
        try:
            result = self._client.infer(**_request(spec, self._release_id, inputs, timeout_s))
        except InferenceServerException as error:
            raise _unavailable(error) from error
        try:
            return _outputs(spec, inputs, result)
        except ValueError as error:
            raise UnavailableError("triton", str(error)) from error
        except InvalidInputError as error:
            raise RefusedError("triton", str(error)) from error

    def load(self) -> None:
        """Load every model of the release from Triton's repository, unless it is ready, and check that it is this release's. A
        model is ready once its warm-up requests have run. One that somebody else loads is waited for: Triton would load it
        again when it is ready, and its Python backend may abort the server then (triton-inference-server/server#8882)."""
        try:
            with ThreadPoolExecutor(len(self._specs)) as pool:  # mostly waiting: for a process, for a file to be read
                list(pool.map(self._load, self._specs))
        except InferenceServerException as error:
            raise _unavailable(error) from error

    def _load(self, name: str) -> None:
        model, deadline = triton_model_name(name, self._release_id), time.monotonic() + LOAD_TIMEOUT_S
        while (state := self._state(model)) in CHANGING and time.monotonic() < deadline:
            time.sleep(LOOK_S)
        if state != READY:
            self._client.load_model(model, client_timeout=LOAD_TIMEOUT_S)
        config = self._client.get_model_config(model, as_json=True, client_timeout=CHECK_TIMEOUT_S)["config"]
        _check_release(name, config, self._release_id)

    def _state(self, model: str) -> str:
        """Return the state of a model in Triton's words, "" for one that was never loaded."""
        index = self._client.get_model_repository_index(as_json=True, client_timeout=CHECK_TIMEOUT_S).get("models", [])
        return next((str(entry.get("state", "")) for entry in index if entry["name"] == model), "")

    def is_loaded(self) -> bool:
        """Return whether every model of the release is ready."""
        try:
            names = [triton_model_name(name, self._release_id) for name in self._specs]
            return all(self._client.is_model_ready(name, client_timeout=CHECK_TIMEOUT_S) for name in names)
        except InferenceServerException as error:
            raise _unavailable(error) from error

    def unload(self) -> None:
        """Unload every model of the release."""
        try:
            for name in self._specs:
                self._client.unload_model(triton_model_name(name, self._release_id), client_timeout=LOAD_TIMEOUT_S)
        except InferenceServerException as error:
            raise _unavailable(error) from error

    def close(self) -> None:
        """Close the channel."""
        self._client.close()


def unload_models(url: str, models: Collection[str], is_unwanted: Callable[[str], bool]) -> list[str]:
    """Unload from one Triton the models of releases that are not wanted, and return the releases' ids. Models of no release
    stay. Raises UnavailableError."""
    client, found = triton.InferenceServerClient(url, channel_args=CHANNEL), []
    try:
        index = client.get_model_repository_index(as_json=True, client_timeout=CHECK_TIMEOUT_S).get("models", [])
        for entry in index:
            model = re.fullmatch(rf"({'|'.join(models)})_(.+)", entry["name"])
            if model and entry.get("state") == READY and is_unwanted(model[2]):
                client.unload_model(entry["name"], client_timeout=LOAD_TIMEOUT_S)
                found.append(model[2])
    except InferenceServerException as error:
        raise _unavailable(error) from error
    finally:
        client.close()
    return found


def _request(spec: ModelSpec, release_id: str, inputs: Mapping[str, NDArray[Any]], timeout_s: float) -> dict[str, Any]:
    spec.check(inputs)
    tensors = []
    for tensor in spec.inputs:
        array = inputs[tensor.name]
        dtype = "BYTES" if tensor.dtype == "STRING" else tensor.dtype
        infer_input = triton.InferInput(tensor.name, array.shape, dtype)
        infer_input.set_data_from_numpy(np.ascontiguousarray(array))
        tensors.append(infer_input)
    return {
        "model_name": triton_model_name(spec.name, release_id),
        "inputs": tensors,
        "outputs": [triton.InferRequestedOutput(tensor.name) for tensor in spec.outputs],
        "timeout": max(int(timeout_s * 1e6), 1),
        "client_timeout": timeout_s,
        "headers": trace_headers(),
    }


def _outputs(spec: ModelSpec, inputs: Mapping[str, NDArray[Any]], result: Any) -> Arrays:
    """Return outputs by name. Raises what `ModelSpec.check_outputs` raises."""
    outputs = {tensor.name: result.as_numpy(tensor.name) for tensor in spec.outputs}
    spec.check_outputs(inputs, outputs)
    return outputs


def _check_release(name: str, config: Mapping[str, Any], release_id: str) -> None:
    carried = config.get("parameters", {}).get("release_id", {}).get("string_value")
    if carried != release_id:
        raise ReleaseMismatchError(f"Triton's {name} belongs to release {carried}, expected {release_id}")


def _unavailable(error: InferenceServerException) -> UnavailableError:
    return UnavailableError("triton", f"{error.message()} ({error.status() or 'no status'})")
