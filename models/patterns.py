"""Regular expressions of ids and texts, each with the sentence for those who miss it."""

from __future__ import annotations

from collections.abc import Mapping

_CONTROL = r"\x00-\x1f\x7f-\x9f"

ITEM_ID = r"^[A-Za-z0-9._:-]{1,128}$"
USER_ID = rf"^[^/{_CONTROL}]{{1,128}}$"
NAME = r"^[A-Za-z0-9._-]{1,64}$"
LABEL = rf"^[^{_CONTROL}]{{1,128}}$"
PROSE = r"^[^\x00]*[^\x00\s][^\x00]*$"

SENTENCES: Mapping[str, str] = {
    ITEM_ID: "an id is 1 to 128 characters of A-Z a-z 0-9 . _ : -",
    USER_ID: "a user's id is 1 to 128 characters, neither control characters nor '/'",
    NAME: "a name is 1 to 64 characters of A-Z a-z 0-9 . _ -",
    LABEL: "this is 1 to 128 characters without control characters",
    PROSE: "this must hold more than blanks, and no NUL character",
}
