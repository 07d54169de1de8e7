"""Slurm's accounting for the virtual cluster: slurmdbd and a MariaDB of its own, both on private sockets.

With it ``sacct`` knows every job, as on most clusters; without it only ``squeue`` does.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

from slurm.daemons import HOST, run_daemon, wait_until

PROGRAMS = ("mariadbd", "mariadb-install-db", "slurmdbd", "sacctmgr", "sacct")
ACCOUNT = "replication"
"""The account of root, who runs the jobs."""


def missing(path: str) -> str | None:
    """Why no accounting can be started here, or None. ``path``: where programs are looked for."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    packages = "slurmdbd slurm-wlm-mysql-plugin mariadb-server-core mariadb-client-core"
    return f"{', '.join(absent)} not found (Debian: {packages})" if absent else None


class Accounting:
    """The two daemons below a cluster's folder; they end by the pids that they write."""

    def __init__(self, root: Path, environment: dict[str, str], cluster: str) -> None:
        self.root, self.cluster = root, cluster
        self.data, self.log, self.run = root / "spool" / "mariadb", root / "log", root / "run"
        self.socket = self.run / "mariadb.sock"
        # slurmdbd's client library takes the socket from this variable.
        self.environment = {**environment, "MYSQL_UNIX_PORT": str(self.socket)}
        self.port = 0
        """Of slurmdbd, on loopback."""

    def start(self) -> None:
        """Start both; ``slurm.conf`` must be there."""
        if not self.data.exists():
            options = ("--no-defaults", "--user=root", f"--datadir={self.data}", "--skip-test-db")
            self._call("mariadb-install-db", *options, "--auth-root-authentication-method=socket")
        with (self.log / "mariadb.log").open("ab") as log:
            subprocess.Popen(
                [
                    *("mariadbd", "--no-defaults", "--user=root", f"--datadir={self.data}"),
                    *(f"--socket={self.socket}", f"--pid-file={self.run}/mariadbd.pid", "--skip-networking"),
                    *("--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900"),
                ],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self._database_answers, 60, f"mariadbd answers (see {self.log}/mariadb.log)")
        conf = self.root / "etc" / "slurmdbd.conf"
        conf.touch(mode=0o600)
        conf.write_text("\n".join(self._lines()) + "\n")
        run_daemon(("slurmdbd", "-s"), self.environment)
        wait_until(self._answers, 60, f"slurmdbd answers (see {self.log}/slurmdbd.log)")
        self._call("sacctmgr", "-i", "add", "cluster", self.cluster)
        self._call("sacctmgr", "-i", "add", "account", ACCOUNT, f"Cluster={self.cluster}")
        self._call("sacctmgr", "-i", "add", "user", "root", f"DefaultAccount={ACCOUNT}")

    def slurm_lines(self) -> list[str]:
        """What ``slurm.conf`` says about it."""
        return [
            "AccountingStorageType=accounting_storage/slurmdbd",
            "AccountingStorageHost=127.0.0.1",
            f"AccountingStoragePort={self.port}",
            f"AccountingStoragePass={self.run}/munge.socket",
            "AccountingStoreFlags=job_comment",
            "AccountingStorageTRES=gres/gpu",
            "JobAcctGatherType=jobacct_gather/linux",
            "JobAcctGatherFrequency=5",
        ]

    def _lines(self) -> list[str]:
        return [
            "AuthType=auth/munge",
            f"AuthInfo=socket={self.run}/munge.socket",
            f"DbdHost={HOST}",  # slurmdbd refuses 127.0.0.1 here
            "DbdAddr=127.0.0.1",
            f"DbdPort={self.port}",
            "CommunicationParameters=NoInAddrAny",  # loopback only
            "SlurmUser=root",
            f"PidFile={self.run}/slurmdbd.pid",
            f"LogFile={self.log}/slurmdbd.log",
            "StorageType=accounting_storage/mysql",
            "StorageHost=localhost",
            "StorageUser=root",
            "StorageLoc=slurm_acct_db",
        ]

    def _database_answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(os.fspath(self.socket)) == 0

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _call(self, *arguments: str) -> None:
        done = subprocess.run(
            arguments, env=self.environment, capture_output=True, text=True, check=False, timeout=120
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments)}: {done.stderr or done.stdout}")
