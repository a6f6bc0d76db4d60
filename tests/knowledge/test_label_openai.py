"""The endpoint labeller against a local server: failures, limits, odd answers, a secret key, several threads."""

import json
import math
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from base_model import detect_config, save_base_model
from command_line import command_of, write_recipe

from versatune_ds.config import EndpointConfig
from versatune_ds.domains import DomainSet
from versatune_ds.knowledge import detect as detect_module
from versatune_ds.knowledge.language_models.endpoint import EndpointRequests, client_of
from versatune_ds.knowledge.language_models.label_openai import EndpointLabeller, ask_in_threads, open_endpoint
from versatune_ds.knowledge.language_models.questions import Question

DOMAINS = DomainSet(("law", "code", "Real estate"))
KEY = "sk-very-secret-0815"


class Server(ThreadingHTTPServer):
    """Answer each request with the next entry of `script`, and with `answer` after the last."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.answer = [], '{"law": 1}'
        self.letters = None  # from the text of a question to {token: probability}: the server gives log-probabilities
        self.requests, self.headers, self.lock = [], [], threading.Lock()
        self.barrier = None
        self.quiet_after, self.is_quiet, self.go_on = None, threading.Event(), threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    """Implement the part of the protocol that the client uses."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(body)
            self.server.headers.append({name.title(): value for name, value in self.headers.items()})
            status, content, headers = (
                self.server.script.pop(0) if self.server.script else (200, self.server.answer, {})
            )
            is_quiet = self.server.quiet_after is not None and len(self.server.requests) > self.server.quiet_after
        if self.server.barrier is not None:
            self.server.barrier.wait(timeout=20)
        if is_quiet:
            self.server.is_quiet.set()
            self.server.go_on.wait(timeout=60)
            return
        message = {"role": "assistant", "content": content}
        choices = [{"index": 0, "finish_reason": "stop", "message": message}]
        if self.server.letters is not None and body.get("logprobs"):
            top = [
                {"token": token, "logprob": math.log(probability), "bytes": None}
                for token, probability in self.server.letters(body["messages"][0]["content"]).items()
            ]
            choices[0]["logprobs"] = {"content": [{**top[0], "top_logprobs": top[: body["top_logprobs"]]}]}
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": choices}
        payload = json.dumps(answer if status == 200 else {"error": {"message": f"no, {KEY}"}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *arguments):
        return


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.02)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


QUESTION = Question(domain_set=DOMAINS, descriptions={"code": "programs"}, max_characters=50)


def endpoint(server, **settings):
    return EndpointConfig(**{"url": server.url, "model": "judge", "max_retries": 3, **settings})


def labeller(server, folder, form="text", **settings):
    """Return the labeller, without the question that it is asked when it is opened."""
    settings = endpoint(server, **settings)
    requests = EndpointRequests(client_of(settings), endpoint=settings, question=QUESTION)
    return EndpointLabeller(requests, question=QUESTION, form=form, folder=folder)


def opened(server, folder, **settings):
    return open_endpoint(endpoint(server, **settings), question=QUESTION, folder=folder)


def test_the_question_lists_the_domains_and_shows_the_shortened_text(server, tmp_path):
    labeller(server, tmp_path).label(["x" * 99])
    [request] = server.requests
    assert (request["model"], request["temperature"]) == ("judge", 0.0)
    [message] = request["messages"]
    assert "- law\n- code: programs\n- Real estate\n" in message["content"]
    assert f"-----\n{'x' * 50}\n-----" in message["content"]


def test_failures_and_rate_limits_are_retried(server, tmp_path):
    server.script = [(500, "", {}), (429, "", {"Retry-After": "0.2"}), (503, "", {})]
    label = labeller(server, tmp_path).label(["a text"])
    assert label.tolist() == [[1.0, 0.0, 0.0]]
    assert len(server.requests) == 4


def test_a_server_that_keeps_failing_ends_the_detection_and_keeps_the_answers(server, tmp_path):
    server.script = [(200, '{"code": 1}', {})] + [(500, "", {})] * 4
    with pytest.raises(RuntimeError, match=r"failed 4 times or for good \(InternalServerError, status 500\).*start"):
        labeller(server, tmp_path, concurrency=1).label(["first", "second"])
    server.requests.clear()
    again = labeller(server, tmp_path, concurrency=1).label(["first", "second"])
    assert again.tolist() == [[0, 1, 0], [1, 0, 0]]
    assert len(server.requests) == 1


def test_a_wrong_key_is_reported_at_once_and_not_shown(server, tmp_path):
    server.script = [(401, "", {})] * 9
    with pytest.raises(RuntimeError, match="AuthenticationError, status 401") as raised:
        labeller(server, tmp_path).label(["a"])
    assert KEY not in str(raised.value)
    assert raised.value.__suppress_context__
    assert len(server.requests) == 1


def test_unreadable_answers_are_labels_without_mass_and_not_asked_again(server, tmp_path):
    server.answer = "I cannot say."
    for _ in range(2):
        assert labeller(server, tmp_path).label(["a", "b"]).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert len(server.requests) == 2


def test_no_text_is_asked_about_twice_except_with_another_model(server, tmp_path):
    first = labeller(server, tmp_path)
    assert first.label(["a", "b", "a"]).shape == (3, 3)
    assert len(server.requests) == 2
    labeller(server, tmp_path, model="other").label(["a"])
    assert len(server.requests) == 3


def test_an_answer_cut_off_by_a_kill_is_requested_again(server, tmp_path):
    labeller(server, tmp_path, concurrency=1).label(["a", "b"])
    path = tmp_path / "labels-openai.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    server.requests.clear()
    labeller(server, tmp_path).label(["a", "b"])
    assert len(server.requests) == 1
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 2


def test_the_recipe_sets_the_number_of_concurrent_requests(server, tmp_path):
    server.barrier = threading.Barrier(3)  # breaks, so that the requests fail, unless three wait at a time
    labeller(server, tmp_path, concurrency=3, max_retries=0).label(["a", "b", "c"])
    assert not server.barrier.broken


def test_the_key_is_sent_to_the_server_and_never_written(server, tmp_path, capsys):
    base = save_base_model(tmp_path / "model")
    config = detect_config(
        tmp_path / "runs", base, "detect.labeller=openai", f"detect.openai={{url: '{server.url}', model: judge}}"
    )
    server.answer = '{"law": 0.7, "medicine": 0.3}'
    recipe = write_recipe(config, tmp_path / "recipe.yaml")
    called = command_of(capsys)("detect", recipe)
    assert called.code == 0, called.err
    assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in server.headers)
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 5
    assert not any(KEY.encode() in content for content in written)
    assert KEY not in called.out + called.err
    prior = json.loads((tmp_path / "runs" / "tiny-prior.json").read_text())
    assert prior["labeller"]["model"] == "judge"
    assert prior["weights"]["law"] == pytest.approx((12 * 0.7 + 0.5) / (12 + 6 / 2))  # 12 sequences, six domains
    assert prior["prior_shift"] is False


@pytest.mark.parametrize("url", ["https://me:word@host:8000/v1", "https://host/v1?token=abc", "host:8000"])
def test_an_address_that_may_contain_a_secret_is_refused_since_the_recipe_is_recorded(url):
    with pytest.raises(ValueError, match="without user, password and query"):
        EndpointConfig(url=url, model="judge")


def test_openais_own_endpoint_needs_a_key_and_another_address_does_not(server, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ValueError, match=r"detect.openai: set OPENAI_API_KEY, or detect.openai.url"):
        labeller(server, tmp_path, url=None)
    labeller(server, tmp_path).label(["a"])


# Letters: the options' log-probabilities.


def prefer(name, probability):
    """Return what a model gives that finds an option likeliest: its letter so likely, "The" the rest."""

    def letters(content):
        letter = re.search(rf"^([A-Z])\) {name}", content, re.MULTILINE)[1]
        return {f" {letter}": probability, "The": 1 - probability}

    return letters


def test_where_the_server_gives_log_probabilities_a_label_is_the_options_probabilities(server, tmp_path, caplog):
    caplog.set_level("INFO", logger="versatune_ds")
    server.letters = prefer("code", 0.6)
    found = opened(server, tmp_path)
    assert "detect.openai.answers: auto: letters; the server gives log-probabilities" in caplog.text
    assert found.describe()["answers"] == "letters"
    assert found.label([f"text {i}" for i in range(9)]).tolist() == [[0, 1, 0]] * 9
    assert all((request["max_tokens"], request["top_logprobs"]) == (1, 20) for request in server.requests)


def test_the_option_none_of_these_belongs_to_no_domain(server, tmp_path):
    server.letters = prefer("none of these", 0.9)
    assert opened(server, tmp_path).label(["a"]).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("script", "letters", "reason"),
    [
        ([], None, "text; the server gives no log-probabilities"),
        ([(422, "", {})], None, "refuses a request for log-probabilities (UnprocessableEntityError, status 422)"),
        ([(400, "", {})], None, "refuses a request for log-probabilities (BadRequestError, status 400)"),
        ([], prefer("code", 0.05), "begins its answer with a letter with probability 0.05 only"),
    ],
)
def test_without_usable_log_probabilities_the_words_of_the_answer_are_read_and_one_line_says_so(
    server, tmp_path, caplog, script, letters, reason
):
    caplog.set_level("INFO", logger="versatune_ds")
    server.script, server.letters = script, letters
    assert opened(server, tmp_path).label(["a"]).tolist() == [[1, 0, 0]]
    assert [record.getMessage() for record in caplog.records if "answers" in record.getMessage()] == [
        record.getMessage() for record in caplog.records if reason in record.getMessage()
    ]
    server.script = list(script)
    with pytest.raises(ValueError, match=r"^detect\.openai\.answers: letters cannot be used: .*; choose auto or text$"):
        opened(server, tmp_path, answers="letters")


def test_a_label_in_letters_and_one_in_words_are_kept_apart(server, tmp_path):
    server.letters = prefer("code", 1 - 1e-9)
    assert labeller(server, tmp_path, form="letters").label(["a"]).argmax() == 1
    assert labeller(server, tmp_path, form="text").label(["a"]).argmax() == 0
    assert len(server.requests) == 2


def test_an_answer_that_an_earlier_version_could_not_read_is_read_again_and_not_asked_for(server, tmp_path):
    server.answer = "The domain is **code**."
    labeller(server, tmp_path).label(["a"])
    path = tmp_path / "labels-openai.jsonl"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, "label": [0, 0, 0]}) + "\n")
    assert labeller(server, tmp_path).label(["a"]).tolist() == [[0, 1, 0]]
    assert len(server.requests) == 1


# Before anything is drawn.


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, r"refuses the key \(status 401\); set OPENAI_API_KEY"),
        (404, r"^detect\.openai\.model: .* has no model 'judge', or no API at this address \(status 404\)"),
        (503, r"does not answer \(InternalServerError, status 503\); start the server"),
    ],
)
def test_an_endpoint_that_does_not_answer_is_one_line_when_it_is_opened(server, tmp_path, status, message):
    server.script = [(status, "", {})] * 9
    with pytest.raises(ValueError, match=message) as raised:
        opened(server, tmp_path)
    assert KEY not in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(server.requests) <= 3


@pytest.mark.parametrize("method", ["generation", "both"])
def test_a_server_that_is_not_there_ends_the_command_before_anything_is_drawn_or_measured(
    server, tmp_path, capsys, monkeypatch, method
):
    for name in ("load_generator", "detect_likelihood"):
        monkeypatch.setattr(detect_module, name, lambda *_, **__: pytest.fail("began"))
    free = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    free.close()
    config = detect_config(
        tmp_path / "runs",
        save_base_model(tmp_path / "model"),
        "detect.labeller=openai",
        f"detect.method={method}",
        f"detect.openai={{url: '{url}', model: judge}}",
    )
    called = command_of(capsys)("detect", write_recipe(config, tmp_path / "recipe.yaml"))
    assert (called.code, called.out) == (2, "")
    assert called.err.splitlines()[-1] == (
        f"versatune: detect.openai.url: {url} does not answer (APIConnectionError); start the server, correct the "
        "address, or raise detect.openai.timeout_seconds"
    )


# A kill.


def wait_for(is_true):
    until = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < until
        time.sleep(0.01)


def label_until_killed(server, folder, texts):
    labeller(server, folder, concurrency=2).label(texts)


def test_after_a_kill_in_the_middle_only_the_rest_is_asked_and_the_labels_are_those_of_an_unbroken_run(
    server, tmp_path
):
    texts = [f"text {i}" for i in range(12)]
    server.answer = '{"law": 0.2, "code": 0.8}'
    unbroken = labeller(server, tmp_path / "unbroken").label(texts)
    server.requests.clear()
    # Five answers, then the server keeps quiet: the two threads wait while the process is killed.
    server.quiet_after = 5
    victim = multiprocessing.get_context("fork").Process(
        target=label_until_killed, args=(server, tmp_path / "killed", texts), daemon=True
    )
    victim.start()
    assert server.is_quiet.wait(timeout=30)
    path = tmp_path / "killed" / "labels-openai.jsonl"
    wait_for(lambda: path.is_file() and path.read_bytes().count(b"\n") == 5)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    with path.open("ab") as file:  # what a kill while a line is written leaves
        file.write(b'{"key": "ab')
    server.quiet_after = None
    server.go_on.set()
    server.requests.clear()
    resumed = labeller(server, tmp_path / "killed").label(texts)
    assert len(server.requests) == len(texts) - 5
    assert resumed.tolist() == unbroken.tolist()
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == len(texts)


# Several questions at a time.


INTERRUPTED = """
import os, signal, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts tests in the background ignores it
from versatune_ds.knowledge.language_models.label_openai import ask_in_threads

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


def test_as_many_questions_are_pending_as_there_are_threads():
    barrier = threading.Barrier(3)  # breaks, and the questions fail, unless three wait at a time
    ask = lambda question: str(barrier.wait(timeout=20) >= 0)  # noqa: E731
    assert len(list(ask_in_threads(ask, ["a", "b", "c"], num_threads=3))) == 3


def test_a_failure_is_raised_and_no_further_question_is_asked():
    asked = []

    def ask(question):
        asked.append(question)
        if question == "bad":
            raise RuntimeError("no answer")
        return "yes"

    with pytest.raises(RuntimeError, match="no answer"):
        list(ask_in_threads(ask, ["good", "bad", *map(str, range(100_000))], num_threads=1))
    assert len(asked) < 100_000


def test_ctrl_c_ends_the_program_while_an_answer_is_pending():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGINT, done.stderr
    assert done.stdout == "first yes\n"
    assert "KeyboardInterrupt" in done.stderr
