"""PSLA audio tagging in JAX: pretraining, sampling, labeling, aggregation.

The public names are imported when they are first used, so that importing the package loads nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # For editors and type checkers; "as" marks a name as exported.
    from psla_jax.aggregation.evaluate_models import evaluate as evaluate
    from psla_jax.audio.frontend import Frontend as Frontend
    from psla_jax.cli.train_evaluate import read_config as read_config
    from psla_jax.config import AggregationConfig as AggregationConfig
    from psla_jax.config import DataConfig as DataConfig
    from psla_jax.config import DistributedConfig as DistributedConfig
    from psla_jax.config import FrontendConfig as FrontendConfig
    from psla_jax.config import ModelConfig as ModelConfig
    from psla_jax.config import OptimizerConfig as OptimizerConfig
    from psla_jax.config import PretrainingConfig as PretrainingConfig
    from psla_jax.config import RunConfig as RunConfig
    from psla_jax.config import SamplingConfig as SamplingConfig
    from psla_jax.config_distill import DistillConfig as DistillConfig
    from psla_jax.config_fields import with_settings as with_settings
    from psla_jax.data.datasets import read_datafile as read_datafile
    from psla_jax.data.folds import write_folds as write_folds
    from psla_jax.data.loader import loader as loader
    from psla_jax.evaluation import metrics as metrics
    from psla_jax.evaluation.predict import predict as predict
    from psla_jax.models.factory import build_model as build_model
    from psla_jax.models.model_dir import ModelCard as ModelCard
    from psla_jax.models.model_dir import load_model as load_model
    from psla_jax.models.model_dir import save_model as save_model
    from psla_jax.models.platforms import plain_layers as plain_layers
    from psla_jax.models.views import train_view as train_view
    from psla_jax.sampling import mixup as mixup
    from psla_jax.sampling.specaugment import spec_augment as spec_augment
    from psla_jax.tagging.live.stream import Stream as Stream
    from psla_jax.tagging.tagger import Tagger as Tagger
    from psla_jax.tagging.tagger import load_tagger as load_tagger
    from psla_jax.training import losses as losses
    from psla_jax.training.crossval import crossval as crossval
    from psla_jax.training.loop import train as train
    from psla_jax.training.step import init_state as init_state
    from psla_jax.training.step import make_train_step as make_train_step
    from psla_jax.training.trainer import augmentation as augmentation
    from psla_jax.vocabulary.ontology import Ontology as Ontology
    from psla_jax.vocabulary.vocabulary import Vocabulary as Vocabulary

    load = load_tagger

__version__ = "0.1.0"

_NAMES = {
    "aggregation.evaluate_models": "evaluate",
    "audio.frontend": "Frontend",
    "cli.train_evaluate": "read_config",
    "config": "AggregationConfig DataConfig DistributedConfig FrontendConfig ModelConfig OptimizerConfig "
    "PretrainingConfig RunConfig SamplingConfig",
    "config_distill": "DistillConfig",
    "config_fields": "with_settings",
    "data.datasets": "read_datafile",
    "data.folds": "write_folds",
    "data.loader": "loader",
    "evaluation": "metrics",
    "evaluation.predict": "predict",
    "models.factory": "build_model",
    "models.model_dir": "ModelCard load_model save_model",
    "models.platforms": "plain_layers",
    "models.views": "train_view",
    "sampling": "mixup",
    "sampling.specaugment": "spec_augment",
    "tagging.live.stream": "Stream",
    "tagging.tagger": "Tagger load_tagger",
    "training": "losses",
    "training.crossval": "crossval",
    "training.loop": "train",
    "training.step": "init_state make_train_step",
    "training.trainer": "augmentation",
    "vocabulary.ontology": "Ontology",
    "vocabulary.vocabulary": "Vocabulary",
}
_MODULES = {name: f"{__name__}.{module}" for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted([*_MODULES, "load"])


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name == "load":  # A shorter name of load_tagger.
        return __getattr__("load_tagger")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_MODULES[name])
    return getattr(module, name, None) or importlib.import_module(f"{_MODULES[name]}.{name}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
