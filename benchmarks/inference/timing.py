"""Times that can be compared: what is compared runs in turn, round after round, so that a slow moment of the machine is slow
for all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper

Task = Callable[[], object]
GEMM_SIZE = 1024


@dataclass(frozen=True)
class Times:
    """Seconds of every round."""

    seconds: tuple[float, ...]

    @property
    def p50(self) -> float:
        """The median."""
        return float(np.median(self.seconds))

    @property
    def p99(self) -> float:
        """The 99th percentile; of fewer than a hundred rounds nearly the slowest."""
        return float(np.percentile(self.seconds, 99))


def in_turn(tasks: Mapping[str, Task], rounds: int) -> dict[str, Times]:
    """Run every task once to warm up, then all of them, one after the other, `rounds` times."""
    for task in tasks.values():
        task()
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            started = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - started)
    return {name: Times(tuple(values)) for name, values in seconds.items()}


def gemm_tasks() -> dict[str, Task]:
    """One fp32 product of square matrices of GEMM_SIZE on one core, by each library that is here: the quicker is the core's
    own rate."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(GEMM_SIZE, GEMM_SIZE, generator=generator) for _ in range(2))
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [GEMM_SIZE, GEMM_SIZE]) for name in ("x", "y")]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [GEMM_SIZE, GEMM_SIZE], right.numpy().tobytes(), raw=True)
    model = helper.make_model(
        helper.make_graph([node], "product", ends[:1], ends[1:], [weight]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return {
        "product, torch": lambda: left @ right,
        "product, ONNX Runtime": lambda: session.run(None, {"x": left.numpy()}),
    }


def gemm_flops() -> float:
    """Floating point operations of one of these products."""
    return 2.0 * GEMM_SIZE**3
