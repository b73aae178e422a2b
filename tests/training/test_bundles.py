"""Models that join a bundle: withheld cells reach none of them, and no checkpoint of other content is continued."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.iris.config import IRISConfig
from models.lrmm.config import LRMMConfig
from models.modality import ModalBatch
from tests.training.tiny import CONFIG, TRAINER, contents, events, vector_records
from training.bundles import open_bundle, run_fingerprint
from training.content import DataOptions, withheld_cells
from training.datasets import Dataset, load_dataset, write_dataset
from training.dgmrec.recipe import DGMRecRecipe
from training.iris.recipe import IRISRecipe
from training.iris.source import TRAINER as IRIS_TRAINER
from training.iris.source import IRISTraining
from training.lrmm.recipe import LRMMRecipe
from training.lrmm.task import TRAINER as LRMM_TRAINER
from training.progress import Terminal
from training.recipe import Recipe, train_into_bundle

MISSING = DataOptions(missing=0.4, threads=1)
DGMREC = DGMRecRecipe(CONFIG, TRAINER)
IRIS = IRISRecipe(
    IRISConfig(embedding_size=4, members=1, tower_hidden=8, tower_size=4, interest_size=4, rank=4),
    IRISTraining(factor_epochs=2, als_epochs=2),
    IRIS_TRAINER,
)
LRMM = LRMMRecipe(LRMMConfig(members=2, hidden=8, rating_hidden=4, folds=2, repeats=1, content_size=3), LRMM_TRAINER)


def rated(folder: Path, *, noise: np.ndarray[Any, Any] | None = None) -> Dataset:
    """Items of vectors, of which those in `noise` (bool `[n, M]`) are replaced, with clicks and ratings."""
    features, observed = contents()
    records = vector_records()
    for column, name in enumerate(features):
        for row in np.flatnonzero(observed[:, column] & noise[:, column]) if noise is not None else ():
            records[row]["modalities"][name] = {"vector": [50.0] * features[name].shape[1]}
    ratings = [{**event, "type": "rating", "value": 1 + number % 5} for number, event in enumerate(events())]
    write_dataset(folder, records, [*events(), *ratings], name="tiny", source="test", synthetic=True)
    return load_dataset(folder)


def terminal() -> Terminal:
    return Terminal(quiet=True)


def same(left: ModalBatch, right: ModalBatch) -> bool:
    alike = all((left.features[name] == right.features[name]).all() for name in left.names)
    return alike and bool((left.observed == right.observed).all())


def test_withheld_cells_stay_withheld_from_what_joins_a_bundle(tmp_path: Path) -> None:
    """As in `lacuna train all --missing 0.4`: what the bundle's own training did not see, the others do not either."""
    dataset, out = rated(tmp_path / "data"), tmp_path / "bundle"
    withheld = withheld_cells(dataset, MISSING)
    assert 0.3 < withheld.sum() / dataset.observed().sum() < 0.5
    first = open_bundle(dataset, out, MISSING, terminal()).content  # where there is no bundle yet
    train_into_bundle(DGMREC, dataset, out, MISSING, terminal=terminal())
    joined = open_bundle(dataset, out, MISSING, terminal()).content
    np.testing.assert_array_equal(joined.observed.numpy(), dataset.observed() & ~withheld)
    assert same(joined, first)
    whole = open_bundle(dataset, out, replace(MISSING, missing=0.0), terminal()).content
    np.testing.assert_array_equal(whole.observed.numpy(), dataset.observed())


@pytest.mark.parametrize("recipe", [DGMREC, LRMM, IRIS])
def test_noise_in_withheld_cells_changes_no_weight(tmp_path: Path, recipe: Recipe) -> None:
    data = rated(tmp_path / "data")
    noisy = rated(tmp_path / "noisy", noise=withheld_cells(data, MISSING))
    files = []
    for number, dataset in enumerate((data, noisy)):
        out = tmp_path / f"bundle-{number}"
        train_into_bundle(DGMREC, dataset, out, MISSING, terminal=terminal())
        manifest = train_into_bundle(recipe, dataset, out, MISSING, terminal=terminal())
        files.append(manifest.files[f"{recipe.name}.safetensors"])
    assert files[0] == files[1]


def test_the_fingerprint_of_a_run_tells_contents_apart() -> None:
    features, observed = contents()
    content = ModalBatch(
        {name: torch.from_numpy(feature) for name, feature in features.items()}, torch.from_numpy(observed)
    )
    one = run_fingerprint(content, {"epochs": 1})
    assert one == run_fingerprint(content, {"epochs": 1})
    assert one != run_fingerprint(content, {"epochs": 2})
    other = {**content.features, "audio": content.features["audio"] + 1}
    assert one != run_fingerprint(ModalBatch(other, content.observed), {"epochs": 1})
    assert one != run_fingerprint(ModalBatch(content.features, ~content.observed), {"epochs": 1})
    renamed = {f"{name}-": feature for name, feature in content.features.items()}
    assert one != run_fingerprint(ModalBatch(renamed, content.observed), {"epochs": 1})


class Dying(Terminal):
    """Stops in the second epoch."""

    def epoch(self, epoch: int, losses: dict[str, float], metrics: dict[str, float], best: float) -> None:
        if epoch == 2:
            raise KeyboardInterrupt
        super().epoch(epoch, losses, metrics, best)


def test_lrmm_continues_no_checkpoint_of_other_content(tmp_path: Path) -> None:
    """An interrupted run, and then one with withheld cells: it begins anew and ends like one that never stopped."""
    dataset, out = rated(tmp_path / "data"), tmp_path / "bundle"
    whole = DataOptions(threads=1)
    with pytest.raises(KeyboardInterrupt):
        train_into_bundle(LRMM, dataset, out, whole, terminal=Dying(quiet=True))
    assert list(tmp_path.glob(".*checkpoint*"))
    after = train_into_bundle(LRMM, dataset, out, MISSING, terminal=terminal())
    undisturbed = train_into_bundle(LRMM, dataset, tmp_path / "other", MISSING, terminal=terminal())
    assert after.models["lrmm"].metrics == undisturbed.models["lrmm"].metrics
    assert after.files["lrmm.safetensors"] == undisturbed.files["lrmm.safetensors"]
