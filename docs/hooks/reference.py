"""Pages of the site that nobody writes: contracts, commands, settings and metrics, from what the processes run with."""

from __future__ import annotations

import ast
import inspect
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from prometheus_client import CollectorRegistry

from baguni.cli.root import root
from baguni.settings import Endpoints
from crm.metrics import Metrics as CampaignMetrics
from crm.settings import CrmSettings
from deploy.local.settings import StackSettings
from server.settings import ServerSettings
from server.telemetry.metrics import Metrics as GatewayMetrics
from streaming.metrics import Metrics as ConsumerMetrics
from streaming.settings import StreamingSettings

ROOT = Path(__file__).resolve().parent.parent.parent
SETTINGS: dict[str, type[Any]] = {
    "Every process": Endpoints,
    "Gateway": ServerSettings,
    "Consumers": StreamingSettings,
    "Campaigns": CrmSettings,
    "The local stack": StackSettings,
}
METRICS = {"Gateway": GatewayMetrics, "Consumers": ConsumerMetrics, "Campaigns": CampaignMetrics}
MESSAGE, ENUM, SERVICE, NESTED_FIELD, VALUE, METHOD = 4, 5, 6, 2, 2, 2  # numbers of descriptor.proto
LABEL_REPEATED = FieldDescriptorProto.LABEL_REPEATED


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    pages = {
        "reference/contracts.md": contracts(),
        "reference/commands.md": "# Commands\n\nEach as its own `--help` says it.\n"
        + "\n".join(commands(root, "baguni")),
        "reference/settings.md": settings(),
        "reference/metrics.md": metrics(),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def commands(command: click.Command, path: str, above: click.Context | None = None) -> Iterator[str]:
    """The help of a command and of those below it."""
    context = click.Context(command, above, path.rsplit(" ", 1)[-1], max_content_width=110)
    yield f"\n{'#' * (path.count(' ') + 2)} {path}\n\n```\n{command.get_help(context)}\n```"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None:
                yield from commands(found, f"{path} {name}", context)


def settings() -> str:
    """Every variable with its default and what the code says of it."""
    parts = [
        "# Settings\n\nFrom the environment; what holds a secret may be a file in the folder that `BAGUNI_SECRETS_DIR` names.\n"
    ]
    for title, kind in SETTINGS.items():
        inherited = {name for parent in kind.__mro__[1:] for name in getattr(parent, "model_fields", ())}
        said, prefix = _comments(kind), str(kind.model_config.get("env_prefix", ""))
        parts.append(f"\n## {title}\n\n{_first_paragraph(kind)}\n\n| variable | default | |\n| --- | --- | --- |")
        for name, field in kind.model_fields.items():
            if name in inherited and kind is not Endpoints:
                continue
            default = field.get_default()
            shown = "" if default is None or str(default).startswith(("/", "*")) or default == "" else f"`{default}`"
            parts.append(f"| `{(prefix + name).upper()}` | {shown} | {_cell(said.get(name, ''))} |")
    return "\n".join(parts) + "\n"


def metrics() -> str:
    """Every metric of the registries."""
    parts = ["# Metrics\n\nWhat Prometheus reads of baguni's own processes. No label is a user or an item.\n"]
    for title, kind in METRICS.items():
        registry: CollectorRegistry = kind().registry
        parts.append(f"\n## {title}\n\n| metric | type | labels | |\n| --- | --- | --- | --- |")
        for collector in registry._collector_to_names:
            (described,) = collector.describe()
            name = described.name + ("_total" if described.type == "counter" else "")
            labels = ", ".join(f"`{label}`" for label in collector._labelnames)
            parts.append(f"| `{name}` | {described.type} | {labels} | {_cell(described.documentation)} |")
    return "\n".join(parts) + "\n"


def contracts() -> str:
    """Services, messages and enumerations with their comments."""
    parts = ["# Contracts\n\nFrom `proto/`. Field numbers and names do not change within `v1`.\n"]
    for file in _described():
        said = {tuple(at.path): at.leading_comments.strip() for at in file.source_code_info.location}
        parts.append(f"\n## {Path(file.name).name}\n\n{said.get((2,), '') or _header(file)}\n")
        for s, service in enumerate(file.service):
            parts.append(f"\n### {service.name}\n\n{_text(said, SERVICE, s)}\n\n| call | |\n| --- | --- |")
            parts += [
                f"| `{method.name}({_short(method.input_type)}) → {_short(method.output_type)}` "
                f"| {_cell(_text(said, SERVICE, s, METHOD, m))} |"
                for m, method in enumerate(service.method)
            ]
        for m, message in enumerate(file.message_type):
            parts += _message(said, m, message)
        for e, enum in enumerate(file.enum_type):
            parts.append(f"\n### {enum.name}\n\n{_text(said, ENUM, e)}\n\n| value | |\n| --- | --- |")
            parts += [
                f"| `{v.name}` = {v.number} | {_cell(_text(said, ENUM, e, VALUE, i))} |"
                for i, v in enumerate(enum.value)
            ]
    return "\n".join(parts) + "\n"


def _message(said: dict[tuple[int, ...], str], number: int, message: DescriptorProto) -> Iterator[str]:
    yield f"\n### {message.name}\n\n{_text(said, MESSAGE, number)}\n"
    if not message.field:
        return
    yield "| field | type | |\n| --- | --- | --- |"
    maps = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
    for f, field in enumerate(message.field):
        kind = _short(field.type_name) if field.type_name else FieldDescriptorProto.Type.Name(field.type)[5:].lower()
        if kind in maps:
            kind = "map to " + _short(maps[kind].field[1].type_name)
        elif field.label == LABEL_REPEATED:
            kind = f"list of {kind}"
        yield f"| `{field.name}` = {field.number} | {kind} | {_cell(_text(said, MESSAGE, number, NESTED_FIELD, f))} |"


def _described() -> list[FileDescriptorProto]:
    with tempfile.NamedTemporaryFile() as file:
        protos = sorted(str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto").rglob("*.proto"))
        own = Path(protoc.__file__).parent / "_proto"
        command = ["protoc", f"-I{ROOT / 'proto'}", f"-I{own}", "--include_source_info", f"-o{file.name}", *protos]
        if protoc.main(command) != 0:
            raise RuntimeError(f"protoc failed: {' '.join(command)}")
        return list(FileDescriptorSet.FromString(Path(file.name).read_bytes()).file)


def _header(file: FileDescriptorProto) -> str:
    """The comment above `package`, which says what the file is for."""
    lines = (ROOT / "proto" / file.name).read_text().splitlines()
    end = next(number for number, line in enumerate(lines) if line.startswith("package"))
    return " ".join(line.removeprefix("//").strip() for line in lines[:end] if line.startswith("//"))


def _text(said: dict[tuple[int, ...], str], *path: int) -> str:
    return said.get(path, "")


def _short(type_name: str) -> str:
    return type_name.rsplit(".", 1)[-1]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("{", "&#123;")


def _first_paragraph(kind: type[Any]) -> str:
    return " ".join(inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].split())


def _comments(kind: type[Any]) -> dict[str, str]:
    """Setting → the comment behind it, or on the lines before it."""
    source = inspect.getsource(kind)
    lines, said = source.splitlines(), {}
    for statement in ast.parse(inspect.cleandoc("\n" + source)).body[0].body:  # type: ignore[attr-defined]
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            behind = [
                line.split("  # ", 1)[1]
                for line in lines[statement.lineno - 1 : statement.end_lineno]
                if "  # " in line
            ]
            above = lines[statement.lineno - 2].strip() if statement.lineno > 1 else ""
            said[statement.target.id] = " ".join(behind) or above.removeprefix("#").strip() * above.startswith("#")
    return said
