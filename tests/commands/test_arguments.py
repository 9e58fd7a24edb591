"""Switches on the command line: ``--force`` alone, or with its value."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from tyro.conf import Positional

from psla_jax.commands.arguments import parse, spelled_out
from psla_jax.commands.labeling import Crossfit


@dataclass(frozen=True)
class Options:
    """A command."""

    data: Positional[str]
    """A name."""
    force: bool = False
    """A switch."""
    keep_scores: bool = True
    """A switch that is on."""
    note: str = ""
    """No switch."""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a.json"], Options("a.json")),
        (["a.json", "--force"], Options("a.json", force=True)),
        (["--force", "a.json"], Options("a.json", force=True)),
        (["--force", "--note", "x", "a.json"], Options("a.json", force=True, note="x")),
        (["--force", "True", "a.json"], Options("a.json", force=True)),
        (["a.json", "--force", "False"], Options("a.json")),
        (["a.json", "--keep-scores", "False", "--force=True"], Options("a.json", force=True, keep_scores=False)),
        (["a.json", "--keep_scores"], Options("a.json")),
        (["a.json", "--note", "force"], Options("a.json", note="force")),
    ],
)
def test_a_switch_is_set_by_its_name_or_by_a_value(arguments, expected):
    assert parse(Options, arguments, "psla try") == expected


@pytest.mark.parametrize("arguments", [["a.json", "--force", "maybe"], ["a.json", "--note"], ["--force"]])
def test_other_values_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(Options, arguments, "psla try")
    assert ended.value.code == 2
    assert capsys.readouterr().out == ""


def test_only_switches_of_the_command_itself_are_spelled_out():
    arguments = ["--ontology", "o.json", "--force", "--config.sampling.balanced", "False"]
    assert spelled_out(Crossfit, arguments) == [*arguments[:3], "True", *arguments[3:]]
