"""External ids and the rows they stand in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


class Vocabulary:
    """A bijection between external string ids and rows `0..n-1`, in order of insertion."""

    __slots__ = ("_ids", "_rows")

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self._ids: list[str] = list(ids)
        self._rows: dict[str, int] = {key: row for row, key in enumerate(self._ids)}
        if len(self._rows) != len(self._ids):
            raise ValueError("ids of a vocabulary must be unique")

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, key: object) -> bool:
        return key in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self._ids == other._ids

    __hash__ = None  # type: ignore[assignment]

    def row(self, key: str) -> int:
        """The row of an id.

        Raises:
            KeyError: the id is not in the vocabulary.
        """
        return self._rows[key]

    def get(self, key: str) -> int | None:
        """The row of an id, or None."""
        return self._rows.get(key)

    def id(self, row: int) -> str:
        """The id in a row.

        Raises:
            IndexError: there is no such row.
        """
        if row < 0:
            raise IndexError(row)
        return self._ids[row]

    def add(self, key: str) -> int:
        """The row of an id, appended when it is new."""
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = len(self._ids)
            self._ids.append(key)
        return row

    @property
    def ids(self) -> list[str]:
        """All ids in row order (a copy)."""
        return list(self._ids)
