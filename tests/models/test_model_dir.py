"""Model directories: self-contained, complete or absent, and safe to load."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from sounds import VOCABULARY

from psla_jax.config import FrontendConfig, ModelConfig
from psla_jax.models import factory
from psla_jax.models.model_dir import (
    CheckpointError,
    ModelCard,
    fingerprint,
    load_model,
    load_weights,
    require_replaceable,
    save_model,
)
from psla_jax.models.state import split_model

ARCHITECTURE = ModelConfig(name="efficientnet-b0", pooling="attention", heads=3, padding="static")


def card(model: ModelConfig = ARCHITECTURE) -> ModelCard:
    return ModelCard(model, FrontendConfig(target_length=64, mean=-1.0, std=2.0), VOCABULARY, {"from": "a test"})


@pytest.fixture(scope="module")
def network() -> nnx.Module:
    return factory.from_config(ARCHITECTURE, len(VOCABULARY), np.float32, nnx.Rngs(1))


@pytest.fixture(scope="module")
def saved(network, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "one"
    save_model(directory, card(), *split_model(network))
    return directory


def test_a_model_comes_back_whole(network, saved):
    model = load_model(saved)
    assert model.card == card()
    assert (model.frontend.target_length, model.frontend.mean, model.frontend.std) == (64, -1.0, 2.0)
    jax.tree.map(np.testing.assert_array_equal, split_model(model.network), split_model(network))
    assert jax.tree.structure(split_model(model.network)) == jax.tree.structure(split_model(network))


@pytest.mark.parametrize("name", ["model", "m" * 255])
def test_saving_again_replaces_and_leaves_nothing_beside(network, tmp_path, name):
    params, rest = split_model(network)
    for factor in (1.0, 2.0):
        save_model(tmp_path / name, card(), jax.tree.map(lambda x, f=factor: x * f, params), rest)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    found, _ = load_weights(tmp_path / name, params, rest)
    np.testing.assert_array_equal(found["effnet"]["_bn0"]["scale"], 2 * params["effnet"]["_bn0"]["scale"])


def test_what_is_no_model_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no model at .*nowhere"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"neither a model directory \(model\.json is missing\) nor a run"):
        load_model(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(CheckpointError, match="is not finished"):
        load_model(tmp_path)


def test_orbax_and_safetensors_have_the_same_weights(network, saved, tmp_path):
    plain = tmp_path / "plain"
    shutil.copytree(saved, plain)
    (plain / "weights.safetensors").unlink()
    jax.tree.map(np.testing.assert_array_equal, *(split_model(load_model(path).network) for path in (plain, saved)))
    arrays = load_file(saved / "weights.safetensors")
    np.testing.assert_array_equal(arrays["effnet._bn0.scale"], split_model(network)[0]["effnet"]["_bn0"]["scale"])
    assert arrays["effnet._blocks.0._depthwise_conv.kernel"].shape == (3, 3, 1, 32)
    assert len(arrays) == len(jax.tree.leaves(split_model(network)))


def test_a_model_can_be_saved_without_safetensors(network, tmp_path):
    save_model(tmp_path / "model", card(), *split_model(network), safetensors=False)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["model.json", "weights"]


def test_equal_models_have_equal_fingerprints_and_others_do_not(network, saved, tmp_path):
    params, batch_stats = split_model(network)
    for name, factor in (("same", 1.0), ("other", 1.5)):
        save_model(tmp_path / name, card(), jax.tree.map(lambda x, f=factor: x * f, params), batch_stats)
    same, other = (fingerprint(tmp_path / name, card()) for name in ("same", "other"))
    assert same == fingerprint(saved, card()) != other
    assert fingerprint(saved, card(ModelConfig(name="efficientnet-b0", heads=2))) != same


def test_a_fingerprint_has_only_those_settings_of_the_frontend_that_earlier_versions_had_or_that_were_changed(saved):
    frontend = {"target_length": 64, "mean": -1.0, "std": 2.0}
    network = {name: value for name, value in dataclasses.asdict(card().model).items() if name != "batch_norm"}
    settings = [network, frontend, VOCABULARY.mids]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest.update(b"weights.safetensors" + hashlib.sha256((saved / "weights.safetensors").read_bytes()).digest())
    assert fingerprint(saved, card()) == digest.hexdigest()
    assert fingerprint(saved, card(ModelConfig(**network, batch_norm="local"))) == digest.hexdigest()
    changes = {"sample_rate": 32_000, "num_mels": 64, "hop": 12.5, "window": 32.0, "low_hz": 50.0, "high_hz": 7000.0}
    others = [dataclasses.replace(card(), frontend=FrontendConfig(**frontend, **{k: v})) for k, v in changes.items()]
    assert len({fingerprint(saved, other) for other in [card(), *others]}) == 7
    earlier = json.loads(others[0].to_json())
    assert ModelCard.from_json(json.dumps(earlier)) == others[0]
    earlier["frontend"] = frontend
    assert ModelCard.from_json(json.dumps(earlier)) == card()


def test_exclusive_classes_are_recorded_and_derived_from_the_loss_of_earlier_versions():
    exclusive = dataclasses.replace(card(), exclusive=True)
    assert ModelCard.from_json(exclusive.to_json()) == exclusive
    assert not ModelCard.from_json(card().to_json()).exclusive
    for loss in ("ce", "bce"):
        earlier = json.loads(dataclasses.replace(card(), notes={"config": {"optimizer.loss": loss}}).to_json())
        del earlier["exclusive"]
        assert ModelCard.from_json(json.dumps(earlier)).exclusive == (loss == "ce")


def test_other_files_are_preserved_when_a_model_is_replaced(network, tmp_path):
    for _ in range(2):
        save_model(tmp_path / "model", card(), *split_model(network))
        (tmp_path / "model" / "calibration.json").write_text("mine")
    save_model(tmp_path / "model", card(), *split_model(network), safetensors=False)
    assert (tmp_path / "model" / "calibration.json").read_text() == "mine"
    assert not (tmp_path / "model" / "weights.safetensors").exists()


@pytest.mark.parametrize("damage", ["missing", "cut", "renamed"])
def test_damage_is_named(saved, tmp_path, damage):
    broken = tmp_path / "broken"
    shutil.copytree(saved, broken)
    file = broken / "weights.safetensors"
    if damage == "missing":
        shutil.rmtree(broken / "weights")
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-4])
    else:
        arrays = load_file(file)
        arrays["effnet._bn0.gain"] = arrays.pop("effnet._bn0.scale")
        save_file(arrays, file)
    with pytest.raises(CheckpointError, match=r"the weights of .*broken cannot be read"):
        load_model(broken)
    (broken / "model.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"model\.json cannot be read"):
        load_model(broken)


def test_weights_of_another_architecture_are_refused(saved, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(saved, other)
    description = json.loads((other / "model.json").read_text())
    description["model"]["name"] = "efficientnet-b1"
    (other / "model.json").write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match=r"the weights of .*other cannot be read"):
        load_model(other)


def test_a_later_format_is_refused(saved, tmp_path):
    later = tmp_path / "later"
    shutil.copytree(saved, later)
    description = json.loads((later / "model.json").read_text()) | {"format": 99}
    (later / "model.json").write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match="its format is 99, this version reads 1"):
        load_model(later)


def test_a_strangers_model_cannot_run_code(tmp_path):
    mine = card(ModelConfig(name="os:abort"))
    save_model(tmp_path / "model", mine, {"a": np.zeros(1, np.float32)}, {"b": np.zeros(1, np.float32)})
    with pytest.raises(CheckpointError, match=r"custom code, os:abort.*--trust"):
        load_model(tmp_path / "model")


def test_a_save_that_fails_leaves_nothing_beside(network, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ModelCard, "to_json", full)
    with pytest.raises(OSError, match="No space"):
        save_model(tmp_path / "model", card(), *split_model(network))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("overwrite", [True, False])
def test_only_a_model_is_replaced(saved, tmp_path, overwrite):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    for name, message in (
        ("file", "is not a model"),
        ("folder", "is not a model"),
        ("file/model", "is a file: choose"),
    ):
        with pytest.raises(CheckpointError, match=message):
            require_replaceable(tmp_path / name, overwrite=overwrite)
    require_replaceable(tmp_path / "new" / "model", overwrite=overwrite)
    if overwrite:
        require_replaceable(saved, overwrite=True)
    else:
        with pytest.raises(CheckpointError, match="replace it with --overwrite"):
            require_replaceable(saved, overwrite=False)
