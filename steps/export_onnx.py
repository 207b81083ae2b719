"""Export a model to ONNX, prove it equal to PyTorch, register it, see if it is the best so far.

mlflow run . -e export_onnx --env-manager local -P checkpoint=best.pt
mlflow run . -e export_onnx --env-manager local -P weights=R2Plus1D_18_Weights.KINETICS400_V1
mlflow run . -e export_onnx --env-manager local -P checkpoint=best.pt -P data_path=frames \\
    -P annotations=annotations.json -P quantize=int8 -P onnx_dir=exported
"""

from k400tiny_lib.config import NONE, Config
from k400tiny_lib.console import say_result
from k400tiny_lib.workflow.command import step_command


@step_command("export_onnx")
def export_onnx(config: Config) -> None:
    """Export, require parity, choose the variant, register, decide who is champion."""
    from k400tiny_lib.export.exporter import export_model
    from k400tiny_lib.models.loaded import load_model
    from k400tiny_lib.registry import delivery, registry
    from k400tiny_lib.remote_files import check_writable
    from k400tiny_lib.tracking.evaluation_log import git_commit

    if config.onnx_dir != NONE:
        check_writable(config.onnx_dir, "onnx_dir")
    config = registry.export_inputs(config)
    exported = export_model(load_model(config), config, git_commit(), registry.log_parity, print)
    registry.log_export(exported)
    version, decision = registry.register_export(exported, config)
    say_result(f"models:/{version.name}/{version.version} is {decision.text}; {exported.summary}")
    if config.onnx_dir != NONE:
        print(delivery.deliver(version, config.onnx_dir))


if __name__ == "__main__":
    export_onnx()
