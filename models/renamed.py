"""Settings that were renamed: an old name is refused with a sentence that says the new one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

OldNames = Mapping[str, str | None]  # the old name -> the new one; None where the setting became a constant


def refuse_old_names(settings: Iterable[str], old_names: OldNames) -> None:
    """Check names of settings, as they stand in a bundle's config or on the command line.

    Raises:
        ValueError: one of them is old.
    """
    for name in settings:
        if name not in old_names:
            continue
        new = old_names[name]
        if new is None:
            raise ValueError(f"the setting {name!r} is gone: what it set is a constant now")
        raise ValueError(f"the setting {name!r} is called {new!r} now")
