"""The benchmark of few-pixel convolutions runs, both ways."""


def test_a_line_for_every_layer_and_student(tool, capsys):
    argv = ["--batch-size", "2", "--repeat", "1", "--layers", "1", "--students", "1"]
    assert tool("bench_few_pixels").main(argv) == 0
    layer, student = capsys.readouterr().out.splitlines()[1:]
    assert layer.startswith("512 -> 512, 1 px, / 1")
    assert student.startswith("resnet18, 32 px, a step")
    plain, product, ratio = map(float, layer.split()[-3:])
    assert abs(ratio - plain / product) < 0.05 * ratio + 0.01
