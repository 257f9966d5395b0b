"""Releases on disk: verified parts, one atomic pointer, and the way back."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baguni.domain.errors import InvalidInputError, NotFoundError, ReleaseMismatchError
from baguni.domain.release import MANIFEST, POINTER, Release, ReleaseStore, load_release, write_manifest
from tests.signing import JSON


def release_at(path: Path, content: str = "a", created_at: str = "2026-01-01T00:00:00+00:00") -> Release:
    """A directory with two parts, one of them deep, and its manifest."""
    (path / "triton/model/1").mkdir(parents=True)
    (path / "signature.json").write_text(content)
    (path / "triton/model/1/model.onnx").write_text("weights")
    return write_manifest(path, {"dataset": "test", "created_at": created_at})


@pytest.fixture
def store(tmp_path: Path) -> ReleaseStore:
    return ReleaseStore(tmp_path / "releases")


def add(store: ReleaseStore, content: str, created_at: str = "2026-01-01T00:00:00+00:00") -> str:
    path = store.root.parent / f"made-{content}"
    release_at(path, content, created_at)
    return store.add(path).release_id


def test_equal_contents_have_equal_ids_and_others_do_not(tmp_path: Path) -> None:
    ids = [release_at(tmp_path / name, content).release_id for name, content in (("1", "a"), ("2", "a"), ("3", "b"))]
    assert ids[0] == ids[1] != ids[2]


def test_a_written_release_loads(tmp_path: Path) -> None:
    written = release_at(tmp_path / "r")
    assert load_release(tmp_path / "r").manifest == written.manifest
    assert sorted(written.manifest["parts"]) == ["signature.json", "triton/model/1/model.onnx"]


@pytest.mark.parametrize("field", ["release_id", "created_at", "parts"])
def test_a_manifest_without_a_field_is_named_and_the_others_stay_usable(store: ReleaseStore, field: str) -> None:
    sound, damaged = add(store, "a"), add(store, "b")
    manifest = store.root / damaged / MANIFEST
    manifest.write_text(
        json.dumps({name: value for name, value in json.loads(manifest.read_text()).items() if name != field})
    )
    with pytest.raises(ReleaseMismatchError, match=f"has no '{field}'"):
        store.get(damaged)
    assert store.ids() == [sound]
    assert store.get(sound).release_id == sound


@pytest.mark.parametrize("release_id", ["", "../r", "r 1", "r'1", "r\n", "x" * 65, "릴리스"])
def test_an_id_that_is_no_name_for_a_collection_or_a_model_is_refused(tmp_path: Path, release_id: str) -> None:
    path = release_at(tmp_path / "r").path / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "release_id": release_id}))
    with pytest.raises(ReleaseMismatchError, match="release_id is"):
        load_release(tmp_path / "r")


@given(
    st.dictionaries(st.sampled_from(["release_id", "created_at", "parts", "metrics"]), JSON, max_size=4)
    | JSON
    | st.binary(max_size=30)
)
def test_a_manifest_of_any_shape_is_refused_or_loads(tmp_path_factory: pytest.TempPathFactory, content: object) -> None:
    folder = tmp_path_factory.getbasetemp() / "any-shape"
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with contextlib.suppress(ReleaseMismatchError):
        load_release(folder)


def test_a_manifest_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    path = release_at(tmp_path / "r").path / MANIFEST
    path.write_text(path.read_text()[:40])
    with pytest.raises(ReleaseMismatchError, match=r"manifest\.json is no JSON"):
        load_release(tmp_path / "r")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda path: (path / "signature.json").write_text("x"), "signature.json does not match its sha256"),
        (lambda path: (path / "signature.json").unlink(), "signature.json is missing"),
        (lambda path: (path / "more.npy").write_text(""), "more.npy is not in the manifest"),
        (lambda path: (path / "triton/model/1/model.onnx").write_text("x"), "model.onnx does not match its sha256"),
    ],
)
def test_a_damaged_release_is_refused_by_name_and_the_pointer_stays(
    store: ReleaseStore, damage: Callable[[Path], object], problem: str
) -> None:
    good, bad = add(store, "a"), add(store, "b")
    store.point_to(good)
    damage(store.root / bad)
    with pytest.raises(ReleaseMismatchError, match=f"release {bad} is damaged: .*{problem}"):
        store.point_to(bad)
    assert store.active_id() == good


def test_a_release_under_anothers_name_is_refused(store: ReleaseStore) -> None:
    release_id = add(store, "a")
    (store.root / release_id).rename(store.root / "other")
    with pytest.raises(ReleaseMismatchError, match=f"says it is release {release_id}, expected other"):
        store.get("other")


def test_an_unknown_release_names_those_that_are_known(store: ReleaseStore) -> None:
    with pytest.raises(NotFoundError, match="known releases: none: train one with `baguni train`"):
        store.get("r0")
    release_id = add(store, "a")
    with pytest.raises(NotFoundError, match=f"no release 'r0'; known releases: {release_id}"):
        store.point_to("r0")


def test_a_directory_without_a_manifest_is_no_release(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"is not a release: it has no manifest\.json"):
        load_release(tmp_path)


def test_a_release_that_is_added_again_changes_nothing(store: ReleaseStore) -> None:
    release_id = add(store, "a")
    assert store.add(store.root.parent / "made-a").path == store.root / release_id
    assert [path.name for path in store.root.iterdir()] == [release_id]


DAMAGES: dict[str, Callable[[Path], object]] = {
    "changed": lambda path: (path / "signature.json").write_text("x"),
    "cut": lambda path: (path / "triton/model/1/model.onnx").write_text(""),
    "missing": lambda path: (path / "signature.json").unlink(),
    "a folder missing": lambda path: shutil.rmtree(path / "triton"),
    "surplus": lambda path: (path / "triton/more.npy").write_text(""),
    "manifest cut": lambda path: (path / MANIFEST).write_text("{"),
    "manifest missing": lambda path: (path / MANIFEST).unlink(),
    "all missing": lambda path: [shutil.rmtree(path), path.mkdir()],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_copy_is_replaced_when_the_release_is_added_again(
    store: ReleaseStore, damage: Callable[[Path], object]
) -> None:
    release_id = add(store, "a")
    for path in (store.root / release_id).rglob("*"):  # damage must not reach what is added again
        if path.is_file():
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content)
    damage(store.root / release_id)
    assert store.add(store.root.parent / "made-a").release_id == release_id
    assert store.get(release_id).release_id == release_id
    assert [path.name for path in store.root.iterdir()] == [release_id]


def test_a_reader_finds_every_part_while_a_damaged_one_is_replaced(store: ReleaseStore) -> None:
    release_id = add(store, "a")
    part, stop, missed = store.root / release_id / "signature.json", threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            try:
                part.read_text()
            except FileNotFoundError as error:
                missed.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(50):
        (store.root / release_id / f"surplus-{number}").write_text("")
        store.add(store.root.parent / "made-a")
    stop.set()
    reader.join()
    assert not missed


def test_other_parts_under_an_id_of_the_store_are_refused(store: ReleaseStore) -> None:
    release_id, made = add(store, "a"), store.root.parent / "made-a"
    (made / "one-more.txt").write_text("more")
    write_manifest(made, {"release_id": release_id})
    with pytest.raises(InvalidInputError, match=f"{release_id} is already in the store, with other parts"):
        store.add(made)
    assert [path.name for path in store.root.iterdir()] == [release_id]


def test_a_damaged_directory_is_not_added(store: ReleaseStore, tmp_path: Path) -> None:
    release_at(tmp_path / "made")
    (tmp_path / "made/signature.json").write_text("b")
    with pytest.raises(ReleaseMismatchError):
        store.add(tmp_path / "made")
    assert store.ids() == []


def test_changing_the_directory_that_was_added_does_not_change_the_release(store: ReleaseStore) -> None:
    release_id = add(store, "a")
    source = store.root.parent / "made-a/signature.json"
    source.unlink()
    source.write_text("b")
    assert store.get(release_id).release_id == release_id


def test_ids_are_listed_oldest_first(store: ReleaseStore) -> None:
    newer = add(store, "a", "2026-01-02T00:00:00+00:00")
    older = add(store, "b", "2026-01-01T00:00:00+00:00")
    assert store.ids() == [older, newer]


def test_nothing_is_active_before_the_first_activation(store: ReleaseStore) -> None:
    assert store.active_id() is None
    assert store.ids() == []
    with pytest.raises(NotFoundError, match="no earlier release to roll back to"):
        store.previous_id()


def test_rolling_back_goes_to_the_release_before_and_back_again(store: ReleaseStore) -> None:
    first, second, third = (add(store, content) for content in "abc")
    for release_id in (first, second, third):
        store.point_to(release_id)
    assert store.previous_id() == second
    store.point_to(store.previous_id())
    assert (store.active_id(), store.previous_id()) == (second, third)


def test_releases_are_removed_but_those_that_were_active_last(store: ReleaseStore) -> None:
    never, first, second, third = (add(store, content) for content in "nabc")
    assert store.last_active(1) == []  # nothing is active yet
    for release_id in (first, second, third, second):
        store.point_to(release_id)
    assert set(store.remove_but(store.last_active(2))) == {never, first}
    assert set(store.ids()) == {second, third} == {path.name for path in store.root.iterdir() if path.is_dir()}
    store.point_to(store.previous_id())
    assert store.active_id() == third


def test_what_was_named_is_removed_and_no_other(store: ReleaseStore) -> None:
    first, second = add(store, "a"), add(store, "b")
    assert store.remove({first, "r0"}) == [first]
    assert store.ids() == [second]


def test_pointing_to_the_active_release_forgets_nothing(store: ReleaseStore) -> None:
    first, second = add(store, "a"), add(store, "b")
    for release_id in (first, second, second):
        store.point_to(release_id)
    assert store.previous_id() == first


def test_a_reader_never_sees_a_half_written_pointer(store: ReleaseStore) -> None:
    ids = {add(store, "a"), add(store, "b")}
    store.point_to(min(ids))
    stop, seen = threading.Event(), set()

    def read() -> None:
        while not stop.is_set():
            seen.add(store.active_id())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(50):
        for release_id in ids:
            store.point_to(release_id)
    stop.set()
    reader.join()
    assert seen <= ids


def test_the_pointer_is_one_small_file(store: ReleaseStore) -> None:
    first, second = add(store, "a"), add(store, "b")
    store.point_to(first)
    store.point_to(second)
    assert json.loads((store.root / POINTER).read_text()) == {"release_id": second, "history": [first]}
    assert sorted(path.name for path in store.root.iterdir()) == sorted([POINTER, first, second])


def test_the_manifest_is_written_last(tmp_path: Path) -> None:
    release = release_at(tmp_path / "r")
    (release.path / MANIFEST).unlink()
    with pytest.raises(NotFoundError):
        load_release(release.path)
