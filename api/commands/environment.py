"""`tenantry secrets`: the addresses and secrets of a new deployment, as a file of environment variables."""

from __future__ import annotations

import json
import secrets
from typing import Annotated

import typer

from api.commands import terminal
from api.commands.terminal import Json
from tenants import roles


def make_secrets(
    postgres: Annotated[str, typer.Option(help="Where PostgreSQL will be.", metavar="HOST:PORT")] = "postgres:5432",
    redis: Annotated[str, typer.Option(help="Where Redis will be.", metavar="HOST:PORT")] = "redis:6379",
    database: Annotated[str, typer.Option(help="The database's name.")] = "tenantry",
    as_json: Json = False,
) -> None:
    """Print new secrets for a deployment, once: `(umask 077; tenantry secrets > .env)`. The defaults are Compose's."""
    admin, redis_password = secrets.token_hex(32), secrets.token_hex(32)
    admin_url = f"postgresql://postgres:{admin}@{postgres}/postgres"
    value = {
        "POSTGRES_PASSWORD": admin,
        "REDIS_PASSWORD": redis_password,
        "FLOWER_BASIC_AUTH": f"operator:{secrets.token_hex(16)}",
        "DATABASE_ADMIN_URL": admin_url,
        "DATABASE_URL": roles.address(admin_url, roles.APP, secrets.token_hex(32), database),
        "DATABASE_SYSTEM_URL": roles.address(admin_url, roles.SYSTEM, secrets.token_hex(32), database),
        "DATABASE_OWNER_URL": roles.address(admin_url, roles.OWNER, secrets.token_hex(32), database),
        "REDIS_URL": f"redis://:{redis_password}@{redis}/0",
        "TENANTRY_AUTH__TOKEN_KEYS": json.dumps({"k1": secrets.token_hex(32)}),
        "TENANTRY_AUTH__LINK_KEYS": json.dumps({"k1": secrets.token_hex(32)}),
        "TENANTRY_AUTH__KEY_PEPPER": secrets.token_hex(32),
        "TENANTRY_AUTH__CREDENTIAL_KEYS": json.dumps({"k1": secrets.token_hex(32)}),
        "TENANTRY_ENGINE__GRANT_KEYS": json.dumps({"k1": secrets.token_hex(32)}),
    }
    terminal.answer(value, "\n".join(f"{name}='{secret}'" for name, secret in value.items()), as_json=as_json)
