"""A real Slurm on this machine for tests: on loopback only, with its files in a temporary folder.

If it is not installed, root installs Debian's packages with apt-get.
"""

import contextlib
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from survival import wait_until

PACKAGES = "munge slurmctld slurmd slurm-client"
PROGRAMS = "munged slurmctld slurmd sbatch srun scontrol scancel squeue sinfo"
CPUS = 16  # of a node, whatever the machine has, so that no job waits for a free one
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # where the daemons are
_POLICY = Path("/usr/sbin/policy-rc.d")  # asked by packages whether they may start their daemons
_APT_GET = "apt-get --quiet -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o DPkg::Lock::Timeout=60"

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PropagateResourceLimits=NONE
ReturnToService=2
KillWait=5
MinJobAge=3600
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/none
GresTypes=gpu
NodeName=DEFAULT CPUs={cpus} RealMemory=262144 Gres=gpu:2
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeAddr=127.0.0.1 Port={port}\n"
HOST = socket.gethostname().partition(".")[0]
SECOND = f"{HOST}-second"
# Starts a daemon under that host name, if this is permitted. $1 is a hosts file that contains the name.
_RENAME = f'hostname {SECOND} && mount --bind "$1" /etc/hosts && shift && exec "$@"'
_ON_SECOND = ("unshare", "--uts", "--mount", "sh", "-c", _RENAME, "sh")


def install() -> str:
    """Installs Slurm if it is missing. Returns why it cannot, or ""."""
    if not (missing := _missing()):
        return ""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return f"Slurm is not installed (no {missing}), and only root can install it, with apt-get"
    has_policy = _POLICY.exists()
    if not has_policy:
        _POLICY.write_text("#!/bin/sh\nexit 101\n")
        _POLICY.chmod(0o755)
    try:
        command = f"{_APT_GET} update; {_APT_GET} install --yes --no-install-recommends {PACKAGES}"
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired as error:
        return str(error)
    finally:
        if not has_policy:
            _POLICY.unlink()
    return f"apt-get cannot install {PACKAGES}: {done.stderr.strip()[-300:]}" if _missing() else ""


def _missing() -> str:
    return ", ".join(name for name in PROGRAMS.split() if not shutil.which(name, path=_PATH))


def _free_ports(count: int) -> list[int]:
    """Returns ports that the system gives to no other process before the daemons open them."""
    ports = []
    for port in random.sample(range(10_000, 20_000), 100):
        with socket.socket() as each, contextlib.suppress(OSError):
            each.bind(("127.0.0.1", port))
            ports.append(port)
    return ports[:count]


class Slurm:
    """A cluster of one node, or of two if this machine permits it, with two pretended GPUs each. A context manager."""

    def __init__(self) -> None:
        # A short path: that of a socket can have 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.daemons: list[subprocess.Popen] = []
        hosts = self.folder / "hosts"
        hosts.write_text(f"127.0.0.1 localhost {HOST} {SECOND}\n")
        self.on_second = [*_ON_SECOND, str(hosts)]
        several = subprocess.run([*self.on_second, "true"], capture_output=True, check=False).returncode == 0
        self.nodes = [HOST, SECOND] if several else [HOST]
        own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        path = f"{Path(sys.executable).parent}:{_PATH}"
        self.environment = {**own, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": path}

    def __enter__(self) -> "Slurm":
        try:
            self._configure()
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if len(self.daemons) > 2:
                # The daemons do not end the processes of jobs.
                self.call("scancel", "--full", "--user", self.call("id", "-un").strip(), check=False)
                wait_until(lambda: not self.call("squeue", "--noheader", check=False).strip(), 20)
        finally:
            for daemon in reversed(self.daemons):
                daemon.terminate()
                try:
                    daemon.wait(10)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _configure(self) -> None:
        user = self.call("id", "-un").strip()
        port, *ports = _free_ports(1 + len(self.nodes))
        text = CONFIGURATION.format(host=HOST, user=user, folder=self.folder, cpus=CPUS, controller_port=port)
        text += "".join(NODE.format(name=name, port=port) for name, port in zip(self.nodes, ports))
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null,/dev/zero\n")
        for name in ("state", "munge", *(f"spool-{node}" for node in self.nodes)):
            (self.folder / name).mkdir()
        key = self.folder / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        for folder in (self.folder, self.folder / "munge"):
            folder.chmod(0o755)

    def _start(self) -> None:
        munge = self.folder / "munge"
        files = {"key-file": "key", "socket": "socket", "log-file": "log", "pid-file": "pid", "seed-file": "seed"}
        self._daemon("munged", "--foreground", *(f"--{option}={munge / name}" for option, name in files.items()))
        self._until((munge / "socket").exists, "munged")
        self._daemon("slurmctld", "-D", "-c", "-f", self.environment["SLURM_CONF"])
        for node in self.nodes:
            self._daemon(
                *(self.on_second if node == SECOND else ()), "slurmd", "-D", "-f", self.environment["SLURM_CONF"]
            )
        idle = ["idle"] * len(self.nodes)
        self._until(lambda: self.call("sinfo", "-h", "-N", "-o", "%T", check=False).split() == idle, "Slurm")

    def _daemon(self, *command: str) -> None:
        """Starts a child of this process that ends with it, even if it is killed."""
        tied = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        with open(self.folder / f"{command[0]}-{len(self.daemons)}.out", "wb") as log:
            self.daemons.append(subprocess.Popen([*tied, *command], env=self.environment, stdout=log, stderr=log))

    def _until(self, holds: object, name: str) -> None:
        def has_died() -> bool:
            return any(daemon.poll() is not None for daemon in self.daemons)

        if not wait_until(lambda: holds() or has_died(), 60) or has_died():
            logs = [path for pattern in ("*.out", "*.log", "munge/log") for path in self.folder.glob(pattern)]
            raise RuntimeError(f"{name} does not start:\n" + "\n".join(path.read_text()[-2000:] for path in logs))

    def call(self, *command: object, check: bool = True, **options: object) -> str:
        """Runs a command and returns its stdout. Raises AssertionError if it fails and `check` is true."""
        done = subprocess.run(
            list(map(str, command)), env=self.environment, capture_output=True, text=True, check=False, **options
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{command}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def submit(self, *arguments: object, cwd: Path) -> int:
        """Calls `sbatch` and returns the id of the job."""
        return int(self.call("sbatch", "--parsable", *arguments, cwd=cwd).strip().partition(";")[0])

    def running(self, job: int) -> list[str]:
        """Returns the states of the tasks of a job that have not ended."""
        return self.call("squeue", "--noheader", "--array", "--format=%T", f"--jobs={job}").split()

    def wait(self, *jobs: int, seconds: float = 300) -> None:
        """Waits until the jobs have ended."""
        deadline = time.monotonic() + seconds
        while any(map(self.running, jobs)):
            assert time.monotonic() < deadline, self.call("squeue")
            time.sleep(0.2)

    def show(self, job: object) -> dict[str, str]:
        """Returns what `scontrol show job` prints about one job or task: key -> value."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.call("scontrol", "show", "job", job)))

    def ended(self, job: object) -> tuple[str, str]:
        """Returns the state and the exit code of a job or task that has ended."""
        shown = self.show(job)
        return shown["JobState"], shown["ExitCode"]

    def log(self, folder: Path, job: object) -> str:
        """Returns the log of a job or task of run_regressor.sh that was submitted in this folder, or ""."""
        path = folder / f"colorization-{self.show(job)['JobId']}.log"
        return path.read_text(errors="replace") if path.exists() else ""  # a character can be cut in two
