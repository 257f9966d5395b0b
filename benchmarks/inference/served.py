"""What Triton adds to the bare session: each model that reads histories in the running server beside ONNX Runtime in this
process, on as many threads.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import tritonclient.grpc as triton

from baguni.clients.inference import SyncInferenceClient
from baguni.domain.signature import triton_model_name
from benchmarks.inference.subject import Arrays, Subject, session
from benchmarks.inference.timing import in_turn
from benchmarks.result import REPOSITORY, Row
from deploy.local.settings import StackSettings, free_port
from trainer.export import copy_backend
from trainer.triton_config import render_config

MODELS, RELEASE, TOKENS, BATCH = ("user_encoder", "generator", "scorer"), "r0", 64, 8
IN_FLIGHT, REQUESTS, ROUNDS, SINGLE_ROUNDS = 2, 16, 15, 301
START_S = 60.0


def rows(folder: Path) -> Iterator[Row]:
    """Users a second in batches, and the latency that one request gains; bars are for the user encoder."""
    subject, rng = Subject(), np.random.default_rng(0)
    with _server(subject, folder) as url:
        clients = [SyncInferenceClient(url, RELEASE, subject.signature) for _ in range(IN_FLIGHT)]
        for model in MODELS:
            bare = session(subject.export(model, folder), threads=os.cpu_count() or 1)
            one, many = (subject.inputs(model, batch, TOKENS, rng) for batch in (1, BATCH))
            rounds = 1 if model == MODELS[0] else 5  # the others take that much longer
            yield from _throughput(model, clients, bare, many, ROUNDS // rounds)
            yield from _latency(model, clients[0], bare, one, SINGLE_ROUNDS // rounds)
        for client in clients:
            client.close()


def _throughput(
    model: str, clients: list[SyncInferenceClient], bare: ort.InferenceSession, many: Arrays, rounds: int
) -> Iterator[Row]:
    with ThreadPoolExecutor(IN_FLIGHT) as pool:

        def burst() -> list[object]:
            return list(pool.map(lambda number: clients[number % IN_FLIGHT].infer(model, many, 30.0), range(REQUESTS)))

        times = in_turn({"triton": burst, "bare": lambda: [bare.run(None, many) for _ in range(REQUESTS)]}, rounds)
    share = times["bare"].p50 / times["triton"].p50
    what = (
        f"{model} through Triton's Python backend, {TOKENS} items, batch {BATCH}, {IN_FLIGHT} requests in flight: of the bare "
        "session's users a second"
    )
    alone = ("bare session, users a second", REQUESTS * BATCH / times["bare"].p50)
    has_bar = model == MODELS[0]
    yield Row.at_least(what, 100 * share, "%", 85, alone) if has_bar else Row.reported(what, 100 * share, "%", alone)


def _latency(
    model: str, client: SyncInferenceClient, bare: ort.InferenceSession, one: Arrays, rounds: int
) -> Iterator[Row]:
    times = in_turn({"triton": lambda: client.infer(model, one, 30.0), "bare": lambda: bare.run(None, one)}, rounds)
    what = f"{model} through Triton's Python backend, {TOKENS} items, batch 1"
    added = 1e3 * (times["triton"].p50 - times["bare"].p50)
    more, alone = f"{what}: median latency added", ("bare session, ms", 1e3 * times["bare"].p50)
    has_bar = model == MODELS[0]
    yield Row.at_most(more, added, "ms", 1.5, alone) if has_bar else Row.reported(more, added, "ms", alone)
    median = ("median, ms", 1e3 * times["triton"].p50)
    yield Row.reported(f"{what}: p99 latency", 1e3 * times["triton"].p99, "ms", median)


@contextmanager
def _server(subject: Subject, folder: Path) -> Iterator[str]:
    """Triton with the models loaded; its gRPC address."""
    repository = folder / "repository"
    for model in MODELS:
        version = repository / triton_model_name(model, RELEASE) / "1"
        version.mkdir(parents=True)
        shutil.copyfile(subject.export(model, folder), version / "model.onnx")
        copy_backend("python", version)
        patient = replace(subject.specs[model], queue_timeout_us=10_000_000)  # a benchmark waits for its answers
        (version.parent / "config.pbtxt").write_text(render_config(patient, RELEASE, subject.signature.max_batch_size))
    ports = [free_port() for _ in range(3)]
    command = [StackSettings().servers_python, REPOSITORY / "deploy" / "local" / "triton_server.py"]
    arguments = [repository, folder / "work", *ports]
    with (folder / "triton.log").open("wb") as log:
        process = subprocess.Popen([str(part) for part in (*command, *arguments)], stdout=log, stderr=log)
    url = f"127.0.0.1:{ports[0]}"
    try:
        for model in MODELS:
            _load(url, triton_model_name(model, RELEASE), time.monotonic() + START_S)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


def _load(url: str, name: str, deadline: float) -> None:
    client = triton.InferenceServerClient(url)
    try:
        while True:
            try:
                client.load_model(name, client_timeout=START_S)
                return
            except triton.InferenceServerException as error:
                if time.monotonic() > deadline or "UNAVAILABLE" not in str(error.status()):
                    raise
                time.sleep(0.2)
    finally:
        client.close()
