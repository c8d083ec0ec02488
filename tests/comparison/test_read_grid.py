from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distill.comparison.cells import asked_options, budget_of, cells_of, selected
from distill.comparison.grid import Grid
from distill.comparison.read_grid import parse_grid, read_grid
from distill.errors import DistillError

SMALL: dict[str, Any] = {
    "data": "digits",
    "common": {"epochs": 2, "batch_size": 64, "image_size": 32},
    "teachers": ["pixels"],
    "students": ["resnet18", "alexnet"],
    "seeds": [3, 4],
    "methods": {"one": None, "two queues": {"variant": "two-queue-momentum"}},
}


def grid(**changes: Any) -> Grid:
    return parse_grid({**SMALL, **changes}, source="grid g.yaml")


def refusal(**changes: Any) -> str:
    with pytest.raises(DistillError) as error:
        cells_of(grid(**changes))
    message = str(error.value)
    assert message.startswith("grid g.yaml")
    assert "\n" not in message
    return message


def test_the_runs_are_all_combinations_seed_by_seed():
    cells = cells_of(grid())
    assert [(c.seed, c.student, c.method.name) for c in cells] == [
        (seed, student, method)
        for seed in (3, 4)
        for student in ("resnet18", "alexnet")
        for method in ("one", "two queues")
    ]
    assert cells[1].name == "two-queues--resnet18--pixels--seed3"
    assert cells[1].options == {
        **{"data": "digits", "epochs": 2, "batch_size": 64, "image_size": 32},
        **{"teacher": "pixels", "student": "resnet18", "seed": 3},
        "variant": "two-queue-momentum",
    }
    assert all(budget_of(cell) == budget_of(cells[0]) for cell in cells)


def test_later_layers_lie_over_earlier_ones():
    cells = cells_of(
        grid(
            students=["alexnet"],
            seeds=[0],
            common={"epochs": 1, "learning_rate": 1.0, "temperature": 1.0, "weight_decay": 1.0},
            per_student={"alexnet": {"learning_rate": 2.0, "temperature": 2.0, "momentum": 0.5}},
            methods={
                "m": {"learning-rate": 3.0, "per_student": {"alexnet": {"learning_rate": 4.0}}}
            },
        )
    )
    options = cells[0].options
    found = [options[n] for n in ("weight_decay", "temperature", "learning_rate", "momentum")]
    assert found == [1.0, 2.0, 4.0, 0.5]


@pytest.mark.parametrize("option", ["epochs", "batch_size", "image_size", "data", "holdout"])
@pytest.mark.parametrize("where", ["method", "per_student", "of method", "tune"])
def test_what_decides_the_budget_stands_under_common_alone(option, where):
    value = {"data": "digits", "holdout": 0.1}.get(option, 4)
    sets = {option: value}
    changes = {
        "method": {"methods": {"m": sets}},
        "per_student": {"per_student": {"alexnet": sets}},
        "of method": {"methods": {"m": {"per_student": {"alexnet": sets}}}},
        "tune": {"tune": {option: [value]}},
    }[where]
    message = refusal(**changes)
    assert f"sets {option}: it decides the budget; set it under common" in message


def test_a_recipe_cannot_give_a_method_another_budget():
    message = refusal(methods={"ours": {}, "theirs": {"recipe": "published"}})
    assert "holdout is 0.05 for 'ours' and 0.0 for 'theirs' by its recipe" in message
    common = {**SMALL["common"], "holdout": 0.1}
    cells = cells_of(grid(common=common, methods={"ours": {}, "theirs": {"recipe": "published"}}))
    assert asked_options(cells[1], {})["optimizer"] == "sgd"
    assert budget_of(cells[1])["epochs"] == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methds": {}}, "unknown option 'methds': did you mean 'methods'?"),
        ({"methods": {"m": {"learning_rte": 1}}}, "did you mean 'learning_rate'"),
        ({"methods": {"m": {"temperature": "warm"}}}, "the value 'warm'; allowed: a number"),
        ({"methods": {"m": {"variant": "three"}}}, "allowed: two-queue-momentum"),
        ({"methods": {"m": {"seed": 1}}}, "list seeds under seeds"),
        ({"methods": {"m": {"teacher": "pixels"}}}, "list it under teachers"),
        ({"methods": {"m": {"output": "x"}}}, "every run has a directory of its own"),
        ({"methods": {"m": {"reference": 1}}}, "give true or false"),
        ({"methods": {"m": 3}}, "is 3; write a mapping"),
        ({"methods": {}}, "needs methods"),
        ({"methods": {"a b": {}, "a-b": {}}}, "would share the run directory"),
        ({"common": {"epoch": 1}}, "did you mean 'epochs'"),
        ({"common": {"data": "digits"}}, "gives data twice"),
        ({"common": {"student": "resnet18"}}, "list it under students"),
        ({"common": {"seed": 1}}, "list seeds under seeds"),
        ({"students": []}, "needs students, a list of names such as [resnet18]; it is []"),
        ({"students": "resnet18"}, "needs students, a list of names such as [resnet18]; it is 'r"),
        ({"students": ["alexnet", "alexnet"]}, "lists 'alexnet' twice under students"),
        ({"teachers": None}, "needs teachers, a list of names such as [timm:resnet50]; there is"),
        ({"teachers": [{"teacher_weights": "x"}]}, "write a name, or a mapping"),
        ({"teachers": [{"teacher": "pixels", "weights": "x"}]}, "unknown option 'weights'"),
        ({"seeds": [0, 0]}, "lists 0 twice under seeds"),
        ({"seeds": 3}, "give a list of whole numbers"),
        ({"per_student": {"resnet8": {}}}, "did you mean 'resnet18'"),
        ({"tune": {"learning_rate": 0.1}}, "give a list of values"),
        ({"tune": {"learning_rate": [0.1, 0.1]}}, "twice"),
        ({"tune": {"learning_rate": [0.001, "1e-3"]}}, "lists a value of learning_rate twice"),
        ({"tune-epochs": 1, "tune_epochs": 2}, "twice, with hyphens and with underscores"),
        ({"common": {"batch-size": 1, "batch_size": 2}}, "common gives an option twice"),
        ({"tune": {"learning_rate": ["x"]}}, "allowed: a number"),
        ({"tune": {"learning_rate": [1, 2, 3, 4]}}, "by 4 runs"),
        ({"tune": {"learning_rate": [1, 2], "weight_decay": [0, 1]}}, "3 are allowed"),
        ({"tune": {"temperature": [1]}, "common": {"holdout": 0}}, "set tune_holdout"),
        ({"tune_epochs": 0}, "give a positive number"),
        ({"linear": "yes"}, "give true or false"),
    ],
)
def test_mistakes_are_one_sentence(changes, words):
    assert words in refusal(**changes)


def test_tuning_runs_come_first_and_cells_know_them():
    cells = cells_of(
        grid(
            students=["alexnet"],
            tune={"learning_rate": [0.1, "1e-2"]},
            tune_epochs=1,
            tune_holdout=0.2,
            methods={
                "tuned": {},
                "fixed": {"learning_rate": 0.5},
                "own": {"tune": {"temperature": [1.0, 2.0]}},
                "fixed for alexnet": {"per_student": {"alexnet": {"learning_rate": 1.0}}},
            },
        )
    )
    tuning = [cell for cell in cells if cell.tuning is not None]
    assert cells[: len(tuning)] == tuning
    assert [(c.method.name, c.tuning) for c in tuning] == [
        ("tuned", {"learning_rate": 0.1}),
        ("tuned", {"learning_rate": "1e-2"}),
        ("own", {"temperature": 1.0}),
        ("own", {"temperature": 2.0}),
    ]
    assert {(c.seed, c.options["epochs"], c.options["holdout"]) for c in tuning} == {(3, 1, 0.2)}
    by_method = {cell.method.name: cell for cell in cells if cell.tuning is None}
    assert by_method["tuned"].tuned_by == tuple(cell.name for cell in tuning[:2])
    assert by_method["tuned"].options["epochs"] == 2
    assert by_method["fixed"].tuned_by == by_method["fixed for alexnet"].tuned_by == ()


def test_a_pattern_selects_runs_and_the_tuning_that_they_need():
    cells = cells_of(grid(methods={"a": {"tune": {"temperature": [1, 2]}}, "b": {}}))
    found = [cell.name for cell in selected(cells, "a--alexnet*seed4")]
    assert found == [
        "a--alexnet--pixels--tune-temperature-1",
        "a--alexnet--pixels--tune-temperature-2",
        "a--alexnet--pixels--seed4",
    ]
    assert selected(cells, None) == cells
    with pytest.raises(DistillError, match="--only nothing matches none of 12 runs"):
        selected(cells, "nothing")


def test_teachers_have_names_and_weights(tmp_path: Path):
    file = tmp_path / "grid.yaml"
    file.write_text(
        "teachers: [pixels, {name: own, teacher: r50x4, teacher_weights: w.pth}]\n"
        "students: [resnet18]\nmethods: {m: {}}\n"
    )
    cells = cells_of(read_grid(file))
    assert [cell.teacher for cell in cells] == ["pixels", "own"]
    assert cells[1].options["teacher_weights"] == "w.pth"
    with pytest.raises(DistillError, match="cannot be read"):
        read_grid(tmp_path / "absent.yaml")
