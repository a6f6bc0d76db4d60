"""Kill a run on four nodes again and again, at random moments and in random ways, and compare it with one left alone.

The nodes are network namespaces on this machine (tests/helpers/cluster_box.py), so this needs root. A chain is one run
that is killed some ten times, its checkpoints written in the foreground or in the background by turns; each chain
appends its lines to a page as soon as it has ended, so the script can be stopped and started again.

    python benchmarks/random_kills.py --output FOLDER --kills 100 --page benchmarks/results/kills.md

Kinds of kill: SIGKILL of one rank, of all, SIGTERM to one or to all, a node without power, a node's cable pulled. Every
file waits 30 ms before it is written, so that kills meet saves, and ranks miss each other after 6 s instead of minutes.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from box_runs import BoxRuns, hasten_heartbeats  # noqa: E402
from cluster_box import Box, Rank, exit_codes  # noqa: E402

NUM_STEPS = 60
KINDS = ("SIGKILL one", "SIGKILL all", "SIGTERM one", "SIGTERM all", "power", "cable")
LAUNCHER_SECONDS = 30.0
"""How long ranks may take to end once one has; then they are killed, as a launcher does."""
HEAD = (
    "| chain | ranks | saves | kills | kinds | moments | resumed from step | left to the launcher | seconds | "
    "equal, bit for bit |\n|---:|---:|---|---:|---|---|---|---:|---:|---|\n"
)


@dataclass(slots=True)
class Chain:
    """What happened to one run."""

    kinds: Counter[str] = field(default_factory=Counter)
    moments: Counter[str] = field(default_factory=Counter)
    steps: list[int] = field(default_factory=list)
    num_left: int = 0
    """Ranks that did not end by themselves."""


def main() -> None:
    """Run chains until enough kills are on the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--page", type=Path, default=ROOT / "benchmarks" / "results" / "kills.md")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--kills-per-chain", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)  # a process forked after torch's thread pool was used would wait for it forever
    while (done := kills_on_page(args.page)) < args.kills:
        number = chains_on_page(args.page) + 1
        num_kills = min(args.kills_per_chain, args.kills - done)
        line = run_chain(args.output / f"chain_{number}", number=number, num_kills=num_kills)
        with args.page.open("a") as stream:
            stream.write(line)
        sys.stdout.write(line)
        sys.stdout.flush()


def chain_lines(page: Path) -> list[list[str]]:
    """Return the cells of the chains on a page; a page without a table gets its head."""
    text = page.read_text() if page.is_file() else ""
    if HEAD not in text:
        page.write_text(text + HEAD)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return [row for row in cells if row[0].isdigit()]


def chains_on_page(page: Path) -> int:
    """Return how many chains a page has."""
    return len(chain_lines(page))


def kills_on_page(page: Path) -> int:
    """Return how many kills a page has."""
    return sum(int(row[3]) for row in chain_lines(page))


def run_chain(folder: Path, *, number: int, num_kills: int) -> str:
    """Kill a run several times and return its line of the page; the chain's number is its seed."""
    shutil.rmtree(folder, ignore_errors=True)
    choice, began, chain = random.Random(number), time.monotonic(), Chain()
    num_ranks = choice.choice((2, 4))
    background = number % 2 == 0
    box = Box(folder, num_nodes=num_ranks)
    try:
        runs = BoxRuns(box, f"train.steps={NUM_STEPS}", "mixture.update_every=7", "checkpoint.every=3")
        runs.train("whole", seconds=300)
        settings = ["checkpoint.background=true"] * background
        while sum(chain.kinds.values()) < num_kills:
            if not kill_once(runs, chain, settings=settings, choice=choice):
                break
        runs.train("killed", *settings, seconds=300)
        runs.assert_equal("killed", "whole")
    finally:
        box.close()
    shutil.rmtree(folder)
    kinds, moments = (
        ", ".join(f"{n} {name}" for name, n in sorted(each.items())) for each in (chain.kinds, chain.moments)
    )
    steps = " ".join(map(str, chain.steps))
    return (
        f"| {number} | {num_ranks} | {'background' if background else 'foreground'} | {sum(chain.kinds.values())} | "
        f"{kinds} | {moments} | {steps} | {chain.num_left} | {time.monotonic() - began:.0f} | yes |\n"
    )


def kill_once(runs: BoxRuns, chain: Chain, *, settings: list[str], choice: random.Random) -> bool:
    """Start the run, kill it at a random moment, and wait until it is gone; return whether it was not complete."""
    kind = choice.choice(KINDS)
    resumed, record = runs.newest("killed"), runs.record_number("killed")
    ranks = runs.start("killed", *settings, arm=lambda rank: (hasten_heartbeats(), slow_writes()))
    if choice.random() < 0.25:
        moment = "start"
        time.sleep(choice.uniform(0, 5))
    else:
        moment = "training"
        end = time.monotonic() + 120
        while not has_trained(runs, resumed, record=record) and is_alive(ranks) and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(choice.uniform(0, 2))
    if not is_alive(ranks):
        codes = exit_codes(ranks, seconds=LAUNCHER_SECONDS)
        if codes != [0] * len(ranks):
            raise RuntimeError(f"ended by itself: {codes}\n{runs.logs()}")
        return False
    is_met = bool(list((runs.run_dir("killed") / "checkpoints").glob("*.partial")))
    off = hit(runs, ranks, kind=kind, choice=choice)
    codes = end_all(ranks, chain)
    sys.stderr.write(f"{kind} in {moment}, after step {resumed}, a save under way: {is_met}: exit codes {codes}\n")
    for node in off:
        node.power_off()
        node.power_on()
    chain.kinds[kind] += 1
    chain.moments["save" if is_met else moment] += 1
    chain.steps.append(resumed)
    return True


def has_trained(runs: BoxRuns, resumed: int, *, record: int) -> bool:
    """Return whether a run has taken a step since it was started."""
    return runs.record_number("killed") != record and runs.num_steps("killed") > resumed


def hit(runs: BoxRuns, ranks: list[Rank], *, kind: str, choice: random.Random) -> list:
    """Do what a kind of kill means; return the nodes to boot again."""
    victim = choice.randrange(len(ranks))
    if kind in ("power", "cable"):
        node = runs.box.nodes[victim]
        node.power_off() if kind == "power" else node.cut()
        return [node]
    number = signal.SIGTERM if "SIGTERM" in kind else signal.SIGKILL
    for rank in ranks if "all" in kind else [ranks[victim]]:
        if rank.exit_code(seconds=0) is None:
            rank.kill(number)
    return []


def end_all(ranks: list[Rank], chain: Chain) -> list[int | None]:
    """Wait until all ranks are gone, kill those that stay, as a launcher does, and return the exit codes."""
    end = time.monotonic() + LAUNCHER_SECONDS
    while any(rank.exit_code(seconds=0) is None for rank in ranks) and time.monotonic() < end:
        time.sleep(0.02)
    for rank in ranks:
        if rank.exit_code(seconds=0) is None:
            chain.num_left += 1
            rank.kill()
    return exit_codes(ranks, seconds=10)


def is_alive(ranks: list[Rank]) -> bool:
    """Return whether no rank has ended."""
    return all(rank.exit_code(seconds=0) is None for rank in ranks)


def slow_writes() -> None:
    """Let every file of a checkpoint wait before it is written."""
    write = torch.save
    torch.save = lambda values, stream: (time.sleep(0.03), write(values, stream))


if __name__ == "__main__":
    main()
