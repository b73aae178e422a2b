"""Keys and passwords: none that can be guessed, and none where others read."""

from __future__ import annotations

import pytest

from service.settings import Settings, SettingsError


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.chdir(str(tmp_path))


# --- keys that can be guessed -----------------------------------------------------------------------------------------


def test_a_short_key_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"entry 2 a key of fewer than 16 characters") as caught:
        Settings.load(api_keys="shop:read:0123456789abcdef,ops:admin:0123456789abcde")
    assert "0123456789abcde" not in str(caught.value)
    assert len(Settings.load(api_keys="shop:read:0123456789abcdef").api_keys) == 1


def test_tests_may_have_short_ones() -> None:
    assert Settings.load(api_keys="ops:admin:abc", allow_short_keys=True).api_keys[0].key == "abc"
