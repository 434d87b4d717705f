"""The run folder: its name, its lock (between real processes), its files after crashes and damage."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from nas.config import RunConfig
from nas.errors import InputError
from nas.runs.folder import (
    find_folder,
    locked,
    new_folder,
    read_config,
    read_manifest,
    write_config,
    write_manifest,
    write_space,
)
from nas.space.reader import read_space
from nas.space.skeleton import find_model

CONFIG = RunConfig(data="döta.yaml", space="demo", budget="2h", target="cpu:onnxruntime", max_latency_ms=2.5)
HOLD = """
import sys, time
from pathlib import Path
from nas.runs.folder import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_folders_are_numbered(tmp_path):
    results = tmp_path / "a" / "results"
    assert [new_folder(None, results).name for _ in range(3)] == ["search", "search2", "search3"]
    (results / "search2").rmdir()
    assert new_folder(None, results).name == "search2"


def test_a_named_folder_is_made_once(tmp_path):
    assert new_folder("nächster Versuch_1.b", tmp_path).is_dir()
    with pytest.raises(InputError, match="exists already") as error:
        new_folder("nächster Versuch_1.b", tmp_path)
    assert "--resume" in error.value.hint


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "/a", "-a", ".a", "a\n", "a\0b", "a\\b"])
def test_a_name_is_a_plain_folder_name(tmp_path, name):
    with pytest.raises(InputError, match="plain folder name"):
        new_folder(name, tmp_path / "results")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("name", [None, "a" * 300])
def test_results_that_cannot_be_written(tmp_path, name):
    # A file in the folder's place: unlike permissions it also stops root.
    (tmp_path / "results").write_text("")
    with pytest.raises(InputError, match="cannot write to"):
        new_folder(name, tmp_path / "results")


def test_a_run_is_found_by_path_name_or_date(tmp_path):
    with pytest.raises(InputError, match="no runs in"):
        find_folder(None, tmp_path)
    for name, written in (("search", 2), ("search2", 1)):
        write_config(new_folder(None, tmp_path), CONFIG, "nas search")
        os.utime(tmp_path / name / "run.yaml", (written, written))
    new_folder(None, tmp_path)  # of a search that ended before it wrote anything
    assert find_folder(None, tmp_path).name == "search"
    assert find_folder("search2", tmp_path) == find_folder(str(tmp_path / "search2"), tmp_path) == tmp_path / "search2"
    with pytest.raises(InputError, match="no run 'serch2'") as error:
        find_folder("serch2", tmp_path)
    assert error.value.hint == "did you mean 'search2'?"


def test_config_and_manifest_read_back(tmp_path):
    write_config(tmp_path, CONFIG, "nas search --name 'ü ü'")
    assert read_config(tmp_path) == (CONFIG, "nas search --name 'ü ü'")
    write_manifest(tmp_path, "0f", ("ü",), {"target": "cpu"})
    manifest = read_manifest(tmp_path)
    assert manifest["classes"] == ["ü"]
    assert {"yolo-placement-search", "torch", "optuna", "ultralytics"} <= set(manifest["versions"])


def test_a_space_is_copied_with_its_own_skeleton(tmp_path):
    home, run, elsewhere = tmp_path / "home", tmp_path / "run", tmp_path / "elsewhere"
    for folder in (home / "models", run, elsewhere):
        folder.mkdir(parents=True)
    stock, _ = find_model("yolo11n.yaml")
    (home / "models" / "yolo11s-mine.yaml").write_text(stock.read_text().replace("nc: 80", "nc: 7"))
    (home / "space.yaml").write_text("skeleton: models/yolo11s-mine.yaml\nslots: {backbone.P4: {block: [keep, repvit]}}\n")
    write_space(run, home / "space.yaml")
    before = read_space(home / "space.yaml")
    shutil.rmtree(home)
    after = read_space(run / "space.yaml")
    assert after.skeleton.nc == 7
    assert [(s.name, s.row) for s in after.skeleton.slots] == [(s.name, s.row) for s in before.skeleton.slots]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text.replace("imgsz: 640", "imgsz: [640"), r"run\.yaml:\d+: "),
        (lambda text: text.replace("imgsz: 640", "imgsz: 100"), r"run\.yaml: imgsz 100 is not a multiple of 32"),
        (lambda text: text.replace("imgsz", "imgzs"), r"run\.yaml: unknown key 'imgzs'"),
        (lambda text: text + "seed: 1\n", r"run\.yaml:\d+: duplicate key 'seed'"),
        (lambda text: text[: text.index("target:")], r"run\.yaml: no 'target'"),
        (lambda _: "", r"run\.yaml: holds no"),
        (lambda _: "\0" * 100, r"run\.yaml: "),
        (lambda _: "- a\n", r"run\.yaml: holds no"),
    ],
)
def test_a_damaged_config_is_named(tmp_path, damage, says):
    write_config(tmp_path, CONFIG, "nas search")
    path = tmp_path / "run.yaml"
    path.write_text(damage(path.read_text()))
    with pytest.raises(InputError, match=says):
        read_config(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", "\udcff"])
def test_a_damaged_manifest_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"manifest\.json"):
        read_manifest(tmp_path)


def test_a_second_search_is_refused_until_the_first_ends_even_by_kill_9(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"in use by process {holder.pid} on ") as error, locked(tmp_path):
            pass
        assert error.value.hint
        assert holder.poll() is None
        (tmp_path / "holder.json").write_text("{")  # damage must not hide that the run is in use
        with pytest.raises(InputError, match="in use by"), locked(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with locked(tmp_path), pytest.raises(InputError, match=f"process {os.getpid()} "), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass
    assert not (tmp_path / "holder.json").exists()


def test_a_folder_that_cannot_be_locked(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="cannot write to"), locked(tmp_path / "run"):
        pass
