"""Texts copied out of web pages."""

from __future__ import annotations

import random
import time

import pytest

from models.encoders.markup import plain_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Red mug", "Red mug"),
        ("Salt &amp; pepper, caf&eacute;, &#39;new&#39;", "Salt & pepper, café, 'new'"),
        ("<p>One</p><p class='x'>Two<br/>Three</p>", "One Two Three"),
        ("<B>Bold</B>ly <a href='https://shop.test/?a=1'>linked</a>", "Boldly linked"),
        ("Mug<script type='text/javascript'>if (a < b) { alert('<b>') }</script>, blue", "Mug , blue"),
        ("Mug<style>p { color: red }</style>, blue", "Mug , blue"),
        ("Mug <!-- internal <b>note</b> -->blue", "Mug blue"),
        ("<!DOCTYPE html><html><body>Mug</body></html>", "Mug"),
        ("Mug<o:p></o:p> blue", "Mug blue"),
        ("&lt;b&gt; is a tag", "<b> is a tag"),
    ],
)
def test_html_is_read_as_what_it_shows(text: str, shown: str) -> None:
    assert " ".join(plain_text(text).split()) == shown


@pytest.mark.parametrize(
    "text",
    [
        "a < b",
        "3 <4 5",
        "a <b",
        "a<b and c>d",
        "x <y> z",
        "vector<int> of C++",
        "AT&T, R&D",
        "<3 you",
        "->, <-, <=>",
        "How to use <script> tags",
        "what <!-- nobody closes",
        "<style> and <p",
        "<![CDATA[x]]> <?php",
        "&",
        "<",
    ],
)
def test_what_is_no_html_stays(text: str) -> None:
    assert plain_text(text) == text


def test_any_text_is_read_in_time_that_grows_with_its_length() -> None:
    rng = random.Random(1)
    parts = ["<", "</", ">", "<b", "<b>", "<!--", "-->", "<script>", "</script>", "&amp;", "&#x", "<!doctype", "<![",
             "]]>", "a", " ", "=", "'", "/", "\x00", "é", "İ"]  # fmt: skip
    for _ in range(2000):
        plain_text("".join(rng.choices(parts, k=12)))
    started = time.monotonic()
    for part in parts:
        plain_text(part * 50_000)
    assert time.monotonic() - started < 20
