"""Run `model.onnx` with ONNX Runtime: what a machine without a GPU does. Copied to `1/runner.py` at export."""

from pathlib import Path

import numpy as np
from onnx_session import open_session


class Runner:
    """One session."""

    def __init__(self, folder: Path, config: dict, device: str) -> None:
        """Open the session."""
        self.session = open_session(folder / "model.onnx", config)
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
