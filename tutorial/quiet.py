"""Keep a page readable: the engines' own log lines stay in Ray's log folder and out of the cells."""

import logging
import os
import warnings

LOUD = ("ray", "ray.data", "ray.serve", "ray.llm", "ray._private", "httpx", "vllm", "transformers")


def environment() -> None:
    """What must be set before the engines are imported; what the user has set stays."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # the driver's C++ side writes to its cell
    warnings.filterwarnings("ignore", message="IProgress not found")
    logging.getLogger("ray").setLevel(logging.ERROR)


def loggers() -> None:
    """Errors alone from here on; called after an import, because an import sets its loggers anew."""
    for name in LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)
