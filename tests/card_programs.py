"""The programs of a card, taken out of its text and run as a reader would: in the folder of the package, in a new process.

Import it as `kdzoo.tests.card_programs`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

# A reader has neither kdzoo nor torch: importing them fails. Warnings are errors.
ALONE = """
import sys
sys.modules |= dict.fromkeys(("kdzoo", "torch", "onnx"))
with open(sys.argv[1]) as file:
    text = file.read()
exec(compile(text, sys.argv.pop(0), "exec"))
"""


def programs(card: str, language: str = "python") -> list[str]:
    """The blocks of one language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", card, re.DOTALL)


def run_program(program: str, folder: Path, scratch: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a Python program with `folder` as the current one."""
    path = scratch / "program.py"
    path.write_text(program)
    command = [sys.executable, "-E", "-s", "-W", "error", "-c", ALONE, str(path), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
