"""Model directories: complete in themselves, whole or absent, and careful with strangers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from sounds import VOCABULARY

from psla_jax.checkpoints import CheckpointError, ModelCard, load_model, load_weights, require_place, save_model
from psla_jax.config import FrontendConfig, ModelConfig
from psla_jax.models import tagger
from psla_jax.training import split_model

ARCHITECTURE = ModelConfig(name="efficientnet-b0", pooling="attention", heads=3, padding="static")


def card(model: ModelConfig = ARCHITECTURE) -> ModelCard:
    return ModelCard(model, FrontendConfig(target_length=64, mean=-1.0, std=2.0), VOCABULARY, {"from": "a test"})


@pytest.fixture(scope="module")
def network() -> nnx.Module:
    return tagger.from_config(ARCHITECTURE, len(VOCABULARY), np.float32, nnx.Rngs(1))


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


def test_saving_again_replaces_and_leaves_nothing_beside(network, tmp_path):
    params, rest = split_model(network)
    for factor in (1.0, 2.0):
        save_model(tmp_path / "model", card(), jax.tree.map(lambda x, f=factor: x * f, params), rest)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    found, _ = load_weights(tmp_path / "model", params, rest)
    np.testing.assert_array_equal(found["effnet"]["_bn0"]["scale"], 2 * params["effnet"]["_bn0"]["scale"])


def test_what_is_no_model_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no model at .*nowhere"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"neither a model directory \(model\.json is missing\) nor a run"):
        load_model(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(CheckpointError, match="has not ended"):
        load_model(tmp_path)


def test_damage_is_named(saved, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(saved, broken)
    shutil.rmtree(broken / "weights")
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
    with pytest.raises(CheckpointError, match=r"somebody's own code, os:abort.*--trust"):
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
    for name, message in (("file", "is no model"), ("folder", "is no model"), ("file/model", "which is a file")):
        with pytest.raises(CheckpointError, match=message):
            require_place(tmp_path / name, overwrite=overwrite)
    require_place(tmp_path / "new" / "model", overwrite=overwrite)
    if overwrite:
        require_place(saved, overwrite=True)
    else:
        with pytest.raises(CheckpointError, match="replace it with --overwrite True"):
            require_place(saved, overwrite=False)
