"""Which Terraform is used: the one a setting names, else Terraform, else OpenTofu; new enough."""

from __future__ import annotations

import json
import re
from pathlib import Path

from glgpu.errors import ErrorClass, Failure
from glgpu.processes import TimedOut, environment, find_tool, run

OLDEST = {"terraform": (1, 5), "tofu": (1, 6)}


def terraform_program(asked: str) -> tuple[str, str]:
    """Find the program.

    Args:
        asked: Its path or name; empty: terraform, else tofu.

    Returns:
        Its path and its version, which is empty where it does not say.

    Raises:
        Failure: TOOL_MISSING.
    """
    names = [asked] if asked else ["terraform", "tofu"]
    path = next((found for name in names if (found := find_tool(name))), None)
    if path is None:
        raise Failure(
            ErrorClass.TOOL_MISSING,
            f"{' and '.join(names)}: not found on PATH",
            "install Terraform 1.5 or OpenTofu 1.6 or newer, or use the job image",
        )
    try:
        done = run([path, "version", "-json"], env=environment({"CHECKPOINT_DISABLE": "1"}), timeout=60)
        version = str(json.loads(done.text)["terraform_version"])
    except (TimedOut, ValueError, KeyError, TypeError):
        return path, ""  # whatever it is: an apply without a VM is found out
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    oldest = OLDEST["tofu" if "tofu" in Path(path).name else "terraform"]
    if numbers < oldest:
        raise Failure(
            ErrorClass.TOOL_MISSING,
            f"{path} is version {version}, older than {oldest[0]}.{oldest[1]}",
            "install a newer Terraform or OpenTofu, or use the job image",
        )
    return path, version
