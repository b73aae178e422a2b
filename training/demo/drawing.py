"""Pictures of the demo catalogue: drawn products on a pale ground, as small JPEGs.

A product is a list of layers (outlines in a unit square); each is filled with a colour, a pattern and a material's
texture, and lit by treating its blurred mask as a relief. Everything is drawn at twice the size and reduced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from math import cos, pi, sin, tau
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from models.arrays import Array, Double

SIZE = 128
_DRAWN = 2 * SIZE
_RELIEF = 64  # shading is smooth: it is worked out at this size

Point = tuple[float, float]
Rgb = tuple[int, int, int]
Plane = Array

COLOURS: dict[str, Rgb] = {
    "red": (198, 48, 46),
    "orange": (232, 124, 40),
    "yellow": (240, 198, 62),
    "green": (70, 138, 78),
    "teal": (34, 142, 146),
    "blue": (58, 108, 192),
    "purple": (126, 80, 162),
    "pink": (234, 140, 166),
    "brown": (130, 86, 56),
    "grey": (142, 146, 152),
    "black": (52, 52, 58),
    "cream": (240, 226, 200),
}
PATTERNS = ("plain", "striped", "dotted", "checked", "zigzag", "floral", "two-tone")
MATERIALS = ("canvas", "leather", "knit", "straw", "linen", "metal", "ceramic", "glass", "wood", "velvet", "nylon")
TRIMS: dict[str, Rgb] = {
    "gold": (212, 170, 84),
    "silver": (196, 200, 206),
    "dark": (62, 54, 52),
    "tan": (186, 138, 92),
    "white": (246, 244, 240),
}
BACKGROUNDS: tuple[Rgb, ...] = (
    (245, 241, 235),
    (230, 237, 243),
    (243, 231, 234),
    (231, 240, 230),
    (236, 233, 246),
    (247, 240, 219),
    (221, 226, 229),
    (238, 222, 208),
)
_WOOD, _STRAW, _LIGHT, _DARK = (164, 116, 74), (222, 188, 126), (246, 244, 240), (70, 66, 68)


@dataclass(frozen=True, slots=True)
class Look:
    """What a picture shows: the attributes a text can tell, and `trim` and `background`, which only a picture shows."""

    category: str
    style: str
    colour: str
    pattern: str
    material: str
    trim: str
    background: int


@dataclass(frozen=True, slots=True)
class _Layer:
    """A filled outline, or with `width` a stroke along the points. `role` says what it is made of."""

    role: str
    points: Sequence[Point]
    width: float = 0.0


@dataclass(frozen=True, slots=True)
class _Material:
    """How a surface answers light; `tint` mixes the material's own colour into the dye."""

    gloss: float = 0.0
    relief: float = 1.0
    opacity: float = 1.0
    tint: tuple[Rgb, float] | None = None


_SURFACES: dict[str, _Material] = {
    "canvas": _Material(relief=0.8),
    "leather": _Material(gloss=0.35, relief=1.1),
    "knit": _Material(relief=1.0),
    "straw": _Material(relief=0.9, tint=(_STRAW, 0.45)),
    "linen": _Material(relief=0.7),
    "metal": _Material(gloss=1.0, relief=1.5, tint=((176, 180, 188), 0.35)),
    "ceramic": _Material(gloss=0.8, relief=1.2),
    "glass": _Material(gloss=1.0, relief=1.0, opacity=0.62),
    "wood": _Material(gloss=0.1, relief=0.9, tint=(_WOOD, 0.4)),
    "velvet": _Material(gloss=0.2, relief=1.7),
    "nylon": _Material(gloss=0.5, relief=1.0),
}
_FLAT, _THIN = _Material(relief=0.0), 0.02  # strokes too thin to be lit


def draw_product(look: Look, rng: np.random.Generator) -> bytes:
    """A JPEG of `SIZE` x `SIZE` pixels; the generator chooses pose, shade and the pattern's second colour."""
    layers = _layers(look.category, look.style)
    place = _pose(look.category, rng)
    masks = [_mask(layer, place) for layer in layers]
    pixels = _ground(look, masks, rng)
    fills = _fills(look, rng)
    for layer, mask in zip(layers, masks, strict=True):
        colour, surface = fills[layer.role]
        _paint(pixels, mask, colour, _FLAT if 0 < layer.width < _THIN else surface)
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    file = BytesIO()
    picture.save(file, "JPEG", quality=84, optimize=True)
    return file.getvalue()


# --- painting ----------------------------------------------------------------------------------------------------


def _pose(category: str, rng: np.random.Generator) -> Callable[[Point], Point]:
    """A small random turn, scale, shift and perhaps a mirror image, from the unit square to pixels."""
    angle = rng.normal(0, 0.16 if category in _LYING else 0.035)
    scale = rng.uniform(0.84, 1.04)
    shift_x, shift_y = rng.uniform(-0.03, 0.03, 2)
    mirror = -1 if rng.random() < 0.5 else 1
    c, s = cos(angle) * scale, sin(angle) * scale

    def place(point: Point) -> Point:
        x, y = (point[0] - 0.5) * mirror, point[1] - 0.5
        return (c * x - s * y + 0.5 + shift_x) * _DRAWN, (s * x + c * y + 0.5 + shift_y) * _DRAWN

    return place


def _mask(layer: _Layer, place: Callable[[Point], Point]) -> Image.Image:
    mask = Image.new("L", (_DRAWN, _DRAWN))
    draw = ImageDraw.Draw(mask)
    points = [place(point) for point in layer.points]
    if layer.width:
        width = max(2, round(layer.width * _DRAWN))
        draw.line(points, fill=255, width=width, joint="curve")
        for x, y in (points[0], points[-1]):
            draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)
    else:
        draw.polygon(points, fill=255)
    return mask


def _ground(look: Look, masks: Sequence[Image.Image], rng: np.random.Generator) -> Plane:
    """The background, a little lighter at the top, with the product's soft shadow on it, `[h, w, 3]`."""
    shade = np.array(BACKGROUNDS[look.background], dtype=np.float32) + rng.normal(0, 2, 3).astype(np.float32)
    fall = np.linspace(1.03, 0.93, _DRAWN, dtype=np.float32)
    pixels = np.broadcast_to(shade * fall[:, None, None], (_DRAWN, _DRAWN, 3)).copy()
    outline = masks[0]
    for mask in masks[1:]:
        outline = ImageChops.lighter(outline, mask)
    if look.category in _LYING:
        shadow = ImageChops.offset(outline, round(0.018 * _DRAWN), round(0.03 * _DRAWN))
    else:
        left, _, right, bottom = outline.getbbox() or (0, 0, _DRAWN, _DRAWN)
        shadow = Image.new("L", outline.size)
        grow = 0.06 * (right - left)
        ImageDraw.Draw(shadow).ellipse(
            (left - grow, bottom - 0.05 * _DRAWN, right + grow, bottom + 0.035 * _DRAWN), fill=255
        )
    small = shadow.reduce(_DRAWN // _RELIEF).filter(ImageFilter.GaussianBlur(2.2))
    soft = _plane(small.resize(outline.size, Image.Resampling.BICUBIC))
    return _float32(pixels * (1 - 0.42 * soft[..., None]))


_Fill = tuple[Plane, _Material]


def _fills(look: Look, rng: np.random.Generator) -> dict[str, _Fill]:
    """Colours `[h, w, 3]` or `[3]` and surface of each role that a layer can have."""
    surface = _SURFACES[look.material]
    dye = np.array(COLOURS[look.colour]) * rng.uniform(0.92, 1.08) + rng.normal(0, 5, 3)
    base = dye.astype(np.float32)
    second = _second_colour(look, base, rng)
    if surface.tint:
        own, share = np.array(surface.tint[0], dtype=np.float32), surface.tint[1]
        base = base * (1 - share) + own * share
    mix = _pattern(look.pattern, rng)[..., None]
    grain = np.roll(_texture(look.material), tuple(rng.integers(0, _DRAWN, 2)), (0, 1))[..., None]
    body = (base + (second - base) * mix) * grain
    trim = np.array(TRIMS[look.trim], dtype=np.float32)
    shiny = look.trim in ("gold", "silver")
    flat = np.float32
    return {
        "body": (body, surface),
        "inside": ((base * 0.5 + 12).astype(flat), _Material(relief=0.4)),
        "shade": ((base * 0.72).astype(flat), _Material(relief=0.8)),
        "trim": (trim, _Material(gloss=0.9 if shiny else 0.15, relief=1.2)),
        "wood": (np.array(_WOOD, dtype=flat), _Material(relief=1.0)),
        "light": (np.array(_LIGHT, dtype=flat), _Material(relief=0.8)),
        "dark": (np.array(_DARK, dtype=flat), _Material(relief=0.8)),
        "leaf": (np.array((98, 138, 92), dtype=flat), _Material(relief=0.8)),
        "glow": (np.array((255, 236, 178), dtype=flat), _Material(relief=0.2, opacity=0.85)),
    }


def _second_colour(look: Look, base: Plane, rng: np.random.Generator) -> Plane:
    """The pattern's other colour: pale, a shade of the first, or the trim's; always one that stands out."""
    bright = base.mean() > 150
    pale, deep = np.array((248, 242, 230), dtype=np.float32), base * 0.45
    choices = [deep, np.array(_DARK, dtype=np.float32)] if bright else [pale, np.minimum(base * 1.25 + 75, 255)]
    if look.pattern == "two-tone":
        choices.append(np.array(_STRAW, dtype=np.float32) if abs(base.mean() - 180) > 30 else deep)
    return choices[rng.integers(len(choices))]


def _paint(pixels: Plane, mask: Image.Image, colour: Plane, surface: _Material) -> None:
    box = mask.getbbox()
    if box is None:
        return
    left, top, right, bottom = box
    window = (slice(top, bottom), slice(left, right))
    cover = _plane(mask.crop(box))[..., None] * surface.opacity
    light = _light(mask, box) if surface.relief else np.zeros(cover.shape[:2], dtype=np.float32)
    shade = np.clip(1 + 0.34 * surface.relief * light, 0.45, 1.4)[..., None]
    paint = (colour[window] if colour.ndim == 3 else colour) * shade
    if surface.gloss:
        paint = paint + 150 * surface.gloss * (np.clip(light - 0.35, 0, 1) ** 2)[..., None]
    pixels[window] += (paint - pixels[window]) * cover


def _light(mask: Image.Image, box: tuple[int, int, int, int]) -> Plane:
    """How much each pixel of the box leans towards a lamp at the upper left, about -1 to 1."""
    padded = Image.new("L", (_RELIEF + 8, _RELIEF + 8))
    padded.paste(mask.reduce(_DRAWN // _RELIEF), (4, 4))
    height = _plane(padded.filter(ImageFilter.GaussianBlur(3.0)))[4:-4, 4:-4]
    down, across = np.gradient(height)
    slant = Image.fromarray(((across * 0.7 + down * 0.75) * 6).astype(np.float32))
    scale = _RELIEF / _DRAWN
    window = (box[0] * scale, box[1] * scale, box[2] * scale, box[3] * scale)
    size = (box[2] - box[0], box[3] - box[1])
    return np.asarray(slant.resize(size, Image.Resampling.BICUBIC, box=window), dtype=np.float32)


def _plane(image: Image.Image) -> Plane:
    return _float32(image) / np.float32(255)


def _float32(values: Any) -> Plane:
    return np.asarray(values, dtype=np.float32)


# --- patterns and textures ---------------------------------------------------------------------------------------


@cache
def _grid() -> tuple[Plane, Plane]:
    """Pixel coordinates x, y in the unit square, centred."""
    axis = (np.arange(_DRAWN) + 0.5) / _DRAWN - 0.5
    x, y = np.meshgrid(axis, axis)
    return _float32(x), _float32(y)


def _pattern(name: str, rng: np.random.Generator) -> Plane:
    """Where a pattern has its second colour: 0 to 1, `[h, w]`."""
    x, y = _grid()
    angle = rng.choice([0.0, 0.0, pi / 2, pi / 4]) + rng.normal(0, 0.05)
    across, along = cos(angle) * x + sin(angle) * y, cos(angle) * y - sin(angle) * x
    count, phase = rng.uniform(8, 13), rng.uniform(0, 1)
    mix: NDArray[Any]
    match name:
        case "striped":
            mix = np.mod(across * count + phase, 1) < 0.45
        case "dotted":
            row = np.floor(along * count)
            u, v = np.mod(across * count + 0.5 * np.mod(row, 2), 1) - 0.5, np.mod(along * count, 1) - 0.5
            mix = u * u + v * v < 0.085
        case "checked":
            bars = [np.mod(axis * count * 0.8, 1) < 0.5 for axis in (across, along)]
            mix = 0.5 * bars[0] + 0.5 * bars[1]
        case "zigzag":
            wave = np.abs(np.mod(along * count * 0.6, 1) - 0.5)
            mix = np.mod(across * count * 0.75 + 1.1 * wave + phase, 1) < 0.45
        case "floral":
            mix = _flowers(across * count * 0.55 + phase, along * count * 0.55)
        case "two-tone":
            mix = y > rng.uniform(0.0, 0.12)
        case _:
            mix = np.zeros_like(x)
    return _float32(mix)


def _flowers(u: NDArray[Any], v: NDArray[Any]) -> Plane:
    """Five petals around an open centre in every cell, every second row shifted, with leaves of half strength."""
    row = np.floor(v)
    u, v = np.mod(u + 0.5 * np.mod(row, 2), 1) - 0.5, np.mod(v, 1) - 0.5
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    petals = (radius < 0.23 + 0.12 * np.cos(5 * angle)) & (radius > 0.08)
    leaves = (radius > 0.34) & (radius < 0.46) & (np.abs(np.sin(angle - 0.6)) < 0.28)
    return _float32(petals + 0.45 * (leaves & ~petals))


@cache
def _texture(material: str) -> Plane:
    """A material's surface as a factor around 1, `[h, w]`, seamless enough to be rolled."""
    x, y = (np.rint((axis + 0.5) * _DRAWN - 0.5) for axis in _grid())
    noise = np.random.default_rng(MATERIALS.index(material)).standard_normal((_DRAWN, _DRAWN))
    factor: NDArray[Any]
    match material:
        case "canvas":
            factor = 1 + 0.07 * np.sign(np.sin(x * tau / 8)) * np.sign(np.sin(y * tau / 8)) + 0.03 * noise
        case "linen":
            factor = 1 + 0.05 * _smear(noise, 1, 12) + 0.05 * _smear(noise.T, 12, 1)
        case "knit":
            slant = np.abs(np.mod(x, 8) - 4)
            factor = 1 + 0.13 * np.sin((y + slant) * tau / 8) - 0.08 * (slant > 3)
        case "straw":
            factor = 1 + 0.15 * np.sin((x + y) * tau / 16) * np.sign(np.sin(y * tau / 16)) + 0.04 * noise
        case "leather":
            factor = 1 + 0.06 * _smear(noise, 3, 3)
        case "wood":
            factor = 1 + 0.13 * np.sin(y * tau / 16 + 1.8 * np.sin(x * tau / 256)) + 0.05 * _smear(noise, 1, 40)
        case "metal":
            factor = 1 + 0.05 * _smear(noise, 1, 60) + 0.16 * np.sin(x * tau / 128)
        case "velvet":
            factor = 1 + 0.07 * _smear(noise, 9, 5)
        case "nylon":
            factor = 1 + 0.06 * np.sin((x - y) * tau / 64)
        case _:
            factor = np.ones_like(x)
    return _float32(factor)


def _smear(noise: Double, rows: int, columns: int) -> Double:
    """Noise averaged along both axes (wrapping around), brought back to unit variance."""
    for axis, width in enumerate((rows, columns)):
        noise = np.mean([np.roll(noise, step, axis) for step in range(width)], axis=0)
    smeared: Double = noise / noise.std()
    return smeared


# --- outlines ----------------------------------------------------------------------------------------------------

_LYING = ("shirts", "cushions", "umbrellas")  # shown from above or hanging: their shadow is their own outline


def _smooth(points: Sequence[Point], *, closed: bool = True, steps: int = 8) -> list[Point]:
    """A Catmull-Rom curve through the points."""
    count = len(points)
    spans = count if closed else count - 1
    curve = []
    for i in range(spans):
        before, start, end, after = (
            points[(i + k) % count] if closed else points[min(max(i + k, 0), count - 1)] for k in (-1, 0, 1, 2)
        )
        for t in (step / steps for step in range(steps)):
            curve.append(
                (_spline(before[0], start[0], end[0], after[0], t), _spline(before[1], start[1], end[1], after[1], t))
            )
    return curve if closed else [*curve, points[-1]]


def _spline(a: float, b: float, c: float, d: float, t: float) -> float:
    return b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))


def _ellipse(x: float, y: float, rx: float, ry: float, start: float = 0, end: float = 1) -> list[Point]:
    """Points on an ellipse from `start` to `end` of a turn, clockwise from the right."""
    return [(x + rx * cos(tau * t), y + ry * sin(tau * t)) for t in np.linspace(start, end, 48)]


def _box(left: float, top: float, right: float, bottom: float, radius: float) -> list[Point]:
    corners = ((right, bottom, 0.0), (left, bottom, 0.25), (left, top, 0.5), (right, top, 0.75))
    points: list[Point] = []
    for x, y, turn in corners:
        cx, cy = x + (radius if x == left else -radius), y + (radius if y == top else -radius)
        points += [
            (cx + radius * cos(tau * (turn + t)), cy + radius * sin(tau * (turn + t)))
            for t in (0, 0.06, 0.125, 0.19, 0.25)
        ]
    return points


def _shoe(style: str) -> list[_Layer]:
    if style == "classic":
        upper = [(0.12, 0.67), (0.11, 0.52), (0.14, 0.41), (0.20, 0.42), (0.28, 0.47), (0.37, 0.44), (0.44, 0.38)]
        inside = _smooth([(0.15, 0.42), (0.24, 0.41), (0.36, 0.37), (0.44, 0.37), (0.38, 0.46), (0.26, 0.48)])
    else:
        upper = [(0.12, 0.67), (0.12, 0.48), (0.13, 0.28), (0.18, 0.25), (0.28, 0.27), (0.38, 0.24), (0.44, 0.28)]
        inside = _smooth([(0.14, 0.27), (0.26, 0.23), (0.40, 0.21), (0.44, 0.27), (0.36, 0.28), (0.24, 0.29)])
    tip = [(0.56, 0.47), (0.70, 0.54), (0.84, 0.58), (0.89, 0.67), (0.50, 0.68)]
    tongue = upper[-1]
    laces = []
    for t in (0.12, 0.38, 0.64, 0.9):
        x, y = tongue[0] + t * (0.60 - tongue[0]), tongue[1] + t * (0.49 - tongue[1])
        laces.append(_Layer("light", [(x - 0.015, y - 0.01), (x - 0.075, y + 0.055)], 0.018))
    return [
        _Layer("inside", inside),
        _Layer("body", _smooth([*upper, *tip])),
        _Layer("light", _smooth([(0.73, 0.66), (0.76, 0.58), (0.84, 0.585), (0.89, 0.65), (0.88, 0.68)])),
        _Layer("trim", _smooth([(0.115, 0.62), (0.115, 0.48), (0.15, 0.46), (0.20, 0.56), (0.20, 0.66)])),
        _Layer("trim", _smooth([(0.30, 0.60), (0.42, 0.62), (0.56, 0.55)], closed=False), 0.03),
        *laces,
        _Layer("light", _box(0.10, 0.655, 0.905, 0.745, 0.035)),
        _Layer("shade", _box(0.10, 0.72, 0.905, 0.75, 0.012)),
    ]


def _bag(style: str) -> list[_Layer]:
    if style == "classic":
        body = _smooth(
            [
                (0.24, 0.44),
                (0.50, 0.425),
                (0.76, 0.44),
                (0.83, 0.64),
                (0.83, 0.80),
                (0.50, 0.83),
                (0.17, 0.80),
                (0.17, 0.64),
            ]
        )
        return [
            _Layer("trim", _ellipse(0.5, 0.44, 0.19, 0.25, 0.5, 1.0), 0.032),
            _Layer("body", body),
            _Layer(
                "shade", _smooth([(0.24, 0.44), (0.5, 0.42), (0.76, 0.44), (0.74, 0.54), (0.5, 0.60), (0.26, 0.54)])
            ),
            _Layer("trim", _box(0.45, 0.55, 0.55, 0.64, 0.02)),
        ]
    return [
        _Layer("shade", _ellipse(0.5, 0.40, 0.13, 0.27, 0.5, 1.0), 0.026),
        _Layer("body", [(0.20, 0.38), (0.80, 0.38), (0.76, 0.86), (0.24, 0.86)]),
        _Layer("trim", _ellipse(0.5, 0.44, 0.15, 0.30, 0.5, 1.0), 0.028),
        _Layer("trim", [(0.20, 0.38), (0.80, 0.38), (0.797, 0.415), (0.203, 0.415)]),
        _Layer("trim", _box(0.33, 0.41, 0.37, 0.48, 0.01)),
        _Layer("trim", _box(0.63, 0.41, 0.67, 0.48, 0.01)),
    ]


def _lamp(style: str) -> list[_Layer]:
    foot = [
        _Layer("trim", [(0.5, 0.45), (0.5, 0.83)], 0.035),
        _Layer("trim", _ellipse(0.5, 0.70, 0.075, 0.09) if style == "classic" else _ellipse(0.5, 0.60, 0.03, 0.03)),
        _Layer("trim", _ellipse(0.5, 0.845, 0.17, 0.04)),
    ]
    if style == "classic":
        shade = [(0.36, 0.14), (0.64, 0.14), (0.79, 0.52), (0.21, 0.52)]
        return [*foot, _Layer("glow", _ellipse(0.5, 0.52, 0.28, 0.03)), _Layer("body", shade)]
    dome = [*_ellipse(0.5, 0.44, 0.33, 0.29, 0.5, 1.0), (0.82, 0.47), (0.18, 0.47)]
    return [
        *foot,
        _Layer("glow", _ellipse(0.5, 0.475, 0.31, 0.035)),
        _Layer("body", dome),
        _Layer("trim", _ellipse(0.5, 0.145, 0.035, 0.025)),
    ]


def _mug(style: str) -> list[_Layer]:
    if style == "classic":
        body = [(0.22, 0.27), (0.70, 0.27), (0.69, 0.78), *_ellipse(0.46, 0.78, 0.23, 0.055, 0.0, 0.5), (0.23, 0.78)]
        handle = _smooth([(0.68, 0.38), (0.82, 0.37), (0.87, 0.50), (0.82, 0.63), (0.68, 0.66)], closed=False)
        rim = (0.46, 0.27, 0.24)
    else:
        body = _smooth(
            [
                (0.25, 0.33),
                (0.67, 0.33),
                (0.76, 0.50),
                (0.72, 0.70),
                (0.60, 0.80),
                (0.32, 0.80),
                (0.20, 0.70),
                (0.16, 0.50),
            ]
        )
        handle = _smooth([(0.72, 0.44), (0.86, 0.42), (0.90, 0.54), (0.84, 0.65), (0.70, 0.68)], closed=False)
        rim = (0.46, 0.335, 0.225)
    x, y, radius = rim
    return [
        _Layer("shade", handle, 0.055),
        _Layer("body", body),
        _Layer("trim", _ellipse(x, y, radius, 0.062)),
        _Layer("inside", _ellipse(x, y + 0.006, radius - 0.02, 0.048)),
    ]


def _chair(style: str) -> list[_Layer]:
    role = "trim"
    legs = [
        _Layer(role, [(0.30, 0.60), (0.25, 0.88)], 0.035),
        _Layer(role, [(0.70, 0.60), (0.75, 0.88)], 0.035),
        _Layer(role, [(0.37, 0.58), (0.36, 0.80)], 0.028),
        _Layer(role, [(0.63, 0.58), (0.64, 0.80)], 0.028),
    ]
    seat = _smooth([(0.27, 0.56), (0.50, 0.535), (0.73, 0.56), (0.77, 0.62), (0.50, 0.665), (0.23, 0.62)])
    if style == "classic":
        posts = [_Layer(role, [(0.30, 0.60), (0.28, 0.16)], 0.032), _Layer(role, [(0.70, 0.60), (0.72, 0.16)], 0.032)]
        back = _smooth([(0.28, 0.16), (0.50, 0.12), (0.72, 0.16), (0.715, 0.40), (0.50, 0.42), (0.285, 0.40)])
        return [*legs, *posts, _Layer("body", back), _Layer("body", seat)]
    shell = _smooth(
        [
            (0.24, 0.30),
            (0.36, 0.13),
            (0.64, 0.13),
            (0.76, 0.30),
            (0.75, 0.50),
            (0.80, 0.58),
            (0.50, 0.66),
            (0.20, 0.58),
            (0.25, 0.50),
        ]
    )
    return [*legs, _Layer("body", shell), _Layer("shade", seat)]


def _hat(style: str) -> list[_Layer]:
    if style == "classic":
        crown = _smooth(
            [(0.27, 0.62), (0.29, 0.42), (0.38, 0.31), (0.50, 0.33), (0.62, 0.31), (0.71, 0.42), (0.73, 0.62)]
        )
        band = _smooth([(0.275, 0.53), (0.50, 0.565), (0.725, 0.53), (0.73, 0.62), (0.50, 0.66), (0.27, 0.62)])
        return [_Layer("body", _ellipse(0.5, 0.645, 0.42, 0.115)), _Layer("body", crown), _Layer("trim", band)]
    crown = [*_ellipse(0.44, 0.58, 0.29, 0.29, 0.5, 1.0), (0.73, 0.62), (0.15, 0.62)]
    visor = _smooth([(0.50, 0.575), (0.72, 0.555), (0.90, 0.62), (0.93, 0.685), (0.74, 0.655), (0.54, 0.645)])
    seams = [
        _Layer("shade", _smooth([(0.44, 0.30), (x, 0.42), (x2, 0.60)], closed=False), 0.008)
        for x, x2 in ((0.32, 0.28), (0.55, 0.59))
    ]
    return [_Layer("body", crown), *seams, _Layer("trim", visor), _Layer("trim", _ellipse(0.44, 0.295, 0.026, 0.02))]


def _shirt(style: str) -> list[_Layer]:
    body = [(0.37, 0.20), (0.63, 0.20), (0.72, 0.24), (0.715, 0.84), (0.285, 0.84), (0.28, 0.24)]
    if style == "classic":
        sleeves = [
            [(0.29, 0.235), (0.35, 0.38), (0.24, 0.76), (0.14, 0.74)],
            [(0.71, 0.235), (0.65, 0.38), (0.76, 0.76), (0.86, 0.74)],
        ]
        collar = [
            _Layer("inside", _ellipse(0.5, 0.205, 0.11, 0.05)),
            _Layer("trim", [(0.385, 0.17), (0.50, 0.26), (0.43, 0.32), (0.355, 0.21)]),
            _Layer("trim", [(0.615, 0.17), (0.50, 0.26), (0.57, 0.32), (0.645, 0.21)]),
            _Layer("shade", [(0.5, 0.27), (0.5, 0.83)], 0.01),
            *[_Layer("trim", _ellipse(0.5, y, 0.013, 0.013)) for y in (0.36, 0.48, 0.60, 0.72)],
        ]
    else:
        sleeves = [
            [(0.30, 0.225), (0.34, 0.44), (0.19, 0.50), (0.10, 0.36)],
            [(0.70, 0.225), (0.66, 0.44), (0.81, 0.50), (0.90, 0.36)],
        ]
        collar = [
            _Layer("trim", _ellipse(0.5, 0.205, 0.125, 0.075)),
            _Layer("inside", _ellipse(0.5, 0.195, 0.095, 0.05)),
        ]
    return [*[_Layer("body", sleeve) for sleeve in sleeves], _Layer("body", body), *collar]


def _cushion(style: str) -> list[_Layer]:
    if style == "modern":
        return [
            _Layer("trim", _ellipse(0.5, 0.5, 0.37, 0.37)),
            _Layer("body", _ellipse(0.5, 0.5, 0.35, 0.35)),
            _Layer("trim", _ellipse(0.5, 0.5, 0.035, 0.035)),
        ]
    sides = [
        (0.15, 0.15),
        (0.33, 0.185),
        (0.5, 0.19),
        (0.67, 0.185),
        (0.85, 0.15),
        (0.815, 0.33),
        (0.81, 0.5),
        (0.815, 0.67),
    ]
    around = [*sides, *[(1 - x, 1 - y) for x, y in sides]]
    inner = [(0.5 + (x - 0.5) * 0.95, 0.5 + (y - 0.5) * 0.95) for x, y in around]
    return [_Layer("trim", _smooth(around)), _Layer("body", _smooth(inner))]


def _vase(style: str) -> list[_Layer]:
    twigs = [
        _Layer("leaf", _smooth([(0.5, 0.36), (0.49, 0.22), (0.44, 0.10)], closed=False), 0.01),
        _Layer("leaf", _smooth([(0.5, 0.36), (0.53, 0.24), (0.60, 0.14)], closed=False), 0.01),
        *[
            _Layer("leaf", _ellipse(x, y, 0.034, 0.018))
            for x, y in ((0.455, 0.20), (0.52, 0.15), (0.575, 0.22), (0.47, 0.27))
        ],
        _Layer("trim", _ellipse(0.435, 0.10, 0.032, 0.032)),
        _Layer("trim", _ellipse(0.61, 0.13, 0.028, 0.028)),
    ]
    if style == "classic":
        half = [(0.09, 0.33), (0.07, 0.40), (0.20, 0.52), (0.24, 0.62), (0.18, 0.76), (0.11, 0.85), (0.13, 0.88)]
    else:
        half = [(0.055, 0.33), (0.05, 0.46), (0.09, 0.54), (0.17, 0.62), (0.18, 0.74), (0.175, 0.86), (0.15, 0.88)]
    outline = _smooth([*[(0.5 + w, y) for w, y in half], *[(0.5 - w, y) for w, y in reversed(half)]])
    return [
        *twigs,
        _Layer("body", outline),
        _Layer("trim", _ellipse(0.5, 0.335, half[0][0], 0.022)),
        _Layer("inside", _ellipse(0.5, 0.337, half[0][0] - 0.014, 0.014)),
    ]


def _umbrella(style: str) -> list[_Layer]:
    depth = 0.36 if style == "classic" else 0.44
    foot = 0.52
    ribs = 4 if style == "classic" else 6
    edge: list[Point] = []
    for rib in range(ribs):
        edge += [(0.88 - 0.76 * (rib + t) / ribs, foot - 0.045 * sin(pi * t)) for t in np.linspace(0, 1, 10)]
    canopy = [*_ellipse(0.5, foot, 0.38, depth, 0.5, 1.0), *edge]
    folds = [
        _Layer(
            "shade",
            _smooth([(0.5, foot - depth), (0.5 + w * 0.75, foot - depth * 0.55), (0.5 + w, foot)], closed=False),
            0.008,
        )
        for w in [0.38 - 0.76 * rib / ribs for rib in range(1, ribs)]
    ]
    if style == "classic":
        handle = _smooth([(0.5, 0.80), (0.5, 0.86), (0.54, 0.90), (0.585, 0.88), (0.595, 0.83)], closed=False)
    else:
        handle = [(0.5, 0.78), (0.5, 0.90)]
    return [
        _Layer("dark", [(0.5, foot - depth - 0.04), (0.5, 0.82)], 0.016),
        _Layer("trim", handle, 0.036 if style == "classic" else 0.05),
        _Layer("body", canopy),
        *folds,
    ]


_SHAPES: dict[str, Callable[[str], list[_Layer]]] = {
    "shoes": _shoe,
    "bags": _bag,
    "lamps": _lamp,
    "mugs": _mug,
    "chairs": _chair,
    "hats": _hat,
    "shirts": _shirt,
    "cushions": _cushion,
    "vases": _vase,
    "umbrellas": _umbrella,
}

CATEGORIES = tuple(_SHAPES)
STYLES = ("classic", "modern")


@cache
def _layers(category: str, style: str) -> tuple[_Layer, ...]:
    return tuple(_SHAPES[category](style))
