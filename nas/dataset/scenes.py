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
MIN_VISIBLE = 0.3
"""An object of which less than this share can be seen has no label."""

_NO_CLASS = -1
_SUBPIXEL_BITS = 4

Bytes = NDArray[np.uint8]
Points = NDArray[np.float64]
Colour = NDArray[np.int64]
Rng = np.random.Generator


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

    def draw(self, mask: Bytes, paint: Bytes, label: int, area: float, may_hide: float) -> None:
        """Mix `paint` into the canvas by the opacity `mask` (0 to 255) and hide what lies under it."""
        alpha = mask[..., None].astype(np.uint16)
        mixed = (self.canvas * (255 - alpha) + paint * alpha + 127) // 255
        self.canvas = mixed.astype(np.uint8)
        solid = mask >= 128
        for layer in self.layers:
            layer.visible &= ~solid
        self.layers.append(_Layer(label, solid, area, may_hide))


def draw_scene(rng: Rng) -> tuple[Bytes, NDArray[np.float64]]:
    """Draws one scene.

    Returns:
        The image, (SIDE, SIDE, 3) BGR bytes, and its boxes, (n, 5) as Ultralytics writes them: class, centre x, centre
        y, width, height, as shares of the side. A box encloses what can be seen of its object, to the pixel.
    """
    scene = _Scene(_background(rng))
    wanted = _classes_of_a_scene(rng)
    largest = 0.6 / max(1.0, len(wanted) / 2) ** 0.5
    parts: list[int] = [*wanted, *[_NO_CLASS] * int(rng.integers(1, 5))]
    for index in rng.permutation(len(parts)):
        label = parts[index]
        for attempt in range(12):
            share = np.exp(rng.uniform(np.log(0.08), np.log(largest)))
            size = max(0.08, share * 0.92**attempt) * SIDE
            if _PLACE[label](scene, rng, size):
                break
    for _ in range(int(rng.choice(3, p=(0.6, 0.25, 0.15)))):
        _occluder(scene, rng)
    boxes = [box for layer in scene.layers if (box := _box(layer)) is not None]
    return _photograph(scene.canvas, rng), np.array(boxes, dtype=np.float64).reshape(-1, 5)


def _classes_of_a_scene(rng: Rng) -> list[int]:
    """One to seven class numbers; at most one cross, so that no pair of dots can be taken for another's."""
    count = int(rng.integers(1, 8))
    cross = rng.random() < 0.12 * count
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


# --- paint: (SIDE, SIDE, 3) or broadcastable bytes ---

_X, _Y = np.meshgrid(np.arange(SIDE), np.arange(SIDE))


def _colour(rng: Rng, *unlike: Colour | tuple[float, ...]) -> Colour:
    """The first of a few random colours that stands out from all of `unlike`, or the one that does it best."""
    drawn = rng.integers(15, 241, (8, 3))
    if not unlike:
        return np.asarray(drawn[0])
    apart = np.min([np.abs(drawn - np.rint(other).astype(int)).sum(axis=1) for other in unlike], axis=0)
    return np.asarray(drawn[int(np.argmax(apart >= 190)) if (apart >= 190).any() else int(np.argmax(apart))])


def _under(scene: _Scene, mask: Bytes) -> tuple[float, ...]:
    return tuple(cv2.mean(scene.canvas, mask)[:3])


def _along(angle: float) -> NDArray[np.int64]:
    """For every pixel its distance in 1/16 pixels along a direction."""
    return np.asarray(_X * round(16 * np.cos(angle)) + _Y * round(16 * np.sin(angle)))


def _bytes(values: NDArray[np.int64]) -> Bytes:
    return np.clip(values, 0, 255).astype(np.uint8)


def _stripes(one: Colour, other: Colour, period: float, angle: float) -> Bytes:
    odd = (_along(angle) // max(1, round(8 * period))) % 2 == 1
    return _bytes(np.where(odd[..., None], one, other))


def _dots(one: Colour, other: Colour, period: float, angle: float) -> Bytes:
    cell = max(2, round(16 * period))
    u, v = _along(angle) % cell - cell // 2, _along(angle + np.pi / 2) % cell - cell // 2
    inside = u * u + v * v < (0.38 * cell) ** 2  # about as much of each colour as stripes have
    return _bytes(np.where(inside[..., None], one, other))


def _fill(rng: Rng, colour: Colour, size: float) -> Bytes:
    """One of the fills that all shapes share: plain, shaded, speckled, striped or dotted in a close second colour."""
    kind, angle = int(rng.integers(0, 5)), float(rng.uniform(0, np.pi))
    if kind == 0:
        return _bytes(np.broadcast_to(colour, (SIDE, SIDE, 3)))
    if kind == 1:
        along = _along(angle)
        slope = along * int(rng.choice((-1, 1)) * 60) // max(1, round(16 * size))
        return _bytes(colour + (slope - slope[SIDE // 2, SIDE // 2])[..., None] % 60 - 30)
    if kind == 2:
        return _bytes(colour + rng.integers(-35, 36, (SIDE, SIDE, 1)))
    second = np.clip(colour + rng.choice((-45, 45), 3), 0, 255)
    return (_stripes, _dots)[kind - 3](colour, second, max(5.0, size / 5), angle)


def _background(rng: Rng) -> Bytes:
    """Two colours flowing into each other, cloudy, with lines and blobs across."""
    one = _colour(rng)
    other = np.clip(one + rng.integers(-60, 61, 3), 0, 255)
    along = _along(float(rng.uniform(0, 2 * np.pi)))
    along = (along - along.min()) * 256 // max(1, int(np.ptp(along)))
    cells = int(rng.choice((4, 8, 16, 32)))
    clouds = cv2.resize(
        rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_LINEAR_EXACT
    )
    depth = int(rng.integers(20, 70))
    canvas = _bytes(
        (one * (256 - along[..., None]) + other * along[..., None]) // 256
        + (clouds.astype(np.int64) - 128) * depth // 128
    )
    for _ in range(int(rng.integers(0, 9))):
        tint = _near(rng, one)
        ends = rng.integers(-20, SIDE + 20, (2, 2)).tolist()
        cv2.line(canvas, ends[0], ends[1], tint, int(rng.integers(1, 4)), cv2.LINE_AA)
    for _ in range(int(rng.integers(0, 7))):
        axes = rng.integers(3, 30, 2).tolist()
        centre = rng.integers(0, SIDE, 2).tolist()
        cv2.ellipse(canvas, centre, axes, float(rng.uniform(0, 180)), 0, 360, _near(rng, one), -1, cv2.LINE_AA)
    return canvas


def _near(rng: Rng, colour: Colour) -> list[int]:
    return [int(c) for c in np.clip(colour + rng.integers(-70, 71, 3), 0, 255)]


def _photograph(canvas: Bytes, rng: Rng) -> Bytes:
    """What a cheap camera makes of it: light, sometimes blur, grain."""
    gain, offset = int(rng.integers(180, 290)), int(rng.integers(-20, 21))
    seen = _bytes(canvas.astype(np.int64) * gain // 256 + offset)
    if rng.random() < 0.3:
        seen = cv2.GaussianBlur(seen, (3, 3), 0).astype(np.uint8)
    grain = int(rng.integers(2, 14))
    return _bytes(seen + rng.integers(-grain, grain + 1, (SIDE, SIDE, 3)))


# --- placing: each draws one thing about `size` pixels large, or says that it found no room ---


def _place_outline(outline: list[Points], label: int) -> Callable[[_Scene, Rng, float], bool]:
    def place(scene: _Scene, rng: Rng, size: float) -> bool:
        turned = _turned(outline, float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0.8, 1.0)))
        shape = _scaled(turned, size)
        mask = _mask(shape, _somewhere(rng, size))
        if not scene.accepts(mask >= 128):
            return False
        scene.draw(mask, _fill(rng, _colour(rng, _under(scene, mask)), size), label, _area(shape), may_hide=0.55)
        return True

    return place


def _place_disc(label: int) -> Callable[[_Scene, Rng, float], bool]:
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
        paint = pattern(one, other, period, angle) if pattern else _fill(rng, one, extent * 5)
        scene.draw(under, paint, _NO_CLASS, _area(patch), may_hide=0.5)
        if not bare:
            disc = _scaled([_DISC], size)
            mask = _mask(disc, centre + rng.uniform(-0.1, 0.1, 2) * size)
            scene.draw(mask, _bytes(_colour(rng, one, other)[None, None]), label, _area(disc), may_hide=0.45)
            scene.layers[-2].may_hide = 0.62  # of which the disc itself hides up to a third
        return True

    return place


def _place_cross(label: int) -> Callable[[_Scene, Rng, float], bool]:
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
            scene.draw(mask, _bytes(colour[None, None]), of, _area(shape), may_hide=0.4 if of == label else 0.25)
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


_PLACE: dict[int, Callable[[_Scene, Rng, float], bool]] = {
    **{label: _place_outline(outline, label) for label, outline in enumerate(_SHAPES)},
    **{label: _place_disc(label) for label in (4, 5)},
    **{label: _place_cross(label) for label in (6, 7)},
    _NO_CLASS: _place_distractor,
}
