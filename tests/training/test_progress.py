"""Progress where standard error is a terminal and where it is none."""

from __future__ import annotations

import pytest

from training.progress import Terminal


def play(terminal: Terminal) -> None:
    with terminal:
        for done in range(4):
            terminal.stage("encoding", done, 3)
        terminal.start(10)
        for epoch in range(1, 11):
            terminal.step(1, 2)
            terminal.step(2, 2)
            metrics = {"recall@20": epoch / 10, "recall@50": 0.9} if epoch != 10 else {}
            terminal.epoch(epoch, {"loss": 1 / epoch}, metrics, epoch / 10)
        terminal.finish("best epoch 9 of 10")
        terminal.say("a line that stays")


def test_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    play(Terminal())
    out, err = capsys.readouterr()
    assert out == ""  # standard output is for results
    assert err.splitlines() == [
        "encoding ...",
        "epoch 5: loss 0.2000  recall@20 0.5000",
        "best epoch 9 of 10",
        "a line that stays",
    ]


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    play(Terminal(quiet=True))
    assert capsys.readouterr() == ("", "")


def test_bars_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    play(Terminal())
    err = capsys.readouterr().err
    assert "encoding ..." not in err
    assert "epoch 5:" not in err
    assert "3/3" in err
    assert "a line that stays" in err
    with Terminal() as terminal:
        terminal.start(10)
        terminal.epoch(4, {}, {}, 0.25)
    assert "training, best 0.2500" in capsys.readouterr().err


def test_before_training_starts(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody has to call `start`."""
    with Terminal() as terminal:
        terminal.step(1, 2)
        terminal.epoch(1, {}, {}, 0.0)
        terminal.finish("over")
    assert capsys.readouterr().err.splitlines() == ["over"]
