"""The batched distortions against operations that go through one image pixel by pixel."""

import colorsys
import math
from itertools import permutations, product

import numpy as np
import pytest
import torch

from distill.data import distortions as distortions_module
from distill.data.distortions import Distortion, DistortionRanges, distort, draw_distortions

UNCHANGED = {"brightness": 0, "contrast": 1, "saturation": 1, "hue": 0, "order": 0, "gray": 0}
UNCHANGED |= {"sigma": 0, "solarize": 0}
STRONG = DistortionRanges(0.9, 0.5, 0.6, 0.7, 0.4, 0.2, (0.8, 0.5), (0.1, 2.0), (0.3, 0.6))


def of_pixels(change):
    """Make an operation on an image, float64 (3, S, S), of one on a pixel (red, green, blue)."""
    return lambda image, amount: np.apply_along_axis(change, 0, image, amount)


def change_saturation(pixel, factor):
    hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
    return colorsys.hsv_to_rgb(hue, min(saturation * factor, 1), value)


def change_hue(pixel, turns):
    hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
    return colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)


def plain_contrast(image, factor):
    means = [channel.mean() for channel in image]
    return np.stack([mean + factor * (c - mean) for c, mean in zip(image, means, strict=True)])


def plain_blur(image, sigma):
    size = image.shape[-1]
    radius = max(size // 10 // 2, 1)
    result = np.empty_like(image)
    for y, x in product(range(size), repeat=2):
        weights = {
            (v, u): math.exp(-((v - y) ** 2 + (u - x) ** 2) / (2 * sigma**2))
            for v in range(max(y - radius, 0), min(y + radius + 1, size))
            for u in range(max(x - radius, 0), min(x + radius + 1, size))
        }
        total = sum(weights.values())
        result[:, y, x] = sum(w * image[:, v, u] for (v, u), w in weights.items()) / total
    return result


JITTERS = {
    "brightness": lambda image, amount: image + amount,
    "contrast": plain_contrast,
    "saturation": of_pixels(change_saturation),
    "hue": of_pixels(change_hue),
}
REST = {
    "gray": of_pixels(
        lambda pixel, _: [0.2989 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]] * 3
    ),
    "sigma": plain_blur,
    "solarize": of_pixels(lambda pixel, _: [x if x < 0.5 else 1 - x for x in pixel]),
}


def plain_distort(image, row):
    """Distort uint8 (3, S, S) by one row of parameters (P,)."""
    amounts = dict(zip(UNCHANGED, row.tolist(), strict=True))
    order = list(permutations(JITTERS))[int(amounts["order"])]
    result = image.numpy() / 255
    for name in (*order, *REST):
        if amounts[name] != UNCHANGED[name]:
            result = np.clip({**JITTERS, **REST}[name](result, amounts[name]), 0, 1)
    return torch.from_numpy(result)


def parameters(*rows):
    return torch.tensor([Distortion(**{**UNCHANGED, **row}).values() for row in rows]).float()


def noise(num_images, size, seed=0):
    """Random images whose first pixels are gray, black, white and pure or half-mixed colors."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_images, 3, size, size)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    special = torch.tensor(list(product((0, 128, 255), repeat=3)), dtype=torch.uint8)
    count = min(len(special), size * size)
    images.view(num_images, 3, -1)[:, :, :count] = special[:count].T
    return images


def draws(num_images, view=0, seed=0, ranges=STRONG):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.stack([draw_distortions(ranges)[view] for _ in range(num_images)])


@pytest.mark.parametrize(
    ("name", "amounts"),
    [
        ("brightness", (-0.4, 0.3, 1)),
        ("contrast", (0, 0.6, 1.4)),
        ("saturation", (0, 0.8, 1.2, 3)),
        ("hue", (-0.5, -0.1, 0.07, 0.4)),
        ("gray", (1,)),
        ("sigma", (0.1, 0.6, 2)),
        ("solarize", (1,)),
    ],
)
@pytest.mark.parametrize("size", [7, 40])
def test_each_operation_is_the_plain_one(name, amounts, size):
    images = noise(len(amounts), size)
    rows = parameters(*({name: amount} for amount in amounts))
    result = distort(images, rows)
    for ours, image, row in zip(result, images, rows, strict=True):
        torch.testing.assert_close(ours, plain_distort(image, row).float(), rtol=0, atol=1e-5)
        assert not torch.equal(ours, image / 255)


def test_every_order_is_honored():
    strong = {"brightness": 0.3, "contrast": 1.4, "saturation": 0.6, "hue": 0.1}
    rows = parameters(*[{**strong, "order": order} for order in range(24)])
    images = noise(1, 6).expand(24, -1, -1, -1)
    result = distort(images, rows)
    for ours, image, row in zip(result, images, rows, strict=True):
        torch.testing.assert_close(ours, plain_distort(image, row).float(), rtol=0, atol=1e-5)
    # Saturation and hue commute where they meet, in 6 pairs of orders; no other two do.
    flat = result.flatten(1)
    same = torch.cdist(flat, flat, p=torch.inf) < 1e-3
    assert same.sum() == 24 + 2 * 6


@pytest.mark.parametrize("view", [0, 1])
def test_random_distortions_are_the_plain_operations_one_after_the_other(view):
    images, rows = noise(60, 8), draws(60, view)
    result = distort(images, rows)
    assert (result.min(), result.max()) == (0, 1)
    assert torch.equal(images, noise(60, 8))  # left alone
    for ours, image, row in zip(result, images, rows, strict=True):
        torch.testing.assert_close(ours, plain_distort(image, row).float(), rtol=0, atol=2e-5)


def test_nothing_drawn_changes_nothing():
    images = noise(3, 9)
    result = distort(images, parameters({}, {"order": 13}, {}))
    assert result.dtype == torch.float32
    assert torch.equal(result, images / 255)
    assert distort(images[:0], torch.empty(0, 8)).shape == (0, 3, 9, 9)
    assert distort(torch.empty((0, 3, 0, 0), dtype=torch.uint8), torch.empty(0, 0)).numel() == 0


@pytest.mark.parametrize("cached", [1, 3 * 8 * 8 * 7, 2**20])
def test_a_row_does_not_depend_on_the_others(cached, monkeypatch):
    images, rows = noise(40, 8), draws(40)
    whole = distort(images, rows)
    monkeypatch.setattr(distortions_module, "_CACHED_VALUES", cached)
    torch.testing.assert_close(distort(images, rows), whole, rtol=0, atol=1e-6)
    chosen = torch.tensor([31, 4, 17])
    torch.testing.assert_close(
        distort(images[chosen], rows[chosen]), whole[chosen], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(("size", "taps"), [(2, 2), (8, 3), (29, 3), (40, 5), (64, 7), (224, 23)])
def test_the_blur_is_as_wide_as_published_and_leaves_edges_bright(size, taps):
    images = torch.zeros((2, 3, size, size), dtype=torch.uint8)
    images[0, :, size // 2, size // 2] = 255
    images[1] = 200
    point, flat = distort(images, parameters({"sigma": 50}, {"sigma": 2}))
    assert (point[0] > 0).sum() == taps**2
    torch.testing.assert_close(flat, torch.full_like(flat, 200 / 255))


def test_draws_stay_in_their_ranges_and_reach_their_ends():
    ranges = DistortionRanges(1.0, 0.4, 0.3, 0.2, 0.1, 0.5, (1.0, 1.0), (0.5, 2.0), (0.5, 0.5))
    drawn = Distortion(*draws(2000, ranges=ranges).unbind(1))
    assert drawn.brightness.dtype == torch.float32
    for column, low, high in (
        (drawn.brightness, -0.4, 0.4),
        (drawn.contrast, 0.7, 1.3),
        (drawn.saturation, 0.8, 1.2),
        (drawn.hue, -0.1, 0.1),
        (drawn.sigma, 0.5, 2.0),
    ):
        quarters = torch.histc(column, 4, low, high)
        assert quarters.sum() == 2000
        assert (quarters - 500).abs().max() < 100
    counts = torch.bincount(drawn.order.long(), minlength=24)
    assert len(counts) == 24
    assert 45 < counts.min() < counts.max() < 130


def test_what_is_drawn_is_independent():
    ranges = DistortionRanges(0.5, 0.4, 0.3, 0.2, 0.1, 0.5, (0.5, 0.5), (0.1, 2.0), (0.5, 0.5))
    drawn = Distortion(*draws(2000, ranges=ranges).unbind(1))
    columns = [*drawn.values(), drawn.hue != 0]
    columns[list(UNCHANGED).index("sigma")] = drawn.sigma > 0
    correlations = torch.corrcoef(torch.stack([column.float() for column in columns]))
    assert correlations.triu(1).abs().max() < 0.1


def test_a_draw_takes_as_many_numbers_whatever_the_ranges():
    states = []
    for ranges in (STRONG, DistortionRanges(0.0, 0.0, 0.0)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            draw_distortions(ranges)
            states.append(torch.get_rng_state())
    assert torch.equal(*states)
