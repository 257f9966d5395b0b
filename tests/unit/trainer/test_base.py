"""A run that takes over from a release: published Semantic IDs stay, whatever the next catalogue is, and training goes on from
its weights."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from baguni.domain.errors import InvalidInputError, NotFoundError
from baguni.domain.release import RESERVED_IDS, Release
from baguni.domain.semantic_ids import SemanticIds, write_ids
from tests.tiny_shop import write_tiny_shop
from trainer.base import Base, Facts, base_on_release, quantiser_of, write_base
from trainer.evaluate import BEFORE, DISTILLED, GENERATIVE, evaluate, evaluate_warm, released_rankers
from trainer.recipes import Recipe, recipe_named
from trainer.rqvae import RqVae, RqVaeRecipe, fit_rqvae
from trainer.run import Run, semantic_ids_of

SIZE = 8
PCA = RqVaeRecipe(encoder="pca")


def texts_of(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return embeddings, many of them equal."""
    return rng.choice(rng.normal(size=(40, 6)).astype(np.float32), count)


def one_night(
    folder: Path, shop: Mapping[str, np.ndarray], rqvae: RqVae, before: SemanticIds | None, recipe: Recipe
) -> dict[str, tuple[int, ...]]:
    """Return the Semantic IDs that a run gives a shop's items, {item id: text embedding}."""
    base = None
    if before is not None:
        size = max(codes[-1] for codes in before.values()) + 1
        facts = Facts("before", recipe, 0, (SIZE, SIZE, max(size, 16)))
        base = write_base(folder, facts, list(before), before, {"model": {}, "rqvae": rqvae.state_dict()})
    table = semantic_ids_of(list(shop), np.stack(list(shop.values())), rqvae, base)
    assert table.codes_NL.max() < max(table.codebook_sizes)
    return dict(zip(shop, map(tuple, table.codes_NL.tolist()), strict=True))


@pytest.mark.parametrize("distinct", [False, True])
def test_a_published_id_never_moves_and_no_two_items_ever_share_one(tmp_path: Path, distinct: bool) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        text_NT = texts_of(rng, 30)
        recipe = RqVaeRecipe(encoder="pca", epochs=0, latent_dim=4, num_levels=2, codebook_size=SIZE, distinct=distinct)
        rqvae = fit_rqvae(text_NT, np.zeros(30, np.int64), recipe, seed)
        shop = {f"i{number}": text for number, text in enumerate(text_NT)}
        whole = recipe_named("tiny", rqvae=recipe)
        published: dict[str, tuple[int, ...]] = one_night(tmp_path, shop, rqvae, None, whole)
        for night in range(6):
            names = [name for name in shop if rng.random() < 0.8]  # some leave; they may come back
            names += [name for name in published if name not in shop and rng.random() < 0.3]
            names += [f"new{night}-{number}" for number in range(rng.integers(0, 12))]
            rng.shuffle(names)
            texts = texts_of(rng, len(names))
            shop = {n: shop[n] if n in shop and rng.random() < 0.9 else t for n, t in zip(names, texts, strict=True)}
            found = one_night(tmp_path / f"{seed}-{night}", shop, rqvae, published, whole)
            assert {n: c for n, c in found.items() if n in published} == {
                n: published[n] for n in found if n in published
            }
            published |= found
            assert len(set(published.values())) == len(published)


def test_a_new_item_has_the_codes_of_a_known_one_with_its_text_and_others_have_their_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    text_NT = rng.normal(size=(40, 6)).astype(np.float32)
    recipe = RqVaeRecipe(encoder="pca", epochs=0, latent_dim=4, num_levels=2, codebook_size=16, distinct=True)
    rqvae = fit_rqvae(text_NT[:30], np.zeros(30, np.int64), recipe, 0)
    whole = recipe_named("tiny", rqvae=recipe)
    before = one_night(tmp_path, {f"i{n}": text for n, text in enumerate(text_NT[:30])}, rqvae, None, whole)
    shop = {f"i{n}": text for n, text in enumerate(text_NT)} | {"twin": text_NT[3]}
    after = one_night(tmp_path / "next", shop, rqvae, before, whole)
    assert after["twin"][:-1] == after["i3"][:-1]
    del after["twin"]
    assert len({codes[:-1] for codes in after.values()}) == 40


def changed_shop(path: Path) -> Path:
    """Return the tiny shop with two items less, two more and another order of items, a month later."""
    write_tiny_shop(path)
    items = pd.read_csv(path / "items.csv").iloc[::-1]
    events = pd.read_csv(path / "events.csv")
    gone = ["bread-rye", "milk-aged"]
    new = items.iloc[:2].assign(item_id=["new-one", "new-two"])
    items = pd.concat([new, items[~items["item_id"].isin(gone)]])
    events = events[~events["item_id"].isin(gone)]
    later = events.iloc[:40].assign(
        time="2024-05-02T10:00:00", order_id=[f"later-{row}" for row in range(40)], action="order", item_id="new-one"
    )
    items.to_csv(path / "items.csv", index=False)
    pd.concat([events, later]).to_csv(path / "events.csv", index=False)
    return path


@pytest.fixture(scope="module")
def warm(tiny_release: Release, trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run that started from it, on a shop that has changed."""
    folder = tmp_path_factory.mktemp("warm")
    base_on_release(folder / "run", tiny_release, {"came-since": (0, 0, 15)})
    run = Run.warm(folder / "run", changed_shop(folder / "shop"), trained.recipe)
    run.train_all()
    return run


def test_a_run_keeps_the_ids_of_its_base_and_its_release_those_of_items_that_left(
    warm: Run, tiny_release: Release, tmp_path: Path
) -> None:
    before, after = tiny_release.published_ids, warm.published_ids
    assert {item: after[item] for item in before} == dict(before)
    assert set(warm.reserved_ids) == {"bread-rye", "milk-aged", "came-since"}
    assert tiny_release.manifest["warm_runs"] == 0
    assert warm.warm_runs == 1
    assert warm.test_start_ms == int(warm.dataset.time_E.max()) + 1
    write_ids(tmp_path / RESERVED_IDS, warm.reserved_ids)
    assert Release(tmp_path, {}).reserved_ids == warm.reserved_ids


def test_a_warm_training_takes_fewer_steps_and_starts_from_the_weights(warm: Run, trained: Run) -> None:
    assert (warm.recipe.steps, warm.recipe.distill.steps) == (6, 1)
    start, before = warm.starting_model(), trained.model()
    rows = [trained.dataset.catalog.index[item] for item in warm.item_ids if item in trained.dataset.catalog.index]
    kept = [row for row, item in enumerate(warm.item_ids) if item in trained.dataset.catalog.index]
    assert torch.equal(start.item_tower.identity.weight[kept], before.item_tower.identity.weight[rows])
    assert torch.equal(start.encoder[0].norm1.weight, before.encoder[0].norm1.weight)
    assert not torch.equal(warm.model().encoder[0].norm1.weight, before.encoder[0].norm1.weight)


def test_a_warm_run_is_measured_beside_its_base_on_the_orders_since(warm: Run, tiny_release: Release) -> None:
    metrics = evaluate_warm(warm)
    assert metrics["base"] == tiny_release.release_id
    assert metrics["orders"] > 0
    for name in (DISTILLED, GENERATIVE, "retrieval, rescored"):
        assert metrics["models"][name] != metrics["models"][BEFORE + name]
    assert metrics["unseen"] == {}
    before = Run.opened(warm.path / "before", warm.dataset_path)
    state = before.fresh_model()
    state.load_state_dict(Base(warm.path / "base").model_state(state.state_dict(), warm.item_ids))
    by_hand = evaluate(before, rankers=released_rankers(state.eval(), before))["models"][DISTILLED]
    assert metrics["models"][BEFORE + DISTILLED] == by_hand
    assert metrics["orders"] == metrics["models"][DISTILLED]["all"]["orders"]


def test_a_warm_run_without_an_order_since_its_base_has_nothing_to_measure(warm: Run, tmp_path: Path) -> None:
    run = Run.warm(tmp_path / "run", warm.dataset_path, based(tmp_path / "run", warm))
    run.train_all()
    assert evaluate_warm(run)["models"] == {}


def based(path: Path, run: Run) -> Recipe:
    """Give the folder `path` a base that is a finished run; return the recipe of a training anew."""
    recipe = replace(recipe_named("tiny", text_encoder=run.recipe.text_encoder))
    weights = {"model": run.model().state_dict(), "rqvae": run.rqvae().state_dict()}
    facts = Facts("run", recipe, run.test_start_ms, run.semantic_ids().codebook_sizes)
    write_base(path, facts, run.item_ids, run.published_ids, weights)
    return recipe


def test_a_base_grows_where_more_items_share_a_text_than_there_are_suffixes(trained: Run, tmp_path: Path) -> None:
    recipe = based(tmp_path / "run", trained)
    shop = write_tiny_shop(tmp_path / "shop")
    items = pd.read_csv(shop / "items.csv")
    twins = pd.concat([items.iloc[:1].assign(item_id=f"twin-{number}") for number in range(40)])
    pd.concat([items, twins]).to_csv(shop / "items.csv", index=False)
    run = Run.warm(tmp_path / "run", shop, recipe)
    run.embed_items()
    run.fit_semantic_ids()
    assert run.semantic_ids().codebook_sizes[-1] > trained.semantic_ids().codebook_sizes[-1]
    start = run.starting_model()
    old = trained.model().code_heads[-1].weight
    assert torch.equal(start.code_heads[-1].weight[: len(old)], old)


def test_a_refit_knows_the_whole_log_and_keeps_every_id(trained: Run, tmp_path: Path) -> None:
    alone = Run(tmp_path / "run", trained.dataset_path, trained.recipe)
    alone.train_all()
    assert alone.released is alone
    alone.refitted()
    with pytest.raises(NotFoundError, match=r"metrics\.json does not exist yet"):
        _ = alone.released
    refit = alone.refit()
    (refit.path / "metrics.json").write_text("{}")
    assert alone.released.path == refit.path
    assert refit.test_start_ms > refit.dataset.time_E.max()
    assert len(refit.training_log.time_E) == len(alone.dataset.time_E) > len(alone.training_log.time_E)
    assert refit.published_ids == alone.published_ids
    assert refit.warm_runs == 0


@pytest.mark.parametrize("change", [{"text_encoder": "other"}, {"rqvae": RqVaeRecipe(codebook_size=9)}, {"rqvae": PCA}])
def test_ids_by_other_settings_would_move(
    tiny_release: Release, trained: Run, tmp_path: Path, change: dict[str, object]
) -> None:
    base_on_release(tmp_path / "run", tiny_release)
    with pytest.raises(InvalidInputError, match=r"they would move\. Train without --after; .* needs --retokenize"):
        Run(tmp_path / "run", trained.dataset_path, replace(trained.recipe, **change))  # type: ignore[arg-type]


def test_weights_of_other_sizes_are_refused(tiny_release: Release, trained: Run, tmp_path: Path) -> None:
    base_on_release(tmp_path / "run", tiny_release)
    run = Run.warm(tmp_path / "run", trained.dataset_path, replace(trained.recipe, width=24))
    run.embed_items()
    run.fit_semantic_ids()
    with pytest.raises(InvalidInputError, match=r"has other weights \(.*\): train anew"):
        run.train_dual_head()


def test_a_warm_run_needs_a_base_and_a_base_a_release_that_says_until_when(
    tiny_release: Release, trained: Run, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match="there are no weights to start from"):
        Run.warm(tmp_path / "run", trained.dataset_path, trained.recipe)
    manifest = {name: value for name, value in tiny_release.manifest.items() if name != "trained_until_ms"}
    older = base_on_release(tmp_path / "older", replace(tiny_release, manifest=manifest))
    assert older.published_ids == tiny_release.published_ids
    with pytest.raises(InvalidInputError, match="does not say until when it was trained: train anew"):
        Run.warm(tmp_path / "older", trained.dataset_path, trained.recipe)
    assert not (tmp_path / "older" / "recipe.json").exists()
    assert Run(tmp_path / "older", trained.dataset_path, trained.recipe).base == older


def test_a_run_that_has_begun_takes_no_other_base(tiny_release: Release, trained: Run, tmp_path: Path) -> None:
    other = replace(tiny_release, manifest={**tiny_release.manifest, "release_id": "r2"})
    base_on_release(tmp_path / "run", tiny_release)
    assert base_on_release(tmp_path / "run", other).facts.name == "r2"  # nothing was made of the first
    Run(tmp_path / "run", trained.dataset_path, trained.recipe)
    assert base_on_release(tmp_path / "run", other).facts.name == "r2"
    with pytest.raises(InvalidInputError, match=f"begun with r2, not with {tiny_release.release_id}"):
        base_on_release(tmp_path / "run", tiny_release)
    Run(tmp_path / "alone", trained.dataset_path, trained.recipe)
    with pytest.raises(InvalidInputError, match="begun without a base"):
        base_on_release(tmp_path / "alone", tiny_release)


def test_several_processes_may_write_the_base_of_one_training(tiny_release: Release, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        bases = list(pool.map(lambda _: base_on_release(tmp_path / "run", tiny_release), range(8)))
    assert {base.facts.name for base in bases} == {tiny_release.release_id}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["base"]


def test_ids_that_others_were_given_are_taken_over_unless_somebody_has_them(
    tiny_release: Release, tmp_path: Path
) -> None:
    own_id, own_codes = next(iter(tiny_release.published_ids.items()))
    more = {"first": (0, 0, 15), "second": (0, 0, 15), "third": own_codes, own_id: (0, 0, 14)}
    found = base_on_release(tmp_path / "run", tiny_release, more).published_ids
    assert found == {**tiny_release.published_ids, "first": (0, 0, 15)}


def test_releases_with_the_same_codebooks_are_known_by_them(trained: Run, warm: Run, tiny_release: Release) -> None:
    assert quantiser_of(trained.rqvae().state_dict()) == quantiser_of(warm.rqvae().state_dict())
    assert tiny_release.manifest["quantiser"] == quantiser_of(trained.rqvae().state_dict())
    other = RqVae(16, 1, trained.recipe.rqvae)
    assert quantiser_of(other.state_dict()) != tiny_release.manifest["quantiser"]
