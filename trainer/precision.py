"""Fewer bits for the matrix products of an exported graph, written into the ONNX; sums, softmax and scores stay in fp32, and
inputs and outputs keep their types.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import onnx
import onnxruntime as ort
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers.float16 import convert_float_to_float16

PRODUCTS = ("MatMul", "Gemm")  # nearly all of the time


def half_precision(source: Path, target: Path) -> None:
    """fp16, for GPUs: TensorRT takes precision from the graph alone."""
    model = onnx.load(source)
    kept = sorted({node.op_type for node in model.graph.node} - set(PRODUCTS))
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # it says of each weight that is too small for fp16 that it becomes the smallest
        onnx.save(convert_float_to_float16(model, keep_io_types=True, op_block_list=kept), target)


def int8(source: Path, target: Path) -> None:
    """int8 weights with a scale for each output, activations quantised as they come: for CPUs."""
    with tempfile.TemporaryDirectory() as folder:
        folded = Path(folder) / "folded.onnx"
        options = ort.SessionOptions()  # weights that are transposed in the graph are constants only after folding
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folded)
        options.log_severity_level = 3
        ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        # Seven bits of weight: with eight, processors without VNNI add pairs of products beyond 16 bits and cut them off.
        quantize_dynamic(
            folded,
            target,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=list(PRODUCTS),
            per_channel=True,
            reduce_range=True,
        )
