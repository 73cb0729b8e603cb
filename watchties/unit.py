"""The user service: its unit file, filled in and put in place, and what systemd says of it.

Knows: the unit that comes with watchties, systemctl(1) and loginctl(1), what can stand in the way.
Must not know: the command line, what the daemon does.
"""

import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

from watchties import __version__
from watchties.errors import CommandFailed, WatchtiesError

NAME = "watchties.service"
STAMP = "# Put here by `watchties service install`; `watchties service uninstall` takes it away."
SHOWN = ("ActiveState", "SubState", "MainPID", "StatusText", "NRestarts", "Result")
NOT_IN_PROGRAM = set("\"'\\$")  # systemd refuses a program with a quote or a backslash, and takes `$$` there for what it is
PATIENCE = 120  # seconds for systemctl: starting and stopping take as long as the unit allows


def path():
    """Return where the unit of this user lies."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return Path(home) / "systemd" / "user" / NAME


def filled(program, config_dir, state_dir, sandbox=True):
    """Return the text of the unit that comes with watchties, with these absolute paths."""
    text = (resources.files("watchties.systemd_unit") / NAME).read_text(encoding="utf-8")
    words = {"PROGRAM": quoted(program), "CONFIG": quoted(config_dir), "STATE": quoted(state_dir), "SANDBOX": "" if sandbox else "#"}
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    return f"{STAMP}\n{text}"


def quoted(word):
    """Return a word as ExecStart= takes it (systemd.service(5)): quoted, `%` and `$` doubled."""
    escaped = str(word).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escaped.replace("%", "%%").replace("$", "$$") + '"'


def needs_privileges(config):
    """Return why the sandbox must be left out, or "": what needs a set-user-ID program would fail in it."""
    if config.mail.sendmail:
        return "mail goes by sendmail"
    become = [name for name, host in config.host.items() if host.become and not host.ssh]
    return f"host {become[0]} is this machine and has `become`" if become else ""


def program():
    """Return the absolute path of the watchties that runs; raise WatchtiesError if it does not run by that."""
    found = os.path.join(os.path.dirname(os.path.abspath(sys.executable)), "watchties")
    if NOT_IN_PROGRAM & set(found):
        raise WatchtiesError(f"systemd starts no program with a quote, backslash or dollar sign in its path: {found}; install elsewhere")
    try:
        said = subprocess.run([found, "--version"], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=PATIENCE).stdout
    except OSError as error:
        said = error.strerror
    if said.strip() != f"watchties {__version__}":
        raise WatchtiesError(
            f"{found} does not run ({said.strip() or 'it says nothing'}); if the virtual environment was moved, make it anew where it "
            "is to stay, and install from there"
        )
    return found


def systemctl(*words, check=True):
    """Run `systemctl --user`; return what it printed. Raises WatchtiesError without a user manager, CommandFailed."""
    argv = ["systemctl", "--user", *words]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment(), timeout=PATIENCE)
    except FileNotFoundError:
        raise WatchtiesError("systemctl is not there: this machine has no systemd; see `watchties transfer`, for cron") from None
    if check and done.returncode:
        raise CommandFailed(argv, done.returncode, done.stdout, done.stderr)
    return done.stdout


def environment():
    """Return the environment by which the user manager is found, also from a shell that no login has set up (su, cron)."""
    where = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    return os.environ | {"XDG_RUNTIME_DIR": where, "LC_ALL": "C.UTF-8"}


def require_manager():
    """Raise WatchtiesError unless the user's systemd answers."""
    try:
        systemctl("show-environment")
    except CommandFailed as error:
        said = (error.err.strip().splitlines() or ["no answer"])[-1]
        raise WatchtiesError(
            f"no systemd answers for this user ({said}); log in as this user (not by su or sudo), or have it started at boot: "
            f"loginctl enable-linger {user()}; without it there is `watchties transfer`, for cron"
        ) from None


def user():
    """Return our login name."""
    import getpass

    return getpass.getuser()


def lingers():
    """Return whether the user's services run without a login; False where nobody can say."""
    return os.path.exists(f"/var/lib/systemd/linger/{user()}")


def installed():
    """Return the text of the unit that is there, or ""; raise WatchtiesError if it is somebody else's."""
    try:
        text = path().read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    if not text.startswith(STAMP):
        raise WatchtiesError(f"{path()} was not put there by watchties, so it is left alone; move it away")
    return text


def write(text):
    """Put the unit in place, whole or not at all."""
    path().parent.mkdir(parents=True, exist_ok=True)
    new = path().with_name(f".{NAME}.new")
    new.write_text(text, encoding="utf-8")
    new.rename(path())


def shown():
    """Return what systemd says of the service: property -> value."""
    said = systemctl("show", NAME, "-p", ",".join(SHOWN))
    return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
