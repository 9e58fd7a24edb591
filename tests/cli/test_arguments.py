"""Command lines: boolean flags, and the config fields of ``psla crossfit``."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from tyro.conf import Positional

from psla_jax.cli import enhance
from psla_jax.cli.arguments import parse
from psla_jax.labeling import crossfit


@dataclass(frozen=True)
class Options:
    """Options of a command."""

    data: Positional[str]
    """A positional argument."""
    force: bool = False
    """A flag that is off by default."""
    keep_scores: bool = True
    """A flag that is on by default."""
    note: str = ""
    """An option with a value."""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a.json"], Options("a.json")),
        (["a.json", "--force"], Options("a.json", force=True)),
        (["--force", "a.json"], Options("a.json", force=True)),
        (["--force", "--note", "x", "a.json"], Options("a.json", force=True, note="x")),
        (["a.json", "--force", "--no-force"], Options("a.json")),
        (["a.json", "--no-keep-scores", "--force"], Options("a.json", force=True, keep_scores=False)),
        (["a.json", "--keep_scores"], Options("a.json")),
        (["a.json", "--note", "force"], Options("a.json", note="force")),
    ],
)
def test_boolean_fields_are_pairs_of_flags(arguments, expected):
    assert parse(Options, arguments, "psla try") == expected


@pytest.mark.parametrize("value", ["True", "False", "maybe"])
@pytest.mark.parametrize("flag", ["--force", "--keep-scores"])
def test_a_flag_takes_no_value(flag, value, capsys):
    for arguments in (["a.json", flag, value], ["a.json", f"{flag}={value}"]):
        with pytest.raises(SystemExit) as ended:
            parse(Options, arguments, "psla try")
        assert ended.value.code == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert f"Unrecognized options: {value}" in printed.err


@pytest.mark.parametrize("arguments", [["a.json", "--note"], ["--force"], ["a.json", "b.json"]])
def test_incomplete_and_surplus_arguments_end_with_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(Options, arguments, "psla try")
    assert ended.value.code == 2
    assert capsys.readouterr().out == ""


def test_crossfit_has_flags_and_config_fields_with_values(monkeypatch):
    requests = []
    monkeypatch.setattr(crossfit, "run", requests.append)
    arguments = ["demo", "--ontology", "o.json", "--force", "--sampling.balanced", "False", "--optimizer.remat", "True"]
    assert enhance.crossfit(arguments) == 0
    (request,) = requests
    assert request.force
    assert not request.config.sampling.balanced
    assert request.config.optimizer.remat
    for wrong in (["--force", "True"], ["--no-sampling.balanced"]):
        with pytest.raises(SystemExit) as ended:
            enhance.crossfit(["demo", "--ontology", "o.json", *wrong])
        assert ended.value.code == 2
