"""The page's own overlay is rendered, and what it lists is what is there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import yaml

from tests.manifests import ROOT, Overlay, kustomize, tool
from tests.unit.deploy.test_containers import stages

PAGE = (ROOT / "docs/deployment.md").read_text()


def test_the_overlay_of_a_shop_is_rendered_with_its_settings(tmp_path: Path) -> None:
    (example,) = re.findall(r"```\n# shop/kustomization.yaml\n(.*?)```", PAGE, re.DOTALL)
    shutil.copytree(ROOT / "deploy/kubernetes", tmp_path / "deploy/kubernetes")
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/kustomization.yaml").write_text(example)
    shop = Overlay("shop", kustomize(tmp_path / "shop", tool("kubectl")))
    (gateway,) = shop.pods()["gateway"]["spec"]["containers"]
    assert gateway["image"] == "REGISTRY/baguni-gateway:0.1.0"
    environment = shop.environment(gateway)
    wanted = dict(line.split("=", 1) for line in yaml.safe_load(example)["configMapGenerator"][0]["literals"])
    assert environment.items() >= wanted.items()
    assert environment["BAGUNI_TRITON_URL"] == "triton:8001"
    assert "nvidia.com/gpu" in yaml.safe_dump(shop.pods()["triton"])


def test_every_target_of_the_page_is_one_and_none_is_left_out() -> None:
    listed = set(re.findall(r"^\| `([\w-]+)` \| (?!releases|requests|the shop|what)", PAGE, re.MULTILINE))
    assert listed == {name for name in stages() if name != "python" and not name.endswith("packages")}


def test_claims_and_secrets_of_the_page_are_those_of_the_base() -> None:
    text = "".join(path.read_text() for path in (ROOT / "deploy/kubernetes/base").glob("*.yaml"))
    for name in re.findall(r"claimName: ([\w-]+)|secretName: ([\w-]+)", text):
        assert f"`{''.join(name)}`" in PAGE
