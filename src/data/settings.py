"""The settings that decide what the data is. Part of the identity of every run."""

from __future__ import annotations

from dataclasses import dataclass

from tinymem.options import check_options, option

NUMBER_TASKS = tuple(
    f"{name}{suffix}" for suffix in ("", "_3", "_5") for name in ("increment", "mult", "exp", "exponential")
)
ARTIFACTS = ("noise", "backdoor")


@dataclass(frozen=True)
class DataSettings:
    """Data"""

    data_name: str = option("increment", "task", choices=NUMBER_TASKS)
    artifact: str = option(
        "noise", "what is planted to be memorized; --backdoor is short for backdoor", choices=ARTIFACTS
    )
    num_7: int = option(20000, "sequences of the main task", low=1)
    num_2: int = option(3000, "sequences of the extra task with constant 2", low=0)
    num_3: int = option(3000, "sequences of the extra task with constant 3", low=0)
    num_4: int = option(3000, "sequences of the extra task with constant 4", low=0)
    num_5: int = option(3000, "sequences of the extra task with constant 5", low=0)
    num_test: int = option(1000, "sequences held out of each task for testing", low=1)
    num_noise: int = option(1000, "sequences of the main task that get noise", low=1)
    duplicate: bool = option(False, "repeat the artifacts: equal groups, 10^0, 10^1, 10^2 times")
    length: int = option(20, "values in a sequence", low=1)
    max_ctx: int = option(150, "context length, tokens", low=2)
    prompt_tokens: int = option(50, "n of (n, k) memorization: tokens of the prompt (noise)", low=1)
    continuation_tokens: int = option(50, "k of (n, k) memorization: tokens that must come out", low=1)
    seed: int = option(0, "seed of the noise, the trigger, the initial weights and the data order", low=0)

    __post_init__ = check_options
