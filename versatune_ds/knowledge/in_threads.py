"""Ask for many answers at once, and exit at Ctrl-C without waiting for pending ones.

The threads are daemons, which end with the program. Those of `concurrent.futures` are waited for at its end, and a
request to a slow endpoint may take minutes, with its retries even more.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence


def ask_in_threads(
    ask: Callable[[str], str], questions: Sequence[str], *, num_threads: int
) -> Iterator[tuple[str, str]]:
    """Yield (question, answer) of every question, in the order in which answers come.

    When the caller stops iterating, no further question is asked.

    Args:
        ask: Returns the answer to a question.
        questions: What is asked.
        num_threads: Questions asked at a time.

    Raises:
        Exception: What `ask` raised first.
    """
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    answered: queue.SimpleQueue[tuple[str, str | BaseException]] = queue.SimpleQueue()
    is_over = threading.Event()
    for question in questions:
        waiting.put(question)

    def work() -> None:
        while not is_over.is_set():
            try:
                question = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                answered.put((question, ask(question)))
            except BaseException as error:
                answered.put((question, error))

    for _ in range(min(num_threads, len(questions))):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in questions:
            question, answer = answered.get()
            if isinstance(answer, BaseException):
                raise answer
            yield question, answer
    finally:
        is_over.set()
