"""What Triton adds to the bare session: the user encoder in the running server beside ONNX Runtime in this process, on as many
threads.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton

from baguni.inference import SyncInferenceClient
from baguni.signature import triton_model_name
from benchmarks.inference.subject import Subject, session
from benchmarks.inference.timing import in_turn
from benchmarks.result import REPOSITORY, Row
from deploy.local.settings import StackSettings
from trainer.export import BACKEND_DIR
from trainer.triton_config import render_config

MODEL, RELEASE, TOKENS, BATCH = "user_encoder", "r0", 64, 8
IN_FLIGHT, REQUESTS, ROUNDS = 2, 16, 15
START_S = 60.0


def rows(folder: Path) -> Iterator[Row]:
    """Users a second in batches, and the latency that one request gains."""
    subject, rng = Subject(), np.random.default_rng(0)
    bare = session(subject.export(MODEL, folder), threads=os.cpu_count() or 1)
    many, one = (subject.inputs(MODEL, batch, TOKENS, rng) for batch in (BATCH, 1))
    with _server(subject, folder) as url, ThreadPoolExecutor(IN_FLIGHT) as pool:
        clients = [SyncInferenceClient(url, RELEASE, subject.signature) for _ in range(IN_FLIGHT)]

        def burst() -> list[object]:
            return list(pool.map(lambda number: clients[number % IN_FLIGHT].infer(MODEL, many, 30.0), range(REQUESTS)))

        batches = in_turn({"triton": burst, "bare": lambda: [bare.run(None, many) for _ in range(REQUESTS)]}, ROUNDS)
        single = in_turn(
            {"triton": lambda: clients[0].infer(MODEL, one, 30.0), "bare": lambda: bare.run(None, one)}, 20 * ROUNDS
        )
        for client in clients:
            client.close()
    share = batches["bare"].p50 / batches["triton"].p50
    what = f"{MODEL} through Triton's Python backend, {TOKENS} items"
    yield Row(
        f"{what}, batch {BATCH}, {IN_FLIGHT} requests in flight: of the bare session's users a second",
        100 * share,
        "%",
        "≥ 85 %",
        share >= 0.85,
        "bare session, users a second",
        REQUESTS * BATCH / batches["bare"].p50,
    )
    added = 1e3 * (single["triton"].p50 - single["bare"].p50)
    yield Row(
        f"{what}, batch 1: median latency added",
        added,
        "ms",
        "≤ 1.5 ms",
        added <= 1.5,
        "bare session, ms",
        1e3 * single["bare"].p50,
    )


@contextmanager
def _server(subject: Subject, folder: Path) -> Iterator[str]:
    """Triton with the encoder loaded; its gRPC address."""
    name = triton_model_name(MODEL, RELEASE)
    version = folder / "repository" / name / "1"
    version.mkdir(parents=True)
    shutil.copyfile(subject.export(MODEL, folder), version / "model.onnx")
    shutil.copyfile(BACKEND_DIR / "onnx_model.py", version / "model.py")
    patient = replace(subject.specs[MODEL], queue_timeout_us=10_000_000)  # a benchmark waits for its answers
    (version.parent / "config.pbtxt").write_text(render_config(patient, RELEASE, subject.signature.max_batch_size))
    ports = [_free_port() for _ in range(3)]
    command = [StackSettings().servers_python, REPOSITORY / "deploy" / "local" / "triton_server.py"]
    arguments = [folder / "repository", folder / "work", *ports]
    with (folder / "triton.log").open("wb") as log:
        process = subprocess.Popen([str(part) for part in (*command, *arguments)], stdout=log, stderr=log)
    url = f"127.0.0.1:{ports[0]}"
    try:
        _load(url, name, time.monotonic() + START_S)
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


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
