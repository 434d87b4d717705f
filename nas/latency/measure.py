"""Timing one prepared inference, here or, as this file alone, on a small device without nas.

    python measure.py [--threads N] [--out device.csv] [--probes probes.json] [--providers CPUExecutionProvider]

The figure is the lowest p50 among time-separated blocks of sustained runs: a busy neighbour only ever adds time, while a
single block drifts by 10-14% even on a quiet machine. Blocks are added until the figure's interval is narrow. With one CPU
thread the CPU time of the runs must agree with the wall clock's, and a block in which the device slowed itself down for
its temperature makes no figure. What stays in doubt is refused.

Run as a program it needs Python 3.8, numpy and onnxruntime, measures the ONNX files that `probes.json` lists and appends a
line for each to a CSV at once; started again it goes on where it was. Its columns, times in milliseconds:

    id, skeleton, …    all that probes.json says of the probe but its file, so that the CSV alone is enough afterwards
    ms, low, high      the figure and its interval, see `Latency`
    p90, spread, runs  see `Latency`
    cpu_ms             CPU time of a run, with one CPU thread; otherwise empty
    throttled, noisy   0 or 1, see `Latency`; 1 only with --allow-noisy
    device             processor or board, and host
    runtime            onnxruntime, its version and its execution provider (with a GPU's, copies to and from it are included)
    threads            of the runtime
    row_0, row_1, …    time in each row of the model, by the runtime's profiler; empty where it has none
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

BLOCKS = 10
PACED_BLOCKS = 5  # each of their runs waits first
MAX_BLOCKS = 30
LAST_BLOCKS = 45  # after a rest
MIN_RUNS = 10
BLOCK_SECONDS = 0.03
PAUSE_SECONDS = 0.03
AGREEING = 3
NARROW = 0.02
UNSTABLE = 0.05
REST_SECONDS = 1.0
COOL_SECONDS = 10.0
HOPELESS = 1.5
CPU_AGREES = 0.1
WARM_UP_SECONDS = 3.0
STABLE = 0.05
SLOWED = 0.9  # of the clock that the cores had before
GPU_SLOWED = 0x08 | 0x20 | 0x40 | 0x80  # NVML: hardware slowdown, software and hardware thermal slowdown, power brake
NODE = re.compile(r"/model\.(\d+)/")
PROFILED_RUNS = 10


class Unstable(Exception):  # noqa: N818  (it says what the machine was)
    """No figure can be given; why, in words without numbers: alike where the cause is alike."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one inference.

    `ms` is the lowest p50 among the blocks. From `low` to `high` reaches its interval: to the third-lowest p50, which the
    lowest of as many blocks passes in one of eight repetitions, and down to Robson and Whitlock's estimate of where blocks
    end, the gap between the two lowest below the lowest (Biometrika 51, 1964). `p90` is the figure's block's, `spread` how
    far the third-lowest p50 lies above the lowest (0.02 is 2%), `runs` how many inferences were timed. `rough` says that
    timing ended early because the figure was far over the limit, `cpu_ms` is the CPU time of a run (one thread), and `noisy`
    that the figure would have been refused (its interval is widened), `throttled` that this was for the device's clock.
    """

    ms: float
    low: float
    high: float
    p90: float
    spread: float
    runs: int
    rough: bool = False
    cpu_ms: float | None = None
    throttled: bool = False
    noisy: bool = False

    @property
    def width(self) -> float:
        """Of the interval, as a share of `ms`."""
        return (self.high - self.low) / self.ms


@dataclass(frozen=True)
class _Block:
    """Sustained runs: p50 and p90 of their seconds, p50 of their CPU seconds, and what slowed the device down meanwhile."""

    p50: float
    p90: float
    cpu: float | None
    runs: int
    slowed: str | None


def measure(
    run: Callable[[], object],
    limit_ms: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
    *,
    cpu_clock: Callable[[], float] | None = None,
    paced_ms: float | None = None,
    allow_noisy: bool = False,
    watch: Callable[[], str | None] = lambda: None,
    sleep: Callable[[float], object] | None = None,
) -> Latency:
    """Time `run`, which must return only when the inference is complete.

    Args:
        limit_ms: what takes more than half as long again in each of three blocks needs no closer look.
        cpu_clock: CPU time of this process, given where one thread computes: the two clocks then check each other.
        paced_ms: idle time before each run, which is not counted.
        allow_noisy: give a figure in any case.
        watch: asked after every block: what has slowed the device down since it was last asked.

    Raises:
        Unstable: also after a rest the interval stayed wide, the clocks disagreed, or the device was slowed down.
    """
    sleep = sleep or time.sleep

    def block(min_runs: int = MIN_RUNS, seconds: float = BLOCK_SECONDS) -> _Block:
        times: list[float] = []
        cpu: list[float] = []
        start = clock()
        while len(times) < min_runs or clock() - start < seconds:
            if paced_ms is not None:
                sleep(paced_ms / 1e3)
            cpu_before = cpu_clock() if cpu_clock else 0.0
            before = clock()
            run()
            times.append(clock() - before)
            cpu.append(cpu_clock() - cpu_before if cpu_clock else 0.0)
        p90 = statistics.quantiles(times, n=10)[-1]
        return _Block(statistics.median(times), p90, statistics.median(cpu) if cpu_clock else None, len(times), watch())

    def warm_up() -> None:
        """Run until two successive short blocks agree within 5%, or 3 s have passed."""
        start, last = clock(), float("inf")
        while clock() - start < WARM_UP_SECONDS:
            now = block(3, 0.02).p50
            if abs(now - last) <= STABLE * now:
                return
            last = now

    least = BLOCKS if paced_ms is None else PACED_BLOCKS
    blocks: list[_Block] = []
    warm_up()
    for most in (MAX_BLOCKS, LAST_BLOCKS):
        while True:
            if blocks:
                sleep(PAUSE_SECONDS)
            blocks.append(block())
            if len(blocks) < AGREEING:
                continue
            figure, trouble = _figure(blocks), _trouble(blocks)
            if len(blocks) == AGREEING and limit_ms and figure.ms > HOPELESS * limit_ms and not _clocks_disagree(figure):
                return replace(figure, rough=True)
            enough = figure.width <= NARROW if most == MAX_BLOCKS else not trouble
            if len(blocks) >= most or (len(blocks) >= least and enough):
                break
        if not trouble:
            return figure
        if most == MAX_BLOCKS:
            sleep(COOL_SECONDS if figure.throttled else REST_SECONDS)
            warm_up()
    if not allow_noisy:
        raise Unstable(trouble)
    return _widened(figure)


def _figure(blocks: Sequence[_Block]) -> Latency:
    lowest = sorted(blocks, key=lambda block: block.p50)[:AGREEING]
    best, second, third = (block.p50 for block in lowest)
    return Latency(
        ms=best * 1e3,
        low=max(0.0, 2 * best - second) * 1e3,
        high=third * 1e3,
        p90=lowest[0].p90 * 1e3,
        spread=third / best - 1,
        runs=sum(block.runs for block in blocks),
        cpu_ms=None if lowest[0].cpu is None else lowest[0].cpu * 1e3,
        throttled=any(block.slowed for block in lowest),
    )


def _trouble(blocks: Sequence[_Block]) -> str:
    """Why the blocks make no figure; empty where they do."""
    figure = _figure(blocks)
    if figure.throttled:
        return next(block.slowed for block in sorted(blocks, key=lambda block: block.p50) if block.slowed) or ""
    if _clocks_disagree(figure):
        return f"wall clock and CPU time disagree by more than {CPU_AGREES:.0%}"
    if figure.width > UNSTABLE:
        return f"the interval stays wider than {UNSTABLE:.0%}"
    return ""


def _clocks_disagree(figure: Latency) -> bool:
    return figure.cpu_ms is not None and abs(figure.cpu_ms - figure.ms) > CPU_AGREES * figure.ms


def _widened(figure: Latency) -> Latency:
    """A figure that is in doubt: its interval doubled, 5% to each side at least, and the other clock's figure inside."""
    down, up = (max(2 * part, UNSTABLE * figure.ms) for part in (figure.ms - figure.low, figure.high - figure.ms))
    other = figure.ms if figure.cpu_ms is None else figure.cpu_ms
    low, high = min(max(0.0, figure.ms - down), other), max(figure.ms + up, other)
    return replace(figure, low=low, high=high, noisy=True)


class CoreWatch:
    """Whether the processor has slowed itself down: Linux' counters of thermal events, and the clock of the fastest core.

    Args:
        paced: between runs the cores idle, and their clock falls for that: it says nothing then.
        cpus: where Linux describes the processors.
    """

    def __init__(self, paced: bool = False, cpus: Path = Path("/sys/devices/system/cpu")) -> None:
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        self._clocks = [] if paced else [cpus / f"cpu{core}" / "cpufreq" / "scaling_cur_freq" for core in cores]
        self._counters = sorted(cpus.glob("cpu*/thermal_throttle/*_throttle_count"))
        self._highest = _highest([cpus / f"cpu{core}" / "cpufreq" / "base_frequency" for core in cores])
        self._events = sum(map(_number, self._counters))

    def __call__(self) -> str | None:
        before, self._events = self._events, sum(map(_number, self._counters))
        if self._events > before:
            return "the processor throttles for its temperature"
        now = _highest(self._clocks)
        self._highest = max(self._highest, now)
        return "the processor's clock fell under load" if now and now < SLOWED * self._highest else None


class GpuWatch:
    """Whether an NVIDIA GPU slows itself down now: NVML's clock-event reasons, by its package or by nvidia-smi.

    A power cap is the card's steady state and does not count.

    Args:
        gpu: its index or UUID.
    """

    def __init__(self, gpu: str = "0") -> None:
        self._gpu, self._tool = gpu, shutil.which("nvidia-smi")
        self._ask = self._by_tool
        try:
            import pynvml  # noqa: PLC0415  (of the package nvidia-ml-py, where it is installed)
        except ImportError:
            return
        try:
            pynvml.nvmlInit()
            by_index = gpu.isdecimal()
            handle = pynvml.nvmlDeviceGetHandleByIndex(int(gpu)) if by_index else pynvml.nvmlDeviceGetHandleByUUID(gpu)
            older = "nvmlDeviceGetCurrentClocksThrottleReasons"
            ask = getattr(pynvml, "nvmlDeviceGetCurrentClocksEventReasons", None) or getattr(pynvml, older)
            ask(handle)
            self._ask = lambda: int(ask(handle))
        except pynvml.NVMLError:
            return

    def __call__(self) -> str | None:
        return "the GPU slows itself down" if self._ask() & GPU_SLOWED else None

    def _by_tool(self) -> int:
        for name in ("clocks_event_reasons", "clocks_throttle_reasons") if self._tool else ():
            asked = [str(self._tool), f"--query-gpu={name}.active", "--format=csv,noheader", f"--id={self._gpu}"]
            done = subprocess.run(asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
            if done.returncode == 0 and done.stdout.strip().startswith(b"0x"):
                return int(done.stdout, 16)
        return 0


def _highest(files: Sequence[Path]) -> int:
    return max(map(_number, files), default=0)


def _number(file: Path) -> int:
    """The number in a file of the kernel's; 0 where it tells none."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0


def onnx_session(onnxruntime: Any, model: bytes, threads: int, providers: Sequence[str], profile: str = "") -> Any:
    """An inference session of ONNX Runtime: sequential, the graph fully optimised. `profile` is a file name's beginning."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    return onnxruntime.InferenceSession(model, options, providers=list(providers))


def onnx_rows(
    onnxruntime: Any, model: bytes, threads: int, providers: Sequence[str], feed: Mapping[str, Any]
) -> dict[int, float]:
    """Milliseconds in each row of an ONNX model of a YOLO, by ONNX Runtime's profiler, in a session of its own.

    A node belongs to the row N of `/model.N/` in its name, one without to the row of the node before.
    """
    with tempfile.TemporaryDirectory(prefix="nas-") as folder:
        session = onnx_session(onnxruntime, model, threads, providers, str(Path(folder) / "profile"))
        for _ in range(2 * PROFILED_RUNS):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes: dict[tuple[str, str], list[float]] = {}  # in the order in which they run
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = event["name"], str(event["args"].get("node_index"))
            nodes.setdefault(key, []).append(event["dur"] / 1e3)
    return by_row([(name, statistics.median(times[-PROFILED_RUNS:])) for (name, _), times in nodes.items()])


def by_row(nodes: Sequence[tuple[str, float]]) -> dict[int, float]:
    """Milliseconds of each row from those of named nodes in the order in which they run."""
    rows: dict[int, float] = {}
    row = 0
    for name, ms in nodes:
        named = NODE.search(name)
        row = int(named.group(1)) if named else row
        rows[row] = rows.get(row, 0.0) + ms
    return dict(sorted(rows.items()))


FIGURES = ("ms", "low", "high", "p90", "spread", "runs", "cpu_ms", "throttled", "noisy")


def main() -> int:
    """Measure the probes that are not in the CSV yet. Returns 1 where one could not be measured."""
    parser = argparse.ArgumentParser(description="Measure the probe models of `nas latency probes` on this device.")
    parser.add_argument("--probes", type=Path, default=Path(__file__).with_name("probes.json"))
    parser.add_argument("--out", type=Path, default=Path("device.csv"), help="a line is appended for each probe")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--providers", default="CPUExecutionProvider", help="of ONNX Runtime, separated by commas")
    parser.add_argument("--allow-noisy", action="store_true", help="keep figures that would be refused, marked as noisy")
    options = parser.parse_args()
    try:
        import numpy  # noqa: F401, PLC0415
        import onnxruntime  # noqa: PLC0415

        listed = json.loads(options.probes.read_text(encoding="utf-8"))
        probes = {str(probe["id"]): (options.probes.parent / probe.pop("file"), probe) for probe in listed["probes"]}
        said = list(next(iter(probes.values()))[1])
        rows = int(listed.get("rows", 0))
    except ImportError as error:
        parser.error(f"{error}: pip install numpy onnxruntime")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration) as error:
        parser.error(f"{options.probes}: {error!r}; give the probes.json of `nas latency probes`")
    providers = options.providers.split(",")
    if options.threads < 1:
        parser.error("--threads must be 1 or more")
    if missing := [name for name in providers if name not in onnxruntime.get_available_providers()]:
        parser.error(f"this onnxruntime has no {missing[0]}; it has {', '.join(onnxruntime.get_available_providers())}")
    runtime = f"onnxruntime {onnxruntime.__version__} {providers[0]}"
    about = {"device": _device(), "runtime": runtime, "threads": options.threads}
    columns = [*said, *FIGURES, *about, *(f"row_{row}" for row in range(rows))]
    done = _known(options.out, columns)
    waiting = [(name, file, probe) for name, (file, probe) in probes.items() if name not in done]
    _say(f"{len(waiting)} of {len(probes)} probes to measure on {about['device']}, into {options.out}")
    failed, began = 0, time.monotonic()
    for number, (name, file, probe) in enumerate(waiting, 1):
        try:
            figures = _measured(onnxruntime, file, options.threads, providers, options.allow_noisy)
        except Exception as error:  # one that this device does not take must not keep the others from it
            failed += 1
            _say(f"{number}/{len(waiting)} {name}: {type(error).__name__}: {error}; tried again when started again")
            continue
        _append(options.out, columns, {**probe, **about, **{k: v for k, v in figures.items() if k in columns}})
        left = (time.monotonic() - began) / number * (len(waiting) - number)
        interval = "{low:.3f} to {high:.3f}".format(**figures)
        _say(f"{number}/{len(waiting)} {name}: {figures['ms']:.3f} ms ({interval}); {left:.0f} s left")
    return min(failed, 1)


def _measured(onnxruntime: Any, file: Path, threads: int, providers: Sequence[str], allow_noisy: bool) -> dict[str, Any]:
    """What a line of the CSV holds of an ONNX file."""
    import numpy  # noqa: PLC0415

    model = file.read_bytes()
    session = onnx_session(onnxruntime, model, threads, providers)
    given = session.get_inputs()[0]
    feed = {given.name: numpy.random.default_rng(0).random(given.shape, dtype=numpy.float32)}
    on_cpu = providers[0] == "CPUExecutionProvider"
    latency = measure(
        lambda: session.run(None, feed),
        cpu_clock=time.process_time if on_cpu and threads == 1 else None,
        allow_noisy=allow_noisy,
        watch=CoreWatch() if on_cpu else GpuWatch(),
    )
    rows = onnx_rows(onnxruntime, model, threads, providers, feed)
    marks = {"throttled": int(latency.throttled), "noisy": int(latency.noisy)}
    return {**asdict(latency), **marks, **{f"row_{row}": ms for row, ms in rows.items()}}


def _known(path: Path, columns: Sequence[str]) -> set[str]:
    """The probes that a CSV holds; it is begun where there is none, and a last line torn by a power cut is taken off."""
    if path.is_file():
        whole = path.read_bytes().rpartition(b"\n")[0]
        path.write_bytes(whole + b"\n" if whole else b"")
    if not path.is_file() or not path.stat().st_size:
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(columns)
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if list(reader.fieldnames or ()) != list(columns):
            sys.exit(f"{path}: has other columns than these probes; give another --out")
        return {str(line["id"]) for line in reader}


def _append(path: Path, columns: Sequence[str], line: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8", newline="") as file:
        csv.DictWriter(file, columns, restval="", lineterminator="\n").writerow(line)
        file.flush()
        os.fsync(file.fileno())


def _device() -> str:
    """What this machine calls itself: a board's name, else the processor's; and the host."""
    for path, pattern in (("/proc/device-tree/model", r"([^\0]+)"), ("/proc/cpuinfo", r"model name\s*:\s*(.+)")):
        try:
            found = re.search(pattern, Path(path).read_text(encoding="utf-8", errors="replace"))
        except OSError:
            continue
        if found:
            return f"{found.group(1).strip()} ({platform.node()})"
    return f"{platform.processor() or platform.machine()} ({platform.node()})"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
