from distill.reports.summary import comparison_rows, other_rows, summary_rows

METRICS = {
    "teacher_nn_accuracy": 0.95,
    "teacher_cluster_alignment": 0.5,
    "untrained_nn_accuracy": 0.3,
    "untrained_cluster_alignment": 0.2,
    "train_seconds": 34.5,
    "num_steps": 12_345,
    "nn_accuracy": 0.66,
    "cluster_alignment": 0.75,
    "teacher_surprise": 0.25,
    "surprise": 0.5,
    "cluster_nmi": 0.7125,
    "measure_definition": "words",
    "is_flag": True,
}


def texts(row):
    return [text for text, _ in row.cells]


def best(row):
    return [is_best for _, is_best in row.cells]


def test_the_summary_sets_the_student_against_teacher_and_untrained_student():
    first, second, unknown = summary_rows(METRICS)
    assert (first.name, texts(first)) == ("nn_accuracy", ["95.0%", "66.0%", "30.0%"])
    assert first.meaning.startswith("share of the validation images that get their own class")
    assert best(first) == [True, False, False]
    assert (second.name, best(second)) == ("cluster_alignment", [False, True, False])
    assert (unknown.name, unknown.meaning) == ("surprise", "")
    assert texts(unknown) == ["0.25", "0.5", "-"]
    assert best(unknown) == [False, False, False]


def test_a_number_without_company_is_not_the_best():
    (row,) = summary_rows({"nn_accuracy": 0.7125})
    assert texts(row) == ["-", "71.2%", "-"]
    assert best(row) == [False, False, False]


def test_what_is_written_alike_is_no_difference():
    runs = [{"nn_accuracy": 0.83912}, {"nn_accuracy": 0.83941}]
    (row,) = comparison_rows(runs)
    assert texts(row) == ["83.9%", "83.9%"]
    assert best(row) == [False, False]
    (row,) = comparison_rows([*runs, {"nn_accuracy": 0.5}])
    assert best(row) == [True, True, False]


def test_other_numbers_are_written_by_their_unit():
    rows = {row.name: texts(row) for row in other_rows(METRICS)}
    assert rows == {"train_seconds": ["34.5"], "num_steps": ["12,345"], "cluster_nmi": ["71.2%"]}


def test_several_runs_side_by_side():
    second = {"nn_accuracy": 0.7, "train_seconds": 10, "untrained_nn_accuracy": 0.1}
    rows = comparison_rows([METRICS, second])
    by_name = {row.name: row for row in rows}
    assert texts(by_name["nn_accuracy"]) == ["66.0%", "70.0%"]
    assert best(by_name["nn_accuracy"]) == [False, True]
    assert best(by_name["train_seconds"]) == [False, True]  # less is better
    assert best(by_name["untrained_nn_accuracy"]) == [False, False]
    assert texts(by_name["teacher_nn_accuracy"]) == ["95.0%", "-"]
    names = ["teacher_nn_accuracy", "nn_accuracy", "untrained_nn_accuracy"]
    assert [row.name for row in rows][:3] == names


def test_numbers_of_other_data_name_it():
    (row,) = comparison_rows([{"nn_accuracy@Flowers": 0.5}])
    assert row.meaning.endswith("on Flowers")
    assert texts(row) == ["50.0%"]


def test_rows_are_in_the_order_of_their_numbers():
    names = ("nn_accuracy_k20", "nn_accuracy_k5_weighted", "cluster_nmi", "nn_accuracy_k5")
    rows = [row.name for row in other_rows(dict.fromkeys(names, 0.5))]
    expected = ["cluster_nmi", "nn_accuracy_k5", "nn_accuracy_k5_weighted", "nn_accuracy_k20"]
    assert rows == expected
    strange = {f"nn_accuracy_k{'9' * 5000}": 0.5, "nn_accuracy_k007": 0.5, "nn_accuracy_k²": 0.5}
    assert "007" in other_rows(strange)[0].name
