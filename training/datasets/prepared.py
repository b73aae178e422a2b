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
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from models.feedback import AUTO, MinRating, default_min_rating
from models.rows import ANY_LENGTH
from models.vocabulary import Vocabulary
from training.datasets.base import (
    SPLITS,
    Dataset,
    DatasetError,
    Interactions,
    LeaveOneOut,
    Located,
    Place,
    Progress,
    PublishedMask,
    Record,
    Tally,
    distinct_pairs,
)
from training.datasets.checks import Event, EventCheck, ItemCheck, located
from training.datasets.split_table import SplitRow, SplitTable
from training.datasets.tables import id_list, load_arrays, read_jsonl, read_rating_split, read_table

FORMAT = 1
INFO, ITEMS, FEEDBACK, SPLIT, NEW_ITEMS = "dataset.json", "items.jsonl", "feedback.jsonl", "split.csv", "new_items.json"
RATING_SPLIT = "rating_split.npz"
LEFT_OUT = "leave_one_out_"
_PROGRESS_EVERY = 50

Row = Record | Located[Record] | Located[Record | None]


class Counts(BaseModel):
    """How much a prepared dataset holds. `feedback` counts events, repeated ones included."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    items: int
    users: int
    feedback: int


class DatasetInfo(BaseModel):
    """`dataset.json`. Ratings below `min_rating` do not count as interest; None: all of them count.

    `left_out` and `changed` count, by reason, what of the source was left out and what was changed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: int
    name: str
    synthetic: bool
    source: str
    min_rating: float | None
    counts: Counts
    fingerprint: str
    left_out: dict[str, int] = {}
    changed: dict[str, int] = {}


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
            file.stem.removeprefix(LEFT_OUT): _read_left_out(file, users, check.ids, pairs)
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
                total.update(
                    f"{file.name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode(
                        errors="surrogateescape"
                    )
                )
    return total.hexdigest()


def read_items(file: Path, check: Callable[[object], Record]) -> Iterator[Record]:
    """Stream the checked item bodies of a file; `check` collects their ids.

    Raises:
        DatasetError: a bad row, or none at all.
    """
    for place, row in read_jsonl(file):
        yield located(check, row, *place)


def read_feedback(file: Path, items: Vocabulary, text_chars: int = ANY_LENGTH) -> Iterator[tuple[Record, Event]]:
    """Stream the events of a file, as they stand there and parsed.

    Raises:
        DatasetError: a bad row, an item that is not in `items`, or no row at all.
    """
    check = EventCheck(items, text_chars=text_chars)
    for place, row in read_jsonl(file):
        event = located(check, row, *place)
        yield row, event


def _collect(events: Iterable[Event]) -> tuple[Vocabulary, Interactions]:
    collector = _Collector()
    for event in events:
        collector.add(event)
    return collector.users, collector.interactions()


class _Collector:
    """Gathers events as the arrays of `Interactions`, and their users."""

    def __init__(self) -> None:
        self.users = Vocabulary()
        self._user, self._item, self._type = array("q"), array("q"), array("B")
        self._value, self._timestamp = array("d"), array("d")
        self._texts: dict[int, str] = {}

    def add(self, event: Event) -> None:
        """Add an event after those before."""
        if event.text is not None:
            self._texts[len(self._user)] = event.text
        self._user.append(self.users.add(event.user))
        self._item.append(event.item)
        self._type.append(event.type)
        self._value.append(event.value)
        self._timestamp.append(event.timestamp)

    def interactions(self) -> Interactions:
        """All events so far."""
        return Interactions(
            user=np.array(self._user, dtype=np.int64),
            item=np.array(self._item, dtype=np.int64),
            type=np.array(self._type, dtype=np.uint8),
            value=np.array(self._value, dtype=np.float64),
            timestamp=np.array(self._timestamp, dtype=np.float64),
            texts=self._texts,
        )


def _read_split(
    file: Path, users: Vocabulary, items: Vocabulary, pairs: NDArray[np.int64], interactions: Interactions
) -> NDArray[np.uint8] | None:
    if not file.is_file():
        return None
    rows = (
        Located(place, (row["user"], row["item"], row["split"]))
        for place, row in read_table(file, ("user", "item", "split"))
    )
    return SplitTable(rows, users, items).aligned(pairs, interactions)


def read_mask(file: Path) -> PublishedMask:
    """Read a mask that names its items and columns.

    Raises:
        DatasetError: the file is damaged, or one of its arrays is absent or of the wrong shape.
    """
    arrays = load_arrays(file)
    if not {"items", "columns", "missing"} <= arrays.keys():
        raise DatasetError(f"{file.name} must hold the arrays items, columns and missing")
    return published_mask(file, id_list(arrays["items"], file), id_list(arrays["columns"], file), arrays["missing"])


def published_mask(file: Path, items: Iterable[str], columns: Iterable[str], missing: NDArray[Any]) -> PublishedMask:
    """The mask that a file publishes.

    Raises:
        DatasetError: `missing` is not bool `[items, columns]`; names the file.
    """
    try:
        return PublishedMask(tuple(items), tuple(columns), missing)
    except DatasetError as error:
        raise DatasetError(f"{file.name}: {error}") from None


def mask_name(file: Path) -> str:
    """The name of the mask in `missing_<name>.npz`."""
    return file.stem.removeprefix("missing").lstrip("_") or "default"


def _known_mask(file: Path, items: Vocabulary) -> PublishedMask:
    mask = read_mask(file)
    _check_known(mask.items, items, file.name)
    return mask


def _check_known(ids: Iterable[str], items: Vocabulary, whose: str) -> None:
    unknown = next((item for item in ids if item not in items), None)
    if unknown is not None:
        raise DatasetError(f"{whose} names the item {unknown!r}, which is not in {ITEMS}")


def _read_left_out(file: Path, users: Vocabulary, items: Vocabulary, pairs: NDArray[np.int64]) -> LeaveOneOut:
    arrays = load_arrays(file)
    if not {"users", "test"} <= arrays.keys():
        raise DatasetError(f"{file.name} must hold the arrays users and test")
    return _known_left_out(
        LeaveOneOut(arrays["users"], arrays["test"], arrays.get("valid")), file.name, users, items, pairs
    )


def _known_left_out(
    named: LeaveOneOut, whose: str, users: Vocabulary, items: Vocabulary, pairs: NDArray[np.int64]
) -> LeaveOneOut:
    owners = _rows(named.users, users, f"{whose} names the user")
    trials = [
        None if part is None else _rows(part, items, f"{whose} names the item") for part in (named.test, named.valid)
    ]
    known = pairs[:, 0] * len(items) + pairs[:, 1]
    for part in trials:
        if part is not None and not np.isin(owners * len(items) + part[:, 0], known).all():
            raise DatasetError(f"{whose} holds out a pair that is not in {FEEDBACK}")
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
    _check_known(ids, items, file.name)
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
    items: Iterable[Row],
    feedback: Iterable[Row],
    *,
    name: str,
    source: str,
    synthetic: bool = False,
    min_rating: MinRating = AUTO,
    split: Iterable[SplitRow | Located[SplitRow]] | None = None,
    masks: Mapping[str, PublishedMask] | None = None,
    new_items: Sequence[str] | None = None,
    rating_split: NDArray[np.uint8] | None = None,
    leave_one_out: Mapping[str, LeaveOneOut] | None = None,
    tally: Tally | None = None,
    merge_repeated: bool = False,
    progress: Progress | None = None,
) -> DatasetInfo:
    """Write a prepared dataset; it appears at `folder` whole or not at all, replacing an older one.

    Items are read to their end before the first feedback event is asked for; neither is held in memory. A row may say
    where its source has it; a row that is None there was left out by its reader. `split` has (user, item, split name)
    for every distinct pair; `rating_split` the part of every event `[n]`, those left out included; `leave_one_out`
    holds ids. Ratings below `min_rating` show no interest; with AUTO the ratings themselves say which
    (`models.feedback.default_min_rating`). `tally` is what a reader counts while rows are asked for; `merge_repeated`
    drops an event that repeats an earlier one in all it says. `progress` is called with what is being written ("items",
    "feedback") and the number of rows so far.

    Raises:
        DatasetError: a row is bad (where its source has it, or else its number among the rows), no row is left, a
            split, a mask or a list of new items does not fit the rows, or `folder` holds something else.
    """
    target, tally = Path(folder), tally or Tally()
    with _replacing(target) as temporary:
        check = ItemCheck()
        n_items = int(_write_lines(temporary / ITEMS, items, check, item_line, tally, progress).sum())
        parse, collector = EventCheck(check.ids), _Collector()
        splits = split is not None or bool(leave_one_out)
        checked = (lambda row: collector.add(parse(row))) if splits else parse
        kept = _write_lines(temporary / FEEDBACK, feedback, checked, _event_line, tally, progress)
        if merge_repeated:
            kept = _merge_repeated(temporary / FEEDBACK, kept, tally)
        least = default_min_rating(parse.ratings) if min_rating == AUTO else min_rating
        if splits:
            _write_splits(temporary, check.ids, collector, least, split, leave_one_out or {})
        _write_lists(temporary, check.ids, masks or {}, new_items)
        if rating_split is not None:
            _write_rating_split(temporary / RATING_SPLIT, rating_split, kept)
        info = DatasetInfo(
            format=FORMAT,
            name=_encodable(name),
            synthetic=synthetic,
            source=_encodable(source),
            min_rating=least,
            counts=Counts(items=n_items, users=parse.n_users, feedback=int(kept.sum())),
            fingerprint=fingerprint(temporary),
            left_out=dict(tally.left_out),
            changed=dict(tally.changed),
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


def _encodable(name: str) -> str:
    """A name that may come from a folder whose name is no UTF-8."""
    return name.encode(errors="replace").decode()


def _event_line(row: Record) -> bytes:
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)


def _write_lines(
    file: Path,
    rows: Iterable[Row],
    check: Callable[[object], object],
    line: Callable[[Record], bytes],
    tally: Tally,
    progress: Progress | None,
) -> NDArray[np.bool_]:
    """Write the rows that are some; which of them `[n]` were written."""
    kept, count = bytearray(), 0
    with file.open("wb") as stream:
        for number, row in enumerate(rows, start=1):
            place, record = row if isinstance(row, Located) else (Place(file, number), row)
            kept.append(record is not None)
            if record is None:
                continue
            located(check, record, *place)
            stream.write(line(record))
            count += 1
            if progress and count % _PROGRESS_EVERY == 0:
                progress(file.stem, count)
    if not count:
        reasons = "; ".join(f"{reason}: {n}" for reason, n in tally.left_out.items())
        raise DatasetError(f"no row is left for {file.name} ({reasons})" if reasons else f"{file.name} is empty")
    if progress:
        progress(file.stem, count)
    return np.frombuffer(kept, dtype=np.bool_)


def _merge_repeated(file: Path, kept: NDArray[np.bool_], tally: Tally) -> NDArray[np.bool_]:
    """Drop the lines that repeat an earlier one; which of the rows `[n]` are left of those that were kept."""
    with file.open("rb") as stream:
        hashes = np.fromiter(map(hash, stream), dtype=np.int64)
    order = np.argsort(hashes, kind="stable")
    alike = hashes[order[1:]] == hashes[order[:-1]]
    if not alike.any():
        return kept
    again = set(order[1:][alike].tolist())
    suspects = again | set(order[:-1][alike].tolist())
    seen: set[bytes] = set()  # two lines of one hash may still differ
    fresh = np.ones(len(hashes), dtype=np.bool_)
    merged = file.with_suffix(".merged")
    with file.open("rb") as stream, merged.open("wb") as target:
        for row, line in enumerate(stream):
            if row in suspects and line in seen:
                fresh[row] = False
                continue
            if row in suspects:
                seen.add(line)
            target.write(line)
    merged.replace(file)
    tally.left_out["repeated rows of feedback, merged"] += int((~fresh).sum())
    left = kept.copy()
    left[np.flatnonzero(kept)[~fresh]] = False
    return left


def _write_splits(
    folder: Path,
    items: Vocabulary,
    feedback: _Collector,
    min_rating: float | None,
    split: Iterable[SplitRow | Located[SplitRow]] | None,
    leave_one_out: Mapping[str, LeaveOneOut],
) -> None:
    """Write what splits the feedback, as far as it fits that feedback."""
    users, interactions = feedback.users, feedback.interactions()
    pairs = distinct_pairs(interactions, len(items), min_rating)
    if split is not None:
        table = SplitTable(_split_rows(split, folder / SPLIT), users, items)
        table.aligned(pairs, interactions)
        _write_split(folder / SPLIT, table.distinct())
    for name, left_out in leave_one_out.items():
        _known_left_out(left_out, f"the leave-one-out split {name!r}", users, items, pairs)
        _write_left_out(folder / f"{LEFT_OUT}{name}.npz", left_out)


def _split_rows(rows: Iterable[SplitRow | Located[SplitRow]], file: Path) -> Iterator[Located[SplitRow]]:
    for line, row in enumerate(rows, start=2):  # below the header
        yield row if isinstance(row, Located) else Located(Place(file, line), row)


def _write_lists(
    folder: Path, ids: Vocabulary, masks: Mapping[str, PublishedMask], new_items: Sequence[str] | None
) -> None:
    for name, mask in masks.items():
        file = folder / f"missing_{name}.npz"
        _check_known(mask.items, ids, file.name)
        _write_mask(file, mask)
    if new_items is not None:
        _check_known(new_items, ids, "the list of new items")
        (folder / NEW_ITEMS).write_text(json.dumps(list(new_items)) + "\n", "utf-8")


def _write_rating_split(file: Path, split: NDArray[np.uint8], kept: NDArray[np.bool_]) -> None:
    """The parts of the rows that were kept, by their numbers among these."""
    if len(split) != len(kept):
        raise DatasetError(f"the rating split names {len(split)} rows, the source has {len(kept)}")
    parts = {part: np.flatnonzero(split[kept] == number) for number, part in enumerate(SPLITS)}
    np.savez_compressed(file, allow_pickle=False, **parts)


def _write_split(file: Path, rows: Iterable[SplitRow]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("user", "item", "split"))
        writer.writerows(rows)


def _write_mask(file: Path, mask: PublishedMask) -> None:
    items, columns = np.array(mask.items, dtype=np.str_), np.array(mask.columns, dtype=np.str_)
    np.savez_compressed(file, items=items, columns=columns, missing=mask.missing)


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
