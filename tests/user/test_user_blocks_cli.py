"""A user's block from the command line: nothing of it runs unless the line names it, a search with it, its checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from block_file import BLOCKS

from nas.dataset.builtin import builtin_dataset
from nas.dataset.description import read_dataset

CLI = [sys.executable, "-c", "from nas.cli import main; main()"]
SPACE = """\
skeleton: yolo11n.yaml
blocks: [my_blocks.py]
slots:
  backbone.P5: {block: my_block, width: [0.25, 0.5], depth: 1, heads: [2, 4], my_block: {ratio: [0.5, 1]}}
"""
FAULTY = """
@nas.block(name="faulty")
class Faulty(MyBlock):
    def __init__(self, c1, c2, depth=1):
        super().__init__(c1, c2, depth)
        self.scale = nn.Parameter(torch.ones(c2))

    def forward(self, x):
        return super().forward(x)[..., :7]
"""


class Home:
    """A folder with a space, a block file, a small dataset, and a trace of every run of the block file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.trace, self.file = folder, folder / "trace", folder / "my_blocks.py"
        self.file.write_text(BLOCKS)
        (folder / "space.yaml").write_text(SPACE)
        (folder / "faulty.py").write_text(
            BLOCKS.replace("import os\n", "import os\nimport torch\n").replace("MyBlock", "Its")
            + FAULTY.replace("MyBlock", "Its")
        )
        full = read_dataset(builtin_dataset())
        (folder / "train.txt").write_text("\n".join(map(str, full.train[:40])))
        (folder / "val.txt").write_text("\n".join(map(str, full.val[:10])))
        (folder / "small.yaml").write_text(
            f"path: {folder}\ntrain: train.txt\nval: val.txt\nnames: {json.dumps(list(full.names))}\n"
        )

    def run(self, command: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "TRACE": str(self.trace)}
        line = [*command, *arguments]
        return subprocess.run(line, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=600)

    def nas(self, *arguments: str, code: int = 0) -> str:
        """stdout and stderr of a command that ends with `code`, without a traceback."""
        done = self.run(CLI, *arguments)
        assert done.returncode == code, done.stderr[-3000:]
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def python(self, code: str) -> subprocess.CompletedProcess[str]:
        return self.run([sys.executable, "-c"], code)

    @property
    def ran(self) -> list[str]:
        """The files that have run since the last question."""
        files = self.trace.read_text().splitlines() if self.trace.exists() else []
        self.trace.unlink(missing_ok=True)
        return [str(Path(file).relative_to(self.folder)) for file in files]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("a home"))


@pytest.fixture(scope="module")
def run(home: Home) -> Path:
    """A search of two trials: the skeleton, and one with the block."""
    words = ["--data", "small.yaml", "--imgsz", "32", "--epochs", "1", "--budget", "2trials", "--workers", "1", "--allow-noisy"]
    home.trace.unlink(missing_ok=True)
    home.nas("search", "--space", "space.yaml", "--blocks", "my_blocks.py", *words)
    # the file once, by the search; then the run's copy, by the lane and by the worker
    assert home.ran == ["my_blocks.py", "results/search/blocks/my_blocks.py", "results/search/blocks/my_blocks.py"]
    return home.folder / "results" / "search"


@pytest.fixture(scope="module")
def placed(home: Home, run: Path) -> Path:
    """The model with the block; whether it is the winner, a few microseconds decide."""
    return home.folder / home.nas("export", run.name, "--pick", "1").splitlines()[0]


@pytest.mark.slow
def test_the_exam_from_the_command_line(home: Home) -> None:
    told = home.nas("space", "check", "space.yaml", "--blocks", "my_blocks.py")
    assert "space.yaml: fine; 8 architectures of yolo11n" in told
    assert "MyBlock: fine; " in told
    assert home.ran == ["my_blocks.py"]
    told = home.nas("space", "check", "--blocks", "my_blocks.py", "--blocks", "faulty.py", code=2)
    lines = told.replace("nas: ", "").splitlines()
    assert lines[0] == "Faulty: at 8 x 8 the output is (2, 32, 8, 7), expected (2, 32, 8, 8)"
    assert "my_block.ratio: 0.5, 1" in home.nas("space", "show", "space.yaml", "--blocks", "my_blocks.py")


@pytest.mark.slow
def test_nothing_runs_that_the_command_line_does_not_name(home: Home) -> None:
    home.trace.unlink(missing_ok=True)
    for command in (["space", "check", "space.yaml"], ["space", "show", "space.yaml"], ["search", "--space", "space.yaml"]):
        assert "add --blocks my_blocks.py" in home.nas(*command, code=2)
    assert "nothing to check" in home.nas("space", "check", code=2)
    assert "my_block" in home.nas("search", "--space", "demo", "--blocks", "my_blocks.py", code=2)
    assert home.ran == ["my_blocks.py"]
    faulty = SPACE.replace("my_block", "faulty").replace("my_blocks", "faulty").replace("faultys", "faulty")
    (home.folder / "faulty.yaml").write_text(faulty.replace(", heads: [2, 4], faulty: {ratio: [0.5, 1]}", ""))
    told = home.nas("search", "--space", "faulty.yaml", "--blocks", "faulty.py", "--name", "no", code=2)
    assert "Faulty: at 8 x 8 the output is" in told
    assert not (home.folder / "results" / "no").exists()


@pytest.mark.slow
def test_a_search_places_the_block_and_keeps_its_file(home: Home, run: Path) -> None:
    rows = (run / "trials.csv").read_text().splitlines()
    assert len(rows) == 3
    assert "my_block" in rows[2] and ",done," in rows[2]
    copy = run / "blocks" / "my_blocks.py"
    assert copy.read_text() == BLOCKS
    for number in (0, 1):
        assert "epoch 1 of 1: loss " in (run / "trials" / f"{number:04d}" / "worker.log").read_text()


@pytest.mark.slow
def test_a_run_is_read_without_running_its_code(home: Home, run: Path) -> None:
    home.trace.unlink(missing_ok=True)
    (run / "trials.csv").unlink()
    assert "on the front" in home.nas("front")  # which of the two is on it, a few microseconds decide
    assert "my_block" in (run / "trials.csv").read_text()
    path = home.folder / home.nas("export", "--pick", "1").splitlines()[0]
    text = path.read_text()
    assert "MyBlock" in text
    assert "nas.load_blocks('my_blocks.py')" in text
    assert "nas yolo --blocks my_blocks.py train" in text
    done = home.python(
        "import nas, sys; run = nas.load('search'); run.pick('1'); print('torch' in sys.modules, run.space.size)"
    )
    assert done.stdout.split() == ["False", "8"], done.stderr
    assert home.ran == []


@pytest.mark.slow
def test_going_on_needs_the_file_named_again(home: Home, run: Path) -> None:
    home.trace.unlink(missing_ok=True)
    again = "nas search --resume results/search --blocks results/search/blocks/my_blocks.py"
    told = home.nas("search", "--resume", "search", code=2)
    assert "results/search needs the block file my_blocks.py" in told
    assert again in told
    told = home.nas("search", "--resume", "search", "--blocks", "faulty.py", code=2)
    assert "faulty.py is no block file that results/search began with" in told
    assert again in told
    copy = run / "blocks" / "my_blocks.py"
    copy.write_text(BLOCKS + "\n")
    for named in ("my_blocks.py", str(copy)):
        assert "has changed since the run began" in home.nas("search", "--resume", "search", "--blocks", named, code=2)
    copy.write_text(BLOCKS)
    assert home.ran == []
    home.nas("search", "--resume", "search", "--blocks", "my_blocks.py", "--add-budget", "1trials")
    assert home.ran == ["results/search/blocks/my_blocks.py"] * 3
    assert len((run / "trials.csv").read_text().splitlines()) == 4


@pytest.mark.slow
def test_a_checkpoint_reloads_or_says_which_file_to_bring(home: Home, placed: Path) -> None:
    load = "import nas; nas.load_blocks('my_blocks.py'); import nas.yolo; from ultralytics import YOLO; "
    done = home.python(f"{load} YOLO({str(placed)!r}).save('winner.pt')")
    assert done.returncode == 0, done.stderr
    home.trace.unlink()
    # Ultralytics answers a ModuleNotFoundError by pip: nothing of that kind may happen, even where it is allowed to.
    plain = "import os; os.environ['YOLO_AUTOINSTALL'] = 'True'; from ultralytics import YOLO; YOLO('winner.pt')"
    done = home.python(plain)
    assert done.returncode == 1
    assert "InputError: this model needs the user block file my_blocks.py, which was not loaded" in done.stderr
    assert "AutoInstall" not in done.stdout + done.stderr
    assert home.ran == []
    done = home.python(f"{load} m = YOLO('winner.pt'); print(type(m.model.model[8].block).__name__, m.model.fuse().is_fused())")
    assert done.stdout.splitlines()[-1] == "MyBlock True", done.stderr
    assert home.ran == ["my_blocks.py"]
    told = home.nas("yolo", "export", "model=winner.pt", "format=torchscript", "imgsz=64", code=2)
    assert "this model needs the user block file my_blocks.py" in told
    assert "unknown module 'MyBlock'" in home.nas("yolo", "export", f"model={placed}", code=2)


@pytest.mark.slow
def test_the_winner_trains_validates_and_exports_in_ultralytics(home: Home, placed: Path) -> None:
    own = ["yolo", "--blocks", "my_blocks.py"]
    train = ["data=small.yaml", "epochs=1", "imgsz=64", "batch=8", "workers=0", "plots=False", "name=winner"]
    home.nas(*own, "train", f"model={placed}", *train, f"project={home.folder / 'runs'}")
    best = home.folder / "runs" / "winner" / "weights" / "best.pt"
    home.nas(*own, "val", f"model={best}", "data=small.yaml", "imgsz=64", "workers=0", "plots=False")
    home.nas(*own, "export", f"model={best}", "format=onnx", "imgsz=64", "simplify=False")
    assert best.with_suffix(".onnx").stat().st_size > 0
    assert set(home.ran) == {"my_blocks.py"}
    told = home.nas("yolo", "val", f"model={best}", "data=small.yaml", code=2)
    assert "this model needs the user block file my_blocks.py" in told
