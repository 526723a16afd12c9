"""Runs the steps of a session, each within its own time, and writes log.txt, figures.jsonl and summary.md."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchmarks.gpu.figures import FIGURES, Figure, read
from benchmarks.gpu.installation import install
from benchmarks.gpu.steps import STEPS, Step, reason_to_skip

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    """How a step ended. why: it was skipped or failed."""

    step: Step
    state: str
    seconds: float = 0.0
    why: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    deadline = time.monotonic() + options.minutes * 60
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, FIGURES: str(out / "figures.jsonl")}
    outcomes = []
    with (out / "log.txt").open("a") as log:
        if options.wheels and not options.dry_run:
            site = install(options.wheels, log)
            sys.path.insert(0, str(site))
            environment["PYTHONPATH"] = os.pathsep.join([str(site), environment.get("PYTHONPATH", "")])
        has_gpu = _has_gpu(environment)
        for step in STEPS:
            if options.only and step.name not in options.only:
                continue
            left_s = deadline - time.monotonic()
            why = reason_to_skip(step, has_gpu=has_gpu, is_there=_is_there, left_s=left_s)
            if why or options.dry_run:
                outcome = Outcome(step, "skipped", why=why or "this is a dry run")
            else:
                outcome = _run(step, min(step.limit_s, left_s), out, environment, log)
            outcomes.append(outcome)
            _tell(outcome, out)
            (out / "summary.md").write_text(summary(outcomes, [*figures_of_tests(out), *read(out / "figures.jsonl")]))
    return int(any(outcome.state in ("failed", "timed out") for outcome in outcomes))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks/gpu/run", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path(os.environ.get("OUT", "gpu-results")), help="folder of results"
    )
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install first, see README.md")
    parser.add_argument("--minutes", type=float, default=8, help="of the whole session")
    parser.add_argument("--only", nargs="+", choices=[step.name for step in STEPS], help="leave out the other steps")
    parser.add_argument("--dry-run", action="store_true", help="run nothing, and say what would be skipped")
    return parser


def _has_gpu(environment: Mapping[str, str]) -> bool:
    """In a process of its own, so that this one holds no memory of the GPU."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def command_of(step: Step, out: Path) -> list[str]:
    return [sys.executable, *(part.format(out=out) for part in step.command)]


def _run(step: Step, limit_s: float, out: Path, environment: Mapping[str, str], log: IO[str]) -> Outcome:
    """The step with all processes that it starts, which end with it."""
    began = time.monotonic()
    with _process(step, out, environment, log) as process:
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return Outcome(step, "timed out", time.monotonic() - began, f"not over after {limit_s:.0f} s, see log.txt")
    seconds = time.monotonic() - began
    return Outcome(step, "failed" if code else "done", seconds, f"exit code {code}, see log.txt" if code else "")


@contextlib.contextmanager
def _process(step: Step, out: Path, environment: Mapping[str, str], log: IO[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command_of(step, out), cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _tell(outcome: Outcome, out: Path) -> None:
    step = outcome.step
    print(f"{step.name}: {outcome.state}{f': {outcome.why}' if outcome.why else ''} ({outcome.seconds:.0f} s)")
    print(f"  {step.shows}\n  python {shlex.join(command_of(step, out)[1:])}  (at most {step.limit_s} s)", flush=True)


def figures_of_tests(out: Path) -> list[Figure]:
    """Counts of the tests, from what pytest has written."""
    if not (out / "junit.xml").exists():
        return []
    suite = ET.parse(out / "junit.xml").getroot().find("testsuite")
    assert suite is not None
    counted = {name: float(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    wanted = {"failures": 0.0, "errors": 0.0, "skipped": 0.0}
    return [Figure("tests", name, value, wanted.get(name)) for name, value in counted.items()]


def summary(outcomes: Sequence[Outcome], figures: Sequence[Figure]) -> str:
    """Tables of the steps and of their figures, in Markdown."""
    steps = [
        f"| {each.step.name} | {each.state} | {each.seconds:.0f} s | {each.step.shows} | {each.why} |"
        for each in outcomes
    ]
    values = [
        f"| {each.step} | {each.name} | {each.value:.3f} | {'' if each.goal is None else f'{each.goal:g}'} | "
        f"{each.verdict} |"
        for each in figures
    ]
    return "\n".join(
        [
            "# Session on a GPU",
            "",
            "| step | state | took | shows | why |",
            "|---|---|---|---|---|",
            *steps,
            "",
            "| step | figure | value | goal | |",
            "|---|---|---|---|---|",
            *values,
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
