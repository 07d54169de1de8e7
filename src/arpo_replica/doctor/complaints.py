"""What users of OSWorld, UI-TARS, ARPO and their relatives report as failures, and which checks look for it.

Threads are named as ``owner/repository#number``. A test keeps every check that is named here existing, and
the table of docs/doctor.md is made from this list.
"""

from __future__ import annotations

from typing import NamedTuple


class Complaint(NamedTuple):
    """One failure that users report."""

    what: str
    threads: str
    checks: tuple[str, ...]


COMPLAINTS = (
    Complaint(
        "The virtual machine never becomes ready ('VM failed to become ready within timeout period')",
        "xlang-ai/OSWorld#168, #164, #205, #119, #42; DigiRL's first trouble entry",
        ("kvm", "osworld_vm", "start_time", "memory", "cores"),
    ),
    Complaint("No KVM on cloud machines", "xlang-ai/OSWorld#154", ("kvm", "desktop_provider")),
    Complaint(
        "The download of image or virtual machine fails or breaks off",
        "xlang-ai/OSWorld#120, #168",
        ("osworld_image", "osworld_vm", "disk"),
    ),
    Complaint(
        "The browser's debugging port answers 400, or connect_over_cdp fails",
        "xlang-ai/OSWorld#495, #23, #24",
        ("proxies", "ports", "chromium", "desktop_image"),
    ),
    Complaint(
        "'setup_controller' is missing; an evaluator or getter does not exist",
        "xlang-ai/OSWorld#266",
        ("evaluator_environment", "task_files"),
    ),
    Complaint(
        "No Dockerfile; a rebuild of the environment takes a day",
        "xlang-ai/OSWorld#124, #162",
        ("desktop_image", "docker_daemon", "docker_storage"),
    ),
    Complaint(
        "Slow: fixed sleeps, minutes per episode, accessibility trees of 10-50 s",
        "xlang-ai/OSWorld#156; yjyddq/RiOSWorld#6",
        ("cores", "memory", "docker_limits"),
    ),
    Complaint(
        "Scores drift: search engines and live pages change",
        "xlang-ai/OSWorld#174",
        ("live_tasks",),
    ),
    Complaint("Saying FAIL everywhere scores about 9", "xlang-ai/OSWorld#177", ("infeasible_share",)),
    Complaint(
        "Fractional scores come as a surprise", "xlang-ai/OSWorld#392", ("infeasible_share", "precision")
    ),
    Complaint(
        "Wrong gold values, shared temporary files, caches with half a file",
        "xlang-ai/OSWorld#519",
        ("download_cache", "task_files"),
    ),
    Complaint(
        "Update pop-ups and locked screens after a reset",
        "xlang-ai/OSWorld#515",
        ("desktop_image", "osworld_image", "clock"),
    ),
    Complaint(
        "Published results are not reproduced",
        "bytedance/UI-TARS#225, #162, #201, #108, #53; xlang-ai/OSWorld#380; JIA-Lab-research/ARPO#13; "
        "MoonshotAI/Kimi-VL#74; open-compass/MMBench-GUI#5; X-PLUG/MobileAgent#225",
        ("recipe", "precision", "step_limit", "context", "model_folder"),
    ),
    Complaint(
        "0 % because the trajectory ends after 3 steps",
        "bytedance/UI-TARS#90; xlang-ai/OSWorld#380",
        ("step_limit",),
    ),
    Complaint(
        "Undocumented or wrong defaults: history, images, language, coordinates",
        "bytedance/UI-TARS#58, #90, #162",
        ("recipe", "context"),
    ),
    Complaint(
        "Typing loses '<' or what is not ASCII",
        "xlang-ai/OSWorld#257; xlang-ai/OSWorld-V2#380",
        ("locale", "desktop_programs"),
    ),
    Complaint(
        "Training hangs silently",
        "Computer-use-agents/dart-gui#10; verl-project/verl#3873, #4709, #6583, #7180; "
        "modelscope/ms-swift#6962; huggingface/open-r1#690",
        ("watchdogs", "shared_memory", "open_files", "processes"),
    ),
    Complaint(
        "Memory grows over turns until the run dies",
        "TIGER-AI-Lab/verl-tool#148; verl-project/verl#2490; commits of hanshengzhu0001/arpo_remote_env",
        ("memory", "cgroup_memory", "gpu_memory", "docker_limits"),
    ),
    Complaint(
        "Logs, trajectories or task lists are not published",
        "bytedance/UI-TARS#53, #58; JIA-Lab-research/ARPO#8",
        ("task_files", "results_folder", "git"),
    ),
    Complaint(
        "Training or OSWorld support is missing or takes a day to set up",
        "NovaSky-AI/SkyRL#858; xlang-ai/OSWorld#124",
        ("controller_environment", "heavy_packages", "evaluator_environment", "python_version"),
    ),
    Complaint(
        "Races for ports, locks and names when several start at once",
        "OpenHands/OpenHands#9810",
        ("ports", "kernel_limits"),
    ),
    Complaint(
        "Desktops of killed runs stay; the usual advice stops every container of the machine",
        "clean-up advice of OSWorld and ComputerRL",
        ("leftovers", "results_folder"),
    ),
    Complaint(
        "Small batches or few environments break shapes (division by zero, NaN at n = 1)",
        "commits of hanshengzhu0001/arpo_remote_env",
        ("training_sizes",),
    ),
    Complaint(
        "The model's server is dead, refuses the key or serves another model; episodes are scored anyway",
        "OSWorld's UI-TARS runners (a dead server ends an episode as DONE)",
        ("endpoint", "gpu", "gpu_memory"),
    ),
    Complaint(
        "Desktops on another machine: unauthenticated, on all interfaces, or gone in the middle",
        "DART, OSWorld and OSGym servers (review of their code)",
        ("remote_desktops",),
    ),
)
