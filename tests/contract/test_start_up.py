"""`glgpu --help` imports next to nothing: what costs start-up time is imported where it is used."""

from __future__ import annotations

import json
import subprocess
import sys

COSTLY = {"google", "gitlab", "pydantic", "yaml", "requests", "python_terraform", "aiohttp", "asyncssh", "psutil"}


def test_help_imports_no_library_but_click() -> None:
    program = (
        "import json, sys\n"
        "from glgpu.cli import cli\n"
        "try:\n    cli(['--help'], prog_name='glgpu')\n"
        "except SystemExit:\n    pass\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stderr.splitlines()[-1]))
    assert "rehearse" in done.stdout
    assert "click" in loaded
    assert loaded & COSTLY == set()
