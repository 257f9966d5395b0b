"""The design as it was written, all stages of it, on the tiny shop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from baguni.domain.errors import InvalidInputError
from trainer.evaluate import generative_ranker, month_to_predict, retrieval_ranker
from trainer.export import build_release
from trainer.recipes import TeacherRecipe, recipe_named
from trainer.run import Run

SAME = (
    "max_tokens",
    "width",
    "num_heads",
    "feedforward",
    "vector_dim",
    "batch_size",
    "warmup_steps",
    "min_test_orders",
)


@pytest.fixture(scope="module")
def design(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of the design's recipe, as small as the tiny one."""
    tiny, designed = trained.recipe, recipe_named("design")
    recipe = replace(
        designed,
        **{name: getattr(tiny, name) for name in SAME},
        rqvae=replace(tiny.rqvae, distinct=True),
        steps=15,
        num_random_negatives=10,
        teacher=TeacherRecipe(steps=15, num_targets=4),
        distill=replace(designed.distill, steps=4, warmup_steps=1, num_beams=8, num_student=8),
    )
    run = Run(tmp_path_factory.mktemp("design"), trained.dataset_path, recipe)
    run.embed_items()
    run.fit_semantic_ids()
    run.train_dual_head()
    run.train_teacher()
    run.distil()
    return run


def test_every_stage_of_the_design_leaves_a_model_that_ranks(design: Run) -> None:
    batch = next(month_to_predict(design, "first", limit=20).batches())
    for ranker in (
        retrieval_ranker(design.model(distilled=False), design),
        retrieval_ranker(design.model(), design),
        generative_ranker(design.teacher(), design),
    ):
        top = ranker(batch, False)
        assert top.shape == (20, 10)
        assert all(len(set(row)) == 10 for row in top.tolist())


def test_the_teacher_is_a_model_of_its_own(design: Run) -> None:
    teacher, student = design.teacher(), design.model()
    assert teacher.config.decoder_layers == 2 > student.config.decoder_layers
    assert teacher.config.code_attention
    own, other = (dict(model.named_parameters())["encoder.0.attention.out.weight"] for model in (teacher, student))
    assert not np.array_equal(own.detach().numpy(), other.detach().numpy())


def test_a_model_that_gateways_cannot_ask_is_not_released(design: Run, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="reads lines and codes, expected items and text"):
        build_release(design, tmp_path / "release")
    assert not (tmp_path / "release").exists()
