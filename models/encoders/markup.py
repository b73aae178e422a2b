"""What a text shows where it was copied out of a web page: tags and entities are no words of it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

# A tag of HTML is read as one, anything else between angle brackets as what it says: "vector<int>", "a < b".
_WITHIN_WORDS = (
    "a abbr acronym b bdi bdo big cite code data del dfn em font i ins kbd label mark nobr q s samp small span strike"
    " strong sub sup time tt u var wbr"
)
_BETWEEN_WORDS = (
    "address applet area article aside audio base blockquote body br button canvas caption center col colgroup datalist"
    " dd details dialog dir div dl dt embed fieldset figcaption figure footer form frame frameset h1 h2 h3 h4 h5 h6"
    " head header hgroup hr html iframe img input legend li link main map math menu meta meter nav noscript object ol"
    " optgroup option output p param picture pre progress rp rt ruby script section select slot source style summary"
    " svg table tbody td template textarea tfoot th thead title tr track ul video"
)
_NOT_SHOWN = ("script", "style")
_WORDS_OWN = "[a-z]:[a-z]+"  # what Word leaves in pages: <o:p>
_NAMES = "|".join([name for name in f"{_WITHIN_WORDS} {_BETWEEN_WORDS}".split() if len(name) > 1] + [_WORDS_OWN])
# After a single letter only attributes with values: "a <b and c> d" is no HTML.
_TAG = rf"/?(?:[abipqsu](?:\s[^<>]*=[^<>]*|\s*/?)|(?P<name>{_NAMES})(?:[\s/][^<>]*)?)>"
_OPENING = re.compile(rf"<(?P<tag>{_TAG}|!doctype[^<>]*>|!--)?", re.IGNORECASE)
_GLUED = frozenset(_WITHIN_WORDS.split())
_CLOSINGS = {"!--": "-->", **{name: f"</{name}" for name in _NOT_SHOWN}}


def plain_text(text: str) -> str:
    """The text without HTML: tags and comments are left out, with what stands in scripts and styles, and entities are
    the characters that they stand for. What is no HTML stays as it is."""
    if "<" not in text and "&" not in text:
        return text
    parser = _Shown()
    parser.feed(_with_stray_brackets_escaped(text))
    parser.close()
    return "".join(parser.pieces)


def _with_stray_brackets_escaped(text: str) -> str:
    """The text with only such `<` as open a whole tag, or what is closed further on."""
    last = {opening: _last(closing, text) for opening, closing in _CLOSINGS.items()}

    def escaped(bracket: re.Match[str]) -> str:
        tag = bracket["tag"] or ""
        opening = "!--" if tag == "!--" else (bracket["name"] or "").lower()
        if tag and (tag.startswith("/") or bracket.end() <= last.get(opening, len(text))):
            return bracket[0]
        return bracket[0].replace("<", "&lt;")

    return _OPENING.sub(escaped, text)


def _last(part: str, text: str) -> int:
    places = [match.start() for match in re.finditer(part, text, re.IGNORECASE)]
    return places[-1] if places else -1


class _Shown(HTMLParser):
    """Collects what is shown."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._is_shown = True

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002
        """Between paragraphs there is a space, within a word there is none."""
        self._is_shown = tag not in _NOT_SHOWN
        self._part(tag)

    def handle_endtag(self, tag: str) -> None:
        """The same at its end."""
        self._is_shown = True
        self._part(tag)

    def handle_data(self, data: str) -> None:
        """What stands between tags."""
        if self._is_shown:
            self.pieces.append(data)

    def _part(self, tag: str) -> None:
        if tag not in _GLUED:
            self.pieces.append(" ")
