import base64
import io

import numpy as np
import pytest
from PIL import Image

from distill.reports.charts import MAX_CELLS, heat_map


def test_cells_of_a_small_table_carry_their_share():
    shares = np.array([[0.9, 0.1, 0.0], [0.004, 0.5, 0.496]])
    figure = heat_map(shares, ["cluster 3", "cluster 0"], ["cat", "dog", "a very long class name"])
    assert [(cell.row, cell.column, cell.text) for cell in figure.cells] == [
        (0, 0, "90"),
        (0, 1, "10"),
        (1, 1, "50"),
        (1, 2, "50"),
    ]
    assert [cell.share for cell in figure.cells] == [0.9, 0.1, 0.5, 0.496]
    assert figure.columns[2] == "a very long c…"
    assert figure.picture is None
    assert figure.is_turned
    assert figure.width > figure.left + 3 * figure.cell
    assert "cluster 3 cat 90%" in figure.description
    assert "cluster 0 dog 50%" in figure.description


def test_middling_tables_have_cells_without_numbers():
    names = [str(n) for n in range(MAX_CELLS)]
    figure = heat_map(np.eye(MAX_CELLS), names, names)
    assert len(figure.cells) == MAX_CELLS
    assert {cell.text for cell in figure.cells} == {""}
    assert not figure.is_turned


def test_a_large_table_is_a_transparent_picture_with_a_pixel_a_cell():
    size = MAX_CELLS + 1
    shares = np.zeros((size, size))
    shares[3, 7], shares[0, 0] = 1.0, 0.25
    names = [str(n) for n in range(size)]
    figure = heat_map(shares, names, names)
    assert figure.cells == ()
    assert figure.picture is not None
    assert figure.cell * size == pytest.approx(600)
    data = base64.b64decode(figure.picture.removeprefix("data:image/png;base64,"))
    with Image.open(io.BytesIO(data)) as image:
        alpha = np.asarray(image)[..., 3]
    assert alpha.shape == (size, size)
    assert (alpha[3, 7], alpha[0, 0], int(alpha.sum())) == (255, 128, 383)
