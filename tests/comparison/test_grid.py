from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distill.comparison.grid import parse_grid, read_grid
from distill.comparison.trial import Trial, make_trials, matching, require_equal_budgets
from distill.errors import DistillError

SMALL: dict[str, Any] = {
    "data": "digits",
    "common": {"epochs": 2, "batch_size": 64, "image_size": 32},
    "teachers": ["pixels"],
    "students": ["resnet18", "alexnet"],
    "seeds": [3, 4],
    "methods": {"one": None, "two queues": {"variant": "two-queue-momentum"}},
}


def trials_of(**changes: Any) -> list[Trial]:
    trials = make_trials(parse_grid({**SMALL, **changes}, source="grid g.yaml"))
    require_equal_budgets(trials.values(), "grid g.yaml")
    return list(trials.values())


def refusal(**changes: Any) -> str:
    with pytest.raises(DistillError) as error:
        trials_of(**changes)
    assert str(error.value).startswith("grid g.yaml")
    return str(error.value)


def test_the_trials_are_all_combinations_seed_by_seed():
    trials = trials_of()
    assert [(trial.seed, trial.student, trial.method.name) for trial in trials] == [
        (seed, student, method)
        for seed in (3, 4)
        for student in ("resnet18", "alexnet")
        for method in ("one", "two queues")
    ]
    assert trials[1].name == "two-queues--resnet18--pixels--seed3"
    assert trials[1].options == {
        **{"data": "digits", "epochs": 2, "batch_size": 64, "image_size": 32},
        **{"teacher": "pixels", "student": "resnet18", "seed": 3},
        "variant": "two-queue-momentum",
    }


def test_later_layers_lie_over_earlier_ones():
    (trial,) = trials_of(
        students=["alexnet"],
        seeds=[0],
        common={"epochs": 1, "learning_rate": 1.0, "temperature": 1.0, "weight_decay": 1.0},
        per_student={"alexnet": {"learning_rate": 2.0, "temperature": 2.0, "sgd_momentum": 0.5}},
        methods={"m": {"learning-rate": 3.0, "per_student": {"alexnet": {"learning_rate": 4.0}}}},
    )
    names = ("weight_decay", "temperature", "learning_rate", "sgd_momentum")
    assert [trial.options[name] for name in names] == [1.0, 2.0, 4.0, 0.5]


@pytest.mark.parametrize("option", ["epochs", "batch_size", "image_size", "data", "holdout"])
def test_what_decides_the_budget_stands_under_common_alone(option):
    value = {"data": "digits", "holdout": 0.1}.get(option, 4)
    for changes in (
        {"methods": {"m": {option: value}}},
        {"per_student": {"alexnet": {option: value}}},
        {"methods": {"m": {"per_student": {"alexnet": {option: value}}}}},
        {"tune": {option: [value]}},
    ):
        assert f"sets {option}: it decides the budget; set it under common" in refusal(**changes)


def test_a_recipe_cannot_give_a_method_another_budget():
    methods = {"ours": {}, "theirs": {"recipe": "published"}}
    message = refusal(methods=methods)
    assert "holdout is 0.05 for 'ours' and 0.0 for 'theirs' by its recipe" in message
    trials = trials_of(common={**SMALL["common"], "holdout": 0.1}, methods=methods)
    assert trials[1].identity({})["optimizer"] == "sgd"
    assert trials[1].budget() == trials[0].budget()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methds": {}}, "unknown option 'methds': did you mean 'methods'?"),
        ({"methods": {"m": {"learning_rte": 1}}}, "did you mean 'learning_rate'"),
        ({"methods": {"m": {"temperature": "warm"}}}, "the value 'warm'; allowed: a number"),
        ({"methods": {"m": {"seed": 1}}}, "list seeds under seeds"),
        ({"methods": {"m": {"teacher": "pixels"}}}, "list it under teachers"),
        ({"methods": {"m": {"output": "x"}}}, "every run has its own directory"),
        ({"methods": {"m": {"reference": 1}}}, "give true or false"),
        ({"methods": {"m": 3}}, "is 3; write a mapping"),
        ({"methods": {}}, "has the methods {}; give a mapping"),
        ({"methods": {"a b": {}, "a-b": {}}}, "would share the run directory"),
        ({"common": {"data": "digits"}}, "gives data twice"),
        ({"common": {"student": "resnet18"}}, "list it under students"),
        ({"students": []}, "needs students, a list of names such as [resnet18]"),
        ({"students": "resnet18"}, "gives students the value 'resnet18'; allowed: a list"),
        ({"students": ["alexnet", "alexnet"]}, "students lists 'alexnet' twice"),
        ({"teachers": None}, "has the teachers None; give a list of names"),
        ({"teachers": [{"teacher_weights": "x"}]}, "write a name, or a mapping"),
        ({"teachers": [{"teacher": "pixels", "weights": "x"}]}, "unknown option 'weights'"),
        ({"seeds": [0, 0]}, "seeds lists 0 twice"),
        ({"seeds": 3}, "gives seeds the value 3; allowed: a list of whole numbers"),
        ({"per_student": {"resnet8": {}}}, "did you mean 'resnet18'"),
        ({"tune": {"learning_rate": 0.1}}, "give a list of values"),
        ({"tune": {"learning_rate": [0.1, 0.1]}}, "learning_rate lists 0.1 twice"),
        ({"tune": {"learning_rate": ["x"]}}, "allowed: a number"),
        ({"tune": {"learning_rate": [1, 2, 3, 4]}}, "needs 4 tuning runs"),
        ({"tune": {"learning_rate": [1, 2], "weight_decay": [0, 1]}}, "3 are allowed"),
        ({"tune": {"temperature": [1]}, "common": {"holdout": 0}}, "set tune_holdout"),
        ({"tune-epochs": 1, "tune_epochs": 2}, "twice, with hyphens and with underscores"),
        ({"tune_epochs": 0}, "at least 1"),
        ({"linear": "yes"}, "allowed: true, false"),
    ],
)
def test_mistakes_are_one_sentence(changes, words):
    assert words in refusal(**changes)


def test_tuning_runs_come_first_and_trials_know_them():
    trials = trials_of(
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
    tuning = [trial for trial in trials if trial.tuning is not None]
    assert trials[: len(tuning)] == tuning
    assert [(trial.method.name, trial.tuning) for trial in tuning] == [
        ("tuned", {"learning_rate": 0.1}),
        ("tuned", {"learning_rate": "1e-2"}),
        ("own", {"temperature": 1.0}),
        ("own", {"temperature": 2.0}),
    ]
    assert {(t.seed, t.options["epochs"], t.options["holdout"]) for t in tuning} == {(3, 1, 0.2)}
    by_method = {trial.method.name: trial for trial in trials if trial.tuning is None}
    assert by_method["tuned"].tuned_by == tuple(trial.name for trial in tuning[:2])
    assert by_method["tuned"].options["epochs"] == 2
    assert by_method["fixed"].tuned_by == by_method["fixed for alexnet"].tuned_by == ()


def test_a_pattern_selects_trials_and_the_tuning_that_they_need():
    grid = {**SMALL, "methods": {"a": {"tune": {"temperature": [1, 2]}}, "b": {}}}
    trials = make_trials(parse_grid(grid, source="g"))
    assert [trial.name for trial in matching(trials, "a--alexnet*seed4")] == [
        "a--alexnet--pixels--tune-temperature-1",
        "a--alexnet--pixels--tune-temperature-2",
        "a--alexnet--pixels--seed4",
    ]
    assert matching(trials, None) == list(trials.values())
    with pytest.raises(DistillError, match="--only nothing matches none of 12 runs"):
        matching(trials, "nothing")


def test_teachers_have_names_and_weights(tmp_path: Path):
    file = tmp_path / "grid.yaml"
    file.write_text(
        "teachers: [pixels, {name: own, teacher: r50x4, teacher_weights: w.pth}]\n"
        "students: [resnet18]\nmethods: {m: {}}\n"
    )
    first, second = make_trials(read_grid(file)).values()
    assert (first.teacher, second.teacher) == ("pixels", "own")
    assert second.options["teacher_weights"] == "w.pth"
    with pytest.raises(DistillError, match="cannot be read"):
        read_grid(tmp_path / "absent.yaml")


def test_names_of_a_received_grid_stay_in_the_directory():
    evil = "../../../tmp/evil"
    for trial in trials_of(methods={evil: {}, "..": {}}, teachers=[{"name": evil, "teacher": "x"}]):
        assert Path(trial.name).name == trial.name
        assert not trial.name.startswith(".")
