"""Tables of what benchmarks and harnesses measured of the running service."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from training.report.results import ServiceResult
from training.report.sections import Block, Chapter, Provenance, Section
from training.report.tables import Table

ABOUT = "These machines are noisy: a ratio within one run says more than a time."
_TRENDS = {
    "held_mib": "MiB held",
    "resident_mib": "MiB resident",
    "cpu_ms_per_request": "ms of processor a request",
    "p50_ms": "ms p50",
    "p99_ms": "ms p99",
}


def chapter(results: Sequence[ServiceResult]) -> tuple[Chapter | None, list[str]]:
    """All tables about the service, and a sentence for each result whose figures cannot be read."""
    tables: list[Table] = []
    read: list[ServiceResult] = []
    left_out = []
    for make, members in _kinds(results):
        good = []
        for member in members:
            try:
                make([member])
            except (KeyError, TypeError, ValueError, AttributeError, IndexError):
                left_out.append(f"{member.file} is of another version: its figures are not where they should be")
                continue
            good.append(member)
        if good:
            tables.append(make(good))
            read += good
    if not tables:
        return None, left_out
    blocks = [Block(tables=tables), Block("How these figures were made", provenance=_made(read), folded=True)]
    return Chapter("service", "The service", [Section("service-0", "Measured on the service", ABOUT, blocks)]), left_out


def _kinds(
    results: Sequence[ServiceResult],
) -> Iterable[tuple[Callable[[Sequence[ServiceResult]], Table], list[ServiceResult]]]:
    """Results by the first table that knows what they hold."""
    rest = list(results)
    for mark, make in KINDS.items():
        matching = [result for result in rest if mark in result.content]
        rest = [result for result in rest if result not in matching]
        yield from ((make, [result]) for result in matching) if make in ALONE else [(make, matching)]
    yield from ((other, [result]) for result in rest)


def latency(results: Sequence[ServiceResult]) -> Table:
    """Latency of each kind of request."""
    (content,) = (result.content for result in results)
    rows = [
        (kind, f"{row['p50_ms']:.2f} ms", f"{row['p99_ms']:.2f} ms", f"{row['p50 over bare']:.1f}")
        for kind, row in content["metrics"].items()
    ]
    memory = "; ".join(f"{name}: {value} MB" for name, value in content["memory_mb"].items())
    header = ("request", "p50", "p99", "p50 over a bare FastAPI route")
    return Table.plain(f"Latency: {content['what']}", header, rows, f"Resident memory, {memory}.")


def faults(results: Sequence[ServiceResult]) -> Table:
    """What was killed and what was found afterwards, by run of the crash harness."""
    header = ("run", "kills", "trouble besides", "acknowledged writes", "unanswered ones, found out",
              "answers compared", "backups restored", "violations")  # fmt: skip
    rows: list[tuple[object, ...]] = []
    totals = [0] * 6
    for result in results:
        content = result.content
        kills, acknowledged, unanswered = (
            sum(content[name].values()) for name in ("kills", "acknowledged", "unanswered")
        )
        cells = [
            kills,
            acknowledged,
            unanswered,
            content["answers_compared"],
            content.get("backups_restored", 0),
            len(content["violations"]),
        ]
        totals = [total + cell for total, cell in zip(totals, cells, strict=True)]
        trouble = ", ".join(
            f"{count} x {name}" for name, count in content.get("trouble", {}).items() if "nothing" not in name
        )
        rows.append((f"`{result.stem}`", cells[0], trouble, *cells[1:]))
    rows.append(("all", totals[0], "", *totals[1:]))
    return Table.plain("Processes killed under load", header, rows)


def linear(results: Sequence[ServiceResult]) -> Table:
    """Many clients on few items."""
    header = ("run", "requests", "histories", "not linear", "5xx")
    rows = [
        (f"{c['what']}, {c['seconds']:g} s", c["requests"], c["histories"], len(c["not_linear"]), c["server_errors"])
        for c in (result.content for result in results)
    ]
    return Table.plain("Many clients on few items", header, rows)


def soak(results: Sequence[ServiceResult]) -> Table:
    """Whether memory or the cost of a request grow."""
    (content,) = (result.content for result in results)
    minutes = content["samples"][-1]["minute"]
    run = f"{content['requests']} requests, {content['requests_per_second']} a second, {minutes:.0f} minutes"
    rows = []
    for name, trend in content["trends"].items():
        low, high = trend["interval"]
        slope = f"{trend['slope_per_minute']:+.4f} ({low:+.4f} .. {high:+.4f})"
        grows = "yes" if trend["grows"] else "no"
        rows.append((_TRENDS[name], f"{trend['median']:.2f}", slope, f"{trend['growth_of_median']:+.2%}", grows))
    header = (run, "median", "a minute (95 %)", "over the whole time", "grows")
    return Table.plain("Long load", header, rows)


def fuzz(results: Sequence[ServiceResult]) -> Table:
    """What made-up requests were answered."""
    header = ("run", "requests", "answers", "5xx", "other failures", "tracebacks in the log", "longest stall", "peak",
              "growth")  # fmt: skip
    rows = []
    for content in (result.content for result in results):
        statuses = ", ".join(f"{count} {name}" for name, count in content["statuses"].items())
        run = f"{content['seconds'] / 60:.0f} minutes, {content['operations']} operations"
        rows.append((run, content["requests"], statuses, content["server_errors"], content["failures"],
                     content["tracebacks_in_the_log"], f"{content['own_stall_ms']:.0f} ms",
                     f"{content['peak_mib']:.0f} MiB", f"{content['growth']:+.1%}"))  # fmt: skip
    return Table.plain("Made-up requests", header, rows)


def staleness(results: Sequence[ServiceResult]) -> Table:
    """How long another worker needs to know of a write."""
    header = ("run", "p50", "p99", "longest of 200")
    rows = [
        (c["what"], f"{c['p50_ms']} ms", f"{c['p99_ms']} ms", f"{c['max_ms']} ms")
        for c in (result.content for result in results)
    ]
    return Table.plain("Until another worker knows of a write", header, rows)


def other(results: Sequence[ServiceResult]) -> Table:
    """Every figure of a result of no known kind."""
    (content,) = (result.content for result in results)
    provenance = ("what", "command", "machine", "synthetic")
    rows = list(_flat({name: value for name, value in content.items() if name not in provenance}))
    return Table.plain(content["what"], ("figure", "value"), rows)


# What a result is known by.
KINDS: Mapping[str, Callable[[Sequence[ServiceResult]], Table]] = {
    "kills": faults,
    "histories": linear,
    "trends": soak,
    "operations": fuzz,
    "writes": staleness,
    "fill_seconds": latency,
}
ALONE = (soak, latency)  # one table for each result


def _flat(value: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, object]]:
    for name, entry in value.items():
        if isinstance(entry, Mapping):
            yield from _flat(entry, f"{before}{name}, ")
        elif isinstance(entry, int | float | str):
            yield f"{before}{name}", entry


def _made(results: Sequence[ServiceResult]) -> list[Provenance]:
    provenance = []
    for result in results:
        machine = result.content.get("machine")
        facts = [f"{name} {value}" for name, value in _flat(machine)] if isinstance(machine, dict) else []
        command = str(result.content.get("command", ""))
        provenance.append(Provenance(result.content["what"], command, [*facts, f"raw result {result.file}"]))
    return provenance
