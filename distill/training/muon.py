"""What the optimizers of this package share: a step is made group by group.

Muon: convolution kernels move by steps whose singular values are all alike, the rest by AdamW.

Source: Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024, whose momentum
with Nesterov's correction is orthogonalized by five Newton-Schulz iterations of the quintic
polynomial with the coefficients below. They bring singular values between about 0.7 and 1.2, not
to 1, which costs nothing and spares iterations. A gradient of few large directions, such as what
all images have in common, then no longer drowns the many small ones.

Departures: the length of a step is a share of the kernel's own norm, as in LARS, so that one
learning rate suits kernels of any scale, with and without normalization behind them. Linear layers
stay with AdamW: of a convolutional network they are the last, and two of AlexNet's would take
longer to orthogonalize than the network takes for its images. So do depthwise kernels, whose
channels have nothing to do with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw


class GroupOptimizer(torch.optim.Optimizer):
    """An optimizer that says how the parameters of one group move."""

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """Move every parameter that has a gradient; return what `closure` returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            if moved:
                self._step_group(group, moved)
        return loss

    def _step_group(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """Move parameters that have a gradient, at least one."""
        raise NotImplementedError

    def _velocity(self, parameter: Tensor) -> Tensor:
        """Return the momentum buffer of a parameter, zeros at first."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


KERNEL_RATE = 40.0
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_BETAS, _EPSILON = (0.9, 0.999), 1e-8
_LEAST_NORM = 0.01  # by the square root of the channels: a kernel of zeros moves, too


def is_kernel(parameter: nn.Parameter) -> bool:
    """Say whether a parameter is the kernel of a convolution over more than one channel."""
    return parameter.ndim > 2 and parameter.shape[1] > 1


class Muon(GroupOptimizer):
    """Moves `kernels` by orthogonalized momentum and `others` by AdamW.

    For every kernel W, as a matrix of output channels by the rest, and its gradient G:

        M <- momentum M + G
        W <- (1 - rate weight_decay) W - rate |W| O / |O|,  O = orthogonalized(G + momentum M)

    with rate = 40 times the learning rate and Frobenius norms.

    Args:
        others: Groups of parameters as for AdamW; groups may be empty.
        kernels: Parameters of two or more dimensions, the first one the output channels.
        lr: Learning rate of AdamW.
        momentum: In [0, 1).
        weight_decay: Decoupled, of both.
        in_bf16: Orthogonalize in bfloat16, as published, where the hardware multiplies in it.
    """

    def __init__(
        self,
        others: Iterable[dict[str, Any]],
        kernels: list[nn.Parameter],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        in_bf16: bool = False,
    ) -> None:
        # PyTorch keeps the steps of groups called fused on the device when it loads a state.
        defaults = {"lr": lr, "weight_decay": weight_decay, "orthogonal": False, "fused": True}
        of_kernels = {"params": kernels, "orthogonal": True, "lr": KERNEL_RATE * lr}
        super().__init__([*others, of_kernels], defaults)
        self._momentum, self._in_bf16 = momentum, in_bf16

    def _step_group(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        if not group["orthogonal"]:
            self._step_adamw(group, parameters)
            return
        for kernel in parameters:
            self._move(kernel, group)

    def _step_adamw(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "step": torch.zeros((), device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        states = [self.state[parameter] for parameter in parameters]
        beta1, beta2 = _BETAS
        adamw(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=_EPSILON,
            maximize=False,
        )

    def _move(self, kernel: Tensor, group: dict[str, Any]) -> None:
        gradient = kernel.grad
        assert gradient is not None
        velocity = self._velocity(kernel).mul_(self._momentum).add_(gradient)
        wanted = gradient.add(velocity, alpha=self._momentum)
        # Channels last, as convolutions keep them: the order of columns does not matter.
        rows = wanted.movedim(1, -1)
        step = orthogonalized(rows.flatten(1), in_bf16=self._in_bf16).view_as(rows).movedim(-1, 1)
        length = kernel.norm().clamp_min(_LEAST_NORM * len(kernel) ** 0.5)
        kernel.mul_(1 - group["lr"] * group["weight_decay"])
        kernel.addcmul_(step, length / step.norm().clamp_min(1e-12), value=-group["lr"])


def orthogonalized(matrix: Tensor, *, in_bf16: bool = False) -> Tensor:
    """Bring the singular values of a matrix near 1; those of a matrix of zeros stay 0.

    Args:
        matrix: (m, n) float32 or float64, of any scale.
        in_bf16: Multiply in bfloat16, to about 1 % of the result.

    Returns:
        (m, n), of the same dtype.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    start = matrix.mT if is_tall else matrix
    start = start / start.norm().clamp_min(1e-12)
    found = _iterated(start.bfloat16()).to(matrix.dtype) if in_bf16 else _by_gram(start)
    return found.mT if is_tall else found


def _iterated(start: Tensor) -> Tensor:
    """Iterate X <- (a + b X X^T + c (X X^T)^2) X; each step mends the rounding of those before."""
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = start @ start.mT
        start = torch.addmm(start, torch.addmm(gram, gram, gram, beta=b, alpha=c), start, beta=a)
    return start


def _by_gram(start: Tensor) -> Tensor:
    """Do the same in a third of the time, where rounding is small.

    With G_k = X_k X_k^T what multiplies X_k is a polynomial of G_k, which commutes with it, so that
    G_k+1 and the product of all polynomials need no X. Kernels are several times wider than high,
    and only the first and the last product are as wide. In bfloat16 G would get negative
    eigenvalues, which grow.
    """
    a, b, c = _COEFFICIENTS
    gram = start @ start.mT
    product = None
    for iteration in range(_ITERATIONS):
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal().add_(a)
        product = polynomial if product is None else polynomial @ product
        if iteration + 1 < _ITERATIONS:
            gram = polynomial @ gram @ polynomial
    assert product is not None
    return product @ start
