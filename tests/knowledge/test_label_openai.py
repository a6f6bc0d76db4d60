"""The endpoint labeller against a local server: failures, limits, odd answers, a secret key, several threads."""

import json
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from base_model import detect_config, save_base_model
from command_line import command_of, write_recipe

from versatune_ds.config import EndpointConfig
from versatune_ds.domains import DomainSet
from versatune_ds.knowledge.label_openai import EndpointLabeller, ask_in_threads, read_answer
from versatune_ds.knowledge.questions import Question

DOMAINS = DomainSet(("law", "code", "Real estate"))
KEY = "sk-very-secret-0815"


class Server(ThreadingHTTPServer):
    """Answer each request with the next entry of `script`, and with `answer` after the last."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.answer = [], '{"law": 1}'
        self.requests, self.headers, self.lock = [], [], threading.Lock()
        self.barrier = None

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
        if self.server.barrier is not None:
            self.server.barrier.wait(timeout=20)
        message = {"role": "assistant", "content": content}
        choices = [{"index": 0, "finish_reason": "stop", "message": message}]
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


def labeller(server, folder, **settings):
    endpoint = EndpointConfig(**{"url": server.url, "model": "judge", "max_retries": 3, **settings})
    question = Question(domain_set=DOMAINS, descriptions={"code": "programs"}, max_characters=50)
    return EndpointLabeller(endpoint, question=question, folder=folder)


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ('{"law": 0.2, "code": 0.8}', [0.2, 0.8, 0.0]),
        ('Sure!\n```json\n{"LAW": 1, "real estate ": 3}\n```', [0.25, 0.0, 0.75]),
        ('{"law": 0.5, "other": 0.5}', [0.5, 0.0, 0.0]),
        ('{"law": 20, "code": 60, "poetry": 20}', [0.2, 0.6, 0.0]),
        ('{"law": 0}', [0, 0, 0]),
        ('{"law": -1, "code": 2}', [0, 0, 0]),
        ('{"law": NaN}', [0, 0, 0]),
        pytest.param('{"law": 1' + "0" * 400 + "}", [0, 0, 0], id="beyond a float"),
        ('{"law": true}', [0, 0, 0]),
        ('{"law": "high"}', [0, 0, 0]),
        ('["law"]', [0, 0, 0]),
        ("It is law.", [0, 0, 0]),
        ('{"law": 0.5', [0, 0, 0]),
        ("", [0, 0, 0]),
    ],
)
def test_an_answer_is_read_as_probabilities_or_counts_as_unparsed(answer, label):
    assert read_answer(answer, DOMAINS) == pytest.approx(np.array(label))


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


# Several questions at a time.


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
