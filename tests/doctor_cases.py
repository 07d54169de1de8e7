"""What each check of the doctor must say of machines that are well or ill."""

from __future__ import annotations

import json
from typing import Any

import yaml

from arpo_replica.base.environments import ROOT
from arpo_replica.config import parse_config
from arpo_replica.config.models import StudyConfig
from arpo_replica.doctor.examine import Level
from arpo_replica.doctor.machine import Answer, Docker
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
ADAPTERS = CUDA | {"training.lora": {"rank": 32, "alpha": 64}, "training.micro_batch": 1}
UNTRAINED = CUDA | {"arms": {"base": {}}}
REDUCED = UNTRAINED | {"size": "7b_fp8", "serving.quantization": "fp8"}
LARGE = {"size": "7b", "policy.max_steps": 15}
NO_CLUSTER = Answer(1, err="sinfo: fatal: Could not establish a configuration source")
LONG = {"evaluation.trials": 300}
FOLDER = {"policy.model": "/m", "policy.recipe": "uitars_15"}
NAMED = {"policy.model": "UI-TARS-2B-SFT", "size": "2b"}
SERVED = {"policy.endpoint": "http://127.0.0.1:1", "policy.served_model": "x"}
ELSEWHERE = SERVED | {"policy.model": "served", "arms": {"base": {}}}
PINNED = {"desktop.provider": "osworld", "desktop.osworld": {"image_digest": "sha256:" + "a" * 64}}
OK, WARN, FAIL = Level.OK, Level.WARN, Level.FAIL

CASES: list[tuple[str, Level, dict[str, Any], dict[str, Any], str]] = [
    # check, level, changes of the config, illness of the machine, part of what is found or of the fix
    ("system", OK, {}, {}, "Linux"),
    ("system", FAIL, {}, {"system": ("Darwin", "arm64", "3.11.1")}, "VMware"),
    ("system", WARN, {}, {"system": ("Linux", "aarch64", "3.11.1")}, "x86-64"),
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
    ("memory", FAIL, {}, {"files": {"/sys/fs/cgroup/memory.max": str(GIB)}}, "--mem"),
    (
        "memory",
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
    ("results_folder", FAIL, {}, {"closed": ("/checkout/results",)}, "chown"),
    ("results_folder", WARN, {}, {"found": {"*.lock": ["0.input.lock"]}}, "--unlock"),
    ("results_folder", OK, {}, {}, "500 GiB"),
    ("results_folder", WARN, {}, {"free": {"/checkout/results": (GIB, GIB)}}, "make room"),
    ("results_folder", FAIL, {}, {"free": {"/checkout/results": (1, GIB)}}, "larger disk"),
    (
        "results_folder",
        WARN,
        {"size": "2b"},
        {"free": {"/checkout/results": (150 * GIB, 900 * GIB)}},
        "up to 298",
    ),
    ("results_folder", OK, {"size": "2b", "arms": {"base": {}}}, {}, "up to 1"),
    ("results_folder", WARN, {}, {"free": {"/checkout/results": None}}, "does not answer"),
    ("shared_memory", OK, {}, {}, "GiB free"),
    ("shared_memory", WARN, {}, {"free": {"/dev/shm": (GIB // 6, GIB)}}, "--shm-size"),
    ("shared_memory", FAIL, {}, {"free": {"/dev/shm": (64 << 20, 64 << 20)}}, "--shm-size"),
    ("shared_memory", FAIL, {}, {"missing": ("/dev/shm",)}, "mount"),
    ("limits", OK, {}, {"soft_NOFILE": None}, "any open files, 65536 processes"),
    ("limits", WARN, {}, {"soft_NOFILE": 256}, "ulimit -n 1536"),
    ("limits", FAIL, {}, {"soft_NOFILE": 256, "hard_NOFILE": 1024}, "limits.conf"),
    ("limits", FAIL, {}, {"soft_NPROC": 100}, "ulimit -u"),
    ("limits", FAIL, {}, {"files": {"/sys/fs/cgroup/pids.max": "200"}}, "--pids-limit"),
    (
        "limits",
        WARN,
        {"desktop.count": 32},
        {"files": {"/proc/sys/fs/inotify/max_user_instances": "128"}},
        "sysctl",
    ),
    ("environments", WARN, {}, {"environments": {"controller": "stale"}}, "prepare.py controller"),
    ("environments", OK, {}, {}, "envs/controller, envs/cpu: as their locks say"),
    ("environments", FAIL, {}, {"environments": {"cpu": "missing"}}, "prepare.py cpu"),
    ("environments", FAIL, CUDA, {"environments": {"gpu": "missing"}}, "prepare.py gpu"),
    ("environments", OK, CONTAINER, {}, "envs/evaluator"),
    ("environments", FAIL, OSWORLD, {"environments": {"evaluator": "missing"}}, "prepare.py eval"),
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
    ("changing_tasks", WARN, {}, {"kinds": "live"}, "live web pages"),
    ("changing_tasks", OK, {}, {"kinds": "few infeasible"}, "scores 25 %"),
    ("changing_tasks", WARN, {}, {"kinds": "infeasible"}, "apart"),
    ("step_limit", OK, LARGE, {}, "15"),
    ("step_limit", WARN, {"size": "7b", "policy.max_steps": 3}, {}, "set 15"),
    ("precision", OK, LARGE | {"evaluation.trials": 40}, {}, "25 ±"),
    ("precision", WARN, LARGE | {"evaluation.trials": 1}, {}, "evaluation.trials"),
    ("precision", WARN, LARGE | {"evaluation.trials": 40, "arms": {"grpo": {}}}, {}, "no base arm"),
    ("precision", WARN, LARGE | {"tasks.root": "/nowhere"}, {}, "no task"),
    ("chromium", OK, {}, {}, "156"),
    ("chromium", FAIL, {}, {"no_program": ("/usr/lib/chromium/chromium",)}, "snap"),
    ("chromium", FAIL, {}, {"says": {"--version": Answer(127, "", "lib missing")}}, "lib missing"),
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
    ("docker_daemon", OK, CONTAINER, {}, "overlay2"),
    ("docker_daemon", FAIL, CONTAINER, {"docker": Docker(info=INFO | {"Driver": "vfs"})}, "overlay2"),
    ("docker_daemon", WARN, CONTAINER, {"free": {"/var/lib/docker": (GIB, GIB)}}, "prune"),
    ("docker_daemon", WARN, CONTAINER, {"docker": Docker(info=INFO | {"PidsLimit": False})}, "processes"),
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
    ("osworld_pins", WARN, {"desktop.provider": "osworld"}, {}, "image_digest"),
    ("osworld_pins", OK, PINNED, {}, "itself"),
    ("osworld_pins", WARN, VMWARE | {"desktop.start_timeout_s": 330}, {}, "sha256sum"),
    ("osworld_pins", FAIL, OSWORLD, {"sizes": {"Ubuntu.qcow2": GIB}}, "broken off"),
    ("osworld_pins", WARN, OSWORLD, {}, "330"),
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
    ("context", WARN, {"policy.max_model_len": 1000}, {}, "max_images"),
    ("gpu", OK, ADAPTERS, {}, "1 x NVIDIA H100, driver 570.10"),
    ("gpu", FAIL, CUDA, {}, "no single card here surely holds it"),
    ("gpu", FAIL, CUDA, {"no_program": ("nvidia-smi", "sinfo")}, "--gpus all"),
    ("gpu", WARN, CUDA, {"no_program": ("nvidia-smi",)}, "on their node"),
    ("gpu", FAIL, CUDA, {"says": {"nvidia-smi": Answer(9, "", "couldn't communicate")}}, "couldn't"),
    ("gpu", FAIL, CUDA, {"says": {"nvidia-smi": Answer(0, "T4, 470.1, 16000, 15000")}}, "update"),
    ("gpu", OK, ADAPTERS, {}, "79 of 80"),
    ("gpu", FAIL, CUDA, {"says": {"nvidia-smi": Answer(0, "T4, 570.1, 16000, 15000")}}, "larger card"),
    ("gpu", WARN, ADAPTERS, {"says": {"nvidia-smi": Answer(0, "H, 570.1, 81920, 20000")}}, "nvidia-smi"),
    ("gpu", FAIL, UNTRAINED, {"says": {"nvidia-smi": Answer(0, "A4000, 570.1, 16000, 15900")}}, "larger"),
    ("gpu", OK, REDUCED, {"says": {"nvidia-smi": Answer(0, "A4000, 570.1, 16000, 15900")}}, "about 13"),
    ("gpu", FAIL, CUDA, {"env": {"CUDA_VISIBLE_DEVICES": ""}}, "unset"),
    ("slurm", OK, {}, {}, "gpu (GPUs); states by squeue"),
    ("slurm", OK, {}, {"no_program": ("sinfo",)}, "no Slurm"),
    ("slurm", OK, {}, {"says": {"sinfo": NO_CLUSTER}}, "no Slurm"),
    ("slurm", FAIL, {}, {"says": {"sinfo": Answer(1, err="Unable to contact")}}, "Unable to contact"),
    ("slurm", FAIL, {}, {"says": {"sinfo": Answer(0)}}, "no partition"),
    ("slurm", OK, {}, {}, "sbatch --test-only"),
    ("slurm", OK, CUDA, {"no_program": ("sinfo",)}, "no Slurm"),
    (
        "slurm",
        FAIL,
        CUDA,
        {"says": {"sbatch": Answer(1, err="Invalid qos")}},
        "Invalid qos correct slurm/site",
    ),
    (
        "slurm",
        FAIL,
        CUDA,
        {"says": {"--gres=gpu:1": Answer(1, err="QOSMax")}},
        "--partition=gpu --nodes=1",
    ),
    ("slurm", FAIL, CUDA, {"says": {"sinfo": Answer(0, "cpu*|infinite|9|(null)")}}, "training.gpus"),
    ("slurm", WARN, LONG, {"says": {"sinfo": Answer(0, "cpu*|1:00:00|9|(null)")}}, "goes on"),
    ("slurm", FAIL, LONG, {"says": {"sinfo": Answer(0, "cpu*|10:00|9|(null)")}}, "retries"),
    ("study", OK, {}, {}, "study 'demo' would start"),
    (
        "study",
        FAIL,
        {},
        {"refusals": ["No such VM; name one."]},
        "No such VM; name one. as the sentence says",
    ),
    ("study", FAIL, {}, {"refusals": ["One.", "Two."]}, "One. Two."),
    ("connections", OK, SERVED, {"env": {"ARPO_API_KEY": "k"}}, "on this machine"),
    ("connections", OK, {"policy.endpoint": "http://lab:1", "policy.served_model": "x"}, {}, "encrypted"),
    ("connections", WARN, {"policy.endpoint": "http://127.0.0.1:1"}, {}, "set policy.served_model"),
    (
        "connections",
        WARN,
        {"policy.endpoint": "http://lab:1"},
        {"env": {"ARPO_API_KEY": "k"}},
        "policy.endpoint is",
    ),
    ("connections", OK, REMOTE, {}, "on this machine"),
    ("connections", WARN, REMOTE | {"desktop.remote": {"pools": ["http://10.0.0.1:1"]}}, {}, "SSH tunnel"),
    ("port_lock", OK, OSWORLD, {}, "free"),
    ("port_lock", FAIL, OSWORLD, {"closed": ("/tmp/docker_port_allocation.lck",)}, "another user"),
]
