"""`baguni release replay`: what a candidate would change, before anyone activates it."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from baguni.cli.plain_console import PlainConsole
from baguni.domain.errors import InvalidInputError, NotFoundError
from baguni.domain.release import ReleaseStore
from baguni.logs import visible
from baguni.releases.activation import published
from server.replay.comparison import Comparison
from server.replay.comparison import replay as replay_requests
from server.settings import ServerSettings
from server.telemetry.capture import Recorded, Skipped, log_files, read_log

LISTED = pa.schema({"exposure_token": pa.string(), "position": pa.int64(), "item_id": pa.string()})
BELOW = 3  # exit status: replayed, and not as wanted


@click.command()
@click.option(
    "--log",
    "logs",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="A file, or a folder, searched with those below it.",
)
@click.option("--candidate", required=True, help="The release to try.")
@click.option("--against", default=None, help="The release to compare with, if it is not the active one.")
@click.option("--limit", type=click.IntRange(min=1), default=None, help="Only so many requests.")
@click.option(
    "--min-overlap", type=click.FloatRange(0, 1), default=None, help="Exit with 3 if lists share less on average."
)
@click.option(
    "--max-latency-ratio", type=float, default=None, help="Exit with 3 if the median takes so many times longer."
)
@click.option(
    "--lists",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="Write what the candidate would have shown, as Parquet, for `baguni experiment estimate`.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.pass_context
def replay(
    context: click.Context,
    logs: tuple[Path, ...],
    candidate: str,
    against: str | None,
    limit: int | None,
    min_overlap: float | None,
    max_latency_ratio: float | None,
    lists: Path | None,
    as_json: bool,
) -> None:
    """Ask a candidate what was asked of the gateway, and compare.

    Gateways write requests down where BAGUNI_CAPTURE_DIR says: the slow ones, and BAGUNI_CAPTURE_SHARE of the others. The
    candidate is loaded beside the active release and taken away again; the pointer does not move.

    \b
    baguni release replay --log captured/ --candidate r20261124_1f3a9c02 --min-overlap 0.5
    """
    recorded, _ = recorded_requests(_files(logs), limit)
    if lists is not None and recorded and not any(request.sampled for request in recorded):
        raise InvalidInputError("no request of the log was chosen by chance: set BAGUNI_CAPTURE_SHARE", "log")
    found = compared(context.obj, recorded, candidate, against)
    if lists is not None:
        columns = zip(*found.lists, strict=True) if found.lists else ((), (), ())
        pq.write_table(
            pa.table([pa.array(c, t) for c, t in zip(columns, LISTED.types, strict=True)], schema=LISTED), lists
        )
    if as_json:
        click.echo(json.dumps(found.summary(), indent=2, ensure_ascii=False))
    else:
        print_comparison(found)
    below = problems(found, min_overlap, max_latency_ratio)
    for problem in below:
        click.secho(problem, fg="red", err=True)
    if below:
        context.exit(BELOW)


def compared(
    store: ReleaseStore, recorded: Sequence[Recorded], candidate: str, against: str | None = None
) -> Comparison:
    """Return the answers of a candidate beside those of the active release, or of the one to compare `against`. Both are loaded
    for as long as it takes. Raises InvalidInputError without a request, NotFoundError without a release."""
    active = against or store.active_id()
    if active is None:
        raise NotFoundError("no release is active to compare with: name one with --against")
    if not recorded:
        raise InvalidInputError("the log has no request", "log")
    settings = ServerSettings(releases=store.root)
    with (
        published(store, store.get(candidate), settings),
        published(store, store.get(active), settings) if active != store.active_id() else nullcontext(),
    ):
        return asyncio.run(replay_requests(recorded, settings, active, candidate))


def recorded_requests(files: Sequence[Path], limit: int | None = None) -> tuple[list[Recorded], Skipped]:
    """Return the requests of a log's files, the first `limit`, and print what was skipped."""
    skipped = Skipped()
    recorded = list(itertools.islice(read_log(files, skipped), limit))
    if words := str(skipped):
        click.secho(f"skipped {visible(words)}", fg="yellow", err=True)
    return recorded, skipped


def _files(logs: tuple[Path, ...]) -> list[Path]:
    found = []
    for log in logs:
        files = log_files(log)
        if not files:
            raise NotFoundError(f"{log} is no file, and no folder with *.jsonl files: nothing was written down there")
        found += files
    return found


def problems(found: Comparison, min_overlap: float | None, max_latency_ratio: float | None) -> list[str]:
    """Return the limits that the candidate misses, in words; None is no limit. A number that is not one misses each limit."""
    below = []
    overlap, ratio = found.mean_overlap, found.latency_ratio
    if min_overlap is not None and (overlap is None or not overlap >= min_overlap):
        below.append(f"lists overlap by {_number(overlap)}, expected at least {min_overlap}")
    if max_latency_ratio is not None and (ratio is None or not ratio <= max_latency_ratio):
        below.append(f"the median takes {_number(ratio)} times as long, expected at most {max_latency_ratio}")
    return below


def print_comparison(found: Comparison) -> None:
    """Print both sides as a table, and by how much lists and scores differ."""
    summary = found.summary()
    sides = Table("", "active", "candidate", title=f"{summary['compared']} requests compared")
    rows: list[tuple[str, str]] = [
        ("release", "release_id"),
        ("answered", "answered"),
        ("p50, ms", "p50_ms"),
        ("p99, ms", "p99_ms"),
    ]
    for label, key in rows:
        sides.add_row(label, *(_number(summary[side][key]) for side in ("active", "candidate")))
    for key in ("tiers", "refused"):
        cells = (
            "\n".join(f"{n:,} {what}" for what, n in summary[side][key].items()) for side in ("active", "candidate")
        )
        sides.add_row(key, *cells)
    PlainConsole().print(sides)
    overlap, shift = summary["overlap"], summary["score_shift"]
    click.echo(
        f"overlap {_number(overlap['mean'])} on average, {_number(overlap['p5'])} in the worst twentieth; "
        f"first item the same in {_number(overlap['same_first'])}; "
        f"the active release now lists {_number(overlap['active_with_recorded'])} of what was served then"
    )
    click.echo(
        f"scores of shared items move by {_number(shift['mean'])} on average "
        f"({_number(shift['p5'])} to {_number(shift['p95'])}); latency × {_number(summary['latency_ratio'])}"
    )


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
