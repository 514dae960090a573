"""Plays the campaign: ``ci/test-teardown [--cases N] [--seed S] [--case K]``; the last line tells how it went."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from campaign import mutants, recording, report
from campaign.plan import draw, undisturbed
from campaign.worker import begin, play

RECORDINGS = 2
"""Undisturbed runs whose common calls are the list."""


def main() -> int:
    """The command."""
    options = _options()
    if options.mutants:
        return mutants.main(options.seed, options.workers)
    source = Path(options.source).resolve() if options.source else None
    begun = time.monotonic()
    with (
        # A short path: programs in jobs and VMs make sockets below it.
        tempfile.TemporaryDirectory(prefix="glgpu-") as folder,
        ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn"), begin, (folder, source)) as pool,
    ):
        recorded = recording.kept(source)
        if recorded is None:
            runs = list(pool.map(play, [(undisturbed(-number), {}) for number in range(1, RECORDINGS + 1)]))
            if wrong := [one for one in runs if one.broken]:
                report.case(wrong[0], options.seed, whole=True)
                print("0 passed, 1 failed: an undisturbed run breaks a promise already")
                return 1
            recorded = recording.keep(source, runs)
        known, times = recorded
        numbers = [options.case] if options.case is not None else range(options.cases)
        playing = [pool.submit(play, (draw(options.seed, number, known), times)) for number in numbers]
        results = []
        for done in as_completed(playing):
            result = done.result()
            results.append(result)
            report.case(result, options.seed, whole=options.case is not None)
            if result.broken and options.logs:
                report.logs(result, options.logs)
            if result.broken and options.until_red:
                pool.shutdown(wait=False, cancel_futures=True)
                break
    report.summary(results, known, time.monotonic() - begun, options.report)
    wrong = [one for one in results if one.broken]
    print(f"{len(results) - len(wrong)} passed, {len(wrong)} failed")
    return 1 if wrong else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ci/test-teardown", description=__doc__)
    parser.add_argument("--cases", type=int, default=1000, help="how many cases (default: 1000)")
    parser.add_argument("--seed", type=int, default=1, help="what the cases are drawn from (default: 1)")
    parser.add_argument("--case", type=int, help="play this case alone, and show all of it")
    parser.add_argument("--workers", type=int, default=2 * (os.cpu_count() or 1), help="cases at the same time")
    parser.add_argument("--until-red", action="store_true", help="end with the first case that fails")
    parser.add_argument("--mutants", action="store_true", help="put old mistakes back in: each has to be found")
    parser.add_argument("--report", type=Path, help="write the report into this file, too")
    parser.add_argument("--logs", type=Path, help="write the jobs' logs of each case that fails into this folder")
    parser.add_argument("--source", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
