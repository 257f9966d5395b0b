"""Become Triton Inference Server, from the wheel nvidia-pytriton. Run by the servers' Python:

python triton_server.py MODEL_REPOSITORY WORK_DIR GRPC_PORT HTTP_PORT METRICS_PORT
"""

import os
import shutil
import sys
import sysconfig
from pathlib import Path


def main(repository: str, work_dir: str, grpc_port: str, http_port: str, metrics_port: str) -> None:
    """The Python backend needs the stub of the running Python beside it, so it is copied out of the wheel once."""
    site = Path(sysconfig.get_paths()["purelib"])
    triton = site / "pytriton" / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    backends = Path(work_dir) / "backends"
    if not (backends / "python" / "triton_python_backend_stub").is_file():
        shutil.copytree(triton / "backends" / "python", backends / "python", dirs_exist_ok=True)
        stub = triton / "python_backend_stubs" / version / "triton_python_backend_stub"
        shutil.copy2(stub, backends / "python" / "triton_python_backend_stub")
    environment = {
        **os.environ,
        "PYTHONPATH": str(site),
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
        "--exit-timeout-secs=5",
    ]
    os.execve(binary, arguments, environment)


if __name__ == "__main__":
    main(*sys.argv[1:])
