"""Sites of sweeps: this machine, Polaris, Perlmutter, or any PBS or Slurm cluster described by a TOML file.

    --site local               threads on this machine, one per core; with GPUs worker processes, one per GPU
    --site local_processes     Parsl's worker processes on this machine
    --site my_polaris.toml     a cluster: copy a file of experiments/site_templates and fill in your account

A TOML file has the keys of `Site`, except those of its `base` (polaris, perlmutter). With scheduler = "local" it
describes this machine. Accounts and paths belong there, not in the code.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from tinymem import files
from tinymem.errors import UserError
from tinymem.inputs import read_toml
from tinymem.options import field_types, option, settings
from tinymem.sweeps import with_parent
from tinymem.sweeps.attempt import Place
from tinymem.sweeps.engine import Pool
from tinymem.sweeps.job import Job
from tinymem.sweeps.pools import NODE, parsl_pool

# A word that needs no quotes in any shell: Parsl and schedulers paste paths and names into shell scripts unquoted.
PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")
WORDS = ("account", "queue", "partition", "interface")  # keys pasted into a command line
LINES = ("constraint", "select_options", "launcher_options")  # keys pasted into a line of a script
AFFINITY = re.compile(r"none|block|block-reverse|alternating|list:[0-9,:-]+")
GPU = re.compile(r"\d+|GPU-[0-9A-Fa-f-]+|MIG-[0-9A-Za-z/-]+")
START_SECONDS = {"local": 60.0, "slurm": 300.0, "pbs": 300.0}  # limit for the first worker of a running block
BAD_BLOCKS = 3  # give up after so many consecutive blocks without a worker
# Seconds until workers notice that the driver was killed.
LOCAL_HEARTBEAT: dict[str, Any] = dict(heartbeat_period=5, heartbeat_threshold=30)


@settings
class Site:
    """A site. Its fields are the keys of its TOML file.

    A block is one scheduler job: `nodes` nodes for `walltime`. At most `blocks` run at a time.
    """

    scheduler: str = option("slurm", "the program that allocates nodes", choices=("threads", "local", "slurm", "pbs"))
    account: str = option("", "project to charge")
    queue: str = option("", "PBS: queue; Slurm: quality of service (QOS); may be empty")
    walltime: str = option("", "duration of a block, HH:MM:SS")
    nodes: int = option(1, "nodes per block", low=1, high=10**5)
    worker_init: str = option("", "shell commands before the workers start: modules, environments; may be empty")
    blocks: int = option(1, "maximum number of blocks at a time", low=1, high=10**5)
    partition: str = option("", "Slurm: partition")
    constraint: str = option("", "Slurm: kind of node")
    scheduler_options: str = option("", "further #SBATCH or #PBS lines")
    select_options: str = option("", "PBS: added to the select statement; empty: ngpus=gpus_per_node")
    launcher: str = option(
        "srun", "program that starts one manager per node", choices=("single", "srun", "mpiexec", "cray_mpiexec")
    )
    launcher_options: str = option("", "further options of the launcher")
    cores_per_node: int = option(
        0, "cores that a node's runs share; 0: all of this machine's; on a cluster: unknown", low=0, high=10**5
    )
    gpus_per_node: int = option(0, "GPUs, with one worker each; 0: workers share the cores", low=0, high=10**3)
    cpu_affinity: str = option("none", "Parsl's cpu_affinity")
    interface: str = option("", "network interface of the login node that nodes can reach; empty: detected")

    def __post_init__(self) -> None:
        for name in WORDS:
            value = getattr(self, name)
            if value and not PLAIN.fullmatch(value):
                raise UserError(f"--{name} {value!r}: is not one plain word in a shell; only letters, digits and "
                                "_@%+=:,./- are allowed")  # fmt: skip
        for name in LINES:
            if not getattr(self, name).isprintable():
                raise UserError(f"--{name} {getattr(self, name)!r}: must be one line")
        if not AFFINITY.fullmatch(self.cpu_affinity):
            raise UserError(f"--cpu_affinity {self.cpu_affinity!r}: must be none, block, block-reverse, alternating or "
                            "list:CORES:CORES, such as list:0-7:8-15")  # fmt: skip


CLUSTERS = ("slurm", "pbs")
IN_FILES = (*CLUSTERS, "local")  # the schedulers that a TOML file may name
REQUIRED = ("account", "queue", "walltime", "nodes", "worker_init")

SITES: dict[str, Site] = {
    "local": Site(scheduler="threads"),
    "local_processes": Site(scheduler="local"),
    # ALCF: 4 A100 and 32 cores (64 threads) per node; each GPU's worker runs on the nearest cores.
    "polaris": Site(
        scheduler="pbs",
        select_options="ngpus=4",
        launcher="cray_mpiexec",
        launcher_options="--depth=64 --ppn 1",
        cores_per_node=64,
        gpus_per_node=4,
        cpu_affinity="list:24-31,56-63:16-23,48-55:8-15,40-47:0-7,32-39",
        interface="bond0",
    ),
    # NERSC: 4 A100 and 64 cores (128 threads) per GPU node.
    "perlmutter": Site(
        scheduler="slurm",
        constraint="gpu",
        launcher="srun",
        launcher_options="-c 128",
        cores_per_node=128,
        gpus_per_node=4,
        interface="hsn0",
    ),
}


def find_site(name: str) -> Site:
    """Return a site by name or from a TOML file. Raise UserError for an unknown site, and an unknown or missing key."""
    if name.endswith(".toml"):
        return _read_site(Path(name))
    if name not in SITES:
        raise UserError(f"--site {name}: must be one of {', '.join(SITES)}, or a TOML file (see experiments/README.md)")
    if SITES[name].scheduler in CLUSTERS:
        template = f"experiments/site_templates/{name}.toml"
        raise UserError(f"--site {name}: needs your account; fill in a copy of {template} and give --site COPY.toml")
    return SITES[name]


def _read_site(path: Path) -> Site:
    values = read_toml(path, "--site")
    clusters = [name for name, site in SITES.items() if site.scheduler in CLUSTERS]
    base = values.pop("base", None)
    if base not in (None, *clusters):
        raise UserError(f"{path}: base {base!r}: must be one of {', '.join(clusters)}, or left out")
    allowed = CLUSTERS if base else IN_FILES
    if values.get("scheduler", "slurm") not in allowed:
        raise UserError(f"{path}: scheduler {values['scheduler']!r}: must be one of {', '.join(allowed)}")
    local = values.get("scheduler") == "local"
    required = ("scheduler",) if local else REQUIRED if base else ("scheduler", *REQUIRED)
    types = field_types(Site)
    for name, value in values.items():
        if name not in types:
            raise UserError(f"{path}: unknown key {name}; known are base, {', '.join(types)}")
        if type(value) is not types[name]:
            raise UserError(f"{path}: {name} {value!r}: must be of type {types[name].__name__}")
    for name in required:
        if name not in values:
            raise UserError(f"{path}: key {name} is missing; required are {', '.join(required)}")
        if values[name] == "" and name in ("account", "walltime"):
            raise UserError(f"{path}: {name} is empty; fill it in")
    if not local and not re.fullmatch(r"\d{1,4}:[0-5]\d:[0-5]\d", values["walltime"]):
        raise UserError(f"{path}: walltime {values['walltime']!r}: must be HH:MM:SS, such as 03:00:00")
    try:
        site = replace(SITES[base] if base else Site(), **values)
    except UserError as error:
        raise UserError(f"{path}: {str(error).removeprefix('--')}") from None
    if site.scheduler == "pbs" and site.launcher == "srun":
        raise UserError(f"{path}: launcher srun: PBS lacks it; give mpiexec, cray_mpiexec or, on one node, single")
    return site


@contextmanager
def open_pool(site: Site, jobs: Iterable[Job], place: Place, max_workers: int | None) -> Iterator[Pool]:
    """Yield the workers of a site. Parsl's files go into the place's folder, or into one with a shell-safe path.

    max_workers: jobs at a time on a machine (on a cluster: per node). All processes end with the block.
    """
    gpus = list(map(str, range(site.gpus_per_node))) if site.scheduler in CLUSTERS else _visible_gpus()
    if gpus and site.scheduler == "threads":  # Parsl gives each process a GPU; threads would all use the first
        site = replace(site, scheduler="local")
    here = site.scheduler not in CLUSTERS  # a login node's cores do not tell those of other nodes
    cores = site.cores_per_node or (_cores() if here else 0)
    workers = min(len(gpus), max_workers or len(gpus)) if gpus else max_workers or cores or 1
    if cores and "OMP_NUM_THREADS" not in os.environ:  # otherwise every run would use all cores
        place.environment["OMP_NUM_THREADS"] = str(max(1, cores // workers))
    # Parsl finds its helper programs by name. They are next to this Python, even if its environment is not active.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    kinds = sorted({job.whole_node for job in jobs} or {False})
    run_dir = parsl_folder(site, place.folder) / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    with parsl_pool(place, _parsl_config(site, run_dir, workers, gpus, kinds)) as pool:
        yield pool


def parsl_folder(site: Site, folder: str | Path) -> Path:
    """Return the folder for Parsl's files: the sweep's folder, or another user folder with a shell-safe path.

    Raise UserError, before any work, if there is none, or on a cluster if this Python's path is not shell-safe.
    """
    if site.scheduler in CLUSTERS and not PLAIN.fullmatch(str(Path(sys.executable).parent)):
        raise UserError(
            f"--site: the path of this Python, {sys.executable!r}, is not one plain word in the nodes' shells; install "
            "it in a folder whose path has only letters, digits and _@%+=:,./-"
        )
    if site.scheduler == "threads":  # no shell
        return Path(folder) / "parsl"
    name = f"tinymem-parsl-{files.digest({'folder': str(Path(folder).absolute())})}"
    places = [Path(folder).absolute() / "parsl", Path.home() / ".cache" / "tinymem" / name]
    if site.scheduler == "local":  # on a cluster, the nodes must see the folder
        places.append(Path(tempfile.gettempdir()) / f"{name}-{os.getuid()}")
    for place in places:
        if PLAIN.fullmatch(str(place)):
            return files.writable_folder(place)
    raise UserError(
        f"--output_dir {str(folder)!r}: this path is not one plain word in the workers' shells, nor is that of "
        "the home folder; give one with only letters, digits and _@%+=:,./-"
    )


def _parsl_config(site: Site, run_dir: Path, workers: int, gpus: list[str], kinds: list[bool]) -> Any:
    """Return Parsl's configuration. kinds: jobs that share a node (False), that need a whole node (True), or both."""
    from parsl.config import Config
    from parsl.executors import ThreadPoolExecutor

    if site.scheduler == "threads":
        executors = [ThreadPoolExecutor(label="threads", max_threads=workers)]
        return Config(executors=executors, run_dir=str(run_dir), strategy="none", initialize_logging=False)
    if site.scheduler == "local":
        kinds = [False]
    executors = [_workers(site, workers, gpus, whole_node) for whole_node in kinds]
    return Config(executors=executors, run_dir=str(run_dir), strategy="simple")  # replaces lost blocks


def _workers(site: Site, workers: int, gpus: list[str], whole_node: bool) -> Any:
    """Return an executor with one worker process per GPU, or one per node that sees all its GPUs."""
    from parsl.addresses import address_by_interface
    from parsl.executors import HighThroughputExecutor
    from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD

    local = site.scheduler == "local"
    try:
        address = "127.0.0.1" if local else address_by_interface(site.interface) if site.interface else None
    except OSError:
        raise UserError(f"no network interface {site.interface!r} here; set the key interface of the site") from None
    return HighThroughputExecutor(
        label=NODE if whole_node else "worker",
        address=address,
        encrypted=not local,
        provider=_provider(site),
        max_workers_per_node=1 if whole_node else workers,
        cores_per_worker=1e-3,  # max_workers sets the number of workers
        available_accelerators=[",".join(gpus)] if whole_node and gpus else gpus[:workers],
        cpu_affinity="none" if whole_node or workers != site.gpus_per_node else site.cpu_affinity,
        block_error_handler=StartWatch(START_SECONDS[site.scheduler]),
        launch_cmd=DEFAULT_LAUNCH_CMD.replace("process_worker_pool.py", _shell_command("process_worker_pool.py"), 1),
        interchange_launch_cmd=[
            sys.executable,
            with_parent.__file__,
            str(os.getpid()),
            sys.executable,
            str(_program("interchange.py")),
        ],
        **(LOCAL_HEARTBEAT if local else {}),
    )


def _program(name: str) -> Path:
    """Return the path of a Parsl helper program, next to this Python or on the PATH."""
    beside = Path(sys.executable).parent / name
    found = shutil.which(name)
    return beside if beside.exists() or found is None else Path(found)


def _shell_command(name: str) -> str:
    """Return a Parsl helper program as a shell command, in a template for str.format."""
    words = shlex.join([sys.executable, str(_program(name))])
    return words.replace("{", "{{").replace("}", "}}")


class StartWatch:
    """A hook that Parsl calls on an executor's blocks every few seconds. It fails all jobs if no worker starts.

    Parsl's own hook gives up only if a block fails. It would wait forever for a block that ends without an error, or
    that runs without a worker. seconds: limit for the first worker of a running block.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: dict[str, float] = {}

    def __call__(self, executor: Any, status: dict[str, Any]) -> None:
        from parsl.jobs.states import JobState

        with_worker = set(executor.connected_blocks())
        blocks = [(block, status[block]) for block in sorted(status, key=int)]
        bad = []
        for block, state in blocks[-BAD_BLOCKS:]:
            if block in with_worker or state.state in (JobState.SCALED_IN, JobState.PENDING, JobState.HELD):
                continue
            if state.terminal:
                bad.append(state)
            elif time.monotonic() - self._since.setdefault(block, time.monotonic()) > self._seconds:
                reason = f"no worker started within {self._seconds:.0f} s{_said(state)}"
                executor.set_bad_state_and_fail_all(NoWorker(reason))
                return
        if len(bad) == BAD_BLOCKS:
            executor.set_bad_state_and_fail_all(NoWorker(f"workers do not start{_said(bad[-1])}"))


class NoWorker(Exception):
    """No worker has started. The message is the reason, in one line."""


def _said(state: Any) -> str:
    """Return the exit code of a block and the last line of its shell's output."""
    lines = [line.strip() for line in f"{state.stderr_summary or state.message or ''}".splitlines() if line.strip()]
    code = "" if state.exit_code is None else f" (exit code {state.exit_code})"
    return code + (f": {lines[-1]}" if lines else "")


def _provider(site: Site) -> Any:
    from parsl.launchers import MpiExecLauncher, SingleNodeLauncher, SrunLauncher
    from parsl.providers import LocalProvider, PBSProProvider, SlurmProvider

    if site.scheduler == "local":
        return LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1, worker_init=site.worker_init)
    launcher = {
        "single": lambda: SingleNodeLauncher(),
        "srun": lambda: SrunLauncher(overrides=site.launcher_options),
        "mpiexec": lambda: MpiExecLauncher(overrides=site.launcher_options),
        "cray_mpiexec": lambda: MpiExecLauncher(bind_cmd="--cpu-bind", overrides=site.launcher_options),
    }[site.launcher]()
    common: dict[str, Any] = dict(
        account=site.account,
        walltime=site.walltime,
        nodes_per_block=site.nodes,
        init_blocks=1,
        min_blocks=0,
        max_blocks=site.blocks,
        scheduler_options=site.scheduler_options,
        worker_init=f"{site.worker_init}\nexport PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH",
        launcher=launcher,
        cmd_timeout=120,
    )
    if site.scheduler == "pbs":
        cores = {"cpus_per_node": site.cores_per_node} if site.cores_per_node else {}
        select = site.select_options or (f"ngpus={site.gpus_per_node}" if site.gpus_per_node else "")
        return PBSProProvider(queue=site.queue or None, select_options=select, **cores, **common)
    return SlurmProvider(
        partition=site.partition or None,
        qos=site.queue or None,
        constraint=site.constraint or None,
        gpus_per_node=site.gpus_per_node or None,
        **common,
    )


def _cores() -> int:
    """Return the number of cores that this process may use: a scheduler's job gets only some of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, without loading torch."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        names = map(str.strip, os.environ["CUDA_VISIBLE_DEVICES"].split(","))
        return list(dict.fromkeys(takewhile(GPU.fullmatch, names)))  # CUDA stops reading at the first invalid word
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(i) for i, line in enumerate(line for line in listed.splitlines() if line.startswith("GPU "))]
