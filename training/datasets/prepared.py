"""The prepared format on disk: reading and writing it.

A prepared dataset is a folder:

- `dataset.json`: what it is (`DatasetInfo`);
- `items.jsonl`: one `POST /items` body a line; pictures inline as `{"base64": ...}`, ready features as
  `{"vector": [...]}`;
- `feedback.jsonl`: one `POST /feedback` event a line; `timestamp` is left out where the source has none;
- `split.csv` (optional): `user,item,split` for every distinct pair, `split` being train, valid or test;
- `missing_<name>.npz` (optional): published masks: `items`, `columns`, `missing` (bool `[n, M]`), no pickle;
- `rating_split.npz` (optional): row numbers of `feedback.jsonl` by part (`train`, `valid`, `test`), to rate by;
- `leave_one_out_<name>.npz` (optional): published leave-one-out splits: `users` `[u]`, `test` `[u, 1 + c]` (ids of
  items, the one held out first, then its negatives), optionally `valid` likewise;
- `new_items.json` (optional): ids of the items that a published protocol shows in the test part only.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from models.feedback import AUTO, MinRating, default_min_rating
from models.vocabulary import Vocabulary
from training.datasets.base import (
    SPLITS,
    Dataset,
    DatasetError,
    Interactions,
    LeaveOneOut,
    Progress,
    PublishedMask,
    Record,
    distinct_pairs,
)
from training.datasets.checks import Event, EventCheck, ItemCheck, located
from training.datasets.tables import load_arrays, read_jsonl, read_rating_split, read_table

FORMAT = 1
INFO, ITEMS, FEEDBACK, SPLIT, NEW_ITEMS = "dataset.json", "items.jsonl", "feedback.jsonl", "split.csv", "new_items.json"
RATING_SPLIT = "rating_split.npz"
LEFT_OUT = "leave_one_out_"
_UNSPLIT = 255
_PROGRESS_EVERY = 50


class Counts(BaseModel):
    """How much a prepared dataset holds. `feedback` counts events, repeated ones included."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    items: int
    users: int
    feedback: int


class DatasetInfo(BaseModel):
    """`dataset.json`. Ratings below `min_rating` do not count as interest; None: all of them count."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: int
    name: str
    synthetic: bool
    source: str
    min_rating: float | None
    counts: Counts
    fingerprint: str


# --- reading -----------------------------------------------------------------------------------------------------


def load_dataset(folder: str | Path, min_rating: MinRating = AUTO) -> Dataset:
    """Read a prepared dataset; `min_rating` is used instead of its own, unless it is AUTO.

    Raises:
        DatasetError: the folder is none, was changed since it was prepared, or a row of it is bad.
    """
    path = Path(folder)
    info = read_info(path)
    least = info.min_rating if min_rating == AUTO else min_rating
    check = ItemCheck()
    records = list(read_items(path / ITEMS, check))
    users, interactions = _collect(event for _, event in read_feedback(path / FEEDBACK, check.ids))
    pairs = distinct_pairs(interactions, len(check.ids), least)
    dataset = Dataset(
        name=info.name,
        synthetic=info.synthetic,
        min_rating=least,
        fingerprint=info.fingerprint,
        items=check.ids,
        users=users,
        records=records,
        interactions=interactions,
        split=_read_split(path / SPLIT, users, check.ids, pairs, interactions),
        masks={mask_name(file): _known_mask(file, check.ids) for file in sorted(path.glob("missing*.npz"))},
        new_items=_read_new_items(path / NEW_ITEMS, check.ids),
        rating_split=_fitting(read_rating_split(path), len(interactions)),
        leave_one_out={
            file.stem.removeprefix(LEFT_OUT): _known_left_out(file, users, check.ids, pairs)
            for file in sorted(path.glob(f"{LEFT_OUT}*.npz"))
        },
    )
    if fingerprint(path) != info.fingerprint:
        raise DatasetError(f"the dataset {path} was changed after it was prepared; prepare it again")
    return dataset


def read_info(folder: Path) -> DatasetInfo:
    """Read `dataset.json` alone.

    Raises:
        DatasetError: it is absent, damaged, or of another format version.
    """
    file = folder / INFO
    if not file.is_file():
        raise DatasetError(f"{folder} is no prepared dataset: it has no {INFO} (`lacuna prepare` makes one)")
    try:
        raw = orjson.loads(file.read_bytes())
    except orjson.JSONDecodeError:
        raise DatasetError(f"{file} is not valid JSON") from None
    found = raw.get("format") if isinstance(raw, dict) else None
    if found != FORMAT:
        raise DatasetError(f"{file} has format version {found!r}, this Lacuna reads version {FORMAT}")
    try:
        return DatasetInfo.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise DatasetError(f"{file}, field {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def fingerprint(folder: Path) -> str:
    """A sha256 over the names and contents of all files of a prepared dataset but `dataset.json`."""
    total = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.name != INFO:
            with file.open("rb") as stream:
                total.update(f"{file.name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def read_items(file: Path, check: Callable[[object], Record]) -> Iterator[Record]:
    """Stream the checked item bodies of a file; `check` collects their ids.

    Raises:
        DatasetError: a bad row, or none at all.
    """
    for line, row in read_jsonl(file):
        yield located(check, row, file, line)


def read_feedback(file: Path, items: Vocabulary) -> Iterator[tuple[Record, Event]]:
    """Stream the events of a file, as they stand there and parsed.

    Raises:
        DatasetError: a bad row, an item that is not in `items`, or no row at all.
    """
    check = EventCheck(items)
    for line, row in read_jsonl(file):
        event = located(check, row, file, line)
        yield row, event


def _collect(events: Iterable[Event]) -> tuple[Vocabulary, Interactions]:
    users = Vocabulary()
    user, item, kind, value, timestamp = array("q"), array("q"), array("B"), array("d"), array("d")
    texts: dict[int, str] = {}
    for event in events:
        if event.text is not None:
            texts[len(user)] = event.text
        user.append(users.add(event.user))
        item.append(event.item)
        kind.append(event.type)
        value.append(event.value)
        timestamp.append(event.timestamp)
    return users, Interactions(
        user=np.array(user, dtype=np.int64),
        item=np.array(item, dtype=np.int64),
        type=np.array(kind, dtype=np.uint8),
        value=np.array(value, dtype=np.float64),
        timestamp=np.array(timestamp, dtype=np.float64),
        texts=texts,
    )


def _read_split(
    file: Path, users: Vocabulary, items: Vocabulary, pairs: NDArray[np.int64], interactions: Interactions
) -> NDArray[np.uint8] | None:
    if not file.is_file():
        return None
    listed, parts = _split_rows(file, users, items)
    order = np.argsort(listed, kind="stable")
    repeated = np.flatnonzero(np.diff(listed[order]) == 0)
    if repeated.size:
        raise DatasetError(f"{file.name}, line {order[repeated[0] + 1] + 2}: the pair stands there twice")
    foreign = ~np.isin(listed, interactions.user * len(items) + interactions.item)
    if foreign.any():
        raise DatasetError(f"{file.name}, line {int(foreign.argmax()) + 2}: the pair is not in {FEEDBACK}")
    keys = pairs[:, 0] * len(items) + pairs[:, 1]
    place = np.searchsorted(listed[order], keys)
    split = np.full(len(keys), _UNSPLIT, dtype=np.uint8)
    there = place < len(listed)
    there[there] = listed[order][place[there]] == keys[there]
    split[there] = parts[order][place[there]]
    if not there.all():
        user, item = pairs[int((~there).argmax())]
        raise DatasetError(f"{file.name} leaves out the pair {users.id(user)!r}, {items.id(item)!r} of {FEEDBACK}")
    return split


def _split_rows(file: Path, users: Vocabulary, items: Vocabulary) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """The pairs of `split.csv` as keys `user row * n_items + item row`, and their parts."""
    keys, parts = array("q"), array("B")
    numbers = {name: number for number, name in enumerate(SPLITS)}
    for line, row in read_table(file, ("user", "item", "split")):
        user, item, part = users.get(row["user"]), items.get(row["item"]), numbers.get(row["split"])
        if user is None or item is None or part is None:
            raise DatasetError(
                f"{file.name}, line {line}: expected a known user, a known item and one of {', '.join(SPLITS)}"
            )
        keys.append(user * len(items) + item)
        parts.append(part)
    return np.array(keys, dtype=np.int64), np.array(parts, dtype=np.uint8)


def read_mask(file: Path) -> PublishedMask:
    """Read a mask that names its items and columns.

    Raises:
        DatasetError: the file is damaged, or one of its arrays is absent or of the wrong shape.
    """
    arrays = load_arrays(file)
    if not {"items", "columns", "missing"} <= arrays.keys():
        raise DatasetError(f"{file.name} must hold the arrays items, columns and missing")
    return PublishedMask(
        items=tuple(map(str, arrays["items"])), columns=tuple(map(str, arrays["columns"])), missing=arrays["missing"]
    )


def mask_name(file: Path) -> str:
    """The name of the mask in `missing_<name>.npz`."""
    return file.stem.removeprefix("missing").lstrip("_") or "default"


def _known_mask(file: Path, items: Vocabulary) -> PublishedMask:
    mask = read_mask(file)
    unknown = next((item for item in mask.items if item not in items), None)
    if unknown is not None:
        raise DatasetError(f"{file.name} names the item {unknown!r}, which is not in {ITEMS}")
    return mask


def _known_left_out(file: Path, users: Vocabulary, items: Vocabulary, pairs: NDArray[np.int64]) -> LeaveOneOut:
    arrays = load_arrays(file)
    if not {"users", "test"} <= arrays.keys():
        raise DatasetError(f"{file.name} must hold the arrays users and test")
    named = LeaveOneOut(arrays["users"], arrays["test"], arrays.get("valid"))
    owners = _rows(named.users, users, f"{file.name} names the user")
    trials = [
        None if part is None else _rows(part, items, f"{file.name} names the item")
        for part in (named.test, named.valid)
    ]
    known = pairs[:, 0] * len(items) + pairs[:, 1]
    for part in trials:
        if part is not None and not np.isin(owners * len(items) + part[:, 0], known).all():
            raise DatasetError(f"{file.name} holds out a pair that is not in {FEEDBACK}")
    assert trials[0] is not None
    return LeaveOneOut(owners, trials[0], trials[1])


def _rows(ids: NDArray[np.str_], vocabulary: Vocabulary, whose: str) -> NDArray[np.int64]:
    """The rows of ids, in their shape."""
    distinct, place = np.unique(ids, return_inverse=True)
    unknown = next((one for one in map(str, distinct) if one not in vocabulary), None)
    if unknown is not None:
        raise DatasetError(f"{whose} {unknown!r}, which is not in the data")
    rows = np.array([vocabulary.row(one) for one in map(str, distinct)], dtype=np.int64)
    return rows[place].reshape(ids.shape)


def _read_new_items(file: Path, items: Vocabulary) -> NDArray[np.int64] | None:
    if not file.is_file():
        return None
    ids = json.loads(file.read_text("utf-8"))
    unknown = next((item for item in ids if item not in items), None)
    if unknown is not None:
        raise DatasetError(f"{file.name} names the item {unknown!r}, which is not in {ITEMS}")
    return np.array([items.row(item) for item in ids], dtype=np.int64)


def _fitting(split: NDArray[np.uint8] | None, events: int) -> NDArray[np.uint8] | None:
    if split is not None and len(split) != events:
        raise DatasetError(f"{RATING_SPLIT} names {len(split)} rows, {FEEDBACK} has {events}")
    return split


# --- writing -----------------------------------------------------------------------------------------------------


def item_line(record: Record) -> bytes:
    """An item body as a line of `items.jsonl`, vectors given as lists or float32 arrays."""
    return orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


def write_dataset(
    folder: str | Path,
    items: Iterable[Record],
    feedback: Iterable[Record],
    *,
    name: str,
    source: str,
    synthetic: bool = False,
    min_rating: MinRating = AUTO,
    split: Iterable[tuple[str, str, str]] | None = None,
    masks: Mapping[str, PublishedMask] | None = None,
    new_items: Sequence[str] | None = None,
    rating_split: NDArray[np.uint8] | None = None,
    leave_one_out: Mapping[str, LeaveOneOut] | None = None,
    progress: Progress | None = None,
) -> DatasetInfo:
    """Write a prepared dataset; it appears at `folder` whole or not at all, replacing an older one.

    Items are read to their end before the first feedback event is asked for; neither is held in memory. `split` has
    (user, item, split name) for every distinct pair; `rating_split` the part of every event `[n]`; `leave_one_out`
    holds ids. Ratings below `min_rating` show no interest; with AUTO the ratings themselves say which
    (`models.feedback.default_min_rating`). `progress` is called with what is being written ("items", "feedback") and
    the number of rows so far.

    Raises:
        DatasetError: a row is bad (its number among the rows is the line), or `folder` holds something else.
    """
    target = Path(folder)
    with _replacing(target) as temporary:
        check = ItemCheck()
        n_items = _write_lines(temporary / ITEMS, items, check, item_line, progress)
        parse = EventCheck(check.ids)
        n_events = _write_lines(temporary / FEEDBACK, feedback, parse, _event_line, progress)
        if split is not None:
            _write_split(temporary / SPLIT, split)
        for mask, published in (masks or {}).items():
            _write_mask(temporary / f"missing_{mask}.npz", published)
        if new_items is not None:
            (temporary / NEW_ITEMS).write_text(json.dumps(list(new_items)) + "\n", "utf-8")
        if _fitting(rating_split, n_events) is not None:
            parts = {part: np.flatnonzero(rating_split == number) for number, part in enumerate(SPLITS)}
            np.savez_compressed(temporary / RATING_SPLIT, allow_pickle=False, **parts)
        for split_name, left_out in (leave_one_out or {}).items():
            _write_left_out(temporary / f"{LEFT_OUT}{split_name}.npz", left_out)
        info = DatasetInfo(
            format=FORMAT,
            name=name,
            synthetic=synthetic,
            source=source,
            min_rating=default_min_rating(parse.ratings) if min_rating == AUTO else min_rating,
            counts=Counts(items=n_items, users=parse.n_users, feedback=n_events),
            fingerprint=fingerprint(temporary),
        )
        _write_info(temporary, info)
    return info


def set_min_rating(folder: Path, min_rating: float | None) -> DatasetInfo:
    """Say which ratings of a prepared dataset show interest; its data stay what they are.

    Raises:
        DatasetError: the folder is no prepared dataset.
    """
    info = read_info(folder).model_copy(update={"min_rating": min_rating})
    _write_info(folder, info)
    return info


def _write_info(folder: Path, info: DatasetInfo) -> None:
    (folder / INFO).write_text(info.model_dump_json(indent=2) + "\n", "utf-8")


def _event_line(row: Record) -> bytes:
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)


def _write_lines(
    file: Path,
    rows: Iterable[Record],
    check: Callable[[object], object],
    line: Callable[[Record], bytes],
    progress: Progress | None,
) -> int:
    count = 0
    with file.open("wb") as stream:
        for count, row in enumerate(rows, start=1):
            located(check, row, file, count)
            stream.write(line(row))
            if progress and count % _PROGRESS_EVERY == 0:
                progress(file.stem, count)
    if not count:
        raise DatasetError(f"{file.name} is empty")
    if progress:
        progress(file.stem, count)
    return count


def _write_split(file: Path, rows: Iterable[tuple[str, str, str]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("user", "item", "split"))
        writer.writerows(rows)


def _write_mask(file: Path, mask: PublishedMask) -> None:
    np.savez_compressed(file, items=np.array(mask.items), columns=np.array(mask.columns), missing=mask.missing)


def _write_left_out(file: Path, split: LeaveOneOut) -> None:
    parts = {"users": split.users, "test": split.test, "valid": split.valid}
    np.savez_compressed(file, allow_pickle=False, **{name: ids for name, ids in parts.items() if ids is not None})


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place in the end; only prepared datasets are replaced."""
    if target.exists() and not (target / INFO).is_file() and not (target.is_dir() and not any(target.iterdir())):
        raise DatasetError(f"{target} exists and is no prepared dataset; choose another place")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield temporary
        os.chmod(temporary, 0o755)  # mkdtemp makes it private
        if target.exists():
            old = target.with_name(f".{target.name}-old-{os.getpid()}")
            target.rename(old)
            temporary.rename(target)
            shutil.rmtree(old)
        else:
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
