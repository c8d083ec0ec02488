"""What every self-supervised method returns for a batch."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Outcome(NamedTuple):
    """The loss of a batch and what users read beside it.

    Attributes:
        loss: 0-d, with gradient. Under several ranks that of this rank's rows; the mean over ranks
            is the loss of the global batch.
        logged: 0-d tensors without gradient by name, in nats except `byol_loss`. `i_xzx_y` is the
            residual information I(X;Z|Y) and `i_y_zx` the bound on I(Y;Z), of the first direction;
            `i_yzy_x` and `i_x_zy` of the second; `h_e_zx_x` = -log e and `h_b_zx_y` = -log b.
    """

    loss: Tensor
    logged: dict[str, Tensor]
