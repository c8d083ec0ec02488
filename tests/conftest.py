"""Small image folders that many tests share, and the start of several processes."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from distill.terminal import log_to_console

if not torch.cuda.is_available():  # read when Triton is imported, which torch itself does not
    os.environ.setdefault("TRITON_INTERPRET", "1")
log_to_console()
torch.set_num_threads(1)  # two test processes share two cores

ORACLES = Path(__file__).parent / "oracles"
TOOLS = Path(__file__).parents[1] / "tools"
ZYGOTE = Path(__file__).parent / "zygote.py"
TIMEOUT = 300.0  # seconds, for all ranks together; a busy machine takes a minute
GRACE = 2.0  # seconds for the others to say what they died of, once one has failed
TINY_STUDENT = "timm:test_resnet"  # 0.5 M parameters, embeds 32 px images in a millisecond


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep what tests cache out of the person's own cache folder; return the one they use."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["DISTILL_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def oracles() -> Path:
    """Folder of what the original programs computed."""
    return ORACLES


@pytest.fixture(scope="module")
def tool() -> Iterator[Callable[[str], ModuleType]]:
    """Return a function that imports a program by name, as `python tools/NAME.py` finds it."""
    before = list(sys.path)
    sys.path.insert(0, str(TOOLS))  # programs import what they share from their own folder
    yield importlib.import_module
    sys.path[:] = before


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes `train/` and `val/` class folders of colored 24 px images.

    Classes differ in hue, images of a class in noise, so that even pixels find their neighbors.
    """

    def make(
        name: str = "photos", *, num_train: int = 12, num_val: int = 4, classes: int = 3
    ) -> Path:
        rng = np.random.default_rng(0)
        root = tmp_path / name
        for split, number in (("train", num_train), ("val", num_val)):
            for label in range(classes if number else 0):
                folder = root / split / f"class{label}"
                folder.mkdir(parents=True)
                for i in range(number):
                    pixels = rng.integers(0, 60, size=(24, 24, 3))
                    pixels[..., label % 3] += 150
                    Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:03d}.png")
        return root

    return make


class Zygote:
    """Starts processes by forking `tests/zygote.py`, which has imported everything."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([sys.executable, str(ZYGOTE)], env=environment, **pipes)

    def ask(self, **request: Any) -> Any:
        """Return the answer to a request, see `tests/zygote.py`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End the program; what it has forked goes on."""
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="session")
def zygote(cache: Path) -> Iterator[Zygote]:
    """Return what starts processes at once."""
    started = Zygote()
    yield started
    started.close()


class Ranks:
    """Several processes that train one network, as torchrun starts them (CPU, gloo)."""

    def __init__(self, zygote: Zygote, folder: Path, world_size: int) -> None:
        self._zygote, self._folder, self._world_size = zygote, folder, world_size
        # As under torchrun, the store lies with the parent: a port that it chose cannot be taken.
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def run(self, **request: Any) -> list[str]:
        """Let every rank do what a request to the zygote says; return what each has printed.

        When a rank fails, or the ranks take too long, the test fails with what they printed.
        """
        outputs = [self._folder / f"rank-{rank}.txt" for rank in range(self._world_size)]
        ranks = [
            self._zygote.ask(**request, output=str(output), env=self._environment(rank))
            for rank, output in enumerate(outputs)
        ]
        statuses = self._wait(ranks)
        printed = [output.read_text(errors="replace") for output in outputs]
        if any(status != 0 for status in statuses):
            parts = [
                f"--- rank {rank}: exit status {status} (None: still running)\n{text}"
                for rank, (status, text) in enumerate(zip(statuses, printed, strict=True))
            ]
            pytest.fail("of the ranks, some failed or took too long\n" + "\n".join(parts))
        return printed

    def _environment(self, rank: int) -> dict[str, str]:
        return {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self._world_size),
            "LOCAL_WORLD_SIZE": str(self._world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }

    def _wait(self, ranks: list[int]) -> list[int | None]:
        end = time.monotonic() + TIMEOUT
        while True:
            statuses = [self._zygote.ask(poll=rank) for rank in ranks]
            if all(status is not None for status in statuses):
                return statuses
            if any(statuses):
                end = min(end, time.monotonic() + GRACE)
            if time.monotonic() > end:
                for rank, status in zip(ranks, statuses, strict=True):
                    if status is None:
                        os.killpg(rank, signal.SIGKILL)
                return statuses
            time.sleep(0.01)


@pytest.fixture
def run_ranks(zygote: Zygote, tmp_path: Path) -> Callable[..., list[Any]]:
    """Return a function that runs `function(*args)` on several ranks (CPU, gloo, one thread each).

    `run_ranks(function, world_size, *args)` returns the results in the order of the ranks. The
    function stands at the top level of a test file; arguments and results can be pickled.
    """

    def run(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
        task = (inspect.getfile(function), function.__name__, args)
        (tmp_path / "task.pickle").write_bytes(pickle.dumps(task))
        Ranks(zygote, tmp_path, world_size).run(folder=str(tmp_path))
        results = [tmp_path / f"result-{rank}.pickle" for rank in range(world_size)]
        return [pickle.loads(result.read_bytes()) for result in results]

    return run


@pytest.fixture
def run_command_on_ranks(zygote: Zygote, tmp_path: Path) -> Callable[..., list[str]]:
    """Return a function that runs `distill ARGV...` on several ranks.

    `run_command_on_ranks(world_size, *argv)` returns what each rank has printed.
    """

    def run(world_size: int, *argv: str) -> list[str]:
        for old in tmp_path.glob("rank-*.txt"):
            old.unlink()
        return Ranks(zygote, tmp_path, world_size).run(argv=list(argv))

    return run


@pytest.fixture
def make_pretraining_run(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes what a finished pre-training run of a tiny network leaves."""
    import safetensors.torch

    from distill.config import flattened
    from distill.models.weights import save_network
    from distill.run_directory import RunDirectory
    from distill.training.configuration import PretrainConfig, with_options
    from teachers.pretraining import build_heads
    from teachers.resnet import backbone_name, build_backbone

    follows_method = {
        "simclr": {},
        "byol": {"regression_weight": 5.0},
        "c-simclr": {"kappa_e": 1024.0, "beta": 1.0},
        "c-byol": {"kappa_e": 16384.0, "beta": 1.0, "regression_weight": 5.0},
    }

    def make(name: str = "run", *, method: str = "c-byol", seed: int = 0, **options: Any) -> Path:
        tiny = {"width": 0.125, "stem": "small", "image_size": 16, "data": "digits"}
        heads = {"hidden_dim": 8, "projection_dim": 6, "method": method, **follows_method[method]}
        config = with_options(PretrainConfig(), {**tiny, **heads, **options}, source="the test")
        run = RunDirectory(tmp_path / name, resume=False)
        run.write_config(config, command="pretrain")
        torch.manual_seed(seed)
        backbone = backbone_name(config.backbone.arch, width=config.backbone.width, stem="small")
        network = build_backbone(backbone, image_size=config.images.image_size)
        save_network(network, run.backbone)
        tensors = build_heads(flattened(config), network.embedding_dim).state_dict()
        run.heads.write_bytes(safetensors.torch.save(tensors))
        run.close()
        return run.path

    return make


@pytest.fixture
def make_voc(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes a VOC folder of noise with one to three colored squares each.

    Classes are colors. Every fifth image has one difficult square more. It returns VOCdevkit.
    """
    colors = {"blue": (30, 30, 240), "green": (30, 220, 30), "red": (240, 30, 30)}

    def make(name: str = "VOCdevkit", *, num_train: int = 12, num_test: int = 6) -> Path:
        rng = np.random.default_rng(0)
        root = tmp_path / name / "VOC2007"
        for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (root / part).mkdir(parents=True)
        for split, number in (("trainval", num_train), ("test", num_test)):
            names = [f"{split}{i:03d}" for i in range(number)]
            (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
            for i, one in enumerate(names):
                pixels = rng.integers(90, 130, size=(64, 96, 3)).astype(np.uint8)
                # The first images show every class once in turn, so that none is missing.
                kinds = [i % 3, *rng.integers(0, 3, size=int(rng.integers(0, 2)))]
                objects = ""
                for place, kind in enumerate([*kinds, *([i % 3] if i % 5 == 4 else [])]):
                    color = list(colors)[kind]
                    side = int(rng.integers(20, 28))
                    x = 2 + 31 * place + int(rng.integers(0, 30 - side))
                    y = int(rng.integers(1, 64 - side))
                    pixels[y - 1 : y - 1 + side, x - 1 : x - 1 + side] = colors[color]
                    objects += (
                        f"<object><name>{color}</name><difficult>{int(place >= len(kinds))}"
                        f"</difficult><bndbox><xmin>{x}</xmin><ymin>{y}</ymin>"
                        f"<xmax>{x + side - 1}</xmax><ymax>{y + side - 1}</ymax></bndbox></object>"
                    )
                Image.fromarray(pixels).save(root / "JPEGImages" / f"{one}.png")
                annotation = f"<annotation><filename>{one}.png</filename>{objects}</annotation>"
                (root / "Annotations" / f"{one}.xml").write_text(annotation)
        return root.parent

    return make
