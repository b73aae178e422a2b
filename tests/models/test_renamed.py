"""Old names of settings are refused with the new one, and no table of them names a setting that is still there."""

from __future__ import annotations

import pytest

from models.lrmm import config as lrmm
from models.renamed import OldNames, refuse_old_names

TABLE: OldNames = {"taste_size": "factor_size", "tone_folds": None}


def test_new_names_pass() -> None:
    refuse_old_names({"factor_size": 1, "anything": 2}, TABLE)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("taste_size", "the setting 'taste_size' is called 'factor_size' now"),
        ("tone_folds", "the setting 'tone_folds' is gone: what it set is a constant now"),
    ],
)
def test_old_names_are_refused(name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        refuse_old_names({"members": 1, name: 2}, TABLE)


def test_new_names_exist_and_old_ones_do_not() -> None:
    fields = lrmm.LRMMConfig.model_fields.keys()
    assert not lrmm.OLD_NAMES.keys() & fields
    assert {name for name in lrmm.OLD_NAMES.values() if name is not None} <= fields
