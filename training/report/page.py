"""The page: what was read, put into the template."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from models.bundle import read_manifest
from training.report import service
from training.report.results import ReportError, read_results
from training.report.sections import chapters, overview


def make_report(
    paths: Iterable[Path], *, title: str, bundle: Path | None = None, users: Sequence[str] = ()
) -> tuple[str, Sequence[str]]:
    """One self-contained HTML page of the raw results in files and below folders; the same results, the same bytes.

    Args:
        bundle: a bundle whose items' parts are drawn, too.
        users: of the bundle's catalogue, whose recommendations are shown with their reasons.

    Returns:
        The page, and a sentence for each file that was left out.

    Raises:
        ReportError: there is no raw result, or the bundle cannot recommend to one of the users.
        BundleError: the bundle cannot be used.
        OSError: a path does not exist.
    """
    paths = list(paths)
    results = read_results(paths)
    about_service, unread = service.chapter(results.service)
    left_out = [*results.left_out, *unread]
    contents = chapters(results.evaluations)
    if about_service:
        contents.append(about_service)
    if not contents:
        where = ", ".join(map(str, paths))
        reason = f": {left_out[0]}" if left_out else ""
        raise ReportError(f"there is no raw result in {where}{reason}")
    if bundle is not None and not (users and "dgmrec" not in read_manifest(bundle).models):
        from training.report.parts import parts_chapter  # only this needs torch and scikit-learn, slow to load

        contents.append(parts_chapter(bundle))
    if bundle is not None and users:
        from training.report.users import users_chapter  # as above

        contents.append(users_chapter(bundle, users))
    page = _template().render(
        title=title,
        overview=overview(results.evaluations),
        chapters=contents,
        count=len(results.evaluations) + len(results.service) - len(unread),
        left_out=left_out,
    )
    return page, left_out


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("training.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja")
