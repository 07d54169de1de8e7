"""The section `desktop`: where the policy acts, one class for each way to get desktops. And what kind of
desktop a result comes from, in words that stand beside every number.

A score from a container is no OSWorld score, whoever started the container: start state, window geometry
and program versions differ from OSWorld's virtual machine. So the provider's name is not enough.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from arpo_replica.config.section import Positive, Section, VariableName, plain_url

MARKS = {
    "process": "process desktop, not OSWorld",
    "container": "OSWorld-compatible, container desktop",
    "osworld_container": "OSWorld-compatible, container desktop",
    "osworld_unpinned": "OSWorld's virtual machine, its identity not verified",
    "osworld": "OSWorld's virtual machine",
}
"""Kind of desktop, as episode records name it -> its mark."""


def desktop_mark(kind: str) -> str:
    """The mark of a kind of desktop; an unknown kind is said to be unknown."""
    return MARKS.get(kind, f"desktop of unknown kind “{kind}”")


BUILT_IMAGE = "arpo-desktop:latest"
Apps = Literal["core", "full"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class RootConfig(Section):
    """A root file system that is brought as a file or a folder."""

    image_sha256: Sha256 | None = None
    """What the squashfs file must be, where it was brought from elsewhere."""
    scratch: Path = Path("/tmp")  # noqa: S108
    """bubblewrap: folder of this machine to which the image is unpacked, once per user, where squashfuse
    cannot mount it; about 2 GB."""


class ProcessConfig(RootConfig):
    """Desktops as processes of this machine (`provider: process`)."""

    image: Path | None = None
    """Where the desktops' programs come from. Empty: this machine's Debian packages. Otherwise, for machines
    of another distribution, a squashfs file as `build_desktop_image` makes it, or the folder of a Debian
    system."""


class ContainerConfig(RootConfig):
    """Desktops in containers of our Debian image (`provider: container`)."""

    engine: Literal["auto", "docker", "bwrap"] = "auto"
    """What runs them: a Docker daemon, or bubblewrap as an ordinary user, without Docker, KVM or root.
    `auto`: the daemon if one answers, else bubblewrap."""
    image: str = BUILT_IMAGE
    """Image of the desktops: of the daemon, or for bubblewrap the path of a squashfs file or of an unpacked
    folder. The default one is built by the workflow (rule `build_desktop_image`)."""
    apps: Apps = "full"
    """What is in the image that is built: `full`, or `core`, without Thunderbird and some tools."""
    cpus: float = Field(default=2.0, gt=0)
    """CPU cores that one desktop may use."""
    processes: Positive = 2048
    """Processes and threads that one desktop may have."""
    spares: Annotated[int, Field(ge=0)] = 1
    """Desktops started ahead, so that a reset need not wait for one; each takes 200 MB."""
    reset: Literal["auto", "hard"] = "auto"
    """`hard`: each episode gets a new container. `auto`: so do OSWorld's tasks; tasks of our own that need
    nothing special get the same one, cleaned."""
    network: Literal["never", "task", "always"] = "task"
    """Who gets a way out to the network: nobody, tasks that declare it (OSWorld's key `proxy`), all."""
    sudo: Literal["never", "task", "always"] = "task"
    """Where `sudo` works: nowhere, for tasks whose files or instruction mention it, everywhere. It takes
    capabilities and a writable system, so it is not for all."""


class OSWorldConfig(Section):
    """Desktops by `desktop-env`'s own providers (`provider: osworld`). A virtual machine boots for minutes:
    set `desktop.start_timeout_s` to 330 then."""

    hypervisor: Literal["docker", "vmware"] = "docker"
    """`docker`: the image `happysixd/osworld-docker`, as desktop-env's DockerProvider starts it. `vmware`: a
    virtual machine by `vmrun` (VMware Workstation, or Fusion on a Mac)."""
    image_digest: str | None = Field(default=None, pattern=r"^sha256:[0-9a-f]{64}$")
    """Digest (or id) that the local image `happysixd/osworld-docker:latest` must have; none: any, noted in
    the results."""
    vm: Path | None = None
    """The virtual machine: `Ubuntu.qcow2` for `docker`, the `.vmx` file for `vmware`. With `docker` none is
    for images that hold their desktop themselves, as ours does under that name."""
    vm_sha256: Sha256 | None = None
    """sha256 that the file `vm` must have; it is read once, then again only when size or time changed."""
    snapshot: str = "init_state"
    """VMware's snapshot that a reset goes back to."""
    password: str = "password"  # noqa: S105  # that of OSWorld's public image
    """Password of the desktop's user, for the templates of task files."""
    settle_ms: Annotated[int, Field(ge=0)] = 2000
    """Longest wait after an action for the screen to come to rest; OSWorld always waits 2 s."""

    @property
    def kind(self) -> str:
        """Which kind these desktops are.

        Without a virtual machine the image under OSWorld's name holds the desktop itself, as ours does: then
        it is a container. With one, only hashes that are checked at the start make it OSWorld's.
        """
        if self.vm is None and self.hypervisor == "docker":
            return "osworld_container"
        pinned = self.vm_sha256 is not None and (self.hypervisor != "docker" or self.image_digest is not None)
        return "osworld" if pinned else "osworld_unpinned"


class PoolJobsConfig(Section):
    """Pools as jobs of Slurm, on nodes without GPUs, for as long as the study's jobs need desktops
    (`desktop.remote.slurm`). What they lend is that of the sections of `lends`, e.g. `desktop.container`."""

    nodes: Positive
    """Jobs, each of them one pool."""
    per_node: Positive
    """Desktops of each pool."""
    cores_per_desktop: float = Field(default=0.5, gt=0)
    """Processors that a job asks for, for each of its desktops."""
    minutes: Positive = 24 * 60
    """Run time that a job asks for, at most what the partition allows. Before its end another takes over."""
    idle_minutes: float = Field(default=10.0, gt=0)
    """A pool that lends nothing for so long ends. The next job that needs desktops starts it again."""

    @property
    def desktops(self) -> int:
        """Of all pools."""
        return self.nodes * self.per_node


class RemoteConfig(Section):
    """Desktops that pools (`arpo serve-desktops`) lend over the network."""

    pools: Annotated[list[str], Field(min_length=1)] | Path = Field(default=["http://127.0.0.1:8700"])
    """Where they listen: their URLs, or a folder in which each of them announces itself. Over untrusted
    networks reach them through an SSH tunnel."""
    lends: Literal["process", "container", "osworld"] = "process"
    """What they lend; results are marked with it, and a pool that lends others is refused."""
    token_variable: VariableName = "ARPO_DESKTOP_TOKEN"  # noqa: S105  # a name
    """Environment variable that holds the pools' token, the same on both sides; a folder has one of its
    own."""

    slurm: PoolJobsConfig | None = None
    """Start the pools as jobs of Slurm; they announce themselves in `results/{study}/pools`."""

    @field_validator("pools", mode="before")
    @classmethod
    def _urls_or_folder(cls, pools: Any) -> Any:
        if isinstance(pools, str) and "://" in pools:
            raise ValueError("give URLs as a list, [http://...], or the path of a folder")
        for url in pools if isinstance(pools, list) else ():
            plain_url(str(url))
        return pools

    @property
    def folder(self) -> Path | None:
        """Where the pools announce themselves; None if their URLs are given."""
        return self.pools if isinstance(self.pools, Path) else None

    @property
    def urls(self) -> list[str]:
        """The URLs that are given; none where pools announce themselves."""
        return [] if isinstance(self.pools, Path) else self.pools


class DesktopConfig(Section):
    """Where the policy acts."""

    provider: Literal["process", "container", "osworld", "remote"] = "process"
    """`process`: Xvfb, window manager, Chromium and guest server in a bubblewrap sandbox, no Docker.
    `container`: all programs of OSWorld's tasks, in a container of our Debian image. `osworld`: desktop-env's
    own providers (Docker, VMware). `remote`: desktops of another machine."""
    screen: tuple[Positive, Positive] = (1920, 1080)
    """Width and height in pixels."""
    count: Positive = 4
    """Desktops that run at once."""
    isolation: Literal["namespace", "browser"] = "namespace"
    """`namespace`: own network, process and file-system namespaces (bubblewrap). `browser`: for machines
    that forbid user namespaces; only Chromium's own rules keep it off the network."""
    memory_mb: Positive = 1500
    """A desktop that takes more is stopped; its episode is an env_error."""
    disk_mb: Positive = 512
    """Size of a desktop's home and /tmp together, in memory."""
    start_timeout_s: Positive = 60
    """A desktop not ready by then counts as an env_error."""
    act_timeout_s: Positive = 15
    """Longest time that one action or screenshot may take; typing gets more by the length of the text."""
    settle_ms: Annotated[int, Field(ge=0)] = 400
    """Longest wait after an action for the screen to change and come to rest; usually it takes 30."""
    wait_seconds: Annotated[float, Field(ge=0, le=600)] = 0.5
    """How long the action `wait()` lasts. The prompt of UI-TARS promises 5 s; OSWorld's runner sleeps 4."""
    pause_seconds: Annotated[float, Field(ge=0, le=600)] = 0.0
    """Shortest time from any other action to the next screenshot. OSWorld's runner: 2 s; what a timer changes
    later than that is not seen there either."""
    process: ProcessConfig = ProcessConfig()
    """Desktops as processes of this machine (`provider: process`)."""
    container: ContainerConfig = ContainerConfig()
    """Desktops in containers (`provider: container`)."""
    osworld: OSWorldConfig = OSWorldConfig()
    """Desktops by `desktop-env` (`provider: osworld`)."""
    remote: RemoteConfig = RemoteConfig()
    """Desktops of another machine (`provider: remote`)."""

    @model_validator(mode="after")
    def _image_needs_namespaces(self) -> Self:
        if self.process.image is not None and self.isolation != "namespace":
            raise ValueError("desktop.process.image needs desktop.isolation: namespace")
        return self

    @field_validator("screen")
    @classmethod
    def _is_an_image(cls, screen: tuple[int, int]) -> tuple[int, int]:
        if max(screen) > 200 * min(screen):
            raise ValueError("the longer side may be at most 200 times the shorter one")
        return screen

    @model_validator(mode="after")
    def _enough_in_jobs(self) -> Self:
        slurm = self.remote.slurm
        if self.provider == "remote" and slurm is not None and self.count > slurm.desktops:
            raise ValueError(
                f"desktop.count is {self.count}, but desktop.remote.slurm has {slurm.nodes} nodes with "
                f"{slurm.per_node} desktops each; lower the one or raise the other"
            )
        return self

    @property
    def pool_jobs(self) -> PoolJobsConfig | None:
        """The pools that the workflow starts, if it does."""
        return self.remote.slurm if self.provider == "remote" else None

    @property
    def started(self) -> str:
        """The provider of the desktops that the workflow starts, here or in jobs; `remote`: it starts
        none."""
        return self.provider if self.pool_jobs is None else self.remote.lends

    @property
    def act_limit_s(self) -> float:
        """Longest time that one action may take, besides that of typing."""
        return self.act_timeout_s + max(self.wait_seconds, self.pause_seconds)

    @property
    def kind(self) -> str:
        """What the desktops are, wherever they run: the mark of results."""
        if self.provider == "osworld":
            return self.osworld.kind
        if self.provider != "remote":
            return self.provider
        # Which image and virtual machine the other side has is not known here.
        return "osworld_unpinned" if self.remote.lends == "osworld" else self.remote.lends
