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

import hashlib
import os
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from models.feedback import AUTO, MinRating, default_min_rating
from models.rows import ANY_LENGTH
from models.vocabulary import Vocabulary
from training.datasets.base import (
    FEEDBACK,
    ITEMS,
    Dataset,
    DatasetError,
    Interactions,
    Located,
    Place,
    Progress,
    Record,
    Tally,
    distinct_pairs,
)
from training.datasets.checks import Event, EventCheck, ItemCheck, located
from training.datasets.published import (
    NOTHING,
    Published,
    read_fitting_rating_split,
    read_leave_one_out,
    read_masks,
    read_new_items,
    read_split,
)
from training.datasets.stored import StoredText, TextFile
from training.datasets.tables import read_jsonl, read_jsonl_raw

FORMAT = 1
INFO = "dataset.json"
_PROGRESS_EVERY = 50
_LINE = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_APPEND_NEWLINE

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
    records = _stored_records(path / ITEMS, check)
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
        split=read_split(path, users, check.ids, pairs, interactions),
        masks=read_masks(path, check.ids),
        new_items=read_new_items(path, check.ids),
        rating_split=read_fitting_rating_split(path, len(interactions)),
        leave_one_out=read_leave_one_out(path, users, check.ids, pairs),
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
    version = raw.get("format") if isinstance(raw, dict) else None
    if version != FORMAT:
        raise DatasetError(f"{file} has format version {version!r}, this Lacuna reads version {FORMAT}")
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


def _stored_records(file: Path, check: Callable[[object], Record]) -> list[Record]:
    """The checked item bodies of a file that `write_dataset` wrote, whose pictures stay there."""
    records, offset, stored = [], 0, None
    for (place, row), raw in read_jsonl_raw(file):
        record = located(check, row, *place)
        stored = stored or TextFile(file)
        for content in (record.get("modalities") or {}).values():
            if isinstance(content, dict) and isinstance(content.get("base64"), str):
                start = raw.find(content["base64"].encode("ascii"))
                if start >= 0:
                    content["base64"] = StoredText(stored, offset + start, len(content["base64"]))
        records.append(record)
        offset += len(raw)
    return records


def read_feedback(file: Path, items: Vocabulary, text_chars: int = ANY_LENGTH) -> Iterator[tuple[Record, Event]]:
    """Stream the events of a file, as they stand there and parsed; an empty file has none.

    Raises:
        DatasetError: a bad row, an item that is not in `items`, or no file.
    """
    if file.is_file() and not file.stat().st_size:
        return
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


# --- writing -----------------------------------------------------------------------------------------------------


def item_line(record: Record) -> bytes:
    """An item body as a line of `items.jsonl`, vectors given as lists or arrays, texts as they are or stored."""
    return orjson.dumps(record, default=_text, option=_LINE)


def _text(value: object) -> str:
    if isinstance(value, StoredText):
        return str(value)
    raise TypeError(f"{type(value).__name__} is nothing that JSON has")


def _read(row: Row) -> Row:
    """An item of another prepared dataset, whose pictures may still be in its files, with these."""
    if not isinstance(row, dict) or not isinstance(contents := row.get("modalities"), dict):
        return row
    stored = {
        name: {**content, "base64": str(content["base64"])}
        for name, content in contents.items()
        if isinstance(content, dict) and isinstance(content.get("base64"), StoredText)
    }
    return {**row, "modalities": contents | stored} if stored else row


def write_dataset(
    folder: str | Path,
    items: Iterable[Row],
    feedback: Iterable[Row],
    *,
    name: str,
    source: str,
    synthetic: bool = False,
    min_rating: MinRating = AUTO,
    published: Published = NOTHING,
    tally: Tally | None = None,
    progress: Progress | None = None,
) -> DatasetInfo:
    """Write a prepared dataset; it appears at `folder` whole or not at all, replacing an older one.

    Items are read to their end before the first feedback event is asked for; neither is held in memory. A row may say
    where its source has it; a row that is None there was left out by its reader.

    Args:
        min_rating: ratings below it show no interest; AUTO: the ratings say which (`default_min_rating`).
        tally: what a reader of a foreign format counts; with it, an event that repeats an earlier one is dropped.
        progress: is called with what is being written ("items", "feedback") and the number of rows so far.

    Raises:
        DatasetError: a row is bad (where its source has it, or else its number), no item is left, or with a tally no
            event, something of what is published does not fit the rows, or `folder` holds something else.
    """
    with _replacing(Path(folder)) as temporary:
        counted, check = tally or Tally(), ItemCheck()
        _write_lines(temporary / ITEMS, map(_read, items), check, item_line, counted, progress)
        parse, collector = EventCheck(check.ids), _Collector()
        checked = (lambda row: collector.add(parse(row))) if published.splits_pairs else parse  # the others need none
        some = tally is not None
        kept = _write_lines(temporary / FEEDBACK, feedback, checked, _event_line, counted, progress, some=some)
        if tally is not None:
            kept = _merge_repeated(temporary / FEEDBACK, kept, tally)
        least = default_min_rating(parse.ratings) if min_rating == AUTO else min_rating
        published.write(temporary, collector.users, check.ids, collector.interactions(), least, kept)
        info = DatasetInfo(
            format=FORMAT,
            name=_encodable(name),
            synthetic=synthetic,
            source=_encodable(source),
            min_rating=least,
            counts=Counts(items=len(check.ids), users=parse.n_users, feedback=int(kept.sum())),
            fingerprint=fingerprint(temporary),
            left_out=counted.left_out,
            changed=counted.changed,
        )
        return _write_info(temporary, info)


def set_min_rating(folder: Path, min_rating: float | None) -> DatasetInfo:
    """Say which ratings of a prepared dataset show interest; its data stay what they are.

    Raises:
        DatasetError: the folder is no prepared dataset.
    """
    return _write_info(folder, read_info(folder).model_copy(update={"min_rating": min_rating}))


def _write_info(folder: Path, info: DatasetInfo) -> DatasetInfo:
    (folder / INFO).write_text(info.model_dump_json(indent=2) + "\n", "utf-8")
    return info


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
    *,
    some: bool = True,
) -> NDArray[np.bool_]:
    """Write the rows that are some; which of them `[n]` were written. If there have to be `some`, none is an error."""
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
    if some and not count:
        reasons = "; ".join(f"{reason}: {n}" for reason, n in tally.left_out.items())
        raise DatasetError(f"no row is left for {file.name} ({reasons})" if reasons else f"{file.name} is empty")
    if progress and count:
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
