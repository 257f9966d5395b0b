"""Bringing the stack up in order: servers, the active release onto them, then gateway and consumers."""

from __future__ import annotations

from rich.console import Console

from baguni.domain.release import ReleaseStore
from baguni.releases.activation import activate
from deploy.local.settings import StackSettings
from deploy.local.stack import LocalStack


def bring_up(settings: StackSettings, servers_only: bool = False) -> None:
    """Start what is not running, saying what is ready."""
    stack, console = LocalStack(settings), Console(stderr=True)
    store = ReleaseStore(settings.endpoints().releases)
    with console.status("starting Redis, broker, Milvus, Triton …") as spinner:
        stack.start_servers(lambda name: console.print(f"  [green]✓[/] {name}"))
        active = store.active_id()
        if servers_only or active is None:
            if not servers_only:
                console.print("No release is active: `baguni release activate RELEASE`, then `baguni up` again.")
            return
        spinner.update(f"loading release {active} …")
        activate(store, active, settings.endpoints())
        spinner.update("starting gateway and consumers …")
        stack.start_applications(lambda name: console.print(f"  [green]✓[/] {name}"))
