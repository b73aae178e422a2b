"""MovieLens, as GroupLens publishes it and as tables with texts and posters.

What GroupLens publishes: `u.data` and `u.item` (100K); `ratings.dat` and `movies.dat` (1M, 10M); `ratings.csv` and
`movies.csv` (20M, 25M, 32M, latest). Tables of our own: `ratings.csv.gz` for 100K, `interactions.csv.gz` for 1M, and
`movies.csv.gz` with overviews or plots. Every file may be gzipped.

Beside either a folder may hold `posters/<item>.jpg` (`.png`, `.webp`), texts by item (`texts.csv` or `texts.jsonl`), a
fixed split (`split_*.csv.gz`), masks (`missing_*.npz`), `new_items.npy`, a split of the ratings (`rating_split_*.npz`),
and two leave-one-out splits: one random interaction each (`leave_one_out.npz`), and the published one of the last
interactions (`ncf_test.csv.gz` with `ncf_negatives.npz`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.feedback import HIGHEST, LOWEST
from training.datasets.base import DatasetError, LeaveOneOut, Located, Progress, PublishedMask, Record
from training.datasets.prepared import DatasetInfo, write_dataset
from training.datasets.published import Published, mask_name, read_mask
from training.datasets.records import HALF_STARS, MAPPED, Records, whole_number
from training.datasets.tables import (
    Aliases,
    find_file,
    id_list,
    ids_in,
    load_array,
    load_arrays,
    read_fields,
    read_jsonl,
    read_rating_split,
    read_table,
    text_encoding,
)

_YEAR = re.compile(r"\((\d{4})\)\s*$")
# The genre columns of u.item, in their order (u.genre).
_GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
_NO_GENRES = "(no genres listed)"
_COLUMNS: Aliases = {"user": ("user", "userId"), "item": ("item", "movieId"), "text": ("overview", "plot")}
_TEXT_COLUMNS: Aliases = {
    "item": ("item", "id", "movieId", "item_id"),
    "text": ("text", "overview", "plot", "description"),
}


class Film(NamedTuple):
    """A film as a source describes it."""

    item: str
    title: str
    genres: tuple[str, ...]
    text: str = ""


Row = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Layout:
    """How an edition is laid out: its files, how they are read, and what its ratings mean.

    Attributes:
        lowest: the lowest rating; the highest is 5.
        unrated: whether films that nobody rated are kept: they are new items. Not where fixed splits and masks go with
            the data, in which they have no place.
        only_with: the file that tells this layout from another one of the same names.
    """

    ratings: str
    films: str
    read_ratings: Callable[[Path], Iterator[Located[Row]]]
    read_films: Callable[[Path], Iterator[Located[Film]]]
    lowest: float = LOWEST
    unrated: bool = True
    only_with: str | None = None


# --- the layouts -------------------------------------------------------------------------------------------------


def _table_ratings(file: Path) -> Iterator[Located[Row]]:
    return read_table(file, ("user", "item"), _COLUMNS)


def _plain_ratings(separator: str) -> Callable[[Path], Iterator[Located[Row]]]:
    def read(file: Path) -> Iterator[Located[Row]]:
        for place, fields in read_fields(file, separator, range(4, 5)):
            yield Located(place, dict(zip(("user", "item", "rating", "timestamp"), fields, strict=True)))

    return read


def _table_films(file: Path) -> Iterator[Located[Film]]:
    for place, row in read_table(file, ("item", "title", "genres"), _COLUMNS):
        yield Located(place, Film(row["item"], row["title"], _split_genres(row["genres"]), row.get("text", "")))


def _dat_films(file: Path) -> Iterator[Located[Film]]:
    for place, (item, title, genres) in read_fields(file, "::", range(3, 4), text_encoding(file)):
        yield Located(place, Film(item, title, _split_genres(genres)))


def _u_item_films(file: Path) -> Iterator[Located[Film]]:
    for place, fields in read_fields(file, "|", range(5, 5 + len(_GENRES) + 1), text_encoding(file)):
        genres = tuple(genre for genre, flag in zip(_GENRES, fields[5:], strict=False) if flag == "1")
        yield Located(place, Film(fields[0], fields[1], genres))


def _split_genres(genres: str) -> tuple[str, ...]:
    return tuple(genre for genre in genres.split("|") if genre and genre != _NO_GENRES)


_100K = Layout("u.data", "u.item", _plain_ratings("\t"), _u_item_films)
_1M = Layout("ratings.dat", "movies.dat", _plain_ratings("::"), _dat_films)
_10M = replace(_1M, lowest=HALF_STARS)
_CSV = Layout("ratings.csv", "movies.csv", _table_ratings, _table_films, lowest=HALF_STARS)
_OUR_100K = Layout("ratings.csv", "movies.csv", _table_ratings, _table_films, unrated=False)
_OUR_1M = Layout("interactions.csv", "movies.csv", _table_ratings, _table_films, unrated=False)


def _layout(source: Path, layouts: Sequence[Layout]) -> Layout:
    for layout in layouts:
        if find_file(source, layout.ratings) and (not layout.only_with or find_file(source, layout.only_with)):
            return layout
    wanted = ", ".join(dict.fromkeys(f"{layout.ratings} with {layout.films}" for layout in layouts))
    raise DatasetError(f"{source} holds none of these files of MovieLens: {wanted} (each may end in .gz)")


# --- the readers -------------------------------------------------------------------------------------------------


def prepare_100k(source: Path, out: Path, progress: Progress | None = None, *, metadata: bool = True) -> DatasetInfo:
    """MovieLens 100K: ratings with timestamps.

    Args:
        metadata: whether a film's text is its title, genres and overview, or the overview alone with the title
            where there is none.

    Raises:
        DatasetError: a file is absent or a row is bad; names file and line.
    """
    return _prepare(source, out, "ml-100k", (_100K, _OUR_100K), metadata=metadata, progress=progress)


def prepare_1m(source: Path, out: Path, progress: Progress | None = None, *, metadata: bool = True) -> DatasetInfo:
    """MovieLens 1M: ratings with timestamps, or pairs without either, written as views.

    Args:
        metadata: as for `prepare_100k`, with plots.

    Raises:
        DatasetError: a file is absent or a row is bad; names file and line.
    """
    return _prepare(source, out, "ml-1m", (_1M, _OUR_1M), metadata=metadata, progress=progress)


def prepare_any(source: Path, out: Path, progress: Progress | None = None) -> DatasetInfo:
    """MovieLens of any edition, as it is published: ratings of half stars from .5 to 5 are mapped onto 1..5.

    Raises:
        DatasetError: a file is absent or a row is bad; names file and line.
    """
    layouts = (_CSV, replace(_1M, only_with="users.dat"), _10M, _100K)
    return _prepare(source, out, source.resolve().name, layouts, metadata=True, progress=progress)


def _prepare(
    source: Path, out: Path, name: str, layouts: Sequence[Layout], *, metadata: bool, progress: Progress | None
) -> DatasetInfo:
    layout = _layout(source, layouts)
    ratings, films = find_file(source, layout.ratings), find_file(source, layout.films)
    if ratings is None or films is None:
        raise DatasetError(f"{source} holds {layout.ratings}, but no {layout.films}")
    records = Records()
    listed = _listed(layout, films, ratings, records)
    known = {film.item for _, film in listed}
    splits = sorted([*source.glob("split_*.csv"), *source.glob("split_*.csv.gz")])
    texts = _texts(source, known, records)
    return write_dataset(
        out,
        (Located(place, _item(film, texts, source, records, metadata=metadata)) for place, film in listed),
        _feedback(layout, ratings, records),
        name=name,
        source=f"MovieLens, {ratings.name} and {films.name}",
        published=Published(
            split=_split(splits[0]) if splits else None,
            masks={mask_name(file): _mask(file, known) for file in sorted(source.glob("missing_*.npz"))},
            new_items=_new_items(source / "new_items.npy", known),
            rating_split=read_rating_split(source),
            leave_one_out=_leave_one_out(source),
        ),
        tally=records.tally,
        progress=progress,
    )


def _listed(layout: Layout, films: Path, ratings: Path, records: Records) -> list[Located[Film]]:
    """The films in their order, each once; where the layout wants it, only those that somebody rated."""
    rated = None if layout.unrated else {row["item"] for _, row in layout.read_ratings(ratings)}
    seen: dict[str, Film] = {}
    listed = []
    for place, film in layout.read_films(films):
        if (before := seen.setdefault(film.item, film)) is not film:
            if before != film:
                raise place.error(f"the film {film.item!r} stands there twice, and not alike")
            records.tally.left_out["repeated rows of films, merged"] += 1
        elif rated is not None and film.item not in rated:
            records.tally.left_out["films that nobody rated"] += 1
        else:
            listed.append(Located(place, film))
    return listed


def _item(film: Film, texts: Mapping[str, str], source: Path, records: Records, *, metadata: bool) -> Record | None:
    """One film's body. A text that is left out is the title."""
    text = texts.get(film.item, film.text)
    words = [f"{part}." for part in (film.title, ", ".join(film.genres)) if part] if metadata else []
    year = _YEAR.search(film.title)
    return records.item(
        film.item,
        title=film.title,
        modalities={
            "text": records.text(" ".join([*words, *([text] if text else [])])),
            "image": records.picture(source / "posters", film.item),
        },
        categories=film.genres,
        metadata={"year": int(year[1])} if year else {},
    )


def _texts(source: Path, known: set[str], records: Records) -> dict[str, str]:
    """Texts by film of `texts.csv` or `texts.jsonl`."""
    file = find_file(source, "texts.csv", "texts.jsonl")
    if file is None:
        return {}
    texts: dict[str, str] = {}
    for place, row in _text_rows(file):
        if row["item"] not in known:
            records.tally.left_out["texts of films that are not listed"] += 1
        elif texts.setdefault(row["item"], row["text"]) != row["text"]:
            raise place.error(f"the film {row['item']!r} stands there twice, and not alike")
    return texts


def _text_rows(file: Path) -> Iterator[Located[Row]]:
    if "jsonl" not in file.name:
        yield from read_table(file, ("item", "text"), _TEXT_COLUMNS)
        return
    for place, row in read_jsonl(file):
        values = (
            {wanted: _first(row, names) for wanted, names in _TEXT_COLUMNS.items()} if isinstance(row, dict) else {}
        )
        item, text = values.get("item"), values.get("text")
        if isinstance(item, bool) or not isinstance(item, str | int) or not isinstance(text, str):
            raise place.error('must be an object with the texts "id" and "text"')
        yield Located(place, {"item": str(item), "text": text})


def _first(row: Mapping[str, object], names: Iterable[str]) -> object:
    return next((row[name] for name in names if name in row), None)


def _feedback(layout: Layout, ratings: Path, records: Records) -> Iterator[Located[Record | None]]:
    for place, row in layout.read_ratings(ratings):
        if layout.lowest != LOWEST and "rating" in row:
            records.tally.changed[MAPPED] += 1
        yield Located(place, records.interaction(row, place, (layout.lowest, HIGHEST), whole_number))


def _split(file: Path) -> Iterator[Located[tuple[str, str, str]]]:
    for place, row in read_table(file, ("user", "item", "split")):
        yield Located(place, (row["user"], row["item"], row["split"]))


# --- arrays beside the files -------------------------------------------------------------------------------------


def _mask(file: Path, known: set[str]) -> PublishedMask:
    mask = read_mask(file)
    items = tuple(item for item in mask.items if item in known)
    return PublishedMask(items, mask.columns, mask.missing[[item in known for item in mask.items]])


def _new_items(file: Path, known: set[str]) -> list[str] | None:
    if not file.is_file():
        return None
    return [item for item in id_list(load_array(file), file) if item in known]


def _leave_one_out(source: Path) -> dict[str, LeaveOneOut]:
    splits = {}
    if (file := source / "leave_one_out.npz").is_file():
        arrays = _id_arrays(file, users=1, test_item=1, test_neg=2, valid_item=1, valid_neg=2)
        test, valid = (
            np.concatenate([arrays[f"{part}_item"][:, None], arrays[f"{part}_neg"]], axis=1)
            for part in ("test", "valid")
        )
        splits["random"] = LeaveOneOut(arrays["users"], test, valid)
    if (file := source / "ncf_negatives.npz").is_file():
        test_rows = find_file(source, "ncf_test.csv")
        if test_rows is None:
            raise DatasetError(f"{source} holds {file.name}, but no ncf_test.csv.gz")
        owners = np.array([row["user"] for _, row in read_table(test_rows, ("user", "item"))])
        items = _id_arrays(file, items=2)["items"]
        if len(items) != len(owners):
            raise DatasetError(f"{file.name} has {len(items)} rows, {test_rows.name} has {len(owners)}")
        splits["last"] = LeaveOneOut(owners, items)
    return splits


def _id_arrays(file: Path, **dimensions: int) -> dict[str, NDArray[np.str_]]:
    """The arrays of these names, ids all, of so many dimensions and equal length."""
    arrays = load_arrays(file)
    if not dimensions.keys() <= arrays.keys():
        raise DatasetError(f"{file.name} must hold the arrays {', '.join(dimensions)}")
    ids_of = {name: ids_in(arrays[name], file) for name in dimensions}
    if any(ids_of[name].ndim != expected for name, expected in dimensions.items()) or (
        len({len(ids) for ids in ids_of.values()}) > 1
    ):
        raise DatasetError(f"{file.name} holds arrays whose shapes do not fit each other")
    return ids_of
