"""torchrun that ends with the process that started it, and so do its workers.

python -m k400tiny_lib.distributed.torchrun <process id of the starter> <arguments of torchrun>
"""

import os
import sys

from k400tiny_lib.system import die_with_parent

PARENT = "K400TINY_TORCHRUN"  # environment variable of the workers: the process id of torchrun


def main() -> None:
    """Run torchrun with the remaining arguments."""
    die_with_parent(int(sys.argv.pop(1)))
    os.environ[PARENT] = str(os.getpid())
    from torch.distributed.run import main as torchrun  # two seconds

    torchrun()


def join_torchrun() -> None:
    """End this worker when its torchrun is gone, if `main` has started that."""
    if PARENT in os.environ:
        die_with_parent(int(os.environ[PARENT]))


if __name__ == "__main__":
    main()
