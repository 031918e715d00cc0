"""What an evaluation of a chat run measures and tells: the held-out loss, and the fixed prompts answered again."""

import time

from tuner import answer, encode, report
from tuner.tasks import chat


class Learning:
    """One run's held-out rows and fixed prompts.

    Args:
        path: how losses are computed (`fast.Path`).
        held: the encoded rows that each evaluation measures.
        samples, sample_tokens: how many prompts, answered with how many tokens at most.
    """

    # What is said when patience has run out.
    NOT_BETTER = "The held-out loss has not improved"
    # Whether the model begins with a part that nobody has trained.
    NEW_HEAD = False

    def __init__(self, run, path, tokenizer, held_rows: list[dict], held: list, samples: int, sample_tokens: int):
        self.run, self.path, self.tokenizer, self.held, self.sample_tokens = run, path, tokenizer, held, sample_tokens
        self.questions = chat.sample_questions(run.recipe, held_rows, samples)
        self.sample_ids = [chat.prompt_ids(question, tokenizer, run.recipe) for question in self.questions]
        self.stops = encode.stop_ids(tokenizer, getattr(path.model.generation_config, "eos_token_id", None))

    def measure(self) -> dict:
        """See `report.measure`; with "samples", what was answered, and "answers_s", the seconds that it took."""
        measured = report.measure(self.path, self.held)
        began = time.monotonic()
        told = answer.answers(self.path.model, self.tokenizer, self.sample_ids, self.stops, self.sample_tokens)
        return {**measured, "samples": told, "answers_s": round(time.monotonic() - began, 3)}

    def score(self, measured: dict) -> list[float]:
        """What the best version has least of."""
        return [measured["loss"]]

    def figures(self, measured: dict) -> dict:
        """What the evaluation's event says besides its loss."""
        return {"perplexity": report.perplexity(measured["loss"]), "answers_s": measured["answers_s"]}

    def tell(self, step: int, measured: dict) -> None:
        """Log the answers."""
        for number, (question, (text, why)) in enumerate(zip(self.questions, measured["samples"])):
            prompt = question["messages"][-1]["content"]
            self.run.log("sample", step=step, number=number, prompt=prompt, text=text, ended=why == "stop")
