"""Why a host lets nobody in: whether there is a key at all that ssh could offer, and whether it can be used without asking.

Knows: `ssh -G` (ssh(1)), ssh-add, ssh-keygen.
Must not know: what is done with the answer.
"""

import asyncio
import os
import shlex

KEY = "~/.ssh/watchties"  # as README has it


async def no_key(far):
    """Return what to do if ssh has no key to offer to a host, or only ones that ask for a passphrase; "" if it has one."""
    code, said = await _run("ssh", "-G", *far.options, "--", far.ssh)
    names = [line.partition(" ")[2] for line in said.splitlines() if line.startswith("identityfile ")]
    names = [os.path.expanduser(name) for name in names]
    there = [name for name in names if os.path.exists(name)]
    if code or (await _run("ssh-add", "-l"))[0] == 0:
        return ""
    if not there:
        make = f"make one, ssh-keygen -t ed25519 -N '' -f {KEY}, name it in ~/.ssh/config"
        return f"there is no ssh key here, and no agent has one: {make}, and ssh-copy-id -i {KEY}.pub {shlex.quote(far.ssh)}"
    if open_to_all := [name for name in there if os.stat(name).st_mode & 0o077]:
        return f"ssh does not use the key {open_to_all[0]}, which others may read: chmod 600 {shlex.quote(open_to_all[0])}"
    if not any([(await _run("ssh-keygen", "-y", "-P", "", "-f", name))[0] == 0 for name in there]):
        return f"the key {there[0]} has a passphrase, and nobody is there to type it: use one without, or an agent (SSH_AUTH_SOCK)"
    return ""


async def _run(*argv):
    """Return (exit code, standard output as text)."""
    null, pipe = asyncio.subprocess.DEVNULL, asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*argv, stdin=null, stdout=pipe, stderr=null)
    out, _ = await process.communicate()
    return process.returncode, out.decode("utf-8", "replace")
