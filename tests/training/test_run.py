"""How a run goes on: from its own checkpoint alone."""

from types import SimpleNamespace

import pytest

from distill.config import RunOptions
from distill.errors import DistillError
from distill.run_directory import RunDirectory
from distill.training.checkpoints import About, Progress, save_checkpoint
from distill.training.configuration import TrainConfig, identity
from distill.training.run import restore


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    run = RunDirectory(tmp_path / "run", resume=False)
    config = TrainConfig(run=RunOptions(resume=True))
    about = About(run={**identity(config), "seed": 7, "device": "cuda"})
    save_checkpoint(run.checkpoints, Progress(step=3), {}, about=about)
    message = (
        r"step-000000003\.\w+ is of another run: --seed is 7 in the checkpoint and 0 in the run\. "
    )
    with pytest.raises(DistillError, match=message):
        restore(SimpleNamespace(config=config), run, state=None)
