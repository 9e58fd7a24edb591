"""Settings of a run: validation and its messages, JSON, differences, and the recipes in configs/."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import runpy
from pathlib import Path

import pytest

import psla_jax
from psla_jax.config import (
    FREE_FIELDS,
    AggregationConfig,
    ConfigError,
    DataConfig,
    DistributedConfig,
    FrontendConfig,
    ModelConfig,
    OptimizerConfig,
    PretrainingConfig,
    RunConfig,
    SamplingConfig,
    ShareConfig,
    differences,
    flatten,
    from_json,
    to_json,
)
from psla_jax.config_distill import DistillConfig

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SECTIONS = {
    "data": DataConfig,
    "frontend": FrontendConfig,
    "model": ModelConfig,
    "pretraining": PretrainingConfig,
    "sampling": SamplingConfig,
    "optimizer": OptimizerConfig,
    "distill": DistillConfig,
    "aggregation": AggregationConfig,
    "distributed": DistributedConfig,
}
NAN = float("nan")

REFUSED = [
    ("frontend.target_length", 0, "use at least 1 frame"),
    ("frontend.std", 0.0, "use a positive standard deviation"),
    ("frontend.std", NAN, "use a positive standard deviation"),
    ("frontend.mean", NAN, "use a finite number"),
    ("frontend.mean", "measured", "use a finite number, or auto"),
    ("frontend.sample_rate", 999, "use 1000 to 1000000 samples per second"),
    ("frontend.num_mels", 0, "use at least one mel bin"),
    ("frontend.num_mels", 1000, "513 of the mel filters would be empty"),
    ("frontend.hop", 0.0, "use milliseconds, of 1 sample or more"),
    ("frontend.hop", NAN, "use milliseconds, of 1 sample or more"),
    ("frontend.window", 0.99, "use milliseconds, 16 samples or more"),
    ("frontend.window", 5000.0, "use milliseconds, 16 samples or more and at most 4096 ms at 16000 Hz"),
    ("frontend.low_hz", -1.0, "use 0 or more"),
    ("frontend.low_hz", 8000.0, "use 0 or more, and less than the upper edge of 8000 Hz"),
    ("frontend.high_hz", 8000.5, "use at most 8000 Hz, half of frontend.sample_rate"),
    ("model.padding", "same", "choose one of symmetric, static"),
    ("model.batch_norm", "global", "choose one of synchronised, local"),
    ("model.heads", 0, "use at least one head, or model.pooling mean"),
    ("model.drop_connect", -0.1, "use a rate in [0, 1)"),
    ("model.drop_connect", 1.0, "use a rate in [0, 1)"),
    ("pretraining.stem", "mean", "choose sum or random"),
    ("pretraining.head", "old", "choose match or new"),
    ("pretraining.freeze", True, "name the weights of the backbone"),
    ("pretraining.backbone_rate", 0.0, "use a positive factor"),
    ("data.channel", "left", "choose one of mean, first"),
    ("data.batch_size", 0, "use at least one clip"),
    ("data.workers", -1, "use 0 or more processes"),
    ("data.threads", 0, "use at least one thread"),
    ("data.preflight", -1, "use 0 or more clips"),
    ("data.unreadable", "ignore", "choose stop or skip"),
    ("data.edited", "ignore", "choose stop or accept"),
    ("sampling.mixup", -0.1, "use a probability in [0, 1]"),
    ("sampling.mixup", 1.1, "use a probability in [0, 1]"),
    ("sampling.mixup", NAN, "use a probability in [0, 1]"),
    ("sampling.freq_mask", -1, "use 0 or more mel bins"),
    ("sampling.time_mask", -1, "use 0 or more frames"),
    ("optimizer.learning_rate", 0.0, "use a positive rate"),
    ("optimizer.learning_rate", NAN, "use a positive rate"),
    ("optimizer.epochs", 0, "train for at least one epoch"),
    ("optimizer.warmup_steps", -1, "use 0 or more steps"),
    ("optimizer.decay_start", 0, "use epoch 1 or later"),
    ("optimizer.decay_every", 0, "use at least one epoch"),
    ("optimizer.decay", 0.0, "use a factor in (0, 1]"),
    ("optimizer.decay", 1.5, "use a factor in (0, 1]"),
    ("optimizer.weight_decay", -1e-9, "use 0 or more"),
    ("optimizer.accumulate", 0, "use at least one microbatch"),
    ("optimizer.nonfinite", "ignore", "choose stop or skip"),
    ("optimizer.patience", -1, "use 0 or more epochs"),
    ("optimizer.rates", ("effnet.*",), "give pattern=factor, factor >= 0"),
    ("optimizer.rates", ("effnet.*=fast",), "give pattern=factor, factor >= 0"),
    ("optimizer.rates", ("effnet.*=-1",), "give pattern=factor, factor >= 0"),
    ("optimizer.clip", -1.0, "use a positive norm, or 0 for none"),
    ("optimizer.clip", NAN, "use a positive norm, or 0 for none"),
    ("optimizer.ema", 1.0, "use a decay in [0, 1), such as 0.999"),
    ("optimizer.ema", -0.1, "use a decay in [0, 1), such as 0.999"),
    ("optimizer.label_smoothing", 1.0, "use a share in [0, 1)"),
    ("optimizer.precision", "float16", "choose one of highest, tf32, bf16"),
    ("distill.segments", 0.05, "use 0.1 s or more, or 0"),
    ("distill.consistency", -1.0, "use 0 or a positive weight"),
    ("distill.weight", 0.0, "use a weight in (0, 1]"),
    ("distill.temperature", NAN, "use a positive number"),
    ("distill.clips", (), "name an array or a file"),
    ("aggregation.first", 0, "epochs are counted from 1"),
    ("aggregation.last", 15, "use 16 (aggregation.first) or later, or 0 for the last epoch"),
    ("distributed.processes", 0, "use 1 or more"),
    ("distributed.index", 1, "use 0 to 0 with distributed.processes 1"),
    ("distributed.timeout", 4, "use 5 seconds or more"),
    ("distributed.meeting", 0, "use 1 second or more"),
    ("distributed.coordinator", "first", "use host:port"),
    ("checkpoint_minutes", -1.0, "use 0 or more"),
    ("checkpoint_minutes", NAN, "use 0 or more"),
    ("distill.weight", 0.0, "use a weight in (0, 1]"),
    ("distill.weight", 1.5, "use a weight in (0, 1]"),
    ("distill.temperature", 0.0, "use a positive number"),
    ("distill.clips", (), "name an array or a file"),
    ("distill.segments", 0.01, "use 0.1 s or more, or 0"),
    ("distill.consistency", -1.0, "use 0 or a positive weight"),
    ("seed", -1, "use 0 or a positive number"),
    ("checkpoint_every", -1, "use 0 or more steps"),
    ("profile", -1, "use 0 or more steps"),
    ("bootstrap", -1, "use 0 or more resamples"),
    ("select", "lwlrap", "name the set that selects the best epoch with data.validation, or leave it empty"),
]

AT_THE_EDGE = [
    *[("frontend.mean", "auto"), ("frontend.std", "auto"), ("frontend.high_hz", 8000), ("frontend.window", 15)],
    *[("frontend.target_length", 1), ("frontend.std", 1e-9), ("model.heads", 1), ("model.drop_connect", 0)],
    *[("model.drop_connect", 0.999), ("data.batch_size", 1), ("data.workers", 0), ("data.preflight", 0)],
    *[("sampling.mixup", 0), ("sampling.mixup", 1), ("sampling.freq_mask", 0), ("sampling.freq_mask", 128)],
    *[("sampling.time_mask", 0), ("optimizer.epochs", 1), ("optimizer.warmup_steps", 0), ("optimizer.decay", 1)],
    *[("optimizer.decay_start", 1), ("optimizer.decay_every", 1), ("optimizer.weight_decay", 0)],
    *[("optimizer.accumulate", 1), ("aggregation.first", 1), ("aggregation.last", 16)],
    *[("seed", 0), ("checkpoint_every", 0), ("profile", 0), ("bootstrap", 0)],
]

ACROSS_SECTIONS = [
    (
        {"optimizer": OptimizerConfig(epochs=20), "aggregation": AggregationConfig(first=5, last=21)},
        "aggregation.last is 21: the run ends after epoch 20 (optimizer.epochs); average epochs up to that one.",
    ),
    (
        {"optimizer": OptimizerConfig(patience=3)},
        "optimizer.patience is 3: name the set that decides when training ends with data.validation, or use 0.",
    ),
    (
        {"distill": DistillConfig(consistency=1.0), "sampling": SamplingConfig(spectrogram=("mixup",))},
        "distill.consistency is 1.0: its two views would be mixes of different clips: mix waveforms, with "
        "sampling.waveform mixup.",
    ),
    (
        {"data": DataConfig(batch_size=10), "optimizer": OptimizerConfig(accumulate=4)},
        "optimizer.accumulate is 4: use a divisor of data.batch_size, 10.",
    ),
    (
        {"frontend": FrontendConfig(target_length=100), "sampling": SamplingConfig(time_mask=101)},
        "sampling.time_mask is 101: use at most frontend.target_length, 100 frames.",
    ),
    (
        {"frontend": FrontendConfig(num_mels=64), "sampling": SamplingConfig(freq_mask=65)},
        "sampling.freq_mask is 65: use at most frontend.num_mels, 64 mel bins.",
    ),
]

CHANGED = RunConfig(
    run_dir="runs/Grüße",
    seed=7,
    data=DataConfig("a.json", "l.csv", "b.json", "c.json", 12, 5, 3, "first", 9, "skip", "accept", True),
    frontend=FrontendConfig(500, -1.25, 0.1, 32_000, 64, 12.5, 32.0, 50.0, 14_000.0),
    model=ModelConfig("tiny:build", "mean", 2, "static", 0.3, "local"),
    pretraining=PretrainingConfig("imagenet", "random", "new", True, 0.5),
    sampling=SamplingConfig(
        balanced=False,
        mixup=0.25,
        freq_mask=3,
        time_mask=5,
        noise=True,
        waveform=("gain(decibels=3)", "mixup"),
        spectrogram=("patchout",),
    ),
    optimizer=OptimizerConfig(
        name="adamw(b2=0.98)",
        schedule="cosine",
        learning_rate=3e-4,
        epochs=6,
        warmup_steps=10,
        decay_start=2,
        decay_every=3,
        decay=0.1,
        weight_decay=1e-6,
        no_decay=("*.bias",),
        rates=("effnet.*=0.1", "attention.*=2"),
        clip=1.5,
        ema=0.99,
        loss="ce",
        label_smoothing=0.1,
        class_weights="sqrt",
        accumulate=3,
        precision="bf16",
        remat=True,
        nonfinite="skip",
        patience=2,
    ),
    distill=DistillConfig("t.npz", (), 0.5, 2.0, True, "logits", ("ids",), "classes", 2.0, 0.5),
    aggregation=AggregationConfig(2, 4, False),
    distributed=DistributedConfig(4, 3, "first:1234", 30, 20),
    checkpoint_every=50,
    checkpoint_minutes=2.5,
    profile=3,
    bootstrap=20,
    metrics=("lwlrap", "macro_f1(threshold=0.3)"),
    select="lwlrap",
    log=("tensorboard", "wandb(project='mine')"),
)
EXCLUDED = {"distill.model"}
"""A config in which no field has its default value, except those that others exclude."""


def make(name: str, value: object) -> object:
    """Returns the section, or the RunConfig for a field without one, with one field set to `value`."""
    section, _, field = name.rpartition(".")
    return SECTIONS[section](**{field: value}) if section else RunConfig(**{field: value})


@pytest.mark.parametrize(("name", "value", "remedy"), REFUSED)
def test_a_refusal_names_the_field_its_value_and_the_remedy(name, value, remedy):
    with pytest.raises(ConfigError) as raised:
        make(name, value)
    message = str(raised.value)
    assert message.startswith(f"{name} is {value!r}: {remedy}")
    assert message.endswith(".")
    assert not message.endswith("..")
    assert "\n" not in message


@pytest.mark.parametrize(("sections", "message"), ACROSS_SECTIONS)
def test_a_refusal_names_both_fields_that_do_not_go_together(sections, message):
    with pytest.raises(ConfigError) as raised:
        RunConfig(**sections)
    assert str(raised.value) == message


def test_one_teacher_is_stored_or_scores_in_the_step():
    with pytest.raises(ConfigError, match=r"distill\.model is \('runs/a',\): use either this or distill\.teacher\.$"):
        DistillConfig(teacher="scores.npz", model=("runs/a",))


def test_every_validated_field_has_a_refused_value():
    prefixes = {RunConfig: "", ShareConfig: "distributed.", **{kind: f"{name}." for name, kind in SECTIONS.items()}}
    calls = re.compile(r'\b_?require\w*\(\s*self,\s*"(\w+)"|require_sample_rate\(self\.(\w+)')
    found = lambda kind: ["".join(groups) for groups in calls.findall(inspect.getsource(kind))]  # noqa: E731
    validated = {prefix + name for kind, prefix in prefixes.items() for name in found(kind)}
    assert validated == {name for name, _, _ in REFUSED} | EXCLUDED


@pytest.mark.parametrize(("name", "value"), AT_THE_EDGE)
def test_a_value_at_the_edge_is_taken(name, value):
    assert getattr(make(name, value), name.rpartition(".")[2]) == value


def test_ingredients_are_recorded_as_text_and_named_if_they_cannot_be():
    assert RunConfig(metrics=[inspect.getsource, "lwlrap"]).metrics == ("inspect:getsource", "lwlrap")
    with pytest.raises(
        ConfigError, match=r"^metrics: .*<lambda>.* cannot be imported as .*: define it at the top level"
    ):
        RunConfig(metrics=(lambda scores, labels: 0.0,))
    with pytest.raises(ConfigError, match=r"^log: 'wandb\(1\)' cannot be parsed: give a name or module:callable"):
        RunConfig(log=("wandb(1)",))


def test_fields_that_just_go_together_are_taken():
    RunConfig(optimizer=OptimizerConfig(epochs=20), aggregation=AggregationConfig(first=20, last=20))
    RunConfig(data=DataConfig(batch_size=10), optimizer=OptimizerConfig(accumulate=5))
    RunConfig(frontend=FrontendConfig(target_length=100), sampling=SamplingConfig(time_mask=100))


def test_a_config_error_is_a_value_error():
    assert issubclass(ConfigError, ValueError)


def test_a_config_cannot_be_changed_and_a_changed_copy_is_checked_again():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().seed = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().optimizer.epochs = 1
    with pytest.raises(ConfigError, match=r"aggregation\.first is 16: the run ends after epoch 3"):
        dataclasses.replace(RunConfig(), optimizer=OptimizerConfig(epochs=3))


def test_flatten_gives_every_field_its_name_on_the_command_line():
    flat = flatten(CHANGED)
    names = {f"{section}.{f.name}" for section, kind in SECTIONS.items() for f in dataclasses.fields(kind)}
    execution = {"run_dir", "seed", "checkpoint_every", "checkpoint_minutes", "profile", "bootstrap"}
    assert set(flat) == names | execution | {"metrics", "select", "log"}
    assert flat["optimizer.learning_rate"] == 3e-4
    assert flat["seed"] == 7


def test_json_brings_back_every_field():
    before, after = flatten(RunConfig()), flatten(CHANGED)
    assert [name for name in after if after[name] == before[name]] == [*EXCLUDED]
    assert from_json(to_json(CHANGED)) == CHANGED
    assert from_json(to_json(RunConfig())) == RunConfig()


def test_the_json_is_plain_sections_and_fields():
    text = to_json(CHANGED)
    values = json.loads(text)
    assert values["run_dir"] == "runs/Grüße"
    assert values["optimizer"]["loss"] == "ce"
    assert set(values) == {f.name for f in dataclasses.fields(RunConfig)}
    assert text.endswith("}\n")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ('{"seed": 1', "delimiter"),
        ("[1]", "list"),
        ('{"sead": 1}', "sead"),
        ('{"optimizer": {"rate": 1}}', "rate"),
        ('{"optimizer": 3}', "mapping"),
        ('{"seed": "one"}', "str"),
        ('{"seed": -1}', "seed is -1: use 0 or a positive number"),
        ('{"data": {"workers": -2}}', "data.workers is -2: use 0 or more processes"),
    ],
)
def test_text_that_is_no_config_is_refused_with_the_reason(text, reason):
    with pytest.raises(ConfigError) as raised:
        from_json(text)
    assert str(raised.value).startswith("this is not the config of a run: ")
    assert reason in str(raised.value)


def test_equal_configs_have_no_differences():
    assert differences(CHANGED, from_json(to_json(CHANGED))) == []


def test_a_difference_names_the_field_and_both_values():
    old = RunConfig()
    new = dataclasses.replace(old, seed=3, model=ModelConfig(padding="static"))
    assert differences(old, new) == ["seed: 0 -> 3", "model.padding: 'symmetric' -> 'static'"]
    assert differences(new, old) == ["seed: 3 -> 0", "model.padding: 'static' -> 'symmetric'"]


def test_only_fields_without_effect_on_the_results_are_free():
    reported = {line.partition(":")[0] for line in differences(RunConfig(), CHANGED)}
    assert reported == set(flatten(CHANGED)) - FREE_FIELDS - EXCLUDED
    assert set(flatten(CHANGED)) >= FREE_FIELDS
    paths = {"data.train", "data.validation", "data.evaluation", "data.labels"}
    execution = {"run_dir", "checkpoint_every", "checkpoint_minutes", "profile"} | {
        "data.workers",
        "data.threads",
        "data.preflight",
    }
    recovery = {"data.unreadable", "data.edited", "optimizer.nonfinite"}
    processes = {f"distributed.{field.name}" for field in dataclasses.fields(DistributedConfig)}
    end = {"optimizer.patience", "aggregation.first", "aggregation.last", "bootstrap", "select", "log"}
    assert paths | execution | recovery | processes | end == FREE_FIELDS


def test_the_number_of_epochs_may_grow():
    short, long = (RunConfig(optimizer=OptimizerConfig(epochs=epochs)) for epochs in (30, 40))
    assert differences(short, long) == []
    assert differences(long, short) == ["optimizer.epochs: 40 -> 30"]


# ---- The recipes -----------------------------------------------------------------------------------------------------

EVERY_RECIPE = {
    "model.name": "efficientnet-b2",
    "model.pooling": "attention",
    "model.heads": 4,
    "model.padding": "symmetric",
    "model.drop_connect": 0.2,
    "pretraining.source": "imagenet",
    "frontend.mean": -4.6476,
    "frontend.std": 4.5699,
    "sampling.mixup": 0.5,
    "sampling.freq_mask": 48,
    "sampling.time_mask": 192,
    "optimizer.warmup_steps": 1000,
    "optimizer.decay": 0.5,
    "optimizer.decay_every": 5,
    "optimizer.weight_decay": 5e-7,
    "optimizer.loss": "auto",  # binary cross-entropy, as the datafiles do not declare exclusive classes
}
COLUMNS = (
    *("optimizer.learning_rate", "data.batch_size", "optimizer.epochs", "optimizer.decay_start"),
    *("aggregation.first", "aggregation.last", "frontend.target_length", "sampling.balanced"),
)
RECIPES = {
    "audioset_full": (1e-4, 100, 30, 10, 16, 0, 1056, True),
    "audioset_balanced": (1e-3, 100, 60, 35, 41, 0, 1056, False),
    "fsd50k": (5e-4, 24, 40, 10, 21, 0, 3000, True),
}
"""Published settings, in the order of COLUMNS; the weight average ends with the last epoch."""


def run_file(name: str) -> dict:
    return runpy.run_path(str(CONFIGS / f"{name}.py"))


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.py")))
def test_a_config_file_gives_a_run_of_its_own_and_says_how_to_start_it(name):
    module = run_file(name)
    assert isinstance(module["config"], RunConfig)
    assert module["config"].run_dir == f"runs/{name}"
    assert f"psla train {name}" in module["__doc__"]
    assert from_json(to_json(module["config"])) == module["config"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_published_numbers(name):
    flat = flatten(run_file(name)["config"])
    expected = {**EVERY_RECIPE, **dict(zip(COLUMNS, RECIPES[name], strict=True))}
    assert {key: flat[key] for key in expected} == expected
    assert flat["data.train"]
    assert flat["data.evaluation"]
    assert flat["data.labels"]


def test_only_fsd50k_has_a_validation_set():
    assert {name for name in RECIPES if run_file(name)["config"].data.validation} == {"fsd50k"}


def test_the_defaults_are_the_recipe_of_full_audioset():
    recipe = run_file("audioset_full")["config"]
    # differences() ignores data paths and loading options.
    assert differences(RunConfig(), recipe) == ["pretraining.source: '' -> 'imagenet'"]


def test_the_demo_needs_no_file_and_no_network():
    config = run_file("demo")["config"]
    data = config.data
    assert all(name.startswith("demo:") for name in (data.train, data.validation, data.evaluation, data.labels))
    assert config.pretraining.source == ""


def test_settings_are_changed_by_their_names_on_the_command_line():
    changes = {"seed": 3, "optimizer.epochs": 5, "optimizer.learning_rate": 1e-3, "aggregation.first": 4}
    config = psla_jax.read_config("demo", changes)
    before, after = flatten(psla_jax.read_config("demo")), flatten(config)
    assert {name: value for name, value in after.items() if before[name] != value} == changes
    distill = psla_jax.DistillConfig(teacher="scores.npz")
    assert psla_jax.with_settings(config, {"distill": distill, "distill.weight": 0.5}).distill.weight == 0.5
    assert psla_jax.with_settings(config, {}) == config


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("optimizer.lerning_rate", 1, r"there is no setting optimizer\.lerning_rate: psla train CONFIG --help lists"),
        ("optimiser.epochs", 1, r"there is no setting optimiser\.epochs: "),
        ("seed.x", 1, r"there is no setting seed\.x: "),
        ("optimizer.epochs", 0, r"optimizer\.epochs is 0: train for at least one epoch"),
        ("aggregation.first", 31, r"aggregation\.first is 31: the run ends after epoch 30"),
    ],
)
def test_a_setting_that_does_not_exist_or_is_invalid_is_named(name, value, message):
    with pytest.raises(ConfigError, match=message):
        psla_jax.read_config("demo", {name: value})
