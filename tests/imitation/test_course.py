"""Imitation itself: what learns, what it depends on, and what happens when something goes wrong."""

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nas.imitation import course as course_module
from nas.imitation import judge, learn
from nas.imitation.alternatives import Alternative, alternative_of, rows_of
from nas.imitation.assemble import Assembler, assembler_of
from nas.imitation.channels import Widths
from nas.imitation.course import Course
from nas.imitation.judge import Judge
from nas.imitation.learn import Lesson, Lessons, Round, Student, errors_of
from nas.imitation.library import Library
from nas.imitation.start import Start, solve_stem, started
from nas.space.architecture import Architecture, model_yaml, place
from nas.space.search_space import SearchSpace
from nas.space.skeleton import read_skeleton
from nas.training.augment import Batches
from nas.training.checkpoint import read_state
from nas.yolo.slot import before_activation, build_layer, stem_of, tap

from .conftest import draw, trained

CPU = torch.device("cpu")
SKELETON = read_skeleton("yolo11n.yaml")
SPACE = SearchSpace(SKELETON, ())
LESSONS = Lessons(rounds=(1, 1), enough=-1e9, first=1, judged=8, training=replace(Lessons().training, batch=8))


def alternative(slot: str, block: str, width: float = 1.0, depth: int = 1) -> Alternative:
    placement = place(SKELETON.slot(slot), block, width, depth, None, {})
    assert placement is not None
    return alternative_of(SPACE, placement)


THREE = [alternative("backbone.P3", "repvit"), alternative("backbone.P3", "irmb", 0.5), alternative("backbone.P4", "riformer")]


def take(
    folder: Path,
    alternatives: Sequence[Alternative],
    lessons: Lessons = LESSONS,
    seed: int = 5,
    report: Callable[[Lesson], None] = print,
) -> tuple[Library, list[Lesson]]:
    yaml, teacher = trained("yolo11n.yaml")
    library, seen = Library(folder), list[Lesson]()
    course = Course(yaml, teacher.model, draw(16, 64, 0), draw(8, 64, 1), library, lessons, seed, CPU, torch.float32)
    course.take(alternatives, lambda lesson: (seen.append(lesson), report(lesson)))  # type: ignore[func-returns-value]
    return library, seen


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Course:
    yaml, teacher = trained("yolo11n.yaml")
    library = Library(tmp_path_factory.mktemp("course"))
    return Course(yaml, teacher.model, draw(16, 64, 0), draw(8, 64, 1), library, LESSONS, 5, CPU, torch.float32)


def taught(course: Course, layer: int) -> list[tuple[Tensor, Tensor]]:
    """What a layer of the teacher reads and writes of the images by which all is settled."""
    return [tap(course._teacher, images, {layer})[layer] for images in course._first]


def contents(library: Library) -> dict[str, dict[str, torch.Tensor]]:
    found = {path.name: read_state(path, CPU)[0] for path in library.folder.glob("*.safetensors")}
    return {name: tensors for name, tensors in found.items() if not name.startswith("importance")}


def equal(one: dict[str, dict[str, torch.Tensor]], other: dict[str, dict[str, torch.Tensor]]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].keys() == other[name].keys() and all(torch.equal(t, other[name][n]) for n, t in one[name].items())
        for name in one
    )


def test_the_teachers_own_block_has_nothing_to_learn() -> None:
    """With the teacher's weights its error is 0, no loss rises, and the assembled network is the teacher."""
    yaml, teacher = trained("yolo11n.yaml")
    own = teacher.model.model[4]
    same = Alternative(4, (-1, 1, "C3k2", [128, False, 0.25, False]))  # the skeleton's own row, said otherwise
    layer, index = build_layer(yaml, same.row, 64), torch.arange(128)
    seen = [tap(teacher.model, torch.rand(4, 3, 64, 64), {4})[4]]
    student = Student(same, layer, index, torch.ones(1, 128, 1, 1), Start("", 0, 0))
    student.module, start = started(
        layer,
        own,
        [x for x, _ in seen],
        [y for _, y in seen],
        index,
        lambda m: float(replace(student, module=m).error(*seen[0]).detach()),
    )
    assert start.name == "teacher" and start.error < start.drawn
    assert errors_of(teacher.model, [replace(student, module=student.module.eval())], Batches(draw(4, 64, 0), CPU)) == [0.0]
    rows = rows_of(yaml)
    rows[4] = list(same.row)
    changed = {**yaml, "backbone": rows[: len(yaml["backbone"])], "head": rows[len(yaml["backbone"]) :]}
    assembler = Assembler(yaml, teacher.model, Widths(yaml, {4: torch.ones(128)}), lambda _: student.module.state_dict())
    made = assembler.assemble(changed).model
    state = teacher.model.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in made.state_dict().items())
    judge = Judge(teacher.model, draw(8, 64, 1), CPU, 4, 8)
    rise = judge.rises([made.model], 0)[0]
    assert (rise.mean, rise.low, rise.high) == (0.0, 0.0, 0.0)


def test_learning_lowers_the_error_and_the_rise(folder: Path) -> None:
    short, long = (replace(LESSONS, rounds=rounds) for rounds in ((1,), (12,)))
    (before, _), (after, seen) = take(folder / "1", THREE, short), take(folder / "2", THREE, long)
    for each in THREE:
        one, other = before.get(each), after.get(each)
        assert one is not None and other is not None and other.error < 0.9 * one.error
        assert other.low <= other.rise <= other.high and other.loss > 0
    assert [lesson.epoch for lesson in seen] == list(range(1, 13)) and seen[-1].error < seen[0].error


def test_who_starts_and_judges_gives_signs_of_life(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of large images and models that takes minutes an alternative, and whoever is silent for ten is taken to hang."""
    heard = Counter[str]()
    for module in (course_module, judge):
        monkeypatch.setattr(module, "beat", lambda name=module.__name__: heard.update([name]))
    take(folder, THREE, replace(LESSONS, enough=1e9, judged=8, training=replace(LESSONS.training, batch=4)))
    assert heard[judge.__name__] == 2 * (1 + len(THREE))  # batches, of the teacher and of each
    assert heard[course_module.__name__] >= 2 * len(THREE)  # ways to start


@pytest.mark.parametrize(("block", "width", "depth"), [("repvit", 1.0, 2), ("riformer", 1.25, 1)])
def test_deeper_and_wider_alternatives_learn_too(course: Course, block: str, width: float, depth: int) -> None:
    other = alternative("backbone.P3", block, width, depth)
    assert other.row[1] == depth and other.row[3][0] == 128 * width
    student = course._student(other, taught(course, 4))
    (before,) = errors_of(course._teacher, [student], course._fit)
    Round(course._teacher, [student], course._fit, LESSONS.training, 6, 0, 5, torch.float32).run(print, None)
    (after,) = errors_of(course._teacher, [student], course._fit)
    assert not student.dropped and after < 0.9 * before


@pytest.mark.slow
def test_what_one_becomes_does_not_depend_on_the_others(folder: Path) -> None:
    together, _ = take(folder / "1", THREE)
    apart, _ = take(folder / "2", THREE[:1])
    for each in THREE[1:]:
        take(folder / "2", [each])
    assert equal(contents(together), contents(apart))
    other, _ = take(folder / "3", THREE[:1], seed=6)
    assert not equal(contents(Library(folder / "3")), {n: t for n, t in contents(together).items() if n in contents(other)})


def test_a_second_search_trains_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, _ = take(folder, THREE)
    before = contents(library)
    monkeypatch.setattr(learn.Round, "_run_epoch", lambda _: pytest.fail("trained"))
    assert take(folder, THREE)[1] == [] and equal(contents(library), before)
    assert library.missing([*THREE, alternative("backbone.P4", "irmb")]) == [alternative("backbone.P4", "irmb")]


@pytest.mark.slow  # three processes
def test_learning_goes_on_where_it_was_killed(folder: Path) -> None:
    """kill -9 in the middle of a round, then again in the next one: the library is that of a course without any."""
    whole, seen = take(folder / "whole", THREE, replace(LESSONS, rounds=(3, 2)))
    done = []
    for left in (2, 4, 9):
        ran = subprocess.run(
            [sys.executable, "-m", "tests.imitation.killed", str(folder / "killed"), str(left)],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
        )
        assert ran.returncode in {0, -signal.SIGKILL}, ran.stderr
        done.append((ran.returncode, ran.stdout.split()))
    # the state of an epoch is written after its report: the one in which it was killed is done again
    assert [code for code, _ in done] == [-signal.SIGKILL, -signal.SIGKILL, 0]
    assert [epochs for _, epochs in done] == [["1", "2"], ["2", "3", "1", "2"], ["2"]]
    assert len(seen) == 5 and equal(contents(whole), contents(Library(folder / "killed")))


def test_one_that_diverges_is_dropped_with_its_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sick, *healthy = THREE
    real = course_module.build_layer

    def build(yaml: object, row: list[object], c1: int) -> nn.Module:
        layer = real(yaml, row, c1)  # type: ignore[arg-type]
        if row == list(sick.row):
            next(p for n, p in layer.named_parameters() if "mlp" in n).data.fill_(float("inf"))
        return layer

    monkeypatch.setattr(course_module, "build_layer", build)
    library, _ = take(folder / "1", THREE)
    monkeypatch.undo()
    entry = library.get(sick)
    assert entry is not None and "diverged in epoch 1" in entry.dropped and not library.usable(sick)
    assert library.missing(THREE) == [] and library.rise(healthy) is not None and library.rise(THREE) is None
    alone, _ = take(folder / "2", healthy)
    assert equal(contents(alone), {n: t for n, t in contents(library).items() if sick.key not in n})
    yaml, teacher = trained("yolo11n.yaml")
    with pytest.raises(Exception, match="was dropped: diverged"):
        placed = place(SKELETON.slot("backbone.P3"), "repvit", 1.0, 1, None, {})
        assert placed is not None
        architecture = model_yaml(SKELETON, Architecture(SKELETON.name, (placed,)), 3)
        assembler_of(yaml, teacher.model, folder / "1").assemble(architecture)


def test_out_of_memory_halves_the_group_then_the_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def starve(self: learn.Round) -> float:
        sizes.append((len(self._students), self._recipe.batch))
        if len(self._students) > 1:
            raise MemoryError
        if self._recipe.batch > 4 and self._students[0].alternative == THREE[0]:
            raise torch.OutOfMemoryError
        return real(self)

    real = learn.Round._run_epoch
    plain, _ = take(folder / "1", THREE[1:])
    monkeypatch.setattr(learn.Round, "_run_epoch", starve)
    library, _ = take(folder / "2", THREE)
    assert sizes == [(3, 8), (1, 8), (1, 4), (1, 4), (2, 8), (1, 8), (1, 8), (1, 8), (1, 8)]
    assert library.missing(THREE) == []
    assert equal(contents(plain), {n: t for n, t in contents(library).items() if THREE[0].key not in n})


def test_epochs_go_where_the_loss_rises(folder: Path) -> None:
    """With all the patience in the world nobody needs a second round, nor a first one who begins nearer than the mean."""
    library, seen = take(folder, THREE, replace(LESSONS, enough=1e9))
    entries = [entry for each in THREE if (entry := library.get(each)) is not None]
    assert [lesson.epoch for lesson in seen] == [1] and {entry.epochs for entry in entries} == {0, 1}
    assert all(entry.epochs == (entry.began >= 1) for entry in entries)


def test_a_rise_is_that_of_the_assembled_network(folder: Path) -> None:
    """Also where the teacher only lends its place, so that nothing needs to be assembled."""
    yaml, teacher = trained("yolo11n.yaml")
    library, _ = take(folder, THREE)
    judge = Judge(teacher.model, draw(8, 64, 1), CPU, 8, 8)
    for each in THREE:
        rows = rows_of(yaml)
        rows[each.layer] = list(each.row)
        split = len(yaml["backbone"])
        made = assembler_of(yaml, teacher.model, folder).assemble({**yaml, "backbone": rows[:split], "head": rows[split:]})
        entry, rise = library.get(each), judge.rises([made.model.model], 0)[0]
        assert entry is not None
        assert (entry.rise, entry.low, entry.high) == pytest.approx((rise.mean, rise.low, rise.high), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("block", ["repvit", "efficientvit", "riformer", "irmb", "mobile_mqa"])
@pytest.mark.parametrize("slot", ["backbone.P3", "backbone.P4"])  # with a stem to solve, and without one
def test_a_start_is_never_worse_than_drawn_weights(course: Course, slot: str, block: str) -> None:
    """And far better where norms that were drawn make much of what they write."""
    chosen = alternative(slot, block)
    ((x, y),) = seen = taught(course, chosen.layer)
    student = course._student(chosen, seen)
    start, yaml = student.start, course._skeleton
    torch.manual_seed(0)
    again = build_layer(yaml, chosen.row, x.shape[1]).train()
    with torch.no_grad():
        begun, drawn = (float(replace(student, module=each).error(x, y)) for each in (student.module.train(), again))
    assert begun == pytest.approx(start.error, rel=1e-4) and drawn == pytest.approx(start.drawn, rel=0.3)
    assert start.error <= start.drawn
    if block in {"repvit", "efficientvit"}:
        assert start.name.endswith("+norms") and start.error < (0.5 if slot == "backbone.P4" else 0.3) * start.drawn


def test_errors_are_shares_of_the_variance(course: Course) -> None:
    """Whoever writes the mean of each channel is wrong by 1, in any slot and however many of its channels it has."""
    for each in (alternative("backbone.P3", "repvit"), alternative("backbone.P5", "riformer", 0.5)):
        ((x, y),) = seen = taught(course, each.layer)
        student = course._student(each, seen)
        means = y[:, student.index].mean((0, 2, 3), keepdim=True)
        for written, wrong in ((means, 1.0), (y[:, student.index], 0.0)):
            student.module = lambda _, written=written: written
            assert float(student.error(x, y)) == pytest.approx(wrong, abs=0.05)  # a silent channel counts less


@pytest.mark.parametrize("count", [1, 3])
def test_the_teacher_sees_a_batch_once_however_many_learn(course: Course, count: int) -> None:
    students = [course._student(each, taught(course, each.layer)) for each in THREE[:count]]
    passes: list[int] = []
    first = course._teacher.model[0].register_forward_hook(lambda _, images, __: passes.append(len(images[0])))
    try:
        Round(course._teacher, students, course._fit, LESSONS.training, 2, 0, 5, torch.float32).run(print, None)
    finally:
        first.remove()
    assert passes == [8] * 4 and all(student.rounds == 1 for student in students)  # two batches of 8, twice


def test_a_solved_stem_is_the_least_squares() -> None:
    """Where the teacher's slot is a 1 x 1 convolution, a stem solved for it leaves no error, mean and deviation included."""
    yaml, teacher = trained("yolo11n.yaml")
    torch.manual_seed(0)
    seen = tap(teacher.model, torch.rand(8, 3, 64, 64), {4})[4]
    layer = build_layer(yaml, alternative("backbone.P3", "riformer").row, seen[0].shape[1])
    stem = stem_of(layer)
    assert stem is not None
    true = torch.randn(128, seen[0].shape[1], 1, 1)
    goal = nn.functional.conv2d(seen[0], true, torch.randn(128)).detach()
    solve_stem(layer, [seen[0]], [goal])
    for mode in (True, False):
        got = stem.train(mode).norm(stem.filter(seen[0])).detach()
        assert float((got - goal).square().mean() / goal.var()) < 1e-3
    own = before_activation(teacher.model.model[4], seen[0], 128)
    assert own is not None and torch.allclose(nn.functional.silu(own), seen[1], atol=1e-4)
