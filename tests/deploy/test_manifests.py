"""Claims about deploy/: its files keep their promises, agree with one another, and start only what exists.

No container engine or cluster is used: the files are read as data, and their commands go through our own parsers.
"""

import argparse
import importlib.metadata
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.cli.main import _parser
from flows.recipes import resolve_config
from tpo import __version__
from tpo.engines.cluster.processes import QUIET
from tpo.planning.needs import gpus_needed

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
TARGETS = ("cpu", "gpu")
Document = dict[str, Any]


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """A stage of the Dockerfile."""

    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        """The arguments of each instruction with this name."""
        return [text for instruction, text in self.instructions if instruction == name]


def dockerfile() -> tuple[dict[str, str], dict[str, Stage]]:
    """The arguments before the first stage, and the stages by name."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, rest = line.split(maxsplit=1)
        if instruction == "FROM":
            base, _, name = rest.split()
            stages[name] = Stage(arguments.get(base.strip("${}"), base))
        elif stages:
            stages[name].instructions.append((instruction, rest))
        else:
            name, value = rest.split("=", 1)
            arguments[name] = value
    return arguments, stages


def documents(name: str) -> dict[str, Document]:
    """The objects in a file of deploy/kuberay, by kind."""
    return {found["kind"]: found for found in yaml.safe_load_all((DEPLOY / "kuberay" / name).read_text())}


def compose(name: str = "compose.yaml") -> Document:
    found: Document = yaml.safe_load((DEPLOY / name).read_text())
    return found


def pods() -> dict[str, Document]:
    """Every pod in KubeRay's files, by its role."""
    job = documents("rayjob.yaml")["RayJob"]["spec"]
    head, (workers,) = job["rayClusterSpec"]["headGroupSpec"], job["rayClusterSpec"]["workerGroupSpecs"]
    return {"head": head["template"], "workers": workers["template"], "submitter": job["submitterPodTemplate"]}


def environment(stage: Stage) -> dict[str, str]:
    return dict(word.split("=", 1) for text in stage.all("ENV") for word in shlex.split(text))


def owned_folders(stage: Stage) -> set[str]:
    """The folders that a stage makes its user the owner of."""
    (found,) = re.findall(r"install -d -o tpo -g tpo (.*)", " ".join(stage.all("RUN")))
    return set(found.split())


def images() -> Iterator[tuple[str, str]]:
    """Every image that a file names, with its place."""
    for name in ("compose.yaml", "compose.gpu.yaml"):
        for service, found in compose(name)["services"].items():
            yield f"{name}: {service}", found["image"]
    for pod, template in pods().items():
        yield f"kuberay: {pod}", template["spec"]["containers"][0]["image"]
    for base in dockerfile()[0].values():
        yield "Dockerfile", base


# --- the image --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_the_image_runs_as_a_user_and_starts_flows(target: str):
    stage = dockerfile()[1][target]
    assert "useradd --uid 1000 " in stage.all("RUN")[0]
    assert stage.instructions[-3:] == [
        ("USER", "1000:1000"),
        ("ENTRYPOINT", '["python", "-m", "flows"]'),
        ("CMD", '["--help"]'),
    ]
    home = "/home/tpo/.prefect"  # the user can't write to the code's folder
    assert environment(stage)["PREFECT_HOME"] == home
    assert environment(stage)["PREFECT_UI_STATIC_DIRECTORY"].startswith(home)
    assert environment(stage)["PATH"].startswith(f"{stage.all('WORKDIR')[0]}/.venv/bin:")


@pytest.mark.parametrize(("target", "python", "flag"), [("cpu", "3.11", ""), ("gpu", "3.12", " --gpu")])
def test_the_image_has_the_locked_packages_on_the_python_they_were_locked_for(target: str, python: str, flag: str):
    _, stages = dockerfile()
    packages, final = stages[f"{target}-packages"], stages[target]
    assert final.base == packages.base
    assert re.fullmatch(rf"python:{re.escape(python)}\.\d+-slim-bookworm@sha256:[0-9a-f]{{64}}", final.base)
    (run,) = packages.all("RUN")
    assert run.startswith(f"UV_NO_CACHE=1 requirements/setup.sh{flag} ") and " pip " not in run
    assert f"--from={target}-packages {packages.all('WORKDIR')[0]}/.venv .venv" in final.all("COPY")
    assert "pip" not in " ".join(final.all("RUN"))


@pytest.mark.parametrize("target", TARGETS)
def test_the_image_has_no_package_lists_and_a_compiler_only_if_kernels_are_compiled(target: str):
    (run,) = dockerfile()[1][target].all("RUN")
    installed = re.findall(r"apt-get install -y --no-install-recommends ([^&]*)", run)[0].split()
    assert run.count("apt-get install") == 1 and "rm -rf /var/lib/apt/lists/*" in run
    assert set(installed) == {"libnuma1", "wget"} | ({"g++"} if target == "gpu" else set())


@pytest.mark.parametrize("target", TARGETS)
def test_the_image_sets_for_rays_nodes_and_prefect_what_a_run_sets_itself(target: str):
    stage = dockerfile()[1][target]
    found = environment(stage)
    allowed = {"PATH", "PREFECT_HOME", "PREFECT_UI_STATIC_DIRECTORY"}
    assert {name: value for name, value in found.items() if name not in allowed}.items() <= QUIET.items()
    assert {
        "DO_NOT_TRACK",
        "PREFECT_SERVER_ANALYTICS_ENABLED",
        "RAY_USAGE_STATS_ENABLED",
        "RAY_agent_register_timeout_ms",
        "RAY_worker_niceness",
    } <= found.keys()
    assert environment(stage) == environment(dockerfile()[1]["cpu"])


def test_the_image_has_everything_that_a_run_needs_and_the_build_context_allows_it(tmp_path: Path):
    copied = [word for text in dockerfile()[1]["checkout"].all("COPY") for word in text.split()[:-1]]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {f"!{name}" for name in (*copied, "requirements")} == {line for line in ignored if line.startswith("!")}
    assert ignored.index("*") < ignored.index("!deploy") < ignored.index("deploy/.env")
    for name in copied:
        (tmp_path / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "flows", "plan", "--to", "1", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in (0, 2) and '"problems"' in done.stdout, done.stderr


# --- what agrees ------------------------------------------------------------------------------------------------------


def test_all_files_name_the_same_version_of_every_image():
    found = dict(images())
    assert not [where for where, image in found.items() if image.endswith(":latest") or ":" not in image]
    ours = {where: image for where, image in found.items() if image.startswith("tpo:")}
    assert len(ours) == 6 and {image.partition(":")[2] for image in ours.values()} == {
        f"{__version__}-{target}" for target in TARGETS
    }
    others = {image for where, image in images() if image not in ours.values()}
    assert all(re.search(r"@sha256:[0-9a-f]{64}$", image) for image in others)
    for name in ("compose.yaml", "compose.gpu.yaml"):
        for service in compose(name)["services"].values():
            if "build" in service:
                assert service["image"] == f"tpo:{__version__}-{service['build']['target']}"
                assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def test_every_command_in_a_file_is_valid():
    parser, found = _parser(), 0
    for path in (*DEPLOY.glob("*"), *DEPLOY.glob("kuberay/*"), *DEPLOY.glob("slurm/*")):
        if path.is_file():
            for text in re.findall(
                r"(?:-m flows|iterate\.sbatch|tpo:\S+-[cg]pu) (iterate .*|--to .*)", path.read_text()
            ):
                if "$@" not in text:  # the job's own arguments
                    words = shlex.split(text)
                    resolved(parser.parse_args(words if words[0] == "iterate" else ["iterate", *words]))
                    found += 1
    assert found >= 4


def resolved(options: argparse.Namespace) -> Any:
    """The run that a command line means, with an existing profile."""
    return resolve_config(
        str(DEPLOY / "profiles" / f"{options.profile}.toml"),
        run_name=options.run_name,
        judge=options.judge,
        seed=options.seed,
        overrides=options.set,
    )


# --- Compose ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["database", "server", "worker"])
def test_every_service_is_limited_monitored_and_unprivileged(name: str):
    service = compose()["services"][name]
    assert service["restart"] == "unless-stopped" and service["healthcheck"]["test"][0] == "CMD"
    assert service["mem_limit"] and service["cpus"]
    assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "network_mode", "cap_add", "pid", "ipc"} & service.keys()


def test_compose_opens_ports_only_on_loopback_and_isolates_the_database():
    file = compose()
    ports = [port for service in file["services"].values() for port in service.get("ports", [])]
    assert ports == ["127.0.0.1:4200:4200"]
    assert file["networks"]["database"] == {"internal": True}
    assert [name for name, service in file["services"].items() if "database" in service["networks"]] == [
        "database",
        "server",
    ]
    assert file["services"]["worker"]["environment"]["PREFECT_WORKER_WEBSERVER_HOST"] == "127.0.0.1"


def test_compose_has_no_secret_and_no_default_for_one():
    file = compose()
    assert {tuple(secret) for secret in file["secrets"].values()} == {("environment",)}
    for service in file["services"].values():
        assert set(service["secrets"]) <= file["secrets"].keys()
        named = {name for name in service["environment"] if re.search("PASSWORD|AUTH|KEY|TOKEN", name)}
        assert all(name.endswith("_FILE") for name in named)
    assert not re.search(r"\$\{TPO_(DATABASE_PASSWORD|PREFECT_AUTH)", (DEPLOY / "compose.yaml").read_text())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("server", {"PREFECT_SERVER_DATABASE_PASSWORD": "p$w d", "PREFECT_SERVER_API_AUTH_STRING": "tpo:s"}),
        ("worker", {"PREFECT_API_AUTH_STRING": "tpo:s"}),
    ],
)
def test_a_service_starts_with_its_secrets_and_not_without(name: str, expected: dict[str, str], tmp_path: Path):
    *shell, script, zero = compose()["services"][name]["entrypoint"]
    # Compose unescapes $$, and a container has the secrets' folder.
    script = script.replace("$$", "$").replace("/run/secrets", str(tmp_path))
    command = [*shell, script, zero, sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"]
    (tmp_path / "database_password").write_text("p$w d\n")
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode != 0 and not refused.stdout
    (tmp_path / "prefect_auth").write_text("tpo:s\n")
    started = subprocess.run(command, capture_output=True, text=True, check=True)
    assert expected.items() <= json.loads(started.stdout).items()


def test_composes_volumes_are_declared_and_mounted_where_the_images_user_may_write():
    file, stage = compose(), dockerfile()[1]["cpu"]
    mounts = [volume.split(":", 1) for service in file["services"].values() for volume in service.get("volumes", [])]
    named = {re.sub(r"\$\{\w+:-(\w+)\}", r"\1", f"{source}:{rest}").partition(":")[0] for source, rest in mounts}
    assert named == file["volumes"].keys() >= {"database", "runs"}
    inside = re.findall(r":(/opt/tpo/\w+)", str(file["services"]["worker"]["volumes"]))
    assert len(inside) == 3 and set(inside) <= owned_folders(stage)


# --- KubeRay ----------------------------------------------------------------------------------------------------------


def test_the_jobs_cluster_is_the_permanent_one_under_another_name():
    cluster = documents("raycluster.yaml")["RayCluster"]
    job = documents("rayjob.yaml")["RayJob"]
    assert {cluster["apiVersion"], job["apiVersion"]} == {"ray.io/v1"}
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]


def test_the_cluster_requires_a_token_autoscales_and_ends_with_its_job():
    job = documents("rayjob.yaml")["RayJob"]["spec"]
    cluster = job["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == importlib.metadata.version("ray")
    assert cluster["enableInTreeAutoscaling"] is True and cluster["autoscalerOptions"]["idleTimeoutSeconds"] > 300
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert job["shutdownAfterJobFinishes"] is True and job["backoffLimit"] > 0


def test_the_jobs_profile_fits_the_clusters_maximum_gpus():
    job = documents("rayjob.yaml")["RayJob"]["spec"]
    python, dash_m, flows, *words = job["entrypoint"].split()
    assert (python, dash_m, flows) == ("python", "-m", "flows") and not re.search("[;&|'\"$`<>]", job["entrypoint"])
    config = resolved(_parser().parse_args(words))
    assert config.cluster.address == "auto"
    (workers,) = job["rayClusterSpec"]["workerGroupSpecs"]
    resources = workers["template"]["spec"]["containers"][0]["resources"]
    assert resources["limits"] == resources["requests"]
    assert workers["minReplicas"] == 0
    assert max(gpus_needed(config).values()) <= workers["maxReplicas"] * int(resources["limits"]["nvidia.com/gpu"])


@pytest.mark.parametrize("name", ["head", "workers", "submitter"])
def test_every_pod_runs_as_the_images_user_unprivileged_and_limited(name: str):
    template = pods()[name]
    (container,) = template["spec"]["containers"]
    user = int(dockerfile()[1]["gpu"].all("USER")[0].split(":")[0])
    security = template["spec"]["securityContext"]
    assert security["runAsNonRoot"] is True and security["runAsUser"] == security["fsGroup"] == user
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
    assert template["spec"]["restartPolicy"] == "Never"


def test_all_nodes_mount_the_shared_volume_at_the_images_folders():
    storage, stage = documents("storage.yaml"), dockerfile()[1]["gpu"]
    claim = storage["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for name in ("head", "workers"):
        spec = pods()[name]["spec"]
        assert spec["volumes"] == [
            {"name": "tpo", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}},
        ]
        mounts = spec["containers"][0]["volumeMounts"]
        assert {mount["mountPath"] for mount in mounts} == owned_folders(stage) - {"/opt/tpo/.cache"}
        assert all(mount["name"] == "tpo" and mount["mountPath"] == f"/opt/tpo/{mount['subPath']}" for mount in mounts)


def test_only_our_pods_and_the_operator_can_reach_our_pods():
    policy = documents("storage.yaml")["NetworkPolicy"]["spec"]
    (label,) = policy["podSelector"]["matchLabels"].items()
    assert all(label in template["metadata"]["labels"].items() for template in pods().values())
    assert policy["policyTypes"] == ["Ingress"]
    assert [peer["podSelector"]["matchLabels"] for peer in policy["ingress"][0]["from"]] == [
        dict([label]),
        {"app.kubernetes.io/name": "kuberay-operator"},
    ]


# --- SLURM ------------------------------------------------------------------------------------------------------------


def test_a_slurm_job_is_signaled_before_its_end_and_may_be_requeued():
    text = (DEPLOY / "slurm/iterate.sbatch").read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", text, re.MULTILINE))
    assert re.fullmatch(r"B:TERM@\d+", options["signal"]) and int(options["signal"].partition("@")[2]) >= 120
    assert {"requeue", "exclusive"} <= options.keys() and options["ntasks-per-node"] == "1"
    last = max(found.start() for found in re.finditer("^#SBATCH", text, re.MULTILINE))
    assert not re.search("^[^#\n]", text[:last], re.MULTILINE), "SLURM reads no options after a command"
