"""Progress where standard error is a terminal and where it is none."""

from __future__ import annotations

import pytest

from training.progress import Terminal, Trial


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


class Clock:
    """A second later at every look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def test_lines_have_count_rate_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal(clock=Clock()) as terminal:
        for done in range(0, 2001, 100):
            terminal.stage("text", done, 2000)
        for done in (0, 7, 14, 21, 28, 35):
            terminal.stage("rows", done)
        for done in (1, 2):
            terminal.stage("short", done, 2)
    assert capsys.readouterr().err.splitlines() == [
        "text ...",
        "text: 500 of 2,000, 100/s, 15 s left",
        "text: 1,000 of 2,000, 100/s, 10 s left",
        "text: 1,500 of 2,000, 100/s, 5 s left",
        "text: 2,000 in 20 s",
        "rows ...",
        "rows: 35, 7/s",
        "short ...",
    ]


def test_lines_of_a_training(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a long epoch its steps, of short ones their number; of one training of many, no more than that."""
    with Terminal(clock=Clock()) as terminal:
        terminal.start(10)
        for epoch in (1, 2):
            for step in range(1, 9):
                terminal.step(step, 8)
            terminal.epoch(epoch, {}, {}, 0.5)
        for _ in range(2):
            trial = Trial(terminal, "this trial")
            trial.start(2)
            for epoch in (1, 2):
                for step in range(1, 5):
                    trial.step(step, 4)
                trial.epoch(epoch, {}, {}, 0.5)
            trial.finish("not said")
    said = capsys.readouterr().err.splitlines()
    assert said[:2] == ["epoch 1, steps: 6 of 8, 1.2/s, 2 s left", "epoch 1, steps: 8 in 7 s"]
    trial_lines = ["this trial: 6 of 8, 1.2/s, 2 s left", "this trial: 8 in 7 s"]
    assert [line for line in said if line.startswith("this trial")] == ["this trial ...", *trial_lines, *trial_lines]


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
