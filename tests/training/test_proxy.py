from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from ultralytics.nn.tasks import DetectionModel, SegmentationModel

from nas.errors import InputError
from nas.training import precision
from nas.training.augment import Augmentation, Batches, generator_of
from nas.training.distil import Tutor
from nas.training.precision import training_dtype
from nas.training.proxy import (
    Average,
    DivergedError,
    Outcome,
    Progress,
    Recipe,
    _optimizer,
    train_proxy,
)
from nas.training.recipe import Leg, legs_of, rate
from nas.yolo.criterion import Criterion
from nas.yolo.decode import Images
from nas.yolo.slot import predictions_with_fixed_norms

Rectangles = Callable[[int, int, int], Images]
CPU = torch.device("cpu")


def model_of(skeleton: str = "yolo11n.yaml", seed: int = 0) -> DetectionModel:
    torch.manual_seed(seed)
    return (SegmentationModel if "seg" in skeleton else DetectionModel)(skeleton, ch=3, nc=3, verbose=False)


def outlined(images: Images) -> Images:
    """The same images; each box is a polygon too."""
    corners = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)], np.float32) * images.imgsz
    polygons = [[box[1:3] * images.imgsz + corners * box[3:] for box in label] for label in images.labels]
    return Images(images.pixels, images.labels, polygons=polygons)


def trained(
    model: DetectionModel, images: Images, rungs: int | tuple[int, ...], report: Callable[[Progress], None] = print, **changes
):
    held_out = changes.pop("held_out", images)
    seed = changes.pop("seed", 0)
    until, state, teacher = (changes.pop(word, None) for word in ("until", "state", "teacher"))
    return train_proxy(
        model,
        images,
        held_out,
        nc=3,
        rungs=rungs if isinstance(rungs, tuple) else (rungs,),
        recipe=Recipe(**changes),
        seed=seed,
        device=CPU,
        precision=torch.float32,
        report=report,
        until=until,
        state=state,
        teacher=teacher,
    )


def test_it_learns(rectangles: Rectangles) -> None:
    seen: list[Progress] = []
    outcome = trained(model_of(), rectangles(48, 64, 0), 10, seen.append, held_out=rectangles(24, 64, 1))
    assert isinstance(outcome, Outcome)
    assert outcome.map > 0.1 and outcome.map50 > outcome.map  # 13 trainings on two processors gave 0.18 to 0.48
    assert outcome.loss_curve[-1] < 0.8 * max(outcome.loss_curve)  # it rises at first, as boxes begin to be found
    assert [p.epoch for p in seen] == list(range(1, 11)) and seen[-1].loss == outcome.loss_curve[-1]


def test_equal_seeds_give_equal_results(rectangles: Rectangles) -> None:
    images = rectangles(16, 64, 0)
    how = Augmentation(0.5, 0.2, 0.1, 0.5, 0.01, 0.3, 0.2)
    models = [model_of() for _ in range(3)]
    one, same, other = (
        trained(model, images, 2, seed=seed, augmentation=how) for model, seed in zip(models, (5, 5, 6), strict=True)
    )
    assert one.loss_curve == same.loss_curve and one.map == same.map
    assert one.loss_curve != other.loss_curve
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize(
    ("skeleton", "fixed"),
    [
        ("yolo11n.yaml", ["model.23.dfl.conv.weight"]),
        ("yolo11n-seg.yaml", ["model.23.dfl.conv.weight"]),
        ("yolo26n-seg.yaml", []),
    ],
)
def test_fixed_weights_stay_and_all_others_move(rectangles: Rectangles, skeleton: str, fixed: list[str]) -> None:
    model, images = model_of(skeleton), rectangles(8, 64, 0)
    before = {key: value.clone() for key, value in model.named_parameters()}
    trained(model, outlined(images) if "seg" in skeleton else images, 1, batch=4)
    still = [key for key, value in model.named_parameters() if torch.equal(value, before[key])]
    # a one-to-one branch learns only on levels that an object was given to
    assert [key for key in still if "one2one" not in key] == fixed
    assert not [key for key in still if "one2one" in key and "cv3" in key]


@pytest.mark.parametrize("skeleton", ["yolo11n-seg.yaml", "yolo26n-seg.yaml"])
def test_masks_count_in_the_loss(rectangles: Rectangles, skeleton: str) -> None:
    model = model_of(skeleton).train()
    criterion = Criterion(model, 1)
    batch = Batches(outlined(rectangles(4, 64, 0)), CPU).make(torch.arange(4), Augmentation(), generator_of(0))
    predictions = model(batch["img"])
    whole = criterion(predictions, batch)
    assert whole.isfinite()
    assert criterion(predictions, {**batch, "masks": batch["masks"] * 0}) != whole
    none = {**batch, **{key: batch[key][:0] for key in ("cls", "bboxes", "batch_idx")}, "masks": batch["masks"] * 0}
    assert criterion(predictions, none).isfinite()


def test_a_diverged_training_stops_at_once(rectangles: Rectangles) -> None:
    model = model_of()
    model.model[3].conv.weight.data[0, 0] = float("nan")
    with pytest.raises(DivergedError, match="epoch 1"):
        trained(model, rectangles(8, 64, 0), 3, report=lambda p: pytest.fail("reported an epoch"))


def test_what_report_raises_ends_the_training(rectangles: Rectangles) -> None:
    def stop(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(model_of(), rectangles(8, 64, 0), 100, report=stop)


@pytest.mark.parametrize("skeleton", ["yolo26n.yaml", "yolov10n.yaml"])
@pytest.mark.parametrize("end2end", [False, True])
def test_end_to_end_heads(rectangles: Rectangles, skeleton: str, end2end: bool) -> None:
    model = model_of(skeleton)
    model.end2end = end2end
    outcome = trained(model, rectangles(8, 64, 0), 2, batch=4)
    assert len(outcome.loss_curve) == 2 and 0 <= outcome.map <= 1


def test_fewer_images_than_a_batch_and_images_without_boxes(rectangles: Rectangles) -> None:
    images = rectangles(3, 64, 0)
    empty = Images(images.pixels, [label[:0] for label in images.labels])
    assert trained(model_of(), empty, 1).map == 0.0
    assert trained(model_of("yolo11n-seg.yaml"), outlined(empty), 1).map == 0.0
    with pytest.raises(InputError, match="rungs of 0 epochs"):
        trained(model_of(), images, 0)


def test_precision_is_the_faster_one_and_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    timed = {torch.float32: 1.0, torch.bfloat16: 0.6}
    monkeypatch.setattr(precision, "step_seconds", lambda device, dtype: timed[dtype])
    assert training_dtype(CPU, tmp_path) == torch.bfloat16
    timed[torch.bfloat16] = 10.0  # a processor that only emulates it; or one that was busy during the second timing
    assert training_dtype(CPU, tmp_path) == torch.bfloat16
    assert training_dtype(CPU, tmp_path / "another machine") == torch.float32
    for kept in (tmp_path / "precision").glob("*.json"):
        kept.write_text("torn", encoding="utf-8")
    assert training_dtype(CPU, tmp_path) == torch.float32


def test_the_step_that_decides_is_a_real_one() -> None:
    assert 0 < precision.step_seconds(CPU, torch.float32) < 10


@pytest.mark.parametrize("skeleton", [pytest.param("yolo11n.yaml", marks=pytest.mark.slow), "yolo26n.yaml"])
@pytest.mark.parametrize("killed_in", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_training_taken_up_again_is_the_same_bit_for_bit(
    rectangles: Rectangles, skeleton: str, killed_in: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.training.proxy.STATE_SECONDS", 0.0)
    images, how = rectangles(12, 64, 0), Augmentation(0.5, 0.2, 0.1, 0.5, 0.01, 0.3, 0.2)
    more = {"batch": 4, "accumulate": 2, "augmentation": how}
    whole = model_of(skeleton)
    expected = trained(whole, images, (2, 4), **more)

    def die(progress: Progress) -> None:
        if progress.epoch == killed_in + 1:
            raise KeyboardInterrupt

    state = tmp_path / "training.safetensors"
    with pytest.raises(KeyboardInterrupt):
        trained(model_of(skeleton), images, (2, 4), die, state=state, **more)
    model = model_of(skeleton, seed=9)  # whatever it starts from
    outcome = trained(model, images, (2, 4), state=state, **more)
    assert outcome.resumed_at == killed_in
    assert (outcome.map, outcome.loss_curve, outcome.epochs) == (expected.map, expected.loss_curve, 4)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), model.state_dict().values(), strict=True))
    assert not state.exists()  # nothing is left to go on with


def test_a_trial_paused_at_a_rung_climbs_to_the_next(rectangles: Rectangles, tmp_path: Path) -> None:
    images, state = rectangles(8, 64, 0), tmp_path / "trial" / "training.safetensors"
    whole, model = model_of(), model_of()
    expected = trained(whole, images, (1, 2, 4), until=2, batch=4)
    first = trained(model, images, (1, 2, 4), until=1, batch=4, state=state)
    assert (first.epochs, first.resumed_at) == (1, 0)
    assert state.stat().st_size < 4.2 * sum(t.nbytes for t in model.state_dict().values())
    second = trained(model, images, (1, 2, 4), until=2, batch=4, state=state)
    assert (second.epochs, second.resumed_at) == (2, 1)
    assert (second.map, second.loss_curve) == (expected.map, expected.loss_curve)
    with pytest.raises(InputError, match="the state of another training"):
        trained(model, images, (1, 2, 4), batch=4, seed=1, state=state)
    state.write_bytes(b"torn")
    with pytest.raises(InputError, match="not the state of a training"):
        trained(model, images, (1, 2, 4), batch=4, state=state)
    with pytest.raises(InputError, match="no rung of 3 epochs"):
        trained(model, images, (1, 2, 4), until=3)


def test_a_teacher_draws_the_model_to_what_it_says(rectangles: Rectangles, tmp_path: Path) -> None:
    """Its term is learned from and not reported, the teacher stays as it is, and so taught a training is another one."""
    images, teacher = rectangles(4, 64, 0), model_of(seed=1)
    for branch in teacher.model[-1].cv3:
        branch[-1].bias.data += 4.0  # it is sure of many objects
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    batch = Batches(images, CPU).make(torch.arange(4), Augmentation(), generator_of(0))["img"]

    def away(model: DetectionModel) -> float:
        tutor = Tutor(teacher)
        with torch.no_grad():
            return float(tutor.loss(predictions_with_fixed_norms(model, batch), tutor.says(batch), 4, lambda value: value))

    alone, taught = model_of(), model_of()
    first = trained(alone, images, 2, batch=8)
    second = trained(taught, images, 2, batch=8, teacher=teacher)
    assert away(taught) < min(away(alone), away(model_of())) - 0.15  # other seeds gave 0.3 to 0.6
    assert second.loss_curve[0] == first.loss_curve[0] and second.loss_curve[1] != first.loss_curve[1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    state = tmp_path / "training.safetensors"
    trained(model_of(), images, (1, 2), batch=8, until=1, state=state)
    with pytest.raises(InputError, match="the state of another training"):
        trained(model_of(), images, (1, 2), batch=8, state=state, teacher=teacher)


def test_half_the_batch_twice_as_often_is_nearly_the_same_step(rectangles: Rectangles) -> None:
    images, recipe = rectangles(8, 64, 0), Recipe(batch=4)
    assert (recipe.halved().batch, recipe.halved().accumulate) == (2, 2)
    one, two = model_of(), model_of()
    for model, how in ((one, recipe), (two, recipe.halved())):
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()  # its statistics are of a batch
                module.train = lambda mode=True: None
        trained(model, images, 1, batch=how.batch, accumulate=how.accumulate, augmentation=Augmentation())
    moved = torch.cat([(a - b).flatten() for a, b in zip(one.parameters(), two.parameters(), strict=True)])
    step = torch.cat([(a - b).flatten() for a, b in zip(one.parameters(), model_of().parameters(), strict=True)])
    assert moved.norm() < 0.5 * step.norm()


def test_rungs_rise_and_each_leg_has_the_whole_schedule() -> None:
    assert legs_of((3, 9, 27)) == [Leg(0, 3), Leg(3, 9), Leg(9, 27)]
    for wrong in ((), (0,), (3, 3), (9, 3)):
        with pytest.raises(InputError, match="rungs of"):
            legs_of(wrong)
    recipe = Recipe(augmentation=Augmentation(mosaic=1.0, scale=0.5), close_mosaic=0.5)
    leg = Leg(4, 8)
    assert [leg.augmentation(epoch, recipe).mosaic for epoch in range(4, 8)] == [1.0, 1.0, 0.0, 0.0]
    assert leg.augmentation(7, recipe).scale == 0.5


def test_only_weights_of_convolutions_and_linear_layers_decay() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear, self.up = nn.Conv2d(2, 2, 1), nn.Linear(2, 2), nn.ConvTranspose2d(2, 2, 2)
            self.bn, self.ln, self.gn = nn.BatchNorm2d(2), nn.LayerNorm(2), nn.GroupNorm(1, 2)
            self.scale = nn.Parameter(torch.ones(2, 2))
            self.dfl = nn.Sequential(nn.Conv2d(2, 1, 1))

    net = nn.Sequential(Net())
    names = {id(parameter): name.removeprefix("0.") for name, parameter in net.named_parameters()}
    groups = {
        g["weight_decay"]: {names[id(p)] for p in g["params"]} for g in _optimizer(net, Recipe(weight_decay=0.5)).param_groups
    }
    decayed = {"conv.weight", "linear.weight", "up.weight"}
    assert groups == {0.5: decayed, 0.0: {name for name in names.values() if ".dfl." not in f"0.{name}"} - decayed}


@pytest.mark.parametrize(
    ("horizon", "expected"),
    [
        (0.0, [1, 2, 3, 4, 5, 6, 7, 8]),  # the latest
        (1.5, [1, 2, 3, 4, 4.8, 5.6, 6 + 8 / 15, 7.5111111]),  # shares 1, 1, 1, 1, 1/1.25, 1/1.5, 1/1.5, 1/1.5
        (100.0, [1, 2, 3, 4, 4.8, 5.6, 6.4, 7.2]),  # early on, a share of 4 / step
    ],
)
def test_average_of_weights_and_statistics(horizon: float, expected: list[float]) -> None:
    norm = nn.BatchNorm2d(1)
    average = Average(norm, horizon)
    for step, value in enumerate(expected, 1):
        for tensor in (norm.weight.data, norm.running_mean, norm.running_var):
            tensor.fill_(step)
        norm.num_batches_tracked += 1
        average.update()
        kept = {key: tensor.clone() for key, tensor in norm.state_dict().items()}
        average.apply()
        for key in ("weight", "running_mean", "running_var"):
            assert norm.state_dict()[key].item() == pytest.approx(value, rel=1e-5)
        assert norm.bias.item() == 0 and norm.num_batches_tracked.item() == step
        norm.load_state_dict(kept)


def test_learning_rate_rises_then_falls() -> None:
    recipe = Recipe(warmup=0.1, final_lr=0.01)
    rates = [rate(step, 100, recipe) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1.0) and rates.index(max(rates)) in {9, 10}
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] == pytest.approx(0.01, abs=0.002)
    assert rate(0, 1, recipe) == 1.0
