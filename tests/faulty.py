"""Datasets with a known number of each fault: what the check and its fixes are measured on."""

import json
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from tests.small import real_template, small_tokenizer
from tuner import data
from tuner.reading import Broken
from tuner.recipe import Recipe

MAX_TOKENS, CONTEXT = 600, 1500
RECIPE = Recipe(max_tokens=MAX_TOKENS)
MAPPING = data.Mapping("messages", {"messages": "messages", "split": "split"})


@dataclass
class Faulty:
    """Records in their order, and beside each what is wrong with it.

    Args:
        faults: the names of the exact faults of each record.
        pair: of each record that is nearly another one's copy or has such a copy, the pair's number; else None.
        counts: name -> how many rows the check has to tell.
    """

    records: list
    faults: list[set[str]]
    pair: list[int | None]
    counts: dict[str, int] = field(default_factory=dict)


class Words:
    """Texts that are like no other: words drawn letter by letter."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def word(self) -> str:
        return "".join(self.random.choice("bdfgklmnprstvz") + self.random.choice("aeiou") for _ in range(3))

    def text(self, words: int) -> str:
        return " ".join(self.word() for _ in range(words)).capitalize() + "."

    def signs(self, count: int) -> str:
        """Chinese characters, of which the small tokenizers make three tokens each."""
        return "".join(chr(self.random.randrange(0x4E00, 0x9F00)) for _ in range(count))


def chat(*turns: tuple[str, str], split: str = "train") -> dict:
    return {"messages": [{"role": role, "content": content} for role, content in turns], "split": split}


def make(seed: int = 0) -> Faulty:
    """More than 700 conversations with every fault that a conversation can have, but those of labels."""
    words, made = Words(seed), []
    say = words.text

    def add(record, *faults: str, pair: int | None = None) -> None:
        made.append((record, set(faults), pair))

    def one(asked: str, said: str, *faults: str, split: str = "train", pair: int | None = None) -> None:
        add(chat(("user", asked), ("assistant", said), split=split), *faults, pair=pair)

    for number in range(420):
        one(say(8), say(18), split="test" if number % 5 == 0 else "train")
    for text, fault, count in (
        ("Ask bob.{word}@example.com for it.", "personal", 9), ("Key AKIA" + "Q3XT7MNB" + "2KLP5ZRW {word}.", "secret", 7),
        ("One\0two {word}.", "nul", 6), ("Caf\ufffd {word}.", "replacement", 5), ("Fran\u00c3\u00a7ois et No\u00c3\u00abl {word}.", "mojibake", 8),
        ("h\0e\0l\0l\0o\0 \0{word}", "utf16", 4), ("<div class=\"a\">{word}</div>", "html", 6), ("![{word}](http://a.example/b.png)", "markdown", 5),
        ("<start_of_turn>{word}<end_of_turn>", "control_tokens", 7),
    ):
        for number in range(count):
            fault_text = text.replace("{word}", words.word())
            one(f"{say(6)} {fault_text}" if number % 2 else say(8), say(16) if number % 2 else f"{say(14)} {fault_text}", fault)
    for _ in range(6):
        one(words.signs(300), say(5), "cut", "teaches_nothing")
        one(say(5), words.signs(300), "cut")
    for _ in range(4):
        one(say(5), words.signs(700), "cut", "beyond_context")
        one(say(5), words.signs(4000), "cut", "beyond_context", "unlike_length")
    for number in range(5):
        add(chat(*[turn for _ in range(6) for turn in (("user", say(2)), ("assistant", words.signs(50)))]), "cut")
        add(chat(*[turn for _ in range(9) for turn in (("user", say(2)), ("assistant", words.signs(70)))]), "cut", "beyond_context")
        one(f"q{number}", f"b{number}", "unlike_length")
    for _ in range(5):
        one(say(9), "I'm sorry, but I can't help with that request at all.", "repeated_refusal")
    for _ in range(2):
        one(say(9), "Unfortunately this is something that I cannot tell you.")
    for _ in range(6):
        asked = say(12)
        one(asked, asked, "answer_is_prompt")
        add(chat(("assistant", say(6)), ("user", say(6)), ("assistant", say(9))), "roles_out_of_order", "refused")
        add(chat(("user", say(6)), ("tool", say(6)), ("assistant", say(9))), "roles_out_of_order", "refused")
        add(chat(("user", say(6)), ("user", say(6)), ("assistant", say(9))), "same_role_twice", "refused")
        add(chat(("user", say(6)), ("assistant", say(6)), ("system", say(3)), ("user", say(4)), ("assistant", say(4))), "late_system", "refused")
        add(chat(("user", " "), ("assistant", say(20))), "empty_turn")
        add(chat(("user", say(6)), ("assistant", say(9)), ("user", say(6))), "no_answer_at_end")
    for _ in range(3):
        add({"messages": [], "split": "train"}, "no_prompt")
        add(chat(("user", say(8)), ("assistant", "")), "empty_answer")
        add(chat(("user", say(8))), "no_answer")
        add(chat(("wizard", say(8)), ("assistant", say(8))), "unknown_role")
        add(Broken("line 9", "is not JSON (line 9)."), "unreadable")
    for number in range(12):  # exact copies, some of them held out
        first = chat(("user", say(8)), ("assistant", say(16)))
        add(first)
        add({**json.loads(json.dumps(first)), "split": "test" if number < 5 else "train"}, "copy", *["leak"] * (number < 5))
    pairs = 0
    for number in range(60):  # nearly copies, some of them held out
        asked, said, leaks = say(20), say(40), number < 20
        one(asked, said, pair=pairs)
        if number % 3 == 0:
            asked, said = asked.upper(), said.lower()
        elif number % 3 == 1:
            asked, said = asked.replace(".", "?!"), said.replace(" ", ", ", 5) + " ..."
        else:
            said = " ".join([*said.split()[:20], words.word(), *said.split()[21:]])
        one(asked, said, "near", *["near leak"] * leaks, split="test" if leaks else "train", pair=pairs)
        pairs += 1
    for _ in range(30):  # half of it is the same: not near
        shared = say(30)
        one(f"{shared} {say(30)}", say(10))
        one(f"{shared} {say(30)}", say(10))
    words.random.shuffle(made)
    its = Faulty(*map(list, zip(*made)))
    for name in set().union(*its.faults) - {"copy", "near", "near leak"}:
        its.counts[name] = sum(name in faults for faults in its.faults)
    its.counts["duplicate"] = sum("copy" in faults for faults in its.faults)
    its.counts["near_duplicate"] = its.counts["near"] = pairs
    its.counts["near_leak"] = sum("near leak" in faults for faults in its.faults)
    del its.counts["near"]
    return its


def labels(seed: int = 0) -> Faulty:
    """600 questions answered by a label, 18 of them by a sentence instead."""
    words, made = Words(seed), []
    for label, count, faults in (
        ("Yes", 400, {"unbalanced"}), ("yes", 9, {"unbalanced", "label_spelling"}), ("YES ", 4, {"unbalanced", "label_spelling"}), ("No", 130, set()), ("no", 6, {"label_spelling"}),
        ("Perhaps", 30, set()), ("Never", 3, {"rare_label"}), ("", 18, set()),
    ):
        for _ in range(count):
            record = {"prompt": words.text(9), "completion": label or words.text(12)}
            made.append((record, faults, None))
    words.random.shuffle(made)
    its = Faulty(*map(list, zip(*made)))
    its.counts = {name: sum(name in faults for faults in its.faults) for name in ("unbalanced", "label_spelling", "rare_label")}
    return its


def eyes(folder: Path) -> Path:
    """A base model's folder without its weights: a tokenizer whose template refuses roles out of order, and a context."""
    small_tokenizer(folder, real_template("gemma3"), "gemma")
    (folder / "config.json").write_text(json.dumps({"text_config": {"max_position_embeddings": CONTEXT}}))
    return folder


def keep(its: Faulty, mapping: data.Mapping | None = None, owner: str = "ann") -> data.Dataset:
    dataset = data.create(owner, "faulty", {"kind": "file"}, mapping=mapping)
    data.take(dataset, its.records, [])
    return data.settle(dataset)


def copy(dataset: data.Dataset, id: str) -> data.Dataset:
    """The same dataset under another id, with all that was seen of it."""
    shutil.copytree(dataset.folder, dataset.folder.with_name(id))
    return data.find(dataset.owner, id)
