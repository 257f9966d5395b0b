"""Campaign files: what they say, and what is wrong with them, by name."""

from __future__ import annotations

import re
import resource
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from baguni.domain.errors import InvalidInputError
from crm import plain_yaml
from crm.audience import users_of
from crm.campaign import Audience, FileAudience, FileSink, Where, read_campaign
from crm.sinks.file import ListFile
from crm.state import Push, PushedItem, Run
from tests.conftest import repository

SMALLEST = "name: small\naudience: {file: {path: users.csv}}\nsinks: [{file: {path: out.csv}}]\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "campaign.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text",
    ["NO", "yes", "off", "Y", "n", "12:30", "007", "0x1F", "1_000", "2024-01-01", ".5", "1.", "=", "<<", "1e", "é"],
)
def test_what_looks_like_text_is_text(text: str) -> None:
    """c1: a country called NO was false, and nobody was in the audience."""
    assert plain_yaml.load(f"equals: {text}") == {"equals": text}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("False", False),
        ("7", 7),
        ("-3", -3),
        ("0", 0),
        ("2.5", 2.5),
        ("1e3", 1000.0),
        ("~", None),
        ("", None),
    ],
)
def test_plain_types_are_what_they_look_like(text: str, value: object) -> None:
    found = plain_yaml.load(f"x: {text}")["x"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "text",
    ["exclude: [a]\nname: x\nexclude: [b]", "items: {exclude: [a], exclude: [b]}", "- a: 1\n  a: 1", "'a': 1\na: 2"],
)
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, text: str) -> None:
    """c2: the first list was lost, and its items were pushed."""
    with pytest.raises(InvalidInputError, match=r"the key '(exclude|a)' stands twice(.|\n)*line \d"):
        read_campaign(written(tmp_path, text))


@pytest.mark.parametrize("bad", ["2001.0", "2001.", "2.001e+03", "2E+15"])
def test_ids_that_became_numbers_are_refused_with_their_row(tmp_path: Path, bad: str) -> None:
    """c3: they were pushed to strangers."""
    path = tmp_path / "users.csv"
    path.write_text(f"user\nu-1.0\n1E5\n{bad}\n2003\n")
    audience = Audience(file=FileAudience(path=path, column="user"))
    with pytest.raises(InvalidInputError, match=rf"row 3: user is '{re.escape(bad)}', expected an id"):
        list(users_of(audience, None, None, 0))  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [[2001.0, None], [1e18, 3.5]])
def test_a_column_of_floats_names_nobody(tmp_path: Path, values: list[float | None]) -> None:
    path = tmp_path / "users.parquet"
    pq.write_table(pa.table({"user": pa.array(values, pa.float64())}), path)
    with pytest.raises(InvalidInputError, match=r"row 1: user is '.*', expected an id"):
        list(users_of(Audience(file=FileAudience(path=path, column="user")), None, None, 0))  # type: ignore[arg-type]


def test_paths_are_beside_the_file(tmp_path: Path) -> None:
    campaign = read_campaign(written(tmp_path, SMALLEST))
    assert campaign.audience.file is not None
    assert campaign.audience.file.path == tmp_path / "users.csv"
    assert campaign.sinks[0].file is not None
    assert campaign.sinks[0].file.path == tmp_path / "out.csv"


def test_the_documented_campaigns_are_some(tmp_path: Path) -> None:
    example, audiences = (
        block.split("```")[0] for block in (repository() / "docs" / "crm.md").read_text().split("```yaml")[1:]
    )
    campaign = read_campaign(written(tmp_path, example))
    assert [list(sink.model_dump(exclude_none=True)) for sink in campaign.sinks] == [["file"], ["kafka"], ["braze"]]
    assert campaign.quiet.campaigns is not None
    alternatives = list(yaml.safe_load_all(audiences))
    assert len(alternatives) == 3
    for audience in alternatives:
        read_campaign(written(tmp_path, yaml.safe_dump({**yaml.safe_load(example), "audience": audience})))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("name: small", "name: a b"), "name: String should match pattern"),
        (
            ("name: small", "name: small\nitems_per_user: 0"),
            "items_per_user: Input should be greater than or equal to 1",
        ),
        (("name: small", "name: small\nleast_items: 11"), "least_items is 11, expected at most items_per_user 10"),
        (("path: out.csv", "path: out.txt"), "expected a name that ends in .csv or .parquet"),
        (("{file: {path: users.csv}}", "{}"), "audience: Value error, got nothing, expected exactly one of file"),
        (("sinks: [{file: {path: out.csv}}]", "sinks: []"), "sinks: Tuple should have at least 1 item"),
        (("name: small", "name: small\nquiet: {campaigns: {at_most: 1}}"), "quiet.campaigns.days: Field required"),
        (("{file: {path: out.csv}}", "{braze: {url: nowhere}}"), "sinks.0.braze.url"),
        (("name: small", "name: [small"), "is no YAML file"),
        (("name: small\naudience: {file: {path: users.csv}}\nsinks: [{file: {path: out.csv}}]\n", "- 1"), "holds list"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: tuple[str, str], named: str) -> None:
    path = written(tmp_path, SMALLEST.replace(*change))
    with pytest.raises(InvalidInputError) as refused:
        read_campaign(path)
    assert named in str(refused.value)
    assert str(path) in str(refused.value)


def users(audience: FileAudience) -> list[str]:
    return list(users_of(Audience(file=audience), None, None, 0))  # type: ignore[arg-type]


def test_conditions_on_columns_of_either_format(tmp_path: Path) -> None:
    rows = {
        "user_id": ["007", "2", "3", "", "5"],
        "score": [0.1, 0.5, 0.9, 1.0, None],
        "vip": [True, False, True, True, True],
        "city": ["Seoul", "Busan", "Seoul", "Seoul", "Seoul"],
    }
    pq.write_table(pa.table(rows), tmp_path / "users.parquet")
    (tmp_path / "users.csv").write_text(
        "user_id,score,vip,city\n007,0.1,True,Seoul\n2,0.5,False,Busan\n3,0.9,true,Seoul\n,1.0,true,Seoul\n5,,true,Seoul\n"
    )
    for name in ("users.csv", "users.parquet"):
        path = tmp_path / name
        assert users(FileAudience(path=path)) == ["007", "2", "3", "5"]
        for where, expected in (
            (Where(column="score", at_least=0.5), ["2", "3"]),
            (Where(column="score", at_least=0.2, at_most=0.8), ["2"]),
            (Where(column="score", equals=0.1), ["007"]),
            (Where(column="vip", equals=True), ["007", "3", "5"]),
            (Where(column="city", equals="Busan"), ["2"]),
        ):
            assert users(FileAudience(path=path, where=(where,))) == expected
    both = (Where(column="vip", equals=True), Where(column="score", at_most=0.5))
    assert users(FileAudience(path=tmp_path / "users.csv", where=both)) == ["007"]


def test_an_audience_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "users.csv"
    with pytest.raises(InvalidInputError, match="no CSV file"):
        users(FileAudience(path=path))
    path.write_text("user_id,score\na,high\n")
    with pytest.raises(InvalidInputError, match="no column 'id', expected one of user_id, score"):
        users(FileAudience(path=path, column="id"))
    with pytest.raises(InvalidInputError, match="column 'score' is compared with a number"):
        users(FileAudience(path=path, where=(Where(column="score", at_least=1),)))


def test_a_bad_row_in_a_later_block_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "users.csv"
    path.write_text("user_id,score\n" + "".join(f"u{number},{number}\n" for number in range(200_000)) + "a,b,c\n")
    found = users_of(Audience(file=FileAudience(path=path)), None, None, 0)  # type: ignore[arg-type]
    assert next(found) == "u0"  # the first block is fine
    with pytest.raises(
        InvalidInputError, match=r"users.csv cannot be read: CSV parse error: .*Expected 2 columns, got 3"
    ):
        list(found)


NOT_UTF8 = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")]
)
ODD_COLUMNS = {
    "lists": pa.array([["a"], ["b"]]),
    "structs": pa.array([{"a": 1}, {"a": 2}]),
    "maps": pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int32())),
    "bytes": pa.array([b"a", b"\xff"]),
    "texts": NOT_UTF8,
}
CONDITIONS = [None, Where(column="c", equals="x"), Where(column="c", equals=True), Where(column="c", at_least=1)]


@pytest.mark.parametrize("kind", ODD_COLUMNS)
@pytest.mark.parametrize("where", CONDITIONS)
def test_a_column_that_holds_something_else_is_an_error_that_names_the_file(
    tmp_path: Path, kind: str, where: Where | None
) -> None:
    path = tmp_path / "users.parquet"
    if where is None:
        pq.write_table(pa.table({"user_id": ODD_COLUMNS[kind]}), path)
    else:
        pq.write_table(pa.table({"user_id": ["a", "b"], "c": ODD_COLUMNS[kind]}), path)
    audience = FileAudience(path=path, where=() if where is None else (where,))
    if kind == "texts" and where == CONDITIONS[1]:
        assert users(audience) == []  # compared as bytes, and equal to nothing
        return
    with pytest.raises(InvalidInputError, match=re.escape(str(path))):
        users(audience)


@pytest.mark.parametrize("damaged", range(4))
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, damaged: int) -> None:
    path = tmp_path / "users.parquet"
    pq.write_table(pa.table({"user_id": [f"u{number}" for number in range(50_000)]}), path, row_group_size=10_000)
    content = bytearray(path.read_bytes())
    middle = len(content) * (2 * damaged + 1) // 10
    content[middle : middle + 2_000] = b"\xff" * 2_000
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=re.escape(str(path))):
        users(FileAudience(path=path))


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([b"07", b"a"]),
        pa.array(["07", "a"], pa.large_string()),
        pa.array(["07", "a"]).dictionary_encode(),
        pa.array(["07", "a"], pa.string_view()),
    ],
)
def test_ids_are_texts_in_every_type_that_a_writer_has_for_them(tmp_path: Path, ids: pa.Array) -> None:
    """Bytes, as some writers leave them, were pushed to b'07'."""
    path = tmp_path / "users.parquet"
    pq.write_table(pa.table({"user_id": ids, "score": pa.array(["", "1"], pa.large_string())}), path)
    assert users(FileAudience(path=path)) == ["07", "a"]
    assert users(FileAudience(path=path, where=(Where(column="score", at_least=1),))) == ["a"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_column_that_is_there_twice_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"users.{suffix}"
    columns = [pa.array(["a"]), pa.array(["b"])]
    path.write_text("user_id,user_id\na,b\n")
    if suffix == "parquet":
        pq.write_table(pa.Table.from_arrays(columns, names=["user_id", "user_id"]), path)
    with pytest.raises(InvalidInputError, match="has 2 columns 'user_id'"):
        users(FileAudience(path=path))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_disk_that_is_full_is_named_and_the_old_file_stays(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out.{suffix}"
    path.write_text("old")
    run = Run("r", "bread", "d", 1_760_000_000_000, 1, 0, 0)
    pushes = [Push(f"u{number}", (PushedItem("rye", -1.0),) * 20, "r1") for number in range(8_000)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
    try:
        with pytest.raises(InvalidInputError, match=r"out\..*cannot be written"):
            ListFile(FileSink(path=path)).write(run, pushes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "old"
