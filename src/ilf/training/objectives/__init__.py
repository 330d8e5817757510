"""The objectives of the policy's fine-tuning: the protocol `Objective` and the options of the group `objective`.

- likelihood.py computes the log-probabilities of a batch's targets.
- sft.py has the paper's objective.
- preference.py has objectives that prefer x1 to x0.
- weighted.py has a policy gradient on programs that were sampled earlier.
- feedback.py has objectives whose texts contain the feedback.
- self_distillation.py has the policy that reads f teach the policy that does not.
"""

from ilf.lazy import getter
from ilf.protocols import Objective as Objective
from ilf.protocols import TrainingData as TrainingData

_PLACES = {
    "DPO": "preference",
    "KTO": "preference",
    "SFT": "sft",
    "Critique": "feedback",
    "FeedbackConditional": "feedback",
    "FocusedDPO": "preference",
    "Multitask": "feedback",
    "RefinerDistillation": "self_distillation",
    "SelfDistillation": "self_distillation",
    "Weighted": "weighted",
}
__all__ = ["Objective", "TrainingData", *_PLACES]
__getattr__ = getter(__name__, _PLACES)
