"""The demo catalogue (synthetic): drawn products, written texts, simulated shoppers; all of it from one seed.

Category, style, colour, pattern and material show in the picture and stand in the text. Brand, use and care stand
in the text only; trim, background, pose and the pattern's second colour show in the picture only. Shoppers prefer some
of these attributes, so that both content and co-interaction say something about what they will like.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import numpy as np

from models.arrays import Double, Mask
from training.datasets.base import Progress, Record
from training.datasets.prepared import DatasetInfo, write_dataset
from training.demo.drawing import BACKGROUNDS, CATEGORIES, COLOURS, PATTERNS, STYLES, TRIMS, Look, draw_product

NAME = "demo (synthetic)"
SEED = 2025
ITEMS, USERS = 1000, 300
END = datetime(2026, 11, 1, tzinfo=UTC)  # fixed, so that a seed always gives the same bytes
DAYS = 90
NO_PICTURE, NO_TEXT, NEITHER = 0.20, 0.20, 0.05  # the first two count the items that lack both

_CATALOGUE, _FRESH, _HOLES, _SHOPPERS = range(4)  # independent streams of one seed
_T = TypeVar("_T")

_NOUNS = {
    ("shoes", "classic"): ("low-top sneaker", "low sneaker"),
    ("shoes", "modern"): ("high-top sneaker", "tall sneaker"),
    ("bags", "classic"): ("handbag", "flap handbag"),
    ("bags", "modern"): ("tote bag", "shopper bag"),
    ("lamps", "classic"): ("table lamp", "bedside lamp"),
    ("lamps", "modern"): ("dome lamp", "mushroom lamp"),
    ("mugs", "classic"): ("straight mug", "coffee mug"),
    ("mugs", "modern"): ("round mug", "barrel mug"),
    ("chairs", "classic"): ("dining chair", "kitchen chair"),
    ("chairs", "modern"): ("shell chair", "lounge chair"),
    ("hats", "classic"): ("brimmed hat", "sun hat"),
    ("hats", "modern"): ("peaked cap", "baseball cap"),
    ("shirts", "classic"): ("long-sleeved shirt", "button-up shirt"),
    ("shirts", "modern"): ("T-shirt", "crew-neck tee"),
    ("cushions", "classic"): ("square cushion", "sofa cushion"),
    ("cushions", "modern"): ("round cushion", "floor cushion"),
    ("vases", "classic"): ("round-bellied vase", "belly vase"),
    ("vases", "modern"): ("bottle vase", "slim-necked vase"),
    ("umbrellas", "classic"): ("walking umbrella", "hook-handled umbrella"),
    ("umbrellas", "modern"): ("dome umbrella", "deep dome umbrella"),
}
_MATERIALS = {
    "shoes": ("canvas", "leather", "knit"),
    "bags": ("canvas", "leather", "straw"),
    "lamps": ("linen", "metal", "straw"),
    "mugs": ("ceramic", "metal", "glass"),
    "chairs": ("wood", "velvet", "linen"),
    "hats": ("straw", "knit", "canvas"),
    "shirts": ("linen", "knit", "canvas"),
    "cushions": ("linen", "knit", "velvet"),
    "vases": ("ceramic", "glass", "metal"),
    "umbrellas": ("canvas", "nylon", "linen"),
}
_SHADES = {
    "red": ("red", "cherry red", "brick red"),
    "orange": ("orange", "tangerine orange", "burnt orange"),
    "yellow": ("yellow", "sunny yellow", "mustard yellow"),
    "green": ("green", "leaf green", "forest green"),
    "teal": ("teal", "deep teal", "sea teal"),
    "blue": ("blue", "cornflower blue", "denim blue"),
    "purple": ("purple", "plum purple", "violet"),
    "pink": ("pink", "rose pink", "blush pink"),
    "brown": ("brown", "chestnut brown", "cocoa brown"),
    "grey": ("grey", "stone grey", "misty grey"),
    "black": ("black", "charcoal black", "ink black"),
    "cream": ("cream", "off-white", "ivory cream"),
}
_MOTIFS = {
    "plain": ("a plain finish", "a smooth plain look"),
    "striped": ("stripes", "even stripes"),
    "dotted": ("polka dots", "dots all over"),
    "checked": ("a checked pattern", "gingham checks"),
    "zigzag": ("a zigzag pattern", "chevron zigzags"),
    "floral": ("a flower print", "a floral print"),
    "two-tone": ("a two-tone finish", "a two-tone body"),
}
_BRANDS = (
    "Norrwick", "Tamsel", "Veldora", "Pirrin", "Ombrey", "Quillane",
    "Hasselmoor", "Lumivar", "Brackenby", "Sorreline", "Dovrek", "Calpetta",
)  # fmt: skip
_SEASONS = ("spring", "summer", "autumn", "winter")
_USES = {
    "shoes": ("long walks in the city", "an easy run", "school and weekends", "travelling light"),
    "bags": ("a day at the market", "the office", "a weekend away", "the beach"),
    "lamps": ("reading in bed", "a cosy corner", "the desk", "a hallway table"),
    "mugs": ("the first coffee of the day", "tea with friends", "hot chocolate", "camping breakfasts"),
    "chairs": ("the dining table", "a reading nook", "small kitchens", "long evenings with guests"),
    "hats": ("the garden", "a day at sea", "hiking", "walking the dog"),
    "shirts": ("the office", "barbecues", "lazy Sundays", "a dinner out"),
    "cushions": ("the sofa", "a window seat", "the children's room", "the terrace"),
    "vases": ("fresh tulips", "dried grasses", "a windowsill", "the dining table"),
    "umbrellas": ("sudden showers", "windy commutes", "a wedding in the rain", "the daily walk"),
}
_CARE = {
    "canvas": ("washes at thirty degrees", "wipes clean with a damp cloth"),
    "leather": ("needs a little wax twice a year", "grows softer with age"),
    "knit": ("should be washed by hand", "keeps its shape after washing"),
    "straw": ("should be kept dry", "is braided by hand"),
    "linen": ("may be ironed while damp", "softens with each wash"),
    "metal": ("does not rust", "is polished by hand"),
    "ceramic": ("is safe in the dishwasher", "is fired twice"),
    "glass": ("is blown by mouth", "is safe in the dishwasher"),
    "wood": ("comes from managed forests", "is finished with natural oil"),
    "velvet": ("is brushed, never washed", "feels soft on both sides"),
    "nylon": ("dries within minutes", "weighs next to nothing"),
}
_TITLES = (
    "{Pattern}{colour} {material} {noun}",
    "{Pattern}{colour} {material} {noun}",
    "{Colour} {noun} with {motif}",
    "{Brand} {noun}, {pattern}{colour} {material}",
    "{Colour} {material} {noun}",
)
_OPENINGS = (
    "A {pattern}{noun} in {shade} {material} by {Brand}.",
    "{Brand} made this {noun} of {shade} {material}, with {motif}.",
    "This {shade} {noun} by {Brand} is made of {material} and has {motif}.",
    "{Material} in {shade} with {motif}: a {style} {noun} from {Brand}.",
    "With {motif} on {shade} {material}, this {noun} is {Brand} at its best.",
    "A {style} {noun}: {pattern}{shade} {material}, by {Brand}.",
)
_CLOSINGS = (
    "Made for {use}, in {season} above all, and it {care}.",
    "Good for {use}; it {care}.",
    "Our favourite for {use} this {season}.",
    "It {care}, and goes well with {use}.",
    "Think of {use}.",
    "",
)


@dataclass(frozen=True, slots=True)
class DemoProduct:
    """A product as it truly is, nothing withheld. `picture` is a JPEG."""

    id: str
    look: Look
    brand: str
    picture: bytes
    title: str
    text: str

    def item(self, *, picture: bool = True, text: bool = True) -> Record:
        """The body of a `POST /items`; what is left out is told nowhere else: the title goes with the text."""
        modalities: Record = {}
        if text:
            modalities["text"] = self.text
        if picture:
            modalities["image"] = {"base64": base64.b64encode(self.picture).decode("ascii")}
        return {
            "id": self.id,
            "title": self.title if text else None,
            "modalities": modalities,
            "categories": [self.look.category],
            "metadata": {"synthetic": True},
        }


def prepare_demo(
    out: str | Path, *, items: int = ITEMS, users: int = USERS, seed: int = SEED, progress: Progress | None = None
) -> DatasetInfo:
    """Write the demo catalogue as a prepared dataset.

    Raises:
        DatasetError: `out` holds something else than a prepared dataset.
    """
    return write_dataset(
        out,
        _with_holes(items, seed),
        _events(_all_traits(items, seed), users, seed),
        name=NAME,
        source=f"generated by Lacuna from seed {seed}; products, texts and shoppers are invented",
        synthetic=True,
        progress=progress,
    )


def demo_truth(seed: int = SEED, items: int = ITEMS) -> list[DemoProduct]:
    """The products of the catalogue with all that was withheld, for tests and evaluation."""
    return [_product(_item_id(k), seed, _CATALOGUE, k) for k in range(items)]


def demo_item(seed: int = SEED, k: int = 0) -> DemoProduct:
    """The k-th product that is not in the catalogue of this seed, for posting to a running service."""
    return _product(f"fresh-{k:04d}", seed, _FRESH, k)


def demo_holes(items: int = ITEMS, seed: int = SEED) -> Mask:
    """Which of picture and text each catalogue item lacks, bool `[items, 2]`."""
    order = np.random.default_rng([seed, _HOLES]).permutation(items)
    neither, picture, text = (round(share * items) for share in (NEITHER, NO_PICTURE - NEITHER, NO_TEXT - NEITHER))
    lacks = np.zeros((items, 2), dtype=np.bool_)
    lacks[order[: neither + picture], 0] = True
    lacks[order[:neither], 1] = True
    lacks[order[neither + picture : neither + picture + text], 1] = True
    return lacks


def _with_holes(items: int, seed: int) -> Iterator[Record]:
    for k, (no_picture, no_text) in enumerate(demo_holes(items, seed)):
        yield _product(_item_id(k), seed, _CATALOGUE, k).item(picture=not no_picture, text=not no_text)


def _item_id(k: int) -> str:
    return f"demo-{k:04d}"


# --- products ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Traits:
    """The attributes of a product and the generator's state after they were drawn."""

    look: Look
    brand: str
    rng: np.random.Generator


def _traits(seed: int, stream: int, k: int) -> _Traits:
    rng = np.random.default_rng([seed, stream, k])
    category = _pick(CATEGORIES, rng)
    look = Look(
        category=category,
        style=_pick(STYLES, rng),
        colour=_pick(tuple(COLOURS), rng),
        pattern=PATTERNS[0] if rng.random() < 0.2 else _pick(PATTERNS, rng),
        material=_pick(_MATERIALS[category], rng),
        trim=_pick(tuple(TRIMS), rng),
        background=int(rng.integers(len(BACKGROUNDS))),
    )
    return _Traits(look, _pick(_BRANDS, rng), rng)


def _all_traits(items: int, seed: int) -> list[_Traits]:
    return [_traits(seed, _CATALOGUE, k) for k in range(items)]


def _product(key: str, seed: int, stream: int, k: int) -> DemoProduct:
    traits = _traits(seed, stream, k)
    words = _words(traits)
    title = _capital(_pick(_TITLES, traits.rng).format(**words))
    sentences = (_pick(_OPENINGS, traits.rng), _pick(_CLOSINGS, traits.rng))
    text = " ".join(_capital(sentence.format(**words)) for sentence in sentences if sentence)
    return DemoProduct(key, traits.look, traits.brand, draw_product(traits.look, traits.rng), title, text)


def _words(traits: _Traits) -> dict[str, str]:
    look, rng = traits.look, traits.rng
    words = {
        "pattern": "" if look.pattern == "plain" else f"{look.pattern} ",
        "colour": look.colour,
        "shade": _pick(_SHADES[look.colour], rng),
        "material": look.material,
        "noun": _pick(_NOUNS[look.category, look.style], rng),
        "motif": _pick(_MOTIFS[look.pattern], rng),
        "style": look.style,
        "season": _pick(_SEASONS, rng),
        "use": _pick(_USES[look.category], rng),
        "care": _pick(_CARE[look.material], rng),
    }
    capitals = {word.capitalize(): _capital(words[word]) for word in ("pattern", "colour", "material")}
    return words | capitals | {"Brand": traits.brand}


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _pick(choices: Sequence[_T], rng: np.random.Generator) -> _T:
    return choices[int(rng.integers(len(choices)))]


# --- shoppers ----------------------------------------------------------------------------------------------------

_GROUPS = 8  # of shoppers with common preferences
_WEIGHTS = {"category": 1.5, "style": 0.5, "colour": 1.2, "pattern": 0.9, "material": 0.6, "trim": 0.4, "brand": 0.9}
_POPULARITY, _NOISE = 0.8, 0.7
_FUNNEL = (("click", 0.5), ("cart", 0.4), ("purchase", 0.5))
_FEWEST, _MOST = 25, 40


def _events(products: Sequence[_Traits], users: int, seed: int) -> list[Record]:
    """Feedback of all shoppers, oldest first."""
    rng = np.random.default_rng([seed, _SHOPPERS])
    appeal = _appeal(products, users, rng)
    events = [event for user in range(users) for event in _visits(f"shopper-{user:03d}", appeal[user], rng)]
    return sorted(events, key=lambda event: (event["timestamp"], event["user"]))


def _appeal(products: Sequence[_Traits], users: int, rng: np.random.Generator) -> Double:
    """How much each shopper likes each item, `[users, items]`: its attributes, its popularity, noise."""
    group = rng.integers(_GROUPS, size=users)
    appeal = np.zeros((users, len(products)))
    for name, weight in _WEIGHTS.items():
        values = [traits.brand if name == "brand" else getattr(traits.look, name) for traits in products]
        kinds, kind = np.unique(values, return_inverse=True)
        shared, own = rng.standard_normal((_GROUPS, len(kinds))), rng.standard_normal((users, len(kinds)))
        appeal += weight * (0.8 * shared[group] + 0.6 * own)[:, kind]
    appeal += _POPULARITY * rng.standard_normal(len(products))
    return appeal + _NOISE * rng.gumbel(size=appeal.shape)


def _visits(user: str, appeal: Double, rng: np.random.Generator) -> Iterator[Record]:
    """One shopper's events: the items that appeal most, met in random order over a few sessions."""
    budget = int(rng.integers(_FEWEST, _MOST + 1))
    starts = rng.integers((DAYS - 1) * 86_400, size=int(rng.integers(3, 9)))
    for item in np.argsort(-appeal)[:budget]:
        seconds = int(rng.choice(starts) + rng.integers(3_600))
        for kind in _funnel(rng)[:budget]:
            moment = END - timedelta(days=DAYS) + timedelta(seconds=seconds)
            yield {"user": user, "item": _item_id(int(item)), "type": kind, "timestamp": f"{moment:%Y-%m-%dT%H:%M:%SZ}"}
            seconds += int(rng.integers(15, 240))
            budget -= 1
        if not budget:
            return


def _funnel(rng: np.random.Generator) -> list[str]:
    """A view, and what follows from it."""
    kinds = ["view"]
    for kind, chance in _FUNNEL:
        if rng.random() >= chance:
            break
        kinds.append(kind)
    return kinds
