"""The other ways to train the same adapter: TRL's SFTTrainer, the plain Trainer, and Unsloth; one child process each.

    python -m tests.bench.contenders trl JOB.json

A job names the base's folder, a file of encoded rows and the settings; the answer goes into the file that it names.
Nothing here imports Tuner: what a contender takes to set up is its own.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.bench.machine import high_water_gib

IGNORE = -100


@dataclass(frozen=True)
class Job:
    """One training, alike for all contenders.

    Args:
        base_dir: the base model's folder, as transformers reads it.
        rows_path: JSON lines {"ids": [...], "labels": [...]}: a row for each place in the order of training.
        out_path: where the outcome is written.
        batch_size: rows of an optimiser step.
        own_order: let the trainer shuffle with its own sampler; else the rows go in the order of the file.
        micro_batch: rows at once; 0 takes the whole optimiser step at once.
        tokens_at_most: longest row, in tokens.
    """

    base_dir: str
    rows_path: str
    out_path: str
    steps: int
    batch_size: int = 8
    own_order: bool = False
    micro_batch: int = 0
    tokens_at_most: int = 1024
    rank: int = 16
    alpha: float = 32.0
    learning_rate: float = 2e-4
    max_grad_norm: float = 1.0
    seed: int = 0


@dataclass
class Outcome:
    """What a training took, step by step.

    Args:
        seconds: how long each step took.
        tokens, learned: of each step, padding not counted.
        lengths: tokens of each row, step by step.
        setup_s: from the start of the process to the start of the loop: imports, loading, preparing the rows.
        card_gib: the most that was reserved on a card, where there is one.
    """

    setup_s: float = 0.0
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    learned: list[int] = field(default_factory=list)
    lengths: list[list[int]] = field(default_factory=list)
    peak_gib: float = 0.0
    card_gib: float = 0.0


# What they share --------------------------------------------------------------------------------------------------


def read_rows(job: Job) -> list[dict]:
    with open(job.rows_path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [{"input_ids": row["ids"], "labels": row["labels"]} for row in rows]


def counted(collate, outcome: Outcome, job: Job):
    """The collator, noting the tokens of each batch it makes: its own padding is not counted."""
    def collate_and_count(rows):
        batch = collate(rows)
        lengths, learned = [len(row["input_ids"]) for row in rows], int((batch["labels"][:, 1:] != IGNORE).sum())
        if len(outcome.lengths) and len(outcome.lengths[-1]) < job.batch_size:  # a further micro-batch of the same step
            outcome.lengths[-1] += lengths
            outcome.tokens[-1] += sum(lengths)
            outcome.learned[-1] += learned
        elif len(outcome.lengths) < job.steps:  # the loader is one batch ahead at the end
            outcome.lengths.append(lengths)
            outcome.tokens.append(sum(lengths))
            outcome.learned.append(learned)
        return batch

    return collate_and_count


def watch(outcome: Outcome):
    """A callback that notes when each step ends and its loss."""
    import torch
    from transformers import TrainerCallback

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.time()

    class Watch(TrainerCallback):
        def on_train_begin(self, *_, **__):
            self.since = now()
            outcome.setup_s = self.since - process_began()

        def on_step_end(self, *_, **__):
            outcome.seconds.append(now() - self.since)
            self.since += outcome.seconds[-1]

        def on_log(self, _args, _state, _control, logs=None, **__):
            if "loss" in (logs or {}):
                outcome.losses.append(float(logs["loss"]))

    return Watch()


def process_began() -> float:
    import psutil

    return psutil.Process().create_time()


def arguments(job: Job) -> dict:
    """What the trainers are told alike: the size of a step, its rate, the seed, and to keep and report nothing."""
    import torch

    micro = job.micro_batch or job.batch_size
    return dict(
        output_dir=str(Path(job.out_path).with_suffix(".trainer")), per_device_train_batch_size=micro,
        gradient_accumulation_steps=job.batch_size // micro, max_steps=job.steps, learning_rate=job.learning_rate,
        lr_scheduler_type="constant", max_grad_norm=job.max_grad_norm, seed=job.seed, bf16=True, logging_steps=1,
        use_cpu=not torch.cuda.is_available(),  # without it bf16 is refused on a CPU
        save_strategy="no", report_to="none", disable_tqdm=True,
        train_sampling_strategy="random" if job.own_order else "sequential",
    )


def nf4():
    """4-bit NormalFloat with double quantisation, computed in bf16: QLoRA as the documentation of both writes it."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16, bnb_4bit_use_double_quant=True
    )


def load_quantised(job: Job):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        job.base_dir, quantization_config=nf4(), device_map={"": 0} if torch.cuda.is_available() else {"": "cpu"}
    )


def lora(job: Job):
    from peft import LoraConfig

    return LoraConfig(
        r=job.rank, lora_alpha=job.alpha, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM", target_modules="all-linear"
    )


# The contenders ---------------------------------------------------------------------------------------------------


def trl(job: Job) -> Outcome:
    """TRL's SFTTrainer, as the page "PEFT Integration" of its documentation sets it up for QLoRA; all else as it defaults.

    Gradient checkpointing is on by its default, the adapter is in bf16 by its own doing, packing is off. The rows come
    tokenised, with the labels that ours learns (it takes "input_ids" and "labels" as they are), so that learned
    tokens are counted alike; what tokenising would take is not counted against it.
    """
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    outcome = Outcome()
    trainer = SFTTrainer(
        model=load_quantised(job), args=SFTConfig(max_length=job.tokens_at_most, **arguments(job)),
        train_dataset=Dataset.from_list(read_rows(job)), processing_class=AutoTokenizer.from_pretrained(job.base_dir),
        peft_config=lora(job), callbacks=[watch(outcome)],
    )
    trainer.data_collator = counted(trainer.data_collator, outcome, job)
    trainer.train()
    return outcome


def plain(job: Job) -> Outcome:
    """transformers' Trainer with PEFT and `prepare_model_for_kbit_training`: the usual tutorial."""
    from datasets import Dataset
    from peft import get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    outcome = Outcome()
    model = get_peft_model(prepare_model_for_kbit_training(load_quantised(job)), lora(job))
    trainer = Trainer(
        model=model, args=TrainingArguments(gradient_checkpointing=True, **arguments(job)),
        train_dataset=Dataset.from_list(read_rows(job)), callbacks=[watch(outcome)],
        data_collator=counted(DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(job.base_dir)), outcome, job),
    )
    trainer.train()
    return outcome


def unsloth(job: Job) -> Outcome:
    """Unsloth as its own notebooks set it up, in TRL's trainer; it has to be imported before transformers."""
    from unsloth import FastLanguageModel  # isort: skip
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    outcome = Outcome()
    model, tokenizer = FastLanguageModel.from_pretrained(job.base_dir, max_seq_length=job.tokens_at_most, load_in_4bit=True)
    model = FastLanguageModel.get_peft_model(
        model, r=job.rank, lora_alpha=job.alpha, lora_dropout=0, bias="none", use_gradient_checkpointing="unsloth", random_state=job.seed,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    )
    trainer = SFTTrainer(
        model=model, args=SFTConfig(max_length=job.tokens_at_most, **arguments(job)), train_dataset=Dataset.from_list(read_rows(job)),
        processing_class=tokenizer, callbacks=[watch(outcome)],
    )
    trainer.data_collator = counted(trainer.data_collator, outcome, job)
    trainer.train()
    return outcome


CONTENDERS = {"trl": trl, "plain": plain, "unsloth": unsloth}


def train(name: str, job: Job) -> Outcome:
    """Train as this contender does, and say what it took; peak memory is this whole process's."""
    import torch

    outcome = CONTENDERS[name](job)
    outcome.peak_gib = high_water_gib()
    outcome.card_gib = torch.cuda.max_memory_reserved() / 2**30 if torch.cuda.is_available() else 0.0
    return outcome


def main() -> None:
    """Do a job and write down the outcome."""
    name, path = sys.argv[1:]
    job = Job(**json.loads(Path(path).read_text("utf-8")))
    Path(job.out_path).write_text(json.dumps(asdict(train(name, job))), "utf-8")


if __name__ == "__main__":
    main()
