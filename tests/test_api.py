"""The public calls name exactly the options that there are, and `import distill` stays light."""

from __future__ import annotations

import inspect
import logging
import subprocess
import sys
from dataclasses import fields

import pytest

import distill
from distill.comparison.compare import CompareOptions
from distill.config import CacheConfig, option_names
from distill.errors import DistillError
from distill.evaluation.base import EVALUATIONS, EvaluationOptions
from distill.exports.export import ExportOptions
from distill.losses import METHODS, CompRess
from distill.reports.report import ReportOptions
from distill.training.configuration import PretrainConfig, TrainConfig
from distill.training.objects import split_objects
from teachers.convert import ConvertOptions


def names(options: type) -> set[str]:
    return {option.name for option in fields(options)}


@pytest.mark.parametrize(
    ("call", "options", "others"),
    [
        (
            distill.train,
            set(option_names(TrainConfig())) - names(CompRess.Options),
            {"callbacks", "data_key", "method_options"},
        ),
        (distill.pretrain, set(option_names(PretrainConfig())), {"callbacks", "data_key"}),
        (distill.cache, set(option_names(CacheConfig())), {"data_key"}),
        (
            distill.evaluate,
            names(EvaluationOptions),
            {"name", "run", "module", "evaluation_options"},
        ),
        (distill.measure, names(EVALUATIONS.get("measure").Options), {"run", "module"}),
        (distill.compare, names(CompareOptions), {"grid"}),
        (distill.report, names(ReportOptions), {"runs"}),
        (distill.export, names(ExportOptions), {"run", "module"}),
        (distill.convert, names(ConvertOptions), set()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_call_names_the_options_that_there_are(call, options, others):
    assert set(inspect.signature(call).parameters) == options | others


def test_what_is_not_given_is_shown_as_dots():
    assert "epochs: 'int | None' = ...," in str(inspect.signature(distill.train))


def test_every_public_name_is_there_and_documented():
    for name in distill.__all__:
        assert name == "NOT_GIVEN" or inspect.getdoc(getattr(distill, name))


@pytest.mark.parametrize("name", ["evaluate_nn", "evaluate_voc", "make_report", "no_such_name"])
def test_names_that_are_gone_say_what_to_call(name):
    instead = {"make_report": "distill.report", "no_such_name": "has no attribute"}
    with pytest.raises(AttributeError, match=instead.get(name, r"call distill.evaluate\(")):
        getattr(distill, name)


def test_options_of_a_method_are_an_object_or_keywords():
    options, _ = split_objects({"method": CompRess.Options(temperature=0.05), "epochs": 3})
    assert (options["method"], options["temperature"], options["epochs"]) == ("compress", 0.05, 3)
    with pytest.raises(DistillError, match="belong to no method"):
        split_objects({"method": EvaluationOptions()})
    assert len({loss.Options for _, loss in METHODS.items()}) == len(list(METHODS))


def test_importing_distill_is_light():
    code = (
        "import sys, distill\n"
        "heavy = {'torch', 'torchvision', 'triton', 'faiss', 'timm'}\n"
        "heavy |= {'numpy', 'pydantic', 'tyro', 'PIL'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_calls_speak_on_the_console_unless_logging_is_configured(monkeypatch):
    toolkit = logging.getLogger("distill")
    monkeypatch.setattr(toolkit, "handlers", [])
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler()])
    distill._given({})
    assert not toolkit.handlers
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    distill._given({})
    assert len(toolkit.handlers) == 1
