"""File and class names as plots show them."""

from __future__ import annotations

import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure

from psla_jax.tagging.plot.fonts import drawable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a_$b$_{c}^d \\frac.wav", "a_$b$_{c}^d \\frac.wav"),
        ("птица, γλυκό", "птица, γλυκό"),
        ("two\nlines\tand\x07", "two lines and\ufffd"),
        ("no text: \udcff", "no text: \ufffd"),
        ("no font: \U000e0041\uf8fe", "no font: \ufffd\ufffd"),
    ],
)
def test_what_a_name_becomes(name: str, shown: str) -> None:
    assert drawable([name])[0] == [shown]


def test_letters_that_the_usual_font_lacks_come_from_another_one() -> None:
    usual = font_manager.FontProperties().get_name()
    (text,), properties = drawable(["\u24b6 in a circle: \U0001d4d0"])
    assert "\ufffd" not in text
    assert properties["family"][0] == usual
    assert len(properties["family"]) > 1


@pytest.mark.filterwarnings("error")
def test_every_name_can_be_drawn(tmp_path) -> None:
    texts, properties = drawable(["$\\frac{a}{b$ _x_", "鳥の声", "\udc80", "\U0001f426", "\U0001d4d0"])
    assert texts[1][1] == "の", "a font that is bundled with matplotlib has it"
    figure = Figure()
    for row, text in enumerate(texts):
        figure.text(0, row / 5, text, **properties)
    figure.savefig(tmp_path / "a.png")
