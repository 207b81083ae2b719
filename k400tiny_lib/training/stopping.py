"""When training ends before its last epoch."""


def out_of_patience(epoch: int, improved_epoch: int, patience: int) -> bool:
    """Whether training has gone `patience` epochs without a better val_acc1.

    It depends on what every process knows alike and on what a checkpoint holds, so all processes
    stop at the same epoch, and a run that stopped is not continued by resuming it.

    Args:
        epoch: epochs that are finished.
        improved_epoch: the epoch that was better than all before it; an equal one is not.
        patience: epochs to wait; 0 for ever.
    """
    return patience > 0 and epoch - improved_epoch >= patience
