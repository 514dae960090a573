"""How soon the next zone is asked for when one has no capacity, against a loop over zones in rival.sh.

From one insert to the next, on stand-ins whose operations take no time. The script has nothing to clear away; glgpu
sees the refusal beside Terraform, ends Terraform, and removes what the try left.
"""

from __future__ import annotations

from life_cycle import GLGPU, SCRIPT, play
from results import Line

from glgpu.rehearsal.faults import Rule

ZONES = ("europe-west4-a", "europe-west4-b")


def measure(scale: float) -> list[Line]:
    """One run of each."""
    del scale
    stockout = Rule("compute.capacity", "none", where=ZONES[0])
    found = {}
    for who in (GLGPU, SCRIPT):
        first, second = play(who, [stockout], zones=ZONES).inserts
        found[who] = second - first
    figures = ", ".join(f"{one:.2f} s" for one in found.values())
    return [Line("stockout to the next try", SCRIPT, found[GLGPU] - found[SCRIPT], figures, "{:+.2f} s")]
