"""What others print for Amazon 2014, 5-core, leave-one-out, full ranking. Not measured here: read off their papers and
repositories, so seeds, filters and rounding are theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

METRICS = ("Recall@5", "NDCG@5", "Recall@10", "NDCG@10")


@dataclass(frozen=True)
class Published:
    """One row of another's table, in the order of METRICS; None: not printed."""

    model: str
    source: str
    values: tuple[float | None, float | None, float | None, float | None]

    @property
    def label(self) -> str:
        """Short, and different for each row."""
        return f"{self.model}: {self.source.split('/')[-1]}" if "reproduced" in self.model else self.model


_TIGER = "arXiv:2305.05065"
_SOFTMAX = "RecSys'25, blondered/transformer_benchmark"
PUBLISHED = {
    "amazon-beauty-literature": (
        Published("SASRec, binary cross-entropy", _TIGER, (0.0387, 0.0249, 0.0605, 0.0318)),
        Published("TIGER", _TIGER, (0.0454, 0.0321, 0.0648, 0.0384)),
        Published("TIGER, reproduced", "PreferredAI/cornac", (0.0419, 0.0270, 0.0634, 0.0338)),
        Published("TIGER, reproduced", "phonism/genrec", (0.0465, 0.0297, 0.0721, 0.0378)),
        Published("LETTER-TIGER", "its paper", (0.0431, 0.0286, 0.0672, 0.0364)),
        Published("LIGER, K = 20", "its paper", (None, None, 0.0745, 0.0402)),
        Published("ActionPiece", "its paper", (0.0511, 0.0340, 0.0775, 0.0424)),
        Published("RPG", "its paper", (0.0550, 0.0381, 0.0809, 0.0464)),
        Published("SASRec, sampled softmax", _SOFTMAX, (None, None, 0.0921, 0.0531)),
        Published("eSASRec", _SOFTMAX, (None, None, 0.0928, 0.0523)),
    ),
    "amazon-sports-literature": (
        Published("SASRec, binary cross-entropy", _TIGER, (0.0233, 0.0154, 0.0350, 0.0192)),
        Published("TIGER", _TIGER, (0.0264, 0.0181, 0.0400, 0.0225)),
        Published("TIGER, reproduced", "PreferredAI/cornac", (0.0240, 0.0155, 0.0394, 0.0204)),
        Published("TIGER, reproduced", "phonism/genrec", (0.0266, 0.0176, 0.0414, 0.0224)),
        Published("LIGER, K = 20", "its paper", (None, None, None, 0.0243)),
        Published("ActionPiece", "its paper", (0.0316, 0.0205, 0.0500, 0.0264)),
        Published("RPG", "its paper", (0.0314, 0.0216, 0.0463, 0.0263)),
        Published("SASRec, sampled softmax", _SOFTMAX, (None, None, 0.0569, 0.0314)),
        Published("eSASRec", _SOFTMAX, (None, None, 0.0560, 0.0323)),
    ),
}
