"""The images: linted, pinned, nobody's root, with all that their code imports and none of what it does not."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.containers.dependencies import dependencies

ROOT = Path(__file__).resolve().parents[3]
CONTAINERFILE = ROOT / "deploy/containers/Containerfile"
HADOLINT = Path(sys.executable).parent / "hadolint"
SERVICES = ("gateway", "streaming", "crm")
JOBS = ("trainer", "triton-trainer")
OUR_PACKAGES = {"baguni", "server", "streaming", "crm", "trainer", "analysis", "deploy", "benchmarks"}
OUT_OF_THE_LOCK = {"tensorrt", "tensorrt_bindings", "tensorrt_rtx_bindings"}  # of the GPU's machine, or of a check


def stages() -> dict[str, list[str]]:
    """Name → instructions, a line each, the one that begins it first."""
    joined = re.sub(r"\\\n\s*", "", CONTAINERFILE.read_text())
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    found: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith("FROM "):
            name = line.split(" AS ")[1]
            found[name] = []
        found[name].append(line)
    return found


def copied(name: str) -> set[Path]:
    """Return the folders and files of our packages that a target has."""
    sources = [part for line in stages()[name] if line.startswith("COPY ") for part in line.split()[1:-1]]
    ours = [source for source in sources if source.split("/")[0] in OUR_PACKAGES]
    return {ROOT / source for source in ours if not source.startswith("deploy/containers/")}  # what builds it


def files_of(paths: set[Path]) -> set[Path]:
    """Return the files of folders, and those that are files already."""
    return {file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])}


def our_files(path: Path) -> set[Path]:
    """Return the files of our packages that a file imports anywhere, by the full names of modules."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    modules = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    ours = [ROOT / module.replace(".", "/") for module in modules if module.split(".")[0] in OUR_PACKAGES]
    found = [file for module in ours for file in (module.with_suffix(".py"), module / "__init__.py") if file.is_file()]
    return set(found)


def imported(paths: set[Path]) -> set[str]:
    """Return the top-level modules that files, or those of folders, import anywhere."""
    found = set()
    for file in files_of(paths):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names)


def extras(name: str) -> list[str]:
    """The groups of pyproject.toml that are installed into a target, or into the one that its packages are copied from."""
    sources = {name, *re.findall(r"--from=(\S+)", " ".join(stages()[name]))}
    (groups,) = {
        each for source in sources for each in re.findall(r"dependencies\.py([ \w]*) >", " ".join(stages()[source]))
    }
    return str(groups).split()


def installed(groups: Iterable[str]) -> set[str]:
    """The distributions that pip installs for what pyproject.toml wants: what these need too."""
    waiting, found = [Requirement(line) for line in dependencies(ROOT / "pyproject.toml", groups)], set[str]()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name in found:
            continue
        found.add(name)
        needed = [Requirement(line) for line in requires(name) or ()]
        chosen = [{"extra": extra} for extra in (wanted.extras or {""})]
        waiting += [each for each in needed if each.marker is None or any(map(each.marker.evaluate, chosen))]
    return found


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([HADOLINT, CONTAINERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    bad = tmp_path / "Containerfile"
    bad.write_text(CONTAINERFILE.read_text().replace("python:3.11.14-slim-bookworm", "python:latest"))
    assert subprocess.run([HADOLINT, bad], capture_output=True, check=False).returncode != 0


def test_images_begin_with_pinned_ones_or_with_each_other() -> None:
    for lines in stages().values():
        base = lines[0].split()[1]
        assert base in stages() or re.fullmatch(r"[\w./-]+:\d+\.\d+[\w.-]*", base), base


def test_triton_is_the_version_of_the_client_in_the_lock() -> None:
    """NVIDIA's container 26.09 holds Triton 2.73: a month a minor version."""
    year, month = re.findall(r"tritonserver:(\d\d)\.(\d\d)-py3", CONTAINERFILE.read_text())[0]
    client = re.findall(r"^tritonclient==2\.(\d+)\.", (ROOT / "requirements.lock").read_text(), re.M)[0]
    assert 73 + (int(year) - 26) * 12 + int(month) - 9 == int(client)


@pytest.mark.parametrize("name", [*SERVICES, *JOBS, "triton"])
def test_nobody_is_root_and_everything_says_how_it_is(name: str) -> None:
    lines = stages()[name]
    assert [line for line in lines if line.startswith("USER ")][-1] == "USER 10001:10001"
    health = [line for line in lines if line.startswith("HEALTHCHECK ")]
    assert len(health) == 1
    assert health[0].endswith("NONE") == (name in JOBS)


@pytest.mark.parametrize("name", [*SERVICES, *JOBS])
def test_an_image_has_what_its_code_imports(name: str) -> None:
    has_files = files_of(copied(name))
    assert {file for path in has_files for file in our_files(path)} <= has_files
    found = imported(copied(name))
    provided, has = packages_distributions(), installed(extras(name))
    for module in found - OUR_PACKAGES - OUT_OF_THE_LOCK:
        if module not in ("google",):  # a namespace that several share
            assert {canonicalize_name(owner) for owner in provided[module]} & has, f"{name} cannot import {module}"


@pytest.mark.parametrize("name", SERVICES)
def test_services_have_no_torch(name: str) -> None:
    assert "torch" not in installed(extras(name))
    assert not any(path.is_relative_to(ROOT / "trainer") for path in copied(name))


def test_everything_that_is_copied_exists_and_is_in_the_context() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = {
        part for lines in stages().values() for line in lines
        if line.startswith("COPY ") and "--from" not in line for part in line.split()[1:-1]
    }  # fmt: skip
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(source == allowed or source.startswith(f"{allowed}/") for allowed in sent), source


def test_every_version_of_an_image_is_the_locks() -> None:
    """A pin of our own beside the lock would be a second truth; TensorRT's is the image's."""
    installs = [line for lines in stages().values() for line in lines if "pip install" in line]
    for command in (part for line in installs for part in line.split("&&") if "pip install" in part):
        assert "--constraint requirements.lock" in command or "--no-deps" in command or "TRT_VERSION" in command, (
            command
        )


def test_the_lock_is_a_pinned_version_a_line() -> None:
    """A merge once left its mark in the first line, and nothing could be installed anew."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    assert len({canonicalize_name(line.split("==")[0]) for line in lines}) == len(lines)
