"""Parameters: declared once, checked, resolved from recipe and command line."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import _validate_model_name
from pydantic import ValidationError

from k400tiny_lib.config import (
    PARAMETERS,
    STEPS,
    Config,
    parameters_of,
    read_config,
    recipes,
    resolve,
)
from k400tiny_lib.config.mlproject import mlproject_text
from k400tiny_lib.config.recipes import load_recipe, recipe_names
from k400tiny_lib.config.search import RANGES, search_ranges
from k400tiny_lib.errors import UserError
from k400tiny_lib.models.architectures import ARCHITECTURES
from k400tiny_lib.training.resuming import IGNORED_ON_RESUME
from k400tiny_lib.workflow.cache import NOT_IN_CACHE_KEY

ROOT = Path(__file__).resolve().parents[2]
CONTRACT = {
    "prepare_data": "data_path gt_csv output_dir val_fraction test_fraction group_by seed",
    "train": "data_path annotations model weights num_classes clip_len resize_size crop_size "
    "batch_size num_workers num_epochs optimizer lr momentum weight_decay scheduler warmup_epochs "
    "label_smoothing dropout augmentation amp sync_bn ema_decay grad_accum_steps clip_grad_norm "
    "seed save_every checkpoint_dir resume load_model print_interval nproc_per_node nnodes "
    "node_rank rdzv_endpoint max_restarts",
    "evaluate": "data_path annotations checkpoint split num_clips num_crops batch_size num_workers",
    "export_onnx": "checkpoint weights registered_model_name opset tolerance quantize promote",
    "predict": "input model_uri top_k",
}


def test_mlproject_is_what_the_declared_parameters_generate() -> None:
    assert (ROOT / "MLproject").read_text() == mlproject_text()


@pytest.mark.parametrize("step", CONTRACT)
def test_every_contract_parameter_exists_in_its_step_and_in_main(step: str) -> None:
    names = set(CONTRACT[step].split())
    assert names <= set(STEPS[step].params)
    if step != "predict":
        handed_over = {"annotations", "checkpoint"}
        assert names - handed_over <= set(STEPS["main"].params)


def test_mlproject_declares_for_main_and_tune_only_what_no_recipe_sets() -> None:
    project = yaml.safe_load((ROOT / "MLproject").read_text())
    names = "recipe data_path gt_csv output_dir use_cache env_manager"
    assert " ".join(project["entry_points"]["main"]["parameters"]) == names
    names = names.replace("recipe", "recipe trials search storage")
    assert " ".join(project["entry_points"]["tune"]["parameters"]) == names
    for step in STEPS.keys() - {"main", "tune"}:
        assert list(project["entry_points"][step]["parameters"]) == list(STEPS[step].params)


def test_a_recipe_that_sets_what_only_the_user_knows_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "RECIPES", tmp_path)
    (tmp_path / "mine.yaml").write_text("output_dir: elsewhere")
    with pytest.raises(UserError, match=r"^recipe: mine sets output_dir\."):
        load_recipe("mine")


@pytest.mark.parametrize(
    ("step", "name"), [(step, name) for step in STEPS for name in STEPS[step].params]
)
def test_an_empty_value_is_refused_by_name(step: str, name: str) -> None:
    for empty in ("", "  "):
        with pytest.raises(UserError, match=f"^{name}: the value is empty"):
            resolve(step, {"input": "x", name: empty} if step == "predict" else {name: empty})


@pytest.mark.parametrize("name", ["team/model", "a:b", "..", ".", "..a", "k400 tiny", "ü", "a.b"])
@pytest.mark.parametrize("parameter", ["registered_model_name", "video_model_name"])
def test_a_model_name_is_refused_at_once_exactly_where_mlflow_refuses_it(
    name: str, parameter: str
) -> None:
    try:
        _validate_model_name(name)
    except MlflowException:
        with pytest.raises(UserError, match=f"^{parameter}: .*a name without / and :"):
            resolve("main", {parameter: name})
    else:
        assert getattr(resolve("main", {parameter: name}), parameter) == name


@pytest.mark.parametrize("step", ["main", "export_onnx", "predict", "promote"])
@pytest.mark.parametrize(
    "name", ["a/b", "a:b", "a?b", "a@b", "a\nb", "a\tb", "a\0b", "a\x7fb", "x" * 300, "ü" * 130]
)
@pytest.mark.parametrize("parameter", ["registered_model_name", "video_model_name"])
def test_a_name_that_no_model_uri_or_database_can_hold_is_refused_by_every_step(
    step: str, name: str, parameter: str
) -> None:
    if parameter not in STEPS[step].params:
        pytest.skip(f"{step} does not take it")
    needed = {"predict": {"input": "x"}, "promote": {"version": "1"}}.get(step, {})
    with pytest.raises(UserError, match=f"^{parameter}: .* is not allowed") as caught:
        resolve(step, needed | {parameter: name})
    assert "\n" not in str(caught.value)
    for fine in ("back\\slash", "50%", "k400 tiny", "x" * 250, "#1"):
        assert getattr(resolve(step, needed | {parameter: fine}), parameter) == fine


@pytest.mark.parametrize("name", ["o'brien", 'the "best"', "'", "`x`"])
@pytest.mark.parametrize("parameter", ["registered_model_name", "video_model_name"])
def test_a_new_model_gets_no_quotes_in_its_name_and_an_old_one_keeps_them(
    name: str, parameter: str
) -> None:
    for step in ("main", "export_onnx"):
        with pytest.raises(UserError, match=f"^{parameter}: .*has quotes"):
            resolve(step, {parameter: name})
    promoted = resolve("promote", {"version": "1", parameter: name})
    assert getattr(promoted, parameter) == name


@pytest.mark.parametrize(
    "names",
    [
        {"registered_model_name": "k400tiny-video-classifier-s3d"},
        {"registered_model_name": "k400tiny-video-classifier"},
        {"video_model_name": "k400tiny-x3d_s"},
        {"registered_model_name": "a", "video_model_name": "a"},
    ],
)
def test_an_export_refuses_one_name_for_both_models_before_it_reads_the_checkpoint(
    names: dict[str, str],
) -> None:
    with pytest.raises(UserError, match=r"^video_model_name: .*is the registered_model_name too"):
        resolve("export_onnx", names)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_has_a_model_name_of_its_own(architecture: str) -> None:
    config = resolve("main", {"model": architecture})
    assert config.registered_model_name == f"k400tiny-{architecture}"
    others = [resolve("main", {"model": other}) for other in ARCHITECTURES if other != architecture]
    assert config.video_model_name not in {other.video_model_name for other in others}
    assert resolve("main", {}).video_model_name == "k400tiny-video-classifier"
    given = resolve("main", {"model": architecture, "registered_model_name": "mine"})
    assert given.registered_model_name == "mine"


def test_weights_take_the_place_of_a_checkpoint_from_an_earlier_run() -> None:
    for step in ("evaluate", "export_onnx"):
        assert resolve(step, {}).checkpoint == "auto"
        config = resolve(step, {"weights": "R2Plus1D_18_Weights.KINETICS400_V1"})
        assert (config.checkpoint, config.annotations) == ("none", "auto")


def test_mlproject_placeholders_are_unquoted_and_match_the_parameters() -> None:
    project = yaml.safe_load((ROOT / "MLproject").read_text())
    for entry in project["entry_points"].values():
        assert '"' not in entry["command"]
        assert "'" not in entry["command"]
        for name in entry["parameters"]:
            assert f"--{name} {{{name}}}" in entry["command"]


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_default_is_allowed_as_text(name: str) -> None:
    parameter = PARAMETERS[name]
    assert parameter.help.endswith(".")
    typed = getattr(read_config({name: str(parameter.default)}), name)
    assert typed == getattr(Config(), name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lr", "a number above 0"),
        ("dropout", "a number from 0 below 1"),
        ("num_crops", "a whole number from 1 up to 3"),
        ("num_workers", "a whole number from 0 or auto"),
        ("clip_len", "a whole number from 1 or auto"),
        ("optimizer", "sgd or adamw"),
        ("channels_last", "True or False or auto"),
        ("seed", "a whole number from 0 up to 4294967295"),
        ("gt_csv", "text"),
    ],
)
def test_what_is_allowed_is_said_in_words(name: str, words: str) -> None:
    assert PARAMETERS[name].allowed == words


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lr", "abc"),
        ("lr", "0"),
        ("lr", "nan"),
        ("lr", "inf"),
        ("batch_size", "1.5"),
        ("batch_size", "0"),
        ("optimizer", "adam"),
        ("sync_bn", "maybe"),
        ("nproc_per_node", "all"),
        ("dropout", "1"),
        ("num_crops", "4"),
        ("val_fraction", "0"),
        ("crop_size", "7"),
        ("model", "resnet"),
        ("opset", "17"),
    ],
)
def test_a_wrong_value_is_refused_by_name_with_what_is_allowed(name: str, text: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve("main", {name: text})
    parameter = PARAMETERS[name]
    assert str(caught.value) == (
        f"{name}: {text!r} is not allowed. Needed: {parameter.allowed} "
        f"(default {parameter.default})."
    )


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("lr", "1e-3", 1e-3),
        ("nproc_per_node", "auto", "auto"),
        ("nproc_per_node", "4", 4),
        ("sync_bn", "true", True),
        ("sync_bn", "False", False),
        ("num_epochs", " 7 ", 7),
        ("optimizer", " adamw ", "adamw"),
        ("channels_last", "1", True),
        ("warmup_epochs", "2", 2.0),
    ],
)
def test_a_right_value_gets_its_type(name: str, text: str, value: object) -> None:
    typed = getattr(resolve("main", {name: text}), name)
    assert typed == value
    assert type(typed) is type(value)


def test_an_unknown_parameter_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"^num_epoch: .*Did you mean num_epochs\?"):
        resolve("main", {"num_epoch": "3"})


def test_an_explicit_value_beats_the_recipe_and_the_recipe_the_default() -> None:
    recipe = load_recipe("sample")
    assert recipe["num_epochs"] != PARAMETERS["num_epochs"].default
    resolved = resolve("main", {"recipe": "sample", "lr": "recipe", "num_epochs": "77"})
    assert resolved.num_epochs == 77
    assert resolved.lr == recipe["lr"]
    assert resolved.momentum == recipe.get("momentum", PARAMETERS["momentum"].default)


def test_the_default_value_given_explicitly_beats_the_recipe() -> None:
    default = PARAMETERS["num_epochs"].default
    assert resolve("main", {"recipe": "sample", "num_epochs": str(default)}).num_epochs == default


def test_main_takes_the_recipe_that_fits_the_data() -> None:
    assert resolve("main", {}).recipe == "sample"
    real = resolve("main", {"data_path": "frames", "gt_csv": "labels.csv"})
    assert real.recipe == "k400tiny"


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_holds_allowed_values_that_fit_together(name: str) -> None:
    resolve("main", {"recipe": name})


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"Did you mean k400tiny\?"):
        resolve("main", {"recipe": "k400tyni"})


@pytest.mark.parametrize(
    ("step", "texts", "name"),
    [
        ("main", {"crop_size": "200", "resize_size": "100"}, "crop_size"),
        ("main", {"val_fraction": "0.5", "test_fraction": "0.5"}, "val_fraction"),
        ("main", {"num_crops": "2"}, "num_crops"),
        ("main", {"nnodes": "2", "node_rank": "2"}, "node_rank"),
        ("export_onnx", {"checkpoint": "none"}, "checkpoint"),
        ("main", {"registered_model_name": "k400tiny-video-classifier"}, "video_model_name"),
        (
            "export_onnx",
            {"registered_model_name": "a", "video_model_name": "a"},
            "video_model_name",
        ),
        ("export_onnx", {"checkpoint": "a.pt", "weights": "b"}, "checkpoint"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(
    step: str, texts: dict[str, str], name: str
) -> None:
    with pytest.raises(UserError, match=f"^{name}: "):
        resolve(step, texts)


def test_parameters_survive_the_way_through_text() -> None:
    config = resolve("main", {})
    for step in ("prepare_data", "train"):
        texts = parameters_of(step, config) | {"annotations": "a.json"}
        texts = {k: v for k, v in texts.items() if k in STEPS[step].params}
        resolved = resolve(step, texts)
        for name in texts:
            if name != "annotations":
                assert getattr(resolved, name) == getattr(config, name)


def test_config_survives_the_way_through_json_and_through_a_checkpoint() -> None:
    config = Config(model="s3d", lr=0.123, nproc_per_node=2)
    assert Config.model_validate_json(config.model_dump_json()) == config
    assert Config(**config.to_dict()) == config


def test_a_change_is_checked_like_the_original() -> None:
    config = Config().replace(lr=0.5)
    assert (config.lr, config.momentum) == (0.5, Config().momentum)
    with pytest.raises(ValidationError):
        config.replace(lr=-1)
    with pytest.raises(ValidationError):
        config.replace(learning_rate=1)


def test_help_parameters_and_checks_need_neither_pytorch_nor_mlflow() -> None:
    code = "import sys, k400tiny_lib.config; print({'torch', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_only_what_cannot_change_a_result_is_left_out_of_cache_and_resume() -> None:
    without_effect = {name for name, p in PARAMETERS.items() if not p.affects_result}
    assert {"num_workers", "print_interval", "frame_cache", "save_every"} <= without_effect
    assert not without_effect & {"lr", "seed", "batch_size", "clip_len", "model", "quantize"}
    assert NOT_IN_CACHE_KEY - without_effect == {"data_path"}
    assert without_effect < IGNORED_ON_RESUME


@pytest.mark.parametrize("name", ["checkpoint_dir", "cache_dir"])
def test_directories_of_training_are_on_this_machine(name: str) -> None:
    needed = {"data_path": "x", "annotations": "y"}
    for uri in ("s3://bucket/ck", "gs://b/c", "memory://x", "dbfs:/x", "runs:/1/checkpoints"):
        for step in ("train", "main"):
            given = needed if step == "train" else {"data_path": "x"}
            with pytest.raises(UserError, match=rf"^{name}: {uri} is not a directory of this mach"):
                resolve(step, given | {name: uri})
    for path in ("ck/mine", "/ck", "C:/ck", "auto"):
        assert getattr(resolve("train", needed | {name: path}), name) == path
    for uri in ("file:///ck/mine", "file:/ck/mine"):
        assert getattr(resolve("train", needed | {name: uri}), name) == "/ck/mine"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"annotate": "True"}, "annotate: True without windows"),
        ({"stride_seconds": "1"}, r"stride_seconds: 1\.0 without windows"),
        ({"window_seconds": "2", "stride_seconds": "3"}, "stride_seconds: 3 leaves parts between"),
        ({"window_seconds": "9", "stride_seconds": "0.1"}, "more than 50 windows of 9 s overlap"),
        ({"window_seconds": "0.01"}, r"window_seconds: 0\.01 is about one frame"),
        ({"window_seconds": "-1"}, "window_seconds: '-1' is not allowed"),
        ({"window_seconds": "inf"}, "window_seconds: 'inf' is not allowed"),
    ],
)
def test_windows_that_make_no_sense_are_refused(texts: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve("predict", {"input": "x"} | texts)
    assert resolve("predict", {"input": "x", "window_seconds": "2", "stride_seconds": "2"})


@pytest.mark.parametrize("step", ["main", "tune"])
def test_a_recipe_is_a_name_or_a_file(step: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    # Values mean what they mean on the command line, whatever YAML would make of them.
    path.write_text("lr: 1e-3\namp: off\nsync_bn: true\nclip_len: auto # of the model\n")
    for recipe in (path, f"file://{path}"):
        config = resolve(step, {"recipe": str(recipe), "data_path": "x", "model": "x3d_s"})
        assert (config.lr, config.amp, config.sync_bn) == (1e-3, "off", True)
        assert config.clip_len == ARCHITECTURES["x3d_s"].clip_len
        assert config.recipe == str(recipe)
    assert resolve(step, {"recipe": str(path), "amp": "bf16"}).amp == "bf16"
    path.write_text("# only a comment")
    assert resolve(step, {"recipe": str(path)}).lr == PARAMETERS["lr"].default


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lr: abc", "sets lr: 'abc' is not allowed. Needed: a number above 0"),
        ("lr: 0", "sets lr: '0' is not allowed"),
        ("learning_rate: 1", "sets 'learning_rate', which is no parameter."),
        ("num_epoch: 1", "which is no parameter. Did you mean num_epochs?"),
        ("1: 2", "sets '1', which is no parameter."),
        ("data_path: x", "sets data_path. Needed: that it is given with -P."),
        ("annotations: x", "sets annotations. Needed: that it is given with -P."),
        ("search: lr", "sets search. Needed: that it is given with -P."),
        ("lr:", "sets lr: ''. Needed: a number above 0"),
        ("lr: [1, 2]", "sets lr: ['1', '2']. Needed: a number above 0"),
        ("- lr", "has no names. Needed: lines such as `lr: 0.01`."),
        ("lr 0.1", "has no names"),
        ("lr: 1\n\tmomentum: 2", "is no YAML (found character '\\\\t'"),
        ("lr: {", "is no YAML (expected"),
        ("? [1]\n: 2", "is no YAML (found unhashable key in line 1)"),
        ("lr: &a *a", "is no YAML"),
        ("lr: 1\n---\nlr: 2", "is no YAML (but found another document in line 2)"),
        (b"lr: \xff", "is no YAML"),
        (b"\0\1\2", "is no YAML"),
    ],
)
def test_a_broken_recipe_is_refused_in_one_line_that_names_the_file(
    content: str | bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        resolve("main", {"recipe": str(path)})
    assert str(caught.value).startswith(f"recipe: {path} ")
    assert message.replace("\\\\", "\\") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.yaml", "./missing", "folder/", "folder/missing.yml"])
def test_a_recipe_that_is_not_there_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=f"^recipe: {name} .*Needed: a YAML file"):
        resolve("main", {"recipe": name})


@pytest.mark.parametrize("name", RANGES)
def test_what_tune_tries_is_allowed(name: str) -> None:
    for value in RANGES[name].ends:
        typed = getattr(read_config({name: str(value)}), name)
        assert typed in RANGES[name]
        assert typed == value
    assert f"{name} (" not in RANGES[name].text


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"search": "lr, weight_decay", "lr": "0.1"}, r"search: lr is also fixed \(-P lr=0.1\)"),
        ({"weight_decay": "0.1"}, "search: weight_decay is also fixed"),
        ({"search": "batch_size"}, "search: batch_size has no range. Needed: some of dropout, "),
        ({"search": "lr,momentun"}, r"search: momentun is no parameter. Did you mean momentum\?"),
        ({"search": " , "}, "search: ',' names nothing. Needed: some of "),
        ({"search": "lr\n"}, None),
        ({"search": "freeze_epochs"}, "freeze_epochs: 5, but the backbone starts from scratch"),
        ({"search": "augmentation", "batch_size": "1"}, "batch_size: 1, but augmentation=strong"),
        ({"resume": "auto"}, "resume: auto, but every trial starts anew"),
        (
            {"nnodes": "2", "rdzv_endpoint": "host:29500"},
            "nnodes: 2, but a trial trains on one machine",
        ),
        ({"trials": "0"}, "trials: '0' is not allowed"),
        ({"recipe": "nosuch"}, "recipe: there is no 'nosuch'"),
        ({"num_clips": "3"}, "num_clips: tune has no such parameter"),
    ],
)
def test_what_tune_cannot_search_is_refused_at_once(
    texts: dict[str, str], message: str | None
) -> None:
    if message is None:
        resolve("tune", texts)
        return
    with pytest.raises(UserError, match=f"^{message}"):
        resolve("tune", texts)


def test_tune_takes_what_prepare_data_and_train_take_and_fixed_values_beat_the_recipe() -> None:
    taken = {*STEPS["prepare_data"].params, *STEPS["train"].params} - {"annotations"}
    assert taken | {"recipe", "trials", "search", "storage"} <= set(STEPS["tune"].params)
    given = {"recipe": "sample", "momentum": "0.5", "lr": "recipe", "search": "lr,lr,dropout"}
    config = resolve("tune", given)
    assert (config.momentum, config.lr) == (0.5, load_recipe("sample")["lr"])
    assert list(search_ranges(config.search)) == ["dropout", "lr"]
