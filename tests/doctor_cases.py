"""What each check of the doctor must say of machines that are well or ill."""

from __future__ import annotations

import json
from typing import Any

import yaml

from arpo_replica.base.environments import ROOT
from arpo_replica.base.errors import UserError
from arpo_replica.config import parse_config
from arpo_replica.config.models import StudyConfig
from arpo_replica.doctor.machine import Answer, Docker
from arpo_replica.doctor.registry import Level
from doctor_machine import GIB, INFO

DEMO = yaml.safe_load((ROOT / "configs/demo.yaml").read_text())


def make(changes: dict[str, Any] | None = None) -> StudyConfig:
    """The demo's config with dotted keys changed."""
    raw = json.loads(json.dumps(DEMO))
    for dotted, value in (changes or {}).items():
        place = raw
        *sections, last = dotted.split(".")
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return parse_config(raw, "x.yaml")


NODE = {
    "lib/python3.*/site-packages/playwright/driver/node": [
        "lib/python3.11/site-packages/playwright/driver/node"
    ]
}
CONTAINER = {"desktop.provider": "container"}
BY_DOCKER = CONTAINER | {"desktop.container": {"engine": "docker"}}
OSWORLD = {"desktop.provider": "osworld", "desktop.osworld": {"vm": "/vm/Ubuntu.qcow2"}}
VMWARE = {
    "desktop.provider": "osworld",
    "desktop.osworld": {"hypervisor": "vmware", "vm": "/vm/x.vmx"},
    "desktop.count": 1,
}
REMOTE = {"desktop.provider": "remote"}
CUDA = {"accelerator": "cuda", "size": "7b"}
LARGE = {"size": "7b", "policy.max_steps": 15}
NO_CLUSTER = Answer(1, err="sinfo: fatal: Could not establish a configuration source")
LONG = {"evaluation.trials": 300}
FOLDER = {"policy.model": "/m", "policy.recipe": "uitars_15"}
NAMED = {"policy.model": "UI-TARS-2B-SFT", "size": "2b"}
SERVED = {"policy.endpoint": "http://127.0.0.1:1", "policy.served_model": "x"}
ELSEWHERE = SERVED | {"policy.model": "served", "arms": {"base": {}}}
PINNED = {"desktop.provider": "osworld", "desktop.osworld": {"image_digest": "sha256:" + "a" * 64}}
IMAGE = "happysixd/osworld-docker:latest"
OK, WARN, FAIL = Level.OK, Level.WARN, Level.FAIL
SHARDS = {"*.safetensors": ["model-1.safetensors"]}
INDEX = {"/m/model.safetensors.index.json": '{"weight_map": {"a": "model-2.safetensors"}}'}

CASES: list[tuple[str, Level, dict[str, Any], dict[str, Any], str]] = [
    # check, level, changes of the config, illness of the machine, part of what is found or of the fix
    ("system", OK, {}, {}, "Linux"),
    ("system", FAIL, {}, {"system": ("Darwin", "arm64", "3.11.1")}, "VMware"),
    ("system", WARN, {}, {"system": ("Linux", "aarch64", "3.11.1")}, "x86-64"),
    ("python_version", OK, {}, {}, "3.11"),
    ("python_version", FAIL, {}, {"system": ("Linux", "x86_64", "3.13.0")}, "python3.11"),
    ("temp_folder", OK, {}, {}, "/tmp"),
    ("temp_folder", FAIL, {}, {"closed": ("/tmp",)}, "TMPDIR"),
    ("temp_folder", FAIL, {}, {"env": {"TMPDIR": "/" + "x" * 80}}, "too long"),
    ("temp_folder", WARN, {}, {"free": {"/tmp": (1, GIB)}}, "0.0 GiB"),
    ("proxies", OK, {}, {}, "no proxy"),
    ("proxies", OK, {}, {"env": {"http_proxy": "p", "no_proxy": "localhost, 127.0.0.1"}}, "left out"),
    ("proxies", FAIL, {}, {"env": {"HTTP_PROXY": "p"}}, "no_proxy"),
    ("git", OK, {}, {}, "abc1234"),
    ("git", WARN, {}, {"no_program": ("git",), "says": {"git": Answer(127)}}, "apt-get"),
    ("git", WARN, {}, {"says": {"git": Answer(128, "", "not a git repository")}}, "not a git"),
    ("memory", OK, {}, {}, "32.0 GiB"),
    ("memory", WARN, {}, {"files": {"/proc/meminfo": None}}, "/proc"),
    (
        "memory",
        WARN,
        {},
        {"files": {"/proc/meminfo": "MemTotal: 16777216 kB\nMemAvailable: 1 kB"}},
        "end other",
    ),
    ("memory", FAIL, {}, {"files": {"/proc/meminfo": "MemTotal: 1048576 kB"}}, "desktop.count"),
    ("memory", FAIL, OSWORLD, {"files": {"/proc/meminfo": "MemTotal: 33554432 kB"}}, "39.9"),
    ("cgroup_memory", OK, {}, {}, "none"),
    ("cgroup_memory", OK, {}, {"files": {"/sys/fs/cgroup/user.slice/memory.max": str(9 * GIB)}}, "9.0"),
    ("cgroup_memory", FAIL, {}, {"files": {"/sys/fs/cgroup/memory.max": str(GIB)}}, "--mem"),
    (
        "cgroup_memory",
        FAIL,
        {},
        {
            "files": {
                "/proc/self/cgroup": "7:cpu,memory:/job\n",
                "/sys/fs/cgroup/memory/job/memory.limit_in_bytes": str(GIB),
            }
        },
        "1.0 GiB",
    ),
    ("cores", OK, {}, {}, "8 for 8 desktops"),
    ("cores", WARN, {}, {"cores": 1}, "threads: 1"),
    ("cores", WARN, {}, {"files": {"/sys/fs/cgroup/cpu.max": "50000 100000"}}, "0.5"),
    ("cores", WARN, {"desktop.count": 200}, {}, "desktop.count to 96"),
    ("cpu_instructions", OK, {}, {}, "AVX-512"),
    ("cpu_instructions", FAIL, {}, {"files": {"/proc/cpuinfo": "flags : sse2"}}, "AVX2"),
    ("cpu_instructions", WARN, {}, {"files": {"/proc/cpuinfo": ""}}, "names no"),
    ("disk", OK, {}, {}, "500 GiB"),
    ("disk", WARN, {}, {"free": {"/checkout/results": (GIB, GIB)}}, "make room"),
    ("disk", FAIL, {}, {"free": {"/checkout/results": (1, GIB)}}, "larger disk"),
    ("disk", WARN, {"size": "2b"}, {"free": {"/checkout/results": (150 * GIB, 900 * GIB)}}, "up to 298"),
    ("disk", OK, {"size": "2b", "arms": {"base": {}}}, {}, "up to 1"),
    ("disk", WARN, {}, {"free": {"/checkout/results": None}}, "does not answer"),
    ("results_folder", OK, {}, {}, "results/demo"),
    ("results_folder", FAIL, {}, {"closed": ("/checkout/results",)}, "chown"),
    ("results_folder", WARN, {}, {"found": {"*.lock": ["0.input.lock"]}}, "--unlock"),
    ("shared_memory", OK, {}, {}, "GiB free"),
    ("shared_memory", WARN, {}, {"free": {"/dev/shm": (GIB // 6, GIB)}}, "--shm-size"),
    ("shared_memory", FAIL, {}, {"free": {"/dev/shm": (64 << 20, 64 << 20)}}, "--shm-size"),
    ("shared_memory", FAIL, {}, {"missing": ("/dev/shm",)}, "mount"),
    ("open_files", OK, {}, {}, "65536"),
    ("open_files", OK, {}, {"soft_NOFILE": None}, "none"),
    ("open_files", WARN, {}, {"soft_NOFILE": 256}, "ulimit -n 1536"),
    ("open_files", FAIL, {}, {"soft_NOFILE": 256, "hard_NOFILE": 1024}, "limits.conf"),
    ("processes", OK, {}, {}, "65536"),
    ("processes", FAIL, {}, {"soft_NPROC": 100}, "ulimit -u"),
    ("processes", FAIL, {}, {"files": {"/sys/fs/cgroup/pids.max": "200"}}, "--pids-limit"),
    ("kernel_limits", OK, {"desktop.count": 32}, {}, "8192"),
    (
        "kernel_limits",
        WARN,
        {"desktop.count": 32},
        {"files": {"/proc/sys/fs/inotify/max_user_instances": "128"}},
        "sysctl",
    ),
    ("controller_environment", OK, {}, {}, "what its lock says"),
    ("controller_environment", WARN, {}, {"environments": {"controller": "stale"}}, "prepare.py controller"),
    ("heavy_packages", OK, {}, {}, "envs/cpu"),
    ("heavy_packages", FAIL, {}, {"environments": {"cpu": "missing"}}, "prepare.py cpu"),
    ("heavy_packages", FAIL, CUDA, {"environments": {"gpu": "missing"}}, "prepare.py gpu"),
    ("evaluator_environment", OK, CONTAINER, {}, "envs/evaluator"),
    ("evaluator_environment", FAIL, OSWORLD, {"environments": {"evaluator": "missing"}}, "prepare.py eval"),
    ("playwright_library", OK, CONTAINER, {}, "no Playwright yet"),
    (
        "playwright_library",
        OK,
        CONTAINER,
        {"found": NODE, "says": {"driver/node": Answer(0, "v22.1.0\n")}},
        "Node.js v22.1.0 starts",
    ),
    (
        "playwright_library",
        FAIL,
        OSWORLD,
        {
            "found": NODE,
            "says": {"driver/node": Answer(127, "", "node: libatomic.so.1: cannot open shared object")},
        },
        "debian.sh envs/desktop/apt-evaluator.txt",
    ),
    (
        "playwright_library",
        FAIL,
        OSWORLD,
        {"found": NODE, "says": {"driver/node": Answer(126, "", "Exec format error")}},
        "prepare.py evaluator",
    ),
    ("task_files", OK, {}, {}, "tasks in"),
    ("task_files", FAIL, {"tasks.root": "/nowhere"}, {}, "correct the split"),
    ("live_tasks", OK, {}, {}, "none"),
    ("live_tasks", WARN, {}, {"kinds": "live"}, "live web pages"),
    ("live_tasks", WARN, {}, {"kinds": "google"}, "Google account"),
    ("infeasible_share", OK, {}, {}, "none of"),
    ("infeasible_share", OK, {}, {"kinds": "few infeasible"}, "scores 25 %"),
    ("infeasible_share", WARN, {}, {"kinds": "infeasible"}, "apart"),
    ("step_limit", OK, LARGE, {}, "15"),
    ("step_limit", WARN, {"size": "7b", "policy.max_steps": 3}, {}, "set 15"),
    ("precision", OK, LARGE | {"evaluation.trials": 40}, {}, "25 ±"),
    ("precision", WARN, LARGE | {"evaluation.trials": 1}, {}, "evaluation.trials"),
    ("precision", WARN, LARGE | {"evaluation.trials": 40, "arms": {"grpo": {}}}, {}, "no base arm"),
    ("precision", WARN, LARGE | {"tasks.root": "/nowhere"}, {}, "no task"),
    ("training_sizes", OK, {}, {}, "fit"),
    ("training_sizes", FAIL, {"training.micro_batch": 7}, {}, "divisor"),
    (
        "training_sizes",
        FAIL,
        {"training.tasks_per_step": 8, "training.minibatch_tasks": 8},
        {},
        "lower training.tasks_per_step",
    ),
    ("training_sizes", OK, {"policy.max_images": 2}, {}, "fit"),  # an episode becomes several sequences
    ("watchdogs", OK, {}, {}, "900 s"),
    ("watchdogs", WARN, {"training.stall_timeout_s": 60}, {}, "above"),
    ("watchdogs", WARN, {"training.stall_timeout_s": 90_000}, {}, "lower"),
    ("desktop_programs", OK, {}, {}, "bubblewrap"),
    ("desktop_programs", FAIL, {}, {"no_program": ("Xvfb", "bwrap")}, "apt-get install xvfb bubblewrap"),
    ("desktop_programs", FAIL, {}, {"says": {"find_spec('Xlib')": Answer(1)}}, "python3-xlib"),
    ("chromium", OK, {}, {}, "156"),
    ("chromium", FAIL, {}, {"no_program": ("/usr/lib/chromium/chromium",)}, "snap"),
    ("chromium", FAIL, {}, {"says": {"--version": Answer(127, "", "lib missing")}}, "lib missing"),
    ("user_namespaces", OK, {}, {}, "bubblewrap"),
    ("user_namespaces", FAIL, {}, {"says": {"bwrap": Answer(1, "", "denied")}}, "isolation: browser"),
    (
        "user_namespaces",
        FAIL,
        {},
        {
            "says": {"bwrap": Answer(1)},
            "files": {"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1"},
        },
        "sysctl kernel.apparmor",
    ),
    ("remote_desktops", OK, REMOTE, {}, "lends process"),
    ("remote_desktops", WARN, REMOTE | {"desktop.remote": {"url": "http://10.0.0.1:1"}}, {}, "SSH"),
    ("remote_desktops", FAIL, REMOTE, {"remote": UserError("refuses the token")}, "refuses"),
    ("desktop_provider", OK, {}, {}, "can start"),
    ("desktop_provider", FAIL, {}, {"provider": UserError("no such VM")}, "no such VM"),
    ("ports", OK, {}, {}, "kernel"),
    ("ports", OK, OSWORLD, {}, "9222"),
    ("ports", WARN, OSWORLD, {"taken": (9222,)}, "9222"),
    ("ports", FAIL, OSWORLD, {"closed": ("/tmp/docker_port_allocation.lck",)}, "another user"),
    ("ports", WARN, {}, {"files": {"/proc/sys/net/ipv4/ip_local_port_range": "1 50"}}, "sysctl"),
    ("docker_daemon", OK, CONTAINER, {}, "20.10"),
    ("docker_daemon", FAIL, BY_DOCKER, {"docker": Docker("Permission denied")}, "usermod"),
    ("docker_daemon", FAIL, BY_DOCKER, {"docker": Docker("refused")}, "systemctl start docker"),
    (
        "docker_daemon",
        FAIL,
        OSWORLD,
        {"docker": Docker("No such file"), "no_program": ("dockerd",)},
        "apt-get install docker.io",
    ),
    (
        "docker_daemon",
        FAIL,
        BY_DOCKER,
        {"docker": Docker("the Python package 'docker' is missing")},
        "prepare",
    ),
    ("docker_daemon", OK, CONTAINER, {"docker": Docker("refused")}, "bubblewrap runs"),
    ("docker_storage", OK, CONTAINER, {}, "overlay2"),
    ("docker_storage", FAIL, CONTAINER, {"docker": Docker(info=INFO | {"Driver": "vfs"})}, "overlay2"),
    ("docker_storage", WARN, CONTAINER, {"free": {"/var/lib/docker": (GIB, GIB)}}, "prune"),
    ("docker_storage", WARN, CONTAINER, {"docker": Docker("x")}, "docker_daemon"),
    ("docker_limits", OK, CONTAINER, {}, "memory"),
    ("docker_limits", WARN, CONTAINER, {"docker": Docker(info=INFO | {"PidsLimit": False})}, "processes"),
    ("docker_limits", WARN, CONTAINER, {"docker": Docker("x")}, "docker_daemon"),
    ("desktop_image", OK, CONTAINER, {}, "arpo-desktop"),
    ("desktop_image", WARN, CONTAINER, {"images": {}}, "build_desktop_image"),
    ("desktop_image", FAIL, CONTAINER | {"desktop.container": {"image": "mine"}}, {"images": {}}, "no mine"),
    ("leftovers", OK, CONTAINER, {"containers": [{"arpo.owner": "of another machine"}]}, "none"),
    ("leftovers", WARN, CONTAINER, {"containers": "abandoned"}, "1 containers"),
    ("kvm", OK, OSWORLD, {}, "/dev/kvm"),
    ("kvm", FAIL, OSWORLD, {"missing": ("/dev/kvm",)}, "modprobe"),
    (
        "kvm",
        FAIL,
        OSWORLD,
        {"missing": ("/dev/kvm",), "files": {"/proc/cpuinfo": "flags : x"}},
        "provider: container",
    ),
    ("kvm", OK, PINNED, {"missing": ("/dev/kvm",)}, "not needed"),
    ("kvm", FAIL, OSWORLD, {"closed": ("/dev/kvm",)}, "usermod -aG kvm"),
    ("kvm", WARN, OSWORLD, {"files": {"/proc/cpuinfo": "flags : vmx hypervisor"}}, "virtual machine"),
    ("osworld_image", OK, PINNED, {}, "as pinned"),
    ("osworld_image", WARN, OSWORLD, {}, "image_digest"),
    ("osworld_image", FAIL, PINNED, {"images": {IMAGE: {"Id": "sha256:" + "b" * 64}}}, "pull that one"),
    ("osworld_image", FAIL, OSWORLD, {"images": {}}, "docker pull"),
    ("osworld_vm", OK, PINNED, {}, "itself"),
    ("osworld_vm", WARN, OSWORLD, {}, "sha256sum"),
    ("osworld_vm", FAIL, OSWORLD, {"sizes": {"Ubuntu.qcow2": GIB}}, "broken off"),
    ("osworld_vm", FAIL, OSWORLD, {"sizes": {"Ubuntu.qcow2": None}}, "missing"),
    (
        "osworld_vm",
        FAIL,
        {"desktop.provider": "osworld", "desktop.osworld": {"hypervisor": "vmware"}},
        {},
        ".vmx",
    ),
    ("vmware", OK, VMWARE, {}, "vmrun"),
    ("vmware", FAIL, VMWARE, {"no_program": ("vmrun",)}, "PATH"),
    ("vmware", FAIL, VMWARE | {"desktop.count": 2}, {}, "set desktop.count: 1"),
    ("start_time", OK, PINNED, {}, "60"),
    ("start_time", WARN, OSWORLD, {}, "330"),
    ("download_cache", OK, CONTAINER, {}, "0 files"),
    ("download_cache", WARN, CONTAINER, {"empty_cache": True}, "remove them"),
    ("download_cache", FAIL, CONTAINER, {"closed": "cache"}, "ARPO_CACHE"),
    ("model_folder", OK, FOLDER, {"found": SHARDS}, "6.0 GiB"),
    ("model_folder", FAIL, FOLDER, {}, "safetensors"),
    ("model_folder", FAIL, FOLDER, {"files": {"/m/config.json": "{"}}, "config.json"),
    (
        "model_folder",
        FAIL,
        FOLDER,
        {"found": SHARDS, "files": {"/m/model.safetensors.index.json": "["}},
        "JSON",
    ),
    (
        "model_folder",
        FAIL,
        FOLDER,
        {"found": SHARDS, "files": INDEX, "sizes": {"model-2.safetensors": None}},
        "model-2.safetensors",
    ),
    (
        "model_folder",
        FAIL,
        FOLDER,
        {"found": SHARDS, "missing": ("/m/tokenizer_config.json",)},
        "tokenizer_config.json",
    ),
    ("named_model", OK, NAMED | {"model.revision": "a" * 40}, {}, "UI-TARS-2B-SFT at aaaa"),
    ("named_model", OK, NAMED | {"size": "2b_random", "model.shape_only": True}, {}, "random weights"),
    ("named_model", FAIL, NAMED, {}, "model.revision"),
    ("named_model", FAIL, NAMED | {"size": "7b"}, {}, "correct size"),
    ("named_model", FAIL, NAMED | {"policy.model": "UI-TARS-9"}, {}, "data/models has no 'UI-TARS-9'"),
    ("recipe", OK, {}, {}, "temperature 0.6"),
    ("recipe", OK, FOLDER, {}, "prompt arpo, absolute points"),
    ("recipe", FAIL, FOLDER | {"policy.recipe": "uitars_dpo"}, {}, "set policy.recipe: uitars_15"),
    ("recipe", FAIL, FOLDER, {"files": {"/m/config.json": '{"model_type": "qwen2_vl"}'}}, "uitars_dpo"),
    ("recipe", WARN, LARGE, {}, "set policy.recipe"),
    (
        "recipe",
        FAIL,
        {"policy.model": "Named", "policy.recipe": "uitars_15"},
        {"files": {"/checkout/data/models/Named.json": '{"config": {"model_type": "qwen2_vl"}}'}},
        "set policy.recipe: uitars_dpo",
    ),
    ("context", OK, {}, {}, "6 images"),
    ("context", FAIL, {"policy.max_model_len": 300}, {}, "max_model_len"),
    ("context", WARN, {"policy.max_model_len": 1000}, {}, "max_images"),
    ("endpoint", OK, SERVED | {"arms": {"base": {}}}, {}, "serves the-model"),
    ("endpoint", OK, SERVED, {}, "trained arms are served here"),
    ("endpoint", FAIL, SERVED, {"endpoint": UserError("does not answer")}, "does not answer"),
    ("endpoint", WARN, {"policy.endpoint": "http://127.0.0.1:1"}, {}, "policy.served_model: the-model"),
    (
        "endpoint",
        WARN,
        {"policy.endpoint": "http://lab:1"},
        {"env": {"ARPO_API_KEY": "k"}},
        "unencrypted",
    ),
    ("gpu", OK, CUDA, {}, "1 x NVIDIA H100, 80 GiB"),
    ("gpu", FAIL, CUDA, {"no_program": ("nvidia-smi", "sinfo")}, "--gpus all"),
    ("gpu", WARN, CUDA, {"no_program": ("nvidia-smi",)}, "on their node"),
    ("gpu", FAIL, CUDA, {"says": {"nvidia-smi": Answer(9, "", "couldn't communicate")}}, "couldn't"),
    ("gpu", FAIL, CUDA, {"says": {"nvidia-smi": Answer(0, "T4, 470.1, 16000, 15000")}}, "update"),
    ("gpu_memory", OK, CUDA, {}, "79 of 80"),
    ("gpu_memory", FAIL, CUDA, {"says": {"nvidia-smi": Answer(0, "T4, 570.1, 16000, 15000")}}, "larger card"),
    ("gpu_memory", WARN, CUDA, {"says": {"nvidia-smi": Answer(0, "H, 570.1, 81920, 30000")}}, "nvidia-smi"),
    ("gpu_memory", WARN, CUDA, {"says": {"nvidia-smi": Answer(9)}}, "see gpu"),
    ("gpu_access", OK, CUDA, {}, "NVRM"),
    ("gpu_access", FAIL, CUDA, {"env": {"CUDA_VISIBLE_DEVICES": ""}}, "unset"),
    (
        "gpu_access",
        FAIL,
        CUDA,
        {"found": {"nvidia[0-9]*": ["nvidia0"]}, "closed": ("/dev/nvidia0",)},
        "nvidia0",
    ),
    ("slurm", OK, {}, {}, "gpu (GPUs); states by squeue"),
    ("slurm", OK, {}, {"no_program": ("sinfo",)}, "no Slurm"),
    ("slurm", OK, {}, {"says": {"sinfo": NO_CLUSTER}}, "no Slurm"),
    ("slurm", FAIL, {}, {"says": {"sinfo": Answer(1, err="Unable to contact")}}, "Unable to contact"),
    ("slurm", FAIL, {}, {"says": {"sinfo": Answer(0)}}, "no partition"),
    ("slurm_accepts", OK, {}, {}, "sbatch --test-only"),
    ("slurm_accepts", OK, CUDA, {"no_program": ("sinfo",)}, "no Slurm"),
    (
        "slurm_accepts",
        FAIL,
        CUDA,
        {"says": {"sbatch": Answer(1, err="Invalid qos")}},
        "Invalid qos correct slurm/site",
    ),
    (
        "slurm_accepts",
        FAIL,
        CUDA,
        {"says": {"--gres=gpu:1": Answer(1, err="QOSMax")}},
        "--partition=gpu --nodes=1",
    ),
    ("slurm_accepts", FAIL, {}, {"says": {"sinfo": Answer(1)}}, "line above"),
    ("slurm_limits", OK, {}, {}, "fit"),
    ("slurm_limits", OK, CUDA, {"no_program": ("sinfo",)}, "no Slurm"),
    ("slurm_limits", FAIL, CUDA, {"says": {"sinfo": Answer(0, "cpu*|infinite|9|(null)")}}, "training.gpus"),
    ("slurm_limits", FAIL, {}, {"says": {"sinfo": Answer(1)}}, "line above"),
    ("slurm_limits", WARN, LONG, {"says": {"sinfo": Answer(0, "cpu*|1:00:00|9|(null)")}}, "goes on"),
    ("slurm_limits", FAIL, LONG, {"says": {"sinfo": Answer(0, "cpu*|10:00|9|(null)")}}, "retries"),
]
