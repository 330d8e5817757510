"""What the policy's fine-tuning minimises: one protocol (`Objective`), and the options of the group `objective`.

likelihood.py has the log-probabilities of a batch's targets, sft.py the paper's objective; preference.py takes x1 for
better than x0, weighted.py is a policy gradient on programs that were sampled before, in feedback.py the words are in
the texts, and in self_distillation.py the policy that reads f teaches the one that does not.
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
