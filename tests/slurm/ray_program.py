"""Ray over the nodes of a Slurm job: says where two tasks ran, waits for a file. Arguments: scratch, file."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import ray

from arpo_replica.training.process.ray_cluster import RayCluster

scratch, wait_for = Path(sys.argv[1]), Path(sys.argv[2])
scratch.mkdir(exist_ok=True)


@ray.remote(num_gpus=2)
def where() -> tuple[str, str]:
    """Node and GPUs of this task."""
    time.sleep(1)
    return os.environ["SLURMD_NODENAME"], os.environ["CUDA_VISIBLE_DEVICES"]


with RayCluster(nodes=2, gpus=2, cpus=2, scratch=scratch, log=scratch / "ray.log") as cluster:
    ray.init(address=cluster.address)
    for node, gpus in sorted(ray.get([where.remote(), where.remote()])):
        print(f"task on {node} with {len(gpus.split(','))} GPUs", flush=True)
    ray.shutdown()
    print(f"ready {os.getpid()}", flush=True)
    while not wait_for.exists():
        time.sleep(0.1)
print("closed", flush=True)
