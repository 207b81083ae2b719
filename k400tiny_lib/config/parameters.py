"""Every parameter of every step, declared once: type, range, default, help.

A parameter of the same name means the same thing in every step. The click options, `--help` and
`MLproject` all follow from the fields of `Config`; nothing else repeats them.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

from k400tiny_lib.config.geometry import CLIP_SIZES
from k400tiny_lib.errors import UserError


@dataclass(frozen=True)
class Rule:
    """What a parameter accepts, beside the type of its default.

    Attributes:
        help: one sentence for `--help` and the documentation.
        low, high: inclusive bounds of a number.
        above, below: exclusive bounds of a number.
        choices: the only values accepted.
        words: words accepted where otherwise a number is expected ("auto").
    """

    help: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


def _param(default: Any, help: str, **rule: Any) -> Any:
    return dataclasses.field(default=default, metadata={"rule": Rule(help, **rule)})


ARCHITECTURES = tuple(CLIP_SIZES)
AUTO = "auto"
NONE = "none"


@dataclass(frozen=True)
class Config:
    """The parameters of a step, typed and checked; those it does not take keep their default."""

    # --- data -----------------------------------------------------------------------------------
    data_path: str = _param(
        "sample",
        "Directory or URI with frame folders or videos, named by gt_csv or in one folder per "
        "class; `sample` to render one.",
    )
    gt_csv: str = _param(
        NONE,
        "Ground truth, a path or URI: folder_name,youtube_id,label or file,label[,youtube_id] or "
        "the list of Kinetics; `none` for class folders and the sample.",
    )
    output_dir: str = _param(
        "data", "Directory or URI for what prepare_data renders and decodes, and what it knows."
    )
    val_fraction: float = _param(
        0.1, "Share of the clips held out for validation.", above=0, below=1
    )
    test_fraction: float = _param(
        0.1, "Share of the clips held out for the test.", above=0, below=1
    )
    group_by: str = _param(
        "youtube_id",
        "CSV column whose values never stand in two splits, or `none` to split single clips.",
    )
    use_official_splits: bool = _param(
        True, "Keep the splits that a column `split` of gt_csv names, rather than draw new ones."
    )
    on_bad_clip: str = _param(
        "drop", "Bad clips: leave them out and say why, or stop.", choices=("drop", "fail")
    )
    decode_workers: int | str = _param(
        AUTO, "Processes that decode videos; `auto` is one per core.", low=1, words=(AUTO,)
    )
    dask_scheduler: str = _param(
        NONE,
        "Dask scheduler (tcp://host:port) whose workers decode videos, `none` for this machine; "
        "prepare_data also takes it as `scheduler`.",
    )
    annotations: str = _param(NONE, "annotations.json: a path or an artifact URI (runs:/...).")
    split: str = _param("test", "Split to evaluate.", choices=("train", "val", "test"))
    # --- clips ----------------------------------------------------------------------------------
    # Whole numbers once `resolve` has settled them.
    clip_len: int = _param(
        AUTO, "Frames of a clip; `auto` is the model's own.", low=1, words=(AUTO,)
    )
    resize_size: int = _param(
        AUTO,
        "Short side of the resized frames, in pixels; `auto` is the model's own.",
        low=8,
        words=(AUTO,),
    )
    crop_size: int = _param(
        AUTO, "Side of the crop, in pixels; `auto` is the model's own.", low=8, words=(AUTO,)
    )
    augmentation: str = _param(
        "flip",
        "Augmentation of training clips; `standard` adds crops and colours to the flip, `strong` "
        "RandAugment and MixUp/CutMix to these.",
        choices=("none", "flip", "standard", "strong"),
    )
    no_flip_classes: str = _param(
        NONE, "Labels, separated by commas, whose clips are never mirrored; `none` for no label."
    )
    frame_cache: str = _param(
        AUTO,
        "Where frames come from: `none` decodes the image files each time, `packed` decodes them "
        "once into mapped files, `auto` does so if they fit the free disk twice.",
        choices=(NONE, "packed", AUTO),
    )
    cache_dir: str = _param(".k400tiny/frames", "Where packed frames are kept, named by content.")
    batch_size: int = _param(16, "Clips per batch and process.", low=1)
    num_workers: int | str = _param(
        AUTO,
        "Loader processes per training process; `auto` follows the cores.",
        low=0,
        words=(AUTO,),
    )
    # --- model ----------------------------------------------------------------------------------
    model: str = _param("r2plus1d_18", "Architecture.", choices=ARCHITECTURES)
    weights: str = _param(
        NONE, "torchvision weights (R2Plus1D_18_Weights.KINETICS400_V1), or `none` for scratch."
    )
    load_model: str = _param(
        NONE, "Checkpoint to start from: a path or an artifact URI; `none` for no checkpoint."
    )
    num_classes: int | str = _param(
        AUTO,
        "Size of the head; `auto` is the number of the data's categories.",
        low=1,
        words=(AUTO,),
    )
    dropout: float = _param(0.0, "Dropout before the head.", low=0, below=1)
    # --- optimisation ---------------------------------------------------------------------------
    num_epochs: int = _param(30, "Passes over the training clips.", low=1)
    patience: int = _param(
        0, "Epochs without a better val_acc1 after which training stops; 0 for never.", low=0
    )
    freeze_epochs: int = _param(
        0, "First epochs of fine-tuning in which only the head learns.", low=0
    )
    optimizer: str = _param("sgd", "Optimizer.", choices=("sgd", "adamw"))
    lr: float = _param(0.01, "Peak learning rate.", above=0)
    lr_batch_size: int = _param(
        0,
        "Clips per update that lr is stated for; lr is scaled to the actual number, 0 leaves it.",
        low=0,
    )
    momentum: float = _param(0.9, "Momentum of SGD (Nesterov above 0).", low=0, below=1)
    weight_decay: float = _param(
        1e-4, "Weight decay of the convolution and head weights; biases and norms have none.", low=0
    )
    scheduler: str = _param(
        "cosine",
        "Learning rate after the warm-up, stepped per iteration.",
        choices=("constant", "step", "exponential", "cosine"),
    )
    warmup_epochs: float = _param(3.0, "Epochs of linear warm-up.", low=0)
    label_smoothing: float = _param(0.0, "Label smoothing of the training loss.", low=0, below=1)
    ema_decay: float = _param(
        0.0, "Decay of the moving average of the weights per update; 0 for none.", low=0, below=1
    )
    grad_accum_steps: int = _param(1, "Batches whose gradients make one update.", low=1)
    clip_grad_norm: float = _param(0.0, "Largest gradient norm; 0 for no limit.", low=0)
    amp: str = _param(
        AUTO,
        "Mixed precision; `auto` is bf16 where a GPU or CPU multiplies it fast, off elsewhere.",
        choices=(AUTO, "off", "bf16", "fp16"),
    )
    channels_last: bool | str = _param(
        AUTO,
        "Channels-last memory and 2D convolutions; `auto` is on a GPU or a CPU with AMX.",
        words=(AUTO,),
    )
    compile: bool = _param(False, "Compile the model with torch.compile (minutes at the start).")
    sync_bn: bool = _param(False, "Share BatchNorm statistics between the processes (GPU only).")
    seed: int = _param(0, "Seed of the splits, the weights and the order of the clips.", low=0)
    # --- checkpoints and progress ---------------------------------------------------------------
    checkpoint_dir: str = _param(
        AUTO,
        "Where last.pt, the previous.pt before it and best.pt are written; `auto` is "
        "checkpoints/<run id>.",
    )
    save_every: int = _param(1, "Epochs between two writes of last.pt.", low=1)
    save_every_minutes: float = _param(
        10.0, "Minutes between two writes of last.pt within an epoch; 0 for none.", low=0
    )
    resume: str = _param(
        NONE,
        "`auto` continues the newest usable checkpoint of checkpoint_dir, a path or URI that file "
        "or folder, `none` starts anew.",
    )
    print_interval: int = _param(
        0, "Batches between two progress lines; 0 for one per epoch.", low=0
    )
    # --- launch ---------------------------------------------------------------------------------
    nproc_per_node: int | str = _param(
        AUTO, "Processes per node; `auto` is one per GPU, or one on a CPU.", low=1, words=(AUTO,)
    )
    nnodes: int = _param(1, "Nodes that train together.", low=1)
    node_rank: int = _param(0, "Number of this node, 0 to nnodes - 1.", low=0)
    rdzv_endpoint: str = _param("localhost:0", "host:port where the nodes meet (of node 0).")
    rdzv_timeout: int = _param(600, "Seconds to wait there for all the nodes.", low=1)
    max_restarts: int = _param(
        0,
        "Times that torchrun restarts failed workers, which go on from the last checkpoint.",
        low=0,
    )
    parent_run: str = _param(
        NONE,
        "Id of the MLflow run to show this run under, the same for all nodes (`mlflow runs create` "
        "makes one); `none` for no parent.",
    )
    # --- evaluation -----------------------------------------------------------------------------
    checkpoint: str = _param(
        NONE, "Checkpoint (best.pt): a path or an artifact URI; `none` where `weights` is given."
    )
    num_clips: int = _param(1, "Temporal views of a video, averaged.", low=1)
    num_crops: int = _param(1, "Spatial crops of a view, averaged: 1 or 3.", low=1, high=3)
    robustness: bool = _param(
        True, "Measure accuracy under changed light, blur, compression, lost and reversed frames."
    )
    compare_with: str = _param(
        NONE,
        "Other model on the same clips: a run of evaluate (its id or runs:/<id>), predictions.csv "
        "(a path or URI) or a registered model (models:/...).",
    )
    # --- export and use -------------------------------------------------------------------------
    registered_model_name: str = _param("k400tiny-r2plus1d_18", "Name in the model registry.")
    video_model_name: str = _param(
        "k400tiny-video-classifier",
        "Name in the model registry of the same model for whole videos, ready to be served.",
    )
    opset: int = _param(18, "ONNX opset.", low=18, high=23)
    tolerance: float = _param(
        1e-4, "Largest difference of a probability between ONNX and PyTorch.", above=0
    )
    quantize: str = _param(
        NONE,
        "Smaller variant to register in place of float32, if it is faster here and loses at most "
        "max_accuracy_drop.",
        choices=(NONE, "int8", "fp16"),
    )
    max_accuracy_drop: float = _param(
        1.0, "Points of test top-1 that a quantised variant may lose.", low=0, high=100
    )
    views_in_graph: int = _param(
        1, "Temporal views of a video that the graph averages; T is then views * clip_len.", low=1
    )
    evaluation: str = _param(
        NONE,
        "Run of evaluate on the same model (its id or runs:/<id>), or the folder of its results: "
        "gives the temperature and spares scoring again.",
    )
    promote: str = _param(
        "better",
        "Whether the new version becomes `champion`: if it beats the present one on the test "
        "clips, `always`, or `never`. Where there is none yet, it does.",
        choices=("better", "always", "never"),
    )
    input: str = _param("", "A frame folder, a video file, or a directory of either.")
    model_uri: str = _param(
        AUTO, "Model to use; `auto` is models:/<registered_model_name>@champion."
    )
    top_k: int = _param(5, "Labels shown per clip.", low=1)
    num_threads: int | str = _param(
        AUTO, "Cores of a prediction; `auto` is all of this process.", low=1, words=(AUTO,)
    )
    device: str = _param(
        AUTO,
        "What predicts; `auto` is CUDA where ONNX Runtime offers it.",
        choices=(AUTO, "cpu", "cuda"),
    )
    # --- the chain ------------------------------------------------------------------------------
    recipe: str = _param(
        AUTO,
        "Named set of parameters in recipes/; `auto` is sample or k400tiny, as data_path says.",
    )
    use_cache: bool = _param(
        True, "Re-use finished steps whose code, parameters and inputs are the same."
    )
    env_manager: str = _param(
        "local",
        "Environment manager of the nested runs; `local` uses the one that main runs in.",
        choices=("local", "conda", "virtualenv", "uv"),
    )

    def replace(self, **changes: Any) -> "Config":
        """The same parameters but for some."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """All parameters by name, as checkpoints hold them."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """All parameters as one JSON object, for the training workers and for checkpoints."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """The inverse of `to_json`."""
        return cls(**json.loads(text))


FIELDS: dict[str, dataclasses.Field[Any]] = {f.name: f for f in dataclasses.fields(Config)}


def rule(name: str) -> Rule:
    """The rule of one parameter."""
    found: Rule = FIELDS[name].metadata["rule"]
    return found


def kind(name: str) -> str:
    """The MLproject type of a parameter: `string`, `int`, `float` or `bool`."""
    annotation = str(getattr(FIELDS[name].type, "__name__", FIELDS[name].type))
    return {"str": "string", "int | str": "int", "bool | str": "bool"}.get(annotation, annotation)


def allowed(name: str) -> str:
    """What a parameter accepts, in words: "a number above 0", "sgd or adamw"."""
    r = rule(name)
    if r.choices:
        return " or ".join(r.choices)
    noun = {"int": "a whole number", "float": "a number", "bool": "True or False"}.get(
        kind(name), "text"
    )
    bounds = [
        f"{word} {bound:g}"
        for word, bound in (
            ("from", r.low),
            ("above", r.above),
            ("up to", r.high),
            ("below", r.below),
        )
        if bound is not None
    ]
    return " or ".join([" ".join([noun, *bounds]), *r.words])


def parse(name: str, text: str) -> Any:
    """Turn the text of a parameter into its value.

    Raises:
        UserError: if the text is not of the parameter's type or outside its range.
    """
    r, type_name, text = rule(name), kind(name), text.strip()
    try:
        value = _convert(text, type_name, r)
    except ValueError:
        default = FIELDS[name].default
        hint = f" (default {default})" if default != "" else ""
        raise UserError(
            f"{name}: {text!r} is not allowed. Needed: {allowed(name)}{hint}."
        ) from None
    return value


def _convert(text: str, type_name: str, r: Rule) -> Any:
    if text in r.words:
        return text
    if type_name == "bool":
        return (
            {"true": True, "1": True, "false": False, "0": False}[text.lower()]
            if (text.lower() in ("true", "false", "1", "0"))
            else _refuse()
        )
    if type_name == "string":
        return text if not r.choices or text in r.choices else _refuse()
    number = int(text) if type_name == "int" else float(text)
    outside = (
        not math.isfinite(number)
        or (r.low is not None and number < r.low)
        or (r.high is not None and number > r.high)
        or (r.above is not None and number <= r.above)
        or (r.below is not None and number >= r.below)
    )
    return _refuse() if outside else number


def _refuse() -> Any:
    raise ValueError
