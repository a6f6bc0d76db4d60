"""Run two hosts on one machine: namespaces for network, host name and processes, a virtual cable, an sshd in each.

Nothing outside changes: keys, ssh configuration and host names are mounted only in the namespaces, and everything ends
with their first process.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_BETA = """\
hostname beta
ip link set lo up
while ! ip link show cable1 >/dev/null 2>&1; do sleep 0.05; done
ip addr add 10.77.0.2/24 dev cable1
ip link set cable1 up
exec /usr/sbin/sshd -D -e -f {folder}/sshd_config
"""

_ALPHA = """\
set -e
mount --bind {folder}/hosts /etc/hosts
mount --bind {folder}/ssh_config.d /etc/ssh/ssh_config.d
mkdir -p /run/sshd
hostname alpha
ip link set lo up
ip link add cable0 type veth peer name cable1
ip addr add 10.77.0.1/24 dev cable0
ip link set cable0 up
unshare --net --uts bash {folder}/beta.sh >{folder}/beta.log 2>&1 &
sleep 0.2
ip link set cable1 netns $!
/usr/sbin/sshd -e -f {folder}/sshd_config
for i in $(seq 100); do
  if ssh alpha true 2>{folder}/ssh.log && ssh beta true 2>{folder}/ssh.log; then break; fi
  sleep 0.1
done
set +e
"$@"
"""

_SSHD = """\
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile {folder}/sshd.pid
PermitRootLogin yes
StrictModes no
UsePAM no
"""

_SSH = """\
Host alpha beta
  IdentityFile {folder}/user_key
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
"""


class TwoHosts:
    """The hosts alpha and beta, which reach each other by name and by ssh.

    Args:
        folder: Empty folder for keys and settings.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "ssh_config.d").mkdir()
        files = {"alpha.sh": _ALPHA, "beta.sh": _BETA, "sshd_config": _SSHD, "ssh_config.d/tests.conf": _SSH}
        for name, text in files.items():
            (folder / name).write_text(text.format(folder=folder))
        (folder / "hosts").write_text("127.0.0.1 localhost\n10.77.0.1 alpha\n10.77.0.2 beta\n")
        for key in ("host_key", "user_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)

    def run(self, *command: str | Path, cwd: Path, timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
        """Run a command on alpha while beta runs too, and return the completed process."""
        unshare = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        alpha = ["setpriv", "--pdeathsig=KILL", *unshare, "bash", self.folder / "alpha.sh"]
        return subprocess.run(
            [*map(str, alpha), *map(str, command)],
            cwd=cwd, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, env=dict(os.environ),
        )  # fmt: skip
