"""TensorRT engines of the exported graphs: half precision written into the ONNX, a tight profile for each choice of shapes,
one build.

Two compilers of NVIDIA's do the work, with one interface. `tensorrt` builds for the GPU of this machine: that is what is
served. `tensorrt_rtx` needs no GPU and builds ahead of time for any capability: it proves that a graph has nothing in it
that TensorRT cannot run. Neither is imported before it is asked for.

    python -m trainer.tensorrt RELEASE_DIRECTORY        (or `make check-tensorrt`) compiles a release for every capability
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from baguni.domain.errors import BaguniError, EngineError
from baguni.domain.signature import ModelSpec, model_specs, triton_model_name
from baguni.releases.activation import compute_capability
from trainer.precision import half_precision

CAPABILITIES = {"7.5": "SM75", "8.0": "SM80", "8.6": "SM86", "8.9": "SM89", "12.0": "SM120"}
AHEAD_OF_TIME = "tensorrt_rtx_bindings.tensorrt_rtx"
COMPILED = ("user_encoder", "generator", "scorer", "item_encoder")  # the text encoder begins with a tokenizer


def build_plan(
    onnx_path: Path,
    spec: ModelSpec,
    max_batch_size: int,
    capabilities: Sequence[str] = (),
    timing_cache: Path | None = None,
) -> bytes:
    """The engine of a graph: for this machine's GPU, or ahead of time for `capabilities` such as "8.9".

    `timing_cache` is read if it is there, and written. EngineError if the compiler is missing or refuses the graph.
    """
    trt = _compiler(AHEAD_OF_TIME if capabilities else "tensorrt")
    log = _Log(trt)
    builder = trt.Builder(log.of_trt)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log.of_trt)
    if not parser.parse_from_file(str(onnx_path)):
        errors = "; ".join(str(parser.get_error(number)) for number in range(parser.num_errors))
        raise EngineError(f"TensorRT cannot read {spec.name}: {errors}")
    config = builder.create_builder_config()
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
        for place, capability in enumerate(capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, CAPABILITIES[capability]), place)
    for shapes in spec.shapes():
        config.add_optimization_profile(_profile(builder, spec, shapes, max_batch_size))
    if timing_cache is not None:
        known = timing_cache.read_bytes() if timing_cache.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        where = f"compute capability {', '.join(capabilities)}" if capabilities else "this GPU"
        raise EngineError(f"TensorRT cannot build {spec.name} for {where}: {log.last_error}")
    if timing_cache is not None:
        timing_cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def engine_facts() -> dict[str, str]:
    """What a plan that is built here will need: the version of TensorRT and the compute capability of the GPU."""
    return {"tensorrt": str(_compiler("tensorrt").__version__), "compute_capability": compute_capability()}


def check_release(release_path: Path) -> list[tuple[str, str, int, float]]:
    """Compile every graph of a release for every capability: model, capabilities, bytes of the plan, seconds.

    Turing is compiled by itself: it has less in common with the others. EngineError names what cannot be compiled.
    """
    from baguni.domain.release import load_release

    release = load_release(release_path, verify=False)
    if release.manifest.get("target") == "tensorrt":
        raise EngineError(
            f"{release.release_id} holds engines and no graphs: check one of target python or onnxruntime"
        )
    specs, rows = model_specs(release.signature), []
    for name in COMPILED:
        exported = release.triton_dir / triton_model_name(name, release.release_id) / "1" / "model.onnx"
        half = release_path.parent / f".{name}.half.onnx"
        try:
            half_precision(exported, half)
            for together in (["7.5"], ["8.0", "8.6", "8.9", "12.0"]):
                started = time.monotonic()
                plan = build_plan(half, specs[name], release.signature.max_batch_size, together)
                rows.append((name, ", ".join(together), len(plan), time.monotonic() - started))
        finally:
            half.unlink(missing_ok=True)
    return rows


class _Log:
    """TensorRT's messages: kept, so that an error can say why."""

    def __init__(self, trt: Any) -> None:
        self.last_error = "no reason was given"
        log = self

        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity <= trt.ILogger.Severity.ERROR:
                    log.last_error = message

        self.of_trt = Logger()


def _compiler(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = "tensorrt-rtx-cu13-bindings and tensorrt-rtx-cu13-libs" if name == AHEAD_OF_TIME else "tensorrt"
        raise EngineError(f"{package} cannot be imported ({error}): install it to build engines") from error


def _profile(builder: Any, spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]], max_batch_size: int) -> Any:
    profile, best = builder.create_optimization_profile(), min(spec.preferred_batch_sizes[0], max_batch_size)
    for name, shape in shapes.items():
        profile.set_shape(name, (1, *shape), (best, *shape), (max_batch_size, *shape))
    return profile


def main(release: str) -> None:
    """Print what was compiled; exit status 1 and the reason if something could not be."""
    try:
        for name, capabilities, size, seconds in check_release(Path(release)):
            print(f"{name:<13} compute capability {capabilities:<20} {size / 1e6:7.1f} MB {seconds:6.1f} s")
    except BaguniError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
