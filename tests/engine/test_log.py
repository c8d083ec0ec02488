import json
from pathlib import Path

from distill.engine.log import RunLog


def test_lines_after_the_checkpoint_are_replaced_not_doubled(tmp_path: Path):
    log = RunLog(tmp_path)
    for step in range(1, 6):
        log.write(step, {"epoch": 0, "loss": float(step)})
    log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed while it wrote
    again = RunLog(tmp_path, step=3)
    again.write(4, {"epoch": 0, "loss": 40.0})
    again.close()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1), (2, 2), (3, 3), (4, 40)]


def test_tensorboard_gets_the_same_numbers(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path)
    log.write(1, {"epoch": 0, "event": "x", "loss": 0.5})
    log.write(2, {"epoch": 0, "loss": 0.25})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.5), (2, 0.25)]
