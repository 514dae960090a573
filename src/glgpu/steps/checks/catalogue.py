"""All checks, in the order of their importance: the exit code is that of the first that finds an error."""

from __future__ import annotations

from glgpu.steps.checks import (
    of_gitlab,
    of_google,
    of_image,
    of_machine,
    of_network,
    of_settings,
    of_this_machine,
)
from glgpu.steps.checks.judging import Check

CHECKS: tuple[Check, ...] = (
    *of_settings.CHECKS,
    *of_this_machine.CHECKS,
    *of_gitlab.CHECKS,
    *of_google.CHECKS,
    *of_machine.CHECKS,
    *of_network.CHECKS,
    *of_image.CHECKS,
)
