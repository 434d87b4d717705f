"""Drawing one scene of the built-in detection set: pixels, boxes and class numbers from a random generator.

Eight classes, chosen so that architectures differ. Four need **shape**: `triangle`, `square`, `star` and `ring` share
colours, fills and sizes. Four need **context**: a disc is `disc-on-stripes` or `disc-on-dots` by the patch it lies on
(its own pixels tell nothing), and a plain cross is `cross-under-pair` or `cross-over-pair` by whether a pair of dots,
up to a third of the image away, lies above or below it, which asks for a wide receptive field.

Belonging to no class, and never labelled: hexagons, half discs, L shapes and long bars, discs on plain patches, patches
without a disc, and the pairs of dots. Flipping left to right keeps every class; flipping upside down would swap the
two crosses (Ultralytics' defaults flip left to right only).

Pixels are mixed in integer arithmetic, so that they do not hang on how a processor rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

CLASSES = (
    "triangle",
    "square",
    "star",
    "ring",
    "disc-on-stripes",
    "disc-on-dots",
    "cross-under-pair",
    "cross-over-pair",
)
SIDE = 192
"""Height and width of a scene in pixels."""
SMALLEST = 0.12
"""The smallest object, as a share of the side."""
MIN_VISIBLE = 0.3
"""An object of which less than this share can be seen has no label."""

_NO_CLASS = -1
_SUBPIXEL_BITS = 4

Bytes = NDArray[np.uint8]
Points = NDArray[np.float64]
Ints = NDArray[np.int32]
Rng = np.random.Generator
Paint = Callable[[Ints, Ints], Ints]
"""From the x and y of pixels, (h, w) each, to their colours, (h, w, 3) or what broadcasts to it."""
Place = Callable[["_Scene", Rng, float], bool]
"""Draws one thing about so many pixels large, or says that it found no room."""


@dataclass
class _Layer:
    """Something drawn whole: where it can still be seen, how large it is (in pixels), how much of it may be hidden."""

    label: int
    visible: NDArray[np.bool_]
    area: float
    may_hide: float


@dataclass
class _Scene:
    canvas: Bytes
    layers: list[_Layer] = field(default_factory=list)

    def accepts(self, solid: NDArray[np.bool_]) -> bool:
        """Whether everything drawn so far stays recognisable once `solid` covers it."""
        return all(
            np.count_nonzero(layer.visible & ~solid) >= (1 - layer.may_hide) * layer.area
            for layer in self.layers
            if (layer.visible & solid).any()
        )

    def draw(self, mask: Bytes, paint: Paint, label: int, area: float, may_hide: float) -> _Layer:
        """Mix `paint` into the canvas by the opacity `mask` (0 to 255) and hide what lies under it."""
        left, top, width, height = cv2.boundingRect(mask)
        box = slice(top, top + height), slice(left, left + width)
        alpha = mask[box][..., None].astype(np.uint16)
        self.canvas[box] = (self.canvas[box] * (255 - alpha) + _bytes(paint(_X[box], _Y[box])) * alpha + 127) // 255
        solid = mask >= 128
        for layer in self.layers:
            layer.visible &= ~solid
        self.layers.append(_Layer(label, solid, area, may_hide))
        return self.layers[-1]


def draw_scene(rng: Rng) -> tuple[Bytes, NDArray[np.float64], list[Points]]:
    """Draws one scene.

    Returns:
        The image, (SIDE, SIDE, 3) BGR bytes; its boxes, (n, 5) as Ultralytics writes them: class, centre x, centre
        y, width, height, as shares of the side; and the outlines, each (points, 2) x, y as shares of the side. Both are of
        what can be seen of an object, to the pixel.
    """
    scene = _Scene(_background(rng))
    wanted = _classes_of_a_scene(rng)
    largest = 0.6 / max(1.0, len(wanted) / 2) ** 0.5
    parts: list[int] = [*wanted, *[_NO_CLASS] * int(rng.integers(0, 3))]
    for index in rng.permutation(len(parts)):
        label = parts[index]
        for attempt in range(20):
            share = np.exp(rng.uniform(np.log(SMALLEST), np.log(largest)))
            size = max(SMALLEST, share * 0.95**attempt) * SIDE
            if _PLACE[label](scene, rng, size):
                break
    for _ in range(int(rng.choice(3, p=(0.6, 0.25, 0.15)))):
        _occluder(scene, rng)
    seen = [(box, layer) for layer in scene.layers if (box := _box(layer)) is not None]
    boxes = np.array([box for box, _ in seen], dtype=np.float64).reshape(-1, 5)
    return _photograph(scene.canvas, rng), boxes, [_outline(layer.visible) for _, layer in seen]


def _classes_of_a_scene(rng: Rng) -> list[int]:
    """One to seven class numbers; at most one cross, so that no pair of dots can be taken for another's."""
    count = int(rng.integers(1, 8))
    cross = rng.random() < 0.22 * count
    labels = [int(label) for label in rng.integers(0, 6, count - cross)]
    return labels + ([6 + int(rng.integers(0, 2))] if cross else [])


def _box(layer: _Layer) -> tuple[float, ...] | None:
    """The box around what can be seen of an object, or None where that is too little or belongs to no class."""
    if layer.label == _NO_CLASS or np.count_nonzero(layer.visible) < MIN_VISIBLE * layer.area:
        return None
    rows, columns = np.flatnonzero(layer.visible.any(axis=1)), np.flatnonzero(layer.visible.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    return (
        layer.label,
        (left + right) / 2 / SIDE,
        (top + bottom) / 2 / SIDE,
        (right - left) / SIDE,
        (bottom - top) / SIDE,
    )


def _outline(visible: NDArray[np.bool_]) -> Points:
    """One polygon around what can be seen of an object, through the middles of its outermost pixels.

    Labels know one polygon per object: around a hole, and to a part that something has cut off, leads a seam that is gone
    twice, so that filling by the even-odd rule (which OpenCV's is) leaves holes open.
    """
    contours, _ = cv2.findContours(visible.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    whole, *others = sorted((contour.reshape(-1, 2).astype(np.float64) for contour in contours), key=len, reverse=True)
    for part in others:
        at, to = divmod(int(np.argmin(np.square(whole[:, None] - part).sum(axis=2))), len(part))
        whole = np.concatenate([whole[: at + 1], part[to:], part[: to + 1], whole[at:]])
    return np.asarray((whole + 0.5) / SIDE)


# --- outlines: unit shapes within radius 1 around the origin, as (n, 2) points ---


def _regular(corners: int, *radii: float) -> Points:
    radius = np.resize(radii or (1.0,), corners)
    angle = np.arange(corners) * (2 * np.pi / corners)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


_DISC = _regular(48)
_ARM = 0.3
_CROSS = np.array(
    [
        (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
        (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
    ]
)  # fmt: skip
_SHAPES: tuple[list[Points], ...] = (
    [_regular(3)],
    [_regular(4)],
    [_regular(10, 1.0, 0.42)],
    [_DISC, 0.55 * _DISC],
)
_DISTRACTORS: tuple[list[Points], ...] = (
    [_regular(6)],
    [_DISC[:25]],
    [np.array([(-0.7, -0.8), (-0.1, -0.8), (-0.1, 0.3), (0.7, 0.3), (0.7, 0.8), (-0.7, 0.8)])],
    [np.array([(-1.0, -0.2), (1.0, -0.2), (1.0, 0.2), (-1.0, 0.2)])],
)


def _turned(outline: list[Points], angle: float, aspect: float = 1.0) -> list[Points]:
    turn = np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
    return [(points * (1.0, aspect)) @ turn.T for points in outline]


def _scaled(outline: list[Points], size: float) -> list[Points]:
    """The outline with the longer side of its box `size` pixels long, around the origin."""
    low, high = outline[0].min(axis=0), outline[0].max(axis=0)
    scale = size / float((high - low).max())
    return [(points - (low + high) / 2) * scale for points in outline]


def _area(outline: list[Points]) -> float:
    """Of the first contour less the others (its holes), in square pixels."""
    outer, *holes = (float(cv2.contourArea(points.astype(np.float32))) for points in outline)
    return outer - sum(holes)


def _mask(outline: list[Points], centre: Points) -> Bytes:
    """Opacity (0 to 255) of the outline moved to `centre` (x, y in pixels); contours inside another are holes."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    contours = [np.rint((points + centre - 0.5) * (1 << _SUBPIXEL_BITS)).astype(np.int32) for points in outline]
    cv2.fillPoly(mask, contours, 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    return mask


def _somewhere(rng: Rng, extent: float, overhang: float = 0.2) -> Points:
    """A centre for something `extent` pixels wide, such that at most the share `overhang` of it leaves the image."""
    margin = min(extent * (0.5 - overhang), SIDE / 2)
    return rng.uniform(margin, SIDE - margin, 2)


# --- paint ---

_Y, _X = np.indices((SIDE, SIDE), dtype=np.int32)


def _bytes(values: NDArray[np.integer]) -> Bytes:
    return np.asarray(np.minimum(np.maximum(values, 0), 255), dtype=np.uint8)


def _colour(rng: Rng, *unlike: Ints | tuple[float, ...]) -> Ints:
    """The first of a few random colours that stands out from all of `unlike`, or the one that does it best."""
    drawn = rng.integers(15, 241, (8, 3), dtype=np.int32)
    apart = np.min([np.abs(drawn - np.rint(other)).sum(axis=1) for other in unlike] or [np.full(8, 765)], axis=0)
    return np.asarray(drawn[np.argmax(np.minimum(apart, 190))])


def _under(scene: _Scene, mask: Bytes) -> tuple[float, ...]:
    return tuple(cv2.mean(scene.canvas, mask)[:3])


def _along(x: Ints, y: Ints, angle: float) -> Ints:
    """The distance of pixels along a direction, in 1/16 pixels."""
    return np.asarray(x * round(16 * np.cos(angle)) + y * round(16 * np.sin(angle)))


def _plain(colour: Ints) -> Paint:
    return lambda x, _: np.broadcast_to(colour, (*x.shape, 3))


def _stripes(one: Ints, other: Ints, period: float, angle: float) -> Paint:
    def paint(x: Ints, y: Ints) -> Ints:
        odd = (_along(x, y, angle) // round(8 * period)) % 2 == 1
        return np.where(odd[..., None], one, other)

    return paint


def _dots(one: Ints, other: Ints, period: float, angle: float) -> Paint:
    cell = round(16 * period)

    def paint(x: Ints, y: Ints) -> Ints:
        u = _along(x, y, angle) % cell - cell // 2
        v = _along(x, y, angle + np.pi / 2) % cell - cell // 2
        inside = 7 * (u * u + v * v) < cell * cell  # about as much of each colour as stripes have
        return np.where(inside[..., None], one, other)

    return paint


def _fill(rng: Rng, colour: Ints, size: float) -> Paint:
    """One of the fills that all shapes share: mostly plain, else shaded, speckled, striped or dotted in close colours."""
    kind, angle = int(rng.choice(5, p=(0.4, 0.2, 0.2, 0.1, 0.1))), float(rng.uniform(0, 2 * np.pi))
    if kind == 0:
        return _plain(colour)
    if kind == 1:

        def shaded(x: Ints, y: Ints) -> Ints:
            along = _along(x, y, angle)
            return colour + ((along - int(np.median(along))) * 80 // round(16 * size))[..., None]

        return shaded
    if kind == 2:
        return lambda x, _: colour + rng.integers(-35, 36, (*x.shape, 1), dtype=np.int32)
    second = np.minimum(np.maximum(colour + rng.choice((-45, 45), 3), 0), 255).astype(np.int32)
    return (_stripes, _dots)[kind - 3](colour, second, max(5.0, size / 5), angle)


def _background(rng: Rng) -> Bytes:
    """Two colours flowing into each other, cloudy, with lines and blobs across."""
    one = rng.integers(90, 150, 3, dtype=np.int32)
    drift = rng.integers(-40, 41, 3, dtype=np.int32)
    along = _along(_X, _Y, float(rng.uniform(0, 2 * np.pi)))
    along = (along - along.min()) * 256 // int(np.ptp(along))
    cells = int(rng.choice((4, 8, 16, 32)))
    clouds = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    clouds = cv2.resize(clouds, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR_EXACT).astype(np.uint8)
    depth = int(rng.integers(10, 50))
    canvas = _bytes(one + drift * along[..., None] // 256 + (clouds.astype(np.int32) - 128) * depth // 128)
    for _ in range(int(rng.integers(0, 6))):
        start, end = rng.integers(-20, SIDE + 20, (2, 2)).tolist()
        cv2.line(canvas, start, end, _near(rng, one), int(rng.integers(1, 4)), cv2.LINE_AA)
    for _ in range(int(rng.integers(0, 5))):
        centre, axes = rng.integers(0, SIDE, 2).tolist(), rng.integers(3, 30, 2).tolist()
        cv2.ellipse(canvas, centre, axes, float(rng.uniform(0, 180)), 0, 360, _near(rng, one), -1, cv2.LINE_AA)
    return canvas


def _near(rng: Rng, colour: Ints) -> list[int]:
    return [int(c) for c in _bytes(colour + rng.integers(-50, 51, 3))]


def _photograph(canvas: Bytes, rng: Rng) -> Bytes:
    """What a cheap camera makes of it: light, sometimes blur, grain."""
    gain, offset = int(rng.integers(180, 290)), int(rng.integers(-20, 21))
    seen = _bytes(canvas.astype(np.int32) * gain // 256 + offset)
    if rng.random() < 0.3:
        seen = cv2.GaussianBlur(seen, (3, 3), 0).astype(np.uint8)
    grain = int(rng.integers(2, 14))
    return _bytes(seen + rng.integers(-grain, grain + 1, seen.shape, dtype=np.int16))


# --- placing ---


def _place_outline(outline: list[Points], label: int) -> Place:
    def place(scene: _Scene, rng: Rng, size: float) -> bool:
        turned = _turned(outline, float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0.85, 1.0)))
        shape = _scaled(turned, size)
        mask = _mask(shape, _somewhere(rng, size))
        if not scene.accepts(mask >= 128):
            return False
        scene.draw(mask, _fill(rng, _colour(rng, _under(scene, mask)), size), label, _area(shape), may_hide=0.55)
        return True

    return place


def _place_disc(label: int) -> Place:
    """A disc on a patch whose pattern makes its class; without a class the patch is plain or the disc is missing."""

    def place(scene: _Scene, rng: Rng, size: float) -> bool:
        size = min(max(size, 0.1 * SIDE), 0.32 * SIDE)
        extent = size * float(rng.uniform(1.8, 2.3))
        angle = float(rng.uniform(0, np.pi))
        corners = int(rng.choice((4, 5, 6, 48)))
        patch = _scaled(_turned([_regular(corners)], angle, float(rng.uniform(0.85, 1.0))), extent)
        centre = _somewhere(rng, extent, overhang=0.08)
        under = _mask(patch, centre)
        if not scene.accepts(under >= 128):
            return False
        one = _colour(rng, _under(scene, under))
        other = _colour(rng, one)
        period = float(rng.uniform(7, max(8, extent / 5)))
        pattern = {CLASSES.index("disc-on-stripes"): _stripes, CLASSES.index("disc-on-dots"): _dots}.get(label)
        bare = pattern is None and rng.random() < 0.5
        if bare:
            pattern = (_stripes, _dots)[int(rng.integers(0, 2))]
        paint = pattern(one, other, period, angle) if pattern else _plain(one)
        ground = scene.draw(under, paint, _NO_CLASS, _area(patch), may_hide=0.5)
        if not bare:
            disc = _scaled([_DISC], size)
            mask = _mask(disc, centre + rng.uniform(-0.1, 0.1, 2) * size)
            scene.draw(mask, _plain(_colour(rng, one, other)), label, _area(disc), may_hide=0.45)
            ground.area, ground.may_hide = float(np.count_nonzero(ground.visible)), 0.35
        return True

    return place


def _place_cross(label: int) -> Place:
    """A cross with a pair of dots of its colour at some distance above or below it."""

    def place(scene: _Scene, rng: Rng, size: float) -> bool:
        size = min(max(size, 0.1 * SIDE), 0.25 * SIDE)
        cross = _scaled(_turned([_CROSS], float(rng.uniform(-0.3, 0.3))), size)
        dot = _scaled([_DISC], max(9.0, 0.4 * size))
        away = min(float(rng.uniform(1.3, 3.2)) * size, SIDE / 3)
        up = label == CLASSES.index("cross-under-pair")
        reach = 0.6 * size, SIDE - away - 0.9 * size
        x = float(rng.uniform(size, SIDE - size))
        y = float(rng.uniform(*reach))
        top, bottom = np.array([x, y]), np.array([x + float(rng.uniform(-0.5, 0.5)) * size, y + away])
        at, pair = (bottom, top) if up else (top, bottom)
        apart = np.array([max(6.5, 0.3 * size), 0.0])
        marks = [(cross, _mask(cross, at), label)]
        marks += [(dot, _mask(dot, pair + side * apart), _NO_CLASS) for side in (-1, 1)]
        if not all(scene.accepts(mask >= 128) for _, mask, _ in marks):
            return False
        colour = _colour(rng, *(_under(scene, mask) for _, mask, _ in marks))
        for shape, mask, of in marks:
            scene.draw(mask, _plain(colour), of, _area(shape), may_hide=0.4 if of == label else 0.25)
        return True

    return place


def _place_distractor(scene: _Scene, rng: Rng, size: float) -> bool:
    kind = int(rng.integers(0, len(_DISTRACTORS) + 2))
    if kind >= len(_DISTRACTORS):
        return _place_disc(_NO_CLASS)(scene, rng, min(size, 0.2 * SIDE))
    return _place_outline(_DISTRACTORS[kind], _NO_CLASS)(scene, rng, size)


def _occluder(scene: _Scene, rng: Rng) -> None:
    """A long bar in front of everything; it may hide objects so far that they lose their label, but no pair of dots."""
    bar = [np.array([(-1.5, -1.0), (1.5, -1.0), (1.5, 1.0), (-1.5, 1.0)]) * (SIDE, float(rng.uniform(2, 6)))]
    mask = _mask(_turned(bar, float(rng.uniform(0, np.pi))), _somewhere(rng, 0))
    solid = mask >= 128
    for layer in scene.layers:
        if layer.label == _NO_CLASS and np.count_nonzero(layer.visible & ~solid) < (1 - layer.may_hide) * layer.area:
            return
    scene.draw(mask, _fill(rng, _colour(rng), 40.0), _NO_CLASS, 0.0, may_hide=1.0)


_PLACE: dict[int, Place] = {
    **{label: _place_outline(outline, label) for label, outline in enumerate(_SHAPES)},
    **{label: _place_disc(label) for label in (4, 5)},
    **{label: _place_cross(label) for label in (6, 7)},
    _NO_CLASS: _place_distractor,
}
