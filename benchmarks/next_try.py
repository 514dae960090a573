"""How soon the next VM is asked for when a zone has no capacity, and how soon it trains again when one is taken away.

On stand-ins whose operations take no time. The script's loop over zones has nothing to clear away, where glgpu sees
the refusal beside Terraform, ends Terraform and removes what the try left. The script survives no preemption: that
figure is the time from the notice to the training's first line on the next VM, by what the first VM took from its
insert on.
"""

from __future__ import annotations

from life_cycle import GLGPU, SCRIPT, play
from results import Line

from glgpu.rehearsal.faults import Rule

LASTING = 15.0
"""Seconds of a training that is still at work when its VM has shut down."""
ZONES = ("europe-west4-a", "europe-west4-b")


def measure(scale: float) -> list[Line]:
    """One run of each."""
    del scale
    stockout, found = Rule("compute.capacity", "none", where=ZONES[0]), []
    for who in (GLGPU, SCRIPT):
        first, second = play(who, [stockout], zones=ZONES).inserts
        found.append(second - first)
    taken = play(GLGPU, [], training=LASTING, preempted=True)
    again, at_first = taken.trains[1] - taken.trains[0], taken.trains[0] - taken.inserts[0]
    return [
        Line("stockout to the next try", SCRIPT, found[0] - found[1], _told(*found), "{:+.2f} s"),
        Line("preemption notice to training again", "its first start", again / at_first, _told(again, at_first)),
    ]


def _told(mine: float, its: float) -> str:
    return f"{mine:.2f} s, {its:.2f} s"
