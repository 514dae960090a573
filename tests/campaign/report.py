"""What the campaign tells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from campaign.calls import Boundary
from campaign.case import Result, story_of


def case(result: Result, seed: int, *, whole: bool) -> None:
    """A line for a case; more where a promise is broken."""
    word = "FAILED" if result.broken else "passed"
    struck = "" if result.struck or not result.plan.strike else " (it was over before)"
    print(f"{result.plan.number:5} {word} {result.seconds:5.1f} s  {result.plan}{struck}", flush=True)
    for what in result.broken:
        print(f"      broken: {what}")
    if result.broken:
        print(f"      again: ci/test-teardown --seed {seed} --case {result.plan.number}")
    if whole or result.broken:
        for line in result.left:
            print(f"      left after {line}")
    if whole:
        print(story_of(result.logs))
    elif result.broken:
        print("\n".join(f"      | {line}" for line in story_of(result.logs).splitlines()[-60:]), flush=True)


def logs(result: Result, folder: Path) -> None:
    """Everything that a case's jobs said, in a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    head = [
        str(result.plan),
        *(f"broken: {what}" for what in result.broken),
        *(f"left after {one}" for one in result.left),
    ]
    (folder / f"case-{result.plan.number}.log").write_text("\n".join([*head, story_of(result.logs)]), encoding="utf-8")


def summary(results: Sequence[Result], known: Sequence[Boundary], seconds: float, file: Path | None) -> None:
    """The whole campaign, on standard output and in a file if one is named."""
    text = "\n".join(_lines(results, known, seconds))
    print(text)
    if file is not None:
        file.write_text(text + "\n", encoding="utf-8")


def _lines(results: Sequence[Result], known: Sequence[Boundary], seconds: float) -> list[str]:
    lines = ["", "strikes:"]
    strikes = Counter(one.plan.strike for one in results)
    missed = Counter(one.plan.strike for one in results if not one.struck)
    for name, count in sorted(strikes.items()):
        lines.append(f"  {count:4} x {name}{f' ({missed[name]} came too late)' if missed[name] else ''}")
    lines.append("beside them:")
    for name, count in sorted(Counter(one.plan.ambient or "nothing" for one in results).items()):
        lines.append(f"  {count:4} x {name}")
    lines.append(f"something was left for a layer after the pipeline: {sum(bool(one.left) for one in results)} times")
    hit = {one.hit for one in results if one.hit}
    lines.append(f"boundaries of calls: {len(hit)} of {len(known)} hit")
    lines += [f"  hit:     {one}" for one in known if one in hit]
    lines += [f"  not hit: {one}" for one in known if one not in hit]
    times = sorted(one.seconds for one in results) or [0.0]
    lines.append(
        f"{len(results)} cases in {seconds:.0f} s: {seconds / max(1, len(results)):.1f} s each, with several at once; "
        f"a case took {times[len(times) // 2]:.1f} s in the middle and {times[-1]:.1f} s at most"
    )
    return lines
