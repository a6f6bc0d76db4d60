"""Generate the records of a domain: record i is a function of (seed, domain, split, i)."""

from __future__ import annotations

from collections.abc import Iterator

from versatune_ds.data.synthetic.number_rules import CODE_RULES, FINANCE_RULES, SCIENCE_RULES
from versatune_ds.data.synthetic.space import (
    SPLIT_LANES,
    Rule,
    Split,
    num_questions_in_split,
    question_number,
    render_question,
)
from versatune_ds.data.synthetic.word_rules import GENERAL_RULES, LAW_RULES, MEDICINE_RULES
from versatune_ds.domains import nearest_name

ChatRecord = dict[str, list[dict[str, str]]]

RULES_OF_DOMAIN: dict[str, tuple[Rule, ...]] = {
    "law": LAW_RULES,
    "medicine": MEDICINE_RULES,
    "finance": FINANCE_RULES,
    "science": SCIENCE_RULES,
    "code": CODE_RULES,
    "general": GENERAL_RULES,
}
DOMAIN_NAMES: tuple[str, ...] = tuple(RULES_OF_DOMAIN)


def generate_records(domain: str, *, split: Split, num_rows: int, seed: int) -> Iterator[ChatRecord]:
    """Return an iterator over the first `num_rows` records of a domain's split, in constant memory.

    Rules take turns in blocks as long as the sum of their weights. So every prefix has about the same share of each
    rule, and a longer corpus begins with the shorter one.

    Args:
        domain: One of DOMAIN_NAMES.
        split: "train", "valid" or "test"; no two splits share a question, of any domain, for any two seeds.
        num_rows: Number of records, at most `num_available_records`.
        seed: Decides which questions are asked, and their order.

    Returns:
        Records as `{"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}`.

    Raises:
        ValueError: If the domain or split is unknown or has fewer records; at the call, not at the first record.
    """
    num_available = num_available_records(domain, split=split)
    if not 0 <= num_rows <= num_available:
        raise ValueError(
            f"num_rows: {domain}/{split} has {num_available} rows without repeating a question; got {num_rows}"
        )
    # One block: each rule as often as its weight, with the number of its earlier turns in the block.
    turns = [(rule, turn) for rule in RULES_OF_DOMAIN[domain] for turn in range(rule.weight)]
    return (_record(turns, split=split, index=index, order_key=f"{seed}/{domain}") for index in range(num_rows))


def num_available_records(domain: str, *, split: Split) -> int:
    """Return how many records a domain's split has before one of its rules runs out of new questions.

    Raises:
        ValueError: If the domain or the split is unknown.
    """
    if domain not in RULES_OF_DOMAIN:
        raise ValueError(f"domain: unknown domain {domain!r}; {nearest_name(domain, DOMAIN_NAMES)}")
    if split not in SPLIT_LANES:
        raise ValueError(f"split: unknown split {split!r}; {nearest_name(split, tuple(SPLIT_LANES))}")
    rules = RULES_OF_DOMAIN[domain]
    num_blocks = min(num_questions_in_split(rule, split) // rule.weight for rule in rules)
    return num_blocks * sum(rule.weight for rule in rules)


def _record(turns: list[tuple[Rule, int]], *, split: str, index: int, order_key: str) -> ChatRecord:
    block, place = divmod(index, len(turns))
    rule, turn = turns[place]
    number = question_number(rule, split=split, counter=block * rule.weight + turn, order_key=order_key)
    question, answer = render_question(rule, number)
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
