"""A session of ONNX Runtime on the CPU, as every instance of a model opens one. Copied to `1/onnx_session.py` at export."""

from pathlib import Path

import onnxruntime as ort
from processors import available_processors


def open_session(path: Path, config: dict) -> ort.InferenceSession:
    """Open a model. The processors that Triton may use are shared among the model's instances; idle threads do not spin."""
    options = ort.SessionOptions()
    instances = sum(group["count"] for group in config["instance_group"])
    options.intra_op_num_threads = max(available_processors() // instances, 1)
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
