"""Sites: what is wrong in a TOML file is named, and what is right arrives in Parsl's configuration."""

import contextlib
import os
from dataclasses import replace
from pathlib import Path

import pytest
from small import ROOT

from tinymem.errors import UserError

TEMPLATES = ROOT / "experiments" / "site_templates"


@pytest.fixture
def sites(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    from tinymem.sweeps import sites

    return sites


def written(tmp_path, template: str, **changes) -> str:
    """A template with some of its lines replaced (None: left out), as a file."""
    lines = (TEMPLATES / template).read_text().splitlines()
    kept = [line for line in lines if line.split(" = ")[0] not in changes]
    path = tmp_path / "site.toml"
    path.write_text("\n".join(kept + [f"{name} = {value}" for name, value in changes.items() if value is not None]))
    return str(path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({}, "account is empty"),
        (
            {"account": '"a"', "walltime": None},
            "key walltime is missing; required are account, queue, walltime, nodes, worker_init",
        ),
        ({"account": '"a"', "queue": None}, "key queue is missing"),
        ({"account": '"a"', "wall_time": '"1:00:00"'}, "unknown key wall_time; known are base, scheduler, account"),
        ({"account": '"a"', "nodes": '"4"'}, "nodes '4': must be of type int"),
        ({"account": '"a"', "nodes": "0"}, "nodes 0: must be in .1, 100000."),
        ({"account": '"a"', "walltime": '"3 hours"'}, "walltime '3 hours': must be HH:MM:SS"),
        ({"account": '"a"', "scheduler": '"local"'}, "scheduler 'local': must be one of slurm, pbs$"),
        ({"account": '"a"', "launcher": '"ssh"'}, "launcher ssh: must be one of single, srun"),
        ({"account": '"a"', "base": '"summit"'}, "base 'summit': must be one of polaris, perlmutter"),
        ({"account": "a"}, "cannot be read"),
    ],
)
def test_bad_files(sites, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        sites.find_site(written(tmp_path, "polaris.toml", **changes))
    assert "site.toml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_new_cluster_says_which_scheduler_it_has(sites, tmp_path):
    with pytest.raises(UserError, match="key scheduler is missing"):
        sites.find_site(written(tmp_path, "cluster.toml", account='"a"', scheduler=None))
    with pytest.raises(UserError, match="scheduler 'lsf': must be one of slurm, pbs, local"):
        sites.find_site(written(tmp_path, "cluster.toml", account='"a"', scheduler='"lsf"'))
    site = sites.find_site(written(tmp_path, "cluster.toml", account='"a"'))
    assert (site.scheduler, site.gpus_per_node, site.blocks, site.partition) == ("slurm", 4, 2, "gpu")


def test_a_file_may_describe_this_machine(sites, tmp_path):
    path = tmp_path / "here.toml"
    path.write_text('scheduler = "local"\nworker_init = "export COLOUR=green"\ncores_per_node = 2')
    site = sites.find_site(str(path))
    (executor,) = sites._parsl_config(site, tmp_path, 2, [], [False]).executors
    assert executor.address == "127.0.0.1" and executor.provider.worker_init == "export COLOUR=green"


def test_names(sites):
    assert sites.find_site("local").scheduler == "threads"
    with pytest.raises(UserError, match="--site summit: must be one of local, local_processes, polaris, perlmutter"):
        sites.find_site("summit")
    with pytest.raises(
        UserError, match="needs your account; fill in a copy of experiments/site_templates/polaris.toml"
    ):
        sites.find_site("polaris")
    with pytest.raises(UserError, match="[Nn]o such file"):
        sites.find_site("nowhere.toml")


def test_polaris(sites, tmp_path):
    site = replace(sites.find_site(written(tmp_path, "polaris.toml", account='"mine"')), interface="")
    (executor,) = sites._parsl_config(site, tmp_path, 4, list("0123"), [False]).executors
    provider = executor.provider
    assert (type(provider).__name__, type(provider.launcher).__name__) == ("PBSProProvider", "MpiExecLauncher")
    assert (provider.account, provider.queue, provider.walltime) == ("mine", "prod", "03:00:00")
    assert (provider.nodes_per_block, provider.select_options) == (10, "ngpus=4")
    assert executor.max_workers_per_node == 4 and executor.available_accelerators == list("0123")
    assert "export PATH=" in provider.worker_init and "conda activate" in provider.worker_init


def test_a_pbs_cluster_asks_for_its_gpus(sites, tmp_path):
    changes = {"account": '"a"', "scheduler": '"pbs"'}
    with pytest.raises(UserError, match="site.toml: launcher srun: PBS lacks it"):
        sites.find_site(written(tmp_path, "cluster.toml", **changes))
    site = sites.find_site(written(tmp_path, "cluster.toml", **changes, launcher='"mpiexec"'))
    (executor,) = sites._parsl_config(site, tmp_path, 4, list("0123"), [False]).executors
    assert executor.provider.select_options == "ngpus=4"


def test_perlmutter_gives_large_models_a_node(sites, tmp_path):
    site = replace(sites.find_site(written(tmp_path, "perlmutter.toml", account='"mine"')), interface="")
    shared, whole = sites._parsl_config(site, tmp_path, 4, list("0123"), [False, True]).executors
    for executor in (shared, whole):
        provider = executor.provider
        assert (type(provider).__name__, type(provider.launcher).__name__) == ("SlurmProvider", "SrunLauncher")
        assert (provider.account, provider.qos, provider.gpus_per_node) == ("mine", "regular", 4)
    assert (shared.label, shared.max_workers_per_node, shared.available_accelerators) == ("worker", 4, list("0123"))
    assert (whole.label, whole.max_workers_per_node, whole.available_accelerators) == ("node", 1, ["0,1,2,3"])


def test_an_interface_that_is_not_there(sites, tmp_path):
    site = sites.find_site(written(tmp_path, "polaris.toml", account='"mine"', interface='"none0"'))
    with pytest.raises(UserError, match="no network interface 'none0'"):
        sites._parsl_config(site, tmp_path, 4, list("0123"), [False])


def test_gpus_of_this_machine_get_a_worker_each(sites, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert sites._visible_gpus() == ["2", "3"]
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert sites._visible_gpus() == []
    (executor,) = sites._parsl_config(sites.SITES["local_processes"], tmp_path, 2, ["2", "3"], [True]).executors
    assert executor.available_accelerators == ["2", "3"] and executor.label == "worker"
    assert executor.address == "127.0.0.1" and not executor.encrypted


def test_threads_of_a_run(sites, small, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(sites, "_cores", lambda: 8)
    with sites.open_pool(sites.SITES["local"], [], small.place, 3):
        pass
    assert small.place.environment == {"OMP_NUM_THREADS": "2"}
    assert Path(os.environ["PATH"].split(os.pathsep)[0], "interchange.py").exists()


@pytest.mark.parametrize(
    "changes, workers, environment",
    [
        ({}, 4, {"OMP_NUM_THREADS": "16"}),
        ({"gpus_per_node": "0"}, 64, {"OMP_NUM_THREADS": "1"}),
        ({"cores_per_node": None}, 4, {}),
        ({"gpus_per_node": "0", "cores_per_node": None}, 1, {}),
    ],
)
def test_runs_of_a_node_do_not_depend_on_the_login_node(
    sites, small, tmp_path, monkeypatch, changes, workers, environment
):
    found = []

    def config(site, run_dir, workers, gpus, kinds):
        found.append(workers)
        return sites.SITES["local"]

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(sites, "_cores", lambda: 7)
    monkeypatch.setattr(sites, "_parsl_config", config)
    monkeypatch.setattr(sites, "parsl_pool", lambda place, config: contextlib.nullcontext())
    site = sites.find_site(written(tmp_path, "cluster.toml", account='"a"', **changes))
    with sites.open_pool(site, [], small.place, None):
        assert (found, small.place.environment) == ([workers], environment)
