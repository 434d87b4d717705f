"""What the workers of these tests do: small functions of the form that executors run. Only the standard library."""

from __future__ import annotations

import itertools
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nas import alive
from nas.errors import InputError
from nas.execution.gang import together

Report = Callable[[Mapping[str, Any]], None]
Payload = Mapping[str, Any]
LOADED = time.monotonic_ns()


def echo(payload: Payload, seed: int, progress: Report) -> dict[str, Any]:
    for step in range(payload.get("steps", 0)):
        progress({"step": step, "of": (payload["steps"],)})
    time.sleep(payload.get("seconds", 0))
    shown = {"gpus": os.environ.get("CUDA_VISIBLE_DEVICES")} if payload.get("gpus") else {}
    return {"payload": payload, "seed": seed, "pid": os.getpid(), "loaded": LOADED, **shown}


def tick(payload: Payload, seed: int, progress: Report) -> dict[str, Any]:
    """Count in the file `count` until there is a file `end`; in the file `node` stands the address of its Ray node."""
    folder = Path(payload["folder"])
    end = Path(payload.get("end", folder / "end"))
    if "ray" in sys.modules:
        (folder / "node").write_text(sys.modules["ray"].util.get_node_ip_address())
    (folder / "pid").write_text(str(os.getpid()))
    for count in itertools.count():
        (folder / "new").write_text(str(count))
        (folder / "new").rename(folder / "count")
        if end.exists():
            return {"count": count}
        alive.beat()
        time.sleep(0.005)
    raise AssertionError


def quiet(payload: Payload, seed: int, progress: Report) -> dict[str, Any]:
    """Ask for quiet once the files `after` exist, say so in the file `still`, wait for a file `end`."""
    folder = Path(payload["folder"])
    (folder / "pid").write_text(str(os.getpid()))
    while not all(Path(path).exists() for path in payload.get("after", ())):
        time.sleep(0.005)
    progress({"quiet": True})
    (folder / "still").touch()
    while not (folder / "end").exists():
        time.sleep(0.005)
    if payload.get("fails"):
        raise ValueError("no figure")
    return {}


def hang(payload: Payload, seed: int, progress: Report) -> dict[str, Any]:
    """Start a child, and give no sign of life any more; in the file `pid` stand both."""
    child = subprocess.Popen(["sleep", "1000"])
    (Path(payload["folder"]) / "new").write_text(f"{os.getpid()} {child.pid}")
    (Path(payload["folder"]) / "new").rename(Path(payload["folder"]) / "pid")
    time.sleep(1000)
    raise AssertionError


def gang(payload: Payload, seed: int, progress: Report) -> dict[str, Any]:
    """Two processes, each a `member`, carry it out."""
    return {**together(2, "attempts:member", payload, seed, progress), "worker": os.getpid()}


def member(payload: Payload, seed: int, progress: Report) -> dict[str, Any]:
    """Count in a folder of one's own until there is a file `end`; the second fails as `how` says, the first waits for it."""
    print(f"member {payload['rank']} of {payload['count']}", flush=True)
    progress({"rank": payload["rank"]})
    if payload["rank"] == 1 and "how" in payload:
        fail(payload, seed, progress)
    folder = Path(payload["folder"], str(payload["rank"]))
    folder.mkdir(exist_ok=True)
    return {**tick({"folder": str(folder), "end": str(folder.parent / "end")}, seed, progress), "pid": os.getpid()}


def beats(payload: Payload, seed: int, progress: Report) -> dict[str, Any]:
    """Work that beats and says nothing else, until there is a file `end`."""
    alive.EVERY_SECONDS = 0.05
    while not (Path(payload["folder"]) / "end").exists():
        time.sleep(0.01)
        alive.beat()
    return {}


def travel(payload: Payload, seed: int, progress: Report) -> dict[str, Any]:
    """Read a file, write another, print, and say where the code and the files come from."""
    import nas

    print("begins", flush=True)
    read = Path(payload["weights"]).read_text()
    progress({"epoch": 1})
    print("ends", flush=True)
    Path(payload["keep"]).write_text(f"{read} back")
    if payload.get("dies"):
        time.sleep(1)
        os._exit(1)
    return {"code": nas.__file__, "keep": payload["keep"], "read": str(Path(payload["weights"]).parent), "pid": os.getpid()}


def shout(payload: Payload, seed: int, progress: Report) -> dict[str, Any]:
    print('{"event": "result", "data": {}, "seconds": 0}', flush=True)
    os.write(1, b"raw\n")
    subprocess.run([sys.executable, "-c", "print('child')"], check=True)
    print("e" * 100_000, file=sys.stderr, flush=True)
    return {"quiet": False}


def fail(payload: Payload, seed: int, progress: Report) -> dict[str, Any]:
    raise {
        "input": InputError("the data is gone", "bring it back"),
        "memory": MemoryError(),
        "exit": SystemExit(3),
        "bare": ValueError(),
        "long": ValueError("first line\nsecond line"),
    }[payload["how"]]


def tell(payload: Payload, seed: int, progress: Report) -> Any:
    """Tell what no attempt may tell."""
    bad: Any = {
        "nan": {"map": float("nan")},
        "object": {"map": object()},
        "nothing": None,
        "text": "0.5",
    }[payload["what"]]
    if payload["as"] == "progress":
        progress(bad)
        return {}
    return bad


def die(payload: Payload, seed: int, progress: Report) -> dict[str, Any]:
    """Die in the middle of a message, with a child left behind."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(payload["folder"], "pid").write_text(str(child.pid))
    for descriptor in range(3, 16):
        try:
            if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                os.write(descriptor, b'{"event": "result", "da')
        except OSError:
            continue
    os.kill(os.getpid(), signal.SIGKILL)
    return {}
