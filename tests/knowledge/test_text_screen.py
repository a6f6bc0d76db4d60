"""Texts that are no language of the rows are unclear, and held-out rows are not."""

import base64
import random

import numpy as np
import pytest

from versatune_ds.knowledge.label_texts import LabelledTexts
from versatune_ds.knowledge.reliability.text_screen import ScreenedLabeller, compression_ratios, fit_text_screen

WORDS = ("court", "judge", "rent", "tenant", "contract", "clause", "party", "notice", "claim", "trial", "appeal")
CODE = ("def", "return", "for", "while", "array", "string", "import", "class", "print", "value", "index", "range")


def rows(num_rows, *, seed=0):
    """Sentences of made-up law and lines of made-up code, from two files a domain."""
    rng = random.Random(seed)
    texts = LabelledTexts(texts=[], domain_ids=[], file_ids=[])
    for domain_id, (words, form) in enumerate(((WORDS, "The {} of the {} is {}."), (CODE, "{}({}) = {}\n"))):
        for number in range(num_rows):
            text = " ".join(form.format(*(rng.choice(words) for _ in range(3))) for _ in range(rng.randint(2, 8)))
            texts.texts.append(text)
            texts.domain_ids.append(domain_id)
            texts.file_ids.append(number % 2)
    return texts


@pytest.fixture(scope="module")
def screen():
    return fit_text_screen(rows(60))


def letters(characters, *, seed=0, length=300):
    rng = random.Random(seed)
    return "".join(rng.choice(characters) for _ in range(length))


NOISE = {
    "random characters": letters([chr(code) for code in range(33, 127)]),
    "keyboard noise": letters(["asdf", "jkl;", "qwer", "uiop", "zxcv ", "hjkl"], length=60),
    "base64": base64.b64encode(random.Random(0).randbytes(200)).decode(),
    "Cyrillic letters": letters([chr(code) for code in range(0x430, 0x450)]),
    "Chinese characters": letters([chr(code) for code in range(0x4E00, 0x5800)], length=100),
    "one word repeated": "court " * 60,
    "a phrase repeated": "the tenant shall " * 30,
}


@pytest.mark.parametrize("kind", NOISE)
def test_noise_is_implausible(screen, kind):
    assert screen.is_plausible([NOISE[kind]]).tolist() == [False]


def test_rows_that_were_not_fitted_on_are_plausible(screen):
    others = rows(60, seed=1).texts
    assert screen.is_plausible(others).mean() > 0.99
    assert screen.is_plausible([" ".join(others), others[0][:20]]).all()  # long and short ones too


def test_implausible_texts_belong_to_no_domain_and_the_record_has_the_limits(screen):
    class Sure:
        left_out = None

        def label(self, texts):
            return np.tile([[0.9, 0.1]], (len(texts), 1))

        def describe(self):
            return {"name": "sure"}

    labeller = ScreenedLabeller(Sure(), screen)
    assert labeller.label([NOISE["base64"], "The court of the tenant is trial."]).tolist() == [[0, 0], [0.9, 0.1]]
    described = labeller.describe()
    assert described["name"] == "sure"
    assert described["screen"]["most_bits_per_byte"] == pytest.approx(screen.most_bits, abs=1e-3)


def test_long_and_short_texts_of_one_kind_compress_alike():
    text = " ".join(rows(40).texts).encode()
    ratios = compression_ratios([text[:256], text[:512], text[:4096], b"court " * 200, b""])
    assert ratios[1:3] == pytest.approx(ratios[0], abs=0.12)
    assert ratios[3] < 0.08
    assert ratios[4] == 0.0


def test_a_domain_of_one_file_is_measured_by_other_rows_of_it():
    texts = rows(60)
    one_file = LabelledTexts(texts=texts.texts, domain_ids=texts.domain_ids, file_ids=[0] * len(texts))
    found = fit_text_screen(one_file)
    assert found.is_plausible(rows(20, seed=2).texts).all()
    assert not found.is_plausible([NOISE["random characters"]]).any()
