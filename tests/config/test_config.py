"""Parameters: declared once, checked, settled from recipe and command line."""

from pathlib import Path

import pytest
import yaml

from k400tiny_lib.config import STEPS, Config, parameters_of, resolve
from k400tiny_lib.config.mlproject import mlproject_text
from k400tiny_lib.config.parameters import FIELDS, allowed, parse, rule
from k400tiny_lib.config.recipes import load_recipe, recipe_names
from k400tiny_lib.errors import UserError

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


def test_mlproject_placeholders_are_unquoted_and_match_the_parameters() -> None:
    project = yaml.safe_load((ROOT / "MLproject").read_text())
    for entry in project["entry_points"].values():
        assert '"' not in entry["command"]
        assert "'" not in entry["command"]
        for name in entry["parameters"]:
            assert f"--{name} {{{name}}}" in entry["command"]


@pytest.mark.parametrize("name", FIELDS)
def test_every_default_is_allowed_by_its_own_rule(name: str) -> None:
    default = FIELDS[name].default
    assert rule(name).help.endswith(".")
    if default != "":
        assert parse(name, str(default)) == default


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
    ],
)
def test_a_wrong_value_is_refused_by_name_with_what_is_allowed(name: str, text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(name, text)
    assert str(caught.value).startswith(f"{name}: {text!r}")
    assert allowed(name) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("lr", "1e-3", 1e-3),
        ("nproc_per_node", "auto", "auto"),
        ("nproc_per_node", "4", 4),
        ("sync_bn", "true", True),
        ("sync_bn", "False", False),
        ("num_epochs", " 7 ", 7),
    ],
)
def test_a_right_value_gets_its_type(name: str, text: str, value: object) -> None:
    assert parse(name, text) == value


def test_an_unknown_parameter_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"^num_epoch: .*Did you mean num_epochs\?"):
        resolve("main", {"num_epoch": "3"})


def test_an_explicit_value_beats_the_recipe_and_the_recipe_the_default() -> None:
    recipe = load_recipe("sample")
    assert recipe["num_epochs"] != FIELDS["num_epochs"].default
    settled = resolve("main", {"recipe": "sample", "lr": "recipe", "num_epochs": "77"})
    assert settled.num_epochs == 77
    assert settled.lr == recipe["lr"]
    assert settled.momentum == recipe.get("momentum", FIELDS["momentum"].default)


def test_the_default_value_given_explicitly_beats_the_recipe() -> None:
    default = FIELDS["num_epochs"].default
    assert resolve("main", {"recipe": "sample", "num_epochs": str(default)}).num_epochs == default


def test_main_takes_the_recipe_that_fits_the_data() -> None:
    assert resolve("main", {}).recipe == "sample"
    own = resolve("main", {"data_path": "frames", "gt_csv": "labels.csv"})
    assert own.recipe == "k400tiny"


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_holds_allowed_values_that_fit_together(name: str) -> None:
    resolve("main", {"recipe": name})


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"Did you mean k400tiny\?"):
        resolve("main", {"recipe": "k400tyni"})


@pytest.mark.parametrize(
    ("step", "given", "name"),
    [
        ("main", {"crop_size": "200", "resize_size": "100"}, "crop_size"),
        ("main", {"val_fraction": "0.5", "test_fraction": "0.5"}, "val_fraction"),
        ("main", {"num_crops": "2"}, "num_crops"),
        ("main", {"nnodes": "2", "node_rank": "2"}, "node_rank"),
        ("train", {"data_path": "x"}, "annotations"),
        ("export_onnx", {}, "checkpoint"),
        ("export_onnx", {"checkpoint": "a.pt", "weights": "b"}, "checkpoint"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(
    step: str, given: dict[str, str], name: str
) -> None:
    with pytest.raises(UserError, match=f"^{name}: "):
        resolve(step, given)


def test_parameters_survive_the_way_through_text() -> None:
    config = resolve("main", {})
    for step in ("prepare_data", "train"):
        text = parameters_of(step, config) | {"annotations": "a.json"}
        given = {k: v for k, v in text.items() if k in STEPS[step].params}
        settled = resolve(step, given)
        for name in given:
            if name != "annotations":
                assert getattr(settled, name) == getattr(config, name)


def test_config_survives_the_way_through_json() -> None:
    config = Config().replace(lr=0.123, nproc_per_node=2)
    assert Config.from_json(config.to_json()) == config
