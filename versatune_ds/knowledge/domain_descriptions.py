"""Describe each domain in words, for labellers that compare texts with descriptions.

A description is, in this order: the recipe's own, a default for a common name, or written from the terms that are
frequent in the domain's rows and rare in the others'. Which one it was is logged and in prior.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from versatune_ds.config import RunConfig
from versatune_ds.domains import DomainSet, nearest_name
from versatune_ds.knowledge.label_texts import LabelledTexts

_DEFAULTS = {
    "law": "law and legal matters: legislation, statutes and regulation; courts, judges, trials and case law; "
    "contracts, clauses and agreements; crimes, liability and criminal procedure; constitutional rights, treaties and "
    "international law; legal theory and jurisprudence",
    "medicine": "medicine and health: diseases, symptoms and diagnosis; drugs, treatment and surgery; anatomy and "
    "physiology of the human body; patients, nursing and clinical studies; genetic disorders, viruses and infections; "
    "nutrition, diet and public health",
    "finance": "finance and economics: companies, balance sheets and accounting; stocks, bonds, investment and "
    "markets; banks, loans, interest and taxes; prices, supply, demand and firms in microeconomics; inflation, "
    "unemployment, money and growth in macroeconomics; econometrics, regression and time series of economic data",
    "science": "natural science: physics, forces, energy, motion and electricity; chemistry, atoms, molecules, acids "
    "and reactions; biology, cells, evolution, plants and animals; astronomy, planets, stars and galaxies; earth, "
    "rocks, weather and climate; laboratory experiments and measurement",
    "mathematics": "mathematics: algebra, equations and functions; geometry, angles and areas; calculus, limits and "
    "integrals; probability, statistics and counting; number theory and proofs; arithmetic word problems",
    "code": "programming and computer science: source code, functions and classes in Python, Java or C; algorithms, "
    "data structures and complexity; databases, SQL and web pages in HTML; operating systems, networks, memory and "
    "processors; computer security, exploits and cryptography; machine learning, neural networks and training",
    "general": "general knowledge and everyday life: history, wars, politics and countries; geography, religion and "
    "philosophy; people, society and psychology; films, music, books and sports; cooking, travel, shopping and "
    "hobbies; stories, poems, letters and advice",
}
_OTHER_NAMES = {
    "legal": "law", "medical": "medicine", "health": "medicine", "biomedical": "medicine", "economics": "finance",
    "financial": "finance", "math": "mathematics", "maths": "mathematics", "coding": "code", "programming": "code",
    "computer science": "code", "other": "general", "others": "general", "chat": "general", "sciences": "science",
}  # fmt: skip
_NUM_TERMS = 24
_MIN_ROWS_OF_TERM = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What is in a domain, in words."""

    text: str
    origin: str
    """`recipe`, `default` or `rows`: who wrote it."""


def recipe_descriptions(config: RunConfig) -> dict[str, str]:
    """Return the descriptions that a recipe gives, by domain: `data.domains.NAME.description`, `detect.descriptions`.

    Raises:
        ValueError: If a domain has two.
    """
    own = {name: files.description for name, files in (config.data.domains or {}).items() if files.description}
    for name, text in config.detect.descriptions.items():
        if own.get(name, text) != text:
            raise ValueError(f"detect.descriptions.{name}: data.domains.{name}.description is another text; keep one")
    return {**config.detect.descriptions, **own}


def check_described(descriptions: Mapping[str, str], domain_set: DomainSet) -> None:
    """Check that every description is of a domain.

    Raises:
        ValueError: If one is of none.
    """
    for name in descriptions:
        if name not in domain_set.names:
            raise ValueError(f"detect.descriptions: unknown domain {name!r}; {nearest_name(name, domain_set.names)}")


def describe_domains(given: Mapping[str, str], texts: LabelledTexts, *, domain_set: DomainSet) -> list[Description]:
    """Return a description of every domain, in order.

    Args:
        given: Those of the recipe; may lack domains.
        texts: Rows of all domains, from which the missing descriptions are written.
        domain_set: The domains.
    """
    known = {name: _DEFAULTS.get(_OTHER_NAMES.get(name.lower(), name.lower())) for name in domain_set}
    missing = [name for name in domain_set if name not in given and known[name] is None]
    terms = key_terms(texts, num_domains=len(domain_set)) if missing else []
    found = []
    for domain_id, name in enumerate(domain_set):
        if name in given:
            found.append(Description(text=given[name], origin="recipe"))
        elif (text := known[name]) is not None:
            found.append(Description(text=text, origin="default"))
        else:
            words = ", ".join(terms[domain_id])
            found.append(Description(text=f"{name}: {words}" if words else name, origin="rows"))
    return found


def parts_of(description: str) -> list[str]:
    """Return the description and, where it has several parts with `;` between them, each part.

    A text is about one thing, and a description of everything in a domain is near to none of them.
    """
    parts = [part.strip() for part in description.split(";")]
    return [description, *(part for part in parts if part)] if len(parts) > 1 else [description]


def key_terms(texts: LabelledTexts, *, num_domains: int) -> list[list[str]]:
    """Return the terms that set each domain's rows apart, the strongest first.

    A term's score is the share of a domain's rows that have it, times the log of that share over its mean share in the
    other domains; both shares count half a row more than there are.

    Example: "court" in 6 of 9 rows of law and in 0 of 9 of code scores (6.5/10) * log((6.5/10) / (.5/10)) = 1.67.
    """
    from sklearn.feature_extraction.text import CountVectorizer  # a second to import

    counter = CountVectorizer(binary=True, stop_words="english", token_pattern=r"(?u)\b[^\W\d_]{3,}\b")
    try:
        has_term_NT = counter.fit_transform(texts.texts)
    except ValueError:  # no row has a word
        return [[] for _ in range(num_domains)]
    ids_N = np.array(texts.domain_ids)
    counts_KT = np.stack([np.asarray(has_term_NT[ids_N == k].sum(axis=0)).ravel() for k in range(num_domains)])
    num_rows_K = np.bincount(ids_N, minlength=num_domains)
    share_KT = (counts_KT + 0.5) / (num_rows_K[:, None] + 1)
    others_KT = (share_KT.sum(axis=0) - share_KT) / (num_domains - 1)
    score_KT = np.where(counts_KT >= _MIN_ROWS_OF_TERM, share_KT * np.log(share_KT / others_KT), 0.0)
    names = counter.get_feature_names_out()
    best_K = np.argsort(-score_KT, axis=1, kind="stable")[:, :_NUM_TERMS]
    return [[str(names[t]) for t in best if score_KT[k, t] > 0] for k, best in enumerate(best_K)]


def described(descriptions: Sequence[Description], domain_set: DomainSet) -> str:
    """Return one line a domain: its description and where it is from."""
    pairs = zip(domain_set, descriptions, strict=True)
    return "\n".join(f"  {name} ({found.origin}): {found.text}" for name, found in pairs)
