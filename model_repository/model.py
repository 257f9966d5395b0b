"""Triton Python backend: hands dynamically batched requests to the runner beside this file, ONNX Runtime
or torch. It knows no model: names, types and what requests must keep to come from config.pbtxt. Copied to `1/model.py` at
export, with a runner as `1/runner.py`.
"""

import triton_python_backend_utils as pb_utils  # isort: skip - first: it says where the other packages are

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from runner import Runner


class TritonPythonModel:
    """One instance: one runner."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the runner, on the device that the configuration names."""
        config = json.loads(args["model_config"])
        device = f"cuda:{args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else "cpu"
        self.runner = Runner(Path(args["model_repository"]) / args["model_version"], config, device)
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
        except Exception as error:  # whatever the runner raises concerns these requests, not the server
            failure = f"{type(error).__name__}: {error}"
            problems, answers = [problem or failure for problem in problems], iter([])
        return [
            pb_utils.InferenceResponse(error=pb_utils.TritonError(problem)) if problem else next(answers)
            for problem in problems
        ]

    def run(self, rows: list) -> list:
        """A response for each request's arrays."""
        parts = {name: [np.ascontiguousarray(arrays[name]) for arrays in rows] for name in self.limits}
        results = self.runner.run({n: p[0] if len(p) == 1 else np.concatenate(p) for n, p in parts.items()})
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
