"""A unit of systemd for the server: no rights that it does not need, restarted when it fails, packages swapped on reload.
Torch-free."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from .command import ADVICE, ENVIRONMENT, Command
from .resources import Resources

UNIT = "kdzoo.service"


def unit(packages: Sequence[Path], command: Command, resources: Resources, python: str = sys.executable) -> str:
    """`packages`: their folders, which stay where they are and must be readable for everybody. python: that runs kdzoo."""
    words = command.arguments([str(package.resolve()) for package in packages])
    line = " ".join(map(quoted, [python, "-m", "kdzoo", *words]))
    variables = " ".join(f"{key}={value}" for key, value in ENVIRONMENT.items())
    comments = "\n".join(f"# {reason}" for reason in resources.reasons)
    return f"""\
# cp {UNIT} /etc/systemd/system/ && systemctl daemon-reload && systemctl enable --now kdzoo
# systemctl reload kdzoo takes packages that were replaced, without a dropped request.
# Everybody must be able to read the packages and Python; and neither may lie in /tmp, for the service has one of its own.
# {ADVICE}
{comments}
[Unit]
Description=kdzoo serve
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=60
StartLimitBurst=5

[Service]
Type=exec
ExecStart={line}
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartSec=1
KillSignal=SIGTERM
KillMode=mixed
TimeoutStopSec={command.stop_seconds}
Environment={variables}
MemoryMax={resources.memory_limit}M
TasksMax={256 + 4 * resources.threads}
LimitNOFILE=65536

DynamicUser=yes
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
CapabilityBoundingSet=
AmbientCapabilities=
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
UMask=0077

[Install]
WantedBy=multi-user.target
"""


def quoted(word: str) -> str:
    """A word of a command line; systemd expands `%` and `$`."""
    text = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{text}"' if not word or any(sign.isspace() or sign in "\"'\\;" for sign in word) else text
