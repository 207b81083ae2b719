"""How torchrun is started: addresses, time-outs, threads, memory."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from k400tiny_lib.config import Config, resolve
from k400tiny_lib.distributed import launch
from k400tiny_lib.distributed.launch import Job
from k400tiny_lib.errors import UserError
from k400tiny_lib.evaluation import worker as evaluation_worker
from k400tiny_lib.training.worker import TrainingJob, out_of_memory, work
from tests.conftest import REPOSITORY
from tests.helpers.evaluation import write_checkpoint
from tests.helpers.training import annotate, config, make_job


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


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize("node_rank", [0, 1])
def test_a_rendezvous_that_nobody_joins_ends_with_its_address(
    tmp_path: Path, node_rank: int
) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    alone = Config(nnodes=2, node_rank=node_rank, rdzv_endpoint=endpoint, rdzv_timeout=2)
    with pytest.raises(UserError, match=rf"^rdzv_endpoint: .*came to {endpoint} within 2 s"):
        launch.launch(Job(alone, tmp_path))


def test_a_job_is_read_as_it_was_written(tmp_path: Path) -> None:
    for frame_cache in (None, tmp_path / "cache"):
        job = TrainingJob(Config(lr=0.5), tmp_path, "run", frame_cache)
        job.write()
        assert TrainingJob.read(job.file) == job


def alone_as_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that torchrun gives a single worker."""
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))


def test_full_memory_names_what_to_lower(
    tiny_data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(config: Config, num_classes: int) -> nn.Module:
        # On a CPU PyTorch's allocator raises a plain RuntimeError; ask it for more than there is.
        torch.empty(2**60, dtype=torch.uint8)
        raise AssertionError

    assert not out_of_memory(RuntimeError("shapes differ"))
    alone_as_under_torchrun(monkeypatch)
    job = make_job(config(tiny_data[0], tmp_path, batch_size=7), annotate(tiny_data[0]))
    assert work(job, build) == 2
    message = job.error.read_text()
    assert message.startswith("batch_size: 7 does not fit into memory")
    assert "\n" not in message
    for parameter in ("grad_accum_steps", "clip_len", "crop_size"):
        assert parameter in message


def test_full_shared_memory_is_one_line_of_both_kinds_of_workers(
    tiny_data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> nn.Module:  # the death of a loader's process is raised anywhere
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error.")

    alone_as_under_torchrun(monkeypatch)
    job = make_job(config(tiny_data[0], tmp_path), annotate(tiny_data[0]))
    assert work(job, fail) == 2
    evaluation = Job(job.config, tmp_path)
    evaluation.write()
    monkeypatch.setattr(evaluation_worker, "run", fail)
    monkeypatch.setattr(sys, "argv", ["worker", str(evaluation.file)])
    with pytest.raises(SystemExit, match="2"):
        evaluation_worker.main()
    for message in (job.error.read_text(), evaluation.error.read_text()):
        assert message.startswith("num_workers: the shared memory of this machine (/dev/shm)")


def test_a_user_s_mistake_is_not_repeated_by_restarts(tmp_path: Path) -> None:
    job = Job(Config(max_restarts=5), tmp_path)
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(UserError, match="lr: too large"):
        launch.launch(job, module="tests.helpers.mistaken_worker", poll_seconds=0.1)
    assert set(psutil.Process().children(recursive=True)) == before


def test_torchrun_leaves_nothing_in_the_temporary_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    with pytest.raises(UserError, match="lr: too large"):
        launch.launch(
            Job(Config(), tmp_path), module="tests.helpers.mistaken_worker", poll_seconds=0.1
        )
    assert list(temporary.iterdir()) == []


def test_restarted_workers_do_not_meet_where_their_predecessors_left_their_addresses(
    tmp_path: Path,
) -> None:
    job = Job(Config(max_restarts=1), tmp_path)
    launch.launch(job, module="tests.helpers.failing_worker")
    first, second = (tmp_path / "ports").read_text().split()
    assert first != second


def test_on_one_core_of_many_a_worker_has_one_thread(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from k400tiny_lib.config import Config; "
        "from k400tiny_lib.distributed.launch import Job, launch; "
        "launch(Job(Config(), Path(sys.argv[1])), module='tests.helpers.thread_worker')"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    core = str(min(os.sched_getaffinity(0)))
    subprocess.run(
        ["taskset", "-c", core, sys.executable, "-c", program, str(tmp_path)],
        env=environment,
        cwd=REPOSITORY,
        check=True,
    )
    assert (tmp_path / "threads").read_text() == "1"


def test_one_node_meets_at_the_loopback_address_whatever_its_name(tmp_path: Path) -> None:
    command = launch.torchrun_command(
        Config(nproc_per_node=1), tmp_path / "job.json", "worker", str(tmp_path)
    )
    assert "--local-addr=127.0.0.1" in command
    assert "--rdzv-endpoint=127.0.0.1:0" in command
    assert launch.environment(Config())["GLOO_SOCKET_IFNAME"] == "lo"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_host_name_that_does_not_resolve_keeps_nobody_from_training(
    tiny_data: tuple[Path, Path], tmp_path: Path, processes: int
) -> None:
    alone = ["unshare", "--uts", "--map-root-user", "--user"]
    if subprocess.run([*alone, "hostname", "x"], check=False, capture_output=True).returncode:
        pytest.skip("the host's name cannot be changed for one process")
    settings = config(tiny_data[0], tmp_path, batch_size=2, num_epochs=1, nproc_per_node=processes)
    make_job(settings, annotate(tiny_data[0], num_val=2, num_train=8)).write()
    program = (
        "import socket, sys; from pathlib import Path; "
        "socket.sethostname('nowhere-laptop'); "
        "from k400tiny_lib.distributed.launch import launch; "
        "from k400tiny_lib.training.worker import TrainingJob; "
        "launch(TrainingJob.read(Path(sys.argv[1])), module='tests.helpers.training')"
    )
    job = str(tmp_path / "metrics-run" / "job.json")
    subprocess.run(
        [*alone, sys.executable, "-c", program, job], cwd=REPOSITORY, check=True, timeout=200
    )
    assert (tmp_path / "best.pt").exists()


def test_a_port_that_another_program_uses_is_said_at_once(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for nodes in (1, 2):
            settings = Config(nnodes=nodes, rdzv_endpoint=f"localhost:{port}")
            with pytest.raises(UserError, match=rf"^rdzv_endpoint: port {port} of this node cann"):
                launch.launch(Job(settings, tmp_path))
        # Only the first node needs it.
        launch.check_port(Config(nnodes=2, node_rank=1, rdzv_endpoint=f"localhost:{port}"))
    launch.check_port(settings)


STEP = (
    "import sys; from pathlib import Path; from k400tiny_lib.distributed.launch import Job, launch;"
    "from k400tiny_lib.system import die_with_parent; "
    "from k400tiny_lib.training.worker import TrainingJob; "
    "die_with_parent(); "  # if the tests are killed
    "job = {'training': TrainingJob, 'evaluation': Job}[sys.argv[1]].read(Path(sys.argv[2])); "
    "launch(job, module=sys.argv[3])"
)


def start_training(data_path: Path, folder: Path) -> list[str]:
    """The command of a step that trains for ever."""
    settings = config(data_path, folder, num_epochs=1000, num_workers=1, nproc_per_node=1)
    job = make_job(settings, annotate(data_path, num_val=4, num_train=8))
    job.write()
    return [sys.executable, "-c", STEP, "training", str(job.file), "tests.helpers.training"]


def start_evaluation(data_path: Path, folder: Path) -> list[str]:
    """The command of a step that evaluates for ever."""
    write_checkpoint(folder / "best.pt")
    settings = config(
        data_path,
        folder,
        checkpoint=str(folder / "best.pt"),
        num_clips=100_000,
        num_workers=1,
        nproc_per_node=1,
    )
    Path(settings.annotations).write_text(annotate(data_path, num_val=4).to_json())
    job = Job(settings, folder)
    job.write()
    module = "k400tiny_lib.evaluation.worker"
    return [sys.executable, "-c", STEP, "evaluation", str(job.file), module]


@pytest.mark.parametrize("start", [start_training, start_evaluation])
def test_nothing_outlives_a_killed_step(
    tiny_data: tuple[Path, Path], tmp_path: Path, start: Callable[[Path, Path], list[str]]
) -> None:
    command = start(tiny_data[0], tmp_path)
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL) as step:
        found: list[psutil.Process] = []
        while len(found) < 3:  # torchrun, the worker, its loader
            assert step.poll() is None
            time.sleep(0.1)
            found = psutil.Process(step.pid).children(recursive=True)
        step.kill()
    _, alive = psutil.wait_procs(found, timeout=20)
    for process in alive:
        process.kill()
    assert not alive


WATCHED = (
    "import os, subprocess, sys, time\n"
    "if len(sys.argv) > 1:\n"
    "    sys.platform = 'darwin'  # without Linux's own way\n"
    "    from k400tiny_lib.system import die_with_parent\n"
    "    die_with_parent(int(sys.argv[1]))\n"
    "    print(os.getpid(), flush=True)\n"
    "else:\n"
    "    subprocess.Popen([sys.executable, __file__, str(os.getpid())])\n"
    "time.sleep(600)\n"
)


def test_a_process_ends_with_its_parent_on_any_system(tmp_path: Path) -> None:
    script = tmp_path / "watched.py"
    script.write_text(WATCHED)
    command = [sys.executable, str(script)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        parent.kill()
        child.wait(20)
