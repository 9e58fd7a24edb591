"""Names from strangers' files cannot command the terminal that shows them."""

from __future__ import annotations

import pytest

from psla_jax.cli import main
from psla_jax.journal import Journal
from psla_jax.ontology import Vocabulary, VocabularyError
from psla_jax.terminal import one_line, printable

EVIL = "\x1b[2J\x1b]0;owned\x07[red]a\rb\u202etxt.wav"
SHOWN = r"\x1b[2J\x1b]0;owned\x07[red]a\rb\u202etxt.wav"


def test_what_could_command_a_terminal_is_written_out() -> None:
    assert printable(EVIL) == SHOWN
    assert printable("Grüße, 音,\n\tzwei Zeilen") == "Grüße, 音,\n\tzwei Zeilen"
    assert one_line("a\nb\tc") == r"a\nb\tc"


def test_an_error_shows_no_commands(capsys) -> None:
    assert main(["evaluate", EVIL, "--data", "none.json"]) == 2
    assert SHOWN in capsys.readouterr().err


def test_a_line_of_a_run_shows_no_commands(capsys) -> None:
    Journal().say(f"set aside: {EVIL}")
    assert capsys.readouterr().out == f"set aside: {SHOWN}\n"


@pytest.mark.parametrize("name", ["a\x1b[31mb", "two\nlines", "\u202eright to left"])
def test_a_class_of_a_strangers_model_has_a_name_that_is_one(name: str) -> None:
    with pytest.raises(VocabularyError, match="leave control characters out"):
        Vocabulary(("/t/a",), (name,))
    with pytest.raises(VocabularyError, match="leave control characters out"):
        Vocabulary.from_json([["/t/a", name]])
