"""Options of a sampler, and the names of its methods and unmasking schedules. Nothing here needs torch."""

from dataclasses import dataclass

from ..config import at_least

COUNTED = ("random", "confidence", "top", "margin", "entropy")  # methods that write the scheduled number of tokens
METHODS = ("ancestral", *COUNTED)
UNMASKING = ("linear", "cosine", "cosine-maskgit")
MOST_STEPS = 100_000  # a text has far fewer tokens
LEAST = {"tokens": 1, "number": 1, "steps": 1, "block": 1, "temperature": 0, "top_k": 0, "seed": 0}


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """What to write and how. Raises ValueError, naming the option, where one is out of range or two do not fit."""

    tokens: int  # new tokens of each text
    number: int = 1  # texts, written together
    temperature: float = 1.0  # 0 takes the most probable token
    top_k: int = 0  # draw among this many of the most probable tokens; 0: all
    top_p: float = 1.0  # draw among the most probable tokens of this mass
    seed: int = 0  # text i is drawn with seed + i
    # The rest is for diffusion
    steps: int | None = None  # network evaluations, at most; None: one a token
    method: str = "ancestral"  # which tokens a step writes
    unmasking: str = "linear"  # how many
    block: int | None = None  # write blocks of this many tokens from left to right; None: all at once
    remask: float | None = None  # eta of ReMDM-cap, by which written tokens are masked again; None: never

    def __post_init__(self):
        at_least(self, LEAST, {"steps": "; leave it out for one step a token"})
        if self.steps and self.steps > MOST_STEPS:
            raise ValueError(f"steps is {self.steps}; it must be at most {MOST_STEPS:,}")
        if self.seed + self.number > 2**63:
            n = self.number
            raise ValueError(f"seed is {self.seed}; with number {n} it must be at most 2^63 - {n}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top-p is {self.top_p}; it must lie in 0 < top-p <= 1")
        for name, known in (("method", METHODS), ("unmasking", UNMASKING)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; known are {', '.join(known)}")
        if self.remask is not None and not 0 < self.remask <= 1:
            raise ValueError(f"remask is {self.remask}; it must lie in 0 < remask <= 1")
        if self.remask is not None and self.method != "ancestral":
            raise ValueError(f"remask needs method ancestral, not {self.method}")
        if self.block and self.tokens % self.block:
            raise ValueError(f"block {self.block} does not divide the {self.tokens} new tokens")
        if self.steps and self.steps % self.blocks:
            blocks = f"{self.blocks} blocks ({self.tokens} tokens / block {self.block})"
            raise ValueError(f"steps {self.steps} must be a multiple of the {blocks}")

    @property
    def blocks(self) -> int:
        return self.tokens // self.block if self.block else 1

    @property
    def steps_per_block(self) -> int:
        """Return the steps that write a block: no more than its tokens where every step writes one or more."""
        steps = (self.steps or self.tokens) // self.blocks
        return min(steps, self.tokens // self.blocks) if self.method in COUNTED else steps
