"""A command within a given time: what may start, when what runs is stopped, and what is left."""

import signal
import time

import pytest

from versatune_ds.launch.jobs import Job, run_jobs
from versatune_ds.launch.time_budget import OutOfTimeError, TimeBudget


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_of_600_seconds_20_are_for_ending_and_of_50_seconds_5(clock):
    long, short = TimeBudget(600, clock=clock), TimeBudget(50, clock=clock)
    assert (long.seconds_to_stop(), long.seconds_to_kill()) == (580, 590)
    assert (short.seconds_to_stop(), short.seconds_to_kill()) == (45, 47.5)
    clock.now += 580
    assert long.is_over()
    with pytest.raises(OutOfTimeError, match="versatune reference"):
        long.check("versatune reference")


def test_what_began_before_the_budget_was_made_counts(clock):
    assert TimeBudget(100, began=90.0, clock=clock).seconds_to_stop() == 80


def test_the_next_run_starts_only_if_it_would_end_in_time_as_the_longest_one_did(clock):
    budget = TimeBudget(100, clock=clock)  # 90 s for runs
    assert budget.has_time_for_next()  # nothing is known, so it is tried
    budget.guess(95)
    assert not budget.has_time_for_next()
    budget.record(30)
    budget.record(40)
    budget.record(20)
    assert budget.next_seconds == 40
    clock.now += 49
    assert budget.has_time_for_next()
    clock.now += 1
    assert not budget.has_time_for_next()


def test_the_first_guess_stays_until_a_run_is_done(clock):
    budget = TimeBudget(100, guess_seconds=7, clock=clock)
    budget.guess(50)
    assert budget.next_seconds == 7


def test_without_a_limit_there_is_always_time(clock):
    budget = TimeBudget(None, clock=clock)
    budget.record(1e9)
    assert budget.has_time_for_next()
    assert not budget.is_over()
    assert budget.seconds_to_kill() is None


def make_jobs(tmp_path, works):
    return [Job(name=name, work=work, log=tmp_path / f"{name}.log") for name, work in works.items()]


def run(jobs, *, num_at_a_time=1, **budget):
    codes = {}
    remaining = run_jobs(
        jobs,
        num_at_a_time=num_at_a_time,
        gpus=(),
        when_done=lambda job, code: codes.update({job.name: code}),
        budget=TimeBudget(**budget),
    )
    return codes, [job.name for job in remaining]


def test_no_job_is_started_that_would_not_end_in_time(tmp_path):
    jobs = make_jobs(tmp_path, {"a": lambda: 0, "b": lambda: 0})
    assert run(jobs, seconds=60, guess_seconds=55) == ({}, ["a", "b"])
    assert run(jobs, seconds=60, guess_seconds=53) == ({"a": 0, "b": 0}, [])


def test_at_the_end_of_the_time_jobs_save_when_asked_and_those_that_do_not_listen_are_killed(tmp_path):
    saved = tmp_path / "saved"

    def wait_for_ever():
        while True:
            time.sleep(0.01)

    def listens():
        signal.signal(signal.SIGTERM, lambda number, frame: (saved.touch(), exit(75)))
        wait_for_ever()

    def is_deaf():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        wait_for_ever()

    works = {"listens": listens, "is_deaf": is_deaf, "later": lambda: 0}
    codes, remaining = run(make_jobs(tmp_path, works), num_at_a_time=2, seconds=2)
    assert codes == {}  # none of them failed
    assert sorted(remaining) == ["is_deaf", "later", "listens"]
    assert saved.exists()
