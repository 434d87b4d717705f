"""Who may import whom: the rooms of `nas` and the arrows between them, and who may load what is heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "nas").rglob("*.py"))

# A room is a package or a module of `nas`. Everyone may use these, and they use nobody but each other:
COMMON = {"space", "config", "errors", "seeds", "files", "catalog", "limits", "storage", "alive"}
ARROWS = {
    "nas": {"api", "blocks"},
    "cli": {"api", "doctor", "status", "simulate", "blocks", "finish", "quote", "review", "runs", "yolo"},
    "doctor": {"origin", "execution", "run", "outcome", "latency", "runs", "dataset", "hardware", "cache"},
    "api": {
        "asked",
        "hosts",
        "resumable",
        "origin",
        "blocks",
        "run",
        "reprice",
        "session",
        "dry_run",
        "latency",
        "review",
        "runs",
    },
    "asked": {"blocks", "dataset", "devices", "hardware", "hosts", "latency", "prior", "runs"},
    "reprice": {"advice", "run", "outcome", "execution", "latency", "review", "runs", "hardware", "cache"},
    "devices": {"advice", "execution", "latency", "runs"},
    "advice": {"latency", "review", "runs", "search"},
    "finish": {"blocks", "dataset", "outcome", "review", "run", "runs", "yolo"},
    "quote": {"blocks", "execution", "latency", "outcome", "run", "runs"},
    "assembled": {"teaching", "jobs", "execution", "imitation", "runs", "search"},
    "dry_imitation": {"assembled", "syllabus", "execution", "imitation", "pricing", "review", "search", "dataset"},
    "dry_run": {
        "dry_imitation",
        "syllabus",
        "climb",
        "jobs",
        "search",
        "session",
        "devices",
        "pricing",
        "execution",
        "latency",
        "review",
        "dataset",
        "cache",
    },
    "sensitivity": {"imitation", "latency", "runs"},
    "run": {"sensitivity", "imitation", "outcome", "export", "review", "runs"},
    "decision": {"teaching", "pricing", "under_way", "review", "runs"},
    "syllabus": {"execution", "imitation", "dataset", "cache"},
    "session": {
        "decision",
        "syllabus",
        "devices",
        "jobs",
        "assembled",
        "teaching",
        "pricing",
        "proposals",
        "prior",
        "pruning",
        "rises",
        "study",
        "status",
        "run",
        "outcome",
        "execution",
        "latency",
        "review",
        "runs",
        "dataset",
        "hardware",
        "cache",
    },
    "prior": {"run", "runs"},
    "status": {"review", "runs"},
    "origin": {"latency"},
    "hosts": {"execution", "hardware", "latency"},
    "resumable": {"dataset", "runs"},
    "proposals": {"rises", "pricing", "runs", "search"},
    "rises": {"imitation"},
    "pruning": {"rises", "pricing", "runs", "search"},
    "simulate": {
        "study",
        "proposals",
        "pricing",
        "jobs",
        "session",
        "outcome",
        "execution",
        "latency",
        "review",
        "runs",
        "search",
    },
    "post_mortem": {"execution", "runs"},
    "under_way": {"jobs", "execution"},
    "hopeless": {"pricing", "execution", "runs"},
    "study": {
        "under_way",
        "screening",
        "settling",
        "taking_up",
        "hopeless",
        "post_mortem",
        "pricing",
        "proposals",
        "room",
        "climb",
        "jobs",
        "execution",
        "latency",
        "review",
        "runs",
        "search",
    },
    "screening": {"jobs", "runs", "search"},
    "settling": {"pricing", "runs"},
    "taking_up": {"pricing", "runs"},
    "room": {"climb", "settling", "under_way", "jobs", "runs"},
    "climb": {"jobs", "runs", "search"},
    "seeding": {"imitation", "pricing", "search"},
    "jobs": {"execution", "runs", "search", "dataset", "hardware", "cache"},
    "teaching": {
        "errands",
        "groups",
        "pace",
        "syllabus",
        "seeding",
        "jobs",
        "execution",
        "imitation",
        "runs",
        "pricing",
        "dataset",
    },
    "groups": {"errands", "pace", "post_mortem", "execution", "imitation", "runs"},
    "errands": {"post_mortem", "pricing", "execution", "runs"},
    "pricing": {"execution", "latency"},
    "outcome": {"sensitivity", "export", "review", "runs", "search"},
    "execution": {"blocks", "training", "imitation", "latency", "yolo", "dataset", "hardware", "cache"},
    "runs": {"search"},
    "review": {"search"},
    "export": {"review", "yolo"},
    "imitation": {"training", "yolo"},
    "training": {"yolo"},
    "latency": {"yolo", "hardware"},
    "yolo": {"blocks", "user"},
    "dataset": {"cache"},
    "hardware": {"cache"},
    "config": set(),
    "errors": set(),
    "seeds": set(),
    "files": set(),
    "catalog": set(),
    "limits": set(),
    "alive": set(),
    "storage": set(),
    "space": set(),
    "search": set(),
    "blocks": {"user"},
    "user": set(),
    "cache": set(),
}
# Who alone may import a package.
OWNERS = {
    "ultralytics": {"nas.yolo"},
    "optuna": {
        "nas.runs.database",
        "nas.runs.store",
        "nas.search.sampler",
        "nas.search.front_sampler",
        "nas.proposals",
        "nas.simulate.space",
    },
    "scipy": {"nas.search.surrogate", "nas.search.acquisition", "nas.search.belief", "nas.simulate"},
    "psycopg": {"nas.runs.postgresql"},
    "ray": {"nas.execution.ray"},
    # the entrance exam runs a block's own export, which no model and no target stands around
    "onnxruntime": {"nas.latency", "nas.blocks.exam"},
    "torch": {
        "nas.blocks",
        "nas.yolo",
        "nas.training",
        "nas.latency",
        "nas.imitation",
        "nas.execution.work",
        "nas.execution.imitate",
        "nas.execution.validate",
    },
}
FREE_OF = {  # modules -> what importing them in a fresh process must not load
    ("nas", "nas.cli", "nas.user"): ("torch", "ray", "ultralytics", "optuna", "numpy", "nas.api"),
    ("nas.space.reader", "nas.space.search_space", "nas.blocks.user"): ("torch", "ray", "ultralytics", "optuna", "numpy"),
    ("nas.search.front", "nas.review.table", "nas.review.page", "nas.review.picture", "nas.review.progress"): (
        "torch",
        "ray",
        "ultralytics",
        "optuna",
        "matplotlib",
        "plotly",
    ),
    ("nas.imitation.library", "nas.imitation.alternatives", "nas.execution.imitate", "nas.execution.validate"): (
        "torch",
        "ray",
        "ultralytics",
    ),
    ("nas.runs.folder", "nas.review.space_table"): ("torch", "ray", "ultralytics", "optuna"),
    (
        "nas.pricing",
        "nas.study",
        "nas.api",
        "nas.outcome",
        "nas.runs.store",
        "nas.execution.local",
        "nas.execution.security",
        "nas.dataset.description",
        "nas.doctor.examine",
    ): (
        "torch",
        "ray",
        "ultralytics",
    ),
}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    if module in {"nas.blocks.catalog", "nas.blocks.register"}:
        return "catalog"
    return module.split(".")[1] if "." in module else module


MODULES = {module_of(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, also inside of functions; `from nas.x import y` is nas.x.y where that is a module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return found


def test_every_arrow_between_rooms_is_allowed():
    wrong, used = [], defaultdict(set)
    for module, path in MODULES.items():
        room = room_of(module)
        for target in imports(path) & MODULES.keys():
            other = room_of(target)
            used[room].add(other)
            if other != room and other not in ARROWS.get(room, set()) | COMMON:
                wrong.append(f"{module} -> {target}")
            if room in COMMON and other not in COMMON:
                wrong.append(f"{module} -> {target}")
    assert not wrong, "not allowed: " + ", ".join(wrong)
    assert used.keys() <= ARROWS.keys()


def test_the_rooms_have_no_cycle():
    """Beside `nas` itself, which offers the API by name, rooms can be stacked so that all arrows point down."""
    arrows = {room: set(targets) for room, targets in ARROWS.items() if room != "nas"}
    while free := [room for room, targets in arrows.items() if not targets & arrows.keys()]:
        for room in free:
            del arrows[room]
    assert not arrows


@pytest.mark.parametrize("package", OWNERS)
def test_a_heavy_package_has_its_owners(package):
    users = {module for module, path in MODULES.items() if any(i.split(".")[0] == package for i in imports(path))}
    assert users
    strangers = {m for m in users if not any(m == owner or m.startswith(f"{owner}.") for owner in OWNERS[package])}
    assert not strangers


@pytest.mark.parametrize("modules", FREE_OF)
def test_importing_stays_light(modules):
    assert set(modules) <= MODULES.keys()
    code = f"import sys, {', '.join(modules)}; print(*sorted(set({FREE_OF[modules]!r}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
