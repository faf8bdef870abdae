"""What a team starts: its files agree with each other, with Dagster, and hold no secret."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster._config import Field, process_config
from dagster._core.instance.config import dagster_instance_config_schema
from dagster._core.workspace.config_schema import process_workspace_config

from plumbline.workspace_template import files_of
from tests.helpers.paths import PROJECT

DEPLOY = PROJECT / "deploy"
VARIABLE = re.compile(r"\$\{(\w+)[^}]*\}")
SECRET = re.compile(r"password|secret|access_key", re.IGNORECASE)


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    return dict(read("compose.yaml")["services"])


def variables(text: str) -> set[str]:
    return set(re.findall(r"(?<!\$)\$\{(\w+)", text))


def environments(services: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    for service, body in services.items():
        yield from ((service, name, str(value)) for name, value in (body.get("environment") or {}).items())


def test_what_a_service_names_is_there(services: dict[str, dict[str, Any]]) -> None:
    compose = read("compose.yaml")
    for name, body in services.items():
        assert set(body.get("depends_on") or ()) <= set(services), name
        assert set(body.get("networks") or ()) <= set(compose["networks"]), name
        for volume in body.get("volumes") or ():
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (DEPLOY / source).is_file(), (name, source)
            elif not source.startswith("$"):
                assert source in compose["volumes"], (name, source)
        healthy = (
            {k for k, v in body["depends_on"].items() if v["condition"] == "service_healthy"}
            if isinstance(body.get("depends_on"), dict)
            else set()
        )
        assert all("healthcheck" in services[other] for other in healthy), (name, healthy)


def test_only_the_proxy_is_reached_from_outside(services: dict[str, dict[str, Any]]) -> None:
    assert [name for name, body in services.items() if body.get("ports")] == ["proxy"]
    assert {name for name, body in services.items() if "outside" in body["networks"]} == {"proxy", "code"}
    assert read("compose.yaml")["networks"]["inside"] == {"internal": True}
    sites = (DEPLOY / "Caddyfile").read_text().split("(guarded)")[1].split("\n{$")[1:]
    assert len(sites) == 2 and all("import guarded" in site and "reverse_proxy" in site for site in sites)
    assert "basic_auth" in (DEPLOY / "Caddyfile").read_text()


def test_every_secret_comes_from_the_environment(services: dict[str, dict[str, Any]]) -> None:
    for service, name, value in environments(services):
        if SECRET.search(name) or ("://" in value and "@" in value):
            assert VARIABLE.search(value), (service, name)
    values = (DEPLOY / "helm-values.yaml").read_text()
    assert not re.search(r"(password|secret_access_key)\s*:\s*\S", values, re.IGNORECASE)
    secret = {line.split("=")[0]: line.split("=")[1].split("#")[0].strip(" '") for line in lines_of("env.example")}
    assert [name for name in secret if SECRET.search(name) and secret[name]] == []


def lines_of(name: str) -> list[str]:
    lines = (DEPLOY / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_every_variable_is_in_the_example() -> None:
    used = variables((DEPLOY / "compose.yaml").read_text()) - {"PLUMBLINE_VERSION"}
    assert used == {line.split("=")[0] for line in lines_of("env.example")}
    caddy = set(re.findall(r"\{\$(\w+)\}", (DEPLOY / "Caddyfile").read_text()))
    assert caddy == set(read("compose.yaml")["services"]["proxy"]["environment"])


def named_variables(settings: dict[str, Any]) -> set[str]:
    return {value["env"] for value in settings.values() if isinstance(value, dict) and "env" in value}


def test_dagster_reads_its_settings_and_its_workspace(
    services: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = read("dagster.yaml")
    for name, value in services["webserver"]["environment"].items():
        monkeypatch.setenv(name, str(value))
    validated = process_config(Field(dagster_instance_config_schema()).config_type, settings)
    assert validated.success, validated.errors
    assert process_workspace_config(read("workspace.yaml")).success
    named = named_variables(settings["storage"]["postgres"]["postgres_db"])
    located = named_variables(read("workspace.yaml")["load_from"][0]["grpc_server"])
    assert (len(named), len(located)) == (5, 2)
    for name in ("webserver", "daemon", "code"):
        told = set(services[name]["environment"])
        assert named <= told and (name == "code" or located <= told), name


def test_both_ways_load_the_same_graph_in_the_same_place(services: dict[str, dict[str, Any]]) -> None:
    values = read("helm-values.yaml")
    [location] = values["dagster-user-deployments"]["deployments"]
    command = json_command()
    assert location["codeServerArgs"] == command[command.index("-m") :]
    assert f":{location['port']}" == f":{services['code']['healthcheck']['test'][-1]}" == ":4000"
    told = {item["name"] for item in location["env"]}
    assert {"PLUMBLINE_ROOT", "PYTHONPATH", "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL"} <= told
    assert (
        values["postgresql"]["postgresqlScheme"] == read("dagster.yaml")["storage"]["postgres"]["postgres_db"]["scheme"]
    )
    assert values["postgresql"]["enabled"] is False and "postgresqlPassword" not in values["postgresql"]


def json_command() -> list[str]:
    import json

    [line] = [line for line in lines_of("Containerfile") if line.startswith("CMD ")]
    return [str(word) for word in json.loads(line.removeprefix("CMD "))]


def test_the_image_copies_what_is_there_and_what_a_workspace_is_made_from(tmp_path: Path) -> None:
    for line in lines_of("Containerfile"):
        if line.startswith("COPY "):
            *sources, target = shlex.split(line.removeprefix("COPY "))
            for source in sources:
                if (PROJECT / source).is_dir():
                    ignore = shutil.ignore_patterns("*.so", "*.safetensors", "__pycache__")
                    shutil.copytree(PROJECT / source, tmp_path / target, ignore=ignore)
                    continue
                into = tmp_path / target / Path(source).name if target.endswith("/") else tmp_path / target
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(PROJECT / source, into)
    assert files_of(tmp_path) == files_of(PROJECT)
    assert (tmp_path / "setup.py").is_file() and (tmp_path / "plumbline/activation_stats/kernel.c").is_file()
    assert "USER plumbline" in (DEPLOY / "Containerfile").read_text()


def test_the_page_names_the_files_and_buckets() -> None:
    page = (PROJECT / "docs/how-to/team.md").read_text(encoding="utf-8")
    for name in re.findall(r"deploy/[\w.-]*\w", page):
        assert (PROJECT / name).exists() or name == "deploy/.env", name
    [command] = [body["command"][-1] for name, body in read("compose.yaml")["services"].items() if name == "buckets"]
    for bucket in ("inbox", "dvc", "mlflow"):
        assert f"'{bucket}'" in command and f"`{bucket}`" in page
    assert Path(PROJECT / "tests/integration/test_team_day.py").is_file()
