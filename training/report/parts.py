"""What a bundle's model made of the items: general, specific and generated features in a plane."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.arrays import Array, Mask
from models.bundle import Bundle
from models.dgmrec.serving import DGMRecServing
from training.plane import plane
from training.report.plots import Cloud, Plot, scatter
from training.report.sections import Block, Chapter, Section
from training.report.tables import Cell, Row, Table

DRAWN = 300  # items; more would take long and draw black


def parts_chapter(path: Path) -> Chapter:
    """t-SNE (van der Maaten and Hinton, 2008) of a sample of the bundle's items, always the same for the same bundle.

    Raises:
        BundleError: the bundle is damaged or holds no dgmrec.
    """
    bundle = Bundle.load(path)
    online = DGMRecServing.load(bundle)
    observed = online.tables["observed"].astype(bool)  # [n, M]
    features = {name: online.tables[f"feature.{name}"] for name in online.names}
    preference = online.tables["item_preference"].transpose(1, 0, 2)
    parts = online.encode(features, preference)  # [M, n, 2d]
    rows = np.random.default_rng(0).permutation(len(observed))[:DRAWN]
    drawn = [_parts_plot(online, parts[:, rows], observed[rows])]
    drawn += [_feature_plot(name, features[name][rows], observed[rows, a]) for a, name in enumerate(online.names)]
    data = bundle.manifest.data
    block = Block(tables=[_similarity(online, parts)], plots=drawn)
    about = (
        f"Bundle {bundle.version}, trained on {data.name}: {len(rows)} of {data.items} items. Generated features are "
        "hollow. Places in a t-SNE have no unit; what stands together is similar."
    )
    section = Section("parts-0", "Parts of the items", about, [block], data.synthetic)
    return Chapter("parts", "What the model sees", [section])


def _parts_plot(online: DGMRecServing, parts: Array, observed: Mask) -> Plot:
    """General and specific parts of all modalities in one plane."""
    split = {
        (kind, a): block
        for a in range(len(online.names))
        for kind, block in zip(("general", "specific"), np.split(parts[a], 2, axis=1), strict=True)
    }
    places = plane(np.concatenate(list(split.values())))
    clouds = []
    for place, (kind, a) in enumerate(split):
        count = len(observed)
        own, have = places[place * count : (place + 1) * count], observed[:, a]
        for hollow, chosen in ((False, have), (True, ~have)):
            if chosen.any():
                suffix = ", generated" if hollow else ""
                name = f"{online.names[a]}: {kind}{suffix}"
                colour, mark = 2 * a + (kind == "specific"), int(kind == "specific")
                clouds.append(Cloud(name, own[chosen].tolist(), hollow, colour, mark))
    return scatter("General and specific parts, t-SNE", clouds)


def _feature_plot(name: str, features: Array, have: Mask) -> Plot:
    """Observed and generated features of one modality."""
    places = plane(features)
    clouds = [
        Cloud(label, places[chosen].tolist(), hollow, colour)
        for label, chosen, hollow, colour in (("observed", have, False, 0), ("generated", ~have, True, 1))
        if chosen.any()
    ]
    return scatter(f"{name}: features, t-SNE", clouds)


def _similarity(online: DGMRecServing, parts: Array) -> Table:
    """Mean over the items of the cosine between two parts of the same item."""
    blocks = {
        f"{name}: {kind}": block
        for a, name in enumerate(online.names)
        for kind, block in zip(("general", "specific"), np.split(parts[a], 2, axis=1), strict=True)
    }
    units = {name: block / np.linalg.norm(block, axis=1, keepdims=True).clip(1e-12) for name, block in blocks.items()}
    rows = [
        Row(
            name,
            [Cell(f"{float((left * right).sum(axis=1).mean()):.2f}") for right in units.values()],
        )
        for name, left in units.items()
    ]
    note = "Mean cosine between two parts of the same item, over all items. General parts should be alike across "
    note += "modalities, and unlike the specific ones."
    return Table("Similarity of the parts", ["Part", *units], rows, note)
