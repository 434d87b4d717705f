"""Teach and imitate, with an executor in memory that answers at once: what is asked of workers, and what is done already."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from nas.assembled import AssembledJobs
from nas.config import Budget, RunConfig
from nas.dataset.description import Dataset
from nas.errands import TRIES
from nas.errors import StartError, StoppedError
from nas.execution.decode import DECODE
from nas.execution.executor import Attempt, Event, Failed, Lost, Progress, Result
from nas.execution.imitate import ASSEMBLE, IMITATE, MEET, TUNE
from nas.execution.validate import VALIDATE
from nas.execution.work import TRAIN
from nas.groups import SAME_FAILURES, Groups
from nas.imitation.alternatives import Alternative, alternative_of, alternatives_of
from nas.imitation.library import Entry, Library, facts_of
from nas.jobs import Step, training_job
from nas.pace import FIRST_GROUP, GROUP, Pace
from nas.pricing import Intervals
from nas.runs.ledger import Ledger
from nas.runs.store import Store
from nas.runs.trials import TrialFolders
from nas.seeding import additive_members
from nas.space.architecture import Architecture, model_yaml
from nas.space.reader import find_space, read_space
from nas.syllabus import in_turn, library_of
from nas.teaching import SLACK, Teaching

SPACE = """
skeleton: yolo11n.yaml
slots:
  backbone.P4: {block: [keep, repvit, irmb], width: [0.5, 1.0], depth: [1, 2]}
  backbone.P5: {block: [keep, repvit, riformer], width: [0.5, 1.0], depth: [1, 2]}
  neck.topdown.P3: {block: [keep, irmb, riformer], width: [0.5, 1.0]}
"""


@dataclass
class Workers:
    """An executor whose workers take `seconds` for an epoch, and do what `fate` says instead where that is not None."""

    seconds: float = 10.0
    fate: Callable[[Attempt], object] = lambda attempt: None
    met: dict[str, object] = field(default_factory=lambda: {"digest": "abc", "map": 0.4})
    free: int = 2
    sign: float = 1.0  # seconds after which they give a sign of life
    apart: bool = False  # whether that comes before the end, not with it
    lane_free: bool = True
    started: list[Attempt] = field(default_factory=list)
    ended: list[Event] = field(default_factory=list)

    def start(self, attempt: Attempt) -> None:
        assert json.loads(json.dumps(attempt.payload)) == attempt.payload
        self.started.append(attempt)
        self.free -= 1
        self.ended += [Progress(attempt.key, {"epoch": 1, "epochs": 2}, self.sign), self._end(attempt)]

    def poll(self, _timeout: float) -> list[Event]:
        signs = [event for event in self.ended if isinstance(event, Progress)]
        events, self.ended = (signs, self.ended[1:]) if self.apart and signs else (self.ended, [])
        self.free += sum(not isinstance(event, Progress) for event in events)
        return events

    def stop(self, key: str) -> float:
        self.ended = [event for event in self.ended if event.key != key]
        self.free += 1
        return self.sign

    def close(self) -> None: ...

    def kinds(self) -> list[str]:
        return [attempt.kind for attempt in self.started]

    def _end(self, attempt: Attempt) -> Event:
        payload, told = attempt.payload, self.fate(attempt)
        if isinstance(told, type):
            return told(attempt.key, "worker died", 1.0)
        if isinstance(told, Failed):
            return told
        if told is not None:
            return Result(attempt.key, told, 1.0)
        if attempt.kind == DECODE:
            return Result(attempt.key, {"images": 1}, 1.0)
        if attempt.kind == MEET:
            return Result(attempt.key, self.met, 1.0)
        if attempt.kind == VALIDATE:
            return Result(attempt.key, {"map": 0.3}, 1.0)
        if attempt.kind == TRAIN:
            if payload["keep"]:
                Path(payload["keep"]).write_bytes(b"trained")
            return Result(attempt.key, {"map": 0.4, "seconds": self.seconds}, self.seconds * payload["rungs"][-1])
        assert attempt.kind == IMITATE
        for plain in payload["alternatives"]:
            learn(Library(Path(payload["library"])), Alternative.of(plain))
        return Result(attempt.key, {"entries": {}}, self.seconds)


def learn(library: Library, alternative: Alternative, dropped: str = "", rise: float = 0.1, low: float = 0.05) -> None:
    library.folder.mkdir(parents=True, exist_ok=True)
    facts = json.dumps(facts_of(Entry(alternative.layer, list(alternative.row), dropped=dropped, rise=rise, low=low)))
    save_file({"x": np.zeros(1, np.float32)}, library.path(alternative), metadata={"facts": facts})


class Lab:
    def __init__(self, folder: Path, **config) -> None:
        self.folder = folder
        (folder / "space.yaml").write_text(SPACE)
        self.space = read_space(folder / "space.yaml")
        self.config = RunConfig(
            "d.yaml", "s", **{"budget": "1000gpu-s", "target": "cpu:onnxruntime", "imitate": True, **config}
        )
        self.dataset = Dataset(Path("d.yaml"), folder, ("a", "b"), (), (), (), "digest", (), ())
        self.store = Store(folder, create=True)
        self.said: list[str] = []
        self.phases: list[str] = []

    def teaching(self, workers: Workers) -> Teaching:
        ledger = Ledger(Budget.parse(self.config.budget), self.store)
        return Teaching(self.config, self.space, self.dataset, [], self.folder, self.store, ledger, workers, self.said.append)

    def run(self, workers: Workers, stopping: Callable[[], bool] = lambda: False) -> Teaching:
        teaching = self.teaching(workers)
        teaching.run(self.phases.append, stopping)
        return teaching

    def dies(self, count: int) -> Workers:
        """A search that is killed as its job of that count begins."""

        def kill(attempt: Attempt) -> None:
            if len(workers.started) == count:
                raise KeyboardInterrupt

        workers = Workers(fate=kill)
        with pytest.raises(KeyboardInterrupt):
            self.run(workers)
        return workers


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "cache"))
    return lambda **config: Lab(tmp_path, **config)


def test_a_checkpoint_of_the_data_is_the_teacher_and_everything_learns_once(lab):
    own = lab(weights="best.pt")
    workers = Workers()
    teaching = own.run(workers)
    assert workers.kinds()[:2] == [MEET, VALIDATE] and set(workers.kinds()[2:]) == {IMITATE}
    sizes = [len(a.payload["alternatives"]) for a in workers.started[2:]]
    assert sizes[0] == FIRST_GROUP and FIRST_GROUP < max(sizes) <= GROUP
    learned = Counter(Alternative.of(plain).key for a in workers.started[2:] for plain in a.payload["alternatives"])
    assert learned == Counter({alternative.key: 1 for alternative in in_turn(own.space)})
    assert workers.started[0].payload["teacher"] == "best.pt" and own.store.fact("teacher")["map"] == 0.4
    assert workers.started[1].payload["weights"] == "best.pt" and own.store.fact("teacher")["val"] == 0.3
    assert teaching.library.missing(in_turn(own.space)) == []
    assert own.phases[0] == "teach" and own.phases[-1] == "imitate"
    assert own.store.seconds("teach") == 2.0 and own.store.seconds("imitate") == 10.0 * (len(workers.started) - 2)
    again = Workers()
    own.run(again)
    assert again.started == []


def test_a_teacher_of_an_earlier_search_has_left_out_the_held_out_part(lab):
    """So it has seen nothing, and, as one that is trained here, it does not teach on."""
    own = lab(weights="results/search/teacher.pt", epochs=9, rungs=2)
    workers = Workers()
    workers.met |= {"left_out": True}
    teaching = own.run(workers)
    train = training_job(own.config, own.dataset, [])
    assert workers.started[0].payload["left_out"] == f"digest {train.held_out} {train.split_seed}"
    jobs = AssembledJobs(own.config, own.space, teaching, train, TrialFolders(own.folder))
    _, payload = jobs.job(Step(3, 1), model_yaml(own.space.skeleton, own.space.baseline, 2))
    assert own.store.fact("seen") is None and not jobs.validates and payload["train"]["teacher"] is None
    assert payload["train"]["left_out"] is None
    assert "an earlier search trained it" in own.said[0]


def test_without_a_checkpoint_the_teacher_is_trained_for_its_share(lab):
    """300 of 1,000 s, at 10 s an epoch. The held-out part is none of its images."""
    own = lab()
    workers = Workers()
    own.run(workers)
    assert workers.kinds()[:3] == [TRAIN, TRAIN, MEET]
    assert [a.payload["rungs"] for a in workers.started[:2]] == [[1], [30]]
    kept = workers.started[1].payload["keep"]
    assert workers.started[2].payload["teacher"] == kept == str(own.folder / "teacher.pt")
    assert any("30 epochs, within 30% of the budget" in line for line in own.said)


@pytest.mark.parametrize(
    ("seconds", "weights", "shortfall", "pays", "trained"),
    [
        (12.0, None, "", True, [1]),  # 300 s buy 25 epochs, five times the 5 of a trial
        (12.1, None, "", False, [1]),
        (12.1, "best.pt", "", True, []),  # a teacher as it is
        (12.1, "coco.pt", "80 classes", False, [1]),
        (12.0, "coco.pt", "80 classes", True, [1]),
    ],
)
def test_a_budget_of_time_imitates_where_it_buys_a_teacher(lab, seconds, weights, shortfall, pays, trained):
    own = lab(weights=weights, imitate=None)
    workers = Workers(seconds=seconds)
    workers.met |= {"shortfall": shortfall, "fresh": True} if shortfall else {}
    assert own.teaching(workers).pays(own.phases.append) is pays
    assert [a.payload["rungs"][0] for a in workers.started if a.kind == TRAIN] == trained
    assert own.phases and (bool(own.said) is bool(trained))
    assert own.store.seconds("teach") == (seconds + 1) * len(trained) + (weights is not None)
    if pays:  # what was found out is not done again, not even by another session
        again = Workers(seconds=seconds)
        again.fate = lambda a: {
            "digest": "abc",
            "map": 0.4,
            **({"shortfall": "x"} if a.payload.get("teacher") == "coco.pt" else {}),
        }
        own.teaching(again).run(own.phases.append, lambda: False)
        assert [1] not in [a.payload["rungs"] for a in again.started if a.kind == TRAIN]


def test_an_epoch_that_takes_too_long_is_not_waited_for(lab):
    """12 s each are 25 epochs of 300 s; one that takes longer, and what a worker may need to begin it, is cut off."""
    own = lab(imitate=None)
    workers = Workers(seconds=500.0, sign=12.1 + SLACK, free=1, apart=True)
    assert not own.teaching(workers).pays(own.phases.append)
    assert [a.kind for a in workers.started] == [DECODE, TRAIN]  # decoding takes as long as it takes
    assert own.store.seconds("teach") == 2 * (12.1 + SLACK) and "fewer than 25 epochs" in own.said[-1]


@pytest.mark.parametrize("fresh", [True, False])
def test_a_checkpoint_that_is_no_teacher_starts_the_teachers_training(lab, fresh):
    """One of these classes, but another skeleton, may have learned from the held-out part, and so has what begins with it."""
    own = lab(weights="coco.pt", budget="20trials")
    met = iter([{"shortfall": "it knows 80 classes, the data has 2", "fresh": fresh}, {"digest": "d", "map": 0.3}])
    workers = Workers(fate=lambda attempt: next(met) if attempt.kind == MEET else None)
    own.run(workers)
    assert workers.kinds()[:3] == [MEET, TRAIN, MEET]
    assert workers.started[1].payload["weights"] == "coco.pt" and workers.started[1].payload["rungs"] == [30]
    assert any("it knows 80 classes" in line for line in own.said)
    assert own.store.fact("seen") == (None if fresh else "coco.pt")
    assert any("coco.pt, which may have seen it" in line for line in own.said) is not fresh


@pytest.mark.parametrize("died", [0, 1, 2])
def test_what_is_done_stays_done(lab, died):
    """The search dies while a job runs: the next one begins with that job."""
    own = lab()
    own.dies(died + 1)
    again = Workers()
    own.run(again)
    assert again.kinds()[: 3 - died] == [TRAIN, TRAIN, MEET][died:]
    assert own.store.fact("teacher")["digest"] == "abc"


def test_the_teachers_training_goes_on_where_it_was_killed(lab):
    """Whoever takes it up asks for the same training with the same state, and the epoch that was timed has none."""
    own = lab()
    timed, killed = own.dies(2).started
    again = Workers()
    own.run(again)
    assert killed.payload["state"] == str(own.folder / "teacher.safetensors") and timed.payload["state"] is None
    assert (again.started[0].payload, again.started[0].seed) == (killed.payload, killed.seed)


def test_lost_workers_are_replaced(lab):
    own = lab(weights="best.pt")
    lost = Workers(fate=lambda a: Lost if a.kind == IMITATE and len(lost.started) <= TRIES else None)
    own.run(lost)
    assert lost.kinds().count(IMITATE) > TRIES - 1


def test_work_that_fails_stops_the_search(lab):
    with pytest.raises(StoppedError, match="'teach' failed: worker died"):
        lab(weights="best.pt").run(Workers(fate=lambda attempt: Failed))


@pytest.mark.parametrize("block", ["iRMB", "RepViT"])
def test_an_alternative_that_fails_alone_is_dropped_and_refused(lab, block):
    own = lab(weights="best.pt", budget="20trials")
    name = next(a.module for a in in_turn(own.space) if a.module.lower() == block.lower())
    bad = max((a for a in in_turn(own.space) if a.module == name), key=lambda a: a.key)

    def fate(attempt: Attempt) -> object:
        return Failed if bad.plain() in attempt.payload.get("alternatives", []) else None

    workers = Workers(fate=fate)
    teaching = own.run(workers)
    assert teaching.library.missing(in_turn(own.space)) == [bad]
    assert [each for each in in_turn(own.space) if teaching.dropped(each)] == [bad]
    jobs = AssembledJobs(own.config, own.space, teaching, training_job(own.config, own.dataset, []), TrialFolders(own.folder))
    placements = [option for choices in own.space.slots for option in choices.options if option is not None]
    refused = [p for p in placements if jobs.refusal(Architecture(own.space.skeleton.name, (p,)))]
    assert [alternative_of(own.space, p) for p in refused] == [bad]
    assert "worker died" in str(jobs.refusal(Architecture(own.space.skeleton.name, (refused[0],))))
    again = Workers()
    own.run(again)
    assert again.started == []


@pytest.mark.parametrize("reason", ["out of memory", "[Errno 28] No space left on device: 'x'", "it is broken"])
def test_what_fails_for_every_alternative_is_no_fault_of_theirs(lab, reason):
    """The search stops with the reason, and once that is mended all of them learn."""
    own = lab(weights="best.pt", budget="20trials")
    workers = Workers()
    workers.fate = lambda a: Failed(a.key, reason, 1.0) if a.kind == IMITATE else None
    with pytest.raises(
        StoppedError, match="no room on the disk" if "space" in reason else f"first {SAME_FAILURES} alternatives"
    ):
        own.run(workers)
    assert not own.store.fact("dropped")
    teaching = own.run(Workers())
    assert teaching.library.missing(in_turn(own.space)) == []


def test_the_last_few_may_all_fail(lab):
    """Where others have learned before, three that fail alike are dropped, and the search goes on."""
    own = lab(weights="best.pt", budget="20trials")
    library = own.run(Workers()).library
    last = [a for a in in_turn(own.space) if a.module == "RIFormer"]
    for each in last:
        library.path(each).unlink()
    workers = Workers(fate=lambda a: Failed(a.key, "out of memory", 1.0) if a.kind == IMITATE else None)
    teaching = own.run(workers)
    assert len(last) >= SAME_FAILURES and all(teaching.dropped(each) == "out of memory" for each in last)


def test_an_edited_block_learns_anew(lab, tmp_path):
    own = lab()
    file = tmp_path / "block.py"
    names = []
    for text in ("x = 1", "x = 2", "x = 1"):
        file.write_text(text)
        names.append(library_of("d", {}, own.dataset, training_job(own.config, own.dataset, [str(file)])).folder.name)
    assert names[0] == names[2] != names[1]


def test_a_library_is_of_a_teacher_and_its_images_and_not_of_a_search(lab):
    own = lab()
    config, dataset = own.config, own.dataset

    def folder(digest: str = "abc", data: str = "digest", **changes: object) -> Path:
        own.config, own.dataset = replace(config, **changes), replace(dataset, digest=data)
        own.store.put_fact("teacher", {"digest": digest})
        return own.teaching(Workers()).library.folder

    usual = folder()
    others = [{"max_latency_ms": 2.0}, {"max_params": 1e6}, {"target": "cpu:torch"}, {"budget": "20trials"}, {"workers": 3}]
    others += [{"epochs": 9, "rungs": 2}, {"sampler": "tpe"}, {"lr0": 0.1}, {"batch": 2}, {"weights": "best.pt"}]
    assert {folder(**changes) for changes in others} == {usual}
    own.space = read_space(find_space("demo"))
    assert own.space.skeleton.name == "yolo11n" and folder() == usual
    others = [{"digest": "abd"}, {"data": "other"}, {"imgsz": 96}, {"seed": 1}, {"held_out": 0.3}, {"fraction": 0.5}]
    found = [folder(**changes) for changes in others]
    assert len({usual, *found}) == 1 + len(others)
    assert {each.parent for each in found} == {own.folder / "cache" / "imitation"}


def test_nothing_more_learns_once_the_budget_is_spent(lab):
    """A run that is resumed to be looked at, under another limit, say, goes on to its front."""
    own = lab(weights="best.pt", budget="20gpu-s")
    own.run(Workers(seconds=4.0, free=1))
    own.store.add_seconds(lane=20.0)
    workers = Workers()
    own.run(workers)
    assert workers.started == []


def test_a_worthless_teacher_that_was_trained_here_is_no_failed_start(lab):
    """A failed start would take the run folder, and the training with it."""
    fault = {"fault": "the teacher's mAP50-95 on the held-out part is 0.001", "cure": "train it longer"}
    own = lab()
    with pytest.raises(StoppedError, match="held-out part is"):
        own.run(Workers(met=fault))
    assert (own.folder / "teacher.pt").is_file()


def test_nobody_imitates_a_teacher_that_finds_nothing(lab):
    own = lab(weights="best.pt")
    workers = Workers(met={"fault": "the teacher's mAP50-95 on the held-out part is 0.001", "cure": "train it longer"})
    with pytest.raises(StartError, match="held-out part is"):
        own.run(workers)
    assert workers.kinds() == [MEET]


def test_imitation_ends_with_its_share_and_the_rest_learns_later(lab):
    own = lab(weights="best.pt", budget="20gpu-s")
    workers = Workers(seconds=4.0, free=1)
    teaching = own.run(workers)
    assert workers.kinds().count(IMITATE) == 1
    left = len(teaching.library.missing(in_turn(own.space)))
    assert left == len(list(in_turn(own.space))) - FIRST_GROUP > 0
    assert f"{left} alternatives are left to learn when an architecture needs them" in own.said


def test_groups_that_take_longer_than_its_share_are_stopped(lab):
    """And the search goes on: there are 1,000 s, 200 of them for imitation, and nobody knew what an alternative takes."""
    own = lab(weights="best.pt")
    workers = Workers(seconds=10_000.0, sign=251.0, free=1, apart=True)
    own.run(workers)
    assert workers.kinds() == [MEET, VALIDATE, IMITATE]
    assert own.store.seconds("imitate") == 251.0
    assert own.store.fact("alternative_seconds") == 251.0 / FIRST_GROUP
    assert own.store.fact("learning") == [] and not own.store.fact("dropped")


def test_one_slow_group_does_not_hold_up_all_others(lab):
    """By a wall clock eight workers have 1,600 s in 200, but seven that wait use nothing up."""
    own, now = lab(weights="best.pt", budget="1000s", workers=8), 0.0
    own.store.put_fact("teacher", {"path": "best.pt", "digest": "d", "map": 0.4})
    common = own.teaching(Workers()).job()

    def groups() -> Groups:
        ledger = Ledger(Budget.parse("1000s"), own.store, clock=lambda: now)
        ledger.begin()
        pace, library = Pace(1600.0, 8, 0.0), Library(own.folder / "library")
        return Groups(list(in_turn(own.space)), pace, common, library, own.store, ledger, own.folder, untried=True, wall=200.0)

    first = groups()
    job = first.next()
    first.begins(job)
    assert not first.over and not first.too_long(10.0, 10.0)
    now = 200.0
    assert first.over and first.next() is None and not first.too_long(200.0, 200.0)  # what has begun may end
    now = 250.1
    assert first.too_long(250.0, 250.0)
    first.ended(job, 250.0, None)
    assert groups().next() is None  # nor after a kill


def test_what_was_stopped_early_does_not_make_learning_cheap(lab):
    own = lab(weights="best.pt", budget="1000gpu-s")
    own.store.put_fact("teacher", {"path": "best.pt", "digest": "d", "map": 0.4})
    ledger, pace = Ledger(Budget.parse("1000gpu-s"), own.store), Pace(200.0, 2, 0.0)
    groups = Groups(
        list(in_turn(own.space)),
        pace,
        own.teaching(Workers()).job(),
        Library(own.folder / "library"),
        own.store,
        ledger,
        own.folder,
        untried=True,
    )
    jobs = [groups.next(), groups.next()]
    for job in jobs:
        groups.begins(job)
    groups.ended(jobs[0], 160.0, Result("a", {}, 160.0))
    groups.ended(jobs[1], 1.0, None)
    assert own.store.fact("alternative_seconds") == pace.each == 160.0 / FIRST_GROUP


def test_a_result_that_comes_with_a_sign_of_life_counts(lab):
    """Both lie in one batch of events where this process stood still."""
    own = lab(weights="best.pt")
    workers = Workers(seconds=260.0, sign=251.0, free=1)
    own.run(workers)
    assert own.store.seconds("imitate") == 260.0 and own.store.fact("alternative_seconds") == 260.0 / FIRST_GROUP


def test_a_teacher_that_was_not_scored_on_val_is_met_again(lab):
    """Ctrl-C while it is scored: the figure that counts in all reports of such a run would never be known."""
    own = lab(weights="best.pt")
    workers, asked = Workers(), [False]

    def fate(attempt: Attempt) -> object:
        asked[0] = attempt.kind == VALIDATE
        return None

    workers.fate = fate
    own.run(workers, lambda: asked[0])
    assert own.store.fact("teacher") is None
    own.run(Workers())
    assert own.store.fact("teacher")["val"] == 0.3


def test_what_a_failing_group_has_brought_into_the_library_counts(lab):
    """Others can learn, so three that fail alike are to blame themselves."""
    own = lab(weights="best.pt", budget="20trials")
    good = [a.plain() for a in in_turn(own.space) if a.module == "RepViT"]

    def fate(attempt: Attempt) -> object:
        group = attempt.payload.get("alternatives", [])
        for plain in group:
            if plain in good:
                learn(Library(Path(attempt.payload["library"])), Alternative.of(plain))
        return Failed(attempt.key, "worker died", 1.0) if any(plain not in good for plain in group) else None

    teaching = own.run(Workers(fate=fate))
    bad = [a for a in in_turn(own.space) if a.plain() not in good]
    assert len(bad) > SAME_FAILURES and all(teaching.dropped(a) == "worker died" for a in bad)


@pytest.mark.parametrize(("budget", "more"), [("1000gpu-s", "--add-budget 1gpu-h"), ("1000s", "--add-budget 1h")])
def test_who_needs_more_budget_is_told_of_the_kind_that_the_run_has(lab, budget, more):
    own = lab(budget=budget)
    (own.folder / "blocks").mkdir()
    own.store.add_seconds(teach=1000.0, wall=1000.0)
    with pytest.raises(StoppedError) as error:
        own.run(Workers())
    assert more in error.value.hint and Budget.parse(budget).plus(Budget.parse(more.split()[1]))


@given(
    share=st.floats(1.0, 500.0),
    workers=st.integers(1, 8),
    costs=st.lists(st.floats(0.5, 2.0), min_size=1, max_size=30),
    each=st.floats(0.1, 30.0),
)
def test_imitation_keeps_to_its_share(share, workers, costs, each):
    """However many learn side by side: beyond the first groups, it is as far off as groups differ from the mean."""
    pace, running, used, groups = Pace(share, workers, 0.0), list[tuple[int, float]](), 0.0, 0
    while True:
        while len(running) < workers and (size := pace.group()):
            running.append((size, size * each * costs[groups % len(costs)]))
            pace.begun(size)
            groups += 1
        if not running:
            break
        size, cost = running.pop(0)
        used += cost
        pace.ended(size, cost, learned=True)
    first = sum(FIRST_GROUP * each * costs[n % len(costs)] for n in range(min(groups, workers)))
    spread = max(costs) / min(costs)
    assert used <= max(first, share * spread) + workers * each * max(costs)
    assert used >= share - each * max(costs) or used >= first


def test_what_failed_says_nothing_of_what_learning_costs():
    """And where there is no time for more beside what learns now, there is again once that was cheap."""
    pace = Pace(100.0, 2, 0.0)
    pace.begun(FIRST_GROUP)
    pace.ended(FIRST_GROUP, 1.0, learned=False)
    assert pace.group() == FIRST_GROUP
    pace.begun(FIRST_GROUP)
    pace.begun(2 * FIRST_GROUP)
    pace.ended(FIRST_GROUP, 40.0, learned=True)  # 10 s each: what learns takes 80 s more, and 59 s are left
    assert pace.group() == 0 and not pace.over
    pace.ended(2 * FIRST_GROUP, 8.0, learned=True)
    assert pace.group() == 7  # 51 s at 4 s each, for two workers
    pace.ended(0, 51.0, learned=False)
    assert pace.over and pace.group() == 0


def test_what_an_earlier_session_has_paid_is_known():
    assert Pace(100.0, 2, 95.0, 10.0).group() == 0 and Pace(100.0, 2, 70.0, 10.0).group() == 2


def test_groups_that_were_learning_when_the_search_was_killed_go_on_as_they_were(lab):
    """What a group has learned lies on disk under its members' names."""
    own = lab(weights="best.pt")
    workers = own.dies(5)
    again = Workers()
    own.run(again)
    *_, under_way = workers.started
    assert len(under_way.payload["alternatives"]) > FIRST_GROUP
    assert again.started[0].payload["alternatives"] == under_way.payload["alternatives"]
    assert own.store.fact("learning") == []
    learned = Counter(Alternative.of(plain).key for a in again.started for plain in a.payload["alternatives"])
    assert set(learned.values()) == {1}


def test_a_lost_group_is_not_tried_again_when_the_time_is_over(lab):
    own = lab(weights="best.pt", budget="5gpu-s")
    workers = Workers(fate=lambda attempt: Lost if attempt.kind == IMITATE else None, free=1)
    teaching = own.run(workers)
    assert workers.kinds() == [MEET, VALIDATE, IMITATE]
    assert len(teaching.library.missing(in_turn(own.space))) == len(list(in_turn(own.space)))


def test_a_budget_that_ends_says_so(lab):
    own = lab(budget="5gpu-s")
    with pytest.raises(StoppedError, match="the budget ended in the phase 'teach'"):
        own.run(Workers())


def test_all_slots_and_blocks_come_before_their_variants(lab):
    own = lab()
    kinds = [(alternative.layer, alternative.module) for alternative in in_turn(own.space)]
    assert set(kinds[: len(set(kinds))]) == set(kinds) and len(kinds) > len(set(kinds))


def test_a_teacher_that_was_trained_here_does_not_teach_on(lab):
    own = lab(epochs=9, rungs=2)
    teaching = own.run(Workers())
    jobs = AssembledJobs(own.config, own.space, teaching, training_job(own.config, own.dataset, []), TrialFolders(own.folder))
    _, payload = jobs.job(Step(3, 1), model_yaml(own.space.skeleton, own.space.baseline, 2))
    assert payload["train"]["teacher"] is None and not jobs.validates


def test_rung_0_is_the_assembled_network_and_training_goes_on_from_it(lab):
    own = lab(weights="best.pt", epochs=9, rungs=2)
    teaching = own.run(Workers())
    train = training_job(own.config, own.dataset, [])
    jobs = AssembledJobs(own.config, own.space, teaching, train, TrialFolders(own.folder))
    architecture = next(own.space.neighbours(own.space.baseline))
    model = model_yaml(own.space.skeleton, architecture, 2)
    steps = [jobs.job(Step(3, rung), model) for rung in range(3)]
    assert [kind for kind, _ in steps] == [ASSEMBLE, TUNE, TUNE] and len(jobs.shares) == 2
    assert steps[0][1]["keep"] is None and steps[0][1]["library"] == str(teaching.library.folder)
    for (_, payload), until, kept in zip(steps[1:], (3, 9), (None, own.folder / "trials/0003/weights.pt"), strict=True):
        assert payload["train"]["weights"] == payload["assemble"]["keep"] and payload["train"]["until"] == until
        assert payload["train"]["teacher"] == "best.pt"  # teaches on
        assert payload["train"]["keep"] == (None if kept is None else str(kept))
    assert jobs.validates  # the user's own teacher may have seen the held-out part
    kind, payload = jobs.job(Step(3, 2, validates=True), model)
    assert (kind, payload["part"], payload["weights"]) == (VALIDATE, "val", str(own.folder / "trials/0003/weights.pt"))
    assert jobs.refusal(architecture) is None
    for alternative in in_turn(own.space):
        learn(teaching.library, alternative, "its error is not finite")
    assert "could not learn from the teacher: its error is not finite" in (jobs.refusal(architecture) or "")
    assert jobs.refusal(own.space.baseline) is None


def test_training_on_goes_on_from_the_rung_below(lab):
    """By a state that all rungs of a trial share, and its repeats do not."""
    own = lab(weights="best.pt", epochs=9, rungs=3)
    jobs = AssembledJobs(
        own.config, own.space, own.run(Workers()), training_job(own.config, own.dataset, []), TrialFolders(own.folder)
    )
    model = model_yaml(own.space.skeleton, own.space.baseline, 2)

    def train(*step: int) -> dict[str, object]:
        return jobs.job(Step(*step), model)[1]["train"]

    rungs = [train(3, rung) for rung in (1, 2, 3)]
    assert [(job["until"], job["rungs"]) for job in rungs] == [(1, [1, 3, 9]), (3, [1, 3, 9]), (9, [1, 3, 9])]
    states = {job["state"] for job in rungs}
    assert len(states) == 1 and Path(min(states)).parent == own.folder / "trials" / "0003"
    again = train(3, 3, 1)
    assert again["state"] not in states | {None, train(4, 3)["state"]} and again["weights"] != rungs[2]["weights"]
    assert {name for name, value in rungs[0].items() if value != rungs[1][name]} == {"until"}


class Guesses:
    """What `Pricing.guess` says: every replaced slot saves what its width says."""

    def guess(self, architectures):
        saved = [sum(1 / p.channels + 0.001 * p.depth for p in a.placements) for a in architectures]
        ms = 5.0 - 50 * np.array(saved)
        return Intervals(ms, ms, ms)


def test_a_search_begins_with_the_front_of_the_sums(lab):
    """Of all 975 architectures those are proposed first that no other beats in both sums, over the limit none."""
    own = lab(weights="best.pt", max_latency_ms=4.0)
    teaching = own.run(Workers())
    library = teaching.library
    rng = np.random.default_rng(0)
    rises = {}
    for alternative in in_turn(own.space):
        rises[alternative.key] = float(rng.uniform(0, 1))
        learn(library, alternative, rise=rises[alternative.key])
    slots = alternatives_of(own.space)
    every = list(own.space.enumerate())
    loss = np.array([sum(rises[slots[p.slot][p].key] for p in a.placements) for a in every])
    ms = Guesses().guess(every).ms
    front = {
        every[i].id
        for i in range(len(every))
        if not np.any((loss <= loss[i]) & (ms <= ms[i]) & ((loss < loss[i]) | (ms < ms[i])))
    }
    found = teaching.seeds(Guesses())
    assert found == additive_members(own.space, library, Guesses(), 4.0, 640)
    near = [i for i, a in enumerate(every) if a.id in {b.id for b in found}]
    assert 3 <= len(found) <= 16 and all(a.placements for a in found) and ms[near].max() <= 4.01
    assert sum(a.id in front for a in found) >= 0.8 * len(found)  # the rest is within the tolerance
    assert additive_members(own.space, library, type("Nothing", (), {"guess": lambda *_: None})(), None, 640) is None


def test_where_a_slot_has_no_effect_the_latency_alone_chooses(lab):
    """No rise shows in backbone.P4 and P5: the first members differ in the third slot alone, the others as before."""
    own = lab(weights="best.pt")
    library = own.run(Workers()).library
    rng, layers = np.random.default_rng(0), {own.space.skeleton.slot(f"backbone.P{n}").layer for n in (4, 5)}
    for alternative in in_turn(own.space):
        learn(library, alternative, rise=float(rng.uniform(0, 1)), low=-0.1 if alternative.layer in layers else 0.1)
    found = additive_members(own.space, library, Guesses(), None, 640)
    fastest = {}
    for slot, options in alternatives_of(own.space).items():
        singles = [
            (float(Guesses().guess([Architecture(own.space.skeleton.name, (p,) if p else ())]).ms[0]), p) for p in options
        ]
        fastest[slot] = min(singles, key=lambda pair: pair[0])[1]

    def taken(architecture: Architecture, slot: str) -> object:
        layer = own.space.skeleton.slot(slot).layer
        return next((p for p in architecture.placements if p.layer == layer), None)

    by_latency = [a for a in found if all(taken(a, slot) == fastest[slot] for slot in ("backbone.P4", "backbone.P5"))]
    assert found[: len(by_latency)] == by_latency and 1 < len(by_latency) <= 8 < len(found) <= 16
