"""The files of cluster/ agree with each other, with what they are for and with this project's versions; no cloud is used."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import boto3
import botocore.session
import botocore.validate
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
LOCKED = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
DOCKERFILE = (CLUSTER / "Dockerfile").read_text()
UNITS = {"Mi": 2**20, "Gi": 2**30}


def _launcher() -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text())


def _node_types() -> dict[str, Any]:
    return _launcher()["available_node_types"]


def _kuberay() -> dict[str, Any]:
    [found] = [one for one in yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text()) if one["kind"] == "RayCluster"]
    return found


def _groups() -> list[dict[str, Any]]:
    spec = _kuberay()["spec"]
    return [{"groupName": "head", **spec["headGroupSpec"]}, *spec["workerGroupSpecs"]]


def _bytes(quantity: str) -> int:
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, CLUSTER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _instructions() -> list[str]:
    """The Dockerfile's instructions, each on one line, without comments."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.MULTILINE)
    return [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line]


@pytest.mark.parametrize("name", ["Dockerfile", "README.md", "kuberay.yaml", "ray-cluster.yaml"])
def test_ray_is_the_locked_one(name: str) -> None:
    """Every image tag and Ray version in the file is the version that constraints.txt locks."""
    text = (CLUSTER / name).read_text()
    versions = re.findall(r"tunemill:ray([\d.]+)-", text) + re.findall(r'rayVersion: "(.+)"', text)
    assert set(versions) == {LOCKED["ray"]}


def test_the_launcher_takes_its_file() -> None:
    """Ray's own schema and checks accept the file, completed with Ray's defaults as `ray up` does."""
    prepared = prepare_config(_launcher())
    validate_config(prepared)
    # Ray's defaults would install another Ray over the image's.
    assert not any(prepared[name] for name in ("setup_commands", "head_setup_commands", "worker_setup_commands"))


def test_the_launcher_knows_a_mistyped_field() -> None:
    """The check above can fail: a field that Ray does not know is refused."""
    import jsonschema

    with pytest.raises(jsonschema.ValidationError, match="idle_timeout"):
        validate_config({**prepare_config(_launcher()), "idle_timeout": 5})


def test_only_gpu_nodes_have_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """By EC2's table of instance types (moto's copy) the gpu nodes have one GPU each, the others none."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    types = {name: kind["node_config"]["InstanceType"] for name, kind in _node_types().items()}
    with mock_aws():
        described = boto3.client("ec2").describe_instance_types(InstanceTypes=sorted(set(types.values())))["InstanceTypes"]
    gpus = {one["InstanceType"]: sum(gpu["Count"] for gpu in one.get("GpuInfo", {}).get("Gpus", [])) for one in described}
    assert {name: gpus[kind] for name, kind in types.items()} == {"head": 0, "cpu": 0, "gpu": 1}


def test_ec2_knows_every_field_of_a_node() -> None:
    """Each node_config is a valid RunInstances request, by the service model that boto3 ships."""
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for name, kind in _node_types().items():
        report = botocore.validate.ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **kind["node_config"]}, shape)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"


def test_nodes_of_the_launcher_take_the_image_of_their_kind() -> None:
    """GPU nodes run the gpu image, all others the cpu image; workers start at none and within the cluster's limit."""
    launcher, kinds = _launcher(), _node_types()
    images = {name: kind.get("docker", {}).get("worker_image", launcher["docker"]["image"]) for name, kind in kinds.items()}
    assert {name: image.rsplit("-", 1)[1] for name, image in images.items()} == {"head": "cpu", "cpu": "cpu", "gpu": "gpu"}
    assert all(kinds[name]["min_workers"] == 0 for name in ("cpu", "gpu"))
    assert launcher["max_workers"] == kinds["cpu"]["max_workers"] + kinds["gpu"]["max_workers"]


def test_ray_starts_with_the_keys_of_the_secret() -> None:
    """On the head and on the workers `ray start` gets its keys from the secret's name, through the image's with-secret."""
    launcher = _launcher()
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        [start] = [command for command in launcher[name] if "ray start" in command]
        assert start.startswith("with-secret tunemill/api-keys ray start ")
    assert "COPY --chmod=755 cluster/with_secret.py /usr/local/bin/with-secret" in _instructions()
    assert all("IamInstanceProfile" in kind["node_config"] for kind in _node_types().values())


def test_with_secret_becomes_the_command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """The secret's names and values are in the command's environment, and nothing is printed."""
    became: list[Any] = []
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    monkeypatch.setattr("os.execvpe", lambda *call: became.extend(call))
    with mock_aws():
        boto3.client("secretsmanager").create_secret(Name="keys", SecretString='{"SOME_API_KEY": "it is $5 \'quoted\'"}')
        _script("with_secret").main(["keys", "ray", "start", "--head"])
    program, command, environment = became
    assert (program, command) == ("ray", ["ray", "start", "--head"])
    assert environment["SOME_API_KEY"] == "it is $5 'quoted'"
    assert environment["AWS_DEFAULT_REGION"] == "us-west-2"
    assert capfd.readouterr() == ("", "")


def test_reserve_waits_for_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request names each CPU and GPU; it returns once they live, and says what is missing when they do not come."""
    asked: list[Any] = []
    lives = iter([{"CPU": 8.0}, {"CPU": 16.0, "GPU": 1.0}, {"CPU": 16.0, "GPU": 2.0}])
    monkeypatch.setattr("ray.init", lambda **_: None)
    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", lambda *, bundles: asked.extend(bundles))
    monkeypatch.setattr("ray.cluster_resources", lambda: next(lives))
    monkeypatch.setattr("time.sleep", lambda _: None)
    reserve = _script("reserve")
    reserve.main(["2", "2"])
    assert asked == [{"CPU": 1}, {"CPU": 1}, {"GPU": 1}, {"GPU": 1}]
    assert next(lives, None) is None
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 8.0})
    with pytest.raises(SystemExit, match=r"lacks \{'GPU': 3\}"):
        reserve.main(["8", "3", "0"])


def test_kuberay_layout() -> None:
    """A ray.io/v1 RayCluster, scaled by Ray's autoscaler, with workers from none, and behind a token."""
    cluster = _kuberay()
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    assert cluster["spec"]["enableInTreeAutoscaling"] is True
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    assert [group["groupName"] for group in _groups()] == ["head", "cpu", "gpu"]
    assert all(group["minReplicas"] == 0 < group["maxReplicas"] for group in _groups()[1:])
    # The operator's type is a map of text to text; a bare number would be refused.
    assert all(isinstance(value, str) for group in _groups() for value in group["rayStartParams"].values())


def test_kuberay_pods_get_what_they_ask_for() -> None:
    """Every container, the autoscaler's too, has memory limits equal to its requests, and only the gpu group asks for GPUs."""
    containers = [container for group in _groups() for container in group["template"]["spec"]["containers"]]
    for asked in [*(container["resources"] for container in containers), _kuberay()["spec"]["autoscalerOptions"]["resources"]]:
        assert asked["limits"]["memory"] == asked["requests"]["memory"]
    gpus = [container["resources"]["limits"].get("nvidia.com/gpu", 0) for container in containers]
    assert gpus == [container["resources"]["requests"].get("nvidia.com/gpu", 0) for container in containers] == [0, 0, 1]
    assert [container["image"].rsplit("-", 1)[1] for container in containers] == ["cpu", "cpu", "gpu"]


def test_kuberay_object_store_fits() -> None:
    """The object store fits /dev/shm, which is memory of the pod and leaves half of it to the processes."""
    for group in _groups():
        spec = group["template"]["spec"]
        [container] = spec["containers"]
        [shm] = [volume for volume in spec["volumes"] if volume["name"] == "dshm"]
        assert {"name": "dshm", "mountPath": "/dev/shm"} in container["volumeMounts"]
        assert shm["emptyDir"]["medium"] == "Memory"
        size = _bytes(shm["emptyDir"]["sizeLimit"])
        assert int(group["rayStartParams"]["object-store-memory"]) < size < _bytes(container["resources"]["limits"]["memory"]) / 2


def test_kuberay_takes_keys_by_reference() -> None:
    """Every Ray container has the secret's keys by the secret's name, and no container spells an environment variable."""
    for group in _groups():
        for container in group["template"]["spec"]["containers"]:
            assert container["envFrom"] == [{"secretRef": {"name": "tunemill-api-keys"}}]
            assert "env" not in container
            assert container["securityContext"]["runAsNonRoot"] is True
    kinds = {document["kind"] for document in yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text())}
    assert "Secret" not in kinds


def test_the_images_are_the_extras() -> None:
    """The Dockerfile's two images are the extras with and without a GPU, installed by name under the constraints."""
    stages = re.findall(r"^FROM \S+ AS (\w+)$", DOCKERFILE, re.MULTILINE)
    assert stages == [name for name, packages in EXTRAS.items() if any(package.startswith("faiss") for package in packages)]
    assert _instructions().count("FROM ${EXTRA}") == 1
    installs = [words for line in _instructions() for words in re.findall(r"pip install ([^&]+)", line)]
    assert [words.split()[-1] for words in installs] == ["torch", '".[${EXTRA}]"']
    assert all("-c constraints.txt" in words for words in installs)


def test_gpu_nodes_can_compile() -> None:
    """c++ comes with the gpu image, ninja with its extra, and CUDA's toolkit with torch's driver settings."""
    gpu = DOCKERFILE.split("FROM cpu AS gpu")[1].split("FROM ${EXTRA}")[0]
    assert "g++" in gpu
    assert "CUDA_HOME=/usr/local/cuda" in gpu
    assert "ninja" in EXTRAS["gpu"]


def test_the_image_does_not_run_as_root() -> None:
    """The last user is a number other than 0, and packages were installed and compiled before it."""
    steps = _instructions()
    [user] = [step for step in steps if step.startswith("USER")]
    assert int(user.split()[1].split(":")[0]) > 0
    after = steps[steps.index(user) :]
    assert not any(step.startswith(("RUN", "COPY", "ADD")) for step in after)
    assert any("compileall" in step for step in steps)


def test_only_what_the_image_copies_is_sent() -> None:
    """.dockerignore lets through exactly the Dockerfile's sources, which exist, so that no key file can come along."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    let_through = {rule[1:] for rule in rules if rule.startswith("!")}
    copies = [step.split()[1:-1] for step in _instructions() if step.startswith("COPY") and "--from" not in step]
    copied = {word for words in copies for word in words if not word.startswith("--")}
    assert rules[0] == "*"
    assert let_through == copied
    assert all((ROOT / source).exists() for source in copied)


@pytest.mark.parametrize("path", sorted(path for path in CLUSTER.iterdir() if path.is_file()), ids=lambda path: path.name)
def test_no_file_holds_a_key(path: Path) -> None:
    """No key-like name is followed by a value other than a reference, and nothing looks like a provider's key."""
    text = path.read_text()
    given = re.findall(r"\b\w*(?:API_KEY|ACCESS_KEY\w*|_TOKEN|PASSWORD)['\"]?\s*[=:]\s*(\S+)", text)
    assert [value for value in given if not value.startswith(("$", '"$', "'$"))] == []
    assert not re.search(r"\b(sk-\w{8}|AKIA[A-Z0-9]{12}|AIza\w{20}|hf_\w{16})", text)
