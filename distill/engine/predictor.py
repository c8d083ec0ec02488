"""What a student is trained through and what is dropped after training.

`linear` is the layer of CompRess's one-queue variant, which brings the student to the teacher's
width. `mlp` puts a hidden layer twice as wide as the student's embedding in between, as the
predictors of later regression methods do (Navaneet et al., SimReg, BMVC 2021, which has two such):
the embedding below need not be a linear picture of the teacher's. Its BatchNorm is synchronized
over ranks with the student's.
"""

from __future__ import annotations

from torch import nn

PREDICTORS = ("none", "linear", "mlp")


def build_predictor(kind: str, embedding_dim: int, width: int) -> nn.Module | None:
    """Return the layers after the student, (B, embedding_dim) -> (B, width), or None for none.

    Args:
        kind: One of `PREDICTORS`.
        embedding_dim: D of the student.
        width: What comes out; 0 for no layers, which `mlp` cannot be asked for.
    """
    assert kind in PREDICTORS
    assert width > 0 or kind != "mlp"
    if kind == "none" or width == 0:
        return None
    if kind == "linear":
        return nn.Linear(embedding_dim, width)
    hidden = 2 * embedding_dim
    return nn.Sequential(
        nn.Linear(embedding_dim, hidden, bias=False),  # BatchNorm has one
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, width),
    )
