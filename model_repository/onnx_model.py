"""Triton Python backend that hosts ONNX Runtime: what a machine without a GPU runs. It knows no model: names, types, batching
and what requests must keep to come from config.pbtxt, the weights from `model.onnx` beside this file. Copied to
`1/model.py` at export.
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
        self.binding = self.session.io_binding()
        self.limits = json.loads(config["parameters"]["limits"]["string_value"])
        self.outputs = [tensor["name"] for tensor in config["output"]]

    def execute(self, requests: list) -> list:
        """Run all requests of a dynamic batch at once, and hand each its rows. A request that breaks the limits gets its own
        error; the others do not notice."""
        rows = [{name: pb_utils.get_input_tensor_by_name(r, name).as_numpy() for name in self.limits} for r in requests]
        problems = [self.problem_with(arrays) for arrays in rows]
        good = [arrays for arrays, problem in zip(rows, problems) if not problem]
        try:
            answers = iter(self.run(good) if good else [])
        except Exception as error:  # whatever ONNX Runtime raises concerns these requests, not the server
            failure = f"{type(error).__name__}: {error}"
            problems, answers = [problem or failure for problem in problems], iter([])
        return [
            pb_utils.InferenceResponse(error=pb_utils.TritonError(problem)) if problem else next(answers)
            for problem in problems
        ]

    def run(self, rows: list) -> list:
        """A response for each request's arrays."""
        for name in self.limits:
            parts = [np.ascontiguousarray(arrays[name]) for arrays in rows]
            self.binding.bind_cpu_input(name, parts[0] if len(parts) == 1 else np.concatenate(parts))
        for name in self.outputs:
            self.binding.bind_output(name)
        try:
            self.session.run_with_iobinding(self.binding)
            results = self.binding.copy_outputs_to_cpu()
        finally:
            self.binding.clear_binding_inputs()
            self.binding.clear_binding_outputs()
        ends = np.cumsum([len(next(iter(arrays.values()))) for arrays in rows])
        starts = [0, *ends[:-1]]
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, result[start:end]) for name, result in zip(self.outputs, results)]
            )
            for start, end in zip(starts, ends)
        ]

    def problem_with(self, arrays: dict) -> str:
        """What is wrong with a request, "" if nothing is."""
        for name, limit in self.limits.items():
            array = arrays[name]
            for size, wanted in zip(array.shape[1:], limit["shape"]):
                if size not in (wanted if isinstance(wanted, list) else [wanted]):
                    return f"{name} is {array.shape[1:]} a row, expected {limit['shape']}"
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                return f"{name} has a value that is not finite"
            if limit["low"] is not None and array.size and array.min() < limit["low"]:
                return f"{name} has {array.min()}, expected at least {limit['low']}"
            if limit["high"] is not None and (above := array > np.asarray(limit["high"])).any():
                return f"{name} has {array[above].max()}, expected at most {limit['high']}"
        return ""
