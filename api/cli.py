"""The command line `tenantry`."""

from __future__ import annotations

import sys

import typer
from sqlalchemy.exc import OperationalError

from api.commands import audit, credentials, database, doctor, environment, lifecycle, limits, plans, runs, tenants
from tenants.errors import TenantryError

app = typer.Typer(
    help="Background work for many tenants.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
schema = typer.Typer(help="The GraphQL schema.", no_args_is_help=True)
for _name, _group in {
    "tenant": tenants.tenant,
    "user": tenants.user,
    "key": tenants.key,
    "task": runs.task,
    "run": runs.run,
    "limits": limits.limits,
    "plan": plans.plan,
    "audit": audit.audit,
    "credential": credentials.credential,
    "database": database.database,
    "schema": schema,
}.items():
    app.add_typer(_group, name=_name)
tenants.tenant.command("suspend")(lifecycle.suspend)
tenants.tenant.command("resume")(lifecycle.resume)
tenants.tenant.command("export")(lifecycle.export_tenant)
tenants.tenant.command("erase")(lifecycle.erase)
app.command("login")(runs.login)
app.command("migrate")(database.migrate)
app.command("secrets")(environment.make_secrets)
app.command("doctor")(doctor.doctor)

_LISTS = {"--address", "--family", "--scope", "--task"}


@schema.command("export")
def export_schema() -> None:
    """Print the schema in GraphQL's definition language."""
    from schema import root

    typer.echo(root.export(), nl=False)


@schema.command("permissions")
def export_permissions() -> None:
    """Print who may ask for what, as a table in Markdown."""
    from schema import matrix

    typer.echo(matrix.table(), nl=False)


def main() -> None:
    """Run a command; what is expected to go wrong is one sentence on standard error, and exit 1."""
    try:
        app(args=_spread(sys.argv[1:]), prog_name="tenantry")
    except TenantryError as error:
        sys.exit(f"tenantry: {error.message}")
    except OperationalError as error:
        sys.exit(f"tenantry: The database cannot be reached: {str(error.orig).strip().splitlines()[0]}")


def _spread(arguments: list[str]) -> list[str]:
    """Give each value of `--scope a b` its own `--scope`: both ways of writing are understood."""
    spread: list[str] = []
    option = ""
    for argument in arguments:
        if argument.startswith("-"):
            option = ""
        elif option and spread[-1] != option:
            spread.append(option)
        if argument in _LISTS:
            option = argument
        spread.append(argument)
    return spread


if __name__ == "__main__":
    main()
