"""`baguni train`, `baguni evaluate`, `baguni export`, `baguni generate`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

import click
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from baguni.cli.metrics_tables import metrics_tables
from baguni.cli.plain_console import PlainConsole
from baguni.domain.errors import BaguniError
from baguni.processors import available_processors
from baguni.settings import Endpoints
from trainer.files import written_whole
from trainer.triton_config import Target

REFIT_TOLERANCE = 0.05  # a refit may be worse by this share, on orders that it has seen
EVERY_S = 30.0  # between two lines of progress in a log
DATA = click.argument("data", type=click.Path(path_type=Path))
RUN = click.option(
    "--run", "run_path", type=click.Path(path_type=Path), default=Path(".baguni/training"), show_default=True
)
RAY = click.option("--ray", "address", default=None, help='A Ray cluster\'s HOST:PORT, or "auto". [this process]')
RECIPE = click.option("--recipe", default=None, help="A recipe of trainer/recipes.py. [that of the run]")
SEED = click.option("--seed", default=0, show_default=True, help="With --recipe.")


@click.command()
@DATA
@RUN
@click.option("--recipe", default="demo", show_default=True, help="A recipe of trainer/recipes.py.")
@click.option("--seed", default=0, show_default=True)
@click.option("--text-encoder", default=None, help="A sentence-transformers name or path. [a small English one]")
@click.option(
    "--refit/--no-refit",
    default=True,
    show_default=True,
    help="After the evaluation, learn the last month, too: what is exported knows the whole log.",
)
@click.option("--after", default=None, help="The id of a release whose Semantic IDs stay. [new Semantic IDs]")
@click.option(
    "--warm",
    is_flag=True,
    help="With --after: start from its weights, and take a fifth of the steps, on orders of the whole log.",
)
@click.option("--releases", type=click.Path(path_type=Path), default=None, help="The release store, for --after.")
@RAY
def train(
    data: Path,
    run_path: Path,
    recipe: str,
    seed: int,
    text_encoder: str | None,
    refit: bool,
    after: str | None,
    warm: bool,
    releases: Path | None,
    address: str | None,
) -> None:
    """Fit Semantic IDs, train both heads and distil, on the data set in DATA; measure the result on the last calendar month;
    then learn that month, too. An interrupted run goes on. Every step is logged to TensorBoard (RUN/tensorboard), and to MLflow
    where MLFLOW_TRACKING_URI is set.

    \b
    baguni train .baguni/complete-journey --run .baguni/training
    baguni train my-shop/ --run .baguni/tonight --after r20261124_1f3a9c02 --warm       from a release, in a fifth of the time
    torchrun --nproc-per-node 2 -m -- baguni.cli train my-shop/ --run .baguni/two       on two processes, or two GPUs
    baguni train .baguni/complete-journey --ray auto       texts are read on a Ray cluster, the rest here
    """
    from baguni.domain.release import ReleaseStore
    from trainer.base import base_on_release
    from trainer.evaluate import DISTILLED, evaluate_warm, generative_problem, warm_problem
    from trainer.evaluate import evaluate as evaluate_run
    from trainer.recipes import recipe_named
    from trainer.report import plot_losses
    from trainer.run import Run

    asked = recipe_named(recipe, seed=seed, **({"text_encoder": text_encoder} if text_encoder else {}))
    if after is not None:
        base_on_release(run_path, ReleaseStore(releases or Endpoints().releases).get(after))
    run = Run.warm(run_path, data, asked) if warm else Run(run_path, data, asked)
    started = time.monotonic()
    is_first = run.fabric.is_global_zero
    with progress_bars(is_first) as progress:
        stages = run.train_all(progress, address)
        seconds = time.monotonic() - started
        measure = evaluate_warm if warm else evaluate_run
        metrics = measure(run, progress=progress) | {"training_s": round(seconds, 1)} if is_first else {}
        released = run.refit(progress) if refit and not warm and asked.teacher is None else run
        if is_first and released is not run:
            refitted = evaluate_warm(released, progress=progress)
            problem = refitted["models"] and warm_problem(refitted, DISTILLED, f"NDCG@{refitted['k']}", REFIT_TOLERANCE)
            if problem:
                raise BaguniError(f"the refit went wrong: {problem}; --no-refit leaves it out")
    if not is_first:
        return
    plot_losses(stages, run_path / "losses.png")
    run.tracking.results(metrics)
    run.tracking.close()
    for each in dict.fromkeys((released, run)):  # the run's own last: with it, the training is finished
        with written_whole(each.path / "metrics.json") as file:
            file.write((json.dumps(metrics, indent=2) + "\n").encode())
    PlainConsole().print(*metrics_tables(metrics))
    if problem := generative_problem(metrics):
        click.secho(problem, fg="yellow", err=True)
    click.echo(
        f"Trained in {seconds:.0f} s; losses: {run_path / 'losses.png'}; next: baguni export {data} --run {run_path}"
    )


@click.command()
@DATA
@RUN
@RECIPE
@SEED
@click.option("--mode", type=click.Choice(["first", "rolling"]), default="rolling", show_default=True)
@click.option("--limit", type=int, default=None, help="Only this many orders, chosen at random.")
def evaluate(
    data: Path, run_path: Path, recipe: str | None, seed: int, mode: Literal["first", "rolling"], limit: int | None
) -> None:
    """Predict the orders of the last month with every model of a finished run."""
    from trainer.evaluate import evaluate as evaluate_run
    from trainer.evaluate import evaluate_warm
    from trainer.run import Run

    run = Run.opened(run_path, data, recipe, seed)
    with progress_bars() as progress:
        metrics = (evaluate_warm if run.recipe.is_warm else evaluate_run)(run, mode, limit, progress)
    PlainConsole().print(*metrics_tables(metrics))


@click.command()
@DATA
@RUN
@RECIPE
@SEED
@click.option("--releases", type=click.Path(path_type=Path), default=None, help="The release store.")
@click.option(
    "--target",
    type=click.Choice(get_args(Target)),
    default="python",
    show_default=True,
    help="What runs the models in Triton; tensorrt builds engines for this machine's GPU, torch is for GPUs without it.",
)
@click.option("--int8", "quantised", is_flag=True, help="Models that read histories in int8: twice as quick on a CPU.")
def export(
    data: Path,
    run_path: Path,
    recipe: str | None,
    seed: int,
    releases: Path | None,
    target: Target,
    quantised: bool,
) -> None:
    """Make a release of a finished run and add it to the release store. Activate it with `baguni release activate`."""
    from baguni.domain.release import ReleaseStore
    from trainer.evaluate import generative_problem
    from trainer.export import add_release
    from trainer.run import Run

    store = ReleaseStore(releases or Endpoints().releases)
    with progress_bars() as progress:
        release = add_release(Run.opened(run_path, data, recipe, seed).released, store, progress, target, quantised)
    if problem := generative_problem(release.metrics):
        click.secho(problem, fg="yellow", err=True)
    click.echo(f"Release {release.release_id}: {release.path}")


@click.command()
@DATA
@click.option("--release", required=True, type=click.Path(path_type=Path), help="Its folder.")
@click.option("--k", default=20, show_default=True, help="Items of a list.")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Parquet.")
@RAY
@click.option(
    "--users-at-once",
    default=16,
    show_default=True,
    help="Read and generated for together; as many give the same bits.",
)
def generate(data: Path, release: Path, k: int, out: Path, address: str | None, users_at_once: int) -> None:
    """Write what the generative head would have next of every user in DATA, without servers: user_id, position, item_id,
    log_likelihood.

    \b
    baguni generate my-shop/ --release .baguni/releases/r20261124_1f3a9c02 --out lists.parquet
    baguni generate my-shop/ --release … --out lists.parquet --ray auto        on a cluster; the numbers are the same
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from trainer.bulk import BulkGenerator, in_one_process, on_ray

    generator = BulkGenerator(release, data, k, threads=available_processors(), chunk=users_at_once)
    if address is None:
        made = in_one_process(generator)
    else:
        made = on_ray(address, release, data, k, generator.num_users, users_at_once)
    schema = pa.schema(
        {"user_id": pa.string(), "position": pa.int32(), "item_id": pa.string(), "log_likelihood": pa.float32()}
    )
    nodes, listed = set(), 0
    with written_whole(out) as file, pq.ParquetWriter(file, schema) as writer, progress_bars() as progress:
        for lists in made:
            writer.write_table(pa.table(generator.rows(lists), schema))
            nodes.add(lists.node)
            listed += int((lists.item_Bk[:, 0] >= 0).sum())
            progress("lists", lists.first_user + len(lists.item_Bk), generator.num_users, "users")
    click.echo(f"{listed:,} of {generator.num_users:,} users have a list, made on {len(nodes)} node(s): {out}")


@contextmanager
def progress_bars(shown: bool = True) -> Iterator[ProgressBars]:
    """A bar per stage, on standard error; where that is no terminal, a line per stage and EVERY_S."""
    columns = (
        TextColumn("{task.description:<20}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[message]}"),
    )
    console = PlainConsole(stderr=True)
    with Progress(*columns, console=console, disable=not shown or not console.is_terminal) as progress:
        yield ProgressBars(progress, in_lines=shown and not console.is_terminal)


class ProgressBars:
    """Shows what a run reports."""

    def __init__(self, progress: Progress, in_lines: bool) -> None:
        self._progress, self._in_lines = progress, in_lines
        self._tasks: dict[str, TaskID] = {}
        self._next_line: dict[str, float] = {}
        self._started: dict[str, tuple[float, int]] = {}  # when a stage was first reported, and how far it was

    def __call__(self, stage: str, done: int, total: int, message: str) -> None:
        if self._in_lines:
            now = time.monotonic()
            started = self._started.setdefault(stage, (now, done))
            if done == total or now >= self._next_line.get(stage, 0.0):
                click.echo(f"{stage}: {done:,} of {total:,}{_time_left(now, started, done, total)} {message}", err=True)
                self._next_line[stage] = now + EVERY_S
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total, message="")
        self._progress.update(self._tasks[stage], completed=done, message=message)


def _time_left(now: float, started: tuple[float, int], done: int, total: int) -> str:
    """Return what is left of a stage at its speed so far, as ", 3 min left"; empty where nothing was done yet."""
    began, done_before = started
    if done >= total or done <= done_before:
        return ""
    minutes = (now - began) * (total - done) / (done - done_before) / 60
    return f", {minutes:.0f} min left" if minutes >= 1 else ", less than a minute left"
