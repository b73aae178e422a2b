"""LRMM out of a bundle, in whichever form it was trained."""

from __future__ import annotations

from models.bundle import Bundle
from models.lrmm.paper_serving import PaperServing
from models.lrmm.serving import NAME, LRMMServing


def load_lrmm(bundle: Bundle) -> LRMMServing | PaperServing | None:
    """What predicts ratings; None where the bundle holds no LRMM.

    Raises:
        BundleError: it holds one that this Lacuna cannot read.
    """
    entry = bundle.manifest.models.get(NAME)
    if entry is not None and entry.form == "paper":
        return PaperServing.load(bundle)
    return LRMMServing.load(bundle)
