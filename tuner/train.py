"""Recipe and rows in, adapter out: writes events, keeps the best, obeys `stop`, resumes exactly."""

import dataclasses
import math
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from tuner import bases, batching, checkpoints, fast, lease, machine, models, proposals, rehearsal, room, sizes, survey, tasks, telling
from tuner import plan as plans
from tuner.errors import UserError
from tuner.home import disk_error, read_json, write_json, write_whole
from tuner.run import Run, log_wait


def train(run: Run) -> dict:
    """Train the run from its folder to its end, or go on from its newest whole checkpoint.

    Returns:
        The run's report.

    Raises:
        UserError: anything a person can put right; the caller writes it to error.txt.
    """
    waiting = lambda ahead: log_wait(run, ahead)  # noqa: E731
    with lease.hold(run.id, waiting, run.stop_asked, owner=run.owner, folder=str(run.folder)) as held:
        if not held:
            raise UserError("The run was stopped while it waited for its turn. Resume it when you like.")
        return _train_with_the_machine(run)


def _train_with_the_machine(run: Run) -> dict:
    recipe, base = run.recipe, run.read("base")
    began = time.time()
    run.log("status", state="rehearsing", message="Reading the rows")
    task = tasks.get(recipe.task)
    tokenizer = task.load_tokenizer(base["dir"])
    train_rows, held_rows = run.rows("train"), run.rows("held_out")
    train_set = survey.of(train_rows, tokenizer, recipe)
    held_set = survey.of(held_rows, tokenizer, recipe)
    survey.require_something(train_set, train_rows, recipe, "training")
    survey.require_something(held_set, held_rows, recipe, "held-out")
    for warning in task.warnings(train_set, tokenizer):
        run.log("note", message=warning)
    lost = len(train_set.silent) + len(train_set.refused)
    if lost:
        run.log("note", message=f"{lost:,} of {len(train_rows):,} training rows have nothing left to learn and are left out.")

    rehearsal.quote_run(run, train_set, held_set, Path(base["dir"]))
    run.log("status", state="rehearsing", message="Loading the base model")
    plan = run.read("plan")
    if plan:
        bases.require_same(base, plan["base_sha256"])
    weights = bases.weights_hash(Path(base["dir"]))
    chosen = plan or {"attention": choose_attention(train_set), **task.decide(train_rows, held_rows, recipe)}
    loaded = models.load_base(Path(base["dir"]), recipe, chosen)
    model = models.attach_lora(loaded.model, recipe, base["id"], base["revision"], loaded.plan.get("heads", []))
    path = task.path(model, tokenizer, recipe, loaded.plan if plan else None, train_rows)
    if not plan:
        plan = make_plan(recipe, loaded.plan, path, train_set, held_set, weights, sizes.in_folder(base["dir"]))
        write_json(run.folder / "plan.json", plan)
    elif (wanted := plans.steps(recipe, len(train_set.encoded))) > plan["steps"]:
        plan = lengthen(run, plan, wanted, train_set, held_set)
    path.checkpointing = plan["gradient_checkpointing"]
    fast.speed_up_lora(model)  # for the answers; a path through the model's own forward has done it
    if path.why_plain:
        run.log("note", message=f"The plain path is taken, slower and just as right: {path.why_plain}.")
    if path.lost:
        run.log("note", message="This machine lacks compiled code that the run began with, so what follows may differ from it in the last digits.")
    if plan["kept_16bit"] and recipe.quantisation == "nf4":
        run.log("note", message=f"{len(plan['kept_16bit'])} layers have sizes that 4-bit does not fit and stay in 16 bits.")

    for words in (*task.weights_in_words(loaded.model, plan, recipe), task.begin(run, path, train_set.encoded)):
        if words:
            run.log("note", message=words)

    trainer = Tuning(run, plan, path, tokenizer, (train_rows, train_set), (held_rows, held_set), began)
    checkpoint = checkpoints.newest(
        run.folder / "checkpoints",
        lambda step: run.log("note", message=f"The checkpoint of step {step} is damaged; an older one is used."),
    )
    if checkpoint:
        run.log("note", message=f"Going on from the checkpoint of step {checkpoint.name.removeprefix(checkpoints.PREFIX)}.")
    if checkpoint and run.stop_asked():  # before it went on: what there is already is kept as it is
        trainer.go_back(checkpoint)
    else:
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except _Over:
            pass
        except SystemExit:
            trainer.leave()
            raise
    return _finish(run, plan, model, tokenizer, (held_rows, held_set), trainer)


def choose_attention(train_set) -> str:
    """"eager" for short rows on a CPU, where torch's flash backward costs more than the whole product; else "sdpa"."""
    longest = max(len(row.ids) for row in train_set.encoded)
    return "eager" if models.device_name() == "cpu" and longest <= 384 else "sdpa"


def make_plan(recipe, decided: dict, path, train_set, held_set, weights: str, its: sizes.Sizes) -> dict:
    """Every choice made by measuring that alters arithmetic, decided once at the first start."""
    lengths = plans.Lengths([len(row.ids) for row in train_set.encoded])
    if decided["device"] == "cuda":
        free_gib = (torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()) / 2**30 - room.reserved_gib()
    else:  # what this process holds already is part of what it needs
        free_gib = machine.main_memory().free_gib + telling.memory_gib() - room.reserved_gib()
    chosen = plans.decide(recipe, its, lengths, decided["device"], decided["precision"], free_gib, machine.reach().import_gib)
    steps = plans.steps(recipe, len(lengths))
    tokens, *_ = lengths.in_steps(recipe, steps)
    evaluate_at, sampled = plans.evaluations(steps, tokens, [len(row.ids) for row in held_set.encoded], recipe.evaluations, recipe.seed, recipe.patience)
    return {
        **decided, "base_sha256": weights, "tokens_at_once": chosen.tokens_at_once, "micro_batch": chosen.micro_batch, "steps": steps,
        "gradient_checkpointing": chosen.checkpointing, "evaluate_at": evaluate_at, "evaluated_rows": sampled, "fast": path.plan,
    }


def lengthen(run: Run, plan: dict, steps: int, train_set, held_set) -> dict:
    """The plan of a run that is to take more steps than it was begun with: the same rows are measured, at more steps.

    A run so short that it could measure few rows measures more from here on, beginning with the step that it goes on from;
    what was best by the few does not count any more.
    """
    recipe = run.recipe
    tokens, *_ = plans.Lengths([len(row.ids) for row in train_set.encoded]).in_steps(recipe, steps)
    evaluate_at, sampled = plans.evaluations(steps, tokens, [len(row.ids) for row in held_set.encoded], recipe.evaluations, recipe.seed, recipe.patience)
    going_on_from = max(checkpoints.steps(run.folder / "checkpoints"), default=0)
    longer = {
        **plan, "steps": steps, "longer_from": going_on_from,
        "evaluate_at": [*plan["evaluate_at"], *(step for step in evaluate_at if step > plan["steps"])],
    }
    before = len(plan["evaluated_rows"])
    if before < plans.FEWEST_ROWS and before < len(sampled):
        longer |= {"evaluated_rows": sampled, "rows_from": going_on_from}
        run.log("note", message=f"It is measured on {len(sampled)} held-out rows from step {going_on_from:,} on, where the shorter run had work for {before}.")
    write_json(run.folder / "plan.json", longer)
    run.log(
        "note", message=f"Trained longer: {steps:,} steps instead of {plan['steps']:,}. From here on the learning rate is that of the longer run.",
    )
    return longer


def _nothing_yet() -> dict:
    """The best version before anything was measured."""
    return {"loss": math.inf, "score": [math.inf], "step": None, "lowest": math.inf, "worse": 0, "trained": None}


def _best_of(kept: dict) -> dict:
    """The best version by what a checkpoint keeps."""
    return {"score": [kept["best"]["loss"]], "lowest": kept["best"]["loss"], "trained": None, **kept["best"]}


def _kept_step(best: dict) -> int | None:
    """The step of the best version: where none is better than the base, of the best that was trained; None before there is one."""
    return best["step"] or (best["trained"] or {}).get("step")


class _Leaving:
    """What a SIGTERM does: it ends this process at once, or as soon as what must not be cut in two is whole."""

    def __init__(self):
        self.is_held = self.is_asked = False

    def __call__(self, *_):
        self.is_asked = True
        if not self.is_held:
            raise SystemExit(143)

    def hold(self) -> None:
        self.is_held = True

    def release(self) -> None:
        self.is_held = False
        if self.is_asked:
            raise SystemExit(143)


# A process has one answer to a signal.
_leaving = _Leaving()


class _Over(Exception):
    """Training has ended before the step that was about to begin."""


class Tuning(Trainer):
    """The HF Trainer with our batches, loss, evaluation and checkpoints."""

    def __init__(self, run: Run, plan: dict, path, tokenizer, train: tuple, held: tuple, began: float):
        recipe, model = run.recipe, path.model
        (train_rows, train_set), (held_rows, held_set) = train, held
        self.run, self.plan, self.path, self.recipe = run, plan, path, recipe
        self.batches = batching.LengthBatches([len(row.ids) for row in train_set.encoded], recipe.batch_size, recipe.seed)
        self.rows, self.numbers = train_set.encoded, [train_rows[place]["n"] for place in train_set.owners]
        self.held = [held_set.encoded[index] for index in plan["evaluated_rows"]]
        self.held_numbers = [held_rows[held_set.owners[index]]["n"] for index in plan["evaluated_rows"]]
        self.meter = telling.Meter(run, plan["steps"], began)
        self.learning = tasks.get(recipe.task).learning(run, path, tokenizer, held_rows, self.held, plans.SAMPLES, plans.SAMPLE_TOKENS)
        # A resumed run reads this back from its checkpoint.
        self.best = _nothing_yet()
        self.measured_at: int | None = None
        # What the newest checkpoint holds, and the random states after the last whole step.
        self.saved_at, self.random = 0, None
        self.seen = telling.Curves(run, plan["steps"])
        self.limit_s = (run.read("limit") or {}).get("seconds", math.inf)
        arguments = TrainingArguments(
            output_dir=str(run.folder / "checkpoints"),
            per_device_train_batch_size=recipe.batch_size,  # cut into what fits at once in `training_step`
            max_steps=plan["steps"],
            learning_rate=recipe.learning_rate,
            lr_scheduler_type=recipe.schedule if recipe.schedule != "constant" else "constant_with_warmup",
            warmup_steps=round(recipe.warmup_share * plan["steps"]),
            weight_decay=recipe.weight_decay,
            max_grad_norm=recipe.max_grad_norm,
            seed=recipe.seed,
            optim="adamw_torch_fused",
            logging_steps=1,
            logging_nan_inf_filter=False,  # it would hide NaN weights behind a running mean
            eval_on_start=True,
            save_strategy="no",  # evaluate() asks for each checkpoint
            report_to=[],
            disable_tqdm=True,
            use_cpu=plan["device"] == "cpu",
            fp16=plan["precision"] == "float16",
            dataloader_num_workers=0,  # two cores: a worker would take a third of the arithmetic
            dataloader_pin_memory=plan["device"] != "cpu",
            # transformers 5's name for it; the fast path does its own
            activation_checkpointing=plan["gradient_checkpointing"] and path.decoder is None,
            remove_unused_columns=False,
            label_names=["labels"],
        )
        self.trained = [its for its in model.parameters() if its.requires_grad]

        def forget_gradients(set_to_none: bool = True) -> None:
            for its in self.trained:
                its.grad = None

        model.zero_grad = forget_gradients  # the model's own walks every module, at each step
        super().__init__(model=model, args=arguments, train_dataset=self.rows, eval_dataset=self.held)
        # The base was loaded for evaluation, and PEFT's wrapper round it says that it trains: a resumed run would leave the
        # base's own dropout off, which one that began with an evaluation has on.
        model.train()
        self.model_accepts_loss_kwargs = True  # so that learned tokens are counted over the whole optimiser batch
        self.add_callback(_Obey(self, plan["evaluate_at"]))
        self.add_callback(rehearsal.Rehearsal(self))

    # Data -----------------------------------------------------------------------------------------------------

    def get_train_dataloader(self):
        """Our batches through `accelerator.prepare`, without which a resume in the second epoch differs silently."""
        loader = torch.utils.data.DataLoader(range(len(self.rows)), batch_sampler=self.batches, collate_fn=self._batch)
        return self.accelerator.prepare(loader)

    def _batch(self, indices: list[int]) -> dict:
        """These rows as the path lays them, and which they are: a step that goes wrong names its rows."""
        rows = self.path.varied([self.rows[index] for index in indices], indices, self.batches.epoch)
        return {**self.path.collate(rows), "indices": indices}

    # Steps ----------------------------------------------------------------------------------------------------

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Gradients of the mean cross-entropy over the learned tokens of one optimiser batch, taken part by part."""
        if self.is_over:
            raise _Over
        self.indices = inputs.pop("indices")
        total = self.gradients(inputs, num_items_in_batch)
        self.meter.add(float(total), sum(inputs["lengths"]), int(num_items_in_batch))
        if not math.isfinite(self.meter.loss):
            self._refuse("The loss")
        return total

    def floating_point_ops(self, inputs) -> int:
        """Nobody reads the Trainer's count, and it walks every module of the model at each step."""
        return 0

    def gradients(self, inputs: dict, learned) -> torch.Tensor:
        """Add an optimiser batch's gradients to the adapter's, and give its loss."""
        if not self.model.training:  # it walks every module
            self.model.train()
        inputs = self._prepare_inputs(inputs)
        total = torch.zeros((), device=inputs["labels"].device)
        for part in self.path.parts(inputs, self.plan["tokens_at_once"], self.plan["micro_batch"]):
            losses, _ = self.path.losses(part)
            loss = losses.sum() / learned
            self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _clip_grad_norm(self, model):
        # The Trainer's own walks every module twice to find them.
        norm = self.accelerator.clip_grad_norm_(self.trained, self.args.max_grad_norm)
        scaler = self.accelerator.scaler
        # In 16-bit floats the scaler begins too high on purpose: it skips such a step and lowers itself, until it cannot.
        if not math.isfinite(float(norm)) and (scaler is None or scaler.get_scale() <= 1):
            self._refuse("The gradient")
        return norm

    def _refuse(self, what: str):
        """End the run before a step that is not a number can touch the weights; say which rows it had."""
        rows, surely = self._to_blame(what)
        raise proposals.not_a_number(self.run, what, self.state.global_step + 1, rows, surely)

    def _to_blame(self, what: str) -> tuple[list[int], bool]:
        """The numbers of the step's rows that are not a number by themselves, and True; where none is, all of them, and False.

        Each goes through the model alone, once: the weights are those from before the step.
        """
        found = []
        for index in self.indices:
            row = self.rows[index]
            self.model.zero_grad(set_to_none=True)
            its = float(self.gradients(self.path.collate([row]), row.learned))
            finite = all(torch.isfinite(p.grad).all() for p in self.trained)
            if not math.isfinite(its) or (what == "The gradient" and not finite):
                found.append(self.numbers[index])
        self.model.zero_grad(set_to_none=True)
        return sorted(set(found or (self.numbers[index] for index in self.indices))), bool(found)

    def log(self, logs: dict, start_time: float | None = None) -> None:
        """One `step` event for each optimiser step, in our own words; the Trainer's own history stays empty."""
        if "loss" in logs:
            norm = logs.get("grad_norm")
            loss = self.meter.loss
            self.meter.log_step(
                self.state.global_step, self.state.epoch, logs["learning_rate"],
                float(norm) if norm is not None and math.isfinite(norm) else None,  # of a step that the scaler skipped
            )
            self.seen.step(self.state.global_step, loss, logs["learning_rate"])
            self.random = checkpoints.random_state()
            _leaving.release()  # held since just before the weights were changed

    # Evaluation -----------------------------------------------------------------------------------------------

    def evaluate(self, *_args, **_kwargs) -> dict:
        """Measure the held-out rows and what the task shows of them; keep a checkpoint; say if this is the best."""
        step = self.state.global_step
        # Asked at every start and again at the end of an epoch: a resumed run measures where an uninterrupted one does.
        due = step in (0, self.plan.get("rows_from"), *self.plan["evaluate_at"]) or self.run.stop_asked() or self.is_out_of_time
        if due and step != self.measured_at:
            with checkpoints.random_untouched(), self.meter.not_training():
                self.model.eval()
                measured = self.learning.measure()
                self.model.train()
            loss = measured["loss"]
            if not math.isfinite(loss):
                bad = [number for number, its in zip(self.held_numbers, measured["row_losses"]) if not math.isfinite(its)]
                raise proposals.not_a_number(self.run, "The held-out loss", step, sorted(set(bad)), True)
            _leaving.hold()
            self._note(step, measured)
            _leaving.release()
        return {"eval_loss": self.best["loss"]}

    @property
    def is_over(self) -> bool:
        """Whether patience or time has run out: a run that is resumed here takes no further step."""
        return 0 < self.recipe.patience <= self.best["worse"] or (0 < self.state.global_step == self.measured_at and self.is_out_of_time)

    @property
    def is_out_of_time(self) -> bool:
        """Whether it has trained for as long as a run may take here."""
        return self.meter.elapsed_s >= self.limit_s

    def _note(self, step: int, measured: dict) -> None:
        """Take over what was measured at a step: its events, the best so far, and whether to go on."""
        self.measured_at, loss, score = step, measured["loss"], self.learning.score(measured)
        best = score < self.best["score"]
        # Macro-F1 stands still while a classifier's loss still falls: patience waits for both. For chat they are one. And a new
        # head knows nothing: while no version is better than its first guesses, only the second half of the steps counts.
        begins = self.learning.NEW_HEAD and not self.best["step"] and 2 * step < self.plan["steps"]
        hope = best or loss < self.best["lowest"] or begins
        trained = self.best["trained"]
        self.best = {
            **({"loss": loss, "score": score, "step": step} if best else {its: self.best[its] for its in ("loss", "score", "step")}),
            "lowest": min(loss, self.best["lowest"]), "worse": 0 if hope else self.best["worse"] + 1,
            "trained": {"score": score, "step": step} if step and (trained is None or score < trained["score"]) else trained,
        }
        self.run.log("eval", step=step, loss=loss, **self.learning.figures(measured), rows=len(self.held), best=best)
        self.learning.tell(step, measured)
        self.seen.evaluation(step, loss, self.best["step"])
        if not step:
            return
        self.control.should_save = True
        if self.is_out_of_time:
            self.control.should_training_stop = True
        elif self.is_over and step < self.plan["steps"]:
            self.run.log(
                "note",
                message=f"{self.learning.NOT_BETTER} in {self.recipe.patience} evaluations, so training "
                f"ends early.{f' The version of step {kept} is kept.' if (kept := self.best['step']) else ''}",
            )
            self.control.should_training_stop = True

    # Checkpoints ----------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Keep the last whole step before this process ends; the step in progress is dropped."""
        _leaving.hold()  # a second signal must not cut this in two
        if self.random is not None and self.state.global_step > self.saved_at:
            checkpoints.restore_random_state(self.random)
            self._save_checkpoint(None, None)
            self.run.log("note", message=f"The machine asked the training to end; step {self.state.global_step} is kept.")

    def _save_checkpoint(self, model, trial) -> None:
        self.state.log_history = []
        with self.meter.not_training():
            checkpoints.write(
                self.run.folder / "checkpoints", self.state.global_step, models.lora_state(self.model),
                self.optimizer.state_dict(), self.lr_scheduler.state_dict(),
                {
                    "trainer_state": dataclasses.asdict(self.state),
                    "tuning": {"best": self.best, "elapsed_s": self.meter.elapsed_s, "measured_at": self.measured_at},
                    **({"scaler": self.accelerator.scaler.state_dict()} if self.accelerator.scaler else {}),
                },
            )
            checkpoints.prune(self.run.folder / "checkpoints", _kept_step(self.best))
            self.saved_at = self.state.global_step

    def go_back(self, checkpoint: Path) -> None:
        """Be where a checkpoint is, without going on: what was best then is."""
        self._load_from_checkpoint(checkpoint)
        self.best = _best_of(read_json(checkpoint / "tuning.json"))
        self.state.global_step = self.saved_at

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        from peft import set_peft_model_state_dict

        checkpoint = Path(resume_from_checkpoint)
        set_peft_model_state_dict(self.model, checkpoints.load_adapter(checkpoint))
        kept = read_json(checkpoint / "tuning.json")
        self.best = _best_of(kept)
        self.saved_at = int(checkpoint.name.removeprefix(checkpoints.PREFIX))
        self.measured_at = kept.get("measured_at", self.saved_at)
        if self.saved_at <= self.plan.get("longer_from", -1):  # its owner wants more, whatever patience said
            self.best["worse"] = 0
        if self.saved_at <= self.plan.get("rows_from", -1):  # measured on other rows than from here on
            self.best, self.measured_at = _nothing_yet(), None
        self.meter.resume(self.saved_at, kept["elapsed_s"])
        self.seen.resume(self.saved_at, len(self.held))

    def _load_optimizer_and_scheduler(self, checkpoint) -> None:
        if checkpoint:
            self.optimizer.load_state_dict(checkpoints.load_optimizer(Path(checkpoint)))
            self.lr_scheduler.load_state_dict(read_json(Path(checkpoint) / "scheduler.json"))

    def _load_scaler(self, checkpoint) -> None:
        if checkpoint and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(read_json(Path(checkpoint) / "scaler.json"))

    def _load_rng_state(self, checkpoint) -> None:
        if checkpoint:
            checkpoints.restore_random_state(read_json(Path(checkpoint) / "random.json"))


class _Obey(TrainerCallback):
    """Evaluate at the planned steps, and end at the next step when asked to stop or out of time."""

    def __init__(self, trainer: Tuning, evaluate_at: list[int]):
        self.trainer, self.evaluate_at = trainer, set(evaluate_at)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        _leaving.hold()  # until the step is counted and logged

    def on_step_end(self, args, state, control, **kwargs):
        control.should_evaluate = state.global_step in self.evaluate_at
        if self.trainer.run.stop_asked() or self.trainer.is_out_of_time:
            control.should_evaluate = control.should_training_stop = True
        return control


def _finish(run: Run, plan: dict, model, tokenizer, held: tuple, trainer: Tuning) -> dict:
    """Take the best version, measure it against the base, and only then say done."""
    from peft import set_peft_model_state_dict

    run.log("status", state="checking", message="Taking the best version")
    last = best_step = trainer.state.global_step
    kept = _kept_step(trainer.best)
    best = run.folder / "checkpoints" / f"{checkpoints.PREFIX}{kept}"
    if trainer.is_out_of_time and last < plan["steps"]:
        run.log(
            "note",
            message=f"The time that a run may train here ({trainer.limit_s / 60:g} min) is over, so training ends at step {last:,} of "
            f"{plan['steps']:,}. The best version so far is kept.",
        )
    if trainer.best["step"] == 0:
        which = "the last one" if kept in (None, last) else f"the best of them, of step {kept:,},"
        run.log("note", message=f"No version was better than the base model on the held-out rows; {which} is kept.")
    if kept is not None and checkpoints.is_whole(best):
        set_peft_model_state_dict(model, checkpoints.load_adapter(best))
        best_step = kept
    elif kept not in (None, last):
        run.log("note", message=f"The version of step {kept} is damaged; the last one is kept.")
    if not all(torch.isfinite(tensor).all() for tensor in models.lora_state(model).values()):
        raise proposals.not_a_number(run, "The adapter", best_step, [], False)
    partial = run.folder / ".adapter"
    shutil.rmtree(partial, ignore_errors=True)
    models.save_adapter(model, partial)
    task = tasks.get(run.recipe.task)
    task.keep_files(run.read("base")["dir"], partial, plan)
    shutil.rmtree(run.adapter_dir, ignore_errors=True)
    os.rename(partial, run.adapter_dir)
    model.eval()
    made = task.report(
        run, plan, model, tokenizer, held, best_step, seconds=plans.report_budget_s(trainer.meter.elapsed_s),
        on_status=lambda words: run.log("status", state="checking", message=words),
    )
    write_json(run.folder / "report.json", made)
    state = "stopped" if run.stop_asked() else "done"
    run.log(
        "result", base_loss=made["base"]["loss"], tuned_loss=made["tuned"]["loss"], best_step=made["best_step"],
        elapsed_s=round(trainer.meter.elapsed_s, 1),
    )
    run.log("status", state=state, message="Stopped; what was learned is kept" if state == "stopped" else "Done")
    rehearsal.learn(run)
    write_json(run.folder / "done", {"state": state})  # last: its presence means the adapter is whole
    return made


def main(run: Run) -> int:
    """Train and put every ending into the folder; the exit code is 0 only when the run is done or stopped."""
    signal.signal(signal.SIGTERM, _leaving)
    try:
        train(run)
        return 0
    except UserError as error:
        said = error
    except OSError as error:  # a log or a file that could not be written
        said = disk_error(error, run.folder / "events.jsonl")
        if said is error:
            raise
    except Exception as error:
        if not rehearsal.is_out_of_memory(error):
            raise
        said = proposals.refuse(run, "The run ran out of memory.")
    for leftover in (*(run.folder / "checkpoints").glob(".tmp-*"), run.folder / ".adapter"):  # room for the words, on a full disk
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        write_whole(run.folder / "error.txt", str(said))
    except (OSError, UserError):
        print(said, file=sys.stderr)  # the page's process will find it in the log, or not at all
    return 1
