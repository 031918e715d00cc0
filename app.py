"""Builds the app and serves it; nothing else."""

import os
import sys

# Read by the libraries when they are imported. Visitors never act with a token of the Space's own.
os.environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["USE_TORCH"] = "0"  # datasets would import it; the page's process never does
# Gradio would keep the session of each of the last 10,000 clicks, and put them all in a table after every click.
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000000000")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tuner import redaction  # noqa: E402

redaction.install(outputs=("stdout", "stderr"))  # before any library makes a log handler of its own

from tuner.ui.app import serve  # noqa: E402

if __name__ == "__main__":
    if "--share" in sys.argv[1:]:
        os.environ["TUNER_SHARED"] = "1"  # see `limits.is_shared`
    serve(share="--share" in sys.argv[1:])
