from pathlib import Path

import pytest
from PIL import Image

from distill.errors import DistillError
from distill.evaluation import measure
from distill.evaluation.measure import MeasureResult, plot_sweep, require_plot_path


def point(method, beta, residual, lipschitz) -> MeasureResult:
    numbers = {"residual_information": residual, "lipschitz_ascended": lipschitz}
    return MeasureResult(
        {}, path=Path(), method=method, beta=beta, definition=None, numbers=numbers
    )


POINTS = [
    *(point("c-byol", beta, 3 - beta, 2 - beta) for beta in (1.0, 0.01, 0.1)),
    point("c-byol", 1.0, 1.0, 0.5),
    point("c-byol", 0.0, 3.5, 2.5),
    point("simclr", None, 4.0, 3.0),
]


def drawn(points: list[MeasureResult], name: str = "residual_information"):
    """Return the axes of one panel."""
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    measure._draw(axes, points, name)
    return axes


def test_a_picture_of_a_sensible_size(tmp_path: Path):
    plot_sweep(POINTS, tmp_path / "sweep.png")
    with Image.open(tmp_path / "sweep.png") as image:
        assert image.width >= 1000
        assert image.height >= 500
        colors = {color for _, color in image.convert("RGB").getcolors(image.width * 2000)}
    assert {(0, 0x72, 0xB2), (0xD5, 0x5E, 0)} <= colors
    plot_sweep(POINTS, tmp_path / "sweep.SVG")
    assert "<svg" in (tmp_path / "sweep.SVG").read_text()


def test_the_curve_runs_through_the_mean_of_each_beta_in_order():
    axes = drawn(POINTS)
    assert axes.get_xscale() == "log"
    curve = next(line for line in axes.lines if line.get_label() == "c-byol")
    assert list(curve.get_xdata()) == [0.01, 0.1, 1.0]
    assert list(curve.get_ydata()) == pytest.approx([2.99, 2.9, 1.5])
    lipschitz = next(
        line for line in drawn(POINTS, "lipschitz_ascended").lines if line.get_label() == "c-byol"
    )
    assert list(lipschitz.get_ydata()) == pytest.approx([1.99, 1.9, 0.75])


def test_runs_without_a_beta_and_with_0_are_dashed_levels():
    lines = {line.get_label(): line for line in drawn(POINTS).lines}
    assert list(lines["simclr"].get_ydata()) == [4.0, 4.0]
    assert list(lines["c-byol, beta 0"].get_ydata()) == [3.5, 3.5]
    assert lines["simclr"].is_dashed()
    assert lines["c-byol, beta 0"].get_color() == lines["c-byol"].get_color()
    assert lines["simclr"].get_color() != lines["c-byol"].get_color()


def test_only_runs_without_a_beta(tmp_path: Path):
    plot_sweep(POINTS[-1:], tmp_path / "levels.png")
    assert (tmp_path / "levels.png").stat().st_size > 10_000


def test_units_are_written_on_the_axes(tmp_path: Path, monkeypatch):
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none"}):
        plot_sweep(POINTS, tmp_path / "sweep.svg")
    text = (tmp_path / "sweep.svg").read_text()
    for words in ("nats, without the constant", "pixels in [0, 1]", "beta, weight of", "simclr"):
        assert words in text


def test_paths_that_are_refused(tmp_path: Path):
    with pytest.raises(DistillError, match=r"must end in .png or .svg"):
        require_plot_path(tmp_path / "sweep.jpg")
    with pytest.raises(DistillError, match="there is no folder"):
        require_plot_path(tmp_path / "absent" / "sweep.png")
