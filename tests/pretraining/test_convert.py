"""Conversion of official checkpoints and export to PyTorch, for every kind of model, and errors."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_reference
from safetensors import safe_open
from torch import nn

from psla_jax.cli import main
from psla_jax.models import self_test
from psla_jax.models.model_dir import Model, load_model, save_model
from psla_jax.models.state import split_model
from psla_jax.pretraining import convert
from psla_jax.pretraining.infer import infer_architecture
from psla_jax.pretraining.state_dict import PretrainingError, to_state_dict

CLASSES, FRAMES = 20, 101
KINDS = [
    *(("b0", heads) for heads in (0, 1, 4)),
    ("b2", 4),
    ("b3", 1),
    ("resnet50", 1),
    ("mobilenet-v2", 1),
]


@functools.cache
def reference(kind: str, heads: int, padding: str = "symmetric") -> nn.Module:
    if kind.startswith("b"):
        return torch_reference.make_reference(int(kind[1:]), CLASSES, heads, padding)
    return torch_reference.make_network(kind, CLASSES)


def write_labels(path: Path, classes: int = CLASSES) -> Path:
    rows = [("index", "mid", "display_name"), *((i, f"/t/{i}", f"Sound {i}, loud") for i in range(classes))]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Returns a folder with labels, to which tests add checkpoints and models."""
    home = tmp_path_factory.mktemp("convert")
    write_labels(home / "labels.csv")
    return home


def checkpoint(home: Path, kind: str, heads: int, prefix: str = "module.") -> Path:
    path = home / f"{kind}-{heads}{prefix}pth"
    if not path.exists():
        state_dict = reference(kind, heads).state_dict()
        if kind == "b0":  # Older files also contain the ImageNet classifier.
            state_dict |= {"effnet._fc.weight": torch.zeros(1000, 1280), "effnet._fc.bias": torch.zeros(1000)}
        torch.save({prefix + name: value for name, value in state_dict.items()}, path)
    return path


def converted(home: Path, kind: str, heads: int) -> Path:
    path = home / "models" / f"{kind}-{heads}"
    if not path.exists():
        convert.convert(
            convert.Request(
                str(checkpoint(home, kind, heads)), str(path), str(home / "labels.csv"), target_length=FRAMES
            )
        )
    return path


@pytest.mark.parametrize(("kind", "heads"), KINDS)
def test_conversion_and_export_preserve_the_scores(home: Path, kind: str, heads: int) -> None:
    model = load_model(converted(home, kind, heads))
    spectrograms = self_test.self_test_spectrogram(model.card.frontend)
    expected = torch_reference.evaluate(reference(kind, heads), spectrograms)[0]
    assert expected.std() > 0.05
    np.testing.assert_allclose(stored_scores(model), expected, rtol=0, atol=1e-5)
    assert model.card.golden["largest_difference"] <= 1e-5

    exported = home / f"{kind}-{heads}.exported.pth"
    assert main.main(["export", str(home / "models" / f"{kind}-{heads}"), str(exported)]) == 0
    fresh = _fresh(kind, heads)
    fresh.load_state_dict(torch.load(exported, weights_only=True), strict=True)
    np.testing.assert_allclose(
        torch_reference.evaluate(fresh, spectrograms)[0], stored_scores(model), rtol=0, atol=1e-5
    )


def stored_scores(model: Model) -> np.ndarray:
    """Returns the scores of the test sound that are stored in the model directory."""
    return np.array(list(model.card.golden["scores"].values()))


def _fresh(kind: str, heads: int) -> nn.Module:
    if kind.startswith("b"):
        return torch_reference.ReferenceTagger(int(kind[1:]), CLASSES, heads)
    return torch_reference.ResNetAttention(CLASSES) if kind == "resnet50" else torch_reference.MBNet(CLASSES)


@pytest.mark.parametrize("frames", [33, 250])
def test_a_converted_model_agrees_with_pytorch_for_any_length(home: Path, frames: int) -> None:
    model = load_model(converted(home, "b0", 4))
    spectrograms = torch_reference.make_spectrograms(1, frames, seed=frames)
    scores = self_test._call(model.network.head, self_test._call(model.network.backbone, jnp.asarray(spectrograms)))
    np.testing.assert_allclose(scores, torch_reference.evaluate(reference("b0", 4), spectrograms), rtol=0, atol=1e-5)


def test_the_model_directory_contains_all_settings_and_a_report(home: Path) -> None:
    source, path = checkpoint(home, "b0", 1), home / "models" / "settings"
    arguments = [str(source), str(path), "--labels", str(home / "labels.csv"), "--target-length", str(FRAMES)]
    assert (
        main.main(["convert", *arguments, "--padding", "static", "--mean", "-5", "--std", "4", "--licence", "mine"])
        == 0
    )
    description = json.loads((path / "model.json").read_text())
    assert description["model"] | {"drop_connect": 0} == {
        "name": "efficientnet-b0", "pooling": "attention", "heads": 1, "padding": "static", "drop_connect": 0,
        "batch_norm": "synchronised",
    }  # fmt: skip
    assert description["frontend"] == {
        "target_length": FRAMES, "mean": -5.0, "std": 4.0,
        "sample_rate": 16000, "num_mels": 128, "hop": 10.0, "window": 25.0, "low_hz": 20.0, "high_hz": 0.0,
    }  # fmt: skip
    assert description["vocabulary"][3] == ["/t/3", "Sound 3, loud"]
    assert description["licence"] == "mine"
    assert description["notes"]["source"]["file"] == source.name
    assert len(description["notes"]["source"]["sha256"]) == 64
    report = json.loads((path / "report.json").read_text())
    assert set(report) == {"loaded", "ignored", "missing", "reshaped"}
    assert "effnet._fc.weight" in report["ignored"]
    assert "effnet._blocks.0._bn1.running_mean" in report["loaded"]
    assert report["missing"] == []
    # The padding changes the scores.
    symmetric, static = load_model(converted(home, "b0", 1)), load_model(path)
    assert np.abs(stored_scores(symmetric) - stored_scores(static)).max() > 0.01


def test_a_safetensors_file_states_everything_that_its_conversion_needs(home: Path, monkeypatch, capsys) -> None:
    model, path, back = converted(home, "b0", 1), home / "b0.safetensors", home / "models" / "back"
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main.main(["export", str(model), str(path)]) == 0
    assert main.main(["convert", str(path), str(back)]) == 0
    assert "differ from the exported model by at most" in capsys.readouterr().out
    before, after = load_model(model), load_model(back)
    assert (after.card.frontend, after.card.vocabulary) == (before.card.frontend, before.card.vocabulary)
    np.testing.assert_array_equal(stored_scores(after), stored_scores(before))
    with safe_open(path, framework="numpy") as file:
        description = json.loads(file.metadata()["psla_jax"])
        assert set(file.keys()) == set(to_state_dict(before.network))
    assert description["vocabulary"][3] == ["/t/3", "Sound 3, loud"]
    assert description["frontend"]["sample_rate"] == 16000


def test_a_safetensors_file_keeps_the_channel_of_the_training(home: Path) -> None:
    model, path = home / "models" / "first", home / "first.safetensors"
    loaded = load_model(converted(home, "b0", 1))
    notes = {"config": {"data.channel": "first"}}
    save_model(model, dataclasses.replace(loaded.card, notes=notes), *split_model(loaded.network))
    convert.export(str(model), str(path))
    convert.convert(convert.Request(str(path), str(home / "models" / "first_back")))
    assert load_model(home / "models" / "first_back").card.channel == "first"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mean", "-5"], "states mean -4.6476, and --mean is -5.0: leave the option out"),
        (["--padding", "static"], "states padding 'symmetric', and --padding is 'static': leave the option out"),
        (["--labels", "fsd50k"], "states other classes than fsd50k: leave --labels out"),
    ],
)
def test_options_that_contradict_a_file_are_refused(home: Path, options: list[str], message: str, capsys) -> None:
    path = home / f"{options[0]}.safetensors"
    convert.export(str(converted(home, "b0", 1)), str(path))
    assert main.main(["convert", str(path), str(home / "models" / "refused"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (home / "models" / "refused").exists()


def test_weights_without_classes_need_their_table(home: Path, capsys) -> None:
    assert main.main(["convert", str(checkpoint(home, "b0", 1)), str(home / "models" / "no")]) == 2
    assert "does not state its classes: name their CSV with --labels" in capsys.readouterr().err


def test_the_report_is_printed(home: Path, capsys) -> None:
    path = home / "models" / "printed"
    arguments = [str(checkpoint(home, "b0", 4, "")), str(path), "--labels", str(home / "labels.csv")]
    assert main.main(["convert", *arguments, "--target-length", str(FRAMES)]) == 0
    output = capsys.readouterr().out
    loaded = sum(not name.endswith("num_batches_tracked") for name in reference("b0", 4).state_dict())
    for part in (
        "efficientnet-b0, 4 heads, symmetric padding, 20 classes",
        f"loaded    {loaded} arrays",
        "missing   none",
    ):
        assert part in output
    assert "effnet._fc.weight, effnet._fc.bias" in output
    assert f"from PyTorch {torch.__version__}" in output


def test_check_model_verifies_and_detects_changes(home: Path, capsys) -> None:
    path = converted(home, "b0", 1)
    assert main.main(["check-model", str(path)]) == 0
    assert "verified: 20 scores" in capsys.readouterr().out
    description = json.loads((path / "model.json").read_text())
    try:
        changed = json.loads((path / "model.json").read_text())
        changed["model"]["padding"] = "static"
        (path / "model.json").write_text(json.dumps(changed))
        assert main.main(["check-model", str(path)]) == 1
        assert "differs: the test sound scores" in capsys.readouterr().out
        changed["model"]["padding"] = "symmetric"
        changed["vocabulary"].reverse()
        (path / "model.json").write_text(json.dumps(changed))
        assert main.main(["check-model", str(path)]) == 1
        assert "differs" in capsys.readouterr().out
        for broken in ({"scores": [1]}, {"x": 1}, {"scores": {"/t/0": "no"}}, 7):
            changed["golden"] = broken
            (path / "model.json").write_text(json.dumps(changed))
            assert main.main(["check-model", str(path)]) == 2
            assert "create the model again" in capsys.readouterr().err
        changed["golden"] = {}
        (path / "model.json").write_text(json.dumps(changed))
        assert main.main(["check-model", str(path)]) == 2
        assert "carries no scores" in capsys.readouterr().err
    finally:
        (path / "model.json").write_text(json.dumps(description))


def test_export_with_the_prefix_loads_into_data_parallel(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.pth"
    assert main.main(["export", str(converted(home, "b0", 4)), str(path), "--data-parallel"]) == 0
    parallel = nn.DataParallel(_fresh("b0", 4))
    parallel.load_state_dict(torch.load(path, weights_only=True), strict=True)
    assert (tmp_path / "out.labels.csv").read_text().splitlines()[4] == '3,/t/3,"Sound 3, loud"'


def modified_checkpoint(home: Path, tmp_path: Path, change: Callable[[dict], None]) -> Path:
    state_dict = torch.load(checkpoint(home, "b0", 4), weights_only=True)
    change(state_dict)
    torch.save(state_dict, tmp_path / "modified.pth")
    return tmp_path / "modified.pth"


MISTAKES: dict[str, tuple[Callable[[dict], None], str]] = {
    "a weight is missing": (lambda d: d.pop("module.effnet._bn0.bias"), r"missing: effnet\._bn0\.bias"),
    "a weight too many": (lambda d: d.update(stray=torch.zeros(1)), "not part of the model: stray"),
    "another shape": (
        lambda d: d.update({"module.attention.cla.1.bias": torch.zeros(7)}), r"cla\.1\.bias has shape \(7,\)",
    ),
    "not finite": (
        lambda d: d["module.attention.cla.1.bias"].fill_(float("nan")), r"attention\.cla\.1\.bias is not finite",
    ),
    "whole numbers": (
        lambda d: d.update({"module.attention.head_weight": torch.zeros(4, dtype=torch.int64)}),
        r"head_weight holds int64 instead of floating-point numbers",
    ),
    "no head": (
        lambda d: [d.pop(k) for k in list(d) if "attention" in k], r"a backbone and no pooling head",
    ),
    "another EfficientNet": (
        lambda d: [d.pop(k) for k in list(d) if "_blocks.15." in k], "an EfficientNet with 15 blocks and 1280 features",
    ),
    "another architecture": (
        lambda d: [d.pop(k) for k in list(d)] and d.update({"module.v.cls_token": torch.zeros(1)}),
        r"of no PSLA architecture \(their names start with module\.v\.cls_token\)",
    ),
    "ImageNet": (
        lambda d: [d.pop(k) for k in list(d)] and d.update({"_conv_stem.weight": torch.zeros(32, 3, 3, 3)}),
        r"as trained on ImageNet: use them for training with --pretraining\.source",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_checkpoints_that_do_not_fit_are_rejected_and_nothing_is_written(home, tmp_path, mistake: str) -> None:
    change, message = MISTAKES[mistake]
    source = modified_checkpoint(home, tmp_path, change)
    with pytest.raises(PretrainingError, match=message) as caught:
        convert.convert(convert.Request(str(source), str(tmp_path / "model"), str(home / "labels.csv")))
    assert str(caught.value).startswith(str(source))
    assert [p.name for p in tmp_path.iterdir()] == ["modified.pth"]


LABELS: dict[str, tuple[Callable[[str], str], str]] = {
    "too many rows": (lambda text: text + "20,/t/20,More\n", "the weights have 20 classes and .* has 21"),
    "too few rows": (lambda text: "\n".join(text.splitlines()[:-1]), "the weights have 20 classes and .* has 19"),
    "duplicate mids": (lambda text: text.replace("/t/3,", "/t/4,"), "class 4 has the mid '/t/4' of an earlier class"),
    "another column order": (
        lambda text: "\n".join(",".join(reversed(line.split(",", 2))) for line in text.splitlines()),
        "it needs the header index,mid,display_name",
    ),
    "absent": (lambda text: "", "is empty"),
}


@pytest.mark.parametrize("mistake", LABELS)
def test_label_files_that_do_not_fit_are_rejected(home: Path, tmp_path: Path, capsys, mistake: str) -> None:
    change, message = LABELS[mistake]
    (tmp_path / "labels.csv").write_text(change((home / "labels.csv").read_text()))
    arguments = [str(checkpoint(home, "b0", 4)), str(tmp_path / "model"), "--labels", str(tmp_path / "labels.csv")]
    assert main.main(["convert", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error)
    assert [p.name for p in tmp_path.iterdir()] == ["labels.csv"]


def test_windows_line_ends_and_byte_order_mark_are_accepted(home: Path, tmp_path: Path) -> None:
    text = (home / "labels.csv").read_text().replace("\n", "\r\n")
    (tmp_path / "labels.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    request = convert.Request(
        str(checkpoint(home, "b0", 1)), str(tmp_path / "model"), str(tmp_path / "labels.csv"), target_length=FRAMES
    )
    assert convert.convert(request).card.vocabulary == load_model(converted(home, "b0", 1)).card.vocabulary


def test_existing_files_are_not_replaced_without_overwrite(home: Path, tmp_path: Path, capsys) -> None:
    model = str(converted(home, "b0", 1))
    arguments = ["convert", str(checkpoint(home, "b0", 1)), model, "--labels", str(home / "labels.csv")]
    assert main.main(arguments) == 2
    assert "exists: choose another path" in capsys.readouterr().err
    (tmp_path / "out.labels.csv").write_text("mine")
    assert main.main(["export", model, str(tmp_path / "out.pth")]) == 2
    assert "out.labels.csv already exists" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["out.labels.csv"]


def test_a_conversion_that_differs_from_pytorch_is_not_written(home: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(convert, "reference_scores", lambda *_: np.zeros((1, CLASSES), np.float32))
    request = convert.Request(
        str(checkpoint(home, "b0", 1)), str(tmp_path / "model"), str(home / "labels.csv"), target_length=FRAMES
    )
    with pytest.raises(PretrainingError, match=r"differ from PyTorch by .*, so nothing was written"):
        convert.convert(request)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("variant", range(8))
@pytest.mark.parametrize(("heads", "classes"), [(0, 3), (1, 527), (2, 10), (4, 200)])
def test_any_size_number_of_heads_and_classes_is_recognised(variant: int, heads: int, classes: int) -> None:
    with torch.device("meta"):
        state_dict = torch_reference.ReferenceTagger(variant, classes, heads).state_dict()
    arrays = {
        f"module.{name}": np.empty(0).reshape(0) if not value.dim() else value for name, value in state_dict.items()
    }
    inferred = infer_architecture(arrays, "static")
    assert (inferred.model.name, inferred.num_classes) == (f"efficientnet-b{variant}", classes)
    assert (inferred.model.pooling, inferred.model.heads) == ("attention" if heads else "mean", max(heads, 1))
    assert inferred.model.padding == "static"


def test_padding_is_rejected_for_other_backbones() -> None:
    arrays = torch_reference.to_numpy(reference("mobilenet-v2", 1).state_dict())
    with pytest.raises(PretrainingError, match="--padding static is for EfficientNets"):
        infer_architecture(arrays, "static")
