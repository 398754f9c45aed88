"""The deployment files agree with the code: settings, commands, queues, and who is told which secret."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from api.installation import ROOT
from tasks import registry
from tenants.settings import PLAIN_NAMES, Settings

SYSTEMD = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
FOREIGN = {"POSTGRES_PASSWORD", "POSTGRES_INITDB_ARGS", "REDIS_PASSWORD", "DATABASE_ADMIN_URL"}
"""Of the servers' images, and of `tenantry database init`."""
OF_CELERY = {"REMAP_SIGTERM", "FLOWER_BASIC_AUTH"}
ENTRY_POINTS = (
    ("python", "-m", "uvicorn", "--factory", "api.app:create"),
    ("celery", "-A", "tasks.worker"),
    ("tenantry",),
)


def _compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return found


def _settings(model: type[BaseModel], prefix: str) -> set[str]:
    names = set()
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names |= _settings(field.annotation, f"{prefix}{name.upper()}__")
        else:
            names.add(f"{prefix}{name.upper()}")
    return names


KNOWN = _settings(Settings, "TENANTRY_") | set(PLAIN_NAMES) | FOREIGN | OF_CELERY


def _units() -> dict[str, configparser.SectionProxy]:
    units = {}
    for path in SYSTEMD:
        parser = configparser.RawConfigParser(strict=False)
        parser.optionxform = str  # type: ignore[assignment, method-assign]
        parser.read(path)
        units[path.stem.removeprefix("tenantry-")] = parser["Service"]
    return units


def _commands() -> dict[str, list[str]]:
    commands = {}
    for name, service in _compose()["services"].items():
        if service.get("image") == "tenantry" and "command" in service:
            command = service["command"]
            for index, part in enumerate(command[2].split("&&") if command[0] == "sh" else [shlex.join(command)]):
                commands[f"compose {name} {index}"] = shlex.split(part)
    [default] = re.findall(r"(?m)^CMD (\[.*\])$", (ROOT / "Dockerfile").read_text())
    commands["image"] = json.loads(default)
    for line in (ROOT / "Procfile").read_text().splitlines():
        name, _, command = line.partition(":")
        commands[f"Procfile {name}"] = [part for part in shlex.split(command) if "=" not in part or part[0] == "-"]
    for name, unit in _units().items():
        commands[f"systemd {name}"] = shlex.split(
            unit["ExecStart"].replace("/opt/tenantry/.venv/bin/", "").replace("%%", "%")
        )
    supervisor = configparser.RawConfigParser()
    supervisor.read(ROOT / "deploy" / "supervisor" / "tenantry.conf")
    for name in supervisor["group:tenantry"]["programs"].split(","):
        command = supervisor[f"program:{name}"]["command"]
        commands[f"supervisor {name}"] = shlex.split(command.replace("/opt/tenantry/.venv/bin/", "").replace("%%", "%"))
    return commands


@pytest.mark.parametrize("command", sorted({tuple(command) for command in _commands().values()}), ids=shlex.join)
def test_every_command_is_one_of_ours_with_options_it_has(command: tuple[str, ...]) -> None:
    assert any(command[: len(entry)] == entry for entry in ENTRY_POINTS)
    if command[0] == "tenantry":
        line = [sys.executable, "-m", "api.cli", *command[1:], "--help"]
    else:
        arguments = command[1:] if command[0] == "python" else ["-m", *command]
        line = [sys.executable, *arguments, "--help"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_frame_may_be_as_large_as_a_body() -> None:
    servers = [command for command in _commands().values() if "uvicorn" in command]
    assert len(servers) == 4
    allowed = {int(command[command.index("--ws-max-size") + 1]) for command in servers}
    assert allowed == {Settings().api.bulk_body_bytes}


@pytest.mark.parametrize("where", sorted({name.split()[0] for name in _commands() if name != "image"}))
def test_every_queue_has_a_worker(where: str) -> None:
    workers = [command for name, command in _commands().items() if name.startswith(where) and "worker" in command]
    assert len(workers) == 2
    served: set[str] = set()
    for command in workers:
        if "-X" in command:
            served |= set(registry.queues()) - {command[command.index("-X") + 1]}
        else:
            served |= set(command[command.index("-Q") + 1].split(","))
    assert served == set(registry.queues()) | {registry.OPERATOR_QUEUE}


@pytest.mark.parametrize("name", sorted(_compose()["services"]))
def test_every_variable_of_compose_is_a_setting(name: str) -> None:
    environment = _compose()["services"][name].get("environment", {})
    assert set(environment) <= KNOWN
    for variable, value in environment.items():
        assert not value.startswith("${") or value == f"${{{variable}:?make .env with tenantry secrets}}"


def test_tenantry_secrets_gives_compose_all_it_asks_for() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "api.cli", "secrets"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    given = dict(line.split("=", 1) for line in done.stdout.splitlines())
    wanted = set(re.findall(r"\$\{(\w+):\?", (ROOT / "docker-compose.yml").read_text()))
    assert wanted == set(given)
    assert all(re.fullmatch(r"'[^']+'", value) for value in given.values())


def test_each_part_of_a_deployment_is_told_no_secret_that_it_has_no_use_for() -> None:
    services = _compose()["services"]
    parts = {"api", "worker", "operator", "beat", "flower"}
    compose = {name: set(services[name]["environment"]) for name in parts}
    every = set(re.findall(r"\$\{(\w+):\?", (ROOT / "docker-compose.yml").read_text()))
    systemd = {name: every - set(unit.get("UnsetEnvironment", "").split()) for name, unit in _units().items()}
    for told in (compose, systemd):
        assert {name for name in told if "TENANTRY_ENGINE__GRANT_KEYS" in told[name]} - {"migrate"} == {
            "worker",
            "operator",
            "beat",
        }
        assert {name for name in told if "DATABASE_SYSTEM_URL" in told[name]} - {"migrate"} == {"operator", "beat"}
        assert {name for name in told if "TENANTRY_AUTH__LINK_KEYS" in told[name]} - {"migrate"} == {
            "api",
            "worker",
            "operator",
        }
        assert {name for name in told if "TENANTRY_AUTH__KEY_PEPPER" in told[name]} - {"migrate"} == {"api"}
        assert {name for name in told if "TENANTRY_AUTH__CREDENTIAL_KEYS" in told[name]} - {"migrate"} == {
            "api",
            "worker",
            "operator",
        }
        assert {name for name in told if "DATABASE_OWNER_URL" in told[name]} <= {"migrate"}


def test_the_order_of_compose_is_servers_migrations_parts() -> None:
    services = _compose()["services"]
    assert set(services) == {"postgres", "redis", "migrate", "api", "worker", "operator", "beat", "flower"}
    assert services["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    for name in ("api", "worker", "operator", "beat"):
        assert services[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    for name in ("postgres", "redis", "api", "worker", "operator", "flower"):
        assert "test" in services[name]["healthcheck"]


def test_the_image_holds_what_it_copies_and_the_build_sees_it() -> None:
    copied = re.findall(r"(?m)^COPY ([^-]\S*) ", (ROOT / "Dockerfile").read_text())
    seen = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == seen
    assert all((ROOT / path).exists() for path in copied)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
@pytest.mark.parametrize("unit", SYSTEMD, ids=lambda path: path.stem)
def test_systemd_understands_every_unit(unit: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if unit.name in line and "is not executable" not in line]
    assert complaints == []
