"""Control characters in untrusted names are escaped before they are shown in a terminal."""

from __future__ import annotations

import pytest

from psla_jax.cli.main import main
from psla_jax.runtime.logging import Logger
from psla_jax.runtime.terminal import one_line, printable
from psla_jax.vocabulary.vocabulary import Vocabulary, VocabularyError

EVIL = "\x1b[2J\x1b]0;owned\x07[red]a\rb\u202etxt.wav"
SHOWN = r"\x1b[2J\x1b]0;owned\x07[red]a\rb\u202etxt.wav"


def test_control_characters_are_escaped() -> None:
    assert printable(EVIL) == SHOWN
    assert printable("Grüße, 音,\n\tzwei Zeilen") == "Grüße, 音,\n\tzwei Zeilen"
    assert one_line("a\nb\tc") == r"a\nb\tc"


def test_control_characters_in_an_error_are_escaped(capsys) -> None:
    assert main(["evaluate", EVIL, "--data", "none.json"]) == 2
    assert SHOWN in capsys.readouterr().err


def test_control_characters_in_a_log_line_are_escaped(capsys) -> None:
    Logger().info(f"skipped: {EVIL}")
    assert capsys.readouterr().out == f"skipped: {SHOWN}\n"


@pytest.mark.parametrize("name", ["a\x1b[31mb", "two\nlines", "\u202eright to left"])
def test_class_names_with_control_characters_are_refused(name: str) -> None:
    with pytest.raises(VocabularyError, match="remove the control characters"):
        Vocabulary(("/t/a",), (name,))
    with pytest.raises(VocabularyError, match="remove the control characters"):
        Vocabulary.from_json([["/t/a", name]])
