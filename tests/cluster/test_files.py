"""What cluster/ ships: valid, of the same versions everywhere, secure unless told otherwise."""

import os
import re
import subprocess
import tomllib
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from botocore.session import get_session
from botocore.validate import ParamValidator
from packaging.specifiers import SpecifierSet
from ray.autoscaler._private.util import prepare_config, validate_config
from ruamel.yaml import YAML

import ressa

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file())
PAGES = [path for path in FILES if path.suffix == ".md"]
SCRIPTS = [path for path in FILES if path.suffix in (".sh", ".sbatch")]
KUBERNETES = {path.stem: path for path in (CLUSTER / "kubernetes").glob("*.yaml")}
AWS = CLUSTER / "cloud" / "aws.yaml"
DOCKERFILE = CLUSTER / "image" / "Dockerfile"
DEFINITIONS = {"cluster": "ray.io_rayclusters.yaml", "job": "ray.io_rayjobs.yaml"}
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())


def in_repository(path: Path) -> str:
    return str(path.relative_to(ROOT))


def loaded(text: str) -> Any:
    return YAML(typ="safe").load(text)


def ray_spec(name: str) -> Any:
    spec = loaded(KUBERNETES[name].read_text())["spec"]
    return spec.get("rayClusterSpec", spec)


def every(pattern: str) -> dict[str, set[str]]:
    """What a pattern finds in the files, by file."""
    found = {in_repository(path): set(re.findall(pattern, path.read_text())) for path in FILES}
    return {name: values for name, values in found.items() if values}


# Versions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "version"),
    [
        (r"\bressa:(\d[\w.]*)", ressa.__version__),
        (r"\btorch==([\w.]+)", PINS["torch"]),
        (r"\brayVersion: ([\w.]+)", PINS["ray"]),
        (r"\b[Pp]ython:?(\d+\.\d+)", "3.11"),
        (r"\bKubeRay (\d[\d.]*\d)", "1.7.0"),
        (r"kuberay-operator --version (\S+?)`", "1.7.0"),
    ],
)
def test_versions_are_the_same_everywhere(pattern: str, version: str) -> None:
    found = every(pattern)
    assert found
    assert all(values == {version} for values in found.values()), found


def test_what_installs_names_the_tested_versions() -> None:
    for page in [*PAGES, DOCKERFILE]:
        for line in page.read_text().splitlines():
            if re.search(r"\bpip install\b", line):
                assert re.search(r"(-c|--constraint) constraints\.txt", line), f"{page}: {line}"
    makefile = (ROOT / "Makefile").read_text()
    assert set(re.findall(r"torch==([\w.]+)", makefile)) == {PINS["torch"]}


def test_the_image_has_a_python_that_ressa_runs_on() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    version = re.search(r"^FROM python:(\d+\.\d+\.\d+)-", DOCKERFILE.read_text(), re.MULTILINE)
    assert version
    assert version[1] in SpecifierSet(project["requires-python"])


def test_the_image_is_made_of_files_that_exist_and_are_let_in() -> None:
    let_in = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE):
        for name in line.split():
            assert (ROOT / name).exists()
            assert f"!{name}" in let_in


# Schemas -------------------------------------------------------------------------------------


def in_a_bucket(text: str) -> str:
    """A file of Kubernetes, changed as the page says for a store in a bucket."""
    page = (CLUSTER / "kubernetes" / "README.md").read_text()
    commands = re.findall(r"\$ (sed -i 's.(?:persistent|--store).*)", page)
    assert len(commands) == 2
    for command in commands:
        how = re.search(r"'(.*)'", command)
        assert how
        text = subprocess.run(
            ["sed", how[1]], input=text, capture_output=True, text=True, check=True
        ).stdout
    assert "persistentVolumeClaim" not in text
    assert "--store /" not in text
    return text


@pytest.mark.parametrize("name", sorted(DEFINITIONS))
def test_kubernetes_files_are_what_kuberay_takes(name: str) -> None:
    schema = loaded((Path(__file__).parent / "kuberay.schema.yaml").read_text())
    text = KUBERNETES[name].read_text()
    for variant in (text, in_a_bucket(text)):
        jsonschema.validate(loaded(variant), schema)


@pytest.mark.skipif("KUBERAY_CRDS" not in os.environ, reason="KUBERAY_CRDS names no folder")
@pytest.mark.parametrize("name", sorted(DEFINITIONS))
def test_kubernetes_files_are_what_kuberays_own_definitions_take(name: str) -> None:
    text = (Path(os.environ["KUBERAY_CRDS"]) / DEFINITIONS[name]).read_text()
    definition = yaml.load(text, yaml.CSafeLoader)  # a megabyte: the other reader takes a minute
    version = next(one for one in definition["spec"]["versions"] if one["name"] == "v1")
    schema = _strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    text = KUBERNETES[name].read_text()
    for variant in (text, in_a_bucket(text)):
        jsonschema.validate(loaded(variant), schema)


def _strict(schema: Any) -> Any:
    """A definition's schema as Kubernetes reads it: unknown fields are faults."""
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {name: _strict(value) for name, value in schema.items()}
    if strict.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if strict.get("type") == "object" and isinstance(strict.get("properties"), dict):
        strict.setdefault("additionalProperties", False)
    return strict


def test_kubernetes_files_name_each_other() -> None:
    claim = loaded(KUBERNETES["store"].read_text())["metadata"]["name"]
    policy = loaded(KUBERNETES["network"].read_text())["spec"]
    for name in DEFINITIONS:
        groups = [ray_spec(name)["headGroupSpec"], *ray_spec(name)["workerGroupSpecs"]]
        for template in (group["template"] for group in groups):
            assert template["metadata"]["labels"] == policy["podSelector"]["matchLabels"]
            volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
            assert volumes["store"]["persistentVolumeClaim"]["claimName"] == claim
            for container in template["spec"]["containers"]:
                assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)


def test_the_aws_file_is_what_ray_takes_and_installs_nothing_of_its_own() -> None:
    written = loaded(AWS.read_text())
    filled = prepare_config(deepcopy(written))
    validate_config(filled)
    for name in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert filled[name] == []
    assert filled["docker"]["image"] == written["docker"]["image"]


def test_the_aws_machines_are_what_ec2_takes() -> None:
    service = get_session().get_service_model("ec2")
    shape = service.operation_model("RunInstances").input_shape
    groups = service.operation_model("AuthorizeSecurityGroupIngress").input_shape
    written = loaded(AWS.read_text())
    for kind in written["available_node_types"].values():
        # Ray adds how many.
        request = {**kind["node_config"], "MinCount": 1, "MaxCount": 1}
        faults = ParamValidator().validate(request, shape)
        assert not faults.has_errors(), faults.generate_report()
    rules = {"IpPermissions": written["provider"]["security_group"]["IpPermissions"]}
    faults = ParamValidator().validate(rules, groups)
    assert not faults.has_errors(), faults.generate_report()


@pytest.mark.parametrize("script", SCRIPTS, ids=in_repository)
def test_scripts_parse_and_stop_at_the_first_fault(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "\nset -euo pipefail\n" in script.read_text()
    assert script.suffix == ".sbatch" or os.access(script, os.X_OK)


# Security ------------------------------------------------------------------------------------


def test_every_ray_that_a_file_starts_asks_for_a_token() -> None:
    starts = [path for path in FILES if re.search(r"\bray\S* start\b", path.read_text())]
    starts = [path for path in starts if path not in PAGES]
    assert {path.name for path in starts} == {"ray.sh", "ressa.sbatch", "aws.yaml"}
    for path in [*starts, DOCKERFILE]:
        assert re.search(r"\bRAY_AUTH_MODE=token\b", path.read_text()), path
    for name in DEFINITIONS:
        assert ray_spec(name)["authOptions"] == {"mode": "token", "secretName": "ressa-token"}


def test_dashboards_listen_on_loopback() -> None:
    assert not every(r"0\.0\.0\.0|\[::\]")
    for path in (CLUSTER / "one-node" / "ray.sh", CLUSTER / "slurm" / "ressa.sbatch", AWS):
        assert "--dashboard-host=127.0.0.1" in path.read_text()
    assert ray_spec("cluster")["headGroupSpec"]["rayStartParams"]["dashboard-host"] == "127.0.0.1"


def test_no_file_holds_a_secret_or_puts_one_on_a_command_line() -> None:
    assert not every(r"\b[0-9a-f]{32,}\b")
    assert not every(r"RAY_AUTH_TOKEN=\S*|--from-literal\S*|AWS_SECRET_ACCESS_KEY=\S*")


def test_pods_run_without_rights() -> None:
    for name in DEFINITIONS:
        head, *workers = [ray_spec(name)["headGroupSpec"], *ray_spec(name)["workerGroupSpecs"]]
        for group in (head, *workers):
            pod = group["template"]["spec"]
            assert pod["securityContext"]["runAsNonRoot"]
            for container in pod["containers"]:
                assert not container["securityContext"]["allowPrivilegeEscalation"]
                assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        for group in workers:
            assert not group["template"]["spec"]["automountServiceAccountToken"]


# Pages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", [path.name for path in sorted(CLUSTER.iterdir()) if path.is_dir()]
)
def test_every_place_is_on_the_page_that_says_which_to_pick(place: str) -> None:
    assert f"({place}/" in (CLUSTER / "README.md").read_text()


def test_what_was_not_run_here_says_so() -> None:
    for place in ("kubernetes", "cloud"):
        assert "*Not run here: " in (CLUSTER / place / "README.md").read_text()
