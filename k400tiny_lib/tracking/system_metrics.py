"""System metrics of training: load, memory, disk, network, GPUs."""

import logging
import os
import sys
import time
from pathlib import Path

from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from k400tiny_lib.metrics_log import append_entry


class SystemSampler:
    """Writes MLflow's system metrics to a metrics log.

    MLflow's own thread gives up at the first call that the server does not answer, and delays the
    end of the run while it retries. MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL sets the interval
    (seconds, 10 unless set), MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false turns sampling off.
    """

    def __init__(self, run_id: str, metrics_log: Path) -> None:
        self._metrics_log = metrics_log
        self._step = 0
        logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
        setting = os.environ.get(MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.name, "").lower()
        # Set to true, it has started MLflow's own thread for this run already.
        self._monitor = None if setting else SystemMetricsMonitor(run_id)
        self._due = 0.0

    def sample(self) -> None:
        """Take a sample if one is due; never raises, but stops sampling after an error."""
        if self._monitor is None or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + self._monitor.sampling_interval
        try:
            self._monitor.collect_metrics()
            values = self._monitor.aggregate_metrics()
            for part in self._monitor.monitors:
                part.clear_metrics()
            metrics = {f"system/{name}": value for name, value in values.items()}
            append_entry(self._metrics_log, metrics, self._step)
        except Exception as error:  # of psutil, of a GPU's driver; training must not fail for it
            print(f"tracking: no more system metrics: {error}", file=sys.stderr, flush=True)
            self._monitor = None
        self._step += 1
