"""Models as ONNX files: their outputs in onnxruntime are those of the model, and every file states what it contains."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from flax import nnx

from psla_jax.audio.frontend import Frontend
from psla_jax.cli import main
from psla_jax.config import FrontendConfig, ModelConfig
from psla_jax.export import onnx_file, onnx_graph
from psla_jax.models.factory import from_config
from psla_jax.models.model_dir import Model, ModelCard, save_model
from psla_jax.models.protocols import parts
from psla_jax.models.state import split_model
from psla_jax.models.views import eval_view, statistics_view
from psla_jax.pretraining.state_dict import PretrainingError
from psla_jax.vocabulary.vocabulary import Vocabulary

CLASSES = Vocabulary(tuple(f"/t/{i}" for i in range(5)), tuple(f"Sound {i}" for i in range(5)))
FRAMES = 120
MODELS = {
    "tiny": ModelConfig(name="efficientnet-tiny", heads=4),
    "static": ModelConfig(name="efficientnet-tiny", heads=1, padding="static"),
    "mean": ModelConfig(name="efficientnet-tiny", pooling="mean"),
    "resnet50": ModelConfig(name="resnet50", heads=2),
    "mobilenet-v2": ModelConfig(name="mobilenet-v2", pooling="linear"),
}


def made(config: ModelConfig, frontend: FrontendConfig | None = None, *, exclusive: bool = False) -> Model:
    """A model with new weights, and the statistics of noise."""
    frontend = frontend or FrontendConfig(target_length=FRAMES)
    network = from_config(config, len(CLASSES), np.float32, nnx.Rngs(0))
    spectrograms = jax.random.normal(jax.random.key(0), (2, 96, frontend.num_mels))
    nnx.jit(lambda model, x: statistics_view(model)(x))(network, spectrograms)
    card = ModelCard(config, frontend, CLASSES, licence="mine", exclusive=exclusive)
    return Model(card, eval_view(network))


def run(proto: onnx.ModelProto, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, inputs)))


@pytest.mark.parametrize("name", MODELS)
def test_all_outputs_are_those_of_the_model(name: str) -> None:
    model = made(MODELS[name])
    proto, found = onnx_file.build(model, "log-mel"), parts(model.network)
    assert found is not None
    for clips, frames in ((1, FRAMES), (3, 75)):
        x = np.random.default_rng(frames).standard_normal((clips, frames, 128)).astype(np.float32)
        outputs, features = run(proto, log_mel=x), found.features(x)
        np.testing.assert_allclose(outputs["scores"], model.network(x), rtol=0, atol=1e-5)
        np.testing.assert_allclose(outputs["embeddings"], features, rtol=1e-4, atol=1e-4 * np.abs(features).max())
        assert ("frame_scores" in outputs, "attention" in outputs) == (found.has_frames, found.has_attention)
        if found.has_frames:
            expected = found.head.frame_outputs(features)
            np.testing.assert_allclose(outputs["frame_scores"], expected.scores, rtol=0, atol=2e-5)
            if found.has_attention:
                np.testing.assert_allclose(outputs["attention"], expected.attention, rtol=1e-3, atol=1e-4)


FRONTENDS = {
    "recipe": FrontendConfig(target_length=FRAMES),
    "32 kHz": FrontendConfig(FRAMES, mean=1.0, std=2.0, sample_rate=32_000, num_mels=64, low_hz=50.0, high_hz=14_000.0),
    "other frames": FrontendConfig(FRAMES, hop=12.5, window=32.0),
}


@pytest.mark.parametrize("name", FRONTENDS)
def test_the_frontend_is_that_of_the_model(name: str) -> None:
    config, graph = FRONTENDS[name], onnx_graph.Graph()
    value = graph.name(onnx_graph.log_mel(graph, "waveform", config), "log_mel")
    infos = [onnx.helper.make_tensor_value_info(n, 1, None) for n in ("waveform", value)]
    body = onnx.helper.make_graph(graph.nodes, "frontend", infos[:1], infos[1:], graph.constants)
    opset = onnx.helper.make_opsetid("", onnx_graph.OPSET)
    proto = onnx.helper.make_model(body, opset_imports=[opset], ir_version=onnx_graph.IR_VERSION)
    rng = np.random.default_rng(0)
    for seconds in (0.3, 1.0):
        waveform = rng.uniform(-0.3, 0.5, (2, round(seconds * config.sample_rate))).astype(np.float32)
        expected = Frontend.from_config(config)(waveform)
        np.testing.assert_allclose(run(proto, waveform=waveform)["log_mel"], expected, rtol=0, atol=2e-4)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = made(MODELS["tiny"])
    path = tmp_path_factory.mktemp("export") / "model"
    save_model(path, model.card, *split_model(model.network))
    return path


@pytest.mark.parametrize("source", ["waveform", "log-mel"])
def test_the_command_writes_a_file_that_states_its_content(
    directory: Path, source: str, tmp_path: Path, capsys
) -> None:
    path = tmp_path / "new" / "model.onnx"
    assert main.main(["export", str(directory), str(path), "--from", source]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "scores, frame_scores, attention, embeddings" in lines[2]
    assert "differ by at most" in lines[3]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == [source.replace("-", "_")]
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"])[3] == ["/t/3", "Sound 3"]
    assert (metadata["sample_rate"], metadata["licence"]) == ("16000", "mine")
    assert json.loads(metadata["frontend"])["target_length"] == FRAMES
    assert main.main(["export", str(directory), str(path)]) == 2
    assert "already exists" in capsys.readouterr().err


def test_scores_of_exclusive_classes_are_distributions() -> None:
    model = made(MODELS["static"], exclusive=True)
    outputs = run(onnx_file.build(model, "log-mel"), log_mel=np.zeros((2, FRAMES, 128), np.float32))
    np.testing.assert_allclose(outputs["scores"].sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(outputs["frame_scores"].sum(-1), 1, rtol=1e-5)


def test_a_file_that_would_give_other_scores_is_not_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(onnx_graph.Graph, "swish", lambda self, x: self.add("Relu", x))
    with pytest.raises(PretrainingError, match=r"in onnxruntime .* differ by .*, so .*x\.onnx was not written"):
        onnx_file.write(made(MODELS["static"]), tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.onnx", "--data-parallel"], "--data-parallel is for weight files"),
        (["model.pth", "--from", "log-mel"], "--from is for .onnx files, not for model.pth"),
    ],
)
def test_options_without_effect_are_refused(directory: Path, options: list[str], message: str, capsys) -> None:
    assert main.main(["export", str(directory), *options]) == 2
    assert message in capsys.readouterr().err


def test_without_onnx_the_error_says_what_to_install(directory: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    for name in ("onnx_file", "onnx_graph"):
        monkeypatch.delitem(sys.modules, f"psla_jax.export.{name}")
    monkeypatch.delattr("psla_jax.export.onnx_file")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main.main(["export", str(directory), str(tmp_path / "x.onnx")]) == 2
    assert "an .onnx file needs the package onnx: pip install 'psla_jax[onnx]'" in capsys.readouterr().err
