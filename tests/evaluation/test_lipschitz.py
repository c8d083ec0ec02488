import math

import pytest
import torch
from torch.nn import functional as F

from distill.evaluation import lipschitz
from distill.evaluation.lipschitz import (
    MIN_DISTANCE,
    Pairs,
    ascend,
    lipschitz_bounds,
    log_ratio,
)
from distill.losses.von_mises_fisher import mean_cosine

CPU = torch.device("cpu")
SIDE, DIM, KAPPA = 4, 6, 10.0
PIXELS = 3 * SIDE**2
ROUNDING = 1e-5


def images(number: int = 20, low: float = 0.2, high: float = 0.8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return low + (high - low) * torch.rand(number, 3, SIDE, SIDE, generator=generator)


def matrix() -> torch.Tensor:
    return torch.randn(DIM, PIXELS, generator=torch.Generator().manual_seed(1))


def linear(weight: torch.Tensor):
    return lambda x: x.flatten(1) @ weight.T


def angle(slope: float):
    """Return f = (cos a, sin a) with tan a = slope t, fastest, at `slope`, where t = 0.

    t is the coordinate of an image along a unit direction whose signs alternate, so that it is 0
    for some images inside the cube.
    """
    direction = torch.tensor([-1.0, 1.0]).repeat(PIXELS // 2) / math.sqrt(PIXELS)

    def encode(x):
        t = x.flatten(1) @ direction
        return F.normalize(torch.stack([torch.ones_like(t), slope * t], dim=1))

    return encode


def bounds(encode, x, **options) -> dict[str, float]:
    return lipschitz_bounds(encode, x, kappa=KAPPA, device=CPU, **options)


def test_a_linear_map_is_bounded_by_its_spectral_norm_and_ascent_gets_there():
    weight = matrix()
    true = float(torch.linalg.matrix_norm(weight.double(), 2))
    found = bounds(linear(weight), images())
    assert found["lipschitz_sampled"] < 0.8 * true
    assert 0.98 * true <= found["lipschitz_ascended"] <= true * (1 + ROUNDING)


def test_ascent_stays_between_0_and_1_where_the_steepest_direction_leaves():
    weight = matrix()
    seen = []

    def encode(x):
        seen.append((float(x.detach().min()), float(x.detach().max())))
        return linear(weight)(x)

    true = float(torch.linalg.matrix_norm(weight.double(), 2))
    found = bounds(
        encode, torch.ones(3, 3, SIDE, SIDE) * torch.tensor([0.0, 1.0, 0.5])[:, None, None, None]
    )
    assert min(low for low, _ in seen) >= 0
    assert max(high for _, high in seen) <= 1
    assert found["lipschitz_ascended"] <= true * (1 + ROUNDING)


def position(x: torch.Tensor) -> torch.Tensor:
    """Return t of images, in float64, see `angle`."""
    signs = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(PIXELS // 2)
    return x.double().flatten(1) @ signs / math.sqrt(PIXELS)


def largest(x: torch.Tensor, slope: float, power: int) -> float:
    """Return the largest ratio of images x to any x' on a fine grid of t."""
    t = position(x)[:, None]
    other = torch.linspace(-3, 3, 60_001, dtype=torch.float64)
    apart = (t - other).abs()
    turn = (slope * t).atan() - (slope * other).atan()
    change = 2 * (turn / 2).sin().abs()
    return float((change**power / apart)[apart >= MIN_DISTANCE].reshape(-1).max())


@pytest.mark.parametrize("slope", [0.5, 3.0])
def test_ascent_finds_the_steepest_way_from_an_image_on_a_curve(slope: float):
    x = images()
    x[:, 1::2] += 0.15  # away from t = 0, where f is fastest
    found = bounds(angle(slope), x)
    true = largest(x, slope, 1)
    assert true < slope
    assert found["lipschitz_ascended"] > 1.01 * found["lipschitz_sampled"]
    assert 0.97 * true <= found["lipschitz_ascended"] <= true * (1 + 1e-4)


def test_ascent_finds_the_largest_divergence_on_a_curve():
    x, slope = images(), 3.0
    found = bounds(angle(slope), x)
    true = KAPPA * mean_cosine(2, KAPPA) * largest(x, slope, 2) / 2
    assert found["kl_lipschitz_sampled"] < found["kl_lipschitz_ascended"]
    assert 0.97 * true <= found["kl_lipschitz_ascended"] <= true * (1 + 1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_ascent_never_ends_below_what_was_drawn(seed: int):
    torch.manual_seed(seed)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(DIM)
    )
    x = images(7, 0, 1)
    found = bounds(lambda x: F.normalize(network(x)), x, seed=seed, batch_size=3)
    assert 0 < found["lipschitz_sampled"] < found["lipschitz_ascended"]
    assert 0 < found["kl_lipschitz_sampled"] < found["kl_lipschitz_ascended"]


def test_every_image_meets_as_many_others():
    x = torch.arange(30.0).view(30, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    met = [
        (int(i), int(j))
        for first, second, f_first, f_second in lipschitz._distinct(x, 2 * x, 7, generator)
        for i, j in zip(first, second, strict=True)
        if torch.equal(f_first, 2 * first) and torch.equal(f_second, 2 * second)
    ]
    assert len(met) == len(set(met)) == 30 * lipschitz.NUM_PARTNERS
    assert all(i != j for i, j in met)
    few = lipschitz._distinct(x[:4], x[:4], 2, generator)
    assert sum(len(first) for first, *_ in few) == 4 * 3  # all there are


def test_what_is_drawn_is_at_least_the_largest_ratio_between_the_images():
    encode, x = angle(1.0), images(4)
    found, f = bounds(encode, x), encode(x)
    pairs = [(i, j) for i in range(4) for j in range(i)]
    changes = [float((f[i] - f[j]).norm() / (x[i] - x[j]).norm()) for i, j in pairs]
    assert found["lipschitz_sampled"] >= max(changes) * (1 - ROUNDING)
    kls = [float((1 - f[i] @ f[j]) / (x[i] - x[j]).norm()) for i, j in pairs]
    factor = KAPPA * mean_cosine(2, KAPPA)
    assert found["kl_lipschitz_sampled"] >= factor * max(kls) * (1 - 1e-4)


def test_a_seed_fixes_the_result_and_another_draws_others():
    encode, x = linear(matrix()), images()
    assert bounds(encode, x, seed=3) == bounds(encode, x, seed=3)
    assert bounds(encode, x, seed=3) != bounds(encode, x, seed=4)


def test_the_number_of_images_in_a_pass_does_not_matter():
    encode, x = linear(matrix()[:, :27]), images()[..., :3, :3]
    few, many = (bounds(encode, x, batch_size=size) for size in (3, 20))
    assert few == pytest.approx(many, rel=1e-5)


def test_a_constant_map_does_not_change():
    found = bounds(lambda x: 0 * x.flatten(1)[:, :2] + torch.tensor([1.0, 0.0]), images(3))
    assert max(found.values()) < 1e-9


def test_pairs_that_are_too_close_do_not_count():
    x = images(2)
    close, apart = x.clone(), x.clone()
    close[:, 0, 0, 0] += 0.9 * MIN_DISTANCE
    apart[:, 0, 0, 0] += 1.1 * MIN_DISTANCE
    f = torch.eye(2)
    assert log_ratio(x, close, f, -f, power=1).tolist() == [-math.inf] * 2
    expected = math.log(2 / (1.1 * MIN_DISTANCE))
    assert log_ratio(x, apart, f, -f, power=1).tolist() == pytest.approx([expected] * 2, rel=1e-4)


def test_a_jump_is_climbed_no_closer_than_the_least_distance():
    def encode(x):  # as steep as rounding would be: 1e4 between two neighboring grays
        t = (1e4 * (x.flatten(1).mean(1) - 0.5)).tanh()
        return torch.stack([t, 1 - t], dim=1)

    found = bounds(encode, images())
    assert found["lipschitz_ascended"] <= 2 * math.sqrt(2) / MIN_DISTANCE * (1 + 1e-3)


def test_noise_keeps_its_norm_at_the_edges_of_the_cube():
    x = torch.randint(0, 2, (5, 3, SIDE, SIDE)).float()
    noisy = lipschitz._with_noise(x, 0.2, torch.Generator().manual_seed(0))
    assert 0 <= float(noisy.min()) <= float(noisy.max()) <= 1
    torch.testing.assert_close((noisy - x).flatten(1).norm(dim=1), torch.full((5,), 0.2))


def test_ascent_raises_every_pair_that_can_rise():
    weight, x = matrix(), images(10)
    second = x.roll(1, 0)
    starts = Pairs(x, second, log_ratio(x, second, *map(linear(weight), (x, second)), power=1))
    reached = ascend(linear(weight), starts, power=1)
    assert (reached.score > starts.score).all()
    again = log_ratio(
        reached.first,
        reached.second,
        linear(weight.double())(reached.first.double()),
        linear(weight.double())(reached.second.double()),
        power=1,
    )
    torch.testing.assert_close(reached.score, again, atol=1e-4, rtol=0)
