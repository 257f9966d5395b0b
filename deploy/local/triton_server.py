"""Become Triton Inference Server, from the wheel nvidia-pytriton. Run by the servers' Python:

python triton_server.py MODEL_REPOSITORY WORK_DIR RELEASE_POINTER GRPC_PORT HTTP_PORT METRICS_PORT

The models of the active release are loaded before it listens, so that one that died comes back able to answer.
"""

import json
import os
import shutil
import sys
import sysconfig
from pathlib import Path


def main(repository: str, work_dir: str, pointer: str, grpc_port: str, http_port: str, metrics_port: str) -> None:
    """Prepare the Python backend once, then become the server."""
    site = Path(sysconfig.get_paths()["purelib"])
    triton = site / "pytriton" / "tritonserver"
    backends = Path(work_dir) / "backends"
    if not (backends / "python" / "triton_python_backend_stub").is_file():
        prepare_python_backend(triton, backends / "python", site)
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": f"{site / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}",
    }
    binary = str(triton / "bin" / "tritonserver")
    arguments = [
        binary,
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        "--model-control-mode=explicit",
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        "--metrics-address=127.0.0.1",
        f"--grpc-port={grpc_port}",
        f"--http-port={http_port}",
        f"--metrics-port={metrics_port}",
        "--strict-readiness=false",  # strictly, a server is not ready while it loads another release
        "--exit-timeout-secs=5",
        "--exit-on-error=false",  # a model that does not load leaves the others
        *(f"--load-model={model}" for model in active_models(Path(repository), Path(pointer))),
    ]
    os.execve(binary, arguments, environment)


def active_models(repository: Path, pointer: Path) -> list[str]:
    """The models in the repository that belong to the release that is pointed to."""
    try:
        release_id = json.loads(pointer.read_text())["release_id"]
    except FileNotFoundError:
        return []
    return sorted(model.name for model in repository.glob(f"*_{release_id}"))


def prepare_python_backend(triton: Path, target: Path, site: Path) -> None:
    """Copy the backend out of the wheel with the stub of the running Python beside it.

    The stub starts an isolated interpreter, which sees neither PYTHONPATH nor a virtual environment; the first module it
    imports is `triton_python_backend_utils`, so that is where it learns where the servers' packages are.
    """
    shutil.copytree(triton / "backends" / "python", target, dirs_exist_ok=True)
    utilities = target / "triton_python_backend_utils.py"
    utilities.write_text(f"import sys\n\nsys.path.insert(0, {str(site)!r})\n" + utilities.read_text())
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = triton / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy2(stub, target / "triton_python_backend_stub")


if __name__ == "__main__":
    main(*sys.argv[1:])
