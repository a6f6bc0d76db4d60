"""Answers asked for in threads: all of them, several at a time, and nobody waits for one that never comes."""

import signal
import subprocess
import sys
import threading

import pytest

from versatune_ds.knowledge.label_openai import ask_in_threads

INTERRUPTED = """
import os, signal, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts tests in the background ignores it
from versatune_ds.knowledge.label_openai import ask_in_threads

def ask(question):
    if question == "second":
        threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]).start()
        time.sleep(600)
    return "yes"

for question, answer in ask_in_threads(ask, ["first", "second"], num_threads=2):
    print(question, answer, flush=True)
"""


@pytest.mark.parametrize("num_threads", [1, 3, 20])
def test_every_question_is_answered_once(num_threads):
    questions = [str(i) for i in range(10)]
    assert sorted(ask_in_threads(lambda q: q * 2, questions, num_threads=num_threads)) == [
        (q, q * 2) for q in questions
    ]
    assert list(ask_in_threads(str, [], num_threads=num_threads)) == []


def test_as_many_are_under_way_as_asked_for():
    barrier = threading.Barrier(3)  # breaks, and the questions fail, unless three wait at a time
    ask = lambda question: str(barrier.wait(timeout=20) >= 0)  # noqa: E731
    assert len(list(ask_in_threads(ask, ["a", "b", "c"], num_threads=3))) == 3


def test_a_failure_is_raised_and_no_further_question_begun():
    asked = []

    def ask(question):
        asked.append(question)
        if question == "bad":
            raise RuntimeError("no answer")
        return "yes"

    with pytest.raises(RuntimeError, match="no answer"):
        list(ask_in_threads(ask, ["good", "bad", *map(str, range(100_000))], num_threads=1))
    assert len(asked) < 100_000


def test_ctrl_c_ends_the_program_while_an_answer_is_under_way():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGINT, done.stderr
    assert done.stdout == "first yes\n"
    assert "KeyboardInterrupt" in done.stderr
