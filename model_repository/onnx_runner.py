"""Runs `model.onnx` with ONNX Runtime: what a machine without a GPU does. Copied to `1/runner.py` at export."""

import os
from pathlib import Path

import numpy as np
import onnxruntime as ort


class Runner:
    """One session with a thread count of its own."""

    def __init__(self, folder: Path, config: dict, device: str) -> None:
        """Open the session. The machine's cores are shared out among the instances, and idle threads do not spin."""
        options = ort.SessionOptions()
        instances = sum(group["count"] for group in config["instance_group"])
        options.intra_op_num_threads = max((os.cpu_count() or 1) // instances, 1)
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self.session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        self.binding = self.session.io_binding()
        self.outputs = [tensor["name"] for tensor in config["output"]]

    def run(self, arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs, in the order of the configuration."""
        for name, array in arrays.items():
            self.binding.bind_cpu_input(name, array)
        for name in self.outputs:
            self.binding.bind_output(name)
        try:
            self.session.run_with_iobinding(self.binding)
            return self.binding.copy_outputs_to_cpu()
        finally:
            self.binding.clear_binding_inputs()
            self.binding.clear_binding_outputs()
