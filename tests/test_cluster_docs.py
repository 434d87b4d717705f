"""What docs/cluster.md refers to: Ray's own validation, the SLURM script on a real Ray cluster, and what it says of tokens."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml

from nas.execution.security import exposed

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "cluster"
RAY = Path(sys.executable).parent / "ray"
SMALL = ("--num-cpus=1", "--object-store-memory=80000000")
PLAIN = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SLURM_"))} | {"RAY_USAGE_STATS_ENABLED": "0"}
# What SLURM would do, with hosts that are loopback addresses of this one.
STUBS = {
    "scontrol": '[ "$*" = "show hostnames n[1-2]" ] && printf "n1\\nn2\\n"',
    "srun": f"""while [ "$1" != ray ]; do [ "$1" = --nodelist=n2 ] && own=--node-ip-address=127.0.0.3; shift; done
exec "$@" {SMALL[1]} $own""",
    "nas": """echo "$@" >>calls
ray status --address "$3" | grep -c ' node_' >nodes
mkdir -p results/mine && touch results/mine/run.yaml
trap 'echo stopped >>calls; [ -e once ] && exit 130; touch once' TERM
if [ -e long ]; then touch running; while :; do sleep 0.1; done; fi""",
}
DRIVER = """
import sys, ray
ray.init(sys.argv[1], log_to_driver=False)
print("nodes", len(ray.nodes()), flush=True)
"""


@pytest.mark.parametrize("name", ["ray-cluster.yaml", "ray-cluster-aws.yaml"])
def test_ray_takes_the_cluster_file_and_starts_nothing_without_a_token(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((FOLDER / name).read_text())
    whole = prepare_config(config)
    validate_config(whole)
    with pytest.raises(Exception, match="head_start"):
        validate_config(whole | {"head_start_ray_commands": "ray start"})
    starts = [c for kind in ("head", "worker") for c in whole[f"{kind}_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 2
    for command in starts:
        assert command.startswith("RAY_AUTH_MODE=token ") and "--dashboard-host" not in command
    assert "--include-dashboard=false" in starts[0] and "--autoscaling-config=" in starts[0]
    assert whole["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert (ROOT / whole["file_mounts"]["~/nas"] / "requirements.txt").is_file()


def test_the_slurm_script_is_one() -> None:
    script = FOLDER / "slurm.sh"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    if shellcheck := shutil.which("shellcheck"):
        subprocess.run([shellcheck, script], check=True)


def test_what_the_docs_name_exists() -> None:
    text = (ROOT / "docs" / "cluster.md").read_text()
    for name in re.findall(r"docs/[\w./-]+\w", text):
        assert (ROOT / name).exists(), name
    assert "docs/cluster.md" in (ROOT / "README.md").read_text()


@pytest.fixture
def job(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a SLURM job on two nodes."""
    venv = tmp_path / "venv" / "bin"
    venv.mkdir(parents=True)
    for name, code in STUBS.items():
        (venv / name).write_text(f"#!/usr/bin/env bash\n{code}\n")
        (venv / name).chmod(0o755)
    (venv / "ray").symlink_to(RAY)
    number = str(os.getpid())
    yield PLAIN | {
        "SLURM_JOB_ID": number,
        "SLURM_JOB_NAME": "mine",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_CPUS_PER_TASK": "1",
        "NAS_VENV": str(tmp_path / "venv"),
        "NAS_HEAD_IP": "127.0.0.2",
        "NAS_WAIT": "120",
        "NAS_GRACE": "2",
    }
    shutil.rmtree(f"/tmp/nas-{number}", ignore_errors=True)


def left_of(environment: Mapping[str, str]) -> list[str]:
    """The Ray processes of the job."""
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in running.splitlines() if f"/tmp/nas-{environment['SLURM_JOB_ID']}/" in line]


@pytest.mark.slow
def test_a_slurm_job_stops_when_its_time_is_up_and_its_second_submission_goes_on(tmp_path, job) -> None:
    command = ["bash", str(FOLDER / "slurm.sh"), "--data", "my data.yaml", "--blocks", "my.py"]
    (tmp_path / "long").touch()
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, cwd=tmp_path, env=job, stdout=log, stderr=log) as first:
        while not (tmp_path / "running").exists() and first.poll() is None:
            time.sleep(0.2)
        said = (tmp_path / "log").read_text()
        assert first.poll() is None, said
        assert (tmp_path / "nodes").read_text() == "2\n", said
        first.send_signal(signal.SIGTERM)
    assert first.returncode == 130 and not left_of(job), (tmp_path / "log").read_text()
    (tmp_path / "long").unlink()
    second = subprocess.run(command, cwd=tmp_path, env=job, capture_output=True, text=True)
    assert second.returncode == 0 and not left_of(job), second.stderr
    address = f"127.0.0.2:{20000 + int(job['SLURM_JOB_ID']) % 10000}"
    assert (tmp_path / "calls").read_text().splitlines() == [
        f"search --address {address} --data my data.yaml --blocks my.py --name mine",
        "stopped",
        "stopped",
        f"search --address {address} --resume results/mine --blocks my.py",
    ]


@pytest.mark.slow
def test_a_head_with_a_token_takes_who_shows_it_and_nobody_else(tmp_path) -> None:
    """Also a fact that the docs and `exposed` rely on: `ray start` listens beyond loopback whatever its address."""
    home = tmp_path / "home"
    home.mkdir()
    plain = PLAIN | {"HOME": str(home), "PYTHONUNBUFFERED": "1"}
    subprocess.run(["bash", "-c", f"umask 077 && {RAY} get-auth-token --generate"], env=plain, check=True, capture_output=True)
    token = home / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o077 == 0 and len(token.read_text()) == 64
    named = tmp_path / "token"
    named.write_text(token.read_text() + "\n")
    secret = {"RAY_AUTH_MODE": "token"}
    port = 20000 + os.getpid() % 10000
    address, temp = f"127.0.0.2:{port}", f"/tmp/nas-t{os.getpid()}"
    start = [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.2", f"--port={port}", f"--temp-dir={temp}"]
    start += ["--include-dashboard=false", *SMALL]

    def connect(**environment: str) -> str:
        """What a driver says; it waits up to 20 s for a cluster that does not take it."""
        command = [sys.executable, "-c", DRIVER, address]
        done = subprocess.run(command, env=plain | environment, capture_output=True, text=True)
        return "accepted" if "nodes 1" in done.stdout else done.stdout + done.stderr

    with (tmp_path / "log").open("w") as log, subprocess.Popen(start, env=plain | secret, stdout=log, stderr=log) as head:
        try:
            deadline = time.monotonic() + 60
            while (said := connect(**secret)) != "accepted" and time.monotonic() < deadline:
                assert head.poll() is None, (tmp_path / "log").read_text()
            assert said == "accepted"
            assert connect(**secret, RAY_AUTH_TOKEN_PATH=str(named)) == "accepted"
            assert connect(**secret, HOME=str(tmp_path), RAY_AUTH_TOKEN=token.read_text()) == "accepted"
            assert "no authentication token was found" in connect(**secret, HOME=str(tmp_path))
            assert "InvalidAuthToken" in connect(**secret, RAY_AUTH_TOKEN="0" * 64)
            assert "InvalidAuthToken" in connect()  # with an address, ray shows a token only if told to
            assert "no token" in str(exposed(address, plain)) and exposed(address, plain | secret) is None
        finally:
            head.terminate()
            head.wait(60)
            shutil.rmtree(temp, ignore_errors=True)
