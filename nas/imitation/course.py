"""The course that some alternatives go through: start, rounds, a judgement after each, and their place in the library."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas.alive import beat
from nas.imitation.alternatives import Alternative, rows_of
from nas.imitation.assemble import Assembler
from nas.imitation.channels import widths_of
from nas.imitation.judge import Judge, Rise
from nas.imitation.learn import FLOOR, Lesson, Lessons, Round, Student, errors_of
from nas.imitation.library import Entry, Library, facts_of
from nas.imitation.norms import settle_norms
from nas.imitation.start import Start, started
from nas.seeds import derive
from nas.training.augment import Augmentation, Batches, generator_of
from nas.training.checkpoint import StateError, read_state, write_state
from nas.yolo.criterion import Batch
from nas.yolo.decode import Images
from nas.yolo.slices import is_whole
from nas.yolo.slot import build_layer, output_channels, tap

Report = Callable[[Lesson], None]


class Course:
    """Imitation of one teacher on one machine.

    Args:
        skeleton: its resolved model YAML, with the data's number of classes.
        teacher: frozen, on the CPU.
        fit: images to learn from.
        held_out: images to judge by.
        library: where blocks come to lie, and the state of what is not finished.
        lessons: how imitation goes.
        seed: of all draws.
        precision: of the students and the teacher beside them.
    """

    def __init__(
        self,
        skeleton: Mapping[str, Any],
        teacher: Any,
        fit: Images,
        held_out: Images,
        library: Library,
        lessons: Lessons,
        seed: int,
        device: torch.device,
        precision: torch.dtype,
    ) -> None:
        self._skeleton, self._library, self._lessons = skeleton, library, lessons
        self._seed, self._device, self._precision = seed, device, precision
        self._teacher = deepcopy(teacher).to(device, memory_format=torch.channels_last).eval()
        self._fit, self._held_out = Batches(fit, device), Batches(held_out, device)
        first = [self._batch(place) for place in range(min(lessons.first, -(-len(fit) // lessons.training.batch)))]
        self._first = [batch["img"] for batch in first]
        widths = widths_of(skeleton, self._teacher, library.folder, first)
        self._judge = Judge(self._teacher, held_out, device, lessons.training.batch, lessons.judged)
        self._place: dict[str, Mapping[str, Tensor]] = {}  # what is being judged, by key
        self._assembler = Assembler(skeleton, teacher, widths, lambda alternative: self._place[alternative.key])
        self._widths, self._channels = widths, output_channels(teacher)

    def take(self, alternatives: Sequence[Alternative], report: Report) -> None:
        """Let alternatives learn that are not in the library yet; it has all of them afterwards, learned or dropped.

        Out of memory halves the group, and where one is left alone, its batch; that changes no other result.
        """
        todo = self._library.missing(alternatives)
        if not todo:
            return
        try:
            self._take(todo, report)
            return
        except (MemoryError, torch.OutOfMemoryError) as error:
            if len(todo) == 1 and self._lessons.training.batch == 1:
                raise MemoryError(f"layer {todo[0].layer}: {todo[0].module} does not fit at a batch of 1") from error
        # what the first try had taken is free again once its frames are gone
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if len(todo) > 1:
            half = len(todo) // 2
            self.take(todo[:half], report)
            self.take(todo[half:], report)
            return
        lessons = self._lessons
        try:
            self._lessons = replace(lessons, training=lessons.training.halved())
            self.take(todo, report)
        finally:
            self._lessons = lessons

    def _take(self, todo: Sequence[Alternative], report: Report) -> None:
        seen = [tap(self._teacher, images, {a.layer for a in todo}) for images in self._first]
        students = [self._student(alternative, [each[alternative.layer] for each in seen]) for alternative in todo]
        # a good start where the slot hardly matters is enough; one that is further off than the mean is none
        known = [student for student in students if student.rounds or student.start.error < 1]
        students = self._judged(known) + [student for student in students if student not in known]
        while students:
            number = min(student.rounds for student in students)
            self._through(number, [student for student in students if student.rounds == number], report)
            students = self._judged([s for s in students if s.rounds == number + 1]) + [
                s for s in students if s.rounds > number + 1
            ]

    def _through(self, number: int, students: Sequence[Student], report: Report) -> None:
        """One round, from where it was interrupted; afterwards every student lies on disk as it is."""
        students = sorted(students, key=lambda student: student.alternative.key)  # whatever their order was before a kill
        keys = " ".join(student.alternative.key for student in students)
        state = self._library.folder / f"round{number + 1}-{hashlib.sha256(keys.encode()).hexdigest()[:12]}.safetensors"
        epochs, recipe = self._lessons.rounds[number], self._lessons.training
        learning = Round(self._teacher, students, self._fit, recipe, epochs, number, self._seed, self._precision)
        if state.is_file():
            with suppress(StateError):  # of another recipe or version: that only costs time
                learning.load(state)
        learning.run(report, state)
        for student in students:
            if not student.dropped:
                write_state(
                    self._part(student.alternative),
                    _tensors(student),
                    {"rounds": student.rounds, "start": asdict(student.start)},
                )
        state.unlink(missing_ok=True)

    def _student(self, alternative: Alternative, seen: Sequence[tuple[Tensor, Tensor]]) -> Student:
        layer, row = alternative.layer, list(alternative.row)
        index = self._widths.index(layer, row[3][0]).to(self._device)
        outputs = torch.cat([y.float() for _, y in seen])
        variance = outputs.var((0, 2, 3), correction=0)
        scale = (1 / (variance + FLOOR * variance.mean() + 1e-12))[index].view(1, -1, 1, 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(self._seed, layer, f"imitation of {alternative.key}"))
            drawn = build_layer(self._skeleton, row, seen[0][0].shape[1])
        drawn = drawn.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        own = self._teacher.model[layer]

        @torch.no_grad()
        def error(module: nn.Module) -> float:
            beat()
            student = Student(alternative, module.train(), index, scale, Start("", 0.0, 0.0))
            found = sum(float(student.error(x, y)) for x, y in seen) / len(seen)
            return found if math.isfinite(found) else math.inf

        rounds, part = 0, self._part(alternative)
        if part.is_file():
            tensors, facts = read_state(part, self._device)
            drawn.load_state_dict(tensors)
            module, start, rounds = drawn, Start(**facts["start"]), facts["rounds"]
        else:
            module, start = started(drawn, own, [x for x, _ in seen], [y for _, y in seen], index, error)
            settle_norms(module, [x for x, _ in seen])
        for parameter in module.parameters():
            parameter.requires_grad_(True)
        return Student(alternative, module.eval(), index, scale, start, rounds)

    def _judged(self, students: Sequence[Student]) -> list[Student]:
        """Put those into the library that have learned enough, or have been through all rounds; returns the others."""
        if not students:
            return []
        going = []
        errors = dict(zip(map(id, students), errors_of(self._teacher, students, self._held_out), strict=True))
        for student, rise in self._rises(students, lambda s: not s.dropped and math.isfinite(errors[id(s)])):
            entry = self._entry(student, errors[id(student)], rise)
            if entry.dropped and not student.rounds:  # what it begins with may be out of bounds, and learning mend it
                going.append(student)
                continue
            last = bool(entry.dropped) or student.rounds == len(self._lessons.rounds)
            if last or entry.high <= self._lessons.enough * entry.loss:
                write_state(
                    self._library.path(student.alternative), {} if entry.dropped else _tensors(student), facts_of(entry)
                )
                self._part(student.alternative).unlink(missing_ok=True)
            else:
                going.append(student)
        return going

    def _entry(self, student: Student, error: float, rise: Rise | None) -> Entry:
        layer, row = student.alternative.layer, list(student.alternative.row)
        entry = Entry(layer, row, epochs=sum(self._lessons.rounds[: student.rounds]))
        start = student.start
        entry = replace(entry, start=start.name, drawn=_finite(start.drawn), began=_finite(start.error))
        if rise is None:
            return replace(entry, dropped=student.dropped or "its output is not finite")
        if not math.isfinite(rise.mean):
            return replace(entry, dropped="the loss with it is not finite")
        loss = float(self._judge.own.mean())
        return replace(entry, error=error, rise=rise.mean, low=rise.low, high=rise.high, loss=loss)

    def _rises(self, students: Sequence[Student], sound: Callable[[Student], bool]) -> Iterator[tuple[Student, Rise | None]]:
        """What each costs in the teacher's place, slot by slot; None of those that are not sound."""

        def slot(student: Student) -> int:
            return student.alternative.layer

        for layer, beside in groupby(sorted(students, key=slot), slot):
            group = list(beside)
            rises = iter(self._judge.rises([self._tail(student) for student in group if sound(student)], layer))
            yield from ((student, next(rises) if sound(student) else None) for student in group)

    def _tail(self, student: Student) -> list[nn.Module]:
        """The layers of the teacher with a student in its place, from that on."""
        layer, layers = student.alternative.layer, self._teacher.model
        if is_whole(student.index.cpu(), self._channels[layer]):  # nobody else changes: the teacher with another layer
            for name in ("i", "f", "type"):
                setattr(student.module, name, getattr(layers[layer], name))
            return [student.module, *layers[layer + 1 :]]
        self._place[student.alternative.key] = _tensors(student)
        try:
            return list(self._assembler.assemble(self._replaced(student.alternative)).model.model[layer:])
        finally:
            del self._place[student.alternative.key]

    def _replaced(self, alternative: Alternative) -> dict[str, Any]:
        """The skeleton with one alternative in its place."""
        rows = rows_of(self._skeleton)
        rows[alternative.layer] = list(alternative.row)
        split = len(self._skeleton["backbone"])
        return {**self._skeleton, "backbone": rows[:split], "head": rows[split:]}

    def _part(self, alternative: Alternative) -> Path:
        """Where an alternative lies between two rounds."""
        return self._library.folder / f"{alternative.key}.part.safetensors"

    def _batch(self, place: int) -> Batch:
        """One of the first batches, not augmented."""
        size = self._lessons.training.batch
        order = torch.randperm(len(self._fit.images), generator=generator_of(self._seed))
        return self._fit.make(order[place * size : (place + 1) * size], Augmentation(), generator_of(0))


def _finite(number: float) -> float:
    """As JSON holds it."""
    return min(number, 1e30)


def _tensors(student: Student) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in student.module.state_dict().items()}
