"""Every parameter of every step, declared once: type, range, default, steps, help.

A parameter of the same name means the same thing in every step. To add one, add a field with a
docstring here, use it, and regenerate MLproject (`python -m k400tiny_lib.config.mlproject`).
Imports neither torch nor MLflow: a mistake is refused, and `--help` answered, at once.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from k400tiny_lib.config.declaration import AUTO, NONE, Range, StepName, declared_parameters, param
from k400tiny_lib.config.model_names import DEFAULT_MODEL, ModelName
from k400tiny_lib.config.value_types import (
    Augmentation,
    Auto,
    ClipLen,
    ClipPixels,
    Count,
    Fraction,
    Model,
    Rate,
    Scheduler,
    Seed,
    TrainLayers,
    Version,
)

SAMPLE = "sample"  # the data_path of the rendered sample
_SCORED: tuple[StepName, ...] = ("evaluate", "export_onnx")
_WITH_MODEL: tuple[StepName, ...] = ("train", *_SCORED)
_CHAINS: tuple[StepName, ...] = ("main", "tune")
# Values of `augmentation` that mix the clips of a batch: rows of data.loading.augmentation's table,
# which imports torch, with a `per_batch`.
MIXING_AUGMENTATIONS = ("strong",)


class Config(
    BaseModel,
    frozen=True,
    extra="forbid",
    validate_default=True,
    allow_inf_nan=False,
    use_attribute_docstrings=True,
):
    """The parameters of a step, typed and checked; those it does not take keep their default."""

    recipe: str = param(AUTO, *_CHAINS, in_recipe=False, theme="The run")
    """Set of parameters: a name in recipes/, or a path or artifact URI of a YAML file; `auto` is
    sample or k400tiny, depending on data_path."""
    description: str = param(NONE, *_CHAINS, "train", affects_result=False)
    """Text at the head of the run's description, in Markdown; `none` for no text."""

    trials: Count = param(20, "tune", affects_result=False, in_recipe=False)
    """Trials of the study in the end, all its processes and earlier runs together."""
    search: str = param("lr,weight_decay", "tune", in_recipe=False)
    """Parameters to search over, separated by commas; --help names their ranges."""
    storage: str = param(AUTO, "tune", affects_result=False, in_recipe=False)
    """SQLite file or SQLAlchemy URL that keeps the trials; `auto` is .k400tiny/tuning.db."""

    input: str = param("", "predict", required_in=("predict",), theme="Data")
    """A frame folder, a video file, or a directory of either."""
    data_path: str = param(
        SAMPLE, "prepare_data", *_WITH_MODEL, auto_in=_WITH_MODEL, in_recipe=False
    )
    """Directory or URI with frame folders or videos, named by gt_csv or in one folder per class;
    `sample` to render one, `auto` for the clips that the annotations were made of."""
    gt_csv: str = param(NONE, "prepare_data", in_recipe=False)
    """Ground truth, a path or URI: file,label or folder_name,label, with youtube_id if known;
    file,label,time_start,time_end for segments of long videos; the list of Kinetics; `none` for
    class folders and the sample."""
    output_dir: str = param("data", "prepare_data", affects_result=False, in_recipe=False)
    """Directory or URI for what prepare_data renders and decodes, and its content index."""
    val_fraction: Fraction = param(0.1, "prepare_data")
    """Share of the clips held out for validation."""
    test_fraction: Fraction = param(0.1, "prepare_data")
    """Share of the clips held out for the test."""
    group_by: str = param("youtube_id", "prepare_data")
    """CSV column whose values are never divided between splits, or `none` to split single clips."""
    use_official_splits: bool = param(True, "prepare_data")
    """Keep the splits that a column `split` of gt_csv names, rather than draw new ones."""
    on_bad_clip: Literal["drop", "fail"] = param("drop", "prepare_data")
    """Bad clips: leave them out and say why, or stop."""
    max_bad_frames: Rate = param(0.1, "prepare_data", "predict")
    """Share of a video's frames that may be damaged; a video with more is a bad clip."""
    on_rare_class: Literal["fail", "drop", "train"] = param("fail", "prepare_data")
    """Classes with too few sources for three splits: stop, leave them out or train on them."""
    decode_workers: Count | Auto = param(AUTO, "prepare_data", affects_result=False)
    """Processes that decode videos; `auto` is one per core."""
    dask_scheduler: str = param(NONE, "prepare_data", affects_result=False, also="scheduler")
    """Dask scheduler (tcp://host:port) whose workers decode videos, `none` for this machine;
    prepare_data also takes it as `scheduler`."""
    annotations: str = param(
        NONE, *_WITH_MODEL, auto_in=_WITH_MODEL, is_input=True, handed_over=True
    )
    """annotations.json: a path or an artifact URI (runs:/...); `auto` for those that the checkpoint
    was trained with, and in train for those of the newest prepare_data."""

    model: Model = param(DEFAULT_MODEL, "train", theme="Model")
    """Architecture."""
    checkpoint: str = param(NONE, *_SCORED, auto_in=_SCORED, is_input=True, handed_over=True)
    """Checkpoint (best.pt): a path or an artifact URI; `auto` for that of the newest train, `none`
    where `weights` is given."""
    weights: str = param(NONE, *_WITH_MODEL)
    """torchvision weights (R2Plus1D_18_Weights.KINETICS400_V1); `imagenet` for those of the network
    of tsn_efficientnet_lite0, in train only; `none` for scratch or a checkpoint."""
    load_model: str = param(NONE, "train", is_input=True)
    """Checkpoint to start from: a path or an artifact URI; `none` for no checkpoint."""
    num_classes: Count | Auto = param(AUTO, "train")
    """Size of the head; `auto` is the number of the data's categories."""
    dropout: Rate = param(0.0, "train", search=Range(0.0, 0.7))
    """Dropout before the head."""

    clip_len: ClipLen = param(AUTO, "train", theme="Clips")
    """Frames of a clip; `auto` is the model's number."""
    resize_size: ClipPixels = param(AUTO, "train")
    """Short side of the resized frames, in pixels; `auto` is the model's number."""
    crop_size: ClipPixels = param(AUTO, "train")
    """Side of the crop, in pixels; `auto` is the model's number."""
    augmentation: Augmentation = param("flip", "train", search="choices")
    """Augmentation of training clips; `standard` adds crops and colors to the flip, `strong`
    RandAugment and MixUp/CutMix to these."""
    no_flip_classes: str = param(NONE, "train")
    """Labels, separated by commas, whose clips are never mirrored (double quotes hold a label with
    commas); `none` for no label."""
    frame_cache: Literal["none", "packed", "auto"] = param(AUTO, "train", affects_result=False)
    """Where frames come from: `none` decodes image files each time, and keeps no features; `packed`
    decodes them once into mapped files, `auto` if they fit the free disk twice and are needed."""
    cache_dir: str = param(".k400tiny/frames", "train", affects_result=False)
    """Where packed frames and features are kept, named by content."""
    split: Literal["train", "val", "test", "all"] = param("test", "evaluate")
    """Split to evaluate; `all` for every clip, each predicted by a head that was trained without
    its source (only for a checkpoint of train_layers=head)."""
    num_clips: Count = param(1, "evaluate")
    """Temporal views of a video, averaged."""
    num_crops: Annotated[int, Field(ge=1, le=3)] = param(1, "evaluate")
    """Spatial crops of a view, averaged: 1 or 3."""
    batch_size: Count = param(16, "train", "evaluate", "predict")
    """Clips per batch and process."""
    num_workers: NonNegativeInt | Auto = param(AUTO, "train", "evaluate", affects_result=False)
    """Loader processes per training process; `auto` shares the cores (none for light clips)."""

    num_epochs: Count = param(30, "train", theme="Optimization")
    """Passes over the training clips."""
    patience: NonNegativeInt = param(0, "train")
    """Epochs without a better val_acc1 after which training stops; 0 for never."""
    train_layers: TrainLayers = param("all", "train")
    """Layers that learn: all, the last stage of the backbone and the head, or the head alone, whose
    input is then computed once for each clip and view and kept in cache_dir."""
    feature_views: Count = param(4, "train")
    """Augmented views of a training clip that train_layers=head learns from; the epochs take turns
    in them."""
    freeze_epochs: NonNegativeInt = param(0, "train", search=Range(0, 5, whole=True))
    """First epochs of fine-tuning in which only the head learns."""
    optimizer: Literal["sgd", "adamw"] = param("sgd", "train", search="choices")
    """Optimizer."""
    lr: PositiveFloat = param(0.01, "train", search=Range(1e-5, 1.0, log=True))
    """Peak learning rate."""
    lr_batch_size: NonNegativeInt = param(0, "train")
    """Clips per update that lr is stated for and scaled from; 0 for no scaling."""
    momentum: Rate = param(0.9, "train", search=Range(0.5, 0.99))
    """Momentum of SGD (Nesterov above 0)."""
    weight_decay: NonNegativeFloat = param(1e-4, "train", search=Range(1e-6, 0.3, log=True))
    """Weight decay of the convolution and head weights; biases and norms have none."""
    scheduler: Scheduler = param("cosine", "train", search="choices")
    """Learning rate after the warm-up, stepped per iteration."""
    warmup_epochs: NonNegativeFloat = param(3.0, "train", search=Range(0.0, 5.0))
    """Epochs of linear warm-up."""
    label_smoothing: Rate = param(0.0, "train", search=Range(0.0, 0.3))
    """Label smoothing of the training loss."""
    ema_decay: Rate = param(0.0, "train", search=Range(0.9, 0.999))
    """Decay of the moving average of the weights per update; 0 for none."""
    grad_accum_steps: Count = param(1, "train")
    """Batches whose gradients make one update."""
    clip_grad_norm: NonNegativeFloat = param(0.0, "train", search=Range(0.1, 10.0, log=True))
    """Largest gradient norm; 0 for no limit."""
    amp: Literal["auto", "off", "bf16", "fp16"] = param(AUTO, "train")
    """Mixed precision; `auto` is bf16 where a GPU or CPU multiplies it fast, off elsewhere
    and for 3D convolutions on a CPU."""
    channels_last: bool | Auto = param(AUTO, "train")
    """Channels-last memory and 2D convolutions; `auto` is on where that is faster."""
    compile: bool = param(False, "train")
    """Compile the model with torch.compile (minutes at the start)."""
    sync_bn: bool = param(False, "train")
    """Share BatchNorm statistics between the processes (GPU only)."""
    seed: Seed = param(0, "prepare_data", "train")
    """Seed of the splits, the weights and the order of the clips."""

    checkpoint_dir: str = param(
        AUTO, "train", affects_result=False, theme="Checkpoints and progress"
    )
    """Where last.pt, previous.pt and best.pt are written; `auto` is checkpoints/<run id>."""
    save_every: Count = param(1, "train", affects_result=False)
    """Epochs between two writes of last.pt; more where train_layers=head makes them short."""
    save_every_minutes: NonNegativeFloat = param(10.0, "train", affects_result=False)
    """Minutes between two writes of last.pt within an epoch; 0 for none."""
    resume: str = param(NONE, "train", is_input=True)
    """`auto` resumes the newest usable checkpoint of checkpoint_dir; a path or URI that file, or
    the newest of that directory; `none` starts from scratch."""
    print_interval: NonNegativeInt = param(0, "train", affects_result=False)
    """Batches between two progress lines; 0 for one per epoch."""

    nproc_per_node: Count | Auto = param(AUTO, "train", "evaluate", theme="Processes and nodes")
    """Processes per node; `auto` is one per GPU, or one on a CPU."""
    nnodes: Count = param(1, "train")
    """Nodes that train together."""
    node_rank: NonNegativeInt = param(0, "train", affects_result=False)
    """Number of this node, 0 to nnodes - 1."""
    rdzv_endpoint: str = param("localhost:0", "train", affects_result=False)
    """host:port where the nodes meet (of node 0)."""
    rdzv_timeout: Count = param(600, "train", affects_result=False)
    """Seconds to wait at rdzv_endpoint for all the nodes."""
    max_restarts: NonNegativeInt = param(0, "train", affects_result=False)
    """Times that torchrun restarts failed workers, which continue from the last checkpoint."""
    parent_run: str = param(NONE, "train", affects_result=False)
    """Id of the MLflow run to show this run under, the same for all nodes (`mlflow runs create`
    makes one); `none` for no parent."""

    robustness: bool = param(True, "evaluate", theme="Evaluation")
    """Measure accuracy under changed light, blur, compression, lost and reversed frames."""
    unknown_path: str = param(NONE, "evaluate", is_input=True)
    """Clips of none of the model's classes, a directory or URI as predict takes it: the report says
    how many of them the confidence threshold marks as unknown."""
    compare_with: str = param(NONE, "evaluate", is_input=True)
    """Other model on the same clips: a run of evaluate (its id or runs:/<id>), predictions.csv (a
    path or URI) or a registered model (models:/...)."""

    evaluation: str = param(NONE, "export_onnx", is_input=True, handed_over=True, theme="Export")
    """Run of evaluate on the same model (its id or runs:/<id>), or the folder of its results: gives
    the temperature and skips scoring."""
    opset: Annotated[int, Field(ge=18, le=23)] = param(18, "export_onnx")
    """ONNX opset; the file gets the lowest IR version that this opset allows."""
    tolerance: PositiveFloat = param(1e-4, "export_onnx")
    """Largest difference of a probability between ONNX and PyTorch on the same pixels."""
    views_in_graph: Count = param(1, "export_onnx")
    """Temporal views of a video that the graph averages; T is then views * clip_len."""
    quantize: Literal["none", "int8", "fp16"] = param(NONE, "export_onnx")
    """Smaller variant to register in place of float32, if it is faster here and loses at most
    max_accuracy_drop."""
    max_accuracy_drop: Annotated[float, Field(ge=0, le=100)] = param(1.0, "export_onnx")
    """Points of test top-1 that a quantized variant may lose."""
    onnx_dir: str = param(NONE, "export_onnx", affects_result=False)
    """Directory or URI that also gets the registered file, its labels.txt and its test vector;
    `none` for none."""
    promote: Literal["better", "always", "never"] = param("better", "export_onnx")
    """When the new version becomes `champion`: `better` if it beats the present one on the test
    clips, `always` or `never`. The first version always does."""

    model_uri: str = param(AUTO, "predict", theme="Registry and use")
    """Model to use; `auto` is models:/<registered_model_name>@champion."""
    version: Version = param("", "promote", required_in=("promote",))
    """Version to make champion: its number, an alias, or `previous` for the champion before."""
    registered_model_name: ModelName = param(AUTO, "export_onnx", "predict", "promote")
    """Name in the model registry; `auto` is k400tiny-<architecture>, in predict and promote
    k400tiny-r2plus1d_18 or, if there is none, that of another architecture (in predict, the one
    with the newest champion)."""
    video_model_name: ModelName = param(AUTO, "export_onnx", "promote")
    """Name in the model registry of the same model for whole videos, ready to be served; `auto` is
    k400tiny-video-classifier, for another architecture than r2plus1d_18 with its name, and in
    promote the name that the versions of registered_model_name have there."""
    top_k: Count = param(5, "predict")
    """Labels shown per clip."""
    window_seconds: NonNegativeFloat = param(0.0, "predict")
    """Length of the windows of a video that get a label each, in a timeline; 0 for no windows."""
    stride_seconds: NonNegativeFloat = param(0.0, "predict")
    """Seconds from one window to the next, at most window_seconds; 0 for half of it."""
    annotate: bool = param(False, "predict")
    """Also make a copy of each video with the labels of its timeline drawn in, without sound."""
    num_threads: Count | Auto = param(AUTO, "predict")
    """Cores of a prediction; `auto` is all of this process."""
    device: Literal["auto", "cpu", "cuda"] = param(AUTO, "predict")
    """Inference device; `auto` is CUDA where ONNX Runtime offers it."""

    use_cache: bool = param(
        True, *_CHAINS, affects_result=False, in_recipe=False, theme="How main runs"
    )
    """Re-use finished steps whose code, parameters and inputs are the same."""
    env_manager: Literal["local", "conda", "virtualenv", "uv"] = param(
        "local", *_CHAINS, affects_result=False, in_recipe=False
    )
    """Environment manager of the nested runs; `local` uses the one that main or tune runs in."""

    def replace(self, **changes: Any) -> "Config":
        """These parameters with some changed, checked again."""
        return Config(**(dict(self) | changes))

    def to_dict(self) -> dict[str, Any]:
        """All parameters by name, as checkpoints store them."""
        return dict(self)


PARAMETERS = declared_parameters(Config)
