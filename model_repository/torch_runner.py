"""Runs `program.pt2` with torch, on a GPU as CUDA graphs: what a GPU without TensorRT does. Copied to `1/runner.py` at export.

A CUDA graph replays one shape without Python or launches in between, so every shape and batch size that the configuration
names is captured when the model is loaded. A batch is padded to the next captured size; any other shape runs without a graph.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch.export.passes import move_to_device_pass

WARM_UP_RUNS = 3  # before a capture: lazily made workspaces must be there


class Runner:
    """One program on one device."""

    def __init__(self, folder: Path, config: dict, device: str) -> None:
        """Load the program, and capture its graphs where there is a GPU. Products of matrices may use TF32."""
        torch.set_float32_matmul_precision("high")
        self.device = torch.device(device)
        program = torch.export.load(folder / "program.pt2")
        self.program = move_to_device_pass(program, str(self.device)).module()
        self.outputs = [tensor["name"] for tensor in config["output"]]
        self.inputs = {tensor["name"]: getattr(torch, _DTYPES[tensor["data_type"]]) for tensor in config["input"]}
        captured = json.loads(config["parameters"]["captured"]["string_value"])
        self.batch_sizes = captured["batch_sizes"]
        self.graphs = {}
        if self.device.type == "cuda":
            self.pool = torch.cuda.graph_pool_handle()
            for shapes in captured["shapes"]:
                for batch_size in reversed(self.batch_sizes):  # the largest first: the others fit into its memory
                    self.capture(batch_size, shapes)

    @torch.inference_mode()
    def run(self, arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs, in the order of the configuration."""
        tensors = [torch.from_numpy(arrays[name]) for name in self.inputs]
        batch_size = len(tensors[0])
        padded = next((size for size in self.batch_sizes if size >= batch_size), None)
        graph, static, results = self.graphs.get((padded, *(x.shape[1:] for x in tensors)), (None, [], ()))
        if graph is None:
            results = self.answer([x.to(self.device) for x in tensors])
        else:
            for target, tensor in zip(static, tensors):
                target[:batch_size].copy_(tensor)  # rows beyond are of an earlier request: no row looks at another
            graph.replay()
        return [result[:batch_size].cpu().numpy() for result in results]

    def answer(self, tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """What the program makes of its inputs."""
        results = self.program(*tensors)
        return results if isinstance(results, tuple) else (results,)

    @torch.inference_mode()
    def capture(self, batch_size: int, shapes: dict[str, list[int]]) -> None:
        """Make the graph of one shape."""
        static = [
            torch.zeros(batch_size, *shapes[name], dtype=dtype, device=self.device)
            for name, dtype in self.inputs.items()
        ]
        beside = torch.cuda.Stream(self.device)
        beside.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(beside):
            for _ in range(WARM_UP_RUNS):
                self.answer(static)
        torch.cuda.current_stream(self.device).wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            results = self.answer(static)
        self.graphs[batch_size, *(x.shape[1:] for x in static)] = graph, static, results


_DTYPES = {"TYPE_INT32": "int32", "TYPE_FP32": "float32", "TYPE_BOOL": "bool"}
