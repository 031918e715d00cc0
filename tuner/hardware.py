"""The hardware that a Space or a Job can have: its price, its memory, what it is expected to reach."""

import os
from dataclasses import dataclass

from tuner.home import on_a_space

# Where the prices and sizes below stand, and of what day they are.
SOURCE = "huggingface.co/docs/hub: spaces-gpus and jobs-pricing, 22 August 2026"

# The share of a card's dense peak that training reaches: between the 15 % of PEFT's own comparison and the 40 % and more
# of the best single-card figures (reference: performance notes, 1.8). Ours reached 0.47 to 0.49 on an H200 with an 8B shape
# (tests/bench/RESULTS.md), where attention is torch's flash kernel; cards without bf16 have no such kernel and were not measured.
CARD_SHARE = {"bfloat16": 0.42, "float16": 0.3}
# fp32 matrix product of one virtual core (half a server core), GFLOP/s: the Xeons of these machines have no native bf16.
CORE_GFLOPS = 45.0


@dataclass(frozen=True)
class Hardware:
    """One flavour.

    Args:
        flavour: the Hub's own id.
        memory_gib: the machine's memory.
        space_dollars, job_dollars: an hour of it as a Space and as a Job; None where it cannot be had so.
        cards: how many cards; a run uses one of them.
        card_gib: what one card leaves to a program, None without a card.
        tflops: one card's dense peak in 16 bits.
        precision: what training computes in there.
    """

    flavour: str
    name: str
    cores: int
    memory_gib: float
    space_dollars: float | None
    job_dollars: float | None
    cards: int = 0
    card_gib: float | None = None
    tflops: float = 0.0
    precision: str = "bfloat16"

    @property
    def dollars(self) -> float:
        """An hour of it, where it is cheapest."""
        return min(price for price in (self.space_dollars, self.job_dollars) if price is not None)

    @property
    def room_gib(self) -> float:
        """What a run must fit in: the card's memory, else the machine's less what the system and the page hold."""
        return self.card_gib if self.card_gib is not None else self.memory_gib - 0.7


def _cpu(flavour, name, cores, memory_gib, space, job) -> Hardware:
    return Hardware(flavour, name, cores, memory_gib, space, job, precision="float32")


def _cards(first: str, name: str, count_to_rest: dict, card_gib, tflops, space=True, precision="bfloat16") -> list[Hardware]:
    """One card in several numbers: {flavour: (cards, cores, memory, dollars)}; a Job costs what a Space costs."""
    return [
        Hardware(
            flavour, f"{cards} x {name}" if cards > 1 else first, cores, memory, dollars if space else None, dollars, cards, card_gib,
            tflops, precision,
        )
        for flavour, (cards, cores, memory, dollars) in count_to_rest.items()
    ]


HARDWARE: tuple[Hardware, ...] = (
    _cpu("cpu-basic", "CPU Basic", 2, 16, 0.0, 0.01),
    _cpu("cpu-upgrade", "CPU Upgrade", 8, 32, 0.03, 0.03),
    _cpu("cpu-xl", "CPU XL", 16, 124, None, 1.00),
    _cpu("cpu-performance", "CPU Performance", 32, 256, None, 1.90),
    *_cards("T4 small", "T4", {"t4-small": (1, 4, 15, 0.40)}, 14.6, 65, precision="float16"),
    *_cards("T4 medium", "T4", {"t4-medium": (1, 8, 30, 0.60)}, 14.6, 65, precision="float16"),
    *_cards("L4", "L4", {"l4x1": (1, 8, 30, 0.80), "l4x4": (4, 48, 186, 3.80)}, 22.0, 121),
    *_cards("A10G small", "A10G", {"a10g-small": (1, 4, 15, 1.00)}, 22.0, 70),
    *_cards(
        "A10G large", "A10G large",
        {"a10g-large": (1, 12, 46, 1.50), "a10g-largex2": (2, 24, 92, 3.00), "a10g-largex4": (4, 48, 184, 5.00)}, 22.0, 70,
    ),
    *_cards("L40S", "L40S", {"l40sx1": (1, 8, 62, 1.80), "l40sx4": (4, 48, 382, 8.30), "l40sx8": (8, 192, 1534, 23.50)}, 44.5, 362),
    *_cards("A100 large", "A100", {"a100-large": (1, 12, 142, 2.50), "a100x4": (4, 48, 568, 10.0), "a100x8": (8, 96, 1136, 20.0)}, 79.0, 312),
    *_cards(
        "RTX PRO 6000", "RTX PRO 6000",
        {
            "rtx-pro-6000": (1, 23, 256, 2.75), "rtx-pro-6000x2": (2, 46, 512, 5.50), "rtx-pro-6000x4": (4, 92, 1024, 11.0),
            "rtx-pro-6000x8": (8, 184, 2048, 22.0),
        }, 94.0, 504, space=False,
    ),
    *_cards(
        "H200", "H200",
        {"h200": (1, 23, 256, 5.0), "h200x2": (2, 46, 512, 10.0), "h200x4": (4, 92, 1024, 20.0), "h200x8": (8, 184, 2048, 40.0)},
        139.0, 989, space=False,
    ),
)
# ZeroGPU is not among them: it lends a card for minutes inside one request, and a run is longer.


def rented() -> Hardware | None:
    """The flavour that this process runs on, as the Hub tells a Space and a Job; None on a machine of one's own."""
    if not on_a_space() and not os.environ.get("JOB_ID"):
        return None
    told = os.environ.get("ACCELERATOR", "none")
    if told not in ("", "none"):
        return next((its for its in HARDWARE if its.flavour == told), None)
    cores = os.environ.get("CPU_CORES", "")
    cpus = [its for its in HARDWARE if not its.cards]
    return next((its for its in cpus if cores == str(its.cores)), cpus[0])


def dollars_here() -> float:
    """What an hour of this machine costs whoever pays for it: 0 on a machine of one's own."""
    its = rented()
    if its is None:
        return 0.0
    price = its.job_dollars if os.environ.get("JOB_ID") else its.space_dollars
    return its.dollars if price is None else price
