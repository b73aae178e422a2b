"""Reading tables, JSON lines and arrays, with errors that name file and line."""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from models.rows import parse_json
from training.datasets.base import SPLITS, DatasetError, Located, Place

# Columns by the name wanted: the names that sources give them, the first one that a table has counts.
Aliases = Mapping[str, Sequence[str]]

_TYPES = ("token", "token_seq", "float", "float_seq")
# Whatever NumPy and the libraries below it raise on a damaged file.
_DAMAGED = (
    ValueError,
    OSError,
    EOFError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    SyntaxError,
    MemoryError,
    OverflowError,
    RecursionError,
    RuntimeError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


# --- lines -------------------------------------------------------------------------------------------------------


def find_file(source: Path, *names: str) -> Path | None:
    """The first of these files that a folder has, as it is named or with `.gz`."""
    candidates = (source / f"{name}{ending}" for name in names for ending in ("", ".gz"))
    return next((file for file in candidates if file.is_file()), None)


def read_lines(file: Path, encoding: str = "utf-8") -> Iterator[str]:
    """The lines of a text, unpacked if its name ends in .gz; a byte order mark is passed over.

    Raises:
        DatasetError: the file is absent or damaged, or a line is not in this encoding.
    """
    for line, raw in enumerate(_raw_lines(file), start=1):
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError as error:
            fault = f"not UTF-8 text (byte 0x{raw[error.start]:02x}); save the file as UTF-8"
            raise Place(file, line).error(fault) from None
        yield text.removeprefix("\ufeff") if line == 1 else text


def _raw_lines(file: Path) -> Iterator[bytes]:
    if not file.is_file():
        raise DatasetError(f"{file} is no file" if file.exists() else f"{file} does not exist")
    line = 0
    try:
        # gzip's own lines are slow
        with io.BufferedReader(gzip.open(file)) if file.suffix == ".gz" else file.open("rb") as stream:
            for raw in stream:
                yield raw
                line += 1
    except (OSError, EOFError, zlib.error) as error:
        beyond = f" after line {line}" if line else ""
        raise DatasetError(f"{file.name} cannot be read{beyond}: {error}") from None


def text_encoding(file: Path) -> str:
    """UTF-8 if that is what a file is in, else Latin-1, in which any bytes are text."""
    try:
        for raw in _raw_lines(file):
            raw.decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


# --- JSON lines --------------------------------------------------------------------------------------------------


def read_jsonl(file: Path) -> Iterator[Located[Any]]:
    """The values of a JSON lines file; blank lines are passed over.

    Raises:
        DatasetError: the file is absent, damaged or empty, or a line is not JSON.
    """
    return _values(file, _strict_json)


def read_jsonl_raw(file: Path) -> Iterator[tuple[Located[Any], bytes]]:
    """The same, each value with the line that it stands in.

    Raises:
        DatasetError: the file is absent, damaged or empty, or a line is not JSON.
    """
    for place, (value, raw) in _values(file, lambda raw, place: (_strict_json(raw, place), raw)):
        yield Located(place, value), raw


def read_objects(file: Path, mend: Callable[[str], str]) -> Iterator[Located[dict[str, Any]]]:
    """The objects of a file of JSON or Python literals, one a line; blank lines are passed over.

    `mend` is given each text of a row that the strict parser refused, and returns what is to stand there.

    Raises:
        DatasetError: the file is absent, damaged or empty, or a line is no object.
    """

    def parse(raw: bytes, place: Place) -> Any:
        try:
            return parse_json(raw)
        except (ValueError, RecursionError):
            return _lenient(raw, place, mend)

    for located in _values(file, parse):
        if not isinstance(located.row, dict):
            raise located.place.error("must be a JSON object")
        yield located


def _values(file: Path, parse: Callable[[bytes, Place], Any]) -> Iterator[Located[Any]]:
    empty = True
    for line, raw in enumerate(_raw_lines(file), start=1):
        row = raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw
        if row.strip():
            empty = False
            place = Place(file, line)
            yield Located(place, parse(row, place))
    if empty:
        raise DatasetError(f"{file.name} is empty")


def _strict_json(raw: bytes, place: Place) -> Any:
    try:
        return parse_json(raw)
    except (ValueError, RecursionError) as error:
        raise place.error(f"not valid JSON ({error})") from None


def _lenient(raw: bytes, place: Place, mend: Callable[[str], str]) -> Any:
    """What the strict parser refuses and sources have: halves of surrogate pairs, and Python literals."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise place.error(f"not UTF-8 text (byte 0x{raw[error.start]:02x})") from None
    for parse in (_json, _literal):
        try:
            return _mended(parse(text), mend)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    raise place.error("not valid JSON")


def _json(text: str) -> Any:
    return json.loads(text, parse_constant=_no_constant)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _literal(text: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # unknown escapes in the texts of others
        return ast.literal_eval(text.strip())


def _mended(value: Any, mend: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return mend(value)
    if isinstance(value, list | tuple):
        return [_mended(entry, mend) for entry in value]
    if isinstance(value, dict):
        return {_mended(key, mend): _mended(entry, mend) for key, entry in value.items()}
    return value


# --- tables ------------------------------------------------------------------------------------------------------


def read_table(
    file: Path, required: Sequence[str], aliases: Aliases | None = None
) -> Iterator[Located[dict[str, str]]]:
    """The rows of a table with a header, by column; fields lose the blanks around them, blank lines are passed over.

    Columns are parted by tabs, semicolons or commas, whichever the header has most of. Fields may be quoted, and a
    quoted one may hold line ends; not so in `.inter` and `.item` files, where a line is a row and a header names types.
    `aliases` has the names that a column wanted goes by.

    Raises:
        DatasetError: the file is absent, damaged or empty, lacks a required column, or a row is short or long.
    """
    header, rows = _open_table(file)
    columns = _renamed([_typed(name)[0] if _is_atomic(file) else name for name in header.row], aliases or {})
    for name in required:
        if columns.count(name) != 1:
            fault = "is missing" if name not in columns else "stands there twice"
            raise header.place.error(f"the column {_wanted(name, aliases)} {fault}")
    empty = True
    for line, row in rows:
        place = Place(file, line)
        if len(row) != len(columns):
            raise place.error(f"{len(row)} columns, the header has {len(columns)}")
        empty = False
        yield Located(place, dict(zip(columns, row, strict=True)))
    if empty:
        raise DatasetError(f"{file.name} has a header and no rows")


def read_columns(file: Path) -> dict[str, str]:
    """The columns of a table: the type that the header of an atomic file names for each, "" elsewhere.

    Raises:
        DatasetError: the file is absent, damaged or empty.
    """
    return dict(_typed(name) if _is_atomic(file) else (name, "") for name in _open_table(file)[0].row)


def find_columns(columns: Iterable[str], aliases: Aliases) -> dict[str, str]:
    """The columns wanted that there are, and what they are called there."""
    given = set(columns)
    names_of = {wanted: next((name for name in names if name in given), None) for wanted, names in aliases.items()}
    return {wanted: name for wanted, name in names_of.items() if name is not None}


def read_fields(file: Path, separator: str, counts: range, encoding: str = "utf-8") -> Iterator[Located[list[str]]]:
    """The rows of a table without header and without quotes, each of as many fields as `counts` allows.

    Raises:
        DatasetError: the file is absent, damaged or empty, or a row is short or long.
    """
    empty = True
    for line, text in enumerate(read_lines(file, encoding), start=1):
        if not text.strip():
            continue
        place = Place(file, line)
        fields = [field.strip() for field in text.split(separator)]
        if len(fields) not in counts:
            expected = " to ".join(map(str, sorted({counts[0], counts[-1]})))
            raise place.error(f"{len(fields)} fields parted by {separator!r}, expected {expected}")
        empty = False
        yield Located(place, fields)
    if empty:
        raise DatasetError(f"{file.name} is empty")


def _open_table(file: Path) -> tuple[Located[list[str]], Iterator[tuple[int, list[str]]]]:
    """The header, and the rows below it, each with the number of the line on which it begins."""
    lines = read_lines(file)
    blank, first = next(((number, line) for number, line in enumerate(lines) if line.strip()), (0, ""))
    read = _atomic_rows if _is_atomic(file) else _quoted_rows
    rows = read(chain((first,), lines), max("\t;,", key=first.count), Place(file, blank + 1))
    header = next(rows, None)
    if header is None:
        raise DatasetError(f"{file.name} is empty")
    return Located(Place(file, header[0]), header[1]), rows


def _is_atomic(file: Path) -> bool:
    return file.suffix in (".inter", ".item")


def _quoted_rows(lines: Iterator[str], delimiter: str, begin: Place) -> Iterator[tuple[int, list[str]]]:
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        line = begin.line + rows.line_num
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise Place(begin.file, line).error(f"no row of a table ({error})") from None
        if row is None:
            return
        fields = [field.strip() for field in row]
        if any(fields):
            yield line, fields


def _atomic_rows(lines: Iterator[str], delimiter: str, begin: Place) -> Iterator[tuple[int, list[str]]]:
    for line, text in enumerate(lines, start=begin.line):
        fields = [_unquoted(field.strip()) for field in text.split(delimiter)]
        if any(fields):
            yield line, fields


def _unquoted(field: str) -> str:
    if len(field) > 1 and field[0] == field[-1] == '"':
        return field[1:-1].replace('""', '"').strip()
    return field


def _typed(column: str) -> tuple[str, str]:
    name, _, kind = column.rpartition(":")
    return (name, kind) if kind in _TYPES else (column, "")


def _renamed(columns: Sequence[str], aliases: Aliases) -> list[str]:
    renaming = {name: wanted for wanted, name in find_columns(columns, aliases).items()}
    return [renaming.get(column, column) for column in columns]


def _wanted(name: str, aliases: Aliases | None) -> str:
    return " or ".join((aliases or {}).get(name, (name,)))


# --- arrays ------------------------------------------------------------------------------------------------------


def load_arrays(file: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an `.npz` (by name) or `.npy` file (under "array"); pickles are refused.

    Raises:
        DatasetError: the file is damaged or holds pickled objects.
    """
    try:
        with warnings.catch_warnings(), file.open("rb") as stream:
            warnings.simplefilter("ignore")
            loaded = np.load(stream, allow_pickle=False)
            arrays = {"array": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except _DAMAGED as error:
        reason = str(error) or type(error).__name__
        raise DatasetError(f"{file.name} cannot be read as plain NumPy arrays: {reason}") from None
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):  # what is no .npy comes as bytes
        raise DatasetError(f"{file.name} holds something else than arrays")
    return arrays


def load_array(file: Path) -> NDArray[Any]:
    """The array of a `.npy` file.

    Raises:
        DatasetError: the file is damaged, holds pickled objects or several arrays.
    """
    arrays = load_arrays(file)
    if set(arrays) != {"array"}:
        raise DatasetError(f"{file.name} must hold a single array")
    return arrays["array"]


def ids_in(array: NDArray[Any], file: Path) -> NDArray[np.str_]:
    """The ids in an array of whole numbers or texts, in its shape.

    Raises:
        DatasetError: it holds something else.
    """
    if array.size and array.dtype.kind not in "iuU":
        raise DatasetError(f"{file.name} must hold ids, whole numbers or texts, got {array.dtype}")
    return array.astype(np.str_)


def id_list(array: NDArray[Any], file: Path) -> list[str]:
    """The ids in an array of one dimension.

    Raises:
        DatasetError: it has others, or holds something else.
    """
    if array.ndim != 1:
        raise DatasetError(f"{file.name} must hold ids in one dimension, got {list(array.shape)}")
    return list(map(str, ids_in(array, file)))


def read_rating_split(source: Path) -> NDArray[np.uint8] | None:
    """The split that `rating_split_*.npz` of a folder publishes: TRAIN, VALID or TEST of each rated event `[n]`.

    The file lists row numbers of the events under `train`, `valid` and `test`.

    Raises:
        DatasetError: the file is damaged, or a row stands in no part or in several.
    """
    file = next(iter(sorted(source.glob("rating_split*.npz"))), None)
    if file is None:
        return None
    arrays = load_arrays(file)
    if set(arrays) != set(SPLITS):
        raise DatasetError(f"{file.name} must hold the arrays {', '.join(SPLITS)}")
    if any(array.ndim != 1 or (array.size and array.dtype.kind not in "iu") for array in arrays.values()):
        raise DatasetError(f"{file.name} must hold row numbers, whole numbers in one dimension")
    parts = [arrays[name].astype(np.int64) if arrays[name].size else np.zeros(0, np.int64) for name in SPLITS]
    rows = np.concatenate(parts)
    if not np.array_equal(np.sort(rows), np.arange(len(rows))):
        raise DatasetError(f"{file.name} must name every row in exactly one part")
    split = np.empty(len(rows), dtype=np.uint8)
    for part, named in enumerate(parts):
        split[named] = part
    return split
