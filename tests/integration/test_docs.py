"""The grpcurl commands of the documentation, sent as grpcurl would: with nothing known but what reflection says; and the event
of the tutorial, sent as it stands there.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import uuid

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from baguni.domain.release import Release
from baguni.settings import Endpoints
from tests.conftest import repository
from tests.integration.streams import read_history
from tests.waiting import COMMAND_S, eventually

pytestmark = pytest.mark.stack
(EVENT,) = re.findall(
    r"^```python\n(.*?)^```$", (repository() / "docs" / "tutorial.md").read_text(), re.MULTILINE | re.DOTALL
)
COMMANDS = re.findall(r"^grpcurl .*$", (repository() / "docs" / "gateway.md").read_text(), re.MULTILINE)


def test_there_are_commands_for_every_method() -> None:
    methods = {command.rsplit("/", 1)[1] for command in COMMANDS}
    assert methods == {"Recommend", "GenerateTopItems", "SimilarItems"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_is_answered(command: str, running: Endpoints, active_release: Release) -> None:
    _, plaintext, flag, body, address, path = shlex.split(command)
    assert (plaintext, flag, address) == ("-plaintext", "-d", Endpoints.model_fields["gateway_address"].default)
    body = body.replace("995242", active_release.catalog.items[0].item_id)  # an item of the demo's shop
    service, method = path.split("/")
    with grpc.insecure_channel(running.gateway_address) as channel:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        described = pool.FindServiceByName(service).FindMethodByName(method)
        request = json_format.Parse(body, GetMessageClass(described.input_type)(), descriptor_pool=pool)
        raw = channel.unary_unary(f"/{path}")(request.SerializeToString(), timeout=60)
        answer = json_format.MessageToDict(GetMessageClass(described.output_type).FromString(raw))
    assert answer["releaseId"] == active_release.release_id
    assert answer.get("items") or answer.get("users")


def test_the_tutorials_event_joins_the_history(running: Endpoints, active_release: Release) -> None:
    user_id, item_id = uuid.uuid4().hex, active_release.catalog.items[0].item_id
    program = EVENT
    for written, ours in {"127.0.0.1:7453": running.kafka_bootstrap, '"u1"': f'"{user_id}"', "rye-1": item_id}.items():
        assert program.count(written) == 1
        program = program.replace(written, ours)
    subprocess.run([sys.executable, "-c", program], cwd=repository(), check=True, timeout=COMMAND_S)
    eventually(lambda: [event.item_id for event in read_history(running, user_id).events] == [item_id])
