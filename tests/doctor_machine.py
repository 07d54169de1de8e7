"""A machine of the doctor's that says what a test wants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arpo_replica.doctor.machine import Answer, Docker, Machine

GIB = 2**30
HAPPY_FILES = {
    "/proc/meminfo": "MemTotal: 33554432 kB\nMemAvailable: 30000000 kB\n",
    "/proc/cpuinfo": "flags : fpu avx2 avx512f vmx\n",
    "/proc/self/cgroup": "0::/user.slice\n",
    "/proc/sys/fs/inotify/max_user_instances": "8192\n",
    "/m/config.json": '{"model_type": "qwen2_5_vl"}',
}
INFO = {
    "ServerVersion": "20.10.24",
    "Driver": "overlay2",
    "DockerRootDir": "/var/lib/docker",
    "MemoryLimit": True,
    "CpuCfsQuota": True,
    "PidsLimit": True,
}
SINFO = "cpu*|infinite|9|(null)\ngpu|2-00:00:00|2|gpu:h200:8\n"
SMI = "NVIDIA H100, 570.10, 81920, 81000"


class FakeMachine(Machine):
    """A healthy machine; keyword arguments make it ill."""

    def __init__(self, **ill: Any):
        self.ill = ill

    def _get(self, key: str, default: Any) -> Any:
        return self.ill.get(key, default)

    root = Path("/checkout")

    @property
    def env(self):
        return self._get("env", {})

    def system(self):
        return self._get("system", ("Linux", "x86_64", "3.11.7"))

    def cores(self):
        return self._get("cores", 8)

    def limits(self, name):
        return self._get(f"soft_{name}", 65536), self._get(f"hard_{name}", 65536)

    def read(self, path):
        return (HAPPY_FILES | self._get("files", {})).get(str(path))

    def exists(self, path):
        if str(path) in self._get("missing", ()):
            return False
        return str(path) in self._get("there", ()) or not str(path).endswith(".env")

    def may(self, path, mode):
        return str(path) not in self._get("closed", ())

    def size(self, path):
        return self._get("sizes", {}).get(Path(path).name, 6 * GIB)

    def files(self, folder, pattern):
        return [Path(folder) / name for name in self._get("found", {}).get(pattern, [])]

    def free(self, path):
        return self._get("free", {}).get(str(path), (500 * GIB, 900 * GIB))

    def which(self, program):
        return None if program in self._get("no_program", ()) else f"/usr/bin/{program}"

    def run(self, *command, timeout_s=30):
        for word, answer in self._get("says", {}).items():
            if any(word in part for part in command):
                return answer
        if command[0] == "nvidia-smi":
            return Answer(0, SMI)
        if command[0] in {"sinfo", "scontrol"}:
            return Answer(0, SINFO if command[0] == "sinfo" else "AccountingStorageType = none")
        if "--version" in command:
            return Answer(0, "Chromium 156.0\n")
        return Answer(0, "1800000000\n" if "--format=%ct" in command else "abc1234\n")

    def environment_state(self, name):
        return self._get("environments", {}).get(name, "ready")

    def docker(self):
        return self._get("docker", Docker(info=INFO))

    def refusals(self, config):
        return self._get("refusals", [])
