"""Triton Python backend that hosts ONNX Runtime: what a machine without a GPU runs. It knows no model: names, types and
batching come from config.pbtxt, the weights from `model.onnx` beside this file. Copied to `1/model.py` at export.
"""

import triton_python_backend_utils as pb_utils  # isort: skip - first: it says where the other packages are

import json
import os
from pathlib import Path

import numpy as np
import onnxruntime as ort


class TritonPythonModel:
    """One instance: one ONNX Runtime session with a thread count of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the session. The machine's cores are shared out among the instances, and idle threads do not spin."""
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        options = ort.SessionOptions()
        instances = sum(group["count"] for group in config["instance_group"])
        options.intra_op_num_threads = max((os.cpu_count() or 1) // instances, 1)
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self.session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]

    def execute(self, requests: list) -> list:
        """Run all requests of a dynamic batch at once, and hand each its rows."""
        rows = [[pb_utils.get_input_tensor_by_name(r, name).as_numpy() for name in self.inputs] for r in requests]
        batch = {name: np.concatenate(parts) for name, parts in zip(self.inputs, zip(*rows))}
        try:
            results = self.session.run(self.outputs, batch)
        except Exception as error:  # whatever ONNX Runtime raises concerns these requests, not the server
            message = pb_utils.TritonError(f"{type(error).__name__}: {error}")
            return [pb_utils.InferenceResponse(error=message) for _ in requests]
        ends = np.cumsum([len(parts[0]) for parts in rows])
        return [
            pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor(name, result[end - len(parts[0]) : end])
                    for name, result in zip(self.outputs, results)
                ]
            )
            for end, parts in zip(ends, rows)
        ]
