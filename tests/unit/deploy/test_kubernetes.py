"""The manifests as kubectl renders them: by Kubernetes' own schemas, and by what a schema cannot know."""

from __future__ import annotations

import importlib
import re
import tomllib
from collections.abc import Callable
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml

from baguni.cli.releases import release
from deploy.containers import triton
from server.process.supervisor import KILL_AFTER_S
from tests.manifests import KUBERNETES, OVERLAYS, ROOT, SERVERS, Object, Overlay, template

OLDEST, NEWEST = "1.28", kubernetes_validate.latest_version()
OUTSIDE_SECRETS = {
    "baguni-secrets",
    "baguni-callers",
    "baguni-object-store",
}  # docs/deployment.md says how they are made
BRINGS_RELEASES = "releases"  # beside a process, where there is an object store
PARTITIONS = 4  # of a topic, by compose and the dev overlay


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_object_is_what_kubernetes_takes(overlay: Overlay, version: str) -> None:
    for found in overlay.objects:
        kubernetes_validate.validate(found, version, strict=True)


def test_a_field_that_kubernetes_does_not_know_is_found(overlay: Overlay) -> None:
    found = {**overlay.named("Service", "gateway"), "spek": {}}
    with pytest.raises(kubernetes_validate.ValidationError, match="spek"):
        kubernetes_validate.validate(found, NEWEST, strict=True)


def test_everything_is_in_the_namespace(overlay: Overlay) -> None:
    assert {found["metadata"].get("namespace") for found in overlay.objects if found["kind"] != "Namespace"} == {
        "baguni"
    }


def test_pods_are_what_the_restricted_standard_allows(overlay: Overlay) -> None:
    for pod in overlay.pods().values():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is spec["enableServiceLinks"] is False
    for _, container in overlay.containers():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip


def test_containers_say_what_they_need_and_may_have(overlay: Overlay) -> None:
    for name, container in overlay.containers():
        for kind in ("requests", "limits"):
            assert {"cpu", "memory"} <= container["resources"][kind].keys(), name
        assert quantity(container["resources"]["requests"]["memory"]) <= quantity(
            container["resources"]["limits"]["memory"]
        )
        assert quantity(container["resources"]["requests"]["cpu"]) <= quantity(container["resources"]["limits"]["cpu"])


def quantity(text: str) -> float:
    """Kubernetes' notation: 500m, 4Gi."""
    number, unit = re.fullmatch(r"([\d.]+)(m|Mi|Gi|)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"m": 1e-3, "": 1, "Mi": 2**20, "Gi": 2**30}[unit]


def test_what_serves_is_probed(overlay: Overlay) -> None:
    for workload in overlay.of("Deployment", "StatefulSet"):
        for container in template(workload)["spec"]["containers"]:
            if container["name"] == BRINGS_RELEASES:  # serves nobody
                continue
            ports = {port["name"] for port in container["ports"]}
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                how = container[probe]
                asked = how.get("httpGet") or how.get("tcpSocket")
                assert "exec" in how or asked["port"] in ports


def test_images_are_pinned(overlay: Overlay) -> None:
    for _, container in overlay.containers():
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+[\w.-]*", container["image"]), container["image"]


def test_only_volumes_are_written_and_scratch_has_an_end(overlay: Overlay) -> None:
    for name, container in overlay.containers():
        volumes = {volume["name"]: volume for volume in overlay.pods()[name]["spec"].get("volumes", ())}
        assert all(mount["name"] in volumes for mount in container["volumeMounts"])
        assert all("sizeLimit" in volume["emptyDir"] for volume in volumes.values() if "emptyDir" in volume)
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in overlay.names("PersistentVolumeClaim")
            if "secret" in volume:
                assert volume["secret"]["secretName"] in overlay.names("Secret") | OUTSIDE_SECRETS


def test_selectors_find_their_pods(overlay: Overlay) -> None:
    for workload in overlay.of("Deployment", "StatefulSet"):
        labels = template(workload)["metadata"]["labels"].items()
        assert workload["spec"]["selector"]["matchLabels"].items() <= labels
    for found in overlay.of("Service"):
        (name,) = overlay.selected(found["spec"]["selector"])
        opened = {
            port["name"]
            for container in overlay.pods()[name]["spec"]["containers"]
            for port in container.get("ports", ())
        }
        assert {port["targetPort"] for port in found["spec"]["ports"]} <= opened
    for found in overlay.of("PodDisruptionBudget"):
        assert overlay.selected(found["spec"]["selector"]["matchLabels"]) == [found["metadata"]["name"]]
    for found in overlay.of("StatefulSet"):
        assert found["spec"]["serviceName"] in overlay.names("Service")


def selected(overlay: Overlay, selector: Object) -> set[str]:
    """The workloads that a network policy's selector means."""
    names = set(overlay.selected(selector.get("matchLabels", {})))
    for expression in selector.get("matchExpressions", ()):
        assert (expression["key"], expression["operator"]) == ("app.kubernetes.io/name", "In")
        assert set(expression["values"]) <= overlay.pods().keys()
        names &= set(expression["values"])
    return names


def test_network_policies_mean_pods_that_exist_and_ports_that_they_open(overlay: Overlay) -> None:
    for policy in overlay.of("NetworkPolicy"):
        names = selected(overlay, policy["spec"]["podSelector"])
        assert names, policy["metadata"]["name"]
        opened = {
            port["containerPort"]
            for name in names for container in overlay.pods()[name]["spec"]["containers"] for port in container.get("ports", ())
        }  # fmt: skip
        for rule in policy["spec"].get("ingress", ()):
            assert {port["port"] for port in rule["ports"]} <= opened, policy["metadata"]["name"]
            for source in rule["from"]:
                if set(source) == {"podSelector"}:
                    assert selected(overlay, source["podSelector"])


def test_who_asks_a_pod_of_ours_is_let_out_and_in(overlay: Overlay) -> None:
    """By the addresses in the settings: one without the other is a connection that hangs."""
    settings = {
        "BAGUNI_TRITON_URL": ("gateway", "item-consumer", "nightly", "operator"),
        "BAGUNI_GATEWAY_ADDRESS": ("crm",),
    }
    for variable, callers in settings.items():
        for caller in callers:
            container = overlay.pods()[caller]["spec"]["containers"][0]
            host, port = overlay.environment(container)[variable].split(":")
            assert may(overlay, "egress", "to", caller, host, int(port)), (caller, host)
            assert may(overlay, "ingress", "from", host, caller, int(port)), (host, caller)


def may(overlay: Overlay, direction: str, side: str, pod: str, other: str, port: int) -> bool:
    """Whether a policy lets `pod` have a connection with `other`."""
    return any(
        port in {each["port"] for each in rule["ports"]} and other in selected(overlay, peer.get("podSelector", {}))
        for policy in overlay.of("NetworkPolicy") if pod in selected(overlay, policy["spec"]["podSelector"])
        for rule in policy["spec"].get(direction, ()) for peer in rule.get(side, ()) if "namespaceSelector" not in peer
    )  # fmt: skip


def test_pods_have_the_time_to_end_what_they_began(overlay: Overlay) -> None:
    pods = {name: pod["spec"] for name, pod in overlay.pods().items()}
    drain_s = {
        "gateway": float(overlay.environment(pods["gateway"]["containers"][0])["BAGUNI_DRAIN_S"]) + KILL_AFTER_S,
        "triton": triton.DRAIN_S,
        "user-consumer": 10,  # docs/streaming.md
        "item-consumer": 10,
    }
    for name, seconds in drain_s.items():
        hook = (
            pods[name]["containers"][0]
            .get("lifecycle", {})
            .get("preStop", {})
            .get("exec", {})
            .get("command", ("sleep", "0"))
        )
        assert pods[name]["terminationGracePeriodSeconds"] >= seconds + float(hook[1]) + 5, name


def test_consumers_are_static_members_by_their_pods_names(overlay: Overlay) -> None:
    for kind in ("user", "item"):
        container = template(overlay.named("StatefulSet", f"{kind}-consumer"))["spec"]["containers"][0]
        (named,) = (variable for variable in container["env"] if variable["name"] == "BAGUNI_INSTANCE_ID")
        assert named["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
        assert container["command"][-1] == kind


@pytest.mark.parametrize("name", ["cpu", "gpu", "object-store"])
def test_autoscalers_scale_what_exists_within_reason(render: Callable[[str], Overlay], name: str) -> None:
    overlay = render(name)
    targets = {scaler["spec"]["scaleTargetRef"]["name"]: scaler for scaler in overlay.of("HorizontalPodAutoscaler")}
    assert set(targets) == {"gateway", "triton", "user-consumer", "item-consumer"}
    for target, scaler in targets.items():
        found = overlay.named(scaler["spec"]["scaleTargetRef"]["kind"], target)
        assert "replicas" not in found["spec"]  # applying the manifests again would undo the autoscaler's choice
        assert target == "gateway" or target == "triton" or scaler["spec"]["maxReplicas"] <= PARTITIONS


def test_gpus_are_where_they_are_asked_for(render: Callable[[str], Overlay]) -> None:
    gpu, cpu = render("gpu"), render("cpu")
    for name in ("triton", "nightly"):
        spec = gpu.pods()[name]["spec"]
        assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert spec["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
        assert spec["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert gpu.pods()["nightly"]["spec"]["containers"][0]["image"].startswith("baguni-triton-trainer:")
    assert "nvidia.com/gpu" not in yaml.safe_dump(list(cpu.objects))


def test_nightly_runs_are_never_two(overlay: Overlay) -> None:
    spec = overlay.named("CronJob", "nightly")["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    container = overlay.pods()["nightly"]["spec"]["containers"][0]
    assert container["command"][:3] == ["baguni", "release", "nightly"]
    assert spec["jobTemplate"]["spec"]["backoffLimit"] == 0


def test_the_nightly_command_takes_what_the_job_gives_it(overlay: Overlay) -> None:
    command = release_command("nightly")
    container = overlay.pods()["nightly"]["spec"]["containers"][0]
    given = {word for word in (*container["command"][3:], *container.get("args", ())) if word.startswith("--")}
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert given <= {name for option in options for name in (*option.opts, *option.secondary_opts)}
    assert all(given & set(option.opts) for option in options if option.required)


def test_operators_reach_what_their_commands_change(overlay: Overlay) -> None:
    cron = overlay.named("CronJob", "operator")["spec"]
    assert cron["suspend"] is True
    (container,) = overlay.pods()["operator"]["spec"]["containers"]
    writable = {mount["name"] for mount in container["volumeMounts"] if not mount.get("readOnly", False)}
    assert {"releases", "captured"} <= writable  # `release rollback` moves a pointer, `user forget` removes requests
    environment, (gateway,) = overlay.environment(container), overlay.pods()["gateway"]["spec"]["containers"][:1]
    (captured,) = (mount for mount in container["volumeMounts"] if mount["name"] == "captured")
    assert environment["BAGUNI_CAPTURE_DIR"] == captured["mountPath"]
    assert environment["BAGUNI_RELEASES"] == overlay.environment(gateway)["BAGUNI_RELEASES"]


def release_command(name: str) -> click.Command:
    """Of `baguni release`, its own or one that pyproject.toml registers. Skips the test where there is none yet."""
    if name in release.commands:
        return release.commands[name]
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["baguni.release_commands"]
    if name not in points:
        pytest.skip(f"`baguni release {name}` is not there yet")
    module, _, attribute = points[name].partition(":")
    command: click.Command = getattr(importlib.import_module(module), attribute)
    return command


def test_the_dev_overlay_alone_lets_anybody_in_and_has_its_servers(render: Callable[[str], Overlay]) -> None:
    for name in OVERLAYS:
        overlay = render(name)
        environment = overlay.environment(overlay.pods()["gateway"]["spec"]["containers"][0])
        assert (
            (environment.get("BAGUNI_ALLOW_ANONYMOUS") == "true")
            == (name == "dev")
            != ("BAGUNI_CALLERS" in environment)
        )
        assert set(SERVERS) <= overlay.pods().keys() if name == "dev" else not set(SERVERS) & overlay.pods().keys()


def test_with_an_object_store_pods_bring_releases_to_their_own_disks(render: Callable[[str], Overlay]) -> None:
    overlay = render("object-store")
    for name in ("gateway", "crm", "user-consumer", "item-consumer"):
        spec = overlay.pods()[name]["spec"]
        own, brings = spec["containers"]
        (volume,) = (volume for volume in spec["volumes"] if volume["name"] == "releases")
        assert "emptyDir" in volume
        folder, read_only = _mounted(own, "releases")
        assert (folder, read_only) == (_mounted(brings, "releases")[0], True)
        assert _mounted(brings, "releases")[1] is False
        assert overlay.environment(brings)["BAGUNI_RELEASES"].startswith(folder)
        assert may_leave(overlay, name, 443)
        words = brings["command"]
        assert words[:3] == ["baguni", "release", "pull"]
        assert {word for word in words[3:] if word.startswith("--")} <= {
            option for each in release_command("pull").params for option in each.opts
        }
    for name in ("triton", "nightly"):
        volumes = overlay.pods()[name]["spec"]["volumes"]
        assert "baguni-releases" in [each.get("persistentVolumeClaim", {}).get("claimName") for each in volumes]
    assert "--push" in overlay.pods()["nightly"]["spec"]["containers"][0]["args"]
    secrets = {"secretRef": {"name": "baguni-object-store", "optional": True}}
    for name in ("nightly", "operator"):  # an operator pushes the pointer after a rollback
        assert secrets in overlay.pods()[name]["spec"]["containers"][0]["envFrom"]


def _mounted(container: Object, volume: str) -> tuple[str, bool]:
    """Where, and whether to read only."""
    (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == volume)
    return mount["mountPath"], mount.get("readOnly", False)


def may_leave(overlay: Overlay, pod: str, port: int) -> bool:
    """Whether a policy lets a pod out to anywhere at a port."""
    return any(
        "to" not in rule and port in {each["port"] for each in rule["ports"]}
        for policy in overlay.of("NetworkPolicy") if pod in selected(overlay, policy["spec"]["podSelector"])
        for rule in policy["spec"].get("egress", ())
    )  # fmt: skip


def test_every_manifest_is_part_of_something() -> None:
    for folder in ("base", "autoscaling", *(f"overlays/{name}" for name in OVERLAYS)):
        listed: dict[str, Any] = yaml.safe_load((KUBERNETES / folder / "kustomization.yaml").read_text())
        named = {*listed.get("resources", ()), *listed.get("patchesStrategicMerge", ())}
        named |= {patch["path"] for patch in listed.get("patchesJson6902", ())}
        there = {path.name for path in (KUBERNETES / folder).glob("*.yaml")} - {"kustomization.yaml", "adapter.yaml"}
        assert named == there, folder
