"""JSON bodies as checked objects, at a cost that their size bounds.

What reads a value holds Python's lock from its first byte to its last, so that another thread is of no help: a body is
weighed before it is parsed, and its values are counted before they are validated. A body that is not small is read in a
thread of its own, one at a time, where the event loop gets its turn between the steps.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, ParamSpec, TypeVar, get_args

import numpy as np
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.requests import Request

from models.rows import parse_json
from service.api import errors
from service.api.limits import LIMITS, row_context

B = TypeVar("B", bound=BaseModel)
T = TypeVar("T")
P = ParamSpec("P")

SMALL_BYTES = 32 << 10  # a body of this size is read within a few milliseconds, whatever it holds
MAX_VALUES = 10_000  # members and elements of a body, or a row: numbers in vectors and metadata not counted
ROW_VALUES = 1_000
LONGEST_NAME = 256
# What it takes to parse a body of so many bytes: the marks that make values, each by how much more than a number costs.
_WEIGHTS = {b",": 1, b'"': 1, b":": 6, b"[": 6, b"{": 6}
_LEAST_WEIGHT = 200_000
_BYTES_A_WEIGHT = 7
_SLICE = 1 << 20
_NUMBERS = frozenset({int, float})


async def in_thread(request: Request, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run what reads a request in the thread that is there for it, with the request's limits and id."""
    context = contextvars.copy_context()
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(request.app.state.reader, lambda: context.run(function, *args, **kwargs))


async def read(request: Request, model: type[B], raw: bytes) -> B:
    """JSON as the model.

    Raises:
        ProblemError: it is no JSON, holds more values than it may, or is not what the model says, with a pointer to
            each thing that is wrong.
    """
    if len(raw) <= SMALL_BYTES:
        return _read(model, raw)
    return await in_thread(request, _read, model, raw)


def _read(model: type[B], raw: bytes) -> B:
    value = decode_json(raw)
    try:
        check_values(value, MAX_VALUES, skip=_opaque(model))
        return model.model_validate(value, context=row_context())
    except ValidationError as error:
        raise errors.ProblemError(errors.invalid_fields(error)) from None


def read_row(adapter: TypeAdapter[T], row: object) -> T:
    """A row of a body that was read, by itself.

    Raises:
        ProblemError: it holds more values than a row may, or is not what it should be.
    """
    try:
        check_values(row, ROW_VALUES, skip=frozenset({"metadata"}))
        return adapter.validate_python(row, context=row_context())
    except ValidationError as error:
        raise errors.ProblemError(errors.invalid_fields(error, errors.ROW_ERRORS)) from None


def decode_json(raw: bytes) -> Any:
    """JSON as RFC 8259 has it: no NaN, no lone surrogates, nothing beyond a double.

    Raises:
        ProblemError: it is none, or holds more values than a body of the largest size may.
    """
    most = max(_LEAST_WEIGHT, LIMITS.get().body_bytes // _BYTES_A_WEIGHT)
    if len(raw) > SMALL_BYTES and _weight(raw, most) > most:
        raise errors.too_many_values()
    try:
        return parse_json(raw)
    except ValueError as error:
        raise errors.malformed(f"The body is no JSON: {error}") from None


def _weight(raw: bytes, enough: int) -> int:
    """The weight of JSON; where it is not beyond `enough`, that of the marks within texts may be counted too."""
    rough = 0
    for start in range(0, len(raw), _SLICE):
        part = raw[start : start + _SLICE]
        rough += sum(weight * part.count(mark) for mark, weight in _WEIGHTS.items())
    if rough <= enough:
        return rough
    marks = np.frombuffer(raw.replace(rb"\\", b"  ").replace(rb"\"", b"  "), np.uint8)
    quotes = marks == ord('"')
    outside = np.cumsum(quotes, dtype=np.uint8) & 1 == 0
    return sum(
        weight * int(np.count_nonzero(quotes if mark == b'"' else (marks == ord(mark)) & outside))
        for mark, weight in _WEIGHTS.items()
    )


@cache
def _opaque(model: type[BaseModel]) -> frozenset[str]:
    """The fields whose values the model takes as they are: rows, which are read one by one, and metadata."""
    return frozenset(name for name, field in model.model_fields.items() if Any in get_args(field.annotation))


def check_values(value: object, most: int, skip: Iterable[str] = ()) -> None:
    """Count the values in a parsed body before pydantic makes an error of each. Lists of numbers count as one.

    Raises:
        ProblemError: there are more than `most`, or a field's name, which every error below it would repeat, is longer
            than any may be.
    """
    stack = [value]
    if isinstance(value, dict):
        stack = [{name: child for name, child in value.items() if name not in skip}]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            if any(len(name) > LONGEST_NAME for name in node):
                raise errors.too_long_name(LONGEST_NAME)
            children: Iterable[object] = node.values()
        elif isinstance(node, list) and not _NUMBERS.issuperset(map(type, node)):
            children = node
        else:
            continue
        most -= len(node)
        if most < 0:
            raise errors.too_many_values()
        stack += [child for child in children if isinstance(child, dict | list)]
