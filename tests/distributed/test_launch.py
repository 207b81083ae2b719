"""How torchrun is started: addresses, time-outs, memory."""

import socket
import subprocess
from pathlib import Path

import pytest
import torch

from k400tiny_lib.config import Config, resolve
from k400tiny_lib.distributed import launch
from k400tiny_lib.errors import UserError
from k400tiny_lib.training.worker import Job, out_of_memory, work


def test_the_address_of_a_node_is_the_one_that_its_way_to_the_others_starts_from() -> None:
    assert launch.local_address("127.0.0.1:29400") == "127.0.0.1"
    assert launch.interface_of("127.0.0.1") == "lo"
    assert launch.interface_of("192.0.2.1") is None  # TEST-NET: nobody has it
    with pytest.raises(UserError, match=r"^rdzv_endpoint: no\.such\.host\.invalid:1 cannot be"):
        launch.local_address("no.such.host.invalid:1")


def test_several_nodes_need_a_place_to_meet() -> None:
    needed = {"data_path": "x", "annotations": "y", "nnodes": "2"}
    with pytest.raises(UserError, match=r"^rdzv_endpoint: localhost:0 is no place to meet"):
        resolve("train", needed)
    assert resolve("train", needed | {"rdzv_endpoint": "n0:29400"}).nnodes == 2


@pytest.mark.parametrize("node_rank", [0, 1])
def test_a_rendezvous_that_nobody_joins_ends_with_its_address(
    tmp_path: Path, node_rank: int
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    alone = Config(nnodes=2, node_rank=node_rank, rdzv_endpoint=endpoint, rdzv_timeout=2)
    job = Job(alone, "run", tmp_path / "journal", tmp_path / "error.txt")
    with pytest.raises(UserError, match=rf"^rdzv_endpoint: .*came to {endpoint} within 2 s"):
        launch.launch(job, tmp_path)


def test_full_memory_names_what_to_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # PyTorch's allocator has no exception of its own on a CPU; ask it for more than there is.
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(caught.value)
    assert not out_of_memory(RuntimeError("shapes differ"))

    def full() -> None:
        raise caught.value

    monkeypatch.setattr("k400tiny_lib.training.worker.process_group", full)
    job = Job(Config(batch_size=7), "run", tmp_path / "journal", tmp_path / "error.txt")
    assert work(job) == 2
    message = job.error.read_text()
    assert message.startswith("batch_size: 7 does not fit into memory")
    assert "\n" not in message
    for parameter in ("grad_accum_steps", "clip_len", "crop_size"):
        assert parameter in message


def test_a_user_s_mistake_is_not_repeated_by_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(Config(max_restarts=5), "run", tmp_path / "journal", tmp_path / "error.txt")

    def torchrun(*_: object) -> list[str]:
        script = f"echo 'lr: too large' > {job.error}; sleep 600"
        return ["sh", "-c", f"exec 2>/dev/null; {script}"]

    monkeypatch.setattr(launch, "torchrun_command", torchrun)
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1]
    )
    with pytest.raises(UserError, match="lr: too large"):
        launch.launch(job, tmp_path)
    assert started[0].poll() is not None


def test_restarted_workers_do_not_meet_where_their_predecessors_left_their_addresses(
    tmp_path: Path,
) -> None:
    job = Job(Config(max_restarts=1), "run", tmp_path / "ports", tmp_path / "error.txt")
    launch.launch(job, tmp_path, module="tests.helpers.failing_worker")
    first, second = job.journal.read_text().split()
    assert first != second
