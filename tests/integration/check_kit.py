"""Two hosts that `watchties check` can look at: vision behind an unprivileged sshd on loopback, b01 on this machine."""

import asyncio
import os
import shutil

from site_kit import RULES

from watchties import checks, deploy, ssh
from watchties.config import load

WEB = '[host.vision]\n{ssh}role = "web"\nroot = "{base}/vision/compties"\n'
COMPUTE = '[host.b01]\n{ssh}role = "compute"\nscheduler = "shell"\nroot = "{base}/b01/compties"\n'
TREE = '[tree.main]\nroot = "{base}/v11/user_data"\nweb = "vision"\ncompute = ["b01"]\n'


class Hosts:
    """vision behind an sshd, b01 on this machine; both deployed."""

    def __init__(self, base, sshd):
        self.base, self.sshd, self.conf = base, sshd, base / "conf.d"
        self.conf.mkdir(mode=0o755)
        self.vision, self.b01 = base / "vision/compties", base / "b01/compties"
        for root in self.vision, self.b01:
            asyncio.run(deploy.deploy(ssh.Far("x", root=str(root)), ["user_data"]))
        shutil.copy(RULES, self.conf)
        self.write()

    def write(self, web="", more=""):
        far = self.sshd.toml().replace('["', '["ConnectTimeout=3", "', 1)
        text = WEB.format(ssh=far + web, base=self.base) + COMPUTE.format(ssh="", base=self.base) + TREE.format(base=self.base)
        (self.conf / "10-site.toml").write_text(text + more)

    def found(self):
        return asyncio.run(checks.hosts(load(str(self.conf))))

    def wrong(self):
        """Return the lines that are wrong, each with its remedy."""
        wrong = [finding for finding in self.found() if finding.ok is False]
        assert all(finding.remedy and "\n" not in finding.line() for finding in wrong), wrong
        return [finding.line() for finding in wrong]


def path_there(sshd, *first):
    """Let the login have a PATH of its own: `first`, then links to all commands of this machine but rsync."""
    tools = sshd.folder / "tools"
    tools.mkdir()
    for folder in "/usr/bin", "/bin", "/usr/sbin":
        for name in os.listdir(folder):
            if name != "rsync" and not os.path.lexists(tools / name):
                (tools / name).symlink_to(f"{folder}/{name}")
    sshd.stop()
    sshd.more = f"SetEnv HOME={sshd.home} PATH={':'.join(map(str, [*first, tools]))}"
    sshd.start()
