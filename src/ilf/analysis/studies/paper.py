"""The paper's results (Chen et al. 2023, arXiv 2303.16749) for CodeGen-Mono 6.1B on MBPP, for comparison with ours.

Rates are fractions. The paper reports one seed without intervals, and 30 samples per task at temperature 0.8.
"""

from __future__ import annotations

MODEL = "CodeGen-Mono 6.1B (paper)"

# Table 1: zero-shot on all of MBPP.
ZERO_SHOT = {"pass@1": 0.31, "pass@10": 0.63, "one_correct": 0.67}
# Table 2: one-shot refinement before fine-tuning.
ONE_SHOT_REFINEMENT = {
    "own feedback": {"pass@1": 0.020, "pass@10": 0.138},
    "shuffled feedback": {"pass@1": 0.004, "pass@10": 0.040},
}
# Table 3: the fine-tuned refiner on Train.
REFINER = {"pass@1": 0.19, "pass@10": 0.47, "one_correct": 0.61}
# Table 4: on Test, by arm.
FINAL = {
    "ilf": {"pass@1": 0.36, "pass@10": 0.68},
    "llm_1shot": {"pass@1": 0.19, "pass@10": 0.55},
    "llm_2shot": {"pass@1": 0.25, "pass@10": 0.59},
    "gold": {"pass@1": 0.22, "pass@10": 0.63},
    "human": {"pass@1": 0.33, "pass@10": 0.68},
    "zero_shot": {"pass@1": 0.26, "pass@10": 0.59},
}
# Table 5: shares of 50 pieces of feedback that name each category of mistakes.
CATEGORIES = {
    "human": {
        "logic": 0.30,
        "formatting": 0.36,
        "missing step": 0.10,
        "algebra": 0.10,
        "recursion": 0.04,
        "regex": 0.06,
        "function semantics": 0.02,
        "dynamic programming": 0.02,
        "extra step": 0.0,
        "none needed": 0.0,
        "unrelated": 0.0,
    },
    "InstructGPT": {
        "logic": 0.46,
        "formatting": 0.14,
        "missing step": 0.06,
        "algebra": 0.08,
        "recursion": 0.14,
        "regex": 0.06,
        "function semantics": 0.04,
        "dynamic programming": 0.0,
        "extra step": 0.12,
        "none needed": 0.14,
        "unrelated": 0.08,
    },
}
# Table 6: mean number of mistakes addressed (`bugs`), and mean and standard deviation of the number of words.
FEEDBACK = {
    "human": {"bugs": 1.8, "words": 68.9, "words_sd": 48.2},
    "InstructGPT": {"bugs": 1.1, "words": 24.2, "words_sd": 28.6},
}
