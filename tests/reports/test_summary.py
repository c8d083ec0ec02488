from distill.reports.summary import comparison_rows, is_share, other_rows, summary_rows, words

METRICS = {
    "teacher_nn_accuracy": 0.95,
    "teacher_cluster_alignment": 0.5,
    "untrained_nn_accuracy": 0.3,
    "untrained_cluster_alignment": 0.2,
    "train_seconds": 34.5,
    "num_steps": 12_345,
    "lipschitz_sampled": 0.9,
    "nn_accuracy": 0.66,
    "cluster_alignment": 0.75,
    "teacher_robustness_error": 0.25,
    "robustness_error": 0.5,
    "nmi": 0.7125,
    "measure_definition": "words",
}


def texts(row):
    return [number.text for number in row.numbers]


def best(row):
    return [number.is_best for number in row.numbers]


def test_the_summary_sets_student_against_teacher_and_untrained_student():
    rows = summary_rows(METRICS)
    assert [row.label for row in rows] == [
        "Nearest neighbor accuracy",
        "Cluster alignment",
        "Robustness error",
    ]
    assert texts(rows[0]) == ["95.0%", "66.0%", "30.0%"]
    assert best(rows[0]) == [True, False, False]
    assert best(rows[1]) == [False, True, False]


def test_a_number_without_company_is_not_the_best_and_less_error_is_better():
    rows = {row.label: row for row in summary_rows({**METRICS, "linear_accuracy": 0.7125})}
    assert texts(rows["Linear accuracy"]) == ["-", "71.2%", "-"]
    assert best(rows["Linear accuracy"]) == [False, False, False]
    assert texts(rows["Robustness error"]) == ["25.0%", "50.0%", "-"]
    assert best(rows["Robustness error"]) == [True, False, False]


def test_equal_numbers_are_all_the_best_or_none():
    row = summary_rows({"teacher_nn_accuracy": 0.5, "nn_accuracy": 0.5})[0]
    assert best(row) == [False, False, False]
    row = summary_rows(
        {"teacher_nn_accuracy": 0.5, "nn_accuracy": 0.5, "untrained_nn_accuracy": 0.1}
    )[0]
    assert best(row) == [True, True, False]


def test_what_is_written_alike_is_no_difference():
    runs = [{"nn_accuracy": 0.83912}, {"nn_accuracy": 0.83941}]
    (row,) = comparison_rows(runs)
    assert texts(row) == ["83.9%", "83.9%"]
    assert best(row) == [False, False]
    (row,) = comparison_rows([*runs, {"nn_accuracy": 0.5}])
    assert best(row) == [True, True, False]


def test_numbers_of_a_row_are_written_in_one_way():
    (row,) = comparison_rows([{"mce": 0.95}, {"mce": 1.05}])
    assert texts(row) == ["0.95", "1.05"]
    assert best(row) == [True, False]


def test_other_numbers_are_written_as_they_are():
    rows = {row.label: texts(row) for row in other_rows(METRICS)}
    assert rows == {
        "Train seconds": ["34.5"],
        "Number of steps": ["12,345"],
        "Lipschitz sampled": ["0.9"],
        "NMI": ["71.2%"],
    }


def test_several_runs_side_by_side():
    rows = comparison_rows(
        [METRICS, {"nn_accuracy": 0.7, "train_seconds": 10, "untrained_nn_accuracy": 0.1}]
    )
    by_label = {row.label: row for row in rows}
    assert texts(by_label["Nearest neighbor accuracy"]) == ["66.0%", "70.0%"]
    assert best(by_label["Nearest neighbor accuracy"]) == [False, True]
    assert best(by_label["Train seconds"]) == [False, False]
    assert best(by_label["Nearest neighbor accuracy, untrained"]) == [False, False]
    assert texts(by_label["Nearest neighbor accuracy, teacher"]) == ["95.0%", "-"]
    assert [row.label for row in rows][:3] == [
        "Nearest neighbor accuracy, teacher",
        "Nearest neighbor accuracy",
        "Nearest neighbor accuracy, untrained",
    ]


def test_what_is_a_share_and_what_only_looks_like_one():
    assert is_share("linear_accuracy", 0.5)
    assert is_share("nn_accuracy_k20", 1.0)
    assert is_share("clean_gap", -0.1)
    assert not is_share("lipschitz_sampled", 0.5)
    assert not is_share("accuracy_seconds", 30.0)
    assert not is_share("remapping", 0.5)


def test_truth_values_and_words_are_no_numbers():
    assert summary_rows({"nn_accuracy": True, "cluster_alignment": "high"}) == []


def test_words():
    assert words("teacher_nn_accuracy_k20") == "Nearest neighbor accuracy k = 20, teacher"
    assert words("voc_map") == "VOC mAP"
    assert words("map") == "mAP"


def test_numbers_of_other_data_name_it():
    assert words("linear_accuracy@Flower_Photos") == "Linear accuracy on Flower_Photos"
    assert words("teacher_robustness_gap@Flowers") == "Robustness gap on Flowers, teacher"
    assert is_share("linear_accuracy@Flower_Photos", 0.5)
    assert not is_share("num_steps@error", 0.5)


def test_numbers_of_neighbors_are_in_their_order():
    names = ("nn_accuracy_k20", "nn_accuracy_k5_ivf", "voc_detection_map", "nn_accuracy_k5")
    assert [row.label for row in other_rows(dict.fromkeys(names, 0.5))] == [
        "Nearest neighbor accuracy k = 5",
        "Nearest neighbor accuracy k = 5 IVF",
        "Nearest neighbor accuracy k = 20",
        "VOC detection mAP",
    ]
    strange = {f"nn_accuracy_k{'9' * 5000}": 0.5, "nn_accuracy_k007": 0.5, "nn_accuracy_k²": 0.5}
    assert "007" in other_rows(strange)[0].label
