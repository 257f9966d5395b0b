"""`baguni release nightly`: train → evaluate → publish → replay → activate. It stops if the candidate is worse than the active
release.

Each step leaves its result under a name that follows from the data and the settings. Started again after a kill, the command
goes on there; with the same data, it does nothing twice. The trainer and the gateway's replay do not know each other: this
module composes them.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import click

from baguni.domain.errors import InvalidInputError
from baguni.domain.release import Release, ReleaseStore, sha256_of
from baguni.domain.staging import OLD_S, changed_s, locked, unheld
from baguni.releases.activation import activate
from baguni.releases.pruning import prune
from baguni.settings import Endpoints
from baguni.stores.live_items import LiveItemWriter
from baguni.stores.redis_client import connect
from server.replay.cli import compared, print_comparison, problems, recorded_requests
from server.telemetry.capture import log_files
from trainer.triton_config import Target

WORSE = 3  # exit status: trained, and not as wanted
RELEASE = "release_id"  # in the run's folder: what it was exported as
RUN = re.compile(r"run-[0-9a-f]{12}")


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--runs", type=click.Path(path_type=Path), default=Path(".baguni/nightly"), show_default=True)
@click.option("--recipe", default="demo", show_default=True, help="A recipe of trainer/recipes.py.")
@click.option("--text-encoder", default=None, help="As of `baguni train`.")
@click.option("--target", type=click.Choice(get_args(Target)), default="python", show_default=True)
@click.option(
    "--model",
    default="retrieval, distilled",
    show_default=True,
    help="A model that is released, as the evaluation names it.",
)
@click.option("--metric", default="NDCG@10", show_default=True, help="A metric of that model, over all items.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="A candidate may be worse by this share.",
)
@click.option(
    "--log",
    type=click.Path(path_type=Path),
    default=None,
    help="Captured requests: a folder, searched with those below it.",
)
@click.option("--min-overlap", type=click.FloatRange(0, 1), default=None, help="As of `baguni release replay`.")
@click.option("--max-latency-ratio", type=float, default=None, help="As of `baguni release replay`.")
@click.option("--retokenize", is_flag=True, help="Make new Semantic IDs. Otherwise those that are published stay.")
@click.option(
    "--warm-runs",
    type=click.IntRange(0),
    default=27,
    show_default=True,
    help="Nights in a row that start from the weights of the night before, in a fifth of the time; the next one trains anew.",
)
@click.option("--push", "pushes", is_flag=True, help="Then run `baguni release push`, to BAGUNI_RELEASES_URL.")
@click.option(
    "--keep",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="Then run `baguni release prune`, which keeps this many.",
)
@click.pass_context
def nightly(
    context: click.Context,
    data: Path,
    runs: Path,
    recipe: str,
    text_encoder: str | None,
    target: Target,
    model: str,
    metric: str,
    tolerance: float,
    log: Path | None,
    min_overlap: float | None,
    max_latency_ratio: float | None,
    retokenize: bool,
    warm_runs: int,
    pushes: bool,
    keep: int,
) -> None:
    """Train on DATA and activate the release, unless its quality or a replay is worse than the active one's; then delete old
    releases but the last --keep, and the training runs of releases that are gone.

    A night that starts from the active release is compared with it on the orders that came since that release was trained. It
    has not seen them, and the new release has: this finds a training that went wrong, not one that is a little worse. A night
    that trains anew is measured on the last calendar month, which it has not seen, and compared with the last release that was.

    Exit status 3: the candidate is worse, and the active release stays. Started again after an interruption, it goes on; with
    the same data and settings, it does nothing twice.

    \b
    baguni release nightly my-shop/ --log captured/ --min-overlap 0.5
    """
    store: ReleaseStore = context.obj
    if (min_overlap is not None or max_latency_ratio is not None) and log is None:
        raise InvalidInputError("--min-overlap and --max-latency-ratio need --log, the captured requests to replay")
    if pushes and not Endpoints().releases_url:
        raise InvalidInputError("--push needs BAGUNI_RELEASES_URL, such as s3://BUCKET/PREFIX")
    run_path = runs / _name(data, recipe, text_encoder, *(["retokenize"] if retokenize else []))
    lock = context.with_resource(locked(_lock(run_path), lambda: click.echo(f"wait for another night with {run_path}")))
    words = ["--text-encoder", text_encoder] if text_encoder else []
    if not (run_path / "metrics.json").is_file():
        if not (run_path / "recipe.json").is_file() and not retokenize and (before := store.active_id()) is not None:
            _take_over(run_path, store, store.get(before, verify=False))
        if starts_warm(run_path, recipe, words, warm_runs):
            words += ["--warm"]
        _command(lock, "train", str(data), "--run", str(run_path), "--recipe", recipe, *words)
    candidate = _exported(run_path, data, store, target)
    active = store.active_id()  # after the training: somebody may have changed it meanwhile
    if candidate.release_id == active:
        click.echo(f"{active} is active already: the data and the settings are those that it was trained on.")
    elif active is not None:
        served = store.get(active, verify=False)
        problem = "" if retokenize else ids_problem(served, candidate)
        problem = problem or quality_problem(served, candidate, model, metric, tolerance)
        problem = problem or replay_problem(store, log, candidate, min_overlap, max_latency_ratio)
        if problem:
            click.secho(f"{candidate.release_id} is not activated: {problem}. {active} stays.", fg="red", err=True)
            context.exit(WORSE)
    if candidate.release_id != active:
        activate(store, candidate.release_id, Endpoints(), click.echo)
        click.echo(f"{candidate.release_id} is active.")
    if pushes:  # again after an interruption: what is there is not sent twice
        _command(lock, "release", "--releases", str(store.root), "push")
    removed = prune(store, Endpoints(), keep, click.echo)
    removed += remove_runs(runs, run_path, store)
    if removed:
        click.echo(f"removed {', '.join(removed)}")


def remove_runs(runs: Path, used: Path, store: ReleaseStore) -> list[str]:
    """Remove the folders of runs whose releases are gone, and of those that were killed before they had one, a day ago or
    longer; never the one that is used, the newest, or one that another process works on. Returns their names."""
    folders = {folder: changed_s(folder) for folder in runs.iterdir() if RUN.fullmatch(folder.name) and folder.is_dir()}
    kept, removed = {used, max(folders, key=lambda each: folders[each], default=used)}, []
    for folder in sorted(folders.keys() - kept):
        made = [path.read_text().strip() for path in folder.glob(f"{RELEASE}.*")]
        is_begun = not made and time.time() - folders[folder] <= OLD_S
        with unheld(_lock(folder)) as is_free:
            if is_free and not is_begun and not any((store.root / release_id).exists() for release_id in made):
                shutil.rmtree(folder)
                _lock(folder).unlink(missing_ok=True)
                removed.append(folder.name)
    return removed


def _lock(run_path: Path) -> Path:
    """Return the file whose lock a command holds that works on a run."""
    return run_path.with_name(f".{run_path.name}.lock")


def _take_over(run_path: Path, store: ReleaseStore, active: Release) -> None:
    """Give a run the weights and the Semantic IDs of the active release, and the IDs that items were given since, or by other
    releases of the store with the same codebooks."""
    from trainer.base import base_on_release

    more_ids: dict[str, tuple[int, ...]] = {}
    quantiser = active.manifest.get("quantiser")
    with closing(connect(Endpoints().redis_url)) as client:
        for release_id in (active.release_id, *reversed(store.ids())):
            release = store.get(release_id, verify=False)
            if release_id == active.release_id or (quantiser and release.manifest.get("quantiser") == quantiser):
                live = LiveItemWriter(client, release_id).changes()
                for item_id, codes in [
                    *((each.item.item_id, each.codes) for each in live),
                    *release.published_ids.items(),
                ]:
                    more_ids.setdefault(item_id, codes)
    base_on_release(run_path, active, more_ids)


def ids_problem(active: Release, candidate: Release) -> str:
    """Return whose Semantic IDs would move, "" if nobody's."""
    own = candidate.published_ids
    moved = [item_id for item_id, codes in active.published_ids.items() if own.get(item_id) != codes]
    if not moved:
        return ""
    return (
        f"the Semantic IDs of {len(moved):,} items would move, that of {moved[0]!r} among them; --retokenize allows it"
    )


def starts_warm(run_path: Path, recipe: str, words: list[str], warm_runs: int) -> bool:
    """Return whether a run starts from the weights of its base: as it was begun, or if the base was trained with the same
    recipe and few enough nights have done so in a row."""
    from trainer.base import Base
    from trainer.recipes import recipe_named

    if (run_path / "recipe.json").is_file():
        return bool(json.loads((run_path / "recipe.json").read_text()).get("is_warm"))
    base = Base.of(run_path)
    if base is None or base.facts.trained_until_ms is None or base.facts.warm_runs >= warm_runs:
        return False
    asked = recipe_named(recipe, **({"text_encoder": words[1]} if words else {}))
    return asked.teacher is None and base.facts.recipe in (asked, asked.warm(base.facts.recipe.until_ms))


def quality_problem(active: Release, candidate: Release, model: str, metric: str, tolerance: float) -> str:
    """Return why the candidate is worse by the metric, "" if it is not, or if the active release was not measured. A metric
    that is no finite number is worse than any other, and nothing can be compared with it.

    A candidate that started from the active release has measured it, too, on the orders since. One that was trained anew is
    compared with the last of the active releases that was.
    """
    from trainer.evaluate import BEFORE, generative_problem

    base_id = candidate.metrics.get("base")
    if base_id not in (None, active.release_id):
        return f"it started from {base_id}, and {active.release_id} became active meanwhile"
    if base_id is not None and candidate.metrics["orders"] == 0:
        click.echo(f"No user with enough orders has ordered since {active.release_id}: quality is not compared.")
        return ""
    now, was = _measured(candidate.metrics, model, metric), _measured(active.metrics, model, metric)
    if base_id is not None:
        was = _measured(candidate.metrics, BEFORE + model, metric)
    elif "base" in active.metrics:
        was = _measured(active.metrics.get("unseen", {}), model, metric)
    if now is None:
        raise InvalidInputError(f"{candidate.release_id} has no {metric} of {model!r}, expected one of its evaluation")
    if was is None:
        click.echo(f"{active.release_id} has no {metric} of {model!r}: quality is not compared.")
    for release, value in ((active, was), (candidate, now)):
        if value is not None and not math.isfinite(value):
            return f"{metric} of {model!r} of {release.release_id} is {value}, expected a finite number"
    if was is None:
        return generative_problem(candidate.metrics)
    click.echo(f"{metric} of {model!r}: {now:.4f}, the active release's {was:.4f}.")
    least = (1 - tolerance) * was
    if now < least:
        return f"{metric} is {now:.4f}, expected at least {least:.4f}"
    return generative_problem(candidate.metrics)


def _measured(metrics: Mapping[str, Any], model: str, metric: str) -> float | None:
    """Return the metric, NaN for what is no number, None if it was not measured."""
    found: dict[str, Any] = dict(metrics.get("models", {}).get(model, {}).get("all", {}))
    if metric not in found:
        return None
    return float(found[metric]) if isinstance(found[metric], int | float) else math.nan


def _name(data: Path, recipe: str, text_encoder: str | None, *more: str) -> str:
    """Return the run's name, which follows from the data's files and the settings."""
    parts = [f"{path.name} {sha256_of(path)}" for path in sorted(data.iterdir()) if path.is_file()]
    return "run-" + hashlib.sha256("\n".join([*parts, recipe, text_encoder or "", *more]).encode()).hexdigest()[:12]


def _exported(run_path: Path, data: Path, store: ReleaseStore, target: Target) -> Release:
    from trainer.cli import progress_bars
    from trainer.export import add_release
    from trainer.run import Run

    made = run_path / f"{RELEASE}.{target}"
    if made.is_file() and made.read_text().strip() in store.ids():
        return store.get(made.read_text().strip())
    with progress_bars() as progress:
        release = add_release(Run.opened(run_path, data).released, store, progress, target)
    made.write_text(release.release_id + "\n")
    click.echo(f"{release.release_id} is published.")
    return release


def replay_problem(
    store: ReleaseStore, log: Path | None, candidate: Release, min_overlap: float | None, max_ratio: float | None
) -> str:
    """Return why the candidate's answers to captured requests are worse, "" if they are not, or without a request. With a
    limit, requests of which none can be read are a reason, too: the limit could not be checked."""
    recorded, skipped = recorded_requests(log_files(log) if log is not None else [])
    if not recorded:
        click.echo("No captured request: nothing is replayed.")
        is_limited = min_overlap is not None or max_ratio is not None
        return f"no captured request can be read: {skipped}" if is_limited and skipped.num_lines else ""
    found = compared(store, recorded, candidate.release_id)
    print_comparison(found)
    return "; ".join(problems(found, min_overlap, max_ratio))


def _command(lock: int, *words: str) -> None:
    """Run a command of `baguni` in a process of its own; if it fails, this one ends with its status. It inherits the lock: if
    this one is killed, the next night waits until what it had started has ended, and goes on from there."""
    command = [sys.executable, "-m", "baguni.cli", *words]
    status = subprocess.run(command, check=False, pass_fds=[lock]).returncode
    if status:
        raise SystemExit(status)
