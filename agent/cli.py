"""The command line: `ullage run`, `once`, `doctor`, `lint-storage`, `check-config`, `rules`.

Exit codes: 0 good, 1 failure, 2 bad input; of `doctor` and `lint-storage` 0 clean, 1 warnings, 2 critical or errors, 3
could not judge.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from agent import log  # first, as it spares us what structlog imports

# isort: split
from agent import __version__, config, selfrules, statefile
from agent.containers import Runtimes
from agent.errors import ConfigError, UllageError
from agent.host import Host
from agent.plain import plain
from agent.rules import generate
from collectors import ALL

FAILURE, USAGE, COULD_NOT_JUDGE = 1, 2, 3
_RUNTIME_FIELDS = tuple(field for keys in config.RUNTIME_KEYS.values() for field in keys.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parsed = _parser().parse_args(arguments)
    log.configure(parsed.log_level, parsed.log_format)
    try:
        code: int = parsed.command(parsed)
    except ConfigError as error:
        return _complain(error, USAGE)
    except UllageError as error:
        return _complain(error, FAILURE)
    except BrokenPipeError:  # the reader of our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    return code


def _complain(error: Exception, code: int) -> int:
    print(f"ullage: {plain(str(error))}", file=sys.stderr)  # noqa: T201  the command's answer, not a log
    return code


def _run(parsed: argparse.Namespace) -> int:
    from agent import daemon  # noqa: PLC0415  --help and rules need none of it
    from agent.seal import Seal  # noqa: PLC0415  as above

    daemon.prepare_process()
    options = _options(parsed)
    if parsed.path_seal:  # before anything looks around
        Seal(options.state)
    daemon.Daemon(options, ALL).run()
    return 0


def _once(parsed: argparse.Namespace) -> int:
    from agent import daemon  # noqa: PLC0415  as above

    chosen = {name for name, is_wanted in _switches(parsed).items() if is_wanted}
    switches = {c.name: c.name in chosen for c in ALL} if chosen else None
    if parsed.textfile is not None:
        _write(parsed.textfile, daemon.once(_options(parsed, switches), ALL))
        return 0
    with statefile.untouched():
        exposition = daemon.once(_options(parsed, switches, is_looking=True), ALL)
    sys.stdout.buffer.write(exposition)
    sys.stdout.buffer.flush()
    return 0


def _doctor(parsed: argparse.Namespace) -> int:
    try:
        return _advise(parsed) if parsed.advise else _examine(parsed)
    except UllageError as error:
        return _complain(error, COULD_NOT_JUDGE)


def _examine(parsed: argparse.Namespace) -> int:
    from agent import doctor  # noqa: PLC0415  as above

    if parsed.from_url is not None:
        from agent.statusclient import Trust, fetch  # noqa: PLC0415  as above

        status = fetch(parsed.from_url, Trust(parsed.from_ca_file, parsed.from_cert_file, parsed.from_key_file))
        report = doctor.Report(status, doctor.judge(status))
    else:
        with _progress() as tell:
            report = doctor.examine(_options(parsed, is_looking=True), ALL, parsed.seconds, tell)
    if parsed.json:
        print(report.as_json().decode())  # noqa: T201  the command's answer
    else:
        doctor.print_report(report, _console())
    return doctor.EXIT[report.verdict]


def _console() -> Any:
    from rich.console import Console  # noqa: PLC0415  as above

    return Console(markup=False, highlight=False, emoji=False)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Show what is waited for, where a person looks on."""
    from rich.console import Console  # noqa: PLC0415  as above
    from rich.text import Text  # noqa: PLC0415  as above

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _text: None
        return
    with console.status("") as shown:
        yield lambda text: shown.update(Text(text))


def _advise(parsed: argparse.Namespace) -> int:
    from agent import advice  # noqa: PLC0415  as above

    options = _options(parsed, is_looking=True)
    runtimes = options.load(ALL).runtimes
    node = advice.survey_in_time(Host(options.procfs, options.sysfs, options.rootfs, options.dev), runtimes)
    found, console = advice.judge(node), _console()
    if parsed.json:
        print(advice.as_json(node, found))  # noqa: T201  the command's answer
    elif console.is_terminal:
        for part in (*map(plain, advice.facts(node)), advice.table(found), *advice.conclusion(found)):
            console.print(part)
    else:
        sys.stdout.writelines(f"{line}\n" for line in advice.show(node, found))
    return advice.exit_code(found)


def _lint_storage(parsed: argparse.Namespace) -> int:
    from agent import storagelint  # noqa: PLC0415  as above

    report = storagelint.judge(parsed.files)
    if parsed.json:
        print(report.as_json())  # noqa: T201  the command's answer
    else:
        sys.stdout.writelines(f"{line}\n" for line in storagelint.show(report))
    return report.exit_code


def _check_config(parsed: argparse.Namespace) -> int:
    checked = config.load(parsed.file, ALL, {})
    names = ", ".join(plan.name for plan in checked.plans) or "none"
    print(f"{parsed.file}: valid; collectors: {names}")  # noqa: T201  the command's answer
    return 0


def _rules(parsed: argparse.Namespace) -> int:
    loaded = config.load(parsed.config_file, ALL, {})
    rules = loaded.rules
    groups = [*(plan.collector.rules for plan in loaded.plans if plan.collector.rules), *selfrules.GROUPS]
    text = generate(loaded.watermarks, groups, keep_firing_for=rules.keep_firing_for, runbook_url=rules.runbook_url)
    sys.stdout.write(text)
    return 0


def _write(path: str, content: bytes) -> None:
    """Write by atomic rename, readable for all, as node_exporter's textfile collector expects."""
    directory = os.path.dirname(path) or "."
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=directory, prefix=".ullage-")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        raise UllageError(f"--textfile {path}: cannot be written: {error.strerror}") from error


def _options(parsed: argparse.Namespace, switches: dict[str, bool] | None = None, *, is_looking: bool = False) -> Any:
    """Return the daemon's options; a command that only looks takes the state directory as it is, or none."""
    from agent import daemon  # noqa: PLC0415  as above

    if is_looking:
        given = Path(parsed.path_state) if parsed.path_state is not None else _default_state()
        state: Path | None = given if os.path.isdir(given) else None
    elif parsed.path_state is not None:
        state = daemon.prepare_state(Path(parsed.path_state))
    else:
        try:
            state = daemon.prepare_state(_default_state())
        except UllageError:
            state = None
    return daemon.Options(
        listen_address=getattr(parsed, "web_listen_address", ""),
        procfs=parsed.path_procfs,
        sysfs=parsed.path_sysfs,
        rootfs=parsed.path_rootfs,
        dev=parsed.path_dev,
        state=state,
        config_file=parsed.config_file,
        web_config_file=getattr(parsed, "web_config_file", None),
        has_lifecycle=getattr(parsed, "web_enable_lifecycle", False),
        switches=_switches(parsed) if switches is None else switches,
        runtimes={field: tuple(places) for field in _RUNTIME_FIELDS if (places := getattr(parsed, field)) is not None},
    )


def _default_state() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/ullage")
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(home) / "ullage"


def _switches(parsed: argparse.Namespace) -> dict[str, bool]:
    given = {collector.name: getattr(parsed, f"collector_{collector.name}") for collector in ALL}
    return {name: is_wanted for name, is_wanted in given.items() if is_wanted is not None}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ullage",
        description="Tells how far container storage is from full, before it is.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ullage {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    run = _command(commands, "run", _run, "serve this node's metrics until stopped", "info")
    _add_web(run)
    _add_node(run)
    once = _command(commands, "once", _once, "print one complete exposition")
    once.add_argument("--textfile", metavar="PATH", help="write it there by atomic rename, for node_exporter")
    _add_node(once)
    doctor = _command(
        commands, "doctor", _doctor, "tell a person how this node is: every collector, run twice", "error"
    )
    doctor.add_argument(
        "--seconds", type=float, default=10.0, help="between the two readings; rates are over this time (%(default)s)"
    )
    doctor.add_argument("--json", action="store_true", help="for machines")
    instead = doctor.add_mutually_exclusive_group()
    instead.add_argument(
        "--advise", action="store_true", help="tell instead which storage drivers could be used on this node, and why"
    )
    instead.add_argument(
        "--from",
        dest="from_url",
        metavar="URL",
        help="read a running agent instead: http[s]://[USER:PASSWORD@]HOST[:PORT]; users also in ~/.netrc",
    )
    for name, what in (
        ("ca-file", "whom to trust, instead of the system's authorities (PEM)"),
        ("cert-file", "the certificate to show, where the agent wants one (PEM)"),
        ("key-file", "its key, if it is not in the same file"),
    ):
        dest = f"from_{name.replace('-', '_')}"
        doctor.add_argument(f"--from.{name}", dest=dest, metavar="FILE", help=f"with --from: {what}")
    _add_node(doctor)
    lint = _command(
        commands, "lint-storage", _lint_storage, "judge StorageClass, VolumeSnapshotClass and daemon.json offline"
    )
    lint.add_argument(
        "files", nargs="+", metavar="FILE", help="YAML or JSON; those that belong together in one call; /dev/stdin"
    )
    lint.add_argument("--json", action="store_true", help="for machines")
    check = _command(commands, "check-config", _check_config, "check a configuration file")
    check.add_argument("file", metavar="FILE")
    rules = _command(commands, "rules", _rules, "print the alert rules for the watermarks in force")
    rules.add_argument("--config.file", dest="config_file", metavar="FILE", help="configuration (YAML)")
    return parser


def _command(
    commands: Any, name: str, function: Any, summary: str, log_level: str = "warning"
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + ".", allow_abbrev=False
    )
    parser.set_defaults(command=function)
    parser.add_argument(
        "--log.level", dest="log_level", choices=log.LEVELS, default=log_level, help="least level logged (%(default)s)"
    )
    parser.add_argument(
        "--log.format", dest="log_format", choices=log.FORMATS, default="logfmt", help="form of the log (%(default)s)"
    )
    return parser


def _add_web(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--web.listen-address",
        dest="web_listen_address",
        metavar="HOST:PORT",
        default="0.0.0.0:10940",
        help="where to serve (%(default)s)",
    )
    parser.add_argument(
        "--web.config.file", dest="web_config_file", metavar="FILE", help="TLS and users, as in exporter-toolkit"
    )
    parser.add_argument(
        "--web.enable-lifecycle",
        dest="web_enable_lifecycle",
        action="store_true",
        help="allow POST /-/reload",
    )
    parser.add_argument(
        "--path.seal",
        dest="path_seal",
        action="store_true",
        help="in a container: make all mounts but the state's read-only for the agent, also those that come later",
    )


def _add_node(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config.file", dest="config_file", metavar="FILE", help="configuration (YAML)")
    for name, default in (("procfs", "/proc"), ("sysfs", "/sys"), ("rootfs", "/"), ("dev", "/dev")):
        parser.add_argument(
            f"--path.{name}",
            dest=f"path_{name}",
            metavar="DIR",
            default=default,
            help=f"where the host's {default} is (%(default)s)",
        )
    parser.add_argument(
        "--path.state",
        dest="path_state",
        metavar="DIR",
        help=f"where state is kept over restarts ({_default_state()}, if it can be written)",
    )
    for runtime, keys in config.RUNTIME_KEYS.items():
        for key, field in keys.items():
            parser.add_argument(
                f"--runtime.{runtime}.{key}",
                dest=field,
                action="append",
                metavar="PATH",
                help=f"where {runtime}'s {key} is; may be repeated ({', '.join(getattr(Runtimes(), field))})",
            )
    for collector in ALL:
        parser.add_argument(
            f"--collector.{collector.name}",
            dest=f"collector_{collector.name}",
            action="store_true",
            default=None,
            help=collector.summary.replace("%", "%%"),
        )
        parser.add_argument(
            f"--no-collector.{collector.name}",
            dest=f"collector_{collector.name}",
            action="store_false",
            default=None,
            help=f"switch {collector.name} off",
        )
