"""Which devices and machines train."""

import dataclasses
import json
import os

import tensorflow as tf

from tf_robust_sparse.cli import workers
from tf_robust_sparse.cli.command_line import BadFlag
from tf_robust_sparse.cli.settings import Settings, only_with, setting

_CLUSTER = '\'{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}\''


@dataclasses.dataclass
class Machines(Settings):
    """Devices and machines, by `tf.distribute`."""

    title = "Machines"

    strategy: str = setting("none", "tf.distribute strategy.", choices=("none", "mirrored", "multi_worker"))
    num_replicas: int | None = setting(
        None,
        "Replicas of --strategy=mirrored; a CPU is divided among them.",
        lower=1,
        only_for=only_with("strategy", "mirrored", refuse=True),
    )

    def check(self) -> None:
        """Checks what the environment says of the cluster."""
        if self.strategy != "multi_worker":
            return
        if "TF_CONFIG" not in os.environ:
            raise BadFlag(
                "--strategy=multi_worker needs the environment variable TF_CONFIG on every machine, such as "
                f"{_CLUSTER}; it is not set"
            )
        try:
            cluster = json.loads(os.environ["TF_CONFIG"])
        except json.JSONDecodeError as error:
            cluster = error
        if not isinstance(cluster, dict) or not {"cluster", "task"} <= set(cluster):
            raise BadFlag(
                f"--strategy=multi_worker: expected TF_CONFIG as JSON with cluster and task. Received: {cluster}"
            )

    @property
    def is_one_device(self) -> bool:
        """Whether one device trains."""
        return self.strategy == "none"

    def build(self) -> tf.distribute.Strategy:
        """Returns the strategy; must come before anything else that touches devices."""
        if self.strategy == "multi_worker":
            return workers.connect()
        if self.strategy == "none":
            return tf.distribute.get_strategy()
        kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
        number = self.num_replicas
        if kind == "CPU" and number is not None:
            tf.config.set_logical_device_configuration(
                tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * number
            )
        devices = [device.name for device in tf.config.list_logical_devices(kind)][:number]
        if number is not None and len(devices) < number:
            raise BadFlag(f"--num_replicas={number}: this machine has {len(devices)} devices of type {kind}")
        # Parts of one CPU that wait for each other in collective operations may starve each other of threads.
        reduction = tf.distribute.ReductionToOneDevice() if kind == "CPU" else None
        return tf.distribute.MirroredStrategy([name.replace("/device:", "") for name in devices], reduction)
